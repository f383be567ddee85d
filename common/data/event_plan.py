"""What the built-in Task 4 data holds: clips, recordings, which sound when, and what annotators say about it.

Flow: options → **plan** → sounds and tables (event_clips.py).

Everything is drawn from the seed and names, so labels are known without rendering anything. Folders and tables
are those of DESED and MAESTRO Real in DCASE 2024 task 4.
"""

from dataclasses import dataclass

import numpy as np

from common.data.sound_events import DESED_EVENTS, EVENTS, EventKind
from common.data.synth import name_rng

CLIP_S = 10.0
_GAP_S = 0.3  # at least, between two events of one class
_SHORTEST_CLIP_S = 2.5


@dataclass(frozen=True)
class EventOptions:
    """How much to make.

    Args:
        seed: everything is drawn from it.
        n_synth, n_synth_val: clean clips with strong labels, to train and to choose checkpoints.
        n_strong, n_weak, n_unlabeled: clips of the real kind, to train.
        n_validation, n_public: clips of the real kind with strong labels, to score.
        n_maestro_train, n_maestro_validation: long recordings with soft labels.
    """

    seed: int = 0
    n_synth: int = 60
    n_synth_val: int = 24
    n_strong: int = 40
    n_weak: int = 40
    n_unlabeled: int = 80
    n_validation: int = 40
    n_public: int = 24
    n_maestro_train: int = 8
    n_maestro_validation: int = 4

    def __post_init__(self):
        for name, count in vars(self).items():
            least = 2 * len(SCENES) if name == "n_maestro_train" else 1
            if name != "seed" and count < least:
                raise ValueError(f"{name}={count}: at least {least} are needed.")


@dataclass(frozen=True)
class Subset:
    """One set of clips.

    Attributes:
        option: name of its size in EventOptions.
        pool: whose sources (dogs, talkers, microphones, ...) it hears; train and validation share none.
        real: whether its clips are of the real kind: noise, rooms, microphones, some shorter than 10 s.
        labels: "strong", "weak" or "none".
        audio, table, durations: paths in the data set; None = no such table.
        names: pattern of the file names.
        empty_every: every so manieth clip has no event; 0 = none.
    """

    option: str
    pool: str
    real: bool
    labels: str
    audio: str
    table: str
    durations: str | None
    names: str
    empty_every: int = 0


SUBSETS = {
    "synth_train": Subset(
        "n_synth", "synth train", False, "strong",
        "dcase_synth/audio/train/synthetic21_train/soundscapes_16k",
        "dcase_synth/metadata/train/synthetic21_train/soundscapes.tsv", None, "{:d}.wav", 30,
    ),
    "synth_val": Subset(
        "n_synth_val", "synth validation", False, "strong",
        "audio/validation/synthetic21_validation/soundscapes_16k",
        "dcase_synth/metadata/validation/synthetic21_validation/soundscapes.tsv",
        "dcase_synth/metadata/validation/synthetic21_validation/durations.tsv", "{:d}.wav",
    ),
    "strong_train": Subset(
        "n_strong", "real train", True, "strong", "audio/train/strong_label_real_16k",
        "metadata/train/audioset_strong.tsv", None, "Ystrong{:05d}_30.000_40.000.wav", 20,
    ),
    "weak": Subset(
        "n_weak", "real train", True, "weak", "audio/train/weak_16k", "metadata/train/weak.tsv", None,
        "Yweak{:05d}_30.000_40.000.wav",
    ),
    "unlabeled_train": Subset(
        "n_unlabeled", "real train", True, "none", "audio/train/unlabel_in_domain_16k",
        "metadata/train/unlabel_in_domain.tsv", None, "Yunlabeled{:05d}_30.000_40.000.wav", 10,
    ),
    "devtest": Subset(
        "n_validation", "real validation", True, "strong", "audio/validation/validation_16k",
        "metadata/validation/validation.tsv", "metadata/validation/validation_durations.tsv",
        "Yvalidation{:05d}_30.000_40.000.wav", 20,
    ),
    "eval_public": Subset(
        "n_public", "real public", True, "strong", "eval/desed_public_eval/audio/eval/public_16k",
        "eval/desed_public_eval/metadata/eval/public.tsv",
        "eval/desed_public_eval/metadata/eval/public_durations.tsv", "public{:05d}_30_40.wav",
    ),
}  # fmt: skip

