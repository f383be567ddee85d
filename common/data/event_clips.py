"""Write the built-in Task 4 data: DESED and MAESTRO Real in small, procedural, for the real loaders.

Flow: plan (event_plan.py) → events (sound_events.py) → room, background, microphone → **files, tables**.
Run:  python -m common.data.soundscapes task4_sed OUT

Synthetic clips are clean and almost dry. Those of the real kind have loud backgrounds, more reverberation, sounds
without a label and the colour of a microphone: a network trained on the first kind alone does worse on them, so
that real clips, labelled weakly or not at all, have something to give.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from common.data import synth
from common.data.acoustic_scenes import backdrop
from common.data.event_plan import (
    SUBSETS,
    Clip,
    EventOptions,
    LongRecording,
    PlannedEvent,
    plan_clips,
    plan_recordings,
    soft_labels,
)
from common.data.generation import claim, finish, is_whole, locked, work, write_table, write_wav
from common.data.sound_events import EVENTS, unlabelled
from common.data.synth import add_at, gain, name_rng
from common.progress import progress as progress_bar

VERSION = 1  # raise it whenever the same options give other bytes
SAMPLE_RATE = 16000
_BITS = 16
_N_MICROPHONES = 4  # of each pool
_EXCLUDED = ("audioset_strong", "weak", "unlabeled")
_PARTS = ("audio", "dcase_synth", "eval", "maestro_real", "metadata", "resources")


def make_event_dataset(
    root: str | Path,
    seed: int = 0,
    n_processes: int | None = None,
    progress: bool = True,
    **sizes: int,
) -> dict:
    """Write a data set in the layout of DESED and MAESTRO Real, or what is missing of it.

    Args:
        root: folder; new, empty, or of an earlier call with the same options.
        seed, sizes: see EventOptions.
        n_processes: default: one for each core.
    Returns:
        the content of `root`/dataset.json.
    Raises:
        ValueError: options that do not fit together, or a folder that holds other data.
    """
    root, options = Path(root), EventOptions(seed, **sizes)
    generator = f"common.data.soundscapes task4_sed, version {VERSION}"
    card = {"name": "built-in data", "generator": generator, **asdict(options)}
    members = [*plan_clips(options), *plan_recordings(options)]
    folders = sorted({str(Path(member.path).parent) for member in members})
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        claim(root, card, _PARTS)
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
        jobs = [(root, options, member) for member in members if not _is_done(root, member)]
        with progress_bar(total=len(jobs), desc=card["name"], unit="clip", disable=not (progress and jobs)) as bar:
            for n_done in work(render_file, jobs, n_processes):
                bar.update(n_done)
        card["counts"] = _write_tables(root, options, members)
        card["note"] = "Procedural sounds and annotators; scores are not comparable with published ones."
        finish(root, card, folders)
    return card


def render_file(root: Path, options: EventOptions, member: Clip | LongRecording) -> int:
    """Write one clip or recording; return 1."""
    waveform = render_clip(options, member) if isinstance(member, Clip) else render_recording(options, member)
    write_wav(root / member.path, waveform, SAMPLE_RATE, _BITS)
    return 1


def _is_done(root: Path, member: Clip | LongRecording) -> bool:
    return is_whole(root / member.path, round(member.duration_s * SAMPLE_RATE), _BITS)


# ---------------------------------------------------------------- sound


@dataclass(frozen=True)
class _Domain:
    """Ranges from which a clip's surroundings are drawn: reverberation (s; dB of the direct sound), own sounds."""

    t60_s: tuple[float, float]
    wet_db: tuple[float, float]
    n_unlabelled: int


_CLEAN = _Domain((0.1, 0.25), (-18.0, -10.0), 0)
_REAL = _Domain((0.3, 0.9), (-6.0, 2.0), 2)
_OUTSIDE = _Domain((0.1, 0.6), (-14.0, -4.0), 0)


def render_clip(options: EventOptions, clip: Clip) -> np.ndarray:
    """Return one clip (T,) at 16 kHz, ±1."""
    subset = SUBSETS[clip.subset]
    names = options.seed, clip.subset, clip.number
    domain = _REAL if subset.real else _CLEAN
    sound = _mixed(options, clip.events, clip.duration_s, subset.pool, domain, names)
    if subset.real:
        sound = _through_microphone(sound, options, subset.pool, name_rng("microphone of", *names))
    return _at_level(sound, clip.duration_s, name_rng("level", *names).uniform(-36, -22))


def render_recording(options: EventOptions, recording: LongRecording) -> np.ndarray:
    """Return one long recording (T,) at 16 kHz, ±1."""
    names = options.seed, recording.name
    pool = f"maestro {recording.part}"
    sound = _mixed(options, recording.events, recording.duration_s, pool, _OUTSIDE, names)
    sound = _through_microphone(sound, options, pool, name_rng("microphone of", *names))
    return _at_level(sound, recording.duration_s, name_rng("level", *names).uniform(-34, -24))


