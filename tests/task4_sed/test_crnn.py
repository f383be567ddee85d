"""Gates, pooling, masks and heads of the CRNNs."""

import numpy as np
import pytest
import torch

from task4_sed.models.crnn import (
    BaselineCRNN,
    FusionCRNN,
    GatedConvBlock,
    GatedConvNet,
    TimeMask,
    class_probabilities,
    pool_embeddings,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def clips(n_frames=40, n_tokens=7, n_features=6, n_clips=2):
    return torch.randn(n_clips, 1, 128, n_frames), torch.randn(n_clips, n_tokens, n_features)


def small_crnn(**settings):
    return FusionCRNN(n_features=6, n_classes=5, hidden=8, **settings)


# ---------------------------------------------------------------- convolutions and gates


def passing_block(gate):
    """A block whose convolution hands on its one channel and whose gate's linear layer is 2 y + 1."""
    block = GatedConvBlock(1, 1, (1, 1), gate, dropout=0.0).eval()
    with torch.no_grad():
        block.conv.weight.zero_()
        block.conv.weight[..., 1, 1] = 1
        block.conv.bias.zero_()
        block.gate.weight.fill_(2)
        block.gate.bias.fill_(1)
    return block


@torch.no_grad()
def test_gates_by_hand():
    y = torch.tensor([[-1.0, 0.5]])[None, None]
    normed = y / (1 + 1e-3) ** 0.5
    context = passing_block("context")(y)
    torch.testing.assert_close(context, normed * (2 * normed + 1).sigmoid())
    glu = passing_block("glu")(y)
    torch.testing.assert_close(glu, (2 * normed + 1) * normed.sigmoid())


@torch.no_grad()
def test_gate_mixes_channels_of_one_point_only():
    block = GatedConvBlock(3, 4, (1, 1), "context", dropout=0.0).eval()
    y = torch.randn(1, 4, 5, 6)
    moved = y.clone()
    moved[0, 2, 3, 4] += 1
    block.conv, block.norm = torch.nn.Identity(), torch.nn.Identity()
    changed = (block(moved) - block(y)).abs().amax(1)[0] > 0
    assert changed.nonzero().tolist() == [[3, 4]]


def test_unknown_gate_names_the_choices():
    with pytest.raises(ValueError, match="gate 'swish' is unknown: choose 'context' or 'glu'"):
        GatedConvBlock(1, 1, (1, 1), "swish", 0.0)


@pytest.mark.parametrize("n_frames", [4, 5, 63, 626])
@torch.no_grad()
def test_four_mel_frames_make_one(n_frames):
    assert GatedConvNet()(torch.zeros(1, 1, 128, n_frames)).shape == (1, n_frames // 4, 128)


@pytest.mark.parametrize("shape", [(1, 1, 128, 3), (1, 1, 64, 40), (1, 128, 40), (1, 2, 128, 40)])
def test_mel_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"give \(B, 1, 128, N\) with N of at least 4 frames") as error:
        GatedConvNet()(torch.zeros(shape))
    assert str(shape) in str(error.value)


@torch.no_grad()
def test_norms_keep_practically_the_last_batch():
    network, mel = GatedConvNet(dropout=0.0).train(), torch.randn(2, 1, 128, 16)
    network(mel)
    norm = network.blocks[0].norm
    batch = network.blocks[0].conv(mel.transpose(2, 3))
    torch.testing.assert_close(norm.running_mean, 0.99 * batch.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.01 + 0.99 * batch.var((0, 2, 3)))


# ---------------------------------------------------------------- embeddings


def test_embeddings_averaged_or_nearest():
    embeddings = torch.tensor([[[0.0], [2.0], [4.0], [6.0], [8.0]]])
    # 5 tokens to 2 frames: the middle one belongs to both averages; nearest takes tokens int((i + 0.5) · 2.5).
    assert pool_embeddings(embeddings, 2, "aap").flatten().tolist() == [2.0, 6.0]
    assert pool_embeddings(embeddings, 2, "int").flatten().tolist() == [2.0, 6.0]
    assert pool_embeddings(embeddings, 4, "aap").flatten().tolist() == [1.0, 3.0, 5.0, 7.0]
    assert pool_embeddings(embeddings, 4, "int").flatten().tolist() == [0.0, 2.0, 6.0, 8.0]


def test_pooling_is_a_named_switch():
    mel, embeddings = clips()
    outputs = {}
    for how in ("aap", "int"):
        network = small_crnn(embed_pool=how).eval()
        network.load_state_dict(outputs.setdefault("state", network.state_dict()))
        with torch.no_grad():
            outputs[how] = network(mel, embeddings)["strong"]
    assert not torch.allclose(outputs["aap"], outputs["int"], atol=1e-4)
    with pytest.raises(ValueError, match="embed_pool 'conv' is unknown: choose 'aap'"):
        small_crnn(embed_pool="conv")


# ---------------------------------------------------------------- heads


def test_weak_pooling_by_hand():
    # One clip, two frames, two classes. Attention over classes: (¾, ¼) in frame 0, (½, ½) in frame 1.
    strong_logits = torch.tensor([[[0.2, 0.6], [0.9, 0.1]]]).logit()
    attention_logits = torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]).log()
    found = class_probabilities(strong_logits, attention_logits)
    torch.testing.assert_close(found["strong"], torch.tensor([[[0.2, 0.9], [0.6, 0.1]]]))
    weak = [(0.75 * 0.2 + 0.5 * 0.9) / 1.25, (0.25 * 0.6 + 0.5 * 0.1) / 0.75]
    torch.testing.assert_close(found["weak"], torch.tensor([weak]))
    # With class 1 masked, class 0 has all the attention of every frame: the plain mean.
    masked = class_probabilities(strong_logits, attention_logits, torch.tensor([[True, False]]))
    torch.testing.assert_close(masked["weak"], torch.tensor([[0.55, 0.0]]))


