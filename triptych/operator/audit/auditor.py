"""The audit as a whole: batch after batch of runs, then what belongs to no run.

A batch is read from one snapshot and forgotten before the next. So a large database needs no more memory than a small
one, and no snapshot is kept for a long time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from operator import itemgetter
from uuid import UUID

import asyncpg

from triptych.executor.events import PlaybookLookup
from triptych.kernel.postgres.database import Queries
from triptych.kernel.postgres.outbox import unpack
from triptych.operator.audit.problem import Check, Problem
from triptych.operator.audit.run import Recorded, problems_of
from triptych.schemas import Playbook, codec

BATCH_RUNS = 200
GRACE = timedelta(seconds=60)
"""What is on its way counts as left behind only after this long."""

_BEFORE_ALL = UUID(int=0)
_ORPHANS = ("orphan_journals", "orphan_tasks", "runs_without_task", "orphan_steps", "orphan_timers")


@dataclass(slots=True)
class AuditCounts:
    """How much was looked at."""

    runs: int = 0
    events: int = 0
    steps: int = 0
    worker_schemas: int = 0


@dataclass(slots=True)
class Audit:
    """The result of an audit."""

    checked: AuditCounts = field(default_factory=AuditCounts)
    problems: list[Problem] = field(default_factory=list)


async def audit(connection: asyncpg.Connection, progress: Callable[[int, int], None]) -> Audit:
    """Check the whole database; `progress` is told how many runs of how many are done."""
    queries = Queries.load("triptych.operator.audit", "audit.sql")
    found = Audit()
    rows = await connection.fetch(queries["playbooks"])
    playbooks = PlaybookLookup(tuple(codec.read(Playbook, row["definition"], limits=codec.STORED) for row in rows))
    total = await connection.fetchval(queries["count"])
    after: UUID | None = _BEFORE_ALL
    while after is not None:
        progress(found.checked.runs, total)
        after = await _check_batch(connection, queries, playbooks, after, found)
    await _check_the_rest(connection, queries, found)
    return found


async def _check_batch(
    connection: asyncpg.Connection, queries: Queries, playbooks: PlaybookLookup, after: UUID, found: Audit
) -> UUID | None:
    """Check the next runs. Return the last of them, or None when no run is left."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        runs = await connection.fetch(queries["runs"], after, BATCH_RUNS)
        run_ids = [run["run_id"] for run in runs]
        journals = _by_run(await connection.fetch(queries["journal"], run_ids))
        steps = _by_run(await connection.fetch(queries["steps"], run_ids))
        timers = {row["run_id"]: row["due_at"] for row in await connection.fetch(queries["timers"], run_ids)}
        used = _business_keys(runs, journals)
        columns = [tenant for tenant, _ in used], [key for _, key in used]
        known = {tuple(row) for row in await connection.fetch(queries["known_keys"], *columns)} if used else set()
    for at, run in used.items():
        if at not in known:
            message = f"it made a call under business key {at[1]}, which no run has"
            found.problems.append(Problem.of(Check.KEYS, message, run["run_id"], run["task_id"]))
    for run in runs:
        run_id = run["run_id"]
        recorded = Recorded(run, journals.get(run_id, []), steps.get(run_id, []), timers.get(run_id))
        found.problems.extend(problems_of(recorded, playbooks))
        found.checked.runs += 1
        found.checked.events += len(recorded.journal)
        found.checked.steps += len(recorded.steps)
    return run_ids[-1] if run_ids else None


def _business_keys(
    runs: list[asyncpg.Record], journals: dict[UUID, list[asyncpg.Record]]
) -> dict[tuple[str, str], asyncpg.Record]:
    """Find the tenants and keys under which these runs made calls, and which of them did."""
    return {
        (run["tenant"], codec.decode(row["data"], limits=codec.STORED)["business_key"]): run
        for run in runs
        for row in journals.get(run["run_id"], [])
        if row["type"] == "CallRequested" and '"business_key"' in row["data"]
    }


async def _check_the_rest(connection: asyncpg.Connection, queries: Queries, found: Audit) -> None:
    for name in _ORPHANS:
        _collect(found, Check.ORPHAN, await connection.fetch(queries[name]))
    _collect(found, Check.QUEUE, await connection.fetch(queries["queue"]))
    _collect(found, Check.CHILDREN, await connection.fetch(queries["unasked_children"]))
    _collect(found, Check.CHILDREN, await connection.fetch(queries["left_children"], GRACE))
    await _check_outbox(connection, queries, found)
    _collect(found, Check.KEYS, await connection.fetch(queries["stray_keys"]))
    for schema in await connection.fetch(queries["worker_schemas"]):
        name = '"' + schema["name"].replace('"', '""') + '"'

        def of_schema(query: str, name: str = name) -> str:
            return queries[query].replace("{schema}", name)

        _collect(found, Check.ORPHAN, await connection.fetch(of_schema("orphan_jobs")))
        _collect(found, Check.JOBS, await connection.fetch(of_schema("old_jobs"), GRACE))
        _collect(found, Check.JOBS, await connection.fetch(of_schema("old_answers"), GRACE))
        if schema["has_effects"]:
            _collect(found, Check.EFFECTS, await connection.fetch(of_schema("stray_receipts")))
        found.checked.worker_schemas += 1


async def _check_outbox(connection: asyncpg.Connection, queries: Queries, found: Audit) -> None:
    """Find messages that Kafka should have had long ago, by their runs."""
    topics: dict[UUID, list[str]] = {}
    for row in await connection.fetch(queries["old_outbox"], GRACE):
        for message in unpack(row["messages"], row["partition"]):
            topics.setdefault(message.key.run_id, []).append(message.outgoing.topic)
    if topics:
        known = await connection.fetch(queries["task_ids"], list(topics))
        task_ids: dict[UUID, str] = {row["run_id"]: row["task_id"] for row in known}
        for run_id, unsent in topics.items():
            text = f"{len(unsent)} messages were never acknowledged, the first for {unsent[0]}"
            found.problems.append(Problem.of(Check.OUTBOX, text, run_id, task_ids.get(run_id)))


def _collect(found: Audit, check: Check, rows: Iterable[asyncpg.Record]) -> None:
    found.problems.extend(Problem.of(check, row["message"], row["run_id"], row["task_id"]) for row in rows)


def _by_run(rows: Iterable[asyncpg.Record]) -> dict[UUID, list[asyncpg.Record]]:
    return {run_id: list(group) for run_id, group in groupby(rows, key=itemgetter("run_id"))}
