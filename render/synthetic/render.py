"""Drawing a synthetic head: one pass over the visible points, with the exact geometry beside the picture.

    parameters -> vertices, torso, hair ribbons --rasterise at twice the size--> visible points
        -> albedo, gloss, normals --environment, key light, shadows--> linear light -> camera -> image

Shading is torch on flat lists of visible points, so that it runs where the appearance's tensors are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...geom.camera import Camera
from ...geom.head import HeadModel, HeadParams
from ..interpolate import interpolate
from ..rasterize import Fragments, rasterize
from . import eyes, shading
from .anatomy import measure
from .body import Body, body
from .lighting import ShadowMap, shadow_map, visibility
from .people import Appearance
from .shading import Surface
from .skin import LIP_BOTTOM, LIP_TOP, LIP_X
from .strands import Posed, Strands, carry_on_skin, carry_rigid, follow_skull, ribbon_faces, ribbons

CLASSES = ("background", "skin", "lips", "eye", "mouth", "teeth", "tongue", "brow", "hair", "cloth")
"""What `Frame.segmentation` counts; lashes and beards are in "brow"."""
FACE = ("skin", "lips", "eye", "mouth", "teeth", "tongue", "brow")
"""Classes whose depth is judged: hair has no exact depth, and cloth is not the head's."""
SHADOW_RADIUS = 0.26
"""Metres around the head that the shadow map covers."""


@dataclass
class Frame:
    """Pictures with their truth. B pictures of H x W pixels."""

    image: Tensor
    """(B, 3, H, W) float32 in [0, 1], sRGB."""
    depth: Tensor
    """(B, 1, H, W) metres to the solid surface (head and torso, not the hair); +inf on the background."""
    normals: Tensor
    """(B, 3, H, W) unit world normals of the solid surface; 0 on the background."""
    segmentation: Tensor
    """(B, H, W) uint8, index into `CLASSES`."""
    face_id: Tensor
    """(B, H, W) int32 triangle of the head model at the pixel's centre; -1 where there is none or the torso covers
    it."""
    hair: Tensor
    """(B, 1, H, W) share of the pixel that strands cover, 0 to 1."""
    vertices: Tensor
    """(B, N, 3) world vertices of the head model."""


def face_mask(segmentation: Tensor) -> Tensor:
    """(B, 1, H, W) bool: where (B, H, W) classes are of `FACE`."""
    kept = torch.tensor([CLASSES.index(name) for name in FACE], device=segmentation.device)
    return torch.isin(segmentation, kept)[:, None]


def render_head(
    head: HeadModel,
    params: HeadParams,
    camera: Camera,
    appearance: Appearance,
    size: tuple[int, int],
    *,
    samples: int = 2,
    first: int = 0,
) -> Frame:
    """Pictures of a synthetic person.

    Args:
        head: the model for which `appearance` was made.
        params: B heads of one person.
        camera: batch 1 or B.
        appearance: from `sample_appearance`.
        size: (H, W) pixels.
        samples: per pixel along each axis; 3 is smoother on hair, at twice the time.
        first: number of the first frame in its clip, for the camera's noise.
    Raises:
        ValueError: a camera batch that does not fit.
    """
    if len(camera) not in (1, len(params)):
        raise ValueError(f"render_head: camera must have batch 1 or {len(params)} as params, got {len(camera)}.")
    with torch.no_grad():
        frames = [
            _render(head, params[k], camera if len(camera) == 1 else camera[k], appearance, size, samples, first + k)
            for k in range(len(params))
        ]
    return cat_frames(frames)


def cat_frames(frames: Iterable[Frame]) -> Frame:
    """Several frames as one batch."""
    frames = list(frames)
    return Frame(**{f.name: torch.cat([getattr(frame, f.name) for frame in frames]) for f in fields(Frame)})


@dataclass
class Pose:
    """One posed head in the world."""

    vertices: Tensor
    """(N, 3)"""
    rest: Tensor
    """(N, 3) neutral vertices of the identity."""
    turn: Tensor
    """(J, 3, 4) rest to world, of every joint."""
    drawn: Tensor
    """(V, 3) vertices of the drawn mesh."""
    normals: Tensor
    """(V, 3) unit."""

    def carry(self, joint: int, points: Tensor) -> Tensor:
        """Rest points (P, 3) that follow one joint, in the world."""
        return points @ self.turn[joint, :, :3].mT + self.turn[joint, :, 3]


