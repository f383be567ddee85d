"""cSEBBs of real score files: boxes, tuning, and the PSDS1 they give."""

from collections.abc import Iterable

import numpy as np
from sed_scores_eval import intersection_based

from common.metrics.sed_scores import FrameScores
from task4_sed.csebbs import BoxParameters, Csebbs, extents, predict
from task4_sed.csebbs_tuning import Grid, tune
from tests.parity.checks import Check, compare, equal, handles
from tests.parity.vectors import Vector

FORMULA = 1e-9  # of the largest absolute value
DRAWN_S = 1e-3


@handles(lambda v: v.field("fixed_sebbs") is not None and v.field("tuned_best") is not None)
def check_csebbs(vector: Vector) -> Iterable[Check]:
    """Fixed parameters, tuned parameters, and PSDS1; the replaced input are the scores of other clips."""
    scores = _scores(vector)
    other = FrameScores(scores.clips, scores.classes, scores.boundaries_s, scores.values[::-1].copy())
    yield from _fixed(vector, scores, other)
    yield from _tuned(vector, scores, other)


def _scores(vector: Vector) -> FrameScores:
    arrays = vector.arrays
    boundaries_s = np.append(arrays["onset"], arrays["offset"][-1])
    return FrameScores(vector.field("files"), vector.field("classes"), boundaries_s, arrays["scores"])


def _fixed(vector: Vector, scores: FrameScores, other: FrameScores) -> Iterable[Check]:
    fixed = vector.field("fixed")
    parameters = BoxParameters(fixed["step"], fixed["abs"], fixed["rel"])
    csebbs = Csebbs(parameters)
    tables = [csebbs.boxes(own.values, own.boundaries_s, own.clips, own.classes) for own in (scores, other)]
    yield equal("n_sebbs_fixed", len(tables[0]), vector.field("n_sebbs_fixed"))
    expected = [
        (clip, onset, offset, label, score)
        for clip, boxes in vector.field("fixed_sebbs").items()
        for onset, offset, label, score in boxes
    ]
    rows = [
        [row for row in table.itertuples(index=False, name=None) if row[0] in vector.field("fixed_sebbs")]
        for table in tables
    ]
    order = [_numbers(sorted(own, key=lambda row: (row[0], row[3], row[1])), scores) for own in (rows[0], expected)]
    yield compare("fixed_sebbs", *order, relative=FORMULA)  # of other scores there would be another number
    drawn = [_drawn(own, scores) for own in (rows[0], expected, rows[1])]
    yield compare("fixed_sebbs, drawn over time", *drawn[:2], relative=FORMULA, replaced=drawn[2])
    values = [_psds1(own, csebbs, vector) for own in (scores, other)]
    yield compare("psds1_fixed", values[0], vector.field("psds1_fixed"), relative=FORMULA, replaced=values[1])
    values = [_psds1(own, None, vector) for own in (scores, other)]
    yield compare("psds1_raw", values[0], vector.field("psds1_raw"), relative=FORMULA, replaced=values[1])


def _tuned(vector: Vector, scores: FrameScores, other: FrameScores) -> Iterable[Check]:
    lists = vector.field("grid")
    grid = Grid(lists["step_filter_lengths"], lists["merge_thresholds_abs"], lists["merge_thresholds_rel"])
    found, replaced = (tune(own, vector.field("gt"), vector.field("dur"), grid) for own in (scores, other))
    for key, name in (("step", "step_filter_s"), ("abs", "merge_abs"), ("rel", "merge_rel")):
        chosen = [
            [_number(getattr(own.parameters[label], name)) for label in scores.classes] for own in (found, replaced)
        ]
        expected = [_number(vector.field("tuned")[key][label]) for label in scores.classes]
        yield compare(f"tuned {key}", chosen[0], expected, absolute=0.0, replaced=chosen[1])
    best = [[own.psds1[label] for label in scores.classes] for own in (found, replaced)]
    expected = [vector.field("tuned_best")[label] for label in scores.classes]
    yield compare("tuned_best", best[0], expected, relative=FORMULA, replaced=best[1])
    parameters = [found.parameters[label] for label in scores.classes]
    n_boxes = len(predict(scores.values, scores.boundaries_s, parameters))
    yield equal("n_sebbs_tuned", n_boxes, vector.field("n_sebbs_tuned"))
    values = [_psds1(own, Csebbs(found.parameters), vector) for own in (scores, other)]
    yield compare("psds1_tuned", values[0], vector.field("psds1_tuned"), relative=FORMULA, replaced=values[1])


def _number(value: float) -> float:
    return -1.0 if np.isinf(value) else value  # infinity minus infinity would be no difference to look at


def _numbers(rows: list[tuple], scores: FrameScores) -> np.ndarray:
    """Return boxes (clip, onset, offset, class, score) as numbers (B, 5)."""
    return np.array(
        [(scores.clips.index(clip), a, b, scores.classes.index(label), score) for clip, a, b, label, score in rows]
    )


def _drawn(rows: list[tuple], scores: FrameScores) -> np.ndarray:
    """Return the score of the boxes at every millisecond, (clips, classes, times)."""
    _, end_s = extents(scores.boundaries_s)
    drawn = np.zeros((len(scores.clips), len(scores.classes), round(end_s / DRAWN_S)))
    for clip, onset, offset, label, score in rows:
        times = slice(round(onset / DRAWN_S), round(offset / DRAWN_S))
        drawn[scores.clips.index(clip), scores.classes.index(label), times] = score
    return drawn


def _psds1(scores: FrameScores, csebbs: Csebbs | None, vector: Vector) -> float:
    arguments = (scores.values, scores.boundaries_s, scores.clips, scores.classes)
    tables = scores.tables() if csebbs is None else csebbs.tables(*arguments)
    events = {clip: [tuple(event) for event in own] for clip, own in vector.field("gt").items()}
    return intersection_based.psds(
        tables, events, vector.field("dur"), dtc_threshold=0.7, gtc_threshold=0.7, alpha_st=1.0
    )[0]
