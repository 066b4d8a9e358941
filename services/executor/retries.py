"""What each error code leads to: the one table. Nothing else in Triptych decides about retries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from triptych.schemas import Effect, ErrorCode, ToolError


class Then(StrEnum):
    """What follows when a call is not, or no longer, tried again."""

    REPAIR = "repair"
    """Ask the planner once for other arguments, with the schema at hand. After that, or without a model: `replan`."""
    REPLAN = "replan"
    """Ask the planner again, if a model plans and replans are left; otherwise escalate."""
    ESCALATE = "escalate"


@dataclass(frozen=True, slots=True)
class Disposition:
    """Whether to try again, what then, and the reason code that an escalation carries."""

    retry: bool
    then: Then
    reason: str


_TABLE: dict[ErrorCode, Disposition] = {
    ErrorCode.RATE_LIMITED: Disposition(retry=True, then=Then.ESCALATE, reason="tool_unavailable"),
    ErrorCode.UNAVAILABLE: Disposition(retry=True, then=Then.ESCALATE, reason="tool_unavailable"),
    ErrorCode.TIMEOUT: Disposition(retry=True, then=Then.ESCALATE, reason="tool_unavailable"),
    ErrorCode.INTERNAL: Disposition(retry=True, then=Then.ESCALATE, reason="tool_failed"),
    ErrorCode.CANCELLED: Disposition(retry=True, then=Then.ESCALATE, reason="tool_failed"),
    ErrorCode.INVALID_ARGUMENTS: Disposition(retry=False, then=Then.REPAIR, reason="invalid_arguments"),
    ErrorCode.NOT_FOUND: Disposition(retry=False, then=Then.REPLAN, reason="not_found"),
    ErrorCode.CONFLICT: Disposition(retry=False, then=Then.REPLAN, reason="conflict"),
    ErrorCode.UNAUTHENTICATED: Disposition(retry=False, then=Then.ESCALATE, reason="identity"),
    ErrorCode.FORBIDDEN: Disposition(retry=False, then=Then.ESCALATE, reason="identity"),
    ErrorCode.CONTRACT_VIOLATION: Disposition(retry=False, then=Then.ESCALATE, reason="contract_violation"),
    ErrorCode.BUDGET_EXCEEDED: Disposition(retry=False, then=Then.ESCALATE, reason="budget_tokens"),
    ErrorCode.IN_DOUBT: Disposition(retry=False, then=Then.ESCALATE, reason="in_doubt"),
}

_NO_MONEY = Disposition(retry=False, then=Then.ESCALATE, reason="budget_usd")

# A read that answers in the wrong shape may do better next time; nothing is lost by asking. One that wants an answer
# itself (`details.asks`) gets none the next time either.
_UNSTABLE_READ = Disposition(retry=True, then=Then.ESCALATE, reason="contract_violation")

_DECLINED = Disposition(retry=False, then=Then.ESCALATE, reason="declined")
"""Who was asked, most often a person, said no (`details.declined`). Nothing is wrong with anybody's credentials."""

MODEL_FAULTS: dict[str, Disposition] = {
    "malformed": Disposition(retry=True, then=Then.ESCALATE, reason="model_malformed"),
    "truncated": Disposition(retry=False, then=Then.ESCALATE, reason="model_truncated"),
    "loop": Disposition(retry=False, then=Then.ESCALATE, reason="model_loop"),
    "refused": Disposition(retry=False, then=Then.ESCALATE, reason="model_refused"),
}
"""What a model did wrong while its provider worked (`details.model`). The same question under the same
limits is worth another try only where chance played a part."""


def postponed_by(error: ToolError) -> str | None:
    """What refused a call before it was made: its breaker, its rate or its bulkhead. That uses up no attempt."""
    return error.details.get("postponed")


STOOD_IN_FOR = frozenset(
    {ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.INTERNAL, ErrorCode.CONTRACT_VIOLATION}
)
"""The errors of an upstream that is not well; a fallback may stand in for it."""


def may_be_stood_in_for(error: ToolError, effect: Effect) -> bool:
    """Whether a fallback may follow. Nothing stands in for a write that may have happened."""
    return error.code in STOOD_IN_FOR and (not effect.writes or error.details.get("effect") == "none")


def is_outage(error: ToolError) -> bool:
    """Whether an upstream, or the way to it, is down, overloaded or too slow: nothing that another call could cure."""
    return disposition(error, Effect.READ).reason == "tool_unavailable"


def disposition(error: ToolError, effect: Effect) -> Disposition:
    """The disposition of an error of an operation with this effect class."""
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
            return _TABLE[code]
