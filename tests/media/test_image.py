"""Pictures as a viewer shows them; bad files end in one sentence."""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from headwarp.media.errors import InputError
from headwarp.media.files import atomic_write, list_images, natural_key
from headwarp.media.image import load_image, load_rgba, save_image

SENTENCE = re.compile(r"^\S.*\.$", re.DOTALL)


def fails(path, *words):
    with pytest.raises(InputError) as caught:
        load_image(path)
    text = str(caught.value)
    assert SENTENCE.match(text)
    assert text.count("\n") == 0
    for word in (str(path), *words):
        assert word in text


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("max_side", [None, 20])
def test_every_exif_orientation_comes_back_upright(tmp_path, lab, orientation, max_side):
    upright = lab.picture(24, 40)
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    exif = Image.Exif()
    exif[0x0112] = undo
    tagged = Image.fromarray(upright)
    tagged.getexif()[0x0112] = undo
    stored = ImageOps.exif_transpose(tagged)  # Pillow's own turn, the other way round
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png", max_side=max_side)
    wanted = upright if max_side is None else np.asarray(Image.fromarray(upright).resize((20, 12), 1, reducing_gap=3.0))
    assert loaded.shape == wanted.shape
    assert np.abs(loaded.astype(int) - wanted).max() <= (0 if max_side is None else 6)


def test_broken_exif_is_ignored(tmp_path, lab):
    image = lab.picture(24, 40)
    Image.fromarray(image).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*garbage of no meaning")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), image)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparency_shows_white_and_can_be_kept(tmp_path, name):
    rgba = np.zeros((8, 12, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, np.linspace(0, 255, 12).astype(np.uint8)
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    Image.fromarray(rgba).save(tmp_path / name, **options)
    share = rgba[..., 3:] / 255
    wanted = rgba[..., :3] * share + 255 * (1 - share)
    assert np.abs(load_image(tmp_path / name) - wanted).max() <= 1
    np.testing.assert_array_equal(load_rgba(tmp_path / name), rgba)


def test_palettes_with_and_without_transparency(tmp_path):
    palette = Image.new("P", (4, 2))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "clear.png", transparency=0)
    assert load_image(tmp_path / "plain.png")[0, :2].tolist() == [[255, 0, 0], [0, 255, 0]]
    assert load_image(tmp_path / "clear.png")[0, :2].tolist() == [[255, 255, 255], [0, 255, 0]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, lab, mode):
    image = Image.fromarray(lab.picture(24, 40)).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    # Pillow before 13 does not read its own uncompressed YCbCr TIFF.
    image.save(path, **({"compression": "tiff_lzw"} if mode == "YCbCr" else {}))
    loaded = load_image(path)
    assert loaded.shape == (24, 40, 3)
    assert loaded.dtype == np.uint8
    assert lab.psnr(loaded, np.asarray(image.convert("RGB"))) > 40


def test_sixteen_bit_grey_ramp(tmp_path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        loaded = load_image(tmp_path / name)
        np.testing.assert_array_equal(loaded[..., 0], np.rint(ramp / 257.0).astype(np.uint8))
        assert (loaded == loaded[..., :1]).all()
    assert load_image(tmp_path / "a.png", max_side=64).shape == (64, 64, 3)


def test_sixteen_bit_colour(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16)
    rows = b"".join(b"\0" + np.stack([values, values[::-1], values], -1).astype(">u2").tobytes() for _ in range(4))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 64, 4, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    wanted = np.stack([values, values[::-1], values], -1) / 257.0
    assert np.abs(load_image(tmp_path / "a.png")[0] - wanted).max() <= 1.01


def test_floats_in_the_unit_range_only(tmp_path):
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif")[..., 0].ravel(), np.arange(256))
    Image.fromarray(np.full((4, 4), 7.0, np.float32)).save(tmp_path / "b.tif")
    fails(tmp_path / "b.tif", "0 to 1")


def test_a_colour_profile_is_taken_to_srgb(tmp_path):
    colours = np.random.default_rng(0).integers(30, 226, (16, 16, 3), np.uint8)
    srgb = ImageCms.createProfile("sRGB")
    swapped = _profile_with_swapped_primaries(ImageCms.ImageCmsProfile(srgb).tobytes())
    Image.fromarray(colours[..., ::-1]).save(tmp_path / "a.png", icc_profile=swapped)
    Image.fromarray(colours).save(tmp_path / "b.png", icc_profile=b"no profile at all")
    assert np.abs(load_image(tmp_path / "a.png").astype(int) - colours).max() <= 2
    np.testing.assert_array_equal(load_image(tmp_path / "b.png"), colours)


def _profile_with_swapped_primaries(profile: bytes) -> bytes:
    """A real profile in which red and blue have changed places: values must be swapped to look the same."""
    count = int.from_bytes(profile[128:132], "big")
    table = bytearray(profile)
    for k in range(count):
        at = 132 + 12 * k
        name = bytes(table[at : at + 4])
        if name in (b"rXYZ", b"bXYZ"):
            table[at : at + 4] = b"bXYZ" if name == b"rXYZ" else b"rXYZ"
    return bytes(table)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    first, second = (Image.new("RGB", (8, 6), color) for color in ((250, 0, 0), (0, 0, 250)))
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second], duration=100)
    assert np.abs(load_image(tmp_path / f"a{suffix}").astype(int) - (250, 0, 0)).max() < 12


