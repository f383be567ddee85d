"""Small data folders with tables alone, and prediction files that find their events."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.files import write_json
from task4_sed.labels import FrameGrid, sound_classes
from task4_sed.predictions import write_predictions
from tests.task4_sed.conftest import write_table

GRID, CLASSES = FrameGrid(), sound_classes().names
FOUND, ABSENT = 6.0, -6.0  # logits
DEVTEST = {
    "a": [(0.0, 2.5, "Dog"), (4.0, 9.0, "Speech")],
    "b": [(1.0, 6.0, "Cat")],
    "c": [(3.0, 5.0, "Dog"), (6.0, 8.0, "Cat")],
    "d": [(2.0, 7.0, "Speech")],
    "e": [],
}
SYNTH_VAL = {f"{n}": [(float(n), n + 3.0, ("Dog", "Cat", "Speech")[n % 3])] for n in range(6)}
MAESTRO = {  # crops of 10 s of three recordings, 5 s apart; times within the crop
    f"{name}-{5 * k:04d}00-{5 * k + 10:04d}00": [(2.0, 4.0, "car"), (5.0 + k, 7.0 + k, "footsteps")]
    for name in ("cafe_restaurant_00", "city_center_01", "city_center_02")
    for k in range(2)
}
TABLES = {
    "devtest": ("metadata/validation/validation.tsv", "metadata/validation/validation_durations.tsv", DEVTEST),
    "synth_val": (
        "dcase_synth/metadata/validation/synthetic21_validation/soundscapes.tsv",
        "dcase_synth/metadata/validation/synthetic21_validation/durations.tsv",
        SYNTH_VAL,
    ),
}


def write_data(root: Path, name: str = "little scenes") -> Path:
    """Write the label tables of devtest, synth_val and MAESTRO's validation, and the name of the data set."""
    for table, durations, clips in TABLES.values():
        rows = [(f"{clip}.wav", *event) for clip, events in clips.items() for event in events or [("", "", "")]]
        write_table(root / table, "filename onset offset event_label", rows)
        write_table(root / durations, "filename duration", [(f"{clip}.wav", 10.0) for clip in clips])
    rows = [(f"{crop}.wav", *event, 0.9) for crop, events in MAESTRO.items() for event in events]
    rows += [(f"{crop}.wav", 0.0, 1.0, "car", 0.3) for crop in MAESTRO]  # not sure enough: no event
    write_table(root / "metadata/maestro_real_validation.tsv", "filename onset offset event_label confidence", rows)
    write_json(root / "dataset.json", {"name": name})
    return root


def logits_of(clips: Mapping[str, list], share: float = 1.0) -> np.ndarray:
    """Return logits (clips, 156, 27): FOUND in each event, of which only the first `share` is found."""
    logits = np.full((len(clips), GRID.n_frames, len(CLASSES)), ABSENT, np.float32)
    for row, events in enumerate(clips.values()):
        for onset, offset, label in events:
            first, last = GRID.span(np.array([onset]), np.array([onset + share * (offset - onset)]))
            logits[row, int(first[0]) : int(last[0]), CLASSES.index(label)] = FOUND
    return logits


def write_run(folder: Path, share: float = 1.0, noise: float = 0.0, seed: int = 0, **about) -> Path:
    """Write RUN/predictions of all three sets; `noise`: standard deviation added to the logits."""
    rng = np.random.default_rng(seed)
    about = {"recipe": "little/one", "seed": seed, "complexity": {"parameters": 10, "macs": 1000}} | about
    for name, clips in {"devtest": DEVTEST, "synth_val": SYNTH_VAL, "maestro_real_dev": MAESTRO}.items():
        logits = logits_of(clips, share)
        logits += noise * rng.standard_normal(logits.shape, dtype=np.float32)
        own = {"identity": f"{folder.name}{share}{noise}{seed}{name}", "set": name}
        write_predictions(folder / "predictions" / f"{name}.hdf5", list(clips), [logits], own | about)
    return folder
