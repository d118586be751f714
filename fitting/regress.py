"""What turns the faces of a video into parameters: landmark fitting, a regressor, or both.

    choice = Choice("flame", "deca", "landmarks")
    fitter = open_fitter(choice, smooth=1.0, fps=25, name="clip.mp4")
    for piece in fitter.see(face, image, time): ...
    for piece in fitter.finish(): ...

With both, the word of DECA or SMIRK on who it is (the mean shape over the first frames) is kept, and landmarks settle
pose and expression; what our own regressor says of shape and rotation is weighed against the landmarks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geom.camera import Camera, WeakPerspective, invert_crop
from ..geom.head import HeadModel, HeadParams, load_head
from ..geom.track import FaceTrack
from ..media.crop import Crop
from ..media.errors import InputError
from ..nets.deca import CODES, SIDE, DecaEncoder
from ..nets.model_file import ASSETS, load_model, read_header
from ..nets.regressor import HeadCodes, HeadRegressor, looking
from ..nets.smirk import EXPRESSION, SHAPE, SmirkEncoder
from ..third_party import deca, smirk
from ..third_party.mediapipe import Picture
from .faces import Face, NoFaceError
from .fit import MakeGuess, VideoFitter
from .options import Refine, Regressor
from .solve import DISTANCE, WIDEST, Guess, View

WEIGHTS = ASSETS / "regressor.safetensors"
"""Of our regressor, as the package has them."""
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


@dataclass(frozen=True)
class Choice:
    """Who fits; the fields are those of `FitOptions`."""

    head: str = "open"
    regressor: Regressor = "none"
    refine: Refine = "landmarks"
    weights: str | None = None


def open_fitter(choice: Choice, *, smooth: float, fps: float, name: str) -> Fitter:
    """The fitter for a choice that `check_choice` has let pass."""
    head, weights, photometric = choice.head, _weights(choice), choice.refine == "photometric"
    if choice.regressor == "none":
        return LandmarkFitter(VideoFitter(head=head, fps=fps, smooth=smooth, photometric=photometric, name=name))
    if choice.refine == "none":
        if weights is None:
            return FlameFitter(choice.regressor, head, fps, name)
        return OwnFitter(head, weights, fps, name)
    options = {"head": head, "fps": fps, "smooth": smooth, "photometric": photometric, "name": name}
    if weights is None:
        return LandmarkFitter(_FlameInformed(choice.regressor, **options))
    return LandmarkFitter(_OwnInformed(weights, **options))


def check_choice(choice: Choice) -> None:
    """InputError where nothing would be left to do the work, or files that are needed are missing; before any fitting,
    so that it is said once and not for every clip."""
    head, regressor = choice.head, choice.regressor
    if regressor == "none" and choice.refine == "none":
        raise InputError("--refine none leaves the parameters to a regressor; add --regressor deca, smirk or ours.")
    if regressor != "ours" and choice.weights is not None:
        raise InputError("--weights are those of --regressor ours.")
    try:
        model = shared_head(head)
        if choice.refine != "none" and "mediapipe" not in model.embeddings:
            raise InputError(
                f"The head '{head}' has no MediaPipe landmarks, which fitting needs. For FLAME put "
                "mediapipe_landmark_embedding.npz (of SMIRK or EMOCA) beside the model."
            )
        reader = READERS.get(regressor)
        if reader is not None and reader.find() is None:
            raise InputError(f"{reader.file} was not found. {reader.help}")
        weights = _weights(choice)
        if weights is not None:
            header = read_header(weights)
            if header.method != "regressor":
                raise InputError(f"{weights} holds a model of {header.method}, not a regressor.")
            if header.config.get("head_sha256") != model.sha256:
                raise InputError(f"{weights} was trained for another head than '{head}'; give --weights of its own.")
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from None
    if reader is None:
        return
    if model.name == "open" or model.n_shape < reader.shape or model.n_expression < reader.expression:
        raise InputError(f"--regressor {regressor} gives FLAME's parameters, not those of '{head}'; add --head flame.")


def _weights(choice: Choice) -> str | None:
    """Of our regressor, if it is wanted: the user's, or those of the package."""
    if choice.regressor != "ours":
        return None
    return choice.weights or str(WEIGHTS)


