"""The challenge's sets as manifests: real tables, odd tables, missing files, and the parts they are split into."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile

from common.data.events import Crop, overlapping
from common.data.manifest import DataError
from task4_sed.augment import RandomCrop
from task4_sed.clip_audio import open_audio
from task4_sed.data import (
    PUBLISHED_DATA,
    dataset_name,
    load_set,
    main,
    set_info,
    set_infos,
)
from task4_sed.labels import class_mask, encode, sound_classes
from task4_sed.maestro import split_recordings
from task4_sed.tables import past_the_end, read_events, read_weak
from tests.task4_sed.conftest import write_audio, write_table

CLASSES = sound_classes().names
STRONG = "filename onset offset event_label"


# ---------------------------------------------------------------- the sets


def test_every_set_says_where_it_is():
    for info in set_infos().values():
        assert info.audio and (info.table or info.kind == "unlabeled"), info.name
        assert info.kind in ("strong", "soft", "weak", "unlabeled") and info.source in ("desed", "maestro", "mixed")
        assert not info.audio_44k.endswith("16k")
        assert info.whole in ("", *set_infos()) and bool(info.whole) == bool(info.part)
        assert not info.exclude or info.use == "train"
    devtest, maestro = set_info("devtest"), set_info("maestro_real_dev")
    assert devtest.n_clips() == devtest.n_clips(5.0) == 1168 and set_info("strong_train").clips_with_events is None
    assert maestro.n_clips(5.0) == 718 and maestro.n_clips(1.0) == 3474  # of the same 16 recordings
    assert maestro.n_clips(2.0) is None and maestro.n_clips() is None


def test_unknown_set_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="no data set 'dev_test', did you mean 'devtest'"):
        load_set(tmp_path, "dev_test")


# ---------------------------------------------------------------- real tables


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """The real metadata in the real layout; no audio."""
    root, source = tmp_path_factory.mktemp("desed"), shared / "data/metadata"
    places = {
        "desed/validation_validation.tsv": "metadata/validation/validation.tsv",
        "desed_task/validation_durations.tsv": "metadata/validation/validation_durations.tsv",
        "desed/train_weak.tsv": "metadata/train/weak.tsv",
        "desed/train_unlabel_in_domain.tsv": "metadata/train/unlabel_in_domain.tsv",
        "desed/eval_public.tsv": "eval/desed_public_eval/metadata/eval/public.tsv",
    }
    for name, place in places.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes((source / name).read_bytes())
    return root


def load_tables(root, name):
    return load_set(root, name, need_audio=False, exclude_overlap=False)


def test_real_devtest(real):
    manifest = load_tables(real, "devtest")
    assert len(manifest) == 1168 and manifest.clips.has_events.sum() == 1153 and len(manifest.events) == 4224
    assert (~manifest.clips.has_events).sum() == 15 and not manifest.report.differences
    assert (manifest.clips.duration < 9.99).sum() == 102 and manifest.clips.duration.min() > 2
    late = past_the_end(manifest.events, manifest.durations())
    assert len(late) == 16 and 0.11 < late.late_s.max() < 0.12 and late.offset.max() == 10.115
    assert "16 events end up to 0.115 s after their clip's end" in " ".join(manifest.report.notes)
    assert overlapping(manifest.events).empty
    assert len(manifest.with_events()) == 1153
    np.testing.assert_array_equal(manifest.class_mask, class_mask("desed", "test"))
    targets = manifest.event_arrays().encode()
    assert targets.shape == (1168, 156, 27) and not targets[:, :, 10:].any()
    assert (targets.any((1, 2)) == manifest.clips.has_events).all()


def test_real_devtest_is_two_older_sets(real, shared):
    parts = [read_events(shared / f"data/metadata/desed/validation_{name}_dcase2018.tsv", CLASSES) for name in
             ("eval", "test")]  # fmt: skip
    assert [len(part.filenames) for part in parts] == [880, 288]
    assert sum(len(part.events) for part in parts) == 4224
    assert {name for part in parts for name in part.filenames} == set(load_tables(real, "devtest").clips.filename)


def test_real_public_eval(real):
    manifest = load_tables(real, "eval_public")
    assert len(manifest) == 692 and len(manifest.events) == 2765 and manifest.clips.has_events.all()
    assert manifest.events.offset.max() == 11.0 and manifest.clips.duration.isna().all()
    assert manifest.event_arrays().encode().shape == (692, 156, 27)


def test_real_weak_set_and_its_parts(real):
    whole, fit, held_out = (load_tables(real, name) for name in ("weak", "weak_train", "weak_val"))
    assert [len(manifest) for manifest in (whole, fit, held_out)] == [1578, 1420, 158]
    assert not whole.report.notes and not whole.report.differences and whole.clips.has_events.all()
    assert sorted([*fit.clips.filename, *held_out.clips.filename]) == sorted(whole.clips.filename)
    assert whole.clips.filename[1239] == fit.clips.filename[0]
    assert whole.clips.filename[13] == held_out.clips.filename[0]
    labels = whole.event_arrays().clip_labels()
    assert labels.shape == (1578, 27) and labels[:, :10].sum() == 2244  # class occurrences that DESED names
    cutlery, dishes = CLASSES.index("cutlery and dishes"), CLASSES.index("Dishes")
    np.testing.assert_array_equal(labels[:, cutlery], labels[:, dishes])  # the winner's alias
    assert not held_out.event_arrays().clip_labels()[:, 10:].any()  # none in validation


def test_real_unlabeled_list(real):
    manifest = load_tables(real, "unlabeled_train")
    assert len(manifest) == 14412 and manifest.events.empty and not manifest.report.differences
    assert manifest.event_arrays().encode([0]).sum() == 0


def test_real_tables_are_known_as_the_published_data(real, tmp_path):
    assert dataset_name(real) == PUBLISHED_DATA
    assert dataset_name(tmp_path) == tmp_path.name
    (tmp_path / "dataset.json").write_text('{"name": "mine"}')
    assert dataset_name(tmp_path) == "mine"
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="dataset.json: expected"):
        dataset_name(tmp_path)


# ---------------------------------------------------------------- event tables


def read(tmp_path, rows, header=STRONG, **how):
    return read_events(write_table(tmp_path / "t.tsv", header, rows, newline=how.pop("newline", "\n")), CLASSES, **how)


def test_crlf_empty_rows_and_order(tmp_path):
    rows = [("b.wav", 1, 2, "Dog"), ("a.wav", "", "", ""), ("b.wav", "0.5", "3", "Cat"), ("c.wav", "nan", "NaN", "nan")]
    found = read(tmp_path, rows, newline="\r\n")
    assert found.filenames == ["b.wav", "a.wav", "c.wav"] and not found.notes
    assert list(found.events.event_label) == ["Dog", "Cat"] and (found.events.confidence == 1).all()


def test_odd_rows_are_left_out_and_noted(tmp_path):
    rows = [("a.wav", 2, 1, "Dog"), ("a.wav", 3, 3, "Dog"), ("b.wav", 1, "", "Dog"), ("b.wav", 1, 2, ""),
            ("c.wav", -1, 2, "Dog"), ("c.wav", 1, 4, "Dog"), ("c.wav", 1, 40, "Cat")]  # fmt: skip
    found = read(tmp_path, rows)
    assert found.filenames == ["a.wav", "b.wav", "c.wav"]
    assert found.events[["onset", "offset"]].to_numpy().tolist() == [[-1, 2], [1, 4], [1, 40]]
    assert [note.split(": ", 1)[1] for note in found.notes] == [
        "2 rows left out that miss a time, label or confidence, the first of b.wav.",
        "2 rows left out whose offset is not after their onset, the first of a.wav: 2 to 1 s.",
        "1 events start before 0 s; labels are clipped to the clip.",
        "1 events overlap another of their class in the same clip, the first in c.wav.",
    ]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("a.wav", "1,5", 2, "Dog")], "a.wav: onset '1,5' is not a number; mend the row"),
        ([("a.wav", 1, "inf", "Dog")], "a.wav: offset 'inf' is not a number"),
        ([("a.wav", 1, 2, "Dogs")], r"a.wav has the label 'Dogs', which is none of the 27 classes \(nearest: 'Dog'\)"),
        ([("", 1, 2, "Dog")], "empty cell in the row"),
        ([], "has a header but no rows"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, rows, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read(tmp_path, rows)
    assert str(caught.value).startswith(f"{tmp_path / 't.tsv'}: ") and "\n" not in str(caught.value)


def test_unknown_labels_can_be_left_out(tmp_path):
    rows = [("a.wav", 1, 2, "Dogs"), ("b.wav", 1, 2, "Dog"), ("a.wav", 1, 2, "Bus")]
    found = read(tmp_path, rows, allow_unknown=True)
    assert list(found.events.filename) == ["b.wav"] and found.filenames == ["a.wav", "b.wav"]
    assert found.notes[0].endswith("2 rows left out with unknown labels: Bus, Dogs.")


def test_confidence_is_checked(tmp_path):
    header = STRONG + " confidence"
    found = read(tmp_path, [("a.wav", 0, 1, "car", 0.25), ("a.wav", 0, 1, "car", "")], header, soft=True)
    assert found.events.confidence.tolist() == [0.25] and len(found.notes) == 1
    with pytest.raises(DataError, match="a.wav: confidence 2, expected 0 to 1"):
        read(tmp_path, [("a.wav", 0, 1, "car", 2)], header, soft=True)


def test_weak_lists(tmp_path):
    rows = [("a.wav", "Dog, Speech,Dog"), ("b.wav", ""), ("c.wav", "Cat,")]
    path = write_table(tmp_path / "weak.tsv", "filename event_labels", rows)
    found = read_weak(path, CLASSES)
    assert list(zip(found.events.filename, found.events.event_label)) == [
        ("a.wav", "Dog"), ("a.wav", "Speech"), ("c.wav", "Cat")]  # fmt: skip
    assert found.filenames == ["a.wav", "b.wav", "c.wav"]
    write_table(path, "filename event_labels", [("a.wav", "Dog,Cats")])
    with pytest.raises(DataError, match=r"a.wav has the label 'Cats', .*\(nearest: 'Cat'\)"):
        read_weak(path, CLASSES)
    assert read_weak(path, CLASSES, allow_unknown=True).notes[0].endswith("that are unknown: Cats.")
    write_table(path, "filename event_labels", [("a.wav", "Dog"), ("a.wav", "Cat")])
    with pytest.raises(DataError, match="'a.wav' stands in two rows"):
        read_weak(path, CLASSES)


# ---------------------------------------------------------------- manifests


def test_devtest_keeps_clips_without_events(desed):
    manifest = load_set(desed, "devtest")
    assert list(manifest.clips.filename) == ["a.wav", "b.wav", "c.wav"]
    assert manifest.clips.has_events.tolist() == [True, False, True]
    assert manifest.clips.duration.tolist() == [10, 5.5, 10]
    assert list(manifest.with_events().clips.filename) == ["a.wav", "c.wav"]
    assert manifest.report.notes == [f"{desed / 'metadata/validation/validation.tsv'}: 1 events end up to 0.1 s after "
                                     "their clip's end; targets are clipped."]  # fmt: skip
    assert manifest.report.complete  # counts of other data than the published are not compared
    assert manifest.durations() == {"a": 10, "b": 5.5, "c": 10}


def test_missing_files_are_listed_and_left_out(desed):
    folder = desed / "audio/validation/validation_16k"
    (folder / "a.wav").unlink()
    write_audio(folder / "other.wav")
    (folder / "notes.txt").touch()
    manifest = load_set(desed, "devtest")
    assert list(manifest.clips.filename) == ["b.wav", "c.wav"] and set(manifest.events.filename) == {"c.wav"}
    assert manifest.report.missing == ["audio/validation/validation_16k/a.wav"]  # where to put it
    assert manifest.report.extra == ["audio/validation/validation_16k/other.wav"]
    assert not manifest.report.complete and "clips used" in manifest.report.text()


def test_nothing_left_is_an_error(desed):
    (desed / "audio/validation/validation_16k/a.wav").unlink()
    (desed / "audio/validation/validation_16k/c.wav").unlink()
    with pytest.raises(DataError, match="no clip of devtest with a file has a label, so there is nothing to score"):
        load_set(desed, "devtest")
    (desed / "audio/validation/validation_16k/b.wav").unlink()
    with pytest.raises(DataError, match="devtest has no clip with a file in audio/validation/validation_16k nor in"):
        load_set(desed, "devtest")
    with pytest.raises(DataError, match="no such data folder"):
        load_set(desed / "nowhere", "devtest")


def test_twin_at_44_khz_and_other_endings(desed):
    """The 16 kHz folder is empty: its twin is used; a clip converted to FLAC is found by its name."""
    old, new = desed / "audio/validation/validation_16k", desed / "audio/validation/validation"
    old.rename(new)
    (new / "a.wav").unlink()
    write_audio(new / "a.flac", 0.5, 44100, 2)
    manifest = load_set(desed, "devtest")
    assert list(manifest.clips.path) == [f"audio/validation/validation/{name}" for name in ("a.flac", "b.wav", "c.wav")]
    assert list(manifest.clips.filename) == ["a.wav", "b.wav", "c.wav"] and not manifest.report.extra
    (new / "c.wav").unlink()
    assert load_set(desed, "devtest").report.missing == ["audio/validation/validation/c.wav"]


def test_each_clip_is_taken_from_the_folder_that_has_it(desed):
    """Half converted: 16 kHz where there is such a file, otherwise its twin at 44.1 kHz; a twin is nothing extra."""
    old, new = desed / "audio/validation/validation_16k", desed / "audio/validation/validation"
    write_audio(new / "a.wav", 0.5, 44100)
    write_audio(new / "b.wav", 0.5, 44100)
    (old / "b.wav").unlink()
    (old / "c.wav").unlink()
    manifest = load_set(desed, "devtest")
    assert list(manifest.clips.path) == [
        "audio/validation/validation_16k/a.wav", "audio/validation/validation/b.wav"]  # fmt: skip
    assert manifest.report.missing == ["audio/validation/validation_16k/c.wav"] and not manifest.report.extra
    write_audio(desed / "audio/train/unlabel_in_domain/u0.flac", 0.5, 44100)
    manifest = load_set(desed, "unlabeled_train", exclude_overlap=False)
    assert list(manifest.clips.filename) == ["u0.flac", "u1.wav", "u10.wav", "u2.wav", "u3.wav"]


def test_unlabeled_clips_are_sorted_by_name(desed):
    manifest = load_set(desed, "unlabeled_train", exclude_overlap=False)
    assert list(manifest.clips.filename) == ["u1.wav", "u10.wav", "u2.wav", "u3.wav"]
    write_table(desed / "metadata/train/unlabel_in_domain.tsv", "filename", [("u2.wav",), ("u1.wav",), ("gone.wav",)])
    manifest = load_set(desed, "unlabeled_train", exclude_overlap=False)
    assert list(manifest.clips.filename) == ["u2.wav", "u1.wav"] and len(manifest.report.missing) == 1


def test_weak_split_is_that_of_the_table_whatever_is_missing(desed):
    parts = [load_set(desed, name, exclude_overlap=False) for name in ("weak_train", "weak_val")]
    assert [len(part) for part in parts] == [9, 1]
    lost = parts[0].clips.filename[0]
    (desed / "audio/train/weak_16k" / lost).unlink()
    again = [load_set(desed, name, exclude_overlap=False) for name in ("weak_train", "weak_val")]
    assert list(again[0].clips.filename) == list(parts[0].clips.filename[1:])
    assert list(again[1].clips.filename) == list(parts[1].clips.filename)


def test_exclusion_lists_are_for_training_only(desed):
    with pytest.raises(DataError, match="weak_exclude.tsv: no such list .* or set exclude_overlap=false"):
        load_set(desed, "weak_train")
    names = [name.removesuffix(".wav") for name in load_set(desed, "weak", exclude_overlap=False).clips.filename]
    write_table(desed / "resources/weak_exclude.tsv", "filename", [(name,) for name in names[:8]])
    assert list(load_set(desed, "weak").clips.filename) == ["w8.wav", "w9.wav"]
    assert len(load_set(desed, "weak_val")) == 1
    assert "8 clips left out" in load_set(desed, "weak").report.notes[0]


def test_odd_exclusion_lists(desed):
    """Rows that stand twice and lists without rows do no harm; a list of everything gets a sentence of its own."""
    names = [f"w{i}.wav" for i in range(10)]
    write_table(desed / "resources/weak_exclude.tsv", "filename", [(names[0],), (names[1],), (names[0],)])
    assert list(load_set(desed, "weak").clips.filename) == names[2:]
    write_table(desed / "resources/weak_exclude.tsv", "filename", [], newline="\r\n")
    assert len(load_set(desed, "weak")) == 10
    write_table(desed / "resources/weak_exclude.tsv", "filename", [(name,) for name in names])
    with pytest.raises(DataError, match="weak_exclude.tsv: leaves out all 10 clips of weak; check the list, or"):
        load_set(desed, "weak")
    write_table(desed / "resources/weak_exclude.tsv", "file", [(names[0],)])
    with pytest.raises(DataError, match="weak_exclude.tsv: column 'filename' is missing"):
        load_set(desed, "weak")


def test_recipes_differ_in_masks_and_aliases(desed):
    winner, baseline = (load_set(desed, "weak", recipe=name, exclude_overlap=False) for name in ("winner", "baseline"))
    assert winner.class_mask.sum() == 12 and baseline.class_mask.sum() == 10
    talking = CLASSES.index("people talking")
    assert winner.event_arrays().clip_labels()[:, talking].sum() == 5
    assert baseline.event_arrays().clip_labels()[:, talking].sum() == 0
    assert len(winner.events) == len(baseline.events)  # the table itself keeps its rows


def test_clips_that_only_the_durations_name(desed):
    """A clip without any row still counts in scoring, if its audio is there."""
    rows = [("b.wav", 5.5), ("a.wav", 10.0), ("c.wav", 10.0), ("silent.wav", 8.0), ("gone.wav", 10.0)]
    write_table(desed / "metadata/validation/validation_durations.tsv", "filename duration", rows)
    write_audio(desed / "audio/validation/validation_16k/silent.wav")
    manifest = load_set(desed, "devtest")
    assert list(manifest.clips.filename) == ["a.wav", "b.wav", "c.wav", "silent.wav"]
    assert not manifest.clips.has_events[3] and manifest.clips.duration[3] == 8


def test_published_counts_are_compared_for_published_data(desed):
    rows = [(f"{i}.wav", 0, 1, "Dog") for i in range(1168)]  # as many clips as DESED's validation set
    write_table(desed / "metadata/validation/validation.tsv", STRONG, rows)
    manifest = load_set(desed, "devtest", need_audio=False)
    assert manifest.report.differences == [
        "devtest: 1168 clips with events, published 1153", "devtest: 1168 events, published 4224"]  # fmt: skip


def test_identity_changes_with_clips_and_labels(desed):
    first = load_set(desed, "devtest")
    assert first.sha256() == load_set(desed, "devtest").sha256() != first.with_events().sha256()


def test_command(desed, capsys):
    main(["--data", str(desed), "--sets", "devtest", "synth_train"])
    out = capsys.readouterr().out
    assert "devtest (strong, test)" in out and "synth_train: cannot be used." in out
    with pytest.raises(SystemExit, match="no data set can be used"):
        main(["--data", str(desed), "--sets", "synth_train"])


def test_command_reads_the_header_of_every_file(desed, capsys):
    folder = desed / "audio/validation/validation_16k"
    (folder / "b.wav").write_bytes(b"RIFF")
    write_audio(folder / "c.wav", 0.0)
    main(["--data", str(desed), "--sets", "devtest"])
    out = capsys.readouterr().out
    assert "broken: 2 files" in out and f"{folder / 'b.wav'}: cannot be opened (" in out
    assert f"{folder / 'c.wav'}: holds no samples" in out and "not opened" not in out
    main(["--data", str(desed), "--sets", "devtest", "--no-headers"])
    assert "audio files were not opened (--no-headers): broken ones are not known." in capsys.readouterr().out


def test_command_applies_the_exclusion_lists(desed, capsys):
    with pytest.raises(SystemExit):
        main(["--data", str(desed), "--sets", "weak"])
    assert "weak_exclude.tsv: no such list" in capsys.readouterr().out
    main(["--data", str(desed), "--sets", "weak", "--no-exclude-overlap"])
    assert "broken: 0 files" in capsys.readouterr().out
    write_table(desed / "resources/weak_exclude.tsv", "filename", [("w1.wav",)])
    main(["--data", str(desed), "--sets", "weak"])
    assert "1 clips left out that the external strong set has too" in capsys.readouterr().out


# ---------------------------------------------------------------- MAESTRO Real


@pytest.fixture
def maestro_crops(tmp_path):
    """Crops of four recordings in two scenes; one crop has no row, one recording is listed nowhere."""
    names = [f"{scene}_0{i}-{start:06d}-{start + 1000:06d}.wav" for scene in ("city_center", "cafe_restaurant")
             for i in (1, 2) for start in (0, 100)]  # fmt: skip
    rows = [(name, 0, 1, "announcement", 0.4) for name in names[:-1]] + [(names[0], 0, 1, "people talking", 0.9)]
    write_table(tmp_path / "metadata/maestro_real_train.tsv", STRONG + " confidence", rows)
    for name in [*names, "zoo_01-000000-001000.wav"]:
        write_audio(tmp_path / "audio/maestro_real_train_16k" / name, 0.02)
    return tmp_path


def test_crops_as_files(maestro_crops):
    manifest = load_set(maestro_crops, "maestro_real_train")
    assert len(manifest) == 8 and manifest.clips.has_events.sum() == 7 and (manifest.clips.duration == 10).all()
    assert manifest.report.extra == ["audio/maestro_real_train_16k/zoo_01-000000-001000.wav"]
    np.testing.assert_array_equal(manifest.class_mask, class_mask("maestro"))
    arrays, speech = manifest.event_arrays(), CLASSES.index("Speech")
    assert arrays.encode([0])[0, 0, speech] == np.float32(0.9)
    assert arrays.encode([0], overlap="overwrite")[0, 0, speech] == np.float32(0.4)  # announcement's copy is later


def test_parts_hold_whole_recordings_scene_by_scene(maestro_crops):
    fit, held_out = (load_set(maestro_crops, f"maestro_real_{part}") for part in ("fit", "val"))
    recordings = [list(dict.fromkeys(part.clips.filename.str.slice(0, -18))) for part in (fit, held_out)]
    assert [name.rpartition("_")[0] for name in recordings[0]] == ["cafe_restaurant", "city_center"]
    assert sorted(sum(recordings, [])) == [
        "cafe_restaurant_01", "cafe_restaurant_02", "city_center_01", "city_center_02"]  # fmt: skip
    assert len(fit) + len(held_out) == 8


def test_files_that_are_no_crops_are_extra(maestro_crops):
    """What else lies in the folder stops nothing; among the labels such a name is an error."""
    folder, strays = "audio/maestro_real_train_16k", ["city_center_01.wav", "city_center_01-a-b.wav", "notes.wav"]
    for name in strays:
        write_audio(maestro_crops / folder / name, 0.02)
    for name in ("maestro_real_train", "maestro_real_fit"):
        extra = load_set(maestro_crops, name).report.extra
        assert set(extra) == {f"{folder}/{file}" for file in (*strays, "zoo_01-000000-001000.wav")}
    rows = [("city_center_01.wav", 0, 1, "car", 0.4)]
    write_table(maestro_crops / "metadata/maestro_real_train.tsv", STRONG + " confidence", rows)
    with pytest.raises(DataError, match="city_center_01.wav: not the name of a crop"):
        load_set(maestro_crops, "maestro_real_train")


def test_split_is_that_of_the_table_whatever_is_missing(maestro_crops):
    names = "maestro_real_fit", "maestro_real_val"
    parts = {name: set(load_set(maestro_crops, name).clips.filename) for name in names}
    for file in (maestro_crops / "audio/maestro_real_train_16k").glob("city_center_01-*"):
        file.unlink()
    for name, filenames in parts.items():
        left = {filename for filename in filenames if not filename.startswith("city_center_01")}
        assert set(load_set(maestro_crops, name).clips.filename) == left


def write_crops_table(path, starts, n_recordings, n_crops):
    """As many crops as said, the last recording has the fewest."""
    crops = [(n % n_recordings, starts[n // n_recordings]) for n in range(n_crops)]
    names = [Crop(f"city_center_{number:02d}", start, start + 10).name + ".wav" for number, start in crops]
    write_table(path, STRONG + " confidence", [(name, 0, 1, "car", 0.4) for name in names])


@pytest.mark.parametrize(("hop_s", "n_crops", "other"), [(5, 718, 3474), (1, 3474, 718)])
def test_count_of_validation_crops_belongs_to_a_hop(tmp_path, hop_s, n_crops, other):
    (tmp_path / "dataset.json").write_text(f'{{"name": "{PUBLISHED_DATA}"}}')
    for n_found, differences in (
        (n_crops, []), (other, [f"maestro_real_dev: {other} clips, published {n_crops} at a hop of {hop_s} s"])
    ):  # fmt: skip
        write_crops_table(tmp_path / "metadata/maestro_real_validation.tsv", np.arange(0, 3000, hop_s), 16, n_found)
        manifest = load_set(tmp_path, "maestro_real_dev", need_audio=False)
        assert manifest.report.differences == differences
        assert list(manifest.report.counts) == [f"maestro_real_dev (soft, test, hop {hop_s} s)"]
    with pytest.raises(DataError, match=f"maestro_real_validation.tsv: its crops start every {hop_s} s, not every 2 s"):
        load_set(tmp_path, "maestro_real_dev", need_audio=False, hop_s=2.0)
    assert len(load_set(tmp_path, "maestro_real_dev", need_audio=False, hop_s=float(hop_s))) == other


def test_one_recording_a_scene_leaves_none_to_train(maestro_crops):
    rows = [("city_center_01-000000-001000.wav", 0, 1, "car", 0.4)]
    write_table(maestro_crops / "metadata/maestro_real_train.tsv", STRONG + " confidence", rows)
    with pytest.raises(DataError, match="1 recordings leave none for this part; at least two of a scene"):
        load_set(maestro_crops, "maestro_real_fit")


@pytest.fixture
def maestro_recordings(tmp_path):
    """The long recordings alone: 12.5 s and 10.3 s, stereo, 8 kHz; the first one is for validation too."""
    for name, duration_s in (("cafe_restaurant_00", 12.5), ("cafe_restaurant_01", 10.3)):
        write_audio(tmp_path / f"maestro_real/development_audio/{name}.wav", duration_s, 8000, 2)
        rows = [(t, t + 1, "car", 0.5) for t in range(10)]
        write_table(tmp_path / f"maestro_real/development_annotation/{name}.txt", "", rows)
    names = [("cafe_restaurant_00.txt",), ("cafe_restaurant_01.txt",)]
    write_table(tmp_path / "metadata/train_split.csv", "train", names, ",", "\r\n")
    write_table(tmp_path / "metadata/validation_split.csv", "val", names[:1], ",", "\r\n")
    return tmp_path


def test_hop_of_crops_that_are_cut(maestro_recordings, capsys):
    """Default: every 5 s for the challenge's validation, every second for training."""
    starts = {hop_s: load_set(maestro_recordings, "maestro_real_dev", hop_s=hop_s).clips.start_s.tolist()
              for hop_s in (None, 1.0, 2.0)}  # fmt: skip
    assert starts == {None: [0, 5], 1.0: [0, 1, 2, 3], 2.0: [0, 2, 4]}
    assert load_set(maestro_recordings, "maestro_real_train", hop_s=2.0).clips.start_s.tolist() == [0, 2, 4, 0, 2]
    main(["--data", str(maestro_recordings), "--sets", "maestro_real_dev", "--hop", "1"])
    assert "maestro_real_dev (soft, test, hop 1 s)" in capsys.readouterr().out


