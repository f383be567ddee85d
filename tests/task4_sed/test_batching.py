"""Which clips form which batch, what is drawn for them, and what hold-out batches hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.audio.augment import ImpulseResponse, load_responses
from common.data.manifest import DataError
from common.training.sampling import generator
from task4_sed.augment import WaveMix
from task4_sed.batching import (
    CLIPS,
    MixedBatchSampler,
    TrainingBatches,
    hold_out_loader,
    open_training_sets,
    training_loader,
)
from task4_sed.config import AugmentConfig, DataConfig, SedConfig
from task4_sed.labels import class_mask, sound_classes
from task4_sed.predictions import write_predictions
from task4_sed.views import SETS
from tests.task4_sed.conftest import write_table
from tests.task4_sed.tiny_sets import LEVELS, write_clip, write_sets

BATCH = {"maestro": 3, "strong": 2, "synth": 2, "weak": 1, "unlabeled": 1}
DOG, CAT = (sound_classes().names.index(name) for name in ("Dog", "Cat"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


def config_of(batch=BATCH, **settings) -> SedConfig:
    """Nothing is mixed unless `settings` say so."""
    augment = {key: settings.pop(key) for key in ("wave_mix_p", "response_p", "response_folder") if key in settings}
    data = DataConfig(batch=dict(batch), exclude_overlap=False, **settings)
    return SedConfig(data=data, augment=AugmentConfig(**{"wave_mix_p": 0.0} | augment))


OPENED = {}  # tables are read once, as nothing changes the sets


def opened(root, config=None, **how):
    config = config or config_of()
    key = (root, repr(config.data), repr(how))
    if key not in OPENED:
        OPENED[key] = open_training_sets(root, config.data, root / "cache", **how)
    return OPENED[key], config


def batches(root, config=None, epoch=0, seed=0, rank=0, world_size=1, **how):
    sets, config = opened(root, config, **how)
    loader = training_loader(sets, config, seed, rank, world_size)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def levels(waveform: torch.Tensor) -> list[float]:
    return [round(float(level), 3) for level in waveform[:, 0, 0]]


def set_of(level: float) -> str:
    return max((name for name in LEVELS if LEVELS[name] <= level + 1e-6), key=lambda name: LEVELS[name])


# ---------------------------------------------------------------- composition


def test_a_batch_holds_so_many_clips_of_each_set_one_set_after_the_other(root):
    (batch, *_) = batches(root)
    assert list(batch["sizes"].items()) == [(name, BATCH[name]) for name in SETS] and batch["n_clips"] == 9
    assert batch["waveform"].shape == (9, 1, 160000) and batch["waveform"].dtype == torch.float32
    assert batch["targets"].shape == (9, 27, 156) and batch["targets"].dtype == torch.float32
    assert batch["class_mask"].shape == (9, 27) and batch["class_mask"].dtype == torch.bool
    expected = [name for name, n in batch["sizes"].items() for _ in range(n)]
    assert [set_of(level) for level in levels(batch["waveform"])] == expected
    assert "pseudo" not in batch


def test_an_epoch_ends_with_the_set_that_is_used_up_first(root):
    """Six clips of strong, two a batch: three batches. MAESTRO's nine would give three too, weak's five five."""
    found = batches(root)
    assert len(found) == 3
    seen = [level for batch in found for level in levels(batch["waveform"])]
    assert len(set(seen)) == len(seen) == 27, "no clip twice in an epoch"
    assert {level for level in seen if set_of(level) == "strong"} == {round(0.2 + i / 1000, 3) for i in range(6)}
    sampler = MixedBatchSampler({"strong": 7, "weak": 11}, {"strong": 2, "weak": 5}, seed=0)
    assert len(sampler) == len(list(sampler)) == 2


def test_epochs_differ_and_repeat_by_seed_alone(root):
    first, again, next_epoch, other_seed = (
        [levels(batch["waveform"]) for batch in batches(root, epoch=epoch, seed=seed)]
        for epoch, seed in ((3, 0), (3, 0), (4, 0), (3, 1))
    )
    assert first == again and first != next_epoch and first != other_seed


def test_every_set_is_shuffled_by_itself():
    alone, together = (
        list(MixedBatchSampler(dict.fromkeys(sizes, 9), sizes, seed=5))
        for sizes in ({"weak": 2}, {"maestro": 1, "weak": 2})
    )
    for one, other in zip(alone, together, strict=False):
        assert (one[2]["weak"] == other[2]["weak"]).all()
    all_of_them = dict.fromkeys(SETS, 50)
    orders = next(iter(MixedBatchSampler(all_of_them, all_of_them, seed=5)))[2]
    assert len({tuple(order) for order in orders.values()}) == len(SETS)


def test_every_process_gets_the_whole_batch_and_its_own_places(root):
    whole, parts = batches(root)[0], [batches(root, rank=rank, world_size=2)[0] for rank in (0, 1)]
    for part in parts:
        assert torch.equal(part["waveform"], whole["waveform"]) and torch.equal(part["targets"], whole["targets"])
    assert whole["rows"].tolist() == list(range(9))
    assert [part["rows"].tolist() for part in parts] == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    with pytest.raises(ValueError, match="9 clips is too small for 10 processes"):
        batches(root, world_size=10)


def test_reading_ahead_changes_nothing(root):
    sets, config = opened(root, config_of(wave_mix_p=0.7))
    ahead = replace(config, data=replace(config.data, n_workers=1))
    for one, other in zip(*(training_loader(sets, c, seed=0) for c in (config, ahead)), strict=True):
        assert torch.equal(one["waveform"], other["waveform"])


# ---------------------------------------------------------------- labels


def test_targets_and_masks_are_those_of_the_sets(root):
    (batch, *_) = batches(root)
    strong = batch["targets"][3:7]
    for level, target in zip(levels(batch["waveform"])[3:7], strong, strict=True):
        label = ("Dog", "Cat", "Speech")[round(level * 1000) % 100 % 3]
        k = sound_classes().names.index(label)
        assert target[k].nonzero()[:, 0].tolist() == list(range(3, 16)), "0.2 to 1 s on frames of 64 ms"
    weak, unlabeled = batch["targets"][7], batch["targets"][8]
    assert weak.nonzero()[:, 1].unique().tolist() == [0], "weak labels stand in frame 0"
    assert weak[:10].sum() == 1 and not unlabeled.any()
    maestro, desed = (torch.from_numpy(class_mask(source)) for source in ("maestro", "desed"))
    assert (batch["class_mask"][:3] == maestro).all() and (batch["class_mask"][3:] == desed).all()
    car = sound_classes().names.index("car")
    torch.testing.assert_close(batch["targets"][0, car, :15], torch.full((15,), 0.8))


def test_clips_without_events_are_left_out_of_labelled_sets_alone(root):
    sets, _ = opened(root)
    assert len(sets.sets["strong"]) == 6, "strong_empty.wav has no event"
    assert len(sets.sets["unlabeled"]) == 6
    assert len(sets.sets["maestro"]) == 9 and len(sets.hold_out["maestro"]) == 3, "three recordings train, one is held"


def test_a_long_clip_is_cut_at_random_and_its_labels_go_with_it(tmp_path):
    root = write_sets(tmp_path)
    rng = np.random.default_rng(0)
    write_clip(root / "audio/train/strong_label_real_16k/strong0.wav", 0.2, 14.0, 300, rng)
    rows = [("strong0.wav", 4.0, 6.0, "Dog")]
    write_table(root / "metadata/train/audioset_strong.tsv", "filename onset offset event_label", rows)
    config = config_of({"strong": 1})
    onsets = set()
    for epoch in range(6):
        (batch,) = batches(root, config, epoch=epoch)
        frames = batch["targets"][0, DOG].nonzero()[:, 0]
        shift_s = 4.0 - float(frames[0]) * 0.064
        onsets.add(int(frames[0]))
        first = round(shift_s * 16000)
        sets, _ = opened(root, config)
        clip = sets.sets["strong"].parts[0].audio.whole(0)
        near = np.arange(max(0, first - 1024), first + 1025)  # the label grid is coarser than samples
        assert any(np.array_equal(clip[n : n + 50], batch["waveform"][0, 0, :50].numpy()) for n in near)
    assert len(onsets) > 2


# ---------------------------------------------------------------- mixing and impulse responses


def test_wave_mix_takes_partners_of_the_same_set_and_mixes_labels_alike(root):
    plain, mixed = (batches(root, config_of(wave_mix_p=p))[0] for p in (0.0, 1.0))
    sets, _ = opened(root)
    start = 0
    for name, size in plain["sizes"].items():
        rows = slice(start, start + size)
        start += size
        if name in ("weak", "unlabeled"):
            assert torch.equal(plain["waveform"][rows], mixed["waveform"][rows])
            continue
        everything = sets.sets[name].read(np.arange(len(sets.sets[name])), np.random.default_rng(0))
        for row in range(rows.start, rows.stop):
            own, found, label = plain["waveform"][row], mixed["waveform"][row], mixed["targets"][row]
            assert any(
                torch.allclose(WaveMix().apply(own, partner, lam), found, atol=1e-4)
                and torch.allclose(lam * plain["targets"][row] + (1 - lam) * partner_label, label, atol=1e-3)
                for partner, partner_label in zip(everything["waveform"], everything["targets"], strict=True)
                if 0.499 < (lam := share_of(own, partner, found)) < 1.001
            ), f"clip {row} is no mix with a clip of {name}"


def share_of(own, partner, found) -> float:
    """The weight of `own` in a mix: by least squares."""
    difference = _centred(own) - _centred(partner)
    power = float((difference**2).sum())
    return float((difference * (found - _centred(partner))).sum()) / power if power else 1.0


def _centred(x):
    return x - x.mean()


def test_responses_are_applied_to_all_sets_after_the_mix(root, tmp_path):
    write_clip(tmp_path / "echo.wav", 0.5, 0.2, 1000, np.random.default_rng(1))
    config = config_of(wave_mix_p=1.0, response_p=0.6, response_folder=str(tmp_path))
    mixed, found = batches(root, config_of(wave_mix_p=1.0))[0], batches(root, config)[0]
    responses = load_responses(tmp_path, 16000, "sinc_interp_kaiser")
    once = ImpulseResponse(1.0, devices=None, centred=True)
    wet = once.apply(mixed["waveform"], torch.zeros(9, dtype=torch.int64), responses)
    changed = [row for row in range(9) if not torch.equal(found["waveform"][row], mixed["waveform"][row])]
    assert 0 < len(changed) < 9
    torch.testing.assert_close(found["waveform"][changed], wet[changed], atol=1e-3, rtol=0)
    assert torch.equal(found["targets"], mixed["targets"])


def test_response_folder_may_lie_in_the_data_folder(root):
    write_clip(root / "resources/dirs/room.wav", 0.5, 0.1, 1000, np.random.default_rng(1))
    sets, config = opened(root, config_of(response_p=1.0, response_folder="resources/dirs"))
    assert len(TrainingBatches(sets, config, seed=0).responses) == 1


def test_draws_of_a_set_do_not_hang_on_the_other_sets(root):
    """Generators are keyed by (seed, epoch, batch, set)."""
    both = batches(root, config_of({"strong": 2, "synth": 2}, wave_mix_p=0.8))[0]
    alone = batches(root, config_of({"synth": 2}, wave_mix_p=0.8))[0]
    assert torch.equal(both["waveform"][2:], alone["waveform"])
    states = {generator(0, CLIPS, e, b, s).integers(2**62) for e in range(3) for b in range(3) for s in range(5)}
    assert len(states) == 45


# ---------------------------------------------------------------- pseudo-labels


def predict(root, folder, sets, without=()):
    """Write pseudo-labels whose logit is the number of the clip in its set."""
    for joined in sets.sets.values():
        for part in joined.parts:
            names = [name for name in part.manifest.clips.filename if name not in without]
            logits = np.tile(np.arange(len(names), dtype=np.float32)[:, None, None], (1, 156, 27))
            write_predictions(folder / f"{part.manifest.info.name}.hdf5", names, [logits], {})
    return folder


def test_pseudo_labels_follow_their_clips_by_name(root, tmp_path):
    folder = predict(root, tmp_path, opened(root)[0])
    plain, mixed = (batches(root, config_of(wave_mix_p=p), pseudo_labels=folder)[0] for p in (0.0, 1.0))
    assert plain["pseudo"].shape == mixed["pseudo"].shape == plain["targets"].shape
    numbers = [round(1000 * level) % 100 for level in levels(plain["waveform"])][3:]
    expected = torch.tensor(numbers, dtype=torch.float32).sigmoid()
    torch.testing.assert_close(plain["pseudo"][3:, 0, 0], expected)
    assert not torch.equal(mixed["pseudo"][:7], plain["pseudo"][:7]), "mixed like the labels"
    assert torch.equal(mixed["pseudo"][7:], plain["pseudo"][7:]), "weak and unlabeled clips are not"


def test_missing_pseudo_labels_are_named(root, tmp_path):
    sets, _ = opened(root)
    folder = predict(root, tmp_path, sets, without=("strong3.wav", "strong4.wav"))
    with pytest.raises(DataError, match=r"lacks .* clips \(strong3"):
        open_training_sets(root, config_of().data, root / "cache", folder)
    (folder / "unlabeled_train.hdf5").unlink()
    with pytest.raises(DataError, match="no pseudo-labels of unlabeled_train"):
        open_training_sets(root, config_of({"unlabeled": 1}).data, root / "cache", folder)


# ---------------------------------------------------------------- hold-out


def test_hold_out_batches_name_set_and_place(root):
    sets, config = opened(root)
    assert list(sets.hold_out) == ["maestro", "synth"]
    assert sets.absent == [f"external_strong_{part}: not there, left out." for part in ("train", "eval")]
    found = list(hold_out_loader(sets, config))
    names = [name for batch in found for name in batch["set"]]
    items = torch.cat([batch["item"] for batch in found]).tolist()
    assert names == ["maestro"] * 3 + ["synth"] * 6 and items == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    waveform = torch.cat([batch["waveform"] for batch in found])
    manifest = sets.hold_out["synth"].manifest
    assert [f"val{round(1000 * level) % 100}.wav" for level in levels(waveform)[3:]] == list(manifest.clips.filename)
    targets, mask = (torch.cat([batch[key] for batch in found]) for key in ("targets", "class_mask"))
    assert targets.shape == (9, 27, 156) and targets[3:].any(dim=2).sum() == 6
    assert (mask[:3] == torch.from_numpy(class_mask("maestro", "validation"))).all()
    assert (mask[3:] == torch.from_numpy(class_mask("desed", "validation"))).all()


def test_processes_share_hold_out_clips_once(root):
    sets, config = opened(root)
    config.data.batch = {"strong": 2}
    shares = [[(name, int(item)) for batch in hold_out_loader(sets, config, rank, 2)
               for name, item in zip(batch["set"], batch["item"])] for rank in (0, 1)]  # fmt: skip
    assert len(shares[0]) + len(shares[1]) == 9 and not set(shares[0]) & set(shares[1])


def test_long_hold_out_clips_always_give_the_same_part(tmp_path):
    root = write_sets(tmp_path)
    write_clip(root / "audio/validation/synthetic21_validation/soundscapes_16k/val0.wav", 0.5, 14.0, 300,
               np.random.default_rng(0))  # fmt: skip
    parts = {}
    for crop in (True, False):
        sets, config = opened(root, config_of({"synth": 1}, crop_validation=crop, validation={"synth": "synth_val"}))
        first, again = (next(iter(hold_out_loader(sets, config)))["waveform"][0] for _ in range(2))
        assert torch.equal(first, again)
        parts[crop] = first
    assert abs(float(parts[False][0, 0]) - 0.5) < 1e-3 and not torch.equal(parts[True], parts[False])


def test_nothing_to_look_at(root):
    sets, config = opened(root, config_of(validation={}))
    assert hold_out_loader(sets, config) is None and sets.hold_out == {}


# ---------------------------------------------------------------- what is refused


def test_refusals_are_sentences(root, tmp_path):
    with pytest.raises(DataError, match="no such data folder; give the one"):
        opened(tmp_path / "nowhere", config_of())
    with pytest.raises(DataError, match=r"data.batch.synth is 9, but synth_train have only 6 clips; lower it \(0"):
        opened(root, config_of({"synth": 9}))
    with pytest.raises(DataError, match="eval_public|no such table"):
        opened(root, config_of({"strong": 1}, sets={"strong": ["devtest"]}))
    with pytest.raises(DataError, match="data.batch.strong is 1, but external_strong_train have only 0 clips"):
        opened(root, config_of({"strong": 1}, sets={"strong": ["external_strong_train"]}))
    with pytest.raises(DataError, match="external_audioset_strong_train.tsv: no such table"):
        opened(root, config_of({"strong": 1}, optional_sets=[]))


def test_a_set_of_which_no_clip_can_be_read(tmp_path):
    root = write_sets(tmp_path)
    for path in (root / "audio/train/weak_16k").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 5 clips of weak_train can be used; the first: .*is empty"):
        opened(root, config_of({"weak": 1}))


def test_joined_sets_are_read_as_one(root):
    config = config_of({"strong": 10}, sets={"strong": ["strong_train", "synth_train"]})
    (batch,) = batches(root, config)
    assert {set_of(level) for level in levels(batch["waveform"])} == {"strong", "synth"}
    for level, target in zip(levels(batch["waveform"]), batch["targets"], strict=True):
        label = ("Dog", "Cat", "Speech")[round(level * 1000) % 100 % 3]
        assert target[sound_classes().names.index(label)].any()


def test_few_clips_for_a_smoke_test(root):
    sets, _ = opened(root, config_of(max_clips=3))
    assert {name: len(joined) for name, joined in sets.sets.items()} == dict.fromkeys(SETS, 3)
