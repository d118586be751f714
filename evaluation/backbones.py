"""What looks at pictures for the metrics: landmarks, fitted heads, embeddings. Each one says what it is.

Official networks are used when the user has their weights, in ~/.cache/headwarp or the folder that HEADWARP_WEIGHTS
names (`WEIGHTS` lists the file names); nothing is downloaded. Without them other networks take their place, under
other names: a number never changes its meaning with what happens to be installed.

Every picture is read once: `Features` keeps what was seen under the picture's own hash, so that the ground truth is
read once for all models, and a run that is started again goes on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..fitting import faces, fit, reading, solve
from ..fitting.faces import face_of_crop, find_faces
from ..fitting.fit import fit_image, shared_solver
from ..geom.camera import Camera
from ..geom.head import HeadParams
from ..geom.rotation import axis_angle_to_euler
from ..media.files import atomic_write
from ..nets.model_file import file_hash
from ..nets.perceptual import Backbone
from ..third_party.mediapipe import ASSETS
from .arcface import IResNet, aligned
from .dataset import Picture
from .inception import Inception

Found = dict[str, NDArray[Any]]
"""What a reader saw in one picture; `found` is 0 where it saw nothing."""

WEIGHTS: dict[str, tuple[str, ...]] = {
    "alexnet": ("alexnet-owt-*.pth",),
    "vgg16": ("vgg16-397923af.pth", "vgg16-*.pth"),
    "inception": ("pt_inception-2015-12-05-*.pth",),
    "arcface": ("arcface*.pth", "*arcface*/backbone.pth"),
}
"""Patterns of the file names of official weights."""

MESH_68 = np.array(
    [
        *(127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356),  # contour
        *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # brows
        *(168, 197, 5, 4, 75, 97, 2, 326, 305),  # nose
        *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
        *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),  # outer lips
        *(78, 82, 13, 312, 308, 317, 14, 87),  # inner lips
    ]
)
"""The points of MediaPipe's mesh that lie nearest to iBUG's 68."""
EYE_CORNERS = (33, 263)
EFFICIENTNET_NOTE = "ImageNet classification, averages of the last block (320 numbers)"


def find_weights(what: str, folder: Path | None = None) -> Path | None:
    """The user's file of official weights; None where there is none.

    Args:
        what: a key of `WEIGHTS`.
        folder: default: HEADWARP_WEIGHTS, or ~/.cache/headwarp.
    """
    named = os.environ.get("HEADWARP_WEIGHTS")
    place = folder or (Path(named).expanduser() if named else Path.home() / ".cache" / "headwarp")
    for pattern in WEIGHTS[what]:
        if found := sorted(place.glob(pattern)):
            return found[0]
    return None


@dataclass(frozen=True)
class Card:
    """Which network or model read the pictures."""

    name: str
    sha256: str
    """Of its weights."""
    note: str = ""


class Reader(Protocol):
    """One way to look at pictures."""

    card: Card

    def read(self, pictures: Sequence[Picture]) -> list[Found]:
        """What is seen in each; arrays of any shapes."""


class Features:
    """What readers saw, kept in a folder: FOLDER/features/READER/ab/PICTURE.safetensors.

    Args:
        folder: shared by all evaluations that look at the same pictures.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder) / "features"

    def of(self, reader: Reader, pictures: Sequence[Picture], *, keep: bool = True) -> list[Found]:
        """What a reader sees in the pictures; those that are known are not read again.

        Args:
            keep: write down what was read now.
        """
        place = self.folder / f"{reader.card.name}-{reader.card.sha256[:8]}"
        paths = [place / name[:2] / f"{name}.safetensors" for name in map(picture_hash, pictures)]
        known = [_load(path) for path in paths]
        fresh: dict[Path, Picture] = {p: i for p, i, k in zip(paths, pictures, known, strict=True) if k is None}
        seen = dict(zip(fresh, reader.read(list(fresh.values())), strict=True)) if fresh else {}
        for path, found in seen.items() if keep else ():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                save_file({k: np.ascontiguousarray(v) for k, v in found.items()}, temporary)
        return [seen[path] if found is None else found for path, found in zip(paths, known, strict=True)]