def test_split_is_that_of_the_list_whatever_is_missing(maestro_recordings):
    """A recording that was not fetched yet must not move another from training to validation."""
    names = [f"{scene}_{n:02d}" for scene in ("zoo", "cafe_restaurant") for n in range(4)]
    for name in names[1:]:
        write_audio(maestro_recordings / f"maestro_real/development_audio/{name}.wav", 10.0, 8000)
        write_table(maestro_recordings / f"maestro_real/development_annotation/{name}.txt", "", [(0, 1, "car", 0.5)])
    write_table(maestro_recordings / "metadata/train_split.csv", "train", [(f"{name}.txt",) for name in names], ",")
    fit, held_out = split_recordings(names)
    assert len(held_out) == 2 and "zoo_00" in fit
    for part, chosen in (("fit", fit), ("val", held_out)):
        manifest = load_set(maestro_recordings, f"maestro_real_{part}")
        left = [name for name in chosen if name != "zoo_00"]
        assert [Crop.parse(name).recording for name in manifest.clips.filename] == sorted(left)
        gone = ["maestro_real/development_audio/zoo/zoo_00.wav",
                "maestro_real/development_annotation/soft_labels_zoo/zoo_00.txt"]  # fmt: skip
        assert manifest.report.missing == (gone if part == "fit" else [])


