"""Score folders of frame scores, of this repository or of any other system.

Flow: score folder + ground truth + durations → **scores** → table, JSON.
Run:  python -m task4_sed.evaluate folder SCORES --ground-truth GT.tsv --durations D.tsv [--out scores.json]
      python -m task4_sed.evaluate folder SCORES --ground-truth GT.tsv --durations D.tsv --maestro

SCORES holds one file per clip in the form of sed_scores_eval: CLIP.tsv with onset, offset and one column per class. The
ground truth has the columns filename, onset, offset, event_label (for MAESTRO also confidence), the durations filename
and duration; all are separated by tabs. Scoring needs these files alone, never a model.

For MAESTRO the clips are crops named RECORDING-000500-001500, the durations those of the recordings; see
`common.metrics.maestro`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from common.files import write_json
from common.metrics.maestro import MAX_FPR, joined_set, read_soft_labels
from common.metrics.scoring_set import ScoringSet, scoring_set
from common.metrics.sed import (
    PSDS1,
    PSDS1_MACRO,
    PSDS2,
    PsdsSettings,
    Score,
    collar_counts,
    collar_f1,
    intersection_counts,
    intersection_f1,
    psds,
    psds_second_opinion,
    segment_auroc,
    segment_cells,
    segment_f1,
)
from common.metrics.sed_intervals import (
    ClipBootstrap,
    Parts,
    resampled_auroc,
    resampled_f1,
    resampled_psds,
    resampled_segment_f1,
)
from common.metrics.sed_scores import read_durations, read_ground_truth, read_score_folder
from common.results.records import command_line, git_state, versions
from task4_sed.labels import sound_classes

SECONDS_PER_HOUR = 3600
Result = tuple[Score, Parts | None]


@dataclass
class Judge:
    """Scores one scoring set; what several metrics need is counted once.

    Args:
        bootstrap: for intervals; None leaves them out. threshold: of the F1 scores.
    """

    data: ScoringSet
    bootstrap: ClipBootstrap | None = None
    threshold: float = 0.5

    def __post_init__(self):
        self._intersections = cache(lambda *criteria: intersection_counts(self.data, *criteria))

    @cached_property
    def _cells(self) -> dict:
        return segment_cells(self.data)

    def _resampled(self, function: Callable, *arguments) -> Parts | None:
        return function(self.data, self.bootstrap, *arguments) if self.bootstrap else None

    def psds(self, settings: PsdsSettings) -> Result:
        counts = self._intersections(settings.dtc, settings.gtc, settings.cttc)
        return psds(self.data, settings, counts), self._resampled(resampled_psds, settings, counts)

    def psds_second_opinion(self) -> Result:
        return psds_second_opinion(self.data), None

    def intersection_f1(self) -> Result:
        counts = self._intersections(0.5, 0.5, None)
        score = intersection_f1(self.data, self.threshold, counts=counts)
        return score, self._resampled(resampled_f1, counts, self.threshold)

    def collar_f1(self) -> Result:
        counts = collar_counts(self.data)
        score = collar_f1(self.data, self.threshold, counts)
        return score, self._resampled(resampled_f1, counts, self.threshold)

    def segment_f1(self) -> Result:
        score = segment_f1(self.data, self.threshold)
        return score, self._resampled(resampled_segment_f1, self.threshold, self._cells)

    def segment_best_f1(self) -> Result:
        return segment_f1(self.data, threshold=None), None

    def segment_auroc(self, max_fpr: float | None = None) -> Result:
        score = segment_auroc(self.data, max_fpr, cells=self._cells)
        return score, self._resampled(resampled_auroc, max_fpr, self._cells)


METRICS: Mapping[str, tuple[str, Callable[[Judge], Result]]] = {
    "psds1": ("PSDS1", lambda judge: judge.psds(PSDS1)),
    "psds1_macro": ("PSDS1 without the spread over classes (alpha_st 0)", lambda judge: judge.psds(PSDS1_MACRO)),
    "psds2": ("PSDS2", lambda judge: judge.psds(PSDS2)),
    "psds1_psds_eval": ("PSDS1 by psds_eval, 50 thresholds; slow", Judge.psds_second_opinion),
    "intersection_f1": ("macro F1 by intersection (0.5 / 0.5) at {threshold:g}", Judge.intersection_f1),
    "collar_f1": ("macro F1 by collars (200 ms / 20 %) at {threshold:g}", Judge.collar_f1),
    "segment_f1": ("macro F1 of 1 s segments at {threshold:g}", Judge.segment_f1),
    "segment_best_f1": ("macro F1 of 1 s segments, best threshold per class on these clips", Judge.segment_best_f1),
    "segment_auroc": ("AUROC of 1 s segments", Judge.segment_auroc),
    "mpauc": ("AUROC of 1 s segments up to a false positive rate of 0.1", lambda judge: judge.segment_auroc(MAX_FPR)),
}
DEFAULT_METRICS = ("psds1", "psds1_macro", "psds2", "intersection_f1", "collar_f1")
SAME_CLASSES = {"psds1_macro": "psds1"}  # the second shows the classes of the first
MAESTRO_METRICS = ("mpauc", "segment_auroc", "segment_f1", "segment_best_f1")


def evaluate(
    data: ScoringSet, metrics: Sequence[str], n_resamples: int = 0, threshold: float = 0.5, unit: str = "clip"
) -> dict:
    """Return scores and intervals by name, and what was scored, as a dictionary for JSON.

    Args:
        metrics: names of METRICS. n_resamples: 0 for no intervals. threshold: of F1 scores. unit: what a clip of `data`
            is called in the result.

    `{"status", "notes", "counts", "classes", "hours", "metrics": {"psds1": 0.34, "psds1_class": {class: 0.5}, …},
    "intervals": {"psds1": [0.31, 0.36], "psds1_class": {class: [0.4, 0.6]}, "level", "resampled", …} or None}`
    """
    bootstrap = ClipBootstrap(data.clips, n_resamples=n_resamples) if n_resamples and len(data.clips) > 1 else None
    judge, found, bounds = Judge(data, bootstrap, threshold), {}, {}
    for name in metrics:
        score, parts = METRICS[name][1](judge)
        found |= {name: score.value, f"{name}_class": dict(score.per_class)}
        if "micro_average" in score.details:
            found[f"{name}_micro"] = score.details["micro_average"]
        if parts:
            overall, classes = (parts[0].interval(), {key: part.interval() for key, part in parts[1].items()})
            bounds |= {name: [overall.low, overall.high]}
            bounds |= {f"{name}_class": {key: [own.low, own.high] for key, own in classes.items()}}
    intervals = None
    if bounds:
        about = {"level": bootstrap.level, "resampled": unit, "n_groups": bootstrap.n_groups}
        intervals = {**about, "n_resamples": bootstrap.n_resamples, **bounds}
    return {
        "status": data.status,
        "notes": list(data.notes),
        "counts": dict(data.counts),
        "classes": list(data.classes),
        "hours": sum(data.durations_s.values()) / SECONDS_PER_HOUR,
        "threshold": threshold,
        "metrics": found,
        "intervals": intervals,
    }


def table(result: Mapping) -> str:
    """Return the result of `evaluate` for a terminal: what was scored, the scores, the classes."""
    counts, intervals, found = result["counts"], result["intervals"] or {}, result["metrics"]
    names = [name for name in found if name in METRICS]
    lines = [
        f"{counts['clips_scored']} of {counts['clips_expected']} clips, {counts['events']} events of "
        f"{len(result['classes'])} classes, {result['hours']:.2f} h: {result['status']}"
    ]
    lines += [f"- {note}" for note in result["notes"]]
    level = f"{intervals['level']:.0%} interval" if intervals else ""
    lines += ["", f"{'':16}  {'all':>6}  {level}".rstrip()]
    for name in names:
        bounds = "[{:.4f}, {:.4f}]".format(*intervals[name]) if name in intervals else ""
        title = METRICS[name][0].format(threshold=result["threshold"])
        lines.append(f"{name:16}  {found[name]:6.4f}  {bounds:16}  {title}")
    names = [name for name in names if SAME_CLASSES.get(name) not in names]
    width = max(map(len, result["classes"]))
    lines += ["", "  ".join([f"{'class':{width}}", *names])]
    for label in result["classes"]:
        cells = (found[f"{name}_class"].get(label) for name in names)
        shown = (f"{'-' if v is None else format(v, '.4f'):>{len(name)}}" for name, v in zip(names, cells))
        lines.append("  ".join([f"{label:{width}}", *shown]))
    return "\n".join(lines)


def score_folder(args: argparse.Namespace) -> None:
    """Score one folder, print the table and write the JSON."""
    classes = args.classes
    if args.maestro:
        classes = classes or sound_classes().where(sound_classes().maestro_evaluated)
        labels, durations_s = read_soft_labels(args.ground_truth), read_durations(args.durations)
        data = joined_set(read_score_folder(args.scores), labels, durations_s, classes, args.crops)
    else:
        truth, durations_s = read_ground_truth(args.ground_truth), read_durations(args.durations)
        data = scoring_set(read_score_folder(args.scores), truth, durations_s, classes, not args.keep_empty_clips)
    metrics = args.metrics or (MAESTRO_METRICS if args.maestro else DEFAULT_METRICS)
    result = evaluate(data, metrics, args.bootstrap, args.threshold, "recording" if args.maestro else "clip")
    print(table(result))
    if args.out:
        files = {"scores": args.scores, "ground_truth": args.ground_truth, "durations": args.durations}
        about = {"task": "task4_sed", **{name: Path(path).name for name, path in files.items()}}
        made = {"command": command_line(), "git": git_state(), "versions": versions()}
        write_json(args.out, {**about, **result, **made})
        print(f"\nwrote {args.out}")


def add_folder_command(parts) -> None:
    """Add the sub-command `folder` to the sub-parsers of argparse."""
    folder = parts.add_parser("folder", help="score any folder of frame scores")
    folder.add_argument("scores", type=Path, help="folder with one file of frame scores per clip")
    folder.add_argument("--ground-truth", type=Path, required=True, help="events, or soft labels with --maestro")
    folder.add_argument("--durations", type=Path, required=True, help="seconds of each clip (--maestro: recording)")
    folder.add_argument("--metrics", nargs="+", choices=METRICS, metavar="NAME", help=f"of {', '.join(METRICS)}")
    folder.add_argument("--classes", nargs="+", metavar="CLASS", help="default: all of the ground truth")
    folder.add_argument("--maestro", action="store_true", help="join crops to recordings, score mpAUC")
    folder.add_argument(
        "--crops",
        choices=("all", "with_events"),
        default="all",
        help="crops to join: all, as in the final evaluation published, or those with an event, as in its test step",
    )
    folder.add_argument("--keep-empty-clips", action="store_true", help="published: clips without events do not count")
    folder.add_argument("--threshold", type=float, default=0.5, help="of the F1 scores")
    folder.add_argument("--bootstrap", type=int, default=200, metavar="N", help="resamples for intervals; 0: none")
    folder.add_argument("--out", type=Path, metavar="JSON", help="file for scores, intervals and notes")
    folder.set_defaults(run=score_folder)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folder_command(parser.add_subparsers(dest="what", required=True))
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
