"""Noise in object space: what skin, eyes, hair and rooms are made of.

Every function takes points, not pixels, so a pattern sticks to the surface whatever the pose, and it is a pure
function of (point, seed): the same
seed gives the same freckle on every machine.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_WRAP = 0xFFFFFFFF


@njit(cache=True, inline="always")
def _hash(x: int, y: int, z: int, seed: int) -> int:
    """32 well mixed bits of an integer lattice point (the finaliser of MurmurHash3, applied to a linear mix)."""
    h = (x * 0x8DA6B343 + y * 0xD8163841 + z * 0xCB1AB31F + seed * 0x9E3779B1) & _WRAP
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & _WRAP
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & _WRAP
    return h ^ (h >> 16)


@njit(cache=True, inline="always")
def _direction(h: int) -> tuple[float, float, float]:
    """One of the 12 edge directions of a cube (Perlin 2002), chosen by `h`."""
    case = h % 12
    first = 1.0 if case & 1 else -1.0
    second = 1.0 if case & 2 else -1.0
    if case < 4:
        return first, second, 0.0
    if case < 8:
        return first, 0.0, second
    return 0.0, first, second


@njit(cache=True)
def _perlin(x: float, y: float, z: float, seed: int) -> float:
    ix, iy, iz = math.floor(x), math.floor(y), math.floor(z)
    fx, fy, fz = x - ix, y - iy, z - iz
    wx = fx * fx * fx * (fx * (fx * 6 - 15) + 10)
    wy = fy * fy * fy * (fy * (fy * 6 - 15) + 10)
    wz = fz * fz * fz * (fz * (fz * 6 - 15) + 10)
    total = 0.0
    for corner in range(8):
        cx, cy, cz = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (wx if cx else 1 - wx) * (wy if cy else 1 - wy) * (wz if cz else 1 - wz)
        gx, gy, gz = _direction(_hash(int(ix) + cx, int(iy) + cy, int(iz) + cz, seed))
        total += weight * (gx * (fx - cx) + gy * (fy - cy) + gz * (fz - cz))
    return total


@njit(cache=True)
def _fractal(points: np.ndarray, frequency: float, octaves: int, gain: float, seed: int) -> np.ndarray:
    out = np.zeros(len(points), np.float32)
    for i in range(len(points)):
        amplitude, f, total, norm = 1.0, frequency, 0.0, 0.0
        for octave in range(octaves):
            total += amplitude * _perlin(points[i, 0] * f, points[i, 1] * f, points[i, 2] * f, seed + 31 * octave)
            norm += amplitude
            amplitude *= gain
            f *= 2.03  # not 2: lattice planes of the octaves must not coincide
        out[i] = total / norm
    return out


def fractal(points: np.ndarray, frequency: float, octaves: int = 4, *, gain: float = 0.5, seed: int = 0) -> np.ndarray:
    """Multi-octave gradient noise (Perlin 2002).

    Args:
        points: (P, 3), in metres.
        frequency: lattice cells per metre of the first octave; each further octave about doubles it.
        octaves: at least 1.
        gain: amplitude of an octave relative to the one before.
        seed: any integer; another seed is another pattern.
    Returns:
        (P,) float32, zero mean, within [-1, 1], standard deviation about 0.17.
    """
    return _fractal(np.ascontiguousarray(points, np.float32), float(frequency), int(octaves), float(gain), int(seed))


@njit(cache=True)
def _relief(points: np.ndarray, frequency: float, octaves: int, gain: float, seed: int) -> np.ndarray:
    out = np.zeros((len(points), 3), np.float32)
    for i in range(len(points)):
        amplitude, f = 1.0, frequency
        for octave in range(octaves):
            x, y, z = points[i, 0] * f, points[i, 1] * f, points[i, 2] * f
            ix, iy, iz = math.floor(x), math.floor(y), math.floor(z)
            fx, fy, fz = x - ix, y - iy, z - iz
            wx = fx * fx * fx * (fx * (fx * 6 - 15) + 10)
            wy = fy * fy * fy * (fy * (fy * 6 - 15) + 10)
            wz = fz * fz * fz * (fz * (fz * 6 - 15) + 10)
            sx = 30 * fx * fx * (fx - 1) * (fx - 1)
            sy = 30 * fy * fy * (fy - 1) * (fy - 1)
            sz = 30 * fz * fz * (fz - 1) * (fz - 1)
            for corner in range(8):
                cx, cy, cz = corner & 1, (corner >> 1) & 1, corner >> 2
                ax, ay, az = (wx if cx else 1 - wx), (wy if cy else 1 - wy), (wz if cz else 1 - wz)
                gx, gy, gz = _direction(_hash(int(ix) + cx, int(iy) + cy, int(iz) + cz, seed + 31 * octave))
                dot = gx * (fx - cx) + gy * (fy - cy) + gz * (fz - cz)
                out[i, 0] += amplitude * (ax * ay * az * gx + (sx if cx else -sx) * ay * az * dot)
                out[i, 1] += amplitude * (ax * ay * az * gy + (sy if cy else -sy) * ax * az * dot)
                out[i, 2] += amplitude * (ax * ay * az * gz + (sz if cz else -sz) * ax * ay * dot)
            amplitude *= gain
            f *= 2.03
    return out


def relief(points: np.ndarray, frequency: float, octaves: int = 2, *, gain: float = 0.7, seed: int = 0) -> np.ndarray:
    """Slopes of a bumpy surface: the exact gradient of gradient noise, each octave per cell of its own lattice.

    Args:
        points: (P, 3), in metres. frequency, octaves, seed: as in `fractal`.
        gain: slope of an octave relative to the one before.
    Returns:
        (P, 3) float32, zero mean; standard deviation about 0.7 per axis for the first octave alone.
    """
    return _relief(np.ascontiguousarray(points, np.float32), float(frequency), int(octaves), float(gain), int(seed))


@njit(cache=True)
def _cells(points: np.ndarray, frequency: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    distance = np.empty(len(points), np.float32)
    identity = np.empty(len(points), np.float32)
    for i in range(len(points)):
        x, y, z = points[i, 0] * frequency, points[i, 1] * frequency, points[i, 2] * frequency
        ix, iy, iz = math.floor(x), math.floor(y), math.floor(z)
        best, which = 1e9, 0
        for dx in range(-1, 2):
            for dy in range(-1, 2):
                for dz in range(-1, 2):
                    cx, cy, cz = int(ix) + dx, int(iy) + dy, int(iz) + dz
                    h = _hash(cx, cy, cz, seed)
                    px = cx + (h & 1023) / 1024.0 - x
                    py = cy + ((h >> 10) & 1023) / 1024.0 - y
                    pz = cz + ((h >> 20) & 1023) / 1024.0 - z
                    d = px * px + py * py + pz * pz
                    if d < best:
                        best, which = d, _hash(cx, cy, cz, seed + 7)
        distance[i] = math.sqrt(best) / frequency
        identity[i] = (which & 0xFFFFFF) / 16777216.0
    return distance, identity


def cells(points: np.ndarray, frequency: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cellular noise (Worley 1996): scattered feature points, one per lattice cell.

    Args:
        points: (P, 3), in metres.
        frequency: feature points per metre along each axis.
        seed: any integer.
    Returns:
        distance (P,) float32, metres to the nearest feature point, and identity (P,) float32 in [0, 1), a random
        number of that feature point.
    """
    return _cells(np.ascontiguousarray(points, np.float32), float(frequency), int(seed))


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 up to `low`, 1 from `high` on (or the other way round for high < low), smooth between; the shape of `x`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
