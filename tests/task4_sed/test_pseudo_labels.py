"""Predicting goes on after a kill, in shards, and gives the same file; runs and commands."""

import argparse
import json

import numpy as np
import pytest
import torch
import yaml

from common.files import write_json
from task4_sed import pseudo_labels
from task4_sed.batching import open_set
from task4_sed.clip_audio import open_audio
from task4_sed.config import DataConfig
from task4_sed.data import load_set
from task4_sed.model import build_network
from task4_sed.predictions import Blocks, PredictionFile, open_pseudo_labels
from task4_sed.pseudo_labels import Settings, Source, first_samples, predict_set, with_earlier
from task4_sed.weights import WEIGHTS
from tests.task4_sed.conftest import write_audio, write_table
from tests.task4_sed.test_predictions import write_file

NETWORK = "build_fusion('fmn04', hidden=4, width=0.1, projection='none')"


# ---- predicting ----


class Loudness(torch.nn.Module):
    """A detector whose logits tell the loudness of each frame, and the class."""

    sample_rate, clip_s, has_crnn = 16000, 10.0, True

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls, self.fail_after = 0, None

    def forward(self, waveform):
        self.calls += 1
        if self.fail_after is not None and self.calls > self.fail_after:
            raise KeyboardInterrupt
        frames = waveform[:, 0, : 156 * 1024].reshape(len(waveform), 156, 1024).abs().mean(-1)
        return {"strong_logits": self.scale * frames[..., None] * torch.arange(1.0, 28)}


@pytest.fixture
def unlabeled(tmp_path):
    """A manifest of eight clips, one of them broken, one too long, and their audio."""
    folder = tmp_path / "data/audio/train/unlabel_in_domain_16k"
    for number in range(7):
        write_audio(folder / f"u{number}.wav", 12.0 if number == 3 else 0.5 + number, seed=number)
    (folder / "u7.wav").write_bytes(b"no audio")
    manifest = load_set(tmp_path / "data", "unlabeled_train", exclude_overlap=False)
    return manifest, open_audio(manifest, tmp_path / "cache")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(Blocks.__init__, "__defaults__", (2,))


def predicted(unlabeled, out, detector=None, **settings):
    source = Source(detector or Loudness(), {"recipe": "x", "seed": 0, "weights": {"sha256": "ab"}})
    predict_set(source, *unlabeled, out, Settings(**{"batch_size": 2} | settings))
    path = out / "unlabeled_train.hdf5"
    return PredictionFile(path) if path.is_file() else None


def test_every_usable_clip_is_predicted_whatever_the_batches(unlabeled, tmp_path, capsys):
    found = predicted(unlabeled, tmp_path / "a")
    said = capsys.readouterr().out
    assert found.filenames == [f"u{n}" for n in range(7)] and found.about["left_out"] == 1
    assert "left out" in said and "1 clips are longer than 10 s; their beginning is used" in said
    waveform = torch.from_numpy(unlabeled[1].read([2], 160000))[:, None]
    expected = Loudness()(waveform)["strong_logits"].detach().numpy()
    np.testing.assert_allclose(found.logits(["u2"]), expected, rtol=1e-6)
    assert (found.logits(["u0"])[0, 10:] == 0).all() and (found.logits(["u0"])[0, :7] > 0).all()  # 0.5 s, then silence
    np.testing.assert_array_equal(predicted(unlabeled, tmp_path / "b", batch_size=5).logits(), found.logits())
    assert found.about["manifest_sha256"] == unlabeled[0].sha256() and found.about["recipe"] == "x"


def test_a_kill_costs_a_block_and_changes_nothing(unlabeled, tmp_path, capsys):
    whole, detector = predicted(unlabeled, tmp_path / "a"), Loudness()
    detector.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        predicted(unlabeled, tmp_path / "b", detector)
    again = Loudness()
    found = predicted(unlabeled, tmp_path / "b", again)
    assert again.calls == 2  # of four blocks two were there
    np.testing.assert_array_equal(found.logits(), whole.logits())
    predicted(unlabeled, tmp_path / "b", again)
    assert again.calls == 2 and "done before (7 clips)" in capsys.readouterr().out


