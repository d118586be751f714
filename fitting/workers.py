"""Many jobs on many processes, none of which is trusted to live.

    for job, answer in run_local(jobs, task, workers=4): ...
    for job, answer in run_ray(jobs, task, address="auto"): ...

`task(job, beat)` runs in a worker; it calls `beat()` often, so that a stuck worker is noticed, and returns the answer.
A worker that dies (killed, out of memory, crashed in a decoder) costs its own job one of `ATTEMPTS`; a new worker takes
its place. When the main process dies the workers notice at their next beat and leave.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from ..media.errors import InputError

Job = TypeVar("Job")
Answer = TypeVar("Answer")
Beat = Callable[[], None]
Task = Callable[[Job, Beat], Answer]

ATTEMPTS = 2
"""Workers that one job may take down before it is given up."""
STUCK = 600.0
"""Seconds without a beat after which a worker is taken for stuck and killed."""
_BEAT = 1.0
_STILLBORN = 4  # workers in a row that die before they are ready
_THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Died:
    """The answer for a job whose workers died."""

    reason: str


@dataclass(frozen=True)
class Stop:
    """The answer of a task that met something no other job could get past, such as a full disk."""

    reason: str


def run_here(jobs: Sequence[Job], task: Task[Job, Answer], beat: Beat) -> Iterator[tuple[Job, Answer]]:
    """The jobs one after the other in this process."""
    for job in jobs:
        yield job, task(job, beat)


def run_local(
    jobs: Sequence[Job], task: Task[Job, Answer], workers: int, *, stuck: float = STUCK
) -> Iterator[tuple[Job, Answer | Died]]:
    """The jobs on `workers` processes of one thread each, answers in the order in which they come.

    Args:
        jobs: picklable.
        task: picklable, such as a function of a module or a `functools.partial` of one. It should not raise: an
            exception counts as the death of the worker.
        workers: processes.
        stuck: seconds without a beat that a worker is given.
    Raises:
        InputError: no worker comes to life.
    """
    waiting = deque((job, 1) for job in jobs)
    crew: list[_Worker] = []
    stillborn = 0
    try:
        while waiting or any(worker.job for worker in crew):
            idle = [worker for worker in crew if worker.job is None]
            while waiting and (idle or len(crew) < workers):
                worker = idle.pop() if idle else _Worker.start(task)
                if worker not in crew:
                    crew.append(worker)
                if not worker.take(waiting.popleft()):  # died while idle
                    waiting.appendleft(worker.drop())
                    worker.end()
                    crew.remove(worker)
            for worker in _events(crew):
                kind, content = worker.listen(stuck)
                if kind == "answer":
                    job, _ = worker.drop()
                    yield job, content
                elif kind == "died":
                    crew.remove(worker)
                    worker.end()
                    stillborn = 0 if worker.ready else stillborn + 1
                    if stillborn >= _STILLBORN:
                        raise InputError(f"Worker processes die as they start: {content}. Try --workers 1.")
                    if worker.job:
                        job, attempt = worker.drop()
                        if attempt < ATTEMPTS:
                            waiting.append((job, attempt + 1))
                        else:
                            yield job, Died(content)
    finally:
        for worker in crew:
            worker.end()


def run_ray(jobs: Sequence[Job], task: Task[Job, Answer], address: str | None) -> Iterator[tuple[Job, Answer | Died]]:
    """The jobs on a Ray cluster, one core each; nodes may come and go. All nodes must see the same files.

    Args:
        jobs, task: as in `run_local`.
        address: of the cluster's head, "auto" for the one this machine belongs to; None starts one on this machine.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'headwarp[cluster]'.") from None
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"No Ray cluster answers at {address} ({error}).") from None
    # Ray's own retries are off: they would repeat a clip that kills its worker, unseen
    remote: Any = ray.remote(num_cpus=1, max_retries=0)(_on_ray)
    shared = ray.put(task)
    waiting = deque((job, 1) for job in jobs)
    running: dict[Any, tuple[Job, int]] = {}
    try:
        while waiting or running:
            # a little more than the cluster can hold, so that no core waits; it may grow at any time
            room = max(2, int(2 * ray.cluster_resources().get("CPU", 1)))
            while waiting and len(running) < room:
                job, attempt = waiting.popleft()
                running[remote.remote(shared, job)] = (job, attempt)
            done, _ = ray.wait(list(running), timeout=5.0)
            for reference in done:
                job, attempt = running.pop(reference)
                try:
                    yield job, ray.get(reference)
                except ray.exceptions.RayError as error:
                    # a node that goes away takes many jobs along that are not to blame: more attempts than locally
                    if attempt < 3 * ATTEMPTS:
                        waiting.append((job, attempt + 1))
                    else:
                        yield job, Died(f"its Ray worker died {attempt} times ({type(error).__name__})")
    finally:
        for reference in running:
            with suppress(ray.exceptions.RayError):
                ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _on_ray(task: Task[Job, Answer], job: Job) -> Answer:
    _single_thread()
    return task(job, _no_beat)


