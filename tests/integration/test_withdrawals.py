"""Calls that wait when their run is over are not made: executor, planner and tool are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from pipeline import COMPACTED, TOPICS, Pipeline, pipeline, playbook
from pydantic import BaseModel

from triptych.schemas import ControlAction, Outcome, OutcomeStatus
from triptych.tools import Effect, Tool

AT_ONCE = 2


class Booked(BaseModel):
    text: str


@dataclass
class Upstream:
    """Remembers what began, and answers when it is told to."""

    begun: list[str] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    def tool(self) -> Tool:
        tool = Tool("lab", concurrency=AT_ONCE)

        @tool.operation(effect=Effect.ONCE, timeout_ms=60_000)
        async def book(text: str) -> Booked:
            """Books something, each time anew."""
            self.begun.append(text)
            await self.may_answer.wait()
            return Booked(text=text)

        return tool


BOOK = playbook(
    "book",
    [{"id": "book", "operation": "lab.book", "arguments": {"text": "${{ input.text }}"}}],
    budgets={"wall_ms": 240_000},
)


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def lab(servers, prefix, database, create_topics, *, tmp_path, upstream) -> AsyncIterator[Pipeline]:
    await create_topics(*TOPICS, "calls.lab")
    await create_topics(*COMPACTED, partitions=1)
    async with pipeline(servers, prefix, database, tmp_path, tool=upstream.tool(), playbooks=[BOOK]) as running:
        yield running


async def test_what_waits_when_its_run_is_cancelled_is_not_made_and_what_is_under_way_is_named_and_told(
    lab: Pipeline, upstream: Upstream, eventually
) -> None:
    texts = [f"b{number}" for number in range(6)]
    for text in texts:
        await lab.client.submit("book", {"text": text}, task_id=text, tenant="acme")

    async def all_wait() -> bool:
        rows = await lab.rows("select count(*) from tool_lab.jobs")
        return rows[0][0] == len(texts) and len(upstream.begun) == AT_ONCE

    await eventually(all_wait)
    rows = await lab.rows("select task_id, run_id, partition from executor.runs")
    runs = {row["task_id"]: row["run_id"] for row in rows}
    for row in rows:
        await lab.client.control(row["run_id"], row["partition"], ControlAction.CANCEL, principal="user:ana")
    async with asyncio.timeout(200):
        outcomes: dict[str, Outcome] = {
            outcome.task_id: outcome
            for outcome in [await lab.client.wait(text, tenant="acme", final=True) for text in texts]
        }
    assert {outcome.status for outcome in outcomes.values()} == {OutcomeStatus.CANCELLED}
    named = {text: outcome.under_way[0].idempotency_key for text, outcome in outcomes.items()}
    assert named == {text: f"{runs[text]}:book:1" for text in texts}

    async def withdrawn() -> bool:
        rows = await lab.rows("select count(*) from executor.journal where type = 'AnsweredLate'")
        return rows[0][0] == len(texts) - AT_ONCE

    await eventually(withdrawn)
    upstream.may_answer.set()

    async def all_are_told() -> bool:
        rows = await lab.rows("select count(*) from executor.journal where type = 'AnsweredLate'")
        return rows[0][0] == len(texts)

    await eventually(all_are_told)
    assert len(upstream.begun) == AT_ONCE
    for text, outcome in outcomes.items():
        kind, told = (await lab.journal(outcome))[-1]
        assert kind == "AnsweredLate"
        if text in upstream.begun:
            assert told["result"]["data"] == {"text": text}
        else:
            assert told["result"]["error"]["details"] == {"effect": "none", "withdrawn": True}
    assert await lab.problems() == []
