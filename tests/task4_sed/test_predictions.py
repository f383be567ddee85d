"""Prediction files in the published schema, blocks that survive a kill, ensembles by name."""

import pickle

import h5py
import numpy as np
import pytest
from scipy.special import expit

from common.data.manifest import DataError
from task4_sed.labels import FrameGrid
from task4_sed.predictions import (
    Blocks,
    PredictionFile,
    ensemble,
    open_pseudo_labels,
    prediction_folder,
    write_predictions,
)

NAMES = ["Ya_30.000_40.000", "b", "c"]
SHAPE = (3, 156, 27)


def some_logits(seed=0, n=3):
    return np.random.default_rng(seed).standard_normal((n, *SHAPE[1:])).astype(np.float32)


def write_file(path, draw=0, names=NAMES, **about):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(path, names, [some_logits(draw, len(names))], about)
    return path


# ---- files ----


def test_the_published_schema_is_written_and_read(tmp_path):
    path = write_file(tmp_path / "devtest.hdf5", recipe="x", seed=1, weights={"given": False}, left_out=None)
    with h5py.File(path) as file:
        assert set(file) == {"strong_logits", "filenames"}
        assert file["strong_logits"].dtype == np.float32 and file["strong_logits"].shape == SHAPE
        assert file["filenames"][0] == b"Ya_30.000_40.000" and file["filenames"].dtype == object
    found = PredictionFile(path)
    assert found.filenames == NAMES and len(found) == 3 and len(found.classes) == 27
    assert found.about == {"recipe": "x", "seed": 1, "weights": {"given": False}}
    np.testing.assert_array_equal(found.logits(), some_logits())
    np.testing.assert_array_equal(found.boundaries_s, FrameGrid().boundaries_s)


def test_targets_are_probabilities_in_the_order_asked_for(tmp_path):
    found = PredictionFile(write_file(tmp_path / "s.hdf5"))
    targets = found.targets(["c.wav", "Ya_30.000_40.000.wav", "c"])
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets, expit(some_logits()[[2, 0, 2]]), rtol=1e-6)
    again = pickle.loads(pickle.dumps(found))  # for worker processes: opened there, not sent
    np.testing.assert_array_equal(again.targets(["b"]), found.targets(["b"]))
    assert len(pickle.dumps(found)) < 2000


def test_files_written_otherwise_are_read_too(tmp_path):
    with h5py.File(tmp_path / "other.hdf5", "w") as file:  # in chunks, in half precision, names with ending
        file.create_dataset("strong_logits", data=some_logits().astype(np.float16), chunks=(1, 156, 27), compression=1)
        file.create_dataset("filenames", data=np.array([f"{name}.wav" for name in NAMES], "S40"))
    found = PredictionFile(tmp_path / "other.hdf5")
    assert found.filenames == NAMES and found.about == {}
    np.testing.assert_allclose(found.logits(["c"])[0], some_logits()[2], atol=5e-3)


def write_raw(path, logits, names):
    with h5py.File(path, "w") as file:
        file["strong_logits"] = logits
        file.create_dataset("filenames", data=names, dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda path: None, "no such file of predictions"),
        (lambda path: path.write_text("x"), "not a file of predictions"),
        (lambda path: write_raw(path, some_logits(), ["a", "b", "a.wav"]), "holds the clip 'a' twice"),
        (lambda path: write_raw(path, some_logits(), ["a", "b"]), "for 2 clips, expected"),
        (lambda path: write_raw(path, np.zeros((3, 27)), NAMES), "has shape .3, 27."),
    ],
)
def test_unusable_files_are_named_with_what_mends_them(tmp_path, make, sentence):
    make(tmp_path / "x.hdf5")
    with pytest.raises(DataError, match=sentence):
        PredictionFile(tmp_path / "x.hdf5")


