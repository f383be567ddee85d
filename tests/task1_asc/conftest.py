"""A small data set in the TAU layout, written clip by clip."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

SCENES = (
    "airport", "bus", "metro", "metro_station", "park", "public_square", "shopping_mall", "street_pedestrian",
    "street_traffic", "tram",
)  # fmt: skip
SAMPLE_RATE, DURATION_S = 44100, 0.25
SHORT_CLIPS = ("--data.format.clip_s=0.25", "--data.subset=100")


def write_table(path: Path, columns: str, rows: Sequence[Sequence[str]], separator: str = "\t") -> None:
    lines = [columns.split(), *rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(line) + "\n" for line in lines))


def write_clip(path: Path, waveform: np.ndarray, sample_rate: int = SAMPLE_RATE, subtype: str = "PCM_24") -> None:
    """Write an audio file by way of memory: on a path, soundfile waits for the disk after every file."""
    memory = io.BytesIO()
    soundfile.write(memory, waveform, sample_rate, subtype=subtype, format=path.suffix[1:])
    path.write_bytes(memory.getvalue())


def write_tau(
    root: Path,
    classes: Sequence[str] = SCENES,
    train_places: Sequence[str] = ("lyon-1", "lyon-2", "oslo-3", "oslo-4"),
    test_places: Sequence[str] = ("paris-5", "wien-6"),
    train_devices: Sequence[str] = ("a", "b", "s1"),
    test_devices: Sequence[str] = ("a", "s4"),
    ending: str = "wav",
) -> Path:
    """Write meta.csv, split_setup/split100.csv, split_setup/test.csv and a tone of 0.25 s in noise for each row."""
    rng, meta, lists = np.random.default_rng(0), [], {"split100": [], "test": []}
    (root / "audio").mkdir(parents=True)
    time_s = np.arange(round(DURATION_S * SAMPLE_RATE)) / SAMPLE_RATE
    parts = (("test", test_places, test_devices), ("split100", train_places, train_devices))
    for split, places, devices in parts:  # test first: the order of meta.csv is not the order of the lists
        for k, label in enumerate(classes):
            for place in places:
                for device in devices:
                    name = f"audio/{label}-{place}-{len(meta)}-0-{device}.{ending}"
                    clip = 0.1 * np.sin(2 * np.pi * 200 * (k + 1) * time_s) + 0.05 * rng.standard_normal(len(time_s))
                    write_clip(root / name, clip)
                    meta.append((name, label, place, device))
                    lists[split].append((name, label))
    write_table(root / "meta.csv", "filename scene_label identifier source_label", meta)
    for split, rows in lists.items():
        write_table(root / "split_setup" / f"{split}.csv", "filename scene_label", rows)
    return root


@pytest.fixture
def make_tau(tmp_path) -> Callable[..., Path]:
    """Write a data set into a new folder, with arguments of `write_tau`."""
    return lambda name="tau", **how: write_tau(tmp_path / name, **how)


@pytest.fixture
def tau(make_tau) -> Path:
    """10 classes; 120 training clips of devices a, b, s1 at four places, 40 test clips of a, s4 at two others."""
    return make_tau()