def _render(
    head: HeadModel,
    params: HeadParams,
    camera: Camera,
    look: Appearance,
    size: tuple[int, int],
    samples: int,
    number: int,
) -> Frame:
    mesh = body(head)
    device = head.v_template.device
    pose = pose_head(head, params, mesh)
    grid = (samples * size[0], samples * size[1])
    faces = mesh.faces.to(device)
    ndc = camera.ndc(pose.drawn[None], size)
    fragments = rasterize(ndc, faces, grid, perspective=True)

    layers = _strand_layers(head, look, pose)
    shadows = _shadows(pose, faces, layers, look)
    share = visibility(pose.drawn, pose.normals, faces, look.lighting)

    linear = (
        F.interpolate(look.backdrop[None], grid, mode="bilinear", align_corners=False)[0].flatten(1).mT.contiguous()
    )
    labels = torch.zeros(len(linear), dtype=torch.uint8, device=device)
    depth = fragments.depth.flatten()
    index = (fragments.face_id.flatten() >= 0).nonzero().squeeze(1)
    albedo = torch.cat(
        [look.vertex_albedo[mesh.origin.to(device)], look.vertex_albedo.new_zeros(len(mesh.torso_rest), 3)]
    )
    attributes = torch.cat([mesh.local.to(device), pose.normals, mesh.uv.to(device), share, albedo], 1)
    pixels = _interpolate(attributes, fragments, ndc, faces)[index]
    points = unproject(camera, index, depth[index], grid, samples)
    linear[index], labels[index] = shade_solid(
        head, mesh, look, pose, pixels, points, fragments.face_id.flatten()[index].long(), shadows
    )

    spacing = -float(pose.vertices[:, 2].mean()) / float(camera.focal[0]) / samples
    nearest, covered = depth, torch.zeros_like(depth)
    for (posed, strands), label in zip(layers, ("brow", "hair"), strict=False):
        hairs, values = _draw(posed, strands, camera, size, grid, spacing, dense=label == "hair")
        index = (hairs.depth.flatten() < nearest).nonzero().squeeze(1)
        points = unproject(camera, index, hairs.depth.flatten()[index], grid, samples)
        light, cover = shade_strands(look, values[index], points, shadows)
        linear[index] += cover * (light - linear[index])
        nearest = torch.minimum(nearest, hairs.depth.flatten())
        covered[index] = cover[:, 0]
        labels[index[cover[:, 0] > 0.5]] = CLASSES.index(label)

    truth = rasterize(ndc, faces, size, perspective=True)
    world = interpolate(torch.cat([pose.normals, pose.drawn], 1)[None], truth, ndc, faces, perspective=True)
    on = truth.face_id[:, None] >= 0
    return Frame(
        image=develop(F.avg_pool2d(linear.mT.reshape(1, 3, *grid), samples)[0], look, number)[None],
        depth=torch.where(on, -world[:, 5:6], torch.full_like(world[:, :1], float("inf"))),
        normals=F.normalize(world[:, :3], dim=1) * on,
        segmentation=_vote(labels.reshape(grid), samples)[None],
        face_id=torch.where(truth.face_id < mesh.head_faces, truth.face_id, torch.full_like(truth.face_id, -1)),
        hair=F.avg_pool2d(covered.reshape(1, 1, *grid), samples),
        vertices=pose.vertices[None],
    )


def pose_head(head: HeadModel, params: HeadParams, mesh: Body, rest: Tensor | None = None) -> Pose:
    """One head with its torso in the world; `rest` (N, 3) saves time where the neutral vertices are known."""
    device = head.v_template.device
    vertices = head(params)[0]
    if rest is None:
        rest = head.rest_vertices(HeadParams.zeros(head).to(device).replace(shape=params.shape))[0]
    turn = head.transforms(head.rotations(params), head.rest_joints(params))[0]
    turn = torch.cat([turn[..., :3], turn[..., 3:] + params.translation[0][:, None]], -1)
    torso_rest = (
        mesh.torso_rest.to(device) + mesh.torso_follow.to(device) @ (rest - head.v_template)[mesh.rim.to(device)]
    )
    torso = torso_rest @ turn[0, :, :3].mT + turn[0, :, 3]

    # Normals on the mesh without seams; the first ring of the torso is the rim of the bust.
    ring = len(mesh.rim)
    rim = mesh.rim.to(device)
    torso[:ring] = vertices[rim]
    torso_faces = mesh.faces[mesh.head_faces :].to(device) - len(mesh.origin)
    welded = torch.where(torso_faces < ring, rim[torso_faces.clamp_max(ring - 1)], torso_faces + len(vertices))
    joined, faces = torch.cat([vertices, torso]), torch.cat([head.faces, welded])
    corner = joined[faces]
    across = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normals = torch.zeros_like(joined)
    for k in range(3):
        normals.index_add_(0, faces[:, k], across)
    normals = F.normalize(normals, dim=1)
    origin = mesh.origin.to(device)
    drawn_normals = torch.cat([normals[origin], normals[rim], normals[len(vertices) + ring :]])
    return Pose(vertices, rest, turn, torch.cat([vertices[origin], torso]), drawn_normals)


