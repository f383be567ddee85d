"""Which recordings the built-in Task 1 data holds: places, devices, training lists. Names only, no sound.

Flow: options → **plan** → sound of each recording → files (common/data/soundscapes.py).

Layout: TAU Urban Acoustic Scenes 2022 Mobile, as its `meta.csv` and the DCASE split lists give it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.data.acoustic_scenes import SCENES
from common.data.recording_devices import DEVICES, TRAINING_DEVICES
from common.data.synth import name_rng

CITIES = tuple("barcelona helsinki lisbon london lyon milan paris prague stockholm vienna".split())
TRAIN_LISTS = {"split5": 0.05, "split10": 0.1, "split25": 0.25, "split50": 0.5, "split100": 1.0}
_DEVICE_A_SHARE = 0.7
_PARALLEL_EVERY = 3  # in training, every third recording of another device runs beside one of device a
_RECORDINGS_PER_LOCATION = {"train": 2, "test": 1}


@dataclass(frozen=True)
class SceneOptions:
    """What determines the bytes of a Task 1 data set.

    Args:
        seed: another seed gives other places, recordings and file names.
        n_train, n_test: clips of 1 s in split100 and test, rounded to whole recordings and equal classes.
        n_snippets: clips cut from one recording on one device (10 in the real data set).
    """

    seed: int = 0
    n_train: int = 900
    n_test: int = 360
    n_snippets: int = 2

    def __post_init__(self):
        smallest = len(SCENES) * len(TRAINING_DEVICES) * self.n_snippets
        if self.n_snippets < 1 or self.n_train < smallest or self.n_test < 1:
            raise ValueError(
                f"n_train={self.n_train}, n_test={self.n_test}, n_snippets={self.n_snippets}: expected "
                f"n_snippets and n_test from 1 and n_train from {smallest}, one recording of each class on "
                "each training device; raise n_train or lower n_snippets."
            )

    @property
    def train_recordings_per_class(self) -> int:
        """Recordings of a class in training, one that ran on two devices counted twice."""
        return round(self.n_train / (len(SCENES) * self.n_snippets))

    @property
    def test_recordings_per_class(self) -> int:
        return max(1, round(self.n_test / (len(SCENES) * len(DEVICES) * self.n_snippets)))


@dataclass(frozen=True)
class Recording:
    """One recording of a scene, on one or several devices at the same time.

    Attributes:
        location, number: unique in the data set.
        rank: place in [0, 1) in training: the list of share p holds the ranks below p; None: test.
    """

    scene: str
    city: str
    location: int
    number: int
    devices: tuple[str, ...]
    rank: float | None = None

    @property
    def identifier(self) -> str:
        return f"{self.city}-{self.location}"

    def filename(self, snippet: int, device: str) -> str:
        return f"audio/{self.scene}-{self.identifier}-{self.number}-{snippet}-{device}.wav"

    def clips(self, n_snippets: int) -> list[tuple[str, str]]:
        """Return (filename, device) of every clip."""
        return [(self.filename(i, device), device) for device in self.devices for i in range(n_snippets)]


def plan_recordings(options: SceneOptions) -> list[Recording]:
    """Return every recording of the data set, training first; no location is in both parts."""
    members = [("train", scene, devices, rank) for scene in SCENES for devices, rank in _train_class(scene, options)]
    n_test = options.test_recordings_per_class
    members += [("test", scene, tuple(DEVICES), None) for scene in SCENES for _ in range(n_test)]
    rng = name_rng(options.seed, "names")
    numbers = rng.permutation(len(members)).tolist()
    new_location = iter(rng.permutation(len(members)).tolist())
    recordings = []
    for part, per_location in _RECORDINGS_PER_LOCATION.items():
        for scene in SCENES:
            chosen = [member for member in members if member[:2] == (part, scene)]
            places = list(_places(rng, math.ceil(len(chosen) / per_location), new_location))
            for index, (_, _, devices, rank) in enumerate(chosen):
                city, location = places[index % len(places)]
                recordings.append(Recording(scene, city, location, numbers[len(recordings)], devices, rank))
    return recordings


def _places(rng: np.random.Generator, n_places: int, new_location: Iterator[int]) -> Iterator[tuple[str, int]]:
    first_city = int(rng.integers(len(CITIES)))
    for index in range(n_places):
        yield CITIES[(first_city + index) % len(CITIES)], next(new_location)


def _train_class(scene: str, options: SceneOptions) -> list[tuple[tuple[str, ...], float]]:
    """Return (devices, rank) of the training recordings of one class, by rank.

    Each device deals its recordings to the classes in turn, and ranks are spaced evenly within a device: so
    every list has about the shares of classes and devices of the whole.
    """
    n_classes, turn_of = len(SCENES), list(SCENES).index(scene)
    per_class = options.train_recordings_per_class
    others = TRAINING_DEVICES[1:]
    n_other = max(1, round(per_class * n_classes * (1 - _DEVICE_A_SHARE) / len(others)))
    alone, beside = [], []
    for index, device in enumerate(others):
        for turn in range(n_other):
            if (turn + 2 * index) % n_classes == turn_of:
                (beside if turn % _PARALLEL_EVERY == 1 else alone).append((device, (turn + 0.5) / n_other))
    n_a = per_class - len(alone) - len(beside)
    devices_of_a = [("a",) for _ in range(n_a)]
    for device, rank in beside:
        devices_of_a[int(rank * n_a)] += (device,)
    ranked = [((device,), rank) for device, rank in alone]
    ranked += [(devices, (i + (turn_of + 0.5) / n_classes) / n_a) for i, devices in enumerate(devices_of_a)]
    return sorted(ranked, key=lambda member: member[1])


def scene_lists(recordings: list[Recording]) -> dict[str, list[Recording]]:
    """Return the recordings of split5 to split100 and test, by class and rank: not as in meta.csv."""
    ordered = sorted(recordings, key=lambda recording: (recording.scene, recording.rank or 0.0))
    lists = {
        name: [recording for recording in ordered if recording.rank is not None and recording.rank < share]
        for name, share in TRAIN_LISTS.items()
    }
    return lists | {"test": [recording for recording in ordered if recording.rank is None]}
