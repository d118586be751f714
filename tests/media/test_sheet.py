"""Sheets show every picture, whole and undistorted, and text where there should be text."""

from __future__ import annotations

import numpy as np
import pytest

from headwarp.media.errors import InputError
from headwarp.media.image import save_image
from headwarp.media.sheet import contact_sheet, side_by_side, side_by_side_video, strip_from_video
from headwarp.media.video import VideoReader, probe


def test_every_picture_is_there_once_and_undistorted():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    flat = [
        np.full(shape, colour, np.uint8)
        for shape, colour in zip([(30, 60, 3), (60, 30, 3), (9, 9, 3)], colours, strict=True)
    ]
    sheet = contact_sheet([flat[:2], [flat[2], None, None]], ["one", "two"], columns=["a", "b"], cell=64)
    areas = [int((sheet == colour).all(-1).sum()) for colour in colours]
    assert areas == [32 * 64, 64 * 32, 64 * 64]
    assert sheet.shape[1] == 4 + 3 * 68


def test_labels_are_readable_and_long_ones_are_cut():
    image = np.zeros((20, 20, 3), np.uint8)
    plain, short, long = (contact_sheet([[image]], [text], cell=200) for text in ("", "face", "face" * 50))
    assert plain.shape == short.shape == long.shape
    assert (plain != short).any()
    assert short.max() > 200  # light text on dark paper
    assert (contact_sheet([[image]], ["café"], cell=200) == contact_sheet([[image]], ["cafe"], cell=200)).all()
    assert (long[:, -8:] == plain[:, -8:]).all()  # nothing runs into the margin


def test_sheet_tells_wrong_calls():
    image = np.zeros((20, 20, 3), np.uint8)
    for rows, labels in (([], None), ([[]], None), ([[image]], ["a", "b"])):
        with pytest.raises(ValueError, match="contact_sheet"):
            contact_sheet(rows, labels)
    with pytest.raises(ValueError, match="uint8"):
        contact_sheet([[image / 255]])


def test_a_strip_runs_from_the_first_to_the_last_frame(tmp_path, lab):
    greys = [np.full((48, 64, 3), 8 * k, np.uint8) for k in range(30)]
    path = lab.write_clip(tmp_path / "a.mp4", greys)
    strip = strip_from_video(path, 4, cell=32)
    assert [image.shape for image in strip] == [(24, 32, 3)] * 4
    assert [image.mean() for image in strip] == pytest.approx([0, 8 * 10, 8 * 19, 8 * 29], abs=2)
    assert len(strip_from_video(path, 50)) == 50
    with pytest.raises(InputError):
        strip_from_video(tmp_path / "none.mp4")


def test_side_by_side_keeps_proportions():
    row = side_by_side([np.zeros((100, 50, 3), np.uint8), np.full((20, 40, 3), 255, np.uint8)], height=64)
    assert row.shape == (64, 32 + 128, 3)
    assert row[:, :32].max() == 0
    assert row[:, 32:].min() == 255
    tagged = side_by_side([np.zeros((100, 50, 3), np.uint8)], ["source"], height=64)
    assert tagged.shape == (64, 32, 3)
    assert tagged.max() > 100


def test_a_video_of_source_driving_and_result_keeps_time_and_sound(tmp_path, lab, clip):
    save_image(tmp_path / "source.png", lab.picture(50, 40))
    slow = lab.write_clip(tmp_path / "slow.mp4", [np.full((32, 32, 3), 40 * k, np.uint8) for k in range(6)], fps=5)
    side_by_side_video(
        [tmp_path / "source.png", slow, clip], tmp_path / "all.mp4", labels=["", "", ""], height=64, audio_from=clip
    )
    info = probe(tmp_path / "all.mp4")
    assert info.size == (64, 52 + 64 + 96)  # 51 + 64 + 96, made even
    assert info.has_audio
    frames = list(VideoReader(tmp_path / "all.mp4"))
    assert [frame.time for frame in frames] == pytest.approx([frame.time for frame in VideoReader(clip)])
    shown = [round(float(frame.image[:, 60:105].mean()) / 40) for frame in frames]
    assert shown == [min(5, round(frame.time * 5 + 1e-6)) for frame in frames]
