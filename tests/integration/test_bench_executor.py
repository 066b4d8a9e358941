"""The benchmark of the executor alone plays whole runs, and tells what is wrong where it cannot."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from triptych_bench.executor.__main__ import PlayFailedError, play
from triptych_bench.trees import working_tree

PARTS = ["read", "decide and fold", "messages", "envelope", "lines", "pack", "other rows", "statement", "Postgres"]


def options(database: Any, playbook: str) -> dict[str, str]:
    return {"postgres": database.owner_dsn, "playbook": playbook, "in-flight": "2", "turns": "1"}


def test_runs_are_played_to_their_end_and_every_part_is_measured(database: Any) -> None:
    figures = play(working_tree(), options(database, "noop-every-step"))
    assert list(figures) == PARTS
    assert figures["read"] > 0
    with psycopg.connect(database.owner_dsn) as connection:
        ended = connection.execute("select status, count(*) from executor.runs group by status").fetchall()
    assert ended == [("succeeded", 4)]  # two before anything is measured


def test_a_process_that_cannot_play_is_named_with_what_it_said(database: Any) -> None:
    with pytest.raises(PlayFailedError, match=r"(?s)runs could not be played on the code of .*missing\.yaml"):
        play(working_tree(), options(database, "missing"))
