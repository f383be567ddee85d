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
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.events import EVENT_COLUMNS, clip_name, event_rows, merge_events
from common.data.manifest import DataError, read_table

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
            if twice := first_twice(names):
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
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had the same number
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


def read_score_folder(
    path: str | Path,
    classes: Sequence[str] | None = None,
    *,
    required: bool = True,
    dtype: type = np.float64,
    notes: list[str] | None = None,
) -> dict[str, pd.DataFrame]:
    """Return clip → table of every .tsv file of a folder, by name; other files are passed over.

    Args:
        classes: columns to return, in this order. None: those that all files have, in the order of the first.
        required: whether a file must have all of `classes`; False: those that not all files have are left out.
        dtype: of the scores; np.float32 takes half of the memory, and ties scores that agree to seven digits.
        notes: gets a sentence on the classes that only some of the files have, which are not returned.

    Raises:
        DataError: one sentence on the first file that cannot be used, and how many others cannot.
    """
    check_once(classes or ())
    files = _score_files(Path(path))
    by_columns, problems = _by_columns(files)
    common = [name for name in next(iter(by_columns), ()) if all(name in columns for columns in by_columns)]
    wanted = common if classes is None else [name for name in classes if required or name in common]
    if by_columns and not wanted:
        raise DataError(f"{path}: the {len(files)} files have no class in common; predict the same for every clip.")
    tables = {}
    for clip in sorted(clip for clips in by_columns.values() for clip in clips):
        try:
            tables[clip] = read_score_table(files[clip], wanted, dtype)
        except DataError as problem:
            problems.append(str(problem))
    if problems:
        more = f" ({len(problems) - 1} more of {len(files)} files cannot be used.)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)
    if notes is not None and len(by_columns) > 1 and (sentence := _partly(by_columns)):
        notes.append(sentence)
    return tables


def _score_files(folder: Path) -> dict[str, Path]:
    """Return clip → file of a folder, by name."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of scores.")
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("*.tsv")):
        if file.name.startswith("."):
            continue
        if (clip := clip_name(file.name)) in files:
            raise DataError(f"{file}: a second file for the clip {clip!r}, beside {files[clip].name}; take one out.")
        files[clip] = file
    if not files:
        raise DataError(f"{folder}: holds no score file (CLIP.tsv with the columns onset, offset and one per class).")
    return files


def _by_columns(files: Mapping[str, Path]) -> tuple[dict[tuple[str, ...], list[str]], list[str]]:
    """Return columns of scores → clips whose files have them, and what is wrong with the headers of others."""
    by_columns: dict[tuple[str, ...], list[str]] = {}
    problems = []
    for clip, file in files.items():
        try:
            by_columns.setdefault(_score_columns(file), []).append(clip)
        except DataError as problem:
            problems.append(str(problem))
    return by_columns, problems


def _partly(by_columns: Mapping[tuple[str, ...], list[str]]) -> str | None:
    """Return a sentence on the classes that only some files have: which have them, or which do not."""
    said = []
    for name in dict.fromkeys(name for columns in by_columns for name in columns):
        having = [clip for columns, clips in by_columns.items() if name in columns for clip in clips]
        lacking = [clip for columns, clips in by_columns.items() if name not in columns for clip in clips]
        if lacking:
            rare, word = (having, "only in") if len(having) <= len(lacking) else (lacking, "not in")
            said.append(f"{name} ({word} {some(f'{clip}.tsv' for clip in rare)})")
    return f"{len(said)} classes are not in all files of scores, and are left out: {some(said)}." if said else None


def _score_columns(path: Path) -> tuple[str, ...]:
    """Return the classes of a file of scores, from its first line."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); write it again.") from None
    if header == [""]:
        raise DataError(f"{path}: cannot be read as a table (the first line is empty); write it again.")
    if twice := first_twice(header):
        raise DataError(f"{path}: two columns are called {twice!r}; take one out.")
    for name in ("onset", "offset"):
        if name not in header:
            hint = "columns must be separated by tabs" if len(header) == 1 else f"columns are {some(header)}"
            raise DataError(f"{path}: no column {name!r}; {hint}.")
    if len(header) == 2:
        raise DataError(f"{path}: has no column of scores beside onset and offset.")
    return tuple(name for name in header if name not in ("onset", "offset"))


