from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from headwarp.geom import arkit
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.head_files import HeadData
from headwarp.geom.landmarks import Embedding
from headwarp.geom.rotation import axis_angle_to_matrix, compose

GOLDEN = Path(os.environ.get("HEADWARP_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden"))


def naive_vertices(data: HeadData, params: HeadParams) -> np.ndarray:
    """FLAME's equations, one vertex and one joint at a time, in float64 and with scipy's rotations."""
    values = {name: value.double().numpy() for name, value in params.asdict().items()}
    v_template, shapedirs, posedirs = (
        np.asarray(x, np.float64) for x in (data.v_template, data.shapedirs, data.posedirs)
    )
    out = np.zeros((len(params), *v_template.shape))
    for b in range(len(params)):
        betas = np.concatenate([values["shape"][b], values["expression"][b]])
        pose = np.concatenate([values[k][b] for k in ("rotation", "neck", "jaw", "eyes")]).reshape(5, 3)
        local = [Rotation.from_rotvec(p).as_matrix() for p in pose]
        shaped = v_template + shapedirs @ betas
        joints = np.asarray(data.J_regressor, np.float64) @ shaped
        feature = np.concatenate([(r - np.eye(3)).ravel() for r in local[1:]])
        world: list[np.ndarray] = []
        for j, parent in enumerate(data.parents):
            m = np.eye(4)
            m[:3, :3], m[:3, 3] = local[j], joints[j] - (joints[parent] if j else 0)
            world.append(world[parent] @ m if j else m)
        for n in range(len(v_template)):
            v = shaped[n] + posedirs[n] @ feature
            if data.eyelid_dirs is not None:
                v = v + data.eyelid_dirs[n] @ values["eyelids"][b]
            for j in range(5):
                moved = world[j] @ np.append(v - joints[j], 1)
                out[b, n] += data.weights[n, j] * moved[:3]
            out[b, n] += values["translation"][b]
    return out


def test_agrees_with_a_naive_implementation(data, make_params):
    head = HeadModel(data)
    params = make_params(head, 4)
    expected = naive_vertices(data, params)
    np.testing.assert_allclose(head(params).numpy(), expected, rtol=0, atol=1e-6)
    double = params.to(torch.float64)
    np.testing.assert_allclose(head.double()(double).numpy(), expected, rtol=0, atol=1e-7)


def test_heads_without_eyelids_ignore_them(make_data, make_params):
    head = HeadModel(make_data(eyelids=False))
    params = make_params(head)
    closed = params.replace(eyelids=torch.ones(3, 2))
    assert torch.equal(head(params), head(closed))


def test_neutral_parameters_give_the_template(head):
    torch.testing.assert_close(head(HeadParams.zeros(head, 2)), head.v_template.expand(2, -1, -1), rtol=0, atol=1e-7)


def test_translation_is_added(head, params):
    shift = torch.tensor([0.1, -0.2, -0.9])
    moved = head(params.replace(translation=params.translation + shift))
    torch.testing.assert_close(moved, head(params) + shift, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        head.joints(params.replace(translation=params.translation + shift)), head.joints(params) + shift
    )


def test_rotation_turns_everything_rigidly_about_the_root_joint(head, params):
    turn = torch.tensor([[0.3, -0.8, 0.4]]).expand(3, -1)
    root = head.joints(params)[:, :1]
    turned = head(params.replace(rotation=compose(turn, params.rotation)))
    expected = (head(params) - root) @ axis_angle_to_matrix(turn).mT + root
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-6)


def test_vertices_of_one_joint_move_rigidly_with_it(data, make_params):
    data = dataclasses.replace(data, weights=np.eye(5)[np.arange(len(data.v_template)) % 5])
    head = HeadModel(data)
    params = make_params(head)
    rest, world = head.rest_vertices(params), head(params)
    for j in range(5):
        a, b = rest[:, j::5], world[:, j::5]
        torch.testing.assert_close(torch.cdist(a, a), torch.cdist(b, b), rtol=0, atol=1e-5)


def test_eyes_turn_about_their_joints(data, make_params):
    weights = np.eye(5)[np.where(np.arange(len(data.v_template)) < 10, 3, 1)]
    head = HeadModel(dataclasses.replace(data, weights=weights, posedirs=data.posedirs * 0))
    params = make_params(head)
    gazed = params.replace(eyes=params.eyes + torch.tensor([0.2, 0.1, 0.0, 0.5, 0.5, 0.0]))
    before, after, centre = head(params), head(gazed), head.joints(params)[:, 3:4]
    torch.testing.assert_close(head.joints(gazed), head.joints(params))
    torch.testing.assert_close(after[:, 10:], before[:, 10:])
    assert ((after - before)[:, :10].norm(dim=-1).amax(-1) > 1e-3).all()
    torch.testing.assert_close(
        (after[:, :10] - centre).norm(dim=-1), (before[:, :10] - centre).norm(dim=-1), rtol=0, atol=1e-6
    )


