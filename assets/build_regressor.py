"""Makes `regressor.safetensors`: pictures of synthetic people, and the regressor trained on them.

    headwarp synth -o SET/clips --clips 260 --frames 14 --size 144 --seed 1
    python assets/build_regressor.py draw SET          # 360 looks of 6 people each, 0.12 s of a core a picture
    python assets/build_regressor.py train SET OUT.safetensors

A look (skin, hair) takes as long to make up as several pictures to draw, so six people share one; each is seen once, in
a light, a place and clothes of its own. Every second picture is mirrored: the head's coefficients are, too. Training
takes 1,670 steps of 32 pictures, seven minutes of a core: enough to be of use (docs/fitting.md), not as much as would
help. The package's file was made with these numbers, but its learning rate followed the clock, so a new run differs in
bits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from tqdm import tqdm

from headwarp.assets.build_landmark_reading import random_weights
from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.geom.track import FaceTrack
from headwarp.media.video import VideoReader
from headwarp.nets.model_file import save_model
from headwarp.nets.regressor import HeadRegressor, RegressorConfig
from headwarp.render.synthetic import Person, sample_appearance
from headwarp.render.synthetic.people import sample_traits
from headwarp.training.batch import Batch, View
from headwarp.training.steps.regressor import RegressorSettings, RegressorStep
from headwarp.training.synthetic import Cast, landmark_pixels, person_seed, shared_head, to_bytes

SEED = 77
LOOKS, PEOPLE = 360, 6
SIZE = 160
HELD_OUT = 15
"""Every so manieth look is not trained on."""
CONFIG = RegressorConfig(channels=(32, 64, 128, 256), blocks=1)
PHASES = ((2e-3, 2500, 1325), (1e-3, 345, 345))
"""Learning rate at the start, steps after which a cosine would bring it to zero, and steps; the second phase starts
from the averaged weights of the first."""
BATCH = 32
Picture = NDArray[np.uint8]


@dataclass
class Sample:
    image: Picture
    params: HeadParams
    camera: Camera
    landmarks: NDArray[np.float32]
    """(468, 2) pixels."""


def draw(folder: Path) -> None:
    """LOOK.npz of PEOPLE pictures each; goes on where it stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    head = shared_head("cpu")
    cast = Cast(head, SIZE)
    for number in tqdm(range(LOOKS)):
        path = folder / f"{number:06d}.npz"
        if path.exists():
            continue
        seed = person_seed(SEED, number)
        look = sample_appearance(seed, head, resolution=SIZE, draft=True)
        rows = [_draw_one(cast, seed, look, np.random.default_rng((SEED, number, k))) for k in range(PEOPLE)]
        arrays: dict[str, Any] = {
            f"params.{name}": np.concatenate([row.params.asdict()[name].numpy() for row in rows])
            for name in rows[0].params.asdict()
        }
        part = path.with_suffix(".part.npz")
        np.savez(
            part,
            image=np.stack([row.image for row in rows]),
            focal=np.concatenate([row.camera.focal.numpy() for row in rows]),
            principal=np.concatenate([row.camera.principal.numpy() for row in rows]),
            landmarks=np.stack([row.landmarks for row in rows]),
            **arrays,
        )
        part.replace(path)


def _draw_one(cast: Cast, seed: int, look: Any, rng: np.random.Generator) -> Sample:
    head = cast.head
    shape = _usual_shape(head, seed) + torch.from_numpy(rng.normal(0, 0.62, (1, head.n_shape))).float()
    moment = [int(rng.integers(100))]
    scene = cast.scene(shape, rng, frames=100, fps=25, size=(SIZE, SIZE), scale=(1.95, 2.15), moments=moment)
    params = scene.params
    if rng.random() < 0.4:  # expressions that are rarer than those of talking people
        params = params.replace(**head.arkit(torch.from_numpy(random_weights(rng)[None])))
    frame = Person(head, shape, look).elsewhere(scene.look).render(params, scene.camera, (SIZE, SIZE))
    image = to_bytes(frame.image[0]).permute(1, 2, 0).numpy()
    points = landmark_pixels(head, frame.vertices, scene.camera)[0, :468, :2].numpy()
    return Sample(image, params, scene.camera, points)


def _usual_shape(head: HeadModel, seed: int) -> Tensor:
    """(1, S) of people with the age, presentation and weight of a seed, as `sample_identity` has it."""
    traits = sample_traits(seed)
    wanted = {
        "masculinity": 1.5 * (traits.masculine - 0.5),
        "age": (traits.age - 40) / 45,
        "weight": 0.7 * traits.heavy,
    }
    known = {k: float(np.clip(v, -1, 1)) for k, v in wanted.items() if k in head.shape_control_names}
    return head.shape_from_controls(known)


def _drawn(folder: Path) -> Iterator[tuple[int, Sample]]:
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            data = dict(file)
        prefix = "params."
        params = HeadParams(
            **{k.removeprefix(prefix): torch.from_numpy(v) for k, v in data.items() if k.startswith(prefix)}
        )
        for k, image in enumerate(data["image"]):
            camera = Camera(torch.from_numpy(data["focal"][k : k + 1]), torch.from_numpy(data["principal"][k : k + 1]))
            yield int(path.stem), Sample(image, params[k : k + 1], camera, data["landmarks"][k])


