"""ATST-Frame, BEATs, frame-wise PaSST and M2D: arithmetic against plain loops, lengths, names, gradients."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchaudio.functional import resample

from common.audio.encoder_frontends import M2dMel
from common.nn.atst import AtstFrame
from common.nn.beats import Beats, GatedBiasAttention
from common.nn.frame_passt import FramePasst
from common.nn.m2d import M2d
from common.nn.transformer import FeedForward, PreNormBlock, SelfAttention, layer_groups
from common.nn.weights import load_published
from tests.parity.fill import filled_tensor, probe

SMALL = {"dim": 32, "depth": 2, "n_heads": 4}
SMALL_BEATS = {
    **SMALL, "n_mels": 32, "patch": 8, "patch_dim": 16, "ffn_dim": 48, "conv_taps": 8, "conv_groups": 4
}  # fmt: skip
# Small network, mel bands, frames of the longest input, tokens it makes, tokens of 40 frames, features.
NETWORKS = {
    "atst": (lambda: AtstFrame(n_mels=8, max_tokens=25, **SMALL), 8, 103, 25, 10, 32),
    "beats": (lambda: Beats(**SMALL_BEATS), 32, 104, 52, 20, 32),
    "fpasst": (lambda: FramePasst(n_mels=16, max_tokens=25, **SMALL), 16, 100, 25, 10, 32),
    "m2d": (lambda: M2d(n_mels=32, n_frames=101, **SMALL), 32, 101, 6, 3, 64),
}


@pytest.fixture(params=NETWORKS)
def network_case(request):
    """Return (name, network in evaluation mode, mels, longest, tokens of it, tokens of 40 frames, features)."""
    build, *numbers = NETWORKS[request.param]
    torch.manual_seed(0)
    return request.param, build().eval(), *numbers


# ---------------------------------------------------------------- shared blocks


def plain_attention(q, k, v, bias=None):
    """Attention with loops over clips, heads and queries; q, k, v (B, H, N, d), bias (B, H, N, N)."""
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                logits = torch.tensor([float(q[b, h, i] @ key) for key in k[b, h]]) / math.sqrt(q.shape[-1])
                if bias is not None:
                    logits = logits + bias[b, h, i]
                weights = logits.exp() / logits.exp().sum()
                out[b, h, i] = sum(w * value for w, value in zip(weights, v[b, h]))
    return out


@torch.no_grad()
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_self_attention_is_the_formula(qkv_bias):
    torch.manual_seed(1)
    attention = SelfAttention(12, 3, qkv_bias)
    x = torch.randn(2, 5, 12)
    assert (attention.qkv.bias is not None) == qkv_bias
    # Rows of qkv: 12 of q, 12 of k, 12 of v, 4 of each head.
    rows = attention.qkv(x).view(2, 5, 3, 3, 4)
    q, k, v = (rows[:, :, i].transpose(1, 2) for i in range(3))
    expected = attention.proj(plain_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_pre_norm_block_by_hand():
    torch.manual_seed(2)
    block = PreNormBlock(8, 2)
    x = torch.randn(1, 3, 8)

    def norm(y):
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    middle = x + block.attn(norm(x))
    hidden = block.mlp.fc1(norm(middle))
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(block(x), middle + block.mlp.fc2(gelu), rtol=1e-5, atol=1e-6)


def test_heads_must_divide_the_features():
    for build in (lambda: SelfAttention(10, 4), lambda: GatedBiasAttention(10, 4)):
        with pytest.raises(ValueError, match="dim 10 cannot be shared among 4 heads"):
            build()


def test_feed_forward_is_position_wise():
    layer, x = FeedForward(4, 8), torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x)[:, 1], layer(x[:, 1]))


# ---------------------------------------------------------------- all four networks


@torch.no_grad()
def test_lengths(network_case):
    name, network, n_mels, longest, n_tokens, of_40_frames, n_features = network_case
    assert network(torch.randn(2, 1, n_mels, longest)).shape == (2, n_tokens, n_features)
    assert network(torch.randn(1, 1, n_mels, 40)).shape == (1, of_40_frames, n_features)
    assert network.n_features == n_features
    assert 40 / of_40_frames == pytest.approx(network.frames_per_token, rel=0.2)
    with pytest.raises(ValueError, match=rf"\(B, 1, {n_mels}, N\)"):
        network(torch.randn(1, n_mels, 40))
    with pytest.raises(ValueError, match=rf"\(B, 1, {n_mels}, N\)"):
        network(torch.randn(1, 1, n_mels + 1, 40))
    with pytest.raises(ValueError, match="log_mel has 0 frames, but .* at least: pad the clip"):
        network(torch.randn(1, 1, n_mels, 0))


@torch.no_grad()
def test_longer_than_the_positions_is_one_clear_sentence(network_case):
    name, network, n_mels, longest, *_ = network_case
    log_mel = torch.randn(1, 1, n_mels, longest + 1)
    if name == "beats":  # relative positions do not end
        assert network(torch.randn(1, 1, n_mels, 10 * longest)).isfinite().all()
        return
    with pytest.raises(ValueError, match=f"{longest + 1} frames, but .* end after {longest}") as error:
        network(log_mel)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_clips_of_a_batch_do_not_touch_each_other(network_case):
    _, network, n_mels, longest, *_ = network_case
    log_mel = torch.randn(3, 1, n_mels, longest)
    alone = torch.cat([network(clip) for clip in log_mel.split(1)])
    torch.testing.assert_close(network(log_mel), alone, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter_that_has_a_group(network_case):
    _, network, n_mels, longest, *_ = network_case
    for p in network.parameters():
        p.requires_grad_(True)
    network(torch.randn(2, 1, n_mels, longest)).square().sum().backward()
    grouped = {id(p) for group in network.layer_groups() for p in group}
    for name, p in network.named_parameters():
        assert (p.grad is not None) == (id(p) in grouped), name
        # Keys' biases move all logits of a query alike, the softmax does not see them.
        assert p.grad is None or p.grad.abs().max() > 0 or name.endswith("k_proj.bias"), name


def test_layer_groups(network_case):
    name, network, *_ = network_case
    groups = network.layer_groups()
    assert len(groups) == 4  # depth + 2
    ids = [id(p) for group in groups for p in group]
    unused = [network.mask_embed] if name == "atst" else []
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in network.parameters()} - {id(p) for p in unused}
    group_of = {id(p): i for i, group in enumerate(groups) for p in group}
    named = {n: group_of[id(p)] for n, p in network.named_parameters() if id(p) in group_of}
    blocks = "encoder.layers" if name == "beats" else "blocks"
    for n, group in named.items():
        if n.startswith(f"{blocks}."):
            assert group == 2 - int(n.removeprefix(f"{blocks}.").split(".")[0]), n
        else:
            assert group == (0 if n.startswith("norm") else 3), n


def test_block_10_is_not_in_the_group_of_block_1():
    network = AtstFrame(n_mels=4, max_tokens=3, dim=4, depth=12, n_heads=1)
    groups = network.layer_groups()
    assert len(groups) == 14
    for i, block in enumerate(network.blocks):
        assert {id(p) for p in groups[12 - i]} == {id(p) for p in block.parameters()}


def test_layer_groups_without_a_top_keep_their_places():
    layers = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    groups = layer_groups(layers, [], layers)
    assert [len(group) for group in groups] == [0, 2, 2, 0]
    assert groups[1][0] is layers[1].weight


# ---------------------------------------------------------------- ATST-Frame


@torch.no_grad()
def test_atst_patches_run_frames_fastest():
    network = AtstFrame(n_mels=3, max_tokens=4, dim=12, depth=1, n_heads=2)
    network.patch_embed.patch_embed.weight.copy_(torch.eye(12))
    network.patch_embed.patch_embed.bias.zero_()
    log_mel = torch.arange(3 * 9.0).view(1, 1, 3, 9)  # the last frame fills no patch
    patches = network.patch_embed(log_mel)
    assert patches.shape == (1, 2, 12)
    assert patches[0, 1].tolist() == [*range(4, 8), *range(13, 17), *range(22, 26)]


@torch.no_grad()
def test_atst_positions_start_at_one():
    network = AtstFrame(n_mels=4, max_tokens=6, **SMALL).eval()
    log_mel = torch.randn(1, 1, 4, 12)
    before = network(log_mel)
    network.pos_embed[:, 0] += 1  # no token's
    network.pos_embed[:, 4:] += 1  # of tokens this input does not have
    torch.testing.assert_close(network(log_mel), before, rtol=0, atol=0)
    network.pos_embed[:, 1] += torch.randn(32)
    assert (network(log_mel) - before).abs().max() > 1e-3


# ---------------------------------------------------------------- frame-wise PaSST


@torch.no_grad()
def test_passt_stem_becomes_rows_in_memory_order():
    network = FramePasst(n_mels=8, max_tokens=4, dim=4, depth=1, n_heads=1, stem_channels=(2, 2, 8)).eval()
    seen = []
    network.patch_embed.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    log_mel = torch.randn(1, 1, 8, 16)
    network(log_mel)
    stem = network.stem(log_mel)  # (1, 8, 2, 4)
    assert seen[0].shape == (1, 2, 8, 4)
    for channel in range(8):
        for row in range(2):
            new_channel, new_row = channel // 4, channel % 4 * 2 + row
            torch.testing.assert_close(seen[0][0, new_channel, new_row], stem[0, channel, row])


@torch.no_grad()
def test_passt_token_sees_its_column_and_the_next():
    projection = FramePasst(n_mels=4, max_tokens=5, dim=4, depth=1, n_heads=1).patch_embed
    x = torch.randn(1, 16, 4, 5)
    tokens = projection(x)
    assert tokens.shape == (1, 5, 4)
    weight, bias = projection.proj.weight, projection.proj.bias
    for t in range(5):
        following = x[0, :, :, t + 1] if t < 4 else torch.zeros(16, 4)
        window = torch.stack([x[0, :, :, t], following], dim=-1)
        torch.testing.assert_close(tokens[0, t], (weight * window).sum((1, 2, 3)) + bias)


def test_passt_draws_the_first_position_only_in_training():
    network = FramePasst(n_mels=8, max_tokens=20, **SMALL)
    log_mel = torch.randn(1, 1, 8, 40)

    def outputs():
        torch.manual_seed(3)
        return [network(log_mel) for _ in range(6)]

    with torch.no_grad():
        assert len({float(y.sum()) for y in outputs()}) > 2
        network.eval()
        assert all(torch.equal(y, outputs()[0]) for y in outputs())
        before = network(log_mel)
        network.time_new_pos_embed[..., 10:] += 1  # in evaluation, 10 tokens use the first 10
        assert torch.equal(network(log_mel), before)
    network.train()
    full = torch.randn(1, 1, 8, 80)
    assert torch.equal(network(full), network(full))  # full length: nothing to draw


def test_passt_refuses_heights_it_cannot_fold():
    with pytest.raises(ValueError, match="multiples of 4"):
        FramePasst(n_mels=10, **SMALL)


# ---------------------------------------------------------------- M2D


@torch.no_grad()
def test_m2d_outputs_belong_together():
    network = M2d(n_mels=32, n_frames=101, **SMALL).eval()
    log_mel = torch.randn(2, 1, 32, 101)
    outputs = network.outputs(log_mel)
    torch.testing.assert_close(outputs["frames"], network(log_mel))
    assert outputs["tokens"].shape == (2, 12, 32)
    assert [tuple(f.shape) for f in outputs["features"]] == [(2, 12, 32)] * 3
    # Band after band: token f · 6 + t is feature block f of frame t.
    for band in range(2):
        block = outputs["frames"][..., band * 32 : (band + 1) * 32]
        torch.testing.assert_close(block, outputs["tokens"][:, band * 6 : (band + 1) * 6])
    torch.testing.assert_close(network.norm(outputs["features"][-1]), outputs["tokens"])
    patch = log_mel[0, 0, 16:32, 32:48]  # band 1, column 2
    conv = network.patch_embed.proj
    expected = (conv.weight[:, 0] * patch).sum((1, 2)) + conv.bias
    torch.testing.assert_close(outputs["features"][0][0, 6 + 2], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_m2d_short_input_is_padded_and_keeps_its_positions():
    network = M2d(n_mels=32, n_frames=101, **SMALL).eval()
    log_mel = torch.randn(1, 1, 32, 40)
    padded = F.pad(log_mel, (0, 8))
    torch.testing.assert_close(network(log_mel), network(padded))
    # Positions of later columns, of both bands, do not matter.
    before = network(log_mel)
    table = network.pos_embed[0, 1:].view(2, 6, 32)
    table[:, 3:] += 1
    assert torch.equal(network(log_mel), before)
    table[1, 2] += torch.randn(32)
    assert (network(log_mel) - before).abs().max() > 1e-4


@torch.no_grad()
def test_m2d_full_length_drops_the_incomplete_column():
    network = M2d(n_mels=32, n_frames=101, **SMALL).eval()
    log_mel = torch.randn(1, 1, 32, 101)
    torch.testing.assert_close(network(log_mel), network(log_mel[..., :96]))
    assert network(log_mel[..., :97]).shape[1] == 6


def test_m2d_geometry_is_checked():
    with pytest.raises(ValueError, match="30 mels × 101 frames cannot be cut into patches of 16 × 16"):
        M2d(n_mels=30, n_frames=101, **SMALL)


def test_m2d_position_table_tells_all_tokens_apart():
    table = M2d(n_mels=32, n_frames=101, **SMALL).pos_embed[0]
    assert table[0].abs().max() == 0
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1


def test_m2d_against_the_detector_of_task_4_s5(shared):
    """Patch embedding, block outputs and frame logits of a published detector built on M2D."""
    vector = json.loads((shared / "parity/s5/m2d_sed.json").read_text())
    arrays = np.load(shared / "parity/s5/m2d_sed.npz")
    state = {n: filled_tensor(n, shape) for n, shape, _, kind in vector["keys"] if kind == "filled"}
    network = M2d().eval()
    load_published(network, state, "pretrained_sed", part="encoder.network.")
    for case in vector["cases"]:
        wave = probe(case["shape"], case["seed"], case["scale"])[:, :1]
        log_mel = M2dMel()(resample(wave, 32000, 16000, resampling_method="sinc_interp_kaiser"))
        with torch.no_grad():
            outputs = network.outputs(log_mel)
        assert [tuple(f.shape) for f in outputs["features"]] == [tuple(case["feature_shape"])] * 13
        assert log_mel.shape == tuple(case["mel_shape"])
        for layer in (0, 1, 6, 12):
            expected = arrays[f"{case['prefix']}_feat{layer}"]
            found = outputs["features"][layer][0, ::13, ::24].numpy()
            assert abs(found - expected).max() <= 1e-5 * abs(expected).max(), layer
        frames = F.interpolate(outputs["frames"].transpose(1, 2), size=250, mode="linear").transpose(1, 2)
        logits = F.linear(frames, state["strong_head.weight"], state["strong_head.bias"]).transpose(1, 2)
        expected = arrays[f"{case['prefix']}_logits_strong"]
        assert abs(logits[..., ::4].numpy() - expected).max() <= 1e-5 * abs(expected).max()
