"""Figures of results. Each function draws into the Axes it is given and returns it.

Flow: comparison rows, metrics or histories → **figure** → notebook.

    figure, axes = plt.subplots(layout="constrained")
    rows = compare(published, records, ["dcase2025/general"], ["device_accuracy/"])
    published_and_measured(axes, rows, "device")

Colours are those of M. Okabe and K. Ito (Color Universal Design, 2008), which colour-blind readers can tell
apart; bars also differ by hatching and lines by dashes, so that a grey print still reads.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from common.results.compare import Row

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
DASHES = ("-", "--", "-.", ":")


def grouped_bars(
    axes: Axes,
    values: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float]] | None = None,
    x_label: str = "device",
    y_label: str = "accuracy (%)",
) -> Axes:
    """Draw bars side by side, one colour per series.

    Args:
        values: series → name on the x axis → height; a missing name leaves a gap, never a bar of height 0.
        errors: series → name → half-length of the error bar, where there is one.
    """
    names = list(dict.fromkeys(name for heights in values.values() for name in heights))
    width = 0.8 / max(1, len(values))
    for k, (series, heights) in enumerate(values.items()):
        present = [name for name in names if heights.get(name) is not None]
        positions = [names.index(name) + (k - (len(values) - 1) / 2) * width for name in present]
        bars = axes.bar(
            positions,
            [heights[name] for name in present],
            width,
            label=series,
            color=COLOURS[k % len(COLOURS)],
            hatch=HATCHES[k % len(HATCHES)],
            edgecolor="white",
            linewidth=0.5,
        )
        lengths = [(errors or {}).get(series, {}).get(name) or 0.0 for name in present]
        if any(lengths):
            centres = [bar.get_x() + width / 2 for bar in bars]
            axes.errorbar(
                centres, [heights[name] for name in present], lengths, fmt="none", ecolor="black", capsize=2
            )
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    if sum(map(len, names)) > 40:
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # above: bars fill the axes
    return axes


def published_and_measured(axes: Axes, rows: Sequence[Row], x_label: str = "device") -> Axes:
    """Draw published beside measured accuracies (%), with ± one standard deviation over runs if known.

    `rows` come from `common.results.compare.compare`: runs on other data are never among them.
    """
    values: dict[str, dict[str, float]] = {}
    errors: dict[str, dict[str, float]] = {}
    for row in rows:
        name = row.metric.partition("/")[2] or row.metric.replace("_", " ")
        both = [("published", row.published.value, row.published.spread)]
        if row.measured:
            both.append(("measured", row.mean, row.sd))
        for kind, value, spread in both:
            series = f"{row.system}, {kind}"
            values.setdefault(series, {})[name] = value
            if spread is not None:
                errors.setdefault(series, {})[name] = spread
    return grouped_bars(axes, values, errors, x_label)


def confusion_matrix(axes: Axes, confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> Axes:
    """Draw which class was taken for which, in per cent of the true class's clips; counts (K, K)."""
    counts = np.asarray(confusion, dtype=float)
    totals = counts.sum(axis=1, keepdims=True)
    percent = 100 * np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    labels = [name.replace("_", " ") for name in class_names]
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), labels)
    for row, column in np.argwhere(percent >= 0.5):
        shade = "black" if percent[row, column] > 55 else "white"
        text = f"{percent[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=shade, fontsize="small")
    axes.set_xlabel("recognised class")
    axes.set_ylabel("true class")
    axes.figure.colorbar(image, ax=axes, label="clips of the true class (%)")
    return axes


def learning_curves(
    axes: Axes,
    histories: Mapping[str, Sequence[Mapping]],
    key: str = "train_loss",
    y_label: str = "training loss (nats)",
) -> Axes:
    """Draw `key` over epochs for each named history; epochs that did not record it are passed over."""
    for k, (name, history) in enumerate(histories.items()):
        points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
        epochs, values = zip(*points, strict=True) if points else ((), ())
        axes.plot(
            epochs,
            values,
            label=name,
            color=COLOURS[k % len(COLOURS)],
            linestyle=DASHES[k % len(DASHES)],
            marker="o" if len(points) == 1 else None,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(y_label)
    if histories:
        axes.legend()
    return axes


def complexity(
    axes: Axes, systems: Mapping[str, Mapping[str, float]], max_macs: float = 30e6, max_bytes: float = 128_000
) -> Axes:
    """Draw systems by parameter memory and multiply-accumulates, with the challenge's limits (2025).

    Args:
        systems: name → {"macs": per 1-s clip, "bytes": of the parameters at inference}.
    """
    axes.axvline(max_bytes / 1e3, color="black", linestyle="--", linewidth=1)
    axes.axhline(max_macs / 1e6, color="black", linestyle="--", linewidth=1, label="limits of the challenge")
    for k, (name, size) in enumerate(systems.items()):
        axes.scatter(
            size["bytes"] / 1e3,
            size["macs"] / 1e6,
            label=name,
            color=COLOURS[k % len(COLOURS)],
            marker="osD^vPX"[k % 7],
            zorder=3,
        )
    axes.set_xlim(0, 1.15 * max([max_bytes / 1e3, *(size["bytes"] / 1e3 for size in systems.values())]))
    axes.set_ylim(0, 1.15 * max([max_macs / 1e6, *(size["macs"] / 1e6 for size in systems.values())]))
    axes.set_xlabel("memory of the parameters (kB)")
    axes.set_ylabel("multiply-accumulates per clip (millions)")
    axes.legend()
    return axes
