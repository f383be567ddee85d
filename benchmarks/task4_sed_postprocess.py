"""Task 4: what median filter, boxes and tuning cost, against the plain way in the same run; one core.

Run:  python -m benchmarks.task4_sed_postprocess median
      python -m benchmarks.task4_sed_postprocess boxes
      python -m benchmarks.task4_sed_postprocess tuning       about two minutes, most of it the plain way
`--clips` takes the first clips only. Scores are those of a real system where the reference material lies
beside the repository, else noise of the same shape (1,168 clips, 156 frames, 10 classes).
"""

import argparse
import json
import os
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # one core, for both ways; before numpy starts its threads

import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402
from sed_scores_eval import intersection_based  # noqa: E402

from benchmarks.measure import alternate, in_own_process, keep  # noqa: E402
from common.metrics.sed_scores import FrameScores  # noqa: E402
from common.results.records import peak_memory  # noqa: E402
from task4_sed.csebbs import BoxParameters, extents, predict, score_tables  # noqa: E402
from task4_sed.csebbs_tuning import Grid, tune  # noqa: E402
from task4_sed.postprocess import median_filter  # noqa: E402
from tests.parity.vectors import SHARED, Vector  # noqa: E402

WINDOWS = (3, 9, 9, 5, 5, 5, 9, 7, 11, 9)  # frames, published, of the ten classes
N_CLIPS, N_FRAMES, FRAME_S = 1168, 156, 0.064
PLAIN_CANDIDATES = 2  # of the grid; the rest takes as long


# ---------------------------------------------------------------- the plain way


def plain_boxes(x: np.ndarray, edges: np.ndarray, parameters: BoxParameters) -> list[tuple[float, float, float]]:
    """Return (onset, offset, score) of the cSEBBs of one clip and class, step by step as they are described."""
    half = parameters.step_filter_s / 2
    times = np.unique(np.round(np.concatenate([edges - half, edges, edges + half]), 9))
    times = times[(times >= edges[0]) & (times <= edges[-1])]
    integral = np.append(0, np.cumsum(x * np.diff(edges)))

    def until(t):
        return np.interp(t, edges, integral)

    change = (until(times + half) - 2 * until(times) + until(times - half)) / half
    extrema, direction = [], 1
    slopes = [*np.diff(change) / np.diff(times), 1.0]  # back to zero after the end
    for i, slope in enumerate(slopes):
        if abs(slope) > 1e-10 and np.sign(slope) != direction:
            direction = np.sign(slope)
            extrema.append(i)
    segments = [(times[a], times[b]) for a, b in zip(extrema[::2], extrema[1::2])]

    def frames(begin, end):
        return x[np.searchsorted(edges, begin, "right") - 1 : np.searchsorted(edges, end, "left")]

    boxes = []
    peaks = [frames(*segment).max() for segment in segments]
    for i, (onset, offset) in enumerate(segments):
        if i:
            floor, peak = frames(segments[i - 1][1], onset).min(), max(peaks[i - 1 : i + 1])
            if peak - floor < parameters.merge_abs and (peak + 1e-3) / (floor + 1e-3) < parameters.merge_rel:
                boxes[-1] = (boxes[-1][0], offset)
                continue
        boxes.append((onset, offset))
    return [(a, b, (until(b) - until(a)) / (b - a + 1e-6)) for a, b in boxes]


def plain_tables(scores: FrameScores, parameters: BoxParameters) -> dict:
    """Return clip → table of the boxes of all classes."""
    import pandas as pd

    edges = np.round(scores.boundaries_s, 9)
    tables = {}
    for clip, values in zip(scores.clips, scores.values):
        boxes = {name: plain_boxes(values[:, k], edges, parameters) for k, name in enumerate(scores.classes)}
        borders = {edges[0], edges[-1]} | {t for own in boxes.values() for a, b, _ in own for t in (a, b)}
        borders = np.array(sorted(borders))
        table = pd.DataFrame({"onset": borders[:-1], "offset": borders[1:]})
        for name, own in boxes.items():
            column = np.zeros(len(table))
            for onset, offset, score in own:
                column[(borders[:-1] >= onset) & (borders[1:] <= offset)] = score
            table[name] = column
        tables[clip] = table
    return tables


