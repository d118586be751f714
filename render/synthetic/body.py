"""The mesh that is drawn: the head with its texture seams split, and a torso that continues the head model's bust out
of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...geom.head import HeadModel
from ..interpolate import interpolate
from ..rasterize import rasterize
from .anatomy import Anatomy, measure
from .skin import Chart, spread

# Half width, half depth, depth of the middle and height of the torso's sections (local metres), from the bust's rim
# downwards.
TORSO = np.array(
    [
        [0.178, 0.088, -0.098, -0.245],
        [0.196, 0.104, -0.096, -0.285],
        [0.205, 0.116, -0.094, -0.340],
        [0.205, 0.122, -0.092, -0.420],
        [0.200, 0.122, -0.090, -0.560],
        [0.196, 0.122, -0.090, -0.760],
    ]
)


@dataclass(frozen=True)
class Body:
    """Vertices of the drawn mesh: M of the head (some twice, at seams of the texture), then T of the torso."""

    origin: Tensor
    """(M,) int64 head vertex of each."""
    uv: Tensor
    """(M + T, 2) position in the skin atlas, NDC; meaningless outside the part "head"."""
    faces: Tensor
    """(F + G, 3): the head's F triangles in the model's order, then G of the torso."""
    local: Tensor
    """(M + T, 3) template position, local metres; of the torso, too."""
    head_faces: int
    """F."""
    rim: Tensor
    """(R,) head vertices on the bust's rim, in order."""
    torso_rest: Tensor
    """(T, 3) torso on the template, metres."""
    torso_follow: Tensor
    """(T, R) how much a torso vertex follows the identity's rim."""


@lru_cache(maxsize=4)
def body(head: HeadModel) -> Body:
    """The drawn mesh of a head model; made once per model."""
    anatomy = measure(head)
    assert head.uv is not None
    assert head.uv_faces is not None
    faces, uv_faces = head.faces.cpu().numpy(), head.uv_faces.cpu().numpy()
    corner = np.stack([faces.ravel(), uv_faces.ravel()], 1)
    pairs, index = np.unique(corner, axis=0, return_inverse=True)
    split = index.reshape(-1, 3)
    uv = head.uv.cpu().numpy()[pairs[:, 1]].astype(np.float64)
    # The skin of the head fills the atlas; other parts do not use it.
    used = np.unique(split[anatomy.faces_of("head")])
    bridge = int(used[np.argmin(np.linalg.norm(anatomy.local[pairs[used, 0]] - (0.0, -0.03, 0.03), axis=1))])
    for axis in (0, 1):
        uv[:, axis] = _magnify(uv[:, axis], uv[bridge, axis], uv[used, axis].min(), uv[used, axis].max())
    uv = 2 * (0.004 + 0.992 * uv) - 1

    rim = _bust_rim(anatomy)
    rings, follow = _torso(anatomy, rim)
    count, around = len(TORSO) + 1, len(rim)
    torso_faces = []
    for ring in range(count - 1):
        for k in range(around):
            a, b = ring * around + k, ring * around + (k + 1) % around
            torso_faces += [[a, a + around, b + around], [a, b + around, b]]
    torso = np.array(torso_faces) + len(pairs)
    local = np.concatenate([anatomy.local[pairs[:, 0]], anatomy.to_local(rings)])
    return Body(
        origin=torch.from_numpy(pairs[:, 0]),
        uv=torch.from_numpy(np.concatenate([uv, np.zeros((len(rings), 2))])).float(),
        faces=torch.from_numpy(np.concatenate([split, torso])),
        local=torch.from_numpy(local).float(),
        head_faces=len(faces),
        rim=torch.from_numpy(rim),
        torso_rest=torch.from_numpy(rings).float(),
        torso_follow=torch.from_numpy(follow).float(),
    )


def _magnify(values: np.ndarray, centre: float, low: float, high: float) -> np.ndarray:
    """[low, high] to [0, 1], with four times the room around `centre` that the far end gets: texels for the face."""
    strength = 3 / max(high - centre, centre - low)

    def bent(v: np.ndarray | float) -> np.ndarray:
        return np.sign(v - centre) * np.log1p(strength * np.abs(v - centre))

    return (bent(values) - bent(low)) / (bent(high) - bent(low))


def _bust_rim(anatomy: Anatomy) -> np.ndarray:
    """The lower rim of the bust, counter-clockwise seen from above, starting anywhere."""
    neck = anatomy.faces[anatomy.faces_of("neck")]
    others = np.unique(anatomy.faces[anatomy.faces_of("head")])
    directed = np.concatenate([neck[:, [0, 1]], neck[:, [1, 2]], neck[:, [2, 0]]])
    edges = {(int(a), int(b)) for a, b in directed}
    following = {
        a: b for a, b in edges if (b, a) not in edges and not (a in set(others.tolist()) and b in set(others.tolist()))
    }
    start = next(iter(sorted(following)))
    rim = [start]
    while following[rim[-1]] != start:
        rim.append(following[rim[-1]])
    return np.array(rim)


def _torso(anatomy: Anatomy, rim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rings from the rim down: positions ((1 + len(TORSO)) R, 3) in template metres, and how they follow the rim
    (same, R)."""
    start = anatomy.local[rim]
    # Angles around the vertical axis, evened out so that corners of the bust become round shoulders.
    angle = np.unwrap(np.arctan2((start[:, 0]) / 0.17, (start[:, 2] + 0.098) / 0.085))
    turn = np.sign(angle[-1] - angle[0]) or 1.0
    even = angle[0] + turn * 2 * np.pi * np.arange(len(rim)) / len(rim)
    even += np.mean(angle - even)
    rings, weights = [start], [1.0]
    for k, (half_width, half_depth, middle, height) in enumerate(TORSO):
        mix = min(1.0, 0.35 + 0.25 * k)
        phi = (1 - mix) * angle + mix * even
        # A superellipse: flat chest and back, round sides.
        c, s = np.cos(phi), np.sin(phi)
        ring = np.stack(
            [
                half_width * np.sign(s) * np.abs(s) ** 0.8,
                np.full(len(rim), height),
                middle + half_depth * np.sign(c) * np.abs(c) ** 0.8,
            ],
            1,
        )
        rings.append(ring)
        weights.append(0.6**k if k < 4 else 0.0)
    # Slide the upper sections between the rim and the section below, so that the shoulder line has no step.
    rings[1] = 0.5 * rings[1] + 0.5 * (0.45 * rings[0] + 0.55 * rings[2])
    follow = np.concatenate([weight * np.eye(len(rim)) for weight in weights])
    return anatomy.to_template(np.concatenate(rings)), follow


@lru_cache(maxsize=4)
def chart(head: HeadModel, height: int) -> Chart:
    """The skin atlas at a height in texels; its width is half the height."""
    mesh, anatomy = body(head), measure(head)
    size = (height, height // 2)
    faces = mesh.faces[torch.from_numpy(anatomy.faces_of("head"))]
    flat = torch.cat([mesh.uv, torch.ones(len(mesh.uv), 1)], 1)[None]
    fragments = rasterize(flat, faces, size, cull=False)
    local = interpolate(mesh.local[None], fragments, flat, faces)[0]
    covered = (fragments.face_id[0] >= 0).numpy()
    return Chart(size, covered, local.permute(1, 2, 0).numpy()[covered].astype(np.float64), spread(covered))
