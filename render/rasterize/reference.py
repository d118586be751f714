"""What rasterising means: the rule set in plain torch, also the judge of the kernels and the fallback on any device.

1. Snap: vertices go to a grid of 1/256 pixel, X = floor((x + 1) W 128 + 1/2). All coverage is exact integer arithmetic
   from here on, so backends agree bit for bit and shared edges have no cracks.
2. Drop triangles with a corner that is NaN, 2^24 steps or more from the picture's corner, or of a depth outside
   (1e-6, 1e18): nothing is clipped at the near plane. Drop triangles of area 0, and back faces when culling.
3. Cover: edge k, opposite to corner k, leads from a to b; E_k(p) = (b - a) x (p - a). A pixel is inside where all
   E_k > 0 at its centre. A centre on an edge belongs to the triangle that has it as its top or left edge, so that every
   pixel under a closed surface is drawn once per layer.
4. Nearest wins: s = sum_k E_k s_k / area in float32, where s_k = z_k, or -1 / z_k with perspective (it is 1/z that is
   linear over the screen). The smallest s wins; among equals the lowest triangle.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 256
"""Sub-pixel steps per pixel."""
LIMIT = float(2**24)
"""Vertices this many steps away are refused; up to there float32 holds the snapped coordinates exactly."""
NEAR, FAR = 1e-6, 1e18
"""Open interval of depths that are drawn."""

_EMPTY = torch.iinfo(torch.int64).max
_BUDGET = 1 << 22  # pixels of boxes held at a time


def rasterize(
    vertices: Tensor, faces: Tensor, size: tuple[int, int], *, cull: bool, perspective: bool
) -> tuple[Tensor, Tensor]:
    """Triangle ids (B, H, W) int32 and depths (B, H, W) float32 of `vertices` (B, V, 3) and `faces` (F, 3)."""
    height, width = size
    ids, depths = [], []
    for mesh in vertices.float():
        x, y, s, face = _set_up(mesh, faces.long(), size, cull, perspective)
        # (s, triangle) in one integer that orders as rule 4 does.
        nearest = torch.full((height * width,), _EMPTY, dtype=torch.int64, device=mesh.device)
        for part in _parts(_box(x, width)[1] * _box(y, height)[1]):
            _draw(nearest, x[part], y[part], s[part], face[part], size)
        hit = nearest != _EMPTY
        value = _mirror((nearest >> 32).int()).view(torch.float32)
        depths.append(torch.where(hit, -value.reciprocal() if perspective else value, torch.inf))
        ids.append(torch.where(hit, nearest & 0xFFFFFFFF, -1).int())
    shape = (len(vertices), height, width)
    if not ids:
        return faces.new_empty(shape, dtype=torch.int32), vertices.new_empty(shape, dtype=torch.float32)
    return torch.stack(ids).view(shape), torch.stack(depths).view(shape)


def _set_up(
    vertices: Tensor, faces: Tensor, size: tuple[int, int], cull: bool, perspective: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The K triangles to draw: snapped x, y (K, 3) int64, s (K, 3) float32, and their ids (K,).

    Corners are ordered so that the area is positive in coordinates with y down: 0, 2, 1 for front faces.
    """
    height, width = size
    x = torch.floor((vertices[:, 0] + 1) * float(width * STEPS // 2) + 0.5)
    y = torch.floor((vertices[:, 1] + 1) * float(height * STEPS // 2) + 0.5)
    z = vertices[:, 2]
    good = (x.abs() < LIMIT) & (y.abs() < LIMIT) & (z > NEAR) & (z < FAR)  # NaN fails every comparison
    x, y = (torch.where(good, t, 0).long() for t in (x, y))
    s = torch.where(good, z, 1)
    if perspective:
        s = -s.reciprocal()

    area = _area(x[faces], y[faces])
    drawn = good[faces].all(1) & ((area < 0) if cull else (area != 0))
    corner = torch.where((area < 0)[:, None], faces[:, [0, 2, 1]], faces)[drawn]
    return x[corner], y[corner], s[corner], drawn.nonzero().squeeze(1)


def _draw(nearest: Tensor, x: Tensor, y: Tensor, s: Tensor, face: Tensor, size: tuple[int, int]) -> None:
    """Lowers `nearest` (H W,) to the keys of the given triangles wherever they cover a pixel."""
    (left, columns), (top, rows) = _box(x, size[1]), _box(y, size[0])
    # One row of everything below per pixel of a box.
    pixels = columns * rows
    owner = torch.repeat_interleave(pixels)
    place = torch.arange(len(owner), device=owner.device) - (pixels.cumsum(0) - pixels)[owner]
    column = left[owner] + place % columns[owner]
    row = top[owner] + place.div(columns[owner], rounding_mode="floor")
    px, py = column * STEPS + STEPS // 2, row * STEPS + STEPS // 2
    inverse = _area(x, y).float().reciprocal()

    inside = torch.ones_like(owner, dtype=torch.bool)
    value = torch.zeros(len(owner), device=owner.device)
    for k in range(3):
        a, b = (k + 1) % 3, (k + 2) % 3
        dx, dy = x[:, b] - x[:, a], y[:, b] - y[:, a]
        edge = dx[owner] * (py - y[owner, a]) - dy[owner] * (px - x[owner, a])
        top_left = (dy < 0) | ((dy == 0) & (dx > 0))
        inside &= (edge > 0) | ((edge == 0) & top_left[owner])
        value += edge.float() * (s[:, k] * inverse)[owner]

    key = (_mirror(value.view(torch.int32)).long() << 32) | face[owner]
    nearest.scatter_reduce_(0, (row * size[1] + column)[inside], key[inside], "amin")


def _box(corners: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """First pixel whose centre may be inside (K,) and how many follow (K,), along one axis of `length` pixels."""
    half = STEPS // 2
    begin = -(half - corners.amin(1)).div(STEPS, rounding_mode="floor")
    end = (corners.amax(1) - half).div(STEPS, rounding_mode="floor") + 1
    begin, end = begin.clamp(0, length), end.clamp(0, length)
    return begin, (end - begin).clamp_min(0)


def _parts(pixels: Tensor) -> list[slice]:
    """Runs of triangles with about _BUDGET box pixels each, so that memory stays bounded whatever comes."""
    ends = pixels.cumsum(0).tolist()
    parts, begin, used = [], 0, 0
    for k, end in enumerate(ends):
        if end - used > _BUDGET or k == len(ends) - 1:
            parts.append(slice(begin, k + 1))
            begin, used = k + 1, end
    return parts


def _mirror(bits: Tensor) -> Tensor:
    """float32 bits <-> integers of the same order: negative floats are stored with falling bits."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _area(x: Tensor, y: Tensor) -> Tensor:
    """Twice the signed area (K,) of triangles with corners (K, 3)."""
    return (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (y[:, 1] - y[:, 0]) * (x[:, 2] - x[:, 0])
