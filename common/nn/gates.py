"""Controllable gates: one dial `t` opens or closes an adapter at inference time.

Flow: adapter output → **gate** (0 … 1, same shape) → multiplied with the embedding.

At t = 0 a gate is 1 everywhere (the embedding passes unchanged), at t = 1 it is the ordinary sigmoid.
Source: ConGater (Masoudian et al. 2023), there after the layers of PaSST.
"""

import math

import torch
from torch import Tensor


def t_gate(x: Tensor, t: float | Tensor) -> Tensor:
    """Return min(1, c(t) · sigmoid(t x)) with c(t) = 2 − t up to t = 1 and 1 above.

    Args:
        x: adapter output, any shape.
        t: dial, t ≥ 0; a number, or a tensor that broadcasts against `x` (for example one value per clip).
            Above 1 the gate steepens towards a step function.

    Returns:
        Gate values 0 … 1, shape of `x`.

    Raises:
        ValueError: if the number `t` is negative.
    """
    if isinstance(t, Tensor):
        height = (2.0 - t).clamp(min=1.0)
    else:
        if t < 0:
            raise ValueError(f"gate dial t = {t} is negative; use t ≥ 0 (0 opens the gate).")
        height = max(2.0 - t, 1.0)
    return (height * torch.sigmoid(t * x)).clamp(max=1.0)


def l_gate(x: Tensor, t: float | Tensor) -> Tensor:
    """Return 1 − log2(t + 1) · sigmoid(−x).

    Args:
        x: adapter output, any shape.
        t: dial, 0 ≤ t ≤ 1; a number, or a tensor that broadcasts against `x`.

    Returns:
        Gate values 0 … 1, shape of `x`.

    Raises:
        ValueError: if the number `t` is outside 0 … 1 (the gate would leave 0 … 1).
    """
    if isinstance(t, Tensor):
        depth = torch.log2(t + 1.0)
    else:
        if not 0 <= t <= 1:
            raise ValueError(f"gate dial t = {t} is outside 0 … 1, where this gate is defined.")
        depth = math.log2(t + 1.0)
    return 1.0 - depth * torch.sigmoid(-x)
