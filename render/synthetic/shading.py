"""What surfaces do with light: skin, cloth, teeth, eyes and hair at flat lists of visible points (P points)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from . import eyes
from .lighting import Lighting, ShadowMap, ambient
from .people import Garment


@dataclass
class Surface:
    """Visible points and what they are made of."""

    position: Tensor
    """(P, 3) world."""
    smooth: Tensor
    """(P, 3) unit, world: the mesh's normal."""
    normal: Tensor
    """(P, 3) unit, world, with relief."""
    albedo: Tensor
    """(P, 3)"""
    gloss: Tensor
    """(P,) strength of the reflection at the surface; 1 is skin."""
    scatter: Tensor
    """(P,) 1 where light travels under the surface (skin), 0 where it does not (cloth)."""
    share: Tensor
    """(P, 3) of the environment's light that arrives (see `lighting.visibility`)."""


def light_surface(surface: Surface, lighting: Lighting, shadows: ShadowMap) -> Tensor:
    """(P, 3) light towards the camera from skin and other dull things.

    Diffuse: environment times its visibility, plus the key light with a wrapped cosine whose wrap is widest in red,
    which is what scattering under
    skin looks like at the terminator; shadows get the same red edge. Specular: two GGX lobes (rough skin, thin oil
    film) and the environment at
    grazing angles.
    """
    normal, view = surface.normal, F.normalize(-surface.position, dim=1)
    cosine = (normal * lighting.key).sum(1, keepdim=True)
    wrap = surface.scatter[:, None] * cosine.new_tensor([[0.42, 0.18, 0.10]])
    wrapped = ((cosine + wrap) / (1 + wrap)).clamp_min(0.0) ** (1 + wrap)
    # The bust is coarse: its points are lifted further, or its own facets would shade it.
    lift = torch.where(surface.position[:, 1:2] < shadows.centre[1] - 0.05, 0.006, 0.001)
    lit = shadows.light(surface.position + lift * surface.smooth)[:, None]
    tinted = lit ** (1 - 0.45 * surface.scatter[:, None] * cosine.new_tensor([[1.0, 0.35, 0.15]]))
    soft = ambient(lighting, normal) * _bounce(surface.share, surface.albedo)
    diffuse = surface.albedo * (soft + lighting.key_colour * wrapped * tinted)

    half = F.normalize(view + lighting.key, dim=1)
    # Fine relief glitters when every sample mirrors on its own; what a pixel sees is smoother.
    shiny = F.normalize(surface.smooth + 0.45 * (normal - surface.smooth), dim=1)
    n_h = (shiny * half).sum(1).clamp(0, 1)
    n_v = (shiny * view).sum(1).clamp(0.03, 1)
    n_l = cosine[:, 0].clamp(0.0, 1)
    fresnel = 0.028 + 0.972 * (1 - (view * half).sum(1).clamp(0, 1)) ** 5
    lobes = 0.75 * _ggx(n_h, n_l, n_v, 0.52) + 0.25 * _ggx(n_h, n_l, n_v, 0.33)
    direct = lighting.key_colour * (fresnel * lobes * n_l)[:, None] * lit
    grazing = 0.028 + 0.35 * (1 - n_v) ** 5
    mirrored = 2 * (shiny * view).sum(1, keepdim=True) * shiny - view
    around = ambient(lighting, mirrored) * surface.share * grazing[:, None] * 0.6
    return diffuse + surface.gloss[:, None] * (0.8 * direct + around)


def _bounce(share: Tensor, albedo: Tensor) -> Tensor:
    """Visibility with the light that neighbouring skin throws back: bright skin fills its own creases (Jimenez et al.
    2016)."""
    return share / (1 - albedo * (1 - share) * 0.85)


def _ggx(n_h: Tensor, n_l: Tensor, n_v: Tensor, rough: float) -> Tensor:
    """Microfacet distribution and visibility, without the Fresnel term (Walter et al. 2007; Smith's term after Karis
    2013)."""
    a2 = rough**4
    d = a2 / (math.pi * (n_h * n_h * (a2 - 1) + 1) ** 2)
    k = (rough + 1) ** 2 / 8
    return d / (4 * (n_l * (1 - k) + k) * (n_v * (1 - k) + k)) * math.pi


