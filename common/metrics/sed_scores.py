"""Frame scores of clips, the folder they are kept in, and the ground truth they are scored against.

Flow: network → frame scores → **score folder** (one file a clip) → metrics, ensembles, submission.

A score folder is what sed_scores_eval reads and writes: CLIP.tsv, separated by tabs, with the columns onset and
offset (s) of each frame and one column of scores per class. Systems of other people come in the same form, with
their own grid of frames, order of classes and further classes.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.manifest import DataError, read_table

AUDIO_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus")
EVENT_COLUMNS = ("filename", "onset", "offset", "event_label")
BLANK = ("", "nan", "none")
SAME_TIME_S = 1e-6  # sed_scores_eval rounds times to six decimals


@dataclass(frozen=True)
class FrameScores:
    """Scores of several clips on one grid of frames.

    Attributes:
        clips: names without ending, each once. classes: names, each once.
        boundaries_s: borders of the frames (N + 1,), s, increasing; the last is the end of the last frame.
        values: scores (clips, N, K), finite; the higher, the surer that the class is active.

    Raises:
        DataError: anything of the above that does not hold.
    """

    clips: Sequence[str]
    classes: Sequence[str]
    boundaries_s: np.ndarray
    values: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "boundaries_s", np.asarray(self.boundaries_s, dtype=np.float64))
        object.__setattr__(self, "values", np.asarray(self.values))
        shape = (len(self.clips), len(self.boundaries_s) - 1, len(self.classes))
        if self.values.shape != shape or shape[1] < 1:
            raise DataError(
                f"scores of shape {self.values.shape}, but {shape[0]} clips, {shape[1]} frames between the borders and "
                f"{shape[2]} classes need {shape}."
            )
        for what, names in (("clip", self.clips), ("class", self.classes)):
            if twice := _first_twice(names):
                raise DataError(f"the {what} {twice!r} stands twice among the scores; keep one of the two.")
        if problem := _grid_problem(self.boundaries_s):
            raise DataError(f"borders of frames: {problem}.")
        if not (finite := np.isfinite(self.values).all(axis=(1, 2))).all():
            raise DataError(
                f"scores of {(~finite).sum()} of {len(self.clips)} clips are not finite (first: "
                f"{self.clips[int(np.argmin(finite))]}): the network diverged, or overflowed half precision."
            )

    def __len__(self) -> int:
        return len(self.clips)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return clip → table in the form of sed_scores_eval."""
        grid = np.stack([self.boundaries_s[:-1], self.boundaries_s[1:]], axis=1)
        columns = ["onset", "offset", *self.classes]
        return {
            clip: pd.DataFrame(np.concatenate([grid, values], axis=1), columns=columns)
            for clip, values in zip(self.clips, self.values)
        }

    @classmethod
    def from_tables(cls, tables: Mapping[str, pd.DataFrame]) -> "FrameScores":
        """Return tables that share one grid and the same classes as one array.

        Raises:
            DataError: a clip has another grid or other classes than the first one.
        """
        if not tables:
            raise DataError("there are no scores.")
        first, *_ = tables.values()
        classes, borders = list(first.columns[2:]), boundaries(first)
        for clip, table in tables.items():
            if list(table.columns[2:]) != classes:
                raise DataError(f"{clip}: classes {list(table.columns[2:])}, but the first clip has {classes}.")
            own = boundaries(table)
            if own.shape != borders.shape or abs(own - borders).max() > SAME_TIME_S:
                raise DataError(
                    f"{clip}: {len(table)} frames up to {own[-1]:g} s, but the first clip has {len(first)} up to "
                    f"{borders[-1]:g} s; such clips can be scored, but not stacked to one array."
                )
        values = np.stack([table.to_numpy()[:, 2:] for table in tables.values()])
        return cls(list(tables), classes, borders, values)


def boundaries(table: pd.DataFrame) -> np.ndarray:
    """Return the borders of the frames (N + 1,) of a table that begins with onset and offset, s."""
    times = table.to_numpy()[:, :2]
    return np.append(times[:, 0], times[-1, 1])


# ---------------------------------------------------------------- score folders


