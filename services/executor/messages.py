"""From events to messages: which commands, outcomes and escalations an event sends out. Pure.

The journal alone determines the outbox, so a request can be sent again from the journal at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import assert_never
from uuid import UUID

from triptych.executor import child_runs, encoding
from triptych.executor import events as ev
from triptych.executor.caching import recall_of_call, recall_of_review
from triptych.executor.encoding import Fields, given
from triptych.executor.state import OpenRequest, RequestKind, Run, RunStatus, StepState, StepStatus
from triptych.kernel.postgres.outbox import Send
from triptych.playbook.expressions import references_of
from triptych.schemas import (
    Escalation,
    FallbackUse,
    Json,
    Outcome,
    OutcomeStatus,
    Parent,
    Pin,
    Reason,
    Recall,
    Undo,
    topics,
)


def messages(run: Run, events: Iterable[ev.Event], now: datetime) -> list[Send]:
    """Return the messages that these newest events of a run send out. `run` is the run after all of them."""
    sends: list[Send] = []
    for event in events:
        match event:
            case ev.PlanRequested(reuses=True):
                continue  # the plan is known
            case ev.CallRequested() | ev.PlanRequested() | ev.ReviewRequested() | ev.UndoRequested():
                sends.append(_request(run, event))
            case (
                (ev.CallAnswered() | ev.StepEnded() | ev.RunAdmitted() | ev.RunStarted() | ev.PlanAccepted())
                | (ev.PlanRefused() | ev.GoalReached() | ev.ReplanDecided() | ev.VerdictGiven() | ev.ReviewFailed())
                | (ev.RoundStarted() | ev.CallReused() | ev.FallbackTaken() | ev.FanOutStarted() | ev.FanInDone())
                | (ev.RetryScheduled() | ev.KeyRequested() | ev.KeyAnswered() | ev.StepOverridden() | ev.Overspent())
                | (ev.CommandRefused() | ev.UndoAnswered() | ev.AnsweredLate())
            ):
                continue  # these send nothing
            case ev.RequestReissued(request_id):
                sends.extend(_request_again(run, request_id))
            case ev.RunEscalated(reason, step):
                sends.extend(_escalated(run, reason, step, now))
            case ev.ChildEscalated() | ev.ChildResumed() | ev.RunResumed():
                sends.extend(_waits_or_goes_on(run, event, now))
            case ev.UndoStarted(children=children):
                sends.extend(_withdrawals(run, children))
                # Writes that are made to undo others are wanted; all else was asked for before.
                sends.extend(
                    _called_off(run, (each for each in run.requests.values() if each.kind is not RequestKind.UNDO))
                )
            case ev.RunEnded(children=children):
                sends.extend(_withdrawals(run, children))
                sends.extend(_called_off(run, run.left_open.values()))
                sends.extend(endings(run))
            case _:
                assert_never(event)
    return sends + _after_answers(run, events)


def _escalated(run: Run, reason: Reason, step: str | None, now: datetime) -> Iterable[Send]:
    """Tell the client, the people who watch escalations, and the parent of the run."""
    event_id = f"{run.name}:escalated:{run.escalations}"
    outcome = _outcome(run, OutcomeStatus.ESCALATED, reason, now, final=False)
    yield _outcome_send(f"{event_id}:outcome", outcome)
    escalation = _escalation(run, reason, step, now)
    short = partial(escalation.model_copy, update={"input": {}, "steps": ()})
    yield Send(topics.ESCALATIONS, "triptych.escalation", event_id, escalation, short)
    if run.parent:
        yield child_runs.notice_message(run, run.parent, child_runs.WAITS, reason)


def _waits_or_goes_on(
    run: Run, event: ev.ChildEscalated | ev.ChildResumed | ev.RunResumed, now: datetime
) -> Iterable[Send]:
    """Tell client and parent that a child run waits for a person, or tell the parent that this run goes on."""
    because = run.waits_because
    if because is None:
        yield from _goes_on(run, run.parent) if run.parent else ()
    elif isinstance(event, ev.ChildEscalated) and run.status is not RunStatus.ESCALATED:
        outcome = _outcome(run, OutcomeStatus.ESCALATED, because, now, final=False)
        yield _outcome_send(f"{run.name}:waits:{run.escalations}.{run.child_waits}:outcome", outcome)
        if run.parent:
            yield child_runs.notice_message(run, run.parent, child_runs.WAITS, because)


def _after_answers(run: Run, events: Iterable[ev.Event]) -> list[Send]:
    """Tell the parent that a run goes on: the answer may come from a child that waited, and that a person aborted."""
    has_answer = run.child_waits and any(isinstance(event, ev.CallAnswered) for event in events)
    return list(_goes_on(run, run.parent)) if run.parent and has_answer else []


def _goes_on(run: Run, parent: Parent) -> Iterable[Send]:
    if run.status.is_active and run.waits_because is None:
        yield child_runs.notice_message(run, parent, child_runs.GOES_ON, None)


def _request_again(run: Run, request_id: str) -> list[Send]:
    """Send an open request once more. A worker that lost a withdrawn request has lost the withdrawal as well."""
    request = run.requests.get(request_id)
    if request is None or isinstance(request.event, ev.KeyRequested):
        return []  # it was answered meanwhile, or it asks the database, with the commit
    if run.status is not RunStatus.UNDOING or request.kind is RequestKind.UNDO:
        return [_request(run, request.event)]
    if children := child_runs.children_of(run, request_id):
        return [_request(run, request.event), *_withdrawals(run, children)]
    return _called_off(run, [request])  # it is answered by this too, wherever it has got to


def _withdrawals(run: Run, steps: Iterable[str] | None) -> list[Send]:
    return [child_runs.withdrawal_message(run, run.state(step)) for step in steps or ()]


def _called_off(run: Run, requests: Iterable[OpenRequest]) -> list[Send]:
    """Withdraw open requests to workers. The task of a child run withdraws the child."""
    sends = []
    for request in requests:
        event = request.event
        if isinstance(event, ev.KeyRequested) or (isinstance(event, ev.CallRequested) and event.child is not None):
            continue
        fields = Fields({**_request_fields(run, event), "topic": _noun(run, event)})
        sends.append(Send(topics.WITHDRAWALS, "triptych.withdrawal", f"{event.request_id}:withdrawn", fields))
    return sends


def _noun(run: Run, event: ev.WorkerRequested) -> str:
    """Return the topic on which a worker was asked."""
    match event:
        case ev.PlanRequested():
            return topics.PLAN_REQUESTS
        case ev.ReviewRequested():
            return topics.REVIEWS
        case ev.CallRequested():
            operation = run.state(event.step).acting.operation
        case ev.UndoRequested():
            undo = run.state(event.step).step.pin.undo
            assert undo is not None  # noqa: S101 - only what can be undone is asked for
            operation = undo.operation
    return topics.calls(operation.partition(".")[0])


def endings(run: Run) -> list[Send]:
    """Return the messages of a run that is over: to its client, and to its parent if it has one."""
    return [final_outcome(run), *([child_runs.answer_message(run, run.parent)] if run.parent else [])]


def final_outcome(run: Run) -> Send:
    """Return the outcome of a run that is over: the same each time it is made, also from a journal."""
    assert run.finished_at is not None and run.reason is not None  # noqa: S101, PT018 - `RunEnded` sets both
    outcome = _outcome(run, OutcomeStatus(run.status), run.reason, run.finished_at, final=True)
    return _outcome_send(f"{run.name}:outcome", outcome)


def _as_read_back(value: Json) -> Json:
    """JSON as Postgres gives it back, up to the order of keys: so they are sorted."""
    match value:
        case dict():
            return {key: _as_read_back(value[key]) for key in sorted(value)}
        case list():
            return [_as_read_back(item) for item in value]
        case _:
            return value


def rejection(
    *,
    task_id: str,
    tenant: str,
    playbook: str,
    reason: Reason,
    event_id: str,
    final: bool = True,
    record: str | None = None,
) -> Send:
    """Return the outcome of a task that never became a run."""
    outcome = Outcome(
        task_id=task_id,
        playbook=playbook,
        tenant=tenant,
        status=OutcomeStatus.REJECTED,
        final=final,
        reason=reason,
        record=record,
    )
    return Send(topics.OUTCOMES, "triptych.outcome", event_id, outcome)


def _request(run: Run, event: ev.WorkerRequested) -> Send:
    match event:
        case ev.PlanRequested():
            return Send(topics.PLAN_REQUESTS, "triptych.plan-request", event.request_id, _plan_request(run, event))
        case ev.CallRequested(child=UUID() as child):
            return child_runs.task_message(run, event, child)
        case ev.CallRequested():
            return _call_send(event.request_id, _call_request(run, event))
        case ev.UndoRequested():
            return _call_send(event.request_id, _undo_request(run, event))
        case ev.ReviewRequested():
            return Send(topics.REVIEWS, "triptych.review", event.request_id, _review_request(run, event))


def _plan_request(run: Run, event: ev.PlanRequested) -> Fields:
    """Return the fields of a `PlanRequest`."""
    playbook = run.playbook
    return Fields(
        {
            **_request_fields(run, event),
            "playbook": playbook.name,
            "goal": playbook.goal,
            "input": run.input,
            "spec": playbook.plan,
            "tools": playbook.tools,
            "revision": event.revision,
            "max_steps": max(1, run.ledger.max_steps - run.ledger.steps),
            "retry": playbook.retry,
            "known": [_record(state) for state in run.known_steps()],
            "cache": playbook.cache.value,
            **given(
                failure=event.failure,
                handoffs=playbook.handoffs or None,
                others=[other.as_other for other in run.others] or None,
                turns_left=event.turns_left or None,
                ledger=run.task_ledger,
                repair=event.repair,
                limits=playbook.limits,
            ),
        }
    )


def _call_send(event_id: str, request: Fields) -> Send:
    tool = request.fields["operation"].partition(".")[0]
    return Send(topics.calls(tool), "triptych.call", event_id, request)


def _call_request(run: Run, event: ev.CallRequested) -> Fields:
    """Return the fields of a `CallRequest`."""
    state = run.state(event.step)
    step, stand_in = state.acting, state.stand_in
    recall = recall_of_call(run, step.id, event.call) if event.reserved.tokens else Recall.NO
    return Fields(
        {
            **_call_fields(run, event, state, step.operation, step.pin),
            **given(
                keep=(not state.fallback and any(each.fallback.cached_ms for each in step.fallback)) or None,
                cached_ms=stand_in.fallback.cached_ms if stand_in else None,
                tier=step.tier or run.playbook.tier,
                recall=None if recall is Recall.NO else recall.value,
            ),
        }
    )


def _undo_request(run: Run, event: ev.UndoRequested) -> Fields:
    """Return the fields of a `CallRequest` for the operation that undoes a step."""
    state = run.state(event.step)
    how = state.step.pin.undo
    assert how is not None  # noqa: S101 - only what can be undone is asked for
    return Fields(_call_fields(run, event, state, how.operation, how))


def _call_fields(
    run: Run, event: ev.CallRequested | ev.UndoRequested, state: StepState, operation: str, pin: Pin | Undo
) -> dict[str, Json]:
    """Return the fields of every request to a tool."""
    return {
        **_request_fields(run, event),
        "principal": run.principal,
        "step": state.step.id,
        "operation": operation,
        "arguments": event.arguments,
        "attempt": event.attempt,
        "idempotency_key": event.idempotency_key,
        "contract_hash": pin.contract_hash,
        "timeout_ms": pin.timeout_ms,
        **given(index=state.index),
    }


def _request_fields(run: Run, event: ev.WorkerRequested) -> dict[str, Json]:
    """Return the fields of every request."""
    return {
        "request_id": event.request_id,
        "run_id": run.name,
        "tenant": run.tenant,
        "partition": run.partition,
        "deadline_at": event.deadline_at,
        "grant": encoding.grant(event.reserved),
        "task_id": run.task_id,
    }


def _review_request(run: Run, event: ev.ReviewRequested) -> Fields:
    """Return the fields of a `ReviewRequest`."""
    state = run.state(event.step) if event.step is not None else None
    recall = recall_of_review(run, state.step.id if state else None) if event.reserved.tokens else Recall.NO
    return Fields(
        {
            **_request_fields(run, event),
            "goal": run.playbook.goal,
            "input": _input_for(run, state),
            "steps": [_record(source) for source in _sources(run, state)],
            "output": event.output,
            **given(
                step=state.acting if state else None,
                result=encoding.result(state.result) if state and state.result else None,
                judge=state.step.judge if state else run.playbook.judge,
                index=state.index if state else None,
                item=run.item_of(state) if state else None,
                recall=None if recall is Recall.NO else recall.value,
            ),
        }
    )


def _record(state: StepState) -> dict[str, Json]:
    """Return the fields of a `StepRecord`."""
    return {
        "id": state.step.id,
        "operation": state.acting.operation,
        "status": state.status,
        "arguments": state.arguments,
        **given(result=encoding.result(state.result) if state.result else None, reason=state.reason),
    }


def _input_for(run: Run, state: StepState | None) -> dict[str, Json]:
    """Return the input that a reviewer may see: for a branch without lists and objects, unless it refers to them."""
    if state is None or state.index is None or "input" in (state.step.expect or ""):
        return run.input
    return {name: value for name, value in run.input.items() if not isinstance(value, list | dict)}


def _sources(run: Run, state: StepState | None) -> Iterable[StepState]:
    """Return the other steps that a reviewer may see: for a branch, those that its expectation refers to.

    With every step that its own was made from, a thousand reviews would carry the whole list a thousand times.
    """
    if state is None or state.index is None:
        return (known for known in run.known_steps() if state is None or known.step.id != state.step.id)
    referred = references_of(state.step.expect)
    return (found for name in referred if (found := run.steps.get(name)) and found.status.has_ended)


def _outcome(run: Run, status: OutcomeStatus, reason: Reason, now: datetime, *, final: bool) -> Outcome:
    return Outcome(
        task_id=run.task_id,
        run_id=run.run_id,
        playbook=run.playbook.name,
        playbook_version=run.playbook.version,
        tenant=run.tenant,
        status=status,
        final=final,
        reason=reason,
        output=_as_read_back(run.output) if run.status is RunStatus.SUCCEEDED else {},
        usage=run.usage(now),
        started_at=run.started_at,
        finished_at=run.finished_at,
        parent_run_id=run.parent.run_id if run.parent else None,
        fallbacks=tuple(_fallbacks(run)) if status is not OutcomeStatus.REJECTED else (),
        under_way=run.under_way,
    )


def _fallbacks(run: Run) -> Iterable[FallbackUse]:
    """Yield the steps whose results came from a fallback."""
    for state in (*run.steps.values(), *run.branches.values()):
        if state.stand_in is not None and state.status is StepStatus.SUCCEEDED:
            age_ms = state.result.age_ms if state.result else None
            yield FallbackUse(step=state.id, used=state.stand_in.fallback.kind, age_ms=age_ms)


def _outcome_send(event_id: str, outcome: Outcome) -> Send:
    """Clients cannot resolve references, so an output that is too large is left out and they are told where it is."""
    return Send(topics.OUTCOMES, "triptych.outcome", event_id, outcome, partial(_without_output, outcome))


def _without_output(outcome: Outcome) -> Outcome:
    where = f"the output is too large for a message; `triptych trace {outcome.run_id}` has it"
    reason = outcome.reason.model_copy(update={"message": f"{outcome.reason.message} ({where})"})
    return outcome.model_copy(update={"output": {}, "reason": reason})


def _escalation(run: Run, reason: Reason, step: str | None, now: datetime) -> Escalation:
    return Escalation(
        run_id=run.run_id,
        task_id=run.task_id,
        tenant=run.tenant,
        principal=run.principal,
        playbook=run.playbook.name,
        playbook_version=run.playbook.version,
        goal=run.playbook.goal,
        reason=reason,
        step=step,
        input=run.input,
        steps=tuple(state.record() for state in run.known_steps()),
        usage=run.usage(now),
        escalated_at=now,
        parent_run_id=run.parent.run_id if run.parent else None,
    )
