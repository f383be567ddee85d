"""ATST-Frame: a transformer with one token per 40 ms.

Flow: log mel (B, 1, 64, N) → patches of the whole height and 4 frames → **AtstFrame** → frames (B, N / 4, D).

Names of the published checkpoints. One token per 4 mel frames of 10 ms: 25 Hz, 250 tokens for 10 s.

Source: Li et al., "Self-supervised audio teacher-student transformer for both clip-level and frame-level
tasks", TASLP 2024.
"""

import torch
from torch import Tensor, nn

from common.nn.transformer import (
    VIT_NORM_EPS,
    check_log_mel,
    init_transformer,
    layer_groups,
    pre_norm_blocks,
)


class FramePatches(nn.Module):
    """Cut a log mel into patches of the whole height and map each linearly to D features.

    Shape: (B, 1, F, N) → (B, N // patch_frames, D). Within a patch, frames run fastest: element mel · 4 +
    frame. Frames that fill no patch are dropped.
    """

    def __init__(self, n_mels: int, patch_frames: int, dim: int):
        super().__init__()
        self.patch_frames = patch_frames
        self.patch_embed = nn.Linear(n_mels * patch_frames, dim)

    def forward(self, log_mel: Tensor) -> Tensor:
        b, _, f, n = log_mel.shape
        n_tokens = n // self.patch_frames
        patches = log_mel[:, 0, :, : n_tokens * self.patch_frames].reshape(b, f, n_tokens, self.patch_frames)
        return self.patch_embed(patches.permute(0, 2, 1, 3).reshape(b, n_tokens, -1))


class AtstFrame(nn.Module):
    """ATST-Frame (base with the default sizes: 85.4 M parameters, 22.4 GMACs per 10 s).

    Args:
        n_mels, patch_frames: height and width of a patch.
        max_tokens: tokens there are positions for; shorter input uses the first ones.
        dim, depth, n_heads: features, blocks, attention heads.

    Attributes:
        n_features: D.
        frames_per_token: mel frames from one token to the next.

    Raises (forward):
        ValueError: wrong shape, or longer than the positions: the message names the longest length.
    """

    def __init__(
        self,
        n_mels: int = 64,
        patch_frames: int = 4,
        max_tokens: int = 250,
        dim: int = 768,
        depth: int = 12,
        n_heads: int = 12,
    ):
        super().__init__()
        self.n_mels, self.n_features, self.frames_per_token = n_mels, dim, patch_frames
        self.max_frames = (max_tokens + 1) * patch_frames - 1
        # What masked frames became in pre-training. Published files hold it; nothing here uses it, and a
        # parameter that takes part in training without a gradient would stop training on several GPUs.
        self.mask_embed = nn.Parameter(torch.zeros(1, 1, dim), requires_grad=False)
        self.pos_embed = nn.Parameter(torch.empty(1, max_tokens + 1, dim))  # [0] belongs to no token
        self.patch_embed = FramePatches(n_mels, patch_frames, dim)
        self.blocks = pre_norm_blocks(depth, dim, n_heads, qkv_bias=False)
        self.norm_frame = nn.LayerNorm(dim, eps=VIT_NORM_EPS)
        init_transformer(self)
        nn.init.normal_(self.pos_embed, 0.0, 0.02)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return frames (B, N // 4, D) for log_mel (B, 1, 64, N)."""
        check_log_mel(self, log_mel, self.n_mels, self.frames_per_token, self.max_frames)
        tokens = self.patch_embed(log_mel)
        tokens = tokens + self.pos_embed[:, 1 : tokens.shape[1] + 1]
        return self.norm_frame(self.blocks(tokens))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters from top to bottom, see `common.nn.transformer.layer_groups`."""
        return layer_groups(self, [self.norm_frame], self.blocks, unused=[self.mask_embed])
