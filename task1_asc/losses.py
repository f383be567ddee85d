"""Losses of acoustic scene classification: pure functions of tensors, all computed in float32.

Flow: dict of model outputs + labels or teacher targets → **loss** (scalar) → optimiser.
Shapes: B clips · K classes.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, float64, stack


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of `logits` (B, K) against class indices `labels` (B,).

    Args:
        weights: one weight per class (K,); the mean is then the weighted one of `torch.nn.CrossEntropyLoss`.
    """
    return F.cross_entropy(at_least_float32(logits), labels, weight=weights)


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32; float32 and float64 as they are."""
    return x if x.dtype == float64 else x.float()


def soft_targets(teacher_logits: Tensor | Sequence[Tensor], temperature: float) -> Tensor:
    """Return the log-probabilities (B, K) that a student is to learn at `temperature`.

    Args:
        teacher_logits: logits (B, K) of one teacher, or a sequence of them, whose mean is taken BEFORE the
            softmax.

    Source: CP-JKU 2023, six teachers, temperature 2.
    """
    _check_temperature(temperature)
    if not isinstance(teacher_logits, Tensor):
        teacher_logits = stack(list(teacher_logits)).float().mean(dim=0)
    return F.log_softmax(teacher_logits.float() / temperature, dim=-1)


def distillation(student_logits: Tensor, teacher_log_probs: Tensor, temperature: float) -> Tensor:
    """Return temperature² times the Kullback-Leibler divergence of the student from the teacher.

    Args:
        student_logits: (B, K), not yet divided by the temperature.
        teacher_log_probs: (B, K) at that temperature, as `soft_targets` returns them; no gradient flows into
            them.

    The divergence is averaged over clips AND classes, hence K times smaller than the usual mean over clips.
    The published weights of the two terms (0.02 and 0.98) belong to this average.
    """
    _check_temperature(temperature)
    if student_logits.shape != teacher_log_probs.shape:
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher targets "
            f"{tuple(teacher_log_probs.shape)} differ in shape; both must be (B, K)."
        )
    student_log_probs = F.log_softmax(student_logits.float() / temperature, dim=-1)
    divergence = F.kl_div(
        student_log_probs, teacher_log_probs.detach().float(), reduction="sum", log_target=True
    )
    return divergence / student_logits.numel() * temperature**2


def knowledge_distillation(
    student_logits: Tensor,
    teacher_log_probs: Tensor,
    labels: Tensor,
    temperature: float = 2.0,
    label_weight: float = 0.02,
) -> Tensor:
    """Return label_weight · cross-entropy + (1 − label_weight) · distillation.

    Source: CP-JKU 2023, label_weight 0.02 and temperature 2.
    """
    if not 0.0 <= label_weight <= 1.0:
        raise ValueError(f"label_weight {label_weight} is outside 0 … 1.")
    label_loss = cross_entropy(student_logits, labels)
    teacher_loss = distillation(student_logits, teacher_log_probs, temperature)
    return label_weight * label_loss + (1.0 - label_weight) * teacher_loss


def parallel_mse(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return the mean of the three pairwise mean squared errors between equally shaped hidden features.

    Args:
        a, b, c: features of the same scenes recorded at the same time on three devices, any equal shape.

    Source: Primus et al. 2019, added to the cross-entropy with weight 0.1.
    """
    if not a.shape == b.shape == c.shape:
        raise ValueError(
            f"parallel features differ in shape: {tuple(a.shape)}, {tuple(b.shape)}, {tuple(c.shape)}; "
            "they must come from the same clips in the same order."
        )
    a, b, c = a.float(), b.float(), c.float()
    return (F.mse_loss(a, b) + F.mse_loss(b, c) + F.mse_loss(c, a)) / 3.0


def mixup_cross_entropy(logits: Tensor, labels: Tensor, draw: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross-entropy of mixed clips, mixed like the clips.

    Args:
        logits: (B, K) of the mixed batch.
        labels: class indices (B,) of the unmixed batch.
        draw: (lam (B,), perm (B,)) of `common.audio.augment.Mixup.draw`.
    """
    lam, perm = draw[0].to(logits.device), draw[1].to(logits.device)
    logits = at_least_float32(logits)
    own = F.cross_entropy(logits, labels, reduction="none")
    partner = F.cross_entropy(logits, labels[perm], reduction="none")
    return (lam * own + (1.0 - lam) * partner).mean()


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} must be above 0.")
