"""Nine simulated recording devices, named as in TAU Urban Acoustic Scenes 2022 Mobile.

Flow: scene sound → **recording device** → files (soundscapes.py).

Device a is close to transparent; b and c are milder, s1 to s3 stronger colourations, and s4 to s6, which
training never holds, lie outside of the range of the others. No real device was measured.
"""

from dataclasses import dataclass

import numpy as np

from common.data import synth
from common.data.synth import SAMPLE_RATE, gain

_BANDS_HZ = (31.5, 63, 125, 250, 500, 1000, 2000, 4000, 8000, 16000)
_DETECTOR_S = 0.04  # the compressor follows the level over this time


@dataclass(frozen=True)
class RecordingDevice:
    """What a microphone and its recorder do to a sound.

    Args:
        name: device name; it also draws the fine ripple of the response.
        response_db: gain in the octave bands 31.5 Hz to 16 kHz, dB.
        ripple_db: standard deviation of the fine ripple, dB, in steps of a sixth of an octave.
        noise_db: level of the self-noise, dBFS; noise_tilt_db: its slope, dB an octave.
        threshold_db: level above which the compressor works, dBFS; ratio: dB in for one dB out, 1 = none.
    """

    name: str
    response_db: tuple[float, ...]
    ripple_db: float
    noise_db: float
    noise_tilt_db: float
    threshold_db: float = 0.0
    ratio: float = 1.0

    def record(self, rng: np.random.Generator, sound: np.ndarray) -> np.ndarray:
        """Return `sound` (T,) as this device records it, within ±1; `rng`: noise, and ±2 dB of gain."""
        curve_hz = 31.5 * 2.0 ** np.arange(0, 9.01, 1 / 6)
        curve_db = np.interp(np.log2(curve_hz), np.log2(_BANDS_HZ), self.response_db)
        curve_db += self.ripple_db * synth.name_rng("response", self.name).standard_normal(len(curve_hz))
        recorded = synth.filter_by_curve(sound, curve_hz, curve_db) * gain(rng.uniform(-2, 2))
        slope_db = self.noise_tilt_db * np.log2(np.asarray(_BANDS_HZ) / 1000)
        recorded += gain(self.noise_db) * synth.noise(rng, len(sound), _BANDS_HZ, slope_db)
        return np.tanh(self._compress(recorded))

    def _compress(self, sound: np.ndarray) -> np.ndarray:
        if self.ratio == 1.0:
            return sound
        half = round(_DETECTOR_S * SAMPLE_RATE / 2)
        energy = np.cumsum(np.pad(sound**2, (half + 1, half), mode="reflect"))
        power = (energy[2 * half :] - energy[: -2 * half])[: len(sound)] / (2 * half)
        excess = np.maximum(power / gain(self.threshold_db) ** 2, 1.0)
        return sound * excess ** ((1 / self.ratio - 1) / 2)


DEVICES = {
    device.name: device
    for device in (
        #                       31.5   63  125  250  500   1k   2k   4k   8k  16k
        RecordingDevice("a", (-3, 0, 0, 0, 0, 0, 0, 0, 0, -2), 0.3, -72, -2),
        RecordingDevice("b", (-24, -14, -6, -2, 0, 0, 2, 5, 2, -8), 1.5, -58, -1, -34, 1.8),
        RecordingDevice("c", (-18, -10, -4, 0, 1, 0, -2, 2, 5, -4), 1.5, -56, -2, -36, 2.0),
        RecordingDevice("s1", (-20, -9, -2, 3, 2, 0, -3, -4, -8, -16), 2.0, -55, -3, -32, 2.0),
        RecordingDevice("s2", (-30, -20, -12, -5, -1, 1, 4, 6, 3, -6), 2.0, -54, 1, -36, 2.5),
        RecordingDevice("s3", (-14, -6, -2, 0, 3, 2, -1, -5, -3, -10), 2.0, -57, -1, -38, 2.0),
        RecordingDevice("s4", (-36, -26, -16, -8, -2, 3, 8, 6, -6, -24), 3.0, -50, 0, -38, 3.0),
        RecordingDevice("s5", (-10, 0, 6, 8, 3, -2, -7, -12, -18, -30), 3.0, -50, -2, -36, 2.5),
        RecordingDevice("s6", (-30, -22, -10, 2, 8, 0, -8, 2, 8, -12), 4.0, -48, 2, -42, 4.0),
    )
}
TRAINING_DEVICES = ("a", "b", "c", "s1", "s2", "s3")
UNSEEN_DEVICES = ("s4", "s5", "s6")
