"""Procedural sound events for the built-in Task 4 data: ten of homes, ten of public places.

Flow: sound blocks (synth.py) → **events** → clips (event_clips.py).

An event takes two generators: `source` (the same whenever the same dog barks: its pitch) and `now` (this
time: how often, how it rises and falls), and fills exactly the samples it is given, from first to last: so its label
is known before it is rendered. Sustained sounds have an RMS of 1, others an RMS of 1 over their loudest 50 ms.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.data import acoustic_scenes, synth
from common.data.synth import SAMPLE_RATE, add_at, gain

Rng = np.random.Generator
_FADE_S = 0.01


# ---------------------------------------------------------------- building blocks


def faded(sound: np.ndarray, fade_s: float = _FADE_S) -> np.ndarray:
    """Return a sound (T,) that rises at its start and falls at its end within `fade_s`."""
    n_samples = min(int(fade_s * SAMPLE_RATE), len(sound) // 2)
    ramp = np.ones(len(sound))
    ramp[:n_samples] = np.linspace(0, 1, n_samples, endpoint=False)
    return sound * ramp * ramp[::-1]


def in_turn(n_samples: int, period_s: float, gap_share: float, one: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return sounds (T,) that follow each other with gaps; the last one ends where the layer ends.

    Args:
        period_s: about how long a sound and its gap last; gap_share: share of the gap in it.
        one: returns the sound of a given number of samples, or less.
    """
    layer, n_turns = np.zeros(n_samples), max(1, round(n_samples / SAMPLE_RATE / period_s))
    length = n_samples / (n_turns - gap_share)
    for turn in range(n_turns):
        start = round(turn * length)
        sound = one(min(round(length * (1 - gap_share)), n_samples - start))
        add_at(layer, sound, start)
    return layer


def strokes(now: Rng, n_samples: int, rate_hz: float, one: Callable[[], np.ndarray]) -> np.ndarray:
    """Return `rate_hz` short sounds a second (T,) at random; the first at the start, the last just before the end."""
    layer, sounds = np.zeros(n_samples), [one() for _ in range(max(2, round(rate_hz * n_samples / SAMPLE_RATE)))]
    starts = np.sort(now.uniform(0, 1, len(sounds)))
    starts[0], starts[-1] = 0.0, 1.0
    for start, sound in zip(starts, sounds):
        sound = sound[:n_samples]
        add_at(layer, sound, int(start * (n_samples - len(sound))))
    return layer


def buzz(now: Rng, pitch_hz: np.ndarray, peak_hz: float, octaves: float) -> np.ndarray:
    """Return a tone (T,), RMS 1, whose harmonics are strongest around `peak_hz`, within `octaves`."""
    harmonics_hz = float(np.mean(pitch_hz)) * np.arange(1, 120)
    amplitudes = np.exp(-((np.log2(harmonics_hz / peak_hz) / octaves) ** 2)) * (harmonics_hz < 9000)
    return synth.harmonic_tone(now, pitch_hz, amplitudes)


def sustained(sound: np.ndarray) -> np.ndarray:
    return faded(synth.unit_rms(sound), 0.03)


# ---------------------------------------------------------------- homes


