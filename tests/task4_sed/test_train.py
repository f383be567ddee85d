"""The training command on tiny data: kill -9 and resume, processes, what a stage starts from, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.nn.weights import WeightsError
from common.training.energy import measured_energy
from common.training.runs import trained_on
from task4_sed import train as command
from task4_sed.batching import open_training_sets
from task4_sed.config import load_config
from task4_sed.mean_teacher import MeanTeacher
from task4_sed.model import build_network
from task4_sed.models.fusion import build_fusion
from task4_sed.predictions import write_predictions
from task4_sed.weights import load_encoder, read_weights, save_weights, start_student
from tests.task4_sed.tiny_sets import write_sets

REPOSITORY = Path(__file__).parents[2]
NETWORK = "build_fusion('fmn04', width=0.0625, hidden=8, dropout={})"
SMALL = (f"--network={NETWORK.format(0.1)}", "--data.exclude_overlap=false", "--optim.warmup_steps=1",
         "--train.validate_every=1")  # fmt: skip
PATIENCE_S = 900  # the machine may be busy
SEQUENCE = {"sequence": "tf", "sequence_dim": 32}
BATCH = ("--data.batch.maestro=3", "--data.batch.strong=2", "--data.batch.synth=1")


@pytest.fixture(scope="module", autouse=True)
def one_thread_here():
    """As the processes that are started: sums of several threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


def words(stage: str, root: Path, run: Path, *more: str) -> list[str]:
    where = ["--data", str(root), "--cache", str(root / "cache"), "--run", str(run), "--device", "cpu"]
    return ["--config", f"builtin/{stage}", *where, "--energy", "off", *SMALL, *more]


def train(stage: str, root: Path, run: Path, *more: str) -> Path:
    """Train in this process."""
    command.main(words(stage, root, run, *more))
    return run


def subprocess_words(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "task4_sed.train", *arguments]


def run_to_end(arguments: list[str]) -> None:
    given = {"capture_output": True, "text": True, "timeout": PATIENCE_S, "env": one_thread()}
    done = subprocess.run(subprocess_words(arguments), cwd=REPOSITORY, **given)
    assert done.returncode == 0, done.stdout + done.stderr


