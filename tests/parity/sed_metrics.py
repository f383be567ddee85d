"""Vectors of the SED metrics: PSDS, F1 and segment scores of real score files, mpAUC of joined crops."""

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd

from common.metrics.maestro import joined_set, mpauc
from common.metrics.scoring_set import ScoringSet, scoring_set
from common.metrics.sed import (
    PSDS1,
    PSDS1_MACRO,
    PSDS2,
    Score,
    collar_f1,
    intersection_counts,
    intersection_f1,
    psds,
    segment_auroc,
    segment_f1,
)
from common.metrics.sed_scores import FrameScores, ground_truth
from tests.parity.checks import Check, DifferenceError, compare, equal, handles
from tests.parity.vectors import Vector

EXACT = 1e-12  # absolute; scores lie within 0..1
FRAME_S = 0.064
KEPT_POINTS = 7  # of the curve, the vector has every 7th point


@handles(lambda v: v.field("psds1_alpha_st0") is not None)
def check_psds(vector: Vector) -> Iterable[Check]:
    """All scores of one system; the input is replaced by handing a quarter of the clips the scores of others."""
    files, classes, arrays = vector.field("files"), vector.field("classes"), vector.arrays
    rows = (arrays["gt_file"], arrays["gt_on"], arrays["gt_off"], arrays["gt_cls"])
    events = pd.DataFrame(zip(*rows), columns=["filename", "onset", "offset", "event_label"])
    events = events.assign(filename=[files[n] for n in rows[0]], event_label=[classes[k] for k in rows[3]])
    durations_s = dict(zip(files, arrays["dur"]))
    values, borders = arrays["scores"] / 50, FRAME_S * np.arange(arrays["scores"].shape[1] + 1)
    truth = ground_truth(events)
    found = scoring_set(FrameScores(files, classes, borders, values), truth, durations_s)
    other = scoring_set(FrameScores(files[::4], classes, borders, values[1::4]), truth, durations_s)
    yield equal("n_files_with_events", len(found.clips), vector.field("n_files_with_events"))
    counts = [intersection_counts(data, PSDS1.dtc, PSDS1.gtc) for data in (found, other)]
    first, replaced = (psds(data, PSDS1, own) for data, own in zip((found, other), counts))
    yield from _scores("psds1", first, replaced, vector.field("psds1"), vector.field("psds1_class"))
    macro = [psds(data, PSDS1_MACRO, own).value for data, own in zip((found, other), counts)]
    yield compare("psds1_alpha_st0", macro[0], vector.field("psds1_alpha_st0"), absolute=EXACT, replaced=macro[1])
    second = [psds(data, PSDS2) for data in (found, other)]
    yield from _scores("psds2", *second, vector.field("psds2"), vector.field("psds2_class"))
    for name in ("efpr", "etpr"):
        own, moved = (curve.details[name][::KEPT_POINTS] for curve in (first, replaced))
        moved = moved[np.linspace(0, len(moved) - 1, len(own)).astype(int)]
        yield compare(f"roc_{name}", own, arrays[f"roc_{name}"], relative=EXACT, replaced=moved)
    for name, function in (
        ("intersection_f1_05", intersection_f1),
        ("collar_f1_05", collar_f1),
        ("segment_best_f1", partial(segment_f1, threshold=None)),
        ("segment_pauroc_01", partial(segment_auroc, max_fpr=0.1)),
    ):
        yield from _listed(name, function, found, other, vector.field(name))


@handles(lambda v: v.field("gt_merged") is not None)
def check_mpauc(vector: Vector) -> Iterable[Check]:
    """Joined scores, joined ground truth and segment scores; the input is replaced by the scores of other crops."""
    clips, frames, evaluated = vector.field("clips"), vector.arrays["frames"], vector.field("eval_classes")
    borders = FRAME_S * np.arange(frames.shape[1] + 1)
    labels, durations_s = pd.DataFrame(vector.field("gt")), vector.field("durations")
    found, other = (
        joined_set(FrameScores(clips, vector.field("classes"), borders, scores), labels, durations_s, evaluated)
        for scores in (frames, np.roll(frames, 1, axis=0))
    )
    for recording, merged in vector.field("gt_merged").items():
        own, expected = sorted(found.events[recording]), sorted(map(tuple, merged))
        if [event[2] for event in own] != [event[2] for event in expected]:
            raise DifferenceError(f"gt_merged of {recording}: other classes, or {len(own)} events for {len(expected)}")
        yield compare(f"gt_merged {recording}", [e[:2] for e in own], [e[:2] for e in expected], absolute=EXACT)
        segments, moved = (data.tables[recording].to_numpy()[:, 2:] for data in (found, other))
        expected = vector.arrays[f"seg_{recording}"]
        yield compare(f"seg_{recording}", segments, expected, absolute=EXACT, replaced=moved)
    yield from _listed("pauroc", mpauc, found, other, vector.field("pauroc"))
    yield from _listed("auroc", segment_auroc, found, other, vector.field("auroc"))
    yield from _listed("best_f1", partial(segment_f1, threshold=None), found, other, vector.field("best_f1"))


def _scores(what: str, found: Score, other: Score, value: float, per_class: Mapping) -> Iterable[Check]:
    yield compare(what, found.value, value, absolute=EXACT, replaced=other.value)
    own, moved = ([score.per_class[name] for name in per_class] for score in (found, other))
    yield compare(f"{what}_class", own, list(per_class.values()), absolute=EXACT, replaced=moved)


def _listed(what: str, function, found: ScoringSet, other: ScoringSet, expected: Mapping) -> Iterable[Check]:
    """Check a dictionary that holds averages beside the classes."""
    per_class = {name: value for name, value in expected.items() if name in found.classes}
    overall = expected["mean"] if "mean" in expected else expected["macro_average"]
    score, replaced = function(found), function(other)
    yield from _scores(what, score, replaced, overall, per_class)
    if "micro_average" in expected:
        own, moved = (s.details["micro_average"] for s in (score, replaced))
        yield compare(f"{what} micro", own, expected["micro_average"], absolute=EXACT, replaced=moved)
