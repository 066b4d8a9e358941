"""How a run moves: `decide(run, message, now)` gives the events that follow from a message.

Pure and synchronous: no I/O, no clock, no randomness. The run moves only here. A message that answers no open
request changes nothing. After every message, an active run has an open request, a retry that will be due, or its
deadline: something always wakes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from triptych.executor import compensation
from triptych.executor import events as ev
from triptych.executor.budgets import overspent
from triptych.executor.child_runs import waits_for_room
from triptych.executor.commands import InvalidCommand, on_command
from triptych.executor.ending import record_late_answer
from triptych.executor.failures import fail_step
from triptych.executor.fan_out import branch_to_start, open_branches
from triptych.executor.fold import admit
from triptych.executor.keys import KeyReply, on_key
from triptych.executor.requests import (
    REISSUE_AFTER_MS,
    request_call,
    request_plan,
    request_step_review,
)
from triptych.executor.results import finish, follow_verdict, handle_result, on_failed_review, worker_reason
from triptych.executor.retries import FailureAction, is_outage, retry_plan
from triptych.executor.state import FanOut, RequestKind, Run, RunStatus, StepState, StepStatus
from triptych.executor.transition import Decided, KnownPlan, RunTransition
from triptych.playbook.expressions import ExpressionError, holds, metered
from triptych.schemas import (
    CallAnswer,
    ChildTask,
    Control,
    ErrorCode,
    Grant,
    Parent,
    PlanAnswer,
    PlanByTurns,
    Playbook,
    Reason,
    Task,
    ToolError,
    VerdictAnswer,
)


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: something of this run may be due."""


@dataclass(frozen=True, slots=True)
class Start:
    """There is room for a run that was queued."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Processes have ended while they looked at this run: a person is to look at it next."""

    reason: Reason


AnswerT = TypeVar("AnswerT", CallAnswer, VerdictAnswer, PlanAnswer)

Message = CallAnswer | VerdictAnswer | PlanAnswer | Control | InvalidCommand | Tick | Start | KeyReply | GivenUp


@metered
def begin(
    task: Task,
    *,
    task_id: str,
    run_id: UUID,
    playbook: Playbook,
    partition: int,
    now: datetime,
    has_room: bool = True,
    traceparent: str | None = None,
    others: tuple[Playbook, ...] = (),
    known_plan: KnownPlan | None = None,
) -> Decided:
    """Admit a task as a new run and ask for its plan, or queue it until there is room.

    With a `known_plan`, the planner is not asked, and the first steps begin.
    """
    parent = task.parent if isinstance(task, ChildTask) else None
    admitted = ev.RunAdmitted(
        tenant=task.tenant,
        task_id=task_id,
        principal=task.principal,
        playbook=playbook,
        input=task.input,
        partition=partition,
        deadline_at=_deadline(playbook, now, parent),
        parent=parent,
        queued=not has_room,
        traceparent=traceparent,
        others=others,
    )
    transition = RunTransition(admit(run_id, admitted, now), now, known_plan)
    transition.events.append(admitted)
    _advance(transition)
    return transition.decided()


@metered
def decide(run: Run, message: Message, now: datetime, known_plan: KnownPlan | None = None) -> Decided:
    """Decide what follows from a message. A stale answer, and a command to a finished run, change nothing.

    A run that has no plan yet takes the `known_plan` when it would ask for one.
    """
    transition = RunTransition(run, now, known_plan)
    if run.status.is_final:
        if isinstance(message, CallAnswer | VerdictAnswer | PlanAnswer):
            record_late_answer(transition, message)
        return transition.decided()
    match message:
        case CallAnswer() if _is_asked_for(run, message, RequestKind.CALL, RequestKind.UNDO):
            _within_grant(transition, message, _on_result)
        case VerdictAnswer() if _is_asked_for(run, message, RequestKind.REVIEW):
            _within_grant(transition, message, _on_verdict)
        case PlanAnswer() if _is_asked_for(run, message, RequestKind.PLAN):
            _within_grant(transition, message, _on_plan)
        case Control() | InvalidCommand():
            on_command(transition, message)
        case KeyReply() if (request := run.requests.get(message.request_id)) and request.kind is RequestKind.KEY:
            on_key(transition, message)
        case Tick():
            _on_tick(transition)
        case Start() | GivenUp():
            _start_or_give_up(transition, message)
    _advance(transition)
    return transition.decided()


