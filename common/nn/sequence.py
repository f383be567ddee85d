"""Sequence models: what follows an encoder and lets its frames know of each other.

Flow: frames (B, N, D_in) → **sequence model** → frames (B, N, D_out).

`build_sequence` makes them by kind:
    tf      linear to `dim`, transformer with rotary positions, gated heads and RMSNorm
    attn    linear to `dim`, the transformer's attention alone
    gru     bidirectional GRU on the encoder's own features; D_out = 2 · dim
    tcn     linear to `dim`, stacks of dilated convolutions; causal, unlike the others
    hybrid  linear to `dim`, attention and a bidirectional minGRU side by side
Parameter names are those of the published checkpoints.

Source: Morocutti et al., "Exploring performance-complexity trade-offs in sound event detection", 2025
(EfficientSED).
"""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from common.nn.min_gru import BidirectionalMinGRU
from common.nn.transformer import check_heads, init_transformer

DROPOUT = 0.2  # of tf and tcn; the others have none
ROTARY_BASE = 10_000.0
TCN_DILATIONS = (1, 2, 4, 8, 16)


def published_heads(kind: str, dim: int) -> int:
    """Return the number of attention heads that goes with a kind and a width: 8, of "tf" below 128 only 4."""
    return 4 if kind == "tf" and dim < 128 else 8


class RMSNorm(nn.Module):
    """Scale each vector to the root mean square `gamma`. Shape: (…, D) → same.

    PyTorch's own adds a constant to the square, which moves quiet frames. At least float32 inside: in half precision
    the square overflows, and a frame of zeros would be divided by 0.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (F.normalize(wide, dim=-1) * self.scale * self.gamma).to(self.gamma.dtype)


# ---------------------------------------------------------------- attention


class RotaryPositions(nn.Module):
    """Turn each pair of neighbouring features by an angle that grows with the position.

    Pair i of a vector at position n turns by n · 10000^(-2i / D). `freqs` is not trained, but counts as a
    parameter of the published networks.

    Shape: (…, N, D) → same.
    """

    def __init__(self, dim: int):
        super().__init__()
        if dim % 2:
            raise ValueError(f"Rotary positions turn pairs, but a head has {dim} features: choose another dim.")
        freqs = ROTARY_BASE ** (-torch.arange(0, dim, 2).float() / dim)
        self.freqs = nn.Parameter(freqs, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        # Angles stay float32: half precision has no room for position times frequency.
        positions = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
        angles = positions[:, None] * self.freqs.float()  # (N, D / 2)
        cos, sin = angles.cos(), angles.sin()
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).type_as(x)


def split_heads(qkv: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    """Return queries, keys and values, each (B, H, N, D / H), of (B, N, 3 · D)."""
    return qkv.unflatten(-1, (3, n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class GatedAttention(nn.Module):
    """Pre-norm self-attention whose heads are weighed by gates read from the input.

    Shape: (B, N, D) → same, without the residual.
    """

    def __init__(self, dim: int, n_heads: int, dropout: float = 0.0):
        super().__init__()
        check_heads(dim, n_heads)
        self.n_heads, self.dropout = n_heads, dropout
        self.pos_encoding = RotaryPositions(dim // n_heads)
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_gates = nn.Linear(dim, n_heads)
        self.to_out = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = split_heads(self.to_qkv(x), self.n_heads)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(self.pos_encoding(q), self.pos_encoding(k), v, dropout_p=dropout)
        y = y.transpose(1, 2) * self.to_gates(x).sigmoid()[..., None]  # (B, N, H, D / H)
        return self.to_out(y.flatten(2))


class FeedForward(nn.Module):
    """Pre-norm feed-forward part of a transformer layer. Shape: (B, N, D) → same, without the residual."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        wide, narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.net = nn.Sequential(RMSNorm(dim), wide, nn.GELU(), nn.Dropout(dropout), narrow, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    """Layers of attention and feed-forward part, a norm at the end. Shape: (B, N, D) → same."""

    def __init__(self, dim: int, n_layers: int, n_heads: int, dropout: float = DROPOUT):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([GatedAttention(dim, n_heads, dropout), FeedForward(dim, dropout)]) for _ in range(n_layers)
        )
        self.norm = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        for part in chain.from_iterable(self.layers):
            x = x + part(x)
        return self.norm(x)


class ResidualStack(nn.Module):
    """Layers with a residual round each and nothing else. Shape: (B, N, D) → same."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


# ---------------------------------------------------------------- attention and minGRU side by side


