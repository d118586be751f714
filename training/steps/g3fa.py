"""Training G3FA (eq. 12 of the paper, and what its code adds): pairs of frames of a clip.

    I = G3fa(I_s, keypoints of I_d)
    loss = perceptual P(I, I_d) + adversarial L_GAN + feature_matching M + equivariance of the keypoints
    L_GAN judges D_total = sum of lambda_i D_i over picture, depth and normals (`nets.geometry_critics`)

P is FOMM's: VGG-19, four scales, five layers. The paper has no feature matching; the published code has, and sums the
losses as they are here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...nets.g3fa import G3fa, G3faConfig, G3faOutput
from ...nets.geometry_critics import Ensemble, Geometry, Verdict
from ...nets.keypoints import Motion
from ...nets.losses import PerceptualLoss, feature_matching, gaussian_pyramid
from ...nets.perceptual import FIRST
from ...third_party.backbones import load_backbone
from ..batch import Batch
from ..keypoint_losses import RandomTransform, TransformParams, equivariance
from ..step import Judged, Losses, Step
from .geometry import GeometryParams, geometry_needs, head_of, open_renderer
from .pwm import PerceptualParams, psnr


@dataclass(frozen=True)
class G3faWeights:
    """Of the published YAML; 0 leaves a term out."""

    perceptual: float = 10.0
    adversarial: float = 1.0
    """generator_gan"""
    feature_matching: float = 10.0
    equivariance_value: float = 10.0
    equivariance_jacobian: float = 10.0
    l1: float = 0.0
    """Mean difference of the output; not in the paper."""
    mini: float = 0.0
    """The same of FNeVR's picture from the volume alone (`mini_decoder`)."""


@dataclass(frozen=True)
class G3faSettings:
    model_params: G3faConfig = field(default_factory=G3faConfig)
    loss_weights: G3faWeights = G3faWeights()
    perceptual_params: PerceptualParams = field(default_factory=lambda: PerceptualParams(scales=4))
    transform_params: TransformParams = field(default_factory=TransformParams)
    geometry_params: GeometryParams | None = field(default_factory=GeometryParams)
    """The critics. null: no adversary at all."""


@dataclass
class _Shared:
    """Of a forward pass, for the critics."""

    image: Tensor
    geometry: Geometry
    real_geometry: Geometry


class G3faStep(Step):
    """See the module's docstring."""

    Settings: ClassVar[type[Any]] = G3faSettings

    model: G3fa
    critic: Ensemble | None

    def __init__(self, settings: G3faSettings = G3faSettings()) -> None:
        super().__init__()
        self.settings = settings
        weights = settings.loss_weights
        self.model = G3fa(settings.model_params)
        self.perceptual: PerceptualLoss | None = None
        if weights.perceptual:
            params = settings.perceptual_params
            backbone = load_backbone(params.backbone, FIRST)
            self.perceptual = PerceptualLoss(backbone, params.scales, relative=params.relative, shrink=gaussian_pyramid)
        geometry = settings.geometry_params
        self.critic = None
        if geometry is not None and (weights.adversarial or weights.feature_matching):
            self.renderer = open_renderer(geometry)
            self.critic = Ensemble(geometry.ensemble, from_picture=self.renderer.from_picture)
            self.needs = geometry_needs(geometry)  # type: ignore[misc]

    def losses(self, batch: Batch) -> tuple[Losses, _Shared | None]:
        source, target = batch.source.image, batch.driving.image
        motion = self.model.read_motion(target)
        output = self.model.render(self.model.encode_source(source), motion)
        self.mark("forward")
        weights = self.settings.loss_weights
        losses: Losses = {}
        if weights.l1:
            losses["l1"] = weights.l1 * (output.image - target).abs().mean()
        if weights.mini and output.mini is not None:
            losses["mini"] = weights.mini * (output.mini - target).abs().mean()
        if self.perceptual is not None:
            losses["perceptual"] = weights.perceptual * self.perceptual(output.image, target)
        losses |= self._keypoint_losses(target, motion)
        if self.critic is None:
            return losses, None
        verdicts, shared = self._judge_both(batch, output)
        if weights.adversarial:
            losses["adversarial"] = weights.adversarial * self.critic.fooling(verdicts[1])
        if weights.feature_matching:
            matching = feature_matching(verdicts[0].features, verdicts[1].features)
            losses["feature_matching"] = weights.feature_matching * matching
        return losses, shared

    def critic_losses(self, batch: Batch, shared: _Shared | None) -> Losses:
        assert self.critic is not None
        assert shared is not None
        real = self.critic(batch.driving.image, shared.real_geometry)
        fake = self.critic(shared.image.detach(), shared.geometry.detach())
        return {"critic": self.critic.telling(real, fake)}

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        """PSNR and L1 of the output, and of the unmoved source, which it has to beat."""
        assert isinstance(model, G3fa)
        source, target = batch.source.image, batch.driving.image
        output = model.render(model.encode_source(source), model.read_motion(target))
        metrics = {
            "psnr": psnr(output.image, target),
            "psnr_source": psnr(source, target),
            "l1": (output.image - target).abs().mean((1, 2, 3)),
        }
        return Judged(metrics, {"source": source, "driving": target, "output": output.image})

    def _keypoint_losses(self, target: Tensor, motion: Motion) -> Losses:
        weights = self.settings.loss_weights
        if not weights.equivariance_value and not weights.equivariance_jacobian:
            return {}
        transform = RandomTransform(len(target), self.settings.transform_params, target.device)
        value, jacobian = equivariance(motion, self.model.read_motion(transform.picture(target)), transform)
        losses = {"equivariance_value": weights.equivariance_value * value}
        if jacobian is not None:
            losses["equivariance_jacobian"] = weights.equivariance_jacobian * jacobian
        return losses

    def _judge_both(self, batch: Batch, output: G3faOutput) -> tuple[tuple[Verdict, Verdict], _Shared]:
        """Verdicts on the real and the generated pictures."""
        assert self.critic is not None
        target = batch.driving.image
        head = head_of(batch)
        with torch.no_grad():
            real_geometry = self.renderer(target, *head)
            real = self.critic(target, real_geometry)
        geometry = self.critic.geometry_of(self.renderer, output.image, *head)
        fake = self.critic(output.image, geometry)
        return (real, fake), _Shared(output.image, geometry, real_geometry)
