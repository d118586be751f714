"""Training PWM: self-reenactment of pairs of frames of a clip (section 3.4 of the paper and its supplement).

    I_o, I_w = Pwm(I_s, guidance of the two heads)
    loss     = sum over I in {I_o, I_w} of  l1 |I - I_d| + perceptual P(I, I_d) + adversarial G(I) + feature_matching M

The paper has no L1 term and gives no weights; configs/pwm_*.yaml say ours. The driving head takes the shape of the
source, as it does across identities.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...geom.camera import Camera
from ...geom.head import HeadParams, load_head
from ...nets.discriminators import Judgement, MultiScalePatchGan, PatchGanConfig
from ...nets.losses import Adversary, PerceptualLoss, critic_loss, feature_matching, fooling_loss
from ...nets.perceptual import LAST
from ...nets.pwm import Guide, Posed, Pwm, PwmConfig, PwmOutput, extrapolate
from ...render.guidance import displacement_map, smooth_codes
from ...render.warp import warp
from ...third_party.backbones import BackboneName, load_backbone
from ..batch import Batch, View
from ..step import Judged, Losses, Step


@dataclass(frozen=True)
class ImageWeights:
    """Of the terms of one picture; 0 leaves a term out."""

    l1: float = 0.0
    perceptual: float = 0.0
    adversarial: float = 0.0
    feature_matching: float = 0.0


@dataclass(frozen=True)
class PwmWeights:
    output: ImageWeights = ImageWeights(perceptual=10.0, adversarial=1.0, feature_matching=10.0)
    """I_o"""
    warped: ImageWeights = ImageWeights(perceptual=10.0, adversarial=1.0, feature_matching=10.0)
    """I_w"""

    def any(self, *terms: str) -> bool:
        """Whether one of the terms is wanted for one of the pictures."""
        return any(getattr(weights, term) > 0 for weights in (self.output, self.warped) for term in terms)


@dataclass(frozen=True)
class PerceptualParams:
    backbone: BackboneName = "vgg19"
    """vgg19 needs torchvision's file (third_party/vgg.md); efficientnet_lite0 comes with the extra `train`."""
    scales: int = 3
    """Pictures compared: 1, 1/2, 1/4 ... of the size."""
    relative: bool = False
    """Divide every layer's term by the size of its features. For efficientnet_lite0, whose layers differ."""


@dataclass(frozen=True)
class PwmSettings:
    model_params: PwmConfig = field(default_factory=PwmConfig)
    loss_weights: PwmWeights = PwmWeights()
    perceptual_params: PerceptualParams = PerceptualParams()
    discriminator_params: PatchGanConfig = field(default_factory=PatchGanConfig)
    adversary: Adversary = "hinge"


