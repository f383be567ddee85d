"""Train a general model, or fine-tune it for each device.

Flow: config + data folder → clips → **training** → weights.pt (published key layout), history.json in the run folder.
Run:  python -m task1_asc.train --config task1_asc/configs/dcase2025/general.yaml --data FOLDER --run RUN --seed 0
      python -m task1_asc.train --config task1_asc/configs/dcase2025/device_specific.yaml … --init BASE_RUN/weights.pt
Killed at any moment, the same command goes on; a resumed CPU run ends with the same weights, bit for bit.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.config import ConfigError, dump_yaml, split_overrides
from common.data.manifest import manifest_hash
from common.files import sha256, write_atomically, write_json, write_text
from common.results.records import environment
from common.training.distributed import process_rank
from common.training.loop import Hardware, fit
from task1_asc.config import CONFIGS, Task1Config, load_config
from task1_asc.data import Clips, dataset_card, hold_out, load_clips, open_data
from task1_asc.model import DeviceModels
from task1_asc.system import SceneSystem
from task1_asc.weights import load_network, save_network


@dataclass(frozen=True)
class Job:
    """What the trainings of one run share. `held` are clips kept out of training to choose things on (may be empty)."""

    config: Task1Config
    class_names: list[str]
    clips: Clips
    held: Clips
    run: Path
    seed: int
    hardware: Hardware


def train_general(job: Job) -> dict:
    """Train one network on the clips of all devices; writes weights.pt and returns the log."""
    torch.manual_seed(job.seed)
    network = job.config.model(len(job.class_names))
    history = fit_network(network, job, job.clips, job.held, job.run)
    if process_rank() == 0:
        save_network(network, job.run / "weights.pt", job.class_names)
    return {"history": history}


def train_devices(job: Job, init: Path) -> dict:
    """Fine-tune a copy of the general model in `init` for each device; a device that is done is not trained again."""
    config = job.config
    base = load_network(init, config, job.class_names)
    if isinstance(base, DeviceModels):
        raise ConfigError(f"{init}: holds device-specific models already; give the weights of a general model.")
    trained_on = set(job.clips.devices)
    devices = config.finetune.devices or sorted(trained_on)
    if absent := sorted(set(devices) - trained_on):
        raise ConfigError(
            f"finetune.devices: no training clips of {', '.join(absent)}; there are clips of "
            f"{', '.join(sorted(trained_on))}."
        )
    container, log = DeviceModels(base, devices), {"devices": {}}
    for device in devices:
        network = container.get_model_for_device(device)
        own, held = (clips.select(clips.devices == device) for clips in (job.clips, job.held))
        print(f"device {device}: {len(own)} clips", flush=True)
        freeze(network, config.finetune.trainable)
        log["devices"][device] = {"history": fit_network(network, job, own, held, job.run / "devices" / device)}
        if config.finetune.keep_base == "holdout":
            log["devices"][device] |= keep_better(container, device, held, config)
    if process_rank() == 0:
        save_network(container, job.run / "weights.pt", job.class_names)
    return log


def fit_network(network: nn.Module, job: Job, clips: Clips, held: Clips, run: Path) -> list[dict]:
    """Train `network` in place on `clips`, watching `held`; returns the history. Done before, it is only loaded."""
    finished = run / "network.pt"
    if finished.is_file():
        state = torch.load(finished, weights_only=True)
        network.load_state_dict(state["network"])
        return state["history"]
    config, rank, world = job.config, process_rank(), job.hardware.n_processes
    batch = config.train.batch_size // config.train.accumulate
    train_loader = clips.loader(batch, shuffle=True, seed=job.seed, rank=rank, world_size=world)
    held_loader = held.loader(batch, rank=rank, world_size=world) if len(held) else None
    system = SceneSystem(config.front_end(), network, config.augment, clips)
    history = fit(system, train_loader, held_loader, config.optim, config.train, run, job.seed, job.hardware)
    network.cpu()
    if rank == 0:
        write_atomically(finished, lambda path: torch.save({"network": network.state_dict(), "history": history}, path))
        (run / "last.ckpt").unlink(missing_ok=True)
    return history


def freeze(network: nn.Module, trainable: str) -> None:
    """Leave only the part named by FinetuneConfig.trainable to the optimiser, and stop the statistics of the rest."""
    if trainable == "all":
        return
    head = set(network.feed_forward.modules()) if trainable == "head" else set()
    for module in network.modules():
        is_norm = isinstance(module, nn.BatchNorm2d)
        learns = module in head or (trainable == "batch_norm" and is_norm)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(learns)
        if is_norm and trainable == "head" and module not in head:
            module.momentum = 0.0  # statistics stay as they are


@torch.no_grad()
def keep_better(container: DeviceModels, device: str, held: Clips, config: Task1Config) -> dict:
    """Put the general model back for `device` unless the fine-tuned one is better on the device's hold-out clips."""
    from task1_asc.evaluate import predict_logits

    if not len(held):
        raise ConfigError(
            f"finetune.keep_base=holdout: no hold-out clips of device {device}; raise data.holdout_fraction."
        )
    accuracy = {}
    for name, network in (("base", container.base_model), ("fine_tuned", container.get_model_for_device(device))):
        logits = predict_logits(network, config.front_end(), held, config.test_precision)
        accuracy[name] = float((logits.argmax(1) == held.labels.numpy()).mean())
    kept = accuracy["fine_tuned"] <= accuracy["base"]
    if kept:
        container.device_models[device].load_state_dict(container.base_model.state_dict())
    print(
        f"device {device}: hold-out accuracy {accuracy['base']:.3f} before, {accuracy['fine_tuned']:.3f} after; "
        f"{'general model kept' if kept else 'fine-tuned model kept'}",
        flush=True,
    )
    return {"holdout_accuracy": accuracy, "kept_base": kept, "n_holdout": len(held)}


