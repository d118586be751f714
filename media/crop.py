"""Square crops of faces, back into the picture, and boxes that hold still over time.

    points (pixels of the picture)  --to_crop-->  points of the crop  --to_image-->  the same points
    picture  --extract-->  (size, size, 3)  --paste-->  picture, changed only under the crop

Coordinates are continuous pixels, x right and y down, pixel (0, 0) covers [0, 1) x [0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

_CHANGED = 6.0
"""Grey levels of change from which on the pasted crop counts in full, see `Crop.paste`."""


@dataclass(frozen=True)
class Crop:
    """A square of the picture, seen as an image of `size` x `size` pixels: a similarity transform."""

    center: tuple[float, float]
    """x, y in pixels of the picture."""
    side: float
    """Length of the square's side in pixels of the picture."""
    size: int = 512
    """Side of the crop in pixels."""
    angle: float = 0.0
    """Radians by which the crop's x axis is turned in the picture, from x towards y: clockwise as seen."""

    def __post_init__(self) -> None:
        if not (self.side > 0 and self.size > 0 and all(map(math.isfinite, (*self.center, self.side, self.angle)))):
            raise ValueError(f"Crop: side and size must be positive and all numbers finite, got {self}.")

    @classmethod
    def from_landmarks(
        cls,
        points: np.ndarray,
        scale: float = 2.3,
        shift_up: float = 0.1,
        size: int = 512,
        angle: float = 0.0,
    ) -> Crop:
        """The square around a face.

        Args:
            points: (N, 2) or (N, 3) landmarks in pixels of the picture; only x and y count.
            scale: side of the square in units of the longer side of the landmarks' bounding box.
            shift_up: the square's centre lies this share of its side above the box's centre, for the forehead and hair.
            size: side of the crop in pixels.
            angle: radians; the box is taken along axes turned by it (a face upright in the crop).
        """
        if points.ndim != 2 or points.shape[1] < 2 or len(points) < 2 or not np.isfinite(points[:, :2]).all():
            raise ValueError(f"from_landmarks: points must be (N, 2) or (N, 3), finite, N >= 2; got {points.shape}.")
        turn = _rotation(angle)
        along = points[:, :2].astype(np.float64) @ turn  # coordinates in the turned axes
        low, high = along.min(0), along.max(0)
        side = float(scale * (high - low).max())
        x, y = turn @ ((low + high) / 2 - (0.0, shift_up * side))
        return cls((float(x), float(y)), side, size, angle)

    @classmethod
    def whole(cls, shape: Sequence[int], size: int | None = None) -> Crop:
        """The picture itself as a crop: the smallest centred square that holds it; for inputs that are crops already.

        Args:
            shape: (H, W, ...) of the picture.
            size: side of the crop in pixels; the longer side of the picture if None, so that nothing is resampled
                where both sides are equally odd or even.
        """
        height, width = shape[:2]
        side = max(height, width)
        return cls((width / 2, height / 2), float(side), size or side)

    @property
    def matrix(self) -> np.ndarray:
        """(2, 3) crop_from_image: crop point = matrix @ (x, y, 1), continuous coordinates."""
        linear = _rotation(self.angle).T * (self.size / self.side)
        return np.column_stack([linear, self.size / 2 - linear @ np.asarray(self.center)])

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) points of the picture as points of the crop, float64."""
        matrix = self.matrix
        return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) points of the crop as points of the picture, float64."""
        linear = _rotation(self.angle) * (self.side / self.size)
        return (np.asarray(points, dtype=np.float64) - self.size / 2) @ linear.T + np.asarray(self.center)

    def extract(self, image: np.ndarray) -> np.ndarray:
        """The crop, (size, size, C) uint8 of an (H, W, C) uint8 picture; beyond the edge its last pixels repeat.

        Free of aliasing when it is reduced (area average), bicubic when it is enlarged, exact where pixels coincide.
        """
        _check_image("extract", image)
        return _resample(image, self.matrix, (self.size, self.size))

    def paste(
        self,
        image: np.ndarray,
        crop_image: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        reference: np.ndarray | None = None,
        feather: float = 0.06,
    ) -> np.ndarray:
        """The picture with the crop laid back, at the picture's resolution; a new array.

        The crop's weight falls to 0 at its own border (a smooth ramp), so that no edge shows; pixels outside the
        square, or where the weight is 0, stay exactly as they are.

        Args:
            image: (H, W, 3) uint8.
            crop_image: (size, size, 3) uint8, the changed crop.
            mask: (size, size) float in [0, 1], further weight of the crop; None means 1.
            reference: (size, size, 3) uint8, the crop as it was extracted. Where the crop has not changed against it,
                the picture keeps its own, sharper pixels; an unchanged crop gives the picture back exactly.
            feather: width of the ramp in units of the crop's side.
        """
        _check_image("paste", image)
        square = (self.size, self.size, 3)
        if image.shape[2] != 3 or crop_image.shape != square or crop_image.dtype != np.uint8:
            raise ValueError(
                f"paste: needs an (H, W, 3) picture and a uint8 {square} crop, got {image.shape} and "
                f"{crop_image.dtype} {crop_image.shape}."
            )
        weight = _ramp(self.size, feather)  # (size, size) float32
        if mask is not None:
            if mask.shape != square[:2]:
                raise ValueError(f"paste: mask must be {square[:2]}, got {mask.shape}.")
            weight = weight * np.clip(mask, 0, 1).astype(np.float32)
        if reference is not None:
            weight = weight * _changed(crop_image, reference)

        result = image.copy()
        # Only the box of the picture that the crop's weighty part covers is computed.
        x, y, w, h = cv2.boundingRect((weight > 0).astype(np.uint8))
        if not w:
            return result
        height, width = image.shape[:2]
        corners = self.to_image(
            np.array([(x - 1, y - 1), (x + w + 1, y - 1), (x - 1, y + h + 1), (x + w + 1, y + h + 1)])
        )
        left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
        right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int), (width, height))
        if left >= right or top >= bottom:
            return result
        # box_from_crop: the inverse of `matrix`, seen from the corner of the box that is touched
        linear = _rotation(self.angle) * (self.side / self.size)
        shift = np.asarray(self.center) - linear @ np.full(2, self.size / 2) - (left, top)
        matrix, box = np.column_stack([linear, shift]), (int(bottom - top), int(right - left))
        under = result[top:bottom, left:right]
        over = _resample(crop_image, matrix, box)
        share = _resample(weight, matrix, box, outside=0.0, smooth=True)
        # OpenCV divides by the sum of the weights plus 1e-5, which rounds back to the picture's own value at share 0.
        under[...] = cv2.blendLinear(under, over, 1 - share, share)
        return result


