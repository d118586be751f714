from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from safetensors.numpy import save_file

from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.head_files import FORMAT, find_flame, read_head, write_safetensors

N_SHAPE, N_EXPRESSION = 300, 100


def flame_arrays(data: Any, seed: int = 0) -> dict[str, Any]:
    """The content of an official FLAME file for the tiny head: 400 columns, sparse regressor, unsigned -1."""
    rng = np.random.default_rng(seed)
    n = len(data.v_template)
    return {
        "f": data.faces.astype(np.uint32),
        "v_template": data.v_template.astype(np.float64),
        "shapedirs": rng.normal(size=(n, 3, 400)) * 1e-3,
        "posedirs": data.posedirs.astype(np.float64),
        "J_regressor": scipy.sparse.csc_matrix(data.J_regressor.astype(np.float64)),
        "weights": data.weights.astype(np.float64),
        "kintree_table": np.array([[4294967295, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
        "J": np.zeros((5, 3)),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
    }


def write_pickle(path: Path, arrays: dict[str, Any], protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(arrays, protocol).replace(b"cchumpy_fork.", b"cchumpy."))
    return path


@pytest.mark.parametrize("protocol", [0, 2])
def test_official_pickle_with_chumpy_arrays(chumpy, tmp_path, data, make_params, protocol):
    arrays = flame_arrays(data)
    wrapped = {
        **arrays,
        **{key: chumpy.array(arrays[key]) for key in ("v_template", "shapedirs", "posedirs", "weights", "J")},
    }
    head = load_head(write_pickle(tmp_path / "flame2023.pkl", wrapped, protocol))
    assert (head.name, head.n_shape, head.n_expression) == ("flame2023", N_SHAPE, N_EXPRESSION)
    assert head.parents == (-1, 0, 1, 1, 1)
    np.testing.assert_array_equal(head.shapedirs.numpy(), arrays["shapedirs"].astype(np.float32))
    np.testing.assert_array_equal(head.J_regressor.numpy(), arrays["J_regressor"].toarray().astype(np.float32))
    head(make_params(head, 2))


def test_all_containers_give_the_same_head(tmp_path, data):
    arrays = flame_arrays(data)
    dense = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray)}
    dense["J_regressor"] = np.ascontiguousarray(arrays["J_regressor"].toarray())
    np.savez(tmp_path / "flame.npz", **dense)
    save_file(
        {k: v.astype(np.int64) if v.dtype == np.uint32 else v for k, v in dense.items()}, tmp_path / "flame.safetensors"
    )
    write_pickle(tmp_path / "flame.pkl", arrays)
    heads = [read_head(tmp_path / f"flame{suffix}") for suffix in (".pkl", ".npz", ".safetensors")]
    assert len({head.sha256() for head in heads}) == 1
    write_safetensors(tmp_path / "ours.safetensors", heads[0], half=())
    assert read_head(tmp_path / "ours.safetensors").sha256() == heads[0].sha256()


def test_coefficients_are_the_first_of_each_kind(tmp_path, data):
    arrays = flame_arrays(data)
    path = write_pickle(tmp_path / "flame.pkl", arrays)
    head = read_head(path, n_shape=100, n_expression=50)
    expected = np.concatenate([arrays["shapedirs"][..., :100], arrays["shapedirs"][..., 300:350]], -1)
    np.testing.assert_array_equal(head.shapedirs, expected.astype(np.float32))
    full, small = load_head(path), load_head(path, n_shape=100, n_expression=50)
    assert full.sha256 != small.sha256
    params = HeadParams.zeros(small).replace(shape=torch.randn(1, 100), expression=torch.randn(1, 50))
    padded = HeadParams.zeros(full).replace(
        shape=torch.nn.functional.pad(params.shape, (0, 200)),
        expression=torch.nn.functional.pad(params.expression, (0, 50)),
    )
    torch.testing.assert_close(small(params), full(padded), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="n_shape must be from 0 to 300, got 301"):
        read_head(path, n_shape=301)


def test_unknown_column_count_asks_for_the_split(tmp_path, data):
    arrays = flame_arrays(data)
    arrays["shapedirs"] = arrays["shapedirs"][..., :150]
    path = write_pickle(tmp_path / "cut.pkl", arrays)
    with pytest.raises(ValueError, match=r"150 columns.*give n_shape and n_expression that add up to 150"):
        read_head(path)
    head = read_head(path, n_shape=100, n_expression=50)
    assert (head.n_shape, head.n_expression) == (100, 50)


def test_malicious_model_is_refused(tmp_path, data):
    class Bomb:
        def __reduce__(self) -> Any:
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = write_pickle(tmp_path / "flame.pkl", {**flame_arrays(data), "J": Bomb()})
    with pytest.raises(ValueError, match=r"names (__builtin__|builtins)\.eval"):
        load_head(path)
    assert not (tmp_path / "ran").exists()


def test_object_arrays_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "bad.npz", v_template=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="Arrays of objects are refused"):
        read_head(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, "lacks weights"),
        ({"weights": np.zeros((3, 5))}, r"weights must have shape \(108, 5\), got \(3, 5\)"),
        ({"f": np.array([[0, 1, 108]])}, "faces must index the 108 vertices, got 0 to 108"),
        ({"kintree_table": np.array([[4294967295, 2, 1, 1, 1]])}, "point to earlier joints"),
        ({"v_template": "surprise"}, "v_template must be an array of numbers"),
    ],
)
def test_damaged_models_are_named(tmp_path, data, change, message):
    arrays = {k: v for k, v in {**flame_arrays(data), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        read_head(write_pickle(tmp_path / "flame.pkl", arrays))


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="Head model not found"):
        read_head(tmp_path / "nothing.pkl")
    for suffix, message in (
        (".npz", "readable .npz"),
        (".safetensors", "readable safetensors"),
        (".obj", "head models are"),
    ):
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(b"no model")
        with pytest.raises(ValueError, match=message):
            read_head(path)
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="a dictionary was expected, got list"):
        read_head(tmp_path / "list.pkl")


