"""SED metrics: hand-solved cases, the set that is scored, agreement with sed_scores_eval and psds_eval, intervals."""

import numpy as np
import pandas as pd
import pytest
from sed_scores_eval import segment_based

from common.data.manifest import DataError
from common.metrics.scoring_set import ScoringSet, scoring_set
from common.metrics.sed import (
    PSDS1,
    PSDS1_MACRO,
    PSDS2,
    PsdsSettings,
    collar_counts,
    collar_f1,
    detections_at,
    intersection_counts,
    intersection_f1,
    partial_auroc,
    psds,
    psds_by_psds_eval,
    psds_second_opinion,
    segment_auroc,
    segment_f1,
)
from common.metrics.sed_intervals import (
    ClipBootstrap,
    resampled_auroc,
    resampled_f1,
    resampled_psds,
    resampled_segment_f1,
)
from common.metrics.sed_scores import (
    FrameScores,
    GroundTruth,
    ground_truth,
    read_durations,
    read_ground_truth,
    read_score_folder,
)

# One clip of 72 s: one false positive is 50 an hour. Frames of class a: 0-10 found first, then a false alarm on 40-72,
# then 20-30. Class b is found at once; its second event lies where a's false alarm is.
HAND_BORDERS = [0, 10, 20, 30, 40, 72]
HAND_SCORES = np.array([[0.9, 1], [0, 0], [0.5, 0], [0, 0], [0.7, 1]])
HAND_EVENTS = [(0, 10, "a"), (20, 30, "a"), (0, 10, "b"), (40, 72, "b")]


def hand_solved():
    scores = FrameScores(["clip"], ["a", "b"], HAND_BORDERS, HAND_SCORES[None])
    return scoring_set(scores, GroundTruth({"clip": HAND_EVENTS}), {"clip": 72})


