"""Head parameters from landmarks and face units: batched Gauss-Newton in numpy.

Unknown of every frame: expression e, eyelids, jaw, rotation R, translation t; of the person: identity b, shared by all
frames. Minimised (l landmark, f frame):

    sum_fl  w_fl |project(R (x_l(b, e, lids, jaw) - J) + J + t) - landmark_fl|^2 / (s d)^2      robust, d eye distance
    + |b|^2, or |(b - b_guess) / s_b|^2 + sum_f |(R_f - R_guess) / s_R|^2 with a regressor's guess
    + sum_f |(e - e_units) / s_e|^2 + bounds       expression near what the face-unit model reads
    + sum_f |(lids - lids_units) / s_l|^2 + |jaw / s_j|^2
    + sum_f |(p_f - p_{f-1}) / s_p|^2              temporal; robust, so that fast motion is not damped

For a head with an ARKit map, e are weights of the ARKit units (0 ... 1) and the expression is psi = e B with the map's
rows B; else e is psi itself with e_units = 0. The perspective camera stays fixed for a video. Landmarks of the face
contour slide over the skin and count little. Frames without landmarks are carried by the temporal term.

The Jacobian is analytic. Frames couple with the identity (Schur complement) or with their neighbours (block
tridiagonal), never both at once: the identity is settled on a few frames first.

Arrays: T frames, L landmarks, S identity coefficients, K expression unknowns, P = K + 2 + 3 + 3 + 3 unknowns per frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from ..geom import arkit
from ..geom.head import HeadModel, HeadParams
from ..geom.landmarks import Embedding
from ..geom.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from ..third_party.mediapipe import FACE_CONTOUR, LEFT_EYE_CORNERS, LEFT_IRIS, RIGHT_EYE_CORNERS, RIGHT_IRIS
from .reading import Reading, reading_for

Array = NDArray[np.float64]
Pair = tuple[Array, Array]
"""Of the landmarks' linear functions: the part that moves with the head, and the part that moves with the jaw."""

DISTANCE = 0.9
"""Metres to the camera at the start of a fit; the focal length is chosen to suit."""

WIDEST = 0.9
"""Shortest focal length in units of the picture's longer side; that of phones and webcams. A face that is small in its
picture is far away, not seen through a fisheye."""


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def one_blas_thread() -> Any:
    """Context in which BLAS uses one thread.

    The matrices are small: with its default threads, spinning beside LiteRT's and torch's, a 70 ms solve took seconds.
    The controller looks for the loaded libraries once, so that entering the context is cheap.
    """
    return _blas().limit(limits=1, user_api="blas")


@dataclass(frozen=True)
class SolveWeights:
    """How much each term counts; all are standard deviations."""

    landmark: float = 0.03
    """Of a landmark, relative to the eye distance. Single ones are better, but their errors are not independent."""
    robust: float = 0.08
    """Residual, relative to the eye distance, at which a landmark's weight has fallen to one half."""
    contour: float = 0.1
    """Weight of landmarks of the face contour."""
    units: float = 0.2
    """Of expression unknowns around the face units."""
    bound: float = 0.03
    """Of expression weights outside of [0, 1]."""
    psi: float = 1.0
    """Of expression coefficients of heads without an ARKit map."""
    eyelids: float = 0.3
    jaw: float = 0.3
    """Radians, opening."""
    jaw_sideways: float = 0.03
    """Radians, the other two axes."""
    guess_shape: float = 0.25
    """Of shape coefficients around a guess; 1 around the mean head."""
    guess_rotation: float = 0.03
    """Of rotations around a guess, radians; wide, since its errors are the same in all frames of a person."""
    step_expression: float = 0.12
    """Temporal steps per frame at 25 frames per second."""
    step_mode: float = 0.3
    """Of the shared landmark errors, in their standard deviations."""
    step_eyelids: float = 0.5
    step_jaw: float = 0.05
    """Radians."""
    step_rotation: float = 0.012
    """Radians."""
    step_translation: float = 0.002
    """Metres."""
    step_robust: float = 2.0
    """Steps at which the temporal weight has fallen to one half, in standard deviations."""


@dataclass
class State:
    """Unknowns of T frames, and the gaze, which is read from the irises after each round."""

    expression: Array
    """(T, K)"""
    eyelids: Array
    """(T, 2) left, right."""
    jaw: Array
    """(T, 3, 3) rotation matrices."""
    rotation: Array
    """(T, 3, 3)"""
    translation: Array
    """(T, 3) metres."""
    gaze: Array
    """(T, 2) yaw, pitch of both eyes in the head, radians; positive = to the person's left, down."""

    def __len__(self) -> int:
        return len(self.translation)

    def __getitem__(self, index: Any) -> State:
        """Part of the frames, by slice or index array."""
        return State(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def cat(parts: Sequence[State]) -> State:
        return State(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(State)})


@dataclass(frozen=True)
class View:
    """The camera of a fit, in pixels of the full picture."""

    focal: float
    principal: tuple[float, float]


@dataclass
class Identity:
    """What stays the same about a person."""

    shape: Array
    """(S,)"""
    offsets: Array
    """(L, 3) metres in head space: where this person's landmarks sit beside the model's points."""


