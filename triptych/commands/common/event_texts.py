"""The text of each event of a journal, with the values that belong to it. Pure.

Each function handles one group of events and ends in `assert_never`: the type check finds an event without a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, assert_never

from triptych.commands.common.output import duration, usd
from triptych.executor import events as ev
from triptych.executor.keys import KeyState
from triptych.schemas import (
    Decision,
    Grant,
    Reason,
    Result,
    ResultStatus,
    Spend,
    Step,
    TaskLedger,
    ToolError,
    UnderWay,
)

_UNDER_WAY = {"asked": "asked, no answer yet", "in_doubt": "unknown whether it took effect"}


@dataclass(frozen=True, slots=True)
class EventText:
    """One event in words. `details` are JSON values by their names; those that are empty are not shown."""

    text: str
    tone: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


Operations = Mapping[str, str]
"""The operation of each step of the plan, by the step's id."""


def describe(  # noqa: PLR0911 - one group after the other
    event: ev.JournaledEvent, at: datetime, operations: Operations
) -> EventText:
    """Put an event into words. `at` is when it was recorded."""
    if isinstance(event, ev.JournaledAdmission):
        return _admission(event)
    if isinstance(event, ev.PlanEvent):
        return _plan(event)
    if isinstance(event, ev.CallEvent):
        return _call(event, operations)
    if isinstance(event, ev.ReviewEvent):
        return _review(event)
    if isinstance(event, ev.StepEvent):
        return _step(event, operations)
    if isinstance(event, ev.RequestEvent):
        return _request(event, at)
    if isinstance(event, ev.ChildEvent):
        return _child(event)
    if isinstance(event, ev.UndoEvent):
        return _undo(event)
    if isinstance(event, ev.RunEvent):
        return _run(event)
    assert_never(event)


def _admission(event: ev.JournaledAdmission) -> EventText:
    playbook = f"{event.playbook.name}@{event.playbook.version}"
    text = f"task {event.task_id} of {event.tenant}, for {event.principal}, becomes a run of {playbook}"
    if event.queued:
        text += "; there is no room, so it is queued"
    return EventText(text, "bold", {"input": event.input, "traceparent": event.traceparent})


def _plan(event: ev.PlanEvent) -> EventText:
    match event:
        case ev.PlanRequested(reuses=True):
            return EventText(f"the planner is not asked for revision {event.revision}: its plan is known")
        case ev.PlanRequested():
            text = f"-> asks the planner for revision {event.revision}{_reserved(event.reserved)}"
            return EventText(text, "", {"failure": _json(event.failure)})
        case ev.PlanAccepted(plan=plan):
            text = f"<- plan, revision {plan.revision}{_maker(event)}: {', '.join(map(_planned, plan.steps))}"
            return EventText(text, "cyan", {"ledger": _json(event.ledger)})
        case ev.PlanRefused(error=error):
            text = f"<- no plan: {event.code or error.code}: {error.message}"
            return EventText(text, "red", {"details": error.details})
        case ev.GoalReached():
            return EventText("<- the goal is reached", "green", {"answer": event.answer})
        case ev.ReplanDecided():
            where = f" at step {event.step}" if event.step else ""
            return EventText(f"the plan did not work out{where}{_because(event.reason)}", "yellow")
        case _:
            assert_never(event)


def _maker(event: ev.PlanAccepted) -> str:
    """Return who made a plan, and when if it is the plan of an earlier run."""
    if event.made_at is None:
        return f" by {event.worker}" if event.worker else ""
    made_at = event.made_at.isoformat(timespec="seconds").replace("+00:00", "Z")
    return f", reused, as {event.worker or 'the planner'} made it at {made_at}"


def _planned(step: Step) -> str:
    after = f" after {', '.join(step.depends_on)}" if step.depends_on else ""
    return f"{step.id} ({step.operation}{after})"


def _call(event: ev.CallEvent, operations: Operations) -> EventText:
    match event:
        case ev.KeyRequested():
            return EventText(f"wants the business key {event.key!r}")
        case ev.KeyAnswered():
            return _key_answered(event)
        case ev.CallRequested():
            return _call_requested(event, operations)
        case ev.CallAnswered():
            return _answered(event.result, event.worker, is_uncounted=event.uncounted)
        case ev.CallReused():
            operation = _operation(event.step, operations)
            text = f"{operation} has been done by step {event.source} of an earlier plan; its answer stands"
            return EventText(text, "green", {"arguments": event.arguments})
        case ev.FallbackTaken():
            operation = _operation(event.step, operations)
            text = f"fallback {event.number} replaces {operation}{_because(event.reason)}"
            return EventText(text, "yellow")
        case _:
            assert_never(event)


