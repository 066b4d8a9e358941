"""Business keys: in a tenant, for a time, only one write under a key takes effect, in all runs together. Pure.

The table `business_keys` says which run has a key. The journal of that run says what its write did. So there is one
truth, and a crash leaves nothing to be mended. A run whose write certainly did nothing loses the key and asks again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from triptych.executor import events as ev
from triptych.executor.failures import fail_step
from triptych.executor.requests import request_call
from triptych.executor.results import handle_result
from triptych.executor.retries import FailureAction, retry_key
from triptych.executor.state import CompensationStatus, RequestKind, Run, StepState, StepStatus
from triptych.executor.transition import RunTransition
from triptych.playbook.expressions import render
from triptych.schemas import OnRepeat, Reason, Result


class KeyState(StrEnum):
    """What a run is told of a key that it wants."""

    GRANTED = "granted"
    HELD = "held"
    RECEIPT = "receipt"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class KeyReply:
    """The answer of the database to a run that asked for a business key."""

    request_id: str
    key_state: KeyState
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
    """What its write answered. None while it is under way, and where that is unknown."""
    answered_at: datetime | None = None
    """When its write was answered, in doubt or not: the time of the key begins no earlier."""
    step: str = ""
    operation: str = ""


def holding_under(run: Run, idempotency_key: str) -> Holding:
    """Return what is known of the call under this idempotency key."""
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
    if state.compensation is CompensationStatus.DONE:
        return Holding(is_free=True)
    answer = state.answer_to_keep
    is_tried_again = (RequestKind.CALL, state.id) in run.retries or state.status is StepStatus.RETRYING
    return Holding(
        is_under_way=answer is None and is_tried_again and not run.status.is_final,
        result=answer,
        answered_at=state.written.answered_at if state.written is not None else None,
        step=state.id,
        operation=state.acting.operation,
    )


def reply_to(asked: ev.KeyRequested, operation: str, holder: UUID, held: Holding) -> KeyReply:
    """Answer a run that wants a key which another call has."""
    if held.is_under_way:
        key_state, result = KeyState.HELD, None
    elif held.result is not None and asked.on_repeat is OnRepeat.RECEIPT and held.operation == operation:
        key_state, result = KeyState.RECEIPT, held.result
    else:
        key_state, result = KeyState.CONFLICT, held.result
    return KeyReply(asked.request_id, key_state, holder, held.step, result, held.operation)


def on_key(transition: RunTransition, reply: KeyReply) -> None:
    """Go on with a call whose business key was asked for."""
    asked = transition.run.requests[reply.request_id].event
    assert isinstance(asked, ev.KeyRequested)  # noqa: S101 - what a key is told about is a request for one
    state, is_receipt = transition.run.state(asked.step), reply.key_state is KeyState.RECEIPT
    transition.record(
        ev.KeyAnswered(
            request_id=reply.request_id,
            step=asked.step,
            standing=reply.key_state.value,
            holder=reply.holder,
            holder_step=reply.holder_step,
            result=reply.result if is_receipt else None,
            arguments=render(state.acting.arguments, transition.run.scope_of(state)) if is_receipt else {},
        )
    )
    if not transition.run.status.is_active:
        return
    state = transition.run.state(asked.step)
    match reply.key_state:
        case KeyState.GRANTED:
            request_call(transition, state, asked.key)
        case KeyState.RECEIPT:
            handle_result(transition, state)
        case KeyState.HELD:
            _wait(transition, state, asked, reply)
        case KeyState.CONFLICT:
            fail_step(transition, state.id, FailureAction.REPLAN, _conflict(state, asked, reply))


def _wait(transition: RunTransition, state: StepState, asked: ev.KeyRequested, reply: KeyReply) -> None:
    holder = f"step {reply.holder_step} of run {reply.holder}"
    message = f"step {state.id} waits for its business key {asked.key!r}: {holder} has it"
    retry_key(transition, state, Reason(code="business_key_held", message=message))


def _conflict(state: StepState, asked: ev.KeyRequested, reply: KeyReply) -> Reason:
    if reply.result is not None:
        what = f"step {reply.holder_step} of run {reply.holder} has done {reply.operation} under it"
    elif reply.holder_step:
        what = f"it is unknown whether step {reply.holder_step} of run {reply.holder} has done it"
    else:
        what = f"run {reply.holder} has it, and its journal is gone"
    message = (
        f"{state.acting.operation} in step {state.id} is not made: its business key {asked.key!r} is taken, {what}; "
        f"look at that run (`triptych trace {reply.holder}`), then skip this step or abort"
    )
    return Reason(code="conflict", message=message)
