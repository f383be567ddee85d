"""Where scores change: the change signal of cSEBBs, its candidate boxes, and which of them are merged.

Flow: scores of one class → change signal → **candidates** → merged boxes.

What each step means and where it comes from is told in `task4_sed.csebbs`, which is the module to use. Here
all clips of one class go through one array operation per step: the break points of the change signal are the
same for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

RATIO_OFFSET = 1e-3  # added to both sides of the ratio, so that scores near zero do not count as far apart
LENGTH_OFFSET_S = 1e-6  # added to the length a box score is divided by; part of the published scores
TIME_DECIMALS = 9  # break points that differ by less are one
FLAT = 1e-12  # slopes of the change signal below this are rounding noise
CELLS_AT_ONCE = 1_000_000  # clips × break points in memory at a time: about 50 MB


@dataclass(frozen=True)
class Boxes:
    """Boxes as columns (B,), class by class, each sorted by clip and onset; those of one class do not overlap.

    Attributes:
        clip, label: indices into the clips and classes they were made from.
        onset_s, offset_s: seconds; offset_s > onset_s. score: mean frame score.
    """

    clip: np.ndarray
    label: np.ndarray
    onset_s: np.ndarray
    offset_s: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.score)


def joined_columns(parts: Sequence, kind: type) -> list[np.ndarray]:
    """Return every column of the dataclass `kind`, those of all `parts` one after the other."""
    return [np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(kind)]


# ---------------------------------------------------------------- change signal


def change_signal(scores: np.ndarray, boundaries_s: np.ndarray, step_filter_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the break points (M,), seconds, and the change signal there (..., M), for plots and tests.

    Between break points the change signal runs straight.

    Args:
        scores: (..., N). boundaries_s: (N + 1,). step_filter_s: T.
    """
    grid = _StepFilter(np.asarray(boundaries_s, dtype=np.float64), step_filter_s)
    scores = np.asarray(scores, dtype=np.float64)
    integral = np.concatenate([np.zeros_like(scores[..., :1]), np.cumsum(scores * np.diff(grid.edges), -1)], -1)
    half = step_filter_s / 2

    def until(times):  # integral of the scores up to each time
        left = np.clip(np.searchsorted(grid.edges, times, "right") - 1, 0, len(grid.edges) - 2)
        share = np.clip((times - grid.edges[left]) / np.diff(grid.edges)[left], 0, 1)
        return integral[..., left] * (1 - share) + integral[..., left + 1] * share

    now = until(grid.times)
    return grid.times, ((until(grid.times + half) - now) - (now - until(grid.times - half))) / half


class _StepFilter:
    """The break points of one frame grid and step filter length, and which frames meet between them.

    Attributes:
        edges: (N + 1,) frame boundaries. times: (M,) break points: where t, t − T/2 or t + T/2 is a frame
            boundary, within the grid. before, here, after: (M − 1,) frame in which t − T/2, t and t + T/2 lie
            between one break point and the next; N where that is outside the grid.
    """

    def __init__(self, boundaries_s: np.ndarray, step_filter_s: float):
        self.edges = np.round(boundaries_s, TIME_DECIMALS)
        half = step_filter_s / 2
        times = np.concatenate([self.edges - half, self.edges, self.edges + half])
        times = np.unique(np.round(times, TIME_DECIMALS))
        self.times = times[(times >= self.edges[0]) & (times <= self.edges[-1])]
        self.half = half
        middle = (self.times[1:] + self.times[:-1]) / 2
        self.before, self.here, self.after = (self._frame(middle + shift) for shift in (-half, 0, half))

    def _frame(self, times: np.ndarray) -> np.ndarray:
        n_frames = len(self.edges) - 1
        frame = np.searchsorted(self.edges, times, "right") - 1
        return np.where((frame < 0) | (frame >= n_frames), n_frames, frame)

    def directions(self, padded: np.ndarray, n_frames: np.ndarray) -> np.ndarray:
        """Return where δ rises (1), falls (−1) or stays (0) between break points, (n_clips, M − 1), int8.

        The slope of δ is (x(t + T/2) − 2 x(t) + x(t − T/2)) / (T/2). Taken directly, not as a difference of
        integrals, it does not lose precision in long recordings.

        Args:
            padded: (n_clips, N + 1) scores, the last column zero.
        """
        slope = padded[:, self.after]
        slope += padded[:, self.before]
        slope -= 2 * padded[:, self.here]
        flat = FLAT * self.half
        directions = (slope > flat).astype(np.int8) - (slope < -flat).astype(np.int8)
        # What ends before the grid does: nothing follows, and δ comes back to zero from below.
        for clip in np.flatnonzero(n_frames < len(self.edges) - 1):
            end = np.searchsorted(self.times, self.edges[n_frames[clip]])
            directions[clip, end:] = 0
            directions[clip, end] = 1
        return directions


