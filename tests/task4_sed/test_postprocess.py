"""Median filter: cases solved by hand, agreement with the definition, bad input."""

import numpy as np
import pytest

from task4_sed.postprocess import median_filter


def by_definition(signal: np.ndarray, window: int) -> np.ndarray:
    """Return the median of each window of a signal (N,), mirrored at its ends as often as needed."""
    n = len(signal)
    mirrored = np.concatenate([signal, signal[::-1]])  # period 2 N
    before = window // 2
    windows = [mirrored[np.arange(i - before, i - before + window) % (2 * n)] for i in range(n)]
    return np.array([np.sort(w)[window // 2] for w in windows])


def test_a_short_peak_goes_and_a_long_one_stays():
    scores = np.array([0, 1, 0, 0, 1, 1, 1, 0, 0.0])[:, None]
    np.testing.assert_array_equal(median_filter(scores, 3)[:, 0], [0, 0, 0, 0, 1, 1, 1, 0, 0])


def test_ends_are_mirrored_with_the_end_frame():
    # window at frame 0: frames 1, 0 | 0, 1, 2 = 5, 9, 9, 5, 1
    np.testing.assert_array_equal(median_filter(np.array([[9.0], [5], [1], [1]]), 5)[:, 0], [5, 5, 1, 1])


@pytest.mark.parametrize("n_frames", [1, 2, 3, 7, 40])
def test_every_window_agrees_with_the_definition(n_frames):
    rng = np.random.default_rng(n_frames)
    windows = np.arange(1, 20)
    scores = rng.random((2, 3, n_frames, len(windows)))
    filtered = median_filter(scores, windows)
    for index in np.ndindex(2, 3):
        for k, window in enumerate(windows):
            expected = by_definition(scores[index][:, k], window)
            np.testing.assert_array_equal(filtered[index][:, k], expected, err_msg=f"window {window}")


def test_clips_do_not_reach_into_each_other():
    rng = np.random.default_rng(0)
    scores, windows = rng.random((5, 30, 3)), [3, 9, 9]
    alone = np.stack([median_filter(clip, windows) for clip in scores])
    np.testing.assert_array_equal(median_filter(scores, windows), alone)


def test_filtering_logits_and_then_the_sigmoid_is_the_same():
    logits = np.random.default_rng(0).standard_normal((250, 8))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    np.testing.assert_array_equal(sigmoid(median_filter(logits, 9)), median_filter(sigmoid(logits), 9))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_type_is_kept_and_input_is_not_changed(kind):
    scores = np.random.default_rng(0).random((2, 20, 3)).astype(kind)
    before = scores.copy()
    filtered = median_filter(scores, [1, 3, 5])
    assert filtered.dtype == kind
    np.testing.assert_array_equal(scores, before)
    np.testing.assert_array_equal(filtered[..., 0], scores[..., 0])
    assert not np.shares_memory(filtered, scores)


@pytest.mark.parametrize("windows", [0, [3, 3], [3, 3, 2.5], [3, -1, 3]])
def test_bad_windows_are_refused(windows):
    with pytest.raises(ValueError, match="whole number"):
        median_filter(np.zeros((4, 3)), windows)


def test_nan_and_missing_dimensions_are_refused():
    scores = np.zeros((2, 5, 3))
    scores[1, 4, 2] = np.nan
    with pytest.raises(ValueError, match=r"\(1, 4, 2\) is NaN"):
        median_filter(scores, 3)
    with pytest.raises(ValueError, match="frames and classes"):
        median_filter(np.zeros(5), 3)
