"""What a run may cost, from the grants of its requests. Pure.

A grant is the most that one request can cost, so `once` is already pessimistic: every request that goes
right the first time, each using all it may. `most` adds every further attempt, and is never above the budgets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from triptych.playbook.plans import cost_of
from triptych.schemas import (
    HANDOFF,
    Contract,
    Cost,
    Judge,
    OtherPlaybook,
    PlanByModel,
    PlanByTurns,
    Playbook,
    Review,
    StepSpec,
    handoff_contract,
)

_MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class CostLine:
    """One thing that costs: a plan, a step or a judgement."""

    what: str
    tokens: int
    usd_micros: int
    times: int
    """How often it may be asked for at most."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run may cost before it runs."""

    playbook: str
    version: str
    lines: tuple[CostLine, ...]
    once_tokens: int
    once_usd: float
    most_tokens: int
    most_usd: float
    unknown: tuple[str, ...]
    """Operations without a known contract; their cost is missing from `once`."""
    is_planned_by_model: bool


def estimate(
    playbook: Playbook, contracts: Mapping[str, Contract], others: Mapping[str, Playbook] | None = None
) -> Estimate:
    """Estimate what a run of a playbook may cost, given the contracts of the operations that are known.

    A step that hands over to one of `others` costs what is reserved for that run: its budgets, unless it says less.
    """
    known = [other.as_other for name, other in (others or {}).items() if name in playbook.handoffs]
    if known:
        contracts = {**contracts, HANDOFF: handoff_contract(playbook.handoffs, known)}
    lines = tuple(_lines(playbook, contracts, known))
    tokens = sum(line.tokens * line.times for line in lines)
    usd_micros = sum(line.usd_micros * line.times for line in lines)
    unknown = () if isinstance(playbook.plan, PlanByModel) else tuple(_unknown(playbook.plan.steps, contracts))
    # What is not known beforehand may use up all that the budgets leave.
    is_open = bool(unknown) or playbook.is_planned_by_model
    budgets = playbook.budgets
    return Estimate(
        playbook=playbook.name,
        version=playbook.version,
        lines=lines,
        once_tokens=sum(line.tokens for line in lines),
        once_usd=sum(line.usd_micros for line in lines) / _MICROS,
        most_tokens=budgets.tokens if is_open else min(tokens, budgets.tokens),
        most_usd=(budgets.usd_micros if is_open else min(usd_micros, budgets.usd_micros)) / _MICROS,
        unknown=unknown,
        is_planned_by_model=playbook.is_planned_by_model,
    )


def _lines(
    playbook: Playbook, contracts: Mapping[str, Contract], others: Sequence[OtherPlaybook]
) -> Iterator[CostLine]:
    plan = playbook.plan
    if isinstance(plan, PlanByModel):
        plans = plan.max_turns if isinstance(plan, PlanByTurns) else playbook.budgets.replans
        yield CostLine("(plan)", plan.tokens, _micros(plan.usd), 1 + plans)
    else:
        for step in plan.steps:
            attempts = (step.retry or playbook.retry).max_attempts * step.rounds
            branches = 1 if step.map is None else len(step.map) if isinstance(step.map, list) else step.max_items
            cost = _cost(step, contracts, others)
            if cost.tokens or cost.usd_micros:
                yield CostLine(step.id, cost.tokens * branches, cost.usd_micros * branches, attempts)
            if step.judge:
                judged = _judgement(f"(judge of {step.id})", step.judge, attempts)
                yield CostLine(judged.what, judged.tokens * branches, judged.usd_micros * branches, judged.times)
    if playbook.judge and playbook.review is Review.FINAL:
        yield _judgement("(judge)", playbook.judge, 1 + playbook.budgets.replans)


def _judgement(what: str, judge: Judge, times: int) -> CostLine:
    return CostLine(what, judge.tokens, _micros(judge.usd), times)


def _cost(step: StepSpec, contracts: Mapping[str, Contract], others: Sequence[OtherPlaybook]) -> Cost:
    contract = contracts.get(step.operation)
    if contract is None:
        return Cost(tokens=step.tokens or 0, usd_micros=_micros(step.usd or 0))
    return cost_of(step, contract, others)


def _unknown(steps: tuple[StepSpec, ...], contracts: Mapping[str, Contract]) -> Iterator[str]:
    for step in steps:
        if step.operation not in contracts and (step.tokens is None or step.usd is None):
            yield step.operation


def _micros(usd: float) -> int:
    return round(usd * _MICROS)
