"""An animated GLB (binary glTF 2.0): the head, morph targets that play the track, and the camera; opens in Blender.

    node "head"  (rotation and translation over time)
      mesh: the first frame's face at rest + sum_k weight_k(time) target_k
    node "camera"  at the origin, looking along -z

The targets motion_00 ... are the principal directions of the head's motion in its own frame (skin, jaw, eyes, lids
together), as many as are needed for `TOLERANCE` and at most `TARGETS`. For a head with an ARKit map 52 more follow,
named jawOpen and so on, at weight 0: sliders to change the performance with. glTF has the axes of this package: y up,
z out of the face, metres.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...geom import arkit
from ...geom.camera import Camera
from ...geom.head import HeadModel, HeadParams
from ...geom.rotation import axis_angle_to_matrix
from ...geom.track import FaceTrack
from ...media.files import atomic_write
from ...render.surface import part_colours, vertex_normals

TARGETS = 48
TOLERANCE = 1e-4
"""Metres that a vertex may be off its place."""
_LEARN = 192  # frames that the targets are found on
# glTF's numbers for kinds of values and of buffers
_FLOAT, _UINT = 5126, 5125
_VERTICES, _INDICES = 34962, 34963

Floats = NDArray[np.float32]


def write(track: FaceTrack, path: Path, head: HeadModel) -> None:
    """A .glb of the track."""
    base, targets, weights = morph_targets(track.params, head)
    names = [f"motion_{k:02d}" for k in range(len(targets))]
    if head.has_arkit:
        names += arkit.NAMES
        targets = np.concatenate([targets, arkit_targets(track.params, head)])
        weights = np.pad(weights, ((0, 0), (0, len(arkit.NAMES))))
    turn, place = _motion(track.params, head)
    with torch.no_grad():
        normals = vertex_normals(torch.from_numpy(base)[None], head.faces)[0].numpy()
    file = _Glb()
    primitive: dict[str, Any] = {
        "attributes": {
            "POSITION": file.add(base, bounds=True, target=34962),
            "NORMAL": file.add(normals, target=34962),
        },
        "indices": file.add(head.faces.numpy().astype(np.uint32).reshape(-1, 1), target=34963),
        "material": 0,
    }
    if len(targets):  # glTF allows no empty list
        primitive["targets"] = [{"POSITION": file.add(target, bounds=True, target=_VERTICES)} for target in targets]
    mesh = {"name": head.name, "primitives": [primitive], "extras": {"targetNames": names}}
    if len(targets):
        mesh["weights"] = weights[0].tolist()
    clock = file.add(track.times.numpy().astype(np.float32)[:, None], bounds=True)
    samplers: list[dict[str, Any]] = []
    channels: list[dict[str, Any]] = []
    moving = [("rotation", turn), ("translation", place)] + (
        [("weights", weights.reshape(-1, 1))] if len(targets) else []
    )
    for name, values in moving if len(targets) else moving[:2]:
        channels.append({"sampler": len(samplers), "target": {"node": 0, "path": name}})
        samplers.append({"input": clock, "output": file.add(values), "interpolation": "LINEAR"})
    head_node = {"name": "head", "mesh": 0, "rotation": turn[0].tolist(), "translation": place[0].tolist()}
    content: dict[str, Any] = {
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [head_node],
        "meshes": [mesh],
        "materials": [
            {
                "name": "skin",
                "pbrMetallicRoughness": {
                    "baseColorFactor": [0.8, 0.66, 0.58, 1],
                    "metallicFactor": 0,
                    "roughnessFactor": 0.7,
                },
            }
        ],
        "animations": [{"name": "track", "samplers": samplers, "channels": channels}],
    }
    if isinstance(track.camera, Camera):
        height, width = track.image_size
        lens = {"aspectRatio": width / height, "yfov": 2 * math.atan(height / 2 / float(track.camera.focal[0]))}
        content["cameras"] = [{"type": "perspective", "perspective": {**lens, "znear": 0.01, "zfar": 10.0}}]
        content["nodes"].append({"name": "camera", "camera": 0})
        content["scenes"][0]["nodes"].append(1)
    with atomic_write(path) as temporary:
        temporary.write_bytes(file.pack(content))


def write_still(params: HeadParams, path: Path, head: HeadModel) -> None:
    """A .glb of one pose (B = 1) for viewers: the mesh alone, around the origin, its parts in natural colours."""
    with torch.no_grad():
        vertices = head(params)
        normals = vertex_normals(vertices, head.faces)[0].numpy()
    low, high = vertices[0].amin(0), vertices[0].amax(0)
    file = _Glb()
    shared = {
        "POSITION": file.add((vertices[0] - (low + high) / 2).numpy(), bounds=True, target=_VERTICES),
        "NORMAL": file.add(normals, target=_VERTICES),
    }
    primitives: list[dict[str, Any]] = []
    materials: list[dict[str, Any]] = []
    colours, part = np.unique(part_colours(head).numpy(), axis=0, return_inverse=True)
    for number, colour in enumerate(colours):
        triangles = head.faces.numpy()[part.ravel() == number].astype(np.uint32).reshape(-1, 1)
        primitives.append(
            {"attributes": shared, "indices": file.add(triangles, target=_INDICES), "material": len(materials)}
        )
        linear = [float(c) ** 2.2 for c in colour]
        surface = {"baseColorFactor": [*linear, 1], "metallicFactor": 0, "roughnessFactor": 0.6}
        materials.append({"pbrMetallicRoughness": surface})
    content: dict[str, Any] = {
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "head", "mesh": 0}],
        "meshes": [{"name": head.name, "primitives": primitives}],
        "materials": materials,
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(file.pack(content))


def morph_targets(params: HeadParams, head: HeadModel) -> tuple[Floats, Floats, Floats]:
    """Base (N, 3), targets (K, N, 3) and weights (T, K) of the head's motion in its own frame.

    The weights are scaled so that their largest magnitude is 1, as sliders want them.
    """
    frames = len(params)
    learnt = np.unique(np.linspace(0, frames - 1, min(frames, _LEARN)).round().astype(int))
    with torch.no_grad():
        rest = HeadParams.zeros(head).replace(shape=params.shape[:1])
        base = head(rest)[0].numpy().astype(np.float64)
        motion = _local(params[learnt], head) - base  # (L, N, 3)
    flat = motion.reshape(len(learnt), -1)
    # all directions of L frames from the small L x L matrix
    values, vectors = np.linalg.eigh(flat @ flat.T)
    order = [k for k in np.argsort(values)[::-1][:TARGETS] if values[k] > 1e-12 * max(values.max(), 1e-30)]
    directions = (vectors[:, order] / np.sqrt(values[order])).T @ flat  # (K, 3N) orthonormal
    count = next((k for k in range(len(order) + 1) if _worst(flat, directions[:k]) < TOLERANCE), len(order))
    directions = directions[:count]
    weights = np.zeros((frames, count))
    with torch.no_grad():
        for start in range(0, frames, 64):
            piece = _local(params[start : start + 64], head) - base
            weights[start : start + 64] = piece.reshape(len(piece), -1) @ directions.T
    scale = np.abs(weights).max(0, initial=0)
    scale[scale == 0] = 1
    targets = (directions * scale[:, None]).reshape(count, *base.shape)
    return base.astype(np.float32), targets.astype(np.float32), (weights / scale).astype(np.float32)


def arkit_targets(params: HeadParams, head: HeadModel) -> Floats:
    """(52, N, 3) what each ARKit unit at 1 does to the person's neutral face; rotations of jaw and eyes included."""
    rest = HeadParams.zeros(head).replace(shape=params.shape[:1])
    with torch.no_grad():
        shown = rest.expand(len(arkit.NAMES)).replace(**head.arkit(torch.eye(len(arkit.NAMES))))
        difference: Floats = (head(shown) - head(rest)).numpy()
    return difference


