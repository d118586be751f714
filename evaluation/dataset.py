"""What is evaluated on: clips of people, their frames at one size, and the fitted head where it is known.

    DIR/NAME/clip.mp4 + clip.safetensors        what `headwarp fit` writes; the track is used as it is
    DIR/test/NAME.mp4, DIR/test/NAME.mp4/*.png  FOMM's folders; of train/ and test/ only test/ counts
    DIR/*.mp4, *.jpg ...                        plain videos and pictures (clips of one frame)

Frames are looked at as squares of one size: a square picture is resized, in any other the square around the face of
the clip's first frame is taken, the same for the whole clip.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from ..fitting.faces import NoFaceError, largest_face
from ..fitting.fit import fit_video
from ..fitting.sources import find_sources
from ..geom.camera import Camera, apply_crop
from ..geom.head import HeadParams
from ..geom.track import FaceTrack
from ..media.crop import Crop
from ..media.errors import InputError
from ..media.files import IMAGE_SUFFIXES, list_images
from ..media.image import load_image, save_image
from ..media.video import VideoReader

Picture = NDArray[np.uint8]

FACE_SQUARE = 2.0
"""Side of the square in face sizes, where a clip is not square itself."""


@dataclass(frozen=True)
class Ref:
    """A frame of a clip."""

    clip: str
    index: int
    """From 0."""

    def __str__(self) -> str:
        return f"{self.clip}/{self.index:07d}.png"


@dataclass(frozen=True)
class Moment:
    """A frame, and what is known about it."""

    image: Picture
    """(size, size, 3)"""
    ref: Ref
    params: HeadParams | None = None
    """B = 1; the heads of one clip share shape and camera."""
    camera: Camera | None = None
    """In the pixels of `image`."""
    landmarks: NDArray[np.float32] | None = None
    """(478, 3) px of `image`."""


@dataclass(frozen=True)
class Clip:
    """A clip of one person."""

    name: str
    """With the folder below the data set, without the ending: test/id10283#WMh3ye5tBsE#003657#003994."""
    path: Path
    """Video, folder of frames, or picture."""
    track_path: Path | None = None

    @property
    def identity(self) -> str:
        """Whom it shows: what stands before the first # of its name (VoxCeleb, FOMM), else the whole name."""
        return self.name.split("#")[0].rsplit("/", 1)[-1]

    @property
    def is_still(self) -> bool:
        return self.path.suffix.lower() in IMAGE_SUFFIXES and not self.path.is_dir()

    @cached_property
    def frame_names(self) -> tuple[str, ...]:
        """Stems of the pictures of a folder of frames, in order; nothing for videos."""
        return tuple(path.stem for path in list_images(self.path)) if self.path.is_dir() else ()

    @cached_property
    def length(self) -> int:
        """Frames; of a video without a track as the file claims."""
        if self.is_still:
            return 1
        if self.frame_names:
            return len(self.frame_names)
        if self.track_path:
            with safe_open(self.track_path, "np") as file:  # the shape alone: data sets have many clips
                return int(file.get_slice("times").get_shape()[0])
        return VideoReader(self.path).frame_count

    def index_of(self, name: str) -> int | None:
        """Which frame is called `name` (0000075); None where there is no such frame."""
        if name in self.frame_names:
            return self.frame_names.index(name)
        digits = name.rsplit("_", 1)[-1]
        if not digits.isdecimal() or self.frame_names:
            return None
        return int(digits) if int(digits) < self.length else None


def open_data(path: Path | str) -> dict[str, Clip]:
    """The clips of a data set by name, in natural order.

    Raises:
        InputError: there is nothing to evaluate on, or clips would have the same name.
    """
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"--data must be a folder of clips, videos or pictures; {root} is none.")
    fitted = sorted(p.parent for p in root.rglob("clip.safetensors") if p.with_name("clip.mp4").is_file())
    if fitted:
        clips = [
            Clip(f.relative_to(root).as_posix() if f != root else f.name, f / "clip.mp4", f / "clip.safetensors")
            for f in fitted
        ]
    else:
        sources, _ = find_sources([root])
        clips = [Clip(source.name, source.path) for source in sources]
    if any(clip.name.startswith("test/") for clip in clips):
        clips = [clip for clip in clips if not clip.name.startswith("train/")]
    return {clip.name: clip for clip in clips}


