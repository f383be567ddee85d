"""Median filter over time, one window per class.

Flow: frame scores → **median filter** → score files.

Windows count frames, so they belong to one frame grid: the published ones of this task (`classes.csv`) to
frames of 64 ms; 9 frames of 40 ms smooth the logits of the AudioSet-strong systems. Any monotone function, a
sigmoid for instance, may be applied before or after: an odd window picks one of its values.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def median_filter(scores: np.ndarray, windows: int | Sequence[int]) -> np.ndarray:
    """Replace every frame by the median of the window around it.

    Args:
        scores: (..., N, K) probabilities or logits, any leading dimensions; they are not changed.
        windows: (K,) frames, or one number for all classes. 1 leaves a class as it is; an even window takes
            the later of the two middle values, and one frame more before than after, as scipy does.

    Returns:
        (..., N, K), same type. At the ends the signal is mirrored, the end frame itself included
        (scipy's mode "reflect").

    Raises:
        ValueError: wrong shape, a window below 1, or scores that are not numbers.

    Source: DCASE 2024 task 4, baseline and winner: `scipy.ndimage.median_filter` clip by clip and class by class.
    """
    scores = np.asarray(scores)
    if scores.ndim < 2:
        raise ValueError(f"scores have shape {scores.shape}; the last two dimensions must be frames and classes")
    n_frames, n_classes = scores.shape[-2:]
    windows = np.asarray(windows)
    if windows.dtype.kind not in "iu" or windows.shape not in ((), (n_classes,)) or (windows < 1).any():
        raise ValueError(f"windows {windows} must be one whole number ≥ 1, or one for each of {n_classes} classes")
    if np.isnan(scores).any():
        where = tuple(int(i) for i in np.argwhere(np.isnan(scores))[0])
        raise ValueError(f"score at {where} is NaN, which has no median: look at what the network gave out")
    windows = np.broadcast_to(windows, n_classes)
    filtered = scores.copy()
    for window in np.unique(windows[windows > 1]):
        members = windows == window
        signals = np.moveaxis(scores[..., members], -2, -1)  # (..., members, N)
        signals = signals.astype(np.float32) if signals.dtype == np.float16 else signals  # scipy knows no float16
        filtered[..., members] = np.moveaxis(_filter_rows(signals, int(window)), -1, -2)
    return filtered


def _filter_rows(signals: np.ndarray, window: int) -> np.ndarray:
    """Filter along the last dimension.

    scipy is fast for one long signal only: all rows are put one after the other, each with its mirrored ends
    around it so that no window reaches into the next row.
    """
    reach = window // 2
    rows = signals.reshape(-1, signals.shape[-1])
    mirrored = np.pad(rows, ((0, 0), (reach, reach)), mode="symmetric")
    filtered = ndimage.median_filter(mirrored.ravel(), size=window).reshape(mirrored.shape)
    return filtered[:, reach : reach + rows.shape[1]].reshape(signals.shape)
