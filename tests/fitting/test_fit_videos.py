"""Data sets of clips: what is written, that nothing is lost whatever happens, and that going on costs nothing.

Clips are cut from the example clip of the package. Whole runs are made in processes of their own where they are killed.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from headwarp.assets import example
from headwarp.fitting import tubes, workers
from headwarp.fitting.clips import Recipe
from headwarp.fitting.fit import VideoFitter, fit_image
from headwarp.fitting.fit_videos import fit_files
from headwarp.fitting.ledger import Failure, Ledger, Report, parts_folder, publish, read_index, remove_leftovers
from headwarp.fitting.options import FitOptions
from headwarp.fitting.sources import find_sources, shard_of
from headwarp.fitting.track_file import TrackWriter, read_pieces
from headwarp.geom.camera import apply_crop
from headwarp.geom.track import FaceTrack
from headwarp.media.errors import InputError
from headwarp.media.video import FramesWriter, VideoReader, VideoWriter

FRAMES = 10
QUICK = FitOptions(size=64, min_frames=5, workers=1)


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """The first frames of the example clip, (256, 256, 3)."""
    frames = []
    for frame in VideoReader(example("driving.mp4"), max_side=256):
        frames.append(frame.image)
        if len(frames) == 2 * FRAMES:
            break
    return frames


@pytest.fixture(scope="session")
def small_clip(pictures, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "small.mp4"
    with VideoWriter(path, (256, 256), 25) as writer:
        for image in pictures[:FRAMES]:
            writer.write(image)
    return path


@pytest.fixture
def videos(small_clip, tmp_path) -> Path:
    """Three good clips."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in "abc":
        shutil.copy(small_clip, folder / f"{name}.mp4")
    return folder


def fit(*inputs: Path, out: Path, **changes: object) -> bool:
    options = FitOptions(**{**QUICK.__dict__, **changes})
    return fit_files(inputs, out, options, progress=False)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a data set, its books left out (they hold the order of events)."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".fit" not in path.parts
    }


def failures(folder: Path) -> dict[str, str]:
    path = folder / "failures.csv"
    return {row["name"]: row["reason"] for row in csv.DictReader(path.open())} if path.exists() else {}


# ---- what is written


def test_a_data_set_is_clips_tracks_and_an_index(videos, pictures, tmp_path):
    with FramesWriter(videos / "train" / "id1#film#000000#000010.mp4") as writer:  # FOMM's layout
        for image in pictures[:FRAMES]:
            writer.write(image)
    out = tmp_path / "out"
    assert fit(videos, out=out)
    names = ["a", "b", "c", "train/id1#film#000000#000010"]
    rows = read_index(out)
    assert [row["name"] for row in rows] == names
    assert set(content(out)) == {f"{name}/clip{end}" for name in names for end in (".mp4", ".safetensors")} | {
        "index.parquet"
    }
    assert (rows[3]["split"], rows[3]["identity"]) == ("train", "id1")
    for row in rows:
        track = FaceTrack.load(out / row["name"] / "clip.safetensors")
        clip = VideoReader(out / row["name"] / "clip.mp4")
        assert clip.size == (64, 64)
        assert len(track) == row["frames"] == len(list(clip)) == FRAMES
        assert track.image_size == (row["height"], row["width"]) == (256, 256)
        assert row["head_sha256"] == track.head_sha256
        assert (row["found"], row["start"]) == (1.0, 0.0)
    # the same pictures, as a video and as PNG frames
    video, frames = (FaceTrack.load(out / name / "clip.safetensors") for name in (names[0], names[3]))
    assert (video.landmarks - frames.landmarks).abs().mean() < 1.0


