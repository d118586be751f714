"""The fast renderer: the same people and truth as `render_head`, for the thousands of pictures that training eats.

    solid:   one sample a pixel; pixels that show an edge get four
    strands: fewer and wider; four samples a pixel say how much they cover, one of them is shaded
    light:   the same, from fewer directions, with a coarser shadow map

What does not change from frame to frame (hair at rest, tables, the background) is made once for a `Person`.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...geom.camera import Camera
from ...geom.head import HeadModel, HeadParams
from ..interpolate import interpolate
from ..rasterize import rasterize
from .body import body
from .lighting import ShadowMap, shadow_map, visibility
from .people import Appearance, move_to
from .render import (
    CLASSES,
    SHADOW_RADIUS,
    Frame,
    Pose,
    cat_frames,
    pose_head,
    print_film,
    shade_solid,
    shade_strands,
    unproject,
)
from .strands import Posed, Strands, carry_on_skin, follow_skull, ribbon_faces, ribbons, tangents

_SUB = 2
"""Samples per pixel along each axis, where more than one is looked at."""
_CORNERS = tuple((i, j) for i in range(_SUB) for j in range(_SUB))
_STEP = 0.005
"""Metres of depth between the samples of a pixel that make it an edge."""
_OCCLUSION = 96
"""Side in pixels of the picture from which a direction's light is told to arrive or not."""
_SHADOW_MAP = 176
_SHADOW_STRANDS = 1000


@dataclass
class _Hair:
    """The head's hair on the identity's skull, ready to be carried."""

    strands: Strands
    tangent: Tensor
    """(K, P, 3) unit, at rest."""

    def carry(self, turn: Tensor, every: int = 1) -> Posed:
        """In the world, with the skull's transform (3, 4); one strand of `every`."""
        rotation = turn[:, :3].mT
        points, tangent, normal = (v[::every] for v in (self.strands.points, self.tangent, self.strands.normal))
        return Posed(points @ rotation + turn[:, 3], tangent @ rotation, normal @ rotation)


