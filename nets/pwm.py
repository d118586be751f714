"""PWM: geometry driven progressive warping (Zhong, Amjadi and Zharkov, "Geometry Driven Progressive Warping for
One-Shot Face Animation", 2022).

    I_s (+ codes on M_s) --encoder--> F_s(1) ... F_s(L)                     l = 1 coarsest ... L full resolution

    F_r(1) = conv( [warp(F_s(1), V), F_s(1)] )      or conv( F_s(1) ) without a displacement V

    level l:   F_r(l), guidance --SPADE--> S(l) --conv--> D(l)              displacement, where to look in the source
               F_r(l+1) = conv( [warp(F_s(l+1), up D(l)), up S(l)] )

    I_o = conv( F_r(L) ),   I_w = warp(I_s, up D(L-1))      or, with `blend`, I_o = a I_w + (1 - a) conv( F_r(L) )

Guidance is drawn with the driving head M_d: the displacement V from M_d to the source head M_s, learned codes of the
vertices, or the mean head's coordinates (NMFC). `Guide` draws it; the network sees only pictures, no head model.

Displacements are in NDC (x right, y down, 2 = the picture's width or height), as `render.warp` takes them. B batch,
H x W picture, G channels of guidance.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geom.camera import Camera, WeakPerspective
from ..geom.head import HeadModel, HeadParams
from ..render.guidance import code_image, displacement_map, nmfc_codes
from ..render.rasterize import Fragments, rasterize
from ..render.warp import warp
from .layers import SpadeBlock, SpadeResBlock, conv, fold_spectral_norm, leaky

Kind = Literal["displacement", "neural_codes", "nmfc", "displacement+neural_codes"]
WARPED = 2.0
"""Logit of the share of the warped source in a picture of an untrained network with `blend`: most of it, .88."""
UNSOLVED = ("neck",)
"""Parts of a head that are not drawn: fits do not solve the neck joint, so the motion of neck and bust is not known."""


@dataclass(frozen=True)
class PwmConfig:
    """The defaults are the paper's, as far as it says; see configs/pwm_256.yaml and pwm_256_s.yaml."""

    guidance: Kind = "displacement"
    """What the decoder is guided by, the rows of the paper's table 1."""
    head: str = "open"
    """The head model whose motion is drawn: open, flame or a file."""
    vertices: int = 5059
    """Vertices of that head; one code each."""
    code_channels: int = 16
    """d, the length of a learned code."""
    size: int = 256
    """Side in pixels of the pictures it is trained on. Others work where they are multiples of 2 ** (levels - 1)."""
    levels: int = 5
    """L, resolutions of the pyramid."""
    base_channels: int = 64
    """Channels at full resolution; doubled at every coarser level ..."""
    max_channels: int = 512
    """... up to this."""
    spade_hidden: int = 128
    """Channels inside a SPADE norm."""
    spade_residual: bool = True
    """SPADE's residual block at every level; else one modulated convolution, two to three times cheaper."""
    spectral_norm: bool = True
    """Off in networks whose norm was folded into the weights."""
    residual_displacement: bool = False
    """D(l) = V + prediction, so that an untrained network warps as the mesh moves. Needs a displacement."""
    blend: bool = False
    """The network paints where the warped source does not do (ours): I_o = a I_w + (1 - a) P, with a mask a of its own.
    It need not learn to copy what the source shows."""
    extrapolate: bool = False
    """The displacement that warps and that D(l) is relative to is continued beyond the head, see `extrapolate`. The
    guidance picture keeps zeros there."""
    drawn_openings: bool = False
    """Eyes and the inside of the mouth are drawn by the geometric animator (ours): for networks that are too small, or
    were trained too shortly, for irises and teeth."""

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"PwmConfig.levels must be at least 2, got {self.levels}.")
        step = 2 ** (self.levels - 1)
        if self.size < 1 or self.size % step:
            raise ValueError(f"PwmConfig.size must be a multiple of {step} with {self.levels} levels, got {self.size}.")
        if not self.has_displacement and (self.residual_displacement or self.extrapolate):
            raise ValueError(
                "PwmConfig: residual_displacement and extrapolate need a displacement, and guidance "
                f"'{self.guidance}' draws none. Switch them off or choose 'displacement+neural_codes'."
            )

    @property
    def has_displacement(self) -> bool:
        return self.guidance.startswith("displacement")

    @property
    def has_codes(self) -> bool:
        """Whether codes are learned."""
        return self.guidance.endswith("neural_codes")

    @property
    def source_channels(self) -> int:
        """Channels of what is drawn of the source head for the encoder."""
        return self.code_channels if self.has_codes else 3 if self.guidance == "nmfc" else 0

    @property
    def guidance_channels(self) -> int:
        """G, channels of what the decoder is guided by."""
        return self.source_channels + 2 * self.has_displacement

    @property
    def widths(self) -> list[int]:
        """Channels of the levels, full resolution first."""
        return [min(self.base_channels * 2**k, self.max_channels) for k in range(self.levels)]


