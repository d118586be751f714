"""Still pictures: any common file in, upright 8-bit sRGB out; written whole or not at all.

uint8 (H, W, 3) RGB, as a viewer would show the file: turned by its EXIF tag, colours taken from its profile to
sRGB, transparency laid on white, the first frame of an animation.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from .errors import InputError
from .files import atomic_write, read_error

MAX_PIXELS = 200_000_000
"""Larger pictures are refused (a few kilobytes of PNG can claim any size). The largest phone photos stay below."""

XMP = "XML:com.adobe.xmp"
"""The metadata key of an XMP packet (its PNG keyword), which goes where a format keeps such packets."""

_JPEG_QUALITY = 95
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 1}),  # four times as fast as the default level, about 10 % larger
    ".jpg": ("JPEG", {"quality": _JPEG_QUALITY, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": _JPEG_QUALITY, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": _JPEG_QUALITY}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SRGB = ImageCms.createProfile("sRGB")
_bomb_guard = threading.Lock()


def load_image(path: str | Path, *, max_side: int | None = None) -> np.ndarray:
    """Read a picture as a viewer shows it.

    EXIF rotation is applied, an embedded colour profile (also CMYK and grey ones) is taken to sRGB, palettes and grey
    become RGB, 16-bit values v become round(v / 257), transparent parts show white, of an animation the first frame
    comes back. A broken profile or EXIF block is ignored.

    Args:
        path: PNG, JPEG, WebP, TIFF, BMP, AVIF, GIF or anything else that Pillow reads.
        max_side: the longer side is reduced to this many pixels where it is larger. JPEG is then decoded at a reduced
            size from the start: a 40-megapixel photo at 2048 takes a tenth of the memory and of the time.
    Returns:
        (H, W, 3) uint8, RGB, contiguous.
    Raises:
        InputError: missing, a folder, empty, not a picture, truncated, or above `MAX_PIXELS`.
    """
    image = _load(path, max_side)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    return np.array(image)


def load_rgba(path: str | Path, *, max_side: int | None = None) -> np.ndarray:
    """As `load_image`, with the transparency kept: (H, W, 4) uint8, RGBA, not premultiplied, 255 = opaque."""
    return np.array(_load(path, max_side).convert("RGBA"))


def save_image(path: str | Path, image: np.ndarray, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a picture in the format its ending names; whole or not at all.

    PNG is lossless with fast compression, JPEG has quality 95 without chroma subsampling, WebP has quality 95.

    Args:
        path: ends in .png, .jpg, .jpeg, .webp, .bmp, .tif or .tiff; missing folders are made.
        image: (H, W, 3) uint8 RGB, or (H, W, 4) RGBA for formats with transparency.
        metadata: texts to store: as PNG text chunks, elsewhere as one EXIF description "key: value; key: value". The
            entry `XMP` is stored as an XMP packet. BMP keeps nothing.
    Raises:
        InputError: unknown ending, no permission, no space.
        ValueError: the array is not such an image.
    """
    path = Path(path)
    check_picture_ending(path)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4) or image.size == 0:
        raise ValueError(f"save_image: image must be uint8 (H, W, 3) or (H, W, 4), got {image.dtype} {image.shape}.")
    kind, options = _FORMATS[path.suffix.lower()]
    if image.shape[2] == 4 and kind in ("JPEG", "BMP"):
        raise InputError(f"Cannot write {path}: {kind} has no transparency; use .png or .webp.")
    picture = Image.fromarray(np.ascontiguousarray(image))
    with atomic_write(path) as temporary:
        picture.save(temporary, kind, **options, **_describe(kind, metadata))


def check_picture_ending(path: str | Path) -> None:
    """InputError unless `save_image` knows the format; for callers that want to know before the work is done."""
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        ending = path.suffix or "nothing"
        raise InputError(f"Cannot write {path}: pictures end in {', '.join(_FORMATS)}, not in {ending}.")


def _describe(kind: str, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if not metadata or kind == "BMP":
        return {}
    if kind == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for key, value in metadata.items():
            chunks.add_itxt(key, value)
        return {"pnginfo": chunks}
    texts = {key: value for key, value in metadata.items() if key != XMP}
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "; ".join(f"{key}: {value}" for key, value in texts.items())
    packet = metadata.get(XMP)
    if packet is None:
        return {"exif": exif}
    if kind == "TIFF":
        exif[ExifTags.Base.XMLPacket] = packet.encode()
        return {"exif": exif}
    return {"exif": exif, "xmp": packet.encode()}


def _load(path: str | Path, max_side: int | None) -> Image.Image:
    """The picture, upright, in mode RGB or RGBA and sRGB colours."""
    if max_side is not None and max_side < 1:
        raise ValueError(f"load_image: max_side must be at least 1 pixel, got {max_side}.")
    path = Path(path)
    if fault := read_error(path):
        raise fault
    try:
        with warnings.catch_warnings(), _open(path) as image:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata are of no use here
            orientation, profile = _orientation(image), image.info.get("icc_profile")
            shrink = min(1.0, max_side / max(image.size)) if max_side else 1.0
            target = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
            if shrink < 1.0:
                image.draft(None, target)  # JPEG decodes at 1/2, 1/4 or 1/8 size, never below the target
            image.load()
            upright = _eight_bit(image)
            if upright.size != target:
                upright = upright.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
            upright = _to_srgb(upright, profile)
            return upright.transpose(_TURNS[orientation]) if orientation in _TURNS else upright
    except InputError as error:
        raise InputError(f"{path} {error}") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{path} is not a picture that can be read; convert it to PNG or JPEG.") from None
    except MemoryError:
        raise InputError(f"{path} does not fit into memory; reduce the picture first.") from None
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise InputError(f"{path} is damaged or cut off ({error}); copy or download it again.") from error


def _open(path: Path) -> Image.Image:
    # Pillow's own bomb guard is a module variable, warns from 89 and refuses from 179 megapixels. Ours replaces it.
    with _bomb_guard:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    if image.width * image.height > MAX_PIXELS:
        with image:
            raise InputError(
                f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS // 1_000_000} megapixels; "
                "reduce the picture first."
            )
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block is no reason to refuse a good picture
        return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """Mode L, LA, RGB, RGBA or CMYK, still in the file's own colours."""
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(image, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError("holds 32-bit values; save it with 8 or 16 bits per channel.")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0.0 and values.max() <= 1.0):  # also refuses NaN
            raise InputError("holds floating-point values outside 0 to 1; save it with 8 or 16 bits per channel.")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if "transparency" in image.info or mode in ("PA", "La", "RGBa"):
        return image.convert("RGBA")
    if mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return image
    return image.convert("L" if mode == "1" else "RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode RGB or RGBA in sRGB; the profile counts only where it fits the mode."""
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    base = image.convert(image.mode.rstrip("A")) if alpha else image
    converted = None
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) == base.mode:
                converted = ImageCms.profileToProfile(base, source, _SRGB, outputMode="RGB")
        except (OSError, ImageCms.PyCMSError):
            converted = None  # a damaged profile: show the values as they are, as viewers do
    result = converted or base.convert("RGB")
    if alpha:
        result.putalpha(alpha)
    return result
