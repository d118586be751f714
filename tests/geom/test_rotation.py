from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwarp.geom import rotation as r

vectors = st.lists(st.floats(-4, 4), min_size=3, max_size=3).map(lambda v: torch.tensor([v], dtype=torch.float64))
angles = st.floats(-179, 179)
pitches = st.floats(-89, 89)


def as_matrix_exponential(axis_angle: torch.Tensor) -> torch.Tensor:
    x, y, z = axis_angle.unbind(-1)
    o = torch.zeros_like(x)
    return torch.matrix_exp(torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3)))


@pytest.mark.parametrize("length", [0.0, 1e-12, 1e-8, 1e-4, 0.0999, 0.1001, 1.0, 3.1, 6.5])
def test_agrees_with_the_matrix_exponential(length):
    axis = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    torch.testing.assert_close(
        r.axis_angle_to_matrix(length * axis), as_matrix_exponential(length * axis), rtol=0, atol=1e-13
    )


@settings(deadline=None)
@given(vectors)
def test_matrix_round_trip_and_group_laws(a):
    m = r.axis_angle_to_matrix(a)
    torch.testing.assert_close(r.axis_angle_to_matrix(r.matrix_to_axis_angle(m)), m, rtol=0, atol=1e-9)
    torch.testing.assert_close(m @ m.mT, torch.eye(3, dtype=m.dtype).expand_as(m), rtol=0, atol=1e-12)
    torch.testing.assert_close(r.axis_angle_to_matrix(r.inverse(a)), m.mT, rtol=0, atol=1e-12)
    assert torch.linalg.det(m).item() == pytest.approx(1)


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_is_right_next_to_half_a_turn(gap, dtype):
    axis = torch.nn.functional.normalize(torch.randn(100, 3, dtype=dtype), dim=-1)
    m = r.axis_angle_to_matrix((math.pi - gap) * axis)
    back = r.matrix_to_axis_angle(m)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(r.axis_angle_to_matrix(back), m, rtol=0, atol=tolerance)
    assert (back.norm(dim=-1) <= math.pi + 1e-6).all()


def test_log_keeps_small_float32_angles():
    a = torch.tensor([[1e-6, -2e-6, 3e-6], [1e-4, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(r.matrix_to_axis_angle(r.axis_angle_to_matrix(a)), a, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-3, 0.1, 1.0, 3.0])
def test_gradients_are_right_also_at_zero(scale):
    a = (scale * torch.tensor([[0.6, -0.48, 0.64]], dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(r.axis_angle_to_matrix, (a,))
    assert torch.autograd.gradgradcheck(r.axis_angle_to_matrix, (a,))
    assert torch.autograd.gradcheck(lambda x: r.matrix_to_axis_angle(r.axis_angle_to_matrix(x)), (a,))


def test_float32_gradient_at_zero_is_the_generator():
    a = torch.zeros(1, 3, requires_grad=True)
    r.axis_angle_to_matrix(a)[0, 2, 1].backward()
    torch.testing.assert_close(a.grad, torch.tensor([[1.0, 0.0, 0.0]]))


@settings(deadline=None)
@given(angles, pitches, angles)
def test_euler_round_trip(yaw, pitch, roll):
    found = r.axis_angle_to_euler(
        r.euler_to_axis_angle(*(torch.tensor(x, dtype=torch.float64) for x in (yaw, pitch, roll)))
    )
    torch.testing.assert_close(found, torch.tensor([yaw, pitch, roll], dtype=torch.float64), rtol=0, atol=1e-6)


def test_euler_composition_order():
    yaw, pitch, roll = (r.euler_to_matrix(*v) for v in ((20.0, 0.0, 0.0), (0.0, -10.0, 0.0), (0.0, 0.0, 35.0)))
    torch.testing.assert_close(r.euler_to_matrix(20.0, -10.0, 35.0), yaw @ pitch @ roll)


def test_euler_broadcasts_and_takes_integers():
    assert r.euler_to_axis_angle(torch.arange(4), 5).shape == (4, 3)


def test_slerp_ends_middle_and_speed():
    a, b = torch.randn(2, 20, 3, dtype=torch.float64)
    torch.testing.assert_close(
        r.angle_between(r.slerp(a, b, 0.0), a), torch.zeros(20, dtype=a.dtype), rtol=0, atol=1e-7
    )
    torch.testing.assert_close(
        r.angle_between(r.slerp(a, b, 1.0), b), torch.zeros(20, dtype=a.dtype), rtol=0, atol=1e-7
    )
    whole = r.angle_between(a, b)
    for weight in (0.25, 0.5, 0.75):
        middle = r.slerp(a, b, weight)
        torch.testing.assert_close(r.angle_between(a, middle), weight * whole)
        torch.testing.assert_close(r.angle_between(middle, b), (1 - weight) * whole)


def test_compose_is_the_matrix_product():
    a, b = torch.randn(2, 20, 3, dtype=torch.float64)
    torch.testing.assert_close(
        r.axis_angle_to_matrix(r.compose(a, b)), r.axis_angle_to_matrix(a) @ r.axis_angle_to_matrix(b)
    )


def test_wrong_shape_says_what_is_wanted():
    with pytest.raises(ValueError, match=r"\(\.\.\., 3\), got \(2, 4\)"):
        r.axis_angle_to_matrix(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"\(\.\.\., 3, 3\), got \(3, 4\)"):
        r.matrix_to_axis_angle(torch.zeros(3, 4))