def test_missing_clips_and_numbers_that_are_none_are_named(tmp_path):
    found = PredictionFile(write_file(tmp_path / "s.hdf5"))
    with pytest.raises(DataError, match=r"lacks 2 of 3 clips \(d, e\); predict them too"):
        found.targets(["b", "d", "e.wav"])
    logits = some_logits()
    logits[1, 5, 3] = np.nan
    write_predictions(tmp_path / "nan.hdf5", NAMES, [logits], {})
    broken = PredictionFile(tmp_path / "nan.hdf5")
    assert broken.targets(["c"]).shape == (1, 156, 27)
    with pytest.raises(DataError, match="logits of 1 clips are not finite .first: b"):
        broken.targets(["c", "b"])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_file(tmp_path / "s.hdf5")
    before = path.read_bytes()

    def blocks():
        yield some_logits(1, 2)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_predictions(path, NAMES, blocks(), {})
    with pytest.raises(ValueError, match="2 clips have logits, 3 a name"):
        write_predictions(path, NAMES, [some_logits(1, 2)], {})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["s.hdf5"]


def test_pseudo_labels_of_a_part_come_from_the_whole(tmp_path):
    run = tmp_path / "run"
    write_file(run / "predictions/maestro_real_train.hdf5", 1)
    write_file(run / "predictions/weak.hdf5", 2)
    assert prediction_folder(run) == run / "predictions" == prediction_folder(run / "predictions")
    np.testing.assert_array_equal(open_pseudo_labels(run, "maestro_real_fit").logits(), some_logits(1))
    np.testing.assert_array_equal(open_pseudo_labels(run, "weak_train").logits(), some_logits(2))
    write_file(run / "predictions/weak_train.hdf5", 3)  # its own file comes first, as in the published archive
    np.testing.assert_array_equal(open_pseudo_labels(run, "weak_train").logits(), some_logits(3))
    with pytest.raises(DataError, match="no pseudo-labels of synth_train .there are maestro_real_train, weak,"):
        open_pseudo_labels(run, "synth_train")
    write_predictions(run / "predictions/synth_train.hdf5", ["a"], [np.zeros((1, 250, 447))], {})
    with pytest.raises(DataError, match="250 frames and 447 classes a clip, expected 156 and 27"):
        open_pseudo_labels(run, "synth_train")


# ---- ensembles ----


def test_an_ensemble_is_the_mean_of_the_logits_by_name(tmp_path):
    one, two = write_file(tmp_path / "1/s.hdf5", 1), tmp_path / "2/s.hdf5"
    two.parent.mkdir()
    write_predictions(two, NAMES[::-1], [some_logits(2)], {"identity": "two"})
    assert ensemble([one, two], tmp_path / "e.hdf5", {"recipe": "both"}, said=lambda _: None)
    found = PredictionFile(tmp_path / "e.hdf5")
    np.testing.assert_allclose(found.logits(), (some_logits(1) + some_logits(2)[::-1]) / 2, rtol=1e-6, atol=1e-7)
    assert found.filenames == NAMES and found.about["recipe"] == "both"
    assert not ensemble([one, two], tmp_path / "e.hdf5", {"recipe": "both"}, said=lambda _: None)  # again
    write_file(one, 3)
    assert ensemble([one, two], tmp_path / "e.hdf5", {}, said=lambda _: None)  # a member changed


def test_an_average_is_made_anew_under_another_name_but_not_for_another_commit(tmp_path):
    paths = [write_file(tmp_path / name / "devtest.hdf5", draw) for draw, name in enumerate("ab")]
    out = tmp_path / "o.hdf5"
    assert ensemble(paths, out, {"recipe": "one", "commit": "1"}, said=lambda _: None)
    assert not ensemble(paths, out, {"recipe": "one", "commit": "2"}, said=lambda _: None)
    assert ensemble(paths, out, {"recipe": "two", "commit": "2"}, said=lambda _: None)
    assert PredictionFile(out).about["recipe"] == "two"


