"""G3FA: FOMM's motion, a face volume rendered from the moved features, and a SPADE decoder (Javanmardi, Pagani and
Stricker, "G3FA: Geometry-guided GAN for Face Animation", BMVC 2024), under the names of the published checkpoints.

    source --first, down_blocks--> f --warp, occlusion--> F_w --Render_model--> F_r     [F_w, F_r] --decoder--> picture
    motion of source and driver --dense_motion_network--^

The generator is FNeVR's (Zeng et al., "FNeVR: Neural volume rendering for face animation", NeurIPS 2022), which has 10
keypoints and a small decoder of F_r for its training; that is a setting here. What G3FA adds is how it is trained:
`geometry_critics`.
Feature maps are (B, C, h, w), h = H / 4; volumes are (B, D, C, h, w) with D planes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dense_motion import DenseMotionConfig, DenseMotionNetwork, warp_features
from .fomm import CommonParams
from .generator import Output, SourceState
from .keypoints import KeypointConfig, KeypointDetector, Motion
from .layers import ConvNorm, Down, Spade, Up, UpsampledConv, instance_norm

RENDERED = 256
"""Channels of F_r; those of F_w have to be as many."""


@dataclass(frozen=True)
class RenderConfig:
    """`render_params` of the published YAML."""

    simpled_channel_rgb: int = 128
    """Channels of the colour volume, all planes together."""
    simpled_channel_sigma: int = 128
    """Channels of the shape volume, all planes together."""
    floor_num: int = 8
    """Planes."""
    hidden_size: int = 128
    """Of the perceptron along the rays."""


@dataclass(frozen=True)
class G3faGeneratorConfig:
    """`generator_params` of the published YAML. Its num_bottleneck_blocks builds nothing and is no setting here."""

    block_expansion: int = 64
    max_features: int = 512
    num_down_blocks: int = 2
    estimate_occlusion_map: bool = True
    dense_motion_params: DenseMotionConfig = field(default_factory=DenseMotionConfig)
    render_params: RenderConfig = field(default_factory=RenderConfig)
    mini_decoder: bool = False
    """FNeVR's picture from F_r alone."""


@dataclass(frozen=True)
class G3faConfig:
    """`model_params` of config/vox-256.yaml."""

    common_params: CommonParams = field(default_factory=lambda: CommonParams(num_kp=15))
    kp_detector_params: KeypointConfig = field(default_factory=KeypointConfig)
    generator_params: G3faGeneratorConfig = field(default_factory=G3faGeneratorConfig)


FNEVR = G3faConfig(common_params=CommonParams(num_kp=10), generator_params=G3faGeneratorConfig(mini_decoder=True))
"""FNeVR's published network."""


@dataclass
class G3faOutput(Output):
    """`features` is F_w."""

    rendered: Tensor
    """(B, 256, h, w) F_r in (0, 1)."""
    mini: Tensor | None = None
    """(B, 3, H, W) FNeVR's picture from F_r alone."""


class Res3d(nn.Module):
    """x + conv(ReLU(norm(conv(ReLU(norm(x)))))), in three dimensions."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(channels)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class ColourExtractor(nn.Module):
    """phi_color, eq. 5: features to the colours of D planes."""

    def __init__(self, channels: int, planes: int, out: int):
        super().__init__()
        self.planes = planes
        self.down_conv = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, c, D, h, w); the plane is the faster index of the convolution's channels."""
        return self.down_conv(features).unflatten(1, (-1, self.planes))


class ShapeExtractor(ColourExtractor):
    """phi_sigma, eq. 4: as the colours, then three residual blocks that also look across the planes."""

    def __init__(self, channels: int, planes: int, out: int):
        super().__init__(channels, planes, out)
        per_plane = out // planes
        blocks = [module for _ in range(3) for module in (Res3d(per_plane), nn.BatchNorm3d(per_plane))]
        self.res_conv3d = nn.Sequential(*blocks)

    def forward(self, features: Tensor) -> Tensor:
        """(B, c, D, h, w)."""
        return self.res_conv3d(super().forward(features))


