"""Training through `fit`: the teacher's place in a step, resuming, several processes, full-size networks."""

import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from common.training.loop import best_weights
from common.training.module import OptimConfig
from task4_sed.config import RatesConfig
from task4_sed.models.fusion import build_fusion
from task4_sed.system import SedSystem
from tests.parity.sed_crnn import load_filled
from tests.parity.vectors import Vector
from tests.task4_sed.tiny_recipe import plain_losses, tiny_batch, tiny_config, train_tiny, train_with_everything

REPOSITORY = Path(__file__).parents[2]


def history(run: Path) -> list[dict]:
    return json.loads((run / "history.json").read_text())


def largest_difference(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_teacher_moves_between_forward_pass_and_step(tmp_path, monkeypatch, accumulate):
    """It follows the students from before each step; so the last step is not in it, and the first forward pass sees
    what the teacher was before (a copy of the student)."""
    seen, decay = [], 0.6
    update = SedSystem.before_zero_grad

    def spy(system, step):
        seen.append((step, system.student.crnn.strong_head.bias.detach().clone()))
        update(system, step)

    monkeypatch.setattr(SedSystem, "before_zero_grad", spy)
    system = train_tiny(tmp_path, "frozen", epochs=4, accumulate=accumulate, ema_decay=decay)
    n_steps = 8 // accumulate
    assert [step for step, _ in seen] == list(range(n_steps)) and system.step == n_steps - 1
    expected = torch.zeros(27)
    for step, student in seen:
        alpha = min(1 - 1 / (step + 1), decay)
        expected = alpha * expected + (1 - alpha) * student
    torch.testing.assert_close(system.teacher.crnn.strong_head.bias.detach(), expected)
    assert not torch.equal(system.student.crnn.strong_head.bias, seen[-1][1])


@pytest.mark.parametrize("stage", ["frozen", "full"])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, monkeypatch, stage):
    """Stopped in the third epoch, with dropout: same weights of both networks, history and best epoch, bit for bit."""
    settings = {"epochs": 4, "dropout": 0.3}
    train_tiny(tmp_path / "whole", stage, **settings)
    step = SedSystem.training_losses

    def stops(system, batch, rng):
        if system.step == 5:
            raise RuntimeError("stopped")
        return step(system, batch, rng)

    monkeypatch.setattr(SedSystem, "training_losses", stops)
    with pytest.raises(RuntimeError, match="stopped"):
        train_tiny(tmp_path / "stopped", stage, **settings)
    monkeypatch.setattr(SedSystem, "training_losses", step)
    assert not (tmp_path / "stopped/weights.pt").exists()
    train_tiny(tmp_path / "stopped", stage, **settings)
    whole, resumed = (torch.load(tmp_path / run / "weights.pt") for run in ("whole", "stopped"))
    assert largest_difference(whole, resumed) == 0
    assert history(tmp_path / "whole") == history(tmp_path / "stopped")
    assert [row["epoch"] for row in history(tmp_path / "stopped")] == [1, 2, 3, 4]
    best = [best_weights(tmp_path / run) for run in ("whole", "stopped")]
    assert largest_difference(*best) == 0


def test_the_best_epoch_is_kept(tmp_path, monkeypatch):
    ranks, kept = iter((0.7, 0.2)), []

    def metrics(system):
        kept.append(deepcopy(system.state_dict()))
        return {"rank": next(ranks)}

    monkeypatch.setattr(SedSystem, "validation_metrics", metrics)
    system = train_tiny(tmp_path, "frozen", epochs=4)
    best = best_weights(tmp_path)
    assert largest_difference(best, kept[0]) == 0 < largest_difference(best, system.state_dict())
    assert [row.get("holdout_rank") for row in history(tmp_path)] == [None, 0.7, None, 0.2]
    assert best_weights(tmp_path / "nothing") is None


