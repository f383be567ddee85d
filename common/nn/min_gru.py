"""The minGRU: a recurrent layer without a loop over time.

Flow: frames (B, N, D) → **minGRU** → frames (B, N, D).

Its gate does not look at its own state, so that the states are a linear recurrence, which `linear_scan` solves
for all frames at once in log2(N) steps. The published code does that in the logarithm; here decays stay what
they are, numbers between 0 and 1 that are only ever multiplied and added: nothing overflows and no digits are
lost, however long the sequence.

Parameter names are those of the published checkpoints.

Source: Feng et al., "Were RNNs all we needed?", 2024.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def linear_scan(decay: Tensor, drive: Tensor) -> Tensor:
    """Return the states h[n] = decay[n] · h[n-1] + drive[n] with h[-1] = 0.

    Shape: decay, drive (B, N, D), float32 or float64 → (B, N, D).
    """
    return _LinearScan.apply(decay, drive)


class _LinearScan(torch.autograd.Function):
    """The gradient of a linear recurrence is one too, run backwards: only decay and states are kept for it."""

    @staticmethod
    def forward(ctx, decay: Tensor, drive: Tensor) -> Tensor:
        states = _doubling_scan(decay, drive)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        next_decay = F.pad(decay[:, 1:], (0, 0, 0, 1))
        drive_grad = _doubling_scan(next_decay.flip(1), grad.flip(1)).flip(1)
        return drive_grad * F.pad(states[:, :-1], (0, 0, 1, 0)), drive_grad


def _doubling_scan(decay: Tensor, drive: Tensor) -> Tensor:
    """Before the step of width s, `drive` holds the states as if they had started s frames ago."""
    step = 1
    while step < drive.shape[1]:
        drive = torch.cat((drive[:, :step], drive[:, step:] + decay[:, step:] * drive[:, :-step]), dim=1)
        decay = torch.cat((decay[:, :step], decay[:, step:] * decay[:, :-step]), dim=1)
        step *= 2
    return drive


class MinGRU(nn.Module):
    """h[n] = (1 - z) · h[n-1] + z · g, where gate z and candidate g > 0 depend on frame n alone.

    Shape: (B, N, D) → same.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.to_hidden_and_gate = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.to_hidden_and_gate(x)
        at_least_float32 = torch.promote_types(projected.dtype, torch.float32)
        hidden, gate = projected.to(at_least_float32).chunk(2, dim=-1)
        candidate = torch.where(hidden >= 0, hidden + 0.5, hidden.sigmoid())
        # σ(-gate) is 1 - σ(gate) without the cancellation.
        return linear_scan((-gate).sigmoid(), gate.sigmoid() * candidate).to(projected.dtype)


class BidirectionalMinGRU(nn.Module):
    """One minGRU per direction, joined by a linear layer. Shape: (B, N, D) → same."""

    def __init__(self, dim: int):
        super().__init__()
        self.forward_minGRU = MinGRU(dim)
        self.backward_minGRU = MinGRU(dim)
        self.to_out = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        backward = self.backward_minGRU(x.flip(1)).flip(1)
        return self.to_out(torch.cat((self.forward_minGRU(x), backward), dim=-1))
