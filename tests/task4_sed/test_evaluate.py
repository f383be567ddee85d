"""Any folder of frame scores is scored from the command line: table, JSON, one sentence where it cannot be."""

import json
import subprocess
import sys

import numpy as np
import pytest

from common.metrics.sed_scores import FrameScores, write_score_folder
from task4_sed import evaluate
from task4_sed.labels import sound_classes

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
