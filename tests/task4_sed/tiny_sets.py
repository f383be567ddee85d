"""A data folder in the layout of the challenge with all training and validation sets, small enough to train on."""

from pathlib import Path

import numpy as np
import soundfile

from tests.task4_sed.conftest import RATE, write_table

CLIP_S = 1.0
TRAIN = "dcase_synth/audio/train/synthetic21_train/soundscapes_16k"
VALIDATION = "audio/validation/synthetic21_validation/soundscapes_16k"
# What clips start with.
LEVELS = {"synth": 0.1, "strong": 0.2, "weak": 0.3, "unlabeled": 0.4, "val": 0.5, "maestro": 0.6}


def write_sets(root: Path, duration_s: float = CLIP_S, n_clips: int = 6) -> Path:
    """Write `n_clips` clips of each set, and MAESTRO's crops of four recordings of one scene.

    Clip i of a set begins with 0.1 s of the level of its set + i / 1000, and goes on with a tone and noise.
    """
    rng, classes = np.random.default_rng(0), ("Dog", "Cat", "Speech")
    folders = {
        "synth": TRAIN,
        "strong": "audio/train/strong_label_real_16k",
        "weak": "audio/train/weak_16k",
        "unlabeled": "audio/train/unlabel_in_domain_16k",
        "val": VALIDATION,
    }
    events = {name: [] for name in folders}
    for name, folder in folders.items():
        for i in range(n_clips):
            label = classes[i % 3]
            write_clip(root / folder / f"{name}{i}.wav", LEVELS[name] + i / 1000, duration_s, 300 * (1 + i % 3), rng)
            events[name].append((f"{name}{i}.wav", 0.2, duration_s, label))
    strong = "filename onset offset event_label"
    write_table(root / "dcase_synth/metadata/train/synthetic21_train/soundscapes.tsv", strong, events["synth"])
    validation = root / "dcase_synth/metadata/validation/synthetic21_validation"
    write_table(validation / "soundscapes.tsv", strong, events["val"])
    write_table(validation / "durations.tsv", "filename duration", [(row[0], duration_s) for row in events["val"]])
    empty = ("strong_empty.wav", "", "", "")
    write_table(root / "metadata/train/audioset_strong.tsv", strong, [*events["strong"], empty])
    write_clip(root / folders["strong"] / "strong_empty.wav", 0.9, duration_s, 100, rng)
    write_table(root / "metadata/train/weak.tsv", "filename event_labels", [(row[0], row[3]) for row in events["weak"]])
    write_maestro(root, duration_s, rng)
    return root


def write_maestro(root: Path, duration_s: float, rng: np.random.Generator) -> None:
    rows = []
    for recording in range(4):
        for crop in range(3):
            name = f"city_center_{recording:02}-{crop * 100:06d}-{crop * 100 + 1000:06d}.wav"
            level = LEVELS["maestro"] + (3 * recording + crop) / 1000
            write_clip(root / "audio/maestro_real_train_16k" / name, level, duration_s, 700, rng)
            rows += [(name, 0, 1, "car", 0.8), (name, 1, 2, "people talking", 0.3)]
    write_table(root / "metadata/maestro_real_train.tsv", "filename onset offset event_label confidence", rows)


def write_clip(path: Path, level: float, duration_s: float, tone_hz: float, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(round(duration_s * RATE)) / RATE
    samples = 0.1 * np.sin(2 * np.pi * tone_hz * time_s) + 0.01 * rng.standard_normal(len(time_s))
    samples[: RATE // 10] = level
    soundfile.write(path, samples, RATE, subtype="PCM_24")
