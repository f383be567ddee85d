"""Front ends of the sound event networks against torchaudio and librosa. Published numbers: tests/parity."""

import json
import math
import warnings

import librosa
import numpy as np
import pytest
import torch
from torchaudio.compliance.kaldi import fbank, get_mel_banks
from torchaudio.functional import amplitude_to_DB, resample
from torchaudio.transforms import MelSpectrogram

from common.audio.encoder_frontends import AtstMel, BeatsFbank, CrnnMel, M2dMel, fmn_mel, passt_mel
from common.audio.frontends import KaldiLogMel
from tests.parity.fill import probe, wave

CLIP = 160000
FRONT_ENDS = {  # maker, bands, frames of a clip, fewest samples
    "crnn": (CrnnMel, 128, 626, 1025),
    "atst": (AtstMel, 64, 1001, 513),
    "beats": (BeatsFbank, 128, 998, 400),
    "passt": (passt_mel, 128, 1000, 258),
    "fmn": (fmn_mel, 128, 1000, 258),
    "m2d": (M2dMel, 80, 1001, 201),
}
every_front_end = pytest.mark.parametrize("name", FRONT_ENDS)


def noise(*shape, seed=0, scale=0.1):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- what all have in common


@every_front_end
def test_shapes_of_a_clip(name):
    make, n_mels, n_frames, _ = FRONT_ENDS[name]
    front_end = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = front_end(noise(2, 1, CLIP))
    assert out.shape == (2, 1, n_mels, n_frames)
    assert out.dtype == torch.float32 and out.isfinite().all()
    assert (front_end.sample_rate, front_end.n_mels, front_end.n_frames(CLIP)) == (16000, n_mels, n_frames)
    assert not front_end.state_dict()


@every_front_end
@pytest.mark.parametrize("n_samples", [2048, 2049, 5119, 5120, 5121, 15999, 16000])
def test_frames_of_other_lengths(name, n_samples):
    front_end = FRONT_ENDS[name][0]()
    assert front_end(noise(1, 1, n_samples)).shape[-1] == front_end.n_frames(n_samples)


@every_front_end
def test_a_clip_does_not_see_its_batch_mates(name):
    """Not even ones 40 dB louder, nor where its place in the batch puts it into another chunk."""
    front_end = FRONT_ENDS[name][0]()
    waveform = torch.tensor([0.01, 1.0, 0.3, 1e-4, 0.1])[:, None, None] * noise(5, 1, 40000, scale=1.0)
    alone = torch.cat([front_end(clip[None]) for clip in waveform])
    torch.testing.assert_close(front_end(waveform), alone, rtol=0, atol=1e-5)


@every_front_end
def test_silence_is_finite(name):
    out = FRONT_ENDS[name][0]()(torch.zeros(1, 1, 16000))
    assert out.isfinite().all() and len(out.unique()) == 1


@every_front_end
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_whatever_autocast_says(name, dtype):
    front_end, waveform = FRONT_ENDS[name][0](), noise(2, 1, 8000)
    with torch.autocast("cpu", dtype=dtype):
        out = front_end(waveform)
    assert out.dtype == torch.float32
    assert torch.equal(out, front_end(waveform))


@every_front_end
def test_stays_float32_inside_a_network_cast_to_half(name):
    front_end, waveform = FRONT_ENDS[name][0](), noise(1, 1, 8000)
    expected = front_end(waveform)
    torch.nn.Sequential(front_end).half()
    assert front_end.mel_bank.dtype == front_end.window.dtype == torch.float32
    assert torch.equal(front_end(waveform), expected)
    assert front_end(waveform.half()).dtype == torch.float32


@every_front_end
def test_too_short_a_clip_is_named(name):
    make, *_, shortest = FRONT_ENDS[name]
    assert make()(noise(1, 1, shortest)).isfinite().all()
    with pytest.raises(ValueError, match=f"{shortest - 1} samples at 16000 Hz, fewer than the {shortest} "):
        make()(noise(1, 1, shortest - 1))


