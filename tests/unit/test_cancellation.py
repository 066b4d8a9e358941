"""A cancellation that nobody asked for is a lost connection; one that somebody asked for ends the task."""

from __future__ import annotations

import asyncio

import pytest

from triptych.kernel.concurrency.cancellation import foreign_cancellation


async def wait_for_ever() -> None:
    with foreign_cancellation():
        await asyncio.Event().wait()


async def wait_for_what_somebody_cancels() -> None:
    inner = asyncio.ensure_future(asyncio.Event().wait())
    asyncio.get_running_loop().call_soon(inner.cancel)
    with foreign_cancellation():
        await inner


async def test_a_task_that_waits_for_what_a_library_cancels_hears_of_it():
    with pytest.raises(ConnectionAbortedError):
        await wait_for_what_somebody_cancels()


async def test_a_task_that_is_told_to_end_ends():
    task = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_a_time_limit_around_it_is_still_a_time_limit():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await wait_for_ever()
