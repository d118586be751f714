"""Training Unsup3D: every picture by itself, through its own reconstruction (section 3.5 of the paper).

    loss = photometric(I') + flip photometric(I'_mirrored) + perceptual (the same on features) + smooth |steps of d|
         + roughness (steps of d)^2

One weight `flip` for the mirrored reconstruction, as in the published code. Time does not matter here: the moments of a
batch are just more pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nets.depth_metrics import erode, in_units_of, mad, side
from ...nets.unsup3d import (
    Factors,
    Pinhole,
    Rendered,
    Unsup3d,
    Unsup3dConfig,
    laplacian_nll,
    perceptual_nll,
    roughness,
    smoothness,
)
from ...render.synthetic import face_mask
from ...third_party.backbones import load_backbone
from ..batch import Batch, View
from ..step import Judged, Losses, Step


@dataclass(frozen=True)
class Unsup3dWeights:
    """lam_flip, lam_perc and lam_depth_sm of the published configurations."""

    flip: float = 0.5
    """Of the mirrored reconstruction. The published code starts with 1 for some objects other than faces."""
    perceptual: float = 1.0
    smooth: float = 0.0
    roughness: float = 0.0
    """Of the squared steps of depth; not in the published code. 100 keeps a small network from painting
    with normals."""


@dataclass(frozen=True)
class Unsup3dSettings:
    model_params: Unsup3dConfig = field(default_factory=Unsup3dConfig)
    loss_weights: Unsup3dWeights = Unsup3dWeights()
    start: Literal["published", "flat"] = "published"
    """How depth begins: as random layers have it, or as a plane (`Unsup3d.start_flat`)."""
    backbone: Literal["vgg19", "efficientnet_lite0"] = "vgg19"
    """Features at a quarter of the size are compared: relu3_3 of VGG, as published (with VGG-16)."""


class Unsup3dStep(Step):
    """See the module's docstring."""

    Settings: ClassVar[type[Any]] = Unsup3dSettings
    truth: ClassVar[frozenset[str]] = frozenset({"depth", "segmentation"})

    model: Unsup3d

    def __init__(self, settings: Unsup3dSettings = Unsup3dSettings()) -> None:
        super().__init__()
        self.settings = settings
        self.model = Unsup3d(settings.model_params)
        if settings.start == "flat":
            self.model.start_flat()
        self.backbone: nn.Module | None = None
        if settings.loss_weights.perceptual:
            self.backbone = load_backbone(settings.backbone, ("relu3_3",))

    def losses(self, batch: Batch) -> tuple[Losses, Rendered]:
        image = torch.cat([view.image for view in batch.views])
        factors, rendered = self.model(image)
        self.mark("forward")
        weights, config = self.settings.loss_weights, self.settings.model_params
        truth = image * 2 - 1
        fine: Tensor | None = None
        coarse: Tensor | None = None
        if config.confidence:
            fine, coarse = self.model.confidence(image)
        losses: Losses = {}
        for name, half, weight in self._halves(len(image)):
            sigma = None if fine is None else fine[half]
            losses[f"photometric{name}"] = weight * laplacian_nll(
                rendered.image[half], truth, rendered.mask[half], sigma
            )
        if self.backbone is not None:
            with torch.no_grad():
                wanted = self._features(truth)
            seen = self._features(rendered.image)
            for name, half, weight in self._halves(len(image)):
                sigma = None if coarse is None else coarse[half]
                loss = perceptual_nll(seen[half], wanted, rendered.mask[half], sigma)
                losses[f"perceptual{name}"] = weights.perceptual * weight * loss
        depth, extent = factors.free_depth[: len(image)], config.max_depth - config.min_depth
        if weights.smooth:
            losses["smooth"] = weights.smooth * smoothness(depth, extent)
        if weights.roughness:
            losses["roughness"] = weights.roughness * roughness(depth, extent)
        return losses, rendered

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        """L1 of the reconstruction; SIDE (times 100) and MAD (degrees) where the depth is known."""
        assert isinstance(model, Unsup3d)
        view = batch.source
        factors = model.factors(view.image)
        rendered = model.render(factors)
        seen = rendered.image * rendered.mask / 2 + 0.5
        error = (seen - view.image).abs() * rendered.mask
        metrics = {"l1": error.sum((1, 2, 3)) / (3 * rendered.mask.sum((1, 2, 3)))}
        if view.depth is not None and view.segmentation is not None and view.camera is not None:
            metrics |= depth_errors(rendered.depth, view, model.camera, rendered.mask)
        return Judged(metrics, pictures_of(view.image, factors, rendered, model))

    def _features(self, image: Tensor) -> Tensor:
        """(B, C, S/4, S/4) of pictures in [-1, 1]."""
        assert self.backbone is not None
        size = image.shape[-1] // 4
        return next(f for f in self.backbone(image / 2 + 0.5) if f.shape[-1] == size)

    def _halves(self, count: int) -> list[tuple[str, slice, float]]:
        return [("", slice(0, count), 1.0), ("_flip", slice(count, 2 * count), self.settings.loss_weights.flip)]


def true_depth(view: View, camera: Pinhole) -> tuple[Tensor, Tensor]:
    """What a perfect reconstruction of synthetic people is, in Unsup3D's units, and where it is judged.

    Returns:
        depth (B, 1, H, W), 1 off the face, and mask (B, 1, H, W) bool of the face.
    """
    assert view.depth is not None and view.segmentation is not None and view.camera is not None  # noqa: PT018
    mask = face_mask(view.segmentation) & view.depth.isfinite()
    own = torch.as_tensor(camera.focal, device=view.depth.device)
    return in_units_of(view.depth, mask, view.camera.focal, own), mask


def depth_errors(depth: Tensor, view: View, camera: Pinhole, covered: Tensor | None = None) -> dict[str, Tensor]:
    """SIDE times 100 and MAD in degrees of (B, 1, S, S) depth against a view's truth.

    Args:
        covered: (B, 1, S, S) where there is any depth; None: everywhere.
    """
    truth, mask = true_depth(view, camera)
    if covered is not None:
        mask = mask & (covered > 0)
    mask = erode(mask)
    angle = mad(F.normalize(camera.normals(depth), dim=1), F.normalize(camera.normals(truth), dim=1), mask)
    return {"side": 100 * side(depth, truth, mask), "mad": angle}


def pictures_of(image: Tensor, factors: Factors, rendered: Rendered, model: Unsup3d) -> dict[str, Tensor]:
    """What an inference gives, as pictures (B, 3, S, S) in [0, 1]."""
    config = model.config
    near = (config.max_depth - factors.depth) / (config.max_depth - config.min_depth)
    frontal = replace(factors, view=torch.zeros_like(factors.view))
    side_on = frontal.view.clone()
    side_on[:, 1] = 0.6
    return {
        "picture": image,
        "reconstruction": (rendered.image / 2 + 0.5).clamp(0, 1) * rendered.mask,
        "depth": near.expand(-1, 3, -1, -1).clamp(0, 1),
        "normals": rendered.normals * image.new_tensor([0.5, 0.5, -0.5])[:, None, None] + 0.5,
        "albedo": factors.albedo / 2 + 0.5,
        "shading": (rendered.shading / 1.5).clamp(0, 1).expand(-1, 3, -1, -1),
        "turned": model.turned(frontal, side_on),
    }
