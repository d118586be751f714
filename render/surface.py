"""Depth, normals and a shaded view of a mesh, for networks, previews and overlays.

World vertices and a camera in, pictures out. World axes: x right, y up, z towards the viewer (geom/camera.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geom.camera import Camera, WeakPerspective
from ..geom.head import HeadModel, HeadParams
from .interpolate import interpolate
from .rasterize import Fragments, rasterize

AnyCamera = Camera | WeakPerspective

PART_COLOURS = {
    "teeth": (0.93, 0.90, 0.84),
    "tongue": (0.72, 0.40, 0.38),
    "mouth": (0.42, 0.20, 0.20),
    "socket": (0.66, 0.47, 0.42),
    "eye": (0.93, 0.92, 0.91),
}
"""By the beginning of the part's name; any other part is skin."""
SKIN = (0.80, 0.66, 0.58)
IRIS, PUPIL = (0.30, 0.36, 0.40), (0.05, 0.05, 0.06)
# Angles from the middle of the iris, as seen from the centre of the eyeball: 5.9 mm and 2 mm on a 12 mm ball.
_IRIS_ANGLE, _PUPIL_ANGLE = math.radians(29), math.radians(10)

_KEY_DIRECTION = (-0.42, 0.50, 0.76)  # towards the light: from the upper left, in front
_KEY, _SKY, _GROUND = 0.72, 0.42, 0.22


@dataclass(frozen=True)
class Shaded:
    """A drawn mesh that can be laid over a picture."""

    colour: Tensor
    """(B, 3, H, W) in [0, 1], already multiplied by the coverage."""
    coverage: Tensor
    """(B, 1, H, W) share of the pixel that the mesh covers, in [0, 1]."""

    def over(self, picture: Tensor | float, opacity: float = 1.0) -> Tensor:
        """(B, 3, H, W): the mesh in front of a picture (B, 3, H, W) in [0, 1], or of a grey level."""
        return opacity * self.colour + (1 - opacity * self.coverage) * picture


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals (B, V, 3), outward for counter-clockwise triangles, each triangle weighing by its area.

    Args:
        vertices: (B, V, 3) in a right-handed frame.
        faces: (F, 3). Vertices of no triangle get 0.
    """
    corners = vertices[:, faces.long()]  # (B, F, 3, 3)
    normals = torch.linalg.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    total = torch.zeros_like(vertices)
    for k in range(3):
        total = total.index_add(1, faces[:, k].long(), normals)
    return F.normalize(total, dim=-1, eps=1e-20)


def depth_image(
    vertices: Tensor, faces: Tensor, camera: AnyCamera, size: tuple[int, int], *, background: float = 0.0
) -> Tensor:
    """(B, 1, H, W) metres along the optical axis, `background` where nothing is; differentiable in the vertices."""
    ndc, fragments, perspective = _draw(vertices, faces, camera, size)
    depth = ndc[..., 2:]
    return interpolate(depth, fragments, ndc, faces, perspective=perspective, background=background)


def normal_image(vertices: Tensor, faces: Tensor, camera: AnyCamera, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) smooth unit normals in world axes, 0 on the background; differentiable in the vertices."""
    ndc, fragments, perspective = _draw(vertices, faces, camera, size)
    normals = vertex_normals(vertices, faces)
    return F.normalize(interpolate(normals, fragments, ndc, faces, perspective=perspective), dim=1, eps=1e-6)


def shade(
    vertices: Tensor,
    faces: Tensor,
    camera: AnyCamera,
    size: tuple[int, int],
    *,
    colours: Tensor | None = None,
    supersampling: int = 2,
) -> Shaded:
    """Draws meshes under a soft key light from the upper left and a paler sky than ground.

    Args:
        vertices: (B, V, 3) world metres.
        faces: (F, 3).
        camera: its principal point and focal length belong to `size`.
        size: (H, W) pixels.
        colours: (F, 3) of the triangles, or (B, 3, s H, s W) of the supersampled pixels, in [0, 1]; skin by default.
        supersampling: s, samples per pixel and axis.
    """
    large = (size[0] * supersampling, size[1] * supersampling)
    scaled = camera.crop((supersampling, 0.0, 0.0))
    ndc, fragments, perspective = _draw(vertices, faces, scaled, large)
    normals = interpolate(vertex_normals(vertices, faces), fragments, ndc, faces, perspective=perspective)
    return _light(normals, fragments, colours, supersampling)


