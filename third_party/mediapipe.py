"""MediaPipe's face models, run by LiteRT: detectors, 478 landmarks, 52 face units, person mask.

The model files come with the package (Apache-2.0, see mediapipe.md beside this file). The code is ours and follows the
published graphs: anchors and box coding of the BlazeFace detectors (Bazarevsky et al., "BlazeFace: Sub-millisecond
Neural Face Detection on Mobile GPUs", 2019), a rotated square region per face, landmarks in that region
(Grishchenko et al., "Attention Mesh", 2020), face units from 146 of them.

    picture --detect--> boxes + 6 points --region_of_detection--> Region --landmarks--> (478, 3) --face_units--> (52,)
                                               ^                              |
                                               +---- region_of_landmarks <----+      (next video frame, refinement)

Pictures are uint8 (H, W, 3) RGB; coordinates are continuous pixels (the centre of pixel 0 is 0.5). "Left" and "right"
are the person's.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geom import arkit

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]

ASSETS = Path(__file__).parent.parent / "assets"
LANDMARKS = 478
"""468 mesh points, then 5 points of each iris: 468 ... 472 right, 473 ... 477 left (centre first)."""

RIGHT_EYE_CORNERS = (33, 133)
"""Outer and inner corner of the person's right eye."""
LEFT_EYE_CORNERS = (263, 362)
RIGHT_IRIS, LEFT_IRIS = 468, 473
"""Centres of the irises."""
FACE_CONTOUR = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
"""The oval around the face, from the top of the forehead over the person's left cheek to the chin and back. These
points follow the outline in the picture, not a place of the skin."""
INNER_LIPS = (13, 14)
"""Middle of the upper and of the lower lip's inner edge."""
EYELIDS = ((386, 374), (159, 145))
"""Middle of the upper and of the lower lid's edge: left eye, right eye."""

# fmt: off
_UNIT_LANDMARKS = np.array([
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78, 80,
    81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152, 153,
    154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246, 249,
    251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312, 314,
    317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381, 382,
    384, 385, 386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472, 473,
    474, 475, 476, 477,
])
# fmt: on
"""(146,) landmarks that the face-unit model reads (`kLandmarksSubsetIdxs` of face_blendshapes_graph.cc)."""

_TO_ARKIT = np.array([arkit.INDEX[name] for name in arkit.MEDIAPIPE_NAMES[1:]])


@dataclass(frozen=True)
class Detections:
    """N faces found by a detector, best first."""

    boxes: Floats
    """(N, 4) x0, y0, x1, y1 in pixels; the box spans brows to chin."""
    keypoints: Floats
    """(N, 6, 2) pixels: right eye, left eye, nose tip, mouth, right ear, left ear."""
    scores: Floats
    """(N,) in [0, 1]."""

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: Any) -> Detections:
        """Some of the faces: slice, mask or index array."""
        return Detections(self.boxes[index], self.keypoints[index], self.scores[index])

    @staticmethod
    def none() -> Detections:
        return Detections(np.zeros((0, 4), np.float32), np.zeros((0, 6, 2), np.float32), np.zeros(0, np.float32))

    @staticmethod
    def cat(parts: Sequence[Detections]) -> Detections:
        """All faces of several results, in that order."""
        parts = [Detections.none(), *parts]
        return Detections(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("boxes", "keypoints", "scores")))


