"""The one lightning module that all tasks train with.

Flow: batch → task system (augment, features, network, losses) → **optimiser, schedule, log**.

The module knows no formula of any task. A task hands it a `TrainingSystem`: what is trained, and how a batch becomes
losses. Everything random gets a generator keyed by (seed, epoch, batch), so resuming repeats bit for bit.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from common.training.distributed import world_size
from common.training.sampling import AUGMENT, generator
from common.training.schedules import exp_warmup_linear_down, warmup_cosine


@dataclass
class OptimConfig:
    """Optimiser and learning-rate schedule.

    Args:
        name: adamw, adam (whose weight decay is an L2 term), or sgd (momentum 0.9).
        lr: largest learning rate.
        weight_decay: on all parameters.
        schedule: `warmup_cosine` per step (warmup_steps), `exp_warmup_linear_down` per epoch, or `constant`.
        warmup_steps: steps of linear warm-up from 0.
        warmup_epochs, rampdown_epochs, start_rampdown, last_value: of exp_warmup_linear_down, in epochs.
        gradient_clip: largest gradient norm; 0 = no clipping.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "warmup_cosine"
    warmup_steps: int = 0
    warmup_epochs: int = 14
    rampdown_epochs: int = 84
    start_rampdown: int = 50
    last_value: float = 0.005
    gradient_clip: float = 0.0

    def __post_init__(self):
        for key, value, known in (("name", self.name, OPTIMISERS), ("schedule", self.schedule, SCHEDULES)):
            if value not in known:
                raise ValueError(f"optim.{key} is {value!r}, expected one of {', '.join(known)}.")


OPTIMISERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}
SCHEDULES = ("warmup_cosine", "exp_warmup_linear_down", "constant")


@dataclass
class TrainConfig:
    """How long and how a network is trained.

    Args:
        epochs: passes over the training clips.
        batch_size: clips an optimiser step sees, over all processes and accumulated batches together.
        accumulate: batches whose gradients are added up for a step (smaller memory; batch norm sees the small batches).
        precision: lightning's name: 32-true, bf16-mixed, 16-mixed.
        validate_every: epochs between two looks at the hold-out (where there is one).
        ema_decay: keep an exponential moving average of the weights and use it in the end; 0 = off.
    """

    epochs: int = 1
    batch_size: int = 256
    accumulate: int = 1
    precision: str = "32-true"
    validate_every: int = 10
    ema_decay: float = 0.0

    def __post_init__(self):
        if self.validate_every < 1:
            raise ValueError(f"train.validate_every is {self.validate_every}, expected at least 1.")
        if self.epochs < 1 or self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(
                f"train.epochs {self.epochs} and accumulate {self.accumulate} must be at least 1 and divide "
                f"batch_size {self.batch_size}."
            )


