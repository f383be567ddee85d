"""Vectors of task 4: augmentations with frozen draws."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from common.audio.augment import FreqMixStyle
from task4_sed.augment import ClassMixup, FilterAugment, FrequencyWarp, TimeMask, TimeShift
from tests.parity.checks import Check, NotCoveredError, compare, equal, handles
from tests.parity.fill import other_seed, probe
from tests.parity.vectors import Vector

RELATIVE = 1e-5
N_CLIPS, N_CLASSES, N_FRAMES, N_LABEL_FRAMES = 4, 27, 100, 25

Inputs = tuple[Tensor, Tensor, Tensor]  # features (B, 1, F, N), half as many frames of them, labels (B, K, L)


@handles(lambda v: v.field("filt_aug_draws") is not None)
def check_augmentations(vector: Vector) -> Iterable[Check]:
    """Every array of the file, from the inputs that its json describes and from others."""
    seed = vector.field("seed")
    results = [_augmented(vector, _inputs(s)) for s in (seed, other_seed(seed))]
    if unknown := set(vector.arrays) - set(results[0]):
        raise NotCoveredError(f"no augmentation for {sorted(unknown)}")
    for name, expected in vector.arrays.items():
        found, replaced = (result[name] for result in results)
        if expected.dtype == bool:
            yield equal(name, found.int(), expected.astype(int))
        else:
            yield compare(name, found, expected, relative=RELATIVE, replaced=replaced)


def _inputs(seed: int) -> Inputs:
    features = probe((N_CLIPS, 1, 64, N_FRAMES), seed, 1.0)
    labels = np.random.RandomState(seed + 1).rand(N_CLIPS, N_CLASSES, N_LABEL_FRAMES) > 0.8  # noqa: NPY002
    return features, features[..., ::2], torch.from_numpy(labels).float()


def _augmented(vector: Vector, inputs: Inputs) -> dict[str, Tensor]:
    parts = _mixed(vector, *inputs) | _along_time(vector, *inputs) | _along_frequency(vector, inputs[0])
    spectrogram_like = {name for name in parts if parts[name].shape[-2] == 64}
    return {name: part[..., ::2] if name in spectrogram_like else part for name, part in parts.items()}


def _mixed(vector: Vector, features: Tensor, embedding: Tensor, labels: Tensor) -> dict[str, Tensor]:
    recipe, mixup = vector.field("mixup"), ClassMixup()
    lam = torch.tensor(recipe["lam"])
    draw = torch.maximum(lam, 1 - lam), torch.tensor(recipe["perm"])
    lower, upper = torch.arange(N_CLASSES) < 12, torch.arange(N_CLASSES) >= 10
    found = {
        "mixup_data": mixup.apply(features, draw),
        "mixup_emb": mixup.apply(embedding, draw),
        "mixup_targets": mixup.apply_labels(labels, draw),
        "mixup_pseudo": mixup.apply_labels(0.5 * labels, draw),
        "mixup_mask": mixup.apply_mask(torch.stack([lower, lower, upper, upper]), labels, draw),
    }
    recipe = vector.field("mixstyle")
    lam = torch.tensor(recipe["lam"])
    draw = torch.maximum(lam, 1 - lam), torch.tensor(recipe["perm"])
    style = FreqMixStyle(p=1.0, alpha=recipe["alpha"], keep_larger=True)
    return found | {"mixstyle": style.apply(features, draw)}


def _along_time(vector: Vector, features: Tensor, embedding: Tensor, labels: Tensor) -> dict[str, Tensor]:
    shifting = TimeShift()
    shift = torch.tensor([int(number) for number in vector.field("gauss_draws")])
    (width,), (first,) = vector.field("time_mask_draws")
    masking, mask = TimeMask(), (first, width)
    return {
        "shift_mel": shifting.apply(features, shift),
        "shift_emb": shifting.apply(embedding, shift, n_frames=N_FRAMES),
        "shift_labels": shifting.apply_labels(labels, shift),
        "shift_pseudo": shifting.apply_labels(0.5 * labels, shift),
        "tmask_mel": masking.apply(features, mask),
        "tmask_emb": masking.apply_encoder(embedding, mask, N_LABEL_FRAMES),
        "tmask_labels": masking.apply_labels(labels, mask),
        "tmask_pseudo": masking.apply_pseudo_labels(0.5 * labels, mask),
    }


def _along_frequency(vector: Vector, features: Tensor) -> dict[str, Tensor]:
    warp = vector.field("freq_warp")
    filtering, draws = FilterAugment(), vector.field("filt_aug_draws")
    inner, share = draws["randint"][1], torch.tensor(draws["rand"][0])
    edges = filtering.edges(np.array(inner), features.shape[2], filtering.min_width)
    gain_db = (2 * share - 1) * filtering.max_gain_db
    return {
        "freq_warp_i7_h45": FrequencyWarp().apply(features, (warp["i"], warp["h"]))[:, 0],
        "filt_aug": filtering.apply(features.abs(), (edges, gain_db)),
    }
