"""Photometric refinement: skin looks the same in every frame, so its picture says how the head moved.

    I_f(p) = log brightness of frame f where point p of the fitted face is seen
    I_f(p) ~ a(p) + B(n_fp) l_f           the point's own brightness, and the frame's light in spherical harmonics

Landmarks are found in every frame anew, and what the network gets wrong there shakes the head. The own brightness of
2,000 points is learnt over many frames, so that all of them are aligned with the same texture. Minimised over the poses
(rotation R, translation t), by Gauss-Newton:

    share sum_fp  w_fp (I_f(p) - a(p) - B(n_fp) l_f)^2 / s^2     robust; w: seen, facing the camera, at rest
    + sum_f |(pose_f - landmark pose_f) / s_landmark|^2
    + sum_f |(c_f - c_{f-1}) / s_step|^2                         c_f = pose_f - landmark pose_f

with s from the residuals; a and l follow in closed form between the rounds, the light of a frame close to that
of the clip. Expression, jaw, lids and identity stay as landmarks have them: solved again under the new pose, they only
take up what the landmarks had wrong. A frame keeps its new pose only where the photometric error fell and the landmarks
still fit.

Spherical harmonics of the second order as light on skin: Ramamoorthi and Hanrahan 2001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solveh_banded

from ..geom.landmarks import Embedding
from ..render.lanes import kernel
from ..render.rasterize import rasterize
from ..render.surface import vertex_normals
from ..third_party.mediapipe import FACE_CONTOUR, Picture
from .solve import Array, Identity, Solver, State, View, apart, turned_by

Floats = NDArray[np.float32]

SIDE = 192
"""Pixels of a glimpse."""
_REACH = 1.25
"""Side of a glimpse in face sizes (longer side of the landmarks' box)."""
_BLUR = 0.7
"""Pixels."""
_DARK = 0.05
"""Added to linear brightness before the logarithm, which noise would fill in the shadows."""
_KEPT = 64.0
"""Frames that the texture remembers at most, so that it follows what changes."""
_ROUNDS = 8
_FEWEST = 150
"""Points that must be seen of a face to say how it turned."""


@dataclass(frozen=True)
class PhotometricWeights:
    share: float = 0.1
    """How much a point counts: neighbours err together."""
    rotation: float = 0.015
    """Standard deviation of the landmarks' pose, radians and metres; wide, since its errors are not independent, but no
    wider: shadows and hair do not move with the skin."""
    across: float = 0.006
    along: float = 0.02
    step_rotation: float = 0.002
    """Usual change of the correction from frame to frame; the motion itself is not held back. With more, real clips
    shake with the noise of their pictures."""
    step_across: float = 0.0003
    step_along: float = 0.001
    moved: float = 0.012
    """Metres; a point that expressions move that far counts half."""
    facing: float = 0.15
    """Cosine towards the camera at which points begin to count."""
    own_light: float = 0.03
    """How close the light of a frame is to that of the clip; ridge per seen point."""
    worse: float = 0.012
    """Most that the mean distance of the landmarks may grow, in eye distances."""


@dataclass(frozen=True)
class Glimpse:
    """What is kept of a frame."""

    grey: NDArray[np.uint8]
    """(SIDE, SIDE)"""
    crop: tuple[float, float, float]
    """Scale, tx, ty: pixels of the frame -> of the glimpse."""


def glimpse(image: Picture, landmarks: NDArray[np.float32]) -> Glimpse:
    """The face of a frame in grey.

    Args:
        image: (H, W, 3) uint8 RGB.
        landmarks: (478, 3) pixels.
    """
    low, high = landmarks[:468, :2].min(0).astype(np.float64), landmarks[:468, :2].max(0).astype(np.float64)
    scale = SIDE / (_REACH * max(float((high - low).max()), 1.0))
    tx, ty = SIDE / 2 - scale * (low + high) / 2
    # only what the crop needs is made grey and smoothed
    margin = int(2 / scale) + 2
    x0, y0 = (max(int(-t / scale) - margin, 0) for t in (tx, ty))
    x1, y1 = (max(int((SIDE - t) / scale) + margin, 1) for t in (tx, ty))
    part = image[min(y0, image.shape[0] - 1) : y1, min(x0, image.shape[1] - 1) : x1]
    x0, y0 = min(x0, image.shape[1] - 1), min(y0, image.shape[0] - 1)
    grey = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)
    if scale < 1:
        grey = cv2.GaussianBlur(grey, (0, 0), 0.4 / scale)
    # OpenCV counts from pixel centres
    shift = [scale * x0 + tx + 0.5 * scale - 0.5, scale * y0 + ty + 0.5 * scale - 0.5]
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    made = cv2.warpAffine(grey, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Glimpse(np.asarray(made, np.uint8), (scale, float(tx), float(ty)))


@dataclass
class _Texture:
    """Own brightness of the points, and how many frames say so."""

    brightness: Floats
    trust: Floats


class PhotometricRefiner:
    """Refines the poses of a video in stretches of consecutive frames; remembers the texture from one to the next.

    Args:
        solver: that fits the video; gives the head.
    """

    def __init__(self, solver: Solver, weights: PhotometricWeights = PhotometricWeights()) -> None:
        self.solver, self.weights = solver, weights
        points, shift = _skin(solver)
        self._part = solver.head.subset(points)
        self._rest = (1 / (1 + np.square(shift / weights.moved))).astype(np.float32)
        self._texture: _Texture | None = None
        self._last: Array | None = None  # correction of the frame before

    def refine(
        self,
        glimpses: Sequence[Glimpse | None],
        landmarks: NDArray[np.float32],
        view: View,
        state: State,
        person: Identity,
        *,
        smooth: float = 1.0,
        keep: int | None = None,
    ) -> State:
        """The state with better poses.

        Args:
            glimpses: of T frames; None where no face is seen.
            landmarks: (T, 478, 3) pixels.
            view, state, person: the landmarks' fit.
            smooth: strength of the temporal term; 1 at 25 frames per second.
            keep: frames from which the texture is remembered, the first ones; default all.
        """
        sight = _Sight(self, glimpses, view, state, person)
        if sight.count.max(initial=0) < _FEWEST:
            return state
        rotation, translation = state.rotation, state.translation
        first: Array | None = None
        for number in range(_ROUNDS + 1):
            error = sight.look(rotation, translation, self._texture)
            if number == _ROUNDS:
                break
            first = error if first is None else first
            step = self._step(sight, state, rotation, translation, smooth)
            rotation, translation = turned_by(step[:, :3], rotation), translation + step[:, 3:]
        assert first is not None
        refined = replace(state, rotation=rotation, translation=translation)
        good = (sight.count >= _FEWEST) & (error < first) & self._in_bounds(landmarks, view, state, refined, person)
        seen = sight.count > 0
        if not good[seen].mean() > 0.5:
            return state
        keep = len(state) if keep is None else keep
        self._remember(sight, good, keep)
        good |= ~seen  # frames without a face follow their neighbours
        away = np.concatenate([apart(rotation, state.rotation), translation - state.translation], 1)
        self._last = away[keep - 1] * good[keep - 1]
        pick = good[:, None]
        return replace(
            state,
            rotation=np.where(pick[..., None], rotation, state.rotation),
            translation=np.where(pick, translation, state.translation),
        )

    def _step(self, sight: _Sight, state: State, rotation: Array, translation: Array, smooth: float) -> Array:
        """(T, 6) Gauss-Newton step of rotation and translation."""
        w, frames = self.weights, len(state)
        normal, gradient = sight.equations(w.share)
        away = np.concatenate([apart(rotation, state.rotation), translation - state.translation], 1)
        sigma = np.array([w.rotation] * 3 + [w.across] * 2 + [w.along])
        trust = np.where(sight.count > 0, 1.0, 1e-3)[:, None] / sigma**2
        normal[:, range(6), range(6)] += trust
        gradient += trust * away
        usual = np.array([w.step_rotation] * 3 + [w.step_across] * 2 + [w.step_along])
        tension = smooth / usual**2
        if self._last is not None:
            normal[0, range(6), range(6)] += tension
            gradient[0] += tension * (away[0] - self._last)
        change = tension * (away[1:] - away[:-1])
        normal[:-1, range(6), range(6)] += tension
        normal[1:, range(6), range(6)] += tension
        gradient[:-1] -= change
        gradient[1:] += change
        # banded: rows below the diagonal, of which the sixth joins a frame with the next
        band = np.zeros((7, frames, 6))
        for row in range(6):
            for column in range(row + 1):
                band[row - column, :, column] = normal[:, row, column]
        band[6, : frames - 1] = -tension
        flat = solveh_banded(band.reshape(7, -1), -gradient.reshape(-1), lower=True)
        step: Array = np.clip(flat.reshape(frames, 6), -0.1, 0.1)
        return step

    def _in_bounds(
        self, landmarks: NDArray[np.float32], view: View, old: State, new: State, person: Identity
    ) -> NDArray[np.bool_]:
        """(T,) whether the landmarks still fit."""
        inner = ~np.isin(self.solver.index, FACE_CONTOUR)
        seen = landmarks[:, self.solver.index, :2].astype(np.float64)[:, inner]
        unit = view.focal / -old.translation[:, 2] * 0.09  # px; the eyes' outer corners are 9 cm apart
        distances = [
            np.linalg.norm(self.solver.points(view, s, person)[:, inner] - seen, axis=-1).mean(1) / unit
            for s in (old, new)
        ]
        within: NDArray[np.bool_] = distances[1] <= distances[0] + self.weights.worse
        return within

    def _remember(self, sight: _Sight, good: NDArray[np.bool_], count: int) -> None:
        used = sight.weight[:count] * good[:count, None]
        trust = used.sum(0)
        brightness = (used * sight.flat[:count]).sum(0)
        if self._texture is not None:
            brightness += self._texture.trust * self._texture.brightness
            trust += self._texture.trust
        brightness /= np.maximum(trust, 1e-6)
        self._texture = _Texture(brightness, np.minimum(trust, _KEPT))


class _Sight:
    """The points of T frames as they are seen, under poses that change."""

    def __init__(
        self,
        refiner: PhotometricRefiner,
        glimpses: Sequence[Glimpse | None],
        view: View,
        state: State,
        person: Identity,
    ) -> None:
        self.view, self.refiner = view, refiner
        part = refiner._part
        params = refiner.solver.params(state, person)
        still = params.replace(rotation=0 * params.rotation, translation=0 * params.translation)
        vertices = part(still)
        self._normals = vertex_normals(vertices, part.faces).numpy()
        self._root = part.rest_joints(params)[:, 0].numpy()
        self._local = vertices.numpy() - self._root[:, None]
        blank = Glimpse(np.zeros((SIDE, SIDE), np.uint8), (1.0, 0.0, 0.0))
        kept = [g or blank for g in glimpses]
        self._crops = np.array([g.crop for g in kept], np.float32)
        self._pictures = np.stack([_log_brightness(g.grey) for g in kept])
        self._lit = np.zeros((len(state), 9))
        self.weight = np.zeros(self._local.shape[:2], np.float32)
        """(T, V) after the robust function."""
        self.flat = self.weight
        """(T, V) brightness without light."""
        self._project(state.rotation, state.translation)
        self._shown = self._visible() * np.array([g is not None for g in glimpses], np.float32)[:, None]
        self.count = (self._geometric() > 0.1).sum(1)
        """(T,) points that say something."""

    def _project(self, rotation: Array, translation: Array) -> None:
        turn = rotation.transpose(0, 2, 1).astype(np.float32)
        self._turned = self._local @ turn
        self._facing = self._normals @ turn
        world = self._turned + (self._root + translation).astype(np.float32)[:, None]
        self._depth = np.maximum(-world[..., 2], np.float32(1e-3))
        self._scale = np.float32(self.view.focal) / self._depth
        self._xy = self._scale[..., None] * world[..., :2]  # px from the principal point, y up
        self._towards = -(self._facing * world).sum(-1) / np.linalg.norm(world, axis=-1)
        pixel = self._xy * np.array([1, -1], np.float32) + np.array(self.view.principal, np.float32)
        self._places = pixel * self._crops[:, None, :1] + self._crops[:, None, 1:]

    def _visible(self) -> Floats:
        """(T, V) 1 where no other part of the face is in front, and the point is inside of the glimpse."""
        ndc = np.concatenate([self._places * (2 / SIDE) - 1, self._depth[..., None]], -1)
        half = SIDE // 2, SIDE // 2
        nearest = rasterize(torch.from_numpy(ndc), self.refiner._part.faces, half).depth.numpy()
        inside = ((self._places > 2) & (self._places < SIDE - 2)).all(-1)
        column, row = np.clip(self._places / 2, 0, SIDE // 2 - 1).astype(np.int64).transpose(2, 0, 1)
        hidden = self._depth > nearest[np.arange(len(ndc))[:, None], row, column] + 0.005
        return (inside & ~hidden).astype(np.float32)

    def _geometric(self) -> Floats:
        """(T, V) weight of points by where they are."""
        slope = (self._towards - self.refiner.weights.facing) / 0.3
        seen: Floats = self._shown * self.refiner._rest * np.clip(slope, 0, 1)
        return seen

    def look(self, rotation: Array, translation: Array, texture: _Texture | None) -> Array:
        """Read the pictures under new poses, and tell light from brightness; returns the error of each frame (T,)."""
        self._project(rotation, translation)
        base = self._geometric()
        first = not self.weight.any()
        weight = base if first else self.weight * (base > 0)
        value, slope = np.zeros(base.shape, np.float32), np.zeros((*base.shape, 2), np.float32)
        _sample(self._pictures, self._places, base, value, slope)
        self._slope = slope * self._crops[:, None, :1]
        shade = np.zeros_like(value)
        for _ in range(4 if first else 2):
            _shade(self._facing, self._lit, shade)
            self.flat = value - shade
            trust, total = weight.sum(0) + 0.5, (weight * self.flat).sum(0)
            if texture is not None:
                trust, total = trust + texture.trust, total + texture.trust * texture.brightness
            own = total / trust
            self._light(weight, value - own)
            _shade(self._facing, self._lit, shade)
            self.residual = value - own - shade
            usual = np.abs(self.residual[base > 0.1])
            self.sigma = max(1.5 * float(np.median(usual)), 0.01) if usual.size else 0.01
            weight = base / (1 + np.square(self.residual / (2 * self.sigma)))
        self.weight, self.flat = weight, value - shade
        error = (base * np.minimum(np.abs(self.residual), 4 * self.sigma)).sum(1) / np.maximum(base.sum(1), 1e-6)
        return error.astype(np.float64)

    def _light(self, weight: Floats, brightness: Floats) -> None:
        """Light of the clip, and of each frame close to it."""
        frames = len(weight)
        normal, right = np.zeros((frames, 9, 9)), np.zeros((frames, 9))
        _light_equations(self._facing, weight, brightness, normal, right)
        clip = np.linalg.solve(normal.sum(0) + 1e-3 * np.eye(9), right.sum(0))
        ridge = (self.refiner.weights.own_light * weight.sum(1)[:, None, None] + 1e-6) * np.eye(9)
        self._lit = clip + np.linalg.solve(normal + ridge, (right - normal @ clip)[..., None])[..., 0]

    def equations(self, share: float) -> tuple[Array, Array]:
        """Normal matrices (T, 6, 6) and gradients (T, 6) of the photometric term in rotation and translation."""
        frames = len(self.weight)
        normal, gradient = np.zeros((frames, 6, 6)), np.zeros((frames, 6))
        _pose_equations(
            self._turned, self._xy, self._depth, self._scale, self._slope, self.weight, self.residual, normal, gradient
        )
        scale = share / self.sigma**2
        return normal * scale, gradient * scale


def _skin(solver: Solver) -> tuple[torch.Tensor, Array]:
    """Vertices (V,) of the skin around the landmarks, without the eyes, and how far expressions move them, metres."""
    head = solver.head
    embedding = head.embeddings["mediapipe"]
    assert isinstance(embedding, Embedding)
    faces = head.faces[head.part_faces("head")] if "head" in head.part_names else head.faces
    skin = faces.unique()
    places = head.v_template[skin]
    apart_from = torch.cdist(places, embedding.points(head.v_template[None])[0]).amin(1)
    near = apart_from < 0.015
    if solver.has_eyes:
        near &= torch.cdist(places, head.joint_template[3:5].to(places)).amin(1) > 1.5 * solver.eye_radius
        near &= head.weights[skin, 3:5].amax(1) < 0.5
    skin = skin[near]
    directions = head.shapedirs[skin][..., head.n_shape :].double().numpy()
    shift = np.linalg.norm(directions @ solver.rows.T, axis=1).max(1)
    return skin, shift


def _log_brightness(grey: NDArray[np.uint8]) -> Floats:
    """Logarithm of linear brightness, a little smoothed."""
    linear = (np.arange(256) / 255.0) ** 2.2
    table = np.log(_DARK + linear).astype(np.float32)
    smooth = cv2.GaussianBlur(table[grey], (0, 0), _BLUR)
    return np.asarray(smooth, np.float32)


_F2, _F3, _D2, _D3 = "float32[:,::1]", "float32[:,:,::1]", "float64[:,::1]", "float64[:,:,::1]"


@kernel(f"void({_F3}, {_F3}, {_F2}, {_F2}, {_F3})")
def _sample(pictures: Floats, places: Floats, weight: Floats, value: Floats, slope: Floats) -> None:
    """Bilinear values and slopes (central differences) of pictures (T, S, S) at places (T, V, 2) with weight."""
    side = pictures.shape[1]
    for t in range(places.shape[0]):
        picture = pictures[t]
        for v in range(places.shape[1]):
            if weight[t, v] <= 0:
                continue
            x, y = places[t, v, 0] - np.float32(0.5), places[t, v, 1] - np.float32(0.5)
            if not (x >= 1 and y >= 1 and x < side - 3 and y < side - 3):  # NaN too
                weight[t, v] = 0
                continue
            i, j = int(x), int(y)
            a, b = x - np.float32(i), y - np.float32(j)
            p, q = np.float32(1) - a, np.float32(1) - b
            value[t, v] = q * (p * picture[j, i] + a * picture[j, i + 1]) + b * (
                p * picture[j + 1, i] + a * picture[j + 1, i + 1]
            )
            # the bilinear value one pixel further minus one pixel before
            upper = p * (picture[j, i + 1] - picture[j, i - 1]) + a * (picture[j, i + 2] - picture[j, i])
            lower = p * (picture[j + 1, i + 1] - picture[j + 1, i - 1]) + a * (
                picture[j + 1, i + 2] - picture[j + 1, i]
            )
            slope[t, v, 0] = np.float32(0.5) * (q * upper + b * lower)
            left = q * (picture[j + 1, i] - picture[j - 1, i]) + b * (picture[j + 2, i] - picture[j, i])
            right = q * (picture[j + 1, i + 1] - picture[j - 1, i + 1]) + b * (
                picture[j + 2, i + 1] - picture[j, i + 1]
            )
            slope[t, v, 1] = np.float32(0.5) * (p * left + a * right)


@kernel(f"void({_F3}, {_D2}, {_F2})")
def _shade(normals: Floats, light: Array, out: Floats) -> None:
    """B(n) l of every point (T, V)."""
    for t in range(normals.shape[0]):
        l0, l1, l2, l3, l4, l5, l6, l7, l8 = light[t]
        for v in range(normals.shape[1]):
            x, y, z = normals[t, v, 0], normals[t, v, 1], normals[t, v, 2]
            linear = l0 + l1 * x + l2 * y + l3 * z
            out[t, v] = linear + l4 * x * y + l5 * x * z + l6 * y * z + l7 * (x * x - y * y) + l8 * (3 * z * z - 1)


@kernel(f"void({_F3}, {_F2}, {_F2}, {_D3}, {_D2})")
def _light_equations(normals: Floats, weight: Floats, brightness: Floats, normal: Array, right: Array) -> None:
    """Adds w B B^T and w B d over the points of each frame."""
    basis = np.empty(9)
    for t in range(normals.shape[0]):
        for v in range(normals.shape[1]):
            w = weight[t, v]
            if w <= 0:
                continue
            x, y, z = normals[t, v, 0], normals[t, v, 1], normals[t, v, 2]
            basis[0], basis[1], basis[2], basis[3] = 1.0, x, y, z
            basis[4], basis[5], basis[6], basis[7], basis[8] = x * y, x * z, y * z, x * x - y * y, 3 * z * z - 1
            for i in range(9):
                wb = w * basis[i]
                right[t, i] += wb * brightness[t, v]
                for j in range(i + 1):
                    normal[t, i, j] += wb * basis[j]
        for i in range(9):
            for j in range(i):
                normal[t, j, i] = normal[t, i, j]


@kernel(f"void({_F3}, {_F3}, {_F2}, {_F2}, {_F3}, {_F2}, {_F2}, {_D3}, {_D2})")
def _pose_equations(
    turned: Floats,
    xy: Floats,
    depth: Floats,
    scale: Floats,
    slope: Floats,
    weight: Floats,
    residual: Floats,
    normal: Array,
    gradient: Array,
) -> None:
    """Adds w J J^T and w J r of each frame, J = d residual / d (rotation, translation)."""
    row = np.empty(6)
    for t in range(turned.shape[0]):
        for v in range(turned.shape[1]):
            w = weight[t, v]
            if w <= 0:
                continue
            gx, gy = slope[t, v, 0], slope[t, v, 1]
            bx, by = gx * scale[t, v], -gy * scale[t, v]
            bz = (gx * xy[t, v, 0] - gy * xy[t, v, 1]) / depth[t, v]
            x, y, z = turned[t, v, 0], turned[t, v, 1], turned[t, v, 2]
            # g . (axis x arm) = axis . (arm x g)
            row[0], row[1], row[2] = y * bz - z * by, z * bx - x * bz, x * by - y * bx
            row[3], row[4], row[5] = bx, by, bz
            for i in range(6):
                wr = w * row[i]
                gradient[t, i] += wr * residual[t, v]
                for j in range(6):
                    normal[t, i, j] += wr * row[j]