def picture_hash(picture: Picture) -> str:
    """sha256 of a picture's size and pixels."""
    digest = hashlib.sha256(str(picture.shape).encode())
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


class FaceReader:
    """Landmarks, face units and the head fitted to the one picture, of the largest face.

    Gives landmarks (478, 3) px, units (52,), pose (3,) yaw, pitch, roll in degrees, head.* the fields of `HeadParams`,
    focal (1,), principal (2,).
    """

    def __init__(self) -> None:
        self.head = shared_solver().head
        landmarker = file_hash(ASSETS / "face_landmarker.task")
        # A fit follows from its code as much as from its files: values of different versions must not meet.
        code = [file_hash(str(module.__file__)) for module in (faces, fit, solve, reading)]
        parts = [landmarker, file_hash(ASSETS / "landmark_reading.safetensors"), self.head.sha256, *code]
        whole = hashlib.sha256(" ".join(parts).encode()).hexdigest()
        note = "MediaPipe's landmarker, then `headwarp fit` on the one picture; the hash is of files and code"
        self.card = Card("mediapipe+open_head", whole, note)
        self.landmarks_card = Card("mediapipe", landmarker, "MediaPipe's face landmarker (478 points, 52 face units)")

    def read(self, pictures: Sequence[Picture]) -> list[Found]:
        return [self._read(picture) for picture in pictures]

    def _read(self, picture: Picture) -> Found:
        # The detector first: a result may show its face where the crop does not promise it.
        seen = find_faces(picture)
        face = seen[0] if seen else face_of_crop(picture)
        if face is None:
            return {"found": np.zeros(1, np.float32)}
        track = fit_image(picture, face=face)
        assert isinstance(track.camera, Camera)
        return {
            "found": np.ones(1, np.float32),
            "landmarks": face.landmarks,
            "units": face.units,
            "pose": axis_angle_to_euler(track.params.rotation)[0].numpy(),
            "focal": track.camera.focal.numpy(),
            "principal": track.camera.principal[0].numpy(),
            **{f"head.{name}": value[0].numpy() for name, value in track.params.asdict().items()},
        }


def head_of(found: Found) -> tuple[HeadParams, Camera]:
    """The head (B = 1) and camera that a `FaceReader` saw."""
    fields = {k.removeprefix("head."): torch.from_numpy(v)[None] for k, v in found.items() if k.startswith("head.")}
    return HeadParams(**fields), Camera(torch.from_numpy(found["focal"]), torch.from_numpy(found["principal"])[None])


class FanReader:
    """68 landmarks of face-alignment (Bulat and Tzimiropoulos 2017), as FOMM's and PWM's AKD have them.

    Made only where the package is installed and has its weights (see `fan_weights`).
    """

    def __init__(self, weights: Path) -> None:
        import face_alignment

        kind = face_alignment.LandmarksType.TWO_D
        self._network = face_alignment.FaceAlignment(kind, flip_input=True, device="cpu")
        self.card = Card("face_alignment68", file_hash(weights), "face-alignment's 2-D network, flip_input")

    def read(self, pictures: Sequence[Picture]) -> list[Found]:
        found = []
        for picture in pictures:
            faces = self._network.get_landmarks_from_image(picture)
            if not faces:
                found.append({"found": np.zeros(1, np.float32)})
                continue
            largest = max(faces, key=lambda points: float(np.ptp(points, axis=0).max()))
            found.append({"found": np.ones(1, np.float32), "landmarks68": largest[:, :2].astype(np.float32) + 0.5})
        return found