@dataclass(frozen=True)
class Guess:
    """What a regressor says of a person and of the frames in which the identity is settled."""

    shape: Array
    """(S,) coefficients of the head."""
    rotation: Array
    """(T, 3, 3)"""


class Solver:
    """Fits one head model to MediaPipe landmarks.

    Args:
        head: with a "mediapipe" embedding.
        weights: see `SolveWeights`.
    """

    def __init__(
        self, head: HeadModel, weights: SolveWeights = SolveWeights(), reading: Reading | Literal["own"] | None = "own"
    ) -> None:
        if "mediapipe" not in head.embeddings:
            raise ValueError(
                f"head '{head.name}' has no MediaPipe landmark embedding, which fitting needs; "
                "assets/register_landmarks.py makes one."
            )
        self.head, self.weights = head, weights
        embedding = head.embeddings["mediapipe"]
        assert isinstance(embedding, Embedding)
        index = embedding.indices.numpy()
        self._read_basis(head, embedding, index < 468)
        self.index = index[index < 468]
        """(L,) landmark numbers that are fitted: the mesh, not the irises."""
        self._read_expression(head)
        self.base_weight = np.ones(len(self.index))
        self.base_weight[np.isin(self.index, FACE_CONTOUR)] = weights.contour
        self.reading = reading_for(head) if reading == "own" else reading
        if self.reading is not None:
            self._read_reading(self.reading)
        groups = (self._expression, self._lids, self._jaw_dirs, self._eye_dirs)
        still, moving = (np.concatenate([group[part] for group in groups], -1) for part in range(2))
        self._frame_dirs: Pair = still, moving  # (L, 3, K + 2 + 9 + 18)
        self._on_jaw = np.flatnonzero(np.abs(moving).max((1, 2)) + np.abs(self.jaw_weight) > 0)
        self._slopes = {
            "shape": self._for_jacobian(self._shape),
            "expression": self._for_jacobian(self._expression),
            "lids": self._for_jacobian(self._lids),
            "jaw": self._for_jacobian(self._jaw_dirs),
        }
        self._set_expression_scales()
        self.normals = _landmark_normals(head, embedding)[index < 468]

    def _read_basis(self, head: HeadModel, embedding: Embedding, kept: NDArray[np.bool_]) -> None:
        corners = embedding.corners.numpy()[kept]  # (L, 3)
        barycentric = embedding.barycentric.numpy().astype(np.float64)[kept]
        skin = head.weights.numpy().astype(np.float64)[corners]  # (L, 3, J)
        jaw_share = skin[..., 2] if head.n_joints > 2 else np.zeros_like(skin[..., 0])

        def gather(columns: torch.Tensor) -> Pair:
            values = columns.numpy().astype(np.float64)[corners]  # (L, 3 corners, 3, C)
            still = np.einsum("lk,lkxc->lxc", barycentric * (1 - jaw_share), values)
            moving = np.einsum("lk,lkxc->lxc", barycentric * jaw_share, values)
            return still, moving

        still, moving = gather(head.v_template[..., None])
        self._template: Pair = still[..., 0], moving[..., 0]
        self.jaw_weight = (barycentric * jaw_share).sum(1)  # (L,)
        self._shape = gather(head.shapedirs[..., : head.n_shape])
        self._psi = gather(head.shapedirs[..., head.n_shape :])
        still, moving = gather(head.posedirs)
        self._jaw_dirs: Pair = still[..., 9:18], moving[..., 9:18]
        self._eye_dirs: Pair = still[..., 18:36], moving[..., 18:36]
        lids = head.eyelid_dirs
        self._lids = gather(torch.zeros(*head.v_template.shape, 2) if lids is None else lids)
        joint_dirs = head.joint_dirs.numpy().astype(np.float64).reshape(head.n_joints, 3, -1)
        self._joints = head.joint_template.numpy().astype(np.float64)
        self._joints_shape = joint_dirs[..., : head.n_shape]
        self._joints_psi = joint_dirs[..., head.n_shape :]
        self.has_jaw = head.n_joints > 2
        self.has_eyes = head.n_joints > 4
        self.eye_radius = _eye_radius(head) if self.has_eyes else 0.012

    def _read_expression(self, head: HeadModel) -> None:
        """Rows of psi that the expression unknowns stand for."""
        self.unit_index = np.zeros(0, np.int64)
        """(K,) ARKit units that the expression unknowns are; empty for heads without an ARKit map."""
        rows = np.eye(head.n_expression)
        if head.has_arkit:
            rows = head.arkit(torch.eye(len(arkit.NAMES)))["expression"].numpy().astype(np.float64)
            self.unit_index = np.flatnonzero(np.abs(rows).max(1) > 1e-9)
            rows = rows[self.unit_index]
        self.rows = rows  # (K, E)
        self._expression: Pair = self._psi[0] @ rows.T, self._psi[1] @ rows.T
        self._joints_expression = self._joints_psi @ rows.T

    def _for_jacobian(self, pair: Pair) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Slopes in float32, where they are used most; the moving part of the landmarks that the jaw moves only."""
        return pair[0].astype(np.float32), pair[1][self._on_jaw].astype(np.float32)

    def _read_reading(self, reading: Reading) -> None:
        """Fold the observation model into the linear functions; its modes become further unknowns."""

        def picked(values: NDArray[np.float32]) -> Array:
            return values[self.index].astype(np.float64)

        def plus(pair: Pair, still: Array) -> Pair:
            return pair[0] + still, pair[1]

        def extended(pair: Pair, still: Array) -> Pair:
            return np.concatenate([pair[0], still], -1), np.concatenate([pair[1], np.zeros_like(still)], -1)

        self._template = picked(reading.places) - self._template[1], self._template[1]
        if len(self.unit_index):
            self._expression = plus(self._expression, picked(reading.units)[..., self.unit_index])
        self._lids = plus(self._lids, picked(reading.lids))
        # the jaw's code is vec(R - I); its entries 5 and 7 are -sin and sin of a rotation about x
        response = np.zeros((len(self.index), 3, 9))
        response[..., 7] = 0.5 * picked(reading.jaw)
        response[..., 5] = -0.5 * picked(reading.jaw)
        self._jaw_dirs = plus(self._jaw_dirs, response)
        person, frame = picked(reading.person_modes), picked(reading.frame_modes)
        self._shape = extended(self._shape, person)
        self._expression = extended(self._expression, frame)
        self.rows = np.concatenate([self.rows, np.zeros((frame.shape[-1], self.rows.shape[1]))])
        self._joints_shape = np.concatenate([self._joints_shape, np.zeros((*self._joints.shape, person.shape[-1]))], -1)
        self._joints_expression = np.concatenate(
            [self._joints_expression, np.zeros((*self._joints.shape, frame.shape[-1]))], -1
        )
        self.base_weight = self.base_weight * np.square(np.median(reading.noise) / picked(reading.noise))

    def _set_expression_scales(self) -> None:
        """Precision of the prior and size of the temporal step of each expression unknown: units or psi, then modes."""
        s = self.weights
        modes = 0 if self.reading is None else self.reading.frame_modes.shape[-1]
        plain = len(self.rows) - modes
        with_units = len(self.unit_index) > 0
        sigma = np.ones(len(self.rows))
        sigma[:plain] = s.units if with_units else s.psi
        self._expression_precision = 1 / np.square(sigma)
        self._step_expression = np.full(len(self.rows), s.step_mode)
        self._step_expression[:plain] = s.step_expression * (1 if with_units else 4)

    # ---- starting values

    def start(
        self,
        landmarks: NDArray[Any],
        units: NDArray[Any],
        view: View | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> tuple[View, State]:
        """Camera and first guess of frames: pose by a similarity between the landmarks, depth included, and the neutral
        head; expression and lids from the face units.

        Args:
            landmarks: (T, 478, 3) pixels, finite.
            units: (T, 52) ARKit units.
            view: a known camera; else one that puts the first frame at `DISTANCE`, unless its lens would be wider than
                cameras have.
            size: (H, W) of the picture, in whose middle the camera's axis is; without it, in the first face's.
        """
        landmarks = np.asarray(landmarks, np.float64)
        spread = np.ptp(landmarks[:, :468, :2], axis=1).min() if np.isfinite(landmarks).all() else math.nan
        if not spread > 0:
            what = "all lie in one point" if spread == 0 else "must be finite numbers"
            raise ValueError(f"Solver.start: the landmarks of a frame {what}; leave out frames without a face.")
        model = self._template[0] + self._template[1]
        inner = ~np.isin(self.index, FACE_CONTOUR)
        frames = len(landmarks)
        scales, rotations, centres = [], [], []
        for points in landmarks[:, self.index]:
            target = points[inner] * np.array([1.0, -1.0, -1.0])
            grown, turn, shift = _similarity(model[inner], target)
            scales.append(grown)
            rotations.append(turn)
            centres.append(turn @ (grown * self._joints[0]) + shift)
        scale, centre = np.array(scales), np.array(centres)
        if view is None:
            low, high = landmarks[0, :468, :2].min(0), landmarks[0, :468, :2].max(0)
            middle = (low + high) / 2
            focal = float(scales[0] * DISTANCE)
            if size is None:
                view = View(focal, (float(middle[0]), float(middle[1])))
            else:
                view = View(max(focal, WIDEST * max(size)), (size[1] / 2, size[0] / 2))
        depth = view.focal / scale
        principal = np.array(view.principal)
        rotation = np.array(rotations)
        # the root joint stays at J under its own rotation: y = R (x - J) + J + t
        root = np.stack(
            [
                (centre[:, 0] - principal[0]) / scale,
                (centre[:, 1] + principal[1]) / scale,
                -depth,
            ],
            1,
        )
        # the similarity's scale belongs to the face, not to the root, which stands further back
        face = np.einsum("tij,j->ti", rotation, model[inner].mean(0) - self._joints[0])
        root[:, 2] -= face[:, 2]
        expression, eyelids = self._prior_means(np.asarray(units, np.float64))
        state = State(
            expression=expression,
            eyelids=eyelids,
            jaw=np.tile(np.eye(3), (frames, 1, 1)),
            rotation=rotation,
            translation=root - self._joints[0],
            gaze=np.zeros((frames, 2)),
        )
        return view, state

    def person(self) -> Identity:
        """The mean person."""
        return Identity(np.zeros(self._shape[0].shape[-1]), np.zeros((len(self.index), 3)))

    # ---- solving

    def solve(
        self,
        landmarks: NDArray[Any],
        units: NDArray[Any],
        view: View,
        state: State,
        person: Identity,
        *,
        confidence: NDArray[Any] | None = None,
        shared_shape: bool = False,
        guess: Guess | None = None,
        before: State | None = None,
        smooth: float = 0.0,
        pose_only: bool = False,
        iterations: int = 6,
    ) -> tuple[State, Identity]:
        """Gauss-Newton rounds from `state`.

        Args:
            landmarks: (T, 478, 3) pixels; rows of frames without a face may hold anything.
            units: (T, 52) ARKit units read from the frames.
            view: camera.
            state, person: starting values; not changed.
            confidence: (T,) weight of each frame in [0, 1], 0 = no face; default all 1.
            shared_shape: solve for the identity too; then the frames are not coupled in time.
            guess: stay close to it, in shape (if that is solved for) and rotation.
            before: one frame, already settled, that the first frame follows.
            smooth: 0 = no temporal term; 1 = as `SolveWeights` says for 25 frames per second; precision scales with it.
            pose_only: rotation and translation only.
            iterations: rounds.
        Returns:
            The new state and identity.
        """
        frames = len(state)
        confidence = np.ones(frames) if confidence is None else np.asarray(confidence, np.float64)
        target = np.where(confidence[:, None, None] > 0, np.asarray(landmarks, np.float64)[:, :, :2], 0.0)
        # (T, 2) right and left outer eye corner -> pixels; frames without a face get 1
        eye_distance = np.linalg.norm(target[:, 263] - target[:, 33], axis=-1)
        depth_unit = view.focal / -state.translation[:, 2] * 0.09  # a turned head's eye distance is foreshortened
        unit_px = np.maximum(np.maximum(eye_distance, depth_unit), 1e-6)
        irises = target[:, [LEFT_IRIS, RIGHT_IRIS]]
        corners = target[:, _EYE_CORNERS]
        target = target[:, self.index]
        mean, lids_mean = self._prior_means(np.asarray(units, np.float64))
        with one_blas_thread():
            for _ in range(iterations):
                points, jacobian = self._project(view, state, person, shared_shape, pose_only)
                residual = points - target
                weight = self._landmark_weights(state, residual, unit_px, confidence)
                state, person = self._step(
                    jacobian,
                    residual,
                    weight,
                    state,
                    person,
                    mean,
                    lids_mean,
                    confidence,
                    shared_shape,
                    guess,
                    before,
                    smooth,
                    pose_only,
                )
                if not pose_only:
                    state = replace(state, gaze=self._gaze(view, state, person, irises, corners, confidence))
        return state, person

    def points(self, view: View, state: State, person: Identity) -> Array:
        """(T, L, 2) pixels of the model's landmarks."""
        return self._project(view, state, person, False, True)[0]

    def expression_of(self, units: NDArray[Any]) -> Array:
        """Expression unknowns (T, K) that ARKit face units (T, 52) ask for; zeros for heads without an ARKit map."""
        out = np.zeros((len(units), len(self.rows)))
        if len(self.unit_index):
            values = (np.asarray(units, np.float64) - _UNIT_FLOOR) / (1 - _UNIT_FLOOR)
            out[:, : len(self.unit_index)] = np.clip(values[:, self.unit_index], 0, 1)
        return out

    def _prior_means(self, units: Array) -> tuple[Array, Array]:
        """Expression (T, K) and eyelids (T, 2) that the face units ask for."""
        blink = units[:, [arkit.INDEX["eyeBlinkLeft"], arkit.INDEX["eyeBlinkRight"]]]
        # the model reads .05 ... .15 off open eyes and seldom more than .7 off closed ones
        return self.expression_of(units), np.clip((blink - 0.1) / 0.55, 0, 1)

    def _landmark_weights(self, state: State, residual: Array, unit_px: Array, confidence: Array) -> Array:
        """(T, L) inverse variances in 1/px^2."""
        s = self.weights
        # how much the skin there faces the camera; hidden landmarks are guesses
        facing = np.einsum("tj,lj->tl", state.rotation[:, 2], self.normals)
        visible = np.clip((facing + 0.1) / 0.4, 0.05, 1.0)
        size = np.linalg.norm(residual, axis=-1) / unit_px[:, None]
        robust = 1 / (1 + np.square(size / s.robust))
        return confidence[:, None] * self.base_weight * visible * robust / np.square(s.landmark * unit_px)[:, None]

    def _project(
        self, view: View, state: State, person: Identity, with_shape: bool, pose_only: bool
    ) -> tuple[Array, NDArray[np.float32]]:
        """Landmarks (T, L, 2) in pixels and their Jacobian (T, 2L, [S] + P); unknowns: shape, expression, lids, jaw,
        rotation, translation."""
        frames, count = len(state), len(self.index)
        identity = np.eye(3)
        jaw_code = (state.jaw - identity).reshape(frames, 9)
        eye_code = self._eye_code(state.gaze)
        joints = (
            self._joints
            + self._joints_shape @ person.shape
            + np.einsum("jxk,tk->tjx", self._joints_expression, state.expression)
        )  # (T, J, 3)

        def combine(part: int) -> Array:
            out = self._template[part] + self._shape[part] @ person.shape + (person.offsets if part == 0 else 0.0)
            code = np.concatenate([state.expression, state.eyelids, jaw_code, eye_code], 1)
            dirs = self._frame_dirs[part]
            moved: Array = code @ dirs.reshape(-1, dirs.shape[-1]).T
            return out + moved.reshape(frames, count, 3)

        still, moving = combine(0), combine(1)
        root = joints[:, 0]
        hinge = joints[:, 2] if self.has_jaw else np.zeros((frames, 3))
        weight = self.jaw_weight[:, None]
        arm = (moving - weight * hinge[:, None]) @ state.jaw.transpose(0, 2, 1)  # (T, L, 3)
        local = still + arm + weight * hinge[:, None] - root[:, None]
        turned = local @ state.rotation.transpose(0, 2, 1)
        world = turned + (root + state.translation)[:, None]
        depth = -world[..., 2]
        scale = view.focal / depth
        x, y = scale * world[..., 0], scale * world[..., 1]
        points = np.stack([view.principal[0] + x, view.principal[1] - y], -1)

        # d pixel / d world (T, L, 2, 3)
        by_world = np.zeros((frames, count, 2, 3))
        by_world[..., 0, 0] = scale
        by_world[..., 0, 2] = x / depth
        by_world[..., 1, 1] = -scale
        by_world[..., 1, 2] = -y / depth
        turn_part = _cross_columns(by_world, turned)
        if pose_only:
            pose = np.concatenate([turn_part, by_world], -1, dtype=np.float32)
            return points, pose.reshape(frames, 2 * count, -1)

        by_head = by_world @ state.rotation[:, None]
        by_jaw = by_head @ state.jaw[:, None]
        root_turn = by_world - by_head  # (T, L, 2, 3): a moving root joint
        hinge_turn = weight[:, None] * (by_head - by_jaw)
        head_rows, jaw_rows = by_head.astype(np.float32), by_jaw[:, self._on_jaw].astype(np.float32)

        def linear(name: str, joint_dirs: Array | None = None) -> NDArray[np.float32]:
            still_dirs, moving_dirs = self._slopes[name]
            out = _contract(head_rows, still_dirs)
            out[:, self._on_jaw] += _contract(jaw_rows, moving_dirs)
            if joint_dirs is not None:
                joint_rows = np.concatenate([root_turn, hinge_turn], -1) if self.has_jaw else root_turn
                used = [0, 2] if self.has_jaw else [0]
                out += joint_rows.astype(np.float32) @ np.concatenate(joint_dirs[used]).astype(np.float32)
            return out

        jaw_part = _cross_columns(by_head, arm)
        turn_code = np.stack([(_CROSS[a] @ state.jaw).reshape(frames, 9) for a in range(3)], -1)  # (T, 9, 3)
        jaw_part += linear("jaw") @ turn_code[:, None]
        columns: list[NDArray[Any]] = [
            linear("expression", self._joints_expression),
            linear("lids"),
            jaw_part,
            turn_part,
            by_world,
        ]
        if with_shape:
            columns.insert(0, linear("shape", self._joints_shape))
        jacobian = np.concatenate([c.astype(np.float32) for c in columns], -1)
        return points, jacobian.reshape(frames, 2 * count, -1)

    def _step(
        self,
        jacobian: NDArray[np.float32],
        residual: Array,
        weight: Array,
        state: State,
        person: Identity,
        mean: Array,
        lids_mean: Array,
        confidence: Array,
        shared_shape: bool,
        guess: Guess | None,
        before: State | None,
        smooth: float,
        pose_only: bool,
    ) -> tuple[State, Identity]:
        frames, width = len(state), jacobian.shape[-1]
        root = np.sqrt(np.repeat(weight, 2, axis=1))[..., None].astype(np.float32)  # (T, 2L, 1)
        scaled = jacobian * root
        normal = (scaled.transpose(0, 2, 1) @ scaled).astype(np.float64)
        pulled = residual.reshape(frames, -1, 1).astype(np.float32) * root
        gradient = (scaled.transpose(0, 2, 1) @ pulled)[..., 0].astype(np.float64)
        shape_width = len(person.shape) if shared_shape and not pose_only else 0
        if not pose_only:
            self._add_priors(normal, gradient, shape_width, state, mean, lids_mean, confidence)
        if guess is not None:
            turn, precision = np.arange(width - 6, width - 3), 1 / self.weights.guess_rotation**2
            normal[:, turn, turn] += precision
            gradient[:, turn] += precision * apart(state.rotation, guess.rotation)
        diagonal = np.arange(shape_width, width)
        normal[:, diagonal, diagonal] *= 1 + 1e-4
        normal[:, diagonal, diagonal] += 1e-6

        if shape_width:
            s = slice(0, shape_width)
            p = slice(shape_width, width)
            trust, centre = np.ones(shape_width), np.zeros(shape_width)
            if guess is not None:
                centre[: len(guess.shape)] = guess.shape
                trust[: len(guess.shape)] = 1 / self.weights.guess_shape**2
            packed = np.concatenate([normal[:, p, s], gradient[:, p, None]], -1)
            solved = np.linalg.solve(normal[:, p, p], packed)  # (T, P, S + 1)
            left = np.diag(trust) + (normal[:, s, s] - normal[:, s, p] @ solved[..., :-1]).sum(0)
            pull = trust * (person.shape - centre)
            right = pull + (gradient[:, s] - (normal[:, s, p] @ solved[..., -1:])[..., 0]).sum(0)
            shape_step = -np.linalg.solve(left, right)
            step = -solved[..., -1] - solved[..., :-1] @ shape_step
            person = Identity(person.shape + shape_step, person.offsets)
        elif smooth > 0 and not pose_only:
            step = self._coupled(normal, gradient, state, before, smooth)
        else:
            step = -np.linalg.solve(normal, gradient[..., None])[..., 0]
        return self._moved(state, step, pose_only), person

    def _add_priors(
        self,
        normal: Array,
        gradient: Array,
        first: int,
        state: State,
        mean: Array,
        lids_mean: Array,
        confidence: Array,
    ) -> None:
        """Adds the per-frame priors; `first` is the column where the frame's unknowns start."""
        s, k = self.weights, len(self.rows)
        present = np.maximum(confidence, 1e-3)[:, None]

        def add(column: int, value: Array, precision: Array | float) -> None:
            columns = np.arange(first + column, first + column + value.shape[1])
            precision = np.broadcast_to(precision, value.shape)
            normal[:, columns, columns] += precision
            gradient[:, columns] += precision * value

        add(0, state.expression - mean, present * self._expression_precision)
        units = state.expression[:, : len(self.unit_index)]
        outside = np.minimum(units, 0) + np.maximum(units - 1, 0)
        add(0, outside, (outside != 0) / s.bound**2)
        add(k, state.eyelids - lids_mean, present / s.eyelids**2)
        outside = np.minimum(state.eyelids, 0) + np.maximum(state.eyelids - 1, 0)
        add(k, outside, (outside != 0) / s.bound**2)
        jaw = _log(state.jaw)
        sigma = np.array([s.jaw, s.jaw_sideways, s.jaw_sideways]) if self.has_jaw else np.full(3, 1e-4)
        add(k + 2, jaw, present / sigma**2)
        closed = np.minimum(jaw[:, :1], 0)
        add(k + 2, closed, (closed != 0) / s.bound**2)

    def _coupled(self, normal: Array, gradient: Array, state: State, before: State | None, smooth: float) -> Array:
        """Gauss-Newton step (T, P) with the temporal term: a block tridiagonal system, solved by elimination."""
        s, sigma = self.weights, self._step_sigma()
        precision = smooth / sigma**2
        chain = state if before is None else State.cat([before, state])
        change = self._difference(chain[1:], chain[:-1])  # (T or T - 1, P)
        size = np.square(change / sigma)
        tension = precision / (1 + size / s.step_robust**2)
        offset = 0 if before is not None else 1
        frames = len(state)
        diagonal = np.zeros((frames, len(sigma)))
        pull = np.zeros((frames, len(sigma)))
        diagonal[offset:] += tension
        pull[offset:] += tension * change
        inner = tension[1 - offset :]  # between frames i and i + 1 of this stretch
        diagonal[:-1] += inner
        pull[:-1] -= inner * change[1 - offset :]
        index = np.arange(len(sigma))
        normal[:, index, index] += diagonal
        right = -(gradient + pull)
        # forward elimination, frame by frame; the off-diagonal blocks are -diag(inner)
        solved = np.empty((frames, len(sigma), len(sigma)))
        step = np.empty((frames, len(sigma)))
        for f in range(frames):
            block, value = normal[f], right[f]
            if f:
                block = block - inner[f - 1][:, None] * solved[f - 1]
                value = value + inner[f - 1] * step[f - 1]
            columns = np.concatenate([np.diag(inner[f]) if f < frames - 1 else block[:, :0], value[:, None]], 1)
            result = np.linalg.solve(block, columns)
            step[f] = result[:, -1]
            if f < frames - 1:
                solved[f] = result[:, :-1]
        for f in range(frames - 2, -1, -1):
            step[f] += solved[f] @ step[f + 1]
        return step

    def _step_sigma(self) -> Array:
        """(P,) usual change of the unknowns from frame to frame."""
        s = self.weights
        return np.concatenate(
            [
                self._step_expression,
                np.full(2, s.step_eyelids),
                np.full(3, s.step_jaw),
                np.full(3, s.step_rotation),
                np.full(3, s.step_translation),
            ]
        )

    def _difference(self, after: State, before: State) -> Array:
        """(T, P) change of the unknowns from `before` to `after`."""
        return np.concatenate(
            [
                after.expression - before.expression,
                after.eyelids - before.eyelids,
                _log(after.jaw @ before.jaw.transpose(0, 2, 1)),
                _log(after.rotation @ before.rotation.transpose(0, 2, 1)),
                after.translation - before.translation,
            ],
            1,
        )

    def _moved(self, state: State, step: Array, pose_only: bool) -> State:
        rotation = _exp(np.clip(step[:, -6:-3], -0.4, 0.4)) @ state.rotation
        translation = state.translation + step[:, -3:]
        translation[:, 2] = np.minimum(translation[:, 2], -0.15)
        if pose_only:
            return replace(state, rotation=rotation, translation=translation)
        k = len(self.rows)
        step = step[:, -(k + 11) :]
        jaw = _exp(np.clip(step[:, k + 2 : k + 5], -0.3, 0.3)) @ state.jaw
        return replace(
            state,
            expression=state.expression + np.clip(step[:, :k], -1.5, 1.5),
            eyelids=state.eyelids + np.clip(step[:, k : k + 2], -1, 1),
            jaw=jaw,
            rotation=rotation,
            translation=translation,
        )

    # ---- gaze

    def _eye_code(self, gaze: Array) -> Array:
        """(T, 18) pose features vec(R - I) of both eyes."""
        turn = gaze_matrix(gaze) - np.eye(3)
        return np.concatenate([turn.reshape(-1, 9)] * 2, 1)

    def _gaze(
        self, view: View, state: State, person: Identity, irises: Array, corners: Array, confidence: Array
    ) -> Array:
        """(T, 2) gaze of both eyes from the iris centres.

        An iris is first moved by what the eye corners are off the model's, so that neither a wrong eye position nor a
        wrong eye shape reads as gaze; then the ray to it is met with the eyeball. Both eyes look the same way: their
        mean counts, the nearer eye of a turned head more.
        """
        if not self.has_eyes:
            return state.gaze
        joints = (
            self._joints
            + self._joints_shape @ person.shape
            + np.einsum("jxk,tk->tjx", self._joints_expression, state.expression)
        )
        root = joints[:, :1]
        centre = (joints[:, 3:5] - root) @ state.rotation.transpose(0, 2, 1) + root + state.translation[:, None]
        model = self.points(view, state, person)[:, self._corner_rows]  # (T, 4, 2)
        error = (corners - model).reshape(-1, 2, 2, 2).mean(2)  # (T, eye, 2)
        pixel = irises - error - np.array(view.principal)
        if self.reading is not None:
            offset = self.reading.irises[None].astype(np.float64) @ state.rotation.transpose(0, 2, 1)  # (T, eye, 3)
            pixel = pixel - offset[..., :2] * [1, -1] * view.focal / -centre[..., 2:]
        # where the ray meets the ball: its depth depends on the place, which depends on the depth; three rounds settle
        towards = np.ones_like(centre[..., 2:])
        for _ in range(3):
            depth = -centre[..., 2:] - self.eye_radius * towards
            place = np.concatenate([pixel[..., :1], -pixel[..., 1:]], -1) * depth / view.focal
            across = (place - centre[..., :2]) / self.eye_radius
            length = np.linalg.norm(across, axis=-1, keepdims=True)
            across *= np.minimum(1, 0.9 / np.maximum(length, 1e-9))
            towards = np.sqrt(1 - np.square(across).sum(-1, keepdims=True))
        direction = np.concatenate([across, towards], -1)
        local = direction @ state.rotation  # R^T d
        # the nearer eye of a turned head is seen better: weight by how far the head turns, left eye first
        turn = np.clip(state.rotation[:, 0, 2], -0.6, 0.6)
        share = np.stack([0.5 - turn / 1.2, 0.5 + turn / 1.2], 1)[..., None]
        local = (local * share).sum(1)
        gaze = np.stack(
            [np.arctan2(local[:, 0], local[:, 2]), -np.arctan2(local[:, 1], np.hypot(local[:, 0], local[:, 2]))], 1
        )
        return np.where(confidence[:, None] > 0, np.clip(gaze, -0.8, 0.8), state.gaze)

    @property
    def _corner_rows(self) -> NDArray[np.int64]:
        """Rows of the left eye's two corners, then the right eye's, among the fitted landmarks."""
        return np.array([int(np.flatnonzero(self.index == i)[0]) for i in _EYE_CORNERS])

    # ---- personal offsets and results

    def personal_offsets(
        self, landmarks: NDArray[Any], view: View, state: State, person: Identity, *, trust: float = 4.0
    ) -> Identity:
        """The identity with offsets: mean residual per landmark over frames, in head space, shrunk when frames are few.

        Args:
            landmarks: (T, 478, 3) of frames with faces.
            trust: frames after which half of the mean residual is believed.
        """
        target = np.asarray(landmarks, np.float64)[:, self.index, :2]
        residual = target - self.points(view, state, person)
        metres = residual * (-state.translation[:, 2] / view.focal)[:, None, None]
        plane = np.concatenate([metres[..., :1], -metres[..., 1:], np.zeros_like(metres[..., :1])], -1)
        local = np.median(plane @ state.rotation, axis=0)
        frames = len(state)
        share = frames / (frames + trust) * np.minimum(self.base_weight, 1)[:, None]
        return Identity(person.shape, person.offsets + share * local)

    def params(self, state: State, person: Identity) -> HeadParams:
        """`HeadParams` (T) of the fit."""
        frames = len(state)
        gaze = torch.from_numpy(gaze_matrix(state.gaze))

        def tensor(values: Array) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).float()

        eyes = matrix_to_axis_angle(gaze).float()
        return HeadParams(
            shape=tensor(np.tile(person.shape[: self.head.n_shape], (frames, 1))),
            expression=tensor(state.expression @ self.rows),
            rotation=matrix_to_axis_angle(torch.from_numpy(state.rotation)).float(),
            neck=torch.zeros(frames, 3),
            jaw=matrix_to_axis_angle(torch.from_numpy(state.jaw)).float(),
            eyes=torch.cat([eyes, eyes], 1),
            eyelids=tensor(np.clip(state.eyelids / (1 if self.reading is None else _LIDS_READ_SHUT), 0, 1)),
            translation=tensor(state.translation),
        )


