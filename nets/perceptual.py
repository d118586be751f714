"""Frozen classification networks whose features say how alike two pictures look, behind one interface.

    backbone(image (B, 3, H, W) in [0, 1])  ->  features of some layers, fine to coarse

The classes are definitions under the parameter names of the published weights; `third_party.backbones.load_backbone`
finds and reads the files.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Features = list[Tensor]


class Backbone(nn.Module):
    """A network without its classifier. Its pictures are in [0, 1]; it normalises them itself."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        return ((image - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Features:
        raise NotImplementedError

    def freeze(self) -> Backbone:
        """Ready to judge: evaluation mode, no gradients to the weights, channels_last."""
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.eval().requires_grad_(False)


VGG19_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Channels and convolutions between the poolings."""
FIRST = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
"""What FOMM, DaGAN and G3FA compare."""
LAST = ("relu1_2", "relu2_2", "relu3_4", "relu4_4", "relu5_4")
"""The last convolution of every block before the pooling: what PWM compares."""


class Vgg19(Backbone):
    """VGG-19 (Simonyan and Zisserman 2015) under torchvision's names, as deep as the layers that are asked for."""

    def __init__(self, layers: tuple[str, ...] = FIRST) -> None:
        """`layers`: relu{block}_{convolution}, counted from 1."""
        super().__init__((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        modules: list[nn.Module] = []
        self._taken: list[int] = []
        known = []
        channels = 3
        for block, (width, count) in enumerate(VGG19_BLOCKS, 1):
            for number in range(1, count + 1):
                # Not in place: a feature is kept while the next layer is computed.
                modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
                known.append(f"relu{block}_{number}")
                if known[-1] in layers:
                    self._taken.append(len(modules) - 1)
            modules.append(nn.MaxPool2d(2))
        unknown = [name for name in layers if name not in known]
        if unknown or not layers:
            raise ValueError(f"Vgg19: layers must be some of {', '.join(known)}, got {', '.join(unknown) or 'none'}.")
        self.features = nn.Sequential(*modules[: self._taken[-1] + 1])

    def forward(self, image: Tensor) -> Features:
        taken = []
        x = self.normalise(image)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taken:
                taken.append(x)
        return taken


# EfficientNet-Lite0: repeats, kernel, stride, expansion, channels in and out
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
_TAKEN = (0, 2, 4, 10, 15)  # the last blocks before the resolution halves


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 (Tan and Le 2019, Google's variant without squeeze-and-excitation and with ReLU6) under the
    names of its PyTorch port. Features have 16, 24, 40, 112, 320 channels at 1/2 ... 1/32 of the size."""

    def __init__(self) -> None:
        super().__init__((127 / 255,) * 3, (128 / 255,) * 3)
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks = []
        for repeats, kernel, stride, expansion, channels, out in STAGES:
            for number in range(repeats):
                first = number == 0
                blocks.append(_Inverted(channels if first else out, out, kernel, stride if first else 1, expansion))
        self._blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> Features:
        taken = []
        x = F.relu6(self._bn0(_same(self._conv_stem, self.normalise(image))))
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in _TAKEN:
                taken.append(x)
        return taken


class _Inverted(nn.Module):
    """Expand 1 x 1, filter every channel, project 1 x 1, around a shortcut where the shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = channels * expansion
        self._shortcut = stride == 1 and channels == out
        self._expands = expansion > 1
        if self._expands:
            self._expand_conv = nn.Conv2d(channels, middle, 1, bias=False)
            self._bn0 = _norm(middle)
        self._depthwise_conv = nn.Conv2d(middle, middle, kernel, stride, groups=middle, bias=False)
        self._bn1 = _norm(middle)
        self._project_conv = nn.Conv2d(middle, out, 1, bias=False)
        self._bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = F.relu6(self._bn1(_same(self._depthwise_conv, y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._shortcut else y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's SAME padding: ceil(size / stride) pixels come out, the odd pixel of padding right and below."""
    stride, kernel = cast(tuple[int, int], layer.stride)[0], layer.kernel_size[0]
    if stride == 1:
        return F.conv2d(x, layer.weight, None, 1, kernel // 2, 1, layer.groups)
    total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (x.shape[3], x.shape[2])]
    return layer(F.pad(x, [total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2]))
