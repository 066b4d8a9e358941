"""Two minutes of the nemesis: every kind of fault, overlapping, under load, checked from outside.

TRIPTYCH_TEST_CHAOS_SEED and TRIPTYCH_TEST_CHAOS_MINUTES choose others; `make chaos` is the same for longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("TRIPTYCH_TEST_CHAOS_SEED", "2026"))
MINUTES = float(os.environ.get("TRIPTYCH_TEST_CHAOS_MINUTES", "2"))
UNTIL_CHECKED_S = 1_500


@pytest.mark.timeout(MINUTES * 60 + UNTIL_CHECKED_S + 60)
def test_whatever_strikes_the_stack_every_task_ends_once_and_every_write_takes_effect_once(tmp_path: Path) -> None:
    arguments = ("--minutes", str(MINUTES), "--seed", str(SEED), "--out", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "triptych_chaos", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "chaos")},
        capture_output=True,
        text=True,
        timeout=MINUTES * 60 + UNTIL_CHECKED_S,
        check=False,
    )
    reports = list(tmp_path.glob("*/report.json"))
    assert reports, done.stdout + done.stderr
    report = json.loads(reports[0].read_text("utf-8"))
    assert report["violations"] == [], done.stdout
    assert done.returncode == 0
    assert [kind for kind, count in report["faults"]["by_kind"].items() if not count] == []
    assert report["tasks"]["ended_by_status"] == {"succeeded": report["tasks"]["published"]}
    assert report["models"]["asked"] > report["tasks"]["published"] / 2
    assert report["models"]["from_cache"] > 0
    assert report["deliveries"]["accepted"] > report["tasks"]["published"] / 5
    assert report["deliveries"]["waited_for_at_faults"]["callback-kill"] > 0
