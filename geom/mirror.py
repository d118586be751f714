"""The face in the mirror, as coefficients of the same head.

Mirroring exchanges left and right: vertex i becomes (-x, y, z) of its partner, the vertex on the other side. Rotations
about x keep their sense, those about y and z lose it. Coefficients of shape and expression are mapped by the matrices
that come closest over all vertices (least squares), since a head's directions need not be mirror images of each other.
"""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor, nn

from .head import HeadModel, HeadParams

_NEAR = 2e-3
"""Metres within which a vertex has a partner on the other side."""


class Mirror(nn.Module):
    """Parameters of a head -> parameters of its mirror image, in a world mirrored at the plane x = 0.

    As exact as the head's directions span each other's mirror images; those of the open head do, so that its vertices
    are mirrored to a tenth of a micrometre.
    """

    shape: Tensor
    """(S, S)"""
    expression: Tensor
    """(E, E)"""

    def __init__(self, head: HeadModel) -> None:
        super().__init__()
        places = head.v_template.double().cpu()
        distance, partner = cKDTree(places.numpy()).query((places * _flip(places)).numpy())
        here = torch.from_numpy(distance < _NEAR)
        there = torch.from_numpy(partner)[here]
        directions = head.shapedirs.double().cpu()  # (N, 3, S + E)
        before, after = directions[here], directions[there] * _flip(directions)[:, None]
        shape, expression = slice(head.n_shape), slice(head.n_shape, None)
        for name, part in (("shape", shape), ("expression", expression)):
            solved = torch.linalg.lstsq(before[..., part].flatten(0, 1), after[..., part].flatten(0, 1)).solution
            self.register_buffer(name, solved.T.float().contiguous(), persistent=False)  # for rows of coefficients

    def forward(self, params: HeadParams) -> HeadParams:
        """`HeadParams` (B), mirrored."""
        flip = _flip(params.rotation)
        return params.replace(
            shape=params.shape @ self.shape,
            expression=params.expression @ self.expression,
            rotation=-flip * params.rotation,
            neck=-flip * params.neck,
            jaw=-flip * params.jaw,
            eyes=(-flip * params.eyes.unflatten(-1, (2, 3)).flip(1)).flatten(1),
            eyelids=params.eyelids.flip(1),
            translation=flip * params.translation,
        )


def _flip(like: Tensor) -> Tensor:
    """(3,) what a mirror at x = 0 does to a point; an axis-angle vector, which turns the other way, gets minus that."""
    return like.new_tensor([-1.0, 1.0, 1.0])
