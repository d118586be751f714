from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headwarp.geom.head import HeadModel
from headwarp.geom.landmarks import (
    IRIS_RADIUS,
    LEFT_IRIS,
    RIGHT_IRIS,
    Contour,
    Embedding,
    closest_point_on_mesh,
)
from headwarp.geom.rotation import compose, euler_to_axis_angle


def brute_force(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Distances by dense sampling of every triangle; a little too long, never too short."""
    grid = np.array([(i, j, 60 - i - j) for i in range(61) for j in range(61 - i)]) / 60
    samples = np.einsum("gk,fkc->fgc", grid, vertices[faces]).reshape(-1, 3)
    return np.array([np.linalg.norm(samples - p, axis=1).min() for p in points])


def test_closest_point_is_on_the_mesh_and_none_is_nearer():
    rng = np.random.default_rng(0)
    vertices, faces = rng.normal(size=(12, 3)), rng.integers(0, 12, (15, 3))  # any triangle soup, degenerate ones too
    points = rng.normal(size=(40, 3)) * 1.5
    triangle, barycentric, distance = closest_point_on_mesh(points, vertices, faces)
    assert (barycentric >= 0).all()
    np.testing.assert_allclose(barycentric.sum(1), 1, atol=1e-12)
    found = np.einsum("pk,pkc->pc", barycentric, vertices[faces[triangle]])
    np.testing.assert_allclose(np.linalg.norm(found - points, axis=1), distance, atol=1e-12)
    sampled = brute_force(points, vertices, faces)
    assert (distance <= sampled + 1e-12).all()
    assert (sampled - distance < 0.06).all()


def test_points_of_the_mesh_are_their_own_nearest(data):
    rng = np.random.default_rng(1)
    triangle = rng.integers(0, len(data.faces), 50)
    weights = rng.dirichlet([1, 1, 1], 50)
    points = np.einsum("pk,pkc->pc", weights, data.v_template[data.faces[triangle]].astype(np.float64))
    found, barycentric, distance = closest_point_on_mesh(points, data.v_template, data.faces)
    assert distance.max() < 1e-8
    np.testing.assert_array_equal(found, triangle)
    np.testing.assert_allclose(barycentric, weights, atol=1e-5)


@pytest.mark.parametrize(
    ("point", "weights"),
    [
        ((0.25, 0.25, 1.0), (0.5, 0.25, 0.25)),
        ((0.5, -3.0, 0.0), (0.5, 0.5, 0.0)),
        ((-1.0, -1.0, 2.0), (1.0, 0.0, 0.0)),
        ((3.0, 3.0, 0.0), (0.0, 0.5, 0.5)),
    ],
)
def test_regions_of_one_triangle(point, weights):
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    _, barycentric, _ = closest_point_on_mesh(np.array([point]), corners, np.array([[0, 1, 2]]))
    np.testing.assert_allclose(barycentric[0], weights, atol=1e-12)


def test_embedding_follows_the_vertices(data):
    triangle = torch.tensor([3, 50])
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    embedding = Embedding(triangle, weights, torch.from_numpy(data.faces), torch.tensor([7, 2]))
    vertices = torch.randn(2, len(data.v_template), 3)
    points = embedding.points(vertices)
    torch.testing.assert_close(points[:, 0], vertices[:, data.faces[3, 0]])
    torch.testing.assert_close(points[:, 1], (weights[1, :, None] * vertices[:, data.faces[50]]).sum(1))
    assert embedding.indices.tolist() == [7, 2]
    assert embedding.points(vertices.double()).dtype == torch.float64


def test_embedding_errors():
    with pytest.raises(ValueError, match=r"barycentric must be \(2, 3\)"):
        Embedding(torch.zeros(2, dtype=torch.long), torch.zeros(2, 2), torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("yaw", "row"), [(0, 0), (0.4, 0), (5, 5), (39, 39), (80, 39), (-1, 40), (-20.3, 59), (-39, 78), (-80, 78)]
)
def test_contour_row_by_yaw(yaw, row):
    # DECA's yaw: how far the head's x axis leaves the picture plane; a tilt of the picture leaves it alone
    rotation = compose(euler_to_axis_angle(0.0, 0.0, 15.0), euler_to_axis_angle(float(yaw)))[None]
    assert Contour.rows(rotation, torch.zeros(1, 3)).tolist() == [row]
    half = euler_to_axis_angle(float(yaw))[None] / 2
    assert Contour.rows(half, half).tolist() == [row]


def test_contour_ignores_tilt_and_chooses_for_each_head(data):
    rng = np.random.default_rng(0)
    triangle = torch.from_numpy(rng.integers(0, len(data.faces), (79, 17)))
    contour = Contour(triangle, torch.full((79, 17, 3), 1 / 3), torch.from_numpy(data.faces))
    rotation = torch.cat([euler_to_axis_angle(v)[None] for v in (0.0, 12.0, -12.0)])
    tilted = compose(euler_to_axis_angle(0.0, 0.0, 40.0).expand(3, -1), rotation)
    torch.testing.assert_close(contour.rows(rotation, rotation * 0), contour.rows(tilted, rotation * 0))
    vertices = torch.randn(3, len(data.v_template), 3)
    points = contour.points(vertices, rotation, rotation * 0)
    for b, row in enumerate((0, 12, 51)):
        torch.testing.assert_close(points[b], vertices[b, data.faces[triangle[row]]].mean(1))


def test_head_without_landmarks_says_so(head, params):
    with pytest.raises(ValueError, match="has no 68 landmarks"):
        head.landmarks68(params)


def eyed_head(data) -> HeadModel:
    """The tiny ball as two eyeballs of 12 mm on a third ball, in FLAME's joints."""
    small = (data.v_template * 0.12).astype(np.float32)
    centres = {3: np.array([0.03, 0.02, 0.05]), 4: np.array([-0.03, 0.02, 0.05])}
    vertices = np.concatenate([data.v_template, small + centres[3], small + centres[4]])
    n, total = len(small), 3 * len(small)
    faces = np.concatenate([data.faces, data.faces + n, data.faces + 2 * n])
    weights = np.eye(5)[np.repeat([1, 3, 4], n)]
    regressor = np.eye(5)[:, [1, 3, 4]].repeat(n, 1) / n  # the mean of a ball is its centre
    regressor[0, :n] = regressor[2, :n] = 1 / n
    return HeadModel(
        dataclasses.replace(
            data,
            v_template=vertices,
            faces=faces,
            shapedirs=np.zeros((total, 3, 7)),
            posedirs=np.zeros((total, 3, 36)),
            J_regressor=regressor,
            weights=weights,
            eyelid_dirs=None,
            mediapipe_triangle=np.array([0, 1]),
            mediapipe_barycentric=np.full((2, 3), 1 / 3),
            mediapipe_index=np.array([1, 4]),
        )
    )


def test_irises_come_from_the_eyeballs(data, make_params):
    head = eyed_head(data)
    embedding = head.embeddings["mediapipe"]
    assert embedding.indices.tolist() == [1, 4, *range(RIGHT_IRIS, 478)]
    at = {int(i): p for i, p in zip(embedding.indices, embedding.points(head.v_template[None])[0], strict=True)}
    for start, x in ((RIGHT_IRIS, -0.03), (LEFT_IRIS, 0.03)):
        assert at[start].tolist() == pytest.approx([x, 0.02, 0.05 + 0.012], abs=6e-4)
        for k, (dx, dy) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1)), 1):
            side = at[start + k] - at[start]
            assert side[:2].tolist() == pytest.approx([dx * IRIS_RADIUS, dy * IRIS_RADIUS], abs=6e-4)
    gaze = make_params(head, 1).replace(eyes=torch.tensor([[0.0, 0.4, 0.0, 0.0, 0.4, 0.0]]))
    for name in ("rotation", "neck", "translation"):
        gaze = gaze.replace(**{name: torch.zeros(1, 3)})
    moved = embedding.points(head(gaze))[0]
    shift = moved[2:, 0] - embedding.points(head.v_template[None])[0, 2:, 0]
    assert (shift[[0, 5]] > 0.004).all()  # both centres go to the person's left


def test_irises_in_the_file_are_kept(data):
    head = eyed_head(data)
    points = dataclasses.replace(
        data,
        mediapipe_triangle=np.array([0, 1]),
        mediapipe_barycentric=np.full((2, 3), 1 / 3),
        mediapipe_index=np.array([468, 473]),
    )
    assert HeadModel(points).embeddings["mediapipe"].indices.tolist() == [468, 473]
    assert len(head.embeddings["mediapipe"]) == 12


def test_subset_keeps_embeddings_whole(data, make_params):
    head = eyed_head(data)
    params = make_params(head)
    embedding = head.embeddings["mediapipe"]
    part = head.subset(embedding.corners.unique())
    assert len(part.v_template) < len(head.v_template)
    torch.testing.assert_close(part.embeddings["mediapipe"].points(part(params)), embedding.points(head(params)))
    assert torch.equal(part.embeddings["mediapipe"].indices, embedding.indices)
