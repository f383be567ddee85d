"""Any folder of frame scores is scored from the command line: table, JSON, one sentence where it cannot be."""

import json
import subprocess
import sys

import numpy as np
import pytest

from common.metrics.sed_scores import FrameScores, write_score_folder
from task4_sed import evaluate
from task4_sed.labels import sound_classes
from tests.task4_sed.conftest import write_table

CLIPS = [f"clip{n}" for n in range(4)]


@pytest.fixture
def files(tmp_path):
    """Scores of two classes in four clips, their ground truth and durations."""
    rng = np.random.default_rng(0)
    values = 0.4 * rng.random((4, 10, 2))
    values[:, 2:5, 0] += 1  # Dog is found, from 2 to 5 s
    write_score_folder(tmp_path / "scores", FrameScores(CLIPS, ["Dog", "Cat"], np.arange(11), values))
    rows = [f"{clip}.wav\t2.0\t5.0\tDog\n{clip}.wav\t6.0\t8.0\tCat\n" for clip in CLIPS]
    (tmp_path / "gt.tsv").write_text("filename\tonset\toffset\tevent_label\n" + "".join(rows))
    (tmp_path / "durations.tsv").write_text("filename\tduration\n" + "".join(f"{clip}.wav\t10.0\n" for clip in CLIPS))
    return tmp_path


def run(folder, *more):
    paths = ["--ground-truth", str(folder / "gt.tsv"), "--durations", str(folder / "durations.tsv")]
    evaluate.main(["folder", str(folder / "scores"), *paths, *more])


def test_table_and_json(files, capsys):
    run(files, "--out", str(files / "out.json"), "--bootstrap", "30")
    shown = capsys.readouterr().out
    assert shown.startswith("4 of 4 clips, 8 events of 2 classes, 0.01 h: complete")
    result = json.loads((files / "out.json").read_text())
    assert set(evaluate.DEFAULT_METRICS) <= set(result["metrics"]) and result["status"] == "complete"
    assert result["metrics"]["psds1_class"]["Dog"] == 1 and result["metrics"]["collar_f1_class"]["Dog"] == 1
    for name in evaluate.DEFAULT_METRICS:
        low, high = result["intervals"][name]
        assert 0 <= low <= high <= 1 and f"{result['metrics'][name]:.4f}  [{low:.4f}, {high:.4f}]" in shown
    assert result["intervals"]["n_groups"] == 4 and result["intervals"]["resampled"] == "clip"
    assert result["scores"] == "scores" and result["git"] and result["versions"]["numpy"]
    class_rows = [line.split()[0] for line in shown.splitlines() if line.startswith(("Cat", "Dog"))]
    assert class_rows == ["Cat", "Dog"]
    header = next(line for line in shown.splitlines() if line.startswith("class "))
    assert header.split() == ["class", "psds1", "psds2", "intersection_f1", "collar_f1"]  # psds1_macro: same classes


def test_chosen_metrics_and_classes_without_intervals(files, capsys):
    chosen = ["segment_f1", "segment_best_f1", "segment_auroc", "mpauc"]
    run(files, "--metrics", *chosen, "--classes", "Dog", "--bootstrap", "0", "--out", str(files / "o.json"))
    shown, result = capsys.readouterr().out, json.loads((files / "o.json").read_text())
    assert "4 events of classes that are not scored are left out: Cat." in shown and "interval" not in shown
    assert result["intervals"] is None and result["classes"] == ["Dog"]
    assert all(result["metrics"][name] == pytest.approx(1) for name in chosen)
    with pytest.raises(SystemExit, match="psds_eval cannot score 1"):
        run(files, "--metrics", "psds1_psds_eval", "--classes", "Dog")


def test_one_class_alone_has_every_score(files, capsys):
    """One class has no cross triggers and no spread; the metrics that psds_eval cannot give are not asked for."""
    chosen = [name for name in evaluate.METRICS if name != "psds1_psds_eval"]
    run(files, "--classes", "Dog", "--metrics", *chosen, "--bootstrap", "20", "--out", str(files / "o.json"))
    found = json.loads((files / "o.json").read_text())["metrics"]
    assert [found[name] for name in chosen] == pytest.approx([1] * len(chosen))
    for clip in CLIPS:  # files of one column say the same
        path = files / f"scores/{clip}.tsv"
        rows = (line.split("\t")[:3] for line in path.read_text().splitlines())
        path.write_text("\n".join(map("\t".join, rows)) + "\n")
    rows = [f"{clip}.wav\t2.0\t5.0\tDog\n" for clip in CLIPS]
    (files / "gt.tsv").write_text("filename\tonset\toffset\tevent_label\n" + "".join(rows))
    run(files, "--metrics", *chosen, "--bootstrap", "20", "--out", str(files / "p.json"))
    assert json.loads((files / "p.json").read_text())["metrics"] == found


