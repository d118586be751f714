"""Folders of portraits and clips."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from headwarp.app import batch
from headwarp.app.batch import animate_all, pairs_of
from headwarp.app.options import AnimateOptions
from headwarp.media.errors import InputError
from headwarp.media.image import save_image
from headwarp.media.video import probe

SMALL = AnimateOptions(size=128)


@pytest.fixture
def folders(portrait: Path, driving_images: list[np.ndarray], lab: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """Two portraits, one of which shows nobody; a clip with sound, a folder of frames, and a broken file."""
    people, clips = tmp_path / "people", tmp_path / "clips"
    people.mkdir()
    clips.mkdir()
    shutil.copy(portrait, people / "anna <b>.png")
    save_image(people / "wall.png", np.full((160, 160, 3), 128, np.uint8))
    lab.write_clip(clips / "nod.mp4", driving_images[:3], tone=0.12)
    for index, image in enumerate(driving_images[3:5]):
        save_image(clips / "frames" / f"{index:07d}.png", image)
    (clips / "broken.mp4").write_bytes(b"no video")
    return SimpleNamespace(people=people, clips=clips, out=tmp_path / "out")


def test_every_pair_once_failures_apart_and_a_page(lab: SimpleNamespace, folders: SimpleNamespace, monkeypatch):
    fits = []
    run = batch.animate
    monkeypatch.setattr(batch, "animate", lambda *a, **k: fits.append(k["fitted"]) or run(*a, **k))
    call = ("animate", "-s", folders.people, "-d", folders.clips, "-o", folders.out, "--size", 128)
    done = lab.headwarp(*call)
    assert done.code == 1, "some pairs failed"
    assert done.out.strip() == str(folders.out / "index.html")
    results = sorted(p.name for p in folders.out.glob("*.mp4"))
    assert results == ["anna <b>--frames.mp4", "anna <b>--nod.mp4"]
    assert len(lab.frames(folders.out / results[1])) == 3
    assert probe(folders.out / results[1]).has_audio

    with open(folders.out / "failures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert {Path(row["driving"]).name for row in rows if "anna" in row["source"]} == {"broken.mp4"}
    assert all("No face found" in row["error"] for row in rows if "wall" in row["source"])

    page = (folders.out / "index.html").read_text()
    assert "anna &lt;b&gt;.png" in page
    assert "<b>" not in page.split("</style>")[1]
    assert page.count("data:image/jpeg;base64,") == 2 + 2 + 2, "portraits, clips that can be read, results"
    assert "http" not in page
    assert 'src="data' in page

    # Again: what is there stays, byte for byte; what failed is tried again.
    before = {p: p.read_bytes() for p in folders.out.glob("*.mp4")}
    fits.clear()
    again = animate_all(folders.people, folders.clips, folders.out, SMALL)
    assert sum(one.skipped for one in again) == 2
    assert {p: p.read_bytes() for p in folders.out.glob("*.mp4")} == before
    assert "2 there before" in (folders.out / "index.html").read_text()


def test_a_clip_is_fitted_once_and_moves_everybody_alike(
    portrait: Path, driving: Path, tmp_path: Path, lab: SimpleNamespace, monkeypatch
):
    people = tmp_path / "people"
    people.mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(portrait, people / name)
    fitted = []
    run = batch.animate
    monkeypatch.setattr(batch, "animate", lambda *a, **k: fitted.append(k["fitted"]) or run(*a, **k))
    done = animate_all(people, driving, tmp_path / "out", SMALL)
    assert [one.problems for one in done] == [[], []]
    assert fitted[0] is None
    assert fitted[1] is not None
    first, second = (lab.frames(one.file) for one in done)
    assert len(first) == 10
    for a, b in zip(first, second, strict=True):
        assert lab.psnr(a, b) > 45, "the saved motion is the live one"
    assert probe(done[1].file).has_audio


def test_changed_inputs_and_options_are_made_again(
    portrait: Path, driving_images, lab: SimpleNamespace, tmp_path: Path
):
    people = tmp_path / "people"
    people.mkdir()
    shutil.copy(portrait, people / "a.png")
    clip = lab.write_clip(tmp_path / "clip.mp4", driving_images[:2])
    call = (people, clip, tmp_path / "out")

    def skipped(options: AnimateOptions) -> bool:
        return animate_all(*call, options)[0].skipped

    assert not skipped(SMALL)
    assert skipped(SMALL)
    assert not skipped(AnimateOptions(size=128, strength=0.5))
    lab.write_clip(clip, driving_images[:3])
    assert not skipped(AnimateOptions(size=128, strength=0.5))
    assert len(lab.frames(tmp_path / "out" / "a--clip.mp4")) == 3


def test_an_interrupt_keeps_what_is_done(folders: SimpleNamespace, monkeypatch):
    run = batch.animate
    made = []

    def second_time(*args, **kwargs):
        if made:
            raise KeyboardInterrupt
        made.append(run(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(batch, "animate", second_time)
    (folders.clips / "broken.mp4").unlink()
    with pytest.raises(KeyboardInterrupt):
        animate_all(folders.people, folders.clips, folders.out, SMALL)
    assert "1 made" in (folders.out / "index.html").read_text()
    monkeypatch.setattr(batch, "animate", run)
    assert animate_all(folders.people, folders.clips, folders.out, SMALL)[0].skipped


def test_names_stay_apart_and_order_is_natural(tmp_path: Path):
    for name in ("p10.png", "p2.png", "p2.jpg", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    names = [pair.name for pair in pairs_of(tmp_path, Path("clip.mp4"))]
    assert names == ["p2_jpg--clip", "p2_png--clip", "p10--clip"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        pairs_of(tmp_path / "empty", Path("clip.mp4"))


def test_a_folder_of_frames_is_still_one_clip(tmp_path: Path):
    for index in range(2):
        save_image(tmp_path / "crops" / f"{index}.png", np.zeros((8, 8, 3), np.uint8))
    assert not batch.is_batch(Path("a.png"), tmp_path / "crops")
    assert batch.is_batch(Path("a.png"), tmp_path)