def _start_or_give_up(transition: RunTransition, message: Start | GivenUp) -> None:
    run = transition.run
    if isinstance(message, GivenUp):
        if run.status.is_active:
            transition.record(ev.RunEscalated(message.reason))
    elif run.status is RunStatus.QUEUED:
        transition.record(ev.RunStarted(_deadline(run.playbook, transition.now, run.parent)))


def _is_asked_for(run: Run, answer: CallAnswer | VerdictAnswer | PlanAnswer, *kinds: RequestKind) -> bool:
    """Return whether an answer is to an open request of its kind, and from the child run if one was asked."""
    request = run.requests.get(answer.request_id)
    if request is None or request.kind not in kinds:
        return False
    return getattr(answer, "child", None) == getattr(request.event, "child", None)


def _deadline(playbook: Playbook, start: datetime, parent: Parent | None) -> datetime:
    own = start + timedelta(milliseconds=playbook.budgets.wall_ms)
    return min(own, parent.deadline_at) if parent else own


# --- what came in ---------------------------------------------------------------------------------


def _within_grant(transition: RunTransition, answer: AnswerT, follow: Callable[[RunTransition, AnswerT], None]) -> None:
    """Do what follows from an answer; one that cost more than its grant is recorded as it is, and stops the run."""
    request = transition.run.requests[answer.request_id]
    extended = answer.extended if isinstance(answer, CallAnswer) else None
    granted = request.reserved if extended is None else request.reserved.plus(extended)
    if reason := overspent(granted, answer.spend):
        spend = answer.spend
        spent = Grant(tokens=spend.tokens, usd_micros=spend.usd_micros, tool_calls=spend.tool_calls)
        transition.record(ev.Overspent(answer.request_id, request.step, granted, spent))
        if transition.run.status.is_active:
            transition.record(ev.RunEscalated(reason, request.step))
    follow(transition, answer)


def _on_plan(transition: RunTransition, answer: PlanAnswer) -> None:
    if transition.run.undo is not None:
        # Another plan would forget steps that are being undone.
        late = ToolError(code=ErrorCode.CANCELLED, message="the run is being undone; no plan is wanted any more")
        transition.record(ev.PlanRefused(answer.request_id, late, spend=answer.spend))
        return
    if answer.answer is not None:
        transition.record(ev.GoalReached(answer.request_id, answer.answer, answer.spend, answer.ledger))
        _leave_what_is_left(transition)
        return
    asked = transition.run.revision + 1
    if answer.plan is not None and answer.plan.revision == asked:
        transition.record(ev.PlanAccepted(answer.request_id, answer.plan, answer.spend, answer.ledger, answer.worker))
        return
    said = f"revision {answer.plan.revision} of it" if answer.plan else "neither a plan nor an error"
    message = f"revision {asked} of the plan was asked for, and the planner gave {said}"
    error = answer.error or ToolError(code=ErrorCode.INTERNAL, message=message)
    transition.record(ev.PlanRefused(answer.request_id, error, answer.code, answer.spend))
    if not transition.run.status.is_active:
        return
    reason = Reason(code=answer.code or worker_reason(error, "planner_unavailable"), message=error.message)
    if answer.code is not None or not retry_plan(transition, error, reason):
        transition.record(ev.RunEscalated(reason))


def _leave_what_is_left(transition: RunTransition) -> None:
    """Skip the steps that have not ended: the goal was reached without them."""
    unwanted = Reason(code="not_wanted", message="the goal was reached without it")
    for state in tuple(transition.run.steps.values()):
        if not state.status.has_ended:
            transition.record(ev.StepEnded(state.id, StepStatus.SKIPPED, state.reason or unwanted))


