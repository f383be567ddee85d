"""Write the built-in data: small procedural data sets in the layouts of the real ones, for the real loaders.

Flow: plan (scene_plan.py) → scene sounds (acoustic_scenes.py) → recording devices → **files**.
Run:  python -m common.data.soundscapes task1_asc OUT [--seed 0 --n-train 900 --n-test 360 --n-snippets 2]

Scores on this data say that the software works; they are not comparable with any published number. Every
recording is drawn from the seed and its own names: the bytes do not depend on order or process count.
Killed at any moment, a second call goes on; `dataset.json` is written last and says that the folder is
complete.
"""

import argparse
import fcntl
import io
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile

from common.data.acoustic_scenes import render_scene
from common.data.recording_devices import DEVICES
from common.data.scene_plan import Recording, SceneOptions, plan_recordings, scene_lists
from common.data.synth import SAMPLE_RATE, name_rng
from common.progress import progress as progress_bar
from common.files import write_json, write_text

VERSION = 1  # raise it whenever the same options give other bytes
_CLIP_BYTES = 44 + 3 * SAMPLE_RATE  # WAV header and one second of 24 bit, as in the real data set


def make_scene_dataset(
    root: str | Path,
    seed: int = 0,
    n_train: int = 900,
    n_test: int = 360,
    n_snippets: int = 2,
    n_processes: int | None = None,
    progress: bool = True,
) -> dict:
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
    generator = f"common.data.soundscapes task1_asc, version {VERSION}"
    card = {"name": "built-in data", "generator": generator, **asdict(options)}
    recordings = plan_recordings(options)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        _claim(root, card)
        (root / "audio").mkdir(exist_ok=True)
        jobs = [(root, options, recording) for recording in recordings if not _is_done(root, options, recording)]
        n_clips = sum(len(recording.clips(n_snippets)) for _, _, recording in jobs)
        with progress_bar(total=n_clips, desc=card["name"], unit="clip", disable=not (progress and jobs)) as bar:
            for n_done in _work(render_recording, jobs, n_processes or len(os.sched_getaffinity(0))):
                bar.update(n_done)
        for part in (root / "audio").glob(".*.tmp"):  # of a killed call: the lock says nobody writes
            part.unlink()
        card["counts"] = _write_tables(root, options, recordings)
        card["note"] = "Procedural sounds and simulated devices; scores are not comparable with published ones."
        write_json(root / "dataset.json", card)
        (root / "generating.json").unlink(missing_ok=True)
    return card


def render_recording(root: Path, options: SceneOptions, recording: Recording) -> int:
    """Write those clips of a recording that are not there yet; return how many clips it has."""
    sound = None
    place_names = options.seed, recording.scene, recording.identifier
    for device in recording.devices:
        paths = [root / recording.filename(snippet, device) for snippet in range(options.n_snippets)]
        if all(map(_is_whole, paths)):
            continue
        if sound is None:
            place, now = name_rng("place", *place_names), name_rng("now", *place_names, recording.number)
            sound = render_scene(recording.scene, place, now, options.n_snippets)
        rng = name_rng("device", *place_names, recording.number, device)
        clips = DEVICES[device].record(rng, sound).reshape(options.n_snippets, SAMPLE_RATE)
        for path, clip in zip(paths, clips, strict=True):
            _write_clip(path, clip)
    return len(recording.clips(options.n_snippets))


def _is_done(root: Path, options: SceneOptions, recording: Recording) -> bool:
    return all(_is_whole(root / filename) for filename, _ in recording.clips(options.n_snippets))


def _is_whole(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == _CLIP_BYTES


def _write_clip(path: Path, clip: np.ndarray) -> None:
    """Write one clip, but do not sync a thousand times as soundfile would: `_is_whole` looks at the size."""
    content = io.BytesIO()
    soundfile.write(content, clip, SAMPLE_RATE, format="WAV", subtype="PCM_24")
    part = path.with_name(f".{path.name}.tmp")
    part.write_bytes(content.getvalue())
    os.replace(part, path)


def _write_tables(root: Path, options: SceneOptions, recordings: list[Recording]) -> dict:
    """Write the lists and meta.csv; return the number of clips in each list, and of each device."""
    counts = {}
    for name, members in scene_lists(recordings).items():
        rows = [(filename, r.scene) for r in members for filename, _ in r.clips(options.n_snippets)]
        _write_table(root / "split_setup" / f"{name}.csv", ("filename", "scene_label"), rows)
        counts[name] = len(rows)
    rows = [
        (filename, r.scene, r.identifier, device)
        for r in sorted(recordings, key=lambda r: (r.scene, r.city, r.location, r.number))
        for filename, device in r.clips(options.n_snippets)
    ]
    _write_table(root / "meta.csv", ("filename", "scene_label", "identifier", "source_label"), rows)
    return counts | {"devices": dict(sorted(Counter(device for *_, device in rows).items()))}


def _write_table(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    write_text(path, "".join("\t".join(row) + "\n" for row in [header, *rows]))


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
            for key, wanted in card.items():
                if found.get(key) != wanted:
                    raise ValueError(
                        f"{root}: holds data with {key} = {found.get(key)!r}, asked for {wanted!r}; "
                        "give another folder, or delete this one."
                    )
            return
    if (root / "meta.csv").exists() or any((root / "audio").glob("*")):
        raise ValueError(f"{root}: holds data that this generator did not write; give a new or empty folder.")
    write_json(root / "generating.json", card)


def _work(render: Callable[..., int], jobs: list[tuple], n_processes: int) -> Iterator[int]:
    """Yield what `render(*job)` returns, job after job."""
    if n_processes <= 1 or len(jobs) < 20:  # starting processes takes longer than a few recordings
        yield from (render(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe once the caller has threads, and torch has
    with ProcessPoolExecutor(min(n_processes, len(jobs)), context, initializer=_end_with_parent) as pool:
        yield from pool.map(render, *zip(*jobs, strict=True), chunksize=4)


def _end_with_parent() -> None:
    """End this worker when the process that started it is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


GENERATORS: dict[str, Callable[..., dict]] = {"task1_asc": make_scene_dataset}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m common.data.soundscapes", description="Write the built-in data.")
    tasks = parser.add_subparsers(dest="task", required=True)
    scenes = tasks.add_parser("task1_asc", help="layout of TAU Urban Acoustic Scenes 2022 Mobile")
    scenes.add_argument("root", metavar="OUT", type=Path)
    for name, default in asdict(SceneOptions()).items():
        scenes.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    scenes.add_argument("--n-processes", type=int, help="default: one for each core")
    options = vars(parser.parse_args(arguments))
    task = options.pop("task")
    try:
        card = GENERATORS[task](**options)
    except ValueError as error:
        parser.error(str(error))
    print(f"{options['root']}: complete; clips: {card['counts']}")


if __name__ == "__main__":
    main()