@every_front_end
@pytest.mark.parametrize("shape", [(16000,), (1, 16000), (2, 2, 16000), (1, 1, 1, 16000)])
def test_wrong_shape_is_named(name, shape):
    with pytest.raises(ValueError, match=r"takes \(B, 1, T\)"):
        FRONT_ENDS[name][0]()(torch.zeros(shape))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_front_end
def test_gpu_gives_the_numbers_of_the_cpu(name):
    front_end, waveform = FRONT_ENDS[name][0](), noise(4, 1, CLIP)
    expected = front_end(waveform)
    with torch.autocast("cuda", dtype=torch.float16):
        found = front_end.cuda()(waveform.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------- recurrent networks


def test_crnn_amplitude_is_torchaudios():
    plain = MelSpectrogram(
        16000,
        n_fft=2048,
        hop_length=256,
        f_max=8000,
        n_mels=128,
        window_fn=torch.hamming_window,
        wkwargs={"periodic": False},
        power=1,
    )
    waveform = noise(2, 1, 32000)
    expected = plain(waveform)
    amplitude = CrnnMel().amplitude(waveform)
    torch.testing.assert_close(amplitude, expected, rtol=0, atol=2e-6 * float(expected.max()))


def test_crnn_scale_by_hand():
    """Amplitudes of −180, −20, 0 and 100 dB: the outer two are clamped to −50 and 80."""
    amplitude = torch.tensor([1e-9, 0.1, 1.0, 1e5])[None, None, None]
    front_end = CrnnMel()
    expected_db = torch.tensor([-50.0, -20.0, 0.0, 80.0])
    torch.testing.assert_close(front_end.decibels(amplitude).flatten(), expected_db)
    scaled = front_end.scale(amplitude).flatten()
    torch.testing.assert_close(scaled, 2 * (expected_db + 50) / 130 - 1)
    halved = front_end.scale(torch.zeros(1, 1, 128, 4, dtype=torch.float16))  # an augmentation under autocast
    assert torch.equal(halved, torch.full((1, 1, 128, 4), -1.0))


def test_crnn_scale_spans_each_clip():
    front_end, waveform = CrnnMel(), torch.cat([noise(1, 1, 16000), noise(1, 1, 16000, seed=1, scale=0.001)])
    out = front_end(waveform)
    assert torch.equal(out, front_end.scale(front_end.amplitude(waveform)))
    for clip in out:
        assert clip.min() == -1 and abs(float(clip.max()) - 1) < 1e-6
    assert torch.equal(front_end(torch.zeros(1, 1, 16000)), torch.full((1, 1, 128, 63), -1.0))


# ---------------------------------------------------------------- ATST-Frame


def atst_power(waveform):
    return MelSpectrogram(16000, n_fft=1024, hop_length=160, f_min=60, f_max=7800, n_mels=64)(waveform)


def atst_scaled(level_db):
    return (level_db.clamp(-50, 80) + 79.6482) / (50.6842 + 79.6482) * 2 - 1


@pytest.fixture(scope="module")
def quiet_beside_loud():
    """Noise of −80 dB beside a chirp of full scale: only their batch is loud enough for its floor to show."""
    quiet, chirp = wave(CLIP, 0)
    return torch.stack([1e-3 * quiet, 0.99 / 0.3 * chirp])[:, None]


@pytest.mark.parametrize("over", ["clip", "batch"])
def test_atst_floor_is_torchaudios(quiet_beside_loud, over):
    power = atst_power(quiet_beside_loud)  # (2, 1, 64, N): torchaudio's floor is each clip's
    if over == "batch":  # (2, 64, N): one floor for all
        power = power[:, 0]
    expected = atst_scaled(amplitude_to_DB(power, 10.0, 1e-10, 0.0, top_db=80.0)).view(2, 1, 64, -1)
    out = AtstMel(top_db_over=over)(quiet_beside_loud)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


def test_atst_batch_floor_changes_a_quiet_clip(quiet_beside_loud):
    alone, loud = quiet_beside_loud[:1], quiet_beside_loud[1:]
    clip, batch = AtstMel(), AtstMel(top_db_over="batch")
    assert torch.equal(clip(alone), batch(alone))
    torch.testing.assert_close(clip(quiet_beside_loud)[:1], clip(alone), rtol=0, atol=1e-6)
    moved = (batch(quiet_beside_loud)[:1] - batch(alone)).max()
    assert 0.2 < moved < 0.4
    assert torch.equal(batch(quiet_beside_loud)[1:], batch(loud))


def test_atst_unknown_floor_is_named():
    with pytest.raises(ValueError, match="top_db_over 'file'"):
        AtstMel(top_db_over="file")


# ---------------------------------------------------------------- BEATs


def kaldi_loop(waveform):
    """One clip after the other, (B, 128, N)."""
    settings = {"num_mel_bins": 128, "sample_frequency": 16000.0, "frame_length": 25.0, "frame_shift": 10.0}
    return torch.stack([fbank(clip * 2**15, **settings).T for clip in waveform])


def test_beats_batch_is_kaldis_loop():
    loudness = torch.tensor([1.0, 0.01, 1e-4])[:, None, None]
    waveform = loudness * (noise(3, 1, 32000) + 0.2)  # an offset, which each frame loses
    expected = kaldi_loop(waveform)
    front_end = BeatsFbank()
    torch.testing.assert_close(front_end.fbank(waveform)[:, 0], expected, rtol=0, atol=5e-5)
    scaled = (expected - 15.41663) / (2 * 6.55582)
    torch.testing.assert_close(front_end(waveform)[:, 0], scaled, rtol=0, atol=5e-6)


def test_beats_of_a_tone_and_of_silence():
    """A sine has bands 120 dB below its own: there, too, the same rounding; silence is the floor."""
    t_s = torch.arange(16000) / 16000
    tone = (0.3 * torch.sin(2 * math.pi * 1000 * t_s)).where(t_s < 0.5, 0.0)[None, None]
    out, expected = BeatsFbank().fbank(tone)[:, 0], kaldi_loop(tone)
    near = expected > expected.amax(1, keepdim=True) - math.log(1e7)
    torch.testing.assert_close(out[near], expected[near], rtol=0, atol=1e-4)
    assert torch.equal(out[..., -1], torch.full((1, 128), math.log(torch.finfo(torch.float32).eps)))


# ---------------------------------------------------------------- frame-wise PaSST and MobileNets


@pytest.mark.parametrize(("make", "periodic"), [(passt_mel, True), (fmn_mel, False)])
def test_kaldi_mel_by_hand(make, periodic):
    waveform = torch.cat([noise(1, 1, 16000), torch.zeros(1, 1, 16000), noise(1, 1, 16000, scale=1e-6)])
    emphasised = waveform[:, 0, 1:] - 0.97 * waveform[:, 0, :-1]
    window = torch.hann_window(400, periodic=periodic)
    spectrum = torch.stft(emphasised, 512, 160, 400, window, return_complex=True)
    bank, _ = get_mel_banks(128, 512, 16000.0, 0.0, 7000.0, 100.0, -500.0, 1.0)
    power = torch.nn.functional.pad(bank, (0, 1)) @ spectrum.abs().square()
    expected = (power.clamp(min=1e-7).log() + 4.5) / 5
    torch.testing.assert_close(make()(waveform)[:, 0], expected, rtol=0, atol=2e-5)


def test_window_and_floor_are_switches():
    waveform, settings = noise(1, 1, 16000), {"input_rate": 16000, "sample_rate": 16000, "n_fft": 512}
    settings |= {"win_length": 400, "hop_samples": 160, "n_mels": 32}
    plain = KaldiLogMel(**settings)
    assert torch.equal(plain(waveform), KaldiLogMel(**settings, periodic_window=False, floor="add")(waveform))
    assert not torch.equal(plain(waveform), KaldiLogMel(**settings, periodic_window=True)(waveform))
    quiet = 3e-3 * waveform  # power on both sides of the floor
    power = plain.power_mel(quiet)
    assert power.min() < 1e-5 < power.max()
    torch.testing.assert_close(plain(quiet), ((power + 1e-5).log() + 4.5) / 5)
    clamped = KaldiLogMel(**settings, floor="clamp")(quiet)
    torch.testing.assert_close(clamped, (power.clamp(min=1e-5).log() + 4.5) / 5)
    with pytest.raises(ValueError, match="floor 'max'"):
        KaldiLogMel(**settings, floor="max")


@pytest.mark.parametrize("make", [passt_mel, fmn_mel])
@pytest.mark.parametrize(("f_max_range_hz", "f_max_hz"), [(1, 8000), (1000, 7500), (2000, 7000)])
def test_upper_edge_follows_its_range(make, f_max_range_hz, f_max_hz):
    front_end = make(f_max_range_hz=f_max_range_hz)
    assert front_end.f_max_hz == f_max_hz
    edges = np.array([front_end.draw_edges(np.random.default_rng(seed)) for seed in range(300)])
    assert edges[:, 0].min() >= 0 and edges[:, 0].max() <= 9
    assert edges[:, 1].max() <= 8000 and edges[:, 1].min() > 8000 - f_max_range_hz
    assert len(set(edges[:, 1])) > 1 or f_max_range_hz == 1
    assert front_end(noise(1, 1, 4000), f_min_hz=edges[0, 0], f_max_hz=edges[0, 1]).isfinite().all()


# ---------------------------------------------------------------- M2D


@pytest.mark.parametrize("sample_rate", [16000, 32000])
def test_m2d_is_librosas_slaney_mel(sample_rate):
    front_end, waveform = M2dMel(sample_rate), noise(1, 1, sample_rate)
    n_fft = sample_rate // 40
    bank = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=80, fmin=50, fmax=sample_rate / 2)
    np.testing.assert_allclose(front_end.mel_bank.T, bank, rtol=0, atol=1e-6 * bank.max())
    spectrum = torch.stft(
        waveform[:, 0], n_fft, n_fft * 2 // 5, window=torch.hann_window(n_fft), return_complex=True
    )
    power = bank @ spectrum[0].abs().square().numpy()
    expected = (np.log(power + np.finfo(np.float32).eps) + 7.1) / 4.2
    assert front_end.n_frames(sample_rate) == 101
    np.testing.assert_allclose(front_end(waveform)[0, 0], expected, rtol=0, atol=1e-5)


