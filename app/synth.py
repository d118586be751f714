"""`headwarp synth`: a data set of synthetic talking heads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg


@dataclass
class Synth:
    """Write a data set of synthetic talking heads, with exact parameters.

    Its layout is that of `headwarp fit`: a folder for each clip with clip.mp4 and clip.safetensors, and index.parquet.
    Running the command again goes on where it stopped, or adds clips. The same seed gives the same files.
    """

    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder of the data set."""
    clips: int = 100
    """Clips in the end."""
    frames: int = 100
    """Frames of a clip."""
    size: int = 256
    """Side of the pictures in pixels."""
    fps: float = 25.0
    """Frames per second."""
    seed: int = 0
    """Another seed gives other people."""
    people: int | None = None
    """How many people there are; by default each clip shows another one."""
    split: Literal["train", "test"] = "train"
    """Folder for the clips; test has other people than train."""
    scale: tuple[float, float] = (2.0, 2.6)
    """Side of the picture in face sizes, from and to."""
    tracks: Path | None = None
    """Folder with fitted tracks (.safetensors) whose motion people may also do."""
    replay: float = 0.5
    """Share of the clips that take their motion from --tracks."""
    turn: float = 1.0
    """How far the heads of the others turn, as a factor; 1 is what talking people do."""
    rare: float = 0.0
    """Share of the frames with an expression that talking people seldom have, for training on single pictures."""
    quality: Literal["draft", "full"] = "draft"
    """full: finer hair and light, about three times slower."""
    truth: bool = False
    """Also write truth.safetensors: depth, normals, segmentation, hair, 68 landmarks, flow to the next frame (0.9 MB a
    frame at 256 pixels)."""
    workers: int = 0
    """Processes; 0: one for each core."""

    def run(self) -> None:
        from ..training.synthetic_set import SetRecipe, write_set

        recipe = SetRecipe(
            frames=self.frames,
            size=self.size,
            fps=self.fps,
            seed=self.seed,
            people=self.people,
            split=self.split,
            scale=self.scale,
            tracks=None if self.tracks is None else str(self.tracks),
            replay=self.replay,
            turn=self.turn,
            rare=self.rare,
            quality=self.quality,
            truth=self.truth,
        )
        if not write_set(self.output, self.clips, recipe, workers=self.workers):
            raise SystemExit(1)
