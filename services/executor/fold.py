"""The fold: `evolve(run, event, at)` gives the run after an event. No I/O, no clock, no decisions.

`record` does the same to a copy that the caller has made, once for many events.

A process that reads a journal gets the run that wrote it. What is decided when is in `machine.py`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, assert_never
from uuid import UUID

from triptych.executor import events as ev
from triptych.executor import loop_detection
from triptych.executor.budgets import BudgetLedger
from triptych.executor.state import (
    CompensationStatus,
    FanOut,
    OpenRequest,
    Progress,
    RequestKind,
    Retry,
    Run,
    RunStatus,
    StepState,
    StepStatus,
    WriteRecord,
    branch_id,
)
from triptych.kernel.values import changed
from triptych.schemas import Json, PlanByTurns, Reason, Result, ResultStatus, Spend, Step


def admit(run_id: UUID, event: ev.RunAdmitted, at: datetime) -> Run:
    """Make a run from its first event."""
    budgets = event.playbook.budgets
    ledger = BudgetLedger(
        max_steps=budgets.steps,
        max_tool_calls=budgets.tool_calls,
        max_tokens=budgets.tokens,
        max_usd_micros=budgets.usd_micros,
        max_replans=budgets.replans,
    )
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
        ledger=ledger.within(event.parent.grant) if event.parent else ledger,
        parent=event.parent,
        traceparent=event.traceparent,
        others=event.others,
    )


def evolve(run: Run, event: ev.Event, at: datetime) -> Run:
    """Return the run after one more event. `at` is when the event was recorded."""
    run = run.copy()
    record(run, event, at)
    return run


def record(run: Run, event: ev.Event, at: datetime) -> None:
    """Fold one event into a run that only the caller holds."""
    _apply(run, event, at)
    run.seq += 1
    run.updated_at = at


def _apply(run: Run, event: ev.Event, at: datetime) -> None:  # noqa: C901, PLR0912, PLR0915 - one arm for each event
    match event:
        case ev.CallRequested():
            _call_requested(run, event, at)
        case ev.CallAnswered():
            _call_answered(run, event, at)
        case ev.StepEnded(step, status, reason):
            _change_step(run, step, status=StepStatus(status), reason=reason, ended_at=at)
        case ev.ReviewRequested():
            _review_requested(run, event)
        case ev.VerdictGiven() | ev.ReviewFailed():
            _reviewed(run, event)
        case ev.RunStarted():
            _started(run, event, at)
        case ev.PlanRequested():
            _plan_requested(run, event)
        case ev.GoalReached():
            _goal_reached(run, event)
        case ev.PlanAccepted():
            _plan_accepted(run, event)
        case ev.PlanRefused(request_id, _error, _code, spend):
            _close(run, request_id, spend)
        case ev.FanOutStarted(step, items):
            _fan_out(run, step, items, at)
        case ev.FanInDone(step):
            _fan_in(run, step)
        case ev.ChildEscalated():
            _child_escalated(run, event, at)
        case ev.ChildResumed():
            _child_resumed(run, event, at)
        case ev.KeyRequested():
            _key_requested(run, event)
        case ev.KeyAnswered():
            _key_answered(run, event, at)
        case ev.CallReused():
            _call_reused(run, event, at)
        case ev.FallbackTaken():
            _fallback_taken(run, event, at)
        case ev.RetryScheduled(ask, step, due_at, _reason, postponed):
            _retry_scheduled(run, RequestKind(ask), step, due_at, postponed=postponed)
        case ev.RequestReissued():
            _reissued(run, event)
        case ev.RoundStarted(step, number, reason, evidence):
            _next_round(run, step, number, reason, evidence)
        case ev.ReplanDecided():
            _replan_decided(run, event)
        case ev.RunEscalated():
            _escalated(run, event, at)
        case ev.RunResumed():
            _resumed(run, event, at)
        case ev.StepOverridden():
            _overridden(run, event, at)
        case ev.CommandRefused(command_id=command_id):
            run.commands |= {command_id}
        case ev.RunEnded():
            _ended(run, event, at)
        case ev.AnsweredLate():
            _answered_late(run, event, at)
        case ev.UndoStarted():
            _undo_started(run, event)
        case ev.UndoRequested():
            _undo_requested(run, event)
        case ev.UndoAnswered():
            _undo_answered(run, event)
        case ev.Overspent():
            pass  # the answer that follows is charged with all that it cost
        case ev.RunAdmitted():
            raise ValueError(f"run {run.run_id} was admitted twice")
        case _:
            assert_never(event)


def _started(run: Run, event: ev.RunStarted, at: datetime) -> None:
    run.status = RunStatus.PLANNING
    run.deadline_at = event.deadline_at
    run.active_since = at


def _plan_requested(run: Run, event: ev.PlanRequested) -> None:
    loop_detection.note_turn(run)
    _open(run, RequestKind.PLAN, None, event)
    run.status = RunStatus.PLANNING
    run.plan_attempts += 1
    run.replan_due = False


def _goal_reached(run: Run, event: ev.GoalReached) -> None:
    _planned(run, event)
    run.answer = event.answer


def _plan_accepted(run: Run, event: ev.PlanAccepted) -> None:
    _planned(run, event)
    plan = event.plan
    run.revision = plan.revision
    superseded = _superseded(run, plan.steps)
    run.steps = {**_observed(run), **_revised(run, plan.steps, plan.revision)}
    run.branches = {key: state for key, state in run.branches.items() if _stays(run, state)} | superseded


def _planned(run: Run, event: ev.PlanAccepted | ev.GoalReached) -> None:
    """Go on after an answer of the planner that can be used."""
    _close(run, event.request_id, event.spend)
    if run.status is RunStatus.PLANNING:
        run.status = RunStatus.RUNNING
    run.task_ledger = event.ledger or run.task_ledger
    run.plan_attempts = 0
    run.failure = run.repair = None
    run.replan_due = False


def _replan_decided(run: Run, event: ev.ReplanDecided) -> None:
    step, reason, repair = event.step, event.reason, event.repair
    run.answer = None
    loop_detection.note_replan(run, step, reason)
    _drop_retries(run)
    run.failure = reason
    run.replan_due = True
    run.status = RunStatus.RUNNING
    run.review_attempts = 0
    run.repair = step if repair else None
    if step is not None and repair:
        run.repaired |= {run.steps[step].step.operation}
    elif not isinstance(run.playbook.plan, PlanByTurns):
        run.ledger = changed(run.ledger, replans=run.ledger.replans + 1)


def _escalated(run: Run, event: ev.RunEscalated, at: datetime) -> None:
    _drop_retries(run)
    _stop_waiting(run, at)  # from here a person has this run too: the time of both is given back together
    run.status = RunStatus.ESCALATED
    run.reason = event.reason
    run.stopped_step = event.step
    run.escalated_at = at
    run.escalations += 1


def _ended(run: Run, event: ev.RunEnded, at: datetime) -> None:
    run.status = RunStatus(event.status)
    run.reason = event.reason
    run.output = event.output
    run.left_open, run.ledger_at_end, run.under_way = run.requests, run.ledger, event.under_way or ()
    run.requests, run.retries = {}, {}
    run.finished_at = at


def _overridden(run: Run, event: ev.StepOverridden, at: datetime) -> None:
    """Skip a step, or take a person's output for it. What its branches have given is not lost because some failed."""
    state = run.steps[event.step]
    is_kept = event.data is None and state.fan_out is not None
    result = run.merged(state) if is_kept else Result(status=ResultStatus.OK, data=event.data)
    _change_step(run, event.step, status=StepStatus.SKIPPED, result=result, ended_at=at, is_overridden=True)
    run.commands |= {event.command_id}


