"""What an MCP client may do with tasks, and in which form it is answered. It knows nothing of MCP.

A task service serves one tenant and one principal; its callers cannot name another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any, TypeGuard

from pydantic import BaseModel

from triptych.client import Client, JournalEntry, Operator, RunNotFoundError, RunRow, StepRow
from triptych.operator.command_answers import wait_for_answers
from triptych.schemas import ControlAction, Json, Outcome, OutcomeStatus

TELL_EVERY_S = 1.0
ANSWER_WITHIN_S = 15.0
_DONE = frozenset({"succeeded", "skipped"})

Tell = Callable[[float, str], Awaitable[None]]
"""Told how many seconds have been waited, and how far the task is."""


class PlaybookInfo(BaseModel):
    """An agent that can be given tasks."""

    name: str
    version: str
    goal: str
    input: dict[str, Any]
    """JSON Schema of a task's input."""


class Playbooks(BaseModel):
    playbooks: list[PlaybookInfo]


class Started(BaseModel):
    """A task that was published."""

    task_id: str


class TaskStep(BaseModel):
    step: str
    operation: str
    status: str
    attempts: int
    error_code: str | None


class TaskStatus(BaseModel):
    """Where a task stands. `unknown`: no executor has taken it up, because it is too new or was never started."""

    task_id: str
    status: str
    playbook: str | None = None
    reason_code: str | None = None
    reason: str | None = None
    steps: list[TaskStep] = []
    usd: float = 0.0
    tokens: int = 0


class Answered(StrEnum):
    """Whether there is an outcome."""

    FINAL = "final"
    NEEDS_A_PERSON = "needs_a_person"
    """The run is escalated: a person has to look at it, and it may go on after that."""
    NOT_YET = "not_yet"


class TaskOutcome(BaseModel):
    """The outcome of a task."""

    task_id: str
    answered: Answered
    status: str | None = None
    reason_code: str | None = None
    reason: str | None = None
    output: dict[str, Json] = {}
    usd: float = 0.0


class Cancelling(StrEnum):
    """The answer to a request to cancel."""

    CANCELLED = "cancelled"
    OVER = "over"
    """It had ended before."""
    REFUSED = "refused"
    NOT_YET = "not_yet"
    """The request was sent, and no executor has answered it yet."""
    UNKNOWN = "unknown"
    """There is no such task, or no executor has admitted it yet."""


class TaskCancelled(BaseModel):
    """Whether a task was cancelled. What was under way may still take effect; the outcome names it."""

    task_id: str
    answered: Cancelling
    status: str | None = None
    reason: str | None = None


