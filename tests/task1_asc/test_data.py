"""The TAU layout: rows, counts, hold-out and batches."""

import json

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import task1_asc.data as data_module
from common.audio.cache import ClipFormat
from common.data.manifest import DataError
from task1_asc.data import (
    META_COLUMNS,
    TAU_NAME,
    Clips,
    DataConfig,
    SceneData,
    dataset_card,
    hold_out,
    load_clips,
    open_data,
    published_counts,
    verify,
)
from tests.task1_asc.conftest import SCENES

QUARTER = DataConfig(subset=100, format=ClipFormat(clip_s=0.25))


@pytest.fixture(scope="module")
def real_lists(shared, tmp_path_factory) -> SceneData:
    """The published lists, with a meta.csv made of their rows in another order; no audio."""
    root, lists = tmp_path_factory.mktemp("tau2022"), shared / "data/metadata/tau2022"
    (root / "split_setup").mkdir()
    for source, name in (("split5", "split5"), ("split25", "split25"), ("test_split", "test")):
        (root / "split_setup" / f"{name}.csv").write_bytes((lists / f"{source}.csv").read_bytes())
    tables = [pd.read_csv(root / "split_setup" / f"{name}.csv", sep="\t") for name in ("test", "split25")]
    meta = pd.concat(tables).sample(frac=1, random_state=0)
    parts = meta.filename.str.removesuffix(".wav").str.split("-")
    meta = meta.assign(identifier=parts.str[1] + "-" + parts.str[2], source_label=parts.str[-1])
    meta.to_csv(root / "meta.csv", sep="\t", index=False)
    (root / "dataset.json").write_text(json.dumps({"name": TAU_NAME}))
    return open_data(root)


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize(("name", "n_clips"), [("split5", 6980), ("split25", 34900), ("test", 29680)])
def test_real_lists_have_the_published_counts(real_lists, name, n_clips):
    rows = real_lists.split(name)
    assert len(rows) == published_counts()[name]["all"] == n_clips
    found = {"all": len(rows), **rows.source_label.value_counts(), **rows.scene_label.value_counts()}
    assert {key: found.get(key, 0) for key in published_counts()[name]} == published_counts()[name]
    assert verify(real_lists, [name]).differences == []


def test_verify_names_counts_that_differ(real_lists):
    wrong = SceneData(real_lists.root, TAU_NAME, real_lists.meta.replace({"source_label": {"s6": "s5"}}))
    assert verify(wrong, ["test"]).differences == [
        "test: 6600 clips of s5, published 3300",
        "test: 0 clips of s6, published 3300",
    ]
    other = SceneData(real_lists.root, "my data", wrong.meta)
    assert verify(other, ["test"]).differences == []  # published counts are TAU's alone


def test_verify_reports_what_is_not_on_disk(real_lists):
    report = verify(real_lists, ["split5"])
    assert len(report.missing) == 6980 and not report.complete
    assert list(report.counts) == ["split5: 6980 clips"]
    assert report.counts["split5: 6980 clips"].loc["All", "All"] == 6980


def test_classes_are_alphabetical_and_rows_in_the_order_of_meta(real_lists, tau):
    assert real_lists.class_names == sorted(SCENES) and len(real_lists.class_names) == 10
    rows = real_lists.split("split5")
    where = real_lists.meta.reset_index().set_index("filename")["index"].loc[rows.filename]
    assert where.is_monotonic_increasing
    data = open_data(tau)
    assert list(data.split("split100").filename) == list(data.meta.filename[40:])
    assert data.labels(data.split("test"))[:12].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_labels_count_classes_of_the_whole_meta(make_tau):
    """A list in which a class is missing keeps the others' numbers."""
    data = open_data(make_tau(classes=("bus", "park", "tram")))
    path = data.list_path("test")
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "bus" not in line))
    assert set(data.labels(data.split("test"))) == {1, 2}


