"""Person matte and what is behind the person.

The picture is split once into two layers that add up to it exactly:

    I = P + (1 - a) B,        P := I - (1 - a) B

a person matte, B background with the person painted over, P what the person adds (premultiplied). Because P is
defined by the difference, nothing is lost at rest whatever a and B are: hair that the matte misses but that stands
out from the painted background is part of P and moves with the head. With a = 1 everywhere P is the picture itself,
and the person moves by bending the picture; that is the fallback where the matte cannot be trusted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from . import membrane

Image = NDArray[np.float32]


@dataclass
class Matte:
    """The split of a picture of H x W pixels."""

    alpha: Image
    """(H, W) in [0, 1]: 1 where the person covers the background. 1 everywhere when the segmentation is not trusted."""
    outline: Image
    """(H, W) in [0, 1]: the same as far as the segmentation says, trusted or not."""
    trust: float
    """[0, 1], see `confidence`."""
    hole: Image
    """(H, W) in [0, 1]: 1 where the background was painted; a margin wider than the person."""
    background: Image
    """(H, W, 3) in [0, 1]; the picture itself where `hole` is 0."""

    @property
    def moving(self) -> Image:
        """(H, W) in [0, 1]: what has to move with the person."""
        return self.hole


def split(image: Image, person: Image, face: Image, face_width: float) -> Matte:
    """Split a portrait into person and background.

    Args:
        image: (H, W, 3) in [0, 1].
        person: (H, W) in [0, 1], a soft segmentation that may be coarse.
        face: (H, W) in [0, 1], pixels that the fitted head covers for certain (the face without hair).
        face_width: px, sets all radii.
    """
    trust = confidence(person, face)
    refined = guided_filter(image, person, radius=max(2, round(0.035 * face_width)), epsilon=1e-4)
    # Stretch the contrast: the filter leaves a few percent of haze on either side of an edge.
    alpha = np.clip((refined - 0.08) / 0.84, 0, 1)
    # Only what hangs together with the head is the person; a bystander stays where he is.
    alpha = alpha * _connected(alpha > 0.3, face, margin=0.05 * face_width)
    alpha = np.maximum(alpha, face)

    # The margin catches strands of hair; beside jaw, neck and shoulders it would only carry pieces of the wall along.
    rows = np.flatnonzero(face.any(1))
    chin = float(rows[-1]) if len(rows) else 0.5 * face.shape[0]
    below = np.clip((np.arange(face.shape[0]) - chin) / (0.15 * face_width) + 3, 0, 1)[:, None]
    reach = (0.10 - 0.075 * below) * face_width
    distance = ndimage.distance_transform_edt(alpha < 0.03)
    hole = np.clip(2 - 2 * distance / reach, 0, 1).astype(np.float32)
    core = np.clip(2 - 5 * distance / reach, 0, 1).astype(np.float32)
    background = paint_background(image, hole, core, 0.03 * face_width)
    outline = alpha.astype(np.float32)
    alpha = (1 - trust * (1 - outline)).astype(np.float32)
    return Matte(alpha, outline, trust, hole, background)


def at_resolution(split: Matte, fine: Image) -> tuple[Image, Image, float]:
    """The layers of the picture at its own resolution.

    Args:
        fine: (h, w, 3) in [0, 1], the picture that was split, at any size of the same shape.
    Returns:
        layers (h, w, 4): P and a; background (h, w, 3); output pixels per work pixel.
    """
    scale = fine.shape[0] / split.alpha.shape[0]
    size = (fine.shape[0], fine.shape[1])
    alpha, hole, background = split.alpha, split.hole, split.background
    if size != alpha.shape:
        alpha = membrane.upsample(alpha[..., None], size, scale)[..., 0]
        hole = membrane.upsample(hole[..., None], size, scale)[..., 0]
        painted = membrane.upsample(background, size, scale)
        background = fine + hole[..., None] * (painted - fine)
    added = fine - (1 - alpha[..., None]) * background
    return np.dstack([added, alpha]).astype(np.float32), background.astype(np.float32), scale


def confidence(person: Image, face: Image) -> float:
    """How far the segmentation can be believed, 0 ... 1: it must cover the face and be decided nearly everywhere."""
    covered = float((person * face).sum() / max(float(face.sum()), 1.0))
    undecided = float((person * (1 - person)).mean())
    share = float(person.mean())
    inside = np.clip((covered - 0.7) / 0.2, 0, 1)
    decided = np.clip((0.08 - undecided) / 0.04, 0, 1)
    background_left = np.clip((0.97 - share) / 0.05, 0, 1)
    return float(inside * decided * background_left)


def guided_filter(guide: Image, values: Image, radius: int, epsilon: float) -> Image:
    """`values` with the edges of a colour picture: locally an affine function of the guide.

    He, Sun and Tang, "Guided image filtering", 2013, eqs. 14-16 (colour guide).

    Args:
        guide: (H, W, 3) in [0, 1].
        values: (H, W).
        radius: px of the square window (side 2 r + 1).
        epsilon: variance of the guide below which the window counts as flat.
    """

    def mean(x: Image) -> Image:
        return ndimage.uniform_filter(x, (2 * radius + 1, 2 * radius + 1, *[1] * (x.ndim - 2)), mode="nearest")

    centre, average = mean(guide), mean(values)
    with_values = mean(guide * values[..., None]) - centre * average[..., None]
    squares = mean(guide[..., :, None] * guide[..., None, :]) - centre[..., :, None] * centre[..., None, :]
    slope = np.linalg.solve(squares + epsilon * np.eye(3, dtype=np.float32), with_values[..., None])[..., 0]
    offset = average - (slope * centre).sum(-1)
    return np.clip((mean(slope) * guide).sum(-1) + mean(offset), 0, 1).astype(np.float32)


def paint_background(image: Image, hole: Image, core: Image, softness: float) -> Image:
    """The picture without the person.

    In the core, colours are continued smoothly from outside (membrane); grain is mirrored at the edge of the hole, so
    that a strip which comes into sight beside a moving head looks like the wall next to it, not like fog. In the margin
    between core and hole the picture is blurred: strands vanish from it (and so belong to the person), the wall stays.

    Args:
        hole: (H, W) 1 where the picture is replaced, core: where nothing of it is used; soft.
        softness: px, sigma of the blur.
    """
    height, width = hole.shape
    nearest = ndimage.distance_transform_edt(hole > 0, return_distances=False, return_indices=True)
    weights = ((1 - core) * (core < 0.5)).astype(np.float32)
    known = ndimage.gaussian_filter(weights, softness)[..., None]
    smooth = ndimage.gaussian_filter(image * weights[..., None], (softness, softness, 0)) / np.maximum(known, 1e-4)
    fill = membrane.solve(smooth[::2, ::2], 20 * weights[::2, ::2], sweeps=20)
    fill = membrane.upsample(fill, (height, width), 2.0)
    fill = smooth + core[..., None] * (fill - smooth)

    detail = image - ndimage.gaussian_filter(image, (2.0, 2.0, 0), mode="nearest")
    grain = 2 * float(np.median(np.abs(detail[hole <= 0]))) if (hole <= 0).any() else 0.0
    detail = np.clip(detail, -grain, grain)  # the grain of the wall, not the writing on it
    # Mirror image of every painted pixel: as far behind the edge of the hole as the pixel lies before it.
    row, column = np.mgrid[:height, :width]
    y = _reflected(row + 2 * (nearest[0] - row), height)
    x = _reflected(column + 2 * (nearest[1] - column), width)
    fill += (detail * (hole <= 0)[..., None])[y, x]
    return image + hole[..., None] * (fill - image)


def _reflected(index: NDArray, size: int) -> NDArray[np.int64]:
    """Whole indices folded back into 0 ... size - 1."""
    folded = np.abs(np.rint(index).astype(np.int64)) % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def _connected(mask: NDArray[np.bool_], seed: Image, margin: float) -> Image:
    """1 on the component of `mask` that holds most of `seed`, fading out over `margin` px around it."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros(mask.shape, np.float32)
    votes = np.bincount(labels.ravel(), weights=seed.ravel(), minlength=count + 1)[1:]
    kept = labels == 1 + int(votes.argmax())
    distance = ndimage.distance_transform_edt(~kept)
    return np.clip(1 - distance / max(margin, 1.0), 0, 1).astype(np.float32)