class AttentionMinGRU(nn.Module):
    """Mean of attention and minGRU, each normalised per head. Shape: (B, N, D) → same, without residual.

    The attention knows no positions: order is the minGRU's part.
    """

    def __init__(self, dim: int, n_heads: int):
        super().__init__()
        check_heads(dim, n_heads)
        self.n_heads = n_heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.rnn = BidirectionalMinGRU(dim)
        self.rnn_out_norm = RMSNorm(dim // n_heads)
        self.attn_out_norm = RMSNorm(dim // n_heads)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(*split_heads(self.to_qkv(x), self.n_heads)).transpose(1, 2)
        recurrent = self.rnn(x).unflatten(-1, (self.n_heads, -1))  # both (B, N, H, D / H)
        return self.to_out((self.rnn_out_norm(recurrent) + self.attn_out_norm(attended)).flatten(2) / 2)


class Hybrid(nn.Module):
    """Layers of AttentionMinGRU and feed-forward part, a norm at the end. Shape: (B, N, D) → same."""

    def __init__(self, dim: int, n_layers: int, n_heads: int):
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(n_layers):
            feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            parts = [RMSNorm(dim), AttentionMinGRU(dim, n_heads), RMSNorm(dim), feed_forward]
            self.layers.append(nn.ModuleList(parts))
        self.norm = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        for mixer_norm, mixer, feed_forward_norm, feed_forward in self.layers:
            x = x + mixer(mixer_norm(x))
            x = x + feed_forward(feed_forward_norm(x))
        return self.norm(x)


# ---------------------------------------------------------------- recurrent and convolutional


class BidirectionalGRU(nn.Module):
    """GRU in both directions, outputs side by side: (B, N, D_in) → (B, N, 2 · dim)."""

    def __init__(self, in_features: int, dim: int, n_layers: int):
        super().__init__()
        self.gru = nn.GRU(in_features, dim, n_layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


class CausalConv1d(nn.Conv1d):
    """Convolution over time that sees no later frame: all zeros are put before the first one.

    (The published code puts as many after the last and cuts what comes of them: same output, more work.)
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class DilatedBlock(nn.Module):
    """Two weight-normed causal convolutions of one dilation and a residual. Shape: (B, D, N) → same."""

    def __init__(self, dim: int, dilation: int, kernel_size: int = 3, dropout: float = DROPOUT):
        super().__init__()
        self.conv1 = weight_norm(CausalConv1d(dim, dim, kernel_size, dilation=dilation))
        self.conv2 = weight_norm(CausalConv1d(dim, dim, kernel_size, dilation=dilation))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.conv1(x).relu())
        y = self.dropout(self.conv2(y).relu())
        return (x + y).relu()


class DilatedConvs(nn.Module):
    """Blocks of growing dilation: a frame sees itself and 124 before it. Shape: (B, N, D) → same."""

    def __init__(self, dim: int):
        super().__init__()
        self.network = nn.Sequential(*(DilatedBlock(dim, dilation) for dilation in TCN_DILATIONS))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.transpose(1, 2)).transpose(1, 2)


# ---------------------------------------------------------------- by kind


class SequenceModel(nn.Sequential):
    """A sequence model: (B, N, D_in) → (B, N, D_out).

    Attributes:
        n_features: D_out.
    """

    def __init__(self, n_features: int, *layers: nn.Module):
        super().__init__(*layers)
        self.n_features = n_features


KINDS = ("tf", "attn", "gru", "tcn", "hybrid")


def build_sequence(
    kind: str, in_features: int, dim: int = 256, n_layers: int = 2, n_heads: int | None = None
) -> SequenceModel:
    """Return a sequence model of one of KINDS (what they are: see the module's head).

    Args:
        in_features: D_in, the width of the encoder's frames.
        dim: width inside, for "gru" of each direction.
        n_layers: attention, minGRU or GRU layers; for "tcn" stacks of five blocks.
        n_heads: of "tf", "attn" and "hybrid"; None = as published, 8, but 4 of "tf" below a dim of 128.

    Raises:
        ValueError: unknown kind, or a dim that the heads cannot share.
        NotImplementedError: "mamba".
    """
    if kind == "mamba":
        raise NotImplementedError(
            "sequence model 'mamba' is not part of this repository: it needs the compiled kernels of mamba_ssm, "
            f"and no reference outputs are at hand to test another version with: use one of {', '.join(KINDS)}."
        )
    if kind not in KINDS:
        raise ValueError(f"sequence model {kind!r} is unknown: use one of {', '.join(KINDS)}.")
    if kind == "gru":
        return SequenceModel(2 * dim, BidirectionalGRU(in_features, dim, n_layers))
    n_heads = n_heads or published_heads(kind, dim)
    if kind == "tf":
        body = Transformer(dim, n_layers, n_heads)
    elif kind == "attn":
        body = ResidualStack(*(GatedAttention(dim, n_heads) for _ in range(n_layers)))
    elif kind == "tcn":
        body = ResidualStack(*(DilatedConvs(dim) for _ in range(n_layers)))
    else:
        body = Hybrid(dim, n_layers, n_heads)
    # As published: where the encoder is as wide already, nothing stands before the body.
    to_dim = nn.Identity() if in_features == dim else nn.Linear(in_features, dim)
    model = SequenceModel(dim, to_dim, body)
    if kind in ("tf", "attn"):
        init_transformer(model)
    return model
