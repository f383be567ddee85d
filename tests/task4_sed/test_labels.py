"""Events become targets and scores become events, by hand-solved cases."""

import time

import numpy as np
import pandas as pd
import pytest
import torch

from common.data.events import merge_events
from common.data.manifest import DataError
from task4_sed.labels import (
    AUDIOSET_GRID,
    EventArrays,
    FrameGrid,
    aliases,
    as_frames,
    class_indices,
    class_mask,
    decode,
    encode,
    nearest_class,
    require_known,
    sound_classes,
    weak_labels,
    with_aliases,
)

CLASSES = sound_classes().names
SPEECH, DISHES, DOG = (CLASSES.index(name) for name in ("Speech", "Dishes", "Dog"))
SECONDS = FrameGrid(sample_rate=1, hop_samples=1, pooling=1, clip_s=10)  # ten frames of 1 s: solved in the head


def table(*rows, columns=("filename", "onset", "offset", "event_label", "confidence")) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns[: len(rows[0])]))


# ---------------------------------------------------------------- classes, aliases, masks


def test_class_list():
    classes = sound_classes()
    assert len(CLASSES) == 27 and classes.desed.sum() == 10 and classes.maestro.sum() == 17
    assert CLASSES[:3] == ("Alarm_bell_ringing", "Blender", "Cat")
    assert CLASSES[9:11] == ("Vacuum_cleaner", "cutlery and dishes")
    assert classes.maestro_evaluated.sum() == 11 and not (classes.maestro_evaluated & classes.desed).any()
    assert "announcement" not in classes.where(classes.maestro_evaluated)
    assert classes.median_frames.tolist()[:10] == [3, 9, 9, 5, 5, 5, 9, 7, 11, 9]
    assert (classes.median_frames % 2 == 1).all()


@pytest.mark.parametrize(
    ("source", "use", "recipe", "also"),
    [
        ("desed", "train", "winner", ["cutlery and dishes", "people talking"]),
        ("desed", "validation", "winner", []),
        ("desed", "test", "winner", []),
        ("desed", "train", "baseline", []),
        ("maestro", "train", "winner", ["Dishes", "Speech"]),
        ("maestro", "test", "winner", ["Dishes", "Speech"]),
        ("maestro", "train", "baseline", ["Dishes", "Dog", "Speech"]),
    ],
)
def test_class_mask_is_own_classes_and_what_their_labels_also_say(source, use, recipe, also):
    mask, classes = class_mask(source, use, recipe), sound_classes()
    own = classes.desed if source == "desed" else classes.maestro
    assert set(classes.where(mask)) == {*classes.where(own), *also}


def test_challenge_evaluation_clips_may_hold_anything():
    assert class_mask("mixed", "test").all() and aliases("mixed", "test") == []


def test_unknown_source_or_recipe():
    for wrong in (("maestr", "train"), ("desed", "training"), ("desed", "train", "mine")):
        with pytest.raises(ValueError, match="is none of"):
            aliases(*wrong)


def test_aliases_add_rows_in_their_own_order_and_leave_the_table():
    events = table(("a", 0, 1, "children voices"), ("a", 1, 2, "car"), ("a", 2, 3, "people talking"))
    before = events.copy()
    found = with_aliases(events, aliases("maestro"))
    pd.testing.assert_frame_equal(events, before)
    assert list(found.event_label) == ["children voices", "car", "people talking", "Speech", "Speech"]
    assert list(found.onset) == [0, 1, 2, 2, 0]  # people talking's copy first: the alias list names it first
    nothing = with_aliases(events[events.event_label == "car"], aliases("maestro"))  # no alias occurs: no fault
    assert list(nothing.event_label) == ["car"]


