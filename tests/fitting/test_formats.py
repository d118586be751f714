"""Tracks through other programs' files and back, and the files as those programs read them."""

from __future__ import annotations

import csv
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from headwarp.fitting.formats import convert, export_track, import_track, kind_of
from headwarp.fitting.formats.common import Known, from_6d, rebased, to_6d
from headwarp.geom import arkit
from headwarp.geom.camera import Camera, WeakPerspective
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.head_files import HeadData
from headwarp.geom.rotation import axis_angle_to_matrix, euler_to_axis_angle
from headwarp.geom.track import FaceTrack
from headwarp.media.errors import InputError

FRAMES = 4
SIZE = (240, 320)


@pytest.fixture(scope="module")
def flame() -> HeadModel:
    """A small random head with FLAME's layout and numbers of coefficients."""
    rng = np.random.default_rng(0)
    n = 40
    weights = rng.random((n, 5)) ** 3
    regressor = rng.random((5, n))
    return HeadModel(
        HeadData(
            name="flame2023",
            v_template=rng.normal(size=(n, 3)) * 0.06,
            faces=rng.integers(0, n, (60, 3)),
            shapedirs=rng.normal(size=(n, 3, 400)) * 0.001,
            posedirs=rng.normal(size=(n, 3, 36)) * 0.001,
            J_regressor=regressor / regressor.sum(1, keepdims=True),
            weights=weights / weights.sum(1, keepdims=True),
            parents=np.array([-1, 0, 1, 1, 1]),
            n_shape=300,
            n_expression=100,
        )
    )


@pytest.fixture
def track(flame) -> FaceTrack:
    return _track(flame)


def _track(head: HeadModel, *, camera: Camera | None = None, seed: int = 0) -> FaceTrack:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    zeros = HeadParams.zeros(head, FRAMES)
    params = HeadParams(**{name: random(*value.shape) * 0.3 for name, value in zeros.asdict().items()})
    place = torch.tensor([0.02, -0.03, -0.9]) + 0.01 * random(FRAMES, 3)
    params = params.replace(shape=params.shape[:1].expand(FRAMES, -1).clone(), translation=place)
    return FaceTrack(
        params=params,
        camera=camera or Camera(torch.tensor([400.0]), torch.tensor([[160.0, 120.0]])),
        landmarks=torch.rand(FRAMES, 478, 3, generator=generator) * 80 + 100,
        confidence=torch.ones(FRAMES),
        blendshapes=torch.rand(FRAMES, 52, generator=generator),
        times=torch.arange(FRAMES, dtype=torch.float64) / 25,
        crop=torch.tensor([[1.0, 0.0, 0.0]]).repeat(FRAMES, 1),
        fps=25.0,
        image_size=SIZE,
        head_name=head.name,
        head_sha256=head.sha256,
    )


def pixels(track: FaceTrack, head: HeadModel) -> torch.Tensor:
    return track.camera.project(head(track.params))[..., :2]


def close(back: FaceTrack, track: FaceTrack, names: tuple[str, ...]) -> None:
    for name in names:
        torch.testing.assert_close(getattr(back.params, name), getattr(track.params, name), rtol=0, atol=2e-5)


# ---- FLAME over time


def test_vhap_round_trip_and_its_camera(track, flame, tmp_path):
    path = tmp_path / "tracked_flame_params_30.npz"
    export_track(track, path, flame)
    back = import_track(path, flame, known=Known(size=SIZE))
    close(back, track, ("shape", "expression", "rotation", "neck", "jaw", "eyes", "translation"))
    torch.testing.assert_close(pixels(back, flame), pixels(track, flame), rtol=0, atol=0.02)
    # as VHAP projects: its camera at (0, 0, 1), focal length in units of the longer side
    with np.load(path) as file:
        assert file["shape"].shape == (300,)
        assert file["eyes_pose"].shape == (FRAMES, 6)
        place = torch.from_numpy(file["translation"])
        focal = float(file["focal_length"][0]) * max(SIZE)
    seen = flame(track.params.replace(translation=place)) - torch.tensor([0.0, 0.0, 1.0])
    theirs = torch.stack([focal * seen[..., 0] / -seen[..., 2] + 160, -focal * seen[..., 1] / -seen[..., 2] + 120], -1)
    torch.testing.assert_close(theirs, pixels(track, flame), rtol=0, atol=0.02)