class LandmarkFitter:
    """Gauss-Newton on landmarks, and what the face looks like if asked for (`VideoFitter`)."""

    def __init__(self, fitter: VideoFitter) -> None:
        self._fitter = fitter

    def see(self, face: Face | None, image: Picture, time: float) -> Iterator[FaceTrack]:
        if face is not None and isinstance(self._fitter, _InformedFitter) and not self._fitter.settled:
            self._fitter.look(face, image)
        return self._fitter.observe(face, time, (image.shape[0], image.shape[1]), image)

    def finish(self) -> Iterator[FaceTrack]:
        return self._fitter.finish()


class _InformedFitter(VideoFitter):
    """Landmark fitting of a person whom a regressor has looked at in the first frames."""

    @abstractmethod
    def look(self, face: Face, image: Picture) -> None:
        """Called for every frame with a face as long as the identity is not settled."""


class _FlameInformed(_InformedFitter):
    """The person has the shape that DECA or SMIRK saw."""

    def __init__(self, regressor: Regressor, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._regressor = regressor
        self._shapes: list[Tensor] = []

    def look(self, face: Face, image: Picture) -> None:
        crop = READERS[self._regressor].crop(face)
        self._shapes.append(shared_encoder(self._regressor).encode(_picture(image, crop)[None]).shape[0])

    def _settle(self) -> None:
        super()._settle()
        assert self._settled is not None
        view, person = self._settled
        mean = torch.stack(self._shapes).mean(0).double().numpy()
        shape = np.zeros_like(person.shape)
        shape[: len(mean)] = mean
        self._settled = view, replace(person, shape=shape)


class _OwnInformed(_InformedFitter):
    """Shape and rotations are settled by landmarks and what our regressor saw together.

    Landmarks alone do not tell a face that looks up from one whose chin is further back; shading and outline do.
    """

    def __init__(self, weights: str, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self._model = shared_regressor(weights)
        self._looks: list[tuple[Crop, Picture]] = []

    def look(self, face: Face, image: Picture) -> None:
        crop = own_crop(face, self._model)
        self._looks.append((crop, crop.extract(image)))

    def _guess(self, chosen: NDArray[np.int64]) -> MakeGuess:
        side = self._model.config.size
        looks = [self._looks[k] for k in chosen]
        with torch.no_grad():
            codes = self._model(torch.stack([_tensor(picture) for _, picture in looks]))
        crops = torch.stack([_transform(crop) for crop, _ in looks])
        self._looks = []

        def guess(view: View) -> Guess:
            whole = Camera(torch.tensor([view.focal]), torch.tensor([view.principal]))
            turns = looking(whole.crop(crops), side) @ codes.turn
            return Guess(codes.shape.mean(0).double().numpy(), turns.double().numpy())

        return guess


@dataclass
class _Word:
    """What a regressor says of N faces."""

    params: HeadParams
    camera: Tensor
    """(N, C) numbers of the camera, as the fitter understands them."""
    crop: Tensor
    """(N, 3)"""

    def __getitem__(self, index: list[int]) -> _Word:
        return _Word(self.params[index], self.camera[index], self.crop[index])


class FrameFitter(ABC):
    """A regressor's word frame by frame; nothing is smoothed.

    Frames without a face repeat the frame before (the first frames, the first one with a face) and have confidence 0.
    """

    def __init__(self, head: str, fps: float, name: str) -> None:
        self.head = shared_head(head)
        self.fps, self.name = fps, name
        self._size = (0, 0)
        self._waiting: list[tuple[Face | None, Tensor | None, Tensor | None, float]] = []
        self._last: tuple[Face, _Word] | None = None

    @abstractmethod
    def _look(self, face: Face, image: Picture) -> tuple[Tensor, Tensor]:
        """(3,) crop transform for a face, and the crop, (3, H, W) in [0, 1]."""

    @abstractmethod
    def _read(self, pictures: Tensor, crops: Tensor) -> _Word:
        """What is in crops (N, 3, H, W)."""

    @abstractmethod
    def _camera(self, word: _Word) -> Camera | WeakPerspective:
        """Of full pictures."""

    def see(self, face: Face | None, image: Picture, time: float) -> Iterator[FaceTrack]:
        self._size = (image.shape[0], image.shape[1])
        crop, shown = (None, None) if face is None else self._look(face, image)
        self._waiting.append((face, crop, shown, time))
        seen = sum(face is not None for face, _, _, _ in self._waiting)
        if seen >= _BATCH or (self._last is not None and len(self._waiting) >= 4 * _BATCH):
            yield self._encode()

    def finish(self) -> Iterator[FaceTrack]:
        if self._waiting and self._last is None and all(face is None for face, _, _, _ in self._waiting):
            raise NoFaceError(f"No face found in any frame of {self.name}.")
        if self._waiting:
            yield self._encode()

    def _encode(self) -> FaceTrack:
        seen = [(face, crop, shown) for face, crop, shown, _ in self._waiting if face and crop is not None]
        faces = [face for face, _, _ in seen]
        words = []
        if self._last is not None:
            faces.insert(0, self._last[0])
            words.append(self._last[1])
        if seen:
            pictures = torch.stack([shown for _, _, shown in seen if shown is not None])
            words.append(self._read(pictures, torch.stack([crop for _, crop, _ in seen])))
        word = _Word(
            HeadParams.cat([w.params for w in words]),
            torch.cat([w.camera for w in words]),
            torch.cat([w.crop for w in words]),
        )
        # which of these each frame shows: the newest one so far, at least the first
        newest = np.cumsum([face is not None for face, _, _, _ in self._waiting]) - (self._last is None)
        rows = np.maximum(newest, 0).tolist()
        times = [time for _, _, _, time in self._waiting]
        presence = [face.presence if face else 0.0 for face, _, _, _ in self._waiting]
        self._waiting = []
        self._last = faces[rows[-1]], word[rows[-1:]]
        word, faces = word[rows], [faces[row] for row in rows]
        return FaceTrack(
            params=word.params,
            camera=self._camera(word),
            landmarks=torch.from_numpy(np.stack([face.landmarks for face in faces])),
            confidence=torch.tensor(presence),
            blendshapes=torch.from_numpy(np.stack([face.units for face in faces])),
            times=torch.tensor(times, dtype=torch.float64),
            crop=word.crop,
            fps=self.fps,
            image_size=self._size,
            head_name=self.head.name,
            head_sha256=self.head.sha256,
        )


class FlameFitter(FrameFitter):
    """The word of DECA or SMIRK, with its own weak-perspective camera."""

    def __init__(self, regressor: Regressor, head: str, fps: float, name: str) -> None:
        super().__init__(head, fps, name)
        self._regressor = regressor

    def _look(self, face: Face, image: Picture) -> tuple[Tensor, Tensor]:
        crop = READERS[self._regressor].crop(face)
        return crop, _picture(image, crop)

    def _read(self, pictures: Tensor, crops: Tensor) -> _Word:
        codes = shared_encoder(self._regressor).encode(pictures)
        return _Word(codes.params(self.head), codes.cam, crops)

    def _camera(self, word: _Word) -> WeakPerspective:
        return WeakPerspective.from_deca(word.camera, (SIDE, SIDE)).crop(invert_crop(word.crop))


class OwnFitter(FrameFitter):
    """Our regressor's word (`nets.regressor`), in the perspective camera that landmark fitting would choose."""

    def __init__(self, head: str, weights: str, fps: float, name: str) -> None:
        super().__init__(head, fps, name)
        self.model = shared_regressor(weights)
        self.side = self.model.config.size
        self._focal: float | None = None

    def _look(self, face: Face, image: Picture) -> tuple[Tensor, Tensor]:
        crop = own_crop(face, self.model)
        return _transform(crop), _tensor(crop.extract(image))

    @torch.no_grad()
    def _read(self, pictures: Tensor, crops: Tensor) -> _Word:
        codes = self.model(pictures)
        if self._focal is None:  # the first face is at the usual distance, unless that takes a fisheye
            pixels_per_metre = float(codes.size[0].exp() * self.side / crops[0, 0])
            self._focal = max(pixels_per_metre * DISTANCE, WIDEST * max(self._size))
        whole = self._whole()
        params = [
            _row(codes, k).params(self.head, whole.crop(crops[k : k + 1]), self.side) for k in range(len(pictures))
        ]
        return _Word(HeadParams.cat(params), torch.zeros(len(pictures), 0), crops)

    def _camera(self, word: _Word) -> Camera:
        return self._whole()

    def _whole(self) -> Camera:
        assert self._focal is not None
        height, width = self._size
        return Camera(torch.tensor([self._focal]), torch.tensor([[width / 2, height / 2]]))


def own_crop(face: Face, model: HeadRegressor) -> Crop:
    """The crop that our regressor was trained with, for a face."""
    config = model.config
    low, high = face.landmarks[:468, :2].min(0), face.landmarks[:468, :2].max(0)
    side = config.scale * float((high - low).max())
    x, y = (low + high) / 2
    return Crop((float(x), float(y) - config.up * side), side, config.size)


@cache
def shared_regressor(weights: str) -> HeadRegressor:
    """Our regressor, loaded once per process."""
    model = load_model(weights)
    assert isinstance(model, HeadRegressor)
    return model


def deca_crop(face: Face) -> Tensor:
    """(3,) DECA's crop transform for a face."""
    return deca.crop_of_landmarks(face.landmarks[[*_BROWS, *_JAW], :2])


def smirk_crop(face: Face) -> Tensor:
    """(3,) SMIRK's crop transform for a face."""
    return smirk.crop_of_landmarks(face.landmarks[:, :2])


@dataclass(frozen=True)
class _Reader:
    """A network of the user's that reads FLAME's parameters off crops of 224 x 224."""

    file: str
    help: str
    """The way to it."""
    shape: int
    expression: int
    find: Callable[[], Path | None]
    load: Callable[[], DecaEncoder | SmirkEncoder]
    crop: Callable[[Face], Tensor]


READERS: dict[Regressor, _Reader] = {
    "deca": _Reader(
        "deca_model.tar", deca.DECA_HELP, CODES["shape"], CODES["exp"], deca.find_deca, deca.load_encoder, deca_crop
    ),
    "smirk": _Reader(
        "SMIRK_em1.pt", smirk.SMIRK_HELP, SHAPE, EXPRESSION, smirk.find_smirk, smirk.load_encoder, smirk_crop
    ),
}
"""By the value of --regressor."""


@cache
def shared_encoder(regressor: Regressor) -> DecaEncoder | SmirkEncoder:
    """The user's network, loaded once per process."""
    return READERS[regressor].load()


@cache
def shared_head(name: str) -> HeadModel:
    """A head by name or path, loaded once per process."""
    return load_head(name)


def _transform(crop: Crop) -> Tensor:
    """(3,) scale, tx, ty."""
    return torch.from_numpy(crop.matrix[[0, 0, 1], [0, 2, 2]]).float()


def _row(codes: HeadCodes, number: int) -> HeadCodes:
    return HeadCodes(**{f.name: getattr(codes, f.name)[number : number + 1] for f in fields(HeadCodes)})


def _picture(image: Picture, crop: Tensor) -> Tensor:
    """(3, 224, 224) in [0, 1], bilinear, black outside, as the loaders of DECA and SMIRK make it."""
    scale, tx, ty = crop.double().tolist()
    # OpenCV counts from pixel centres: index = continuous - 0.5 on both sides
    matrix = np.array([[scale, 0, tx + 0.5 * scale - 0.5], [0, scale, ty + 0.5 * scale - 0.5]])
    return _tensor(cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))


def _tensor(image: np.ndarray) -> Tensor:
    """(3, H, W) in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255
