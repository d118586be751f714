"""Synthetic talking heads as a data set on the disk, in the layout of `headwarp fit`, with exact parameters.

    OUT/train/synthetic-00012#000/clip.mp4, clip.safetensors     person 12, take 0
                                  truth.safetensors              on request, see `Truth`
    OUT/index.parquet                                            one row a clip

A clip appears whole or not at all; running the same command again goes on where it stopped, and more clips can be added
later. The same seed gives the same files.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..fitting.clips import is_disk_full
from ..fitting.ledger import Failure, Ledger, Report, parts_folder, publish
from ..fitting.track_file import TrackWriter
from ..fitting.workers import Beat, Died, Stop, run_here, run_local
from ..geom.track import FaceTrack
from ..media.errors import InputError
from ..media.writer import VideoWriter
from ..render.synthetic import Frame, Person, render_head, sample_appearance, surface_flow
from ..render.synthetic.people import move_to
from .synthetic import Cast, Scene, find_tracks, landmark_pixels, person_seed, shared_head, to_bytes

_TAKE = 2  # stream of random numbers, beside those of `synthetic`


@dataclass(frozen=True)
class SetRecipe:
    """What decides the content of the files."""

    frames: int = 100
    size: int = 256
    fps: float = 25.0
    seed: int = 0
    people: int | None = None
    """Identities; clip k shows person k % people. None: every clip has its own."""
    split: Literal["train", "test"] = "train"
    """Folder of the clips; test has other people than train."""
    scale: tuple[float, float] = (2.0, 2.6)
    """Side of the crop in face sizes, from and to."""
    tracks: str | None = None
    """Folder with fitted tracks whose motion people may also do."""
    replay: float = 0.5
    """Share of the clips that take their motion from `tracks`."""
    turn: float = 1.0
    """How far the heads of the others turn, as a factor."""
    rare: float = 0.0
    """Share of the frames with an expression that talking people seldom have; for single pictures, since these come
    and go from one frame to the next."""
    quality: Literal["draft", "full"] = "draft"
    truth: bool = False
    """Write truth.safetensors too."""


TRUTH: dict[str, tuple[Any, str]] = {
    "depth": (np.float32, "(T, H, W) metres to the solid surface, +inf on the background"),
    "normals": (np.int8, "(T, 3, H, W) 127 times the unit world normal, 0 on the background"),
    "segmentation": (np.uint8, "(T, H, W) index into render.synthetic.CLASSES"),
    "hair": (np.uint8, "(T, H, W) share of the pixel that hair covers, 255 = all"),
    "landmarks68": (np.float32, "(T, 68, 3) iBUG's landmarks: x, y in pixels, depth in metres"),
    "flow": (np.float16, "(T, 2, H, W) pixels from here to the same surface point in the next frame; last frame 0"),
    "flow_visible": (np.uint8, "(T, H, W) 1 where that point is visible there"),
}
"""What truth.safetensors holds."""


def write_set(
    output: Path | str, clips: int, recipe: SetRecipe = SetRecipe(), *, workers: int = 0, progress: bool = True
) -> bool:
    """Write a data set, or go on with one.

    Args:
        output: its folder; made when missing.
        clips: how many there are in the end.
        recipe: see there.
        workers: processes; 0: as many as there are cores.
        progress: show a bar on stderr.
    Returns:
        Whether all clips are there.
    Raises:
        InputError: bad settings, a folder made with others, or a full disk.
    """
    _check(clips, recipe)
    output = Path(output)
    tracks = tuple(find_tracks(recipe.tracks)) if recipe.tracks else ()
    settings = json.loads(json.dumps(asdict(recipe)))
    settings[f"{settings.pop('split')} truth"] = settings.pop("truth")  # a test set may have it alone
    ledger = Ledger(output, settings)
    jobs = [clip_name(k, recipe) for k in range(clips)]
    done = ledger.finished(retry=False)
    waiting = [k for k, name in enumerate(jobs) if name not in done]
    task = partial(_write_clip, recipe=recipe, tracks=tracks, output=output)
    workers = min(workers or os.cpu_count() or 1, len(waiting))
    bar = tqdm(total=clips, initial=clips - len(waiting), unit="clip", desc=recipe.split, disable=not progress)
    failed = 0
    try:
        with bar:
            answers: Iterator[tuple[int, Report | Stop | Died]]
            answers = run_local(waiting, task, workers) if workers > 1 else run_here(waiting, task, _silent)
            for k, answer in answers:
                if isinstance(answer, Stop):
                    raise InputError(answer.reason)
                if isinstance(answer, Died):
                    answer = Report(jobs[k], failures=[Failure(jobs[k], answer.reason, "next run")])
                ledger.record(answer)
                failed += len(answer.failures)
                for failure in answer.failures:
                    bar.write(f"{failure.name}: {failure.reason}", file=sys.stderr)
                bar.update()
    finally:
        ledger.close()
        with suppress(InputError):  # on a full disk; the next run makes them
            ledger.write_tables()
    return not failed


def clip_name(clip: int, recipe: SetRecipe) -> str:
    """Folder of a clip below the data set; the person is its name up to #."""
    person, take = _cast_of(clip, recipe)
    return f"{recipe.split}/{_identity(person, recipe)}#{take:03d}"