def _strand_layers(head: HeadModel, look: Appearance, pose: Pose) -> list[tuple[Posed, Strands]]:
    """Brows, lashes and beard, then head hair, in the world."""
    layers = [(carry_on_skin(look.face_hair, head.v_template, head.faces, pose.vertices), look.face_hair)]
    if look.hair is not None and look.hair_nearest is not None:
        hair = follow_skull(look.hair, head.v_template, pose.rest, look.hair_nearest)
        layers.append((carry_rigid(hair, pose.turn[1, :, :3], pose.turn[1, :, 3]), hair))
    return layers


def _shadows(pose: Pose, faces: Tensor, layers: list[tuple[Posed, Strands]], look: Appearance) -> ShadowMap:
    vertices, triangles = [pose.drawn], [faces]
    for posed, strands in layers:
        triangles.append(ribbon_faces(*strands.shape).to(faces.device) + sum(len(v) for v in vertices))
        vertices.append(ribbons(posed, 1.3 * strands.width, towards=look.lighting.key))
    return shadow_map(torch.cat(vertices), torch.cat(triangles), look.lighting, pose.vertices.mean(0), SHADOW_RADIUS)


def _interpolate(attributes: Tensor, fragments: Fragments, ndc: Tensor, faces: Tensor) -> Tensor:
    """(H W, C) attributes (V, C) at the samples."""
    return (
        interpolate(attributes[None], fragments, ndc, faces, perspective=True)[0]
        .permute(1, 2, 0)
        .reshape(-1, attributes.shape[1])
    )


def unproject(camera: Camera, index: Tensor, depth: Tensor, grid: tuple[int, int], samples: int) -> Tensor:
    """(P, 3) world points of samples."""
    x = (index % grid[1] + 0.5) / samples
    y = (torch.div(index, grid[1], rounding_mode="floor") + 0.5) / samples
    return camera.unproject(torch.stack([x, y, depth], 1)[None])[0]


def _draw(
    posed: Posed,
    strands: Strands,
    camera: Camera,
    size: tuple[int, int],
    grid: tuple[int, int],
    spacing: float,
    dense: bool,
) -> tuple[Fragments, Tensor]:
    """Rasterised ribbons, and tangent, volume normal, depth in the hair, colour, cover at the samples (H W, 11).

    Hairs thinner than a sample (`spacing` metres) are widened to it. In return, single hairs become transparent; in
    dense hair, where there is
    other hair behind, some are left out.
    """
    count, points = strands.shape
    spacing *= 1.15  # what is behind the head's middle is drawn smaller
    cover = (strands.width / spacing).clamp_max(1.0)
    faces = ribbon_faces(count, points).to(cover.device)
    if dense:
        # Multiples of the golden ratio: random enough, and the same in every frame.
        chance = (torch.arange(count, device=cover.device, dtype=torch.float64) * 0.6180339887498949 % 1).float()
        keep = chance[:, None] < 0.5 * (cover[:, 1:] + cover[:, :-1])
        faces, cover = faces[keep.flatten().repeat(2)], torch.ones_like(cover)
    cover = 1 - (1 - cover) ** 2.2  # only the nearest hair is drawn, but some lie behind it
    ndc = camera.ndc(ribbons(posed, strands.width, narrowest=spacing)[None], size)
    fragments = rasterize(ndc, faces, grid, perspective=True, cull=False)
    colour = strands.colour[:, None].expand(count, points, 3)
    values = torch.cat([posed.tangent, posed.normal, strands.depth[..., None], colour, cover[..., None]], -1).reshape(
        -1, 11
    )
    return fragments, _interpolate(values.repeat(2, 1), fragments, ndc, faces)


