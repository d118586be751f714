"""Training data: the right frames with the right heads, the same samples however they are loaded."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headwarp.geom.camera import WeakPerspective
from headwarp.media.errors import InputError
from headwarp.media.image import save_image
from headwarp.media.video import VideoReader
from headwarp.training.batch import Batch, View
from headwarp.training.config import AugmentationParams, DatasetParams, FlipParams, HoldOut, JitterParams, SourceParams
from headwarp.training.data import Mixture, Request, open_held_out, open_training
from headwarp.training.data.augment import augment, mirror
from headwarp.training.data.clips import find_clips
from headwarp.training.data.frames import FrameStore
from headwarp.training.data.loader import Dealer, epoch_order, held_out, load
from headwarp.training.data.moments import draw_moments, split_frames
from headwarp.training.data.shards import write_shards

HEADS = frozenset({"params", "camera"})


@pytest.fixture
def fitted(tmp_path, make_track, make_clip) -> Path:
    """Two fitted clips of 10 frames, 64 x 64."""
    for number, name in enumerate(("train/id1#a", "train/id2#a")):
        make_clip(tmp_path / "fitted" / name, make_track(10, seed=number), 10, seed=number)
    return tmp_path / "fitted"


def params(root: Path, size: int = 32, **settings: object) -> DatasetParams:
    cache = str(root.parent / "cache")
    return DatasetParams(root_dir=str(root), frame_shape=(size, size, 3), cache_dir=cache, **settings)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(
    frames=st.sets(st.integers(0, 30), max_size=12),
    moments=st.integers(2, 4),
    min_gap=st.integers(1, 5),
    extra=st.none() | st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_moments_keep_their_distance_and_are_found_where_there_are_any(frames, moments, min_gap, extra, seed):
    max_gap = None if extra is None else min_gap + extra
    usable = np.array(sorted(frames), int)
    drawn = draw_moments(usable, moments, rng(seed), min_gap=min_gap, max_gap=max_gap)

    def reachable(frame: int, left: int) -> bool:
        high = 99 if max_gap is None else max_gap
        return not left or any(min_gap <= f - frame <= high and reachable(f, left - 1) for f in frames)

    assert (drawn is not None) == any(reachable(frame, moments - 1) for frame in frames)
    if drawn is not None:
        assert frames.issuperset(drawn)
        gaps = np.diff(sorted(drawn))
        assert gaps.min() >= min_gap
        assert max_gap is None or gaps.max() <= max_gap
        assert moments == 2 or drawn == sorted(drawn)


def test_pairs_come_in_both_orders_unless_they_shall_not():
    frames = np.arange(5)
    pairs = [draw_moments(frames, 2, rng(seed)) for seed in range(200)]
    assert {tuple(pair) for pair in pairs} == {(a, b) for a in range(5) for b in range(5) if a != b}
    pairs = [draw_moments(frames, 2, rng(seed), order="sorted") for seed in range(50)]
    assert all(a < b for a, b in pairs)


@given(count=st.integers(0, 60), every=st.sampled_from([0, 2, 5]), future=st.sampled_from([0.0, 0.2, 0.5]))
def test_held_out_frames_and_the_others_are_all_frames(count, every, future):
    by_use = split_frames(count, HoldOut(every=every, future=future))
    assert sorted(np.concatenate(list(by_use.values())).tolist()) == list(range(count))
    if count:
        assert 0 in by_use["train"] or future * count > count - 1
    if future and count:
        assert len(by_use["future"]) == round(future * count)
        assert by_use["future"].tolist() == list(range(count - round(future * count), count))


@given(world=st.sampled_from([1, 2, 3]), accumulate=st.sampled_from([1, 2]), start=st.integers(0, 4))
def test_processes_share_out_the_samples_of_every_step(world, accumulate, start):
    dealt = [list(Dealer(start, 6, 12, accumulate=accumulate, rank=r, world=world)) for r in range(world)]
    for step in range(start, 6):
        turns = slice((step - start) * accumulate, (step - start + 1) * accumulate)
        numbers = [number for process in dealt for part in process[turns] for number in part]
        assert sorted(numbers) == list(range(step * 12, step * 12 + 12))


def test_an_epoch_visits_every_clip_once_in_an_order_of_its_own():
    orders = [tuple(epoch_order(0, epoch, 20)) for epoch in range(5)]
    assert len(set(orders)) == 5
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_workers_and_processes_change_no_sample(pictures):
    source = open_training(params(pictures, 16), Request((16, 16)))
    dealer = Dealer(0, 3, 4, accumulate=1, rank=0, world=1)
    alone = list(load(source, 7, dealer, workers=0, pin=False))
    many = list(load(source, 7, dealer, workers=2, pin=False))
    half = Dealer(1, 3, 4, accumulate=1, rank=1, world=2)
    for a, b in zip(alone, many, strict=True):
        assert a.clips == b.clips
        assert torch.equal(a.driving.image, b.driving.image)
    second = next(iter(load(source, 7, half, workers=0, pin=False)))
    assert torch.equal(second.source.image, alone[1].source.image[2:])
    assert not torch.equal(
        alone[0].source.image, next(iter(load(source, 8, dealer, workers=0, pin=False))).source.image
    )


def test_a_sample_is_what_the_clip_holds_at_two_moments(tmp_path, fitted, head):
    """The head lies where the crop and the scale put that of the full picture."""
    request = Request((32, 32), needs=HEADS, head=head.sha256)
    sample = open_training(params(fitted), request).sample(0, rng(1))
    assert (len(sample), sample.clips) == (1, ["train/id1#a"])
    track = find_clips(fitted, FrameStore((32, 32), tmp_path, 0))[0].track.frames(range(10))
    frames = list(VideoReader(fitted / "train/id1#a/clip.mp4"))
    for view in sample.views:
        moment = next(t for t in range(10) if torch.equal(track.params.jaw[t], view.params.jaw[0]))
        vertices = head(view.params)
        full = track.camera.project(vertices)[0, :, :2]
        scale, shift = track.crop[moment, 0], track.crop[moment, 1:]
        torch.testing.assert_close(view.camera.project(vertices)[0, :, :2], (full * scale + shift) / 2)
        torch.testing.assert_close(view.landmarks[0, :, :2], (track.landmarks[moment, :, :2] * scale + shift) / 2)
        theirs = frames[moment].image.reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(view.image[0].permute(1, 2, 0).numpy() - theirs).max() < 1
    assert sample.to("cpu").source.image.dtype == torch.float32
    assert float(sample.to("cpu").source.image.max()) <= 1


def test_frames_where_no_face_was_seen_are_not_used(tmp_path, make_track, make_clip):
    track = make_track(10)
    track.confidence[[0, 1, 4, 5, 6, 7, 9]] = 0.1
    make_clip(tmp_path / "one", track, 10)
    source = open_training(params(tmp_path / "one"), Request((32, 32), needs=HEADS))
    jaws = {float(v.params.jaw[0, 0]) for seed in range(20) for v in source.sample(0, rng(seed)).views}
    assert jaws == {float(track.params.jaw[t, 0]) for t in (2, 3, 8)}
    with pytest.raises(InputError, match=r"No clip of one has 2 frames to train on, 7 or more apart"):
        open_training(params(tmp_path / "one", min_gap=7), Request((32, 32))).sample(0, rng())


def test_one_clip_alone_can_hold_out_frames(tmp_path, make_track, make_clip):
    track = make_track(20)
    make_clip(tmp_path / "one", track, 20)
    settings = params(tmp_path / "one", hold_out=HoldOut(every=5, future=0.25))
    request = Request((32, 32), needs=HEADS)
    number = {float(track.params.jaw[t, 0]): t for t in range(20)}

    def moments(sample: Batch) -> list[int]:
        return [number[float(view.params.jaw[0, 0])] for view in sample.views]

    source = open_training(settings, request)
    trained = {t for seed in range(80) for t in moments(source.sample(0, rng(seed)))}
    assert trained == set(range(15)) - {4, 9, 14}
    sets = open_held_out(settings, request, 100)
    assert {name: [moments(s) for s in held_out(source, 100)] for name, source in sets.items()} == {
        "every": [[0, 4], [0, 9], [0, 14]],
        "future": [[0, t] for t in range(15, 20)],
    }
    assert len(held_out(sets["future"], 2)) == 2
    triplets = open_held_out(settings, replace(request, moments=3), 100)
    assert [moments(s) for s in held_out(triplets["every"], 100)] == [[3, 4, 5], [8, 9, 10], [13, 14, 15]]


def test_whole_clips_can_be_held_out(tmp_path, pictures):
    request = Request((16, 16))
    names = tmp_path / "held_out.txt"
    names.write_text("id1#a#1\n\n")
    for clips in (("train/id1#a#1",), str(names)):
        settings = params(pictures, 16, hold_out=HoldOut(clips=clips))
        assert len(open_training(settings, request)) == 3
        tested = {s.clips[0].split(" ")[0] for s in held_out(open_held_out(settings, request, 99)["test"], 99)}
        assert tested == {"train/id1#a#1", "test/id3#a#1"}
    with pytest.raises(InputError, match="there is no clip nonesuch"):
        open_training(params(pictures, 16, hold_out=HoldOut(clips=("nonesuch",))), request)
    shutil.rmtree(pictures / "train")
    with pytest.raises(InputError, match="none is left to train on"):
        open_training(params(pictures, 16), request)


def test_people_with_many_clips_do_not_dominate(pictures):
    source = open_training(params(pictures, 16, id_sampling=True), Request((16, 16)))
    assert len(source) == 3
    counts = Counter(source.sample(i % 3, rng(i)).clips[0] for i in range(90))
    assert counts["train/id1#a#1"] == counts["train/id2#a#1"] == 30
    assert 5 < counts["train/id0#a#1"] < 25


def test_videos_gifs_and_pictures_are_clips(tmp_path, make_clip):
    images = make_clip(tmp_path / "made", None, 5)
    root = tmp_path / "fomm" / "train"
    root.mkdir(parents=True)
    os.replace(tmp_path / "made" / "clip.mp4", root / "id1#x.mp4")
    first, *rest = (Image.fromarray(image) for image in images)
    first.save(root / "id2#x.gif", save_all=True, append_images=rest, duration=40)
    for number, image in enumerate(images):
        save_image(root / "id3.mp4" / f"{number:07d}.png", image)
    clips = find_clips(tmp_path / "fomm", FrameStore((64, 64), tmp_path / "cache", 1e9))
    assert [(clip.name, clip.identity, len(clip)) for clip in clips] == [
        ("train/id1#x", "id1", 5),
        ("train/id2#x", "id2", 5),
        ("train/id3.mp4", "id3.mp4", 5),
    ]
    for clip, tolerance in zip(clips, (12, 40, 0), strict=True):
        for index, frame in zip((3, 1), clip.frames.read((3, 1)), strict=True):
            assert np.abs(frame.astype(int) - images[index]).mean() <= tolerance


def test_cached_frames_are_the_decoded_ones(tmp_path, make_clip):
    make_clip(tmp_path / "a", None, 6)
    video = tmp_path / "a" / "clip.mp4"
    cached = FrameStore((24, 40), tmp_path / "cache", 1e9)
    plain = FrameStore((24, 40), tmp_path / "none", 0)
    wanted = (5, 0, 3, 99)  # the last one does not exist: a header may claim too much
    frames = plain.read(video, wanted)
    assert frames[0].shape == (24, 40, 3)
    for _ in range(2):  # while caching, and from the cache
        for mine, theirs in zip(cached.read(video, wanted), frames, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert not (tmp_path / "none").exists()
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_size == 6 * 24 * 40 * 3

    make_clip(tmp_path / "b", None, 6, seed=5)
    os.replace(tmp_path / "b" / "clip.mp4", video)
    assert not np.array_equal(cached.read(video, [0])[0], frames[1])  # another video under the same name
    full = FrameStore((24, 40), tmp_path / "cache", 2.5 * file.stat().st_size)
    make_clip(tmp_path / "c", None, 6, seed=6)
    full.read(tmp_path / "c" / "clip.mp4", [0])
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_shards_hold_what_the_folder_holds(tmp_path, fitted, head):
    files = write_shards(fitted, tmp_path / "shards" / "vox", shard_bytes=1)
    assert [file.name for file in files] == ["vox-000000.tar", "vox-000001.tar"]
    request = Request((32, 32), needs=HEADS, head=head.sha256)
    folder = open_training(params(fitted), request)
    sharded = replace(params(fitted), root_dir=None, shards=str(tmp_path / "shards" / "vox-*.tar"))
    for _ in range(2):
        packed = open_training(sharded, request)
        for index in range(2):
            a, b = (source.sample(index, rng(3)) for source in (folder, packed))
            assert a.clips == b.clips
            for mine, theirs in zip(a.views, b.views, strict=True):
                torch.testing.assert_close(mine.params.asdict(), theirs.params.asdict(), rtol=0, atol=0)
                assert torch.equal(mine.camera.principal, theirs.camera.principal)
                assert (mine.image.float() - theirs.image.float()).abs().mean() < 6
        for file in files:  # the places are found without the index too
            file.with_name(f"{file.name}.json").unlink(missing_ok=True)
    files[0].write_bytes(b"no tar")
    with pytest.raises(InputError, match="cannot be read as a tar file"):
        open_training(sharded, request)


def test_webdataset_reads_the_shards(tmp_path, fitted):
    webdataset = pytest.importorskip("webdataset")
    files = write_shards(fitted, tmp_path / "vox")
    samples = list(webdataset.WebDataset([str(file) for file in files], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["train/id1#a", "train/id2#a"]
    assert {"000000.jpg", "000009.jpg", "track.safetensors"} <= samples[0].keys()


def test_a_mixture_keeps_its_proportions(pictures, fitted):
    several = (SourceParams(root_dir=str(pictures), weight=3), SourceParams(root_dir=str(fitted), weight=1))
    settings = replace(params(fitted, 16), root_dir=None, sources=several)
    source = open_training(settings, Request((16, 16)))
    assert isinstance(source, Mixture)
    samples = [source.sample(0, rng(i)) for i in range(200)]
    share = np.mean([sample.source.params is None for sample in samples])
    assert 0.67 < share < 0.83
    known = next(s for s in samples if s.source.params is not None)
    unknown = next(s for s in samples if s.source.params is None)
    assert Batch.cat([known, known]).source.known() == {"image", "params", "camera", "landmarks"}
    assert Batch.cat([known, unknown]).source.known() == {"image"}
    assert set(open_held_out(settings, Request((16, 16)), 4)) == {"test-pictures"}
    # A clip to hold out need not be in every source.
    held = replace(settings, hold_out=HoldOut(clips=("train/id1#a#1",)))
    fewer = open_training(held, Request((16, 16)))
    assert isinstance(fewer, Mixture)
    assert [len(s) for s in fewer.sources] == [len(source.sources[0]) - 1, len(source.sources[1])]
    with pytest.raises(InputError, match=r"needs fitted heads, and train/id0#a#1 of pictures has no clip\.safetensors"):
        open_training(settings, Request((16, 16), needs=HEADS))


def test_a_mirrored_view_is_mirrored_in_everything_it_still_knows(fitted):
    view = open_training(params(fitted), Request((32, 32))).sample(0, rng()).source
    depth = torch.rand(1, 1, 32, 32)
    full = View(**{**vars(view), "depth": depth, "normals": depth * torch.tensor([0.6, 0.0, 0.8])[:, None, None]})
    flipped = mirror(full)
    assert flipped.known() == {"image", "depth", "normals"}
    assert torch.equal(flipped.depth[..., 0], depth[..., -1])
    assert torch.equal(flipped.normals[:, 0], -0.6 * depth[:, 0].flip(-1))
    assert torch.equal(mirror(flipped).image, view.image)
    flips = AugmentationParams(flip_param=FlipParams(horizontal_flip=True))
    with pytest.raises(InputError, match="horizontal_flip is for methods that learn from pictures alone"):
        open_training(params(fitted, augmentation_params=flips), Request((32, 32), needs=HEADS))


def test_all_views_of_a_sample_change_alike(pictures):
    sample = open_training(params(pictures, 16), Request((16, 16))).sample(0, rng())
    same = Batch([sample.source, sample.source], sample.clips)
    jitter = AugmentationParams(jitter_param=JitterParams(0.2, 0.2, 0.2, 0.1))
    first, second = (view.image for view in augment(same, jitter, rng(1)).views)
    assert torch.equal(first, second)
    assert not torch.equal(first, sample.source.image)
    assert torch.equal(augment(same, AugmentationParams(), rng(1)).source.image, sample.source.image)
    brighter = AugmentationParams(jitter_param=JitterParams(brightness=0.5))
    means = [float(augment(same, brighter, rng(i)).source.image.float().mean()) for i in range(20)]
    assert max(means) > 1.2 * min(means)
    reverse = AugmentationParams(flip_param=FlipParams(time_flip=True))
    orders = {torch.equal(augment(sample, reverse, rng(i)).source.image, sample.source.image) for i in range(20)}
    assert orders == {True, False}


def test_data_that_cannot_be_used_gets_a_sentence(tmp_path, fitted, make_track, make_clip):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no clips\. A data set holds folders with clip\.mp4"):
        open_training(params(tmp_path / "empty"), Request())
    with pytest.raises(InputError, match=r"was fitted with the head 'open' \(.*name that head in the configuration"):
        open_training(params(fitted), Request((32, 32), needs=HEADS, head="0" * 64))
    with pytest.raises(InputError, match="needs depth, which only synthetic people have"):
        open_training(params(fitted), Request((32, 32), needs=frozenset({"depth"})))
    with pytest.raises(InputError, match="would distort their heads"):
        open_training(replace(params(fitted), frame_shape=(32, 48)), Request((32, 48), needs=HEADS)).sample(0, rng())
    make_clip(tmp_path / "deca", make_track(6, camera=WeakPerspective(torch.ones(1), torch.zeros(1, 2))), 6)
    with pytest.raises(InputError, match="weak-perspective"):
        open_training(params(tmp_path / "deca"), Request((32, 32), needs=HEADS)).sample(0, rng())
    with pytest.raises(InputError, match=r"no file fits .*nothing-\*\.tar"):
        open_training(replace(params(fitted), root_dir=None, shards=f"{tmp_path}/nothing-*.tar"), Request())
    make_clip(tmp_path / "broken", None, 6)
    (tmp_path / "broken" / "clip.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="is no readable face track"):
        open_training(params(tmp_path / "broken"), Request((32, 32), needs=HEADS, head="0" * 64))
    make_clip(tmp_path / "short", make_track(6), 6)
    whole = (tmp_path / "short" / "clip.safetensors").read_bytes()
    (tmp_path / "short" / "clip.safetensors").write_bytes(whole[: len(whole) - 10])
    short = open_training(params(tmp_path / "short"), Request((32, 32), needs=HEADS))
    with pytest.raises(InputError, match="is cut off"):
        [short.sample(0, rng(number)) for number in range(20)]


def test_workers_start_where_opencv_has_threads(fitted):
    """A worker forked beside OpenCV's threads once waited for them for ever."""
    cv2.setNumThreads(4)
    cv2.resize(np.zeros((1024, 1024, 3), np.uint8), (2048, 2048), interpolation=cv2.INTER_CUBIC)  # starts them
    source = open_training(params(fitted), Request((32, 32)))
    batches = load(source, 0, Dealer(0, 9, 2, accumulate=1, rank=0, world=1), workers=1, pin=False)
    assert len(next(batches)) == 2
    assert cv2.getNumThreads() == 4
    batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_input_met_on_the_way_is_told_without_a_traceback(fitted, workers):
    source = open_training(params(fitted), Request((32, 32)))
    for clip in fitted.glob("train/*/clip.mp4"):
        clip.write_bytes(b"junk")
    batches = load(source, 0, Dealer(0, 9, 2, accumulate=1, rank=0, world=1), workers=workers, pin=False)
    with pytest.raises(InputError) as caught:
        list(islice(batches, 1))
    assert "clip.mp4" in str(caught.value)
    assert "Traceback" not in str(caught.value)
