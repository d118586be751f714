"""3 x 3 convolutions in a quarter of the products, for processors (Lavin and Gray, "Fast algorithms for convolutional
neural networks", 2016): F(4 x 4, 3 x 3).

Tiles of 6 x 6 pixels that overlap by two give 4 x 4 results each. Tiles d and kernels g are transformed, multiplied
number by number (summed over channels, so as 36 matrix products), and transformed back:

    y = A^T [sum over channels (G g G^T) * (B^T d B)] A

Here each of the two-sided transforms is one matrix of the 36 numbers of a tile, so that all work is matrix products.
Values differ from the plain convolution by about 2e-6 of their maximum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Where the polynomials of the derivation are evaluated, beside infinity. These lose a quarter of what the usual
0, 1, -1, 2, -2 lose."""
_FLOATS = 3_000_000
"""Numbers of the transformed results at a time, so that they stay in the cache."""


Finish = Callable[[Tensor, int, int], Tensor]
"""What becomes of some rows of a result at once, while they are in the cache: (rows, W, O), the number of the picture
and of the first row -> (rows, W, any channels). It may write into what it gets."""


class WinogradConv(nn.Module):
    """A 3 x 3 convolution (stride 1, padding 1) for inference on a CPU; other devices, sizes that are no
    multiples of 4, and pictures that want gradients take the plain one."""

    spectrum: Tensor
    input_transform: Tensor
    output_transform: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        if not self.fits(conv):
            raise ValueError(f"WinogradConv: wants a 3 x 3 convolution with stride 1 and padding 1, got {conv}.")
        self.conv = conv
        output, kernel, tile = _transforms()
        weight = conv.weight.detach().double()
        spectrum = torch.einsum("xa,yb,oiab->xyio", kernel, kernel, weight).flatten(0, 1)
        self.register_buffer("spectrum", spectrum.float().contiguous(), persistent=False)  # (36, C, O)
        self.register_buffer("input_transform", torch.kron(tile, tile).float(), persistent=False)
        self.register_buffer("output_transform", torch.kron(output, output).float(), persistent=False)

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        return (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups) == (
            (3, 3),
            (1, 1),
            (1, 1),
            (1, 1),
            1,
        )

    def forward(self, x: Tensor, finish: Finish | None = None, stored: int | None = None) -> Tensor:
        """(B, O, H, W), or (B, stored, H, W): what `finish` makes of the result, which is never written as a whole."""
        batch, channels, height, width = x.shape
        learning = torch.is_grad_enabled() and x.requires_grad
        if learning or x.device.type != "cpu" or height % 4 or width % 4 or x.dtype != torch.float32:
            return plainly(self.conv, x, finish)
        out = self.spectrum.shape[2]
        stored = stored or out
        down, across = height // 4, width // 4
        picture = x.new_empty(batch, down, 4, across, 4, stored)
        padded = F.pad(x.contiguous(memory_format=torch.channels_last), (1, 1, 1, 1)).permute(0, 2, 3, 1)
        row, column = padded.stride()[1:3]
        rows = min(down, max(1, _FLOATS // (36 * across * max(out, channels))))
        # the same memory for every strip: fresh pages cost as much as the arithmetic
        tiles, spectra = (x.new_empty(36, rows * across * channels) for _ in range(2))
        products, results = (x.new_empty(count, rows * across * out) for count in (36, 16))
        bias = x.new_zeros(()) if self.conv.bias is None else self.conv.bias.detach()
        strips = None if finish is None else x.new_empty(rows, 4, across, 4, out)
        for number, (source, target) in enumerate(zip(padded, picture, strict=True)):
            for top in range(0, down, rows):
                n = min(rows, down - top)
                start = source.storage_offset() + 4 * top * row
                strip = source.as_strided((6, 6, n, across, channels), (row, column, 4 * row, 4 * column, 1), start)
                d, v, m, y = (
                    buffer.view(-1)[: count * n * across * width].view(count, -1)
                    for buffer, count, width in (
                        (tiles, 36, channels),
                        (spectra, 36, channels),
                        (products, 36, out),
                        (results, 16, out),
                    )
                )
                d.view(strip.shape).copy_(strip)
                torch.mm(self.input_transform, d, out=v)
                torch.bmm(v.view(36, -1, channels), self.spectrum, out=m.view(36, -1, out))
                torch.mm(self.output_transform, m, out=y)
                y = y.view(4, 4, n, across, out).permute(2, 0, 3, 1, 4)
                if finish is None or strips is None:
                    torch.add(y, bias, out=target[top : top + n])
                else:
                    torch.add(y, bias, out=strips[:n])
                    made = finish(strips[:n].view(4 * n, width, out), number, 4 * top)
                    target[top : top + n] = made.view(n, 4, across, 4, stored)
        return picture.view(batch, height, width, stored).permute(0, 3, 1, 2)


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


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """A^T (4, 6), G (6, 3) and B^T (6, 6) of Toom and Cook: values at the points, interpolation from them."""
    points = torch.tensor(_POINTS, dtype=torch.float64)
    infinity = torch.tensor([[0.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    output = torch.cat([points ** torch.arange(4)[:, None], infinity], 1)
    apart = points[:, None] - points
    apart.fill_diagonal_(1)
    kernel = torch.cat([points[:, None] ** torch.arange(3) / apart.prod(1, keepdim=True), infinity[1:].mT])
    tile = torch.zeros(6, 6, dtype=torch.float64)
    for i in range(5):
        tile[i, :5] = _from_roots(points[torch.arange(5) != i])
    tile[5] = _from_roots(points)
    return output, kernel, tile


def _from_roots(roots: Tensor) -> Tensor:
    """Coefficients of the product of (x - root), constant first."""
    polynomial = torch.ones(1, dtype=roots.dtype)
    for root in roots:
        polynomial = torch.cat([polynomial.new_zeros(1), polynomial]) - root * torch.cat(
            [polynomial, polynomial.new_zeros(1)]
        )
    return polynomial