_EYE_CORNERS = [*LEFT_EYE_CORNERS, *RIGHT_EYE_CORNERS]
_LIDS_READ_SHUT = 0.75
"""Where the solved eyelids end when the eyes are shut: the lids' landmarks and the blink unit saturate before. Against
renders the rest is linear: 0.2 is read as 0.15, 0.6 as 0.5, 0.8 as 0.7."""
_UNIT_FLOOR = np.array([0.25 if name.startswith("eyeSquint") else 0.0 for name in arkit.NAMES])
"""(52,) what the face-unit model reads off relaxed faces; of the clips looked at, only squinting stood out."""
_CROSS = np.array(
    [[[0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]], [[0, -1, 0], [1, 0, 0], [0, 0, 0]]],
    np.float64,
)
"""(3, 3, 3): cross-product matrices of the three axes."""


def _contract(rows: NDArray[np.float32], directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, L, 2, 3) x (L, 3, C) -> (T, L, 2, C)."""
    frames, count = rows.shape[:2]
    by_landmark = np.ascontiguousarray(rows.transpose(1, 0, 2, 3)).reshape(count, 2 * frames, 3)
    out = (by_landmark @ directions).reshape(count, frames, 2, -1)
    return out.transpose(1, 0, 2, 3)


def _cross_columns(rows: Array, arms: Array) -> Array:
    """(T, L, 2, 3): rows (T, L, 2, 3) applied to axis x arm for each of the three axes; arms (T, L, 3)."""
    # r . (axis x arm) = axis . (arm x r)
    return np.cross(arms[:, :, None], rows)


def _exp(axis_angle: Array) -> Array:
    matrix: Array = axis_angle_to_matrix(torch.from_numpy(np.ascontiguousarray(axis_angle))).numpy()
    return matrix


def _log(matrix: Array) -> Array:
    axis_angle: Array = matrix_to_axis_angle(torch.from_numpy(np.ascontiguousarray(matrix))).numpy()
    return axis_angle


def turned_by(axis_angle: Array, rotation: Array) -> Array:
    """(T, 3, 3) rotations, turned further about world axes by (T, 3) radians."""
    return _exp(axis_angle) @ rotation


def apart(after: Array, before: Array) -> Array:
    """(T, 3) axis-angle about world axes that leads from rotations (T, 3, 3) to others."""
    return _log(after @ before.transpose(0, 2, 1))


def gaze_matrix(gaze: Array) -> Array:
    """(T, 3, 3) R_y(yaw) R_x(pitch)."""
    zero = np.zeros(len(gaze))
    return _exp(np.stack([zero, gaze[:, 0], zero], 1)) @ _exp(np.stack([gaze[:, 1], zero, zero], 1))


def _similarity(source: Array, target: Array) -> tuple[float, Array, Array]:
    """Scale, rotation and shift with target ~ scale R source + shift (Umeyama 1991)."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    a, b = source - source_mean, target - target_mean
    u, d, vt = np.linalg.svd(b.T @ a)
    sign = np.ones(3)
    sign[2] = np.sign(np.linalg.det(u @ vt))
    rotation = u @ np.diag(sign) @ vt
    scale = float((d * sign).sum() / np.square(a).sum())
    return scale, rotation, target_mean - scale * rotation @ source_mean


def _landmark_normals(head: HeadModel, embedding: Embedding) -> Array:
    """(L, 3) outward directions at the landmarks of the neutral mean head, averaged over a centimetre of skin.

    Averaged, because the normals on the very edges of lids and lips point up or down and would call them hidden.
    """
    vertices = head.v_template.numpy().astype(np.float64)
    faces = head.faces.numpy()
    if "head" in head.part_names:
        faces = faces[head.part_faces("head").numpy()]
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    across = np.cross(b - a, c - a)  # length = twice the area
    points = embedding.points(head.v_template[None])[0].numpy()
    squared = np.square(points[:, None] - (a + b + c)[None] / 3).sum(-1)  # (L, F)
    normals: Array = np.exp(-squared / (2 * 0.007**2)) @ across
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def _eye_radius(head: HeadModel) -> float:
    """Metres from an eye joint to the front of its ball."""
    ball = (head.weights[:, 3] > 0.9).numpy()
    return float((head.v_template.numpy()[ball] - head.joint_template[3].numpy())[:, 2].max())