class RayPerceptron(nn.Module):
    """f_theta, eq. 6: shape and colour of one point to its density (one number) and colour (256)."""

    def __init__(self, shape: int, colour: int, hidden: int):
        super().__init__()
        self.layer1 = nn.Linear(shape, hidden)
        self.layer2 = nn.Linear(hidden, hidden)
        self.layer3_1 = nn.Linear(hidden, 1)
        self.layer3_2 = nn.Linear(hidden, hidden // 4)
        self.layer3_3 = nn.Linear(colour, hidden)
        self.layer4 = nn.Linear(hidden + hidden // 4, hidden)
        self.layer5 = nn.Linear(hidden, hidden)
        self.layer6 = nn.Linear(hidden, RENDERED)

    def forward(self, shape: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
        """Densities (..., 1) before the ReLU, and what `layer6` makes colours of (..., hidden).

        `layer6` is linear and so is the sum along a ray: summing first leaves one product per ray, not one per plane.
        """
        h = F.relu(self.layer2(F.relu(self.layer1(shape))))
        mixed = torch.cat([F.relu(self.layer3_2(h)), F.relu(self.layer3_3(colour))], -1)
        return self.layer3_1(h), F.relu(self.layer5(F.relu(self.layer4(mixed))))


class FaceVolume(nn.Module):
    """Face volume rendering F_w -> F_r, section 3.2. A ray stands on every pixel and has D points; there is no camera.

        F_r = sigmoid(sum_i T_i (1 - exp(-s_i)) colour_i),   T_i = exp(-sum_{j <= i} s_j),   s = ReLU(density)

    The published weights belong to a transmittance that includes the point itself; eq. 8 leaves it out.
    """

    def __init__(self, channels: int, config: RenderConfig, *, mini_decoder: bool = False):
        super().__init__()
        planes = config.floor_num
        self.rgb_predict = ColourExtractor(channels, planes, config.simpled_channel_rgb)
        self.sigma_predict = ShapeExtractor(channels, planes, config.simpled_channel_sigma)
        self.nerf_module = RayPerceptron(
            config.simpled_channel_sigma // planes, config.simpled_channel_rgb // planes, config.hidden_size
        )
        self.mini_decoder: nn.Sequential | None = None
        if mini_decoder:
            self.mini_decoder = nn.Sequential(Up(RENDERED, 64), nn.Identity(), Up(64, 3), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        colour = self.rgb_predict(features).permute(0, 3, 4, 2, 1)  # (B, h, w, D, c)
        shape = self.sigma_predict(features).permute(0, 3, 4, 2, 1)
        return self._along_rays(shape, colour)

    def _along_rays(self, shape: Tensor, colour: Tensor) -> Tensor:
        """(B, 256, h, w) of (B, h, w, D, c) volumes."""
        density, colours = self.nerf_module(shape, colour)
        s = F.relu(density)
        weight = torch.exp(-s.cumsum(-2)) * (1 - torch.exp(-s))  # (B, h, w, D, 1)
        total = (weight * colours).sum(-2)  # (B, h, w, hidden)
        last = self.nerf_module.layer6
        rendered = F.linear(total, last.weight) + weight.sum(-2) * last.bias
        return rendered.sigmoid().permute(0, 3, 1, 2)

    def folded(self) -> nn.Module:
        return _FoldedVolume(self)


class SpadePair(nn.Module):
    """SPADE, ReLU, convolution, twice; no shortcut."""

    def __init__(self, channels: int, out: int, labels: int):
        super().__init__()
        self.SPADE_0 = Spade(channels, labels)
        self.conv_0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.SPADE_1 = Spade(channels, labels)
        self.conv_1 = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """x (B, C, k h, k w), label (B, L, h, w), brought to that size by nearest neighbours."""
        if label.shape[2:] != x.shape[2:]:
            label = F.interpolate(label, x.shape[2:])
        x = self.conv_0(F.relu(self.SPADE_0(x, label)))
        return self.conv_1(F.relu(self.SPADE_1(x, label)))


class Decoder(nn.Module):
    """[F_w, F_r] (B, 512, h, w) to the picture (B, 3, 4 h, 4 w); every SPADE layer is told by the same label map."""

    def __init__(self, channels: int, labels: int = 128):
        super().__init__()
        self.seg_conv = nn.Sequential(nn.Conv2d(channels, labels, 3, padding=1), nn.ReLU())
        self.SPADE_0 = SpadePair(channels, 128, labels)
        self.SPADE_1 = SpadePair(128, 32, labels)
        self.SPADE_2 = SpadePair(32, 32, labels)
        self.SPADE_3 = SpadePair(32, 32, labels)
        self.final = nn.Sequential(nn.Conv2d(32, 3, 7, padding=3), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        label = self.seg_conv(x)
        x = _double(self.SPADE_0(x, label))
        x = _double(self.SPADE_1(x, label))
        x = self.SPADE_3(self.SPADE_2(x, label), label)
        return self.final(x)

    def folded(self) -> nn.Module:
        return _FoldedDecoder(self)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class G3faGenerator(nn.Module):
    """`OcclusionAwareGenerator_SPADE` of the published code."""

    def __init__(self, common: CommonParams, config: G3faGeneratorConfig):
        super().__init__()
        self.dense_motion_network = DenseMotionNetwork(
            common.num_kp,
            common.num_channels,
            estimate_occlusion_map=config.estimate_occlusion_map,
            config=config.dense_motion_params,
        )
        wide = [min(config.max_features, config.block_expansion * 2**i) for i in range(config.num_down_blocks + 1)]
        if wide[-1] != RENDERED or config.num_down_blocks != 2:
            raise ValueError(
                f"G3faGeneratorConfig: two down blocks have to end with {RENDERED} channels, as many as the volume "
                f"renders; block_expansion {config.block_expansion}, max_features {config.max_features} and "
                f"num_down_blocks {config.num_down_blocks} give {wide[-1]}."
            )
        self.first = ConvNorm(common.num_channels, config.block_expansion, 7)
        self.down_blocks = nn.ModuleList(Down(a, b) for a, b in pairwise(wide))
        self.Render_model = FaceVolume(RENDERED, config.render_params, mini_decoder=config.mini_decoder)
        self.decoder = Decoder(2 * RENDERED)

    def encode(self, image: Tensor, motion: Motion) -> SourceState:
        """All work on a source (B, 3, H, W) with its keypoints that is the same for every driving frame."""
        features = self.first(image)
        for block in self.down_blocks:
            features = block(features)
        return SourceState(image, motion, self.dense_motion_network.down(image), features)

    def forward(self, source: SourceState, motion: Motion) -> G3faOutput:
        """The source with the given motion; a source of batch 1 serves any number of motions."""
        source = source.expand(len(motion))
        dense = self.dense_motion_network(source.small, motion, source.motion)
        moved = warp_features(source.features, dense)
        rendered = self.Render_model(moved)
        image = self.decoder(torch.cat([moved, rendered], 1))
        mini = self.Render_model.mini_decoder
        auxiliary = mini(rendered) if mini is not None and self.training else None
        return G3faOutput(image, dense, moved, rendered, auxiliary)


class G3fa(nn.Module):
    """The two networks of G3FA, or of FNeVR, behind the three verbs. Pictures are (B, 3, H, W) RGB in [0, 1]; published
    weights expect 256 x 256."""

    Config = G3faConfig

    def __init__(self, config: G3faConfig = G3faConfig()):
        super().__init__()
        self.config = config
        common = config.common_params
        self.kp_detector = KeypointDetector(
            common.num_kp,
            common.num_channels,
            estimate_jacobian=common.estimate_jacobian,
            config=config.kp_detector_params,
        )
        self.generator = G3faGenerator(common, config.generator_params)

    def read_motion(self, image: Tensor) -> Motion:
        """Keypoints of driving frames."""
        motion: Motion = self.kp_detector(image)
        return motion

    def encode_source(self, image: Tensor) -> SourceState:
        """Everything about the source that is the same for all frames, its keypoints included."""
        return self.generator.encode(image, self.read_motion(image))

    def render(self, state: SourceState, motion: Motion) -> G3faOutput:
        """The source with the motion of B frames (see `keypoints.normalise`)."""
        output: G3faOutput = self.generator(state, motion)
        return output


# What follows computes the same in less time; `folded()` above puts it in place where nothing is trained.


class _PlaneConv(nn.Module):
    """A 3 x 3 x 3 convolution of (B, D, h, w, C) volumes as a 3 x 3 one of all planes, C -> 3 C, whose three parts are
    added up from the planes below, here and above; torch's own in three dimensions takes several times as long."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        flat = weight.permute(2, 0, 1, 3, 4).flatten(0, 1)  # (3 C, C, 3, 3), the plane first
        self.weight = nn.Parameter(flat.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, _, _, channels = x.shape
        y = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), self.weight, padding=1)
        below, here, above = y.permute(0, 2, 3, 1).unflatten(0, (batch, -1)).split(channels, -1)
        total = here + self.bias
        total[:, 1:] += below[:, :-1]
        total[:, :-1] += above[:, 1:]
        return total


class _FoldedRes3d(nn.Module):
    """`Res3d` and the batch norm after it, for (B, D, h, w, C) volumes."""

    def __init__(self, block: Res3d, norm: nn.BatchNorm3d):
        super().__init__()
        middle, shift = _affine(block.norm2)
        scale, offset = _affine(norm)
        first, second = block.conv1, block.conv2
        assert first.bias is not None
        assert second.bias is not None
        around = [1, 1, 1, 1]
        self.conv1 = _PlaneConv(first.weight.detach() * middle.view(-1, *around), first.bias.detach() * middle + shift)
        self.conv2 = _PlaneConv(second.weight.detach() * scale.view(-1, *around), second.bias.detach() * scale + offset)
        before = _affine(block.norm1)
        self.before = nn.ParameterList(nn.Parameter(t, requires_grad=False) for t in before)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.before
        y = self.conv1(F.relu_(torch.addcmul(shift, x, scale)))
        return self.conv2(F.relu_(y)).addcmul_(x, self.scale)


def _affine(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """(C,) scale and shift that the running statistics amount to."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias.detach() - norm.running_mean * scale


class _FoldedVolume(FaceVolume):
    """One convolution for colours and shapes, planes kept next to each other; `_PlaneConv` for the blocks."""

    def __init__(self, volume: FaceVolume):
        nn.Module.__init__(self)
        self.nerf_module, self.mini_decoder = volume.nerf_module, volume.mini_decoder
        self.planes = volume.rgb_predict.planes
        halves = [volume.sigma_predict.down_conv, volume.rgb_predict.down_conv]
        # channel c * D + f to f * C + c, so that a plane's channels lie together
        weight = [_planes_first(c.weight.detach(), self.planes) for c in halves]
        bias = [_planes_first(c.bias.detach(), self.planes) for c in halves if c.bias is not None]
        self.split = [len(b) for b in bias]
        self.both = _convolution(torch.cat(weight), torch.cat(bias))
        pairs: list[Any] = list(volume.sigma_predict.res_conv3d)
        self.blocks = nn.Sequential(*(_FoldedRes3d(a, b) for a, b in zip(pairs[::2], pairs[1::2], strict=True)))

    def forward(self, features: Tensor) -> Tensor:
        both = self.both(features).permute(0, 2, 3, 1)
        shape, colour = (part.unflatten(3, (self.planes, -1)) for part in both.split(self.split, 3))
        shape = self.blocks(shape.permute(0, 3, 1, 2, 4).contiguous())
        return self._along_rays(shape.permute(0, 2, 3, 1, 4), colour)


def _planes_first(values: Tensor, planes: int) -> Tensor:
    return values.unflatten(0, (-1, planes)).transpose(0, 1).flatten(0, 1)


class _FoldedSpade(nn.Module):
    """`Spade` and the ReLU after it. The label map stays as small as it is: its convolution is made for the larger
    picture by `UpsampledConv`; gamma and beta come from one convolution."""

    def __init__(self, spade: Spade, factor: int):
        super().__init__()
        shared = spade.mlp_shared[0]
        assert isinstance(shared, nn.Conv2d)
        self.shared = nn.Sequential(shared, nn.ReLU(True)) if factor == 1 else UpsampledConv(shared, factor)
        gamma: Any = spade.mlp_gamma
        beta: Any = spade.mlp_beta
        # a module of its own, so that `inference.optimise` can take Winograd's
        self.both = _convolution(torch.cat([gamma.weight, beta.weight]), torch.cat([gamma.bias + 1, beta.bias]))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        scale, shift = self.both(self.shared(label)).chunk(2, 1)
        return F.relu_(torch.addcmul(shift, instance_norm(x), scale))


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A padded 3 x 3 convolution of given numbers."""
    out, channels = weight.shape[:2]
    conv = nn.Conv2d(channels, out, 3, padding=1).to(weight)
    conv.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return conv.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class _FoldedPair(nn.Module):
    def __init__(self, pair: SpadePair, factor: int):
        super().__init__()
        self.norms = nn.ModuleList([_FoldedSpade(pair.SPADE_0, factor), _FoldedSpade(pair.SPADE_1, factor)])
        self.convs = nn.ModuleList([pair.conv_0, pair.conv_1])

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = conv(norm(x, label))
        return x


class _FoldedDecoder(nn.Module):
    def __init__(self, decoder: Decoder):
        super().__init__()
        self.seg_conv, self.final = decoder.seg_conv, decoder.final
        pairs = [decoder.SPADE_0, decoder.SPADE_1, decoder.SPADE_2, decoder.SPADE_3]
        self.pairs = nn.ModuleList(_FoldedPair(p, factor) for p, factor in zip(pairs, (1, 2, 4, 4), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        label = self.seg_conv(x)
        x = _double(self.pairs[0](x, label))
        x = _double(self.pairs[1](x, label))
        for pair in self.pairs[2:]:
            x = pair(x, label)
        return self.final(x)