def plain_median(values: np.ndarray) -> np.ndarray:
    """Filter clip by clip and class by class."""
    filtered = np.empty_like(values)
    for clip in range(len(values)):
        for label, window in enumerate(WINDOWS):
            filtered[clip, :, label] = ndimage.median_filter(values[clip, :, label], window)
    return filtered


# ---------------------------------------------------------------- data


def development_set(n_clips: int) -> tuple[FrameScores, dict, dict, str]:
    """Return scores, clip → events, clip → duration (s), and what they are.

    The real scores are steps of 0.02; as those of a network are never equal, noise of up to 0.01 is added.
    """
    rng = np.random.default_rng(0)
    real = Vector(SHARED / "parity" / "sed", "psds_real")
    if real.exists():
        clips, classes, arrays = real.field("files"), real.field("classes"), real.arrays
        values, durations, what = arrays["scores"] / 50, arrays["dur"], "real scores of DESED validation"
        rows = [arrays[key].tolist() for key in ("gt_file", "gt_on", "gt_off", "gt_cls")]
    else:
        clips, classes = [f"clip{i}" for i in range(N_CLIPS)], [f"class{k}" for k in range(len(WINDOWS))]
        values, durations, what = noise_scores(rng), np.full(N_CLIPS, 10.0), "noise instead of real scores"
        rows = noise_events(rng)
    values = (values + 0.01 * rng.random(values.shape)) / 1.01
    events: dict[str, list] = {clip: [] for clip in clips[:n_clips]}
    for clip, onset, offset, label in zip(*rows):
        if clip < n_clips:
            events[clips[clip]].append((onset, offset, classes[label]))
    events = {clip: own for clip, own in events.items() if own}
    scores = FrameScores(clips[:n_clips], classes, np.arange(values.shape[1] + 1) * FRAME_S, values[:n_clips])
    return scores, events, dict(zip(clips, durations.tolist())), f"{what}, noise of up to 0.01 added"


def noise_scores(rng: np.random.Generator) -> np.ndarray:
    smooth = ndimage.gaussian_filter1d(rng.standard_normal((N_CLIPS, N_FRAMES, len(WINDOWS))), 6, axis=1)
    return 1 / (1 + np.exp(6 - 20 * smooth))


def noise_events(rng: np.random.Generator) -> list[list]:
    """Return clip, onset, offset and class of three events per clip, of different classes."""
    rows = []
    for clip in range(N_CLIPS):
        for label in rng.choice(len(WINDOWS), 3, replace=False):
            onset = rng.uniform(0, 8)
            rows.append((clip, round(onset, 3), round(onset + rng.uniform(0.3, 2), 3), int(label)))
    return [list(column) for column in zip(*rows)]


# ---------------------------------------------------------------- what is measured


def median(args) -> None:
    """Median filter of all scores, one window per class."""
    scores, _, _, what = development_set(args.clips)
    values = scores.values.astype(np.float32)
    assert np.array_equal(plain_median(values), median_filter(values, WINDOWS))
    times = alternate(
        {
            "plain: scipy, clip by clip and class by class": lambda: plain_median(values),
            "this repository": lambda: median_filter(values, WINDOWS),
        }
    )
    keep(
        "task4_sed_median",
        f"Task 4: median filter of {len(values):,} clips, {values.shape[2]} classes, one core",
        ratios(times),
        f"Same values; {what}.",
    )


def boxes(args) -> None:
    """cSEBBs with the default parameters, as score tables."""
    scores, _, _, what = development_set(args.clips)

    def ours():
        found = predict(scores.values, scores.boundaries_s, BoxParameters())
        return score_tables(found, scores.clips, scores.classes, extents(scores.boundaries_s))

    apart = difference(plain_tables(scores, BoxParameters()), ours())
    times = alternate(
        {
            "plain: clip by clip and class by class": lambda: plain_tables(scores, BoxParameters()),
            "this repository": ours,
            "this repository, boxes only": lambda: predict(scores.values, scores.boundaries_s, BoxParameters()),
        },
        rounds=1,
    )
    keep(
        "task4_sed_boxes",
        f"Task 4: cSEBBs of {len(scores):,} clips, {len(scores.classes)} classes, one core",
        ratios(times),
        f"Same borders, scores within {apart:.0e}; {what}.",
    )


