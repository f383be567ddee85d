"""The training step against the published one written plainly; gradients, rates, hold-out scores."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from common.config import ConfigError
from common.metrics.scoring_set import scoring_set
from common.metrics.sed import psds
from common.metrics.sed_scores import FrameScores, ground_truth
from common.training.module import OptimConfig
from task4_sed.config import RatesConfig
from task4_sed.labels import FrameGrid, sound_classes
from task4_sed.models.fusion import build_fusion
from task4_sed.system import SedSystem
from task4_sed.validation import HoldOut
from task4_sed.views import ViewDraws
from tests.task4_sed.tiny_recipe import (
    SIZES,
    WEAK,
    hold_out_manifests,
    plain_losses,
    tiny_batch,
    tiny_config,
    tiny_student,
)

EVERYTHING = {"mixstyle_p": 1.0, "filter_p": 1.0, "time_mask": True}
STEP = 4
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


def rng(seed=0):
    return np.random.default_rng(seed)


def moved_system(config, student=None):
    """Return a system whose teacher has moved away from its student."""
    system = SedSystem(tiny_student(dropout=0.3) if student is None else student, config)
    system.step = STEP
    with torch.no_grad():
        for own in system.mean_teacher._own:
            own.mul_(1.1)
    return system


def two_copies(system):
    """Return whole networks of their own that are equal to student and teacher."""
    return deepcopy(system.student), deepcopy(system.teacher)


def assert_same_terms(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}", **CLOSE)
    left = set(found) - set(expected)
    assert left == {"supervised", "self_supervised", "pseudo"}
    torch.testing.assert_close(sum(found[name] for name in left), expected["loss"], **CLOSE)


def mixed_by_hand(x, mix):
    lam, perm = mix
    lam = lam.reshape(-1, *[1] * (x.ndim - 1))
    return lam * x + (1 - lam) * x[perm]


# ---------------------------------------------------------------- the step, term by term


@pytest.mark.parametrize("settings", [{}, {"mask_consistency": False}, {"maestro_weak_consistency": False}])
@pytest.mark.parametrize("stage", ["frozen", "full"])
def test_terms_of_a_mixed_batch_by_hand(stage, settings):
    """Mixup drawn once and frozen; features, labels, masks and weak labels mixed by hand; two whole networks."""
    system = moved_system(tiny_config(stage, settings))
    batch = tiny_batch()
    seen = system.features(batch, rng())
    mix = system.views.draw(SIZES, seen, rng(1)).mix
    student, teacher = two_copies(system)

    clean = deepcopy(seen)
    present = clean.labels.sum(-1) != 0
    mixed = deepcopy(seen)
    fields = {name: mixed_by_hand(getattr(clean, name), mix) for name in ("amplitude", "encoder_mel", "labels")}
    fields["class_mask"] = clean.class_mask | present[mix[1]]
    if clean.pseudo_labels is not None:
        fields["pseudo_labels"] = mixed_by_hand(clean.pseudo_labels, mix)
    for name, value in fields.items():
        object.__setattr__(mixed, name, value)
    weak_labels = mixed_by_hand(present.float(), mix)[WEAK]
    views = (mixed, mixed if stage == "frozen" else clean)

    torch.manual_seed(0)
    found = system.losses(batch, seen, ViewDraws(mix=mix))
    torch.manual_seed(0)
    expected = plain_losses(student, teacher, views, weak_labels, mix, system.config, STEP)
    assert_same_terms(found, expected)
    assert found["self_supervised"] > 0 and ("interpolation" in found) == (stage == "full")


@pytest.mark.parametrize("stage", ["frozen", "full"])
def test_terms_with_all_augmentations(stage):
    """Frozen draws of every augmentation: the views themselves are proven elsewhere."""
    extra = {"warp_p": 1.0, "encoder_filter": True} if stage == "full" else {}
    system = moved_system(tiny_config(stage, augment={**EVERYTHING, **extra}))
    batch = tiny_batch(1)
    seen = system.features(batch, rng())
    draws = system.views.draw(SIZES, seen, rng(1))
    student, teacher = two_copies(system)
    weak_labels = mixed_by_hand((batch["targets"].sum(-1) > 0).float(), draws.mix)[WEAK]
    views = system.views.apply(seen, draws)
    torch.manual_seed(0)
    found = system.losses(batch, seen, draws)
    torch.manual_seed(0)
    assert_same_terms(found, plain_losses(student, teacher, views, weak_labels, draws.mix, system.config, STEP))


def test_stage_2_without_mixup_compares_as_mean_teachers_do():
    system = moved_system(tiny_config("full", augment={"mixup_p": 0.0}))
    batch = tiny_batch()
    seen = system.features(batch, rng())
    student, teacher = two_copies(system)
    weak_labels = (batch["targets"].sum(-1) > 0).float()[WEAK]
    torch.manual_seed(0)
    found = system.training_losses(batch, rng())
    torch.manual_seed(0)
    assert_same_terms(found, plain_losses(student, teacher, (seen, seen), weak_labels, None, system.config, STEP))
    assert "consistency_weak" in found and "interpolation" not in found


def test_weak_labels_are_mixed_softly_after_they_were_taken():
    """Two weak clips, Dog and Cat, mixed 3 : 1. Taken from the mix, both labels would be 1."""
    system = SedSystem(tiny_student(), tiny_config("frozen"))
    labels = torch.zeros(10, 27, 31)
    labels[5, 4, 0] = labels[6, 2, 0] = 1.0
    perm = torch.arange(10)
    perm[[5, 6]] = torch.tensor([6, 5])
    mix = (torch.full((10,), 0.75), perm)
    weak = system._weak_labels(labels, mix)
    assert weak[5].nonzero()[:, 0].tolist() == [2, 4] and weak[5, [2, 4]].tolist() == [0.25, 0.75]
    assert system._weak_labels(labels, None)[5].sum() == 1
    system.config.loss.form = "baseline"
    assert system._weak_labels(labels, mix)[5, [2, 4]].tolist() == [1.0, 1.0]


def test_teacher_is_masked_by_the_classes_of_the_mix():
    """Stage 2: a MAESTRO clip mixed with a DESED one is compared on the classes of both, in both networks."""
    system = moved_system(tiny_config("full"))
    seen = system.features(tiny_batch(), rng())
    seen.class_mask[:] = False
    seen.class_mask[0, 10] = True
    seen.labels[:] = 0.0
    seen.labels[2, 4] = 1.0
    perm = torch.arange(10)
    perm[0] = 2
    views = system.views.apply(seen, ViewDraws(mix=(torch.full((10,), 0.6), perm)))
    student, _, teacher = system._outputs(*views)
    for outputs in (student, teacher):
        assert outputs["weak"][0].nonzero()[:, 0].tolist() == [4, 10]


# ---------------------------------------------------------------- the encoder


def test_frozen_encoder_runs_once_and_gets_no_gradient():
    system = moved_system(tiny_config("frozen", augment=EVERYTHING))
    calls = []
    system.student.encoder.register_forward_hook(lambda module, given, output: calls.append(len(output)))
    before = deepcopy(system.student.encoder.state_dict())
    system.training_losses(tiny_batch(), rng())["loss"].backward()
    assert calls == [10]  # all clips, once
    assert all(p.grad is None for p in system.student.encoder.parameters())
    assert all(p.grad is not None for p in system.student.crnn.parameters())
    assert all(p.grad is None for p in system.teacher.parameters())
    after = system.student.encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_full_stage_trains_everything_and_never_the_teacher():
    system = moved_system(tiny_config("full"))
    calls = []
    for network in (system.student, system.teacher):
        network.encoder.register_forward_hook(lambda module, given, output: calls.append(module.training))
    system.training_losses(tiny_batch(), rng())["loss"].backward()
    assert calls == [True, True]
    assert all(p.grad is not None for p in system.student.parameters())
    assert all(p.grad is None for p in system.teacher.parameters())


@pytest.mark.parametrize("trains", [False, True])
def test_a_projection_is_the_teachers_own_where_it_trains(trains):
    system = moved_system(tiny_config("frozen"), tiny_student(projection=trains))
    system.training_losses(tiny_batch(), rng())["loss"].backward()
    assert (system.student.projection.weight.grad is not None) == trains
    assert (system.teacher.projection is system.student.projection) != trains


def test_teacher_of_unmixed_clips_with_a_frozen_encoder():
    """The two networks see different clips then, so that the encoder runs on both."""
    system = moved_system(tiny_config("frozen", {"form": "stage2", "interpolation": True}, {"teacher": "unmixed"}))
    batch = tiny_batch()
    seen = system.features(batch, rng())
    draws = system.views.draw(SIZES, seen, rng(1))
    student, teacher = two_copies(system)
    weak_labels = mixed_by_hand((batch["targets"].sum(-1) > 0).float(), draws.mix)[WEAK]
    torch.manual_seed(0)
    found = system.losses(batch, seen, draws)
    torch.manual_seed(0)
    views = system.views.apply(seen, draws)
    expected = plain_losses(student, teacher, views, weak_labels, draws.mix, system.config, STEP)
    scale = {name: system.config.loss.scale if name == "loss" else 1.0 for name in expected}
    assert_same_terms(found, {name: scale[name] * value for name, value in expected.items()})


# ---------------------------------------------------------------- settings


def test_rates_fall_with_the_depth():
    rates = RatesConfig(cnn=1e-5, rnn=1e-4, encoder=1e-3, encoder_decay=0.5)
    system = SedSystem(tiny_student(projection=True), tiny_config("full", rates=rates))
    groups = system.parameter_groups(OptimConfig())
    assert [group["lr"] for group in groups] == [1e-5, 1e-4, 1e-3, 5e-4]
    ids = [{id(p) for p in group["params"]} for group in groups]
    student = system.student
    crnn = {id(p) for p in student.crnn.parameters()} | {id(p) for p in student.projection.parameters()}
    cnn = {id(p) for p in student.crnn.cnn.parameters()}
    assert ids[:2] == [cnn, crnn - cnn]
    assert ids[2:] == [{id(p) for p in group} for group in student.encoder.layer_groups()]
    assert sum(map(len, ids)) == len(set().union(*ids)) == sum(p.requires_grad for p in system.parameters())


def test_frozen_stage_has_one_rate_for_all_that_trains():
    system = SedSystem(tiny_student(projection=True), tiny_config("frozen"))
    (group,) = system.parameter_groups(OptimConfig())
    crnn_and_projection = [*system.student.projection.parameters(), *system.student.crnn.parameters()]
    assert {id(p) for p in group["params"]} == {id(p) for p in crnn_and_projection} and "lr" not in group


def test_passt_blocks_have_groups_of_their_own():
    """Blocks 10 and 11 must not fall into the group of block 1, whose name theirs begin with."""
    student = build_fusion("fpasst", hidden=8, width=0.1)
    rates = RatesConfig(encoder=1.0, encoder_decay=0.5)
    groups = SedSystem(student, tiny_config("full", rates=rates)).parameter_groups(OptimConfig())
    rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
    for depth, block in enumerate(student.encoder.network.blocks):
        assert {rate_of[id(p)] for p in block.parameters()} == {0.5 ** (12 - depth)}


def test_interpolation_needs_an_unmixed_teacher():
    with pytest.raises(ConfigError, match="augment.teacher=unmixed"):
        SedSystem(tiny_student(), tiny_config("frozen", {"interpolation": True}))


def test_layers_that_may_be_skipped_are_told():
    assert not SedSystem(tiny_student(), tiny_config("full")).skips_layers
    student = tiny_student()
    student.encoder.network.layerdrop = 0.05
    assert SedSystem(student, tiny_config("full")).skips_layers
    assert not SedSystem(student, tiny_config("frozen")).skips_layers  # evaluation mode: no layer is skipped


def test_mel_edges_are_drawn_only_when_asked():
    batch = tiny_batch()
    for jitter in (False, True):
        system = SedSystem(tiny_student(), tiny_config("frozen", augment={"edge_jitter": jitter}))
        first, second = (system.features(batch, rng(seed)).encoder_mel for seed in (0, 1))
        assert torch.equal(first, second) != jitter


def test_same_draws_same_losses():
    losses = []
    for seed in (0, 0, 1):
        system = moved_system(tiny_config("frozen", augment=EVERYTHING))
        torch.manual_seed(0)
        losses.append(system.training_losses(tiny_batch(), rng(seed))["loss"].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("stage", ["frozen", "full"])
def test_finite_under_bf16(stage):
    system = moved_system(tiny_config(stage, augment=EVERYTHING))
    with torch.autocast("cpu", torch.bfloat16):
        losses = system.training_losses(tiny_batch(), rng())
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    losses["loss"].backward()
    assert all(p.grad.isfinite().all() for p in system.student.parameters() if p.requires_grad)


@pytest.mark.parametrize("sizes", [{"strong": 2}, {"maestro": 2, "weak": 2}, {"synth": 1, "weak": 1, "unlabeled": 2}])
@pytest.mark.parametrize("stage", ["frozen", "full"])
def test_sets_may_be_absent(stage, sizes):
    config = tiny_config(stage)
    config.data.batch = sizes
    system = moved_system(config)
    losses = system.training_losses(tiny_batch(sizes=sizes), rng())
    losses["loss"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is not None for p in system.student.crnn.parameters())
    if "maestro" not in sizes:
        assert losses["maestro"] == 0


# ---------------------------------------------------------------- hold-out


def perfect(manifest):
    return torch.from_numpy(manifest.event_arrays().encode()).transpose(1, 2) * 0.9 + 0.05


def test_perfect_scores_have_the_highest_rank():
    held = HoldOut(hold_out_manifests())
    for name, manifest in held.manifests.items():
        items = list(range(len(manifest)))[::-1]  # in any order
        held.add([name] * len(items), items, perfect(manifest)[items])
    metrics = held.metrics()
    assert metrics == {"psds1_synth": pytest.approx(1.0), "mpauc_maestro": pytest.approx(1.0), "rank": pytest.approx(2)}


def test_hold_out_forgets_and_says_what_it_cannot_score(capsys):
    held = HoldOut(hold_out_manifests())
    manifest = held.manifests["synth"]
    for _ in range(2):  # the second epoch neither remembers the first nor says it again
        held.add(["synth"] * 3, range(3), 1 - perfect(manifest))
        metrics = held.metrics()
    assert set(metrics) == {"psds1_synth", "rank"} and metrics["rank"] < 0.5
    assert capsys.readouterr().out == "hold-out maestro is not scored: none of its clips was looked at.\n"


def test_hold_out_refuses_what_is_no_number():
    held = HoldOut(hold_out_manifests())
    held.add(["synth"], [0], torch.full((1, 27, 156), torch.nan))
    with pytest.raises(FloatingPointError, match="not finite on hold-out clips"):
        held.metrics()


def test_hold_out_scores_are_median_filtered():
    """A single frame of Dog, which its filter of 5 frames removes, would be a false alarm above all else."""
    manifest = hold_out_manifests()["synth"]
    scores = perfect(manifest)
    scores[1, 4, 40] = 0.99
    held = HoldOut({"synth": manifest})
    held.add(["synth"] * 3, range(3), scores)
    assert held.metrics()["psds1_synth"] == pytest.approx(1.0)
    raw = FrameScores(["s0", "s1", "s2"], sound_classes().names, FrameGrid().boundaries_s, scores.transpose(1, 2))
    plain = scoring_set(raw, ground_truth(manifest.events), manifest.durations(), ["Dog", "Speech"])
    assert psds(plain).value < 0.5


def test_validation_scores_mask_the_labels_and_keep_the_student():
    manifests = hold_out_manifests()
    system = SedSystem(tiny_student(), tiny_config("frozen"), manifests).eval()
    assert system.best_by == "rank"
    mask = torch.from_numpy(np.stack([manifests["synth"].class_mask] * 3))
    targets = torch.from_numpy(manifests["synth"].event_arrays().encode()).transpose(1, 2)
    batch = {
        "waveform": 0.1 * torch.randn(3, 1, 160000, generator=torch.Generator().manual_seed(0)),
        "targets": targets + ~mask[..., None],  # labels of classes that are not known there
        "class_mask": mask,
        "set": ["synth"] * 3,
        "item": torch.arange(3),
    }
    with torch.no_grad():
        loss = system.validation_scores(batch)["loss"]
        strong = system.student(
            system.crnn_mel(batch["waveform"]), system.student.encoder.log_mel(batch["waveform"]), mask
        )["strong"]
    expected = torch.nn.functional.binary_cross_entropy(strong, targets, reduction="none").mean((1, 2))
    torch.testing.assert_close(loss, expected)
    assert set(system.validation_metrics()) == {"psds1_synth", "rank"}
