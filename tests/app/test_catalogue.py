"""`headwarp models`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from headwarp.app import catalogue
from headwarp.nets import model_file

PAGE = Path(__file__).parents[2] / "docs" / "provenance.md"


def test_every_model_file_of_the_package_is_listed_with_the_hash_of_its_page():
    page = PAGE.read_text()
    assert {entry.file for entry in catalogue.SHIPPED} == {
        str(path.relative_to(catalogue.ASSETS))
        for path in catalogue.ASSETS.rglob("*")
        if path.suffix in (".safetensors", ".tflite", ".task") and "examples" not in path.parts
    }
    for entry in catalogue.SHIPPED:
        assert f"`{entry.sha256}`" in page, entry.file
        assert entry.state() == "ok"


def test_a_changed_model_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(catalogue.ASSETS / "refiner.safetensors", tmp_path)
    monkeypatch.setattr(model_file, "ASSETS", tmp_path)
    monkeypatch.setattr(catalogue, "ASSETS", tmp_path)
    model_file.load_model(tmp_path / "refiner.safetensors")
    content = bytearray((tmp_path / "refiner.safetensors").read_bytes())
    content[-1] ^= 1  # one bit of one weight
    (tmp_path / "refiner.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not the file that was published: install headwarp again"):
        model_file.load_model(tmp_path / "refiner.safetensors")
    assert {entry.file: entry.state() for entry in catalogue.SHIPPED}["refiner.safetensors"] == "changed"
    assert not catalogue.report()


def test_the_command_says_what_is_there_and_how_to_get_the_rest(
    lab: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(catalogue, "USER", tmp_path)
    absent = lab.headwarp("models")
    assert absent.code == 0
    assert "open_head.safetensors" in absent.out
    assert "see third_party/fomm.md" in absent.out
    (tmp_path / "vox-adv-cpk.pth.tar").write_bytes(bytes(1_500_000))
    there = lab.headwarp("models")
    (line,) = [line for line in there.out.splitlines() if line.lstrip().startswith("FOMM")]
    assert "present" in line
    assert "1.5 MB" in line
    assert str(tmp_path / "vox-adv-cpk.pth.tar") in there.out


@pytest.mark.parametrize("command", ["models", "--help"])
def test_a_reader_that_has_seen_enough_is_no_error(command: str):
    process = subprocess.Popen(
        [sys.executable, "-m", "headwarp.app.cli", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, b"")
