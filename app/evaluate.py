"""`headwarp evaluate` and `headwarp compare`: the animators as methods under test.

The flags are the fields of the dataclasses; nothing heavy is imported before `run`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from ..evaluation.options import ProtocolName

if TYPE_CHECKING:
    import numpy as np

    from ..evaluation.dataset import Clip, Frames, Moment, Picture
    from ..evaluation.protocols import Pair, Reenactor
    from ..geom.head import HeadParams

Motion = Literal["absolute", "relative"]


@dataclass
class Evaluate:
    """Score a model: pairs of pictures by protocol, metrics that say what they are, a report.

    Writes pairs.csv, pictures/, scores.csv, result.json, report.html and table.tex. Running the command again goes on
    where it stopped. docs/evaluation.md explains protocols and metrics.
    """

    data: Path
    """Folder: clips of `headwarp fit`, FOMM's train/ and test/, or videos and pictures."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder for the results."""
    model: str | None = None
    """geometric, a model file, still (the source unmoved) or copy (the driving frame itself)."""
    results: Path | None = None
    """Instead of a model: folder with pictures made by any program, named as the pairs in pairs.csv: 00000.png ..."""
    protocol: ProtocolName = "same-identity"
    """Which pairs to draw: see docs/evaluation.md."""
    pairs: Path | None = None
    """Pairs of a CSV (ours, or DaGAN's and FOMM's) instead of drawn ones; paths are matched by their ends."""
    count: int = 10
    """Pairs drawn for each clip."""
    frames: int = 100
    """Most frames of each clip where whole clips are reconstructed."""
    stride: int = 1
    """Of whole driving videos in a pair file, take every n-th frame."""
    seed: int = 0
    """Of the drawn pairs."""
    size: int = 256
    """Side in pixels at which pictures are made and compared."""
    network_size: int = 256
    """Side in pixels of the pictures that a keypoint network was trained on."""
    motion: Motion = "absolute"
    """How another person's motion is taken over: absolute pose and expression, or relative to the pair's anchor."""
    name: str | None = None
    """In tables; the model's own by default."""
    cache: Path | None = None
    """Folder for frames and what was seen in them, shared by evaluations; by default `cache` beside the output."""
    weights: Path | None = None
    """Folder of official weights (AlexNet, VGG-16, Inception, ArcFace); ~/.cache/headwarp by default."""
    refit: bool = False
    """Fit clips that have a track as well, so that synthetic clips are known no better than real ones."""
    limit: int | None = None
    """Only the first clips of the data set."""

    def run(self) -> None:
        from ..evaluation.backbones import Features
        from ..evaluation.dataset import Frames, open_data
        from ..evaluation.protocols import missing_gaps, read_pairs, sample_pairs
        from ..evaluation.report import write_report
        from ..evaluation.run import data_facts, evaluate, prepare
        from ..evaluation.suite import Suite
        from ..media.errors import InputError

        if self.model and self.results:
            raise InputError("Give --model or --results, not both.")
        if not 64 <= self.size <= 1024:
            raise InputError(f"--size must be from 64 to 1024 pixels, got {self.size}.")
        for flag in ("count", "frames", "stride", "limit"):
            given = getattr(self, flag)
            if given is not None and given < 1:
                raise InputError(f"--{flag} must be at least 1, got {given}.")
        clips = open_data(self.data)
        clips = dict(list(clips.items())[: self.limit])
        frames = Frames(clips, self.cache or self.output.parent / "cache", self.size, refit=self.refit)
        problems: list[str] = []
        if self.pairs:
            drawn, problems = read_pairs(self.pairs, clips, stride=self.stride, frames=self.frames)
            if problems:
                problems = [f"{len(problems)} rows of {self.pairs.name} are not in the data set: {_some(problems)}"]
            how: dict[str, Any] = {"protocol": f"pairs of {self.pairs.name}"}
        else:
            drawn = sample_pairs(
                self.protocol, clips, count=self.count, frames=self.frames, seed=self.seed, yaws=_yaws(frames)
            )
            problems = missing_gaps(drawn) if self.protocol == "yaw" else []
            how = {"protocol": self.protocol, "count": self.count, "frames": self.frames, "seed": self.seed}
        bench = prepare(drawn, frames, {**data_facts(clips, self.data), **how, "motion": self.motion}, problems)
        if not self.model and not self.results:
            _write_task(bench.pairs, frames, self.output)
            return
        try:
            suite = Suite(Features(frames.folder), self.weights)
        except ValueError as error:  # weights that are others than their name says
            raise InputError(str(error)) from None
        reenactor = None
        if self.model:
            how_large = {"size": self.size, "network_size": self.network_size}
            reenactor = open_reenactor(self.model, motion=self.motion, **how_large)
        result = evaluate(reenactor, bench, self.output, suite=suite, results=self.results, name=self.name)
        for problem in [*result.problems, *frames.problems]:
            print(f"note: {problem}", file=sys.stderr)
        print(write_report(result, self.output))


