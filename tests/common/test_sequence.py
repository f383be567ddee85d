"""Sequence models: attention with rotary positions, minGRU, dilated convolutions."""

import math

import pytest
import torch
from torch import nn

from common.nn.min_gru import BidirectionalMinGRU, MinGRU, linear_scan
from common.nn.sequence import (
    KINDS,
    AttentionMinGRU,
    DilatedConvs,
    GatedAttention,
    RMSNorm,
    RotaryPositions,
    build_sequence,
)

DIM = 16  # tf: 4 heads of 4; attn, hybrid: 8 of 2


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


def build_eval(kind, in_features=12, dim=DIM):
    return build_sequence(kind, in_features, dim).eval()


# ---------------------------------------------------------------- all kinds


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_shape_and_length(kind):
    model = build_eval(kind)
    assert model.n_features == (2 * DIM if kind == "gru" else DIM)
    for n_frames in (1, 7, 40):
        assert model(torch.randn(2, n_frames, 12)).shape == (2, n_frames, model.n_features)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_sequences_do_not_depend_on_their_batch(kind):
    model, x = build_eval(kind), torch.randn(3, 20, 12)
    alone = torch.cat([model(item[None]) for item in x])
    torch.testing.assert_close(model(x), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_which_frames_a_change_reaches(kind):
    """A change in the middle reaches all frames of each kind, of the causal one only later frames."""
    model, x = build_eval(kind), torch.randn(1, 31, 12)
    changed = x.clone()
    changed[:, 15] += 1
    moved = (model(changed) - model(x)).abs().amax(-1)[0]
    assert (moved[15:] > 0).all()
    assert (moved[:15] == 0).all() if kind == "tcn" else (moved[:15] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_trained_parameter(kind):
    model = build_sequence(kind, 12, DIM).train()
    model(torch.randn(2, 20, 12)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name
        assert parameter.requires_grad or name.endswith("pos_encoding.freqs")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_half_precision_is_close(kind):
    model, x = build_eval(kind), torch.randn(2, 50, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x)
    exact = model(x)
    assert (half.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("kind", ["tf", "tcn"])
def test_dropout_in_training_only(kind):
    model, x = build_sequence(kind, 12, DIM), torch.randn(1, 20, 12)
    with torch.no_grad():
        assert not torch.equal(model.train()(x), model(x))
        assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("kind", "dim", "heads"),
    [
        ("tf", 104, 4),
        ("hybrid", 104, 8),
        ("attn", 112, 8),
        ("tf", 128, 8),
        ("hybrid", 160, 8),
        ("attn", 256, 8),
    ],
)
def test_published_heads(kind, dim, heads):
    """Eight at every published width, but of "tf" four below 128."""
    with torch.device("meta"):
        model = build_sequence(kind, 384, dim)
        assert model(torch.zeros(1, 250, 384)).shape == (1, 250, dim)
    found = {m.n_heads for m in model.modules() if isinstance(m, GatedAttention | AttentionMinGRU)}
    assert found == {heads}


def test_heads_of_ones_own_choice():
    assert build_sequence("hybrid", 12, 104)[1].layers[0][1].rnn_out_norm.gamma.shape == (13,)
    assert build_sequence("hybrid", 12, 104, n_heads=4)[1].layers[0][1].rnn_out_norm.gamma.shape == (26,)
    with pytest.raises(ValueError, match="13 features"):
        build_sequence("tf", 12, 104, n_heads=8)
    with pytest.raises(ValueError, match="100 cannot be shared among 8"):
        build_sequence("hybrid", 12, 100, n_heads=8)


def test_as_wide_as_the_encoder_needs_no_first_layer():
    names = [name for name, _ in build_sequence("tf", DIM, DIM).named_parameters()]
    assert not [name for name in names if name.startswith("0.")]
    assert "1.layers.0.0.to_qkv.weight" in names


@pytest.mark.parametrize(("kind", "error"), [("mamba", NotImplementedError), ("lstm", ValueError)])
def test_what_is_not_here_is_said(kind, error):
    with pytest.raises(error, match=rf"'{kind}'.*use one of tf, attn, gru, tcn, hybrid"):
        build_sequence(kind, 12)


# ---------------------------------------------------------------- parts


def test_rms_norm():
    out = RMSNorm(2)(torch.tensor([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]]))
    expected = torch.tensor([3.0, 4.0]) / math.sqrt(12.5)
    torch.testing.assert_close(out, torch.stack((expected, expected, torch.zeros(2))))


@torch.no_grad()
def test_rms_norm_of_half_precision_networks():
    """In float16 the square of 300 is infinite, and the smallest length is 0."""
    x = torch.tensor([[300.0, 400.0], [3e-7, 4e-7], [0.0, 0.0]], dtype=torch.float16)
    out = RMSNorm(2).half()(x)
    assert out.dtype == torch.float16
    assert out.isfinite().all()
    torch.testing.assert_close(out[0], (torch.tensor([3.0, 4.0]) / math.sqrt(12.5)).half())
    assert (out[2] == 0).all()
    exact = torch.randn(3, 2, dtype=torch.float64)
    expected = exact / exact.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(RMSNorm(2).double()(exact), expected, rtol=1e-12, atol=0)


def test_rotary_turns_neighbouring_pairs():
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(3, 4)
    out = RotaryPositions(4)(x)
    for position in range(3):
        fast, slow = position * 1.0, position * 0.01  # 10000^0 and 10000^(-1/2)
        expected = torch.tensor([math.cos(fast), math.sin(fast), -math.sin(slow), math.cos(slow)])
        torch.testing.assert_close(out[position], expected)


def test_rotary_products_depend_on_the_distance_alone():
    rotary = RotaryPositions(8)
    q, k = (torch.randn(8).expand(50, 8) for _ in range(2))
    products = rotary(q) @ rotary(k).T  # (query position, key position)
    for distance in (-9, 0, 4):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert (products[0] - products[0, 0]).abs().max() > 0.1


@torch.no_grad()
def test_attention_without_positions_and_gates_is_torchs():
    """With no rotation and open gates, the layer is PyTorch's own multi-head attention on the normed input."""
    layer = GatedAttention(DIM, 4).eval()
    layer.pos_encoding.freqs.zero_()
    layer.to_gates.weight.zero_()
    layer.to_gates.bias.fill_(30.0)
    twin = nn.MultiheadAttention(DIM, 4, bias=False, batch_first=True)
    twin.in_proj_weight.copy_(layer.to_qkv.weight)
    twin.out_proj.weight.copy_(layer.to_out[0].weight)
    x = torch.randn(2, 9, DIM)
    normed = layer.norm(x)
    torch.testing.assert_close(layer(x), twin(normed, normed, normed, need_weights=False)[0])


@torch.no_grad()
def test_closed_gates_silence_their_head_only():
    layer = GatedAttention(DIM, 4).eval()
    layer.to_out[0].weight.copy_(torch.eye(DIM))
    layer.to_gates.weight.zero_()
    layer.to_gates.bias.copy_(torch.tensor([0.0, -100.0, 0.0, 0.0]))
    heads = layer(torch.randn(1, 5, DIM)).unflatten(-1, (4, -1)).abs().amax((0, 1, 3))
    assert heads[1] == 0
    assert (heads[[0, 2, 3]] > 0).all()


@torch.no_grad()
def test_dilated_convolutions_see_124_frames_back():
    stack = DilatedConvs(4).eval()
    x = torch.randn(1, 300, 4)
    changed = x.clone()
    changed[:, 100] += 1
    moved = (stack(changed) - stack(x)).abs().amax(-1)[0].nonzero().flatten()
    assert moved[0] == 100
    assert 190 < moved[-1] <= 100 + 2 * 2 * (1 + 2 + 4 + 8 + 16)


@torch.no_grad()
def test_zeros_before_the_clip_are_what_causal_convolutions_take_for_granted():
    """One frame at a time from the left, a causal stack gives what the whole clip gives."""
    stack, x = DilatedConvs(4).eval(), torch.randn(1, 12, 4)
    whole = stack(x)
    for n in (1, 5, 12):
        torch.testing.assert_close(stack(x[:, :n])[:, -1], whole[:, n - 1])


# ---------------------------------------------------------------- minGRU


def recur(decay, drive):
    """The definition, one frame after the other."""
    states, h = [], torch.zeros_like(drive[:, 0])
    for n in range(drive.shape[1]):
        h = decay[:, n] * h + drive[:, n]
        states.append(h)
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("n_frames", [1, 2, 3, 8, 250, 1000])
def test_scan_is_the_recurrence(n_frames):
    decay, drive = torch.rand(2, n_frames, 3, dtype=torch.float64), torch.randn(2, n_frames, 3, dtype=torch.float64)
    torch.testing.assert_close(linear_scan(decay, drive), recur(decay, drive), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n_frames", [1, 6])
def test_scan_gradient(n_frames):
    decay, drive = (torch.rand(2, n_frames, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(linear_scan, (decay, drive))


@torch.no_grad()
def test_min_gru_is_its_definition_in_float64():
    layer, x = MinGRU(5).double(), 3 * torch.randn(2, 300, 5, dtype=torch.float64)
    hidden, gate = layer.to_hidden_and_gate(x).chunk(2, dim=-1)
    z = gate.sigmoid()
    g = torch.where(hidden >= 0, hidden + 0.5, hidden.sigmoid())
    torch.testing.assert_close(layer(x), recur(1 - z, z * g), rtol=1e-12, atol=1e-14)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_min_gru_of_long_loud_input_stays_exact(scale):
    """Five minutes, gates from open to shut: float32 stays at float64, where exp(log) would overflow or blur."""
    layer, x = MinGRU(4), scale * torch.randn(1, 7500, 4)
    found = layer(x)
    assert found.isfinite().all()
    torch.testing.assert_close(found, layer.double()(x.double()).float(), rtol=1e-3, atol=1e-4 * scale)


def test_min_gru_gradient_of_loud_input_is_finite():
    layer, x = MinGRU(4), (1e4 * torch.randn(1, 250, 4)).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert layer.to_hidden_and_gate.weight.grad.isfinite().all()


@torch.no_grad()
def test_second_direction_runs_backwards():
    layer, x = BidirectionalMinGRU(3), torch.randn(1, 10, 3)
    layer.to_out.weight.copy_(torch.cat((torch.zeros(3, 3), torch.eye(3)), dim=1))
    torch.testing.assert_close(layer(x), layer.backward_minGRU(x.flip(1)).flip(1))
    changed = x.clone()
    changed[:, 4] += 1
    moved = (layer(changed) - layer(x)).abs().amax(-1)[0]
    assert (moved[:5] > 0).all()
    assert (moved[5:] == 0).all()


@torch.no_grad()
def test_hybrid_is_the_mean_of_its_two_normed_halves():
    mixer, x = AttentionMinGRU(8, 2).eval(), torch.randn(1, 6, 8)
    mixer.to_out.weight.copy_(torch.eye(8))
    mixer.attn_out_norm.gamma.zero_()
    alone = mixer(x).unflatten(-1, (2, 4))
    torch.testing.assert_close(alone.norm(dim=-1), torch.full((1, 6, 2), 0.5 * 2.0))  # ½ · √(D / H)
