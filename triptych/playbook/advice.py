"""Warnings about a playbook: what is well-formed and probably not meant. The playbook can be used anyway. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from triptych.contracts.compiled_contract import compiled_handoff_contract
from triptych.playbook.checker import file_context, known_others
from triptych.playbook.diagnostic import STEPS, Diagnostic, Place
from triptych.playbook.plans import cost_of
from triptych.playbook.plans.rules import repeated_calls
from triptych.schemas import HANDOFF, Cost, FixedPlan, Playbook


def advise(playbook: Playbook, others: Mapping[str, Playbook]) -> Iterator[Diagnostic]:
    """Find what is probably not meant."""
    yield from _repeats(playbook)
    yield from _tight_handoffs(playbook, others)


def _repeats(playbook: Playbook) -> Iterator[Diagnostic]:
    """Steps that make the same call. Only the contract says whether it writes, so that it is refused."""
    if not isinstance(playbook.plan, FixedPlan):
        return
    context, steps = file_context(playbook, {}), playbook.plan.steps
    for repeat in repeated_calls(steps, context.limits, lambda step: step.operation in context.without_contract):
        step = steps[repeat.place]
        message = (
            f"step `{step.id}` makes the same call as step `{repeat.first}`; if {step.operation} writes, it is refused"
        )
        cure = f"Remove it, or set `limits.same_call_of` to `{{{step.operation}: {repeat.times}}}` if it is meant"
        yield Diagnostic((*STEPS, repeat.place), message, cure, step.id)


def _tight_handoffs(playbook: Playbook, others: Mapping[str, Playbook]) -> Iterator[Diagnostic]:
    """Find runs of other playbooks that get less than their own budgets, or cannot begin: this budget is too small."""
    known = known_others(playbook, others)
    if not isinstance(playbook.plan, FixedPlan):
        for other in known:
            yield from _tight(playbook, other.cost, ("handoffs",), f"to hand over to `{other.name}`")
        return
    offer = compiled_handoff_contract(playbook.handoffs, known)
    for index, step in enumerate(playbook.plan.steps):
        if known and step.operation == HANDOFF:
            cost = cost_of(step, offer.contract, known)
            yield from _tight(playbook, cost, (*STEPS, index), f"step `{step.id}`")


def _tight(playbook: Playbook, cost: Cost, place: Place, what: str) -> Iterator[Diagnostic]:
    budgets = playbook.budgets
    for name, needed, limit in (
        ("tool_calls", cost.tool_calls + 1, budgets.tool_calls),
        ("tokens", cost.tokens, budgets.tokens),
        ("usd", cost.usd_micros / 1_000_000, budgets.usd),
    ):
        if needed > limit:
            yield Diagnostic(
                place,
                f"{what} wants {needed:g} of {name} for the other run, and the budget of {playbook.name} is {limit:g}",
                f"Set `budgets.{name}` to at least {needed:g}, or lower that of the other playbook",
            )
