"""Build and try an inference package for DCASE 2025 Task 1 from up to four runs.

Flow: run (weights.pt, predictions.csv) → **installable package** → checks away from the repository → zip.
Run:  python -m task1_asc.submit --run runs/general/seed0 --run runs/device_specific/seed0 --data FOLDER \
          --out submissions --name Team_INST_task1 [--eval-data EVALUATION_SET]

Writes OUT/<name>/ (package, scripts, predictions/, meta files), OUT/<name>.zip and, where there is none,
OUT/meta.yaml to fill in. Every run needs `python -m task1_asc.evaluate predict` on the test split first: the
package must give the same logits. Weights are stored in fp16. The exit code is 0 only if every check passed.
"""

import argparse
import re
import shutil
import string
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from common.config import merge, read_yaml
from common.files import write_text
from common.submission import SubmissionError, empty_fields, write_zip
from task1_asc.config import CONFIGS, load_config
from task1_asc.data import TAU_NAME, SceneData, open_data
from task1_asc.submit_build import PARTS, System, build_package, read_system
from task1_asc.submit_check import check_evaluation_folder, check_package

MAX_SYSTEMS = 4
AUGMENTATIONS = {  # key of the config's `augment` that is 0 when it is off → name
    "roll_s": "time rolling",
    "freq_mask_bins": "frequency masking",
    "time_mask_frames": "time masking",
    "mixstyle_p": "freq-mixstyle",
    "mixup_alpha": "mixup",
    "impulse_response_p": "device impulse responses",
}


def check_arguments(args: argparse.Namespace) -> None:
    """Names, numbers and folders, before anything is written."""
    if not re.fullmatch(r"[A-Za-z]\w*_\w+_task1", args.name, flags=re.ASCII):
        raise SubmissionError(
            f"--name {args.name}: expected Team_INST_task1 in letters, digits and underscores (it becomes a "
            "Python package; write a hyphen of the label as an underscore)."
        )
    if len(args.run) > MAX_SYSTEMS:
        raise SubmissionError(
            f"{len(args.run)} runs are given, the challenge takes at most {MAX_SYSTEMS} systems."
        )
    if args.label and len(args.label) != len(args.run):
        raise SubmissionError(
            f"{len(args.label)} --label for {len(args.run)} --run: give one for each, in the same order."
        )
    if args.eval_data:
        check_evaluation_folder(args.eval_data)


def write_meta(package: Path, systems: list[System], found: dict[str, dict], meta_file: Path) -> list[str]:
    """Write <system>.meta.yaml beside each system's predictions; return the fields that are still empty."""
    if not meta_file.is_file():
        meta_file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PARTS / "meta.yaml", meta_file)
    given = read_yaml(meta_file)
    for system in systems:
        known = {
            "submission": {"label": system.name, "name": system.title},
            "system": {
                "description": description(system),
                "complexity": {
                    "macs": found[system.name]["complexity"]["max_MACs"],
                    "parameter_bytes": found[system.name]["complexity"]["max_Params"],
                },
            },
        }
        content = merge(known, given) | {
            "results": {"development_dataset": results(found[system.name]["scores"])}
        }
        content["submission"]["label"] = system.name
        path = package / "predictions" / system.name / f"{system.name}.meta.yaml"
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return empty_fields(given)


def description(system: System) -> dict:
    """Return what the run's config says about a system; a fine-tuned one had its base's augmentation too."""
    stages = [system.config["augment"]]
    base = CONFIGS / f"{system.config['base']}.yaml"
    if base.is_file():
        stages.append(load_config(base)[1]["augment"])
    used = [name for key, name in AUGMENTATIONS.items() if any(stage.get(key) for stage in stages)]
    own = f"networks of their own for {', '.join(system.devices)}, " if system.devices else ""
    rate = system.config["front_end"].get("init_args", {}).get("sample_rate", system.clip_format.sample_rate)
    return {
        "input_sampling_rate": f"{rate / 1000:g} kHz",
        "acoustic_features": "log-mel energies",
        "data_augmentation": ", ".join(used) or "none",
        "machine_learning_method": system.config["model"]["class_path"].rpartition(".")[2],
        "device_handling": own + "one general network",
        "model_weight_quantization": "fp16",
    }


def results(scores: dict) -> dict:
    """Return the test split's scores, accuracies in per cent."""
    by_name = {
        f"{kind}_wise": {
            name: {"accuracy": percent(value)} for name, value in scores[f"{kind}_accuracy"].items()
        }
        for kind in ("class", "device")
    }
    overall = {"accuracy": percent(scores["macro_accuracy"]), "logloss": round(scores["log_loss"], 3)}
    return {"overall": overall, **by_name}


