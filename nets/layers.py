"""Layers that several networks share, one definition each."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

SLOPE = 0.2
"""Of the leaky ReLU."""


def conv(channels: int, out: int, kernel: int = 3, *, stride: int = 1, bias: bool = True, spectral: bool) -> nn.Module:
    """A convolution that keeps the size or divides it by `stride`; `spectral` norm as Miyato et al. (2018)."""
    layer = nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, bias=bias)
    return parametrizations.spectral_norm(layer) if spectral else layer


def fold_spectral_norm(module: nn.Module) -> None:
    """Writes the normalised weights into plain convolutions, in place; results stay those of `module.eval()`.

    The convolutions are new ones: to remove a parametrization from one copy of a module removes it from all, because
    copies share the class that it hangs on.
    """
    module.eval()  # so that reading a weight does not move the estimate of its norm
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and parametrize.is_parametrized(child, "weight"):
            has_bias = child.bias is not None
            kernel, stride, padding = child.kernel_size, child.stride, child.padding
            plain = nn.Conv2d(child.in_channels, child.out_channels, kernel, stride, padding, bias=has_bias)  # type: ignore[arg-type]
            plain.load_state_dict({"weight": child.weight, **({"bias": child.bias} if has_bias else {})})
            plain.to(child.weight, memory_format=torch.channels_last)  # type: ignore[call-overload]
            setattr(module, name, plain.train(child.training))
        else:
            fold_spectral_norm(child)


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def instance_norm(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    """(B, C, H, W) with mean 0 and variance 1 in every channel of every picture; channels_last in and out.

    As sums over the rows of (B, H W, C), which the CPU takes at memory speed; `torch.var_mean` over the same pixels is
    eighteen times slower in this memory order.
    """
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    centred = pixels - pixels.mean(1, keepdim=True)
    scale = (centred.square().mean(1, keepdim=True) + epsilon).rsqrt()
    return (centred * scale).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def moments(x: Tensor, epsilon: float = 1e-5) -> tuple[Tensor, Tensor]:
    """(B, C) mean, and 1 over the standard deviation, of every channel of every picture: what `instance_norm` takes off
    and multiplies with. In strips, so that nothing but x itself leaves the cache."""
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    mean = pixels.mean(1)
    strips = pixels.split(max(1, 250_000 // x.shape[1]), 1)
    squares = sum(((strip - mean[:, None]).square_().sum(1) for strip in strips), torch.zeros_like(mean))
    return mean, (squares / pixels.shape[1] + epsilon).rsqrt()


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
    """The residual block of SPADE: two modulated convolutions around a modulated 1 x 1 shortcut.

    `spectral` norm on the three convolutions; on those inside the modulations too unless `spectral_norms` is False.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        guidance: int,
        hidden: int = 128,
        *,
        spectral: bool = True,
        spectral_norms: bool = True,
    ) -> None:
        super().__init__()
        middle = min(channels, out)
        inner = spectral and spectral_norms
        self.norm_0 = Spade(channels, guidance, hidden, spectral=inner)
        self.norm_1 = Spade(middle, guidance, hidden, spectral=inner)
        self.conv_0 = conv(channels, middle, spectral=spectral)
        self.conv_1 = conv(middle, out, spectral=spectral)
        self.learned_shortcut = channels != out
        if self.learned_shortcut:
            self.norm_s = Spade(channels, guidance, hidden, spectral=inner)
            self.conv_s = conv(channels, out, 1, bias=False, spectral=spectral)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, guidance)) if self.learned_shortcut else x
        y = self.conv_0(leaky(self.norm_0(x, guidance)))
        y = self.conv_1(leaky(self.norm_1(y, guidance)))
        return shortcut + y


_SPECTRAL_NAMES = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}


def rename_spectral(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names of the older `torch.nn.utils.spectral_norm`, which published checkpoints use, in
    those of `conv`; other names stay."""
    renamed = {}
    for name, value in state.items():
        head, _, last = name.rpartition(".")
        renamed[f"{head}.{_SPECTRAL_NAMES[last]}" if last in _SPECTRAL_NAMES else name] = value
    return renamed


def corner_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(H, W, 2) x, y of every pixel, where -1 and 1 are the *centres* of the border pixels, as in FOMM."""
    x = torch.linspace(-1, 1, width, dtype=like.dtype, device=like.device)
    y = torch.linspace(-1, 1, height, dtype=like.dtype, device=like.device)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)


