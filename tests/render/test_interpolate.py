"""What interpolation is, its gradients, agreement of the backends, and bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwarp.render import Fragments, barycentrics, interpolate, memory, rasterize
from headwarp.render.interpolate import cpu, reference

SIZE = (24, 40)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scene(small_sphere, to_ndc):
    """Two differently turned balls in NDC, their triangles, and what is shown of them."""
    vertices, faces = small_sphere
    turn = torch.tensor([[0.6, 0, 0.8], [0, 1, 0], [-0.8, 0, 0.6]])
    ndc = to_ndc(torch.stack([vertices, 0.9 * vertices @ turn.T]))
    return ndc, faces, rasterize(ndc, faces, SIZE)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), perspective=st.booleans())
def test_weights_are_a_partition_of_unity(soup, backend, seed, perspective):
    vertices, faces = soup(seed)
    fragments = rasterize(vertices, faces, SIZE, cull=False, perspective=perspective)
    weights = barycentrics(fragments, vertices, faces, perspective=perspective, backend=backend)
    shown = fragments.face_id >= 0
    assert weights.shape == (1, 3, *SIZE)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), shown.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_position_interpolates_to_itself(scene, backend):
    """Linear attributes come back exactly: NDC x and y are those of the pixels' centres."""
    ndc, faces, fragments = scene
    image = interpolate(ndc[..., :2].contiguous(), fragments, ndc, faces, backend=backend)
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * 2 / n - 1 for n in SIZE), indexing="ij")
    shown = (fragments.face_id >= 0)[:, None].expand(-1, 2, -1, -1)
    # Snapping lets a centre lie up to 1/512 pixel outside its triangle.
    assert (image - torch.stack([x, y]))[shown].abs().max() < 2 / 512 / min(SIZE) * 2


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_perspective_interpolates_in_space(backend):
    """On a slanted plane in space, a linear function of space is found where the ray meets the plane."""
    points = torch.tensor([[-2.0, -2.0, 1.0], [-2.0, 2.0, 1.0], [2.0, -2.0, 3.0], [2.0, 2.0, 3.0]])
    ndc = torch.cat([points[:, :2] / points[:, 2:], points[:, 2:]], 1)[None]
    faces = torch.tensor([[0, 1, 2], [2, 1, 3]])
    fragments = rasterize(ndc, faces, SIZE, perspective=True)
    image = interpolate(points[None], fragments, ndc, faces, perspective=True, backend=backend)[0]
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * 2 / n - 1 for n in SIZE), indexing="ij")
    depth = 2 / (1 - 0.5 * x)  # the ray (x z, y z, z) meets z = 2 + x_space / 2
    shown = (fragments.face_id >= 0)[0]
    expected = torch.stack([x * depth, y * depth, depth])
    assert shown.sum() > 500
    torch.testing.assert_close(image[:, shown], expected[:, shown], rtol=0, atol=1e-2)
    inner = shown & (image[0].abs() < 1.9) & (image[1].abs() < 1.9)
    torch.testing.assert_close(image[:, inner], expected[:, inner], rtol=0, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 16, 19])
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("perspective", [False, True])
def test_numba_agrees_with_the_reference(scene, channels, sets, perspective):
    ndc, faces, fragments = scene
    compare("numba", random(sets, ndc.shape[1], channels), fragments, ndc, faces, perspective)


@pytest.mark.parametrize("seed", range(12))  # fixed: gradients jump where an edge happens to meet a pixel centre
def test_numba_agrees_on_triangles_partly_outside(soup, seed):
    """Without those below a few pixels, whose float32 weights have fewer digits to agree in."""
    vertices, faces = soup(seed)
    x, y, _ = vertices[0, faces].unbind(-1)
    areas = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (y[:, 1] - y[:, 0]) * (x[:, 2] - x[:, 0])
    faces = faces[areas.abs() > 0.1]
    fragments = rasterize(vertices, faces, SIZE, cull=False)
    compare("numba", random(1, vertices.shape[1], 3), fragments, vertices, faces, False)


