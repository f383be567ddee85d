"""Front ends against plain torchaudio, and what a user may do to them. Published numbers: tests/parity."""

import copy
import math

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from common.audio.frontends import KaldiLogMel, LogMel

SMALL = {"n_fft": 256, "win_length": 200, "hop_samples": 100, "n_mels": 20}


def noise(*shape, seed=0, scale=0.1):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def log_mel():
    return LogMel()


@pytest.fixture(scope="module")
def plain():
    """The same front end in two lines of torchaudio."""
    mel = torchaudio.transforms.MelSpectrogram(32000, n_fft=4096, win_length=3072, hop_length=500, n_mels=256)
    return torch.nn.Sequential(torchaudio.transforms.Resample(44100, 32000), mel)


@pytest.mark.parametrize(("n_clips", "n_samples"), [(1, 44100), (5, 44100), (2, 30001), (1, 441000)])
def test_equals_plain_torchaudio(log_mel, plain, n_clips, n_samples):
    waveform = noise(n_clips, 1, n_samples)
    expected = plain(waveform)
    assert log_mel.power_mel(waveform).shape == expected.shape
    torch.testing.assert_close(
        log_mel.power_mel(waveform), expected, rtol=0, atol=2e-6 * float(expected.max())
    )
    torch.testing.assert_close(log_mel(waveform), torch.log(expected + 1e-5), rtol=0, atol=5e-5)


def test_published_buffers_have_their_shapes(log_mel, plain):
    assert torch.equal(log_mel.resample_kernel, plain[0].kernel)
    assert torch.equal(log_mel.window, plain[1].spectrogram.window)
    assert torch.equal(log_mel.mel_bank, plain[1].mel_scale.fb)
    assert not log_mel.state_dict()


@settings(max_examples=30, deadline=None)
@given(n_samples=st.integers(4000, 60000))
def test_lengths(n_samples):
    front_end = LogMel(**SMALL)
    waveform = noise(1, 1, n_samples)
    resampled = front_end.resample(waveform[:, 0])
    assert resampled.shape[-1] == front_end.n_resampled(n_samples) == math.ceil(n_samples * 320 / 441)
    assert front_end(waveform).shape == (1, 1, 20, front_end.n_frames(n_samples))
    torch.testing.assert_close(
        resampled, torchaudio.transforms.Resample(44100, 32000)(waveform[:, 0]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("rate", "other"), [(48000, 32000), (16000, 32000), (22050, 16000), (32000, 32000)])
def test_other_rates(rate, other):
    waveform = noise(2, 1, rate // 4)
    expected = torchaudio.transforms.Resample(rate, other)(waveform[:, 0])
    torch.testing.assert_close(
        LogMel(rate, other, **SMALL).resample(waveform[:, 0]), expected, rtol=0, atol=1e-6
    )


def test_tone_lands_in_its_band(log_mel):
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(44100) / 44100)[None, None]
    band = int(log_mel(tone)[0, 0, :, 30].argmax())
    centre_hz = float(log_mel.mel_bank[:, band].argmax()) * 32000 / 4096
    assert abs(centre_hz - 1000) < 20


def test_silence_is_the_log_offset(log_mel):
    assert torch.allclose(log_mel(torch.zeros(1, 1, 44100)), torch.tensor(math.log(1e-5)))


def test_clips_do_not_meet(log_mel):
    """A batch, which is worked through a few clips at a time, gives each clip what it gets alone."""
    waveform = noise(9, 1, 44100)
    alone = torch.cat([log_mel(clip[None]) for clip in waveform])
    torch.testing.assert_close(log_mel(waveform), alone, rtol=0, atol=2e-5)


def test_masked_power_becomes_zero_before_the_log(log_mel):
    waveform = noise(2, 1, 44100)
    freq_mask, time_mask = torch.zeros(2, 256, dtype=torch.bool), torch.zeros(2, 65, dtype=torch.bool)
    freq_mask[0, 10:20], time_mask[1, 3:5] = True, True
    out, free = log_mel(waveform, freq_mask, time_mask), log_mel(waveform)
    masked = torch.zeros_like(free, dtype=torch.bool)
    masked[0, :, 10:20], masked[1, :, :, 3:5] = True, True
    assert torch.allclose(out[masked], torch.tensor(-11.512925))
    assert torch.equal(out[~masked], free[~masked])


def test_kaldi_masks_after_the_log():
    front_end = KaldiLogMel(**SMALL)
    freq_mask = torch.zeros(1, 20, dtype=torch.bool)
    freq_mask[0, 4] = True
    out = front_end(noise(1, 1, 8000), freq_mask)
    assert torch.allclose(out[0, 0, 4], torch.tensor(0.9))  # (0 + 4.5) / 5
    assert not torch.isclose(out[0, 0, 5], torch.tensor(0.9)).all()


def test_kaldi_by_hand():
    """Every step of the published chain, written out with torch.stft."""
    front_end = KaldiLogMel(input_rate=32000)
    waveform = noise(1, 1, 32000)
    emphasised = waveform[:, 0, 1:] - 0.97 * waveform[:, 0, :-1]
    spectrum = torch.stft(
        emphasised, 4096, 500, 3072, torch.hann_window(3072, periodic=False), return_complex=True
    )
    bank, _ = torchaudio.compliance.kaldi.get_mel_banks(256, 4096, 32000.0, 0.0, 15500.0, 100.0, -500.0, 1.0)
    mel = torch.nn.functional.pad(bank, (0, 1)) @ spectrum.abs().square()
    expected = (torch.log(mel + 1e-5) + 4.5) / 5
    assert expected.shape[-1] == front_end.n_frames(32000) == 64
    torch.testing.assert_close(front_end(waveform)[:, 0], expected, rtol=0, atol=5e-5)


def test_kaldi_edges_of_one_call():
    front_end, waveform = KaldiLogMel(input_rate=32000), noise(1, 1, 16000)
    other = KaldiLogMel(input_rate=32000, f_min_hz=0.0, f_max_hz=15123.0)
    assert torch.equal(front_end(waveform, f_max_hz=15123.0), other(waveform))
    assert not torch.equal(front_end(waveform), other(waveform))


def test_kaldi_edges_are_drawn_around_the_fixed_ones():
    front_end, rng = KaldiLogMel(), np.random.default_rng(0)
    edges = np.array([front_end.draw_edges(rng) for _ in range(4000)])
    assert (edges[:, 0] == 0).all()
    assert edges[:, 1].min() >= 15001 and edges[:, 1].max() <= 16000
    assert edges[:, 1].min() < 15020 and edges[:, 1].max() > 15980
    assert front_end.f_max_hz == 15500


@pytest.mark.parametrize("front_end_class", [LogMel, KaldiLogMel])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_whatever_autocast_says(front_end_class, dtype):
    front_end, waveform = front_end_class(**SMALL), noise(2, 1, 8000)
    with torch.autocast("cpu", dtype=dtype):
        out = front_end(waveform)
    assert out.dtype == torch.float32
    assert torch.equal(out, front_end(waveform))


def test_stays_float32_inside_a_network_cast_to_half():
    front_end, waveform = LogMel(**SMALL), noise(1, 1, 8000)
    expected = front_end(waveform)
    network = torch.nn.Sequential(front_end, torch.nn.Conv2d(1, 1, 1)).half()
    assert network[1].weight.dtype == torch.float16
    assert (
        front_end.mel_bank.dtype == front_end.window.dtype == front_end.resample_kernel.dtype == torch.float32
    )
    assert torch.equal(network[0](waveform.half().float()), front_end(waveform.half()))
    assert torch.equal(front_end(waveform), expected)


def test_copies():
    front_end, waveform = LogMel(**SMALL), noise(3, 1, 8000)
    assert torch.equal(copy.deepcopy(front_end)(waveform), front_end(waveform))


@pytest.mark.slow
def test_exports():
    front_end, waveform = LogMel(**SMALL), noise(3, 1, 8000)
    exported = torch.export.export(front_end, (waveform,)).module()
    torch.testing.assert_close(exported(waveform), front_end(waveform), rtol=0, atol=1e-5)


def test_gradient_reaches_the_waveform():
    waveform = noise(1, 1, 8000).requires_grad_()
    LogMel(**SMALL)(waveform).sum().backward()
    assert waveform.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(44100,), (1, 44100), (2, 2, 44100), (1, 1, 1, 44100)])
