"""Discriminators: networks that judge whether a picture is real, patch by patch.

All give, for every scale, the list of their features; the last one is the judgement.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from .layers import conv, leaky
from .losses import image_pyramid

Judgement = list[list[Tensor]]
"""Scale -> features of the layers, the last (B, 1, h, w): larger = more real."""


@dataclass(frozen=True)
class PatchGanConfig:
    """PatchGAN (Isola et al. 2017) on several scales (Wang et al. 2018), a network for each."""

    scales: int = 3
    """Pictures judged: 1, 1/2, 1/4 ... of the size."""
    base_channels: int = 64
    """Of the first layer; doubled in each up to eight times that."""
    layers: int = 3
    """Halvings of the resolution."""
    spectral_norm: bool = True


class MultiScalePatchGan(nn.Module):
    """PWM's discriminators."""

    Config = PatchGanConfig

    def __init__(self, config: PatchGanConfig = PatchGanConfig()) -> None:
        super().__init__()
        self.config = config
        self.scales = nn.ModuleList(PatchGan(config) for _ in range(config.scales))

    def forward(self, image: Tensor) -> Judgement:
        """(B, 3, H, W) in [0, 1] -> features of every scale."""
        pictures = image_pyramid(image, self.config.scales)
        return [judge(picture) for judge, picture in zip(self.scales, pictures, strict=True)]


class PatchGan(nn.Module):
    """One scale. Receptive field of a judgement with 3 layers: 70 pixels."""

    def __init__(self, config: PatchGanConfig) -> None:
        super().__init__()
        widths = [3] + [config.base_channels * min(2**k, 8) for k in range(config.layers + 1)]
        norm = config.spectral_norm
        steps = [2] * config.layers + [1]
        self.layers = nn.ModuleList(
            conv(c, d, 4, stride=s, spectral=norm) for (c, d), s in zip(pairwise(widths), steps, strict=True)
        )
        self.judgement = conv(widths[-1], 1, 4, spectral=norm)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [2 * image - 1]
        for layer in self.layers:
            features.append(leaky(layer(features[-1])))
        return [*features[1:], self.judgement(features[-1])]
