"""From predictions to result files: predict, tune boxes, score into records, compare two systems.

Flow: RUN/predictions/SET.hdf5 + label tables → **records, comparisons** → results/ → tables, notebook.
Run:  python -m task4_sed.evaluate predict --run RUN --data FOLDER --cache CACHE
      python -m task4_sed.evaluate tune --run RUN --data FOLDER [--oracle]
      python -m task4_sed.evaluate score --run RUN --data FOLDER --results results/task4_sed
      python -m task4_sed.evaluate compare --runs RUN … --against RUN … --data FOLDER --results results/comparisons

A run is a run folder, or any folder of prediction files: an ensemble's, or published ones (then give --recipe). There
is one record per recipe, seed and split.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.data.manifest import DataError
from common.files import sha256, short_name, write_json
from common.metrics.bootstrap import Resampled, comparison_for_record
from common.metrics.maestro import MAX_FPR
from common.metrics.scoring_set import MISSING, ScoringSet
from common.metrics.sed import PSDS1, PSDS1_MACRO, intersection_counts
from common.metrics.sed_intervals import ClipBootstrap, Parts, resampled_auroc, resampled_psds
from common.results.records import new_record, shorten_paths, write_record
from common.training.runs import WEIGHTS, read_log
from task4_sed.data import PUBLISHED_DATA, dataset_name
from task4_sed.evaluate import DEFAULT_METRICS, MAESTRO_METRICS, N_RESAMPLES, evaluate
from task4_sed.predict_options import add_predict_options
from task4_sed.predictions import ENERGY, FOLDER, prediction_files, prediction_folder
from task4_sed.scoring import BOXES, ORACLE, TUNED_ON, Split, psd_roc, read_boxes, tune_boxes

SCORED = ("devtest", "eval_public", "maestro_real_dev")
PREDICTED = (*SCORED, *TUNED_ON, "eval24")  # the last has no labels: it is handed in
BUILT_IN, N_BUILT_IN = "built-in data", 20  # resamples there
FEW_METRICS = {False: ("psds1", "psds1_macro", "intersection_f1"), True: ("mpauc",)}  # by Split.is_soft
MAIN = "median"  # its scores stand at the top of a record


# ---------------------------------------------------------------- records


def metrics_of(split: Split, post: str, is_published: bool) -> tuple[str, ...]:
    """Return what is scored of a split behind one post-processing."""
    if post != MAIN:
        return FEW_METRICS[split.is_soft]
    if split.is_soft:
        return MAESTRO_METRICS
    return (*DEFAULT_METRICS, *(["psds1_psds_eval"] if is_published else []))  # slow; the baseline published it


def score_split(split: Split, boxes: Mapping, n_resamples: int = 200, is_published: bool = False) -> dict:
    """Return the "metrics", "intervals", "curves", "counts" and "notes" of a record.

    Scores behind the median filter stand at the top, those of other post-processings below their name. Where there is
    no median filter for these frames, the raw scores stand at the top.
    """
    sets = split.processed(boxes)
    if MAIN not in sets:
        sets = {MAIN: sets.pop("raw"), **sets}
    metrics, intervals, curves, about = {}, {}, {}, {}
    for post, data in sets.items():
        result = evaluate(data, metrics_of(split, post, is_published), n_resamples, unit=split.unit)
        own = result["intervals"]
        if post == MAIN:
            n_items = sum(split.card("", False)["found"].values())
            what = {"n_items": n_items, "n_scored": len(data.clips), "class_names": list(data.classes)}
            metrics = {**result["metrics"], **what}
            intervals, about = own, {key: result[key] for key in ("counts", "notes", "hours", "threshold")}
        else:
            metrics[post] = result["metrics"]
            if own:
                intervals[post] = {key: value for key, value in own.items() if key in result["metrics"]}
        if not split.is_soft:
            curves[post] = psd_roc(data)
    return {"metrics": metrics, "intervals": intervals, "curves": curves, "scoring": about}


def score(args: argparse.Namespace) -> None:
    """Score runs' predictions and write a record for each split."""
    if len(args.run) > 1 and (args.recipe or args.seed is not None):
        raise DataError(f"--recipe and --seed name one run, {len(args.run)} are given; score them one by one.")
    for run in args.run:
        boxes = read_boxes(run)
        splits = args.splits or [name for name in SCORED if name in prediction_files(run)]
        if not splits:
            raise DataError(f"{prediction_folder(run)}: no predictions of {', '.join(SCORED)}; predict them first.")
        for name in splits:
            split = Split.load(args.data, name, run)
            record = record_of(run, split, boxes, resamples(args), args.recipe, args.seed)
            path = write_record(record, args.results)
            what = f"{record['recipe']}, seed {record['seed']}, {name} ({record['status']})"
            print(f"{what}: {headline(record)}  {path}", flush=True)


