"""Kill -9 every service in turn while runs are in flight: each run ends once, and no write happens twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from triptych.client import Client
from triptych.schemas import Outcome

RUNS = 50
VICTIMS = ("executor", "planner", "critic", "kb", "helpdesk", "model")
TICKET = {
    "customer": "Ana",
    "subject": "How do I rotate an API key?",
    "body": "We have to rotate the API key of our integration without downtime. How do we do that?",
}


def triptych(*arguments: str) -> str:
    """Run the command line, as a user does."""
    command = Path(sys.executable).with_name("triptych")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The whole embedded stack, started and stopped from the command line."""
    folder = tmp_path_factory.mktemp("stack")
    triptych("up", "--data", str(folder))
    yield folder
    triptych("down", "--data", str(folder))


@pytest.fixture(scope="module")
async def client(stack: Path) -> AsyncIterator[Client]:
    async with Client.from_stack(stack) as client:
        yield client


def described(stack: Path) -> dict[str, Any]:
    return json.loads((stack / "stack.json").read_text())


def pid_of(stack: Path, name: str) -> int:
    return next(service["pid"] for service in described(stack)["services"] if service["name"] == name)


async def outcomes_of(client: Client, task_ids: set[str], within_s: float) -> list[Outcome]:
    """Every outcome of these tasks, until each has a final one."""
    seen: list[Outcome] = []
    async with asyncio.timeout(within_s):
        async for outcome in client.follow(from_start=True):
            if outcome.task_id in task_ids:
                seen.append(outcome)
                if {o.task_id for o in seen if o.final} == task_ids:
                    return seen
    raise AssertionError("the topic of outcomes has no end")


@pytest.mark.parametrize("victim", VICTIMS)
async def test_every_run_ends_once_when_a_service_is_killed(
    stack: Path, client: Client, victim: str, eventually
) -> None:
    task_ids = [f"{victim}-{number}" for number in range(RUNS)]
    for number, task_id in enumerate(task_ids):
        await client.submit(
            playbook="support-ticket", task_id=task_id, input={**TICKET, "ticket_id": f"T-{victim}-{number}"}
        )
    db = await asyncpg.connect(described(stack)["postgres"])

    async def in_flight() -> bool:
        moving = await db.fetchval(
            "select count(*) from executor.steps join executor.runs using (run_id) "
            "where task_id = any($1) and steps.status = 'running'",
            task_ids,
        )
        return bool(moving)

    await eventually(in_flight)
    killed = pid_of(stack, victim)
    os.kill(killed, signal.SIGKILL)

    outcomes = await outcomes_of(client, set(task_ids), within_s=120)
    finals = Counter(outcome.task_id for outcome in outcomes if outcome.final)
    assert len(finals) == RUNS
    ids = {(outcome.task_id, outcome.run_id) for outcome in outcomes}
    assert len(ids) == RUNS, "a task became two runs"
    assert {outcome.status for outcome in outcomes if outcome.final} == {"succeeded"}
    assert pid_of(stack, victim) != killed

    left = await db.fetchrow(
        "select (select count(*) from executor.timers) as timers, "
        "(select count(*) from executor.runs where finished_at is null) as unfinished"
    )
    assert dict(left) == {"timers": 0, "unfinished": 0}
    await db.close()


def test_no_write_took_effect_twice(stack: Path) -> None:
    effects = helpdesk_effects(stack)
    keys = Counter(effect["key"] for effect in effects)
    assert max(keys.values()) == 1
    written = Counter((effect["ticket"], effect["operation"]) for effect in effects)
    assert max(written.values()) == 1
    assert len(written) == len(VICTIMS) * RUNS * 3, "each run acknowledges, replies and tags once"


def helpdesk_effects(stack: Path) -> list[dict[str, Any]]:
    """The helpdesk's own record of what took effect: the outside view."""
    port = json.loads((stack / "ports.json").read_text())["helpdesk-api"]
    token = (stack / "secrets" / "helpdesk-token").read_text().strip()
    answer = httpx.get(f"http://127.0.0.1:{port}/ledger", headers={"Authorization": f"Bearer {token}"})
    effects: list[dict[str, Any]] = answer.raise_for_status().json()["effects"]
    return effects
