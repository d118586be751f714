"""SMIRK's encoder: a face crop to FLAME parameters in one pass (Retsinas et al., "3D facial expressions through
analysis-by-neural-synthesis", CVPR 2024).

    crop (B, 3, 224, 224) in [0, 1] --MobileNetV3 small--> 576 --> rotation 3, camera 3
                                    --MobileNetV3 large--> 960 --> shape 300
                                    --MobileNetV3 large--> 960 --> expression 50, eyelids 2, jaw 3

The three backbones are MobileNetV3 (Howard et al. 2019) in its "minimal" form: depthwise kernels are all 3 x 3,
activations all ReLU, and nothing is squeezed and excited. They were converted from TensorFlow: a convolution of stride
2 has its zeros at the right and lower edges only, and batch norms add 0.001 to the variance. Parameters have the
official names, which are those of timm's tf_mobilenetv3_{small,large}_minimal_100.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.head import HeadModel, HeadParams

SIDE = 224
"""Pixels: the encoder knows this size only."""
SHAPE, EXPRESSION = 300, 50
"""Coefficients of FLAME that it gives."""
_TILT = 0.2
"""Radians: how far the jaw turns at most about y and z."""
_STEM = 16
_EPS = 1e-3


@dataclass(frozen=True)
class _Plan:
    """A MobileNetV3: stages of blocks (channels inside, channels out, stride)."""

    first: int
    """Stride of the block after the stem."""
    stages: tuple[tuple[tuple[int, int, int], ...], ...]
    out: int
    """Channels of the last map."""


SMALL = _Plan(
    2,
    (
        ((72, 24, 2), (88, 24, 1)),
        ((96, 40, 2), (240, 40, 1), (240, 40, 1)),
        ((120, 48, 1), (144, 48, 1)),
        ((288, 96, 2), (576, 96, 1), (576, 96, 1)),
    ),
    576,
)
LARGE = _Plan(
    1,
    (
        ((64, 24, 2), (72, 24, 1)),
        ((72, 40, 2), (120, 40, 1), (120, 40, 1)),
        ((240, 80, 2), (200, 80, 1), (184, 80, 1), (184, 80, 1)),
        ((480, 112, 1), (672, 112, 1)),
        ((672, 160, 2), (960, 160, 1), (960, 160, 1)),
    ),
    960,
)


@dataclass(frozen=True)
class SmirkCodes:
    """The output under the names of `HeadParams`."""

    shape: Tensor
    """(B, 300)"""
    expression: Tensor
    """(B, 50)"""
    rotation: Tensor
    """(B, 3) of the head; axis-angle, radians."""
    jaw: Tensor
    """(B, 3) axis-angle, radians; x is not negative (the mouth does not close further than shut)."""
    eyelids: Tensor
    """(B, 2) left, right; 0 open ... 1 closed."""
    cam: Tensor
    """(B, 3) scale, tx, ty, see `geom.camera.WeakPerspective.from_deca`."""

    def params(self, head: HeadModel) -> HeadParams:
        """The parameters of a FLAME head; SMIRK's coefficients are the first of FLAME's, the others are 0.

        Raises:
            ValueError: the head has fewer coefficients than 300 and 50.
        """
        if head.n_shape < SHAPE or head.n_expression < EXPRESSION:
            raise ValueError(
                f"SmirkCodes.params: SMIRK gives {SHAPE} shape and {EXPRESSION} expression coefficients of FLAME; head "
                f"'{head.name}' has {head.n_shape} and {head.n_expression}."
            )
        return HeadParams.zeros(head, len(self.shape)).replace(
            shape=F.pad(self.shape, (0, head.n_shape - SHAPE)),
            expression=F.pad(self.expression, (0, head.n_expression - EXPRESSION)),
            rotation=self.rotation,
            jaw=self.jaw,
            eyelids=self.eyelids,
        )


class _Halving(nn.Conv2d):
    """3 x 3 convolution with stride 2 of maps with even sides, padded as TensorFlow does."""

    def __init__(self, channels: int, out: int, groups: int = 1) -> None:
        super().__init__(channels, out, 3, 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    if stride == 2:
        return _Halving(channels, channels, channels)
    return nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)


def _pointwise(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 1, bias=False)


class _Separable(nn.Module):
    """Depthwise and pointwise convolution, around a shortcut if the stride is 1."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut = stride == 1
        self.conv_dw = _depthwise(channels, stride)
        self.bn1 = nn.BatchNorm2d(channels, _EPS)
        self.conv_pw = _pointwise(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv_dw(x)))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.shortcut else y


