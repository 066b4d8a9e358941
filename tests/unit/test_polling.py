"""Asking an upstream again: with backoff, within caps, and never without end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from triptych.schemas import ErrorCode, Result
from triptych.tools import Effect, Tool, ToolFailure
from triptych.tools.sdk.polling import poll_until
from triptych.tools.testing import call


async def test_it_asks_until_there_is_an_answer_and_waits_longer_each_time_up_to_a_cap(monkeypatch) -> None:
    waits: list[float] = []
    asked = 0

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def ask() -> str | None:
        nonlocal asked
        asked += 1
        return "done" if asked == 10 else None

    # Of this module alone: whatever else runs on the loop of the tests would never sleep again.
    monkeypatch.setattr("triptych.tools.sdk.polling.asyncio", SimpleNamespace(sleep=sleep))
    assert await poll_until(ask, first_ms=1_000, cap_ms=4_000) == "done"
    assert len(waits) == 10
    assert waits[0] <= 1.25
    assert 3 <= waits[-1] <= 5


async def test_it_gives_up_after_as_many_questions_as_it_may_ask() -> None:
    async def ask() -> None:
        return None

    with pytest.raises(ToolFailure) as failed:
        await poll_until(ask, first_ms=1, cap_ms=1, max_polls=3)
    assert failed.value.code is ErrorCode.TIMEOUT


async def test_the_time_limit_of_the_operation_ends_it() -> None:
    tool = Tool("slow")

    @tool.operation(effect=Effect.READ, timeout_ms=50)
    async def film() -> str:
        """A film that is never finished."""

        async def ask() -> str | None:
            return None

        return await poll_until(ask, first_ms=1, cap_ms=5)

    result = await call(tool, "film", {})
    assert result != Result.empty()
    assert result.error is not None
    assert result.error.code is ErrorCode.TIMEOUT