def fan_weights() -> Path | None:
    """The landmark network that face-alignment has downloaded; None where package or weights are missing."""
    if importlib.util.find_spec("face_alignment") is None:
        return None
    place = Path(torch.hub.get_dir()) / "checkpoints"
    landmarks, detector = sorted(place.glob("2DFAN4*")), sorted(place.glob("s3fd*"))
    return landmarks[0] if landmarks and detector else None


class PictureEmbedding:
    """One vector for each picture, by a network that takes (B, 3, H, W) in [0, 1]."""

    def __init__(self, card: Card, network: Callable[[torch.Tensor], torch.Tensor], batch: int = 16) -> None:
        self.card, self._network, self._batch = card, network, batch

    @staticmethod
    def efficientnet(backbone: Backbone, sha256: str) -> PictureEmbedding:
        return PictureEmbedding(Card("efficientnet_lite0", sha256, EFFICIENTNET_NOTE), lambda x: averaged(backbone(x)))

    @staticmethod
    def inception(path: Path) -> PictureEmbedding:
        return PictureEmbedding(Card("inception_v3_2015", file_hash(path), path.name), Inception.from_official(path))

    def read(self, pictures: Sequence[Picture]) -> list[Found]:
        found: list[Found] = []
        with torch.inference_mode():
            for start in range(0, len(pictures), self._batch):
                images = as_batch(pictures[start : start + self._batch])
                found += [{"vector": row.float().numpy()} for row in self._network(images)]
        return found


class FaceEmbedding:
    """One vector for each face, aligned by five of its landmarks.

    Args:
        card: of the network.
        network: takes aligned faces (B, 3, side, side) in [0, 1].
        faces: gives what a `FaceReader` sees in pictures.
        side: of the aligned faces in pixels.
    """

    def __init__(
        self,
        card: Card,
        network: Callable[[torch.Tensor], torch.Tensor],
        faces: Callable[[Sequence[Picture]], list[Found]],
        side: int,
    ) -> None:
        self.card, self._network, self._faces, self._side = card, network, faces, side

    @staticmethod
    def efficientnet(
        backbone: Backbone, sha256: str, faces: Callable[[Sequence[Picture]], list[Found]]
    ) -> FaceEmbedding:
        card = Card("efficientnet_lite0_face", sha256, f"{EFFICIENTNET_NOTE}, of the aligned face at 128 px")
        return FaceEmbedding(card, lambda x: averaged(backbone(x)), faces, 128)

    @staticmethod
    def arcface(path: Path, faces: Callable[[Sequence[Picture]], list[Found]]) -> FaceEmbedding:
        card = Card("arcface", file_hash(path), f"{path.parent.name}/{path.name}, aligned by MediaPipe's landmarks")
        return FaceEmbedding(card, IResNet.from_official(path), faces, 112)

    def read(self, pictures: Sequence[Picture]) -> list[Found]:
        seen = self._faces(pictures)
        found: list[Found] = [{"found": np.zeros(1, np.float32)} for _ in pictures]
        there = [i for i, face in enumerate(seen) if face["found"][0]]
        with torch.inference_mode():
            for start in range(0, len(there), 16):
                some = there[start : start + 16]
                crops = [aligned(pictures[i], seen[i]["landmarks"], self._side) for i in some]
                for i, row in zip(some, self._network(as_batch(crops)), strict=True):
                    found[i] = {"found": np.ones(1, np.float32), "vector": row.float().numpy()}
        return found


def averaged(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, C) averages over the last layer."""
    return features[-1].mean((2, 3))


def as_batch(pictures: Sequence[Picture]) -> torch.Tensor:
    """(B, 3, H, W) float32 in [0, 1] of pictures of one size."""
    stack = torch.from_numpy(np.stack(pictures))
    return stack.permute(0, 3, 1, 2).contiguous().float() / 255


def _load(path: Path) -> Found | None:
    if not path.is_file():
        return None
    try:
        return dict(load_file(path))
    except SafetensorError:  # a damaged file is read anew
        return None
