"""The tables of the READMEs, by name, as Markdown.

Flow: published numbers + result records → rows → **table text** → terminal, or the marked blocks of a README.
Run:  python -m common.results table task1_asc_devices

A new table is one entry in TABLES. `compare` tables hold published numbers and what was measured on the
published data; runs on any other data have a table of their own, under a heading that says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.results.compare import (
    LEVEL,
    OTHER_DATA,
    PUBLISHED_DATA,
    Row,
    compare,
    mean_bounds,
    read_published,
    seed_interval,
    standard_deviation,
    usable_records,
    why_not_comparable,
)
from common.results.records import metric, read_records

NONE = "–"
TASK1_2025 = ("dcase2025/general", "dcase2025/device_specific")
TASK1_2024 = tuple(f"dcase2024/split{percent}" for percent in (5, 10, 25, 50, 100))


class Results(NamedTuple):
    """All that the tables of one task are made of."""

    published: pd.DataFrame
    records: list[Mapping]


@dataclass(frozen=True)
class Table:
    """A named table: the task whose results it shows, what it is about, and the function Results →
    Markdown."""

    task: str
    title: str
    build: Callable[[Results], str]


def load_results(
    results: str | Path, task: str, runs: str | Path | None = None, published: str | Path | None = None
) -> tuple[Results, list[str]]:
    """Read `published`/<task>.csv (default: `results`/published) and the records below `results`/<task> and
    `runs`.

    Returns:
        the results, and one sentence for each file or record that is not used.
    """
    records, problems = read_records(Path(results) / task)
    if runs is not None:
        found = read_records(runs, only_records=False)
        records, problems = records + found.records, problems + found.problems
    foreign = [record for record in records if record["task"] != task]
    if runs is None:
        problems += [
            f"{r['path']}: is a record of {r['task']}; move it to results/{r['task']}." for r in foreign
        ]
    usable, unused = usable_records([record for record in records if record["task"] == task])
    table = read_published(Path(published or Path(results) / "published") / f"{task}.csv")
    return Results(table, usable), problems + unused


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with columns padded to equal width, so that it also reads well as plain
    text."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def plus_minus(value: float, spread: float | None) -> str:
    return f"{value:.2f}" if spread is None else f"{value:.2f} ± {spread:.2f}"


def span(interval: tuple[float, float] | None, sign: str = "") -> str:
    return NONE if interval is None else f"{interval[0]:{sign}.2f} … {interval[1]:{sign}.2f}"


def counted(text: str, n: int | None, noun: str) -> str:
    return text if n is None else f"{text} ({n} {noun}{'' if n == 1 else 's'})"


def comparison_table(
    results: Results,
    systems: Sequence[str],
    metrics: Sequence[str],
    split: str = "test",
    part: str | None = None,
) -> str:
    """Return published | measured | intervals | difference | verdict, in per cent.

    Args:
        metrics, split: as in `compare`.
        part: heading of a second column that names the part of the metric (the device of
            "device_accuracy/a").
    """
    percent = f"{LEVEL:.0%}".replace("%", " %")
    header = [
        "recipe",
        *([part] if part else []),
        "published, %",
        "measured, %",
        f"{percent} interval over seeds",
        f"{percent} interval over locations",
        "difference",
        "verdict",
    ]
    rows = []
    for row in compare(results.published, results.records, systems, metrics, split):
        name = [row.metric.partition("/")[2]] if part else []
        rows.append([f"`{row.system}`", *name, published_cell(row), *measured_cells(row), row.verdict])
    return markdown(header, rows)


def published_cell(row: Row) -> str:
    return counted(plus_minus(row.published.value, row.published.spread), row.published.n_runs, "run")


def measured_cells(row: Row) -> list[str]:
    """Return measured, interval over seeds, interval over locations and difference."""
    if not row.measured:
        return [NONE] * 4
    measured = counted(plus_minus(row.mean, row.sd), len(row.measured), "seed")
    return [
        measured,
        span(seed_interval(row.measured)),
        span(row.location_interval),
        f"{row.difference:+.2f}",
    ]


def gain_table(results: Results, system: str, reference: str, split: str = "test") -> str:
    """Return the paired difference of two systems on the same clips, per device and group, in percentage
    points.

    The measured difference and its interval come from the records of `system` ("comparison", resampled in
    pairs), the published one from the two published rows.
    """
    records = [
        r
        for r in results.records
        if (r["recipe"], r["split"]) == (system, split)
        and r.get("comparison")
        and r["comparison"].get("against") == reference
        and why_not_comparable(r) is None
    ]
    table = results.published[results.published["split"] == split].set_index(["system", "metric"])["value"]
    names = [name for name in table[system].index if not name.startswith("class_")]
    names += [f"groups/{name}" for name in (records[0]["comparison"].get("groups", {}) if records else {})]
    rows = []
    for name in names:
        published = (
            f"{table[system, name] - table[reference, name]:+.2f}" if (system, name) in table.index else NONE
        )
        found = [metric({"metrics": record["comparison"]}, name) for record in records]
        found = [entry for entry in found if entry is not None]
        measured, interval = NONE, NONE
        if found:
            differences = [100 * entry["difference"] for entry in found]
            measured = counted(f"{np.mean(differences):+.2f}", len(found), "seed")
            interval = span(tuple(100 * np.mean([entry["interval"] for entry in found], axis=0)), "+")
        rows.append(
            [
                name.replace("device_accuracy/", "device ").replace("groups/", "devices: ").replace("_", " "),
                published,
                measured,
                interval,
            ]
        )
    return markdown(
        ["accuracy", "published, points", "measured, points", "95 % interval over locations, paired"], rows
    )


def ranking_table(results: Results, prefix: str, split: str = "evaluation") -> str:
    """Return a challenge's team ranking: systems below `prefix`, single entries (name ending in _<number>)
    apart."""
    table = results.published
    team = table["system"].str.startswith(prefix) & ~table["system"].str.contains(r"_\d+$")
    ranking = table[team & (table["split"] == split) & (table["metric"] == "macro_accuracy")]
    ranking = ranking.sort_values("value", ascending=False, kind="stable")
    rows = [
        [str(rank), line.system.removeprefix(prefix).replace("_", " ", 1), f"{line.value:.2f}"]
        for rank, line in enumerate(ranking.itertuples(), 1)
    ]
    return markdown(["rank", "team", "published, % (evaluation set)"], rows)


def other_data_table(results: Results) -> str:
    """Return all runs that may not be compared, one table per kind of data, each under a heading that says
    which."""
    groups: dict[str, dict[tuple, list[Mapping]]] = {}
    for record in results.records:
        reason = why_not_comparable(record)
        if reason is not None:
            row = (record["recipe"], record["split"], record["status"], record["config_sha256"])
            groups.setdefault(_data_heading(record, reason), {}).setdefault(row, []).append(record)
    if not groups:
        return "No runs on other data."
    header = [
        "recipe",
        "split",
        "status",
        "clips",
        "macro accuracy, %",
        "95 % interval over locations",
        "chance, %",
    ]
    parts = []
    for heading in sorted(groups):
        rows = [_other_row(row, records) for row, records in sorted(groups[heading].items())]
        parts.append(
            f"**{heading}: not to be compared with any published number**\n\n{markdown(header, rows)}"
        )
    return "\n\n".join(parts)


def _data_heading(record: Mapping, reason: str) -> str:
    name = record["dataset"]["name"]
    if reason != OTHER_DATA:
        return f"{name}, {reason}"
    if name == "built-in data" or record["status"] == "built-in data":
        return "Built-in data"
    return f"Other data ({name})"


def _other_row(row: tuple, records: Sequence[Mapping]) -> list[str]:
    recipe, split, status, _ = row
    values = [100 * value for r in records if (value := metric(r, "macro_accuracy")) is not None]
    measured = (
        counted(plus_minus(np.mean(values), standard_deviation(values)), len(values), "seed")
        if values
        else NONE
    )
    clips = {record["metrics"].get("n_items") for record in records}
    n_classes = len(records[0]["metrics"].get("class_names") or [])
    return [
        f"`{recipe}`",
        split,
        status,
        "/".join(f"{n:,}" for n in sorted(n for n in clips if n)) or NONE,
        measured,
        span(mean_bounds(records, "macro_accuracy")),
        f"{100 / n_classes:.2f}" if n_classes else NONE,
    ]


TABLES = {
    "task1_asc": Table(
        "task1_asc",
        "Task 1, macro accuracy on the development test split",
        lambda results: comparison_table(results, (*TASK1_2025, *TASK1_2024), ["macro_accuracy"]),
    ),
    "task1_asc_devices": Table(
        "task1_asc",
        "Task 1, 2025: accuracy per device",
        lambda results: comparison_table(results, TASK1_2025, ["device_accuracy/"], part="device"),
    ),
    "task1_asc_classes": Table(
        "task1_asc",
        "Task 1, 2025: accuracy per class",
        lambda results: comparison_table(results, TASK1_2025, ["class_accuracy/"], part="class"),
    ),
    "task1_asc_gain": Table(
        "task1_asc",
        "Task 1, 2025: device-specific minus general model",
        lambda results: gain_table(results, *reversed(TASK1_2025)),
    ),
    "task1_asc_subsets": Table(
        "task1_asc",
        "Task 1, 2024: macro accuracy per training subset",
        lambda results: comparison_table(results, TASK1_2024, ["macro_accuracy"]),
    ),
    "task1_asc_subset_devices": Table(
        "task1_asc",
        "Task 1, 2024: accuracy per training subset and device",
        lambda results: comparison_table(results, TASK1_2024, ["device_accuracy/"], part="device"),
    ),
    "task1_asc_subset_classes": Table(
        "task1_asc",
        "Task 1, 2024: accuracy per training subset and class",
        lambda results: comparison_table(results, TASK1_2024, ["class_accuracy/"], part="class"),
    ),
    "task1_asc_challenge": Table(
        "task1_asc",
        "Task 1, 2025: challenge ranking, best entry of each team (published only)",
        lambda results: ranking_table(results, "challenge2025/"),
    ),
    "task1_asc_other_data": Table(
        "task1_asc",
        f"Task 1: other data, built-in data and unfinished runs on {PUBLISHED_DATA['task1_asc']}",
        other_data_table,
    ),
}