def one_thread() -> dict:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def kill_when(arguments: list[str], reached: Path, times: int = 1) -> None:
    """Start the command and kill -9 it once `reached` has been written `times` times."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(subprocess_words(arguments), cwd=REPOSITORY, env=one_thread(), **quiet)
    seen, deadline = set(), time.monotonic() + PATIENCE_S
    while len(seen) < times:
        assert process.poll() is None, f"the command ended before {reached} was written {times} times"
        assert time.monotonic() < deadline
        if reached.is_file():
            seen.add(reached.stat().st_mtime_ns)
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def log_of(run: Path) -> dict:
    return json.loads((run / "train.json").read_text())


def assert_same(first: Path, second: Path, tolerance: float = 0.0) -> None:
    for name, state in read_weights(first).items():
        other = read_weights(second)[name]
        assert state.keys() == other.keys()
        for key in state:
            torch.testing.assert_close(
                state[key], other[key], atol=tolerance, rtol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
            )


@pytest.fixture(scope="module")
def pretrained(root, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pretrain"
    return train("pretrain", root, run, "--train.epochs=1", *BATCH[1:])


@pytest.fixture(scope="module")
def first_stage(root, pretrained) -> Path:
    run = pretrained.with_name("it1_stage1")
    return train("it1_stage1", root, run, "--init", str(pretrained), "--train.epochs=3", *BATCH)


# ---------------------------------------------------------------- kill and resume


def test_killed_and_started_again_ends_with_the_same_weights_bit_for_bit(
    root, pretrained, first_stage, tmp_path, capsys
):
    arguments = words("it1_stage1", root, tmp_path, "--init", str(pretrained), "--train.epochs=3", *BATCH)
    kill_when(arguments, tmp_path / "last.ckpt", times=2)
    assert not (tmp_path / "weights.pt").exists()
    command.main(arguments)
    assert "going on from" in capsys.readouterr().out
    assert_same(first_stage, tmp_path)
    one, other = log_of(first_stage), log_of(tmp_path)
    assert one["history"] == other["history"] and [row["epoch"] for row in one["history"]] == [1, 2, 3]
    assert one["best_epoch"] == other["best_epoch"]
    assert not one["training"]["resumed"] and other["training"]["resumed"]
    assert not list(tmp_path.glob("*.ckpt")), "a finished run needs no checkpoint"


@pytest.mark.slow
def test_two_processes_give_what_one_gives(root, first_stage, tmp_path):
    """Everything trains, BatchNorms too, with all augmentations; nine clips a batch are an uneven share.

    In double precision: AdamW turns what float32 rounds off into whole steps.
    """
    more = ("--init", str(first_stage), "--train.epochs=1", "--train.precision=64-true", *BATCH,
            f"--network={NETWORK.format(0.0)}", "--data.batch.weak=2")  # fmt: skip
    run_to_end(words("it1_stage2", root, tmp_path / "one", *more))
    run_to_end(words("it1_stage2", root, tmp_path / "two", *more, "--devices", "2"))
    assert_same(tmp_path / "one", tmp_path / "two", tolerance=1e-7)
    (one,), (two,) = (log_of(tmp_path / run)["history"] for run in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-6)


# ---------------------------------------------------------------- what a stage starts from, what it leaves


def test_stage_one_takes_the_encoder_of_its_base_and_leaves_it(pretrained, first_stage):
    base, own = read_weights(pretrained), read_weights(first_stage)
    encoder = [name for name in own["student"] if name.startswith("encoder.")]
    assert encoder and all(torch.equal(base["student"][name], own["student"][name]) for name in encoder)
    assert not any(name.startswith("encoder.") for name in own["teacher"]), "held once"
    crnn = [name for name, value in own["student"].items() if name.startswith("crnn.") and value.is_floating_point()]
    assert not all(torch.equal(base["student"][name], own["student"][name]) for name in crnn)
    assert {"weights.pt", "weights_last.pt", "train.json", "config.yaml", "log"} == {
        path.name for path in first_stage.iterdir()
    }


def test_stage_two_starts_from_student_and_teacher(root, first_stage, tmp_path):
    """With rates of 0 the student stays; the teacher's norms, which are its own, go on from those of its base."""
    still = [f"--rates.{part}=0" for part in ("cnn", "rnn", "encoder")] + ["--optim.weight_decay=0"]
    run = train("it1_stage2", root, tmp_path, "--init", str(first_stage), "--train.epochs=1", *BATCH, *still)
    base, own = read_weights(first_stage), read_weights(run)
    parameters = dict(build_network(NETWORK.format(0.1)).named_parameters())
    for name in parameters:
        assert torch.equal(base["student"][name], own["student"][name]), name
        torch.testing.assert_close(own["teacher"][name], base["student"][name])  # step 0 copies the student
    assert own["teacher"].keys() == own["student"].keys()


def test_log_says_what_was_done(root, pretrained, first_stage):
    log = log_of(first_stage)
    assert log["recipe"].startswith("builtin/it1_stage1+network=") and log["seed"] == 0 and not log["smoke"]
    assert log["base"]["recipe"] == log_of(pretrained)["recipe"] and len(log["base"]["sha256"]) == 64
    assert log["dataset"]["found"]["strong_train"] == 6 and log["dataset"]["found"]["synth_val"] == 6
    assert log["dataset"]["absent"] and log["dataset"]["skipped"] == {} and log["energy"] == {}
    assert log["config"]["train"]["batch_size"] == 8
    row = log["history"][-1]
    assert {"train_loss", "train_maestro", "train_consistency_strong"} <= set(row)
    assert {"holdout_rank", "holdout_psds1_synth"} <= set(row)
    ranks = [row["holdout_rank"] for row in log["history"]]
    assert log["best_epoch"] == 1 + max(range(3), key=lambda i: ranks[i])


def test_iteration_two_learns_from_pseudo_labels(root, pretrained, tmp_path):
    config, _ = load_config("builtin/it2_stage1", [*SMALL, *BATCH])
    sets = open_training_sets(root, config.data, root / "cache")
    for joined in sets.sets.values():
        for part in joined.parts:
            logits = np.full((len(part), 156, 27), -2.0, np.float32)
            write_predictions(tmp_path / f"{part.manifest.info.name}.hdf5", part.manifest.clips.filename, [logits], {})
    more = ("--init", str(pretrained), "--pseudo-labels", str(tmp_path), "--train.epochs=1", *BATCH)
    run = train("it2_stage1", root, tmp_path / "run", *more)
    assert log_of(run)["history"][0]["train_pseudo_desed"] > 0
    logits = np.full((len(sets.sets["weak"].parts[0]), 156, 27), 2.0, np.float32)
    names = sets.sets["weak"].parts[0].manifest.clips.filename
    write_predictions(tmp_path / "weak_train.hdf5", names, [logits], {})
    with pytest.raises(SystemExit, match="holds a run of another config, seed, initial weights or data"):
        train("it2_stage1", root, tmp_path / "run", *more)


