"""How a run moves: `decide(run, message, now)` gives the events that follow from a message.

Pure and synchronous: no I/O, no clock, no randomness. The run moves only here. A message that
answers nothing open changes nothing. Whatever happens, an active run is left with an open request, a
retry that is due, or its deadline; it never waits for nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from triptych.executor import events as ev
from triptych.executor.budgets import replans_exhausted, shortfall
from triptych.executor.dispositions import Then, disposition
from triptych.executor.state import Ask, Run, RunStatus, StepState, StepStatus, admit, evolve
from triptych.kernel.expressions import ExpressionError, holds, render
from triptych.schemas import (
    CallAnswer,
    Control,
    ControlAction,
    Decision,
    Effect,
    ErrorCode,
    Grant,
    Json,
    Judge,
    ModelPlan,
    PlanAnswer,
    Playbook,
    Reason,
    ResultStatus,
    RetryPolicy,
    Review,
    Step,
    Task,
    ToolError,
    VerdictAnswer,
)

REISSUE_AFTER_MS = 30_000
"""An open request is sent again after this and its timeout; workers drop what they have seen."""
MAX_POSTPONED = 10
"""So often in a row a call waits for an open breaker; after that it counts as an attempt that failed."""
WORKER_RETRY = RetryPolicy(max_attempts=4, base_ms=500, cap_ms=15_000)
"""How often the planner or the critic is asked again when it fails for reasons of its own."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: something of this run may be due."""


Message = PlanAnswer | CallAnswer | VerdictAnswer | Control | Tick


@dataclass(frozen=True, slots=True)
class Decided:
    """The run after a message, and the events that took it there; no events means nothing changed."""

    run: Run
    events: tuple[ev.Event, ...]


class _Turn:
    """One message's worth of decisions: each recorded event is folded in before the next decision."""

    def __init__(self, run: Run, now: datetime) -> None:
        self.run, self.now = run, now
        self.events: list[ev.Event] = []

    def record(self, event: ev.Event) -> None:
        self.events.append(event)
        self.run = evolve(self.run, event, self.now)

    def decided(self) -> Decided:
        return Decided(self.run, tuple(self.events))


def begin(task: Task, *, task_id: str, run_id: UUID, playbook: Playbook, partition: int, now: datetime) -> Decided:
    """Admit a task as a new run and ask for its plan."""
    admitted = ev.RunAdmitted(
        tenant=task.tenant,
        task_id=task_id,
        principal=task.principal,
        playbook=playbook,
        input=task.input,
        partition=partition,
        deadline_at=now + timedelta(milliseconds=playbook.budgets.wall_ms),
    )
    turn = _Turn(admit(run_id, admitted, now), now)
    turn.events.append(admitted)
    _advance(turn)
    return turn.decided()


def decide(run: Run, message: Message, now: datetime) -> Decided:
    """What follows from a message. Answers to nothing open, and anything to a finished run, change nothing."""
    turn = _Turn(run, now)
    if run.status.is_final:
        return turn.decided()
    match message:
        case PlanAnswer() if message.request_id in run.requests:
            _on_plan(turn, message)
        case CallAnswer() if message.request_id in run.requests:
            _on_result(turn, message)
        case VerdictAnswer() if message.request_id in run.requests:
            _on_verdict(turn, message)
        case Control() if message.command_id not in run.commands:
            _on_control(turn, message)
        case Tick():
            _on_tick(turn)
    _advance(turn)
    return turn.decided()


# --- what came in ---------------------------------------------------------------------------------


def _on_plan(turn: _Turn, answer: PlanAnswer) -> None:
    if answer.plan is not None:
        turn.record(ev.PlanAccepted(answer.request_id, answer.plan, answer.spend))
        return
    error = answer.error or ToolError(code=ErrorCode.INTERNAL, message="the planner gave neither a plan nor an error")
    turn.record(ev.PlanRefused(answer.request_id, error, answer.code, answer.spend))
    if not turn.run.status.is_active:
        return
    reason = Reason(code=answer.code or _worker_reason(error, "planner_unavailable"), message=error.message)
    if answer.code is None and _may_retry(error) and turn.run.plan_attempts < WORKER_RETRY.max_attempts:
        _schedule_retry(turn, Ask.PLAN, None, WORKER_RETRY, turn.run.plan_attempts, reason, error.retry_after_ms)
    else:
        turn.record(ev.RunEscalated(reason))


