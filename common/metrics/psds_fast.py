"""PSDS from counts per clip: fast enough to tune post-processing and to resample clips.

Flow: boxes, or the deltas of sed_scores_eval → **counts per clip** → PSDS, for any weights of the clips.

As the threshold falls below a score, the true and false positives of one clip change by some number. The
list of these steps of all clips, sorted by score, holds every operating point of a class: a cumulative sum
gives the ROC. Boxes that lie apart make the steps cheap. A box is the same detection at every threshold below
its score, so that it passes or fails the detection criterion once and for all, and an event is found at the
score of the box that completes its coverage.

For reported numbers use `common.metrics.sed`, which asks sed_scores_eval; a test holds the two together
(1e-12).

Source: C. Bilen et al., A Framework for the Robust Evaluation of Sound Event Detection, ICASSP 2020 (PSDS);
J. Ebbers et al., Threshold-Independent Evaluation of Sound Event Detection Scores, ICASSP 2022 (all thresholds).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

TIME_DECIMALS = 6  # overlaps and lengths are compared after rounding, so that equality survives float arithmetic
SECONDS_PER_HOUR = 3600.0
CROSS_KEY = "cts\\"  # sed_scores_eval: "cts\\Speech" counts the cross triggers with Speech


@dataclass(frozen=True)
class Events:
    """Ground-truth events of one class as columns (E,), in any order.

    Attributes:
        clip: index of the clip. onset_s, offset_s: seconds, offset_s > onset_s.
    """

    clip: np.ndarray
    onset_s: np.ndarray
    offset_s: np.ndarray

    def __post_init__(self):
        wrong = ~(self.offset_s > self.onset_s)
        if wrong.any():
            e = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"event {e} (clip {self.clip[e]}) lasts from {self.onset_s[e]} to {self.offset_s[e]} s: "
                "drop empty rows of the ground truth first"
            )


@dataclass(frozen=True)
class ClassCounts:
    """How the counts of one class change as the threshold falls: steps (S,), and what they are measured against.

    Attributes:
        score: falling; the threshold has to fall below it. clip: index of the clip whose counts change.
        tps, fps: change of the true and false positives.
        n_events, event_s: (C,) events of this class in each clip, and their total length in seconds.
        cross: (S, K) change of the cross triggers with each class (own column zero), or None without them.
    """

    score: np.ndarray
    clip: np.ndarray
    tps: np.ndarray
    fps: np.ndarray
    n_events: np.ndarray
    event_s: np.ndarray
    cross: np.ndarray | None = None

    @classmethod
    def from_steps(cls, score, clip, tps, fps, n_events, event_s, cross=None) -> "ClassCounts":
        """Sort the steps by falling score."""
        order = np.argsort(-score, kind="stable")
        cross = None if cross is None else cross[order]
        return cls(score[order], clip[order], tps[order], fps[order], n_events, event_s, cross)

    @cached_property
    def ends(self) -> np.ndarray:
        """Last step of each score: steps at the same score happen together."""
        return np.flatnonzero(_last_of_run(self.score))

    def totals(self, steps: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the running totals of `steps` (S, …) after each score, zero first; `weights` (C,) per clip."""
        if weights is not None:
            own = weights[self.clip]
            steps = steps * (own if steps.ndim == 1 else own[:, None])
        totals = np.cumsum(steps, axis=0)[self.ends]
        return np.concatenate([np.zeros((1, *steps.shape[1:])), totals])


# ---------------------------------------------------------------- counts


