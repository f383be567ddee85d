"""Train a general model, or fine-tune it for each device.

Flow: config + data folder → clips → **training** → weights.pt (published key layout), train.json in the run folder.
Run:  python -m task1_asc.train --config task1_asc/configs/dcase2025/general.yaml --data FOLDER --run RUN --seed 0
      python -m task1_asc.train --config task1_asc/configs/dcase2025/device_specific.yaml … --init BASE_RUN/weights.pt
Killed at any moment, the same command goes on; a resumed CPU run ends with the same weights, bit for bit.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from common.config import ConfigError
from common.data.manifest import manifest_hash
from common.files import sha256, write_atomically, write_json
from common.results.records import environment, git_state
from common.training.distributed import process_rank
from common.training.loop import Hardware, fit
from common.training.runs import CONFIG, LOG, claim_run, clear_run, read_log, recipe_name
from task1_asc.config import CONFIGS, Task1Config, config_file, load_config
from task1_asc.data import Clips, dataset_card, hold_out, load_clips, open_data
from task1_asc.finetune import freeze, keep_better, renew_statistics
from task1_asc.model import DeviceModels
from task1_asc.system import SceneSystem
from task1_asc.weights import load_network, save_network

TRAINED = ("weights.pt", "network.pt", "last.ckpt", "devices")
WRITTEN = (*TRAINED, CONFIG, LOG, "log", "predictions.csv", "predictions.json")


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
    choose = config.finetune.keep_base == "holdout"
    if choose and (absent := sorted(set(devices) - set(job.held.devices))):
        raise ConfigError(
            f"finetune.keep_base=holdout: no hold-out clips of {', '.join(absent)}; raise data.holdout_fraction."
        )
    container, log = DeviceModels(base, devices), {"devices": {}}
    for device in devices:
        network = container.get_model_for_device(device)
        own, held = (clips.select(clips.devices == device) for clips in (job.clips, job.held))
        print(f"device {device}: {len(own)} clips", flush=True)
        log["devices"][device] = {"history": fit_network(network, job, own, held, job.run / "devices" / device)}
        if choose:
            log["devices"][device] |= keep_better(container, device, held, config, job.hardware)
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
    config, part = job.config, job.config.finetune.trainable
    batch = config.train.batch_size // config.train.accumulate
    if part == "batch_norm_statistics":
        renew_statistics(network, config.front_end(), clips, batch)
        return []

    def loaders(rank: int, world_size: int) -> tuple[DataLoader, DataLoader | None]:
        share = {"rank": rank, "world_size": world_size}
        train_loader = clips.loader(batch, shuffle=True, seed=job.seed, **share)
        return train_loader, held.loader(batch, **share) if len(held) else None

    system = SceneSystem(config.front_end(), network, config.augment, clips, freeze(network, part))
    history = fit(system, loaders, config.optim, config.train, run, job.seed, job.hardware)
    network.cpu()
    if process_rank() == 0:
        write_atomically(finished, lambda path: torch.save({"network": network.state_dict(), "history": history}, path))
        (run / "last.ckpt").unlink(missing_ok=True)
    return history


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
        clear_run(args.run, WRITTEN)
    started, commit = time.monotonic(), git_state()  # of the code that runs, whatever is committed meanwhile
    resumed = any(args.run.rglob("last.ckpt")) or any(args.run.rglob("network.pt"))
    base = read_base(args.init, config) if args.init else None
    data = open_data(args.data)
    clips = load_clips(data, f"split{config.data.subset}", config.data, args.cache)
    claim_run(args.run, resolved, {
        "data": str(args.data.resolve()), "training_clips": manifest_hash(clips.rows), "seed": args.seed,
        "init": sha256(args.init) if args.init else None}, TRAINED)  # fmt: skip
    if (args.run / "weights.pt").is_file() and (args.run / LOG).is_file():
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
            "recipe": recipe_name(CONFIGS, args.config, overrides),
            "smoke": args.smoke or bool(base and base["smoke"]),
            "base": base,
            "config": resolved,
            "config_folder": str(config_file(args.config).resolve().parent),  # own classes may lie there
            "trained_devices": sorted(set(clips.devices)),
            "dataset": dataset_card(data, {"train": clips}, {"train": f"split{config.data.subset}"}),
            # after a kill the time is that of the last start
            "training": environment(time.monotonic() - started) | {"git": commit, "resumed": resumed},
        }
        write_json(args.run / LOG, log)
        print(f"wrote {args.run / 'weights.pt'}")


def read_base(init: Path, config: Task1Config) -> dict:
    """Return what is known of the general model that fine-tuning starts from.

    Raises:
        ConfigError: it was trained on clips that are to choose between it and the fine-tuned models.
    """
    log = read_log(init.parent)
    holdout = log.get("config", {}).get("data", {}).get("holdout_fraction", 0)
    if config.finetune.keep_base == "holdout" and holdout != config.data.holdout_fraction:
        raise ConfigError(
            f"{init}: trained with data.holdout_fraction {holdout}, this config has {config.data.holdout_fraction}; "
            "finetune.keep_base=holdout needs a base that never saw the hold-out clips."
        )
    said = {"recipe": log.get("recipe"), "seed": log.get("seed"), "smoke": log.get("smoke", False)}
    return said | {"sha256": sha256(init)}


if __name__ == "__main__":
    main()
