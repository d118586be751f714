"""Edits: what the sliders say, as a value that can be saved, interpolated over time and applied to any frame.

    edit = Edit(yaw=12, expression={"mouthSmileLeft": 0.8})
    edit.save("smile.json")                          load_edit("smile.json")
    Animator("portrait.jpg").apply(edit)             a picture
    edit_video("clip.mp4", "out.mp4", edit)          every frame of a video, each relative to its own pose
    edit_video("portrait.jpg", "out.mp4", load_keyframes("nod.yaml"))

A file of an edit holds the fields of `Edit`, one of keyframes looks so (JSON or YAML; sliders left out are 0):

    keyframes:
      - {time: 0}
      - {time: 1.5, yaw: 20, expression: {mouthSmileLeft: 0.8, mouthSmileRight: 0.8}}
      - {time: 3}

Between keyframes every slider follows a monotone cubic (Fritsch and Carlson 1980): smooth, never beyond the values that
were asked for, and at rest at its ends and turning points.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import yaml
from scipy.interpolate import PchipInterpolator

from ..geom import arkit
from ..geom.head import HeadModel, HeadParams
from ..geom.rotation import axis_angle_to_matrix, euler_to_matrix, matrix_to_axis_angle, matrix_to_euler
from ..geom.transfer import soft_limit
from ..media.errors import InputError
from ..media.files import VIDEO_SUFFIXES, atomic_write, protect, read_error
from ..media.video import open_writer
from ..nets.config import as_dict, build

if TYPE_CHECKING:
    from .animate import Animated
    from .output import Watch

Part = Literal["pose", "jaw", "gaze", "expression"]

MAX_TURN = 60.0
"""Degrees that an edit may turn the head; further round, one picture shows nothing."""
MAX_SWING = 45.0
"""Degrees that jaw and eyes may turn."""
MAX_SECONDS = 600.0
"""Of a video that keyframes make from a picture."""
_FADE = 5  # frames over which the edit goes away where a video shows no face


@dataclass(frozen=True)
class Edit:
    """Sliders. They are relative to the face as it is; `replace` names the parts that they set instead."""

    yaw: float = 0.0
    """Degrees; positive turns the face to the person's left (right in the picture)."""
    pitch: float = 0.0
    """Degrees; positive looks down."""
    roll: float = 0.0
    """Degrees; positive tilts the head to the left of the picture."""
    jaw: float = 0.0
    """Degrees that the jaw opens."""
    gaze: tuple[float, float] = (0.0, 0.0)
    """Degrees right and down in the picture."""
    expression: dict[str, float] = field(default_factory=dict)
    """ARKit face units and weights in [-1, 1]."""
    shape: dict[str, float] = field(default_factory=dict)
    """Named controls of the head and values in [-1, 1]; always relative."""
    replace: tuple[Part, ...] = ()
    """Parts that are set to what the sliders say: pose (against the camera), jaw, gaze (against the head), expression
    (muscles and lids). With all sliders of such a part at 0 the face is held still there."""

    def check(self) -> Edit:
        """The edit itself.

        Raises:
            InputError: an angle or weight is out of range or not finite.
        """
        for name in ("yaw", "pitch", "roll"):
            _check_range(name, getattr(self, name), MAX_TURN, "degrees")
        _check_range("jaw", self.jaw, MAX_SWING, "degrees")
        for name, value in zip(("gaze (right)", "gaze (down)"), self.gaze, strict=True):
            _check_range(name, value, MAX_SWING, "degrees")
        for name, value in self.expression.items():
            _check_range(f"expression {name}", value, 1, "(a weight)")
        return self

    def apply(self, head: HeadModel, params: HeadParams) -> HeadParams:
        """The head (B = 1) with the edit.

        Raises:
            InputError: as `check`, or a name that neither ARKit nor the head has.
        """
        self.check()
        try:
            units = head.arkit(arkit.weights_from_names(self.expression))
            shape = head.shape_from_controls(self.shape)
        except ValueError as error:
            raise InputError(str(error)) from None
        still = {part: torch.zeros(1) if part in self.replace else torch.ones(1) for part in _PARTS}
        look = torch.deg2rad(torch.tensor([[self.gaze[1], self.gaze[0], 0.0]]))
        swing = torch.tensor([[math.radians(self.jaw), 0.0, 0.0]])
        return params.replace(
            rotation=self._rotation(params.rotation),
            jaw=still["jaw"] * params.jaw + units["jaw"] + swing,
            eyes=still["gaze"] * params.eyes + units["eyes"] + torch.cat([look, look], 1),
            eyelids=(still["expression"] * params.eyelids + units["eyelids"]).clamp(-0.5, 1),
            expression=still["expression"] * params.expression + units["expression"],
            shape=params.shape + shape,
        )

    def _rotation(self, at_rest: torch.Tensor) -> torch.Tensor:
        angles = [torch.tensor([value]) for value in (self.yaw, self.pitch, self.roll)]
        turn, before = euler_to_matrix(*angles), axis_angle_to_matrix(at_rest)
        if "pose" in self.replace:
            # A picture of a profile shows nothing of a face that is set to the front.
            needed = matrix_to_euler(turn @ before.mT)
            turn = euler_to_matrix(*(soft_limit(angle, MAX_TURN) for angle in needed.unbind(-1)))
        return matrix_to_axis_angle(turn @ before)

    def save(self, path: str | Path) -> None:
        """Write the edit as JSON or YAML, by the ending; what is not set is left out."""
        default = as_dict(Edit())
        told = {name: value for name, value in as_dict(self).items() if value != default[name]}
        text = yaml.safe_dump(told) if _is_yaml(path) else json.dumps(told, indent=1) + "\n"
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