def shade_strands(look: Appearance, values: Tensor, points: Tensor, shadows: ShadowMap) -> tuple[Tensor, Tensor]:
    """Light (P, 3) and cover (P, 1)."""
    tangent, normal, depth, colour, cover = values.split([3, 3, 1, 3, 1], 1)
    tangent, normal = F.normalize(tangent, dim=1), F.normalize(normal, dim=1)
    light = shading.light_hair(points, tangent, normal, colour, depth[:, 0].clamp(0, 1), look.lighting, shadows)
    return light, cover.clamp(0, 1)


def shade_solid(
    head: HeadModel,
    mesh: Body,
    look: Appearance,
    pose: Pose,
    pixels: Tensor,
    points: Tensor,
    face: Tensor,
    shadows: ShadowMap,
) -> tuple[Tensor, Tensor]:
    """Linear light (P, 3) and labels (P,) uint8 of points on head and torso."""
    local, normal, uv, share, albedo = pixels.split([3, 3, 2, 3, 3], 1)
    assert head.face_part is not None
    names = {name: k for k, name in enumerate((*head.part_names, "torso"))}
    torso = head.face_part.new_full((len(mesh.faces) - mesh.head_faces,), names["torso"])
    part = torch.cat([head.face_part, torso]).long()[face]
    flat = F.normalize(normal, dim=1)
    surface = Surface(
        points,
        flat,
        flat.clone(),
        albedo.contiguous(),
        torch.full_like(uv[:, 0], 0.7),
        torch.ones_like(uv[:, 0]),
        share.clone(),
    )
    labels = torch.full_like(part, CLASSES.index("skin"), dtype=torch.uint8)

    rows = (part == names["head"]).nonzero().squeeze(1)
    texel = F.grid_sample(look.skin[None].float(), uv[rows][None, None], align_corners=False, padding_mode="border")[
        0, :, 0
    ].mT
    surface.albedo[rows], surface.gloss[rows] = texel[:, :3] ** 2, texel[:, 3]
    relief = texel[:, 4:] @ pose.turn[1, :, :3].mT
    relief = relief - (relief * flat[rows]).sum(1, keepdim=True) * flat[rows]
    surface.normal[rows] = F.normalize(flat[rows] + relief, dim=1)
    labels[rows[_on_lips(local[rows])]] = CLASSES.index("lips")

    below = shading.neckline_depth(local, look.garment)
    on_neck = part == names["neck"]
    bare = (on_neck & (below < 0)).nonzero().squeeze(1)
    surface.albedo[bare] *= 1 - 0.4 * torch.exp(below[bare] / 0.004)[:, None]
    rows = ((part == names["torso"]) | (on_neck & (below >= 0))).nonzero().squeeze(1)
    surface.albedo[rows] = shading.cloth_albedo(local[rows], look.garment)
    surface.gloss[rows], surface.scatter[rows] = 0.08, 0.0
    labels[rows] = CLASSES.index("cloth")

    for name, label in (("mouth", "mouth"), ("tongue", "tongue"), ("socket", "skin")):
        rows = part == names[name]
        surface.gloss[rows] = 1.7
        labels[rows] = CLASSES.index(label)
    for name in ("teeth_upper", "teeth_lower"):
        rows = (part == names[name]).nonzero().squeeze(1)
        if len(rows):
            arch, gum = _teeth_coordinates(head, name, local[rows])
            surface.albedo[rows], surface.gloss[rows] = shading.teeth(local[rows], arch, gum, name == "teeth_upper")
            labels[rows] = CLASSES.index("teeth")
    # Teeth are lit through their neighbours and the lips, which the visibility of single vertices does not know.
    rows = labels == CLASSES.index("teeth")
    surface.share[rows] = 0.7 + 0.3 * surface.share[rows]
    colour = shading.light_surface(surface, look.lighting, shadows)

    for joint, side in ((3, "left"), (4, "right")):
        rows = (part == names[f"eye_{side}"]).nonzero().squeeze(1)
        if not len(rows):
            continue
        centre = head.joint_template[joint]
        ball = measure(head)
        direction = F.normalize(local[rows] * ball.scale + local.new_tensor(ball.origin) - centre, dim=1)
        gaze = pose.turn[joint, :, :3]
        round_ = direction @ gaze.mT
        eye = Surface(
            points[rows],
            round_,
            round_,
            eyes.eye_albedo(look.eye, direction),
            surface.gloss[rows],
            surface.scatter[rows],
            share[rows],
        )
        lid = _lid_shade(head, pose.vertices, points[rows], side)
        colour[rows] = shading.light_eyes(eye, gaze[:, 2].expand_as(direction), lid, look.lighting, shadows)
        labels[rows] = CLASSES.index("eye")
    return colour, labels