def test_lists_may_lie_beside_meta_and_audio_may_be_flac(make_tau, tmp_path):
    root = make_tau(classes=("wood", "field"), ending="flac", train_devices=("x",), test_devices=("x", "y"),
                    test_places=("paris-5",))  # fmt: skip
    for name in ("split100", "test"):
        (root / "split_setup" / f"{name}.csv").rename(root / f"{name}.csv")
    data = open_data(root)
    assert data.name == "tau" and data.class_names == ["field", "wood"]
    clips = load_clips(data, "test", QUARTER, tmp_path / "cache")
    assert len(clips) == 4 and clips.labels.tolist() == [1, 1, 0, 0] and set(clips.devices) == {"x", "y"}
    assert verify(data, ("split100", "test")).complete


def test_files_in_folders_below_audio_are_found(tau):
    (tau / "audio/more").mkdir()
    (tau / "audio/more/unlisted.wav").touch()
    report = verify(open_data(tau), ["test"])
    assert report.extra == ["audio/more/unlisted.wav"] and report.complete


def test_name_comes_from_the_card_or_the_published_count(tau, monkeypatch):
    assert open_data(tau).name == "tau"
    monkeypatch.setattr(data_module, "published_counts", lambda: {"meta": {"all": 160}})
    assert open_data(tau).name == TAU_NAME
    (tau / "dataset.json").write_text('{"name": "mine"}')
    assert open_data(tau).name == "mine"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"subset": 30}, "data.subset is 30, expected 5, 10, 25, 50 or 100"),
        ({"holdout_fraction": 0.7}, "data.holdout_fraction is 0.7, expected 0 up to 0.5"),
        ({"holdout_fraction": -0.1}, "expected 0 up to 0.5"),
    ],
)
def test_impossible_settings_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        DataConfig(**wrong)


# ---------------------------------------------------------------- hold-out


def assert_disjoint_locations(rows: pd.DataFrame, held: np.ndarray) -> None:
    assert not set(rows.identifier[held]) & set(rows.identifier[~held])


def test_hold_out_of_the_real_list(real_lists):
    rows, fraction = real_lists.split("split25"), 0.2
    held = hold_out(rows, fraction)
    assert_disjoint_locations(rows, held)
    for column in ("source_label", "scene_label"):
        share = rows[held][column].value_counts() / rows[column].value_counts()
        assert share.sub(fraction).abs().max() < 0.03, share
    assert abs(held.mean() - fraction) < 0.01


def test_hold_out_repeats_and_follows_the_seed(tau):
    rows = open_data(tau).split("split100")
    held = hold_out(rows, 0.25)
    assert_disjoint_locations(rows, held)
    assert held.dtype == bool and held.sum() == 30  # one of four places
    np.testing.assert_array_equal(hold_out(rows, 0.25), held)
    assert len({hold_out(rows, 0.25, seed).tobytes() for seed in range(8)}) > 1


def test_no_hold_out_unless_asked(tau):
    assert not hold_out(open_data(tau).split("split100"), 0.0).any()


def test_hold_out_of_too_little_is_refused(make_tau):
    rows = open_data(make_tau()).split("split100")
    with pytest.raises(DataError, match="holdout_fraction 0.1 needs 10 locations, the training list has 4; raise it"):
        hold_out(rows, 0.1)
    few = rows.assign(identifier=[f"place-{i}" for i in range(len(rows))])
    with pytest.raises(DataError, match="needs 10 clips of a device and class, the training list has 4"):
        hold_out(few, 0.1)


# ---------------------------------------------------------------- clips


@pytest.fixture
def clips(tau, tmp_path) -> Clips:
    return load_clips(open_data(tau), "split100", QUARTER, tmp_path / "cache")


def test_batch_holds_what_the_rows_say(clips, tau):
    batch = clips.__getitems__([(7, 0, 3), (100, 2, 3)])
    assert batch["n_clips"] == 3 and batch["position"].tolist() == [0, 2] and batch["item"].tolist() == [7, 100]
    assert batch["waveform"].shape == (2, 1, 11025) and batch["waveform"].dtype == torch.float32
    for row, waveform, label, device in zip((7, 100), batch["waveform"], batch["label"], batch["device"], strict=True):
        expected = clips.rows.iloc[row]
        samples, _ = soundfile.read(tau / expected.filename, dtype="float32")
        np.testing.assert_array_equal(waveform[0].numpy(), samples)
        assert (SCENES[label], device) == (expected.scene_label, expected.source_label)


