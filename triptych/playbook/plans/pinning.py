"""Making a plan of steps that are free of mistakes: each gets its contracts, its dependencies and its limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from triptych.playbook.plans.context import PlanContext
from triptych.playbook.plans.references import contract_origins, waits_for
from triptych.schemas import (
    HANDOFF,
    BusinessKey,
    Contract,
    Cost,
    Fallback,
    OtherPlaybook,
    Pin,
    Plan,
    StandIn,
    Step,
    StepSpec,
    Undo,
)


def make_plan(specs: Sequence[StepSpec], context: PlanContext) -> Plan:
    """Make the plan of these steps. `check_steps` must have found nothing wrong with them."""
    return Plan(revision=context.revision, steps=tuple(_pinned(spec, context) for spec in specs))


def cost_of(spec: StepSpec, contract: Contract, others: Iterable[OtherPlaybook] = ()) -> Cost:
    """Give the reservation of a step: its own figures, else the budgets of the other playbook, or the contract's."""
    known = contract.cost
    if spec.operation == HANDOFF:
        named = spec.arguments.get("playbook")
        known = next((other.cost for other in others if other.name == named), known)
    return Cost(
        tokens=known.tokens if spec.tokens is None else spec.tokens,
        usd_micros=known.usd_micros if spec.usd is None else round(spec.usd * 1_000_000),
        tool_calls=known.tool_calls if spec.tool_calls is None else spec.tool_calls,
    )


def _pinned(spec: StepSpec, context: PlanContext) -> Step:
    offer = context.offers[spec.operation]
    contract = offer.contract
    return Step(
        id=spec.id,
        operation=spec.operation,
        arguments=spec.arguments,
        depends_on=waits_for(spec),
        map=spec.map,
        max_items=spec.max_items,
        max_failed=spec.max_failed,
        when=spec.when,
        expect=spec.expect,
        unmet=spec.unmet,
        judge=spec.judge,
        rounds=spec.rounds,
        retry=spec.retry or context.retry,
        tier=spec.tier,
        reading=spec.reading,
        fallback=tuple(_stand_in(each, spec.business_key, context) for each in spec.fallback),
        must_come_from=dict(contract_origins(contract.arguments)) | spec.must_come_from,
        pin=Pin(
            contract_hash=offer.hash,
            effect=contract.effect,
            timeout_ms=spec.timeout_ms or contract.timeout_ms,
            cost=cost_of(spec, contract, context.others),
            undo=_undo(contract, context),
            business_key=spec.business_key or contract.business_key,
        ),
    )


def _stand_in(fallback: Fallback, own: BusinessKey | None, context: PlanContext) -> StandIn:
    if fallback.operation is None:
        return StandIn(fallback=fallback)
    offer = context.offers[fallback.operation]
    contract = offer.contract
    pin = Pin(
        contract_hash=offer.hash,
        effect=contract.effect,
        timeout_ms=contract.timeout_ms,
        cost=contract.cost,
        business_key=own or contract.business_key,
    )
    return StandIn(fallback=fallback, pin=pin)


def _undo(contract: Contract, context: PlanContext) -> Undo | None:
    """Find what undoes a write, if the playbook allows that operation too."""
    how = contract.compensate
    offer = context.offers.get(how.operation) if how else None
    if how is None or offer is None:
        return None
    return Undo(
        operation=how.operation,
        arguments=how.arguments,
        contract_hash=offer.hash,
        effect=offer.contract.effect,
        timeout_ms=offer.contract.timeout_ms,
    )
