"""More tasks than fit: memory stays bounded, the group stays together, no tenant starves and order holds.

TRIPTYCH_TEST_OVERLOAD=50000 publishes so many; the figures are printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiokafka
import asyncpg
import httpx
import psutil
import pytest

CONFIG = Path(__file__).parents[2] / "bench" / "triptych.toml"
TASKS = int(os.environ.get("TRIPTYCH_TEST_OVERLOAD", "2000"))
WITHIN_S = 240 + TASKS / 20
WINDOW = min(2_000, TASKS // 10)
"""So many runs may be active: what the test publishes is ten times as much at least."""
MAX_GROWTH_MB = 150
"""Of the executor, from idle. Fifty thousand runs held in memory would be several times as much."""
SMALL = ("ant", "bee", "cat")
"""Tenants that publish ten tasks each while the flood waits."""
PLAYBOOK = """
name: one-step
goal: One step that does nothing.
input: {}
tools: [echo.echo]
plan: {pattern: fixed, steps: [{id: a, operation: echo.echo, arguments: {value: 1}}]}
"""
LIVES = """
    select r.run_id, r.partition, r.tenant, r.status, r.started_at as admitted_at,
           coalesce(s.at, r.started_at) as started_at, r.finished_at as ended_at
    from executor.runs r left join executor.journal s on s.run_id = r.run_id and s.seq = 2 and s.type = 'RunStarted'
    order by coalesce(s.at, r.started_at), r.started_at
"""


def triptych(*arguments: str, **environment: str) -> None:
    command = Path(sys.executable).with_name("triptych")
    done = subprocess.run(
        [command, *arguments], capture_output=True, text=True, timeout=180, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    playbooks, data = tmp_path / "playbooks", tmp_path / "data"
    playbooks.mkdir()
    (playbooks / "one-step.yaml").write_text(PLAYBOOK)
    where = ("--data", str(data), "--config", str(CONFIG), "--playbooks", str(playbooks))
    triptych("up", *where, TRIPTYCH_MAX_ACTIVE_RUNS=str(WINDOW))
    try:
        yield json.loads((data / "stack.json").read_text())
    finally:
        triptych("down", "--data", str(data))


async def publish(stack: dict[str, Any], tenant: str, count: int) -> None:
    async with aiokafka.AIOKafkaProducer(bootstrap_servers=stack["kafka"]) as producer:
        for number in range(count):
            task = {"task_id": f"{tenant}-{number}", "tenant": tenant, "playbook": "one-step", "input": {}}
            await producer.send(f"{stack['topic_prefix']}.tasks", json.dumps(task).encode())
        await producer.flush()


async def counters(executor: dict[str, Any]) -> dict[str, int]:
    async with httpx.AsyncClient() as http:
        return (await http.get(executor["health_url"].replace("ready", "live"))).json()["counters"]


def resident_mb(executor: dict[str, Any]) -> float:
    return psutil.Process(executor["pid"]).memory_info().rss / 1_048_576


@pytest.mark.timeout(WITHIN_S + 200)
async def test_more_tasks_than_fit_are_all_served_fairly_in_order_and_in_bounded_memory(
    stack: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (executor,) = [each for each in stack["services"] if each["name"] == "executor"]
    database = await asyncpg.connect(stack["postgres"])
    epochs = await database.fetchval("select array_agg(epoch order by partition) from executor.partitions")
    idle_mb = most_mb = resident_mb(executor)
    began = time.monotonic()
    await publish(stack, "flood", TASKS)
    for tenant in SMALL:
        await publish(stack, tenant, 10)
    most_queued = ended = 0
    while ended < TASKS + 10 * len(SMALL):
        assert time.monotonic() - began < WITHIN_S, f"{ended} of {TASKS} runs have ended"
        await asyncio.sleep(0.5)
        most_mb = max(most_mb, resident_mb(executor))
        most_queued = max(most_queued, await database.fetchval("select count(*) from executor.queue"))
        ended = await database.fetchval("select count(*) from executor.runs where finished_at is not null")
    lives = await database.fetch(LIVES)
    claims = await database.fetchval("select array_agg(epoch order by partition) from executor.partitions")
    await database.close()

    flood = [life for life in lives if life["tenant"] == "flood"]
    for partition in {life["partition"] for life in flood}:
        admitted = [life["admitted_at"] for life in flood if life["partition"] == partition]
        assert admitted == sorted(admitted), "a younger task of the tenant was served before an older one"
    last = {tenant: _served(lives, tenant) for tenant in SMALL}
    seconds = time.monotonic() - began
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(lives)} tasks together, window {WINDOW}: all ended after {seconds:.0f} s. At most {most_queued} queued."
            f" Executor {idle_mb:.0f} MB idle and {most_mb:.0f} MB at most."
            f" Runs started while a small tenant waited: {max(last.values())} at most\n"
        )
    assert {life["status"] for life in lives} == {"succeeded"}
    assert most_queued > 0
    assert most_at_once(lives) <= WINDOW
    assert max(last.values()) <= 2 * WINDOW, "a small tenant had to wait for the flood"
    assert most_mb - idle_mb < MAX_GROWTH_MB
    assert claims == epochs, "partitions changed hands"
    assert (await counters(executor)).get("fenced", 0) == 0


def _served(lives: list[asyncpg.Record], tenant: str) -> int:
    """Return the most runs that started between the admission and the start of any run of this tenant."""
    starts = [life["started_at"] for life in lives]
    own = [life for life in lives if life["tenant"] == tenant]
    return max(sum(life["admitted_at"] < at < life["started_at"] for at in starts) for life in own)


def most_at_once(lives: list[asyncpg.Record]) -> int:
    """Return the largest number of runs that were active at one moment."""
    moves = sorted([(life["started_at"], 1) for life in lives] + [(life["ended_at"], -1) for life in lives])
    active = most = 0
    for _, move in moves:  # an end comes before a start at the same moment
        active += move
        most = max(most, active)
    return most
