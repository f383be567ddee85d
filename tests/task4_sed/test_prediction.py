"""Frame predictor: frames brought to a number, sequence model, heads, published names."""

import pytest
import torch
from torch import nn

from common.nn.encoders import build_encoder
from common.nn.sequence import AttentionMinGRU
from common.nn.weights import load_published
from task4_sed.models.prediction import FramePredictor, resample_frames


class Frames(nn.Module):
    """An encoder whose frames are its input: (B, 1, D, N) → (B, N, D)."""

    def __init__(self, n_features=6):
        super().__init__()
        self.n_features = n_features

    def forward(self, log_mel):
        return log_mel[:, 0].transpose(1, 2)


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("sequence", "dim", "n_features"), [(None, 8, 6), ("tf", 16, 16), ("gru", 5, 10), ("hybrid", 104, 104)]
)
@pytest.mark.parametrize("n_found", [7, 20, 33])
@torch.no_grad()
def test_outputs(sequence, dim, n_features, n_found):
    network = FramePredictor(Frames(), 3, sequence, dim, n_frames=20).eval()
    out = network(torch.randn(2, 1, 6, n_found))
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "strong_logits": (2, 20, 3),
        "weak_logits": (2, 3),
        "features": (2, 20, n_features),
    }
    assert network.n_features == n_features
    torch.testing.assert_close(out["strong_logits"], network.strong_head(out["features"]))
    torch.testing.assert_close(out["weak_logits"], network.weak_head(out["features"].mean(1)))


@torch.no_grad()
def test_sequence_model_sees_the_resampled_frames():
    network = FramePredictor(Frames(), 3, "gru", 4, n_frames=10).eval()
    x = torch.randn(1, 1, 6, 25)
    expected = network.sequence(resample_frames(network.encoder(x), 10))
    torch.testing.assert_close(network(x)["features"], expected)


@torch.no_grad()
def test_frames_as_they_come():
    network = FramePredictor(Frames(), 3, n_frames=None)
    x = torch.randn(1, 1, 6, 17)
    assert torch.equal(network(x)["features"], network.encoder(x))
    with pytest.raises(ValueError, match="n_frames is 0"):
        FramePredictor(Frames(), n_frames=0)


def test_longer_is_averaged_in_groups():
    frames = torch.tensor([0.0, 2.0, 4.0, 10.0, 20.0, 30.0])[None, :, None]
    assert resample_frames(frames, 3).flatten().tolist() == [1.0, 7.0, 25.0]
    # Where the numbers do not divide, groups share a frame: 0-2, 1-3, 3-5.
    assert resample_frames(frames[:, :5], 3).flatten().tolist() == pytest.approx([1.0, 16 / 3, 15.0])


def test_shorter_is_interpolated_between_centres():
    frames = torch.tensor([0.0, 4.0])[None, :, None]
    assert resample_frames(frames, 4).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert resample_frames(frames, 2) is frames


def test_heads_of_the_sequence_model_can_be_chosen():
    network = FramePredictor(Frames(), 3, "hybrid", 16, n_heads=2)
    assert {m.n_heads for m in network.modules() if isinstance(m, AttentionMinGRU)} == {2}


def test_teacher_has_the_published_size():
    """ATST-Frame with the BiGRU 2 × 2048: 199.2 M parameters."""
    encoder = Frames(768)
    with torch.device("meta"):
        teacher = FramePredictor(encoder, sequence="gru", dim=2048)
    assert sum(p.numel() for p in teacher.parameters()) + 85_419_264 == pytest.approx(199.2e6, rel=5e-4)


def published_name(name):
    """The name that our name has in a file of EfficientSED."""
    for ours, published in (("encoder.network.", "net.model."), ("sequence.", "net.seq_model."), ("", "net.")):
        if name.startswith(ours):
            name = published + name.removeprefix(ours)
            break
    name = name.replace(".conv1.", ".net.0.").replace(".conv2.", ".net.4.")
    name = name.replace("parametrizations.weight.original0", "weight_g")
    return name.replace("parametrizations.weight.original1", "weight_v")


@pytest.mark.parametrize("sequence", ["tf", "tcn", "hybrid", "gru", None])
@torch.no_grad()
def test_file_with_published_names_loads(sequence):
    first, second = (FramePredictor(build_encoder("fmn04"), 5, sequence, 16).eval() for _ in range(2))
    state = {published_name(name): tensor for name, tensor in first.state_dict().items()}
    # The two convolutions of a block stand in the file a second time.
    for name in list(state):
        twin = name.replace(".net.0.", ".conv1.").replace(".net.4.", ".conv2.")
        if sequence == "tcn" and "network" in name:
            state[twin] = state[name]
    report = load_published(second, state, "efficient_sed")
    assert not report.missing and not report.unexpected
    log_mel = torch.randn(1, 1, 128, 80)
    torch.testing.assert_close(second(log_mel)["strong_logits"], first(log_mel)["strong_logits"], rtol=0, atol=0)
