"""Depth of faces learned from video alone, after Hong et al. 2022 (DaGAN, section 3.1), which is Monodepth2 (Godard et
al., "Digging into self-supervised monocular depth estimation", 2019) with learned intrinsics (Gordon et al. 2019).

    picture --depth_encoder, depth_decoder--> disparity at four scales
    two frames --pose_encoder, pose--> motion of the camera between them, its focal length and principal point

If depth, motion and intrinsics are right, one frame can be made from the other (`reproject`); training uses nothing
else. Depth is known up to one factor per video. Parameters have the names of the published files.

Shapes: pictures (B, 3, H, W) in [0, 1], H and W multiples of 32. Disparity is a sigmoid, 1 is near. The camera looks
along +z, x right, y down, and pixel coordinates are indices (the first pixel's centre is 0), as in Monodepth2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.precision import exact
from ..geom.rotation import axis_angle_to_matrix
from .resnet import ResNet

SCALES = 4
"""Disparities at H x W, half, a quarter, an eighth of it."""
MIN_DEPTH, MAX_DEPTH = 0.1, 100.0


@dataclass(frozen=True)
class DepthConfig:
    """The released DaGAN weights belong to 18 layers; the official training code loads a network of 50."""

    num_layers: Literal[18, 50] = 18
    pose: bool = False
    """With the networks of pose and intrinsics, which only training needs."""
    intrinsics: Literal["learned", "official"] = "learned"
    """"official" is the published code: the principal point lies right of and below the middle, and all four numbers
    are cut to whole pixels, so that they get no gradient."""
    image_size: int = 256
    """Side of the squares that it is trained on and that `headwarp depth` feeds it; a multiple of 32."""
    scale: float = 1.9
    """Side of those squares in face sizes (longer side of the landmarks' box); about what DaGAN's data have."""
    width: int = 64
    """Channels of the first stage, a multiple of 4; 64 is ResNet. All others, the decoder's too, go with it."""


@dataclass
class CameraMotion:
    """From the first of two frames to the second."""

    axis_angle: Tensor
    """(B, 3) radians."""
    translation: Tensor
    """(B, 3) in units of depth."""
    intrinsics: Tensor
    """(B, 3, 3) for pixel indices."""

    @exact
    def matrix(self, *, inverse: bool = False) -> Tensor:
        """(B, 4, 4) x -> R x + t of column vectors, or its inverse."""
        rotation = axis_angle_to_matrix(self.axis_angle)
        translation = self.translation[..., None]
        if inverse:
            rotation = rotation.mT
            translation = -rotation @ translation
        last = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(rotation).expand(len(rotation), 1, 4)
        return torch.cat([torch.cat([rotation, translation], 2), last], 1)


class Encoder(nn.Module):
    """ResNet maps of one or two frames."""

    def __init__(self, layers: int, width: int, frames: int = 1) -> None:
        super().__init__()
        self.encoder = ResNet(layers, 3 * frames, width)

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.encoder.maps((image - 0.45) / 0.225)


class _Conv3x3(nn.Module):
    """With mirrored borders."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 1), mode="reflect"))


class _ConvElu(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = _Conv3x3(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x))


class DepthDecoder(nn.Module):
    """From the five maps up to the picture's size, each level beside the encoder's map of its size.

    `decoder` holds two convolutions for each level, coarsest first, then the heads of the scales 0 to 3.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [channels[0] // 4 * 2**level for level in range(5)]
        blocks: list[nn.Module] = []
        x = channels[-1]
        for level in (4, 3, 2, 1, 0):
            width = widths[level]
            skip = channels[level - 1] if level > 0 else 0
            blocks += [_ConvElu(x, width), _ConvElu(width + skip, width)]
            x = width
        self.decoder = nn.ModuleList([*blocks, *(_Conv3x3(widths[scale], 1) for scale in range(SCALES))])

    def forward(self, maps: Sequence[Tensor], scales: int = SCALES) -> list[Tensor]:
        """Disparities (B, 1, H / 2^s, W / 2^s) of the first `scales` scales, finest first."""
        found: list[Tensor] = []
        x = maps[-1]
        for level in (4, 3, 2, 1, 0):
            first, second = 2 * (4 - level), 2 * (4 - level) + 1
            x = F.interpolate(self.decoder[first](x), scale_factor=2)
            x = self.decoder[second](torch.cat([x, maps[level - 1]], 1) if level > 0 else x)
            if level < scales:
                found.insert(0, self.decoder[10 + level](x).float().sigmoid())
        return found


class PoseDecoder(nn.Module):
    """Motion and intrinsics from the last map of a pair of frames."""

    def __init__(self, channels: int, wide: int, intrinsics: Literal["learned", "official"]) -> None:
        super().__init__()
        self.official = intrinsics == "official"
        self.net = nn.ModuleList(
            [
                nn.Conv2d(channels, wide, 1),
                nn.Conv2d(wide, wide, 3, padding=1),
                nn.Conv2d(wide, wide, 3, padding=1),
                nn.Conv2d(wide, 12, 1),  # two motions, the first is used
                nn.Conv2d(wide, 2, 3, padding=1),  # focal lengths
                nn.Conv2d(wide, 2, 3, padding=1),  # principal point
            ]
        )

    def forward(self, features: Tensor, height: int, width: int) -> CameraMotion:
        x = features
        for conv in self.net[:3]:
            x = F.relu(conv(x))
        motion = 0.01 * self.net[3](x).float().mean((2, 3))[:, :6]
        size = motion.new_tensor([width, height])
        focal = F.softplus(self.net[4](x).float()).mean((2, 3)) * size
        offset = self.net[5](x).float()
        centre = ((F.softplus(offset) if self.official else offset).mean((2, 3)) + 0.5) * size
        zero, one = torch.zeros_like(focal[:, 0]), torch.ones_like(focal[:, 0])
        rows = [focal[:, 0], zero, centre[:, 0], zero, focal[:, 1], centre[:, 1], zero, zero, one]
        return CameraMotion(motion[:, :3], motion[:, 3:], torch.stack(rows, 1).unflatten(1, (3, 3)))


class FaceDepth(nn.Module):
    """The face depth network, with what its training needs where the settings say so."""

    Config = DepthConfig

    def __init__(self, config: DepthConfig = DepthConfig()) -> None:
        super().__init__()
        self.config = config
        if config.width < 4 or config.width % 4:
            raise ValueError(f"DepthConfig: width must be a multiple of 4, got {config.width}.")
        self.depth_encoder = Encoder(config.num_layers, config.width)
        self.depth_decoder = DepthDecoder(self.depth_encoder.encoder.channels_out)
        self.pose_encoder: Encoder | None = None
        self.pose: PoseDecoder | None = None
        if config.pose:
            self.pose_encoder = Encoder(config.num_layers, config.width, frames=2)
            wide = 4 * config.width
            self.pose = PoseDecoder(self.pose_encoder.encoder.channels_out[-1], wide, config.intrinsics)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) disparity in (0, 1): what DaGAN calls depth."""
        return self.disparities(image, 1)[0]

    def disparities(self, image: Tensor, scales: int = SCALES) -> list[Tensor]:
        """Disparities of the first scales, finest first."""
        height, width = image.shape[2:]
        if height % 32 or width % 32:
            raise ValueError(f"FaceDepth: height and width must be multiples of 32, got {height} x {width}.")
        found: list[Tensor] = self.depth_decoder(self.depth_encoder(image), scales)
        return found

    def focal(self, image: Tensor) -> Tensor | None:
        """(B,) px of the camera that the training's network reads from a picture; None without that network."""
        if self.pose is None:
            return None
        intrinsics = self.camera_motion(image, image).intrinsics
        return (intrinsics[:, 0, 0] + intrinsics[:, 1, 1]) / 2

    def camera_motion(self, first: Tensor, second: Tensor) -> CameraMotion:
        """From one frame to a later one of the same video."""
        if self.pose_encoder is None or self.pose is None:
            raise ValueError(
                "FaceDepth: this model has no pose network; training needs one, see `pose` in its settings."
            )
        maps = self.pose_encoder(torch.cat([first, second], 1))
        motion: CameraMotion = self.pose(maps[-1], *first.shape[2:])
        return motion


def disparity_to_depth(disparity: Tensor) -> Tensor:
    """Depth in [0.1, 100] of a disparity in [0, 1], near = 1."""
    low, high = 1 / MAX_DEPTH, 1 / MIN_DEPTH
    return 1 / (low + (high - low) * disparity)


@exact
def reproject(image: Tensor, depth: Tensor, intrinsics: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """The target frame made from another one.

    Args:
        image: (B, 3, H, W) the other frame.
        depth: (B, 1, H, W) of the target frame.
        intrinsics: (B, 3, 3) of both.
        motion: (B, 4, 4) from the target's camera to the other's.
    Returns:
        The picture (border pixels repeated), and where it was read: (B, H, W, 2) in [-1, 1].
    """
    height, width = depth.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=depth.device), torch.arange(width, device=depth.device), indexing="ij"
    )
    pixels = torch.stack([x, y, torch.ones_like(x)]).flatten(1).to(depth)  # (3, H W)
    points = depth.flatten(2) * (torch.linalg.inv(intrinsics) @ pixels)
    seen = intrinsics @ (motion[:, :3, :3] @ points + motion[:, :3, 3:])
    position = seen[:, :2] / (seen[:, 2:] + 1e-7)
    last = position.new_tensor([width - 1, height - 1])[:, None]
    grid = (2 * position / last - 1).mT.unflatten(1, (height, width))
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False), grid