def test_the_tracks_crop_leads_to_the_clips_pixels(small_clip, tmp_path):
    """Landmarks and camera of the source, through `crop`, fit what clip.mp4 shows."""
    assert fit(small_clip, out=tmp_path, layout="clips", size=128)
    track = FaceTrack.load(tmp_path / "small" / "clip.safetensors")
    frame = next(iter(VideoReader(tmp_path / "small" / "clip.mp4")))
    seen = fit_image(frame.image).landmarks[0, :468, :2]
    told = apply_crop(track.crop[0], track.landmarks[0])[:468, :2]
    assert (seen - told).norm(dim=-1).mean() < 1.5  # of 128 pixels; another look at a smaller picture
    low, high = told.min(0).values, told.max(0).values
    assert bool((low > 0).all())
    assert bool((high < 128).all())
    assert 0.6 < float((high - low).max() / 128) < 0.86  # FOMM's margin of 0.1 on each side


def test_single_files_become_tracks_without_books(small_clip, tmp_path):
    assert fit(small_clip, out=tmp_path / "out", visualize=True)
    assert set(os.listdir(tmp_path / "out")) == {"small.safetensors", "small.overlay.mp4", "small.sheet.jpg"}
    overlay = VideoReader(tmp_path / "out" / "small.overlay.mp4")
    assert overlay.size == (256, 512)
    assert len(list(overlay)) == len(FaceTrack.load(tmp_path / "out" / "small.safetensors")) == FRAMES


def test_a_table_of_crops_gives_its_clips(pictures, tmp_path):
    """vox-metadata.csv: frames at the table's rate, boxes in the table's picture size, names as FOMM's loader."""
    folder = tmp_path / "full"
    with VideoWriter(folder / "film.mp4", (256, 256), 50) as writer:
        for image in pictures:
            writer.write(image)
    table = folder / "vox-metadata.csv"
    table.write_text(
        "video_id,start,end,bbox,fps,width,height,partition,person_id\n"
        "film,2,8,64-0-448-384,25,512,512,train,id7\n"
        "film,90,99,64-0-448-384,25,512,512,train,id7\n"
        "gone,0,9,64-0-448-384,25,512,512,test,id8\n"
    )
    assert not fit(table, out=tmp_path / "out")
    (row,) = read_index(tmp_path / "out")
    assert row["name"] == "train/id7#film#000002#000008"
    assert (row["first_frame"], row["frames"], row["fps"]) == (4, 12, 50.0)
    assert (row["x"], row["y"], row["side"]) == (128.0, 96.0, 192.0)
    assert set(failures(tmp_path / "out")) == {"train/id7#film#000090#000099", "gone"}


def _heard(path: Path) -> tuple[float, float]:
    """When sound becomes loud in a file, and when it ends, seconds."""
    heard = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            heard += [(frame.time + k / 48000, abs(value)) for k, value in enumerate(frame.to_ndarray()[0])]
    times, loudness = np.array(heard).T
    return float(times[loudness > 0.1].min()), float(times.max())


