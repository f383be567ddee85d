"""What student and teacher see of a batch: order of the augmentations, groups, everything off."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from common.audio.augment import FreqMixStyle
from task4_sed.augment import ClassMixup, FilterAugment, FrequencyWarp, TimeMask, TimeShift
from task4_sed.views import SETS, SedBatch, ViewDraws, Views, group_rows

SIZES = dict(zip(SETS, (3, 2, 2, 3, 4), strict=True))
N_CLIPS = sum(SIZES.values())
EVERYTHING = {
    "mixstyle": FreqMixStyle(1.0, 0.3, keep_larger=True),
    "warp": FrequencyWarp(1.0),
    "filter": FilterAugment(1.0),
    "encoder_filter": FilterAugment(1.0),
    "time_mask": TimeMask(),
    "time_shift": TimeShift(),
    "mixup_p": 1.0,
}


def rng(seed=0):
    return np.random.default_rng(seed)


def random_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(N_CLIPS, 27, 25, generator=generator) > 0.95).float()
    return SedBatch(
        amplitude=torch.rand(N_CLIPS, 1, 64, 101, generator=generator),
        encoder_mel=torch.randn(N_CLIPS, 1, 32, 51, generator=generator),
        labels=labels,
        class_mask=torch.rand(N_CLIPS, 27, generator=generator) > 0.5,
        pseudo_labels=0.5 * labels,
    )


def wide_batch(n_clips):
    shapes = {"amplitude": (1, 64, 9), "encoder_mel": (1, 32, 9), "labels": (27, 5), "class_mask": (27,)}
    return SedBatch(**{name: torch.zeros(n_clips, *shape) for name, shape in shapes.items()})


def same(first, second):
    pairs = [(getattr(first, f.name), getattr(second, f.name)) for f in fields(SedBatch)]
    return all(torch.equal(a, b) for a, b in pairs)


def test_rows_of_groups():
    rows = group_rows((("weak",), ("maestro", "synth"), ("strong", "nothing")), {"maestro": 2, "synth": 1, "weak": 2})
    assert [r.tolist() for r in rows] == [[3, 4], [0, 1, 2], []]


@pytest.mark.parametrize("teacher", ["mixed", "unmixed"])
def test_everything_off_changes_nothing(teacher):
    batch, views = random_batch(), Views(teacher, mixup_p=0.0)
    draws = views.draw(SIZES, batch, rng())
    assert draws == ViewDraws()
    assert all(same(view, batch) for view in views.apply(batch, draws))


def test_stage_1_teacher_sees_the_mix_through_another_filter():
    batch = random_batch()
    views = Views(mixup_p=1.0, mixstyle=FreqMixStyle(1.0, 0.3, keep_larger=True), filter=FilterAugment(1.0))
    draws = views.draw(SIZES, batch, rng())
    student, teacher = views.apply(batch, draws)
    mixed = ClassMixup().apply(batch.amplitude, draws.mix)
    styled = views.mixstyle.apply(mixed, draws.style)
    for view, curve in zip((student, teacher), draws.filters, strict=True):
        torch.testing.assert_close(view.amplitude, FilterAugment().apply(styled, curve))
    assert not torch.allclose(student.amplitude, teacher.amplitude)
    assert same(replace(student, amplitude=teacher.amplitude), teacher)
    torch.testing.assert_close(student.labels, ClassMixup().apply_labels(batch.labels, draws.mix))


def test_stage_2_teacher_sees_the_masked_clips_unmixed():
    batch, views = random_batch(), Views("unmixed", **EVERYTHING)
    draws = views.draw(SIZES, batch, rng())
    student, teacher = views.apply(batch, draws)
    before, _ = Views("unmixed", time_shift=TimeShift(), time_mask=TimeMask(), mixup=None).apply(
        batch, replace(draws, mix=None, style=None, encoder_style=None, warps=(), filters=(None, None))
    )
    assert same(teacher, replace(before, class_mask=student.class_mask))
    # Mixup after the mask: the student's labels are those of the teacher's clips, mixed.
    torch.testing.assert_close(student.labels, ClassMixup().apply_labels(teacher.labels, draws.mix))
    torch.testing.assert_close(student.pseudo_labels, ClassMixup().apply_labels(teacher.pseudo_labels, draws.mix))
    expected = ClassMixup().apply(teacher.encoder_mel, draws.mix)
    expected = views.mixstyle.apply(expected, draws.encoder_style)
    for rows, draw in draws.warps:
        expected[rows] = FrequencyWarp().apply(expected[rows], draw)
    torch.testing.assert_close(student.encoder_mel, FilterAugment().apply(expected, draws.encoder_filter))


def test_stage_1_masks_after_the_mix():
    """A masked clip of stage 1 is zero there whoever was mixed in; in stage 2 its partners sound through."""
    batch = random_batch()
    views = Views(mixup_p=1.0, time_mask=TimeMask())
    draws = views.draw(SIZES, batch, rng(1))
    ((rows, (first, width)),) = draws.time_masks
    stretch = slice(4 * first, 4 * (first + width))
    late, _ = views.apply(batch, draws)
    early, _ = replace(views, teacher="unmixed").apply(batch, draws)
    assert rows.tolist() == [3, 4, 5, 6]  # strong and synth
    assert not late.amplitude[rows][..., stretch].any() and not late.labels[rows][..., first : first + width].any()
    assert early.amplitude[rows][..., stretch].any()


def test_masks_come_from_labels_before_the_mix():
    """Two strong clips: what one is labelled with must not come back to it through the other.

    The teacher of stage 2 hears the clips unmixed, but its outputs are masked by the classes of the mix.
    """
    batch = random_batch()
    labels = torch.zeros_like(batch.labels)
    labels[3, 5], labels[4, 7] = 1.0, 1.0
    batch = replace(batch, labels=labels, class_mask=torch.zeros_like(batch.class_mask))
    views = Views("unmixed", mixup_p=1.0)
    perm = torch.arange(N_CLIPS)
    perm[[3, 4]] = torch.tensor([4, 3])
    student, teacher = views.apply(batch, ViewDraws(mix=(torch.full((N_CLIPS,), 0.75), perm)))
    assert student.class_mask.nonzero().tolist() == [[3, 7], [4, 5]]
    assert torch.equal(teacher.class_mask, student.class_mask)
    assert torch.equal(teacher.labels, labels)


def test_mixup_is_drawn_for_the_whole_batch_and_within_groups():
    batch, views, generator = random_batch(), Views(), rng()
    mixes = [views.draw(SIZES, batch, generator).mix for _ in range(400)]
    made = [mix for mix in mixes if mix is not None]
    assert abs(len(made) / 400 - 0.5) < 0.08
    perms = torch.stack([perm for _, perm in made])
    assert (perms[:, :7].sort().values == torch.arange(7)).all()  # MAESTRO, strong and synth jointly
    assert (perms[:, 7:10].sort().values == torch.arange(7, 10)).all()
    assert (perms[:, :3] >= 3).any()


def test_one_decision_for_each_augmentation_of_a_batch():
    """Whether: once, for all groups, features and networks alike. How: anew for each of them."""
    batch, generator, n_draws = random_batch(), rng(), 2000
    views = Views(
        mixup_p=0.5,
        mixstyle=FreqMixStyle(0.4, 0.3, keep_larger=True),
        warp=FrequencyWarp(0.3),
        filter=FilterAugment(0.8),
        encoder_filter=FilterAugment(0.6),
    )
    drawn = [views.draw(SIZES, batch, generator) for _ in range(n_draws)]
    chosen = [[d.mix, d.style, d.warps or None, d.filters[0], d.encoder_filter] for d in drawn]
    made = np.array([[one is not None for one in row] for row in chosen])
    np.testing.assert_allclose(made.mean(0), [0.5, 0.4, 0.3, 0.8, 0.6], atol=0.045)
    assert np.abs(np.corrcoef(made.T) - np.eye(5)).max() < 0.09  # no decision hangs on another

    styled, filtered = ([d for d, yes in zip(drawn, made[:, i], strict=True) if yes] for i in (1, 3))
    assert made[:, 1].tolist() == [d.encoder_style is not None for d in drawn]
    assert made[:, 3].tolist() == [d.filters[1] is not None for d in drawn]
    assert {len(d.warps) for d in drawn} == {0, 3}  # all groups, which MAESTRO is none of
    for draws in styled:
        assert not torch.equal(draws.style[0], draws.encoder_style[0])
        for lam, _ in (draws.style, draws.encoder_style):
            assert all((lam[rows] < 1).any() for rows in group_rows(views.mixstyle_groups, SIZES))
    assert not any(torch.equal(d.filters[0][1], d.filters[1][1]) for d in filtered)
    assert len({draw for d in drawn for _, draw in d.warps}) > 20


def test_published_groups_of_mixstyle_are_those_of_mixup():
    """MAESTRO, strong and synthetic clips take each other's statistics."""
    assert Views().mixstyle_groups == Views().mixup_groups
    draws = Views(mixstyle=FreqMixStyle(1.0, 0.3)).draw({"maestro": 20, "synth": 20}, wide_batch(40), rng())
    assert (draws.style[1][:20] >= 20).any() and (draws.encoder_style[1][:20] >= 20).any()


