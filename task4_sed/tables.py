"""Read label tables: strong (with or without confidence), weak, and lists of clips.

Flow: table on disk → **clips, events, notes** → manifest (data.py).

All are separated by tabs; the columns are filename, onset, offset, event_label (and confidence) for strong labels,
filename, event_labels (joined by commas) for weak ones, filename for lists.
"""
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from common.data.events import AUDIO_ENDINGS, EVENT_COLUMNS, SOFT_COLUMNS, clip_name, overlapping
from common.data.manifest import DataError, read_table
from task4_sed.labels import class_indices, require_known

LATE_S = 1e-3  # ends that late after the clip's end are rounding


@dataclass
class LabelTable:
    """What a label table says.

    Attributes:
        filenames: clips in the order of the table, each once, those without events too.
        events: filename, onset, offset (s; NaN for weak labels), event_label, confidence (1 where labels are hard).
        notes: sentences on rows that were left out or are odd.
    """

    filenames: list[str]
    events: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def read_events(path: str | Path, class_names: Sequence[str], soft: bool = False,
                allow_unknown: bool = False) -> LabelTable:
    """Read strong labels; a row with a file name alone is a clip without events.

    Rows that miss a value, and rows whose offset is not after their onset, are left out and noted. Events that start
    before 0 or end after the clip are kept: targets are clipped to the clip.

    Args:
        soft: whether the table has a column confidence (0 to 1).
        allow_unknown: leave out rows with labels that are not in `class_names`, instead of an error.
    Raises:
        DataError: a table that cannot be used.
    """
    path, columns = Path(path), SOFT_COLUMNS if soft else EVENT_COLUMNS
    table = read_table(path, columns, may_be_empty=columns[1:], unique=False)
    return label_table(table, class_names, str(path), allow_unknown)


def label_table(table: pd.DataFrame, class_names: Sequence[str], where: str, allow_unknown: bool = False) -> LabelTable:
    """Return the LabelTable of rows read as strings; arguments and errors as for `read_events`."""
    events = table[["filename"]].copy()
    for column in ("onset", "offset", "confidence"):
        events[column] = _numbers(table, column, where) if column in table else 1.0
    events["event_label"] = table.event_label.mask(table.event_label.str.lower() == "nan", "")
    no_times = events[["onset", "offset"]].isna()
    empty = no_times.all(axis=1) & (events.event_label == "")
    partly = ~empty & (no_times.any(axis=1) | (events.event_label == "") | events.confidence.isna())
    notes = []
    if partly.any():
        notes.append(f"{where}: {partly.sum()} rows left out that miss a time, label or confidence, the first of "
                     f"{table.filename[partly].iloc[0]}.")
    events = events[~empty & ~partly]
    if not events.confidence.between(0, 1).all():
        row = events[~events.confidence.between(0, 1)].iloc[0]
        raise DataError(f"{where}: {row.filename}: confidence {row.confidence:g}, expected 0 to 1; mend the row.")
    known = class_indices(events.event_label, class_names) >= 0
    if not allow_unknown:
        require_known(events.event_label, events.filename, class_names, where)
    elif not known.all():
        notes.append(f"{where}: {(~known).sum()} rows left out with unknown labels: "
                     f"{', '.join(sorted(set(events.event_label[~known])))}.")
    events = events[known]
    backward = events.offset <= events.onset
    if backward.any():
        row = events[backward].iloc[0]
        notes.append(f"{where}: {backward.sum()} rows left out whose offset is not after their onset, the first of "
                     f"{row.filename}: {row.onset:g} to {row.offset:g} s.")
    events = events[~backward].reset_index(drop=True)[list(SOFT_COLUMNS)]
    if (events.onset < 0).any():
        notes.append(f"{where}: {(events.onset < 0).sum()} events start before 0 s; labels are clipped to the clip.")
    if "confidence" not in table and len(twice := overlapping(events)):
        notes.append(f"{where}: {len(twice)} events overlap another of their class in the same clip, the first in "
                     f"{twice.filename.iloc[0]}.")
    return LabelTable(list(dict.fromkeys(table.filename)), events, notes)


