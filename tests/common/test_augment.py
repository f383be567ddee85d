"""Augmentations: hand-solved cases, properties, frozen draws. Published numbers: tests/parity."""

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from common.audio.augment import BandMask, FreqMixStyle, ImpulseResponse, Mixup, Roll, load_responses


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rng(seed=0):
    return np.random.default_rng(seed)


class FixedDraw:
    """A generator whose uniform draws are given in advance."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self, size):
        return np.asarray(self.draws.pop(0), dtype=np.float64)


# ---------------------------------------------------------------- roll


def test_roll_by_hand():
    waveform = torch.arange(5.0).repeat(3, 1, 1)
    out = Roll(5).apply(waveform, torch.tensor([0, 2, -1]))
    assert out[:, 0].tolist() == [[0, 1, 2, 3, 4], [3, 4, 0, 1, 2], [1, 2, 3, 4, 0]]


@settings(max_examples=50, deadline=None)
@given(n_samples=st.integers(1, 50), shifts=st.lists(st.integers(-120, 120), min_size=1, max_size=4))
def test_roll_is_torch_roll_clip_by_clip(n_samples, shifts):
    waveform = noise(len(shifts), 2, n_samples)
    out = Roll(120).apply(waveform, torch.tensor(shifts))
    assert torch.equal(out, torch.stack([clip.roll(s, -1) for clip, s in zip(waveform, shifts, strict=True)]))


def test_roll_draws_both_ends():
    shift = Roll(3).draw(500, rng())
    assert shift.dtype == torch.int64 and set(shift.tolist()) == set(range(-3, 4))
    assert not Roll(0).draw(10, rng()).any()


def test_roll_wants_one_shift_per_clip():
    with pytest.raises(ValueError, match=r"\(B, C, T\) and \(B,\)"):
        Roll(3).apply(torch.zeros(2, 1, 4), torch.tensor([1]))


# ---------------------------------------------------------------- band mask


def test_band_mask_by_hand():
    # v = 0.5 * 4 = 2.0, start = 0.49 * (10 - 2) = 3.92: rows 3 and 4
    mask = BandMask(4).draw(1, 10, FixedDraw([0.5], [0.49]))
    assert mask[0].nonzero().flatten().tolist() == [3, 4]


def test_band_mask_is_torchaudios_rule(monkeypatch):
    """The same uniform numbers give the same mask as torchaudio's iid masking."""
    width, start = (torch.rand(200, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    numbers = [width[:, None], start[:, None]]
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: numbers.pop(0))
    masked = torchaudio.functional.mask_along_axis_iid(torch.ones(200, 1, 256, 3), 48, 0.0, axis=2)
    found = BandMask(48).draw(200, 256, FixedDraw(width.numpy(), start.numpy()))
    assert torch.equal(found, masked[:, 0, :, 0] == 0)


def test_band_mask_has_torchaudios_statistics():
    n_clips = 5000
    torch.manual_seed(0)
    masking = torchaudio.transforms.FrequencyMasking(48, iid_masks=True)
    reference = (masking(torch.ones(n_clips, 1, 256, 1)) == 0)[:, 0, :, 0]
    found = BandMask(48).draw(n_clips, 256, rng())
    assert found.shape == (n_clips, 256) and found.dtype == torch.bool
    for statistic in (lambda m: m.sum(1), lambda m: m.int().argmax(1)):
        assert scipy.stats.ks_2samp(statistic(found).numpy(), statistic(reference).numpy()).pvalue > 0.01
    assert abs(found.sum(1).float().mean() - 23.5) < 0.7 and found.sum(1).max() == 47


@settings(max_examples=50, deadline=None)
@given(n_rows=st.integers(1, 80), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_band_mask_is_one_run(n_rows, share, seed):
    mask = BandMask(int(share * n_rows)).draw(6, n_rows, rng(seed)).int()
    edges = torch.diff(torch.nn.functional.pad(mask, (1, 1))).abs().sum(1)
    assert set(edges.tolist()) <= {0, 2}
    assert mask.sum(1).max() <= int(share * n_rows)


def test_band_mask_of_width_zero_masks_nothing():
    assert not BandMask(0).draw(4, 65, rng()).any()


def test_band_mask_wider_than_the_spectrogram_is_refused():
    with pytest.raises(ValueError, match="max_width 48 is more than the 40 rows"):
        BandMask(48).draw(1, 40, rng())


# ---------------------------------------------------------------- Freq-MixStyle


def test_freq_mixstyle_by_hand():
    """One row, two clips: means 0 and 10, deviations 1 and 3; clip 0 takes a quarter of clip 1's."""
    log_mel = torch.tensor([[-1.0, 0.0, 1.0], [7.0, 10.0, 13.0]])[:, None, None]
    out = FreqMixStyle(1.0, 0.3).apply(log_mel, (torch.tensor([0.75, 1.0]), torch.tensor([1, 0])))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([1.0, 2.5, 4.0]), rtol=0, atol=1e-5)
    assert torch.equal(out[1], log_mel[1])


def test_freq_mixstyle_gives_the_mixed_statistics():
    log_mel, style = 3 * noise(4, 2, 6, 30) - 5, FreqMixStyle(1.0, 0.3)
    lam, perm = torch.tensor([0.2, 0.5, 0.9, 0.0]), torch.tensor([2, 0, 3, 1])
    mean, deviation = style.statistics(log_mel)
    assert mean.shape == deviation.shape == (4, 1, 6, 1)
    mixed_mean, mixed_deviation = style.statistics(style.apply(log_mel, (lam, perm)))
    share = lam[:, None, None, None]
    torch.testing.assert_close(mixed_mean, share * mean + (1 - share) * mean[perm], rtol=0, atol=1e-4)
    torch.testing.assert_close(
        mixed_deviation, share * deviation + (1 - share) * deviation[perm], rtol=0, atol=1e-4
    )


def test_freq_mixstyle_keeps_the_batch_without_a_partners_share():
    log_mel = noise(3, 1, 5, 7)
    assert torch.equal(
        FreqMixStyle(1.0, 0.3).apply(log_mel, (torch.ones(3), torch.tensor([1, 2, 0]))), log_mel
    )
    assert FreqMixStyle(1.0, 0.3).apply(log_mel, None) is log_mel


def test_freq_mixstyle_over_two_devices_equals_one():
    """Each half of a batch, given the statistics of the whole, gives its half of the result."""
    log_mel, style = noise(6, 1, 5, 7), FreqMixStyle(1.0, 0.3)
    lam, perm = style.draw(6, rng())
    whole, everywhere = style.apply(log_mel, (lam, perm)), style.statistics(log_mel)
    halves = [
        style.apply(log_mel[part], (lam[part], perm[part]), everywhere) for part in (slice(3), slice(3, 6))
    ]
    assert torch.equal(torch.cat(halves), whole)


def test_freq_mixstyle_statistics_carry_no_gradient():
    log_mel = noise(2, 1, 3, 5).requires_grad_()
    style = FreqMixStyle(1.0, 0.3)
    draw = (torch.tensor([0.4, 0.6]), torch.tensor([1, 0]))
    style.apply(log_mel, draw).sum().backward()
    _, deviation = style.statistics(log_mel)
    share = draw[0][:, None, None, None]
    scale = (share * deviation + (1 - share) * deviation[draw[1]]) / deviation
    torch.testing.assert_close(log_mel.grad, scale.expand_as(log_mel))


def test_freq_mixstyle_changes_a_batch_with_probability_p():
    generator = rng()
    changed = sum(FreqMixStyle(0.4, 0.3).draw(2, generator) is not None for _ in range(2000))
    assert abs(changed / 2000 - 0.4) < 0.035
    assert FreqMixStyle(0.0, 0.3).draw(2, generator) is None
    assert FreqMixStyle(1.0, 0.3).draw(2, generator) is not None


def test_freq_mixstyle_may_keep_the_larger_share():
    lam, perm = FreqMixStyle(1.0, 0.3).draw(50, rng())
    kept, same_perm = FreqMixStyle(1.0, 0.3, keep_larger=True).draw(50, rng())
    assert torch.equal(kept, torch.maximum(lam, 1 - lam)) and torch.equal(perm, same_perm)
    assert lam.min() < 0.5 <= kept.min()


def test_freq_mixstyle_needs_two_frames():
    with pytest.raises(ValueError, match="at least two frames"):
        FreqMixStyle(1.0, 0.3).statistics(torch.zeros(2, 1, 5, 1))


# ---------------------------------------------------------------- mixup


def test_mixup_by_hand():
    x = torch.tensor([[0.0, 8.0], [4.0, 0.0]])
    out = Mixup(0.3).apply(x, (torch.tensor([0.75, 1.0]), torch.tensor([1, 0])))
    assert out.tolist() == [[1.0, 6.0], [4.0, 0.0]]


def test_mixup_draws_its_own_clip_as_the_larger_share():
    lam, perm = Mixup(0.3).draw(300, rng())
    assert lam.dtype == torch.float32 and lam.min() >= 0.5 and lam.max() <= 1
    assert sorted(perm.tolist()) == list(range(300))
    beta = rng().beta(0.3, 0.3, size=300)
    torch.testing.assert_close(lam, torch.from_numpy(np.maximum(beta, 1 - beta)).float())


def test_mixup_takes_any_shape():
    for shape in ((4,), (4, 10), (4, 1, 3, 5)):
        x, draw = noise(*shape), Mixup(0.3).draw(4, rng())
        share = draw[0].reshape(-1, *[1] * (x.ndim - 1))
        torch.testing.assert_close(Mixup(0.3).apply(x, draw), share * x + (1 - share) * x[draw[1]])


# ---------------------------------------------------------------- impulse responses


def test_unit_impulse_changes_nothing():
    waveform = noise(2, 1, 1000)
    out = ImpulseResponse(1.0).apply(waveform, torch.tensor([0, 0]), [torch.tensor([1.0])])
    torch.testing.assert_close(out, waveform, rtol=0, atol=1e-6)


def test_delayed_impulse_delays():
    out = ImpulseResponse(1.0).apply(
        torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([0]), [torch.tensor([0, 0.5])]
    )
    torch.testing.assert_close(out, torch.tensor([[[0.0, 0.5, 1.0]]]), rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    n_samples=st.integers(1, 300),
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_is_direct_convolution_cut_to_the_clip(n_samples, lengths, seed):
    responses = [noise(length, seed=seed + i) for i, length in enumerate(lengths)]
    waveform, index = noise(3, 2, n_samples), torch.from_numpy(rng(seed).integers(-1, len(lengths), 3))
    out = ImpulseResponse(1.0).apply(waveform, index, responses)
    for clip, found, i in zip(waveform, out, index.tolist(), strict=True):
        if i < 0:
            assert torch.equal(found, clip)
            continue
        expected = np.stack([np.convolve(channel, responses[i])[:n_samples] for channel in clip.numpy()])
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    n_samples=st.integers(1, 200),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_centred_is_the_valid_part_of_the_clip_with_zeros_on_both_sides(n_samples, lengths, seed):
    responses = [noise(length, seed=seed + i) for i, length in enumerate(lengths)]
    waveform, index = noise(3, 1, n_samples), torch.from_numpy(rng(seed).integers(-1, len(lengths), 3))
    out = ImpulseResponse(1.0, devices=None, centred=True).apply(waveform, index, responses)
    for clip, found, i in zip(waveform[:, 0], out[:, 0], index.tolist(), strict=True):
        if i < 0:
            assert torch.equal(found, clip)
            continue
        padded = np.pad(clip.numpy(), len(responses[i]) // 2)
        expected = scipy.signal.fftconvolve(padded, responses[i], mode="valid")[:n_samples]
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


def test_centred_takes_the_middle_tap_as_time_zero():
    clip, index = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]]), torch.tensor([0])
    peak_first, peak_middle = torch.eye(5)[0], torch.eye(5)[2]
    dir_ = ImpulseResponse(1.0, devices=None, centred=True)
    assert dir_.apply(clip, index, [peak_middle])[0, 0].round().tolist() == [1, 2, 3, 4, 5]
    assert dir_.apply(clip, index, [peak_first])[0, 0].round().abs().tolist() == [3, 4, 5, 0, 0]  # early