def read_score_table(
    path: str | Path, classes: Sequence[str] | None = None, dtype: type = np.float64
) -> pd.DataFrame:
    """Return one file of scores as sed_scores_eval wants it: onset, offset, then a column per class.

    Frames whose borders differ by less than a microsecond are made to touch exactly.

    Args:
        classes: columns to return; None: all. dtype: of the scores; times are float64.

    Raises:
        DataError: one sentence on what is wrong with the file.
    """
    # Not with common.data.manifest.read_table, which reads text: numbers come three times as fast as such, and there
    # may be 17 000 files of 100 000 scores.
    found = _score_columns(Path(path))
    classes = found if classes is None else classes
    if lacking := [name for name in classes if name not in found]:
        raise DataError(f"{path}: no column {lacking[0]!r}; {nearest(lacking[0], found, 'columns are')}.")
    columns = ["onset", "offset", *classes]
    try:
        table = pd.read_csv(path, sep="\t", encoding="utf-8-sig", float_precision="round_trip")
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a table ({str(error).strip()}); write it again.") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas would take the first column for row names
        raise DataError(f"{path}: rows have more cells than the header has columns; write it again.")
    if table.empty:
        raise DataError(f"{path}: has a header but no frame.")
    try:
        numbers = table[columns].to_numpy(dtype=np.float64)
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
    if dtype is np.float64:
        return pd.DataFrame(numbers, columns=columns)
    times, scores = numbers[:, :2].copy(), numbers[:, 2:].astype(dtype)  # copies: what they come from may go
    return pd.concat([pd.DataFrame(times, columns=columns[:2]), pd.DataFrame(scores, columns=columns[2:])], axis=1)


def _grid_problem(borders: np.ndarray) -> str | None:
    if not np.isfinite(borders).all() or borders[0] < 0:
        return "a border is negative or not finite"
    if (np.diff(borders) <= 0).any():
        frame = int(np.argmax(np.diff(borders) <= 0))
        return f"frame {frame} goes from {borders[frame]:g} to {borders[frame + 1]:g} s, but borders must increase"
    return None


# ---------------------------------------------------------------- names


def first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def check_once(classes: Iterable[str]) -> None:
    """Raise DataError if a class to score is named twice."""
    if twice := first_twice(classes):
        raise DataError(f"the class {twice!r} stands twice among those to score; name it once.")


def nearest(name: str, known: Sequence[str], otherwise: str) -> str:
    """Return the end of a sentence on an unknown name: the nearest of the known ones, or some of them."""
    near = get_close_matches(name, list(map(str, known)), 1)
    return f"the nearest is {near[0]!r}" if near else f"{otherwise} {some(known)}"


def some(names: Iterable[str], shown: int = 3) -> str:
    """Return the first names for a sentence: a, b, c and 7 more."""
    names = list(map(str, names))
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


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

    Rows are checked by `common.data.events.event_rows`. Events of one class that overlap or touch become one:
    sed_scores_eval and psds_eval refuse them otherwise.

    Raises:
        DataError: a time that is no number, or is negative.
    """
    rows, notes, counts = event_rows(table[list(EVENT_COLUMNS)], where)
    merged = merge_events(rows).sort_values(["onset", "offset", "event_label"])
    events: dict[str, list[tuple[float, float, str]]] = {clip_name(name): [] for name in table.filename.unique()}
    for clip, *event in merged.itertuples(index=False, name=None):
        events[clip].append(tuple(event))
    counts["merged_events"] = len(rows) - len(merged)
    if counts["merged_events"]:
        notes.append(
            f"{counts['merged_events']} events overlap or touch another of their class in the same clip: merged."
        )
    return GroundTruth(events, tuple(notes), counts)


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