def _identity(person: int, recipe: SetRecipe) -> str:
    """People of the test set are others, so they have other names."""
    return f"synthetic-{person:05d}" if recipe.split == "train" else f"synthetic-test-{person:05d}"


def _cast_of(clip: int, recipe: SetRecipe) -> tuple[int, int]:
    """Person and take."""
    return (clip, 0) if recipe.people is None else (clip % recipe.people, clip // recipe.people)


def _write_clip(clip: int, beat: Beat, *, recipe: SetRecipe, tracks: tuple[Path, ...], output: Path) -> Report | Stop:
    """Draw a clip and put it into the data set; a task for `workers`. Nothing is raised."""
    name = clip_name(clip, recipe)
    try:
        with parts_folder(output) as parts:
            part = parts / "clip"
            part.mkdir()
            row = _draw_clip(clip, part, beat, recipe, tracks)
            publish(part, output / name)
        return Report(name, [{"name": name, **row}])
    except (InputError, OSError) as error:
        if is_disk_full(error):
            return Stop(
                f"Cannot write to {output}: the disk is full or its quota used up. Free some space and run the command "
                "again; what is finished is kept."
            )
        return Report(name, failures=[Failure(name, str(error))])
    except Exception as error:
        logging.getLogger(__name__).exception("Drawing %s failed.", name)
        return Report(name, failures=[Failure(name, f"{type(error).__name__}: {error}")])


@lru_cache(maxsize=1)
def _open(size: int, tracks: tuple[Path, ...], replay: float, turn: float) -> Cast:
    torch.set_num_threads(1)
    return Cast(shared_head("cpu"), size, keep=4, tracks=tracks, replay=replay, turn=turn)


def _draw_clip(clip: int, part: Path, beat: Beat, recipe: SetRecipe, tracks: tuple[Path, ...]) -> dict[str, Any]:
    """The files of a clip in the folder `part`; returns its row of the index."""
    cast, size = _open(recipe.size, tracks, recipe.replay, recipe.turn), (recipe.size, recipe.size)
    index, take = _cast_of(clip, recipe)
    seed = person_seed(recipe.seed, index, recipe.split)
    rng = np.random.default_rng((recipe.seed, _TAKE, recipe.split == "test", index, take))
    person = cast.person(seed)
    scene = cast.scene(
        person.shape, rng, frames=recipe.frames, fps=recipe.fps, size=size, scale=recipe.scale, rare=recipe.rare
    )
    draw = _artist(cast, person, seed, scene, recipe)
    points = []
    with ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(part / "clip.mp4", size, recipe.fps))
        truth = stack.enter_context(Truth(part / "truth.safetensors", recipe.frames, size)) if recipe.truth else None
        for k in range(recipe.frames):
            beat()
            frame = draw(k)
            writer.write(to_bytes(frame.image[0]).permute(1, 2, 0).numpy())
            points.append(landmark_pixels(cast.head, frame.vertices, scene.camera))
            if truth:
                truth.write(k, _truth(cast, frame, scene, k, size))
    track = FaceTrack(
        params=scene.params,
        camera=scene.camera,
        landmarks=torch.cat(points),
        confidence=torch.ones(recipe.frames),
        blendshapes=scene.blendshapes,
        times=torch.arange(recipe.frames, dtype=torch.float64) / recipe.fps,
        crop=torch.tensor([[1.0, 0.0, 0.0]]).repeat(recipe.frames, 1),
        fps=recipe.fps,
        image_size=size,
        head_name=cast.head.name,
        head_sha256=cast.head.sha256,
        metadata={"source": "synthetic", "person": str(seed), "motion": scene.motion},
    )
    with TrackWriter(part.parent) as pieces:  # unlike `FaceTrack.save`, it always writes the same bytes
        pieces.add(track)
        pieces.save(part / "clip.safetensors")
    return {
        "split": recipe.split,
        "identity": _identity(index, recipe),
        "source": f"synthetic:{recipe.seed}",
        "first_frame": 0,
        "frames": recipe.frames,
        "start": 0.0,
        "duration": recipe.frames / recipe.fps,
        "fps": recipe.fps,
        "size": recipe.size,
        "x": recipe.size / 2,
        "y": recipe.size / 2,
        "side": float(recipe.size),
        "height": recipe.size,
        "width": recipe.size,
        "found": 1.0,
        "confidence": 1.0,
        "head": cast.head.name,
        "head_sha256": cast.head.sha256,
        "problems": "",
    }


