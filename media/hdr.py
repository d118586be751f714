"""High dynamic range and wide colours taken down to 8-bit sRGB.

    code values --transfer--> light, 1 = diffuse white --primaries--> BT.709 --shoulder, sRGB curve--> 8 bits

Phones record HLG by default, and a face in it is as bright as in SDR: light up to 0.8 of diffuse white (203 nits, ITU-R
BT.2408) is kept as it is, only what is brighter is compressed. FFmpeg's swscale can do it too, but spends five seconds
on a table before the first frame.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc

HDR_TRANSFERS = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
"""PQ and HLG."""

_WHITE = 203.0  # nits of diffuse white
_KNEE = 0.8
_BRIGHTEST = 8.0  # above it the shoulder is flat to 8 bits
_STEPS = 4096

# Linear light in BT.709 primaries from that in others, white D65. ITU-R BT.2087 for BT.2020, SMPTE EG 432-1 for P3.
_TO_709 = {
    ColorPrimaries.BT2020: np.array(
        [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
    ),
    ColorPrimaries.SMPTE432: np.array(
        [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]
    ),
}


def needs_conversion(transfer: int, primaries: int) -> bool:
    """Whether frames with these tags (FFmpeg's numbers) differ from sRGB enough to show."""
    return transfer in HDR_TRANSFERS or primaries in _TO_709


def to_srgb(codes: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """(H, W, 3) uint8 sRGB from (H, W, 3) uint16 full-range RGB codes; transfers that are not HDR count as sRGB's."""
    light = _linear(transfer if transfer in HDR_TRANSFERS else 0)[codes]  # (H, W, 3) float32
    if transfer == ColorTrc.ARIB_STD_B67:
        # HLG holds scene light; its display of 1000 nits multiplies by luminance^0.2 (ITU-R BT.2100, gamma 1.2).
        luminance = cv2.transform(light, np.array([[0.2627, 0.6780, 0.0593]]))
        light *= (1000 / _WHITE) * cv2.pow(luminance, 0.2)[..., None]
    if primaries in _TO_709:
        light = cv2.transform(light, _TO_709[ColorPrimaries(primaries)])
    index = cv2.sqrt(np.clip(light, 0, _BRIGHTEST)) * ((_STEPS - 1) / _BRIGHTEST**0.5) + 0.5
    return _shown(transfer in HDR_TRANSFERS)[index.astype(np.uint16)]


@lru_cache(maxsize=4)
def _linear(transfer: int) -> np.ndarray:
    """(65536,) float32: light of a code value."""
    code = np.arange(65536) / 65535
    if transfer == ColorTrc.SMPTE2084:
        root = code ** (1 / 78.84375)
        nits = 10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        light = nits / _WHITE
    elif transfer == ColorTrc.ARIB_STD_B67:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:
        light = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@lru_cache(maxsize=2)
def _shown(shoulder: bool) -> np.ndarray:
    """(_STEPS,) uint8: sRGB value of the light that the table's square-root scale stands for."""
    light = (np.arange(_STEPS) / (_STEPS - 1)) ** 2 * _BRIGHTEST
    if shoulder:
        light = np.where(light > _KNEE, 1 - (1 - _KNEE) * np.exp(-(light - _KNEE) / (1 - _KNEE)), light)
    light = np.minimum(light, 1)
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(code * 255).astype(np.uint8)
