"""Triptych for MCP clients: what they are told of a task that they cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from mcp import Client

from triptych.client import JournalEntry, RunNotFoundError, RunRow
from triptych.operator.mcp import task_service as service
from triptych.operator.mcp.server import build
from triptych.operator.mcp.task_service import TaskService
from triptych.schemas import ControlAction

AT = datetime(2026, 1, 2, tzinfo=UTC)
RUN = RunRow(
    UUID(int=1), "acme", "t-1", "ana", "order", "1", 3, "running", None, None, 0, 1, 1, 0, 0, 0, AT, AT, None
)  # fmt: skip


@dataclass
class Stack:
    """Stands in for Kafka and the executor: one run, and how its commands are answered."""

    run: RunRow | None = RUN
    answers: str | None = "RunCancelled"
    commands: list[dict[str, Any]] = field(default_factory=list)

    async def control(self, run_id: UUID, partition: int, action: ControlAction, **command: Any) -> str:
        self.commands.append({"run_id": run_id, "partition": partition, "action": action, **command})
        if self.run is not None and self.answers == "RunCancelled":
            self.run = replace(self.run, status="cancelled", finished_at=AT)
        return "c-1"

    @asynccontextmanager
    async def connect(self, _dsn: str) -> AsyncIterator[Stack]:
        yield self

    async def task(self, tenant: str, task_id: str) -> RunRow:
        if self.run is None or (self.run.tenant, self.run.task_id) != (tenant, task_id):
            raise RunNotFoundError(task_id)
        return self.run

    async def journal(self, _run_id: UUID) -> list[JournalEntry]:
        reason = {"reason": {"code": "conflict", "message": "it is being undone"}}
        earlier = JournalEntry(1, "RunStarted", AT, {})
        return (
            [earlier, JournalEntry(2, self.answers, AT, {"command_id": "c-1", **reason})] if self.answers else [earlier]
        )


@pytest.fixture
def cancel(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Cancels a task as an MCP client does, and gives the answer."""
    monkeypatch.setattr(service, "ANSWER_WITHIN_S", 0.05)

    async def ask(stack: Stack, task_id: str = "t-1") -> dict[str, Any]:
        monkeypatch.setattr(service.Operator, "connect", stack.connect)
        server = build(TaskService(stack, "dsn", "acme", "ana"))  # type: ignore[arg-type]
        async with Client(server) as client:
            result = await client.call_tool("cancel_task", {"task_id": task_id, "why": "no longer needed"})
        assert result.structured_content is not None
        return result.structured_content

    return ask


async def test_a_task_is_cancelled_by_its_own_principal(cancel: Any) -> None:
    stack = Stack()
    told = await cancel(stack)
    assert (told["answered"], told["status"]) == ("cancelled", "cancelled")
    assert stack.commands == [
        {
            "run_id": RUN.run_id,
            "partition": 3,
            "action": ControlAction.CANCEL,
            "principal": "ana",
            "note": "no longer needed",
        }
    ]
    again = await cancel(stack)
    assert (again["answered"], len(stack.commands)) == ("over", 1)


@pytest.mark.parametrize(
    ("stack", "answered", "reason"),
    [
        (Stack(run=None), "unknown", None),
        (Stack(run=replace(RUN, tenant="globex")), "unknown", None),
        (Stack(run=replace(RUN, principal="ben")), "refused", "of ben"),
        (Stack(answers="CommandRefused"), "refused", "being undone"),
        (Stack(answers=None), "not_yet", None),
    ],
)
async def test_what_came_of_it_is_told(cancel: Any, stack: Stack, answered: str, reason: str | None) -> None:
    told = await cancel(stack)
    assert told["answered"] == answered
    assert (reason or "") in (told["reason"] or "")


async def test_a_client_sees_that_it_destroys_and_may_be_repeated() -> None:
    async with Client(build(TaskService(Stack(), "dsn", "acme", "ana"))) as client:  # type: ignore[arg-type]
        tools = {tool.name: tool.annotations for tool in (await client.list_tools()).tools}
    assert set(tools) == {"list_playbooks", "start_task", "task_status", "get_outcome", "cancel_task"}
    assert tools["cancel_task"] is not None
    assert (tools["cancel_task"].destructive_hint, tools["cancel_task"].idempotent_hint) == (True, True)
