"""M2D: a vision transformer over 16 × 16 patches of a log mel.

Flow: log mel (B, 1, 80, N) → patches → **M2d** → frames (B, N / 16, 5 · D): the 5 bands of a column side by
side, feature f · D + d. One column per 16 mel frames of 10 ms: 6.25 Hz, 62 columns for 10 s.

Names of the published checkpoints, from "backbone." on.

Source: Niizumi et al., "Masked Modeling Duo: learning representations by encouraging both networks to model
the input", ICASSP 2023.
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


class Patches(nn.Module):
    """Map patches that do not overlap to tokens, band after band.

    Shape: (B, 1, F, N) → (B, bands · columns, D), token = band · columns + column.
    """

    def __init__(self, patch_mels: int, patch_frames: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(1, dim, (patch_mels, patch_frames), stride=(patch_mels, patch_frames))

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.proj(log_mel).flatten(2).transpose(1, 2)


class M2d(nn.Module):
    """M2D (default sizes: 85.5 M parameters, 28.3 GMACs per 10 s with the attention products).

    Args:
        n_mels, n_frames: size of the log mel it was trained on; shorter input is padded with zeros to whole
            columns and uses the first positions of each band.
        patch_mels, patch_frames: size of a patch.
        dim, depth, n_heads: features, blocks, attention heads.

    The table of positions is fixed: it is loaded and saved, but never trains.

    Attributes:
        n_features: features of a frame, bands · D.
        frames_per_token: mel frames from one output frame to the next.
        n_bands: patches on top of each other.

    Raises (forward, outputs):
        ValueError: wrong shape, or longer than `n_frames`.
    """

    def __init__(
        self,
        n_mels: int = 80,
        n_frames: int = 1001,
        patch_mels: int = 16,
        patch_frames: int = 16,
        dim: int = 768,
        depth: int = 12,
        n_heads: int = 12,
    ):
        super().__init__()
        if n_mels % patch_mels or n_frames < patch_frames:
            raise ValueError(
                f"{n_mels} mels × {n_frames} frames cannot be cut into patches of {patch_mels} × "
                f"{patch_frames}: choose n_mels a multiple of {patch_mels}, n_frames at least {patch_frames}."
            )
        self.n_mels, self.n_frames, self.frames_per_token = n_mels, n_frames, patch_frames
        self.n_bands, self.max_columns = n_mels // patch_mels, n_frames // patch_frames
        self.n_features = self.n_bands * dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        table = position_table(self.n_bands, self.max_columns, dim)
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.patch_embed = Patches(patch_mels, patch_frames, dim)
        self.blocks = pre_norm_blocks(depth, dim, n_heads)
        self.norm = nn.LayerNorm(dim, eps=VIT_NORM_EPS)
        init_transformer(self)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return frames (B, columns, bands · D) for log_mel (B, 1, 80, N)."""
        return self.frames(self.norm(self.blocks(self._embed(log_mel)[1]))[:, 1:])

    def outputs(self, log_mel: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """Return what other networks take from this one.

        Returns:
            {"frames": (B, columns, bands · D), "tokens": (B, bands · columns, D) after the last norm,
            "features": list of depth + 1 tensors like tokens: the patch embedding before positions, then the
            output of each block before the last norm}. Tokens run band · columns + column, no class token.
        """
        patches, x = self._embed(log_mel)
        features = [patches]
        for block in self.blocks:
            x = block(x)
            features.append(x[:, 1:])
        tokens = self.norm(x[:, 1:])
        return {"frames": self.frames(tokens), "tokens": tokens, "features": features}

    def frames(self, tokens: Tensor) -> Tensor:
        """Return (B, columns, bands · D) for tokens (B, bands · columns, D): the bands side by side."""
        b, _, d = tokens.shape
        return tokens.view(b, self.n_bands, -1, d).transpose(1, 2).reshape(b, -1, self.n_bands * d)

    def _embed(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patch embedding, and the input of the first block: with class token and positions."""
        check_log_mel(self, log_mel, self.n_mels, 1, self.n_frames)
        # Rounded up to whole columns with zeros; a full-length clip loses its last, incomplete column.
        n_columns = min(-(-log_mel.shape[-1] // self.frames_per_token), self.max_columns)
        padded = F.pad(log_mel, (0, n_columns * self.frames_per_token - log_mel.shape[-1]))
        patches = self.patch_embed(padded)
        table = self.pos_embed[:, 1:].unflatten(1, (self.n_bands, self.max_columns))
        x = patches + table[:, :, :n_columns].flatten(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).to(x.dtype).expand(len(x), -1, -1)
        return patches, torch.cat([first, x], dim=1)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters from top to bottom, see `common.nn.transformer.layer_groups`."""
        return layer_groups(self, [self.norm], self.blocks)


def position_table(n_bands: int, n_columns: int, dim: int) -> Tensor:
    """Return sines and cosines of band and column, (1, 1 + n_bands · n_columns, dim); the first row is 0.

    A quarter of the features each: sine and cosine of the band, sine and cosine of the column. Only training
    from scratch starts here: published files bring their own table.
    """
    n_waves = -(-dim // 4)
    rate = 10000.0 ** (-torch.arange(n_waves) / n_waves)
    band = torch.arange(n_bands).repeat_interleave(n_columns)[:, None] * rate
    column = torch.arange(n_columns).repeat(n_bands)[:, None] * rate
    waves = torch.cat([band.sin(), band.cos(), column.sin(), column.cos()], dim=1)[:, :dim]
    return torch.cat([torch.zeros(1, dim), waves])[None]
