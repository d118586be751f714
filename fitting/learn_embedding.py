"""Learns where MediaPipe's 468 mesh points lie on a head model, by looking at renders of it.

    python -m headwarp.fitting.learn_embedding [--head open] [--renders 160] -o embedding.safetensors

    random people --render--> pictures with known triangles --detect--> landmarks --back-project--> points on the
    template
        --robust mean, mirror mean, nearest point on the skin--> triangle and barycentric weights

Per picture a landmark scatters by some 3 mm, the mean of many by half a millimetre. Points of the face oval slide over
the skin with the pose; their mean
is where they lie on average, no anatomical place. It works for every head model that `render.synthetic` can draw.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from tqdm import tqdm

from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams, load_head
from ..geom.landmarks import Embedding, closest_point_on_mesh
from ..geom.rotation import euler_to_axis_angle
from ..media.files import atomic_write
from ..render.synthetic import render_head, resting_place, sample_appearance, sample_identity
from .faces import Face, find_faces

Floats = NDArray[np.float64]

POINTS = 468
SIZE = 384
MAX_YAW, MAX_PITCH = 35.0, 15.0
"""Degrees; the views that are drawn."""
LEAST_FACING = 0.35
"""Cosine between the skin's normal and the view below which a hit says nothing."""
PARTS = ("head", "mouth", "socket", "eye_left", "eye_right")


@dataclass(frozen=True)
class View:
    """What the detector read in one render."""

    seed: int
    vertices: Floats
    """(N, 3) world."""
    camera: Camera
    face: Face
    hits: Floats
    """(468, 3) template points under the landmarks; nan where they fell off the skin."""


@dataclass(frozen=True)
class Learned:
    """An embedding with how sure it is."""

    triangle: NDArray[np.int64]
    """(468,)"""
    barycentric: Floats
    """(468, 3)"""
    points: Floats
    """(468, 3) on the template, metres."""
    scatter: Floats
    """(468,) metres: standard deviation of a single picture's reading."""
    count: NDArray[np.int64]
    """(468,) readings used."""


