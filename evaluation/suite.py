"""The metrics of a run: which ones there are with what is installed, what each one means, and their values.

| asked for   | with the user's weights     | always there                                                       |
|-------------|-----------------------------|--------------------------------------------------------------------|
| LPIPS       | lpips_alex, lpips_vgg       | perceptual_effnet                                                  |
| FID         | fid_inception               | frechet_effnet                                                     |
| CSIM        | csim_arcface                | facecos_effnet (no face recogniser), shape_open (fitted head)      |
| AKD         | akd_fan68                   | akd_mediapipe68, akd_mediapipe468                                  |
| AED (FOMM)  | aed_arcface                 | aed_effnet                                                         |
| AED (PWM)   | -                           | aed_expression_open                                                |
| APD, PRMSE  | -                           | apd_open, prmse_open                                               |
| AUCON       | -                           | aucon_arkit                                                        |
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..geom.camera import Camera
from ..geom.head import HeadParams
from ..nets import depth_metrics
from ..nets.model_file import file_hash
from ..nets.perceptual import Backbone
from ..render.surface import depth_image
from ..third_party.backbones import load_backbone
from . import metrics
from .backbones import (
    EYE_CORNERS,
    MESH_68,
    Card,
    FaceEmbedding,
    FaceReader,
    FanReader,
    Features,
    Found,
    PictureEmbedding,
    as_batch,
    fan_weights,
    find_weights,
    head_of,
)
from .dataset import Picture
from .lpips import Lpips, Trunk

Against = Literal["truth", "driving", "source", "itself"]
Kind = Literal["pair", "set", "sequence"]
NONE = Card("none", "", "a formula on pixels")


@dataclass(frozen=True)
class Metric:
    """What a column of numbers is."""

    name: str
    title: str
    formula: str
    better: Literal["lower", "higher"]
    unit: str
    against: Against
    """What the result is held against: truth = the driving frame of the same clip, driving = the driving frame whoever
    it shows, source = the source picture."""
    card: Card
    kind: Kind = "pair"
    stands_for: str = ""
    """The published metric that this one takes the place of, where it is not the published one itself."""
    reduction: str = "mean over pairs"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """Values with the same one are comparable."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Item:
    """One result and what it is held against; pictures (size, size, 3)."""

    result: Picture
    driving: Picture
    """As it is in the clip, not stretched."""
    source: Picture
    truth: bool
    """Whether `driving` is what the result should look like."""
    exact: tuple[HeadParams, Camera] | None = None
    """The driving frame's true head, of synthetic clips."""


@dataclass
class Scores:
    """Values of some pairs."""

    values: list[dict[str, float]]
    """Of each pair; what is not defined for it is left out."""
    found: list[bool]
    """Whether a face was found in the result."""


@dataclass
class _Seen:
    """What the readers saw in the pictures of some items."""

    result: list[Found]
    driving: list[Found]
    source: list[Found]
    embedded: dict[str, tuple[list[Found], list[Found], list[Found]]] = field(default_factory=dict)


