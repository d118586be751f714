"""Rotations: axis-angle vectors (radians), 3x3 matrices on column vectors, and yaw, pitch, roll (degrees).

Axis-angle is the only stored form; matrices are for computing and the three angles for people. Quaternions appear
inside this file only. All functions keep float32 or float64, any leading shape, and have finite gradients everywhere
they are smooth, zero rotation included.

Signs (axes: x to the person's left, y up, z out of the face):

    yaw   about y, positive = the face turns to the person's left (to the right of the picture)
    pitch about x, positive = the face looks down
    roll  about z, positive = the top of the head tilts to the person's right (to the left of the picture)
    R = R_y(yaw) R_x(pitch) R_z(roll)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .precision import exact


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rotation matrices of axis-angle vectors.

        R = I + sin(t)/t K + (1 - cos(t))/t^2 K^2,   t = |axis_angle|,  K = [axis_angle]_x

    Rodrigues' formula (Murray, Li and Sastry 1994, ch. 2). (1 - cos t)/t^2 is taken as sinc(t/2)^2 / 2, which loses
    no digits, and sinc by its series near 0, so that R and its gradient are finite at t = 0, where every fit starts.

    Args:
        axis_angle: (..., 3) radians, any length.
    Returns:
        (..., 3, 3) rotation matrices acting on column vectors, det = +1.
    """
    _check_last(axis_angle, (3,), "axis_angle_to_matrix: axis_angle")
    squared = axis_angle.square().sum(-1)[..., None, None]
    first = _sinc_of_square(squared)
    second = 0.5 * _sinc_of_square(squared / 4).square()
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    # K^2 = a a^T - |a|^2 I
    outer = axis_angle[..., :, None] * axis_angle[..., None, :]
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity * (1 - second * squared) + first * cross + second * outer


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Axis-angle vectors of rotation matrices, angle in [0, pi].

    Goes through the unit quaternion, read from the row of 4 q q^T with the largest diagonal entry (Bar-Itzhack 2000):
    that row is linear in R and never short, so no angle is special; at pi the sign of the axis is arbitrary.

    Args:
        matrix: (..., 3, 3) rotation matrices; not checked for orthogonality.
    Returns:
        (..., 3) radians.
    """
    _check_last(matrix, (3, 3), "matrix_to_axis_angle: matrix")
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.flatten(-2).unbind(-1)
    rows = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m12 + m21], -1),
            torch.stack([m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22], -1),
        ],
        -2,
    )
    longest = torch.diagonal(rows, dim1=-2, dim2=-1).argmax(-1)
    row = rows.gather(-2, longest[..., None, None].expand(*longest.shape, 1, 4)).squeeze(-2)
    quaternion = row / row.norm(dim=-1, keepdim=True)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)  # angle <= pi
    cosine, vector = quaternion[..., :1], quaternion[..., 1:]
    squared = vector.square().sum(-1, keepdim=True)
    small = squared < 1e-8
    sine = torch.where(small, torch.ones_like(squared), squared).sqrt()
    # 2 asin(s)/s = 2 + s^2/3 + ..., also the limit of 2 atan2(s, c)/s where s is small and c near 1
    scale = torch.where(small, 2 + squared / 3, 2 * torch.atan2(sine, cosine) / sine)
    return scale * vector


def euler_to_matrix(yaw: Tensor | float, pitch: Tensor | float = 0.0, roll: Tensor | float = 0.0) -> Tensor:
    """R_y(yaw) R_x(pitch) R_z(roll) of angles in degrees (signs in the module docstring).

    Args:
        yaw, pitch, roll: numbers or tensors (...,) in degrees; shapes broadcast.
    Returns:
        (..., 3, 3).
    """
    angles = torch.broadcast_tensors(*(torch.as_tensor(angle) for angle in (yaw, pitch, roll)))
    (cy, sy), (cx, sx), (cz, sz) = (
        (a.cos(), a.sin()) for a in (_floating(angle) * (math.pi / 180) for angle in angles)
    )
    return torch.stack(
        [
            *(cy * cz + sy * sx * sz, -cy * sz + sy * sx * cz, sy * cx),
            *(cx * sz, cx * cz, -sx),
            *(-sy * cz + cy * sx * sz, sy * sz + cy * sx * cz, cy * cx),
        ],
        -1,
    ).unflatten(-1, (3, 3))


def matrix_to_euler(matrix: Tensor) -> Tensor:
    """(..., 3) yaw, pitch, roll in degrees of rotation matrices; yaw and roll in (-180, 180], pitch in [-90, 90].

    Looking straight up or down (|pitch| = 90) yaw and roll are one motion; the split is then arbitrary.
    """
    _check_last(matrix, (3, 3), "matrix_to_euler: matrix")
    yaw = torch.atan2(matrix[..., 0, 2], matrix[..., 2, 2])
    # atan2 instead of asin: exact near 90 degrees, and no NaN when rounding makes the entry exceed 1
    pitch = torch.atan2(-matrix[..., 1, 2], torch.hypot(matrix[..., 1, 0], matrix[..., 1, 1]))
    roll = torch.atan2(matrix[..., 1, 0], matrix[..., 1, 1])
    return torch.stack([yaw, pitch, roll], -1) * (180 / math.pi)


def euler_to_axis_angle(yaw: Tensor | float, pitch: Tensor | float = 0.0, roll: Tensor | float = 0.0) -> Tensor:
    """(..., 3) axis-angle radians of yaw, pitch, roll in degrees; see `euler_to_matrix`."""
    return matrix_to_axis_angle(euler_to_matrix(yaw, pitch, roll))


def axis_angle_to_euler(axis_angle: Tensor) -> Tensor:
    """(..., 3) yaw, pitch, roll in degrees of axis-angle radians; see `matrix_to_euler`."""
    return matrix_to_euler(axis_angle_to_matrix(axis_angle))


@exact
def compose(first: Tensor, second: Tensor) -> Tensor:
    """Axis-angle of R(first) R(second), i.e. `second` is applied first; both (..., 3) radians."""
    return matrix_to_axis_angle(axis_angle_to_matrix(first) @ axis_angle_to_matrix(second))


def inverse(axis_angle: Tensor) -> Tensor:
    """Axis-angle of the inverse rotation."""
    return -axis_angle


def slerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """Rotation at `weight` of the way from `start` to `end` along the shortest path, at constant angular speed.

        R(start) exp(weight log(R(start)^T R(end)))

    Args:
        start, end: (..., 3) axis-angle radians.
        weight: number or tensor broadcasting against (..., 3); 0 gives `start`, 1 gives `end`.
    Returns:
        (..., 3) axis-angle radians.
    """
    start_matrix = axis_angle_to_matrix(start)
    step = matrix_to_axis_angle(start_matrix.mT @ axis_angle_to_matrix(end))
    return matrix_to_axis_angle(start_matrix @ axis_angle_to_matrix(weight * step))


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """(...,) angle in radians, in [0, pi], of the rotation that takes one axis-angle rotation to the other."""
    relative = axis_angle_to_matrix(first).mT @ axis_angle_to_matrix(second)
    return matrix_to_axis_angle(relative).norm(dim=-1)


def _sinc_of_square(squared: Tensor) -> Tensor:
    """sin(t)/t as a function of t^2; the series below t = 0.1 is exact to float64 and smooth at 0."""
    small = squared < 1e-2
    series = 1 - squared / 6 * (1 - squared / 20 * (1 - squared / 42 * (1 - squared / 72)))
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    return torch.where(small, series, angle.sin() / angle)


def _floating(values: Tensor) -> Tensor:
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def _check_last(values: Tensor, shape: tuple[int, ...], what: str) -> None:
    if values.shape[-len(shape) :] != shape:
        wanted = "(..., " + ", ".join(map(str, shape)) + ")"
        raise ValueError(f"{what} must be {wanted}, got {tuple(values.shape)}.")