def test_two_shards_give_what_one_process_gives(unlabeled, tmp_path):
    whole = predicted(unlabeled, tmp_path / "a")
    assert predicted(unlabeled, tmp_path / "b", shard=(1, 2)) is None
    np.testing.assert_array_equal(predicted(unlabeled, tmp_path / "b", shard=(0, 2)).logits(), whole.logits())


def test_force_predicts_again_and_energy_counts_what_was_predicted(unlabeled, tmp_path):
    source = Source(Loudness(), {"recipe": "x", "seed": 0, "weights": {"sha256": "ab"}})
    counts = [predict_set(source, *unlabeled, tmp_path, Settings(force=force)) for force in (False, False, True)]
    assert counts == [7, 0, 7]
    first = with_earlier(tmp_path / "energy.json", {"energy_kwh": 2.0, "country": "AUT"}, ["a"])
    write_json(tmp_path / "energy.json", first)
    assert with_earlier(tmp_path / "energy.json", {"energy_kwh": 1.0, "country": "AUT"}, ["b"]) == {
        "energy_kwh": 3.0, "country": "AUT", "sets": ["a", "b"]}  # fmt: skip
    assert with_earlier(tmp_path / "energy.json", {"energy_kwh": 1.0}, ["a"]) == {"energy_kwh": 1.0, "sets": ["a"]}


def test_a_part_of_a_long_clip_may_be_drawn_always_the_same(unlabeled):
    manifest, audio = unlabeled
    items, names = np.arange(7), list(manifest.clips.filename[:7])
    draws = [first_samples(audio, items, names, Loudness(), "random")[0] for _ in range(2)]
    np.testing.assert_array_equal(*draws)
    assert 0 < draws[0][3] <= 2 * 16000 and not np.delete(draws[0], 3).any()
    assert first_samples(audio, items, names, Loudness(), "beginning")[0].tolist() == [0] * 7


@pytest.mark.parametrize(
    "wrong", [{"precision": "8"}, {"long_clips": "end"}, {"shard": (2, 2)}, {"shard": (0, 0)}, {"batch_size": 0}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values()))).strip("()").replace(", ", "/")):
        Settings(**wrong)


# ---- runs ----


@pytest.fixture
def run(tmp_path):
    """A run folder as training leaves it, of a small network."""
    torch.manual_seed(0)
    student = build_network(NETWORK).state_dict()
    teacher = {name: value * 0.5 for name, value in student.items() if not name.startswith("encoder.")}
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"student": student, "teacher": teacher}, folder / WEIGHTS)
    config = {"network": NETWORK, "data": {"dtype": "float32", "max_clips": 0}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config, "run": {}}))
    card = {"name": "x", "missing": {"weak_train": 3}, "differences": ["less"], "absent": [], "skipped": {}}
    (folder / "train.json").write_text(json.dumps({"recipe": "it1", "seed": 5, "dataset": card}))
    return folder


def test_a_run_is_opened_as_student_or_teacher(run):
    student, teacher = (pseudo_labels.open_run(run, which) for which in ("student", "teacher"))
    assert (student.about["recipe"], student.about["seed"], student.about["weights"]["given"]) == ("it1", 5, False)
    assert student.about["training"] == {
        "dataset": "x",
        "differences": ["weak_train: 3 files missing in training", "less"],
    }
    assert student.about["complexity"]["parameters"] > 1e5 and student.about["complexity"]["macs"] > 1e7
    assert not student.detector.training
    first, second = (source.detector.network.state_dict() for source in (student, teacher))
    assert torch.equal(first["encoder.network.features.0.0.weight"], second["encoder.network.features.0.0.weight"])
    torch.testing.assert_close(first["crnn.strong_head.weight"], 2 * second["crnn.strong_head.weight"])
    with pytest.raises(ValueError, match="--inner best: a run has student and teacher"):
        pseudo_labels.open_run(run, "best")