def _extrema(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return clip, break point of the maximum and of the next minimum, one entry per candidate box.

    δ counts as zero before the first and after the last break point. So it rises to the first (scores are not
    negative) and from the last. An extremum that is flat is placed at its end.
    """
    n_clips, n_pieces = directions.shape
    closed = np.concatenate([directions, np.ones((n_clips, 1), np.int8)], axis=1)
    clip, piece = np.nonzero(closed)  # row by row, in the order of time
    rising = closed[clip, piece] > 0
    # Before the first piece of a clip δ rises; the piece in front of it is the last of the clip above: rising too.
    rose = np.concatenate([[True], rising[:-1]])
    maximum, minimum = rose & ~rising, ~rose & rising
    return clip[maximum], piece[maximum], piece[minimum]


# ---------------------------------------------------------------- candidates and merging


@dataclass(frozen=True)
class Candidates:
    """Boxes of one class before merging, as columns (B,), by clip and time; gap i follows box i.

    Attributes:
        clip: index. onset_s, offset_s: seconds. integral: of the score over the box, seconds. gap_integral: over
            the gap after it. difference, ratio: how far the higher neighbouring peak lies above the floor of the
            gap; infinite after the last box of a clip.
    """

    clip: np.ndarray
    onset_s: np.ndarray
    offset_s: np.ndarray
    integral: np.ndarray
    gap_integral: np.ndarray
    difference: np.ndarray
    ratio: np.ndarray

    def closed_gaps(self, merge_abs: float, merge_rel: float) -> np.ndarray:
        """Return which gaps (B,) are closed."""
        return (self.ratio < merge_rel) & (self.difference < merge_abs)

    def merged(self, merge_abs: float, merge_rel: float, label: int = 0) -> Boxes:
        """Return the boxes that remain when all closed gaps are filled at once."""
        return self.joined(self.closed_gaps(merge_abs, merge_rel), label)

    def joined(self, closed: np.ndarray, label: int = 0) -> Boxes:
        """Return the boxes that remain when the gaps `closed` (B,) are filled."""
        if not len(self.clip):
            return Boxes(self.clip, self.clip, self.onset_s, self.offset_s, self.integral)
        first = np.flatnonzero(np.concatenate([[True], ~closed[:-1]]))
        last = np.append(first[1:], len(self.clip)) - 1
        onset_s, offset_s = self.onset_s[first], self.offset_s[last]
        integral = np.add.reduceat(self.integral + np.where(closed, self.gap_integral, 0.0), first)
        score = integral / (offset_s - onset_s + LENGTH_OFFSET_S)
        return Boxes(self.clip[first], np.full(len(first), label), onset_s, offset_s, score)


def candidates(
    scores: np.ndarray, boundaries_s: np.ndarray, step_filter_s: float, n_frames: np.ndarray | None = None
) -> Candidates:
    """Return the candidate boxes of one class.

    Args:
        scores: (n_clips, N). boundaries_s: (N + 1,). step_filter_s: T. n_frames: (n_clips,)
            frames of each clip; None: all.
    """
    grid = _StepFilter(boundaries_s, step_filter_s)
    n_frames = np.full(len(scores), scores.shape[1]) if n_frames is None else n_frames
    at_once = max(1, CELLS_AT_ONCE // len(grid.times))
    parts = [
        _candidates(scores[start : start + at_once], grid, n_frames[start : start + at_once], start)
        for start in range(0, len(scores), at_once)
    ]
    return Candidates(*joined_columns(parts, Candidates))


def _candidates(scores: np.ndarray, grid: _StepFilter, n_frames: np.ndarray, first_clip: int) -> Candidates:
    n_columns = scores.shape[1] + 1
    padded = np.zeros((len(scores), n_columns))
    padded[:, :-1] = np.where(np.arange(scores.shape[1]) < n_frames[:, None], scores, 0)
    clip, onset, offset = _extrema(grid.directions(padded, n_frames))

    flat, start = padded.ravel(), clip * n_columns  # a frame of a clip is one place in `flat`
    areas = (padded * np.append(np.diff(grid.edges), 0)).ravel()
    boxes = _Stretches(grid, flat, areas, start, onset, offset)
    inner = np.flatnonzero(clip[1:] == clip[:-1])  # gaps between two boxes of one clip
    gaps = _Stretches(grid, flat, areas, start[inner], offset[inner], onset[inner + 1])

    peak = boxes.over(np.maximum)
    higher, floor = np.maximum(peak[inner], peak[inner + 1]), gaps.over(np.minimum)
    gap_integral, difference, ratio = np.zeros(len(clip)), np.full(len(clip), np.inf), np.full(len(clip), np.inf)
    gap_integral[inner] = gaps.integral()
    difference[inner] = higher - floor
    ratio[inner] = (higher + RATIO_OFFSET) / (floor + RATIO_OFFSET)
    times = grid.times
    return Candidates(clip + first_clip, times[onset], times[offset], boxes.integral(), gap_integral, difference, ratio)


@dataclass(frozen=True)
class _Stretches:
    """Stretches from break point to break point, in clips that begin at `start` of the flat scores."""

    grid: _StepFilter
    scores: np.ndarray
    areas: np.ndarray  # score × frame length
    start: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    @property
    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last frame touched, also in part."""
        return self.grid.here[self.begin], self.grid.here[self.end - 1]

    def over(self, function: np.ufunc, values: np.ndarray | None = None) -> np.ndarray:
        first, last = self.frames
        bounds = np.stack([self.start + first, self.start + last + 1], axis=1).ravel()
        # Every second result is a stretch; those between are by-products of reduceat.
        return function.reduceat(self.scores if values is None else values, bounds)[::2]

    def integral(self) -> np.ndarray:
        (first, last), grid = self.frames, self.grid
        cut_before = (grid.times[self.begin] - grid.edges[first]) * self.scores[self.start + first]
        cut_after = (grid.edges[last + 1] - grid.times[self.end]) * self.scores[self.start + last]
        return self.over(np.add, self.areas) - cut_before - cut_after
