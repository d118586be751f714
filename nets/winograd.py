"""3 x 3 convolutions in a quarter of the products, for processors (Lavin and Gray, "Fast algorithms for convolutional
neural networks", 2016): F(4 x 4, 3 x 3).

Tiles of 6 x 6 pixels that overlap by two give 4 x 4 results each. Tiles d and kernels g are transformed, multiplied
number by number (summed over channels, so as 36 matrix products), and transformed back:

    y = A^T [sum over channels (G g G^T) * (B^T d B)] A

Strips of tiles go through all three steps one after the other, several at a time on a thread each, so that what is
between the steps stays in the cache. The transforms are loops over eight channels at a time. Values differ from the
plain convolution by about 2e-6 of their maximum.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from ..render.lanes import WIDTH, kernel, load, splat, store

_A, _B = 0.75, 1.5
_POINTS = (0.0, _A, -_A, _B, -_B)
"""Where the polynomials of the derivation are evaluated, beside infinity. These lose a quarter of what the usual
0, 1, -1, 2, -2 lose."""
_FLOATS = 6_000_000
"""Numbers of the transformed results at a time, of all lanes, so that they stay in the cache."""
MOST_LANES = 4
"""Beyond these, products are shared between threads: strips would become too thin for fast ones."""
_TILES = 64
"""Least tiles of a strip. Of fewer, products are slow, as each strip reads all of the weights."""
_PRODUCTS = 100_000_000
"""Least products of a strip, some two milliseconds; handing it to another thread costs a tenth of one."""
_SKEW = 48
"""Numbers between the 36 planes of a strip: planes that lie a power of two apart share the places of the cache."""


Finish = Callable[[Tensor, int, int], Tensor]
"""What becomes of some rows of a result at once, while they are in the cache: (rows, W, O), the number of the picture
and of the first row -> (rows, W, any channels). It may write into what it gets."""


class WinogradConv(nn.Module):
    """A 3 x 3 convolution (stride 1, padding 1) for inference on a CPU; other devices, sizes that are no
    multiples of 4, and pictures that want gradients take the plain one."""

    spectrum: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if not self.fits(conv):
            raise ValueError(f"WinogradConv: wants a 3 x 3 convolution with stride 1 and padding 1, got {conv}.")
        self.conv = conv
        kernel = _kernel_transform()
        weight = conv.weight.detach().double()
        spectrum = torch.einsum("xa,yb,oiab->xyio", kernel, kernel, weight).flatten(0, 1)
        self.register_buffer("spectrum", spectrum.float().contiguous(), persistent=False)  # (36, C, O)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
        whole = conv.in_channels % WIDTH == 0 and conv.out_channels % WIDTH == 0
        return whole and shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1)

    def forward(self, x: Tensor, finish: Finish | None = None, stored: int | None = None) -> Tensor:
        """(B, O, H, W), or (B, stored, H, W): what `finish` makes of the result, which is never written as a whole."""
        batch, channels, height, width = x.shape
        learning = torch.is_grad_enabled() and x.requires_grad
        if learning or x.device.type != "cpu" or height % 4 or width % 4 or x.dtype != torch.float32:
            return plainly(self.conv, x, finish)
        out = self.spectrum.shape[2]
        stored = stored or out
        down, across = height // 4, width // 4
        picture = x.new_empty(batch, height, width, stored)
        pixels = x.detach().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(batch, -1).numpy()
        bias = np.zeros(out, np.float32) if self.conv.bias is None else self.conv.bias.detach().numpy()
        lanes = _the_lanes()
        most = _FLOATS // (36 * across * max(out, channels) * lanes.count)
        least = max(_TILES, _PRODUCTS // (36 * channels * out))
        rows = min(down, max(min(most, -(-down // lanes.count)), -(-least // across)))
        # The same memory for every strip: fresh pages cost as much as the arithmetic.
        sizes = 36 * (rows * across * channels + _SKEW), 36 * (rows * across * out + _SKEW), 16 * rows * across * out
        spare = deque([x.new_empty(size) for size in sizes] for _ in range(lanes.count))

        def strip(number: int, top: int) -> None:
            n = min(rows, down - top)
            memory = spare.pop()
            tiles, sums, whole = memory
            places = n * across
            steps = [places * count + _SKEW for count in (channels, out)]
            _take_apart(pixels[number], (height, width, channels), top, n, tiles.numpy(), steps[0], _room())
            spectra = tiles.as_strided((36, places, channels), (steps[0], channels, 1))
            products = sums.as_strided((36, places, out), (steps[1], out, 1))
            torch.bmm(spectra, self.spectrum, out=products)
            target = picture[number, 4 * top : 4 * (top + n)]
            result = target if finish is None else whole[: 16 * places * out].view(4 * n, width, out)
            _put_together(sums.numpy(), steps[1], (n, across, out), bias, result.view(-1).numpy(), _room())
            if finish is not None:
                target.copy_(finish(result, number, 4 * top))
            spare.append(memory)

        lanes.run(strip, [(number, top) for number in range(batch) for top in range(0, down, rows)])
        return picture.permute(0, 3, 1, 2)


class _Lanes:
    """Threads that share the work of a convolution, each of which computes its pieces by itself: it waits for no other
    between its products, and finds its numbers in its own cache."""

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        self.process, self.threads, self.count = os.getpid(), threads, min(threads, MOST_LANES)
        self._pool = ThreadPoolExecutor(self.count, "winograd", torch.set_num_threads, (threads // self.count,))
        started = threading.Barrier(self.count + 1)
        for _ in range(self.count):
            self._pool.submit(started.wait)
        started.wait()
        torch.set_num_threads(threads)  # what threads that are yet to come begin with, and the lanes have changed

    def run(self, work: Callable[[int, int], None], pieces: list[tuple[int, int]]) -> None:
        """Calls `work(*piece)` for every piece; the first error is raised. One alone shares its products instead."""
        if len(pieces) == 1:
            work(*pieces[0])
            return
        inference = torch.is_inference_mode_enabled()

        def one(piece: tuple[int, int]) -> None:
            with torch.inference_mode(inference), torch.no_grad():
                work(*piece)

        for _ in self._pool.map(one, pieces):
            pass


_lanes: _Lanes | None = None
_starting = threading.Lock()


def _the_lanes() -> _Lanes:
    """Those of this process (threads do not survive a fork) and as many threads as torch has now."""
    global _lanes
    with _starting:
        if _lanes is None or (_lanes.process, _lanes.threads) != (os.getpid(), torch.get_num_threads()):
            _lanes = _Lanes()
        return _lanes


def plainly(conv: nn.Module, x: Tensor, finish: Finish | None) -> Tensor:
    """The same of any convolution, all rows at once."""
    result: Tensor = conv(x)
    if finish is None:
        return result
    pictures = result.permute(0, 2, 3, 1)
    return torch.stack([finish(p, k, 0) for k, p in enumerate(pictures)]).permute(0, 3, 1, 2)


def convolve(conv: nn.Module, x: Tensor, finish: Finish, stored: int) -> Tensor:
    """(B, stored, H, W): what `finish` makes of a convolution's result."""
    made: Tensor = conv(x, finish, stored) if isinstance(conv, WinogradConv) else plainly(conv, x, finish)
    return made


