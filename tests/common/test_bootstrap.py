"""Intervals from resampled groups: cases solved by hand, agreement with a plain loop, and coverage."""

import json

import numpy as np
import pytest

from common.metrics.bootstrap import (
    GroupBootstrap,
    accuracy_intervals,
    comparison_for_record,
    intervals_for_record,
    paired_differences,
)

DEVICE_GROUPS = {"real": ["a", "b"], "unseen": ["s4", "s5"]}


def simulate(rng, n_groups=60, clips_per_group=10, concentration=2.0):
    """Return groups and correct for clips whose chance of being right is drawn per group, mean 0.5."""
    chance = rng.beta(concentration, concentration, n_groups)
    groups = np.repeat(np.arange(n_groups), clips_per_group)
    return groups, rng.random(len(groups)) < chance[groups]


def test_two_groups_solved_by_hand():
    # weights (2, 0), (1, 1), (0, 2) with probability 1/4, 1/2, 1/4, hence accuracies 1, 1/2, 0
    accuracy = GroupBootstrap(["x", "x", "y", "y"], n_resamples=4000).accuracy([1, 1, 0, 0])
    values, counts = np.unique(accuracy.values, return_counts=True)
    np.testing.assert_array_equal(values, [0, 0.5, 1])
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)
    interval = accuracy.interval()
    assert (interval.estimate, interval.low, interval.high) == (0.5, 0.0, 1.0)
    assert (interval.level, interval.n_groups, interval.n_resamples) == (0.95, 2, 4000)
    assert (accuracy.interval(level=0.4).low, accuracy.interval(level=0.4).high) == (0.5, 0.5)


def test_equals_a_plain_loop_over_clips():
    rng = np.random.default_rng(1)
    groups, correct = simulate(rng, n_groups=8, clips_per_group=5)
    labels = rng.integers(0, 3, len(groups))
    bootstrap = GroupBootstrap(groups, n_resamples=50, seed=3)
    macro = bootstrap.macro_accuracy(correct, labels)
    accuracy = bootstrap.accuracy(correct, labels > 0)
    for row, weights in enumerate(np.concatenate(bootstrap._weights)):
        assert weights.sum() == 8
        clips = np.concatenate([np.flatnonzero(groups == g) for g in range(8) for _ in range(weights[g])])
        per_class = [correct[clips][labels[clips] == k].mean() for k in np.unique(labels[clips])]
        assert macro.values[row] == pytest.approx(np.mean(per_class))
        assert accuracy.values[row] == pytest.approx(correct[clips][labels[clips] > 0].mean())


def test_chunks_do_not_change_the_draw(monkeypatch):
    groups, correct = simulate(np.random.default_rng(0))
    whole = GroupBootstrap(groups, n_resamples=100).accuracy(correct)
    monkeypatch.setattr("common.metrics.bootstrap.CHUNK_SIZE", 60 * 7)
    parts = GroupBootstrap(groups, n_resamples=100).accuracy(correct)
    np.testing.assert_array_equal(whole.values, parts.values)


def test_same_seed_same_interval_and_order_of_clips_does_not_matter():
    rng = np.random.default_rng(0)
    groups, correct = simulate(rng)
    order = rng.permutation(len(groups))
    first = GroupBootstrap(groups, 500, seed=7).accuracy(correct).interval()
    assert first == GroupBootstrap(groups, 500, seed=7).accuracy(correct).interval()
    assert first == GroupBootstrap(groups[order], 500, seed=7).accuracy(correct[order]).interval()
    assert first != GroupBootstrap(groups, 500, seed=8).accuracy(correct).interval()


def test_intervals_cover_as_often_as_they_claim_and_clip_level_ones_do_not():
    rng = np.random.default_rng(2)
    by_group, by_clip, repetitions = 0, 0, 300
    for seed in range(repetitions):
        groups, correct = simulate(rng)
        interval = GroupBootstrap(groups, 400, seed=seed).accuracy(correct).interval()
        by_group += interval.low <= 0.5 <= interval.high
        if seed < 60:
            interval = GroupBootstrap(np.arange(len(groups)), 400, seed=seed).accuracy(correct).interval()
            by_clip += interval.low <= 0.5 <= interval.high
    assert 0.91 <= by_group / repetitions <= 0.98
    assert by_clip / 60 < 0.85


def test_resampling_duplicated_clips_would_be_too_narrow():
    correct = np.repeat(np.random.default_rng(3).random(100) < 0.6, 10)  # ten equal snippets per recording
    recordings = np.repeat(np.arange(100), 10)
    right = GroupBootstrap(recordings, 2000).accuracy(correct).interval()
    wrong = GroupBootstrap(np.arange(1000), 2000).accuracy(correct).interval()
    assert right.estimate == wrong.estimate
    assert (right.high - right.low) / (wrong.high - wrong.low) == pytest.approx(np.sqrt(10), rel=0.1)