class _Inverted(nn.Module):
    """Wide inside: pointwise to `width`, depthwise, pointwise to `out`; around a shortcut where shapes allow."""

    def __init__(self, channels: int, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.shortcut = stride == 1 and channels == out
        self.conv_pw = _pointwise(channels, width)
        self.bn1 = nn.BatchNorm2d(width, _EPS)
        self.conv_dw = _depthwise(width, stride)
        self.bn2 = nn.BatchNorm2d(width, _EPS)
        self.conv_pwl = _pointwise(width, out)
        self.bn3 = nn.BatchNorm2d(out, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv_pw(x)))
        y = F.relu(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.shortcut else y


class _Widening(nn.Module):
    """The last stage, a pointwise convolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = _pointwise(channels, out)
        self.bn1 = nn.BatchNorm2d(out, _EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv(x)))


class MobileNet(nn.Module):
    """MobileNetV3 minimal without its classifier: (B, 3, 224, 224) -> (B, C), the mean of the last 7 x 7 map."""

    def __init__(self, plan: _Plan) -> None:
        super().__init__()
        self.conv_stem = _Halving(3, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM, _EPS)
        stages: list[list[nn.Module]] = [[_Separable(_STEM, plan.first)]]
        channels = _STEM
        for stage in plan.stages:
            blocks: list[nn.Module] = []
            for width, out, stride in stage:
                blocks.append(_Inverted(channels, width, out, stride))
                channels = out
            stages.append(blocks)
        stages.append([_Widening(channels, plan.out)])
        self.blocks = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(F.relu(self.bn1(self.conv_stem(x)))).mean((2, 3))


class _Branch(nn.Module):
    """A backbone and one linear layer, which has a name of its own in each branch of the official network."""

    def __init__(self, plan: _Plan, layer: str, out: int) -> None:
        super().__init__()
        self.encoder = MobileNet(plan)
        self.layer = layer
        self.add_module(layer, nn.Sequential(nn.Linear(plan.out, out)))

    def forward(self, crop: Tensor) -> Tensor:
        return self.get_submodule(self.layer)(self.encoder(crop))


class SmirkEncoder(nn.Module):
    """The three branches under their official names (without the checkpoint's `smirk_encoder.` before them)."""

    def __init__(self) -> None:
        super().__init__()
        self.pose_encoder = _Branch(SMALL, "pose_cam_layers", 6)
        self.shape_encoder = _Branch(LARGE, "shape_layers", SHAPE)
        self.expression_encoder = _Branch(LARGE, "expression_layers", EXPRESSION + 5)

    def forward(self, crop: Tensor) -> SmirkCodes:
        """The codes of (B, 3, 224, 224) crops, RGB in [0, 1], not normalised further."""
        if crop.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(f"SmirkEncoder: crops must be (B, 3, {SIDE}, {SIDE}), got {tuple(crop.shape)}.")
        rotation, cam = self.pose_encoder(crop).split([3, 3], -1)
        expression, eyelids, opening, tilt = self.expression_encoder(crop).split([EXPRESSION, 2, 1, 2], -1)
        return SmirkCodes(
            shape=self.shape_encoder(crop),
            expression=expression,
            rotation=rotation,
            jaw=torch.cat([opening.relu(), tilt.clamp(-_TILT, _TILT)], -1),
            eyelids=eyelids.clamp(0, 1),
            cam=cam,
        )

    @torch.no_grad()
    def encode(self, crop: Tensor) -> SmirkCodes:
        """`forward` without gradients."""
        return self(crop)
