"""Runs workflows of five steps on DBOS: `runs` starts them, `steps` executes what workflows put on the queue."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop
from dbos import DBOS, SetWorkflowID
from hold import STEPS, serve

_QUEUE = "steps"
_POLL_S = 0.01
"""How often a queue and a result are looked at. The default is a second, so a run of five steps would take ten."""


@DBOS.step()
async def step(value: int) -> int:
    return value


@DBOS.workflow()
async def play_in_process() -> list[int]:
    return [await step(1) for _ in range(STEPS)]


@DBOS.workflow()
async def step_elsewhere(value: int) -> int:
    return value


@DBOS.workflow()
async def play_in_other_process() -> list[int]:
    values = []
    for _ in range(STEPS):
        handle = await DBOS.enqueue_workflow_async(_QUEUE, step_elsewhere, 1)
        values.append(await handle.get_result(polling_interval_sec=_POLL_S))
    return values


async def _runs(way: str) -> None:
    workflow: Any = play_in_process if way == "in process" else play_in_other_process

    async def play(key: str) -> object:
        with SetWorkflowID(key):
            return await workflow()

    await serve(play)


async def _steps() -> None:
    await DBOS.register_queue_async(_QUEUE, polling_interval_sec=_POLL_S, on_conflict="always_update")

    async def play(_key: str) -> object:
        raise RuntimeError("this process only executes steps")

    await serve(play)


async def _main(role: str, way: str, number: str, url: str) -> None:
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "application_version": "bench",
            "executor_id": f"{role}-{way}-{number}",
            "console_log_level": "WARNING",
        }
    )
    DBOS.listen_queues([_QUEUE] if role == "steps" else [])
    DBOS.launch()
    await (_steps() if role == "steps" else _runs(way))
    await asyncio.to_thread(DBOS.destroy)


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
