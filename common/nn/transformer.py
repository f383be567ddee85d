"""Transformer blocks that the audio encoders share.

Flow: tokens (B, N, D) → **pre-norm blocks** → tokens (B, N, D).

Parameter names are those of the published vision transformers (norm1, attn.qkv, attn.proj, norm2, mlp.fc1,
mlp.fc2). Attention runs in one fused call, which never holds the (N, N) weights of all heads at once.

Source: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021.
"""

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

VIT_NORM_EPS = 1e-6  # not PyTorch's 1e-5, which moves the output by 5e-4 of its largest value


class SelfAttention(nn.Module):
    """Multi-head self-attention: softmax(q·k / √d) v in each head.

    Rows of `qkv` are q, k, v, each head after head. Shape: (B, N, D) → (B, N, D).
    """

    def __init__(self, dim: int, n_heads: int, qkv_bias: bool = True):
        super().__init__()
        check_heads(dim, n_heads)
        self.n_heads = n_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.n_heads, d // self.n_heads).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, d)
        return self.proj(heads.transpose(1, 2).reshape(b, n, d))


class FeedForward(nn.Module):
    """Linear, exact (erf) GELU, linear. Shape: (B, N, D) → (B, N, D)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)). Shape: (B, N, D) → (B, N, D)."""

    def __init__(self, dim: int, n_heads: int, qkv_bias: bool = True, norm_eps: float = VIT_NORM_EPS):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SelfAttention(dim, n_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def pre_norm_blocks(depth: int, dim: int, n_heads: int, qkv_bias: bool = True) -> nn.Sequential:
    """Return `depth` blocks in a row."""
    return nn.Sequential(*(PreNormBlock(dim, n_heads, qkv_bias) for _ in range(depth)))


def init_transformer(network: nn.Module) -> None:
    """Draw the weights vision transformers start from: linear layers N(0, 0.02) with bias 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def layer_groups(
    network: nn.Module,
    top: Iterable[nn.Module],
    blocks: Sequence[nn.Module],
    unused: Iterable[nn.Parameter] = (),
) -> list[list[nn.Parameter]]:
    """Return the parameters of `network` in depth + 2 groups, for learning rates that fall with the depth.

    Args:
        top: modules above the blocks (the last norm); group 0, which may be empty.
        blocks: from the input upwards; group 1 is the last of them, group `depth` the first.
        unused: parameters that take no part in the output and belong to no group.

    The last group is all the rest: patch embedding, positions, extra tokens.
    """
    groups = [[p for module in top for p in module.parameters()]]
    groups += [list(block.parameters()) for block in reversed(blocks)]
    placed = {id(p) for p in unused} | {id(p) for group in groups for p in group}
    return [*groups, [p for p in network.parameters() if id(p) not in placed]]


def check_heads(dim: int, n_heads: int) -> None:
    """Raise ValueError unless `dim` features can be shared among `n_heads` heads."""
    if dim % n_heads:
        raise ValueError(f"dim {dim} cannot be shared among {n_heads} heads: choose a multiple of {n_heads}.")


def check_log_mel(
    network: nn.Module, log_mel: Tensor, n_mels: int, shortest: int, longest: int | None = None
) -> None:
    """Raise ValueError unless `log_mel` is (B, 1, n_mels, N) with N from `shortest` to `longest` frames."""
    who = type(network).__name__
    if log_mel.ndim != 4 or log_mel.shape[1:3] != (1, n_mels):
        raise ValueError(
            f"log_mel has shape {tuple(log_mel.shape)}, but {who} takes (B, 1, {n_mels}, N): "
            "use the front end it was trained with."
        )
    n_frames = log_mel.shape[-1]
    if n_frames < shortest:
        raise ValueError(f"log_mel has {n_frames} frames, but {who} needs {shortest} at least: pad the clip.")
    if longest is not None and n_frames > longest:
        raise ValueError(
            f"log_mel has {n_frames} frames, but the positions of {who} end after {longest}: "
            "cut the clip into windows of at most that length."
        )
