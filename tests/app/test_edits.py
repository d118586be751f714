"""Edits as files, over time, and on videos."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headwarp.app.animator import Animator, Stage, shared_head
from headwarp.app.edits import Edit, Keyframes, edit_video, load_edit, load_keyframes
from headwarp.geom.head import HeadParams
from headwarp.geom.rotation import axis_angle_to_matrix, euler_to_axis_angle, matrix_to_euler
from headwarp.media.errors import InputError
from headwarp.media.image import XMP, load_image, save_image
from headwarp.media.video import VideoReader, probe

SMILE = Edit(
    yaw=10,
    gaze=(-5, 3),
    jaw=4,
    expression={"mouthSmileLeft": 0.8, "browInnerUp": 0.25},
    shape={"jaw-width": 0.5},
    replace=("pose", "gaze"),
)


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[HeadParams, HeadParams]]:
    """The head of each frame and what is asked of the renderer, which does nothing here."""
    asked = []

    def render(self, portrait, target, *, crop_only=False):
        asked.append((portrait.params, target))
        return portrait.picture

    monkeypatch.setattr(Stage, "render", render)
    return asked


def degrees(params: HeadParams) -> np.ndarray:
    return matrix_to_euler(axis_angle_to_matrix(params.rotation))[0].numpy()


@pytest.mark.parametrize("name", ["edit.json", "edit.yaml"])
def test_a_saved_edit_is_the_same_edit(tmp_path: Path, name: str):
    for edit in (SMILE, Edit()):
        edit.save(tmp_path / name)
        assert load_edit(tmp_path / name) == edit


def test_files_hold_only_what_is_set(tmp_path: Path):
    Edit(yaw=3).save(tmp_path / "edit.json")
    assert json.loads((tmp_path / "edit.json").read_text()) == {"yaw": 3}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "no JSON file"),
        ("[1]", "holds no sliders"),
        ('{"yav": 3}', "did you mean yaw"),
        ('{"yaw": 300}', "yaw must be from -60 to 60 degrees, got 300"),
        ('{"yaw": NaN}', "got nan"),
        ('{"expression": {"smile": "much"}}', "smile"),
        ('{"replace": ["nose"]}', "replace"),
        ('{"keyframes": []}', "--keyframes"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "edit.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_edit(path)
    assert sentence in str(error.value)
    assert "edit.json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("yaw: 3", "holds no keyframes"),
        ("keyframes: [{yaw: 3}]", "needs its time"),
        ("keyframes: [{time: 1}, {time: 1}]", "must rise"),
        ("keyframes: [{time: -1}]", "seconds from 0"),
        ("keyframes: [{time: 0, jaw: 90}]", "jaw must be"),
        ("speed: 3\nkeyframes: [{time: 0}]", "not speed"),
        ("keyframes: [{time: 0, replace: [jaw]}, {time: 1}]", "same parts"),
        ("keyframes: {", "no YAML file"),
    ],
)
def test_bad_keyframes_are_refused_in_a_sentence(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        load_keyframes(path)


def test_offsets_add_to_the_face_and_replacements_do_not():
    head = shared_head("open")
    params = HeadParams.zeros(head, 1)
    params = params.replace(
        rotation=euler_to_axis_angle(torch.tensor([20.0])),
        jaw=torch.tensor([[0.2, 0.0, 0.0]]),
        eyes=torch.full((1, 6), 0.1),
        expression=torch.randn(1, head.n_expression),
    )
    moved = Edit(yaw=10, jaw=5, gaze=(4, 0)).apply(head, params)
    assert degrees(moved)[0] == pytest.approx(30, abs=1e-3)
    assert float(moved.jaw[0, 0]) == pytest.approx(0.2 + math.radians(5))
    assert float(moved.eyes[0, 1]) == pytest.approx(0.1 + math.radians(4))
    fixed = Edit(yaw=10, jaw=5, gaze=(4, 0), replace=("pose", "jaw", "gaze", "expression")).apply(head, params)
    assert degrees(fixed) == pytest.approx([10, 0, 0], abs=1e-3)
    assert float(fixed.jaw[0, 0]) == pytest.approx(math.radians(5))
    assert float(fixed.eyes[0, 1]) == pytest.approx(math.radians(4))
    assert not fixed.expression.any()
    torch.testing.assert_close(fixed.shape, params.shape)


def test_a_profile_is_not_turned_round_entirely():
    head = shared_head("open")
    params = HeadParams.zeros(head, 1).replace(rotation=euler_to_axis_angle(torch.tensor([55.0])))
    front = Edit(yaw=-60, replace=("pose",)).apply(head, params)
    assert -5 < degrees(front)[0] < 0, "115 degrees were asked for, less than 60 are given"


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(-45, 45, allow_nan=False), min_size=2, max_size=6),
    moment=st.floats(0, 1),
)
def test_between_keyframes_nothing_overshoots(values: list[float], moment: float):
    keys = Keyframes(tuple(float(i) for i in range(len(values))), tuple(Edit(jaw=v) for v in values))
    time = moment * (len(values) - 1)
    before, after = values[int(time)], values[min(int(time) + 1, len(values) - 1)]
    now = keys.at(time).check().jaw
    assert min(before, after) - 1e-6 <= now <= max(before, after) + 1e-6


def test_keyframes_pass_through_their_edits_smoothly():
    calm = Edit(replace=SMILE.replace)
    keys = Keyframes((0.5, 1.0, 2.0), (calm, SMILE, replace(calm, yaw=-5)))
    assert keys.at(1.0) == replace(SMILE, gaze=(-5.0, 3.0))
    assert keys.at(0.0).yaw == 0
    assert keys.at(9.0).yaw == -5
    assert keys.at(1.5).expression["mouthSmileLeft"] == pytest.approx(0.4)
    yaws = np.array([keys.at(t).yaw for t in np.linspace(0, 2.5, 501)])
    assert np.abs(np.diff(yaws, 2)).max() < 0.05, "no corners"


def test_every_frame_of_a_video_is_turned(lab: SimpleNamespace, driving: Path, tmp_path: Path, targets):
    out = tmp_path / "out.mp4"
    done = lab.headwarp("edit", "-s", driving, "-o", out, "--yaw", 8, "--size", 128)
    assert (done.code, done.out.strip()) == (0, str(out)), done.err
    assert len(targets) == 10
    for before, after in targets:
        turn = axis_angle_to_matrix(after.rotation) @ axis_angle_to_matrix(before.rotation).mT
        assert matrix_to_euler(turn)[0].tolist() == pytest.approx([8, 0, 0], abs=1e-2)
    assert lab.times(out) == pytest.approx(lab.times(driving), abs=1e-4)
    assert probe(out).has_audio


def test_a_replaced_pose_holds_the_head_still(lab: SimpleNamespace, driving: Path, tmp_path: Path, targets):
    done = lab.headwarp(
        "edit", "-s", driving, "-o", tmp_path / "o.mp4", "--replace", "pose", "--yaw", 5, "--size", 128, "--no-audio"
    )
    assert done.code == 0, done.err
    assert not probe(tmp_path / "o.mp4").has_audio
    moving = np.stack([degrees(before) for before, _ in targets])
    still = np.stack([degrees(after) for _, after in targets])
    assert np.ptp(moving, axis=0).max() > 2
    assert np.abs(still - [5, 0, 0]).max() < 1e-2


def test_no_sliders_give_the_video_back(driving: Path, driving_images: list[np.ndarray], lab, tmp_path: Path):
    edit_video(driving, tmp_path / "out/", Edit(), size=128)
    for index, frame in enumerate(VideoReader(driving)):
        assert lab.psnr(load_image(tmp_path / "out" / f"{index:07d}.png"), frame.image) > 50


def test_frames_without_a_face_stay(lab: SimpleNamespace, driving_images: list[np.ndarray], tmp_path: Path):
    grey = np.full_like(driving_images[0], 128)
    clip = lab.write_clip(tmp_path / "gap.mp4", [*driving_images[:3], *[grey] * 8, *driving_images[3:5]])
    done = lab.headwarp("edit", "-s", clip, "-o", tmp_path / "out/", "--yaw", 15, "--size", 128)
    assert done.code == 0, done.err
    assert "note: 8 of 13 frames show no face" in done.err
    for index in (8, 9, 10):
        assert np.ptp(load_image(tmp_path / "out" / f"{index:07d}.png")) < 40, "the grey frame as it was"


def test_keyframes_make_a_video_of_a_portrait(
    lab: SimpleNamespace, portrait: Path, picture: np.ndarray, tmp_path: Path
):
    keys = tmp_path / "keys.yaml"
    keys.write_text("keyframes:\n- {time: 0}\n- {time: 0.3, yaw: 15, expression: {jawOpen: 0.5}}\n- {time: 0.6}\n")
    out = tmp_path / "out.mp4"
    done = lab.headwarp("edit", "-s", portrait, "-o", out, "--keyframes", keys, "--fps", 10, "--size", 128)
    assert done.code == 0, done.err
    result = lab.frames(out)
    assert len(result) == 7
    assert lab.times(out) == pytest.approx([i / 10 for i in range(7)], abs=1e-4)
    likeness = [lab.psnr(frame, picture) for frame in result]
    assert min(likeness[0], likeness[6]) > 35
    assert int(np.argmin(likeness)) == 3
    assert "Give --keyframes or sliders" in lab.refused(
        "edit", "-s", portrait, "-o", out, "--keyframes", keys, "--yaw", 3
    )


def test_an_edit_is_saved_loaded_and_overridden(lab: SimpleNamespace, portrait: Path, tmp_path: Path):
    out, file = tmp_path / "a.png", tmp_path / "edit.yaml"
    options = ("--yaw", 8, "--expression", "jawOpen=0.3", "--size", 128)
    assert lab.headwarp("edit", "-s", portrait, "-o", out, *options, "--save-edit", file).code == 0
    assert load_edit(file) == Edit(yaw=8, expression={"jawOpen": 0.3})
    again = lab.headwarp("edit", "-s", portrait, "-o", tmp_path / "b.png", "--edit", file, "--size", 128)
    assert again.code == 0, again.err
    assert np.array_equal(load_image(out), load_image(tmp_path / "b.png"))
    options = ("--edit", file, "--yaw", 0, "--size", 128)
    assert lab.headwarp("edit", "-s", portrait, "-o", tmp_path / "c.png", *options).code == 0
    alone = Animator(portrait, size=128).edit(expression={"jawOpen": 0.3})
    assert np.array_equal(load_image(tmp_path / "c.png"), alone)


def test_results_say_what_they_are_unless_told_not_to(lab: SimpleNamespace, portrait: Path, tmp_path: Path):
    term = b"compositeWithTrainedAlgorithmicMedia"
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        assert lab.headwarp("edit", "-s", portrait, "-o", tmp_path / name, "--size", 128).code == 0
        assert term in (tmp_path / name).read_bytes(), name
        info = Image.open(tmp_path / name).info
        if name != "a.tif":  # Pillow shows TIFF's packet under a tag only
            assert term.decode() in str(info.get(XMP) or info["xmp"])
        bare = lab.headwarp("edit", "-s", portrait, "-o", tmp_path / f"b{name}", "--size", 128, "--no-provenance")
        assert bare.code == 0
        assert b"AI-generated" not in (tmp_path / f"b{name}").read_bytes()
        assert term not in (tmp_path / f"b{name}").read_bytes()


def test_videos_carry_the_packet_and_still_play(
    lab: SimpleNamespace, picture: np.ndarray, portrait: Path, tmp_path: Path
):
    keys = Keyframes((0.0, 0.1), (Edit(), Edit()))
    for name in ("a.mp4", "a.mov", "a.mkv", "a.webm"):
        edit_video(portrait, tmp_path / name, keys, size=128, fps=20)
        assert b"compositeWithTrainedAlgorithmicMedia" in (tmp_path / name).read_bytes(), name
        assert len(lab.frames(tmp_path / name)) == 3
        edit_video(portrait, tmp_path / name, keys, size=128, fps=20, provenance=False)
        assert b"compositeWithTrained" not in (tmp_path / name).read_bytes()
        assert b"AI-generated" not in (tmp_path / name).read_bytes()


def test_half_a_certificate_is_refused(lab: SimpleNamespace, portrait: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HEADWARP_C2PA_KEY", "key.pem")
    assert "belong together" in lab.refused("edit", "-s", portrait, "-o", tmp_path / "a.png", "--size", 128)


def test_results_are_signed_where_a_certificate_is_configured(
    lab: SimpleNamespace, portrait: Path, tmp_path: Path, monkeypatch
):
    c2pa = pytest.importorskip("c2pa")
    certificate, key = certificates(tmp_path / "pki")
    monkeypatch.setenv("HEADWARP_C2PA_CERTIFICATE", str(certificate))
    monkeypatch.setenv("HEADWARP_C2PA_KEY", str(key))
    keys = Keyframes((0.0, 0.1), (Edit(), Edit(yaw=5)))
    edit_video(portrait, tmp_path / "a.mp4", keys, size=128, fps=20)
    assert lab.headwarp("edit", "-s", portrait, "-o", tmp_path / "a.png", "--size", 128).code == 0
    for name in ("a.mp4", "a.png"):
        report = json.loads(c2pa.Reader(str(tmp_path / name)).json())
        assert report["validation_state"] == "Valid"
        assert "compositeWithTrainedAlgorithmicMedia" in json.dumps(report)
    assert len(lab.frames(tmp_path / "a.mp4")) == 3
    gif = edit_video(portrait, tmp_path / "a.gif", keys, size=128, fps=20)
    assert "no C2PA manifest" in gif.problems[-1]

    monkeypatch.setenv("HEADWARP_C2PA_KEY", str(certificate))
    assert "could not be signed" in lab.refused("edit", "-s", portrait, "-o", tmp_path / "a.png", "--size", 128)
    monkeypatch.setenv("HEADWARP_C2PA_KEY", str(tmp_path / "none.pem"))
    assert "does not exist" in lab.refused("edit", "-s", portrait, "-o", tmp_path / "b.png", "--size", 128)


def certificates(folder: Path) -> tuple[Path, Path]:
    """A chain of two certificates for signing, and the key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("Root", "Signer")]
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in names]
    made = []
    for index, (name, key) in enumerate(zip(names, keys, strict=True)):
        root = index == 0
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        usage |= {"digital_signature": not root, "key_cert_sign": root, "crl_sign": root, "decipher_only": False}
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        )
        if not root:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=True)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "chain.pem").write_bytes(made[1] + made[0])
    (folder / "key.pem").write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "chain.pem", folder / "key.pem"


def test_an_unknown_name_is_refused_before_the_video_is_read(
    lab: SimpleNamespace, driving: Path, tmp_path: Path, targets
):
    wrong = ("--expression", "mouthSmile=1")
    assert "mouthSmileLeft" in lab.refused("edit", "-s", driving, "-o", tmp_path / "o.mp4", *wrong)
    save_image(tmp_path / "p.png", np.zeros((8, 8, 3), np.uint8))
    assert not targets
    assert not (tmp_path / "o.mp4").exists()
