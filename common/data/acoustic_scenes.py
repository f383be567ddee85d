"""Ten procedural acoustic scenes for the built-in Task 1 data.

Flow: sound blocks (synth.py) → **scenes** → recording devices → files (soundscapes.py).

A scene takes two generators: `place` (the same for every recording at one location: how large the hall is,
how fast the engine turns) and `now` (this recording: who passes when, how loud). All scenes stand on one
kind of `backdrop`, and `recolour` gives every recording an own spectral tilt and level: the mean spectrum
says little about the class; rhythm, glides, harmonics and reverberation say more. Scenes share elements, as
real ones do: voices are in seven of them, vehicles, steps, squeals and loudspeakers in two each.
"""

from collections.abc import Callable

import numpy as np

from common.data import synth
from common.data.synth import SAMPLE_RATE, add_at, gain

Rng = np.random.Generator
_LEAD_S = 0.3  # rendered before the recording and cut off: sounds are already going on when it starts


def backdrop(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Return the noise (T,), RMS 1, that every scene has, of a colour that belongs to the location."""
    tilt_db, bump_hz = place.uniform(-7.0, -2.0), place.uniform(150, 3000)
    curve_hz = np.array([40.0, 100.0, 200.0, 400.0, 800.0, 1600.0, 3200.0, 6400.0, 12800.0])
    curve_db = tilt_db * np.log2(curve_hz / 400.0) + 8.0 * np.exp(-(np.log2(curve_hz / bump_hz) ** 2))
    return synth.noise(now, n_samples, curve_hz, curve_db) * synth.slow_curve(now, n_samples, 2.0, 0.7, 1.3)


def voices(now: Rng, n_samples: int, n_talkers: int, pause: float = 0.25) -> np.ndarray:
    """Return several people who talk at once (T,)."""
    layer = np.zeros(n_samples)
    for _ in range(n_talkers):
        pitch_hz = now.choice((115.0, 210.0)) * now.uniform(0.85, 1.2)
        layer += gain(now.uniform(-9, 0)) * synth.speech(now, n_samples, pitch_hz, pause)
    return layer


def engine(now: Rng, turn_hz: np.ndarray, darkness: float) -> np.ndarray:
    """Return a rough harmonic hum (T,), RMS 1, of an engine that turns at `turn_hz` (T,)."""
    return synth.harmonic_tone(now, turn_hz, np.arange(1, 60) ** -darkness * now.uniform(0.2, 1.0, 59))


def announcement(now: Rng, n_samples: int) -> np.ndarray:
    """Return one loudspeaker voice (T,): a speaker of narrow band, steady, without pauses."""
    voice = synth.speech(now, n_samples, now.uniform(160, 240), pause=0.05)
    return synth.filter_by_curve(voice, (200, 500, 3500, 7000), (-25.0, 0.0, 0.0, -25.0))


def passing(now: Rng, n_samples: int, rate_hz: float, min_width_s: float, max_width_s: float) -> np.ndarray:
    """Return the level curve (T,) of things that pass by, at least one: the nearest counts."""
    duration_s = n_samples / SAMPLE_RATE
    return np.max(
        [
            synth.swell(n_samples, now.uniform(0, duration_s), now.uniform(min_width_s, max_width_s))
            for _ in range(1 + now.poisson(rate_hz * max(duration_s - 2, 0)))
        ],
        axis=0,
    )


def airport(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Suitcases that roll over floor joints, chimes, voices in a large hall."""
    t60_s, joint_hz = place.uniform(1.6, 2.8), place.uniform(11, 17)
    layer = gain(now.uniform(-14, -5)) * voices(now, n_samples, 3)
    rolling, joint_tone_hz = np.zeros(n_samples), now.uniform(300, 2000)
    for start in synth.steady_starts(now, n_samples, 1 / (joint_hz * now.uniform(0.85, 1.15)), 0.06):
        add_at(rolling, synth.knock(now, joint_tone_hz, 0.012, 0.2), start)
    rolling += 0.25 * synth.band_noise(now, n_samples, 300, now.uniform(2500, 5000))
    layer += gain(now.uniform(1, 8)) * rolling * passing(now, n_samples, 0.5, 0.5, 1.5)
    if now.uniform() < 0.5:
        first_hz = now.uniform(450, 900)
        for index, start in enumerate(synth.steady_starts(now, n_samples, now.uniform(0.35, 0.5), 0.0)):
            tone_hz = first_hz * (1.0, 0.8, 0.67, 0.53)[index % 4]
            add_at(layer, gain(3) * synth.sweep(now, (tone_hz, tone_hz), 0.6), start)
    return synth.reverberate(now, layer, t60_s, 2.0)


def bus(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """A diesel engine whose turns rise and fall, and panels that rattle with it."""
    idle_hz = place.uniform(24, 42)
    turn_hz = idle_hz * synth.slow_curve(now, n_samples, 1.2, 0.8, 1.5)
    layer = gain(now.uniform(-3, 7)) * engine(now, turn_hz, now.uniform(0.3, 1.0))
    rattle_hz = now.uniform(700, 3000)
    bursts = np.zeros(n_samples)
    for start in synth.random_starts(now, n_samples, now.uniform(1, 4)):
        for beat in range(now.integers(3, 8)):
            shake = synth.knock(now, rattle_hz, 0.01, 0.4) * now.uniform(0.4, 1.0)
            add_at(bursts, shake, start + int(beat * SAMPLE_RATE / now.uniform(16, 22)))
    layer += gain(now.uniform(-6, 2)) * bursts
    if now.uniform() < 0.5:
        layer += gain(now.uniform(-10, -3)) * voices(now, n_samples, 1)
    return layer


def metro(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Double knocks of rail joints and the gliding whine of the traction in a tunnel."""
    joint_s, whine_hz = place.uniform(0.3, 0.55), place.uniform(350, 1100)
    layer = np.zeros(n_samples)
    knock_hz, axle_s = place.uniform(180, 420), place.uniform(0.07, 0.12)
    for start in synth.steady_starts(now, n_samples, joint_s * now.uniform(0.85, 1.2), 0.02):
        for axle in (0, 1):
            hit = synth.knock(now, knock_hz * now.uniform(0.8, 1.3), 0.03, 0.3)
            add_at(layer, hit, start + int(axle * axle_s * SAMPLE_RATE))
    layer *= gain(now.uniform(0, 9))
    glide_hz = whine_hz * 2 ** synth.slow_curve(now, n_samples, 0.8, -0.7, 0.7)
    layer += gain(now.uniform(-9, 1)) * synth.harmonic_tone(now, glide_hz, (1.0, 0.4, 0.6, 0.1, 0.2))
    if now.uniform() < 0.25:
        layer += gain(now.uniform(-3, 3)) * announcement(now, n_samples)
    return synth.reverberate(now, layer, 0.4, -6.0)


def metro_station(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Door beeps, braking squeals, announcements, voices and a far train in a long hard room."""
    t60_s, beep_hz, beep_s = place.uniform(1.2, 2.2), place.uniform(700, 2200), place.uniform(0.14, 0.24)
    layer = gain(now.uniform(-9, 0)) * voices(now, n_samples, 2)
    kinds = now.permutation(("beeps", "squeal", "announcement"))[: now.integers(1, 3)]
    if "beeps" in kinds:
        for start in synth.steady_starts(now, n_samples, beep_s, 0.0):
            add_at(layer, gain(2) * synth.sweep(now, (beep_hz, beep_hz), beep_s * 0.5, 0.3), start)
    if "squeal" in kinds:
        squeal_hz = now.uniform(1800, 5000) * synth.slow_curve(now, n_samples, 25, 0.98, 1.0)
        squeal = synth.harmonic_tone(now, squeal_hz, (1.0, 0.5))
        layer += gain(now.uniform(-6, 2)) * squeal * synth.slow_curve(now, n_samples, 3.0, 0.1, 1.0)
    if "announcement" in kinds:
        layer += gain(now.uniform(0, 6)) * announcement(now, n_samples)
    train = synth.band_noise(now, n_samples, 50, 300) * passing(now, n_samples, 0.2, 0.6, 1.5)
    return synth.reverberate(now, layer + gain(now.uniform(-8, 2)) * train, t60_s, 3.0)


def park(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Birds with the songs of the place, wind in gusts, few steps on gravel."""
    layer = np.zeros(n_samples)
    for _ in range(2):
        centre_hz, depth = place.uniform(1800, 5500), place.uniform(0.1, 0.5)
        note_s, gap_s = place.uniform(0.05, 0.12), place.uniform(0.07, 0.16)
        for start in synth.random_starts(now, n_samples, now.uniform(0.9, 2.5)):
            level, turns = gain(now.uniform(-2, 7)), now.choice((-1, 1), 3)
            for note in range(now.integers(2, 6)):
                chirp = synth.sweep(now, centre_hz * (1 + depth * turns * now.uniform(0.3, 1.0, 3)), note_s)
                add_at(layer, level * chirp, start + int(note * gap_s * SAMPLE_RATE))
    wind = synth.band_noise(now, n_samples, 60, now.uniform(400, 1500))
    layer += gain(now.uniform(-10, 2)) * wind * synth.slow_curve(now, n_samples, 3.0, 0.0, 1.6)
    if now.uniform() < 0.4:
        layer += gain(now.uniform(-8, 0)) * footsteps(now, n_samples, 1)
    return layer


def footsteps(now: Rng, n_samples: int, n_walkers: int) -> np.ndarray:
    """Return people who walk (T,): heel and toe at 1.6 to 2.3 steps a second, each at an own level."""
    layer = np.zeros(n_samples)
    toe_samples = int(0.07 * SAMPLE_RATE)
    for _ in range(n_walkers):
        heel_hz, level = now.uniform(250, 1800), gain(now.uniform(-8, 0))
        for start in synth.steady_starts(now, n_samples, 1 / now.uniform(1.6, 2.3), 0.02):
            add_at(layer, level * synth.knock(now, heel_hz, 0.02, 0.1), start)
            add_at(layer, 0.5 * level * synth.knock(now, heel_hz * 1.7, 0.015, 0.0), start + toe_samples)
    return layer


def public_square(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """A crowd in the open; bells that strike, wings of pigeons, a fountain."""
    bell_hz, splash_rate_hz = place.uniform(350, 1000), place.uniform(30, 70)
    layer = gain(now.uniform(-5, 3)) * voices(now, n_samples, 4)
    kinds = now.permutation(("bells", "wings", "fountain"))[: now.integers(1, 4)]
    if "bells" in kinds:
        for start in synth.steady_starts(now, n_samples, now.uniform(0.7, 1.1), 0.02):
            add_at(layer, gain(5) * synth.knock(now, bell_hz, 0.25, 1.0), start)
    if "wings" in kinds:
        flap_samples = int(SAMPLE_RATE / now.uniform(7, 10))
        for start in synth.random_starts(now, n_samples, 1.2):
            for beat in range(now.integers(4, 9)):
                flap = synth.knock(now, 900, 0.025, 0.0) * gain(now.uniform(-1, 5))
                add_at(layer, flap, start + beat * flap_samples)
    if "fountain" in kinds:
        level, lows_hz = gain(now.uniform(-6, 0)), now.uniform(600, 2500, 8)
        drops = [level * synth.sweep(now, (low_hz, low_hz * 1.5), 0.03) for low_hz in lows_hz]
        for start in synth.random_starts(now, n_samples, splash_rate_hz):
            add_at(layer, drops[now.integers(8)] * now.uniform(0.3, 1.0), start)
    return layer


def shopping_mall(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Background music with a beat and chords, voices, a moderate room."""
    t60_s, beat_s = place.uniform(0.7, 1.3), place.uniform(0.24, 0.36)
    root_hz = 55 * 2 ** (place.integers(24, 40) / 12)
    layer = gain(now.uniform(-12, -3)) * voices(now, n_samples, 3)
    music, time_s = np.zeros(n_samples), np.arange(int(1.2 * beat_s * SAMPLE_RATE)) / SAMPLE_RATE
    pluck = np.exp(-8 * time_s) * np.minimum(1.0, time_s / 0.008) * (1 - time_s / time_s[-1])
    for index, start in enumerate(synth.steady_starts(now, n_samples, beat_s, 0.0)):
        for step in now.choice((0, 2, 4, 7, 9, 12), 2, replace=False):
            pitch_hz = np.full(len(time_s), root_hz * 2 ** (step / 12))
            add_at(music, pluck * synth.harmonic_tone(now, pitch_hz, (1, 0.6, 0.4, 0.25, 0.15)), start)
        if index % 2:
            add_at(music, synth.knock(now, 6000, 0.02, 0.0), start)
    return synth.reverberate(now, layer + gain(now.uniform(1, 8)) * music, t60_s, -1.0)


def street_pedestrian(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Footsteps of several people and one or two near voices; a far vehicle at times."""
    layer = gain(now.uniform(3, 10)) * footsteps(now, n_samples, now.integers(2, 4))
    layer += gain(now.uniform(-6, 3)) * voices(now, n_samples, now.integers(1, 3), place.uniform(0.2, 0.5))
    if now.uniform() < 0.5:
        layer += gain(now.uniform(-9, -2)) * vehicle(now, n_samples)
    return layer


def vehicle(now: Rng, n_samples: int) -> np.ndarray:
    """Return a vehicle that passes (T,): tyre hiss and engine swell, and the engine's pitch falls."""
    centre_s, width_s = now.uniform(-0.2, n_samples / SAMPLE_RATE + 0.2), now.uniform(0.12, 0.5)
    near = synth.swell(n_samples, centre_s, width_s, -30.0)
    hiss = synth.band_noise(now, n_samples, now.uniform(300, 800), now.uniform(1500, 4000))
    dull = synth.band_noise(now, n_samples, 60, 400)
    approach = np.tanh((np.arange(n_samples) / SAMPLE_RATE - centre_s) / width_s)
    hum = engine(now, now.uniform(40, 110) * (1 - 0.08 * approach), now.uniform(0.5, 1.0))
    return near**2 * hiss + near * 0.6 * (dull + hum)


def street_traffic(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Vehicles that pass one after the other, a horn at times."""
    layer, rate_hz = np.zeros(n_samples), place.uniform(0.35, 0.8)
    for _ in range(1 + now.poisson(rate_hz * n_samples / SAMPLE_RATE)):
        layer += gain(now.uniform(0, 9)) * vehicle(now, n_samples)
    if now.uniform() < 0.3:
        tone_hz = np.full(int(now.uniform(0.2, 0.6) * SAMPLE_RATE), now.uniform(330, 450))
        horn = synth.harmonic_tone(now, tone_hz, 0.8 ** np.arange(12))
        add_at(layer, gain(now.uniform(0, 6)) * horn, now.integers(0, n_samples))
    return layer


def tram(place: Rng, now: Rng, n_samples: int) -> np.ndarray:
    """Electric hum that changes in steps, squealing curves, single slow clacks."""
    hum_hz, clack_s = place.uniform(90, 260), place.uniform(0.55, 0.9)
    time_s = np.arange(n_samples) / SAMPLE_RATE
    steps_hz = hum_hz * (1 + 0.06 * now.integers(-2, 3, int(3.5 * time_s[-1]) + 1))
    hum = synth.harmonic_tone(
        now, steps_hz[(3.5 * time_s).astype(int)], now.uniform(0.1, 1.0, 16) * np.arange(1, 17) ** -0.4
    )
    layer = gain(now.uniform(-4, 5)) * hum
    if now.uniform() < 0.6:
        squeal_hz = now.uniform(1500, 4500) * (1 + 0.03 * np.sin(2 * np.pi * now.uniform(5, 9) * time_s))
        squeal = synth.harmonic_tone(now, squeal_hz, (1.0, 0.4, 0.3))
        layer += gain(now.uniform(-8, 0)) * squeal * synth.slow_curve(now, n_samples, 2.5, 0.0, 1.0)
    for start in synth.steady_starts(now, n_samples, clack_s, 0.03):
        add_at(layer, gain(now.uniform(0, 8)) * synth.knock(now, now.uniform(200, 600), 0.03, 0.4), start)
    if now.uniform() < 0.3:
        layer += gain(now.uniform(-8, 0)) * voices(now, n_samples, 1)
    return layer


def recolour(now: Rng, sound: np.ndarray) -> np.ndarray:
    """Give a recording (T,) an own spectral tilt, two broad bumps or dips, a level of -38 to -22 dBFS."""
    curve_hz = 62.5 * 2.0 ** np.arange(0, 8.5, 0.5)
    curve_db = now.uniform(-2.5, 2.5) * np.log2(curve_hz / 1000)
    for _ in range(2):
        distance = np.log2(curve_hz / (62.5 * 2 ** now.uniform(0, 8)))
        curve_db += now.uniform(-9, 9) * np.exp(-(distance**2))
    return synth.unit_rms(synth.filter_by_curve(sound, curve_hz, curve_db)) * gain(now.uniform(-38, -22))


_SCENES = [airport, bus, metro, metro_station, park]
_SCENES += [public_square, shopping_mall, street_pedestrian, street_traffic, tram]
SCENES: dict[str, Callable[[Rng, Rng, int], np.ndarray]] = {scene.__name__: scene for scene in _SCENES}


def render_scene(scene: str, place: Rng, now: Rng, duration_s: float) -> np.ndarray:
    """Return a recording (T,) of a scene, as it sounds before any recording device.

    Args:
        scene: a name in SCENES.
        place: generator keyed by the location; now: generator keyed by the recording.
        duration_s: length in s; the recording is one continuous sound that the caller cuts into clips.
    """
    lead, n_samples = round(_LEAD_S * SAMPLE_RATE), round((_LEAD_S + duration_s) * SAMPLE_RATE)
    sound = backdrop(place, now, n_samples) + SCENES[scene](place, now, n_samples)
    return recolour(now, sound)[lead:]
