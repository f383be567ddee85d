"""Weights and inputs that depend on nothing but a name or a seed, so that nobody has to ship them.

The rule (numpy's old `RandomState`, float64, then cast):
- weights: standard normal numbers from the seed CRC-32 of the tensor's published name. Tensors of two or more
  dimensions are divided by the square root of the size of one output (product of all dimensions but the
  first). Vectors and scalars become 1 + x/10 if their name ends in "weight", 1 + |x|/10 if it ends in
  "running_var", else x/10.
- inputs: scale times standard normal numbers from a given seed, float32; `wave` sets a chirp beside the noise.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def filled_tensor(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the floating-point tensor that the rule gives to `name`."""
    shape = tuple(shape)
    x = np.asarray(_old_numpy(zlib.crc32(name.encode())).standard_normal(shape))
    if name.endswith("running_var"):
        x = 1 + 0.1 * abs(x)
    elif len(shape) > 1:
        x = x / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(np.asarray(x)).reshape(shape).to(dtype)


def probe(shape: Sequence[int], seed: int, scale: float) -> Tensor:
    """Return the input of a vector, float32."""
    noise = _old_numpy(seed).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(scale * noise, dtype=np.float32))


def wave(n_samples: int, seed: int, sample_rate: int = 16000) -> Tensor:
    """Return two waveforms (2, T), float32: noise of 0.1, and a chirp of 0.3 that is silent after 70 %."""
    t_s = np.arange(n_samples) / sample_rate
    # 300 t · t in this order: features far below the chirp show the last bit of it.
    chirp = 0.3 * np.sin(2 * np.pi * (200 * t_s + 300 * t_s * t_s))
    chirp[int(0.7 * n_samples) :] = 0.0
    noise = probe((2, n_samples), seed, 0.1)[0]
    return torch.stack([noise, torch.from_numpy(chirp.astype(np.float32))])


def _old_numpy(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)  # noqa: NPY002 - the published rule names this generator


def other_seed(seed: int) -> int:
    """Return the seed of the noise that replaces a probe, to see whether an output depends on its input."""
    return (seed + 1_000_003) % 2**32
