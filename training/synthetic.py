"""Synthetic talking heads for training: endless samples of random people, with exact truth.

    person (seed) -> shape, skin, hair ...        kept ready in each worker, made anew when it was dropped
    sample        -> motion, camera, light, place, clothes -> frames, drawn on the fly by `render.synthetic.Person`

Everything is a pure function of numbers: the same numbers give the same pictures on every machine, in every worker.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..geom import arkit
from ..geom.camera import Camera
from ..geom.head import HeadModel, HeadParams, load_head
from ..geom.landmarks import Embedding
from ..geom.track import FaceTrack
from ..media.errors import InputError
from ..render.synthetic import (
    Frame,
    Person,
    replay_motion,
    resting_place,
    sample_appearance,
    sample_face,
    sample_identity,
    sample_performance,
)
from .batch import Batch, View
from .data.source import Request

_PERSON, _HELD_OUT = range(2)  # streams of seeds
_MARGIN = 1.04
"""A crop holds all landmarks of its clip and this much more, as a factor."""


@dataclass(frozen=True)
class SyntheticParams:
    """Synthetic people as a source of training samples."""

    people: int = 256
    """Identities; each gives endless samples."""
    held_out: int = 64
    """Samples of the validation set, each of a person of its own that is not among `people`."""
    seed: int = 0
    """Another seed is another set of people."""
    seconds: float = 4.0
    """Length of the performance out of which the moments of a sample are drawn."""
    fps: float = 25.0
    scale: tuple[float, float] = (2.0, 2.6)
    """Side of the crop in face sizes (longer side of the landmarks' box), from and to."""
    tracks: str | None = None
    """Folder with fitted tracks (*.safetensors, searched in all folders below) whose motion people may also do."""
    replay: float = 0.5
    """Share of the samples that take their motion from `tracks`."""
    turn: float = 1.0
    """How far the heads of the others turn, as a factor; 1 is what talking people do."""
    keep: int = 256
    """People that each worker keeps ready, about 2 MB each; more people than that are made again and again."""
    device: str = "cpu"
    """Where pictures are drawn. A GPU wants `run_params.workers: 0`: forked processes cannot use it."""

    def __post_init__(self) -> None:
        if self.people < 1 or self.held_out < 1 or self.keep < 1:
            raise ValueError("synthetic: people, held_out and keep must be at least 1.")
        if not 1.0 <= self.scale[0] <= self.scale[1]:
            raise ValueError(f"synthetic: scale must be two rising numbers of at least 1, got {list(self.scale)}.")
        if self.seconds <= 0 or self.fps <= 0 or self.turn < 0 or not 0 <= self.replay <= 1:
            raise ValueError("synthetic: seconds and fps must be positive, turn not negative, replay between 0 and 1.")


@dataclass
class Scene:
    """What one synthetic clip shows, before it is drawn."""

    params: HeadParams
    """(T)"""
    camera: Camera
    """One, in the pixels of the picture."""
    blendshapes: Tensor
    """(T, 52) ARKit weights."""
    look: int
    """Seed of light, place and clothes."""
    motion: str
    """Where the motion comes from: "sampled", or the name of a track."""


@dataclass
class Cast:
    """The people of a source in one process, and the tracks whose motion they may do."""

    head: HeadModel
    """On the CPU, where people and scenes are made up."""
    size: int
    """Longer side of the pictures, for the detail of skin and hair."""
    keep: int = 256
    tracks: Sequence[Path] = ()
    replay: float = 0.5
    turn: float = 1.0
    device: str = "cpu"
    """Where people are drawn."""
    _people: OrderedDict[int, Person] = field(default_factory=OrderedDict)

    def person(self, seed: int) -> Person:
        """The person of a seed; the last `keep` ones asked for are ready."""
        if seed in self._people:
            self._people.move_to_end(seed)
            return self._people[seed]
        look = sample_appearance(seed, self.head, resolution=self.size, draft=True)
        person = self._people[seed] = Person(shared_head(self.device), sample_identity(seed, self.head), look)
        if len(self._people) > self.keep:
            self._people.popitem(last=False)
        return person

    def scene(
        self,
        shape: Tensor,
        rng: np.random.Generator,
        *,
        frames: int,
        fps: float,
        size: tuple[int, int],
        scale: tuple[float, float],
        moments: Sequence[int] | None = None,
        rare: float = 0.0,
    ) -> Scene:
        """A random motion of a person, seen by a random camera whose picture is cropped around the face.

        Args:
            shape: (1, S) of the person.
            rng: everything random comes from it.
            frames, fps: of the whole motion.
            size: (H, W) of the pictures.
            scale: side of the crop in face sizes, from and to.
            moments: the frames to keep, rising; None keeps all. The crop holds the face in these.
            rare: share of the frames with an expression that talking people seldom have, unlike that of the frame
                before. Head and gaze move on as if nothing were.
        """
        look, motion_seed = (int(rng.integers(1 << 31)) for _ in range(2))
        place = resting_place(float(np.clip(0.95 * math.exp(rng.normal(0, 0.25)), 0.55, 1.8)))
        # The face is seldom in the middle of what the camera sees.
        place[0, :2] += -place[0, 2] * torch.from_numpy(np.clip(rng.normal(0, 0.07, 2), -0.16, 0.16)).float()
        name = "sampled"
        if self.tracks and rng.random() < self.replay:
            path = self.tracks[int(rng.integers(len(self.tracks)))]
            name = path.parent.name if path.stem == "clip" else path.stem
            track = _piece(_load_track(path, self.head), frames, fps, rng)
            params, blendshapes = replay_motion(track, self.head, shape.cpu(), place), track.blendshapes
        else:
            show = sample_performance(motion_seed, frames, fps, self.turn)
            params, blendshapes = show.params(self.head, shape.cpu(), place), show.weights
        if moments is not None:
            kept = list(moments)
            params, blendshapes = params[kept], blendshapes[kept]
        if rare:
            params, blendshapes = self._made_rare(params, blendshapes, rare, rng)
        camera = _crop_camera(landmarks(self._face(), params), size, float(rng.uniform(*scale)), rng)
        return Scene(params, camera, blendshapes, look, name)

    def _made_rare(
        self, params: HeadParams, blendshapes: Tensor, share: float, rng: np.random.Generator
    ) -> tuple[HeadParams, Tensor]:
        """The frames, a share of them with the expression of `sample_face`."""
        chosen = torch.from_numpy(rng.random(len(params)) < share)[:, None]
        weights = torch.from_numpy(np.stack([sample_face(rng) for _ in range(len(params))]))
        faces = self.head.arkit(weights)
        changed = {n: torch.where(chosen, faces[n], getattr(params, n)) for n in ("expression", "jaw", "eyelids")}
        looking = torch.tensor([name.startswith("eyeLook") for name in arkit.NAMES])
        return params.replace(**changed), torch.where(chosen & ~looking, weights, blendshapes)

    def _face(self) -> HeadModel:
        """The head with the vertices of the landmarks only."""
        if not hasattr(self, "_subset"):
            embedding = self.head.embeddings["mediapipe"]
            assert isinstance(embedding, Embedding)
            self._subset = self.head.subset(embedding.corners.unique())
        return self._subset


class SyntheticPeople:
    """Synthetic people as a `training.data.Source`: index = person, rng = motion, camera, light, place and clothes.

    Held out: every sample has a person and a scene of its own; the random generator is not used.
    """

    def __init__(self, params: SyntheticParams, request: Request, split: Literal["train", "test"] = "train") -> None:
        """
        Args:
            params, request: see there. Heights and widths of any proportion.
            split: "test" is the held-out set.
        Raises:
            InputError: `params.tracks` holds no tracks, or there is no GPU where one is wanted.
        """
        if params.device.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(
                f"dataset_params.synthetic.device is {params.device}, but torch sees no GPU here; use cpu."
            )
        self.params, self.request, self.split = params, request, split
        self._tracks = find_tracks(params.tracks) if params.tracks else []
        self._cast: Cast | None = None

    def __len__(self) -> int:
        return self.params.people if self.split == "train" else self.params.held_out

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """See `training.data.Source`."""
        cast, request = self._open(), self.request
        if self.split == "test":
            rng = np.random.default_rng((self.params.seed, _HELD_OUT, index))
        seed = person_seed(self.params.seed, index, self.split)
        person = cast.person(seed)
        frames = max(round(self.params.seconds * self.params.fps), request.moments)
        moments = np.sort(rng.choice(frames, request.moments, replace=False))
        scene = cast.scene(
            person.shape,
            rng,
            frames=frames,
            fps=self.params.fps,
            size=request.size,
            scale=self.params.scale,
            moments=moments.tolist(),
        )
        order = rng.permutation(request.moments) if request.moments == 2 else np.arange(request.moments)
        actor = person.elsewhere(scene.look)
        device = torch.device(self.params.device)
        frame = actor.render(scene.params.to(device), scene.camera.to(device), request.size)
        views = [view_of(cast.head, frame, scene, int(k), request.needs | request.truth) for k in order]
        return Batch(views, [f"synthetic-{seed}"])

    def _open(self) -> Cast:
        if self._cast is None:
            size = max(self.request.size)
            params = self.params
            self._cast = Cast(
                shared_head("cpu"), size, params.keep, self._tracks, params.replay, params.turn, params.device
            )
        return self._cast

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cast": None}  # workers make their own


@lru_cache(maxsize=2)
def shared_head(device: str) -> HeadModel:
    """The open head of this process; what is made once per head (charts, cuts of hair) serves all sources."""
    return load_head("open").to(device)


def person_seed(seed: int, index: int, split: str = "train") -> int:
    """The seed of a person, for `sample_appearance` and `sample_identity`."""
    stream = _HELD_OUT if split == "test" else _PERSON
    return int(np.random.SeedSequence((seed, stream, index)).generate_state(1)[0]) & 0x7FFFFFFF


def view_of(head: HeadModel, frame: Frame, scene: Scene, k: int, needs: frozenset[str] = frozenset()) -> View:
    """Frame k of a drawn scene as a view of batch 1 on the CPU; big truth only where it is needed."""
    truth = {n: getattr(frame, n)[k : k + 1].cpu() for n in ("depth", "normals", "segmentation") if n in needs}
    return View(
        image=to_bytes(frame.image[k : k + 1]).cpu(),
        params=scene.params[k],
        camera=scene.camera,
        landmarks=landmark_pixels(head, frame.vertices[k : k + 1], scene.camera),
        **truth,
    )


def to_bytes(image: Tensor) -> Tensor:
    """uint8 of pictures in [0, 1]."""
    return (image * 255 + 0.5).to(torch.uint8)


def landmarks(head: HeadModel, params: HeadParams) -> Tensor:
    """(B, 478, 3) MediaPipe's landmarks in the world."""
    embedding = head.embeddings["mediapipe"]
    assert isinstance(embedding, Embedding)
    return embedding.points(head(params))


def landmark_pixels(head: HeadModel, vertices: Tensor, camera: Camera) -> Tensor:
    """(B, 478, 3) landmarks of vertices (B, N, 3) in pixels; the third column is the depth relative to their mean, in
    pixels at that depth, smaller is nearer, as MediaPipe has it."""
    embedding = head.embeddings["mediapipe"]
    assert isinstance(embedding, Embedding)
    return relative_depth(camera.project(embedding.points(vertices.cpu())), camera)


def relative_depth(projected: Tensor, camera: Camera) -> Tensor:
    """Projected points (B, L, 3) with their depth in metres turned into relative depth in pixels."""
    middle = projected[..., 2:].mean(1, keepdim=True)
    return torch.cat([projected[..., :2], (projected[..., 2:] - middle) * (camera.focal[:, None, None] / middle)], -1)


def find_tracks(folder: Path | str) -> list[Path]:
    """Track files below a folder, in the order of their names."""
    found = sorted(Path(folder).rglob("*.safetensors"))
    if not found:
        raise InputError(f"{folder} holds no tracks (*.safetensors); `headwarp fit VIDEOS -o {folder}` makes some.")
    return found


def _load_track(path: Path, head: HeadModel) -> FaceTrack:
    try:
        track = FaceTrack.load(path)
        track.check(head)
    except (ValueError, OSError) as error:
        raise InputError(f"The motion of {path} cannot be replayed: {error}") from None
    return track


def _piece(track: FaceTrack, frames: int, fps: float, rng: np.random.Generator) -> FaceTrack:
    """`frames` frames of a track at a frame rate, from a random start; played back and forth where it is too short."""
    track = track.resample(fps)
    start = int(rng.integers(max(len(track) - frames, 0) + 1))
    there = np.arange(start, min(start + frames, len(track)))
    swing = np.concatenate([there, there[-2:0:-1]]) if len(there) > 1 else there
    chosen = np.resize(swing, frames)
    piece = {
        name: getattr(track, name)[chosen] for name in ("params", "landmarks", "confidence", "blendshapes", "crop")
    }
    camera = track.camera if len(track.camera) == 1 else track.camera[chosen]
    times = torch.arange(frames, dtype=torch.float64) / fps
    return FaceTrack(
        **piece,
        camera=camera,
        times=times,
        fps=fps,
        image_size=track.image_size,
        head_name=track.head_name,
        head_sha256=track.head_sha256,
    )


def _crop_camera(points: Tensor, size: tuple[int, int], scale: float, rng: np.random.Generator) -> Camera:
    """The camera of a crop around a face, as the animator crops a source, wide enough for all frames.

    Args:
        points: (T, L, 3) landmarks in the world.
        size: (H, W) of the crop; its shorter side is the square's that `scale` speaks of.
        scale: side of the square in face sizes.
    """
    unit = Camera(torch.ones(1), torch.zeros(1, 2))
    seen = unit.project(points)[..., :2].numpy().astype(np.float64)  # (T, L, 2)
    low, high = seen[0].min(0), seen[0].max(0)
    side = scale * float((high - low).max())
    up = float(rng.uniform(0.05, 0.12))
    centre = (low + high) / 2 + rng.normal(0, 0.02, 2) * side - (0.0, up * side)
    reach = np.maximum(seen.max((0, 1)) - centre, centre - seen.min((0, 1))).max()
    focal = min(size) / max(side, 2 * _MARGIN * float(reach))
    principal = np.array([size[1] / 2, size[0] / 2]) - focal * centre
    return Camera(torch.tensor([focal], dtype=torch.float32), torch.from_numpy(principal[None]).float())