def claim_run(run: Path, resolved: dict, where: dict) -> None:
    """Write the config into the run folder, or refuse a folder that another config was trained in.

    A run that ended before its first checkpoint (a wrong path, say) has trained nothing and claims nothing.
    """
    known = run / "config.yaml"
    content = dump_yaml({"config": resolved, "run": where})
    trained = any((run / part).exists() for part in ("weights.pt", "network.pt", "last.ckpt", "devices"))
    if trained and known.is_file() and known.read_text(encoding="utf-8") != content:
        raise ConfigError(
            f"{run}: holds a run of another config, seed, initial weights or data (see {known.name} there); give "
            "another --out, or --force to start over."
        )
    if process_rank() == 0:
        write_text(known, content)


def clear_run(run: Path) -> None:
    """Remove what training wrote into a run folder, and nothing else."""
    for part in ("config.yaml", "weights.pt", "train.json", "network.pt", "last.ckpt", "log", "devices"):
        path = run / part
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="data folder in the TAU layout")
    parser.add_argument("--cache", type=Path, required=True, help="folder for decoded clips")
    parser.add_argument("--run", type=Path, required=True, help="run folder, written to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="weights of the general model, for a config with `base`")
    parser.add_argument("--force", action="store_true", help="start over in a run folder that is trained already")
    parser.add_argument("--smoke", action="store_true", help="one short epoch, see configs/smoke.yaml")
    parser.add_argument("--device", default="auto", help="cpu, gpu or auto")
    parser.add_argument("--devices", type=int, default=1, help="processes per machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    args, overrides = parser.parse_known_args(argv)
    try:
        run_training(args, overrides)
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(str(error)) from None


def run_training(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    config, resolved = load_config(args.config, overrides, args.smoke)
    if bool(config.base) != bool(args.init):
        raise ConfigError(
            f"{args.config}: has {'' if config.base else 'no '}`base`, so --init is "
            f"{'needed: the weights of ' + config.base if config.base else 'not used'}."
        )
    if args.force and process_rank() == 0:
        clear_run(args.run)
    started = time.monotonic()
    data = open_data(args.data)
    clips = load_clips(data, f"split{config.data.subset}", config.data, args.cache)
    claim_run(args.run, resolved, {
        "data": str(args.data.resolve()), "training_clips": manifest_hash(clips.rows), "seed": args.seed,
        "init": sha256(args.init) if args.init else None})  # fmt: skip
    if (args.run / "weights.pt").is_file() and (args.run / "train.json").is_file():
        print(f"{args.run}: trained before")
        return
    held = hold_out(clips.rows, config.data.holdout_fraction)
    hardware = Hardware(args.device, args.devices, args.nodes)
    held_clips = clips.select(held, resident=False)  # only the clips that train are kept on the device
    job = Job(config, data.class_names, clips.select(~held), held_clips, args.run, args.seed, hardware)
    log = train_devices(job, args.init) if config.base else train_general(job)
    if process_rank() == 0:
        log |= {
            "seed": args.seed,
            "recipe": recipe_name(args.config, overrides),
            "smoke": args.smoke,
            "config": resolved,
            "trained_devices": sorted(set(clips.devices)),
            "dataset": dataset_card(data, config.data, {"train": clips}),
            "training": environment(time.monotonic() - started),
        }
        write_json(args.run / "train.json", log)
        print(f"wrote {args.run / 'weights.pt'}")


def recipe_name(config: Path, overrides: Sequence[str]) -> str:
    """dcase2025/general for task1_asc/configs/dcase2025/general.yaml; the file's name for a config elsewhere.

    Overrides are part of the name: a changed recipe is not the published one.
    """
    path = config.resolve().with_suffix("")
    name = path.relative_to(CONFIGS).as_posix() if path.is_relative_to(CONFIGS) else path.name
    return name + "".join(f"+{key}={value}" for key, value in split_overrides(overrides))


if __name__ == "__main__":
    main()
