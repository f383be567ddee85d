"""The config of Task 1: one dataclass, filled from a YAML file; see configs/."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.config import ConfigError, build, importable, read_merged
from common.training import runs
from common.training.module import OptimConfig, TrainConfig
from task1_asc.data import DataConfig

CONFIGS = Path(__file__).resolve().parent / "configs"
TRAINABLE = ("all", "head", "batch_norm", "batch_norm_statistics")
KEEP_BASE = ("never", "holdout")


@dataclass
class AugmentConfig:
    """What training changes in clips and spectrograms (section 3 of the baseline's description).

    Args:
        roll_s: largest circular shift, seconds.
        freq_mask_bins, time_mask_frames: largest mask on the mel spectrogram, before the logarithm; 0 = off.
        mixstyle_p, mixstyle_alpha: Freq-MixStyle: share of batches, Beta parameter; p 0 = off.
        mixup_alpha: Beta parameter of mixup on the log mel; 0 = off.
        impulse_response_p: share of clips of `impulse_response_devices` convolved with a response from
            `impulse_response_folder` (device impulse response augmentation); 0 = off.
    """

    roll_s: float = 0.1
    freq_mask_bins: int = 48
    time_mask_frames: int = 0
    mixstyle_p: float = 0.4
    mixstyle_alpha: float = 0.3
    mixup_alpha: float = 0.0
    impulse_response_p: float = 0.0
    impulse_response_folder: str = ""
    impulse_response_devices: list[str] = field(default_factory=lambda: ["a"])

    def __post_init__(self):
        if self.impulse_response_p > 0 and not self.impulse_response_folder:  # "" would be the current folder
            raise ValueError(
                "augment.impulse_response_p is above 0: augment.impulse_response_folder must name the folder."
            )


@dataclass
class FinetuneConfig:
    """Device-specific fine-tuning of a general model (used where `base` is set).

    Args:
        devices: devices to fine-tune on; none given = every device with training clips.
        trainable: `all`; `head`: the last convolution and its norm, all else as in the base model, statistics too;
            `batch_norm`: scales, shifts and statistics of all norms; `batch_norm_statistics`: statistics alone.
        keep_base: `never` as published, or `holdout`: keep the general model for a device where the fine-tuned one is
            not better on that device's hold-out clips (needs data.holdout_fraction).
    """

    devices: list[str] = field(default_factory=list)
    trainable: str = "all"
    keep_base: str = "never"

    def __post_init__(self):
        for key, value, known in (("trainable", self.trainable, TRAINABLE), ("keep_base", self.keep_base, KEEP_BASE)):
            if value not in known:
                raise ValueError(f"finetune.{key} is {value!r}, expected one of {', '.join(known)}.")


@dataclass
class Task1Config:
    """One row of a results table.

    Args:
        base: the config (relative to configs/, no ending) of the general model that is fine-tuned per device; empty for
            a general model.
        model, front_end: class and arguments; the model is called with n_classes.
        test_precision: fp16 as published (weights and log mel rounded to half; computed in half on GPU, in float32 on
            CPU), or fp32.
    """

    model: Callable[[int], torch.nn.Module]
    front_end: Callable[[], torch.nn.Module]
    base: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    test_precision: str = "fp16"

    def __post_init__(self):
        if self.test_precision not in ("fp16", "fp32"):
            raise ValueError(f"test_precision is {self.test_precision!r}, expected fp16 or fp32.")
        if not self.base and self.finetune != FinetuneConfig():
            raise ValueError("finetune is used only where `base` names a general model: set base, or drop finetune.")
        if self.finetune.keep_base == "holdout" and self.data.holdout_fraction == 0:
            raise ValueError("finetune.keep_base=holdout needs data.holdout_fraction above 0.")


def config_file(name: str | Path) -> Path:
    """Return the file of a config given by path or by name ("dcase2025/general")."""
    return runs.config_file(CONFIGS, name)


def load_config(path: str | Path, overrides: Sequence[str] = (), smoke: bool = False) -> tuple[Task1Config, dict]:
    """Return (config, resolved dict) of a YAML file, or of a name below configs/; `smoke` shrinks it to seconds.

    Classes that `class_path` names may lie beside the file. ConfigError says what is wrong.
    """
    path = config_file(path)
    importable(path.resolve().parent)
    overlays = [CONFIGS / "smoke.yaml"] if smoke else []
    config, resolved = build(Task1Config, read_merged(path, *overlays), overrides, where=str(path))
    rates = config.data.format.sample_rate, config.front_end().input_rate
    if rates[0] != rates[1]:
        raise ConfigError(f"{path}: data.format.sample_rate is {rates[0]}, the front end's input_rate {rates[1]}; "
                          "set both to the same.")  # fmt: skip
    return config, resolved