@dataclass
class Compare:
    """Put evaluations of the same pairs side by side, with intervals of the paired differences.

    The first one is what the others are compared with. Metrics count only where all read the pictures with the same
    networks, pairs only where all have a picture.
    """

    evaluations: Annotated[tuple[Path, ...], Positional]
    """Folders written by `headwarp evaluate`."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder for compare.html, compare.json and table.tex."""

    def run(self) -> None:
        from ..evaluation.report import compare

        print(compare(self.evaluations, self.output))


def open_reenactor(model: str, *, size: int = 256, motion: Motion = "absolute", network_size: int = 256) -> Reenactor:
    """A method under test.

    Args:
        model: geometric, a model file, still or copy.
        size: pixels of the square.
        motion: how another person's motion is taken over.
        network_size: pixels of the pictures that a keypoint network sees.
    Raises:
        InputError: there is no such model.
    """
    from ..evaluation.protocols import Copy, Still
    from .models import is_keypoint_model, open_model

    if model in ("still", "copy"):
        return Still() if model == "still" else Copy()
    network = open_model(model)
    if is_keypoint_model(network):
        return KeypointReenactor(model, network, size, motion, network_size)
    return HeadReenactor(model, size, motion)


class HeadReenactor:
    """What is driven by head parameters: the geometric animator, PWM.

    A driving frame of the source's own clip is asked for as it was fitted. Another person's frame gives pose and
    expression (absolute) or their change from the anchor (relative), as `geom.transfer` does, without its limits.
    """

    fitted = True

    def __init__(self, model: str, size: int, motion: Motion) -> None:
        from .animator import Stage, shared_head

        self.name = Path(model).stem
        self.head = shared_head("open")
        self.stage = Stage(self.head, size=max(size, 128), crop=False, model=model)
        self.motion = motion
        self.facts: Mapping[str, str] = {**model_facts(model), "motion": motion, "head": self.head.sha256}

    def prepare(self, source: Moment) -> tuple[Moment, Any]:
        source = self._fitted(source)
        assert source.landmarks is not None
        assert source.params is not None
        assert source.camera is not None
        return source, self.stage.prepare(source.image, source.landmarks, source.params, source.camera)

    def reenact(self, prepared: tuple[Moment, Any], driving: Sequence[Moment], anchor: Moment | None) -> list[Picture]:
        source, portrait = prepared
        return [self.stage.render(portrait, self._target(source, moment, anchor)) for moment in driving]

    def _target(self, source: Moment, driving: Moment, anchor: Moment | None) -> HeadParams:
        from dataclasses import replace

        from ..geom.transfer import TransferOptions, transfer

        assert source.params is not None
        if driving.params is not None and driving.ref.clip == source.ref.clip:
            return driving.params
        driving = self._fitted(driving)
        assert driving.params is not None
        free = TransferOptions(
            expression_gain=1.0, yaw_limit=180, pitch_limit=180, roll_limit=180, translation_limit=10.0, zoom_limit=10.0
        )
        rest = source.params
        if self.motion == "relative" and anchor is not None and anchor.ref.clip != source.ref.clip:
            fitted = self._fitted(anchor)
            assert fitted.params is not None
            rest = fitted.params
        else:
            free = replace(free, relative=False)
        return transfer(self.head, source.params, driving.params, rest, free)

    def _fitted(self, moment: Moment) -> Moment:
        from dataclasses import replace

        from ..fitting.faces import NoFaceError, face_of_crop, find_faces
        from ..fitting.fit import fit_image
        from ..geom.camera import Camera

        if moment.params is not None:
            return moment
        faces = find_faces(moment.image)
        face = faces[0] if faces else face_of_crop(moment.image)
        if face is None:
            raise NoFaceError(f"No face found in {moment.ref}.")
        track = fit_image(moment.image, head=self.head, face=face)
        assert isinstance(track.camera, Camera)
        return replace(moment, params=track.params, camera=track.camera, landmarks=face.landmarks)


