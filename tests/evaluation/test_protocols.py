"""Which pairs there are: repeatable, by the papers' rules, and readable from other people's tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwarp.evaluation.dataset import Clip, Frames, Ref, open_data
from headwarp.evaluation.protocols import (
    STRETCH,
    STRETCHES,
    Pair,
    missing_gaps,
    read_pairs,
    sample_pairs,
    stretched,
    write_pairs,
)
from headwarp.media.errors import InputError

PROTOCOLS = ("reconstruction", "same-identity", "cross-identity", "scale", "yaw")


class Known(Clip):
    """A clip without a file."""

    def __init__(self, name: str, length: int) -> None:
        super().__init__(name, Path("/nowhere") / f"{name}.mp4")
        self.__dict__["length"] = length
        self.__dict__["frame_names"] = ()


def clips(*lengths: int) -> dict[str, Clip]:
    return {f"test/id{i}#v": Known(f"test/id{i}#v", n) for i, n in enumerate(lengths)}


def yaws(clip: Clip) -> np.ndarray:
    return np.linspace(-5, 70, clip.length)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pairs_are_repeatable_and_survive_their_file(protocol, tmp_path):
    data = clips(40, 25, 30)
    pairs = sample_pairs(protocol, data, count=4, frames=10, yaws=yaws)
    assert pairs == sample_pairs(protocol, data, count=4, frames=10, yaws=yaws)
    path = tmp_path / "pairs.csv"
    path.write_text(write_pairs(pairs, data))
    again, missing = read_pairs(path, data)
    assert again == pairs
    assert missing == []
    if protocol not in ("reconstruction", "yaw"):
        assert sample_pairs(protocol, data, count=4, seed=1) != pairs


def test_another_clip_changes_no_pairs_of_the_others():
    few, many = clips(40, 25), clips(40, 25, 30)
    for protocol in ("same-identity", "scale"):
        assert set(sample_pairs(protocol, few)) < set(sample_pairs(protocol, many))


def test_reconstruction_goes_from_the_first_frame_through_the_clip():
    pairs = sample_pairs("reconstruction", clips(8, 30), frames=10)
    assert [p.driving.index for p in pairs] == [*range(1, 8), *range(1, 11)]
    assert {p.source.index for p in pairs} == {0}
    assert {p.sequence for p in pairs} == {"test/id0#v", "test/id1#v"}


def test_same_identity_goes_both_ways():
    pairs = sample_pairs("same-identity", clips(40, 2, 1), count=3)
    assert len(pairs) == 12  # the clip of one frame has none
    for there, back in zip(pairs[::2], pairs[1::2], strict=True):
        assert (there.source, there.driving) == (back.driving, back.source)
        assert there.source != there.driving
        assert there.has_truth
        assert (there.group, back.group) == ("forward", "backward")


def test_cross_identity_never_shows_a_person_themselves():
    data = clips(40, 25, 30) | {"test/id0#w": Known("test/id0#w", 9)}
    pairs = sample_pairs("cross-identity", data, count=20)
    assert len(pairs) == 80
    assert all(data[p.source.clip].identity != data[p.driving.clip].identity for p in pairs)
    assert not any(p.has_truth for p in pairs)
    with pytest.raises(InputError, match="at least two clips"):
        sample_pairs("cross-identity", clips(40))


def test_scale_repeats_each_pair_with_stretched_driving_frames():
    pairs = sample_pairs("scale", clips(40), count=5)
    same = [p for p in pairs if p.group == "same scale"]
    other = [p for p in pairs if p.group == "different scale"]
    assert (len(same), len(other)) == (10, 10 * STRETCHES)
    assert {p.stretch for p in same} == {(1.0, 1.0)}
    factors = np.array([p.stretch for p in other])
    assert len(np.unique(factors, axis=0)) == len(other)
    assert factors.min() >= 1 - STRETCH
    assert factors.max() <= 1 + STRETCH
    assert {(p.source, p.driving) for p in other} == {(p.source, p.driving) for p in same}


def test_yaw_gaps_are_what_they_say():
    pairs = sample_pairs("yaw", clips(200), count=5, yaws=yaws)
    angles = yaws(clips(200)["test/id0#v"])
    start = int(np.argmin(np.abs(angles)))
    assert {p.source.index for p in pairs} == {start}
    assert {p.group for p in pairs} == {"yaw 0", "yaw 30", "yaw 60"}
    for pair in pairs:
        gap = abs(angles[pair.driving.index] - angles[start])
        assert abs(gap - float(pair.group[4:])) <= 7.5
    assert missing_gaps(pairs) == []
    some = sample_pairs("yaw", clips(50), yaws=lambda clip: np.linspace(-5, 40, clip.length))
    assert [text for text in missing_gaps(some) if "60" in text] == missing_gaps(some) != []
    with pytest.raises(InputError, match="finds no pairs"):
        sample_pairs("yaw", clips(10), yaws=lambda clip: np.full(clip.length, np.nan))


def test_tables_of_other_people_are_read_by_the_ends_of_their_paths(tmp_path):
    names = ["id10283#x#001#200", "id10284#y#003#100"]
    data: dict[str, Clip] = {f"test/{n}": Known(f"test/{n}", 90) for n in names}
    path = tmp_path / "vox_cross_id_evaluation_best_frame.csv"
    root = "/data/someone/vox1_frames/test"
    path.write_text(
        "source,driving,best_frame\n"
        f"{root}/{names[0]}.mp4/0000075.png,{root}/{names[1]}.mp4/0000012.png,{root}/{names[1]}.mp4/0000003.png\n"
        f"{root}/{names[0]}.mp4/0000099.png,{root}/{names[1]}.mp4/0000012.png,\n"
        f"{root}/id1#gone.mp4/0000001.png,{root}/{names[1]}.mp4/0000012.png,\n"
        f"E:\\vox\\{names[1]}\\0000001.png,{names[1]}/0000002.png\n"
    )
    pairs, missing = read_pairs(path, data)
    first, second = (f"test/{n}" for n in names)
    assert pairs == [
        Pair(Ref(first, 75), Ref(second, 12), Ref(second, 3)),
        Pair(Ref(second, 1), Ref(second, 2)),
    ]
    assert len(missing) == 2
    assert "line 3" in missing[0]
    assert "no frame 0000099.png" in missing[0]
    assert "no clip" in missing[1]

    videos = tmp_path / "vox256.csv"
    videos.write_text(f"source,driving,frame\n{names[0]}.mp4,{names[1]}.mp4,0.0\n")
    pairs, _ = read_pairs(videos, data, stride=30)
    assert [(p.source.index, p.driving.index) for p in pairs] == [(0, 0), (0, 30), (0, 60)]
    assert len({p.sequence for p in pairs}) == 1

    videos.write_text(f"source_frame,driving_video\n{root}/{names[0]}.mp4/0000007.png,/v/{names[1]}.mp4\n")
    assert read_pairs(videos, data, stride=50)[0][0].source == Ref(first, 7)

    videos.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no table of pairs"):
        read_pairs(videos, data)
    videos.write_bytes(b"\x89PNG")
    for path in (videos, tmp_path / "none.csv"):
        with pytest.raises(InputError, match=rf"{path.name} cannot be read"):
            read_pairs(path, data)
    videos.write_text("source,driving\nq/1.png,q/2.png\n")
    with pytest.raises(InputError, match="None of the 1 pairs"):
        read_pairs(videos, data)


@given(st.floats(0.7, 1.3), st.floats(0.7, 1.3))
@settings(max_examples=25, deadline=None)
def test_stretching_keeps_the_middle_and_the_proportions(width, height):
    side = 120
    picture = np.zeros((side, side, 3), np.uint8)
    picture[40:80, 40:80] = 255  # a square in the middle
    result = stretched(picture, width, height)[..., 0].astype(float) / 255
    across, down = (40 * factor / max(width, height) for factor in (width, height))
    assert result.sum() == pytest.approx(across * down, rel=0.06)
    rows, columns = np.mgrid[:side, :side] + 0.5
    assert (result * columns).sum() / result.sum() == pytest.approx(side / 2, abs=1)
    assert (result * rows).sum() / result.sum() == pytest.approx(side / 2, abs=1)


def test_folders_of_frames_are_found_by_their_names(data):
    found = open_data(data)
    assert list(found) == ["test/id1#a", "test/id2#b"]  # train/ does not count
    clip = found["test/id1#a"]
    assert (clip.identity, clip.length) == ("id1", 4)
    assert clip.index_of("0000020") == 2
    assert clip.index_of("0000001") is None


def test_frames_are_kept_and_what_is_missing_is_named(data, frames, tmp_path):
    store = Frames(open_data(data), tmp_path, 96)
    refs = [Ref("test/id1#a", 1), Ref("test/id1#a", 9)]
    assert store.prepare(refs) == {refs[1]}
    picture = store.picture(refs[0])
    assert picture.shape == (96, 96, 3)
    half = frames[1].reshape(96, 2, 96, 2, 3).mean((1, 3))
    assert np.abs(picture - half).max() <= 1