def test_paired_difference_uses_the_same_resamples():
    rng = np.random.default_rng(4)
    groups, correct = simulate(rng, n_groups=100)
    better = correct.copy()
    better[np.flatnonzero(~correct)[::20]] = True
    bootstrap = GroupBootstrap(groups, 2000)
    paired = (bootstrap.accuracy(better) - bootstrap.accuracy(correct)).interval()
    assert paired.estimate == pytest.approx(better.mean() - correct.mean())
    assert paired.low > 0
    single = bootstrap.accuracy(correct).interval()
    assert paired.high - paired.low < 0.5 * (single.high - single.low)
    same = (bootstrap.accuracy(correct) - bootstrap.accuracy(correct)).interval()
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="one GroupBootstrap for both"):
        bootstrap.accuracy(correct) - GroupBootstrap(groups, 2000).accuracy(correct)


def test_several_seeds_average_the_statistic_of_each_seed_in_each_resample():
    rng = np.random.default_rng(5)
    groups, first = simulate(rng, n_groups=20)
    second, labels = rng.random(len(groups)) < 0.4, rng.integers(0, 4, len(groups))
    bootstrap = GroupBootstrap(groups, 200)
    both = bootstrap.macro_accuracy(np.stack([first, second]), labels)
    apart = [bootstrap.macro_accuracy(correct, labels).values for correct in (first, second)]
    np.testing.assert_allclose(both.values, np.mean(apart, axis=0), rtol=1e-12)


def devices_case():
    rng = np.random.default_rng(6)
    groups, correct = simulate(rng, n_groups=30, clips_per_group=20)
    devices = np.array(["a", "b", "s4", "s5"])[rng.integers(0, 4, len(groups))]
    correct = correct & ~((devices == "s5") & (rng.random(len(groups)) < 0.5))
    return correct, rng.integers(0, 3, len(groups)), devices, groups


def test_all_accuracies_of_one_system():
    correct, labels, devices, groups = devices_case()
    intervals = accuracy_intervals(correct, labels, devices, DEVICE_GROUPS, groups, n_resamples=500)
    assert set(intervals) == {
        "accuracy", "macro_accuracy", "device_accuracy/a", "device_accuracy/b", "device_accuracy/s4",
        "device_accuracy/s5", "group_accuracy/real", "group_accuracy/unseen", "gap/a-unseen",
    }  # fmt: skip
    for interval in intervals.values():
        assert interval.low <= interval.estimate <= interval.high
    unseen = np.isin(devices, ["s4", "s5"])
    gap = intervals["gap/a-unseen"]
    assert gap.estimate == pytest.approx(correct[devices == "a"].mean() - correct[unseen].mean())
    entry = intervals_for_record(intervals, "identifier")
    assert entry["resampled"] == "identifier" and entry["n_groups"] == 30 and entry["level"] == 0.95
    assert entry["device_accuracy"]["a"] == [
        intervals["device_accuracy/a"].low,
        intervals["device_accuracy/a"].high,
    ]
    json.dumps(entry, allow_nan=False)


def test_paired_differences_of_two_systems():
    correct, labels, devices, groups = devices_case()
    settings = {"n_resamples": 500, "seed": 1}
    worse = correct & ~((devices == "a") & (np.arange(len(groups)) % 3 == 0))
    case = (labels, devices, DEVICE_GROUPS, groups)
    differences = paired_differences(correct, np.stack([worse, worse]), *case, **settings)
    assert differences["device_accuracy/a"].low > 0
    assert differences["device_accuracy/s5"].low == differences["device_accuracy/s5"].high == 0
    entry = comparison_for_record(differences, "dcase2025/general")
    assert entry["against"] == "dcase2025/general"
    assert entry["device_accuracy"]["a"]["difference"] == differences["device_accuracy/a"].estimate
    assert set(entry["groups"]) == {"real", "unseen"} and len(entry["macro_accuracy"]["interval"]) == 2
    json.dumps(entry, allow_nan=False)


def test_what_lies_in_one_group_has_no_interval_and_rare_devices_never_give_nan():
    groups = ["x", "x", "y", "y", "z", "z"]
    devices = ["a", "b", "a", "c", "a", "c"]  # b only in x; some resamples hold no c
    intervals = accuracy_intervals([1, 0, 1, 0, 1, 1], [0, 0, 1, 1, 2, 2], devices, {"odd": ["b"]}, groups)
    assert "device_accuracy/b" not in intervals and "group_accuracy/odd" not in intervals
    assert "gap/a-unseen" not in intervals
    rare = intervals["device_accuracy/c"]
    assert rare.n_groups == 2 and rare.n_resamples < intervals["accuracy"].n_resamples
    assert all(np.isfinite([interval.low, interval.high]).all() for interval in intervals.values())


@pytest.mark.parametrize(
    "groups, correct, settings, message",
    [
        (["x", "x"], [1, 0], {}, "at least two"),
        (["x", "y"], [1, 0, 1], {}, "2 clips have a group, but 3 a score"),
        (["x", "y"], [1, 0], {"level": 95}, "between 0 and 1"),
    ],
)
def test_inputs_that_do_not_fit(groups, correct, settings, message):
    with pytest.raises(ValueError, match=message):
        GroupBootstrap(groups, **settings).accuracy(correct)
