"""What the benchmarks share: alternate two ways in one run, take medians, keep the table.

Absolute times drift from machine to machine and minute to minute: the ratio of two ways measured in turn counts.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from common.files import write_json, write_text
from common.results.records import git_state, hardware, versions

RESULTS = Path(__file__).parent.parent / "results" / "benchmarks"
REPORT = Path(__file__).parent / "README.md"


def alternate(ways: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Return the median seconds of each way, measured in turn after one unmeasured round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def in_own_process(module: str, *arguments: str) -> dict:
    """Run `python -m module …`, which prints one JSON line last: its memory is then its own."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def keep(name: str, title: str, rows: list[dict], note: str = "") -> None:
    """Print the table, write results/benchmarks/<name>.json and refresh benchmarks/README.md."""
    print(f"{title}\n{pd.DataFrame(rows).to_string(index=False)}\n{note}")
    write_json(
        RESULTS / f"{name}.json",
        {
            "title": title,
            "note": note,
            "rows": rows,
            "hardware": hardware(),
            "versions": versions(),
            "git": git_state(),
        },
    )
    write_text(REPORT, report())


def report() -> str:
    """Return benchmarks/README.md: an introduction and one table per kept result."""
    parts = [
        "# Benchmarks",
        "",
        "Made by `python -m benchmarks.<module> …` from `results/benchmarks/*.json`; not edited by hand. "
        "Each table is one run on one machine; compare rows, not tables.",
        "",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        machine = kept["hardware"]
        where = machine.get("gpu") or f"{machine['cores']} CPU cores, {machine['processor']}"
        parts += [
            f"## {kept['title']}",
            "",
            pd.DataFrame(kept["rows"]).to_markdown(index=False),
            "",
            f"{kept['note']} Measured on {where}; torch {kept['versions'].get('torch')}.".strip(),
            "",
        ]
    return "\n".join(parts)
