"""Head models in FLAME's layout: parameters in, vertices out.

    shape, expression, eyelids --linear--> rest vertices          rotation, neck, jaw, eyes
              |                                  |                          |
              +--regressor--> joints             + pose correctives <-------+
                                |                |                          |
                                +--------> linear blend skinning <----------+ ----> + translation = world vertices

    v_shaped = v_template + shapedirs [shape, expression] + eyelid_dirs eyelids
    joints   = J_regressor (v_template + shapedirs [shape, expression])
    v_posed  = v_shaped + posedirs vec(R_j - I),  j = 1 ... J-1, row-major
    M_0 = [R_0 | J_0],  M_j = M_parent [R_j | J_j - J_parent];   v = sum_j w_j M_j (v_posed - J_j) + translation

Li et al., "Learning a model of facial shape and expression from 4D scans", 2017. Joints: root, neck, jaw, left eye,
right eye; the global rotation turns about the root joint. Metres and radians throughout. B batch, N vertices, F
triangles, S + E coefficients.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import arkit, head_files
from .head_files import HeadData
from .landmarks import LEFT_IRIS, RIGHT_IRIS, Contour, Embedding, iris_embedding, landmarks68
from .precision import exact
from .rotation import axis_angle_to_matrix


@dataclass
class HeadParams:
    """Parameters of B heads. Coefficients are in standard deviations, rotations axis-angle radians relative to the
    parent joint."""

    shape: Tensor
    """(B, S) identity."""
    expression: Tensor
    """(B, E)"""
    rotation: Tensor
    """(B, 3) of the whole head about the root joint."""
    neck: Tensor
    """(B, 3)"""
    jaw: Tensor
    """(B, 3); positive x opens the mouth."""
    eyes: Tensor
    """(B, 6) left x, y, z, right x, y, z; positive x looks down, positive y to the person's left."""
    eyelids: Tensor
    """(B, 2) left, right; 0 open ... 1 closed. Heads without eyelid directions ignore them."""
    translation: Tensor
    """(B, 3) metres."""

    @staticmethod
    def zeros(head: HeadModel, batch: int = 1) -> HeadParams:
        """Neutral parameters for `head`, with its dtype and device."""
        widths = {"shape": head.n_shape, "expression": head.n_expression, "eyes": 6, "eyelids": 2}
        like = head.v_template
        return HeadParams(**{f.name: like.new_zeros(batch, widths.get(f.name, 3)) for f in fields(HeadParams)})

    @staticmethod
    def cat(parts: Iterable[HeadParams]) -> HeadParams:
        """One batch out of several."""
        parts = list(parts)
        return HeadParams(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(HeadParams)})

    def replace(self, **values: Tensor) -> HeadParams:
        """A copy with some fields exchanged; the others are shared, not cloned."""
        return HeadParams(**{**self.asdict(), **values})

    def expand(self, batch: int) -> HeadParams:
        """A batch of one seen as a batch of `batch` (no copy)."""
        return HeadParams(**{name: value.expand(batch, -1) for name, value in self.asdict().items()})

    def asdict(self) -> dict[str, Tensor]:
        """Field name -> tensor, not copied."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, *args: Any, **kwargs: Any) -> HeadParams:
        """As `torch.Tensor.to`, for every field."""
        return HeadParams(**{name: value.to(*args, **kwargs) for name, value in self.asdict().items()})

    def detach(self) -> HeadParams:
        """The same values outside the autograd graph."""
        return HeadParams(**{name: value.detach() for name, value in self.asdict().items()})

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Any) -> HeadParams:
        """Part of the batch by slice, mask, index tensor or number; the batch axis stays, also for a number."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"HeadParams: index {index} is outside a batch of {len(self)}.")
            index = [index]
        return HeadParams(**{name: value[index] for name, value in self.asdict().items()})


