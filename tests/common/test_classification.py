"""Scores of a clip classifier: a case solved by hand, the public mini case, and what must not happen."""

import json

import numpy as np
import pytest
import torch

from common.metrics.classification import classification_scores

GROUPS = {"real": ["a", "b", "c"], "seen": ["s1", "s2", "s3"], "unseen": ["s4", "s5", "s6"]}


def score(predicted, labels, devices, names=("bus", "park", "tram"), groups=GROUPS):
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), len(names)).float() * 5
    return classification_scores(logits, torch.tensor(labels), devices, names, groups)


def test_hand_solved():
    # bus: 1 of 2, park: 3 of 3; a: 2 of 2, s1: 1 of 2, s4: 1 of 1; nothing of tram
    scores = score([0, 1, 1, 1, 1], [0, 1, 1, 0, 1], ["a", "a", "s1", "s1", "s4"])
    assert scores["accuracy"] == pytest.approx(4 / 5)
    assert scores["macro_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["class_accuracy"] == {"bus": 0.5, "park": 1.0}
    assert scores["class_count"] == {"bus": 2, "park": 3}
    assert scores["device_accuracy"] == {"a": 1.0, "s1": 0.5, "s4": 1.0}
    assert scores["device_count"] == {"a": 2, "s1": 2, "s4": 1}
    assert scores["group_accuracy"] == {"real": 1.0, "seen": 0.5, "unseen": 1.0}
    assert scores["confusion"] == [[1, 1, 0], [0, 3, 0], [0, 0, 0]]
    assert scores["n_items"] == 5
    right, wrong = np.log(np.exp(5) + 2) - 5, np.log(np.exp(5) + 2)
    assert scores["log_loss"] == pytest.approx((4 * right + wrong) / 5)


def test_absent_class_device_and_group_are_left_out_and_macro_says_so():
    scores = score([0, 1], [0, 1], ["a", "x"])
    assert set(scores["class_accuracy"]) == {"bus", "park"} and scores["macro_over_classes"] == 2
    assert set(scores["device_accuracy"]) == {"a", "x"}
    assert set(scores["group_accuracy"]) == {"real"}
    json.dumps(scores, allow_nan=False)


def test_mini_case(shared):
    case = json.loads((shared / "parity/task1/minicases.json").read_text())["metrics"]
    names = [f"class {k}" for k in range(10)]
    scores = classification_scores(case["logits"], case["labels"], case["devices"], names, GROUPS)
    assert scores["accuracy"] == pytest.approx(case["acc"], abs=1e-9)
    assert scores["macro_accuracy"] == pytest.approx(case["macro_avg_acc"], abs=1e-9)
    assert list(scores["class_accuracy"].values()) == pytest.approx(case["class_acc"], abs=1e-9)
    assert scores["device_accuracy"] == pytest.approx(case["device_acc"], abs=1e-9)
    assert scores["group_accuracy"] == pytest.approx(case["group_acc_sample_weighted"], abs=1e-9)
    assert scores["log_loss"] == pytest.approx(case["log_loss"], abs=1e-6)


def test_order_of_clips_does_not_matter_and_half_precision_is_scored():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 3)).astype(np.float16)
    labels, devices = rng.integers(0, 3, 50), np.array(["a", "s1"])[rng.integers(0, 2, 50)]
    order = rng.permutation(50)
    names = ("bus", "park", "tram")
    first = classification_scores(logits, labels, devices, names, GROUPS)
    second = classification_scores(logits[order], labels[order], devices[order], names, GROUPS)
    assert first.pop("log_loss") == pytest.approx(second.pop("log_loss"), rel=1e-12)
    assert first == second


def test_of_equal_logits_the_lowest_index_counts():
    scores = classification_scores(torch.zeros(1, 3), [0], ["a"], ("bus", "park", "tram"), GROUPS)
    assert scores["accuracy"] == 1.0


def test_not_finite_logits_are_one_clear_error():
    logits = torch.zeros(4, 3)
    logits[2, 1], logits[3, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"2 of 4 clips are not finite \(first: row 2\)"):
        classification_scores(logits, [0, 0, 0, 0], ["a"] * 4, ("bus", "park", "tram"), GROUPS)


@pytest.mark.parametrize(
    "shape, labels, devices, message",
    [
        ((2, 4), [0, 0], ["a", "a"], "3 class names need"),
        ((2, 3), [0], ["a", "a"], "one entry per clip"),
        ((2, 3), [0, 0], ["a"], "one entry per clip"),
        ((2, 3), [0, 3], ["a", "a"], r"label 3 in row 1 is outside 0\.\.2"),
        ((0, 3), [], [], "no clips to score"),
    ],
)
def test_inputs_that_do_not_fit(shape, labels, devices, message):
    with pytest.raises(ValueError, match=message):
        classification_scores(torch.zeros(shape), labels, devices, ("bus", "park", "tram"), GROUPS)
