"""Training the face depth network from video alone (Hong et al. 2022, section 3.1; Godard et al. 2019): three frames
[before, now, after] of a clip.

    depth of `now`, motions of the camera from `now` to its neighbours, intrinsics  -->  `now` made from the neighbours
    p(a, b) = 0.85 (1 - SSIM(a, b)) / 2 + 0.15 |a - b|
    loss    = mean over scales of  mean min {p(now, made from before), p(now, made from after), and, so that what does
              not move relative to the picture teaches nothing, p(now, before), p(now, after)}  +  smoothness

The intrinsics are one for both pairs of a sample: with `intrinsics: learned` the mean of what they say; "official" is
the published code, where those of (now, after) serve both, cut to whole pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...geom.depth import point_normals, unproject
from ...nets.depth import SCALES, CameraMotion, DepthConfig, FaceDepth, disparity_to_depth, reproject
from ...nets.depth_metrics import erode, in_units_of, mad, side
from ...render.synthetic import face_mask
from ..batch import Batch
from ..step import Judged, Losses, Step


@dataclass(frozen=True)
class DepthWeights:
    reprojection: float = 1.0
    smoothness: float = 1e-3
    """Halved at every coarser scale."""
    ssim: float = 0.85
    """Share of SSIM in p; the paper's text says 0.8, the published code 0.85."""


@dataclass(frozen=True)
class DepthSettings:
    model_params: DepthConfig = field(default_factory=lambda: DepthConfig(pose=True))
    loss_weights: DepthWeights = DepthWeights()
    automask: bool = True
    """Compare with the unmoved neighbours too."""


