"""Submissions: built from little prediction files, read again and scored again, refused when something is wrong."""

import contextlib
import io
import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import yaml

from common.metrics.sed_scores import read_score_folder
from common.submission import SubmissionError
from task4_sed import scoring, submit, submit_check
from task4_sed.evaluate import main as evaluate_main
from task4_sed.predictions import PredictionFile, write_predictions
from task4_sed.submit_check import check_package
from tests.task4_sed.conftest import write_table
from tests.task4_sed.predicted import CLASSES, DEVTEST, MAESTRO, logits_of, write_data, write_run

NAME = "Muster_INST_task4"
AUTHOR = {"lastname": "Muster", "firstname": "Eva", "email": "e@m.org", "corresponding": True,
          "affiliation": {"abbreviation": "INST", "institute": "I", "department": "D", "location": "L"}}  # fmt: skip
FILLED = {
    "submission": {"abbreviation": "little", "authors": [AUTHOR]},
    "system": {
        "description": {"external_data_usage": "none", "data_augmentation": "none", "machine_learning_method": "CRNN"},
        "energy": {"training_kwh": 1.5, "test_kwh": 0.1, "test_sets": "devtest", "baseline_devtest_kwh": 0.1,
                   "baseline_training_10_epochs_kwh": 0.5},
        "source_code": "not published",
    },
}  # fmt: skip


OUTPUT = f"task4/{NAME}_1/{NAME}_1_run1.output"
META_FILE = f"task4/{NAME}_1/{NAME}_1.meta.yaml"
DEVTEST_ALONE = ["--split", "devtest"]


