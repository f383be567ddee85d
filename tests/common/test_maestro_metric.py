"""mpAUC: what counts as an event, how crops are joined, what a missing crop does, single crops in validation."""

import numpy as np
import pandas as pd
import pytest
from sed_scores_eval import segment_based

from common.data.manifest import DataError
from common.metrics.maestro import (
    cell_weights,
    crop_set,
    join_clips,
    joined_set,
    kept_events,
    mpauc,
    read_crop_labels,
)
from common.metrics.sed import segment_cells
from common.metrics.sed_scores import FrameScores

CLASSES = ["car", "footsteps"]
HALVES = np.arange(21) / 2  # frames of 0.5 s over 10 s


def labels(*rows):
    """Rows: crop, onset, offset, class, confidence."""
    return pd.DataFrame(rows, columns=["filename", "onset", "offset", "event_label", "confidence"])


def crop_scores(**crops):
    """Return crop → table on frames of 0.5 s; both classes have the values given, one per second."""
    names = [name.replace("_", "-") for name in crops]
    values = np.repeat(np.array(list(crops.values()), dtype=float), 2, axis=1)[..., None].repeat(2, axis=2)
    return FrameScores(names, CLASSES, HALVES, values).tables()


FIRST, SECOND, SHORT = "r-000000-001000", "r-000500-001500", "r-001000-001460"
DURATIONS = {"r": 14.6}
ROWS = [(FIRST, 0.0, 1.0, "car", 0.9), (SECOND, 9.0, 9.6, "car", 0.9), (FIRST, 3.0, 4.0, "footsteps", 0.6)]


def scores_of(*crops):
    full = {FIRST: np.arange(10), SECOND: np.arange(10) + 100, SHORT: np.arange(10) + 1000}
    return crop_scores(**{crop.replace("-", "_"): full[crop] for crop in crops})


# ---------------------------------------------------------------- labels


def test_an_event_has_more_than_half_confidence_and_a_class_that_is_scored():
    rows = [(FIRST, second, second + 1.0, "car", value) for second, value in enumerate((0.3, 0.5, 0.5000001, 0.9, 1.0))]
    kept = kept_events(labels(*rows, (FIRST, 7.0, 8.0, "announcement", 0.9)), CLASSES)
    assert list(kept.confidence) == [0.5000001, 0.9, 1.0] and set(kept.event_label) == {"car"}
    assert len(kept_events(labels(*rows), CLASSES, min_confidence=0.2)) == 5


def test_labels_are_read_and_what_is_odd_is_said(tmp_path):
    path = tmp_path / "soft.tsv"
    head = "filename\tonset\toffset\tevent_label\tconfidence\n"
    rows = [f"{FIRST}.wav\t0\t1\tcar\t0.7", f"{SECOND}.wav\t\t\t\t", f"{SHORT}.wav\t\t1\tcar\t0.7"]
    path.write_text("\n".join([head.strip(), *rows, f"{FIRST}.wav\t2\t1\tcar\t0.7", ""]))
    found = read_crop_labels(path)
    assert found.crops == (FIRST, SECOND, SHORT) and found.counts == {"empty_rows": 1, "dropped_rows": 2}
    assert found.events.to_numpy().tolist() == [[FIRST, 0.0, 1.0, "car", 0.7]] and len(found.notes) == 2
    for wrong in ("1.5", "-0.1", "much"):
        path.write_text(head + f"{FIRST}.wav\t0\t1\tcar\t{wrong}\n")
        with pytest.raises(DataError, match=rf"soft.tsv: row 1 \({FIRST}.wav, car\): confidence '{wrong}' is not"):
            read_crop_labels(path)


def test_without_a_sure_event_there_is_nothing_to_score():
    unsure = labels((FIRST, 0.0, 1.0, "car", 0.5), (FIRST, 0.0, 1.0, "wind", 0.9))
    for build in (crop_set, lambda *a: joined_set(a[0], a[1], DURATIONS, a[2])):
        with pytest.raises(DataError, match="none of the 1 labels of the classes to score has a confidence above 0.5"):
            build(scores_of(FIRST), unsure, CLASSES)
        with pytest.raises(DataError, match="none of the 2 labels is of a class to score: footsteps"):
            build(scores_of(FIRST), unsure, ["footsteps"])
        with pytest.raises(DataError, match="the class 'car' stands twice"):
            build(scores_of(FIRST), labels(*ROWS), ["car", "car"])


# ---------------------------------------------------------------- seconds


def test_cells_weigh_frames_by_their_overlap_with_the_whole_second():
    weights = cell_weights(np.array([0, 0.75, 1.5, 2.4, 3]), 3)
    np.testing.assert_allclose(weights, [[0.75, 0.25, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.4, 0.6]], atol=1e-12)
    # Frames end before the crop does: the last cell is their mean, not a fraction of it.
    np.testing.assert_allclose(cell_weights(np.array([0, 1, 1.9]), 2), np.eye(2))
    # The crop ends within its last second: frames after its end count.
    np.testing.assert_allclose(cell_weights(HALVES, 5)[-1, 8:10], [0.5, 0.5])
    with pytest.raises(DataError, match="lasts 3 s by its name, but its scores go from 0 to 1.9 s"):
        cell_weights(np.array([0, 1, 1.9]), 3)


