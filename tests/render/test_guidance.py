from __future__ import annotations

import pytest
import torch

from headwarp.geom.camera import Camera
from headwarp.render import Fragments, rasterize, warp
from headwarp.render.guidance import code_image, displacement_map, nmfc_codes, smooth_codes, to_pixels

SIZE = (96, 128)


@pytest.fixture
def heads(head_like):
    """The same mesh in two poses, NDC, seen by a perspective camera."""
    vertices, faces = head_like
    camera = Camera.portrait(SIZE, field_of_view=20)
    turn = torch.tensor([[0.98, 0, 0.199], [0, 1, 0], [-0.199, 0, 0.98]])
    poses = torch.stack([vertices, vertices @ turn.T + torch.tensor([0.01, 0.02, 0.0])]) - torch.tensor([0, 0, 0.9])
    source, target = camera.ndc(poses, SIZE).split(1)
    return source, target, faces


def test_a_shifted_mesh_gives_a_constant_displacement(heads):
    source, _, faces = heads
    shift = torch.tensor([0.125, -0.25, 0.0])
    target = source + shift
    displacement = displacement_map(source, target, faces, SIZE)
    shown = rasterize(target, faces, SIZE).face_id >= 0
    # The content moved by +shift, so each target pixel looks back by -shift.
    expected = torch.where(shown[:, None], -shift[:2, None, None], 0)
    assert shown.any()
    torch.testing.assert_close(displacement, expected, rtol=0, atol=1e-6)
    in_pixels = to_pixels(displacement)[0, :, shown[0]].mT
    torch.testing.assert_close(in_pixels, torch.tensor([-8.0, 12.0]).expand_as(in_pixels), rtol=0, atol=1e-4)


def test_the_displacement_leads_to_the_same_surface_point(heads, head_like):
    """Warping what was drawn on the source mesh gives what is drawn on the target mesh, where both see the surface."""
    source, target, faces = heads
    codes = nmfc_codes(head_like[0])
    drawn_source = code_image(codes, source, faces, SIZE, perspective=True)
    drawn_target = code_image(codes, target, faces, SIZE, perspective=True)
    displacement = displacement_map(source, target, faces, SIZE, perspective=True)
    moved = warp(drawn_source, displacement)
    seen = drawn_target[:, 2:] > 0.75  # the front of the mesh, away from both silhouettes
    error = (moved - drawn_target).abs().amax(1, keepdim=True)[seen]
    still = (drawn_source - drawn_target).abs().amax(1, keepdim=True)[seen]
    assert error.median() < 0.002
    assert error.quantile(0.99) < 0.1 * still.quantile(0.99)


def test_codes_learn_through_the_drawing(heads):
    source, _, faces = heads
    codes = torch.zeros(source.shape[1], 16, requires_grad=True)
    code_image(codes, source, faces, SIZE).sum().backward()
    shown = (rasterize(source, faces, SIZE).face_id >= 0).sum()
    # Every pixel hands out weights that sum to one.
    torch.testing.assert_close(codes.grad.sum(0), shown.float().expand(16), rtol=1e-4, atol=0)


def test_nmfc_spans_the_unit_cube(head_like):
    codes = nmfc_codes(head_like[0])
    torch.testing.assert_close(codes.amin(0), torch.zeros(3))
    torch.testing.assert_close(codes.amax(0), torch.ones(3))


def test_given_fragments_are_used_and_checked(heads):
    source, target, faces = heads
    nothing = Fragments(torch.full((1, *SIZE), -1, dtype=torch.int32), torch.full((1, *SIZE), torch.inf))
    assert not displacement_map(source, target, faces, SIZE, fragments=nothing).any()
    with pytest.raises(ValueError, match="size is"):
        displacement_map(source, target, faces, (48, 64), fragments=nothing)
    with pytest.raises(ValueError, match="same mesh"):
        displacement_map(source[:, :5], target, faces, SIZE)


def test_smooth_codes_differ_little_between_neighbours(head_like):
    vertices, faces = head_like
    torch.manual_seed(0)
    codes = smooth_codes(vertices, 64)
    assert codes.mean().abs() < 0.1
    assert 0.8 < codes.var() < 1.2
    along_edges = (codes[faces[:, 0]] - codes[faces[:, 1]]).square().mean()
    anywhere = (codes - codes[torch.randperm(len(codes))]).square().mean()
    assert along_edges < anywhere / 5