def test_a_finished_run_is_not_trained_again_unless_forced(root, pretrained, tmp_path, capsys):
    more = ("--train.epochs=1", *BATCH[1:])
    before = (pretrained / "weights.pt").stat().st_mtime_ns
    train("pretrain", root, pretrained, *more)
    assert "trained before" in capsys.readouterr().out and (pretrained / "weights.pt").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="--force to start over"):
        train("pretrain", root, pretrained, *more, "--seed", "1")
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").write_text("stays")
    (run / "weights.pt").write_text("old")
    train("pretrain", root, run, *more, "--force")
    assert_same(pretrained, run)
    assert (run / "mine.txt").read_text() == "stays"


def test_smoke_runs_any_config(root, tmp_path, monkeypatch):
    """The published recipe with its impulse responses, mixed precision and downloads; the network made small."""
    arguments = words("it2_stage2", root, tmp_path, "--smoke")
    arguments[1] = "dcase2024/it2_stage2_beats"
    monkeypatch.setattr(command, "read_base", lambda *_: {"recipe": "x", "smoke": False, "sha256": ""})
    student = build_network(NETWORK.format(0.1))
    teacher = {name: value for name, value in student.state_dict().items() if name.startswith("crnn.")}
    monkeypatch.setattr(command, "read_weights", lambda _: {"student": student.state_dict(), "teacher": teacher})
    command.main([*arguments, "--init", str(tmp_path), "--data.max_clips=1", "--optim.warmup_steps=0"])
    log = log_of(tmp_path)
    assert log["smoke"] and log["dataset"]["found"]["weak_train"] == 1 and len(log["history"]) == 1


# ---------------------------------------------------------------- what is refused


