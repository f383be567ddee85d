"""Mean teacher: the average against its closed form, what is shared, what is the teacher's own."""

import pytest
import torch
from torch import nn

from task4_sed.mean_teacher import MeanTeacher
from tests.task4_sed.tiny_recipe import tiny_student


def set_all(model, number):
    with torch.no_grad():
        for parameter in model.crnn.parameters():
            parameter.fill_(number)


def weights(model):
    return {float(parameter.detach().unique()) for parameter in model.crnn.parameters()}


def test_step_0_copies_the_student():
    student = tiny_student()
    mean = MeanTeacher(student, 0.999)
    with torch.no_grad():
        for parameter in student.crnn.parameters():
            parameter.normal_()
    mean.update(0)
    for own, other in zip(mean.network.crnn.parameters(), student.crnn.parameters(), strict=True):
        assert torch.equal(own, other) and own is not other


def test_average_follows_its_closed_form():
    """α = min(1 − 1/(step + 1), decay): the mean of all students at first, then an exponential average."""
    student = tiny_student()
    set_all(student, 0.0)
    mean = MeanTeacher(student, 0.75)
    expected = []
    for step, number in enumerate((8.0, 4.0, 0.0, 12.0, 2.0, -6.0)):
        set_all(student, number)
        mean.update(step)
        if step < 4:  # 1 − 1/4 = 0.75
            expected.append(sum((8.0, 4.0, 0.0, 12.0)[: step + 1]) / (step + 1))
        else:
            expected.append(0.75 * expected[-1] + 0.25 * number)
        (found,) = weights(mean.network)
        assert found == pytest.approx(expected[-1], abs=1e-6)


def test_decay_of_999_in_closed_form():
    student = tiny_student()
    set_all(student, 0.0)
    mean = MeanTeacher(student, 0.999)
    set_all(student, 1.0)
    for step in range(5000, 5200):
        mean.update(step)
    (found,) = weights(mean.network)
    assert found == pytest.approx(1 - 0.999**200, abs=1e-5)


@pytest.mark.parametrize("projection", [None, False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_parts_are_held_once_and_all_else_twice(frozen, projection):
    student = tiny_student(projection=projection)
    student.train_encoder(not frozen)
    mean = MeanTeacher(student)
    assert (mean.network.encoder is student.encoder) == frozen
    assert mean.network.crnn is not student.crnn
    if projection is not None:
        assert (mean.network.projection is student.projection) == (not projection)
    assert not any(p.requires_grad for p in mean.network.parameters())
    own = {id(p) for p in mean.network.parameters()} - {id(p) for p in student.parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(0.3)
    mean.update(0)
    assert all((p == 0.3).all() for p in mean.network.parameters() if id(p) in own)


def test_student_trains_although_the_teacher_does_not():
    student = tiny_student()
    student.train_encoder()
    MeanTeacher(student)
    assert all(p.requires_grad for p in student.parameters())


def test_running_statistics_are_the_teachers_own():
    student = tiny_student()
    mean = MeanTeacher(student)
    norms = [[m for m in model.crnn.modules() if isinstance(m, nn.BatchNorm2d)] for model in (student, mean.network)]
    norms[0][0].running_mean.fill_(5.0)
    mean.update(0)
    assert not norms[1][0].running_mean.any()


def test_teacher_trains_and_evaluates_with_its_system():
    system = nn.Module()
    student = tiny_student()
    system.student, system.mean_teacher = student, MeanTeacher(student)
    assert system.train().mean_teacher.network.crnn.training and not student.encoder.training  # frozen
    assert not system.eval().mean_teacher.network.crnn.training


def test_weights_of_a_frozen_stage_go_into_a_full_one():
    """A teacher that shared its encoder has none in its file: that of the full stage keeps the student's."""
    first = MeanTeacher(tiny_student(projection=False, seed=1))
    own = first.own_weights()
    assert {name.split(".")[0] for name in own} == {"crnn"}
    student = tiny_student(projection=False, seed=2)
    student.train_encoder()
    second = MeanTeacher(student)
    assert {name.split(".")[0] for name in second.own_weights()} == {"crnn", "encoder"}
    second.load_own_weights(own)
    state = second.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in own.items())
    assert torch.equal(state["encoder.network.first.weight"], student.encoder.network.first.weight)
    second.load_own_weights(first.network.state_dict())  # a whole teacher: encoder too, not the shared projection
    state = second.network.state_dict()
    assert torch.equal(state["encoder.network.first.weight"], first.network.encoder.network.first.weight)
    assert torch.equal(student.projection.weight, state["projection.weight"])


def test_weights_that_do_not_fit_are_refused():
    mean = MeanTeacher(tiny_student())
    own = mean.own_weights()
    for broken in ({**own, "crnn.extra": torch.ones(1)}, dict(list(own.items())[1:])):
        with pytest.raises(ValueError, match="weights of the teacher do not fit this network"):
            mean.load_own_weights(broken)


def test_decay_must_be_a_share():
    with pytest.raises(ValueError, match="decay is 1"):
        MeanTeacher(tiny_student(), 1.0)
