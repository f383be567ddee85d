"""Write the built-in data: small procedural data sets in the layouts of the real ones, read by the real loaders.

Flow: scenes (common/data/acoustic_scenes.py) → recording devices (common/data/recording_devices.py) → **files**.
Run:  python -m common.data.soundscapes task1_asc OUT [--seed 0 --n-train 900 --n-test 360 --n-snippets 2]

Scores on this data say that the software works; they are not comparable with any published number. Every recording is
drawn from its own names and the seed: the bytes do not depend on order or process count. Killed at any moment, a
second call goes on; `dataset.json` is written last and says that the folder is complete.
"""
import argparse
import fcntl
import json
import math
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from common.data import synth
from common.data.acoustic_scenes import SCENES, render_scene
from common.data.recording_devices import DEVICES, TRAINING_DEVICES
from common.files import write_json, write_text

CITIES = ("barcelona", "helsinki", "lisbon", "london", "lyon", "milan", "paris", "prague", "stockholm", "vienna")
TRAIN_LISTS = {"split5": 0.05, "split10": 0.1, "split25": 0.25, "split50": 0.5, "split100": 1.0}
VERSION = 1  # raise it whenever the same options give other bytes
_CLIP_BYTES = 44 + 3 * synth.SAMPLE_RATE  # WAV header and one second of 24 bit, as in the real data set
_DEVICE_A_SHARE = 0.7
_PARALLEL_EVERY = 3  # in training, every third recording of another device runs beside one of device a


@dataclass(frozen=True)
class SceneOptions:
    """What determines the bytes of a Task 1 data set.

    Args:
        seed: another seed gives other places, recordings and file names.
        n_train, n_test: clips of 1 s in split100 and in the test list, rounded to whole recordings and equal classes.
        n_snippets: clips cut from one recording on one device (10 in the real data set).
    """

    seed: int = 0
    n_train: int = 900
    n_test: int = 360
    n_snippets: int = 2

    def __post_init__(self):
        smallest = len(SCENES) * len(TRAINING_DEVICES) * self.n_snippets
        if self.n_snippets < 1 or self.n_train < smallest or self.n_test < 1:
            raise ValueError(f"n_train={self.n_train}, n_test={self.n_test}, n_snippets={self.n_snippets}: expected "
                             f"n_snippets ≥ 1, n_test ≥ 1 and n_train ≥ {smallest}, one recording of each class and "
                             "device; raise n_train or lower n_snippets.")