def write_score_folder(folder: str | Path, scores: FrameScores | Mapping[str, pd.DataFrame], digits: int = 9) -> None:
    """Write one CLIP.tsv per clip; the folder appears when all are written.

    The files are written beside `folder` and moved to its place at the end, so that a kill leaves the old scores or
    the new ones, never some of both (between the two renames, for an instant, neither: the old ones are then at
    .NAME.old).

    Args:
        scores: scores, or clip → table. digits: significant digits of scores and times; 9 keep a float32 as it is.

    Raises:
        DataError: a clip whose name cannot be that of a file, or a folder that holds something else than scores.
    """
    folder = Path(folder)
    tables = scores.tables() if isinstance(scores, FrameScores) else scores
    if odd := [clip for clip in tables if not clip or Path(clip).name != clip or clip.startswith(".")]:
        raise DataError(f"the clip name {odd[0]!r} cannot be the name of a file; use the name without its folder.")
    if folder.exists() and (other := [path.name for path in folder.iterdir() if path.suffix != ".tsv"]):
        raise DataError(f"{folder}: holds {other[0]}, which is no file of scores; write to a folder of its own.")
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in (f"{os.getpid()}.tmp", "old"))
    temporary.mkdir(parents=True)
    try:
        for clip, table in tables.items():
            (temporary / f"{clip}.tsv").write_text(_table_text(table, digits), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _table_text(table: pd.DataFrame, digits: int) -> str:
    # One format operation a file: ten times as fast as DataFrame.to_csv, which counts for a thousand files.
    row = "\t".join([f"%.{digits}g"] * table.shape[1]) + "\n"
    return "\t".join(table.columns) + "\n" + row * len(table) % tuple(table.to_numpy(dtype=np.float64).ravel().tolist())


def read_score_folder(path: str | Path, classes: Sequence[str] | None = None) -> dict[str, pd.DataFrame]:
    """Return clip → table of every .tsv file of a folder, by name; other files are passed over.

    Args:
        classes: columns to return, in this order; others are left out. None: those of the first file, in its order,
            and all files must have the same, in whatever order.

    Raises:
        DataError: one sentence on the first file that cannot be used, and how many others cannot.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder of scores.")
    files = sorted(file for file in path.iterdir() if file.suffix == ".tsv" and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path}: holds no score file (CLIP.tsv with the columns onset, offset and one per class).")
    tables, problems, given = {}, [], classes is not None
    for file in files:
        try:
            table = read_score_table(file, classes, further_classes=given or classes is None)
            if (clip := clip_name(file.stem)) in tables:
                raise DataError(f"{file}: a second file for the clip {clip!r}; take one out.")
        except DataError as problem:
            problems.append(str(problem))
            continue
        tables[clip] = table
        classes = list(table.columns[2:]) if classes is None else classes
    if problems:
        more = f" ({len(problems) - 1} more of {len(files)} files cannot be used.)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    return tables


def read_score_table(
    path: str | Path, classes: Sequence[str] | None = None, further_classes: bool = True
) -> pd.DataFrame:
    """Return one file of scores as sed_scores_eval wants it: onset, offset, then a float64 column per class.

    Frames whose borders differ by less than a microsecond are made to touch exactly.

    Args:
        classes: columns to return; None: all. further_classes: whether the file may have more.

    Raises:
        DataError: one sentence on what is wrong with the file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline().rstrip("\r\n").split("\t")
        table = pd.read_csv(path, sep="\t", encoding="utf-8-sig", float_precision="round_trip")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a table ({str(error).strip()}); write it again.") from None
    if twice := _first_twice(header):
        raise DataError(f"{path}: two columns are called {twice!r}; take one out.")
    missing = [name for name in ("onset", "offset", *(classes or ())) if name not in header]
    if missing:
        hint = "columns must be separated by tabs" if len(header) == 1 else f"columns are {', '.join(header)}"
        raise DataError(f"{path}: no column {missing[0]!r}; {hint}.")
    found = [name for name in header if name not in ("onset", "offset")]
    if not found:
        raise DataError(f"{path}: has no column of scores beside onset and offset.")
    if not further_classes and (extra := [name for name in found if name not in classes]):
        raise DataError(f"{path}: column {extra[0]!r} is not in the other files; name the classes to use.")
    table = table[["onset", "offset", *(classes or found)]]
    if table.empty:
        raise DataError(f"{path}: has a header but no frame.")
    try:
        numbers = table.to_numpy(dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path}: not a number: {error}.") from None
    if not (finite := np.isfinite(numbers).all(axis=1)).all():
        raise DataError(f"{path}: a value of frame {int(np.argmin(finite))} is missing or not finite.")
    onsets, offsets = numbers[:, 0], numbers[:, 1]
    apart = np.append(onsets[1:] - offsets[:-1], 0.0)
    if abs(apart).max() > SAME_TIME_S:
        frame = int(np.argmax(abs(apart) > SAME_TIME_S))
        what = "a gap" if apart[frame] > 0 else "an overlap"
        raise DataError(f"{path}: {what} between frame {frame}, up to {offsets[frame]:g} s, and the next frame.")
    if problem := _grid_problem(np.append(onsets, offsets[-1])):
        raise DataError(f"{path}: {problem}.")
    numbers[:-1, 1] = onsets[1:]
    return pd.DataFrame(numbers, columns=table.columns)


def clip_name(filename: str) -> str:
    """Return a file name without the ending of an audio file: a.wav → a, but Y12_30.000_40.000 stays as it is."""
    stem, ending = os.path.splitext(filename)
    return stem if ending.lower() in AUDIO_ENDINGS else filename


def _grid_problem(borders: np.ndarray) -> str | None:
    if not np.isfinite(borders).all() or borders[0] < 0:
        return "a border is negative or not finite"
    if (np.diff(borders) <= 0).any():
        frame = int(np.argmax(np.diff(borders) <= 0))
        return f"frame {frame} goes from {borders[frame]:g} to {borders[frame + 1]:g} s, but borders must increase"
    return None


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


# ---------------------------------------------------------------- ground truth


@dataclass(frozen=True)
class GroundTruth:
    """Events of clips, in a form that every metric takes.

    Attributes:
        events: clip → its events (onset s, offset s, class), by onset; events of one class never touch. A clip
            without events has an empty list.
        notes: one sentence for each kind of row that was mended or left out.
        counts: the numbers behind them: empty_rows, dropped_rows, merged_events.
    """

    events: Mapping[str, list[tuple[float, float, str]]]
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        return sorted({label for events in self.events.values() for *_, label in events})


def read_ground_truth(path: str | Path) -> GroundTruth:
    """Read a table with the columns filename, onset, offset (s) and event_label, separated by tabs.

    Raises:
        DataError: what is wrong with the table.
    """
    table = read_table(path, EVENT_COLUMNS, may_be_empty=EVENT_COLUMNS[1:], unique=False)
    return ground_truth(table, where=str(path))


def ground_truth(table: pd.DataFrame, where: str = "ground truth") -> GroundTruth:
    """Return the events of a table with the columns filename, onset, offset and event_label.

    - A row with a file name alone says that the clip has no event.
    - A row with offset ≤ onset, or with a label but no times, is left out and counted.
    - Events of one class that overlap or touch become one: sed_scores_eval and psds_eval refuse them otherwise.

    Raises:
        DataError: a time that is no number, or is negative.
    """
    times = table[["onset", "offset"]].apply(pd.to_numeric, errors="coerce")
    blank = table[["onset", "offset", "event_label"]].apply(lambda column: column.astype(str).str.lower().isin(BLANK))
    broken = (times.isna() & ~blank[["onset", "offset"]]) | (times < 0) | np.isinf(times)
    if broken.any(axis=None):
        row = table[broken.any(axis=1)].iloc[0]
        raise DataError(
            f"{where}: {row.filename}: onset {row.onset!r}, offset {row.offset!r}; both must be seconds, not below 0."
        )
    usable = ~blank.any(axis=1) & (times.offset > times.onset)
    empty = blank.all(axis=1)
    clips = table.filename.map({name: clip_name(name) for name in table.filename.unique()})
    rows = zip(clips, times.onset, times.offset, table.event_label, usable)
    events: dict[str, list[tuple[float, float, str]]] = {}
    for clip, onset, offset, label, use in rows:
        own = events.setdefault(clip, [])
        if use:
            own.append((onset, offset, label))
    merged = {clip: merge_touching(own) for clip, own in events.items()}
    counts = {
        "empty_rows": int(empty.sum()),
        "dropped_rows": int((~usable & ~empty).sum()),
        "merged_events": int(usable.sum()) - sum(map(len, merged.values())),
    }
    sentences = {
        "empty_rows": "{} rows without an event: their clips hold none, unless another row names one.",
        "dropped_rows": "{} rows left out: offset not after onset, or a label or time is missing.",
        "merged_events": "{} events overlap or touch another of their class in the same clip: merged.",
    }
    notes = tuple(sentences[name].format(count) for name, count in counts.items() if count)
    return GroundTruth(merged, notes, counts)


def merge_touching(events: Iterable[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Return events by onset, those of one class that overlap or touch (onset ≤ running offset) made one."""
    running: dict[str, list] = {}
    merged: list[list] = []
    for onset, offset, label in sorted(events):
        last = running.get(label)
        if last is not None and onset <= last[1]:
            last[1] = max(last[1], offset)
        else:
            merged.append([onset, offset, label])
            running[label] = merged[-1]
    return [tuple(event) for event in merged]


def read_durations(path: str | Path) -> dict[str, float]:
    """Return clip → duration in seconds, from a table with the columns filename and duration, separated by tabs.

    Raises:
        DataError: a duration that is no positive number, or two different ones for a clip.
    """
    table = read_table(path, ("filename", "duration"), unique=False)
    durations: dict[str, float] = {}
    for filename, text in zip(table.filename, table.duration):
        try:
            duration_s = float(text)
        except ValueError:
            duration_s = float("nan")
        if not 0 < duration_s < float("inf"):
            raise DataError(f"{path}: {filename} has the duration {text!r}; it must be a positive number of seconds.")
        if durations.setdefault(clip_name(filename), duration_s) != duration_s:
            raise DataError(f"{path}: {filename} has two durations, {durations[clip_name(filename)]:g} and {text} s.")
    return durations
