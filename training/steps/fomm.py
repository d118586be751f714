"""Training FOMM (Siarohin et al. 2019, section 3 and its supplement): pairs of frames of a clip, source and driving.

    I    = Fomm(S, keypoints of D)
    loss = perceptual P(I, D) + generator_gan (1 - C(I))^2 + feature_matching M + equivariance of the keypoints of D
    loss of the critic C = discriminator_gan ((1 - C(D))^2 + C(I)^2)

P is VGG-19 on a Gaussian pyramid. As in the published code, `generator_gan: 0` leaves out the critic altogether,
feature matching too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...nets.discriminators import FommDiscriminator, FommDiscriminatorConfig
from ...nets.fomm import Fomm, FommConfig
from ...nets.generator import Output, SourceState
from ...nets.keypoints import Motion
from ...nets.losses import PerceptualLoss, critic_loss, feature_matching, fooling_loss, gaussian_pyramid
from ...nets.perceptual import FIRST
from ...third_party.backbones import load_backbone
from ..batch import Batch
from ..keypoint_losses import RandomTransform, TransformParams, equivariance
from ..step import Judged, Losses, Step
from .pwm import PerceptualParams, psnr


@dataclass(frozen=True)
class FommWeights:
    """`loss_weights` of FOMM's YAML files; 0 leaves a term out."""

    perceptual: float = 10.0
    """Of every layer and scale."""
    generator_gan: float = 1.0
    discriminator_gan: float = 1.0
    feature_matching: float = 10.0
    """Of every layer."""
    equivariance_value: float = 10.0
    equivariance_jacobian: float = 10.0
    l1: float = 0.0
    """Mean difference of the pixels; not in the paper, leads faster in short trainings."""


@dataclass(frozen=True)
class FommSettings:
    model_params: FommConfig = field(default_factory=FommConfig)
    loss_weights: FommWeights = FommWeights()
    perceptual_params: PerceptualParams = field(default_factory=lambda: PerceptualParams(scales=4))
    transform_params: TransformParams = field(default_factory=TransformParams)
    discriminator_params: FommDiscriminatorConfig = field(default_factory=lambda: FommDiscriminatorConfig(use_kp=True))


@dataclass
class Reenacted:
    """One forward pass."""

    state: SourceState
    motion: Motion
    output: Output


class FommStep(Step):
    """See the module's docstring. `DaGanStep` adds its terms in `more_losses`."""

    Settings: ClassVar[type[Any]] = FommSettings
    moments: ClassVar[int] = 2

    model: nn.Module

    def __init__(self, settings: Any = None) -> None:
        super().__init__()
        settings = self.Settings() if settings is None else settings
        self.settings = settings
        self.model = self.build(settings)
        weights = settings.loss_weights
        self.perceptual: PerceptualLoss | None = None
        if weights.perceptual:
            params = settings.perceptual_params
            backbone = load_backbone(params.backbone, FIRST)
            self.perceptual = PerceptualLoss(backbone, params.scales, relative=params.relative, shrink=gaussian_pyramid)
        self.critic: FommDiscriminator | None = None
        if weights.generator_gan:
            common = settings.model_params.common_params
            self.critic = FommDiscriminator(common.num_channels, common.num_kp, settings.discriminator_params)

    def build(self, settings: Any) -> nn.Module:
        """The network that is trained."""
        return Fomm(settings.model_params)

    def losses(self, batch: Batch) -> tuple[Losses, Reenacted]:
        transform = RandomTransform(len(batch), self.settings.transform_params, batch.driving.image.device)
        return self.losses_under(batch, transform)

    def losses_under(self, batch: Batch, transform: RandomTransform) -> tuple[Losses, Reenacted]:
        """`losses` with a given transformation for the equivariance."""
        target, weights = batch.driving.image, self.settings.loss_weights
        made = reenact(self.model, batch.source.image, target)
        image = made.output.image
        self.mark("forward")
        losses: Losses = {}
        if weights.l1:
            losses["l1"] = weights.l1 * (image - target).abs().mean()
        if self.perceptual is not None:
            losses["perceptual"] = weights.perceptual * self.perceptual(image, target)
        if self.critic is not None:
            fake = self.critic(image, made.motion.value)
            losses["generator_gan"] = weights.generator_gan * fooling_loss(fake[0][-1], "least_squares")
            if weights.feature_matching:
                with torch.no_grad():
                    real = self.critic(target, made.motion.value)
                losses["feature_matching"] = weights.feature_matching * feature_matching(real, fake)
        if weights.equivariance_value or weights.equivariance_jacobian:
            moved = self.model.read_motion(transform.picture(target))  # type: ignore[operator]
            value, jacobian = equivariance(made.motion, moved, transform)
            losses["equivariance_value"] = weights.equivariance_value * value
            if jacobian is not None:
                losses["equivariance_jacobian"] = weights.equivariance_jacobian * jacobian
        return losses | self.more_losses(batch, made), made

    def more_losses(self, batch: Batch, made: Reenacted) -> Losses:
        """Terms of methods that build on FOMM."""
        return {}

    def critic_losses(self, batch: Batch, shared: Reenacted) -> Losses:
        assert self.critic is not None
        keypoints = shared.motion.value
        real = self.critic(batch.driving.image, keypoints)[0][-1]
        fake = self.critic(shared.output.image.detach(), keypoints)[0][-1]
        weight = self.settings.loss_weights.discriminator_gan
        return {"discriminator_gan": weight * critic_loss(real, fake, "least_squares")}

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        """PSNR and L1 of the output, and of the source unmoved, which it has to beat."""
        source, target = batch.source.image, batch.driving.image
        made = reenact(model, source, target)
        rows = {"": made.output.image, "_source": source}
        metrics = {f"psnr{name}": psnr(image, target) for name, image in rows.items()}
        metrics |= {f"l1{name}": (image - target).abs().mean((1, 2, 3)) for name, image in rows.items()}
        generator: Any = model.generator
        pictures = {"source": source, "driving": target, "output": made.output.image}
        pictures["warped source"] = generator.dense_motion_network.deformed(source, made.output.dense)
        return Judged(metrics, pictures)


def reenact(model: Any, source: Tensor, driving: Tensor) -> Reenacted:
    """The sources (B, 3, H, W) under the absolute motion of as many driving pictures."""
    state = model.encode_source(source)
    motion = model.read_motion(driving)
    return Reenacted(state, motion, model.render(state, motion))
