"""Fail points: off unless two settings agree, armed by a file, and never struck twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from triptych.kernel import failpoints
from triptych.kernel.failpoints import Action, BadOrderError, FailPoints
from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.process.settings import ServiceSettings

POSTGRES = "postgresql://role:password@localhost/database"


def test_a_service_with_fail_points_that_nobody_allowed_does_not_start(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "triptych.planner"],
        env={"TRIPTYCH_POSTGRES": POSTGRES, "TRIPTYCH_FAILPOINTS": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "TRIPTYCH_FAILPOINTS: " in ended.stderr
    assert "TRIPTYCH_ALLOW_FAILPOINTS=i-know" in ended.stderr


def test_the_permission_alone_turns_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_POSTGRES", POSTGRES)
    monkeypatch.setenv("TRIPTYCH_ALLOW_FAILPOINTS", "i-know")
    assert ServiceSettings().failpoints is None


@pytest.mark.parametrize("permission", ["yes", "1", "I-KNOW"])
def test_no_other_word_allows_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, permission: str) -> None:
    monkeypatch.setenv("TRIPTYCH_POSTGRES", POSTGRES)
    monkeypatch.setenv("TRIPTYCH_FAILPOINTS", str(tmp_path))
    monkeypatch.setenv("TRIPTYCH_ALLOW_FAILPOINTS", permission)
    with pytest.raises(ValidationError):
        ServiceSettings()


def test_a_point_strikes_at_the_hit_that_its_file_names_and_only_once(tmp_path: Path) -> None:
    points = FailPoints(tmp_path)
    (tmp_path / "decider.before_commit").write_text("kill:3\n")
    assert [points.due("decider.before_commit") for _ in range(5)] == [None, None, Action.KILL, None, None]
    assert (tmp_path / failpoints.STRUCK / "decider.before_commit").exists()


def test_hits_count_from_the_moment_it_is_armed(tmp_path: Path) -> None:
    points = FailPoints(tmp_path)
    assert points.due("worker.before_settle") is None
    (tmp_path / "worker.before_settle").write_text("cut:1")
    assert points.due("worker.before_settle") is Action.CUT


def test_the_clock_of_a_process_is_off_by_what_its_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_enabled", None)
    monkeypatch.setattr(failpoints, "clock_error", timedelta())
    failpoints.enable(tmp_path)
    assert utc_now() - datetime.now(UTC) < timedelta(seconds=10)
    (tmp_path / failpoints.CLOCK).write_text("-180")
    failpoints.enable(tmp_path)
    assert timedelta(seconds=170) < datetime.now(UTC) - utc_now() < timedelta(seconds=190)


def test_a_file_that_orders_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "worker.before_settle").write_text("kill")
    with pytest.raises(BadOrderError, match="kill:N, stop:N or cut:N"):
        FailPoints(tmp_path).due("worker.before_settle")


def test_a_cut_is_what_a_driver_raises() -> None:
    with pytest.raises(ConnectionResetError, match=r"publisher\.after"):
        failpoints.strike("publisher.after", Action.CUT)


def test_whoever_is_stopped_goes_on_where_it_stood() -> None:
    orders = "from triptych.kernel import failpoints as f; f.strike('decider.before_commit', f.Action.STOP); print('went on')"
    with subprocess.Popen([sys.executable, "-c", orders], stdout=subprocess.PIPE, text=True) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=30)[0] == "went on\n"