def random_set(n_clips=6, n_frames=12, levels=5, seed=0, classes=("x", "y", "z")) -> ScoringSet:
    """Clips of 0.5 s frames with scores on a few levels, and random events."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (n_clips, n_frames, len(classes))) / levels
    clips, rows = [f"c{n}" for n in range(n_clips)], []
    for clip in clips:
        for name in classes:
            times = np.sort(rng.uniform(0, n_frames / 2, 4)).round(2)
            rows += [(clip, on, off, name) for on, off in times.reshape(2, 2).tolist()[: rng.integers(1, 3)]]
    truth = ground_truth(pd.DataFrame(rows, columns=["filename", "onset", "offset", "event_label"]))
    scores = FrameScores(clips, classes, np.arange(n_frames + 1) / 2, values)
    return scoring_set(scores, GroundTruth(truth.events), dict.fromkeys(clips, n_frames / 2))


# ---------------------------------------------------------------- hand-solved


def test_psds1_solved_by_hand():
    found = psds(hand_solved())
    # a: half its events at 0, all at 50 false positives an hour. b: all from 0 on.
    assert found.per_class == pytest.approx({"a": (0.5 * 50 + 1 * 50) / 100, "b": 1})
    # mean - deviation over classes: 0.75 - 0.25 up to 50, then 1 - 0
    assert found.value == pytest.approx((0.5 * 50 + 1 * 50) / 100)
    assert psds(hand_solved(), PSDS1_MACRO).value == pytest.approx((0.75 + 1) / 2)
    np.testing.assert_allclose(found.details["efpr"], [0, 50, 100])
    np.testing.assert_allclose(found.details["etpr"], [0.5, 1, 1])


def test_cross_triggers_solved_by_hand():
    # a's false alarm lies on b: one cross trigger per 42 s of b, 85.7 an hour; 50 + 85.7 / 2 = 92.9 effective ones.
    efpr = 50 + 0.5 * 3600 / 42
    settings = PsdsSettings(dtc=0.5, gtc=0.5, cttc=0.3, alpha_ct=0.5)
    assert psds(hand_solved(), settings).per_class == pytest.approx({"a": (0.5 * efpr + (100 - efpr)) / 100, "b": 1})
    assert psds(hand_solved(), PsdsSettings(dtc=0.5, gtc=0.5)).per_class["a"] == pytest.approx(0.75)
    # For PSDS2 one detection over the whole clip is good enough: 20 of its 72 s are events, all of them covered.
    assert psds(hand_solved(), PSDS2).per_class == pytest.approx({"a": 1, "b": 1})


def test_one_class_alone_has_no_cross_triggers():
    scores = FrameScores(["clip"], ["a"], HAND_BORDERS, HAND_SCORES[None, :, :1])
    data = scoring_set(scores, GroundTruth({"clip": HAND_EVENTS}), {"clip": 72}, classes=["a"])
    settings = PsdsSettings(dtc=0.5, gtc=0.5, cttc=0.3, alpha_ct=0.5)
    assert psds(data, settings).value == pytest.approx(0.75)
    counts = intersection_counts(data, settings.dtc, settings.gtc, settings.cttc)
    assert psds(data, settings, counts).value == pytest.approx(0.75)


def test_a_class_that_no_threshold_changes_scores_zero():
    # The only detection passes the detection criterion and covers too little of the event: never a hit, never false.
    scores = FrameScores(["clip"], ["a"], [0, 2], np.ones((1, 1, 1)))
    data = scoring_set(scores, GroundTruth({"clip": [(0, 3, "a")]}), {"clip": 3})
    assert psds(data).value == 0 and intersection_f1(data, dtc=0.7, gtc=0.7).value == 0


def test_f1_scores_solved_by_hand():
    data = hand_solved()
    for function in (intersection_f1, collar_f1):
        found = function(data, threshold=0.6)  # a: one hit, one false alarm, one miss; b: two hits
        assert found.per_class == pytest.approx({"a": 0.5, "b": 1}) and found.value == pytest.approx(0.75)
        assert found.details["micro_average"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
        assert function(data, threshold=0.3).per_class["a"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    found = segment_f1(data, threshold=0.6)  # 10 s found, 32 s false, 10 s missed
    assert found.per_class == pytest.approx({"a": 20 / (20 + 32 + 10), "b": 1})
    best = segment_f1(data, threshold=None)
    assert best.per_class["a"] == pytest.approx(2 * 10 / (2 * 10 + 10)) and 0.7 < best.details["thresholds"]["a"] < 0.9


def test_collars_are_absolute_at_onset_and_relative_at_offset():
    events = GroundTruth({"clip": [(1, 11, "a")]})
    for borders, hit in (([0, 1.2, 13, 20], 1), ([0, 1.21, 11, 20], 0), ([0, 1, 13.01, 20], 0)):
        scores = FrameScores(["clip"], ["a"], borders, np.array([0, 1, 0]).reshape(1, 3, 1))
        assert collar_f1(scoring_set(scores, events, {"clip": 20})).value == hit


def test_partial_auroc_solved_by_hand():
    # 2 active, 20 inactive: a false positive is 0.05. active, inactive, active, inactive, …
    scores, active = np.linspace(1, 0, 22), np.arange(22) % 2 == 0
    active[4:] = False
    assert partial_auroc(scores, active, 0.1) == pytest.approx((0.5 * 0.05 + 1 * 0.05) / 0.1)
    assert partial_auroc(scores, active) == pytest.approx(0.5 * 0.05 + 0.95)
    # The first two tied: they come together, so that nothing is found without a false positive.
    tied = np.append(scores[1], scores[1:])
    assert partial_auroc(tied, active, 0.1) == pytest.approx((0 * 0.05 + 1 * 0.05) / 0.1)
    assert np.isnan(partial_auroc(scores, np.ones(22, bool))) and np.isnan(partial_auroc(scores, np.zeros(22, bool)))


def test_chance_is_half_of_the_largest_rate():
    rng = np.random.default_rng(0)
    assert partial_auroc(rng.random(200_000), rng.random(200_000) < 0.3, 0.1) == pytest.approx(0.05, abs=0.002)


def test_weights_are_repetitions():
    rng = np.random.default_rng(1)
    scores, active, times = rng.integers(0, 9, 60) / 9, rng.random(60) < 0.4, rng.integers(0, 4, 60)
    repeated = partial_auroc(np.repeat(scores, times), np.repeat(active, times), 0.3)
    assert partial_auroc(scores, active, 0.3, times) == pytest.approx(repeated, abs=1e-15)


# ---------------------------------------------------------------- other implementations


@pytest.mark.parametrize("max_fpr", [None, 0.1, 0.37])
def test_segment_auroc_is_that_of_sed_scores_eval(max_fpr):
    for seed in range(3):
        data = random_set(levels=20, seed=seed)
        expected = segment_based.auroc(data.tables, data.events, data.durations_s, segment_length=1.0, max_fpr=max_fpr)
        found = segment_auroc(data, max_fpr)
        assert found.value == pytest.approx(expected[0]["mean"], abs=1e-15)
        assert found.per_class == pytest.approx({name: expected[0][name] for name in data.classes}, abs=1e-15)


ALL_LEVELS = (-0.1, 0.1, 0.3, 0.5, 0.7)  # between all scores of random_set: every operating point


@pytest.mark.parametrize("settings", [PSDS1, PSDS1_MACRO, PSDS2, PsdsSettings(0.5, 0.5, max_efpr=2000)])
def test_psds_eval_agrees_where_it_sees_every_operating_point(settings):
    largest = 0.0
    for seed in range(2):
        data = random_set(seed=seed, n_clips=5)
        settings = PsdsSettings(**{**vars(settings), "max_efpr": max(settings.max_efpr, 2000)})
        exact, other = psds(data, settings), psds_second_opinion(data, settings, ALL_LEVELS)
        assert other.value == pytest.approx(exact.value, abs=1e-9)
        assert other.per_class == pytest.approx(exact.per_class, abs=1e-9)
        largest = max(largest, exact.value)
    assert largest > 0.01


def test_psds_eval_with_fewer_thresholds_lies_below():
    data, settings = random_set(seed=2, n_clips=8), PsdsSettings(0.5, 0.5, alpha_st=0, max_efpr=2000)
    exact, fewer = psds(data, settings).value, psds_second_opinion(data, settings, (0.3,)).value
    assert 0 < fewer < exact


def test_detections_are_runs_above_the_threshold():
    table = detections_at(hand_solved(), 0.5)
    assert list(table.filename) == ["clip"] * 4
    assert table.values[:, 1:].tolist() == [[0, 10, "a"], [0, 10, "b"], [40, 72, "a"], [40, 72, "b"]]


def test_psds_eval_on_published_detections(shared):
    folder = shared / "data/sed_scores/psds_eval"
    truth = read_ground_truth(folder / "examples__data__dcase2019t4_gt.csv")
    durations_s = read_durations(folder / "examples__data__dcase2019t4_meta.csv")
    points = [pd.read_csv(path, sep="\t") for path in sorted(folder.glob("examples__data__baseline_*.csv"))]
    points = [table.assign(filename=table.filename.astype(str).str.removesuffix(".wav")) for table in points]
    found = psds_by_psds_eval(points, truth.events, durations_s, PsdsSettings(0.5, 0.5, 0.3, alpha_st=0))
    assert len(points) == 10 and found.value == pytest.approx(0.40914, abs=5e-6)
    assert np.mean(list(found.per_class.values())) == pytest.approx(found.value, abs=1e-9)


@pytest.fixture(scope="module")
def real(shared):
    """Scores of 20 clips of the challenge's public evaluation set, as its 2023 baseline gives them."""
    folder = shared / "data/sed_scores/dcase2023_task4a"
    truth = read_ground_truth(folder / "metadata/ground_truth.tsv")
    durations_s = read_durations(folder / "metadata/audio_durations.tsv")
    return scoring_set(read_score_folder(folder / "baseline2_run1_scores"), truth, durations_s)