@torch.no_grad()
def test_masked_classes_are_exactly_zero_and_leave_no_trace():
    logits = torch.randn(3, 8, 5), torch.randn(3, 8, 5)
    mask = torch.tensor([[True] * 5, [True, True, False, False, True], [False] * 5])
    found = class_probabilities(*logits, mask)
    assert torch.equal(found["strong"] != 0, mask[:, :, None].expand(3, 5, 8))
    assert torch.equal(found["weak"] != 0, mask)
    # Valid classes get what a network of these classes alone would give.
    alone = class_probabilities(*(x[1:2, :, mask[1]] for x in logits))
    torch.testing.assert_close(found["weak"][1, mask[1]], alone["weak"][0])
    torch.testing.assert_close(found["strong"][1, mask[1]], alone["strong"][0])


@torch.no_grad()
def test_forward_applies_the_mask_to_what_it_returns_without():
    network, (mel, embeddings) = small_crnn().eval(), clips()
    mask = torch.tensor([[True] * 5, [False, True, True, False, True]])
    plain, masked = network(mel, embeddings), network(mel, embeddings, mask)
    assert masked["strong"].shape == (2, 5, 10)
    assert masked["strong_logits"].shape == (2, 10, 5)
    assert torch.equal(plain["strong_logits"], masked["strong_logits"])
    from_plain = class_probabilities(plain["strong_logits"], plain["attention_logits"], mask)
    assert torch.equal(from_plain["strong"], masked["strong"])
    assert torch.equal(from_plain["weak"], masked["weak"])
    torch.testing.assert_close(plain["strong"], plain["strong_logits"].sigmoid().transpose(1, 2))


@pytest.mark.parametrize(("shape", "dtype"), [((2, 5), torch.float), ((2, 4), torch.bool), ((5,), torch.bool)])
def test_mask_of_another_kind_is_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"give bool \(2, 5\), one row per clip"), torch.no_grad():
        small_crnn()(*clips(), torch.ones(shape, dtype=dtype))


def test_embeddings_of_another_kind_are_refused():
    mel, embeddings = clips()
    for wrong in (embeddings.transpose(1, 2), embeddings[:1], embeddings[0]):
        with pytest.raises(ValueError, match=r"give embeddings \(B, L, 6\) of the same clips"):
            small_crnn()(mel, wrong)


@torch.no_grad()
def test_probabilities_are_float32_under_autocast():
    network = small_crnn()
    with torch.autocast("cpu", torch.bfloat16):
        found = network(*clips())
    assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(found, torch.float32)


def test_every_parameter_has_a_gradient():
    network = BaselineCRNN(n_features=6, n_classes=5, hidden=8, merged=8)
    found = network(*clips())
    (found["strong"].sum() + found["weak"].sum()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("network", "n_parameters"),
    [(lambda: FusionCRNN(527), 2_780_550), (lambda: FusionCRNN(768), 2_842_246), (BaselineCRNN, 1_785_094)],
)
def test_published_sizes(network, n_parameters):
    assert sum(p.numel() for p in network().parameters()) == n_parameters


# ---------------------------------------------------------------- time masks of the baseline


def test_time_masks_are_short_inside_and_seeded():
    spans = TimeMask(16, 0.3).draw(4000, 156, np.random.default_rng(3))
    first, end = spans.T
    assert (end - first).min() == 0
    assert (end - first).max() == 15
    assert abs((end - first).mean() - 7.5) < 0.3
    assert (first.min(), end.max() <= 156) == (0, True)
    assert np.array_equal(spans, TimeMask(16, 0.3).draw(4000, 156, np.random.default_rng(3)))
    short = TimeMask(16, 0.3).draw(4000, 10, np.random.default_rng(3))
    assert (short[:, 1] - short[:, 0]).max() == 2  # below 0.3 · 10


def test_time_mask_sets_its_span_to_zero():
    frames = torch.ones(2, 4, 3)
    found = TimeMask.apply(frames, np.array([[1, 3], [2, 2]]))
    assert found[:, :, 0].tolist() == [[1, 0, 0, 1], [1, 1, 1, 1]]
    assert found.amin(2).equal(found.amax(2))


@torch.no_grad()
def test_masked_frames_do_not_reach_the_network():
    network, (mel, embeddings) = BaselineCRNN(6, 5, dropout=0.0, merged=8, hidden=8).train(), clips()
    everything, nothing = np.array([[0, 10]] * 2), np.array([[0, 0]] * 2)
    logits = network(mel, embeddings, spans=(nothing, everything))["strong_logits"]
    without = network(mel, torch.zeros_like(embeddings), spans=(nothing, nothing))["strong_logits"]
    torch.testing.assert_close(logits, without)
    torch.testing.assert_close(
        network(mel, embeddings, spans=(everything, nothing))["strong_logits"],
        network(torch.rand_like(mel), embeddings, spans=(everything, nothing))["strong_logits"],
    )


@torch.no_grad()
def test_masks_are_drawn_in_training_only_from_torchs_seed():
    network, (mel, embeddings) = BaselineCRNN(6, 5, dropout=0.0, merged=8, hidden=8), clips(n_frames=240)
    network.eval()
    assert torch.equal(network(mel, embeddings)["strong"], network(mel, embeddings)["strong"])
    network.train()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(network(mel, embeddings)["strong"])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
