"""Limits and queues of a real executor, on a real broker and database; the test plays the planner and the tool."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from itertools import groupby, pairwise
from operator import itemgetter

import asyncpg
import pytest
from executor_harness import MIGRATIONS, ExecutorHarness

from triptych.schemas import topics

PLAYBOOK = """
name: {name}
goal: Greet somebody.
input: {{}}
tools: [echo.echo]
plan:
  pattern: fixed
  steps:
    - {{id: say, operation: echo.echo, arguments: {{value: hello}}}}
"""
WINDOW = 100
FLOOD = 2_000
LIVES = """
    select r.run_id, r.partition, r.tenant, r.started_at as admitted_at, started.at as started_at, ended.at as ended_at
    from runs r
    join lateral (
        select min(at) as at from journal j
        where j.run_id = r.run_id and (type = 'RunStarted' or type = 'RunAdmitted' and not (data ->> 'queued')::boolean)
    ) as started on true
    left join journal as ended on ended.run_id = r.run_id and ended.type = 'RunEnded'
    where r.playbook = $1
    order by started.at, r.started_at
"""


@pytest.fixture(scope="module")
async def harness(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[ExecutorHarness]:
    folder = tmp_path_factory.mktemp("admission")
    (folder / "greet.yaml").write_text(PLAYBOOK.format(name="greet"))
    (folder / "single.yaml").write_text(PLAYBOOK.format(name="single") + "limits: {active_runs: 1}\n")
    nouns = [topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS]
    await create_topics(*nouns, "calls.echo")
    dsn = database.prepare({"executor": (MIGRATIONS,)}).services["executor"]
    async with ExecutorHarness(servers.kafka, prefix, dsn, folder, folder / "log") as harness:
        harness.start(max_active_runs=str(WINDOW))
        yield harness
    sys.stdout.write((folder / "log").read_text()[-4000:])  # pytest shows it when a test fails


@pytest.fixture(scope="module")
async def database_of(harness: ExecutorHarness) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(harness.dsn)
    yield connection
    await connection.close()


async def publish(harness: ExecutorHarness, count: int, **fields: object) -> None:
    tasks = ({"playbook": "greet", "task_id": f"{fields}-{number}", "input": {}, **fields} for number in range(count))
    await asyncio.gather(*(harness.send(topics.TASKS, task, number % 2) for number, task in enumerate(tasks)))


async def test_a_tenant_that_floods_does_not_hold_up_another_and_each_is_served_in_order(
    harness: ExecutorHarness, database_of: asyncpg.Connection, eventually
) -> None:
    await publish(harness, FLOOD, tenant="flood")
    await harness.work()
    await publish(harness, 1, tenant="quiet")

    async def done() -> object:
        await harness.work()
        return len(harness.of(topics.OUTCOMES, status="succeeded")) >= FLOOD + 1

    await eventually(done, within_s=200)
    lives = await database_of.fetch(LIVES, "greet")
    assert len(lives) == FLOOD + 1
    (quiet,) = [life for life in lives if life["tenant"] == "quiet"]
    before_it = [life for life in lives if quiet["admitted_at"] < life["started_at"] < quiet["started_at"]]
    assert len(before_it) <= WINDOW
    for _, group in groupby(sorted(lives, key=itemgetter("partition")), itemgetter("partition")):
        flood = [life["admitted_at"] for life in group if life["tenant"] == "flood"]
        assert flood == sorted(flood), "somebody overtook an older task of the same tenant"
    assert most_at_once(lives) <= WINDOW
    assert await database_of.fetchval("select count(*) from queue") == 0


def most_at_once(lives: list[asyncpg.Record]) -> int:
    """The largest number of runs that were active at one moment."""
    moves = sorted([(life["started_at"], 1) for life in lives] + [(life["ended_at"], -1) for life in lives])
    active = most = 0
    for _, move in moves:  # an end comes before a start at the same moment
        active += move
        most = max(most, active)
    return most


async def test_a_queued_run_can_be_seen_and_cancelled(
    harness: ExecutorHarness, database_of: asyncpg.Connection, eventually
) -> None:
    await publish(harness, WINDOW + 2, tenant="waiting")

    async def queued() -> list[asyncpg.Record]:
        rows = await database_of.fetch("select run_id, partition from runs where status = 'queued'")
        return rows if len(rows) == 2 else []

    await eventually(queued)
    first, second = await queued()
    command = {"command_id": "c-q", "run_id": str(first["run_id"]), "action": "cancel", "principal": "user:ana"}
    await harness.send(topics.CONTROL, command, first["partition"])
    await eventually(lambda: harness.of(topics.OUTCOMES, run_id=str(first["run_id"]), status="cancelled"))
    (outcome,) = harness.of(topics.OUTCOMES, run_id=str(first["run_id"]))
    assert (outcome["final"], outcome["usage"]["wall_ms"]) == (True, 0)

    async def done() -> object:
        await harness.work()
        return harness.of(topics.OUTCOMES, run_id=str(second["run_id"]), status="succeeded")

    await eventually(done)


async def test_a_limit_of_a_playbook_holds_at_every_moment_with_two_executors_and_a_crash(
    harness: ExecutorHarness, database_of: asyncpg.Connection, eventually
) -> None:
    first = harness.process
    assert first is not None
    second = harness.start("executor-2")
    await publish(harness, 40, playbook="single", tenant="one")

    async def some(count: int) -> object:
        await harness.work()
        # After a crash an outcome may be published again.
        return len({outcome["task_id"] for outcome in harness.of(topics.OUTCOMES, playbook="single")}) >= count

    await eventually(lambda: some(10))
    first.kill()
    first.wait()
    await eventually(lambda: some(20), within_s=60)
    second.kill()
    second.wait()
    harness.start("executor-1")
    await eventually(lambda: some(40), within_s=60)
    lives = await database_of.fetch(LIVES, "single")
    assert len(lives) == 40
    assert all(before["ended_at"] <= after["started_at"] for before, after in pairwise(lives))
    assert {life["partition"] for life in lives} == {0}


async def test_nothing_is_left_waiting(database_of: asyncpg.Connection) -> None:
    assert await database_of.fetchval("select count(*) from queue") == 0
    assert await database_of.fetchval("select count(*) from runs where finished_at is null") == 0