def _answered_late(run: Run, event: ev.AnsweredLate, at: datetime) -> None:
    """Record what was done and what it cost. How the run ended stays as it is."""
    request = run.left_open.pop(event.request_id)
    if event.extended is not None:
        run.ledger = run.ledger.widen(event.extended)
    run.ledger = run.ledger.charge(request.reserved, event.spend)
    if event.step is None or event.result is None:
        return
    state = run.state(event.step)
    if isinstance(request.event, ev.CallRequested):
        _change_step(run, event.step, written=_written(state, event.result, request.event.idempotency_key, at))
    elif event.result.status is not ResultStatus.ERROR:
        _change_step(run, event.step, compensation=CompensationStatus.DONE)


def _undo_started(run: Run, event: ev.UndoStarted) -> None:
    """Wait for what is under way, and try again, under the same key, what could not be undone before."""
    _drop_retries(run)
    run.status = RunStatus.UNDOING
    run.undo = event
    for state in (*run.steps.values(), *run.branches.values()):
        if state.compensation is CompensationStatus.FAILED:
            _change_step(run, state.id, compensation=CompensationStatus.NOT_ASKED, compensation_attempts=0)
    run.commands |= {event.command_id}


def _undo_requested(run: Run, event: ev.UndoRequested) -> None:
    _open(run, RequestKind.UNDO, event.step, event)
    _change_step(run, event.step, compensation_attempts=event.attempt)


