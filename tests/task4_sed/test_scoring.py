"""Prediction files are scored behind each post-processing, boxes are tuned elsewhere, records say what they are."""

import argparse
import dataclasses
import json

import numpy as np
import pytest

from common.data.manifest import DataError
from common.results.compare import why_not_comparable
from common.results.records import check_record, read_records
from task4_sed import data, evaluate, reporting, scoring
from task4_sed.predictions import PredictionFile, write_predictions
from tests.task4_sed.conftest import write_table
from tests.task4_sed.predicted import (
    CLASSES,
    DEVTEST,
    FOUND,
    MAESTRO,
    SYNTH_VAL,
    TABLES,
    logits_of,
    write_data,
    write_run,
)


@pytest.fixture
def root(tmp_path):
    return write_data(tmp_path / "data")


def split_of(root, run, name="devtest"):
    return scoring.Split.load(root, name, run)


def run_command(*words):
    evaluate.main([str(word) for word in words])


# ---- scores ----


def test_perfect_predictions_score_one_and_clips_without_events_do_not_count(root, tmp_path):
    found = reporting.score_split(split_of(root, write_run(tmp_path / "run")), {}, n_resamples=20)
    metrics = found["metrics"]
    assert metrics["psds1"] == metrics["raw"]["psds1"] == metrics["intersection_f1"] == pytest.approx(1)
    assert set(metrics["psds1_class"]) == {"Dog", "Cat", "Speech"} and metrics["psds1_class"]["Dog"] == 1
    assert (metrics["n_items"], metrics["n_scored"]) == (5, 4)
    assert found["intervals"]["psds1"] == [1, 1] and found["intervals"]["raw"]["psds1"] == [1, 1]
    assert found["intervals"]["resampled"] == "clip" and set(found["curves"]) == {"median", "raw"}