def test_crops_are_cut_from_recordings_that_are_stored_once(maestro_recordings, tmp_path):
    manifest = load_set(maestro_recordings, "maestro_real_train")
    assert len(manifest) == 6 and manifest.clips.path.nunique() == 2
    assert manifest.clips.filename[5] == "cafe_restaurant_01-000100-001030.wav"
    audio = open_audio(manifest, tmp_path / "cache")
    assert audio.cache.lengths.tolist() == [200_000, 164_800] and audio.usable.all()
    assert audio.n_samples.tolist() == [160_000, 160_000, 160_000, 152_000, 160_000, 148_800]
    clips = audio.read([0, 2, 5], 160_000)
    assert clips.shape == (3, 160_000) and clips.dtype == np.float32
    np.testing.assert_array_equal(clips[0, 32_000:], clips[1, :128_000])
    assert clips[2, 148_799] != 0 and not clips[2, 148_800:].any()
    np.testing.assert_array_equal(audio.whole(5), clips[2, :148_800])
    late = audio.read([0], 16_000, first=[159_000])[0]  # the recording goes on, the crop ends
    assert late[:1000].any() and not late[1000:].any()
    fit = load_set(maestro_recordings, "maestro_real_fit")
    assert fit.clips.path.nunique() == 1 and fit.report.complete
    rows = [(name, 0, 1, "car", 0.5) for name in manifest.clips.filename]  # a table of crops, but none of their files
    write_table(tmp_path / "metadata/maestro_real_train.tsv", STRONG + " confidence", rows)
    assert load_set(maestro_recordings, "maestro_real_train").clips.path.nunique() == 2


