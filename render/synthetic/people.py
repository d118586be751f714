"""Random people: who they are (shape), how they look (appearance), and the light and place they are seen in. The same
seed is the same person."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geom.head import HeadModel
from . import facial_hair
from .anatomy import Anatomy, measure
from .backdrop import paint_backdrop
from .body import chart
from .eyes import bake_eye
from .facial_hair import BrowShape
from .hair import STYLES, draft_hair, head_hair, sample_style
from .lighting import Lighting, make_lighting
from .palette import Colouring, from_bytes, sample_colouring, to_linear
from .skin import SkinLook, bake, lip_weight, paint, rim_tree
from .strands import Strands, concatenate, move_tensor

_DRAFT_DIRECTIONS = 14


@dataclass(frozen=True)
class Traits:
    """What identity and appearance of a seed share."""

    age: float
    """Years."""
    masculine: float
    """How masculine the person presents, 0 to 1."""
    heavy: float
    """Body weight, -1 to 1."""


@dataclass(frozen=True)
class Garment:
    """Clothing on the shoulders."""

    colour: np.ndarray
    """(3,) linear RGB."""
    inner: np.ndarray
    """(3,) of what shows in the opening of a jacket."""
    cut: str
    """"crew", "vee" or "jacket"."""
    neckline: float
    """Metres by which the neckline is lowered."""
    stripe: float
    """Strength of horizontal stripes, 0 for none."""


@dataclass(frozen=True)
class Appearance:
    """Everything about a picture but the head's parameters and the camera. Made by `sample_appearance`; tensors may be
    moved with `to`."""

    traits: Traits
    colouring: Colouring
    style: str
    garment: Garment
    skin: Tensor
    """(7, H, W) float16 atlas from `skin.bake`."""
    vertex_albedo: Tensor
    """(N, 3) albedo of parts without atlas."""
    eye: Tensor
    """(3, S, S) from `bake_eye`."""
    hair: Strands | None
    """On the scalp."""
    hair_nearest: Tensor | None
    """(K, P, M) int64: the skin vertices that each point of the hair follows from person to person."""
    face_hair: Strands
    """Brows, lashes and beard."""
    lighting: Lighting
    backdrop: Tensor
    """(3, S, S) linear RGB."""
    exposure: float
    noise: float
    """Standard deviation of the camera's noise, in display values."""
    seed: int

    def to(self, *args: Any, **kwargs: Any) -> Appearance:
        """As `torch.Tensor.to`, for every tensor inside."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return move_tensor(value, *args, **kwargs)
            if isinstance(value, Strands):
                return value.to(*args, **kwargs)
            if isinstance(value, Lighting):
                return replace(value, **{f.name: move(getattr(value, f.name)) for f in fields(value)})
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


def _generator(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed & 0x7FFFFFFF, purpose])


def sample_traits(seed: int) -> Traits:
    """Age, presentation and weight of a seed."""
    rng = _generator(seed, 1)
    age = float(18 + 57 * rng.beta(1.3, 2.2))
    masculine = float(rng.beta(0.35, 0.35))
    return Traits(age, masculine, float(np.clip(rng.normal(0, 0.4), -1, 1)))


def sample_identity(seed: int, head: HeadModel) -> Tensor:
    """(1, S) shape coefficients of a seed: a Gaussian, shifted by age, presentation and weight where the model has
    such controls."""
    rng, traits = _generator(seed, 2), sample_traits(seed)
    shape = torch.from_numpy(rng.normal(0, 0.62, (1, head.n_shape))).float()
    wanted = {
        "masculinity": 1.5 * (traits.masculine - 0.5),
        "age": (traits.age - 40) / 45,
        "weight": 0.7 * traits.heavy,
    }
    known = {name: float(np.clip(value, -1, 1)) for name, value in wanted.items() if name in head.shape_control_names}
    return shape + head.shape_from_controls(known).cpu() if known else shape


def sample_appearance(
    seed: int, head: HeadModel, *, resolution: int = 512, style: str | None = None, draft: bool = False
) -> Appearance:
    """The look of a seed: colours, hair, clothes, light, background, camera.

    Args:
        seed: the same seed gives the same look, and fits the shape of `sample_identity(seed, head)`.
        head: any model with parts and texture coordinates (the open head).
        resolution: longer side in pixels of the pictures it is made for; sets the detail of textures and hair.
        style: key of `hair.STYLES`; None draws one that goes with the person.
        draft: less of everything, for `Person`: the same person with a smaller atlas, light from fewer directions, and
            one of a few cuts per style with fewer strands.
    Raises:
        ValueError: unknown style, or a head model without parts or texture coordinates.
    """
    if style is not None and style not in STYLES:
        raise ValueError(f"sample_appearance: style must be one of {', '.join(STYLES)}, got '{style}'.")
    anatomy, traits = measure(head), sample_traits(seed)
    rng = _generator(seed, 3)
    colouring = sample_colouring(rng, age=traits.age)
    chosen = sample_style(rng, colouring, traits.masculine) if style is None else style
    cut = STYLES[chosen]
    brow_shape = BrowShape(
        density=float(np.clip(0.62 + 0.42 * traits.masculine + rng.normal(0, 0.15), 0.35, 1.3)),
        thickness=float(np.clip(0.70 + 0.38 * traits.masculine + rng.normal(0, 0.11), 0.5, 1.4)),
        arch=float(np.clip(0.0016 * (0.7 - traits.masculine) + rng.normal(0, 0.0008), -0.0015, 0.003)),
        raise_=float(rng.normal(0, 0.0010)),
    )
    has_beard = traits.masculine > 0.6 and rng.random() < 0.30
    beard_length = float(rng.uniform(0.003, 0.013))
    look = SkinLook(
        seed=int(rng.integers(1 << 24)),
        beard_shadow=float(rng.beta(1.5, 1.8)) if traits.masculine > 0.55 else 0.0,
        makeup=float(rng.beta(1.2, 1.6)) if traits.masculine < 0.4 else 0.0,
        scalp=0.35 * traits.masculine if chosen == "bald" else 1.0 if chosen != "buzz" else 0.75,
        recede=cut.recede,
        brows=brow_shape,
    )
    atlas = bake(colouring, look, anatomy, chart(head, _atlas_height(resolution, draft)))
    lips = lip_weight(anatomy.local)
    detail = float(np.clip(resolution / 512, 0.4, 1.0))
    parts = [
        facial_hair.brows(brow_shape, colouring, anatomy, _generator(seed, 4)),
        facial_hair.lashes(
            0.0068 - 0.0016 * traits.masculine + 0.0016 * look.makeup, colouring, anatomy, _generator(seed, 5)
        ),
    ]
    if has_beard:
        parts.append(facial_hair.beard(beard_length, colouring, anatomy, lips, _generator(seed, 6)))
    eye_size = 96 if draft else 512 if resolution > 300 else 256
    if draft:
        hair, nearest = draft_hair(chosen, colouring, head, _generator(seed, 7), resolution)
    else:
        hair = head_hair(chosen, colouring, anatomy, _generator(seed, 7), detail=detail)
        nearest = None if hair is None else torch.from_numpy(anatomy.neighbours(hair.points.double().numpy()))
    return Appearance(
        traits=traits,
        colouring=colouring,
        style=chosen,
        garment=_sample_garment(_generator(seed, 8)),
        skin=atlas,
        vertex_albedo=_vertex_albedo(anatomy, colouring, look),
        eye=bake_eye(colouring, float(rng.uniform(0.28, 0.46)), look.seed, size=eye_size),
        hair=hair,
        hair_nearest=nearest,
        face_hair=concatenate(parts),
        lighting=sample_lighting(_generator(seed, 9), draft=draft),
        backdrop=paint_backdrop(_generator(seed, 10), size=96 if draft else 192),
        exposure=float(np.exp(rng.normal(0.0, 0.10)) * (0.92 + 0.5 * colouring.melanin)),
        noise=float(rng.uniform(0.002, 0.009)),
        seed=seed,
    )


def move_to(appearance: Appearance, seed: int) -> Appearance:
    """The same person in the light, place and clothes of another seed."""
    device = appearance.skin.device
    draft = len(appearance.lighting.directions) == _DRAFT_DIRECTIONS
    rng = _generator(seed, 11)
    moved = replace(
        appearance,
        garment=_sample_garment(_generator(seed, 8)),
        lighting=sample_lighting(_generator(seed, 9), draft=draft),
        backdrop=paint_backdrop(_generator(seed, 10), size=appearance.backdrop.shape[-1]),
        exposure=float(np.exp(rng.normal(0.0, 0.10)) * (0.92 + 0.5 * appearance.colouring.melanin)),
        noise=float(rng.uniform(0.002, 0.009)),
        seed=seed,
    )
    return moved.to(device)


def _atlas_height(resolution: int, draft: bool) -> int:
    if draft:
        return int(np.clip(128 * round(resolution * 1.5 / 128), 256, 1024))
    return int(np.clip(256 * round(resolution * 2 / 256), 512, 2048))


def sample_lighting(rng: np.random.Generator, *, draft: bool = False) -> Lighting:
    """A key light from the front or the side in a soft surrounding; warm, neutral or cool. Drafts have it from fewer
    directions."""
    yaw, pitch = np.radians(np.clip(rng.normal(0, 34), -75, 75)), np.radians(np.clip(rng.normal(36, 12), 14, 62))
    key = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    warmth = rng.normal(0, 1)
    tint = np.array([1 + 0.06 * warmth, 1.0, 1 - 0.09 * warmth])
    hardness = rng.beta(1.6, 1.6)
    # Soft light comes from a big source in the environment, hard light from the key.
    key_colour = tint * (0.35 + 0.95 * hardness)
    sky = np.array([0.92, 0.97, 1.06]) * (1 - 0.05 * warmth)
    side = -np.sign(yaw) if abs(yaw) > 0.1 else rng.choice([-1, 1])
    lobes = [
        (key, 3.0, tint * (1.15 - 0.75 * hardness)),
        (np.array([0.0, 1.0, 0.25]), 1.6, sky * rng.uniform(0.25, 0.5)),
        (np.array([side * 1.0, 0.15, 0.55]), 3.0, sky * rng.uniform(0.15, 0.45)),
        (np.array([-side * 0.2 + side, 0.5, -0.9]), 7.0, tint * rng.choice([0.0, rng.uniform(0.4, 1.6)])),
    ]
    base = np.array([0.20, 0.19, 0.18]) * rng.uniform(0.7, 1.3)
    return make_lighting(key, key_colour, lobes, base, count=_DRAFT_DIRECTIONS if draft else 40)


def _sample_garment(rng: np.random.Generator) -> Garment:
    def cloth() -> np.ndarray:
        if rng.random() < 0.35:
            return to_linear(np.full(3, rng.choice([0.12, 0.2, 0.35, 0.55, 0.86])) + rng.normal(0, 0.01, 3))
        hue, value, saturation = rng.uniform(0, 6.283), rng.uniform(0.22, 0.75), rng.uniform(0.15, 0.7)
        shift = np.cos(hue - np.array([0.0, 2.094, 4.189]))
        return to_linear(np.clip(value * (1 + 0.6 * saturation * shift), 0.03, 0.9))

    cut = str(rng.choice(["crew", "vee", "jacket"], p=[0.5, 0.25, 0.25]))
    return Garment(
        cloth(),
        cloth() if rng.random() < 0.5 else from_bytes(225, 224, 220),
        cut,
        float(rng.uniform(0, 0.012)),
        float(rng.random() < 0.12) * 0.5,
    )


def _vertex_albedo(anatomy: Anatomy, colouring: Colouring, look: SkinLook) -> Tensor:
    """(N, 3): skin of the neck, the inside of the mouth, lid margins and sockets, tongue."""
    albedo = paint(anatomy.local, colouring, look, rim_tree(anatomy)).albedo
    local = anatomy.local

    def fill(part: str, colours: np.ndarray) -> None:
        inside = np.unique(anatomy.faces[anatomy.faces_of(part)])
        inside = np.setdiff1d(inside, np.unique(anatomy.faces[anatomy.faces_of("head")]))
        albedo[inside] = colours[inside]

    flesh = from_bytes(150, 72, 66) * (0.9 - 0.35 * colouring.melanin)
    depth = np.clip((0.026 - local[:, 2]) / 0.05, 0, 1)[:, None]
    fill("mouth", flesh * (0.75 - 0.6 * depth))
    fill("socket", np.repeat((0.55 * albedo.mean(0) + 0.45 * from_bytes(196, 120, 110))[None], len(local), 0))
    fill("tongue", from_bytes(178, 92, 88) * (1 - 0.55 * np.clip((0.012 - local[:, 2:]) / 0.04, 0, 1)))
    return torch.from_numpy(albedo).float()
