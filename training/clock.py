"""Where the time of a training goes."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Seconds by kind of work. `mark("forward")` says that what was done since the last mark was forward.

    On a GPU, where calls return before the work is done, a mark waits for the work, but only in every 16th lap, so
    that watching does not slow the rest; other laps count as a whole, and the shares are those of the watched ones.
    """

    _EVERY = 16

    def __init__(self, wait: Callable[[], None] | None = None) -> None:
        """
        Args:
            wait: returns when the device has done its work; None where calls do that themselves.
        """
        self._wait = wait
        self._laps = 0
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def mark(self, kind: str) -> None:
        """Book the time since the last mark."""
        watched = self._wait is None or self._laps % self._EVERY == 0
        if watched and self._wait is not None:
            self._wait()
        now = time.perf_counter()
        if watched:
            self._seconds[kind] = self._seconds.get(kind, 0.0) + now - self._last
        self._last = now

    def skip(self) -> None:
        """Leave out the time since the last mark."""
        self._last = time.perf_counter()

    def lap(self) -> None:
        """A step is done."""
        self._laps += 1

    def shares(self) -> dict[str, float]:
        """Kind -> share of the time so far; the sum is 1."""
        total = sum(self._seconds.values()) or 1.0
        return {kind: seconds / total for kind, seconds in self._seconds.items()}

    def __str__(self) -> str:
        return ", ".join(f"{kind} {share:.0%}" for kind, share in self.shares().items())
