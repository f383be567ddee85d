"""Tables of events: names there and back, label files, and events that overlap or touch."""

import numpy as np
import pandas as pd
import pytest

from common.data.events import (
    EVENT_COLUMNS,
    SOFT_COLUMNS,
    Crop,
    clip_name,
    event_rows,
    merge_events,
    overlapping,
    read_recording_labels,
    recording_of_labels,
)
from common.data.manifest import DataError


def table(*rows, columns=EVENT_COLUMNS):
    return pd.DataFrame(rows, columns=list(columns))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("a.wav", "a"),
        ("a.FLAC", "a"),
        ("audio/train/a.wav", "a"),
        ("a.tsv", "a"),
        ("a.wav.tsv", "a"),
        ("Y1_30.000_40.000", "Y1_30.000_40.000"),
        ("Y1_30.000_40.000.tsv", "Y1_30.000_40.000"),
        ("x.y.wav", "x.y"),
        ("a.txt", "a.txt"),
    ],
)
def test_clip_names_lose_folder_and_known_endings_only(name, clip):
    assert clip_name(name) == clip and clip_name(clip) == clip


def test_crops_are_named_in_hundredths_of_a_second():
    crop = Crop.parse("audio/cafe_restaurant_01-002500-003160.wav")
    assert crop == Crop("cafe_restaurant_01", 25.0, 31.6) and crop.name == "cafe_restaurant_01-002500-003160"
    assert crop.duration_s == pytest.approx(6.6)
    assert Crop.parse("a-b-000000-1000000") == Crop("a-b", 0.0, 10000.0)
    assert Crop("city_center_07", 232, 241.95192743764173).name == "city_center_07-023200-024195"  # cut, not rounded


def test_every_name_comes_back():
    names = [f"r-{n:06d}-{n + 1000:06d}" for n in range(0, 30000, 7)]  # 0.29 · 100 is less than 29
    assert [Crop.parse(name).name for name in names] == names


@pytest.mark.parametrize("name", ["cafe_01.wav", "a-0-10", "a-001000-000500", "a-000500-000500", "-000000-001000"])
def test_other_names_are_no_crops(name):
    with pytest.raises(DataError, match=f"^{name}: not the name of a crop, expected RECORDING-START-END"):
        Crop.parse(name)


# ---------------------------------------------------------------- label files


@pytest.mark.parametrize("name", ["cafe_01.txt", "soft_labels_cafe_01.txt", "cafe_01_soft_labels.txt"])
def test_label_files_are_named_after_their_recording(name):
    assert recording_of_labels(f"development_annotation/{name}") == "cafe_01"


def test_labels_of_a_recording_have_no_header(tmp_path):
    path = tmp_path / "cafe_01_soft_labels.txt"
    path.write_bytes(b"0.0\t1.0\tfootsteps\t0.12977944582818704\r\n1.0\t2.0\tcutlery and dishes\t\r\n")
    rows = read_recording_labels(path)
    assert list(rows.columns) == list(SOFT_COLUMNS)
    assert rows.iloc[0].tolist() == ["cafe_01", "0.0", "1.0", "footsteps", "0.12977944582818704"]
    assert rows.iloc[1].tolist() == ["cafe_01", "1.0", "2.0", "cutlery and dishes", ""]
    path.write_text("0\t1\tfootsteps\n")
    with pytest.raises(DataError, match="3 columns, expected 4 without a header line: onset, offset, event_label"):
        read_recording_labels(path)


# ---------------------------------------------------------------- rows


