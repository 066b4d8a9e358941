"""Processes that outlived their stack are found, also those that keep their environment to themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from triptych.embedded.orphans import mark, option, stop_orphans

SLEEP = "import time; print('ready', flush=True); time.sleep(60)"


def started(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, *option(root), "-c", SLEEP]
    process = subprocess.Popen(command, env=mark(root), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_process_of_the_stack_is_stopped_and_one_of_another_stack_is_not(tmp_path) -> None:
    with started(tmp_path / "one") as mine, started(tmp_path / "other") as other:
        assert len(stop_orphans(tmp_path / "one")) == 1
        assert (mine.wait(), other.poll()) == (-15, None)
        other.kill()


def test_a_process_whose_environment_nobody_may_read_is_known_by_its_command_line(tmp_path, monkeypatch) -> None:
    def denied(process: psutil.Process) -> dict[str, str]:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "environ", denied)
    with started(tmp_path / "one") as mine, started(tmp_path / "other") as other:
        assert len(stop_orphans(tmp_path / "one")) == 1
        assert (mine.wait(), other.poll()) == (-15, None)
        other.kill()
