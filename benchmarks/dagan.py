"""How fast FOMM and DaGAN make a frame, against the same networks evaluated as the originals' demos do.

    headwarp bench dagan [-o OUT]

The peer recomputes per frame what those demos recompute: the encoder of the source and of its depth, the small source,
the query of the attention, all four disparities, the warped source picture, and the whole matrix of the attention; its
weights are stored as they come. Ours is `inference.optimise` and a source encoded once. Weights are random, drawn so
that every layer matters; time does not depend on them. Beside the times stand the products of the convolutions and of
the attention, in 1e9 (GMAC), that each does per frame; Winograd's convolutions are counted as plain ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nets.dagan import DaGan, DaGanConfig
from ..nets.dense_motion import warp_features
from ..nets.fomm import Fomm
from ..nets.generator import Attention, Generator, SourceState
from ..nets.inference import optimise
from ..nets.keypoints import Motion, normalise
from .products import products
from .timing import machine, race, write_json

SIDE = 256


def main(*, real: Path | None = None, output: Path | None = None) -> dict[str, Any]:
    """Measure, print a table, and write dagan.json to `output`; `real` is not used."""
    models: dict[str, Fomm | DaGan] = {
        "fomm": Fomm(),
        "dagan": DaGan(),
        "dagan, SPADE": DaGan(DaGanConfig(decoder="spade")),
    }
    generator = torch.Generator().manual_seed(0)
    source, driving = (torch.rand(1, 3, SIDE, SIDE, generator=generator) for _ in range(2))
    results: dict[str, Any] = {"machine": machine()}
    print(f"{'':14s} {'as the demos':>16s} {'ours':>16s} {'ratio':>6s} {'bf16':>16s} {'ratio':>6s} {'GMAC':>12s}")
    for name, model in models.items():
        results[name] = row = compare(model.eval(), source, driving)
        mean, half = row["ratio"], row["ratio_bfloat16"]
        print(
            f"{name:14s} {row['as_demos']!s:>16s} {row['ours']!s:>16s} {mean:6.2f} {row['bfloat16']!s:>16s} {half:6.2f}"
            f" {row['gmac_as_demos']:5.0f} -> {row['gmac_ours']:3.0f}   largest difference {row['difference']:.1e}, "
            f"bf16 {row['difference_bfloat16']:.1e} (mean {row['mean_difference_bfloat16']:.1e})"
        )
    if output is not None:
        print(write_json(output, "dagan", results))
    return results


@torch.inference_mode()
def compare(model: Fomm | DaGan, source: Tensor, driving: Tensor) -> dict[str, Any]:
    """Times and differences of one model."""
    enliven(model)
    fast, half = optimise(model), optimise(model, bfloat16=True)
    first = model.read_motion(driving.flip(3))
    state = model.encode_source(source)
    states = {"ours": (fast, fast.encode_source(source)), "bfloat16": (half, half.encode_source(source))}

    def as_demos() -> Tensor:
        return straightforward(model, state, normalise_afresh(read(model, driving), first, state.motion))

    def ours(which: str) -> Tensor:
        chosen, known = states[which]
        motion = normalise(chosen.read_motion(driving), first, known.motion, adapt_scale=True)
        image: Tensor = chosen.render(known, motion).image
        return image

    with products(model) as theirs:
        wanted = as_demos()
    if state.query is not None:  # the whole matrix is multiplied outside of the module
        theirs.append(state.query[0, 0].numel() ** 2 * (state.query.shape[1] + state.features.shape[1]))
    with products(fast) as own:
        found = ours("ours")
    rough = ours("bfloat16")
    times = race({"as_demos": as_demos, "ours": lambda: ours("ours"), "bfloat16": lambda: ours("bfloat16")}, 12, 120)
    return {
        **times,
        "ratio": times["ours"].median / times["as_demos"].median,
        "ratio_bfloat16": times["bfloat16"].median / times["as_demos"].median,
        "gmac_as_demos": sum(theirs) / 1e9,
        "gmac_ours": sum(own) / 1e9,
        "difference": float((found - wanted).abs().max()),
        "difference_bfloat16": float((rough - wanted).abs().max()),
        "mean_difference_bfloat16": float((rough - wanted).abs().mean()),
    }


def enliven(model: nn.Module) -> None:
    """Weights under which differences reach the picture: signals keep their size from layer to layer, and the
    attention, whose gain starts at 0, takes part."""
    random = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith("gamma"):
            value.fill_(0.5)
        elif value.ndim == 4 and not name.endswith(("down.weight", "original")):  # spectral norm keeps sizes by itself
            spread = (6 / value[0].numel()) ** 0.5 * (0.15 if "jacobian" in name else 1.0)
            value.copy_((torch.rand(value.shape, generator=random) * 2 - 1) * spread)


def read(model: Fomm | DaGan, frame: Tensor) -> Motion:
    """Keypoints with all four disparities, of which one is used."""
    if isinstance(model, Fomm) or model.depth is None:
        return model.read_motion(frame)
    return model.keypoints(frame, model.depth.disparities(frame)[0])


def normalise_afresh(motion: Motion, first: Motion, source: Motion) -> Motion:
    """With the hulls computed again, as copies forget them."""
    first, source = (Motion(m.value, m.jacobian) for m in (first, source))
    return normalise(motion, first, source, adapt_scale=True)


def straightforward(model: Fomm | DaGan, known: SourceState, motion: Motion) -> Tensor:
    """The published generators' forward pass, from the source picture, its keypoints and its disparity."""
    generator: Generator = model.generator
    state = generator.encode(known.image, known.motion, known.disparity)
    dense = generator.dense_motion_network(state.small, motion, state.motion)
    features = warp_features(state.features, dense, align_corners=generator.align_corners)
    generator.dense_motion_network.deformed(state.image, dense)
    if generator.attention != "none":
        assert state.query is not None
        features = whole_attention(generator.AttnModule, state.query, features)
    if generator.decoder is not None:
        image = warp_features(state.image, dense, align_corners=generator.align_corners)
        result: Tensor = generator.decoder(features, image)
        return result
    features = generator.bottleneck(features)
    for block in generator.up_blocks:
        features = block(features)
    return generator.final(features).sigmoid()


def whole_attention(attention: Attention, query: Tensor, features: Tensor) -> Tensor:
    """With the matrix of all weights."""
    key = attention.key_conv(features).relu().flatten(2)
    value = attention.value_conv(features).relu().flatten(2)
    weights = torch.bmm(query.flatten(2).mT, key).softmax(-1)
    return attention.gamma * torch.bmm(value, weights.mT).view_as(features) + features