def _numbers(table: pd.DataFrame, column: str, where: str) -> pd.Series:
    """Return a column as float64, NaN where it is empty or says so."""
    text = table[column].mask(table[column] == "", "nan")
    wrong = pd.to_numeric(text, errors="coerce").isna() & (text.str.lower() != "nan")
    numbers = text.mask(wrong, "nan").astype(float)  # to_numeric alone is off by the last bit at times
    wrong |= np.isinf(numbers)
    if wrong.any():
        raise DataError(f"{where}: {table.filename[wrong].iloc[0]}: {column} {table[column][wrong].iloc[0]!r} is not a "
                        "number; mend the row.")
    return numbers


def read_weak(path: str | Path, class_names: Sequence[str], allow_unknown: bool = False) -> LabelTable:
    """Read weak labels; a clip whose list is empty has no events. Arguments and errors as for `read_events`."""
    table = read_table(path, ("filename", "event_labels"), may_be_empty=("event_labels",))
    events = table.assign(event_label=table.event_labels.str.split(",")).explode("event_label", ignore_index=True)
    events["event_label"] = events.event_label.str.strip()
    events = events[events.event_label != ""]
    notes, known = [], class_indices(events.event_label, class_names) >= 0
    if not allow_unknown:
        require_known(events.event_label, events.filename, class_names, str(path))
    elif not known.all():
        notes.append(f"{path}: {(~known).sum()} labels left out that are unknown: "
                     f"{', '.join(sorted(set(events.event_label[~known])))}.")
    events = events[known].drop_duplicates(["filename", "event_label"], ignore_index=True)
    events = events[["filename", "event_label"]].assign(onset=np.nan, offset=np.nan, confidence=1.0)
    return LabelTable(list(table.filename), events[list(SOFT_COLUMNS)], notes)


def read_list(path: str | Path) -> list[str]:
    """Return the column filename of a list of clips."""
    return list(read_table(path, ("filename",)).filename)


def read_exclusions(path: str | Path) -> set[str]:
    """Return the names of the clips in a list of clips to leave out; it may be empty, and rows may stand twice."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    if lines and lines[0].strip() == "filename" and not any(map(str.strip, lines[1:])):
        return set()
    return set(map(clip_name, read_table(path, ("filename",), unique=False).filename))


def past_the_end(events: pd.DataFrame, durations: dict[str, float]) -> pd.DataFrame:
    """Return the events that end after their clip, with how much in the column late_s; `durations` by clip name."""
    late_s = events.offset - events.filename.map(clip_name).map(durations)
    return events.assign(late_s=late_s)[late_s > LATE_S]


def header_problems(root: Path, files: Sequence[str], n_threads: int = 4) -> dict[str, str | None]:
    """Return for each audio file (relative to `root`) a sentence if its header cannot be used, otherwise None.

    Samples are not decoded: 10,000 files take seconds, but one that is cut off may pass.
    """

    def problem(file: str) -> str | None:
        try:
            n_frames = soundfile.info(root / file).frames
        except (soundfile.LibsndfileError, RuntimeError) as error:
            reason = str(error).split(": ", 1)[-1].rstrip(".")
            return f"{root / file}: cannot be opened ({reason}); the file is damaged, get it again."
        return None if n_frames else f"{root / file}: holds no samples; get the file again."

    with ThreadPoolExecutor(n_threads) as pool:
        return dict(zip(files, pool.map(problem, files)))


def audio_files(folder: Path) -> dict[str, str]:
    """Return clip name → file name of the audio files in a folder, by name; none if there is no such folder."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return {clip_name(name): name for name in names
            if name.lower().endswith(AUDIO_ENDINGS) and not name.startswith(".")}