class Suite:
    """All metrics that this machine can compute, and their values.

    Args:
        features: where what is seen in pictures is kept.
        weights: folder of official weights, see `backbones.find_weights`.
    """

    def __init__(self, features: Features, weights: Path | None = None) -> None:
        metrics.need_torchmetrics()
        self.features = features
        self.faces = FaceReader()
        self._backbone: Backbone = load_backbone("efficientnet_lite0")
        self._effnet_sha = _tensor_hash(self._backbone)
        self._lpips: dict[Trunk, tuple[Lpips, Card]] = {}
        for trunk, key in (("alex", "alexnet"), ("vgg", "vgg16")):
            if path := find_weights(key, weights):
                model = Lpips.from_files(trunk, path)  # type: ignore[arg-type]
                self._lpips[trunk] = (model, Card(f"lpips_{trunk}", file_hash(path), "v0.1"))  # type: ignore[index]
        self.identity = [FaceEmbedding.efficientnet(self._backbone, self._effnet_sha, self._faces_of)]
        if path := find_weights("arcface", weights):
            self.identity.append(FaceEmbedding.arcface(path, self._faces_of))
        self.pictures = [PictureEmbedding.efficientnet(self._backbone, self._effnet_sha)]
        if path := find_weights("inception", weights):
            self.pictures.append(PictureEmbedding.inception(path))
        fan = fan_weights()
        self.fan = FanReader(fan) if fan else None
        self.metrics = {metric.name: metric for metric in self._list()}

    @property
    def fingerprint(self) -> str:
        """Of all metrics of single pairs."""
        parts = [m.fingerprint for m in self.metrics.values() if m.kind == "pair"]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def score(self, items: Sequence[Item]) -> Scores:
        """The metrics of single pairs."""
        seen = self._look(items)
        values: list[dict[str, float]] = [{} for _ in items]
        self._score_pixels(items, values)
        for number, (item, found) in enumerate(zip(items, values, strict=True)):
            self._score_faces(item, number, seen, found)
        values = [{name: v for name, v in found.items() if math.isfinite(v)} for found in values]
        return Scores(values, [bool(face["found"][0]) for face in seen.result])

    def vectors(self, pictures: Sequence[Picture]) -> dict[str, metrics.Array]:
        """What the Frechet distances compare: metric -> (n, D)."""
        return {
            _frechet_name(embedding.card): np.stack(
                [found["vector"] for found in self.features.of(embedding, pictures)]
            ).astype(np.float64)
            for embedding in self.pictures
        }

    def jitters(self, results: Sequence[Picture], truths: Sequence[Picture] | None) -> dict[str, float]:
        """Jitter of one sequence, and the part of it that the truth does not have."""
        ours, unit = self._landmarks(results)
        values = {"jitter_mediapipe": metrics.jitter(ours, unit)}
        if truths is not None:
            theirs, unit = self._landmarks(truths)
            values["jitter_error_mediapipe"] = metrics.jitter(ours - theirs, unit)
        return values

    def _faces_of(self, pictures: Sequence[Picture]) -> list[Found]:
        return self.features.of(self.faces, pictures)

    def _landmarks(self, pictures: Sequence[Picture]) -> tuple[metrics.Array, metrics.Array]:
        """(T, 468, 2) px, nan where no face was found, and the eye distances (T,)."""
        points = np.full((len(pictures), 468, 2), np.nan)
        for i, face in enumerate(self._faces_of(pictures)):
            if face["found"][0]:
                points[i] = face["landmarks"][:468, :2]
        return points, np.linalg.norm(points[:, EYE_CORNERS[0]] - points[:, EYE_CORNERS[1]], axis=-1)

    def _look(self, items: Sequence[Item]) -> _Seen:
        sets = [[i.result for i in items], [i.driving for i in items], [i.source for i in items]]
        faces = [self._faces_of(pictures) for pictures in sets]
        seen = _Seen(faces[0], faces[1], faces[2])
        for embedding in self.identity:
            a, b, c = (self.features.of(embedding, pictures) for pictures in sets)
            seen.embedded[embedding.card.name] = (a, b, c)
        if self.fan:
            first, second = (self.features.of(self.fan, pictures) for pictures in sets[:2])
            seen.embedded[self.fan.card.name] = (first, second, [])
        return seen

    def _score_pixels(self, items: Sequence[Item], values: list[dict[str, float]]) -> None:
        judged = [i for i, item in enumerate(items) if item.truth]
        if not judged:
            return
        result = as_batch([items[i].result for i in judged])
        truth = as_batch([items[i].driving for i in judged])
        with torch.inference_mode():
            found: dict[str, Tensor] = {
                "l1": metrics.l1(result, truth),
                "psnr": metrics.psnr(result, truth),
                "ssim": metrics.ssim(result, truth),
                "ms_ssim": metrics.ms_ssim(result, truth),
                "perceptual_effnet": _perceptual(self._backbone, result, truth),
                **{card.name: model(result, truth) for model, card in self._lpips.values()},
            }
        for name, row in found.items():
            for i, value in zip(judged, row.tolist(), strict=True):
                values[i][name] = value

    def _score_faces(self, item: Item, number: int, seen: _Seen, values: dict[str, float]) -> None:
        ours, theirs, source = seen.result[number], seen.driving[number], seen.source[number]
        for name, (results, drivings, sources) in seen.embedded.items():
            if self.fan and name == self.fan.card.name:
                if item.truth and _both(results[number], drivings[number]):
                    pair = results[number]["landmarks68"], drivings[number]["landmarks68"]
                    values["akd_fan68"] = metrics.keypoint_distance(*pair)
                continue
            short = _SHORT[name]
            if _both(results[number], sources[number]):
                values[f"{_COSINE[short]}_source"] = metrics.cosine(
                    results[number]["vector"], sources[number]["vector"]
                )
            if item.truth and _both(results[number], drivings[number]):
                pair = results[number]["vector"], drivings[number]["vector"]
                values[_COSINE[short]] = metrics.cosine(*pair)
                values[f"aed_{short}"] = metrics.identity_distance(*pair)
        if _both(ours, source):
            values["shape_open"] = self._shape_distance(ours, source)
        if not _both(ours, theirs):
            return
        values["apd_open"] = metrics.pose_distance(ours["pose"], theirs["pose"])
        values["prmse_open"] = metrics.pose_error(ours["pose"], theirs["pose"])
        values["aed_expression_open"] = float(np.abs(ours["head.expression"] - theirs["head.expression"]).mean())
        values["aucon_arkit"] = metrics.unit_agreement(ours["units"], theirs["units"])
        if item.truth:
            points = ours["landmarks"][:, :2], theirs["landmarks"][:, :2]
            values["akd_mediapipe68"] = metrics.keypoint_distance(*(p[MESH_68] for p in points))
            values["akd_mediapipe468"] = metrics.keypoint_distance(*(p[:468] for p in points))
        if item.truth and item.exact:
            size = (item.result.shape[0], item.result.shape[1])
            values["side_open"], values["mad_open"] = self._surface_errors(head_of(ours), item.exact, size)

    def _shape_distance(self, ours: Found, theirs: Found) -> float:
        """mm between the neutral faces of two fits, after the best shift."""
        head = self.faces.head
        shapes = torch.from_numpy(np.stack([ours["head.shape"], theirs["head.shape"]]))
        rest = HeadParams.zeros(head, 2).replace(shape=shapes)
        points = head.embeddings["mediapipe"].points(head(rest))  # type: ignore[operator]
        points = points - points.mean(1, keepdim=True)
        return float(1000 * (points[0] - points[1]).norm(dim=-1).mean())

    def _surface_errors(
        self, ours: tuple[HeadParams, Camera], truth: tuple[HeadParams, Camera], size: tuple[int, int]
    ) -> tuple[float, float]:
        """SIDE (times 100) and MAD (degrees) of the head fitted to the result against the true head."""
        faces = self.faces.head.faces
        depths = [
            depth_image(self.faces.head(params), faces, camera, size, background=math.inf)
            for params, camera in (ours, truth)
        ]
        mask = depth_metrics.erode(depths[0].isfinite()) & depth_metrics.erode(depths[1].isfinite())
        if not mask.any():
            return math.nan, math.nan
        normals = [_normals(depth, camera) for depth, (_, camera) in zip(depths, (ours, truth), strict=True)]
        side = depth_metrics.side(depths[0], depths[1], mask)
        return 100 * float(side[0]), float(depth_metrics.mad(normals[0], normals[1], mask)[0])

    def _list(self) -> Iterable[Metric]:
        effnet = Card("efficientnet_lite0", self._effnet_sha, "features of 5 blocks")
        head, marks = self.faces.card, self.faces.landmarks_card
        yield Metric("l1", "L1", "mean |a - b| over pixels and channels", "lower", "of [0, 1]", "truth", NONE)
        yield Metric("psnr", "PSNR", "10 log10(1 / mean (a - b)^2), at most 99", "higher", "dB", "truth", NONE)
        window = "Gaussian 11 px, sigma 1.5, K .01 .03, mirrored borders, mean over RGB (torchmetrics)"
        yield Metric("ssim", "SSIM", f"structural similarity; {window}", "higher", "", "truth", NONE)
        yield Metric("ms_ssim", "MS-SSIM", f"five scales; {window}", "higher", "", "truth", NONE)
        unit = "sum over layers of mean over pixels of sum over channels w (f/|f| - g/|g|)^2"
        yield Metric(
            "perceptual_effnet",
            "perceptual (EffNet)",
            f"{unit}, w = 1, mean over 5 layers",
            "lower",
            "",
            "truth",
            effnet,
            stands_for="LPIPS",
        )
        for _, card in self._lpips.values():
            yield Metric(card.name, f"LPIPS ({card.name[6:]})", unit, "lower", "", "truth", card)
        moments = "|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2); against the sources where there is no truth"
        for embedding in self.pictures:
            real = embedding.card.name.startswith("inception")
            yield Metric(
                _frechet_name(embedding.card),
                "FID" if real else "Frechet (EffNet)",
                moments,
                "lower",
                "",
                "truth",
                embedding.card,
                "set",
                "" if real else "FID",
                "one number for the set; falls with the number of pairs",
            )
        for identity in self.identity:
            short = _SHORT[identity.card.name]
            real = short == "arcface"
            title = "CSIM" if real else "face cosine (EffNet)"
            cosine, stands = _COSINE[short], "" if real else "CSIM"
            text = "cosine of embeddings of the aligned faces"
            yield Metric(cosine, title, text, "higher", "", "truth", identity.card, stands_for=stands)
            yield Metric(
                f"{cosine}_source", f"{title} to source", text, "higher", "", "source", identity.card, stands_for=stands
            )
            text = "Euclidean distance of embeddings of length one"
            stands = "AED (identity; FOMM's embedding is OpenFace's)"
            yield Metric(
                f"aed_{short}", f"AED identity ({short})", text, "lower", "", "truth", identity.card, stands_for=stands
            )
        text = "mean distance of the 468 mesh points of the two fitted neutral heads, centred"
        yield Metric("shape_open", "head shape", text, "lower", "mm", "source", head, stands_for="CSIM")
        text = "mean |dx|, |dy| over landmarks"
        for name, title in (("akd_mediapipe68", "AKD (MediaPipe 68)"), ("akd_mediapipe468", "AKD (MediaPipe 468)")):
            yield Metric(
                name, title, text, "lower", "px", "truth", marks, stands_for="AKD (68 points of face-alignment)"
            )
        if self.fan:
            yield Metric("akd_fan68", "AKD", text, "lower", "px", "truth", self.fan.card)
        text = "mean |difference| of yaw, pitch, roll of the fitted heads"
        yield Metric(
            "apd_open", "APD (open head)", text, "lower", "degrees", "driving", head, stands_for="APD (FLAME, DECA)"
        )
        text = "mean |difference| of the expression coefficients of the fitted heads"
        yield Metric(
            "aed_expression_open",
            "AED expression (open head)",
            text,
            "lower",
            "standard deviations",
            "driving",
            head,
            stands_for="AED (PWM: FLAME, DECA)",
        )
        text = "sqrt(mean squared difference of yaw, pitch, roll)"
        yield Metric(
            "prmse_open", "PRMSE (open head)", text, "lower", "degrees", "driving", head, stands_for="PRMSE (py-feat)"
        )
        text = "share of the 52 ARKit units that are > .5 in both or in neither"
        yield Metric(
            "aucon_arkit", "AUCON (ARKit)", text, "higher", "", "driving", marks, stands_for="AUCON (py-feat's AUs)"
        )
        text = "sd of log depth difference, head fitted to the result against the true head, x 100"
        yield Metric("side_open", "SIDE", text, "lower", "1e-2", "truth", head)
        text = "mean angle between normals from those depths"
        yield Metric("mad_open", "MAD", text, "lower", "degrees", "truth", head)
        text = "rms acceleration of the 468 landmarks / eye distance"
        yield Metric(
            "jitter_mediapipe",
            "jitter",
            text,
            "lower",
            "%",
            "itself",
            marks,
            "sequence",
            reduction="mean over sequences",
        )
        text = "rms acceleration of (landmarks - those of the truth) / eye distance"
        yield Metric(
            "jitter_error_mediapipe",
            "jitter error",
            text,
            "lower",
            "%",
            "truth",
            marks,
            "sequence",
            reduction="mean over sequences",
        )


