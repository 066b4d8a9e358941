"""Budgets are reserved before a command is emitted. Pure arithmetic on the run's ledger."""

from __future__ import annotations

from triptych.executor.state import Ledger
from triptych.schemas import Grant, Reason, Spend


def shortfall(ledger: Ledger, grant: Grant, *, steps: int = 0, tool_calls: int = 0) -> Reason | None:
    """The first budget that cannot bear this, as a reason, or None when all can.

    Tokens and money that are reserved for what is under way count as spent until they are settled.
    """
    steps += ledger.steps
    if steps > ledger.max_steps:
        return _short("steps", steps, ledger.max_steps)
    tool_calls += ledger.tool_calls + ledger.reserved_tool_calls + grant.tool_calls
    if tool_calls > ledger.max_tool_calls:
        return _short("tool_calls", tool_calls, ledger.max_tool_calls)
    tokens = ledger.tokens + ledger.reserved_tokens + grant.tokens
    if tokens > ledger.max_tokens:
        return _short("tokens", tokens, ledger.max_tokens)
    usd_micros = ledger.usd_micros + ledger.reserved_usd_micros + grant.usd_micros
    if usd_micros > ledger.max_usd_micros:
        return _short("usd", usd_micros / 1_000_000, ledger.max_usd_micros / 1_000_000)
    return None


def _short(name: str, needed: float, limit: float) -> Reason:
    return Reason(
        code=f"budget_{name}",
        message=f"the budget of {name} is {limit:g} and the next request needs {needed:g} in all; "
        f"resume with more ({name}) or abort",
    )


def overspent(grant: Grant, spend: Spend) -> Reason | None:
    """Why a run stops whose request was granted less than it has cost, or None when it was within."""
    over = [
        f"{name}: {spent:,} of {granted:,}"
        for name, spent, granted in (
            ("tokens", spend.tokens, grant.tokens),
            ("usd_micros", spend.usd_micros, grant.usd_micros),
            ("tool_calls", spend.tool_calls, grant.tool_calls),
        )
        if spent > granted
    ]
    if not over:
        return None
    message = f"an answer cost more than it was granted ({'; '.join(over)}); find out why, then resume or abort"
    return Reason(code="overspent", message=message)


def replans_exhausted(ledger: Ledger, cause: Reason) -> Reason | None:
    """Why the planner may not be asked again, or None when it may."""
    if ledger.replans < ledger.max_replans:
        return None
    return Reason(
        code="budget_replans",
        message=f"all {ledger.max_replans} replans are used; the last plan failed with {cause.code}: {cause.message}",
    )