def refusal(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code


def test_refusals_are_sentences(root, pretrained, tmp_path):
    def said(stage, *more, data=root):
        return refusal(words(stage, data, tmp_path / "run", *more))

    init = ("--init", str(pretrained))
    assert "so --init is needed: a run of builtin/pretrain" in said("it1_stage1")
    assert "has no `base`, so --init is not used" in said("pretrain", *init)
    assert "so --pseudo-labels is needed: a folder of predictions, of builtin/it1_stage2" in said("it2_stage1", *init)
    assert "--pseudo-labels is not used" in said("it1_stage1", *init, "--pseudo-labels", str(tmp_path))
    wrong = said("it1_stage2", *init)
    assert "a run of builtin/pretrain" in wrong and "this config starts from builtin/it1_stage1" in wrong
    assert "no run that has ended" in said("it1_stage1", "--init", str(tmp_path))
    assert "no such data folder" in said("pretrain", data=tmp_path / "nowhere")
    assert "no such table" in said("pretrain", data=tmp_path)
    assert "data.batch.strong is 50, but strong_train" in said("pretrain", "--data.batch.strong=50")
    assert "did you mean `optim.warmup_steps`" in said("pretrain", "--optim.warmup_step=3")
    assert "lower it, or raise train.epochs" in said("pretrain", *BATCH[1:], "--optim.warmup_steps=500")
    assert "training needs an encoder with a CRNN" in said("pretrain", "--network=build_encoder('fmn04')")
    another = said("it1_stage1", *init, "--network=build_fusion('fmn06', width=0.1, hidden=8)", *BATCH)
    assert "has another network" in another and "set the same `network` in both configs" in another
    missing = said("pretrain", "--encoder_weights=fmn04_strong", "--weights-folder", str(tmp_path), *BATCH[1:])
    assert "fmn04_strong" in missing and "--download" in missing
    assert not (tmp_path / "run/weights.pt").exists()


def test_another_network_is_no_start_for_stage_two():
    student = build_fusion("fmn04", width=0.0625, hidden=8)
    other = build_fusion("fmn04", width=0.0625, hidden=16).state_dict()
    with pytest.raises(ValueError, match="another network: .* entries differ, such as crnn"):
        start_student(student, {"student": other}, encoder_alone=False)
    start_student(student, {"student": other}, encoder_alone=True)  # the encoders are alike
    assert torch.equal(student.state_dict()["encoder.network.features.0.0.weight"],
                       other["encoder.network.features.0.0.weight"])  # fmt: skip


def test_stage_two_trains_with_the_rates_that_the_published_encoder_brought(tmp_path):
    sizes = {"dim": 16, "patch_dim": 8, "depth": 2, "n_heads": 2, "ffn_dim": 8, "conv_taps": 4, "conv_groups": 2}
    first, second = (build_fusion("beats", width=0.0625, hidden=8, **sizes) for _ in range(2))
    brought = {"dropout": 0.05, "attention_dropout": 0.3, "dropout_input": 0.2, "encoder_layerdrop": 0.0}
    first.encoder.network.use_settings(brought)
    save_weights(tmp_path / "weights.pt", first, MeanTeacher(first, 0.999))
    start_student(second, read_weights(tmp_path), encoder_alone=False)
    settings = second.encoder.network.settings()
    assert settings == pytest.approx(brought | {"activation_dropout": settings["activation_dropout"]})
    assert second.encoder.network.encoder.layers[1].self_attn.dropout == pytest.approx(0.3)


# ---------------------------------------------------------------- published encoders


def published_file(path: Path, sequence: bool) -> tuple[Path, dict]:
    """Write weights named as EfficientSED names them: an encoder, heads, and a sequence model or none."""
    torch.manual_seed(1)
    student = build_fusion("fmn04", width=0.0625, hidden=8, **(SEQUENCE if sequence else {}))
    state = {f"net.model.{name}": value for name, value in student.encoder.network.state_dict().items()}
    if sequence:
        state |= {f"net.seq_model.{name}": value for name, value in student.encoder.sequence.state_dict().items()}
    state |= {"net.strong_head.weight": torch.zeros(447, 3), "net.strong_head.bias": torch.zeros(447)}
    torch.save(state, path)
    return path, student.encoder.state_dict()


@pytest.mark.parametrize("sequence", [False, True])
def test_published_weights_fill_encoder_and_sequence_model(tmp_path, sequence):
    path, expected = published_file(tmp_path / "fmn04_strong.pt", sequence)
    torch.manual_seed(2)
    student = build_fusion("fmn04", width=0.0625, hidden=8, **(SEQUENCE if sequence else {}))
    crnn = {name: value.clone() for name, value in student.crnn.state_dict().items()}
    load_encoder(student, path)
    for name, value in student.encoder.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert all(torch.equal(value, crnn[name]) for name, value in student.crnn.state_dict().items())


def test_weights_without_the_sequence_model_are_refused(tmp_path):
    path, _ = published_file(tmp_path / "fmn04_strong.pt", sequence=False)
    student = build_fusion("fmn04", width=0.0625, hidden=8, **SEQUENCE)
    with pytest.raises(WeightsError, match=r"lacks .* entries of the encoder fmn04\+tf-32, such as encoder.sequence"):
        load_encoder(student, path)


@pytest.mark.parametrize("momentum, expected", [(0.3, {0.3}), (0, {0.01, 0.99})])
def test_norm_momentum_is_of_encoder_and_crnn_or_each_keeps_its_own(momentum, expected):
    config, _ = load_config("builtin/pretrain", [*SMALL, f"--norm_momentum={momentum}"])
    student = command.build_student(config, 0, None)
    assert {m.momentum for m in student.modules() if isinstance(m, nn.BatchNorm2d)} == expected


# ---------------------------------------------------------------- energy


def test_energy_is_measured_and_never_in_the_way(monkeypatch):
    with measured_energy("AUT") as energy:
        sum(i * i for i in range(10**6))
    assert energy["energy_kwh"] > 0 and energy["country"] == "AUT" and energy["duration_s"] > 0
    with measured_energy("off") as energy:
        pass
    assert energy == {}
    monkeypatch.setitem(sys.modules, "codecarbon", None)  # not installed
    with measured_energy("AUT") as energy:
        pass
    assert energy == {}
    with pytest.raises(KeyError), measured_energy("off"):
        raise KeyError("of the work itself")


# ---------------------------------------------------------------- what a run stands on


def test_what_was_missing_below_a_run_is_said_of_the_run_too():
    card = {"name": "DESED", "differences": ["synth_train: 3 files missing in training"]}
    same = {"training": {"dataset": "DESED", "differences": ["synth_train: 3 files missing in training"]}}
    other = {"training": {"dataset": "little scenes", "differences": ["weak_train: 1 files missing in training"]}}
    said = command.shortfalls_below(card, [same, other, {}])
    assert said == ["stands on a training on little scenes", "weak_train: 1 files missing in training"]


def test_a_log_says_what_was_missing():
    log = {"dataset": {"name": "DESED", "missing": {"weak": 2, "synth": 0}, "skipped": {"a": "b"}, "absent": ["c"]}}
    assert trained_on(log) == {
        "dataset": "DESED",
        "differences": ["weak: 2 files missing in training", "1 clips skipped in training", "c"],
    }
    assert trained_on({}) == {"dataset": None, "differences": []}