_SHORT = {"efficientnet_lite0_face": "effnet", "arcface": "arcface"}
_COSINE = {"effnet": "facecos_effnet", "arcface": "csim_arcface"}


def _frechet_name(card: Card) -> str:
    return "fid_inception" if card.name.startswith("inception") else "frechet_effnet"


def _both(first: Found, second: Found) -> bool:
    return bool(first["found"][0] and second["found"][0])


def _perceptual(backbone: Backbone, first: Tensor, second: Tensor) -> Tensor:
    """(B,): LPIPS's distance on another network, without its calibration."""
    layers = []
    for a, b in zip(backbone(first), backbone(second), strict=True):
        units = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
        layers.append((units[0] - units[1]).square().sum(1).mean((1, 2)))
    return torch.stack(layers).mean(0)


def _normals(depth: Tensor, camera: Camera) -> Tensor:
    """(B, 3, H, W) unit normals of a depth map from its neighbours in the picture, towards the camera."""
    height, width = depth.shape[-2:]
    x = (torch.arange(width) + 0.5 - camera.principal[:, :1])[:, None] / camera.focal[:, None, None]
    y = (torch.arange(height) + 0.5 - camera.principal[:, 1:])[:, :, None] / camera.focal[:, None, None]
    z = depth[:, 0].nan_to_num(posinf=0.0)
    points = torch.stack([x * z, -y * z, -z], 1)
    across = torch.zeros_like(points)
    down = torch.zeros_like(points)
    across[..., 1:-1] = points[..., 2:] - points[..., :-2]
    down[..., 1:-1, :] = points[..., 2:, :] - points[..., :-2, :]
    return torch.nn.functional.normalize(torch.linalg.cross(down, across, dim=1), dim=1, eps=1e-12)


def _tensor_hash(network: torch.nn.Module) -> str:
    """sha256 of a network's weights in the order of their names, where its file is not known."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
