"""Augmentations of sound event clips; labels, class masks and pseudo-labels follow the sound.

Flow: recording → **crop, wave mix, device response** → front ends → **time shift, time mask, mixup,
Freq-MixStyle, frequency warp, filter augment** (in which order and on which clips: views.py) → networks.

Draw and apply are apart. Draws come from a NumPy generator and are CPU tensors, numbers or None (leave
everything alone); `apply` takes tensors on any device. Shapes: front-end features (B, C, F, N), class masks
(B, K) bool, labels and pseudo-labels (B, K, L) with time last, as the networks' outputs have it: targets of
`task4_sed.labels` come as (B, L, K) and are transposed before.

Source: DCASE 2024 task 4, system of CP-JKU. Device responses and Freq-MixStyle are those of
`common.audio.augment`: `ImpulseResponse(p, devices=None, centred=True)` with
`load_responses(folder, 16000, resampling_method="sinc_interp_kaiser")`, and
`FreqMixStyle(p, 0.3, keep_larger=True)`.

Fault of the published code, kept as default: its time mask sets the labels to zero (twice), but never the
pseudo-labels (`TimeMask.mask_pseudo_labels`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from common.audio.augment import Mixup, Roll, check_probability, require

MixDraw = tuple[Tensor, Tensor]  # (lam (B,) float32, perm (B,) int64): the share of the clip itself, its partner


# ---------------------------------------------------------------- waveforms


@dataclass(frozen=True)
class RandomCrop:
    """Draw which part of a longer recording is used.

    `task4_sed.clip_audio.ClipAudio.read` takes the first sample and pads what is too short with silence at its end;
    `task4_sed.labels.EventArrays.encode` takes `onset_s` and cuts the labels to the same part.

    Args:
        duration_s: length of the part.
        sample_rate: in Hz.
    """

    duration_s: float = 10.0
    sample_rate: int = 16000

    def __post_init__(self):
        require(self.duration_s > 0, f"duration_s {self.duration_s} must be above 0.")

    @property
    def n_samples(self) -> int:
        return round(self.duration_s * self.sample_rate)

    def draw(self, n_samples: int, rng: np.random.Generator) -> int:
        """Return the first sample of the crop of a recording of `n_samples`; 0 if there is nothing to cut."""
        return int(rng.integers(max(n_samples - self.n_samples, 0), endpoint=True))

    def onset_s(self, first_sample: int) -> float:
        """Return where the crop starts, s, rounded to 1 ms: its labels are moved by that."""
        return round(first_sample / self.sample_rate, 3)


@dataclass(frozen=True)
class WaveMix:
    """Mix the waveform of a clip with that of another clip of the same set.

    Args:
        p: probability that a clip is mixed.
        alpha: both parameters of the Beta distribution of the mixing weight; the clip keeps the larger share.
    """

    p: float = 0.5
    alpha: float = 0.2

    def __post_init__(self):
        check_probability(self.p)
        require(self.alpha > 0, f"alpha {self.alpha} must be above 0; set p to 0 to switch the wave mix off.")

    def draw(self, n_clips: int, rng: np.random.Generator) -> tuple[float, int] | None:
        """Return None or (lam in 0.5 … 1, index of the partner among the set's `n_clips`)."""
        if rng.random() >= self.p:
            return None
        lam = rng.beta(self.alpha, self.alpha)
        return float(max(lam, 1.0 - lam)), int(rng.integers(n_clips))

    def apply(self, waveform: Tensor, partner: Tensor, lam: float) -> Tensor:
        """Return the mix (..., T) of two waveforms (..., T), each and the result without its mean."""
        return _centred(torch.lerp(_centred(partner), _centred(waveform), lam))

    def apply_labels(self, labels: Tensor, partner: Tensor, lam: float) -> Tensor:
        """Return the labels (or pseudo-labels) of the mix, of any shape."""
        return torch.lerp(partner, labels, lam)


def _centred(waveform: Tensor) -> Tensor:
    return waveform - waveform.mean(dim=-1, keepdim=True)


# ---------------------------------------------------------------- mixing clips of a batch


def draw_in_groups(
    draw: Callable[[int, np.random.Generator], MixDraw | None],
    groups: Sequence[np.ndarray],
    n_clips: int,
    rng: np.random.Generator,
) -> MixDraw | None:
    """Return one draw for a whole batch in which clips find their partners inside their own group only.

    Args:
        draw: the draw of `ClassMixup` or `FreqMixStyle`; called for each group that has clips.
        groups: rows of the batch, (n,) integers each; a row stands in at most one. All others stay alone.

    Example:
        draw_in_groups(mixstyle.draw, [np.arange(12), np.arange(12, 32)], 52, rng)
    """
    rows = np.concatenate([np.empty(0, np.int64), *groups]).astype(np.int64)
    require(len(np.unique(rows)) == len(rows), "a clip stands in two groups; groups must not overlap.")
    lam, perm, any_draw = torch.ones(n_clips), torch.arange(n_clips), False
    for group in groups:
        if len(group) == 0 or (drawn := draw(len(group), rng)) is None:
            continue
        group, any_draw = torch.as_tensor(group), True
        lam[group], perm[group] = drawn[0], group[drawn[1]]
    return (lam, perm) if any_draw else None


@dataclass(frozen=True)
class ClassMixup(Mixup):
    """Mixup of features, labels and pseudo-labels with the same partners and weights, and of class masks.

    CRNN features are mixed as linear amplitudes, those of the transformer as log mels: `apply` takes either.
    """

    alpha: float = 0.2

    def apply_labels(self, labels: Tensor, draw: MixDraw) -> Tensor:
        """Return mixed labels or pseudo-labels (B, K, ...), within 0 … 1."""
        return self.apply(labels, draw).clamp(0.0, 1.0)

    def apply_mask(self, class_mask: Tensor, labels: Tensor, draw: MixDraw) -> Tensor:
        """Return the class mask (B, K): own classes, and those of which the partner has any label.

        Args:
            labels: (B, K, L) from before the mixing. What classes the partner is annotated for has no effect.
        """
        present = labels.flatten(2).sum(-1) != 0
        return class_mask | present[draw[1].to(labels.device)]


# ---------------------------------------------------------------- along time


@dataclass(frozen=True)
class TimeShift:
    """Shift features and labels of each clip circularly in time.

    Args:
        deviation: standard deviation of the Gaussian shift, as a share of the CRNN's frames.
        frames_per_label: frames of the CRNN for one frame of the labels.
    """

    deviation: float = 0.075
    frames_per_label: int = 4

    def __post_init__(self):
        require(self.deviation >= 0, f"deviation {self.deviation} is negative.")

    def draw(self, n_clips: int, n_frames: int, rng: np.random.Generator) -> Tensor:
        """Return shifts in frames (B,), int64, of a Gaussian of whole deviation, rounded toward zero."""
        shift = rng.normal(0.0, int(n_frames * self.deviation), n_clips)
        return torch.from_numpy(np.trunc(shift).astype(np.int64))

    def apply(self, features: Tensor, shift: Tensor, n_frames: int | None = None) -> Tensor:
        """Return `features` (B, C, F, N), later by `shift` frames.

        Args:
            n_frames: frames that `shift` counts in, if these features have others than their own N.
        """
        if n_frames is not None:
            shift = torch.round(shift / (n_frames / features.shape[-1])).long()
        return _roll(features.flatten(1, 2), shift).view_as(features)

    def apply_labels(self, labels: Tensor, shift: Tensor) -> Tensor:
        """Return labels or pseudo-labels (B, K, L), later by the same time in whole label frames."""
        return _roll(labels, torch.round(shift / self.frames_per_label).long())


def _roll(rows: Tensor, shift: Tensor) -> Tensor:
    return Roll(rows.shape[-1]).apply(rows, shift)


@dataclass(frozen=True)
class TimeMask:
    """Set one stretch of time to zero, the same for all clips of a group, in features and labels.

    Zero is silence in the CRNN's linear amplitudes, but a middling level in normalised log mels.

    Args:
        min_share, max_share: length of the stretch as a share of the label frames.
        frames_per_label: frames of the CRNN for one frame of the labels.
        mask_pseudo_labels: whether pseudo-labels are set to zero as well. As published they are not: the loss
            on them then asks for sounds that were taken away.
    """

    min_share: float = 0.05
    max_share: float = 0.3
    frames_per_label: int = 4
    mask_pseudo_labels: bool = False

    def __post_init__(self):
        require(
            0.0 <= self.min_share < self.max_share <= 1.0,
            f"min_share {self.min_share} and max_share {self.max_share} must rise within 0 … 1.",
        )

    def draw(self, n_label_frames: int, rng: np.random.Generator) -> tuple[int, int]:
        """Return first frame and width of the stretch, in label frames; the upper end of each is excluded."""
        low, high = (int(share * n_label_frames) for share in (self.min_share, self.max_share))
        require(low < high, f"{n_label_frames} label frames are too few for a stretch of {low} to {high}.")
        width = int(rng.integers(low, high))
        return int(rng.integers(n_label_frames - width)), width

    def apply(self, amplitude: Tensor, draw: tuple[int, int]) -> Tensor:
        """Return the CRNN's `amplitude` (B, C, F, N) with the stretch at zero."""
        first, width = draw
        return _with_zeros(amplitude, self.frames_per_label * first, self.frames_per_label * (first + width))

    def apply_encoder(self, log_mel: Tensor, draw: tuple[int, int], n_label_frames: int) -> Tensor:
        """Return the transformer's `log_mel` (B, C, F, N), whose frames are no multiple of those of the labels."""
        first, width = draw
        scale = log_mel.shape[-1] / n_label_frames
        return _with_zeros(log_mel, round(first * scale), round((first + width) * scale))

    def apply_labels(self, labels: Tensor, draw: tuple[int, int]) -> Tensor:
        """Return `labels` (B, K, L) with the stretch at zero."""
        return _with_zeros(labels, draw[0], sum(draw))

    def apply_pseudo_labels(self, labels: Tensor, draw: tuple[int, int]) -> Tensor:
        """Return pseudo-labels (B, K, L): unchanged, or with the stretch at zero (`mask_pseudo_labels`)."""
        return self.apply_labels(labels, draw) if self.mask_pseudo_labels else labels


def _with_zeros(x: Tensor, first: int, stop: int) -> Tensor:
    x = x.clone()
    x[..., first:stop] = 0.0
    return x


# ---------------------------------------------------------------- along frequency


@dataclass(frozen=True)
class FrequencyWarp:
    """Stretch a random part of the mel rows over all of them, alike for all clips of a group.

    Args:
        p: probability of a change; views.py decides once for all groups of a batch.
        min_share: smallest share of the rows that is kept.
    """

    p: float = 0.5
    min_share: float = 0.6

    def __post_init__(self):
        check_probability(self.p)
        require(0.0 < self.min_share <= 1.0, f"min_share {self.min_share} must be above 0 and at most 1.")

    def draw(self, n_mels: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return None or (first row, number of rows)."""
        if rng.random() >= self.p:
            return None
        n_rows = max(int(rng.uniform(self.min_share, 1.0) * n_mels), 1)
        return int(rng.integers(n_mels - n_rows, endpoint=True)), n_rows

    def apply(self, log_mel: Tensor, draw: tuple[int, int] | None) -> Tensor:
        """Return `log_mel` (B, C, F, N) with the drawn rows stretched over all F by bicubic interpolation."""
        if draw is None:
            return log_mel
        first, n_rows = draw
        part = log_mel[:, :, first : first + n_rows]
        return interpolate(part, size=log_mel.shape[-2:], mode="bicubic", align_corners=True)


@dataclass(frozen=True)
class FilterAugment:
    """Filter each clip with a random curve, linear in dB between the edges of a few bands.

    Args:
        p: probability that a batch is changed.
        max_gain_db: gains at the edges lie within ± this.
        min_bands, max_bands: number of bands, both included.
        min_width: least rows in a band; less where the rows do not suffice.
        units_per_db: None multiplies by the gain as a factor, which is a filter for linear amplitudes. As
            published normalised log mels are multiplied as well, which is none. For them the number of units in
            which a log mel counts 1 dB: the gain is added.

    Source: Nam et al. 2022, FilterAugment, linear type.
    """

    p: float = 0.8
    max_gain_db: float = 6.0
    min_bands: int = 3
    max_bands: int = 5
    min_width: int = 6
    units_per_db: float | None = None

    def __post_init__(self):
        check_probability(self.p)
        require(self.max_gain_db >= 0, f"max_gain_db {self.max_gain_db} is negative.")
        require(
            1 <= self.min_bands <= self.max_bands,
            f"min_bands {self.min_bands} and max_bands {self.max_bands} must not fall and be at least 1.",
        )

    def draw(self, n_clips: int, n_mels: int, rng: np.random.Generator) -> tuple[Tensor, Tensor] | None:
        """Return None or (edges in rows (n + 1,) int64, gains at them in dB (B, n + 1) float32)."""
        if rng.random() >= self.p:
            return None
        n_bands = int(rng.integers(self.min_bands, self.max_bands, endpoint=True))
        require(n_bands <= n_mels, f"{n_mels} mel rows are too few for {n_bands} bands; lower max_bands.")
        width = min(self.min_width, n_mels // n_bands)
        inner = rng.integers(n_mels - width * n_bands + 1, size=n_bands - 1)
        gain_db = rng.uniform(-self.max_gain_db, self.max_gain_db, (n_clips, n_bands + 1))
        return self.edges(inner, n_mels, width), torch.from_numpy(gain_db.astype(np.float32))

    @staticmethod
    def edges(inner: np.ndarray, n_mels: int, width: int) -> Tensor:
        """Return the edges (n + 1,) of n bands: `inner` (n − 1,) sorted, the k-th raised by k widths."""
        raised = np.sort(inner) + width * np.arange(1, len(inner) + 1)
        return torch.from_numpy(np.concatenate([[0], raised, [n_mels]]).astype(np.int64))

    @staticmethod
    def curve_db(edges: Tensor, gain_db: Tensor) -> Tensor:
        """Return the filters (B, F) in dB: in each band a line from the gain of its first edge to the next.

        Both ends belong to the band; the last row of a band and the first of the next have the same gain.
        """
        row = torch.arange(int(edges[-1]))
        band = torch.bucketize(row, edges[1:], right=True)
        first, last = edges[band], edges[band + 1] - 1
        share = (row - first) / (last - first).clamp(min=1)
        return torch.lerp(gain_db[:, band], gain_db[:, band + 1], share.expand(len(gain_db), -1))

    def apply(self, features: Tensor, draw: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return filtered `features` (B, C, F, N): amplitudes, or log mels (`units_per_db`)."""
        if draw is None:
            return features
        curve_db = self.curve_db(*draw)[:, None, :, None].to(features.device)
        if self.units_per_db is not None:
            return features + curve_db * self.units_per_db
        return features * 10.0 ** (curve_db / 20.0)