class TrainingSystem(nn.Module, ABC):
    """What a task trains: networks, and how a batch becomes losses.

    Attributes:
        step: optimiser steps done; the module keeps it up to date, also in a resumed run.
        best_by: one of `validation_metrics`; the weights of the epoch where it was highest are kept, see
            loop.best_weights. None = only those of the last epoch.
        skips_layers: whether a batch may leave parameters without gradient (several processes have to know).
    """

    step: int = 0
    best_by: str | None = None
    skips_layers: bool = False

    @abstractmethod
    def training_losses(self, batch: dict, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return a flat dict of scalars with key `loss` (what is minimised): sums over this process's share of a batch
        divided by the clips of the whole batch, so that processes add up to one process."""

    def validation_scores(self, batch: dict) -> dict[str, Tensor]:
        """Return per-clip values, each (B,); the module averages them over all clips (key `loss`, `accuracy`, …)."""
        raise NotImplementedError

    def validation_metrics(self) -> dict[str, float]:
        """Return what only all hold-out clips together tell (a curve, a rank), once `validation_scores` has seen this
        process's share of them: the same in every process."""
        return {}

    def parameter_groups(self, optim: OptimConfig) -> list[dict]:
        """Return the parameters that train, in groups as `torch.optim` takes them; `optim` holds where a group says
        nothing else."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def before_zero_grad(self, step: int) -> None:
        """Called once an optimiser step, after the (first) forward pass and before gradients are set to zero.

        Args:
            step: optimiser steps done before this one.
        """


@dataclass
class Totals:
    """Sums and counts by name: averages over clips, not over batches (the last batch is smaller).

    A term that only some batches have is averaged over their clips.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, values: dict[str, Tensor], count: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double()
            self.counts[name] = self.counts.get(name, 0) + count


class TrainingModule(lightning.LightningModule):
    """Trains a `TrainingSystem`; keeps the history of averages in `self.history` (one dict per epoch)."""

    def __init__(self, system: TrainingSystem, optim: OptimConfig, train: TrainConfig, seed: int, total_steps: int):
        super().__init__()
        self.system, self.optim, self.train_config = system, optim, train
        self.seed, self.total_steps = seed, total_steps
        if optim.schedule == "warmup_cosine" and optim.warmup_steps >= total_steps:
            raise ValueError(
                f"optim.warmup_steps is {optim.warmup_steps}, but the training has {total_steps} steps in "
                f"{train.epochs} epochs: lower it, or raise train.epochs."
            )
        self.history: list[dict] = []
        self.after_epoch = None  # called with (the epoch's row, number of epochs) on the first process
        self.on_resume = None  # called with the epoch (from 0) that a resumed run does next
        self._training, self._validation, self._metrics = Totals(), Totals(), {}

    def configure_optimizers(self):
        groups = self.system.parameter_groups(self.optim)
        optimiser = OPTIMISERS[self.optim.name](groups, lr=self.optim.lr, weight_decay=self.optim.weight_decay)
        config = self.optim
        if config.schedule == "warmup_cosine":
            factor = partial(warmup_cosine, warmup_steps=config.warmup_steps, total_steps=self.total_steps)
        elif config.schedule == "exp_warmup_linear_down":
            factor = partial(
                exp_warmup_linear_down,
                warmup_epochs=config.warmup_epochs,
                last_value=config.last_value,
                rampdown_epochs=config.rampdown_epochs,
                start_rampdown=config.start_rampdown,
            )
        else:
            factor = _constant
        interval = "epoch" if config.schedule == "exp_warmup_linear_down" else "step"
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": LambdaLR(optimiser, factor), "interval": interval},
        }

    def on_train_epoch_start(self):
        self._training = Totals()

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        torch.manual_seed(int(generator(self.seed, AUGMENT, self.current_epoch, batch_idx, 1).integers(2**31)))
        self.system.step = self.global_step
        losses = self.system.training_losses(batch, generator(self.seed, AUGMENT, self.current_epoch, batch_idx))
        share = batch["n_clips"]
        self._training.add({name: value * share for name, value in losses.items()}, share)
        # data-parallel training averages gradients over processes: undo that, each share is already part of the whole
        return losses["loss"] * world_size()

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        self.system.before_zero_grad(self.global_step)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        scores = self.system.validation_scores(batch)
        n_clips = len(next(iter(scores.values())))
        self._validation.add({name: value.double().sum() for name, value in scores.items()}, n_clips)

    def on_validation_epoch_start(self):
        self._validation = Totals()

    def on_validation_epoch_end(self):
        self._metrics = self.system.validation_metrics()

    def on_train_epoch_end(self):
        row = {"epoch": self.current_epoch + 1, "lr": self.trainer.optimizers[0].param_groups[0]["lr"]}
        row |= {f"train_{name}": value for name, value in self._averages(self._training, add_counts=False).items()}
        row |= {f"holdout_{name}": value for name, value in self._averages(self._validation).items()}
        row |= {f"holdout_{name}": value for name, value in self._metrics.items()}
        self._validation, self._metrics = Totals(), {}
        self.history.append(row)
        # Which weights are the best is decided by all processes alike, so each of them needs that number.
        shown = {name: float(value) for name, value in row.items() if name != "epoch"}
        decisive = f"holdout_{self.system.best_by}"
        if decisive in shown:
            self.log(decisive, shown.pop(decisive))
        self.log_dict(shown, rank_zero_only=True)
        if self.after_epoch and self.trainer.is_global_zero:
            self.after_epoch(row, self.trainer.max_epochs)

    def _averages(self, totals: Totals, add_counts: bool = True) -> dict[str, float]:
        """Average over all clips of all processes; a clip is counted once."""
        if not totals.sums:
            return {}
        names = sorted(totals.sums)
        values = torch.stack([totals.sums[name].to(self.device).float() for name in names])
        counts = torch.tensor([float(totals.counts[name]) for name in names], device=self.device)
        if world_size() > 1:
            torch.distributed.all_reduce(values)
            if add_counts:
                torch.distributed.all_reduce(counts)
        if not torch.isfinite(values).all():
            raise FloatingPointError(
                f"epoch {self.current_epoch + 1}: the loss is not finite; lower optim.lr, or use "
                "train.precision=32-true."
            )
        return {name: float(value) for name, value in zip(names, values / counts, strict=True)}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.history = checkpoint["history"]
        if self.on_resume:
            self.on_resume(checkpoint["epoch"] + 1)


def _constant(step: int) -> float:
    return 1.0