def test_a_file_with_a_further_class_can_be_used(files, capsys):
    def add_column(clip, name):
        path = files / f"scores/{clip}.tsv"
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([f"{head}\t{name}", *(f"{row}\t0.5" for row in rows)]) + "\n")

    add_column("clip2", "Bird")
    run(files, "--classes", "Dog", "Cat", "--metrics", "psds1", "--bootstrap", "0")
    run(files, "--metrics", "psds1", "--bootstrap", "0", "--out", str(files / "o.json"))
    sentence = "1 classes are not in all files of scores, and are left out: Bird (only in clip2.tsv)."
    assert sentence in capsys.readouterr().out
    assert json.loads((files / "o.json").read_text())["status"] == "complete"  # no event asks for it
    with pytest.raises(SystemExit, match=r"clip0.tsv: no column 'Bird'; columns are .* \(2 more of 4 files"):
        run(files, "--classes", "Bird")


def test_a_file_that_lacks_a_class_is_the_one_that_is_named(files):
    path = files / "scores/clip3.tsv"
    path.write_text(path.read_text().replace("Cat", "Cats"))
    with pytest.raises(SystemExit, match="clip3.tsv: no column 'Cat'; the nearest is 'Cats'"):
        run(files)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--classes", "Dog", "Cat", "Dog"], "the class 'Dog' stands twice"),
        (["--threshold", "nan"], "threshold nan must be a finite number"),
        (["--threshold", "inf"], "threshold inf must be a finite number"),
        (["--bootstrap", "3"], "3 resamples give no interval: take at least 10, or 0 for none"),
        (["--bootstrap", "-1"], "-1 resamples give no interval"),
    ],
)
def test_words_that_ask_for_nothing(files, words, sentence):
    with pytest.raises(SystemExit, match=sentence):
        run(files, *words)


def test_clips_with_a_part_of_their_frames_are_partial_data(files, capsys):
    path = files / "scores/clip1.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:7]) + "\n")
    run(files, "--metrics", "psds1", "--bootstrap", "0", "--out", str(files / "o.json"))
    assert "more than 0.5 s of 1 clips are without scores: clip1." in capsys.readouterr().out
    result = json.loads((files / "o.json").read_text())
    assert result["status"] == "partial data" and result["counts"]["clips_short"] == 1


def test_scores_that_are_no_probabilities_are_said_where_a_threshold_counts(files, capsys):
    run(files, "--metrics", "psds1", "segment_best_f1", "--bootstrap", "0")
    assert "probabilities" not in capsys.readouterr().out
    run(files, "--metrics", "collar_f1", "--bootstrap", "0")  # the fixture has scores up to 1.4
    assert "scores lie within 0.00" in (shown := capsys.readouterr().out) and "and are no probabilities" in shown


def test_resamples_without_events_are_left_out_and_said(files, capsys):
    rows = "clip0.wav\t2.0\t5.0\tDog\n" + "".join(f"{clip}.wav\t\t\t\n" for clip in CLIPS[1:])
    (files / "gt.tsv").write_text("filename\tonset\toffset\tevent_label\n" + rows)
    chosen = [name for name in evaluate.METRICS if name != "psds1_psds_eval"]
    words = ["--keep-empty-clips", "--metrics", *chosen, "--bootstrap", "100", "--out", str(files / "o.json")]
    run(files, *words)
    result = json.loads((files / "o.json").read_text())
    note = next(note for note in result["notes"] if "resamples" in note)
    n_without = int(note.split()[0])
    assert 15 < n_without < 50  # (3/4)⁴ = 32 of 100 draw the clip not once
    assert note == f"{n_without} of 100 resamples hold no event to score; intervals are those of the others."
    assert all(np.isfinite(result["intervals"][name]).all() for name in chosen if name in result["intervals"])
    assert "nan" not in (files / "o.json").read_text().lower()


def test_missing_clips_make_the_result_partial(files, capsys):
    (files / "scores/clip1.tsv").unlink()
    run(files, "--metrics", "psds1", "--bootstrap", "0", "--out", str(files / "o.json"))
    assert "1 of 4 clips have no scores, and are left out: clip1." in capsys.readouterr().out
    result = json.loads((files / "o.json").read_text())
    assert result["status"] == "partial data" and result["counts"]["clips_missing"] == 1


