"""Augmentations of sound event clips: hand-solved cases, properties. Published numbers: tests/parity."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.audio.augment import FreqMixStyle
from task4_sed.augment import (
    ClassMixup,
    FilterAugment,
    FrequencyWarp,
    RandomCrop,
    TimeMask,
    TimeShift,
    WaveMix,
    draw_in_groups,
)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- random crop


def test_crop_reaches_both_ends_and_short_recordings_are_not_cut():
    crop = RandomCrop(1.0, sample_rate=4)
    assert {crop.draw(6, rng(seed)) for seed in range(60)} == {0, 1, 2}
    assert {crop.draw(n, rng(seed)) for seed in range(9) for n in (1, 4)} == {0}


def test_onset_of_the_crop_is_rounded_to_a_millisecond():
    assert RandomCrop().onset_s(1001) == 0.063 and RandomCrop().onset_s(48000) == 3.0


# ---------------------------------------------------------------- wave mix


def test_wave_mix_by_hand():
    """Means 1 and 10 are removed, then 3/4 of (-1, 1) and 1/4 of (4, -4)."""
    out = WaveMix().apply(torch.tensor([[0.0, 2.0]]), torch.tensor([[14.0, 6.0]]), 0.75)
    assert out.tolist() == [[0.25, -0.25]]
    labels = WaveMix().apply_labels(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.0, 1.0, 0.5]), 0.75)
    assert labels.tolist() == [0.75, 0.25, 0.5]


@settings(max_examples=30, deadline=None)
@given(lam=st.floats(0.5, 1.0), offset=st.floats(-1, 1))
def test_wave_mix_has_no_mean_whatever_the_offsets(lam, offset):
    first, second = noise(1, 500), noise(1, 500, seed=1)
    out = WaveMix().apply(first + offset, second - offset, lam)
    assert abs(out.mean()) < 1e-6
    torch.testing.assert_close(out, WaveMix().apply(first, second, lam), rtol=0, atol=1e-5)


def test_wave_mix_draws_partners_and_the_larger_share():
    generator = rng()
    draws = [WaveMix(0.5, 0.2).draw(7, generator) for _ in range(1500)]
    made = [draw for draw in draws if draw is not None]
    assert abs(len(made) / 1500 - 0.5) < 0.05
    assert {partner for _, partner in made} == set(range(7))
    assert min(lam for lam, _ in made) >= 0.5 and max(lam for lam, _ in made) <= 1
    # Beta(.2, .2) lies at its ends: half of the larger shares are above .98 (of Beta(2, 2) none).
    assert 0.35 < np.mean([lam > 0.98 for lam, _ in made]) < 0.65
    assert WaveMix(0.0).draw(7, generator) is None


# ---------------------------------------------------------------- mixing inside groups


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_partners_come_from_the_own_group(sizes, seed):
    """Rows of all groups interleaved, and one row in none."""
    order = rng(seed).permutation(sum(sizes) + 1)
    groups = np.split(order, np.cumsum(sizes))[:-1]
    alone = order[-1]
    drawn = draw_in_groups(ClassMixup().draw, groups, len(order), rng(seed))
    if sum(sizes) == 0:
        assert drawn is None
        return
    lam, perm = drawn
    for group in groups:
        assert sorted(perm[torch.as_tensor(group)].tolist()) == sorted(group.tolist())
    assert perm[alone] == alone and lam[alone] == 1.0
    assert lam.min() >= 0.5


def test_a_joint_group_mixes_across_its_sets():
    _, perm = draw_in_groups(ClassMixup().draw, [np.arange(40)], 40, rng())
    assert (perm[:20] >= 20).any()


def test_groups_that_draw_nothing_leave_the_batch_alone():
    groups = [np.arange(3), np.arange(3, 6)]
    assert draw_in_groups(FreqMixStyle(0.0, 0.3).draw, groups, 6, rng()) is None
    draws = iter([None, (torch.tensor([0.5, 0.75, 0.5]), torch.tensor([1, 2, 0]))])
    lam, perm = draw_in_groups(lambda n, generator: next(draws), groups, 6, rng())
    assert lam.tolist() == [1, 1, 1, 0.5, 0.75, 0.5] and perm.tolist() == [0, 1, 2, 4, 5, 3]


def test_freq_mixstyle_in_groups_changes_only_their_clips():
    features, groups = noise(5, 1, 6, 9), [np.array([1, 3])]
    draw = (torch.tensor([1.0, 0.25, 1.0, 0.5, 1.0]), torch.tensor([0, 3, 2, 1, 4]))
    out = FreqMixStyle(1.0, 0.3).apply(features, draw)
    alone = [0, 2, 4]
    assert torch.equal(out[alone], features[alone])
    assert not torch.allclose(out[groups[0]], features[groups[0]])


def test_overlapping_groups_are_refused():
    with pytest.raises(ValueError, match="stands in two groups"):
        draw_in_groups(ClassMixup().draw, [np.arange(3), np.arange(2, 4)], 4, rng())


# ---------------------------------------------------------------- mixup of labels and masks


def test_mixed_labels_are_clamped():
    labels = torch.tensor([[[2.0]], [[0.0]]])
    out = ClassMixup().apply_labels(labels, (torch.tensor([0.75, 0.75]), torch.tensor([1, 0])))
    assert out.flatten().tolist() == [1.0, 0.5]


def test_mask_takes_the_partners_labels_not_its_mask():
    """Clip 0 knows class 0. Its partner knows all three, but is labelled with class 2 only, for a moment."""
    masks = torch.tensor([[True, False, False], [True, True, True]])
    labels = torch.zeros(2, 3, 4)
    labels[1, 2, 3] = 0.1
    draw = (torch.tensor([0.9, 0.6]), torch.tensor([1, 0]))
    mixed = ClassMixup().apply_mask(masks, labels, draw)
    assert mixed.tolist() == [[True, False, True], [True, True, True]]


# ---------------------------------------------------------------- time shift


def test_time_shift_by_hand():
    """8 frames, 2 labels, 4 frames of a transformer: +4, -3 and +1 frames; halves round to even numbers."""
    shift, shifting = torch.tensor([4, -3, 1]), TimeShift()
    features = torch.arange(8.0).repeat(3, 1, 1, 1)
    out = shifting.apply(features, shift)[:, 0, 0]
    assert out.tolist() == [[4, 5, 6, 7, 0, 1, 2, 3], [3, 4, 5, 6, 7, 0, 1, 2], [7, 0, 1, 2, 3, 4, 5, 6]]
    encoder = shifting.apply(features[..., ::2], shift, n_frames=8)[:, 0, 0]  # by 2, -2 (of -1.5) and 0 (of .5)
    assert encoder.tolist() == [[4, 6, 0, 2], [4, 6, 0, 2], [0, 2, 4, 6]]
    labels = shifting.apply_labels(torch.arange(2.0).repeat(3, 2, 1), shift)  # by 1, -1 and 0
    assert labels[:, 0].tolist() == [[1, 0], [1, 0], [0, 1]]


def test_time_shift_draws_around_zero_with_a_whole_deviation():
    shift = TimeShift().draw(20000, 626, rng()).double()
    assert abs(shift.std() - 46) < 1 and abs(shift.mean()) < 1
    assert not TimeShift().draw(50, 13, rng()).any()  # int(13 * 0.075) = 0


# ---------------------------------------------------------------- time mask


def test_time_mask_by_hand():
    """Of 8 label frames 2 from frame 3: CRNN frames 12 to 20, of 17 encoder frames round(6.375) to round(10.6)."""
    masking, draw = TimeMask(), (3, 2)
    amplitude = masking.apply(torch.ones(2, 1, 3, 33), draw)
    assert (amplitude == 0).nonzero()[:, 3].unique().tolist() == list(range(12, 20))
    log_mel = masking.apply_encoder(torch.ones(2, 1, 3, 17), draw, 8)
    assert (log_mel == 0).nonzero()[:, 3].unique().tolist() == [6, 7, 8, 9, 10]
    labels = masking.apply_labels(torch.ones(2, 4, 8), draw)
    assert labels[0, 0].tolist() == [1, 1, 1, 0, 0, 1, 1, 1]


def test_pseudo_labels_are_masked_only_when_asked_for():
    labels = torch.ones(2, 4, 8)
    assert torch.equal(TimeMask().apply_pseudo_labels(labels, (3, 2)), labels)
    mended = TimeMask(mask_pseudo_labels=True).apply_pseudo_labels(labels, (3, 2))
    assert torch.equal(mended, TimeMask().apply_labels(labels, (3, 2))) and labels.all()


def test_time_mask_draws_the_widths_of_the_shares():
    draws = [TimeMask().draw(156, rng(seed)) for seed in range(3000)]
    widths, stops = {width for _, width in draws}, {sum(draw) for draw in draws}
    assert widths == set(range(7, 46))
    assert min(first for first, _ in draws) == 0 and max(stops) == 155  # the last frame never is
    with pytest.raises(ValueError, match="3 label frames are too few"):
        TimeMask().draw(3, rng())


# ---------------------------------------------------------------- frequency warp


def test_warp_of_all_rows_changes_nothing_and_of_one_row_repeats_it():
    log_mel = noise(2, 1, 8, 5)
    torch.testing.assert_close(FrequencyWarp().apply(log_mel, (0, 8)), log_mel, rtol=0, atol=1e-6)
    assert FrequencyWarp().apply(log_mel, None) is log_mel
    row = FrequencyWarp().apply(log_mel, (3, 1))
    torch.testing.assert_close(row, log_mel[:, :, 3:4].expand_as(log_mel), rtol=0, atol=1e-6)


def test_warp_keeps_the_corners_and_stretches_a_ramp():
    """Cubic interpolation is exact for a straight line, away from the borders it repeats."""
    ramp = torch.arange(33.0)[None, None, :, None].repeat(1, 1, 1, 4)
    out = FrequencyWarp().apply(ramp, (4, 17))[0, 0, :, 0]
    assert out[0] == 4 and out[-1] == 20
    torch.testing.assert_close(out[4:-4], torch.linspace(4, 20, 33)[4:-4], rtol=0, atol=1e-5)


def test_warp_draws_rows_inside():
    draws = [FrequencyWarp(1.0).draw(128, rng(seed)) for seed in range(2000)]
    heights = {height for _, height in draws}
    assert min(heights) == 76 and max(heights) == 127
    assert all(first + height <= 128 for first, height in draws)
    assert any(first + height == 128 for first, height in draws) and any(first == 0 for first, _ in draws)
    assert FrequencyWarp(0.0).draw(128, rng()) is None


# ---------------------------------------------------------------- filter augment


def test_filter_curve_by_hand():
    """Bands of rows 0-2, 3 and 4-5; the gain runs linearly inside a band and does not jump between bands."""
    edges, gain_db = torch.tensor([0, 3, 4, 6]), torch.tensor([[0.0, 6.0, -2.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    curve = FilterAugment.curve_db(edges, gain_db)
    assert curve[0].tolist() == [0, 3, 6, 6, -2, 4]  # a band of one row has the gain of its first edge
    assert curve[1].tolist() == [1] * 6
    out = FilterAugment().apply(torch.ones(2, 1, 6, 2), (edges, gain_db))
    torch.testing.assert_close(out[0, 0, :, 1], 10 ** (curve[0] / 20))


def test_filter_edges_by_hand():
    """Sorted draws 1, 1 and 4, the k-th raised by 6 k, of 30 rows."""
    assert FilterAugment.edges(np.array([4, 1, 1]), 30, 6).tolist() == [0, 7, 13, 22, 30]


@settings(max_examples=60, deadline=None)
@given(n_mels=st.integers(5, 130), seed=st.integers(0, 10**6))
def test_filter_bands_fill_the_rows_and_are_wide_enough(n_mels, seed):
    edges, gain_db = FilterAugment(p=1.0).draw(3, n_mels, rng(seed))
    assert edges[0] == 0 and edges[-1] == n_mels and 4 <= len(edges) <= 6
    n_bands = len(edges) - 1
    assert edges.diff().min() >= min(6, n_mels // n_bands) and gain_db.shape == (3, n_bands + 1)
    curve = FilterAugment.curve_db(edges, gain_db)
    assert curve.shape == (3, n_mels) and curve.abs().max() <= 6.0


def test_filter_draws_every_number_of_bands():
    found = {len(FilterAugment(p=1.0).draw(1, 128, rng(seed))[0]) - 1 for seed in range(50)}
    assert found == {3, 4, 5}
    assert FilterAugment(p=0.0).draw(1, 128, rng()) is None
    with pytest.raises(ValueError, match="2 mel rows are too few for"):
        FilterAugment(p=1.0).draw(1, 2, rng())


def test_two_filters_of_one_generator_are_two_views():
    generator, filtering, x = rng(), FilterAugment(p=1.0), noise(2, 1, 64, 5).abs()
    views = [filtering.apply(x, filtering.draw(2, 64, generator)) for _ in range(2)]
    assert not torch.allclose(*views)


def test_added_gain_filters_a_log_mel_as_the_factor_filters_amplitudes():
    amplitude, draw = noise(2, 1, 64, 5).abs() + 0.1, FilterAugment(p=1.0).draw(2, 64, rng())
    scale = 2 / 130.3  # of a log mel in dB that is scaled to about ±1

    def log_mel(x):
        return 20 * x.log10() * scale

    expected = log_mel(FilterAugment().apply(amplitude, draw))
    mended = FilterAugment(units_per_db=scale).apply(log_mel(amplitude), draw)
    torch.testing.assert_close(mended, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(FilterAugment().apply(log_mel(amplitude), draw), expected, atol=1e-2)  # as published


# ---------------------------------------------------------------- all


def test_off_means_the_same_tensor():
    x = noise(2, 1, 8, 5)
    assert FilterAugment(p=0.0).apply(x, FilterAugment(p=0.0).draw(2, 8, rng())) is x
    assert FrequencyWarp(p=0.0).apply(x, FrequencyWarp(p=0.0).draw(8, rng())) is x


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: RandomCrop().draw(10**7, g),
        lambda g: WaveMix(1.0).draw(1000, g),
        lambda g: draw_in_groups(ClassMixup().draw, [np.arange(9)], 9, g),
        lambda g: TimeShift().draw(9, 626, g),
        lambda g: TimeMask().draw(156, g),
        lambda g: FrequencyWarp(1.0).draw(128, g),
        lambda g: FilterAugment(1.0).draw(9, 128, g),
    ],
)
def test_same_generator_same_draw(draw):
    first, second, other = (
        torch.cat([torch.as_tensor(part).flatten().double() for part in (d if isinstance(d, tuple) else (d,))])
        for d in (draw(rng(seed)) for seed in (7, 7, 8))
    )
    assert torch.equal(first, second)
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomCrop(0.0),
        lambda: WaveMix(1.1),
        lambda: WaveMix(0.5, 0.0),
        lambda: ClassMixup(0.0),
        lambda: TimeShift(-0.1),
        lambda: TimeMask(0.3, 0.3),
        lambda: TimeMask(0.5, 1.2),
        lambda: FrequencyWarp(-0.5),
        lambda: FrequencyWarp(0.5, 0.0),
        lambda: FilterAugment(2.0),
        lambda: FilterAugment(0.8, -1.0),
        lambda: FilterAugment(0.8, min_bands=4, max_bands=3),
        lambda: FilterAugment(0.8, min_bands=0),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ValueError):
        build()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_numbers_of_the_cpu():
    features, labels = noise(6, 1, 64, 100).abs(), (noise(6, 27, 25) > 1).float()
    mask, generator = noise(6, 27, seed=3) > 0, rng()
    mixup, shifting, masking, warp = ClassMixup(), TimeShift(), TimeMask(), FrequencyWarp(1.0)
    mix, shift, stretch = mixup.draw(6, generator), shifting.draw(6, 100, generator), masking.draw(25, generator)
    rows, curve = warp.draw(64, generator), FilterAugment(1.0).draw(6, 64, generator)
    for apply, inputs in (
        (lambda x: mixup.apply(x, mix), (features,)),
        (lambda y: mixup.apply_labels(y, mix), (labels,)),
        (lambda m, y: mixup.apply_mask(m, y, mix), (mask, labels)),
        (lambda x: shifting.apply(x, shift, n_frames=100), (features[..., ::2],)),
        (lambda y: shifting.apply_labels(y, shift), (labels,)),
        (lambda x: masking.apply(x, stretch), (features,)),
        (lambda x: warp.apply(x, rows), (features,)),
        (lambda x: FilterAugment().apply(x, curve), (features,)),
    ):
        on_gpu = apply(*(x.cuda() for x in inputs)).cpu()
        torch.testing.assert_close(on_gpu, apply(*inputs), rtol=0, atol=1e-4)
