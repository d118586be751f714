"""The kernels as operators of torch: schema, shapes without data, autograd, compiled programs."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch.library import opcheck

from headwarp.render import backend, interpolate, rasterize, threads, warp


@pytest.fixture
def scene(small_sphere, to_ndc):
    vertices, faces = small_sphere
    ndc = to_ndc(torch.stack([vertices, 0.9 * vertices]))
    return ndc, faces.int(), torch.randn(1, ndc.shape[1], 5, generator=torch.Generator().manual_seed(0))


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def test_rasterize_is_a_proper_operator(scene):
    ndc, faces, _ = scene
    opcheck(torch.ops.headwarp.rasterize, (ndc, faces, 12, 20, True, False, "numba"), test_utils=CHECKS)


def test_interpolate_is_a_proper_operator(scene):
    ndc, faces, attributes = scene
    face_id = rasterize(ndc, faces, (12, 20)).face_id
    arguments = (attributes.requires_grad_(), face_id, ndc.requires_grad_(), faces, True, 0.5, "numba")
    opcheck(torch.ops.headwarp.interpolate, arguments, test_utils=CHECKS)
    grad = torch.rand(2, 12, 20, 5)
    mesh = (attributes.detach(), face_id, ndc.detach(), faces)
    for asked in ((True, True), (True, False), (False, True)):
        arguments = (grad, *mesh, True, *asked, "numba")
        opcheck(torch.ops.headwarp.interpolate_backward, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("last", [False, True])
def test_warp_is_a_proper_operator(last):
    order = torch.channels_last if last else torch.contiguous_format
    features = torch.rand(2, 9, 6, 8).contiguous(memory_format=order).requires_grad_()
    field = torch.rand(2, 2, 3, 4, requires_grad=True)
    axes = [1.0, 0.0, 4.0, 1.0, 0.0, 3.0]
    opcheck(torch.ops.headwarp.warp, (features, field, axes, True, "numba"), test_utils=CHECKS)
    arguments = (torch.rand(2, 9, 6, 8), features.detach(), field.detach(), axes, True, "numba")
    opcheck(torch.ops.headwarp.warp_backward, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_program_with_all_of_them_compiles_whole(scene):
    """torch.compile without graph breaks, forward and backward, gives what eager gives."""
    ndc, faces, attributes = scene
    picture = torch.rand(2, 5, 12, 20)

    def program(vertices, values):
        fragments = rasterize(vertices, faces, (12, 20))
        drawn = interpolate(values, fragments, vertices, faces)
        return warp(picture * drawn, drawn[:, :2] * 0.1)

    results = []
    for function in (program, torch.compile(program, fullgraph=True, backend="aot_eager")):
        v, a = ndc.clone().requires_grad_(), attributes.clone().requires_grad_()
        image = function(v, a)
        results.append((image, *torch.autograd.grad(image.square().sum(), (v, a))))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_no_gradient_where_none_is_asked_for(scene):
    ndc, faces, attributes = scene
    fragments = rasterize(ndc.requires_grad_(), faces, (12, 20))
    assert not fragments.depth.requires_grad
    image = interpolate(attributes.requires_grad_(), fragments, ndc.detach(), faces)
    assert torch.autograd.grad(image.sum(), attributes)[0].any()


def test_backends_are_chosen_by_argument_environment_and_device(monkeypatch):
    cpu = torch.device("cpu")
    assert backend.choose("f", "auto", cpu) == "numba"
    assert backend.choose("f", "auto", torch.device("cuda")) == "triton"
    assert backend.choose("f", "auto", torch.device("meta")) == "torch"
    monkeypatch.setenv("HEADWARP_BACKEND", "torch")
    assert backend.choose("f", "auto", cpu) == "torch"
    assert backend.choose("f", "numba", cpu) == "numba"
    monkeypatch.setenv("HEADWARP_BACKEND", "fast")
    with pytest.raises(ValueError, match="'auto' or one of torch, numba"):
        backend.choose("f", "auto", cpu)
    with pytest.raises(ValueError, match="works on CPU tensors"):
        backend.choose("f", "numba", torch.device("cuda"))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="works on CUDA tensors"):
        backend.choose("f", "triton", cpu)


def test_a_missing_backend_is_replaced_aloud_once(monkeypatch):
    monkeypatch.setattr(backend, "_INSTALLED", dict.fromkeys(backend.BACKENDS, False))
    backend._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="plain torch"):
        assert backend.choose("f", "auto", torch.device("cpu")) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.choose("f", "auto", torch.device("cpu")) == "torch"
    with pytest.raises(ValueError, match="not installed"):
        backend.choose("f", "pytorch3d", torch.device("cpu"))


def test_pieces_of_work_are_all_done_and_errors_come_back():
    done: list[int] = []
    threads.run(done.append, [(k,) for k in range(50)], 4)
    assert sorted(done) == list(range(50))

    def fail(k: int) -> None:
        if k == 7:
            raise RuntimeError("seven")

    for count in (1, 3):
        with pytest.raises(RuntimeError, match="seven"):
            threads.run(fail, [(k,) for k in range(20)], count)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kernels_work_after_a_fork():
    """A process pool's children come without our helper threads."""
    program = """
import os, torch
from headwarp.render import warp
torch.set_num_threads(2)
image, field = torch.rand(1, 8, 16, 16), torch.zeros(1, 2, 16, 16)
warp(image, field)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(warp(image, field), image) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)