def test_real_scores_and_both_implementations(real):
    assert psds(real).value == pytest.approx(0.2697432829693092, abs=1e-12)
    exact = psds(real, PSDS1_MACRO).value
    other = psds_second_opinion(real, PSDS1_MACRO, np.linspace(0.05, 0.95, 10)).value
    assert exact - 0.06 < other <= exact + 1e-9  # ten thresholds miss points of the curve, and never find better ones
    assert real.status == "partial data" and real.counts["clips_missing"] == 672
    assert real.notes[0].startswith("672 of 692 clips have no scores")


# ---------------------------------------------------------------- what is scored


def tables(**clips):
    """Return clip → table of two frames of 1 s with the given classes, all scores 0.5."""
    return {
        clip: pd.DataFrame([[0.0, 1.0, *[0.5] * len(classes)], [1.0, 2.0, *[0.5] * len(classes)]],
                           columns=["onset", "offset", *classes])
        for clip, classes in clips.items()
    }  # fmt: skip


EVENTS = {"a": [(0, 1, "dog"), (0, 2, "cat")], "b": [(1, 2, "cat")], "empty": []}


def test_clips_without_events_are_dropped_or_kept():
    scores, durations_s = tables(a=["dog", "cat"], b=["cat", "dog"], empty=["dog", "cat"]), {"a": 2, "b": 2, "empty": 2}
    data = scoring_set(scores, GroundTruth(EVENTS), durations_s)
    assert data.clips == ["a", "b"] and data.status == "complete" and data.counts["clips_without_events"] == 1
    assert list(data.tables["b"].columns) == ["onset", "offset", *data.classes]
    kept = scoring_set(scores, GroundTruth(EVENTS), durations_s, drop_clips_without_events=False)
    assert kept.clips == ["a", "b", "empty"] and kept.events["empty"] == []
    silent = scoring_set(scores, GroundTruth({"a": EVENTS["a"]}), durations_s, drop_clips_without_events=False)
    assert silent.clips == ["a", "b", "empty"]  # listed in the durations alone