def _call_requested(event: ev.CallRequested, operations: Operations) -> EventText:
    arguments, may_use = event.arguments, _reserved(event.reserved)
    if event.child is not None:
        text = f"-> hands over to {arguments.get('playbook')}, run {event.child}{may_use}"
        return EventText(text, "", {"input": arguments.get("input")})
    text = f"-> {_operation(event.step, operations)}, attempt {event.attempt}{may_use}"
    return EventText(text, "", {"arguments": arguments, "idempotency_key": event.idempotency_key})


def _operation(step: str, operations: Operations) -> str:
    """Return the operation of a step, or of one of its branches (`replies.3`)."""
    return operations.get(step.partition(".")[0], "the tool")


def _key_answered(event: ev.KeyAnswered) -> EventText:
    holder = f"run {event.holder}"
    if event.holder_step:
        holder = f"step {event.holder_step} of {holder}"
    match event.standing:
        case KeyState.GRANTED:
            return EventText("has the business key", "green")
        case KeyState.RECEIPT:
            data = event.result.data if event.result else None
            return EventText(f"is not made: {holder} has done it, and its answer stands", "green", {"data": data})
        case KeyState.HELD:
            return EventText(f"waits: {holder} has the business key", "yellow")
        case _:
            return EventText(f"is not made: {holder} has the business key", "red")


def _answered(result: Result, worker: str, *, is_uncounted: bool = False) -> EventText:
    by = f" by {worker}" if worker else ""
    if error := result.error:
        wait = f", asks to wait {duration(error.retry_after_ms)}" if error.retry_after_ms is not None else ""
        free = ", no tool call used up" if is_uncounted else ""
        return EventText(f"<- {error.code}{by}: {error.message}{wait}{free}", "red", {"details": error.details})
    warnings = [f"{each.place or 'the answer'}: {each.message}" for each in result.warnings]
    tone = "green" if result.status is ResultStatus.OK and not warnings else "yellow"
    lenient = ", not as its contract says" if warnings else ""
    return EventText(f"<- {result.status}{by}{lenient}", tone, {"data": result.data, "let pass": warnings})


def _review(event: ev.ReviewEvent) -> EventText:
    match event:
        case ev.ReviewRequested():
            what = f"step {event.step}" if event.step else "the whole run"
            text = f"-> asks the critic about {what}{_reserved(event.reserved)}"
            return EventText(text, "", {"output": event.output})
        case ev.VerdictGiven():
            confidence = f", confidence {event.confidence:.2f}" if event.confidence is not None else ""
            tone = "green" if event.decision is Decision.CONTINUE else "yellow"
            text = f"<- {event.decision}{confidence}{_because(event.reason)}"
            return EventText(text, tone, {"evidence": list(event.evidence)})
        case ev.ReviewFailed(error=error):
            return EventText(f"<- no verdict: {error.code}: {error.message}", "red", {"details": error.details})
        case ev.RoundStarted():
            text = f"not accepted, round {event.round} begins{_because(event.reason)}"
            return EventText(text, "yellow", {"evidence": list(event.evidence)})
        case _:
            assert_never(event)


def _step(event: ev.StepEvent, operations: Operations) -> EventText:
    match event:
        case ev.FanOutStarted(items=items):
            text = f"fans out over {len(items)} items: {_operation(event.step, operations)} for each"
            return EventText(text, "cyan", {"items": items})
        case ev.FanInDone():
            return EventText("every branch is over; their results are merged in the order of the items", "cyan")
        case ev.StepEnded():
            tone = {"succeeded": "green", "failed": "red"}.get(event.status, "dim")
            return EventText(f"step {event.status}{_because(event.reason)}", tone)
        case ev.StepOverridden():
            text = f"settled by hand by {event.principal}{_note(event.note)}"
            return EventText(text, "bold", {"data": event.data})
        case _:
            assert_never(event)