@dataclass(frozen=True)
class Recording:
    """One recording of a scene, on one or several devices at the same time.

    Attributes:
        number, location: unique in the data set.
        rank: position in [0, 1) among the training recordings; a training list of share p holds the ranks below p.
            None: test.
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
        return [(self.filename(snippet, device), device) for device in self.devices for snippet in range(n_snippets)]


def plan_recordings(options: SceneOptions) -> list[Recording]:
    """Return every recording of the data set, test last; no location is in both parts."""
    train = [_plan_train_class(scene, options) for scene in range(len(SCENES))]
    per_class = max(1, round(options.n_test / (len(SCENES) * len(DEVICES) * options.n_snippets)))
    test = [[(tuple(DEVICES), None)] * per_class for _ in SCENES]
    rng = synth.name_rng(options.seed, "names")
    n_recordings = sum(map(len, train + test))
    numbers, locations = iter(rng.permutation(n_recordings)), iter(rng.permutation(n_recordings))
    recordings = []
    for recordings_per_location, part in ((2, train), (1, test)):
        for scene, members in zip(SCENES, part, strict=True):
            n_places = math.ceil(len(members) / recordings_per_location)
            first_city = int(rng.integers(len(CITIES)))
            places = [(CITIES[(first_city + i) % len(CITIES)], int(next(locations))) for i in range(n_places)]
            recordings += [Recording(scene, *places[i % n_places], int(next(numbers)), devices, rank)
                           for i, (devices, rank) in enumerate(members)]
    return recordings


def _plan_train_class(scene: int, options: SceneOptions) -> list[tuple[tuple[str, ...], float]]:
    """Return (devices, rank) of the training recordings of one class, by rank.

    Each device deals its recordings to the classes in turn, and ranks are spaced evenly within a device: so every list
    has about the same shares of classes and devices as the whole.
    """
    n_classes = len(SCENES)
    per_class = round(options.n_train / (n_classes * options.n_snippets))
    others = TRAINING_DEVICES[1:]
    n_other = max(1, round(per_class * n_classes * (1 - _DEVICE_A_SHARE) / len(others)))
    alone, beside = [], []
    for index, device in enumerate(others):
        for turn in range(n_other):
            if (turn + 2 * index) % n_classes == scene:
                (beside if turn % _PARALLEL_EVERY == 1 else alone).append((device, (turn + 0.5) / n_other))
    n_a = per_class - len(alone) - len(beside)
    of_a = [("a",) for _ in range(n_a)]
    for device, rank in beside:
        of_a[int(rank * n_a)] += (device,)
    ranked = [((device,), rank) for device, rank in alone]
    ranked += [(devices, (i + (scene + 0.5) / n_classes) / n_a) for i, devices in enumerate(of_a)]
    return sorted(ranked, key=lambda member: member[1])


def render_recording(root: Path, options: SceneOptions, recording: Recording) -> int:
    """Write those clips of a recording that are not there yet; return how many clips it has."""
    n_samples = synth.SAMPLE_RATE
    sound = None
    for device in recording.devices:
        paths = [root / recording.filename(snippet, device) for snippet in range(options.n_snippets)]
        if all(map(_is_whole, paths)):
            continue
        names = options.seed, recording.scene, recording.identifier
        if sound is None:
            place, now = synth.name_rng("place", *names), synth.name_rng("now", *names, recording.number)
            sound = render_scene(recording.scene, place, now, options.n_snippets)
        recorded = DEVICES[device].record(synth.name_rng("device", *names, recording.number, device), sound)
        for path, clip in zip(paths, recorded.reshape(options.n_snippets, n_samples), strict=True):
            _write_clip(path, clip)
    return len(recording.devices) * options.n_snippets


def _is_whole(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == _CLIP_BYTES


def _write_clip(path: Path, clip: np.ndarray) -> None:
    part = path.with_name(f".{path.name}.tmp")  # no fsync for each of a thousand clips: `_is_whole` looks at the size
    soundfile.write(part, clip, synth.SAMPLE_RATE, format="WAV", subtype="PCM_24")
    os.replace(part, path)


def make_scene_dataset(root: str | Path, seed: int = 0, n_train: int = 900, n_test: int = 360, n_snippets: int = 2,
                       n_processes: int | None = None, progress: bool = True) -> dict:
    """Write a data set in the layout of TAU Urban Acoustic Scenes 2022 Mobile, or what is missing of it.

    Args:
        root: folder; new, empty, or of an earlier call with the same options.
        seed, n_train, n_test, n_snippets: see SceneOptions.
        n_processes: default: one for each core.
    Returns:
        the content of `root`/dataset.json.
    Raises:
        ValueError: options that do not fit together, or a folder that holds other data.
    """
    root, options = Path(root), SceneOptions(seed, n_train, n_test, n_snippets)
    card = {"name": "built-in data", "generator": f"common.data.soundscapes task1_asc, version {VERSION}",
            **asdict(options)}
    (root / "audio").mkdir(parents=True, exist_ok=True)
    recordings = plan_recordings(options)
    with _locked(root):
        _claim(root, card)
        jobs = [(root, options, recording) for recording in recordings
                if not all(_is_whole(root / name) for name, _ in recording.clips(n_snippets))]
        with tqdm(total=sum(len(job[2].clips(n_snippets)) for job in jobs), desc="built-in data", unit="clip",
                  mininterval=1, disable=not progress or not jobs) as bar:
            for n_clips in _work(jobs, n_processes or len(os.sched_getaffinity(0))):
                bar.update(n_clips)
        card |= {"counts": _write_tables(root, recordings, n_snippets),
                 "note": "Procedural sounds and simulated devices; scores are not comparable with published ones."}
        write_json(root / "dataset.json", card)
        (root / "generating.json").unlink(missing_ok=True)
    return card


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the folder: a second process that makes the same data waits, then finds everything done."""
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _claim(root: Path, card: dict) -> None:
    """Refuse a folder with other data in it; otherwise note what is going to be written there."""
    for stamp in ("dataset.json", "generating.json"):
        if (root / stamp).is_file():
            found = json.loads((root / stamp).read_text(encoding="utf-8"))
            other = [key for key in card if found.get(key) != card[key]]
            if other:
                raise ValueError(f"{root}: holds built-in data with {other[0]} = {found.get(other[0])!r}, asked for "
                                 f"{card[other[0]]!r}; give another folder, or delete this one.")
            return
    if (root / "meta.csv").exists() or any((root / "audio").iterdir()):
        raise ValueError(f"{root}: holds data that this generator did not write; give a new or empty folder.")
    write_json(root / "generating.json", card)


