"""What follows from a result or a verdict: retry, another round, a stand-in, a review, the end of a step or of the run.

Pure, like everything around it. When something may start is decided in `machine.py`; what an error leads to
stands in the table of `dispositions.py`.
"""

from __future__ import annotations

from datetime import timedelta

from triptych.executor import events as ev
from triptych.executor.branches import fan_in
from triptych.executor.ending import end
from triptych.executor.requests import (
    request_final_review,
    request_step_review,
)
from triptych.executor.retries import Then, disposition, may_be_stood_in_for, postponed_by
from triptych.executor.state import Ask, Run, RunStatus, StepState, StepStatus
from triptych.executor.transition import Turn, fail_step, replan_or_escalate, schedule_retry
from triptych.playbook.expressions import ExpressionError, holds, render
from triptych.schemas import (
    Decision,
    Effect,
    Json,
    Reason,
    ResultStatus,
    RetryPolicy,
    Review,
    ToolError,
)

MAX_POSTPONED = 10
"""So often in a row a call waits for an open breaker; after that it counts as an attempt that failed."""
WORKER_RETRY = RetryPolicy(max_attempts=4, base_ms=500, cap_ms=15_000)
"""How often the planner or the critic is asked again when it fails for reasons of its own."""


def settle(turn: Turn, state: StepState) -> None:
    """Decide about a step that has a result."""
    result, step = state.result, state.step
    assert result is not None  # noqa: S101 - an answered step has a result
    if state.fan is not None:
        fan_in(turn, state)
    elif result.status is ResultStatus.ERROR and result.error is not None:
        _on_error(turn, state, result.error)
    elif turn.run.playbook.review is Review.EVERY_STEP or step.judge or not _is_as_expected(turn.run, state):
        request_step_review(turn, state)
    else:
        turn.record(ev.StepEnded(state.id, StepStatus.SUCCEEDED))


def _is_as_expected(run: Run, state: StepState) -> bool:
    """Whether the step's own expectation holds. When it cannot be evaluated, the critic says what that means."""
    if state.step.expect is None or state.result is None:
        return True
    result = {"status": state.result.status, "data": state.result.data}
    try:
        return holds(state.step.expect, run.scope_of(state, result=result))
    except ExpressionError:
        return False


def _on_error(turn: Turn, state: StepState, error: ToolError) -> None:
    acting = state.acting
    what = disposition(error, acting.pin.effect)
    policy = acting.retry
    place = f"{acting.operation} in step {state.id}"
    if error.details.get("child"):
        # Only people end a run as anything but succeeded.
        fail_step(turn, state.id, Then.ESCALATE, Reason(code="child_failed", message=f"{place}: {error.message}"))
        return
    refused_by = postponed_by(error)
    # This attempt may have done nothing, and an earlier one of the same call all the same.
    may_have_happened = state.took_effect or not may_be_stood_in_for(error, acting.pin.effect)
    is_left = state.fallback < len(acting.fallback) and not may_have_happened
    if is_left and refused_by == "breaker":
        _fall_back(turn, state, Reason(code="breaker_refused", message=f"{place} was not called: {error.message}"))
        return
    # Room comes back with time alone, so a run waits for it until its deadline; an upstream that is down may stay so.
    if refused_by in ("rate", "bulkhead") or (refused_by == "breaker" and state.postponed < MAX_POSTPONED):
        reason = Reason(code=f"{refused_by}_refused", message=f"{place} was not called: {error.message}")
        schedule_retry(turn, Ask.CALL, state.id, policy, 1, reason, error.retry_after_ms, postponed=True)
        return
    is_kept_answer = state.stand_in is not None and state.stand_in.fallback.cached_ms is not None
    too_long = _wait_that_is_too_long(turn, error)
    if what.retry and state.attempts < policy.max_attempts and not is_kept_answer and too_long is None:
        reason = Reason(code=error.code.value, message=f"{place}, attempt {state.attempts}: {error.message}")
        schedule_retry(turn, Ask.CALL, state.id, policy, state.attempts, reason, error.retry_after_ms)
        return
    tried = f" after {state.attempts} attempts" if state.attempts > 1 else ""
    message = f"{place} failed{tried} with {error.code.value}: {error.message}{too_long or ''}"
    if _is_open_what_it_did(state) and error.details.get("effect") == "none":
        # Who reads only of the last attempt would make the write again elsewhere.
        message += "; an earlier attempt may have taken effect all the same"
    reason = Reason(code=what.reason, message=message)
    if is_left:
        _fall_back(turn, state, reason)
    else:
        fail_step(turn, state.id, Then.ESCALATE if _is_open_what_it_did(state) else what.then, reason)


