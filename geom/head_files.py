"""Head files: what a head model consists of, FLAME's files, and our `.safetensors` file.

Every head has FLAME's layout (Li et al., "Learning a model of facial shape and expression from 4D scans", 2017).
N vertices, F triangles, J joints = 5 (root, neck, jaw, left eye, right eye), S shape, E expression, L points.

Our `.safetensors` file:

    v_template (N,3)         metres
    faces (F,3) int          corners counter-clockwise seen from outside
    shapedirs (N,3,S+E)      metres per standard deviation; shape first
    posedirs (N,3,9(J-1))    metres per unit of R_j - I (row-major), joints 1 ... J-1
    J_regressor (J,N)
    weights (N,J)            of skinning, rows sum to 1
    parents (J,) int         -1 for the root
  optional
    eyelid_dirs (N,3,2)      metres at 1 = closed; left, right
    face_part (F,) uint8     index into part_names
    vertex_mask (N,K) uint8  255 where a vertex belongs to the region region_names[k], less at its edge
    uv (U,2), uv_faces (F,3) texture coordinates in [0,1], v upwards, and their triangles
    arkit_expression (52,E), arkit_jaw (52,3), arkit_eyes (52,6), arkit_eyelids (52,2)
                             per unit weight of each unit of `arkit.NAMES`; rotations in radians
    shape_controls (K,S)     shape coefficients at value 1 of each named control; values run from -1 to 1
    static68_triangle (68,) int, static68_barycentric (68,3)       iBUG order, contour 0-16 first
    dynamic_triangle (79,17) int, dynamic_barycentric (79,17,3)    contour by yaw, see `landmarks.Contour`
    mediapipe_triangle (L,) int, mediapipe_barycentric (L,3), mediapipe_index (L,) int
                             which of MediaPipe's 478 points; without mediapipe_index 0 ... L-1
  metadata (strings)
    format = "headwarp-head-1", name, n_shape, n_expression (decimal); part_names, region_names and
    shape_control_names (JSON lists)

posedirs may have fewer columns, with posedirs_columns (C,) int to say which of the 9(J-1); the others are zero.
Floating arrays may be float16 or wider on disk; all are float32 in memory. Other metadata (licence, source) is kept.
Part names in use: `PART_NAMES`.

FLAME's files (.pkl, or the same keys in .npz or .safetensors): v_template, f, shapedirs, posedirs, J_regressor,
weights, kintree_table; other keys are ignored. The official shapedirs have 400 columns, 0-299 shape and 300-399
expression. Beside the model, these files are picked up under their official names: landmark_embedding.npy (DECA),
mediapipe_landmark_embedding.npz (EMOCA, SMIRK), FLAME_masks.pkl, head_template.obj (texture coordinates).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .safe_pickle import read_npy, read_pickle

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

FORMAT = "headwarp-head-1"

PART_NAMES = ("head", "mouth", "neck", "socket", "teeth_upper", "teeth_lower", "tongue", "eye_left", "eye_right")
"""Names of parts of a head; a model has some of them (FLAME: head, neck, eye_left, eye_right)."""

FLAME_HELP = (
    "FLAME needs a licence: register at https://flame.is.tue.mpg.de, download FLAME 2023 Open, FLAME 2023 or "
    "FLAME 2020, and put the .pkl into ~/.cache/headwarp or set HEADWARP_FLAME to it."
)
_FLAME_NAMES = ("flame2023_Open", "flame2023", "FLAME2023/flame2023", "generic_model", "FLAME2020/generic_model")
_FLAME_COLUMNS = (400, 300)
"""Columns of the official shapedirs, and how many of them are shape."""


_REQUIRED = ("v_template", "faces", "shapedirs", "posedirs", "J_regressor", "weights", "parents")
_OPTIONAL = (
    *("eyelid_dirs", "face_part", "vertex_mask", "uv", "uv_faces"),
    *("arkit_expression", "arkit_jaw", "arkit_eyes", "arkit_eyelids", "shape_controls"),
    *("static68_triangle", "static68_barycentric", "dynamic_triangle", "dynamic_barycentric"),
    *("mediapipe_triangle", "mediapipe_barycentric", "mediapipe_index"),
)
_ARRAYS = _REQUIRED + _OPTIONAL
_TRIANGLES = ("static68_triangle", "dynamic_triangle", "mediapipe_triangle")
_INTEGERS = {"faces", "parents", "uv_faces", "mediapipe_index", *_TRIANGLES}


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
    vertex_mask: Floats | None = None
    region_names: tuple[str, ...] = ()
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
        for key in _ARRAYS:
            value = getattr(self, key)
            if value is not None:
                kind = np.uint8 if key == "face_part" else np.int64 if key in _INTEGERS else np.float32
                try:
                    setattr(self, key, np.ascontiguousarray(value, kind))
                except (TypeError, ValueError):
                    raise ValueError(f"head '{self.name}': {key} must be an array of numbers.") from None
        self._check()

    def sha256(self) -> str:
        """Hash of everything that parameters depend on, the same for every container (.pkl, .npz, .safetensors).

        Names, landmark embeddings, maps and texture coordinates are left out: tracks stay valid when those improve.
        """
        digest = hashlib.sha256(f"{self.n_shape} {self.n_expression}".encode())
        for key in (*_REQUIRED, "eyelid_dirs"):
            value = getattr(self, key)
            if value is not None:
                digest.update(f"{key} {value.shape}".encode())
                digest.update(value + 0)  # makes -0.0 into 0.0; packed files do not keep the sign of zeros
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
            "vertex_mask": (n, len(self.region_names)),
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
        for key in _TRIANGLES:
            value = getattr(self, key)
            if value is not None and value.size and not 0 <= int(value.min()) <= int(value.max()) < f:
                raise ValueError(
                    f"head '{self.name}': {key} must index the {f} triangles, got {value.min()} to {value.max()}."
                )
        if self.face_part is not None and int(self.face_part.max(initial=0)) >= len(self.part_names):
            raise ValueError(f"head '{self.name}': face_part has a part beyond its {len(self.part_names)} part_names.")


def read_head(path: Path | str, *, n_shape: int | None = None, n_expression: int | None = None) -> HeadData:
    """Head model of a file: .safetensors, .npz or FLAME's .pkl.

    Args:
        path: the file.
        n_shape, n_expression: how many coefficients to keep, the first ones of each kind; None keeps all. For a file
            that is neither official FLAME (400 columns) nor says its own n_shape, both are needed, to tell shape
            from expression.

    Raises:
        FileNotFoundError: no such file. ValueError: not a head model, or not enough coefficients.
        UnsafePickleError (a ValueError): a pickle that names more than arrays.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"Head model not found at {path}.")
    suffix = path.suffix.lower()
    metadata: dict[str, str] = {}
    if suffix == ".pkl":
        content = read_pickle(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no head model: a dictionary was expected, got {type(content).__name__}.")
        arrays = {str(key): value for key, value in content.items()}
    elif suffix == ".npz":
        arrays = _read_npz(path)
    elif suffix == ".safetensors":
        arrays, metadata = _read_safetensors(path)
    else:
        raise ValueError(f"{path}: head models are .safetensors, .npz or .pkl files, got '{path.suffix}'.")
    data = _from_arrays(path, arrays, metadata, n_shape, n_expression)
    return data if metadata.get("format") == FORMAT else _with_neighbours(data, path.parent)


def find_flame() -> Path | None:
    """The user's FLAME model: the file that HEADWARP_FLAME names, or one under its usual name in that folder or in
    ~/.cache/headwarp; None when there is none."""
    named = os.environ.get("HEADWARP_FLAME")
    place = Path(named).expanduser() if named else Path.home() / ".cache" / "headwarp"
    if place.is_file():
        return place
    candidates = (place / f"{name}{suffix}" for name in _FLAME_NAMES for suffix in (".pkl", ".npz", ".safetensors"))
    return next((path for path in candidates if path.is_file()), None)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no readable .npz head model ({error}). Arrays of objects are refused; save plain arrays."
        ) from None


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}).") from None
    try:
        for key in ("part_names", "region_names", "shape_control_names"):
            if key in metadata:
                arrays[key] = tuple(json.loads(metadata.pop(key)))
        for key in ("n_shape", "n_expression"):
            if key in metadata:
                arrays[key] = int(metadata.pop(key))
    except ValueError as error:
        raise ValueError(f"{path}: the metadata '{key}' cannot be read ({error}).") from None
    if "vertex_mask" in arrays and arrays["vertex_mask"].dtype == np.uint8:
        arrays["vertex_mask"] = arrays["vertex_mask"].astype(np.float32) / 255
    if {"posedirs", "posedirs_columns", "parents"} <= arrays.keys():
        packed, columns = arrays["posedirs"], arrays.pop("posedirs_columns")
        full = np.zeros((*packed.shape[:2], 9 * (len(arrays["parents"]) - 1)), packed.dtype)
        try:
            full[..., columns] = packed
        except (IndexError, ValueError) as error:
            raise ValueError(f"{path}: posedirs and posedirs_columns do not fit ({error}).") from None
        arrays["posedirs"] = full
    return arrays, metadata