def _on_result(turn: _Turn, answer: CallAnswer) -> None:
    step_id = turn.run.requests[answer.request_id].step
    assert step_id is not None  # noqa: S101 - a call is always a step's
    turn.record(
        ev.CallAnswered(
            request_id=answer.request_id,
            step=step_id,
            result=answer.result,
            spend=answer.spend,
            worker=answer.worker,
            started_at=answer.started_at,
            finished_at=answer.finished_at,
        )
    )
    if turn.run.status.is_active:
        _settle(turn, turn.run.steps[step_id])


def _on_verdict(turn: _Turn, answer: VerdictAnswer) -> None:
    step_id = turn.run.requests[answer.request_id].step
    if answer.decision is None:
        error = answer.error or ToolError(code=ErrorCode.INTERNAL, message="the critic gave neither verdict nor error")
        turn.record(ev.ReviewFailed(answer.request_id, step_id, error, answer.spend))
        if turn.run.status.is_active:
            _retry_review(turn, step_id, error)
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
        _follow_verdict(turn, step_id, answer.decision, reason)


def _on_control(turn: _Turn, command: Control) -> None:
    run = turn.run
    is_escalated = run.status is RunStatus.ESCALATED
    match command.action:
        case ControlAction.CANCEL:
            _end_by_command(turn, command, RunStatus.CANCELLED, "cancelled")
        case ControlAction.ABORT if is_escalated:
            _end_by_command(turn, command, RunStatus.FAILED, "aborted")
        case ControlAction.RESUME if is_escalated:
            _resume(turn, command)
        case ControlAction.SKIP if is_escalated:
            _skip(turn, command)
        case _:
            _refuse(turn, command, f"the run is {run.status.value}; {command.action.value} needs an escalated run")


def _on_tick(turn: _Turn) -> None:
    run, now = turn.run, turn.now
    if run.status.is_active and now >= run.deadline_at:
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
        if retry.due_at <= now and turn.run.status.is_active:
            _ask_again(turn, retry.ask, retry.step)


def _ask_again(turn: _Turn, ask: Ask, step_id: str | None) -> None:
    match ask, step_id:
        case Ask.PLAN, _:
            _request_plan(turn)
        case Ask.CALL, str():
            _request_call(turn, turn.run.steps[step_id])
        case Ask.REVIEW, str():
            _request_step_review(turn, turn.run.steps[step_id])
        case Ask.REVIEW, None:
            _finish(turn)


# --- what follows ---------------------------------------------------------------------------------


def _advance(turn: _Turn) -> None:
    """Start whatever can start now; when nothing is under way, plan again or finish."""
    while _start_one(turn):
        pass
    run = turn.run
    if run.status not in (RunStatus.PLANNING, RunStatus.RUNNING) or run.requests or run.retries:
        return
    if run.replan_due or run.status is RunStatus.PLANNING:
        _request_plan(turn)
    elif waiting := [step_id for step_id, state in run.steps.items() if not state.status.has_ended]:
        message = f"steps {', '.join(waiting)} wait for steps that no plan has; resume to plan again, or abort"
        turn.record(ev.RunEscalated(Reason(code="plan_invalid", message=message)))
    else:
        _finish(turn)


def _start_one(turn: _Turn) -> bool:
    """Start, skip or settle the first step that is ready; False when none is."""
    run = turn.run
    if run.status is not RunStatus.RUNNING or run.replan_due:
        return False
    for state in run.steps.values():
        if state.status is StepStatus.ANSWERED and not _is_reviewed_later(run, state):
            _settle(turn, state)
            return True
    if sum(state.status.is_under_way for state in run.steps.values()) >= run.playbook.parallel:
        return False
    for state in run.steps.values():
        if state.status is StepStatus.WAITING and _is_ready(run, state.step):
            _start(turn, state)
            return True
    return False


def _is_ready(run: Run, step: Step) -> bool:
    return all(name in run.steps and run.steps[name].status.has_ended for name in step.depends_on)


def _is_reviewed_later(run: Run, state: StepState) -> bool:
    """An answered step whose review is to be asked again at its time."""
    return (Ask.REVIEW, state.step.id) in run.retries