def resamples(args: argparse.Namespace) -> int:
    """Return how many resamples intervals take: few on the built-in data, which are there to see that all runs."""
    if args.bootstrap is not None:
        return args.bootstrap
    return N_BUILT_IN if dataset_name(args.data) == BUILT_IN else N_RESAMPLES


def headline(record: Mapping) -> str:
    """Return the main scores of a record in per cent, for a terminal."""
    metrics = record["metrics"]
    if "mpauc" in metrics:
        return f"mpAUC {100 * metrics['mpauc']:.2f} %"
    parts = [f"{post} {100 * metrics[post]['psds1']:.2f}" for post in ("raw", *BOXES) if post in metrics]
    return f"PSDS1 {100 * metrics['psds1']:.2f} %" + (f" ({', '.join(parts)})" if parts else "")


def record_of(
    run: Path, split: Split, boxes: Mapping, n_resamples: int = 200, recipe: str | None = None, seed: int | None = None
) -> dict:
    """Return the result record of one split of a run.

    Args:
        recipe, seed: None: what the predictions say; files that do not say it (published ones) need them.
    """
    about, log = split.predictions.about, training_log(run, split)
    recipe, seed = recipe or about.get("recipe"), about.get("seed", 0) if seed is None else seed
    if not recipe:
        raise DataError(f"{split.predictions.path}: does not say what made it; give --recipe NAME.")
    card = dataset_card(split)
    found = score_split(split, boxes, n_resamples, card["name"] == PUBLISHED_DATA)
    record = new_record(
        task="task4_sed",
        recipe=recipe,
        seed=int(seed),
        split=split.name,
        status=status(card, found["scoring"]["counts"], bool(about.get("smoke"))),
        dataset=card,
        config=portable(log.get("config") or described(about)),
        metrics=found["metrics"],
        intervals=found["intervals"],
        complexity=about.get("complexity"),
        weights=about.get("weights"),
        history=log.get("history", []),
        wall_time_s=log.get("training", {}).get("wall_time_s"),
    )
    # what made the numbers is the training: its command, commit, hardware; the scoring stands under a key of its own
    trained = log.get("training", {})
    trained |= {"command": shorten_paths(trained["command"])} if "command" in trained else {}
    record |= {"scored": {key: record[key] for key in trained if key in record}, **trained}
    record |= {
        "base": log.get("base"),
        "energy": log.get("energy"),
        "members": about.get("members"),
        "predictions": prediction_notes(split),
        "curves": found["curves"],
        "scoring": found["scoring"],
        "boxes": {key: own.summary(split.name) for key, own in boxes.items()} if not split.is_soft else None,
    }
    return record


def dataset_card(split: Split) -> dict:
    """Return the "dataset" entry of a record: of the split, with what was missing when the network was trained."""
    name, training = dataset_name(split.manifest.root), split.predictions.about.get("training") or {}
    card = split.card(name, name == PUBLISHED_DATA)
    card["differences"] += training.get("differences", [])
    if training.get("dataset") not in (None, name):
        card["differences"].append(f"trained on {training['dataset']}")
    return card