def _wait_that_is_too_long(turn: Turn, error: ToolError) -> str | None:
    """What an upstream asks for that would end after the run's time, in words: to wait for it would only lose time."""
    left_ms = (turn.run.deadline_at - turn.now) / timedelta(milliseconds=1)
    if error.retry_after_ms is None or error.retry_after_ms <= left_ms:
        return None
    return (
        f"; it asks to wait {error.retry_after_ms / 1_000:.0f} s, and the run has {max(0, left_ms) / 1_000:.0f} s left"
    )


def _is_open_what_it_did(state: StepState) -> bool:
    """Whether the step is a write that may have happened. Other arguments, or another plan, could do it once more."""
    return state.written is not None and state.written.result is None


def _fall_back(turn: Turn, state: StepState, reason: Reason) -> None:
    turn.record(ev.FallbackTaken(state.id, state.fallback + 1, reason))


def follow_verdict(
    turn: Turn, step_id: str | None, decision: Decision, reason: Reason, evidence: tuple[str, ...]
) -> None:
    """Do as the critic says, about a step or (None) about the whole run."""
    if step_id is None:
        match decision:
            case Decision.CONTINUE:
                _succeed(turn)
            case Decision.ESCALATE:
                turn.record(ev.RunEscalated(reason))
            case Decision.RETRY | Decision.REPLAN:
                replan_or_escalate(turn, None, reason)
        return
    state = turn.run.state(step_id)
    match decision:
        case Decision.CONTINUE:
            turn.record(ev.StepEnded(step_id, StepStatus.SUCCEEDED, reason))
        case Decision.RETRY | Decision.REPLAN if state.step.rounds > 1:
            _next_round(turn, state, reason, evidence)
        # What was not called, but reused or written down in the plan, would be the same again.
        case Decision.RETRY if 0 < state.attempts < state.step.retry.max_attempts:
            schedule_retry(turn, Ask.CALL, step_id, state.step.retry, state.attempts, reason, None)
        case Decision.REPLAN:
            fail_step(turn, step_id, Then.REPLAN, reason)
        case Decision.RETRY | Decision.ESCALATE:
            fail_step(turn, step_id, Then.ESCALATE, reason)


def _next_round(turn: Turn, state: StepState, reason: Reason, evidence: tuple[str, ...]) -> None:
    """Maker and checker: what is not accepted is made again with the reasons, a bounded number of times."""
    if state.round < state.step.rounds:
        turn.record(ev.RoundStarted(state.id, state.round + 1, reason, evidence))
        return
    message = f"{state.id} was not accepted in {state.round} rounds; the last time {reason.code}: {reason.message}"
    fail_step(turn, state.id, Then.ESCALATE, Reason(code="not_accepted", message=message))


def retry_review(turn: Turn, step_id: str | None, error: ToolError) -> None:
    """The critic could not judge: ask it again, a bounded number of times."""
    run = turn.run
    attempts = run.review_attempts if step_id is None else run.state(step_id).review_attempts
    reason = Reason(code=worker_reason(error, "critic_unavailable"), message=f"no verdict: {error.message}")
    if may_retry(error) and attempts < WORKER_RETRY.max_attempts:
        schedule_retry(turn, Ask.REVIEW, step_id, WORKER_RETRY, attempts, reason, error.retry_after_ms)
    else:
        turn.record(ev.RunEscalated(reason, step_id))


def finish(turn: Turn) -> None:
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
    request_final_review(turn, output)


def _succeed(turn: Turn, output: dict[str, Json] | None = None) -> None:
    reason = Reason(code="done", message="every step ended as expected")
    end(turn, RunStatus.SUCCEEDED, reason, output=turn.run.output if output is None else output)


def may_retry(error: ToolError) -> bool:
    """Whether a planner or critic that failed so may be asked again."""
    return disposition(error, Effect.READ).retry


def worker_reason(error: ToolError, unavailable: str) -> str:
    """The reason code of a planner or critic that failed, which is no tool."""
    what = disposition(error, Effect.READ)
    return unavailable if what.reason in ("tool_unavailable", "tool_failed") else what.reason
