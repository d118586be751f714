"""`headwarp unsup3d`: a face taken apart into depth, normals, albedo, light and view, and put together otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from torch import Tensor

    from ..nets.unsup3d import Factors, Unsup3d


@dataclass
class Unsup3dCommand:
    """Take a face apart into canonical depth, normals, albedo, light and view (Unsup3D), relight it, turn it a little.

    The folder gets canonical_depth.png (16 bit), normals.png, albedo.png, shading.png, canonical.png,
    reconstruction.png, relit.png and turned.png (strips of pictures), sheet.png, and factors.json with light and view.
    """

    image: Annotated[Path, Positional]
    """Picture of a face."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder for the results."""
    model: Path | None = None
    """Model file of the kind unsup3d, or the official checkpoint030.pth; by default that of ~/.cache/headwarp."""
    no_crop: bool = False
    """The picture is a tight crop of the face already."""
    face: int = 0
    """Which face, 0 = largest."""
    size: int = 128
    """Side of the pictures written; the network works at its own size (64)."""
    angle: float = 30.0
    """Degrees to which turned.png goes each way."""

    def run(self) -> None:
        import json

        import torch

        from ..media.errors import InputError
        from ..media.files import make_folder

        if self.size < 16 or not 0 <= self.angle <= 90:
            raise InputError(f"--size must be at least 16 and --angle in 0 to 90, got {self.size} and {self.angle:g}.")
        model = _open(self.model)
        with torch.no_grad():
            picture = _face(self.image, self.face, whole=self.no_crop)
            results, factors = decompose(model, picture, self.size, self.angle)
        make_folder(self.output)
        for name, image in results.items():
            _save(self.output / f"{name}.png", image)
        facts = {
            "view_degrees": factors.view[0, :3].rad2deg().tolist(),
            "view_translation": factors.view[0, 3:].tolist(),
            "ambient": factors.ambient.item(),
            "diffuse": factors.diffuse.item(),
            "light_direction": factors.direction[0].tolist(),
        }
        part = self.output / ".factors.json.part"
        part.write_text(json.dumps(facts, indent=1) + "\n")
        part.replace(self.output / "factors.json")
        print(self.output)


LIGHTS = ((-1.0, 0.0), (-0.5, -0.5), (0.0, -1.0), (0.5, -0.5), (1.0, 0.0))
"""Directions x, y of relit.png beside a z of 1: from the left of the picture over the top to the right."""


def decompose(
    model: Unsup3d, picture: Tensor, size: int = 128, angle: float = 30.0
) -> tuple[dict[str, Tensor], Factors]:
    """Pictures of everything that Unsup3D sees in a tightly cropped face, and the factors themselves.

    Args:
        picture: (1, 3, H, W) in [0, 1].
        size: side of the pictures.
        angle: degrees to which the face is turned each way.
    Returns:
        Name -> (1, C, h, w) in [0, 1]; `relit` and `turned` are strips of several pictures. Depth: near is bright.
    """
    from dataclasses import replace
    from math import radians

    import torch
    import torch.nn.functional as F

    from ..nets.unsup3d import network_input

    def enlarge(maps: Tensor) -> Tensor:
        return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)

    config = model.config
    factors = model.factors(network_input(picture, config.image_size))
    rendered = model.render(factors)
    normals = F.normalize(enlarge(rendered.normals), dim=1)
    seen = normals * normals.new_tensor([0.5, 0.5, -0.5])[:, None, None] + 0.5
    near = (config.max_depth - factors.depth) / (config.max_depth - config.min_depth)
    relit = []
    for x, y in LIGHTS:
        # Normals and light have z away from the camera, so a light from the left makes surfaces bright whose normals,
        # turned inwards, point to the right.
        light = F.normalize(factors.direction.new_tensor([[-x, -y, 1.0]]), dim=1)
        changed = replace(
            factors, direction=light, ambient=factors.ambient * 0 + 0.2, diffuse=factors.diffuse * 0 + 0.9
        )
        relit.append(model.render(changed).canonical / 2 + 0.5)
    turned = []
    for turn in (-angle, -angle / 2, 0.0, angle / 2, angle):
        view = torch.zeros_like(factors.view)
        view[:, 1] = radians(turn)
        turned.append(model.turned(factors, view))
    results = {
        "canonical_depth": enlarge(near),
        "normals": seen,
        "albedo": enlarge(factors.albedo / 2 + 0.5),
        "shading": enlarge((rendered.shading / 1.5).clamp(0, 1)),
        "canonical": enlarge((rendered.canonical / 2 + 0.5).clamp(0, 1)),
        "reconstruction": enlarge((rendered.image / 2 + 0.5).clamp(0, 1) * rendered.mask),
        "relit": torch.cat([enlarge(image.clamp(0, 1)) for image in relit], 3),
        "turned": torch.cat([enlarge(image) for image in turned], 3),
    }
    singles = [enlarge(picture), *(results[name] for name in list(results)[:6])]
    results["sheet"] = torch.cat([image.expand(-1, 3, -1, -1) for image in singles], 3)
    return results, factors


def _open(path: Path | None) -> Unsup3d:
    from ..media.errors import InputError
    from ..nets.model_file import load_model
    from ..nets.unsup3d import Unsup3d, Unsup3dConfig
    from ..third_party.unsup3d import load_unsup3d

    try:
        if path is None or path.suffix != ".safetensors":
            # the published demo's border
            return load_unsup3d(path, Unsup3dConfig(border_depth=1.05))
        model = load_model(path)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from None
    if not isinstance(model, Unsup3d):
        raise InputError(f"{path} is no model of the kind unsup3d.")
    return model


def _face(path: Path, face: int, *, whole: bool) -> Tensor:
    """(1, 3, H, W) in [0, 1]: the picture, or the square of its face that the published demo cuts out of a detector's
    box: 1.1 times the mean of its sides, 0.15 of its half side lower."""
    import torch

    from ..fitting.faces import largest_face
    from ..media.crop import Crop
    from ..media.image import load_image

    picture = load_image(path)
    if not whole:
        left, top, right, bottom = largest_face(picture, index=face, name=str(path)).box.tolist()
        side = 1.1 * (right - left + bottom - top) / 2
        centre = ((left + right) / 2, (top + bottom) / 2 + 0.15 * side / 2)
        picture = Crop(centre, side, 256).extract(picture)
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def _save(path: Path, image: Tensor) -> None:
    """(1, 1, H, W) as 16 bits, (1, 3, H, W) as RGB; the file appears when it is whole."""
    from PIL import Image

    from ..media.image import save_image

    if image.shape[1] == 3:
        save_image(path, (image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy())
        return
    levels = (image[0, 0].clamp(0, 1) * 65535).round().numpy().astype("uint16")
    part = path.with_name(f".{path.stem}.part.png")
    Image.fromarray(levels).save(part)
    part.replace(path)