def test_gradients_at_rest_are_right(make_data):
    head = HeadModel(make_data(n_shape=2, n_expression=2)).double().subset(torch.arange(3))
    inputs = [value.requires_grad_() for value in HeadParams.zeros(head, 1).asdict().values()]
    assert torch.autograd.gradcheck(lambda *fields: head(HeadParams(*fields)), inputs)


def test_a_batch_is_its_members(head, params):
    together = head(params)
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], head(params[b]), rtol=0, atol=1e-6)


def test_subset_gives_the_same_vertices(head, params):
    chosen = torch.tensor([5, 0, 40, 41, 52, 53, 70])
    before = {name: value.clone() for name, value in head.state_dict().items()}
    part = head.subset(chosen)
    torch.testing.assert_close(part(params), head(params)[:, chosen], rtol=0, atol=1e-6)
    torch.testing.assert_close(part.joints(params), head.joints(params))
    assert torch.equal(
        chosen[part.faces].sort(0).values, head.faces[torch.isin(head.faces, chosen).all(1)].sort(0).values
    )
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_directions_read_back_as_in_the_file(data):
    head = HeadModel(data)
    np.testing.assert_array_equal(head.shapedirs.numpy(), data.shapedirs)
    np.testing.assert_array_equal(head.posedirs.numpy(), data.posedirs)


def test_wrong_coefficients_are_named(head, params):
    with pytest.raises(ValueError, match="takes 4 shape and 3 expression coefficients, got 5 and 3"):
        head(params.replace(shape=torch.zeros(3, 5)))


def test_params_keep_the_batch_axis(params):
    assert len(params[0]) == len(params[-1]) == 1
    assert len(params[1:]) == 2
    assert len(params[torch.tensor([True, False, True])]) == 2
    joined = HeadParams.cat([params[:1], params[1:]])
    assert all(torch.equal(getattr(joined, k), v) for k, v in params.asdict().items())
    assert len(params[0].expand(7)) == 7
    with pytest.raises(IndexError, match="index 3 is outside a batch of 3"):
        params[3]


def test_params_move_and_detach(params):
    leaf = params.replace(jaw=params.jaw.requires_grad_())
    assert leaf.to(torch.float64).shape.dtype == torch.float64
    assert not leaf.detach().jaw.requires_grad


def test_arkit_map_is_linear_and_split_by_field(data):
    rng = np.random.default_rng(0)
    shapes = {"arkit_expression": 3, "arkit_jaw": 3, "arkit_eyes": 6, "arkit_eyelids": 2}
    maps = {key: rng.normal(size=(52, width)).astype(np.float32) for key, width in shapes.items()}
    head = HeadModel(dataclasses.replace(data, **maps))
    weights = torch.rand(2, 52)
    fields = head.arkit(weights)
    for key, matrix in maps.items():
        torch.testing.assert_close(fields[key.removeprefix("arkit_")], weights @ torch.from_numpy(matrix))
    assert len(HeadParams.zeros(head, 2).replace(**fields)) == 2
    one = head.arkit(arkit.weights_from_names({"jawOpen": 1.0}))
    torch.testing.assert_close(one["jaw"][0], torch.from_numpy(maps["arkit_jaw"][17]))


def test_head_without_arkit_map_says_so(head):
    with pytest.raises(ValueError, match="no ARKit map"):
        head.arkit(torch.zeros(1, 52))


def test_shape_controls(data):
    controls = np.arange(8.0).reshape(2, 4)
    head = HeadModel(
        dataclasses.replace(data, shape_controls=controls, shape_control_names=("nose-width", "jaw-width"))
    )
    values = head.shape_from_controls({"jaw-width": -0.5})
    torch.testing.assert_close(values, torch.tensor([[-2.0, -2.5, -3.0, -3.5]]))
    assert head.shape_from_controls({}).tolist() == [[0.0] * 4]
    with pytest.raises(ValueError, match="no shape control 'ears'; the names are nose-width, jaw-width"):
        head.shape_from_controls({"ears": 1.0})
    with pytest.raises(ValueError, match="from -1 to 1, got 2"):
        head.shape_from_controls({"jaw-width": 2})


def test_part_faces(data):
    part = np.arange(len(data.faces)) % 3
    head = HeadModel(dataclasses.replace(data, face_part=part, part_names=("head", "neck", "eye_left")))
    np.testing.assert_array_equal(head.part_faces("neck", "eye_left").numpy(), np.flatnonzero(part > 0))
    with pytest.raises(ValueError, match="no part tail; it has head, neck, eye_left"):
        head.part_faces("tail")


