"""Retries: what each error code leads to, and whether something is tried again. No other module decides that.

A function here records the retry and returns True, or returns False when the caller has to give up. Pure, like
everything around it. What follows a step that is not tried again is decided in `failures.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from triptych.executor import events as ev
from triptych.executor.state import RequestKind, StepState
from triptych.executor.transition import RunTransition
from triptych.schemas import Effect, ErrorCode, Reason, RetryPolicy, ToolError
from triptych.schemas.playbook import LONGEST_WALL_MS

MAX_POSTPONED = 10
"""How often in a row a call waits for an open breaker; after that it counts as an attempt that failed."""
WORKER_POLICY = RetryPolicy(max_attempts=4, base_ms=500, cap_ms=15_000)
"""How often the planner or the critic is asked again when it fails for reasons of its own."""
KEY_POLICY = RetryPolicy(base_ms=500, cap_ms=60_000)
"""How often a call asks again for a business key that another call holds: less and less often."""


class FailureAction(StrEnum):
    """What follows when a call is not, or no longer, made again."""

    REPAIR = "repair"
    """Ask the planner once for other arguments, and show it the schema. After that, or without a model: `replan`."""
    REPLAN = "replan"
    """Ask the planner again, if a model plans and replans are left; otherwise escalate."""
    ESCALATE = "escalate"


@dataclass(frozen=True, slots=True)
class RetryRule:
    """Whether to try again, what follows after that, and the reason code that an escalation carries."""

    retry: bool
    then: FailureAction
    reason: str


_RULES: dict[ErrorCode, RetryRule] = {
    ErrorCode.RATE_LIMITED: RetryRule(retry=True, then=FailureAction.ESCALATE, reason="tool_unavailable"),
    ErrorCode.UNAVAILABLE: RetryRule(retry=True, then=FailureAction.ESCALATE, reason="tool_unavailable"),
    ErrorCode.TIMEOUT: RetryRule(retry=True, then=FailureAction.ESCALATE, reason="tool_unavailable"),
    ErrorCode.INTERNAL: RetryRule(retry=True, then=FailureAction.ESCALATE, reason="tool_failed"),
    ErrorCode.CANCELLED: RetryRule(retry=True, then=FailureAction.ESCALATE, reason="tool_failed"),
    ErrorCode.INVALID_ARGUMENTS: RetryRule(retry=False, then=FailureAction.REPAIR, reason="invalid_arguments"),
    ErrorCode.NOT_FOUND: RetryRule(retry=False, then=FailureAction.REPLAN, reason="not_found"),
    ErrorCode.CONFLICT: RetryRule(retry=False, then=FailureAction.REPLAN, reason="conflict"),
    ErrorCode.UNAUTHENTICATED: RetryRule(retry=False, then=FailureAction.ESCALATE, reason="identity"),
    ErrorCode.FORBIDDEN: RetryRule(retry=False, then=FailureAction.ESCALATE, reason="identity"),
    ErrorCode.CONTRACT_VIOLATION: RetryRule(retry=False, then=FailureAction.ESCALATE, reason="contract_violation"),
    ErrorCode.BUDGET_EXCEEDED: RetryRule(retry=False, then=FailureAction.ESCALATE, reason="budget_tokens"),
    ErrorCode.IN_DOUBT: RetryRule(retry=False, then=FailureAction.ESCALATE, reason="in_doubt"),
}

_NO_MONEY = RetryRule(retry=False, then=FailureAction.ESCALATE, reason="budget_usd")

# A read that answers in the wrong shape may answer better next time. One that wants an answer itself
# (`details.asks`) gets none the next time either.
_UNSTABLE_READ = RetryRule(retry=True, then=FailureAction.ESCALATE, reason="contract_violation")

_DECLINED = RetryRule(retry=False, then=FailureAction.ESCALATE, reason="declined")
"""A person, most often, was asked and said no (`details.declined`). The credentials are right."""

MODEL_FAULTS: dict[str, RetryRule] = {
    "malformed": RetryRule(retry=True, then=FailureAction.ESCALATE, reason="model_malformed"),
    "truncated": RetryRule(retry=False, then=FailureAction.ESCALATE, reason="model_truncated"),
    "loop": RetryRule(retry=False, then=FailureAction.ESCALATE, reason="model_loop"),
    "refused": RetryRule(retry=False, then=FailureAction.ESCALATE, reason="model_refused"),
}
"""What a model did wrong while its provider worked (`details.model`). The same question under the same
limits may have another answer only where chance plays a part."""


FALLBACK_CODES = frozenset(
    {ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.INTERNAL, ErrorCode.CONTRACT_VIOLATION}
)
"""The errors of an upstream that is not well: a fallback may replace it."""


def retry_rule(error: ToolError, effect: Effect) -> RetryRule:
    """Return the rule for an error of an operation with this effect class."""
    if (fault := error.details.get("model")) in MODEL_FAULTS:
        return MODEL_FAULTS[fault]
    match error.code:
        case ErrorCode.CONTRACT_VIOLATION if not effect.writes and not error.details.get("asks"):
            return _UNSTABLE_READ
        case ErrorCode.BUDGET_EXCEEDED if error.details.get("budget") == "usd":
            return _NO_MONEY
        case ErrorCode.FORBIDDEN if error.details.get("declined"):
            return _DECLINED
        case code:
            return _RULES[code]


def worker_rule(error: ToolError) -> RetryRule:
    """Return the rule for an error of the planner or the critic, which change nothing."""
    return retry_rule(error, Effect.READ)


def may_fall_back(error: ToolError, effect: Effect) -> bool:
    """Return whether a fallback may follow this error. No fallback may follow a write that may have happened."""
    return error.code in FALLBACK_CODES and (not effect.writes or error.details.get("effect") == "none")


def is_outage(error: ToolError) -> bool:
    """Return whether an upstream, or the way to it, is down, overloaded or too slow: another call cannot cure that."""
    return worker_rule(error).reason == "tool_unavailable"


def refused_by(error: ToolError) -> str | None:
    """Return what refused a call before it was made: its `breaker`, its `rate` or its `bulkhead`, or None."""
    return error.details.get("postponed")


def postpone_call(transition: RunTransition, state: StepState, error: ToolError) -> bool:
    """Make a call later that was refused before it was made; that uses up no attempt."""
    refuser = refused_by(error)
    # Room comes back with time alone, so a run waits for it until its deadline; an upstream that is down may stay so.
    if refuser not in {"rate", "bulkhead"} and not (refuser == "breaker" and state.postponed < MAX_POSTPONED):
        return False
    message = f"{state.acting.operation} in step {state.id} was not called: {error.message}"
    reason = Reason(code=f"{refuser}_refused", message=message)
    _schedule(
        transition, RequestKind.CALL, state.id, state.acting.retry, 1, reason, error.retry_after_ms, postponed=True
    )
    return True


def retry_call(transition: RunTransition, state: StepState, error: ToolError) -> bool:
    """Make a call again that failed, within the attempts of its step and the time of its run."""
    policy, acting = state.acting.retry, state.acting
    if not retry_rule(error, acting.pin.effect).retry or state.attempts >= policy.max_attempts:
        return False
    is_kept_answer = state.stand_in is not None and state.stand_in.fallback.cached_ms is not None
    if is_kept_answer or waits_too_long(transition, error):
        return False
    message = f"{acting.operation} in step {state.id}, attempt {state.attempts}: {error.message}"
    reason = Reason(code=error.code.value, message=message)
    _schedule(transition, RequestKind.CALL, state.id, policy, state.attempts, reason, error.retry_after_ms)
    return True


def retry_rejected(transition: RunTransition, state: StepState, reason: Reason) -> bool:
    """Make a call again whose answer the critic rejects.

    A step that was not called, but got its answer from another step or from the plan, would get the same again.
    """
    policy = state.step.retry
    if not 0 < state.attempts < policy.max_attempts:
        return False
    _schedule(transition, RequestKind.CALL, state.id, policy, state.attempts, reason, None)
    return True


def retry_plan(transition: RunTransition, error: ToolError, reason: Reason) -> bool:
    """Ask the planner again that could not plan."""
    attempts = transition.run.plan_attempts
    if not worker_rule(error).retry or attempts >= WORKER_POLICY.max_attempts:
        return False
    _schedule(transition, RequestKind.PLAN, None, WORKER_POLICY, attempts, reason, error.retry_after_ms)
    return True


def retry_review(transition: RunTransition, step_id: str | None, error: ToolError, reason: Reason) -> bool:
    """Ask the critic again that could not judge a step or (None) the whole run."""
    run = transition.run
    attempts = run.review_attempts if step_id is None else run.state(step_id).review_attempts
    if not worker_rule(error).retry or attempts >= WORKER_POLICY.max_attempts:
        return False
    _schedule(transition, RequestKind.REVIEW, step_id, WORKER_POLICY, attempts, reason, error.retry_after_ms)
    return True


def retry_compensation(transition: RunTransition, state: StepState, effect: Effect, error: ToolError) -> bool:
    """Compensate a write again, within the attempts of its step. `effect` is that of the compensation."""
    policy, attempts = state.step.retry, state.compensation_attempts
    if not retry_rule(error, effect).retry or attempts >= policy.max_attempts:
        return False
    reason = Reason(code=error.code.value, message=f"undoing {state.id}: {error.message}")
    _schedule(transition, RequestKind.UNDO, state.id, policy, attempts, reason, error.retry_after_ms)
    return True


def retry_key(transition: RunTransition, state: StepState, reason: Reason) -> None:
    """Ask again for a business key that another call holds, without end: that call ends."""
    least_ms = min(KEY_POLICY.base_ms * 2 ** min(state.key_waits, 7), KEY_POLICY.cap_ms)
    _schedule(transition, RequestKind.CALL, state.id, KEY_POLICY, min(state.key_waits, 8), reason, least_ms)


def waits_too_long(transition: RunTransition, error: ToolError) -> str | None:
    """Return, in words, a wait that an upstream asks for and that would end after the run's deadline."""
    left_ms = (transition.run.deadline_at - transition.now) / timedelta(milliseconds=1)
    if error.retry_after_ms is None or error.retry_after_ms <= left_ms:
        return None
    asked_s, left_s = error.retry_after_ms / 1_000, max(0, left_ms) / 1_000
    return f"it asks to wait {asked_s:.0f} s, and the run has {left_s:.0f} s left"


def _schedule(  # noqa: PLR0917
    transition: RunTransition,
    kind: RequestKind,
    step_id: str | None,
    policy: RetryPolicy,
    attempts: int,
    reason: Reason,
    after_ms: int | None,
    *,
    postponed: bool = False,
) -> None:
    """Schedule a retry: exponential backoff with full jitter, drawn from the run's own ids, so that it replays."""
    ceiling_ms = min(policy.cap_ms, policy.base_ms * 2 ** (attempts - 1))
    run = transition.run
    seed = f"{run.run_id}:{kind}:{step_id}:{run.requested}".encode()
    fraction = int.from_bytes(hashlib.sha256(seed).digest()[:4]) / 2**32
    # An upstream may ask for any wait, also for one that ends after the last date that a computer knows.
    delay_ms = min(max(after_ms or 0, ceiling_ms * fraction), LONGEST_WALL_MS)
    due_at = transition.now + timedelta(milliseconds=delay_ms)
    transition.record(ev.RetryScheduled(kind.value, step_id, due_at, reason, postponed))
