"""Check and decode all that a chain of configs needs, and say what is missing.

Flow: label tables + audio files → **decoded clips, identity of what can be used** → training, predicting, scoring.
Run:  python -m task4_sed.prepare --data FOLDER --cache CACHE --config builtin/it1_stage1 … [--pseudo-labels]

Sets that a config trains with or looks at must be there, unless it calls them optional; those that are scored, tuned on
or given pseudo-labels are left out where they are absent, and that is said. What is there must be usable.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from common.files import write_text
from task4_sed.batching import is_absent, open_training_sets
from task4_sed.config import DataConfig, load_config
from task4_sed.data import Manifest, dataset_name, set_info
from task4_sed.maestro import RECORDINGS
from task4_sed.predict_options import TRAINING_SETS
from task4_sed.pseudo_labels import open_clips
from task4_sed.reporting import PREDICTED


def prepare(root: Path, cache: Path, configs: Sequence[DataConfig], labels: bool) -> tuple[list[str], list[str]]:
    """Decode (once) all sets, print what was found, and return (what can be used, what is not there).

    Args:
        configs: the `data` part of all configs. labels: whether pseudo-labels will be made, of all training clips.

    Raises:
        DataError: a set that is needed is missing, or one that is there cannot be used.
    """
    usable, absent, shown = set(), [], set()
    for config in configs:
        opened = open_training_sets(root, config, cache)
        absent += opened.absent
        for clip_set in opened.clip_sets:
            say(clip_set.manifest, clip_set.audio.problems, shown)
            usable.add(f"{clip_set.manifest.info.name} {clip_set.manifest.sha256()}")
        for name, manifest, problems in predicted(root, cache, config, PREDICTED, absent):
            say(manifest, problems, shown)
            usable.add(f"{name} {manifest.sha256()}")
        if labels:
            for _, manifest, problems in predicted(root, cache, config, TRAINING_SETS, absent):
                say(manifest, problems, shown)
    return sorted(usable), list(dict.fromkeys(absent))


def predicted(
    root: Path, cache: Path, config: DataConfig, names: Sequence[str], absent: list[str]
) -> Iterator[tuple[str, Manifest, dict[str, str]]]:
    """Yield name, usable clips and problems of sets that are predicted; add to `absent` those that are not there."""
    args = argparse.Namespace(data=root, cache=cache, hop=None)
    for name in names:
        if is_absent(root, name) and not (set_info(name).source == "maestro" and (root / RECORDINGS).is_dir()):
            absent.append(f"{name}: not there, left out.")
            continue
        manifest, audio = open_clips(args, name, asdict(config))
        yield name, manifest.select(audio.usable), audio.problems


def say(manifest: Manifest, problems: dict[str, str], shown: set[str]) -> None:
    """Print the report of a set, once."""
    if manifest.info.name not in shown:
        shown.add(manifest.info.name)
        manifest.report.broken = dict(problems)
        print(f"{manifest.report.text()}\n", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder in the layout of the challenge")
    parser.add_argument("--cache", type=Path, required=True, help="folder for decoded clips")
    parser.add_argument("--config", nargs="+", required=True, help="configs whose data sections apply")
    parser.add_argument("--pseudo-labels", action="store_true", help="decode what pseudo-labels are made of as well")
    parser.add_argument("--identity", type=Path, help="file to write the hashes of the usable clips to")
    parser.add_argument("--smoke", action="store_true")
    args, overrides = parser.parse_known_args(argv)
    try:
        configs = [load_config(name, overrides, args.smoke)[0].data for name in args.config]
        distinct = {_what_is_read(config): config for config in configs}
        usable, absent = prepare(args.data, args.cache, list(distinct.values()), args.pseudo_labels)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    if args.identity:
        write_text(args.identity, "\n".join(usable))
    print(f"{dataset_name(args.data)} in {args.data}: {len(usable)} sets can be used")
    print("\n".join(absent) or "nothing is missing")


def _what_is_read(config: DataConfig) -> str:
    """Return a text that is the same for configs that read the same clips."""
    read = asdict(config) | {"batch": list(config.sizes)}
    return json.dumps({key: value for key, value in read.items() if key not in ("n_workers", "crop_validation")})


if __name__ == "__main__":
    main()
