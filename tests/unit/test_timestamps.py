"""Time stamps: nothing until they are switched on, then one line for each place."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych.kernel import timestamps
from triptych.kernel.process.settings import ServiceSettings
from triptych_bench.waterfall import read_marks


def test_the_setting_names_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIPTYCH_POSTGRES", "postgresql://role:password@localhost/database")
    assert ServiceSettings().timestamps is None
    monkeypatch.setenv("TRIPTYCH_TIMESTAMPS", str(tmp_path))
    assert ServiceSettings().timestamps == tmp_path


def test_places_are_written_in_the_order_in_which_they_were_passed(tmp_path: Path) -> None:
    file = tmp_path / "made" / "executor-1"
    timestamps.mark("before")
    timestamps.enable(file)
    timestamps.mark("decider.polled")
    timestamps.mark("decider.read")
    timestamps.close()
    timestamps.mark("after")
    first, second = read_marks(file)
    assert (first.place, second.place) == ("decider.polled", "decider.read")
    assert first.at_ns <= second.at_ns