def test_vhap_keeps_an_axis_that_is_off_the_middle(flame, tmp_path):
    track = _track(flame, camera=Camera(torch.tensor([400.0]), torch.tensor([[150.0, 100.0]])))
    export_track(track, tmp_path / "a.npz", flame)
    back = import_track(tmp_path / "a.npz", flame, known=Known(size=SIZE))
    torch.testing.assert_close(back.camera.principal, track.camera.principal)


def test_frames_of_metrical_tracker_round_trip(track, flame, tmp_path):
    export_track(track, tmp_path / "checkpoint", flame, kind="frame")
    assert sorted(p.name for p in (tmp_path / "checkpoint").iterdir())[0] == "00000.frame"
    back = import_track(tmp_path / "checkpoint", flame)
    close(back, track, ("shape", "expression", "jaw", "eyes", "eyelids"))
    no_neck = track.params.replace(neck=torch.zeros(FRAMES, 3))
    wanted = track.camera.project(flame(no_neck))[..., :2]
    torch.testing.assert_close(pixels(back, flame), wanted, rtol=0, atol=0.02)
    # as OpenCV projects the head at rest: K (R x + t)
    frame = torch.load(tmp_path / "checkpoint" / "00002.frame", weights_only=False)  # our own file
    rest = flame(no_neck[2].replace(rotation=torch.zeros(1, 3), translation=torch.zeros(1, 3)))[0].numpy()
    seen = rest @ frame["opencv"]["R"][0].T + frame["opencv"]["t"][0]
    image = seen @ frame["opencv"]["K"][0].T
    np.testing.assert_allclose(image[:, :2] / image[:, 2:], wanted[2], atol=0.02)
    # and as pytorch3d does: row vectors, x left, y up, halves of the shorter side
    turn = axis_angle_to_matrix(from_6d(torch.from_numpy(frame["camera"]["R"])))[0].numpy()
    view = rest @ turn + frame["camera"]["t"]
    ndc = frame["camera"]["fl"] * view[:, :2] / view[:, 2:] + frame["camera"]["pp"]
    np.testing.assert_allclose(np.array([160, 120]) - 120 * ndc, wanted[2], atol=0.02)


def test_a_frame_file_that_runs_something_is_refused(tmp_path, flame):
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "owned",))  # type: ignore[return-value]

    torch.save({"flame": Evil(), "opencv": {}, "img_size": 0}, tmp_path / "0.frame")
    with pytest.raises(InputError, match="refused"):
        import_track(tmp_path / "0.frame", flame)
    (tmp_path / "codes.pkl").write_bytes(pickle.dumps({"exp": Evil()}))
    with pytest.raises(InputError, match="refused"):
        import_track(tmp_path / "codes.pkl", flame)
    assert not (tmp_path / "owned").exists()


def test_transforms_json_round_trip_through_a_turned_camera(track, flame, tmp_path):
    export_track(track, tmp_path / "nerf", flame, kind="nerf")
    path = tmp_path / "nerf" / "transforms.json"
    back = import_track(path, flame)
    torch.testing.assert_close(pixels(back, flame), pixels(track, flame), rtol=0, atol=0.02)
    close(back, track, ("shape", "expression", "neck", "jaw", "eyes", "eyelids", "translation"))
    # the same scene, turned as a whole: head parameters and cameras
    content = json.loads(path.read_text())
    turn = axis_angle_to_matrix(euler_to_axis_angle(20.0, -10.0, 5.0))
    shift = torch.tensor([0.1, 0.2, -0.3])
    for k, frame in enumerate(content["frames"]):
        pose = torch.tensor(frame["transform_matrix"])
        pose[:3] = torch.cat([turn @ pose[:3, :3], turn @ pose[:3, 3:] + shift[:, None]], 1)
        frame["transform_matrix"] = pose.tolist()
        with np.load(path.parent / frame["flame_param_path"]) as file:
            arrays = dict(file)
        params = track.params[k].replace(translation=torch.from_numpy(arrays["translation"]))
        params = rebased(flame, params, turn[None], shift)
        arrays |= {"rotation": params.rotation.numpy(), "translation": params.translation.numpy()}
        np.savez(path.parent / frame["flame_param_path"], **arrays)
    path.write_text(json.dumps(content))
    torch.testing.assert_close(pixels(import_track(path, flame), flame), pixels(track, flame), rtol=0, atol=0.05)


