"""The source person's own head surface: the fitted mesh, corrected to the photo, and what the photo shows of it.

A fitted head misses the photo's landmarks by a few pixels and knows no hair. Two constant offsets of the rest shape
repair that, so that motion starts from surfaces that lie where the picture has them:

* `snap`: the mesh is pulled onto the landmarks (sideways only, the depth stays the model's);
* `inflate`: the skull is blown up to the outline of the hair, which gives hair its own depth and parallax.

Visibility is decided per vertex, once, and softly. Nothing of it depends on the frame, so it cannot flicker.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.interpolate import RBFInterpolator
from scipy.sparse import csgraph
from scipy.sparse import linalg as splinalg
from scipy.spatial import cKDTree

from ...geom.camera import Camera
from ...geom.head import HeadModel, HeadParams
from ...geom.landmarks import Embedding
from ..rasterize import rasterize

Image = NDArray[np.float32]
Points = NDArray[np.float32]

# fmt: off
FACE_OVAL = frozenset((
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
))
# fmt: on
"""MediaPipe's outline of the face. It slides over the skin with the view, so nothing is pulled towards it."""

INSIDE_PARTS = ("mouth", "teeth_upper", "teeth_lower", "tongue", "eye_left", "eye_right")
"""Parts that are drawn as layers of their own (eyes.py, mouth.py), not as skin."""

REACH = 0.06
"""Metres over the mesh that the outline's colours are continued; turning further shows them all the same, stretched."""


@dataclass
class Surface:
    """The source head in its source pose. N vertices."""

    head: HeadModel
    """The head model with the corrected rest shape."""
    faces: NDArray[np.int32]
    """(F, 3) triangles of the skin: without eyeballs, teeth, tongue and mouth bag."""
    drawn: NDArray[np.int32]
    """(D, 3) those of them that frames show."""
    vertices: Points
    """(N, 3) world metres."""
    pixels: Points
    """(N, 3) x, y px and depth in metres."""
    normals: Points
    """(N, 3) unit, world, outwards."""
    facing: NDArray[np.float32]
    """(N,) cosine between the normal and the direction to the camera."""
    confidence: NDArray[np.float32]
    """(N,) in [0, 1]: how surely the photo shows this vertex."""
    origin: Points
    """(N, 2) px of the photo whose colour a hidden vertex takes: that of the shown surface next to it."""
    uncovered: NDArray[np.float32]
    """(N,) in [0, 1]: how far a vertex takes the colour at `origin` when it comes into sight. 1 for hidden skin at the
    outline of the person; 0 for what is shown anyway, and under hair, whose outline moves as it is."""
    depth: Image
    """(H, W) metres of the nearest skin, inf where there is none."""
    bust: NDArray[np.float32]
    """(N,) share of the root joint: 1 on shoulders that stay when the head turns."""
    soften: sparse.csr_matrix
    """(N, N) average over a vertex's surroundings, about 1 cm wide."""
    skin: NDArray[np.float32]
    """(N,) 1 near landmarks (the face proper), 0 on the scalp and neck."""


def with_offsets(head: HeadModel, offsets: Points) -> HeadModel:
    """The head with (N, 3) metres added to its rest shape; the joints stay where the coefficients put them."""
    moved = copy.copy(head)  # as HeadModel.subset: copy the registries, leave the original alone
    moved._buffers = dict(head._buffers)
    moved.v_template = head.v_template + torch.from_numpy(offsets).to(head.v_template)
    return moved


