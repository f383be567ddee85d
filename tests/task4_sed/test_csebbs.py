"""cSEBBs: each step solved by hand, agreement with a plain implementation, properties, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sed_scores_eval.base_modules.scores import validate_score_dataframe

from benchmarks.task4_sed_postprocess import plain_boxes
from common.data.manifest import DataError
from task4_sed.change_detection import candidates, change_signal
from task4_sed.csebbs import (
    BoxParameters,
    Csebbs,
    extents,
    predict,
    read_parameters,
    score_tables,
    write_parameters,
)

NEVER = BoxParameters(2.0, 0.0, 0.0)  # step filter of 2 s, no merging
SECONDS = 1e-6  # the length a score is divided by is longer by this


def seconds(n_frames: int) -> np.ndarray:
    """Return the boundaries of frames of 1 s."""
    return np.arange(n_frames + 1.0)


def boxes_of(scores, parameters=NEVER, boundaries_s=None) -> list[tuple]:
    """Return (onset, offset, score) of one signal."""
    scores = np.asarray(scores, dtype=np.float64)
    boundaries_s = seconds(len(scores)) if boundaries_s is None else boundaries_s
    found = predict(scores[None, :, None], boundaries_s, parameters)
    return list(zip(found.onset_s.tolist(), found.offset_s.tolist(), found.score.tolist()))


def borders_of(*args) -> list[tuple]:
    return [box[:2] for box in boxes_of(*args)]


# ---------------------------------------------------------------- change signal


def test_change_signal_with_a_step_of_whole_frames():
    # half a step is one frame: the difference of neighbouring frames
    times, change = change_signal(np.array([0, 1, 1, 0, 0.5]), seconds(5), 2.0)
    np.testing.assert_array_equal(times, [0, 1, 2, 3, 4, 5])
    np.testing.assert_allclose(change, [0, 1, 0, -1, 0.5, -0.5], atol=1e-15)


def test_change_signal_breaks_between_frames_too():
    times, change = change_signal(np.array([[0, 1, 0.0]]), seconds(3), 1.0)
    np.testing.assert_array_equal(times, [0, 0.5, 1, 1.5, 2, 2.5, 3])
    np.testing.assert_allclose(change, [[0, 0, 1, 0, -1, 0, 0]], atol=1e-15)


def test_change_signal_of_a_step_longer_than_the_clip():
    # the mean divides by half a step, also where most of it lies outside the clip
    times, change = change_signal(np.array([1.0]), seconds(1), 8.0)
    np.testing.assert_array_equal(times, [0, 1])
    np.testing.assert_allclose(change, [0.25, -0.25])


# ---------------------------------------------------------------- extrema


def test_one_event():
    assert boxes_of([0, 1, 1, 0, 0]) == [(1.0, 3.0, pytest.approx(2 / (2 + SECONDS), abs=1e-15))]


def test_boxes_at_both_ends_of_the_clip():
    assert borders_of([1, 0, 0, 0, 1]) == [(0, 1), (4, 5)]


def test_onset_is_later_where_the_change_still_rises():
    # the change signal is .1 at 0 s, .8 at 1 s
    assert borders_of([0.1, 0.9, 0.0]) == [(1, 2)]


def test_offset_is_earlier_where_the_change_rises_at_the_end():
    assert borders_of([0.0, 0.9, 0.1]) == [(1, 2)]


def test_flat_extrema_are_placed_at_their_end():
    # change signal 0 .2 .2 0 -.2 -.2 0
    times, change = change_signal(np.array([0, 0.2, 0.4, 0.4, 0.2, 0]), seconds(6), 2.0)
    np.testing.assert_allclose(change, [0, 0.2, 0.2, 0, -0.2, -0.2, 0], atol=1e-15)
    assert borders_of([0, 0.2, 0.4, 0.4, 0.2, 0]) == [(2, 5)]


@pytest.mark.parametrize("value", [1e-5, 0.1, 0.3, 1.0])
def test_constant_scores_are_one_box(value):
    boundaries_s = np.arange(157) * 0.064
    (box,) = boxes_of(np.full(156, value), BoxParameters(), boundaries_s)
    assert box == (0.0, 9.984, pytest.approx(value * 9.984 / (9.984 + SECONDS), rel=1e-12))


def test_scores_of_zero_have_no_box_but_a_table():
    assert boxes_of(np.zeros(5)) == []
    tables = Csebbs().tables(np.zeros((1, 5, 2)), seconds(5), ["a"], ["Dog", "Cat"])
    assert tables["a"].to_numpy().tolist() == [[0, 5, 0, 0]]


def test_single_frame():
    assert boxes_of([0.7], BoxParameters(), np.array([0, 0.064])) == [
        (0.0, 0.064, pytest.approx(0.7 * 0.064 / (0.064 + SECONDS)))
    ]


def test_rounding_noise_makes_no_boxes_in_a_long_recording():
    # an hour with one event: differences of running integrals would turn noise into extrema
    scores = np.full(56250, 0.1)
    scores[30000:30100] = 0.8
    boxes = boxes_of(scores, BoxParameters(0.48, 0, 0), np.arange(56251) * 0.064)
    assert [(round(a, 6), round(b, 6)) for a, b, _ in boxes] == [(0, 1919.76), (1920, 1926.4), (3599.76, 3600)]


# ---------------------------------------------------------------- merging and scores


PEAKS = [0.6, 0.4, 0.5, 0.27, 0.3]  # boxes at 0-1, 2-3, 4-5 s; gaps with floors .4 and .27 between them


def test_no_gap_is_closed_by_a_threshold_of_zero():
    assert borders_of(PEAKS) == [(0, 1), (2, 3), (4, 5)]


def test_gaps_are_closed_one_by_one_and_by_the_higher_peak():
    # differences: .6 - .4 = .2 and .5 - .27 = .23
    assert borders_of(PEAKS, BoxParameters(2.0, 0.21, np.inf)) == [(0, 3), (4, 5)]
    # with the lower peak the second gap would be the first to close: .3 - .27
    assert borders_of(PEAKS, BoxParameters(2.0, 0.1, np.inf)) == [(0, 1), (2, 3), (4, 5)]


def test_all_gaps_are_tested_with_the_peaks_of_the_candidates():
    # After the first merge the peak of the left box is .6, and .6 - .27 would be too much.
    (box,) = boxes_of(PEAKS, BoxParameters(2.0, 0.25, np.inf))
    assert box == (0, 5, pytest.approx(sum(PEAKS) / (5 + SECONDS), rel=1e-14))


def test_ratio_has_an_offset():
    # .6 / .4 is 1.5, but .601 / .401 is 1.4988; the second ratio is 1.849
    assert borders_of(PEAKS, BoxParameters(2.0, np.inf, 1.5)) == [(0, 3), (4, 5)]
    assert borders_of(PEAKS, BoxParameters(2.0, np.inf, 1.85)) == [(0, 5)]


def test_both_conditions_have_to_hold():
    assert borders_of(PEAKS, BoxParameters(2.0, 0.25, 1.5)) == [(0, 3), (4, 5)]
    assert borders_of(PEAKS, BoxParameters(2.0, 0.21, 1.85)) == [(0, 3), (4, 5)]


def test_frames_touched_in_part_count_for_peak_and_floor_and_in_part_for_scores():
    found = candidates(np.array([[0.5, 0.5, 0.6, 1, 1, 1]]), seconds(6), 1.5)
    np.testing.assert_array_equal(found.onset_s, [0, 2, 3])
    np.testing.assert_array_equal(found.offset_s, [1.25, 2.25, 6])
    np.testing.assert_allclose(found.integral, [0.625, 0.15, 3])
    np.testing.assert_allclose(found.gap_integral, [0.375, 0.45, 0])
    # The gap from 2.25 to 3 s lies in the same frame as the box before it.
    np.testing.assert_allclose(found.difference, [0.1, 0.4, np.inf])
    np.testing.assert_allclose(found.ratio, [0.601 / 0.501, 1.001 / 0.601, np.inf])


# ---------------------------------------------------------------- many clips, other grids


def random_scores(rng, shape) -> np.ndarray:
    """Return smooth scores, rough ones, steps with many ties, and short events in silence, class by class."""
    smooth = np.clip(np.cumsum(rng.standard_normal(shape), axis=1), -8, 8)  # no slopes as small as rounding errors
    kinds = [1 / (1 + np.exp(-smooth)), rng.random(shape), np.round(rng.random(shape) * 4) / 4, rng.random(shape) > 0.9]
    return np.stack([kinds[k % 4][..., k] for k in range(shape[2])], axis=-1).astype(np.float64)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_frames=st.integers(1, 60),
    hop_s=st.sampled_from([0.04, 0.064, 0.5, 1.0]),
    step_s=st.sampled_from([0.38, 0.48, 0.66, 1.0, 2.0]),
    merge_abs=st.sampled_from([0.0, 0.15, 0.3, np.inf]),
    merge_rel=st.sampled_from([1.0, 1.5, 3.0, np.inf]),
)
def test_agrees_with_a_plain_implementation(seed, n_frames, hop_s, step_s, merge_abs, merge_rel):
    parameters = BoxParameters(step_s, merge_abs, merge_rel)
    scores = random_scores(np.random.default_rng(seed), (3, n_frames, 4))
    edges = np.round(np.arange(n_frames + 1) * hop_s, 9)
    found = predict(scores, edges, parameters)
    for clip in range(3):
        for label in range(4):
            own = (found.clip == clip) & (found.label == label)
            expected = np.array(plain_boxes(scores[clip, :, label], edges, parameters)).reshape(-1, 3)
            np.testing.assert_array_equal(found.onset_s[own], expected[:, 0])
            np.testing.assert_array_equal(found.offset_s[own], expected[:, 1])
            np.testing.assert_allclose(found.score[own], expected[:, 2], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_frames=st.integers(1, 80),
    hop_s=st.floats(0.01, 1.0),
    step_s=st.floats(0.02, 4.0),
    merge_abs=st.floats(0, 1),
    merge_rel=st.floats(0, 5),
)
def test_boxes_lie_apart_within_the_clip_and_score_what_they_cover(seed, n_frames, hop_s, step_s, merge_abs, merge_rel):
    scores = random_scores(np.random.default_rng(seed), (2, n_frames, 4))
    boundaries_s = np.arange(n_frames + 1) * hop_s
    found = predict(scores, boundaries_s, BoxParameters(step_s, merge_abs, merge_rel))
    assert (found.offset_s > found.onset_s).all()
    assert found.onset_s.min(initial=0) >= 0 and found.offset_s.max(initial=0) <= extents(boundaries_s)[1]
    same = (found.clip[1:] == found.clip[:-1]) & (found.label[1:] == found.label[:-1])
    assert (found.onset_s[1:] > found.offset_s[:-1])[same].all()
    lengths = found.offset_s - found.onset_s
    for clip, label, score, length in zip(found.clip, found.label, found.score, lengths):
        own = scores[clip, :, label]
        assert own.min() * length / (length + SECONDS) - 1e-12 <= score <= own.max() + 1e-12
    with_scores = {(c, k) for c, k in zip(*np.nonzero(scores.max(axis=1)))}
    assert with_scores == set(zip(found.clip.tolist(), found.label.tolist()))


def test_clips_and_chunks_do_not_change_the_boxes(monkeypatch):
    scores = random_scores(np.random.default_rng(0), (7, 50, 4))
    boundaries_s = np.arange(51) * 0.064
    together = Csebbs().boxes(scores, boundaries_s, list("abcdefg"), list("wxyz"))
    monkeypatch.setattr("task4_sed.change_detection.CELLS_AT_ONCE", 300)
    assert Csebbs().boxes(scores, boundaries_s, list("abcdefg"), list("wxyz")).equals(together)
    for clip, name in enumerate("abcdefg"):
        alone = Csebbs().boxes(scores[[clip]], boundaries_s, [name], list("wxyz"))
        assert alone.equals(together[together.filename == name].reset_index(drop=True))


def test_shorter_clips_end_as_on_a_grid_of_their_own():
    rng = np.random.default_rng(1)
    scores, boundaries_s, n_frames = random_scores(rng, (6, 40, 4)), np.arange(41) * 0.064, [1, 3, 10, 25, 39, 40]
    found = predict(scores, boundaries_s, BoxParameters(), n_frames)
    for clip, n in enumerate(n_frames):
        alone = predict(scores[[clip], :n], boundaries_s[: n + 1], BoxParameters())
        own = found.clip == clip
        for name in ("label", "onset_s", "offset_s", "score"):
            np.testing.assert_array_equal(getattr(found, name)[own], getattr(alone, name))


def test_parameters_are_those_of_the_class():
    scores = np.array(PEAKS)[None, :, None].repeat(2, axis=2)
    found = predict(scores, seconds(5), [NEVER, BoxParameters(2.0, 0.25)])
    assert found.label.tolist() == [0, 0, 0, 1]


def test_a_grid_that_does_not_begin_at_zero():
    scores = [0.1, 0.9, 0.2, 0.0, 0.4]
    moved = boxes_of(scores, NEVER, seconds(5) + 100)
    assert [(a - 100, b - 100, s) for a, b, s in moved] == boxes_of(scores)


# ---------------------------------------------------------------- output


def test_boxes_are_a_table_of_events_in_the_order_of_time():
    scores = np.zeros((2, 6, 2))
    scores[0, 4, 0], scores[0, 1:3, 1], scores[1, 0, 0] = 0.5, 1, 1
    table = Csebbs(NEVER).boxes(scores, seconds(6), ["b", "a"], ["Dog", "Cat"])
    assert list(table) == ["filename", "onset", "offset", "event_label", "score"]
    assert table.drop(columns="score").to_numpy().tolist() == [
        ["b", 1, 3, "Cat"],
        ["b", 4, 5, "Dog"],
        ["a", 0, 1, "Dog"],
    ]
    np.testing.assert_allclose(table.score, [1, 0.5, 1], atol=2e-6)


def test_score_tables_hold_all_borders_and_zero_elsewhere():
    scores = np.zeros((1, 6, 2))
    scores[0, 4, 0], scores[0, 1:3, 1] = 0.5, 1
    table = Csebbs(NEVER).tables(scores, seconds(6), ["a"], ["Dog", "Cat"])["a"]
    validate_score_dataframe(table)
    np.testing.assert_allclose(
        table.to_numpy(), [[0, 1, 0, 0], [1, 3, 0, 1], [3, 4, 0, 0], [4, 5, 0.5, 0], [5, 6, 0, 0]], atol=2e-6
    )


def test_score_tables_say_the_same_as_the_boxes():
    scores = random_scores(np.random.default_rng(2), (5, 60, 4))
    boundaries_s = np.arange(61) * 0.064
    found = predict(scores, boundaries_s, BoxParameters())
    tables = score_tables(found, list("abcde"), list("wxyz"), extents(boundaries_s))
    for box in range(len(found)):
        table = tables["abcde"[found.clip[box]]]
        inside = (table.onset >= found.onset_s[box]) & (table.offset <= found.offset_s[box])
        assert (table.loc[inside, "wxyz"[found.label[box]]] == found.score[box]).all()
        assert (table.offset - table.onset)[inside].sum() == pytest.approx(found.offset_s[box] - found.onset_s[box])
    covered = sum(
        ((table.offset - table.onset).to_numpy()[:, None] * (table[list("wxyz")] > 0).to_numpy()).sum()
        for table in tables.values()
    )
    assert covered == pytest.approx((found.offset_s - found.onset_s)[found.score > 0].sum())


def test_cells_of_a_second():
    boundaries_s = np.arange(157) * 0.064
    scores = np.random.default_rng(3).random((2, 156, 2))
    table = Csebbs(cell_classes=["car"]).boxes(scores, boundaries_s, ["a", "b"], ["Dog", "car"])
    own = table[(table.filename == "b") & (table.event_label == "car")]
    assert own.onset.tolist() == list(range(10))
    assert own.offset.tolist() == [*range(1, 10), 9.984]
    # 15 frames and 0.04 s of the next are in the first second; 0.024 s of that one are in the second
    expected = (scores[1, :15, 1].sum() * 0.064 + scores[1, 15, 1] * 0.04) / 1.0
    assert own.score.iloc[0] == pytest.approx(expected, rel=1e-12)
    # frame 140 begins at 8.96 s: 0.024 s of it are in the last cell
    expected = (scores[1, 141:, 1].sum() * 0.064 + scores[1, 140, 1] * 0.024) / 0.984
    assert own.score.iloc[-1] == pytest.approx(expected, rel=1e-12)


def test_cells_end_with_shorter_clips():
    scores = np.ones((3, 6, 1)) * np.array([1, 2, 4, 8, 16, 32.0])[:, None]
    table = Csebbs(cell_classes=["car"]).boxes(scores, np.arange(7) * 0.5, list("abc"), ["car"], np.array([3, 6, 3]))
    assert table[["filename", "onset", "offset", "score"]].to_numpy().tolist() == [
        ["a", 0, 1, 1.5],
        ["a", 1, 1.5, 4],
        *[["b", k, k + 1, 1.5 * 4**k] for k in range(3)],
        ["c", 0, 1, 1.5],
        ["c", 1, 1.5, 4],
    ]


# ---------------------------------------------------------------- parameters and bad input


def test_parameters_file_keeps_infinity_and_is_strict_json(tmp_path):
    path = tmp_path / "boxes.json"
    parameters = {"Dog": BoxParameters(0.5, np.inf, 2.5), "Cat": BoxParameters(0.38, 0.15, np.inf)}
    write_parameters(path, parameters, tuned_on="half")
    assert read_parameters(path) == parameters
    assert "Infinity" not in path.read_text() and '"tuned_on": "half"' in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["boxes.json"]
    assert Csebbs.read(path, ["car"]) == Csebbs(parameters, ["car"])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"classes": {"Dog": {"merge_abs": 1}}}', '{"classes": {"Dog": 3}}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(DataError, match="boxes.json: not a file of box parameters"):
        read_parameters(path)
    with pytest.raises(DataError, match="no such file"):
        read_parameters(tmp_path / "other.json")


def test_a_class_without_parameters_is_named():
    with pytest.raises(DataError, match="'Dogs'; the nearest is 'Dog'"):
        Csebbs({"Dog": NEVER}).boxes(np.zeros((1, 3, 1)), seconds(3), ["a"], ["Dogs"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.25])
def test_scores_that_are_no_probabilities_are_refused_with_their_place(value):
    scores = np.zeros((2, 5, 3))
    scores[1, 3, 2] = value
    with pytest.raises(ValueError, match=rf"clip b, class Cat: the score at 3.000 s is {value}"):
        Csebbs().boxes(scores, seconds(5), ["a", "b"], ["Dog", "Frying", "Cat"])
    with pytest.raises(ValueError, match="clip 1, class 2"):
        predict(scores, seconds(5), NEVER)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scores": np.zeros((5, 3))}, "expected clips, frames, classes"),
        ({"scores": np.zeros((0, 5, 3))}, "at least one of each"),
        ({"boundaries_s": seconds(4)}, "5 frames need 6 rising boundaries"),
        ({"boundaries_s": np.array([0, 1, 2, 3, 4, 4.0])}, "smallest step 0 s"),
        ({"parameters": [NEVER]}, "1 sets of parameters for 3 classes"),
        ({"n_frames": [5]}, "for each of 2 clips"),
        ({"n_frames": [5, 0]}, "n_frames must be 1…5"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, message):
    arguments = {"scores": np.zeros((2, 5, 3)), "boundaries_s": seconds(5), "parameters": NEVER} | changes
    with pytest.raises(ValueError, match=message):
        predict(**arguments)


def test_names_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 clips and 1 classes a name"):
        Csebbs().boxes(np.zeros((2, 5, 3)), seconds(5), ["a", "b"], ["Dog"])


@pytest.mark.parametrize("values", [(0, 0.2, 2), (np.nan, 0.2, 2), (np.inf, 0.2, 2), (0.5, -1, 2), (0.5, 0.2, np.nan)])
def test_bad_parameters_are_refused(values):
    with pytest.raises(ValueError, match="must be"):
        BoxParameters(*values)