@pytest.mark.parametrize(
    ("channels", "sets", "perspective", "deterministic"), [(3, 1, True, True), (40, 2, False, False)]
)
def test_triton_agrees_with_the_reference(scene, channels, sets, perspective, deterministic):
    ndc, faces, _ = scene
    # Mirrored, so that the backs are shown; shifted, so that no pixel centre lies on an edge, where gradients jump.
    ndc = ndc[..., [1, 0, 2]] + torch.tensor([0.013, 0.007, 0.0])
    fragments = rasterize(ndc, faces, (9, 12), cull=False)
    torch.use_deterministic_algorithms(deterministic)
    try:
        compare("triton", random(sets, ndc.shape[1], channels), fragments, ndc, faces, perspective)
    finally:
        torch.use_deterministic_algorithms(False)


def compare(backend, attributes, fragments, vertices, faces, perspective):
    """Image, gradient to the attributes and gradient to the vertices, against the reference in float64."""
    shape = (len(vertices), attributes.shape[2], *fragments.face_id.shape[1:])
    grad = random(*shape, seed=1)
    results = []
    for name, dtype in (("torch", torch.float64), (backend, torch.float32)):
        a = attributes.to(dtype, copy=True).requires_grad_()
        v = vertices.to(dtype, copy=True).requires_grad_()
        image = interpolate(a, fragments, v, faces, perspective=perspective, background=0.5, backend=name)
        assert image.dtype == dtype
        assert image.is_contiguous(memory_format=torch.channels_last)
        results.append((image.detach(), *torch.autograd.grad(image, (a, v), grad.to(dtype))))
    # Slivers have areas, and so gradients, of any size: vertices are compared relative to the largest gradient.
    for expected, got in zip(*results, strict=True):
        error = (got.double() - expected).abs().max()
        assert error <= 2e-5 * expected.abs().max() + 1e-12


@pytest.mark.parametrize("perspective", [False, True])
def test_gradients_of_the_reference(scene, perspective):
    """Against differences, away from the kinks: pixels whose centre lies clearly inside its triangle."""
    ndc, faces, fragments = scene
    weights = barycentrics(fragments, ndc, faces, perspective=perspective)
    face_id = torch.where(weights.amin(1) > 0.05, fragments.face_id, -1)[:1, ::3, ::3].contiguous()
    size = face_id.shape[1:]
    vertices = ndc[:1].double()
    centred = rasterize(vertices, faces, tuple(size))
    inside = barycentrics(centred, vertices, faces, perspective=perspective, backend="torch").amin(1) > 0.05
    face_id = torch.where(inside, centred.face_id, -1)
    used = faces[face_id[face_id >= 0].long().unique()[:6]].unique()
    attributes = random(1, vertices.shape[1], 2).double()

    def run(moved: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        v = vertices.index_copy(1, used, moved)
        a = attributes.index_copy(1, used, values)
        return reference.interpolate(a, face_id, v, faces, perspective=perspective, background=0.0)

    inputs = [t[:, used].clone().requires_grad_() for t in (vertices, attributes)]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-7, atol=1e-6)