def nearness(head: HeadModel, params: HeadParams, embedding: Embedding, near: float, far: float) -> NDArray[np.float32]:
    """(N,) 1 on vertices within `near` metres of a landmark, 0 beyond `far`, in the rest shape."""
    rest = head.rest_vertices(params)
    marks = embedding.points(rest)[0].numpy()
    distance, _ = cKDTree(marks).query(rest[0].numpy())
    t = np.clip((far - distance) / (far - near), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def snap(head: HeadModel, params: HeadParams, camera: Camera, embedding: Embedding, landmarks: Points) -> Points:
    """Offsets (N, 3) metres of the rest shape that move the mesh onto the photo's landmarks.

    Args:
        landmarks: (478, 2 or 3) px of the photo.
    """
    vertices = head(params)
    marks = embedding.points(vertices)
    projected = camera.project(marks)[0].numpy()
    normals = torch.from_numpy(vertex_normals(vertices[0].numpy(), head.faces.numpy().astype(np.int32)))
    facing = embedding.points(normals[None])[0].numpy() @ np.array([0, 0, 1], np.float32)
    ids = embedding.indices.numpy()
    used = (facing > 0.25) & ~np.isin(ids, list(FACE_OVAL)) & (ids < 468)

    residual = landmarks[ids, :2].astype(np.float32) - projected[:, :2]
    metres = residual * (projected[:, 2:] / camera.focal.numpy()[:, None])
    world = np.concatenate([metres * [1, -1], np.zeros((len(ids), 1))], 1)
    # More than 15 mm is a wrong landmark or a wrong fit; pulling that far would fold the mesh.
    length = np.linalg.norm(world, axis=1, keepdims=True)
    world *= np.minimum(1, 0.015 / np.maximum(length, 1e-9))
    if used.sum() < 20:
        return np.zeros(head.v_template.shape, np.float32)

    rest = head.rest_vertices(params)
    rest_marks = embedding.points(rest)[0].numpy()
    field = RBFInterpolator(rest_marks[used] * 1e3, world[used], kernel="linear", smoothing=2.0)
    moved = field(rest[0].numpy() * 1e3) * nearness(head, params, embedding, 0.012, 0.042)[:, None]

    # From the world into the rest pose: undo every vertex's blended rotation.
    transforms = head.transforms(head.rotations(params), head.rest_joints(params))[0, :, :, :3]
    blended = torch.einsum("nj,jab->nab", head.weights, transforms).numpy()
    return np.linalg.solve(blended, moved[..., None])[..., 0].astype(np.float32)


def inflate(head: HeadModel, params: HeadParams, camera: Camera, embedding: Embedding, alpha: Image) -> Points:
    """Offsets (N, 3) metres of the rest shape that blow the skull up to the outline of the hair.

        v' = c + k(theta) (v - c),    k = distance of the matte's outline / distance of the mesh's outline

    theta: direction in the picture from the middle of the skull c. Only the scalp moves; below the ears nothing does.
    """
    rest = head.rest_vertices(params)[0].numpy()
    pixels = camera.project(head(params))[0].numpy()[:, :2]
    joint = max(1, len(head.parents) - 4)  # the neck's in FLAME's layout: root, neck, jaw, eyes
    skull = head.weights[:, joint].numpy() > 0.9
    scalp = (1 - nearness(head, params, embedding, 0.012, 0.040)) * skull

    # Middle of the brain case: half the skull's length below the crown.
    low, high = rest[skull].min(0), rest[skull].max(0)
    middle = np.array([0.5 * (low[0] + high[0]), high[1] - 0.5 * (high[2] - low[2]), 0.5 * (low[2] + high[2])])
    transform = head.transforms(head.rotations(params), head.rest_joints(params))[0, joint].numpy()
    crown = np.array([middle[0], high[1], middle[2]])
    places = np.stack([middle, crown]) @ transform[:, :3].T + transform[:, 3] + params.translation[0].numpy()
    centre, top = camera.project(torch.from_numpy(places[None].astype(np.float32)))[0, :, :2].numpy()
    up = top - centre
    offset = pixels - centre
    angle = np.arctan2(offset[:, 0] * up[1] - offset[:, 1] * up[0], offset @ up)  # 0 towards the crown
    distance = np.linalg.norm(offset, axis=1)

    bins = 48
    which = np.floor((angle + np.pi) / (2 * np.pi) * bins).astype(int) % bins
    outline = np.zeros(bins)
    np.maximum.at(outline, which[skull], distance[skull])
    outline = np.where(outline > 0, outline, outline.max())
    theta = (np.arange(bins) + 0.5) / bins * 2 * np.pi - np.pi
    base = np.arctan2(up[1], up[0])
    # angle grows against atan2's sense here, see the cross product above
    direction = np.stack([np.cos(base - theta), np.sin(base - theta)], 1)
    ratio = np.empty(bins)
    for i in range(bins):
        steps = outline[i] * np.linspace(0.7, 1.8, 111)
        places = centre + steps[:, None] * direction[i]
        inside = sample(alpha, places) > 0.5
        end = int(np.argmin(inside)) if not inside.all() else -1
        ratio[i] = 1.0 if inside.all() else steps[end] / outline[i]
    ratio = np.clip(ratio, 0.92, 1.55)
    reach = np.clip((np.radians(125) - np.abs(theta)) / np.radians(45), 0, 1)
    ratio = 1 + (ratio - 1) * reach
    ratio = ndimage.median_filter(ratio, 5, mode="wrap")
    ratio = ndimage.gaussian_filter1d(ratio, 2.0, mode="wrap")
    k = np.interp(angle, theta, ratio, period=2 * np.pi)
    return ((rest - middle) * ((k - 1) * scalp)[:, None]).astype(np.float32)


def build(
    head: HeadModel,
    params: HeadParams,
    camera: Camera,
    embedding: Embedding,
    alpha: Image,
    hair: NDArray[np.float32],
    face_width: float,
) -> Surface:
    """The surface of a head whose rest shape is already corrected.

    Args:
        alpha: (H, W) person matte of the photo.
        hair: (N,) metres of hair over each vertex.
        face_width: px.
    """
    vertices = head(params)
    size = (alpha.shape[0], alpha.shape[1])
    faces = skin_faces(head)
    pixels = camera.project(vertices)[0].numpy()
    fragments = rasterize(camera.ndc(vertices, size), torch.from_numpy(faces), size)
    depth = np.where(fragments.face_id[0].numpy() >= 0, fragments.depth[0].numpy(), np.inf).astype(np.float32)
    points = vertices[0].numpy()
    normals = vertex_normals(points, faces)
    facing = facing_camera(points, normals)

    # Conservative: a vertex counts as hidden as soon as something nearer lies within a pixel of it.
    nearest = ndimage.minimum_filter(depth, 3)
    behind = pixels[:, 2] - _sample_nearest(nearest, pixels)
    slope = np.sqrt(np.maximum(1 - facing**2, 0)) / np.maximum(facing, 0.15)
    pixel = pixels[:, 2] / float(camera.focal[0])
    room = 0.004 + 1.5 * pixel * slope
    skin = nearness(head, params, embedding, 0.008, 0.022)
    # Hair has no surface at its outline: what the camera sees from the side there is left to the membrane, which
    # carries it along rigidly.
    before = _fade(behind, room, room + 0.005)
    sideways = rise(facing, 0.05, 0.22)
    grazing = sideways * skin + rise(facing, 0.25, 0.5) * (1 - skin)
    inside = rise(sample(ndimage.minimum_filter(alpha, 3), pixels[:, :2]), 0.3, 0.8)
    height, width = size
    in_frame = (pixels[:, 0] > 0) & (pixels[:, 0] < width) & (pixels[:, 1] > 0) & (pixels[:, 1] < height)
    possible = before * inside * (in_frame & np.isfinite(behind))
    confidence = possible * grazing
    shown = possible * sideways
    origin = _continued(pixels[:, :2], shown, points, faces)
    # Where the person goes on beyond the mesh, hair or a hat comes into sight, not the outline's colour.
    to_edge = ndimage.distance_transform_edt(alpha > 0.5).astype(np.float32) / face_width
    uncovered = (1 - shown) * (1 - rise(sample(to_edge, origin), 0.05, 0.11)) * (1 - rise(hair, 0.008, 0.016))
    confidence = confidence.astype(np.float32)
    return Surface(
        head=head,
        faces=faces,
        drawn=_without_unseen_ears(head, faces, confidence),
        vertices=points,
        pixels=pixels,
        normals=normals,
        facing=facing,
        confidence=confidence,
        origin=origin,
        uncovered=uncovered.astype(np.float32),
        depth=depth,
        bust=head.weights[:, 0].numpy().copy(),
        soften=_averaging(faces, len(points), rounds=4),
        skin=skin,
    )


def skin_faces(head: HeadModel) -> NDArray[np.int32]:
    """(F, 3) triangles without the parts that have layers of their own, as far as the head names its parts."""
    faces = head.faces
    if head.face_part is not None:
        inside = [i for i, name in enumerate(head.part_names) if name in INSIDE_PARTS]
        faces = faces[~torch.isin(head.face_part.long(), torch.tensor(inside))]
    return np.ascontiguousarray(faces.numpy().astype(np.int32))


def _continued(pixels: Points, shown: NDArray, points: Points, faces: NDArray[np.int32]) -> Points:
    """(N, 2) places in the photo, continued over the mesh from the vertices it shows to those it hides.

        minimise  sum_v c_v |t_v - pixel_v|^2 + sum_(v~w) |t_v - t_w|^2

    Edges further than `REACH` along the mesh from anything shown are left out: the back of the head would draw the left
    and the right side towards each other, through the face.
    """
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    count = len(pixels)
    length = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1) + 1e-9
    graph = sparse.coo_matrix((length, (edges[:, 0], edges[:, 1])), (count, count)).tocsr()
    sure = np.flatnonzero(shown > 0.5)
    if len(sure) == 0:
        return pixels.copy()
    distance = csgraph.dijkstra(graph, directed=False, indices=sure, min_only=True)
    near = (distance[edges] < REACH).all(1)
    ones = np.ones(int(near.sum()))
    adjacent = sparse.coo_matrix((ones, edges[near].T), (count, count)).tocsr()
    adjacent = ((adjacent + adjacent.T) > 0).astype(np.float64)
    anchor = 5.0 * shown.astype(np.float64) ** 2
    degree = np.asarray(adjacent.sum(1)).ravel()
    matrix = sparse.diags(degree + anchor + 1e-6) - adjacent
    right = (anchor[:, None] + 1e-6) * pixels
    return splinalg.spsolve(matrix.tocsc(), right).astype(np.float32)


