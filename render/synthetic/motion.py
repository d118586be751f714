"""Motion of a talking head: parts that are added up on a time line.

A `Performance` collects curves for the head's pose, the gaze and the 52 ARKit units; `params` turns them into
`HeadParams`, one per frame. The example
clip of the package is a scripted performance; `sample_motion` draws one at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from ...geom import arkit
from ...geom.head import HeadModel, HeadParams
from ...geom.rotation import euler_to_axis_angle
from ...geom.track import FaceTrack

# Mouth shapes of speech by the sounds that they go with, as ARKit units.
VISEMES: dict[str, dict[str, float]] = {
    "rest": {},
    "a": {
        "jawOpen": 0.42,
        "mouthLowerDownLeft": 0.25,
        "mouthLowerDownRight": 0.25,
        "mouthUpperUpLeft": 0.12,
        "mouthUpperUpRight": 0.12,
    },
    "e": {
        "jawOpen": 0.22,
        "mouthStretchLeft": 0.3,
        "mouthStretchRight": 0.3,
        "mouthLowerDownLeft": 0.3,
        "mouthLowerDownRight": 0.3,
    },
    "i": {
        "jawOpen": 0.10,
        "mouthStretchLeft": 0.35,
        "mouthStretchRight": 0.35,
        "mouthSmileLeft": 0.2,
        "mouthSmileRight": 0.2,
    },
    "o": {"jawOpen": 0.28, "mouthFunnel": 0.5, "mouthPucker": 0.15},
    "u": {"jawOpen": 0.12, "mouthFunnel": 0.25, "mouthPucker": 0.55},
    "m": {"jawOpen": 0.02, "mouthPressLeft": 0.4, "mouthPressRight": 0.4, "mouthRollLower": 0.2, "mouthRollUpper": 0.2},
    "f": {"jawOpen": 0.06, "mouthRollLower": 0.45, "mouthUpperUpLeft": 0.3, "mouthUpperUpRight": 0.3},
    "l": {"jawOpen": 0.18, "mouthLowerDownLeft": 0.2, "mouthLowerDownRight": 0.2},
    "s": {
        "jawOpen": 0.06,
        "mouthStretchLeft": 0.2,
        "mouthStretchRight": 0.2,
        "mouthUpperUpLeft": 0.15,
        "mouthUpperUpRight": 0.15,
    },
}
EXPRESSIONS: dict[str, dict[str, float]] = {
    "smile": {
        "mouthSmileLeft": 0.75,
        "mouthSmileRight": 0.72,
        "cheekSquintLeft": 0.45,
        "cheekSquintRight": 0.45,
        "eyeSquintLeft": 0.25,
        "eyeSquintRight": 0.25,
    },
    "open smile": {
        "mouthSmileLeft": 0.8,
        "mouthSmileRight": 0.8,
        "jawOpen": 0.2,
        "mouthUpperUpLeft": 0.35,
        "mouthUpperUpRight": 0.35,
        "cheekSquintLeft": 0.5,
        "cheekSquintRight": 0.5,
    },
    "surprise": {
        "browInnerUp": 0.8,
        "browOuterUpLeft": 0.8,
        "browOuterUpRight": 0.8,
        "eyeWideLeft": 0.6,
        "eyeWideRight": 0.6,
        "jawOpen": 0.25,
    },
    "brows up": {
        "browInnerUp": 0.8,
        "browOuterUpLeft": 0.75,
        "browOuterUpRight": 0.75,
        "eyeWideLeft": 0.25,
        "eyeWideRight": 0.25,
    },
    "frown": {
        "browDownLeft": 0.8,
        "browDownRight": 0.8,
        "eyeSquintLeft": 0.35,
        "eyeSquintRight": 0.35,
        "mouthFrownLeft": 0.3,
        "mouthFrownRight": 0.3,
    },
    "sad": {"browInnerUp": 0.7, "mouthFrownLeft": 0.6, "mouthFrownRight": 0.6, "mouthShrugLower": 0.35},
    "disgust": {
        "noseSneerLeft": 0.7,
        "noseSneerRight": 0.7,
        "mouthUpperUpLeft": 0.4,
        "mouthUpperUpRight": 0.4,
        "browDownLeft": 0.4,
        "browDownRight": 0.4,
    },
    "smirk": {"mouthSmileLeft": 0.6, "mouthDimpleLeft": 0.4, "browOuterUpLeft": 0.3},
    "pout": {"mouthPucker": 0.7, "mouthShrugLower": 0.3, "browInnerUp": 0.3},
    "puff": {"cheekPuff": 0.8, "mouthPressLeft": 0.3, "mouthPressRight": 0.3},
}
# Units that go together in faces, by stem: both sides get the value, with a little difference.
_FACES: tuple[dict[str, float], ...] = (
    {"mouthSmile": 1.0, "cheekSquint": 0.5, "eyeSquint": 0.3, "mouthUpperUp": 0.2},
    {"browInnerUp": 1.0, "browOuterUp": 1.0, "eyeWide": 1.0},
    {"browDown": 1.0, "noseSneer": 0.3, "eyeSquint": 0.5},
    {"mouthFunnel": 1.0, "jawOpen": 0.5},
    {"mouthPucker": 1.0},
    {"jawOpen": 1.0},
    {"mouthFrown": 1.0, "mouthShrugLower": 0.5, "browInnerUp": 0.5},
    {"eyeBlink": 1.0},
    {"jawOpen": 0.35, "mouthLowerDown": 0.5, "mouthUpperUp": 0.4, "mouthStretch": 0.4},
    {"mouthRollLower": 0.7, "mouthRollUpper": 0.7, "mouthPress": 0.6},
    {"jawOpen": 0.25, "mouthSmile": 0.8, "mouthUpperUp": 0.4, "mouthLowerDown": 0.3},
    {"cheekPuff": 1.0},
)
_ONE_SIDED = ("mouthLeft", "mouthRight", "jawLeft", "jawRight")


@dataclass
class Performance:
    """Curves over T frames, to be added to."""

    times: np.ndarray
    """(T,) seconds."""
    yaw: np.ndarray = field(init=False)
    """(T,) degrees, positive to the person's left; with `pitch` (positive down) and `roll` of the head on its neck."""
    pitch: np.ndarray = field(init=False)
    roll: np.ndarray = field(init=False)
    gaze: np.ndarray = field(init=False)
    """(T, 2) degrees of the eyes in the head: to the person's left, down."""
    units: np.ndarray = field(init=False)
    """(T, 52) ARKit weights in the order of `arkit.NAMES`."""
    blink: np.ndarray = field(init=False)
    """(T,) closed share of both lids, on top of the units."""
    shift: np.ndarray = field(init=False)
    """(T, 3) metres."""

    def __post_init__(self) -> None:
        count = len(self.times)
        self.yaw, self.pitch, self.roll, self.blink = (np.zeros(count) for _ in range(4))
        self.gaze, self.shift, self.units = np.zeros((count, 2)), np.zeros((count, 3)), np.zeros((count, 52))

    def envelope(self, start: float, stop: float, rise: float = 0.25, fall: float | None = None) -> np.ndarray:
        """(T,) 0 outside [start, stop], 1 inside, with smooth flanks within that interval (seconds)."""
        fall = rise if fall is None else fall
        up = np.clip((self.times - start) / rise, 0, 1)
        down = np.clip((stop - self.times) / fall, 0, 1)
        return (up * up * up * (up * (6 * up - 15) + 10)) * (down * down * down * (down * (6 * down - 15) + 10))

    def express(self, weights: dict[str, float], envelope: np.ndarray) -> None:
        """Adds units in the strength of a curve (T,)."""
        for name, weight in weights.items():
            self.units[:, arkit.INDEX[name]] += weight * envelope

    def blink_at(self, time: float, strength: float = 1.0) -> None:
        """A blink: lids fall within 80 ms and rise within 170 ms, as measured on people (VanderWerf et al. 2003)."""
        after = self.times - time
        closing = np.clip((after + 0.10) / 0.08, 0, 1)
        opening = np.clip((0.21 - after) / 0.17, 0, 1)
        shape = np.minimum(closing * closing * (3 - 2 * closing), opening * opening * (3 - 2 * opening))
        self.blink = np.maximum(self.blink, strength * shape)
        self.gaze[:, 1] += 2.0 * strength * shape

    def look(self, targets: list[tuple[float, float, float]]) -> None:
        """Saccades: from each time (seconds) on, the eyes rest on a target (degrees left, degrees down), reached
        within 50 ms."""
        previous = np.zeros(2)
        for time, left, down in targets:
            after = np.clip((self.times - time) / 0.05, 0, 1)[:, None]
            aim = np.array([left, down])
            self.gaze += (after * after * (3 - 2 * after)) * (aim - previous)
            previous = aim

    def speak(self, start: float, stop: float, rng: np.random.Generator, energy: float = 1.0) -> None:
        """Speech-like mouth motion: a viseme every 100 to 180 ms, pauses between words, neighbours blended."""
        names, shares = (
            ["a", "e", "i", "o", "u", "m", "f", "l", "s"],
            np.array([18, 15, 12, 10, 6, 10, 5, 12, 12], float),
        )
        knots, values = [start - 0.12, start], [np.zeros(52), np.zeros(52)]
        time, left_in_word = start + 0.09, int(rng.integers(3, 8))
        while time < stop - 0.15:
            weights = np.zeros(52)
            if left_in_word > 0:
                for name, weight in VISEMES[names[rng.choice(len(names), p=shares / shares.sum())]].items():
                    weights[arkit.INDEX[name]] = weight * energy * rng.uniform(0.7, 1.15)
            knots.append(time)
            values.append(weights)
            time += rng.uniform(0.10, 0.18)
            left_in_word -= 1
            if left_in_word < 0:
                left_in_word = int(rng.integers(3, 9))
                time += float(rng.exponential(0.08))
        curve = PchipInterpolator(
            np.array([*knots, stop, stop + 0.12]), np.array([*values, np.zeros(52), np.zeros(52)])
        )
        inside = (self.times > start) & (self.times < stop)
        self.units[inside] += np.clip(curve(self.times[inside]), 0, 1)

    def wander(self, rng: np.random.Generator, yaw: float, pitch: float, roll: float, every: float = 1.1) -> None:
        """Slow, smooth head motion through random poses; standard deviations in degrees, `every` in seconds."""
        for curve, size in ((self.yaw, yaw), (self.pitch, pitch), (self.roll, roll)):
            steps = np.cumsum(rng.uniform(0.6 * every, 1.5 * every, int(self.times[-1] / (0.6 * every)) + 4)) - every
            values = rng.normal(0, size, len(steps))
            curve += PchipInterpolator(steps, values)(np.clip(self.times, steps[0], steps[-1]))

    def params(self, head: HeadModel, shape: Tensor, translation: Tensor) -> HeadParams:
        """The performance as head parameters.

        The neck turns the head by nine tenths, the shoulders follow by the rest. Gaze and blinks need ARKit maps of
        the head.

        Args:
            shape: (1, S).
            translation: (1, 3) metres, where the head rests.
        Returns:
            T parameter sets.
        """
        units = np.clip(self.units, 0, 1)
        for side in ("Left", "Right"):
            lid = arkit.INDEX[f"eyeBlink{side}"]
            units[:, lid] = np.maximum(units[:, lid], self.blink)
        posed = head.arkit(torch.from_numpy(units).float())
        radians = torch.from_numpy(np.radians(self.gaze)).float()
        aim = torch.stack([radians[:, 1], radians[:, 0], torch.zeros(len(radians))], 1)
        turn = [_turn(k * self.yaw, k * self.pitch, k * self.roll) for k in (0.1, 0.9)]
        count = len(self.times)
        return HeadParams(
            shape=shape.expand(count, -1).contiguous(),
            expression=posed["expression"],
            rotation=turn[0],
            neck=turn[1],
            jaw=posed["jaw"],
            eyes=posed["eyes"] + aim.repeat(1, 2),
            eyelids=posed["eyelids"],
            translation=translation + torch.from_numpy(self.shift).float(),
        )

    @property
    def weights(self) -> Tensor:
        """(T, 52) ARKit weights as shown, blinks and gaze included."""
        units = np.clip(self.units, 0, 1)
        for side, outwards in (("Left", 1.0), ("Right", -1.0)):
            lid = arkit.INDEX[f"eyeBlink{side}"]
            units[:, lid] = np.maximum(units[:, lid], self.blink)
            for name, angle in (
                ("Out", outwards * self.gaze[:, 0]),
                ("In", -outwards * self.gaze[:, 0]),
                ("Down", self.gaze[:, 1]),
                ("Up", -self.gaze[:, 1]),
            ):
                units[:, arkit.INDEX[f"eyeLook{name}{side}"]] = np.clip(angle / 25, 0, 1)
        return torch.from_numpy(units).float()


