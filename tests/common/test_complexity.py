"""The challenge's counting rule."""

import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

from common.complexity import complexity, fold_batchnorm, limit_violations, parameter_bytes
from task1_asc.model import CPMobile, DeviceModels

INPUT = (1, 1, 256, 65)

# Module, output (C, F, N), parameters, MACs; convolution and BatchNorm together. Published table of the
# baseline.
BASELINE = [
    ("in_c.0", (8, 128, 33), 88, 304_144),
    ("in_c.1", (32, 64, 17), 2_368, 2_506_816),
    ("stages.s1.b1.block.0", (64, 64, 17), 2_176, 2_228_352),
    ("stages.s1.b1.block.1", (64, 64, 17), 704, 626_816),
    ("stages.s1.b1.block.2", (32, 64, 17), 2_112, 2_228_288),
    ("stages.s1.b2.block.0", (64, 64, 17), 2_176, 2_228_352),
    ("stages.s1.b2.block.1", (64, 64, 17), 704, 626_816),
    ("stages.s1.b2.block.2", (32, 64, 17), 2_112, 2_228_288),
    ("stages.s1.b3.block.0", (64, 64, 17), 2_176, 2_228_352),
    ("stages.s1.b3.block.1", (64, 64, 9), 704, 331_904),
    ("stages.s1.b3.block.2", (32, 64, 9), 2_112, 1_179_712),
    ("stages.s2.b4.block.0", (64, 64, 9), 2_176, 1_179_776),
    ("stages.s2.b4.block.1", (64, 32, 9), 704, 166_016),
    ("stages.s2.b4.block.2", (56, 32, 9), 3_696, 1_032_304),
    ("stages.s2.b5.block.0", (120, 32, 9), 6_960, 1_935_600),
    ("stages.s2.b5.block.1", (120, 32, 9), 1_320, 311_280),
    ("stages.s2.b5.block.2", (56, 32, 9), 6_832, 1_935_472),
    ("stages.s3.b6.block.0", (120, 32, 9), 6_960, 1_935_600),
    ("stages.s3.b6.block.1", (120, 32, 9), 1_320, 311_280),
    ("stages.s3.b6.block.2", (104, 32, 9), 12_688, 3_594_448),
    ("feed_forward", (10, 32, 9), 1_060, 299_540),
]


@pytest.fixture(scope="module")
def baseline():
    return complexity(CPMobile(), INPUT)


def test_baseline_totals(baseline):
    assert (baseline.parameters, baseline.macs, baseline.bytes) == (61_148, 29_419_156, 122_296)
    assert limit_violations(baseline) == []


def test_baseline_layer_by_layer(baseline):
    counted = baseline.layers[baseline.layers.parameters > 0]
    owner = counted.name.str.rsplit(".", n=1).str[0]
    assert list(dict.fromkeys(owner)) == [row[0] for row in BASELINE]
    for name, shape, parameters, macs in BASELINE:
        rows = counted[owner == name]
        assert set(rows.output_shape) == {shape}, name
        assert (rows.parameters.sum(), rows.macs.sum()) == (parameters, macs), name


@pytest.mark.parametrize(("n_frames", "macs"), [(64, 28_893_268), (65, 31_684_180)])
def test_2023_network(n_frames, macs):
    model = CPMobile(
        channels_multiplier=2.3, expansion_rate=3.0, strides={"b2": (2, 2), "b4": (2, 1)}, grn=True
    )
    found = complexity(model, (1, 1, 256, n_frames))
    assert (found.parameters, found.macs) == (126_952, macs)


def test_bytes_by_type():
    assert [complexity(CPMobile(), INPUT, d).bytes for d in ("fp32", "fp16", "bf16")] == [
        244_592,
        122_296,
        122_296,
    ]


def test_limits_name_what_is_exceeded():
    found = complexity(CPMobile(base_channels=48), INPUT, "fp32")
    sentences = limit_violations(found)
    assert len(sentences) == 2
    assert "30,000,000" in sentences[0]
    assert "128,000" in sentences[1]
    assert "fp32" in sentences[1]


def test_the_model_is_left_as_it_was():
    model = CPMobile().half().train()
    model.stages.s1.eval()
    before = deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    complexity(model, INPUT)
    complexity(model, INPUT, "int8")
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == before[name].dtype for name, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CPMobile(), INPUT, "fp8"), "fp8"),
        ((CPMobile(), (2, 1, 256, 65)), "batch of 2"),
        ((DeviceModels(CPMobile(), ["a"]), INPUT), "get_model_for_device"),
    ],
)
def test_what_cannot_be_counted_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        complexity(*arguments)


def test_folding_batchnorm_keeps_the_outputs():
    torch.manual_seed(0)
    model = CPMobile().train()
    for _ in range(3):
        model(torch.randn(4, 1, 256, 20))
    model.eval()
    x = torch.randn(2, 1, 256, 20)
    folded = fold_batchnorm(model)
    torch.testing.assert_close(folded(x)["logits"], model(x)["logits"], rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_int8_bytes_are_weights_plus_four_byte_biases():
    model = CPMobile()
    n_weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    n_biases = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    found = complexity(model, INPUT, "int8")
    assert found.bytes == n_weights + 4 * n_biases
    assert found.parameters == n_weights + n_biases


def test_quantised_network_is_not_free():
    """Packed weights are no parameters: a plain sum over parameters() would find 0 bytes."""
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    float_model = nn.Sequential(
        torch.ao.quantization.QuantStub(),
        nn.Conv2d(3, 8, 3, bias=True),
        nn.ReLU(),
        torch.ao.quantization.DeQuantStub(),
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        float_model.qconfig = torch.ao.quantization.default_qconfig
        prepared = torch.ao.quantization.prepare(float_model)
        prepared(torch.randn(2, 3, 8, 8))
        quantised = torch.ao.quantization.convert(prepared)
    assert sum(p.numel() for p in quantised.parameters()) == 0
    assert parameter_bytes(quantised) == 8 * 3 * 9 + 4 * 8
    with pytest.raises(ValueError, match="quantised"):
        complexity(quantised, (1, 3, 8, 8))


def test_parameter_bytes_by_type():
    assert parameter_bytes(CPMobile()) == 244_592
    assert parameter_bytes(CPMobile().half()) == 122_296
    with pytest.raises(ValueError, match="float64"):
        parameter_bytes(CPMobile().double())