def _start(turn: _Turn, state: StepState) -> None:
    step = state.step
    try:
        is_wanted = step.when is None or holds(step.when, turn.run.scope())
    except ExpressionError as error:
        _fail_step(
            turn, step.id, Then.REPLAN, Reason(code="expression_error", message=f"step {step.id}, when: {error}")
        )
        return
    if is_wanted:
        _request_call(turn, state)
    else:
        reason = Reason(code="not_wanted", message=f"`{step.when}` is false")
        turn.record(ev.StepEnded(step.id, StepStatus.SKIPPED, reason))


def _settle(turn: _Turn, state: StepState) -> None:
    """Decide about a step that has a result."""
    result, step = state.result, state.step
    assert result is not None  # noqa: S101 - an answered step has a result
    if result.status is ResultStatus.ERROR and result.error is not None:
        _on_error(turn, state, result.error)
    elif turn.run.playbook.review is Review.EVERY_STEP or step.judge or not _is_as_expected(turn.run, state):
        _request_step_review(turn, state)
    else:
        turn.record(ev.StepEnded(step.id, StepStatus.SUCCEEDED))


def _is_as_expected(run: Run, state: StepState) -> bool:
    """Whether the step's own expectation holds. When it cannot be evaluated, the critic says what that means."""
    if state.step.expect is None or state.result is None:
        return True
    result = {"status": state.result.status.value, "data": state.result.data}
    try:
        return holds(state.step.expect, {**run.scope(), "result": result})
    except ExpressionError:
        return False


def _on_error(turn: _Turn, state: StepState, error: ToolError) -> None:
    what = disposition(error, state.step.pin.effect)
    policy = state.step.retry
    place = f"{state.step.operation} in step {state.step.id}"
    if error.details.get("breaker") == "open" and state.postponed < MAX_POSTPONED:
        reason = Reason(code="breaker_open", message=f"{place} was not called: {error.message}")
        _schedule_retry(turn, Ask.CALL, state.step.id, policy, 1, reason, error.retry_after_ms, postponed=True)
        return
    if what.retry and state.attempts < policy.max_attempts:
        reason = Reason(code=error.code.value, message=f"{place}, attempt {state.attempts}: {error.message}")
        _schedule_retry(turn, Ask.CALL, state.step.id, policy, state.attempts, reason, error.retry_after_ms)
        return
    tried = f" after {state.attempts} attempts" if state.attempts > 1 else ""
    reason = Reason(code=what.reason, message=f"{place} failed{tried} with {error.code.value}: {error.message}")
    _fail_step(turn, state.step.id, what.then, reason)


def _follow_verdict(turn: _Turn, step_id: str | None, decision: Decision, reason: Reason) -> None:
    if step_id is None:
        match decision:
            case Decision.CONTINUE:
                _succeed(turn)
            case Decision.ESCALATE:
                turn.record(ev.RunEscalated(reason))
            case Decision.RETRY | Decision.REPLAN:
                _replan_or_escalate(turn, None, reason)
        return
    state = turn.run.steps[step_id]
    match decision:
        case Decision.CONTINUE:
            turn.record(ev.StepEnded(step_id, StepStatus.SUCCEEDED, reason))
        case Decision.RETRY if state.attempts < state.step.retry.max_attempts:
            _schedule_retry(turn, Ask.CALL, step_id, state.step.retry, state.attempts, reason, None)
        case Decision.REPLAN:
            _fail_step(turn, step_id, Then.REPLAN, reason)
        case Decision.RETRY | Decision.ESCALATE:
            _fail_step(turn, step_id, Then.ESCALATE, reason)


def _retry_review(turn: _Turn, step_id: str | None, error: ToolError) -> None:
    run = turn.run
    attempts = run.review_attempts if step_id is None else run.steps[step_id].review_attempts
    reason = Reason(code=_worker_reason(error, "critic_unavailable"), message=f"no verdict: {error.message}")
    if _may_retry(error) and attempts < WORKER_RETRY.max_attempts:
        _schedule_retry(turn, Ask.REVIEW, step_id, WORKER_RETRY, attempts, reason, error.retry_after_ms)
    else:
        turn.record(ev.RunEscalated(reason, step_id))


