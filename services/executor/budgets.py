"""Budgets: the ledger of a run, and whether it can bear a request. Pure arithmetic.

Budgets are reserved before a request is sent, and charged with what the answer cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.kernel.values import changed
from triptych.schemas import Grant, Reason, Spend

MOST, MOST_CALLS = 2**63 - 1, 2**31 - 1
"""The columns of `runs` hold no more, so a higher cost is counted as this."""


@dataclass(frozen=True)
class BudgetLedger:
    """What a run may spend, has spent, and has reserved for requests that are under way."""

    max_steps: int
    max_tool_calls: int
    max_tokens: int
    max_usd_micros: int
    max_replans: int
    steps: int = 0
    tool_calls: int = 0
    tokens: int = 0
    usd_micros: int = 0
    replans: int = 0
    reserved_tokens: int = 0
    reserved_usd_micros: int = 0
    reserved_tool_calls: int = 0
    """Those that child runs may make."""

    def within(self, grant: Grant) -> BudgetLedger:
        """Lower the limits to what a parent run has granted."""
        return changed(
            self,
            max_tool_calls=min(self.max_tool_calls, grant.tool_calls),
            max_tokens=min(self.max_tokens, grant.tokens),
            max_usd_micros=min(self.max_usd_micros, grant.usd_micros),
        )

    def reserve(self, grant: Grant) -> BudgetLedger:
        """Reserve the grant of a request."""
        if grant.is_free:
            return self
        return changed(
            self,
            reserved_tokens=self.reserved_tokens + grant.tokens,
            reserved_usd_micros=self.reserved_usd_micros + grant.usd_micros,
            reserved_tool_calls=self.reserved_tool_calls + grant.tool_calls,
        )

    def charge(self, grant: Grant, spend: Spend) -> BudgetLedger:
        """Replace the reservation of a request with what its answer cost."""
        if grant.is_free and not (spend.tokens or spend.usd_micros or spend.tool_calls):
            return self
        return changed(
            self,
            reserved_tokens=self.reserved_tokens - grant.tokens,
            reserved_usd_micros=self.reserved_usd_micros - grant.usd_micros,
            reserved_tool_calls=self.reserved_tool_calls - grant.tool_calls,
            tokens=min(self.tokens + spend.tokens, MOST),
            usd_micros=min(self.usd_micros + spend.usd_micros, MOST),
            tool_calls=min(self.tool_calls + spend.tool_calls, MOST_CALLS),
        )

    def widen(self, by: Grant) -> BudgetLedger:
        """Raise the limits by a grant."""
        return changed(
            self,
            max_tokens=self.max_tokens + by.tokens,
            max_usd_micros=self.max_usd_micros + by.usd_micros,
            max_tool_calls=self.max_tool_calls + by.tool_calls,
        )

    def extend(self, amounts: dict[str, float]) -> BudgetLedger:
        """Raise the limits by their names in the playbook. `wall_ms` is the run's, not the ledger's."""
        return changed(
            self,
            max_steps=self.max_steps + int(amounts.get("steps", 0)),
            max_tool_calls=self.max_tool_calls + int(amounts.get("tool_calls", 0)),
            max_tokens=self.max_tokens + int(amounts.get("tokens", 0)),
            max_usd_micros=self.max_usd_micros + round(amounts.get("usd", 0) * 1_000_000),
            max_replans=self.max_replans + int(amounts.get("replans", 0)),
        )


def shortfall(ledger: BudgetLedger, grant: Grant, *, steps: int = 0, tool_calls: int = 0) -> Reason | None:
    """Return the first budget that cannot bear this, as a reason, or None when all can.

    Tokens and money that are reserved for a request count as spent until its answer is there.
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
    """Return why a run stops when its request cost more than its grant, or None when it did not."""
    if spend.tokens <= grant.tokens and spend.usd_micros <= grant.usd_micros and spend.tool_calls <= grant.tool_calls:
        return None
    over = [
        f"{name}: {spent:,} of {granted:,}"
        for name, spent, granted in (
            ("tokens", spend.tokens, grant.tokens),
            ("usd_micros", spend.usd_micros, grant.usd_micros),
            ("tool_calls", spend.tool_calls, grant.tool_calls),
        )
        if spent > granted
    ]
    message = f"an answer cost more than it was granted ({'; '.join(over)}); find out why, then resume or abort"
    return Reason(code="overspent", message=message)


def replans_exhausted(ledger: BudgetLedger, cause: Reason) -> Reason | None:
    """Return why the planner must not be asked again, or None when it may."""
    if ledger.replans < ledger.max_replans:
        return None
    return Reason(
        code="budget_replans",
        message=f"all {ledger.max_replans} replans are used; the last plan failed with {cause.code}: {cause.message}",
    )
