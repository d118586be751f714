"""The Triton kernels compiled for real GPUs, without one: what the interpreter cannot see."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="Triton compiles on Linux")


FEW = (
    "scatter small",
    "scatter large",
    "interpolate 16",
    "interpolate backward 16",
    "warp 64 bf16",
    "warp backward 256 fp32",
)


@pytest.fixture(
    scope="module",
    params=[(80, FEW), (90, FEW), *(pytest.param((gpu, ()), marks=pytest.mark.slow) for gpu in (80, 90))],
    ids=["80", "90", "80-all", "90-all"],
)
def report(request, tmp_path_factory):
    program = Path(__file__).with_name("compile_kernels.py")
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}
    capability, names = request.param
    command = [sys.executable, str(program), str(capability), *names]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return capability, json.loads(answer.stdout)


def test_nothing_spills_and_registers_leave_room(report):
    for name, kernel in report[1].items():
        # The one that gives the same bits every time sums in registers and may be slow.
        limit = 168 if "by faces" in name else 128
        assert kernel["registers"] <= limit, name
        assert kernel["spilled"] <= 8, name


def test_the_z_buffer_is_lowered_in_one_instruction(report):
    assert all(report[1][f"scatter {size}"]["min64"] for size in ("small", "large"))


def test_depths_are_rounded_as_on_the_cpu(report):
    for name in ("snap", "scatter small", "scatter large", "resolve"):
        assert name not in report[1] or report[1][name]["fused"] == 0, name


def test_channels_move_in_vectors_of_16_bytes(report):
    capability, kernels = report
    forward = {name: k for name, k in kernels.items() if "backward" not in name and name[-2:] in ("16", "32")}
    assert len(forward) >= 2
    for name, kernel in forward.items():
        assert kernel["wide_load"] >= 3, name
        assert kernel["wide_store"] >= 1, name
    if capability >= 90:
        assert kernels["interpolate backward 16"]["wide_add"] >= 3
        assert kernels["warp backward 256 fp32"]["wide_add"] >= 4
