"""Examples: which clips are shown, what stands in the file, whose recordings may go into it."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from common.data.event_plan import EventOptions, plan_clips
from common.data.manifest import DataError
from common.files import write_json
from task4_sed import examples
from task4_sed.csebbs import BoxParameters, write_parameters
from task4_sed.data import load_set
from task4_sed.labels import sound_classes
from task4_sed.predictions import write_predictions
from tests.task4_sed.conftest import write_audio, write_table
from tests.task4_sed.predicted import DEVTEST, logits_of, write_data, write_run

OPTIONS = EventOptions()
PLAN = {clip.filename: clip for clip in plan_clips(OPTIONS)}
WEAK = [name for name, clip in PLAN.items() if clip.subset == "weak"][:20]
UNLABELED = [name for name, clip in PLAN.items() if clip.subset == "unlabeled_train"][:4]
FOLDERS = {"weak_train": "audio/train/weak_16k", "unlabeled_train": "audio/train/unlabel_in_domain_16k"}


def events_of(name):
    return [(e.onset_s, e.offset_s, e.label) for e in PLAN[name].events]


@pytest.fixture
def data(tmp_path):
    """Tables of devtest, weak and unlabelled clips, low noise as audio, and the card of the built-in data."""
    root = write_data(tmp_path / "data")
    card = {"name": "built-in data", "generator": "common.data.soundscapes task4_sed, version 1", **asdict(OPTIONS)}
    write_json(root / "dataset.json", card)
    rows = [(name, ",".join(sorted({e.label for e in PLAN[name].events}))) for name in WEAK]
    write_table(root / "metadata/train/weak.tsv", "filename event_labels", rows)
    write_table(root / "metadata/train/unlabel_in_domain.tsv", "filename", [(name,) for name in UNLABELED])
    for name in DEVTEST:
        write_audio(root / f"audio/validation/validation_16k/{name}.wav", 1.0)
    for folder, names in zip(FOLDERS.values(), (WEAK, UNLABELED), strict=True):
        for name in names:
            write_audio(root / folder / name, 0.5, rate=44100, n_channels=2)
    return root


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "run", noise=0.3)
    boxes = {name: BoxParameters() for name in sound_classes().names}
    write_parameters(folder / "predictions/csebbs.json", boxes, tuned_on=["synth_val"], n_clips=6)
    return folder


@pytest.fixture
def labels(tmp_path):
    for set_name, names in zip(FOLDERS, (WEAK, UNLABELED), strict=True):
        logits = logits_of({name: events_of(name) for name in names})
        about = {"recipe": "little/pseudo_labels", "seed": 0, "members": [{"recipe": "little/one"}]}
        write_predictions(tmp_path / "labels" / f"{set_name}.hdf5", names, [logits], about)
    return tmp_path / "labels"


def command(data, run, *more):
    out = data.parent / "out.json"
    examples.main(["--data", str(data), "--run", str(run), "--out", str(out), *map(str, more)])
    return json.loads(out.read_text(encoding="utf-8"))


def set_name(data, name):
    write_json(data / "dataset.json", {"name": name})


# ---- pieces ----


def test_a_tone_is_brightest_in_its_band_while_it_sounds():
    time_s = np.arange(160000) / 16000
    tone = 0.1 * np.sin(2 * np.pi * 1000 * time_s) * (time_s < 5)
    values = np.array(examples.picture(tone.astype(np.float32)))
    assert values.shape == (64, 156) and values.min() == 0 and values.max() <= examples.RANGE_DB
    mel = lambda hz: 2595 * np.log10(1 + hz / 700)  # noqa: E731
    band = (mel(1000) - mel(60)) / (mel(7800) - mel(60)) * 65 - 1
    assert values[:, 30].argmin() == pytest.approx(band, abs=1)
    assert values[:, :70].min(0).max() < 3 and values[:, 85:].min() > 40


def test_clips_with_several_classes_come_first_then_others_then_silent_ones():
    events = {"b": [(0, 1, "x")], "c": [(0, 1, "x"), (2, 3, "y")], "e": [(0, 1, "x"), (2, 3, "x")]}
    assert examples.first_with_several("abcde", events, 5) == ["c", "b", "e", "a", "d"]
    assert examples.first_with_several("abcde", events, 1) == ["c"]


def test_classes_that_are_there_and_the_surest_others_are_shown():
    values = np.zeros((3, 9))
    values[1] = [0.0, 0.05, 0.5, 0.9, 0.8, 0.7, 0.6, 0.4, 0.3]
    assert examples.shown_classes(["a"], values, list("abcdefghi")) == [0, 2, 3, 4, 5, 6]
    assert examples.shown_classes(["b"], values[:, :3], list("abc")) == [1, 2]


# ---- the file ----


def test_scored_clips_hold_truth_scores_and_boxes(data, run):
    content = command(data, run, "--n-scored", 2)
    assert (content["dataset"], content["recipe"], content["seed"]) == ("built-in data", "little/one", 0)
    first, second = content["scored"]
    assert (first["filename"], second["filename"]) == ("a.wav", "c.wav")  # of two classes each
    assert first["events"] == [[0, 2.5, "Dog"], [4, 9, "Speech"]] and first["classes"] == ["Dog", "Speech"]
    for key in ("raw", "median"):
        dog, speech = np.array(first[key])
        assert dog.shape == (156,) and dog[5:30].min() > 0.9 and dog[60:].max() < 0.1 and speech[70:130].min() > 0.9
    assert first["raw"] != first["median"] and all(round(v, 3) == v for v in first["raw"][0])
    best = max((box for box in first["boxes"] if box[2] == "Dog"), key=lambda box: box[3])
    assert best[:2] == pytest.approx([0, 2.5], abs=0.1) and best[3] > 0.9
    assert "training" not in content


def test_training_clips_show_what_sounds_though_no_table_says_so(data, run, labels):
    content = command(data, run, "--pseudo-labels", labels, "--n-scored", 1)
    weak, unlabeled = content["training"]
    for clip, set_name in zip((weak, unlabeled), FOLDERS, strict=True):
        names = sorted(load_set(data, set_name, exclude_overlap=False).clips.filename)  # of weak, a part is held out
        several = [name for name in names if len({e.label for e in PLAN[name].events}) > 1]
        assert clip["filename"] == several[0]
        assert clip["events"] == [list(event) for event in events_of(several[0])]
        label = clip["events"][0][2]
        row = np.array(clip["probabilities"][clip["classes"].index(label)])
        onset, offset, _ = clip["events"][0]
        assert row[int((onset + offset) / 2 / 0.064)] > 0.9
    assert weak["weak_labels"] == sorted({e[2] for e in weak["events"]}) and unlabeled["weak_labels"] is None
    assert content["pseudo_labels"]["members"] == ["little/one"]


def test_a_clip_is_a_line_and_text_is_json():
    content = {"a": "ä", "scored": [{"x": [0, 0.5]}, {"x": []}], "none": []}
    text = examples.as_text(content)
    assert json.loads(text) == content and '{"x":[0,0.5]},\n{"x":[]}\n' in text


# ---- whose recordings ----


def test_recordings_of_others_go_into_no_file_unasked(data, run, labels):
    set_name(data, "somebody's recordings")
    with pytest.raises(SystemExit, match="somebody's recordings.*--allow-other-data"):
        command(data, run)
    assert not (data.parent / "out.json").exists()
    content = command(data, run, "--pseudo-labels", labels, "--allow-other-data")
    assert content["dataset"] == "somebody's recordings"
    weak, unlabeled = content["training"]
    assert weak["events"] is None and weak["weak_labels"] and unlabeled["events"] is None


def test_a_file_that_would_be_large_is_not_written(data, run, monkeypatch):
    monkeypatch.setattr(examples, "MAX_BYTES", 1000)
    with pytest.raises(SystemExit, match="more than 1,000; lower --n-scored"):
        command(data, run)
    assert not (data.parent / "out.json").exists()


def test_without_predictions_it_says_what_makes_them(data, run, tmp_path, labels):
    (run / "predictions/devtest.hdf5").unlink()
    with pytest.raises(SystemExit, match="no predictions of devtest or eval_public; make them with"):
        command(data, run)
    for name in FOLDERS:
        (labels / f"{name}.hdf5").rename(labels / f"{name}_.hdf5")
    with pytest.raises(DataError, match="leave --pseudo-labels out"):
        examples.training_clips(data, labels)
