"""Installs products on demand: locked packages, each product in a directory of its own in the user's cache.

The name of a directory has the digest of its lock, so a changed lock is installed again. A marker is written last.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from triptych.embedded.jars import cache_directory
from triptych_bench.errors import InstallError

LOCKS = Path(__file__).with_name("locks")
_PIN = re.compile(r"^(?P<package>[a-z0-9-]+)==(?P<version>[^ \\]+)", re.MULTILINE)
_READY = ".ready"


def pinned(lock: Path, package: str) -> str:
    """Return the version of a package in a lock file."""
    return next(each["version"] for each in _PIN.finditer(lock.read_text("utf-8")) if each["package"] == package)


def environment(product: str) -> Path:
    """Install a product's Python packages and return the interpreter of its environment. Raises InstallError."""
    lock = LOCKS / f"{product}.lock"

    def install(home: Path) -> None:
        python = home / "bin" / "python"
        run(product, "uv", ["venv", "--quiet", "--python", sys.executable, str(home)])
        run(product, "uv", ["pip", "install", "--quiet", "--python", str(python), "--require-hashes", "-r", str(lock)])

    return once(product, lock.read_bytes() + sys.version.encode(), install) / "bin" / "python"


def npm_package(product: str, folder: Path, binary: str) -> Path:
    """Install the npm packages that a folder locks, without their scripts. Return a file of theirs."""

    def install(home: Path) -> None:
        home.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(folder / name, home)
        run(product, "npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(home)])

    return once(f"{product}-npm", (folder / "package-lock.json").read_bytes(), install) / binary


def go_commands(product: str, module: str, version: str, commands: Sequence[str]) -> Path:
    """Build commands of a Go module and return the directory of the binaries. Go checks the module by its checksums."""

    def install(home: Path) -> None:
        home.mkdir(parents=True)
        packages = [f"{module}/{command}@{version}" for command in commands]
        run(product, "go", ["install", *packages], {"GOBIN": str(home)})

    return once(f"{product}-go", f"{module} {version} {commands}".encode(), install)


def once(name: str, lock: bytes, install: Callable[[Path], None]) -> Path:
    """Return the directory of what `install` installs; it is called unless a whole one is there."""
    home = cache_directory() / "bench" / f"{name}-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (home / _READY).exists():
        shutil.rmtree(home, ignore_errors=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        install(home)
        (home / _READY).touch()
    return home


def run(product: str, tool: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    """Run a tool that installs something to its end. Raises InstallError, which says why."""
    beside_python = Path(sys.executable).parent / tool
    command = str(beside_python) if beside_python.exists() else shutil.which(tool)
    if command is None:
        raise InstallError(product, f"`{tool}` is not on this machine", f"Install {tool}")
    done = subprocess.run(
        [command, *arguments], env={**os.environ, **(variables or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"it ended with code {done.returncode}"
        why = f"`{tool} {arguments[0]}` failed: {why_of(said.splitlines())}"
        raise InstallError(product, why, "Make the registry reachable")


def why_of(lines: Sequence[str]) -> str:
    """Return the line that says why: the first that names an error, since hints and traces follow it, or the last."""
    why = next((line for line in lines if "error" in line.lower()), lines[-1])
    return why.strip().rstrip(".")
