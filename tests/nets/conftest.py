"""Golden numbers of the FOMM and DaGAN networks: the files, and the formula that fills their weights and pictures."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

GOLDEN = Path(os.environ.get("HEADWARP_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


class Golden:
    """One golden file: `arrays` of the official code, `facts` about them."""

    def __init__(self, name: str) -> None:
        self.arrays = load_file(GOLDEN / f"{name}.safetensors")
        self.facts: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())

    def pictures(self, name: str) -> Tensor:
        """(B, 3, H, W) in [0, 1]."""
        return self.arrays[f"input.{name}_u8"].float() / 255

    def weights(self, net: str) -> dict[str, Tensor]:
        """The official state dict of a network whose weights are in the file."""
        return {k.removeprefix(f"weights.{net}."): v for k, v in self.arrays.items() if k.startswith(f"weights.{net}.")}

    def near(self, ours: Tensor, name: str, *, times: float = 1e-4) -> float:
        """Asserts that ours agrees to `times` its largest value; the error in those units."""
        theirs = self.arrays[name]
        assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} for {tuple(theirs.shape)}"
        error = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
        assert error <= times, f"{name} is off by {error:.2e} of its maximum"
        return error


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Opens a golden file by name; skips where the golden files are not."""
    if not GOLDEN.is_dir():
        pytest.skip("needs the golden vectors, see HEADWARP_GOLDEN")
    return Golden


@pytest.fixture(scope="session")
def official_names() -> Callable[[str], dict[str, Any]]:
    """Opens a list of official names and shapes."""
    if not GOLDEN.is_dir():
        pytest.skip("needs the golden vectors, see HEADWARP_GOLDEN")
    return lambda name: json.loads((GOLDEN / f"{name}_state_dict.json").read_text())


@contextmanager
def record(parts: Mapping[str, nn.Module]) -> Iterator[dict[str, Any]]:
    """What each module gives in the block; the last call counts."""
    seen: dict[str, Any] = {}
    hooks = [m.register_forward_hook(lambda _, __, out, name=n: seen.update({name: out})) for n, m in parts.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(scope="session")
def outputs_of() -> Callable[[Mapping[str, nn.Module]], AbstractContextManager[dict[str, Any]]]:
    """`record` above."""
    return record


def picture(tag: str, batch: int, height: int, width: int) -> Tensor:
    """(B, 3, H, W) uint8 waves and noise that follow from a name (spec/dagan.md, section 12)."""
    waves = hash_u(tag, batch * 27).reshape(batch, 3, 3, 3, 1, 1)  # fx, fy, phase of each picture, channel and k
    fx, fy, phase = waves[:, :, :, 0], waves[:, :, :, 1], waves[:, :, :, 2]
    k = np.arange(1, 4).reshape(3, 1, 1)
    x, y = (np.arange(width) + 0.5) / width, ((np.arange(height) + 0.5) / height)[:, None]
    value = 0.5 + 0.14 * np.sin(2 * np.pi * (k * (fx * x + fy * y) + phase)).sum(2)
    value += 0.06 * hash_u(f"{tag}/noise", value.size).reshape(value.shape)
    return torch.from_numpy(np.clip(np.round(255 * value), 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def golden_picture() -> Callable[[str, int, int, int], Tensor]:
    """`picture` above."""
    return picture


@pytest.fixture(scope="session")
def formula() -> Callable[..., dict[str, Tensor]]:
    """`fill` below."""
    return fill


def hash_u(name: str, count: int) -> np.ndarray:
    """(count,) numbers in (-1, 1) that follow from a name."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return (x.astype(np.float64) + 0.5) / 2**31 - 1


def fill(state: Mapping[str, Tensor], net: str, gains: Mapping[str, float]) -> dict[str, Tensor]:
    """Values for the names and shapes of an official state dict (spec/dagan.md, section 12); blur kernels stay."""
    filled = {}
    for key, like in state.items():
        name = f"{net}.{key}"
        u = hash_u(name, like.numel())
        gain = gains.get(name, 1.0)
        shape = tuple(like.shape)
        if key.endswith(("down.weight", "weight_u", "weight_v")):
            filled.setdefault(key, like)
            continue
        if key.endswith("running_mean"):
            value = 0.1 * u
        elif key.endswith("running_var"):
            value = 1 + 0.3 * u
        elif key.endswith("num_batches_tracked"):
            value = np.zeros(1)
        elif key.endswith("AttnModule.gamma"):
            value = np.full(1, 0.5)
        elif key.endswith("bias"):
            value = 0.1 * u * gain
            if key == "jacobian.bias":
                value = value + np.tile([1.0, 0.0, 0.0, 1.0], len(u) // 4)
        elif len(shape) == 1:
            value = 1 + 0.2 * u
        else:
            value = u * np.sqrt(6 / np.prod(shape[1:])) * gain
        filled[key] = torch.from_numpy(value.reshape(shape)).to(like.dtype)
        if key.endswith("weight_orig"):
            matrix = value.reshape(shape[0], -1)
            start = hash_u(name.replace("weight_orig", "weight_u"), shape[0])
            start /= np.linalg.norm(start)
            v = matrix.T @ start
            v /= np.linalg.norm(v)
            w = matrix @ v
            filled[key.replace("weight_orig", "weight_u")] = torch.from_numpy(w / np.linalg.norm(w)).float()
            filled[key.replace("weight_orig", "weight_v")] = torch.from_numpy(v).float()
    return filled


@pytest.fixture(scope="session")
def named_weights() -> Callable[..., dict[str, Tensor]]:
    """`weights_of_names` below."""
    return weights_of_names


def splitmix(seed: int, count: int) -> np.ndarray:
    """u in [0, 1) of the numbers 1 ... count: the generator of the golden files of Unsup3D and G3FA."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def weights_of_names(
    shapes: Mapping[str, tuple[int, ...]],
    tag: str,
    gain: Callable[[str], float] = lambda name: 2**0.5,
    strides: Mapping[str, int] = {},
) -> dict[str, Tensor]:
    """A state dict whose values follow from its names alone ("weights" in the golden files of Unsup3D and G3FA).

    Args:
        shapes: the official names and shapes.
        tag: of the network.
        gain: of the weights of convolutions and products, by name.
        strides: of the transposed convolutions.
    """
    state = {}
    for name, shape in shapes.items():
        v = 2 * splitmix(zlib.crc32(f"{tag}/{name}".encode()), int(np.prod(shape))) - 1
        if name.endswith("num_batches_tracked"):
            v = np.zeros(1)
        elif name.endswith("running_var"):
            v = 1 + 0.3 * v
        elif name.endswith(("running_mean", "bias")):
            v = 0.1 * v
        elif len(shape) == 1:
            v = 1 + 0.2 * v
        else:
            fan = float(np.prod(shape[1:]))
            if name in strides:
                fan = shape[0] * np.prod(shape[2:]) / strides[name] ** 2
            v = gain(name) * (3.0 / fan) ** 0.5 * v
        state[name] = torch.from_numpy(v).float().reshape(shape)
    return state
