"""G3FA's ensemble of critics: of the picture, of its depth and of its normals (Javanmardi et al. 2024, section 3.4).

    picture --inverse renderer--> depth, normals       D_total = sum_i lambda_i D_i(x_i),  i = picture, depth, normals

The inverse renderer is a frozen network, so what the geometry critics say about a generated picture flows through it
back into the generator (`geometry_gradient`). The published code cuts that: there the two critics shift the residual of
the picture's critic and teach the generator nothing about geometry.

Three inverse renderers: Unsup3D's canonical depth, as published; our face depth network; or the fitted head drawn at
its place. A drawn head does not depend on the picture, so there the critics see the picture beside it and judge
whether the two belong together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams
from ..render.surface import depth_image, normal_image
from .depth import FaceDepth, disparity_to_depth
from .discriminators import FommDiscriminator, FommDiscriminatorConfig
from .losses import Adversary, critic_loss, fooling_loss
from .unsup3d import DepthReader, Pinhole


@dataclass
class Geometry:
    """What the geometry critics see of B pictures."""

    depth: Tensor
    """(B, 1, H, W), in units of the inverse renderer."""
    normals: Tensor
    """(B, 3, H, W) in [-1, 1]."""

    def detach(self) -> Geometry:
        return Geometry(self.depth.detach(), self.normals.detach())


class InverseRenderer(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to their geometry, frozen. Heads and cameras are for those that draw."""

    from_picture = True
    """The geometry is read from the picture; False: it is drawn, and is the same for a real and a generated one."""

    def forward(self, image: Tensor, params: HeadParams | None = None, camera: Camera | None = None) -> Geometry:
        raise NotImplementedError


class Unsup3dGeometry(InverseRenderer):
    """Unsup3D's canonical depth and the normals from it: the face turned to the front. As published."""

    def __init__(self, reader: DepthReader) -> None:
        super().__init__()
        self.reader = reader.eval().requires_grad_(False)

    def forward(self, image: Tensor, params: HeadParams | None = None, camera: Camera | None = None) -> Geometry:
        return Geometry(*self.reader(image))


class FaceDepthGeometry(InverseRenderer):
    """Disparity of the face depth network, seen as it is in the picture, and the normals of its surface."""

    FOV = 20.0
    """Degrees, for the normals: the network knows no camera."""

    def __init__(self, network: FaceDepth) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, image: Tensor, params: HeadParams | None = None, camera: Camera | None = None) -> Geometry:
        height, width = image.shape[2:]
        if height != width:
            raise ValueError(f"FaceDepthGeometry: pictures must be square, got {height} x {width}.")
        disparity = self.network(image)
        depth = disparity_to_depth(disparity)
        depth = depth / depth.mean((2, 3), keepdim=True)  # known up to a factor only
        normals = Pinhole(height, self.FOV).normals(depth)
        return Geometry(disparity, F.normalize(normals, dim=1, eps=1e-7))


class HeadGeometry(InverseRenderer):
    """Depth and normals of the fitted head, drawn where it is."""

    from_picture = False
    REACH = 0.15
    """Metres before and behind the head's origin that the depth spans."""

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        self.head = head.requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor, params: HeadParams | None = None, camera: Camera | None = None) -> Geometry:
        """The depth is in [-1, 1], near is 1; 0 and normals of 0 where there is no head."""
        if params is None or camera is None:
            raise ValueError("HeadGeometry: the heads of the pictures and their cameras are needed; fit the clips.")
        vertices = self.head(params)
        size = (image.shape[2], image.shape[3])
        depth = depth_image(vertices, self.head.faces, camera, size)
        middle = -params.translation[:, 2].view(-1, 1, 1, 1)
        near = ((middle - depth) / self.REACH).clamp(-1, 1)
        return Geometry(
            torch.where(depth > 0, near, 0).contiguous(), normal_image(vertices, self.head.faces, camera, size)
        )


@dataclass(frozen=True)
class EnsembleConfig:
    """How critics are put together."""

    weights: tuple[float, float, float] = (0.5, 0.25, 0.25)
    """lambda of picture, depth and normals, divided by their sum. The paper's; the published code has 1, 0.25, 0.25."""
    adversary: Adversary = "least_squares"
    """As in the published code; "logistic" is the paper's log loss (eq. 10)."""
    geometry_gradient: bool = True
    """Depth and normals of generated pictures teach the generator; False is the published code."""
    discriminator_params: FommDiscriminatorConfig = field(default_factory=lambda: FommDiscriminatorConfig(sn=True))

    def __post_init__(self) -> None:
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"EnsembleConfig: weights must not be negative and not all 0, got {list(self.weights)}.")


@dataclass
class Verdict:
    """What an ensemble says about B pictures."""

    total: Tensor
    """(B, 1, h, w) D_total; larger = more real."""
    features: list[list[Tensor]]
    """Of the picture's critic, for feature matching; empty without one."""


class Ensemble(nn.Module):
    """D_picture, D_depth and D_normal; the official names are discriminator, discriminator2 and discriminator3."""

    def __init__(
        self, config: EnsembleConfig = EnsembleConfig(), *, picture: bool = True, from_picture: bool = True
    ) -> None:
        """
        Args:
            picture: with a critic of the picture itself; False where a method has one of its own.
            from_picture: as of the inverse renderer; False shows the geometry critics the picture too.
        """
        super().__init__()
        self.config, self.from_picture = config, from_picture
        beside = 0 if from_picture else 3
        params = config.discriminator_params
        self.picture = FommDiscriminator(3, config=params) if picture else None
        self.depth = FommDiscriminator(1 + beside, config=params)
        self.normal = FommDiscriminator(3 + beside, config=params)

    def forward(self, image: Tensor, geometry: Geometry) -> Verdict:
        """Judges (B, 3, H, W) pictures in [0, 1] and their geometry."""
        features = [] if self.picture is None else self.picture(image)
        maps = [geometry.depth, geometry.normals]
        if not self.from_picture:
            maps = [torch.cat([m, image], 1) for m in maps]
        judgements = [scale[-1] for scale in features]
        judgements += [self.depth(maps[0])[0][-1], self.normal(maps[1])[0][-1]]
        weights = self.config.weights if self.picture is not None else self.config.weights[1:]
        total = torch.stack([w * d for w, d in zip(weights, judgements, strict=True)]).sum(0) / sum(weights)
        return Verdict(total, features)

    def fooling(self, verdict: Verdict) -> Tensor:
        """What the generator minimises."""
        return fooling_loss(verdict.total, self.config.adversary)

    def telling(self, real: Verdict, fake: Verdict) -> Tensor:
        """What the critics minimise, all together; the generated pictures and their geometry are detached."""
        return critic_loss(real.total, fake.total, self.config.adversary)

    def geometry_of(
        self,
        renderer: InverseRenderer,
        image: Tensor,
        params: HeadParams | None = None,
        camera: Camera | None = None,
    ) -> Geometry:
        """The geometry of generated pictures, with a gradient if the settings say so."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.geometry_gradient):
            found: Geometry = renderer(image, params, camera)
        return found