def percent(fraction: float) -> float:
    return round(100 * fraction, 2)


def write_readme(
    package: Path, systems: list[System], found: dict[str, dict], data: SceneData, note: str
) -> None:
    """Write the package's README: its systems and their scores, and how to run them."""
    lines = ["| system | name | macro accuracy, % | MACs | bytes |", "|---|---|---|---|---|"]
    for system in systems:
        cost = found[system.name]["complexity"]
        accuracy = percent(found[system.name]["scores"]["macro_accuracy"])
        columns = (system.name, system.title, accuracy, f"{cost['max_MACs']:,}", f"{cost['max_Params']:,}")
        lines.append("| " + " | ".join(map(str, columns)) + " |")
    lines.append(f"\nMacro accuracy on the {len(systems[0].rows)} test clips of {data.name}.")
    text = string.Template((PARTS / "README.md").read_text(encoding="utf-8")).substitute(
        name=package.name, systems="\n".join(lines), classes=", ".join(systems[0].class_names), note=note
    )
    write_text(package / "README.md", text)


def before_handing_in(
    args: argparse.Namespace, data: SceneData, systems: list[System], empty: list[str]
) -> list[str]:
    """Return sentences on what a package that works still lacks."""
    sentences = []
    if empty:
        meta_file = args.meta or args.out / "meta.yaml"
        sentences.append(f"{meta_file}: still empty: {', '.join(empty)}; fill them in and run again.")
    if not args.eval_data:
        sentences.append("output.csv holds the test split's clips, because no --eval-data was given.")
    for system in systems:
        if system.config["data"]["subset"] != 25:
            subset = system.config["data"]["subset"]
            sentences.append(f"{system.name} was trained on split{subset}; the 2025 rules allow split25 only.")
        if system.config["test_precision"] != "fp16":
            sentences.append(f"{system.name} was tested in float32; the package computes from fp16 weights.")
    if args.name == "Team_INST_task1":
        sentences.append("the package has no name of yours; give --name Team_INST_task1.")
    if data.name != TAU_NAME:
        sentences.append(
            f"this package is for the {len(systems[0].class_names)} classes of {data.name} "
            f"({', '.join(systems[0].class_names)}); "
            f"the challenge's are those of {TAU_NAME}."
        )
    return sentences


def submit(args: argparse.Namespace) -> None:
    """Build (unless --check-only), check, describe and pack."""
    check_arguments(args)
    data, package, archive = open_data(args.data), args.out / args.name, args.out / f"{args.name}.zip"
    labels = args.label or [None] * len(args.run)
    systems = [
        read_system(run, f"{args.name}_{i}", label, data)
        for i, (run, label) in enumerate(zip(args.run, labels, strict=True), start=1)
    ]
    archive.unlink(missing_ok=True)  # it is there only if all checks passed
    if not args.check_only:
        build_package(package, systems, data)
    elif not package.is_dir():
        raise SubmissionError(f"{package}: no package to check; run without --check-only first.")
    found = check_package(package, systems, data, args.eval_data, args.device == "cpu")
    note = "" if args.eval_data else "; output.csv is of the test split, no evaluation set was given"
    write_readme(package, systems, found, data, note)
    empty = write_meta(package, systems, found, args.meta or args.out / "meta.yaml")
    write_zip(package, archive)
    print(f"all checks passed: {archive}")
    for sentence in before_handing_in(args, data, systems, empty):
        print(f"before handing in: {sentence}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", type=Path, action="append", required=True, help="run folder; once per system, at most 4")
    add("--data", type=Path, required=True, help="development set the runs were tested on")
    add("--out", type=Path, required=True, help="folder to write to")
    add("--name", default="Team_INST_task1", help="team, institution, task (%(default)s)")
    add(
        "--label",
        action="append",
        help="name of a system in its meta file, once per --run (default: its recipe)",
    )
    add("--eval-data", type=Path, help="evaluation set: evaluation_setup/fold1_test.csv and its clips")
    add(
        "--meta",
        type=Path,
        help="YAML with authors and the like (default: OUT/meta.yaml, written if missing)",
    )
    add(
        "--device", choices=("auto", "cpu"), default="auto", help="where the package computes its predictions"
    )
    add("--check-only", action="store_true", help="check the package that is there, do not build it again")
    args = parser.parse_args(argv)
    try:
        submit(args)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