def _work(jobs: list[tuple], n_processes: int) -> Iterator[int]:
    """Yield the number of clips of each recording as it gets done."""
    if n_processes <= 1 or len(jobs) < 20:  # starting processes takes longer than a few recordings
        yield from (render_recording(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe once the caller has threads (torch has)
    with ProcessPoolExecutor(min(n_processes, len(jobs)), context, initializer=_end_with_parent) as pool:
        yield from pool.map(render_recording, *zip(*jobs, strict=True), chunksize=4)


def _end_with_parent() -> None:
    """End this worker when the process that started it is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _write_tables(root: Path, recordings: list[Recording], n_snippets: int) -> dict:
    """Write meta.csv and the lists; return counts of clips by list, and by device for the whole."""
    lists = {name: [r for r in recordings if r.rank is not None and r.rank < share]
             for name, share in TRAIN_LISTS.items()}
    lists["test"] = [r for r in recordings if r.rank is None]
    counts = {}
    for name, members in lists.items():
        members = sorted(members, key=lambda r: (r.scene, r.rank or 0.0))
        rows = [(filename, r.scene) for r in members for filename, _ in r.clips(n_snippets)]
        _write_table(root / "split_setup" / f"{name}.csv", [("filename", "scene_label"), *rows])
        counts[name] = len(rows)
    rows = [(filename, r.scene, r.identifier, device)
            for r in sorted(recordings, key=lambda r: (r.scene, r.city, r.location, r.number))
            for filename, device in sorted(r.clips(n_snippets))]
    _write_table(root / "meta.csv", [("filename", "scene_label", "identifier", "source_label"), *rows])
    return counts | {"devices": dict(sorted(Counter(row[3] for row in rows).items()))}


def _write_table(path: Path, rows: list[tuple[str, ...]]) -> None:
    write_text(path, "".join("\t".join(row) + "\n" for row in rows))


GENERATORS: dict[str, Callable[..., dict]] = {"task1_asc": make_scene_dataset}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m common.data.soundscapes", description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    scenes = tasks.add_parser("task1_asc", help="layout of TAU Urban Acoustic Scenes 2022 Mobile")
    scenes.add_argument("root", metavar="OUT", type=Path)
    for option, default in asdict(SceneOptions()).items():
        scenes.add_argument(f"--{option.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    scenes.add_argument("--n-processes", type=int, help="default: one for each core")
    options = vars(parser.parse_args(arguments))
    task, root = options.pop("task"), options["root"]
    try:
        card = GENERATORS[task](**options)
    except ValueError as error:
        parser.error(str(error))
    print(f"{root}: {card['counts']['split100']} training and {card['counts']['test']} test clips, seed {card['seed']}")


if __name__ == "__main__":
    main()
