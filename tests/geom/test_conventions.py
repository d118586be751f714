"""docs/conventions.md, line by line, on the head that comes with the package."""

from __future__ import annotations

import pytest
import torch

from headwarp.geom import Camera, HeadModel, HeadParams, WeakPerspective, arkit, load_head
from headwarp.geom.camera import apply_crop, pixels_to_ndc
from headwarp.geom.head_files import FORMAT as HEAD_FORMAT
from headwarp.geom.rotation import axis_angle_to_matrix, euler_to_axis_angle
from headwarp.geom.track import FORMAT as TRACK_FORMAT
from headwarp.render import rasterize, warp

SIZE = (96, 128)
NOSE, CHIN, FOREHEAD, RIGHT_EYE, LEFT_EYE = 1, 152, 10, 33, 263  # of MediaPipe's 478


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def at_rest(head: HeadModel, **fields: torch.Tensor) -> HeadParams:
    params = HeadParams.zeros(head).replace(translation=torch.tensor([[0.0, 0.0, -0.9]]))
    return params.replace(**{name: value.reshape(1, -1) for name, value in fields.items()})


def marks(head: HeadModel, params: HeadParams) -> dict[int, torch.Tensor]:
    """World positions of MediaPipe's points by number."""
    embedding = head.embeddings["mediapipe"]
    return dict(zip(embedding.indices.tolist(), embedding.points(head(params))[0], strict=True))


def seen(head: HeadModel, params: HeadParams) -> dict[int, torch.Tensor]:
    """Pixels and depth of MediaPipe's points by number."""
    embedding = head.embeddings["mediapipe"]
    pixels = Camera.portrait(SIZE).project(embedding.points(head(params)))[0]
    return dict(zip(embedding.indices.tolist(), pixels, strict=True))


def test_axes_and_units(head):
    points = marks(head, HeadParams.zeros(head))
    assert points[LEFT_EYE][0] > 0 > points[RIGHT_EYE][0]
    assert points[FOREHEAD][1] > points[NOSE][1] > points[CHIN][1]
    assert points[NOSE][2] > points[LEFT_EYE][2] > head.v_template[:, 2].mean()
    assert 0.08 < (points[LEFT_EYE] - points[RIGHT_EYE]).norm() < 0.1  # metres between outer eye corners
    x, y, z = torch.eye(3)
    assert torch.equal(torch.linalg.cross(x, y), z)


def test_camera_looks_along_minus_z_and_depth_is_positive(head):
    pixels = seen(head, at_rest(head))
    assert pixels[LEFT_EYE][0] > pixels[RIGHT_EYE][0]
    assert pixels[CHIN][1] > pixels[FOREHEAD][1]
    assert 0 < pixels[NOSE][2] < pixels[LEFT_EYE][2] < 1


def test_rest_pose_is_model_space_and_translation_places_it(head):
    torch.testing.assert_close(head(HeadParams.zeros(head))[0], head.v_template, rtol=0, atol=1e-6)
    moved = head(at_rest(head))[0] - head.v_template
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.0, -0.9]).expand_as(moved), rtol=0, atol=1e-6)


def test_front_faces_have_negative_area_on_screen(head):
    vertices = head(at_rest(head))
    ndc = Camera.portrait(SIZE, field_of_view=20.0).ndc(vertices, SIZE)
    corners = vertices[0][head.faces]
    outward = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    towards = (outward * corners.mean(1)).sum(1) < 0  # the camera is at the origin
    a, b, c = ndc[0, head.faces, :2].unbind(1)
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])
    solid = area.abs() > 1e-9
    assert torch.equal(area[solid] < 0, towards[solid])
    skin = head.part_faces("head")
    culled = rasterize(ndc, head.faces[skin], SIZE)
    both = rasterize(ndc, head.faces[skin], SIZE, cull=False)
    # what is nearest on a closed head seen from outside is its outside
    inside = culled.face_id >= 0
    assert inside.float().mean() > 0.1
    assert (culled.face_id == both.face_id)[inside].float().mean() > 0.98


def test_pixel_centres_and_ndc():
    centres = torch.tensor([[[i + 0.5, j + 0.5, 1.0] for i, j in ((0, 0), (127, 95), (5, 9))]])
    expected = [[(2 * i + 1) / 128 - 1, (2 * j + 1) / 96 - 1] for i, j in ((0, 0), (127, 95), (5, 9))]
    torch.testing.assert_close(pixels_to_ndc(centres, SIZE)[0, :, :2], torch.tensor(expected))
    # a picture of coordinates, sampled at a pixel's NDC by grid_sample, gives that pixel
    picture = torch.arange(128.0).repeat(96, 1)[None, None]
    grid = pixels_to_ndc(centres, SIZE)[:, None, :, :2]
    found = torch.nn.functional.grid_sample(picture, grid, align_corners=False)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 127.0, 5.0]), rtol=0, atol=1e-4)


def test_crop_transform():
    point = torch.tensor([[10.0, 20.0]])
    torch.testing.assert_close(apply_crop((2.0, -3.0, 4.0), point), torch.tensor([[17.0, 44.0]]))


def test_displacement_is_backward_and_in_ndc():
    picture = torch.rand(1, 3, *SIZE)
    shift = torch.zeros(1, 2, *SIZE)
    shift[:, 0] = 2 * 3 / SIZE[1]  # three pixels of 128, to the right
    torch.testing.assert_close(warp(picture, shift)[..., :-3], picture[..., 3:], rtol=0, atol=1e-4)