def _kernel_transform() -> Tensor:
    """G (6, 3) of Toom and Cook: values at the points, over what interpolation divides by."""
    points = torch.tensor(_POINTS, dtype=torch.float64)
    apart = points[:, None] - points
    apart.fill_diagonal_(1)
    infinity = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    return torch.cat([points[:, None] ** torch.arange(3) / apart.prod(1, keepdim=True), infinity])


def _room() -> NDArray[np.float32]:
    return np.empty(36 * WIDTH, np.float32)


_A1, _B1, _ZERO = np.float32(_A), np.float32(_B), np.float32(0)
_A2, _B2, _A3, _B3 = np.float32(_A**2), np.float32(_B**2), np.float32(_A**3), np.float32(_B**3)
_BOTH, _SUM = np.float32(_A**2 * _B**2), np.float32(_A**2 + _B**2)


@njit(error_model="numpy")
def _apart(a, b, c, d, e, f):  # type: ignore[no-untyped-def]
    """B^T times six numbers: row p holds the coefficients of the product of (x - q) over the other points q."""
    near, far = e - c * _B2, e - c * _A2
    odd, even = (d - b * _B2) * _A1, (d - b * _A2) * _B1
    return a * _BOTH - c * _SUM + e, near + odd, near - odd, far + even, far - even, b * _BOTH - d * _SUM + f


