"""Frame-wise PaSST: a vision transformer with one token per 40 ms.

Flow: log mel (B, 1, 128, N) → three convolutions → patches of the whole height → **FramePasst** → frames
(B, N / 4, D).

Names of the published checkpoints. One token per 4 mel frames of 10 ms: 25 Hz, 250 tokens for 10 s.

Source: Schmid et al., "Effective pre-training of audio transformers for sound event detection", ICASSP 2025;
PaSST: Koutini et al., Interspeech 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.nn.transformer import (
    VIT_NORM_EPS,
    check_log_mel,
    init_transformer,
    layer_groups,
    pre_norm_blocks,
)

STEM_STRIDE = 4  # of the three convolutions together, in frequency and in time


class PatchProjection(nn.Module):
    """Map columns of the whole height, two wide and one apart, to tokens.

    Shape: (B, C, F, N) → (B, N, D). A zero column is added on both sides; the first output, which sees only
    one real column, is dropped.
    """

    def __init__(self, in_channels: int, height: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, (height, 2), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)[:, :, 0, 1:].transpose(1, 2)


class FramePasst(nn.Module):
    """Frame-wise PaSST (default sizes: 88.4 M parameters, 23.7 GMACs per 10 s).

    Args:
        n_mels: height of the log mel, a multiple of 4.
        max_tokens: tokens there are positions for. In evaluation shorter input uses the first ones, in
            training any stretch of them, drawn for the batch.
        dim, depth, n_heads: features, blocks, attention heads.
        stem_channels: of the three convolutions; the last a multiple of 4.

    Attributes:
        n_features: D.
        frames_per_token: mel frames from one token to the next.

    Raises (forward):
        ValueError: wrong shape, or longer than the positions: the message names the longest length.
    """

    def __init__(
        self,
        n_mels: int = 128,
        max_tokens: int = 250,
        dim: int = 768,
        depth: int = 12,
        n_heads: int = 12,
        stem_channels: tuple[int, int, int] = (16, 32, 64),
    ):
        super().__init__()
        if n_mels % STEM_STRIDE or stem_channels[-1] % STEM_STRIDE:
            raise ValueError(
                f"n_mels {n_mels} and stem_channels[-1] {stem_channels[-1]} must be multiples of 4: channels "
                "become frequency rows until there are n_mels again."
            )
        self.n_mels, self.n_features, self.frames_per_token = n_mels, dim, STEM_STRIDE
        self.max_tokens = max_tokens
        first, second, last = stem_channels
        self.conv_in_1 = nn.Conv2d(1, first, 3, stride=2, padding=1)
        self.conv_in_2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv_in_3 = nn.Conv2d(second, last, 3, stride=2, padding=1)
        self.patch_embed = PatchProjection(last // STEM_STRIDE, n_mels, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim))
        self.new_pos_embed = nn.Parameter(torch.empty(1, 2, dim))  # of these two tokens
        self.freq_new_pos_embed = nn.Parameter(torch.empty(1, dim, 1, 1))
        self.time_new_pos_embed = nn.Parameter(torch.empty(1, dim, 1, max_tokens))
        self.blocks = pre_norm_blocks(depth, dim, n_heads)
        self.norm = nn.LayerNorm(dim, eps=VIT_NORM_EPS)
        init_transformer(self)
        for name, parameter in self.named_parameters():
            if name.endswith(("token", "pos_embed")):
                nn.init.normal_(parameter, 0.0, 0.02)

    def stem(self, log_mel: Tensor) -> Tensor:
        """Return the map (B, 64, F / 4, ⌈N / 4⌉) of log_mel (B, 1, F, N)."""
        x = log_mel
        for conv in (self.conv_in_1, self.conv_in_2, self.conv_in_3):
            x = F.gelu(conv(x))
        return x

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return frames (B, ⌈N / 4⌉, D) for log_mel (B, 1, 128, N)."""
        check_log_mel(self, log_mel, self.n_mels, 1, self.max_tokens * STEM_STRIDE)
        x = self.stem(log_mel)
        b, _, _, n_tokens = x.shape
        # Plainly in memory order: channel 4c + r, row f becomes channel c, row 32 r + f.
        tokens = self.patch_embed(x.reshape(b, -1, self.n_mels, n_tokens))  # (B, N, D)
        spare = self.max_tokens - n_tokens
        first = int(torch.randint(spare + 1, ())) if self.training and spare else 0
        time_positions = self.time_new_pos_embed[:, :, 0, first : first + n_tokens].transpose(1, 2)
        tokens = tokens + time_positions + self.freq_new_pos_embed[:, None, :, 0, 0]
        extra = torch.cat([self.cls_token, self.dist_token], dim=1) + self.new_pos_embed
        tokens = torch.cat([extra.to(tokens.dtype).expand(b, -1, -1), tokens], dim=1)
        return self.norm(self.blocks(tokens)[:, 2:])

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters from top to bottom, see `common.nn.transformer.layer_groups`."""
        return layer_groups(self, [self.norm], self.blocks)
