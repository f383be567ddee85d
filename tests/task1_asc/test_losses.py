"""Losses of task 1: hand-solved cases and properties. Published numbers: tests/parity."""

import math

import pytest
import torch
import torch.nn.functional as F

from common.audio.augment import Mixup
from task1_asc.losses import (
    cross_entropy,
    distillation,
    knowledge_distillation,
    mixup_cross_entropy,
    parallel_mse,
    soft_targets,
)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 3, 1, 2])


def test_cross_entropy_of_equal_logits():
    assert cross_entropy(torch.zeros(4, 10), LABELS) == pytest.approx(math.log(10))


def test_cross_entropy_weighs_classes():
    logits = noise(4, 5)
    weights = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])  # only the first clip, of class 0, is left
    torch.testing.assert_close(cross_entropy(logits, LABELS, weights), cross_entropy(logits[:1], LABELS[:1]))


def test_half_logits_are_scored_in_float32():
    logits = 20 * noise(4, 10)
    found = cross_entropy(logits.half(), LABELS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, cross_entropy(logits.half().float(), LABELS))


def test_distillation_by_hand():
    """Teacher (1/2, 1/2), student (3/4, 1/4): KL = ln(2 / √3), over two classes, times temperature²."""
    teacher = torch.log(torch.tensor([[0.5, 0.5]]))
    student = 2 * torch.log(torch.tensor([[0.75, 0.25]]))  # the temperature halves it
    assert distillation(student, teacher, 2.0) == pytest.approx(4 * math.log(2 / math.sqrt(3)) / 2)


def test_a_student_like_its_teacher_loses_nothing():
    logits = noise(4, 10)
    assert abs(distillation(logits, soft_targets(logits, 2.0), 2.0)) < 1e-6


def test_distillation_sends_no_gradient_to_the_teacher():
    teacher, student = noise(2, 3, seed=1).requires_grad_(), noise(2, 3).requires_grad_()
    distillation(student, soft_targets(teacher, 2.0), 2.0).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_soft_targets_average_logits_not_probabilities():
    a, b = noise(2, 3), 5 * noise(2, 3, seed=1)
    torch.testing.assert_close(soft_targets([a, b], 2.0), F.log_softmax((a + b) / 4, dim=-1))
    torch.testing.assert_close(soft_targets(a, 1.0).exp().sum(-1), torch.ones(2))


def test_knowledge_distillation_is_the_weighted_sum():
    student, targets = noise(4, 10), soft_targets(noise(4, 10, seed=1), 2.0)
    expected = 0.02 * cross_entropy(student, LABELS) + 0.98 * distillation(student, targets, 2.0)
    torch.testing.assert_close(knowledge_distillation(student, targets, LABELS), expected)
    assert knowledge_distillation(student, targets, LABELS, 2.0, 1.0) == cross_entropy(student, LABELS)


def test_parallel_mse_by_hand():
    a, b, c = torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 3.0)
    assert parallel_mse(a, b, c) == pytest.approx((1 + 4 + 9) / 3)
    assert parallel_mse(a, b, c) == parallel_mse(c, a, b)


def test_mixup_cross_entropy_equals_soft_labels():
    """For a linear loss in the target, mixing losses and mixing one-hot labels are the same."""
    logits = noise(4, 5)
    draw = (torch.tensor([0.5, 0.7, 0.9, 1.0]), torch.tensor([2, 0, 3, 1]))
    targets = Mixup(0.3).apply(F.one_hot(LABELS, 5).float(), draw)
    torch.testing.assert_close(mixup_cross_entropy(logits, LABELS, draw), F.cross_entropy(logits, targets))


def test_mixup_cross_entropy_without_a_partner_is_cross_entropy():
    logits = noise(4, 5)
    found = mixup_cross_entropy(logits, LABELS, (torch.ones(4), torch.tensor([1, 2, 3, 0])))
    torch.testing.assert_close(found, cross_entropy(logits, LABELS))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: distillation(torch.zeros(2, 3), torch.zeros(2, 4), 2.0), "differ in shape"),
        (lambda: distillation(torch.zeros(2, 3), torch.zeros(2, 3), 0.0), "temperature"),
        (lambda: soft_targets(torch.zeros(2, 3), -1.0), "temperature"),
        (lambda: parallel_mse(torch.zeros(2), torch.zeros(2), torch.zeros(3)), "differ in shape"),
        (
            lambda: knowledge_distillation(torch.zeros(1, 3), torch.zeros(1, 3), LABELS[:1], 2.0, 1.5),
            "label_weight",
        ),
    ],
)
def test_mistakes_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
