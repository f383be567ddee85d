"""Read audio files; the sample rate travels with the samples.

Flow: file on disk → **waveform and its rate** → cache.
"""
from pathlib import Path

import numpy as np
import soundfile


class AudioError(ValueError):
    """A clip that cannot be used; the message names the file, what was found, and what mends it."""


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Decode an audio file (WAV at any depth, FLAC, Ogg).

    Returns:
        (waveform, sample_rate): float32 (C, T) at full scale ±1, rate in Hz.
    Raises:
        AudioError: missing, unreadable, truncated, empty, or with samples that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file; download it again or take its row out of the table.")
    try:
        with soundfile.SoundFile(path) as sound:
            announced_samples, sample_rate = sound.frames, sound.samplerate
            samples = sound.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        reason = str(error).split(": ", 1)[-1].rstrip(".")
        raise AudioError(f"{path}: cannot be decoded ({reason}); the file is damaged, get it again.") from None
    if len(samples) == 0:
        raise AudioError(f"{path}: holds no samples; get the file again or take its row out of the table.")
    if len(samples) < announced_samples:
        raise AudioError(f"{path}: header announces {announced_samples} samples, {len(samples)} are there; get it again.")
    if not np.isfinite(samples).all():
        n_bad = int((~np.isfinite(samples)).sum())
        raise AudioError(f"{path}: {n_bad} samples are NaN or infinite; get the file again or take its row out.")
    return samples.T, sample_rate


def fit_length(waveform: np.ndarray, n_samples: int) -> np.ndarray:
    """Cut at the end, or pad with zeros, to (C, `n_samples`)."""
    waveform = waveform[:, :n_samples]
    return np.pad(waveform, ((0, 0), (0, n_samples - waveform.shape[1])))
