"""Recounts what a run reserved and spent, from the journal's plain JSON.

It shares no arithmetic with the executor's ledger: two counts that agree are worth more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from triptych.schemas import Playbook

_MICROS = 1_000_000

Amounts = dict[str, int]
"""By the name of a budget: `tool_calls`, `tokens`, `usd_micros`."""


def _limits(playbook: Playbook) -> Amounts:
    budgets = playbook.budgets
    return {"tool_calls": budgets.tool_calls, "tokens": budgets.tokens, "usd_micros": budgets.usd_micros}


def _add(amounts: Amounts, more: Mapping[str, int]) -> None:
    for name in amounts:
        amounts[name] += more.get(name, 0)


@dataclass(slots=True)
class RunAccount:
    """What one run may use, has used, and holds for open requests."""

    limits: Amounts
    used: Amounts = field(default_factory=lambda: {"tool_calls": 0, "tokens": 0, "usd_micros": 0})
    reserved: dict[str, Mapping[str, int]] = field(default_factory=dict)
    given_back: set[str] = field(default_factory=set)
    """The steps whose last call met an outage, and does not count."""

    @classmethod
    def of(cls, playbook: Playbook) -> RunAccount:
        return cls(_limits(playbook))

    def book(self, event: str, data: Mapping[str, Any]) -> Iterator[str]:
        """Book one event; say which budgets are exceeded after it."""
        if parent := data.get("parent"):
            self.limits = {name: min(limit, parent["grant"].get(name, 0)) for name, limit in self.limits.items()}
        if event == "Overspent":  # it is on record and has stopped the run; the ledger is right
            spent, granted = data["spent"], data["granted"]
            _add(self.limits, {name: max(0, spent.get(name, 0) - granted.get(name, 0)) for name in self.limits})
        self._count(event, data)
        if "reserved" in data:
            self.reserved[data["request_id"]] = data["reserved"]
        if event in (
            "PlanAccepted",
            "GoalReached",
            "PlanRefused",
            "CallAnswered",
            "VerdictGiven",
            "ReviewFailed",
            "AnsweredLate",
        ):
            self.reserved.pop(data["request_id"], None)
            _add(self.used, data.get("spend", {}))
            _add(self.limits, data.get("extended") or {})
        if event == "RunResumed":
            more = data.get("extend", {})
            self.limits["tool_calls"] += int(more.get("tool_calls", 0))
            self.limits["tokens"] += int(more.get("tokens", 0))
            self.limits["usd_micros"] += round(more.get("usd", 0) * _MICROS)
        for name, limit in self.limits.items():
            held = sum(grant.get(name, 0) for grant in self.reserved.values())
            if self.used[name] + held > limit:
                yield f"{name}: {self.used[name]} used and {held} reserved, of {limit}"

    def _count(self, event: str, data: Mapping[str, Any]) -> None:
        """Count a tool call, or give it back: once, whether it met an outage or was refused before it was made."""
        match event:
            case "CallRequested":
                self.used["tool_calls"] += 1
                self.given_back.discard(data["step"])
            case "CallAnswered" if data.get("uncounted"):
                self.used["tool_calls"] -= 1
                self.given_back.add(data["step"])
            case "RetryScheduled" if data.get("postponed") and data["ask"] == "call":
                self.used["tool_calls"] -= data["step"] not in self.given_back
            case _:
                pass