_PARTS: tuple[Part, ...] = ("pose", "jaw", "gaze", "expression")


@dataclass(frozen=True)
class Keyframes:
    """Edits at rising moments."""

    times: tuple[float, ...]
    """Seconds, from 0."""
    edits: tuple[Edit, ...]

    def __post_init__(self) -> None:
        if not self.times or len(self.times) != len(self.edits):
            raise InputError("Keyframes need at least one moment, and an edit for each.")
        if not all(math.isfinite(time) and time >= 0 for time in self.times):
            raise InputError("The times of keyframes are seconds from 0.")
        if any(b <= a for a, b in zip(self.times, self.times[1:], strict=False)):
            raise InputError(f"The times of keyframes must rise, got {', '.join(f'{t:g}' for t in self.times)}.")
        if len({edit.replace for edit in self.edits}) > 1:
            raise InputError("All keyframes must replace the same parts; write `replace:` once, beside `keyframes:`.")
        for edit in self.edits:
            edit.check()

    @property
    def duration(self) -> float:
        """Seconds up to the last keyframe."""
        return self.times[-1]

    def at(self, time: float) -> Edit:
        """The edit of a moment; before the first and after the last keyframe it is theirs."""
        if len(self.times) == 1:
            return self.edits[0]
        names, curve = self._curve
        values = curve(np.clip(time, self.times[0], self.times[-1]))
        return _of_values(dict(zip(names, values.tolist(), strict=True)), self.edits[0].replace)

    @cached_property
    def _curve(self) -> tuple[list[str], Any]:
        rows = [_values(edit) for edit in self.edits]
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = np.array([[row.get(name, 0.0) for name in names] for row in rows])
        # One more moment like the first and like the last: the curve leaves and arrives at rest.
        times = [self.times[0] - 1, *self.times, self.times[-1] + 1]
        return names, PchipInterpolator(times, np.concatenate([table[:1], table, table[-1:]]))


def load_edit(path: str | Path) -> Edit:
    """The edit of a JSON or YAML file.

    Raises:
        InputError: no such file, or it holds something else.
    """
    values = _load(path)
    if "keyframes" in values:
        raise InputError(f"{path} holds keyframes, not one edit; give it as --keyframes.")
    return edit_from(values, path)


