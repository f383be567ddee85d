"""Write the built-in data: small procedural data sets in the layouts of the real ones, for the real loaders.

Flow: plan (scene_plan.py) → scene sounds (acoustic_scenes.py) → recording devices → **files**; for sound
events: event_clips.py.
Run:  python -m common.data.soundscapes task1_asc OUT [--seed 0 --n-train 900 --n-test 360 --n-snippets 2]
      python -m common.data.soundscapes task4_sed OUT [--seed 0 --n-synth 60 …]

Scores on this data say that the software works; they are not comparable with any published number. Every
recording is drawn from the seed and its own names: the bytes do not depend on order or process count.
Killed at any moment, a second call goes on; `dataset.json` is written last and says that the folder is
complete.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from common.data.acoustic_scenes import render_scene
from common.data.event_clips import make_event_dataset
from common.data.event_plan import EventOptions
from common.data.generation import claim, finish, is_whole, locked, work, write_table, write_wav
from common.data.recording_devices import DEVICES
from common.data.scene_plan import Recording, SceneOptions, plan_recordings, scene_lists
from common.data.synth import SAMPLE_RATE, name_rng
from common.progress import progress as progress_bar

VERSION = 1  # raise it whenever the same options give other bytes
_BITS = 24  # as in the real data set


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
    with locked(root):
        claim(root, card, parts=("meta.csv", "audio"))
        (root / "audio").mkdir(exist_ok=True)
        jobs = [(root, options, recording) for recording in recordings if not _is_done(root, options, recording)]
        n_clips = sum(len(recording.clips(n_snippets)) for _, _, recording in jobs)
        with progress_bar(total=n_clips, desc=card["name"], unit="clip", disable=not (progress and jobs)) as bar:
            for n_done in work(render_recording, jobs, n_processes):
                bar.update(n_done)
        card["counts"] = _write_tables(root, options, recordings)
        card["note"] = "Procedural sounds and simulated devices; scores are not comparable with published ones."
        finish(root, card, audio_folders=("audio",))
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
    return is_whole(path, SAMPLE_RATE, _BITS)


def _write_clip(path: Path, clip: np.ndarray) -> None:
    write_wav(path, clip, SAMPLE_RATE, _BITS)


def _write_tables(root: Path, options: SceneOptions, recordings: list[Recording]) -> dict:
    """Write the lists and meta.csv; return the number of clips in each list, and of each device."""
    counts = {}
    for name, members in scene_lists(recordings).items():
        rows = [(filename, r.scene) for r in members for filename, _ in r.clips(options.n_snippets)]
        write_table(root / "split_setup" / f"{name}.csv", ("filename", "scene_label"), rows)
        counts[name] = len(rows)
    rows = [
        (filename, r.scene, r.identifier, device)
        for r in sorted(recordings, key=lambda r: (r.scene, r.city, r.location, r.number))
        for filename, device in r.clips(options.n_snippets)
    ]
    write_table(root / "meta.csv", ("filename", "scene_label", "identifier", "source_label"), rows)
    return counts | {"devices": dict(sorted(Counter(device for *_, device in rows).items()))}


GENERATORS: dict[str, Callable[..., dict]] = {"task1_asc": make_scene_dataset, "task4_sed": make_event_dataset}
_OPTIONS = {
    "task1_asc": (SceneOptions(), "layout of TAU Urban Acoustic Scenes 2022 Mobile"),
    "task4_sed": (EventOptions(), "layout of DESED and MAESTRO Real"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m common.data.soundscapes", description="Write the built-in data.")
    tasks = parser.add_subparsers(dest="task", required=True)
    for task, (defaults, layout) in _OPTIONS.items():
        task_parser = tasks.add_parser(task, help=layout)
        task_parser.add_argument("root", metavar="OUT", type=Path)
        for name, default in asdict(defaults).items():
            option = f"--{name.replace('_', '-')}"
            task_parser.add_argument(option, type=int, default=default, help=f"default {default}")
        task_parser.add_argument("--n-processes", type=int, help="default: one for each core")
    options = vars(parser.parse_args(arguments))
    task = options.pop("task")
    try:
        card = GENERATORS[task](**options)
    except ValueError as error:
        parser.error(str(error))
    print(f"{options['root']}: complete; clips: {card['counts']}")


if __name__ == "__main__":
    main()
