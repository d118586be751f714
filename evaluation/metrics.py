"""Formulas of the metrics, on arrays; what detects and embeds is in `backbones`, what belongs together in `suite`.

Pictures are (B, 3, H, W) float32 in [0, 1], results (B,) unless said otherwise.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..media.errors import InputError

Array = NDArray[np.float64]

PSNR_LIMIT = 99.0
"""dB of identical pictures, so that means stay finite."""
SMALLEST_MS_SSIM = 176
"""Pixels: four halvings of smaller pictures leave less than the 11 pixels of the window."""


def l1(result: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference over pixels and channels, of values in [0, 1] (times 255: PWM's and G3FA's)."""
    return (result - truth).abs().mean((1, 2, 3))


def psnr(result: Tensor, truth: Tensor) -> Tensor:
    """dB: 10 log10(1 / mean squared difference), of each picture."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    each = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(result, truth, strict=True)]
    return torch.stack(each).clamp_max(PSNR_LIMIT)


def ssim(result: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, K = (.01, .03), RGB mean.

    Over the whole picture with mirrored borders, as torchmetrics has it (scikit-image leaves 5 pixels off).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(result, truth, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found


def ms_ssim(result: Tensor, truth: Tensor) -> Tensor:
    """Multi-scale SSIM (Wang et al. 2003), five scales, the paper's weights; nan for too small pictures."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    if min(result.shape[-2:]) < SMALLEST_MS_SSIM:
        return result.new_full((len(result),), float("nan"))
    # relu: a negative contrast term to a fractional power has no value
    return multiscale_structural_similarity_index_measure(
        result, truth, data_range=1.0, reduction="none", normalize="relu"
    )


def frechet(first: Array, second: Array) -> float:
    """Frechet distance of two sets of features, each taken as a normal distribution (Heusel et al. 2017).

        |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

    The last trace is the sum of the singular values of X1 X2^T / sqrt((n1 - 1) (n2 - 1)), X the centred features: the
    non-zero eigenvalues of S1 S2 are their squares. That is exact, also where there are fewer pictures than features,
    and needs no matrix root.

    Args:
        first, second: (n, D) each, n >= 2. With few pictures the distance is far too large (FID is usually given for
            thousands): compare only equal numbers.
    """
    if min(len(first), len(second)) < 2:
        return float("nan")
    means = first.mean(0), second.mean(0)
    x, y = first - means[0], second - means[1]
    spread = np.square(x).sum() / (len(x) - 1) + np.square(y).sum() / (len(y) - 1)
    # A QR decomposition keeps X^T X and with it the singular values; D rows are enough.
    short: list[Array] = [np.asarray(np.linalg.qr(z, mode="r")) if len(z) > z.shape[1] else z for z in (x, y)]
    root = np.linalg.svd(short[0] @ short[1].T, compute_uv=False).sum()
    root /= np.sqrt((len(x) - 1.0) * (len(y) - 1.0))
    return float(max(0.0, np.square(means[0] - means[1]).sum() + spread - 2 * root))


def cosine(first: Array, second: Array) -> float:
    """Cosine of the angle between two vectors (D,)."""
    return float(first @ second / np.maximum(np.linalg.norm(first) * np.linalg.norm(second), 1e-12))


def identity_distance(first: Array, second: Array) -> float:
    """Euclidean distance of two embeddings of length one: FOMM's AED."""
    unit = [v / np.maximum(np.linalg.norm(v), 1e-12) for v in (first, second)]
    return float(np.linalg.norm(unit[0] - unit[1]))


def keypoint_distance(result: Array, truth: Array) -> float:
    """AKD: mean absolute difference of landmarks (N, 2) over points and coordinates, in pixels of the square.

    So is FOMM's (pose-evaluation's cmp.py), and PWM's "L1 distance"; a Euclidean distance is about 1.4 times that.
    """
    return float(np.abs(result - truth).mean())


def pose_distance(result: Array, truth: Array) -> float:
    """APD: mean absolute difference of yaw, pitch and roll (3,), in degrees, the short way round."""
    return float(np.abs(_turn(result, truth)).mean())


def pose_error(result: Array, truth: Array) -> float:
    """PRMSE: sqrt of the mean squared difference of yaw, pitch and roll (3,), in degrees (DaGAN's `utils.py`)."""
    return float(np.sqrt(np.square(_turn(result, truth)).mean()))


def unit_agreement(result: Array, truth: Array, threshold: float = 0.5) -> float:
    """AUCON: share of face units (U,) that are active (above the threshold) in both or in neither."""
    return float(((result > threshold) == (truth > threshold)).mean())


def jitter(points: Array, unit: Array) -> float:
    """Root mean square acceleration of landmarks over consecutive frames, in percent of the eye distance.

        a_t = p_(t+1) - 2 p_t + p_(t-1),   sqrt(mean |a|^2) over times and landmarks

    Args:
        points: (T, N, 2) px; nan where no face was found: three frames in a row count only where all are there.
        unit: (T,) eye distance in px.
    """
    if len(points) < 3:
        return float("nan")
    acceleration = points[2:] - 2 * points[1:-1] + points[:-2]
    relative = np.square(acceleration).sum(-1).mean(-1) / np.square(unit[1:-1])
    seen = np.isfinite(relative)
    return float(100 * np.sqrt(relative[seen].mean())) if seen.any() else float("nan")


def bootstrap(
    values: Array, groups: NDArray[np.int64], *, rounds: int = 2000, seed: int = 0, share: float = 0.95
) -> tuple[float, float]:
    """Interval that holds the mean with the given share, from groups drawn with replacement.

    Pairs of one clip resemble each other, so that clips are drawn, not pairs; the mean stays the one over pairs.

    Args:
        values: (n,) without nan.
        groups: (n,) number of each value's clip.
    """
    if len(values) == 0:
        return float("nan"), float("nan")
    _, groups = np.unique(groups, return_inverse=True)
    sums = np.bincount(groups, values)
    sizes = np.bincount(groups).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(rounds, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return float(np.quantile(means, (1 - share) / 2)), float(np.quantile(means, (1 + share) / 2))


def need_torchmetrics() -> None:
    """InputError where torchmetrics is missing, before any work is done."""
    try:
        import torchmetrics  # noqa: F401
    except ImportError:
        raise InputError("Evaluation needs torchmetrics; `pip install headwarp[train]` brings it.") from None


def _turn(result: Array, truth: Array) -> Array:
    return np.asarray((result - truth + 180.0) % 360.0 - 180.0)
