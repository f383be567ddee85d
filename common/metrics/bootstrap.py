"""Intervals for accuracies, by resampling groups of clips that belong together.

Flow: predictions file → correct or not, per clip → **intervals** → result JSON.

The clips of one recording, and the recordings of one location, succeed or fail together. So the unit that is
drawn anew is the group (location or recording), never the clip: resampling clips would count ten copies of
one observation as ten observations and give intervals about √10 too narrow.

One draw gives each of the G groups a multinomial weight. All statistics are ratios of sums over clips, so
per-group sums times weights give each resample exactly, without touching the clips again. Statistics of one
`GroupBootstrap` share its weights: their difference is a paired difference.

    bootstrap = GroupBootstrap(locations, seed=0)
    gain = bootstrap.macro_accuracy(correct_b, labels) - bootstrap.macro_accuracy(correct_a, labels)
    gain.interval()     # Interval(estimate=0.012, low=0.004, high=0.021, level=0.95, n_groups=146, …)

What an interval says: how far the number would move with other locations of the same kind. It does not
contain the spread between training seeds. With fewer than about 20 groups it is too narrow; `n_groups` is
there to be looked at.

Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993 (percentile interval, cluster
resampling).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

CHUNK_SIZE = 2_000_000  # weights turned to float64 at a time: 16 MB


@dataclass(frozen=True)
class Interval:
    """A number and its percentile interval.

    `n_groups` counts the groups that hold a clip of what was measured, `n_resamples` the resamples in which
    it existed; the bounds are NaN where there is none.
    """

    estimate: float
    low: float
    high: float
    level: float
    n_groups: int
    n_resamples: int

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Resampled:
    """A statistic on the data and on each resample, (R,); NaN where a resample drew no clip of it."""

    estimate: float
    values: np.ndarray
    n_groups: int
    source: "GroupBootstrap" = field(repr=False)

    def __sub__(self, other: "Resampled") -> "Resampled":
        """Paired difference: resample by resample, with the same weights for both."""
        if self.source is not other.source:
            raise ValueError(
                "two statistics of different resamples: a paired difference needs one GroupBootstrap for both"
            )
        n_groups = min(self.n_groups, other.n_groups)
        return Resampled(self.estimate - other.estimate, self.values - other.values, n_groups, self.source)

    def interval(self, level: float | None = None) -> Interval:
        level = self.source.level if level is None else level
        values = self.values[~np.isnan(self.values)]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if len(values) else (np.nan, np.nan)
        return Interval(float(self.estimate), float(low), float(high), level, self.n_groups, len(values))


class GroupBootstrap:
    """Group weights, drawn once; every statistic uses the same ones.

    Args:
        groups: (N,) name of each clip's group, for example its location.
        n_resamples: R. level: coverage asked for, 0..1. seed: of the draw.

    In all methods `correct` is (N,), 1 or True where the clip was recognised, or (S, N) for S training seeds
    on the same clips. The mean over seeds of any of these statistics equals the statistic of the mean of
    `correct` over seeds, in every resample, because all of them are linear in `correct`; so that mean is
    taken first.

    Raises:
        ValueError: fewer than two groups (nothing to resample), or lengths that do not agree.
    """

    def __init__(self, groups: Sequence[str], n_resamples: int = 2000, level: float = 0.95, seed: int = 0):
        names, self.index = np.unique(np.asarray(groups), return_inverse=True)
        self.n_groups, self.n_clips = len(names), len(self.index)
        self.n_resamples, self.level = n_resamples, level
        if self.n_groups < 2:
            raise ValueError(
                f"{self.n_groups} group(s) in {self.n_clips} clips: an interval needs at least two"
            )
        if not 0 < level < 1 or n_resamples < 1:
            raise ValueError(
                f"level {level} must lie between 0 and 1, n_resamples {n_resamples} must be positive"
            )
        rng = np.random.default_rng(seed)
        equal = np.full(self.n_groups, 1 / self.n_groups)
        chunk = max(1, CHUNK_SIZE // self.n_groups)
        sizes = [min(chunk, n_resamples - start) for start in range(0, n_resamples, chunk)]
        self._weights = [rng.multinomial(self.n_groups, equal, size).astype(np.uint32) for size in sizes]

    def draws(self) -> Iterator[np.ndarray]:
        """Yield for each resample how often every group was drawn, float64 (G,)."""
        for chunk in self._weights:
            yield from chunk.astype(np.float64)

    def accuracy(self, correct, members: np.ndarray | None = None) -> Resampled | None:
        """Return the accuracy over the clips of the mask `members` (N,), or over all.

        None where fewer than two groups hold such a clip: one group alone cannot vary.
        """
        stratum = np.zeros(self.n_clips, dtype=int) if members is None else np.where(members, 0, -1)
        estimates, values, n_groups = self._accuracies(correct, stratum, 1)
        return Resampled(estimates[0], values[:, 0], int(n_groups[0]), self) if n_groups[0] > 1 else None

    def macro_accuracy(self, correct, labels) -> Resampled:
        """Return the mean of the accuracies of the classes present (in a resample: drawn); `labels` (N,)."""
        names, stratum = np.unique(np.asarray(labels), return_inverse=True)
        estimates, values, _ = self._accuracies(correct, stratum, len(names))
        return Resampled(estimates.mean(), np.nanmean(values, axis=1), self.n_groups, self)

    def by_name(self, correct, names: Sequence[str]) -> dict[str, Resampled]:
        """Return the accuracy per name (N,), such as the device; names in only one group are left out."""
        present, stratum = np.unique(np.asarray(names, dtype=str), return_inverse=True)
        estimates, values, n_groups = self._accuracies(correct, stratum, len(present))
        return {
            str(name): Resampled(estimates[k], values[:, k], int(n_groups[k]), self)
            for k, name in enumerate(present)
            if n_groups[k] > 1
        }

    def _accuracies(self, correct, stratum: np.ndarray, n_strata: int):
        """Return estimates (n_strata,), resampled values (R, n_strata) and groups per stratum (n_strata,).

        `stratum` (N,) numbers the stratum of each clip, -1 for none.
        """
        correct = np.asarray(correct, dtype=np.float64)
        correct = correct.mean(axis=0) if correct.ndim == 2 else correct
        if correct.shape != (self.n_clips,) or stratum.shape != (self.n_clips,):
            raise ValueError(
                f"{self.n_clips} clips have a group, but {correct.shape[-1]} a score, {len(stratum)} a name"
            )
        used = stratum >= 0
        cell = self.index[used] * n_strata + stratum[used]
        size, shape = self.n_groups * n_strata, (self.n_groups, n_strata)
        clips = np.bincount(cell, minlength=size).reshape(shape).astype(np.float64)
        hits = np.bincount(cell, weights=correct[used], minlength=size).reshape(shape)
        drawn_clips, drawn_hits = self._totals(clips), self._totals(hits)
        values = np.divide(
            drawn_hits, drawn_clips, out=np.full_like(drawn_hits, np.nan), where=drawn_clips > 0
        )
        total = clips.sum(axis=0)
        estimates = np.divide(hits.sum(axis=0), total, out=np.full(n_strata, np.nan), where=total > 0)
        return estimates, values, (clips > 0).sum(axis=0)

    def _totals(self, per_group: np.ndarray) -> np.ndarray:
        """Return weighted sums over groups: (G, columns) → (R, columns)."""
        return np.concatenate([weights.astype(np.float64) @ per_group for weights in self._weights])


def accuracy_intervals(
    correct,
    labels,
    devices: Sequence[str],
    device_groups: Mapping[str, Sequence[str]],
    groups: Sequence[str],
    gap: tuple[str, str] | None = ("a", "unseen"),
    **settings,
) -> dict[str, Interval]:
    """Return the interval of every accuracy of one system.

    Args:
        correct: (N,) or (S, N). labels, devices, groups: (N,), `groups` being what is resampled.
        device_groups: group name → its devices.
        gap: first minus second, each a device or a device group; None to leave it out.
        settings: of `GroupBootstrap`: n_resamples, level, seed.

    Returns:
        "accuracy", "macro_accuracy", "device_accuracy/<device>", "group_accuracy/<group>" and, where both
        sides have clips, "gap/<first>-<second>" (paired: same resamples). What lies in fewer than two groups
        is left out.
    """
    statistics = _statistics(GroupBootstrap(groups, **settings), correct, labels, devices, device_groups)
    if gap is not None:
        first, second = (_find(statistics, name) for name in gap)
        if first is not None and second is not None:
            statistics[f"gap/{gap[0]}-{gap[1]}"] = first - second
    return {name: statistic.interval() for name, statistic in statistics.items()}


def paired_differences(
    correct,
    correct_reference,
    labels,
    devices: Sequence[str],
    device_groups: Mapping[str, Sequence[str]],
    groups: Sequence[str],
    **settings,
) -> dict[str, Interval]:
    """Return the intervals of `correct` minus `correct_reference`: two systems, same clips, same order.

    Arguments and names as in `accuracy_intervals`, without the gap; the two may differ in their number of
    seeds S. Both use the same resamples, so that what the locations do to both alike cancels.
    """
    bootstrap = GroupBootstrap(groups, **settings)
    first = _statistics(bootstrap, correct, labels, devices, device_groups)
    second = _statistics(bootstrap, correct_reference, labels, devices, device_groups)
    return {name: (first[name] - second[name]).interval() for name in first}


def _statistics(bootstrap: GroupBootstrap, correct, labels, devices, device_groups) -> dict[str, Resampled]:
    devices = np.asarray(devices, dtype=str)
    statistics = {
        "accuracy": bootstrap.accuracy(correct),
        "macro_accuracy": bootstrap.macro_accuracy(correct, labels),
    }
    for device, statistic in bootstrap.by_name(correct, devices).items():
        statistics[f"device_accuracy/{device}"] = statistic
    for name, members in device_groups.items():
        statistic = bootstrap.accuracy(correct, np.isin(devices, list(members)))
        if statistic is not None:
            statistics[f"group_accuracy/{name}"] = statistic
    return statistics


def _find(statistics: Mapping[str, Resampled], name: str) -> Resampled | None:
    return statistics.get(f"device_accuracy/{name}") or statistics.get(f"group_accuracy/{name}")


def intervals_for_record(intervals: Mapping[str, Interval], resampled: str) -> dict:
    """Return the "intervals" entry of a result record: bounds by metric name, and what was resampled.

    `{"macro_accuracy": [low, high], "device_accuracy": {"a": [low, high]}, …, "level", "resampled",
    "n_groups", "n_resamples"}`; the gap appears as `"gap": {"a-unseen": {"difference", "interval"}}`.
    """
    overall = intervals["macro_accuracy"]
    entry = {"level": overall.level, "resampled": resampled, "n_groups": overall.n_groups}
    entry["n_resamples"] = overall.n_resamples
    for name, interval in intervals.items():
        bounds = [interval.low, interval.high]
        metric, _, part = name.partition("/")
        if metric == "gap":
            entry.setdefault("gap", {})[part] = {"difference": interval.estimate, "interval": bounds}
        elif part:
            entry.setdefault(metric, {})[part] = bounds
        else:
            entry[metric] = bounds
    return entry


def comparison_for_record(differences: Mapping[str, Interval], against: str) -> dict:
    """Return the "comparison" entry of a result record, for this run minus the run `against`.

    `{"against", "macro_accuracy": {"difference", "interval"}, "device_accuracy": {device: {…}}, "groups":
    {group: {…}}, …}`
    """
    entry: dict = {"against": against}
    for name, interval in differences.items():
        metric, _, part = name.partition("/")
        value = {"difference": interval.estimate, "interval": [interval.low, interval.high]}
        if part:
            entry.setdefault("groups" if metric == "group_accuracy" else metric, {})[part] = value
        else:
            entry[metric] = value
    return entry
