from __future__ import annotations

import pytest
import torch

from headwarp.geom.camera import Camera, WeakPerspective
from headwarp.geom.head import HeadParams, load_head
from headwarp.render.surface import depth_image, normal_image, shade, vertex_normals, view_head

SIZE = (72, 96)


@pytest.fixture(scope="module")
def ball(sphere):
    """A ball of 10 cm, 0.9 m in front of the camera."""
    vertices, faces = sphere
    return (vertices * 0.1 + torch.tensor([0, 0, -0.9]))[None], faces


def hits(camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (H, W, 3) where the rays of the pixel centres first meet the ideal ball, and which ones do."""
    rows, columns = torch.meshgrid(*(torch.arange(n) + 0.5 for n in SIZE), indexing="ij")
    pixels = torch.stack([columns, rows, torch.ones(SIZE)], -1).flatten(0, 1)
    rays = camera.unproject(pixels[None])[0].view(*SIZE, 3)
    centre = torch.tensor([0, 0, -0.9])
    a, b, c = (rays**2).sum(-1), (rays @ centre), centre.dot(centre) - 0.01
    found = b**2 - a * c
    return rays * ((b - found.clamp_min(0).sqrt()) / a)[..., None], found > 0


def test_depth_and_normals_of_a_ball(ball):
    vertices, faces = ball
    camera = Camera.portrait(SIZE, field_of_view=20)
    points, on_ball = hits(camera)
    inner = on_ball & (((points - torch.tensor([0, 0, -0.9])) / 0.1)[..., 2] > 0.3)
    depth = depth_image(vertices, faces, camera, SIZE)[0, 0]
    normals = normal_image(vertices, faces, camera, SIZE)[0].permute(1, 2, 0)
    assert inner.sum() > 1000
    # The facets lie up to 0.9 mm below the ball (24 rings), seen at up to 72 degrees.
    assert (depth + points[..., 2])[inner].abs().max() < 3e-3
    assert (normals - (points - torch.tensor([0, 0, -0.9])) / 0.1)[inner].norm(dim=-1).max() < 0.03
    assert not depth[~on_ball].any()
    assert not normals[~on_ball].any()


def test_vertex_normals_of_a_sphere_point_outwards(sphere):
    vertices, faces = sphere
    assert ((vertex_normals(vertices[None], faces)[0] * vertices).sum(-1) > 0.99).all()
    lonely = torch.cat([vertices, torch.zeros(1, 3)])[None]
    assert not vertex_normals(lonely, faces)[0, -1].any()


@pytest.mark.parametrize("supersampling", [1, 2])
def test_a_shaded_ball_is_lit_from_the_upper_left(ball, supersampling):
    vertices, faces = ball
    camera = Camera.portrait(SIZE, field_of_view=20)
    drawn = shade(vertices, faces, camera, SIZE, colours=torch.ones(len(faces), 3), supersampling=supersampling)
    image = drawn.colour[0].mean(0)
    (y, x) = divmod(int(image.argmax()), SIZE[1])
    assert y < SIZE[0] / 2
    assert x < SIZE[1] / 2
    assert drawn.coverage.min() == 0
    assert drawn.coverage.max() == 1
    # The area of the disc, whatever the sampling: tangent cone of the ball.
    radius = camera.focal.item() * (0.01 / (0.81 - 0.01)) ** 0.5
    assert drawn.coverage.sum().item() == pytest.approx(3.1416 * radius**2, rel=0.02)


def test_laying_over_a_picture_keeps_the_rest(ball):
    vertices, faces = ball
    camera = WeakPerspective(torch.tensor([300.0]), torch.tensor([[48.0, 36.0]]))
    drawn = shade(vertices, faces, camera, SIZE)
    picture = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    outside = (drawn.coverage == 0).expand(-1, 3, -1, -1)
    assert torch.equal(drawn.over(picture)[outside], picture[outside])
    assert torch.equal(drawn.over(picture, opacity=0.0), picture)
    inside = (drawn.coverage == 1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(drawn.over(picture)[inside], drawn.colour[inside])


def test_the_drawn_iris_follows_the_gaze():
    head = load_head("open")
    params = HeadParams.zeros(head, 2)
    params.translation[:, 2] = -0.9
    params.eyes[1, [1, 4]] = 0.4  # both eyes to the person's left, the picture's right
    camera = Camera.portrait((160, 128), field_of_view=12)
    points = camera.project(head.joints(params))[:, -2:, :2]  # eyeball centres
    drawn = view_head(head, params, camera, (160, 128)).colour
    for eye in range(2):
        x, y = points[0, eye].round().int().tolist()
        dark = 1 - drawn[:, :, y - 3 : y + 4, x - 12 : x + 13].mean((1, 2))
        dark = (dark - dark.mean(1, keepdim=True)).clamp_min(0)
        middle = (dark * torch.arange(25)).sum(1) / dark.sum(1)
        assert middle[1] - middle[0] > 2