def _fail_step(turn: _Turn, step_id: str, then: Then, reason: Reason) -> None:
    turn.record(ev.StepEnded(step_id, StepStatus.FAILED, reason))
    if then is Then.REPLAN:
        _replan_or_escalate(turn, step_id, reason)
    else:
        turn.record(ev.RunEscalated(reason, step_id))


def _replan_or_escalate(turn: _Turn, step_id: str | None, reason: Reason) -> None:
    """A fixed plan cannot be planned differently, so its failure goes to a person."""
    if not isinstance(turn.run.playbook.plan, ModelPlan):
        turn.record(ev.RunEscalated(reason, step_id))
    elif exhausted := replans_exhausted(turn.run.ledger, reason):
        turn.record(ev.RunEscalated(exhausted, step_id))
    else:
        turn.record(ev.ReplanDecided(step_id, reason))


def _finish(turn: _Turn) -> None:
    """All steps have ended: have the whole reviewed if the playbook wants it, else succeed."""
    run = turn.run
    try:
        output = render(run.playbook.output, run.scope())
    except ExpressionError as error:
        turn.record(ev.RunEscalated(Reason(code="expression_error", message=f"playbook output: {error}")))
        return
    if run.playbook.review is not Review.FINAL:
        _succeed(turn, output)
        return
    grant = _judge_grant(run.playbook.judge)
    if short := shortfall(run.ledger, grant):
        turn.record(ev.RunEscalated(short))
        return
    turn.record(
        ev.ReviewRequested(
            request_id=_next_request_id(run, "review"),
            step=None,
            reserved=grant,
            deadline_at=run.deadline_at,
            reissue_at=_reissue_at(turn.now),
            output=output,
        )
    )


def _succeed(turn: _Turn, output: dict[str, Json] | None = None) -> None:
    reason = Reason(code="done", message="every step ended as expected")
    turn.record(ev.RunEnded(RunStatus.SUCCEEDED, reason, turn.run.output if output is None else output))


# --- asking ---------------------------------------------------------------------------------------


def _request_plan(turn: _Turn) -> None:
    run = turn.run
    spec = run.playbook.plan
    grant = Grant(tokens=spec.tokens, usd_micros=_micros(spec.usd)) if isinstance(spec, ModelPlan) else Grant()
    if short := shortfall(run.ledger, grant):
        turn.record(ev.RunEscalated(short))
        return
    turn.record(
        ev.PlanRequested(
            request_id=_next_request_id(run, "plan"),
            revision=run.revision + 1,
            reserved=grant,
            deadline_at=run.deadline_at,
            reissue_at=_reissue_at(turn.now),
            failure=run.failure,
        )
    )


def _request_call(turn: _Turn, state: StepState) -> None:
    run, step = turn.run, state.step
    try:
        arguments = render(step.arguments, run.scope())
    except ExpressionError as error:
        reason = Reason(code="expression_error", message=f"step {step.id}, arguments: {error}")
        _fail_step(turn, step.id, Then.REPLAN, reason)
        return
    if (done := _done_before(run, step, arguments)) is not None:
        turn.record(ev.CallReused(step.id, done, arguments))
        return
    grant = Grant(tokens=step.pin.cost.tokens, usd_micros=step.pin.cost.usd_micros)
    if short := shortfall(run.ledger, grant, steps=0 if state.counted else 1, tool_calls=1):
        turn.record(ev.RunEscalated(short, step.id))
        return
    # A read that has already answered is asked anew under another key: its answer was not good enough.
    has_answer = state.result is not None and state.result.status is not ResultStatus.ERROR
    call = state.call + 1 if has_answer and step.pin.effect is Effect.READ else state.call
    turn.record(
        ev.CallRequested(
            request_id=_next_request_id(run, step.id),
            step=step.id,
            call=call,
            attempt=state.attempts + 1,
            arguments=arguments,
            idempotency_key=f"{run.run_id}:{step.id}:{call}",
            reserved=grant,
            deadline_at=run.deadline_at,
            reissue_at=_reissue_at(turn.now, step.pin.timeout_ms),
        )
    )


def _done_before(run: Run, step: Step, arguments: dict[str, Json]) -> str | None:
    """The step of an earlier plan that did this write already, with the same arguments."""
    if step.pin.effect is Effect.READ:
        return None
    for step_id, state in run.steps.items():
        is_same = state.step.operation == step.operation and state.arguments == arguments
        if state.took_effect and is_same and state.revision < run.steps[step.id].revision:
            return step_id
    return None


