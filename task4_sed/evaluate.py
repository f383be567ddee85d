"""Score folders of frame scores, of this repository or of any other system; predict and score runs.

Flow: score folder + ground truth + durations → **scores** → table, JSON.
Run:  python -m task4_sed.evaluate folder SCORES --ground-truth GT.tsv --durations D.tsv [--out scores.json]
      python -m task4_sed.evaluate folder SCORES --ground-truth GT.tsv --durations D.tsv --maestro
      python -m task4_sed.evaluate folder SCORES --audioset-strong TABLES
      python -m task4_sed.evaluate predict|tune|score|compare --help      runs of this repository, see reporting.py

SCORES holds one file per clip in the form of sed_scores_eval: CLIP.tsv with onset, offset and one column per class. The
ground truth has the columns filename, onset, offset, event_label (for MAESTRO also confidence), the durations filename
and duration; all are separated by tabs. Scoring needs these files alone, never a model.

For MAESTRO the clips are crops named RECORDING-000500-001500, the durations those of the recordings; see
`common.metrics.maestro`. For AudioSet Strong the ground truth are the tables of the release, see
`task4_sed.audioset_strong`; files of SCORES are called after the audio file (Y and the YouTube id) or the segment, and
the score is PSDS1 without the spread over its classes.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.manifest import DataError
from common.files import write_json
from common.metrics.maestro import MAX_FPR, CropLabels, joined_set, read_crop_labels
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
from common.metrics.sed_scores import (
    ground_truth,
    read_durations,
    read_ground_truth,
    read_score_folder,
    some,
)
from common.results.records import command_line, git_state, versions
from task4_sed import audioset_strong
from task4_sed.labels import nearest_class, sound_classes

SECONDS_PER_HOUR = 3600
N_RESAMPLES, FEWEST_RESAMPLES = 200, 10
ROUNDING = 1e-6  # means of probabilities may lie that much above 1
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
        settings = settings.for_classes(len(self.data.classes))
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
AUDIOSET_METRICS = ("psds1_macro", "psds1")
THRESHOLDED = {"intersection_f1", "collar_f1", "segment_f1"}
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

    Raises:
        ValueError: too few resamples for an interval, or a threshold that is no number.
    """
    if n_resamples and n_resamples < FEWEST_RESAMPLES:
        raise ValueError(f"{n_resamples} resamples give no interval: take at least {FEWEST_RESAMPLES}, or 0 for none.")
    if not np.isfinite(threshold):
        raise ValueError(f"threshold {threshold} must be a finite number, such as 0.5.")
    bootstrap = ClipBootstrap(data.clips, n_resamples=n_resamples) if n_resamples and len(data.clips) > 1 else None
    judge, found, bounds, fewest = Judge(data, bootstrap, threshold), {}, {}, n_resamples
    notes = [*data.notes, *_no_probabilities(data, threshold)] if THRESHOLDED & set(metrics) else list(data.notes)
    for name in metrics:
        score, parts = METRICS[name][1](judge)
        found |= {name: score.value, f"{name}_class": dict(score.per_class)}
        if "micro_average" in score.details:
            found[f"{name}_micro"] = score.details["micro_average"]
        if parts:
            own = {"": parts[0].interval(), **{key: part.interval() for key, part in parts[1].items()}}
            fewest = min(fewest, own[""].n_resamples)
            own = {key: [interval.low, interval.high] for key, interval in own.items() if interval.n_resamples}
            bounds |= {name: own.pop("")} if "" in own else {}
            bounds |= {f"{name}_class": own}
    if fewest < n_resamples and bootstrap:
        n_without = n_resamples - fewest
        notes.append(
            f"{n_without} of {n_resamples} resamples hold no event to score; intervals are those of the others."
        )
    intervals = None
    if bounds:
        about = {"level": bootstrap.level, "resampled": unit, "n_groups": bootstrap.n_groups}
        intervals = {**about, "n_resamples": bootstrap.n_resamples, **bounds}
    return {
        "status": data.status,
        "notes": notes,
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


def _no_probabilities(data: ScoringSet, threshold: float) -> list[str]:
    """Return a sentence where scores lie outside 0…1: a threshold then says little."""
    values = [own.to_numpy()[:, 2:] for own in data.tables.values()]
    low, high = min(map(np.min, values)), max(map(np.max, values))
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return []
    return [
        f"scores lie within {low:.2f}…{high:.2f} and are no probabilities: F1 at {threshold:g} says little; PSDS and "
        "AUROC only ask for their order."
    ]


# ---------------------------------------------------------------- what is scored


def clip_set(args: argparse.Namespace) -> ScoringSet:
    """Return clips with the ground truth of a table."""
    truth, durations_s, notes = read_ground_truth(args.ground_truth), read_durations(args.durations), []
    tables = read_score_folder(args.scores, args.classes or truth.classes or None, notes=notes)
    data = scoring_set(tables, truth, durations_s, args.classes, not args.keep_empty_clips)
    return replace(data, notes=(*notes, *data.notes))


def maestro_set(args: argparse.Namespace) -> ScoringSet:
    """Return the recordings that crops are joined to, with soft labels as ground truth."""
    classes, notes = args.classes or sound_classes().where(sound_classes().maestro_evaluated), []
    labels, durations_s = read_crop_labels(args.ground_truth), read_durations(args.durations)
    tables = read_score_folder(args.scores, classes, notes=notes)
    notes += _unknown_labels(labels, {*sound_classes().names, *classes})
    data = joined_set(tables, labels, durations_s, classes, args.crops)
    return replace(data, notes=(*notes, *data.notes))


def _unknown_labels(labels: CropLabels, known: set[str]) -> list[str]:
    """Return a sentence on labels that are no class, with the class each probably means."""
    unknown = labels.events.event_label[~labels.events.event_label.isin(known)]
    if unknown.empty:
        return []
    near = {label: nearest_class(label, sorted(known)) for label in sorted(unknown.unique())}
    said = [f"{label!r}" + (f" (nearest: {name!r})" if name else "") for label, name in near.items()]
    return [f"{len(unknown)} rows have labels that are no class of the task, and are left out: {some(said, shown=8)}."]


def audioset_set(args: argparse.Namespace) -> ScoringSet:
    """Return the clips of AudioSet Strong's evaluation part, with the classes that its training part has too.

    Classes and clips without scores are left out with a sentence. Single precision: 17 000 clips of 407 classes take
    7 GB.
    """
    names = audioset_strong.read_display_names(args.audioset_strong / audioset_strong.NAMES)
    path = args.audioset_strong / audioset_strong.TABLES["eval"]
    train, rows = (
        audioset_strong.read_strong(args.audioset_strong / audioset_strong.TABLES[part], names)
        for part in ("train", "eval")
    )
    lists = audioset_strong.class_lists(train, rows)
    truth, notes = ground_truth(rows, str(path)), lists.differences()
    clips = {name: segment for segment in truth.events for name in audioset_strong.audio_names(segment)}
    if args.durations:
        durations_s = {clips.get(name, name): own for name, own in read_durations(args.durations).items()}
    else:
        durations_s = dict.fromkeys(truth.events, audioset_strong.CLIP_S)
        notes.append(f"durations are not given, and taken to be {audioset_strong.CLIP_S:g} s (--durations).")
    wanted = args.classes or lists.both
    tables = read_score_folder(args.scores, wanted, required=False, dtype=np.float32, notes=notes)
    classes = list(next(iter(tables.values())).columns[2:])
    if missing := [name for name in wanted if name not in classes]:
        notes.append(
            f"{len(missing)} of {len(wanted)} classes have no scores, and are left out: {', '.join(missing)}."
        )
    data = scoring_set(_by_segment(tables, clips), truth, durations_s, classes, not args.keep_empty_clips)
    counts = {**data.counts, "classes_missing": data.counts["classes_missing"] + len(missing)}
    return replace(data, notes=(*notes, *data.notes), counts=counts)


def _by_segment(tables: Mapping[str, pd.DataFrame], clips: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Return segment → scores, whichever of its two names a file has."""
    found: dict[str, str] = {}
    for name in tables:
        if found.setdefault(clips.get(name, name), name) != name:
            segment = clips[name]
            raise DataError(f"two files of scores for the clip {segment}: {found[segment]} and {name}; take one out.")
    return {segment: tables[name] for segment, name in found.items()}


def score_folder(args: argparse.Namespace) -> None:
    """Score one folder, print the table and write the JSON."""
    if args.maestro and args.audioset_strong:
        raise ValueError("--maestro and --audioset-strong are two data sets; give one.")
    if args.audioset_strong and args.ground_truth:
        raise ValueError("the ground truth is that of --audioset-strong; leave --ground-truth out.")
    if not args.audioset_strong and not (args.ground_truth and args.durations):
        raise ValueError("--ground-truth and --durations are needed, or --audioset-strong with the release's tables.")
    read, metrics, unit, n_resamples = clip_set, DEFAULT_METRICS, "clip", N_RESAMPLES
    if args.maestro:
        read, metrics, unit = maestro_set, MAESTRO_METRICS, "recording"
    elif args.audioset_strong:
        read, metrics, n_resamples = audioset_set, AUDIOSET_METRICS, 0
    n_resamples = n_resamples if args.bootstrap is None else args.bootstrap
    result = evaluate(read(args), args.metrics or metrics, n_resamples, args.threshold, unit)
    print(table(result))
    if args.out:
        files = {"scores": args.scores, "ground_truth": args.ground_truth or args.audioset_strong}
        files |= {"durations": args.durations} if args.durations else {}
        about = {"task": "task4_sed", **{name: path.name for name, path in files.items()}}
        made = {"command": command_line(), "git": git_state(), "versions": versions()}
        write_json(args.out, {**about, **result, **made})
        print(f"\nwrote {args.out}")


def add_folder_command(parts) -> None:
    """Add the sub-command `folder` to the sub-parsers of argparse."""
    folder = parts.add_parser("folder", help="score any folder of frame scores")
    folder.add_argument("scores", type=Path, help="folder with one file of frame scores per clip")
    folder.add_argument("--ground-truth", type=Path, help="events, or soft labels with --maestro")
    folder.add_argument("--durations", type=Path, help="seconds of each clip (--maestro: recording)")
    folder.add_argument("--metrics", nargs="+", choices=METRICS, metavar="NAME", help=f"of {', '.join(METRICS)}")
    folder.add_argument("--classes", nargs="+", metavar="CLASS", help="default: all of the ground truth")
    folder.add_argument("--maestro", action="store_true", help="join crops to recordings, score mpAUC")
    folder.add_argument(
        "--audioset-strong",
        type=Path,
        metavar="TABLES",
        help="folder with the tables of AudioSet Strong, instead of --ground-truth; --durations may be left out",
    )
    folder.add_argument(
        "--crops",
        choices=("all", "with_events"),
        default="all",
        help="crops to join: all, as in the final evaluation published, or those with an event, as in its test step",
    )
    folder.add_argument("--keep-empty-clips", action="store_true", help="published: clips without events do not count")
    folder.add_argument("--threshold", type=float, default=0.5, help="of the F1 scores")
    folder.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help=f"resamples for intervals; 0: none (default: {N_RESAMPLES}, with --audioset-strong 0)",
    )
    folder.add_argument("--out", type=Path, metavar="JSON", help="file for scores, intervals and notes")
    folder.set_defaults(act=score_folder)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    add_folder_command(parts)
    words = sys.argv[1:] if argv is None else argv
    if words[:1] != ["folder"]:  # what the others import takes seconds
        from task4_sed.reporting import add_commands

        add_commands(parts)
    args = parser.parse_args(argv)
    try:
        args.act(args)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