@pytest.mark.parametrize("ending", [".pkl", ".npy", ".mat"])
@pytest.mark.parametrize("kind", ["deca", "emoca", "smirk"])
def test_codes_round_trip(flame, tmp_path, kind, ending):
    """A track as these regressors make it: weak perspective on a crop of 224 x 224."""
    track = _track(flame)
    names = {
        "deca": ("exp", "pose", "cam"),
        "emoca": ("expcode", "posecode"),
        "smirk": ("pose_params", "eyelid_params"),
    }
    camera = WeakPerspective.from_deca(torch.tensor([[8.0, 0.01, -0.02]]).repeat(FRAMES, 1), (224, 224))
    shape, expression = track.params.shape.clone(), track.params.expression.clone()
    shape[:, 300 if kind == "smirk" else 100 :] = 0
    expression[:, 50:] = 0
    params = track.params.replace(shape=shape, expression=expression)
    track.params, track.camera, track.image_size = params, camera, (224, 224)
    path = tmp_path / f"codes{ending}"
    export_track(track, path, flame, kind=kind)
    if ending == ".pkl":
        assert set(names[kind]) <= pickle.loads(path.read_bytes()).keys()
    back = import_track(path, flame)
    close(back, track, ("shape", "expression", "rotation", "jaw", *(("eyelids",) if kind == "smirk" else ())))
    torch.testing.assert_close(back.camera.scale, camera.scale)
    torch.testing.assert_close(back.camera.principal, camera.principal, rtol=0, atol=1e-3)


def test_codes_of_a_full_picture_keep_their_crop(track, flame, tmp_path):
    """A perspective track becomes DECA's camera on DECA's crop, which lands near the same pixels."""
    export_track(track, tmp_path / "codes.pkl", flame)
    with pytest.raises(InputError, match="--image-size"):
        import_track(tmp_path / "codes.pkl", flame)
    back = import_track(tmp_path / "codes.pkl", flame, known=Known(size=SIZE))
    wanted = track.params.replace(neck=torch.zeros(FRAMES, 3), eyes=torch.zeros(FRAMES, 6))
    wanted = wanted.replace(eyelids=torch.zeros(FRAMES, 2), expression=back.params.expression, shape=back.params.shape)
    difference = (pixels(back, flame) - track.camera.project(flame(wanted))[..., :2]).norm(dim=-1)
    assert float(difference.mean()) < 5  # perspective itself is lost; the head is about 80 pixels wide
    # DECA's own way from the crop back to the picture
    codes = pickle.loads((tmp_path / "codes.pkl").read_bytes())
    vertices = flame(back.params.replace(translation=torch.zeros(FRAMES, 3))).numpy()
    s, tx, ty = codes["cam"][0]
    index = (np.stack([s * (vertices[0, :, 0] + tx), -s * (vertices[0, :, 1] + ty)], 1) + 1) * 112 - 0.5
    full = (np.linalg.inv(codes["tform"][0]) @ np.c_[index, np.ones(len(index))].T).T[:, :2] + 0.5
    np.testing.assert_allclose(full, pixels(back, flame)[0], atol=0.05)