def _turn(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> Tensor:
    """(T, 3) axis-angle of angles (T,) in degrees."""
    return euler_to_axis_angle(*(torch.from_numpy(a).float() for a in (yaw, pitch, roll)))


def sample_performance(seed: int, frames: int, fps: float, turn: float = 1.0) -> Performance:
    """A random performance: head motion, nods, speech, blinks, saccades, changing expressions. The same seed gives the
    same curves.

    Args:
        turn: how far the head turns, as a factor; 1 is what talking people do.
    """
    if frames < 1 or fps <= 0:
        raise ValueError(f"sample_motion: frames must be at least 1 and fps positive, got {frames} and {fps}.")
    rng = np.random.default_rng([seed & 0x7FFFFFFF, 100])
    show = Performance(np.arange(frames) / fps)
    length = frames / fps
    show.wander(rng, yaw=rng.uniform(3, 14), pitch=rng.uniform(2, 6), roll=rng.uniform(1, 5))
    show.yaw += np.clip(rng.normal(0, 8), -20, 20)
    show.pitch += np.clip(rng.normal(0, 4), -10, 10)
    show.yaw, show.pitch, show.roll = (
        np.clip(turn * np.clip(show.yaw, -38, 38), -70, 70),
        np.clip(turn * np.clip(show.pitch, -18, 18), -35, 35),
        np.clip(turn * np.clip(show.roll, -14, 14), -30, 30),
    )
    show.shift += np.stack(
        [0.15 * np.radians(show.roll) * 0.1, np.zeros(frames), 0.01 * np.sin(0.7 * show.times + rng.uniform(0, 6))], 1
    )
    time = float(rng.uniform(0.0, 1.0))
    while time < length:
        kind = rng.random()
        span = float(rng.uniform(0.8, 2.6))
        if kind < 0.55:
            show.speak(time, time + span, rng, energy=float(rng.uniform(0.6, 1.3)))
        elif kind < 0.65:
            beat = show.envelope(time, time + span, 0.2)
            show.pitch += 6 * beat * np.sin(2 * math.pi * 1.6 * (show.times - time))
        time += span + float(rng.exponential(0.4))
    time = float(rng.uniform(-0.5, 1.5))
    while time < length:
        span = float(rng.uniform(0.8, 2.5))
        name = list(EXPRESSIONS)[rng.choice(len(EXPRESSIONS), p=_shares())]
        show.express(EXPRESSIONS[name], rng.uniform(0.3, 1.0) * show.envelope(time, time + span, 0.3, 0.45))
        time += span + float(rng.exponential(1.0))
    time = float(rng.exponential(1.5))
    while time < length:
        show.blink_at(time, strength=1.0 if rng.random() < 0.85 else float(rng.uniform(0.4, 0.8)))
        time += 0.35 + float(rng.exponential(2.6))
    targets, time = [(-1.0, *(rng.normal(0, 6), rng.normal(0, 3)))], float(rng.exponential(0.8))
    while time < length:
        targets.append((time, float(np.clip(rng.normal(0, 9), -22, 22)), float(np.clip(rng.normal(0, 5), -12, 12))))
        time += 0.3 + float(rng.exponential(0.9))
    show.look([(float(t), float(a), float(b)) for t, a, b in targets])
    # The eyes make up for part of the head's turn: people keep looking at whom they talk to.
    show.gaze -= 0.45 * np.stack([show.yaw, show.pitch], 1)
    show.gaze = np.clip(show.gaze, (-26, -14), (26, 14))
    return show


def sample_face(rng: np.random.Generator) -> np.ndarray:
    """A random face of its own, beyond what performances show: one of the usual ones, or a mixture of units; often
    lopsided, sometimes blinking or winking. (52,) float32 ARKit weights, none of gaze."""
    weights = np.zeros(52, np.float32)

    def put(stem: str, value: float) -> None:
        lean = 1 + (rng.normal(size=2) * 0.15 if rng.random() < 0.65 else rng.uniform(-1, 0, 2) * [1, 0])
        for name, factor in zip((f"{stem}Left", f"{stem}Right"), rng.permutation(lean), strict=True):
            if name in arkit.INDEX and name not in _ONE_SIDED:
                weights[arkit.INDEX[name]] = value * factor
        if stem in arkit.INDEX:
            weights[arkit.INDEX[stem]] = value

    if rng.random() < 0.45:
        strength = rng.uniform(0.3, 1)
        for stem, share in _FACES[rng.integers(len(_FACES))].items():
            put(stem, strength * share)
    else:
        kept = [n for n in arkit.NAMES if not n.startswith(("eyeLook", "eyeBlink", "tongue")) and n not in _ONE_SIDED]
        stems = sorted({n.removesuffix("Left").removesuffix("Right") for n in kept})
        for stem in rng.choice(stems, rng.integers(2, 6), replace=False):
            put(str(stem), rng.uniform(0.1, 0.8) * (0.6 if stem.startswith("mouth") else 1))
        for name in _ONE_SIDED:
            if rng.random() < 0.1:
                weights[arkit.INDEX[name]] = rng.uniform(0, 0.8)
        if rng.random() < 0.4:
            put("jawOpen", rng.uniform(0, 0.8))
    chance = rng.random()
    if chance < 0.25:
        put("eyeBlink", rng.uniform(0, 1))
    elif chance < 0.35:
        weights[arkit.INDEX[f"eyeBlink{rng.choice(['Left', 'Right'])}"]] = rng.uniform(0.5, 1)
    return np.clip(weights, 0, 1)


def _shares() -> np.ndarray:
    shares = np.array([{"smile": 4.0, "open smile": 2.5, "brows up": 2.0}.get(name, 1.0) for name in EXPRESSIONS])
    return shares / shares.sum()


def sample_motion(seed: int, frames: int, fps: float, head: HeadModel, *, shape: Tensor | None = None) -> HeadParams:
    """Random motion of a talking head.

    Args:
        seed: of the motion.
        frames: T.
        fps: frames per second.
        head: a model with ARKit maps.
        shape: (1, S) identity; None is the mean.
    Returns:
        T parameter sets; the head rests at 0.95 m from the camera, eyes a little above the middle.
    """
    shape = HeadParams.zeros(head).shape if shape is None else shape
    return sample_performance(seed, frames, fps).params(head, shape, resting_place())


def replay_motion(track: FaceTrack, head: HeadModel, shape: Tensor, translation: Tensor) -> HeadParams:
    """A recorded motion done by another person.

    Expression, gaze and pose are the track's own; the eyes' way through the world keeps its form and is moved so that
    its middle is where this person's eyes rest.

    Args:
        track: of `head`.
        shape: (1, S) of the person.
        translation: (1, 3) metres, where the head rests.
    Raises:
        ValueError: the track belongs to another head model.
    """
    track.check(head)
    params = track.params.replace(shape=shape.expand(len(track), -1).contiguous())
    rest = HeadParams.zeros(head).replace(shape=shape, translation=translation)
    eyes, wanted = (head.joints(p)[:, 3:5].mean(1) for p in (params, rest))
    return params.replace(translation=params.translation + wanted - eyes.median(0).values)


def resting_place(distance: float = 0.95) -> Tensor:
    """(1, 3) translation that puts a head in the middle of a portrait camera's picture."""
    return torch.tensor([[0.0, -0.012, -distance]])
