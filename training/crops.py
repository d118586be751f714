"""Crops of faces for the regressor, cut out of wider pictures on the batch: as it will see them, or varied.

The wide pictures leave room to move the crop about, so that one drawing serves many training steps. Everything that is
known of a picture (head, camera) goes along; what is random comes from torch's generator, which the engine seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geom.camera import Camera
from ..geom.head import HeadParams
from ..geom.mirror import Mirror
from ..nets.regressor import RegressorConfig
from .batch import View

_MESH = 468
"""Landmarks that are in every face's box; the rest are irises."""


@dataclass(frozen=True)
class Variation:
    """How much crops differ from those at inference. Shares of crops, the largest change, or its standard deviation."""

    zoom: float = 0.07
    """Of the side's logarithm, at most."""
    shift: float = 0.025
    """Of the middle, in sides, at most."""
    mirror: float = 0.5
    """Share with left and right exchanged."""
    gamma: float = 0.2
    """Deviation of the logarithm of the exponent on all colours."""
    gain: float = 0.12
    """Deviation of the logarithm of the brightness."""
    tint: float = 0.08
    """Deviation of the gain of each colour."""
    blur: float = 0.3
    """Share that is blurred, by 0.3 to 1 pixel."""
    noise: float = 0.02
    """Deviation of every value, at most; each crop has its own."""


def crop_heads(view: View, config: RegressorConfig) -> View:
    """The regressor's crops of pictures, as `fitting.regress.own_crop` cuts them out.

    Args:
        view: image (B, 3, H, W) in [0, 1], params, camera and landmarks. What lies beyond the picture repeats its edge.
        config: size and place of the crops.
    Returns:
        View of image (B, 3, size, size), params and camera.
    """
    params, camera, middle, side = _place(view, config)
    transform = _transform(middle, side, config)
    return View(_sample(view.image, transform, config.size), params, camera.crop(transform))


def vary_heads(view: View, config: RegressorConfig, variation: Variation, mirror: Mirror) -> View:
    """`crop_heads`, each crop with another place, size, side and colours.

    Args:
        view, config: see there.
        variation: see there.
        mirror: of the head whose params these are.
    """
    params, camera, middle, side = _place(view, config)
    side = side * (variation.zoom * (2 * torch.rand_like(side) - 1)).exp()
    middle = middle + variation.shift * side[:, None] * (2 * torch.rand_like(middle) - 1)
    transform = _transform(middle, side, config)
    image, camera = _sample(view.image, transform, config.size), camera.crop(transform)
    chosen = torch.rand_like(side) < variation.mirror
    image = torch.where(chosen[:, None, None, None], image.flip(-1), image)
    x, y = camera.principal.unbind(1)
    camera = Camera(camera.focal, torch.stack([torch.where(chosen, config.size - x, x), y], 1))
    return View(_recolour(image, variation), _select(chosen, mirror(params), params), camera)


def _place(view: View, config: RegressorConfig) -> tuple[HeadParams, Camera, Tensor, Tensor]:
    """Heads, cameras, and middle (B, 2) and side (B,) of the crops in pixels of the picture."""
    if view.params is None or view.camera is None or view.landmarks is None:
        raise ValueError("crop_heads: the view must know params, camera and landmarks.")
    points = view.landmarks[:, :_MESH, :2]
    low, high = points.amin(1), points.amax(1)
    side = config.scale * (high - low).amax(1)
    up = torch.stack([torch.zeros_like(side), config.up * side], 1)
    return view.params, view.camera, (low + high) / 2 - up, side


def _transform(middle: Tensor, side: Tensor, config: RegressorConfig) -> Tensor:
    """(B, 3) crop transforms."""
    scale = (config.size / side)[:, None]
    return torch.cat([scale, config.size / 2 - scale * middle], 1)


def _sample(image: Tensor, transform: Tensor, size: int) -> Tensor:
    """(B, 3, size, size) crops, bilinear; the scale should not be far below 1."""
    scale, shift = transform[:, :1], transform[:, 1:]
    middle = (size / 2 - shift) / scale  # of the crop, in the picture
    extent = middle.new_tensor([image.shape[-1], image.shape[-2]])
    linear = torch.diag_embed((size / scale) / extent)  # in units where both pictures are -1 ... 1
    matrix = torch.cat([linear, (2 * middle / extent - 1)[..., None]], 2)
    grid = F.affine_grid(matrix, [len(image), 3, size, size], align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def _recolour(image: Tensor, variation: Variation) -> Tensor:
    """Other exposure and sharpness, one for each crop."""
    one = image.new_zeros(len(image), 1, 1, 1)
    tint = 1 + variation.tint * torch.randn_like(one.expand(-1, 3, -1, -1))
    gain = tint * (variation.gain * torch.randn_like(one)).exp()
    image = gain * image ** (variation.gamma * torch.randn_like(one)).exp()
    sigma = 0.3 + 0.7 * torch.rand_like(one)
    image = _blur(image, torch.where(torch.rand_like(one) < variation.blur, sigma, 0.01))
    noise = variation.noise * torch.rand_like(one) * torch.randn_like(image)
    return (image + noise).clamp(0, 1)


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (B, 3, H, W), sigma (B, 1, 1, 1) pixels of at most 1; edges repeat."""
    reach = 3
    steps = torch.arange(-reach, reach + 1).to(sigma)
    kernel = (-0.5 * (steps / sigma) ** 2).exp()  # (B, 1, 1, 7)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(3, 0)
    planes = F.pad(image.flatten(0, 1)[None], [reach] * 4, mode="replicate")
    planes = F.conv2d(F.conv2d(planes, kernel, groups=planes.shape[1]), kernel.mT, groups=planes.shape[1])
    return planes[0].unflatten(0, image.shape[:2])


def _select(chosen: Tensor, one: HeadParams, other: HeadParams) -> HeadParams:
    """Row by row, one where `chosen` (B,), else the other."""
    ones, others = one.asdict(), other.asdict()
    return HeadParams(**{name: torch.where(chosen[:, None], ones[name], others[name]) for name in ones})
