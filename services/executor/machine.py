"""How a run moves: `decide(run, message, now)` gives the events that follow from a message.

Pure and synchronous: no I/O, no clock, no randomness. The run moves only here. A message that
answers nothing open changes nothing. Whatever happens, an active run is left with an open request, a
retry that is due, or its deadline; it never waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID

from triptych.executor import compensation
from triptych.executor import events as ev
from triptych.executor.branches import branch_to_start, fan_out
from triptych.executor.budgets import overspent
from triptych.executor.child_runs import waits_for_room
from triptych.executor.commands import UnfitCommand, on_command
from triptych.executor.ending import note_late
from triptych.executor.fan_out import FanOut
from triptych.executor.fold import admit
from triptych.executor.keys import KeyTold, on_key
from triptych.executor.requests import (
    REISSUE_AFTER_MS,
    request_call,
    request_plan,
    request_step_review,
)
from triptych.executor.results import (
    WORKER_RETRY,
    finish,
    follow_verdict,
    may_retry,
    retry_review,
    settle,
    worker_reason,
)
from triptych.executor.retries import Then, is_outage
from triptych.executor.state import Ask, Run, RunStatus, StepState, StepStatus
from triptych.executor.transition import Decided, Turn, fail_step, schedule_retry
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

Message = CallAnswer | VerdictAnswer | PlanAnswer | Control | UnfitCommand | Tick | Start | KeyTold | GivenUp


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
) -> Decided:
    """Admit a task as a new run and ask for its plan, or queue it until there is room."""
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
    turn = Turn(admit(run_id, admitted, now), now)
    turn.events.append(admitted)
    _advance(turn)
    return turn.decided()


@metered()
def decide(run: Run, message: Message, now: datetime) -> Decided:
    """What follows from a message. Answers to nothing open, and commands to a finished run, change nothing."""
    turn = Turn(run, now)
    if run.status.is_final:
        if isinstance(message, CallAnswer | VerdictAnswer | PlanAnswer):
            note_late(turn, message)
        return turn.decided()
    match message:
        case CallAnswer() if _is_asked_for(run, message, Ask.CALL, Ask.UNDO):
            _within_grant(turn, message, _on_result)
        case VerdictAnswer() if _is_asked_for(run, message, Ask.REVIEW):
            _within_grant(turn, message, _on_verdict)
        case PlanAnswer() if _is_asked_for(run, message, Ask.PLAN):
            _within_grant(turn, message, _on_plan)
        case Control() | UnfitCommand():
            on_command(turn, message)
        case KeyTold() if (open_one := run.requests.get(message.request_id)) and open_one.ask is Ask.KEY:
            on_key(turn, message)
        case Tick():
            _on_tick(turn)
        case Start() | GivenUp():
            _start_or_give_up(turn, message)
    _advance(turn)
    return turn.decided()


def _start_or_give_up(turn: Turn, message: Start | GivenUp) -> None:
    run = turn.run
    if isinstance(message, GivenUp):
        if run.status.is_active:
            turn.record(ev.RunEscalated(message.reason))
    elif run.status is RunStatus.QUEUED:
        turn.record(ev.RunStarted(_deadline(run.playbook, turn.now, run.parent)))


def _is_asked_for(run: Run, answer: CallAnswer | VerdictAnswer | PlanAnswer, *asks: Ask) -> bool:
    """Whether an answer is to an open request of its kind, and by the run that was asked if one was."""
    request = run.requests.get(answer.request_id)
    if request is None or request.ask not in asks:
        return False
    return getattr(answer, "child", None) == getattr(request.event, "child", None)


def _deadline(playbook: Playbook, start: datetime, parent: Parent | None) -> datetime:
    own = start + timedelta(milliseconds=playbook.budgets.wall_ms)
    return min(own, parent.deadline_at) if parent else own


# --- what came in ---------------------------------------------------------------------------------


def _within_grant(turn: Turn, answer: AnswerT, follow: Callable[[Turn, AnswerT], None]) -> None:
    """Do what follows from an answer; one that cost more than its grant is recorded as it is, and stops the run."""
    request = turn.run.requests[answer.request_id]
    extended = answer.extended if isinstance(answer, CallAnswer) else None
    granted = request.reserved if extended is None else request.reserved.plus(extended)
    if reason := overspent(granted, answer.spend):
        spend = answer.spend
        spent = Grant(tokens=spend.tokens, usd_micros=spend.usd_micros, tool_calls=spend.tool_calls)
        turn.record(ev.Overspent(answer.request_id, request.step, granted, spent))
        if turn.run.status.is_active:
            turn.record(ev.RunEscalated(reason, request.step))
    follow(turn, answer)


def _on_plan(turn: Turn, answer: PlanAnswer) -> None:
    if turn.run.undo is not None:
        # Another plan would forget steps that are being undone.
        late = ToolError(code=ErrorCode.CANCELLED, message="the run is being undone; no plan is wanted any more")
        turn.record(ev.PlanRefused(answer.request_id, late, spend=answer.spend))
        return
    if answer.answer is not None:
        turn.record(ev.GoalReached(answer.request_id, answer.answer, answer.spend, answer.ledger))
        _leave_what_is_left(turn)
        return
    asked = turn.run.revision + 1
    if answer.plan is not None and answer.plan.revision == asked:
        turn.record(ev.PlanAccepted(answer.request_id, answer.plan, answer.spend, answer.ledger))
        return
    said = f"revision {answer.plan.revision} of it" if answer.plan else "neither a plan nor an error"
    message = f"revision {asked} of the plan was asked for, and the planner gave {said}"
    error = answer.error or ToolError(code=ErrorCode.INTERNAL, message=message)
    turn.record(ev.PlanRefused(answer.request_id, error, answer.code, answer.spend))
    if not turn.run.status.is_active:
        return
    reason = Reason(code=answer.code or worker_reason(error, "planner_unavailable"), message=error.message)
    if answer.code is None and may_retry(error) and turn.run.plan_attempts < WORKER_RETRY.max_attempts:
        schedule_retry(turn, Ask.PLAN, None, WORKER_RETRY, turn.run.plan_attempts, reason, error.retry_after_ms)
    else:
        turn.record(ev.RunEscalated(reason))


def _leave_what_is_left(turn: Turn) -> None:
    """The goal was reached without the steps that failed, and without those that waited for them."""
    unwanted = Reason(code="not_wanted", message="the goal was reached without it")
    for state in tuple(turn.run.steps.values()):
        if not state.status.has_ended:
            turn.record(ev.StepEnded(state.id, StepStatus.SKIPPED, state.reason or unwanted))


def _on_result(turn: Turn, answer: CallAnswer) -> None:
    request = turn.run.requests[answer.request_id]
    step_id = request.step
    assert step_id is not None  # noqa: S101 - a call is always a step's
    if request.ask is Ask.UNDO:
        compensation.on_answer(turn, answer, step_id)
        return
    turn.record(
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
    if turn.run.status.is_active:
        settle(turn, turn.run.state(step_id))


def _on_verdict(turn: Turn, answer: VerdictAnswer) -> None:
    step_id = turn.run.requests[answer.request_id].step
    if answer.decision is None:
        error = answer.error or ToolError(code=ErrorCode.INTERNAL, message="the critic gave neither verdict nor error")
        turn.record(ev.ReviewFailed(answer.request_id, step_id, error, answer.spend))
        if turn.run.status.is_active:
            retry_review(turn, step_id, error)
        return
    turn.record(
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
    if turn.run.status.is_active:
        reason = answer.reason or Reason(code=answer.decision.value, message="the critic gave no reason")
        follow_verdict(turn, step_id, answer.decision, reason, answer.evidence)


def _on_tick(turn: Turn) -> None:
    run, now = turn.run, turn.now
    if run.status.is_active and now >= run.deadline_at and not run.children_waiting:
        wall_ms = run.playbook.budgets.wall_ms
        turn.record(
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
            turn.record(ev.RequestReissued(request_id, now + timedelta(milliseconds=again_in_ms)))
    for retry in tuple(turn.run.retries.values()):
        if retry.due_at <= now and (turn.run.status.is_active or turn.run.status is RunStatus.UNDOING):
            _ask_again(turn, retry.ask, retry.step)


def _ask_again(turn: Turn, ask: Ask, step_id: str | None) -> None:
    match ask, step_id:
        case Ask.PLAN, _:
            request_plan(turn)
        case Ask.CALL, str():
            request_call(turn, turn.run.state(step_id))
        case Ask.REVIEW, str():
            request_step_review(turn, turn.run.state(step_id))
        case Ask.REVIEW, None:
            finish(turn)
        case Ask.UNDO, str():
            compensation.ask_again(turn, step_id)


# --- what follows ---------------------------------------------------------------------------------


def _advance(turn: Turn) -> None:
    """Start whatever can start now; when nothing is under way, plan again or finish."""
    while _start_one(turn):
        pass
    run = turn.run
    if run.status is RunStatus.UNDOING:
        compensation.advance(turn)
        return
    if run.status not in (RunStatus.PLANNING, RunStatus.RUNNING) or run.requests or run.retries:
        return
    if run.replan_due or run.status is RunStatus.PLANNING:
        request_plan(turn)
    elif waiting := [step_id for step_id, state in run.steps.items() if not state.status.has_ended]:
        message = f"steps {', '.join(waiting)} wait for steps that no plan has; resume to plan again, or abort"
        turn.record(ev.RunEscalated(Reason(code="plan_invalid", message=message)))
    elif isinstance(run.playbook.plan, PlanByTurns) and run.answer is None:
        request_plan(turn)
    else:
        finish(turn)


def _start_one(turn: Turn) -> bool:
    """Start, skip or settle the first step that is ready; False when there is no other to look for."""
    if turn.run.status is not RunStatus.RUNNING:
        return False
    return _settle_before_plan(turn) if turn.run.replan_due else _start_first(turn)


def _start_first(turn: Turn) -> bool:
    run = turn.run
    under_way = 0
    ready: StepState | None = None
    may_be_more = False
    for state in run.steps.values():
        status = state.status
        if status.has_ended:
            continue
        if state.fan is not None and status is StepStatus.RUNNING:
            if _settle_branch(turn, state, state.fan):
                return True
            under_way += state.fan.under_way
            may_be_more = True
            ready = ready or branch_to_start(run, state)
        elif status is StepStatus.ANSWERED and not _is_reviewed_later(run, state):
            settle(turn, state)
            return True
        elif status.is_under_way:
            under_way += 1
        elif status is StepStatus.WAITING and not (ready and may_be_more) and _is_ready(run, state):
            may_be_more = may_be_more or ready is not None
            ready = ready or state
    if ready is None or under_way >= run.playbook.parallel:
        return False
    _start(turn, ready)
    # When the only one that was ready is under way now, and no more has come of it, nothing else has become ready.
    return may_be_more or not isinstance(turn.events[-1], ev.CallRequested)


def _settle_before_plan(turn: Turn) -> bool:
    """What was answered while a person had the run is settled before another plan could forget it."""
    for state in turn.run.steps.values():
        if state.fan is None and state.status is StepStatus.ANSWERED and not _is_reviewed_later(turn.run, state):
            settle(turn, state)
            return True
    return False


def _settle_branch(turn: Turn, state: StepState, fan: FanOut) -> bool:
    """Settle a branch that was answered while nothing could be decided, or the step when all branches are over."""
    if fan.is_over:
        turn.record(ev.FanInDone(state.id))
        return True
    if not fan.answered:
        return False
    for branch in turn.run.branches_of(state):
        if branch.status is StepStatus.ANSWERED and not _is_reviewed_later(turn.run, branch):
            settle(turn, branch)
            return True
    return False


def _is_ready(run: Run, state: StepState) -> bool:
    for name in state.step.depends_on:
        before = run.steps.get(name)
        if before is None or not before.status.has_ended:
            return False
    return not (state.is_handoff and state.step.map is None and waits_for_room(run, state.step))


def _is_reviewed_later(run: Run, state: StepState) -> bool:
    """An answered step whose review is to be asked again at its time."""
    return bool(run.retries) and (Ask.REVIEW, state.id) in run.retries


def _start(turn: Turn, state: StepState) -> None:
    step = state.step
    if state.index is not None:
        request_call(turn, state)
        return
    try:
        is_wanted = step.when is None or holds(step.when, turn.run.scope())
    except ExpressionError as error:
        fail_step(turn, step.id, Then.REPLAN, Reason(code="expression_error", message=f"step {step.id}, when: {error}"))
        return
    if is_wanted and step.map is not None:
        fan_out(turn, state)
    elif is_wanted:
        request_call(turn, state)
    else:
        reason = Reason(code="not_wanted", message=f"`{step.when}` is false")
        turn.record(ev.StepEnded(step.id, StepStatus.SKIPPED, reason))
