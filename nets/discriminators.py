"""Discriminators: networks that judge whether a picture is real, patch by patch.

All give, for every scale, the list of their features; the last one is the judgement.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from .keypoints import gaussian
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


@dataclass(frozen=True)
class FommDiscriminatorConfig:
    """`discriminator_params` of FOMM's YAML files. Of their `scales` only the published [1] exists."""

    block_expansion: int = 32
    """Doubled in every block, the first included."""
    max_features: int = 512
    num_blocks: int = 4
    sn: bool = False
    """Spectral norm; G3FA has it."""
    use_kp: bool = False
    """Show it the heat maps of the driving keypoints beside the picture."""
    kp_variance: float = 0.01


class FommDiscriminator(nn.Module):
    """The discriminator of FOMM, DaGAN and G3FA, official names (`layers.rename_spectral` for those of `sn`).

    256 x 256 pixels become 26 x 26 judgements, each of 70 pixels' width; no convolution is padded.
    """

    def __init__(
        self, num_channels: int = 3, num_kp: int = 0, config: FommDiscriminatorConfig = FommDiscriminatorConfig()
    ) -> None:
        super().__init__()
        self.config = config
        self.discs = nn.ModuleDict({"1": _Scale(num_channels + num_kp * config.use_kp, config)})

    def forward(self, image: Tensor, keypoints: Tensor | None = None) -> Judgement:
        """
        Args:
            image: (B, num_channels, H, W), H and W at least 53.
            keypoints: (B, K, 2), wanted with `use_kp`; they get no gradient.
        """
        if self.config.use_kp:
            if keypoints is None:
                raise ValueError("FommDiscriminator: with use_kp it wants the driving keypoints.")
            heat = gaussian(keypoints.detach(), image.shape[2], image.shape[3], self.config.kp_variance)
            image = torch.cat([image, heat], 1)
        return [self.discs["1"](image)]


class _Scale(nn.Module):
    def __init__(self, channels: int, config: FommDiscriminatorConfig) -> None:
        super().__init__()
        top = config.max_features
        widths = [channels] + [min(top, config.block_expansion * 2 ** (i + 1)) for i in range(config.num_blocks)]
        last = config.num_blocks - 1
        self.down_blocks = nn.ModuleList(
            _Block(a, b, norm=i > 0, pool=i < last, spectral=config.sn) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.conv = _unpadded(widths[-1], 1, 1, spectral=config.sn)

    def forward(self, image: Tensor) -> list[Tensor]:
        features = [image]
        for block in self.down_blocks:
            features.append(block(features[-1]))
        return [*features[1:], self.conv(features[-1])]


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, *, norm: bool, pool: bool, spectral: bool) -> None:
        super().__init__()
        self.conv = _unpadded(channels, out, 4, spectral=spectral)
        self.norm = nn.InstanceNorm2d(out, affine=True) if norm else None
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = leaky(x if self.norm is None else self.norm(x))
        return F.avg_pool2d(x, 2) if self.pool else x


def _unpadded(channels: int, out: int, kernel: int, *, spectral: bool) -> nn.Module:
    layer = nn.Conv2d(channels, out, kernel)
    return parametrizations.spectral_norm(layer) if spectral else layer