@dataclass(frozen=True)
class Region:
    """A rotated square of a picture."""

    x: float
    """Centre, pixels."""
    y: float
    size: float
    """Side, pixels."""
    angle: float
    """Radians; positive = clockwise in the picture (x towards y), 0 = an upright face."""

    def to_picture(self, points: NDArray[Any]) -> NDArray[Any]:
        """(..., 2) points in [0, 1] of the square -> pixels."""
        offset = (np.asarray(points) - 0.5) * self.size
        return offset @ self._turn().T.astype(offset.dtype) + np.array([self.x, self.y], offset.dtype)

    def _turn(self) -> NDArray[np.float64]:
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([[c, -s], [s, c]])

    def cut(self, image: Picture, side: int) -> Picture:
        """The square as an upright (side, side, 3) picture; black outside of the image."""
        # A large face is first shrunk by area averaging: plain bilinear sampling would alias.
        step = max(1, int(self.size / side))
        x, y = self.x, self.y
        part: NDArray[Any] = image
        if step > 1:
            reach = self.size * (abs(math.cos(self.angle)) + abs(math.sin(self.angle))) / 2
            height, width = image.shape[:2]
            x0, x1 = (int(np.clip(v, 0, width)) for v in (self.x - reach - step, self.x + reach + step))
            y0, y1 = (int(np.clip(v, 0, height)) for v in (self.y - reach - step, self.y + reach + step))
            columns, rows = max((x1 - x0) // step, 0), max((y1 - y0) // step, 0)
            if not columns or not rows:
                return np.zeros((side, side, 3), np.uint8)
            part = image[y0 : y0 + rows * step, x0 : x0 + columns * step]
            part = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
            x, y = (self.x - x0) / step, (self.y - y0) / step
        # cv2 counts pixels from their centres, hence the two halves: source = A (destination + .5) + b - .5
        linear = self._turn() * (self.size / step / side)
        shift = np.array([x, y]) + linear @ np.array([0.5 - side / 2] * 2) - 0.5
        matrix = np.concatenate([linear, shift[:, None]], 1)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(part, matrix, (side, side), flags=flags)  # type: ignore[return-value]


def region_of_detection(box: Floats, keypoints: Floats, scale: float = 1.5) -> Region:
    """The landmark model's region for a detected face: the box, `scale` times as large, turned by the eye line.

    Args:
        box: (4,) x0, y0, x1, y1 pixels.
        keypoints: (6, 2) pixels.
    """
    across = keypoints[1] - keypoints[0]
    size = scale * float(max(box[2] - box[0], box[3] - box[1]))
    return Region(
        float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2, size, math.atan2(float(across[1]), float(across[0]))
    )


def region_of_landmarks(landmarks: NDArray[Any], scale: float = 1.5) -> Region:
    """The landmark model's region for known landmarks: their bounding square along the eye line, enlarged.

    Args:
        landmarks: (478 or 468, 2 or 3) pixels.
    """
    points = np.asarray(landmarks, np.float64)[:468, :2]
    across = points[LEFT_EYE_CORNERS[0]] - points[RIGHT_EYE_CORNERS[0]]
    angle = math.atan2(across[1], across[0])
    turn = Region(0, 0, 1, angle)._turn()
    upright = points @ turn
    low, high = upright.min(0), upright.max(0)
    centre = turn @ (low + high) / 2
    return Region(float(centre[0]), float(centre[1]), scale * float((high - low).max()), angle)


class MediaPipe:
    """The models, loaded when first used. One instance may serve several threads (one call of a model at a time).

    Args:
        threads: CPU threads per model call; 1 is fastest for these small models when other work runs beside.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._models: dict[str, _Model] = {}
        self._loading = threading.Lock()

    def detect(
        self, image: Picture, model: Literal["full", "short"] = "full", *, threshold: float = 0.5, overlap: float = 0.3
    ) -> Detections:
        """Faces in a picture, best first.

        Args:
            image: (H, W, 3) uint8 RGB. Seen letterboxed at 192 (full) or 128 (short) pixels.
            model: "full" finds faces down to about 1/12 of the longer side; "short" is made for selfies and likes faces
                that fill the picture.
            threshold: least score, in [0, 1].
            overlap: boxes with a larger intersection over union are one face; their weighted mean is kept.
        """
        side = {"full": 192, "short": 128}[model]
        picture, scale, left, top = _letterbox(image, side)
        tensor = picture.astype(np.float32)[None] / 127.5 - 1.0
        codes, logits = self._run(f"detect_{model}", tensor)
        detections = decode_detections(codes[0], logits[0], side, _anchors(model), threshold, overlap)
        origin = np.array([left, top], np.float32)
        return Detections(
            (detections.boxes - np.tile(origin, 2)) / scale, (detections.keypoints - origin) / scale, detections.scores
        )

    def landmarks(self, image: Picture, region: Region) -> tuple[Floats, float]:
        """Landmarks of the face in a region.

        Args:
            image: (H, W, 3) uint8 RGB.
            region: where the face is; see `region_of_detection`.
        Returns:
            landmarks (478, 3): x, y pixels and z in the same unit, smaller = nearer to the viewer, 0 = about the
            middle of the head; and the presence of a face in [0, 1].
        """
        side = 256
        tensor = region.cut(image, side).astype(np.float32)[None] / 255.0
        points, presence = self._run("landmarks", tensor)[:2]  # the third output is not about presence
        local = points.reshape(LANDMARKS, 3) / side
        out = np.empty((LANDMARKS, 3), np.float32)
        out[:, :2] = region.to_picture(local[:, :2])
        out[:, 2] = local[:, 2] * region.size
        return out, float(_sigmoid(presence.reshape(-1)[0]))

    def face_units(self, landmarks: NDArray[Any]) -> Floats:
        """The 52 ARKit face units (order of `arkit.NAMES`, about [0, 1]; tongueOut is 0) of (478, 2 or 3) landmarks.

        The model normalises position and scale itself; the landmarks' unit does not matter.
        """
        scores = self._run("units", np.asarray(landmarks, np.float32)[None, _UNIT_LANDMARKS, :2])[0].reshape(-1)
        weights = np.zeros(len(arkit.NAMES), np.float32)
        weights[_TO_ARKIT] = scores[1:]
        return weights

    def person_mask(self, image: Picture) -> Floats:
        """(H, W) in [0, 1]: where a person is; made at 256 x 256 and enlarged."""
        height, width = image.shape[:2]
        small = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA if max(height, width) > 256 else 1)
        mask = self._run("person", small.astype(np.float32)[None] / 255.0)[0].reshape(256, 256)
        return np.clip(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1).astype(np.float32)

    def _run(self, name: str, tensor: Floats) -> list[NDArray[np.float32]]:
        with self._loading:
            if name not in self._models:
                self._models[name] = _Model(_FILES[name](), self.threads)
            model = self._models[name]
        return model(tensor)


class _Model:
    """A LiteRT interpreter with one input."""

    def __init__(self, content: bytes, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with _without_greeting():
            self._interpreter = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [o["index"] for o in self._interpreter.get_output_details()]
        self._lock = threading.Lock()

    def __call__(self, tensor: Floats) -> list[NDArray[np.float32]]:
        with self._lock:
            self._interpreter.set_tensor(self._input, np.ascontiguousarray(tensor, np.float32))
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(index) for index in self._outputs]


@contextmanager
def _without_greeting() -> Iterator[None]:
    """Keeps LiteRT's "INFO: Created TensorFlow Lite XNNPACK delegate" off stderr; no setting of its own does.

    It comes from native code, so the file descriptor is turned aside; everything else written meanwhile is passed on.
    """
    try:
        before = os.dup(2)
    except OSError:  # no stderr, as under pythonw: nothing to keep clean
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            aside.seek(0)
            rest = b"".join(line for line in aside if b"XNNPACK delegate for CPU" not in line)
            if rest:
                os.write(2, rest)


def _from_task(member: str) -> Callable[[], bytes]:
    def read() -> bytes:
        with zipfile.ZipFile(ASSETS / "face_landmarker.task") as task:
            return task.read(member)

    return read


_FILES: dict[str, Callable[[], bytes]] = {
    "detect_short": _from_task("face_detector.tflite"),
    "detect_full": lambda: (ASSETS / "face_detection_full_range_sparse.tflite").read_bytes(),
    "landmarks": _from_task("face_landmarks_detector.tflite"),
    "units": _from_task("face_blendshapes.tflite"),
    "person": lambda: (ASSETS / "selfie_segmentation.tflite").read_bytes(),
}


@cache
def _anchors(model: Literal["full", "short"]) -> Floats:
    """(A, 2) anchor centres in pixels of the model's input: cell centres, row by row, repeated per anchor of the cell.

    short: 128 px, strides 8, 16, 16, 16 with 2 anchors each; equal strides share their cells: 16 x 16 x 2 + 8 x 8 x 6 =
    896. full: 192 px, stride 4, one anchor: 2304.
    """
    side, layers = {"short": (128, ((8, 2), (16, 6))), "full": (192, ((4, 1),))}[model]
    parts = []
    for stride, repeats in layers:
        centres = (np.arange(side // stride, dtype=np.float32) + 0.5) * stride
        y, x = np.meshgrid(centres, centres, indexing="ij")
        parts.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), repeats, axis=0))
    return np.concatenate(parts)


def decode_detections(
    codes: Floats, logits: Floats, side: int, anchors: Floats, threshold: float, overlap: float
) -> Detections:
    """Detector output -> faces in input pixels.

    Args:
        codes: (A, 16) centre x, y relative to the anchor, width, height, then 6 points x, y relative to the anchor;
            all in pixels of the input.
        logits: (A, 1).
        side: input size, pixels; boxes outside of it are dropped.
        anchors: (A, 2) pixels.
        threshold, overlap: see `MediaPipe.detect`.
    """
    scores = _sigmoid(logits.reshape(-1))
    keep = (scores >= threshold) & (codes[:, 2] > 0) & (codes[:, 3] > 0)
    codes, scores, anchors = codes[keep], scores[keep], anchors[keep]
    centre, half = codes[:, :2] + anchors, codes[:, 2:4] / 2
    keypoints = codes[:, 4:].reshape(-1, 6, 2) + anchors[:, None]
    inside = ((centre >= 0) & (centre <= side)).all(1)
    found = Detections(np.concatenate([centre - half, centre + half], 1), keypoints, scores)
    return merge_overlapping(found[inside], overlap)


def merge_overlapping(found: Detections, overlap: float) -> Detections:
    """Weighted non-maximum suppression: every group of overlapping boxes becomes its score-weighted mean.

    The best remaining box takes all boxes that it overlaps by more than `overlap` (intersection over union); box and
    points are averaged, which is steadier over time than the best box alone; the best score stays.
    """
    order = np.argsort(-found.scores, kind="stable")
    boxes, keypoints, scores = [], [], []
    while len(order):
        best = order[0]
        group = _overlaps(found.boxes[best], found.boxes[order]) > overlap
        group[0] = True
        members, order = order[group], order[~group]
        weights = found.scores[members] / found.scores[members].sum()
        boxes.append(weights @ found.boxes[members])
        keypoints.append(np.tensordot(weights, found.keypoints[members], 1))
        scores.append(found.scores[best])
    if not boxes:
        return Detections.none()
    return Detections(*(np.asarray(np.stack(part), np.float32) for part in (boxes, keypoints, scores)))


def _overlaps(box: Floats, boxes: Floats) -> Floats:
    """(N,) intersection over union of (4,) with (N, 4)."""
    size = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None)
    common = size.prod(1)
    area = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common
    return common / np.maximum(area, 1e-9)


def _letterbox(image: Picture, side: int) -> tuple[Picture, float, int, int]:
    """The picture, scaled to fit a black square of `side`; and scale, left and top margin: x' = scale x + left."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    small = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    left, top = (side - columns) // 2, (side - rows) // 2
    out = np.zeros((side, side, 3), np.uint8)
    out[top : top + rows, left : left + columns] = small
    return out, scale, left, top


def _sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))
