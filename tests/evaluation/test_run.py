"""Whole runs on a small data set: what perfect and idle methods score, going on, and comparing."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from headwarp.evaluation.backbones import FaceReader, Features, head_of
from headwarp.evaluation.dataset import Frames, Moment, Ref, open_data
from headwarp.evaluation.protocols import Copy, Pair, Still, sample_pairs
from headwarp.evaluation.report import compare, write_report
from headwarp.evaluation.run import evaluate, prepare, read_result, write_result
from headwarp.evaluation.suite import Item, Suite
from headwarp.geom.camera import Camera
from headwarp.media.errors import InputError
from headwarp.media.image import load_image, save_image

FACTS = {"protocol": "test", "data": "small"}


@pytest.fixture(scope="module")
def bench(data, tmp_path_factory):
    store = Frames(open_data(data), tmp_path_factory.mktemp("cache"), 192)
    return prepare(sample_pairs("reconstruction", store.clips), store, FACTS)


@pytest.fixture(scope="module")
def done(bench, suite, tmp_path_factory):
    """Folders of the idle and of the perfect method."""
    root = tmp_path_factory.mktemp("runs")
    for method in (Still(), Copy()):
        write_report(evaluate(method, bench, root / method.name, suite=suite), root / method.name)
    return root


class Counting(Still):
    """Counts the frames that it is asked for, and stops where told."""

    name = "counting"

    def __init__(self, stop_after: int = 10**9) -> None:
        self.asked, self.stop_after = 0, stop_after

    def reenact(self, prepared, driving, anchor):
        if self.asked >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += len(driving)
        return super().reenact(prepared, driving, anchor)


def test_the_truth_itself_scores_perfectly(done):
    result = read_result(done / "copy")
    table = {name: cell["mean"] for name, cell in result.tables["all"].items()}
    perfect = {
        "l1": 0,
        "psnr": 99,
        "ssim": 1,
        "ms_ssim": 1,
        "perceptual_effnet": 0,
        "facecos_effnet": 1,
        "aucon_arkit": 1,
    }
    perfect |= {"akd_mediapipe68": 0, "akd_mediapipe468": 0, "apd_open": 0, "aed_expression_open": 0, "prmse_open": 0}
    perfect |= {"aucon_arkit": 1, "aed_effnet": 0, "jitter_error_mediapipe": 0, "face_found": 1}
    for name, value in perfect.items():
        assert table[name] == pytest.approx(value, abs=1e-5), name
    assert table["frechet_effnet"] == pytest.approx(0, abs=1e-3)
    assert table["facecos_effnet_source"] < 1
    assert table["jitter_mediapipe"] > 0


def test_standing_still_scores_what_the_frames_differ_by(done, frames):
    result = read_result(done / "still")
    wanted = [np.abs(frames[0].astype(float) - f).mean() / 255 for f in frames[1:]]
    ours = [row.values["l1"] for row in result.rows if row.clip == "test/id1#a"]
    assert ours == pytest.approx(wanted, rel=1e-5)
    mean = np.mean([row.values["l1"] for row in result.rows])
    assert result.tables["all"]["l1"]["mean"] == pytest.approx(mean, rel=1e-4)
    assert result.tables["all"]["facecos_effnet_source"]["mean"] == pytest.approx(1, abs=1e-5)
    assert result.tables["all"]["shape_open"]["mean"] == pytest.approx(0, abs=1e-6)
    assert result.facts["pairs"] == 4
    assert set(result.facts["seconds"]) == {"per_pair", "per_source"}


def test_a_result_says_what_read_the_pictures(done):
    whole = json.loads((done / "still" / "result.json").read_text())
    for name, card in whole["metrics"].items():
        assert card["formula"], name
        assert card["card"]["name"] == "none" or len(card["card"]["sha256"]) == 64, name
        assert len(card["fingerprint"]) == 16
    assert whole["metrics"]["perceptual_effnet"]["stands_for"] == "LPIPS"
    assert "lpips_alex" not in whole["metrics"]  # nobody's weights were there
    assert not any(name.startswith(("fid", "csim")) for name in whole["metrics"])
    with open(done / "still" / "scores.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["pair"] for line in lines] == [f"{i:05d}" for i in range(4)]
    assert float(lines[0]["ssim"]) < 1


def test_pages_hold_everything_in_themselves(done):
    page = (done / "still" / "report.html").read_text()
    assert "http" not in page
    assert 'name="viewport"' in page  # else a phone lays it out for a desk
    assert "<small>4 pairs</small></th>" in page
    assert page.count("data:image/jpeg") >= 3  # worst, best, sequences
    assert page.count("<svg") >= 3
    table = (done / "still" / "table.tex").read_text()
    columns = table.split(r"\begin{tabular}{")[1].split("}")[0]
    assert all(line.count(" & ") == len(columns) - 1 for line in table.splitlines() if line.endswith(r"\\"))


def test_an_interrupted_run_goes_on_where_it_stopped(bench, suite, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counting(stop_after=1), bench, tmp_path, suite=suite)
    method = Counting()
    first = evaluate(method, bench, tmp_path, suite=suite)
    assert method.asked == 1  # of four: one clip was done
    journal = (tmp_path / "journal.jsonl").read_text()
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write('{"what": "made", "pa')  # killed while writing
    monkeypatch.setattr(Suite, "score", lambda *_: pytest.fail("nothing is left to score"))
    method = Counting()
    again = evaluate(method, bench, tmp_path, suite=suite)
    assert method.asked == 0
    assert [row.values for row in again.rows] == [row.values for row in first.rows]
    assert (tmp_path / "journal.jsonl").read_text().startswith(journal)


def test_a_folder_belongs_to_one_evaluation(bench, suite, done):
    with pytest.raises(InputError, match="holds another evaluation"):
        evaluate(Copy(), bench, done / "still", suite=suite)


def test_pictures_of_other_programs_count_as_our_own(bench, suite, done, tmp_path):
    given = evaluate(None, bench, tmp_path / "out", suite=suite, results=done / "still" / "pictures", name="given")
    ours = read_result(done / "still")
    for row, own in zip(given.rows, ours.rows, strict=True):
        assert {k: f"{v:.6g}" for k, v in row.values.items()} == {k: f"{v:.6g}" for k, v in own.values.items()}
    some = tmp_path / "some"
    save_image(some / "00002.jpg", load_image(done / "still" / "pictures" / "00002.png")[::2, ::2])
    part = evaluate(None, bench, tmp_path / "part", suite=suite, results=some)
    assert [row.pair for row in part.rows] == ["00002"]
    assert any("3 of 4 pairs have no picture" in p for p in part.problems)
    assert any("brought to 192" in p for p in part.problems)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to score"):
        evaluate(None, bench, tmp_path / "none", suite=suite, results=tmp_path / "empty")


def test_results_without_a_face_are_counted_not_hidden(bench, suite, tmp_path):
    for number in range(4):
        save_image(tmp_path / "grey" / f"{number:05d}.png", np.full((192, 192, 3), 128, np.uint8))
    result = evaluate(None, bench, tmp_path / "out", suite=suite, results=tmp_path / "grey")
    assert result.tables["all"]["face_found"] == {"mean": 0.0, "count": 4}
    assert "l1" in result.tables["all"]
    assert not {"akd_mediapipe68", "apd_open", "facecos_effnet"} & set(result.tables["all"])
    write_report(result, tmp_path / "out")
    assert "4 of 4 pairs" in (tmp_path / "out" / "report.html").read_text()


def test_comparison_pairs_the_same_frames(done, tmp_path):
    compare([done / "still", done / "copy"], tmp_path)
    whole = json.loads((tmp_path / "compare.json").read_text())
    cells = whole["tables"]["all"]["l1"]
    still, copy = (read_result(done / n) for n in ("still", "copy"))
    away = [b.values["l1"] - a.values["l1"] for a, b in zip(still.rows, copy.rows, strict=True)]
    assert cells[1]["difference"] == pytest.approx(np.mean(away), rel=1e-3)
    low, difference, high = (cells[1][k] for k in ("low", "difference", "high"))
    assert low - 1e-9 <= difference <= high + 1e-9 < 0
    page = (tmp_path / "compare.html").read_text()
    assert 'class="good"' in page
    assert r"\textbf{0.0000}" in (tmp_path / "table.tex").read_text()


def test_comparison_refuses_to_mix(done, tmp_path):
    """Another network under the same name, or missing pairs, are left out and said."""
    other = read_result(done / "copy")
    other.metrics["ssim"] = {**other.metrics["ssim"], "fingerprint": "0" * 16}
    other.rows = other.rows[:3]
    (tmp_path / "other").mkdir()
    write_result(other, tmp_path / "other")
    compare([done / "still", tmp_path / "other"], tmp_path / "both")
    whole = json.loads((tmp_path / "both" / "compare.json").read_text())
    assert whole["pairs"] == 3
    assert "ssim" not in whole["tables"]["all"]
    assert "frechet_effnet" not in whole["tables"]["all"]  # of other pictures
    assert any("different networks" in n for n in whole["notes"])
    assert any("Only the 3 pairs" in n for n in whole["notes"])
    other.rows = [replace(row, source="elsewhere/0000000.png") for row in other.rows]
    write_result(other, tmp_path / "other")
    with pytest.raises(InputError, match="no pair in common"):
        compare([done / "still", tmp_path / "other"], tmp_path / "none")


def test_features_are_read_once(frames, tmp_path):
    class Once:
        card = FaceReader().card
        pictures = 0

        def read(self, pictures):
            self.pictures += len(pictures)
            return [{"mean": np.array([p.mean()])} for p in pictures]

    reader, store = Once(), Features(tmp_path)
    for _ in range(2):
        found = store.of(reader, [frames[0], frames[1], frames[0]])
        assert [float(f["mean"][0]) for f in found] == [p.mean() for p in (frames[0], frames[1], frames[0])]
    assert reader.pictures == 2
    damaged = next(tmp_path.rglob("*.safetensors"))
    damaged.write_bytes(b"x" * 20)
    store.of(reader, frames[:2])
    assert reader.pictures == 3


def test_depth_and_normals_of_the_true_head_are_without_error(frames, suite):
    found = suite.features.of(suite.faces, [frames[0]])[0]
    params, camera = head_of(found)
    item = Item(frames[0], frames[0], frames[0], True, (params, camera))
    values = suite.score([item]).values[0]
    assert values["side_open"] == pytest.approx(0, abs=1e-4)
    assert values["mad_open"] == pytest.approx(0, abs=0.1)
    # A larger head further away is the same picture; SIDE does not see it, a turned head it does.
    turned = params.replace(rotation=params.rotation + torch.tensor([[0.0, 0.2, 0.0]]))
    values = suite.score([replace(item, exact=(turned, camera))]).values[0]
    assert values["side_open"] > 0.5
    assert 5 < values["mad_open"] < 25


def test_normals_of_a_slanted_plane():
    from headwarp.evaluation.suite import _normals

    camera = Camera(torch.tensor([100.0]), torch.tensor([[16.0, 12.0]]))
    # Points n . p = -1 with n = (1, 2, 2) / 3; p = depth * (x, -y, -1)
    x = (torch.arange(32) + 0.5 - 16) / 100
    y = (torch.arange(24) + 0.5 - 12)[:, None] / 100
    normal = torch.tensor([1.0, 2.0, 2.0]) / 3
    depth = -1 / (normal[0] * x - normal[1] * y - normal[2])
    found = _normals(depth[None, None], camera)[0, :, 1:-1, 1:-1]
    torch.testing.assert_close(found, normal[:, None, None].expand_as(found), atol=1e-3, rtol=0)


def test_moments_know_their_head_in_their_own_pixels(data, tmp_path, portrait):
    """A clip that is not square is cut around the face; the fitted landmarks lie where a detector finds them."""
    from headwarp.fitting.faces import find_faces
    from headwarp.geom.landmarks import Embedding

    wide = np.concatenate([portrait[:, :64], portrait, portrait[:, -32:]], 1)
    for number in range(3):
        save_image(tmp_path / "wide" / "clip" / f"{number:04d}.png", wide)
    store = Frames(open_data(tmp_path / "wide"), tmp_path / "cache", 200)
    store.prepare([Ref("clip", 2)])
    moment: Moment = store.moment(Ref("clip", 2))
    assert moment.image.shape == (200, 200, 3)
    assert moment.params is not None
    truth = find_faces(moment.image)[0].landmarks
    assert np.abs(moment.landmarks[:, :2] - truth[:, :2]).mean() < 2
    from headwarp.geom.head import load_head

    head = load_head()
    embedding = head.embeddings["mediapipe"]
    assert isinstance(embedding, Embedding)
    projected = moment.camera.project(embedding.points(head(moment.params)))[0, :, :2].numpy()
    assert np.abs(projected - truth[embedding.indices.numpy(), :2]).mean() < 5
    # Fitted tracks are kept.
    assert list((tmp_path / "cache" / "tracks").glob("*.safetensors"))


def test_pairs_whose_frames_are_missing_are_left_out(data, tmp_path):
    store = Frames(open_data(data), tmp_path, 64)
    good = Pair(Ref("test/id1#a", 0), Ref("test/id1#a", 1))
    bench = prepare([good, Pair(Ref("test/id1#a", 0), Ref("test/id1#a", 50))], store, FACTS)
    assert list(bench.pairs) == [good]
    assert "1 pairs are left out" in bench.problems[0]
    with pytest.raises(InputError, match="No pair can be evaluated"):
        prepare([Pair(Ref("test/id1#a", 0), Ref("test/id1#a", 50))], store, FACTS)
    assert not math.isnan(bench.frames.picture(good.source).mean())


def test_tracks_of_clip_folders_are_used_and_can_be_set_aside(tmp_path):
    """The example clip with its true track, as `headwarp synth` writes such clips."""
    from headwarp.assets import example
    from headwarp.fitting.faces import find_faces
    from headwarp.geom.track import FaceTrack

    folder = tmp_path / "data" / "person#1"
    folder.mkdir(parents=True)
    (folder / "clip.mp4").write_bytes(example("driving.mp4").read_bytes())
    track = FaceTrack.load(example("driving.safetensors"))
    replace(track, metadata={"source": "synthetic"}).save(folder / "clip.safetensors")
    clips = open_data(tmp_path / "data")
    assert (list(clips), clips["person#1"].identity, clips["person#1"].length) == (["person#1"], "person", len(track))

    store = Frames(clips, tmp_path / "cache", 160)
    ref = Ref("person#1", 20)
    store.prepare([ref])
    moment, exact = store.moment(ref), store.exact(ref)
    torch.testing.assert_close(moment.params.rotation, track.params.rotation[20:21])
    assert exact is not None
    seen = find_faces(moment.image)[0].landmarks
    assert np.abs(moment.landmarks[:468, :2] - seen[:468, :2]).mean() < 3

    again = Frames(clips, tmp_path / "cache", 160, refit=True)
    fitted = again.moment(ref)
    assert not torch.equal(fitted.params.rotation, moment.params.rotation)
    assert float((fitted.params.rotation - moment.params.rotation).norm().rad2deg()) < 10
    torch.testing.assert_close(again.exact(ref)[0].rotation, exact[0].rotation)
    replace(track, metadata={"source": "clip.mp4"}).save(folder / "clip.safetensors")
    assert Frames(clips, tmp_path / "cache", 160).exact(ref) is None


def test_official_weights_bring_the_published_names_beside_the_others(frames, tmp_path):
    """Networks of the official shapes (drawn at random, nobody's weights are here) found by their files' names."""
    from headwarp.evaluation.arcface import IResNet
    from headwarp.evaluation.inception import Inception
    from headwarp.evaluation.lpips import Lpips
    from headwarp.nets.model_file import file_hash

    weights = tmp_path / "weights"
    (weights / "arcface_r50").mkdir(parents=True)
    torch.manual_seed(0)
    alexnet = {f"features.{k}": v for k, v in Lpips("alex").features.state_dict().items()}
    torch.save(alexnet, weights / "alexnet-owt-7be5be79.pth")
    torch.save(
        Inception().state_dict() | {"fc.bias": torch.zeros(1008)}, weights / "pt_inception-2015-12-05-6726825d.pth"
    )
    torch.save(IResNet((1, 1, 1, 1)).state_dict(), weights / "arcface_r50" / "backbone.pth")
    suite = Suite(Features(tmp_path / "features"), weights)
    official = {
        "lpips_alex": "alexnet-owt-7be5be79.pth",
        "fid_inception": "pt_inception-2015-12-05-6726825d.pth",
        "csim_arcface": "arcface_r50/backbone.pth",
    }
    for name, file in official.items():
        assert suite.metrics[name].stands_for == ""
        assert suite.metrics[name].card.sha256 == file_hash(weights / file)
    stand_ins = {"perceptual_effnet": "LPIPS", "frechet_effnet": "FID", "facecos_effnet": "CSIM"}
    assert {name: suite.metrics[name].stands_for for name in stand_ins} == stand_ins
    values = suite.score([Item(frames[1], frames[2], frames[0], True)]).values[0]
    assert {"lpips_alex", "csim_arcface", "csim_arcface_source", "aed_arcface"} <= set(values)
    assert suite.vectors(frames[:2])["fid_inception"].shape == (2, 2048)
