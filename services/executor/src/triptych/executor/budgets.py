"""Budgets are reserved before a command is emitted. Pure arithmetic on the run's ledger."""

from __future__ import annotations

from triptych.executor.state import Ledger
from triptych.schemas import Grant, Reason


def shortfall(ledger: Ledger, grant: Grant, *, steps: int = 0, tool_calls: int = 0) -> Reason | None:
    """The first budget that cannot bear this, as a reason, or None when all can.

    Tokens and money that are reserved for what is under way count as spent until they are settled.
    """
    micros = 1_000_000
    wanted = (
        ("steps", ledger.steps + steps, ledger.max_steps, 1),
        (
            "tool_calls",
            ledger.tool_calls + ledger.reserved_tool_calls + grant.tool_calls + tool_calls,
            ledger.max_tool_calls,
            1,
        ),
        ("tokens", ledger.tokens + ledger.reserved_tokens + grant.tokens, ledger.max_tokens, 1),
        ("usd", ledger.usd_micros + ledger.reserved_usd_micros + grant.usd_micros, ledger.max_usd_micros, micros),
    )
    for name, needed, limit, unit in wanted:
        if needed > limit:
            return Reason(
                code=f"budget_{name}",
                message=f"the budget of {name} is {limit / unit:g} and the next request needs "
                f"{needed / unit:g} in all; resume with more ({name}) or abort",
            )
    return None


def replans_exhausted(ledger: Ledger, cause: Reason) -> Reason | None:
    """Why the planner may not be asked again, or None when it may."""
    if ledger.replans < ledger.max_replans:
        return None
    return Reason(
        code="budget_replans",
        message=f"all {ledger.max_replans} replans are used; the last plan failed with {cause.code}: {cause.message}",
    )
