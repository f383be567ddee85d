"""Find the box parameters of every class on a development set, and keep them in a file.

Flow: frame scores + ground truth → **parameters file** → boxes of any other split.

Every class is tuned by itself on a grid, for its own PSDS1. Tune on clips that you do not report: the
published system was tuned and scored on the same ones (DESED validation), which flatters it.

    tuned = tune(scores, ground_truth.events, durations_s)
    tuned.write("boxes.json", tuned_on="DESED validation, first half")
    csebbs = Csebbs.read("boxes.json")
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data.manifest import DataError
from common.metrics.psds_fast import BoxCounter, Events, area, class_roc
from common.metrics.sed_scores import FrameScores
from task4_sed.change_detection import candidates
from task4_sed.csebbs import BoxParameters, checked, extents, finite, write_parameters


@dataclass(frozen=True)
class Grid:
    """What is tried: every step filter length with every absolute, then every relative merge threshold.

    Of candidates that are equally good the first wins. The default is that of the DCASE 2024 task 4 winner.
    """

    step_filter_s: Sequence[float] = (0.38, 0.42, 0.46, 0.5, 0.54, 0.58, 0.62, 0.66)
    merge_abs: Sequence[float] = (0.15, 0.175, 0.2, 0.225, 0.25, 0.275, 0.3, 0.325)
    merge_rel: Sequence[float] = (1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.25)

    def __post_init__(self):
        if not self.step_filter_s or not (self.merge_abs or self.merge_rel):
            raise ValueError("the grid needs at least one step filter length and one merge threshold")

    def thresholds(self) -> Iterator[tuple[float, float]]:
        """Yield (merge_abs, merge_rel): one of the two is always off."""
        yield from ((value, np.inf) for value in self.merge_abs)
        yield from ((np.inf, value) for value in self.merge_rel)

    def __len__(self) -> int:
        return len(self.step_filter_s) * (len(self.merge_abs) + len(self.merge_rel))


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        parameters: class → its numbers. psds1: class → its own PSDS1 with them, on the clips tuned on; NaN
            without events. tied: class → how many candidates were as good. notes: one sentence for each class
            that could not be tuned. n_clips: clips with events, which are those that count.
    """

    parameters: Mapping[str, BoxParameters]
    psds1: Mapping[str, float]
    tied: Mapping[str, int]
    n_clips: int
    notes: tuple[str, ...] = ()

    def write(self, path: str | Path, tuned_on: str = "") -> None:
        """Write the parameters file; `tuned_on` says on which clips and scores."""
        write_parameters(
            path,
            self.parameters,
            tuned_on=tuned_on,
            n_clips=self.n_clips,
            psds1={name: finite(value) for name, value in self.psds1.items()},
            tied=dict(self.tied),
            notes=list(self.notes),
        )


def tune(
    scores: FrameScores,
    events: Mapping[str, Sequence[tuple[float, float, str]]],
    durations_s: Mapping[str, float],
    grid: Grid | None = None,
    n_frames: np.ndarray | None = None,
) -> Tuned:
    """Return for every class the parameters with the best PSDS1 of that class alone.

    PSDS1: detection tolerance and ground-truth intersection 0.7, up to 100 false positives per hour, all
    thresholds. Only clips with an event of one of the classes count, as in the challenge. A class without
    events keeps the first candidate, and a note says so.

    Args:
        scores: raw probabilities, not filtered; clips that are not in `events` are left out.
        events: clip → (onset s, offset s, class). durations_s: clip → s. grid: what to try.
        n_frames: (clips,) frames that belong to each clip, see `csebbs.predict`.

    Raises:
        DataError: no clip with events, or one without a duration.
    """
    grid = Grid() if grid is None else grid
    values, boundaries_s, n_frames = checked(scores.values, scores.boundaries_s, n_frames, scores.clips, scores.classes)
    classes = set(scores.classes)
    rows = [row for row, clip in enumerate(scores.clips) if any(label in classes for *_, label in events.get(clip, ()))]
    clips = [scores.clips[row] for row in rows]
    if not clips:
        raise DataError(
            f"none of {len(scores.clips)} scored clips (first: {scores.clips[0]!r}) has an event of the classes "
            "scored; clip names must agree with the ground truth, without ending."
        )
    if unmeasured := [clip for clip in clips if clip not in durations_s]:
        raise DataError(f"{len(unmeasured)} clips have no duration, such as {unmeasured[0]!r}; add them.")
    seconds = np.array([durations_s[clip] for clip in clips], dtype=np.float64)
    n_frames = n_frames[rows]
    extent_s = extents(boundaries_s, n_frames)
    parameters, psds1, tied, notes = {}, {}, {}, []
    for label, name in enumerate(scores.classes):
        truth = class_events(events, clips, name)
        if len(truth.clip):
            counter = BoxCounter(truth, extent_s)
            own = np.ascontiguousarray(values[rows, :, label], dtype=np.float64)
            parameters[name], psds1[name], tied[name] = _tune_class(own, boundaries_s, n_frames, counter, seconds, grid)
            continue
        parameters[name] = BoxParameters(grid.step_filter_s[0], *next(grid.thresholds()))
        psds1[name], tied[name] = float("nan"), len(grid)
        notes.append(f"{name}: no event in the {len(clips)} clips tuned on; the first of {len(grid)} candidates stays.")
    return Tuned(parameters, psds1, tied, len(clips), tuple(notes))


def _tune_class(own, boundaries_s, n_frames, counter, seconds, grid) -> tuple[BoxParameters, float, int]:
    """Return the first of the best parameters of one class, its PSDS1, and how many are as good."""
    best, best_value, tied = None, -np.inf, 0
    for step_filter_s in grid.step_filter_s:
        found = candidates(own, boundaries_s, step_filter_s, n_frames)
        known: dict[bytes, float] = {}  # many thresholds close the same gaps
        for merge_abs, merge_rel in grid.thresholds():
            closed = found.closed_gaps(merge_abs, merge_rel)
            key = np.packbits(closed).tobytes()
            if key not in known:
                boxes = found.joined(closed)
                counts = counter.count(boxes.clip, boxes.onset_s, boxes.offset_s, boxes.score)
                known[key] = area(*class_roc([counts], 0, seconds))
            if known[key] > best_value:
                best, best_value, tied = BoxParameters(step_filter_s, merge_abs, merge_rel), known[key], 0
            tied += known[key] == best_value
    return best, best_value, tied


def class_events(events: Mapping[str, Sequence[tuple[float, float, str]]], clips: Sequence[str], name: str) -> Events:
    """Return the events of one class in `clips`, numbered in their order."""
    rows = [
        (clip, onset, offset)
        for clip, key in enumerate(clips)
        for onset, offset, label in events.get(key, ())
        if label == name
    ]
    clip, onset_s, offset_s = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return Events(clip.astype(np.intp), onset_s, offset_s)