def test_a_damaged_file_is_made_again(tmp_path):
    paths = [write_file(tmp_path / name / "devtest.hdf5", draw) for draw, name in enumerate("ab")]
    out = tmp_path / "o.hdf5"
    ensemble(paths, out, {}, said=lambda _: None)
    out.write_bytes(out.read_bytes()[:100])
    assert ensemble(paths, out, {}, said=lambda _: None) and len(PredictionFile(out)) == 3
    blocks = Blocks(out, NAMES, "i")
    out.write_bytes(b"")
    assert not blocks.done()


def test_members_without_the_same_clips_are_named(tmp_path):
    one = write_file(tmp_path / "1/s.hdf5")
    two = write_file(tmp_path / "2/s.hdf5", names=["b", "c", "d"])
    with pytest.raises(DataError, match=r"1/s.hdf5: lacks 1 of 3 clips \(d\)"):
        ensemble([one, two], tmp_path / "e.hdf5", {})
    with pytest.raises(DataError, match=r"2/s.hdf5: lacks 1 of 3 clips \(Ya_30.000_40.000\)"):
        ensemble([one, write_file(tmp_path / "2/s.hdf5", names=["b", "c"])], tmp_path / "e.hdf5", {})
    write_predictions(tmp_path / "3.hdf5", NAMES, [np.zeros((3, 250, 27))], {})
    with pytest.raises(DataError, match="250 frames of 27 classes a clip"):
        ensemble([one, tmp_path / "3.hdf5"], tmp_path / "e.hdf5", {})


# ---- blocks ----


def fill(blocks, logits, shard=(0, 1)):
    for clips in blocks.todo(shard):
        blocks.save(clips, logits[clips])


def test_a_killed_prediction_goes_on_and_another_identity_starts_anew(tmp_path):
    names, logits = [f"clip{n}" for n in range(7)], some_logits(0, 7)
    blocks = Blocks(tmp_path / "s.hdf5", names, "one", block_clips=3)
    first, *_ = blocks.todo()
    blocks.save(first, logits[first])
    assert not blocks.join({}) and not blocks.done()
    again = Blocks(tmp_path / "s.hdf5", names, "one", block_clips=3)
    assert [(clips.start, clips.stop) for clips in again.todo()] == [(3, 6), (6, 7)]
    assert len(Blocks(tmp_path / "s.hdf5", names, "two", block_clips=3).todo()) == 3
    fill(again, logits)
    assert again.join({"recipe": "x"}) and again.done()
    np.testing.assert_array_equal(PredictionFile(tmp_path / "s.hdf5").logits(), logits)
    assert [path.name for path in tmp_path.iterdir()] == ["s.hdf5"]
    assert not Blocks(tmp_path / "s.hdf5", names, "two", block_clips=3).done()


def test_shards_share_the_blocks_and_the_last_one_joins(tmp_path):
    names, logits = [f"clip{n}" for n in range(10)], some_logits(0, 10)
    shards = [Blocks(tmp_path / "s.hdf5", names, "one", block_clips=2) for _ in range(3)]
    assert [[clips.start for clips in blocks.todo((n, 3))] for n, blocks in enumerate(shards)] == [[0, 6], [2, 8], [4]]
    joined = []
    for number, blocks in enumerate(shards):
        fill(blocks, logits, (number, 3))
        joined.append(blocks.join({}))
    assert joined == [False, False, True] and shards[0].join({})  # those who come late see that it is done
    np.testing.assert_array_equal(PredictionFile(tmp_path / "s.hdf5").logits(), logits)


def test_logits_that_are_no_numbers_are_not_kept(tmp_path):
    blocks = Blocks(tmp_path / "s.hdf5", NAMES, "one", block_clips=3)
    logits = some_logits()
    logits[2] = np.inf
    with pytest.raises(DataError, match="c: the network gives logits that are not finite"):
        blocks.save(slice(0, 3), logits)
    assert len(blocks.todo()) == 1
