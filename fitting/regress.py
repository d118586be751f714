"""What turns the faces of a video into parameters: landmark fitting, a regressor, or both.

    fitter = open_fitter("flame", "deca", "landmarks", smooth=1.0, fps=25, name="clip.mp4")
    for piece in fitter.see(face, image, time): ...
    for piece in fitter.finish(): ...

With both, the regressor's word on who it is (the mean shape over the first frames, which one picture's landmarks
cannot tell) is kept, and landmarks settle pose and expression.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from ..geom.camera import WeakPerspective, invert_crop
from ..geom.head import HeadModel, HeadParams, load_head
from ..geom.track import FaceTrack
from ..media.errors import InputError
from ..nets.deca import CODES, SIDE, DecaCodes, DecaEncoder
from ..third_party.deca import DECA_HELP, crop_of_landmarks, find_deca, load_encoder
from ..third_party.mediapipe import Picture
from .faces import Face, NoFaceError
from .fit import SETTLE_FRAMES, VideoFitter
from .options import Refine, Regressor

_BATCH = 16
_BROWS = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
_JAW = (
    *(127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152),
    *(377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356),
)
"""MediaPipe's points whose box is that of FAN's 68, which DECA was trained with: no forehead."""


class Fitter(Protocol):
    """Takes a video frame by frame and gives its track in pieces."""

    def see(self, face: Face | None, image: Picture, time: float) -> Iterator[FaceTrack]:
        """The next frame, (H, W, 3) uint8 RGB, the face in it, and its time in seconds; yields what is ready."""

    def finish(self) -> Iterator[FaceTrack]:
        """The rest."""


def open_fitter(head: str, regressor: Regressor, refine: Refine, smooth: float, fps: float, name: str) -> Fitter:
    """The fitter for a choice of regressor and refinement, see `check_choice`."""
    if regressor == "deca":
        if refine == "none":
            return DecaFitter(head, fps, name)
        return LandmarkFitter(_InformedFitter(head=head, fps=fps, smooth=smooth, name=name))
    return LandmarkFitter(VideoFitter(head=head, fps=fps, smooth=smooth, name=name))


def check_choice(head: str, regressor: Regressor, refine: Refine) -> None:
    """InputError where nothing would be left to do the work, or files that are needed are missing; before any fitting,
    so that it is said once and not for every clip."""
    if regressor == "none" and refine == "none":
        raise InputError("--refine none leaves the parameters to a regressor; add --regressor deca.")
    try:
        model = shared_head(head)
        if refine == "landmarks" and "mediapipe" not in model.embeddings:
            raise InputError(
                f"The head '{head}' has no MediaPipe landmarks, which fitting needs. For FLAME put "
                "mediapipe_landmark_embedding.npz (of SMIRK or EMOCA) beside the model."
            )
        if regressor == "deca" and find_deca() is None:
            raise InputError(f"deca_model.tar was not found. {DECA_HELP}")
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from None
    small = model.n_shape < CODES["shape"] or model.n_expression < CODES["exp"]
    if regressor == "deca" and (small or model.name == "open"):
        raise InputError(f"--regressor deca gives FLAME's parameters, not those of '{head}'; add --head flame.")


class LandmarkFitter:
    """Gauss-Newton on landmarks (`VideoFitter`)."""

    def __init__(self, fitter: VideoFitter) -> None:
        self._fitter = fitter

    def see(self, face: Face | None, image: Picture, time: float) -> Iterator[FaceTrack]:
        if isinstance(self._fitter, _InformedFitter):
            self._fitter.look(face, image)
        return self._fitter.observe(face, time, (image.shape[0], image.shape[1]))

    def finish(self) -> Iterator[FaceTrack]:
        return self._fitter.finish()


class _InformedFitter(VideoFitter):
    """Landmark fitting of a person whose shape DECA has seen."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._shapes: list[Tensor] = []

    def look(self, face: Face | None, image: Picture) -> None:
        """Read the shape off a frame, as long as the identity is not settled."""
        if face is not None and len(self._shapes) < SETTLE_FRAMES:
            crop = deca_crop(face)
            self._shapes.append(shared_encoder().encode(_picture(image, crop)[None]).shape[0])

    def _settle(self) -> None:
        super()._settle()
        assert self._settled is not None
        view, person = self._settled
        shape = np.zeros_like(person.shape)
        shape[: CODES["shape"]] = torch.stack(self._shapes).mean(0).double().numpy()
        self._settled = view, replace(person, shape=shape)