def _on_lips(local: Tensor) -> Tensor:
    x = local[:, 0].abs().cpu().numpy()
    y = local[:, 1].cpu().numpy()
    inside = (y < np.interp(x, LIP_X, LIP_TOP)) & (y > np.interp(x, LIP_X, LIP_BOTTOM)) & (x < LIP_X[-1])
    return torch.from_numpy(inside).to(local.device) & (local[:, 2] > 0.002)


def _teeth_coordinates(head: HeadModel, name: str, local: Tensor) -> tuple[Tensor, Tensor]:
    """For points on a row of teeth: metres along the arch from the middle, and 0 at the biting edge ... 1 at the
    gums."""
    anatomy = measure(head)
    row = anatomy.local[np.unique(anatomy.faces[anatomy.faces_of(name)])]
    # The arch as an ellipse through the row's front and sides; its arc length by a table over the angle.
    front, back, wide = row[:, 2].max(), row[:, 2].min(), np.abs(row[:, 0]).max()
    angle = np.linspace(0, math.pi / 2, 64)
    curve = np.stack([wide * np.sin(angle), back + (front - back) * np.cos(angle)], 1)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    at = torch.atan2(local[:, 0].abs() / wide, (local[:, 2] - back).clamp_min(0) / (front - back)).cpu().numpy()
    arch = torch.from_numpy(np.interp(at, angle, length)).to(local)
    low, high = row[:, 1].min(), row[:, 1].max()
    rise = (local[:, 1] - low) / (high - low)
    return arch, rise if name == "teeth_upper" else 1 - rise


def _lid_shade(head: HeadModel, vertices: Tensor, points: Tensor, side: str) -> Tensor:
    """(P,) how dark the lids make the eyeball at world points (P, 3): 1 far from them."""
    shade = torch.ones_like(points[:, 0])
    for edge, strength, reach in (("upper", 0.72, 0.0030), ("lower", 0.35, 0.0014)):
        rim = vertices[torch.from_numpy(measure(head).rims[f"{side}_{edge}"]).to(vertices.device)]
        steps = torch.linspace(0, 1, 5, device=rim.device)[:-1, None, None]
        line = (rim[:-1] * (1 - steps) + rim[1:] * steps).reshape(-1, 3)
        distance = torch.cdist(points, line).amin(1)
        shade = shade * (1 - strength * torch.exp(-distance / reach))
    return shade


def _vote(labels: Tensor, samples: int) -> Tensor:
    """(H, W) most frequent label of each pixel's samples (S H, S W); ties go to the higher label."""
    blocks = labels.unfold(0, samples, samples).unfold(1, samples, samples).flatten(2)
    counts = (blocks[..., None] == blocks[..., None, :]).sum(-1) * len(CLASSES) + blocks.long()
    return blocks.gather(-1, counts.argmax(-1, keepdim=True)).squeeze(-1)


def develop(image: Tensor, look: Appearance, number: int) -> Tensor:
    """The camera: exposure, film curve, noise. (3, H, W) linear -> sRGB in [0, 1]."""
    generator = torch.Generator().manual_seed(look.seed * 100003 + number)
    grain = torch.randn(image.shape, generator=generator).to(image)
    return (print_film(image, look) + look.noise * (0.6 * grain + 0.6 * grain.mean(0, keepdim=True))).clamp(0, 1)


def print_film(image: Tensor, look: Appearance) -> Tensor:
    """Exposure and film curve: linear -> sRGB, not clipped."""
    image = (image * look.exposure).clamp_min(0)
    # A soft shoulder: linear up to 0.6, then rolling off to 1.
    knee = 0.6
    image = torch.where(image < knee, image, knee + (1 - knee) * (1 - torch.exp(-(image - knee) / (1 - knee))))
    return torch.where(image <= 0.0031308, 12.92 * image, 1.055 * image.clamp_min(1e-6) ** (1 / 2.4) - 0.055)
