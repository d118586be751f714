"""Training the regressor: crops of synthetic people, of whom everything is known.

    wide picture --a crop of its own in every step: `training.crops`--> network --> errors

All errors are of lengths on the face where that makes sense, so that the terms share a scale: the neutral face, the
expression on the true face, the head's rotation, where it is and how large, gaze and lids.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...geom.head import HeadParams, load_head
from ...geom.landmarks import Embedding
from ...geom.mirror import Mirror
from ...geom.precision import exact
from ...geom.rotation import axis_angle_to_matrix
from ...nets.regressor import HeadCodes, HeadRegressor, RegressorConfig, between_eyes, looking
from ..batch import Batch, View
from ..crops import Variation, crop_heads, vary_heads
from ..step import Judged, Losses, Step


@dataclass(frozen=True)
class RegressorWeights:
    shape: float = 0.5
    """On the mean distance of the neutral faces, millimetres."""
    expression: float = 0.5
    """The same of the expressions on the true face, jaw and lids included."""
    rotation: float = 0.3
    """On the angle, degrees."""
    place: float = 20.0
    """On the place in the crop, in half sides, and on the logarithm of the size."""
    gaze: float = 0.1
    """Degrees, while the eyes are open."""
    eyelids: float = 3.0
    coefficients: float = 0.05
    """On the differences of coefficients, which say little by themselves."""


@dataclass(frozen=True)
class RegressorSettings:
    model_params: RegressorConfig = field(default_factory=RegressorConfig)
    loss_weights: RegressorWeights = field(default_factory=RegressorWeights)
    variation: Variation = field(default_factory=Variation)
    """Of the crops while training."""


class RegressorStep(Step):
    """See the module docstring."""

    Settings: ClassVar[type[Any]] = RegressorSettings
    moments: ClassVar[int] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"params", "camera", "landmarks"})

    model: HeadRegressor

    def __init__(self, settings: RegressorSettings = RegressorSettings()) -> None:
        super().__init__()
        self.settings = settings
        head = load_head()
        embedding = head.embeddings["mediapipe"]
        assert isinstance(embedding, Embedding)
        self.head = head.subset(embedding.corners.unique())
        self.mirror = Mirror(head)
        self.model = HeadRegressor(replace(settings.model_params, head_sha256=head.sha256))

    def losses(self, batch: Batch) -> tuple[Losses, None]:
        crops = vary_heads(batch.views[0], self.model.config, self.settings.variation, self.mirror)
        codes = self.model(crops.image)
        self.mark("forward")
        errors = {name: values.mean() for name, values in self.errors(codes, crops).items()}
        weights = self.settings.loss_weights
        return {name: getattr(weights, name) * value for name, value in errors.items()}, None

    @exact
    def errors(self, codes: HeadCodes, crops: View) -> dict[str, Tensor]:
        """(B,) of every term of `RegressorWeights`, in its unit."""
        assert crops.params is not None
        assert crops.camera is not None
        true, camera, side = crops.params, crops.camera, crops.image.shape[-1]
        neutral = HeadParams.zeros(self.head, len(true)).to(true.shape.device)
        shapes = [self.head.rest_vertices(neutral.replace(shape=shape)) for shape in (codes.shape, true.shape)]
        shown = true.replace(expression=codes.expression, jaw=codes.jaw, eyelids=codes.eyelids)
        faces = [self._face(params) for params in (shown, true)]
        turned = looking(camera, side) @ codes.turn
        seen = camera.project(between_eyes(self.head, true)[:, None])[:, 0]
        size = torch.log(camera.focal / (seen[:, 2] * side))
        place = torch.cat([codes.place - (seen[:, :2] * (2 / side) - 1), (codes.size - size)[:, None]], 1)
        gaze = torch.rad2deg((codes.gaze - true.eyes.unflatten(1, (2, 3)).mean(1)[:, :2]).abs()).mean(1)
        coefficients = torch.cat([codes.shape - true.shape, codes.expression - true.expression], 1)
        return {
            "shape": 1e3 * (shapes[0] - shapes[1]).norm(dim=-1).mean(1),
            "expression": 1e3 * (faces[0] - faces[1]).norm(dim=-1).mean(1),
            "rotation": torch.rad2deg(_angle(turned, self._turn(true))),
            "place": place.abs().mean(1),
            "gaze": gaze * (true.eyelids.amax(1) < 0.6),
            "eyelids": (codes.eyelids - true.eyelids).abs().mean(1),
            "coefficients": coefficients.square().mean(1),
        }

    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        """The errors above, and a flat face's: the mean head without expression."""
        assert isinstance(model, HeadRegressor)
        crops = crop_heads(batch.views[0], model.config)
        codes = model(crops.image)
        plain = replace(codes, shape=0 * codes.shape, expression=0 * codes.expression, jaw=0 * codes.jaw)
        errors, least = self.errors(codes, crops), self.errors(plain, crops)
        metrics = {**errors, "shape_of_mean": least["shape"], "no_expression": least["expression"]}
        return Judged(metrics, {"crop": crops.image})

    def _face(self, params: HeadParams) -> Tensor:
        """(B, V, 3) without pose and gaze."""
        still = torch.zeros_like(params.jaw)
        return self.head(
            params.replace(rotation=still, neck=still, translation=still, eyes=torch.zeros_like(params.eyes))
        )

    def _turn(self, params: HeadParams) -> Tensor:
        """(B, 3, 3) rotation of the head in the world, the neck's included."""
        return axis_angle_to_matrix(params.rotation) @ axis_angle_to_matrix(params.neck)


def _angle(a: Tensor, b: Tensor) -> Tensor:
    """(B,) radians between rotation matrices, by the chord, whose gradient is finite at 0."""
    chord = ((a - b).square().sum((1, 2)) + 1e-10).sqrt() / (2 * 2**0.5)
    return 2 * torch.asin(chord.clamp_max(1 - 1e-6))
