"""Losses: terms and sums by hand, shares of several processes, masks, warm-ups."""

import math

import pytest
import torch

from task4_sed.config import LossConfig
from task4_sed.losses import (
    Share,
    consistency_terms,
    cross_entropy,
    interpolation_terms,
    pseudo_terms,
    self_supervised_weight,
    squared_error,
    supervised_terms,
    total_loss,
)
from task4_sed.views import MIX_GROUPS

SIZES = {"maestro": 2, "strong": 1, "synth": 1, "weak": 2, "unlabeled": 1}
ALL = Share(SIZES, torch.arange(7))
K, N = 3, 2
STRONG_WEIGHTS = {"maestro": 2.0, "strong": 3.0, "synth": 5.0}


def outputs(strong=0.5, weak=0.5):
    """Return outputs with one number per clip, or the same number for all."""
    strong, weak = (torch.as_tensor(values, dtype=torch.float32).expand(7) for values in (strong, weak))
    return {"strong": strong[:, None, None].repeat(1, K, N), "weak": weak[:, None].repeat(1, K)}


def value(terms):
    return {name: round(float(term), 6) for name, term in terms.items()}


def test_cross_entropy_and_squared_error_by_hand():
    probability = torch.tensor([[0.5, 0.25], [1.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = torch.tensor([(math.log(2) + math.log(4 / 3)) / 2, 0.0])
    torch.testing.assert_close(cross_entropy(probability, target), expected)
    torch.testing.assert_close(squared_error(probability, target), torch.tensor([(0.25 + 0.0625) / 2, 0.0]))


def test_masked_classes_are_zero_but_count_in_the_mean():
    """Two of three classes are masked in output and label: a third of the cross entropy of the class that is left."""
    probability = torch.tensor([[0.5, 0.0, 0.0]], requires_grad=True)
    entropy = cross_entropy(probability, torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(2) / 3]))
    entropy.sum().backward()
    assert probability.grad.isfinite().all()


def test_losses_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        entropy = cross_entropy(torch.full((1, 2), 0.5, dtype=torch.bfloat16), torch.ones(1, 2))
    assert entropy.dtype == torch.float32
    assert squared_error(torch.ones(1, 2, dtype=torch.bfloat16), torch.zeros(1, 2)).dtype == torch.float32
    assert squared_error(torch.ones(1, 2).double(), torch.zeros(1, 2)).dtype == torch.float64


def test_mean_over_the_clips_of_sets():
    values = torch.arange(7.0)
    assert ALL.mean(values, ["weak"]) == 4.5  # clips 4 and 5
    assert ALL.mean(values, ["maestro", "unlabeled"]) == (0 + 1 + 6) / 3
    assert ALL.mean(values) == 3.0
    assert Share({"weak": 7}, torch.arange(7)).mean(values, ["maestro"]) == 0.0


def test_shares_of_processes_add_up():
    values = torch.rand(7, generator=torch.Generator().manual_seed(0))
    for sets in (["maestro"], ["strong", "synth", "weak"], list(SIZES)):
        parts = [Share(SIZES, rows).mean(values[rows], sets) for rows in (torch.arange(0, 7, 3), torch.arange(1, 7, 3))]
        parts.append(Share(SIZES, torch.tensor([2, 5])).mean(values[[2, 5]], sets))
        torch.testing.assert_close(sum(parts), ALL.mean(values, sets))


def test_supervised_terms_take_each_set_by_itself():
    probability = [0.5, 0.25, 0.9, 0.8, 0.1, 0.2, 0.3]
    labels, weak_labels = torch.zeros(7, K, N), torch.zeros(7, K)
    labels[:2], weak_labels[4] = 1.0, 1.0
    found = value(supervised_terms(outputs(probability, probability), labels, weak_labels, ALL))
    assert found == pytest.approx(
        {
            "maestro": (math.log(2) + math.log(4)) / 2,
            "strong": -math.log(0.1),
            "synth": -math.log(0.2),
            "weak": (-math.log(0.1) - math.log(0.8)) / 2,
        },
        abs=1e-5,
    )


@pytest.mark.parametrize(
    "settings, strong_clips, weak_clips",
    [
        ({}, range(7), range(7)),
        ({"maestro_weak_consistency": False}, range(7), range(2, 7)),
        ({"form": "stage2"}, range(7), range(7)),
        ({"form": "baseline"}, range(2, 7), range(2, 7)),
    ],
)
def test_consistency_terms(settings, strong_clips, weak_clips):
    difference = [0.1 * clip for clip in range(7)]
    found = consistency_terms(outputs(difference, difference), outputs(0.0, 0.0), ALL, LossConfig(**settings))
    for name, clips in (("consistency_strong", strong_clips), ("consistency_weak", weak_clips)):
        assert float(found[name]) == pytest.approx(sum(0.01 * clip**2 for clip in clips) / len(clips))


def test_interpolation_terms_by_hand():
    """Strong outputs differ by 0.1, weak by 0.2 (class 2, which is MAESTRO's alone, by 0.4)."""
    student, mixed = outputs(0.1, 0.2), outputs(0.0, 0.0)
    student["weak"][:, 2] = 0.4
    desed_classes = torch.tensor([True, True, False])
    weak, weak_desed = (0.04 + 0.04 + 0.16) / 3, 0.04
    one = 0.01 + weak / 2
    found = value(interpolation_terms(student, mixed, ALL, LossConfig(), MIX_GROUPS, desed_classes))
    names = ["interpolation_weak", "interpolation_maestro_strong_synth", "interpolation_unlabeled"]
    assert found == pytest.approx({"interpolation": 4 * one / 8} | dict.fromkeys(names, one), abs=1e-6)

    without = LossConfig(maestro_weak_consistency=False)
    found = value(interpolation_terms(student, mixed, ALL, without, MIX_GROUPS, desed_classes))
    shared = 0.01 + weak_desed / 2
    assert found[names[1]] == pytest.approx(shared, abs=1e-6) and found[names[0]] == pytest.approx(one, abs=1e-6)
    assert found["interpolation"] == pytest.approx((2 * shared + 2 * one) / 8, abs=1e-6)

    apart = (("maestro",), ("strong", "synth"), ("weak",), ("unlabeled",))
    found = value(interpolation_terms(student, mixed, ALL, without, apart, desed_classes))
    assert found["interpolation_maestro"] == pytest.approx(0.01, abs=1e-6)
    assert found["interpolation"] == pytest.approx((0.01 + 3 * one) / 8, abs=1e-6)


def test_pseudo_terms():
    pseudo_labels = torch.ones(7, K, N)
    found = value(pseudo_terms(outputs([0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]), pseudo_labels, ALL))
    assert found == pytest.approx({"pseudo_desed": math.log(4), "pseudo_maestro": math.log(2)}, abs=1e-5)


def test_consistency_warms_up():
    stage1 = LossConfig(self_supervised=0.58, warmup_steps=14000, largest_scale=2.0)
    steps = (0, 7000, 14000, 28000, 10**6)
    assert [self_supervised_weight(stage1, step) for step in steps] == pytest.approx([0, 0.29, 0.58, 1.16, 1.16])
    stage2 = LossConfig(form="stage2", self_supervised=70, warmup_steps=270, largest_scale=1.0)
    assert [self_supervised_weight(stage2, step) for step in (27, 270, 300)] == pytest.approx([7, 70, 70])
    baseline = LossConfig(form="baseline", self_supervised=2, warmup_steps=100)
    expected = [2 * math.exp(-5), 2 * math.exp(-1.25), 2, 2]
    assert [self_supervised_weight(baseline, step) for step in (0, 50, 100, 500)] == pytest.approx(expected)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_no_warm_up_is_the_whole_weight_from_the_start(weight):
    loss = LossConfig(self_supervised=weight, warmup_steps=0, largest_scale=1.0)
    assert self_supervised_weight(loss, 0) == weight


TERMS = {name: torch.tensor(number) for name, number in (
    ("maestro", 1.0), ("strong", 0.1), ("synth", 0.01), ("weak", 7.0), ("consistency_strong", 0.3),
    ("consistency_weak", 0.8), ("pseudo_desed", 0.2), ("pseudo_maestro", 0.6),
)}  # fmt: skip
PSEUDO = (3 + 5 + 11) * 0.2 + 2 * 0.6


def summed(terms, **settings):
    loss = LossConfig(**STRONG_WEIGHTS, weak=11.0, **settings)
    return value(total_loss(terms, loss, consistency_weight=4.0, sizes=SIZES))


def test_sum_of_stage_1():
    found = summed(TERMS, form="stage1", pseudo=1.5, scale=5.0)
    parts = {"supervised": 2 + 0.3 + 0.05 + 77, "self_supervised": 4 * (0.3 + 0.8), "pseudo": 1.5 * PSEUDO}
    assert found == pytest.approx({name: 5 * part for name, part in (parts | {"loss": sum(parts.values())}).items()})


def test_sum_of_stage_2():
    """Strong terms by 3, weak ones by 2, in the consistency too."""
    found = summed(TERMS, form="stage2", pseudo=1.5, scale=1.0)
    parts = {"supervised": 2.35 / 3 + 77 / 2, "self_supervised": 4 * (0.3 + 0.4), "pseudo": 1.5 * PSEUDO}
    assert found == pytest.approx(parts | {"loss": sum(parts.values())})


def test_sum_of_stage_2_on_a_mixed_batch():
    terms = {name: term for name, term in TERMS.items() if not name.startswith(("consistency", "pseudo"))}
    found = summed(terms | {"interpolation": torch.tensor(0.5)}, form="stage2", scale=1.0)
    assert found["self_supervised"] == pytest.approx(4 * 0.5 / 4) and found["pseudo"] == 0
    assert found["loss"] == pytest.approx(2.35 / 3 + 77 / 2 + 0.5)


def test_sum_of_the_baseline_is_one_mean_over_strong_clips():
    found = summed(TERMS, form="baseline", scale=1.0)
    assert found["supervised"] == pytest.approx((2 * 2 + 0.3 + 0.05) / 4 + 77)  # 2, 1 and 1 clips
    assert found["self_supervised"] == pytest.approx(4 * (0.3 + 0.8))