def view_head(
    head: HeadModel, params: HeadParams, camera: AnyCamera, size: tuple[int, int], *, supersampling: int = 2
) -> Shaded:
    """A head drawn in natural colours, irises included where the head names its parts."""
    vertices = head(params)
    large = (size[0] * supersampling, size[1] * supersampling)
    ndc, fragments, perspective = _draw(vertices, head.faces, camera.crop((supersampling, 0.0, 0.0)), large)
    normals = vertex_normals(vertices, head.faces)
    drawn = torch.cat([normals, _iris_cosine(head).expand(len(vertices), -1, 1)], -1)
    image = interpolate(drawn, fragments, ndc, head.faces, perspective=perspective)
    colours = _pixel_colours(part_colours(head), fragments)
    for angle, colour in ((_IRIS_ANGLE, IRIS), (_PUPIL_ANGLE, PUPIL)):
        inside = (image[:, 3:] > math.cos(angle)) & (fragments.face_id >= 0)[:, None]
        colours = torch.where(inside, colours.new_tensor(colour)[:, None, None], colours)
    return _light(image[:, :3], fragments, colours, supersampling)


def part_colours(head: HeadModel) -> Tensor:
    """(F, 3) natural colours of a head's triangles in [0, 1]; all skin when the head does not name its parts."""
    rows = [
        next((colour for start, colour in PART_COLOURS.items() if name.startswith(start)), SKIN)
        for name in head.part_names
    ]
    if head.face_part is None or not rows:
        return head.v_template.new_tensor(SKIN).expand(len(head.faces), 3)
    return head.v_template.new_tensor(rows)[head.face_part.long()]


def _draw(vertices: Tensor, faces: Tensor, camera: AnyCamera, size: tuple[int, int]) -> tuple[Tensor, Fragments, bool]:
    perspective = isinstance(camera, Camera)
    ndc = camera.ndc(vertices, size)
    return ndc, rasterize(ndc, faces, size, perspective=perspective), perspective


def _light(normals: Tensor, fragments: Fragments, colours: Tensor | None, supersampling: int) -> Shaded:
    """Lights (B, 3, H, W) normals and averages the samples of each pixel."""
    if colours is None:
        colours = normals.new_tensor(SKIN)[:, None, None]
    elif colours.ndim == 2:
        colours = _pixel_colours(colours, fragments)
    normals = F.normalize(normals, dim=1, eps=1e-6)
    towards = F.normalize(normals.new_tensor(_KEY_DIRECTION), dim=0)[:, None, None]
    # Wrapped diffuse light, (n.l + w) / (1 + w) squared: soft terminator, no black side.
    wrapped = (((normals * towards).sum(1, keepdim=True) + 0.3) / 1.3).clamp_min(0).square()
    up = 0.5 + 0.5 * normals[:, 1:2]
    light = _KEY * wrapped + _GROUND + (_SKY - _GROUND) * up
    coverage = (fragments.face_id >= 0)[:, None].to(normals.dtype)
    image = (colours * light).clamp(0, 1) * coverage
    return Shaded(F.avg_pool2d(image, supersampling), F.avg_pool2d(coverage, supersampling))


def _pixel_colours(colours: Tensor, fragments: Fragments) -> Tensor:
    """(F, 3) triangle colours -> (B, 3, H, W); what the background gets is covered by nothing."""
    return colours[fragments.face_id.clamp_min(0).long()].permute(0, 3, 1, 2)


def _iris_cosine(head: HeadModel) -> Tensor:
    """(1, V, 1) cosine of the angle between the rest gaze (+z) and each eyeball vertex seen from its ball's centre;
    -1 elsewhere. It moves with the ball, so that the drawn iris follows the gaze."""
    cosine = torch.full_like(head.v_template[:, :1], -1)
    for name in head.part_names:
        if name.startswith("eye_"):
            ball = head.faces[head.part_faces(name)].unique()
            points = head.v_template[ball]
            centre = (points.amin(0) + points.amax(0)) / 2
            cosine[ball] = F.normalize(points - centre, dim=-1)[:, 2:]
    return cosine[None]