@dataclass
class Guidance:
    """What a frame's heads say, at any resolution; levels resize it."""

    image: Tensor
    """(B, G, h, w) for the SPADE norms: displacement, then codes, as far as they are drawn; 0 off the head."""
    displacement: Tensor | None
    """(B, 2, h, w) NDC: what the first level warps with, and what D(l) is relative to if it is a residual."""


@dataclass
class SourceState:
    """What is computed once per source picture."""

    image: Tensor
    """(B, 3, H, W) in [0, 1]."""
    features: list[Tensor]
    """F_s(1) ... F_s(L), coarsest first, channels_last."""


@dataclass
class PwmOutput:
    image: Tensor
    """I_o (B, 3, H, W) in [0, 1]."""
    warped: Tensor
    """I_w (B, 3, H, W): the source under the last displacement."""
    displacement: Tensor
    """D(L-1) (B, 2, H/2, W/2) NDC float32. `warp(larger_source, displacement)` warps the same picture at any size."""


class Encoder(nn.Module):
    """Shortcut features of every level."""

    def __init__(self, config: PwmConfig) -> None:
        super().__init__()
        norm = config.spectral_norm
        widths = config.widths
        self.stem = conv(3 + config.source_channels, widths[0], spectral=norm)
        self.down = nn.ModuleList(conv(c, d, 4, stride=2, spectral=norm) for c, d in pairwise(widths))
        self.refine = nn.ModuleList(conv(d, d, spectral=norm) for d in widths[1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [leaky(self.stem(x))]
        for down, refine in zip(self.down, self.refine, strict=True):
            features.append(leaky(refine(leaky(down(features[-1])))))
        return features[::-1]


class ProgressiveWarp(nn.Module):
    """Level l: realigned features -> displacement -> realigned features of the next finer level."""

    def __init__(self, config: PwmConfig, channels: int, finer: int) -> None:
        super().__init__()
        norm = config.spectral_norm
        block = SpadeResBlock if config.spade_residual else SpadeBlock
        self.spade = block(channels, finer, config.guidance_channels, config.spade_hidden, spectral=norm)
        self.displacement = conv(finer, 2, spectral=norm)
        # Zero: an untrained network predicts no motion. A zero weight would do too, but has no spectral norm.
        self.gain = nn.Parameter(torch.zeros(1))
        self.fuse = conv(2 * finer, finer, spectral=norm)

    def forward(
        self, aligned: Tensor, shortcut: Tensor, guidance: Tensor, base: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """F_r(l) (B, C, h, w), F_s(l+1) (B, C', 2h, 2w), guidance (B, G, h, w), V (B, 2, h, w) if D(l) is relative to
        it -> F_r(l+1) (B, C', 2h, 2w), D(l) (B, 2, h, w) float32."""
        modulated = self.spade(aligned, guidance)
        displacement = (self.gain * self.displacement(modulated)).float()
        if base is not None:
            displacement = base + displacement
        return leaky(self.fuse(_join(shortcut, displacement, modulated))), displacement


class Pwm(nn.Module):
    """The network; see the module's docstring."""

    Config = PwmConfig

    def __init__(self, config: PwmConfig = PwmConfig()) -> None:
        super().__init__()
        self.config = config
        norm, coarse_first = config.spectral_norm, config.widths[::-1]
        self.encoder = Encoder(config)
        doubled = 2 if config.has_displacement else 1
        self.first = conv(doubled * coarse_first[0], coarse_first[0], spectral=norm)
        self.warps = nn.ModuleList(ProgressiveWarp(config, c, d) for c, d in pairwise(coarse_first))
        self.last = conv(coarse_first[-1], 3 + config.blend, spectral=norm)
        if config.blend:
            nn.init.constant_(self.last.bias[3:], WARPED)  # type: ignore[index]
        self.codes: nn.Parameter | None = None
        if config.has_codes:
            self.codes = nn.Parameter(torch.randn(config.vertices, config.code_channels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode_source(self, image: Tensor, drawn: Tensor | None = None) -> SourceState:
        """Everything that does not depend on the motion.

        Args:
            image: (B, 3, H, W) in [0, 1], H and W multiples of 2 ** (levels - 1).
            drawn: (B, `source_channels`, H, W) codes on the source head (`Guide.source`); None for displacement alone.
        """
        self._check_source(image, drawn)
        x = 2 * image - 1
        if drawn is not None:
            x = torch.cat([x, drawn], 1)
        return SourceState(image, self.encoder(x.contiguous(memory_format=torch.channels_last)))

    def render(self, state: SourceState, guidance: Guidance) -> PwmOutput:
        """A frame. Batch sizes of state and guidance are equal."""
        self._check_guidance(guidance)
        coarsest, *finer = state.features
        pictures = _pyramid(guidance.image, state.features[:-1])
        if guidance.displacement is not None:
            motions = _pyramid(guidance.displacement.float(), state.features[:-1])
            aligned = self.first(torch.cat([warp(coarsest, motions[0]), coarsest], 1))
        else:
            aligned = self.first(coarsest)
        aligned = leaky(aligned)
        for level, (block, shortcut) in enumerate(zip(self.warps, finer, strict=True)):
            base = motions[level] if self.config.residual_displacement else None
            aligned, displacement = block(aligned, shortcut, pictures[level], base)
        painted = torch.sigmoid(self.last(aligned).float())
        warped = warp(state.image, displacement)
        image = torch.lerp(painted[:, :3], warped, painted[:, 3:]) if self.config.blend else painted
        return PwmOutput(image, warped, displacement)

    def forward(self, image: Tensor, guidance: Guidance, drawn: Tensor | None = None) -> PwmOutput:
        """`encode_source` and `render`."""
        return self.render(self.encode_source(image, drawn), guidance)

    def fold(self) -> Pwm:
        """Folds the spectral norm into the weights, in place, for inference: the same results, less work."""
        fold_spectral_norm(self)
        self.config = dataclasses.replace(self.config, spectral_norm=False)
        return self

    def _check_source(self, image: Tensor, drawn: Tensor | None) -> None:
        step = 2 ** (self.config.levels - 1)
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % step or image.shape[3] % step:
            raise ValueError(
                f"Pwm.encode_source: image must be (B, 3, H, W), H and W multiples of {step}, got {tuple(image.shape)}."
            )
        wanted = self.config.source_channels
        got = 0 if drawn is None else drawn.shape[1]
        if got != wanted:
            raise ValueError(
                f"Pwm.encode_source: '{self.config.guidance}' takes {wanted} channels drawn of the source head beside "
                f"the image, got {got}. `Guide.source` draws them."
            )

    def _check_guidance(self, guidance: Guidance) -> None:
        channels, wanted = guidance.image.shape[1], self.config.guidance_channels
        if channels != wanted or (guidance.displacement is None) == self.config.has_displacement:
            moves = "a displacement" if self.config.has_displacement else "no displacement"
            raise ValueError(
                f"Pwm.render: '{self.config.guidance}' takes a guidance image of {wanted} channels and {moves}, got "
                f"{channels} channels. `Guide.driving` draws it."
            )


def drawn_faces(head: HeadModel, leave_out: tuple[str, ...] = UNSOLVED) -> Tensor:
    """(F', 3) triangles of a head without the named parts; heads without these parts are drawn whole."""
    kept = torch.ones(len(head.faces), dtype=torch.bool, device=head.faces.device)
    for name in set(leave_out) & set(head.part_names):
        kept[head.part_faces(name)] = False
    return head.faces[kept]


@dataclass(frozen=True)
class Posed:
    """Heads in a picture."""

    vertices: Tensor
    """(B, V, 3) NDC and depth."""
    size: tuple[int, int]
    """(H, W) of the picture."""
    perspective: bool
    """Whether a perspective camera sees them."""


class Guide:
    """Draws guidance for a network from a head's parameters.

        guide = Guide(head, model.config)
        source = guide.pose(source_params, camera, size)
        state = model.encode_source(image, guide.source(source, model.codes))
        for params in driving:
            output = model.render(state, guide.driving(source, guide.pose(params, camera, size), model.codes))

    Gradients reach the learned codes.
    """

    def __init__(self, head: HeadModel, config: PwmConfig, *, leave_out: tuple[str, ...] = UNSOLVED) -> None:
        """
        Args:
            head: any.
            config: of the network; says what is drawn.
            leave_out: names of parts that are not drawn. Heads without these parts are drawn whole.
        """
        if config.has_codes and config.vertices != len(head.v_template):
            raise ValueError(
                f"Guide: the network has codes for {config.vertices} vertices (head '{config.head}'), and head "
                f"'{head.name}' has {len(head.v_template)}. Codes belong to one head model."
            )
        self.head, self.config = head, config
        self.faces = drawn_faces(head, leave_out)

    def pose(self, params: HeadParams, camera: Camera | WeakPerspective, size: tuple[int, int]) -> Posed:
        """B heads in pictures of `size` (H, W) seen by `camera`."""
        return Posed(camera.ndc(self.head(params), size), size, isinstance(camera, Camera))

    def source(self, source: Posed, codes: Tensor | None = None) -> Tensor | None:
        """(B, `source_channels`, H, W) codes drawn on the source heads, for `Pwm.encode_source`.

        Args:
            codes: (V, d) `Pwm.codes`; None where the network has none.
        """
        codes = self._codes(codes)
        if codes is None:
            return None
        return code_image(codes, source.vertices, self.faces, source.size, perspective=source.perspective)

    def driving(self, source: Posed, driving: Posed, codes: Tensor | None = None) -> Guidance:
        """Guidance of frames that show `driving`, (B, G, H/2, W/2): the finest at which the network looks at it."""
        half = driving.size[0] // 2, driving.size[1] // 2
        fragments, perspective = self.rasterize(driving, half), driving.perspective
        drawn, displacement = [], None
        if self.config.has_displacement:
            meshes = source.vertices, driving.vertices, self.faces
            displacement = displacement_map(*meshes, half, perspective=perspective, fragments=fragments)
            drawn.append(displacement)
            if self.config.extrapolate:
                displacement = extrapolate(displacement, (fragments.face_id >= 0)[:, None])
        codes = self._codes(codes)
        if codes is not None:
            mesh = driving.vertices, self.faces
            drawn.append(code_image(codes, *mesh, half, perspective=perspective, fragments=fragments))
        return Guidance(torch.cat(drawn, 1), displacement)

    def rasterize(self, posed: Posed, size: tuple[int, int]) -> Fragments:
        """Which of `faces` the pixels of a picture of `size` show."""
        return rasterize(posed.vertices, self.faces, size, perspective=posed.perspective)

    def _codes(self, codes: Tensor | None) -> Tensor | None:
        return nmfc_codes(self.head.v_template) if self.config.guidance == "nmfc" else codes


def extrapolate(values: Tensor, mask: Tensor) -> Tensor:
    """Continues an image smoothly beyond its mask, to zero at the picture's border (push-pull, Gortler et al. 1996).

    Weighted means of 2 x 2 pixels, level by level, fill what has no value at a level from the next coarser one. The
    border is held because what is there (clothes, background) rarely moves as the head does: on real clips this beats
    a free continuation by 0.4 to 2.6 dB.

    Args:
        values: (B, C, H, W).
        mask: (B, 1, H, W) bool, where they are known; nowhere at all gives zeros.
    Returns:
        (B, C, H, W), equal to `values` under the mask.
    """
    known = mask.to(values.dtype)
    values = values * known
    border = F.pad(torch.zeros_like(known)[..., 1:-1, 1:-1], (1, 1, 1, 1), value=1.0)
    levels = [(values, torch.maximum(known, border))]
    while max(values.shape[-2:]) > 1:
        sums, share = (F.avg_pool2d(x, 2, ceil_mode=True) for x in levels[-1])
        # One known pixel of four makes the mean known; less would let far values bleed in along the outline.
        weight = (4 * share).clamp(max=1)
        values = sums * (weight / share.clamp_min(1e-8))
        levels.append((values, weight))
    for finer, weight in reversed(levels[:-1]):
        coarser = F.interpolate(values, size=finer.shape[-2:], mode="bilinear", align_corners=False)
        values = finer + (1 - weight) * coarser
    return values


def _pyramid(picture: Tensor, features: list[Tensor]) -> list[Tensor]:
    """The picture at the size of every level, means over pixels."""
    return [F.interpolate(picture, size=f.shape[-2:], mode="area") for f in features]


def _join(shortcut: Tensor, displacement: Tensor, coarse: Tensor) -> Tensor:
    """[warped shortcut (B, C, 2h, 2w), coarse features (B, C, h, w) doubled], channels side by side in memory."""
    batch, channels, height, width = shortcut.shape
    if torch.is_grad_enabled():
        doubled = F.interpolate(coarse, size=(height, width), mode="nearest")
        return torch.cat([warp(shortcut, displacement), doubled], 1)
    both = shortcut.new_empty(batch, height, width, 2 * channels).permute(0, 3, 1, 2)
    warp(shortcut, displacement, out=both[:, :channels])
    cells = both[:, channels:].unflatten(3, (width // 2, 2)).unflatten(2, (height // 2, 2))
    cells.copy_(coarse[:, :, :, None, :, None])
    return both
