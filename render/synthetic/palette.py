"""The colours of a person, drawn together so that they belong together.

Skin, hair, brow, lip and eye colour are not independent: they share melanin. A person is drawn from one of a few
colour families (a range of skin
melanin with the hair and eye colours that go with it), then every number varies inside the family; grey hair comes
with age in every family.
Colours are linear RGB in [0, 1] unless a name says sRGB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Colour = np.ndarray
"""(3,) float32, linear RGB in [0, 1]."""


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] to linear light (IEC 61966-2-1), any shape."""
    srgb = np.asarray(srgb, np.float32)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def from_bytes(red: int, green: int, blue: int) -> Colour:
    """The linear colour of three sRGB bytes."""
    return to_linear(np.array([red, green, blue]) / 255)


# Skin from least to most melanin, at equal steps of `Colouring.melanin`: albedo as a neutral light shows it.
SKIN_RAMP = np.stack(
    [
        from_bytes(238, 205, 187),
        from_bytes(231, 189, 165),
        from_bytes(217, 168, 138),
        from_bytes(197, 145, 112),
        from_bytes(168, 117, 86),
        from_bytes(134, 89, 64),
        from_bytes(101, 66, 48),
        from_bytes(74, 49, 37),
    ]
)
HAIR = {
    "black": from_bytes(26, 22, 21),
    "dark brown": from_bytes(48, 34, 26),
    "brown": from_bytes(84, 58, 40),
    "light brown": from_bytes(122, 90, 62),
    "blond": from_bytes(188, 152, 104),
    "light blond": from_bytes(214, 184, 138),
    "red": from_bytes(140, 66, 34),
    "auburn": from_bytes(92, 44, 30),
}
GREY_HAIR = from_bytes(196, 194, 190)
# Outer iris, inner iris (around the pupil).
IRIS = {
    "dark brown": (from_bytes(48, 29, 19), from_bytes(66, 40, 25)),
    "brown": (from_bytes(76, 47, 28), from_bytes(104, 67, 38)),
    "light brown": (from_bytes(112, 76, 44), from_bytes(138, 95, 54)),
    "hazel": (from_bytes(98, 94, 58), from_bytes(132, 92, 50)),
    "green": (from_bytes(94, 112, 82), from_bytes(138, 124, 76)),
    "grey": (from_bytes(104, 118, 126), from_bytes(138, 142, 136)),
    "blue": (from_bytes(84, 116, 146), from_bytes(134, 154, 162)),
}


@dataclass(frozen=True)
class Family:
    """A range of skin and what goes with it."""

    share: float
    """Probability of the family."""
    melanin: tuple[float, float]
    """Mean and standard deviation, in steps of `SKIN_RAMP` from 0 to 1."""
    yellow: float
    """How yellow rather than pink the skin is, 0 to 1."""
    hair: dict[str, float]
    """Probabilities of the names in `HAIR`."""
    iris: dict[str, float]
    """Probabilities of the names in `IRIS`."""
    curl: float
    """Mean curl of the hair, 0 straight to 1 tight."""


FAMILIES = (
    Family(
        share=0.24,
        melanin=(0.07, 0.05),
        yellow=0.15,
        hair={"light blond": 0.1, "blond": 0.24, "light brown": 0.28, "brown": 0.2, "red": 0.1, "auburn": 0.08},
        iris={"blue": 0.42, "grey": 0.14, "green": 0.16, "hazel": 0.14, "light brown": 0.14},
        curl=0.15,
    ),
    Family(
        share=0.22,
        melanin=(0.2, 0.06),
        yellow=0.35,
        hair={"light brown": 0.12, "brown": 0.4, "dark brown": 0.36, "black": 0.08, "auburn": 0.04},
        iris={"blue": 0.12, "green": 0.12, "hazel": 0.22, "light brown": 0.2, "brown": 0.34},
        curl=0.25,
    ),
    Family(
        share=0.2,
        melanin=(0.22, 0.08),
        yellow=0.75,
        hair={"black": 0.75, "dark brown": 0.25},
        iris={"dark brown": 0.7, "brown": 0.3},
        curl=0.03,
    ),
    Family(
        share=0.14,
        melanin=(0.42, 0.08),
        yellow=0.6,
        hair={"black": 0.5, "dark brown": 0.42, "brown": 0.08},
        iris={"dark brown": 0.45, "brown": 0.45, "light brown": 0.06, "hazel": 0.04},
        curl=0.3,
    ),
    Family(
        share=0.1,
        melanin=(0.62, 0.08),
        yellow=0.5,
        hair={"black": 0.75, "dark brown": 0.25},
        iris={"dark brown": 0.65, "brown": 0.35},
        curl=0.45,
    ),
    Family(
        share=0.1,
        melanin=(0.86, 0.08),
        yellow=0.4,
        hair={"black": 1.0},
        iris={"dark brown": 0.85, "brown": 0.15},
        curl=0.9,
    ),
)