def _averaging(faces: NDArray[np.int32], count: int, rounds: int) -> sparse.csr_matrix:
    """(N, N) float32: `rounds` times the mean of a vertex and its neighbours."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ones = np.ones(len(edges), np.float32)
    matrix = sparse.coo_matrix((ones, (edges[:, 0], edges[:, 1])), (count, count)).tocsr()
    matrix = ((matrix + matrix.T) > 0).astype(np.float32) + sparse.identity(count, np.float32, "csr")
    mean = sparse.diags(1 / np.asarray(matrix.sum(1)).ravel()) @ matrix
    result = mean
    for _ in range(rounds - 1):
        result = result @ mean
    return result.astype(np.float32).tocsr()


def _without_unseen_ears(
    head: HeadModel, faces: NDArray[np.int32], confidence: NDArray[np.float32]
) -> NDArray[np.int32]:
    """The triangles without an ear that the photo does not show: a flap with the colours of cheek and hair is worse
    than none. Heads that do not name the region keep theirs."""
    if head.vertex_mask is None or "ear" not in head.region_names:
        return faces
    ear = head.vertex_mask[:, head.region_names.index("ear")].numpy() > 0.5
    left = head.v_template[:, 0].numpy() > 0
    for side in (ear & left, ear & ~left):
        if side.any() and np.quantile(confidence[side], 0.9) < 0.2:
            faces = faces[~side[faces].all(1)]
    return np.ascontiguousarray(faces)


def facing_camera(vertices: Points, normals: Points) -> NDArray[np.float32]:
    """(N,) cosine between unit normals and the direction to the camera at the origin."""
    distance = np.maximum(np.linalg.norm(vertices, axis=1), 1e-6)
    return (-(vertices * normals).sum(1) / distance).astype(np.float32)


@njit(cache=True, nogil=True)
def vertex_normals(vertices: Points, faces: NDArray[np.int32]) -> Points:
    """(N, 3) unit normals, triangles weighted by area; counter-clockwise triangles seen from outside. Zero where
    there is none."""
    normals = np.zeros_like(vertices)
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux = vertices[b, 0] - vertices[a, 0]
        uy = vertices[b, 1] - vertices[a, 1]
        uz = vertices[b, 2] - vertices[a, 2]
        vx = vertices[c, 0] - vertices[a, 0]
        vy = vertices[c, 1] - vertices[a, 1]
        vz = vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for corner in (a, b, c):
            normals[corner, 0] += nx
            normals[corner, 1] += ny
            normals[corner, 2] += nz
    for v in range(len(vertices)):
        length = np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2)
        if length > 0:
            for i in range(3):
                normals[v, i] /= length
    return normals


def face_mask(
    head: HeadModel, params: HeadParams, camera: Camera, embedding: Embedding, size: tuple[int, int]
) -> Image:
    """(H, W) in [0, 1]: pixels of the face proper, which no segmentation can take away."""
    faces = torch.from_numpy(skin_faces(head))
    face_id = rasterize(camera.ndc(head(params), size), faces, size).face_id[0].numpy()
    certain = nearness(head, params, embedding, 0.008, 0.022)[faces.numpy()].min(1) > 0.5
    return np.where(face_id >= 0, certain[np.maximum(face_id, 0)], False).astype(np.float32)


def sample(image: Image, points: Points) -> NDArray[np.float32]:
    """Bilinear values at (K, 2) px; edges repeated."""
    return ndimage.map_coordinates(image, (points[:, 1] - 0.5, points[:, 0] - 0.5), order=1, mode="nearest")


def _sample_nearest(image: Image, points: Points) -> NDArray[np.float32]:
    height, width = image.shape
    x = np.clip(np.nan_to_num(points[:, 0]).astype(int), 0, width - 1)
    y = np.clip(np.nan_to_num(points[:, 1]).astype(int), 0, height - 1)
    return image[y, x]


def rise(x: NDArray | float, low: float, high: float) -> NDArray:
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _fade(x: NDArray, low: NDArray, high: NDArray) -> NDArray:
    t = np.clip((high - x) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
