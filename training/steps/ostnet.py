"""Training OSTNet (section 3.4 of the paper and its appendix B): pairs of frames of a clip, the driving one stretched.

    D' = stretch(D, a, b), a and b anew in every step
    I, R = OstNet(S, D'), the output and the rectified driving picture
    loss = perceptual P(I, D) + rectified P(R, D) + equivariance of the keypoints of D' + crowding of the keypoints

P is FOMM's pyramid on VGG-19. With both parts of the model off and `stretch: 0` this trains the base as it is, without
an adversary; with `stretch: 0.3` it is the baseline of the paper's table 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...nets.generator import Output
from ...nets.keypoints import Motion
from ...nets.losses import PerceptualLoss, gaussian_pyramid
from ...nets.ostnet import PAPER, OstNet, OstNetConfig
from ...nets.perceptual import FIRST
from ...nets.scale import ScaledMotion, random_stretches, stretch
from ...third_party.backbones import load_backbone
from ..batch import Batch
from ..keypoint_losses import RandomTransform, TransformParams, crowding, equivariance
from ..step import Judged, Losses, Step
from .pwm import PerceptualParams, psnr


@dataclass(frozen=True)
class OstNetWeights:
    """The paper's lambdas are lost in its text; as FOMM and DaGAN have them."""

    perceptual: float = 10.0
    """Of the output, every layer and scale."""
    rectified: float = 10.0
    """The same of the rectified driving picture."""
    l1: float = 0.0
    """Mean difference of the output; not in the paper."""
    l1_rectified: float = 0.0
    """The same of the rectified driving picture."""
    equivariance_value: float = 10.0
    equivariance_jacobian: float = 10.0
    keypoint_distance: float = 10.0


@dataclass(frozen=True)
class OstNetSettings:
    model_params: OstNetConfig = PAPER
    loss_weights: OstNetWeights = OstNetWeights()
    perceptual_params: PerceptualParams = field(default_factory=lambda: PerceptualParams(scales=4))
    transform_params: TransformParams = field(default_factory=TransformParams)
    stretch: float = 0.3
    """Width and height of the driving picture change by factors up to 1 -+ this."""
    keypoint_threshold: float = 0.1
    """Distance below which keypoints are pushed apart; 2 is the picture's width."""


class OstNetStep(Step):
    """See the module's docstring."""

    Settings: ClassVar[type[Any]] = OstNetSettings
    moments: ClassVar[int] = 2

    model: OstNet

    def __init__(self, settings: OstNetSettings = OstNetSettings()) -> None:
        super().__init__()
        self.settings = settings
        self.model = OstNet(settings.model_params)
        weights = settings.loss_weights
        self.perceptual: PerceptualLoss | None = None
        if weights.perceptual or weights.rectified:
            params = settings.perceptual_params
            backbone = load_backbone(params.backbone, FIRST)
            self.perceptual = PerceptualLoss(backbone, params.scales, relative=params.relative, shrink=gaussian_pyramid)

    def losses(self, batch: Batch) -> tuple[Losses, Output]:
        source, target, amount = batch.source.image, batch.driving.image, self.settings.stretch
        driving = target
        if amount > 0:
            driving = stretch(target, *random_stretches(len(target), amount, target.device))
        state = self.model.encode_source(source)
        motion = self.model.read_motion(driving, state)
        output = self.model.render(state, motion)
        weights = self.settings.loss_weights
        self.mark("forward")
        losses: Losses = {}
        pictures = {"": (output.image, weights.l1, weights.perceptual)}
        if isinstance(motion, ScaledMotion) and motion.rectified is not None:
            pictures["_rectified"] = (motion.rectified, weights.l1_rectified, weights.rectified)
        for name, (image, l1, perceptual) in pictures.items():
            if l1:
                losses[f"l1{name}"] = l1 * (image - target).abs().mean()
            if perceptual and self.perceptual is not None:
                losses[f"perceptual{name}"] = perceptual * self.perceptual(image, target)
        return losses | self._keypoint_losses(driving, state.motion, motion), output

    def _keypoint_losses(self, driving: Tensor, source: Motion, motion: Motion) -> Losses:
        """Equivariance of the keypoints that are seen in the driving pictures, distances of those that move."""
        weights = self.settings.loss_weights
        losses: Losses = {}
        if weights.equivariance_value or weights.equivariance_jacobian:
            seen = motion.seen if isinstance(motion, ScaledMotion) and motion.seen is not None else motion
            transform = RandomTransform(len(driving), self.settings.transform_params, driving.device)
            value, jacobian = equivariance(seen, self.model.read_motion(transform.picture(driving)), transform)
            losses["equivariance_value"] = weights.equivariance_value * value
            if jacobian is not None:
                losses["equivariance_jacobian"] = weights.equivariance_jacobian * jacobian
        if weights.keypoint_distance:
            threshold = self.settings.keypoint_threshold
            near = crowding(source.value, threshold) + crowding(motion.value, threshold)
            losses["keypoint_distance"] = weights.keypoint_distance * near
        return losses

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        """Both of the paper's protocols: the driving frame as it is (`same`), and stretched by factors that are the
        same in every validation. `stretched` is what the rectified picture has to beat."""
        assert isinstance(model, OstNet)
        source, target = batch.source.image, batch.driving.image
        factors = fixed_stretches(len(target)).to(target)
        stretched = stretch(target, factors[:, 0], factors[:, 1])
        same, _ = reenact(model, source, target)
        output, motion = reenact(model, source, stretched)
        rows = {"": output.image, "_same": same.image, "_source": source, "_stretched": stretched}
        pictures = {"source": source, "truth": target, "driving": stretched}
        if isinstance(motion, ScaledMotion) and motion.rectified is not None:
            rows["_rectified"] = pictures["rectified"] = motion.rectified
        metrics = {f"psnr{name}": psnr(image, target) for name, image in rows.items()}
        metrics |= {f"l1{name}": (image - target).abs().mean((1, 2, 3)) for name, image in rows.items()}
        return Judged(metrics, pictures | {"output": output.image, "output, same scale": same.image})


def reenact(model: OstNet, source: Tensor, driving: Tensor) -> tuple[Output, Motion]:
    """The sources (B, 3, H, W) under the motion of as many driving pictures."""
    state = model.encode_source(source)
    motion = model.read_motion(driving, state)
    return model.render(state, motion), motion


def fixed_stretches(batch: int, amount: float = 0.3, seed: int = 0) -> Tensor:
    """(B, 2) factors of width and height that depend on the place in the batch and the seed only."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 2, generator=random) * (2 * amount) + (1 - amount)