def test_seconds_are_means_over_the_crops_that_cover_them():
    (table, covered) = join_clips(scores_of(FIRST, SECOND, SHORT), DURATIONS, CLASSES)["r"]
    assert covered.tolist() == [1] * 5 + [2] * 10
    first, second, short = np.arange(10), np.arange(10) + 100, np.arange(5) + 1000
    expected = [*first[:5], *(first[5:] + second[:5]) / 2, *(second[5:] + short) / 2]
    np.testing.assert_allclose(table["car"], expected)
    np.testing.assert_allclose(table["onset"], np.arange(15))
    np.testing.assert_allclose(table["offset"].iloc[-2:], [14, 14.6])


def test_a_second_that_no_crop_covers_scores_zero():
    (table, covered) = join_clips(scores_of(SHORT), DURATIONS, CLASSES)["r"]
    assert covered.tolist() == [0] * 10 + [1] * 5 and (table["car"][:10] == 0).all() and table["car"][10] == 1000


def test_crops_that_do_not_fit_their_recording():
    with pytest.raises(DataError, match="the recording 'r' has no duration"):
        join_clips(scores_of(FIRST), {"q": 20}, CLASSES)
    with pytest.raises(DataError, match="ends after its recording, which lasts 9 s"):
        join_clips(scores_of(FIRST), {"r": 9}, CLASSES)
    with pytest.raises(DataError, match="no scores for the class 'cars'; the nearest is 'car'"):
        join_clips(scores_of(FIRST), DURATIONS, ["cars"])


# ---------------------------------------------------------------- recordings


def test_events_of_overlapping_crops_become_those_of_the_recording():
    rows = [
        *[(FIRST, float(k), k + 1.0, "car", 0.9) for k in (5, 6, 8)],  # 5-7 and 8-9
        *[(SECOND, float(k), k + 1.0, "car", 0.9) for k in (0, 1, 3)],  # the same, from the next crop
        (SECOND, 4.0, 5.0, "car", 0.8),  # 9-10 touches 8-9
        (SHORT, 4.0, 5.0, "car", 0.9),  # cut at the end of the recording
        (FIRST, 5.0, 6.0, "footsteps", 0.9),
        (FIRST, 6.0, 7.0, "footsteps", 0.5),  # not above one half
        (FIRST, 0.0, 9.0, "announcement", 0.9),
    ]
    data = joined_set(scores_of(FIRST, SECOND, SHORT), labels(*rows), DURATIONS, CLASSES)
    assert data.events["r"] == [(5, 6, "footsteps"), (5, 7, "car"), (8, 10, "car"), (14, 14.6, "car")]
    assert data.status == "complete" and data.notes == (
        "1 events of classes that are not scored are left out: announcement.",
        f"1 events go past the end of their crop (by up to 0.4 s; first: {SHORT}), and are cut there.",
    )


def test_events_end_with_their_crop_and_not_with_its_neighbours():
    rows = [(FIRST, 9.0, 12.0, "car", 0.9), (FIRST, 10.0, 11.0, "car", 0.9), (FIRST, 1.0, 2.0, "footsteps", 0.9)]
    data = joined_set(scores_of(FIRST, SECOND, SHORT), labels(*rows), DURATIONS, CLASSES)
    assert data.events["r"] == [(1, 2, "footsteps"), (9, 10, "car")]
    assert data.notes == (
        f"2 events go past the end of their crop (by up to 2 s; first: {FIRST}), and are cut there; 1 of them begin "
        "after it, and are left out.",
    )
    # A name is cut to hundredths of a second: the last crop may last a little longer than it says.
    longer = labels(*ROWS, (SHORT, 3.0, 4.6055, "car", 0.9))
    data = joined_set(scores_of(FIRST, SECOND, SHORT), longer, {"r": 14.6055}, CLASSES)
    assert data.events["r"][-1] == (13, 14.6055, "car") and data.notes == ()


def test_crops_without_events_join_or_not():
    scores = scores_of(FIRST, SECOND, SHORT)
    every = joined_set(scores, labels(ROWS[0], ROWS[2]), DURATIONS, CLASSES)
    some = joined_set(scores, labels(ROWS[0], ROWS[2]), DURATIONS, CLASSES, crops="with_events")
    assert every.tables["r"]["car"][7] == (7 + 102) / 2 and some.tables["r"]["car"][7] == 7
    assert some.tables["r"]["car"][12] == 0 and some.counts["seconds_uncovered"] == 5
    assert "5 seconds without an event are covered by no crop, and score 0." in some.notes
    with pytest.raises(ValueError, match="must be 'all' or 'with_events'"):
        joined_set(scores, labels(*ROWS), DURATIONS, CLASSES, crops="some")