def test_without_devices_all_clips_are_drawn():
    index = ImpulseResponse(0.6, devices=None).draw(1000, 66, rng())
    assert index.shape == (1000,) and abs((index >= 0).float().mean() - 0.6) < 0.05


def test_only_the_devices_named_are_drawn():
    devices = ["a", "b", "s1", "a", "unknown"] * 200
    index = ImpulseResponse(0.6).draw(devices, 66, rng())
    is_a = torch.tensor([device == "a" for device in devices])
    assert (index[~is_a] == -1).all()
    assert abs((index[is_a] >= 0).float().mean() - 0.6) < 0.07
    assert index.max() <= 65 and len(set(index[is_a].tolist())) > 60


def test_a_clips_response_does_not_hang_on_its_neighbours():
    dir_ = ImpulseResponse(0.5)
    alone, among = dir_.draw(["a", "b", "b"], 9, rng(3)), dir_.draw(["a", "a", "a"], 9, rng(3))
    assert alone[0] == among[0]


@pytest.mark.parametrize(("p", "devices", "expected"), [(0.0, ("a",), 0), (1.0, ("a",), 2), (1.0, (), 0)])
def test_probability_and_device_list_at_their_ends(p, devices, expected):
    assert int((ImpulseResponse(p, devices).draw(["a", "a", "b"], 4, rng()) >= 0).sum()) == expected


