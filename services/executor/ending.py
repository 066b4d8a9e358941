"""How a run ends: what has not begun is called off, what is under way is named, and late answers are recorded.

Pure, like everything around it. The outcome says what was known at the end and never changes; the journal goes on
where a worker tells later what it did and what that cost.
"""

from __future__ import annotations

from collections.abc import Iterator

from triptych.executor import events as ev
from triptych.executor.budgets import overspent
from triptych.executor.state import OpenRequest, RequestKind, Run, RunStatus
from triptych.executor.transition import RunTransition
from triptych.schemas import CallAnswer, Grant, Json, PlanAnswer, Reason, UnderWay, VerdictAnswer


def end_run(
    transition: RunTransition,
    status: RunStatus,
    reason: Reason,
    *,
    output: dict[str, Json] | None = None,
    command_id: str | None = None,
    principal: str | None = None,
    children: tuple[str, ...] | None = None,
) -> None:
    """End the run, and name the writes that may still take effect."""
    transition.record(
        ev.RunEnded(
            status=status,
            reason=reason,
            output=output or {},
            command_id=command_id,
            principal=principal,
            children=children,
            under_way=tuple(_under_way(transition.run)) or None,
        )
    )


def _under_way(run: Run) -> Iterator[UnderWay]:
    asked = set[str]()
    for request in run.requests.values():
        if (found := _write(run, request)) is not None:
            asked.add(found.idempotency_key)
            yield found
    for state in (*run.steps.values(), *run.branches.values()):
        key = state.written.idempotency_key if state.written is not None and state.answer_to_keep is None else ""
        if key and key not in asked:
            yield UnderWay(step=state.id, operation=state.acting.operation, idempotency_key=key, known="in_doubt")


def _write(run: Run, request: OpenRequest) -> UnderWay | None:
    """Return the write that an open request asks for, if it is one."""
    match request.event:
        case ev.CallRequested(step=step, idempotency_key=key):
            acting = run.state(step).acting
            operation, effect = acting.operation, acting.pin.effect
        case ev.UndoRequested(step=step, idempotency_key=key) if (undo := run.state(step).step.pin.undo) is not None:
            operation, effect = undo.operation, undo.effect
        case _:
            return None
    if not effect.writes:
        return None
    return UnderWay(step=step, operation=operation, idempotency_key=key, known="asked")


def record_late_answer(transition: RunTransition, answer: CallAnswer | PlanAnswer | VerdictAnswer) -> None:
    """Record an answer to a request that was open when the run ended. Any other answer changes nothing."""
    request = transition.run.left_open.get(answer.request_id)
    if request is None or not _fits(request, answer):
        return
    result, error, extended = None, None, None
    match answer:
        case CallAnswer():
            result, extended = answer.result, answer.extended
        case PlanAnswer() | VerdictAnswer():
            error = answer.error
    granted = request.reserved if extended is None else request.reserved.plus(extended)
    if overspent(granted, answer.spend):
        spend = answer.spend
        spent = Grant(tokens=spend.tokens, usd_micros=spend.usd_micros, tool_calls=spend.tool_calls)
        transition.record(ev.Overspent(answer.request_id, request.step, granted, spent))
    transition.record(
        ev.AnsweredLate(
            request_id=answer.request_id,
            step=request.step,
            result=result,
            error=error,
            spend=answer.spend,
            worker=answer.worker,
            started_at=answer.started_at,
            finished_at=answer.finished_at,
            extended=extended,
        )
    )


def _fits(request: OpenRequest, answer: CallAnswer | PlanAnswer | VerdictAnswer) -> bool:
    match answer:
        case CallAnswer():
            return request.kind in {RequestKind.CALL, RequestKind.UNDO} and answer.child == getattr(
                request.event, "child", None
            )
        case PlanAnswer():
            return request.kind is RequestKind.PLAN
        case VerdictAnswer():
            return request.kind is RequestKind.REVIEW