def union_box(boxes: np.ndarray, increase: float = 0.1, size: int = 256) -> Crop:
    """One square that holds a face through a whole clip, as FOMM's crop-video does.

    Args:
        boxes: (T, 4) left, top, right, bottom in pixels, one a frame.
        increase: margin on each side in units of the union's longer side.
        size: side of the crop in pixels.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise ValueError(f"union_box: boxes must be (T, 4) with T >= 1, got {boxes.shape}.")
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    x, y = (low + high) / 2
    return Crop((float(x), float(y)), float((1 + 2 * increase) * (high - low).max()), size)


@dataclass
class BoxSmoother:
    """Crops that stand still while the face moves a little, frame by frame.

    A crop that follows every detection shakes the picture. This one is a fixed tube as long as the face stays in a dead
    zone around its centre; a face that leaves the zone pushes the crop along, just far enough to be on the zone's edge
    again, so the crop never jumps and comes to rest under jitter of any strength below the zone. The side has a dead
    zone of its own. A cut to another place or size starts afresh. The angle stays that of the first crop.
    """

    dead_zone: float = 0.08
    """Free movement of the face's centre in each direction, in units of the crop's side."""
    dead_scale: float = 0.15
    """Free relative change of the side."""
    restart: float = 0.6
    """A centre this many sides away, or a side changed by more than a factor of 2, is a cut."""
    crop: Crop | None = None
    """The latest crop."""

    def update(self, wanted: Crop) -> Crop:
        """The crop to use for a frame whose own crop, from its landmarks alone, is `wanted`."""
        held = self.crop
        if held is None or held.size != wanted.size:
            self.crop = wanted
            return wanted
        offset = np.subtract(wanted.center, held.center)
        distance = float(np.linalg.norm(offset))
        ratio = wanted.side / held.side
        if distance > self.restart * held.side or not 0.5 < ratio < 2.0:
            self.crop = wanted
            return wanted
        free = 1 + self.dead_scale
        side = held.side * (ratio / free if ratio > free else ratio * free if ratio < 1 / free else 1.0)
        excess = max(0.0, distance - self.dead_zone * side)
        x, y = np.asarray(held.center) + offset * (excess / distance if distance else 0.0)
        self.crop = Crop((float(x), float(y)), side, held.size, held.angle)
        return self.crop


def _check_image(name: str, image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.size == 0:
        raise ValueError(f"{name}: image must be uint8 (H, W, C), got {image.dtype} {image.shape}.")


def _rotation(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _resample(
    image: np.ndarray,
    matrix: np.ndarray,
    shape: tuple[int, int],
    *,
    outside: float | None = None,
    smooth: bool = False,
) -> np.ndarray:
    """(h, w, C) image whose point p shows the point of `image` that `matrix` (2, 3) sends to p; free of aliasing.

    Args:
        outside: value beyond the image's edge; None repeats the last pixels.
        smooth: linear instead of cubic where the image is enlarged (weights must not ring).
    """
    rows, columns = shape
    linear = matrix[:, :2]
    shrink = 1 / math.sqrt(abs(float(np.linalg.det(linear))))  # input pixels per output pixel
    inverse = np.linalg.inv(linear)
    corners = (np.array([(0, 0), (columns, 0), (0, rows), (columns, rows)]) - matrix[:, 2]) @ inverse.T
    # Only the part that shows is touched (with a margin for the filters). It keeps a 40-megapixel photo cheap, and
    # within the 32,767 pixels that OpenCV's warp can address.
    height, width = image.shape[:2]
    margin = 4 + math.ceil(shrink)
    left, top = (int(v) for v in np.clip(np.floor(corners.min(0)) - margin, 0, (width - 1, height - 1)))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(0)) + margin, (left + 1, top + 1), (width, height)))
    part = image[top:bottom, left:right]
    offset = matrix[:, 2] + linear @ (left, top)

    border = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT
    whole = max(1, int(shrink / 2))
    if whole > 1:  # first by a whole number, exactly: every reduced pixel is the mean of whole x whole pixels
        pad_y, pad_x = -part.shape[0] % whole, -part.shape[1] % whole
        part = cv2.copyMakeBorder(part, 0, pad_y, 0, pad_x, border, value=(outside or 0.0,) * 4)
        reduced = (part.shape[1] // whole, part.shape[0] // whole)
        part = cv2.resize(part, reduced, interpolation=cv2.INTER_AREA)
        linear = linear * whole
    # Then fine: `fine` x `fine` samples for every output pixel, averaged.
    fine = max(1, math.ceil(shrink / whole - 1e-6))
    linear, offset = linear * fine, offset * fine
    # OpenCV counts from pixel centres: continuous = index + 0.5 on both sides.
    affine = np.column_stack([linear, offset + linear @ (0.5, 0.5) - 0.5])
    flags = cv2.INTER_LINEAR if smooth or fine > 1 else cv2.INTER_CUBIC
    fill = (outside or 0.0,) * 4
    warped = cv2.warpAffine(
        part, affine, (columns * fine, rows * fine), flags=flags, borderMode=border, borderValue=fill
    )
    if fine > 1:
        warped = cv2.resize(warped, (columns, rows), interpolation=cv2.INTER_AREA)
    return warped if warped.ndim == image.ndim else warped[..., None]


@lru_cache(maxsize=8)
def _ramp(size: int, feather: float) -> np.ndarray:
    """(size, size) float32 weight: 1 inside, a cosine ramp to 0 at the border."""
    distance = (np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5) / max(feather * size, 0.5)
    edge = (0.5 - 0.5 * np.cos(np.pi * np.clip(distance, 0, 1))).astype(np.float32)
    ramp = np.minimum(edge[:, None], edge[None, :])
    ramp.setflags(write=False)  # shared by the cache
    return ramp


def _changed(crop_image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(size, size) float32: 0 where both are equal, rising smoothly to 1 where they differ by `_CHANGED` levels."""
    if reference.shape != crop_image.shape or reference.dtype != np.uint8:
        raise ValueError(f"paste: reference must be uint8 {crop_image.shape}, got {reference.dtype} {reference.shape}.")
    difference = cv2.absdiff(crop_image, reference).max(axis=2).astype(np.float32)
    spread = cv2.dilate(np.minimum(difference / _CHANGED, 1.0), np.ones((7, 7), np.uint8))
    return cv2.GaussianBlur(spread, (0, 0), 2.0)
