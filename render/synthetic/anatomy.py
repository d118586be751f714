"""Where things are on a head model's template: eyes, lid rims, ears, scalp, lips; measured once per model.

Positions inside the appearance code are *local*: metres from the middle between the eyeball centres, scaled so that
the eyes are `EYE_DISTANCE`
apart, axes as the world (x to the person's left, y up, z out of the face). Numbers such as a hairline's height are
given in that frame, so that
they fit other head models of FLAME's layout as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.spatial import cKDTree

from ...geom.head import HeadModel

EYE_DISTANCE = 0.062
"""Metres between the eyeball centres in the local frame."""

# The hairline, as height over the eyes (local metres) at an angle around the vertical axis (degrees, 0 front, 180
# back): forehead, temple, the
# front of the ear (sideburn), over the ear, behind it, nape.
HAIRLINE_ANGLE = (0, 22, 40, 50, 58, 63, 68, 74, 80, 104, 112, 125, 150, 180)
HAIRLINE_HEIGHT = (
    0.069,
    0.070,
    0.064,
    0.050,
    0.022,
    -0.004,
    -0.020,
    -0.020,
    0.014,
    0.014,
    -0.018,
    -0.055,
    -0.072,
    -0.074,
)
AXIS_Z = -0.075
"""Local z of the vertical axis of the skull."""
CROWN = (0.006, 0.108, -0.115)
"""Local position of the whorl from which hair grows outwards."""


@dataclass(frozen=True)
class Anatomy:
    """Measures of one template; arrays are float64/int64 numpy unless said otherwise."""

    vertices: np.ndarray
    """(N, 3) template, metres."""
    local: np.ndarray
    """(N, 3) template in the local frame."""
    faces: np.ndarray
    """(F, 3)."""
    normals: np.ndarray
    """(N, 3) unit, outward."""
    part: np.ndarray
    """(F,) index into `part_names`."""
    part_names: tuple[str, ...]
    origin: np.ndarray
    """(3,) middle between the eyeballs on the template."""
    scale: float
    """Template metres per local metre."""
    skin_faces: np.ndarray
    """Triangles of head and neck skin."""
    skin_vertices: np.ndarray
    tree: cKDTree
    """Over `vertices[skin_vertices]`."""
    rims: dict[str, np.ndarray]
    """Front edges of the lids in order from the inner to the outer corner: "left_upper", "left_lower", "right_upper",
    "right_lower"."""

    def faces_of(self, *names: str) -> np.ndarray:
        """Triangles of the named parts; names that the model lacks count as empty."""
        wanted = [self.part_names.index(name) for name in names if name in self.part_names]
        return np.flatnonzero(np.isin(self.part, wanted))

    def to_local(self, points: np.ndarray) -> np.ndarray:
        """Template metres (..., 3) to the local frame."""
        return (points - self.origin) / self.scale

    def to_template(self, local: np.ndarray) -> np.ndarray:
        return local * self.scale + self.origin

    def scatter(
        self, rng: np.random.Generator, count: int, faces: np.ndarray, density: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Random points on the template.

        Args:
            count: how many points (P); fewer where the density vanishes everywhere.
            faces: (K,) triangles to use.
            density: (N,) relative density at the vertices, at least 0.
        Returns:
            triangles (P,) and points (P, 3) in template metres.
        """
        corners = self.vertices[self.faces[faces]]
        area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
        weight = density[self.faces[faces]]  # (K, 3)
        mass = area * weight.max(1)
        if mass.sum() <= 0:
            return np.empty(0, np.int64), np.empty((0, 3))
        pick = rng.choice(len(faces), size=4 * count, p=mass / mass.sum())
        u, v = rng.random((2, 4 * count))
        fold = u + v > 1
        u[fold], v[fold] = 1 - u[fold], 1 - v[fold]
        bary = np.stack([1 - u - v, u, v], 1)
        # Rejection makes the density linear inside a triangle.
        keep = rng.random(4 * count) * weight[pick].max(1) < (bary * weight[pick]).sum(1)
        pick, bary = pick[keep][:count], bary[keep][:count]
        return faces[pick], np.einsum("pk,pkc->pc", bary, corners[pick])

    def clearance(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signed distance (...,) in template metres of points (..., 3) from the skin (positive outside) and the
        outward normal (..., 3) there."""
        distance, nearest = self.tree.query(points, k=4)
        weight = 1 / np.maximum(distance, 1e-5)
        weight /= weight.sum(-1, keepdims=True)
        vertex = self.skin_vertices[nearest]
        normal = np.einsum("...k,...kc->...c", weight, self.normals[vertex])
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        offset = points[..., None, :] - self.vertices[vertex]
        signed = np.einsum("...k,...kc,...kc->...", weight, offset, self.normals[vertex])
        return signed, normal

    def neighbours(self, points: np.ndarray, count: int = 6) -> np.ndarray:
        """(..., count) vertices of the skin nearest to points (..., 3)."""
        return self.skin_vertices[self.tree.query(points, k=count)[1]]


def hairline_margin(local: np.ndarray, recede: float = 0.0) -> np.ndarray:
    """How far (local metres) points (..., 3) lie above the hairline; negative on the face, the ears and the neck.

    Args:
        recede: metres by which the hairline over forehead and temples is pulled back.
    """
    angle = np.degrees(np.arctan2(np.abs(local[..., 0]), local[..., 2] - AXIS_Z))
    front = np.interp(angle, (0, 15, 40, 58, 66), (0.5, 0.7, 1.0, 0.6, 0.0)) * recede
    margin = local[..., 1] - np.interp(angle, HAIRLINE_ANGLE, HAIRLINE_HEIGHT) - front
    ear = ((local[..., 1] + 0.022) / 0.035) ** 2 + ((local[..., 2] + 0.080) / 0.024) ** 2
    return np.minimum(margin, 0.03 * (np.sqrt(ear) - 1))


@lru_cache(maxsize=4)
def measure(head: HeadModel) -> Anatomy:
    """The measures of a head model; computed once per model."""
    vertices = head.v_template.detach().cpu().numpy().astype(np.float64)
    faces = head.faces.cpu().numpy()
    if head.face_part is None or head.uv is None:
        raise ValueError(
            "synthetic heads need a head model with parts and texture coordinates; "
            f"'{head.name}' lacks them, the open head has them."
        )
    part = head.face_part.cpu().numpy().astype(np.int64)
    names = tuple(head.part_names)
    joints = head.joint_template.detach().cpu().numpy()
    eyes = joints[3:5]
    origin = eyes.mean(0)
    scale = float(np.linalg.norm(eyes[0] - eyes[1]) / EYE_DISTANCE)
    normals = vertex_normals(vertices, faces)
    skin_faces = np.flatnonzero(np.isin(part, [names.index(n) for n in ("head", "neck") if n in names]))
    skin_vertices = np.unique(faces[skin_faces])

    lids = np.intersect1d(faces[part == names.index("head")], faces[part == names.index("socket")])
    rims = {}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        ring = _loop(lids[vertices[lids, 0] * sign > 0], faces[part == names.index("socket")])
        inner = int(np.argmin(np.abs(vertices[ring, 0])))
        outer = int(np.argmax(np.abs(vertices[ring, 0])))
        ring = np.roll(ring, -inner)
        cut = (outer - inner) % len(ring)
        one, two = ring[: cut + 1], np.concatenate([ring[:1], ring[: cut - 1 : -1]])
        upper, lower = (one, two) if vertices[one, 1].mean() > vertices[two, 1].mean() else (two, one)
        rims[f"{side}_upper"] = _lid_edge(upper, 1.0, vertices, faces[skin_faces])
        rims[f"{side}_lower"] = _lid_edge(lower, -1.0, vertices, faces[skin_faces])
    return Anatomy(
        vertices=vertices,
        local=(vertices - origin) / scale,
        faces=faces,
        normals=normals,
        part=part,
        part_names=names,
        origin=origin,
        scale=scale,
        skin_faces=skin_faces,
        skin_vertices=skin_vertices,
        tree=cKDTree(vertices[skin_vertices]),
        rims=rims,
    )


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(N, 3) unit normals, the area-weighted mean of the triangles around each vertex."""
    corner = vertices[faces]
    face = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, faces[:, k], face)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _lid_edge(rim: np.ndarray, sign: float, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """For each vertex where lid and socket meet, the vertex where the lid's margin turns into its front, up to four
    rings further out.

    Args:
        rim: (R,) vertices in order.
        sign: 1 for an upper lid, -1 for a lower one.
        faces: (F, 3) of the skin.
    """
    near = rim
    for _ in range(4):
        near = np.union1d(near, faces[np.isin(faces, near).any(1)])
    beside = np.abs(vertices[near, 0][None] - vertices[rim, 0][:, None])
    apart = np.abs(vertices[near, 1][None] - vertices[rim, 1][:, None])
    # The edge is furthest forward and furthest into the opening.
    score = vertices[near, 2] - sign * vertices[near, 1] - 2.5 * beside - 4.0 * np.maximum(apart - 0.0018, 0)
    edge = near[score.argmax(1)]
    return edge[np.sort(np.unique(edge, return_index=True)[1])]


def _loop(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The boundary vertices `vertices` of `faces` in order around their loop."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, count = np.unique(edges, axis=0, return_counts=True)
    rim = unique[(count == 1) & np.isin(unique, vertices).all(1)]
    neighbours: dict[int, list[int]] = {}
    for a, b in rim.tolist():
        neighbours.setdefault(a, []).append(b)
        neighbours.setdefault(b, []).append(a)
    start = int(rim[0, 0])
    order, previous, current = [start], -1, start
    while True:
        following = [n for n in neighbours[current] if n != previous]
        if not following or following[0] == start:
            break
        previous, current = current, following[0]
        order.append(current)
    return np.array(order)
