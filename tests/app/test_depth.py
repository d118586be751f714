"""`headwarp depth` and the pictures that explain a frame."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

from headwarp.app.depth import Depth
from headwarp.app.explain import explain, explained
from headwarp.geom.depth import point_normals, unproject
from headwarp.media.errors import InputError
from headwarp.media.image import load_image, save_image
from headwarp.nets.dagan import DaGan, DaGanConfig
from headwarp.nets.depth import FaceDepth
from headwarp.nets.fomm import CommonParams
from headwarp.nets.generator import DenseMotionConfig, GeneratorConfig
from headwarp.nets.keypoints import KeypointConfig
from headwarp.nets.model_file import save_model


@pytest.fixture(scope="module")
def depth_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "depth.safetensors"
    torch.manual_seed(0)
    save_model(path, FaceDepth())
    return path


def test_a_picture_becomes_depth_normals_and_points(tmp_path, depth_file):
    noise = np.random.default_rng(0).integers(0, 255, (300, 260, 3), np.uint8)
    save_image(tmp_path / "face.png", noise)
    Depth(tmp_path / "face.png", tmp_path / "out", depth_file, no_crop=True).run()
    depth = cv2.imread(str(tmp_path / "out" / "depth.png"), cv2.IMREAD_UNCHANGED)
    assert depth.dtype == np.uint16
    assert depth.shape == (256, 256)
    assert load_image(tmp_path / "out" / "colour.png").shape == (256, 256, 3)
    assert load_image(tmp_path / "out" / "normals.png").shape == (256, 256, 3)
    header, _, body = (tmp_path / "out" / "points.ply").read_bytes().partition(b"end_header\n")
    assert b"element vertex 65536" in header
    points = np.frombuffer(body, np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))
    expected = 1 / (0.01 + 9.99 * depth.ravel() / 65535)
    np.testing.assert_allclose(-points["xyz"][:, 2], expected, rtol=1e-3)
    assert json.loads((tmp_path / "out" / "depth.json").read_text())["fov_degrees"] == 20


def test_frames_become_folders(tmp_path, depth_file):
    (tmp_path / "frames").mkdir()
    for i in range(2):
        save_image(tmp_path / "frames" / f"{i}.png", np.full((64, 64, 3), 90 + i, np.uint8))
    Depth(tmp_path / "frames", tmp_path / "out", depth_file, no_crop=True).run()
    for kind in ("depth", "colour", "normals", "points"):
        assert len(list((tmp_path / "out" / kind).iterdir())) == 2


def test_wrong_input_is_told(tmp_path, depth_file):
    save_image(tmp_path / "grey.png", np.full((128, 128, 3), 90, np.uint8))
    with pytest.raises(InputError, match="No face"):
        Depth(tmp_path / "grey.png", tmp_path / "out", depth_file).run()
    with pytest.raises(InputError, match="degrees"):
        Depth(tmp_path / "grey.png", tmp_path / "out", depth_file, fov=0).run()
    with pytest.raises(InputError, match="no model file"):
        Depth(tmp_path / "grey.png", tmp_path / "out", tmp_path / "none.safetensors").run()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"Cannot write .*grey\.png: a part of that path is a file"):
        Depth(tmp_path / "grey.png", tmp_path / "grey.png", depth_file, no_crop=True).run()


def test_a_sloping_plane_has_its_normal():
    """The plane z = -2 + x / 2: its depth at the pixel of ray (x, y, -1) is 2 / (1 + x / 2)."""
    focal, principal = torch.tensor([40.0]), torch.tensor([[15.0, 11.0]])
    ray = (torch.arange(32) + 0.5 - 15) / 40
    depth = (2 / (1 + ray / 2)).expand(1, 1, 24, 32)
    points = unproject(depth, focal, principal)
    torch.testing.assert_close(points[:, 2], -2 + points[:, 0] / 2, rtol=0, atol=1e-5)
    wanted = torch.tensor([-1.0, 0, 2]) / 5**0.5
    torch.testing.assert_close(
        point_normals(points), wanted[None, :, None, None].expand(1, 3, 24, 32), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("attention", ["none", "self", "depth"])
def test_a_frame_is_explained(attention):
    model = DaGan(
        DaGanConfig(
            CommonParams(num_kp=4),
            KeypointConfig(block_expansion=8, max_features=16, num_blocks=2),
            GeneratorConfig(8, 32, 2, 1, dense_motion_params=DenseMotionConfig(8, 16, 2)),
            attention=attention,
        )
    ).eval()
    source, driving = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        state, motion = model.encode_source(source), model.read_motion(driving)
        output = model.render(state, motion)
    pictures = explain(model.generator, state, motion, output, driving=driving, seen=motion, query=(20, 30))
    assert ("attention" in pictures) == (attention != "none")
    assert {"depth", "occlusion", "warped source", "driving keypoints", "output"} <= set(pictures)
    assert all(p.shape == (64, 64, 3) and p.dtype == np.uint8 for p in pictures.values())
    assert explained(pictures).shape[1] >= 64 * len(pictures)
    if attention != "none":
        with pytest.raises(ValueError, match="query must be a pixel"):
            explain(model.generator, state, motion, output, query=(64, 0))
