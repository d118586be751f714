"""Finds MediaPipe's 478 face points and iBUG's 68 on the open head, from geometry alone.

MediaPipe's landmark bundle contains its canonical face, a mesh of 468 points in centimetres. It is laid over the mean
head in three steps:

1. Anchors: points both meshes define by shape. Eye contours follow the lid edges, inner lips the seam between skin and
   mouth, outer lips the edge of the lip mask, and the profile has a nose tip, a philtrum and a chin.
2. A similarity and the smoothest displacement through the anchors carry the other points along.
3. Every point moves to the nearest place of the skin; a few rounds with these places as weak anchors let cheeks and jaw
   settle.

Points are mirrored from the right half, so that the embedding is exactly symmetric. Where shape leaves a choice (how
low on the chin, whether the tear duct counts), it was made so that the points agree with what the detector finds on
pictures of the head.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from headwarp.geom.landmarks import closest_point_on_mesh

__all__ = ["Landmarks", "canonical_face", "register_landmarks"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Chains of MediaPipe's points, of the person's right half (x < 0) where there are two, from the outer corner inwards.
EYE_UPPER = (33, 246, 161, 160, 159, 158, 157, 173, 133)
EYE_LOWER = (33, 7, 163, 144, 145, 153, 154, 155, 133)
LIP_INNER_UPPER, LIP_INNER_LOWER = (78, 191, 80, 81, 82, 13), (78, 95, 88, 178, 87, 14)
LIP_OUTER_UPPER, LIP_OUTER_LOWER = (61, 185, 40, 39, 37, 0), (61, 146, 91, 181, 84, 17)
OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
"""MediaPipe's face oval, clockwise as the viewer sees it."""
IBUG_INNER = (
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # 17-26 brows
    *(168, 197, 5, 4, 98, 97, 2, 326, 327),  # 27-35 nose
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # 36-47 eyes
    *(61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91),  # 48-59 outer lips
    *(78, 81, 13, 311, 308, 402, 14, 178),  # 60-67 inner lips
)
"""MediaPipe's index of iBUG's points 17 ... 67."""


CHIN_SLOPE = 0.25
"""Point 152 is where the profile of the chin falls this much per metre forwards: almost its lowest point."""
STIFFNESS = 0.02
"""Smoothing of the places found by projection, against 1e-9 of the anchors (metres, for the kernel |r|)."""


@dataclass(frozen=True)
class Landmarks:
    """Triangles and barycentric weights of the points."""

    mediapipe_triangle: IntArray
    """(478,)"""
    mediapipe_barycentric: FloatArray
    """(478, 3)"""
    static_triangle: IntArray
    """(68,)"""
    static_barycentric: FloatArray
    dynamic_triangle: IntArray
    """(79, 17): contour points 0 ... 16 for a head turned by -39 ... 39 degrees about y."""
    dynamic_barycentric: FloatArray


def canonical_face(bundle: Path) -> FloatArray:
    """(468, 3) points of MediaPipe's canonical face in metres, y up, z out of the face, x towards the person's left.

    The bundle is a zip; its geometry_pipeline_metadata_landmarks.binarypb is a protocol buffer whose field 1 is the
    mesh, and field 3 of that the vertex buffer (x, y, z, u, v as floats, one by one).
    """
    with zipfile.ZipFile(bundle) as file:
        message = file.read("geometry_pipeline_metadata_landmarks.binarypb")
    fields = dict(_fields(message, {1}))
    floats = [struct.unpack("<f", value)[0] for _, value in _fields(fields[1], {3})]
    return np.array(floats, dtype=np.float64).reshape(-1, 5)[:, :3] / 100


def _fields(message: bytes, wanted: set[int]) -> list[tuple[int, bytes]]:
    """(number, bytes) of the wanted fields of a protocol-buffer message, in order."""
    found, i = [], 0

    def varint() -> int:
        nonlocal i
        value = shift = 0
        while True:
            byte = message[i]
            i += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while i < len(message):
        tag = varint()
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            varint()
            continue
        length = {1: 8, 5: 4}[kind] if kind in (1, 5) else varint()
        if number in wanted:
            found.append((number, message[i : i + length]))
        i += length
    return found