class DepthStep(Step):
    """See the module's docstring. The neighbours' jitter of colours that the published code gives to the networks only
    is the engine's here, and reaches the losses too."""

    Settings: ClassVar[type[Any]] = DepthSettings
    moments: ClassVar[int] = 3
    truth: ClassVar[frozenset[str]] = frozenset({"depth", "segmentation"})

    model: FaceDepth

    def __init__(self, settings: DepthSettings = DepthSettings()) -> None:
        super().__init__()
        self.settings = settings
        if not settings.model_params.pose:
            raise ValueError("The face depth network learns from motion: set model_params.pose to true.")
        self.model = FaceDepth(settings.model_params)

    def losses(self, batch: Batch) -> tuple[Losses, None]:
        before, now, after = (view.image for view in batch.views)
        return self.losses_of(before, now, after, noise=1e-5), None

    def losses_of(self, before: Tensor, now: Tensor, after: Tensor, *, noise: float) -> Losses:
        """The terms; `noise` decides ties between unmoved neighbours."""
        weights, share = self.settings.loss_weights, self.settings.loss_weights.ssim
        disparities = self.model.disparities(now)
        backwards, forwards = self.model.camera_motion(before, now), self.model.camera_motion(now, after)
        intrinsics = self.intrinsics(backwards, forwards)
        motions = [(before, backwards.matrix(inverse=True)), (after, forwards.matrix())]
        self.mark("forward")
        unmoved: list[Tensor] = []
        if self.settings.automask:
            unmoved = [photometric(other, now, share) for other, _ in motions]
            unmoved = [error + noise * torch.randn_like(error) for error in unmoved]
        reprojection, smooth = now.new_zeros(()), now.new_zeros(())
        for scale, disparity in enumerate(disparities):
            full = disparity
            if scale > 0:
                full = F.interpolate(disparity, now.shape[2:], mode="bilinear", align_corners=False)
            depth = disparity_to_depth(full)
            made = [reproject(other, depth, intrinsics, motion)[0] for other, motion in motions]
            errors = [photometric(picture, now, share) for picture in made]
            reprojection = reprojection + torch.cat([*unmoved, *errors], 1).min(1).values.mean()
            picture = F.avg_pool2d(now, 2**scale) if scale > 0 else now
            smooth = smooth + smoothness(disparity, picture) / 2**scale
        return {
            "reprojection": weights.reprojection * reprojection / SCALES,
            "smoothness": weights.smoothness * smooth / SCALES,
        }

    def intrinsics(self, backwards: CameraMotion, forwards: CameraMotion) -> Tensor:
        """(B, 3, 3) of both pairs of frames."""
        if self.settings.model_params.intrinsics == "learned":
            return (backwards.intrinsics + forwards.intrinsics) / 2
        return forwards.intrinsics.detach().trunc()

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> Judged:
        """The photometric error of `now` made from `after`. With true depth, SIDE (times 100) and the angle of the
        normals on the face, both in the camera that the network believes in, beside a constant depth's (`flat`)."""
        assert isinstance(model, FaceDepth)
        _, now, after = (view.image for view in batch.views)
        disparity = model(now)
        depth = disparity_to_depth(disparity)
        motion = model.camera_motion(now, after)
        made, _ = reproject(after, depth, motion.intrinsics, motion.matrix())
        metrics = {
            "photometric": photometric(made, now, self.settings.loss_weights.ssim).mean((1, 2, 3)),
            "photometric_unmoved": photometric(after, now, self.settings.loss_weights.ssim).mean((1, 2, 3)),
        }
        pictures = {"now": now, "made from after": made, "disparity": stretched(disparity)}
        view = batch.views[1]
        if view.depth is not None and view.segmentation is not None and view.camera is not None:
            mask = face_mask(view.segmentation) & view.depth.isfinite()
            k = motion.intrinsics
            camera = (k[:, 0, 0] + k[:, 1, 1]) / 2, k[:, :2, 2] + 0.5
            truth = in_units_of(view.depth, mask, view.camera.focal, camera[0])
            for name, guess in {"": depth, "_flat": torch.ones_like(depth)}.items():
                metrics[f"side{name}"] = 100 * side(guess, truth, mask)
                normals = [point_normals(unproject(known, *camera)) for known in (guess, truth)]
                metrics[f"normals{name}"] = mad(normals[0], normals[1], erode(mask))
            farthest = view.depth.where(mask, depth.new_tensor(0.0)).amax((1, 2, 3), keepdim=True)
            pictures["true disparity of the face"] = stretched(1 / view.depth.where(mask, farthest))
        return Judged(metrics, pictures)


def photometric(image: Tensor, target: Tensor, share: float = 0.85) -> Tensor:
    """(B, 1, H, W) p of the module's docstring, means over the colours; SSIM over 3 x 3 pixels, borders mirrored."""
    l1 = (image - target).abs().mean(1, keepdim=True)
    x, y = (F.pad(picture, (1, 1, 1, 1), mode="reflect") for picture in (image, target))

    def mean(picture: Tensor) -> Tensor:
        return F.avg_pool2d(picture, 3, 1)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    unlike = ((1 - ssim) / 2).clamp(0, 1).mean(1, keepdim=True)
    return share * unlike + (1 - share) * l1


def smoothness(disparity: Tensor, image: Tensor) -> Tensor:
    """mean |d disparity / mean disparity| exp(-|d image|), along x and along y, added."""
    relative = disparity / (disparity.mean((2, 3), keepdim=True) + 1e-7)
    total = disparity.new_zeros(())
    for axis in (2, 3):
        edges = image.diff(dim=axis).abs().mean(1, keepdim=True)
        total = total + (relative.diff(dim=axis).abs() * torch.exp(-edges)).mean()
    return total


def stretched(disparity: Tensor) -> Tensor:
    """(B, 3, H, W) grey pictures, each from its smallest to its largest value."""
    low, high = disparity.amin((1, 2, 3), keepdim=True), disparity.amax((1, 2, 3), keepdim=True)
    return ((disparity - low) / (high - low).clamp_min(1e-12)).expand(-1, 3, -1, -1)