def full_data(data: Any) -> Any:
    rng = np.random.default_rng(1)
    f = len(data.faces)

    def bary(*shape: int) -> np.ndarray:
        raw = rng.random((*shape, 3))
        return raw / raw.sum(-1, keepdims=True)

    return dataclasses.replace(
        data,
        face_part=np.arange(f) % 2,
        part_names=("head", "neck"),
        uv=rng.random((7, 2)),
        uv_faces=rng.integers(0, 7, (f, 3)),
        arkit_expression=rng.normal(size=(52, 3)),
        arkit_jaw=rng.normal(size=(52, 3)),
        arkit_eyes=rng.normal(size=(52, 6)),
        arkit_eyelids=rng.normal(size=(52, 2)),
        shape_controls=rng.normal(size=(2, 4)),
        shape_control_names=("nose-width", "jaw-width"),
        static68_triangle=rng.integers(0, f, 68),
        static68_barycentric=bary(68),
        dynamic_triangle=rng.integers(0, f, (79, 17)),
        dynamic_barycentric=bary(79, 17),
        mediapipe_triangle=rng.integers(0, f, 5),
        mediapipe_barycentric=bary(5),
        mediapipe_index=np.array([3, 1, 4, 100, 467]),
        metadata={"licence": "CC0"},
    )


