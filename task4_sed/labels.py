"""Classes, class masks and the frame grid: events become targets, scores become events again.

Flow: table of events → aliases → crop → **targets (B, N, K)** → losses;  frame scores → **events**.

Targets and scores here have time before classes, as tables and score files do. Networks, augmentations and losses have
time last, (B, K, N): `torch.from_numpy(targets).transpose(1, 2)`.

An events table has the columns filename, onset, offset (s, from the clip's start), event_label and, for soft labels,
confidence (0 to 1). The 27 classes in order, what they belong to, and the published median windows are in classes.csv;
which label of one data set also counts as one of the other is in aliases.csv.

Source: DCASE 2024 task 4, baseline and system of CP-JKU.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from common.data.manifest import DataError

SOURCES, USES, RECIPES = ("desed", "maestro", "mixed"), ("train", "validation", "test"), ("winner", "baseline")
OVERLAPS = ("maximum", "overwrite")
HERE = Path(__file__).parent
ArrayOrTensor = TypeVar("ArrayOrTensor")  # of NumPy or PyTorch


# ---------------------------------------------------------------- classes


@dataclass(frozen=True)
class SoundClasses:
    """The classes of the task.

    Attributes:
        names: (K,), in the order of all targets and scores.
        desed, maestro, maestro_evaluated: bool (K,): whose class it is, and whether MAESTRO's scores count it.
        median_frames: int (K,), published lengths of the median filter on frames of 64 ms.
    """

    names: tuple[str, ...]
    desed: np.ndarray
    maestro: np.ndarray
    maestro_evaluated: np.ndarray
    median_frames: np.ndarray

    def where(self, mask: np.ndarray) -> list[str]:
        """Return the names where `mask` (K,) is true."""
        return [name for name, wanted in zip(self.names, mask, strict=True) if wanted]


@lru_cache
def sound_classes() -> SoundClasses:
    """Return the 27 classes: 10 of DESED, then 17 of MAESTRO, 11 of which are evaluated."""
    table = pd.read_csv(HERE / "classes.csv")
    return SoundClasses(tuple(table.name), *((table.source == source).to_numpy() for source in ("desed", "maestro")),
                        table.maestro_evaluated.to_numpy(bool), table.median_frames.to_numpy())


def class_indices(labels: Iterable[str], class_names: Sequence[str]) -> np.ndarray:
    """Return each label's place in `class_names`, int64; −1 where it has none."""
    return pd.Index(class_names).get_indexer(pd.Index(labels)).astype(np.int64)


def nearest_class(label: str, class_names: Sequence[str]) -> str | None:
    """Return the class a label probably means: blanks, underscores and capitals apart, the most similar one."""
    plain = {name.lower().replace("_", " "): name for name in class_names}
    near = get_close_matches(label.lower().replace("_", " "), plain, n=1, cutoff=0.5)
    return plain[near[0]] if near else None


# ---------------------------------------------------------------- aliases and class masks


def aliases(source: str, use: str = "train", recipe: str = "winner") -> list[tuple[str, str]]:
    """Return (label, class it also counts as) pairs for a data set, in the published order.

    MAESTRO's labels always count for DESED's classes too (talking is Speech); the winner also takes DESED's for
    MAESTRO's classes, in training only.

    Args:
        source: "desed", "maestro" or "mixed" (the challenge's evaluation set). use: "train", "validation" or "test".
        recipe: "winner" or "baseline".
    """
    for value, known in ((source, SOURCES), (use, USES), (recipe, RECIPES)):
        if value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(known)}.")
    table = pd.read_csv(HERE / "aliases.csv")
    rows = table[(table.source == source) & table.use.isin(("all", use)) & table.recipes.str.contains(recipe)]
    return list(zip(rows.label, rows.also))


def class_mask(source: str, use: str = "train", recipe: str = "winner") -> np.ndarray:
    """Return bool (K,): the classes whose presence or absence a data set tells; arguments as for `aliases`.

    These are its own classes and those its labels also count as.
    """
    classes, also = sound_classes(), {target for _, target in aliases(source, use, recipe)}
    own = {"desed": classes.desed, "maestro": classes.maestro, "mixed": classes.desed | classes.maestro}[source]
    return own | np.isin(classes.names, list(also))


