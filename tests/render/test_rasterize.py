"""The rules first, then agreement of the backends, then bad input."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwarp.render import Fragments, rasterize
from headwarp.render.rasterize import cpu

SIZE = (48, 80)


def rotation(seed: int) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))
    return q * q.det()


def grid(step: float, size: tuple[int, int], offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A flat mesh of squares of `step` pixels, covering the whole picture, corners at `offset` + whole steps."""
    height, width = size
    xs = torch.arange(offset - 2 * step, width + 2 * step, step)
    ys = torch.arange(offset - 2 * step, height + 2 * step, step)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    vertices = torch.stack([2 * x / width - 1, 2 * y / height - 1, torch.ones_like(x)], -1).view(1, -1, 3)
    index = torch.arange(len(ys) * len(xs)).view(len(ys), len(xs))
    a, b, c, d = (t.flatten() for t in (index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]))
    return vertices, torch.cat([torch.stack([a, c, b], 1), torch.stack([b, c, d], 1)])


def pixel_centres(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * 2 / n - 1 for n in size), indexing="ij")
    return x, y


def same(a: Fragments, b: Fragments) -> bool:
    return torch.equal(a.face_id, b.face_id) and torch.equal(a.depth, b.depth)


@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
def test_a_front_face_covers_the_pixels_inside_it(backend):
    # Counter-clockwise on screen: upper left, lower left, upper right; legs of 4 pixels in a picture of 8 x 8.
    vertices = torch.tensor([[[-1.0, -1.0, 2.0], [-1.0, 0.0, 2.0], [0.0, -1.0, 2.0]]])
    fragments = rasterize(vertices, torch.tensor([[0, 1, 2]]), (8, 8), backend=backend)
    expected = torch.full((8, 8), -1, dtype=torch.int32)
    for row in range(4):
        expected[row, : 3 - row] = 0  # the hypotenuse passes through centres and is a right edge: not drawn
    assert torch.equal(fragments.face_id[0], expected)
    assert (fragments.depth[0][expected == 0] - 2).abs().max() < 1e-6
    assert fragments.depth[0][expected < 0].isposinf().all()


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_culling_keeps_what_turns_counter_clockwise(backend):
    vertices = torch.tensor([[[-1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]])
    for corners, shown in (([0, 1, 2], True), ([0, 2, 1], False)):
        faces = torch.tensor([corners])
        assert (rasterize(vertices, faces, SIZE, backend=backend).face_id >= 0).any() == shown
        assert (rasterize(vertices, faces, SIZE, cull=False, backend=backend).face_id >= 0).any()


@pytest.mark.parametrize("seed", range(6))
def test_a_closed_mesh_has_no_holes_at_any_rotation(sphere, to_ndc, seed):
    vertices, faces = sphere
    ellipsoid = vertices @ rotation(seed).T * torch.tensor([1.0, 0.8, 0.5])
    drawn = rasterize(to_ndc(ellipsoid)[None], faces, (70, 90)).face_id[0] >= 0
    assert drawn.sum() > 1000
    # A convex outline: along every row and column the covered pixels are one run.
    for lines in (drawn, drawn.T):
        starts = (lines[:, 1:] & ~lines[:, :-1]).sum(1) + lines[:, 0]
        assert (starts <= 1).all()


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.25])
@pytest.mark.parametrize("step", [1, 2, 4, 3.3])
def test_shared_edges_draw_every_pixel_exactly_once(step, offset):
    """Vertices on pixel centres, on corners and anywhere; the triangles drawn one by one and counted."""
    size = (13, 17)
    vertices, faces = grid(step, size, offset)
    assert (rasterize(vertices, faces, size).face_id >= 0).all()
    alone = vertices[0][faces].view(-1, 3, 3)  # every triangle a mesh of its own
    shown = rasterize(alone, torch.tensor([[0, 1, 2]]), size).face_id >= 0
    assert (shown.sum(0) == 1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 2.7, 6.0]))
