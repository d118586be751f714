"""Where the rims of eyes and mouth go, and how eyeballs and teeth move: the rigid parts behind the openings.

Rims start on the photo's landmarks and move by what the mesh does at their embedded points. The eyelids' coefficient is
solved for, so that lids open and close in the asked ratio on this very face, however its fit is off.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...geom.camera import Camera
from ...geom.head import HeadModel, HeadParams
from ...geom.landmarks import Embedding
from ...geom.rotation import axis_angle_to_matrix
from . import eyes, mouth
from .opening import Opening, from_rims

Points = NDArray[np.float32]
Frames = NDArray[np.float32]

PAIRS = tuple(tuple(zip(eyes.UPPER[side][2:-2], eyes.LOWER[side][2:-2], strict=True)) for side in (0, 1))
"""Landmarks above each other on the lids, right and left eye."""
OVERLAP = 0.10
"""Eye widths that closed lids are pushed over each other; without it a slit stays."""


class Rims:
    """Rims and rigid parts of one source. Sides: 0 the person's right eye, 1 the left one."""

    def __init__(
        self, head: HeadModel, params: HeadParams, camera: Camera, embedding: Embedding, landmarks: Points
    ) -> None:
        """
        Args:
            head: the corrected head (surface.py).
            landmarks: (478, 2) px of the photo.
        """
        wanted = sorted({i for group in (*eyes.UPPER, *eyes.LOWER, mouth.UPPER, mouth.LOWER) for i in group})
        chosen = torch.isin(embedding.indices, torch.tensor(wanted))
        small = Embedding(
            embedding.triangle[chosen], embedding.barycentric[chosen], head.faces, embedding.indices[chosen]
        )
        self._whole = head
        self._head = head.subset(small.corners.unique())
        self._embedding = Embedding(
            torch.arange(len(small)), small.barycentric, _renumbered(small.corners), small.indices
        )
        self._row = {int(index): row for row, index in enumerate(small.indices)}
        self._camera, self._params = camera, params
        self.landmarks = landmarks
        self._rest = self._project(params)[0]
        self._lips = (self._coherent(mouth.UPPER), self._coherent(mouth.LOWER))
        self._neck = max(1, head.n_joints - 4)  # root, neck, jaw, left eye, right eye
        joints = (head.n_joints - 1, head.n_joints - 2)
        self._radius = [self._ball_radius(joint) for joint in joints]
        self._centres = [head.rest_joints(params)[0, joint].numpy() for joint in joints]
        self.frames = joint_frames(head, params)

    def points(self, params: HeadParams) -> Points:
        """(478, 2) px; only the rims' rows are moved, the others are those of the photo."""
        moved = self.landmarks.copy()
        rows = self._embedding.indices.numpy()
        moved[rows] += (self._project(params)[0] - self._rest).numpy()
        return moved

    def eye(self, points: Points, side: int) -> Opening:
        return from_rims(points[list(eyes.UPPER[side])], points[list(eyes.LOWER[side])])

    def mouth(self, points: Points) -> Opening:
        return from_rims(points[self._lips[0]], points[self._lips[1]])

    def lids(self, motion: HeadParams) -> Tensor:
        """(1, 2) eyelid coefficients (left, right) that change the gap between the lids by the ratio asked for.

        gap = gap(target face, source's lids) * (1 - eyelids) / (1 - source's eyelids)
        """
        rest = self._params.eyelids
        trial = torch.cat([rest, rest + 0.3])
        both = HeadParams.cat([motion, motion]).replace(eyelids=trial)
        points = self._project(both)
        result = motion.eyelids.clone()
        ratio = ((1 - motion.eyelids) / (1 - rest).clamp_min(0.1)).clamp(0, 1.6)[0]
        for side, column in ((0, 1), (1, 0)):
            gaps = [self._gap(points[k], side) for k in (0, 1)]
            slope = (gaps[1] - gaps[0]) / 0.3
            width = float(
                (points[0, self._row[eyes.UPPER[side][-1]]] - points[0, self._row[eyes.UPPER[side][0]]]).norm()
            )
            if slope > -0.02 * width:  # this head has no lids, or sees them from the edge
                continue
            r = float(ratio[column])
            closing = np.clip((0.3 - r) / 0.3, 0, 1)
            wanted = gaps[0] * r - OVERLAP * width * closing * closing
            result[0, column] = float(rest[0, column]) + (wanted - gaps[0]) / slope
        return result

    def eyeball(self, frames: Frames, side: int) -> Points:
        """(4, 3) world: centre of an eyeball that does not turn, and the points one metre along the skull's axes."""
        return carried(frames, self._centres[side], self._neck)

    def gaze_shifts(self, motion: HeadParams) -> Points:
        """(2, 2) source px that the irises move when the source takes the eyes of `motion`; right, left."""
        turns = axis_angle_to_matrix(torch.cat([self._params.eyes, motion.eyes]).view(2, 2, 3)).numpy()
        shifts = np.empty((2, 2), np.float32)
        for side in (0, 1):
            axes = self.eyeball(self.frames, side)
            forward = turns[:, 1 - side, :, 2] * self._radius[side]  # parameters have the left eye first
            before, after = pixels(axes[0] + forward @ (axes[1:] - axes[0]), self._camera)
            shifts[side] = after - before
        return shifts

    def _coherent(self, chain: tuple[int, ...]) -> list[int]:
        """The landmarks of a lip without those that do not go with their neighbours when the jaw opens.

        Shut lips touch: an embedding easily puts a landmark of one lip on the other.
        """
        opened = self._params.replace(jaw=self._params.jaw + torch.tensor([[0.2, 0.0, 0.0]]))
        rows = [self._row[i] for i in chain]
        step = (self._project(opened)[0] - self._rest)[rows].norm(dim=1).numpy()
        neighbours = 0.5 * (step[:-2] + step[2:])
        # Two in three of a wrong landmark's neighbours look odd beside it; only the oddest of a run is wrong.
        odd = np.abs(step[1:-1] - neighbours)
        limit = max(0.25 * float(np.ptp(step)), 1e-3)
        wrong = [k for k in range(len(odd)) if odd[k] > limit and odd[k] == odd[max(k - 1, 0) : k + 2].max()]
        return [i for k, i in enumerate(chain) if k - 1 not in wrong]

    def _gap(self, points: Tensor, side: int) -> float:
        """px between the lids, mean over the middle pairs of landmarks; points are projected rim points."""
        first, last = points[self._row[eyes.UPPER[side][0]]], points[self._row[eyes.UPPER[side][-1]]]
        across = torch.stack([first[1] - last[1], last[0] - first[0]]) / (last - first).norm().clamp_min(1e-6)
        # The photo's own gap plus the mesh's change, since the rims start on the photo's landmarks.
        total = 0.0
        for upper, lower in PAIRS[side]:
            change = (points[self._row[lower]] - points[self._row[upper]]) - (
                self._rest[self._row[lower]] - self._rest[self._row[upper]]
            )
            photo = torch.from_numpy(self.landmarks[lower] - self.landmarks[upper])
            total += float((change + photo) @ across)
        return total / len(PAIRS[side])

    def _project(self, params: HeadParams) -> Tensor:
        """(B, L, 2) px of the embedded rim points."""
        return self._camera.project(self._embedding.points(self._head(params)))[..., :2]

    def _ball_radius(self, joint: int) -> float:
        head = self._whole
        ball = head.weights[:, joint] > 0.9
        if not bool(ball.any()):
            return 0.0115
        centre = head.rest_joints(self._params)[0, joint]
        return float((head.rest_vertices(self._params)[0, ball] - centre).norm(dim=1).median())