class PwmStep(Step):
    """See the module's docstring. Other terms (depth, normals) are added by overriding `image_losses`."""

    Settings: ClassVar[type[Any]] = PwmSettings
    moments: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset({"params", "camera"})

    model: Pwm
    critic: MultiScalePatchGan | None

    def __init__(self, settings: PwmSettings = PwmSettings()) -> None:
        super().__init__()
        self.settings = settings
        weights = settings.loss_weights
        self.model = Pwm(settings.model_params)
        self.head = load_head(settings.model_params.head).requires_grad_(False)
        Guide(self.head, settings.model_params)  # refuses codes for another number of vertices
        if self.model.codes is not None:
            codes = smooth_codes(self.head.v_template, settings.model_params.code_channels)
            self.model.codes = nn.Parameter(codes)
        self.perceptual: PerceptualLoss | None = None
        if weights.any("perceptual"):
            params = settings.perceptual_params
            backbone = load_backbone(params.backbone, LAST)
            self.perceptual = PerceptualLoss(backbone, params.scales, relative=params.relative)
        if weights.any("adversarial", "feature_matching"):
            self.critic = MultiScalePatchGan(settings.discriminator_params)

    def losses(self, batch: Batch) -> tuple[Losses, PwmOutput]:
        output = self.generate(self.model, batch)
        self.mark("forward")
        target = batch.driving.image
        weights = self.settings.loss_weights
        real: Judgement | None = None
        if self.critic is not None:
            with torch.no_grad():
                real = self.critic(target)
        losses: Losses = {}
        pictures = {"output": (output.image, weights.output), "warped": (output.warped, weights.warped)}
        for name, (image, wanted) in pictures.items():
            terms = self.image_losses(image, target, real, wanted)
            losses |= {f"{name}_{term}": value for term, value in terms.items()}
        return losses, output

    def image_losses(self, image: Tensor, target: Tensor, real: Judgement | None, weights: ImageWeights) -> Losses:
        """Weighted terms of one picture. `real` is the critic's judgement of `target`, where there is a critic."""
        losses: Losses = {}
        if weights.l1:
            losses["l1"] = weights.l1 * (image - target).abs().mean()
        if weights.perceptual and self.perceptual is not None:
            losses["perceptual"] = weights.perceptual * self.perceptual(image, target)
        if self.critic is not None and real is not None and (weights.adversarial or weights.feature_matching):
            fake = self.critic(image)
            if weights.adversarial:
                fooled = torch.stack([fooling_loss(scale[-1], self.settings.adversary) for scale in fake])
                losses["adversarial"] = weights.adversarial * fooled.sum()
            if weights.feature_matching:
                losses["feature_matching"] = weights.feature_matching * feature_matching(real, fake)
        return losses

    def critic_losses(self, batch: Batch, shared: PwmOutput) -> Losses:
        assert self.critic is not None
        weights = self.settings.loss_weights
        real = self.critic(batch.driving.image)
        losses: Losses = {}
        pictures = {"output": (shared.image, weights.output), "warped": (shared.warped, weights.warped)}
        for name, (image, wanted) in pictures.items():
            if wanted.adversarial or wanted.feature_matching:
                fake = self.critic(image.detach())
                terms = [critic_loss(r[-1], f[-1], self.settings.adversary) for r, f in zip(real, fake, strict=True)]
                losses[f"critic_{name}"] = torch.stack(terms).sum()
        return losses

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        """PSNR of the output, of I_w, and of what they have to beat: the source picture unmoved, and the source warped
        as the mesh moves, plain and with the motion continued beyond the head. `face` counts the pixels of the head."""
        assert isinstance(model, Pwm)
        output = self.generate(model, batch)
        source, target = batch.source.image, batch.driving.image
        rows = {"": output.image, "_warped": output.warped, "_source": source}
        mask, plain, continued = self._geometry(batch)
        rows |= {"_geometry": warp(source, plain), "_continued": warp(source, continued)}
        metrics = {"l1": (output.image - target).abs().mean((1, 2, 3))}
        for name, image in rows.items():
            metrics[f"psnr{name}"] = psnr(image, target)
            metrics[f"psnr_face{name}"] = psnr(image, target, mask)
        pictures = {
            "source": source,
            "driving": target,
            "output": output.image,
            "warped source": output.warped,
            "geometry": rows["_continued"],
        }
        return Judged(metrics, pictures)

    def generate(self, model: Pwm, batch: Batch) -> PwmOutput:
        """The network's frames of a batch of pairs."""
        guide = Guide(self.head, model.config)
        source, driving = self._poses(guide, batch)
        drawn = guide.source(source, model.codes)
        output: PwmOutput = model(batch.source.image, guide.driving(source, driving, model.codes), drawn)
        return output

    def _poses(self, guide: Guide, batch: Batch) -> tuple[Posed, Posed]:
        (source, source_camera), (driving, camera) = _known(batch.source), _known(batch.driving)
        size = batch.source.image.shape[2], batch.source.image.shape[3]
        same_person = driving.replace(shape=source.shape)
        with torch.no_grad():
            return guide.pose(source, source_camera, size), guide.pose(same_person, camera, size)

    def head_pixels(self, batch: Batch) -> Tensor:
        """(B, 1, H, W) bool: which pixels of the driving pictures show the head, without neck and bust."""
        return self._geometry(batch)[0]

    def _geometry(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The driving head's pixels (B, 1, H, W) bool; its displacement to the source, plain and continued."""
        guide = Guide(self.head, PwmConfig())
        source, driving = self._poses(guide, batch)
        fragments = guide.rasterize(driving, driving.size)
        mask = (fragments.face_id >= 0)[:, None]
        meshes = source.vertices, driving.vertices, guide.faces
        plain = displacement_map(*meshes, driving.size, perspective=driving.perspective, fragments=fragments)
        return mask, plain, extrapolate(plain, mask)


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B,) dB of pictures in [0, 1], over the pixels of a mask (B, 1, H, W) if one is given."""
    error = (image - target).square().mean(1, keepdim=True)
    weight = torch.ones_like(error) if mask is None else mask.to(error.dtype)
    mean = (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1)
    return -10 * mean.clamp_min(1e-10).log10()


def _known(view: View) -> tuple[HeadParams, Camera]:
    if view.params is None or view.camera is None:
        missing = [f.name for f in fields(View) if f.name in PwmStep.needs and getattr(view, f.name) is None]
        raise ValueError(f"PWM learns from fitted clips, and these lack {' and '.join(missing)}; run `headwarp fit`.")
    return view.params, view.camera
