"""Motion that is kept: saved tracks and the ARKit tables of phones as drivers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headwarp.app.animator import Animator, Stage, shared_head
from headwarp.fitting.formats import import_track
from headwarp.geom import arkit
from headwarp.geom.head import HeadParams
from headwarp.geom.rotation import axis_angle_to_matrix, matrix_to_euler
from headwarp.geom.track import FaceTrack
from headwarp.media.video import probe

SMALL = ("--size", 128)


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> list[HeadParams]:
    asked: list[HeadParams] = []

    def render(self, portrait, target, *, crop_only=False):
        asked.append(target)
        return portrait.picture

    monkeypatch.setattr(Stage, "render", render)
    return asked


def phone_csv(path: Path, frames: int, fps: int) -> Path:
    """As Live Link Face writes it: the mouth opens and the head turns by 0.3 rad; the take starts within a second."""
    units = [name[0].upper() + name[1:] for name in arkit.NAMES]
    lines = [",".join(["Timecode", "BlendShapeCount", *units, "HeadYaw", "HeadPitch", "HeadRoll"])]
    for i in range(frames):
        second, frame = divmod(i + fps - 7, fps)
        share = i / (frames - 1)
        values = {"JawOpen": 0.6 * share}
        row = [f"17:35:{second:02d}:{frame:02d}.123", "61", *(str(values.get(u, 0)) for u in units)]
        lines.append(",".join([*row, str(0.3 * share), "0", "0"]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_a_phones_table_keeps_its_speed(tmp_path: Path, fps: int):
    track = import_track(phone_csv(tmp_path / "take.csv", 20, fps), shared_head("open"))
    assert float(track.times[-1]) == pytest.approx(19 / fps, rel=0.05)
    if fps != 24:  # 24 frames of a second are counted as some of 25
        assert track.fps == fps


def test_a_phones_table_drives_a_portrait(lab: SimpleNamespace, portrait: Path, tmp_path: Path, targets):
    table = phone_csv(tmp_path / "take.csv", 9, 30)
    out = tmp_path / "out.mp4"
    done = lab.headwarp("animate", "-s", portrait, "-d", table, "-o", out, *SMALL)
    assert done.code == 0, done.err
    assert probe(out).fps == 30
    source = Animator(portrait, size=128).portrait.params
    first, last = targets[0], targets[-1]
    torch.testing.assert_close(first.rotation, source.rotation, rtol=0, atol=1e-5)
    turn = axis_angle_to_matrix(last.rotation) @ axis_angle_to_matrix(source.rotation).mT
    assert float(matrix_to_euler(turn)[0, 0]) == pytest.approx(np.degrees(0.3), abs=1)
    assert float(last.jaw[0, 0] - source.jaw[0, 0]) > 0.15


def test_saved_motion_drives_another_portrait_alike(
    lab: SimpleNamespace, portrait: Path, driving: Path, tmp_path: Path, targets
):
    kept = tmp_path / "deep" / "motion.safetensors"
    done = lab.headwarp(
        "animate", "-s", portrait, "-d", driving, "-o", tmp_path / "a.mp4", "--save-motion", kept, *SMALL
    )
    assert done.code == 0, done.err
    assert len(FaceTrack.load(kept)) == 10
    again = lab.headwarp("animate", "-s", portrait, "-d", kept, "-o", tmp_path / "b.mp4", *SMALL)
    assert again.code == 0, again.err
    for live, saved in zip(targets[:10], targets[10:], strict=True):
        for name, value in live.asdict().items():
            torch.testing.assert_close(value, getattr(saved, name), rtol=0, atol=1e-6, msg=name)


def test_motion_is_not_saved_over_an_input_or_under_another_name(
    lab: SimpleNamespace, portrait: Path, driving: Path, tmp_path: Path
):
    call = ("animate", "-s", portrait, "-d", driving, "-o", tmp_path / "a.mp4", "--save-motion")
    assert "ends in .safetensors" in lab.refused(*call, tmp_path / "motion.npz")
    assert not list(tmp_path.iterdir())


def test_a_table_of_something_else_is_refused(lab: SimpleNamespace, portrait: Path, tmp_path: Path):
    table = tmp_path / "prices.csv"
    table.write_text("item,price\nhat,3\n")
    assert "no table of ARKit units" in lab.refused("animate", "-s", portrait, "-d", table, "-o", tmp_path / "a.mp4")