def load_keyframes(path: str | Path) -> Keyframes:
    """The keyframes of a JSON or YAML file.

    Raises:
        InputError: no such file, it holds something else, or the times do not rise.
    """
    values = _load(path)
    rows = values.pop("keyframes", None)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} holds no keyframes: it needs `keyframes:` and a list of `- {{time: 0, yaw: 10}}`.")
    common = values.pop("replace", [])
    if values:
        raise InputError(f"{path}: beside `keyframes` there can be `replace`, not {', '.join(map(str, values))}.")
    times, edits = [], []
    for number, row in enumerate(rows):
        where = f"{path}, keyframe {number}"
        time = row.pop("time", None)
        if isinstance(time, bool) or not isinstance(time, int | float):
            raise InputError(f"{where}: a keyframe needs its time in seconds, as in `time: 1.5`.")
        times.append(float(time))
        edits.append(edit_from({"replace": common, **row}, where))
    try:
        return Keyframes(tuple(times), tuple(edits))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def edit_video(
    source: str | Path,
    output: str | Path,
    edit: Edit | Keyframes,
    *,
    head: HeadModel | str = "open",
    model: str = "geometric",
    size: int = 512,
    max_side: int = 1920,
    crop: bool = True,
    crop_only: bool = False,
    face: int = 0,
    smooth: float = 1.0,
    audio: bool = True,
    fps: float = 25.0,
    provenance: bool = True,
    progress: bool | Watch = False,
) -> Animated:
    """Apply an edit to every frame of a video, or make a video of a picture with keyframes.

    A video keeps its frame times and its sound. Frames that show no face stay as they are; the edit fades over five
    frames around such gaps.

    Args:
        source: a video file, a folder of frames, or a picture (which needs keyframes and ends with the last one).
        output: a video file, or a folder for PNG frames.
        edit: the same for all frames, or keyframes.
        head, model, size, max_side, crop, face: see `Animator`.
        crop_only: write the square around the face, (size, size).
        smooth: of the head over time, see `AnimateOptions`.
        audio: keep the video's sound.
        fps: frames per second of a video made of a picture.
        provenance: leave the note in the file that it is AI-generated.
        progress: show a bar on stderr, or who is told of every frame.
    Raises:
        InputError: unreadable input, no face, a bad edit, or the output cannot be written; nothing is left then.
    """
    from ..media.writer import names_a_folder
    from .animate import Animated, MovingSource
    from .animator import Animator, shared_head
    from .options import AnimateOptions
    from .output import bar
    from .provenance import marks, sign

    names_a_folder(output)  # refuses unknown endings before there is work to do
    protect([source], output)
    keyframes = edit if isinstance(edit, Keyframes) else Keyframes((0.0,), (edit,))
    model_of_head = shared_head(head) if isinstance(head, str) else head
    for one in keyframes.edits:  # names are checked before any frame is read
        one.apply(model_of_head, HeadParams.zeros(model_of_head, 1))
    options = AnimateOptions(
        model=model,
        size=size,
        max_side=max_side,
        no_crop=not crop,
        crop_only=crop_only,
        source_face=face,
        smooth=smooth,
    )
    rate: Fraction
    sound: Path | None = None
    if is_moving(source):
        scene = MovingSource(Path(source), model_of_head, options)
        rate, picture_size, problems = scene.reader.fps, scene.size, scene.problems
        stage, count = scene.stage, scene.reader.frame_count
        sound = Path(source) if audio and scene.reader.has_audio else None
        moments = scene.moments()
    else:
        if not isinstance(edit, Keyframes):
            raise InputError(f"{source} is a picture, and {output} a video: give --keyframes, or a picture as output.")
        if not 1 <= fps <= 240:
            raise InputError(f"The frame rate must be from 1 to 240, got {fps:g}.")
        if keyframes.duration > MAX_SECONDS:
            raise InputError(f"The last keyframe is at {keyframes.duration:g} s; at most {MAX_SECONDS:g} s are made.")
        animator = Animator(source, head=model_of_head, face=face, crop=crop, size=size, max_side=max_side, model=model)
        rate = Fraction(fps).limit_denominator(1000)
        portrait, stage, problems = animator.portrait, animator.stage, animator.problems
        picture_size = portrait.picture.shape[0], portrait.picture.shape[1]
        count = int(keyframes.duration * rate + Fraction(1, 1000)) + 1
        moments = ((portrait, float(i / rate), True) for i in range(count))
    out_size = (size, size) if crop_only else picture_size
    frames = unseen = 0
    share: float | None = None
    with (
        open_writer(output, out_size, rate, audio_from=sound, metadata=marks(provenance)) as writer,
        bar("edit", count, progress) as shown,
    ):
        for portrait, time, seen in moments:
            share = float(seen) if share is None else min(1.0, max(0.0, share + (1 if seen else -1) / _FADE))
            now = keyframes.at(time)
            if share == 0 and not crop_only:
                picture = portrait.picture
            else:
                target = _between(portrait.params, now.apply(model_of_head, portrait.params), share)
                picture = stage.render(portrait, target, crop_only=crop_only)
            writer.write(picture, time)
            shown.frame(picture)
            frames += 1
            unseen += not seen
            shown.update(1)
    if unseen:
        problems = [*problems, f"{unseen} of {frames} frames show no face and were left as they are."]
    if provenance:
        problems = [*problems, *sign([Path(output)])]
    return Animated([Path(output)], frames, problems)