def _undo_answered(run: Run, event: ev.UndoAnswered) -> None:
    _close(run, event.request_id, Spend())
    has_failed = event.result.status is ResultStatus.ERROR
    compensation = CompensationStatus.FAILED if has_failed else CompensationStatus.DONE
    _change_step(run, event.step, compensation=compensation)


def _open(
    run: Run,
    kind: RequestKind,
    step: str | None,
    event: ev.Requested,
) -> None:
    run.requested += 1
    run.requests[event.request_id] = OpenRequest(kind, step, event.reserved, event.reissue_at, event)
    if run.retries:
        run.retries.pop((kind, step), None)
    run.ledger = run.ledger.reserve(event.reserved)


def _close(run: Run, request_id: str, spend: Spend) -> None:
    request = run.requests.pop(request_id)
    run.ledger = run.ledger.charge(request.reserved, spend)


def _change_step(run: Run, state_id: str, **changes: Any) -> None:
    """Change a step, or a branch of one; a step knows how far its branches are."""
    if (state := run.steps.get(state_id)) is not None:
        run.steps[state_id] = changed(state, **changes)
        return
    branch = run.branches[state_id]
    _put_branch(run, branch, changed(branch, **changes))


def _put_branch(run: Run, before: StepState, after: StepState) -> None:
    run.branches[after.id] = after
    if after.status is not before.status:
        owner = run.steps[after.step.id]
        run.steps[after.step.id] = changed(owner, fan_out=_recounted(owner.fan_out, before, after))


def _recounted(fan: FanOut | None, before: StepState, after: StepState) -> FanOut:
    assert fan is not None and after.index is not None  # noqa: S101, PT018 - a branch is a branch of a fan-out
    was, now = before.status, after.status
    if now is StepStatus.WAITING:
        first = min(fan.next, after.index)
    else:
        # The first that waits is the first to start, so none before it waits.
        first = after.index + 1 if was is StepStatus.WAITING else fan.next
    return changed(
        fan,
        next=first,
        under_way=fan.under_way + now.is_under_way - was.is_under_way,
        answered=fan.answered + (now is StepStatus.ANSWERED) - (was is StepStatus.ANSWERED),
        ended=fan.ended + now.has_ended - was.has_ended,
        failed=fan.failed + (now is StepStatus.FAILED) - (was is StepStatus.FAILED),
    )


def _fan_out(run: Run, step_id: str, items: list[Json], at: datetime) -> None:
    state, ledger = run.steps[step_id], run.ledger
    loop_detection.note_call(run, state.step.operation, [items, state.step.arguments])
    run.ledger = changed(ledger, steps=ledger.steps + (not state.counted))
    run.steps[step_id] = changed(state, status=StepStatus.RUNNING, fan_out=FanOut(items), counted=True, started_at=at)
    for index in range(len(items)):
        run.branches[branch_id(step_id, index)] = StepState(
            step=state.step, revision=state.revision, index=index, call=state.call, counted=True
        )


