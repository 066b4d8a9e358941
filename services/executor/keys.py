"""Business keys: in a tenant, for a time, only one write under a key takes effect, whichever run makes it.

The table `business_keys` says who has a key, and the journal of that run says what became of its write: so there is one
truth, and a crash leaves nothing to be mended. Who is known to have done nothing has no key any more and asks anew.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from triptych.executor import events as ev
from triptych.executor.requests import request_call
from triptych.executor.results import settle
from triptych.executor.retries import Then
from triptych.executor.state import Ask, Run, StepState, StepStatus, UndoStatus
from triptych.executor.transition import Turn, fail_step, schedule_retry
from triptych.playbook.expressions import render
from triptych.schemas import OnRepeat, Reason, Result, RetryPolicy

WAIT_MS, WAIT_MAX_MS = 500, 60_000
"""Who finds a key held by a call under way looks again, less and less often."""


class Standing(StrEnum):
    """What a run is told of a key that it wants."""

    GRANTED = "granted"
    HELD = "held"
    RECEIPT = "receipt"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class KeyTold:
    """The answer of the database to a run that asked for a business key."""

    request_id: str
    standing: Standing
    holder: UUID | None = None
    holder_step: str = ""
    result: Result | None = None
    operation: str = ""


@dataclass(frozen=True, slots=True)
class Holding:
    """What the run that has a key has done with it."""

    is_free: bool = False
    """Its write certainly did nothing, or was undone: another may have the key."""
    is_under_way: bool = False
    result: Result | None = None
    """What its write answered. None while it is under way, and where nobody knows."""
    answered_at: datetime | None = None
    """When its write was answered, in doubt or not: the time of the key begins no earlier."""
    step: str = ""
    operation: str = ""


def holding_of(run: Run, idempotency_key: str) -> Holding:
    """What became of the call under this idempotency key."""
    for request in (*run.requests.values(), *run.left_open.values()):
        event = request.event
        if isinstance(event, ev.KeyRequested | ev.CallRequested) and event.idempotency_key == idempotency_key:
            is_over = isinstance(event, ev.KeyRequested) and run.status.is_final
            return Holding(is_free=is_over, is_under_way=not is_over, step=event.step)
    for state in (*run.steps.values(), *run.branches.values()):
        if state.written is not None and state.written.idempotency_key == idempotency_key:
            return _written(run, state)
    return Holding(is_free=True)


def _written(run: Run, state: StepState) -> Holding:
    if state.undo is UndoStatus.DONE:
        return Holding(is_free=True)
    answer = state.answer_to_keep
    is_tried_again = (Ask.CALL, state.id) in run.retries or state.status is StepStatus.RETRYING
    return Holding(
        is_under_way=answer is None and is_tried_again and not run.status.is_final,
        result=answer,
        answered_at=state.written.answered_at if state.written is not None else None,
        step=state.id,
        operation=state.acting.operation,
    )


def told_of(asked: ev.KeyRequested, operation: str, holder: UUID, held: Holding) -> KeyTold:
    """What to tell a run that wants a key which another call has."""
    if held.is_under_way:
        standing, result = Standing.HELD, None
    elif held.result is not None and asked.on_repeat is OnRepeat.RECEIPT and held.operation == operation:
        standing, result = Standing.RECEIPT, held.result
    else:
        standing, result = Standing.CONFLICT, held.result
    return KeyTold(asked.request_id, standing, holder, held.step, result, held.operation)


def on_key(turn: Turn, told: KeyTold) -> None:
    """Go on with a call whose business key was asked for."""
    asked = turn.run.requests[told.request_id].event
    assert isinstance(asked, ev.KeyRequested)  # noqa: S101 - what a key is told about is a request for one
    state, is_receipt = turn.run.state(asked.step), told.standing is Standing.RECEIPT
    turn.record(
        ev.KeyAnswered(
            request_id=told.request_id,
            step=asked.step,
            standing=told.standing.value,
            holder=told.holder,
            holder_step=told.holder_step,
            result=told.result if is_receipt else None,
            arguments=render(state.acting.arguments, turn.run.scope_of(state)) if is_receipt else {},
        )
    )
    if not turn.run.status.is_active:
        return
    state = turn.run.state(asked.step)
    match told.standing:
        case Standing.GRANTED:
            request_call(turn, state, asked.key)
        case Standing.RECEIPT:
            settle(turn, state)
        case Standing.HELD:
            _wait(turn, state, asked, told)
        case Standing.CONFLICT:
            fail_step(turn, state.id, Then.REPLAN, _conflict(state, asked, told))


def _wait(turn: Turn, state: StepState, asked: ev.KeyRequested, told: KeyTold) -> None:
    message = (
        f"step {state.id} waits for its business key {asked.key!r}: step {told.holder_step} of run {told.holder} has it"
    )
    policy = RetryPolicy(base_ms=WAIT_MS, cap_ms=WAIT_MAX_MS)
    least_ms = min(WAIT_MS * 2 ** min(state.key_waits, 7), WAIT_MAX_MS)
    reason = Reason(code="business_key_held", message=message)
    schedule_retry(turn, Ask.CALL, state.id, policy, min(state.key_waits, 8), reason, least_ms)


def _conflict(state: StepState, asked: ev.KeyRequested, told: KeyTold) -> Reason:
    if told.result is not None:
        what = f"step {told.holder_step} of run {told.holder} has done {told.operation} under it"
    elif told.holder_step:
        what = f"nobody knows whether step {told.holder_step} of run {told.holder} has done it"
    else:
        what = f"run {told.holder} has it, and its journal is gone"
    message = (
        f"{state.acting.operation} in step {state.id} is not made: its business key {asked.key!r} is taken, {what}; "
        f"look at that run (`triptych trace {told.holder}`), then skip this step or abort"
    )
    return Reason(code="conflict", message=message)
