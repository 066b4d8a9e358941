"""Which code is measured: the tree as it stands, or the one of a revision, unpacked beside the data.

A revision runs on the installed packages of today: its own requirements are not looked at.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from triptych_bench.errors import RevisionError, WrongTreeError

ROOT = Path(__file__).resolve().parents[2]
_PROBE = "import triptych.kernel, triptych.executor as last; print(last.__file__)"


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of source code that a stack can be started from."""

    name: str
    root: Path
    commit: str
    changed: bool
    """It holds what no commit does."""

    def environment(self) -> dict[str, str]:
        """Make an environment in which Python finds the code of this tree before installed code.

        The server that the tool calls over HTTP is always of this file's tree: it is not measured.
        """
        return {**os.environ, "PYTHONPATH": os.pathsep.join((str(self.root), str(ROOT / "bench")))}

    def check(self) -> None:
        """Raises WrongTreeError when Python would load something else."""
        probe = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE], env=self.environment(), capture_output=True, text=True, check=False
        )
        loaded = probe.stdout.strip() or probe.stderr.strip()
        if not loaded.startswith(f"{self.root}{os.sep}"):
            raise WrongTreeError(self.root, loaded)


def working_tree() -> Tree:
    """Return the tree of this file, as it is now."""
    commit = _git("rev-parse", "HEAD").decode().strip()
    changed = bool(_git("status", "--porcelain", "--untracked-files=no").strip())
    return Tree(f"{commit[:9]}{'+' if changed else ''}", ROOT, commit, changed)


def unpack(revision: str, target: Path) -> Tree:
    """Unpack the tree of a revision into `target`. Raises RevisionError."""
    commit = _git("rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip()
    with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", commit))) as archive:
        archive.extractall(target, filter="data")
    if not (target / "triptych").exists():
        _make_one_package(target.resolve())
    return Tree(commit[:9], target.resolve(), commit, changed=False)


def trees_of(compare: str | None, scratch: Path) -> list[Tree]:
    """Return the tree as it is; or the two of `REV` or `REV..REV`, unpacked below `scratch`. Raises RevisionError."""
    if compare is None:
        return [working_tree()]
    base, _, head = compare.partition("..")
    return [unpack(base, scratch / "base"), unpack(head, scratch / "head") if head else working_tree()]


def _make_one_package(root: Path) -> None:
    """Link the parts of a tree from before there was one package, so that it is found and started like one of today."""
    package = root / "triptych"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("from triptych.cli.main import main\n\nmain()\n", "utf-8")
    for part in (*root.glob("*/src/triptych/*"), *root.glob("services/*/src/triptych/*")):
        (package / part.name).symlink_to(part)


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    if done.returncode:
        raise RevisionError(" ".join(arguments), done.stderr.decode())
    return done.stdout
