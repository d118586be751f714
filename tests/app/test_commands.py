"""The command line as a whole: start-up, doctor, fit, demo, interrupts, and what grows with the input."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import headwarp as package
from headwarp.app import cli, doctor
from headwarp.geom.track import FaceTrack
from headwarp.media.image import load_image, save_image
from headwarp.media.video import probe

HEAVY = ("torch", "cv2", "av", "scipy", "numba", "ai_edge_litert", "PIL", "skimage")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def start(*arguments: object) -> subprocess.Popen[str]:
    """`headwarp ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "headwarp.app.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "what",
    [
        "import headwarp; dir(headwarp); headwarp.__version__",
        "from headwarp.app.cli import main\ntry: main(['animate', '--help'])\nexcept SystemExit: pass",
        "from headwarp.app.cli import main\ntry: main('edit --gaze x -s a -o b'.split())\nexcept SystemExit: pass",
    ],
)
def test_what_needs_no_heavy_library_loads_none(what):
    loaded = python(f"{what}\nimport sys\nprint('LOADED', [name for name in {HEAVY} if name in sys.modules])")
    assert loaded.splitlines()[-1] == "LOADED []"


def test_the_front_door_opens():
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Animater'"):
        package.Animater  # noqa: B018


def test_every_command_has_help(lab):
    assert lab.headwarp("--help").code == 0
    for command in cli.COMMANDS:
        done = lab.headwarp(command, "--help")
        assert (done.code, done.err) == (0, "")
        assert f"headwarp {command}" in done.out
        assert "no-no-" not in done.out


def test_doctor_finds_everything_in_order(lab):
    done = lab.headwarp("doctor")
    assert (done.code, done.err) == (0, ""), done
    for part in ("headwarp", package.__version__, "torch", "FLAME head", "face models"):
        assert part in done.out
    assert "BROKEN" not in done.out


def test_doctor_says_what_is_broken(lab, monkeypatch):
    def broken() -> str:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(doctor, "_head", broken)
    done = lab.headwarp("doctor")
    assert done.code == 1
    assert "BROKEN  RuntimeError: the disk is on fire" in done.out
    assert "Something is broken" in done.err


def test_fit_writes_tracks(lab, portrait, driving, tmp_path):
    done = lab.headwarp("fit", portrait, driving, "-o", tmp_path / "tracks", "--workers", 1)
    assert done.code == 0, done.err
    assert sorted(p.name for p in (tmp_path / "tracks").iterdir()) == ["driving.safetensors", "portrait.safetensors"]
    assert len(FaceTrack.load(tmp_path / "tracks" / "driving.safetensors")) == 10
    track = FaceTrack.load(tmp_path / "tracks" / "portrait.safetensors")
    assert (len(track), track.image_size) == (1, (182, 164))


def test_fit_reports_what_it_could_not_use(lab, portrait, tmp_path):
    save_image(tmp_path / "wall.png", np.full((120, 90, 3), 128, np.uint8))
    done = lab.headwarp("fit", tmp_path / "wall.png", portrait, "-o", tmp_path / "tracks", "--workers", 1)
    assert done.code == 1
    assert "wall.png" in done.err
    assert "No face found" in done.err
    assert [p.name for p in (tmp_path / "tracks").iterdir()] == ["portrait.safetensors"]
    assert "does not exist" in lab.refused("fit", tmp_path / "nothing.mp4", "-o", tmp_path / "tracks")


def test_the_models_say_nothing_on_stderr(portrait, tmp_path):
    """LiteRT's native code greets on the file descriptor, which no Python-level redirection sees."""
    process = start("edit", "-s", portrait, "-o", tmp_path / "out.png", "--size", 128)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out.strip(), err) == (0, str(tmp_path / "out.png"), "")


def test_ctrl_c_in_the_middle(lab, portrait, driving_images, tmp_path):
    clip = lab.write_clip(tmp_path / "long.mp4", driving_images * 60)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"the previous result")
    before = lab.snapshot(tmp_path)
    process = start("animate", "-s", portrait, "-d", clip, "-o", out, "--size", 128)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.iterdir())) == len(before):  # until the hidden file beside the output is there
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert lab.snapshot(tmp_path) == before


@pytest.mark.slow
def test_the_demo(lab, tmp_path):
    done = lab.headwarp("demo", "-o", tmp_path / "demo")
    assert done.code == 0, done.err
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == ["astronaut.mp4", "contact_sheet.png"]
    info = probe(tmp_path / "demo" / "astronaut.mp4")
    assert (info.size, info.has_audio) == ((512, 512), True)
    assert all(str((tmp_path / "demo" / name).resolve()) in done.out for name in ("astronaut.mp4", "contact_sheet.png"))
    assert load_image(tmp_path / "demo" / "contact_sheet.png").shape[1] > 1000


def peak_of(*arguments: object) -> tuple[float, float]:
    """Largest memory in MB and processor seconds of a command."""
    process = start(*arguments)
    with process:
        _, err = process.communicate()
        assert process.returncode == 0, err
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts kilobytes as Linux does")
def test_memory_does_not_grow_with_the_clip(lab, portrait, driving_images, tmp_path):
    peaks = []
    for count in (20, 300):  # 200 and 3,000 frames
        clip = lab.write_clip(tmp_path / f"{count}.mp4", driving_images * count)
        peaks.append(peak_of("animate", "-s", portrait, "-d", clip, "-o", tmp_path / "o.mp4", "--size", 128)[0])
        assert len(lab.times(tmp_path / "o.mp4")) == 10 * count
    assert peaks[1] < peaks[0] + 60, peaks  # RUSAGE_CHILDREN keeps the largest: the second is never below the first


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts kilobytes as Linux does")
def test_a_photo_of_40_megapixels(lab, astronaut, tmp_path):
    Image.fromarray(astronaut).resize((6400, 6400), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=90)
    megabytes, seconds = peak_of("edit", "-s", tmp_path / "large.jpg", "-o", tmp_path / "out.png", "--yaw", 10)
    assert load_image(tmp_path / "out.png").shape == (6400, 6400, 3)
    assert megabytes < 2500
    assert seconds < 60
