"""Scores of a sound event detector: PSDS, F1 by intersection, collar and segment, segment AUROC.

Flow: score folder + ground truth → `scoring_set` (checked, restricted to what was scored) → **scores** → result JSON.

    data = scoring_set(read_score_folder("scores"), read_ground_truth("gt.tsv"), read_durations("durations.tsv"))
    psds(data).value, psds(data, PSDS2).per_class["Speech"], collar_f1(data).value
    print(*data.notes, data.status)         # what was mended or left out; "partial data" where scores are missing

sed_scores_eval does the counting: exact, for all thresholds at once. `psds_by_psds_eval` is a second opinion by another
implementation, for a list of thresholds.

Source: C. Bilen et al., A framework for the robust evaluation of sound event detection, ICASSP 2020 (PSDS);
J. Ebbers, R. Serizel and R. Haeb-Umbach, Threshold-independent evaluation of sound event detection scores, ICASSP 2022.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from psds_eval import PSDSEval

from common.data.events import EVENT_COLUMNS
from common.data.manifest import DataError
from common.metrics.scoring_set import ScoringSet

with warnings.catch_warnings():  # dcase_util, which sed_scores_eval brings along, still needs pkg_resources
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    from sed_scores_eval import collar_based, intersection_based, segment_based
    from sed_scores_eval.base_modules.detection import scores_to_event_list
    from sed_scores_eval.segment_based.intermediate_statistics import intermediate_statistics_deltas as segment_deltas

SECOND_OPINION_THRESHOLDS = tuple(np.linspace(0.01, 0.99, 50))


@dataclass(frozen=True)
class Score:
    """A score, the same per class, and what else the metric gives.

    Attributes:
        value: the number that is reported. per_class: class → its own value.
        details: by metric: curves (arrays), averages, thresholds.
    """

    value: float
    per_class: Mapping[str, float]
    details: Mapping = field(default_factory=dict)


# ---------------------------------------------------------------- PSDS


@dataclass(frozen=True)
class PsdsSettings:
    """Parameters of PSDS.

    Attributes:
        dtc: share of a detection that must lie in ground truth of its class. gtc: share of an event that passing
            detections must cover. cttc: share of a failing detection in events of another class that makes it a cross
            trigger; None where alpha_ct is 0.
        alpha_ct: weight of cross triggers in the effective false positive rate. alpha_st: weight of the standard
            deviation over classes, subtracted at every point of the curve.
        max_efpr: end of the area, effective false positives per hour.
    """

    dtc: float = 0.7
    gtc: float = 0.7
    cttc: float | None = None
    alpha_ct: float = 0.0
    alpha_st: float = 1.0
    max_efpr: float = 100.0

    def for_classes(self, n_classes: int) -> "PsdsSettings":
        """Return the settings for so many classes: one class alone has no cross triggers."""
        return self if n_classes > 1 else replace(self, cttc=None, alpha_ct=0.0)


PSDS1 = PsdsSettings()
PSDS1_MACRO = PsdsSettings(alpha_st=0.0)  # the plain mean of the classes' own PSDS1
PSDS2 = PsdsSettings(dtc=0.1, gtc=0.1, cttc=0.3, alpha_ct=0.5)


def intersection_counts(data: ScoringSet, dtc: float, gtc: float, cttc: float | None = None) -> dict:
    """Return how true and false positives of each clip change with the threshold: clip → class → (scores, changes).

    The form is that of sed_scores_eval's deltas. All scores by intersection can be had from them again, also those of
    resampled clips. One class alone has no cross triggers, whatever `cttc`.
    """
    cttc = cttc if len(data.classes) > 1 else None
    counts = intersection_based.intermediate_statistics_deltas(
        data.tables, data.events, dtc_threshold=dtc, gtc_threshold=gtc, cttc_threshold=cttc
    )
    first = data.clips[0]
    for name in data.classes:  # sed_scores_eval 0.0.4 cannot sum up nothing: a change of zero, where there is none
        if not any(len(counts[clip][name][0]) for clip in data.clips):
            counts[first][name] = (np.zeros(1), {key: np.zeros(1) for key in counts[first][name][1]})
    return counts


def psds(data: ScoringSet, settings: PsdsSettings = PSDS1, counts: dict | None = None) -> Score:
    """Return PSDS; details: efpr (per hour) and etpr of its curve, which is a staircase.

    Args:
        counts: `intersection_counts` with the same dtc, gtc and cttc, where they exist already.
    """
    settings = settings.for_classes(len(data.classes))
    counts = intersection_counts(data, settings.dtc, settings.gtc, settings.cttc) if counts is None else counts
    value, per_class, (etpr, efpr), _ = intersection_based.psds(
        None,
        data.events,
        data.durations_s,
        deltas=counts,
        dtc_threshold=settings.dtc,
        gtc_threshold=settings.gtc,
        cttc_threshold=settings.cttc,
        alpha_ct=settings.alpha_ct,
        alpha_st=settings.alpha_st,
        max_efpr=settings.max_efpr,
    )
    return Score(float(value), _floats(per_class, data), {"efpr": efpr, "etpr": etpr})


def psds_by_psds_eval(
    detections: Sequence[pd.DataFrame],
    events: Mapping[str, list[tuple[float, float, str]]],
    durations_s: Mapping[str, float],
    settings: PsdsSettings = PSDS1,
) -> Score:
    """Return PSDS by psds_eval, from one table of detections per threshold (operating point).

    Slow (0.3 s per operating point and thousand clips): for small sets, and as a check of `psds`. With few
    thresholds the curve has few points; for alpha_st = 0 it then lies below the exact one.

    Args:
        detections: columns filename (the clip's name), onset, offset, event_label; those of one class do not overlap.

    Raises:
        DataError: fewer than two classes; psds_eval then divides nothing by nothing, and says 0.
    """
    labels = {label for own in events.values() for *_, label in own}
    if len(labels) < 2:
        raise DataError(f"psds_eval cannot score {len(labels)} class(es); it needs two.")
    truth = _table((clip, *event) for clip, own in events.items() for event in own)
    metadata = pd.DataFrame(list(durations_s.items()), columns=["filename", "duration"])
    cttc = 1.0 if settings.cttc is None else settings.cttc  # not used where alpha_ct is 0
    judge = PSDSEval(
        dtc_threshold=settings.dtc,
        gtc_threshold=settings.gtc,
        cttc_threshold=cttc,
        ground_truth=truth,
        metadata=metadata,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an operating point that repeats another is skipped: no loss
        for table in detections:
            judge.add_operating_point(table[list(EVENT_COLUMNS)])
        found = judge.psds(alpha_ct=settings.alpha_ct, alpha_st=settings.alpha_st, max_efpr=settings.max_efpr)
        curves = judge.psd_roc_curves(alpha_ct=settings.alpha_ct)[2]
    names = [name for name in judge.class_names if name in labels]
    per_class = {name: _staircase(curves.xp, tpr, settings.max_efpr) for name, tpr in zip(names, curves.yp)}
    return Score(float(found.value), per_class, {"efpr": found.plt.xp, "etpr": found.plt.yp})


def detections_at(data: ScoringSet, threshold: float) -> pd.DataFrame:
    """Return the detections at one threshold: runs of frames with a score above it."""
    events = scores_to_event_list(data.tables, threshold)
    return _table((clip, *event) for clip, own in events.items() for event in own)


def psds_second_opinion(
    data: ScoringSet, settings: PsdsSettings = PSDS1, thresholds: Sequence[float] = SECOND_OPINION_THRESHOLDS
) -> Score:
    """Return PSDS of the scores by psds_eval, at the given thresholds (default: 50, as the challenge baseline)."""
    points = [detections_at(data, threshold) for threshold in thresholds]
    return psds_by_psds_eval(points, data.events, data.durations_s, settings)


def _table(rows: Iterable[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows), columns=list(EVENT_COLUMNS))
    return table.astype({"onset": float, "offset": float})


def _staircase(x: np.ndarray, y: np.ndarray, end: float) -> float:
    """Return the area under steps from 0 to `end`, divided by `end`; y holds from its x on; x increases."""
    inside = np.searchsorted(x, end, side="right")
    return float(np.sum(y[:inside] * np.diff(np.append(x[:inside], end))) / end)


# ---------------------------------------------------------------- F1 and AUROC


def intersection_f1(
    data: ScoringSet, threshold: float = 0.5, dtc: float = 0.5, gtc: float = 0.5, counts: dict | None = None
) -> Score:
    """Return the macro F1 of detections that pass DTC and events that pass GTC (see `PsdsSettings`)."""
    counts = intersection_counts(data, dtc, gtc) if counts is None else counts
    found = intersection_based.fscore(
        None, data.events, threshold, deltas=counts, dtc_threshold=dtc, gtc_threshold=gtc
    )
    return _f1(data, *found[:3])


def collar_counts(
    data: ScoringSet, onset_collar_s: float = 0.2, offset_collar_s: float = 0.2, offset_share: float = 0.2
) -> dict:
    """Return what `intersection_counts` does, for detections whose onset and offset lie within collars of an event's.

    The collar of the offset is at least `offset_share` of the event's length.
    """
    return collar_based.intermediate_statistics_deltas(
        data.tables, data.events, onset_collar_s, offset_collar_s, offset_collar_rate=offset_share
    )


def collar_f1(data: ScoringSet, threshold: float = 0.5, counts: dict | None = None) -> Score:
    """Return the macro F1 of detections by onset and offset.

    Args:
        counts: `collar_counts`; None: with its own collars, 200 ms and 20 % of the event's length.
    """
    counts = collar_counts(data) if counts is None else counts
    collars = {"onset_collar": 0.2, "offset_collar": 0.2}  # asked for, but not used where the counts are given
    return _f1(data, *collar_based.fscore(None, data.events, threshold, deltas=counts, **collars)[:3])


def segment_f1(data: ScoringSet, threshold: float | None = 0.5, segment_s: float = 1.0) -> Score:
    """Return the macro F1 of segments: active where the clip's score exceeds the threshold anywhere in the segment.

    Args:
        threshold: None takes for each class the threshold that is best on these very clips (an upper bound); details
            then hold the thresholds.
    """
    arguments = (data.tables, data.events, data.durations_s)
    if threshold is not None:
        return _f1(data, *segment_based.fscore(*arguments, threshold=threshold, segment_length=segment_s)[:3])
    found = segment_based.best_fscore(*arguments, segment_length=segment_s)
    return _f1(data, *found[:3], thresholds=_floats(found[3], data))


def _f1(data: ScoringSet, f1: Mapping, precision: Mapping, recall: Mapping, **details) -> Score:
    details |= {"micro_average": float(f1["micro_average"])}
    details |= {"precision": _floats(precision, data), "recall": _floats(recall, data)}
    return Score(float(f1["macro_average"]), _floats(f1, data), details)


def _floats(values: Mapping, data: ScoringSet) -> dict[str, float]:
    return {name: float(values[name]) for name in data.classes}


@dataclass(frozen=True)
class Segments:
    """The segments of one class in all clips: score, whether an event touches it, and number of its clip; each (M,)."""

    scores: np.ndarray
    active: np.ndarray
    clip: np.ndarray


def segment_cells(data: ScoringSet, segment_s: float = 1.0) -> dict[str, Segments]:
    """Return class → segments; the score of a segment is the maximum of the frames that touch it."""
    deltas = segment_deltas(data.tables, data.events, data.durations_s, segment_length=segment_s)
    cells = {}
    for name in data.classes:
        scores, changes = zip(*(deltas[clip][name] for clip in data.clips))
        clip = np.repeat(np.arange(len(scores)), [len(own) for own in scores])
        cells[name] = Segments(np.concatenate(scores), np.concatenate([c["tps"] for c in changes]).astype(bool), clip)
    return cells


def segment_auroc(
    data: ScoringSet, max_fpr: float | None = None, segment_s: float = 1.0, cells: dict[str, Segments] | None = None
) -> Score:
    """Return the area under the ROC curve of segments, up to a false positive rate and divided by it; mean of classes.

    A class that is active in all segments has no false positive rate and is left out. Area as a staircase, as in
    sed_scores_eval 0.0.4: chance is max_fpr / 2 (later versions connect the points and can correct for chance).
    """
    cells = segment_cells(data, segment_s) if cells is None else cells
    per_class = {name: partial_auroc(own.scores, own.active, max_fpr) for name, own in cells.items()}
    per_class = {name: value for name, value in per_class.items() if not np.isnan(value)}
    if not per_class:
        raise DataError("every class is active in all segments of the scored clips: there is no false positive rate.")
    return Score(float(np.mean(list(per_class.values()))), per_class)


def partial_auroc(
    scores: np.ndarray, active: np.ndarray, max_fpr: float | None = None, weights: np.ndarray | None = None
) -> float:
    """Return the staircase area under the ROC curve up to `max_fpr`, divided by it; NaN without actives or inactives.

    Thresholds fall through the scores, equal scores together; the true positive rate is held until the next false
    positive rate.

    Args:
        scores, active: (M,). max_fpr: None for 1. weights: how often each item counts, (M,).
    """
    order = np.argsort(-scores, kind="stable")
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64)
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits, false = (np.cumsum((weights * mask)[order])[ends] for mask in (active, ~active))
    if not hits[-1] > 0 or not false[-1] > 0:
        return float("nan")
    tpr, fpr = np.append(0, hits / hits[-1]), np.append(0, false / false[-1])
    return _staircase(fpr, tpr, 1.0 if max_fpr is None else max_fpr)
