"""Face tracks: one head's parameters, camera and landmarks over the T frames of a clip, and the file of them.

The file is a safetensors file (no code in it) with these keys; T frames, C = 1 or T cameras:

    shape (T,S), expression (T,E), rotation (T,3), neck (T,3), jaw (T,3), eyes (T,6), eyelids (T,2), translation (T,3)
    camera_focal (C,), camera_principal (C,2)            pixels of the full picture
      or camera_scale (C,), camera_principal (C,2)       weak perspective; metadata camera_distance
    landmarks (T,478,3)    pixels of the full picture; the third column is MediaPipe's relative depth, in pixels too
    confidence (T,)        0 (no face seen) ... 1
    blendshapes (T,52)     ARKit weights, in the order of `arkit.NAMES`
    times (T,)             float64 seconds from the start of the clip, increasing
    crop (T,3)             crop transform scale, tx, ty: full-picture pixels -> pixels of the crop that was looked at
  metadata (strings)
    format = "headwarp-track-1", fps, height, width, head_name, head_sha256; other entries are kept
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .camera import Camera, WeakPerspective
from .head import HeadModel, HeadParams
from .rotation import slerp

FORMAT = "headwarp-track-1"
_PER_FRAME = {"landmarks": (478, 3), "confidence": (), "blendshapes": (52,), "times": (), "crop": (3,)}
_PARAMS = tuple(f.name for f in dataclasses.fields(HeadParams))
_ROTATIONS = ("rotation", "neck", "jaw", "eyes")


@dataclass
class FaceTrack:
    """Parameters over time. Shapes and units of the fields are those of the file, see the module docstring."""

    params: HeadParams
    camera: Camera | WeakPerspective
    """One for the clip, or one per frame."""
    landmarks: Tensor
    confidence: Tensor
    blendshapes: Tensor
    times: Tensor
    crop: Tensor
    fps: float
    """Nominal frames per second; `times` are exact."""
    image_size: tuple[int, int]
    """(H, W) of the full picture."""
    head_name: str
    head_sha256: str
    """`HeadModel.sha256` of the head that the parameters belong to."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Free entries for the file, such as the name of the clip."""

    def __post_init__(self) -> None:
        count = len(self.params)
        self.times = self.times.to(torch.float64)
        for name, tail in _PER_FRAME.items():
            value = getattr(self, name)
            if value.shape != (count, *tail):
                wanted = (count, *tail)
                raise ValueError(f"FaceTrack: {name} must be {wanted} for {count} frames, got {tuple(value.shape)}.")
        for name, value in self.params.asdict().items():
            if value.ndim != 2 or len(value) != count:
                raise ValueError(f"FaceTrack: params.{name} must be ({count}, n), got {tuple(value.shape)}.")
        if len(self.camera) not in (1, count):
            raise ValueError(f"FaceTrack: there must be 1 or {count} cameras, got {len(self.camera)}.")
        if count > 1 and not bool((self.times.diff() > 0).all()):
            raise ValueError("FaceTrack: times must increase from frame to frame.")

    def __len__(self) -> int:
        return len(self.params)

    def __getitem__(self, index: Any) -> FaceTrack:
        """Some of the frames, by slice, increasing indices, mask or one number (which keeps the time axis)."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"FaceTrack: frame {index} is outside a track of {len(self)}.")
            index = [index]
        return dataclasses.replace(
            self,
            params=self.params[index],
            camera=self.camera if len(self.camera) == 1 else self.camera[index],
            **{name: getattr(self, name)[index] for name in _PER_FRAME},
        )

    @staticmethod
    def cat(parts: Iterable[FaceTrack]) -> FaceTrack:
        """One track of consecutive pieces of the same clip (head, picture size and kind of camera must agree).

        The camera stays single where every piece has the same single one.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("FaceTrack.cat: there are no pieces to join.")
        first = parts[0]
        for part in parts[1:]:
            if (part.head_sha256, part.image_size) != (first.head_sha256, first.image_size):
                raise ValueError(
                    f"FaceTrack.cat: the pieces differ in head or picture size: {first.head_name}, {first.image_size} "
                    f"and {part.head_name}, {part.image_size}."
                )
        per_frame: dict[str, Any] = {k: torch.cat([getattr(part, k) for part in parts]) for k in _PER_FRAME}
        return dataclasses.replace(
            first,
            params=HeadParams.cat(part.params for part in parts),
            camera=_cat_cameras([(part.camera, len(part)) for part in parts]),
            **per_frame,
        )

    def check(self, head: HeadModel) -> None:
        """Raise ValueError unless `head` is the one that the parameters were fitted with."""
        if head.sha256 != self.head_sha256:
            raise ValueError(
                f"The track belongs to the head '{self.head_name}' (sha256 {self.head_sha256[:12]}...), not to "
                f"'{head.name}' ({head.sha256[:12]}...): its numbers mean nothing there. Load the track's head, or fit "
                "the clip again."
            )

    def at(self, times: Tensor) -> FaceTrack:
        """The track at other times, for a change of frame rate or a gap.

        Rotations turn at constant speed between frames (slerp), the rest is linear; confidence is the lower of both
        neighbours'. Times before the first or after the last frame give that frame.

        Args:
            times: (K,) seconds, increasing.
        """
        times = torch.as_tensor(times, dtype=torch.float64)
        if len(self) == 0:
            raise ValueError("FaceTrack.at: an empty track has no frames to interpolate.")
        after = torch.searchsorted(self.times, times).clamp(1, max(len(self) - 1, 1)).clamp_max(len(self) - 1)
        before = (after - 1).clamp_min(0)
        span = (self.times[after] - self.times[before]).clamp_min(1e-12)
        weight = ((times - self.times[before]) / span).clamp(0, 1)

        def mix(values: Tensor) -> Tensor:
            share = weight.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
            return torch.lerp(values[before], values[after], share)

        def turn(values: Tensor) -> Tensor:
            start, end = (values[i].unflatten(-1, (-1, 3)) for i in (before, after))
            return slerp(start, end, weight.to(values.dtype)[:, None, None]).flatten(1)

        params = {k: turn(v) if k in _ROTATIONS else mix(v) for k, v in self.params.asdict().items()}
        camera = self.camera
        if len(camera) > 1:
            tensors = {name: mix(value) for name, value in _camera_tensors(camera).items()}
            camera = _with_tensors(camera, tensors)
        return dataclasses.replace(
            self,
            params=HeadParams(**params),
            camera=camera,
            landmarks=mix(self.landmarks),
            confidence=torch.minimum(self.confidence[before], self.confidence[after]),
            blendshapes=mix(self.blendshapes),
            crop=mix(self.crop),
            times=times,
        )

    def resample(self, fps: float) -> FaceTrack:
        """The track at a constant frame rate, over the same span of time."""
        if fps <= 0:
            raise ValueError(f"FaceTrack.resample: fps must be positive, got {fps}.")
        start, end = float(self.times[0]), float(self.times[-1])
        count = int((end - start) * fps + 1e-6) + 1
        resampled = self.at(start + torch.arange(count, dtype=torch.float64) / fps)
        return dataclasses.replace(resampled, fps=fps)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors and the metadata of the file, see the module docstring."""
        tensors = {**self.params.asdict(), **{name: getattr(self, name) for name in _PER_FRAME}}
        tensors |= {f"camera_{name}": value for name, value in _camera_tensors(self.camera).items()}
        metadata = {
            **self.metadata,
            "format": FORMAT,
            "fps": repr(float(self.fps)),
            "height": str(self.image_size[0]),
            "width": str(self.image_size[1]),
            "head_name": self.head_name,
            "head_sha256": self.head_sha256,
        }
        if isinstance(self.camera, WeakPerspective):
            metadata["camera_distance"] = repr(self.camera.distance)
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata

    def save(self, path: Path | str) -> None:
        """Write the file, whole or not at all."""
        path = Path(path)
        tensors, metadata = self.pack()
        blob = save(tensors, metadata=metadata)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(blob)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def load(path: Path | str) -> FaceTrack:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: no such file. ValueError: no track, of another version, or damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"Face track not found at {path}.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is no readable face track, it may be cut off or of another kind ({error})."
            ) from None
        return FaceTrack.unpack(tensors, metadata, path)

    @staticmethod
    def unpack(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path | str = "the file") -> FaceTrack:
        """The track that `pack` took apart.

        Args:
            tensors, metadata: what the file holds.
            path: how to call it in error messages.
        Raises:
            ValueError: no track, of another version, or damaged.
        """
        metadata = dict(metadata)
        found = metadata.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"{path} is no face track of this version: its format is {found!r}, wanted {FORMAT!r}.")
        try:
            return FaceTrack(
                params=HeadParams(**{name: tensors[name] for name in _PARAMS}),
                camera=_read_camera(tensors, metadata),
                **{name: tensors[name] for name in _PER_FRAME},
                fps=float(metadata.pop("fps")),
                image_size=(int(metadata.pop("height")), int(metadata.pop("width"))),
                head_name=metadata.pop("head_name"),
                head_sha256=metadata.pop("head_sha256"),
                metadata=metadata,
            )
        except KeyError as error:
            raise ValueError(f"{path} is no complete face track: {error} is missing.") from None
        except ValueError as error:
            raise ValueError(f"{path} is no valid face track ({error})") from None


def _camera_tensors(camera: Camera | WeakPerspective) -> dict[str, Tensor]:
    if isinstance(camera, Camera):
        return {"focal": camera.focal, "principal": camera.principal}
    return {"scale": camera.scale, "principal": camera.principal}


def _with_tensors(camera: Camera | WeakPerspective, tensors: dict[str, Tensor]) -> Camera | WeakPerspective:
    if isinstance(camera, Camera):
        return Camera(**tensors)
    return WeakPerspective(**tensors, distance=camera.distance)


def _read_camera(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Camera | WeakPerspective:
    if "camera_scale" in tensors:
        distance = float(metadata.pop("camera_distance"))
        return WeakPerspective(tensors["camera_scale"], tensors["camera_principal"], distance)
    return Camera(tensors["camera_focal"], tensors["camera_principal"])


def _cat_cameras(cameras: list[tuple[Camera | WeakPerspective, int]]) -> Camera | WeakPerspective:
    """One camera if all are the same single one, else one per frame of the pieces (camera, number of frames)."""
    first = cameras[0][0]
    if any(type(camera) is not type(first) for camera, _ in cameras):
        raise ValueError("FaceTrack.cat: the pieces have different kinds of camera.")
    fields = [_camera_tensors(camera) for camera, _ in cameras]
    if len(first) == 1 and all(all(torch.equal(f[k], fields[0][k]) for k in f) for f in fields):
        return first
    full = []
    for tensors, (camera, count) in zip(fields, cameras, strict=True):
        full.append({k: v.expand(count, *v.shape[1:]) if len(camera) == 1 else v for k, v in tensors.items()})
    return _with_tensors(first, {k: torch.cat([f[k] for f in full]) for k in fields[0]})
