"""Makes a database of a given number of steps: one run as the product writes it, then copies of its rows.

The copies differ in time (half a year), tenant, playbook, status, tool and error. Indexes are there from
the beginning, as in life.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg

import triptych.executor
import triptych.tools
from triptych.executor.store import ExecutorStore
from triptych.kernel.kafka.topic_metadata import ClusterTopics
from triptych.kernel.postgres import database
from triptych.kernel.postgres.age_partitions import AHEAD, make_partitions
from triptych.kernel.postgres.database import Queries
from triptych.kernel.postgres.migrate import WORKER, PreparedDatabase, Schema, prepare
from triptych.kernel.process.log import configure_logging
from triptych.kernel.run_ids import WEEK, derive_run_id
from triptych.schemas import CallRequest
from triptych_bench.size.story import PLAYBOOK, STEPS, Story, answer_to

SPAN = timedelta(weeks=26)
SLICE_RUNS = 20_000
TABLES = ("journal", "runs", "steps", "tasks", "jobs", "effects", "blobs")
_EXECUTOR = Path(triptych.executor.__file__).with_name("migrations")
_EFFECTS = Path(triptych.tools.__file__).with_name("migrations") / "tool"
_TOOL = "tool_echo"


@dataclass(frozen=True, slots=True)
class Filled:
    """A database that is ready to be measured."""

    name: str
    runs: int
    owner_dsn: str
    prepared: PreparedDatabase
    epochs: dict[int, int]

    @property
    def steps(self) -> int:
        return self.runs * STEPS

    @property
    def tool_dsn(self) -> str:
        return self.prepared.services[_TOOL]

    @property
    def executor_dsn(self) -> str:
        return self.prepared.services["executor"]


async def fill(server_dsn: str, name: str, steps: int, progress: Callable[[int], None]) -> Filled:
    """Make the database `name` with so many steps; `progress` is told how many there are."""
    runs = max(1, steps // STEPS)
    owner_dsn = urlunsplit(urlsplit(server_dsn)._replace(path=f"/{name}"))
    schemas = [Schema("executor", "bench", (_EXECUTOR,)), Schema(_TOOL, "bench", (WORKER, _EFFECTS))]
    prepared = prepare(owner_dsn, name, schemas, "bench")
    end = datetime.now(UTC)
    _make_old_partitions(owner_dsn, end)
    epochs, template = await _write_template(prepared.services["executor"])
    connection = await asyncpg.connect(owner_dsn, server_settings={"synchronous_commit": "off", "jit": "off"})
    await _make_templates(connection, template)
    queries = Queries.load("triptych_bench.size", "fill.sql")
    span_ms = [int(at.timestamp() * 1000) for at in (end - SPAN, end)]
    for first in range(0, runs, SLICE_RUNS):
        last = min(first + SLICE_RUNS, runs)
        async with connection.transaction():
            await connection.execute(_with_numbers(queries["pick"], first, last, *span_ms, runs))
            for table in TABLES:
                await connection.execute(queries[table])
        progress(last * STEPS)
    await connection.execute("drop table template_journal, template_run, template_steps, template_job")
    await connection.execute("vacuum (analyze)")
    await connection.execute("checkpoint")
    await connection.close()
    return Filled(name, runs, owner_dsn, prepared, epochs)


def _with_numbers(query: str, *numbers: int) -> str:
    """Put whole numbers in place of $1, $2 and so on: `create table as` takes no parameters."""
    for place, number in reversed(list(enumerate(numbers, start=1))):
        query = query.replace(f"${place}", str(number))
    return query


def _make_old_partitions(owner_dsn: str, now: datetime) -> None:
    """Fill the tables as if the stack had been running all that time."""
    with psycopg.connect(owner_dsn, autocommit=True) as connection:
        begin = now - SPAN
        while begin < now:
            make_partitions(connection, begin)
            begin += AHEAD * WEEK


async def _write_template(dsn: str) -> tuple[dict[int, int], CallRequest]:
    """Write one run with the executor's own code. Return the epoch of a new claim, and one of the run's calls."""
    async with await database.connect(dsn, "bench") as pool:
        store = ExecutorStore(pool, configure_logging("error", "console"))
        await store.deploy([PLAYBOOK])
        (claim,) = await store.claim([0], "bench", ClusterTopics("cluster", {}))
        epochs = {claim.partition: claim.epoch}
        run_id = derive_run_id("acme", "template", int(datetime.now(UTC).timestamp() * 1000))
        story = Story(epochs, {run_id: "template"}, count(1), [])
        now = datetime.now(UTC)
        await store.commit(story.admit(now))
        await store.commit(story.plan(now))
        (request,) = story.requests.values()
        while not story.is_over:
            await store.commit(story.answer(now))
        # What is measured has a claim of its own, and numbers its batches from one again.
        (claim,) = await store.claim([0], "bench", ClusterTopics("cluster", {}))
    return {claim.partition: claim.epoch}, request


async def _make_templates(connection: asyncpg.Connection, request: CallRequest) -> None:
    """Put the rows to copy into temporary tables."""
    run_id = request.run_id
    await connection.execute("create temp table template_journal as select * from executor.journal_commits")
    await connection.execute("create temp table template_run as select * from executor.runs")
    await connection.execute("create temp table template_steps as select * from executor.steps")
    await connection.execute("create temp table template_job (request bytea, answer bytea, traceparent text)")
    job = (request.to_bytes(), answer_to(request).to_bytes(), f"00-{run_id.hex}-{run_id.hex[:16]}-01")
    await connection.execute("insert into template_job values ($1, $2, $3)", *job)