def _from_arrays(
    path: Path, arrays: dict[str, Any], metadata: dict[str, str], n_shape: int | None, n_expression: int | None
) -> HeadData:
    """Head model of named arrays in our naming or FLAME's."""
    arrays = dict(arrays)
    for theirs, ours in (("f", "faces"), ("kintree_table", "parents")):
        if theirs in arrays:
            arrays.setdefault(ours, arrays[theirs])
    missing = [key for key in _REQUIRED if key not in arrays]
    if missing:
        raise ValueError(f"{path} is no head model in FLAME's layout: it lacks {', '.join(missing)}.")
    values: dict[str, Any] = {key: arrays[key] for key in _ARRAYS if key in arrays}
    for key in ("part_names", "region_names", "shape_control_names"):
        values[key] = tuple(str(name) for name in arrays.get(key, ()))
    parents = np.atleast_2d(np.asarray(values["parents"]))[0].astype(np.int64)  # kintree_table has the ids in row 1
    parents[0] = -1  # FLAME writes the unsigned -1, 4294967295
    values["parents"] = parents
    shapedirs = np.asarray(values["shapedirs"])
    columns = shapedirs.shape[-1]
    if "n_shape" in arrays:
        own_shape = int(arrays["n_shape"])
    elif columns == _FLAME_COLUMNS[0]:
        own_shape = _FLAME_COLUMNS[1]
    elif n_shape is not None and n_expression is not None and n_shape + n_expression == columns:
        own_shape = n_shape
    else:
        raise ValueError(
            f"{path}: its shapedirs have {columns} columns, and the file does not say how many are shape; give n_shape "
            f"and n_expression that add up to {columns}."
        )
    name = metadata.pop("name", path.stem)
    data = HeadData(name=name, n_shape=own_shape, n_expression=columns - own_shape, metadata=metadata, **values)
    return _trim(data, n_shape, n_expression)


