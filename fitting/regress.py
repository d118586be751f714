"""What turns the faces of a video into parameters: landmark fitting, a regressor, or both.

fitter = open_fitter("flame", "deca", "landmarks", smooth=1.0, fps=25, name="clip.mp4")
for piece in fitter.see(face, image, time): ...
for piece in fitter.finish(): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..geom.track import FaceTrack
from ..media.errors import InputError
from ..third_party.mediapipe import Picture
from .faces import Face
from .fit import VideoFitter
from .options import Refine, Regressor


class Fitter(Protocol):
    """Takes a video frame by frame and gives its track in pieces."""

    def see(self, face: Face | None, image: Picture, time: float) -> Iterator[FaceTrack]:
        """The next frame, (H, W, 3) uint8 RGB, the face in it, and its time in seconds; yields what is ready."""

    def finish(self) -> Iterator[FaceTrack]:
        """The rest."""


class LandmarkFitter:
    """Gauss-Newton on landmarks (`VideoFitter`); the pictures themselves are not looked at."""

    def __init__(self, head: str, smooth: float, fps: float, name: str) -> None:
        self._fitter = VideoFitter(head=head, fps=fps, smooth=smooth, name=name)

    def see(self, face: Face | None, image: Picture, time: float) -> Iterator[FaceTrack]:
        return self._fitter.observe(face, time, (image.shape[0], image.shape[1]))

    def finish(self) -> Iterator[FaceTrack]:
        return self._fitter.finish()


def open_fitter(head: str, regressor: Regressor, refine: Refine, smooth: float, fps: float, name: str) -> Fitter:
    """The fitter for a choice of regressor and refinement.

    Raises:
        InputError: the two do not go together.
    """
    check_choice(head, regressor, refine)
    return LandmarkFitter(head, smooth, fps, name)


def check_choice(head: str, regressor: Regressor, refine: Refine) -> None:
    """InputError where nothing would be left to do the work, or a regressor's model is missing."""
    if regressor == "none" and refine == "none":
        raise InputError("--refine none leaves the parameters to a regressor; add --regressor deca.")