def test_a_clip_keeps_the_sound_of_its_time(pictures, tmp_path):
    """A tone in the middle of a film is heard 0.16 s earlier in the clip that begins there."""
    film = tmp_path / "film.mp4"
    with av.open(str(film), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width = video.height = 256
        video.pix_fmt = "yuv420p"
        sound = output.add_stream("aac", rate=48000)
        for image in pictures:
            output.mux(video.encode(av.VideoFrame.from_ndarray(image)))
        output.mux(video.encode(None))
        times = np.arange(48000 * len(pictures) // 25) / 48000
        tone = (0.5 * np.sin(2 * np.pi * 440 * times) * (times > 0.4)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
        frame.sample_rate = 48000
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    table = tmp_path / "vox-metadata.csv"
    table.write_text(
        "video_id,start,end,bbox,fps,width,height,partition,person_id\nfilm,4,16,64-0-448-384,25,512,512,train,id7\n"
    )
    assert fit(table, out=tmp_path / "out")
    begin, end = _heard(tmp_path / "out" / "train" / "id7#film#000004#000016" / "clip.mp4")
    assert abs(begin - (_heard(film)[0] - 0.16)) < 0.002
    assert abs(end - 12 / 25) < 0.03


def test_resampling_to_a_frame_rate(small_clip, tmp_path):
    assert fit(small_clip, out=tmp_path, layout="clips", fps=50.0)
    track = FaceTrack.load(tmp_path / "small" / "clip.safetensors")
    assert len(track) == len(list(VideoReader(small_clip, fps=50))) > 1.8 * FRAMES
    assert track.fps == 50
    torch.testing.assert_close(track.times.diff(), torch.full((len(track) - 1,), 0.02, dtype=torch.float64))


# ---- tubes


def test_two_people_give_two_clips_and_a_hidden_face_stays_in_its_tube(pictures, tmp_path):
    """Beside each other; the right one comes later and the left one is hidden for three frames in between."""
    path = tmp_path / "both.mp4"
    count = 2 * FRAMES
    with VideoWriter(path, (256, 512), 25) as writer:
        for k in range(count):
            left = pictures[k] if k not in (8, 9, 10) else np.full_like(pictures[0], 90)
            right = pictures[count - 1 - k] if k >= 5 else np.full_like(pictures[0], 90)
            writer.write(np.concatenate([left, right], 1))
    assert fit(path, out=tmp_path / "out", layout="clips")
    found = {
        name: FaceTrack.load(tmp_path / "out" / name / "clip.safetensors") for name in os.listdir(tmp_path / "out")
    }
    assert len(found) == 2
    left, right = (found[name] for name in sorted(found))
    assert sorted(found)[0] == f"both#000000#{count:06d}"
    assert len(left) == count
    assert (left.confidence == 0).nonzero().flatten().tolist() == [8, 9, 10]
    assert float(left.landmarks[..., 0].max()) < 256 < float(right.landmarks[..., 0].min())
    assert 5 <= count - len(right) <= 10


def test_a_tube_ends_where_its_face_leaves_the_first_box(pictures):
    """The picture is pushed aside until the overlap with the first box is a quarter, FOMM's rule."""
    finder = tubes.TubeFinder()
    ended, first = [], None
    for step in range(0, 120, 12):
        image = np.full((256, 512, 3), 90, np.uint8)
        image[:, step : step + 256] = pictures[0]
        ended += finder.update(image)
        first = first if first is not None else finder.open[0].box
    assert len(ended) == 1
    assert len(finder.open) == 1
    assert tubes.overlap(ended[0].anchor, ended[0].box) > tubes.OVERLAP
    assert finder.open[0].first == ended[0].frames
    assert tubes.overlap(ended[0].anchor, finder.open[0].anchor) <= tubes.OVERLAP


@pytest.mark.parametrize("box", [(10, 20, 50, 80), (0, 0, 300, 200), (250, 150, 299, 199)])
def test_crops_are_square_and_inside_the_picture(box):
    crop = tubes.square_crop(np.array(box, float), 64, (200, 300))
    low, high = (np.array(crop.center) + sign * crop.side / 2 for sign in (-1, 1))
    assert (low > -1e-9).all()
    assert high[0] < 300 + 1e-9
    assert high[1] < 200 + 1e-9
    wanted = 1.2 * max(box[2] - box[0], box[3] - box[1])  # w (1 + 2 w_inc) = h (1 + 2 h_inc), spec of crop-video
    assert crop.side == pytest.approx(min(wanted, 200))


# ---- sources


def test_listing_opens_nothing_and_sorts_naturally(tmp_path):
    for name in ("train/v10.mp4", "train/v2.webm", "test/g.gif", "x.avi", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("train/f.mp4/0000000.png", "shots/frame_001.png", "shots/frame_002.png", "faces/anna.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    sources, is_data_set = find_sources([tmp_path])
    assert is_data_set
    assert {s.name for s in sources} == {"train/v2", "train/v10", "train/f", "test/g", "x", "shots", "faces/anna"}
    names = [s.name for s in sources]
    assert names.index("train/v2") < names.index("train/v10")
    assert sorted(s.name for i in (1, 2, 3) for s in shard_of(sources, f"{i}/3")) == sorted(names)


def test_names_that_clash_keep_their_endings(tmp_path):
    for name in ("a.mp4", "a.avi"):
        (tmp_path / name).touch()
    assert [s.name for s in find_sources([tmp_path])[0]] == ["a.avi", "a.mp4"]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b"])
def test_a_wrong_shard_is_told(shard):
    with pytest.raises(InputError, match="--shard"):
        shard_of([], shard)


# ---- going on


def test_ten_thousand_finished_clips_are_skipped_at_once(tmp_path):
    """Nothing of them is opened: the clips here are empty folders."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    recipe = Recipe(**{name: getattr(QUICK, name) for name in Recipe.__dataclass_fields__})
    ledger = Ledger(out, recipe.__dict__ | {"layout": "clips"})
    lines = []
    for k in range(10_000):
        (videos / f"{k}.mp4").touch()
        (out / str(k)).mkdir()
        lines.append(json.dumps({"source": str(k), "clips": [_row(str(k))], "failures": []}))
    (out / ".fit" / "journal.jsonl").write_text("\n".join(lines) + "\n")
    ledger.close()
    began = time.process_time()
    assert fit(videos, out=out)
    assert time.process_time() - began < 5
    assert len(read_index(out)) == 10_000


def _row(name: str) -> dict[str, object]:
    text = dict.fromkeys(("split", "identity", "source", "head", "head_sha256", "problems"), "")
    numbers = dict.fromkeys(("first_frame", "frames", "size", "height", "width"), 1)
    return {"name": name, **text, **numbers, **dict.fromkeys(("start", "duration", "fps", "x", "y", "side"), 1.0)}


def test_only_what_is_missing_is_done_again(videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert fit(videos, out=out)
    before = content(out)
    stamps = {name: (out / name).stat().st_mtime_ns for name in before}
    shutil.rmtree(out / "b")
    (out / ".fit" / "journal.jsonl").write_bytes((out / ".fit" / "journal.jsonl").read_bytes()[:-20])  # cut off: c
    assert fit(videos, out=out)
    assert content(out) == before
    changed = {name for name in before if (out / name).stat().st_mtime_ns != stamps[name]}
    assert {name.split("/")[0] for name in changed} == {"b", "c", "index.parquet"}


def test_a_data_set_of_tracks_goes_on_too(videos, tmp_path):
    (videos / "c.mp4").write_bytes(b"")
    out = tmp_path / "out"
    assert not fit(videos, out=out, layout="tracks")
    assert set(content(out)) == {"a.safetensors", "b.safetensors", "failures.csv", "index.parquet"}
    stamp = (out / "a.safetensors").stat().st_mtime_ns
    (out / "b.safetensors").unlink()
    assert not fit(videos, out=out, layout="tracks")
    assert (out / "b.safetensors").exists()
    assert (out / "a.safetensors").stat().st_mtime_ns == stamp
    assert [(row["name"], row["size"]) for row in read_index(out)] == [("a", None), ("b", None)]


def test_another_recipe_is_refused_in_the_same_folder(videos, tmp_path):
    assert fit(videos, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"size 64 \(now 128\)"):
        fit(videos, out=tmp_path / "out", size=128)


def test_shards_share_a_folder_and_an_index(videos, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert fit(videos, out=whole)
    for part in ("2/2", "1/2"):
        assert fit(videos, out=out, shard=part)
    assert content(out) == content(whole)


# ---- what must never happen


def _spoil(folder: Path, good: Path, pictures: list[np.ndarray]) -> set[str]:
    """Bad videos of every kind; returns their names."""
    data = good.read_bytes()
    (folder / "truncated.mp4").write_bytes(data[: len(data) // 2].replace(b"moov", b"free"))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "noise.webm").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    with VideoWriter(folder / "noface.mp4", (64, 64), 25) as writer:
        for _ in range(6):
            writer.write(np.full((64, 64, 3), 120, np.uint8))
    with wave.open(str(folder / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0" * 8000)
    (folder / "sound.wav").rename(folder / "sound.mp4")
    (folder / "frames.mp4").mkdir()
    (folder / "frames.mp4" / "0000000.png").write_bytes(b"\x89PNG")
    return {"truncated", "empty", "text", "noise", "dangling", "noface", "sound", "frames"}


def test_bad_videos_do_not_stop_the_good_ones(videos, small_clip, pictures, tmp_path):
    bad = _spoil(videos, small_clip, pictures)
    out = tmp_path / "out"
    assert not fit(videos, out=out)
    assert [row["name"] for row in read_index(out)] == ["a", "b", "c"]
    reasons = failures(out)
    assert set(reasons) == bad
    assert all(len(reason) > 20 for reason in reasons.values())
    # known failures are not tried again, unless asked for: one that was mended in the meantime succeeds then
    shutil.copy(small_clip, videos / "empty.mp4")
    assert not fit(videos, out=out)
    assert set(failures(out)) == bad
    assert not fit(videos, out=out, retry=True)
    assert set(failures(out)) == bad - {"empty"}
    assert (out / "empty" / "clip.mp4").exists()


def test_a_video_that_is_cut_off_gives_what_can_be_read(pictures, tmp_path):
    whole, cut = tmp_path / "whole.mkv", tmp_path / "videos" / "cut.mkv"
    with VideoWriter(whole, (256, 256), 25) as writer:
        for image in pictures:
            writer.write(image)
    cut.parent.mkdir()
    cut.write_bytes(whole.read_bytes()[: int(0.6 * whole.stat().st_size)])
    assert fit(cut.parent, out=tmp_path / "out")
    (row,) = read_index(tmp_path / "out")
    assert 5 <= row["frames"] < 2 * FRAMES
    assert "cut" in row["problems"]
    assert FaceTrack.load(tmp_path / "out" / row["name"] / "clip.safetensors").metadata["problems"] == row["problems"]


def test_a_full_disk_stops_the_run_and_leaves_only_whole_clips(videos, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert fit(videos, out=whole)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(len(data) for data in content(whole).values())
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))  # writing beyond it fails as on a full disk
    try:
        with pytest.raises(InputError, match="disk is full"):
            fit(videos, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [name for name in content(out) if name.endswith((".mp4", ".safetensors"))]
    assert fit(videos, out=out)
    assert content(out) == content(whole)


def test_leftovers_of_the_dead_go_and_parts_of_the_living_stay(tmp_path):
    with parts_folder(tmp_path) as living:
        (living / "clip.mp4").touch()
        dead = living.with_name("dead")
        dead.mkdir()
        (dead / "clip.mp4").touch()
        remove_leftovers(tmp_path)
        assert (living / "clip.mp4").exists()
        assert not dead.exists()
    assert not living.exists()


def test_publishing_replaces_a_clip_by_one_rename(tmp_path):
    for text in ("old", "new"):
        with parts_folder(tmp_path) as parts:
            (parts / "0").mkdir()
            (parts / "0" / "clip.mp4").write_text(text)
            publish(parts / "0", tmp_path / "train" / "name")
    assert (tmp_path / "train" / "name" / "clip.mp4").read_text() == "new"
    assert os.listdir(tmp_path / "train") == ["name"]


def test_failures_of_the_machine_are_tried_again_by_themselves(tmp_path):
    ledger = Ledger(tmp_path, {})
    ledger.record(Report("killed", failures=[Failure("killed", "signal 9", "next run")]))
    ledger.record(Report("bad", failures=[Failure("bad", "no face")]))
    assert ledger.finished(retry=False) == {"bad"}
    assert ledger.finished(retry=True) == set()


TASKS = """
import os, signal, time
from pathlib import Path

def suicidal(job, beat):
    name, folder = job
    marker = next(iter(sorted(Path(folder).glob(f"{name}*"))), None)
    if marker:
        marker.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    beat()
    return name.upper()

def stuck(job, beat):
    while job == 0:
        time.sleep(0.1)
    return job
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Tasks in a module that workers load quickly."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "headwarp_test_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("headwarp_test_tasks")
    del sys.modules["headwarp_test_tasks"]


def test_a_killed_worker_costs_no_other_job(tasks, tmp_path):
    (tmp_path / "b1").touch()  # dies once
    for k in range(5):
        (tmp_path / f"d{k}").touch()  # dies every time
    jobs = [(name, str(tmp_path)) for name in "abcd"]
    answers = {job[0]: answer for job, answer in workers.run_local(jobs, tasks.suicidal, 2)}
    dead = answers.pop("d")
    assert answers == {"a": "A", "b": "B", "c": "C"}
    assert isinstance(dead, workers.Died)
    assert "signal 9" in dead.reason
    assert len(list(tmp_path.glob("d?"))) == 5 - workers.ATTEMPTS


def test_a_stuck_worker_is_stopped(tasks):
    answers = dict(workers.run_local([0, 1], tasks.stuck, 2, stuck=1.0))
    assert answers[1] == 1
    assert "nothing happened" in answers[0].reason


def test_workers_that_cannot_start_are_told(tasks, tmp_path):
    """A task whose module is gone when the workers look for it."""
    (Path(tasks.__file__)).unlink()
    with pytest.raises(InputError, match="die as they start"):
        list(workers.run_local([0, 1, 2], tasks.stuck, 2))


def _start(videos: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    script = Path(__file__).parents[2] / "fitting" / "fit_videos.py"
    command = [sys.executable, str(script), "--videos", str(videos), "--out", str(out), "--size", "64"]
    command += ["--min-frames", "5", "--workers", "2", *flags]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)


def _children(pid: int) -> list[int]:
    """Worker processes (not multiprocessing's resource tracker)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except (OSError, ValueError):
            continue
    return found


def _until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> bool:
    """Wait for it; False when the process ends before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_kills_at_random_lose_nothing(videos, small_clip, tmp_path):
    """SIGKILL of workers and of the main process, Ctrl-C; then a last run: exactly the files of an undisturbed one."""
    for name in "defgh":
        shutil.copy(small_clip, videos / f"{name}.mp4")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert fit(videos, out=whole)

    def parts() -> list[Path]:
        return list((out / ".fit" / "parts").glob("*/0/clip.mp4"))

    def names() -> set[str]:
        return {path.name for path in out.glob("[a-z]") if path.is_dir()}

    # a worker, in the middle of a clip: the same run finishes
    process = _start(videos, out)
    assert _until(parts, process)
    os.kill(_children(process.pid)[0], signal.SIGKILL)
    # the main process, with everything in flight
    assert _until(lambda: len(names()) >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for name in names():
        assert set(os.listdir(out / name)) == {"clip.mp4", "clip.safetensors"}
    # an interrupt
    process = _start(videos, out)
    assert _until(lambda: parts() and len(names()) >= 4, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert not list((out / ".fit" / "parts").iterdir())
    # undisturbed at last
    process = _start(videos, out)
    assert process.wait(300) == 0
    assert content(out) == content(whole)
    assert not list((out / ".fit" / "parts").iterdir())


# ---- track files in pieces


def test_pieces_join_into_the_file_that_a_whole_track_is(small_clip, tmp_path):
    fitter = VideoFitter()
    track = FaceTrack.cat(fitter.run(VideoReader(small_clip)))
    with TrackWriter(tmp_path) as writer:
        for part in (track[:1], track[1:4], track[4:]):
            writer.add(part)
        writer.save(tmp_path / "joined.safetensors", metadata={"source": "x"})
        writer.save(tmp_path / "cut.safetensors", frames=5, crop=np.array([2.0, 1.0, 0.0]))
    assert os.listdir(tmp_path).sort() == ["cut.safetensors", "joined.safetensors"].sort()
    joined = FaceTrack.load(tmp_path / "joined.safetensors")
    assert joined.metadata == {"source": "x"}
    for name, value in track.pack()[0].items():
        torch.testing.assert_close(joined.pack()[0][name], value, rtol=0, atol=0)
    cut = FaceTrack.load(tmp_path / "cut.safetensors")
    assert len(cut) == 5
    assert cut.crop.tolist() == [[2.0, 1.0, 0.0]] * 5
    pieces = list(read_pieces(tmp_path / "joined.safetensors", 4))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    torch.testing.assert_close(FaceTrack.cat(pieces).params.rotation, track.params.rotation, rtol=0, atol=0)