MAESTRO_AUDIO, MAESTRO_LABELS = "maestro_real/development_audio", "maestro_real/development_annotation"
# scene → label → how often it begins in a minute
SCENES = {
    "cafe_restaurant": {
        "cutlery and dishes": 5.0,
        "people talking": 2.5,
        "children voices": 1.5,
        "coffee machine": 2.0,
        "footsteps": 2.0,
        "announcement": 1.0,
    },
    "residential_area": {
        "birds_singing": 4.0,
        "car": 3.0,
        "large_vehicle": 1.5,
        "wind_blowing": 2.0,
        "footsteps": 2.0,
        "children voices": 1.5,
        "people talking": 1.0,
    },
}
_N_ANNOTATORS = 5


# ---------------------------------------------------------------- clips


@dataclass(frozen=True)
class PlannedEvent:
    """One sound in a clip or recording; times in s, `level_db` over the background."""

    label: str
    onset_s: float
    offset_s: float
    level_db: float
    source: int


@dataclass(frozen=True)
class Clip:
    """One clip of a subset."""

    subset: str
    number: int
    duration_s: float
    events: tuple[PlannedEvent, ...]

    @property
    def filename(self) -> str:
        return SUBSETS[self.subset].names.format(self.number)

    @property
    def path(self) -> str:
        return f"{SUBSETS[self.subset].audio}/{self.filename}"


def plan_clips(options: EventOptions) -> list[Clip]:
    """Return all clips, subset after subset."""
    return [
        plan_clip(options, name, number)
        for name, subset in SUBSETS.items()
        for number in range(getattr(options, subset.option))
    ]


def plan_clip(options: EventOptions, name: str, number: int) -> Clip:
    """Return one clip of a subset; it does not depend on how many there are."""
    subset, rng = SUBSETS[name], name_rng("clip plan", options.seed, name, number)
    duration_s = CLIP_S
    if subset.real and rng.uniform() < 0.12:
        duration_s = round(rng.uniform(_SHORTEST_CLIP_S, CLIP_S - 0.05), 2)
    if subset.empty_every and number % subset.empty_every == subset.empty_every - 1:
        return Clip(name, number, duration_s, ())
    labels = list(DESED_EVENTS)
    first = labels[number % len(labels)]  # so that small sets hold every class
    others = [label for label in labels if label != first]
    n_others = rng.choice(3, p=(0.35, 0.4, 0.25))
    events = []
    for label in [first, *rng.permutation(others)[:n_others]]:
        level_db = rng.uniform(2, 14) if subset.real else rng.uniform(8, 20)
        source, n_events = int(rng.integers(_n_sources(subset.pool))), rng.integers(1, EVENTS[label].max_events + 1)
        spans = _spans(rng, EVENTS[label], n_events, duration_s)
        events += [PlannedEvent(str(label), *span, level_db, source) for span in spans]
    return Clip(name, number, duration_s, tuple(sorted(events, key=lambda e: (e.onset_s, e.label))))


def _n_sources(pool: str) -> int:
    return 8 if pool == "real train" else 5


def _spans(rng: np.random.Generator, kind: EventKind, n_events: int, clip_s: float) -> list[tuple[float, float]]:
    """Return onsets and offsets of events of one class, in whole ms, with gaps between them."""
    lengths = list(np.minimum(rng.uniform(kind.min_s, kind.max_s, n_events), clip_s).round(3))
    while len(lengths) > 1 and sum(lengths) + _GAP_S * (len(lengths) - 1) > clip_s:
        lengths.pop()
    free_s = clip_s - sum(lengths) - _GAP_S * (len(lengths) - 1)
    spans, passed_s = [], 0.0
    for wait_s, length_s in zip(np.sort(rng.uniform(0, max(free_s, 0.0), len(lengths))), lengths):
        onset_s = round(wait_s + passed_s, 3)
        spans.append((onset_s, round(min(onset_s + length_s, clip_s), 3)))
        passed_s += length_s + _GAP_S
    return spans