@dataclass(frozen=True)
class Colouring:
    """What colours one person. Colours are linear RGB (3,)."""

    family: int
    """Index into `FAMILIES`."""
    age: float
    """Years; drives grey hair, lines and the evenness of the skin."""
    melanin: float
    """0 (lightest) to 1 (darkest)."""
    skin: Colour
    flush: Colour
    """Multiplies the skin where blood is near: cheeks, nose, ears."""
    lips: Colour
    """Multiplies the skin on the lips."""
    hair_name: str
    """The name in `HAIR` that hair would have without grey."""
    grey: float
    """Share of grey hairs, 0 to 1."""
    hair: Colour
    brows: Colour
    iris_name: str
    iris_outer: Colour
    iris_inner: Colour
    freckles: float
    """0 (none) to 1."""
    curl: float
    """0 straight to 1 tight curls."""


def _choose(rng: np.random.Generator, table: dict[str, float]) -> str:
    names, shares = list(table), np.array(list(table.values()))
    return names[rng.choice(len(names), p=shares / shares.sum())]


def skin_colour(melanin: float) -> Colour:
    """Albedo of skin between the steps of `SKIN_RAMP`. `melanin` in [0, 1]."""
    steps = np.linspace(0, 1, len(SKIN_RAMP))
    return np.array([np.interp(melanin, steps, SKIN_RAMP[:, c]) for c in range(3)], np.float32)


def sample_colouring(rng: np.random.Generator, *, age: float | None = None) -> Colouring:
    """One person's colours.

    Args:
        rng: source of all randomness.
        age: years, 18 to 80; None draws it.
    """
    family_index = int(rng.choice(len(FAMILIES), p=[family.share for family in FAMILIES]))
    family = FAMILIES[family_index]
    drawn_age = float(18 + 57 * rng.beta(1.3, 2.2))
    age = drawn_age if age is None else age
    melanin = float(np.clip(rng.normal(*family.melanin), 0, 1))
    yellow = float(np.clip(family.yellow + rng.normal(0, 0.15), 0, 1))
    pink = float(np.clip(rng.normal(0.5, 0.25), 0, 1))
    skin = skin_colour(melanin) * np.array(
        [1, 1 - 0.05 * pink + 0.01 * yellow, 1 - 0.03 * pink - 0.13 * yellow], np.float32
    )
    light = 1 - melanin
    flush = np.array([1.02, 0.80 + 0.12 * melanin, 0.78 + 0.14 * melanin], np.float32)
    red = float(rng.uniform(0.3, 1.0))
    lips = np.array([0.94 - 0.12 * (1 - light), 0.72 - 0.18 * red * light, 0.74 - 0.14 * red * light], np.float32)

    hair_name = _choose(rng, family.hair)
    grey = float(np.clip(rng.normal((age - 52) / 22, 0.25), 0, 1)) if age > 34 else 0.0
    pure = HAIR[hair_name] * np.float32(np.exp(rng.normal(0, 0.12)))
    hair = (1 - grey) * pure + grey * GREY_HAIR
    # Brows keep their colour longer than the head, and are darker than fair hair.
    brow_grey = 0.5 * grey
    brows = (1 - brow_grey) * pure * (0.55 if pure.mean() > 0.1 else 0.8) + brow_grey * GREY_HAIR * 0.7
    iris_name = _choose(rng, family.iris)
    outer, inner = IRIS[iris_name]
    tint = np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    freckles = float(rng.beta(1.2, 3)) * (1.0 if hair_name in ("red", "auburn") else 0.6) * float(melanin < 0.3)
    return Colouring(
        family=family_index,
        age=age,
        melanin=melanin,
        skin=skin.astype(np.float32),
        flush=flush,
        lips=lips,
        hair_name=hair_name,
        grey=grey,
        hair=hair.astype(np.float32),
        brows=brows.astype(np.float32),
        iris_name=iris_name,
        iris_outer=(outer * tint).astype(np.float32),
        iris_inner=(inner * tint).astype(np.float32),
        freckles=freckles,
        curl=float(np.clip(rng.normal(family.curl, 0.15), 0, 1)),
    )
