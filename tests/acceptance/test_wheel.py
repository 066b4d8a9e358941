"""The wheel by itself: in an empty environment and an empty folder, `triptych demo` and `triptych up` work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych import __version__

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 280


def run(*command: str | Path, directory: Path) -> str:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout. What it consists of is checked by tests/unit/test_distribution.py."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "--target=wheel", "-d", folder, directory=ROOT)
    (found,) = folder.glob("*.whl")
    return found


class Installed:
    """The wheel in an environment of its own, and a folder with nothing else."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self._programs = folder / "environment" / "bin"
        self.folder = folder / "empty"
        self.folder.mkdir()
        uv = Path(sys.executable).with_name("uv")
        run(uv, "venv", "--python", sys.executable, self._programs.parent, directory=folder)
        constraints = ROOT / "requirements.lock"
        run(
            *(uv, "pip", "install", "--compile-bytecode", "--python", self._programs / "python"),
            *("--constraint", constraints, f"{wheel}[embedded]"),
            directory=folder,
        )

    def python(self, code: str) -> str:
        return run(self._programs / "python", "-c", code, directory=self.folder).strip()

    def triptych(self, *arguments: str, within: str = ".") -> str:
        return run(self._programs / "triptych", *arguments, directory=self.folder / within)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    installed = Installed(tmp_path_factory.mktemp("installed"), wheel)
    try:
        yield installed
    finally:
        installed.triptych("down")


def test_what_runs_is_the_wheel_and_no_checkout(installed: Installed) -> None:
    assert installed.triptych("--version").strip() == f"triptych {__version__}"
    for module in ("triptych", "triptych.schemas", "triptych.executor", "triptych.examples.crm"):
        where = Path(installed.python(f"import {module} as m; print(m.__file__)"))
        assert "site-packages" in where.parts
        assert not where.is_relative_to(ROOT)


def test_the_demo_runs_with_nothing_but_the_wheel(installed: Installed) -> None:
    assert not list(installed.folder.iterdir())
    lines = json.loads(installed.triptych("demo", "--json"))
    statuses = Counter(line["status"] for line in lines)
    assert statuses["succeeded"] >= 20, lines
    assert "waiting" not in statuses


def test_a_stack_is_started_asked_and_stopped(installed: Installed) -> None:
    installed.triptych("up")
    processes = json.loads(installed.triptych("status", "--json"))["processes"]
    assert {"kafka", "postgres", "executor", "planner", "critic", "kb", "crm-api"} <= {
        each["name"] for each in processes
    }
    assert {each["state"] for each in processes} == {"ready"}
    installed.triptych("down")
    assert (installed.folder / ".triptych" / "postgres").is_dir()


def test_a_first_configuration_is_written(installed: Installed) -> None:
    written = installed.triptych("init", "--dir", "mine").splitlines()
    assert "mine/triptych.toml" in written
    assert all((installed.folder / file).is_file() for file in written)
    checked = installed.triptych("playbook", "check", "playbooks/greet.yaml", within="mine")
    assert "is good" in checked


def test_the_demo_is_written_to_be_changed(installed: Installed) -> None:
    written = installed.triptych("init", "--demo", "--dir", "demo").splitlines()
    assert {"demo/triptych.toml", "demo/tickets.jsonl", "demo/playbooks/support-ticket.yaml"} <= set(written)
    listed = json.loads(installed.triptych("tools", "ls", "--config", "triptych.toml", "--json", within="demo"))
    assert {each["tool"] for each in listed if each["problem"] is None} >= {"kb", "helpdesk", "crm", "calendar"}
