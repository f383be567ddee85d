"""CP-Mobile and the container of device networks."""

import pytest
import torch

from common.nn.layers import GlobalResponseNorm, make_divisible
from task1_asc.model import CPMobile, DeviceModels


@pytest.fixture
def log_mel():
    return torch.randn(5, 1, 256, 33, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def container():
    """Base and three device networks that all differ."""
    torch.manual_seed(0)
    model = DeviceModels(CPMobile(), ["a", "b", "s1"]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_widths_are_rounded_to_eight():
    assert [make_divisible(v) for v in (57.6, 103.68, 67.2, 117.6, 73.6, 169.28, 3.2)] == [
        56,
        104,
        64,
        120,
        72,
        168,
        8,
    ]
    assert make_divisible(11) == 16  # 8 would be more than a tenth below


def test_baseline_layout():
    model = CPMobile()
    assert len(model.state_dict()) == 126
    assert sum(p.numel() for p in model.parameters()) == 61_148
    assert [name for stage in model.stages for name, _ in stage.named_children()] == [
        f"b{i}" for i in range(1, 7)
    ]


def test_2023_layout():
    model = CPMobile(
        channels_multiplier=2.3, expansion_rate=3.0, strides={"b2": (2, 2), "b4": (2, 1)}, grn=True
    )
    assert len(model.state_dict()) == 138
    assert sum(p.numel() for p in model.parameters()) == 126_952


@pytest.mark.parametrize(("f", "n"), [(256, 65), (256, 64), (128, 20), (64, 1)])
def test_any_spectrogram_size(f, n):
    assert CPMobile().eval()(torch.zeros(2, 1, f, n))["logits"].shape == (2, 10)


def test_stride_of_an_unknown_block_is_refused():
    with pytest.raises(ValueError, match="b9"):
        CPMobile(strides={"b9": (2, 2)})


def test_channels_last_gives_the_same_logits_and_gradients(log_mel):
    torch.manual_seed(0)
    model, log_mel = CPMobile().double().train(), log_mel.double()  # in float32 rounding flips ReLUs
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model.zero_grad()
        clone = model.to(memory_format=memory_format)
        logits = clone(log_mel.to(memory_format=memory_format))["logits"]
        logits.square().sum().backward()
        results.append((logits.detach(), model.in_c[0][0].weight.grad.clone()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-8, atol=1e-9)


def test_initial_weights_have_the_published_spread():
    torch.manual_seed(0)
    model = CPMobile()
    projection = model.stages.s3.b6.block[2][0].weight  # 104 outputs, 1×1
    assert projection.std().item() == pytest.approx((2 / 104) ** 0.5, rel=0.03)
    depthwise = model.stages.s3.b6.block[1][0].weight  # fan_out = 120 · 9 although each output sees one input
    assert depthwise.std().item() == pytest.approx((2 / (120 * 9)) ** 0.5, rel=0.1)


def test_shortcut_pools_where_the_block_strides():
    blocks = [block for stage in CPMobile().stages for block in stage]
    assert [block.has_shortcut for block in blocks] == [True, True, True, False, True, False]
    averaged = blocks[2].shortcut(torch.ones(1, 32, 4, 4))
    assert averaged.shape == (1, 32, 4, 2)
    assert averaged[0, 0, 0, 0].item() == pytest.approx(4 / 9)  # padded zeros are counted


def test_fresh_response_norm_is_the_identity():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(GlobalResponseNorm()(x), x)


def test_response_norm_by_hand():
    norm = GlobalResponseNorm(eps=0.0)
    torch.nn.init.constant_(norm.gamma, 2.0)
    x = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)  # energies 3 and 1, mean 2
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([2 * 3 * 1.5 + 3, 2 * 1 * 0.5 + 1]))


def test_mixed_batch_equals_clip_by_clip(container, log_mel):
    devices = ["b", "s9", "a", "b", "s1"]
    mixed = container(log_mel, devices)["logits"]
    one_by_one = [container(log_mel[i : i + 1], [device])["logits"] for i, device in enumerate(devices)]
    torch.testing.assert_close(mixed, torch.cat(one_by_one), rtol=1e-5, atol=1e-5)


def test_unknown_device_and_no_device_use_the_base(container, log_mel):
    base = container.base_model(log_mel)["logits"]
    assert torch.equal(container(log_mel)["logits"], base)
    assert torch.equal(container(log_mel, ["s9", "unknown", "c", "s4", "x"])["logits"], base)
    assert container.get_model_for_device("s9") is container.base_model
    assert container.get_model_for_device(None) is container.base_model
    assert container.get_model_for_device("b") is container.device_models["b"]
    assert not torch.allclose(container(log_mel, ["b"] * 5)["logits"], base)


def test_device_networks_are_independent_copies():
    container = DeviceModels(CPMobile(), ["a", "b"])
    assert container.devices == ["a", "b"]
    assert len(container.state_dict()) == 3 * 126
    with torch.no_grad():
        container.device_models["a"].feed_forward[0].weight.zero_()
    assert container.base_model.feed_forward[0].weight.any()
    assert container.device_models["b"].feed_forward[0].weight.any()


def test_only_used_networks_get_gradients(container, log_mel):
    container(log_mel, ["a", "b", "a", "b", "a"])["logits"].sum().backward()
    used = {name for name, p in container.named_parameters() if p.grad is not None}
    assert {name.split(".")[1] for name in used if name.startswith("device_models")} == {"a", "b"}
    assert not any(name.startswith("base_model") for name in used)


def test_a_device_per_clip_is_needed(container, log_mel):
    with pytest.raises(ValueError, match="2 devices for a batch of 5"):
        container(log_mel, ["a", "b"])
