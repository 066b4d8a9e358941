"""The states of a run, found by playing short stories with the executor's own machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from generate.markdown import member_texts, page, table
from triptych.executor import events as ev
from triptych.executor.fold import admit, evolve
from triptych.executor.machine import Message, Start, Tick, begin, decide
from triptych.executor.state import RequestKind, Run, RunStatus
from triptych.schemas import (
    CallAnswer,
    Control,
    Decision,
    Effect,
    ErrorCode,
    Pin,
    Plan,
    PlanAnswer,
    Playbook,
    Result,
    Spend,
    Step,
    Task,
    ToolError,
    Undo,
    VerdictAnswer,
)

LONGEST_STORY = 12
"""Messages in a story. More of them show no other change."""

INTRODUCTION = """\
The diagram and the table have every change of a run's status that the executor makes. `make docs` finds them: it plays
all short stories with [machine.py](../../services/executor/machine.py). A test compares random stories with the table.

`planning`, `running` and `reviewing` are the active states. A run keeps its state while it waits for an answer or for
the time of a retry.\
"""

_RUN_ID = UUID("01900000-0000-7000-8000-000000000001")
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_UNDO = Undo(operation="shop.refund", contract_hash="1" * 16, effect=Effect.IDEMPOTENT, timeout_ms=1000)
_PIN = Pin(contract_hash="0" * 16, effect=Effect.IDEMPOTENT, timeout_ms=1000, undo=_UNDO)
_STEP = Step.model_validate({"id": "pay", "operation": "shop.pay", "pin": _PIN}, strict=False)
_PLANS: tuple[dict[str, Any], ...] = (
    {"pattern": "model", "tokens": 50, "usd": 0.00005},
    {"pattern": "react", "tokens": 50, "usd": 0.00005, "max_turns": 3},
)


@dataclass(frozen=True, order=True)
class StatusChange:
    """One event that changes the status of a run. `before` is empty for the first event."""

    before: str
    event: str
    after: str


def render() -> str:
    """Return the page."""
    found = sorted(changes())
    texts = member_texts(RunStatus)
    return page(
        "States of a run",
        INTRODUCTION,
        _diagram(found),
        table(["state", ""], [[f"`{status.value}`", texts.get(status.name, "")] for status in RunStatus]),
        "## What changes the state",
        "[Events](events.md) has the fields of each event.",
        table(
            ["from", "event", "to"],
            [
                [
                    f"`{change.before}`" if change.before else "",
                    f"[{change.event}](events.md#{change.event.lower()})",
                    f"`{change.after}`",
                ]
                for change in found
            ],
        ),
    )


def changes() -> set[StatusChange]:
    """Find the changes of the status in all stories of at most `LONGEST_STORY` messages."""
    found: set[StatusChange] = set()
    for plan in _PLANS:
        playbook = _playbook(plan)
        known: set[Any] = set()
        runs = []
        for has_room in (True, False):
            run, events = _begun(playbook, has_room)
            found |= changes_of(events)
            runs.append(run)
        for _ in range(LONGEST_STORY):
            runs = [after for run in runs for after in _next(run, known, found)]
    return found


def changes_of(events: Iterable[ev.Event], run: Run | None = None) -> set[StatusChange]:
    """Find the changes of the status in some events that follow on a run, or on nothing."""
    found = set()
    for event in events:
        before = run.status if run else ""
        run = evolve(run, event, _NOW) if run else _admitted(event)
        if run.status != before:
            found.add(StatusChange(str(before), type(event).__name__, run.status.value))
    return found


def _admitted(event: ev.Event) -> Run:
    assert isinstance(event, ev.RunAdmitted)  # noqa: S101 - every journal begins with it
    return admit(_RUN_ID, event, _NOW)


def _next(run: Run, known: set[Any], found: set[StatusChange]) -> Iterator[Run]:
    """Tell a run each message that it may get, and give the runs that are unlike those before."""
    for message, now in _messages(run):
        decided = decide(run, message, now)
        found |= changes_of(decided.events, run)
        if (likeness := _likeness(decided.run)) not in known:
            known.add(likeness)
            yield decided.run


def _likeness(run: Run) -> Any:
    """Return what two runs have in common that go on in the same way."""
    asks = tuple(sorted(str(request.kind) for request in run.requests.values()))
    steps = tuple((state.status, state.compensation) for state in run.steps.values())
    return (
        run.status,
        asks,
        steps,
        bool(run.retries),
        run.replan_due,
        run.plan_attempts,
        run.review_attempts,
        run.answer is None,
    )


def _messages(run: Run) -> Iterator[tuple[Message, datetime]]:
    """List the messages that a run may get next, each with the time at which it comes."""
    for request_id, request in run.requests.items():
        about = {"request_id": request_id, "run_id": _RUN_ID, "tenant": "default", "spend": Spend()}
        yield from ((answer, _NOW) for answer in _answers(request.kind, about, run))
    yield Start(), _NOW
    yield Tick(), _NOW + timedelta(minutes=1)
    yield Tick(), _NOW + timedelta(days=1)
    for action, undo in (("resume", False), ("cancel", False), ("abort", False), ("abort", True)):
        command = {"command_id": f"{action}-{run.seq}", "run_id": str(_RUN_ID), "principal": "user:ana"}
        yield Control.model_validate({**command, "action": action, "undo": undo}, strict=False), _NOW


def _answers(ask: RequestKind, about: dict[str, Any], run: Run) -> Iterator[Message]:
    broken = ToolError(code=ErrorCode.IN_DOUBT, message="it broke")
    match ask:
        case RequestKind.PLAN:
            yield PlanAnswer(**about, plan=Plan(revision=run.revision + 1, steps=(_STEP,)))
            yield PlanAnswer(**about, error=broken, code="plan_invalid")
            if run.playbook.plan.pattern == "react":
                yield PlanAnswer(**about, answer={"paid": True})
        case RequestKind.CALL | RequestKind.UNDO:
            yield CallAnswer(**about, result=Result.ok({}))
            yield CallAnswer(**about, result=Result.failed(ErrorCode.IN_DOUBT, "it broke"))
        case RequestKind.REVIEW:
            yield from (VerdictAnswer(**about, decision=decision) for decision in Decision)
            yield VerdictAnswer(**about, error=broken)


def _playbook(plan: dict[str, Any]) -> Playbook:
    fields = {"name": "pay", "goal": "Pay.", "input": {}, "tools": ("shop.*",), "plan": plan, "review": "final"}
    budgets = {"steps": 6, "tool_calls": 12, "tokens": 400, "usd": 0.0004, "wall_ms": 600_000, "replans": 2}
    return Playbook.model_validate({**fields, "budgets": budgets}, strict=False)


def _begun(playbook: Playbook, has_room: bool) -> tuple[Run, tuple[ev.Event, ...]]:  # noqa: FBT001 - one of two stories
    task = Task(playbook="pay", task_id="t")
    begun = begin(task, task_id="t", run_id=_RUN_ID, playbook=playbook, partition=0, now=_NOW, has_room=has_room)
    return begun.run, tuple(begun.events)


def _diagram(found: list[StatusChange]) -> str:
    """Draw the changes. A change that every active state makes begins at the group of the active states."""
    active = {status.value for status in RunStatus if status.is_active}
    inner: dict[tuple[str, str], set[str]] = {}
    outer: dict[tuple[str, str], set[str]] = {}
    for change in found:
        befores = {other.before for other in found if (other.event, other.after) == (change.event, change.after)}
        is_common = change.before in active <= befores
        start = "active" if is_common else change.before or "[*]"
        arrows = inner if {start, change.after} <= active else outer
        arrows.setdefault((start, change.after), set()).add(change.event)
    return "\n".join(
        [
            "```mermaid",
            "stateDiagram-v2",
            "    state active {",
            *(f"        {start} --> {end}: {', '.join(sorted(events))}" for (start, end), events in inner.items()),
            "    }",
            *(f"    {start} --> {end}: {', '.join(sorted(events))}" for (start, end), events in outer.items()),
            *(f"    {status.value} --> [*]" for status in RunStatus if status.is_final),
            "```",
        ]
    )
