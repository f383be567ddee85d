"""Learning-rate factors as plain functions of the step or epoch.

Flow: step or epoch number → **factor** → `torch.optim.lr_scheduler.LambdaLR` → optimiser.
"""

import math


def warmup_cosine(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor of a linear warm-up from 0 followed by half a cosine down to 0.

    Step 0 has factor 0, step `warmup_steps` has factor 1, step `total_steps` and all later ones have factor
    0.

    Raises:
        ValueError: for a negative step or warm-up, or a total that leaves no step after the warm-up.

    Example:
        >>> warmup_cosine(1000, warmup_steps=2000, total_steps=20550)
        0.5

    Source: DCASE 2025 task 1 baseline, counted per optimiser step.
    """
    _check_not_negative(step=step, warmup_steps=warmup_steps)
    if total_steps <= warmup_steps:
        raise ValueError(
            f"total_steps {total_steps} must exceed warmup_steps {warmup_steps}: "
            "train longer or warm up for fewer steps."
        )
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def exp_warmup_linear_down(
    epoch: float, warmup_epochs: float, rampdown_epochs: float, start_rampdown: float, last_value: float
) -> float:
    """Return the factor of an exponential warm-up, a plateau at 1 and a linear descent to `last_value`.

    Args:
        epoch: epoch number, the first is 0.
        warmup_epochs: length of the warm-up exp(-5 (1 - max(epoch, 0.5) / warmup_epochs)²).
        rampdown_epochs: length of the descent.
        start_rampdown: last epoch of the plateau.
        last_value: factor after the descent, 0 … 1.

    Raises:
        ValueError: for negative lengths or a `last_value` outside 0 … 1.

    Source: CP-JKU systems of 2022 and 2023 (CP-Mobile, CP-ResNet, PaSST), counted per epoch.
    """
    _check_not_negative(
        epoch=epoch,
        warmup_epochs=warmup_epochs,
        rampdown_epochs=rampdown_epochs,
        start_rampdown=start_rampdown,
    )
    if not 0.0 <= last_value <= 1.0:
        raise ValueError(f"last_value {last_value} is outside 0 … 1.")
    warmup = 1.0
    if epoch < warmup_epochs:
        warmup = math.exp(-5.0 * (1.0 - max(epoch, 0.5) / max(warmup_epochs, 0.5)) ** 2)
    epochs_down = epoch - start_rampdown
    if epochs_down <= 0:
        descent = 1.0
    elif epochs_down < rampdown_epochs:
        descent = last_value + (1.0 - last_value) * (1.0 - epochs_down / rampdown_epochs)
    else:
        descent = last_value
    return warmup * descent


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} {value} is negative; it counts from 0.")