def _fan_in(run: Run, step_id: str) -> None:
    state = run.steps[step_id]
    result = run.merged(state)
    _change_step(run, step_id, status=StepStatus.ANSWERED, result=result)
    loop_detection.note_result(run, run.steps[step_id], result)


def _call_requested(run: Run, event: ev.CallRequested, at: datetime) -> None:
    _open(run, RequestKind.CALL, event.step, event)
    state, ledger = run.state(event.step), run.ledger
    if state.started_at is None and state.index is None:
        loop_detection.note_call(run, state.step.operation, event.arguments)
    loop_detection.note_write(run, state, event.arguments, event.idempotency_key)
    run.ledger = changed(ledger, tool_calls=ledger.tool_calls + 1, steps=ledger.steps + (not state.counted))
    _change_step(
        run,
        event.step,
        status=StepStatus.RUNNING,
        call=event.call,
        attempts=event.attempt,
        counted=True,
        arguments=event.arguments,
        child=event.child,
        business_key=event.business_key or state.business_key,
        result=None,
        uncounted=False,
        started_at=state.started_at or at,
    )


def _key_requested(run: Run, event: ev.KeyRequested) -> None:
    run.retries.pop((RequestKind.CALL, event.step), None)
    _open(run, RequestKind.KEY, event.step, event)
    _change_step(run, event.step, status=StepStatus.RUNNING)


def _key_answered(run: Run, event: ev.KeyAnswered, at: datetime) -> None:
    _close(run, event.request_id, Spend())
    if event.standing == "receipt":
        _change_step(
            run,
            event.step,
            status=StepStatus.ANSWERED,
            arguments=event.arguments,
            result=event.result,
            started_at=run.state(event.step).started_at or at,
        )
        return
    waits = run.state(event.step).key_waits
    _change_step(run, event.step, status=StepStatus.WAITING, key_waits=waits + 1 if event.standing == "held" else 0)


def _call_reused(run: Run, event: ev.CallReused, at: datetime) -> None:
    result = run.state(event.source).answer_to_keep
    _change_step(run, event.step, status=StepStatus.ANSWERED, arguments=event.arguments, result=result, started_at=at)


def _reissued(run: Run, event: ev.RequestReissued) -> None:
    request = run.requests[event.request_id]
    run.requests[event.request_id] = changed(request, reissue_at=event.reissue_at, reissues=request.reissues + 1)


def _fallback_taken(run: Run, event: ev.FallbackTaken, at: datetime) -> None:
    """Begin a step again with its fallback; a result that the plan itself holds is its answer already."""
    data = run.state(event.step).step.fallback[event.number - 1].fallback.data
    result = None if data is None else Result.ok(data)
    _change_step(
        run,
        event.step,
        status=StepStatus.WAITING if result is None else StepStatus.ANSWERED,
        fallback=event.number,
        attempts=0,
        postponed=0,
        result=result,
        started_at=run.state(event.step).started_at or at,
    )


def _review_requested(run: Run, event: ev.ReviewRequested) -> None:
    _open(run, RequestKind.REVIEW, event.step, event)
    if event.step is None:
        run.status = RunStatus.REVIEWING
        run.review_attempts += 1
        run.output = event.output
    else:
        attempts = run.state(event.step).review_attempts + 1
        _change_step(run, event.step, status=StepStatus.REVIEWING, review_attempts=attempts)


def _reviewed(run: Run, event: ev.VerdictGiven | ev.ReviewFailed) -> None:
    _close(run, event.request_id, event.spend)
    if event.step is not None:
        _change_step(run, event.step, status=StepStatus.ANSWERED)
    elif run.status is RunStatus.REVIEWING:
        run.status = RunStatus.RUNNING


