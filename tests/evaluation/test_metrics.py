"""Every formula against another way to the same number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from headwarp.evaluation import metrics
from headwarp.evaluation.arcface import MESH_POINTS, PLACES, IResNet, aligned
from headwarp.evaluation.inception import FEATURES, Inception
from headwarp.evaluation.lpips import Lpips


def two_pictures(size=(48, 40), seed=0):
    """(2, 3, H, W) smooth pictures and noisy versions."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(2, 3, 6, 5, generator=generator)
    first = torch.nn.functional.interpolate(small, size, mode="bilinear").clamp(0, 1)
    return first, (first + 0.1 * torch.randn(2, 3, *size, generator=generator)).clamp(0, 1)


def plain_ssim(a, b):
    """Of (H, W) channels: the mean of luminance x contrast, and of contrast where the window of 11 pixels fits."""

    def blur(x):
        return gaussian_filter(x, 1.5, truncate=3.4, mode="mirror")  # 3.4 * 1.5 rounds to a radius of 5

    a, b = a.astype(np.float64), b.astype(np.float64)
    m, n = blur(a), blur(b)
    v, w, c = blur(a * a) - m * m, blur(b * b) - n * n, blur(a * b) - m * n
    contrast = (2 * c + 0.03**2) / (v + w + 0.03**2)
    return ((2 * m * n + 0.01**2) / (m * m + n * n + 0.01**2) * contrast).mean(), contrast[5:-5, 5:-5].mean()


def test_l1_and_psnr_on_known_differences():
    black = torch.zeros(2, 3, 4, 5)
    other = torch.stack([torch.full((3, 4, 5), 0.5), torch.zeros(3, 4, 5)])
    torch.testing.assert_close(metrics.l1(other, black), torch.tensor([0.5, 0.0]))
    assert metrics.psnr(other, black).tolist() == pytest.approx([10 * math.log10(4), metrics.PSNR_LIMIT])


def test_ssim_agrees_with_gaussian_filters():
    a, b = two_pictures()
    ours = metrics.ssim(a, b)
    for k in range(2):
        theirs = np.mean([plain_ssim(a[k, c].numpy(), b[k, c].numpy())[0] for c in range(3)])
        assert float(ours[k]) == pytest.approx(theirs, abs=1e-4)
    torch.testing.assert_close(metrics.ssim(a, a), torch.ones(2))


def test_ms_ssim_agrees_with_the_product_over_scales():
    a, b = two_pictures((192, 180))
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for k, ours in enumerate(metrics.ms_ssim(a, b).tolist()):
        x, y = a[k : k + 1], b[k : k + 1]
        total = 1.0
        for scale, weight in enumerate(weights):
            channels = [plain_ssim(x[0, c].numpy(), y[0, c].numpy()) for c in range(3)]
            whole, contrast = np.mean(channels, 0)
            total *= (whole if scale == 4 else contrast) ** weight
            x, y = (torch.nn.functional.avg_pool2d(z, 2) for z in (x, y))
        assert ours == pytest.approx(total, abs=1e-4)
    small, _ = two_pictures()
    assert metrics.ms_ssim(small, small).isnan().all()


@pytest.mark.parametrize("counts", [(40, 30), (5, 7), (30, 5)])
def test_frechet_agrees_with_the_matrix_root(counts):
    random = np.random.default_rng(1)
    mixing = random.normal(size=(12, 12))
    x = random.normal(size=(counts[0], 12)) @ mixing
    y = random.normal(size=(counts[1], 12)) + 0.3
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.trace(np.real(sqrtm(s @ t)))
    wanted = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(s) + np.trace(t) - 2 * root
    assert metrics.frechet(x, y) == pytest.approx(wanted, rel=1e-3)  # the matrix root is the inexact one
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-8)


def test_frechet_of_shifted_and_widened_normals():
    random = np.random.default_rng(2)
    x = random.normal(size=(500, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # exactly N(0, I)
    y = 3 * x + [1.0, 2.0, 2.0]
    assert metrics.frechet(x, y) == pytest.approx(9 + 3 * (3 - 1) ** 2)


def test_poses_turn_the_short_way_round():
    ours, truth = np.array([179.0, 0, 3]), np.array([-179.0, 0, -3])
    assert metrics.pose_distance(ours, truth) == pytest.approx(8 / 3)
    assert metrics.pose_error(ours, truth) == pytest.approx(math.sqrt((4 + 36) / 3))


def test_keypoints_embeddings_and_units():
    assert metrics.keypoint_distance(np.array([[3.0, 4.0]]), np.zeros((1, 2))) == 3.5
    a, b = np.array([2.0, 0.0]), np.array([0.0, 5.0])
    assert metrics.cosine(a, b) == 0
    assert metrics.identity_distance(a, b) == pytest.approx(math.sqrt(2))
    assert metrics.unit_agreement(np.array([0.6, 0.1, 0.9, 0.5]), np.array([0.9, 0.2, 0.1, 0.4])) == 0.75


def test_jitter_is_blind_to_steady_motion_and_measures_shaking():
    time = np.arange(20.0)
    steady = np.stack([3 * time, -time], -1)[:, None].repeat(5, 1)
    eye = np.full(20, 50.0)
    assert metrics.jitter(steady, eye) == pytest.approx(0, abs=1e-9)
    shaking = steady + 0.5 * (-1.0) ** time[:, None, None] * [1, 0]
    assert metrics.jitter(shaking, eye) == pytest.approx(100 * 4 * 0.5 / 50)  # p -2p + p of +-h is 4 h
    shaking[7] = np.nan  # a frame without a face
    assert metrics.jitter(shaking, eye) == pytest.approx(4)
    assert math.isnan(metrics.jitter(steady[:2], eye[:2]))


def test_bootstrap_draws_clips_not_pairs():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 30)
    values = random.normal(size=20)[groups] + 0.01 * random.normal(size=600)
    low, high = metrics.bootstrap(values, groups)
    alone_low, alone_high = metrics.bootstrap(values, np.arange(600))
    assert low < values.mean() < high
    assert high - low > 3 * (alone_high - alone_low)
    error = values.reshape(20, 30).mean(1).std() / math.sqrt(20)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)
    assert metrics.bootstrap(values, groups) == (low, high)


