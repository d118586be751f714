"""Training data: clip folders, FOMM's folders, tar shards, synthetic people, and mixtures of them."""

from __future__ import annotations

from dataclasses import replace
from glob import glob
from pathlib import Path

from ...geom.head import load_head
from ...media.errors import InputError
from ...nets.config import build
from ..config import DatasetParams, SourceParams
from .clips import HEAD_FIELDS, Clip, HeldOutClips, TrainingClips, check_clips, check_hold_out, divide, find_clips
from .frames import FrameStore
from .source import Mixture, Request, Source, Split

__all__ = ["Mixture", "Request", "Source", "Split", "open_held_out", "open_training"]


def open_training(params: DatasetParams, request: Request) -> Source:
    """What a configuration trains on.

    Raises:
        InputError: no data, or data that cannot give what the method needs.
    """
    if params.augmentation_params.flip_param.horizontal_flip and request.needs & HEAD_FIELDS:
        raise InputError(
            "horizontal_flip is for methods that learn from pictures alone: a mirrored head has no exact parameters. "
            "Leave it out of dataset_params.augmentation_params.flip_param."
        )
    request = replace(request, truth=frozenset())
    found = params.all_sources()
    clips = {number: _clips(source, params) for number, source in enumerate(found) if source.synthetic is None}
    check_hold_out([clip for some in clips.values() for clip in some], params.hold_out)
    sources = [_training_source(source, clips.get(number, []), params, request) for number, source in enumerate(found)]
    return sources[0] if len(sources) == 1 else Mixture(sources, [source.weight for source in found])


def open_held_out(params: DatasetParams, request: Request, samples: int) -> dict[str, Source]:
    """Validation sets by name: test, every, future, synthetic; with several sources, the source's name behind it.

    Args:
        samples: that are wanted of each set; at most as many clips are looked into.
    """
    found = params.all_sources()
    sets: dict[str, Source] = {}
    for source in found:
        for kind, held_out in _held_out_sources(source, params, request, samples).items():
            name = kind if len(found) == 1 or kind == "synthetic" else f"{kind}-{_label(source)}"
            while name in sets:
                name += "+"
            sets[name] = held_out
    return sets


def _training_source(source: SourceParams, clips: list[Clip], params: DatasetParams, request: Request) -> Source:
    if source.synthetic is not None:
        return _synthetic(source.synthetic, request, "train")
    train, _ = divide(clips, params.hold_out)
    check_clips(train, request, _label(source))
    return TrainingClips(train, params, request, _label(source))


def _held_out_sources(source: SourceParams, params: DatasetParams, request: Request, samples: int) -> dict[str, Source]:
    if source.synthetic is not None:
        return {"synthetic": _synthetic(source.synthetic, request, "test")}
    train, test = divide(_clips(source, params), params.hold_out)
    wanted = {"test": test}
    wanted["every"] = train if params.hold_out.every else []
    wanted["future"] = train if params.hold_out.future else []
    sets = {}
    for kind, clips in wanted.items():
        few = [clips[i * len(clips) // samples] for i in range(samples)] if len(clips) > samples else clips
        if few:
            sets[kind] = HeldOutClips(few, kind, params, request)
    return {kind: held_out for kind, held_out in sets.items() if len(held_out)}


def _clips(source: SourceParams, params: DatasetParams) -> list[Clip]:
    if source.shards is not None:
        from .shards import shard_clips  # here, because that module is also run as a command

        paths = [Path(path) for path in sorted(glob(source.shards))]
        if not paths:
            raise InputError(f"dataset_params.shards: no file fits {source.shards}.")
        return [clip for path in paths for clip in shard_clips(path, params.size)]
    assert source.root_dir is not None
    folder = Path(params.cache_dir or Path.home() / ".cache" / "headwarp" / "frames").expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"dataset_params.cache_dir {folder} is a file; frames are kept in a folder.")
    return find_clips(Path(source.root_dir).expanduser(), FrameStore(params.size, folder, params.cache_gb * 1e9))


def _label(source: SourceParams) -> str:
    return Path(source.root_dir or source.shards or "synthetic").name


def _synthetic(settings: dict[str, object], request: Request, split: Split) -> Source:
    from ..synthetic import SyntheticParams, SyntheticPeople  # brings the renderer along

    if request.head is not None and request.head != load_head("open").sha256:
        raise InputError("Synthetic people have the open head, and the method is configured for another one.")
    try:
        chosen = build(SyntheticParams, settings, "dataset_params.synthetic.")
    except ValueError as error:
        raise InputError(str(error)) from None
    return SyntheticPeople(chosen, request, split)