def test_maestro_folder(tmp_path, capsys):
    classes = list(sound_classes().names)
    crops = ["a-000000-001000", "a-000500-001500", "b-000000-001000"]
    values = np.random.default_rng(0).random((3, 156, len(classes)))
    write_score_folder(tmp_path / "scores", FrameScores(crops, classes, 0.064 * np.arange(157), values))
    evaluated = sound_classes().where(sound_classes().maestro_evaluated)
    rows = [f"{crop}.wav\t{k}.0\t{k + 1}.0\t{name}\t0.9\n" for k, name in enumerate(evaluated[:9]) for crop in crops]
    rows += [f"{crop}.wav\t1.0\t2.0\tannouncement\t0.9\n{crop}.wav\t1.0\t2.0\t{evaluated[9]}\t0.5\n" for crop in crops]
    (tmp_path / "gt.tsv").write_text("filename\tonset\toffset\tevent_label\tconfidence\n" + "".join(rows))
    (tmp_path / "durations.tsv").write_text("filename\tduration\na.wav\t15.0\nb.wav\t10.0\n")
    run(tmp_path, "--maestro", "--out", str(tmp_path / "o.json"), "--bootstrap", "20")
    shown, result = capsys.readouterr().out, json.loads((tmp_path / "o.json").read_text())
    assert result["classes"] == evaluated[:9] and result["intervals"]["resampled"] == "recording"
    assert result["status"] == "partial data" and "2 classes have no event in the scored clips" in shown
    assert 0 <= result["metrics"]["mpauc"] <= 1 and result["counts"]["crops_scored"] == 3
    assert list(result["metrics"])[0] == "mpauc"


MAESTRO_HEAD = "filename\tonset\toffset\tevent_label\tconfidence\n"


@pytest.fixture
def crops(tmp_path):
    """Scores of three crops of two recordings, soft labels of two classes."""
    classes, names = ["car", "footsteps"], ["a-000000-001000", "a-000500-001500", "b-000000-001000"]
    values = np.random.default_rng(0).random((3, 20, 2))
    write_score_folder(tmp_path / "scores", FrameScores(names, classes, np.arange(21) / 2, values))
    rows = [f"{crop}.wav\t{k}.0\t{k + 1}.0\t{name}\t0.9\n" for k, name in enumerate(classes) for crop in names]
    (tmp_path / "gt.tsv").write_text(MAESTRO_HEAD + "".join(rows))
    (tmp_path / "durations.tsv").write_text("filename\tduration\na.wav\t15.0\nb.wav\t10.0\n")
    return tmp_path


def run_maestro(folder, *more, rows=""):
    with open(folder / "gt.tsv", "a") as file:
        file.write(rows)
    out = folder / "o.json"
    run(folder, "--maestro", "--classes", "car", "footsteps", "--bootstrap", "0", "--out", str(out), *more)
    return json.loads(out.read_text())


def test_maestro_says_what_it_leaves_out(crops):
    before = run_maestro(crops)
    assert before["status"] == "complete" and before["notes"] == []
    rows = ["a-000000-001000.wav\t\t5.0\tcar\t0.9", "a-000000-001000.wav\t5.0\t4.0\tcar\t0.9",
            "a-000000-001000.wav\t5.0\t6.0\tcars\t0.9", "a-000000-001000.wav\t5.0\t6.0\tannouncement\t0.9"]  # fmt: skip
    found = run_maestro(crops, rows="\n".join(rows) + "\n")
    assert found["metrics"] == before["metrics"] and found["counts"]["dropped_rows"] == 2
    assert found["notes"] == [
        "1 rows have labels that are no class of the task, and are left out: 'cars' (nearest: 'car').",
        "2 rows left out (first: row 7 (a-000000-001000.wav, car)): offset not after onset, or a value is missing.",
        "2 events of classes that are not scored are left out: announcement, cars.",
    ]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a-000000-001000.wav\tsoon\t5.0\tcar\t0.9", r"gt.tsv: row 7 \(a-000000-001000.wav, car\): onset 'soon'"),
        ("a-000000-001000.wav\t1.0\t5.0\tcar\thigh", r"gt.tsv: row 7 \(.*\): confidence 'high' is not within 0…1"),
        ("a-000000-001000.wav\t1.0\t5.0\tcar\t1.5", r"gt.tsv: row 7 \(.*\): confidence '1.5' is not within 0…1"),
    ],
)
def test_maestro_names_the_row_that_cannot_be_read(crops, row, sentence):
    with pytest.raises(SystemExit, match=sentence):
        run_maestro(crops, rows=row + "\n")