def _on_result(transition: RunTransition, answer: CallAnswer) -> None:
    request = transition.run.requests[answer.request_id]
    step_id = request.step
    assert step_id is not None  # noqa: S101 - a call is always a step's
    if request.kind is RequestKind.UNDO:
        compensation.on_answer(transition, answer, step_id)
        return
    transition.record(
        ev.CallAnswered(
            request_id=answer.request_id,
            step=step_id,
            result=answer.result,
            spend=answer.spend,
            worker=answer.worker,
            started_at=answer.started_at,
            finished_at=answer.finished_at,
            extended=answer.extended,
            uncounted=answer.result.error is not None and is_outage(answer.result.error),
        )
    )
    if transition.run.status.is_active:
        handle_result(transition, transition.run.state(step_id))


def _on_verdict(transition: RunTransition, answer: VerdictAnswer) -> None:
    step_id = transition.run.requests[answer.request_id].step
    if answer.decision is None:
        error = answer.error or ToolError(code=ErrorCode.INTERNAL, message="the critic gave neither verdict nor error")
        transition.record(ev.ReviewFailed(answer.request_id, step_id, error, answer.spend))
        if transition.run.status.is_active:
            on_failed_review(transition, step_id, error)
        return
    transition.record(
        ev.VerdictGiven(
            request_id=answer.request_id,
            step=step_id,
            decision=answer.decision,
            reason=answer.reason,
            evidence=answer.evidence,
            confidence=answer.confidence,
            spend=answer.spend,
        )
    )
    if transition.run.status.is_active:
        reason = answer.reason or Reason(code=answer.decision.value, message="the critic gave no reason")
        follow_verdict(transition, step_id, answer.decision, reason, answer.evidence)


def _on_tick(transition: RunTransition) -> None:
    run, now = transition.run, transition.now
    if run.status.is_active and now >= run.deadline_at and not run.children_waiting:
        wall_ms = run.playbook.budgets.wall_ms
        transition.record(
            ev.RunEscalated(
                Reason(
                    code="budget_wall_ms",
                    message=f"the run was not done within its wall clock of {wall_ms} ms; resume with more or abort",
                )
            )
        )
    for request_id, request in run.requests.items():
        if request.reissue_at <= now:
            again_in_ms = REISSUE_AFTER_MS * 2 ** min(request.reissues + 1, 6)
            transition.record(ev.RequestReissued(request_id, now + timedelta(milliseconds=again_in_ms)))
    for retry in tuple(transition.run.retries.values()):
        if retry.due_at <= now and (transition.run.status.is_active or transition.run.status is RunStatus.UNDOING):
            _request_again(transition, retry.kind, retry.step)


def _request_again(transition: RunTransition, kind: RequestKind, step_id: str | None) -> None:
    match kind, step_id:
        case RequestKind.PLAN, _:
            request_plan(transition)
        case RequestKind.CALL, str():
            request_call(transition, transition.run.state(step_id))
        case RequestKind.REVIEW, str():
            request_step_review(transition, transition.run.state(step_id))
        case RequestKind.REVIEW, None:
            finish(transition)
        case RequestKind.UNDO, str():
            compensation.ask_again(transition, step_id)


# --- what follows ---------------------------------------------------------------------------------


def _advance(transition: RunTransition) -> None:
    """Start all that can start now; when nothing is under way, plan again or finish."""
    while _start_one(transition):
        pass
    run = transition.run
    if run.status is RunStatus.UNDOING:
        compensation.advance(transition)
        return
    if run.status not in (RunStatus.PLANNING, RunStatus.RUNNING) or run.requests or run.retries:
        return
    if run.replan_due or run.status is RunStatus.PLANNING:
        request_plan(transition)
        if run.status is RunStatus.RUNNING:  # the plan was known, so its steps can start
            _advance(transition)
    elif waiting := [step_id for step_id, state in run.steps.items() if not state.status.has_ended]:
        message = f"steps {', '.join(waiting)} wait for steps that no plan has; resume to plan again, or abort"
        transition.record(ev.RunEscalated(Reason(code="plan_invalid", message=message)))
    elif isinstance(run.playbook.plan, PlanByTurns) and run.answer is None:
        request_plan(transition)
    else:
        finish(transition)


