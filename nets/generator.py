"""The generator of FOMM and DaGAN: features of the source, moved by the dense motion, become the picture.

    source --first, down_blocks--> features --warp, occlusion--> f --AttnModule--> f' --decoder--> picture
    disparity of the source --src_first, src_down_blocks--> query of the attention ---^

FOMM (Siarohin et al. 2019) has no attention. DaGAN (Hong et al., "Depth-aware generative adversarial network for
talking head video generation", 2022, section 3.3) asks, with the depth of the source, where in the moved features to
look.
Feature maps are (B, C, h, w), h = H / 2 ** num_down_blocks.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.precision import exact
from .dense_motion import DenseMotion, DenseMotionConfig, DenseMotionNetwork, warp_features
from .keypoints import Motion
from .layers import SLOPE, ConvNorm, Down, Res, Spade, SpadeResBlock, Up, leaky, moments
from .scale import ScaledMotion, ScaleEmbedding
from .winograd import convolve


@dataclass(frozen=True)
class GeneratorConfig:
    """`generator_params` of FOMM's YAML files."""

    block_expansion: int = 64
    """Channels at full resolution; doubled at every halving."""
    max_features: int = 512
    num_down_blocks: int = 2
    num_bottleneck_blocks: int = 6
    estimate_occlusion_map: bool = True
    dense_motion_params: DenseMotionConfig = field(default_factory=DenseMotionConfig)


@dataclass
class SourceState:
    """What of a source does not depend on the driver."""

    image: Tensor
    """(B, 3, H, W) in [0, 1]."""
    motion: Motion
    """(B) its own keypoints."""
    small: Tensor
    """(B, 3, h, w) the picture as the dense motion sees it."""
    features: Tensor
    """(B, C, h, w); of the first halving only where a scale embedding changes the others with the driver."""
    disparity: Tensor | None = None
    """(B, 1, H, W) in (0, 1), 1 is near; where a network uses depth."""
    query: Tensor | None = None
    """(B, C / 8, h, w) of the attention, where it comes from the depth."""

    def expand(self, batch: int) -> SourceState:
        """One source for a batch of driving frames."""
        if len(self.image) == batch:
            return self

        def each(tensor: Tensor) -> Tensor:
            return tensor.expand(batch, -1, -1, -1)

        return SourceState(
            each(self.image),
            self.motion.expand(batch),
            each(self.small),
            each(self.features),
            None if self.disparity is None else each(self.disparity),
            None if self.query is None else each(self.query),
        )


@dataclass
class Output:
    """A rendered batch."""

    image: Tensor
    """(B, 3, H, W) in [0, 1]."""
    dense: DenseMotion
    features: Tensor
    """(B, C, h, w) of the source, warped and dimmed by the occlusion: what the attention is asked about."""