def alarm_bell_ringing(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Beeps, two tones in turn, or a bell with a fast hammer."""
    kind, tone_hz, period_s = source.integers(3), source.uniform(900, 3200), source.uniform(0.12, 0.45)
    if kind == 2:
        hammer_s = source.uniform(0.05, 0.09)
        stroke = synth.knock(source, source.uniform(1800, 3200), 0.09, 1.0)
        return synth.unit_event(in_turn(n_samples, hammer_s, 0.0, lambda n: now.uniform(0.8, 1) * stroke))
    tones_hz = itertools.cycle((tone_hz, tone_hz * (0.75, 1.0)[kind]))

    def beep(n):
        return faded(synth.harmonic_tone(now, np.full(n, next(tones_hz)), (1.0, 0.1, 0.4, 0.0, 0.15)))

    return synth.unit_event(in_turn(n_samples, period_s, 0.4 if kind else 0.05, beep))


def blender(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """A fast motor that runs up and grinds: full harmonics and noise that rise and fall with the load."""
    time_s = np.arange(n_samples) / SAMPLE_RATE
    run_up = 1 - 0.5 * np.exp(-time_s / 0.15)
    pitch_hz = source.uniform(150, 260) * run_up * synth.slow_curve(now, n_samples, 3, 0.93, 1.05)
    motor = buzz(now, pitch_hz, source.uniform(700, 1500), 1.6)
    grind = synth.band_noise(now, n_samples, source.uniform(500, 1200), 6000)
    return sustained(motor + 0.7 * grind * synth.slow_curve(now, n_samples, 8, 0.3, 1.5))


def cat(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Meows: a voice that rises, stays and falls."""
    pitch_hz, peak_hz = source.uniform(450, 750), source.uniform(1200, 2000)

    def meow(n):
        shape = np.interp(np.linspace(0, 1, n), (0, 0.3, 0.6, 1), (0.7, 1.15, 1.05, now.uniform(0.65, 0.8)))
        return buzz(now, pitch_hz * shape * now.uniform(0.93, 1.07), peak_hz, 1.0) * np.hanning(n) ** 0.6

    return synth.unit_event(in_turn(n_samples, 0.9, 0.2, meow))


def dishes(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Plates and cutlery that touch: high ringing strokes at irregular times."""
    ring_hz = source.uniform(1800, 4200, 4)

    def stroke():
        return synth.knock(now, now.choice(ring_hz), now.uniform(0.02, 0.05), 0.9) * gain(now.uniform(-10, 0))

    return synth.unit_event(strokes(now, n_samples, now.uniform(4, 8), stroke))


def dog(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Barks: short rough voices that break off."""
    pitch_hz, rough = source.uniform(260, 560), source.uniform(0.3, 0.7)

    def bark(n):
        shape = np.interp(np.linspace(0, 1, n), (0, 0.25, 1), (0.9, 1.25, 0.7)) * now.uniform(0.93, 1.07)
        voice = buzz(now, pitch_hz * shape, 3 * pitch_hz, 1.2)
        voice += rough * synth.band_noise(now, n, 500, 3000)
        return voice * np.interp(np.linspace(0, 1, n), (0, 0.1, 0.5, 1), (0, 1, 0.7, 0))

    return synth.unit_event(in_turn(n_samples, source.uniform(0.32, 0.45), 0.45, bark))


def electric_shaver(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """A low steady buzz whose high harmonics are strongest, pressed more or less."""
    pitch_hz = source.uniform(85, 125) * synth.slow_curve(now, n_samples, 1.5, 0.98, 1.02)
    wobble = 1 + 0.25 * np.sin(2 * np.pi * source.uniform(5, 11) * np.arange(n_samples) / SAMPLE_RATE)
    sound = buzz(now, pitch_hz, source.uniform(2200, 3800), 0.7)
    return sustained(sound * wobble * synth.slow_curve(now, n_samples, 1.5, 0.7, 1.2))


def frying(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """A high hiss full of crackles."""
    hiss = synth.band_noise(now, n_samples, source.uniform(2500, 4000), 9000)
    pops = [synth.knock(source, hertz, 0.004, 0.2) for hertz in source.uniform(2500, 6500, 8)]
    rate_hz = source.uniform(25, 60)

    def crackle():
        return pops[now.integers(8)] * gain(now.uniform(-18, 8))

    return sustained(hiss * synth.slow_curve(now, n_samples, 6, 0.7, 1.2) + strokes(now, n_samples, rate_hz, crackle))


def running_water(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """A stream of the middle frequencies that flickers, and drops that sound upward."""
    flow = synth.band_noise(now, n_samples, source.uniform(250, 500), source.uniform(1500, 2800))
    lows_hz = source.uniform(450, 1500, 8)
    drops = [synth.sweep(source, (low_hz, 1.7 * low_hz), 0.035) for low_hz in lows_hz]

    def drop():
        return drops[now.integers(8)] * gain(now.uniform(-12, 3))

    flicker = synth.slow_curve(now, n_samples, 25, 0.5, 1.4)
    return sustained(flow * flicker + strokes(now, n_samples, source.uniform(15, 30), drop))


def speech(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """One grown-up talker without long pauses."""
    return _talking(now, n_samples, source.uniform(95, 230))


def vacuum_cleaner(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """A steady roar of low and middle frequencies over a hum, with a soft start."""
    peak_hz = source.uniform(180, 400)
    roar = synth.noise(now, n_samples, (40, peak_hz, 2000, 9000), (-25, 0, -14, -30))
    hum = buzz(now, np.full(n_samples, source.uniform(180, 330)), peak_hz, 1.2)
    start = np.minimum(1.0, 0.3 + np.arange(n_samples) / SAMPLE_RATE / 0.4)
    return sustained((roar + 0.8 * hum) * start * synth.slow_curve(now, n_samples, 0.8, 0.85, 1.15))


def _talking(now: Rng, n_samples: int, pitch_hz: float) -> np.ndarray:
    """Return syllables (T,) at 4 to 6 a second, almost without gaps."""

    def syllable(n):
        return synth.syllable(now, pitch_hz * now.uniform(0.85, 1.2), n / SAMPLE_RATE) * gain(now.uniform(-6, 0))

    return synth.unit_event(in_turn(n_samples, now.uniform(0.18, 0.25), 0.15, syllable))


# ---------------------------------------------------------------- public places


def people_talking(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Two grown-up talkers at once."""
    first, second = (_talking(now, n_samples, source.uniform(*span)) for span in ((95, 150), (170, 240)))
    return synth.unit_event(first + gain(now.uniform(-8, 0)) * second)


def children_voices(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Two high voices at once, calls among them."""
    first, second = (_talking(now, n_samples, source.uniform(290, 430)) for _ in range(2))

    def call():
        return synth.sweep(now, source.uniform(500, 900) * np.array((1.0, 1.4, 1.2)), now.uniform(0.2, 0.4), 0.6)

    return synth.unit_event(first + second + 0.8 * strokes(now, n_samples, 0.5, call))


def footsteps(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """One walker."""
    heel_hz, period_s = source.uniform(250, 1300), source.uniform(0.45, 0.6)
    toe = int(0.07 * SAMPLE_RATE)

    def step(n):
        sound = np.zeros(n)
        add_at(sound, synth.knock(now, heel_hz, 0.02, 0.1), 0)
        add_at(sound, 0.5 * synth.knock(now, heel_hz * 1.7, 0.015, 0.0), toe)
        return sound * now.uniform(0.7, 1.0)

    return synth.unit_event(in_turn(n_samples, period_s, 0.3, step))


def car(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """A car that passes: tyre hiss that swells and fades, and an engine whose pitch falls."""
    return _passing(now, n_samples, source.uniform(60, 110), source.uniform(900, 1600), engine=0.5)


def large_vehicle(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """A bus or lorry that passes: a slow rough engine, little hiss."""
    return _passing(now, n_samples, source.uniform(24, 40), source.uniform(250, 450), engine=1.6)


def _passing(now: Rng, n_samples: int, turn_hz: float, hiss_hz: float, engine: float) -> np.ndarray:
    duration_s = n_samples / SAMPLE_RATE
    distance = (np.arange(n_samples) / SAMPLE_RATE - duration_s * now.uniform(0.4, 0.6)) / (duration_s / 5)
    hiss = synth.band_noise(now, n_samples, hiss_hz / 2, hiss_hz * 2)
    hum = acoustic_scenes.engine(now, turn_hz * (1 - 0.08 * np.tanh(distance)), now.uniform(0.5, 0.9))
    return sustained((hiss + engine * hum) / (1 + distance**2))


def birds_singing(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Songs of one bird: groups of quick glides."""
    centre_hz, depth, turns = source.uniform(2200, 5500), source.uniform(0.1, 0.4), source.choice((-1, 1), 3)

    def note(n):
        hertz = centre_hz * (1 + depth * turns * now.uniform(0.4, 1.0, 3))
        return synth.sweep(now, hertz, n / SAMPLE_RATE) * gain(now.uniform(-6, 0))

    return synth.unit_event(in_turn(n_samples, source.uniform(0.12, 0.3), 0.4, note))


def wind_blowing(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Gusts of low noise."""
    wind = synth.band_noise(now, n_samples, 40, source.uniform(150, 350))
    return sustained(wind * synth.slow_curve(now, n_samples, 2.0, 0.4, 1.6))


def coffee_machine(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Steam and the buzz of a pump."""
    steam = synth.band_noise(now, n_samples, source.uniform(3500, 5000), 9000)
    pump = buzz(now, np.full(n_samples, source.uniform(48, 52)), 250, 1.0)
    return sustained(steam + 0.8 * pump)


def announcement(source: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """One voice from a loudspeaker of narrow band."""
    voice = _talking(now, n_samples, source.uniform(160, 230))
    return synth.unit_event(synth.filter_by_curve(voice, (200, 500, 3500, 7000), (-25.0, 0.0, 0.0, -25.0)))


@dataclass(frozen=True)
class EventKind:
    """A class of sounds.

    Attributes:
        render: (source, now, n_samples) -> (T,).
        min_s, max_s: how long one event lasts.
        max_events: most events of the class in one clip.
    """

    render: Callable[[Rng, Rng, int], np.ndarray]
    min_s: float
    max_s: float
    max_events: int = 1


DESED_EVENTS = {
    "Alarm_bell_ringing": EventKind(alarm_bell_ringing, 1.0, 6.0),
    "Blender": EventKind(blender, 2.5, 9.0),
    "Cat": EventKind(cat, 0.5, 1.8, 3),
    "Dishes": EventKind(dishes, 0.3, 1.8, 4),
    "Dog": EventKind(dog, 0.3, 1.8, 4),
    "Electric_shaver_toothbrush": EventKind(electric_shaver, 3.0, 9.5),
    "Frying": EventKind(frying, 4.0, 10.0),
    "Running_water": EventKind(running_water, 2.5, 9.0),
    "Speech": EventKind(speech, 0.7, 3.5, 3),
    "Vacuum_cleaner": EventKind(vacuum_cleaner, 4.0, 10.0),
}
MAESTRO_EVENTS = {
    "cutlery and dishes": EventKind(dishes, 1.0, 6.0),
    "people talking": EventKind(people_talking, 4.0, 12.0),
    "children voices": EventKind(children_voices, 3.0, 8.0),
    "coffee machine": EventKind(coffee_machine, 3.0, 8.0),
    "footsteps": EventKind(footsteps, 3.0, 8.0),
    "large_vehicle": EventKind(large_vehicle, 5.0, 10.0),
    "car": EventKind(car, 4.0, 8.0),
    "announcement": EventKind(announcement, 3.0, 7.0),
    "wind_blowing": EventKind(wind_blowing, 5.0, 12.0),
    "birds_singing": EventKind(birds_singing, 2.0, 8.0),
}
EVENTS = DESED_EVENTS | MAESTRO_EVENTS


def unlabelled(now: Rng) -> np.ndarray:
    """Return a sound (T,) of half a second to two that belongs to no class: knocks on wood, or a chime."""
    if now.uniform() < 0.5:
        hertz = now.uniform(120, 300)
        n_samples = int(now.uniform(0.5, 1.5) * SAMPLE_RATE)
        return in_turn(n_samples, 0.25, 0.3, lambda n: synth.knock(now, hertz, 0.03, 0.2)[:n])
    first_hz, chime = now.uniform(300, 700), np.zeros(int(1.6 * SAMPLE_RATE))
    for turn, ratio in enumerate((1.0, 0.8, 0.67)):
        tone_hz = first_hz * ratio
        add_at(chime, synth.sweep(now, (tone_hz, tone_hz), 0.6, 0.05), int(0.4 * turn * SAMPLE_RATE))
    return chime