def test_m2d_mean_and_deviation():
    waveform = noise(1, 1, 16000)
    log_mel = M2dMel(mean=0.0, std=1.0)(waveform)
    torch.testing.assert_close(M2dMel(mean=-3.0, std=2.0)(waveform), (log_mel + 3) / 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"sample_rate": 44100}, "sample_rate 44100"), ({"std": 0.0}, "std 0.0"), ({"mean": math.nan}, "mean nan")],
)
def test_m2d_impossible_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        M2dMel(**settings)


@pytest.mark.parametrize(("name", "sample_rate"), [("m2d_sed", 16000), ("m2dat_tagger", 32000)])
def test_m2d_published_log_mel(shared, name, sample_rate):
    folder = shared / "parity" / "s5"
    arrays, front_end = np.load(folder / f"{name}.npz"), M2dMel(sample_rate)
    cases = [c for c in json.loads((folder / f"{name}.json").read_text())["cases"] if "mel_shape" in c]
    assert len(cases) == 2
    for case in cases:
        waveform = probe(case["shape"], case["seed"], case["scale"])[:, :1]
        if sample_rate == 16000:
            waveform = resample(waveform, 32000, 16000, resampling_method="sinc_interp_kaiser")
        expected = arrays[f"{case['prefix']}_mel"]
        out = front_end(waveform)
        assert list(out.shape) == case["mel_shape"]
        np.testing.assert_allclose(out[0, 0, :, ::16], expected, rtol=0, atol=1e-5 * abs(expected).max())
