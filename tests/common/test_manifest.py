"""A table that cannot be used is refused in one sentence that says what mends it."""

import pandas as pd
import pytest

from common.data.manifest import DataError, Report, manifest_hash, read_table

HEADER = "filename\tscene_label\n"


def table_from(tmp_path, content: str | bytes, separator="\t") -> pd.DataFrame:
    path = tmp_path / "list.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, ("filename", "scene_label"), separator)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("filename,scene_label\na.wav,bus\n", "separated by commas, expected tabs; write it with tabs"),
        ("filename;scene_label\na.wav;bus\n", "separated by semicolons, expected tabs"),
        ("", "is empty; get it again"),
        ("\n\n", "is empty; get it again"),
        (HEADER, "has a header but no rows"),
        ("filename\tlabel\na.wav\tbus\n", r"'scene_label' is missing, found \['filename', 'label'\]; the first line"),
        ("a.wav\tbus\nb.wav\tbus\n", "'filename' is missing.*the first line must name the columns filename, scene"),
        (HEADER + "a.wav\tbus\nb.wav\n", r"empty cell in the row \['b.wav', ''\]"),
        (HEADER + "a.wav\tbus\nb.wav\t \n", r"empty cell in the row \['b.wav', ''\]"),
        (HEADER + "a.wav\tbus\na.wav\ttram\n", "'a.wav' stands in two rows"),
        (HEADER + "a.wav\tbus\nb.wav\tbus\textra\n", "line 3"),
        (HEADER + "a.wav\tbus\textra\n", "rows have more cells than the header"),  # pandas alone shifts the columns
        (b"\xff\xfef\x00i\x00", "cannot be read as a table"),
        (b"PK\x03\x04\x00\x00zip\x00\n", "'filename' is missing"),
    ],
)
def test_unusable_table(tmp_path, content, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        table_from(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'list.csv'}: ")
    assert "\n" not in str(caught.value)


def test_missing_table(tmp_path):
    with pytest.raises(DataError, match="no such table; check the data folder"):
        read_table(tmp_path / "list.csv", ("filename",))


@pytest.mark.parametrize(
    "content",
    [
        HEADER + "a.wav\tbus\nNA\tnull\n",  # names that pandas likes to read as "nothing"
        "\ufeff" + HEADER + "a.wav\tbus\nNA\tnull\n",  # saved by a spreadsheet
        HEADER.replace("\n", "\r\n") + "a.wav\tbus\r\nNA\tnull\r\n",
        HEADER + "a.wav\tbus \n\n NA\tnull\n\n",  # a space at the end would make another class
        "filename \tscene_label\na.wav\tbus\nNA\tnull\n",
    ],
)
def test_harmless_differences_read_the_same(tmp_path, content):
    table = table_from(tmp_path, content)
    assert table.to_dict("list") == {"filename": ["a.wav", "NA"], "scene_label": ["bus", "null"]}


def test_more_columns_are_kept(tmp_path):
    table = table_from(tmp_path, "scene_label,filename,city\nbus,a.wav,\n", separator=",")
    assert table.to_dict("list") == {"scene_label": ["bus"], "filename": ["a.wav"], "city": [""]}


def test_cells_that_may_be_empty_and_names_that_repeat(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(HEADER + "a.wav\tbus\na.wav\t\n")
    table = read_table(path, ("filename", "scene_label"), may_be_empty=("scene_label",), unique=False)
    assert table.scene_label.tolist() == ["bus", ""]
    with pytest.raises(DataError, match="stands in two rows"):
        read_table(path, ("filename", "scene_label"), may_be_empty=("scene_label",))
    path.write_text(HEADER + "\tbus\n")
    with pytest.raises(DataError, match="empty cell"):
        read_table(path, ("filename", "scene_label"), may_be_empty=("scene_label",))


def test_table_without_header(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("0.0\tbus\n1.0\ttram\n")
    table = read_table(path, ("onset", "scene_label"), header=False)
    assert table.to_dict("list") == {"onset": ["0.0", "1.0"], "scene_label": ["bus", "tram"]}
    with pytest.raises(DataError, match=r"2 columns, expected 3 without a header line: onset, offset, scene_label\."):
        read_table(path, ("onset", "offset", "scene_label"), header=False)
    path.write_text("0.0,bus\n")
    with pytest.raises(DataError, match="separated by commas, expected tabs"):
        read_table(path, ("onset", "scene_label"), header=False)


def test_hash_changes_with_any_cell_and_order():
    rows = pd.DataFrame({"filename": ["a", "b"], "scene_label": ["bus", "tram"]})
    assert manifest_hash(rows) == manifest_hash(rows.set_axis([5, 6]))
    others = (rows.iloc[::-1], rows.iloc[:1], rows.replace("tram", "bus"), rows[["scene_label", "filename"]])
    assert len({manifest_hash(rows), *map(manifest_hash, others)}) == 5


def test_notes_are_shown_and_leave_a_data_set_complete():
    report = Report(notes=["two odd rows"])
    assert report.complete and report.text().endswith("two odd rows")


def test_report_shows_a_few_names_and_all_counts():
    report = Report(missing=[f"m{i}" for i in range(9)], broken={"b": "b: cut off"}, extra=["e"],
                    counts={"split25: 3 clips": pd.DataFrame({"a": [3]}, index=["bus"])},
                    differences=["one less"])  # fmt: skip
    text = report.text(n_shown=2)
    assert "missing: 9 files\n  m0\n  m1\n" in text and "m2" not in text
    assert "broken: 1 files\n  b: cut off" in text and "extra: 1 files\n  e" in text
    assert "split25: 3 clips" in text and text.endswith("one less")


@pytest.mark.parametrize(
    ("report", "complete"),
    [(Report(), True), (Report(extra=["e"]), True), (Report(missing=["m"]), False), (Report(broken={"b": "x"}), False),
     (Report(differences=["d"]), False)],
)  # fmt: skip
def test_complete_means_every_listed_clip(report, complete):
    assert report.complete is complete