def test_a_vertex_can_be_found_again_by_descent(scene):
    """The gradient to the vertices is good for something: a shifted ball slides back over its own colours."""
    ndc, faces, fragments = scene
    ndc, fragments = ndc[:1], Fragments(fragments.face_id[:1], fragments.depth[:1])
    colours = ndc[..., :2] * 3
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * 2 / n - 1 for n in SIZE), indexing="ij")
    wanted = 3 * torch.stack([x, y])[None]
    shown = (fragments.face_id >= 0)[:, None]
    shift = torch.tensor([0.03, -0.02, 0.0], requires_grad=True)
    optimiser = torch.optim.Adam([shift], lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        image = interpolate(colours.contiguous(), fragments, ndc + shift, faces)
        ((image - wanted) * shown).square().sum().backward()
        optimiser.step()
    assert shift[:2].abs().max() < 2e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_the_number_of_threads_changes_nothing(head_like, to_ndc, batch):
    vertices, faces = head_like
    ndc = to_ndc(vertices * 8).repeat(batch, 1, 1).contiguous()
    fragments = rasterize(ndc, faces, (70, 90))
    attributes, grad = random(1, ndc.shape[1], 5).numpy(), random(batch, 70, 90, 5, seed=1).numpy()
    mesh = fragments.face_id.numpy(), ndc.numpy(), faces.int().numpy()
    results = []
    for threads in (1, 2, 5):
        image = np.empty((batch, 70, 90, 5), np.float32)
        cpu.interpolate(attributes, *mesh, image, threads=threads)
        results.append((image, *cpu.interpolate_backward(grad, attributes, *mesh, threads=threads)))
    for result in results[1:]:
        for got, expected in zip(result, results[0], strict=True):
            assert np.array_equal(got, expected)


def test_writing_past_the_caches_changes_nothing(monkeypatch, scene):
    ndc, faces, fragments = scene
    attributes = random(2, ndc.shape[1], 16)
    expected = interpolate(attributes, fragments, ndc, faces, background=3)
    monkeypatch.setattr(memory, "_PAST", 0)
    assert memory.goes_past(expected.permute(0, 2, 3, 1).numpy())
    assert torch.equal(interpolate(attributes, fragments, ndc, faces, background=3), expected)


def test_writing_into_a_given_tensor(scene):
    ndc, faces, fragments = scene
    attributes = random(2, ndc.shape[1], 5)
    out = torch.empty(2, 5, *SIZE).contiguous(memory_format=torch.channels_last)
    for backend in ("torch", "numba"):
        assert interpolate(attributes, fragments, ndc, faces, out=out.fill_(9), backend=backend) is out
        torch.testing.assert_close(out, interpolate(attributes, fragments, ndc, faces))
    with pytest.raises(ValueError, match="channels_last"):
        interpolate(attributes, fragments, ndc, faces, out=torch.empty(2, 5, *SIZE))
    with pytest.raises(ValueError, match="no_grad"):
        interpolate(attributes.requires_grad_(), fragments, ndc, faces, out=out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attributes_of_16_bits(scene, dtype):
    ndc, faces, fragments = scene
    attributes = random(1, ndc.shape[1], 4)
    image = interpolate(attributes.to(dtype), fragments, ndc, faces)
    assert image.dtype == dtype
    torch.testing.assert_close(image.float(), interpolate(attributes, fragments, ndc, faces), rtol=0, atol=0.02)


def test_wrong_arguments_are_named(scene):
    ndc, faces, fragments = scene
    good = random(2, ndc.shape[1], 4)
    for attributes, words in ((good[0], "attributes must be"), (good[:, 1:], "attributes must be")):
        with pytest.raises(ValueError, match=words):
            interpolate(attributes, fragments, ndc, faces)
    with pytest.raises(ValueError, match="show 2 meshes"):
        interpolate(good[:1], fragments, ndc[:1], faces)
    # Another mesh's fragments must not read beyond this one's memory.
    for wrong in (faces[:3], torch.full_like(faces, 10_000), torch.full_like(faces, -1)):
        with pytest.raises(ValueError, match="not there"):
            interpolate(good, fragments, ndc, wrong)
        with pytest.raises(ValueError, match="not there"):
            barycentrics(fragments, ndc, wrong)


def test_flat_and_turned_slivers_stay_finite():
    """Snapping can give a triangle an area that its exact corners do not have."""
    corners = list(itertools.product([-0.5, 0.0, 0.5], [-1e-4, 0.0, 1e-4]))
    vertices = torch.tensor([[[x, y, 1.0 + x] for x, y in corners]])
    faces = torch.tensor(list(itertools.combinations(range(9), 3)))
    face_id = torch.arange(84, dtype=torch.int32).view(1, 7, 12)  # as if each pixel showed one of them
    fragments = Fragments(face_id, face_id.float())
    for backend in ("torch", "numba"):
        v = vertices.clone().requires_grad_()
        image = interpolate(random(1, 9, 8), fragments, v, faces, perspective=True, backend=backend)
        assert image.isfinite().all()
        assert torch.autograd.grad(image.sum(), v)[0].isfinite().all()
