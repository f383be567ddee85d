"""One interface for all encoders: names, options, rates, lengths, parameter groups."""

import numpy as np
import pytest
import torch

from common.nn.encoders import ENCODERS, Encoder, build_encoder
from common.nn.frame_mobilenet import FrameMobileNet

SMALL = {"dim": 32, "depth": 2, "n_heads": 4}
SMALL_BEATS = {**SMALL, "patch_dim": 16, "ffn_dim": 48, "conv_groups": 4}
# Small sizes, features, output vectors of 10 s and of 3.3 s, per second.
SIZES = {
    "atst_frame": (SMALL, 32, 250, 82, 25.0),
    "beats": (SMALL_BEATS, 32, 496, 160, 50.0),
    "fpasst": (SMALL, 32, 250, 83, 25.0),
    "m2d": (SMALL, 160, 62, 21, 6.25),
    "fmn04": ({}, 384, 250, 83, 25.0),
}


def small(name, **options) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(name, **SIZES[name][0], **options).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", SIZES)
def test_interface(name):
    _, n_features, n_10s, n_3s, rate_hz = SIZES[name]
    encoder = small(name)
    waveform = 0.1 * torch.randn(2, 1, 160_000)
    log_mel = encoder.log_mel(waveform)
    frames = encoder.encode(waveform)
    assert frames.shape == (2, n_10s, n_features)
    torch.testing.assert_close(encoder(log_mel), frames)
    assert encoder.encode(waveform[..., :52_800]).shape == (2, n_3s, n_features)
    assert (encoder.name, encoder.sample_rate, encoder.clip_s) == (name, 16_000, 10.0)
    assert (encoder.n_features, encoder.frame_rate_hz) == (n_features, rate_hz)
    assert abs(n_10s - 10 * rate_hz) <= 4  # what does not fill a patch is lost


@torch.no_grad()
@pytest.mark.parametrize("name", SIZES)
def test_longer_than_trained(name):
    encoder, waveform = small(name), torch.randn(1, 1, 168_000)  # 10.5 s
    if name in ("beats", "fmn04"):  # no absolute positions
        assert encoder.encode(waveform).shape[1] > SIZES[name][2]
        return
    with pytest.raises(ValueError, match="positions .* end after 1\\d\\d\\d: cut the clip"):
        encoder.encode(waveform)


@pytest.mark.parametrize("name", SIZES)
def test_layer_groups_hold_every_parameter_once(name):
    encoder = small(name)
    assert not list(encoder.front_end.parameters())
    ids = [id(p) for group in encoder.layer_groups() for p in group]
    unused = {id(encoder.network.mask_embed)} if name == "atst_frame" else set()
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in encoder.parameters()} - unused


def test_layer_groups_of_a_mobilenet_begin_at_the_top():
    encoder = small("fmn04")
    groups = encoder.layer_groups()
    assert len(groups) == 17  # last convolution, 15 blocks, stem
    assert groups[0][0] is encoder.network.features[-1][0].weight
    assert groups[-1][0] is encoder.network.features[0][0].weight


def test_folded_beats_have_another_rate():
    folded = small("beats", fold_frequency=True)
    assert folded.frame_rate_hz == 6.25
    with torch.no_grad():
        assert folded.encode(torch.randn(1, 1, 160_000)).shape == (1, 62, 32)


def test_options_reach_network_and_front_end():
    encoder = build_encoder("fpasst", f_max_range_hz=1000, max_tokens=100, **SMALL)
    assert encoder.front_end.f_max_hz == 7500
    assert encoder.network.max_tokens == 100
    assert build_encoder("atst_frame", top_db_over="batch", **SMALL).front_end.top_db_over == "batch"
    assert build_encoder("m2d", **SMALL, sample_rate=32_000).sample_rate == 32_000


@torch.no_grad()
@pytest.mark.parametrize("name", ["fpasst", "fmn04"])
def test_mel_edges_of_training_reach_the_front_end(name):
    encoder, waveform = small(name), torch.randn(1, 1, 16_000)
    edges = encoder.draw_edges(np.random.default_rng(3))
    drawn = encoder.front_end.draw_edges(np.random.default_rng(3))
    assert edges == dict(zip(("f_min_hz", "f_max_hz"), drawn))
    assert torch.equal(encoder.log_mel(waveform, **edges), encoder.front_end(waveform, None, None, *drawn))
    assert not torch.equal(encoder.log_mel(waveform, **edges), encoder.log_mel(waveform))
    assert torch.equal(encoder.log_mel(waveform, f_max_hz=7000.0), encoder.log_mel(waveform))


@torch.no_grad()
@pytest.mark.parametrize("name", ["atst_frame", "beats", "m2d"])
def test_other_front_ends_have_no_edges_to_draw(name):
    encoder, waveform, rng = small(name), torch.randn(1, 1, 16_000), np.random.default_rng(3)
    assert encoder.draw_edges(rng) == {}
    assert rng.random() == np.random.default_rng(3).random()  # nothing drawn
    assert torch.equal(encoder.log_mel(waveform, **encoder.draw_edges(rng)), encoder.front_end(waveform))
    with pytest.raises(ValueError, match=f"encoder {name} .* mel edges are fixed"):
        encoder.log_mel(waveform, f_max_hz=7000.0)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="encoder 'atst' is unknown: did you mean 'atst_frame'"):
        build_encoder("atst")
    with pytest.raises(ValueError, match="encoder 'xyz' is unknown: choose one of atst_frame, beats, "):
        build_encoder("xyz")
    with pytest.raises(ValueError, match="beats has no option 'fold_freq': did you mean 'fold_frequency'"):
        build_encoder("beats", fold_freq=True)
    with pytest.raises(ValueError, match="fmn10 has no option 'width'"):
        build_encoder("fmn10", width=2.0)


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [("atst_frame", 85_419_264), ("beats", 90_311_792), ("fpasst", 88_421_632), ("m2d", 85_492_992)],
)
def test_published_sizes_are_the_defaults(name, n_parameters):
    with torch.device("meta"):  # counts without memory
        network = ENCODERS[name].network()
    assert sum(p.numel() for p in network.parameters()) == n_parameters


def test_all_names_of_the_frame_wise_mobilenets():
    widths = {n: s.settings["width"] for n, s in ENCODERS.items() if s.network is FrameMobileNet}
    assert widths == {"fmn04": 0.4, "fmn06": 0.6, "fmn10": 1.0, "fmn20": 2.0, "fmn30": 3.0}


@torch.no_grad()
@pytest.mark.parametrize("name", ["atst_frame", "beats", "fpasst", "m2d"])
def test_mixed_precision(name):
    encoder = small(name)
    log_mel = encoder.log_mel(0.1 * torch.randn(1, 1, 32_000))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(log_mel)
    exact = encoder(log_mel)
    assert (mixed.float() - exact).abs().max() < 0.1 * exact.abs().max()