def _trim(data: HeadData, n_shape: int | None, n_expression: int | None) -> HeadData:
    """The head with the first `n_shape` and `n_expression` coefficients; the maps to ARKit and the controls become
    approximations where they used the others."""
    n_shape = data.n_shape if n_shape is None else n_shape
    n_expression = data.n_expression if n_expression is None else n_expression
    for kind, wanted, there in (("n_shape", n_shape, data.n_shape), ("n_expression", n_expression, data.n_expression)):
        if not 0 <= wanted <= there:
            raise ValueError(f"head '{data.name}': {kind} must be from 0 to {there}, got {wanted}.")
    if (n_shape, n_expression) == (data.n_shape, data.n_expression):
        return data
    columns = np.r_[:n_shape, data.n_shape : data.n_shape + n_expression]
    return dataclasses.replace(
        data,
        n_shape=n_shape,
        n_expression=n_expression,
        shapedirs=data.shapedirs[..., columns],
        shape_controls=None if data.shape_controls is None else data.shape_controls[:, :n_shape],
        arkit_expression=None if data.arkit_expression is None else data.arkit_expression[:, :n_expression],
    )


def _with_neighbours(data: HeadData, folder: Path) -> HeadData:
    """The head with landmarks, parts and texture coordinates from the official files beside the model, if they fit."""
    extra: dict[str, Any] = {}
    if (folder / "landmark_embedding.npy").is_file() and data.static68_triangle is None:
        extra |= read_landmark_embedding(folder / "landmark_embedding.npy")
    if (folder / "mediapipe_landmark_embedding.npz").is_file() and data.mediapipe_triangle is None:
        extra |= _read_mediapipe_embedding(folder / "mediapipe_landmark_embedding.npz")
    if (folder / "FLAME_masks.pkl").is_file() and data.face_part is None:
        extra |= _read_masks(folder / "FLAME_masks.pkl", data.faces, len(data.v_template))
    if (folder / "head_template.obj").is_file() and data.uv is None:
        extra |= _read_uv(folder / "head_template.obj", data.faces)
    return dataclasses.replace(data, **extra) if extra else data


