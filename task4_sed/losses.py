"""Losses of the sound event recipes: terms as plain functions of outputs and labels, and how they are added up.

Flow: outputs of student and teacher, labels, pseudo-labels → **terms** → `total_loss` → optimiser.

Shapes: strong outputs, labels and pseudo-labels (B, K, N), weak ones (B, K); all are probabilities. Classes that a
clip is not annotated for are 0 in outputs and labels: they add nothing, but count in the mean, as published.

Several processes share a batch. Each sums over its own clips and divides by the numbers of the whole batch, so that
the processes' terms add up to those of one process.

Source: DCASE 2024 task 4, system of CP-JKU (stage 1, stage 2) and baseline.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from task4_sed.config import LossConfig
from task4_sed.views import SETS, Groups, group_rows

Outputs = Mapping[str, Tensor]  # "strong" (B, K, N) and "weak" (B, K)
STRONG_SETS = ("maestro", "strong", "synth")
DESED_SETS = ("strong", "synth", "weak", "unlabeled")


@dataclass(frozen=True)
class Share:
    """Which clips of a batch are in this process.

    Args:
        sizes: clips of each set in the whole batch, one set after the other.
        rows: int64 (B,), places in the whole batch of the clips that are here.
    """

    sizes: Mapping[str, int]
    rows: Tensor

    def mean(self, values: Tensor, sets: Iterable[str] = SETS) -> Tensor:
        """Return this share's part of the mean over all clips of `sets` in the batch; 0 where it has none.

        Args:
            values: one per clip that is here, (B,).
        """
        (rows,) = group_rows((tuple(sets),), self.sizes)
        here = torch.from_numpy(np.flatnonzero(np.isin(self.rows.numpy(), rows)))
        return values[here.to(values.device)].sum() / max(len(rows), 1)


# ---------------------------------------------------------------- one number per clip


def cross_entropy(probability: Tensor, target: Tensor) -> Tensor:
    """Return the binary cross entropy (B,), the mean over all but the first dimension, in float32 at least.

    It is NaN for a clip with a NaN. (torch's own stops there, on a GPU with an error that says nothing of it.)
    """
    with torch.autocast(probability.device.type, enabled=False):
        probability = _precise(probability)
        target = target.to(probability.dtype)
        entropy = F.binary_cross_entropy(probability.nan_to_num(0.5), target, reduction="none")
        return (entropy + 0 * probability.detach()).flatten(1).mean(1)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return the squared error (B,), the mean over all but the first dimension, in float32 at least."""
    return (_precise(output) - _precise(target)).square().flatten(1).mean(1)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# ---------------------------------------------------------------- terms


def supervised_terms(student: Outputs, labels: Tensor, weak_labels: Tensor, share: Share) -> dict[str, Tensor]:
    """Return the cross entropies `maestro`, `strong` (real recordings), `synth` and `weak`.

    Args:
        labels: (B, K, N). weak_labels: (B, K); those of other than weakly labelled clips have no effect.
    """
    strong, weak = cross_entropy(student["strong"], labels), cross_entropy(student["weak"], weak_labels)
    return {name: share.mean(strong, [name]) for name in STRONG_SETS} | {"weak": share.mean(weak, ["weak"])}


def consistency_terms(student: Outputs, teacher: Outputs, share: Share, loss: LossConfig) -> dict[str, Tensor]:
    """Return the squared differences `consistency_strong` and `consistency_weak` of student and teacher.

    Over all clips; without MAESTRO's the weak one unless `loss.maestro_weak_consistency`, and both in the baseline.
    """
    strong_sets = DESED_SETS if loss.form == "baseline" else SETS
    weak_sets = strong_sets if loss.maestro_weak_consistency else DESED_SETS
    return {
        "consistency_strong": share.mean(squared_error(student["strong"], teacher["strong"]), strong_sets),
        "consistency_weak": share.mean(squared_error(student["weak"], teacher["weak"]), weak_sets),
    }


def interpolation_terms(
    student: Outputs, mixed: Outputs, share: Share, loss: LossConfig, groups: Groups, desed_classes: Tensor
) -> dict[str, Tensor]:
    """Return the squared differences between the student on mixed clips and the teacher's mixed outputs.

    For each group of sets that is `interpolation_…` = strong + weak / 2. Without `loss.maestro_weak_consistency` a
    group of MAESTRO alone has no weak part, and one that MAESTRO shares compares the weak outputs of DESED's classes
    only. `interpolation` is an eighth of their sum, in which a group that MAESTRO shares counts twice.

    Args:
        mixed: the teacher's outputs on the clips as they were, mixed as the student's clips.
        groups: sets that are mixed with each other. desed_classes: bool (K,).
    """
    strong = squared_error(student["strong"], mixed["strong"])
    weak = squared_error(student["weak"], mixed["weak"])
    weak_desed = squared_error(student["weak"][:, desed_classes], mixed["weak"][:, desed_classes])
    terms, total = {}, torch.zeros_like(strong.sum())
    for group in groups:
        shared, weak_part = "maestro" in group and len(group) > 1, weak
        if "maestro" in group and not loss.maestro_weak_consistency:
            weak_part = weak_desed if shared else torch.zeros_like(weak)
        term = share.mean(strong + weak_part / 2, group)
        terms["interpolation_" + "_".join(group)] = term
        total = total + term * (2 if shared else 1)
    return {"interpolation": total / 8} | terms


def pseudo_terms(student: Outputs, pseudo_labels: Tensor, share: Share) -> dict[str, Tensor]:
    """Return the cross entropies `pseudo_desed` (all its sets) and `pseudo_maestro` with pseudo-labels (B, K, N)."""
    strong = cross_entropy(student["strong"], pseudo_labels)
    return {"pseudo_desed": share.mean(strong, DESED_SETS), "pseudo_maestro": share.mean(strong, ["maestro"])}


# ---------------------------------------------------------------- the sum


def self_supervised_weight(loss: LossConfig, step: int) -> float:
    """Return the weight of the consistency after `step` optimiser steps.

    Linear: it reaches `loss.self_supervised` at `loss.warmup_steps` and stops at `loss.largest_scale` times that. In
    the baseline exp(−5 (1 − step / warmup_steps)²) times `loss.self_supervised`, up to that.
    """
    progress = step / loss.warmup_steps if loss.warmup_steps else math.inf
    if loss.form == "baseline":
        return loss.self_supervised * math.exp(-5.0 * (1.0 - min(progress, 1.0)) ** 2)
    return loss.self_supervised * min(progress, loss.largest_scale)


def total_loss(
    terms: Mapping[str, Tensor], loss: LossConfig, consistency_weight: float, sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return `supervised`, `self_supervised` and `pseudo` as they enter the loss, and their sum `loss`.

    Args:
        consistency_weight: see `self_supervised_weight`. sizes: clips of each set in the batch.
    """
    weighted = {name: getattr(loss, name) * terms[name] for name in (*STRONG_SETS, "weak")}
    if loss.form == "baseline":  # one mean over all strongly labelled clips
        n_strong = sum(sizes.get(name, 0) for name in STRONG_SETS)
        weighted |= {name: weighted[name] * sizes.get(name, 0) / max(n_strong, 1) for name in STRONG_SETS}
    strong = sum(weighted[name] for name in STRONG_SETS)
    supervised = strong / 3 + weighted["weak"] / 2 if loss.form == "stage2" else strong + weighted["weak"]
    parts = {
        "supervised": supervised,
        "self_supervised": consistency_weight * _self_supervised(terms, loss, torch.zeros_like(supervised)),
        "pseudo": loss.pseudo * _pseudo(terms, loss) if "pseudo_desed" in terms else torch.zeros_like(supervised),
    }
    parts = {name: loss.scale * value for name, value in parts.items()}
    return {"loss": sum(parts.values())} | parts


def _self_supervised(terms: Mapping[str, Tensor], loss: LossConfig, zero: Tensor) -> Tensor:
    if "interpolation" not in terms and "consistency_strong" not in terms:
        return zero  # the teacher was not asked
    if "interpolation" in terms:
        return terms["interpolation"] / 4
    return terms["consistency_strong"] + terms["consistency_weak"] / (2 if loss.form == "stage2" else 1)


def _pseudo(terms: Mapping[str, Tensor], loss: LossConfig) -> Tensor:
    """Pseudo-labels weigh as much as the labels of the same clips do among each other."""
    return (loss.strong + loss.synth + loss.weak) * terms["pseudo_desed"] + loss.maestro * terms["pseudo_maestro"]
