"""Predict a split, then score the prediction file.

Flow: weights.pt + clips → **predictions.csv** → **scores** → result JSON.
Run:  python -m task1_asc.evaluate predict --run RUN --data FOLDER --cache CACHE [--weights FILE]
      python -m task1_asc.evaluate score --run RUN --results FOLDER [--against RUN_OF_BASE]
      python -m task1_asc.evaluate compare --runs RUN … --against RUN … --results FOLDER
Scoring needs the prediction file alone, never the model. Published checkpoints: predict --weights FILE.

predictions.csv: filename, scene_label, identifier, source_label, then one column of logits per class, in class order.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from common.complexity import complexity
from common.config import ConfigError, build, importable
from common.data.manifest import DataError, read_table
from common.files import sha256, short_name, write_json, write_text
from common.metrics.bootstrap import (
    accuracy_intervals,
    comparison_for_record,
    intervals_for_record,
    paired_differences,
)
from common.metrics.classification import classification_scores
from common.nn.weights import published_file
from common.progress import progress
from common.results.records import new_record, shorten_paths, write_record
from common.training.loop import Hardware
from common.training.runs import read_log
from task1_asc.config import Task1Config, config_file, load_config
from task1_asc.data import META_COLUMNS, TAU_NAME, Clips, dataset_card, label_indices, load_clips, open_data
from task1_asc.model import DeviceModels
from task1_asc.weights import load_network

BUILT_IN = "built-in data"


@torch.no_grad()
def predict_logits(
    network: nn.Module,
    front_end: nn.Module,
    clips: Clips,
    precision: str = "fp16",
    device: str = "cpu",
    batch_size: int = 256,
) -> np.ndarray:
    """Return logits (N, K) of every clip once, by the model of its own device where `network` holds several.

    fp16: weights and log mel are rounded to half. A GPU then computes in half, as published; a CPU, which is slow in
    half, computes in float32 from the rounded values (logits differ by less than 0.02).
    """
    half = precision == "fp16"
    compute = torch.float16 if half and device != "cpu" else torch.float32
    network = _copy_in_precision(network, half, compute).to(device).eval()
    front_end, logits = front_end.to(device).eval(), None
    for batch in progress(clips.loader(batch_size), desc="predict", unit="batch"):
        waveform = batch["waveform"] if "waveform" in batch else clips.waveforms(batch["item"].numpy())
        log_mel = front_end(waveform.to(device))
        log_mel = log_mel.half().to(compute) if half else log_mel
        devices = {"devices": batch["device"]} if isinstance(network, DeviceModels) else {}
        out = network(log_mel.contiguous(memory_format=torch.channels_last), **devices)["logits"].float().cpu().numpy()
        logits = np.zeros((len(clips), out.shape[1]), np.float32) if logits is None else logits
        logits[batch["item"].numpy()] = out
    return logits


def _copy_in_precision(network: nn.Module, half: bool, compute: torch.dtype) -> nn.Module:
    network = copy.deepcopy(network)
    if half:
        network = network.half()
    return network.to(compute).to(memory_format=torch.channels_last)


def write_predictions(path: Path, clips: Clips, logits: np.ndarray, class_names: Sequence[str]) -> None:
    table = pd.concat([clips.rows[list(META_COLUMNS)], pd.DataFrame(logits, columns=list(class_names))], axis=1)
    write_text(path, table.to_csv(index=False, float_format="%.6g"))


def read_predictions(path: Path) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Return (rows of meta.csv, logits (N, K), class names); DataError says what is wrong with the file."""
    table = read_table(path, META_COLUMNS, separator=",")
    class_names = [column for column in table.columns if column not in META_COLUMNS]
    try:
        logits = table[class_names].astype(np.float32).to_numpy()
    except ValueError as error:
        raise DataError(f"{path}: a logit is not a number ({error}); predict again.") from None
    if unknown := sorted(set(table.scene_label) - set(class_names)):
        raise DataError(f"{path}: no column for the class {unknown[0]!r}; columns are {class_names}.")
    return table[list(META_COLUMNS)], logits, class_names


