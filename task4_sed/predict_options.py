"""The options of the commands that predict; apart from pseudo_labels.py, whose networks take seconds to import."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from task4_sed.predictions import FOLDER

TRAINING_SETS = (
    "synth_train",
    "strong_train",
    "external_strong_train",
    "weak_train",
    "unlabeled_train",
    "maestro_real_train",
)
LONG_CLIPS = ("beginning", "random")
PRECISIONS = ("32", "bf16", "16")


def add_predict_options(parser: argparse.ArgumentParser, default_sets: Sequence[str]) -> None:
    """Add the options of `pseudo_labels.predict`."""
    parser.add_argument("--run", type=Path, nargs="+", action="extend", help="run folders: config.yaml and weights.pt")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for decoded clips")
    parser.add_argument("--out", type=Path, help=f"folder for the files of one run (default: RUN/{FOLDER})")
    parser.add_argument("--sets", nargs="+", metavar="SET", help=f"default, if there: {' '.join(default_sets)}")
    parser.add_argument("--shard", default="0/1", metavar="i/n", help="do every n-th block, from the i-th on")
    parser.add_argument("--weights", metavar="NAME|FILE", help="instead of the run's own: registered name, or a file")
    parser.add_argument("--network", metavar="EXPRESSION", help="what a file of weights is for")
    parser.add_argument("--encoder-weights", metavar="NAME|FILE", help="for weights without encoder (the baseline)")
    parser.add_argument("--inner", metavar="NAME", help="student (default) or teacher; the dict of a file of weights")
    parser.add_argument("--download", action="store_true", help="fetch registered weights that are not here yet")
    parser.add_argument("--batch-size", type=int, default=16, help="clips at a time (default %(default)s)")
    parser.add_argument("--precision", default="32", choices=PRECISIONS, help="autocast for bf16 and 16")
    parser.add_argument("--long-clips", default="beginning", choices=LONG_CLIPS, help="of clips longer than 10 s")
    parser.add_argument("--hop", type=float, metavar="S", help="of MAESTRO crops cut from recordings (1; scored: 5)")
    parser.add_argument("--force", action="store_true", help="also what was predicted before")
    parser.add_argument("--device", default="auto", help="cpu, gpu or auto")
    parser.add_argument("--energy", default="AUT", metavar="COUNTRY", help="ISO code, for CO₂ per kWh; off: none")


def shard_of(text: str) -> tuple[int, int]:
    """Return (number, of how many) of "0/4"."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise ValueError(f"--shard {text}: expected NUMBER/OF, such as 0/4.")
    return int(number), int(of)
