"""What an earlier version has stored is the same after the migrations: journals, projections and unsent messages."""

from __future__ import annotations

import base64
import json
import shutil
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import psycopg

import triptych.executor
from triptych.executor.store import ExecutorStore
from triptych.kernel.kafka.bus import Outgoing
from triptych.kernel.postgres import database as db
from triptych.kernel.postgres.migrate import Schema, prepare
from triptych.kernel.postgres.outbox import MessageKey
from triptych.kernel.process.log import configure_logging
from triptych.schemas import Playbook, codec

MIGRATIONS = Path(triptych.executor.__file__).with_name("migrations")
RECORDED = Path(__file__).parents[1] / "recorded"
LAST_WITH_A_ROW_FOR_EACH_EVENT = "0011"
COLUMNS = (
    "run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message, "
    "revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at, parent_run_id"
)


def recorded(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(RECORDED.glob(f"*/{name}")) for line in path.read_bytes().splitlines()]


JOURNALS = {UUID(row["run"]["run_id"]): row for row in recorded("journals.jsonl")}
PLAYBOOKS = [codec.read(Playbook, row["definition"], limits=codec.STORED) for row in recorded("playbooks.jsonl")]
MESSAGES = [
    (UUID(int=7 << 76), 1_000, "p.calls.crm", 3, b"key", [("ce_id", b"1"), ("odd", b"\xff\x00")], b'{"n": 1e22}'),
    (UUID(int=7 << 76), 1_001, "p.outcomes", 0, b"", [], bytes(range(256)) * 300),
    (UUID(int=5 << 76), 0, "p.dead-letters", 1, b"", [("ü", b"")], b""),
]
"""Two of a run, and one of a record."""


def write_older_rows(owner_dsn: str) -> None:
    """Write the rows as the version wrote them whose last migration this was."""
    columns = COLUMNS.split(", ")
    with psycopg.connect(owner_dsn, autocommit=True) as owner:
        owner.execute("set search_path = executor")
        for run_id, row in JOURNALS.items():
            values = [row["run"][name] for name in columns]
            owner.execute(f"insert into runs ({COLUMNS}) values ({', '.join(['%s'] * len(columns))})", values)  # type: ignore[arg-type]  # noqa: S608
            for seq, (event_type, at, data) in enumerate(row["journal"], start=1):
                owner.execute("insert into journal values (%s, %s, %s, %s, %s)", [run_id, seq, event_type, at, data])
        first = next(iter(JOURNALS))
        owner.execute(
            "insert into runs (select (json_populate_record(r, %s)).* from runs r where run_id = %s)",
            [json.dumps({"run_id": str(MESSAGES[0][0])}), first],
        )
        for run_id, position, topic, target, key, headers, value in MESSAGES:
            encoded = json.dumps([[name, base64.b64encode(content).decode()] for name, content in headers])
            owner.execute(
                "insert into outbox values (%s, %s, 2, %s, %s, %s, %s, %s)",
                [run_id, position, target, topic, key, encoded, value],
            )


async def test_journals_and_unsent_messages_are_the_same_in_rows_for_each_commit(database: Any, tmp_path: Path) -> None:
    older = tmp_path / "migrations"
    older.mkdir()
    for file in MIGRATIONS.glob("*.sql"):
        if file.name[:4] <= LAST_WITH_A_ROW_FOR_EACH_EVENT:
            shutil.copy(file, older)
    prepare(database.owner_dsn, database.prefix, [Schema("executor", "secret", (older,))], "secret")
    write_older_rows(database.owner_dsn)
    prepared = prepare(database.owner_dsn, database.prefix, [Schema("executor", "secret", (MIGRATIONS,))], "secret")
    async with await db.connect(prepared.services["executor"], "test") as pool:
        await check_journals(pool)
        store = ExecutorStore(pool, configure_logging("error", "console"))
        await store.deploy(PLAYBOOKS)
        runs = await store.load(list(JOURNALS))
        assert {run_id: run.seq for run_id, run in runs.items()} == {
            run_id: len(row["journal"]) for run_id, row in JOURNALS.items()
        }
        assert {run_id: run.public_status.value for run_id, run in runs.items()} == {
            run_id: row["run"]["status"] for run_id, row in JOURNALS.items()
        }
        rows = await store.left_behind([0, 1, 2])
        messages = sorted((message for row in rows for message in row.messages), key=lambda each: each.key)
        assert [(each.key, each.partition, each.outgoing) for each in messages] == sorted(
            (MessageKey(run_id, position), 2, Outgoing(topic, target, key, headers, value))
            for run_id, position, topic, target, key, headers, value in MESSAGES
        )
        await store.forget([row.key for row in rows])
        assert await store.left_behind([2]) == []


async def check_journals(pool: asyncpg.Pool) -> None:
    """Compare the view with what was written, and the number of rows with that of commits."""
    for run_id, row in JOURNALS.items():
        events = await pool.fetch("select seq, type, at, data from journal where run_id = $1 order by seq", run_id)
        assert [(each["seq"], each["type"], each["at"], json.loads(each["data"])) for each in events] == [
            (seq, event_type, datetime.fromisoformat(at), json.loads(data))
            for seq, (event_type, at, data) in enumerate(row["journal"], start=1)
        ]
        moments = [datetime.fromisoformat(at) for _, at, _ in row["journal"]]
        commits = 1 + sum(later - earlier != timedelta() for earlier, later in pairwise(moments))
        assert await pool.fetchval("select count(*) from journal_commits where run_id = $1", run_id) == commits
        assert await pool.fetchval("select seq from runs where run_id = $1", run_id) == len(events)