def test_moves_between_types_and_devices_as_a_module(head):
    names = dict(head.named_buffers())
    assert {"v_template", "faces", "J_regressor", "weights"} <= set(names)
    assert not list(head.parameters())
    assert head.double().v_template.dtype == torch.float64
    assert head.faces.dtype == torch.int64


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    path = GOLDEN / "golden_flame_lbs.safetensors"
    if not path.is_file():
        pytest.skip("golden vectors are not here (HEADWARP_GOLDEN)")
    return load_file(path)


@pytest.fixture(scope="module")
def golden_head(golden, tmp_path_factory) -> HeadModel:
    """The golden FLAME-format model, through the .npz loader under FLAME's own keys."""
    path = tmp_path_factory.mktemp("golden") / "flame.npz"
    np.savez(
        path,
        f=golden["model.f"],
        v_template=golden["model.v_template"],
        shapedirs=golden["model.shapedirs_float32"],
        posedirs=golden["model.posedirs_float32"],
        J_regressor=golden["model.J_regressor_dense"],
        weights=golden["model.weights"],
        kintree_table=golden["model.kintree_table"],
        static68_triangle=golden["lmk.full_lmk_faces_idx"][0],
        static68_barycentric=golden["lmk.full_lmk_bary_coords"][0],
        dynamic_triangle=golden["lmk.dynamic_lmk_faces_idx"],
        dynamic_barycentric=golden["lmk.dynamic_lmk_bary_coords"],
    )
    return load_head(path, n_shape=100, n_expression=50)


def golden_params(golden: dict[str, np.ndarray], head: HeadModel) -> HeadParams:
    shape, expression, pose, eyes = (torch.from_numpy(golden[f"in.{k}"]) for k in ("shape", "exp", "pose", "eye"))
    zeros = HeadParams.zeros(head, len(shape))
    return zeros.replace(shape=shape, expression=expression, rotation=pose[:, :3], jaw=pose[:, 3:], eyes=eyes)


def test_golden_skinning(golden, golden_head):
    params = golden_params(golden, golden_head)
    cases = [
        (params, "out.vertices", "out.joints_posed"),
        (params.replace(neck=torch.from_numpy(golden["in.neck"])), "out.vertices_with_neck", "out.joints_with_neck"),
    ]
    for given, vertices, joints in cases:
        np.testing.assert_allclose(golden_head(given).numpy(), golden[vertices], rtol=0, atol=1e-6)
        np.testing.assert_allclose(golden_head.joints(given).numpy(), golden[joints], rtol=0, atol=1e-6)
    default = golden_head(params.replace(eyes=torch.zeros(8, 6)))
    np.testing.assert_allclose(default.numpy(), golden["out.vertices_default_eye"], rtol=0, atol=1e-6)


def test_golden_rotations(golden):
    found = axis_angle_to_matrix(torch.from_numpy(golden["in.axis_angle"]))
    np.testing.assert_allclose(found.numpy(), golden["out.rodrigues"], rtol=0, atol=1e-6)


def test_golden_landmarks(golden, golden_head):
    params = golden_params(golden, golden_head)
    vertices, marks = golden_head(params), golden["out.landmarks2d"]
    static68 = golden_head.embeddings["static68"].points(vertices)
    np.testing.assert_allclose(static68.numpy(), golden["out.landmarks3d"], rtol=0, atol=1e-6)
    mixed = golden_head.landmarks68(params)
    np.testing.assert_allclose(mixed[:, :17].numpy(), marks[:, :17], rtol=0, atol=1e-6)
    assert torch.equal(mixed[:, 17:], static68[:, 17:])
    # DECA reads the inner 51 from a table of their own: static68[17:] in the official file, random in the golden one
    table = (torch.from_numpy(golden[f"lmk.static_lmk_{key}"]) for key in ("faces_idx", "bary_coords"))
    inner = Embedding(*table, golden_head.faces)
    np.testing.assert_allclose(inner.points(vertices).numpy(), marks[:, 17:], rtol=0, atol=1e-6)
    for neck, key in ((params.neck, "out.dynamic_faces_idx"), (golden["in.neck"], "out.dynamic_faces_idx_with_neck")):
        rows = golden_head.contour.rows(params.rotation, torch.as_tensor(neck))
        np.testing.assert_array_equal(golden_head.contour.triangle[rows].numpy(), golden[key])


def test_golden_projection(golden, golden_head):
    from headwarp.geom.camera import WeakPerspective

    cam = torch.from_numpy(golden["in.cam"])
    camera = WeakPerspective.from_deca(cam, (224, 224))
    marks = camera.ndc(torch.from_numpy(golden["out.landmarks2d"]), (224, 224))
    np.testing.assert_allclose(marks[..., :2].numpy(), golden["out.landmarks2d_projected"], rtol=0, atol=1e-5)
    vertices = camera.ndc(torch.from_numpy(golden["out.vertices"]), (224, 224))
    np.testing.assert_allclose(vertices[..., :2].numpy(), golden["out.trans_verts"][..., :2], rtol=0, atol=1e-5)
