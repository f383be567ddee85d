"""Train one stage: pre-training of a small encoder, stage 1 (encoder frozen) or stage 2 (everything), any iteration.

Flow: config + data folder → batches → **training** → weights.pt (student, teacher), train.json in the run folder.
Run:  python -m task4_sed.train --config builtin/pretrain --data FOLDER --cache CACHE --run RUN --seed 0
      python -m task4_sed.train --config builtin/it1_stage1 … --init PRETRAIN_RUN
      python -m task4_sed.train --config builtin/it2_stage1 … --init PRETRAIN_RUN --pseudo-labels PREDICTIONS
Killed at any moment, the same command goes on; a resumed CPU run ends with the same weights, bit for bit.

weights.pt are those of the epoch whose hold-out rank was highest, weights_last.pt those of the last one.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from common.config import ConfigError
from common.data.manifest import manifest_hash
from common.files import sha256, write_json
from common.nn.weights import registered
from common.results.records import environment, git_state
from common.training.distributed import process_rank
from common.training.energy import measured_energy
from common.training.loop import Hardware, best_weights, fit
from common.training.runs import CONFIG, LOG, claim_run, clear_run, read_log, recipe_name, trained_on
from task4_sed.batching import TrainingSets, hold_out_loader, open_training_sets, training_loader
from task4_sed.config import CONFIGS, SedConfig, config_file, load_config
from task4_sed.data import dataset_name
from task4_sed.model import build_network
from task4_sed.models.fusion import FusionModel
from task4_sed.predictions import PredictionFile, prediction_files
from task4_sed.system import SedSystem
from task4_sed.weights import LAST, WEIGHTS, Weights, load_encoder, read_weights, save_weights, start_student

CHECKPOINTS = ("last.ckpt", "best.ckpt")
TRAINED = (WEIGHTS, LAST, *CHECKPOINTS)
WRITTEN = (*TRAINED, CONFIG, LOG, "log", "predictions")


def build_student(config: SedConfig, seed: int, base: Weights | None, **where) -> FusionModel:
    """Return the network that is trained, with the weights it starts from.

    Args:
        base: weights of the run that `config.base` names.
        where: folder and download of published weights.
    """
    torch.manual_seed(seed)
    student = build_network(config.network)
    if not isinstance(student, FusionModel):
        raise ConfigError(f"network {config.network}: training needs an encoder with a CRNN, as build_fusion gives.")
    if config.encoder_weights:
        print(f"{config.encoder_weights}: {load_encoder(student, config.encoder_weights, **where).text()}", flush=True)
    if base is not None:
        start_student(student, base, encoder_alone=config.stage == "frozen" and not config.crnn_from_base)
    if config.norm_momentum:
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = config.norm_momentum
    return student.to(memory_format=torch.channels_last)  # small convolutions are a third faster with it


def train(sets: TrainingSets, student: FusionModel, base: Weights | None, config: SedConfig, args) -> dict:
    """Train `student` and its teacher, write their weights, and return the log."""
    hold_out = {name: clip_set.manifest for name, clip_set in sets.hold_out.items()}
    system = SedSystem(student, config, hold_out)
    if base is not None and config.stage == "full":
        system.mean_teacher.load_own_weights(base["teacher"])

    def loaders(rank: int, world_size: int):
        held = hold_out_loader(sets, config, rank, world_size)
        return training_loader(sets, config, args.seed, rank, world_size), held

    hardware = Hardware(args.device, args.devices, args.nodes)
    with measured_energy(args.energy if process_rank() == 0 else "off") as energy:
        history = fit(system, loaders, config.optim, config.train, args.run, args.seed, hardware)
    log = {"history": history, "energy": energy}
    if process_rank() == 0:
        system.cpu()
        if (best := best_weights(args.run)) is not None:
            save_weights(args.run / LAST, system.student, system.mean_teacher)
            system.load_state_dict(best)
            ranked = [row for row in history if f"holdout_{system.best_by}" in row]
            log["best_epoch"] = max(ranked, key=lambda row: row[f"holdout_{system.best_by}"])["epoch"]
        save_weights(args.run / WEIGHTS, system.student, system.mean_teacher)
    return log


def read_base(init: Path, config: SedConfig) -> dict:
    """Return what is known of the run that training starts from.

    Raises:
        ConfigError: it is not a run of `config.base`.
    """
    folder = init if init.is_dir() else init.parent
    log = read_log(folder)
    if not log:
        raise ConfigError(f"{init}: no run that has ended (no {LOG} there); train {config.base} first.")
    recipe = str(log.get("recipe"))
    if recipe.split("+")[0] != config.base:
        raise ConfigError(f"{init}: a run of {recipe}, but this config starts from {config.base}; give such a run, or "
                          f"set --base={recipe.split('+')[0]}.")  # fmt: skip
    said = {"recipe": recipe, "seed": log.get("seed"), "smoke": log.get("smoke", False), "training": trained_on(log)}
    return said | {"sha256": sha256(init / WEIGHTS if init.is_dir() else init)}


def dataset_card(root: Path, sets: TrainingSets) -> dict:
    """Return the `dataset` part of the log: name, hashes, clips expected and found of each set, what differs."""
    manifests = {clip_set.manifest.info.name: clip_set.manifest for clip_set in sets.clip_sets}
    return {
        "name": dataset_name(root),
        "manifest_sha256": {name: manifest.sha256() for name, manifest in manifests.items()},
        "expected": {name: manifest.info.clips for name, manifest in manifests.items() if manifest.info.clips},
        "found": {name: len(manifest) for name, manifest in manifests.items()},
        "differences": [text for manifest in manifests.values() for text in manifest.report.differences],
        "missing": {name: len(manifest.report.missing) for name, manifest in manifests.items()},
        "absent": sets.absent,
        "skipped": {file: why for clip_set in sets.clip_sets for file, why in clip_set.audio.problems.items()},
    }


def pseudo_labels_about(folder: Path | None) -> list[dict]:
    """Return what the files of pseudo-labels say of themselves; published ones say nothing."""
    return [PredictionFile(path).about for path in prediction_files(folder).values()] if folder else []


def shortfalls_below(card: dict, sources: Sequence[dict]) -> list[str]:
    """Return sentences on what was missing, or other data, where the runs below this one were trained."""
    said = []
    for source in sources:
        below = source.get("training") or {}
        if below.get("dataset") not in (None, card["name"]):
            said.append(f"stands on a training on {below['dataset']}")
        said += below.get("differences", [])
    return [text for text in dict.fromkeys(said) if text not in card["differences"]]


def describe(sets: TrainingSets, config: SedConfig) -> str:
    """Return a line on the batches, and one for each set that is absent."""
    parts = [f"{size} of {len(sets.sets[name])} {name}" for name, size in config.data.sizes.items()]
    n_batches = min(len(sets.sets[name]) // size for name, size in config.data.sizes.items())
    held = [f"{len(clip_set)} {name}" for name, clip_set in sets.hold_out.items()]
    line = f"a batch: {', '.join(parts)}; {n_batches} an epoch; hold-out: {', '.join(held) or 'none'}"
    return "\n".join([line, *sets.absent])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="file, or name below task4_sed/configs")
    parser.add_argument("--data", type=Path, required=True, help="data folder in the layout of the challenge")
    parser.add_argument("--cache", type=Path, required=True, help="folder for decoded clips")
    parser.add_argument("--run", type=Path, required=True, help="run folder, written to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, metavar="RUN", help="run to start from, for a config with `base`")
    parser.add_argument("--pseudo-labels", type=Path, metavar="FOLDER", help="predictions of all training clips")
    parser.add_argument("--force", action="store_true", help="start over in a run folder that is trained already")
    parser.add_argument("--smoke", action="store_true", help="a few clips for one epoch, see configs/smoke.yaml")
    parser.add_argument("--device", default="auto", help="cpu, gpu or auto")
    parser.add_argument("--devices", type=int, default=1, help="processes per machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--energy", default="AUT", metavar="COUNTRY", help="ISO code, for CO₂ per kWh; off = none")
    parser.add_argument("--download", action="store_true", help="fetch published weights that are not there yet")
    parser.add_argument("--weights-folder", type=Path, default=Path("downloads"), help="where they are kept")
    args, overrides = parser.parse_known_args(argv)
    try:
        run_training(args, overrides)
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(str(error)) from None


def run_training(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    config, resolved = load_config(args.config, overrides, args.smoke)
    require_what_it_names(args, config)
    if args.force and process_rank() == 0:
        clear_run(args.run, WRITTEN)
    started, commit = time.monotonic(), git_state()  # of the code that runs, whatever is committed meanwhile
    resumed = (args.run / "last.ckpt").exists()
    base = read_base(args.init, config) if args.init else None
    sets = open_training_sets(args.data, config.data, args.cache, args.pseudo_labels)
    claim_run(args.run, resolved, origin(args, config, sets, base), TRAINED)
    if (args.run / WEIGHTS).is_file() and (args.run / LOG).is_file():
        print(f"{args.run}: trained before")
        return
    if process_rank() == 0:
        print(describe(sets, config), flush=True)
    weights = read_weights(args.init) if args.init else None
    student = build_student(config, args.seed, weights, folder=args.weights_folder, download=args.download)
    log = train(sets, student, weights, config, args)
    if process_rank() == 0:
        below = [*([base] if base else []), *pseudo_labels_about(args.pseudo_labels)]
        card = dataset_card(args.data, sets)
        card["differences"] += shortfalls_below(card, below)
        log |= {
            "seed": args.seed,
            "recipe": recipe_name(CONFIGS, args.config, overrides),
            "smoke": args.smoke or any(source.get("smoke") for source in below),
            "base": base,
            "config": resolved,
            "config_folder": str(config_file(args.config).resolve().parent),  # own classes may lie there
            "dataset": card,
            # after a kill time and energy are those of the last start
            "training": environment(time.monotonic() - started) | {"git": commit, "resumed": resumed},
        }
        write_json(args.run / LOG, log)
        clear_run(args.run, CHECKPOINTS)
        print(f"wrote {args.run / WEIGHTS}")


def require_what_it_names(args: argparse.Namespace, config: SedConfig) -> None:
    """Raise ConfigError where --init or --pseudo-labels is missing, or given to a config that does without."""
    for option, value, needed, what in (
        ("--init", args.init, bool(config.base), f"a run of {config.base}"),
        ("--pseudo-labels", args.pseudo_labels, bool(config.pseudo_labels),
         f"a folder of predictions, of {', '.join(config.pseudo_labels)} or published"),
    ):
        if needed != bool(value):
            key = "base" if option == "--init" else "pseudo_labels"
            raise ConfigError(f"{args.config}: has {'' if needed else 'no '}`{key}`, so {option} is "
                              f"{f'needed: {what}' if needed else 'not used'}.")  # fmt: skip


def origin(args: argparse.Namespace, config: SedConfig, sets: TrainingSets, base: dict | None) -> dict:
    """Return what the weights depend on besides the config."""
    used = {part.manifest.info.name for joined in sets.sets.values() for part in joined.parts}
    wholes = used | {part.manifest.info.whole for joined in sets.sets.values() for part in joined.parts}
    pseudo = prediction_files(args.pseudo_labels) if args.pseudo_labels else {}
    own_file = bool(config.encoder_weights) and registered(config.encoder_weights) is None
    return {
        "data": str(args.data.resolve()),
        "training_clips": {s.manifest.info.name: manifest_hash(s.manifest.clips[["filename"]]) for s in sets.clip_sets},
        "seed": args.seed,
        "init": base and base["sha256"],
        "encoder_weights": sha256(config.encoder_weights) if own_file else None,
        "pseudo_labels": {name: sha256(path) for name, path in pseudo.items() if name in wholes} or None,
    }


if __name__ == "__main__":
    main()
