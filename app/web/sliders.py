"""The sliders of the Edit tab: which there are, how they are called, grouped, and their presets.

A slider's key is that of `app.edits`: yaw, jaw, gaze.right, expression.NAME, shape.NAME. Units that ARKit has once for
each side are one slider here, whose key ends in `*`; the page moves Left, Right or both with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from ...geom import arkit
from ...geom.head import HeadModel


@dataclass(frozen=True)
class Slider:
    key: str
    label: str
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    hint: str = ""


@dataclass(frozen=True)
class Group:
    title: str
    sliders: tuple[Slider, ...]
    open: bool = False


POSE = (
    Group(
        "Head",
        (
            Slider("yaw", "Yaw", -45, 45, 0.5, "turns right in the picture"),
            Slider("pitch", "Pitch", -30, 30, 0.5, "looks down"),
            Slider("roll", "Roll", -30, 30, 0.5, "tilts left in the picture"),
        ),
        open=True,
    ),
    Group(
        "Eyes and jaw",
        (
            Slider("gaze.right", "Gaze right", -25, 25, 0.5),
            Slider("gaze.down", "Gaze down", -20, 20, 0.5),
            Slider("expression.eyeBlink*", "Blink"),
            Slider("jaw", "Jaw", 0, 25, 0.5, "degrees that it opens"),
        ),
        open=True,
    ),
)

_EXPRESSION = (
    ("Mouth", ("mouthSmile*", "mouthFrown*", "mouthPucker", "mouthFunnel", "mouthLeft", "mouthRight", "mouthStretch*",
               "mouthDimple*", "mouthPress*", "mouthUpperUp*", "mouthLowerDown*", "mouthRollUpper", "mouthRollLower",
               "mouthShrugUpper", "mouthShrugLower", "mouthClose")),
    ("Brows", ("browInnerUp", "browOuterUp*", "browDown*")),
    ("Eyes", ("eyeSquint*", "eyeWide*", "eyeLookUp*", "eyeLookDown*", "eyeLookIn*", "eyeLookOut*")),
    ("Cheeks and nose", ("cheekPuff", "cheekSquint*", "noseSneer*")),
    ("Jaw and tongue", ("jawOpen", "jawForward", "jawLeft", "jawRight", "tongueOut")),
)  # fmt: skip
_SHAPE = (
    ("Face", ("face-width", "face-fullness", "head-depth", "forehead-height", "cheek-fullness", "cheekbone")),
    ("Brows and eyes", ("brow-height", "brow-ridge", "eye-size", "eye-distance", "eye-slant")),
    ("Nose", ("nose-width", "nose-length", "nose-depth", "nose-bridge", "nose-tip-height")),
    ("Mouth", ("mouth-width", "mouth-height", "lip-fullness")),
    ("Jaw and chin", ("jaw-width", "chin-width", "chin-height", "chin-prominence")),
)
PRESETS: dict[str, dict[str, Any]] = {
    "Front": {"replace": ["pose"]},
    "Smile": {"expression": {"mouthSmileLeft": 0.7, "mouthSmileRight": 0.7, "cheekSquintLeft": 0.4,
                             "cheekSquintRight": 0.4}},
    "Laugh": {"jaw": 9, "expression": {"mouthSmileLeft": 0.9, "mouthSmileRight": 0.9, "mouthUpperUpLeft": 0.3,
                                       "mouthUpperUpRight": 0.3, "eyeSquintLeft": 0.5, "eyeSquintRight": 0.5}},
    "Surprise": {"jaw": 10, "expression": {"browInnerUp": 0.8, "browOuterUpLeft": 0.7, "browOuterUpRight": 0.7,
                                           "eyeWideLeft": 0.6, "eyeWideRight": 0.6}},
    "Sad": {"pitch": 5, "expression": {"mouthFrownLeft": 0.7, "mouthFrownRight": 0.7, "browInnerUp": 0.7,
                                       "mouthShrugLower": 0.3}},
    "Stern": {"expression": {"browDownLeft": 0.8, "browDownRight": 0.8, "noseSneerLeft": 0.3, "noseSneerRight": 0.3,
                             "mouthPressLeft": 0.5, "mouthPressRight": 0.5}},
    "Wink": {"roll": 4, "expression": {"eyeBlinkLeft": 1, "cheekSquintLeft": 0.5, "mouthSmileLeft": 0.6,
                                       "mouthSmileRight": 0.3}},
}  # fmt: skip
"""Edits by name, as a file of `Edit` has them."""


def expression_groups() -> tuple[Group, ...]:
    """All units of ARKit but the blink, which stands beside the gaze."""
    return tuple(
        Group(title, tuple(Slider(f"expression.{name}", _words(name, title)) for name in names), open=title == "Mouth")
        for title, names in _EXPRESSION
    )


def shape_groups(head: HeadModel) -> tuple[Group, ...]:
    """The head's named controls; those of no group stand under "More"."""
    left = [name for name in head.shape_control_names if not any(name in names for _, names in _SHAPE)]
    groups = [(title, [n for n in names if n in head.shape_control_names]) for title, names in _SHAPE]
    return tuple(
        Group(title, tuple(Slider(f"shape.{n}", n.replace("-", " ").capitalize(), -1, 1) for n in names), open=i == 0)
        for i, (title, names) in enumerate([*groups, ("More", left)])
        if names
    )


def units(groups: tuple[Group, ...]) -> Iterator[str]:
    """The ARKit units that groups of sliders move."""
    for slider in (slider for group in groups for slider in group.sliders):
        kind, _, name = slider.key.partition(".")
        if kind == "expression":
            yield from (name[:-1] + side for side in ("Left", "Right")) if name.endswith("*") else (name,)


def markup(groups: tuple[Group, ...]) -> str:
    """The groups as HTML."""
    return "".join(
        f"<details{' open' if group.open else ''}><summary>{escape(group.title)}</summary>"
        f"{''.join(_row(slider) for slider in group.sliders)}</details>"
        for group in groups
    )


def _row(slider: Slider) -> str:
    range_ = f'min="{slider.low:g}" max="{slider.high:g}" step="{slider.step:g}" value="0"'
    name = escape(slider.label)
    hint = f' title="{escape(slider.hint)}"' if slider.hint else ""
    return (
        f'<div class="hw-row" data-key="{slider.key}"{hint}><span class="hw-name">{name}</span>'
        f'<input type="range" {range_} aria-label="{name}">'
        f'<input type="number" {range_} aria-label="{name}, number" tabindex="-1"></div>'
    )


def _words(name: str, group: str) -> str:
    """mouthSmile* in the group Mouth -> Smile; browInnerUp -> Inner up."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name.rstrip("*")).split()
    if len(words) > 1 and group.lower().startswith(words[0]) and words[1] not in ("left", "right"):
        words = words[1:]
    return " ".join(words).capitalize()


assert {*units(POSE), *units(expression_groups())} == {*arkit.NAMES}
