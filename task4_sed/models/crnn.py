"""Convolutional recurrent networks that read their own mel spectrogram and the embeddings of an encoder.

Flow: mel (B, 1, 128, N) → `GatedConvNet` → (B, N // 4, 128)  ┐
      embeddings (B, L, D) → N // 4 of them                   ┴→ **merge → BiGRU → heads** → probabilities

`FusionCRNN` is the winner of DCASE 2024 task 4 without its encoder, `BaselineCRNN` the challenge's baseline.

Source: Schmid et al., "Multi-iteration multi-stage fine-tuning of transformers for sound event detection with
heterogeneous datasets", DCASE 2024; Cornell et al., "DCASE 2024 task 4: sound event detection with heterogeneous
data and missing labels", 2024.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_CLASSES = 27
N_MELS = 128
CHANNELS = (16, 32, 64, 128, 128, 128, 128)
POOLING = ((2, 2), (2, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2))  # (time, frequency)
TIME_STRIDE = 4  # mel frames per output frame
# TensorFlow's way of writing momentum 0.01: here the running values are practically those of the last batch.
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.99
LOWEST_ATTENTION = 1e-7
MASKED_LOGIT = -1e30


class GatedConvBlock(nn.Module):
    """3×3 convolution, BatchNorm, gate, dropout, mean pooling.

    Args:
        gate: "context" multiplies the normed channels y of a point by σ(W y + b); "glu" multiplies W y + b by σ(y).
        pool: (time, frequency).

    Shape: (B, C, N, F) → (B, C', N / pool, F / pool).
    """

    def __init__(self, in_channels: int, channels: int, pool: tuple[int, int], gate: str, dropout: float):
        super().__init__()
        if gate not in ("context", "glu"):
            raise ValueError(f"gate {gate!r} is unknown: choose 'context' or 'glu'.")
        self.is_glu = gate == "glu"
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)
        self.gate = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.pool = nn.AvgPool2d(pool)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        mapped = self.gate(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # free in channels-last memory
        y = mapped * y.sigmoid() if self.is_glu else y * mapped.sigmoid()
        return self.pool(self.dropout(y))


class GatedConvNet(nn.Module):
    """Seven gated blocks that turn a mel spectrogram of 128 bands into one vector per four frames.

    Args:
        width: factor on all channel counts, each rounded and at least 1; 1 is the published network.

    Shape: (B, 1, 128, N) → (B, N // 4, 128 · width) for any N from 4 on.
    """

    def __init__(self, gate: str = "context", dropout: float = 0.5, width: float = 1.0):
        super().__init__()
        if width <= 0:
            raise ValueError(f"width {width} must be above 0.")
        channels = [max(1, round(width * n)) for n in CHANNELS]
        ends = zip((1, *channels), channels, POOLING)
        self.blocks = nn.Sequential(*(GatedConvBlock(i, o, pool, gate, dropout) for i, o, pool in ends))
        self.n_features = channels[-1]
        self.to(memory_format=torch.channels_last)

    def forward(self, mel: Tensor) -> Tensor:
        if mel.ndim != 4 or mel.shape[1:3] != (1, N_MELS) or mel.shape[3] < TIME_STRIDE:
            raise ValueError(f"The CRNN's mel spectrogram has shape {tuple(mel.shape)}: give (B, 1, {N_MELS}, N) with "
                             f"N of at least {TIME_STRIDE} frames.")
        x = mel.transpose(2, 3).contiguous(memory_format=torch.channels_last)
        return self.blocks(x).squeeze(3).transpose(1, 2)


@dataclass(frozen=True)
class TimeMask:
    """One stretch of frames per clip that is set to 0, in the baseline called dropstep.

    Args:
        longest_frames: the width is uniform from 0 to this, in frames, rounded down.
        largest_share: of the clip, if that is less. (The published setting 0.3 is this share, which never binds at
            156 frames, and not a probability: every clip is masked.)
    """

    longest_frames: int = 16
    largest_share: float = 0.3

    def draw(self, n_clips: int, n_frames: int, generator: np.random.Generator) -> np.ndarray:
        """Return (B, 2): first frame of each clip that is masked, first after it that is not."""
        limit = min(self.longest_frames, int(n_frames * self.largest_share))
        width = limit * generator.random(n_clips)
        first = (generator.random(n_clips) * (n_frames - width)).astype(int)
        return np.stack([first, first + width.astype(int)], axis=1)

    @staticmethod
    def apply(frames: Tensor, spans: np.ndarray) -> Tensor:
        """Return `frames` (B, N, D) with the `spans` (B, 2) of each clip set to 0."""
        first, end = torch.as_tensor(spans, device=frames.device).T[..., None]
        index = torch.arange(frames.shape[1], device=frames.device)
        return frames.masked_fill(((index >= first) & (index < end))[..., None], 0.0)


class CRNN(nn.Module):
    """Convolutional network, embeddings and bidirectional GRU; one head per frame, one to weigh frames.

    Args:
        n_features: D of the embeddings.
        n_classes: K.
        gate: see `GatedConvBlock`.
        dropout: in the convolutional network, before the merge and after the GRU.
        merged, hidden: width after the merge and of one direction of the GRU.
        embed_pool: how L embeddings become N // 4: "aap" averages, "int" takes the nearest one.
        time_mask: applied to both inputs of the merge while training, with a draw for each; None = off.
        width: of the convolutional network, see `GatedConvNet`.

    Shape: mel (B, 1, 128, N), embeddings (B, L, D) → see `forward`.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        gate: str,
        dropout: float,
        merged: int,
        hidden: int,
        embed_pool: str,
        time_mask: TimeMask | None = None,
        width: float = 1.0,
    ):
        super().__init__()
        if embed_pool not in ("aap", "int"):
            raise ValueError(f"embed_pool {embed_pool!r} is unknown: choose 'aap' (average) or 'int' (nearest).")
        self.embed_pool, self.time_mask, self.n_classes = embed_pool, time_mask, n_classes
        self.cnn = GatedConvNet(gate, dropout, width)
        self.merge = nn.Linear(self.cnn.n_features + n_features, merged)
        self.n_features = n_features
        self.gru = nn.GRU(merged, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)
        self.strong_head = nn.Linear(2 * hidden, n_classes)
        self.attention_head = nn.Linear(2 * hidden, n_classes)

    def forward(
        self,
        mel: Tensor,
        embeddings: Tensor,
        class_mask: Tensor | None = None,
        spans: Sequence[np.ndarray] | None = None,
    ) -> dict[str, Tensor]:
        """Detect events.

        Args:
            mel: (B, 1, 128, N), scaled by its front end.
            embeddings: (B, L, D).
            class_mask: bool (B, K), True where a clip's data set knows the class; None = all.
            spans: time masks (B, 2) for mel features and embeddings; None = drawn while training, from a seed that
                torch's generator gives, as dropout is.

        Returns:
            {"strong": (B, K, N // 4) and "weak": (B, K): probabilities, see `class_probabilities`;
            "strong_logits", "attention_logits": (B, N // 4, K), of all classes}, not below float32 under autocast.

        Raises:
            ValueError: shapes that do not fit.
        """
        if embeddings.ndim != 3 or embeddings.shape[::2] != (len(mel), self.n_features):
            raise ValueError(f"The embeddings have shape {tuple(embeddings.shape)}, the mel spectrogram "
                             f"{tuple(mel.shape)}: give embeddings (B, L, {self.n_features}) of the same clips.")
        x = self.cnn(mel)
        embeddings = pool_embeddings(embeddings, x.shape[1], self.embed_pool)
        if self.time_mask is not None and self.training:
            spans = self.draw_spans(len(x), x.shape[1]) if spans is None else spans
            x, embeddings = (self.time_mask.apply(*pair) for pair in zip((x, embeddings), spans))
        x = self.merge(self.dropout(torch.cat([x, embeddings], dim=-1)))
        x = self.dropout(self.gru(x)[0])
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            strong_logits, attention_logits = self.strong_head(x), self.attention_head(x)
        outputs = class_probabilities(strong_logits, attention_logits, class_mask)
        return outputs | {"strong_logits": strong_logits, "attention_logits": attention_logits}

    def draw_spans(
        self, n_clips: int, n_frames: int, generator: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return time masks (B, 2) for mel features and embeddings of `n_frames` frames."""
        if generator is None:
            generator = np.random.default_rng(int(torch.randint(2**62, ())))
        return tuple(self.time_mask.draw(n_clips, n_frames, generator) for _ in range(2))


def pool_embeddings(embeddings: Tensor, n_frames: int, how: str) -> Tensor:
    """Return `embeddings` (B, L, D) as (B, n_frames, D), by "aap" (average) or "int" (nearest)."""
    over_time = embeddings.transpose(1, 2)
    if how == "aap":
        return F.adaptive_avg_pool1d(over_time, n_frames).transpose(1, 2)
    return F.interpolate(over_time, n_frames, mode="nearest-exact").transpose(1, 2)


def class_probabilities(
    strong_logits: Tensor, attention_logits: Tensor, class_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Turn the logits of both heads into probabilities per frame and per clip.

    Clip by clip, each class averages its frame probabilities with weights a: softmax of the attention logits over
    the CLASSES of a frame, at least 1e-7. Masked classes take no part in the softmax; their outputs are exactly 0.

    Args:
        strong_logits, attention_logits: (B, N, K).
        class_mask: bool (B, K), True = valid; None = all valid.

    Returns:
        {"strong": (B, K, N), "weak": (B, K)}.
    """
    strong = strong_logits.sigmoid()
    if class_mask is not None:
        if class_mask.shape != strong.shape[::2] or class_mask.dtype != torch.bool:
            raise ValueError(f"class_mask is {class_mask.dtype} of shape {tuple(class_mask.shape)}: give bool "
                             f"{tuple(strong.shape[::2])}, one row per clip and one column per class.")
        invalid = ~class_mask[:, None]  # (B, 1, K)
        attention_logits = attention_logits.masked_fill(invalid, MASKED_LOGIT)
    attention = attention_logits.softmax(-1).clamp(LOWEST_ATTENTION, 1.0)
    weak = (strong * attention).sum(1) / attention.sum(1)
    if class_mask is not None:
        strong, weak = strong.masked_fill(invalid, 0.0), weak.masked_fill(~class_mask, 0.0)
    return {"strong": strong.transpose(1, 2), "weak": weak}


class FusionCRNN(CRNN):
    """The winner's network without its encoder: 2.78 M parameters for D = 527, 1.18 GMACs per 10 s.

    Args:
        n_features: D, 527 after the projection, 768 straight from BEATs.
        embed_pool: "aap" with ATST-Frame, "int" with frame-wise PaSST and BEATs.
        dropout: 0.3 in stage 1, 0.5 in stage 2.
        hidden: width after the merge and of one direction of the GRU.
        width: factor on the channels of the convolutional network; with `hidden` below 256 it makes a small one.

    Input and output: see `CRNN.forward`.
    """

    def __init__(
        self,
        n_features: int = 527,
        n_classes: int = N_CLASSES,
        embed_pool: str = "aap",
        dropout: float = 0.5,
        hidden: int = 256,
        width: float = 1.0,
    ):
        super().__init__(n_features, n_classes, "context", dropout, hidden, hidden, embed_pool, width=width)


class BaselineCRNN(CRNN):
    """The baseline of DCASE 2024 task 4 on BEATs embeddings: 1.79 M parameters, 1.02 GMACs per 10 s.

    Args:
        n_features: D of the embeddings.
        time_mask: see `CRNN`.

    Input and output: see `CRNN.forward`.
    """

    def __init__(
        self,
        n_features: int = 768,
        n_classes: int = N_CLASSES,
        embed_pool: str = "aap",
        dropout: float = 0.2,
        merged: int = 128,
        hidden: int = 192,
        time_mask: TimeMask | None = TimeMask(),  # noqa: B008 - frozen
    ):
        super().__init__(n_features, n_classes, "glu", dropout, merged, hidden, embed_pool, time_mask)
