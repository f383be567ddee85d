"""Augmentations that more than one task uses: each draws its randomness apart from applying it.

Flow: waveform batch → **impulse response, roll** → front end (takes the **band masks**) → log mel →
**Freq-MixStyle, mixup** → model.

Every draw comes from the NumPy generator given, as CPU tensors: the same on every machine and device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.transforms import Resample

from common.audio.files import read_audio


@dataclass(frozen=True)
class Roll:
    """Shift each clip in time by a whole number of samples; what leaves at one end enters at the other.

    Args:
        max_shift_samples: largest shift to either side, at the rate of the waveform.

    Source: DCASE 2025 task 1 baseline, 4,410 samples at 44.1 kHz (0.1 s); CP-JKU 2023, 4,000 at 32 kHz.
    """

    max_shift_samples: int

    def __post_init__(self):
        require(self.max_shift_samples >= 0, f"max_shift_samples {self.max_shift_samples} is negative.")

    def draw(self, n_clips: int, rng: np.random.Generator) -> Tensor:
        """Return shifts (B,), int64, uniform in −max … +max, both included."""
        limit = self.max_shift_samples
        return torch.from_numpy(rng.integers(-limit, limit, size=n_clips, endpoint=True))

    def apply(self, waveform: Tensor, shift: Tensor) -> Tensor:
        """Return `waveform` (B, C, T), clip b delayed by `shift[b]` samples, circularly."""
        require(
            waveform.ndim == 3 and shift.shape == waveform.shape[:1],
            f"waveform {tuple(waveform.shape)} and shift {tuple(shift.shape)} must be (B, C, T) and (B,).",
        )
        position = torch.arange(waveform.shape[-1], device=waveform.device)
        source = (position - shift.to(waveform.device)[:, None]) % waveform.shape[-1]
        return waveform.gather(-1, source[:, None].expand_as(waveform))


@dataclass(frozen=True)
class BandMask:
    """Mask one random run of neighbouring mel rows, or of frames, per clip.

    Args:
        max_width: bound of the run's length in rows; 0 = no mask.

    The rule is that of `torchaudio.transforms.FrequencyMasking(max_width, iid_masks=True)`: length v and
    start are real numbers, v ~ U(0, max_width), start ~ U(0, rows − v), both rounded down.
    """

    max_width: int

    def __post_init__(self):
        require(self.max_width >= 0, f"max_width {self.max_width} is negative.")

    def draw(self, n_clips: int, n_rows: int, rng: np.random.Generator) -> Tensor:
        """Return masks (B, n_rows), bool, True = masked.

        Raises:
            ValueError: if the run could be longer than the spectrogram.
        """
        if self.max_width == 0:
            return torch.zeros(n_clips, n_rows, dtype=torch.bool)
        require(
            self.max_width <= n_rows, f"max_width {self.max_width} is more than the {n_rows} rows to mask."
        )
        width = rng.random(n_clips) * self.max_width
        start = rng.random(n_clips) * (n_rows - width)
        first = np.floor(start)[:, None]
        row = np.arange(n_rows)
        return torch.from_numpy((row >= first) & (row < first + np.floor(width)[:, None]))


@dataclass(frozen=True)
class FreqMixStyle:
    """Freq-MixStyle: give each clip a mix of its own and another clip's mean and deviation per mel row.

    Args:
        p: probability that a batch is changed at all (one draw for the whole batch).
        alpha: both parameters of the Beta distribution of the mixing weights.
        eps: added to the variance.
        keep_larger: whether the larger share stays with the clip's own statistics.

    Source: DCASE 2025 task 1 baseline (p 0.4, alpha 0.3), Schmid et al. 2022; DCASE 2024 task 4, CP-JKU
    (p 0.5, alpha 0.3, keep_larger).
    """

    p: float
    alpha: float
    eps: float = 1e-6
    keep_larger: bool = False

    def __post_init__(self):
        check_probability(self.p)
        require(self.alpha > 0, f"alpha {self.alpha} must be above 0.")
        require(self.eps > 0, f"eps {self.eps} must be above 0.")

    def draw(self, n_clips: int, rng: np.random.Generator) -> tuple[Tensor, Tensor] | None:
        """Return None (leave the batch alone) or (lam (B,) float32, perm (B,) int64)."""
        if rng.random() >= self.p:
            return None
        lam, perm = _draw_mix(n_clips, self.alpha, rng)
        return (torch.maximum(lam, 1.0 - lam) if self.keep_larger else lam), perm

    def statistics(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation over channels and frames, both (B, 1, F, 1), of `log_mel` (B, C, F, N).

        The deviation is √(unbiased variance + eps). No gradient flows through either.
        """
        require(
            log_mel.ndim == 4 and log_mel.shape[1] * log_mel.shape[3] > 1,
            f"log mel {tuple(log_mel.shape)}: a deviation needs (B, C, F, N) with at least two frames.",
        )
        variance, mean = torch.var_mean(log_mel.detach().float(), dim=(1, 3), keepdim=True)
        return mean, (variance + self.eps).sqrt()

    def apply(
        self,
        log_mel: Tensor,
        draw: tuple[Tensor, Tensor] | None,
        partner_statistics: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return `log_mel` (B, C, F, N) with mixed statistics; a `draw` of None returns it unchanged.

        Args:
            draw: (lam (B,), perm (B,)); clip b keeps the share lam[b] and takes the rest from clip perm[b].
            partner_statistics: means and deviations (B', 1, F, 1) of all clips that `perm` indexes, when
                these are more than this batch (one batch spread over several devices); None = those of this
                batch.
        """
        if draw is None:
            return log_mel
        lam, perm = draw[0].to(log_mel.device), draw[1].to(log_mel.device)
        mean, deviation = self.statistics(log_mel)
        partner_mean, partner_deviation = (
            (mean, deviation) if partner_statistics is None else partner_statistics
        )
        lam = lam[:, None, None, None]
        new_mean = lam * mean + (1.0 - lam) * partner_mean[perm]
        new_deviation = lam * deviation + (1.0 - lam) * partner_deviation[perm]
        # (x − mean) / deviation · new_deviation + new_mean in one pass over the batch
        scale = new_deviation / deviation
        return torch.addcmul(new_mean - mean * scale, log_mel.float(), scale).to(log_mel.dtype)


@dataclass(frozen=True)
class Mixup:
    """Mix each clip with another one; the loss is to be mixed alike.

    Args:
        alpha: both parameters of the Beta distribution of the mixing weights.

    The larger weight goes to the clip itself. Source: training of PaSST and ConGater, alpha 0.3.
    """

    alpha: float

    def __post_init__(self):
        require(self.alpha > 0, f"alpha {self.alpha} must be above 0; leave mixup out to switch it off.")

    def draw(self, n_clips: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return (lam (B,) float32 in 0.5 … 1, perm (B,) int64)."""
        lam, perm = _draw_mix(n_clips, self.alpha, rng)
        return torch.maximum(lam, 1.0 - lam), perm

    def apply(self, x: Tensor, draw: tuple[Tensor, Tensor]) -> Tensor:
        """Return lam[b] · x[b] + (1 − lam[b]) · x[perm[b]] for `x` (B, …): inputs or one-hot targets."""
        lam, perm = draw[0].to(x), draw[1].to(x.device)
        return torch.lerp(x[perm], x, lam.reshape(-1, *[1] * (x.ndim - 1)))


@dataclass(frozen=True)
class ImpulseResponse:
    """Device impulse response augmentation (DIR): make clips sound as if recorded by another microphone.

    Args:
        p: probability for each clip of the devices named.
        devices: recording devices whose clips are changed; clips of all others stay as they are. None = all.
        centred: take the middle of a response, not its first tap, as its time 0.

    Source: Morocutti et al. 2023, device a only, 66 MicIRP responses, p 0.4 or 0.6. It goes before the roll.
    DCASE 2024 task 4, CP-JKU: all clips, p 0.5, centred (half the taps as zeros on both sides, then only what
    the whole response covers). As these responses have their peak in the first 3 ms, sounds then come 0.18 to
    0.25 s before their labels.
    """

    p: float
    devices: Sequence[str] | None = ("a",)
    centred: bool = False

    def __post_init__(self):
        check_probability(self.p)
        require(
            not isinstance(self.devices, str), f"devices {self.devices!r} must be a list of device names."
        )

    def draw(self, devices: Sequence[str] | int, n_responses: int, rng: np.random.Generator) -> Tensor:
        """Return the index of a response for each clip, −1 = none, int64 (B,).

        Args:
            devices: recording device of each clip of the batch; or their number, where all are changed.

        Raises:
            ValueError: if there is no response to choose from.
        """
        require(
            n_responses > 0, "no impulse response to choose from: give a folder that holds some, or drop DIR."
        )
        n_clips = devices if isinstance(devices, int) else len(devices)
        # Drawn for every clip, so that one clip's draw does not hang on its neighbours' devices.
        chance, index = rng.random(n_clips), rng.integers(n_responses, size=n_clips)
        chosen = chance < self.p
        if self.devices is not None:
            chosen &= np.isin(np.asarray(devices, dtype=str), list(self.devices))
        return torch.from_numpy(np.where(chosen, index, -1))

    def apply(self, waveform: Tensor, index: Tensor, responses: Sequence[Tensor]) -> Tensor:
        """Return `waveform` (B, C, T), clip b convolved with `responses[index[b]]` (L,), cut to T samples.

        Of the convolution's T + L − 1 samples the first T are kept; if `centred`, those from (L − 1) − L // 2
        on. The level is not adjusted. Clips with index −1 come back bit by bit.
        """
        index = index.cpu()
        clips = (index >= 0).nonzero()[:, 0]
        if len(clips) == 0:
            return waveform
        used, which = index[clips].unique(return_inverse=True)
        kernels = [responses[i].to(waveform.device, torch.float32) for i in used.tolist()]
        first = 0
        if self.centred:  # zeros in front bring all responses to the same first sample
            skipped = [(len(kernel) - 1) - len(kernel) // 2 for kernel in kernels]
            first = max(skipped)
            kernels = [pad(kernel, (first - n, 0)) for kernel, n in zip(kernels, skipped, strict=True)]
        # Taps further back than this reach none of the samples that are kept.
        kernels = [kernel[: first + waveform.shape[-1]] for kernel in kernels]
        longest = max(len(kernel) for kernel in kernels)
        n_fft = scipy.fft.next_fast_len(waveform.shape[-1] + longest - 1, real=True)
        spectra = torch.stack([torch.fft.rfft(kernel, n_fft) for kernel in kernels])
        clips, which = clips.to(waveform.device), which.to(waveform.device)
        spectrum = torch.fft.rfft(waveform[clips].float(), n_fft) * spectra[which][:, None]
        filtered = torch.fft.irfft(spectrum, n_fft)
        kept = filtered[..., first : first + waveform.shape[-1]].to(waveform.dtype)
        return waveform.index_copy(0, clips, kept)


def load_responses(
    folder: str | Path, sample_rate: int, resampling_method: str = "sinc_interp_hann"
) -> list[Tensor]:
    """Return the impulse responses (L,), float32, of all wav files below `folder`, ordered by their paths.

    Those recorded at another rate are resampled to `sample_rate` (Hz) by torchaudio's `resampling_method`;
    their level is not adjusted.

    Raises:
        FileNotFoundError: if the folder is missing or holds no wav file.
        ValueError: if a file cannot be read, has more than one channel, or holds only silence.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give the folder of impulse responses (wav files)."
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".wav")
    if not paths:
        raise FileNotFoundError(f"{folder}: holds no wav file; give the folder of impulse responses.")
    responses = []
    for path in paths:
        waveform, rate = read_audio(path)
        waveform = torch.as_tensor(waveform, dtype=torch.float32)
        require(
            waveform.shape[0] == 1, f"{path}: {waveform.shape[0]} channels, but an impulse response has one."
        )
        require(bool(waveform.any()), f"{path}: only silence; remove it from the impulse responses.")
        responses.append(Resample(rate, sample_rate, resampling_method)(waveform)[0])
    return responses


def _draw_mix(n_clips: int, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    lam = torch.from_numpy(rng.beta(alpha, alpha, size=n_clips).astype(np.float32))
    return lam, torch.from_numpy(rng.permutation(n_clips))


def check_probability(p: float) -> None:
    require(0.0 <= p <= 1.0, f"p {p} is not a probability (0 … 1).")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
