"""Networks as renderers: they work at their own size, and the photo keeps its detail at the photo's.

crop at the network's size --PWM--> I_o, displacement D --+
what PWM loses of the crop when nothing moves, warped by D --+
crop at the photo's size --warp by D, high-pass--> detail --+--> picture       both where I_w agrees with I_o

What D is when nothing moves is taken off first, so that an unmoved head is the photo. A network may leave eyes and the
inside of the mouth to the geometric animator.

crop at the photo's size --geometric--> G --reduced, refiner--> change --enlarged--+ G --> picture
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams
from ..nets.pwm import Guide, Posed, Pwm, SourceState
from ..nets.refiner import Clues, Refiner
from ..render.geometric import GeometricRenderer, Observation
from ..render.geometric import SourceState as GeometricState
from ..render.guidance import to_pixels
from ..render.warp import warp

BORDER = 0.06
"""Share of the square's side over which the result fades into the photo at its border."""
TOLERANCE = 0.06
"""Difference between I_o and I_w (mean over colours, in [0, 1]) that leaves a third of the warped photo's detail."""


@dataclass
class PwmState:
    """What frames share."""

    network: SourceState
    posed: Posed
    """The source head in the crop."""
    camera: Camera
    """Of the crop at the network's size."""
    lost: Tensor
    """(1, 3, H, W) what the crop has and the network's picture of the unmoved head has not."""
    rest: Tensor
    """(1, 2, H / 2, W / 2) NDC, the displacement that the network gives the unmoved head: nothing but its error."""
    photo: Tensor
    """(1, 3, h, w) the crop at the photo's own resolution, in [0, 1]."""
    geometric: GeometricState | None
    """What eyes and the inside of the mouth are drawn from, where the network leaves them to that."""


@dataclass
class Moved:
    """One frame."""

    image: NDArray[np.uint8]
    """(h, w, 3) RGB at the photo's resolution."""


class PwmRenderer:
    """A PWM network behind the geometric renderer's verbs.

    Args:
        head: whose parameters drive it.
        model: the network, in evaluation mode.
    Raises:
        ValueError: the network's codes belong to another head.
    """

    def __init__(self, head: HeadModel, model: Pwm) -> None:
        self.model, self.guide = model, Guide(head, model.config)
        self.animator = GeometricRenderer(head) if model.config.drawn_openings else None
        self.size = model.config.size, model.config.size

    @torch.no_grad()
    def encode_source(self, source: Observation) -> PwmState:
        photo = _tensor(source.image if source.fine is None else source.fine)
        work = _tensor(source.image)
        image = F.interpolate(work, self.size, mode="bilinear", align_corners=False, antialias=True)
        camera = source.camera.crop((self.size[1] / work.shape[3], 0.0, 0.0))
        posed = self.guide.pose(source.params, camera, self.size)
        network = self.model.encode_source(image, self.guide.source(posed, self.model.codes))
        still = self.model.render(network, self.guide.driving(posed, posed, self.model.codes))
        geometric = None if self.animator is None else self.animator.encode_source(source)
        return PwmState(network, posed, camera, image - still.image, still.displacement, photo, geometric)

    @torch.no_grad()
    def render(self, state: PwmState, target: HeadParams) -> Moved:
        driving = self.guide.pose(target, state.camera, self.size)
        made = self.model.render(state.network, self.guide.driving(state.posed, driving, self.model.codes))
        image, motion = made.image, made.displacement
        if state.photo.shape[-2:] != image.shape[-2:]:
            motion = motion - warp(state.rest, motion)
            warped = warp(state.network.image, motion)
            whole = image + warp(state.lost, motion)
            image = torch.lerp(image, whole, agreement(whole, warped))
            image = with_detail(image, warped, motion, state.photo)
        fade = border(image.shape[-2:])
        image = state.photo + fade * (image - state.photo)
        picture = image[0].permute(1, 2, 0).contiguous()
        if self.animator is not None and state.geometric is not None:
            grid = state.geometric.matte.alpha.shape
            moved = to_pixels(F.interpolate(motion, grid, mode="bilinear", align_corners=False))[0].permute(1, 2, 0)
            lids = target.replace(eyelids=state.geometric.rims.lids(target))
            self.animator.draw_openings(picture.numpy(), state.geometric, lids, moved.contiguous().numpy())
        return Moved((picture * 255).round().clamp(0, 255).to(torch.uint8).numpy())


