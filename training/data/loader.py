"""Samples in the order of training, loaded by worker processes.

Sample n (n = 0, 1, 2, ...; step s of batch size B has s B ... s B + B - 1) is a pure function of the seed and n. Each
epoch visits every clip once, in an order of its own. How samples are dealt to processes changes nothing about them.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ...media.errors import InputError
from ..batch import Batch
from .source import Source

_ORDER, _SAMPLE, _HELD_OUT = range(3)  # streams of random numbers


class Stream(Dataset["Batch | InputError"]):
    """The endless sequence of training samples."""

    def __init__(self, source: Source, seed: int) -> None:
        self._source, self._seed = source, seed

    def __getitem__(self, number: int) -> Batch | InputError:
        """Sample `number`; bad input comes back as a value, because a worker would bury its sentence in a traceback."""
        epoch, place = divmod(number, len(self._source))
        index = int(epoch_order(self._seed, epoch, len(self._source))[place])
        try:
            return self._source.sample(index, np.random.default_rng((self._seed, _SAMPLE, number)))
        except InputError as error:
            return error


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """(count,) order of the clips in an epoch."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(count)


class Dealer:
    """Numbers of the samples of one process, micro-batch by micro-batch, from a step on."""

    def __init__(self, start: int, stop: int, batch_size: int, *, accumulate: int, rank: int, world: int) -> None:
        """
        Args:
            start, stop: steps, the last one not included.
            batch_size: samples of a step over all processes; a multiple of accumulate * world.
        """
        if batch_size % (accumulate * world):
            raise InputError(
                f"train_params.batch_size = {batch_size} cannot be split over {world} processes with accumulate = "
                f"{accumulate}; it must be a multiple of {accumulate * world}."
            )
        self._steps, self._batch_size = range(start, stop), batch_size
        self._accumulate, self._part = accumulate, batch_size // (accumulate * world)
        self._offset, self._stride = rank * self._part, world * self._part

    def __len__(self) -> int:
        return len(self._steps) * self._accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            for turn in range(self._accumulate):
                first = step * self._batch_size + turn * self._stride + self._offset
                yield list(range(first, first + self._part))


def load(source: Source, seed: int, dealer: Dealer, *, workers: int, pin: bool) -> Generator[Batch]:
    """The batches of a process, pictures uint8 on the CPU. Workers begin at once; closing the generator ends them.

    Args:
        source, seed: what the samples are made of.
        dealer: which samples.
        workers: processes that load; 0 loads here.
        pin: put pictures into pinned memory, for a GPU.
    Raises:
        InputError: as the source does.
    """
    loader: DataLoader[Batch | InputError] = DataLoader(
        Stream(source, seed),
        batch_sampler=dealer,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
    )
    threads = cv2.getNumThreads()
    # Ends OpenCV's threads. A worker forked beside them would inherit a pool without its threads, and wait for them for
    # ever.
    cv2.setNumThreads(1)
    try:
        batches = iter(loader)
    finally:
        cv2.setNumThreads(threads)
    return _raised(batches)


def _raised(batches: Iterator[Batch | InputError]) -> Generator[Batch]:
    try:
        for batch in batches:
            if isinstance(batch, InputError):
                raise batch
            yield batch
    finally:
        # Ends the workers now. They ignore SIGTERM, so an exit that still waits for them would wait for ever, and the
        # traceback of an error would keep them until then.
        del batches


def held_out(source: Source, count: int) -> list[Batch]:
    """`count` samples spread evenly over a held-out source (all where it has fewer), always the same."""
    count = min(count, len(source))
    indices = [i * len(source) // count for i in range(count)]
    return [source.sample(i, np.random.default_rng((_HELD_OUT, i))) for i in indices]


def _collate(samples: Sequence[Batch | InputError]) -> Batch | InputError:
    good = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        good.append(sample)
    return Batch.cat(good)


def _start_worker(_: int) -> None:
    """The main process ends the workers; signals that a terminal or a scheduler sends to all are for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if cv2.getNumThreads() != 1:  # started anew, not forked
        cv2.setNumThreads(1)
    torch.set_num_threads(1)