def with_aliases(events: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Return all rows of `events`, then for each pair in turn a copy of the rows that its alias names.

    The order matters where overlapping soft labels overwrite each other (see `EventArrays.encode`). `events` itself is
    left as it is; a label that does not occur is no fault.
    """
    copies = [events[events.event_label == label].assign(event_label=also) for label, also in pairs]
    return pd.concat([events, *copies], ignore_index=True)


# ---------------------------------------------------------------- frame grid


@dataclass(frozen=True)
class FrameGrid:
    """Frames of the targets: one every `hop_samples · pooling` samples, over `clip_s`.

    The default is that of the task: 156 frames of 64 ms, which end at 9.984 s. AUDIOSET_GRID: 250 frames of 40 ms.
    """

    sample_rate: int = 16000
    hop_samples: int = 256
    pooling: int = 4
    clip_s: float = 10.0

    @property
    def n_frames(self) -> int:
        return int(int(self.clip_s * self.sample_rate / self.hop_samples) / self.pooling)

    @property
    def frame_s(self) -> float:
        return self.pooling * self.hop_samples / self.sample_rate

    @property
    def boundaries_s(self) -> np.ndarray:
        """Borders of the frames (N + 1,), s."""
        return self.times(np.arange(self.n_frames + 1))

    def times(self, frames) -> np.ndarray:
        """Return when frames start, s; at most `clip_s`."""
        return np.clip(np.asarray(frames) * self.pooling * self.hop_samples / self.sample_rate, None, self.clip_s)

    def span(self, onset_s: np.ndarray, offset_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first frame that events touch and the one after the last, int64, within 0 … N."""
        first, last = (np.clip(np.asarray(t) * self.sample_rate / self.hop_samples / self.pooling, 0, self.n_frames)
                       for t in (onset_s, offset_s))
        return first.astype(np.int64), np.ceil(last).astype(np.int64)


AUDIOSET_GRID = FrameGrid(hop_samples=160)


# ---------------------------------------------------------------- events to targets


@dataclass(frozen=True)
class EventArrays:
    """Events of many clips as arrays, clip after clip, in the order of their table within a clip.

    Attributes:
        first: int64 (clips + 1,), where each clip's events start.
        onset_s, offset_s, class_index, confidence: (E,) each.
        n_classes: K.
    """

    first: np.ndarray
    onset_s: np.ndarray
    offset_s: np.ndarray
    class_index: np.ndarray
    confidence: np.ndarray
    n_classes: int

    @classmethod
    def of(cls, events: pd.DataFrame, filenames: Sequence[str], class_names: Sequence[str]) -> "EventArrays":
        """Return the events of the clips `filenames`; rows of other clips and other classes are passed over."""
        clip = pd.Index(filenames).get_indexer(events.filename)
        index = class_indices(events.event_label, class_names)
        rows = np.flatnonzero((clip >= 0) & (index >= 0))
        rows = rows[np.argsort(clip[rows], kind="stable")]
        confidence = events.confidence.to_numpy(np.float64) if "confidence" in events else np.ones(len(events))
        first = np.searchsorted(clip[rows], np.arange(len(filenames) + 1))
        columns = (events.onset.to_numpy(np.float64), events.offset.to_numpy(np.float64), index, confidence)
        return cls(first, *(column[rows] for column in columns), len(class_names))

    def __len__(self) -> int:
        return len(self.first) - 1

    def encode(self, items: Sequence[int] | None = None, grid: FrameGrid | None = None, overlap: str = "maximum",
               crop_onset_s: Sequence[float] | float = 0.0) -> np.ndarray:
        """Return targets of clips, float32 (B, N, K): the confidence of the event in every frame it touches.

        Time comes before classes; task4_sed.augment and task4_sed.views take (B, K, N).

        Args:
            items: which clips (B,); None: all.
            overlap: of events of one class in one clip, "maximum" takes the surer one; "overwrite" the one that stands
                later in the table, as published.
            crop_onset_s: where the crop of each clip starts, rounded to 1 ms: events are moved and clipped to it,
                those left empty are dropped, exact duplicates count once.
        """
        if overlap not in OVERLAPS:
            raise ValueError(f"overlap is {overlap!r}, expected {' or '.join(OVERLAPS)}.")
        grid = grid or FrameGrid()
        items = np.arange(len(self)) if items is None else np.asarray(items, np.int64)
        counts = self.first[items + 1] - self.first[items]
        clip = np.repeat(np.arange(len(items)), counts)
        rows = np.repeat(self.first[items], counts) + _count_up(counts)
        shift_s = np.broadcast_to(np.round(crop_onset_s, 3), len(items))[clip]
        onset_s, offset_s = (np.clip(times[rows] - shift_s, 0, grid.clip_s) for times in (self.onset_s, self.offset_s))
        keep = np.flatnonzero(onset_s < offset_s)
        if overlap == "maximum":
            keep = keep[np.argsort(self.confidence[rows[keep]], kind="stable")]
        else:
            cells = (clip, onset_s, offset_s, self.class_index[rows], self.confidence[rows])
            table = pd.DataFrame(dict(enumerate(column[keep] for column in cells)))
            keep = keep[~table.duplicated().to_numpy()]
        start, stop = grid.span(onset_s[keep], offset_s[keep])
        rows, length = rows[keep], stop - start
        targets = np.zeros((len(items), grid.n_frames, self.n_classes), np.float32)
        cell = (clip[keep] * grid.n_frames + start) * self.n_classes + self.class_index[rows]
        cells = np.repeat(cell, length) + self.n_classes * _count_up(length)
        # Where a cell is named twice, NumPy leaves the later value there.
        targets.reshape(-1)[cells] = np.repeat(self.confidence[rows].astype(np.float32), length)
        return targets

    def clip_labels(self, items: Sequence[int] | None = None) -> np.ndarray:
        """Return float32 (B, K): 1 where a clip has any event of a class, whatever its times."""
        labels = np.zeros((len(self), self.n_classes), np.float32)
        labels[np.repeat(np.arange(len(self)), np.diff(self.first)), self.class_index] = 1
        return labels if items is None else labels[items]


def _count_up(counts: np.ndarray) -> np.ndarray:
    """Return 0 … count − 1 for each count, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def encode(events: pd.DataFrame, filenames: Sequence[str], grid: FrameGrid | None = None,
           class_names: Sequence[str] | None = None, **how) -> np.ndarray:
    """Return targets (clips, N, K) of an events table; `how`: overlap and crop_onset_s of `EventArrays.encode`.

    Example: encode(with_aliases(events, aliases("maestro")), filenames)
    """
    class_names = sound_classes().names if class_names is None else class_names
    return EventArrays.of(events, filenames, class_names).encode(None, grid, **how)


def as_frames(clip_labels: np.ndarray, n_frames: int) -> np.ndarray:
    """Return labels of weakly labelled clips (B, K) as targets (B, N, K): all in frame 0, as published."""
    targets = np.zeros((len(clip_labels), n_frames, clip_labels.shape[1]), clip_labels.dtype)
    targets[:, 0] = clip_labels
    return targets


def weak_labels(targets: ArrayOrTensor, whole: bool = False, time_axis: int = 1) -> ArrayOrTensor:
    """Return the labels (B, K) of weakly labelled clips: the sum of their targets over time, at most 1.

    As these targets stand in frame 0 alone (`as_frames`), a mix of targets gives the mix of the labels: a clip that has
    a quarter of a dog has the label 0.25.

    Args:
        targets: array or tensor, (B, N, K); (B, K, N) with `time_axis` −1.
        whole: return bool instead, whether the sum is at least 1.
    Source: DCASE 2024 task 4, system of CP-JKU: soft labels in training, whole ones in validation.
    """
    total = targets.sum(time_axis)
    return total >= 1 if whole else total.clip(0, 1)


# ---------------------------------------------------------------- scores to events


def decode(scores: np.ndarray, boundaries_s: np.ndarray, class_names: Sequence[str],
           threshold: float | Sequence[float] = 0.5, filenames: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the runs of frames whose score is above the threshold.

    Args:
        scores: (N, K), or (B, N, K) with B `filenames`; bool counts as 0 and 1.
        boundaries_s: borders of the frames (N + 1,), s.
        threshold: one, or one per class (K,).
    Returns:
        table with filename (if given), onset, offset (s), event_label, score (highest of the run); by clip, class
        and onset.
    """
    scores = np.asarray(scores)
    stacked = scores[None] if filenames is None else scores
    expected = (*stacked.shape[:1], len(boundaries_s) - 1, len(class_names))
    if stacked.ndim != 3 or stacked.shape != expected or (filenames is not None and len(filenames) != len(stacked)):
        raise ValueError(f"scores {scores.shape} do not fit {len(boundaries_s) - 1} frames, {len(class_names)} classes"
                         + ("." if filenames is None else f" and {len(filenames)} clips."))
    rows = np.moveaxis(stacked, 1, 2)  # (B, K, N): events come out by clip and class
    active = rows > np.reshape(threshold, (-1, 1))
    edges = np.diff(active.astype(np.int8), axis=2, prepend=0, append=0)
    clip, label, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[2]
    place = (clip * rows.shape[1] + label) * rows.shape[2]
    spans = np.stack([place + start, place + stop], 1).ravel()
    flat = np.append(np.ascontiguousarray(rows).ravel(), -np.inf)  # the last run may end where the array does
    table = pd.DataFrame({
        "onset": np.asarray(boundaries_s)[start], "offset": np.asarray(boundaries_s)[stop],
        "event_label": np.asarray(class_names, object)[label],
        "score": np.maximum.reduceat(flat, spans)[::2] if len(spans) else np.zeros(0),
    })
    if filenames is not None:
        table.insert(0, "filename", np.asarray(filenames, object)[clip])
    return table


def require_known(labels: pd.Series, filenames: pd.Series, class_names: Sequence[str], where: str) -> None:
    """Raise a DataError that names the first label that is no class, where it stands, and the nearest class."""
    unknown = np.flatnonzero(class_indices(labels, class_names) < 0)
    if len(unknown):
        label, near = labels.iloc[unknown[0]], nearest_class(labels.iloc[unknown[0]], class_names)
        raise DataError(f"{where}: {filenames.iloc[unknown[0]]} has the label {label!r}, which is none of the "
                        f"{len(class_names)} classes" + (f" (nearest: {near!r})" if near else "") +
                        "; mend it, or leave such rows out with allow_unknown_labels.")