def write_unsure_run(folder, seed=0, **about):
    """A run that takes some sounds for others, for a second or for a frame."""
    write_run(folder, seed=seed, **about)
    rng = np.random.default_rng(seed)
    for path in sorted((folder / "predictions").glob("*.hdf5")):
        file = PredictionFile(path)
        slow = np.repeat(rng.normal(0, 4, (len(file), 12, len(CLASSES))), 13, axis=1)
        logits = file.logits() + slow + rng.normal(0, 0.3, file.logits().shape)
        write_predictions(path, file.filenames, [logits.astype(np.float32)], file.about)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own_root(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture
def run(tmp_path):
    return write_unsure_run(tmp_path / "run")


@pytest.fixture(scope="module")
def built(root, tmp_path_factory):
    """A package, its systems and what was said."""
    folder = tmp_path_factory.mktemp("built")
    run = write_unsure_run(folder / "run", seed=6)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        archive = build(root, folder / "out", run)
    return archive, systems_of(root, run), said.getvalue()


def build(root, out, *runs, more=(), name=NAME):
    words = ["--run", *runs, "--data", root, "--out", out, "--name", name, *more]
    submit.main([str(word) for word in words])
    return out / f"{name}.zip"


def systems_of(root, *runs, sets=("devtest", "maestro_real_dev")):
    return submit.read_systems([submit_check.Run.load(run, root, sets) for run in runs], NAME)


def meta_of(archive, number=1):
    with zipfile.ZipFile(archive) as file:
        system = f"{archive.stem}_{number}"
        return yaml.safe_load(file.read(f"task4/{system}/{system}.meta.yaml"))


def rewritten(archive, change):
    """Write the zip anew, its files (name → text) changed."""
    with zipfile.ZipFile(archive) as file:
        files = {name: file.read(name).decode() for name in file.namelist()}
    change(files)
    with zipfile.ZipFile(archive, "w") as file:
        for name, text in files.items():
            file.writestr(name, text)


# ---- what is in the package ----


def test_package_holds_all_classes_of_all_clips_behind_both_ways(built, tmp_path):
    archive, systems, said = built
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
        file.extractall(tmp_path)
    outputs = (f"{NAME}_1_run1.output", f"{NAME}_1_run1_unprocessed.output")
    expected = {f"task4/{NAME}_1/{output}/{clip}.tsv" for output in outputs for clip in [*DEVTEST, *MAESTRO]}
    assert names == expected | {META_FILE}
    tables = read_score_folder(tmp_path / f"task4/{NAME}_1/{outputs[1]}")
    assert list(tables["a"].columns) == ["onset", "offset", *CLASSES] and len(tables["a"]) == 156
    predicted = PredictionFile(systems[0].runs[0].path / "predictions/devtest.hdf5").targets(["c"])[0]
    assert np.array_equal(tables["c"].to_numpy()[:, 2:].astype(np.float32), predicted)  # 9 digits keep a float32
    filtered = read_score_folder(tmp_path / f"task4/{NAME}_1/{outputs[0]}")
    assert filtered["c"]["Cat"].diff().abs().sum() < tables["c"]["Cat"].diff().abs().sum()
    assert "median filter, one window per class" in said and f"all checks passed: {archive}" in said
    assert "the challenge wants eval24" in said and "no technical report" in said and "has 1 run:" in said


def test_nothing_is_written_outside_the_folder_given(root, run, tmp_path, built):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    build(root, tmp_path / "out", run, more=DEVTEST_ALONE)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    for out in (tmp_path / "out", built[0].parent):
        assert sorted(path.name for path in out.iterdir()) == [NAME, f"{NAME}.zip", "meta.yaml"]


def test_package_scores_what_records_say(root, built, tmp_path):
    archive, systems, _ = built
    run = systems[0].runs[0].path
    words = ["score", "--run", run, "--data", root, "--results", tmp_path, "--bootstrap", 0]
    evaluate_main([str(word) for word in words])
    records = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    recorded = {record["split"]: record["metrics"] for record in records}
    scored = {(own.name, own.post): own for own in check_package(archive, systems)}
    assert len(scored) == 4
    for name, metric in (("devtest", "psds1"), ("maestro_real_dev", "mpauc")):
        found = {"median": recorded[name][metric], "raw": recorded[name]["raw"][metric]}
        assert 0 < found["raw"] < 1 and 0 < found["median"] < 1 and found["raw"] != found["median"]
        for post, value in found.items():
            assert scored[name, post].packed == pytest.approx(value, abs=1e-6)
            assert scored[name, post].predicted == pytest.approx(value, abs=1e-12)
    results = meta_of(archive)["results"]["devtest"]
    assert results["desed"]["PSDS1"] == pytest.approx(recorded["devtest"]["psds1"])
    assert results["maestro"]["mPAUC"] == pytest.approx(recorded["maestro_real_dev"]["mpauc"])


def test_boxes_beside_the_predictions_are_the_post_processing(root, run, tmp_path, capsys):
    scoring.tune_boxes(root, run, oracle=True)
    assert systems_of(root, run)[0].post == "median"  # an oracle is never used
    scoring.tune_boxes(root, run)
    archive = build(root, tmp_path / "out", run)
    assert "cSEBBs tuned on synth_val" in capsys.readouterr().out
    split = scoring.Split.load(root, "devtest", run)
    boxes = scoring.read_boxes(run)
    scored = {(own.name, own.post): own for own in check_package(archive, systems_of(root, run))}
    expected = submit_check.psds(split.processed(boxes)["csebbs"], submit_check.PSDS1).value
    assert scored["devtest", "csebbs"].packed == pytest.approx(expected, abs=1e-6)
    maestro = scored["maestro_real_dev", "csebbs"]  # means of seconds: mpAUC is that of the frames
    assert maestro.packed == pytest.approx(scored["maestro_real_dev", "raw"].packed, abs=1e-6)
    assert "cSEBBs" in meta_of(archive)["system"]["description"]["decision_making"]


def test_runs_of_a_recipe_are_a_system_and_results_their_mean(root, tmp_path, capsys):
    runs = [write_unsure_run(tmp_path / f"a{seed}", seed=seed) for seed in (0, 1, 6, 3)]
    other = write_run(tmp_path / "b", recipe="little/two")
    archive = build(root, tmp_path / "out", *runs, other, more=DEVTEST_ALONE)
    with zipfile.ZipFile(archive) as file:
        folders = {name.split("/")[2] for name in file.namelist() if name.endswith(".tsv")}
    expected = {f"{NAME}_1_run{k}{end}.output" for k in (1, 2, 3) for end in ("", "_unprocessed")}
    assert folders == expected | {f"{NAME}_2_run1.output", f"{NAME}_2_run1_unprocessed.output"}
    desed = meta_of(archive)["results"]["devtest"]["desed"]
    assert len(set(desed["PSDS1_runs"])) == 3 and desed["PSDS1"] == pytest.approx(np.mean(desed["PSDS1_runs"]))
    assert meta_of(archive, 2)["results"]["devtest"]["desed"]["PSDS1"] == pytest.approx(1)
    said = capsys.readouterr().out
    assert f"{NAME}_1 has 4 runs: the first 3 are packed" in said and f"{NAME}_2 has 1 run:" in said


def test_evaluation_set_without_labels_is_packed_where_it_was_predicted(own_root, run, tmp_path, capsys):
    clips = {f"eval_{k}": [] for k in range(3)}
    durations = [(f"{clip}.wav", 10) for clip in clips]
    write_table(own_root / "eval/eval24/eval24_durations.tsv", "filename duration", durations)
    about = {"recipe": "little/one", "seed": 0}
    write_predictions(run / "predictions/eval24.hdf5", list(clips), [logits_of(clips)], about)
    archive = build(own_root, tmp_path / "out", run)
    with zipfile.ZipFile(archive) as file:
        assert sum(name.endswith(".tsv") for name in file.namelist()) == 2 * len(clips)
    assert check_package(archive, systems_of(own_root, run, sets=["eval24"])) == []
    assert 0 < meta_of(archive)["results"]["devtest"]["desed"]["PSDS1"] < 1
    said = capsys.readouterr().out
    assert "the package holds 3 clips; the challenge's eval24 has 2200" in said
    assert "the challenge wants eval24" not in said


def test_equal_runs_give_equal_bytes(root, run, tmp_path):
    archives = [build(root, tmp_path / out, run, more=DEVTEST_ALONE) for out in ("one", "two")]
    assert archives[0].read_bytes() == archives[1].read_bytes()
    build(root, tmp_path / "one", run, more=["--check-only", *DEVTEST_ALONE])


# ---- tampering ----


def changed_score(files, clip="e", label="Blender", by=1e-4, end="_unprocessed"):
    """Change one score, of a clip without events in a class that no clip has."""
    name = f"task4/{NAME}_1/{NAME}_1_run1{end}.output/{clip}.tsv"
    lines = files[name].splitlines()
    cells, column = lines[50].split("\t"), lines[0].split("\t").index(label)
    cells[column] = str(float(cells[column]) + by)
    files[name] = "\n".join([*lines[:50], "\t".join(cells), *lines[51:]]) + "\n"


def without_class(files):
    for name in [name for name in files if name.endswith("output/b.tsv")]:
        rows = [line.split("\t") for line in files[name].splitlines()]
        place = rows[0].index("car")
        files[name] = "".join("\t".join(row[:place] + row[place + 1 :]) + "\n" for row in rows)


def shorter(files):
    name = f"task4/{NAME}_1/{NAME}_1_run1.output/d.tsv"
    files[name] = "\n".join(files[name].splitlines()[:100]) + "\n"


@pytest.mark.parametrize(
    "change, message",
    [
        (changed_score, r"e\.tsv: the score of 'Blender' at 3.\d+ s is 0.0001 off the predictions"),
        (lambda files: changed_score(files, "c", "Cat", 2.0, ""), r"c\.tsv: scores from .* within 0…1"),
        (lambda files: changed_score(files, by=np.nan), "e.tsv: a value of frame 49 is missing or not finite"),
        (lambda files: files.pop(f"{OUTPUT}/b.tsv"), "1 of 11 score files are missing: b;"),
        (lambda files: files.update({f"{OUTPUT}/x.tsv": files[f"{OUTPUT}/b.tsv"]}), "1 score files too many: x;"),
        (lambda files: files.update({f"{OUTPUT}/notes.txt": "x"}), "1 score files too many: notes.txt"),
        (without_class, "b.tsv: no column 'car'"),
        (shorter, r"d.tsv: scores from 0 to 6.\d+ s for a clip of 10 s"),
        (lambda files: files.pop(META_FILE), "meta.yaml is missing"),
        (lambda files: files.update({META_FILE: files[META_FILE].replace(f"{NAME}_1", "Other_INST_task4_1")}),
         "its label is 'Other_INST_task4_1'"),
        (lambda files: files.update({META_FILE: files[META_FILE].replace("parameters: 10", "parameters: x")}),
         "system.complexity.total_parameters is 'x'"),
        (lambda files: files.update({f"task4/{NAME}_9/x.tsv": ""}), f"1 systems too many: {NAME}_9"),
    ],
)  # fmt: skip
def test_tampering_with_the_zip_is_found(built, tmp_path, change, message):
    archive = shutil.copy(built[0], tmp_path / "package.zip")
    rewritten(archive, change)
    with pytest.raises(SubmissionError, match=message) as raised:
        check_package(archive, built[1])
    assert str(tmp_path) not in str(raised.value)
    assert list(tmp_path.iterdir()) == [archive]


def test_scores_of_other_predictions_and_broken_zips_are_found(root, run, tmp_path):
    check = [*DEVTEST_ALONE, "--check-only"]
    archive = build(root, tmp_path / "out", run, more=DEVTEST_ALONE)
    write_unsure_run(run, seed=5)
    with pytest.raises(SystemExit, match="off the predictions"):
        build(root, tmp_path / "out", run, more=check)
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(SystemExit, match="cannot be unpacked"):
        build(root, tmp_path / "out", run, more=check)
    archive.unlink()
    with pytest.raises(SystemExit, match="no package to check"):
        build(root, tmp_path / "out", run, more=check)


def test_a_score_that_differs_from_the_predictions_is_found(root, built, monkeypatch):
    archive, systems, _ = built
    monkeypatch.setattr(submit_check.Run, "predicted", lambda *_: 0.123)
    with pytest.raises(SubmissionError, match=r"PSDS1 of devtest is 0\.\d+ from the package and 0\.1230000 from"):
        check_package(archive, systems)


def test_a_package_that_fails_its_check_leaves_no_zip(root, run, tmp_path, monkeypatch):
    build(root, tmp_path / "out", run, more=DEVTEST_ALONE)

    def wrong(*_):
        raise SubmissionError("something is wrong")

    monkeypatch.setattr(submit, "check_package", wrong)
    with pytest.raises(SystemExit, match="something is wrong"):
        build(root, tmp_path / "out", run, more=DEVTEST_ALONE)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [NAME, "meta.yaml"]


# ---- meta files ----


def test_empty_fields_are_listed_until_they_are_filled_in(root, run, tmp_path, capsys):
    build(root, tmp_path / "out", run)
    said = capsys.readouterr().out
    assert "still empty: submission.abbreviation, submission.authors[0].lastname" in said
    assert "system.source_code" in said and "system.energy.training_kwh" in said
    meta = tmp_path / "out/meta.yaml"
    assert "authors:" in meta.read_text() and meta_of(tmp_path / f"out/{NAME}.zip")["submission"]["authors"]
    meta.write_text(yaml.safe_dump(FILLED))
    archive = build(root, tmp_path / "out", run)
    said = capsys.readouterr().out
    assert "still empty" not in said and "mend it" not in said
    content = meta_of(archive)
    assert content["submission"] == {"label": f"{NAME}_1", "name": "little/one", **FILLED["submission"]}
    assert content["system"]["complexity"] == {"total_parameters": 10, "MACS": 1000}
    assert content["system"]["description"]["input_sampling_rate"] == 16


def test_names_and_authors_that_the_challenge_refuses_are_said(root, tmp_path, capsys):
    run = write_run(tmp_path / "run", recipe="dcase2024/baseline")
    second = {"submission": {"abbreviation": "eleven_characters", "authors": [AUTHOR, AUTHOR]}}
    (tmp_path / "meta.yaml").write_text(yaml.safe_dump(FILLED | second))
    build(root, tmp_path / "out", run, more=["--meta", tmp_path / "meta.yaml", *DEVTEST_ALONE])
    said = capsys.readouterr().out
    assert "submission.name says 'baseline'" in said and "more than 10 characters" in said
    assert "2 authors are corresponding" in said and not (tmp_path / "out/meta.yaml").exists()


def test_meta_file_of_another_kind_is_refused(root, run, tmp_path):
    meta = tmp_path / "meta.yaml"
    with pytest.raises(SystemExit, match="no such config"):
        build(root, tmp_path / "out", run, more=["--meta", meta])
    for text, message in (("submission: me", "submission must hold fields"),
                          ("system: {description: none}", "has no field system.description.input_sampling_rate"),
                          ("submission: {authors: me}", "submission.authors is 'me'")):  # fmt: skip
        meta.write_text(text)
        with pytest.raises(SystemExit, match=message):
            build(root, tmp_path / "out", run, more=["--meta", meta, *DEVTEST_ALONE])


def write_log(run, recipe, seed, kwh):
    config = {"network": f"net({recipe[-3:]!r})", "augment": {"mixup_p": 0.5, "filter_p": 0.0, "time_mask": True}}
    energy = {"energy_kwh": kwh, "duration_s": 60.0, "cpu_kwh": kwh / 2, "country": "AUT", "codecarbon": "3.0"}
    run.mkdir(parents=True, exist_ok=True)
    log = {"recipe": recipe, "seed": seed, "config": config, "energy": energy}
    (run / "train.json").write_text(json.dumps(log))


def test_energy_is_that_of_training_and_prediction(root, run, tmp_path):
    write_run(run, weights={"given": False, "sha256": None})
    write_log(run, "little/one", 0, 2.0)
    (run / "predictions/energy.json").write_text('{"energy_kwh": 0.25, "sets": ["devtest", "synth_val"]}')
    archive = build(root, tmp_path / "out", run, more=DEVTEST_ALONE)
    system = meta_of(archive)["system"]
    assert system["energy"]["training_kwh"] == 2.0 and system["energy"]["test_kwh"] == 0.25
    assert system["energy"]["test_sets"] == "devtest, synth_val"
    assert system["description"]["data_augmentation"] == "mixup, time masking"
    assert system["description"]["machine_learning_method"] == "net('one')"
    with zipfile.ZipFile(archive) as file:
        table = pd.read_csv(file.open(f"task4/{NAME}_1/emissions_training.csv"))
    assert table.energy_consumed.tolist() == [2.0] and table.cpu_energy.tolist() == [1.0]


def test_an_ensemble_took_the_energy_of_all_trainings_named(root, tmp_path):
    members = [{"recipe": "little/two", "seed": seed} for seed in (0, 1)]
    whole = write_run(tmp_path / "ensemble", recipe="little/ensemble", members=members)
    trained = [tmp_path / f"t{k}" for k in range(3)]
    for k, folder in enumerate(trained):
        write_log(folder, "little/two" if k < 2 else "little/first_stage", k, 1.0 + k)
        (folder / "predictions").mkdir()
        (folder / "predictions/energy.json").write_text(json.dumps({"energy_kwh": 0.1, "sets": ["devtest"]}))
    more = [*DEVTEST_ALONE, "--trained", *trained]
    system = meta_of(build(root, tmp_path / "out", whole, more=more))["system"]
    assert system["energy"]["training_kwh"] == 6.0 and system["energy"]["test_kwh"] == pytest.approx(0.2)
    assert system["description"]["ensemble_method_subsystem_count"] == 2
    system = meta_of(build(root, tmp_path / "out", whole, more=DEVTEST_ALONE))["system"]
    assert system["energy"]["training_kwh"] is None and system["energy"]["test_kwh"] is None


def test_report_goes_beside_the_systems(root, run, tmp_path):
    report = tmp_path / "paper.pdf"
    report.write_bytes(b"%PDF-1.7 and more")
    archive = build(root, tmp_path / "out", run, more=["--report", report, *DEVTEST_ALONE])
    with zipfile.ZipFile(archive) as file:
        assert file.read(f"task4/{NAME}.technical_report.pdf") == report.read_bytes()
    report.write_text("text")
    with pytest.raises(SystemExit, match="is no PDF"):
        build(root, tmp_path / "out", run, more=["--report", report])


# ---- what cannot be submitted ----


def write_fewer(folder, clips):
    write_predictions(folder / "predictions/devtest.hdf5", list(clips), [logits_of(clips)], {"smoke": True})
    return folder


def test_clips_that_were_not_predicted_are_named(root, run, tmp_path, capsys):
    fewer = {clip: events for clip, events in DEVTEST.items() if clip != "e"}
    write_predictions(run / "predictions/devtest.hdf5", list(fewer), [logits_of(fewer)], {"recipe": "x"})
    with pytest.raises(SystemExit, match="devtest.hdf5: 1 of 5 clips have no predictions: e; predict again"):
        build(root, tmp_path / "out", run)
    build(root, tmp_path / "smoke", write_fewer(tmp_path / "few", fewer), more=DEVTEST_ALONE)
    assert "was trained by a smoke run" in capsys.readouterr().out
    more = DEVTEST | {"z": []}
    write_predictions(run / "predictions/devtest.hdf5", list(more), [logits_of(more)], {"recipe": "x"})
    with pytest.raises(SystemExit, match="1 clips are not of this set: z"):
        build(root, tmp_path / "out", run)
    part = logits_of(DEVTEST)[:, :, :3]
    write_predictions(run / "predictions/devtest.hdf5", list(DEVTEST), [part], {"classes": list(CLASSES[:3])})
    with pytest.raises(SystemExit, match="no scores for Dishes, .* all 27 classes"):
        build(root, tmp_path / "out", run)
    assert not (tmp_path / "out").exists()


def test_clips_that_are_longer_than_the_scores_are_refused(own_root, run, tmp_path):
    rows = [(f"{clip}.wav", 12.5 if clip == "d" else 10.0) for clip in DEVTEST]
    write_table(own_root / "metadata/validation/validation_durations.tsv", "filename duration", rows)
    with pytest.raises(SystemExit, match="d.tsv: scores from 0 to 9.984 s for a clip of 12.5 s"):
        build(own_root, tmp_path / "out", run)
    assert not (tmp_path / f"out/{NAME}.zip").exists()


def test_runs_that_do_not_belong_together_are_refused(root, run, tmp_path):
    second = write_run(tmp_path / "second", noise=1.0, seed=0)
    with pytest.raises(SystemExit, match="two of its runs have the same seed .0, 0."):
        build(root, tmp_path / "out", run, second)
    second = write_run(tmp_path / "second", noise=1.0, seed=1)
    scoring.tune_boxes(root, second)
    with pytest.raises(SystemExit, match="post-processed in different ways"):
        build(root, tmp_path / "out", run, second)
    with pytest.raises(SystemExit, match="given twice"):
        build(root, tmp_path / "out", run, run)
    five = [write_run(tmp_path / f"r{k}", recipe=f"little/{k}") for k in range(5)]
    with pytest.raises(SystemExit, match="5 recipes are given, the challenge takes 4 systems"):
        build(root, tmp_path / "out", *five)
    with pytest.raises(SystemExit, match="--trained belongs to one system, here are 2"):
        build(root, tmp_path / "out", *five[:2], more=["--trained", run])


@pytest.mark.parametrize("name", ["Muster_task4", "My Team_I_task4", "A_B_C_task4", "Muster_I_task1", "../x_I_task4"])
def test_names_that_the_challenge_would_not_read_are_refused(root, run, tmp_path, name):
    with pytest.raises(SystemExit, match="expected Team_INST_task4"):
        build(root, tmp_path / "out", run, name=name)


def test_nothing_to_submit_is_one_sentence(root, run, tmp_path):
    with pytest.raises(SystemExit, match="holds no predictions"):
        build(root, tmp_path / "out", tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="no predictions of eval_public .there are devtest"):
        build(root, tmp_path / "out", run, more=["--split", "eval_public"])
    with pytest.raises(SystemExit, match="there is no data set 'devtset', did you mean 'devtest'"):
        build(root, tmp_path / "out", run, more=["--split", "devtset"])


def test_a_folder_of_something_else_is_not_deleted(root, run, tmp_path):
    thesis = tmp_path / "out" / NAME / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    with pytest.raises(SystemExit, match="exists and is no package"):
        build(root, tmp_path / "out", run)
    assert thesis.is_file()