def along(chain: FloatArray, fractions: FloatArray) -> FloatArray:
    """Points of a polyline (M, 3) at fractions (L,) of its length."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(chain, axis=0), axis=1))])
    return np.stack([np.interp(fractions * length[-1], length, chain[:, k]) for k in range(3)], 1)


def fractions_of(chain: FloatArray) -> FloatArray:
    """Where the points of a polyline lie on its length, 0 ... 1."""
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(chain, axis=0), axis=1))])
    return length / length[-1]


def split_loop(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Upper and lower half of a closed curve around the right eye, from the outer corner to the inner one."""
    middle = points.mean(0)
    order = np.argsort(np.arctan2(points[:, 1] - middle[1], points[:, 0] - middle[0]))
    loop = points[order]
    outer, inner = int(np.argmin(loop[:, 0])), int(np.argmax(loop[:, 0]))
    rolled = np.roll(
        loop, -outer, axis=0
    )  # counter-clockwise seen from the front: outer corner, lower half, inner corner
    cut = (inner - outer) % len(loop)
    lower, upper = rolled[: cut + 1], np.concatenate([rolled[cut:], rolled[:1]])[::-1]
    return upper, lower


def contour_crossings(vertices: FloatArray, faces: IntArray, values: FloatArray, level: float) -> FloatArray:
    """(M, 3) points where `values` pass through `level` on the edges of the triangles."""
    edges = np.unique(np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0)
    low, high = values[edges[:, 0]] - level, values[edges[:, 1]] - level
    edges, low, high = (x[low * high < 0] for x in (edges, low, high))
    t = (low / (low - high))[:, None]
    return vertices[edges[:, 0]] * (1 - t) + vertices[edges[:, 1]] * t


