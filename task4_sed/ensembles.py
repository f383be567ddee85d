"""Average the predictions of several runs: an ensemble, or the pseudo-labels of the next iteration.

Flow: RUN/predictions/SET.hdf5 of several runs → **mean of the logits** → FOLDER/SET.hdf5.
Run:  python -m task4_sed.ensembles RUN RUN … --out FOLDER --recipe dcase2024/winner_ensemble [--sets devtest …]
      python -m task4_sed.ensembles RUN … --out FOLDER --of training

Needs prediction files alone, never a network. Pseudo-labels may be those of a single run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.data.manifest import DataError
from common.results.records import git_state
from task4_sed.data import set_info, set_infos
from task4_sed.predictions import ENDING, PredictionFile, ensemble, prediction_files

OF = {"all": lambda use: True, "training": lambda use: use == "train", "evaluation": lambda use: use != "train"}


def average(args: argparse.Namespace) -> None:
    """Write the ensemble's files: those of the sets asked for, or of all that the first folder has."""
    if len(args.folders) < 2 and args.of != "training":
        raise DataError(f"an ensemble needs two folders of predictions or more, {len(args.folders)} given.")
    files = [prediction_files(folder) for folder in args.folders]
    known = set_infos()  # published folders hold a private set too
    there = dict.fromkeys(name for own in files for name in own if name in known)
    names = args.sets or [name for name in there if OF[args.of](set_info(name).use)]
    for name in names:
        for folder, own in zip(args.folders, files, strict=True):
            if name not in own:
                raise DataError(f"{folder}: no predictions of {name} (there are {', '.join(own)}); predict that set, "
                                "or name the sets to average with --sets.")  # fmt: skip
    for name in names:
        if args.force:
            (args.out / f"{name}{ENDING}").unlink(missing_ok=True)
        about = ensemble_about([PredictionFile(own[name]).about for own in files], args.recipe, args.seed)
        made = ensemble([own[name] for own in files], args.out / f"{name}{ENDING}", {**about, "set": name})
        if not made:
            print(f"{args.out / name}{ENDING}: done before")


def ensemble_about(members: Sequence[Mapping], recipe: str, seed: int) -> dict:
    """Return the attributes of an ensemble's file from those of its members' files."""
    shown = ("recipe", "seed", "weights")
    costs = [member.get("complexity") for member in members]
    return {
        "recipe": recipe,
        "seed": seed,
        "smoke": any(member.get("smoke") for member in members),
        "members": [{key: member.get(key) for key in shown} for member in members],
        "training": _joined_training([member.get("training") or {} for member in members]),
        "complexity": {key: sum(c[key] for c in costs) for key in ("parameters", "macs")} if all(costs) else None,
        "manifest_sha256": members[0].get("manifest_sha256"),
        **git_state(),
    }


def _joined_training(parts: Sequence[Mapping]) -> dict:
    """Return where an ensemble's members were trained: the data sets by name, or None where none of them says."""
    names = sorted({part["dataset"] for part in parts if part.get("dataset")})
    differences = list(dict.fromkeys(text for part in parts for text in part.get("differences", ())))
    return {"dataset": " and ".join(names) or None, "differences": differences[:20]}


def add_average_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `average`."""
    parser.add_argument("folders", type=Path, nargs="+", help="folders of predictions, or runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="default: all; every folder must have them")
    parser.add_argument("--of", default="all", choices=OF, help="sets to train with, or those tuned on and scored")
    parser.add_argument("--force", action="store_true", help="also where it was done before")
    parser.add_argument("--recipe", default="ensemble", help="name in result files and tables")
    parser.add_argument("--seed", type=int, default=0, help="number in result files and tables")
    parser.set_defaults(act=average)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_average_options(parser)
    args = parser.parse_args(argv)
    try:
        args.act(args)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