class BoxCounter:
    """Counts the boxes of one class against its events, for one set of clips and any number of sets of boxes.

    Args:
        events: ground truth of the class.
        extent_s: (C, 2) begin and end of the score table of each clip. Below a threshold of zero all of it is
            one detection, as for sed_scores_eval.
        dtc, gtc: detection tolerance and ground-truth intersection criterion, 0..1.
    """

    def __init__(self, events: Events, extent_s: np.ndarray, dtc: float = 0.7, gtc: float = 0.7):
        order = np.lexsort((events.onset_s, events.clip))
        self.clip, self.onset_s, self.offset_s = (
            np.asarray(column)[order] for column in (events.clip, events.onset_s, events.offset_s)
        )
        self.extent_s = np.asarray(extent_s, dtype=np.float64)
        self.n_clips, self.dtc = len(self.extent_s), dtc
        if len(self.clip) and not 0 <= self.clip.min() <= self.clip.max() < self.n_clips:
            raise ValueError(f"events lie in clips {self.clip.min()}…{self.clip.max()}, but there are {self.n_clips}")
        length_s = self.offset_s - self.onset_s
        self.needed_s = np.round(gtc * length_s, TIME_DECIMALS)
        self.n_events = np.bincount(self.clip, minlength=self.n_clips)
        self.event_s = np.bincount(self.clip, length_s, self.n_clips)
        # One time line for all clips, to search in; overlaps are taken from the times within the clip.
        self.zero_s = min(self.extent_s.min(initial=0), self.onset_s.min(initial=0))
        self.clip_s = max(self.extent_s.max(initial=0), self.offset_s.max(initial=0)) - self.zero_s + 1
        self.floor_tps, self.floor_fps = self._floor()

    def _floor(self) -> tuple[np.ndarray, np.ndarray]:
        """Return true and false positives (C,) where the whole clip is one detection."""
        begin, end = self.extent_s.T
        overlap = np.minimum(end[self.clip], self.offset_s) - np.maximum(begin[self.clip], self.onset_s)
        overlap = np.maximum(overlap, 0)
        passes = self._passes(np.bincount(self.clip, overlap, self.n_clips), end - begin)
        found = passes[self.clip] & (np.round(overlap, TIME_DECIMALS) >= self.needed_s)
        return np.bincount(self.clip, found, self.n_clips), (~passes).astype(np.float64)

    def _passes(self, overlap: np.ndarray, length: np.ndarray) -> np.ndarray:
        return np.round(overlap, TIME_DECIMALS) >= np.round(self.dtc * length, TIME_DECIMALS)

    def count(self, clip: np.ndarray, onset_s: np.ndarray, offset_s: np.ndarray, score: np.ndarray) -> ClassCounts:
        """Return the counts of boxes (B,), sorted by clip and onset, with a gap after each.

        Boxes with a score of zero are no detections above a threshold of zero and change nothing.

        Raises:
            ValueError: boxes that touch, overlap or are not sorted.
        """
        used = score > 0
        if not used.all():
            clip, onset_s, offset_s, score = (column[used] for column in (clip, onset_s, offset_s, score))
        begin = clip * self.clip_s + (onset_s - self.zero_s)
        end = clip * self.clip_s + (offset_s - self.zero_s)
        if (begin[1:] <= end[:-1]).any():
            at = int(np.flatnonzero(begin[1:] <= end[:-1])[0])
            raise ValueError(
                f"clip {clip[at]}: box {onset_s[at]}…{offset_s[at]} s is followed by {onset_s[at + 1]} s in clip "
                f"{clip[at + 1]}; boxes of one class must be sorted by clip and onset and lie apart"
            )
        box, event, overlap = self._pairs(begin, end, onset_s, offset_s)
        passes = self._passes(np.bincount(box, overlap, len(clip)), offset_s - onset_s)
        found_score, found_clip = self._found(box, event, overlap, passes, score)

        # What is left to the floor: the step from all boxes to one detection per clip.
        floor_tps = self.floor_tps - np.bincount(found_clip, minlength=self.n_clips)
        floor_fps = self.floor_fps - np.bincount(clip[~passes], minlength=self.n_clips)
        changed = np.flatnonzero((floor_tps != 0) | (floor_fps != 0))
        failed, found, nothing = np.ones(np.sum(~passes)), np.ones(len(found_score)), np.zeros(len(changed))
        return ClassCounts.from_steps(
            np.concatenate([score[~passes], found_score, nothing]),
            np.concatenate([clip[~passes], found_clip, changed]),
            np.concatenate([0 * failed, found, floor_tps[changed]]),
            np.concatenate([failed, 0 * found, floor_fps[changed]]),
            self.n_events,
            self.event_s,
        )

    def _pairs(self, begin, end, onset_s, offset_s) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return box, event and overlap in seconds of all that overlap, by event and time."""
        shift = self.clip * self.clip_s - self.zero_s
        first = np.searchsorted(end, shift + self.onset_s, "right")
        count = np.maximum(np.searchsorted(begin, shift + self.offset_s, "left") - first, 0)
        event = np.repeat(np.arange(len(self.clip)), count)
        box = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
        overlap = np.minimum(offset_s[box], self.offset_s[event]) - np.maximum(onset_s[box], self.onset_s[event])
        return box, event, np.maximum(overlap, 0)

    def _found(self, box, event, overlap, passes, score) -> tuple[np.ndarray, np.ndarray]:
        """Return score and clip of each event that is found at some threshold."""
        relevant = passes[box]
        box, event, overlap = box[relevant], event[relevant], overlap[relevant]
        order = np.lexsort((-score[box], event))
        box, event, covered = box[order], event[order], np.cumsum(overlap[order])
        first = np.flatnonzero(_first_of_run(event))
        before = np.append(0.0, covered)[first]
        covered = covered - np.repeat(before, np.diff(np.append(first, len(event))))
        enough = np.flatnonzero(np.round(covered, TIME_DECIMALS) >= self.needed_s[event])
        enough = enough[_first_of_run(event[enough])]
        return score[box[enough]], self.clip[event[enough]]


def _first_of_run(values: np.ndarray) -> np.ndarray:
    """Return whether each of `values` (B,) differs from the one before it."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def _last_of_run(values: np.ndarray) -> np.ndarray:
    """Return whether each of `values` (B,) differs from the one after it."""
    return np.append(values[1:] != values[:-1], True)[: len(values)]