def test_without_pseudo_labels_there_are_none():
    batch, views = replace(random_batch(), pseudo_labels=None), Views("unmixed", **EVERYTHING)
    student, teacher = views.apply(batch, views.draw(SIZES, batch, rng()))
    assert student.pseudo_labels is None and teacher.pseudo_labels is None


@pytest.mark.parametrize("teacher", ["mixed", "unmixed"])
def test_same_draws_same_views_and_inputs_stay(teacher):
    batch, views = random_batch(), Views(teacher, **EVERYTHING)
    results = [views.apply(batch, views.draw(SIZES, batch, rng(seed))) for seed in (5, 5, 6)]
    assert same(batch, random_batch())
    for first, second, other in zip(*results, strict=True):
        assert same(first, second) and not same(first, other)


def test_sets_without_clips_are_no_trouble():
    batch, views = random_batch(), Views("unmixed", **EVERYTHING)
    student, _ = views.apply(batch, views.draw({"maestro": N_CLIPS, "weak": 0}, batch, rng()))
    assert student.amplitude.shape == batch.amplitude.shape


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Views("sees all"), "none of mixed, unmixed"),
        (lambda: Views(mixup_p=1.5), "not a probability"),
        (lambda: Views(warp_groups=(("week",),)), "unknown set 'week'"),
        (lambda: Views().draw({"weak": 3}, random_batch(), rng()), "14 clips in the batch"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