def test_background():
    away = torch.tensor([[[2.0, 2.0, 1.0], [2.0, 3.0, 1.0], [3.0, 2.0, 1.0]]])
    fragments = rasterize(away, torch.tensor([[0, 1, 2]]), (4, 6))
    assert (fragments.face_id == -1).all()
    assert (fragments.depth == torch.inf).all()


def test_camera_formulas():
    point = torch.tensor([[[0.03, 0.05, -0.8]]])
    camera = Camera(torch.tensor([400.0]), torch.tensor([[60.0, 50.0]]))
    assert camera.project(point)[0, 0].tolist() == pytest.approx([60 + 400 * 0.03 / 0.8, 50 - 400 * 0.05 / 0.8, 0.8])
    weak = WeakPerspective(torch.tensor([500.0]), torch.tensor([[60.0, 50.0]]))
    assert weak.project(point)[0, 0, :2].tolist() == pytest.approx([75.0, 25.0])
    deca = WeakPerspective.from_deca(torch.tensor([[8.0, 0.01, -0.02]]), (224, 224))
    assert deca.ndc(point, (224, 224))[0, 0, :2].tolist() == pytest.approx([8 * 0.04, -8 * 0.03], abs=1e-6)


def test_rotations_act_on_columns_in_radians():
    quarter = axis_angle_to_matrix(torch.tensor([0.0, 0.0, torch.pi / 2]))
    torch.testing.assert_close(
        quarter @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-6
    )


def test_rotation_is_about_the_root_joint(head):
    turned = at_rest(head, rotation=euler_to_axis_angle(30.0, 10.0, -20.0))
    torch.testing.assert_close(head.joints(turned)[:, 0], head.joints(at_rest(head))[:, 0], rtol=0, atol=1e-6)
    left, right = head.joints(at_rest(head))[0, 3:]
    assert left[0] > 0 > right[0]


def test_signs_of_yaw_pitch_and_roll(head):
    rest = seen(head, at_rest(head))

    def shift(**angles: float) -> torch.Tensor:
        """Motion of the nose tip in the picture against the middle between the ears, which is near the axis."""
        values = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0, **angles}
        after = seen(head, at_rest(head, rotation=euler_to_axis_angle(**values)))
        return torch.stack([after[k] - rest[k] for k in (NOSE, FOREHEAD)])

    assert shift(yaw=20.0)[0, 0] > 2  # pixels: to picture right
    assert shift(pitch=20.0)[0, 1] > 2  # down
    assert shift(roll=20.0)[1, 0] < -2  # the forehead goes to picture left
    one = axis_angle_to_matrix(euler_to_axis_angle(20.0, 10.0, 5.0))
    y, x, z = (
        axis_angle_to_matrix(euler_to_axis_angle(*a)) for a in ((20.0, 0.0, 0.0), (0.0, 10.0, 0.0), (0.0, 0.0, 5.0))
    )
    torch.testing.assert_close(one, y @ x @ z)


def test_signs_of_jaw_and_eyes(head):
    rest = seen(head, at_rest(head))
    assert (seen(head, at_rest(head, jaw=torch.tensor([0.3, 0.0, 0.0])))[CHIN] - rest[CHIN])[1] > 1
    down = seen(head, at_rest(head, eyes=torch.tensor([0.3, 0.0, 0.0, 0.0, 0.0, 0.0])))
    assert down[473][1] > rest[473][1] + 0.5
    torch.testing.assert_close(down[468], rest[468], rtol=0, atol=1e-4)
    sideways = seen(head, at_rest(head, eyes=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.3, 0.0])))
    assert sideways[468][0] > rest[468][0] + 0.5


def test_face_units(head):
    assert arkit.NAMES[17] == "jawOpen"
    scores = torch.zeros(1, 52)
    scores[0, arkit.MEDIAPIPE_NAMES.index("jawOpen")] = 1
    fields = head.arkit(arkit.from_mediapipe(scores))
    assert fields["jaw"][0, 0] > 0.2
    look = head.arkit(arkit.weights_from_names({"eyeLookOutLeft": 1.0, "eyeBlinkRight": 1.0}))
    assert look["eyes"][0, 1] > 0.1  # the left eye to the person's left
    assert look["eyelids"].tolist() == [[0.0, 1.0]]


def test_68_landmarks(head):
    points = head.landmarks68(HeadParams.zeros(head))[0]
    assert points[0, 0] < -0.05 < 0.05 < points[16, 0]
    assert points[8, 0].abs() < 1e-3
    assert points[8, 1] < points[17:, 1].min() - 0.01
    assert points[36, 0] == points[36:48, 0].min()
    assert points[45, 0] == points[36:48, 0].max()
    assert points[30, 2] > points[36, 2]


def test_478_landmarks(head):
    points = marks(head, HeadParams.zeros(head))
    assert set(points) == set(range(478))
    for start, x in ((468, -1), (473, 1)):
        centre, right, top, left, bottom = (points[start + k] for k in range(5))
        assert centre[0] * x > 0
        assert right[0] > centre[0] + 0.004 > left[0] + 0.008
        assert top[1] > centre[1] + 0.004 > bottom[1] + 0.008


def test_formats(head):
    assert head.metadata["format"] == HEAD_FORMAT == "headwarp-head-1"
    assert TRACK_FORMAT == "headwarp-track-1"
