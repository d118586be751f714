"""The Ray engine on a real local cluster of two nodes, one of which goes away in the middle."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from headwarp.assets import example
from headwarp.fitting.fit_videos import fit_files
from headwarp.fitting.options import FitOptions
from headwarp.media.video import VideoReader, VideoWriter

pytestmark = pytest.mark.slow

OPTIONS = FitOptions(size=64, min_frames=5, workers=1)


@pytest.fixture
def cluster(monkeypatch):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


def test_a_node_that_goes_away_loses_nothing(cluster, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    with VideoWriter(videos / "0.mp4", (256, 256), 25) as writer:
        for frame in VideoReader(example("driving.mp4"), max_side=256):
            if frame.index == 20:
                break
            writer.write(frame.image)
    for k in range(1, 8):
        shutil.copy(videos / "0.mp4", videos / f"{k}.mp4")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert fit_files([videos], whole, OPTIONS, progress=False)

    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    def kill_when_busy() -> None:
        """As soon as a clip is finished the others are in the middle of theirs."""
        for _ in range(6000):
            if any(out.glob("[0-9]")):
                break
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    options = FitOptions(**{**OPTIONS.__dict__, "engine": "ray", "address": cluster.address})
    assert fit_files([videos], out, options, progress=False)
    killer.join()
    files = {path.relative_to(whole) for path in whole.rglob("clip.*")} | {Path("index.parquet")}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file() and ".fit" not in path.parts} == files
    for file in files:
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert not os.listdir(out / ".fit" / "parts")