class Person:
    """One person, ready to be drawn many times.

    Everything is where the head model is; `appearance` is moved there.
    """

    def __init__(self, head: HeadModel, shape: Tensor, appearance: Appearance) -> None:
        """
        Args:
            head: the model for which `appearance` was made.
            shape: (1, S) identity.
            appearance: from `sample_appearance(..., draft=True)`; others work, only slower.
        """
        device = head.v_template.device
        look = appearance.to(device)
        self.head, self.shape, self.look = head, shape.to(device), replace(look, skin=look.skin.float())
        self._mesh = body(head)
        self._faces = self._mesh.faces.to(device)
        self._origin = self._mesh.origin.to(device)
        albedo = look.vertex_albedo[self._origin]
        self._constant = torch.cat(
            [
                self._mesh.local.to(device),
                self._mesh.uv.to(device),
                torch.cat([albedo, albedo.new_zeros(len(self._mesh.local) - len(albedo), 3)]),
            ],
            1,
        )
        assert head.face_part is not None
        torso = len(head.part_names)
        skull = (head.face_part == head.part_names.index("head")).to(device)
        self._framed = self._faces[: self._mesh.head_faces][skull].unique()
        bust = head.face_part.new_full((len(self._faces) - self._mesh.head_faces,), torso)
        self._part = torch.cat([bust.new_full((1,), torso + 1), head.face_part, bust])  # of face -1, 0, 1, ...
        with torch.no_grad():
            self.rest = head.rest_vertices(HeadParams.zeros(head).to(device).replace(shape=self.shape))[0]
            self._hair = None
            if look.hair is not None and look.hair_nearest is not None:
                strands = follow_skull(look.hair, head.v_template, self.rest, look.hair_nearest)
                self._hair = _Hair(strands, tangents(strands.points))
        kinds = [look.face_hair] + ([self._hair.strands] if self._hair else [])
        start, parts, points = 0, [], []
        for strands in kinds:
            count = strands.shape[0] * strands.shape[1]
            parts.append(ribbon_faces(*strands.shape).to(device) + start)
            points.append(torch.arange(count, device=device).repeat(2) + start // 2)
            start += 2 * count
        self._ribbon_faces, self._point_of = parts, torch.cat(points)
        self._at_spacing: tuple[float, Tensor, Tensor] | None = None
        self._backdrops: dict[tuple[int, int], Tensor] = {}

    def elsewhere(self, seed: int) -> Person:
        """The same person in the light, place and clothes of another seed; costs little."""
        other = copy(self)
        other.look = move_to(self.look, seed)
        other._backdrops = {}
        return other

    def render(self, params: HeadParams, camera: Camera, size: tuple[int, int], *, first: int = 0) -> Frame:
        """Pictures with their truth, as `render_head` gives them.

        Args:
            params: B heads with this person's shape.
            camera: batch 1 or B.
            size: (H, W) pixels.
            first: number of the first frame in its clip, for the camera's noise.
        """
        if len(camera) not in (1, len(params)):
            raise ValueError(f"Person.render: camera must have batch 1 or {len(params)}, got {len(camera)}.")
        with torch.no_grad():
            return cat_frames(
                self._draw(params[k], camera if len(camera) == 1 else camera[k], size, first + k)
                for k in range(len(params))
            )

    def _draw(self, params: HeadParams, camera: Camera, size: tuple[int, int], number: int) -> Frame:
        mesh, look, faces = self._mesh, self.look, self._faces
        pose = pose_head(self.head, params, mesh, self.rest)
        ndc = camera.ndc(pose.drawn[None], size)
        fine_size = (_SUB * size[0], _SUB * size[1])
        coarse = rasterize(ndc, faces, size, perspective=True)
        fine = rasterize(ndc, faces, fine_size, perspective=True)
        share = visibility(pose.drawn, pose.normals, faces, look.lighting, _OCCLUSION, self._framed)
        shadows = self._shadows(pose)

        # Solid surfaces: pixel centres, and all samples of pixels at edges.
        attributes = torch.cat([pose.normals, pose.drawn, self._constant[:, :5], share, self._constant[:, 5:]], 1)
        image = interpolate(attributes[None], coarse, ndc, faces, perspective=True)[0].permute(1, 2, 0).flatten(0, 1)
        edge = self._edges(coarse.face_id[0], fine.face_id[0], fine.depth[0])
        samples = _samples_of(edge, size)  # (E, 4) in the fine picture
        on_edge = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        on_edge[edge] = True
        inside = ((coarse.face_id.flatten() >= 0) & ~on_edge).nonzero().squeeze(1)
        fine_face, fine_depth = fine.face_id.flatten(), fine.depth.flatten()
        hit = fine_face[samples] >= 0
        sub = samples[hit]
        sub_face = fine_face[sub].long()
        values = torch.cat([image[inside], _at_samples(attributes, sub, sub_face, ndc[0], faces, fine_size)])
        face = torch.cat([coarse.face_id.flatten()[inside].long(), sub_face])
        colour, kind = shade_solid(
            self.head,
            mesh,
            look,
            pose,
            torch.cat([values[:, 6:9], values[:, :3], values[:, 9:]], 1),
            values[:, 3:6],
            face,
            shadows,
        )
        linear = self._backdrop(size).clone()
        labels = torch.zeros(len(linear), dtype=torch.uint8, device=linear.device)
        linear[inside], labels[inside] = colour[: len(inside)], kind[: len(inside)]
        mixed = linear[edge][:, None].repeat(1, _SUB**2, 1)
        mixed[hit] = colour[len(inside) :]
        linear[edge] = mixed.mean(1)
        votes = torch.zeros(hit.shape, dtype=torch.uint8, device=linear.device)
        votes[hit] = kind[len(inside) :]
        labels[edge] = votes.mode(1).values

        light, cover, hair = self._strands(pose, camera, size, fine_size, fine_depth, shadows)
        linear = linear + cover[:, None] * (light - linear)
        labels[cover > 0.5] = CLASSES.index("brow")
        labels[hair > 0.5] = CLASSES.index("hair")

        on = coarse.face_id[:, None] >= 0
        normals = image[:, :3].mT.reshape(1, 3, *size)
        head_face = torch.where(coarse.face_id < mesh.head_faces, coarse.face_id, torch.full_like(coarse.face_id, -1))
        return Frame(
            image=_developed(linear.mT.reshape(3, *size), look, number)[None],
            depth=coarse.depth[:, None],
            normals=F.normalize(normals, dim=1) * on,
            segmentation=labels.reshape(1, *size),
            face_id=head_face,
            hair=hair.reshape(1, 1, *size),
            vertices=pose.vertices[None],
        )

    def _backdrop(self, size: tuple[int, int]) -> Tensor:
        """(H W, 3)"""
        if size not in self._backdrops:
            picture = F.interpolate(self.look.backdrop[None], size, mode="bilinear", align_corners=False)[0]
            self._backdrops[size] = picture.flatten(1).mT.contiguous()
        return self._backdrops[size]

    def _edges(self, centre: Tensor, face: Tensor, depth: Tensor) -> Tensor:
        """(E,) pixels whose centre (H, W) and samples (2H, 2W) lie on different parts, or far apart in depth."""
        first = self._part[(centre + 1).long()]
        part = self._part[(face + 1).long()]
        edge = torch.zeros_like(first, dtype=torch.bool)
        for i, j in _CORNERS:
            edge |= part[i::_SUB, j::_SUB] != first
        deep = [depth[i::_SUB, j::_SUB] for i, j in _CORNERS]
        near = torch.minimum(torch.minimum(deep[0], deep[1]), torch.minimum(deep[2], deep[3]))
        far = torch.maximum(torch.maximum(deep[0], deep[1]), torch.maximum(deep[2], deep[3]))
        edge |= far - near > _STEP  # inf - inf is nan, which is no edge
        return edge.flatten().nonzero().squeeze(1)

    def _shadows(self, pose: Pose) -> ShadowMap:
        vertices, faces, look = pose.drawn, self._faces, self.look
        if self._hair is not None:
            strands = self._hair.strands
            every = max(1, math.ceil(strands.shape[0] / _SHADOW_STRANDS))
            posed = self._hair.carry(pose.turn[1], every)
            triangles = _faces(len(posed.points), strands.shape[1]).to(faces.device) + len(vertices)
            width = (1.1 * every) * strands.width[::every]
            faces = torch.cat([faces, triangles])
            vertices = torch.cat([vertices, ribbons(posed, width, towards=look.lighting.key)])
        centre = pose.vertices.mean(0)
        return shadow_map(vertices, faces, look.lighting, centre, SHADOW_RADIUS, _SHADOW_MAP, blur=3)

    def _ribbons(self, spacing: float) -> tuple[Tensor, Tensor]:
        """Triangles of all strands, and depth in the hair, colour and cover (V, 5) of their points, at a distance of
        `spacing` metres between samples."""
        if self._at_spacing is not None and self._at_spacing[0] == spacing:
            return self._at_spacing[1:]
        faces, fixed = [], []
        kinds = [self.look.face_hair] + ([self._hair.strands] if self._hair else [])
        for k, strands in enumerate(kinds):
            cover = (strands.width / spacing).clamp_max(1.0)
            triangles = self._ribbon_faces[k]
            if k == 1:  # dense: some are left out where others lie behind, see `render._draw`
                chance = torch.arange(len(cover), device=cover.device, dtype=torch.float64) * 0.6180339887498949 % 1
                keep = chance.float()[:, None] < 0.5 * (cover[:, 1:] + cover[:, :-1])
                triangles, cover = triangles[keep.flatten().repeat(2)], torch.ones_like(cover)
            faces.append(triangles)
            colour = strands.colour[:, None].expand(*strands.shape, 3)
            shown = 1 - (1 - cover[..., None]) ** 2.2
            fixed.append(torch.cat([strands.depth[..., None], colour, shown], -1).reshape(-1, 5))
        self._at_spacing = (spacing, torch.cat(faces), torch.cat(fixed))
        return self._at_spacing[1:]

    def _strands(
        self,
        pose: Pose,
        camera: Camera,
        size: tuple[int, int],
        fine_size: tuple[int, int],
        solid: Tensor,
        shadows: ShadowMap,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Light (P, 3), cover (P,) and the head hair's share of it (P,) at the P = H W pixels.

        Args:
            solid: (4 P,) depth of the solid surface at the fine samples.
        """
        look, head = self.look, self.head
        kinds = [(carry_on_skin(look.face_hair, head.v_template, head.faces, pose.vertices), look.face_hair)]
        if self._hair is not None:
            kinds.append((self._hair.carry(pose.turn[1]), self._hair.strands))
        # Rounded to 5 %, so that it is the same from frame to frame.
        spacing = 1.15 * -float(pose.vertices[:, 2].mean()) / float(camera.focal[0]) / _SUB
        spacing = 1.05 ** round(math.log(spacing, 1.05))
        mesh, fixed = self._ribbons(spacing)
        vertices = [ribbons(posed, strands.width, narrowest=spacing) for posed, strands in kinds]
        moving = [torch.cat([posed.tangent, posed.normal], -1).reshape(-1, 6) for posed, _ in kinds]
        ndc = camera.ndc(torch.cat(vertices)[None], size)
        drawn = rasterize(ndc, mesh, fine_size, perspective=True, cull=False)
        nearest = (drawn.depth.flatten() < solid).reshape(fine_size)
        share = F.avg_pool2d(nearest[None, None].float(), _SUB).flatten()
        seen = (share > 0).nonzero().squeeze(1)
        candidates = _samples_of(seen, size)
        first = nearest.flatten()[candidates].byte().argmax(1, keepdim=True)
        chosen = candidates.gather(1, first).squeeze(1)
        face = drawn.face_id.flatten()[chosen].long()
        values = torch.cat([torch.cat(moving), fixed], 1)
        at = _at_samples(values, chosen, face, ndc[0], mesh, fine_size, row=self._point_of)
        points = unproject(camera, chosen, drawn.depth.flatten()[chosen], fine_size, _SUB)

        light, cover = shade_strands(look, at, points, shadows)
        shape = (size[0] * size[1],)
        full_light, full_cover, hair = solid.new_zeros(*shape, 3), solid.new_zeros(shape), solid.new_zeros(shape)
        full_light[seen], full_cover[seen] = light, share[seen] * cover[:, 0]
        hair[seen] = full_cover[seen] * (face >= len(self._ribbon_faces[0]))
        return full_light, full_cover, hair


def _developed(image: Tensor, look: Appearance, number: int) -> Tensor:
    """As `render.develop`, the noise cut out of a sheet that is made once."""
    height, width = image.shape[1:]
    sheet = _grain(height + 64, width + 64)
    top, left = np.random.default_rng((look.seed, number)).integers(0, 64, 2)
    grain = sheet[:, top : top + height, left : left + width].to(image.device)
    return torch.addcmul(print_film(image, look), grain, image.new_tensor(look.noise)).clamp(0, 1)


@lru_cache(maxsize=4)
def _grain(height: int, width: int) -> Tensor:
    """(3, H, W) noise of a camera, of unit strength."""
    grain = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    return 0.6 * grain + 0.6 * grain.mean(0, keepdim=True)


@lru_cache(maxsize=64)
def _faces(strands: int, points: int) -> Tensor:
    return ribbon_faces(strands, points)


def _samples_of(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(E, 4) places in the fine picture (flat) of the samples of pixels (E,)."""
    row, column = pixels // size[1], pixels % size[1]
    start = _SUB * row * _SUB * size[1] + _SUB * column
    offsets = [i * _SUB * size[1] + j for i, j in _CORNERS]
    return start[:, None] + torch.tensor(offsets, device=pixels.device)


def _at_samples(
    attributes: Tensor,
    index: Tensor,
    face: Tensor,
    ndc: Tensor,
    faces: Tensor,
    size: tuple[int, int],
    *,
    row: Tensor | None = None,
) -> Tensor:
    """(P, C) attributes at some samples of a picture, with perspective; what `interpolate` does for all.

    Args:
        attributes: (V, C), or other rows, if `row` (V,) tells each vertex its own.
        index: (P,) samples, flat.
        face: (P,) the triangle seen there.
        ndc: (V, 3).
        size: of the picture.
    """
    corner = faces[face]  # (P, 3)
    place = ndc[corner]  # (P, 3, 3)
    x = (2 * (index % size[1]) + 1) / size[1] - 1
    y = (2 * (index // size[1]) + 1) / size[0] - 1
    dx, dy = place[..., 0] - x[:, None], place[..., 1] - y[:, None]
    after, before = [1, 2, 0], [2, 0, 1]
    area = dx[:, after] * dy[:, before] - dx[:, before] * dy[:, after]
    weight = (area * area.sum(1, keepdim=True)).clamp_min(0) / place[..., 2]  # the sign of either winding
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-30)
    corner = corner if row is None else row[corner]
    mixed = attributes[corner[:, 0]] * weight[:, :1]
    for k in (1, 2):
        mixed = torch.addcmul(mixed, attributes[corner[:, k]], weight[:, k : k + 1])
    return mixed