def test_no_response_is_refused():
    with pytest.raises(ValueError, match="no impulse response"):
        ImpulseResponse(0.4).draw(["a"], 0, rng())


def test_responses_are_read_in_order_at_one_rate(tmp_path):
    for name, rate, length in (("b.wav", 48000, 480), ("a.WAV", 44100, 441), ("sub/c.wav", 32000, 320)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.eye(1, length)[0], rate, subtype="FLOAT", format="WAV")
    (tmp_path / "README.txt").write_text("not a response")
    responses = load_responses(tmp_path, 32000)
    assert [len(r) for r in responses] == [320, 320, 320]
    assert all(r.dtype == torch.float32 for r in responses)
    assert responses[2][0] == 1.0 and responses[2][1:].abs().max() == 0
    expected = torchaudio.transforms.Resample(44100, 32000)(torch.eye(441)[0])
    torch.testing.assert_close(responses[0], expected)
    by_kaiser = torchaudio.transforms.Resample(44100, 32000, "sinc_interp_kaiser")(torch.eye(441)[0])
    torch.testing.assert_close(load_responses(tmp_path, 32000, "sinc_interp_kaiser")[0], by_kaiser)
    assert not torch.allclose(by_kaiser, expected)


def test_useless_response_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_responses(tmp_path / "missing", 32000)
    with pytest.raises(FileNotFoundError, match="no wav file"):
        load_responses(tmp_path, 32000)
    soundfile.write(tmp_path / "two.wav", np.ones((10, 2)), 32000)
    with pytest.raises(ValueError, match=r"two\.wav: 2 channels"):
        load_responses(tmp_path, 32000)
    soundfile.write(tmp_path / "two.wav", np.zeros(10), 32000)
    with pytest.raises(ValueError, match="only silence"):
        load_responses(tmp_path, 32000)
    (tmp_path / "two.wav").write_bytes(b"no audio")
    with pytest.raises(ValueError, match=r"two\.wav"):
        load_responses(tmp_path, 32000)