@njit(error_model="numpy")
def _together(a, b, c, d, e, f):  # type: ignore[no-untyped-def]
    """A^T times six numbers: row k holds the points to the power of k."""
    near, far, odd, even = b + c, d + e, b - c, d - e
    return a + near + far, odd * _A1 + even * _B1, near * _A2 + far * _B2, odd * _A3 + even * _B3 + f


@kernel("void(f4[::1],UniTuple(i8,3),i8,i8,f4[::1],i8,f4[::1])")
def _take_apart(pixels, size, top, n, planes, step, room):  # type: ignore[no-untyped-def]
    """B^T d B of the tiles of n rows of tiles from row `top` on: plane 6 p + q at step (6 p + q), tiles, channels."""
    height, width, channels = size
    nothing = splat(_ZERO)
    to = 0
    for row in range(4 * top - 1, 4 * (top + n) - 1, 4):
        for column in range(-1, width - 1, 4):
            for channel in range(0, channels, WIDTH):
                for r in range(6):
                    place = 6 * WIDTH * r
                    if row + r < 0 or row + r >= height:
                        for q in range(6):
                            store(room, place + WIDTH * q, nothing)
                        continue
                    at = ((row + r) * width + column) * channels + channel
                    first, last = nothing, nothing
                    if column >= 0:
                        first = load(pixels, at)
                    if column + 5 < width:
                        last = load(pixels, at + 5 * channels)
                    a, b, c, d, e, f = _apart(
                        first,
                        load(pixels, at + channels),
                        load(pixels, at + 2 * channels),
                        load(pixels, at + 3 * channels),
                        load(pixels, at + 4 * channels),
                        last,
                    )
                    store(room, place, a)
                    store(room, place + WIDTH, b)
                    store(room, place + 2 * WIDTH, c)
                    store(room, place + 3 * WIDTH, d)
                    store(room, place + 4 * WIDTH, e)
                    store(room, place + 5 * WIDTH, f)
                for q in range(6):
                    place, plane = WIDTH * q, to + channel + step * q
                    a, b, c, d, e, f = _apart(
                        load(room, place),
                        load(room, place + 6 * WIDTH),
                        load(room, place + 12 * WIDTH),
                        load(room, place + 18 * WIDTH),
                        load(room, place + 24 * WIDTH),
                        load(room, place + 30 * WIDTH),
                    )
                    store(planes, plane, a)
                    store(planes, plane + 6 * step, b)
                    store(planes, plane + 12 * step, c)
                    store(planes, plane + 18 * step, d)
                    store(planes, plane + 24 * step, e)
                    store(planes, plane + 30 * step, f)
            to += channels


@kernel("void(f4[::1],i8,UniTuple(i8,3),f4[::1],f4[::1],f4[::1])")
def _put_together(planes, step, size, bias, result, room):  # type: ignore[no-untyped-def]
    """A^T m A of rows x columns of tiles, and the bias: (4 rows, 4 columns, channels)."""
    rows, columns, channels = size
    width = 4 * columns
    at = 0
    for row in range(rows):
        for column in range(columns):
            for channel in range(0, channels, WIDTH):
                for p in range(6):
                    plane, place = at + channel + 6 * step * p, 4 * WIDTH * p
                    a, b, c, d = _together(
                        load(planes, plane),
                        load(planes, plane + step),
                        load(planes, plane + 2 * step),
                        load(planes, plane + 3 * step),
                        load(planes, plane + 4 * step),
                        load(planes, plane + 5 * step),
                    )
                    store(room, place, a)
                    store(room, place + WIDTH, b)
                    store(room, place + 2 * WIDTH, c)
                    store(room, place + 3 * WIDTH, d)
                more = load(bias, channel)
                for k in range(4):
                    place = WIDTH * k
                    a, b, c, d = _together(
                        load(room, place),
                        load(room, place + 4 * WIDTH),
                        load(room, place + 8 * WIDTH),
                        load(room, place + 12 * WIDTH),
                        load(room, place + 16 * WIDTH),
                        load(room, place + 20 * WIDTH),
                    )
                    to = (4 * row * width + 4 * column + k) * channels + channel
                    store(result, to, a + more)
                    store(result, to + width * channels, b + more)
                    store(result, to + 2 * width * channels, c + more)
                    store(result, to + 3 * width * channels, d + more)
            at += channels