def test_predict_command_takes_the_sets_that_are_there(run, desed, tmp_path, capsys):
    words = ["predict", "--run", str(run), "--data", str(desed), "--cache", str(tmp_path / "c"), "--energy", "off"]
    pseudo_labels.main([*words, "--batch-size", "4", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "synth_train: not predicted." in said
    weak = open_pseudo_labels(run, "weak_train")
    assert len(weak) == 9 and weak.about["recipe"] == "it1" and weak.n_frames == 156
    assert len(open_pseudo_labels(run, "unlabeled_train")) == 4
    with pytest.raises(SystemExit, match="soundscapes.tsv: no such table"):
        pseudo_labels.main([*words, "--sets", "synth_train"])
    with pytest.raises(SystemExit, match="did you mean 'weak_val'|weak"):
        pseudo_labels.main([*words, "--sets", "weak_vall"])


def test_a_run_on_a_part_of_the_clips_predicts_that_part(run, desed, tmp_path):
    config = {"max_clips": 4, "exclude_overlap": False}
    args = argparse.Namespace(data=desed, cache=tmp_path / "cache", hop=None)
    manifest, _ = pseudo_labels.open_clips(args, "weak_train", config)
    trained = open_set(desed, "weak_train", DataConfig(**config), tmp_path / "cache")
    assert list(trained.manifest.clips.filename) == list(manifest.clips.filename) and len(manifest) == 4


def test_a_part_of_maestro_is_scored_recording_by_recording(tmp_path):
    rows = []
    for recording, n_crops in (("cafe_restaurant_00", 3), ("city_center_01", 3), ("city_center_02", 2)):
        for k in range(n_crops):
            name = f"{recording}-{5 * k:04d}00-{5 * k + 10:04d}00.wav"
            write_audio(tmp_path / "audio/maestro_real_validation_16k" / name)
            rows.append((name, 1.0, 2.0, "car", 0.9))
    columns = "filename onset offset event_label confidence"
    write_table(tmp_path / "metadata/maestro_real_validation.tsv", columns, rows)
    args = argparse.Namespace(data=tmp_path, cache=tmp_path / "cache", hop=None)
    manifest, _ = pseudo_labels.open_clips(args, "maestro_real_dev", {"max_clips": 4})
    assert len(manifest) == 6 and set(manifest.clips.filename.str[:-18]) == {"cafe_restaurant_00", "city_center_01"}


def test_no_weights_is_one_sentence(tmp_path):
    words = ["--data", str(tmp_path), "--cache", str(tmp_path)]
    for more, sentence in (
        (["--run", str(tmp_path / "none")], "holds no weights.pt"),
        ([], "give --run RUN, or --weights|--weights without --run"),
        (["--run", str(tmp_path), "--shard", "3"], "expected NUMBER/OF"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            pseudo_labels.main(["predict", *words, *more])


def test_ensemble_command_keeps_members_and_says_what_is_missing(tmp_path, capsys):
    member = {"recipe": "it1", "complexity": {"parameters": 5, "macs": 7}, "smoke": False}
    for number in (0, 1):
        write_file(tmp_path / f"r{number}/predictions/devtest.hdf5", number, seed=number, **member)
    write_file(tmp_path / "r0/predictions/synth_val.hdf5", **member)
    folders, out = [str(tmp_path / "r0"), str(tmp_path / "r1")], ["--out", str(tmp_path / "e"), "--recipe", "all"]
    with pytest.raises(SystemExit, match="r1: no predictions of synth_val"):
        pseudo_labels.main(["ensemble", *folders, *out])
    pseudo_labels.main(["ensemble", *folders, *out, "--sets", "devtest", "--seed", "4"])
    about = PredictionFile(tmp_path / "e/devtest.hdf5").about
    assert (about["recipe"], about["seed"], about["set"]) == ("all", 4, "devtest")
    assert [entry["seed"] for entry in about["members"]] == [0, 1]
    assert about["complexity"] == {"parameters": 10, "macs": 14} and not about["smoke"]
    pseudo_labels.main(["ensemble", *folders, *out, "--sets", "devtest", "--seed", "4"])
    assert "done before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="an ensemble needs two folders"):
        pseudo_labels.main(["ensemble", folders[0], *out])