def joint_frames(head: HeadModel, params: HeadParams) -> Frames:
    """(J, 3, 4) float32: rest pose -> world of what follows each joint alone; B = 1."""
    frames = head.transforms(head.rotations(params), head.rest_joints(params))[0].numpy().copy()
    frames[:, :, 3] += params.translation[0].numpy()
    return frames


def carried(frames: Frames, centre: Points, joint: int) -> Points:
    """(4, 3) world: a rest-pose point that follows one joint, and the points one metre along x, y, z from it."""
    axes = centre + np.eye(4, 3, -1, dtype=np.float32)
    return axes @ frames[joint, :, :3].T + frames[joint, :, 3]


def pixels(points: Points, camera: Camera) -> Points:
    """(K, 2) px of (K, 3) world points; `Camera.project` for a handful of points, in numpy."""
    x, y, z = points.astype(np.float64).T
    focal, centre = float(camera.focal[0]), camera.principal[0].double().numpy()
    return np.stack([centre[0] - focal * x / z, centre[1] + focal * y / z], 1)


def rigid_map(before: Points, after: Points, camera: Camera, forward: float = 0.0) -> Points:
    """(2, 3) affine map from frame px to source px of a rigid part.

    Args:
        before, after: `carried` in the source and in the frame.
        forward: metres in front of the centre where the part's visible face is.
    """
    spread = np.array([[0, 0, forward], [0.01, 0, forward], [0, 0.01, forward]])
    source, frame = (pixels(axes[0] + spread @ (axes[1:] - axes[0]), camera) for axes in (before, after))
    edges = frame[1:] - frame[0]
    if abs(np.linalg.det(edges)) < 1e-9:  # seen exactly from the edge
        return np.full((2, 3), np.nan, np.float32)
    linear = np.linalg.solve(edges, source[1:] - source[0]).T
    return np.concatenate([linear, (source[0] - linear @ frame[0])[:, None]], 1).astype(np.float32)


def _renumbered(corners: Tensor) -> Tensor:
    """(L, 3) vertex ids as positions among their sorted distinct values, as `HeadModel.subset` orders them."""
    return torch.searchsorted(corners.unique(), corners)