class TaskService:
    """Starts tasks and looks after them."""

    def __init__(self, client: Client, dsn: str, tenant: str, principal: str) -> None:
        self._client, self._dsn, self._tenant, self._principal = client, dsn, tenant, principal

    async def playbooks(self) -> Playbooks:
        async with Operator.connect(self._dsn) as operator:
            found = await operator.playbooks()
        return Playbooks(
            playbooks=[
                PlaybookInfo(name=each.name, version=each.version, goal=each.goal, input=each.input) for each in found
            ]
        )

    async def start(self, playbook: str, given: dict[str, Json], task_id: str | None) -> Started:
        started = await self._client.submit(
            playbook, given, tenant=self._tenant, principal=self._principal, task_id=task_id
        )
        return Started(task_id=started)

    async def status(self, task_id: str) -> TaskStatus:
        async with Operator.connect(self._dsn) as operator:
            try:
                run = await operator.task(self._tenant, task_id)
            except RunNotFoundError:
                return TaskStatus(task_id=task_id, status="unknown")
            return _status(run, await operator.steps(run.run_id))

    async def cancel(self, task_id: str, why: str) -> TaskCancelled:
        """Cancel a task of this principal, and wait a little for the executor's answer."""
        async with Operator.connect(self._dsn) as operator:
            try:
                run = await operator.task(self._tenant, task_id)
            except RunNotFoundError:
                return TaskCancelled(task_id=task_id, answered=Cancelling.UNKNOWN)
            if run.finished_at is not None:
                return TaskCancelled(task_id=task_id, answered=Cancelling.OVER, status=run.status)
            if run.principal != self._principal:
                why_not = f"the task is of {run.principal}, and only they or an operator may cancel it"
                return TaskCancelled(task_id=task_id, answered=Cancelling.REFUSED, status=run.status, reason=why_not)
            command_id = await self._client.control(
                run.run_id, run.partition, ControlAction.CANCEL, principal=self._principal, note=why
            )
            answers = await wait_for_answers(operator, run.run_id, command_id, ANSWER_WITHIN_S)
            status = (await operator.task(self._tenant, task_id)).status
        match answers:
            case []:
                return TaskCancelled(task_id=task_id, answered=Cancelling.NOT_YET, status=status)
            case [JournalEntry(type="CommandRefused", data=data), *_]:
                reason = data["reason"]["message"]
                return TaskCancelled(task_id=task_id, answered=Cancelling.REFUSED, status=status, reason=reason)
            case _:
                return TaskCancelled(task_id=task_id, answered=Cancelling.CANCELLED, status=status)

    async def outcome(self, task_id: str, wait_s: float, tell: Tell) -> TaskOutcome:
        """Wait for the outcome. An escalation counts while it stands."""
        telling = asyncio.create_task(self._report_progress(task_id, tell), name="progress")
        try:
            async with asyncio.timeout(wait_s):
                return _outcome(await self._wait(task_id))
        except TimeoutError:
            return TaskOutcome(task_id=task_id, answered=Answered.NOT_YET)
        finally:
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling

    async def _wait(self, task_id: str) -> Outcome:
        # The feed of what is to come is open before the past is read, so that nothing falls between them.
        async with self._client.feed() as coming:
            async with self._client.feed(from_start=True, to_end=True) as past:
                known = [message async for message in past if self._is_of(message, task_id)]
            if known and (known[-1].final or await self._is_escalated(task_id)):
                return known[-1]
            async for message in coming:
                if self._is_of(message, task_id):
                    return message
        raise AssertionError("a feed without an end has ended")

    def _is_of(self, message: object, task_id: str) -> TypeGuard[Outcome]:
        return isinstance(message, Outcome) and (message.tenant, message.task_id) == (self._tenant, task_id)

    async def _is_escalated(self, task_id: str) -> bool:
        return (await self.status(task_id)).status == OutcomeStatus.ESCALATED

    async def _report_progress(self, task_id: str, tell: Tell) -> None:
        began = time.monotonic()
        while True:
            status = await self.status(task_id)
            done = sum(step.status in _DONE for step in status.steps)
            under_way = [step.operation for step in status.steps if step.status not in _DONE]
            told = f"{status.status}, {done} of {len(status.steps)} steps done"
            await tell(time.monotonic() - began, f"{told}, now {under_way[0]}" if under_way else told)
            await asyncio.sleep(TELL_EVERY_S)


def _status(run: RunRow, steps: list[StepRow]) -> TaskStatus:
    return TaskStatus(
        task_id=run.task_id,
        status=run.status,
        playbook=run.playbook,
        reason_code=run.reason_code,
        reason=run.reason_message,
        steps=[
            TaskStep(
                step=step.step_id,
                operation=step.operation,
                status=step.status,
                attempts=step.attempts,
                error_code=step.error_code,
            )
            for step in steps
        ],
        usd=run.usd_micros / 1_000_000,
        tokens=run.tokens,
    )


def _outcome(outcome: Outcome) -> TaskOutcome:
    return TaskOutcome(
        task_id=outcome.task_id,
        answered=Answered.FINAL if outcome.final else Answered.NEEDS_A_PERSON,
        status=outcome.status.value,
        reason_code=outcome.reason.code,
        reason=outcome.reason.message,
        output=outcome.output,
        usd=outcome.usage.usd,
    )
