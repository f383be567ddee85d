"""Dynamic MobileNets dymn04, dymn10, dymn20: every block adapts its kernels and activation to its input.

Flow: log mel (B, 1, F, N) → **DyMN** → {"logits": (B, K), "features": (B, D)}.

Table, width rule, stem and head are those of `common.nn.mobilenet`, without squeeze and excitation.
Parameter names are those of the published checkpoints.

Source: Schmid et al., "Dynamic convolutional neural networks as efficient pre-trained audio models", TASLP
2024.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nn.layers import conv_norm, init_mobile, make_divisible
from common.nn.mobilenet import MOBILENET_V3_LARGE, NORM, STEM_CHANNELS, mlp_head

N_KERNELS = 4
START_TEMPERATURE = 30.0


def temperature_at_epoch(epoch: int, slope: float = 0.02) -> float:
    """Return the kernel softmax's temperature: 30, 29, … down to about 1, then slowly on to exactly 1.

    Args:
        epoch: from 0.
        slope: of the late, slow part: 1 + slope · (29 - epoch), never below 1.
    """
    return max(START_TEMPERATURE - epoch, 1 + slope * (29 - epoch), 1.0)


class DynamicConv2d(nn.Module):
    """A convolution whose kernel is, for each item, a weighted mean of four.

    The weights are a softmax of a linear map of the block's context h. Each item has its own kernel: results
    do not depend on the other items of the batch.

    Shape: x (B, C, F, N), h (B, H) → (B, C', F / stride, N / stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        context: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.kernel_shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.stride, self.padding, self.groups = stride, (kernel_size - 1) // 2, groups
        self.temperature = START_TEMPERATURE
        kernels = torch.empty(N_KERNELS, *self.kernel_shape)
        for kernel in kernels:
            nn.init.kaiming_normal_(kernel, mode="fan_out")
        self.weight = nn.Parameter(kernels.view(1, 1, N_KERNELS, -1))
        self.residuals = nn.Sequential(nn.Linear(context, N_KERNELS))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        share = F.softmax(self.residuals(h) / self.temperature, dim=-1)  # (B, 4)
        kernels = share @ self.weight.view(N_KERNELS, -1).to(share.dtype)  # (B, out · in/groups · k · k)
        b, c, f, n = x.shape
        out_channels, in_per_group, k, _ = self.kernel_shape
        if k == 1 and self.groups == 1 and self.stride == 1:
            return torch.bmm(kernels.view(b, out_channels, c), x.reshape(b, c, f * n)).view(
                b, out_channels, f, n
            )
        # One convolution for the whole batch: each item forms groups of its own.
        y = F.conv2d(
            x.reshape(1, b * c, f, n),
            kernels.view(b * out_channels, in_per_group, k, k),
            stride=self.stride,
            padding=self.padding,
            groups=b * self.groups,
        )
        return y.view(b, out_channels, *y.shape[2:])


class DynamicReLU(nn.Module):
    """The larger of two straight lines, whose slopes and offsets follow the block's context, per channel.

    At coefficient 0 it is ReLU: lines 1·x + 0 and 0·x + 0.
    """

    def __init__(self, channels: int, context: int):
        super().__init__()
        self.channels = channels
        self.coef_net = nn.Sequential(nn.Linear(context, 4 * channels))
        # Order: slope 1, slope 2, offset 1, offset 2. Buffers, because published checkpoints hold them.
        self.register_buffer("lambdas", torch.tensor([1.0, 1.0, 0.5, 0.5]))
        self.register_buffer("init_v", torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        theta = 2 * torch.sigmoid(self.coef_net(h)) - 1
        theta = theta.view(len(x), self.channels, 1, 1, 4) * self.lambdas + self.init_v
        slope1, slope2, offset1, offset2 = theta.unbind(-1)  # each (B, C, 1, 1)
        return torch.maximum(x * slope1 + offset1, x * slope2 + offset2)


class ContextGenerator(nn.Module):
    """Summarise a block's input: a vector for kernels and activation, a gate per axis for the attention.

    Shape: x (B, C, F, N) → h (B, H), frequency gate (B, E, F / stride, 1), time gate (B, E, 1, N / stride).
    """

    def __init__(self, in_channels: int, context: int, expanded: int, stride: int):
        super().__init__()
        self.stride = stride
        self.joint_conv = nn.Conv2d(in_channels, context, 1, bias=False)
        self.joint_norm = nn.BatchNorm2d(context, eps=NORM["norm_eps"], momentum=NORM["norm_momentum"])
        self.conv_f = nn.Conv2d(context, expanded, 1)
        self.conv_t = nn.Conv2d(context, expanded, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        over_time = x.mean(3, keepdim=True)  # (B, C, F, 1)
        over_frequency = x.mean(2, keepdim=True).transpose(2, 3)  # (B, C, N, 1)
        joint = F.hardswish(self.joint_norm(self.joint_conv(torch.cat((over_time, over_frequency), dim=2))))
        h = joint.mean((2, 3))
        f_part, t_part = joint.split((x.shape[2], x.shape[3]), dim=2)
        if self.stride > 1:
            # The padded zeros count in the mean, as in the published networks.
            f_part, t_part = (
                F.avg_pool2d(part, (3, 1), (self.stride, 1), (1, 0)) for part in (f_part, t_part)
            )
        return h, self.conv_f(f_part).sigmoid(), self.conv_t(t_part).transpose(2, 3).sigmoid()


class DynamicBlock(nn.Module):
    """Inverted residual with dynamic convolutions; dynamic ReLU and attention follow the depthwise one."""

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        context: int,
        kernel_size: int,
        stride: int,
        activation: type[nn.Module],
    ):
        super().__init__()

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels, eps=NORM["norm_eps"], momentum=NORM["norm_momentum"])

        self.has_expansion = expanded != in_channels
        if self.has_expansion:
            self.exp_conv = DynamicConv2d(in_channels, expanded, context)
            self.exp_norm = norm(expanded)
            self.exp_act = activation()
        self.depth_conv = DynamicConv2d(expanded, expanded, context, kernel_size, stride, groups=expanded)
        self.depth_norm = norm(expanded)
        self.depth_act = DynamicReLU(expanded, context)
        self.proj_conv = DynamicConv2d(expanded, out_channels, context)
        self.proj_norm = norm(out_channels)
        self.context_gen = ContextGenerator(in_channels, context, expanded, stride)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        h, f_gate, t_gate = self.context_gen(x)
        y = self.exp_act(self.exp_norm(self.exp_conv(x, h))) if self.has_expansion else x
        y = self.depth_act(self.depth_norm(self.depth_conv(y, h)), h) * f_gate * t_gate
        y = self.proj_norm(self.proj_conv(y, h))
        return y + x if self.has_shortcut else y


class DyMN(nn.Module):
    """Tagger with one output per clip, all blocks dynamic.

    Args:
        width: 0.4, 1, 2 make the published dymn04, dymn10, dymn20.

    A fresh network starts at temperature 30: call `set_temperature(temperature_at_epoch(epoch))` in each
    epoch. With published AudioSet weights call `set_temperature(1)`: the temperature is not part of the state
    dict.

    Shape: log mel (B, 1, F, N) → {"logits": (B, K), "features": (B, 960 · width)}.
    """

    def __init__(self, width: float = 1.0, n_classes: int = 527, in_channels: int = 1, dropout: float = 0.2):
        super().__init__()
        smallest, largest = make_divisible(32 * width), make_divisible(128 * width)
        channels = make_divisible(STEM_CHANNELS * width)
        self.in_c = conv_norm(in_channels, channels, 3, stride=2, activation=nn.Hardswish, **NORM)
        self.layers = nn.ModuleList()
        for spec in MOBILENET_V3_LARGE:
            expanded, out = make_divisible(spec.expanded * width), make_divisible(spec.out * width)
            context = min(max(make_divisible(expanded // 4), smallest), largest)
            self.layers.append(
                DynamicBlock(channels, expanded, out, context, spec.kernel_size, spec.stride, spec.activation)
            )
            channels = out
        self.out_c = conv_norm(channels, 6 * channels, activation=nn.Hardswish, **NORM)
        self.classifier = mlp_head(6 * channels, width, n_classes, dropout)
        init_mobile(self)

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the softmax over kernels; 1 when using published AudioSet weights."""
        for module in self.modules():
            if isinstance(module, DynamicConv2d):
                module.temperature = float(temperature)

    def forward(self, log_mel: Tensor) -> dict[str, Tensor]:
        """Return {"logits": (B, K), "features": (B, D)} for log_mel (B, 1, F, N)."""
        x = self.in_c(log_mel)
        for layer in self.layers:
            x = layer(x)
        features = self.classifier[:2](self.out_c(x))
        return {"logits": self.classifier[2:](features), "features": features}
