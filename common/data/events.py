"""Tables of sound events: their columns, the names of clips and of crops, and what events of one class do together.

Flow: label file → **table of events** → targets, ground truth.

A table of events has the columns filename, onset, offset (s, from the clip's start) and event_label; soft labels also
have confidence (0 to 1).
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.manifest import DataError, read_table

EVENT_COLUMNS = ("filename", "onset", "offset", "event_label")
SOFT_COLUMNS = (*EVENT_COLUMNS, "confidence")
AUDIO_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus")
SCORE_ENDING = ".tsv"
CROP_NAME = re.compile(r"(?P<recording>.+)-(?P<onset>\d{6,})-(?P<offset>\d{6,})")
BLANK = ("", "nan", "none")
LABEL_FILE = "soft_labels"  # label files are called RECORDING.txt, or have this before or behind the name


# ---------------------------------------------------------------- names


def clip_name(filename: str) -> str:
    """Return a file name without folder and without the ending of an audio or score file.

    audio/a.wav, a.tsv and a.wav.tsv are the clip a, but Y12_30.000_40.000 stays as it is.
    """
    name = filename.rpartition("/")[2]
    stem, ending = os.path.splitext(name)
    if ending.lower() == SCORE_ENDING:
        name, (stem, ending) = stem, os.path.splitext(stem)
    return stem if ending.lower() in AUDIO_ENDINGS else name


@dataclass(frozen=True)
class Crop:
    """Where a crop lies: recording, onset and offset in seconds of it."""

    recording: str
    onset_s: float
    offset_s: float

    @classmethod
    def parse(cls, name: str) -> "Crop":
        """Read the name of a crop, with or without ending.

        Raises:
            DataError: the name is not that of a crop.
        """
        match = CROP_NAME.fullmatch(clip_name(name))
        if match is None or int(match["offset"]) <= int(match["onset"]):
            raise DataError(
                f"{name}: not the name of a crop, expected RECORDING-START-END with start and end in hundredths of a "
                "second, such as cafe_restaurant_00-000100-001100.wav."
            )
        return cls(match["recording"], int(match["onset"]) / 100, int(match["offset"]) / 100)

    @property
    def name(self) -> str:
        """{recording}-{onset}-{offset}, without ending; times are cut to hundredths of a second, six digits or more."""
        # 0.29 · 100 is a little below 29: what is less than a microsecond short of a hundredth belongs to it.
        return "-".join([self.recording, *(f"{int(round(s * 100, 4)):06d}" for s in (self.onset_s, self.offset_s))])

    @property
    def duration_s(self) -> float:
        return self.offset_s - self.onset_s


# ---------------------------------------------------------------- label files


def recording_of_labels(path: str | Path) -> str:
    """Return the recording of a label file: RECORDING.txt, soft_labels_RECORDING.txt or RECORDING_soft_labels.txt."""
    return clip_name(Path(path).stem).removeprefix(f"{LABEL_FILE}_").removesuffix(f"_{LABEL_FILE}")


def read_recording_labels(path: str | Path) -> pd.DataFrame:
    """Return the soft labels of one long recording, as strings with the columns SOFT_COLUMNS; cells may be empty.

    The file has no header: onset, offset, label, confidence, separated by tabs. `filename` is the recording.

    Raises:
        DataError: a table that cannot be used.
    """
    columns = SOFT_COLUMNS[1:]
    rows = read_table(path, columns, may_be_empty=columns, unique=False, header=False)
    rows.insert(0, "filename", recording_of_labels(path))
    return rows


# ---------------------------------------------------------------- rows


def event_rows(table: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[str], dict[str, int]]:
    """Return the usable rows of a table of events, and what was left out.

    - A row with a file name alone says that the clip has no event.
    - A row with offset ≤ onset, or that misses a value, is left out and counted.

    Args:
        table: cells as text or numbers. where: what the table is called in a sentence.
    Returns:
        rows with the name of the clip as filename, and numbers; sentences; counts empty_rows and dropped_rows.

    Raises:
        DataError: a time that is no number or negative, a confidence outside 0…1; with its row.
    """
    values = list(table.columns[1:])
    text = table[values].astype(str)
    blank = text.apply(lambda column: column.str.lower().isin(BLANK))
    columns = [name for name in values if name != "event_label"]
    numbers = text[columns].mask(blank[columns], "nan").apply(_numbers)
    for name, column in numbers.items():
        in_range = column.between(0, 1) if name == "confidence" else column.between(0, np.inf, inclusive="left")
        if (broken := ~in_range & ~blank[name]).any():
            place = int(np.argmax(broken))
            ask = "is not within 0…1" if name == "confidence" else "must be a number of seconds, not below 0"
            raise DataError(f"{where}: {_row(table, place)}: {name} {text[name].iloc[place]!r} {ask}.")
    empty = blank.all(axis=1)
    dropped = ~empty & (blank.any(axis=1) | ~(numbers.offset > numbers.onset))
    notes = []
    if empty.any():
        notes.append(f"{empty.sum()} rows without an event: their clips hold none, unless another row names one.")
    if dropped.any():
        first = _row(table, int(np.argmax(dropped)))
        notes.append(f"{dropped.sum()} rows left out (first: {first}): offset not after onset, or a value is missing.")
    clips = table.filename.map({name: clip_name(name) for name in table.filename.unique()})
    rows = table.assign(filename=clips, **numbers)[~empty & ~dropped]
    return rows, notes, {"empty_rows": int(empty.sum()), "dropped_rows": int(dropped.sum())}


def _row(table: pd.DataFrame, place: int) -> str:
    row = table.iloc[place]
    return f"row {place + 1} ({row.filename}, {row.event_label})"


def _numbers(column: pd.Series) -> pd.Series:
    """Return text as float64, NaN where it is no number."""
    known = pd.to_numeric(column, errors="coerce").notna()
    return column.where(known, "nan").astype(np.float64)  # to_numeric itself is off by the last bit at times


# ---------------------------------------------------------------- events among themselves


def merge_events(events: pd.DataFrame) -> pd.DataFrame:
    """Return events with those of one class in one clip that overlap or touch made one; by clip, class and onset.

    They touch where one starts no later than all before it have ended. Further columns keep the value of the earliest.
    """
    rows, before = _after_others(events)
    first = np.flatnonzero(~(rows.onset <= before))  # true where nothing goes before
    ends = np.maximum.reduceat(rows.offset.to_numpy(), first) if len(first) else rows.offset
    return rows.iloc[first].assign(offset=ends).reset_index(drop=True)


def overlapping(events: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that start before an earlier event of their class in their clip has ended."""
    rows, before = _after_others(events)
    return events.loc[rows.index[rows.onset < before]]


def _after_others(events: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Return the rows by clip, class and onset, and when all earlier ones of their class in their clip have ended."""
    rows = events.sort_values(["filename", "event_label", "onset"], kind="stable")
    keys = [rows.filename, rows.event_label]
    return rows, rows.offset.groupby(keys).cummax().groupby(keys).shift()