def test_missing_clips_and_classes_are_named_and_never_complete():
    truth = GroundTruth({**EVENTS, "c": [(0, 1, "dog")]})
    scores, durations_s = tables(b=["dog", "cat", "bird"], other=["dog", "cat"]), {"a": 2, "b": 2, "c": 2, "empty": 2}
    data = scoring_set(scores, truth, durations_s)
    assert data.clips == ["b"] and data.classes == ("cat",) and data.status == "partial data"
    assert data.notes == (
        "2 of 3 clips have no scores, and are left out: a, c.",
        "1 scored clips are not in the ground truth, and left out: other.",
        "1 classes have no event in the scored clips, and are left out: dog.",
    )
    assert psds(data).per_class.keys() == {"cat"}


def test_only_some_classes():
    data = scoring_set(tables(a=["dog", "cat"], b=["cat"]), GroundTruth(EVENTS), {"a": 2, "b": 2}, classes=["cat"])
    assert data.classes == ("cat",) and data.events["a"] == [(0, 2, "cat")] and data.status == "complete"
    assert data.notes == ("1 events of classes that are not scored are left out: dog.",)


def test_late_events_and_short_scores_are_scored_as_they_are():
    truth = GroundTruth({"a": [(0, 2.1, "dog")], "b": [(0, 1, "dog")]})
    data = scoring_set(tables(a=["dog"], b=["dog"]), truth, {"a": 2, "b": 10})
    assert data.counts["late_events"] == 1 and "1 events end after their clip (by up to 0.1 s)" in data.notes[0]
    assert data.notes[1] == "more than 0.5 s of 1 clips are without scores: b."
    assert data.counts["clips_short"] == 1 and data.status == "partial data"
    assert data.events["a"] == [(0, 2.1, "dog")]
    # Its whole length counts: two of 2.1 s are more than the 70 % that PSDS1 asks for, two of 3 s are not.
    found = [
        psds(scoring_set(tables(a=["dog"]), GroundTruth({"a": [(0, end, "dog")]}), {"a": 2})).value for end in (2.1, 3)
    ]
    assert found == [1, 0]
    late = scoring_set(tables(a=["dog"]), GroundTruth({"a": [(0, 9, "dog")]}), {"a": 2})
    assert segment_f1(late, 0.4).value == 1  # segments end with the clip


@pytest.mark.parametrize(
    "scores, events, durations_s, classes, message",
    [
        ({}, EVENTS, {"a": 2}, None, "there are no scores"),
        (tables(a=["dog"]), {}, {"a": 2}, None, "there are no clips in the ground truth"),
        (tables(a=["dogs", "cat"]), EVENTS, {"a": 2}, None, "for the class 'dog'; the nearest is 'dogs'"),
        (tables(a=["dog"]), {"a": [], "b": []}, {"a": 2}, ["dog"], "none of the 2 clips has an event"),
        (tables(x=["dog", "cat"]), EVENTS, {"a": 2}, None, r"none of the 1 scored clips \(first: x\)"),
        (tables(a=["dog", "cat"]), EVENTS, {"b": 2}, None, "1 clips have no duration: a; add them"),
        (tables(a=["dog", "cat"]), EVENTS, {"a": 2}, ["dog", "cat", "dog"], "the class 'dog' stands twice"),
    ],
)
def test_what_cannot_be_scored(scores, events, durations_s, classes, message):
    with pytest.raises(DataError, match=message):
        scoring_set(scores, GroundTruth(events), durations_s, classes)


# ---------------------------------------------------------------- intervals


def repeated(data: ScoringSet, weights) -> ScoringSet:
    """Return the set in which every clip stands as often as drawn, under names of its own."""
    names = [(clip, f"{clip}-{n}") for clip, times in zip(data.clips, weights) for n in range(int(times))]
    parts = ({new: of[clip] for clip, new in names} for of in (data.tables, data.events, data.durations_s))
    return ScoringSet(*parts, data.classes)


