"""OSTNet's two parts for keypoint models (Hong et al., "Learning online scale transformation for talking head video
generation", sections 3.2 and 3.3), and the augmentation that trains them (section 3.4).

    keypoints x and distance vectors v = x - centroid(x), of source and driver --MLP--> code z --FC--> fiducial points
    fiducial points --thin-plate spline--> deformation T;      driving picture --warp by T--> rectified picture

The rectified picture shows the driver in the proportions of the source; the keypoints that drive are read from it. The
scale embedding adds W_i z to what each block of the generator gives.

Places are x, y in [-1, 1], where -1 and 1 are the edges of the picture, as for `render.warp`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..render.warp import warp
from .keypoints import Motion


@dataclass(frozen=True)
class ScaleConfig:
    """The paper gives neither sizes nor the arrangement of the fiducial points; these are ours."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the MLP before the code."""
    code: int = 128
    """Numbers of the latent scale code z."""
    fiducials: tuple[int, int] = (2, 10)
    """Rows and columns of fiducial points from edge to edge; two rows lie along the top and the bottom."""
    distance_vectors: bool = True
    """Whether the MLP sees v besides x (the paper's table 4)."""

    def __post_init__(self) -> None:
        if min(self.fiducials) < 2:
            raise ValueError(f"fiducials must be at least 2 rows and 2 columns, got {list(self.fiducials)}.")


@dataclass(frozen=True)
class ScaledMotion(Motion):
    """Keypoints of rectified driving pictures. They are absolute: made for one source, and no frame is an anchor."""

    code: Tensor | None = None
    """(B, `code`) z."""
    fiducials: Tensor | None = None
    """(B, F, 2) where in the driving picture the fiducial points of the rectified one lie."""
    rectified: Tensor | None = None
    """(B, 3, H, W) in [0, 1]: the driving picture in the source's proportions."""
    seen: Motion | None = None
    """Keypoints of the driving pictures as they came."""

    def _each(self, change: Callable[[Tensor], Tensor]) -> ScaledMotion:
        def perhaps(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return ScaledMotion(
            change(self.value),
            perhaps(self.jacobian),
            perhaps(self.code),
            perhaps(self.fiducials),
            perhaps(self.rectified),
            None if self.seen is None else self.seen._each(change),
        )


class ScaleLocalisation(nn.Module):
    """Eq. 1 and the first line of eq. 2: the latent scale code from two sets of keypoints."""

    def __init__(self, num_kp: int, config: ScaleConfig = ScaleConfig()) -> None:
        super().__init__()
        self.distance_vectors = config.distance_vectors
        widths = [(8 if config.distance_vectors else 4) * num_kp, *config.hidden, config.code]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layer = nn.Linear(fan_in, fan_out)
            # He et al. (2015). With torch's default the code would be small, and what begins with 0 behind it slow.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, source: Tensor, driving: Tensor) -> Tensor:
        """(B, `code`) of keypoints (B, K, 2)."""
        seen = []
        for places in (source, driving):
            seen.append(places)
            if self.distance_vectors:
                seen.append(places - places.mean(1, keepdim=True))
        code: Tensor = self.layers(torch.cat(seen, 1).flatten(1))
        return code


class ScaleTransformation(nn.Module):
    """The rest of eq. 2, and eq. 3: a driving picture rectified by the code. An untrained one changes nothing."""

    base: Tensor

    def __init__(self, config: ScaleConfig = ScaleConfig()) -> None:
        super().__init__()
        rows, columns = config.fiducials
        y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
        self.register_buffer("base", torch.stack([x, y], -1).flatten(0, 1), persistent=False)
        self.move = nn.Linear(config.code, self.base.numel())
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)
        self._fields: Tensor | None = None

    def fiducials(self, code: Tensor) -> Tensor:
        """(B, F, 2) of codes (B, `code`); `base` (F, 2) is the identity."""
        moves: Tensor = self.move(code)
        return self.base + moves.unflatten(1, (-1, 2))

    def forward(self, image: Tensor, fiducials: Tensor) -> Tensor:
        """The picture (B, 3, H, W) pulled so that what is at `fiducials` comes to `base`; its border is repeated."""
        return warp(image, self.displacement(fiducials, image.shape[2], image.shape[3]))

    def displacement(self, fiducials: Tensor, height: int, width: int) -> Tensor:
        """(B, 2, H, W) T(p) - p in NDC: the thin-plate spline that takes `base` to (B, F, 2) `fiducials`.

        A spline is linear in the values it meets, so it is a fixed picture per fiducial point, and the identity is 0.
        """
        field = self._fields
        if field is None or field.shape[1:] != (height, width) or field.device != fiducials.device:
            with torch.inference_mode(False):  # what is kept may be needed for gradients later
                field = self._fields = thin_plate_fields(self.base, height, width)
        with torch.autocast(fiducials.device.type, enabled=False):  # half precision would be a fifth of a pixel
            return torch.einsum("bfc,fhw->bchw", (fiducials - self.base).float(), field)