def ratios(times: dict[str, float]) -> list[dict]:
    plain = next(iter(times.values()))
    return [{"way": name, "s": round(s, 3), "plain / this": round(plain / s, 1)} for name, s in times.items()]


def difference(first: dict, second: dict) -> float:
    """Return the largest difference between two sets of tables with the same rows."""
    return max(float(np.abs(table.to_numpy() - second[clip].to_numpy()).max()) for clip, table in first.items())


def tuning(args) -> None:
    """The whole grid, class by class; the plain way on some candidates and scaled up."""
    rows = [
        in_own_process("benchmarks.task4_sed_postprocess", "one_tuning", "--kind", kind, "--clips", str(args.clips))
        for kind in ("plain", "ours")
    ]
    plain, ours = (row.pop("psds1") for row in rows)
    apart = max(abs(plain[key][name] - ours[key][name]) for key in plain for name in plain[key])
    what = rows[0].pop("data")
    rows[1].pop("data")
    seconds = rows[0]["CPU s, whole grid"]
    rows = [row | {"plain / this": round(seconds / row["CPU s, whole grid"], 1)} for row in rows]
    keep(
        "task4_sed_tuning",
        f"Task 4: tuning of cSEBBs, {len(Grid())} candidates, {args.clips:,} clips, 10 classes, one core",
        rows,
        f"Plain: {PLAIN_CANDIDATES} candidates measured and scaled to {len(Grid())}; PSDS1 of every class by "
        f"sed_scores_eval for each. Own PSDS1 differs from it by at most {apart:.0e} on these candidates. Memory is "
        f"the process's peak, libraries and scores too. Data: {what}.",
    )


def one_tuning(args) -> None:
    """Measure one way in this process."""
    scores, events, durations_s, what = development_set(args.clips)
    grid = Grid()
    thresholds = list(grid.thresholds())
    candidates = [BoxParameters(grid.step_filter_s[i], *thresholds[9 * i]) for i in range(PLAIN_CANDIDATES)]
    start = time.process_time()
    if args.kind == "plain":
        psds1 = {str(own): plain_psds1(scores, events, durations_s, own) for own in candidates}
        seconds = (time.process_time() - start) * len(grid) / len(candidates)
        way, memory = "plain: clip by clip, sed_scores_eval for each candidate", peak_memory()
    else:
        tune(scores, events, durations_s)
        seconds = time.process_time() - start
        way, memory = "this repository", peak_memory()
        psds1 = {str(own): fast_psds1(scores, events, durations_s, own) for own in candidates}
    row = {"way": way, "CPU s, whole grid": round(seconds, 1), **memory}
    print(json.dumps(row | {"psds1": psds1, "data": what}))


def plain_psds1(scores: FrameScores, events: dict, durations_s: dict, own: BoxParameters) -> dict[str, float]:
    tables = plain_tables(scores, own)
    tables = {clip: tables[clip] for clip in events}
    durations_s = {clip: durations_s[clip] for clip in events}
    return intersection_based.psds(tables, events, durations_s, dtc_threshold=0.7, gtc_threshold=0.7)[1]


def fast_psds1(scores: FrameScores, events: dict, durations_s: dict, own: BoxParameters) -> dict[str, float]:
    merge_abs = [own.merge_abs] if np.isfinite(own.merge_abs) else []
    merge_rel = [own.merge_rel] if np.isfinite(own.merge_rel) else []
    return dict(tune(scores, events, durations_s, Grid([own.step_filter_s], merge_abs, merge_rel)).psds1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("median", "boxes", "tuning", "one_tuning"))
    parser.add_argument("--clips", type=int, default=N_CLIPS)
    parser.add_argument("--kind", choices=("plain", "ours"), default="ours")
    args = parser.parse_args()
    globals()[args.what](args)


if __name__ == "__main__":
    main()
