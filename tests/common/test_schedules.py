"""Schedules and gates: hand-solved values and their shape. Published numbers: tests/parity."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.nn.gates import l_gate, t_gate
from common.training.schedules import exp_warmup_linear_down, warmup_cosine


def test_warmup_cosine_by_hand():
    factors = [warmup_cosine(step, warmup_steps=4, total_steps=12) for step in (0, 1, 4, 8, 12, 99)]
    assert factors == pytest.approx([0.0, 0.25, 1.0, 0.5, 0.0, 0.0])
    assert warmup_cosine(6, 4, 12) == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
    assert warmup_cosine(0, 0, 5) == 1.0


@given(warmup=st.integers(0, 50), rest=st.integers(1, 50))
def test_warmup_cosine_rises_once_and_falls_once(warmup, rest):
    factors = [warmup_cosine(step, warmup, warmup + rest) for step in range(warmup + rest + 2)]
    assert all(0 <= factor <= 1 for factor in factors) and factors[warmup] == 1
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


def test_warmup_cosine_drives_torchs_scheduler():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, 2, 6))
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1 * warmup_cosine(step, 2, 6) for step in range(6)])


def test_exp_warmup_linear_down_by_hand():
    def factor(epoch):
        return exp_warmup_linear_down(
            epoch, warmup_epochs=10, rampdown_epochs=20, start_rampdown=50, last_value=0.1
        )

    assert factor(0) == pytest.approx(math.exp(-5 * 0.95**2))
    assert factor(5) == pytest.approx(math.exp(-5 * 0.25))
    assert factor(10) == factor(50) == 1
    assert factor(60) == pytest.approx(0.55)
    assert factor(70) == factor(1000) == 0.1


def test_short_recipes_have_no_division_by_zero():
    assert exp_warmup_linear_down(0, 0, 0, 0, 0.5) == 1.0
    assert exp_warmup_linear_down(1, 0, 0, 0, 0.5) == 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: warmup_cosine(-1, 2, 6),
        lambda: warmup_cosine(0, 6, 6),
        lambda: warmup_cosine(0, -1, 6),
        lambda: exp_warmup_linear_down(-1, 1, 1, 1, 0),
        lambda: exp_warmup_linear_down(0, 1, 1, 1, 1.5),
        lambda: exp_warmup_linear_down(0, 1, -1, 1, 0.5),
    ],
)
def test_impossible_schedules_are_refused(call):
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize("gate", [t_gate, l_gate])
def test_gate_is_open_at_zero_and_a_sigmoid_at_one(gate):
    x = torch.linspace(-6, 6, 25)
    torch.testing.assert_close(gate(x, 0.0), torch.ones(25))
    torch.testing.assert_close(gate(x, 1.0), torch.sigmoid(x), rtol=0, atol=1e-6)


@given(t=st.floats(0, 1), x=st.floats(-50, 50))
def test_gates_stay_within_zero_and_one_and_agree_with_a_tensor_dial(t, x):
    for gate in (t_gate, l_gate):
        value = gate(torch.tensor([x]), t)
        assert 0 <= float(value) <= 1
        torch.testing.assert_close(gate(torch.tensor([x]), torch.tensor([t])), value, rtol=0, atol=1e-5)


def test_gate_takes_one_dial_per_clip():
    out = t_gate(torch.zeros(2, 3, 4), torch.tensor([0.0, 1.0])[:, None, None])
    assert torch.equal(out[0], torch.ones(3, 4)) and torch.equal(out[1], torch.full((3, 4), 0.5))


@pytest.mark.parametrize(
    "call",
    [
        lambda: t_gate(torch.zeros(1), -0.1),
        lambda: l_gate(torch.zeros(1), -0.1),
        lambda: l_gate(torch.zeros(1), 1.1),
    ],
)
def test_dials_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match="gate dial"):
        call()
