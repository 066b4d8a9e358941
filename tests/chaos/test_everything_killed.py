"""Kill -9 of all processes together, servers and services, with runs in flight; then `up` on the same directory."""

from __future__ import annotations

import asyncio
from collections import Counter

import psutil
from support_desk import WRITES_PER_RUN, SupportDesk, outcomes_of, submit_tickets

from triptych.client import Client

RUNS = 60
IN_FLIGHT = 30
"""At the moment of the crash so many runs, at least, are in the middle of a step."""


def kill_everything(processes: list[psutil.Process]) -> None:
    """SIGKILL them, so fast that none can start another again or say goodbye."""
    for process in processes:
        process.suspend()
    for process in processes:
        process.kill()
    _gone, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


async def test_runs_in_flight_carry_on_after_kill_9_of_everything_and_each_ends_once(
    desk: SupportDesk, eventually
) -> None:
    processes, before = desk.processes(), desk.described()
    async with Client.from_stack(desk.folder) as client:
        task_ids = await submit_tickets(client, "crash", RUNS)

        async def enough_in_flight() -> bool:
            return await desk.in_flight(task_ids) >= IN_FLIGHT

        await eventually(enough_in_flight)
        kill_everything(processes)
        assert desk.described() == before, "the supervisor is dead too"

    await asyncio.to_thread(desk.up)

    after = desk.described()
    assert after["kafka"] == before["kafka"], "addresses are kept where they are free"
    assert not {each["pid"] for each in before["services"]} & {each["pid"] for each in after["services"]}
    async with Client.from_stack(desk.folder) as client:
        finals = [outcome for outcome in await outcomes_of(client, task_ids, within_s=240) if outcome.final]
    assert {outcome.task_id for outcome in finals} == set(task_ids)
    assert len({(outcome.task_id, outcome.run_id) for outcome in finals}) == RUNS, "a task became two runs"
    assert Counter(outcome.status.value for outcome in finals).keys() == {"succeeded"}
    assert await desk.left_behind() == {}
    assert desk.writes(task_ids) == RUNS * WRITES_PER_RUN, "a write is missing"
