"""Sound building blocks for the built-in data: textures, tones, knocks, voices, rooms.

Flow: **blocks** → scenes (acoustic_scenes.py) → recording devices → files (soundscapes.py).

Everything is float64, mono, shape (T,), at SAMPLE_RATE. Continuous textures have an RMS of 1; events have
an RMS of 1 over their loudest 50 ms, so that a level in dB means the same for a hiss and for a click. Every
function that draws takes its own `numpy.random.Generator`: see `name_rng`.
"""

import hashlib

import numpy as np
from scipy import fft

SAMPLE_RATE = 44100
_TABLE_SIZE = 4096  # one period of a harmonic tone; linear interpolation leaves errors near -70 dB
_EVENT_FRAME = SAMPLE_RATE // 20


def name_rng(*names) -> np.random.Generator:
    """Return a generator that depends on these names only: neither order nor process count matters."""
    digest = hashlib.blake2b("\x1f".join(map(str, names)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def gain(level_db: float) -> float:
    """Return the amplitude factor of a level in dB."""
    return 10.0 ** (level_db / 20.0)


def unit_rms(sound: np.ndarray) -> np.ndarray:
    """Scale a continuous sound (T,) to an RMS of 1."""
    return sound / (np.sqrt(np.mean(sound**2)) + 1e-12)


def unit_event(sound: np.ndarray) -> np.ndarray:
    """Scale an event (T,) so that its loudest 50 ms have an RMS of 1 (if shorter: padded with silence)."""
    energy = np.concatenate(([0.0], np.cumsum(sound**2)))
    frame = min(_EVENT_FRAME, len(sound))
    return sound / (np.sqrt(np.max(energy[frame:] - energy[:-frame]) / _EVENT_FRAME) + 1e-12)


def filter_by_curve(sound: np.ndarray, curve_hz, curve_db) -> np.ndarray:
    """Filter (T,) with a zero-phase magnitude response.

    Args:
        curve_hz, curve_db: corners of the response, linear in dB over log frequency, constant beyond.
    """
    n_samples = len(sound)
    n_fft = fft.next_fast_len(n_samples + SAMPLE_RATE // 20, real=True)  # the padding takes the circular tail
    return fft.irfft(fft.rfft(sound, n_fft) * gain(_log_curve(n_fft, curve_hz, curve_db)), n_fft)[:n_samples]


def _log_curve(n_fft: int, curve_hz, curve_db) -> np.ndarray:
    frequency_hz = np.maximum(fft.rfftfreq(n_fft, 1.0 / SAMPLE_RATE), 1.0)
    return np.interp(np.log2(frequency_hz), np.log2(np.asarray(curve_hz, dtype=float)), curve_db)


def noise(rng: np.random.Generator, n_samples: int, curve_hz, curve_db) -> np.ndarray:
    """Return Gaussian noise (T,), RMS 1, with the spectral envelope of `filter_by_curve`."""
    n_fft = fft.next_fast_len(n_samples, real=True)
    spectrum = rng.standard_normal(2 * (n_fft // 2 + 1)).view(complex)  # white noise is white in either domain
    return unit_rms(fft.irfft(spectrum * gain(_log_curve(n_fft, curve_hz, curve_db)), n_fft)[:n_samples])


def band_noise(rng: np.random.Generator, n_samples: int, low_hz: float, high_hz: float) -> np.ndarray:
    """Return noise (T,), RMS 1, between two frequencies with slopes of 30 dB in an octave."""
    return noise(rng, n_samples, (low_hz / 4, low_hz, high_hz, high_hz * 4), (-60.0, 0.0, 0.0, -60.0))


def slow_curve(rng: np.random.Generator, n_samples: int, rate_hz: float, low: float, high: float) -> np.ndarray:
    """Return a random curve (T,) between `low` and `high` with a new corner `rate_hz` times a second."""
    n_corners = int(np.ceil(n_samples / SAMPLE_RATE * rate_hz)) + 2
    corners = (np.arange(n_corners) - rng.uniform()) * SAMPLE_RATE / rate_hz
    return np.interp(np.arange(n_samples), corners, rng.uniform(low, high, n_corners))


def swell(n_samples: int, centre_s: float, width_s: float, floor_db: float = -40.0) -> np.ndarray:
    """Return the level curve (T,) of something that passes by: 1 at `centre_s`, half of it `width_s` away."""
    distance = (np.arange(n_samples) / SAMPLE_RATE - centre_s) / width_s
    return np.maximum(1.0 / (1.0 + distance**2), gain(floor_db))


def harmonic_tone(rng: np.random.Generator, frequency_hz: np.ndarray, amplitudes) -> np.ndarray:
    """Return a tone (T,), RMS 1, that follows `frequency_hz` (T,); `amplitudes`: of harmonics 1, 2, ..."""
    spectrum = np.zeros(_TABLE_SIZE // 2 + 1, dtype=complex)
    amplitudes = np.asarray(amplitudes, dtype=float)[: _TABLE_SIZE // 8]
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(2j * np.pi * rng.uniform(size=len(amplitudes)))
    table = unit_rms(fft.irfft(spectrum))
    position = (np.cumsum(frequency_hz) / SAMPLE_RATE + rng.uniform()) % 1.0 * _TABLE_SIZE
    left = position.astype(np.int64) % _TABLE_SIZE
    table = np.append(table, table[0])
    return table[left] + (table[left + 1] - table[left]) * (position - left)


def add_at(layer: np.ndarray, event: np.ndarray, start_samples: int) -> None:
    """Add an event to a layer (T,) in place; what lies outside of the layer is dropped."""
    first, last = max(start_samples, 0), min(start_samples + len(event), len(layer))
    if first < last:
        layer[first:last] += event[first - start_samples : last - start_samples]


def random_starts(rng: np.random.Generator, n_samples: int, rate_hz: float) -> np.ndarray:
    """Return start samples of `rate_hz` events a second (Poisson), from half a second before the layer."""
    lead = SAMPLE_RATE // 2
    return rng.integers(-lead, n_samples, size=rng.poisson(rate_hz * (n_samples + lead) / SAMPLE_RATE))


def steady_starts(rng: np.random.Generator, n_samples: int, period_s: float, jitter: float = 0.05) -> np.ndarray:
    """Return start samples every `period_s` with a random phase, each moved by about `jitter` periods."""
    n_events = int(n_samples / SAMPLE_RATE / period_s) + 3
    beats = np.arange(n_events) - 1 - rng.uniform() + jitter * rng.standard_normal(n_events)
    return (beats * period_s * SAMPLE_RATE).astype(np.int64)


def knock(rng: np.random.Generator, centre_hz: float, decay_s: float, ringing: float = 0.5) -> np.ndarray:
    """Return the sound of a struck object: noise and ringing partials around `centre_hz`, dying in `decay_s`.

    Args:
        ringing: share of the amplitude in the partials, 0 (dull) to 1 (metal).
    """
    n_samples = int(4 * decay_s * SAMPLE_RATE)
    time_s = np.arange(n_samples) / SAMPLE_RATE
    partials = centre_hz * rng.uniform(0.7, 2.6, 3)
    ring = np.sin(2 * np.pi * partials[:, None] * time_s + rng.uniform(0, 6.28, (3, 1))).mean(axis=0)
    burst = slow_curve(rng, n_samples, centre_hz, -1.0, 1.0) * np.sin(2 * np.pi * centre_hz * time_s)
    attack = np.minimum(time_s / 0.001, 1.0)
    return unit_event(attack * np.exp(-time_s / decay_s) * (ringing * ring + (1 - ringing) * burst))


def sweep(rng: np.random.Generator, hertz, duration_s: float, brightness: float = 0.1) -> np.ndarray:
    """Return a short soft tone that glides through the frequencies `hertz`; `brightness`: second harmonic."""
    n_samples = int(duration_s * SAMPLE_RATE)
    frequency_hz = np.interp(np.linspace(0, 1, n_samples), np.linspace(0, 1, len(hertz)), hertz)
    return unit_event(harmonic_tone(rng, frequency_hz, (1.0, brightness)) * np.hanning(n_samples))


def syllable(rng: np.random.Generator, pitch_hz: float, duration_s: float) -> np.ndarray:
    """Return a voiced syllable: a harmonic tone under a random vowel (three formants), or at times a hiss."""
    n_samples = int(duration_s * SAMPLE_RATE)
    envelope = np.hanning(n_samples) ** 0.7
    if rng.uniform() < 0.2:
        return unit_event(band_noise(rng, n_samples, rng.uniform(2000, 4000), 9000.0) * envelope)
    harmonics_hz = pitch_hz * np.arange(1, int(5000 / pitch_hz) + 1)
    vowel_hz = (rng.uniform(280, 850), rng.uniform(850, 2300), rng.uniform(2400, 3200))
    amplitudes = sum(
        weight / (1 + ((harmonics_hz - centre) / width) ** 2)
        for centre, width, weight in zip(vowel_hz, (80, 120, 180), (1.0, 0.5, 0.2), strict=True)
    )
    glide = pitch_hz * np.linspace(rng.uniform(0.9, 1.15), rng.uniform(0.85, 1.05), n_samples)
    return unit_event(harmonic_tone(rng, glide, amplitudes) * envelope)


def speech(rng: np.random.Generator, n_samples: int, pitch_hz: float, pause: float = 0.25) -> np.ndarray:
    """Return one talker (T,): syllables at 4 to 6 a second with pauses; each has a loudest-frame RMS near 1.

    Args:
        pause: probability that a syllable is left out.
    """
    layer = np.zeros(n_samples)
    for start in steady_starts(rng, n_samples, 1 / rng.uniform(4, 6), jitter=0.1):
        if rng.uniform() >= pause:
            event = syllable(rng, pitch_hz * rng.uniform(0.85, 1.2), rng.uniform(0.12, 0.24))
            add_at(layer, event * gain(rng.uniform(-6, 0)), start)
    return layer


def reverberate(rng: np.random.Generator, dry: np.ndarray, t60_s: float, wet_db: float) -> np.ndarray:
    """Return `dry` (T,) plus its reverberation in a hall.

    Args:
        t60_s: time in which the reverberation falls by 60 dB, s.
        wet_db: energy of the reverberation relative to the direct sound, dB.
    """
    time_s = np.arange(int(min(t60_s, 1.5) * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time_s)) * gain(-60 * time_s / t60_s)
    tail *= gain(wet_db) / np.sqrt(np.sum(tail**2))
    n_fft = fft.next_fast_len(len(dry) + len(tail) - 1, real=True)
    walls = gain(_log_curve(n_fft, (1000, 16000), (0.0, -24.0)))  # air and walls swallow the highs
    return dry + fft.irfft(fft.rfft(dry, n_fft) * fft.rfft(tail, n_fft) * walls, n_fft)[: len(dry)]
