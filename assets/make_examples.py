"""Makes the example pictures of the package: a driving clip with its exact truth, and a portrait. Nothing but our own
generator is used.

    python assets/make_examples.py [-o assets/examples] [--size 512]

The clip is a scripted performance of a synthetic person (see `perform`), with a hummed, speech-like sound made from
the motion of the mouth. The same
version of the package gives the same pictures; the bytes of the video depend on the encoder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.signal import lfilter

from headwarp.geom import arkit
from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.track import FaceTrack
from headwarp.media.writer import VideoWriter
from headwarp.render.synthetic import Performance, render_head, resting_place, sample_appearance, sample_identity
from headwarp.render.synthetic.backdrop import paint_backdrop
from headwarp.render.synthetic.motion import EXPRESSIONS

FPS, SECONDS = 25, 8.0
FIELD_OF_VIEW = 20.0
DRIVER = (106, "bun")
"""Seed and hair style of the person in the clip."""
PORTRAIT = (117, "parted")
WALLS = (13, 5)
"""Seeds of the walls behind the two."""
SOUND_RATE = 24000


def perform() -> Performance:
    """What happens in the clip, in seconds: neutral 0, nod 0.8, left 1.8, right 2.7, gaze 3.5, talk 4.1, smile 5.6,
    brows 6.1, mouth 6.6, tilt 7.1."""
    show = Performance(np.arange(round(FPS * SECONDS)) / FPS)
    rng = np.random.default_rng(7)
    alive = show.envelope(0.3, SECONDS - 0.4, 0.8)
    show.yaw += 0.8 * alive * np.sin(1.9 * show.times)
    show.pitch += 0.6 * alive * np.sin(2.3 * show.times + 1)
    show.pitch += 10 * show.envelope(0.8, 1.75, 0.42)
    show.yaw += 15 * show.envelope(1.75, 2.75, 0.42) - 15 * show.envelope(2.55, 3.6, 0.45)
    show.roll += -2.5 * show.envelope(1.75, 2.75, 0.42) + 2.5 * show.envelope(2.55, 3.6, 0.45)
    show.look(
        [
            (1.78, 7, 0),
            (2.2, 0, 0),
            (2.62, -7, 0),
            (3.1, 0, 0),
            (3.5, 14, 0),
            (3.72, -13, -2),
            (3.93, 0, 8),
            (4.12, 0, -1),
            (5.0, -4, 0),
            (5.5, 0, 0),
        ]
    )
    show.speak(4.1, 5.55, rng, energy=1.05)
    talking = show.envelope(4.1, 5.6, 0.3)
    show.pitch += 2.0 * talking * np.sin(7.5 * show.times)
    show.express({"browInnerUp": 0.3, "browOuterUpLeft": 0.25, "browOuterUpRight": 0.25}, show.envelope(4.5, 4.95, 0.2))
    show.express(EXPRESSIONS["open smile"], 0.9 * show.envelope(5.45, 6.45, 0.3))
    show.express(EXPRESSIONS["brows up"], 1.2 * show.envelope(6.0, 6.8, 0.22))
    show.express(
        {"jawOpen": 0.62, "mouthFunnel": 0.12, "mouthLowerDownLeft": 0.2, "mouthLowerDownRight": 0.2},
        show.envelope(6.5, 7.15, 0.26),
    )
    show.roll += 10 * show.envelope(6.95, 7.85, 0.36)
    show.express(EXPRESSIONS["smile"], 0.45 * show.envelope(7.05, 7.85, 0.3))
    for time in (0.45, 1.72, 2.66, 4.15, 5.25, 6.95):
        show.blink_at(time)
    show.shift[:, 2] += 0.006 * alive * np.sin(1.3 * show.times)
    return show


def truth(head: HeadModel, params: HeadParams, camera: Camera, show: Performance, size: int) -> FaceTrack:
    """The clip's parameters as a track. Landmarks are the head's MediaPipe points, projected; float16, that is to 1/8
    pixel."""
    embedding = head.embeddings["mediapipe"]
    with torch.no_grad():
        points = camera.project(embedding.points(head(params)))  # type: ignore[operator]
    middle = points[..., 2:].mean(1, keepdim=True)
    depth = (points[..., 2:] - middle) * camera.focal / middle
    landmarks = torch.cat([points[..., :2], depth], -1)
    count = len(params)
    return FaceTrack(
        params=params,
        camera=camera,
        landmarks=landmarks.half(),
        confidence=torch.ones(count),
        blendshapes=show.weights,
        times=torch.from_numpy(show.times),
        crop=torch.tensor([[1.0, 0.0, 0.0]]).repeat(count, 1),
        fps=float(FPS),
        image_size=(size, size),
        head_name=head.name,
        head_sha256=head.sha256,
        metadata={"source": "assets/make_examples.py", "licence": "CC0 1.0"},
    )


def hum(show: Performance) -> np.ndarray:
    """(S,) int16 sound: a gliding tone through two formants that follow jaw and lips, silent while the mouth is
    shut."""
    count = round(SECONDS * SOUND_RATE)
    at = np.arange(count) / SOUND_RATE

    def follow(values: np.ndarray) -> np.ndarray:
        return np.interp(at, show.times, values)

    units = show.weights.numpy()
    jaw = follow(units[:, arkit.INDEX["jawOpen"]])
    round_lips = follow(units[:, arkit.INDEX["mouthFunnel"]] + units[:, arkit.INDEX["mouthPucker"]])
    pitch = 175 * (1 + 0.10 * np.sin(2 * np.pi * 1.1 * at) + 0.015 * np.sin(2 * np.pi * 5.2 * at))
    phase = 2 * np.pi * np.cumsum(pitch) / SOUND_RATE
    buzz = sum(np.sin(k * phase) / k for k in range(1, 16))
    voice = np.zeros(count)
    block = SOUND_RATE // 100
    states = [np.zeros(2), np.zeros(2)]
    for start in range(0, count, block):
        piece = slice(start, start + block)
        openness, rounding = jaw[start], min(round_lips[start], 1.0)
        for k, (formant, width) in enumerate(
            ((320 + 900 * openness, 90), (2100 - 1100 * rounding - 500 * openness, 130))
        ):
            radius = np.exp(-np.pi * width / SOUND_RATE)
            poles = [1.0, -2 * radius * np.cos(2 * np.pi * formant / SOUND_RATE), radius * radius]
            out, states[k] = lfilter([1 - radius], poles, np.asarray(buzz)[piece], zi=states[k])
            voice[piece] += (1.0, 0.6)[k] * out
    speaking = (at > 4.05) & (at < 5.6)
    loud = np.clip(jaw / 0.18, 0, 1) * speaking
    loud = np.convolve(loud, np.hanning(SOUND_RATE // 25) / np.hanning(SOUND_RATE // 25).sum(), "same")
    sound = voice * loud
    return (0.30 * 32767 * sound / np.abs(sound).max()).astype(np.int16)


def driver(size: int) -> tuple[HeadModel, Performance, HeadParams, Camera]:
    """Head, performance, parameters and camera of the clip."""
    head, show = load_head(), perform()
    params = show.params(head, sample_identity(DRIVER[0], head), resting_place())
    return head, show, params, Camera.portrait((size, size), field_of_view=FIELD_OF_VIEW)


def make_truth(folder: Path, size: int) -> None:
    """driving.safetensors"""
    head, show, params, camera = driver(size)
    truth(head, params, camera, show, size).save(folder / "driving.safetensors")


def make_clip(folder: Path, size: int) -> None:
    """driving.mp4"""
    head, show, params, camera = driver(size)
    seed, style = DRIVER
    look = sample_appearance(seed, head, resolution=size, style=style)
    # Little noise: it would take most of the clip's bytes.
    look = replace(look, backdrop=paint_backdrop(np.random.default_rng(WALLS[0]), "wall"), noise=0.0015)
    with tempfile.TemporaryDirectory() as temporary:
        sound = Path(temporary) / "hum.wav"
        with wave.open(os.fspath(sound), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SOUND_RATE)
            file.writeframes(hum(show).tobytes())
        notes = {"title": "headwarp example", "copyright": "CC0 1.0"}
        with VideoWriter(folder / "driving.mp4", (size, size), FPS, audio_from=sound, metadata=notes) as video:
            for k in range(len(params)):
                frame = render_head(head, params[k], camera, look, (size, size), samples=3, first=k)
                video.write(to_bytes(frame.image[0]))


def make_portrait(folder: Path, size: int) -> None:
    """portrait.png"""
    head = load_head()
    seed, style = PORTRAIT
    look = sample_appearance(seed, head, resolution=size, style=style)
    look = replace(look, backdrop=paint_backdrop(np.random.default_rng(WALLS[1]), "wall"))
    params = HeadParams.zeros(head).replace(shape=sample_identity(seed, head), translation=resting_place())
    camera = Camera.portrait((size, size), field_of_view=FIELD_OF_VIEW)
    picture = to_bytes(render_head(head, params, camera, look, (size, size), samples=3).image[0])
    temporary = folder / ".portrait.png.tmp"
    Image.fromarray(picture).save(temporary, format="PNG", optimize=True)
    os.replace(temporary, folder / "portrait.png")


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


MAKERS = {"truth": make_truth, "clip": make_clip, "portrait": make_portrait}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "examples")
    parser.add_argument("--size", type=int, default=512, help="pixels along each side")
    parser.add_argument("--only", choices=MAKERS, help="truth: after the head's landmarks have changed")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, make in MAKERS.items():
        if arguments.only in (None, name):
            make(arguments.output, arguments.size)


if __name__ == "__main__":
    main()
