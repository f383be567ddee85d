"""Front ends: waveform in, log-mel spectrogram out.

Flow: waveform batch (B, 1, T) → **resample → power spectrum → mel bands → logarithm** → log mel (B, 1, F, N).

All arithmetic is float32, under autocast and inside a network cast to half too (a lowered
`torch.set_float32_matmul_precision` does reach it on a GPU: leave that at "highest"). The numbers are
torchaudio's (its resampling kernel and its filter banks are used). The time is not: every output phase of the
resampling kernel has 17 taps that are not zero out of 459, every mel band a few of 2,049 bins, so both
products skip the zeros; and on a CPU a few clips at a time pass from frame to mel band, which keeps them in
the processor's cache.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import Resample

# Below this a tap of the resampling kernel (peak near 1) is the rounding error of a zero of its Hann window.
_ZERO_TAP = 1e-20
# Columns per block of the two banded products; measured fastest between 16 and 64.
_PHASES_PER_BLOCK = 32
_MELS_PER_BLOCK = 32
# Frame samples that a CPU works on at once: 4 MiB of float32.
_CPU_CHUNK_SAMPLES = 2**20

# A block of columns of a banded matrix and its nonzero rows: first, end column; first, end row.
Band = tuple[int, int, int, int]


class _PowerMel(nn.Module):
    """Resampling, short-time spectrum and mel bands, shared by the two front ends.

    Buffers hold what published checkpoints hold, in their shapes, but are no part of the state dict:
    `resample_kernel` (phases, 1, taps), absent without resampling; `window` (samples,); `mel_bank` (bins, F).
    """

    def __init__(
        self,
        input_rate: int,
        sample_rate: int,
        n_fft: int,
        win_length: int,
        hop_samples: int,
        n_mels: int,
        window: Tensor,
        mel_bank: Tensor,
    ):
        super().__init__()
        for name, value in (
            ("input_rate", input_rate),
            ("sample_rate", sample_rate),
            ("hop_samples", hop_samples),
        ):
            if value < 1:
                raise ValueError(f"{name} {value} must be at least 1.")
        if n_fft % 2:
            raise ValueError(f"n_fft {n_fft} must be even.")
        self.input_rate, self.sample_rate = input_rate, sample_rate
        self.n_fft, self.win_length, self.hop_samples, self.n_mels = n_fft, win_length, hop_samples, n_mels
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mel_bank", mel_bank, persistent=False)
        self._mel_bands = _bands(mel_bank, _MELS_PER_BLOCK)
        self._resample_bands: list[Band] = []
        if input_rate != sample_rate:
            resample = Resample(input_rate, sample_rate)
            self._rate_in, self._rate_out = input_rate // resample.gcd, sample_rate // resample.gcd
            self._resample_width = resample.width
            self.register_buffer("resample_kernel", resample.kernel, persistent=False)
            taps = resample.kernel[:, 0].T
            self._resample_bands = _bands(taps.where(taps.abs() > _ZERO_TAP, 0.0), _PHASES_PER_BLOCK)

    def _apply(self, fn, recurse=True):
        """Move to another device, but stay in float32 when a network around this module is cast to half."""
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            if self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def n_resampled(self, n_samples: int) -> int:
        """Return the number of samples at `sample_rate` made from `n_samples` at `input_rate`."""
        if not self._resample_bands:
            return n_samples
        return -(-n_samples * self._rate_out // self._rate_in)

    def n_frames(self, n_samples: int) -> int:
        """Return the number of frames N made from `n_samples` at `input_rate`."""
        return 1 + self.n_resampled(n_samples) // self.hop_samples

    def resample(self, waveform: Tensor) -> Tensor:
        """Return `waveform` (B, T) at `sample_rate`, (B, T'), resampled by torchaudio's windowed sinc."""
        if not self._resample_bands:
            return waveform
        n_samples, n_taps, width = waveform.shape[-1], self.resample_kernel.shape[-1], self._resample_width
        # A matrix product rather than a convolution: cuDNN would round it to TF32, 11 bits.
        frames = F.pad(waveform, (width, width + self._rate_in)).unfold(-1, n_taps, self._rate_in)
        phases = _banded_product(frames, self.resample_kernel[:, 0].T, self._resample_bands)
        return phases.flatten(-2)[..., : self.n_resampled(n_samples)]

    def _check_waveform(self, waveform: Tensor, shortest: int) -> None:
        if waveform.ndim != 3 or waveform.shape[1] != 1:
            raise ValueError(
                f"waveform has shape {tuple(waveform.shape)}, but this front end takes (B, 1, T), "
                "one channel; mix down or reshape first."
            )
        if self.n_resampled(waveform.shape[-1]) < shortest:
            needed = (shortest - 1) * self.input_rate // self.sample_rate + 1
            raise ValueError(
                f"waveform has {waveform.shape[-1]} samples at {self.input_rate} Hz, fewer than the {needed} "
                f"that one frame of {self.n_fft} at {self.sample_rate} Hz needs; pad the clip."
            )

    def _mel_of(self, waveform: Tensor, mel_bank: Tensor, bands: Sequence[Band]) -> Tensor:
        """Return the power mel spectrogram (B, F, N) of `waveform` (B, T) at `sample_rate`."""
        half = self.n_fft // 2
        padded = F.pad(waveform[:, None], (half, half), mode="reflect")[:, 0]
        frames = padded.unfold(-1, self.n_fft, self.hop_samples)  # (B, N, n_fft), a view
        margin = self.n_fft - self.win_length
        window = F.pad(self.window, (margin // 2, margin - margin // 2))
        clips = len(frames)
        if frames.device.type == "cpu" and not torch.compiler.is_compiling():
            clips = max(1, _CPU_CHUNK_SAMPLES // (frames.shape[1] * self.n_fft))
        mels = []
        for chunk in frames.split(clips) if clips < len(frames) else (frames,):
            spectrum = torch.fft.rfft(chunk * window)
            power = spectrum.real.square() + spectrum.imag.square()  # no square root, unlike abs()²
            mels.append(_banded_product(power, mel_bank, bands))
        return torch.cat(mels).transpose(1, 2)


class LogMel(_PowerMel):
    """Log-mel spectrogram of the DCASE 2024 and 2025 task 1 baselines.

    Periodic Hann window, centred frames with reflected edges, HTK mel scale without norm, natural logarithm.

    Args:
        input_rate: rate of the waveforms given, Hz.
        sample_rate: rate they are resampled to, Hz.
        n_fft, win_length, hop_samples: transform, window and hop, samples at `sample_rate`.
        n_mels: number of mel bands F.
        f_min_hz, f_max_hz: edges of the mel scale; no upper edge means half the sample rate.
        log_offset: added to the power before the logarithm.

    Example:
        >>> LogMel()(torch.zeros(2, 1, 44100)).shape
        torch.Size([2, 1, 256, 65])
    """

    def __init__(
        self,
        input_rate: int = 44100,
        sample_rate: int = 32000,
        n_fft: int = 4096,
        win_length: int = 3072,
        hop_samples: int = 500,
        n_mels: int = 256,
        f_min_hz: float = 0.0,
        f_max_hz: float | None = None,
        log_offset: float = 1e-5,
    ):
        f_max_hz = _check_settings(sample_rate, n_fft, win_length, n_mels, f_min_hz, f_max_hz, log_offset)
        super().__init__(
            input_rate,
            sample_rate,
            n_fft,
            win_length,
            hop_samples,
            n_mels,
            window=torch.hann_window(win_length),
            mel_bank=melscale_fbanks(n_fft // 2 + 1, f_min_hz, f_max_hz, n_mels, sample_rate),
        )
        self.f_min_hz, self.f_max_hz, self.log_offset = f_min_hz, f_max_hz, log_offset

    def power_mel(self, waveform: Tensor) -> Tensor:
        """Return the power mel spectrogram (B, 1, F, N) of `waveform` (B, 1, T) at `input_rate`.

        Raises:
            ValueError: for another shape, or a clip too short for one frame.
        """
        self._check_waveform(waveform, shortest=self.n_fft // 2 + 1)
        with torch.autocast(waveform.device.type, enabled=False):
            resampled = self.resample(waveform[:, 0].float())
            return self._mel_of(resampled, self.mel_bank, self._mel_bands)[:, None]

    def forward(
        self, waveform: Tensor, freq_mask: Tensor | None = None, time_mask: Tensor | None = None
    ) -> Tensor:
        """Return the log-mel spectrogram (B, 1, F, N), float32.

        Args:
            waveform: (B, 1, T) at `input_rate`, full scale ±1.
            freq_mask, time_mask: bool (B, F) and (B, N), True where the POWER is to become 0, which is
                log(log_offset) in the output.

        Raises:
            ValueError: for a wrong shape of waveform or masks, or a clip too short for one frame.
        """
        power = _masked(self.power_mel(waveform), freq_mask, time_mask)
        return torch.log(power + self.log_offset)


class KaldiLogMel(_PowerMel):
    """Log-mel spectrogram of the CP-JKU systems of 2022 and 2023 (CP-Mobile 2023, CP-ResNet, PaSST).

    Pre-emphasis (one sample shorter), symmetric Hann window, centred frames with reflected edges, Kaldi mel
    bank, natural logarithm, masks, then (x + 4.5) / 5.

    Args:
        input_rate: rate of the waveforms given, Hz. They are resampled as in `LogMel`; the published systems
            used librosa for that.
        sample_rate: rate they are resampled to, Hz.
        n_fft, win_length, hop_samples: transform, window and hop, samples at `sample_rate`
            (CP-ResNet: hop 750; PaSST: 1024, 800, 320 and 128 mels).
        n_mels: number of mel bands F.
        f_min_hz, f_max_hz: edges of the mel scale; no upper edge means half the sample rate − half
            `f_max_range_hz`.
        f_min_range_hz, f_max_range_hz: widths of the random edges of training, see `draw_edges`.
        log_offset: added to the power before the logarithm.
        pre_emphasis: factor of the previous sample that is subtracted.
    """

    def __init__(
        self,
        input_rate: int = 44100,
        sample_rate: int = 32000,
        n_fft: int = 4096,
        win_length: int = 3072,
        hop_samples: int = 500,
        n_mels: int = 256,
        f_min_hz: float = 0.0,
        f_max_hz: float | None = None,
        f_min_range_hz: int = 1,
        f_max_range_hz: int = 1000,
        log_offset: float = 1e-5,
        pre_emphasis: float = 0.97,
    ):
        if f_min_range_hz < 1 or f_max_range_hz < 1:
            raise ValueError(
                f"f_min_range_hz {f_min_range_hz} and f_max_range_hz {f_max_range_hz} must be at least 1 "
                "(1 = no random edge)."
            )
        if f_max_hz is None:
            f_max_hz = float(sample_rate // 2 - f_max_range_hz // 2)
        _check_settings(sample_rate, n_fft, win_length, n_mels, f_min_hz, f_max_hz, log_offset)
        super().__init__(
            input_rate,
            sample_rate,
            n_fft,
            win_length,
            hop_samples,
            n_mels,
            window=torch.hann_window(win_length, periodic=False),
            mel_bank=_kaldi_bank(n_mels, n_fft, sample_rate, f_min_hz, f_max_hz),
        )
        self.f_min_hz, self.f_max_hz = f_min_hz, f_max_hz
        self.log_offset, self.pre_emphasis = log_offset, pre_emphasis
        self.f_min_range_hz, self.f_max_range_hz = f_min_range_hz, f_max_range_hz

    def n_frames(self, n_samples: int) -> int:
        """Return the number of frames N made from `n_samples` at `input_rate`; pre-emphasis takes one."""
        return 1 + (self.n_resampled(n_samples) - 1) // self.hop_samples

    def draw_edges(self, rng: np.random.Generator) -> tuple[float, float]:
        """Return random (f_min_hz, f_max_hz) for one training batch, whole Hz as published."""
        f_min_hz = self.f_min_hz + int(rng.integers(self.f_min_range_hz))
        f_max_hz = self.f_max_hz + self.f_max_range_hz // 2 - int(rng.integers(self.f_max_range_hz))
        return f_min_hz, f_max_hz

    def power_mel(
        self, waveform: Tensor, f_min_hz: float | None = None, f_max_hz: float | None = None
    ) -> Tensor:
        """Return the power mel spectrogram (B, 1, F, N) of the pre-emphasised `waveform` (B, 1, T).

        Raises:
            ValueError: for another shape, or a clip too short for one frame.
        """
        self._check_waveform(waveform, shortest=self.n_fft // 2 + 2)
        bank, bands = self._bank_for(f_min_hz, f_max_hz)
        with torch.autocast(waveform.device.type, enabled=False):
            resampled = self.resample(waveform[:, 0].float())
            emphasised = resampled[:, 1:] - self.pre_emphasis * resampled[:, :-1]
            return self._mel_of(emphasised, bank, bands)[:, None]

    def forward(
        self,
        waveform: Tensor,
        freq_mask: Tensor | None = None,
        time_mask: Tensor | None = None,
        f_min_hz: float | None = None,
        f_max_hz: float | None = None,
    ) -> Tensor:
        """Return the scaled log-mel spectrogram (B, 1, F, N), float32.

        Args:
            waveform: (B, 1, T) at `input_rate`, full scale ±1.
            freq_mask, time_mask: bool (B, F) and (B, N), True where the LOG mel is to become 0 (0.9 after
                scaling).
            f_min_hz, f_max_hz: mel edges of this call, see `draw_edges`; None = those of the constructor.

        Raises:
            ValueError: for a wrong shape of waveform or masks, or a clip too short for one frame.
        """
        log_mel = torch.log(self.power_mel(waveform, f_min_hz, f_max_hz) + self.log_offset)
        return (_masked(log_mel, freq_mask, time_mask) + 4.5) / 5.0

    def _bank_for(self, f_min_hz: float | None, f_max_hz: float | None) -> tuple[Tensor, Sequence[Band]]:
        edges = (
            self.f_min_hz if f_min_hz is None else f_min_hz,
            self.f_max_hz if f_max_hz is None else f_max_hz,
        )
        if edges == (self.f_min_hz, self.f_max_hz):
            return self.mel_bank, self._mel_bands
        bank = _kaldi_bank(self.n_mels, self.n_fft, self.sample_rate, *edges)
        return bank.to(self.mel_bank.device), _bands(bank, _MELS_PER_BLOCK)


def _kaldi_bank(n_mels: int, n_fft: int, sample_rate: int, f_min_hz: float, f_max_hz: float) -> Tensor:
    """Return Kaldi's mel bank (n_fft / 2 + 1, F); the last bin, which Kaldi leaves out, is 0."""
    # Vocal tract length warping, the last three arguments, is off at a factor of 1.
    bank, _ = get_mel_banks(n_mels, n_fft, float(sample_rate), f_min_hz, f_max_hz, 100.0, -500.0, 1.0)
    return F.pad(bank, (0, 1)).T.contiguous()


def _bands(matrix: Tensor, columns_per_block: int) -> list[Band]:
    """Cut `matrix` into blocks of columns and find the rows of each that are not zero."""
    bands = []
    for first in range(0, matrix.shape[1], columns_per_block):
        last = min(first + columns_per_block, matrix.shape[1])
        rows = matrix[:, first:last].any(dim=1).nonzero()
        low, high = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 1)
        bands.append((first, last, low, high))
    return bands


