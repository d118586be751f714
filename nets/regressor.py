"""A small encoder from a face crop to the parameters of a head: the first word of a fit, in one pass.

    crop (B, 3, S, S) --stem /4--> four stages of residual blocks (He et al. 2016), /2 each
        --mean, and a few channels of the whole last map--> linear --> `HeadCodes`

The pose is that of a face seen along the ray through the middle of the crop, so that the same picture means the same
codes wherever in the camera's picture it was cut out; `HeadCodes.params` puts it into the camera. Rotations are two
columns of their matrix, made orthonormal (Zhou et al. 2019, "On the continuity of rotation representations").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams
from ..geom.precision import exact
from ..geom.rotation import axis_angle_to_matrix, matrix_to_axis_angle


@dataclass(frozen=True)
class RegressorConfig:
    size: int = 128
    """Side of the crops, pixels; a multiple of 32."""
    scale: float = 1.6
    """Side of the crops in face sizes (longer side of the landmarks' box), around the face with `up`."""
    up: float = 0.085
    """The crop's middle is above the box's by this share of the crop's side."""
    channels: tuple[int, ...] = (40, 80, 160, 320)
    """Of the stages."""
    blocks: int = 2
    """Per stage."""
    n_shape: int = 100
    n_expression: int = 50
    """Coefficients of the head it is trained for."""
    head_sha256: str = ""
    """Of that head; empty before training."""


@dataclass
class HeadCodes:
    """What the network says of B crops."""

    shape: Tensor
    """(B, S)"""
    expression: Tensor
    """(B, E)"""
    turn: Tensor
    """(B, 3, 3) rotation of the head as seen along the crop's middle ray."""
    place: Tensor
    """(B, 2) the point between the eyes, -1 ... 1 over the crop, x right, y down."""
    size: Tensor
    """(B,) logarithm of how many crops a metre is long at that point."""
    jaw: Tensor
    """(B, 3) axis-angle."""
    gaze: Tensor
    """(B, 2) rotation of both eyes about x and y, radians."""
    eyelids: Tensor
    """(B, 2) 0 ... 1"""

    @exact
    def params(self, head: HeadModel, camera: Camera, side: int) -> HeadParams:
        """`HeadParams` (B).

        Args:
            head: the one it was trained for.
            camera: of the crops, in their pixels; batch 1 or B.
            side: of the crops.
        """
        eyes = torch.cat([self.gaze, torch.zeros_like(self.gaze[:, :1])], 1)
        params = HeadParams(
            shape=self.shape,
            expression=self.expression,
            rotation=matrix_to_axis_angle(looking(camera, side) @ self.turn),
            neck=torch.zeros_like(self.jaw),
            jaw=self.jaw,
            eyes=torch.cat([eyes, eyes], 1),
            eyelids=self.eyelids.clamp(0, 1),
            translation=torch.zeros_like(self.jaw),
        )
        depth = camera.focal / (self.size.exp() * side)
        pixel = (self.place + 1) * (side / 2)
        wanted = camera.unproject(torch.cat([pixel, depth[:, None]], 1)[:, None])[:, 0]
        return params.replace(translation=wanted - between_eyes(head, params))


def between_eyes(head: HeadModel, params: HeadParams) -> Tensor:
    """(B, 3) the point between the eyeballs' centres in the world."""
    return head.joints(params)[:, 3:5].mean(1)


@exact
def looking(camera: Camera, side: int) -> Tensor:
    """(B, 3, 3) the shortest rotation from the camera's axis to the ray through the crops' middle."""
    middle = torch.full((len(camera), 1, 2), side / 2).to(camera.focal)
    ray = F.normalize(camera.unproject(torch.cat([middle, torch.ones_like(middle[..., :1])], -1))[:, 0], dim=-1)
    axis = torch.linalg.cross(ray.new_tensor([0.0, 0.0, -1.0]).expand_as(ray), ray)  # length = sine of the angle
    sine = axis.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine, -ray[:, 2:])
    return axis_angle_to_matrix(axis / sine.clamp_min(1e-9) * angle)


@exact
def orthonormal(columns: Tensor) -> Tensor:
    """(B, 3, 3) rotation matrices of two columns (B, 6)."""
    first, second = columns.unflatten(-1, (2, 3)).unbind(-2)
    first = F.normalize(first, dim=-1)
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


class _Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; halves the map with `stride` 2."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(channels, width, 1, bias=False))
        nn.init.zeros_(self.norm2.weight)  # a deep net starts as a shallow one

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class HeadRegressor(nn.Module):
    """See the module docstring."""

    Config = RegressorConfig
    WHERE = 32
    """Channels of the last map that are read with their places."""

    def __init__(self, config: RegressorConfig = RegressorConfig()) -> None:
        super().__init__()
        if config.size % 32:
            raise ValueError(f"RegressorConfig: size must be a multiple of 32, got {config.size}.")
        self.config = config
        widths = config.channels
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, 4, 3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        stages: list[nn.Module] = []
        before = widths[0]
        for number, width in enumerate(widths):
            for block in range(config.blocks):
                stages.append(_Block(before, width, 2 if number and not block else 1))
                before = width
        self.stages = nn.Sequential(*stages)
        self.where = nn.Conv2d(before, self.WHERE, 1)
        cells = (config.size // 4 // 2 ** (len(widths) - 1)) ** 2
        self._parts = [config.n_shape, config.n_expression, 6, 2, 1, 3, 2, 2]
        self.out = nn.Linear(before + cells * self.WHERE, sum(self._parts))
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, crop: Tensor) -> HeadCodes:
        """Codes of crops (B, 3, size, size), RGB in [0, 1]."""
        side = self.config.size
        if crop.shape[1:] != (3, side, side):
            raise ValueError(f"HeadRegressor: crops must be (B, 3, {side}, {side}), got {tuple(crop.shape)}.")
        features = self.stages(self.stem(4 * crop - 2))
        seen = torch.cat([features.mean((2, 3)), F.relu(self.where(features)).flatten(1)], 1)
        shape, expression, turn, place, size, jaw, gaze, eyelids = self.out(seen).split(self._parts, -1)
        upright = turn.new_tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
        return HeadCodes(
            shape=shape,
            expression=expression,
            turn=orthonormal(turn + upright),
            place=place,
            # a face is about 0.2 m long, so that a metre is some three crops
            size=size[:, 0] + 1.1,
            jaw=0.2 * jaw,
            gaze=0.2 * gaze,
            eyelids=eyelids,
        )