def test_our_file_round_trip(tmp_path, data):
    whole = full_data(data)
    write_safetensors(tmp_path / "head.safetensors", whole, half=())
    back = read_head(tmp_path / "head.safetensors")
    for item in dataclasses.fields(whole):
        a, b = getattr(whole, item.name), getattr(back, item.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        elif item.name == "metadata":
            assert b == {"licence": "CC0", "format": FORMAT}
        else:
            assert a == b
    head = HeadModel(back)
    assert head.embeddings["mediapipe"].indices.tolist() == [3, 1, 4, 100, 467]
    assert head.contour is not None


def test_same_head_same_bytes_and_no_rest_left(tmp_path, data):
    whole = full_data(data)
    for name in ("a", "b"):
        write_safetensors(tmp_path / f"{name}.safetensors", whole)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_half_precision_is_for_storage_only(tmp_path, data):
    write_safetensors(tmp_path / "head.safetensors", data)
    back = read_head(tmp_path / "head.safetensors")
    assert back.shapedirs.dtype == np.float32
    np.testing.assert_array_equal(back.shapedirs, data.shapedirs.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(back.v_template, data.v_template)


def test_hash_follows_the_geometry_only(data):
    assert full_data(data).sha256() == data.sha256()
    moved = data.v_template.copy()
    moved[0, 0] += 1e-6
    assert dataclasses.replace(data, v_template=moved).sha256() != data.sha256()


def test_files_beside_flame_are_picked_up(tmp_path, data):
    whole = full_data(data)
    write_pickle(tmp_path / "generic_model.pkl", flame_arrays(data))
    embedding = {
        "static_lmk_faces_idx": whole.static68_triangle[17:],
        "static_lmk_bary_coords": whole.static68_barycentric[17:],
        "dynamic_lmk_faces_idx": torch.from_numpy(whole.dynamic_triangle),
        "dynamic_lmk_bary_coords": torch.from_numpy(whole.dynamic_barycentric),
        "full_lmk_faces_idx": whole.static68_triangle[None],
        "full_lmk_bary_coords": whole.static68_barycentric[None],
    }
    np.save(tmp_path / "landmark_embedding.npy", embedding, allow_pickle=True)  # type: ignore[arg-type]
    np.savez(
        tmp_path / "mediapipe_landmark_embedding.npz",
        lmk_face_idx=whole.mediapipe_triangle.astype(np.uint32),
        lmk_b_coords=whole.mediapipe_barycentric,
        landmark_indices=whole.mediapipe_index,
    )
    masks = {
        "left_eyeball": data.faces[3],
        "right_eyeball": data.faces[9],
        "neck": data.faces[30],
        "face": np.arange(3),
    }
    write_pickle(tmp_path / "FLAME_masks.pkl", masks)
    lines = [f"v {x} {y} {z}" for x, y, z in data.v_template] + ["vt 0.25 0.5", "vt 0.5 0.75"]
    lines += ["f " + " ".join(f"{i + 1}/{k % 2 + 1}" for k, i in enumerate(face)) for face in data.faces]
    (tmp_path / "head_template.obj").write_text("\n".join(lines))

    head = load_head(tmp_path / "generic_model.pkl", n_shape=10, n_expression=5)
    params = HeadParams.zeros(head, 2)
    assert head.landmarks68(params).shape == (2, 68, 3)
    assert head.embeddings["mediapipe"].indices.tolist() == [3, 1, 4, 100, 467]
    assert 3 in head.part_faces("eye_left")
    assert 30 in head.part_faces("neck")
    np.testing.assert_allclose(head.uv.numpy(), [[0.25, 0.5], [0.5, 0.75]])
    assert head.uv_faces[0].tolist() == [0, 1, 0]


def test_find_flame(tmp_path, data, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HEADWARP_FLAME", raising=False)
    assert find_flame() is None
    with pytest.raises(FileNotFoundError, match="FLAME needs a licence: register at"):
        load_head("flame")
    cache = tmp_path / ".cache" / "headwarp"
    cache.mkdir(parents=True)
    write_pickle(cache / "generic_model.pkl", flame_arrays(data))
    assert load_head("flame", n_shape=10, n_expression=5).name == "generic_model"
    write_pickle(cache / "flame2023.pkl", flame_arrays(data))
    assert find_flame() == cache / "flame2023.pkl"
    monkeypatch.setenv("HEADWARP_FLAME", str(tmp_path / "gone.pkl"))
    with pytest.raises(FileNotFoundError, match=r"HEADWARP_FLAME names .*gone\.pkl"):
        load_head("flame")
    monkeypatch.setenv("HEADWARP_FLAME", str(cache / "generic_model.pkl"))
    assert find_flame() == cache / "generic_model.pkl"


def test_damaged_metadata_is_named(tmp_path, data):
    write_safetensors(tmp_path / "head.safetensors", data)
    blob = (tmp_path / "head.safetensors").read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    header["__metadata__"]["part_names"] = "[oops"
    text = json.dumps(header).encode()
    (tmp_path / "bad.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + blob[8 + length :])
    with pytest.raises(ValueError, match="metadata 'part_names' cannot be read"):
        read_head(tmp_path / "bad.safetensors")
