"""What follows from a result or a verdict: a retry, another round, a fallback, a review, or an end.

Pure, like everything around it. When something may start is decided in `machine.py`, and whether something is tried
again in `retries.py`.
"""

from __future__ import annotations

from typing import assert_never

from triptych.executor import events as ev
from triptych.executor.ending import end_run
from triptych.executor.failures import fail_step, replan_or_escalate
from triptych.executor.fan_out import fan_in
from triptych.executor.requests import request_final_review, request_step_review
from triptych.executor.retries import (
    FailureAction,
    may_fall_back,
    postpone_call,
    refused_by,
    retry_call,
    retry_rejected,
    retry_review,
    retry_rule,
    waits_too_long,
    worker_rule,
)
from triptych.executor.state import Run, RunStatus, StepState, StepStatus
from triptych.executor.transition import RunTransition
from triptych.playbook.expressions import ExpressionError, holds, render
from triptych.schemas import Decision, Json, Reason, ResultStatus, Review, ToolError


def handle_result(transition: RunTransition, state: StepState) -> None:
    """Decide about a step that has a result."""
    result, step = state.result, state.step
    assert result is not None  # noqa: S101 - an answered step has a result
    if state.fan_out is not None:
        fan_in(transition, state)
    elif result.status is ResultStatus.ERROR and result.error is not None:
        _on_error(transition, state, result.error)
    elif (
        transition.run.playbook.review is Review.EVERY_STEP or step.judge or not _is_as_expected(transition.run, state)
    ):
        request_step_review(transition, state)
    else:
        transition.record(ev.StepEnded(state.id, StepStatus.SUCCEEDED))


def _is_as_expected(run: Run, state: StepState) -> bool:
    """Return whether the step's own expectation holds. If it cannot be evaluated, the critic decides."""
    if state.step.expect is None or state.result is None:
        return True
    result = {"status": state.result.status, "data": state.result.data}
    try:
        return holds(state.step.expect, run.scope_of(state, result=result))
    except ExpressionError:
        return False


def _on_error(transition: RunTransition, state: StepState, error: ToolError) -> None:
    acting = state.acting
    place = f"{acting.operation} in step {state.id}"
    if error.details.get("child"):
        # Only a person ends a run as failed or cancelled.
        reason = Reason(code="child_failed", message=f"{place}: {error.message}")
        fail_step(transition, state.id, FailureAction.ESCALATE, reason)
        return
    # This attempt may have done nothing, while an earlier one of the same call did.
    may_have_happened = state.took_effect or not may_fall_back(error, acting.pin.effect)
    has_fallback = state.fallback < len(acting.fallback) and not may_have_happened
    if has_fallback and refused_by(error) == "breaker":
        _fall_back(
            transition, state, Reason(code="breaker_refused", message=f"{place} was not called: {error.message}")
        )
        return
    if postpone_call(transition, state, error) or retry_call(transition, state, error):
        return
    rule = retry_rule(error, acting.pin.effect)
    reason = Reason(code=rule.reason, message=_final_message(transition, state, error, place))
    if has_fallback:
        _fall_back(transition, state, reason)
    else:
        action = FailureAction.ESCALATE if _is_in_doubt(state) else rule.then
        fail_step(transition, state.id, action, reason)


def _final_message(transition: RunTransition, state: StepState, error: ToolError, place: str) -> str:
    """Say how a call failed that is not made again."""
    tried = f" after {state.attempts} attempts" if state.attempts > 1 else ""
    message = f"{place} failed{tried} with {error.code.value}: {error.message}"
    if wait := waits_too_long(transition, error):
        message += f"; {wait}"
    if _is_in_doubt(state) and error.details.get("effect") == "none":
        # A reader of the last attempt alone would make the write again elsewhere.
        message += "; an earlier attempt may have taken effect"
    return message


def _is_in_doubt(state: StepState) -> bool:
    """Return whether the step is a write that may have happened. Other arguments, or another plan, could repeat it."""
    return state.written is not None and state.written.result is None


def _fall_back(transition: RunTransition, state: StepState, reason: Reason) -> None:
    transition.record(ev.FallbackTaken(state.id, state.fallback + 1, reason))


def follow_verdict(
    transition: RunTransition, step_id: str | None, decision: Decision, reason: Reason, evidence: tuple[str, ...]
) -> None:
    """Do as the critic says, about a step or (None) about the whole run."""
    if step_id is not None:
        _follow_step_verdict(transition, transition.run.state(step_id), decision, reason, evidence)
        return
    match decision:
        case Decision.CONTINUE:
            _succeed(transition)
        case Decision.ESCALATE:
            transition.record(ev.RunEscalated(reason))
        case Decision.RETRY | Decision.REPLAN:
            replan_or_escalate(transition, None, reason)
        case _:
            assert_never(decision)


def _follow_step_verdict(
    transition: RunTransition, state: StepState, decision: Decision, reason: Reason, evidence: tuple[str, ...]
) -> None:
    match decision:
        case Decision.CONTINUE:
            transition.record(ev.StepEnded(state.id, StepStatus.SUCCEEDED, reason))
        case Decision.RETRY | Decision.REPLAN if state.step.rounds > 1:
            _next_round(transition, state, reason, evidence)
        case Decision.REPLAN:
            fail_step(transition, state.id, FailureAction.REPLAN, reason)
        case Decision.RETRY:
            if not retry_rejected(transition, state, reason):
                fail_step(transition, state.id, FailureAction.ESCALATE, reason)
        case Decision.ESCALATE:
            fail_step(transition, state.id, FailureAction.ESCALATE, reason)
        case _:
            assert_never(decision)


def _next_round(transition: RunTransition, state: StepState, reason: Reason, evidence: tuple[str, ...]) -> None:
    """Maker and checker: what is not accepted is made again with the reasons, a bounded number of times."""
    if state.round < state.step.rounds:
        transition.record(ev.RoundStarted(state.id, state.round + 1, reason, evidence))
        return
    message = f"{state.id} was not accepted in {state.round} rounds; the last time {reason.code}: {reason.message}"
    fail_step(transition, state.id, FailureAction.ESCALATE, Reason(code="not_accepted", message=message))


def on_failed_review(transition: RunTransition, step_id: str | None, error: ToolError) -> None:
    """Ask the critic again that could not judge, a bounded number of times; then escalate."""
    reason = Reason(code=worker_reason(error, "critic_unavailable"), message=f"no verdict: {error.message}")
    if not retry_review(transition, step_id, error, reason):
        transition.record(ev.RunEscalated(reason, step_id))


def finish(transition: RunTransition) -> None:
    """Finish a run whose steps have all ended: ask for its review if the playbook wants one, or succeed."""
    run = transition.run
    try:
        output = render(run.playbook.output, run.scope())
    except ExpressionError as error:
        transition.record(ev.RunEscalated(Reason(code="expression_error", message=f"playbook output: {error}")))
        return
    if run.playbook.review is not Review.FINAL:
        _succeed(transition, output)
        return
    request_final_review(transition, output)


def _succeed(transition: RunTransition, output: dict[str, Json] | None = None) -> None:
    reason = Reason(code="done", message="every step ended as expected")
    end_run(transition, RunStatus.SUCCEEDED, reason, output=transition.run.output if output is None else output)


def worker_reason(error: ToolError, unavailable: str) -> str:
    """Return the reason code of a planner or critic that failed; it is not a tool."""
    code = worker_rule(error).reason
    return unavailable if code in {"tool_unavailable", "tool_failed"} else code