def _clips(folder: Path) -> Iterator[Sample]:
    """Every other frame of a set of `headwarp synth`."""
    for path in sorted(folder.glob("train/*/clip.safetensors")):
        track = FaceTrack.load(path)
        assert isinstance(track.camera, Camera)
        for k, frame in enumerate(VideoReader(path.with_suffix(".mp4"))):
            if k % 2 == 0:
                points = track.landmarks[k, :468, :2].numpy()
                yield Sample(frame.image, track.params[k : k + 1], track.camera, points)


class Mirror:
    """A head's coefficients of the face in the mirror."""

    def __init__(self, head: HeadModel) -> None:
        places = head.v_template.double().numpy()
        distance, pair = cKDTree(places).query(places * [-1, 1, 1])
        both = distance < 2e-3
        flip = np.array([-1.0, 1.0, 1.0])[:, None]

        def matrix(directions: Tensor) -> Tensor:
            values = directions.double().numpy()
            there, here = (values[pair[both]] * flip).reshape(-1, values.shape[-1]), values[both]
            return torch.from_numpy(np.linalg.lstsq(here.reshape(there.shape), there, rcond=None)[0]).float()

        self.shape = matrix(head.shapedirs[..., : head.n_shape])
        self.expression = matrix(head.shapedirs[..., head.n_shape :])

    def __call__(self, params: HeadParams) -> HeadParams:
        turn = torch.tensor([1.0, -1.0, -1.0])
        return params.replace(
            shape=params.shape @ self.shape.T,
            expression=params.expression @ self.expression.T,
            rotation=params.rotation * turn,
            neck=params.neck * turn,
            jaw=params.jaw * turn,
            eyes=(params.eyes.unflatten(1, (2, 3)).flip(1) * turn).flatten(1),
            eyelids=params.eyelids.flip(1),
            translation=params.translation * torch.tensor([-1.0, 1.0, 1.0]),
        )


def crop(sample: Sample, mirror: Mirror, rng: np.random.Generator | None) -> View:
    """The regressor's crop, varied by `rng` in place, size, side, colour and sharpness."""
    low, high = sample.landmarks.min(0), sample.landmarks.max(0)
    centre, side = (low + high) / 2, CONFIG.scale * float((high - low).max())
    if rng is not None:
        side *= math.exp(rng.uniform(-0.07, 0.07))
        centre = centre + rng.uniform(-0.025, 0.025, 2) * side
    scale, size = CONFIG.size / side, CONFIG.size
    shift = size / 2 - scale * (centre - [0, CONFIG.up * side])
    matrix = np.array([[scale, 0, shift[0] + 0.5 * scale - 0.5], [0, scale, shift[1] + 0.5 * scale - 0.5]])
    bytes_ = cv2.warpAffine(sample.image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    image: NDArray[Any] = bytes_ / np.float32(255)
    camera = sample.camera.crop(torch.tensor([[scale, *shift]], dtype=torch.float32))
    params = sample.params
    if rng is not None:
        if rng.random() < 0.5:
            image, params = image[:, ::-1], mirror(params)
            principal = camera.principal * torch.tensor([-1.0, 1.0]) + torch.tensor([float(size), 0.0])
            camera = Camera(camera.focal, principal)
        image = image ** math.exp(rng.normal(0, 0.2)) * (1 + rng.normal(0, 0.08, 3)) * math.exp(rng.normal(0, 0.12))
        if rng.random() < 0.3:
            image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0))
        image = np.clip(image + rng.normal(0, rng.uniform(0, 0.02), image.shape), 0, 1)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).float().permute(2, 0, 1)[None]
    return View(image=pixels, params=params, camera=camera)


def train(folder: Path, output: Path) -> None:
    torch.manual_seed(0)
    drawn = list(_drawn(folder / "drawn"))
    held_out = [sample for look, sample in drawn if look % HELD_OUT == 0]
    samples = [sample for look, sample in drawn if look % HELD_OUT] + list(_clips(folder / "clips"))
    print(f"{len(samples)} pictures to learn from, {len(held_out)} held out")
    head = load_head()
    mirror = Mirror(head)
    step = RegressorStep(RegressorSettings(model_params=CONFIG))
    model = step.model
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    for number, (rate, horizon, count) in enumerate(PHASES):
        rng = np.random.default_rng(number)
        model.load_state_dict(mean)
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        warm = 20 if number else 100
        for k in tqdm(range(count)):
            for group in optimizer.param_groups:
                falling = 0.5 + 0.5 * math.cos(math.pi * min(k / horizon, 1))
                group["lr"] = rate * min(1, (k + 1) / warm) * falling + 1e-5
            chosen = rng.choice(len(samples), BATCH)
            losses, _ = step.losses(Batch([View.cat([crop(samples[i], mirror, rng) for i in chosen])], [""] * BATCH))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            keep = min(0.998, (k + 1) / (k + 21))
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    mean[name].lerp_(value, 1 - keep)
                else:
                    mean[name].copy_(value)
    trained = HeadRegressor(replace(CONFIG, head_sha256=head.sha256))
    trained.load_state_dict(mean)
    trained.eval()
    with torch.no_grad():
        views = View.cat([crop(sample, mirror, None) for sample in held_out])
        judged = step.judge(trained, Batch([views], [""] * len(held_out)))
    print({name: round(float(values.mean()), 3) for name, values in judged.metrics.items()})
    facts = {
        "licence": "Apache-2.0",
        "data": "synthetic people, assets/build_regressor.py",
        "steps": " + ".join(str(count) for _, _, count in PHASES),
    }
    save_model(output, trained, facts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "draw":
        draw(Path(sys.argv[2]) / "drawn")
    else:
        train(Path(sys.argv[2]), Path(sys.argv[3]))