def thin_plate_fields(points: Tensor, height: int, width: int) -> Tensor:
    """(F, H, W) at every pixel centre, the thin-plate spline that is 1 at one of (F, 2) points and 0 at the others.

        T(p) = sum_i w_i U(|p - p_i|) + A p + t,   U(r) = r^2 log r^2,   sum_i w_i = 0, sum_i w_i p_i = 0

    Bookstein (1989). Combinations of them that are affine at the points are affine everywhere. Solved in float64.

    Raises:
        ValueError: fewer than three points, or all on one line.
    """
    points = points.detach().double()
    count = len(points)
    ones = points.new_ones(count, 1)
    affine = torch.cat([ones, points], 1)  # (F, 3)
    if count < 3 or torch.linalg.matrix_rank(affine) < 3:
        raise ValueError("thin_plate_fields: the points must be at least three that are not on one line.")
    system = points.new_zeros(count + 3, count + 3)
    system[:count, :count] = _bending(points, points)
    system[:count, count:], system[count:, :count] = affine, affine.T
    coefficients = torch.linalg.inv(system)[:, :count]
    x = (torch.arange(width, dtype=points.dtype, device=points.device) * 2 + 1) / width - 1
    y = (torch.arange(height, dtype=points.dtype, device=points.device) * 2 + 1) / height - 1
    places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
    seen = torch.cat([_bending(places, points), places.new_ones(len(places), 1), places], 1)
    return (seen @ coefficients).T.unflatten(1, (height, width)).float()


def _bending(a: Tensor, b: Tensor) -> Tensor:
    """(A, B) U of the distances."""
    squared = (a[:, None] - b).square().sum(-1)
    return torch.xlogy(squared, squared)


class ScaleEmbedding(nn.Module):
    """Eq. 5: W_i z for each block of a generator. It begins with 0, so an untrained one changes nothing."""

    def __init__(self, code: int, channels: Sequence[int]) -> None:
        """`channels`: what each block gives."""
        super().__init__()
        self.weights = nn.ModuleList(nn.Linear(code, width, bias=False) for width in channels)
        for layer in self.weights:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)

    def forward(self, code: Tensor) -> list[Tensor]:
        """(B, C_i, 1, 1) for each block, of codes (B, `code`)."""
        return [layer(code)[..., None, None] for layer in self.weights]


def stretch(image: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """The expression-preserved augmentation: wider and higher by factors, padded to a square, back to the old size.

    So the longer side fills the picture, and a place p goes to (a, b) p / max(a, b): what changes is the proportion of
    the face, and its size in one direction. The padding repeats the border. Shrinking averages (a triangle filter), so
    that it does not alias.

    Args:
        image: (B, C, S, S).
        width, height: (B,) factors a and b, positive.
    """
    if image.shape[2] != image.shape[3]:
        raise ValueError(f"stretch: the pictures must be square, got {tuple(image.shape)}.")
    longer = torch.maximum(width, height)
    across, down = (_resampling(longer / factor, image.shape[3]).to(image) for factor in (width, height))
    return torch.einsum("bij,bcjk,blk->bcil", down, image, across)


def random_stretches(batch: int, amount: float, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Factors (B,) for widths and for heights, uniform in [1 - amount, 1 + amount]; drawn on the CPU."""
    factors = torch.empty(2, batch).uniform_(1 - amount, 1 + amount).to(device)
    return factors[0], factors[1]


def _resampling(steps: Tensor, size: int) -> Tensor:
    """(B, size, size): row i has the weights of the old pixels in new pixel i, when new pixels lie `steps` (B,) >= 1
    old ones apart around the same middle."""
    reach = int((float(steps.max()) - 1) * size / 2 + float(steps.max())) + 1
    middle = (size - 1) / 2
    new = torch.arange(size, device=steps.device) - middle
    old = torch.arange(-reach, size + reach, device=steps.device) - middle
    steps = steps[:, None, None]
    weights = F.relu(1 - (new[:, None] * steps - old).abs() / steps)
    weights = weights / weights.sum(-1, keepdim=True)
    inside = weights[..., reach : reach + size].clone()
    inside[..., 0] += weights[..., :reach].sum(-1)
    inside[..., -1] += weights[..., reach + size :].sum(-1)
    return inside
