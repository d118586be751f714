"""Head files: what a head model consists of, and our `.safetensors` file of it.

A head has FLAME's layout (Li et al., "Learning a model of facial shape and expression from 4D scans", 2017). Keys of a
`.safetensors` head file (N vertices, F triangles, J joints = 5: root, neck, jaw, left eye, right eye; S shape, E
expression, L points):

    v_template (N,3)  faces (F,3) int  shapedirs (N,3,S+E), shape first  posedirs (N,3,9(J-1))  J_regressor (J,N)
    weights (N,J) parents (J,) int, -1 for the root

    optional
    eyelid_dirs (N,3,2)                   metres at coefficient 1 = closed; left, right
    face_part (F,) uint8                  index into the part names
    uv (U,2), uv_faces (F,3) int          texture coordinates, v upwards, and their triangles
    arkit_expression (52,E)  arkit_jaw (52,3)  arkit_eyes (52,6)  arkit_eyelids (52,2)
                                          per unit weight of each ARKit unit, in the order of `arkit.NAMES`; rotations
                                          in radians
    shape_controls (K,S)                  shape coefficients at value 1 of each named control (values run from -1 to 1)
    static68_triangle (68,) int, static68_barycentric (68,3)          iBUG order, contour (0-16) first
    dynamic_triangle (79,17) int, dynamic_barycentric (79,17,3)       contour by yaw, rows as in `landmarks.Contour`
    mediapipe_triangle (L,) int, mediapipe_barycentric (L,3), mediapipe_index (L,) int   index into MediaPipe's 478
    points;
                                          without mediapipe_index the points are 0 ... L-1
    metadata (strings)
    format = "headwarp-head-1", name, n_shape, n_expression (decimal), and as JSON lists: part_names,
    shape_control_names

Floating arrays may be float16 or wider on disk; every one is float32 in memory. Further metadata (licence,
provenance) is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FORMAT = "headwarp-head-1"
JOINTS = ("root", "neck", "jaw", "left_eye", "right_eye")
_EMBEDDINGS = ("static68", "mediapipe")


@dataclass
class HeadData:
    """The arrays of one head model, checked; keys and units as in the module docstring."""

    name: str
    v_template: Floats
    faces: Ints
    shapedirs: Floats
    posedirs: Floats
    J_regressor: Floats
    weights: Floats
    parents: Ints
    n_shape: int
    n_expression: int
    eyelid_dirs: Floats | None = None
    face_part: NDArray[np.uint8] | None = None
    part_names: tuple[str, ...] = ()
    uv: Floats | None = None
    uv_faces: Ints | None = None
    arkit_expression: Floats | None = None
    arkit_jaw: Floats | None = None
    arkit_eyes: Floats | None = None
    arkit_eyelids: Floats | None = None
    shape_controls: Floats | None = None
    shape_control_names: tuple[str, ...] = ()
    static68_triangle: Ints | None = None
    static68_barycentric: Floats | None = None
    dynamic_triangle: Ints | None = None
    dynamic_barycentric: Floats | None = None
    mediapipe_triangle: Ints | None = None
    mediapipe_barycentric: Floats | None = None
    mediapipe_index: Ints | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, np.ndarray):
                continue
            if value.dtype.kind == "f":
                value = np.ascontiguousarray(value, np.float32)
            elif item.name == "face_part":
                value = np.ascontiguousarray(value, np.uint8)
            else:
                value = np.ascontiguousarray(value, np.int64)
            setattr(self, item.name, value)
        self._check()

    def sha256(self) -> str:
        """Hash of everything that parameters depend on, the same for every container (.pkl, .npz, .safetensors).

        Names, landmark embeddings, maps and texture coordinates are left out: tracks stay valid when those improve.
        """
        digest = hashlib.sha256(f"{self.n_shape} {self.n_expression}".encode())
        for key in (
            *("v_template", "faces", "shapedirs", "posedirs", "J_regressor", "weights", "parents", "eyelid_dirs"),
        ):
            value = getattr(self, key)
            if value is not None:
                digest.update(f"{key} {value.shape}".encode())
                digest.update(value.tobytes())
        return digest.hexdigest()

    def _check(self) -> None:
        n, f, j = len(self.v_template), len(self.faces), len(self.parents)
        s, e = self.n_shape, self.n_expression
        wanted: dict[str, tuple[int | None, ...]] = {
            "v_template": (n, 3),
            "faces": (f, 3),
            "shapedirs": (n, 3, s + e),
            "posedirs": (n, 3, 9 * (j - 1)),
            "J_regressor": (j, n),
            "weights": (n, j),
            "parents": (j,),
            "eyelid_dirs": (n, 3, 2),
            "face_part": (f,),
            "uv": (None, 2),
            "uv_faces": (f, 3),
            "arkit_expression": (52, e),
            "arkit_jaw": (52, 3),
            "arkit_eyes": (52, 6),
            "arkit_eyelids": (52, 2),
            "shape_controls": (len(self.shape_control_names), s),
            "static68_triangle": (68,),
            "static68_barycentric": (68, 3),
            "dynamic_triangle": (None, 17),
            "dynamic_barycentric": (None, 17, 3),
            "mediapipe_triangle": (None,),
            "mediapipe_barycentric": (None, 3),
            "mediapipe_index": (None,),
        }
        for key, shape in wanted.items():
            value = getattr(self, key)
            if value is None:
                continue
            if value.ndim != len(shape) or any(
                w is not None and w != g for w, g in zip(shape, value.shape, strict=True)
            ):
                text = ", ".join("any" if w is None else str(w) for w in shape)
                raise ValueError(f"head '{self.name}': {key} must have shape ({text}), got {value.shape}.")
        if f and not 0 <= int(self.faces.min()) <= int(self.faces.max()) < n:
            raise ValueError(
                f"head '{self.name}': faces must index the {n} vertices, got {self.faces.min()} to {self.faces.max()}."
            )
        if j < 1 or self.parents[0] != -1 or any(not 0 <= p < i for i, p in enumerate(self.parents[1:], 1)):
            raise ValueError(
                f"head '{self.name}': parents must be -1 for joint 0 and point to earlier joints, got {self.parents}."
            )
        for key in ("static68_triangle", "dynamic_triangle", "mediapipe_triangle"):
            value = getattr(self, key)
            if value is not None and value.size and not 0 <= int(value.min()) <= int(value.max()) < f:
                raise ValueError(
                    f"head '{self.name}': {key} must index the {f} triangles, got {value.min()} to {value.max()}."
                )
        if (
            self.part_names
            and self.face_part is not None
            and int(self.face_part.max(initial=0)) >= len(self.part_names)
        ):
            raise ValueError(f"head '{self.name}': face_part has a part beyond its {len(self.part_names)} part_names.")


_ARRAYS = tuple(
    f.name
    for f in fields(HeadData)
    if f.name not in {"name", "n_shape", "n_expression", "metadata"} and "names" not in f.name
)
_REQUIRED = ("v_template", "faces", "shapedirs", "posedirs", "J_regressor", "weights", "parents")


def read_safetensors(path: Path) -> HeadData:
    """Head of a `.safetensors` file with the keys of the module docstring."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}.") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no head file: its metadata must say format = {FORMAT}, got {metadata.get('format')!r}."
        )
    missing = [key for key in _REQUIRED if key not in arrays]
    if missing:
        raise ValueError(f"{path} is no complete head file: it lacks {', '.join(missing)}.")
    known: dict[str, Any] = {key: value for key, value in arrays.items() if key in _ARRAYS}
    for key in ("part_names", "shape_control_names"):
        known[key] = tuple(json.loads(metadata.pop(key, "[]")))
    name, n_shape, n_expression = (metadata.pop(key, "") for key in ("name", "n_shape", "n_expression"))
    return HeadData(name=name, n_shape=int(n_shape), n_expression=int(n_expression), metadata=metadata, **known)


