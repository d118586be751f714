"""Unsup3D: depth, albedo, light and view of a face from one picture, learned from single pictures (Wu, Rupprecht and
Vedaldi, "Unsupervised learning of probably symmetric deformable 3D objects from images in the wild", 2020).

    picture --netD, netA, netL, netV--> canonical depth d, albedo a, light l, view w
    canonical picture  J = shade(a, normals of d, l);   reconstruction  I' = reproject(J, d, w)

Depth and albedo are those of a frontal, mirror-symmetric face: I' is made twice, the second time from mirrored d and a,
and both have to look like the picture. netC says where the mirrored one may not (hair, shadows): a Laplacian's sigma.

Shapes: B pictures, S x S pixels. Pictures are RGB in [-1, 1] inside, [0, 1] at `factors`. The camera looks along +z
with x right and y down, so normals that face away from it have z > 0; depth is z, about 1. Grids and pixel coordinates
are indices (the first pixel's centre is 0), as in the published code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.precision import exact
from ..geom.rotation import axis_angle_to_matrix
from ..render.interpolate import interpolate
from ..render.rasterize import rasterize
from ..render.warp import sample

EMPTY = 100.0
"""Depth of pixels that show nothing, as in neural_renderer; averaged with a neighbour it exceeds any real depth."""


@dataclass(frozen=True)
class Unsup3dConfig:
    """Numbers of train_celeba.yml."""

    image_size: int = 64
    """Pixels; a power of two, at least 32. 64 is the published network, 128 has one level more."""
    width: int = 64
    """Channels of the first level of netD, netA and netC; netL and netV have half of it."""
    code: int = 256
    """Channels of the bottleneck of netD and netA; netC has half of it."""
    min_depth: float = 0.9
    max_depth: float = 1.1
    border_depth: float = 1.04
    """Two columns at the left and right are pinned to it (0.7 max + 0.3 min). The published demo and G3FA say 1.05."""
    rotation_range: float = 60.0
    """Degrees, largest view angle around each axis."""
    xy_translation_range: float = 0.1
    z_translation_range: float = 0.0
    min_diffuse: float = 0.0
    """The diffuse light lies in [min_diffuse, 1]; 0.5 for cars."""
    fov: float = 10.0
    """Degrees."""
    rot_center_depth: float = 1.0
    """The view turns around (0, 0, this)."""
    confidence: bool = True
    """Has netC."""


@dataclass
class Factors:
    """What a picture was taken apart into."""

    depth: Tensor
    """(B, 1, S, S) canonical depth, border pinned."""
    free_depth: Tensor
    """(B, 1, S, S) before the border was pinned."""
    albedo: Tensor
    """(B, 3, S, S) in [-1, 1]."""
    ambient: Tensor
    """(B, 1) in [0, 1]."""
    diffuse: Tensor
    """(B, 1) in [0, 1]."""
    direction: Tensor
    """(B, 3) unit vector of the light, with the sign of the normals."""
    view: Tensor
    """(B, 6) rotation x, y, z in radians, translation x, y, z."""

    def with_mirrored(self) -> Factors:
        """2B: these, then the same with depth and albedo mirrored; light and view stay."""
        mirrored = {"depth", "free_depth", "albedo"}
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Factors(**{k: torch.cat([v, v.flip(-1) if k in mirrored else v]) for k, v in values.items()})


@dataclass
class Rendered:
    """Pictures made from factors."""

    shading: Tensor
    """(B, 1, S, S) canonical, at least 0."""
    canonical: Tensor
    """(B, 3, S, S) canonical shaded picture, about [-1, 1]."""
    normals: Tensor
    """(B, 3, S, S) canonical."""
    depth: Tensor
    """(B, 1, S, S) seen under the view."""
    mask: Tensor
    """(B, 1, S, S) 1 where the view shows the surface."""
    image: Tensor
    """(B, 3, S, S) the canonical picture under the view; not masked."""


class EDDeconv(nn.Module):
    """netD, netA: convolutions down to one code, transposed convolutions up to a map. Official indices for S = 64."""

    def __init__(self, out: int, size: int, width: int, code: int, *, tanh: bool):
        super().__init__()
        ups = _widths(size, width)[::-1]
        layers = [*_trunk(size, width, code), nn.ConvTranspose2d(code, ups[0], 4, bias=False), nn.ReLU()]
        layers += [nn.Conv2d(ups[0], ups[0], 3, padding=1, bias=False), nn.ReLU()]
        for before, after in pairwise(ups):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), _norm(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1, bias=False), _norm(after), nn.ReLU()]
        layers += [nn.Upsample(scale_factor=2, mode="nearest")]
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), _norm(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 5, padding=2, bias=False), _norm(width), nn.ReLU()]
        layers += [nn.Conv2d(width, out, 5, padding=2, bias=False), *([nn.Tanh()] if tanh else [])]
        self.network = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, out, S, S) of pictures (B, 3, S, S) in [-1, 1]."""
        return self.network(x)