class Attention(nn.Module):
    """DaGAN's attention, official names (its `AttnModule`).

        out = gamma softmax(q^T k) v + f,   q = ReLU(query_conv(d)), k = ReLU(key_conv(f)), v = ReLU(value_conv(f))

    over the h w positions, without a division by sqrt(channels); d is the depth features of the *unmoved* source
    (cross-modal attention), or f itself (self-attention). gamma starts at 0.
    """

    CHUNK = 512
    """Queries at a time on a CPU, so that the weights of all positions (64 MB at 64 x 64) never exist."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    @exact  # logits are exponents
    def query(self, guide: Tensor) -> Tensor:
        """(B, C / 8, h, w) from the features that ask."""
        return F.relu(self.query_conv(guide.float()))

    @exact
    def forward(self, query: Tensor, features: Tensor) -> Tensor:
        features = features.float()
        q = query.flatten(2).mT  # (B, N, C / 8)
        k = F.relu(self.key_conv(features)).flatten(2).mT
        v = F.relu(self.value_conv(features)).flatten(2).mT  # (B, N, C)
        if features.device.type == "cpu":
            parts = [(part @ k.mT).softmax(-1) @ v for part in q.split(self.CHUNK, 1)]
            found = torch.cat(parts, 1)
        else:
            found = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return torch.addcmul(features, self.gamma, found.mT.unflatten(2, features.shape[2:]))

    def weights(self, query: Tensor, features: Tensor, row: int, column: int) -> Tensor:
        """(B, h, w) where one position of the query looks; the sum is 1."""
        k = F.relu(self.key_conv(features.float()))
        logits = (query[:, :, row, column, None, None] * k).sum(1)
        return logits.flatten(1).softmax(1).unflatten(1, logits.shape[1:])


class _Bottleneck(nn.Sequential):
    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        for i in range(blocks):
            self.add_module(f"r{i}", Res(channels))


class SpadeDecoder(nn.Module):
    """DaGAN's second decoder, official names; its label map is 4 channels of the features and the warped picture."""

    def __init__(self, channels: int, num_channels: int = 3) -> None:
        super().__init__()

        def block(channels: int, out: int) -> SpadeResBlock:
            return SpadeResBlock(channels, out, 4 + num_channels, spectral_norms=False)

        self.compress = nn.Conv2d(channels, 4, 3, padding=1)
        self.fc = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.G_middle_0 = block(2 * channels, 2 * channels)
        self.G_middle_1 = block(2 * channels, 2 * channels)
        self.G_middle_2 = block(2 * channels, 2 * channels)
        self.up_0 = block(2 * channels, channels)
        self.up_1 = block(channels, channels // 4)
        self.conv_img = nn.Conv2d(channels // 4, num_channels, 3, padding=1)

    def folded(self) -> nn.Module:
        copy = deepcopy(self)
        for name, block in self.named_children():
            if isinstance(block, SpadeResBlock):
                setattr(copy, name, _FoldedSpadeBlock(block))
        return copy

    def forward(self, features: Tensor, warped: Tensor) -> Tensor:
        """(B, 3, H, W) from (B, C, H / 4, W / 4) features and the (B, 3, H, W) warped, dimmed source."""
        label = torch.cat([F.interpolate(self.compress(features), warped.shape[2:]), warped], 1)
        x = self.fc(features)
        coarse = F.interpolate(label, x.shape[2:])
        for block in (self.G_middle_0, self.G_middle_1, self.G_middle_2):
            x = block(x, coarse)
        for block in (self.up_0, self.up_1):
            size = [2 * side for side in x.shape[2:]]
            x = self.doubled(block, x, F.interpolate(label, size))
        return self.conv_img(leaky(x)).float().sigmoid()

    @staticmethod
    def doubled(block: nn.Module, x: Tensor, guidance: Tensor) -> Tensor:
        """The block's (B, O, 2 H, 2 W) of a map (B, C, H, W), every pixel of which stands for four."""
        if isinstance(block, _FoldedSpadeBlock):
            return block.of_normal(_Normal(x, double=True), None, guidance)
        result: Tensor = block(F.interpolate(x, scale_factor=2), guidance)
        return result


class _Normal:
    """`instance_norm` of a map, made where it is needed; with `double`, of the map at twice its size."""

    def __init__(self, x: Tensor, *, double: bool = False) -> None:
        self.pixels, self.double = x.permute(0, 2, 3, 1), double
        self.mean, self.scale = moments(x)

    def rows(self, picture: int, top: int, count: int) -> Tensor:
        """(count, W, C); with `double`, top and count are even."""
        if self.double:
            top, count = top // 2, count // 2
        rows = (self.pixels[picture, top : top + count] - self.mean[picture]).mul_(self.scale[picture])
        if self.double:
            rows = rows[:, None, :, None].expand(-1, 2, -1, 2, -1).flatten(0, 1).flatten(1, 2)
        return rows


class _FoldedSpade(nn.Module):
    """`Spade` and the activation after it, with both of its last convolutions as one. Gain and shift of a few rows are
    used while they are in the cache: as maps they would be twice as large as the result."""

    def __init__(self, norm: Spade) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(norm.mlp_shared[0], nn.ReLU(inplace=True))
        self.both = joined(_plain(norm.mlp_gamma), _plain(norm.mlp_beta))
        self.channels = _plain(norm.mlp_beta).out_channels

    def forward(self, normal: _Normal, guidance: Tensor) -> Tensor:
        def finish(both: Tensor, picture: int, top: int) -> Tensor:
            gain, beta = both.chunk(2, -1)
            return F.leaky_relu_(torch.addcmul(beta, normal.rows(picture, top, len(both)), gain), SLOPE)

        return convolve(self.both, self.mlp_shared(guidance), finish, self.channels)


class _FoldedShortcut(nn.Module):
    """conv_s(norm (1 + gamma) + beta) as conv_s(norm (1 + gamma)) + beta', where one convolution makes beta' = conv_s
    beta with the fewer channels of the result."""

    def __init__(self, norm: Spade, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach().flatten(1)  # (O, C)
        gamma, beta = _plain(norm.mlp_gamma), _plain(norm.mlp_beta)
        assert beta.bias is not None
        small = nn.Conv2d(beta.in_channels, len(weight), 3, padding=1)
        small.load_state_dict(
            {"weight": torch.einsum("oc,ciyx->oiyx", weight, beta.weight), "bias": weight @ beta.bias}
        )
        self.mlp_shared = nn.Sequential(norm.mlp_shared[0], nn.ReLU(inplace=True))
        self.both = joined(gamma, small)
        self.weight: Tensor
        self.register_buffer("weight", weight.T.contiguous(), persistent=False)  # (C, O)

    def forward(self, normal: _Normal, guidance: Tensor) -> Tensor:
        channels, out = self.weight.shape

        def finish(both: Tensor, picture: int, top: int) -> Tensor:
            product = normal.rows(picture, top, len(both)).mul_(both[..., :channels])
            beta = both[..., channels:].flatten(0, 1).to(product)
            made = torch.addmm(beta, product.flatten(0, 1), self.weight.to(product))
            return made.unflatten(0, both.shape[:2])

        return convolve(self.both, self.mlp_shared(guidance), finish, out)


class _FoldedSpadeBlock(nn.Module):
    def __init__(self, block: SpadeResBlock) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = _FoldedSpade(block.norm_0), _FoldedSpade(block.norm_1)
        self.conv_0, self.conv_1 = block.conv_0, block.conv_1
        self.shortcut: _FoldedShortcut | None = None
        if block.learned_shortcut:
            self.shortcut = _FoldedShortcut(block.norm_s, _plain(block.conv_s))

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        return self.of_normal(_Normal(x), x, guidance)

    def of_normal(self, normal: _Normal, x: Tensor | None, guidance: Tensor) -> Tensor:
        """Of the map whose normal is the first norm's and the shortcut's; x itself where there is no other shortcut."""
        shortcut = x if self.shortcut is None else self.shortcut(normal, guidance)
        assert shortcut is not None
        y = self.conv_0(self.norm_0(normal, guidance))
        return self.conv_1(self.norm_1(_Normal(y), guidance)).add_(shortcut)


def joined(gamma: nn.Conv2d, beta: nn.Conv2d) -> nn.Conv2d:
    """The convolutions that make gamma and beta of a map as one, which gives 1 + gamma before beta."""
    both = nn.Conv2d(gamma.in_channels, gamma.out_channels + beta.out_channels, 3, padding=1)
    assert gamma.bias is not None
    parts = [{"weight": gamma.weight, "bias": gamma.bias + 1}, beta.state_dict()]
    both.load_state_dict({name: torch.cat([part[name] for part in parts]) for name in ("weight", "bias")})
    return both


def _plain(conv: nn.Module) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d)
    return conv


class Generator(nn.Module):
    """FOMM's `OcclusionAwareGenerator` (no attention, residual decoder), DaGAN's `DepthAwareGenerator` (attention by
    depth) and `SPADEDepthAwareGenerator` (SPADE decoder), official names."""

    def __init__(
        self,
        num_kp: int,
        num_channels: int = 3,
        *,
        config: GeneratorConfig = GeneratorConfig(),
        attention: Literal["none", "self", "depth"] = "none",
        decoder: Literal["residual", "spade"] = "residual",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.attention, self.align_corners = attention, align_corners
        self.scale_embedding: ScaleEmbedding | None = None
        self.dense_motion_network = DenseMotionNetwork(
            num_kp,
            num_channels,
            estimate_occlusion_map=config.estimate_occlusion_map,
            align_corners=align_corners,
            config=config.dense_motion_params,
        )
        halvings = range(config.num_down_blocks + 1)
        wide = [min(config.max_features, config.block_expansion * 2**i) for i in halvings]

        def downs() -> nn.ModuleList:
            return nn.ModuleList(Down(wide[i], wide[i + 1]) for i in range(config.num_down_blocks))

        self.first = ConvNorm(num_channels, config.block_expansion, 7)
        self.down_blocks = downs()
        if attention == "depth":
            self.src_first = ConvNorm(1, config.block_expansion, 7)
            self.src_down_blocks = downs()
        if attention != "none":
            self.AttnModule = Attention(wide[-1])
        self.decoder: SpadeDecoder | None = None
        if decoder == "spade":
            self.decoder = SpadeDecoder(wide[-1], num_channels)
            return
        self.up_blocks = nn.ModuleList(Up(wide[i + 1], wide[i]) for i in reversed(range(config.num_down_blocks)))
        self.bottleneck = _Bottleneck(wide[-1], config.num_bottleneck_blocks)
        self.final = nn.Conv2d(config.block_expansion, num_channels, 7, padding=3)

    def encode(self, image: Tensor, motion: Motion, disparity: Tensor | None = None) -> SourceState:
        """All work on a source (B, 3, H, W) that is the same for every driving frame.

        Args:
            motion: its keypoints.
            disparity: (B, 1, H, W), needed by the attention by depth.
        """
        features = self.first(image)
        for block in self.down_blocks if self.scale_embedding is None else self.down_blocks[:1]:
            features = block(features)
        query = None
        if self.attention == "depth":
            assert disparity is not None
            depth = self.src_first(disparity)
            for block in self.src_down_blocks:
                depth = block(depth)
            query = self.AttnModule.query(depth)
        return SourceState(image, motion, self.dense_motion_network.down(image), features, disparity, query)

    def forward(self, source: SourceState, motion: Motion) -> Output:
        """The source with the given motion; a source of batch 1 serves any number of motions."""
        source = source.expand(len(motion))
        dense = self.dense_motion_network(source.small, motion, source.motion)
        still, scales = source.features, self._scales(motion)
        if scales:
            still = still + scales[0]
            for block, scale in zip(self.down_blocks[1:], scales[1:], strict=False):
                still = block(still) + scale
        moved = warp_features(still, dense, align_corners=self.align_corners)
        features = moved
        if self.attention != "none":
            query = self.AttnModule.query(moved) if source.query is None else source.query
            features = self.AttnModule(query, moved)
        if self.decoder is not None:
            image = self.decoder(features, warp_features(source.image, dense, align_corners=self.align_corners))
        else:
            features = self.bottleneck(features)
            for number, block in enumerate(self.up_blocks, len(self.down_blocks)):
                features = block(features)
                if scales:
                    features = features + scales[number]
            image = self.final(features).float().sigmoid()
        return Output(image, dense, moved)

    def embed_scale(self, code: int) -> None:
        """Gives the blocks OSTNet's scale embedding; motions must then have a code of this size.

        Raises:
            ValueError: the SPADE decoder has no such blocks.
        """
        if self.decoder is not None:
            raise ValueError("scale_embedding: needs the residual decoder, the SPADE decoder has no blocks to add to.")
        channels = [block.conv.out_channels for block in (*self.down_blocks, *self.up_blocks)]
        self.scale_embedding = ScaleEmbedding(code, channels)

    def _scales(self, motion: Motion) -> list[Tensor]:
        """What the scale embedding adds to the down and up blocks; empty where there is none."""
        if self.scale_embedding is None:
            return []
        if not isinstance(motion, ScaledMotion) or motion.code is None:
            raise ValueError(
                "A model with scale embedding needs motion that was read for its source, read_motion(image, state), "
                "and taken over as it is, not relative to another frame."
            )
        return self.scale_embedding(motion.code)
