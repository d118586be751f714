"""The animator: a portrait, found, cropped, fitted and encoded once, then moved as often as wanted.

picture --find--> face --fit--> head parameters --crop--> work picture --encode_source--> state      once
motion  --transfer--> target parameters --render--> crop --paste--> picture                          per frame
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..fitting.faces import check_picture, choose_face, face_of_crop, find_faces, shared_models
from ..fitting.fit import fit_image
from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams, load_head
from ..geom.rotation import axis_angle_to_matrix, euler_to_matrix, matrix_to_axis_angle, matrix_to_euler
from ..geom.transfer import soft_limit
from ..media.crop import Crop
from ..media.errors import InputError
from ..media.image import load_image
from ..render.geometric import Observation
from .edits import Edit
from .models import GEOMETRIC, make_renderer
from .output import Picture

if TYPE_CHECKING:
    from .animate import Animated

Floats = NDArray[np.float32]

CROP_SCALE = 2.3
"""Side of the crop in face sizes (the longer side of the landmarks' box): hair, neck and some shoulder."""
CROP_SHIFT = 0.1
"""How far the crop's centre stands above the face's, in crop sides."""
MAX_OUTPUT = 1536
"""Pixels: larger crops are animated at this size and enlarged where they changed."""
FRONTAL_LIMIT = 40.0
"""Degrees that `frontalize` turns at most, softly."""


@dataclass(frozen=True)
class Portrait:
    """One picture of a person, ready to be moved."""

    picture: Picture
    """(H, W, 3), what is written when nothing moves."""
    params: HeadParams
    """B = 1, in front of the camera that `state` holds."""
    square: Crop
    """What moves. Its corners are whole pixels and its size is its side (unless it is larger than
    `MAX_OUTPUT`), so that pasting it back changes nothing but what moved."""
    state: Any
    """What the renderer made of the picture."""


class Stage:
    """What prepares portraits and shows them moved: head model, renderer and working size, for any number of pictures.

    Args:
        head: the head model.
        size: pixels of the square that the motion is computed in.
        crop: False: whole pictures move, not squares around the face.
        model: geometric, refined, pwm, or a model file.
    """

    def __init__(self, head: HeadModel, *, size: int = 512, crop: bool = True, model: str = GEOMETRIC) -> None:
        if not 128 <= size <= 1024:
            raise InputError(f"The working size must be from 128 to 1024 pixels, got {size}.")
        self.head, self.size, self.crop = head, size, crop
        self.renderer = make_renderer(model, head)

    def prepare(
        self, picture: Picture, landmarks: Floats, params: HeadParams, camera: Camera, square: Crop | None = None
    ) -> Portrait:
        """Encode a picture.

        Args:
            picture: (H, W, 3) uint8 RGB.
            landmarks: (478, 3) px of the picture.
            params, camera: the fitted head (B = 1) and its camera.
            square: what moves; default `square(...)`.
        """
        square = square or self.square(picture, landmarks)
        work = Crop(square.center, square.side, self.size)
        scale = self.size / square.side
        left, top = work.to_crop(np.zeros(2))
        points = landmarks * np.float32(scale)
        points[:, :2] += np.array([left, top], np.float32)
        image = work.extract(picture)
        observation = Observation(
            image=image,
            landmarks=points,
            params=params,
            camera=camera.crop((scale, float(left), float(top))),
            person=shared_models().person_mask(image),
            fine=square.extract(picture),
        )
        return Portrait(picture, params, square, self.renderer.encode_source(observation))

    def square(self, picture: Picture, landmarks: Floats) -> Crop:
        """The square that moves, with whole pixels as corners."""
        if not self.crop:
            whole = Crop.whole(picture.shape)
            return Crop(whole.center, whole.side, min(whole.size, MAX_OUTPUT))
        wanted = Crop.from_landmarks(landmarks[:468], CROP_SCALE, CROP_SHIFT)
        return whole_pixels(wanted)

    def render(self, portrait: Portrait, target: HeadParams, *, crop_only: bool = False) -> Picture:
        """The picture with the head at `target` (B = 1), or only its square, (size, size, 3)."""
        moved = self.renderer.render(portrait.state, target).image
        if not crop_only:
            return paste(portrait.picture, portrait.square, moved)
        return Crop.whole(moved.shape, self.size).extract(moved)


class Animator:
    """One portrait and the head model, ready for any motion.

        animator = Animator("portrait.jpg")
        animator.animate("clip.mp4", "out.mp4")
        picture = animator.edit(yaw=15, expression={"mouthSmileLeft": 0.8})

    Args:
        source: a picture file, or an (H, W, 3) uint8 RGB array.
        head: head model, or its name or path.
        face: which face of the picture, 0 = the largest.
        crop: find the face and move a square around it; False: the whole picture is that square already.
        size: pixels of the square that the motion is computed in; the result has the picture's own resolution.
        max_side: larger files are reduced to this longer side.
        model: what moves it: geometric, refined, pwm, or the file of a model that is driven by a head.
    Attributes:
        problems: sentences about what the user may want to know, such as that there are several faces.
    Raises:
        InputError: the file cannot be read, or has no such face.
    """

    def __init__(
        self,
        source: str | Path | Picture,
        *,
        head: HeadModel | str = "open",
        face: int = 0,
        crop: bool = True,
        size: int = 512,
        max_side: int = 1920,
        model: str = GEOMETRIC,
    ) -> None:
        self.head = shared_head(head) if isinstance(head, str) else head
        self.stage = Stage(self.head, size=size, crop=crop, model=model)
        self.problems: list[str] = []
        name = "the picture" if isinstance(source, np.ndarray) else str(source)
        picture = source if isinstance(source, np.ndarray) else load_image(source, max_side=max_side)
        check_picture(picture, "Animator: source")
        found = face_of_crop(picture) if not crop and face == 0 else None
        if found is None:
            faces = find_faces(picture)
            found = choose_face(faces, picture, index=face, name=name)
            if len(faces) > 1 and face == 0:
                self.problems.append(
                    f"{name} shows {len(faces)} faces; the largest moves, --source-face 1 is the next."
                )
        track = fit_image(picture, head=self.head, face=found, name=name)
        assert isinstance(track.camera, Camera)
        self.portrait = self.stage.prepare(picture, found.landmarks, track.params, track.camera)

    def animate(self, driving: str | Path, output: str | Path, *, progress: bool = False, **options: Any) -> Animated:
        """Make the portrait follow a driving clip; options are the fields of `AnimateOptions`."""
        from .animate import AnimateOptions, animate

        return animate(self, driving, output, AnimateOptions(**options), progress=progress)

    def render(self, target: HeadParams, *, crop_only: bool = False) -> Picture:
        """The picture with the head at `target` (B = 1), or only its square, (size, size, 3)."""
        return self.stage.render(self.portrait, target, crop_only=crop_only)

    def edit(
        self,
        *,
        yaw: float = 0.0,
        pitch: float = 0.0,
        roll: float = 0.0,
        jaw: float = 0.0,
        gaze: tuple[float, float] = (0.0, 0.0),
        expression: Mapping[str, float] | None = None,
        shape: Mapping[str, float] | None = None,
        crop_only: bool = False,
    ) -> Picture:
        """The portrait with another pose, jaw, gaze, expression or face shape; everything is relative to its own.

        Args:
            yaw, pitch, roll: degrees; positive turns right in the picture, looks down, tilts left in the picture.
            jaw: degrees that it opens further.
            gaze: degrees right and down in the picture.
            expression: ARKit face units (`geom.arkit.NAMES`) and weights in [-1, 1], added to the portrait's own.
            shape: named shape controls of the head (`head.shape_control_names`) and values in [-1, 1].
            crop_only: return the face crop.
        Raises:
            InputError: an unknown name, or an angle or weight that is out of range or not finite.
        """
        edit = Edit(yaw, pitch, roll, jaw, gaze, dict(expression or {}), dict(shape or {}))
        return self.apply(edit, crop_only=crop_only)

    def apply(self, edit: Edit, *, crop_only: bool = False) -> Picture:
        """The portrait with an edit; arguments and errors as of `edit`."""
        return self.render(edit.apply(self.head, self.portrait.params), crop_only=crop_only)

    def frontalize(self, *, crop_only: bool = False) -> Picture:
        """The portrait with the face turned to the camera, softly limited to `FRONTAL_LIMIT` degrees."""
        at_rest = axis_angle_to_matrix(self.portrait.params.rotation)
        angles = matrix_to_euler(at_rest.mT)
        turn = euler_to_matrix(*(soft_limit(angle, FRONTAL_LIMIT) for angle in angles.unbind(-1)))
        target = self.portrait.params.replace(rotation=matrix_to_axis_angle(turn @ at_rest))
        return self.render(target, crop_only=crop_only)


@cache
def shared_head(name: str) -> HeadModel:
    """A head by name or path, loaded once per process, and with it what is prepared for it."""
    return load_head(name)


def whole_pixels(crop: Crop) -> Crop:
    """The crop moved to whole pixels, its size its side up to `MAX_OUTPUT`."""
    side = max(8, round(crop.side))
    left, top = (round(c - side / 2) for c in crop.center)
    return Crop((left + side / 2, top + side / 2), float(side), min(side, MAX_OUTPUT))


def paste(picture: Picture, crop: Crop, moved: Picture) -> Picture:
    """The picture with the moved crop in its place. The motion is zero on its border: no seam needs hiding."""
    if crop.size != crop.side:
        return crop.paste(picture, moved, reference=crop.extract(picture))
    result = picture.copy()
    height, width = picture.shape[:2]
    left, top = (round(c - crop.side / 2) for c in crop.center)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + crop.size, width), min(top + crop.size, height)
    result[y0:y1, x0:x1] = moved[y0 - top : y1 - top, x0 - left : x1 - left]
    return result