def write_safetensors(path: Path | str, head: HeadData, *, half: tuple[str, ...] = ("shapedirs", "posedirs")) -> None:
    """Write a head file (atomically; the same head gives the same bytes).

    Args:
        half: floating arrays stored as float16 (about 4 micrometres of rounding per unit coefficient in metres-sized
        shapedirs).
    """
    from safetensors.numpy import save

    path = Path(path)
    arrays: dict[str, NDArray[Any]] = {}
    for key in _ARRAYS:
        value = getattr(head, key)
        if value is None:
            continue
        if key in half:
            value = value.astype(np.float16)
        elif value.dtype == np.int64:
            value = value.astype(np.int32)
        arrays[key] = np.ascontiguousarray(value)
    metadata = {
        **head.metadata,
        "format": FORMAT,
        "name": head.name,
        "n_shape": str(head.n_shape),
        "n_expression": str(head.n_expression),
        "part_names": json.dumps(list(head.part_names)),
        "shape_control_names": json.dumps(list(head.shape_control_names)),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(_sorted_header(save(arrays, metadata=metadata)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sorted_header(blob: bytes) -> bytes:
    """The same safetensors bytes with the metadata sorted: the library writes it in the order of a hash map, new in
    every run."""
    length = int.from_bytes(blob[:8], "little")
    header: Mapping[str, Any] = json.loads(blob[8 : 8 + length])
    text = json.dumps(
        {key: header[key] for key in sorted(header, key=lambda k: (k != "__metadata__", k))}, separators=(",", ":")
    )
    ordered = json.loads(text)
    ordered["__metadata__"] = dict(sorted(ordered["__metadata__"].items()))
    encoded = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + blob[8 + length :]
