"""Vectors of the sound event front ends."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from common.audio.encoder_frontends import AtstMel, BeatsFbank, CrnnMel, fmn_mel, passt_mel
from tests.parity.checks import Check, compare, equal, handles
from tests.parity.fill import other_seed, wave
from tests.parity.task1_formulas import LOG_MEL, POWER_MEL
from tests.parity.vectors import Vector

BANK = 1e-5  # of the largest value
# Farther below the loudest band of its frame than this, a band of BeatsFbank shows the rounding of float32.
CLEAR_DB = 70.0


@handles(lambda v: v.field("full_shapes") is not None and v.field("time_stride") is not None)
def check_sed_front_ends(vector: Vector) -> Iterable[Check]:
    """Features of a noise and of a chirp with silence, full shapes, filter banks."""
    n_samples, seed = vector.field("n_samples"), vector.field("seed")
    x = wave(n_samples, seed)[:, None]
    # Chirp for noise and other noise for the chirp: both rows are replaced.
    other = wave(n_samples, other_seed(seed)).flip(0)[:, None]
    yield from _crnn(vector, x, other)
    atst = AtstMel(top_db_over="batch")
    # A unit of the outputs is as many dB or powers of e as the divisor says: the tolerance shrinks with it.
    yield from _features(vector, "atst", atst, x, other, LOG_MEL * 2 / (atst.data_max_db - atst.data_min_db))
    yield from _beats(vector, x, other)
    for name, (make, f_max_range_hz) in {
        "passt_fmax8000": (passt_mel, 1),
        "passt_fmax7500": (passt_mel, 1000),
        "passt_fmax7000": (passt_mel, 2000),
        "fmn": (fmn_mel, 2000),
    }.items():
        front_end = make(f_max_range_hz=f_max_range_hz)
        yield from _features(vector, name, front_end, x, other, LOG_MEL / 5)
        f_max_hz = float(vector.field("full_shapes")[name][-1].removeprefix("fmax="))
        yield equal(f"{name} f_max_hz", front_end.f_max_hz, f_max_hz)
        if (bank := vector.arrays.get(f"fb_{name}")) is not None:  # Kaldi's: without the last bin
            yield compare(f"fb_{name}", front_end.mel_bank[:-1, ::4].T, bank, relative=BANK)


def _features(
    vector: Vector, name: str, front_end: Callable[[Tensor], Tensor], x: Tensor, other: Tensor, absolute: float
) -> Iterable[Check]:
    found, replaced = front_end(x), front_end(other)
    shape = [size for size in vector.field("full_shapes")[name] if isinstance(size, int)]
    yield equal(f"{name} shape", found.shape, shape)
    stride = vector.field("time_stride")
    found, replaced = found[..., ::stride], replaced[..., ::stride]
    yield compare(name, found, vector.arrays[name], absolute=absolute, replaced=replaced)


def _crnn(vector: Vector, x: Tensor, other: Tensor) -> Iterable[Check]:
    front_end, expected, stride = CrnnMel(), vector.arrays, vector.field("time_stride")
    yield equal("crnn shape", front_end(x)[:, 0].shape, vector.field("full_shapes")["crnn"])
    scaled_unit_db = (front_end.max_db - front_end.min_db) / 2  # or less, then the tolerance is too strict
    for name, compute, tolerance in (
        ("crnn_amp", front_end.amplitude, {"relative": POWER_MEL}),
        ("crnn_db", lambda w: front_end.decibels(front_end.amplitude(w)), {"absolute": LOG_MEL}),
        ("crnn_scaled", front_end, {"absolute": LOG_MEL / scaled_unit_db}),
    ):
        found, replaced = (compute(w)[:, 0, :, ::stride] for w in (x, other))
        yield compare(name, found, expected[name], replaced=replaced, **tolerance)
    yield compare("crnn_fb", front_end.mel_bank[::8], expected["crnn_fb"], relative=BANK)


def _beats(vector: Vector, x: Tensor, other: Tensor) -> Iterable[Check]:
    """All bands, those far below the loudest of their frame with less weight.

    Without dither, the bands far from a chirp hold the rounding of its samples, which is as large as that of
    another processor: torchaudio itself differs there by 1e-3 between AVX2 and AVX-512, and by 5e-2 from float64.
    The rounding is the same in all bands of a frame, so its share of a band grows as the amplitude falls.
    """
    front_end, stride = BeatsFbank(), vector.field("time_stride")
    yield equal("beats shape", front_end(x).shape, vector.field("full_shapes")["beats"])
    found, replaced = (front_end(w)[..., ::stride] for w in (x, other))
    expected = torch.from_numpy(vector.arrays["beats"])
    below_db = (expected.amax(2, keepdim=True) - expected) * 2 * front_end.data_std * 10 / math.log(10)
    weight = 10 ** ((CLEAR_DB - below_db) / 20).clamp(max=0.0)
    tolerance = LOG_MEL / (2 * front_end.data_std)
    yield compare("beats", found * weight, expected * weight, absolute=tolerance, replaced=replaced * weight)
