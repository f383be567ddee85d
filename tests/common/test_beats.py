"""BEATs: relative positions, gate and deep norm against plain loops, order of its tokens, dropouts, names."""

import math

import torch
import torch.nn.functional as F

from common.nn.beats import Beats, BeatsLayer, GatedBiasAttention, relative_buckets
from common.nn.weights import load_published
from tests.common.test_transformers import SMALL_BEATS, plain_attention


def test_relative_buckets_are_the_formula():
    distances = torch.arange(-1000, 1001)
    buckets = relative_buckets(distances, 320, 800)
    for r, found in zip(distances.tolist(), buckets.tolist()):
        n = abs(r)
        size = n if n < 80 else min(159, 80 + int(80 * math.log(n / 80) / math.log(10)))
        assert found == size + (160 if r > 0 else 0), r
    assert relative_buckets(torch.tensor([0, 1, -1, 79, 80, -799, 5000])).tolist() == [
        0, 161, 1, 239, 240, 159, 319
    ]  # fmt: skip


@torch.no_grad()
def test_relative_bias_holds_each_distance_on_a_diagonal():
    encoder = Beats(**SMALL_BEATS, n_buckets=8, max_distance=16).encoder
    bias = encoder.relative_bias(7)
    table = encoder.layers[0].self_attn.relative_attention_bias.weight
    assert bias.shape == (4, 7, 7)
    for query in range(7):
        for key in range(7):
            bucket = int(relative_buckets(torch.tensor(key - query), 8, 16))
            assert torch.equal(bias[:, query, key], table[bucket])


@torch.no_grad()
def test_gated_attention_is_the_formula():
    torch.manual_seed(4)
    attention = GatedBiasAttention(12, 3).eval()
    attention.grep_a.copy_(torch.randn(1, 3, 1, 1))
    x, bias = torch.randn(2, 5, 12), torch.randn(3, 5, 5)
    q, k, v = (
        linear(x).view(2, 5, 3, 4).transpose(1, 2)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    gated = torch.zeros(2, 3, 5, 5)
    for b in range(2):
        for h in range(3):
            for i in range(5):
                eight = attention.grep_linear.weight @ q[b, h, i] + attention.grep_linear.bias
                first, second = eight[:4].sum().sigmoid(), eight[4:].sum().sigmoid()
                gate = first * (second * attention.grep_a[0, h, 0, 0] - 1) + 2
                gated[b, h, i] = gate * bias[h, i]
    heads = plain_attention(q, k, v, gated)
    expected = attention.out_proj(heads.transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x, bias), expected, rtol=1e-5, atol=1e-6)


def test_gated_attention_is_the_same_with_gradient():
    torch.manual_seed(5)
    attention = GatedBiasAttention(12, 3).eval()
    x, bias = torch.randn(3, 5, 12), torch.randn(3, 5, 5)
    with torch.no_grad():
        clip_by_clip = attention(x, bias)
    torch.testing.assert_close(attention(x, bias), clip_by_clip, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_deep_norm_layer_by_hand():
    torch.manual_seed(6)
    layer = BeatsLayer(8, 2, 12, depth=12, dropout=0.1, attention_dropout=0.1).eval()
    x, bias = torch.randn(1, 4, 8), torch.randn(2, 4, 4)
    alpha = 24**0.25

    def norm(y):
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    middle = norm(alpha * x + layer.self_attn(x, bias))
    hidden = layer.fc1(middle)
    gelu = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = norm(alpha * middle + layer.fc2(gelu))
    torch.testing.assert_close(layer(x, bias), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_beats_positional_convolution_and_order_of_the_start():
    torch.manual_seed(7)
    network = Beats(**{**SMALL_BEATS, "depth": 1}).eval()
    conv = network.encoder.pos_conv[0]
    g, v = (getattr(conv.parametrizations.weight, f"original{i}") for i in (0, 1))
    assert (g.shape, v.shape) == ((1, 1, 8), (32, 8, 8))
    torch.testing.assert_close(conv.weight, g * v / v.square().sum((0, 1), keepdim=True).sqrt())
    x = torch.randn(1, 6, 32)
    padded = F.pad(x, (0, 0, 4, 4))  # (1, 14, 32)
    positions = torch.zeros(1, 6, 32)
    for t in range(6):  # the seventh, which an even kernel adds, is cut
        for channel in range(32):
            first = channel // 8 * 8
            window = padded[0, t : t + 8, first : first + 8].T
            positions[0, t, channel] = (conv.weight[channel] * window).sum() + conv.bias[channel]
    start = network.encoder.layer_norm(x + F.gelu(positions))
    expected = network.encoder.layers[0](start, network.encoder.relative_bias(6))
    torch.testing.assert_close(network.encoder(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_beats_tokens_run_band_within_time_and_fold_by_their_mean():
    torch.manual_seed(8)
    network = Beats(**SMALL_BEATS).eval()
    seen = []
    network.layer_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    log_mel = torch.randn(1, 1, 32, 24)
    tokens = network(log_mel)
    patch = log_mel[0, 0, 16:24, 8:16]  # band 2 of 4, moment 1: the kernel is (frames, mel)
    expected = (network.patch_embedding.weight[:, 0] * patch.T).sum((1, 2))
    torch.testing.assert_close(seen[0][0, 1 * 4 + 2], expected, rtol=1e-4, atol=1e-5)
    assert network.frames_per_token == 2
    folded = Beats(**SMALL_BEATS, fold_frequency=True).eval()
    folded.load_state_dict(network.state_dict())
    assert folded.frames_per_token == 8
    torch.testing.assert_close(folded(log_mel)[0, 1], tokens[0, 4:8].mean(0), rtol=1e-5, atol=1e-6)


def test_beats_dropouts_and_layerdrop():
    log_mel = torch.randn(1, 1, 32, 40)

    def spread(**rates):
        names = ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layerdrop")
        off = dict.fromkeys(names, 0.0)
        torch.manual_seed(9)
        network = Beats(**SMALL_BEATS, **{**off, **rates}).train()
        with torch.no_grad():
            return len({float(network(log_mel).sum()) for _ in range(12)})

    assert spread() == 1
    for name in ("dropout", "attention_dropout", "activation_dropout", "input_dropout"):
        assert spread(**{name: 0.2}) > 6, name
    assert 2 <= spread(layerdrop=0.5) <= 4  # which of the two layers ran
    with torch.no_grad():
        skipping = Beats(**SMALL_BEATS, layerdrop=1.0, dropout=0.0, input_dropout=0.0)
        embedded = []
        skipping.encoder.layer_norm.register_forward_hook(lambda *args: embedded.append(args[2]))
        assert torch.equal(skipping.train()(log_mel), embedded[0])
        assert not torch.equal(skipping.eval()(log_mel), embedded[0])


def test_beats_published_names_repeat_one_table():
    network = Beats(**SMALL_BEATS)
    own = network.state_dict()
    names = [n for n in own if "relative_attention_bias" in n]
    assert names == ["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    state = {f"model.{n}": t.clone() for n, t in own.items()}
    copy = "model." + names[0].replace("layers.0", "layers.1")
    state[copy] = own[names[0]].clone()
    report = load_published(Beats(**SMALL_BEATS), state, "beats", part="encoder.network.")
    assert (report.loaded, report.ignored) == (len(own), (copy,))
