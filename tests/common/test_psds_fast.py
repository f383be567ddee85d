"""PSDS from counts per clip: solved by hand, and against sed_scores_eval on random boxes and frame scores."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sed_scores_eval import intersection_based

from common.metrics.psds_fast import BoxCounter, ClassCounts, Events, area, class_roc, counts_from_deltas, psds

CLASSES = ["Cat", "Dog", "Speech"]
HOUR = np.array([3600.0])


def columns(rows) -> tuple[np.ndarray, ...]:
    clip, *others = np.array(rows, dtype=np.float64).reshape(len(rows), -1).T
    return (clip.astype(int), *others)


def count(boxes, events, extent_s=(0, 3600), n_clips=1, **criteria) -> ClassCounts:
    """Count boxes (clip, onset, offset, score) against events (clip, onset, offset)."""
    counter = BoxCounter(Events(*columns(events)), np.tile(np.array(extent_s, float), (n_clips, 1)), **criteria)
    return counter.count(*(columns(boxes) if boxes else [np.zeros(0, int), *np.zeros((3, 0))]))


def value(counts: ClassCounts, durations_s=HOUR, **options) -> float:
    return area(*class_roc([counts], 0, np.asarray(durations_s, float), **options))


# ---------------------------------------------------------------- by hand


def test_area_loses_what_lies_left_of_the_false_positives():
    # one hour: the false positive comes first, the event is found from 1 per hour on
    events = [(0, 10, 20)]
    assert value(count([(0, 10, 20, 0.8), (0, 50, 60, 0.9)], events)) == pytest.approx(0.99)
    assert value(count([(0, 10, 20, 0.9), (0, 50, 60, 0.8)], events)) == 1.0
    # at one score both come together
    assert value(count([(0, 10, 20, 0.9), (0, 50, 60, 0.9)], events)) == pytest.approx(0.99)


def test_half_of_the_events():
    assert value(count([(0, 10, 20, 0.8)], [(0, 10, 20), (0, 30, 40)])) == 0.5


@pytest.mark.parametrize("offset_s, found", [(10 / 0.7 - 0.001, True), (10 / 0.7 + 0.001, False)])
def test_a_detection_needs_seven_tenths_of_its_length_in_events(offset_s, found):
    counts = count([(0, 0, offset_s, 0.5)], [(0, 0, 10)])
    assert (counts.tps[counts.score > 0].sum(), counts.fps[counts.score > 0].sum()) == (found, not found)


def test_exactly_seven_tenths_pass_both_criteria():
    # 0.7 * 0.3 is 0.21 only up to rounding
    counts = count([(0, 0.1, 0.31, 0.5)], [(0, 0.1, 0.4)])
    assert counts.tps.tolist()[:1] == [1]
    counts = count([(0, 0.1, 0.4, 0.5)], [(0, 0.1, 0.31)])
    assert (counts.tps[0], counts.fps[0]) == (1, 0)


def test_an_event_is_found_at_the_score_that_completes_its_coverage():
    boxes = [(0, 0, 3, 0.9), (0, 3.5, 6, 0.3), (0, 6.5, 10, 0.6)]  # 3 s, 2.5 s, 3.5 s of 10: two are too short
    counts = count(boxes, [(0, 0, 10)])
    assert counts.score[counts.tps > 0].tolist() == [0.3]
    counts = count(boxes, [(0, 0, 10)], gtc=0.6)
    assert counts.score[counts.tps > 0].tolist() == [0.6]


def test_failing_detections_cover_nothing():
    counts = count([(0, 0, 30, 0.9), (0, 40, 47, 0.8)], [(0, 0, 10), (0, 40, 47)])
    assert counts.score[counts.tps > 0].tolist() == [0.8]
    assert counts.score[counts.fps > 0].tolist() == [0.9]


def test_one_box_may_find_several_events_and_pass_by_their_sum():
    counts = count([(0, 0, 10, 0.9)], [(0, 0, 4), (0, 5, 9)])
    assert counts.tps[counts.score > 0].sum() == 2 and counts.fps[counts.score > 0].sum() == 0


def test_below_zero_the_whole_clip_is_one_detection():
    # Two false positives become one that fits, as the event is nearly as long as the clip.
    counts = count([(0, 0, 5, 0.9), (0, 99, 99.5, 0.8)], [(0, 10, 99)], extent_s=(0, 100))
    assert counts.score.tolist() == [0.9, 0.8, 0]
    assert counts.tps.tolist() == [0, 0, 1] and counts.fps.tolist() == [1, 1, -2]
    assert value(counts, [100.0]) == 1.0  # at a rate of zero


def test_boxes_with_a_score_of_zero_are_not_there():
    assert count([(0, 10, 20, 0.0)], [(0, 10, 20)]).score.tolist() == [0]


def test_no_boxes_and_no_events():
    assert value(count([], [(0, 10, 20)])) == 0
    counter = BoxCounter(Events(np.zeros(0, int), np.zeros(0), np.zeros(0)), np.array([[0.0, 3600]]))
    counts = counter.count(*columns([(0, 0, 1, 0.5)]))
    assert counts.fps.sum() == 1 and value(counts) == 0


def test_spread_between_classes_is_subtracted_point_by_point():
    # class 0 finds its event at once, class 1 after 50 false positives per hour
    first = count([(0, 10, 20, 0.9)], [(0, 10, 20)])
    late = [(0, 100 + 2 * k, 101 + 2 * k, 0.8) for k in range(50)]
    second = count([(0, 10, 20, 0.5), *late], [(0, 10, 20)])
    total, per_class = psds([first, second], HOUR, alpha_st=1.0)
    np.testing.assert_allclose(per_class, [1, 0.5])
    assert total == pytest.approx(0.5)  # mean 0.5 minus deviation 0.5, then 1
    assert psds([first, second], HOUR)[0] == pytest.approx(0.75)


# ---------------------------------------------------------------- sed_scores_eval


def random_case(rng: np.random.Generator, n_clips: int, clip_s: float):
    """Return boxes and events per class as rows, with ties, in times of 10 ms; borders of boxes often hit events."""
    boxes, events = {name: [] for name in CLASSES}, {name: [] for name in CLASSES}
    for clip in range(n_clips):
        for name in CLASSES:
            onsets, offsets = random_intervals(rng, clip_s, rng.integers(0, 4))
            events[name] += [(clip, *event) for event in zip(onsets, offsets)]
            shift = rng.choice([0, 0.01, -0.05, 0.3], (2, len(onsets)))
            guesses = np.stack([onsets, offsets]) + shift
            if rng.random() < 0.4:
                guesses = np.stack(random_intervals(rng, clip_s, rng.integers(0, 6)))
            guesses = np.round(np.clip(guesses, 0, clip_s), 2)
            last = -1.0
            for onset, offset in sorted(guesses.T.tolist()):
                if onset > last and offset > onset:
                    boxes[name].append((clip, onset, offset, rng.integers(1, 12) / 12))
                    last = offset
    for name in CLASSES:
        events[name] = events[name] or [(0, 0.0, 1.0)]  # sed_scores_eval wants an event of every class
    return boxes, events


def random_intervals(rng, clip_s, n) -> tuple[np.ndarray, np.ndarray]:
    times = np.unique(np.round(rng.uniform(0, clip_s, 2 * n), 2))
    times = times[: len(times) // 2 * 2]
    return times[::2], times[1::2]


def tables_of(boxes: dict, n_clips: int, clip_s: float) -> dict[str, pd.DataFrame]:
    tables = {}
    for clip in range(n_clips):
        own = [(name, *box[1:]) for name in CLASSES for box in boxes[name] if box[0] == clip]
        borders = np.unique([0, clip_s, *(t for _, a, b, _ in own for t in (a, b))])
        table = pd.DataFrame({"onset": borders[:-1], "offset": borders[1:]} | dict.fromkeys(CLASSES, 0.0))
        for name, onset, offset, score in own:
            table.loc[(table.onset >= onset) & (table.offset <= offset), name] = score
        tables[f"clip{clip}"] = table
    return tables


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_clips=st.integers(1, 5),
    clip_s=st.sampled_from([4.0, 60.0, 600.0]),
    criterion=st.sampled_from([0.1, 0.5, 0.7]),
    alpha_st=st.sampled_from([0.0, 1.0]),
    max_efpr=st.sampled_from([100.0, 2000.0]),
)
def test_boxes_score_as_by_sed_scores_eval(seed, n_clips, clip_s, criterion, alpha_st, max_efpr):
    boxes, events = random_case(np.random.default_rng(seed), n_clips, clip_s)
    durations_s = np.full(n_clips, clip_s)
    counts = [count(boxes[n], events[n], (0, clip_s), n_clips, dtc=criterion, gtc=criterion) for n in CLASSES]
    truth = {f"clip{c}": [(a, b, n) for n in CLASSES for k, a, b in events[n] if k == c] for c in range(n_clips)}
    expected, per_class, *_ = intersection_based.psds(
        tables_of(boxes, n_clips, clip_s),
        truth,
        dict.fromkeys(truth, clip_s),
        dtc_threshold=criterion,
        gtc_threshold=criterion,
        alpha_st=alpha_st,
        max_efpr=max_efpr,
    )
    found, own = psds(counts, durations_s, alpha_st=alpha_st, max_efpr=max_efpr)
    assert found == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(own, [per_class[name] for name in CLASSES], atol=1e-12)


PSDS1 = {"dtc_threshold": 0.7, "gtc_threshold": 0.7}
PSDS2 = {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3}


def frame_case(seed: int, n_clips: int = 6):
    """Return tables of frame scores and clip → events."""
    rng = np.random.default_rng(seed)
    _, events = random_case(rng, n_clips, 10.0)
    truth = {f"clip{c}": [(a, b, n) for n in CLASSES for k, a, b in events[n] if k == c] for c in range(n_clips)}
    edges = np.arange(41) * 0.25
    tables = {}
    for clip in truth:
        scores = np.round(rng.random((40, 3)) ** 3, 2)
        tables[clip] = pd.DataFrame(
            np.column_stack([edges[:-1], edges[1:], scores]), columns=["onset", "offset", *CLASSES]
        )
    return tables, truth


@pytest.mark.parametrize("criteria, alpha_ct", [(PSDS1, 0.0), (PSDS2, 0.5)], ids=["psds1", "psds2"])
@pytest.mark.parametrize("alpha_st", [0.0, 1.0])
def test_counts_of_frame_scores_give_the_psds_of_sed_scores_eval(criteria, alpha_ct, alpha_st):
    tables, truth = frame_case(0)
    deltas = intersection_based.intermediate_statistics_deltas(tables, truth, **{"cttc_threshold": None, **criteria})
    options = {"alpha_ct": alpha_ct, "alpha_st": alpha_st, "max_efpr": 2000.0}
    expected, per_class, *_ = intersection_based.psds(tables, truth, dict.fromkeys(truth, 10.0), **criteria, **options)
    found, own = psds(counts_from_deltas(deltas, truth), np.full(len(truth), 10.0), **options)
    assert 0 < expected and found == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(own, [per_class[name] for name in CLASSES], atol=1e-12)


@pytest.mark.parametrize("criteria, alpha_ct", [(PSDS1, 0.0), (PSDS2, 0.5)], ids=["psds1", "psds2"])
def test_weights_count_clips_as_often_as_copies_would(criteria, alpha_ct):
    tables, truth = frame_case(1)
    durations_s = np.array([10.0, 9, 8, 7, 10, 10])
    weights = np.array([3, 1, 2, 0, 1, 2])
    drawn = [(f"{clip} {copy}", clip) for clip, weight in zip(truth, weights) for copy in range(weight)]
    options = {"alpha_ct": alpha_ct, "alpha_st": 1.0, "max_efpr": 2000.0}
    expected, per_class, *_ = intersection_based.psds(
        {copy: tables[clip] for copy, clip in drawn},
        {copy: truth[clip] for copy, clip in drawn},
        {copy: dict(zip(truth, durations_s))[clip] for copy, clip in drawn},
        **criteria,
        **options,
    )
    deltas = intersection_based.intermediate_statistics_deltas(tables, truth, **{"cttc_threshold": None, **criteria})
    counts = counts_from_deltas(deltas, truth)
    found, own = psds(counts, durations_s, weights=weights, **options)
    assert found == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(own, [per_class[name] for name in CLASSES], atol=1e-12)
    assert psds(counts, durations_s, **options)[0] != pytest.approx(expected, abs=1e-3)  # the weights matter


def test_totals_after_each_score():
    steps = np.array([1.0, 2, 4, 8])
    counts = ClassCounts.from_steps(
        np.array([0.1, 0.9, 0.5, 0.9]), np.array([0, 1, 0, 0]), steps, 0 * steps, np.ones(2), np.ones(2)
    )
    np.testing.assert_array_equal(counts.totals(counts.tps), [0, 10, 14, 15])
    np.testing.assert_array_equal(counts.totals(counts.tps, np.array([1, 10])), [0, 28, 32, 33])


def test_classes_can_be_left_out():
    tables, truth = frame_case(2)
    deltas = intersection_based.intermediate_statistics_deltas(tables, truth, **PSDS1, cttc_threshold=None)
    counts = counts_from_deltas(deltas, truth)
    assert psds(counts[1:], np.full(6, 10.0))[1].tolist() == psds(counts, np.full(6, 10.0))[1][1:].tolist()
    assert all(own.cross is None for own in counts) and replace(counts[0], cross=None).score is counts[0].score


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("first, second", [((0, 2), (1, 3)), ((0, 2), (2, 3)), ((5, 6), (1, 2))])
def test_boxes_that_overlap_touch_or_are_not_sorted_are_refused(first, second):
    with pytest.raises(ValueError, match="clip 0: box .* lie apart"):
        count([(0, *first, 0.5), (0, *second, 0.5)], [(0, 0, 10)])


def test_events_without_length_or_clip_are_refused():
    with pytest.raises(ValueError, match=r"event 1 \(clip 0\) lasts from 3.0 to 3.0 s"):
        count([], [(0, 1, 2), (0, 3, 3)])
    with pytest.raises(ValueError, match="lasts from nan"):
        count([], [(0, np.nan, 2)])
    with pytest.raises(ValueError, match="clips 1…1, but there are 1"):
        count([], [(1, 1, 2)])
