"""Front ends: waveform in, log-mel spectrogram out.

Flow: waveform batch (B, 1, T) → **mel bands (`common.audio.mel`) → logarithm** → log mel (B, 1, F, N).

The front ends of the acoustic scene systems, whose settings other systems share. Those of the sound event
encoders are in `common.audio.encoder_frontends`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from common.audio.mel import Band, MelFrontEnd, bands_of, kaldi_bank


class LogMel(MelFrontEnd):
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
            hop_samples,
            window=torch.hann_window(win_length),
            mel_bank=melscale_fbanks(n_fft // 2 + 1, f_min_hz, f_max_hz, n_mels, sample_rate),
        )
        self.f_min_hz, self.f_max_hz, self.log_offset = f_min_hz, f_max_hz, log_offset

    def power_mel(self, waveform: Tensor) -> Tensor:
        """Return the power mel spectrogram (B, 1, F, N) of `waveform` (B, 1, T) at `input_rate`.

        Raises:
            ValueError: for another shape, or a clip too short for one frame.
        """
        return self._mel(waveform)

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


class KaldiLogMel(MelFrontEnd):
    """Log-mel spectrogram of the CP-JKU systems (CP-Mobile 2023, CP-ResNet, PaSST; frame-wise PaSST and MobileNet).

    Pre-emphasis (one sample shorter), Hann window, centred frames with reflected edges, Kaldi mel bank, natural
    logarithm, masks, then (x + 4.5) / 5.

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
        log_offset: keeps the logarithm of silence finite, see `floor`.
        pre_emphasis: factor of the previous sample that is subtracted.
        periodic_window: periodic Hann window; False, as published for the scene systems, is the symmetric one.
        floor: "add" `log_offset` to the power before the logarithm, or "clamp" the power to at least
            `log_offset`, as the sound event systems do (with 1e-7).
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
        periodic_window: bool = False,
        floor: Literal["add", "clamp"] = "add",
    ):
        if f_min_range_hz < 1 or f_max_range_hz < 1:
            raise ValueError(
                f"f_min_range_hz {f_min_range_hz} and f_max_range_hz {f_max_range_hz} must be at least 1 "
                "(1 = no random edge)."
            )
        if floor not in ("add", "clamp"):
            raise ValueError(f'floor {floor!r} must be "add" or "clamp".')
        if f_max_hz is None:
            f_max_hz = float(sample_rate // 2 - f_max_range_hz // 2)
        _check_settings(sample_rate, n_fft, win_length, n_mels, f_min_hz, f_max_hz, log_offset)
        super().__init__(
            input_rate,
            sample_rate,
            n_fft,
            hop_samples,
            window=torch.hann_window(win_length, periodic=periodic_window),
            mel_bank=kaldi_bank(n_mels, n_fft, sample_rate, f_min_hz, f_max_hz),
        )
        self.f_min_hz, self.f_max_hz = f_min_hz, f_max_hz
        self.log_offset, self.pre_emphasis, self.floor = log_offset, pre_emphasis, floor
        self.f_min_range_hz, self.f_max_range_hz = f_min_range_hz, f_max_range_hz

    @property
    def shortest(self) -> int:
        """Samples at `sample_rate` that the first frame needs; pre-emphasis takes one."""
        return self.n_fft // 2 + 2

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
        return self._mel(waveform, *self._bank_for(f_min_hz, f_max_hz))

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
        power = self.power_mel(waveform, f_min_hz, f_max_hz)
        kept = power + self.log_offset if self.floor == "add" else power.clamp(min=self.log_offset)
        log_mel = torch.log(kept)
        return (_masked(log_mel, freq_mask, time_mask) + 4.5) / 5.0

    def _frames(self, waveform: Tensor) -> Tensor:
        return super()._frames(waveform[:, 1:] - self.pre_emphasis * waveform[:, :-1])

    def _bank_for(self, f_min_hz: float | None, f_max_hz: float | None) -> tuple[Tensor, Sequence[Band]]:
        edges = (
            self.f_min_hz if f_min_hz is None else f_min_hz,
            self.f_max_hz if f_max_hz is None else f_max_hz,
        )
        if edges == (self.f_min_hz, self.f_max_hz):
            return self.mel_bank, self._mel_bands
        bank = kaldi_bank(self.n_mels, self.n_fft, self.sample_rate, *edges)
        return bank.to(self.mel_bank.device), bands_of(bank)


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
