"""Soft labels of long recordings become those of their crops."""

import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile

from common.data.events import read_recording_labels
from common.data.manifest import DataError
from task4_sed.data import load_set
from task4_sed.labels import sound_classes
from task4_sed.maestro import (
    SCENES,
    crop_times,
    cut_labels,
    cut_recordings,
    find_recordings,
    hop_of,
    main,
    read_split_list,
    recording_of,
    scene_of,
    scenes,
    split_recordings,
)
from task4_sed.tables import label_table
from tests.task4_sed.conftest import write_audio, write_table

CLASSES = sound_classes().names

# ---------------------------------------------------------------- names and times


def test_names():
    assert scene_of("cafe_restaurant_100") == "cafe_restaurant"
    assert recording_of("my-own-take_1-000000-001000.wav") == "my-own-take_1"
    assert recording_of("my-own-take_1.wav") is None


def test_scenes_of_the_challenge_come_first():
    assert scenes(["zoo_1", "metro_station_2", "beach_1", "cafe_restaurant_3", "zoo_2"]) == [
        "cafe_restaurant", "metro_station", "beach", "zoo"]  # fmt: skip


def test_hop_is_the_smallest_step_within_a_recording():
    names = ["a_1-000500-001500.wav", "a_1-002000-003000.wav", "a_1-001000-002000.wav", "b_1-000100-001100.wav"]
    assert hop_of(names) == 5
    assert hop_of(names[2:]) is None  # one crop each


@pytest.mark.parametrize(
    ("duration_s", "hop_s", "starts", "last_end"),
    [
        (12.0, 1, [0, 1, 2], 12.0),
        (12.5, 1, [0, 1, 2, 3], 12.5),  # the last one is shorter
        (10.0, 1, [0], 10.0),
        (4.0, 1, [0], 4.0),
        (21.0, 5, [0, 5, 10, 15], 21.0),
        (20.0, 5, [0, 5, 10], 20.0),
    ],
)
def test_crop_times(duration_s, hop_s, starts, last_end):
    start_s, end_s = crop_times(duration_s, hop_s)
    assert start_s.tolist() == starts and end_s[-1] == last_end
    assert (end_s[:-1] - start_s[:-1] == 10).all()


def test_cut_labels_by_hand():
    labels = pd.DataFrame([(0, 1, "car", 0.3), (9, 10, "car", 0.6), (9.5, 13, "footsteps", 0.9)],
                          columns=["onset", "offset", "event_label", "confidence"])  # fmt: skip
    crop, rows = cut_labels(labels, np.array([0.0, 1.0, 3.0]), np.array([10.0, 11.0, 12.5]))
    found = [(int(c), r.onset, r.offset, r.event_label, r.confidence) for c, r in zip(crop, rows.itertuples())]
    assert found == [
        (0, 0, 1, "car", 0.3), (0, 9, 10, "car", 0.6), (0, 9.5, 10, "footsteps", 0.9),
        (1, 8, 9, "car", 0.6), (1, 8.5, 10, "footsteps", 0.9),
        (2, 6, 7, "car", 0.6), (2, 6.5, 9.5, "footsteps", 0.9),
    ]  # fmt: skip


# ---------------------------------------------------------------- tables


def read_labels(path):
    return label_table(read_recording_labels(path), CLASSES, str(path))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ((0, 1, "footstep", 0.5), r"has the label 'footstep', .*\(nearest: 'footsteps'\)"),
        ((0, 1, "footsteps", 1.5), "confidence 1.5, expected 0 to 1"),
        ((0, 1, "footsteps", "high"), "confidence 'high' is not a number"),
    ],
)
def test_soft_labels_that_cannot_be_used(tmp_path, row, sentence):
    with pytest.raises(DataError, match=sentence):
        read_labels(write_table(tmp_path / "cafe_restaurant_00.txt", "", [row]))


def test_real_soft_labels(shared):
    folder = shared / "data/scenes/real_challenge_samples/maestro"
    found = read_labels(folder / "cafe_restaurant_14_soft_labels.txt")
    assert len(found.events) == 3 and not found.notes
    assert found.events.confidence[1] == 0.12977944582818704