def test_selection_keeps_clip_label_and_device_together(clips):
    some = clips.select(clips.devices == "s1").select(np.arange(40) % 2 == 1)
    assert len(some) == 20 and set(some.devices) == {"s1"}
    batch = some.__getitems__([(5, 0, 1)])
    row = clips.rows.index[clips.rows.filename == some.rows.filename[5]][0]
    same = clips.__getitems__([(row, 0, 1)])
    assert torch.equal(batch["waveform"], same["waveform"]) and batch["label"] == same["label"]


def test_resident_batches_hold_row_numbers_only(clips):
    kept = clips.select(np.ones(len(clips), bool), resident=True)
    assert "waveform" not in kept.__getitems__([(3, 0, 1)])
    assert kept.select(np.ones(len(clips), bool)).resident
    held = kept.select(clips.devices == "a", resident=False)  # clips that do not train bring their own waveforms
    assert torch.equal(held.__getitems__([(1, 0, 1)])["waveform"], held.waveforms([1]))


@pytest.mark.parametrize("n_workers", [0, 1])
def test_loader_gives_every_clip_once(clips, n_workers):
    loader = clips.loader(50, shuffle=True, seed=1, n_workers=n_workers)
    batches = list(loader)
    assert [batch["n_clips"] for batch in batches] == [50, 50, 20] and len(loader) == 3
    assert sorted(torch.cat([batch["item"] for batch in batches]).tolist()) == list(range(120))
    first = batches[0]
    assert torch.equal(first["waveform"], clips.waveforms(first["item"].tolist()))


def test_unusable_clips_are_left_out_and_named(tau, tmp_path):
    data = open_data(tau)
    rows = data.split("test")
    (tau / rows.filename[3]).unlink()
    (tau / rows.filename[5]).write_bytes(b"")
    clips = load_clips(data, "test", QUARTER, tmp_path / "cache")
    assert list(clips.cache.problems) == [rows.filename[3], rows.filename[5]]
    kept = [i for i in range(40) if i not in (3, 5)]
    assert list(clips.rows.filename) == list(rows.filename[kept])
    assert clips.labels.tolist() == data.labels(rows)[kept].tolist()
    samples, _ = soundfile.read(tau / rows.filename[6], dtype="float32")
    np.testing.assert_array_equal(clips.waveforms([4])[0, 0].numpy(), samples)
    card = dataset_card(data, {"test": clips}, {"test": "test"})
    assert card["expected"] == {"test": 40} and card["found"] == {"test": 38}
    assert card["skipped"][rows.filename[5]].startswith(f"DATA/{rows.filename[5]}: is empty")


def test_no_usable_clip_is_an_error(tau, tmp_path):
    with pytest.raises(DataError, match="none of the 40 clips of test can be used; the first: .*11025 samples long"):
        load_clips(open_data(tau), "test", DataConfig(), tmp_path / "cache")


def test_card_expects_the_published_counts_of_tau(tau, tmp_path):
    data = open_data(tau)
    clips = load_clips(data, "split100", QUARTER, tmp_path / "cache")
    (tau / "split_setup/split25.csv").write_bytes((tau / "split_setup/split100.csv").read_bytes())
    data.name = TAU_NAME
    card = dataset_card(data, {"train": clips}, {"train": "split25"})
    assert card["expected"] == {"train": 34900} and card["found"] == {"train": 120}
    assert card["differences"][0] == "split25: 120 clips of all, published 34900"
    card = dataset_card(data, {"train": clips}, {"train": "split100"})
    assert card["expected"] == card["found"]  # no count of the 100 % list is published, but its number of batches is
    assert card["differences"] == ["split100: 120 clips are not the baseline's 546 batches of 256"]


def test_card_identifies_the_rows(tau, tmp_path):
    data = open_data(tau)
    clips = load_clips(data, "test", QUARTER, tmp_path / "cache")
    before = dataset_card(data, {"test": clips}, {"test": "test"})["manifest_sha256"]
    data.meta = data.meta.replace({"source_label": {"s4": "s9"}})
    assert len(before) == 64 != dataset_card(data, {"test": clips}, {"test": "test"})["manifest_sha256"]


def test_columns_are_those_of_the_real_meta():
    assert META_COLUMNS == ("filename", "scene_label", "identifier", "source_label")