# ---------------------------------------------------------------- all


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: Roll(4410).draw(8, g),
        lambda g: BandMask(48).draw(8, 256, g),
        lambda g: Mixup(0.3).draw(8, g),
        lambda g: FreqMixStyle(1.0, 0.3).draw(8, g),
        lambda g: ImpulseResponse(0.5).draw(["a"] * 8, 66, g),
    ],
)
def test_same_generator_same_draw(draw):
    first, second, other = (draw(rng(seed)) for seed in (7, 7, 8))
    first, second, other = (
        value if isinstance(value, tuple) else (value,) for value in (first, second, other)
    )
    assert all(torch.equal(a, b) and a.device.type == "cpu" for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Roll(-1),
        lambda: BandMask(-1),
        lambda: FreqMixStyle(1.1, 0.3),
        lambda: FreqMixStyle(-0.1, 0.3),
        lambda: FreqMixStyle(0.4, 0.0),
        lambda: FreqMixStyle(0.4, 0.3, eps=0.0),
        lambda: Mixup(0.0),
        lambda: ImpulseResponse(2.0),
        lambda: ImpulseResponse(0.4, devices="a"),
        lambda: FreqMixStyle(float("nan"), 0.3),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ValueError):
        build()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_numbers_of_the_cpu():
    waveform, log_mel, responses = noise(4, 1, 3000), noise(4, 1, 16, 9), [noise(50), noise(70)]
    dir_, roll, style, mixup = ImpulseResponse(1.0), Roll(100), FreqMixStyle(1.0, 0.3), Mixup(0.3)
    index, shift = dir_.draw(["a", "a", "b", "a"], 2, rng()), roll.draw(4, rng())
    style_draw, mixup_draw = style.draw(4, rng()), mixup.draw(4, rng())
    for apply, x in (
        (lambda x: dir_.apply(x, index, responses), waveform),
        (lambda x: roll.apply(x, shift), waveform),
        (lambda x: style.apply(x, style_draw), log_mel),
        (lambda x: mixup.apply(x, mixup_draw), log_mel),
    ):
        torch.testing.assert_close(apply(x.cuda()).cpu(), apply(x), rtol=0, atol=1e-4)