def test_real_split_lists(shared):
    folder = shared / "data/metadata/desed_task"
    train = read_split_list(folder / "train_split.csv", "train")
    validation = read_split_list(folder / "validation_split.csv", "val")
    assert len(train) == 33 and len(validation) == 16 and not set(train) & set(validation)
    for names, counts in ((train, [7, 7, 6, 6, 7]), (validation, [3, 3, 3, 3, 4])):
        assert [sum(scene_of(name) == scene for name in names) for scene in SCENES] == counts


def test_split_depends_on_the_order_of_names_unless_sorted(shared):
    names = read_split_list(shared / "data/metadata/desed_task/train_split.csv", "train")
    expected = {
        True: ["cafe_restaurant_14", "city_center_11", "grocery_store_03", "metro_station_10", "residential_area_01"],
        False: ["cafe_restaurant_14", "city_center_14", "grocery_store_03", "metro_station_12", "residential_area_08"],
    }
    for sort, held_out in expected.items():
        train, validation = split_recordings(names, sort=sort)
        assert validation == held_out and sorted(train + validation) == sorted(names)
    assert split_recordings(names[::-1]) == split_recordings(names)


def test_split_of_own_scenes_and_single_recordings():
    train, validation = split_recordings(["zoo_1", "zoo_2", "beach_1", "cafe_restaurant_3"])
    assert validation[:2] == ["cafe_restaurant_3", "beach_1"]  # int(0.9 · 1) = 0 train
    assert len(train) == 1 and scene_of(train[0]) == "zoo"


# ---------------------------------------------------------------- recordings


@pytest.fixture
def recordings(tmp_path):
    """Two recordings in the layout of the archives, a third without labels; lists for both parts."""
    root = tmp_path / "maestro_real"
    for scene, number, duration_s in (("cafe_restaurant", "00", 12.5), ("city_center", "01", 9.0)):
        name = f"{scene}_{number}"
        write_audio(root / f"development_audio/{scene}/{name}.wav", duration_s, 8000, 2)
        rows = [(t, min(t + 1, duration_s), "footsteps", 0.5 + t / 100) for t in range(int(np.ceil(duration_s)))]
        write_table(root / f"development_annotation/soft_labels_{scene}/{name}.txt", "", rows)
    write_audio(root / "development_audio/city_center/city_center_02.wav", 1.0, 8000)
    names = ["city_center_01.txt", "cafe_restaurant_00.txt"]
    write_table(tmp_path / "metadata/train_split.csv", "train", [(name,) for name in names], ",", "\r\n")
    write_table(tmp_path / "metadata/validation_split.csv", "val", [(names[0],)], ",", "\r\n")
    return tmp_path


def test_crops_of_recordings(recordings):
    root = recordings / "maestro_real"
    names = ["city_center_01", "cafe_restaurant_00", "city_center_02", "gone_03"]
    clips, labels, missing = cut_recordings(root, names, 1.0)
    assert list(clips.filename) == [
        "cafe_restaurant_00-000000-001000.wav", "cafe_restaurant_00-000100-001100.wav",
        "cafe_restaurant_00-000200-001200.wav", "cafe_restaurant_00-000300-001250.wav",
        "city_center_01-000000-000900.wav",
    ]  # fmt: skip
    assert clips.duration.tolist() == [10, 10, 10, 9.5, 9] and clips.start_s.tolist() == [0, 1, 2, 3, 0]
    assert clips.path[3] == "development_audio/cafe_restaurant/cafe_restaurant_00.wav"
    last = labels.events[labels.events.filename == clips.filename[3]]
    assert len(last) == 10 and last.offset.max() == 9.5 and last.confidence.iloc[0] == 0.53
    assert missing == [
        "development_audio/gone/gone_03.wav", "development_annotation/soft_labels_city_center/city_center_02.txt",
        "development_annotation/soft_labels_gone/gone_03.txt",
    ]  # fmt: skip


def test_hop_is_an_option(recordings):
    root = recordings / "maestro_real"
    clips, _, _ = cut_recordings(root, ["cafe_restaurant_00"], 0.5)
    assert clips.start_s.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert clips.filename[1] == "cafe_restaurant_00-000050-001050.wav"
    for wrong in (0.001, 11, float("nan")):
        with pytest.raises(DataError, match=f"a hop of {wrong} s; crops .* last 10 s, give 0.01 to 10"):
            cut_recordings(root, ["cafe_restaurant_00"], wrong)