def counts_from_deltas(
    deltas: Mapping[str, Mapping[str, tuple]], events: Mapping[str, Sequence[tuple]]
) -> list[ClassCounts]:
    """Return the counts of every class from what sed_scores_eval says of frame scores.

    Args:
        deltas: clip → class → (scores, changes), of `intersection_based.intermediate_statistics_deltas`. Clips
            and classes are numbered in this order.
        events: clip → events (onset, offset, class), of the same clips.
    """
    classes = list(next(iter(deltas.values())))
    counts = []
    for name in classes:
        scores, changes = zip(*(own[name] for own in deltas.values()))
        lengths = [[offset - onset for onset, offset, label in events[clip] if label == name] for clip in deltas]
        tps, fps = (np.concatenate([change[key] for change in changes]).astype(np.float64) for key in ("tps", "fps"))
        cross = None
        if any(key.startswith(CROSS_KEY) for key in changes[0]):
            columns = [[change.get(CROSS_KEY + other, 0 * change["fps"]) for change in changes] for other in classes]
            cross = np.stack([np.concatenate(column).astype(np.float64) for column in columns], axis=1)
        counts.append(
            ClassCounts.from_steps(
                np.concatenate(scores),
                np.repeat(np.arange(len(scores)), [len(score) for score in scores]),
                tps,
                fps,
                n_events=np.array([len(own) for own in lengths]),
                event_s=np.array([sum(own) for own in lengths], dtype=np.float64),
                cross=cross,
            )
        )
    return counts


# ---------------------------------------------------------------- PSDS


def class_roc(
    counts: Sequence[ClassCounts],
    label: int,
    durations_s: np.ndarray,
    alpha_ct: float = 0.0,
    max_efpr: float = 100.0,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best true positive ratio at or below each effective false positive rate per hour, both (P,).

    Args:
        counts: of all classes. label: the class. durations_s: (C,) seconds. alpha_ct: weight of cross triggers.
        max_efpr: where the curve is cut, per hour. weights: (C,) how often each clip counts; None: once.
    """
    own = counts[label]

    def total(per_clip):
        return np.sum(per_clip if weights is None else per_clip * weights)

    tpr = own.totals(own.tps, weights) / max(total(own.n_events), 1)
    efpr = own.totals(own.fps, weights) / total(durations_s)
    if alpha_ct:
        others = [other for other in range(len(counts)) if other != label]
        seconds = np.array([max(total(counts[other].event_s), 1e-12) for other in others])
        efpr = efpr + alpha_ct * (own.totals(own.cross, weights)[:, others] / seconds).mean(axis=1)
    efpr = efpr * SECONDS_PER_HOUR
    order = np.lexsort((tpr, efpr))
    tpr, efpr = np.maximum.accumulate(tpr[order]), efpr[order]
    kept = _last_of_run(efpr) & (efpr <= max_efpr)
    return tpr[kept], efpr[kept]


def area(tpr: np.ndarray, efpr: np.ndarray, max_efpr: float = 100.0) -> float:
    """Return the area under the staircase up to `max_efpr`, divided by it."""
    return float(np.sum(tpr * np.diff(np.append(efpr, max_efpr))) / max_efpr)


def psds(
    counts: Sequence[ClassCounts],
    durations_s: np.ndarray,
    *,
    alpha_ct: float = 0.0,
    alpha_st: float = 0.0,
    max_efpr: float = 100.0,
    weights: np.ndarray | None = None,
) -> tuple[float, np.ndarray]:
    """Return the PSDS over all classes and that of each class (K,).

    The criteria dtc, gtc and cttc are in the counts. A class without events counts with 0.

    Args:
        counts: of all classes. durations_s: (C,) seconds.
        alpha_ct, alpha_st: weight of cross triggers, and of the spread between classes.
        max_efpr: per hour. weights: (C,) how often each clip counts, such as one draw of a bootstrap.
    """
    durations_s = np.asarray(durations_s, dtype=np.float64)
    rocs = [class_roc(counts, k, durations_s, alpha_ct, max_efpr, weights) for k in range(len(counts))]
    efpr = np.unique(np.concatenate([roc[1] for roc in rocs]))
    tpr = np.stack([own[np.searchsorted(at, efpr, "right") - 1] for own, at in rocs])
    effective = np.maximum(tpr.mean(axis=0) - alpha_st * tpr.std(axis=0), 0)
    return area(effective, efpr, max_efpr), np.array([area(*roc, max_efpr) for roc in rocs])