def anchors(
    canonical: FloatArray,
    vertices: FloatArray,
    faces: IntArray,
    lid_rim: IntArray,
    mouth_seam: IntArray,
    lips: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Pairs of places (A, 3) on the canonical face and on the head that mean the same, on both sides."""
    pairs: list[tuple[int, FloatArray]] = []

    def match(chain: tuple[int, ...], curve: FloatArray) -> None:
        pairs.extend(zip(chain, along(curve, fractions_of(canonical[list(chain)])), strict=True))

    # The inner corner of the eye is where the skin folds, two rings in front of the lid edge: the detector counts the
    # tear duct in, which the eyeball of the mesh does not reach.
    upper, lower = split_loop(vertices[lid_rim])
    fold = vertices[ring_around(ring_around(lid_rim, lid_rim, faces), lid_rim, faces)]
    corner = fold[np.argmax(fold[:, 0])]
    upper, lower = np.concatenate([upper, [corner]]), np.concatenate([lower, [corner]])
    match(EYE_UPPER, upper)
    match(EYE_LOWER, lower)

    for chain, half in zip((LIP_INNER_UPPER, LIP_INNER_LOWER), split_seam(vertices, faces, mouth_seam), strict=True):
        points = vertices[half]
        match(chain, points[np.argsort(points[:, 0])])

    edge = contour_crossings(vertices, faces, lips, 0.5)
    edge = edge[edge[:, 0] <= 1e-9]
    corner = edge[np.argmin(edge[:, 0])]
    for chain, half in ((LIP_OUTER_UPPER, edge[:, 1] >= corner[1]), (LIP_OUTER_LOWER, edge[:, 1] <= corner[1])):
        match(chain, thin_out(edge[half][np.argsort(edge[half][:, 0])]))

    middle = vertices[np.unique(faces)]
    middle = middle[(np.abs(middle[:, 0]) < 1e-9) & (middle[:, 2] > 0)]
    top_lip = next(point for i, point in pairs if i == LIP_OUTER_UPPER[-1])
    tip = middle[np.argmax(middle[:, 2])]
    chin = middle[np.argmin(middle[:, 1] - CHIN_SLOPE * middle[:, 2])]
    philtrum = middle[(middle[:, 1] < tip[1] - 0.005) & (middle[:, 1] > top_lip[1])]
    # The hollow under the lower lip is wide; the detector sees its upper slope.
    low_lip = pairs[-1][1]
    hollow = middle[(middle[:, 1] < low_lip[1]) & (middle[:, 1] > (low_lip[1] + chin[1]) / 2)]
    hollow = hollow[np.argmin(hollow[:, 2])]
    slope = middle[np.argmin(np.abs(middle[:, 1] - (low_lip[1] + hollow[1]) / 2))]
    pairs += [(18, slope), (1, tip), (152, chin), (2, philtrum[np.argmax(philtrum[:, 1] - philtrum[:, 2])])]
    index = np.array([i for i, _ in pairs])
    points = np.array([p for _, p in pairs])
    points[np.abs(canonical[index, 0]) < 1e-9, 0] = 0
    return (
        np.concatenate([canonical[index], (canonical[index] * [-1, 1, 1])[canonical[index, 0] < 0]]),
        np.concatenate([points, (points * [-1, 1, 1])[canonical[index, 0] < 0]]),
    )


def ring_around(vertices: IntArray, known: IntArray, faces: IntArray) -> IntArray:
    """Neighbours of some vertices that are neither among them nor among the known ones."""
    touched = faces[np.isin(faces, vertices).any(1)]
    return np.setdiff1d(touched, np.union1d(vertices, known))


def thin_out(chain: FloatArray) -> FloatArray:
    """A polyline without points closer than 0.3 mm to the one before."""
    kept = [chain[0]]
    for point in chain[1:]:
        if np.linalg.norm(point - kept[-1]) > 3e-4:
            kept.append(point)
    return np.array(kept)


def split_seam(vertices: FloatArray, skin_faces: IntArray, mouth_seam: IntArray) -> tuple[IntArray, IntArray]:
    """Vertices of the seam's right half on the upper and on the lower lip, corner in both.

    Walks along the open edge of the skin: heights do not tell, the lower lip stands higher in places.
    """
    sides = np.sort(skin_faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    edges, uses = np.unique(sides, axis=0, return_counts=True)
    edges = edges[(uses == 1) & np.isin(edges, mouth_seam).all(1) & (vertices[edges, 0] <= 1e-9).all(1)]
    middle = np.unique(edges)[np.abs(vertices[np.unique(edges), 0]) < 1e-9]
    low, high = middle[np.argsort(vertices[middle, 1])]
    walk = [high]
    while walk[-1] != low:
        touching = edges[(edges == walk[-1]).any(1)].ravel()
        walk.append(next(v for v in touching if v not in walk[-2:]))
    loop = np.array(walk)
    corner = int(np.argmin(vertices[loop, 0]))
    return loop[: corner + 1], loop[corner:][::-1]


def similarity(sources: FloatArray, targets: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """Scale, rotation and shift of the best similarity (Umeyama 1991)."""
    a, b = sources - sources.mean(0), targets - targets.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    turn = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ turn @ vt
    scale = float((d * np.diag(turn)).sum() / (a**2).sum())
    return scale, rotation, targets.mean(0) - scale * rotation @ sources.mean(0)


def bend(sources: FloatArray, targets: FloatArray, points: FloatArray, smoothing: FloatArray) -> FloatArray:
    """Carry points along with sources -> targets: a similarity plus the smoothest displacement (biharmonic, |r|)."""
    scale, rotation, shift = similarity(sources, targets)
    moved, queries = (scale * x @ rotation.T + shift for x in (sources, points))
    _, first = np.unique(sources.round(7), axis=0, return_index=True)
    field = RBFInterpolator(
        moved[first], (targets - moved)[first], kernel="linear", degree=0, smoothing=smoothing[first]
    )
    return queries + field(queries)


def register_landmarks(
    canonical: FloatArray,
    vertices: FloatArray,
    faces: IntArray,
    skin: IntArray,
    mirror: IntArray,
    lid_rim: IntArray,
    mouth_seam: IntArray,
    lips: FloatArray,
    irises: IntArray,
) -> Landmarks:
    """Landmarks of a symmetric head.

    Args:
        canonical: (468, 3) of `canonical_face`.
        vertices: (N, 3) of the mean head, mouth closed.
        faces: (F, 3).
        skin: triangles that may carry landmarks.
        mirror: (N,) mirror image of each vertex.
        lid_rim: vertices of the right eye's lid edge (x < 0).
        mouth_seam: vertices where the lips' skin meets the mouth bag.
        lips: (N,) 1 on the lips, 0 elsewhere.
        irises: (10,) vertices: middle, then four places of the rim, of the right and of the left eye.
    """
    sources, targets = anchors(canonical, vertices, faces[skin], lid_rim, mouth_seam, lips)
    anchored = np.array([np.any(np.all(point == sources, 1)) for point in canonical])
    weights = np.concatenate([np.full(len(sources), 1e-9), np.full((~anchored).sum(), STIFFNESS)])
    placed = bend(sources, targets, canonical, weights[: len(sources)])
    # Projection sees the right half only: in a groove of the middle, both halves are equally near.
    _, partner = cKDTree(canonical).query(canonical * [-1, 1, 1])
    right, middle = np.flatnonzero(canonical[:, 0] < 1e-9), np.abs(canonical[:, 0]) < 1e-9
    half = skin[vertices[faces[skin], 0].mean(1) < 0]
    for _ in range(4):
        triangle, barycentric = nearest(placed[right], vertices, faces, half)
        found = np.zeros_like(placed)
        found[right] = np.einsum("lk,lkc->lc", barycentric, vertices[faces[triangle]])
        found[middle, 0] = 0
        found[partner[right]] = found[right] * [-1, 1, 1]
        placed = bend(
            np.concatenate([sources, canonical[~anchored]]),
            np.concatenate([targets, found[~anchored]]),
            canonical,
            weights,
        )
    sided = right[~middle[right]]
    triangle, barycentric = np.zeros(len(canonical), dtype=np.int64), np.zeros((len(canonical), 3))
    triangle[sided], barycentric[sided] = settle(*nearest(placed[sided], vertices, faces, half), faces, half)
    # Closed lips touch: a point on one of them is as near to the other, which moves with the jaw.
    seam = split_seam(vertices, faces[skin], mouth_seam)
    for chain, other in ((LIP_INNER_UPPER, seam[1]), (LIP_INNER_LOWER, seam[0])):
        points = np.array(chain[1:-1])
        own = half[~np.isin(faces[half], other).any(1)]
        triangle[points], barycentric[points] = settle(*nearest(placed[points], vertices, faces, own), faces, own)
    triangle[middle], barycentric[middle] = settle(
        *nearest_in_middle(placed[middle], vertices, faces, half), faces, half
    )
    triangle, barycentric = mirror_points(triangle, barycentric, sided, partner[sided], faces, mirror)

    oval = np.einsum("lk,lkc->lc", barycentric[list(OVAL)], vertices[faces[triangle[list(OVAL)]]])
    iris = at_vertices(irises, faces)
    triangle, barycentric = np.concatenate([triangle, iris[0]]), np.concatenate([barycentric, iris[1]])
    dynamic = dynamic_contour(vertices, faces, skin, mirror, oval)
    inner = list(IBUG_INNER)
    return Landmarks(
        triangle,
        barycentric,
        np.concatenate([dynamic[0][0], triangle[inner]]),
        np.concatenate([dynamic[1][0], barycentric[inner]]),
        *dynamic,
    )


def nearest(points: FloatArray, vertices: FloatArray, faces: IntArray, chosen: IntArray) -> tuple[IntArray, FloatArray]:
    """Triangle ids (L,) and weights (L, 3) of the places on the chosen triangles that are nearest to (L, 3) points."""
    triangle, barycentric, _ = closest_point_on_mesh(points, vertices, faces[chosen])
    return chosen[triangle], barycentric


def nearest_in_middle(
    points: FloatArray, vertices: FloatArray, faces: IntArray, chosen: IntArray
) -> tuple[IntArray, FloatArray]:
    """As `nearest`, but on the chosen triangles' edges in the plane x = 0 only."""
    corners = faces[chosen]
    sides = [(i, (i + 1) % 3) for i in range(3)]
    flat = [(np.abs(vertices[corners[:, [i, j]], 0]) < 1e-9).all(1) for i, j in sides]
    owner = np.concatenate([chosen[f] for f in flat])
    start, end = (np.concatenate([corners[f, s[k]] for f, s in zip(flat, sides, strict=True)]) for k in (0, 1))
    edge, weights, _ = closest_point_on_mesh(points, vertices, np.stack([start, end, end], 1))
    barycentric = np.zeros((len(points), 3))
    for i, (e, w) in enumerate(zip(edge, weights, strict=True)):
        barycentric[i] = np.where(
            faces[owner[e]] == start[e], w[0], np.where(faces[owner[e]] == end[e], w[1] + w[2], 0)
        )
    return owner[edge], barycentric


def settle(
    triangle: IntArray, barycentric: FloatArray, faces: IntArray, chosen: IntArray
) -> tuple[IntArray, FloatArray]:
    """The same points to four decimals of a weight (under a micrometre), in a form that rounding errors cannot change.

    A point on an edge or a corner belongs to several triangles; it gets the first of the chosen ones.
    """
    triangle, barycentric = triangle.copy(), barycentric.round(4)
    first: dict[tuple[int, ...], int] = {}
    for face in chosen[::-1].tolist():
        a, b, c = sorted(faces[face].tolist())
        first |= dict.fromkeys(((a,), (b,), (c,), (a, b), (b, c), (a, c)), face)
    for i in range(len(triangle)):
        weight = dict(zip(faces[triangle[i]].tolist(), barycentric[i].tolist(), strict=True))
        used = tuple(sorted(v for v, w in weight.items() if w != 0))
        if len(used) < 3:
            triangle[i] = first[used]
            barycentric[i] = [weight.get(v, 0.0) for v in faces[triangle[i]].tolist()]
        largest = int(np.argmax(barycentric[i]))
        barycentric[i, largest] = 1 - np.delete(barycentric[i], largest).sum()
    return triangle, barycentric


def mirror_points(
    triangle: IntArray, barycentric: FloatArray, source: IntArray, target: IntArray, faces: IntArray, mirror: IntArray
) -> tuple[IntArray, FloatArray]:
    """Make the rows `target` of an embedding the mirror images of the rows `source`."""
    triangle, barycentric = triangle.copy(), barycentric.copy()
    number = {frozenset(face): i for i, face in enumerate(faces.tolist())}
    for here, there in zip(source, target, strict=True):
        images = mirror[faces[triangle[here]]]
        triangle[there] = number[frozenset(images.tolist())]
        weight = dict(zip(images.tolist(), barycentric[here], strict=True))
        barycentric[there] = [weight[v] for v in faces[triangle[there]].tolist()]
    return triangle, barycentric


def at_vertices(vertices: IntArray, faces: IntArray) -> tuple[IntArray, FloatArray]:
    """Embedding of mesh vertices: any triangle that has them, weight 1."""
    triangle = np.array([np.flatnonzero((faces == v).any(1))[0] for v in vertices])
    return triangle, (faces[triangle] == vertices[:, None]).astype(np.float64)


def dynamic_contour(
    vertices: FloatArray, faces: IntArray, skin: IntArray, mirror: IntArray, oval: FloatArray
) -> tuple[IntArray, FloatArray]:
    """The 17 contour points of a head turned about y by 0 ... 39, then -1 ... -39 degrees: (79, 17) and (79, 17, 3).

    For each turn the outline of the face (the skin inside MediaPipe's oval, which ends in front of the ears and at the
    edge of the jaw) is traced below the height of the eyes; point 8 is the chin, and eight points on either side divide
    the outline evenly, as annotators place them. On the side turned away this is the silhouette, on the other the edge
    of the oval.
    """
    around = np.stack([np.arctan2(oval[:, 0], oval[:, 2] + 0.03), oval[:, 1]], 1)
    triangle, barycentric = dense_points(skin, pieces=6)
    points = np.einsum("lk,lkc->lc", barycentric, vertices[faces[triangle]])
    inside = inside_polygon(np.stack([np.arctan2(points[:, 0], points[:, 2] + 0.03), points[:, 1]], 1), around)
    triangle, barycentric, points = triangle[inside], barycentric[inside], points[inside]
    top, chin = oval[np.argmax(np.abs(oval[:, 0])), 1], oval[OVAL.index(152)]
    chin_triangle, chin_weights = nearest(chin[None], vertices, faces, skin)
    triangle, barycentric = np.append(triangle, chin_triangle), np.append(barycentric, chin_weights, axis=0)
    points = np.append(points, chin[None], axis=0)
    middle = np.array([0.0, (top + chin[1]) / 2 + 0.01, 0.04])

    rows = []
    for degrees in range(40):
        turn = np.radians(degrees)
        right, up = np.array([np.cos(turn), 0, np.sin(turn)]), np.array([0, 1.0, 0])
        flat = np.stack([(points - middle) @ right, (points - middle) @ up], 1)
        angle, radius = np.degrees(np.arctan2(flat[:, 0], -flat[:, 1])), np.hypot(flat[:, 0], flat[:, 1])
        chin_angle = np.degrees(np.arctan2((chin - middle) @ right, -(chin - middle) @ up))
        bins = np.round(angle / 2).astype(int)
        outline = [int(i[np.argmax(radius[i])]) for b in np.unique(bins) if len(i := np.flatnonzero(bins == b)) > 0]
        line = np.array([i for i in outline if flat[i, 1] < top - middle[1]])
        line = line[np.argsort(angle[line])]
        here = int(np.argmin(np.abs(angle[line] - chin_angle)))
        line[here] = len(points) - 1
        chosen = []
        for side in (line[: here + 1], line[here:]):
            at = fractions_of(flat[side])
            chosen.append([side[int(np.argmin(np.abs(at - k / 8)))] for k in range(9)])
        rows.append([*chosen[0], *chosen[1][1:]])
    index = np.array(rows).ravel()
    triangle, barycentric = settle(triangle[index], barycentric[index], faces, skin)
    triangle, barycentric = triangle.reshape(40, 17), barycentric.reshape(40, 17, 3)
    reversed_triangle, reversed_barycentric = triangle[:, ::-1].ravel(), barycentric[:, ::-1].reshape(-1, 3)
    both = np.concatenate([reversed_triangle, reversed_triangle])
    slots = np.arange(len(reversed_triangle))
    mirrored = mirror_points(both, np.concatenate([reversed_barycentric] * 2), slots, slots + len(slots), faces, mirror)
    flipped = mirrored[0][len(slots) :].reshape(40, 17), mirrored[1][len(slots) :].reshape(40, 17, 3)
    triangle[0, 9:], barycentric[0, 9:] = flipped[0][0, 9:], flipped[1][0, 9:]
    return np.concatenate([triangle, flipped[0][1:]]), np.concatenate([barycentric, flipped[1][1:]])


def dense_points(triangles: IntArray, pieces: int) -> tuple[IntArray, FloatArray]:
    """A grid of points on each triangle: its id and barycentric weights, (pieces + 1)(pieces + 2) / 2 points each."""
    i, j = np.meshgrid(np.arange(pieces + 1), np.arange(pieces + 1), indexing="ij")
    keep = i + j <= pieces
    grid = np.stack([i[keep], j[keep], pieces - i[keep] - j[keep]], 1) / pieces
    return np.repeat(triangles, len(grid)), np.tile(grid, (len(triangles), 1))


def inside_polygon(points: FloatArray, polygon: FloatArray) -> NDArray[np.bool_]:
    """Which of (P, 2) points lie inside a closed polygon (M, 2), by counting crossings of a ray to the right."""
    inside = np.zeros(len(points), dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = (y0 > points[:, 1]) != (y1 > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            x = x0 + (points[:, 1] - y0) / (y1 - y0) * (x1 - x0)
        inside ^= crosses & (points[:, 0] < x)
    return inside