def test_lists_and_folders_of_single_frames(track, flame, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    parts = []
    for k in range(FRAMES):
        part = {"shape": track.params.shape[k : k + 1, :100].numpy(), "exp": track.params.expression[k, :50].numpy()}
        part |= {"pose": torch.cat([track.params.rotation, track.params.jaw], 1)[k].numpy(), "cam": np.array([8, 0, 0])}
        np.save(folder / f"frame{k + 8}.npy", np.array(part, dtype=object))  # 8 ... 11: natural order
        parts.append({name: torch.as_tensor(value) for name, value in part.items()})
    (tmp_path / "list.pkl").write_bytes(pickle.dumps(parts))
    for path in (folder, tmp_path / "list.pkl"):
        back = import_track(path, flame, kind="deca")
        close(back, track, ("rotation", "jaw"))


def test_flame_codes_of_the_open_head_are_refused(tmp_path):
    head = load_head()
    with pytest.raises(InputError, match="--head flame"):
        export_track(_track(head), tmp_path / "x.npz", head)


# ---- meshes


def test_meshes_are_the_heads_vertices(tmp_path):
    head = load_head()
    track = _track(head)
    vertices = head(track.params)
    export_track(track[:1], tmp_path / "obj", head, kind="obj")
    export_track(track, tmp_path / "ply", head, kind="ply")
    lines = (tmp_path / "obj" / "00000.obj").read_text().splitlines()
    found = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    np.testing.assert_allclose(found, vertices[0].numpy(), atol=2e-6)
    corners = [[int(c.split("/")[0]) for c in line.split()[1:]] for line in lines if line.startswith("f ")]
    np.testing.assert_array_equal(np.array(corners) - 1, head.faces.numpy())
    data = (tmp_path / "ply" / "00003.ply").read_bytes()
    body = data[data.index(b"end_header\n") + 11 :]
    n, f = len(head.v_template), len(head.faces)
    np.testing.assert_allclose(np.frombuffer(body[: 12 * n], "<f4").reshape(n, 3), vertices[3].numpy(), atol=1e-6)
    rows = np.frombuffer(body[12 * n :], np.dtype([("n", "u1"), ("c", "<i4", 3)]))
    assert len(rows) == f
    np.testing.assert_array_equal(rows["c"], head.faces.numpy())


def _glb(path: Path) -> tuple[dict, list[np.ndarray]]:
    """The JSON of a GLB and its accessors as arrays, as the specification says to read them."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    content = json.loads(data[20 : 20 + size])
    size_bin, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0"
    assert 28 + size + size_bin == len(data)
    assert size % 4 == size_bin % 4 == 0
    blob = data[28 + size :]
    assert content["buffers"][0]["byteLength"] <= size_bin
    arrays = []
    for accessor in content["accessors"]:
        view = content["bufferViews"][accessor["bufferView"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        kind = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
        assert view["byteOffset"] % 4 == 0
        part = blob[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        array = np.frombuffer(part, kind).reshape(accessor["count"], width)
        if "min" in accessor:
            np.testing.assert_allclose(array.min(0), accessor["min"], rtol=1e-6)
            np.testing.assert_allclose(array.max(0), accessor["max"], rtol=1e-6)
        arrays.append(array)
    return content, arrays


def _quaternion_matrix(q: np.ndarray) -> np.ndarray:
    x, y, z, w = q.astype(np.float64)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_a_player_of_the_glb_shows_the_heads_vertices(tmp_path):
    """Morph targets, weights and the node's motion, played back by hand, within a tenth of a millimetre."""
    head = load_head()
    track = _track(head)
    export_track(track, tmp_path / "head.glb", head)
    content, arrays = _glb(tmp_path / "head.glb")
    (primitive,) = content["meshes"][0]["primitives"]
    base = arrays[primitive["attributes"]["POSITION"]]
    targets = np.stack([arrays[target["POSITION"]] for target in primitive["targets"]])
    names = content["meshes"][0]["extras"]["targetNames"]
    assert len(names) == len(targets) == len(content["meshes"][0]["weights"])
    jaw = HeadParams.zeros(head).replace(shape=track.params.shape[:1], **head.arkit(torch.eye(52)[17:18]))
    np.testing.assert_allclose(base + targets[names.index("jawOpen")], head(jaw)[0].numpy(), atol=2e-6)
    (animation,) = content["animations"]
    played = {}
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        np.testing.assert_allclose(arrays[sampler["input"]][:, 0], track.times.numpy(), atol=1e-6)
        played[channel["target"]["path"]] = arrays[sampler["output"]]
    weights = played["weights"].reshape(FRAMES, len(targets))
    assert np.abs(weights).max() <= 1 + 1e-6
    wanted = head(track.params).numpy()
    for k in range(FRAMES):
        shape = base + np.tensordot(weights[k], targets, 1)
        world = shape @ _quaternion_matrix(played["rotation"][k]).T + played["translation"][k]
        assert np.linalg.norm(world - wanted[k], axis=1).max() < 1.5e-4
    np.testing.assert_array_equal(arrays[primitive["indices"]].reshape(-1, 3), head.faces.numpy())


def _obey_gltf(content: dict, arrays: list[np.ndarray]) -> None:
    """The rules of the glTF 2.0 specification (Khronos, section 3) for what our files hold; an importer relies on
    them."""
    assert content["asset"]["version"] == "2.0"
    bounds = content["buffers"][0]["byteLength"]
    views, accessors = content["bufferViews"], content["accessors"]
    for view in views:
        assert view["buffer"] == 0
        assert view["byteOffset"] + view["byteLength"] <= bounds
        assert view.get("target") in (None, 34962, 34963)
    for accessor, array in zip(accessors, arrays, strict=True):
        assert accessor["count"] >= 1
        assert accessor["count"] * array.shape[1] * 4 == views[accessor["bufferView"]]["byteLength"]
        assert np.isfinite(array).all()
    nodes = content["nodes"]
    roots = content["scenes"][content["scene"]]["nodes"]
    assert len(set(roots)) == len(roots)
    assert all(0 <= node < len(nodes) for node in roots)
    assert all(0 <= node.get("mesh", 0) < len(content["meshes"]) for node in nodes)
    for mesh in content["meshes"]:
        for primitive in mesh["primitives"]:
            position = accessors[primitive["attributes"]["POSITION"]]
            assert {"min", "max"} <= position.keys()  # 3.7.2.1: required for positions
            assert all(accessors[k]["count"] == position["count"] for k in primitive["attributes"].values())
            normals = arrays[primitive["attributes"]["NORMAL"]]
            np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=5e-3)
            indices = arrays[primitive["indices"]]
            assert (accessors[primitive["indices"]]["type"], len(indices) % 3) == ("SCALAR", 0)
            assert indices.max() < position["count"]
            assert 0 <= primitive["material"] < len(content["materials"])
            for target in primitive.get("targets", ()):  # 3.7.2.2: as many values, with bounds
                assert accessors[target["POSITION"]]["count"] == position["count"]
                assert {"min", "max"} <= accessors[target["POSITION"]].keys()
            assert len(mesh.get("weights", ())) == len(primitive.get("targets", ()))
    for animation in content["animations"]:
        targets = [(c["target"]["node"], c["target"]["path"]) for c in animation["channels"]]
        assert len(set(targets)) == len(targets)  # 3.11: each property is driven once
        for channel in animation["channels"]:
            sampler, node = animation["samplers"][channel["sampler"]], nodes[channel["target"]["node"]]
            clock, path = accessors[sampler["input"]], channel["target"]["path"]
            assert "matrix" not in node
            assert (clock["type"], clock["componentType"]) == ("SCALAR", 5126)
            assert {"min", "max"} <= clock.keys()
            times, values = arrays[sampler["input"]][:, 0], accessors[sampler["output"]]
            assert times[0] >= 0
            assert (np.diff(times) > 0).all()
            width = len(content["meshes"][node["mesh"]].get("weights", ())) if path == "weights" else 1
            assert values["count"] == len(times) * width
            assert values["type"] == {"rotation": "VEC4", "translation": "VEC3", "weights": "SCALAR"}[path]
            if path == "rotation":
                np.testing.assert_allclose(np.linalg.norm(arrays[sampler["output"]], axis=1), 1, atol=1e-5)
    for camera in content.get("cameras", ()):
        lens = camera["perspective"]
        assert 0 < lens["yfov"] < np.pi
        assert 0 < lens["znear"] < lens["zfar"]


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_the_glb_obeys_the_specification(frames, tmp_path):
    head = load_head()
    export_track(_track(head)[:frames], tmp_path / "head.glb", head)
    _obey_gltf(*_glb(tmp_path / "head.glb"))