def test_overlapping_soft_labels_that_become_one_class():
    events = table(("a", 2, 4, "announcement", 0.9), ("a", 0, 5, "people talking", 0.2))
    aliased = with_aliases(events, aliases("maestro"))
    published = encode(aliased, ["a"], SECONDS, overlap="overwrite")[0, :, SPEECH]
    # people talking's copy is written before announcement's; copies in the order of rows would leave 0.2 everywhere.
    np.testing.assert_allclose(published, [0.2, 0.2, 0.9, 0.9, 0.2, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(encode(aliased, ["a"], SECONDS)[0, :, SPEECH], published)

    events = table(("a", 2, 4, "announcement", 0.1), ("a", 0, 5, "people talking", 0.7))
    aliased = with_aliases(events, aliases("maestro"))
    speech = [encode(aliased, ["a"], SECONDS, overlap=how)[0, :5, SPEECH] for how in ("overwrite", "maximum")]
    np.testing.assert_allclose(speech, [[0.7, 0.7, 0.1, 0.1, 0.7], [0.7] * 5])


# ---------------------------------------------------------------- grid


def test_grids():
    grid = FrameGrid()
    assert (grid.n_frames, grid.frame_s) == (156, 0.064)
    assert (AUDIOSET_GRID.n_frames, AUDIOSET_GRID.frame_s) == (250, 0.04)
    assert len(grid.boundaries_s) == 157 and grid.boundaries_s[-1] == pytest.approx(9.984)
    assert grid.times(1000) == 10.0


def test_event_touches_frames_also_partly():
    first, last = FrameGrid().span([0.0, 0.063, 0.064, 9.97, 9.99, 3.0], [0.001, 0.065, 0.128, 11.0, 10.0, 3.0])
    assert first.tolist() == [0, 0, 1, 155, 156, 46] and last.tolist() == [1, 2, 2, 156, 156, 47]


# ---------------------------------------------------------------- encode


def test_encode_by_hand():
    events = table(("b", 1.5, 3.0, "Dog"), ("a", 0.0, 10.0, "Speech"), ("b", 8.0, 25.0, "Dog"), ("b", -1.0, 0.5, "Cat"))
    targets = encode(events, ["a", "b", "empty"], SECONDS)
    assert targets.shape == (3, 10, 27) and targets.dtype == np.float32
    assert targets[0, :, SPEECH].all() and targets[0].sum() == 10
    assert targets[1, :, DOG].tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 1, 1]  # an event past the end is clipped
    assert targets[1, :, CLASSES.index("Cat")].tolist() == [1] + [0] * 9
    assert targets[1].sum() == 5 and not targets[2].any()


def test_events_of_other_clips_and_classes_are_passed_over():
    events = table(("a", 0, 1, "Dog"), ("a", 0, 1, "dog_bark"), ("z", 0, 9, "Cat"))
    assert encode(events, ["a"], SECONDS).sum() == 1
    assert encode(events, ["a"], SECONDS, ["Cat"]).shape == (1, 10, 1)


def test_crop_moves_clips_and_drops():
    events = table(
        ("a", 0.0, 2.0, "Cat"), ("a", 1.0, 5.0, "Dog"), ("a", 11.9, 13.0, "Speech"), ("a", 12.0004, 15.0, "Dishes")
    )
    arrays = EventArrays.of(events, ["a"], CLASSES)
    targets = arrays.encode([0], SECONDS, crop_onset_s=2.0004)[0]  # rounded to 2.000
    assert targets[:, DOG].tolist() == [1, 1, 1] + [0] * 7
    assert targets[:, SPEECH].tolist() == [0] * 9 + [1]
    assert targets.sum() == 4  # Cat ended as the crop starts, Dishes starts at its end
    both = arrays.encode([0, 0], SECONDS, crop_onset_s=[0.0, 2.0])
    np.testing.assert_array_equal(both[1], targets)
    assert both[0, :, DOG].sum() == 4


def test_exact_duplicates_count_once_before_rows_overwrite():
    """Rows that the crop makes equal are one row, at the place of the first."""
    events = table(("a", 0, 5, "Dog", 0.2), ("a", 2, 5, "Dog", 0.9), ("a", 1, 5, "Dog", 0.2))
    targets = encode(events, ["a"], SECONDS, overlap="overwrite", crop_onset_s=1.0)[0, :4, DOG]
    np.testing.assert_allclose(targets, [0.2, 0.9, 0.9, 0.9])


def test_overlap_rule_is_checked():
    with pytest.raises(ValueError, match="overlap is 'max', expected maximum or overwrite"):
        encode(table(("a", 0, 5, "Dog")), ["a"], overlap="max")


def random_events(rng, n_clips, n_events):
    onset = rng.uniform(-0.5, 10, n_events)
    return pd.DataFrame({
        "filename": [f"{i}.wav" for i in rng.integers(0, n_clips, n_events)], "onset": onset,
        "offset": onset + rng.uniform(0.01, 6, n_events), "event_label": rng.choice(CLASSES, n_events),
        "confidence": rng.uniform(0, 1, n_events),
    })  # fmt: skip


@pytest.mark.parametrize("overlap", ["maximum", "overwrite"])
def test_encode_is_what_a_loop_over_rows_gives(overlap):
    rng, grid = np.random.default_rng(0), FrameGrid()
    filenames = [f"{i}.wav" for i in range(6)]
    events = random_events(rng, 6, 300)
    expected = np.zeros((6, grid.n_frames, 27), np.float32)
    for row in events.itertuples():
        first, last = (int(x[0]) for x in grid.span([row.onset], [row.offset]))
        cells = expected[filenames.index(row.filename), first:last, CLASSES.index(row.event_label)]
        cells[:] = row.confidence if overlap == "overwrite" else np.maximum(cells, np.float32(row.confidence))
    np.testing.assert_array_equal(encode(events, filenames, overlap=overlap), expected)
    arrays = EventArrays.of(events, filenames, CLASSES)
    np.testing.assert_array_equal(arrays.encode([4, 0, 4], overlap=overlap), expected[[4, 0, 4]])
    assert arrays.encode([], overlap=overlap).shape == (0, 156, 27)


def test_ten_thousand_clips_take_seconds():
    events = random_events(np.random.default_rng(1), 10_000, 50_000)
    start = time.perf_counter()
    targets = encode(events, [f"{i}.wav" for i in range(10_000)])
    assert targets.shape == (10_000, 156, 27)
    assert time.perf_counter() - start < 10  # 0.5 s alone on a core; a loop over clips took minutes


# ---------------------------------------------------------------- weak labels


def test_weak_labels_lie_in_frame_0():
    clip_labels = np.array([[1, 0, 0.4]], np.float32)
    targets = as_frames(clip_labels, 4)
    assert targets[0, 0].tolist() == clip_labels[0].tolist() and not targets[0, 1:].any()
    np.testing.assert_array_equal(weak_labels(targets), clip_labels)  # soft ones stay soft
    assert weak_labels(targets, whole=True).tolist() == [[True, False, False]]


def test_weak_labels_of_a_mix_are_the_mix_of_weak_labels():
    """Mixing goes on in frame 0, so that weak labels are mixed as softly as everything else."""
    first, second = (np.array([row], np.float32) for row in ([1, 0, 1], [0, 0, 1]))
    mixed = 0.75 * as_frames(first, 5) + 0.25 * as_frames(second, 5)
    assert weak_labels(mixed).tolist() == [[0.75, 0, 1]] and weak_labels(mixed).dtype == np.float32
    assert weak_labels(mixed, whole=True).tolist() == [[False, False, True]]


def test_weak_labels_are_at_most_1_and_time_may_stand_last():
    targets = np.zeros((2, 4, 3), np.float32)
    targets[1, :, 0], targets[1, 2, 1] = 1, 0.5
    expected = [[0, 0, 0], [1, 0.5, 0]]
    assert weak_labels(targets).tolist() == expected
    assert weak_labels(torch.from_numpy(targets).transpose(1, 2), time_axis=-1).tolist() == expected


def test_merged_events_have_the_same_targets():
    events = random_events(np.random.default_rng(2), 3, 60).assign(confidence=1.0)
    merged = merge_events(events)
    assert len(merged) < len(events)
    filenames = sorted(events.filename.unique())
    np.testing.assert_array_equal(encode(merged, filenames), encode(events, filenames))


def test_clip_labels():
    events = table(("a", 0, 1, "Dog"), ("a", np.nan, np.nan, "Cat"), ("b", 9, 12, "Speech"))
    found = EventArrays.of(events, ["b", "a"], CLASSES).clip_labels()
    assert [[CLASSES[k] for k in np.flatnonzero(row)] for row in found] == [["Speech"], ["Cat", "Dog"]]


# ---------------------------------------------------------------- decode


def test_decode_by_hand():
    scores = np.zeros((2, 5, 2))
    scores[0, :, 1] = [0.6, 0.9, 0.2, 0.5, 0.7]  # 0.5 is not above
    scores[1, 2:, 0] = 1
    found = decode(scores, np.array([0, 1, 2, 3, 4, 4.5]), ["x", "y"], filenames=["a", "b"])
    assert list(found.itertuples(index=False, name=None)) == [
        ("a", 0, 2, "y", 0.9), ("a", 4, 4.5, "y", 0.7), ("b", 2, 4.5, "x", 1.0),
    ]  # fmt: skip
    one = decode(scores[0], np.arange(6), ["x", "y"], threshold=[0.0, 0.1])
    assert list(one.columns) == ["onset", "offset", "event_label", "score"]
    assert one[["onset", "offset"]].to_numpy().tolist() == [[0, 5]]


@pytest.mark.parametrize("threshold", [2.0, -1.0])
def test_decode_nothing_and_everything(threshold):
    found = decode(np.random.default_rng(0).random((3, 7, 4)), np.arange(8), list("abcd"), threshold, list("xyz"))
    assert len(found) == (0 if threshold > 0 else 12)
    assert (found.onset == 0).all() and (found.offset == 7).all()


def test_decoded_targets_are_the_events_on_the_grid():
    rng, grid = np.random.default_rng(3), FrameGrid()
    events = merge_events(random_events(rng, 4, 60).assign(confidence=1.0))
    targets = encode(events, [f"{i}.wav" for i in range(4)])
    found = decode(targets, grid.boundaries_s, CLASSES, filenames=[f"{i}.wav" for i in range(4)])
    np.testing.assert_array_equal(encode(found.drop(columns="score").assign(offset=found.offset - 1e-6),
                                         [f"{i}.wav" for i in range(4)]), targets)  # fmt: skip


def test_decode_checks_shapes():
    with pytest.raises(ValueError, match=r"scores \(5, 2\) do not fit 5 frames, 3 classes"):
        decode(np.zeros((5, 2)), np.arange(6), list("abc"))
    with pytest.raises(ValueError, match="and 2 clips"):
        decode(np.zeros((1, 5, 2)), np.arange(6), list("ab"), filenames=["a", "b"])


# ---------------------------------------------------------------- unknown labels


@pytest.mark.parametrize(
    ("label", "nearest"),
    [("dog", "Dog"), ("people_talking", "people talking"), ("Vacuum cleaner", "Vacuum_cleaner"), ("qqq", None)],
)
def test_nearest_class(label, nearest):
    assert nearest_class(label, CLASSES) == nearest


def test_unknown_label_is_named_with_place_and_nearest():
    labels, files = pd.Series(["Dog", "Dishs"]), pd.Series(["a.wav", "b.wav"])
    assert class_indices(labels, CLASSES).tolist() == [DOG, -1]
    with pytest.raises(DataError, match=r"^t.tsv: b.wav has the label 'Dishs', .* 27 classes \(nearest: 'Dishes'\)"):
        require_known(labels, files, CLASSES, "t.tsv")
    require_known(labels, files, [*CLASSES, "Dishs"], "t.tsv")