def _child_escalated(run: Run, event: ev.ChildEscalated, at: datetime) -> None:
    run.children_waiting = {**run.children_waiting, event.step: event.reason}
    run.child_waits += 1
    if run.status is not RunStatus.ESCALATED:
        run.children_waiting_since = run.children_waiting_since or at
    run.commands |= {event.command_id}


def _child_resumed(run: Run, event: ev.ChildResumed, at: datetime) -> None:
    _child_goes_on(run, event.step, at)
    run.commands |= {event.command_id}


def _child_goes_on(run: Run, step_id: str, at: datetime) -> None:
    """Let the wall clock go on when the last child run no longer waits for a person."""
    if step_id not in run.children_waiting:
        return
    run.children_waiting = {step: reason for step, reason in run.children_waiting.items() if step != step_id}
    if not run.children_waiting:
        _stop_waiting(run, at)


def _stop_waiting(run: Run, at: datetime) -> None:
    if run.children_waiting_since is not None:
        run.deadline_at += at - run.children_waiting_since
        run.children_waiting_since = None


def _call_answered(run: Run, event: ev.CallAnswered, at: datetime) -> None:
    if event.extended is not None:
        run.ledger = run.ledger.widen(event.extended)
    asked = run.requests[event.request_id].event
    _close(run, event.request_id, event.spend)
    if event.uncounted:
        run.ledger = changed(run.ledger, tool_calls=run.ledger.tool_calls - 1)
    _child_goes_on(run, event.step, at)
    state, result = run.state(event.step), event.result
    assert isinstance(asked, ev.CallRequested)  # noqa: S101 - what answers a call was asked as one
    key = asked.idempotency_key
    is_undone = state.written is None and _is_known_undone(state, result)
    if is_undone:
        loop_detection.note_undone(run, state, key)
    if state.index is None:
        loop_detection.note_result(run, state, result)
    _change_step(
        run,
        event.step,
        status=StepStatus.ANSWERED,
        result=result,
        uncounted=event.uncounted,
        written=_written(state, result, key, at),
        business_key=None if is_undone else state.business_key,
    )


def _written(state: StepState, result: Result, key: str, at: datetime) -> WriteRecord | None:
    """Return what is known of a write after an answer. An uncertain answer takes nothing away."""
    if not state.step.pin.effect.writes:
        return state.written
    if result.status is not ResultStatus.ERROR:
        return WriteRecord(state.arguments, result, state.revision, key, at)
    if _is_known_undone(state, result):
        return state.written
    if state.written is not None:
        return replace(state.written, answered_at=at)
    return WriteRecord(state.arguments, None, state.revision, key, at)


def _is_known_undone(state: StepState, result: Result) -> bool:
    """Return whether a tool says for certain that its call changed nothing. A timeout, for one, leaves that open.

    A child run that failed did what its own journal says, and may be followed by another one.
    """
    return result.error is not None and (state.is_handoff or result.error.details.get("effect") == "none")


def _retry_scheduled(run: Run, kind: RequestKind, step: str | None, due_at: datetime, *, postponed: bool) -> None:
    if kind is RequestKind.CALL and step is not None:
        state = run.state(step)
        _change_step(
            run,
            step,
            status=StepStatus.RETRYING,
            attempts=state.attempts - postponed,
            postponed=state.postponed + 1 if postponed else 0,
        )
        if postponed and not state.uncounted:
            run.ledger = changed(run.ledger, tool_calls=run.ledger.tool_calls - 1)
    run.retries[kind, step] = Retry(kind, step, due_at)


def _drop_retries(run: Run) -> None:
    """Drop all retries: a step that waited for its retry waits to be started instead."""
    run.retries = {}
    for state in (*run.steps.values(), *run.branches.values()):
        if state.status is StepStatus.RETRYING:
            _change_step(run, state.id, status=StepStatus.WAITING)