@pytest.mark.parametrize("trunk", ["alex", "vgg"])
def test_lpips_agrees_with_sums_by_hand(trunk):
    torch.manual_seed(0)
    model = Lpips(trunk)
    for weight in model.weights:
        torch.nn.init.uniform_(weight)
    a, b = two_pictures((40, 36))
    with torch.no_grad():
        ours = model(a, b)
        total = np.zeros(2)
        x, y = (((2 * z - 1) - model.shift) / model.scale for z in (a, b))
        for number, layer in enumerate(model.features):
            x, y = layer(x), layer(y)
            if number in model.taps:
                weight = model.weights[model.taps.index(number)].numpy()
                f, g = x.numpy().astype(np.float64), y.numpy().astype(np.float64)
                f, g = (z / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-10) for z in (f, g))
                total += ((f - g) ** 2 * weight[:, None, None]).sum(1).mean((1, 2))
    np.testing.assert_allclose(ours.numpy(), total, rtol=1e-4)
    assert model(a, a).abs().max() == 0


def test_networks_have_the_shapes_of_the_published_weights():
    inception = Inception()
    assert sum(p.numel() for p in inception.parameters()) == 21_785_568  # torchvision's, without classifiers
    names = inception.state_dict()
    assert names["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    with torch.no_grad():
        assert inception.eval()(torch.rand(1, 3, 32, 40)).shape == (1, FEATURES)
    counts = {"alex": 2_469_696, "vgg": 14_714_688}  # torchvision's feature parts
    for trunk, count in counts.items():
        assert sum(p.numel() for p in Lpips(trunk).features.parameters()) == count


def test_lpips_reads_torchvisions_names_and_the_calibration(tmp_path):
    state = {f"features.{k}": v for k, v in Lpips("alex").features.state_dict().items()}
    torch.save({**state, "classifier.6.bias": torch.zeros(1000)}, tmp_path / "alexnet-owt-test.pth")
    model = Lpips.from_files("alex", tmp_path / "alexnet-owt-test.pth")
    assert all(float(w.min()) >= 0 and float(w.std()) > 0 for w in model.weights)  # the learned calibration
    torch.testing.assert_close(model.features[0].weight, state["features.0.weight"])


def test_arcface_is_read_from_its_own_names(tmp_path):
    small = IResNet((1, 2, 1, 1))
    torch.save(small.state_dict(), tmp_path / "backbone.pth")
    model = IResNet.from_official(tmp_path / "backbone.pth")
    faces = torch.rand(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(model(faces), small.eval()(faces))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no backbone of insightface"):
        IResNet.from_official(tmp_path / "other.pth")


def test_alignment_brings_the_five_points_to_their_places():
    # A face turned by 20 degrees, 1.7 times as large; each place marked by a dot.
    turn = 1.7 * np.array([[math.cos(0.35), -math.sin(0.35)], [math.sin(0.35), math.cos(0.35)]])
    points = PLACES @ turn.T + [60, 20]
    picture = np.zeros((300, 320, 3), np.uint8)
    grid = np.stack(np.meshgrid(np.arange(320), np.arange(300)), -1)
    for x, y in points:
        picture[np.linalg.norm(grid - [x, y], axis=-1) < 4] = 255
    landmarks = np.zeros((478, 3), np.float32)
    landmarks[list(MESH_POINTS), :2] = points + 0.5
    face = aligned(picture, landmarks)
    for x, y in PLACES:
        near = face[round(y) - 4 : round(y) + 5, round(x) - 4 : round(x) + 5, 0].astype(float)
        weights = near / near.sum()
        offset = np.arange(-4, 5)
        centre = np.array([(weights.sum(0) * offset).sum() + round(x), (weights.sum(1) * offset).sum() + round(y)])
        assert np.abs(centre - [x, y]).max() < 0.3