def test_resamples_are_scores_of_the_drawn_clips():
    data = random_set(levels=30, n_clips=7, seed=3)
    bootstrap = ClipBootstrap(data.clips, n_resamples=12, seed=1)
    wide = {"max_efpr": 1500.0}
    for settings in (PsdsSettings(0.5, 0.5, **wide), PsdsSettings(0.3, 0.3, 0.3, alpha_ct=0.5, **wide)):
        compare_resamples(data, bootstrap, resampled_psds(data, bootstrap, settings), lambda d, s=settings: psds(d, s))
    counts = intersection_counts(data, 0.5, 0.5)
    compare_resamples(data, bootstrap, resampled_f1(data, bootstrap, counts, 0.6), lambda d: intersection_f1(d, 0.6))
    collars = resampled_f1(data, bootstrap, collar_counts(data, 1, 1), 0.8)
    compare_resamples(data, bootstrap, collars, lambda d: collar_f1(d, 0.8, collar_counts(d, 1, 1)))
    compare_resamples(data, bootstrap, resampled_segment_f1(data, bootstrap, 0.9), lambda d: segment_f1(d, 0.9))
    compare_resamples(data, bootstrap, resampled_auroc(data, bootstrap, 0.2), lambda d: segment_auroc(d, 0.2))


def compare_resamples(data, bootstrap, parts, score):
    value, per_class = parts
    assert value.estimate == pytest.approx(score(data).value, abs=1e-12) and value.values.std() > 0
    for row, weights in enumerate(bootstrap.weights()):
        expected = score(repeated(data, weights))
        assert value.values[row] == pytest.approx(expected.value, abs=1e-12)
        for name, own in per_class.items():
            assert own.values[row] == pytest.approx(expected.per_class[name], abs=1e-12)


def test_a_class_that_was_not_drawn_is_left_out():
    events = {"a": [(0, 1, "dog")], "b": [(1, 2, "cat")], "c": [(0, 1, "cat")]}
    scores = tables(**dict.fromkeys("abc", ["dog", "cat"]))
    scores = {clip: table.assign(dog=[1.0, 0.0]) for clip, table in scores.items()}
    data = scoring_set(scores, GroundTruth(events), dict.fromkeys("abc", 2))
    bootstrap = ClipBootstrap(data.clips, n_resamples=60)
    for settings in (PSDS1_MACRO, PSDS2):
        value, per_class = resampled_psds(data, bootstrap, settings)
        drawn = np.array([weights[0] > 0 for weights in bootstrap.weights()])
        assert (np.isnan(per_class["dog"].values) == ~drawn).all() and not np.isnan(value.values).any()
        assert per_class["dog"].n_groups == 1 and per_class["cat"].n_groups == 2
    alone = per_class["cat"].values[~drawn]
    np.testing.assert_allclose(value.values[~drawn], alone)


def test_a_resample_without_events_is_left_out_of_the_interval():
    events = {"a": [(0, 1, "dog"), (1, 2, "cat")], "b": [], "c": []}
    scores = tables(**dict.fromkeys("abc", ["dog", "cat"]))
    data = scoring_set(scores, GroundTruth(events), dict.fromkeys("abc", 2), drop_clips_without_events=False)
    bootstrap = ClipBootstrap(data.clips, n_resamples=60)
    without = np.array([weights[0] == 0 for weights in bootstrap.weights()])
    assert 5 < without.sum() < 40  # (2/3)³ of them
    counts = intersection_counts(data, 0.5, 0.5)
    for value, per_class in (
        resampled_psds(data, bootstrap, PSDS1),
        resampled_psds(data, bootstrap, PSDS2),
        resampled_f1(data, bootstrap, counts),
        resampled_segment_f1(data, bootstrap),
        resampled_auroc(data, bootstrap),
    ):
        assert (np.isnan(value.values) == without).all() and (np.isnan(per_class["dog"].values) == without).all()
        interval = value.interval()
        assert interval.n_resamples == 60 - without.sum() and np.isfinite([interval.low, interval.high]).all()


def test_groups_are_drawn_as_a_whole_and_systems_are_compared_in_pairs():
    data, worse = random_set(seed=5, levels=30), random_set(seed=5, levels=2)
    bootstrap = ClipBootstrap(data.clips, groups=list("xxyyzz"), n_resamples=50)
    for weights in bootstrap.weights():
        assert (weights[::2] == weights[1::2]).all() and weights.sum() == 6
    difference = resampled_auroc(data, bootstrap)[0] - resampled_auroc(worse, bootstrap)[0]
    assert difference.estimate == pytest.approx(segment_auroc(data).value - segment_auroc(worse).value)
    assert difference.interval().n_groups == 3


def test_intervals_of_real_scores_hold_the_score(real):
    bootstrap = ClipBootstrap(real.clips, n_resamples=100)
    value, per_class = resampled_psds(real, bootstrap)
    interval = value.interval()
    assert interval.estimate == pytest.approx(0.2697432829693092, abs=1e-12)
    assert interval.low < interval.estimate < interval.high and interval.n_groups == 20
    assert set(per_class) == set(real.classes)