def test_a_track_that_stands_still_has_no_empty_targets(flame, tmp_path):
    track = _track(flame)[:1]
    track.params = HeadParams.zeros(flame).replace(translation=track.params.translation)
    export_track(track, tmp_path / "still.glb", flame)
    content, arrays = _glb(tmp_path / "still.glb")
    _obey_gltf(content, arrays)
    assert "targets" not in content["meshes"][0]["primitives"][0]
    assert {c["target"]["path"] for c in content["animations"][0]["channels"]} == {"rotation", "translation"}


def test_trimesh_reads_the_glb(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    head = load_head()
    export_track(_track(head), tmp_path / "head.glb", head)
    scene = trimesh.load(tmp_path / "head.glb")
    assert sum(len(mesh.faces) for mesh in scene.geometry.values()) == len(head.faces)


# ---- ARKit


def test_arkit_table_round_trip_and_columns(tmp_path):
    head = load_head()
    track = _track(head)
    export_track(track, tmp_path / "a.csv", head)
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert list(rows[0])[:4] == ["Timecode", "BlendShapeCount", "EyeBlinkLeft", "EyeLookDownLeft"]
    assert (rows[0]["BlendShapeCount"], len(rows[0])) == ("61", 63)
    assert rows[2]["Timecode"] == "00:00:00:02.000"
    assert float(rows[1]["JawOpen"]) == pytest.approx(float(track.blendshapes[1, arkit.INDEX["jawOpen"]]), abs=1e-6)
    back = import_track(tmp_path / "a.csv", head)
    torch.testing.assert_close(back.blendshapes, track.blendshapes, rtol=0, atol=1e-6)
    torch.testing.assert_close(back.params.rotation, track.params.rotation, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.times, track.times, rtol=0, atol=1e-4)
    torch.testing.assert_close(back.params.jaw, head.arkit(track.blendshapes)["jaw"], rtol=0, atol=1e-5)


# ---- names and parts


def test_6d_rotations_invert():
    turns = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(from_6d(to_6d(turns)), turns, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x.glb", "glb"), ("a/transforms.json", "nerf"), ("x.npz", "vhap"), ("x.csv", "arkit-csv"), ("1.frame", "frame")],
)
def test_kinds_by_name(name, kind):
    assert kind_of(name, writing=True) == kind


def test_an_unknown_name_lists_the_kinds():
    with pytest.raises(InputError, match="arkit-csv"):
        kind_of("track.xyz")


@pytest.mark.parametrize("name", ["a.npz", "a.pkl", "a.csv", "a.mat", "a.npy", "transforms.json", "1.frame"])
def test_damaged_files_are_told_in_a_sentence(name, flame, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04damaged{")
    with pytest.raises(InputError, match=name):
        import_track(tmp_path / name, flame, known=Known(size=SIZE))


def test_converting_from_the_command_line(tmp_path, capsys):
    from headwarp.app.cli import main

    head = load_head()
    track = _track(head)
    track.save(tmp_path / "a.safetensors")
    main(["convert-track", str(tmp_path / "a.safetensors"), str(tmp_path / "a.csv")])
    main(["convert-track", str(tmp_path / "a.csv"), str(tmp_path / "b.safetensors")])
    back = FaceTrack.load(tmp_path / "b.safetensors")
    torch.testing.assert_close(back.blendshapes, track.blendshapes, rtol=0, atol=1e-6)
    convert(tmp_path / "a.safetensors", tmp_path / "meshes", kind="ply")
    assert len(list((tmp_path / "meshes").iterdir())) == FRAMES
    with pytest.raises(SystemExit):
        main(["convert-track", str(tmp_path / "a.safetensors"), str(tmp_path / "a.npz")])
    assert "open head" in capsys.readouterr().err