class Encoder(nn.Module):
    """netL, netV: pictures (B, 3, S, S) in [-1, 1] to (B, out) numbers in (-1, 1)."""

    def __init__(self, out: int, size: int, width: int):
        super().__init__()
        widths = _widths(size, width)
        layers: list[nn.Module] = []
        for before, after in zip([3, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.ReLU()]
        layers += [nn.Conv2d(widths[-1], widths[-1], 4, bias=False), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Conv2d(widths[-1], out, 1, bias=False), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).flatten(1)


class ConfNet(nn.Module):
    """netC: sigma maps (B, 2, S, S) for the pictures and (B, 2, S/4, S/4) for the features; channel 0 belongs to the
    normal reconstruction, channel 1 to the mirrored one."""

    def __init__(self, size: int, width: int, code: int):
        super().__init__()
        ups = _widths(size, width)[::-1]
        layers = [*_trunk(size, width, code), nn.ConvTranspose2d(code, ups[0], 4, bias=False), nn.ReLU()]
        for before, after in pairwise(ups[:-1]):
            layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), _norm(after), nn.ReLU()]
        self.network = nn.Sequential(*layers)
        out1: list[nn.Module] = []
        for before in (ups[-2], width):
            out1 += [nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False), _norm(width), nn.ReLU()]
        self.out_net1 = nn.Sequential(*out1, nn.Conv2d(width, 2, 5, padding=2, bias=False), nn.Softplus())
        self.out_net2 = nn.Sequential(nn.Conv2d(ups[-2], 2, 3, padding=1, bias=False), nn.Softplus())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        trunk = self.network(x)
        return self.out_net1(trunk), self.out_net2(trunk)


def _widths(size: int, width: int) -> list[int]:
    """Channels of the halvings from S to 4 pixels."""
    return [width * 2 ** min(i, 3) for i in range(int(math.log2(size)) - 2)]