class KeypointReenactor:
    """FOMM, DaGAN, G3FA, OSTNet: the motion is read from the driving frames.

    Args:
        model: the file, for the facts.
        network: what was in it.
        size: pixels of the results.
        motion: relative motion starts from the anchor, which for pairs of one clip is the source itself. OSTNet brings
            the driver to the source's proportions instead, and is always absolute.
        network_size: pixels of the pictures that the network sees.
    """

    fitted = False

    def __init__(self, model: str, network: Any, size: int, motion: Motion, network_size: int = 256) -> None:
        from ..nets.ostnet import OstNet

        self.name = Path(model).stem
        self.network, self.size, self.network_size = network, size, network_size
        self.rectifies = isinstance(network, OstNet)
        self.motion: Motion = "absolute" if self.rectifies else motion
        self.facts: Mapping[str, str] = {**model_facts(model), "motion": self.motion, "network_size": str(network_size)}

    def prepare(self, source: Moment) -> Any:
        import torch

        with torch.inference_mode():
            return self.network.encode_source(self._input(source))

    def reenact(self, prepared: Any, driving: Sequence[Moment], anchor: Moment | None) -> list[Picture]:
        import torch

        from ..media.crop import Crop
        from ..nets.keypoints import normalise

        results = []
        with torch.inference_mode():
            first = None
            if self.motion == "relative" and anchor is not None:
                first = self._motion(prepared, anchor)
            for moment in driving:
                motion = self._motion(prepared, moment)
                if first is not None:
                    motion = normalise(motion, first, prepared.motion, adapt_scale=True)
                image = self.network.render(prepared, motion).image[0]
                pixels = (image.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
                same = pixels.shape[0] == self.size
                results.append(pixels if same else Crop.whole(pixels.shape, self.size).extract(pixels))
        return results

    def _motion(self, prepared: Any, moment: Moment) -> Any:
        image = self._input(moment)
        return self.network.read_motion(image, prepared) if self.rectifies else self.network.read_motion(image)

    def _input(self, moment: Moment) -> Any:
        from ..media.crop import Crop
        from .keypoint import tensor

        return tensor(Crop.whole(moment.image.shape, self.network_size).extract(moment.image))


def model_facts(model: str) -> dict[str, str]:
    """What the result file says about a model."""
    from ..nets.model_file import file_hash, read_header
    from .models import GEOMETRIC, model_file

    if model == GEOMETRIC:
        return {"method": "geometric"}
    file = model_file(model)
    header = read_header(file)
    return {"method": header.method, "file": Path(file).name, "sha256": file_hash(file), **header.facts}


def _yaws(frames: Frames) -> Any:
    """Yaw of each frame of a clip in degrees, nan where no face was seen."""
    import numpy as np

    from ..geom.rotation import axis_angle_to_euler

    def of(clip: Clip) -> np.ndarray | None:
        track = frames.track(clip.name)
        if track is None:
            return None
        yaw = axis_angle_to_euler(track.params.rotation)[:, 0].numpy()
        return np.where(track.confidence.numpy() > 0, yaw, np.nan)

    return of


def _write_task(pairs: Sequence[Pair], frames: Frames, output: Path) -> None:
    """pairs.csv and the pictures that another program needs: inputs/00000-source.png, -driving.png, -anchor.png."""
    from ..evaluation.protocols import stretched, write_pairs
    from ..media.files import atomic_write
    from ..media.image import save_image

    for number, pair in enumerate(pairs):
        driving = stretched(frames.picture(pair.driving), *pair.stretch)
        shown = {"source": frames.picture(pair.source), "driving": driving}
        if pair.anchor:
            shown["anchor"] = frames.picture(pair.anchor)
        for what, picture in shown.items():
            save_image(output / "inputs" / f"{number:05d}-{what}.png", picture)
    with atomic_write(output / "pairs.csv") as temporary:
        temporary.write_text(write_pairs(pairs, frames.clips))
    print(f"{output / 'pairs.csv'}: {len(pairs)} pairs. Score pictures 00000.png ... of any program with --results.")


def _some(texts: Sequence[str]) -> str:
    return "; ".join(texts[:3]) + (f"; and {len(texts) - 3} more." if len(texts) > 3 else ".")
