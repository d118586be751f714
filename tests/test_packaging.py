"""The tree, the package list and the arrows between folders stay what docs/design says."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Who may import whom: a folder imports itself and what stands here for it.
ARROWS = {
    "geom": set(),
    "media": set(),
    "render": {"geom"},
    "nets": {"geom", "render"},
    "third_party": {"geom", "nets"},
    "fitting": {"geom", "media", "render", "nets", "third_party"},
    "training": {"geom", "media", "render", "nets", "third_party", "fitting"},
    "evaluation": {"geom", "media", "render", "nets", "third_party", "fitting", "training"},
    "assets": {"geom", "media", "render", "nets", "third_party", "fitting", "training"},
    "benchmarks": {
        "geom",
        "media",
        "render",
        "nets",
        "third_party",
        "fitting",
        "training",
        "evaluation",
        "app",
        "assets",
    },
    "app": {
        "geom",
        "media",
        "render",
        "nets",
        "third_party",
        "fitting",
        "training",
        "evaluation",
        "assets",
        "benchmarks",
    },
}


def package_folders() -> set[str]:
    found = {p.parent.relative_to(ROOT) for p in ROOT.glob("[!.]*/**/__init__.py")}
    return {"headwarp", *(".".join(["headwarp", *f.parts]) for f in found if f.parts[0] not in ("tests", "build"))}


def test_every_folder_is_packaged():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == package_folders()


def test_only_init_stands_at_the_root():
    assert [p.name for p in ROOT.glob("*.py")] == ["__init__.py"]


def test_constraints_pin_every_dependency():
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {re.split(r"[>\[; ]", r)[0].lower() for r in wanted} - {"headwarp", "triton"}
    assert names <= pins, f"not in constraints.txt: {sorted(names - pins)}"


def imported_folders(path: Path) -> set[str]:
    """First folders of our own package that a file imports, relative and absolute imports alike."""
    here = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            full = [*base, *(node.module.split(".") if node.module else [])]
            found |= {full[0]} if full else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("headwarp"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("headwarp.")}
    return found & ARROWS.keys()


@pytest.mark.parametrize("folder", sorted(f for f in ARROWS if (ROOT / f).is_dir()))
def test_imports_run_downwards(folder):
    wrong = {
        str(path.relative_to(ROOT)): bad
        for path in (ROOT / folder).rglob("*.py")
        if (bad := imported_folders(path) - ARROWS[folder] - {folder})
    }
    assert not wrong, f"imports against the arrows of the design: {wrong}"