def test_rows_are_used_left_out_or_refused():
    rows = [
        ("d/a.wav", "0.1", "2", "Dog", "0.3"), ("a.wav", "2", "2", "Dog", "0.3"), ("a.wav", "", "3", "Dog", "0.3"),
        ("a.wav", "1", "3", "", "0.3"), ("a.wav", "1", "3", "Dog", ""), ("b.wav", "", "NaN", "nan", ""),
        ("a.wav", "1", "3", "Cat", "1"),
    ]  # fmt: skip
    used, notes, counts = event_rows(table(*rows, columns=SOFT_COLUMNS), "t.tsv")
    assert list(used.itertuples(index=False, name=None)) == [("a", 0.1, 2, "Dog", 0.3), ("a", 1, 3, "Cat", 1)]
    assert counts == {"empty_rows": 1, "dropped_rows": 4}
    assert notes[1] == "4 rows left out (first: row 2 (a.wav, Dog)): offset not after onset, or a value is missing."
    numbers = pd.DataFrame({"filename": ["a"], "onset": [0.5], "offset": [1], "event_label": ["Dog"]})
    assert event_rows(numbers, "t.tsv")[1:] == ([], {"empty_rows": 0, "dropped_rows": 0})


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (("b", "-0.1", "1", "Dog", "1"), "onset '-0.1' must be a number of seconds, not below 0"),
        (("b", "0", "inf", "Dog", "1"), "offset 'inf' must be a number"),
        (("b", "0", "1 s", "Dog", "1"), "offset '1 s' must be a number"),
        (("b", "0", "1", "Dog", "1.1"), "confidence '1.1' is not within 0…1"),
        (("b", "0", "1", "Dog", "sure"), "confidence 'sure' is not within 0…1"),
    ],
)
def test_rows_with_impossible_values_are_named(row, sentence):
    with pytest.raises(DataError, match=rf"^t.tsv: row 2 \(b, Dog\): {sentence}"):
        event_rows(table(("a", "0", "1", "Dog", "1"), row, columns=SOFT_COLUMNS), "t.tsv")


def test_times_are_read_to_the_last_bit():
    times = [repr(float(t)) for t in np.random.default_rng(0).random(500)]
    used, *_ = event_rows(table(*(("a", "0", time, "Dog") for time in times)), "t.tsv")
    assert used.offset.tolist() == [float(time) for time in times]


# ---------------------------------------------------------------- events among themselves


def test_events_that_overlap_or_touch_are_merged():
    events = table(
        ("a", 4, 5, "Dog"), ("a", 0, 3, "Dog"), ("a", 1, 2, "Dog"), ("a", 3, 3.5, "Dog"), ("a", 2, 4, "Cat"),
        ("b", 2, 4, "Dog"),
    )  # fmt: skip
    assert list(merge_events(events).itertuples(index=False, name=None)) == [
        ("a", 2, 4, "Cat"), ("a", 0, 3.5, "Dog"), ("a", 4, 5, "Dog"), ("b", 2, 4, "Dog"),
    ]  # fmt: skip
    assert list(overlapping(events).onset) == [1]  # touching is no overlap
    assert list(overlapping(events).index) == [2]


def test_short_event_inside_a_long_one_hides_no_later_overlap():
    events = table(("a", 0, 9, "Dog"), ("a", 1, 2, "Dog"), ("a", 5, 9.5, "Dog"))
    assert len(overlapping(events)) == 2
    assert merge_events(events)[["onset", "offset"]].to_numpy().tolist() == [[0, 9.5]]


def test_further_columns_keep_the_value_of_the_earliest():
    events = table(("a", 1, 3, "Dog", 0.9), ("a", 0, 2, "Dog", np.nan), ("a", 5, 6, "Dog", 0.4), columns=SOFT_COLUMNS)
    merged = merge_events(events)
    assert merged.offset.tolist() == [3, 6] and np.isnan(merged.confidence[0]) and merged.confidence[1] == 0.4


def test_merging_nothing():
    nothing = table().astype({"onset": float, "offset": float})
    assert list(merge_events(nothing).columns) == list(EVENT_COLUMNS) and merge_events(nothing).empty
    assert overlapping(nothing).empty


def test_merging_is_the_union_of_the_times():
    rng = np.random.default_rng(0)
    onsets, grid = rng.integers(0, 300, 200), np.arange(400)
    events = table(*((f"c{n % 3}", on, on + rng.integers(1, 9), "xy"[n % 2]) for n, on in enumerate(onsets)))
    merged = merge_events(events)

    def covered(rows):
        return {key: ((own.onset.values[:, None] <= grid) & (grid < own.offset.values[:, None])).any(0).tolist()
                for key, own in rows.groupby(["filename", "event_label"])}  # fmt: skip

    assert covered(merged) == covered(events) and len(merged) < len(events)
    assert overlapping(merged).empty and merge_events(merged).equals(merged)