class AntiAlias(nn.Module):
    """FOMM's shrinking by a whole factor: a Gaussian against aliasing, then every (1 / scale)-th pixel from the first.

    sigma = (1 / scale - 1) / 2, cut at 4 sigma; outside the picture lies 0.
    """

    weight: Tensor

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.stride = round(1 / scale)
        if abs(self.stride * scale - 1) > 1e-6:
            raise ValueError(f"AntiAlias: scale must be 1 over a whole number, got {scale}.")
        sigma = (self.stride - 1) / 2
        radius = round(4 * sigma)
        x = torch.arange(-radius, radius + 1, dtype=torch.float64)
        line = torch.exp(-0.5 * (x / sigma) ** 2) if sigma > 0 else torch.ones(1, dtype=torch.float64)
        kernel = line[:, None] * line
        self.register_buffer("weight", (kernel / kernel.sum()).float().expand(channels, 1, -1, -1).clone())

    def forward(self, image: Tensor) -> Tensor:
        if self.stride == 1:
            return image
        radius = self.weight.shape[-1] // 2
        return F.conv2d(image, self.weight, stride=self.stride, padding=radius, groups=len(self.weight))


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU: FOMM's `SameBlock2d`, and what its halving and doubling blocks are made of.

    `folded()` of this and the following blocks is a stand-in that computes the same faster and cannot be trained.
    """

    def __init__(self, channels: int, out: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def _convolution(self) -> nn.Conv2d:
        """The convolution with the batch norm's running statistics in its weights."""
        return fuse_conv_bn_eval(self.conv, self.norm)

    def folded(self) -> nn.Module:
        return nn.Sequential(self._convolution(), nn.ReLU(inplace=True))