def _local(params: HeadParams, head: HeadModel) -> NDArray[np.float64]:
    """(T, N, 3) vertices without the head's own rotation and translation."""
    still = params.replace(rotation=torch.zeros_like(params.rotation), translation=torch.zeros_like(params.translation))
    return head(still).numpy().astype(np.float64)


def _motion(params: HeadParams, head: HeadModel) -> tuple[Floats, Floats]:
    """Unit quaternions (T, 4) x, y, z, w without jumps of sign, and translations (T, 3), of the head's node."""
    with torch.no_grad():
        joint = head.rest_joints(params)[:, 0]
        turn = axis_angle_to_matrix(params.rotation)
        place = joint + params.translation - (turn @ joint[..., None])[..., 0]
    angle = params.rotation.double().norm(dim=1, keepdim=True)
    vector = params.rotation.double() * 0.5 * torch.sinc(angle / (2 * math.pi))
    quaternion = torch.cat([vector, torch.cos(angle / 2)], 1).numpy()
    for k in range(1, len(quaternion)):
        if quaternion[k] @ quaternion[k - 1] < 0:
            quaternion[k] *= -1
    return quaternion.astype(np.float32), place.numpy().astype(np.float32)


def _worst(motion: NDArray[np.float64], directions: NDArray[np.float64]) -> float:
    """Largest distance in metres between the motion (L, 3N) and its part along the directions."""
    rest = motion - (motion @ directions.T) @ directions
    return float(np.linalg.norm(rest.reshape(len(rest), -1, 3), axis=-1).max(initial=0))


class _Glb:
    """Arrays in one binary chunk, with glTF's accessors and views of them."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._views: list[dict[str, Any]] = []
        self._accessors: list[dict[str, Any]] = []

    def add(self, array: np.ndarray, *, bounds: bool = False, target: int | None = None) -> int:
        """Number of the accessor of an (n, width) array of float32 or uint32."""
        self._data.extend(b"\0" * (-len(self._data) % 4))
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self._data), "byteLength": array.nbytes}
        if target is not None:
            view["target"] = target
        self._data.extend(np.ascontiguousarray(array).tobytes())
        kind = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}[array.shape[1]]
        accessor: dict[str, Any] = {
            "bufferView": len(self._views),
            "componentType": _UINT if array.dtype == np.uint32 else _FLOAT,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        self._views.append(view)
        self._accessors.append(accessor)
        return len(self._accessors) - 1

    def pack(self, content: dict[str, Any]) -> bytes:
        """The file: header, JSON chunk, binary chunk."""
        content = {
            "asset": {"version": "2.0", "generator": "headwarp"},
            **content,
            "buffers": [{"byteLength": len(self._data)}],
            "bufferViews": self._views,
            "accessors": self._accessors,
        }
        text = json.dumps(content).encode()
        text += b" " * (-len(text) % 4)
        data = bytes(self._data) + b"\0" * (-len(self._data) % 4)
        parts = [len(text).to_bytes(4, "little"), b"JSON", text, len(data).to_bytes(4, "little"), b"BIN\0", data]
        body = b"".join(parts)
        return b"glTF" + (2).to_bytes(4, "little") + (12 + len(body)).to_bytes(4, "little") + body