# ---------------------------------------------------------------- long recordings


@dataclass(frozen=True)
class LongRecording:
    """One recording of a public place."""

    part: str  # train or validation
    scene: str
    number: int
    duration_s: float
    events: tuple[PlannedEvent, ...]

    @property
    def name(self) -> str:
        return f"{self.scene}_{self.number:02d}"

    @property
    def path(self) -> str:
        return f"{MAESTRO_AUDIO}/{self.scene}/{self.name}.wav"

    @property
    def label_path(self) -> str:
        return f"{MAESTRO_LABELS}/soft_labels_{self.scene}/{self.name}.txt"


def plan_recordings(options: EventOptions) -> list[LongRecording]:
    """Return the long recordings, scene by scene in turn; those of validation have the higher numbers."""
    recordings = []
    for part, n_recordings in (("train", options.n_maestro_train), ("validation", options.n_maestro_validation)):
        for index in range(n_recordings):
            scene = list(SCENES)[index % len(SCENES)]
            number = index // len(SCENES) + (options.n_maestro_train if part == "validation" else 0)
            recordings.append(plan_recording(options, part, scene, number))
    return recordings


def plan_recording(options: EventOptions, part: str, scene: str, number: int) -> LongRecording:
    rng = name_rng("recording plan", options.seed, part, scene, number)
    duration_s = round(rng.uniform(28, 50), 1)
    events = []
    for label, per_minute in SCENES[scene].items():
        kind, now_s = EVENTS[label], rng.exponential(30 / per_minute)
        while now_s < duration_s - kind.min_s:
            offset_s = min(now_s + rng.uniform(kind.min_s, kind.max_s), duration_s)
            level_db, source = rng.uniform(0, 14), int(rng.integers(_n_sources(part)))
            events.append(PlannedEvent(label, round(now_s, 3), round(offset_s, 3), level_db, source))
            now_s = offset_s + 1.0 + rng.exponential(60 / per_minute - (kind.min_s + kind.max_s) / 4)
    return LongRecording(part, scene, number, duration_s, tuple(sorted(events, key=lambda e: (e.onset_s, e.label))))


def soft_labels(options: EventOptions, recording: LongRecording) -> list[tuple[float, float, str, float]]:
    """Return (onset, offset, label, confidence) for each second in which any annotator hears the label.

    Confidence is the share of five annotators, weighted by how reliable they are, with what they say spread a
    little over the neighbouring seconds, as opinions on overlapping segments are.
    """
    rng = name_rng("annotators", options.seed, recording.name)
    reliability = rng.uniform(0.75, 1.0, _N_ANNOTATORS)
    n_seconds, rows = int(np.ceil(recording.duration_s)), []
    for label in SCENES[recording.scene]:
        heard = np.zeros((_N_ANNOTATORS, n_seconds))
        for event in (e for e in recording.events if e.label == label):
            noticed = rng.uniform(size=_N_ANNOTATORS) < reliability * np.interp(event.level_db, (0, 8), (0.75, 1.0))
            first = np.floor(event.onset_s + rng.normal(0, 0.3, _N_ANNOTATORS)).clip(0).astype(int)
            last = np.ceil(event.offset_s + rng.normal(0, 0.3, _N_ANNOTATORS)).astype(int)
            for annotator in np.flatnonzero(noticed):
                heard[annotator, first[annotator] : last[annotator]] = 1
        if rng.uniform() < 0.3:  # somebody hears what is not there
            start = rng.integers(n_seconds - 3)
            heard[rng.integers(_N_ANNOTATORS), start : start + 3] = 1
        share = np.convolve(reliability @ heard / reliability.sum(), (0.1, 0.8, 0.1), mode="same")
        rows += [
            (float(t), min(t + 1.0, recording.duration_s), label, round(float(share[t]), 4))
            for t in np.flatnonzero(share > 0.02)
        ]
    return sorted(rows)