# ---------------------------------------------------------------- audio


def test_audio_is_resampled_downmixed_and_left_at_its_length(desed, tmp_path):
    folder = desed / "audio/validation/validation_16k"
    time_s = np.arange(44100) / 44100
    stereo = np.stack([0.5 * np.sin(2 * np.pi * 440 * time_s), np.zeros(44100)], 1)
    soundfile.write(folder / "a.wav", stereo, 44100, subtype="PCM_24")
    (folder / "b.wav").write_bytes(b"RIFF")
    audio = open_audio(load_set(desed, "devtest"), tmp_path / "cache")
    assert audio.n_samples.tolist() == [16_000, 0, 1_600]
    assert audio.usable.tolist() == [True, False, True] and "cannot be decoded" in next(iter(audio.problems.values()))
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(audio.whole(0)[200:-200], expected[200:-200], atol=1e-3)
    padded = audio.read([2], 2_000)[0]
    assert padded[:1600].any() and not padded[1600:].any()


def test_longer_clips_are_cropped_with_their_labels(desed, tmp_path):
    """As the published loader does: sound and labels from the same drawn onset."""
    write_audio(desed / "audio/validation/validation_16k/a.wav", 12.0)
    manifest = load_set(desed, "devtest")
    audio, crop = open_audio(manifest, tmp_path / "cache"), RandomCrop(10.0)
    first = crop.draw(int(audio.n_samples[0]), np.random.default_rng(0))
    assert 0 < first < 32_000
    clip = audio.read([0], crop.n_samples, [first])[0]
    np.testing.assert_array_equal(clip, audio.whole(0)[first : first + 160_000])
    arrays, onset_s = manifest.event_arrays(), crop.onset_s(first)
    events = manifest.events[manifest.events.filename == "a.wav"]
    moved = events.assign(onset=(events.onset - onset_s).clip(0), offset=events.offset - onset_s)
    np.testing.assert_array_equal(arrays.encode([0], crop_onset_s=onset_s), encode(moved, ["a.wav"]))
    assert (arrays.encode([0], crop_onset_s=onset_s) != arrays.encode([0])).any()


