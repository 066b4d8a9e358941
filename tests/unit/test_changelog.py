"""The changelog: fragments become a release, and what stands under Unreleased goes into it too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["towncrier"]
TYPES = [kind["directory"] for kind in CONFIGURATION["type"]]


def section(changelog: str, version: str) -> str:
    """Return what stands between the heading of a version and the next one."""
    (found,) = re.findall(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    changes = tmp_path / "changes"
    changes.mkdir()
    shutil.copy(ROOT / "changes/README.md", changes)
    return tmp_path


def build(folder: Path, version: str) -> None:
    command = [Path(sys.executable).with_name("towncrier"), "build", "--yes", "--version", version]
    subprocess.run([*command, "--date", "2027-01-31"], cwd=folder, check=True, capture_output=True)


def test_a_release_has_the_fragments_and_what_was_unreleased(folder: Path) -> None:
    unreleased = section((ROOT / "CHANGELOG.md").read_text("utf-8"), "Unreleased")
    (folder / "changes/42.fixed.md").write_text("Times with a zone are read.\n", "utf-8")
    (folder / "changes/+hooks.added.md").write_text("Hooks of git.\n", "utf-8")
    build(folder, "9.8.7")
    changelog = (folder / "CHANGELOG.md").read_text("utf-8")
    assert section(changelog, "Unreleased").strip() == ""
    assert "## [9.8.7] - 2027-01-31\n\n### Added\n\n- Hooks of git.\n" in changelog
    assert "### Fixed\n\n- Times with a zone are read. (#42)\n" in changelog
    assert section(changelog, "9.8.7").endswith(unreleased)
    assert [path.name for path in (folder / "changes").iterdir()] == ["README.md"]


def test_a_second_release_stands_above_the_first(folder: Path) -> None:
    for version in ("9.8.7", "9.9.0"):
        (folder / f"changes/+{version}.changed.md").write_text(f"New in {version}.\n", "utf-8")
        build(folder, version)
    changelog = (folder / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[:3] == ["Unreleased", "9.9.0", "9.8.7"]
    assert "New in 9.8.7" not in section(changelog, "9.9.0")


def test_every_fragment_has_a_name_that_towncrier_reads_and_a_text() -> None:
    fragments = [path for path in (ROOT / "changes").iterdir() if path.name != "README.md"]
    form = re.compile(rf"(\d+|\+[a-z][a-z0-9-]*)(\.\d+)?\.({'|'.join(TYPES)})\.md")
    assert [path.name for path in fragments if not form.fullmatch(path.name)] == []
    assert [path.name for path in fragments if not path.read_text("utf-8").strip()] == []


def test_the_guide_to_fragments_names_every_type() -> None:
    guide = (ROOT / "changes/README.md").read_text("utf-8")
    assert [kind for kind in TYPES if f"`{kind}`" not in guide] == []
