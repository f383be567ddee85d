"""CP-ResNet: residual networks with a chosen receptive field, the classic teachers of task 1.

Flow: log mel (B, 1, F, N) → **CPResNet** → {"logits": (B, K)}.

`CPResNet()` is the 128k network of 2022/23 (127,684 parameters, 28,840,396 MACs at 256 × 43);
`CPResNet(**FULL_FAMILY)` the one of 2019/20 and of the device impulse response paper.
Parameter names are those of the published checkpoints.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Which pooling follows which part of stage 1: 0 is before its first block, i after its i-th block.
SMALL_POOLS = {0: (2, 2), 1: (2, 1), 2: (2, 1), 4: (2, 1)}
FULL_FAMILY = {
    "rho": 7,
    "base_channels": 128,
    "n_blocks": (4, 4, 4),
    "cut_channels_s3": 0,
    "groups_s2": 1,
    "pools": {1: (2, 2), 2: (2, 2), 4: (2, 2)},
    "rule": "full",
}


def kernel_sizes(rho: int, rule: str = "small") -> list[list[tuple[int, int]]]:
    """Return the kernel sizes (conv1, conv2) of the blocks of the three stages.

    A larger `rho` means a larger receptive field: kernels change from 1 to 3, the deepest last. Rule "full"
    describes 4 blocks per stage (2019/20), "small" 2 (2022/23); a network with fewer blocks uses the first
    ones of each stage.
    """
    if rule not in ("small", "full"):
        raise ValueError(f"rule {rule!r} is unknown: use 'small' or 'full'.")
    n, extra = (2, rho - 4) if rule == "small" else (4, rho - 7)

    def grown(threshold: int) -> int:
        return 3 if extra > threshold else 1

    def not_cut(threshold: int) -> int:
        return 1 if -extra > threshold else 3

    stage1 = [(3, 1)] + [(not_cut(2 * (n - i)), not_cut(2 * (n - i) - 1)) for i in range(1, n)]
    stage2 = [(not_cut(0), grown(0))] + [(grown(2 * i - 1), grown(2 * i)) for i in range(1, n)]
    stage3 = [(grown(2 * n - 1 + 2 * i), grown(2 * n + 2 * i)) for i in range(n)]
    return [stage1, stage2, stage3]


def damping_row(kernel_size: int) -> Tensor:
    """Return the factors (kernel_size,) of frequency damping: 1 in the middle, 0.01 at the edges.

    Source: Koutini et al., 2020: d_i = 1 - 0.99 · |i - c| / c with the centre c = (k - 1) / 2.
    """
    centre = (kernel_size - 1) / 2
    if centre == 0:
        return torch.ones(1)
    distance = (torch.arange(kernel_size, dtype=torch.float64) - centre).abs() / centre
    return (1 - 0.99 * distance).float()


class DampedConv2d(nn.Conv2d):
    """A convolution whose kernel is damped towards its frequency edges in every forward pass.

    The stored weight is the undamped one, so checkpoints with and without damping have the same names.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("damping", damping_row(self.kernel_size[0])[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.damping.to(self.weight.dtype), self.bias)


class BasicBlock(nn.Module):
    """Two convolutions with BatchNorm, a shortcut (1×1 where the width changes), ReLU after the sum."""

    def __init__(
        self,
        conv: type[nn.Conv2d],
        in_channels: int,
        out_channels: int,
        kernels: tuple[int, int],
        groups: int,
    ):
        super().__init__()
        k1, k2 = kernels
        self.conv1 = conv(in_channels, out_channels, k1, padding=k1 // 3, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, k2, padding=k2 // 3, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels:
            self.shortcut.add_module("conv", conv(in_channels, out_channels, 1, groups=groups, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CPResNet(nn.Module):
    """Receptive-field regularised residual network.

    Args:
        rho: size of the receptive field, see `kernel_sizes`.
        base_channels: width of stage 1; it is multiplied by `channels_multiplier` from stage to stage.
        n_blocks: blocks per stage.
        cut_channels_s3: channels taken away from stage 3.
        groups_s2: groups of all convolutions of stage 2, its shortcut included.
        pools: max pooling (frequency, time; stride = window) in stage 1: before its first block (0) or after
            block i.
        rule: see `kernel_sizes`.
        freq_damping: damp every kernel towards its frequency edges.

    Shape: log mel (B, 1, F, N) → {"logits": (B, K)}.

    Source: Koutini et al., 2019-2021; the 128k setting is that of the task 1 systems of 2022 and 2023. The
    published initialisation counts blocks over the whole process, so that a second network starts
    differently; here each network counts its own.
    """

    def __init__(
        self,
        n_classes: int = 10,
        in_channels: int = 1,
        rho: int = 8,
        base_channels: int = 32,
        channels_multiplier: int = 2,
        n_blocks: Sequence[int] = (2, 1, 1),
        cut_channels_s3: int = 36,
        groups_s2: int = 2,
        pools: dict[int, tuple[int, int]] | None = None,
        rule: str = "small",
        freq_damping: bool = False,
    ):
        super().__init__()
        conv = DampedConv2d if freq_damping else nn.Conv2d
        pools = SMALL_POOLS if pools is None else pools
        width = base_channels
        self.in_c = nn.Sequential(
            conv(in_channels, width, 5, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        for stage, (n, kernels) in enumerate(zip(n_blocks, kernel_sizes(rho, rule), strict=True), start=1):
            if n > len(kernels):
                raise ValueError(
                    f"n_blocks asks for {n} blocks in stage {stage}, but rule {rule!r} has {len(kernels)}."
                )
            out_width = base_channels * channels_multiplier ** (stage - 1) - (
                cut_channels_s3 if stage == 3 else 0
            )
            blocks = nn.Sequential()
            if stage == 1 and 0 in pools:
                blocks.add_module("pool0", nn.MaxPool2d(pools[0]))
            for i in range(1, n + 1):
                groups = groups_s2 if stage == 2 else 1
                blocks.add_module(f"block{i}", BasicBlock(conv, width, out_width, kernels[i - 1], groups))
                if stage == 1 and i in pools:
                    blocks.add_module(f"pool{i}", nn.MaxPool2d(pools[i]))
                width = out_width
            self.add_module(f"stage{stage}", blocks)
        self.feed_forward = nn.Sequential(
            nn.Conv2d(width, n_classes, 1, bias=False), nn.BatchNorm2d(n_classes)
        )
        self._init_weights()

    def forward(self, log_mel: Tensor) -> dict[str, Tensor]:
        """Return {"logits": (B, K)} for log_mel (B, 1, F, N)."""
        x = self.stage3(self.stage2(self.stage1(self.in_c(log_mel))))
        return {"logits": F.adaptive_avg_pool2d(self.feed_forward(x), 1).flatten(1)}

    def _init_weights(self) -> None:
        """He normal; conv1 of a block shrinks with the depth and conv2 is 0: it starts as its shortcut."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in")
        blocks = [m for m in self.modules() if isinstance(m, BasicBlock)]
        for block in blocks:
            k_area = block.conv1.kernel_size[0] * block.conv1.kernel_size[1]
            std = (2 / (k_area * block.conv1.out_channels)) ** 0.5 * len(blocks) ** -0.5
            nn.init.normal_(block.conv1.weight, 0.0, std)
            nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(self.feed_forward[0].weight)