def predict(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    if (overrides or args.config) and not args.weights:
        raise ConfigError(
            "a run is predicted with the config it was trained with; --config and overrides need --weights."
        )
    config, resolved, log = run_config(args, overrides)
    data = open_data(args.data)
    clips = load_clips(data, args.split, config.data, args.cache)
    weights = published_file(args.weights) if args.weights else args.run / "weights.pt"
    network = load_network(weights, config, data.class_names)
    front_end = config.front_end()
    device = "cuda" if Hardware(args.device).on_gpu else "cpu"
    logits = predict_logits(network, front_end, clips, config.test_precision, device)
    write_predictions(args.run / "predictions.csv", clips, logits, data.class_names)
    one_model = network.base_model if isinstance(network, DeviceModels) else network
    found = complexity(one_model, (1, 1, front_end.n_mels, front_end.n_frames(config.data.format.n_samples)))
    folder = str(config_file(args.config).resolve().parent) if args.config else log.get("config_folder")
    card = dataset_card(data, {args.split: clips}, {args.split: args.split})
    train_card = log.get("dataset")
    if train_card:
        card = {
            **card,
            **{key: {**train_card[key], **card[key]} for key in ("expected", "found", "skipped")},
            "differences": [*train_card.get("differences", []), *card["differences"]],
            "manifest_sha256": {"train": train_card["manifest_sha256"], args.split: card["manifest_sha256"]},
        }
    write_json(
        args.run / "predictions.json",
        {
            "split": args.split,
            "dataset": card,
            "config": resolved,
            "config_folder": folder,
            "device_groups": config.data.device_groups,
            "trained_devices": sorted(log.get("trained_devices", [])),
            "test_precision": config.test_precision,
            "weights": {"file": weights.name, "sha256": sha256(weights), "given": args.weights is not None},
            "complexity": {"parameters": found.parameters, "macs": found.macs, "bytes_fp16": found.bytes},
        },
    )
    print(f"wrote {args.run / 'predictions.csv'} ({len(clips)} clips)")


def run_config(args, overrides) -> tuple[Task1Config, dict, dict]:
    """The config a run was trained with, or --config for published weights."""
    log = read_log(args.run)
    if args.config:
        return *load_config(args.config, overrides), log
    if not log:
        raise DataError(f"{args.run}: no train.json; train first, or give --config with --weights.")
    importable(log.get("config_folder", "."))
    return *build(Task1Config, log["config"], overrides, where=str(args.run / "train.json")), log


def trained_log(run: Path) -> dict:
    """Return the train.json of a run that was trained; DataError where it was not."""
    if log := read_log(run):
        return log
    raise DataError(f"{run}: no train.json; only runs that were trained here have a recipe to compare.")


def score(args: argparse.Namespace) -> None:
    """Score a run's predictions.csv and write its result JSON."""
    about = json.loads((args.run / "predictions.json").read_text(encoding="utf-8"))
    log = read_log(args.run)
    given = about["weights"]["given"]  # weights that this run folder did not train: a system of its own
    if not given and sha256(args.run / "weights.pt") != about["weights"]["sha256"]:
        raise DataError(f"{args.run}: predictions.csv was made with other weights than weights.pt; predict again.")
    log = {} if given else log
    rows, logits, class_names = read_predictions(args.run / "predictions.csv")
    labels = label_indices(rows, class_names)
    groups = complete_groups(about["device_groups"], rows.source_label.unique(), about["trained_devices"])
    metrics = classification_scores(logits, labels, rows.source_label, class_names, groups)
    correct = logits.argmax(1) == labels
    units, intervals, comparison = rows[args.resample].to_numpy(), None, None
    if several := len(set(units)) > 1:
        own = accuracy_intervals(correct, labels, rows.source_label, groups, units)
        intervals = intervals_for_record(own, args.resample)
    else:
        print(f"all clips are of one {args.resample}: no intervals and no comparison (see --resample)")
    if args.against and several:
        other_rows, other_logits, _ = read_predictions(args.against / "predictions.csv")
        if not other_rows.filename.equals(rows.filename):
            raise DataError(
                f"{args.against}: predictions of other clips than {args.run}; predict both on the same data."
            )
        differences = paired_differences(
            correct, other_logits.argmax(1) == labels, labels, rows.source_label, groups, units
        )
        comparison = comparison_for_record(differences, against=trained_log(args.against)["recipe"])
    recipe = f"weights/{Path(about['weights']['file']).stem}" if given else log["recipe"]
    record = new_record(
        task="task1_asc",
        recipe=recipe,
        seed=log.get("seed", 0),
        split=about["split"],
        status=status(about["dataset"], log),
        dataset=about["dataset"],
        config=about["config"],
        weights=about["weights"],
        metrics=metrics,
        intervals=intervals,
        comparison=comparison,
        complexity=about["complexity"],
        history=log.get("history", []),
        wall_time_s=log.get("training", {}).get("wall_time_s"),
    )
    # what made the numbers is the training: its command, commit, hardware; the scoring stands under a key of its own
    training = log.get("training", {})
    if training:
        training["command"] = shorten_paths(training["command"])
    record |= {"scored": {key: record[key] for key in training if key in record}, **training}
    record |= {"base": log.get("base"), "devices": log.get("devices")}
    path = write_record(record, args.results)
    print(
        f"macro accuracy {100 * metrics['macro_accuracy']:.2f} % "
        f"({metrics['n_items']} clips, {record['status']})  {path}"
    )


def compare(args: argparse.Namespace) -> None:
    """Write the paired differences of two systems over several seeds: the same clips, the same resampled locations."""
    runs = [[read_predictions(run / "predictions.csv") for run in side] for side in (args.runs, args.against)]
    rows, _, class_names = runs[0][0]
    if any(not other.filename.equals(rows.filename) for side in runs for other, _, _ in side):
        raise DataError("the runs predicted different clips; predict all of them on the same data.")
    labels = label_indices(rows, class_names)
    correct = [np.stack([logits.argmax(1) == labels for _, logits, _ in side]) for side in runs]
    about = json.loads((args.runs[0] / "predictions.json").read_text(encoding="utf-8"))
    groups = complete_groups(about["device_groups"], rows.source_label.unique(), about["trained_devices"])
    pooled = (pair.split("=") for pair in args.pool)
    groups |= {name: members.split(",") for name, members in pooled}
    units = rows[args.resample].to_numpy()
    logs = [trained_log(side[0]) for side in (args.runs, args.against)]
    differences = paired_differences(*correct, labels, rows.source_label, groups, units)
    own = accuracy_intervals(correct[0], labels, rows.source_label, groups, units)
    entry = {
        "task": "task1_asc",
        "recipe": logs[0]["recipe"],
        **comparison_for_record(differences, against=logs[1]["recipe"]),
        "own_intervals": intervals_for_record(own, args.resample),
        "dataset": about["dataset"]["name"],
        "status": status(about["dataset"], logs[0]),
        "seeds": [len(side) for side in runs],
        "n_items": len(labels),
        "pooled": dict(pair.split("=") for pair in args.pool),
    }
    name = "-".join([entry["dataset"], short_name(entry["recipe"], 80), "vs", short_name(entry["against"], 80)])
    name = name.replace("/", "_").replace(" ", "-").lower()
    write_json(args.results / f"{name}.json", entry)
    for key, value in (("macro accuracy", entry["macro_accuracy"]), *entry["groups"].items()):
        low, high = value["interval"]
        print(f"{key:>16}: {100 * value['difference']:+.2f} points  [{100 * low:+.2f}, {100 * high:+.2f}]")
    print(f"wrote {args.results / name}.json")


def status(card: dict, log: dict) -> str:
    """complete | partial data | built-in data | other data | smoke: what a result may be set beside."""
    if log.get("smoke"):
        return "smoke"
    if card["name"] == BUILT_IN:
        return BUILT_IN
    if card["name"] != TAU_NAME:
        return "other data"
    whole = card["found"] == card["expected"] and not card["differences"] and not card["skipped"]
    return "complete" if whole else "partial data"


def complete_groups(
    groups: dict[str, list[str]], devices: Sequence[str], trained: Sequence[str]
) -> dict[str, list[str]]:
    """Return the groups, with devices that none of them names added to `seen` or `unseen` by whether they trained."""
    named = {device for members in groups.values() for device in members}
    groups = {name: list(members) for name, members in groups.items()}
    for device in sorted(set(devices) - named):
        groups.setdefault("seen" if device in trained else "unseen", []).append(device)
    return groups


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    predicting, scoring = parts.add_parser("predict"), parts.add_parser("score")
    for part in (predicting, scoring):
        part.add_argument("--run", type=Path, required=True, help="run folder")
    predicting.add_argument("--data", type=Path, required=True)
    predicting.add_argument("--cache", type=Path, required=True)
    predicting.add_argument("--config", type=Path, help="for weights without a run: the config they belong to")
    predicting.add_argument("--weights", help="weights to use instead of the run's own, ours or published")
    predicting.add_argument("--split", default="test", help="list to predict: test, or split25 and the like")
    predicting.add_argument("--device", default="auto")
    scoring.add_argument("--results", type=Path, required=True, help="folder the result JSON goes to")
    scoring.add_argument("--against", type=Path, help="run of the general model, for the paired difference")
    scoring.add_argument(
        "--resample",
        default="identifier",
        choices=META_COLUMNS,
        help="what the interval resamples: locations (identifier); clips are not independent",
    )
    comparing = parts.add_parser("compare")
    comparing.add_argument(
        "--runs", type=Path, nargs="+", required=True, help="run folders of one system, one per seed"
    )
    comparing.add_argument("--against", type=Path, nargs="+", required=True, help="run folders of the other system")
    comparing.add_argument("--results", type=Path, required=True, help="folder the comparison goes to")
    comparing.add_argument("--resample", default="identifier", choices=META_COLUMNS)
    comparing.add_argument("--pool", nargs="*", default=[], metavar="NAME=a,b", help="more groups of devices")
    args, overrides = parser.parse_known_args(argv)
    if overrides and args.what != "predict":
        parser.error(f"unknown arguments: {' '.join(overrides)}")
    try:
        {"predict": lambda: predict(args, overrides), "score": lambda: score(args), "compare": lambda: compare(args)}[
            args.what
        ]()
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
