"""Intervals for the scores of a sound event detector, by resampling clips (or what clips belong to).

Flow: scoring set + counts per clip → **intervals** → result JSON.

    bootstrap = ClipBootstrap(data.clips, n_resamples=200)
    value, per_class = resampled_psds(data, bootstrap)
    value.interval()                        # Interval(estimate=0.335, low=0.316, high=0.352, …)

A resample draws whole clips, with their ground truth and duration. Its counts of true and false positives are the
weighted sums of those of the clips, so that nothing is decoded again, and its score is what the metric gives for
the drawn clips (a test holds both together). Scores of two systems with one `ClipBootstrap` may be subtracted: a
paired difference.

sed_scores_eval 0.0.4 has functions called bootstrapped_*: they score 80 % of the clips at a time, without putting
any back. The spread of such subsets is about half the standard error of the whole set, so they give no confidence
interval and are not used.

What an interval says: how far the score would move with other clips of the same kind. It does not contain the spread
between training seeds, nor what was tuned on the same clips. PSDS and AUROC take the best threshold on the very clips
that they score, in a resample as well: resamples lie a little above the score (by 0.009 for the plain mean of PSDS1 of
1153 clips, 0.523), and so does the middle of the interval.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from common.metrics import psds_fast
from common.metrics.bootstrap import GroupBootstrap, Resampled
from common.metrics.psds_fast import ClassCounts, counts_from_deltas
from common.metrics.scoring_set import ScoringSet
from common.metrics.sed import (
    PSDS1,
    PsdsSettings,
    Segments,
    intersection_counts,
    partial_auroc,
    segment_cells,
)

Parts = tuple[Resampled, dict[str, Resampled]]  # of the score, and of each class


class ClipBootstrap(GroupBootstrap):
    """Resamples of clips, drawn once; every score uses the same ones.

    Args:
        clips: names in the order of the scoring set.
        groups: what is drawn: (N,) names, one per clip, such as the recording that a crop is from; None: the clips.
        n_resamples, level, seed: as in `GroupBootstrap`.
    """

    def __init__(self, clips: Sequence[str], groups: Sequence[str] | None = None, **settings):
        super().__init__(clips if groups is None else groups, **settings)
        self.clips = list(clips)

    def weights(self) -> Iterator[np.ndarray]:
        """Return for each resample how often every clip was drawn, (N,)."""
        return (drawn[self.index] for drawn in self.draws())

    def resampled(self, score: Callable[[np.ndarray], tuple[float, dict]], n_groups: Mapping[str, int]) -> Parts:
        """Return a score and its parts on all clips and on each resample.

        Args:
            score: from how often each clip counts (N,) to the score and class → its part, absent classes left out.
            n_groups: class → groups that hold an event of it.
        """
        value, per_class = score(np.ones(self.n_clips))
        drawn = [score(weights) for weights in self.weights()]
        parts = {
            name: Resampled(own, np.array([p[1].get(name, np.nan) for p in drawn]), n_groups[name], self)
            for name, own in per_class.items()
        }
        return Resampled(value, np.array([p[0] for p in drawn]), self.n_groups, self), parts

    def n_groups_with(self, clips: np.ndarray) -> int:
        """Return how many groups hold one of the clips of a mask (N,)."""
        return len(np.unique(self.index[clips]))


def resampled_psds(
    data: ScoringSet, bootstrap: ClipBootstrap, settings: PsdsSettings = PSDS1, counts: dict | None = None
) -> Parts:
    """Return PSDS on the clips and on each resample, overall and per class.

    A class that a resample drew no event of is left out of that resample; a resample without any event is NaN.

    Args:
        counts: `intersection_counts` with the settings' dtc, gtc and cttc, where they exist already.
    """
    settings = settings.for_classes(len(data.classes))
    counts = intersection_counts(data, settings.dtc, settings.gtc, settings.cttc) if counts is None else counts
    steps = counts_from_deltas(counts, data.events)
    durations_s = np.array([data.durations_s[clip] for clip in data.clips])

    def score(weights: np.ndarray) -> tuple[float, dict[str, float]]:
        present = [k for k, own in enumerate(steps) if own.n_events @ weights > 0]
        if not present:
            return np.nan, {}
        own = settings.for_classes(len(present))
        options = {"alpha_ct": own.alpha_ct, "alpha_st": own.alpha_st, "max_efpr": own.max_efpr}
        value, per_class = psds_fast.psds(_only(steps, present), durations_s, weights=weights, **options)
        return value, {data.classes[k]: own for k, own in zip(present, per_class)}

    n_groups = {name: bootstrap.n_groups_with(own.n_events > 0) for name, own in zip(data.classes, steps)}
    return bootstrap.resampled(score, n_groups)


def resampled_f1(data: ScoringSet, bootstrap: ClipBootstrap, counts: dict, threshold: float = 0.5) -> Parts:
    """Return the macro F1 at a threshold on the clips and on each resample, overall and per class.

    Args:
        counts: of the F1 wanted: `intersection_counts` or `collar_counts`.
    """
    shape = (len(data.classes), len(data.clips))
    hits, false, events = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for n, clip in enumerate(data.clips):
        labels = [label for *_, label in data.events[clip]]
        for k, name in enumerate(data.classes):
            scores, changes = counts[clip][name]
            below = scores > threshold
            hits[k, n], false[k, n] = changes["tps"][below].sum(), changes["fps"][below].sum()
            events[k, n] = labels.count(name)
    return _resampled_f1(data, bootstrap, hits, false, events)


def resampled_segment_f1(
    data: ScoringSet, bootstrap: ClipBootstrap, threshold: float = 0.5, cells: dict[str, Segments] | None = None
) -> Parts:
    """Return the macro F1 of segments at a threshold on the clips and on each resample, overall and per class."""
    cells = segment_cells(data) if cells is None else cells

    def count(mask_of):
        return np.stack([np.bincount(own.clip[mask_of(own)], minlength=len(data.clips)) for own in cells.values()])

    hits = count(lambda own: own.active & (own.scores > threshold))
    false = count(lambda own: ~own.active & (own.scores > threshold))
    return _resampled_f1(data, bootstrap, hits, false, count(lambda own: own.active))


def _resampled_f1(data: ScoringSet, bootstrap: ClipBootstrap, hits, false, events) -> Parts:
    """Args: true positives, false positives and events, each (K, N)."""

    def score(weights: np.ndarray) -> tuple[float, dict[str, float]]:
        found, wanted = 2 * (hits @ weights), (hits + false + events) @ weights
        f1 = np.divide(found, wanted, out=np.zeros_like(found), where=wanted > 0)
        present = events @ weights > 0
        return f1[present].mean() if present.any() else np.nan, dict(zip(np.array(data.classes)[present], f1[present]))

    return bootstrap.resampled(score, dict(zip(data.classes, map(bootstrap.n_groups_with, events > 0))))


def resampled_auroc(
    data: ScoringSet,
    bootstrap: ClipBootstrap,
    max_fpr: float | None = None,
    cells: dict[str, Segments] | None = None,
) -> Parts:
    """Return the segment AUROC (mpAUC: max_fpr 0.1) on the clips and on each resample, overall and per class."""
    cells = segment_cells(data) if cells is None else cells
    orders = {name: np.argsort(-own.scores, kind="stable") for name, own in cells.items()}  # sorted once, not R times
    cells = {n: Segments(*(v[orders[n]] for v in (own.scores, own.active, own.clip))) for n, own in cells.items()}

    def score(weights: np.ndarray) -> tuple[float, dict[str, float]]:
        areas = {n: partial_auroc(own.scores, own.active, max_fpr, weights[own.clip]) for n, own in cells.items()}
        areas = {name: area for name, area in areas.items() if not np.isnan(area)}
        return np.mean(list(areas.values())) if areas else np.nan, areas

    active = {name: np.bincount(own.clip, own.active, len(data.clips)) > 0 for name, own in cells.items()}
    return bootstrap.resampled(score, {name: bootstrap.n_groups_with(own) for name, own in active.items()})


def _only(steps: list[ClassCounts], present: list[int]) -> list[ClassCounts]:
    if len(present) == len(steps):
        return steps
    return [
        own if own.cross is None else replace(own, cross=own.cross[:, present]) for own in (steps[k] for k in present)
    ]