def test_labels_that_go_on_after_the_sound_are_noted(recordings):
    """A download broke off: the labels say how much is missing."""
    root = recordings / "maestro_real"
    path = root / "development_audio/cafe_restaurant/cafe_restaurant_00.wav"
    write_audio(path, 11.6, 8000, 2)
    _, labels, missing = cut_recordings(root, ["cafe_restaurant_00"], 1.0)
    assert not labels.notes and not missing  # labels may end up to a second later: their grid is that coarse
    write_audio(path, 11.0, 8000, 2)
    clips, labels, missing = cut_recordings(root, ["cafe_restaurant_00"], 1.0)
    assert len(clips) == 2 and labels.events.offset.max() == 10
    assert missing == ["development_audio/cafe_restaurant/cafe_restaurant_00.wav (after 11 s)"]
    assert labels.notes == [
        f"{path}: lasts 11 s, but its labels go on to 12.5 s (2 crops more); it is cut off, get it again."]  # fmt: skip


def test_recording_that_cannot_be_decoded(recordings):
    root = recordings / "maestro_real"
    (root / "development_audio/cafe_restaurant/cafe_restaurant_00.wav").write_bytes(b"RIFF")
    _, _, missing = cut_recordings(root, ["cafe_restaurant_00", "city_center_01"], 1.0)
    assert missing == ["development_audio/cafe_restaurant/cafe_restaurant_00.wav (cannot be decoded)"]


def test_no_recording_is_there(recordings):
    with pytest.raises(DataError, match="none of the 1 recordings is there with its labels; unpack"):
        cut_recordings(recordings / "maestro_real", ["city_center_02"], 1.0)


def test_real_recording(shared, tmp_path):
    """One second of labels, five of sound, 44.1 kHz stereo: a crop shorter than the window."""
    source = shared / "data/scenes/real_challenge_samples/maestro"
    for kind in ("development_audio", "development_annotation"):
        (tmp_path / kind).mkdir()
    shutil.copy(source / "cafe_restaurant_14.wav", tmp_path / "development_audio")
    shutil.copy(source / "cafe_restaurant_14_soft_labels.txt", tmp_path / "development_annotation")
    assert list(find_recordings(tmp_path)[1]) == ["cafe_restaurant_14"]
    clips, labels, missing = cut_recordings(tmp_path, ["cafe_restaurant_14"], 1.0)
    assert list(clips.filename) == ["cafe_restaurant_14-000000-000500.wav"] and not missing
    assert len(labels.events) == 3 and (labels.events.offset == 1).all()


def test_crops_as_files(recordings, capsys):
    main([str(recordings)])
    assert capsys.readouterr().out == "train: 5 crops\nvalidation: 1 crops\n"
    table = pd.read_csv(recordings / "metadata/maestro_real_train.tsv", sep="\t")
    assert list(table.columns) == ["filename", "onset", "offset", "event_label", "confidence"]
    crop = recordings / "audio/maestro_real_train/cafe_restaurant_00-000300-001250.wav"
    samples, rate = soundfile.read(crop, dtype="int32")
    whole, _ = soundfile.read(recordings / "maestro_real/development_audio/cafe_restaurant/cafe_restaurant_00.wav",
                              dtype="int32")  # fmt: skip
    assert rate == 8000
    np.testing.assert_array_equal(samples, whole[3 * 8000 :])
    with pytest.raises(SystemExit, match="train: holds 3 crops that a hop of 5 s does not give, the first is cafe"):
        main([str(recordings), "--part", "train", "--hop", "5"])
    for path in crop.parent.glob("cafe_restaurant_00-000[123]00-*"):
        path.unlink()
    main([str(recordings), "--part", "train", "--hop", "5"])
    assert capsys.readouterr().out == "train: 3 crops\n"
    assert load_set(recordings, "maestro_real_train").clips.duration.tolist() == [10, 7.5, 9]
    (recordings / "maestro_real/development_audio/city_center/city_center_01.wav").unlink()
    with pytest.raises(SystemExit, match="1 files are missing, the first is development_audio/city_center/city"):
        main([str(recordings), "--part", "train"])
