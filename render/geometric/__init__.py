"""The geometric animator: moves a portrait with a fitted head mesh, without learned weights.

    encode_source: photo, landmarks, head, person mask -> matte | corrected surface | eyes | mouth        once
    render:        target head parameters -> mesh -> motion field -> warp -> eyes, mouth -> picture       per frame

`field` says where every pixel comes from, `composite` takes it from there; `eyes` and `mouth` draw what no warp can
make: an iris that turns, teeth behind lips that were shut. At rest nothing is drawn and the source comes back as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...geom.camera import Camera
from ...geom.head import HeadModel, HeadParams
from ...geom.landmarks import Embedding
from ..rasterize import rasterize
from . import composite, eyes, matte, mouth, shading, surface
from . import field as motion_field
from .eyes import Eye
from .matte import Matte
from .mouth import Mouth
from .rims import Rims, carried, joint_frames, pixels, rigid_map
from .surface import Surface

Image = NDArray[np.float32]

__all__ = ["GeometricConfig", "GeometricRenderer", "Observation", "Rendered", "SourceState"]


@dataclass(frozen=True)
class GeometricConfig:
    """Settings of the geometric animator. Lengths in face widths (fw) scale with the face."""

    inflate: bool = True
    """Blow the skull up to the outline of the hair."""
    relight: float = 0.5
    """Exponent on the change of shading that moving skin gets; 0 leaves the photo's shading on the skin."""
    seal: float = 0.035
    """Mouth widths of lip gap that still count as closed, when the mouth of the source is closed."""
    bust_follow: tuple[float, float, float] = (0.8, 0.5, 0.5)
    """Share of the head's translation in x, y, z that the shoulders follow; the crop's bottom stays."""
    hidden: tuple[float, float] = (0.004, 0.009)
    """Metres behind the source's nearest surface from which a pixel starts to count as hidden, and is hidden."""
    turned: tuple[float, float] = (0.35, 0.55)
    """Ratio of source to target foreshortening below which skin is too stretched to show (none of it), and above which
    it is shown. A ratio, so that nothing is rejected at rest."""
    uncovered: tuple[float, float] = (0.0, 0.2)
    """Growth of the cosine to the camera over which hidden surface takes its colours from the outline of the head."""


@dataclass
class Observation:
    """A portrait crop and what was found in it."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB, the crop at work size, normally 512 x 512."""
    landmarks: Image
    """(478, 2 or 3) px, MediaPipe's."""
    params: HeadParams
    """B = 1, the fitted head."""
    camera: Camera
    """Of the crop."""
    person: Image | None = None
    """(H, W) person mask in [0, 1]; None when there is no segmentation, then the picture bends around the head."""
    fine: NDArray[np.uint8] | None = None
    """(s H, s W, 3) the same crop at the photo's own resolution; the result is made at this size."""


@dataclass
class SourceState:
    """All that frames share."""

    camera: Camera
    params: HeadParams
    surface: Surface
    rims: Rims
    eyes: tuple[Eye, Eye]
    """Right, left; at output size."""
    mouth: Mouth
    light: NDArray[np.float32]
    """(9,) spherical harmonics of the photo's light on the face."""
    matte: Matte
    """At work size."""
    layers: Image
    """(h, w, 4) what the person adds, premultiplied, and the matte; at output size."""
    background: Image
    """(h, w, 3) at output size."""
    photo: Image
    """(h, w, 3) in [0, 1], the source at output size."""
    scale: float
    """Output pixels per work pixel."""
    small: Image
    """(h, w, 4) the person, one value per membrane cell, premultiplied."""
    grain: Image
    """(G, G) texture of the skin."""


@dataclass
class Rendered:
    """One frame."""

    image: NDArray[np.uint8]
    """(h, w, 3) RGB at output size."""
    displacement: Image
    """(H, W, 2) px on the work grid: source place minus target place; zero on the border."""
    visible: Image
    """(H, W) in [0, 1]: 1 where the photo shows what is drawn, 0 where it was continued."""