def _start_one(transition: RunTransition) -> bool:
    """Start or skip the first step that is ready, or handle its result; False when there is no other to look for."""
    if transition.run.status is not RunStatus.RUNNING:
        return False
    return _handle_results_before_plan(transition) if transition.run.replan_due else _start_first(transition)


def _start_first(transition: RunTransition) -> bool:
    run = transition.run
    under_way = 0
    ready: StepState | None = None
    may_be_more = False
    for state in run.steps.values():
        status = state.status
        if status.has_ended:
            continue
        if state.fan_out is not None and status is StepStatus.RUNNING:
            if _handle_branches(transition, state, state.fan_out):
                return True
            under_way += state.fan_out.under_way
            may_be_more = True
            ready = ready or branch_to_start(run, state)
        elif status is StepStatus.ANSWERED and not _is_reviewed_later(run, state):
            handle_result(transition, state)
            return True
        elif status.is_under_way:
            under_way += 1
        elif status is StepStatus.WAITING and not (ready and may_be_more) and _is_ready(run, state):
            may_be_more = may_be_more or ready is not None
            ready = ready or state
    if ready is None or under_way >= run.playbook.parallel:
        return False
    _start(transition, ready)
    # When the only step that was ready is under way now, and has no other event, nothing else has become ready.
    return may_be_more or not isinstance(transition.events[-1], ev.CallRequested)


def _handle_results_before_plan(transition: RunTransition) -> bool:
    """Handle a result that came while a person had the run, before another plan can forget it."""
    for state in transition.run.steps.values():
        if (
            state.fan_out is None
            and state.status is StepStatus.ANSWERED
            and not _is_reviewed_later(transition.run, state)
        ):
            handle_result(transition, state)
            return True
    return False


def _handle_branches(transition: RunTransition, state: StepState, fan: FanOut) -> bool:
    """Handle the result of a branch that came while nothing could be decided, or that of all branches together."""
    if fan.is_over:
        transition.record(ev.FanInDone(state.id))
        return True
    if not fan.answered:
        return False
    for branch in transition.run.branches_of(state):
        if branch.status is StepStatus.ANSWERED and not _is_reviewed_later(transition.run, branch):
            handle_result(transition, branch)
            return True
    return False


def _is_ready(run: Run, state: StepState) -> bool:
    for name in state.step.depends_on:
        before = run.steps.get(name)
        if before is None or not before.status.has_ended:
            return False
    return not (state.is_handoff and state.step.map is None and waits_for_room(run, state.step))


def _is_reviewed_later(run: Run, state: StepState) -> bool:
    """Return whether the review of an answered step will be asked for again later."""
    return bool(run.retries) and (RequestKind.REVIEW, state.id) in run.retries


def _start(transition: RunTransition, state: StepState) -> None:
    step = state.step
    if state.index is not None:
        request_call(transition, state)
        return
    try:
        is_wanted = step.when is None or holds(step.when, transition.run.scope())
    except ExpressionError as error:
        fail_step(
            transition,
            step.id,
            FailureAction.REPLAN,
            Reason(code="expression_error", message=f"step {step.id}, when: {error}"),
        )
        return
    if is_wanted and step.map is not None:
        open_branches(transition, state)
    elif is_wanted:
        request_call(transition, state)
    else:
        reason = Reason(code="not_wanted", message=f"`{step.when}` is false")
        transition.record(ev.StepEnded(step.id, StepStatus.SKIPPED, reason))
