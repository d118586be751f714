"""Training DaGAN (Hong et al. 2022, section 3.4): FOMM's step with the depth network frozen, and terms on keypoints.

    loss = FOMM's + kp_distance of source and driving keypoints [+ kp_scale + depth_constraint, off in the paper]

The published code counts keypoints that are nearer than 0.2 with sign(), which has no gradient, so it only logs a
number; the paper wants them pushed apart. `kp_distance: hinge` does that (`keypoint_losses.crowding`), `official` is
the published formula.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...nets.dagan import DaGan, DaGanConfig
from ...nets.depth import FaceDepth
from ...nets.discriminators import FommDiscriminatorConfig
from ...nets.keypoints import Motion
from ...nets.model_file import load_model
from ..batch import Batch
from ..keypoint_losses import TransformParams, crowding
from ..step import Losses
from .fomm import FommStep, FommWeights, Reenacted
from .pwm import PerceptualParams

THRESHOLD = 0.2
"""Distance below which keypoints are too near; 2 is the picture's width."""


@dataclass(frozen=True)
class DaGanWeights(FommWeights):
    """`loss_weights` of DaGAN's YAML files."""

    kp_distance: float = 10.0
    kp_scale: float = 0.0
    """Off in the paper: ratios of neighbouring keypoints' distances to the centre, as the published code has it."""
    depth_constraint: float = 0.0
    """Off in the paper: mean difference of the disparities of output and driving frame."""


@dataclass(frozen=True)
class DaGanSettings:
    model_params: DaGanConfig = field(default_factory=DaGanConfig)
    loss_weights: DaGanWeights = DaGanWeights()
    perceptual_params: PerceptualParams = field(default_factory=lambda: PerceptualParams(scales=4))
    transform_params: TransformParams = field(default_factory=TransformParams)
    discriminator_params: FommDiscriminatorConfig = field(default_factory=lambda: FommDiscriminatorConfig(use_kp=True))
    depth_model: str | None = None
    """Model file of the face depth network, from `headwarp convert depth` or a training of configs/face_depth.yaml.
    Its settings stand in for `model_params.depth_params`. None only where no part of the model uses depth."""
    kp_distance: Literal["hinge", "official"] = "hinge"
    """Of the published formula nothing can be learnt."""


class DaGanStep(FommStep):
    """See the module's docstring."""

    Settings: ClassVar[type[Any]] = DaGanSettings

    model: DaGan

    def build(self, settings: DaGanSettings) -> DaGan:
        params = settings.model_params
        if not params.uses_depth:
            return DaGan(params)
        if settings.depth_model is None:
            raise ValueError(
                "DaGAN needs a trained face depth network: set depth_model to a file of `headwarp convert depth` or of "
                "a training of configs/face_depth.yaml; or switch depth off (model_params.keypoint_input: rgb and "
                "model_params.attention: none or self)."
            )
        trained = load_model(settings.depth_model)
        if not isinstance(trained, FaceDepth):
            raise ValueError(f"depth_model: {settings.depth_model} holds no face depth network.")
        model = DaGan(replace(params, depth_params=replace(trained.config, pose=False)))
        assert model.depth is not None
        weights = trained.state_dict()
        model.depth.load_state_dict({name: weights[name] for name in model.depth.state_dict()})
        return model

    def more_losses(self, batch: Batch, made: Reenacted) -> Losses:
        weights: DaGanWeights = self.settings.loss_weights
        losses: Losses = {}
        if weights.kp_distance:
            distance = official_distance if self.settings.kp_distance == "official" else crowding
            near = [distance(motion.value, THRESHOLD) for motion in (made.state.motion, made.motion)]
            losses["kp_distance"] = weights.kp_distance * (near[0] + near[1])
        image = made.output.image
        if weights.kp_scale:
            seen = self.model.read_motion(image)
            losses["kp_scale"] = weights.kp_scale * scale_differences(made.state.motion, made.motion, seen)
        if weights.depth_constraint:
            made_depth, true_depth = self.model.disparity(image), self.model.disparity(batch.driving.image)
            if made_depth is None or true_depth is None:
                raise ValueError("loss_weights.depth_constraint wants a model that uses depth.")
            losses["depth_constraint"] = weights.depth_constraint * (made_depth - true_depth).abs().mean()
        return losses


def official_distance(value: Tensor, threshold: float) -> Tensor:
    """DaGAN's published keypoint distance: mean over all K x K pairs of 1 - sign(distance - threshold), the diagonal
    lifted to 0; its gradient is zero everywhere."""
    away = value[:, :, None] - value[:, None]
    distance = (away.square().sum(-1) + 1e-8).sqrt()
    lifted = distance + threshold * torch.eye(value.shape[1]).to(value)
    return (1 - torch.sign(lifted - threshold)).mean()


def scale_differences(source: Motion, driving: Motion, made: Motion) -> Tensor:
    """DaGAN's `kp_scale`: r_k = |driving_k - its centre| / |source_k - centre of the output's keypoints|, and the mean
    of |r_k - r_(k+1)|."""

    def radius(value: Tensor, centre: Tensor) -> Tensor:
        return (value - centre.mean(1, keepdim=True)).square().sum(-1).sqrt()  # (B, K)

    ratio = radius(driving.value, driving.value) / radius(source.value, made.value)
    return (ratio[:, :-1] - ratio[:, 1:]).abs().mean()