def test_jittered_patches_have_no_holes(seed, step):
    size = (40, 31)
    vertices, faces = grid(step, size, 0.0)
    jitter = torch.rand(vertices.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    vertices = vertices + jitter * torch.tensor([0.9 * step / size[1], 0.9 * step / size[0], 0.0])
    assert (rasterize(vertices, faces, size).face_id >= 0).all()


@pytest.mark.parametrize("perspective", [False, True])
def test_the_depth_of_a_plane(perspective):
    """z is linear over the screen when orthographic, 1 / z with perspective."""
    corners = torch.tensor([[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]])
    linear = 2 + corners @ torch.tensor([0.5, 0.25])
    vertices = torch.cat([corners, (1 / linear if perspective else linear)[:, None]], 1)[None]
    depth = rasterize(vertices, torch.tensor([[0, 1, 2], [2, 1, 3]]), SIZE, perspective=perspective).depth[0]
    x, y = pixel_centres(SIZE)
    # Corners snap to 1/512 pixel: that times the slope.
    torch.testing.assert_close(1 / depth if perspective else depth, 2 + 0.5 * x + 0.25 * y, rtol=0, atol=5e-5)


def test_the_depth_of_a_sphere(head_like, to_ndc):
    vertices, faces = head_like
    vertices = vertices / vertices.norm(dim=1, keepdim=True)  # 50 rings, 100 segments
    depth = rasterize(to_ndc(vertices)[None], faces, (120, 160)).depth[0]
    x, y = pixel_centres((120, 160))
    square = 1 - (x**2 + y**2) / 0.8**2
    inner = square > 0.1
    # Facets lie up to 1 - cos(pi / 50) = 0.002 below the sphere, seen at up to 72 degrees.
    assert (depth - (2 - square.clamp_min(0).sqrt()))[inner].abs().max() < 0.008


def test_the_nearest_face_wins_and_ties_go_to_the_lowest():
    square = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
    layers = [torch.cat([square, torch.full((3, 1), z)], 1) for z in (3.0, 1.5, 1.5, 2.0)]
    vertices = torch.cat(layers)[None]
    faces = torch.arange(12).view(4, 3)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        for backend in ("torch", "numba"):
            shown = rasterize(vertices, faces[order], SIZE, backend=backend).face_id.unique()
            nearest = min(order.index(1), order.index(2))
            assert shown.tolist() == [-1, nearest]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), cull=st.booleans(), perspective=st.booleans())
def test_numba_agrees_with_the_reference_bit_for_bit(soup, seed, cull, perspective):
    """Triangles of all sizes (far larger than 64 pixels too), partly outside, of equal depth."""
    vertices, faces = soup(seed)
    options = {"cull": cull, "perspective": perspective}
    assert same(
        rasterize(vertices, faces, SIZE, backend="numba", **options),
        rasterize(vertices, faces, SIZE, backend="torch", **options),
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 8), (9, 300), (64, 64)])
def test_agreement_at_odd_sizes(soup, size):
    vertices, faces = soup(1)
    vertices = vertices.repeat(3, 1, 1) + torch.tensor([0.0, 0.1, 0.2])[:, None, None]
    assert same(rasterize(vertices, faces, size, backend="numba"), rasterize(vertices, faces, size, backend="torch"))


