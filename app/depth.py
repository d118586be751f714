"""`headwarp depth`: depth maps, normals and point clouds of faces in pictures and videos.

Depth from one picture is known up to a factor, and lengths along and across the line of sight compare only if the
field of view is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..media.crop import Crop
    from ..nets.depth import DepthConfig, FaceDepth

FOV = 20.0
"""Degrees that the square spans where nobody says so. Portraits from a metre away have about that."""


@dataclass
class Depth:
    """Depth of a face: 16-bit PNG, colour map, normals and a point cloud, for a picture or every frame of a video.

    All are of a square around the face, as large as the network's. depth.json says how the numbers are to be read.
    """

    input: Annotated[Path, Positional]
    """Picture, video or folder of frames."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder for the results."""
    model: Path
    """Model file with a face depth network: of `headwarp convert depth` or dagan, or of a training."""
    no_crop: bool = False
    """The picture is a square around a face already."""
    fov: float | None = None
    """Degrees that the square spans, for normals and points. By default what the model's camera network reads from the
    first picture, and 20 where it has none."""

    def run(self) -> None:
        from ..media.errors import InputError
        from ..media.files import make_folder

        if self.fov is not None and not 1 <= self.fov <= 120:
            raise InputError(f"--fov takes degrees from 1 to 120, got {self.fov:g}.")
        network = open_depth(self.model)
        number, fov = -1, self.fov
        for number, (name, picture, crop) in enumerate(self._pictures(network.config)):
            if fov is None:
                fov = seen_fov(network, picture)
            if number == 0:
                make_folder(self.output)
                self._describe(crop, fov)
            write_depth(self.output, name, picture, network, fov=fov)
        if number < 0:
            raise InputError(f"No face found in {self.input}; pass --no-crop if its pictures are face crops already.")
        print(f"{self.output}: {number + 1} picture{'s' if number else ''}")

    def _pictures(self, config: DepthConfig) -> Iterator[tuple[str, NDArray[np.uint8], Crop]]:
        """Name ("" for a single picture), (side, side, 3) and where it was."""
        from ..fitting.faces import FaceTracker, choose_face, find_faces
        from ..media.crop import BoxSmoother, Crop
        from ..media.files import VIDEO_SUFFIXES
        from ..media.image import load_image
        from ..media.video import VideoReader
        from .keypoint import SHIFT

        side = config.image_size
        if not self.input.is_dir() and self.input.suffix.lower() not in VIDEO_SUFFIXES:
            picture = load_image(self.input)
            crop = Crop.whole(picture.shape, side)
            if not self.no_crop:
                face = choose_face(find_faces(picture), picture, name=str(self.input))
                crop = Crop.from_landmarks(face.landmarks[:468], config.scale, SHIFT, side)
            yield "", crop.extract(picture), crop
            return
        tracker, holding = FaceTracker(), BoxSmoother()
        square: Crop | None = None
        for number, frame in enumerate(VideoReader(self.input, max_side=1280)):
            if self.no_crop:
                square = Crop.whole(frame.image.shape, side)
            elif (seen := tracker.track(frame.image)) is not None:
                square = holding.update(Crop.from_landmarks(seen.landmarks[:468], config.scale, SHIFT, side))
            if square is not None:
                yield f"{number:06d}", square.extract(frame.image), square

    def _describe(self, crop: Crop, fov: float) -> None:
        facts = {
            "depth_png": "16 bit; disparity = value / 65535, depth = 1 / (0.01 + 9.99 disparity), near is bright",
            "unit": "unknown: depth is right up to one factor",
            "normals_png": "(x, y, z) = 2 value / 255 - 1; x right, y up, z towards the viewer",
            "points_ply": "x right, y up, the camera at the origin looks along -z",
            "fov_degrees": fov,
            "picture_to_first_square": [list(map(float, row)) for row in crop.matrix],
        }
        (self.output / "depth.json").write_text(json.dumps(facts, indent=1) + "\n")