class HeadModel(nn.Module):
    """A parametric head. Calling it with `HeadParams` gives world vertices (B, N, 3).

    Buffers and attributes (float32, or float64 after `.double()`):
        v_template (N, 3), faces (F, 3) int64, shapedirs (N, 3, S+E), posedirs (N, 3, 9(J-1)), J_regressor (J, N),
        weights (N, J), parents (tuple of J ints), n_shape, n_expression, name, sha256 (of the geometry, see
        `HeadData.sha256`), eyelid_dirs (N, 3, 2) or None, face_part (F,) uint8 or None with part_names, vertex_mask
        (N, K) in [0, 1] or None with region_names, uv (U, 2) and uv_faces (F, 3) or None, shape_control_names,
        shape_controls (K, S) or None, embeddings: {"static68", "mediapipe"} -> `Embedding` as far as the file has
        them, contour `Contour` or None.
    """

    v_template: Tensor
    faces: Tensor
    J_regressor: Tensor
    weights: Tensor
    joint_template: Tensor
    joint_dirs: Tensor
    eyelid_dirs: Tensor | None
    face_part: Tensor | None
    vertex_mask: Tensor | None
    uv: Tensor | None
    uv_faces: Tensor | None
    shape_controls: Tensor | None
    _directions: Tensor
    _pose_columns: Tensor
    _arkit: Tensor | None

    def __init__(self, data: HeadData) -> None:
        super().__init__()
        self.name = data.name
        self.sha256 = data.sha256()
        self.n_shape, self.n_expression = data.n_shape, data.n_expression
        self.parents = tuple(int(p) for p in data.parents)
        self.part_names, self.region_names = data.part_names, data.region_names
        self.shape_control_names = data.shape_control_names
        self.metadata = dict(data.metadata)

        for key in (
            "v_template",
            "faces",
            "J_regressor",
            "weights",
            "eyelid_dirs",
            "face_part",
            "vertex_mask",
            "uv",
            "uv_faces",
            "shape_controls",
        ):
            value = getattr(data, key)
            self.register_buffer(key, None if value is None else torch.from_numpy(value), persistent=value is not None)
        n_betas = self.n_shape + self.n_expression
        # The joints are linear in the coefficients; regressing them once saves a (J, N) product per call. float64:
        # sums over N.
        regressor = data.J_regressor.astype(np.float64)
        joint_template = regressor @ data.v_template
        joint_dirs = np.einsum("jn,nck->jck", regressor, data.shapedirs, optimize=True)
        self.register_buffer("joint_template", torch.from_numpy(joint_template.astype(np.float32)))
        self.register_buffer("joint_dirs", torch.from_numpy(joint_dirs.reshape(-1, n_betas).astype(np.float32)))
        # All linear directions in one matrix, coordinate planes apart: a single product makes the posed rest shape,
        # and skinning runs over contiguous planes. Pose columns that are zero everywhere (the neck's, often) are left
        # out.
        pose_columns = np.flatnonzero(data.posedirs.any((0, 1)))
        blocks = [data.shapedirs, data.posedirs[..., pose_columns]]
        if data.eyelid_dirs is not None:
            blocks.append(data.eyelid_dirs)
        directions = np.concatenate(blocks, -1).transpose(2, 1, 0)  # (K, 3, N)
        self.register_buffer("_directions", torch.from_numpy(np.ascontiguousarray(directions)))
        self.register_buffer("_pose_columns", torch.from_numpy(pose_columns), persistent=False)
        maps = (data.arkit_expression, data.arkit_jaw, data.arkit_eyes, data.arkit_eyelids)
        rows = None
        if maps[0] is not None:
            widths = (self.n_expression, 3, 6, 2)
            filled = [np.zeros((52, w), np.float32) if m is None else m for m, w in zip(maps, widths, strict=True)]
            rows = torch.from_numpy(np.concatenate(filled, 1))
        self.register_buffer("_arkit", rows, persistent=rows is not None)

        self.embeddings = nn.ModuleDict()
        self.contour: Contour | None = None
        if data.static68_triangle is not None and data.static68_barycentric is not None:
            triangle, barycentric = (
                torch.from_numpy(data.static68_triangle),
                torch.from_numpy(data.static68_barycentric),
            )
            self.embeddings["static68"] = Embedding(triangle, barycentric, self.faces)
        if data.mediapipe_triangle is not None and data.mediapipe_barycentric is not None:
            self.embeddings["mediapipe"] = self._mediapipe(data)
        if data.dynamic_triangle is not None and data.dynamic_barycentric is not None:
            triangle, barycentric = torch.from_numpy(data.dynamic_triangle), torch.from_numpy(data.dynamic_barycentric)
            self.contour = Contour(triangle, barycentric, self.faces)

    def _mediapipe(self, data: HeadData) -> Embedding:
        """The file's points, and the irises from the eyeballs where the file does not have them itself."""
        triangle, barycentric = data.mediapipe_triangle, data.mediapipe_barycentric
        assert triangle is not None
        assert barycentric is not None
        indices = np.arange(len(triangle)) if data.mediapipe_index is None else data.mediapipe_index
        if self.n_joints >= 5 and indices.max(initial=0) < RIGHT_IRIS:
            eyeballs = {}
            for start, joint in ((RIGHT_IRIS, 4), (LEFT_IRIS, 3)):
                rigid = data.weights[:, joint] > 0.99
                eyeballs[start] = (np.flatnonzero(rigid[data.faces].all(1)), self.joint_template[joint].numpy())
            extra = iris_embedding(data.v_template, data.faces, eyeballs)
            triangle = np.concatenate([triangle, extra[0]])
            barycentric = np.concatenate([barycentric, extra[1].astype(np.float32)])
            indices = np.concatenate([indices, extra[2]])
        return Embedding(
            torch.from_numpy(triangle), torch.from_numpy(barycentric), self.faces, torch.from_numpy(indices)
        )

    @property
    def n_joints(self) -> int:
        return len(self.parents)

    @property
    def has_arkit(self) -> bool:
        """Whether `arkit` works on this head."""
        return self._arkit is not None

    @property
    def shapedirs(self) -> Tensor:
        """(N, 3, S+E) metres per unit coefficient, a view."""
        return self._directions[: self.n_shape + self.n_expression].permute(2, 1, 0)

    @property
    def posedirs(self) -> Tensor:
        """(N, 3, 9(J-1)) metres per unit of R_j - I, row-major; a new tensor."""
        full = self._directions.new_zeros(9 * (self.n_joints - 1), 3, self._directions.shape[-1])
        start = self.n_shape + self.n_expression
        full[self._pose_columns] = self._directions[start : start + len(self._pose_columns)]
        return full.permute(2, 1, 0)

    @exact
    def forward(self, params: HeadParams) -> Tensor:
        """World vertices (B, N, 3) metres of B parameter sets."""
        rotations = self.rotations(params)
        vertices = self._rest(params, rotations)  # (B, 3, N)
        transforms = self.transforms(rotations, self.rest_joints(params))  # (B, J, 3, 4)
        batch = len(params)
        # blended transforms, planes apart: (B, 12, J) (J, N)
        blended = torch.matmul(transforms.flatten(2).mT, self.weights.mT).view(batch, 3, 4, -1)
        skinned = blended[:, :, 3] + params.translation[:, :, None]
        for axis in range(3):
            skinned = torch.addcmul(skinned, blended[:, :, axis], vertices[:, axis : axis + 1])
        return skinned.mT.contiguous()

    @exact
    def rest_vertices(self, params: HeadParams) -> Tensor:
        """(B, N, 3) vertices before skinning, pose correctives included."""
        return self._rest(params, self.rotations(params)).mT.contiguous()

    @exact
    def rest_joints(self, params: HeadParams) -> Tensor:
        """(B, J, 3) joints of the rest pose."""
        betas = torch.cat([params.shape, params.expression], -1)
        return torch.addmm(self.joint_template.flatten(), betas, self.joint_dirs.mT).unflatten(-1, (-1, 3))

    @exact
    def joints(self, params: HeadParams) -> Tensor:
        """(B, J, 3) joints in the world."""
        rest = self.rest_joints(params)
        transforms = self.transforms(self.rotations(params), rest)
        moved = (transforms[..., :3] @ rest[..., None]).squeeze(-1) + transforms[..., 3]
        return moved + params.translation[:, None]

    def landmarks68(self, params: HeadParams, vertices: Tensor | None = None) -> Tensor:
        """(B, 68, 3) iBUG landmarks in the world, the contour chosen by yaw as in DECA.

        Args:
            params: B parameter sets.
            vertices: (B, N, 3) `self(params)`, when it is there already.
        """
        static = dict(self.embeddings).get("static68")
        if not isinstance(static, Embedding) or self.contour is None:
            raise ValueError(
                f"head '{self.name}' has no 68 landmarks. For FLAME put DECA's landmark_embedding.npy beside the model."
            )
        vertices = self(params) if vertices is None else vertices
        return landmarks68(vertices, static, self.contour, params.rotation, params.neck)

    def rotations(self, params: HeadParams) -> Tensor:
        """(B, J, 3, 3) local rotation of every joint."""
        self._check(params)
        pose = torch.cat([params.rotation, params.neck, params.jaw, params.eyes], -1).unflatten(-1, (-1, 3))
        return axis_angle_to_matrix(pose[:, : self.n_joints])

    @exact
    def transforms(self, rotations: Tensor, joints: Tensor) -> Tensor:
        """Skinning transforms (B, J, 3, 4): rest vertex -> posed vertex of a vertex that follows joint j alone,
        before translation.

        Args:
            rotations: (B, J, 3, 3) local.
            joints: (B, J, 3) of the rest pose.
        """
        turns, places = [rotations[:, 0]], [joints[:, 0]]
        for j, parent in enumerate(self.parents[1:], 1):
            offset = (joints[:, j] - joints[:, parent])[..., None]
            turns.append(turns[parent] @ rotations[:, j])
            places.append(places[parent] + (turns[parent] @ offset).squeeze(-1))
        turn, place = torch.stack(turns, 1), torch.stack(places, 1)
        shift = place - (turn @ joints[..., None]).squeeze(-1)
        return torch.cat([turn, shift[..., None]], -1)

    def arkit(self, weights: Tensor) -> dict[str, Tensor]:
        """Parameters that show ARKit face units: the fields expression, jaw, eyes, eyelids of `HeadParams`.

            params = HeadParams.zeros(head).replace(**head.arkit(weights))

        Args:
            weights: (B, 52) in the order of `arkit.NAMES`, 0 ... 1.
        """
        if self._arkit is None:
            raise ValueError(f"head '{self.name}' has no ARKit map; the open head has one (load_head('open')).")
        if weights.ndim != 2 or weights.shape[1] != len(arkit.NAMES):
            raise ValueError(f"HeadModel.arkit: weights must be (B, 52), got {tuple(weights.shape)}.")
        values = weights.to(self._arkit) @ self._arkit
        expression, jaw, eyes, eyelids = values.split([self.n_expression, 3, 6, 2], -1)
        return {"expression": expression, "jaw": jaw, "eyes": eyes, "eyelids": eyelids}

    def shape_from_controls(self, values: Mapping[str, float]) -> Tensor:
        """(1, S) shape coefficients of named controls, each value in [-1, 1]."""
        for name, value in values.items():
            if name not in self.shape_control_names:
                known = arkit.nearest_names(name, self.shape_control_names)
                raise ValueError(f"head '{self.name}' has no shape control '{name}'{known}")
            if not -1 <= value <= 1:
                raise ValueError(f"shape control '{name}' must be from -1 to 1, got {value}.")
        weights = self.v_template.new_tensor([[values.get(name, 0.0) for name in self.shape_control_names]])
        if self.shape_controls is None:
            return self.v_template.new_zeros(1, self.n_shape)
        return weights @ self.shape_controls

    def part_faces(self, *names: str) -> Tensor:
        """(K,) ids of the triangles that belong to the named parts."""
        unknown = [name for name in names if name not in self.part_names]
        if self.face_part is None or unknown:
            known = ", ".join(self.part_names) or "none"
            raise ValueError(f"head '{self.name}' has no part {', '.join(unknown or names)}; it has {known}.")
        wanted = torch.tensor([self.part_names.index(name) for name in names], device=self.face_part.device)
        return torch.isin(self.face_part.long(), wanted).nonzero().squeeze(1)

    def subset(self, vertices: Tensor) -> HeadModel:
        """The same head with some vertices only, for fitting: same parameters, `forward` gives (B, len(vertices), 3).

        Triangles, and points of embeddings, stay where all their corners do. `J_regressor` is left empty, since the
        joints do not follow from a part of the vertices (they are kept as linear functions of the coefficients).

        Args:
            vertices: (K,) int64 distinct vertex ids, e.g. `head.embeddings["mediapipe"].corners.unique()`.
        """
        part = copy.copy(self)  # nn.Module copies its registries, so that new buffers leave this head alone
        part._buffers = dict(self._buffers)
        part._modules = dict(self._modules)
        position = torch.full((len(self.v_template),), -1, device=vertices.device)
        position[vertices] = torch.arange(len(vertices), device=vertices.device)
        kept = (position[self.faces] >= 0).all(1)
        part.v_template = self.v_template[vertices]
        part.weights = self.weights[vertices]
        part._directions = self._directions[..., vertices].contiguous()
        part.faces = position[self.faces[kept]]
        part.J_regressor = self.J_regressor[:, :0]
        if self.eyelid_dirs is not None:
            part.eyelid_dirs = self.eyelid_dirs[vertices]
        if self.vertex_mask is not None:
            part.vertex_mask = self.vertex_mask[vertices]
        if self.face_part is not None:
            part.face_part = self.face_part[kept]
        if self.uv_faces is not None:
            part.uv_faces = self.uv_faces[kept]
        new_face = torch.cumsum(kept, 0) - 1
        part.embeddings = nn.ModuleDict()
        for key, embedding in self.embeddings.items():
            assert isinstance(embedding, Embedding)
            inside = kept[embedding.triangle]
            part.embeddings[key] = Embedding(
                new_face[embedding.triangle[inside]],
                embedding.barycentric[inside],
                part.faces,
                embedding.indices[inside],
            )
        part.contour = None
        if self.contour is not None and kept[self.contour.triangle].all():
            part.contour = Contour(new_face[self.contour.triangle], self.contour.barycentric, part.faces)
        return part

    def _rest(self, params: HeadParams, rotations: Tensor) -> Tensor:
        """(B, 3, N) vertices before skinning."""
        parts = [params.shape, params.expression]
        if len(self._pose_columns):
            identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
            parts.append((rotations[:, 1:] - identity).flatten(1)[:, self._pose_columns])
        if self.eyelid_dirs is not None:
            parts.append(params.eyelids)
        template = self.v_template.mT.reshape(-1)
        return torch.addmm(template, torch.cat(parts, -1), self._directions.flatten(1)).unflatten(-1, (3, -1))

    def _check(self, params: HeadParams) -> None:
        if params.shape.shape[-1] != self.n_shape or params.expression.shape[-1] != self.n_expression:
            raise ValueError(
                f"head '{self.name}' takes {self.n_shape} shape and {self.n_expression} expression coefficients, got "
                f"{params.shape.shape[-1]} and {params.expression.shape[-1]}. Parameters belong to "
                "the head they were fitted with."
            )


def load_head(
    name_or_path: str | Path = "open", *, n_shape: int | None = None, n_expression: int | None = None
) -> HeadModel:
    """A head model by name or file.

    Args:
        name_or_path: "open" (the head that comes with the package), "flame" (the user's FLAME: see
            `head_files.find_flame`), or a .pkl, .npz or .safetensors file.
        n_shape, n_expression: how many coefficients to keep; None keeps all that the file has (FLAME: 300 and 100;
            DECA and many trackers use the first 100 and 50).
    """
    if str(name_or_path) == "open":
        path = Path(__file__).parent.parent / "assets" / "open_head.safetensors"
    elif str(name_or_path) == "flame":
        found = head_files.find_flame()
        if found is None:
            named = os.environ.get("HEADWARP_FLAME")
            where = f"HEADWARP_FLAME names {named}, where there is none" if named else "none in ~/.cache/headwarp"
            raise FileNotFoundError(f"No FLAME model found ({where}). {head_files.FLAME_HELP}")
        path = found
    else:
        path = Path(os.fspath(name_or_path))
    return HeadModel(head_files.read_head(path, n_shape=n_shape, n_expression=n_expression))
