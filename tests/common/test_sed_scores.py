"""Score folders and ground truth: what is written is read, foreign files are read or named with their fault."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from sed_scores_eval.base_modules.io import read_sed_scores

from common.data.manifest import DataError
from common.metrics import sed_scores
from common.metrics.sed_scores import (
    FrameScores,
    boundaries,
    ground_truth,
    read_durations,
    read_ground_truth,
    read_score_folder,
    write_score_folder,
)

BORDERS = np.array([0, 0.064, 0.128, 0.192])
GOOD = "onset\toffset\tdog\tcat\n0\t0.5\t0.1\t0.9\n0.5\t1\t0.2\t0.8\n"


def random_scores(clips=("b", "a", "Y1_30.000_40.000"), dtype=np.float32, seed=0):
    values = np.random.default_rng(seed).random((len(clips), 3, 2)).astype(dtype)
    return FrameScores(clips, ["dog", "cutlery and dishes"], BORDERS, values)


# ---------------------------------------------------------------- FrameScores


def test_tables_are_those_of_sed_scores_eval_and_back():
    scores = random_scores()
    table = scores.tables()["a"]
    assert list(table.columns) == ["onset", "offset", "dog", "cutlery and dishes"]
    np.testing.assert_array_equal(boundaries(table), BORDERS)
    np.testing.assert_array_equal(table["dog"], scores.values[1, :, 0].astype(float))
    back = FrameScores.from_tables(scores.tables())
    assert list(back.clips) == list(scores.clips) and len(back) == 3
    np.testing.assert_array_equal(back.values, scores.values)


@pytest.mark.parametrize(
    "clips, classes, borders, values, message",
    [
        (["a", "a"], ["x"], [0, 1], np.zeros((2, 1, 1)), "the clip 'a' stands twice"),
        (["a"], ["x", "x"], [0, 1], np.zeros((1, 1, 2)), "the class 'x' stands twice"),
        (["a"], ["x"], [0, 1, 1], np.zeros((1, 2, 1)), "frame 1 goes from 1 to 1 s, but borders must increase"),
        (["a"], ["x"], [-1, 1], np.zeros((1, 1, 1)), "a border is negative"),
        (["a"], ["x"], [0, 1], np.full((1, 1, 1), np.nan), r"scores of 1 of 1 clips are not finite \(first: a\)"),
        (["a"], ["x"], [0, 1], np.zeros((1, 2, 1)), r"need \(1, 1, 1\)"),
    ],
)
def test_scores_that_cannot_be(clips, classes, borders, values, message):
    with pytest.raises(DataError, match=message):
        FrameScores(clips, classes, borders, values)


def test_clips_of_other_grids_or_classes_are_not_stacked():
    tables = random_scores().tables()
    with pytest.raises(DataError, match="a: 2 frames up to 0.128 s, but the first clip has 3 up to 0.192 s"):
        FrameScores.from_tables(tables | {"a": tables["a"].iloc[:2]})
    with pytest.raises(DataError, match=r"a: classes \['dog'\]"):
        FrameScores.from_tables(tables | {"a": tables["a"][["onset", "offset", "dog"]]})


# ---------------------------------------------------------------- folders


def test_folder_keeps_single_precision_and_sed_scores_eval_reads_it(tmp_path):
    scores = random_scores()
    write_score_folder(tmp_path / "new/scores", scores)
    tables = read_score_folder(tmp_path / "new/scores")
    assert list(tables) == ["Y1_30.000_40.000", "a", "b"]
    for clip, table in tables.items():
        written = scores.values[scores.clips.index(clip)]
        np.testing.assert_array_equal(table.to_numpy()[:, 2:].astype(np.float32), written)
    theirs = read_sed_scores(tmp_path / "new/scores")
    pd.testing.assert_frame_equal(theirs["a"], tables["a"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scores"]


def test_folder_is_replaced_as_a_whole(tmp_path):
    write_score_folder(tmp_path / "scores", random_scores())
    write_score_folder(tmp_path / "scores", random_scores(clips=("c",), seed=1))
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["c.tsv"]
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_a_write_that_fails_leaves_the_old_scores(tmp_path, monkeypatch):
    write_score_folder(tmp_path / "scores", random_scores())
    before = (tmp_path / "scores/a.tsv").read_text()
    write, calls = sed_scores._table_text, []

    def fail_at_second(table, digits):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("disk full")
        return write(table, digits)

    monkeypatch.setattr(sed_scores, "_table_text", fail_at_second)
    with pytest.raises(OSError, match="disk full"):
        write_score_folder(tmp_path / "scores", random_scores(seed=1))
    assert (tmp_path / "scores/a.tsv").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_a_killed_write_is_no_obstacle_for_a_process_of_the_same_number(tmp_path):
    stale = tmp_path / f".scores.{os.getpid()}.tmp"
    stale.mkdir()
    (stale / "half.tsv").write_text("onset")
    write_score_folder(tmp_path / "scores", random_scores(clips=("c",)))
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["c.tsv"]
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_folders_of_something_else_and_odd_names_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds notes.txt, which is no file of scores"):
        write_score_folder(tmp_path, random_scores())
    for name in ("a/b", ".hidden", ""):
        with pytest.raises(DataError, match="cannot be the name of a file"):
            write_score_folder(tmp_path / "new", random_scores(clips=(name,)))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def write_files(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return folder


def test_foreign_folder_with_other_grids_orders_and_further_classes(tmp_path):
    other = "onset\toffset\tcat\tdog\n0.1\t0.3\t0.5\t0.6\n0.3000001\t1.7\t0\t1\n"
    write_files(tmp_path, a=GOOD, b=other)
    (tmp_path / "readme.md").write_text("of the system")
    tables = read_score_folder(tmp_path)
    assert list(tables["b"].columns) == ["onset", "offset", "dog", "cat"]
    np.testing.assert_allclose(tables["b"].to_numpy(), [[0.1, 0.3, 0.6, 0.5], [0.3, 1.7, 1, 0]], atol=1e-6)
    assert (tables["b"]["offset"][:-1].to_numpy() == tables["b"]["onset"][1:].to_numpy()).all()
    assert list(read_score_folder(tmp_path, ["cat"])["a"].columns) == ["onset", "offset", "cat"]


FURTHER = "onset\toffset\tcat\tbird\tdog\n0\t0.5\t0.9\t0.3\t0.1\n0.5\t1\t0.8\t0.3\t0.2\n"


def test_classes_that_only_some_files_have_are_left_out_with_a_sentence(tmp_path):
    write_files(tmp_path, a=GOOD, b=FURTHER, c=GOOD, d=GOOD.replace("\tcat", "\towl"))
    notes = []
    tables = read_score_folder(tmp_path, notes=notes)
    assert {tuple(table.columns) for table in tables.values()} == {("onset", "offset", "dog")}
    sentence = "3 classes are not in all files of scores, and are left out: {}."
    assert notes == [sentence.format("cat (not in d.tsv), bird (only in b.tsv), owl (only in d.tsv)")]
    chosen = read_score_folder(tmp_path, ["bird", "dog"], required=False)
    assert {tuple(table.columns[2:]) for table in chosen.values()} == {("dog",)}
    with pytest.raises(DataError, match="d.tsv: no column 'cat'; columns are dog, owl"):
        read_score_folder(tmp_path, ["dog", "cat"])
    with pytest.raises(DataError, match=r"a.tsv: no column 'bird'; .*\(2 more of 4 files"):
        read_score_folder(tmp_path, ["bird"])
    with pytest.raises(DataError, match="the class 'dog' stands twice among those to score"):
        read_score_folder(tmp_path, ["dog", "dog"])
    (tmp_path / "d.tsv").write_text(GOOD.replace("dog\tcat", "owl\temu"))
    with pytest.raises(DataError, match="the 4 files have no class in common"):
        read_score_folder(tmp_path)
    notes.clear()
    for name in "bd":
        (tmp_path / f"{name}.tsv").unlink()
    assert len(read_score_folder(tmp_path, notes=notes)) == 2 and notes == []


def test_single_precision_takes_half_of_the_memory(tmp_path):
    scores = random_scores()
    write_score_folder(tmp_path / "scores", scores)
    table = read_score_folder(tmp_path / "scores", dtype=np.float32)["a"]
    assert table["onset"].dtype == np.float64 and table["dog"].dtype == np.float32
    np.testing.assert_array_equal(table["dog"], scores.values[1, :, 0])


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "cannot be read as a table"),
        ("onset\toffset\tdog\tcat\n", "has a header but no frame"),
        (GOOD.replace("\t", ","), "no column 'onset'; columns must be separated by tabs"),
        (GOOD.replace("\tdog\tcat", "").replace("\t0.1\t0.9", ""), "has no column of scores"),
        (GOOD.replace("\n0", "\n0\t0"), "rows have more cells than the header has columns"),
        (GOOD.replace("cat", "dog"), "two columns are called 'dog'"),
        (GOOD.replace("0.2", ""), "a value of frame 1 is missing or not finite"),
        (GOOD.replace("0.2", "inf"), "a value of frame 1 is missing or not finite"),
        (GOOD.replace("0.2", "high"), "not a number"),
        (GOOD.replace("0.5\t1\t", "0.6\t1\t"), "a gap between frame 0, up to 0.5 s, and the next"),
        (GOOD.replace("0.5\t1\t", "0.4\t1\t"), "an overlap between frame 0, up to 0.5 s, and the next"),
        (GOOD.replace("0.5\t1\t", "0.5\t0.5\t"), "frame 1 goes from 0.5 to 0.5 s, but borders must increase"),
    ],
)
def test_each_fault_of_a_file_is_one_sentence(tmp_path, text, message):
    write_files(tmp_path, a=GOOD, b=text, c=text)
    with pytest.raises(DataError, match=message) as error:
        read_score_folder(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'b.tsv'}: ") and "1 more of 3 files" in str(error.value)
    assert "\n" not in str(error.value)


def test_folder_without_scores_and_two_files_for_one_clip(tmp_path):
    with pytest.raises(DataError, match="no such folder of scores"):
        read_score_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no score file"):
        read_score_folder(tmp_path)
    write_files(tmp_path, **{"a": GOOD, "a.wav": GOOD})
    with pytest.raises(DataError, match="a second file for the clip 'a'"):
        read_score_folder(tmp_path)


# ---------------------------------------------------------------- ground truth and durations


def table_file(tmp_path, *rows, header="filename\tonset\toffset\tevent_label"):
    path = tmp_path / "table.tsv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_ground_truth_is_mended_and_says_so(tmp_path):
    rows = ["a.wav\t1\t2\tdog", "a.wav\t1.5\t3\tdog", "a.wav\t3\t4\tdog", "a.wav\t2\t5\tcat", "b.wav\t\t\t"]
    truth = read_ground_truth(table_file(tmp_path, *rows, "c.wav\t2\t2\tcat", "c.wav\t\t\tdog", "d.wav\tNaN\tNaN\tnan"))
    assert truth.events == {"a": [(1, 4, "dog"), (2, 5, "cat")], "b": [], "c": [], "d": []}
    assert truth.counts == {"empty_rows": 2, "dropped_rows": 2, "merged_events": 2}
    assert truth.notes == (
        "2 rows without an event: their clips hold none, unless another row names one.",
        "2 rows left out (first: row 6 (c.wav, cat)): offset not after onset, or a value is missing.",
        "2 events overlap or touch another of their class in the same clip: merged.",
    )
    assert truth.classes == ["cat", "dog"]


def test_ground_truth_of_a_table_with_numbers():
    table = pd.DataFrame({"filename": ["a.wav", "b.wav"], "onset": [0.5, np.nan], "offset": [1.0, np.nan]})
    truth = ground_truth(table.assign(event_label=["dog", np.nan]))
    assert truth.events == {"a": [(0.5, 1.0, "dog")], "b": []} and truth.counts["merged_events"] == 0


@pytest.mark.parametrize(
    "row, message",
    [
        ("a.wav\t-1\t2\tdog", r"row 2 \(a.wav, dog\): onset '-1' must be a number of seconds, not below 0"),
        ("a.wav\t0\tlater\tdog", r"row 2 \(a.wav, dog\): offset 'later' must be"),
        ("a.wav\t0\tinf\tdog", r"row 2 \(a.wav, dog\): offset 'inf' must be"),
    ],
)
def test_times_that_are_none(tmp_path, row, message):
    with pytest.raises(DataError, match=f"table.tsv: {message}"):
        read_ground_truth(table_file(tmp_path, "a.wav\t0\t1\tdog", row))


def test_ground_truth_without_rows_or_columns(tmp_path):
    with pytest.raises(DataError, match="has a header but no rows"):
        read_ground_truth(table_file(tmp_path))
    with pytest.raises(DataError, match="column 'onset' is missing"):
        read_ground_truth(table_file(tmp_path, "a.wav\tdog", header="filename\tevent_label"))


def test_durations_may_repeat_but_not_contradict(tmp_path):
    header = "filename\tduration"
    rows = ["a.wav\t10", "a.wav\t10.0", "Y1_30.000_40.000.wav\t9.5"]
    assert read_durations(table_file(tmp_path, *rows, header=header)) == {"a": 10.0, "Y1_30.000_40.000": 9.5}
    with pytest.raises(DataError, match="a.wav has two durations, 10 and 9 s"):
        read_durations(table_file(tmp_path, *rows, "a.wav\t9", header=header))
    for wrong in ("0", "-1", "long", "inf"):
        with pytest.raises(DataError, match=f"a.wav has the duration '{wrong}'"):
            read_durations(table_file(tmp_path, f"a.wav\t{wrong}", header=header))


def test_published_score_files_and_tables(shared):
    folder = shared / "data/sed_scores"
    tables = read_score_folder(folder / "dcase2023_task4a/baseline2_run1_scores")
    vector = np.load(shared / "parity/sed/csebbs.npz")
    spec = json.loads((shared / "parity/sed/csebbs.json").read_text())
    scores = FrameScores.from_tables({clip: tables[clip] for clip in spec["files"]})
    assert len(scores) == 20 and scores.classes == spec["classes"]
    np.testing.assert_allclose(scores.values, vector["scores"], atol=1e-15)
    np.testing.assert_array_equal(scores.boundaries_s[:-1], vector["onset"])
    truth = read_ground_truth(folder / "dcase2023_task4a/metadata/ground_truth.tsv")
    assert len(truth.events) == 692 and sum(map(len, truth.events.values())) == 2765
    other = read_ground_truth(folder / "psds_eval/examples__data__dcase2019t4_gt.csv")
    assert other.counts == {"empty_rows": 15, "dropped_rows": 0, "merged_events": 12}
    assert len(read_durations(folder / "psds_eval/examples__data__dcase2019t4_meta.csv")) == 1168
