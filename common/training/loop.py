"""Run a training: devices, checkpoints, resume, progress.

Flow: system + loaders → **fit** → trained system, history; the run folder holds last.ckpt, written at each epoch's end,
and best.ckpt (weights alone) where the system says by what it is to be judged.

One machine:        python -m task.train … --devices 2
Several machines:   torchrun --nnodes 2 --nproc-per-node 4 --rdzv-endpoint … -m task.train … --devices 4 --nodes 2
SLURM:              srun --ntasks-per-node 4 python -m task.train … --devices 4 --nodes 2
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from common.training.distributed import WholeBatchSync
from common.training.module import OptimConfig, TrainConfig, TrainingModule, TrainingSystem


@dataclass(frozen=True)
class Hardware:
    """Where to run: `accelerator` cpu, gpu or auto; processes per machine; machines."""

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1

    def __post_init__(self):
        if self.accelerator not in ("auto", "cpu", "gpu"):
            raise ValueError(f"--device {self.accelerator}: expected cpu, gpu or auto.")
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("--device gpu: PyTorch finds no GPU on this machine; give --device cpu.")
        if self.devices < 1 or self.nodes < 1:
            raise ValueError(f"--devices {self.devices} and --nodes {self.nodes} must be at least 1.")

    @property
    def on_gpu(self) -> bool:
        return self.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def n_processes(self) -> int:
        return self.devices * self.nodes


class EpochLines:
    """Print a line per epoch, for log files, where no progress bar can be drawn.

    Of the training's own numbers it shows the loss; its terms are in log/metrics.csv and in the history.
    """

    def __init__(self):
        self._started, self._n_epochs = time.monotonic(), 0

    def __call__(self, row: dict, max_epochs: int) -> None:
        self._n_epochs += 1
        spent = time.monotonic() - self._started
        left = spent / self._n_epochs * (max_epochs - row["epoch"])
        shown = [name for name in row if name == "train_loss" or not name.startswith(("epoch", "train_"))]
        values = "  ".join(f"{name} {row[name]:.4g}" for name in shown)
        print(f"epoch {row['epoch']}/{max_epochs}  {values}  {spent:.0f} s, about {left:.0f} s left", flush=True)


def fit(
    system: TrainingSystem,
    loaders: Callable[[int, int], tuple[DataLoader, DataLoader | None]],
    optim: OptimConfig,
    train: TrainConfig,
    run: Path,
    seed: int,
    hardware: Hardware,
) -> list[dict]:
    """Train `system` in place to the last epoch; go on from `run`/last.ckpt where there is one.

    Args:
        loaders: (process number, number of processes) → loaders of that process's share of training and hold-out clips.

    Returns:
        One dict per epoch: epoch, lr, train_…, holdout_… (averages over clips).
    """
    run.mkdir(parents=True, exist_ok=True)
    with quiet_libraries():
        trainer = make_trainer(train, optim, run, hardware, system.best_by, system.skips_layers)
        train_loader, holdout_loader = loaders(trainer.global_rank, trainer.world_size)
        steps_per_epoch = -(-len(train_loader) // train.accumulate)
        torch.manual_seed(seed)
        module = TrainingModule(system, optim, train, seed, total_steps=steps_per_epoch * train.epochs)
        if not sys.stderr.isatty():
            module.after_epoch = EpochLines()
        checkpoint = run / "last.ckpt"
        resume = checkpoint if checkpoint.is_file() else None
        # Lightning tells samplers the epoch only after workers have begun to read ahead.
        module.on_resume = partial(set_epoch, train_loader)
        if resume and trainer.is_global_zero:
            print(f"going on from {resume}", flush=True)
        trainer.fit(module, train_loader, holdout_loader, ckpt_path=resume, weights_only=True)
    return module.history


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Tell the loader's sampler which epoch (from 0) is read next."""
    for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)


def best_weights(run: Path) -> dict[str, Tensor] | None:
    """Return the system's state dict of the epoch where its `best_by` was highest; None if there was no look at it."""
    path = run / "best.ckpt"
    if not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return {name.removeprefix("system."): value for name, value in state.items()}


def make_trainer(
    train: TrainConfig,
    optim: OptimConfig,
    run: Path,
    hardware: Hardware,
    best_by: str | None = None,
    skips_layers: bool = False,
) -> Trainer:
    """Return the trainer; `best_by` and `skips_layers` are those of `TrainingSystem`."""
    several = hardware.n_processes > 1
    validate_every = min(train.validate_every, train.epochs)
    always = {"dirpath": run, "save_on_train_epoch_end": True, "enable_version_counter": False}
    callbacks = [ModelCheckpoint(filename="last", **always)]
    if best_by:  # before "last", which then knows of it
        look = {"monitor": f"holdout_{best_by}", "mode": "max", "every_n_epochs": validate_every}
        callbacks.insert(0, ModelCheckpoint(filename="best", save_weights_only=True, **look, **always))
    if train.ema_decay > 0:
        callbacks.append(EMAWeightAveraging(decay=train.ema_decay))
    bar = sys.stderr.isatty()
    if bar:
        callbacks.append(TQDMProgressBar(refresh_rate=5))
    loggers = [CSVLogger(run, name="", version="log"), TensorBoardLogger(run, name="", version="log")]
    return Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=("ddp_find_unused_parameters_true" if skips_layers else "ddp") if several else "auto",
        sync_batchnorm=several and hardware.on_gpu,
        plugins=[WholeBatchSync()] if several and not hardware.on_gpu else None,
        precision=train.precision,
        max_epochs=train.epochs,
        accumulate_grad_batches=train.accumulate,
        gradient_clip_val=optim.gradient_clip or None,
        check_val_every_n_epoch=validate_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=50,
        enable_progress_bar=bar,
        enable_model_summary=False,
        default_root_dir=run,
    )


@contextlib.contextmanager
def quiet_libraries():
    """Lightning's hints on workers, steps and devices are not for the reader of a recipe."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with warnings.catch_warnings():
        for text in (
            ".*does not have many workers.*",
            ".*defined a .validation_step.*",
            ".*lr_scheduler.step.*",
            ".*Checkpoint directory.*",
            ".*litlogger.*",
            ".*number of training batches.*",
            ".*sync_dist.*",
            ".*isinstance.treespec.*",
            ".*experiment logs directory.*",
            ".*in eval mode at the start.*",
        ):
            warnings.filterwarnings("ignore", text)
        for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
