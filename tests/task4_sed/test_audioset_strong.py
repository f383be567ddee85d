"""AudioSet-strong: small tables in the form of the release."""

import numpy as np
import pytest

from common.data.manifest import DataError
from task4_sed.audioset_strong import (
    ClassLists,
    audio_names,
    class_lists,
    load_audioset_strong,
    read_display_names,
    read_strong,
    sampling_weights,
)
from task4_sed.clip_audio import open_audio
from task4_sed.labels import AUDIOSET_GRID
from tests.task4_sed.conftest import write_audio, write_table

HEADER = "segment_id start_time_seconds end_time_seconds label"
MIDS = [("/m/09x0r", "Speech"), ("/m/0bt9lr", "Dog"), ("/t/dd00098", "Chirp, tweet"), ("/m/028v0c", "Silence")]
TRAIN = [
    ("abc_m3p_30000", 0.0, 3.0, "/m/0bt9lr"), ("abc_m3p_30000", 2.0, 5.0, "/m/0bt9lr"),
    ("abc_m3p_30000", 9.0, 10.0, "/m/09x0r"), ("-x_y_0", 1.0, 2.0, "/t/dd00098"), ("gone_10000", 0.0, 1.0, "/m/09x0r"),
]  # fmt: skip
EVAL = [
    ("e1_0", 0.0, 1.0, "/m/09x0r"), ("e1_0", 4.0, 5.0, "/m/028v0c"), ("e2_0", 0.0, 1.0, "/m/028v0c"),
]  # fmt: skip


@pytest.fixture
def audioset(tmp_path):
    write_table(tmp_path / "mid_to_display_name.tsv", "", MIDS)
    write_table(tmp_path / "audioset_train_strong.tsv", HEADER, TRAIN)
    write_table(tmp_path / "audioset_eval_strong.tsv", HEADER, EVAL)
    for name in ("Yabc_m3p.flac", "-x_y_0.wav", "Ye1.wav", "Ye2.wav", "Yother.wav"):
        write_audio(tmp_path / "audio" / name)
    return tmp_path


def test_class_lists_come_from_the_tables(audioset):
    names = read_display_names(audioset / "mid_to_display_name.tsv")
    tables = [read_strong(audioset / f"audioset_{part}_strong.tsv", names) for part in ("train", "eval")]
    classes = class_lists(*tables)
    assert classes == ClassLists(("Chirp, tweet", "Dog", "Speech"), ("Silence", "Speech"))
    assert classes.both == ("Speech",)
    sentences = ["train: 3 classes, published 447", "eval: 2 classes, published 416", "both: 1 classes, published 407"]
    assert classes.differences() == sentences


def test_file_names_keep_ids_that_end_in_m_p_3():
    assert audio_names("abc_m3p_30000") == ("Yabc_m3p", "abc_m3p_30000")


def test_training_part(audioset):
    manifest, classes = load_audioset_strong(audioset, "train")
    assert list(manifest.clips.filename) == ["abc_m3p_30000", "-x_y_0"]
    assert list(manifest.clips.path) == ["audio/Yabc_m3p.flac", "audio/-x_y_0.wav"]
    assert manifest.report.missing == ["gone_10000"] and "audio/Yother.wav" in manifest.report.extra
    assert manifest.class_mask.all() and manifest.class_names == classes.train
    dogs = manifest.events[manifest.events.event_label == "Dog"]
    assert dogs[["onset", "offset"]].to_numpy().tolist() == [[0, 5]]  # merged
    targets = manifest.event_arrays().encode(grid=AUDIOSET_GRID)
    assert targets.shape == (2, 250, 3)
    assert targets[0, :, 1].sum() == 125 and targets[0, :, 2].sum() == 25 and targets[1, :, 0].sum() == 25
    assert manifest.durations()["-x_y_0"] == 0.1
    assert open_audio(manifest, audioset / "cache").n_samples.tolist() == [1600, 1600]


def test_evaluation_part_has_the_common_classes(audioset):
    manifest, _ = load_audioset_strong(audioset, "eval")
    assert list(manifest.events.event_label) == ["Speech"]
    assert manifest.clips.has_events.tolist() == [True, False]
    assert list(manifest.with_events().clips.filename) == ["e1_0"]  # empty clips are not scored
    assert manifest.class_mask.tolist() == [False, False, True]
    assert manifest.report.notes == [
        "eval: 2 events of 1 classes left out that the training table does not have."]  # fmt: skip


def test_tables_that_cannot_be_used(audioset):
    with pytest.raises(DataError, match="none of the 2 clips of audioset_eval_strong.tsv is in elsewhere; files are"):
        load_audioset_strong(audioset, "eval", ["elsewhere"])
    write_table(audioset / "audioset_eval_strong.tsv", HEADER, [("e1_0", 0, 1, "/m/zzz")])
    with pytest.raises(DataError, match="e1_0 has the label '/m/zzz', which mid_to_display_name.tsv does not name"):
        load_audioset_strong(audioset, "eval")


def test_rare_classes_weigh_more():
    frames = np.array([[10, 0], [10, 0], [0, 10]])
    weights = sampling_weights(frames, offset=0)
    np.testing.assert_allclose(weights, [500, 500, 1000])
    targets = np.zeros((3, 12, 2))
    for clip, label in enumerate([0, 0, 1]):
        targets[clip, :10, label] = 1
    np.testing.assert_allclose(sampling_weights(targets, offset=0), weights)
    assert sampling_weights(frames)[0] == pytest.approx(10 * 1000 / 50)
