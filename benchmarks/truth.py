"""Synthetic people with exact truth, for measuring fits: pictures of many, short clips of some.

    for seed in HEADS: subject = draw(seed, cache=folder)       one picture each
    for seed in CLIPS: subject = draw(seed, cache=folder)       FRAMES pictures of one person, 25 a second

Nothing is tuned or trained on these seeds. Every subject has its own camera: 0.55 to 1.3 m away, with a field of view
that shows the head and some shoulders. Pictures pass through JPEG, as a camera's do; the cache keeps those.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .. import render
from ..fitting.solve import gaze_matrix
from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams, load_head
from ..geom.rotation import euler_to_axis_angle, matrix_to_axis_angle
from ..render.synthetic import render_head, sample_appearance, sample_face, sample_identity, sample_performance

Picture = NDArray[np.uint8]

HEADS = range(20000, 20200)
CLIPS = range(30000, 30020)
FRAMES = 64
FPS = 25.0
SIZE = 384
"""Pixels, square."""
QUALITY = 95
SCENES = "1"
"""Number of the recipe below; a change of it makes cached pictures be drawn again."""


@dataclass(frozen=True)
class Subject:
    """T pictures of one person and the truth about them."""

    seed: int
    images: list[Picture]
    """T x (SIZE, SIZE, 3) uint8 RGB."""
    params: HeadParams
    """T"""
    camera: Camera
    """Batch 1."""


def draw(seed: int, *, cache: Path | None = None) -> Subject:
    """The subject of a seed; seeds of `CLIPS` and above are clips.

    Args:
        cache: folder that keeps what was drawn; files of another head or renderer are drawn again.
    """
    path = None if cache is None else cache / f"{seed}.safetensors"
    if path is not None:
        found = _read(seed, path)
        if found is not None:
            return found
    head = load_head()
    params, camera = _clip(seed, head) if seed >= CLIPS.start else _single(seed, head)
    appearance = sample_appearance(seed, head, resolution=SIZE)
    pictures = []
    for frame in range(len(params)):
        drawn = render_head(head, params[frame], camera, appearance, (SIZE, SIZE), first=frame).image[0]
        image = (drawn.permute(1, 2, 0) * 255).round().byte().numpy()
        pictures.append(np.asarray(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]))
    if path is not None:
        _write(path, pictures, params, camera)
    return Subject(seed, [_decode(picture) for picture in pictures], params, camera)


def _camera(rng: np.random.Generator) -> tuple[Camera, float]:
    """A camera, and metres to the head."""
    distance = float(np.exp(rng.uniform(np.log(0.55), np.log(1.3))))
    shown = rng.uniform(0.32, 0.44)  # metres at the head's distance
    return Camera(torch.tensor([SIZE * distance / shown]), torch.full((1, 2), SIZE / 2)), distance


def _single(seed: int, head: HeadModel) -> tuple[HeadParams, Camera]:
    rng = np.random.default_rng([seed, 200])
    camera, distance = _camera(rng)
    gaze = rng.normal(size=(1, 2)) * np.radians([10, 5])
    yaw, pitch, roll = np.clip(rng.normal(size=3) * [15, 8, 7], -40, 40)
    look = matrix_to_axis_angle(torch.from_numpy(gaze_matrix(gaze))).float()
    place = [*(rng.normal(size=2) * 0.02 + [0, 0.02]), -distance]
    params = HeadParams.zeros(head).replace(**head.arkit(torch.from_numpy(sample_face(rng)[None])))
    return params.replace(
        shape=sample_identity(seed, head),
        eyes=torch.cat([look, look], 1),
        rotation=euler_to_axis_angle(*torch.tensor([[yaw], [pitch], [roll]], dtype=torch.float32)),
        translation=torch.tensor([place], dtype=torch.float32),
    ), camera


def _clip(seed: int, head: HeadModel) -> tuple[HeadParams, Camera]:
    rng = np.random.default_rng([seed, 201])
    camera, distance = _camera(rng)
    place = torch.tensor([[0.0, -0.012, -distance]])
    return sample_performance(seed, FRAMES, FPS).params(head, sample_identity(seed, head), place), camera


@once
def _origin() -> dict[str, str]:
    """What the pictures depend on: the head, the source of the renderer, and the scenes that this file makes up."""
    digest = hashlib.sha256()
    for path in sorted((Path(render.__file__).parent / "synthetic").glob("*.py")):
        digest.update(path.read_bytes())
    return {"head_sha256": load_head().sha256, "renderer_sha256": digest.hexdigest(), "scenes": SCENES}


def _write(path: Path, pictures: list[NDArray[Any]], params: HeadParams, camera: Camera) -> None:
    arrays = {f"params.{name}": value.numpy() for name, value in params.asdict().items()}
    arrays |= {"focal": camera.focal.numpy(), "principal": camera.principal.numpy()}
    arrays |= {"jpeg": np.concatenate([p.ravel() for p in pictures]), "bytes": np.array([p.size for p in pictures])}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, part, _origin())
    os.replace(part, path)


def _read(seed: int, path: Path) -> Subject | None:
    try:
        with safe_open(path, "np") as file:
            if file.metadata() != _origin():
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (FileNotFoundError, SafetensorError):
        return None
    cuts = np.cumsum(arrays["bytes"])[:-1]
    images = [_decode(picture) for picture in np.split(arrays["jpeg"], cuts)]
    prefix = "params."
    fields = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}
    camera = Camera(torch.from_numpy(arrays["focal"]), torch.from_numpy(arrays["principal"]))
    return Subject(seed, images, HeadParams(**fields), camera)


def _decode(picture: NDArray[Any]) -> Picture:
    image = cv2.imdecode(picture, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("draw: a picture of the cache is damaged; remove the folder.")
    return np.ascontiguousarray(image[..., ::-1], np.uint8)
