"""What is drawn: pictures in range, truth that agrees with the rasteriser and the parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadParams, load_head
from headwarp.geom.rotation import euler_to_axis_angle
from headwarp.render.rasterize import rasterize
from headwarp.render.synthetic import CLASSES, render_head, resting_place, sample_appearance, sample_identity
from headwarp.render.synthetic.lighting import make_lighting, visibility

SIZE = (160, 144)  # not square: finds swapped axes


@pytest.fixture(scope="module")
def head():
    return load_head()


@pytest.fixture(scope="module")
def look(head):
    return replace(sample_appearance(11, head, resolution=160, style="buzz"), noise=0.0)


@pytest.fixture(scope="module")
def camera():
    return Camera.portrait(SIZE, field_of_view=19.0)


def posed(head, **fields):
    shape = sample_identity(11, head)
    return HeadParams.zeros(head).replace(shape=shape, translation=resting_place(), **fields)


@pytest.fixture(scope="module")
def neutral(head, look, camera):
    return render_head(head, posed(head), camera, look, SIZE)


def share(frame, name: str) -> float:
    return (frame.segmentation == CLASSES.index(name)).float().mean().item()


def test_image_is_finite_and_in_range(neutral):
    assert neutral.image.shape == (1, 3, *SIZE)
    assert torch.isfinite(neutral.image).all()
    assert neutral.image.min() >= 0
    assert neutral.image.max() <= 1
    skin = neutral.image[0][:, neutral.segmentation[0] == CLASSES.index("skin")]
    assert 0.15 < skin.mean() < 0.9, "exposed for the face"
    assert (skin > 0.995).float().mean() < 0.02, "nothing burnt out"


def test_the_same_call_gives_the_same_picture(head, look, camera, neutral):
    noisy = replace(look, noise=0.01)
    again = render_head(head, posed(head), camera, look, SIZE)
    assert torch.equal(neutral.image, again.image)
    assert torch.equal(
        render_head(head, posed(head), camera, noisy, SIZE).image,
        render_head(head, posed(head), camera, noisy, SIZE).image,
    )


def test_a_batch_is_its_frames(head, look, camera):
    turned = posed(head, neck=euler_to_axis_angle(20.0, 0.0, 0.0).reshape(1, 3))
    both = render_head(head, HeadParams.cat([posed(head), turned]), camera, look, SIZE)
    assert torch.equal(both.image[1], render_head(head, turned, camera, look, SIZE).image[0])
    three = Camera(camera.focal.repeat(3), camera.principal.repeat(3, 1))
    with pytest.raises(ValueError, match="camera"):
        render_head(head, HeadParams.cat([posed(head), turned]), three, look, SIZE)


def test_truth_is_what_the_rasteriser_says(head, camera, neutral):
    """The torso only hides what lies behind it: elsewhere ids are those of the bare head."""
    vertices = head(posed(head))
    torch.testing.assert_close(neutral.vertices, vertices)
    bare = rasterize(camera.ndc(vertices, SIZE), head.faces, SIZE, perspective=True)
    seen = neutral.face_id >= 0
    assert seen.float().mean() > 0.2
    assert (neutral.face_id[seen] == bare.face_id[seen]).float().mean() > 0.999
    torch.testing.assert_close(neutral.depth[:, 0][seen], bare.depth[seen], rtol=0, atol=5e-4)
    empty = torch.isinf(neutral.depth[:, 0])
    assert (neutral.face_id[empty] == -1).all()
    assert neutral.normals.norm(dim=1)[empty].max() == 0
    torch.testing.assert_close(neutral.normals.norm(dim=1)[~empty], torch.ones(int((~empty).sum())), rtol=0, atol=1e-4)


def test_segmentation_agrees_with_the_geometry(head, neutral):
    part = torch.tensor([head.part_names.index(n) for n in ("eye_left", "eye_right")])
    eye = torch.isin(head.face_part.long()[neutral.face_id.clamp_min(0).long()], part) & (neutral.face_id >= 0)
    label = neutral.segmentation == CLASSES.index("eye")
    assert (label & eye).sum() >= 0.8 * label.sum()
    for name in ("background", "skin", "lips", "eye", "hair", "cloth", "brow"):
        assert share(neutral, name) > 0, name
    hair = neutral.segmentation == CLASSES.index("hair")
    assert neutral.hair[:, 0][hair].mean() > 0.7
    far = torch.isinf(neutral.depth[:, 0]) & (neutral.hair[:, 0] == 0)
    # A pixel whose centre just misses the silhouette may show more skin than background.
    assert (neutral.segmentation[far] == CLASSES.index("background")).float().mean() > 0.98


def test_closed_eyes_hide_the_iris(head, look, camera, neutral):
    closed = render_head(head, posed(head, eyelids=torch.ones(1, 2)), camera, look, SIZE)
    assert share(neutral, "eye") > 0.0015
    assert share(closed, "eye") < 0.04 * share(neutral, "eye")


def test_an_open_mouth_shows_its_inside(head, look, camera, neutral):
    opened = render_head(head, posed(head, jaw=torch.tensor([[0.35, 0.0, 0.0]])), camera, look, SIZE)
    inside = ("mouth", "teeth", "tongue")
    assert sum(share(opened, n) for n in inside) > 0.005 > sum(share(neutral, n) for n in inside)


def test_skin_sticks_to_the_head(head, look, camera):
    """Under light that is the same from everywhere, a turned head shows the same colours at the same points."""
    even = make_lighting(
        torch.tensor([0.0, 0.0, 1.0]).numpy(), torch.zeros(3).numpy() + 1e-6, [], torch.ones(3).numpy()
    )
    plain = replace(look, lighting=even)
    points = head.embeddings["mediapipe"]
    cheeks = torch.tensor([50, 280, 117, 346, 205, 425, 151, 9])

    def colours(yaw: float):
        params = posed(head, neck=euler_to_axis_angle(yaw, 0.0, 0.0).reshape(1, 3))
        image = render_head(head, params, camera, plain, SIZE).image
        pixels = camera.project(points.points(head(params)))[0, cheeks, :2]
        grid = torch.stack([2 * pixels[:, 0] / SIZE[1] - 1, 2 * pixels[:, 1] / SIZE[0] - 1], -1)
        return torch.nn.functional.grid_sample(image, grid[None, None], align_corners=False)[0, :, 0]

    assert (colours(0.0) - colours(12.0)).abs().mean() < 0.05


def test_light_does_not_reach_the_inside_of_a_box():
    cube = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    quads = torch.tensor([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    faces = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    inside = torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.2, 0.4]])
    lighting = make_lighting(torch.tensor([0.0, 0.0, 1.0]).numpy(), torch.ones(3).numpy(), [], torch.ones(3).numpy())
    vertices = torch.cat([cube, inside, torch.tensor([[0.0, 3.0, 0.0]])])
    normals = torch.nn.functional.normalize(torch.cat([cube, inside + 0.1, torch.tensor([[0.0, 1.0, 0.0]])]), dim=1)
    seen = visibility(vertices, normals, faces, lighting)
    assert seen[8:10].max() < 0.05
    assert seen[10].min() > 0.95
