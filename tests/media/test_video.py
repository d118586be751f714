"""Clips in: every frame upright, in its own colours, at its own time; damage ends in a sentence, never in a crash."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from headwarp.media.errors import InputError
from headwarp.media.image import save_image
from headwarp.media.video import VideoReader, probe

REAL = Path(os.environ.get("HEADWARP_REAL", Path(__file__).parents[2] / ".." / "shared" / "data" / "real"))


def fails(path, *words):
    with pytest.raises(InputError) as caught:
        VideoReader(path)
    text = str(caught.value)
    assert re.match(r"^\S[^\n]*\.$", text)
    for word in (str(path), *words):
        assert word in text


def test_frames_come_in_order_with_exact_times_as_often_as_asked(clip, lab):
    reader = VideoReader(clip)
    assert (reader.size, reader.fps, reader.frame_count, reader.has_audio) == ((64, 96), 25, 30, True)
    assert reader.duration == pytest.approx(1.2)
    for _ in range(2):
        frames = list(reader)
        assert [frame.index for frame in frames] == list(range(30))
        assert [frame.time for frame in frames] == [float(Fraction(k, 25)) for k in range(30)]
        assert min(lab.psnr(frame.image, lab.picture(64, 96, 3 * frame.index)) for frame in frames) > 27
        assert all(frame.image.flags.c_contiguous and frame.image.dtype == np.uint8 for frame in frames)
    assert reader.problems == []


@pytest.mark.parametrize(("degrees", "mirror"), list(product((0, 90, 180, 270), ((0, 0), (1, 0), (0, 1)))))
def test_phone_videos_stand_upright(tmp_path, lab, degrees, mirror):
    """Every display matrix that FFmpeg can write; its own reading of the angle is the judge."""
    stored = lab.picture(48, 80)
    path = lab.write_clip(
        tmp_path / "phone.mp4",
        [stored] * 3,
        prepare=lambda stream: stream.set_display_rotation(degrees, *map(bool, mirror)),
    )
    wanted = np.rot90(stored, degrees // 90)
    wanted = wanted[:, ::-1] if mirror[0] else wanted
    wanted = wanted[::-1] if mirror[1] else wanted
    reader = VideoReader(path)
    assert reader.size == wanted.shape[:2]
    assert lab.psnr(next(iter(reader)).image, wanted) > 27
    if mirror == (0, 0):
        assert reader.info.rotation == degrees


def test_variable_frame_rate_keeps_its_times(tmp_path, lab):
    times = [0, 0.04, 0.05, 0.3, 0.31, 0.9]
    path = lab.write_clip(tmp_path / "a.mp4", [lab.picture(32, 48, 9 * k) for k in range(6)], times=times)
    assert [frame.time for frame in VideoReader(path)] == pytest.approx(times, abs=1e-5)


def test_a_constant_rate_shows_the_nearest_frame(tmp_path, lab):
    times = [0, 0.04, 0.05, 0.3, 0.31, 0.9]
    grey = [np.full((32, 48, 3), 30 * k, np.uint8) for k in range(6)]
    path = lab.write_clip(tmp_path / "a.mp4", grey, times=times)
    frames = list(VideoReader(path, fps=10))
    assert [frame.time for frame in frames] == pytest.approx([k / 10 for k in range(len(frames))])
    assert [frame.index for frame in frames] == list(range(len(frames)))
    shown = [round(float(frame.image.mean()) / 30) for frame in frames]
    assert shown[:9] == [0, 2, 3, 3, 4, 4, 4, 5, 5]  # at 0.2 s, 0.3 is as near as 0.1 and 0.05 farther


@pytest.mark.parametrize(("fps", "count"), [(25, 30), (50, 60), (12.5, 15), (Fraction(30000, 1001), 36)])
def test_resampling_keeps_the_duration(clip, fps, count):
    reader = VideoReader(clip, fps=fps)
    frames = list(reader)
    assert len(frames) == pytest.approx(count, abs=1)
    assert reader.frame_count == pytest.approx(count, abs=1)
    assert np.allclose(np.diff([frame.time for frame in frames]), float(1 / Fraction(fps)))


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "size"),
    [
        ("a.mov", "libx264", "yuv420p", (48, 80)),
        ("a.mkv", "ffv1", "yuv444p", (25, 41)),
        ("a.mp4", "libx264", "yuv444p", (25, 41)),
        ("a.mp4", "libx264", "yuvj420p", (48, 80)),
        ("a.mp4", "libx264", "yuv420p10le", (48, 80)),
        ("a.mov", "prores_ks", "yuv422p10le", (48, 80)),
        ("a.webm", "libvpx-vp9", "yuv420p", (48, 80)),
        ("a.avi", "mpeg4", "yuv420p", (48, 80)),
        ("a.avi", "mjpeg", "yuvj420p", (48, 80)),
        ("a.gif", "gif", "rgb8", (25, 41)),
        ("a.mkv", "ffv1", "gray", (25, 41)),
        ("a.mkv", "ffv1", "bgra", (25, 41)),
    ],
)
def test_formats_and_sizes(tmp_path, lab, name, codec, pixel_format, size):
    image = lab.picture(*size)

    def tag(stream):
        if pixel_format.startswith("yuv"):
            stream.codec_context.colorspace = 1

    path = lab.write_clip(tmp_path / name, [image] * 5, codec=codec, pixel_format=pixel_format, prepare=tag)
    reader = VideoReader(path)
    frames = list(reader)
    assert [frame.time for frame in frames] == pytest.approx([k / 25 for k in range(5)], abs=2e-3)
    assert reader.problems == []
    found = frames[-1].image
    assert found.shape == image.shape
    if pixel_format == "gray":
        image = np.repeat(image.astype(float) @ [[0.2126], [0.7152], [0.0722]], 3, -1)
    assert lab.psnr(found, image) > (18 if codec == "gif" else 24)
    assert np.abs(found.astype(float).mean((0, 1)) - image.mean((0, 1))).max() < 6  # no tint, no wrong range


@pytest.mark.parametrize(("height", "colorspace"), [(64, 5), (720, 1)])
def test_untagged_colours_are_read_as_players_do(tmp_path, height, colorspace):
    """A saturated colour in BT.601 below 720 lines, in BT.709 from there on, both without a tag."""
    colour = np.full((height, 64, 3), (200, 40, 60), np.uint8)
    frame = av.VideoFrame.from_ndarray(colour, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=colorspace, dst_color_range=1
    )
    frame.colorspace, frame.color_range = 2, 0
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert np.abs(next(iter(VideoReader(tmp_path / "a.mp4"))).image.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_taken_down_to_sdr(tmp_path, transfer):
    """BT.2020 grey in PQ and HLG (codes from the standards' forward curves): a tenth of diffuse white shows the sRGB
    code of 0.1, diffuse white is nearly white, what is brighter still brighter."""
    codes = {16: [0.0, 0.3583, 0.5807, 0.7518], 18: [0.0, 0.3415, 0.7499, 1.0]}[transfer]  # 0, 20.3, 203, 1000 nits
    values = np.repeat([round(code * 65535) for code in codes], 16).astype(np.uint16)
    image = np.broadcast_to(values[None, :, None], (32, 64, 3))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb48le").reformat(
        format="yuv420p10le", dst_colorspace="BT2020", dst_color_range=1
    )
    with av.open(str(tmp_path / "hdr.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = 9, 1, 9, transfer
        frame.colorspace, frame.color_primaries, frame.color_trc = 9, 9, transfer
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    reader = VideoReader(tmp_path / "hdr.mp4")
    shown = next(iter(reader)).image[16, 8::16].astype(int)
    assert reader.info.hdr
    assert np.abs(shown - shown[:, :1]).max() <= 4
    srgb = 255 * (1.055 * 0.1 ** (1 / 2.4) - 0.055)
    assert shown[:, 0] == pytest.approx([0, srgb, 247, 255], abs=3)
    assert shown[3, 0] > shown[2, 0] + 3


def test_transparent_frames_show_white(tmp_path):
    rgba = np.zeros((16, 24, 4), np.uint8)
    rgba[:, 12:] = (200, 10, 10, 255)
    with av.open(str(tmp_path / "a.mov"), "w") as output:
        stream = output.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "rgba"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        output.mux(stream.encode(None))
    image = next(iter(VideoReader(tmp_path / "a.mov"))).image
    assert (image[:, :12] == 255).all()
    assert (image[:, 12:] == (200, 10, 10)).all()


def test_non_square_pixels_become_square(tmp_path, lab):
    def anamorphic(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = lab.write_clip(tmp_path / "a.mp4", [lab.picture(48, 60)] * 2, prepare=anamorphic)
    assert VideoReader(path).size == (48, 80)
    assert next(iter(VideoReader(path))).image.shape == (48, 80, 3)


@pytest.mark.parametrize("degrees", [0, 90])
def test_max_side_reduces(tmp_path, lab, degrees):
    path = lab.write_clip(
        tmp_path / "a.mp4", [lab.picture(48, 80)] * 2, prepare=lambda stream: stream.set_display_rotation(degrees)
    )
    size = (24, 40) if degrees == 0 else (40, 24)
    reader = VideoReader(path, max_side=40)
    assert reader.size == size
    assert next(iter(reader)).image.shape[:2] == size
    assert VideoReader(path, max_side=1000).size == VideoReader(path).size


def test_a_late_picture_keeps_its_place_beside_the_sound(tmp_path, lab):
    images = [lab.picture(32, 48)] * 5
    path = lab.write_clip(tmp_path / "a.mkv", images, times=[0.2 + k / 25 for k in range(5)], tone=0.5)
    assert next(iter(VideoReader(path))).time == pytest.approx(0.2, abs=0.002)


def test_a_folder_of_frames_and_a_picture_are_clips_too(tmp_path, lab):
    folder = tmp_path / "frames"
    for k in (0, 1, 2, 10):
        save_image(folder / f"{k}.png", lab.picture(25, 41, k))
    (folder / "notes.txt").touch()
    frames = list(VideoReader(folder))
    assert [frame.time for frame in frames] == [0, 0.04, 0.08, 0.12]
    np.testing.assert_array_equal(frames[3].image, lab.picture(25, 41, 10))
    assert [frame.time for frame in VideoReader(folder, fps=10)] == [0, 0.1, 0.2, 0.3]
    assert probe(folder).kind == "frames"

    (single,) = VideoReader(folder / "1.png")
    np.testing.assert_array_equal(single.image, lab.picture(25, 41, 1))
    assert probe(folder / "1.png").kind == "image"
    Image.fromarray(lab.picture(25, 41)).save(tmp_path / "picture.dat", "PNG")
    assert len(list(VideoReader(tmp_path / "picture.dat"))) == 1


def test_damaged_and_odd_frames_of_a_folder(tmp_path, lab):
    for k in range(4):
        save_image(tmp_path / f"{k}.png", lab.picture(25, 41, k))
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:100])
    reader = VideoReader(tmp_path)
    assert [frame.index for frame in reader] == [0, 1, 3]
    assert len(reader.problems) == 1
    assert "2.png" in reader.problems[0]
    save_image(tmp_path / "2.png", lab.picture(24, 40))
    with pytest.raises(InputError, match="of one size"):
        list(VideoReader(tmp_path))


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".mkv", {}), (".avi", {})])
def test_a_truncated_clip_yields_what_is_there_and_says_so(tmp_path, lab, suffix, options):
    images = [np.random.default_rng(k).integers(0, 256, (64, 96, 3), np.uint8) for k in range(75)]
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    whole = lab.write_clip(tmp_path / f"whole{suffix}", images, codec=codec, options=options)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: len(data) // 2])
    reader = VideoReader(cut)
    count = sum(1 for _ in reader)
    assert 15 < count < 60
    assert any("cut off" in problem for problem in reader.problems)
    assert all(problem.endswith(".") for problem in reader.problems)
    list(reader)
    assert len(reader.problems) <= 3  # told anew, not piled up


def test_a_clip_damaged_in_the_middle_goes_on(tmp_path, lab):
    path = lab.write_clip(tmp_path / "a.mkv", [lab.picture(64, 96, 5 * k) for k in range(60)])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = os.urandom(400)
    path.write_bytes(data)
    reader = VideoReader(path)
    times = [frame.time for frame in reader]
    assert len(times) >= 10
    assert times == sorted(set(times))


def test_what_is_no_clip_ends_in_one_sentence(tmp_path, lab, clip):
    fails(tmp_path / "missing.mp4", "does not exist")
    for name in ("empty.mp4", "empty.png"):
        (tmp_path / name).touch()
        fails(tmp_path / name, "empty")
    for name in ("text.mp4", "text.txt", "text"):
        (tmp_path / name).write_text("no video at all\n" * 50)
        fails(tmp_path / name, "not a video")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    fails(tmp_path / "noise.mp4", "not a video")
    (tmp_path / "folder").mkdir()
    fails(tmp_path / "folder", "no pictures")
    data = clip.read_bytes()
    (tmp_path / "unfinished.mp4").write_bytes(data[: data.index(b"moov") - 4])
    fails(tmp_path / "unfinished.mp4", "cut off before its index")
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    fails(tmp_path / "list.m3u8")


def test_sound_only(tmp_path):
    for name, codec in (("a.wav", "pcm_s16le"), ("a.m4a", "aac")):
        with av.open(str(tmp_path / name), "w") as output:
            stream = output.add_stream(codec, rate=48000)
            stream.codec_context.layout = "mono"
            block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
            block.sample_rate, block.pts = 48000, 0
            for part in av.AudioResampler(stream.format, "mono", 48000).resample(block):
                output.mux(stream.encode(part))
            output.mux(stream.encode(None))
        fails(tmp_path / name, "only sound")


def test_a_clip_without_frames(tmp_path, clip):
    """The pictures' stream is declared but empty; only sound follows."""
    with av.open(str(clip)) as source, av.open(str(tmp_path / "none.mkv"), "w") as output:
        output.add_stream_from_template(source.streams.video[0])
        sound = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = sound
                output.mux(packet)
    fails(tmp_path / "none.mkv", "no frame")


def test_a_name_is_a_name(tmp_path, lab):
    """FFmpeg would take some of these for protocols, patterns or options."""
    for name in ("concat:a|b.mp4", "-i.mp4", "100%d.mp4", "a b#c?.mp4", "häd.mp4"):
        whole = lab.write_clip(tmp_path / "plain.mp4", [lab.picture(32, 48)] * 2)
        whole.rename(tmp_path / name)
        assert len(list(VideoReader(tmp_path / name))) == 2


def test_memory_stays_constant_over_2000_frames(tmp_path, lab):
    image = lab.picture(128, 128)
    frames = [np.roll(image, 3 * k, axis=1) for k in range(32)]
    path = lab.write_clip(tmp_path / "long.mp4", [frames[k % 32] for k in range(2000)])
    script = """
import resource, sys
from headwarp.media.video import VideoReader, VideoWriter
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
reader = VideoReader(sys.argv[1])
with VideoWriter(sys.argv[2], reader.size, reader.fps, audio_from=sys.argv[1]) as writer:
    for frame in reader:
        writer.write(frame.image, frame.time)
        if frame.index == 200:
            early = peak()
print(frame.index + 1, peak() - early)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "out.mp4"], capture_output=True, text=True, check=True
    )
    count, grown = done.stdout.split()
    assert int(count) == 2000
    assert float(grown) < 10  # MB; all frames would be 98


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real footage here")
def test_real_clips_read_to_their_end():
    for path in sorted((REAL / "clips").glob("drive_*.mp4"))[:3]:
        reader = VideoReader(path)
        assert sum(1 for _ in reader) == reader.frame_count
        assert reader.problems == []