def test_wrong_shape_is_named(log_mel, shape):
    with pytest.raises(ValueError, match=r"takes \(B, 1, T\)"):
        log_mel(torch.zeros(shape))


@pytest.mark.parametrize(("front_end_class", "shortest"), [(LogMel, 2823), (KaldiLogMel, 2824)])
def test_too_short_a_clip_is_named(front_end_class, shortest):
    front_end = front_end_class()
    assert front_end(noise(1, 1, shortest)).isfinite().all()
    with pytest.raises(ValueError, match=f"{shortest - 1} samples at 44100 Hz, fewer than the {shortest} "):
        front_end(noise(1, 1, shortest - 1))


def test_wrong_mask_is_named(log_mel):
    with pytest.raises(ValueError, match="freq_mask"):
        log_mel(noise(1, 1, 44100), torch.zeros(1, 255, dtype=torch.bool))
    with pytest.raises(ValueError, match="time_mask"):
        log_mel(noise(1, 1, 44100), None, torch.zeros(1, 65))


@pytest.mark.parametrize(
    "setting",
    [
        {"win_length": 5000},
        {"win_length": 0},
        {"f_max_hz": 17000.0},
        {"f_min_hz": 16000.0},
        {"f_min_hz": -1.0},
        {"n_mels": 0},
        {"hop_samples": 0},
        {"log_offset": 0.0},
        {"n_fft": 4095},
        {"input_rate": 0},
    ],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(
        ValueError, match=next(iter(setting)) if "f_m" not in next(iter(setting)) else "mel edges"
    ):
        LogMel(**setting)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("front_end_class", [LogMel, KaldiLogMel])
def test_gpu_gives_the_numbers_of_the_cpu(front_end_class):
    front_end, waveform = front_end_class(), noise(4, 1, 44100)
    expected = front_end(waveform)
    with torch.autocast("cuda", dtype=torch.float16):
        found = front_end.cuda()(waveform.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)