def read_landmark_embedding(path: Path | str) -> dict[str, NDArray[Any]]:
    """DECA's landmark_embedding.npy as the keys static68_*, dynamic_* of `HeadData` (a pickle, read safely)."""
    content = read_npy(path)
    keys = ("full_lmk_faces_idx", "full_lmk_bary_coords", "dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords")
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise ValueError(f"{path} is no landmark embedding of FLAME: it must hold {', '.join(keys)}.")
    triangle, barycentric, dynamic_triangle, dynamic_barycentric = (np.asarray(content[key]) for key in keys)
    return {
        "static68_triangle": triangle.reshape(-1),
        "static68_barycentric": barycentric.reshape(-1, 3),
        "dynamic_triangle": dynamic_triangle,
        "dynamic_barycentric": dynamic_barycentric,
    }


def _read_mediapipe_embedding(path: Path) -> dict[str, NDArray[Any]]:
    arrays = _read_npz(path)
    names = {"lmk_face_idx": "triangle", "lmk_b_coords": "barycentric", "landmark_indices": "index"}
    if any(key not in arrays for key in names):
        raise ValueError(f"{path} is no MediaPipe embedding of FLAME: it must hold {', '.join(names)}.")
    return {f"mediapipe_{ours}": arrays[theirs] for theirs, ours in names.items()}


def _read_masks(path: Path, faces: Ints, count: int) -> dict[str, Any]:
    """face_part from FLAME_masks.pkl (region name -> vertex ids): a triangle is of a region when its corners are."""
    masks = read_pickle(path)
    regions = {"neck": "neck", "eye_left": "left_eyeball", "eye_right": "right_eyeball"}
    if not isinstance(masks, dict) or any(region not in masks for region in regions.values()):
        raise ValueError(f"{path} is no FLAME mask file: it must hold {', '.join(regions.values())}.")
    part = np.full(len(faces), PART_NAMES.index("head"), np.uint8)
    for name, region in regions.items():
        inside = np.zeros(count, bool)
        inside[np.asarray(masks[region], np.int64)] = True
        part[inside[faces].all(1)] = PART_NAMES.index(name)
    return {"face_part": part, "part_names": PART_NAMES}


def _read_uv(path: Path, faces: Ints) -> dict[str, Any]:
    """uv and uv_faces from the `vt` and `f v/vt` lines of FLAME's template, if its triangles are the model's."""
    uv, corners = [], []
    for line in path.read_text().splitlines():
        kind, *rest = line.split() or [""]
        if kind == "vt":
            uv.append([float(rest[0]), float(rest[1])])
        elif kind == "f":
            corners.append([[int(index) - 1 for index in corner.split("/")[:2]] for corner in rest])
    table = np.asarray(corners)
    if table.shape != (len(faces), 3, 2) or not np.array_equal(table[..., 0], faces):
        return {}
    return {"uv": np.asarray(uv), "uv_faces": table[..., 1]}


def write_safetensors(path: Path | str, head: HeadData, *, half: tuple[str, ...] = ("shapedirs", "posedirs")) -> None:
    """Write a head file (atomically; the same head gives the same bytes).

    Args:
        half: floating arrays stored as float16; rounds the open head's shapedirs by at most 4 micrometres.
    """
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
        if key == "posedirs":
            arrays["posedirs_columns"] = np.flatnonzero(value.any((0, 1))).astype(np.int32)
            value = value[..., arrays["posedirs_columns"]]
        elif key == "vertex_mask":
            value = np.round(255 * np.clip(value, 0, 1)).astype(np.uint8)
        arrays[key] = np.ascontiguousarray(value)
    metadata = {
        **head.metadata,
        "format": FORMAT,
        "name": head.name,
        "n_shape": str(head.n_shape),
        "n_expression": str(head.n_expression),
        "part_names": json.dumps(list(head.part_names)),
        "region_names": json.dumps(list(head.region_names)),
        "shape_control_names": json.dumps(list(head.shape_control_names)),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(_sorted_header(save(arrays, metadata=metadata)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sorted_header(blob: bytes) -> bytes:
    """The same safetensors bytes with a sorted header; the library orders the metadata anew in every run."""
    length = int.from_bytes(blob[:8], "little")
    header: dict[str, Any] = json.loads(blob[8 : 8 + length])
    ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **dict(sorted(header.items()))}
    encoded = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + blob[8 + length :]