def test_the_median_filter_removes_a_false_frame_that_raw_scores_count(root, tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "predictions/devtest.hdf5"
    logits = PredictionFile(path).logits().copy()
    logits[0, 100, CLASSES.index("Cat")] = FOUND + 1  # one frame, surer than all events; the window has 9
    write_predictions(path, list(DEVTEST), [logits], {"recipe": "x"})
    metrics = reporting.score_split(split_of(root, run), {}, 0)["metrics"]
    # one false positive in the 40 s of the four clips with events: 90 an hour, of 100 that the area goes up to
    assert metrics["psds1_class"]["Cat"] == 1 and metrics["raw"]["psds1_class"]["Cat"] == pytest.approx(0.1)
    assert metrics["raw"]["psds1_class"]["Dog"] == 1


def test_frames_of_another_length_are_scored_without_median_filter(root, tmp_path):
    write_run(tmp_path / "run")
    logits = np.repeat(logits_of(DEVTEST), 2, axis=1)[:, :250]  # the grid of 40 ms, events at other times
    write_predictions(tmp_path / "run/predictions/devtest.hdf5", list(DEVTEST), [logits], {"recipe": "x"})
    split = split_of(root, tmp_path / "run")
    assert split.median_windows() is None and list(split.processed({})) == ["raw"]
    metrics = reporting.score_split(split, {}, 0)["metrics"]
    assert "raw" not in metrics and 0 <= metrics["psds1"] < 1


def test_maestro_crops_are_joined_and_only_sure_labels_count(root, tmp_path):
    run = write_run(tmp_path / "run")
    found = reporting.score_split(split_of(root, run, "maestro_real_dev"), {}, n_resamples=20)
    assert found["metrics"]["mpauc"] == pytest.approx(1) and found["curves"] == {}
    assert found["metrics"]["mpauc_class"] == {"footsteps": pytest.approx(1), "car": pytest.approx(1)}
    assert found["intervals"]["resampled"] == "recording" and found["intervals"]["n_groups"] == 3
    assert found["metrics"]["n_items"] == len(MAESTRO) and found["scoring"]["counts"]["crops_missing"] == 0


def test_recordings_last_as_long_as_their_table_says_or_their_last_crop(root, tmp_path):
    run = write_run(tmp_path / "run")
    assert set(split_of(root, run, "maestro_real_dev").durations_s.values()) == {15.0}
    (root / scoring.MAESTRO_DURATIONS).write_text("filename\tduration\ncity_center_01.wav\t14.5\nother.wav\t99\n")
    with pytest.raises(DataError, match="ends after its recording, which lasts 13.5 s"):
        (root / scoring.MAESTRO_DURATIONS).write_text("filename\tduration\ncity_center_01.wav\t13.5\n")
        reporting.score_split(split_of(root, run, "maestro_real_dev"), {}, 0)
    (root / scoring.MAESTRO_DURATIONS).write_text("filename\tduration\ncity_center_01.wav\t14.5\nother.wav\t99\n")
    durations_s = split_of(root, run, "maestro_real_dev").durations_s
    assert durations_s["city_center_01"] == 14.5 and "other" not in durations_s


def test_missing_predictions_are_named(root, tmp_path):
    run = write_run(tmp_path / "run")
    with pytest.raises(DataError, match="no predictions of eval_public .there are devtest, maestro"):
        split_of(root, run, "eval_public")
    with pytest.raises(DataError, match="weak_val: has no events with times"):
        split_of(root, run, "weak_val")
    with pytest.raises(DataError, match="holds no predictions"):
        split_of(root, tmp_path / "nowhere")


def test_thinned_curve_keeps_its_ends_and_its_area(monkeypatch):
    rng = np.random.default_rng(0)
    efpr = np.sort(np.append(0, rng.exponential(30, 3000)))
    etpr = 1 - np.exp(-efpr / 20)

    class Score:
        details = {"efpr": efpr, "etpr": etpr}

    monkeypatch.setattr(scoring, "psds", lambda *_: Score)
    curve, whole = scoring.psd_roc(None), scoring.psd_roc(None, max_points=10_000)
    assert len(curve["efpr"]) <= 100 < len(whole["efpr"]) and max(whole["efpr"]) <= 100
    assert (curve["efpr"][0], curve["efpr"][-1]) == (whole["efpr"][0], whole["efpr"][-1])
    areas = [np.sum(c["etpr"][:-1] * np.diff(c["efpr"])) for c in (curve, whole)]
    assert areas[0] == pytest.approx(areas[1], rel=0.02)


# ---- boxes ----


def write_fading_events(run):
    """Overwrite devtest and synth_val: events fade to below the score of false sounds, but are surer on the whole."""
    for name, clips in (("devtest", DEVTEST), ("synth_val", SYNTH_VAL)):
        logits = np.maximum(logits_of(clips, 0.6), np.where(logits_of(clips) > 0, -0.5, -6))
        for label in ("Dog", "Cat", "Speech"):
            false = np.where(logits_of(clips)[:, 140:152, CLASSES.index(label)] > 0, -6, 0)
            logits[:, 140:152, CLASSES.index(label)] = np.maximum(logits[:, 140:152, CLASSES.index(label)], false)
        write_predictions(run / f"predictions/{name}.hdf5", list(clips), [logits], {"recipe": "x", "identity": name})
    return run


def test_boxes_are_tuned_on_validation_sets_and_judge_events_as_a_whole(root, tmp_path):
    run = write_fading_events(write_run(tmp_path / "run"))
    path = scoring.tune_boxes(root, run)
    about = json.loads(path.read_text())
    assert path.name == "csebbs.json" and about["tuned_on"] == ["synth_val"] and about["n_clips"] == 6
    assert set(about["classes"]) > {"Dog", "Cat", "Speech"} and any("Blender" in note for note in about["notes"])
    boxes = scoring.read_boxes(run)
    metrics = reporting.score_split(split_of(root, run), boxes, 0)["metrics"]
    assert metrics["csebbs"]["psds1_macro"] == pytest.approx(1)
    assert metrics["psds1_macro"] < 0.5 and metrics["raw"]["psds1_macro"] < 0.5
    assert boxes["csebbs"].summary("devtest")["oracle"] is False


def test_the_oracle_is_a_switch_with_a_name_of_its_own(root, tmp_path):
    run = write_run(tmp_path / "run", noise=3.0)
    with pytest.raises(DataError, match="devtest is a set that is scored; tuning on it is called --oracle"):
        scoring.tune_boxes(root, run, ["devtest"])
    with pytest.raises(DataError, match="soft ones|set that is scored"):
        scoring.tune_boxes(root, run, ["maestro_real_dev"])
    assert scoring.tune_boxes(root, run, oracle=True).name == "csebbs_devtest.json"
    boxes = scoring.read_boxes(run)
    assert list(boxes) == ["csebbs_devtest"] and boxes["csebbs_devtest"].summary("devtest")["oracle"] is True
    assert boxes["csebbs_devtest"].summary("eval_public")["oracle"] is False


def test_boxes_of_older_predictions_are_refused(root, tmp_path):
    run = write_run(tmp_path / "run")
    scoring.tune_boxes(root, run)
    write_run(run, noise=1.0)
    with pytest.raises(DataError, match="tuned on other predictions of synth_val"):
        scoring.read_boxes(run)


def test_boxes_of_older_published_files_are_refused_too(root, tmp_path):
    run = write_run(tmp_path / "run", identity=None)
    scoring.tune_boxes(root, run)
    scoring.read_boxes(run)
    write_run(run, noise=1.0, identity=None)
    with pytest.raises(DataError, match="tuned on other predictions of synth_val"):
        scoring.read_boxes(run)


# ---- records ----


def test_score_writes_a_record_for_each_split(root, tmp_path, capsys):
    run = write_run(tmp_path / "run", noise=1.0)
    (run / "weights.pt").write_bytes(b"weights")
    digest = "9a8077a0e35ff70c9c7cd91c7ef1f2ff2ddc0a82c6f6d5dd71b5b1f5a8c4c1d2"
    run_command("score", "--run", run, "--data", root, "--results", tmp_path / "results", "--bootstrap", 20)
    shown = capsys.readouterr().out
    records, problems = read_records(tmp_path / "results")
    assert problems == [] and [record["split"] for record in records] == ["devtest", "maestro_real_dev"]
    for record in records:
        assert (record["recipe"], record["seed"], record["status"]) == ("little/one", 0, "other data")
        assert record["complexity"] == {"parameters": 10, "macs": 1000}
        assert why_not_comparable(record) == "other data"
    assert "devtest (other data): PSDS1" in shown and "maestro_real_dev (other data): mpAUC" in shown
    assert "little-scenes-little_one-devtest-seed0.json" in shown
    # weights that were trained anew since
    write_run(run, weights={"sha256": digest, "given": False})
    with pytest.raises(SystemExit, match="made with other weights than weights.pt of this run; predict again"):
        run_command("score", "--run", run, "--data", root, "--results", tmp_path / "results")


def test_records_keep_the_training_and_machine_paths_stay_out(root, tmp_path):
    run = write_run(tmp_path / "run", weights={"given": False, "sha256": None}, members=None)
    (run / "train.json").write_text(json.dumps({
        "recipe": "ignored", "history": [{"epoch": 1, "train_loss": 0.5}], "energy": {"energy_kwh": 1.0},
        "config": {"encoder_weights": "/disk/here/atst.ckpt", "data": {"max_clips": 0}},
        "training": {"command": "python -m task4_sed.train --run /disk/here/run", "wall_time_s": 7.0},
    }))  # fmt: skip
    (run / "predictions/energy.json").write_text('{"energy_kwh": 0.1}')
    record = reporting.record_of(run, split_of(root, run), {}, 0)
    check_record(record)
    assert record["config"]["encoder_weights"] == "…/atst.ckpt" and record["command"].endswith("--run …/run")
    assert record["history"] and record["wall_time_s"] == 7.0 and record["energy"] == {"energy_kwh": 1.0}
    assert record["predictions"]["energy"] == {"energy_kwh": 0.1} and "command" in record["scored"]
    assert "/disk" not in json.dumps(record)


def test_published_files_need_a_name(root, tmp_path):
    folder = tmp_path / "published"
    write_predictions(folder / "devtest.hdf5", list(DEVTEST), [logits_of(DEVTEST)], {})
    with pytest.raises(DataError, match="does not say what made it; give --recipe"):
        reporting.record_of(folder, split_of(root, folder), {}, 0)
    record = reporting.record_of(folder, split_of(root, folder), {}, 0, recipe="weights/winner", seed=3)
    assert (record["recipe"], record["seed"], record["history"]) == ("weights/winner", 3, [])


PUBLISHED = data.PUBLISHED_DATA


@pytest.mark.parametrize(
    "name, about, expected",
    [
        ("little scenes", {}, "other data"),
        ("built-in data", {}, "built-in data"),
        (PUBLISHED, {"smoke": True}, "smoke"),
        (PUBLISHED, {}, "complete"),
        (PUBLISHED, {"training": {"dataset": PUBLISHED, "differences": ["x: 3 files missing"]}}, "partial data"),
        (PUBLISHED, {"training": {"dataset": "little scenes", "differences": []}}, "partial data"),
    ],
)
def test_status_and_what_may_stand_beside_a_published_number(monkeypatch, tmp_path, name, about, expected):
    root, run = write_data(tmp_path / "data", name), write_run(tmp_path / "run", **about)
    with_counts = dataclasses.replace(data.set_info("devtest"), clips=(5,), clips_with_events=4, events=6)
    monkeypatch.setattr(data, "set_infos", lambda: {"devtest": with_counts})
    monkeypatch.setattr(reporting, "metrics_of", lambda *_: ("psds1",))
    record = reporting.record_of(run, split_of(root, run), {}, 0)
    assert record["status"] == ("partial data" if expected == "complete" else expected)  # 7 classes have no event
    monkeypatch.setattr(scoring.Split, "classes", ["Dog", "Cat", "Speech"])
    record = reporting.record_of(run, split_of(root, run), {}, 0)
    assert record["status"] == expected
    assert (why_not_comparable(record) is None) == (expected == "complete")


def test_fewer_clips_or_events_than_published_are_partial_data(monkeypatch, tmp_path):
    root, run = write_data(tmp_path / "data", PUBLISHED), write_run(tmp_path / "run")
    monkeypatch.setattr(scoring.Split, "classes", ["Dog", "Cat", "Speech"])
    monkeypatch.setattr(reporting, "metrics_of", lambda *_: ("psds1",))
    record = reporting.record_of(run, split_of(root, run), {}, 0)
    assert record["status"] == "partial data" and record["dataset"]["expected"] == {"devtest": 1168}
    assert record["dataset"]["found"] == {"devtest": 5}
    assert record["dataset"]["differences"] == [
        "devtest: 4 clips with events, published 1153",
        "devtest: 6 events, published 4224",
    ]


@pytest.mark.slow
def test_the_published_development_set_is_complete_and_scored_exactly(shared, tmp_path, monkeypatch):
    vector = json.loads((shared / "parity/sed/psds_real.json").read_text())
    arrays, files, labels = np.load(shared / "parity/sed/psds_real.npz"), vector["files"], vector["classes"]
    columns = (arrays[f"gt_{name}"] for name in ("file", "on", "off", "cls"))
    rows = [(files[n], onset, offset, labels[k]) for n, onset, offset, k in zip(*columns)]
    rows += [(name, "", "", "") for name in sorted(set(files) - {row[0] for row in rows})]
    table, durations, _ = TABLES["devtest"]
    write_table(tmp_path / table, "filename onset offset event_label", [(f"{row[0]}.wav", *row[1:]) for row in rows])
    write_table(tmp_path / durations, "filename duration", [(f"{n}.wav", s) for n, s in zip(files, arrays["dur"])])
    scores = np.clip(arrays["scores"] / 50, 1e-4, 1 - 1e-4)  # PSDS hangs on their order alone
    logits = np.full((*scores.shape[:2], len(CLASSES)), -9, np.float32)
    logits[:, :, [CLASSES.index(name) for name in labels]] = np.log(scores / (1 - scores))
    write_predictions(tmp_path / "run/devtest.hdf5", files, [logits], {"recipe": "dcase2024/winner_ensemble"})
    monkeypatch.setattr(reporting, "metrics_of", lambda *_: ("psds1", "psds1_macro"))
    record = reporting.record_of(tmp_path / "run", split_of(tmp_path, tmp_path / "run"), {}, 0)
    assert record["metrics"]["raw"]["psds1"] == pytest.approx(0.33512637605230894, abs=1e-9)
    assert record["metrics"]["raw"]["psds1_macro"] == pytest.approx(0.523200976966456, abs=1e-9)
    assert record["status"] == "complete" and why_not_comparable(record) is None
    assert (record["metrics"]["n_items"], record["metrics"]["n_scored"]) == (1168, 1153)


# ---- comparisons ----


def compare(root, tmp_path, runs, against, splits=("devtest", "maestro_real_dev")):
    out = tmp_path / "comparisons"
    words = ["--data", root, "--results", out, "--splits", *splits, "--bootstrap", 30]
    run_command("compare", "--runs", *runs, "--against", *against, *words)
    return {(entry := json.loads(path.read_text()))["split"]: entry for path in out.iterdir()}


def test_a_system_differs_from_itself_by_nothing(root, tmp_path):
    run = write_run(tmp_path / "run", noise=2.0)
    found = compare(root, tmp_path, [run], [run])
    for entry, score in ((found["devtest"], "psds1"), (found["maestro_real_dev"], "mpauc")):
        assert entry[score] == {"difference": 0.0, "interval": [0.0, 0.0]} and "raw" not in entry
        assert entry["per_seed"][score] == [0.0] and entry["status"] == "other data"
    assert found["maestro_real_dev"]["resampled"] == "recording" and found["devtest"]["resampled"] == "clip"


def test_the_better_system_is_ahead_and_means_are_over_seeds(root, tmp_path, capsys):
    better = [write_run(tmp_path / f"b{seed}", seed=seed, recipe="little/two") for seed in (0, 1)]
    worse = [write_run(tmp_path / f"w{seed}", share=0.4 + 0.1 * seed, seed=seed) for seed in (0, 1)]
    entry = compare(root, tmp_path, better, worse, ["devtest"])["devtest"]
    assert (entry["recipe"], entry["against"], entry["seeds"]) == ("little/two", "little/one", [2, 2])
    assert entry["psds1"]["difference"] == pytest.approx(1) == pytest.approx(np.mean(entry["per_seed"]["psds1"]))
    assert entry["psds1"]["interval"][0] > 0.5 and entry["psds1_class"]["Dog"]["difference"] == pytest.approx(1)
    assert "psds1: +100.00 points" in capsys.readouterr().out
    name = "little-scenes-little_two-vs-little_one-devtest.json"
    assert (tmp_path / "comparisons" / name).is_file()


def test_runs_that_cannot_be_paired_are_refused(root, tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", recipe="little/two")
    with pytest.raises(SystemExit, match="runs of several recipes on one side"):
        compare(root, tmp_path, [one, two], [one], ["devtest"])
    fewer = {name: events for name, events in DEVTEST.items() if name != "b"}
    write_predictions(two / "predictions/devtest.hdf5", list(fewer), [logits_of(fewer)], {"recipe": "little/two"})
    with pytest.raises(SystemExit, match="its predictions of devtest are of other clips"):
        compare(root, tmp_path, [one], [two], ["devtest"])


def test_one_recording_is_left_out_of_a_comparison_and_that_is_said(root, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    one = {name: events for name, events in MAESTRO.items() if name.startswith("cafe_restaurant_00")}
    write_predictions(run / "predictions/maestro_real_dev.hdf5", list(one), [logits_of(one)], {"recipe": "little/one"})
    assert set(compare(root, tmp_path, [run], [run])) == {"devtest"}
    assert "maestro_real_dev: not compared; the interval" in capsys.readouterr().out


def test_several_runs_are_tuned_and_scored_in_one_call(root, tmp_path):
    runs = [write_run(tmp_path / f"r{seed}", seed=seed, recipe="little/two") for seed in (0, 1)]
    run_command("tune", "--run", *runs, "--data", root, "--oracle-too")
    assert all((run / f"predictions/{file}").is_file() for run in runs for file in scoring.BOXES.values())
    words = ["score", "--run", *runs, "--data", root, "--splits", "devtest", "--bootstrap", 0]
    run_command(*words, "--results", tmp_path / "results")
    assert len(list((tmp_path / "results").glob("*-devtest-seed[01].json"))) == 2
    with pytest.raises(SystemExit, match="--recipe and --seed name one run, 2 are given"):
        run_command(*words, "--results", tmp_path / "results", "--recipe", "x")


def test_intervals_of_the_built_in_data_take_few_resamples(tmp_path):
    for name, n_resamples in (("built-in data", 20), ("little scenes", 200)):
        args = argparse.Namespace(bootstrap=None, data=write_data(tmp_path / name, name))
        assert reporting.resamples(args) == n_resamples
    args.bootstrap = 7
    assert reporting.resamples(args) == 7


def test_nothing_to_score_is_one_sentence(root, tmp_path):
    write_predictions(tmp_path / "run/weak_val.hdf5", ["a"], [logits_of({"a": []})], {})
    with pytest.raises(SystemExit, match="no predictions of devtest, eval_public, maestro_real_dev"):
        run_command("score", "--run", tmp_path / "run", "--data", root, "--results", tmp_path)
