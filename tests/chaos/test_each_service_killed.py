"""Kill -9 every service in turn while runs are in flight: each run ends once, and no write happens twice."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator

import pytest
from support_desk import WRITES_PER_RUN, SupportDesk, outcomes_of, submit_tickets

from triptych.client import Client

RUNS = 50
VICTIMS = ("executor", "planner", "critic", "kb", "helpdesk", "model")


@pytest.fixture(scope="module")
async def client(desk: SupportDesk) -> AsyncIterator[Client]:
    async with Client.from_stack(desk.folder) as client:
        yield client


@pytest.mark.parametrize("victim", VICTIMS)
async def test_every_run_ends_once_when_a_service_is_killed(
    desk: SupportDesk, client: Client, victim: str, eventually
) -> None:
    task_ids = await submit_tickets(client, victim, RUNS)

    async def some_in_flight() -> bool:
        return await desk.in_flight(task_ids) > 0

    await eventually(some_in_flight)
    killed = desk.pid_of(victim)
    os.kill(killed, signal.SIGKILL)

    finals = [outcome for outcome in await outcomes_of(client, task_ids, within_s=120) if outcome.final]
    assert {outcome.task_id for outcome in finals} == set(task_ids)
    assert len({(outcome.task_id, outcome.run_id) for outcome in finals}) == RUNS, "a task became two runs"
    assert {outcome.status for outcome in finals} == {"succeeded"}
    assert desk.pid_of(victim) != killed
    assert await desk.left_behind() == {}
    assert desk.writes(task_ids) == RUNS * WRITES_PER_RUN
