"""Which frames of a clip: those that may be used, and those that make a sample."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..config import HoldOut


def split_frames(count: int, hold_out: HoldOut) -> dict[str, np.ndarray]:
    """The frames of a clip by use.

    Returns:
        "train", and "future" and "every" where the rule has them: increasing frame numbers. The future block is at the
        clip's end; of the rest, frames N-1, 2N-1, ... are held out, so that frame 0 can be the source of all.
    """
    frames = np.arange(count)
    begin = count - round(hold_out.future * count)
    use = np.full(count, "train", dtype="<U6")
    if hold_out.every:
        use[hold_out.every - 1 :: hold_out.every] = "every"
    use[begin:] = "future"
    kinds = ["train", *(["every"] if hold_out.every else []), *(["future"] if hold_out.future else [])]
    return {kind: frames[use == kind] for kind in kinds}


def draw_moments(
    frames: np.ndarray,
    moments: int,
    rng: np.random.Generator,
    *,
    order: Literal["random", "sorted"] = "random",
    min_gap: int = 1,
    max_gap: int | None = None,
) -> list[int] | None:
    """Random frames of a sample.

    Args:
        frames: increasing numbers of the usable frames.
        moments: how many.
        order: of the two frames of a pair; three and more come in order of time.
        min_gap, max_gap: frames between neighbours in time.
    Returns:
        Their numbers, or None where the clip has no such frames.
    """
    reach = np.inf if max_gap is None else max_gap
    possible = _starts(frames, moments, min_gap, reach)
    if not possible[-1].any():
        return None
    at = int(rng.choice(np.flatnonzero(possible[-1])))
    chosen = [int(frames[at])]
    for left in range(moments - 2, -1, -1):
        gap = frames - chosen[-1]
        chosen.append(int(rng.choice(frames[(gap >= min_gap) & (gap <= reach) & possible[left]])))
    if moments == 2 and order == "random" and rng.random() < 0.5:
        chosen.reverse()
    return chosen


def _starts(frames: np.ndarray, moments: int, min_gap: int, reach: float) -> list[np.ndarray]:
    """Element k says for each frame whether k further moments can follow it."""
    possible = [np.ones(len(frames), bool)]
    for _ in range(moments - 1):
        # Of the frames within reach, is there one that can go on? Counts of those before each place answer it.
        counts = np.concatenate([[0], np.cumsum(possible[-1])])
        first = np.searchsorted(frames, frames + min_gap, "left")
        last = np.searchsorted(frames, frames + min(reach, 1e9), "right")
        possible.append(counts[np.maximum(last, first)] > counts[first])
    return possible