def _artist(cast: Cast, person: Person, seed: int, scene: Scene, recipe: SetRecipe) -> Any:
    """What draws frame k."""
    size = (recipe.size, recipe.size)
    if recipe.quality == "draft":
        actor = person.elsewhere(scene.look)
        return lambda k: actor.render(scene.params[k], scene.camera, size, first=k)
    look = move_to(sample_appearance(seed, cast.head, resolution=recipe.size), scene.look)
    return lambda k: render_head(cast.head, scene.params[k], scene.camera, look, size, first=k)


def _truth(cast: Cast, frame: Frame, scene: Scene, k: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Frame k's part of every tensor in `TRUTH`."""
    here, following = scene.params[k], scene.params[min(k + 1, len(scene.params) - 1)]
    flow = surface_flow(cast.head, here, following, (scene.camera, scene.camera), size)
    moves = k + 1 < len(scene.params)
    return {
        "depth": frame.depth[0, 0],
        "normals": (127 * frame.normals[0]).round(),
        "segmentation": frame.segmentation[0],
        "hair": (255 * frame.hair[0, 0]).round(),
        "landmarks68": scene.camera.project(cast.head.landmarks68(here, frame.vertices))[0],
        "flow": flow.displacement[0] * moves,
        "flow_visible": flow.visible[0, 0] & moves,
    }


class Truth:
    """A safetensors file of known length, written frame by frame; see `TRUTH` for its tensors."""

    def __init__(self, path: Path, frames: int, size: tuple[int, int]) -> None:
        height, width = size
        tail: dict[str, tuple[int, ...]] = dict.fromkeys(TRUTH, (height, width))
        tail.update({"normals": (3, height, width), "flow": (2, height, width), "landmarks68": (68, 3)})
        header: dict[str, Any] = {"__metadata__": {"format": "headwarp-truth-1"}}
        end, places = 0, {}
        kinds = {np.float16: "F16", np.float32: "F32", np.int8: "I8", np.uint8: "U8"}
        for name in sorted(TRUTH, key=lambda name: -np.dtype(TRUTH[name][0]).itemsize):  # aligned
            kind, shape = np.dtype(TRUTH[name][0]), (frames, *tail[name])
            length = kind.itemsize * int(np.prod(shape))
            places[name] = (kind, shape, end)
            header[name] = {"dtype": kinds[TRUTH[name][0]], "shape": shape, "data_offsets": [end, end + length]}
            end += length
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        start = 8 + len(text)
        self._arrays = {
            name: np.memmap(path, kind, "r+", offset=start + at, shape=shape)
            for name, (kind, shape, at) in places.items()
        }

    def write(self, frame: int, tensors: dict[str, Tensor]) -> None:
        """One frame of every tensor."""
        for name, array in self._arrays.items():
            array[frame] = tensors[name].numpy()

    def __enter__(self) -> Truth:
        return self

    def __exit__(self, *_: object) -> None:
        for array in self._arrays.values():
            array.flush()
        self._arrays.clear()


def _check(clips: int, recipe: SetRecipe) -> None:
    if clips < 1 or recipe.frames < 1:
        raise InputError(f"--clips and --frames must be at least 1, got {clips} and {recipe.frames}.")
    if recipe.size < 16 or recipe.size % 2:
        raise InputError(f"--size must be even and at least 16, got {recipe.size}.")
    if recipe.people is not None and recipe.people < 1:
        raise InputError(f"--people must be at least 1, got {recipe.people}.")
    if not 0 <= recipe.turn < math.inf:
        raise InputError(f"--turn must not be negative, got {recipe.turn}.")
    if not 0 < recipe.fps < math.inf or not 0 <= recipe.replay <= 1:
        raise InputError(f"--fps must be positive and --replay from 0 to 1, got {recipe.fps} and {recipe.replay}.")
    if not 0 <= recipe.rare <= 1:
        raise InputError(f"--rare must be from 0 to 1, got {recipe.rare}.")
    if recipe.seed < 0:
        raise InputError(f"--seed must not be negative, got {recipe.seed}.")
    if not 1 <= recipe.scale[0] <= recipe.scale[1]:
        raise InputError(f"--scale takes two rising numbers of at least 1, got {recipe.scale[0]} {recipe.scale[1]}.")


def _silent() -> None:
    """The bar shows clips, not frames."""
