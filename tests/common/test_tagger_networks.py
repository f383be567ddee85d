"""MobileNet and DyMN."""

import pytest
import torch
import torch.nn.functional as F

from common.complexity import complexity
from common.nn.dymn import DyMN, DynamicConv2d, DynamicReLU, temperature_at_epoch
from common.nn.mobilenet import MobileNet, mobile_features


@pytest.mark.parametrize(
    ("width", "expected"),
    [(0.1, 123_783), (0.2, 324_695), (0.4, 983_599), (0.5, 1_431_239), (1.0, 4_876_831)],
)
def test_mobilenet_parameters(width, expected):
    with torch.device("meta"):
        assert sum(p.numel() for p in MobileNet(width).parameters()) == expected


@pytest.mark.parametrize(("width", "expected"), [(0.4, 1_961_239), (1.0, 10_548_479), (2.0, 39_966_143)])
def test_dymn_trainable_parameters(width, expected):
    with torch.device("meta"):
        assert sum(p.numel() for p in DyMN(width).parameters()) == expected


@pytest.mark.parametrize(("width", "n_classes", "macs"), [(1.0, 527, 541_109_495), (0.4, 10, 110_390_786)])
def test_mobilenet_macs(width, n_classes, macs):
    assert complexity(MobileNet(width, n_classes), (1, 1, 128, 1000)).macs == macs


@pytest.mark.parametrize(
    "network", [MobileNet(0.1, 5), MobileNet(0.1, 5, head="fully_convolutional"), DyMN(0.1, 5)]
)
def test_outputs(network):
    out = network.eval()(torch.randn(2, 1, 128, 50))
    assert out["logits"].shape == (2, 5)
    assert out["features"].shape == (2, 96)


def test_frame_wise_strides():
    """128 mel bins go to one row, time is strided four times only."""
    frequency = [1, 2, 2, 1, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 2]
    features = mobile_features(0.4, strides=[(f, 2 if i == 1 else 1) for i, f in enumerate(frequency)]).eval()
    assert features(torch.zeros(1, 1, 128, 100)).shape == (1, 384, 1, 25)
    with pytest.raises(ValueError, match="3 entries"):
        mobile_features(strides=[1, 1, 1])


def test_norms_have_the_published_constants():
    norms = [m for m in MobileNet(0.1).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def test_unknown_head():
    with pytest.raises(ValueError, match="'linear'"):
        MobileNet(0.1, head="linear")


def test_dymn_items_do_not_depend_on_their_batch():
    torch.manual_seed(0)
    network = DyMN(0.4, 10).eval()
    network.set_temperature(1)
    clips = torch.randn(3, 1, 64, 40)
    together = network(clips)
    loud = network(torch.cat((clips[:1], 100 * clips[1:].flip(0))))
    for output in ("logits", "features"):
        alone = torch.cat([network(clip[None])[output] for clip in clips])
        torch.testing.assert_close(together[output], alone, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(loud[output][0], together[output][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("groups", "kernel", "stride"), [(1, 1, 1), (6, 3, 1), (6, 5, 2), (1, 3, 1)])
def test_dynamic_convolution_is_the_mean_of_four(groups, kernel, stride):
    torch.manual_seed(0)
    conv = DynamicConv2d(6, 6, context=4, kernel_size=kernel, stride=stride, groups=groups)
    x, h = torch.randn(2, 6, 8, 7), torch.randn(2, 4)
    share = F.softmax(conv.residuals(h) / conv.temperature, dim=-1)
    for item in range(2):
        kernels = conv.weight.view(4, *conv.kernel_shape)
        static = (share[item].view(4, 1, 1, 1, 1) * kernels).sum(0)
        expected = F.conv2d(x[item : item + 1], static, stride=stride, padding=kernel // 2, groups=groups)
        torch.testing.assert_close(conv(x, h)[item : item + 1], expected, rtol=1e-5, atol=1e-6)


def test_dynamic_relu_without_coefficients_is_relu():
    act = DynamicReLU(3, context=2)
    torch.nn.init.zeros_(act.coef_net[0].weight)
    torch.nn.init.zeros_(act.coef_net[0].bias)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(act(x, torch.randn(2, 2)), x.relu())


def test_temperature_schedule():
    assert [temperature_at_epoch(epoch) for epoch in (0, 1, 28)] == [30, 29, 2]
    assert temperature_at_epoch(29) == 1
    assert min(temperature_at_epoch(epoch, slope=0.05) for epoch in range(200)) == 1
    assert [temperature_at_epoch(epoch, slope=0.0) for epoch in range(30)] == list(range(30, 0, -1))


def test_set_temperature_reaches_every_dynamic_convolution():
    network = DyMN(0.1, 5)
    network.set_temperature(1)
    assert {m.temperature for m in network.modules() if isinstance(m, DynamicConv2d)} == {1.0}