# ---------------------------------------------------------------- rendered scenes


@pytest.mark.slow
def test_all_sets_of_rendered_scenes(shared, tmp_path):
    """Real sounds in the layout of the challenge, rendered small."""
    script, root = shared / "data/sed/event_scenes/make_event_scenes.py", tmp_path / "scenes"
    subprocess.run([sys.executable, script, root, "--scale", "0.02", "--jobs", "2"], check=True, capture_output=True)
    sizes = {"synth_train": 12, "synth_val": 3, "strong_train": 6, "weak": 6, "weak_train": 5, "weak_val": 1,
             "unlabeled_train": 16, "devtest": 6, "maestro_real_train": 155, "maestro_real_val": 155,
             "maestro_real_dev": 34}  # fmt: skip
    manifests = {name: load_set(root, name, exclude_overlap=False) for name in sizes}
    assert {name: len(manifest) for name, manifest in manifests.items()} == sizes
    assert not any(manifest.report.missing + manifest.report.extra for manifest in manifests.values())
    assert manifests["maestro_real_dev"].clips.has_events.sum() == 31
    for name in ("devtest", "maestro_real_dev", "unlabeled_train"):
        audio = open_audio(manifests[name], tmp_path / "cache", "int16")
        assert audio.usable.all()
        durations = pd.Series(manifests[name].durations()).to_numpy()
        np.testing.assert_allclose(audio.n_samples / 16_000, durations, atol=0.011)
        targets = manifests[name].event_arrays().encode()
        assert (targets.any((1, 2)) == manifests[name].clips.has_events).all()
    truth = read_events(root / "provenance/weak_truth.tsv", CLASSES)  # not for training: it checks the weak lists
    weak = manifests["weak"].with_events()
    found = set(zip(weak.events.filename, weak.events.event_label))
    assert found == set(zip(truth.events.filename, truth.events.event_label))
    with pytest.raises(DataError, match="3 recordings leave none for this part"):
        load_set(root, "maestro_real_fit")