def open_depth(path: Path) -> FaceDepth:
    """The face depth network of a model file, of its own or inside a DaGAN.

    Raises:
        InputError: there is no such file, or no such network in it.
    """
    from ..media.errors import InputError
    from ..nets.dagan import DaGan
    from ..nets.depth import FaceDepth
    from ..nets.inference import optimise
    from ..nets.model_file import load_model

    try:
        model = load_model(path)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from None
    found = model.depth if isinstance(model, DaGan) else model
    if not isinstance(found, FaceDepth):
        raise InputError(f"{path} holds no face depth network; `headwarp convert depth` makes such a file.")
    return optimise(found)


def seen_fov(network: FaceDepth, picture: NDArray[np.uint8]) -> float:
    """Degrees that a (side, side, 3) picture spans, as the model's camera network reads them; `FOV` without one."""
    import math

    import torch

    with torch.inference_mode():
        focal = network.focal(_tensor(picture))
    return FOV if focal is None else math.degrees(2 * math.atan(len(picture) / 2 / float(focal)))


def _tensor(picture: NDArray[np.uint8]) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def write_depth(folder: Path, name: str, picture: NDArray[np.uint8], network: FaceDepth, *, fov: float) -> None:
    """The four files of one (side, side, 3) picture: depth.png ... for an empty name, else depth/NAME.png ..."""
    import math

    import numpy as np
    import torch

    from ..geom.depth import point_normals, unproject
    from ..media.image import save_image
    from ..nets.depth import disparity_to_depth

    side = len(picture)
    with torch.inference_mode():
        disparity = network(_tensor(picture))
        focal = torch.tensor([side / 2 / math.tan(math.radians(fov) / 2)])
        points = unproject(disparity_to_depth(disparity), focal, torch.full((1, 2), side / 2))
        normals = point_normals(points)
    values = (disparity[0, 0] * 65535).round().clamp(0, 65535).numpy().astype(np.uint16)
    _save_16_bit(_place(folder, "depth", name, "png"), values)
    save_image(_place(folder, "colour", name, "png"), coloured(disparity[0, 0]))
    save_image(_place(folder, "normals", name, "png"), _bytes((normals[0] + 1) / 2))
    write_ply(_place(folder, "points", name, "ply"), points[0].flatten(1).T.numpy(), picture.reshape(-1, 3))


def coloured(values: Tensor) -> NDArray[np.uint8]:
    """(H, W) numbers in colours (H, W, 3), smallest dark blue, largest yellow-white."""
    import cv2
    import numpy as np

    spread = (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)
    grey = (spread * 255).round().to(dtype=_uint8()).cpu().numpy()
    return np.ascontiguousarray(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)[:, :, ::-1])


def write_ply(path: Path, points: NDArray[np.floating[Any]], colours: NDArray[np.uint8]) -> None:
    """A point cloud, binary, whole or not at all.

    Args:
        points: (N, 3). colours: (N, 3) RGB.
    """
    import numpy as np

    from ..media.files import atomic_write

    kind = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices = np.empty(len(points), kind)
    vertices["xyz"], vertices["rgb"] = points, colours
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    with atomic_write(path) as temporary:
        temporary.write_bytes("\n".join([*header, "end_header", ""]).encode() + vertices.tobytes())


def _place(folder: Path, what: str, name: str, ending: str) -> Path:
    if not name:
        return folder / f"{what}.{ending}"
    (folder / what).mkdir(exist_ok=True)
    return folder / what / f"{name}.{ending}"


def _save_16_bit(path: Path, values: NDArray[np.uint16]) -> None:
    import cv2

    from ..media.files import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", values)[1].tobytes())


def _bytes(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [0, 1] as (H, W, 3)."""
    found: NDArray[np.uint8] = (image.permute(1, 2, 0) * 255).round().clamp(0, 255).to(_uint8()).cpu().numpy()
    return found


def _uint8() -> Any:
    import torch

    return torch.uint8
