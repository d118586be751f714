"""The flags of `headwarp fit` and of fit_videos.py; nothing heavy is imported here, so that --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Regressor = Literal["none", "deca", "smirk", "ours"]
Refine = Literal["none", "landmarks", "photometric"]


@dataclass(frozen=True)
class FitOptions:
    """How to fit, what to write, and on which machines."""

    head: str = "open"
    """Head model: open, flame (your own file, see docs/fitting.md), or a head file."""
    regressor: Regressor = "none"
    """Network that guesses the parameters first: deca, smirk (FLAME; they need your deca_model.tar or SMIRK_em1.pt), or
    ours (the open head)."""
    weights: str | None = None
    """Of --regressor ours: a model.safetensors that `headwarp train regressor` made; the package's by default."""
    refine: Refine = "landmarks"
    """What improves them: landmarks; photometric: landmarks, and then the poses of a video by how the skin looks, which
    takes shake out of them; none: the regressor's word is final."""
    smooth: float = 1.0
    """Smoothing over time; 0 = frames are independent."""
    face: int = 0
    """Which face of single files, 0 = the largest (in the first frame); data sets take every face that stays."""
    fps: float | None = None
    """Frame rate to resample videos to; their own by default."""
    layout: Literal["auto", "clips", "tracks"] = "auto"
    """clips: a folder of cropped clip and track for each face; tracks: one NAME.safetensors for each file; auto: clips
    for folders and tables, tracks for single files."""
    size: int = 256
    """Side of the clips in pixels."""
    crop: bool = True
    """Cut clips around the faces; --no-crop for videos that are face crops already."""
    increase: float = 0.1
    """Margin of a clip around the face on each side, in units of the face box's longer side (FOMM's --increase)."""
    min_frames: int = 64
    """Shortest clip, unless the face stays through the whole video."""
    visualize: bool = False
    """Also write an overlay video (landmarks, head, confidence) and a contact sheet for each."""
    workers: int = 0
    """Processes; 0 = one for each core."""
    shard: str = "1/1"
    """i/n: do only the i-th of n parts, for several machines that share the output folder."""
    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine; ray: a Ray cluster whose nodes see the same files."""
    address: str | None = None
    """Of the Ray cluster: auto, or its head's ip:port; by default one is started on this machine."""
    retry: bool = False
    """Try the sources listed in failures.csv again."""
    metadata_videos: Path | None = None
    """Folder of the videos that a vox-metadata.csv names; its own folder by default."""
