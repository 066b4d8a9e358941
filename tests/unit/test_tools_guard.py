"""What stands between a call and its upstream: each part refuses before anything is done, and says so."""

from __future__ import annotations

import asyncio
import json

import pytest

from triptych.kernel.errors import ConfigurationError
from triptych.schemas import ErrorCode, Result
from triptych.schemas.task import BreakerMode
from triptych.tools import Effect, Guard, OperationGuard, Tool, ToolFailure
from triptych.tools.guard.breaker import Breaker, BreakerOpenError
from triptych.tools.guard.protection import Protection
from triptych.tools.sdk.guard import GUARD, BreakerPolicy, Rate

FAILED = Result.failed(ErrorCode.UNAVAILABLE, "gone")


def protected(**guard: object) -> Protection:
    tool = Tool("desk", breaker=BreakerPolicy(failures=1, open_ms=60_000), guard=Guard.model_validate(guard))

    @tool.operation(effect=Effect.READ)
    async def look() -> str:
        """Looks."""
        return ""

    @tool.operation(effect=Effect.READ)
    async def find() -> str:
        """Finds."""
        return ""

    return Protection.of(tool)


async def through(protection: Protection, operation: str = "desk.look", result: Result | None = None) -> None:
    async with protection.admit(operation) as permit:
        permit.result = result or Result.ok(1)


async def test_a_bulkhead_that_is_full_refuses_and_lets_others_through():
    protection = protected(concurrency=2, operations={"look": {"concurrency": 1}})
    async with protection.admit("desk.look"):
        with pytest.raises(ToolFailure) as caught:
            await through(protection)
        assert (caught.value.details, caught.value.undone) == ({"postponed": "bulkhead"}, True)
        async with protection.admit("desk.find"):
            with pytest.raises(ToolFailure, match="the upstream has 2 calls"):
                await through(protection, "desk.find")
    await through(protection)


async def test_a_breaker_counts_what_came_back_and_nothing_else():
    protection = protected()
    with pytest.raises(asyncio.CancelledError):
        async with protection.admit("desk.look"):
            raise asyncio.CancelledError
    await through(protection, result=FAILED)
    with pytest.raises(ToolFailure, match="open after repeated failures") as caught:
        await through(protection)
    assert caught.value.details == {"postponed": "breaker"}
    await through(protection, "desk.find")


async def test_a_person_holds_breakers_open_or_closed_and_lets_them_go():
    protection = protected()
    protection.hold(BreakerMode.OPEN, None, "user:ana")
    with pytest.raises(ToolFailure, match="held open by user:ana"):
        await through(protection, "desk.find")
    protection.hold(BreakerMode.CLOSED, "desk.look", "user:ana")
    for _ in range(3):
        await through(protection, result=FAILED)
    protection.hold(BreakerMode.AUTO, None, "user:ana")
    await through(protection, result=FAILED)
    assert [breaker.state for breaker in protection.breakers.values()] == ["open", "closed"]


def test_what_was_admitted_while_it_was_held_says_nothing_after_it_was_let_go():
    breaker = Breaker(BreakerPolicy(failures=1, open_ms=60_000))
    breaker.force(BreakerMode.CLOSED, "user:ana")
    admission = breaker.admit()
    breaker.force(BreakerMode.AUTO, "user:ana")
    breaker.record(admission, failed=True)
    assert breaker.state == "closed"
    breaker.record(breaker.admit(), failed=True)
    with pytest.raises(BreakerOpenError):
        breaker.admit()


@pytest.mark.parametrize("text", ["1/s", "10/min", "97/h", "1000/day"])
def test_burst_and_trickle_together_stay_within_the_rate_in_any_span(text: str):
    rate = Rate.of(text)
    within_a_span = rate.burst + int((rate.per_ms - 1e-6) // rate.interval_ms)
    assert within_a_span <= rate.calls


@pytest.mark.parametrize("text", ["", "10", "0/s", "10/week", "-1/s"])
def test_what_is_no_rate_is_refused(text: str):
    with pytest.raises(ValueError, match=r"rate|pattern"):
        Guard(rate=text)


def test_the_table_of_a_tool_goes_before_what_its_adapter_says(monkeypatch: pytest.MonkeyPatch):
    written = Guard(rate="1/s", concurrency=4, operations={"look": OperationGuard(rate="9/s")})
    monkeypatch.setenv(GUARD, json.dumps({"rate": "5/s"}))
    guard = written.overridden()
    assert (guard.rate, guard.concurrency, guard.of("desk.look").rate) == ("5/s", 4, "9/s")
    monkeypatch.setenv(GUARD, json.dumps({"rte": "5/s"}))
    with pytest.raises(ConfigurationError, match=r"guard\.rte"):
        written.overridden()