def views(head: HeadModel, seeds: range, *, quiet: bool = False) -> list[View]:
    """Renders of random neutral people with little hair, as far as a face is found in them."""
    camera = Camera.portrait((SIZE, SIZE), field_of_view=20.0)
    found = []
    for seed in tqdm(seeds, desc="renders", disable=quiet):
        rng = np.random.default_rng([seed, 5])
        yaw, pitch, roll = rng.uniform(-MAX_YAW, MAX_YAW), rng.uniform(-MAX_PITCH, MAX_PITCH), rng.normal(0, 4)
        look = sample_appearance(seed, head, resolution=SIZE, style="buzz" if seed % 2 else "bald")
        params = HeadParams.zeros(head).replace(
            shape=sample_identity(seed, head),
            neck=euler_to_axis_angle(float(yaw), float(pitch), float(roll)).reshape(1, 3),
            translation=resting_place(),
        )
        frame = render_head(head, params, camera, look, (SIZE, SIZE))
        picture = (frame.image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        faces = find_faces(picture)
        if faces:
            vertices = frame.vertices[0].double().numpy()
            hits = back_project(head, vertices, camera, frame.face_id[0].numpy(), faces[0].landmarks[:POINTS, :2])
            found.append(View(seed, vertices, camera, faces[0], hits))
    return found


def back_project(
    head: HeadModel, vertices: Floats, camera: Camera, face_id: NDArray[np.int32], pixels: NDArray[np.floating]
) -> Floats:
    """Template points (L, 3) under pixels (L, 2) of a render; nan off the face and where the skin turns away.

    Args:
        vertices: (N, 3) world vertices that were drawn.
        face_id: (H, W) triangle at each pixel's centre.
    """
    faces = head.faces.numpy()
    template = head.v_template.double().numpy()
    column = np.clip(np.floor(pixels[:, 0]).astype(int), 0, face_id.shape[1] - 1)
    row = np.clip(np.floor(pixels[:, 1]).astype(int), 0, face_id.shape[0] - 1)
    triangle = face_id[row, column]
    corners = faces[np.maximum(triangle, 0)]
    world = vertices[corners]  # (L, 3, 3)
    normal = np.cross(world[:, 1] - world[:, 0], world[:, 2] - world[:, 0])
    middle = world.mean(1)
    facing = -(normal * middle).sum(1) / np.maximum(
        np.linalg.norm(normal, axis=1) * np.linalg.norm(middle, axis=1), 1e-12
    )
    # The ray through the pixel meets the triangle's plane there: exact under perspective.
    ray = camera.unproject(torch.from_numpy(np.c_[pixels, np.ones(len(pixels))])[None].float())[0].double().numpy()
    along = (normal * world[:, 0]).sum(1) / np.where(
        np.abs((normal * ray).sum(1)) > 1e-15, (normal * ray).sum(1), np.nan
    )
    point = ray * along[:, None]
    area = (normal * normal).sum(1)
    second = (np.cross(point - world[:, 0], world[:, 2] - world[:, 0]) * normal).sum(1) / area
    third = (np.cross(world[:, 1] - world[:, 0], point - world[:, 0]) * normal).sum(1) / area
    weights = np.stack([1 - second - third, second, third], 1)
    hits = (weights[..., None] * template[corners]).sum(1)
    assert head.face_part is not None
    part = np.array(head.part_names)[head.face_part.numpy()[np.maximum(triangle, 0)]]
    hits[(triangle < 0) | (facing < LEAST_FACING) | ~np.isin(part, PARTS)] = np.nan
    return hits


def learn(head: HeadModel, seen: list[View]) -> Learned:
    """The embedding from readings: robust mean per point, mean with the mirrored partner, nearest place on the face's
    skin.

    Raises:
        ValueError: a point that was never read.
    """
    hits = np.stack([view.hits for view in seen])  # (V, 468, 3)
    centre = np.nanmedian(hits, axis=0)
    away = np.linalg.norm(hits - centre, axis=2)
    kept = away < 3 * 1.4826 * np.nanmedian(away, axis=0)
    if not kept.any(0).all():
        missing = (~kept.any(0)).sum()
        raise ValueError(f"learn: {missing} of {POINTS} points were never read; use more renders than {len(seen)}.")
    good = np.where(kept[..., None], hits, np.nan)
    mean = np.nanmean(good, axis=0)
    scatter = np.sqrt(np.nanmean(((good - mean) ** 2).sum(2), axis=0))
    partner = mirror_pairs(mean)
    mean = 0.5 * (mean + mean[partner] * np.array([-1.0, 1.0, 1.0]))
    skin = head.part_faces("head").numpy()
    triangle, barycentric, _ = closest_point_on_mesh(mean, head.v_template.double().numpy(), head.faces.numpy()[skin])
    chosen = skin[triangle]
    points = (barycentric[..., None] * head.v_template.double().numpy()[head.faces.numpy()[chosen]]).sum(1)
    return Learned(chosen, barycentric, points, scatter, kept.sum(0))


def mirror_pairs(points: Floats) -> NDArray[np.int64]:
    """(L,) for each of nearly symmetric points (L, 3) its mirror image in x = 0: the cheapest pairing, made mutual."""
    cost = cdist(points * np.array([-1.0, 1.0, 1.0]), points) ** 2
    pairs = linear_sum_assignment(cost + cost.T)[1].astype(np.int64)
    mutual = pairs[pairs] == np.arange(len(points))
    return np.where(mutual, pairs, np.arange(len(points)))


def reprojection(view: View, triangle: NDArray[np.integer], barycentric: Floats, faces: NDArray[np.integer]) -> Floats:
    """(L,) distance between embedded points and the detector's landmarks, as a share of the outer eye corners'
    distance."""
    points = (barycentric[..., None] * view.vertices[faces[triangle]]).sum(1)
    pixels = view.camera.project(torch.from_numpy(points)[None].float())[0, :, :2].double().numpy()
    return np.linalg.norm(pixels - view.face.landmarks[:POINTS, :2], axis=1) / view.face.eye_distance


def compare(head: HeadModel, learned: Learned, held_out: list[View]) -> str:
    """A table: the learned embedding against the model's own, if it has one, on renders that were not learned from."""
    faces, template = head.faces.numpy(), head.v_template.double().numpy()
    embeddings = {"learned": (learned.triangle, learned.barycentric)}
    lines = [f"{len(held_out)} held-out renders; median over points of the mean error, % of the eye corners' distance"]
    own = dict(head.embeddings.items()).get("mediapipe")
    if isinstance(own, Embedding):
        triangle, barycentric = own.triangle[:POINTS].numpy(), own.barycentric[:POINTS].double().numpy()
        embeddings["model's own"] = (triangle, barycentric)
        points = (barycentric[..., None] * template[faces[triangle]]).sum(1)
        apart = 1000 * np.linalg.norm(points - learned.points, axis=1)
        middle, most, largest = np.median(apart), np.percentile(apart, 90), apart.max()
        lines.append(f"learned to own, mm: median {middle:.2f}, 90 % {most:.2f}, largest {largest:.2f}")
    lines.append(" " * 14 + "".join(f"{name:>9}" for name in GROUPS))
    for name, (triangle, barycentric) in embeddings.items():
        errors = np.stack([reprojection(view, triangle, barycentric, faces) for view in held_out]).mean(0)
        row = "".join(f"{100 * np.median(errors[list(group)]):9.2f}" for group in GROUPS.values())
        lines.append(f"{name:14}{row}")
    return "\n".join(lines)


GROUPS: dict[str, tuple[int, ...] | range] = {
    "all": range(POINTS),
    "eyes": (
        33,
        246,
        161,
        160,
        159,
        158,
        157,
        173,
        133,
        7,
        163,
        144,
        145,
        153,
        154,
        155,
        263,
        466,
        388,
        387,
        386,
        385,
        384,
        398,
        362,
        249,
        390,
        373,
        374,
        380,
        381,
        382,
    ),
    "brows": (70, 63, 105, 66, 107, 46, 53, 52, 65, 55, 300, 293, 334, 296, 336, 276, 283, 282, 295, 285),
    "nose": (168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 97, 326, 327, 48, 278, 64, 294),
    "lips": (
        61,
        185,
        40,
        39,
        37,
        0,
        267,
        269,
        270,
        409,
        291,
        146,
        91,
        181,
        84,
        17,
        314,
        405,
        321,
        375,
        78,
        191,
        80,
        81,
        82,
        13,
        312,
        311,
        310,
        415,
        308,
    ),
    "oval": (
        10,
        338,
        297,
        332,
        284,
        251,
        389,
        356,
        454,
        323,
        361,
        288,
        397,
        365,
        379,
        378,
        400,
        377,
        152,
        148,
        176,
        149,
        150,
        136,
        172,
        58,
        132,
        93,
        234,
        127,
    ),
}
"""MediaPipe's points by region, for the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", default="open", help="name or file of a head model")
    parser.add_argument("--renders", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=24, help="further renders to judge the result with")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    head = load_head(arguments.head)
    learned = learn(head, views(head, range(arguments.renders)))
    print(compare(head, learned, views(head, range(100_000, 100_000 + arguments.held_out))))
    tensors = {
        "mediapipe_triangle": learned.triangle.astype(np.int32),
        "mediapipe_barycentric": learned.barycentric.astype(np.float32),
        "scatter": learned.scatter.astype(np.float32),
    }
    with atomic_write(arguments.output) as temporary:
        save_file(tensors, temporary, {"head_sha256": head.sha256, "renders": str(arguments.renders)})


if __name__ == "__main__":
    main()
