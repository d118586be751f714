"""What a network adds to the geometric animator's picture (ours).

    G = geometric picture of the driving head                       (render.geometric)
    clues: where each pixel comes from, whether the photo shows it, normals before and after, place on the head
    I = G + s * U(G, clues)                                         U a small U-Net, s in [0, 1] rises with the motion

The animator moves what the photo shows, keeps it sharp, and cannot know what a photo does not show. The network learns
that alone: how shading follows the turn, what stands beside the old outline, the inside of a mouth. It begins at zero,
so an untrained network gives G, and without motion the photo stays as it is.

It looks at a small picture and changes a large one: the change is smooth, the detail is G's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams
from ..render.geometric import Rendered
from ..render.guidance import nmfc_codes
from ..render.interpolate import interpolate
from ..render.rasterize import rasterize
from ..render.surface import vertex_normals
from .layers import conv, leaky
from .pwm import drawn_faces

CLUES = 12
"""Channels of `Clues.draw`: displacement 2, shown 1, normals 3, the source's normals 3, place on the mean head 3."""
MOTION = 0.01
"""Largest displacement in NDC (1.3 pixels of 256) at which two thirds of the change are applied."""


@dataclass(frozen=True)
class RefinerConfig:
    head: str = "open"
    """The head model that is drawn: open, flame or a file."""
    size: int = 256
    """Side in pixels of the pictures it is trained on. Others work where they are multiples of 2 ** (levels + 1)."""
    base_channels: int = 24
    """At half resolution; doubled at every coarser level ..."""
    max_channels: int = 128
    """... up to this."""
    levels: int = 3
    """Halvings of the half-size picture."""

    def __post_init__(self) -> None:
        step = 2 ** (self.levels + 1)
        if self.levels < 1 or self.size < 1 or self.size % step:
            raise ValueError(
                f"RefinerConfig: size must be a multiple of {step} with {self.levels} levels, got {self.size}."
            )

    @property
    def widths(self) -> list[int]:
        """Channels of the levels, half resolution first."""
        return [min(self.base_channels * 2**k, self.max_channels) for k in range(self.levels + 1)]


class Refiner(nn.Module):
    """The U-Net; see the module's docstring."""

    Config = RefinerConfig

    def __init__(self, config: RefinerConfig = RefinerConfig()) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = conv(4 * 3 + CLUES, widths[0], spectral=False)
        self.same = nn.ModuleList(conv(c, c, spectral=False) for c in widths)
        self.down = nn.ModuleList(conv(c, d, 4, stride=2, spectral=False) for c, d in pairwise(widths))
        self.up = nn.ModuleList(conv(d, c, spectral=False) for c, d in pairwise(widths))
        self.join = nn.ModuleList(conv(2 * c, c, spectral=False) for c in widths[:-1])
        self.last = conv(widths[0], 4 * 3, spectral=False)
        nn.init.zeros_(self.last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, picture: Tensor, clues: Tensor) -> Tensor:
        """The change of a picture.

        Args:
            picture: (B, 3, H, W) G in [0, 1]; H and W multiples of 2 ** (levels + 1).
            clues: (B, `CLUES`, H/2, W/2) of `Clues.draw`.
        Returns:
            (B, 3, H, W) float32 in (-1, 1), to add to G; the sum may leave [0, 1].
        Raises:
            ValueError: the shapes do not fit.
        """
        step = 2 ** (self.config.levels + 1)
        height, width = picture.shape[-2:]
        if picture.ndim != 4 or picture.shape[1] != 3 or height % step or width % step:
            raise ValueError(
                f"Refiner: picture must be (B, 3, H, W), H and W multiples of {step}, got {tuple(picture.shape)}."
            )
        if clues.shape != (len(picture), CLUES, height // 2, width // 2):
            raise ValueError(
                f"Refiner: clues must be {(len(picture), CLUES, height // 2, width // 2)}, got {tuple(clues.shape)}."
            )
        x = torch.cat([F.pixel_unshuffle(2 * picture - 1, 2), clues], 1).contiguous(memory_format=torch.channels_last)
        x = leaky(self.same[0](leaky(self.stem(x))))
        kept = []
        for down, same in zip(self.down, self.same[1:], strict=True):
            kept.append(x)
            x = leaky(same(leaky(down(x))))
        for up, join, shortcut in zip(self.up[::-1], self.join[::-1], kept[::-1], strict=True):
            coarse = F.interpolate(leaky(up(x)), scale_factor=2, mode="nearest")
            x = leaky(join(torch.cat([coarse, shortcut], 1)))
        change = torch.tanh(F.pixel_shuffle(self.last(x), 2).float())
        return change * motion_share(clues[:, :2])


def motion_share(displacement: Tensor) -> Tensor:
    """(B, 2, h, w) NDC -> (B, 1, 1, 1): 0 where nothing moves, near 1 from some pixels on."""
    largest = displacement.square().sum(1).amax((1, 2))
    return (1 - torch.exp(-largest / MOTION**2))[:, None, None, None]


class Clues:
    """Draws what the network is told beside the picture."""

    def __init__(self, head: HeadModel) -> None:
        self.head, self.faces = head, drawn_faces(head)
        self.places = nmfc_codes(head.v_template)

    @torch.no_grad()
    def normals(self, params: HeadParams) -> Tensor:
        """(1, V, 3) world normals of a head. Those of a source are computed once."""
        return vertex_normals(self.head(params), self.head.faces)

    @torch.no_grad()
    def draw(
        self, source_normals: Tensor, driving: HeadParams, camera: Camera, size: tuple[int, int], made: Rendered
    ) -> Tensor:
        """
        Args:
            source_normals: (1, V, 3) of the source head.
            driving: B = 1, the head.
            camera: of the picture.
            size: (H, W) of the picture.
            made: what the geometric animator drew of the head, at any size.
        Returns:
            (1, `CLUES`, H/2, W/2); normals and places are 0 off the head.
        """
        half = size[0] // 2, size[1] // 2
        height, width = made.displacement.shape[:2]
        pixels = torch.from_numpy(made.displacement).permute(2, 0, 1)
        displacement = pixels * pixels.new_tensor([2 / width, 2 / height])[:, None, None]
        origin = torch.cat([displacement, torch.from_numpy(made.visible)[None]])[None]
        vertices = self.head(driving)
        normals = vertex_normals(vertices, self.head.faces)
        seen = camera.ndc(vertices, size)
        fragments = rasterize(seen, self.faces, half, perspective=True)
        attributes = torch.cat([normals, source_normals, self.places[None]], 2)
        drawn = interpolate(attributes, fragments, seen, self.faces, perspective=True)
        return torch.cat([F.interpolate(origin, half, mode="area"), drawn], 1)
