"""Model files behind animate, edit and frontalize. The networks here are untrained: what is looked at is the wiring."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headwarp.app.animator import Animator
from headwarp.app.explain import explain, with_keypoints
from headwarp.app.learned import border, with_detail
from headwarp.app.models import make_renderer
from headwarp.geom.head import HeadModel, load_head
from headwarp.media.errors import InputError
from headwarp.media.image import load_image, save_image
from headwarp.nets.dense_motion import DenseMotionConfig
from headwarp.nets.fomm import CommonParams, Fomm, FommConfig
from headwarp.nets.g3fa import G3fa, G3faConfig, G3faGeneratorConfig
from headwarp.nets.generator import GeneratorConfig
from headwarp.nets.keypoints import KeypointConfig
from headwarp.nets.model_file import save_model
from headwarp.nets.ostnet import OstNet, OstNetConfig
from headwarp.nets.pwm import Pwm, PwmConfig
from headwarp.render.warp import warp


@pytest.fixture(scope="module")
def pwm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "pwm.safetensors"
    config = PwmConfig(size=64, levels=3, base_channels=8, max_channels=16, spade_hidden=8, residual_displacement=True)
    save_model(path, Pwm(config))
    return path


@pytest.fixture(scope="module")
def fomm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "fomm.safetensors"
    small = KeypointConfig(block_expansion=4, max_features=16, num_blocks=2)
    generator = GeneratorConfig(block_expansion=4, max_features=16, num_bottleneck_blocks=1)
    save_model(path, Fomm(FommConfig(kp_detector_params=small, generator_params=generator)))
    return path


def test_detail_of_the_photo_comes_back_where_it_was_only_moved():
    torch.manual_seed(0)
    photo = torch.rand(1, 3, 96, 128)  # noise: all of it is detail
    displacement = torch.full((1, 2, 12, 16), 0.1)
    moved = warp(photo, displacement)
    small = F.interpolate(moved, (24, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(with_detail(small, small, displacement, photo), moved, rtol=0, atol=1e-5)
    # Where the network disagrees with the warp, the photo's detail is wrong and stays away.
    invented = with_detail(1 - small, small, displacement, photo)
    soft = F.interpolate(1 - small, (96, 128), mode="bicubic")
    assert (invented - soft).abs().mean() < 0.5 * (moved - F.interpolate(small, (96, 128))).abs().mean()


def test_the_border_fades_into_the_photo():
    weight = border((80, 120))
    assert weight.shape == (80, 120)
    assert weight[0].max() < 0.1
    assert weight[:, -1].max() < 0.1
    assert weight[40, 60] == 1
    torch.testing.assert_close(weight, weight.flip(0, 1))


def test_a_pwm_file_edits_and_leaves_what_lies_outside(lab: SimpleNamespace, portrait: Path, pwm: Path, tmp_path: Path):
    done = lab.headwarp("edit", "-s", portrait, "-o", tmp_path / "a.png", "--yaw", 10, "--model", pwm, "--size", 128)
    assert done.code == 0, done
    before, after = load_image(portrait), load_image(tmp_path / "a.png")
    assert before.shape == after.shape
    np.testing.assert_array_equal(before[:, :15], after[:, :15])
    assert (before != after).any()


def test_a_pwm_file_animates(lab: SimpleNamespace, portrait: Path, driving: Path, pwm: Path, tmp_path: Path):
    done = lab.headwarp("animate", "-s", portrait, "-d", driving, "-o", tmp_path / "a.mp4", "--model", pwm)
    assert done.code == 0, done
    assert len(lab.frames(tmp_path / "a.mp4")) == len(lab.frames(driving))


def test_the_refiner_mends_what_moves_and_leaves_the_rest(portrait: Path):
    plain, refined = (Animator(portrait, model=model, size=256) for model in ("geometric", "refined"))
    still = refined.portrait.params
    np.testing.assert_array_equal(refined.render(still), plain.render(still))
    before, after = (animator.edit(yaw=12, jaw=8).astype(int) for animator in (plain, refined))
    change = np.abs(after - before)
    assert 0.1 < change.mean() < 6  # grey levels: it corrects, the picture is the animator's
    square = refined.portrait.square
    left, top = (int(x) for x in np.round(np.array(square.center) - square.side / 2))
    side = int(square.side)
    outside = np.ones(change.shape[:2], bool)
    outside[max(top, 0) : top + side, max(left, 0) : left + side] = False
    assert not change[outside].any()
    assert change[max(top, 0)].max() <= 2  # it fades at the square's border


def test_the_pwm_of_the_package_turns_a_head_and_leaves_a_still_one_as_it_is(portrait: Path):
    animator = Animator(portrait, model="pwm", size=256)
    photo = load_image(portrait).astype(int)
    still = np.abs(animator.render(animator.portrait.params).astype(int) - photo)
    assert still.mean() < 0.5  # grey levels
    turned = animator.edit(yaw=15).astype(int)
    assert np.abs(turned - photo).mean() > 4 * still.mean() + 1
    geometric = Animator(portrait, size=256).edit(yaw=15).astype(int)
    # A picture of the same turned head: nearer to the geometric animator's than the photo is.
    assert np.abs(turned - geometric).mean() < 0.8 * np.abs(photo - geometric).mean()


def test_a_small_pwm_leaves_irises_and_teeth_to_the_geometric_animator(portrait: Path):
    animator = Animator(portrait, model="pwm", size=256)
    assert animator.stage.renderer.model.config.drawn_openings
    edits = {"jaw": 14.0}, {"gaze": (20.0, 0.0)}
    drawn = [animator.edit(**edit).astype(int) for edit in edits]
    animator.portrait.state.geometric = None
    painted = [animator.edit(**edit).astype(int) for edit in edits]
    lips, eyes = (np.abs(a - b).max(-1) > 12 for a, b in zip(drawn, painted, strict=True))
    geometry = Animator(portrait, size=256).portrait.state
    square, marks = animator.portrait.square, geometry.rims.landmarks * geometry.scale
    for changed, ids in ((lips, (78, 308, 13, 14)), (eyes, (33, 133, 362, 263))):
        places = marks[list(ids)] + np.array(square.center) - square.side / 2
        reach = np.ptp(places, 0).max()
        rows, columns = np.nonzero(changed)
        assert len(rows) > 20
        assert np.abs(columns - places[:, 0].mean()).max() < reach
        assert np.abs(rows - places[:, 1].mean()).max() < reach


def test_the_refiner_knows_one_head(head_of_another_name: HeadModel):
    with pytest.raises(InputError, match="trained on the head 'open' and knows nothing of 'another'"):
        make_renderer("refined", head_of_another_name)


@pytest.fixture(scope="module")
def head_of_another_name() -> HeadModel:
    head = load_head()
    head.name = "another"
    return head


def test_fomm_writes_what_its_network_computes(lab: SimpleNamespace, crop: Path, fomm: Path, tmp_path: Path):
    """`--no-crop --motion absolute` on 256 x 256 frames: nothing but the network touches the pixels."""
    from headwarp.nets.model_file import load_model

    folder = tmp_path / "frames"
    folder.mkdir()
    source = load_image(crop)
    for i in range(3):
        save_image(folder / f"{i:07d}.png", np.roll(source, 6 * i, 1))
    out = tmp_path / "out"
    done = lab.headwarp(
        "animate", "-s", crop, "-d", folder, "-o", f"{out}/", "--model", fomm, "--no-crop", "--motion", "absolute"
    )
    assert done.code == 0, done
    model = load_model(fomm)
    assert isinstance(model, Fomm)

    def tensor(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

    with torch.no_grad():
        state = model.encode_source(tensor(source))
        for path, made in zip(sorted(folder.iterdir()), sorted(out.iterdir()), strict=True):
            wanted = model.render(state, model.read_motion(tensor(load_image(path)))).image[0].permute(1, 2, 0) * 255
            assert np.abs(load_image(made) - wanted.numpy()).max() < 1


def test_a_keypoint_model_explains_itself(lab: SimpleNamespace, crop: Path, fomm: Path, tmp_path: Path):
    done = lab.headwarp(
        "animate", "-s", crop, "-d", crop, "-o", tmp_path / "a.png", "--model", fomm, "--no-crop",
        "--explain", tmp_path / "why",
    )  # fmt: skip
    assert done.code == 0, done
    (page,) = (tmp_path / "why").iterdir()
    assert load_image(page).shape[1] > 5 * 256  # keypoints of source, driver and result, warped source, occlusion ...
    said = lab.refused("animate", "-s", crop, "-d", crop, "-o", tmp_path / "b.png", "--explain", tmp_path / "no")
    assert "keypoint model" in said


@torch.no_grad()
def test_g3fa_is_explained_without_attention():
    small = DenseMotionConfig(block_expansion=4, max_features=16, num_blocks=2)
    keypoints = KeypointConfig(block_expansion=4, max_features=16, num_blocks=2)
    model = G3fa(G3faConfig(CommonParams(num_kp=3), keypoints, G3faGeneratorConfig(dense_motion_params=small))).eval()
    picture = torch.rand(1, 3, 64, 64)
    state = model.encode_source(picture)
    made = model.render(state, state.motion)
    pictures = explain(model.generator, state, state.motion, made)
    assert list(pictures) == ["source keypoints", "wanted keypoints", "warped source", "occlusion", "output"]
    assert all(shown.shape == (64, 64, 3) for shown in pictures.values())


@torch.no_grad()
def test_ostnet_shows_the_rectified_driver_beside_the_driver():
    """Keypoints that drive were read from the rectified picture; the driver is shown with its own."""
    small = {"block_expansion": 4, "max_features": 16, "num_blocks": 2}
    generator = {"block_expansion": 4, "max_features": 16, "num_bottleneck_blocks": 1, "dense_motion_params": small}
    base = {"common_params": {"num_kp": 2}, "kp_detector_params": small, "generator_params": generator}
    torch.manual_seed(0)
    model = OstNet(OstNetConfig(base_params=base)).eval()
    assert model.transformation is not None
    model.transformation.move.bias.uniform_(-0.4, 0.4)
    driver = torch.rand(1, 3, 64, 64)
    state = model.encode_source(torch.rand(1, 3, 64, 64))
    motion = model.read_motion(driver, state)
    shown = explain(model.generator, state, motion, model.render(state, motion), driving=driver, seen=motion)
    own = (driver[0].permute(1, 2, 0) * 255).round().byte().numpy()
    np.testing.assert_array_equal(
        shown["driving keypoints"], with_keypoints(own, model.base.read_motion(driver).value[0])
    )
    assert (shown["rectified driver"] != shown["driving keypoints"]).mean() > 0.5


def test_the_flags_of_the_original_demos_work(lab: SimpleNamespace, crop: Path, fomm: Path, tmp_path: Path):
    out = tmp_path / "a.png"
    done = lab.headwarp(
        "animate", "--source_image", crop, "--driving_video", crop, "--result_video", out, "--relative",
        "--adapt_scale", "--best_frame", "0", "--cpu", "--model", fomm, "--no-crop",
    )  # fmt: skip
    assert done.code == 0, done
    assert out.exists()


def test_at_rest_relative_motion_moves_nothing(lab: SimpleNamespace, crop: Path, fomm: Path, tmp_path: Path):
    """The first driving frame is the rest: the source's own keypoints, whatever the driver's are."""
    outs = []
    for shift in (0, 20):
        folder = tmp_path / f"frames{shift}"
        folder.mkdir()
        save_image(folder / "0.png", np.roll(load_image(crop), shift, 1))
        save_image(folder / "1.png", np.roll(load_image(crop), shift, 0))
        out = tmp_path / f"out{shift}"
        done = lab.headwarp("animate", "-s", crop, "-d", folder, "-o", f"{out}/", "--model", fomm, "--no-crop")
        assert done.code == 0, done
        outs.append(load_image(sorted(out.iterdir())[0]))
    np.testing.assert_allclose(outs[0].astype(int), outs[1], atol=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--model", "nothing.safetensors"), "There is no model file nothing.safetensors"),
        (("--model", "{fomm}", "--strength", "0.5"), "cannot be taken apart by --strength"),
        (("--model", "{fomm}", "--region", "mouth"), "cannot be taken apart by --region"),
        (("--model", "{portrait}"), "is no safetensors file, or it is damaged"),
    ],
)
def test_models_that_do_not_fit_are_named(
    lab: SimpleNamespace, portrait: Path, driving: Path, fomm: Path, tmp_path: Path, arguments: tuple, sentence: str
):
    given = [a.format(fomm=fomm, portrait=portrait) for a in arguments]
    assert sentence in lab.refused("animate", "-s", portrait, "-d", driving, "-o", tmp_path / "a.mp4", *given)
    assert not list(tmp_path.iterdir())


def test_keypoint_models_have_no_sliders(lab: SimpleNamespace, portrait: Path, fomm: Path, tmp_path: Path):
    said = lab.refused("edit", "-s", portrait, "-o", tmp_path / "a.png", "--yaw", 10, "--model", fomm)
    assert "knows no pose or expression to set" in said
