"""One mesh a frame: NNNNN.obj (text, with texture coordinates) or NNNNN.ply (binary), metres, y up, z out of the face.

The vertices are in the world of the camera: it stands at the origin and looks along -z.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...geom.head import HeadModel
from ...geom.track import FaceTrack
from .common import whole_folder


def write(track: FaceTrack, path: Path, head: HeadModel, kind: str) -> None:
    """A folder of meshes."""
    faces = head.faces.numpy()
    uv = None if head.uv is None or head.uv_faces is None else (head.uv.numpy(), head.uv_faces.numpy())
    with whole_folder(path) as folder, torch.no_grad():
        for k in range(len(track)):
            vertices = head(track.params[k])[0].numpy()
            file = folder / f"{k:05d}.{kind}"
            file.write_bytes(ply(vertices, faces) if kind == "ply" else obj(vertices, faces, uv).encode())


def obj(vertices: np.ndarray, faces: np.ndarray, uv: tuple[np.ndarray, np.ndarray] | None = None) -> str:
    """Wavefront OBJ of (N, 3) vertices, (F, 3) faces, and texture coordinates (U, 2) with their faces (F, 3)."""
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices.tolist()]
    if uv is None:
        lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    else:
        lines += [f"vt {u:.6f} {v:.6f}" for u, v in uv[0].tolist()]
        corners = np.stack([faces + 1, uv[1] + 1], -1).tolist()
        lines += ["f " + " ".join(f"{v}/{t}" for v, t in face) for face in corners]
    return "\n".join(lines) + "\n"


def ply(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """Binary little-endian PLY."""
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\nproperty float x\nproperty float y\n"
        f"property float z\nelement face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    return header.encode() + vertices.astype("<f4").tobytes() + rows.tobytes()
