"""What the geometry knows, drawn over the picture: mesh, landmarks, displacement map, depth, normals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...geom.camera import Camera
from ...geom.head import HeadParams
from ...geom.landmarks import Embedding
from ...render.guidance import displacement_map, to_pixels
from ...render.interpolate import interpolate
from ...render.rasterize import rasterize
from ...render.surface import vertex_normals
from ..animator import Animator, Picture

Floats = NDArray[Any]

LINE, DOT = (94, 234, 212), (251, 146, 60)  # RGB
FULL = 0.06  # displacement of full colour, in picture widths


def draw(kind: str, picture: Picture, animator: Animator, target: HeadParams) -> Picture:
    """A picture of the moved portrait with one of `KINDS` over it."""
    return KINDS[kind](picture, _Scene(picture, animator, target))


class _Scene:
    """The moved head in the picture's camera."""

    def __init__(self, picture: Picture, animator: Animator, target: HeadParams) -> None:
        self.head, self.target = animator.head, target
        self.size = picture.shape[0], picture.shape[1]
        self.source, self.camera = animator.portrait.params, picture_camera(animator)
        self.vertices: Tensor = self.head(target)
        self.ndc = self.camera.ndc(self.vertices, self.size)
        self.fragments = rasterize(self.ndc, self.head.faces, self.size)

    def paint(self, values: Tensor) -> Floats:
        """(1, V, C) values of vertices -> (H, W, C)."""
        image: Tensor = interpolate(values, self.fragments, self.ndc, self.head.faces)
        return image[0].permute(1, 2, 0).numpy()

    def over(self, picture: Picture, colours: Floats) -> Picture:
        """Colours (H, W, 3) in [0, 1] where the head is, the darkened picture elsewhere."""
        inside = (self.fragments.face_id[0].numpy() >= 0)[..., None]
        mixed = np.where(inside, 0.1 * picture + 0.9 * 255 * colours.clip(0, 1), 0.45 * picture)
        return np.asarray(mixed.round(), np.uint8)


def picture_camera(animator: Animator) -> Camera:
    """The camera of the whole picture, from that of the crop which the renderer worked on."""
    portrait, renderer = animator.portrait, animator.stage.renderer
    work = getattr(renderer, "size", (animator.stage.size,) * 2)[1]
    scale = portrait.square.side / work
    left, top = (centre - portrait.square.side / 2 for centre in portrait.square.center)
    camera: Camera = portrait.state.camera.crop((scale, left, top))
    return camera


def _mesh(picture: Picture, scene: _Scene) -> Picture:
    seen = np.unique(scene.fragments.face_id[0].numpy())
    corners = scene.camera.project(scene.vertices)[0, :, :2].numpy()[scene.head.faces.numpy()[seen[seen >= 0]]]
    drawn = picture.copy()
    # Continuous coordinates have pixel centres at .5; OpenCV counts in sixteenths.
    cv2.polylines(drawn, list(np.round(16 * (corners - 0.5)).astype(np.int32)), True, LINE, 1, cv2.LINE_AA, 4)
    return np.asarray(cv2.addWeighted(drawn, 0.65, picture, 0.35, 0), np.uint8)


def _landmarks(picture: Picture, scene: _Scene) -> Picture:
    embedding = scene.head.embeddings["mediapipe"]
    assert isinstance(embedding, Embedding)
    drawn = picture // 2 + picture // 4
    radius = max(16, round(16 * max(scene.size) / 420))
    for x, y in scene.camera.project(embedding.points(scene.vertices))[0, :, :2].tolist():
        cv2.circle(drawn, (round(16 * (x - 0.5)), round(16 * (y - 0.5))), radius, DOT, -1, cv2.LINE_AA, 4)
    return drawn


def _displacement(picture: Picture, scene: _Scene) -> Picture:
    """Hue says where to, saturation how far."""
    still = scene.camera.ndc(scene.head(scene.source), scene.size)
    moved = -to_pixels(
        displacement_map(still, scene.ndc, scene.head.faces, scene.size, fragments=scene.fragments)
    )[0].numpy()  # fmt: skip
    angle = (np.degrees(np.arctan2(moved[1], moved[0])) % 360).astype(np.float32)
    far = np.minimum(np.hypot(*moved) / (FULL * scene.size[1]), 1).astype(np.float32)
    hsv = np.dstack([angle, far, np.full_like(far, 0.95)])
    return scene.over(picture, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _depth(picture: Picture, scene: _Scene) -> Picture:
    depth = scene.ndc[..., 2:]
    near = (depth.max() - depth) / (depth.max() - depth.min()).clamp_min(1e-6)  # 1 = nearest
    image = np.clip(scene.paint(near)[..., 0] * 255, 0, 255).astype(np.uint8)
    return scene.over(picture, cv2.applyColorMap(image, cv2.COLORMAP_VIRIDIS)[..., ::-1].astype(np.float32) / 255)


def _normals(picture: Picture, scene: _Scene) -> Picture:
    normals = scene.paint(vertex_normals(scene.vertices, scene.head.faces))
    length = np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
    return scene.over(picture, 0.5 + 0.5 * normals / length)


KINDS: dict[str, Callable[[Picture, _Scene], Picture]] = {
    "mesh": _mesh,
    "landmarks": _landmarks,
    "displacement": _displacement,
    "depth": _depth,
    "normals": _normals,
}