def test_maestro_without_a_sure_label(crops):
    path = crops / "gt.tsv"
    path.write_text(path.read_text().replace("0.9", "0.5"))
    with pytest.raises(SystemExit, match="none of the 6 labels of the classes to score has a confidence above 0.5"):
        run_maestro(crops)
    path.write_text(path.read_text().replace("car", "cars").replace("footsteps", "steps"))
    with pytest.raises(SystemExit, match="none of the 6 labels is of a class to score: car, footsteps"):
        run_maestro(crops)


def test_maestro_events_past_the_end_of_their_crop(crops):
    rows = "a-000000-001000.wav\t9.0\t12.5\tcar\t0.9\na-000000-001000.wav\t10.0\t11.0\tfootsteps\t0.9\n"
    found = run_maestro(crops, rows=rows)
    assert found["notes"] == [
        "2 events go past the end of their crop (by up to 2.5 s; first: a-000000-001000), and are cut there; 1 of them "
        "begin after it, and are left out."
    ]


def test_a_crop_of_an_unknown_recording_is_left_out(crops):
    before = run_maestro(crops)
    (crops / "scores/z-000000-001000.tsv").write_text((crops / "scores/b-000000-001000.tsv").read_text())
    found = run_maestro(crops)
    assert found["metrics"] == before["metrics"] and found["counts"]["crops_scored"] == 3
    assert found["notes"] == ["1 scored crops are of recordings without labels and durations, and left out: "
                              "z-000000-001000."]  # fmt: skip
    rows = "z-000000-001000.wav\t0.0\t1.0\tcar\t0.9\n"
    with pytest.raises(SystemExit, match="1 recordings have no duration: z; add them"):
        run_maestro(crops, rows=rows)


def test_a_crop_with_a_part_of_its_frames_is_partial_data(crops):
    path = crops / "scores/b-000000-001000.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")  # up to 9.5 s: as good as all
    assert run_maestro(crops)["status"] == "complete"
    path.write_text(path.read_text().replace("\t9.5\t", "\t9.3\t"))
    found = run_maestro(crops)
    assert found["status"] == "partial data" and found["counts"]["crops_short"] == 1
    assert found["notes"] == ["more than 0.5 s of 1 crops are without scores: b-000000-001000."]


# ---------------------------------------------------------------- AudioSet Strong

MIDS = [("/m/1", "Speech"), ("/m/2", "Dog"), ("/m/3", "Chirp, tweet"), ("/m/4", "Silence")]
SEGMENTS = ["e1_0", "-e_2_30000", "e3_10000"]


@pytest.fixture
def audioset(tmp_path):
    """Tables in the form of the release; Chirp and Dog are in both parts, Silence is in the evaluation part alone."""
    root, head = tmp_path / "audioset", "segment_id start_time_seconds end_time_seconds label"
    write_table(root / "mid_to_display_name.tsv", "", MIDS)
    train = [("t1_0", 0.0, 3.0, mid) for mid in ("/m/1", "/m/2", "/m/3")]
    write_table(root / "audioset_train_strong.tsv", head, train)
    rows = [(name, 2.0, 5.0, mid) for name in SEGMENTS[:2] for mid in ("/m/1", "/m/2")]
    rows += [(SEGMENTS[0], 4.0, 6.0, "/m/2"), (SEGMENTS[0], 7.0, 9.0, "/m/4"), (SEGMENTS[2], 1.0, 2.0, "/m/3")]
    write_table(root / "audioset_eval_strong.tsv", head, rows)
    values = np.zeros((2, 10, 3))
    values[:, 2:5, :2], values[:, 8, 0] = 0.9, 0.8  # a false alarm for Speech
    values[0, 5, 1] = 0.9  # Dog lasts from 2 to 6 s in the first clip
    scores = FrameScores(["Ye1", "-e_2_30000"], ["Speech", "Dog", "Other"], np.arange(11), values)
    write_score_folder(tmp_path / "scores", scores)  # both ways of calling files
    return tmp_path


def run_audioset(folder, *more):
    words = ["--audioset-strong", str(folder / "audioset"), "--out", str(folder / "o.json"), *more]
    evaluate.main(["folder", str(folder / "scores"), *words])
    return json.loads((folder / "o.json").read_text())


