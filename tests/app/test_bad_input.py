"""Whatever the user gives: a result, or one sentence on stderr, exit code 2, and nothing on the disk is lost."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable

import av
import numpy as np
import pytest
from PIL import Image

from headwarp.fitting.fit import fit_video
from headwarp.media.image import load_image, save_image
from headwarp.media.video import probe

SMALL = ("--size", 128)


@pytest.fixture
def animate(lab, portrait, driving, tmp_path) -> Callable[..., str]:
    """Animates with something bad, and gives the sentence; no file may have come or gone."""

    def run(source: object = portrait, clip: object = driving, *more: object, output: object = None) -> str:
        before = lab.snapshot(tmp_path)
        sentence = lab.refused("animate", "-s", source, "-d", clip, "-o", output or tmp_path / "out.mp4", *SMALL, *more)
        assert lab.snapshot(tmp_path) == before
        return sentence

    return run


# --- files that cannot be used


def test_missing_files(animate, tmp_path):
    assert "nobody.jpg does not exist" in animate(tmp_path / "nobody.jpg")
    assert "nowhere.mp4 does not exist" in animate(clip=tmp_path / "nowhere.mp4")
    assert "track.safetensors does not exist" in animate(clip=tmp_path / "track.safetensors")


def test_not_a_picture_not_a_video(lab, animate, tmp_path):
    for name in ("text.jpg", "text.mp4", "text.safetensors"):
        (tmp_path / name).write_text("This is only text.\n" * 50)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    assert "is not a picture" in animate(tmp_path / "text.jpg")
    assert "is not a video" in animate(tmp_path / "text.mp4")
    assert "is not a video" in animate(clip=tmp_path / "text.mp4")
    assert "text.safetensors" in animate(clip=tmp_path / "text.safetensors")
    assert "empty" in animate(clip=tmp_path / "empty.mp4")
    assert "holds no pictures" in animate(clip=tmp_path / "folder")
    assert "is not a picture" in lab.refused("edit", "-s", tmp_path / "text.jpg", "-o", tmp_path / "out.png")


def test_sound_without_pictures(animate, tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert "only sound" in animate(clip=tmp_path / "song.mp4")


def test_a_video_without_frames(animate, tmp_path):
    with av.open(str(tmp_path / "none.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        output.start_encoding()
    sentence = animate(clip=tmp_path / "none.mp4")
    assert "none.mp4" in sentence


def test_a_clip_cut_off_before_its_index(animate, driving, tmp_path):
    content = driving.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    assert "cut off" in animate(clip=tmp_path / "cut.mp4")


def test_a_clip_cut_off_after_its_index_is_animated_as_far_as_it_goes(lab, portrait, driving_images, tmp_path):
    whole = lab.write_clip(tmp_path / "whole.mp4", driving_images + driving_images[::-1])
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mkv"), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    content = (tmp_path / "cut.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 6 // 10])
    done = lab.headwarp("animate", "-s", portrait, "-d", tmp_path / "cut.mkv", "-o", tmp_path / "out.mp4", *SMALL)
    assert done.code == 0, done.err
    assert "cut.mkv is cut off" in done.err
    assert 5 < len(lab.frames(tmp_path / "out.mp4")) < 15
    assert probe(tmp_path / "out.mp4").fps == 25, "this muxer claims 30,000 and 1,000 frames per second"


def test_a_track_of_another_head(animate, driving, tmp_path):
    track = fit_video(driving)
    track.head_sha256, track.head_name = "0" * 64, "flame"
    track.save(tmp_path / "flame.safetensors")
    assert "flame" in animate(clip=tmp_path / "flame.safetensors")


# --- faces


def test_no_face(lab, animate, driving_images, tmp_path):
    save_image(tmp_path / "wall.png", np.full((120, 90, 3), 128, np.uint8))
    wall = lab.write_clip(tmp_path / "wall.mp4", [np.full_like(driving_images[0], 90)] * 5)
    assert "No face found in" in animate(tmp_path / "wall.png")
    assert "No face found in any frame of" in animate(clip=wall)
    assert "No face found" in animate(wall)
    assert "No face found" in lab.refused("edit", "-s", tmp_path / "wall.png", "-o", tmp_path / "o.png", "--no-crop")


@pytest.mark.parametrize("number", [-1, 2])
def test_a_face_number_that_is_not_there(lab, portrait, driving, tmp_path, number):
    common = ("animate", "-s", portrait, "-d", driving, "-o", tmp_path / "o.mp4", *SMALL)
    for flag in ("--source-face", "--driving-face"):
        assert f"Face {number} was asked for" in lab.refused(*common, flag, number)


def test_two_faces_in_the_driving_clip(lab, portrait, driving_images, tmp_path):
    pairs = [np.concatenate([image, image[:, ::-1]], 1) for image in driving_images[:4]]
    clip = lab.write_clip(tmp_path / "pair.mp4", pairs)
    done = lab.headwarp("animate", "-s", portrait, "-d", clip, "-o", tmp_path / "out.mp4", *SMALL)
    assert done.code == 0, done.err
    assert "2 faces" in done.err
    assert "--driving-face 1" in done.err


def test_a_face_at_the_very_border(lab, picture, driving, tmp_path):
    face_cut = picture[:, 62:]  # the left cheek is gone
    save_image(tmp_path / "border.png", face_cut)
    done = lab.headwarp("animate", "-s", tmp_path / "border.png", "-d", driving, "-o", tmp_path / "o/", *SMALL)
    assert done.code == 0, done.err
    assert lab.psnr(load_image(tmp_path / "o" / "0000000.png"), face_cut) >= 50


def test_a_tiny_face(lab, astronaut, driving, tmp_path):
    small = np.asarray(Image.fromarray(astronaut).resize((170, 170), Image.Resampling.LANCZOS))  # the face 40 wide
    save_image(tmp_path / "tiny.png", small)
    done = lab.headwarp("animate", "-s", tmp_path / "tiny.png", "-d", driving, "-o", tmp_path / "o/", *SMALL)
    assert done.code == 0, done.err
    result = load_image(tmp_path / "o" / "0000005.png")
    assert result.shape == small.shape
    assert np.isfinite(lab.psnr(result, small))


def test_a_face_that_fills_the_picture(lab, astronaut, driving, tmp_path):
    face = np.asarray(Image.fromarray(astronaut[60:190, 165:285]).resize((240, 260), Image.Resampling.LANCZOS))
    save_image(tmp_path / "large.png", face)
    done = lab.headwarp("animate", "-s", tmp_path / "large.png", "-d", driving, "-o", tmp_path / "o/", *SMALL)
    assert done.code == 0, done.err
    assert lab.psnr(load_image(tmp_path / "o" / "0000000.png"), face) >= 50


# --- pictures of every kind


def test_kinds_of_pictures(lab, picture, tmp_path):
    """The same person whatever the coding: every file gives a picture of its upright size."""
    whole = Image.fromarray(picture)
    alpha = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    alpha[:20, :20, 3] = 0
    grey16 = (np.asarray(whole.convert("L"), np.uint32) * 257).astype(np.uint16)
    whole.save(tmp_path / "palette.gif")
    whole.convert("L").save(tmp_path / "grey.png")
    whole.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    Image.fromarray(grey16).save(tmp_path / "grey16.png")
    whole.crop((0, 0, 163, 181)).save(tmp_path / "odd.webp", lossless=True)
    for path in sorted(tmp_path.iterdir()):
        out = tmp_path / "out.png"
        done = lab.headwarp("edit", "-s", path, "-o", out, "--yaw", 5, "--size", 192)
        assert done.code == 0, (path, done.err)
        result, expected = load_image(out), load_image(path)
        assert result.shape == expected.shape
        assert 20 < lab.psnr(result, expected) < 60, path
        out.unlink()


def test_a_photo_turned_by_its_exif_tag(lab, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
    lying = Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "lying.jpg", quality=98, subsampling=0, exif=exif)
    done = lab.headwarp("edit", "-s", tmp_path / "lying.jpg", "-o", tmp_path / "out.png", "--jaw", 0, "--size", 192)
    assert done.code == 0, done.err
    assert lab.psnr(load_image(tmp_path / "out.png"), picture) > 35


def test_a_phone_video_turned_by_its_matrix(lab, portrait, driving_images, driving, tmp_path):
    lying = [np.rot90(image, 1) for image in driving_images]
    clip = lab.write_clip(tmp_path / "phone.mp4", lying)
    content = bytearray(clip.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 256 << 16, 0, 1 << 30)
    clip.write_bytes(content)
    assert probe(clip).rotation in (90, 270)
    # as source and as driver: upright in, upright out
    done = lab.headwarp("animate", "-s", clip, "-d", clip, "-o", tmp_path / "o.mp4", "--strength", 0, *SMALL)
    assert done.code == 0, done.err
    assert lab.psnr(lab.frames(tmp_path / "o.mp4")[3], driving_images[3]) > 30


def test_odd_sizes(lab, picture, driving_images, tmp_path):
    save_image(tmp_path / "odd.png", picture[:181, :163])
    for index, image in enumerate(driving_images[:4]):
        save_image(tmp_path / "frames" / f"{index}.png", image[:255, :253])
    done = lab.headwarp(
        "animate", "-s", tmp_path / "odd.png", "-d", tmp_path / "frames", "-o", tmp_path / "o.mp4", "--size", 129
    )
    assert done.code == 0, done.err
    assert probe(tmp_path / "o.mp4").size == (182, 164)


def test_frames_of_different_sizes(animate, driving_images, tmp_path):
    save_image(tmp_path / "frames" / "0.png", driving_images[0])
    save_image(tmp_path / "frames" / "1.png", driving_images[1][:200])
    assert "of one size" in animate(clip=tmp_path / "frames")


# --- where nothing may be written


def test_unknown_endings(lab, animate, portrait, tmp_path):
    assert ".xyz" in animate(output=tmp_path / "out.xyz")
    assert "folder of PNG frames" in animate(output=tmp_path / "out.png")
    for command in ("edit", "frontalize"):
        assert ".mp4" in lab.refused(command, "-s", portrait, "-o", tmp_path / "out.mp4")


def test_places_that_cannot_be_written(lab, animate, portrait, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert "is a file" in animate(output=tmp_path / "file" / "out.mp4")
    assert "Cannot write" in animate(output=f"{tmp_path}/file/")
    assert "Cannot write" in animate(output="/proc/nowhere/out.mp4")
    assert "is a file" in lab.refused("edit", "-s", portrait, "-o", tmp_path / "file" / "out.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(animate, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    assert "permission" in animate(output=locked / "out.mp4")
    assert "permission" in animate(output=f"{locked}/")


def test_a_read_only_disk(animate, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting needs root and a capability")
    try:
        assert "read-only" in animate(output=disk / "out.mp4")
        assert "read-only" in animate(output=f"{disk}/frames/")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_with_other_files_is_not_replaced(animate, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"precious")
    assert "holds other files" in animate(output=tmp_path / "photos")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0000000.png").write_bytes(b"frames of someone else")
    assert "holds other files" in animate(output=tmp_path / "frames")


def test_inputs_are_never_overwritten(lab, animate, portrait, driving, driving_images, tmp_path):
    mine, clip = tmp_path / "mine.png", tmp_path / "out_concat.mp4"
    mine.write_bytes(portrait.read_bytes())
    clip.write_bytes(driving.read_bytes())
    (tmp_path / "link.mp4").symlink_to(clip)
    assert "would replace" in animate(mine, clip, output=clip)
    assert "would replace" in animate(mine, clip, output=tmp_path / "link.mp4")
    assert "would replace" in animate(mine, clip, "--side-by-side", output=tmp_path / "out.mp4")
    assert "would replace" in lab.refused("edit", "-s", mine, "-o", mine)
    # frames that an earlier run wrote, and a frame of them as portrait
    done = lab.headwarp("animate", "-s", mine, "-d", clip, "-o", tmp_path / "frames", "--strength", 0, *SMALL)
    assert done.code == 0, done.err
    assert "would replace" in animate(clip=tmp_path / "frames", output=tmp_path / "frames")
    assert "would replace" in animate(tmp_path / "frames" / "0000000.png", output=tmp_path / "frames")


def test_a_second_run_replaces_its_own_frames(lab, portrait, driving, driving_images, tmp_path):
    short = lab.write_clip(tmp_path / "short.mp4", driving_images[:3])
    for clip, count in ((driving, 10), (short, 3)):
        done = lab.headwarp("animate", "-s", portrait, "-d", clip, "-o", tmp_path / "frames", *SMALL)
        assert done.code == 0, done.err
        assert len(list((tmp_path / "frames").iterdir())) == count


# --- numbers and names


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--strength", "nan"), "strength must be from 0 to 3"),
        (("--strength", "-1"), "strength must be from 0 to 3"),
        (("--smooth", "nan"), "smoothing must be from 0 to 100"),
        (("--smooth", "-0.5"), "smoothing must be from 0 to 100"),
        (("--rest", "middle"), "'first', 'best' or a frame number"),
        (("--rest", "-3"), "'first', 'best' or a frame number"),
        (("--rest", "500"), "has 10 frames"),
        (("--size", "5"), "from 128 to 1024"),
        (("--max-side", "0"), "at least 64 pixels"),
        (("--max-side", "-5"), "at least 64 pixels"),
    ],
)
def test_absurd_numbers_for_animate(animate, portrait, driving, flags, words):
    assert words in animate(portrait, driving, *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--yaw", "nan"), "yaw must be from -60 to 60 degrees, got nan"),
        (("--pitch", "inf"), "pitch must be"),
        (("--roll", "1e30"), "roll must be"),
        (("--jaw", "-200"), "jaw must be"),
        (("--gaze", "10"), "two numbers with a comma"),
        (("--gaze", "a,b"), "two numbers with a comma"),
        (("--gaze", "nan,0"), "gaze"),
        (("--expression", "jawOpen"), "NAME=VALUE"),
        (("--expression", "jawOpen=wide"), "NAME=VALUE"),
        (("--expression", "jawOpen=nan"), "jawOpen must be"),
        (("--expression", "jawOpen=7"), "jawOpen must be"),
        (("--expression", "mouthsmile_left=1"), "did you mean mouthSmileLeft"),
        (("--expression", "xyz=1"), "the names are eyeBlinkLeft"),
        (("--shape", "nose width=1"), "did you mean nose-width"),
        (("--shape", "nose-width=nan"), "from -1 to 1"),
        (("--size", "100000"), "from 128 to 1024"),
        (("--max-side", "0"), "at least 64 pixels"),
    ],
)
def test_absurd_values_for_edit(lab, portrait, tmp_path, flags, words):
    assert words in lab.refused("edit", "-s", portrait, "-o", tmp_path / "out.png", *flags)
    assert not any(tmp_path.iterdir())


def test_side_by_side_of_what_has_no_sides(animate, portrait, driving, tmp_path):
    fit_video(driving).save(tmp_path / "track.safetensors")
    assert "Side by side" in animate(portrait, driving, "--side-by-side", output=f"{tmp_path}/frames/")
    assert "Side by side" in animate(portrait, tmp_path / "track.safetensors", "--side-by-side")


def test_unknown_flags_and_commands(lab):
    for arguments in (("animate", "--strenght", "1"), ("annimate",), ()):
        done = lab.headwarp(*arguments)
        assert done.code == 2
        assert "Traceback" not in done.err


@pytest.mark.real
def test_a_dog_is_no_person(lab, real, tmp_path):
    sentence = lab.refused("edit", "-s", real / "portraits" / "s33.jpg", "-o", tmp_path / "out.png")
    assert "No face found in" in sentence
    assert "s33.jpg" in sentence
