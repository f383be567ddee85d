"""Tuning of box parameters: the order of the grid, agreement with a plain search, classes that cannot be tuned."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.task4_sed_postprocess import plain_psds1
from common.data.manifest import DataError
from common.metrics.sed_scores import FrameScores
from task4_sed.csebbs import BoxParameters, Csebbs
from task4_sed.csebbs_tuning import Grid, tune

FRAME_S = 0.064
SMALL = Grid(step_filter_s=(0.4, 0.8, 1.6), merge_abs=(0.1, 0.3), merge_rel=(1.5, 3.0))


def development_set(n_clips=8, classes=("Cat", "Dog"), seed=0):
    """Return noisy scores of random events, clip → events, clip → duration."""
    rng = np.random.default_rng(seed)
    edges = np.arange(157) * FRAME_S
    values = np.zeros((n_clips, 156, len(classes)))
    events = {}
    for clip in range(n_clips):
        own = []
        for k, name in enumerate(classes):
            for onset in rng.choice([0.5, 4.0, 7.0], rng.integers(0, 3), replace=False):
                offset = onset + rng.uniform(0.5, 2.5)
                own.append((float(onset), round(float(offset), 3), name))
                values[clip, :, k] += (edges[1:] > onset) & (edges[:-1] < offset)
        events[f"clip{clip}"] = own
    values = np.clip(values + rng.normal(0, 0.35, values.shape), 0.01, 0.99)
    scores = FrameScores([f"clip{c}" for c in range(n_clips)], list(classes), edges, values)
    return scores, events, dict.fromkeys(events, 10.0)


def plain_search(scores, events, durations_s, grid) -> dict[str, tuple[float, BoxParameters]]:
    """Return class → best PSDS1 and the first parameters that reach it, by sed_scores_eval."""
    best = {}
    for step_filter_s in grid.step_filter_s:
        tried = [(value, np.inf) for value in grid.merge_abs] + [(np.inf, value) for value in grid.merge_rel]
        for thresholds in tried:
            parameters = BoxParameters(step_filter_s, *thresholds)
            for name, value in plain_psds1(scores, events, durations_s, parameters).items():
                if name not in best or value > best[name][0] + 1e-9:
                    best[name] = (value, parameters)
    return best


@pytest.mark.parametrize("seed", range(3))
def test_finds_what_a_plain_search_finds(seed):
    scores, events, durations_s = development_set(seed=seed)
    with_events = {clip: own for clip, own in events.items() if own}
    tuned = tune(scores, events, durations_s, SMALL)
    expected = plain_search(scores, with_events, durations_s, SMALL)
    for name in scores.classes:
        assert tuned.psds1[name] == pytest.approx(expected[name][0], abs=1e-12)
        assert tuned.parameters[name] == expected[name][1]
    assert tuned.n_clips == len(with_events) and tuned.notes == ()
    assert len({tuned.psds1[name] for name in scores.classes} - {0.0}) == 2  # there was something to find


def test_the_grid_is_that_of_the_winner_in_its_order():
    grid = Grid()
    thresholds = list(grid.thresholds())
    assert len(grid) == 128 and len(thresholds) == 16
    assert thresholds[0] == (0.15, np.inf) and thresholds[8] == (np.inf, 1.5) and thresholds[-1] == (np.inf, 3.25)
    assert (grid.step_filter_s[0], grid.step_filter_s[-1]) == (0.38, 0.66)
    np.testing.assert_allclose(np.diff(grid.step_filter_s), 0.04)
    np.testing.assert_allclose(np.diff(grid.merge_abs), 0.025)
    np.testing.assert_allclose(np.diff(grid.merge_rel), 0.25)


def test_the_first_of_equal_candidates_stays():
    # one clear event: every candidate is perfect
    values = np.zeros((1, 156, 1))
    values[0, 40:90] = 0.9
    scores = FrameScores(["a"], ["Dog"], np.arange(157) * FRAME_S, values)
    tuned = tune(scores, {"a": [(40 * FRAME_S, 90 * FRAME_S, "Dog")]}, {"a": 10.0})
    assert tuned.parameters == {"Dog": BoxParameters(0.38, 0.15, np.inf)}
    assert tuned.psds1 == {"Dog": 1.0} and tuned.tied == {"Dog": 128}


def test_merging_is_chosen_where_it_helps():
    # One event of ten seconds with a dip of four: what is left and right of it covers too little. In the other clip
    # a threshold below zero is a false alarm.
    values = np.zeros((2, 156, 2))
    values[0, :, 0] = 0.8
    values[0, 50:112, 0] = 0.54
    scores = FrameScores(["a", "b"], ["Frying", "Dog"], np.arange(157) * FRAME_S, values)
    events = {"a": [(0.0, 10.0, "Frying")], "b": [(1.0, 2.0, "Dog")]}
    tuned = tune(scores, events, {"a": 10.0, "b": 10.0})
    assert tuned.parameters["Frying"] == BoxParameters(0.38, 0.275, np.inf)  # the dip is 0.26 deep
    assert tuned.psds1 == {"Frying": 1.0, "Dog": 0.0}


def test_a_class_without_events_keeps_the_first_candidate_and_says_so():
    scores, events, durations_s = development_set(classes=("Cat", "Dog", "Blender"))
    events = {clip: [event for event in own if event[2] != "Blender"] for clip, own in events.items()}
    tuned = tune(scores, events, durations_s, SMALL)
    assert tuned.parameters["Blender"] == BoxParameters(0.4, 0.1, np.inf)
    assert np.isnan(tuned.psds1["Blender"])
    (note,) = tuned.notes
    assert note.startswith("Blender: no event in the ") and "first of 12 candidates stays" in note


def test_clips_without_events_or_scores_do_not_count():
    scores, events, durations_s = development_set()
    tuned = tune(scores, events, durations_s, SMALL)
    noise = np.random.default_rng(9).random((3, 156, 2))
    values, clips = np.append(scores.values, noise, axis=0), [*scores.clips, "silent", "unknown", "other"]
    more = replace(scores, clips=clips, values=values)
    further = {"silent": [], "other": [(0.0, 1.0, "Siren")], "no scores": [(0.0, 1.0, "Dog")]}
    assert tune(more, events | further, durations_s, SMALL) == tuned


def test_another_split_can_be_processed_from_the_file(tmp_path):
    scores, events, durations_s = development_set()
    tuned = tune(scores, events, durations_s, SMALL)
    tuned.write(tmp_path / "boxes.json", tuned_on="development clips")
    saved = json.loads((tmp_path / "boxes.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert saved["tuned_on"] == "development clips" and saved["n_clips"] == tuned.n_clips
    assert saved["psds1"] == tuned.psds1
    csebbs = Csebbs.read(tmp_path / "boxes.json")
    assert csebbs.parameters == tuned.parameters
    other, *_ = development_set(seed=5)
    boxes = csebbs.boxes(other.values, other.boundaries_s, other.clips, other.classes)
    assert set(boxes.event_label) == {"Cat", "Dog"} and boxes.filename.nunique() == 8


def test_shorter_clips_are_tuned_as_on_grids_of_their_own():
    scores, events, durations_s = development_set(n_clips=4)
    values = scores.values.copy()
    n_frames = np.array([156, 100, 60, 156])
    cut = [np.where(np.arange(156) < n, 1, 0) for n in n_frames]
    silent = FrameScores(scores.clips, scores.classes, scores.boundaries_s, values * np.array(cut)[:, :, None])
    assert tune(scores, events, durations_s, SMALL, n_frames) == tune(silent, events, durations_s, SMALL, n_frames)


def test_nothing_to_tune_on_is_refused():
    scores, events, durations_s = development_set()
    with pytest.raises(DataError, match="clip names must agree"):
        tune(scores, {f"{clip}.wav": own for clip, own in events.items()}, durations_s)
    with pytest.raises(DataError, match="no duration, such as 'clip"):
        tune(scores, events, {})
    with pytest.raises(ValueError, match="clip clip0, class Cat: the score at 0.000 s is -"):
        tune(replace(scores, values=scores.values - 2), events, durations_s)
    with pytest.raises(ValueError, match="at least one"):
        Grid(merge_abs=(), merge_rel=())