def test_training_that_diverges_stops_with_a_sentence(tmp_path):
    with pytest.raises(FloatingPointError, match="epoch 1: the loss is not finite; lower optim.lr"):
        train_tiny(tmp_path, "frozen", epochs=2, lr=1e36)
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("stage", ["frozen", "full"])
def test_two_processes_give_what_one_gives(tmp_path, stage):
    """Losses, weights of both networks, running statistics and hold-out scores after four steps in double precision.

    Sets have odd numbers of clips, whose partners in the mix are in the other process.
    """
    command = [sys.executable, "-m", "tests.task4_sed.tiny_recipe", str(tmp_path / "two"), "--stage", stage]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--devices", "2"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    train_with_everything(tmp_path / "one", stage)
    one, two = (torch.load(tmp_path / run / "weights.pt") for run in ("one", "two"))
    assert largest_difference(one, two) < 1e-7
    for row, other in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert row == pytest.approx(other, abs=1e-6)
    assert "holdout_rank" in row and row["train_loss"] > 0.1


# ---------------------------------------------------------------- full size

CLIPS = {"maestro": 1, "strong": 1, "synth": 1, "weak": 2, "unlabeled": 1}
EVERYTHING = {"mixstyle_p": 1.0, "filter_p": 1.0, "time_mask": True}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["frozen", "full"])
@pytest.mark.parametrize("encoder, embed_pool", [("atst_frame", "aap"), ("fpasst", "int"), ("beats", "int")])
def test_full_size_step(shared, encoder, embed_pool, stage):
    """Published layout filled by the parity rule, all augmentations on frozen draws, dropout as published: each term is
    that of two whole networks, and a step of the optimiser trains what it should."""
    student = load_filled(
        build_fusion(encoder, embed_pool=embed_pool, dropout=0.3 if stage == "frozen" else 0.5),
        Vector(shared / "parity/sed", f"task4_{encoder}"),
        "student",
        "cpjku_dcase24",
    )
    more = {"warp_p": 1.0, "encoder_filter": True, "edge_jitter": True} if stage == "full" else {}
    rates = RatesConfig(cnn=1e-5, rnn=1e-4, encoder=1e-4, encoder_decay=0.5)
    config = tiny_config(stage, augment=EVERYTHING | more, rates=rates)
    config.data.batch = CLIPS
    system = SedSystem(student, config)
    system.step = 4
    with torch.no_grad():
        for own in system.mean_teacher._own:
            own.mul_(1.01)
    batch = tiny_batch(n_samples=160000, sizes=CLIPS)
    seen = system.features(batch, np.random.default_rng(0))
    draws = system.views.draw(CLIPS, seen, np.random.default_rng(1))
    lam, perm = draws.mix
    weak = (batch["targets"].sum(-1) > 0).float()
    weak_labels = (lam[:, None] * weak + (1 - lam[:, None]) * weak[perm])[3:5]
    copies = deepcopy(system.student), deepcopy(system.teacher)
    with torch.no_grad():
        views = system.views.apply(seen, draws)
        torch.manual_seed(0)
        expected = plain_losses(*copies, views, weak_labels, draws.mix, config, system.step, CLIPS)
    del copies
    torch.manual_seed(0)
    found = system.losses(batch, seen, draws)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert value.isfinite()
    assert found["self_supervised"] > 0

    frozen = ("encoder.", "projection.") if stage == "frozen" else ("projection.", "encoder.network.mask_embed")
    before = {name: parameter.detach().clone() for name, parameter in system.student.named_parameters()}
    optimiser = torch.optim.AdamW(system.parameter_groups(OptimConfig()), lr=1e-3, weight_decay=1e-3)
    found["loss"].backward()
    optimiser.step()
    for name, parameter in system.student.named_parameters():
        if name.startswith(frozen):
            assert parameter.grad is None and torch.equal(parameter, before[name]), name
        elif parameter.grad is None:
            assert system.skips_layers and name.startswith("encoder.network.encoder.layers."), name
        else:
            assert parameter.grad.isfinite().all() and parameter.isfinite().all(), name
    assert not torch.equal(system.student.crnn.strong_head.bias, before["crnn.strong_head.bias"])