def _trunk(size: int, width: int, code: int) -> list[nn.Module]:
    widths = _widths(size, width)
    layers: list[nn.Module] = []
    for before, after in zip([3, *widths], widths[:-1], strict=False):
        layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), _norm(after), nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(widths[-2], widths[-1], 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    return [*layers, nn.Conv2d(widths[-1], code, 4, bias=False), nn.ReLU()]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(channels // 4, 1), channels)


@dataclass(frozen=True)
class Pinhole:
    """Unsup3D's camera for S x S pictures, and the turning of a face before it."""

    size: int
    fov: float = 10.0
    """Degrees."""
    pivot: float = 1.0
    """Views turn around (0, 0, pivot)."""

    @property
    def focal(self) -> float:
        """Pixels; the picture is S - 1 wide, from the first to the last pixel's centre."""
        return (self.size - 1) / 2 / math.tan(math.radians(self.fov) / 2)

    @exact
    def points(self, depth: Tensor) -> Tensor:
        """(B, S, S, 3) points of (B, 1, S, S) depth."""
        axis = (torch.arange(self.size, device=depth.device, dtype=depth.dtype) - (self.size - 1) / 2) / self.focal
        z = depth[:, 0]
        return torch.stack([axis * z, axis[:, None] * z, z], -1)

    def pixels(self, points: Tensor) -> Tensor:
        """(..., 2) indices of pixels, x and y, of (..., 3) points."""
        return points[..., :2] / points[..., 2:] * self.focal + (self.size - 1) / 2

    @exact
    def normals(self, depth: Tensor) -> Tensor:
        """(B, 3, S, S) unit normals of (B, 1, S, S) depth, z > 0; (0, 0, 1) on the border."""
        p = self.points(depth)
        across, down = p[:, 1:-1, 2:] - p[:, 1:-1, :-2], p[:, 2:, 1:-1] - p[:, :-2, 1:-1]
        inner = torch.linalg.cross(across, down).permute(0, 3, 1, 2)
        normals = F.pad(inner, (1, 1, 1, 1))
        border = F.pad(torch.zeros_like(inner[:, :1]), (1, 1, 1, 1), value=1.0)
        normals = torch.cat([normals[:, :2], normals[:, 2:] + border], 1)
        return normals / (normals.norm(dim=1, keepdim=True) + 1e-7)

    @exact
    def turn(self, points: Tensor, view: Tensor) -> Tensor:
        """Canonical points (B, ..., 3) to where the view (B, 6) shows them: R (p - c) + c + t."""
        rotation, shift, centre = self._motion(points, view)
        return torch.einsum("bij,b...j->b...i", rotation, points - centre) + centre + shift

    @exact
    def turn_back(self, points: Tensor, view: Tensor) -> Tensor:
        """The inverse of `turn`."""
        rotation, shift, centre = self._motion(points, view)
        return torch.einsum("bji,b...j->b...i", rotation, points - shift - centre) + centre

    def grid(self, depth: Tensor, view: Tensor) -> Tensor:
        """(B, S, S, 2) in [-1, 1], the first and last pixels' centres: where in the canonical picture each pixel of
        the view's depth (B, 1, S, S) lies."""
        return self.pixels(self.turn_back(self.points(depth), view)) * (2 / (self.size - 1)) - 1

    def _motion(self, points: Tensor, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rotation = view_rotation(view)
        shift = view[:, 3:].view(-1, *[1] * (points.ndim - 2), 3)
        return rotation, shift, points.new_tensor([0.0, 0.0, self.pivot])

    def rasterise(self, points: Tensor, attributes: Tensor | None = None) -> Tensor:
        """The surface through (B, S, S, 3) points, a triangle mesh, seen by the camera; as neural_renderer draws it.

        Points stand at whole pixel indices, yet the picture's edges are 0 and S: pixel i shows what lies between the
        indices i and i + 1 (half a pixel off, last row and column empty under no motion). Drawn at 2S x 2S, both sides
        of every triangle, then averaged: a pixel that is partly empty is far beyond every depth. That package samples
        triangle edges with inclusive tests, ours by the top-left rule after snapping to 1/256 pixel, so single pixels
        on silhouettes and folds differ.

        Args:
            attributes: (B, C, S, S) values of the points to draw; None draws the depth.
        Returns:
            (B, 1, S, S) depth, EMPTY / 4 or more where a pixel is not covered, or (B, C, S, S) attributes, 0 there.
        """
        size = self.size
        flat = points.flatten(1, 2)
        mesh = torch.cat([self.pixels(flat) * (2 / size) - 1, flat[..., 2:]], -1)
        faces = grid_faces(size).to(points.device)
        fragments = rasterize(mesh, faces, (2 * size, 2 * size), cull=False, perspective=True)
        values = flat[..., 2:] if attributes is None else attributes.flatten(2).transpose(1, 2)
        empty = EMPTY if attributes is None else 0.0
        drawn = interpolate(values, fragments, mesh, faces, perspective=True, background=empty)
        return F.avg_pool2d(drawn, 2)


@exact
def view_rotation(view: Tensor) -> Tensor:
    """(B, 3, 3) R = Rz Ry Rx of views (B, 6)."""
    turns = axis_angle_to_matrix(torch.diag_embed(view[:, :3]))
    return turns[:, 2] @ turns[:, 1] @ turns[:, 0]


@lru_cache(maxsize=4)
def grid_faces(size: int) -> Tensor:
    """(2 (S - 1)^2, 3) triangles of a grid of S x S points: all upper left halves of cells, then all lower right."""
    index = torch.arange(size * size).view(size, size)
    here, right, below, across = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    upper, lower = torch.stack([here, below, right], -1), torch.stack([right, below, across], -1)
    return torch.cat([upper.flatten(0, 1), lower.flatten(0, 1)])


class Unsup3d(nn.Module):
    """The photo-geometric autoencoder; its networks under the official names netD, netA, netL, netV, netC."""

    Config = Unsup3dConfig

    def __init__(self, config: Unsup3dConfig = Unsup3dConfig()):
        super().__init__()
        size = config.image_size
        if size < 32 or size & (size - 1):
            raise ValueError(f"Unsup3dConfig: image_size must be a power of two, at least 32, got {size}.")
        self.config = config
        self.netD = EDDeconv(1, size, config.width, config.code, tanh=False)
        self.netA = EDDeconv(3, size, config.width, config.code, tanh=True)
        self.netL = Encoder(4, size, config.width // 2)
        self.netV = Encoder(6, size, config.width // 2)
        self.netC = ConfNet(size, config.width, config.code // 2) if config.confidence else None
        self.camera = Pinhole(size, config.fov, config.rot_center_depth)

    def forward(self, image: Tensor) -> tuple[Factors, Rendered]:
        """Factors of (B, 3, S, S) pictures in [0, 1] and the reconstructions from them, 2B of both: the second half
        from mirrored depth and albedo. The masks are where both show the surface, equal in both halves."""
        both = self.factors(image).with_mirrored()
        rendered = self.render(both)
        shared = rendered.mask.unflatten(0, (2, -1)).amin(0)
        rendered.mask = torch.cat([shared, shared])
        rendered.image = rendered.image * rendered.mask
        return both, rendered

    @torch.no_grad()
    def start_flat(self) -> None:
        """Begin training with an almost plane depth and without the checkerboard of transposed convolutions.

        Random transposed convolutions give each of the four pixels of a doubling weights of its own, so that depth
        begins as a checkerboard as deep as its range, whose steep normals the light then uses to paint with. Here the
        four begin with the same weights (Aitken et al. 2017) and netD's last layer is small.
        """
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d) and module.stride == (2, 2):
                one = module.weight[:, :, ::2, ::2]
                module.weight.copy_(one.repeat_interleave(2, 2).repeat_interleave(2, 3))
        last = self.netD.network[-1]
        assert isinstance(last, nn.Conv2d)
        last.weight.mul_(0.02)

    def factors(self, image: Tensor) -> Factors:
        """Factors of (B, 3, S, S) pictures in [0, 1]."""
        config = self.config
        if image.ndim != 4 or image.shape[1:] != (3, config.image_size, config.image_size):
            side = config.image_size
            raise ValueError(f"Unsup3d: pictures must be (B, 3, {side}, {side}), got {tuple(image.shape)}.")
        x = image * 2 - 1
        free = self.free_depth(self.netD(x))
        light, view = self.netL(x).float(), self.netV(x).float()
        direction = F.pad(light[:, 2:], (0, 1), value=1.0)
        spans = view.new_tensor(
            [math.radians(config.rotation_range)] * 3 + [config.xy_translation_range] * 2 + [config.z_translation_range]
        )
        low = config.min_diffuse
        return Factors(
            depth=pin_border(free, config.border_depth),
            free_depth=free,
            albedo=self.netA(x).float(),
            ambient=light[:, :1] / 2 + 0.5,
            diffuse=(light[:, 1:2] + 1) / 2 * (1 - low) + low,
            direction=direction / direction.norm(dim=1, keepdim=True),
            view=view * spans,
        )

    def free_depth(self, raw: Tensor) -> Tensor:
        """Depth of netD's output: 0 is the middle of the range once the mean is taken off."""
        return depth_of_raw(raw, self.config.min_depth, self.config.max_depth)

    def confidence(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Sigmas (2B, 1, S, S) and (2B, 1, S/4, S/4) of pictures in [0, 1], in the order of `forward`."""
        if self.netC is None:
            raise ValueError("Unsup3d.confidence: this model has no netC (config.confidence is false).")
        fine, coarse = self.netC(image * 2 - 1)
        return torch.cat(fine.split(1, 1)), torch.cat(coarse.split(1, 1))

    @exact
    def render(self, factors: Factors) -> Rendered:
        """The pictures that factors make. Change their light or view before to relight or to turn the face."""
        camera, config = self.camera, self.config
        normals = camera.normals(factors.depth)
        cosine = torch.einsum("bchw,bc->bhw", normals, factors.direction)[:, None]
        shading = factors.ambient[..., None, None] + factors.diffuse[..., None, None] * cosine.clamp_min(0)
        canonical = (factors.albedo / 2 + 0.5) * shading * 2 - 1
        margin = (config.max_depth - config.min_depth) / 2
        near, far = config.min_depth - margin, config.max_depth + margin
        depth = camera.rasterise(camera.turn(camera.points(factors.depth), factors.view)).clamp(near, far)
        image = sample(canonical, camera.grid(depth, factors.view), align_corners=True)
        return Rendered(shading, canonical, normals, depth, (depth < far).to(depth).detach(), image)

    def turned(self, factors: Factors, view: Tensor) -> Tensor:
        """(B, 3, S, S) pictures in [0, 1] of the shaded canonical mesh under other views (B, 6), also far from the
        picture's own: the mesh itself is drawn, white where nothing is."""
        camera = self.camera
        shaded = self.render(factors).canonical.clamp(-1, 1) / 2 + 0.5
        points = camera.turn(camera.points(factors.depth), view)
        drawn = camera.rasterise(points, torch.cat([shaded, torch.ones_like(shaded[:, :1])], 1))
        return drawn[:, :3] + 1 - drawn[:, 3:]


@exact
def depth_of_raw(raw: Tensor, low: float, high: float) -> Tensor:
    """(B, 1, S, S) depth in (low, high) of netD's output: tanh(raw - mean of the picture), rescaled."""
    t = torch.tanh(raw - raw.mean((2, 3), keepdim=True))
    return (1 + t) / 2 * high + (1 - t) / 2 * low


def pin_border(depth: Tensor, border: float) -> Tensor:
    """Two columns at the left and the right set to a constant depth."""
    return F.pad(depth[..., 2:-2], (2, 2), value=border)


def laplacian_nll(image: Tensor, truth: Tensor, mask: Tensor, sigma: Tensor | None) -> Tensor:
    """Photometric loss, eq. 4: mean of sqrt(2) |I' - I| / sigma + log sigma over the mask; without sigma |I' - I|.

    Args:
        image, truth: (B, 3, S, S) in [-1, 1].
        mask: (B, 1, S, S).
        sigma: (B, 1, S, S) > 0 or None.
    """
    loss = (image - truth).abs()
    if sigma is not None:
        loss = loss * math.sqrt(2) / (sigma + 1e-7) + (sigma + 1e-7).log()
    return _masked_mean(loss, mask)


def perceptual_nll(features: Tensor, truth: Tensor, mask: Tensor, sigma: Tensor | None) -> Tensor:
    """Perceptual loss, eq. 7: mean of |f' - f|^2 / (2 sigma^2) + log sigma over the mask; without sigma |f' - f|^2.

    Args:
        features, truth: (B, C, s, s); the truth gets no gradient.
        mask: (B, 1, S, S), averaged down to s.
        sigma: (B, 1, s, s) > 0 or None.
    """
    loss = (features - truth.detach()).square()
    if sigma is not None:
        loss = loss / (2 * sigma.square() + 1e-7) + (sigma + 1e-7).log()
    return _masked_mean(loss, F.avg_pool2d(mask, mask.shape[-1] // features.shape[-1]))


def smoothness(depth: Tensor, extent: float) -> Tensor:
    """Mean absolute step of (B, 1, S, S) depth between neighbours, in units of the depth range."""
    return (depth.diff(dim=-1).abs().mean() + depth.diff(dim=-2).abs().mean()) / extent


def roughness(depth: Tensor, extent: float) -> Tensor:
    """Mean squared step of (B, 1, S, S) depth between neighbours, in units of the depth range: hardly anything for a
    face, much for a checkerboard."""
    return (depth.diff(dim=-1).square().mean() + depth.diff(dim=-2).square().mean()) / extent**2


def _masked_mean(loss: Tensor, mask: Tensor) -> Tensor:
    mask = mask.expand_as(loss)
    return (loss * mask).sum() / mask.sum()


def network_input(image: Tensor, size: int = 64) -> Tensor:
    """Any (B, 3, H, W) pictures as the published demo feeds them: bilinear, without anti-aliasing, to S x S; first to
    128 when both sides exceed 256."""
    if min(image.shape[-2:]) > 256:
        image = F.interpolate(image, (128, 128), mode="bilinear", align_corners=False)
    return F.interpolate(image, (size, size), mode="bilinear", align_corners=False)


class DepthReader(nn.Module):
    """netD alone: canonical depth and normals of pictures of any size, for G3FA's geometry critics."""

    def __init__(self, network: EDDeconv, config: Unsup3dConfig):
        super().__init__()
        self.network = network
        self.config = config
        self.camera = Pinhole(config.image_size, config.fov, config.rot_center_depth)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Depth (B, 1, H, W) and normals (B, 3, H, W) of pictures (B, 3, H, W) in [0, 1]; computed at S x S, enlarged
        bilinearly; the normals are then a little shorter than 1, as G3FA's critics see them."""
        config = self.config
        raw = self.network(network_input(image, config.image_size) * 2 - 1)
        depth = pin_border(depth_of_raw(raw, config.min_depth, config.max_depth), config.border_depth)
        maps = torch.cat([depth, self.camera.normals(depth)], 1)
        maps = F.interpolate(maps, image.shape[-2:], mode="bilinear", align_corners=False)
        return maps[:, :1], maps[:, 1:]