BAD = {
    "nan": (0, float("nan")),
    "infinite": (1, float("inf")),
    "minus infinite": (0, -float("inf")),
    "huge": (0, 1e20),
    "far away": (1, -3e5),
    "at the camera": (2, 0.0),
    "behind the camera": (2, -1.0),
    "nan depth": (2, float("nan")),
    "infinite depth": (2, float("inf")),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_bad_vertex_takes_only_its_own_triangles_with_it(small_sphere, to_ndc, kind, backend):
    vertices, faces = small_sphere
    good = to_ndc(vertices)[None]
    bad = good.clone()
    axis, value = BAD[kind]
    bad[0, 11, axis] = value
    kept = ~(faces == 11).any(1)
    for perspective in (False, True):
        options = {"cull": False, "perspective": perspective, "backend": backend}
        shown = rasterize(bad, faces, SIZE, **options)
        expected = rasterize(good, faces[kept], SIZE, **options)
        ids = torch.where(expected.face_id < 0, -1, kept.nonzero().squeeze(1)[expected.face_id.clamp_min(0)])
        assert torch.equal(shown.face_id, ids.int())
        assert torch.equal(shown.depth, expected.depth)


def test_triangles_without_area_draw_nothing():
    vertices = torch.tensor([[[-1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [-1.0, -1.0, 1.0]]])
    faces = torch.tensor([[0, 1, 2], [0, 0, 0], [0, 3, 1], [1, 1, 2]])
    for backend in ("torch", "numba"):
        assert (rasterize(vertices, faces, SIZE, cull=False, backend=backend).face_id == -1).all()


@pytest.mark.parametrize("batch", [0, 2])
def test_nothing_to_draw(batch):
    for faces in (torch.zeros(0, 3, dtype=torch.int64), torch.tensor([[0, 1, 2]])):
        for backend in ("torch", "numba"):
            shown = rasterize(torch.zeros(batch, 3, 3), faces, SIZE, backend=backend)
            assert shown.face_id.shape == shown.depth.shape == (batch, *SIZE)
            assert (shown.face_id == -1).all()


@pytest.mark.parametrize("batch", [1, 3])
def test_the_number_of_threads_changes_nothing(head_like, to_ndc, batch):
    vertices, faces = head_like
    ndc = to_ndc(vertices * 8).repeat(batch, 1, 1).numpy()
    results = []
    for threads in (1, 2, 5):
        face_id, depth = np.empty((batch, 70, 90), np.int32), np.empty((batch, 70, 90), np.float32)
        cpu.rasterize(ndc, faces.int().numpy(), face_id, depth, threads=threads)
        results.append((face_id, depth))
    for face_id, depth in results[1:]:
        assert np.array_equal(face_id, results[0][0])
        assert np.array_equal(depth, results[0][1])


def test_any_memory_order_and_integer_type(small_sphere, to_ndc):
    vertices, faces = small_sphere
    ndc = to_ndc(vertices)[None]
    expected = rasterize(ndc, faces, SIZE)
    fortran = torch.from_numpy(np.asfortranarray(faces.int().numpy()))
    strided = torch.stack([ndc, ndc], -1)[..., 0]
    assert same(rasterize(strided, fortran, SIZE), expected)
    assert same(rasterize(ndc.double(), faces, SIZE), expected)
    ids, depth = np.empty((1, *SIZE), np.int32), np.empty((1, *SIZE), np.float32)
    with pytest.raises(TypeError):
        cpu.rasterize(ndc.double().numpy(), faces.int().numpy(), ids, depth)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vertices": torch.zeros(4, 3)}, "vertices must be"),
        ({"vertices": torch.zeros(1, 4, 3, dtype=torch.int64)}, "vertices must be"),
        ({"faces": torch.zeros(2, 4, dtype=torch.int64)}, "faces must be"),
        ({"faces": torch.zeros(2, 3)}, "faces must be"),
        ({"faces": torch.tensor([[0, 1, 4]])}, "from 0 to 3"),
        ({"faces": torch.tensor([[0, 1, -1]])}, "from 0 to 3"),
        ({"size": (0, 5)}, "size must be"),
        ({"backend": "cuda"}, "backend must be"),
        ({"faces": torch.zeros(2, 3, dtype=torch.int64, device="meta")}, "move one"),
    ],
)
def test_wrong_arguments_are_named(change, words):
    arguments = {"vertices": torch.rand(1, 4, 3) + 1, "faces": torch.tensor([[0, 1, 2]]), "size": (8, 8), **change}
    with pytest.raises(ValueError, match=words):
        rasterize(**arguments)


@pytest.mark.parametrize(("seed", "size", "perspective"), [(5, (12, 16), False), (4, (80, 100), True)])
def test_triton_agrees_bit_for_bit(soup, seed, size, perspective):
    """The second picture is large enough for triangles beyond 64 pixels, which take another path."""
    vertices, faces = soup(seed, 20)
    vertices[0, 4, 0], vertices[0, 9, 2], vertices[0, 13, 1] = float("nan"), -1.0, 1e20
    options = {"cull": False, "perspective": perspective}
    shown = rasterize(vertices, faces, size, backend="triton", **options)
    assert same(shown, rasterize(vertices, faces, size, backend="numba", **options))
    assert len(shown.face_id.unique()) > 4


@pytest.mark.skipif(importlib.util.find_spec("pytorch3d") is None, reason="needs pytorch3d")
@pytest.mark.parametrize("perspective", [False, True])
@pytest.mark.parametrize("cull", [False, True])
def test_pytorch3d_shows_almost_the_same(head_like, to_ndc, perspective, cull):
    vertices, faces = head_like
    ndc = to_ndc(torch.stack([vertices @ rotation(s).T * 8 for s in (0, 1)]))
    options = {"cull": cull, "perspective": perspective}
    ours, theirs = (rasterize(ndc, faces, (96, 128), backend=b, **options) for b in ("auto", "pytorch3d"))
    assert (ours.face_id != theirs.face_id).float().mean() < 0.003
    both = (ours.face_id == theirs.face_id) & (ours.face_id >= 0)
    assert (ours.depth - theirs.depth)[both].abs().max() < 1e-2
