"""ResNet-18 and ResNet-50 without their classifier, under torchvision's parameter names (He et al. 2016, with the
stride on the 3 x 3 convolution, as torchvision and most checkpoints have it).

    picture (B, 3, H, W) --stem /4--> layer1 --> layer2 /2 --> layer3 /2 --> layer4 /2 (B, 512 or 2048, H/32, W/32)
"""

from __future__ import annotations

from copy import deepcopy

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

STAGES = 4


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions (the first with the stride) around a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (with the stride), 1 x 1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """The four stages; `forward` gives the last feature map, `maps` all five.

    `layers` is 18 or 50; `channels` those of the picture; `width` those of the first stage, doubled in
    each that follows.
    """

    def __init__(self, layers: int = 50, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        block, counts = BLOCKS[layers]
        widths = [width * 2**stage for stage in range(STAGES)]
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels_out = (width, *(block.expansion * wide for wide in widths))
        """Of the five maps."""
        channels = width
        for number, (width, count) in enumerate(zip(widths, counts, strict=True), 1):
            blocks = []
            for position in range(count):
                stride = 2 if number > 1 and position == 0 else 1
                blocks.append(block(channels, width, stride))
                channels = block.expansion * width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))

    def maps(self, x: Tensor) -> list[Tensor]:
        """(B, width, H/2, W/2) before the first pooling, then the output of each stage."""
        maps = [F.relu(self.bn1(self.conv1(x)))]
        x = self.maxpool(maps[0])
        for number in range(1, STAGES + 1):
            x = getattr(self, f"layer{number}")(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1]

    def folded(self) -> nn.Module:
        """A copy for evaluation, the batch norms inside the convolutions."""
        copy = deepcopy(self).eval()
        for module in list(copy.modules()):
            for i in (1, 2, 3):
                norm = getattr(module, f"bn{i}", None)
                if isinstance(norm, nn.BatchNorm2d):
                    setattr(module, f"conv{i}", fuse_conv_bn_eval(getattr(module, f"conv{i}"), norm))
                    setattr(module, f"bn{i}", nn.Identity())
            shortcut = getattr(module, "downsample", None)
            if isinstance(shortcut, nn.Sequential):
                conv, norm = shortcut
                assert isinstance(conv, nn.Conv2d)
                assert isinstance(norm, nn.BatchNorm2d)
                module.downsample = fuse_conv_bn_eval(conv, norm)
        return copy


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