def test_missing_crops_are_never_silent():
    # Without SHORT every second is still covered, but by fewer crops.
    fewer = joined_set(scores_of(FIRST, SECOND), labels(*ROWS, (SHORT, 0.0, 1.0, "car", 0.1)), DURATIONS, CLASSES)
    assert fewer.status == "partial data" and fewer.notes == (f"1 of 3 crops of the labels have no scores: {SHORT}.",)
    # Without SECOND and SHORT the event at 14 s lies where nothing was scored: the recording cannot be judged.
    two = {"q": 10.0, **DURATIONS}
    rows = [*ROWS, ("q-000000-001000", 0.0, 1.0, "car", 0.9), ("q-000000-001000", 2.0, 3.0, "footsteps", 0.9)]
    scores = scores_of(FIRST) | crop_scores(q_000000_001000=range(10))
    data = joined_set(scores, labels(*rows), two, CLASSES)
    assert data.clips == ["q"] and data.status == "partial data"
    assert "1 recordings have an event in a second that no scored crop covers, and are left out: r." in data.notes
    with pytest.raises(DataError, match="in a second that no scored crop covers"):
        joined_set(scores_of(FIRST), labels(*ROWS), DURATIONS, CLASSES)


def test_crops_of_recordings_that_nothing_knows_are_left_out():
    scores = scores_of(FIRST, SECOND, SHORT)
    expected = joined_set(scores, labels(*ROWS), DURATIONS, CLASSES)
    more = scores | crop_scores(z_000000_001000=range(10))
    for crops in ("all", "with_events"):
        data = joined_set(more, labels(*ROWS), DURATIONS, CLASSES, crops)
        sentence = "1 scored crops are of recordings without labels and durations, and left out: z-000000-001000."
        assert sentence in data.notes and data.clips == ["r"]
    assert mpauc(joined_set(more, labels(*ROWS), DURATIONS, CLASSES)) == mpauc(expected)
    with pytest.raises(DataError, match="z-000000-001000: the recording 'z' has no duration"):
        joined_set(more, labels(*ROWS, ("z-000000-001000", 0.0, 1.0, "car", 0.2)), DURATIONS, CLASSES)


def test_crops_with_a_part_of_their_frames_are_partial_data():
    scores = scores_of(FIRST, SECOND, SHORT)
    scores[FIRST] = scores[FIRST].iloc[:19].assign(offset=[*np.arange(1, 19) / 2, 9.3])
    data = joined_set(scores, labels(*ROWS), DURATIONS, CLASSES)
    assert data.status == "partial data" and data.counts["crops_short"] == 1
    assert f"more than 0.5 s of 1 crops are without scores: {FIRST}." in data.notes


def test_mpauc_solved_by_hand_and_by_sed_scores_eval():
    # 14.6 s, 15 segments. car: seconds 0 and 14 active. Second 14 scores highest; 13 inactive ones are above second 0.
    data = joined_set(scores_of(FIRST, SECOND, SHORT), labels(*ROWS), DURATIONS, CLASSES)
    assert mpauc(data, max_fpr=1.0).per_class["car"] == pytest.approx(0.5)
    assert mpauc(data).per_class == pytest.approx({"car": 0.5, "footsteps": 0})
    expected = segment_based.auroc(data.tables, data.events, data.durations_s, segment_length=1.0, max_fpr=0.1)[0]
    assert mpauc(data).value == pytest.approx(expected["mean"], abs=1e-16)


def test_random_recordings_agree_with_sed_scores_eval():
    rng = np.random.default_rng(0)
    durations_s = {"a": 47.3, "b": 31.0}
    crops = [
        f"{name}-{100 * on:06d}-{min(100 * on + 1000, round(100 * end)):06d}"
        for name, end in durations_s.items()
        for on in range(0, int(end) - 4, 5)
    ]
    scores = FrameScores(crops, CLASSES, 0.064 * np.arange(157), rng.random((len(crops), 156, 2)))
    rows = [(crop, float(k), k + 1.0, name, rng.random()) for crop in crops for k in range(6) for name in CLASSES]
    data = joined_set(scores, labels(*rows), durations_s, CLASSES)
    expected = segment_based.auroc(data.tables, data.events, data.durations_s, segment_length=1.0, max_fpr=0.1)[0]
    assert mpauc(data).value == pytest.approx(expected["mean"], abs=1e-15) and 0 < expected["mean"] < 0.5
    assert [len(table) for table in data.tables.values()] == [48, 31]


# ---------------------------------------------------------------- single crops


def test_validation_scores_each_crop_up_to_its_last_event():
    rows = [*ROWS, (SHORT, 0.0, 1.0, "car", 0.4)]
    data = crop_set(scores_of(FIRST, SECOND, SHORT), labels(*rows), CLASSES)
    assert data.clips == [FIRST, SECOND] and data.durations_s == {FIRST: 4.0, SECOND: 9.6}
    assert data.events[SECOND] == [(9.0, 9.6, "car")] and list(data.tables[FIRST].columns[2:]) == CLASSES
    # a segment scores the maximum of its frames here
    table = data.tables[FIRST].assign(car=np.where(np.arange(20) == 2, 500.0, 0))
    cells = segment_cells(crop_set({FIRST: table}, labels(*ROWS), CLASSES))["car"]
    assert cells.scores.tolist() == [0, 500, 0, 0] and cells.active.tolist() == [True, False, False, False]