def _banded_product(x: Tensor, matrix: Tensor, bands: Sequence[Band]) -> Tensor:
    """Return `x` (…, rows) @ `matrix` (rows, columns), skipping the rows that are zero in a block."""
    blocks = [x[..., low:high] @ matrix[low:high, first:last] for first, last, low, high in bands]
    return torch.cat(blocks, dim=-1)


def _masked(mel: Tensor, freq_mask: Tensor | None, time_mask: Tensor | None) -> Tensor:
    """Return `mel` (B, 1, F, N) with 0 where `freq_mask` (B, F) or `time_mask` (B, N) is True."""
    n_clips, _, n_mels, n_frames = mel.shape
    for name, mask, length in (("freq_mask", freq_mask, n_mels), ("time_mask", time_mask, n_frames)):
        if mask is None:
            continue
        if mask.shape != (n_clips, length) or mask.dtype != torch.bool:
            raise ValueError(
                f"{name} is {mask.dtype} {tuple(mask.shape)}, but must be torch.bool {(n_clips, length)}."
            )
        mask = mask.to(mel.device)
        mel = mel.masked_fill(mask[:, None, :, None] if name == "freq_mask" else mask[:, None, None, :], 0.0)
    return mel


def _check_settings(
    sample_rate: int,
    n_fft: int,
    win_length: int,
    n_mels: int,
    f_min_hz: float,
    f_max_hz: float | None,
    log_offset: float,
) -> float:
    """Check the settings both front ends share; return the upper mel edge in Hz."""
    f_max_hz = sample_rate / 2 if f_max_hz is None else f_max_hz
    if not 1 <= win_length <= n_fft:
        raise ValueError(f"win_length {win_length} must be between 1 and n_fft {n_fft}.")
    if not 0 <= f_min_hz < f_max_hz <= sample_rate / 2:
        raise ValueError(
            f"mel edges {f_min_hz} … {f_max_hz} Hz must rise and lie within 0 … {sample_rate / 2} Hz."
        )
    if n_mels < 1:
        raise ValueError(f"n_mels {n_mels} must be at least 1.")
    if log_offset <= 0:
        raise ValueError(f"log_offset {log_offset} must be above 0: silence has no logarithm.")
    return f_max_hz
