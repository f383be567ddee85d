"""Frame-wise MobileNet."""

import pytest
import torch

from common.nn.frame_mobilenet import WIDTHS, FrameMobileNet
from common.nn.mobilenet import ChannelGate


@pytest.mark.parametrize(("name", "n_features"), list(zip(WIDTHS, (384, 576, 960, 1920, 2880))))
def test_published_widths(name, n_features):
    with torch.device("meta"):
        network = FrameMobileNet(WIDTHS[name])
        frames = network(torch.zeros(1, 1, 128, 1000))
    assert network.n_features == n_features
    assert frames.shape == (1, 250, n_features)


@pytest.mark.parametrize(("n_mel_frames", "n_frames"), [(1, 1), (4, 1), (5, 2), (401, 101), (3000, 750)])
def test_one_frame_per_four_of_any_length(n_mel_frames, n_frames):
    with torch.device("meta"):
        assert FrameMobileNet(0.4)(torch.zeros(2, 1, 128, n_mel_frames)).shape == (2, n_frames, 384)


def test_frequency_ends_in_one_row():
    with torch.device("meta"):
        assert FrameMobileNet(0.4).features(torch.zeros(1, 1, 128, 40)).shape == (1, 384, 1, 10)


@pytest.fixture
def network():
    """A narrow network whose BatchNorms know their inputs: a fresh one fades to nothing in evaluation mode."""
    torch.manual_seed(0)
    network = FrameMobileNet(0.1).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 1, 128, 400))
    return network.eval()


@torch.no_grad()
def test_a_frame_sees_its_own_time(network):
    """With the gates of squeeze and excitation held still, an output frame sees 81 mel frames to both sides."""
    for module in network.modules():
        if isinstance(module, ChannelGate):
            module.fc2.weight.zero_()
    quiet = torch.randn(1, 1, 128, 400)
    click = quiet.clone()
    click[..., 240:244] += 5  # of output frame 60; 4 n ± 81 meets them for n from 40 to 81
    moved = (network(click) - network(quiet)).abs().amax((0, 2))  # (N,)
    reached = moved.nonzero().flatten()
    assert moved[60] > 0.1 * moved.max()
    assert 40 <= reached[0] < 45
    assert 75 < reached[-1] <= 81


@torch.no_grad()
def test_clips_do_not_depend_on_their_batch(network):
    clips = torch.randn(3, 1, 128, 60)
    alone = torch.cat([network(clip[None]) for clip in clips])
    torch.testing.assert_close(network(clips), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 64, 100), (1, 128, 100), (1, 2, 128, 100)])
def test_features_of_another_front_end_are_refused(shape):
    with pytest.raises(ValueError, match=r"takes \(B, 1, 128, N\)"):
        FrameMobileNet(0.1)(torch.zeros(shape))
