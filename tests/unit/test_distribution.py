"""The wheel and the source distribution, and the release notes that go with them. Nothing is fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import triptych

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
BUILD = (UV, "build", "--offline", "--no-build-isolation", "--python", sys.executable, "--out-dir")


def build(folder: Path, *options: str | Path) -> None:
    subprocess.run([*BUILD, folder, *options], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `make dist` would write: the wheel comes from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


def wheel(folder: Path) -> zipfile.ZipFile:
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def packaged(folder: Path) -> set[str]:
    with wheel(folder) as opened:
        return {name for name in opened.namelist() if not name.startswith("triptych-")}


def kept() -> set[str]:
    """Return the files of the package that git does not ignore, under the names that the import root gives them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    links = {
        path.resolve().relative_to(ROOT).as_posix(): path.name
        for path in (ROOT / "triptych").iterdir()
        if path.is_symlink()
    }
    found = {
        name for name in listed if name.startswith("triptych/") and name.removeprefix("triptych/") not in links.values()
    }
    for target, link in links.items():
        found |= {
            f"triptych/{link}/{name.removeprefix(target + '/')}" for name in listed if name.startswith(target + "/")
        }
    return {name for name in found if not name.startswith("triptych/schemas/compat/")}


def test_the_wheel_has_every_file_of_the_package_and_no_other(built: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    assert packaged(built) - kept() == set()
    assert kept() - packaged(built) == set()


def test_a_wheel_from_the_clone_is_a_wheel_from_the_source_distribution(built: Path, tmp_path: Path) -> None:
    build(tmp_path, "--wheel")
    assert packaged(tmp_path) == packaged(built)


def test_the_source_distribution_has_no_links(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as opened:
        assert [member.name for member in opened.getmembers() if member.issym() or member.islnk()] == []


def test_the_metadata_names_version_licence_and_versions_of_python(built: Path) -> None:
    with wheel(built) as opened:
        (name,) = [one for one in opened.namelist() if one.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(opened.read(name).decode())
    assert metadata["Version"] == triptych.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"embedded", "kb", "mail", "mcp", "bedrock"} <= set(metadata.get_all("Provides-Extra", []))


def test_what_every_image_copies_is_there() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    (copied,) = re.findall(r"for member in (.+?) \$members; do", dockerfile)
    assert [member for member in copied.split() if not (ROOT / "triptych" / member).exists()] == []


def test_the_notes_of_a_release_are_its_section_of_the_changelog(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-31\n\n### Fixed\n\n- Two.\n\n## [0.2] - 2026-12-01\n\n- One.\n",
        "utf-8",
    )
    command = ["make", "--no-print-directory", "release-notes", "VERSION=0.2.0"]
    ended = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert ended.stdout == "\n### Fixed\n\n- Two.\n\n"
