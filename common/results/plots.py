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
from matplotlib import colormaps
from matplotlib.axes import Axes

from common.results.compare import Row
from common.results.series import error_bars, seed_means

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
DASHES = ("-", "--", "-.", ":")


def grouped_bars(
    axes: Axes,
    values: Mapping[str, Mapping[str, float]],
    errors: Mapping[str, Mapping[str, float | tuple[float, float]]] | None = None,
    x_label: str = "device",
    y_label: str = "accuracy (%)",
) -> Axes:
    """Draw bars side by side, one colour per series.

    Args:
        values: series → name on the x axis → height; a missing name leaves a gap, never a bar of height 0.
        errors: series → name → half-length of the error bar, or its lengths below and above, where there is one.
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
        own = (errors or {}).get(series, {})
        for bar, name in zip(bars, present, strict=True):
            if own.get(name) is not None:
                ends = np.broadcast_to(own[name], 2)[:, None]
                centre = bar.get_x() + width / 2
                axes.errorbar(centre, bar.get_height(), ends, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    too_long = sum(map(len, names)) > 60
    tilt = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if too_long else {}
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], **tilt)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    # above: bars fill the axes
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3 if len(values) == 3 else 2)
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


def measured(
    axes: Axes, systems: Mapping[str, Sequence[Mapping]], family: str = "device_accuracy", x_label: str = "device"
) -> Axes:
    """Draw measured accuracies (%) alone: the mean over runs, with the recorded interval or else ± one sd.

    Args:
        systems: recipe → its records, all on the same data (`common.results.series.runs_by_data`).
        family: "device_accuracy", "class_accuracy" or "group_accuracy".
    """
    values = {recipe: seed_means(runs, family) for recipe, runs in systems.items()}
    errors = {recipe: error_bars(runs, family) for recipe, runs in systems.items()}
    return grouped_bars(axes, values, errors, x_label)


def forest(
    axes: Axes,
    sections: Mapping[str, Mapping[str, tuple[float, float, float]]],
    x_label: str = "difference (percentage points)",
) -> Axes:
    """Draw differences with their intervals, one row each, below the heading of their section.

    A filled marker's interval leaves out 0, a hollow one's does not. About 0.25 inch of height a row reads well.

    Args:
        sections: heading → label of the row → (difference, low, high).
    """
    row, labels = 0, {}
    for k, (heading, differences) in enumerate(sections.items()):
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(0.01, row, heading, transform=axes.get_yaxis_transform(), weight="bold", va="center", bbox=white)
        for label, (value, low, high) in differences.items():
            row += 1
            labels[row], colour = label, COLOURS[k % len(COLOURS)]
            axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
            face = "white" if low <= 0 <= high else colour
            axes.plot(value, row, "o", markerfacecolor=face, markeredgecolor=colour, markersize=6)
            numbers = f"{value:+.1f}  [{low:+.1f}, {high:+.1f}]".replace("-", "−")
            axes.text(1.01, row, numbers, transform=axes.get_yaxis_transform(), va="center", fontsize="small")
        row += 1
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    axes.set_yticks(list(labels), labels.values())
    axes.set_ylim(row - 0.3, -0.7)  # first section at the top
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(x_label)
    return axes


def log_mel(
    axes: Axes,
    values: np.ndarray,
    duration_s: float,
    f_max_hz: float,
    f_min_hz: float = 0.0,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """Draw a log-mel spectrogram (F, N), HTK bands between the two edges.

    Args:
        limits: values of the darkest and the brightest colour, so that several images can be compared.
    """
    n_mels, (darkest, brightest) = len(values), limits or (None, None)
    axes.imshow(
        values,
        cmap=colormaps["magma"].resampled(32),  # 32 colours: the image takes a third of the bytes
        vmin=darkest,
        vmax=brightest,
        extent=(0, duration_s, -0.5, n_mels - 0.5),
        origin="lower",
        aspect="auto",
        interpolation_stage="data",
    )
    ticks_hz = [hz for hz in (500, 1000, 2000, 4000, 8000, 16000) if f_min_hz < hz < f_max_hz]
    edges = _mel(np.array([f_min_hz, f_max_hz]))
    bands = (_mel(np.array(ticks_hz)) - edges[0]) / (edges[1] - edges[0]) * (n_mels + 1) - 1
    axes.set_yticks(bands, [f"{hz / 1000:g}" for hz in ticks_hz])
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (kHz)")
    return axes


def _mel(frequency_hz: np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + frequency_hz / 700)


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
    systems: Mapping[str, Sequence[Sequence[Mapping]]],
    key: str = "train_loss",
    y_label: str = "training loss (nats)",
) -> Axes:
    """Draw `key` over epochs, a thin line per run and one colour per system.

    Args:
        systems: name → the history of each of its runs; epochs that did not record `key` are passed over.
    """
    for k, (name, histories) in enumerate(systems.items()):
        for n, history in enumerate(histories):
            points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
            epochs, values = zip(*points, strict=True) if points else ((), ())
            axes.plot(
                epochs,
                values,
                label=None if n else name,  # one entry of the legend for all runs
                color=COLOURS[k % len(COLOURS)],
                linestyle=DASHES[k % len(DASHES)],
                linewidth=1,
                marker="o" if len(points) == 1 else None,
            )
    axes.set_xlabel("epoch")
    axes.set_ylabel(y_label)
    if systems:
        axes.legend()
    return axes


def psd_roc(axes: Axes, systems: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], max_efpr: float = 100) -> Axes:
    """Draw PSD-ROC curves, a thin line per run and one colour per system.

    Args:
        systems: name → the curve of each run, {"efpr": per hour, "etpr"} as in `curves` of a record: staircases.
    """
    for k, (name, curves) in enumerate(systems.items()):
        for n, curve in enumerate(curves):
            axes.step(
                [*curve["efpr"], max_efpr],
                [*curve["etpr"], curve["etpr"][-1]],
                where="post",
                label=None if n else name,  # one entry of the legend for all runs
                color=COLOURS[k % len(COLOURS)],
                linestyle=DASHES[k % len(DASHES)],
                linewidth=1,
            )
    axes.set_xlim(0, max_efpr)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("effective false positives per hour")
    axes.set_ylabel("effective true positive rate")
    axes.grid(alpha=0.3)
    if systems:
        axes.legend()
    return axes


def score_against_cost(
    axes: Axes, systems: Mapping[str, tuple[float, float, tuple[float, float] | None]], y_label: str = "PSDS1 (%)"
) -> Axes:
    """Draw what systems score against what they cost, on a logarithmic axis.

    Args:
        systems: name → (multiply-adds of a clip, score in per cent, its interval or None).
    """
    for k, (name, (macs, score, interval)) in enumerate(systems.items()):
        ends = None if interval is None else [[score - interval[0]], [interval[1] - score]]
        style = {"color": COLOURS[k % len(COLOURS)], "fmt": "osD^vPX"[k % 7], "capsize": 2}
        axes.errorbar(macs / 1e9, score, ends, label=name, **style)
    axes.set_xscale("log")
    axes.set_xlabel("multiply-adds of a clip of 10 s (billions)")
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    if systems:
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
