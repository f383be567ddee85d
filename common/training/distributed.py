"""Training over several processes that gives what one process gives.

Batch norm statistics are taken over the whole batch, also on CPU (torch's own layer needs a GPU), and per-clip
statistics can be gathered in the order of the whole batch.
"""
import os

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return this process's number, also before the processes have met: 0 is the one (of each machine) that writes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    # In this order, as lightning does: SLURM_PROCID also stands in interactive shells, where it is nobody's rank.
    return int(next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), 0))


def gather_clips(values: Tensor, n_clips: int) -> Tensor:
    """Return `values` of all clips of the whole batch, (n_clips, …), from each process's share (B, …); no gradient.

    Process r holds positions r, r + world_size, …: see sampling.BatchSampler.
    """
    n_processes = world_size()
    if n_processes == 1:
        return values
    share = -(-n_clips // n_processes)
    padded = values.new_zeros((share, *values.shape[1:]))
    padded[:len(values)] = values.detach()
    parts = [torch.empty_like(padded) for _ in range(n_processes)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:n_clips]


class WholeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the clips of all processes, on any device (same state keys)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        given, x = x, x if x.dtype == torch.float64 else x.float()  # sums of bfloat16 would be too coarse
        axes = (0, 2, 3)
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = torch.cat([x.sum(axes), count])
        sums = dist_nn.all_reduce(sums)
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = x - mean[:, None, None]  # two passes: E[x²] - mean² would lose digits
        variance = dist_nn.all_reduce(centred.square().sum(axes)) / total
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(variance.detach() * total / (total - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        out = centred * scale[:, None, None]
        return (out + self.bias[:, None, None] if self.affine else out).to(given.dtype)


class WholeBatchSync(LayerSync):
    """Lightning plugin: swap BatchNorm2d for WholeBatchNorm2d (keeps tensors, so the optimiser sees the same ones)."""

    def apply(self, model: nn.Module) -> nn.Module:
        return self._swap(model, nn.BatchNorm2d, WholeBatchNorm2d)

    def revert(self, model: nn.Module) -> nn.Module:
        return self._swap(model, WholeBatchNorm2d, nn.BatchNorm2d)

    @staticmethod
    def _swap(model: nn.Module, old: type, new: type) -> nn.Module:
        for module in model.modules():
            if type(module) is old:
                module.__class__ = new
        return model
