"""CP-Mobile, the network of the low-complexity challenge, and its per-device container.

Flow: log mel (B, 1, F, N) → **CPMobile | DeviceModels** → {"logits": (B, K)}.

At 256 mel bins and 65 frames the default network has 61,148 parameters and 29,419,156 multiply-accumulate
operations (`common.complexity` counts them); in fp16 that is 122,296 bytes of the 128,000 allowed. Parameter
names are those of the published checkpoints, so these load without a key map.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from common.nn.layers import GlobalResponseNorm, conv_norm, init_mobile, make_divisible
from common.nn.weights import LoadReport, container_devices, load_published

BASELINE_STRIDES = {"b2": (1, 1), "b3": (1, 2), "b4": (2, 1)}


class CPMobileBlock(nn.Module):
    """Inverted residual: 1×1 expansion, 3×3 depthwise, 1×1 projection, shortcut, ReLU after the sum.

    The shortcut exists where input and output have the same width; where the block also strides, the shortcut
    is averaged over 3×3 windows with the same stride (padded zeros counted).

    Args:
        stride: (frequency, time).
        grn: put a global response normalisation between the sum and the ReLU (the 2023 network).
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion_rate: float, stride: tuple[int, int], grn: bool
    ):
        super().__init__()
        expanded = make_divisible(in_channels * expansion_rate)
        self.block = nn.Sequential(
            conv_norm(in_channels, expanded),
            conv_norm(expanded, expanded, 3, stride, groups=expanded),
            conv_norm(expanded, out_channels, activation=None),
        )
        self.has_shortcut = in_channels == out_channels
        self.shortcut = nn.AvgPool2d(3, stride, padding=1) if tuple(stride) != (1, 1) else nn.Identity()
        self.after_block_norm = GlobalResponseNorm() if grn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, F, N) to (B, C', F / stride, N / stride)."""
        y = self.block(x)
        if self.has_shortcut:
            y = y + self.shortcut(x)
        return torch.relu(self.after_block_norm(y))


class CPMobile(nn.Module):
    """CP-Mobile: two strided convolutions, three stages of inverted residual blocks, a convolutional head.

    Args:
        base_channels: width of stage 1; stage i is `base_channels · channels_multiplier^(i-1)`, rounded to 8.
        expansion_rate: width inside a block relative to the block's input, rounded to 8.
        n_blocks: blocks per stage. They are counted through the stages: b1, b2, …
        strides: (frequency, time) by block name; blocks not named do not stride.
        grn: global response normalisation in every block (2023 network: multiplier 2.3, expansion 3, b2 (2,
            2), b4 (2, 1)).

    Shape: log mel (B, 1, F, N) → {"logits": (B, K)}; any F and N.

    Source: DCASE 2025 task 1 baseline; Schmid et al., CP-Mobile, 2023.
    """

    def __init__(
        self,
        n_classes: int = 10,
        in_channels: int = 1,
        base_channels: int = 32,
        channels_multiplier: float = 1.8,
        expansion_rate: float = 2.1,
        n_blocks: Sequence[int] = (3, 2, 1),
        strides: Mapping[str, Sequence[int]] | None = None,
        grn: bool = False,
    ):
        super().__init__()
        strides = BASELINE_STRIDES if strides is None else strides
        names = [f"b{i + 1}" for i in range(sum(n_blocks))]
        if unknown := sorted(set(strides) - set(names)):
            raise ValueError(f"strides name {unknown}, but n_blocks {tuple(n_blocks)} makes only {names}.")

        width = make_divisible(base_channels)
        self.in_c = nn.Sequential(
            conv_norm(in_channels, make_divisible(width / 4), 3, stride=2),
            conv_norm(make_divisible(width / 4), width, 3, stride=2),
        )
        self.stages = nn.Sequential()
        remaining = iter(names)
        for stage, n in enumerate(n_blocks):
            out_width = make_divisible(base_channels * channels_multiplier**stage)
            blocks = nn.Sequential()
            for _ in range(n):
                name = next(remaining)
                stride = tuple(strides.get(name, (1, 1)))
                blocks.add_module(name, CPMobileBlock(width, out_width, expansion_rate, stride, grn))
                width = out_width
            self.stages.add_module(f"s{stage + 1}", blocks)
        # The head's BatchNorm stands before the pooling: it normalises class maps, not logits.
        self.feed_forward = nn.Sequential(
            nn.Conv2d(width, n_classes, 1, bias=False), nn.BatchNorm2d(n_classes), nn.AdaptiveAvgPool2d(1)
        )
        init_mobile(self)

    def forward(self, log_mel: Tensor) -> dict[str, Tensor]:
        """Return {"logits": (B, K)} for log_mel (B, 1, F, N)."""
        class_map = self.feed_forward(self.stages(self.in_c(log_mel)))
        return {"logits": class_map.flatten(1)}


class DeviceModels(nn.Module):
    """One network for any device, and a copy of it per known device to fine-tune.

    The limits of the challenge hold for one network at a time: for one clip only its own device's network
    runs.

    Args:
        base_model: used for clips of devices without a copy, or when no device is given.
        devices: names such as "a" or "s1"; each gets a deep copy of `base_model`.
    """

    def __init__(self, base_model: nn.Module, devices: Iterable[str]):
        super().__init__()
        self.base_model = base_model
        self.device_models = nn.ModuleDict({device: deepcopy(base_model) for device in devices})

    @property
    def devices(self) -> list[str]:
        """Names of the devices that have their own network."""
        return list(self.device_models)

    def get_model_for_device(self, device: str | None) -> nn.Module:
        """Return the network for clips of `device`; the base model for an unknown device or None."""
        if device in self.device_models:
            return self.device_models[device]
        return self.base_model

    def forward(self, log_mel: Tensor, devices: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Run every clip through its device's network.

        Args:
            log_mel: (B, 1, F, N).
            devices: one name per clip; None runs all clips through the base model.

        Returns:
            {"logits": (B, K)} in the order of the input. Clips that share a network run as one batch.
        """
        if devices is None:
            return self.base_model(log_mel)
        if len(devices) != len(log_mel):
            raise ValueError(
                f"{len(devices)} devices for a batch of {len(log_mel)} clips: give one device per clip."
            )
        groups: dict[str | None, list[int]] = {}
        for i, device in enumerate(devices):
            groups.setdefault(device if device in self.device_models else None, []).append(i)
        if len(groups) == 1:
            return self.get_model_for_device(next(iter(groups)))(log_mel)

        order = torch.tensor([i for clips in groups.values() for i in clips], device=log_mel.device)
        parts = order.split([len(clips) for clips in groups.values()])
        outputs = [
            self.get_model_for_device(device)(log_mel[clips])["logits"]
            for device, clips in zip(groups, parts, strict=True)
        ]
        return {"logits": torch.cat(outputs)[order.argsort()]}


def from_published(
    state: Mapping[str, Tensor], base_model: nn.Module | None = None
) -> tuple[nn.Module, LoadReport]:
    """Return the network or the container of networks that a published checkpoint of this task holds.

    Args:
        state: as read by `common.nn.weights.load_state_dict_file`; the devices of a container come from its
            names.
        base_model: a network of the checkpoint's architecture; None = the baseline's CP-Mobile.

    Raises:
        WeightsError: names or shapes do not fit.
    """
    model = CPMobile() if base_model is None else base_model
    if devices := container_devices(state):
        model = DeviceModels(model, devices)
    return model, load_published(model, state, "dcase_baseline")