def prediction_notes(split: Split) -> dict:
    """Return what a record keeps of how its predictions were made; energy is that of all sets predicted together."""
    keys, path = ("precision", "long_clips", "commit", "dirty", "identity"), split.predictions.path.with_name(ENERGY)
    notes = {key: split.predictions.about.get(key) for key in keys}
    return notes | ({"energy": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {})


def training_log(run: Path, split: Split) -> dict:
    """Return the train.json that belongs to a run's predictions; {} for ensembles and weights from elsewhere.

    Raises:
        DataError: the run was trained anew since.
    """
    weights = split.predictions.about.get("weights") or {}
    if not weights or weights.get("given"):
        return {}
    folder = run.parent if run.name == FOLDER else run
    if (folder / WEIGHTS).is_file() and sha256(folder / WEIGHTS) != weights.get("sha256"):
        raise DataError(f"{split.predictions.path}: made with other weights than {WEIGHTS} of this run; predict again.")
    return read_log(folder)


def described(about: Mapping) -> dict:
    """Return what stands for a config where nothing was trained here: an ensemble's members, or whose weights."""
    if about.get("members"):
        return {"mean_of_logits": [member.get("recipe") for member in about["members"]]}
    weights = about.get("weights") or {}
    return {"network": about.get("network"), "weights": weights.get("file"), "sha256": weights.get("sha256")}


def portable(value):
    """Return a config whose absolute paths are shortened to their last part."""
    if isinstance(value, Mapping):
        return {key: portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [portable(entry) for entry in value]
    return f"…/{Path(value).name}" if isinstance(value, str) and value.startswith("/") else value


def status(card: Mapping, counts: Mapping, smoke: bool) -> str:
    """complete | partial data | built-in data | other data | smoke: what a result may be set beside."""
    if smoke:
        return "smoke"
    if card["name"] == BUILT_IN:
        return BUILT_IN
    if card["name"] != PUBLISHED_DATA:
        return "other data"
    missing = any(counts.get(name, 0) for name in MISSING)
    whole = card["found"] == card["expected"] and not card["differences"] and not missing
    return "complete" if whole else "partial data"


# ---------------------------------------------------------------- comparisons


class TooFewClips(DataError):
    """There is nothing to resample (a smoke run scores one recording)."""


def resampled_scores(sets: Mapping[str, ScoringSet], bootstrap: ClipBootstrap, is_soft: bool) -> dict[str, Parts]:
    """Return the scores that are compared, as in a record ("csebbs/psds1"), on all clips and on each resample."""
    found = {}
    for post, data in sets.items():
        prefix = "" if post == MAIN else f"{post}/"
        if is_soft:
            found[f"{prefix}mpauc"] = resampled_auroc(data, bootstrap, MAX_FPR)
            continue
        counts = intersection_counts(data, PSDS1.dtc, PSDS1.gtc)
        for name, settings in (("psds1", PSDS1), ("psds1_macro", PSDS1_MACRO)):
            found[f"{prefix}{name}"] = resampled_psds(data, bootstrap, settings, counts)
    return found


def mean_of(several: Sequence[Resampled]) -> Resampled:
    """Return the mean of one score over runs, resample by resample; the intervals are then over clips alone."""
    values = np.mean([one.values for one in several], axis=0)
    estimate, n_groups = np.mean([one.estimate for one in several]), min(one.n_groups for one in several)
    return Resampled(float(estimate), values, n_groups, several[0].source)


def paired(sides: Sequence[Sequence[Mapping[str, Parts]]]) -> dict:
    """Return name → Interval of the first side minus the second, means over the runs of a side; classes too.

    Classes are given for scores at the top ("psds1_class/Dog"), of those that both sides have.
    """
    first, second = sides
    common = [name for name in first[0] if all(name in run for run in (*first, *second))]
    differences = {}
    for name in common:
        overall, classes = ([run[name][k] for side in sides for run in side] for k in (0, 1))
        n = len(first)
        differences[name] = (mean_of(overall[:n]) - mean_of(overall[n:])).interval()
        if "/" in name:
            continue
        for label in [label for label in classes[0] if all(label in own for own in classes)]:
            parts = [own[label] for own in classes]
            interval = (mean_of(parts[:n]) - mean_of(parts[n:])).interval()
            differences |= {f"{name}_class/{label}": interval} if interval.n_resamples else {}
    return differences


def compare_split(name: str, args: argparse.Namespace) -> dict:
    """Return the comparison of two systems on one split, as it is written to results/comparisons."""
    sides, bootstrap, first, cards = [], None, None, []
    for runs in (args.runs, args.against):
        side = []
        for run in runs:
            split = Split.load(args.data, name, run)
            sets = split.processed(read_boxes(run))
            raw = sets.pop("raw")
            main = sets.setdefault(MAIN, raw)
            first = first or (split, main)
            cards.append(dataset_card(split))
            if len(main.clips) < 2:
                raise TooFewClips(f"{name}: not compared; the interval of a difference needs two {split.unit}s.")
            bootstrap = bootstrap or ClipBootstrap(main.clips, n_resamples=resamples(args))
            if any(own.clips != bootstrap.clips for own in sets.values()) or main.classes != first[1].classes:
                raise DataError(f"{run}: its predictions of {name} are of other clips than {args.runs[0]}; predict "
                                "both on the same data.")  # fmt: skip
            side.append((split.predictions.about, resampled_scores(sets, bootstrap, split.is_soft)))
        sides.append(side)
    differences = paired([[scores for _, scores in side] for side in sides])
    given = args.runs, args.against
    recipes = [{about.get("recipe") or str(run) for (about, _), run in zip(*both)} for both in zip(sides, given)]
    if any(len(own) > 1 for own in recipes):
        raise DataError(f"runs of several recipes on one side ({', '.join(map(str, recipes))}); compare two systems.")
    split, main = first
    differing = [text for card in cards for text in card["differences"]]
    smoke = any(about.get("smoke") for side in sides for about, _ in side)
    per_seed = {}
    if len(sides[0]) == len(sides[1]):
        per_seed = {key: [a[1][key][0].estimate - b[1][key][0].estimate for a, b in zip(*sides)]
                    for key in differences if "_class/" not in key}  # fmt: skip
    return {
        "task": "task4_sed",
        "recipe": recipes[0].pop(),
        **comparison_for_record(differences, against=recipes[1].pop()),
        "per_seed": per_seed,
        "dataset": cards[0]["name"],
        "split": name,
        "status": status({**cards[0], "differences": differing}, main.counts, smoke),
        "seeds": [len(side) for side in sides],
        "n_items": len(main.clips),
        "level": bootstrap.level,
        "resampled": split.unit,
        "n_groups": bootstrap.n_groups,
        "n_resamples": bootstrap.n_resamples,
    }


def compare(args: argparse.Namespace) -> None:
    """Write the paired differences of two systems over several seeds: same clips, same resamples."""
    both = [prediction_files(run) for run in (*args.runs, *args.against)]
    for name in args.splits or [name for name in SCORED if all(name in files for files in both)]:
        try:
            entry = compare_split(name, args)
        except TooFewClips as error:
            print(error)
            continue
        recipes = [short_name(entry[side].replace("/", "_"), 80) for side in ("recipe", "against")]
        path = args.results / f"{entry['dataset'].lower().replace(' ', '-')}-{recipes[0]}-vs-{recipes[1]}-{name}.json"
        write_json(path, entry)
        print(f"{entry['recipe']} minus {entry['against']}, {name}:")
        for key, value in entry.items():
            rows = {key: value} if isinstance(value, dict) and "difference" in value else {}
            rows |= {f"{key}/{own}": v for own, v in value.items()} if key in BOXES else {}
            for label, row in rows.items():
                low, high = row["interval"]
                print(f"  {label:>22}: {100 * row['difference']:+.2f} points  [{100 * low:+.2f}, {100 * high:+.2f}]")
        print(f"wrote {path}", flush=True)


# ---------------------------------------------------------------- commands


def predict(args: argparse.Namespace) -> None:
    """Predict the sets that are scored and tuned on."""
    from task4_sed import pseudo_labels  # its networks take seconds to import, which the other commands do without

    pseudo_labels.predict(args, PREDICTED)


def tune(args: argparse.Namespace) -> None:
    """Tune boxes on each run's predictions."""
    for run in args.run:
        if not args.oracle:
            if args.oracle_too and not args.on and not set(TUNED_ON) & prediction_files(run).keys():
                print(f"{run}: no boxes tuned on validation sets; none of {', '.join(TUNED_ON)} was predicted.")
            else:
                tune_boxes(args.data, run, args.on)
        if args.oracle or args.oracle_too and ORACLE in prediction_files(run):
            tune_boxes(args.data, run, oracle=True)


def add_commands(parts) -> None:
    """Add predict, tune, score and compare to the sub-parsers of `python -m task4_sed.evaluate`."""
    predicting = parts.add_parser("predict", help="write a run's logits for the sets that are scored and tuned on")
    add_predict_options(predicting, PREDICTED)
    predicting.set_defaults(act=predict)
    tuning = parts.add_parser("tune", help="tune boxes (cSEBBs) on validation sets")
    tuning.add_argument("--on", nargs="+", metavar="SET", help=f"default, those predicted: {' '.join(TUNED_ON)}")
    tuning.add_argument("--oracle", action="store_true", help="on devtest, as published: flatters scores of devtest")
    tuning.add_argument("--oracle-too", action="store_true", help="on the validation sets, and then on devtest")
    tuning.set_defaults(act=tune)
    scoring = parts.add_parser("score", help="score a run's predictions into result records")
    scoring.add_argument("--recipe", help="name in tables (default: what the predictions say)")
    scoring.add_argument("--seed", type=int, help="number of the run (default: what the predictions say)")
    comparing = parts.add_parser("compare", help="paired differences of two systems on the same clips")
    comparing.add_argument("--runs", type=Path, nargs="+", required=True, help="runs of one system, one per seed")
    comparing.add_argument("--against", type=Path, nargs="+", required=True, help="runs of the other system")
    for part in (tuning, scoring):
        part.add_argument("--run", type=Path, nargs="+", action="extend", required=True, metavar="RUN",
                          help="runs, or folders of predictions")  # fmt: skip
    for part in (scoring, comparing):
        part.add_argument("--results", type=Path, required=True, help="folder the result files go to")
        part.add_argument("--splits", nargs="+", metavar="SET", help=f"default, those predicted: {' '.join(SCORED)}")
        part.add_argument("--bootstrap", type=int, metavar="N", help=f"resamples (default {N_RESAMPLES})")
    for part in (tuning, scoring, comparing):
        part.add_argument("--data", type=Path, required=True, help="data folder with the label tables")
    scoring.set_defaults(act=score)
    comparing.set_defaults(act=compare)