def _request_step_review(turn: _Turn, state: StepState) -> None:
    run = turn.run
    grant = _judge_grant(state.step.judge)
    if short := shortfall(run.ledger, grant):
        turn.record(ev.RunEscalated(short, state.step.id))
        return
    turn.record(
        ev.ReviewRequested(
            request_id=_next_request_id(run, f"review-{state.step.id}"),
            step=state.step.id,
            reserved=grant,
            deadline_at=run.deadline_at,
            reissue_at=_reissue_at(turn.now),
        )
    )


def _schedule_retry(  # noqa: PLR0917
    turn: _Turn,
    ask: Ask,
    step_id: str | None,
    policy: RetryPolicy,
    attempts: int,
    reason: Reason,
    after_ms: int | None,
    *,
    postponed: bool = False,
) -> None:
    """Exponential backoff with full jitter; the jitter is drawn from the run's own ids, so it replays."""
    ceiling_ms = min(policy.cap_ms, policy.base_ms * 2 ** (attempts - 1))
    seed = f"{turn.run.run_id}:{ask}:{step_id}:{turn.run.requested}".encode()
    fraction = int.from_bytes(hashlib.sha256(seed).digest()[:4]) / 2**32
    delay_ms = max(after_ms or 0, ceiling_ms * fraction)
    due_at = turn.now + timedelta(milliseconds=delay_ms)
    turn.record(ev.RetryScheduled(ask.value, step_id, due_at, reason, postponed))


def _next_request_id(run: Run, what: str) -> str:
    return f"{run.run_id}:{what}:{run.requested + 1}"


def _reissue_at(now: datetime, timeout_ms: int = 0) -> datetime:
    return now + timedelta(milliseconds=REISSUE_AFTER_MS + timeout_ms)


def _judge_grant(judge: Judge | None) -> Grant:
    return Grant(tokens=judge.tokens, usd_micros=_micros(judge.usd)) if judge else Grant()


def _micros(usd: float) -> int:
    return round(usd * 1_000_000)


def _may_retry(error: ToolError) -> bool:
    return disposition(error, Effect.READ).retry


def _worker_reason(error: ToolError, unavailable: str) -> str:
    what = disposition(error, Effect.READ)
    return unavailable if what.reason in ("tool_unavailable", "tool_failed") else what.reason


# --- people ---------------------------------------------------------------------------------------


def _end_by_command(turn: _Turn, command: Control, status: RunStatus, code: str) -> None:
    message = f"{code} by {command.principal}" + (f": {command.note}" if command.note else "")
    turn.record(
        ev.RunEnded(
            status=status,
            reason=Reason(code=code, message=message),
            command_id=command.command_id,
            principal=command.principal,
        )
    )


def _resume(turn: _Turn, command: Control) -> None:
    run = turn.run
    stood_still = turn.now - (run.escalated_at or turn.now)
    extra = timedelta(milliseconds=command.extend.get("wall_ms", 0))
    # Waiting for a person does not use up the wall clock.
    deadline_at = run.deadline_at + stood_still + extra
    turn.record(
        ev.RunResumed(
            command_id=command.command_id,
            principal=command.principal,
            deadline_at=deadline_at,
            note=command.note,
            extend=command.extend,
        )
    )


def _skip(turn: _Turn, command: Control) -> None:
    step_id = command.step or turn.run.stopped_step
    state = turn.run.steps.get(step_id) if step_id else None
    if state is None or step_id is None:
        names = ", ".join(turn.run.steps) or "none, there is no plan yet"
        _refuse(turn, command, f"name a step of the plan to skip; the steps are: {names}")
    elif state.status.has_ended:
        _refuse(turn, command, f"step {step_id} has ended ({state.status.value}); there is nothing to skip")
    elif any(request.step == step_id for request in turn.run.requests.values()):
        _refuse(turn, command, f"step {step_id} is still under way; wait for its answer, or cancel the run")
    else:
        turn.record(ev.StepOverridden(command.command_id, command.principal, step_id, command.data, command.note))
        _resume(turn, command)


def _refuse(turn: _Turn, command: Control, message: str) -> None:
    reason = Reason(code="command_refused", message=message)
    turn.record(ev.CommandRefused(command.command_id, command.principal, command.action.value, reason))
