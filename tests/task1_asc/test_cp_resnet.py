"""CP-ResNet: kernel rule, damping, layout."""

import pytest
import torch

from common.complexity import complexity
from task1_asc.cp_resnet import FULL_FAMILY, CPResNet, DampedConv2d, damping_row, kernel_sizes


def test_128k_network():
    model = CPResNet()
    found = complexity(model, (1, 1, 256, 43))
    assert (found.parameters, found.macs) == (127_684, 28_840_396)
    assert kernel_sizes(8) == [[(3, 1), (3, 3)], [(3, 3), (3, 3)], [(3, 1), (1, 1)]]


def test_stage_one_halves_time_only_once():
    model = CPResNet().eval()
    x = model.in_c(torch.zeros(1, 1, 256, 43))
    assert x.shape[2:] == (127, 21)
    assert model.stage1(x).shape[2:] == (15, 10)


@pytest.mark.parametrize("rho", range(1, 16))
def test_full_family_rule(rho):
    """The published table, written out: e = rho - 7 turns kernels on one after the other."""
    e = rho - 7

    def on(threshold):
        return 1 + 2 * (e > threshold)

    def off(threshold):
        return 3 - 2 * (-e > threshold)

    stage1, stage2, stage3 = kernel_sizes(rho, "full")
    assert stage1 == [(3, 1), (off(6), off(5)), (off(4), off(3)), (off(2), off(1))]
    assert stage2 == [(off(0), on(0)), (on(1), on(2)), (on(3), on(4)), (on(5), on(6))]
    assert stage3 == [(on(7), on(8)), (on(9), on(10)), (on(11), on(12)), (on(13), on(14))]


def test_full_family_runs():
    model = CPResNet(**{**FULL_FAMILY, "base_channels": 16}).eval()
    assert model(torch.zeros(1, 1, 64, 32))["logits"].shape == (1, 10)


def test_unknown_rule_and_too_many_blocks():
    with pytest.raises(ValueError, match="'large'"):
        CPResNet(rule="large")
    with pytest.raises(ValueError, match="3 blocks in stage 1"):
        CPResNet(n_blocks=(3, 1, 1))


def test_damping_rows():
    torch.testing.assert_close(damping_row(1), torch.tensor([1.0]))
    torch.testing.assert_close(damping_row(5), torch.tensor([0.01, 0.505, 1.0, 0.505, 0.01]))


def test_damping_acts_along_frequency_in_every_convolution():
    conv = DampedConv2d(1, 1, 3, padding=1, bias=False)
    torch.nn.init.ones_(conv.weight)
    impulse = torch.zeros(1, 1, 5, 5)
    impulse[0, 0, 2, 2] = 1
    expected = torch.tensor([0.01, 1.0, 0.01])[:, None].expand(3, 3)
    torch.testing.assert_close(conv(impulse)[0, 0, 1:4, 1:4], expected)
    damped = CPResNet(freq_damping=True)
    assert damped.state_dict().keys() == CPResNet().state_dict().keys()
    convs = [m for m in damped.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(isinstance(m, DampedConv2d) for m in convs) == len(convs) - 1  # all but the head


def test_second_network_starts_like_the_first():
    """The published code counts blocks over the whole process."""
    spreads = []
    for _ in range(2):
        torch.manual_seed(0)
        spreads.append(CPResNet().stage2.block1.conv1.weight.std().item())
    assert spreads[0] == spreads[1]
    assert spreads[0] == pytest.approx((2 / (9 * 64)) ** 0.5 / 2, rel=0.05)  # four blocks


def test_fresh_network_is_indifferent():
    """Head and second convolutions start at zero."""
    assert not CPResNet().eval()(torch.randn(2, 1, 256, 43))["logits"].any()