class GeometricRenderer:
    """See the module's docstring. Stateless apart from the head: one renderer serves many sources."""

    def __init__(self, head: HeadModel, config: GeometricConfig = GeometricConfig()) -> None:
        if "mediapipe" not in head.embeddings:
            raise ValueError(
                f"GeometricRenderer: head '{head.name}' has no MediaPipe landmark embedding; it needs one."
            )
        self.head = head
        self.config = config
        embedding = head.embeddings["mediapipe"]
        assert isinstance(embedding, Embedding)
        self.embedding = embedding

    @torch.no_grad()
    def encode_source(self, source: Observation) -> SourceState:
        """Everything about a portrait that frames share; takes some tenths of a second."""
        work = _to_float(source.image)
        height, width = work.shape[:2]
        landmarks = np.asarray(source.landmarks, np.float32)
        params, camera = source.params, source.camera
        face_width = float(np.linalg.norm(landmarks[234, :2] - landmarks[454, :2]))
        face_width = max(face_width, float(np.ptp(landmarks[:468, 1])) * 0.75)  # a profile is narrow

        offsets = surface.snap(self.head, params, camera, self.embedding, landmarks)
        head = surface.with_offsets(self.head, offsets)
        person = np.ones((height, width), np.float32) if source.person is None else source.person
        face = surface.face_mask(head, params, camera, self.embedding, (height, width))
        split = matte.split(work, person, face, face_width)
        grown = split.trust * surface.inflate(head, params, camera, self.embedding, split.outline)
        hair = np.linalg.norm(grown, axis=1)
        if self.config.inflate:
            head = surface.with_offsets(head, grown)
        outline = split.outline if split.trust > 0 else np.ones_like(person)
        skin = surface.build(head, params, camera, self.embedding, outline, hair, face_width)

        grain = composite.skin_grain(work, skin)
        fine = work if source.fine is None else _to_float(source.fine)
        layers, background, scale = matte.at_resolution(split, fine)
        marks = landmarks[:, :2] * scale
        rims = Rims(head, params, camera, self.embedding, landmarks[:, :2])
        upper, lower = mouth.arches(head, params, self.embedding)
        edge = carried(rims.frames, upper.centre, upper.joint)[0]
        size = float(-edge[2] / camera.focal[0]) / scale  # metres of an output pixel at the teeth
        visible = (skin.skin > 0.5) & (skin.confidence > 0.8)
        colours = np.stack([surface.sample(work[..., c], skin.pixels[visible, :2]) for c in range(3)], 1)
        return SourceState(
            camera=camera,
            params=params,
            surface=skin,
            rims=rims,
            eyes=(eyes.take_apart(fine, marks, grain, 0), eyes.take_apart(fine, marks, grain, 1)),
            mouth=mouth.find(fine, marks, pixels(edge[None], camera)[0] * scale, size, colours, upper, lower),
            light=shading.estimate_light(work, skin),
            matte=split,
            layers=layers,
            background=background,
            photo=fine,
            scale=scale,
            small=composite.shrink(work, split.alpha),
            grain=grain,
        )

    @torch.no_grad()
    def render(self, state: SourceState, motion: HeadParams) -> Rendered:
        """The source person with the head parameters `motion` (B = 1); another shape than the source's bends it."""
        config, skin = self.config, state.surface
        size = state.matte.alpha.shape
        threads = torch.get_num_threads()

        motion = motion.replace(eyelids=state.rims.lids(motion))
        vertices = self._posed(state, motion)
        target = state.camera.project(torch.from_numpy(vertices)[None])
        ndc = state.camera.ndc(torch.from_numpy(vertices)[None], (size[0], size[1]))
        fragments = rasterize(ndc, torch.from_numpy(skin.drawn), (size[0], size[1]))

        pixels = target[0].numpy()
        normals = surface.vertex_normals(vertices, skin.faces)
        facing = surface.facing_camera(vertices, normals)
        ratio = np.maximum(skin.facing, 0) / np.maximum(facing, 0.02)
        attributes = np.empty((len(vertices), 6), np.float32)
        # Surface that turns towards the camera and was not shown takes its colours from the outline; at rest, and while
        # it only shifts, everything is its own origin.
        hidden = skin.uncovered * surface.rise(facing - skin.facing, *config.uncovered)
        origin = skin.pixels[:, :2] + hidden[:, None] * (skin.origin - skin.pixels[:, :2])
        attributes[:, :2] = origin - pixels[:, :2]
        attributes[:, 2] = skin.soften @ shading.gain(state.light, skin.normals, normals, config.relight) - 1
        attributes[:, 3] = skin.confidence * surface.rise(ratio, *config.turned)
        attributes[:, 4] = skin.pixels[:, 2]
        attributes[:, 5] = hidden

        motion_map = motion_field.compute(
            fragments.face_id[0].numpy(),
            skin.drawn,
            np.ascontiguousarray(pixels[:, :2]),
            attributes,
            skin.depth,
            state.matte.moving,
            config.hidden,
            threads,
        )
        image, cover = composite.warp(state.layers, state.background, motion_map.values, state.scale, threads)
        composite.paint_stretched(
            image, cover, state.small, motion_map.values, motion_map.stretch, state.grain, state.scale, threads
        )
        self.draw_openings(image, state, motion, motion_map.values)
        return Rendered(_to_bytes(image), motion_map.values[..., :2], motion_map.confidence)

    def _posed(self, state: SourceState, motion: HeadParams) -> Image:
        """(N, 3) target vertices: the head moves, the shoulders follow its translation partly and do not turn."""
        skin = state.surface
        moved = skin.head(motion)[0].numpy()
        step = (motion.translation - state.params.translation)[0].numpy() * np.array(
            self.config.bust_follow, np.float32
        )
        bust = skin.bust[:, None]
        return np.ascontiguousarray((1 - bust) * moved + bust * (skin.vertices + step), np.float32)

    def draw_openings(self, image: Image, state: SourceState, motion: HeadParams, values: Image) -> None:
        """Eyes and the inside of the mouth into a frame of any making, in place.

        They are faded in by motion, so that a still face is the photo itself.

        Args:
            image: (h, w, 3) in [0, 1] at output size.
            motion: as `render` takes it, but with `state.rims.lids` of it as eyelids.
            values: (H, W, 2 or more) px on the work grid, source place minus target place.
        """
        rims, camera, scale = state.rims, state.camera, state.scale
        points = rims.points(motion)
        output_camera = camera.crop((scale, 0.0, 0.0))
        frames = joint_frames(state.surface.head, motion)
        shifts = rims.gaze_shifts(motion) * scale
        for side, eye in enumerate(state.eyes):
            rim_ids = [*eyes.UPPER[side], *eyes.LOWER[side]]
            shift = shifts[side]
            moved = np.abs((points - rims.landmarks)[rim_ids]).max() * scale + np.hypot(*shift)
            to_source = rigid_map(rims.eyeball(rims.frames, side), rims.eyeball(frames, side), output_camera, 0.01)
            target = rims.eye(points * scale, side)
            strength = float(surface.rise(moved, 0.05, 0.5))
            eyes.draw(image, state.photo, eye, values, target, to_source, shift, strength)

        lips = state.mouth
        target = rims.mouth(points * scale)
        if lips.own < 1:
            # Fits leave a pixel or two between closed lips, and differences of fits more: such a gap stays shut.
            target = target.sealed((1 - lips.own) * self.config.seal * lips.opening.width)
        moved = np.abs((points - rims.landmarks)[[*mouth.UPPER, *mouth.LOWER]]).max() * scale
        opened = (target.gap - lips.opening.gap) / (0.012 * lips.opening.width)
        strength = float(surface.rise(moved, 0.05, 0.5)) * max(lips.own, float(surface.rise(opened, 0.3, 1.5)))
        if strength > 0:
            axes = [carried(frames, arch.centre, arch.joint) for arch in (lips.upper, lips.lower)]
            rest = [carried(rims.frames, arch.centre, arch.joint) for arch in (lips.upper, lips.lower)]
            maps = [rigid_map(before, after, output_camera) for before, after in zip(rest, axes, strict=True)]
            mouth.draw(image, state.photo, lips, target, axes[0], axes[1], maps[0], maps[1], output_camera, strength)


def _to_float(image: NDArray[np.uint8]) -> Image:
    return image.astype(np.float32) / np.float32(255)


def _to_bytes(image: Image) -> NDArray[np.uint8]:
    return (image * np.float32(255) + np.float32(0.5)).astype(np.uint8)
