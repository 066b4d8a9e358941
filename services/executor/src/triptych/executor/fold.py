"""The fold: `evolve(run, event, at)` gives the run after an event. Pure: no I/O, no clock, no decisions.

Whoever reads a journal back gets the run that wrote it. What is decided when is in `machine.py`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from triptych.executor import events as ev
from triptych.executor.state import (
    Ask,
    Ledger,
    OpenRequest,
    Retry,
    Run,
    RunStatus,
    StepState,
    StepStatus,
    changed,
)
from triptych.schemas import Effect, Result, ResultStatus, Spend, Step


def admit(run_id: UUID, event: ev.RunAdmitted, at: datetime) -> Run:
    """The first event makes the run."""
    budgets = event.playbook.budgets
    return Run(
        run_id=run_id,
        tenant=event.tenant,
        task_id=event.task_id,
        principal=event.principal,
        partition=event.partition,
        playbook=event.playbook,
        input=event.input,
        started_at=at,
        deadline_at=event.deadline_at,
        updated_at=at,
        status=RunStatus.QUEUED if event.queued else RunStatus.PLANNING,
        active_since=None if event.queued else at,
        ledger=Ledger(
            max_steps=budgets.steps,
            max_tool_calls=budgets.tool_calls,
            max_tokens=budgets.tokens,
            max_usd_micros=budgets.usd_micros,
            max_replans=budgets.replans,
        ),
    )


def evolve(run: Run, event: ev.Event, at: datetime) -> Run:
    """Fold one event into the run. `at` is when the event was recorded."""
    return changed(_apply(run, event, at), seq=run.seq + 1, updated_at=at)


def _apply(run: Run, event: ev.Event, at: datetime) -> Run:  # noqa: C901, PLR0911, PLR0912 - one arm for each event
    match event:
        case ev.RunStarted(deadline_at):
            return changed(run, status=RunStatus.PLANNING, deadline_at=deadline_at, active_since=at)
        case ev.PlanRequested():
            run = _opened(run, Ask.PLAN, None, event)
            return changed(
                run,
                status=RunStatus.PLANNING,
                plan_attempts=run.plan_attempts + 1,
                replan_due=False,
            )
        case ev.PlanAccepted(request_id, plan, spend):
            run = _closed(run, request_id, spend)
            return changed(
                run,
                status=RunStatus.RUNNING if run.status is RunStatus.PLANNING else run.status,
                revision=plan.revision,
                plan_attempts=0,
                failure=None,
                steps=_revised(run, plan.steps, plan.revision),
            )
        case ev.PlanRefused(request_id, _error, _code, spend):
            return _closed(run, request_id, spend)
        case ev.CallRequested():
            return _call_requested(run, event, at)
        case ev.CallAnswered():
            return _call_answered(run, event)
        case ev.CallReused(step, source, arguments):
            result = run.steps[source].result
            return _with_step(run, step, status=StepStatus.ANSWERED, arguments=arguments, result=result, started_at=at)
        case ev.ReviewRequested():
            return _review_requested(run, event)
        case (
            ev.VerdictGiven(request_id=request_id, step=step, spend=spend)
            | ev.ReviewFailed(request_id=request_id, step=step, spend=spend)
        ):
            run = _closed(run, request_id, spend)
            if step is not None:
                return _with_step(run, step, status=StepStatus.ANSWERED)
            return changed(run, status=RunStatus.RUNNING if run.status is RunStatus.REVIEWING else run.status)
        case ev.RetryScheduled(ask, step, due_at, _reason, postponed):
            return _retry_scheduled(run, Ask(ask), step, due_at, postponed=postponed)
        case ev.RequestReissued(request_id, reissue_at):
            request = run.requests[request_id]
            reissued = changed(request, reissue_at=reissue_at, reissues=request.reissues + 1)
            return changed(run, requests={**run.requests, request_id: reissued})
        case ev.StepEnded(step, status, reason):
            return _with_step(run, step, status=StepStatus(status), reason=reason, ended_at=at)
        case ev.ReplanDecided(_step, reason):
            run = _without_retries(run)
            ledger = changed(run.ledger, replans=run.ledger.replans + 1)
            return changed(
                run, failure=reason, replan_due=True, status=RunStatus.RUNNING, review_attempts=0, ledger=ledger
            )
        case ev.RunEscalated(reason, step):
            return changed(
                _without_retries(run),
                status=RunStatus.ESCALATED,
                reason=reason,
                stopped_step=step,
                escalated_at=at,
                escalations=run.escalations + 1,
            )
        case ev.RunResumed():
            return _resumed(run, event)
        case ev.StepOverridden(command_id=command_id, step=step, data=data):
            run = _with_step(
                run, step, status=StepStatus.SKIPPED, result=Result(status=ResultStatus.OK, data=data), ended_at=at
            )
            return changed(run, commands=run.commands | {command_id})
        case ev.CommandRefused(command_id=command_id):
            return changed(run, commands=run.commands | {command_id})
        case ev.RunEnded(status, reason, output):
            return changed(
                run,
                status=RunStatus(status),
                reason=reason,
                output=output,
                requests={},
                retries={},
                finished_at=at,
            )
        case ev.RunAdmitted():
            raise ValueError(f"run {run.run_id} was admitted twice")


def _opened(
    run: Run, ask: Ask, step: str | None, event: ev.PlanRequested | ev.CallRequested | ev.ReviewRequested
) -> Run:
    request = OpenRequest(ask, step, event.reserved, event.reissue_at, event)
    retries = {key: retry for key, retry in run.retries.items() if key != (ask, step)}
    return changed(
        run,
        requested=run.requested + 1,
        requests={**run.requests, event.request_id: request},
        retries=retries,
        ledger=run.ledger.reserve(event.reserved),
    )


def _closed(run: Run, request_id: str, spend: Spend) -> Run:
    request = run.requests[request_id]
    requests = {key: value for key, value in run.requests.items() if key != request_id}
    return changed(run, requests=requests, ledger=run.ledger.settle(request.reserved, spend))


def _with_step(run: Run, step_id: str, **changes: Any) -> Run:
    return changed(run, steps={**run.steps, step_id: changed(run.steps[step_id], **changes)})


def _call_requested(run: Run, event: ev.CallRequested, at: datetime) -> Run:
    run = _opened(run, Ask.CALL, event.step, event)
    state = run.steps[event.step]
    ledger = changed(
        run.ledger,
        tool_calls=run.ledger.tool_calls + 1,
        steps=run.ledger.steps if state.counted else run.ledger.steps + 1,
    )
    run = _with_step(
        run,
        event.step,
        status=StepStatus.RUNNING,
        call=event.call,
        attempts=event.attempt,
        counted=True,
        arguments=event.arguments,
        result=None,
        started_at=state.started_at or at,
    )
    return changed(run, ledger=ledger)


def _review_requested(run: Run, event: ev.ReviewRequested) -> Run:
    run = _opened(run, Ask.REVIEW, event.step, event)
    if event.step is None:
        return changed(run, status=RunStatus.REVIEWING, review_attempts=run.review_attempts + 1, output=event.output)
    attempts = run.steps[event.step].review_attempts + 1
    return _with_step(run, event.step, status=StepStatus.REVIEWING, review_attempts=attempts)


def _call_answered(run: Run, event: ev.CallAnswered) -> Run:
    state, result = run.steps[event.step], event.result
    is_write = state.step.pin.effect is not Effect.READ
    return _with_step(
        _closed(run, event.request_id, event.spend),
        event.step,
        status=StepStatus.ANSWERED,
        result=result,
        took_effect=state.took_effect or (is_write and not _is_known_undone(result)),
    )


def _is_known_undone(result: Result) -> bool:
    """Whether a tool says for certain that its call changed nothing. A timeout, for one, leaves that open."""
    return result.error is not None and result.error.details.get("effect") == "none"


def _retry_scheduled(run: Run, ask: Ask, step: str | None, due_at: datetime, *, postponed: bool) -> Run:
    if ask is Ask.CALL and step is not None:
        state = run.steps[step]
        run = _with_step(
            run,
            step,
            status=StepStatus.RETRYING,
            attempts=state.attempts - postponed,
            postponed=state.postponed + 1 if postponed else 0,
        )
    return changed(run, retries={**run.retries, (ask, step): Retry(ask, step, due_at)})


def _without_retries(run: Run) -> Run:
    """Nothing is asked again by itself from here: what waited for its retry waits for its turn instead."""
    steps = {
        step_id: changed(state, status=StepStatus.WAITING) if state.status is StepStatus.RETRYING else state
        for step_id, state in run.steps.items()
    }
    return changed(run, retries={}, steps=steps)


def _revised(run: Run, planned: tuple[Step, ...], revision: int) -> dict[str, StepState]:
    """Steps that ended stay as they are, whether the new plan names them or not; the others are replaced.

    So do writes that took effect, for their results: no later plan may do them again unawares.
    """
    steps = {step_id: state for step_id, state in run.steps.items() if state.status.has_ended}
    for step in planned:
        if step.id in steps:
            continue
        before = run.steps.get(step.id)
        # A new plan means other arguments, and other arguments need another idempotency key. A write that took
        # effect keeps its key: the same arguments get the same answer, and others are refused as a conflict.
        took_effect = before is not None and before.took_effect
        call = before.call + (before.counted and not took_effect) if before else 1
        steps[step.id] = StepState(step=step, revision=revision, call=call, took_effect=took_effect)
    return steps


def _resumed(run: Run, event: ev.RunResumed) -> Run:
    steps = {
        step_id: state.again() if state.status is StepStatus.FAILED else state for step_id, state in run.steps.items()
    }
    return changed(
        run,
        status=RunStatus.RUNNING if run.revision else RunStatus.PLANNING,
        steps=steps,
        replan_due=run.failure is not None,
        plan_attempts=0,
        review_attempts=0,
        reason=None,
        stopped_step=None,
        escalated_at=None,
        deadline_at=event.deadline_at,
        ledger=run.ledger.extend(event.extend),
        commands=run.commands | {event.command_id},
    )
