"""Runs kernels that have left the interpreter lock on as many threads as torch uses.

numba's own parallel loops would do the same, but they compile ten times longer, start a spinning team beside torch's,
and neither survive a fork nor two callers at once. Here the caller works too: it and the helpers take pieces from one
queue, so that a helper that wakes late costs nothing.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

MIN_ROWS = 16
"""Rows of a picture that are worth a piece of work of their own."""

_pool: ThreadPoolExecutor | None = None
_pool_owner = -1  # process id: threads do not survive a fork
_lock = threading.Lock()


def run(kernel: Callable[..., Any], pieces: Iterable[tuple[Any, ...]], threads: int) -> None:
    """Calls `kernel(*piece)` for every piece, on the calling thread and at most `threads - 1` helpers.

    Pieces must not write to the same memory. Returns when all are done; the first error is raised.
    """
    queue = deque(pieces)
    helpers = min(threads, len(queue)) - 1
    if helpers <= 0:
        for piece in queue:
            kernel(*piece)
        return

    def work() -> None:
        while True:
            try:
                piece = queue.popleft()
            except IndexError:
                return
            kernel(*piece)

    futures: list[Future[None]] = [_executor().submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        queue.clear()
        for future in futures:
            # A helper that has not started has nothing left to do.
            if not future.cancel():
                future.result()


def _executor() -> ThreadPoolExecutor:
    global _pool, _pool_owner
    with _lock:
        if _pool is None or _pool_owner != os.getpid():
            _pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="headwarp")
            _pool_owner = os.getpid()
        return _pool


def bands(batch: int, rows: int, threads: int) -> list[tuple[int, int, int]]:
    """Cuts a batch of pictures into pieces (item, first row, row after the last): a few per thread, to even them out,
    but none below MIN_ROWS."""
    parts = 1 if threads == 1 else max(min(-(-4 * threads // max(batch, 1)), rows // MIN_ROWS), 1)
    edges = [rows * k // parts for k in range(parts + 1)]
    return [(b, top, bottom) for b in range(batch) for top, bottom in pairwise(edges)]