def _request(event: ev.RequestEvent, at: datetime) -> EventText:
    match event:
        case ev.RetryScheduled():
            wait_ms = max(0.0, (event.due_at - at).total_seconds() * 1000)
            free = ", no attempt used up" if event.postponed else ""
            return EventText(f"{event.ask} again in {duration(wait_ms)}{free}{_because(event.reason)}", "yellow")
        case ev.RequestReissued():
            return EventText(f"no answer yet; the same request is sent again ({event.request_id})", "yellow")
        case ev.Overspent(granted=granted):
            amounts = ((name, spent, getattr(granted, name)) for name, spent in event.spent)
            over = [f"{name} {spent:,} of {grant:,}" for name, spent, grant in amounts if spent > grant]
            return EventText(f"the answer cost more than it was granted: {', '.join(over)}", "bold red")
        case ev.AnsweredLate():
            return _answered_late(event)
        case _:
            assert_never(event)


def _answered_late(event: ev.AnsweredLate) -> EventText:
    error, result = event.error, event.result
    if result is None:
        said = f"{error.code}: {error.message}" if error else "an answer that the run does not need any more"
        return EventText(f"<- after the end: {said}", "yellow")
    answered = _answered(result, event.worker)
    if result.error and result.error.details.get("withdrawn"):
        return EventText(answered.text, "dim")
    # An effect after the end is always shown, also of a call that went well.
    tone = "red" if answered.tone == "red" else "yellow"
    return EventText(f"{answered.text} (after the end of the run)", tone, answered.details)


def _child(event: ev.ChildEvent) -> EventText:
    match event:
        case ev.ChildEscalated():
            because = _because(event.reason)
            return EventText(f"child run {event.child} waits for a person{because}; the clock is paused", "yellow")
        case ev.ChildResumed():
            return EventText(f"child run {event.child} goes on")
        case _:
            assert_never(event)


def _undo(event: ev.UndoEvent) -> EventText:
    match event:
        case ev.UndoStarted():
            text = f"aborted by {event.principal}{_note(event.note)}; what was written is undone"
            return EventText(text, "bold yellow")
        case ev.UndoRequested():
            details = {"arguments": event.arguments, "idempotency_key": event.idempotency_key}
            return EventText(f"-> asks to undo it, attempt {event.attempt}", "", details)
        case ev.UndoAnswered(result=Result(error=ToolError() as error)):
            return EventText(f"<- not undone: {error.code}: {error.message}", "red", {"details": error.details})
        case ev.UndoAnswered():
            return EventText("<- undone", "green", {"data": event.result.data})
        case _:
            assert_never(event)


def _run(event: ev.RunEvent) -> EventText:
    match event:
        case ev.RunStarted():
            return EventText("there is room: it starts", "bold")
        case ev.RunEscalated():
            return EventText(f"ESCALATED to a person{_because(event.reason)}", "bold yellow")
        case ev.RunResumed():
            text = f"resumed by {event.principal}{_note(event.note)}"
            return EventText(text, "bold", {"extend": event.extend})
        case ev.CommandRefused():
            return EventText(f"{event.action} by {event.principal} refused{_because(event.reason)}", "yellow")
        case ev.RunEnded():
            by = f" by {event.principal}" if event.principal else ""
            tone = {"succeeded": "bold green", "failed": "bold red"}.get(event.status, "bold")
            text = f"{event.status.upper()}{by}{_because(event.reason)}"
            under_way = [_under_way(each) for each in event.under_way or ()]
            return EventText(text, tone, {"output": event.output, "under_way": under_way})
        case _:
            assert_never(event)


def _under_way(write: UnderWay) -> str:
    return f"{write.step}: {write.operation} under key {write.idempotency_key} ({_UNDER_WAY[write.known]})"


def _because(reason: Reason | None) -> str:
    return f": {reason.code}: {reason.message}" if reason else ""


def _note(note: str) -> str:
    return f": {note}" if note else ""


def _reserved(grant: Grant) -> str:
    parts = amounts(grant)
    return f", may use {' and '.join(parts)}" if parts else ""


def amounts(of: Grant | Spend) -> list[str]:
    """Name the tokens, the money and the tool calls, each if there are any."""
    parts = []
    if of.tokens:
        parts.append(f"{of.tokens:,} tokens")
    if of.usd_micros:
        parts.append(usd(of.usd_micros))
    if of.tool_calls:
        parts.append(f"{of.tool_calls:,} tool calls")
    return parts


def _json(message: Reason | TaskLedger | None) -> Any:
    return None if message is None else message.model_dump(mode="json", exclude_none=True)
