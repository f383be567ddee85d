"""Train a general model, or fine-tune it for each device.

Flow: config + data folder → clips → **training** → weights.pt (published key layout), history.json in the run folder.
Run:  python -m task1_asc.train --config task1_asc/configs/dcase2025/general.yaml --data FOLDER --run RUN --seed 0
      python -m task1_asc.train --config task1_asc/configs/dcase2025/device_specific.yaml … --init RUN_OF_BASE/weights.pt
Killed at any moment, the same command goes on; a resumed CPU run ends with the same weights, bit for bit.
"""
import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from common.config import ConfigError, config_hash, dump_yaml
from common.files import write_atomically, write_json, write_text
from common.results.records import environment
from common.training.distributed import process_rank
from common.training.loop import Hardware, fit
from task1_asc.config import Task1Config, load_config
from task1_asc.data import Clips, dataset_card, hold_out, load_clips, open_data
from task1_asc.model import DeviceModels
from task1_asc.system import SceneSystem
from task1_asc.weights import load_network, save_network


def train_general(config: Task1Config, clips: Clips, class_names: list[str], run: Path, seed: int, hardware: Hardware) -> dict:
    """Train one network on the clips of all devices; writes `run`/weights.pt and returns the log."""
    torch.manual_seed(seed)
    network = config.model(len(class_names))
    history = fit_network(network, config, clips, run, seed, hardware)
    if process_rank() == 0:
        save_network(network, run / "weights.pt", class_names)
    return {"history": history}


def train_devices(config: Task1Config, clips: Clips, class_names: list[str], run: Path, seed: int, hardware: Hardware,
                  init: Path) -> dict:
    """Fine-tune a copy of the general model in `init` for each device; a device that is done is not trained again."""
    base = load_network(init, config, class_names)
    if isinstance(base, DeviceModels):
        raise ConfigError(f"{init}: holds device-specific models already; give the weights of a general model.")
    trained_on = set(clips.devices)
    devices = config.finetune.devices or sorted(trained_on)
    if absent := sorted(set(devices) - trained_on):
        raise ConfigError(f"finetune.devices: no training clips of {', '.join(absent)}; there are clips of "
                          f"{', '.join(sorted(trained_on))}.")
    container, log = DeviceModels(base, devices), {"devices": {}}
    for device in devices:
        network, own = container.get_model_for_device(device), clips.select(clips.devices == device)
        print(f"device {device}: {len(own)} clips", flush=True)
        freeze(network, config.finetune.trainable)
        history = fit_network(network, config, own, run / "devices" / device, seed, hardware)
        log["devices"][device] = {"history": history}
        if config.finetune.keep_base == "holdout":
            log["devices"][device] |= keep_better(container, device, own, config)
    if process_rank() == 0:
        save_network(container, run / "weights.pt", class_names)
    return log


def fit_network(network: nn.Module, config: Task1Config, clips: Clips, run: Path, seed: int, hardware: Hardware) -> list[dict]:
    """Train `network` in place on the clips that are not held out; returns the history."""
    finished = run / "network.pt"
    if finished.is_file():  # this part was trained before a kill in a later one
        state = torch.load(finished, weights_only=True)
        network.load_state_dict(state["network"])
        return state["history"]
    rank, world = process_rank(), hardware.n_processes
    held = hold_out(clips.rows, config.data.holdout_fraction)
    train_clips = clips.select(~held)
    batch = config.train.batch_size // config.train.accumulate
    train_loader = train_clips.loader(batch, shuffle=True, seed=seed, rank=rank, world_size=world)
    holdout_loader = clips.select(held).loader(batch, rank=rank, world_size=world) if held.any() else None
    system = SceneSystem(config.front_end(), network, config.augment, train_clips)
    history = fit(system, train_loader, holdout_loader, config.optim, config.train, run, seed, hardware)
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
def keep_better(container: DeviceModels, device: str, clips: Clips, config: Task1Config) -> dict:
    """Put the general model back for `device` unless the fine-tuned one is better on the device's hold-out clips."""
    from task1_asc.evaluate import predict_logits

    held = clips.select(hold_out(clips.rows, config.data.holdout_fraction))
    accuracy = {}
    for name, network in (("base", container.base_model), ("fine_tuned", container.get_model_for_device(device))):
        logits = predict_logits(network, config.front_end(), held, config.test_precision)
        accuracy[name] = float((logits.argmax(1) == held.labels.numpy()).mean())
    kept = accuracy["fine_tuned"] <= accuracy["base"]
    if kept:
        container.device_models[device].load_state_dict(container.base_model.state_dict())
    print(f"device {device}: hold-out accuracy {accuracy['base']:.3f} before, {accuracy['fine_tuned']:.3f} after fine-tuning; "
          f"{'general model kept' if kept else 'fine-tuned model kept'}", flush=True)
    return {"holdout_accuracy": accuracy, "kept_base": kept, "n_holdout": len(held)}


def claim_run(run: Path, resolved: dict, where: dict) -> None:
    """Write the config into the run folder, or refuse a folder that another config was trained in."""
    known = run / "config.yaml"
    content = dump_yaml({"config": resolved, "run": where})
    if known.is_file() and known.read_text(encoding="utf-8") != content:
        raise ConfigError(f"{run}: holds a run of another config, seed or data folder (see {known.name} there); give another "
                          "--out, or --force to start over.")
    if process_rank() == 0:
        write_text(known, content)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="data folder in the TAU layout")
    parser.add_argument("--cache", type=Path, required=True, help="folder for decoded clips")
    parser.add_argument("--run", type=Path, required=True, help="run folder, written to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="weights of the general model, for a config with `base`")
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
        raise ConfigError(f"{args.config}: has {'' if config.base else 'no '}`base`, so --init is "
                          f"{'needed: the weights of ' + config.base if config.base else 'not used'}.")
    claim_run(args.run, resolved, {"data": str(args.data.resolve()), "seed": args.seed})
    if (args.run / "weights.pt").is_file() and (args.run / "train.json").is_file():
        print(f"{args.run}: trained before")
        return
    started = time.monotonic()
    data = open_data(args.data)
    clips = load_clips(data, f"split{config.data.subset}", config.data, args.cache)
    hardware = Hardware(args.device, args.devices, args.nodes)
    if config.base:
        log = train_devices(config, clips, data.class_names, args.run, args.seed, hardware, args.init)
    else:
        log = train_general(config, clips, data.class_names, args.run, args.seed, hardware)
    if process_rank() == 0:
        log |= {"seed": args.seed, "recipe": recipe_name(args.config), "smoke": args.smoke, "config": resolved,
                "config_sha256": config_hash(resolved), "dataset": dataset_card(data, config.data, {"train": clips}),
                "training": environment(time.monotonic() - started)}
        write_json(args.run / "train.json", log)
        print(f"wrote {args.run / 'weights.pt'}")


def recipe_name(config: Path) -> str:
    """dcase2025/general for …/configs/dcase2025/general.yaml; the file's name for a config outside configs/."""
    parts = config.resolve().with_suffix("").parts
    return "/".join(parts[parts.index("configs") + 1:]) if "configs" in parts else parts[-1]


if __name__ == "__main__":
    main()