def is_moving(source: str | Path) -> bool:
    """Whether a source is a video or a folder of frames, not a picture."""
    return Path(source).suffix.lower() in VIDEO_SUFFIXES or Path(source).is_dir()


def _between(start: HeadParams, end: HeadParams, share: float) -> HeadParams:
    """A head between two of one person; small turns, so that axis-angle vectors may be mixed."""
    if share == 1:
        return end
    return HeadParams(**{name: torch.lerp(value, getattr(end, name), share) for name, value in start.asdict().items()})


def _values(edit: Edit) -> dict[str, float]:
    """All sliders by one name each."""
    plain = {name: float(getattr(edit, name)) for name in ("yaw", "pitch", "roll", "jaw")}
    plain |= {"gaze.right": float(edit.gaze[0]), "gaze.down": float(edit.gaze[1])}
    for group in ("expression", "shape"):
        plain |= {f"{group}.{name}": float(value) for name, value in getattr(edit, group).items()}
    return plain


def _of_values(values: Mapping[str, float], replaced: tuple[Part, ...]) -> Edit:
    groups: dict[str, dict[str, float]] = {"gaze": {}, "expression": {}, "shape": {}}
    plain = {}
    for name, value in values.items():
        group, dot, rest = name.partition(".")
        if dot:
            groups[group][rest] = value
        else:
            plain[name] = value
    gaze = groups["gaze"].get("right", 0.0), groups["gaze"].get("down", 0.0)
    return Edit(**plain, gaze=gaze, expression=groups["expression"], shape=groups["shape"], replace=replaced)


def edit_from(values: Mapping[str, Any], where: str | Path) -> Edit:
    """The edit of a mapping such as its file holds.

    Args:
        values: names and values of `Edit`'s fields.
        where: how to call their origin.
    Raises:
        InputError: an unknown name, something that is no number, or out of range.
    """
    try:
        return build(Edit, values, f"{where}: ").check()
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from None


def _load(path: str | Path) -> dict[str, Any]:
    if fault := read_error(path):
        raise fault
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = yaml.safe_load(text) if _is_yaml(path) else json.loads(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "YAML" if _is_yaml(path) else "JSON"
        raise InputError(f"{path} is no {kind} file that can be read ({' '.join(str(error).split())}).") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no sliders: it needs names and values, as in yaw: 10.")
    return values


def _is_yaml(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".yaml", ".yml")


def _check_range(name: str, value: float, limit: float, unit: str) -> None:
    if not -limit <= value <= limit:
        raise InputError(f"{name} must be from {-limit:g} to {limit:g} {unit}, got {value:g}.")