def light_eyes(surface: Surface, axis: Tensor, lid: Tensor, lighting: Lighting, shadows: ShadowMap) -> Tensor:
    """(P, 3) light towards the camera from eyeballs: dull ball, sunken iris, wet cornea.

    Args:
        axis: (P, 3) unit gaze direction.
        lid: (P,) shade of the lids, 0 dark to 1 none.
    """
    normal, view = surface.normal, F.normalize(-surface.position, dim=1)
    wet = eyes.cornea_normal(normal, axis)
    along = (normal * axis).sum(1)
    in_iris = torch.sigmoid((along - math.cos(eyes.IRIS_ANGLE)) * 260)[:, None]
    lit = shadows.light(surface.position + 0.001 * normal)[:, None]
    # Light that enters the cornea falls on the far side of the iris: its bowl is lit opposite to the key.
    sideways = normal - along[:, None] * axis
    caustic = 1 + 2.2 * -(sideways * lighting.key).sum(1, keepdim=True) * in_iris
    cosine = (normal * lighting.key).sum(1, keepdim=True)
    direct = lighting.key_colour * ((cosine + 0.25) / 1.25).clamp_min(0) * lit
    soft = ambient(lighting, normal) * (0.35 + 0.65 * surface.share)
    diffuse = surface.albedo * (soft + direct) * caustic.clamp(0.5, 1.7) * lid[:, None]
    mirrored = 2 * (wet * view).sum(1, keepdim=True) * wet - view
    # The key is a square softbox, some 17 degrees across, reflected sharply; it hangs low enough to be seen under the
    # lid, as photographers place it.
    box = _softbox(mirrored, F.normalize(lighting.key + lighting.key.new_tensor([0.0, 0.0, 0.7]), dim=0))
    strength = lighting.key_colour * 0.9 + lighting.radiance.amax(0) * 0.6
    grazing = (0.03 + 0.5 * (1 - (wet * view).sum(1).clamp(0, 1)) ** 5)[:, None]
    reflected = box[:, None] * strength * 0.75 * (0.5 + 0.5 * lit) + ambient(lighting, mirrored) * grazing * 0.9
    return diffuse + reflected * lid[:, None] * (0.25 + 0.75 * in_iris)


def _softbox(direction: Tensor, light: Tensor, half: float = 0.15) -> Tensor:
    """(P,) 1 where directions (P, 3) hit a square lamp around `light` (3,), with slightly soft edges."""
    up = light.new_tensor([0.0, 1.0, 0.0])
    right = F.normalize(torch.linalg.cross(up, light), dim=0)
    top = torch.linalg.cross(light, right)
    ahead = (direction * light).sum(1).clamp_min(1e-3)
    u, v = (direction * right).sum(1) / ahead, (direction * top).sum(1) / ahead
    inside = torch.sigmoid((half - u.abs()) * 70) * torch.sigmoid((half * 1.25 - v.abs()) * 70)
    return inside * ((direction * light).sum(1) > 0.3)


def light_hair(
    position: Tensor,
    tangent: Tensor,
    normal: Tensor,
    colour: Tensor,
    depth: Tensor,
    lighting: Lighting,
    shadows: ShadowMap,
) -> Tensor:
    """(P, 3) light towards the camera from strands: a cylinder's diffuse light and two shifted highlights.

    Kajiya and Kay 1989 for the diffuse part; highlights after Marschner et al. 2003: the first, of the light's colour,
    is shifted towards the root,
    the second, of the hair's colour, towards the tip.

    Args:
        tangent: (P, 3) unit, towards the tip.
        normal: (P, 3) unit, outward direction of the hair's volume.
        colour: (P, 3).
        depth: (P,) 0 buried, 1 on the surface.
    """
    view = F.normalize(-position, dim=1)
    key = lighting.key
    exposed = (0.22 + 0.78 * depth)[:, None]
    lit = shadows.light(position + 0.006 * normal, bias=0.010)[:, None]
    facing = (((normal * key).sum(1, keepdim=True) + 0.35) / 1.35).clamp(0, 1)
    along = (tangent * key).sum(1, keepdim=True)
    diffuse = (1 - along**2).clamp_min(0).sqrt() * facing
    half = F.normalize(view + key, dim=1)

    def highlight(shift: float, sharpness: float) -> Tensor:
        leaning = F.normalize(tangent + shift * normal, dim=1)
        sine = (1 - (leaning * half).sum(1, keepdim=True) ** 2).clamp_min(0).sqrt()
        return sine**sharpness

    first = 0.055 * highlight(-0.12, 110.0)
    second = 0.30 * colour.sqrt() * highlight(0.14, 28.0) * colour.sqrt() + 0.02 * highlight(0.14, 28.0)
    direct = lighting.key_colour * lit * (colour * 1.1 * diffuse + (first + second) * facing)
    facing_view = F.normalize(view - (view * tangent).sum(1, keepdim=True) * tangent, dim=1)
    soft = ambient(lighting, F.normalize(normal + 0.4 * facing_view, dim=1))
    sheen = ambient(lighting, normal) * (0.03 * _sheen(tangent, view, normal))
    return (soft * colour + direct + sheen) * exposed


