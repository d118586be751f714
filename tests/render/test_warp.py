"""What a warp is, against `F.grid_sample`; its gradients, agreement of the backends, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headwarp.render import memory, sample, warp
from headwarp.render.memory import goes_past
from headwarp.render.warp import cpu
from headwarp.render.warp.reference import displacement_axis

BACKENDS = ["torch", "numba", "triton"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("size", [(6, 10), (1, 4), (5, 1), (1, 1)])
def test_zero_displacement_is_exactly_the_identity(backend, padding, size):
    image = random(2, 9, *size)
    for field in (size, (1, 1)):
        moved = warp(image, torch.zeros(2, 2, *field), padding=padding, backend=backend)
        assert torch.equal(moved, image)
        assert moved.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_displacement_says_where_a_pixel_comes_from(backend):
    """x right, y down, 2 = the whole picture: here 3 pixels from the right and 2 from above, exactly."""
    image = random(1, 3, 24, 40)
    displacement = torch.tensor([3 * 2 / 40, -2 * 2 / 24]).view(1, 2, 1, 1).expand(1, 2, 24, 40)
    moved = warp(image, displacement, padding="zeros", backend=backend)
    torch.testing.assert_close(moved[:, :, 2:, :-3], image[:, :, :-2, 3:], rtol=0, atol=1e-5)
    assert not moved[:, :, :2].any()
    assert not moved[:, :, :, -3:].any()
    edge = warp(image, displacement, backend=backend)
    torch.testing.assert_close(edge[:, :, 2:, -3:], image[:, :, :-2, -1:].expand(-1, -1, -1, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("field", [(24, 40), (12, 20), (7, 11)])
def test_grids_are_those_of_grid_sample(backend, padding, align_corners, field):
    """The published models' grids, resized as they do it when they are coarser."""
    image, grid = random(2, 5, 24, 40), random(2, *field, 2, seed=1) * 0.7
    ours = sample(image, grid, align_corners=align_corners, padding=padding, backend=backend)
    full = F.interpolate(grid.permute(0, 3, 1, 2), (24, 40), mode="bilinear").permute(0, 2, 3, 1)
    theirs = F.grid_sample(image, full, "bilinear", padding, align_corners)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_the_models_identity_grid_is_not_the_identity():
    """Corner-aligned grids sampled with align_corners=False, as DaGAN and G3FA do: the border is half black."""
    line = torch.linspace(-1, 1, 64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None]
    ones = torch.ones(1, 1, 64, 64)
    moved = sample(ones, grid)[0, 0]
    torch.testing.assert_close(moved[[0, 0, 32], [0, 32, 32]], torch.tensor([0.25, 0.5, 1.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(sample(ones, grid, align_corners=True), ones, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backend", ["numba", "triton"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("channels", [3, 11, 48])
@pytest.mark.parametrize("field", [(11, 9), (6, 5)])
def test_kernels_agree_with_the_reference(backend, padding, channels, field):
    compare(backend, random(2, channels, 11, 9), random(2, 2, *field, seed=1) * 0.4, padding, 2e-5)


@pytest.mark.parametrize("backend", ["numba", "triton"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("pixels", [0, 3])
def test_gradients_agree_at_whole_pixels(backend, padding, pixels):
    """Where training of a displacement begins: at zero. Sizes are powers of two, so that the places are exact."""
    steps = torch.randint(-pixels, pixels + 1, (2, 2, 4, 8), generator=torch.Generator().manual_seed(1))
    compare(backend, random(2, 3, 4, 8), steps * torch.tensor([2 / 8, 2 / 4]).view(1, 2, 1, 1), padding, 2e-5)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("size", [(1, 6), (6, 1), (1, 1), (2, 2)])
def test_pictures_that_are_a_pixel_long(padding, size):
    compare("numba", random(1, 16, *size), random(1, 2, *size, seed=1), padding, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 8, 20])
def test_features_of_16_bits_keep_exact_coordinates(dtype, channels):
    """Errors are those of rounding features and result; a coordinate in 16 bits would be half a pixel off here."""
    features = random(2, channels, 9, 520).cumsum(-1).div(20).to(dtype)
    error = 4 * torch.finfo(dtype).eps
    compare("numba", features, random(2, 2, 9, 520, seed=1) * 0.2, "border", error)


def compare(backend, features, field, padding, tolerance):
    grad = random(*features.shape, seed=2).to(features.dtype)
    results = []
    for name in ("torch", backend):
        f, d = features.clone().requires_grad_(), field.clone().requires_grad_()
        image = warp(f, d, padding=padding, backend=name)
        assert image.dtype == features.dtype
        results.append((image.detach(), *torch.autograd.grad(image, (f, d), grad)))
    for expected, got in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        assert (got - expected).abs().max() <= tolerance * expected.abs().max() + 1e-12


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_gradients_of_the_reference(padding):
    """Places are a quarter pixel off the pixel grid, where bilinear interpolation has its kinks."""
    features = random(1, 2, 5, 7).double().requires_grad_()
    pixels = torch.randint(-4, 5, (1, 2, 5, 7), generator=torch.Generator().manual_seed(3)) + 0.25
    field = (pixels * torch.tensor([2 / 7, 2 / 5]).view(1, 2, 1, 1)).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, d: warp(f, d, padding=padding, backend="torch"), (features, field), eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_places_far_outside_and_nan(backend, padding):
    image = random(1, 8, 4, 4)
    displacement = torch.zeros(1, 2, 4, 4)
    displacement[0, 0, 0] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30])
    displacement[0, 1, 2, 1] = float("nan")
    moved = warp(image, displacement, padding=padding, backend=backend)
    assert moved.isfinite().all()
    assert torch.equal(moved[:, :, 1], image[:, :, 1])
    if padding == "zeros":
        assert not moved[:, :, 0].any()
        assert not moved[:, :, 2, 1].any()
    else:
        assert torch.equal(moved[0, :, 0, 1], image[0, :, 0, 3])
        assert torch.equal(moved[0, :, 0, 2], image[0, :, 0, 0])
    f, d = image.clone().requires_grad_(), displacement.clone().requires_grad_()
    gradients = torch.autograd.grad(warp(f, d, padding=padding, backend=backend).sum(), (f, d))
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_writing_one_half_of_a_concatenation(backend):
    image, displacement = random(2, 16, 6, 7), random(2, 2, 3, 4, seed=1) * 0.3
    both = torch.full((2, 24, 6, 7), 7.0).contiguous(memory_format=torch.channels_last)
    half = both[:, 8:]
    assert warp(image, displacement, out=half, backend=backend) is half
    torch.testing.assert_close(both[:, 8:], warp(image, displacement, backend="torch"), rtol=0, atol=1e-5)
    assert (both[:, :8] == 7).all()
    plain = torch.empty(2, 16, 6, 7)
    torch.testing.assert_close(warp(image, displacement, out=plain, backend=backend), half)


def test_any_memory_order(soup):
    features = random(2, 24, 9, 12)
    field = random(2, 2, 9, 12, seed=1) * 0.2
    expected = warp(features, field)
    last = torch.channels_last
    for f, d in (
        (features.contiguous(memory_format=last), field.contiguous(memory_format=last)),
        (torch.cat([features, features], 1).contiguous(memory_format=last)[:, 24:], field),
        (features.transpose(2, 3).contiguous().transpose(2, 3), torch.stack([field, field], -1)[..., 0]),
        (features.expand(2, -1, -1, -1), field.flip(-1).flip(-1)),
    ):
        assert torch.equal(warp(f, d), expected)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("channels", [3, 24])
def test_the_number_of_threads_changes_nothing(monkeypatch, batch, channels):
    """Rough fields too, where every band of rows touches all of the features."""
    monkeypatch.setattr(cpu, "_SHARE", 1 << 8)  # as if this were much
    size = (37, 21)
    axes = displacement_axis(size[1]), displacement_axis(size[0])
    features, grad = random(batch, *size, channels).numpy(), random(batch, *size, channels, seed=1).numpy()
    for scale in (0.02, 1.0):
        field = (random(batch, *size, 2, seed=2) * scale).numpy()
        results = []
        for threads in (1, 2, 5):
            image = np.empty_like(features)
            cpu.warp(features, field, image, threads=threads)
            gradients = cpu.warp_backward(grad, features, field, zeros=True, axes=axes, threads=threads)
            results.append((image, *gradients))
        for result in results[1:]:
            for got, expected in zip(result, results[0], strict=True):
                assert np.array_equal(got, expected)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("scale", [0.02, 1.0, 6.0])
def test_bands_of_rows_add_up(monkeypatch, padding, batch, scale):
    """Gradients of pictures that are cut into bands, whose rows nothing else has set to 0. Beyond the picture (scale 6)
    some rows are touched by no band."""
    monkeypatch.setattr(cpu, "_SHARE", 1 << 8)
    compare("numba", random(batch, 24, 37, 21), random(batch, 2, 37, 21, seed=1) * scale, padding, 2e-5)
    upwards = torch.full((batch, 2, 37, 21), -1.0)
    compare("numba", random(batch, 24, 37, 21), upwards, padding, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [16, 20, 40])
def test_writing_past_the_caches_changes_nothing(monkeypatch, dtype, channels):
    features, displacement = random(2, channels, 9, 12).to(dtype), random(2, 2, 5, 6, seed=1) * 0.3
    both = torch.empty(2, 9, 12, 2 * channels, dtype=dtype).permute(0, 3, 1, 2)
    expected = warp(features, displacement)
    chosen = []
    monkeypatch.setattr(cpu, "goes_past", lambda image: chosen.append(goes_past(image)) or chosen[-1])
    monkeypatch.setattr(memory, "_PAST", 0)
    for out in (torch.empty_like(expected), both[:, :channels], both[:, channels:]):
        out.fill_(7)
        assert torch.equal(warp(features, displacement, out=out), expected)
    assert any(chosen) == (2 * channels * dtype.itemsize % 64 == 0)  # else pixels begin within lines of memory


@pytest.mark.parametrize("shape", [(1, 0, 4, 4), (2, 3, 0, 4), (0, 3, 4, 4)])
def test_nothing_is_warped_to_nothing(shape):
    features = torch.zeros(shape, requires_grad=True)
    displacement = torch.zeros(shape[0], 2, *shape[2:], requires_grad=True)
    moved = warp(features, displacement)
    assert moved.shape == shape
    gradients = torch.autograd.grad(moved.sum(), (features, displacement))
    assert [g.shape for g in gradients] == [features.shape, displacement.shape]
    assert not gradients[1].any()


def test_kernels_take_no_arrays_that_do_not_fit():
    features, field = np.zeros((2, 4, 4, 8), np.float32), np.zeros((2, 4, 4, 2), np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        cpu.warp(features, field[:1], features.copy())
    with pytest.raises(ValueError, match="do not fit"):
        cpu.warp(features, field, features[:1].copy())
    far = np.lib.stride_tricks.as_strided(features, (1, 4, 2, 8), (0, 2**32, 32, 4))
    with pytest.raises(ValueError, match=r"2\^31"):
        cpu.warp(far, field[:1, :, :2], np.zeros((1, 4, 2, 8), np.float32))


@pytest.mark.parametrize(
    ("features", "field", "options", "words"),
    [
        ((1, 3, 8, 8), (1, 2, 0, 3), {}, "says nothing"),
        ((3, 8, 8), (1, 2, 8, 8), {}, "features must be"),
        ((1, 3, 8, 8), (1, 8, 8, 2), {}, "displacement must be"),
        ((1, 3, 8, 8), (2, 2, 8, 8), {}, "with B = 1"),
        ((1, 3, 8, 8), (1, 2, 8, 8), {"padding": "reflection"}, "'border' or 'zeros'"),
        ((1, 3, 8, 8), (1, 2, 8, 8), {"backend": "pytorch3d"}, "backend must be"),
        ((1, 3, 8, 8), (1, 2, 8, 8), {"out": torch.empty(1, 3, 8, 9)}, "out must be"),
    ],
)
def test_wrong_arguments_are_named(features, field, options, words):
    with pytest.raises(ValueError, match=words):
        warp(torch.zeros(features), torch.zeros(field), **options)


def test_a_grid_has_its_own_words():
    with pytest.raises(ValueError, match=r"grid must be \(B, h, w, 2\)"):
        sample(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 8, 8))
