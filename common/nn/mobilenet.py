"""MobileNetV3 for audio: the EfficientAT networks mn01 … mn40.

Flow: log mel (B, 1, F, N) → **MobileNet** → {"logits": (B, K), "features": (B, D)}.

`mobile_features` builds the convolutional part alone, with any strides: frame-wise detectors start from it.
Parameter names are those of the published checkpoints.

Source: Schmid et al., "Efficient large-scale audio tagging", ICASSP 2023.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from common.nn.layers import conv_norm, init_mobile, make_divisible

# The networks inherit these from TensorFlow; PyTorch's defaults (1e-5, 0.1) give other outputs.
NORM = {"norm_eps": 1e-3, "norm_momentum": 0.01}


@dataclass(frozen=True)
class BlockSpec:
    """One row of the MobileNetV3-Large table, at width 1."""

    kernel_size: int
    expanded: int
    out: int
    squeeze: bool
    activation: type[nn.Module]
    stride: int


RELU, SWISH = nn.ReLU, nn.Hardswish
MOBILENET_V3_LARGE = (
    BlockSpec(3, 16, 16, False, RELU, 1),
    BlockSpec(3, 64, 24, False, RELU, 2),
    BlockSpec(3, 72, 24, False, RELU, 1),
    BlockSpec(5, 72, 40, True, RELU, 2),
    BlockSpec(5, 120, 40, True, RELU, 1),
    BlockSpec(5, 120, 40, True, RELU, 1),
    BlockSpec(3, 240, 80, False, SWISH, 2),
    BlockSpec(3, 200, 80, False, SWISH, 1),
    BlockSpec(3, 184, 80, False, SWISH, 1),
    BlockSpec(3, 184, 80, False, SWISH, 1),
    BlockSpec(3, 480, 112, True, SWISH, 1),
    BlockSpec(3, 672, 112, True, SWISH, 1),
    BlockSpec(5, 672, 160, True, SWISH, 2),
    BlockSpec(5, 960, 160, True, SWISH, 1),
    BlockSpec(5, 960, 160, True, SWISH, 1),
)
STEM_CHANNELS = 16
HEAD_CHANNELS = 1280


class ChannelGate(nn.Module):
    """Weigh each channel by a sigmoid computed from the channel means (plain sigmoid, not the hard one)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()  # (B, C)
        return x * gate[:, :, None, None]


class SqueezeExcite(nn.Module):
    """Holds one channel gate under the name that published checkpoints use (others have more gates)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conc_se_layers = nn.ModuleList([ChannelGate(channels, make_divisible(channels // 4))])

    def forward(self, x: Tensor) -> Tensor:
        return self.conc_se_layers[0](x)


class MobileBlock(nn.Module):
    """Inverted residual: expansion, depthwise convolution, optional squeeze and excitation, projection.

    Args:
        in_channels, expanded, out_channels: already scaled by the network's width.
        stride: one number or (frequency, time). The input is added where nothing strides and the widths
            agree.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        kernel_size: int,
        stride: int | tuple[int, int] = 1,
        squeeze: bool = False,
        activation: type[nn.Module] = nn.ReLU,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(conv_norm(in_channels, expanded, activation=activation, **NORM))
        layers.append(
            conv_norm(expanded, expanded, kernel_size, stride, groups=expanded, activation=activation, **NORM)
        )
        if squeeze:
            layers.append(SqueezeExcite(expanded))
        layers.append(conv_norm(expanded, out_channels, activation=None, **NORM))
        self.block = nn.Sequential(*layers)
        self.has_shortcut = stride in (1, (1, 1)) and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y + x if self.has_shortcut else y


def mobile_features(
    width: float = 1.0,
    in_channels: int = 1,
    strides: Sequence[int | tuple[int, int]] | None = None,
    stem_stride: int | tuple[int, int] = 2,
) -> nn.Sequential:
    """Return stem, 15 blocks and the 1×1 convolution at the end (6 · 160 · width channels).

    Args:
        width: factor on all channel counts, each rounded to 8.
        strides: one per block, numbers or (frequency, time) tuples; None = those of MobileNetV3-Large.
    """
    strides = [spec.stride for spec in MOBILENET_V3_LARGE] if strides is None else list(strides)
    if len(strides) != len(MOBILENET_V3_LARGE):
        raise ValueError(
            f"strides has {len(strides)} entries, but the network has {len(MOBILENET_V3_LARGE)} blocks."
        )
    channels = make_divisible(STEM_CHANNELS * width)
    layers: list[nn.Module] = [
        conv_norm(in_channels, channels, 3, stem_stride, activation=nn.Hardswish, **NORM)
    ]
    for spec, stride in zip(MOBILENET_V3_LARGE, strides, strict=True):
        expanded, out = make_divisible(spec.expanded * width), make_divisible(spec.out * width)
        layers.append(
            MobileBlock(channels, expanded, out, spec.kernel_size, stride, spec.squeeze, spec.activation)
        )
        channels = out
    layers.append(conv_norm(channels, 6 * channels, activation=nn.Hardswish, **NORM))
    return nn.Sequential(*layers)


def mlp_head(in_features: int, width: float, n_classes: int, dropout: float = 0.2) -> nn.Sequential:
    """Return global mean (its first two layers) and the two linear layers of the published taggers."""
    hidden = make_divisible(HEAD_CHANNELS * width)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(in_features, hidden),
        nn.Hardswish(),
        nn.Dropout(dropout),
        nn.Linear(hidden, n_classes),
    )


class MobileNet(nn.Module):
    """Tagger with one output per clip.

    Args:
        width: 0.1, 0.4, 1, 4 make the published mn01, mn04, mn10, mn40.
        head: "mlp" (published AudioSet taggers) or "fully_convolutional" (1×1 convolution, BatchNorm, mean).

    Shape: log mel (B, 1, F, N) → {"logits": (B, K), "features": (B, 960 · width)}: the time-frequency mean of
    the last map.
    """

    def __init__(
        self,
        width: float = 1.0,
        n_classes: int = 527,
        in_channels: int = 1,
        head: str = "mlp",
        dropout: float = 0.2,
        strides: Sequence[int | tuple[int, int]] | None = None,
    ):
        super().__init__()
        self.features = mobile_features(width, in_channels, strides)
        self.n_features = self.features[-1][0].out_channels
        self.head = head
        if head == "mlp":
            self.classifier = mlp_head(self.n_features, width, n_classes, dropout)
        elif head == "fully_convolutional":
            self.classifier = nn.Sequential(
                nn.Conv2d(self.n_features, n_classes, 1, bias=False), nn.BatchNorm2d(n_classes)
            )
        else:
            raise ValueError(f"head {head!r} is unknown: use 'mlp' or 'fully_convolutional'.")
        init_mobile(self)

    def forward(self, log_mel: Tensor) -> dict[str, Tensor]:
        """Return {"logits": (B, K), "features": (B, D)} for log_mel (B, 1, F, N)."""
        last_map = self.features(log_mel)
        if self.head == "fully_convolutional":
            return {"logits": self.classifier(last_map).mean((2, 3)), "features": last_map.mean((2, 3))}
        features = self.classifier[:2](last_map)
        return {"logits": self.classifier[2:](features), "features": features}