class Frames:
    """The frames of a data set at one size, written once and read as often as needed.

    Args:
        clips: the data set.
        folder: where frames and tracks are kept: FOLDER/frames/KEY/0000075.png, FOLDER/tracks/KEY.safetensors. KEY is
            the clip's name with a hash of what it was made from.
        size: side of the square in pixels.
        refit: fit the clips that have a track as well, so that synthetic clips are known no better than real ones.
    """

    def __init__(self, clips: Mapping[str, Clip], folder: Path | str, size: int = 256, *, refit: bool = False) -> None:
        self.clips, self.folder, self.size, self.refit = dict(clips), Path(folder), size, refit
        self.problems: list[str] = []
        self._tracks: OrderedDict[str, FaceTrack | None] = OrderedDict()
        self._squares: dict[str, Crop] = {}

    def prepare(self, refs: Iterable[Ref]) -> set[Ref]:
        """Write the frames that are not there yet, each clip read once; gives those that the clips do not have."""
        wanted: dict[str, set[int]] = {}
        for ref in refs:
            if not self.path(ref).is_file():
                wanted.setdefault(ref.clip, set()).add(ref.index)
        for name, indices in wanted.items():
            clip = self.clips[name]
            square = self._square_of(clip)
            if clip.frame_names:
                pictures = list_images(clip.path)
                for index in sorted(i for i in indices if i < len(pictures)):
                    self._write(Ref(name, index), square.extract(load_image(pictures[index])))
                continue
            for frame in VideoReader(clip.path):
                if frame.index in indices:
                    self._write(Ref(name, frame.index), square.extract(frame.image))
                if frame.index >= max(indices):
                    break
        missing = (Ref(name, index) for name, indices in wanted.items() for index in indices)
        return {ref for ref in missing if not self.path(ref).is_file()}

    def path(self, ref: Ref) -> Path:
        """Where the picture lies; it is there once `prepare` had its turn."""
        return self.folder / "frames" / f"{self._key(self.clips[ref.clip])}-{self.size}" / f"{ref.index:07d}.png"

    def picture(self, ref: Ref) -> Picture:
        """(size, size, 3)"""
        return load_image(self.path(ref))

    def moment(self, ref: Ref, *, fitted: bool = True) -> Moment:
        """A frame and, if `fitted`, its head out of the clip's track, which is fitted first where there is none."""
        return self._moment(ref, self.track(ref.clip) if fitted else None, given=not self.refit)

    def exact(self, ref: Ref) -> tuple[HeadParams, Camera] | None:
        """The true head (B = 1) of a frame and its camera in the pixels of the square; of synthetic clips only."""
        track = self._given(ref.clip)
        if track is None or track.metadata.get("source") != "synthetic":
            return None
        moment = self._moment(ref, track, given=True)
        return None if moment.params is None or moment.camera is None else (moment.params, moment.camera)

    def track(self, name: str) -> FaceTrack | None:
        """The fitted heads of a clip, in the pixels of its file; None for pictures and where no face was found."""
        return self._given(name) or self._fitted(name) if not self.refit else self._fitted(name)

    def _given(self, name: str) -> FaceTrack | None:
        path = self.clips[name].track_path
        return None if path is None else self._kept(name, lambda: FaceTrack.load(path))

    def _fitted(self, name: str) -> FaceTrack | None:
        clip = self.clips[name]

        def fit() -> FaceTrack | None:
            path = self.folder / "tracks" / f"{self._key(clip)}.safetensors"
            if path.is_file():
                return FaceTrack.load(path)
            try:
                track = fit_video(clip.path)
            except NoFaceError as error:
                self.problems.append(str(error))
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            track.save(path)
            return track

        return None if clip.is_still else self._kept(f"{name} fitted", fit)

    def _kept(self, key: str, make: Callable[[], FaceTrack | None]) -> FaceTrack | None:
        """Of the last tracks that were asked for; a data set's do not all fit into memory."""
        if key not in self._tracks:
            self._tracks[key] = make()
            if len(self._tracks) > 32:
                self._tracks.popitem(last=False)
        self._tracks.move_to_end(key)
        return self._tracks[key]

    def _moment(self, ref: Ref, track: FaceTrack | None, *, given: bool) -> Moment:
        image = self.picture(ref)
        if track is None or ref.index >= len(track) or track.confidence[ref.index] == 0:
            return Moment(image, ref)
        here = track[ref.index]
        clip = self.clips[ref.clip]
        transform = torch.from_numpy(self._square_of(clip).matrix[[0, 0, 1], [0, 2, 2]]).float()
        if given and clip.track_path is not None:
            # The tracks of `headwarp fit` are in pixels of the source; their crop leads to those of clip.mp4.
            scale, shift = transform[0], transform[1:]
            transform = torch.cat([here.crop[0, :1] * scale, here.crop[0, 1:] * scale + shift])
        if not isinstance(here.camera, Camera):
            return Moment(image, ref)
        points = apply_crop(transform, here.landmarks[0])
        return Moment(image, ref, here.params, here.camera.crop(transform), points.numpy())

    def _square_of(self, clip: Clip) -> Crop:
        """What is looked at of every frame of a clip."""
        if clip.name not in self._squares:
            image = next(iter(VideoReader(clip.path))).image
            if image.shape[0] == image.shape[1]:
                square = Crop.whole(image.shape, self.size)
            else:
                face = largest_face(image, name=f"the first frame of {clip.path}")
                square = Crop.from_landmarks(face.landmarks[:468], FACE_SQUARE, 0.1, self.size)
            self._squares[clip.name] = square
        return self._squares[clip.name]

    def _key(self, clip: Clip) -> str:
        stat = clip.path.stat()
        what = hashlib.sha256(f"{clip.path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
        return f"{clip.name.replace('/', '+')}-{what[:8]}"

    def _write(self, ref: Ref, image: Picture) -> None:
        save_image(self.path(ref), image)