@dataclass
class RefinedState:
    """What frames share."""

    geometric: GeometricState
    normals: Tensor
    """(1, V, 3) of the source head."""
    camera: Camera
    """Of the crop at the network's size."""
    fade: Tensor
    """(H, W) at the photo's resolution; the change fades out at the square's border."""


class RefinedRenderer:
    """The geometric animator with what a network adds to it, see `nets.refiner`.

    Args:
        head: whose parameters drive it.
        model: the network, in evaluation mode.
    Raises:
        ValueError: the network was trained on another head.
    """

    def __init__(self, head: HeadModel, model: Refiner) -> None:
        if head.name != model.config.head:
            raise ValueError(
                f"The refiner was trained on the head '{model.config.head}' and knows nothing of '{head.name}'; use "
                "--model geometric with it."
            )
        self.model, self.clues, self.animator = model, Clues(head), GeometricRenderer(head)
        self.size = model.config.size, model.config.size

    @torch.no_grad()
    def encode_source(self, source: Observation) -> RefinedState:
        camera = source.camera.crop((self.size[1] / source.image.shape[1], 0.0, 0.0))
        geometric = self.animator.encode_source(source)
        fade = border(geometric.photo.shape[:2])
        return RefinedState(geometric, self.clues.normals(source.params), camera, fade)

    @torch.no_grad()
    def render(self, state: RefinedState, target: HeadParams) -> Moved:
        made = self.animator.render(state.geometric, target)
        clues = self.clues.draw(state.normals, target, state.camera, self.size, made)
        picture = _tensor(made.image)
        small = picture
        if picture.shape[-2:] != self.size:
            small = F.interpolate(picture, self.size, mode="bilinear", align_corners=False, antialias=True)
        change = self.model(small, clues)
        if picture.shape[-2:] != self.size:
            change = F.interpolate(change, picture.shape[-2:], mode="bilinear", align_corners=False)
        pixels = ((picture + state.fade * change)[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8)
        return Moved(pixels.numpy())


def with_detail(image: Tensor, warped: Tensor, displacement: Tensor, photo: Tensor) -> Tensor:
    """A small result enlarged, with the photo's own detail where the network only moved it.

    Args:
        image, warped: (B, 3, h, w) I_o and I_w at the network's size.
        displacement: (B, 2, ...) NDC, that of I_w.
        photo: (B, 3, H, W) the source at full resolution.
    Returns:
        (B, 3, H, W) in [0, 1].
    """
    size, small = photo.shape[-2:], image.shape[-2:]

    def enlarge(x: Tensor) -> Tensor:
        return F.interpolate(x, size, mode="bicubic", align_corners=False)

    sharp = warp(photo, displacement)
    # What I_w lacks of the warped photo is what the network never saw.
    detail = sharp - enlarge(F.interpolate(sharp, small, mode="bilinear", align_corners=False, antialias=True))
    trust = F.interpolate(agreement(image, warped), size, mode="bilinear", align_corners=False)
    return (enlarge(image) + trust * detail).clamp(0, 1)


def agreement(image: Tensor, warped: Tensor) -> Tensor:
    """(B, 1, h, w) in [0, 1]: where a network's picture (B, 3, h, w) shows what it moved there."""
    away = F.avg_pool2d((image - warped).abs().mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
    return torch.exp(-away / TOLERANCE)


def border(size: torch.Size | tuple[int, ...]) -> Tensor:
    """(H, W) weights: 0 on the border, a smooth ramp, 1 inside."""
    ramps = []
    for length in size:
        edge = (torch.arange(length) + 0.5) / length
        inward = (torch.minimum(edge, 1 - edge) / BORDER).clamp(0, 1)
        ramps.append(inward.square() * (3 - 2 * inward))
    return torch.minimum(ramps[0][:, None], ramps[1])


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255).contiguous(memory_format=torch.channels_last)