def _revised(run: Run, planned: tuple[Step, ...], revision: int) -> dict[str, StepState]:
    """Steps that ended stay as they are, whether the new plan names them or not; the others are replaced."""
    steps = {step_id: state for step_id, state in run.steps.items() if state.status.has_ended}
    for step in planned:
        if step.id in steps:
            continue
        before = run.steps.get(step.id)
        # A new plan means other arguments, and other arguments need another idempotency key. A write that took
        # effect keeps its key: the same arguments get the same answer, and others are refused as a conflict.
        written = before.written if before is not None and not _is_superseded(before, step) else None
        keeps_key = before is not None and written is not None and before.has_key_to_keep
        call = before.call + (before.counted and not keeps_key) if before else 1
        unique = before.business_key if before is not None and written is not None else None
        steps[step.id] = StepState(step=step, revision=revision, call=call, written=written, business_key=unique)
    return steps


def _is_superseded(before: StepState, step: Step) -> bool:
    """Return whether a plan gives the name of a write that took effect to another operation."""
    return before.took_effect and before.acting.operation != step.operation


def _superseded(run: Run, planned: tuple[Step, ...]) -> dict[str, StepState]:
    """Keep a write whose name a new plan gives to something else: it is not made again, and can be undone."""
    found = (
        changed(state, status=StepStatus.SKIPPED, is_superseded=True)
        for step in planned
        if (state := run.steps.get(step.id)) and not state.status.has_ended and _is_superseded(state, step)
    )
    return {state.id: state for state in found}


def _again(run: Run, step_id: str, state: StepState) -> None:
    """Begin a failed step again; of a step with branches, those that failed."""
    run.steps[step_id] = state.again()
    if state.fan_out is not None:
        _change_step(run, step_id, status=StepStatus.RUNNING)
        for branch in run.branches_of(state):
            if branch.status is StepStatus.FAILED:
                _put_branch(run, branch, branch.again())


def _next_round(run: Run, state_id: str, number: int, reason: Reason, evidence: tuple[str, ...]) -> None:
    """Make the same again, as another call, which is told what was wrong."""
    state = run.state(state_id)
    feedback = {
        "round": number - 1,
        "code": reason.code,
        "message": reason.message,
        "evidence": list(evidence),
        "data": state.result.data if state.result else None,
    }
    _change_step(
        run,
        state_id,
        status=StepStatus.WAITING,
        call=state.call + 1,
        round=number,
        feedback=feedback,
        attempts=0,
        review_attempts=0,
        result=None,
    )


def _observed(run: Run) -> dict[str, StepState]:
    """Return the steps that did not end well and stay known, unless the new plan names them.

    Writes that may have happened, so that no later plan does them again under another name, and an abort still finds
    what it has to undo. A planner by turns goes on from any failure.
    """
    by_turns = isinstance(run.playbook.plan, PlanByTurns)
    return {
        step_id: changed(state, status=StepStatus.SKIPPED)
        for step_id, state in run.steps.items()
        if (by_turns and state.status is StepStatus.FAILED and state.result is not None)
        or (state.took_effect and state.fan_out is None and not state.status.has_ended)
    }


def _stays(run: Run, branch: StepState) -> bool:
    step = run.steps.get(branch.step.id)
    return branch.is_superseded or (step is not None and step.fan_out is not None)


def _resumed(run: Run, event: ev.RunResumed, at: datetime) -> None:
    for step_id, state in run.steps.items():
        if state.status is StepStatus.FAILED:
            _again(run, step_id, state)
    run.status = RunStatus.RUNNING if run.revision or run.answer is not None else RunStatus.PLANNING
    run.replan_due = run.failure is not None
    run.plan_attempts = run.review_attempts = 0
    run.progress = Progress(turns_from=run.revision)
    run.reason = run.stopped_step = run.escalated_at = None
    run.deadline_at = event.deadline_at
    run.children_waiting_since = at if run.children_waiting else None
    run.ledger = run.ledger.extend(event.extend)
    run.commands |= {event.command_id}
