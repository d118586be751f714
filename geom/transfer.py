"""Motion transfer: what a driving face does, done by the source face. All methods share it.

    relative (default)                                      absolute
    R = R_d R_ref^T R_s                                     R = R_d
    psi = psi_s + g (psi_d - psi_ref),  jaw the same        psi = psi_d,  jaw the same
    gaze = gaze_s + mean of both eyes (gaze_d - gaze_ref)   gaze = gaze_d
    lid openness = openness_s * openness_d / openness_ref   openness = openness_d
    eyes move by the driver's metres, depth as a ratio      translation = t_s

s source, d driving, ref the driving frame that counts as rest (its first, or its most neutral and frontal). Identity
always stays the source's. Soft limits keep the result where one photo can still be believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from . import arkit
from .head import HeadModel, HeadParams
from .landmarks import Embedding
from .rotation import axis_angle_to_matrix, euler_to_matrix, matrix_to_axis_angle, matrix_to_euler

Region = Literal["all", "pose", "expression", "eyes", "mouth"]

MOUTH_UNITS = ("mouth", "jaw", "tongue", "cheekPuff")
"""Prefixes of the ARKit units that count as mouth; the others (eyes, brows, cheeks, nose) count as eyes."""


@dataclass(frozen=True)
class TransferOptions:
    """What is transferred and how far."""

    relative: bool = True
    """Motion relative to the driving reference, added to the source's own; else the driver's values as they are."""
    region: Region = "all"
    """pose: rotation and translation; expression: all but pose; eyes: gaze, lids, brows; mouth: jaw and lips."""
    strength: float = 1.0
    """Multiplies the driver's motion from its rest, before anything else (relative motion)."""
    expression_gain: float = 1.1
    """On expression and jaw differences (relative motion). Trackers damp expressions; more does not repair that."""
    yaw_limit: float = 30.0
    """Degrees that the head may turn from the source pose; motion is unchanged up to 0.6 of it, then bends smoothly."""
    pitch_limit: float = 24.0
    """Degrees, as `yaw_limit`."""
    roll_limit: float = 40.0
    """Degrees, as `yaw_limit`; roll uncovers little, so it is freer."""
    translation_limit: float = 0.045
    """Metres that the head may move sideways or up and down; about a third of a face width."""
    zoom_limit: float = 0.18
    """Largest relative change of the distance to the camera."""
    gaze_limit: float = 32.0
    """Degrees that the eyes may turn from the source's gaze."""
    openness_limit: float = 1.25
    """Lids open at most this many times as far as in the source."""


def transfer(
    head: HeadModel,
    source: HeadParams,
    driving: HeadParams,
    reference: HeadParams,
    options: TransferOptions = TransferOptions(),
) -> HeadParams:
    """Parameters of the source person doing what the driving person does.

    With driving == reference (relative motion) the result is the source itself.

    Args:
        head: the model that all parameters belong to; needs an ARKit map for the regions eyes and mouth.
        source: B = 1.
        driving: B frames.
        reference: B = 1, the driving frame at rest. Absolute motion uses it for nothing.
        options: see `TransferOptions`.
    Returns:
        HeadParams of B frames with the source's shape.
    Raises:
        ValueError: when the region needs an ARKit map that the head does not have.
    """
    frames = len(driving)
    source = source.expand(frames)
    if options.relative:
        rest = reference.expand(frames)
        target = _relative(head, source, scaled_motion(rest, driving, options.strength), rest, options)
    else:
        target = driving.replace(translation=source.translation)
    target = target.replace(shape=source.shape, rotation=_limit_rotation(source.rotation, target.rotation, options))

    if options.region == "all":
        return target
    pose = {"rotation": target.rotation, "neck": target.neck, "translation": target.translation}
    if options.region == "pose":
        return source.replace(**pose)
    look = {"eyes": target.eyes, "eyelids": target.eyelids}
    if options.region == "expression":
        return source.replace(expression=target.expression, jaw=target.jaw, **look)
    keep = region_projection(head, options.region)
    expression = source.expression + (target.expression - source.expression) @ keep
    if options.region == "eyes":
        return source.replace(expression=expression, **look)
    if options.region == "mouth":
        return source.replace(expression=expression, jaw=target.jaw)
    raise ValueError(f"transfer: region must be all, pose, expression, eyes or mouth, got '{options.region}'.")


def scaled_motion(rest: HeadParams, driving: HeadParams, strength: float) -> HeadParams:
    """Driving parameters with their difference from `rest` (same batch) multiplied; 1 gives `driving` itself.

    Rotations scale by their angle from rest, the other fields linearly.
    """
    if strength == 1:
        return driving
    scaled = {}
    for name, value in driving.asdict().items():
        start = getattr(rest, name)
        scaled[name] = start + strength * (value - start)
    turn = matrix_to_axis_angle(axis_angle_to_matrix(driving.rotation) @ axis_angle_to_matrix(rest.rotation).mT)
    rotation = axis_angle_to_matrix(strength * turn) @ axis_angle_to_matrix(rest.rotation)
    return HeadParams(**{**scaled, "rotation": matrix_to_axis_angle(rotation)})


def region_projection(head: HeadModel, region: str) -> Tensor:
    """(E, E) matrix that keeps the part of an expression (as a row vector) made by one region's ARKit units.

    P = A^+ diag(units of the region) A,   A (52, E): expression of each unit
    """
    units = head.arkit(torch.eye(len(arkit.NAMES), device=head.v_template.device))["expression"]
    mouth = torch.tensor([name.startswith(MOUTH_UNITS) for name in arkit.NAMES], device=units.device)
    kept = mouth if region == "mouth" else ~mouth
    return torch.linalg.pinv(units.double()).to(units) @ (units * kept[:, None])


