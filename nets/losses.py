"""Losses as functions and small modules; weights are the caller's. Pictures are (B, 3, H, W) in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import AntiAlias
from .perceptual import Backbone

Adversary = Literal["hinge", "least_squares", "logistic"]


def image_pyramid(image: Tensor, scales: int) -> list[Tensor]:
    """The picture and its halves, quarters ... (means over pixels), `scales` in all."""
    pictures = [image]
    for _ in range(scales - 1):
        pictures.append(F.avg_pool2d(pictures[-1], 2))
    return pictures


def gaussian_pyramid(image: Tensor, scales: int) -> list[Tensor]:
    """FOMM's: the picture, and for 1/2, 1/4 ... of it a Gaussian and every 2nd, 4th ... pixel (`layers.AntiAlias`)."""
    return [AntiAlias(image.shape[1], 0.5**i).to(image)(image) for i in range(scales)]


def fooling_loss(fake: Tensor, kind: Adversary = "hinge") -> Tensor:
    """What the generator minimises, from the judgement of its pictures.

    hinge -D (Lim and Ye 2017), least squares (D - 1)^2 (Mao et al. 2017), logistic -log sigmoid(D), the non-saturating
    form of Goodfellow et al. (2014).
    """
    if kind == "hinge":
        return -fake.mean()
    if kind == "least_squares":
        return (fake - 1).square().mean()
    return F.softplus(-fake).mean()


def critic_loss(real: Tensor, fake: Tensor, kind: Adversary = "hinge") -> Tensor:
    """What the discriminator minimises, from its judgements of real pictures and of generated ones (detached).

    hinge max(0, 1 - D(real)) + max(0, 1 + D(fake)), least squares (D(real) - 1)^2 + D(fake)^2, logistic
    -log sigmoid(D(real)) - log sigmoid(-D(fake)).
    """
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "least_squares":
        return (real - 1).square().mean() + fake.square().mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Sum over scales and layers of the mean |difference| of a discriminator's features, its judgement left out.

    Wang et al. (2018). The real features do not receive gradients.
    """
    total = fake[0][0].new_zeros(())
    for of_real, of_fake in zip(real, fake, strict=True):
        for target, feature in zip(of_real[:-1], of_fake[:-1], strict=True):
            total = total + (feature - target.detach()).abs().mean()
    return total


class PerceptualLoss(nn.Module):
    """sum over scales s, layers j of mean |V_j(image^s) - V_j(target^s)| (Johnson et al. 2016, on a pyramid)."""

    def __init__(
        self,
        backbone: Backbone,
        scales: int = 3,
        *,
        relative: bool = False,
        shrink: Callable[[Tensor, int], list[Tensor]] = image_pyramid,
    ) -> None:
        """
        Args:
            backbone: frozen.
            scales: pictures of 1, 1/2, 1/4 ... of the size.
            relative: divide each term by the mean |V_j(target^s)|, for backbones whose layers differ in magnitude.
            shrink: makes the pyramid; `image_pyramid` or `gaussian_pyramid`.
        """
        super().__init__()
        self.shrink = shrink
        self.backbone, self.scales, self.relative = backbone, scales, relative

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        total = image.new_zeros(())
        for small, small_target in zip(self.shrink(image, self.scales), self.shrink(target, self.scales), strict=True):
            with torch.no_grad():
                wanted = self.backbone(small_target)
            for feature, goal in zip(self.backbone(small), wanted, strict=True):
                difference = (feature - goal).abs().mean()
                total = total + (difference / goal.abs().mean() if self.relative else difference)
        return total
