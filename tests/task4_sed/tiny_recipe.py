"""A recipe small enough for tests, and the published training step written plainly: two whole networks, masks, means.

Run:  python -m tests.task4_sed.tiny_recipe RUN --stage full --devices 2     see `train_with_everything`
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.audio.encoder_frontends import CrnnMel, fmn_mel
from common.nn.encoders import Encoder
from common.training.loop import Hardware, fit
from common.training.module import OptimConfig, TrainConfig
from common.training.sampling import ORDER, BatchSampler, generator
from task4_sed.config import AugmentConfig, DataConfig, LossConfig, RatesConfig, SedConfig
from task4_sed.data import Manifest, set_info
from task4_sed.labels import class_mask, sound_classes
from task4_sed.models.crnn import FusionCRNN
from task4_sed.models.fusion import FusionModel
from task4_sed.system import SedSystem
from task4_sed.views import SedBatch

SIZES = {"maestro": 2, "strong": 1, "synth": 2, "weak": 3, "unlabeled": 2}
N_CLIPS = sum(SIZES.values())
WEAK = slice(5, 8)
PSEUDO_STAGE = "frozen"  # which of the stages has pseudo-labels


class TinyNetwork(nn.Module):
    """Mel rows to 8 features, one vector per ten frames."""

    n_features = 8

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(128, 16, 5, stride=5), nn.Conv1d(16, 8, 2, stride=2)

    def forward(self, log_mel: Tensor) -> Tensor:
        return self.last(self.first(log_mel[:, 0]).tanh()).transpose(1, 2)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return [list(self.last.parameters()), list(self.first.parameters())]


def tiny_student(dropout: float = 0.0, projection: bool | None = None, seed: int = 0) -> FusionModel:
    """Return a small model; `projection`: None = without, else whether it trains."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = None if projection is None else nn.Linear(8, 6).requires_grad_(projection)
        crnn = FusionCRNN(8 if layer is None else 6, hidden=8, dropout=dropout, width=0.1)
        return FusionModel(Encoder("tiny", fmn_mel(), TinyNetwork(), 10), layer, crnn)


def tiny_config(stage: str, loss: dict | None = None, augment: dict | None = None, **fields) -> SedConfig:
    """Return the recipe of stage 1 (`frozen`, with pseudo-labels) or 2 (`full`), mixup in every batch."""
    pseudo = stage == PSEUDO_STAGE
    published = {
        "frozen": {"form": "stage1", "self_supervised": 0.6, "pseudo": 1.5, "scale": 5.0, "warmup_steps": 10},
        "full": {
            "form": "stage2", "maestro": 2.0, "strong": 1.5, "synth": 0.7, "weak": 1.3, "self_supervised": 70.0,
            "pseudo": 0.0, "scale": 1.0, "warmup_steps": 10, "largest_scale": 1.0, "interpolation": True,
        },
    }  # fmt: skip
    teacher = "mixed" if pseudo else "unmixed"
    return SedConfig(
        stage=stage,
        pseudo_labels=pseudo,
        data=DataConfig(batch=dict(SIZES)),
        loss=LossConfig(**published[stage] | (loss or {})),
        augment=AugmentConfig(**{"teacher": teacher, "mixup_p": 1.0} | (augment or {})),
        **fields,
    )