def _mixed(
    options: EventOptions, events: Iterable[PlannedEvent], duration_s: float, pool: str, domain: _Domain, names: tuple
) -> np.ndarray:
    """Return background and events in their room (T,) at the rate of the sound blocks."""
    now = name_rng("mix", *names)
    layer = np.zeros(round(duration_s * synth.SAMPLE_RATE))
    for index, event in enumerate(events):
        source = name_rng("source", options.seed, pool, event.label, event.source)
        first, last = (round(t * synth.SAMPLE_RATE) for t in (event.onset_s, event.offset_s))
        sound = EVENTS[event.label].render(source, name_rng("event", *names, index), last - first)
        add_at(layer, gain(event.level_db) * sound, first)
    for _ in range(now.integers(domain.n_unlabelled + 1)):
        add_at(layer, gain(now.uniform(0, 8)) * unlabelled(now), int(now.uniform(0, len(layer))))
    layer = synth.reverberate(now, layer, now.uniform(*domain.t60_s), now.uniform(*domain.wet_db))
    place = name_rng("place", options.seed, pool, now.integers(_N_MICROPHONES))
    return layer + backdrop(place, now, len(layer))


def _through_microphone(sound: np.ndarray, options: EventOptions, pool: str, rng: np.random.Generator) -> np.ndarray:
    """Return `sound` (T,) with the response of one of the pool's microphones: uneven, narrow at both ends."""
    response = name_rng("microphone", options.seed, pool, rng.integers(_N_MICROPHONES))
    curve_hz = 62.5 * 2.0 ** np.arange(0, 7.5, 0.5)
    curve_db = response.normal(0, 2.5, len(curve_hz)) + response.uniform(-2, 2) * np.log2(curve_hz / 1000)
    low_hz, high_hz = response.uniform(60, 250), response.uniform(4500, 8000)
    curve_db -= 12 * np.maximum(np.log2(low_hz / curve_hz), 0) + 24 * np.maximum(np.log2(curve_hz / high_hz), 0)
    return synth.filter_by_curve(sound, curve_hz, curve_db)


def _at_level(sound: np.ndarray, duration_s: float, level_db: float) -> np.ndarray:
    """Return `sound` (T,) at 16 kHz and a level in dBFS, lower where its peaks would not fit."""
    sound = resample_poly(sound, 160, 441)[: round(duration_s * SAMPLE_RATE)]
    sound = synth.unit_rms(sound) * gain(level_db)
    return sound * min(1.0, 0.98 / np.abs(sound).max())


# ---------------------------------------------------------------- tables


def _write_tables(root: Path, options: EventOptions, members: list[Clip | LongRecording]) -> dict:
    """Write all tables; return how many clips or recordings, and events, each set has."""
    counts = {}
    for name, subset in SUBSETS.items():
        clips = [clip for clip in members if isinstance(clip, Clip) and clip.subset == name]
        header, rows = _labels(subset.labels, clips)
        write_table(root / subset.table, header, rows)
        if subset.durations:
            durations = [(clip.filename, f"{clip.duration_s:g}") for clip in clips]
            write_table(root / subset.durations, ("filename", "duration"), durations)
        counts[name] = len(clips)
    for part, column in (("train", "train"), ("validation", "val")):
        recordings = [r for r in members if isinstance(r, LongRecording) and r.part == part]
        write_table(root / f"metadata/{part}_split.csv", (column,), [(f"{r.name}.txt",) for r in recordings])
        for recording in recordings:
            labels = [(f"{a:.1f}", f"{b:.1f}", label, str(c)) for a, b, label, c in soft_labels(options, recording)]
            write_table(root / recording.label_path, None, labels)
        counts[f"maestro_{part}"] = len(recordings)
        if part == "validation":
            durations = [(Path(r.path).name, f"{r.duration_s:g}") for r in recordings]
            write_table(root / "metadata/maestro_real_durations.tsv", ("filename", "duration"), durations)
    for name in _EXCLUDED:  # lists of clips that another set has too; here it has none
        write_table(root / f"resources/{name}_exclude.tsv", ("filename",), [("none.wav",)])
    return counts


def _labels(kind: str, clips: list[Clip]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows; a clip without events has a row of empty cells, as in the real tables."""
    if kind == "none":
        return ("filename",), [(clip.filename,) for clip in clips]
    if kind == "weak":
        tags = [(clip.filename, ",".join(sorted({event.label for event in clip.events}))) for clip in clips]
        return ("filename", "event_labels"), tags
    rows = []
    for clip in clips:
        rows += [(clip.filename, f"{e.onset_s:.3f}", f"{e.offset_s:.3f}", e.label) for e in clip.events]
        rows += [] if clip.events else [(clip.filename, "", "", "")]
    return ("filename", "onset", "offset", "event_label"), rows
