"""Notices: the log lines of a run, one for each escalation, failure, retry that counts and doubt. Pure.

docs/how-to/operations.md lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from triptych.executor import events as ev
from triptych.executor.state import Run, RunStatus, StepStatus
from triptych.kernel.decider import Level, Notice
from triptych.schemas import ErrorCode, Json, Reason, Result

WHY_MAX_CHARS = 500
_TOLD = frozenset(
    {
        *(ev.CallAnswered, ev.AnsweredLate, ev.StepEnded, ev.RetryScheduled, ev.ReplanDecided),
        *(ev.RunEscalated, ev.RunEnded, ev.Overspent, ev.UndoAnswered),
    }
)
"""Some of these are worth a line; most events are others."""


def notices(run: Run, events: Sequence[ev.Event]) -> list[Notice]:
    """Return the log lines for these newest events of a run. `run` is the run after all of them."""
    return [
        notice
        for number, event in enumerate(events)
        if type(event) in _TOLD and not _is_usual(event)
        for notice in _lines(run, event, events[number + 1 :])
    ]


def _is_usual(event: ev.Event) -> bool:
    """Return whether an event is what each step has that goes well."""
    match event:
        case ev.CallAnswered():
            return event.result.error is None
        case ev.StepEnded():
            return event.status == StepStatus.SUCCEEDED
    return False


def _lines(run: Run, event: ev.Event, following: Sequence[ev.Event]) -> Iterator[Notice]:
    match event:
        case (
            ev.CallAnswered(step=str(step), result=Result() as result)
            | ev.AnsweredLate(step=str(step), result=Result() as result)
            | ev.UndoAnswered(step=str(step), result=Result() as result)
        ):
            if result.error is not None and result.error.code is ErrorCode.IN_DOUBT:
                yield _notice(run, "warning", "in doubt", step, _operation(run, step), why=result.error.message)
        case ev.StepEnded(step, StepStatus.FAILED, reason) if not _is_repeated(step, following):
            yield _notice(run, "warning", "step failed", step, _operation(run, step), **_because(reason))
        case ev.RetryScheduled(ask, step, due_at, reason, postponed=False):
            more = {"ask": ask, "due_at": due_at.isoformat(), **_operation(run, step)}
            yield _notice(run, "info", "retry", step, more, **_because(reason))
        case ev.ReplanDecided(step, reason):
            yield _notice(run, "info", "replan", step, {}, **_because(reason))
        case ev.RunEscalated(reason, step):
            yield _notice(run, "warning", "run escalated", step, {}, **_because(reason))
        case ev.RunEnded(status) if status != RunStatus.SUCCEEDED:
            yield from _ended(run, event)
        case ev.Overspent(request_id, step, granted, spent):
            message = (
                f"the answer to {request_id} has cost {spent.model_dump()}, and was granted {granted.model_dump()}"
            )
            yield _notice(run, "error", "alert", step, {}, counter="alerts", message=message)
        case _:
            return


def _ended(run: Run, event: ev.RunEnded) -> Iterator[Notice]:
    level: Level = "warning" if event.status == RunStatus.FAILED else "info"
    yield _notice(run, level, f"run {event.status}", None, {}, **_because(event.reason))
    for each in event.under_way or ():
        what = {"operation": each.operation, "idempotency_key": each.idempotency_key}
        yield _notice(run, "warning", "in doubt" if each.known == "in_doubt" else "left under way", each.step, what)


def _is_repeated(step: str, following: Sequence[ev.Event]) -> bool:
    """Return whether the event after the failure of a step says the same of it."""
    return any(isinstance(each, ev.RunEscalated | ev.ReplanDecided) and each.step == step for each in following)


def _operation(run: Run, step: str | None) -> dict[str, Json]:
    """Return the operation of a step, or of a branch of one, if it is still in the plan."""
    state = run.steps.get(step or "") or run.branches.get(step or "")
    return {} if state is None else {"operation": state.acting.operation}


def _because(reason: Reason | None) -> dict[str, Json]:
    return {} if reason is None else {"reason": reason.code, "why": reason.message}


def _notice(
    run: Run,
    level: Level,
    event: str,
    step: str | None,
    more: dict[str, Json],
    *,
    counter: str | None = None,
    **told: Json,
) -> Notice:
    about: dict[str, Json] = {
        "run_id": run.name,
        "task_id": run.task_id,
        "tenant": run.tenant,
        "trace_id": run.trace.trace_id,
    }
    if step is not None:
        about["step"] = step
    short = {name: text[:WHY_MAX_CHARS] if isinstance(text, str) else text for name, text in told.items()}
    return Notice(level, event, about | more | short, counter)