def _sheen(tangent: Tensor, view: Tensor, normal: Tensor) -> Tensor:
    """(P, 1) the broad sheen of a large light overhead."""
    half = F.normalize(view + F.normalize(normal + normal.new_tensor([0.0, 0.8, 0.2]), dim=1), dim=1)
    return (1 - (tangent * half).sum(1, keepdim=True) ** 2).clamp_min(0) ** 12


def neckline_depth(local: Tensor, garment: Garment) -> Tensor:
    """(P,) metres below the neckline (negative above it) of local points."""
    x, y, z = local.unbind(1)
    line = -0.157 - garment.neckline - 0.42 * (z + 0.09)
    front = torch.sigmoid((z + 0.085) * 150)
    if garment.cut != "crew":
        reach = 0.085 if garment.cut == "vee" else 0.05
        line = line - front * (reach - 1.15 * x.abs()).clamp_min(0)
    return line - y


def cloth_albedo(local: Tensor, garment: Garment) -> Tensor:
    """(P, 3) colour of the garment at local points: weave, folds, collar band, lapels."""
    x, y, z = local.unbind(1)
    below = neckline_depth(local, garment)
    base = local.new_tensor(garment.colour)[None].expand(len(local), 3)
    weave = (
        1
        + 0.05 * torch.sin(x * 5200) * torch.sin(y * 5200)
        + 0.05 * torch.sin(17 * x + 31 * y + 2.2 * torch.sin(23 * x - 9 * y))
    )
    fold = 1 + 0.06 * torch.sin(70 * x + 12 * torch.sin(9 * y + 4 * z)) * torch.sigmoid((below - 0.05) * 60)
    colour = base * (weave * fold)[:, None]
    if garment.stripe:
        colour = colour * (1 - garment.stripe * (torch.sin(y * 320) > 0.3).float())[:, None]
    if garment.cut == "jacket":
        opening = (0.30 + y + 0.12).clamp_min(0) * 0.33
        shirt = torch.sigmoid((opening - x.abs()) * 1500) * torch.sigmoid((z + 0.09) * 200)
        edge = 1 - 0.5 * torch.exp(-(((x.abs() - opening - 0.001) / 0.002) ** 2)) * torch.sigmoid((z + 0.09) * 200)
        inner = local.new_tensor(garment.inner)[None] * weave[:, None]
        colour = (colour * (1 - shirt[:, None]) + inner * shirt[:, None]) * edge[:, None]
    else:
        band = torch.sigmoid((0.011 - below) * 1500)
        rib = 0.90 + 0.07 * torch.sin(torch.atan2(x, z + 0.09) * 260)
        seam = 1 - 0.35 * torch.exp(-(((below - 0.0115) / 0.0009) ** 2))
        colour = colour * (1 - band + band * rib)[:, None] * seam[:, None]
    # The fabric's edge has a thickness: it is darker where it bends to the skin.
    return colour * (0.55 + 0.45 * torch.sigmoid((below - 0.0012) * 2500))[:, None]


# Widths of the teeth from the middle outwards, along the arch (metres).
_UPPER = (0.0086, 0.0068, 0.0076, 0.0070, 0.0068, 0.0100, 0.0095)
_LOWER = (0.0054, 0.0060, 0.0068, 0.0070, 0.0072, 0.0110, 0.0100)


def teeth(local: Tensor, arch: Tensor, gum: Tensor, upper: bool) -> tuple[Tensor, Tensor]:
    """Albedo (P, 3) and gloss (P,) of points on a row of teeth.

    Args:
        arch: (P,) metres along the row from the middle, at least 0.
        gum: (P,) 0 at the biting edge, 1 at the gum's side of the strip.
        upper: which row.
    """
    widths = torch.tensor(_UPPER if upper else _LOWER, device=local.device)
    ends = torch.cat([widths.new_zeros(1), widths.cumsum(0)])
    tooth = torch.bucketize(arch.contiguous(), ends[1:-1])
    across = ((arch - ends[tooth]) / widths[tooth]).clamp(0, 1) * 2 - 1
    # Brighter than any tooth: enamel glows with light from beside the lip's shadow.
    ivory = local.new_tensor([1.10, 1.00, 0.84])
    gap = torch.exp(-(((1 - across.abs()) / (0.05 + 0.06 * (1 - gum))) ** 2)) * (0.25 + 0.2 * (1 - gum))
    rounded = 1 - 0.18 * across**4
    canine = torch.where(tooth == 2, 0.95, 1.0)
    colour = ivory * (canine * rounded * (1 - gap) * (0.93 + 0.07 * gum))[:, None]
    line = 0.60 + 0.16 * across**2
    pink = torch.sigmoid((gum - line) * 45)[:, None]
    colour = colour * (1 - pink) + local.new_tensor([0.42, 0.16, 0.14]) * pink
    return colour, torch.full_like(arch, 2.2)
