"""The refiner: what it starts from, what it is told, and that it learns what the animator cannot know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headwarp.geom.camera import Camera
from headwarp.geom.head import HeadModel, HeadParams, load_head
from headwarp.nets.model_file import load_model, save_model
from headwarp.nets.refiner import CLUES, Clues, Refiner, RefinerConfig, motion_share
from headwarp.render.geometric import Rendered

SMALL = RefinerConfig(size=64, base_channels=4, max_channels=8, levels=2)


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera(torch.tensor([300.0]), torch.tensor([[32.0, 32.0]]))


def posed(head: HeadModel, yaw: float = 0.0) -> HeadParams:
    rotation = torch.tensor([[0.0, yaw, 0.0]])
    return HeadParams.zeros(head, 1).replace(translation=torch.tensor([[0.0, 0.0, -1.2]]), rotation=rotation)


def moved_by(displacement: float) -> Rendered:
    """What the animator says of 64 x 64 pixels that all come from `displacement` (NDC) away."""
    pixels = np.full((64, 64, 2), 32 * displacement, np.float32)
    return Rendered(np.zeros((64, 64, 3), np.uint8), pixels, np.ones((64, 64), np.float32))


def trained() -> Refiner:
    """With weights that do something."""
    torch.manual_seed(0)
    model = Refiner(SMALL)
    torch.nn.init.normal_(model.last.weight, std=0.3)
    return model.eval()


def inputs(motion: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    picture = torch.rand(2, 3, 64, 64, generator=generator)
    clues = torch.rand(2, CLUES, 32, 32, generator=generator)
    clues[:, :2] *= motion
    return picture, clues


def test_an_untrained_network_changes_nothing():
    assert Refiner(SMALL)(*inputs(0.1)).abs().max() == 0


def test_the_change_vanishes_with_the_motion():
    model = trained()
    changes = [float(model(*inputs(motion)).detach().abs().max()) for motion in (0.0, 1e-3, 0.1)]
    assert changes[0] == 0
    assert changes[0] < changes[1] < 0.05 * changes[2]


def test_motion_counts_wherever_it_is():
    small = torch.zeros(1, 2, 32, 32)
    small[0, 0, 7, 9] = 0.05  # a blink moves few pixels
    assert motion_share(small).item() == pytest.approx(1, abs=1e-4)


def test_a_file_keeps_the_network(tmp_path: Path):
    model = trained()
    save_model(tmp_path / "model.safetensors", model)
    again = load_model(tmp_path / "model.safetensors")
    assert isinstance(again, Refiner)
    torch.testing.assert_close(again.eval()(*inputs(0.1)), model(*inputs(0.1)))


def test_shapes_that_do_not_fit_get_a_sentence():
    model, (picture, clues) = Refiner(SMALL), inputs(0.1)
    with pytest.raises(ValueError, match="multiples of 8"):
        model(picture[..., :60, :60], clues)
    with pytest.raises(ValueError, match="clues must be"):
        model(picture, clues[:, :-1])
    with pytest.raises(ValueError, match="multiple of 32"):
        RefinerConfig(size=100, levels=4)


def test_clues_say_how_the_surface_turned(head: HeadModel, camera: Camera):
    clues, turn = Clues(head), 0.3
    source, driving = posed(head), posed(head, turn)
    drawn = clues.draw(clues.normals(source), driving, camera, (64, 64), moved_by(0.25))
    assert drawn.shape == (1, CLUES, 32, 32)
    assert (drawn[:, :2] == 0.25).all()
    on = drawn[0, 9:].abs().sum(0) > 0
    assert 0.1 < on.float().mean() < 0.9
    assert (drawn[0, 3:, ~on] == 0).all()
    # A stiff turn about y takes the source's normals to the driver's.
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=torch.float32)
    now, before = drawn[0, 3:6][:, on], drawn[0, 6:9][:, on]
    assert (now - matrix @ before).norm(dim=0).quantile(0.95) < 0.05
    assert (now[2] > 0).float().mean() > 0.95  # what is seen looks at the camera


def test_it_learns_shading_that_follows_the_turn(head: HeadModel, camera: Camera):
    """A grey head under light from one side: its picture moved without relighting, and what it should be."""
    torch.manual_seed(0)
    clues, source = Clues(head), posed(head)
    light = torch.tensor([0.8, 0.0, 0.6])
    pictures, told, targets = [], [], []
    for yaw in torch.linspace(-0.5, 0.5, 9):
        drawn = clues.draw(clues.normals(source), posed(head, float(yaw)), camera, (64, 64), moved_by(0.1))
        now, before = (torch.einsum("c,bchw->bhw", light, drawn[:, k : k + 3]).clamp(min=0)[:, None] for k in (3, 6))
        enlarge = torch.nn.Upsample(scale_factor=2, mode="bilinear")
        pictures.append(enlarge(before).expand(-1, 3, -1, -1))
        targets.append(enlarge(now).expand(-1, 3, -1, -1))
        told.append(drawn)
    picture, told_all, target = torch.cat(pictures), torch.cat(told), torch.cat(targets)
    model = Refiner(RefinerConfig(size=64, base_channels=8, max_channels=16, levels=2))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    seen, unseen = [0, 1, 3, 4, 5, 7, 8], [2, 6]
    for _ in range(150):
        loss = (picture[seen] + model(picture[seen], told_all[seen]) - target[seen]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        after = (picture[unseen] + model(picture[unseen], told_all[unseen]) - target[unseen]).abs().mean()
    assert after < 0.5 * (picture[unseen] - target[unseen]).abs().mean()
