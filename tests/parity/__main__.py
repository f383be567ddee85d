"""Compare this repository with a folder of parity vectors.

Run:  python -m tests.parity ../shared/parity/task1 [--only mn10]
Exit code 0 if all hold, 1 otherwise. What the lines mean: `tests.parity.runner`.
"""

import argparse
import sys
from pathlib import Path

from tests.parity.runner import Runner, summary


def main(argv: list[str] | None = None) -> int:
    """Print one line per vector and the count; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of vectors; sub-folders are searched too")
    parser.add_argument(
        "--only", metavar="NAME", help="one vector, one case (minicases/fms) or a pattern (mn*)"
    )
    arguments = parser.parse_args(argv)
    runner = Runner(arguments.folder)
    pairs = runner.vectors(arguments.only)
    if not pairs:
        what = f"named {arguments.only} " if arguments.only else ""
        print(
            f"{arguments.folder} holds no vector {what}(NAME.json or NAME.npz): check the path.",
            file=sys.stderr,
        )
        return 1
    width = max(len(runner.name(*pair)) for pair in pairs)
    outcomes = []
    for pair in pairs:
        outcomes.append(runner.check(*pair))
        print(outcomes[-1].line(width), flush=True)
    print(summary(outcomes))
    return 0 if all(outcome.counts for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