def test_a_photo_of_40_megapixels_is_reduced_while_it_is_decoded(tmp_path):
    stripe = Image.linear_gradient("L").resize((7304, 5478))
    Image.merge("RGB", (stripe, stripe, stripe)).save(tmp_path / "big.jpg", quality=80)
    assert load_image(tmp_path / "big.jpg").shape == (5478, 7304, 3)
    small = load_image(tmp_path / "big.jpg", max_side=1600)
    assert small.shape == (1200, 1600, 3)
    grown = subprocess.run(
        [sys.executable, "-c", _GROWTH, tmp_path / "big.jpg"], capture_output=True, text=True, check=True
    )
    assert float(grown.stdout) < 40  # MB; the whole photo has 120
    assert np.abs(small[:, 0, 0].astype(int) - np.linspace(0, 255, 1200)).max() < 4


_GROWTH = """
import resource, sys
from headwarp.media.image import load_image
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
before = peak()
load_image(sys.argv[1], max_side=1600)
print(peak() - before)
"""


def test_max_side_never_enlarges(tmp_path, lab):
    Image.fromarray(lab.picture(24, 40)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", max_side=100).shape == (24, 40, 3)


def test_bad_files_end_in_one_sentence(tmp_path, lab):
    fails(tmp_path / "missing.png", "does not exist")
    fails(tmp_path, "is a folder")
    (tmp_path / "empty.png").touch()
    fails(tmp_path / "empty.png", "empty")
    (tmp_path / "text.png").write_text("not a picture")
    fails(tmp_path / "text.png", "not a picture")
    for suffix in (".png", ".jpg", ".webp", ".tif", ".gif"):
        whole = io.BytesIO()
        kind = {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
        Image.fromarray(lab.picture(240, 400)).save(whole, kind)
        (tmp_path / f"cut{suffix}").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
        fails(tmp_path / f"cut{suffix}")


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    Image.new("1", (20_000, 10_001)).save(tmp_path / "bomb.png")
    fails(tmp_path / "bomb.png", "20000 x 10001", "200 megapixels")
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("name", "least"), [("a.png", 200), ("a.tif", 200), ("a.bmp", 200), ("a.JPG", 38), ("a.webp", 30)]
)
def test_saved_pictures_come_back(tmp_path, lab, name, least):
    image = lab.picture(25, 41)  # odd, and not square
    save_image(tmp_path / "new" / name, image)
    assert lab.psnr(load_image(tmp_path / "new" / name), image) > least if least < 200 else True
    if least == 200:
        np.testing.assert_array_equal(load_image(tmp_path / "new" / name), image)
    assert os.listdir(tmp_path / "new") == [name]


def test_metadata_is_stored(tmp_path, lab):
    for name in ("a.png", "a.jpg", "a.webp"):
        save_image(tmp_path / name, lab.picture(8, 8), metadata={"Comment": "made by headwarp"})
        with Image.open(tmp_path / name) as image:
            found = image.info.get("Comment") or image.getexif()[0x010E]
        assert "made by headwarp" in found


def test_transparent_pictures_are_saved_where_the_format_can(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    save_image(tmp_path / "a.png", rgba)
    np.testing.assert_array_equal(load_rgba(tmp_path / "a.png"), rgba)
    with pytest.raises(InputError, match="no transparency"):
        save_image(tmp_path / "a.jpg", rgba)


def test_impossible_outputs_end_in_one_sentence(tmp_path, lab, monkeypatch):
    image = lab.picture(8, 8)
    for name in ("a.xyz", "a", "a.mp4"):
        with pytest.raises(InputError, match="end in"):
            save_image(tmp_path / name, image)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder"):
        save_image(tmp_path / "file" / "a.png", image)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        save_image(tmp_path / "folder.png", image)
    with pytest.raises(ValueError, match="uint8"):
        save_image(tmp_path / "a.png", image / 255.0)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="no permission"):
        save_image(tmp_path / "a.png", image)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path, lab):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="no permission"):
        save_image(tmp_path / "locked" / "a.png", lab.picture(8, 8))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, lab, error):
    (tmp_path / "a.txt").write_text("old")

    def interrupted():
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(InputError if isinstance(error, OSError) else error):
        interrupted()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    with atomic_write(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_new_files_have_ordinary_permissions(tmp_path):
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    (tmp_path / "plain.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


def test_natural_order_and_folders(tmp_path):
    for name in ("frame10.png", "frame2.PNG", "Frame1.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["Frame1.jpg", "frame2.PNG", "frame10.png"]
    assert natural_key("a2b10") < natural_key("a10b2")
    assert sorted(["7", "x", "10x", "010"], key=natural_key) == ["7", "010", "10x", "x"]
    with pytest.raises(InputError, match="not a folder"):
        list_images(tmp_path / "notes.txt")