def tiny_batch(seed: int = 0, n_samples: int = 32000, sizes: dict[str, int] | None = None) -> dict:
    """Return a training batch of noise, of all sets; labels (of masked classes too) and pseudo-labels are random."""
    sizes = sizes or SIZES
    n_clips, n_frames = sum(sizes.values()), (n_samples // 256 + 1) // 4
    draw = torch.Generator().manual_seed(seed)
    loudness = 0.02 + 0.3 * torch.rand(n_clips, 1, 1, generator=draw)
    desed, maestro = (torch.from_numpy(class_mask(source)) for source in ("desed", "maestro"))
    mask = torch.stack([maestro] * sizes.get("maestro", 0) + [desed] * (n_clips - sizes.get("maestro", 0)))
    targets = (torch.rand(n_clips, 27, n_frames, generator=draw) > 0.97).float()
    return {
        "waveform": loudness * torch.randn(n_clips, 1, n_samples, generator=draw),
        "targets": targets,
        "class_mask": mask,
        "pseudo": torch.rand(n_clips, 27, n_frames, generator=draw),
        "sizes": sizes,
        "n_clips": n_clips,
        "rows": torch.arange(n_clips),
    }


# ---------------------------------------------------------------- the published step, plainly


def plain_outputs(network: FusionModel, view: SedBatch, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return strong (B, K, N) and weak (B, K) probabilities: masked by `mask`, and of all classes."""
    found = network(CrnnMel().scale(view.amplitude).to(view.labels.dtype), view.encoder_mel.to(view.labels.dtype), mask)
    strong = torch.sigmoid(found["strong_logits"])
    attention = torch.softmax(found["attention_logits"], -1).clamp(1e-7, 1)
    weak = (strong * attention).sum(1) / attention.sum(1)
    return found["strong"], found["weak"], strong.transpose(1, 2), weak


def plain_losses(
    student: FusionModel, teacher: FusionModel, views: tuple[SedBatch, SedBatch], weak_labels: Tensor,
    mix: tuple[Tensor, Tensor] | None, config: SedConfig, step: int, sizes: dict[str, int] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the terms of one step.

    Args:
        student, teacher: whole networks of their own. views: what they see. weak_labels: (b, K), mixed already.
        sizes: clips of all five sets; default SIZES.
    """
    view, teacher_view = views
    ends = np.cumsum([0, *(sizes or SIZES).values()])
    maestro, real, synth, weak_rows, unlabeled = (slice(*pair) for pair in zip(ends, ends[1:]))
    strong_rows, desed = slice(0, ends[3]), slice(ends[1], None)
    loss, mask = config.loss, view.class_mask
    bce, mse = F.binary_cross_entropy, F.mse_loss
    labels = view.labels * mask[..., None]
    strong, weak, strong_all, weak_all = plain_outputs(student, view, mask)
    terms = {
        "maestro": bce(strong[maestro], labels[maestro]),
        "strong": bce(strong[real], labels[real]),
        "synth": bce(strong[synth], labels[synth]),
        "weak": bce(weak[weak_rows], weak_labels * mask[weak_rows]),
    }
    supervised = [loss.maestro * terms["maestro"], loss.strong * terms["strong"], loss.synth * terms["synth"]]
    weighted_weak = loss.weak * terms["weak"]
    with torch.no_grad():
        target_strong, target_weak, *target_all = plain_outputs(teacher, teacher_view, mask)
    if not loss.mask_consistency:
        strong_ssl, weak_ssl, (target_strong, target_weak) = strong_all, weak_all, target_all
    else:
        strong_ssl, weak_ssl = strong, weak
    weight = min(step / loss.warmup_steps * loss.self_supervised, loss.self_supervised * loss.largest_scale)
    if loss.form == "stage2" and mix is not None:
        lam, perm = mix[0].to(strong), mix[1]
        mixed_strong = lam[:, None, None] * target_strong + (1 - lam[:, None, None]) * target_strong[perm]
        mixed_weak = lam[:, None] * target_weak + (1 - lam[:, None]) * target_weak[perm]
        classes = class_mask("desed") if not loss.maestro_weak_consistency else np.ones(27, bool)
        ict = {
            "interpolation_maestro_strong_synth": mse(strong_ssl[strong_rows], mixed_strong[strong_rows])
            + mse(weak_ssl[strong_rows][:, classes], mixed_weak[strong_rows][:, classes]) / 2,
            "interpolation_weak": mse(strong_ssl[weak_rows], mixed_strong[weak_rows])
            + mse(weak_ssl[weak_rows], mixed_weak[weak_rows]) / 2,
            "interpolation_unlabeled": mse(strong_ssl[unlabeled], mixed_strong[unlabeled])
            + mse(weak_ssl[unlabeled], mixed_weak[unlabeled]) / 2,
        }
        one, two, three = ict.values()
        terms |= ict | {"interpolation": (one + two + three + one) / 8}
        self_supervised = terms["interpolation"] * weight / 4
    else:
        rows = desed if not loss.maestro_weak_consistency else slice(None)
        terms["consistency_strong"] = mse(strong_ssl, target_strong)
        terms["consistency_weak"] = mse(weak_ssl[rows], target_weak[rows])
        half = 2 if loss.form == "stage2" else 1
        self_supervised = weight * (terms["consistency_strong"] + terms["consistency_weak"] / half)
    pseudo = torch.zeros(())
    if loss.pseudo > 0:
        targets = view.pseudo_labels * mask[..., None]
        terms["pseudo_desed"] = bce(strong[desed], targets[desed])
        terms["pseudo_maestro"] = bce(strong[maestro], targets[maestro])
        desed_weight = loss.strong + loss.synth + loss.weak
        pseudo = loss.pseudo * (desed_weight * terms["pseudo_desed"] + loss.maestro * terms["pseudo_maestro"])
    if loss.form == "stage2":
        total = sum(supervised) / 3 + weighted_weak / 2 + self_supervised + pseudo
    else:
        total = 5 * (sum(supervised) + weighted_weak + self_supervised + pseudo)
    return terms | {"loss": total}


# ---------------------------------------------------------------- a training in a process of its own


class NoiseBatches(torch.utils.data.Dataset):
    """The batches that `tiny_batch` makes from seeds; every process has all of a batch, and its own rows."""

    def __init__(self, seeds: int, rank: int, world_size: int):
        self.seeds, self.rows = seeds, torch.arange(rank, N_CLIPS, world_size)

    def __len__(self) -> int:
        return self.seeds

    def __getitem__(self, seed: int) -> dict:
        return tiny_batch(seed) | {"rows": self.rows}


class Shuffled(torch.utils.data.Sampler):
    """Another order every epoch, the same for all processes."""

    def __init__(self, n: int):
        self.n, self.epoch = n, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self):
        yield from generator(0, ORDER, self.epoch).permutation(self.n).tolist()


def hold_out_manifests() -> dict[str, Manifest]:
    """Return three clips with one strong event each, and two of MAESTRO with soft labels."""
    columns = ["filename", "onset", "offset", "event_label", "confidence"]
    strong = [(f"s{i}.wav", 1.0 + i, 4.0 + i, name) for i, name in enumerate(("Dog", "Speech", "Dog"))]
    # Frames begin at full seconds only every 8 s: elsewhere one of them is in a second with and one without an event.
    soft = [("cafe-000000-001000.wav", 0.0, 8.0, "car", 0.8), ("cafe-001000-002000.wav", 8.0, 10.0, "car", 0.8)]
    return {
        name: Manifest(
            info=set_info(info),
            root=Path(),
            clips=pd.DataFrame({"filename": [row[0] for row in rows], "path": "", "duration": 10.0}),
            events=pd.DataFrame(rows, columns=columns[: len(rows[0])]),
            class_mask=class_mask(set_info(info).source, "validation"),
            class_names=sound_classes().names,
        )
        for name, info, rows in (("synth", "synth_val", strong), ("maestro", "maestro_real_val", soft))
    }


class HoldOutNoise(torch.utils.data.Dataset):
    """The clips of `hold_out_manifests`: noise."""

    def __init__(self):
        self.manifests = hold_out_manifests()
        self.places = [(name, item) for name, own in self.manifests.items() for item in range(len(own))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, rows: list[tuple[int, int, int]]) -> dict:
        chosen = [self.places[row] for row, _, _ in rows]
        noise = [generator(0, 9, row).standard_normal((1, 160000)) for row, _, _ in rows]
        targets = [self.manifests[name].event_arrays().encode([item])[0].T for name, item in chosen]
        return {
            "waveform": torch.from_numpy(0.1 * np.stack(noise)).float(),
            "targets": torch.from_numpy(np.stack(targets)),
            "class_mask": torch.from_numpy(np.stack([self.manifests[name].class_mask for name, _ in chosen])),
            "set": [name for name, _ in chosen],
            "item": torch.tensor([item for _, item in chosen]),
            "n_clips": rows[0][2],
        }


def tiny_loaders(rank: int, world_size: int) -> tuple[DataLoader, DataLoader]:
    clips = HoldOutNoise()
    held = BatchSampler(len(clips), 4, rank=rank, world_size=world_size)
    train = DataLoader(NoiseBatches(2, rank, world_size), batch_size=None, sampler=Shuffled(2))
    return train, DataLoader(clips, batch_sampler=held, collate_fn=lambda batch: batch)


def train_tiny(run: Path, stage: str, epochs: int, devices: int = 1, accumulate: int = 1, **changes) -> SedSystem:
    """Train on noise, two batches an epoch, with a look at the hold-out clips every other epoch."""
    precision, lr = changes.pop("precision", "32-true"), changes.pop("lr", 1e-2)
    dropout = changes.pop("dropout", 0.0)
    train = TrainConfig(epochs, N_CLIPS * accumulate, accumulate, precision, validate_every=2)
    optim = OptimConfig(lr=lr, schedule="constant")
    config = tiny_config(stage, train=train, optim=optim, **changes)
    system = SedSystem(tiny_student(dropout), config, hold_out_manifests())
    history = fit(system, tiny_loaders, optim, train, run, seed=0, hardware=Hardware("cpu", devices))
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(system.state_dict(), run / "weights.pt")
        (run / "history.json").write_text(json.dumps(history))
    return system


def train_with_everything(run: Path, stage: str, devices: int = 1) -> SedSystem:
    """Train four steps in double precision, with all augmentations but dropout."""
    augment = {"mixstyle_p": 1.0, "time_mask": True, "filter_p": 1.0, "edge_jitter": True}
    if stage == "full":
        augment |= {"warp_p": 1.0, "encoder_filter": True}
    rates = RatesConfig(cnn=1e-2, rnn=1e-2, encoder=1e-2, encoder_decay=0.5)
    return train_tiny(run, stage, 2, devices, precision="64-true", augment=augment, rates=rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--devices", type=int, required=True)
    args = parser.parse_args()
    train_with_everything(args.run, args.stage, args.devices)


if __name__ == "__main__":
    main()
