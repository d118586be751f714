"""The motion field: for every pixel of the new picture, where in the source photo it comes from.

    target mesh --rasterise--> displacement and confidence per pixel --membrane--> displacement everywhere

A displacement (dx, dy) in pixels leads from a target pixel to its place in the source: source = target + displacement.
The mesh says it where the photo shows the surface. What it does not say is the smoothest continuation: through hidden
skin inside the head, over hair and clothes outside it, down to zero on the borders of the crop. All masks are soft
functions of mesh and motion, so the field changes smoothly from frame to frame. A third channel carries the change of
shading along (a gain minus one).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .. import threads
from . import membrane

Image = NDArray[np.float32]
Points = NDArray[np.float32]

CELL = 4
"""Pixels per membrane cell."""
GUESS = 0.02
"""Confidence, as a membrane weight only, of surface that the photo hides: its place is continued over the mesh."""
ANCHOR = 200.0
"""Membrane weight of a cell that the mesh covers with full confidence."""
MARGIN = 12
"""Pixels next to the border over which motion fades to zero."""
PINNED = 1e4
"""Membrane weight on borders that must not move."""


@dataclass
class Field:
    """Motion of a frame on the work grid."""

    values: Image
    """(H, W, 3): dx, dy px, gain - 1."""
    confidence: Image
    """(H, W) in [0, 1]: 1 where the photo shows what belongs there, 0 where values are continued."""
    stretch: Image
    """(h, w) on cells, in [0, 1]: 1 where the continuation repeats the same few source pixels."""


def compute(
    face_id: NDArray[np.int32],
    faces: NDArray[np.int32],
    target: Points,
    attributes: Points,
    depth: Image,
    person: Image,
    edge: tuple[float, float],
    workers: int = 1,
) -> Field:
    """The field of one frame.

    Args:
        face_id: (H, W) triangles seen by the target pixels, -1 for none.
        faces: (F, 3).
        target: (N, 2) target px of the vertices.
        attributes: (N, 6) dx, dy, gain - 1, confidence, source depth in metres, and how far the place
            of a hidden vertex is continued from shown ones.
        depth: (H, W) source z-buffer in metres.
        person: (H, W) in [0, 1]: the part of the source that must move with the head or body.
        workers: threads.
        edge: metres behind the source's z-buffer where a pixel starts to count as hidden, and where it is hidden.
    """
    height, width = face_id.shape
    values = np.zeros((height, width, 3), np.float32)
    confidence = np.zeros((height, width), np.float32)
    support = np.zeros((height, width), np.float32)
    near, far = np.float32(edge[0]), np.float32(edge[1])

    def look_up(top: int, bottom: int) -> None:
        _look_up(face_id, faces, target, attributes, depth, near, far, values, confidence, support, top, bottom)

    threads.run(look_up, bands(height), workers)
    anchors, weights, hidden = _to_cells(values, confidence, support, face_id)
    coarse = _extend(anchors, ANCHOR * weights, person)

    def blend(top: int, bottom: int) -> None:
        _blend(values, confidence, coarse, top, bottom)

    threads.run(blend, bands(height), workers)
    stretch = _stretch(coarse, hidden)
    stretch = _blur(_blur(stretch))
    stretch[0] = stretch[-1] = 0
    stretch[:, 0] = stretch[:, -1] = 0
    return Field(values, confidence, stretch)


def _extend(anchors: Image, weights: Image, person: Image) -> Image:
    """Displacement on all cells: rigidly outwards over the person, then down to zero towards the borders."""
    free = weights.copy()
    free[-1] = PINNED
    anchored = np.where(weights[..., None] > 0, anchors, 0).astype(np.float32)
    with_bottom = anchored.copy()
    with_bottom[-1] = 0
    over_person = membrane.solve(with_bottom, free)
    known = ANCHOR * _warped(person, over_person)
    rows, columns = known.shape
    pinned = np.zeros((rows, columns), np.bool_)
    pinned[0] = pinned[-1] = pinned[:, 0] = pinned[:, -1] = True
    known[pinned] = PINNED
    goal = np.where(pinned[..., None], 0, over_person).astype(np.float32)
    return membrane.solve(goal, known)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _look_up(
    face_id: NDArray[np.int32],
    faces: NDArray[np.int32],
    target: Points,
    attributes: Points,
    depth: Image,
    near: np.float32,
    far: np.float32,
    values: Image,
    confidence: Image,
    support: Image,
    top: int,
    bottom: int,
) -> None:
    """Interpolate the vertices' attributes, and check every pixel against the source's z-buffer."""
    height, width = face_id.shape
    for y in range(top, bottom):
        for x in range(width):
            f = face_id[y, x]
            if f < 0:
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            px, py = np.float32(x) + np.float32(0.5), np.float32(y) + np.float32(0.5)
            abx, aby = target[b, 0] - target[a, 0], target[b, 1] - target[a, 1]
            acx, acy = target[c, 0] - target[a, 0], target[c, 1] - target[a, 1]
            area = abx * acy - aby * acx
            if area == 0:
                continue
            apx, apy = px - target[a, 0], py - target[a, 1]
            wb = (apx * acy - apy * acx) / area
            wc = (abx * apy - aby * apx) / area
            wa = np.float32(1) - wb - wc
            dx = wa * attributes[a, 0] + wb * attributes[b, 0] + wc * attributes[c, 0]
            dy = wa * attributes[a, 1] + wb * attributes[b, 1] + wc * attributes[c, 1]
            sure = wa * attributes[a, 3] + wb * attributes[b, 3] + wc * attributes[c, 3]
            # A hidden vertex at the outline has a continued place. One that something passed in front of has none.
            guess = wa * attributes[a, 5] + wb * attributes[b, 5] + wc * attributes[c, 5]
            guess *= np.float32(GUESS) * min(max(np.float32(1) - sure, np.float32(0)), np.float32(1))
            if sure > 0:
                z = wa * attributes[a, 4] + wb * attributes[b, 4] + wc * attributes[c, 4]
                sx = min(max(int(px + dx), 0), width - 1)
                sy = min(max(int(py + dy), 0), height - 1)
                behind = (z - depth[sy, sx] - near) / (far - near)
                sure *= min(max(np.float32(1) - behind, np.float32(0)), np.float32(1))
            values[y, x, 0] = dx
            values[y, x, 1] = dy
            values[y, x, 2] = wa * attributes[a, 2] + wb * attributes[b, 2] + wc * attributes[c, 2]
            sure = min(max(sure, np.float32(0)), np.float32(1))
            confidence[y, x] = sure
            support[y, x] = sure + guess


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _to_cells(
    values: Image, confidence: Image, support: Image, face_id: NDArray[np.int32]
) -> tuple[Image, Image, Image]:
    """Means over cells weighted by support, the mean support, and the share of mesh that the photo hides."""
    height, width = confidence.shape
    rows, columns = (height + CELL - 1) // CELL, (width + CELL - 1) // CELL
    sums = np.zeros((rows, columns, 3), np.float32)
    total = np.zeros((rows, columns), np.float32)
    hidden = np.zeros((rows, columns), np.float32)
    for y in range(height):
        for x in range(width):
            w = support[y, x]
            if face_id[y, x] >= 0:
                hidden[y // CELL, x // CELL] += (np.float32(1) - confidence[y, x]) / (CELL * CELL)
            if w > 0:
                total[y // CELL, x // CELL] += w
                for c in range(3):
                    sums[y // CELL, x // CELL, c] += w * values[y, x, c]
    for y in range(rows):
        for x in range(columns):
            w = total[y, x]
            if w > 0:
                for c in range(3):
                    sums[y, x, c] /= w
                total[y, x] = w / (CELL * CELL)
    return sums, total, hidden


@njit(cache=True, nogil=True)
def _warped(person: Image, field: Image) -> Image:
    """The person mask, moved: for every cell its value where the field points."""
    rows, columns = field.shape[:2]
    height, width = person.shape
    out = np.empty((rows, columns), np.float32)
    for y in range(rows):
        for x in range(columns):
            sx = (x + 0.5) * CELL + field[y, x, 0]
            sy = (y + 0.5) * CELL + field[y, x, 1]
            ix = min(max(int(sx), 0), width - 1)
            iy = min(max(int(sy), 0), height - 1)
            out[y, x] = person[iy, ix]
    return out


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _blend(values: Image, confidence: Image, coarse: Image, first: int, last: int) -> None:
    """Finish `values` in place: the mesh's where it is confident, the membrane's elsewhere; zero on the border."""
    height, width = confidence.shape
    rows, columns = coarse.shape[:2]
    step = np.float32(1 / CELL)
    half = np.float32(0.5)
    for y in range(first, last):
        v = min(max((np.float32(y) + half) * step - half, np.float32(0)), np.float32(rows - 1))
        top = max(min(int(v), rows - 2), 0)
        fy = v - np.float32(top)
        bottom = min(top + 1, rows - 1)
        edge_y = min(y, height - 1 - y)
        for x in range(width):
            h = min(max((np.float32(x) + half) * step - half, np.float32(0)), np.float32(columns - 1))
            left = max(min(int(h), columns - 2), 0)
            fx = h - np.float32(left)
            right = min(left + 1, columns - 1)
            w = confidence[y, x]
            # What the mesh says fades to exactly zero on the outermost pixel, too.
            border = min(np.float32(min(edge_y, min(x, width - 1 - x))) / np.float32(MARGIN), np.float32(1))
            for c in range(3):
                a = coarse[top, left, c] + fx * (coarse[top, right, c] - coarse[top, left, c])
                b = coarse[bottom, left, c] + fx * (coarse[bottom, right, c] - coarse[bottom, left, c])
                smooth = a + fy * (b - a)
                values[y, x, c] = border * (w * values[y, x, c] + (np.float32(1) - w) * smooth)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
def _stretch(coarse: Image, hidden: Image) -> Image:
    """(h, w) how far the continuation over hidden skin is stretched, from the smallest singular value of the map."""
    rows, columns = hidden.shape
    half = np.float32(0.5)
    stretch = np.zeros((rows, columns), np.float32)
    for y in range(1, rows - 1):
        for x in range(1, columns - 1):
            scale = np.float32(0.5 / CELL)
            xx = np.float32(1) + scale * (coarse[y, x + 1, 0] - coarse[y, x - 1, 0])
            xy = scale * (coarse[y + 1, x, 0] - coarse[y - 1, x, 0])
            yx = scale * (coarse[y, x + 1, 1] - coarse[y, x - 1, 1])
            yy = np.float32(1) + scale * (coarse[y + 1, x, 1] - coarse[y - 1, x, 1])
            # Smallest singular value of a 2 x 2 matrix: |its conformal part| - |its anti-conformal part|.
            same = half * np.sqrt((xx + yy) ** 2 + (xy - yx) ** 2)
            other = half * np.sqrt((xx - yy) ** 2 + (xy + yx) ** 2)
            t = (np.float32(0.34) - (same - other)) / np.float32(0.24)
            t = min(max(t, np.float32(0)), np.float32(1))
            stretch[y, x] = hidden[y, x] * t * t * (np.float32(3) - np.float32(2) * t)
    return stretch


@njit(cache=True, nogil=True)
def _blur(image: Image) -> Image:
    """3 x 3 binomial blur, edges repeated."""
    height, width = image.shape
    rows = np.empty_like(image)
    out = np.empty_like(image)
    for y in range(height):
        for x in range(width):
            rows[y, x] = 0.25 * (image[y, max(x - 1, 0)] + 2 * image[y, x] + image[y, min(x + 1, width - 1)])
    for y in range(height):
        for x in range(width):
            out[y, x] = 0.25 * (rows[max(y - 1, 0), x] + 2 * rows[y, x] + rows[min(y + 1, height - 1), x])
    return out


def bands(height: int, count: int = 8) -> list[tuple[int, int]]:
    """Rows 0 ... height in up to `count` pieces, for threads."""
    edges = [height * k // count for k in range(count + 1)]
    return [(a, b) for a, b in pairwise(edges) if b > a]
