"""Where samples come from.

A sample is a `Batch` of one clip, on the CPU, its pictures uint8 (B = 1, 3, H, W). Samples are pure functions: the
same source, number and random generator give the same sample on every machine and in every worker. So the position in
the data is one number, and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ..batch import Batch

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Request:
    """What a method wants of every source."""

    size: tuple[int, int] = (256, 256)
    """(H, W) of the pictures."""
    moments: int = 2
    """Views of a sample: 2 = [source, driving], 3 = [before, now, after]."""
    needs: frozenset[str] = frozenset()
    """Fields of `View` without which the method cannot train, such as "params" and "camera"."""
    truth: frozenset[str] = frozenset()
    """Further fields of synthetic people that held-out samples bring where they are known; never asked of training."""
    head: str | None = None
    """sha256 of the head model that parameters must belong to; None: any."""


class Source(Protocol):
    """A set of samples. It is sent to worker processes, so it can be pickled and opens its files late."""

    def __len__(self) -> int:
        """Training: clips (or people), each of which gives endless samples. Held out: samples."""
        ...

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """One sample.

        Args:
            index: which clip (training) or sample (held out), 0 ... len - 1.
            rng: everything random is drawn from it; held-out samples should not use it.
        """
        ...


class Mixture:
    """Sources in given proportions."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]) -> None:
        """
        Args:
            sources: at least one.
            weights: share of the samples that each gives, in any unit.
        """
        if len(sources) != len(weights) or not sources or min(weights) <= 0:
            raise ValueError(f"Mixture: {len(sources)} sources need as many positive weights, got {list(weights)}.")
        self.sources = list(sources)
        self._until = np.cumsum(weights) / np.sum(weights)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def sample(self, index: int, rng: np.random.Generator) -> Batch:
        """Of a source drawn by weight, a clip drawn evenly; `index` is ignored."""
        source = self.sources[min(int(np.searchsorted(self._until, rng.random(), "right")), len(self.sources) - 1)]
        return source.sample(int(rng.integers(len(source))), rng)
