"""Encoder, projection and CRNN together: what is joined how, and what trains when."""

import pytest
import torch
from torch import nn

from common.nn.encoders import build_encoder
from task4_sed.models.crnn import FusionCRNN
from task4_sed.models.fusion import FusionModel, build_fusion, seeded_linear


class SmallEncoder(nn.Module):
    """Tokens of 3 features from columns of a mel, with dropout, and with a parameter that never trains."""

    name, n_features = "small", 3

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)
        self.fixed = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, log_mel):
        return self.dropout(self.linear(log_mel[:, 0].transpose(1, 2))) + self.fixed


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def small_fusion(projection="random_frozen", **settings):
    return build_fusion(SmallEncoder(), projection, n_classes=5, hidden=8, n_projected=6, **settings)


def mels(n_clips=2):
    return torch.randn(n_clips, 1, 128, 20), torch.randn(n_clips, 1, 4, 9)


def training_step(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    found = model(*mels())
    (found["strong"].sum() + found["weak"].sum()).backward()
    optimizer.step()


def changed(model, before):
    return {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def copy_of(model):
    return {name: p.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("projection", "stage", "trains"),
    [
        ("random_frozen", 1, {"crnn"}),
        ("random_frozen", 2, {"crnn", "encoder"}),
        ("trained", 1, {"crnn", "projection"}),
        ("trained", 2, {"crnn", "projection", "encoder"}),
        ("none", 2, {"crnn", "encoder"}),
    ],
)
def test_what_trains(projection, stage, trains):
    model = small_fusion(projection).train()
    model.train_encoder(stage == 2)
    before = copy_of(model)
    training_step(model)
    assert changed(model, before) == trains
    assert not model.encoder.fixed.requires_grad


def test_frozen_encoder_stays_in_evaluation_mode():
    model = small_fusion().train()
    _, encoder_mel = mels()
    assert not model.encoder.training
    assert model.crnn.training
    assert torch.equal(model.embeddings(encoder_mel), model.embeddings(encoder_mel))
    assert not model.embeddings(encoder_mel).requires_grad
    model.train_encoder()
    assert model.encoder.training
    assert model.embeddings(encoder_mel).requires_grad
    model.train_encoder(False)
    assert not model.encoder.training
    assert not model.eval().crnn.training


def test_two_models_may_share_an_encoder():
    encoder = SmallEncoder()
    build_fusion(encoder, "none")
    second = build_fusion(encoder, "none")
    second.train_encoder()
    assert encoder.linear.weight.requires_grad
    assert not encoder.fixed.requires_grad


def test_random_projection_is_the_same_in_every_stage():
    first, second, other = small_fusion(), small_fusion(), small_fusion(projection_seed=1)
    assert torch.equal(first.projection.weight, second.projection.weight)
    assert torch.equal(first.projection.bias, second.projection.bias)
    assert not torch.equal(first.projection.weight, other.projection.weight)
    layer = seeded_linear(16, 1000, 0)
    assert layer.weight.abs().max() <= 0.25  # 1 / √16, as torch's own
    assert layer.weight.std().item() == pytest.approx(nn.Linear(16, 1000).weight.std().item(), rel=0.05)


@torch.no_grad()
def test_embeddings_and_crnn_are_the_whole():
    model = small_fusion().eval()
    crnn_mel, encoder_mel = mels()
    mask = torch.tensor([[True] * 5, [True, False, True, False, False]])
    found = model(crnn_mel, encoder_mel, mask)
    apart = model.crnn(crnn_mel, model.embeddings(encoder_mel), mask)
    assert all(torch.equal(value, apart[name]) for name, value in found.items())
    assert (found["weak"][1] == 0).tolist() == [False, True, False, True, True]


@torch.no_grad()
def test_projection_brings_tokens_to_250_and_without_it_they_stay():
    _, encoder_mel = mels()
    model = small_fusion().eval()
    projected = model.embeddings(encoder_mel)
    assert projected.shape == (2, 250, 6)
    # The projection is linear, so averaging before or after it is the same.
    apart = model.projection(model.encoder(encoder_mel)).transpose(1, 2)
    torch.testing.assert_close(projected, nn.functional.adaptive_avg_pool1d(apart, 250).transpose(1, 2))
    assert small_fusion("none").embeddings(encoder_mel).shape == (2, 9, 3)


def test_unknown_projection_names_the_choices():
    with pytest.raises(ValueError, match="projection 'frozen' is unknown: choose one of random_frozen, trained, none"):
        small_fusion("frozen")


SMALL_TRANSFORMERS = {
    "atst_frame": {"dim": 8, "depth": 1, "n_heads": 2},
    "fpasst": {"dim": 8, "depth": 1, "n_heads": 2},
    "beats": {"dim": 16, "patch_dim": 8, "depth": 2, "n_heads": 2, "ffn_dim": 8, "conv_taps": 4, "conv_groups": 2},
}


@pytest.mark.parametrize(
    ("name", "width", "embed_pool", "n_tokens"),
    [("atst_frame", 527, "aap", 250), ("fpasst", 527, "int", 250), ("beats", 16, "int", 496)],
)
@torch.no_grad()
def test_published_joints(name, width, embed_pool, n_tokens):
    model = build_fusion(name, hidden=8, **SMALL_TRANSFORMERS[name]).eval()
    assert (model.projection is not None) == (width == 527)
    assert isinstance(model.crnn, FusionCRNN)
    assert (model.crnn.n_features, model.crnn.embed_pool) == (width, embed_pool)
    n_mels, n_frames = {"atst_frame": (64, 1001), "fpasst": (128, 1000), "beats": (128, 998)}[name]
    assert model.embeddings(torch.randn(1, 1, n_mels, n_frames)).shape == (1, n_tokens, width)
    assert not any(p.requires_grad for p in model.encoder.parameters())


@torch.no_grad()
def test_sane_variants_beside_the_published_ones():
    settings = SMALL_TRANSFORMERS["beats"]
    log_mel = torch.randn(1, 1, 128, 998)
    published = build_fusion("beats", hidden=8, **settings).eval()
    folded = build_fusion("beats", embed_pool="aap", hidden=8, fold_frequency=True, **settings).eval()
    folded.encoder.load_state_dict(published.encoder.state_dict())
    assert folded.crnn.embed_pool == "aap"
    by_band = published.embeddings(log_mel).unflatten(1, (62, 8))
    torch.testing.assert_close(folded.embeddings(log_mel), by_band.mean(2))


def test_front_ends_are_not_part_of_the_weights():
    model = build_fusion(build_encoder("beats", **SMALL_TRANSFORMERS["beats"]), hidden=8)
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "crnn"}
    assert all(name.startswith("encoder.network.") for name in model.state_dict() if name.startswith("encoder."))
    assert isinstance(model, FusionModel)