class DecaFitter:
    """DECA's word frame by frame, with its own weak-perspective camera; nothing is smoothed.

    Frames without a face repeat the frame before (the first frames, the first one with a face) and have confidence 0.
    """

    def __init__(self, head: str, fps: float, name: str) -> None:
        self.head = shared_head(head)
        self.fps, self.name = fps, name
        self._size = (0, 0)
        self._waiting: list[tuple[Face | None, Tensor | None, Tensor | None, float]] = []
        self._last: tuple[Face, DecaCodes, Tensor] | None = None

    def see(self, face: Face | None, image: Picture, time: float) -> Iterator[FaceTrack]:
        self._size = (image.shape[0], image.shape[1])
        crop = None if face is None else deca_crop(face)
        self._waiting.append((face, crop, None if crop is None else _picture(image, crop), time))
        seen = sum(face is not None for face, _, _, _ in self._waiting)
        if seen >= _BATCH or (self._last is not None and len(self._waiting) >= 4 * _BATCH):
            yield self._encode()

    def finish(self) -> Iterator[FaceTrack]:
        if self._waiting and self._last is None and all(face is None for face, _, _, _ in self._waiting):
            raise NoFaceError(f"No face found in any frame of {self.name}.")
        if self._waiting:
            yield self._encode()

    def _encode(self) -> FaceTrack:
        pictures = [picture for _, _, picture, _ in self._waiting if picture is not None]
        codes = shared_encoder().encode(torch.stack(pictures)) if pictures else None
        rows: list[tuple[Face, DecaCodes, Tensor]] = []
        number = 0
        for face, crop, _, _ in self._waiting:
            if face is not None and crop is not None and codes is not None:
                self._last = face, _row(codes, number), crop
                number += 1
            if self._last is not None:
                rows.append(self._last)
        rows = [rows[0]] * (len(self._waiting) - len(rows)) + rows
        faces, parts, crops = zip(*rows, strict=True)
        times = [time for _, _, _, time in self._waiting]
        presence = [face.presence if face else 0.0 for face, _, _, _ in self._waiting]
        self._waiting = []
        crop = torch.stack(crops)
        camera = WeakPerspective.from_deca(torch.cat([part.cam for part in parts]), (SIDE, SIDE))
        return FaceTrack(
            params=HeadParams.cat(part.params(self.head) for part in parts),
            camera=camera.crop(invert_crop(crop)),
            landmarks=torch.from_numpy(np.stack([face.landmarks for face in faces])),
            confidence=torch.tensor(presence),
            blendshapes=torch.from_numpy(np.stack([face.units for face in faces])),
            times=torch.tensor(times, dtype=torch.float64),
            crop=crop,
            fps=self.fps,
            image_size=self._size,
            head_name=self.head.name,
            head_sha256=self.head.sha256,
        )


def deca_crop(face: Face) -> Tensor:
    """(3,) DECA's crop transform for a face."""
    return crop_of_landmarks(face.landmarks[[*_BROWS, *_JAW], :2])


@cache
def shared_encoder() -> DecaEncoder:
    """The user's DECA, loaded once per process."""
    return load_encoder()


@cache
def shared_head(name: str) -> HeadModel:
    """A head by name or path, loaded once per process."""
    return load_head(name)


def _row(codes: DecaCodes, number: int) -> DecaCodes:
    return DecaCodes(**{name: getattr(codes, name)[number : number + 1] for name in CODES})


def _picture(image: Picture, crop: Tensor) -> Tensor:
    """(3, 224, 224) in [0, 1], bilinear, black outside, as DECA's loader makes it."""
    scale, tx, ty = crop.double().tolist()
    # OpenCV counts from pixel centres: index = continuous - 0.5 on both sides
    matrix = np.array([[scale, 0, tx + 0.5 * scale - 0.5], [0, scale, ty + 0.5 * scale - 0.5]])
    warped = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return torch.from_numpy(warped).permute(2, 0, 1).float() / 255