def soft_limit(values: Tensor, limit: float, *, knee: float = 0.6) -> Tensor:
    """Values unchanged up to `knee * limit`, then bent smoothly so that |result| < limit; slope 1 at the knee."""
    start = knee * limit
    room = limit - start
    size = values.abs()
    bent = start + room * torch.tanh((size - start) / room)
    return torch.where(size <= start, values, values.sign() * bent)


def _relative(
    head: HeadModel, source: HeadParams, driving: HeadParams, rest: HeadParams, options: TransferOptions
) -> HeadParams:
    gain = options.expression_gain
    turn = axis_angle_to_matrix(driving.rotation) @ axis_angle_to_matrix(rest.rotation).mT
    rotation = matrix_to_axis_angle(turn @ axis_angle_to_matrix(source.rotation))

    # Both eyes get the mean: detectors disagree on single irises, and eyes that part look wrong at once.
    gaze = (driving.eyes - rest.eyes).unflatten(-1, (2, 3)).mean(1)
    gaze = soft_limit(gaze, math.radians(options.gaze_limit))

    turned = source.replace(rotation=rotation, neck=source.neck + driving.neck - rest.neck)
    return turned.replace(
        expression=source.expression + gain * (driving.expression - rest.expression),
        jaw=source.jaw + gain * (driving.jaw - rest.jaw),
        eyes=source.eyes + torch.cat([gaze, gaze], -1),
        eyelids=_lids(source.eyelids, driving.eyelids, rest.eyelids, options.openness_limit),
        translation=_translation(head, source, turned, driving, rest, options),
    )


def _lids(source: Tensor, driving: Tensor, rest: Tensor, limit: float) -> Tensor:
    """(B, 2) eyelids such that the openness changes by the driver's ratio."""
    ratio = (1 - driving).clamp_min(0) / (1 - rest).clamp_min(0.25)
    # Small differences between the eyes are noise, large ones a wink.
    mean = ratio.mean(-1, keepdim=True)
    wink = ratio - mean
    ratio = mean + wink.sign() * (wink.abs() - 0.12).clamp_min(0)
    # sign() of the wink is 0 at rest, so that driving == rest gives exactly 1
    return 1 - (1 - source) * ratio.clamp(0, limit)


def _translation(
    head: HeadModel,
    source: HeadParams,
    turned: HeadParams,
    driving: HeadParams,
    rest: HeadParams,
    options: TransferOptions,
) -> Tensor:
    """(B, 3) such that the face follows the driver's face: the depth by ratio, the place in the picture by face sizes.

    The head turns about the root joint, an arm's length below the face, so that a few degrees between the fits of
    source and driver would shift the face. Where the source's own face goes when it is `turned` is therefore taken off.
    Lengths scale with the eye distance: one camera cannot tell a small head from a distant one.
    """
    (face, own), (carried, _) = _places(head, source), _places(head, turned)
    (after, _), (before, width) = _places(head, driving), _places(head, rest)
    step = (after - before) * (own / width) - (carried - face)
    zoom = (1 + step[:, 2:] / face[:, 2:]).clamp_min(1e-3).log()
    depth = soft_limit(zoom, options.zoom_limit).exp()
    aside = step[:, :2]
    length = aside.norm(dim=-1, keepdim=True)
    limited = soft_limit(length, options.translation_limit) / length.clamp_min(1e-12)
    aside = aside * torch.where(length > 0, limited, torch.ones_like(length))
    return source.translation + face * (depth - 1) + torch.nn.functional.pad(aside, (0, 1))


def _places(head: HeadModel, params: HeadParams) -> tuple[Tensor, Tensor]:
    """World place (B, 3) of the middle of the face, and the eye distance (B, 1), in metres.

    A head without eye joints has its root for a face, and 1 for their distance; one without landmarks, its eyes.
    """
    joints = head.joints(params)
    if head.n_joints < 5:
        return joints[:, 0], torch.ones_like(joints[:, 0, :1])
    eyes = joints[:, 3:5].mean(1)
    width = (joints[:, 3] - joints[:, 4]).norm(dim=-1, keepdim=True)
    if "mediapipe" in head.embeddings:
        embedding = head.embeddings["mediapipe"]
        assert isinstance(embedding, Embedding)
        middle = embedding.points(head.v_template[None])[0].mean(0)
        rest_eyes = head.joint_template[3:5]
        offset = (middle - rest_eyes.mean(0)) / (rest_eyes[0] - rest_eyes[1]).norm() * width
        turn = axis_angle_to_matrix(params.rotation) @ axis_angle_to_matrix(params.neck)
        eyes = eyes + (turn @ offset[..., None])[..., 0]
    return eyes, width


def _limit_rotation(source: Tensor, target: Tensor, options: TransferOptions) -> Tensor:
    """Target rotation with yaw, pitch and roll from the source's pose soft-limited."""
    at_rest = axis_angle_to_matrix(source)
    angles = matrix_to_euler(axis_angle_to_matrix(target) @ at_rest.mT)
    limits = (options.yaw_limit, options.pitch_limit, options.roll_limit)
    yaw, pitch, roll = (soft_limit(angle, limit) for angle, limit in zip(angles.unbind(-1), limits, strict=True))
    return matrix_to_axis_angle(euler_to_matrix(yaw, pitch, roll) @ at_rest)
