"""The client of the nemesis outlives what its Kafka client does to it."""

from __future__ import annotations

import asyncio

import pytest

from triptych_chaos.client import within


async def test_what_is_cancelled_from_within_is_an_error_and_no_cancellation() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(ConnectionAbortedError):
        await within(10.0, cancelled())


async def test_what_does_not_end_when_it_is_cancelled_is_left_alone() -> None:
    released = asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(TimeoutError):
        await within(0.01, stubborn())
    released.set()


async def test_what_is_answered_in_time_is_the_answer() -> None:
    async def answer() -> int:
        return 42

    assert await within(10.0, answer()) == 42