def _no_beat() -> None:
    """In one process nobody listens."""


@dataclass(eq=False)
class _Worker:
    """A process and the line to it."""

    process: SpawnProcess
    line: Connection
    job: tuple[Any, int] | None = None
    heard: float = field(default_factory=time.monotonic)
    ready: bool = False
    """Whether it has loaded what it needs; before, it gets the full `STUCK` seconds."""

    @classmethod
    def start(cls, task: Task[Any, Any]) -> _Worker:
        context = get_context("spawn")  # numba, torch and LiteRT have threads, which do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(task, theirs), daemon=True)
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(_THREADS)
        try:
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        theirs.close()
        return cls(process, ours)

    def take(self, job: tuple[Any, int]) -> bool:
        self.job, self.heard = job, time.monotonic()
        try:
            self.line.send(job[0])
            return True
        except OSError:
            return False

    def drop(self) -> tuple[Any, int]:
        assert self.job is not None
        job, self.job = self.job, None
        return job

    def listen(self, stuck: float) -> tuple[str, Any]:
        """("answer", it), ("died", why) or ("", None)."""
        try:
            while self.line.poll():
                message = self.line.recv()
                self.heard, self.ready = time.monotonic(), True
                if message is not None:
                    return "answer", message[0]
        except (EOFError, OSError):
            self.process.join(5)
            return "died", f"the process that fitted it died ({_cause(self.process.exitcode)})"
        stuck = stuck if self.ready else max(stuck, STUCK)
        if self.job and time.monotonic() - self.heard > stuck:
            return "died", f"nothing happened for {stuck:.0f} seconds; the process was stopped"
        if not self.process.is_alive():
            return "died", f"the process that fitted it died ({_cause(self.process.exitcode)})"
        return "", None

    def end(self) -> None:
        """Kill, if need be; what it was writing is left in its folder of parts, which `ledger` removes."""
        self.process.kill()
        self.process.join(5)
        self.line.close()


def _events(crew: list[_Worker]) -> list[_Worker]:
    """The workers, after something was heard from one of them or a second has gone."""
    wait([worker.line for worker in crew], timeout=_BEAT)
    return list(crew)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code}" + (", perhaps out of memory" if code == -9 else "")
    return f"exit code {code}"


def _work(task: Task[Any, Any], line: Connection) -> None:
    """What a worker process does."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    _single_thread()
    last = 0.0

    def beat() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _BEAT:
            last = now
            try:
                line.send(None)
            except OSError:  # the main process is gone; leave through the blocks that clean up
                raise SystemExit(1) from None

    try:
        line.send(None)  # ready
        while True:
            job = line.recv()
            line.send((task(job, beat),))
    except (EOFError, OSError):
        return  # the main process is gone


def _single_thread() -> None:
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
