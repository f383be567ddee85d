"""Accuracy of a clip classifier: overall, per class, per device and per group of devices.

Flow: predictions file → **scores** → result JSON.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch.nn.functional import cross_entropy


def classification_scores(
    logits,
    labels,
    devices: Sequence[str],
    class_names: Sequence[str],
    device_groups: Mapping[str, Sequence[str]],
) -> dict:
    """Return every score of one prediction file, accuracies as fractions 0..1.

    Args:
        logits: (N, K) tensor or array of any float type; scored in float64.
        labels: (N,) class indices 0..K-1.
        devices: (N,) recording device of each clip.
        class_names: the K names in index order.
        device_groups: group name → its devices, for example `{"unseen": ["s4", "s5", "s6"]}`.

    Returns:
        accuracy            correct clips / clips.
        macro_accuracy      unweighted mean of the class accuracies: the challenge's ranking number.
        macro_over_classes  how many classes that mean runs over: those with a clip (K for a whole split).
        log_loss            mean over clips of the negative log-probability of the true class, nats.
        class_accuracy, class_count, device_accuracy, device_count, group_accuracy, group_count
                            by name; a group pools the clips of its devices.
        confusion           (K, K) counts, row = true class, column = predicted class.
        class_names, n_items

        A class, device or group without a clip is left out. Of equal logits the lowest class index counts.

    Raises:
        ValueError: shapes that do not fit, a label out of range, or logits that are not finite.

    Source: metrics of the DCASE 2024 and 2025 task 1 baselines, except for the log loss, which there is a
    mean of batch means and here a mean over clips.
    """
    logits = torch.as_tensor(logits).detach().to("cpu", torch.float64)
    labels = torch.as_tensor(labels).detach().to("cpu", torch.int64)
    devices = np.asarray(devices, dtype=str)
    _check_inputs(logits, labels, devices, class_names)

    predicted = logits.argmax(dim=1).numpy()
    correct = predicted == labels.numpy()
    classes = np.asarray(class_names, dtype=str)[labels.numpy()]
    groups = {name: np.isin(devices, list(members)) for name, members in device_groups.items()}
    class_accuracy = _accuracy_by_name(correct, {name: classes == name for name in class_names})
    device_names = sorted(set(devices.tolist()))
    device_accuracy = _accuracy_by_name(correct, {name: devices == name for name in device_names})
    group_accuracy = _accuracy_by_name(correct, groups)
    return {
        "accuracy": float(correct.mean()),
        "macro_accuracy": float(np.mean(list(class_accuracy.values()))),
        "macro_over_classes": len(class_accuracy),
        "log_loss": float(cross_entropy(logits, labels)),
        "class_accuracy": class_accuracy,
        "class_count": {name: int((classes == name).sum()) for name in class_accuracy},
        "device_accuracy": device_accuracy,
        "device_count": {name: int((devices == name).sum()) for name in device_accuracy},
        "group_accuracy": group_accuracy,
        "group_count": {name: int(groups[name].sum()) for name in group_accuracy},
        "confusion": confusion_matrix(labels.numpy(), predicted, labels=range(len(class_names))).tolist(),
        "class_names": list(class_names),
        "n_items": len(correct),
    }


def _accuracy_by_name(correct: np.ndarray, members: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the accuracy over each subset that has at least one clip; `members` holds masks (N,)."""
    return {name: float(correct[mask].mean()) for name, mask in members.items() if mask.any()}


def _check_inputs(
    logits: torch.Tensor, labels: torch.Tensor, devices: np.ndarray, class_names: Sequence[str]
):
    n_classes = len(class_names)
    if logits.ndim != 2 or logits.shape[1] != n_classes:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}, but {n_classes} class names need (clips, {n_classes})"
        )
    if len(set(class_names)) != n_classes:
        raise ValueError("class_names holds a name twice: every class index needs a name of its own")
    if labels.shape != (len(logits),) or devices.shape != (len(logits),):
        raise ValueError(
            f"{len(logits)} rows of logits, but labels of shape {tuple(labels.shape)} and devices of shape "
            f"{devices.shape}: each needs one entry per clip"
        )
    if len(logits) == 0:
        raise ValueError("no clips to score: the predictions are empty")
    outside = torch.nonzero((labels < 0) | (labels >= n_classes)).flatten()
    if len(outside):
        row = int(outside[0])
        raise ValueError(f"label {int(labels[row])} in row {row} is outside 0..{n_classes - 1}")
    broken = torch.nonzero(~torch.isfinite(logits).all(dim=1)).flatten()
    if len(broken):
        raise ValueError(
            f"logits of {len(broken)} of {len(logits)} clips are not finite (first: row {int(broken[0])}): "
            "the network diverged or overflowed half precision; evaluate in float32 or train again"
        )