class Down(ConvNorm):
    """`ConvNorm`, then means of 2 x 2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)

    def folded(self) -> nn.Module:
        return nn.Sequential(self._convolution(), nn.ReLU(inplace=True), nn.AvgPool2d(2))


class Up(ConvNorm):
    """Every pixel twice each way, then `ConvNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2))

    def folded(self) -> nn.Module:
        return nn.Sequential(DoublingConv(self._convolution()), nn.ReLU(inplace=True))


class DoublingConv(nn.Module):
    """A 3 x 3 convolution (padding 1) of a picture whose pixels stand twice each way, from the small picture: 16
    products per small pixel in place of 36.

    The four large pixels around the corner of four small ones see only these four, so one 2 x 2 convolution with four
    times the outputs makes all of them; its weights are sums of the 3 x 3 ones.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        kernel = conv.weight.detach()  # (out, in, 3, 3)
        # of the large row above a small row's lower edge and of the one below it: which small row each tap meets
        above = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).to(kernel)
        below = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]).to(kernel)
        side = torch.stack([above, below])  # (2 large, 2 small, 3 taps)
        self.conv = nn.Conv2d(kernel.shape[1], 4 * len(kernel), 2, padding=1).to(kernel).requires_grad_(False)
        weight = torch.einsum("yap,xbq,oipq->oyxiab", side, side, kernel).flatten(0, 2)
        bias = kernel.new_zeros(len(kernel)) if conv.bias is None else conv.bias.detach()
        self.conv.load_state_dict({"weight": weight, "bias": bias.repeat_interleave(4)})

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)[:, :, 1:-1, 1:-1]


class UpsampledConv(nn.Module):
    """A 3 x 3 convolution (padding 1) and a ReLU of a picture whose pixels stand `factor` times each way, from the
    small picture: 25 products per small pixel in place of 9 factor^2, borders included.

    Inside the cell of a small pixel all results are equal; along its edges they depend on one neighbour, in its corners
    on three. So one convolution each for corners, the two kinds of edges, and insides; their weights are sums of the
    3 x 3 ones. For a factor of 2 there are only corners, 16 products, as in `DoublingConv`.
    """

    def __init__(self, conv: nn.Conv2d, factor: int) -> None:
        super().__init__()
        if factor < 2 or conv.kernel_size != (3, 3) or conv.padding != (1, 1) or conv.stride != (1, 1):
            raise ValueError(
                f"UpsampledConv: wants a 3 x 3 convolution with padding 1 and a factor from 2, got {conv} and {factor}."
            )
        self.factor = factor
        self.channels = conv.out_channels
        kernel = conv.weight.detach()
        # (large pixels, small pixels that they meet, taps): last row of a cell, first row of the next; rows inside
        side = torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]]).to(kernel)
        inside = torch.ones(1, 1, 3).to(kernel)

        def sums(rows: Tensor, columns: Tensor) -> nn.Parameter:
            weight = torch.einsum("yap,xbq,oipq->yxoiab", rows, columns, kernel).flatten(0, 2)
            return nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)

        self.corners, self.rows = sums(side, side), sums(side, inside)
        self.columns, self.insides = sums(inside, side), sums(inside, inside)
        bias = kernel.new_zeros(len(kernel)) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Parameter(bias.repeat(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, O, factor h, factor w), channels_last."""
        out, factor = self.channels, self.factor
        x = x.contiguous(memory_format=torch.channels_last)

        def results(weight: Tensor, padding: tuple[int, int]) -> Tensor:
            y = F.relu_(F.conv2d(x, weight, self.bias[: len(weight)], padding=padding))
            return y.permute(0, 2, 3, 1).unflatten(3, (-1, out))  # (B, h or h + 1, w or w + 1, kinds, O)

        batch, _, height, width = x.shape
        picture = x.new_empty(batch, height, factor, width, factor, out)
        if factor > 2:
            picture[:, :, 1:-1, :, 1:-1] = results(self.insides, (0, 0))[:, :, None]
            edge = results(self.rows, (1, 0))
            picture[:, :, -1, :, 1:-1] = edge[:, 1:, :, :1]
            picture[:, :, 0, :, 1:-1] = edge[:, :-1, :, 1:]
            edge = results(self.columns, (0, 1))[:, :, None]
            picture[:, :, 1:-1, :, -1] = edge[:, :, :, 1:, 0]
            picture[:, :, 1:-1, :, 0] = edge[:, :, :, :-1, 1]
        corner = results(self.corners, (1, 1)).unflatten(3, (2, 2))
        picture[:, :, -1, :, -1] = corner[:, 1:, 1:, 0, 0]
        picture[:, :, -1, :, 0] = corner[:, 1:, :-1, 0, 1]
        picture[:, :, 0, :, -1] = corner[:, :-1, 1:, 1, 0]
        picture[:, :, 0, :, 0] = corner[:, :-1, :-1, 1, 1]
        return picture.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class Res(nn.Module):
    """x + conv(ReLU(norm(conv(ReLU(norm(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))

    def folded(self) -> nn.Module:
        return _FoldedRes(self)


class _FoldedRes(nn.Module):
    def __init__(self, block: Res) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.conv1 = fuse_conv_bn_eval(block.conv1, block.norm2)
        self.conv2 = block.conv2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.conv1(F.relu_(self.norm1(x))))
        return self.conv2(y).add_(x)


class _HourglassEncoder(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for block in self.down_blocks:
            maps.append(block(maps[-1]))
        return maps


class _HourglassDecoder(nn.Module):
    def __init__(self, channels: list[int], widths: list[int]) -> None:
        super().__init__()
        self.up_blocks = nn.ModuleList(Up(a, b) for a, b in zip(channels, widths, strict=True))

    def forward(self, maps: list[Tensor]) -> Tensor:
        maps = list(maps)
        x = maps.pop()
        for block in self.up_blocks:
            x = torch.cat([block(x), maps.pop()], 1)
        return x


class Hourglass(nn.Module):
    """FOMM's UNet: `blocks` halvings and doublings, each doubled map beside the map of its size on the way down.

    (B, C, H, W) -> (B, `channels_out` = block_expansion + C, H, W); H and W are multiples of 2 ** blocks.
    """

    def __init__(self, block_expansion: int, channels: int, blocks: int, max_features: int) -> None:
        super().__init__()
        wide = [min(max_features, block_expansion * 2**i) for i in range(blocks + 1)]
        ups = range(blocks - 1, -1, -1)
        self.encoder = _HourglassEncoder([channels, *wide[1:]])
        self.decoder = _HourglassDecoder(
            [wide[i + 1] * (1 if i == blocks - 1 else 2) for i in ups], [wide[i] for i in ups]
        )
        self.channels_out = block_expansion + channels

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))