def test_audioset_strong_needs_its_tables_alone(audioset, capsys):
    found = run_audioset(audioset)
    assert list(found["metrics"])[0] == "psds1_macro" and found["intervals"] is None
    # Two clips of 10 s: a false alarm is 180 an hour, behind the end of the area. Touching events are one.
    assert found["metrics"]["psds1_macro_class"] == pytest.approx({"Dog": 1, "Speech": 1})
    assert found["classes"] == ["Dog", "Speech"] and found["status"] == "partial data"
    assert found["counts"]["classes_missing"] == 1 and found["counts"]["clips_missing"] == 0
    notes = "\n".join(found["notes"])
    for sentence in (
        "1 of 3 classes have no scores, and are left out: Chirp, tweet.",
        "durations are not given, and taken to be 10 s",
        "train: 3 classes, published 447",
        "2 events of classes that are not scored are left out: Chirp, tweet, Silence.",
    ):
        assert notes.count(sentence) == 1
    assert "psds1_macro" in capsys.readouterr().out


def test_audioset_strong_with_durations_and_other_scores(audioset):
    rows = [("Ye1.mp3", 10.0), ("-e_2_30000.wav", 9.5), ("Ye3.mp3", 10.0)]
    write_table(audioset / "durations.tsv", "filename duration", rows)
    found = run_audioset(audioset, "--durations", str(audioset / "durations.tsv"), "--classes", "Speech")
    assert found["hours"] == pytest.approx(19.5 / 3600) and found["classes"] == ["Speech"]
    assert not any("durations" in note for note in found["notes"])
    with pytest.raises(SystemExit, match="the ground truth is that of --audioset-strong; leave --ground-truth out"):
        run_audioset(audioset, "--ground-truth", "gt.tsv")
    with pytest.raises(SystemExit, match="two files of scores for the clip e1_0: Ye1 and e1_0"):
        (audioset / "scores/e1_0.tsv").write_text((audioset / "scores/Ye1.tsv").read_text())
        run_audioset(audioset)


def test_ground_truth_and_durations_are_asked_for(files):
    with pytest.raises(SystemExit, match="--ground-truth and --durations are needed, or --audioset-strong"):
        evaluate.main(["folder", str(files / "scores"), "--ground-truth", str(files / "gt.tsv")])
    with pytest.raises(SystemExit, match="--maestro and --audioset-strong"):
        run(files, "--maestro", "--audioset-strong", str(files))


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda f: (f / "gt.tsv").unlink(), "gt.tsv: no such table"),
        (lambda f: (f / "gt.tsv").write_text("filename\tonset\toffset\tevent_label\n"), "has a header but no rows"),
        (lambda f: (f / "scores/clip2.tsv").write_text("onset\toffset\tDog\tCat\n0\t1\t\t0\n"), "clip2.tsv: a value"),
        (lambda f: (f / "durations.tsv").write_text("filename\tduration\nclip0\t10\n"), "3 clips have no duration"),
    ],
)
def test_faults_are_one_sentence(files, break_it, message):
    break_it(files)
    with pytest.raises(SystemExit, match=message) as stop:
        run(files)
    assert "\n" not in str(stop.value)


def test_faults_end_with_status_1_and_no_traceback(files):
    words = ["folder", str(files / "nowhere"), "--ground-truth", str(files / "gt.tsv"), "--durations", "none.tsv"]
    found = subprocess.run([sys.executable, "-m", "task4_sed.evaluate", *words], capture_output=True, text=True)
    assert found.returncode == 1 and len(found.stderr.splitlines()) == 1
    assert found.stderr.startswith("none.tsv: no such table")


def test_unknown_metric_is_refused(files, capsys):
    with pytest.raises(SystemExit):
        run(files, "--metrics", "psds3")
    assert "invalid choice: 'psds3'" in capsys.readouterr().err


def test_published_scores(shared, tmp_path, capsys):
    folder = shared / "data/sed_scores/dcase2023_task4a"
    tables = ["--ground-truth", str(folder / "metadata/ground_truth.tsv")]
    tables += ["--durations", str(folder / "metadata/audio_durations.tsv")]
    evaluate.main(["folder", str(folder / "baseline2_run1_scores"), *tables, "--out", str(tmp_path / "o.json")])
    result = json.loads((tmp_path / "o.json").read_text())
    assert result["metrics"]["psds1"] == pytest.approx(0.2697432829693092, abs=1e-12)
    assert result["status"] == "partial data" and "672 of 692 clips have no scores" in capsys.readouterr().out
