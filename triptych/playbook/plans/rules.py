"""The rules for the steps of a plan. To add one, write a function here and put it in `STEP_RULES` or `PLAN_RULES`.

`triptych playbook check`, the planner and the executor all call `check_steps`, so that they agree. It finds all
mistakes in one pass, so that one repair can correct them all. Pure: it trusts neither an author nor a model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Final, NamedTuple

from triptych.contracts.compiled_contract import CompiledContract
from triptych.playbook import expressions
from triptych.playbook.diagnostic import STEPS, Diagnostic, Place, did_you_mean
from triptych.playbook.expressions import ExpressionError
from triptych.playbook.plans.arguments import schema_errors
from triptych.playbook.plans.context import PlanContext
from triptych.playbook.plans.expression_rules import check_expression, check_references, check_templates
from triptych.playbook.plans.references import origin_steps, waits_for
from triptych.schemas import (
    HANDOFF,
    Fallback,
    Json,
    Limits,
    ManagerPlan,
    ModelPlan,
    PlanByModel,
    StepSpec,
    codec,
)

BEFORE: Final = frozenset({"input", "steps"})
"""The variables that an argument, a `when` and the output can use."""
_AFTER: Final = BEFORE | {"result"}
"""The variables that an `expect` can use."""
_OF_A_KEY: Final = frozenset({"arguments"})


@expressions.metered
def check_steps(specs: Sequence[StepSpec], context: PlanContext) -> list[Diagnostic]:
    """Find everything that is wrong with these steps; nothing when they make a plan."""
    if too_many := list(check_volume(specs)):
        return too_many
    step_ids = {spec.id for spec in specs} | context.ended.keys()
    found = [diagnostic for rule in PLAN_RULES for diagnostic in rule(specs, context)]
    for index, spec in enumerate(specs):
        checked = CheckedStep(spec, index, context, step_ids)
        found.extend(diagnostic for rule in STEP_RULES for diagnostic in rule(checked))
    return found


def steps_at_once(spec: PlanByModel) -> int:
    """Return how many steps one answer may have."""
    return spec.max_steps if isinstance(spec, ModelPlan | ManagerPlan) else 1


def check_volume(specs: Sequence[StepSpec], more: Iterable[Json] = ()) -> Iterator[Diagnostic]:
    """Find out whether there are more expressions than may be compiled; `more` are templates besides those of steps.

    A malformed template is found where it stands, by the rules of its step.
    """
    conditions = [each for spec in specs for each in (spec.when, spec.expect)]
    templates = [
        value for spec in specs for value in (spec.arguments, spec.map, *(each.arguments for each in spec.fallback))
    ]
    try:
        expressions.refuse_volume(conditions, [*templates, *more])
    except ExpressionError as error:
        if not error.expression:
            yield Diagnostic(("plan",), str(error), "Use fewer, or hand over to another playbook")


# --- rules for all steps together -----------------------------------------------------------------


def _number_of_steps(specs: Sequence[StepSpec], context: PlanContext) -> Iterator[Diagnostic]:
    if not specs:
        yield Diagnostic(STEPS, "the plan has no steps", "Name at least one step")
    fresh = sum(spec.id not in context.ended for spec in specs)
    if fresh > context.max_steps:
        message = f"{fresh} steps are too many; at most {context.max_steps} are left"
        yield Diagnostic(("budgets", "steps"), message, "Use fewer steps, or set a larger budget")


def _unique_ids(specs: Sequence[StepSpec], _context: PlanContext) -> Iterator[Diagnostic]:
    seen: set[str] = set()
    for index, spec in enumerate(specs):
        if spec.id in seen:
            message = f"another step is called `{spec.id}` already"
            yield Diagnostic((*STEPS, index, "id"), message, "Give each step an id of its own", spec.id)
        seen.add(spec.id)


def _repeated_writes(specs: Sequence[StepSpec], context: PlanContext) -> Iterator[Diagnostic]:
    """Find writes that are the same before anything is known. The executor finds those that become the same."""

    def writes(spec: StepSpec) -> bool:
        offer = context.offers.get(spec.operation)
        return offer is not None and offer.contract.effect.writes and spec.id not in context.ended

    for repeat in repeated_calls(specs, context.limits, writes):
        spec = specs[repeat.place]
        allowed = f"a run may make it {repeat.allowed} times"
        message = f"{spec.operation} is the same write as in step {repeat.first}, and {allowed}"
        cure = f"Leave this one out, or raise limits.same_call_of.{spec.operation} if the repeat is meant"
        yield Diagnostic((*STEPS, repeat.place, "arguments"), message, cure, spec.id)


def _cycle(specs: Sequence[StepSpec], _context: PlanContext) -> Iterator[Diagnostic]:
    """Find steps that wait for each other. What they wait for is known only if their expressions compile."""
    try:
        TopologicalSorter({spec.id: waits_for(spec) for spec in specs}).prepare()
    except CycleError as error:
        chain: list[str] = list(reversed(error.args[1]))
        if len(set(chain)) == 1:
            return  # a step that refers to itself is found by its own rules
        index = next(index for index, spec in enumerate(specs) if spec.id == chain[0])
        message = f"these steps wait for each other: {' -> '.join(chain)}"
        place = (*STEPS, index, "depends_on")
        yield Diagnostic(place, message, "Remove one of these dependencies", chain[0])
    except ExpressionError:
        return


PLAN_RULES: Final[tuple[Callable[[Sequence[StepSpec], PlanContext], Iterator[Diagnostic]], ...]] = (
    _number_of_steps,
    _unique_ids,
    _repeated_writes,
    _cycle,
)


# --- rules for one step ---------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckedStep:
    """A step, and what its rules need to know."""

    spec: StepSpec
    index: int
    context: PlanContext
    step_ids: Collection[str]
    """Of this plan and of earlier steps that have ended."""

    @cached_property
    def offer(self) -> CompiledContract | None:
        """None where the operation is not allowed, or its contract is not known here."""
        return self.context.offers.get(self.spec.operation)

    @property
    def reads(self) -> bool:
        """Whether the contract is known, and its operation only reads."""
        return self.offer is not None and not self.offer.contract.effect.writes

    @property
    def writes(self) -> bool:
        """Whether the contract is known, and its operation changes something."""
        return self.offer is not None and self.offer.contract.effect.writes

    @cached_property
    def own_variables(self) -> frozenset[str]:
        """What the arguments and `expect` of a fan-out or of rounds can use besides."""
        branch = expressions.BRANCH if self.spec.map is not None else frozenset()
        return branch | (expressions.FEEDBACK if self.spec.rounds > 1 else frozenset())

    def mistake(self, place: Place, message: str, cure: str) -> Diagnostic:
        """Name a mistake at a place inside the step."""
        return Diagnostic((*STEPS, self.index, *place), message, cure, self.spec.id)


Found = Iterator[Diagnostic]


def _operation(step: CheckedStep) -> Found:
    """Check that the playbook allows the operation, and that a step that has ended keeps its own."""
    spec = step.spec
    earlier = step.context.ended.get(spec.id)
    if earlier is not None and earlier.operation != spec.operation:
        message = f"this step has ended already, as {earlier.operation}"
        yield step.mistake(("operation",), message, "Give a new step an id of its own")
    yield from _offered(step, ("operation",), spec.operation)


def _tool_calls(step: CheckedStep) -> Found:
    if step.spec.tool_calls is not None and step.spec.operation != HANDOFF:
        yield step.mistake(("tool_calls",), f"only `{HANDOFF}` makes calls of its own", "Remove `tool_calls`")


def _conditions(step: CheckedStep) -> Found:
    """Check that `when` and `expect` compile, and that the steps they name exist."""
    spec = step.spec
    for name, written, variables in (("when", spec.when, BEFORE), ("expect", spec.expect, _AFTER | step.own_variables)):
        if written is not None:
            for _, message, cure in check_expression(written, variables, step.step_ids, spec.id):
                yield step.mistake((name,), message, cure)


def _arguments(step: CheckedStep) -> Found:
    """Check that arguments fit the contract, and that their templates compile."""
    arguments = step.spec.arguments
    yield from _templates(step, ("arguments",), arguments, BEFORE | step.own_variables)
    yield from _fit(step, ("arguments",), arguments, step.offer)


def _map(step: CheckedStep) -> Found:
    value = step.spec.map
    yield from _templates(step, ("map",), value, BEFORE)
    try:
        is_text = isinstance(value, str) and not expressions.is_reference(value)
    except ExpressionError:
        return  # a malformed template is found with the others
    if is_text:
        yield step.mistake(("map",), "a text is not a list", "Give a list, or a text that is only one `${{ }}`")


def _dependencies(step: CheckedStep) -> Found:
    for number, name in enumerate(step.spec.depends_on):
        yield from _steps_exist(step, ("depends_on", number), [name])


def _origins(step: CheckedStep) -> Found:
    yield from _steps_exist(step, ("must_come_from",), origin_steps(step.spec))


def _rounds(step: CheckedStep) -> Found:
    if step.spec.rounds > 1 and step.writes:
        message = f"{step.spec.operation} changes something, so it cannot be made over again"
        yield step.mistake(("rounds",), message, "Remove `rounds`")


def _business_key(step: CheckedStep) -> Found:
    spec = step.spec
    unique = spec.business_key or (step.offer.contract.business_key if step.offer is not None else None)
    if unique is None:
        return
    if step.reads or spec.operation == HANDOFF:
        message = f"{spec.operation} writes nothing itself, so it cannot have a business key"
        yield step.mistake(("business_key",), message, "Remove `business_key`")
    yield from _templates(step, ("business_key",), unique.value, _OF_A_KEY)


def _fallbacks(step: CheckedStep) -> Found:
    """Check each fallback by the rules of the operation. A fallback of a read must not write."""
    for number, fallback in enumerate(step.spec.fallback):
        place: Place = ("fallback", number)
        if fallback.operation == HANDOFF:
            message = f"`{HANDOFF}` cannot be a fallback"
            yield step.mistake((*place, "operation"), message, "Make it a step of its own")
            continue
        if fallback.operation is not None:
            yield from _offered(step, (*place, "operation"), fallback.operation)
        yield from _fallback_effect(step, place, fallback)
        if step.offer is not None and fallback.data is not None:
            for error in step.offer.result.schema_errors(fallback.data):
                cure = f"See the result of {step.spec.operation}"
                yield step.mistake((*place, "data", *error.place), error.message, cure)
        if fallback.arguments is not None:
            allowed = BEFORE | step.own_variables
            yield from _templates(step, (*place, "arguments"), fallback.arguments, allowed)
        if fallback.operation is not None:
            arguments = step.spec.arguments if fallback.arguments is None else fallback.arguments
            offer = step.context.offers.get(fallback.operation)
            yield from _fit(step, (*place, "arguments"), arguments, offer)


def _fallback_effect(step: CheckedStep, place: Place, fallback: Fallback) -> Found:
    offer = step.context.offers.get(fallback.operation) if fallback.operation is not None else None
    if step.writes and fallback.operation is None:
        message = f"{step.spec.operation} writes, and only another operation can replace a write"
        yield step.mistake(place, message, "Name an `operation`, or remove this fallback")
    if step.reads and offer is not None and offer.contract.effect.writes:
        # A step that reads has a new key for each call, and nothing undoes it.
        message = f"{fallback.operation} writes, and only a read can replace a read"
        yield step.mistake(place, message, "Name an operation that reads")


STEP_RULES: Final[tuple[Callable[[CheckedStep], Found], ...]] = (
    _operation,
    _tool_calls,
    _conditions,
    _arguments,
    _map,
    _dependencies,
    _origins,
    _rounds,
    _business_key,
    _fallbacks,
)


# --- what several rules share ---------------------------------------------------------------------


def _offered(step: CheckedStep, place: Place, operation: str) -> Found:
    context = step.context
    if operation in context.offers or operation in context.without_contract:
        return
    message = f"`{operation}` is not offered to this playbook"
    if operation == HANDOFF:
        yield step.mistake(place, message, "Name the playbooks in `handoffs`")
        return
    names = sorted({*context.offers, *context.without_contract})
    use = f"Use one of {', '.join(names)}" if names else "Use none"
    yield step.mistake(place, message, did_you_mean(operation, names) or f"{use}, or add `{operation}` to `tools`")


def _fit(step: CheckedStep, place: Place, arguments: dict[str, Json], offer: CompiledContract | None) -> Found:
    """Check that arguments fit the contract of the operation, except for templates."""
    if offer is None:
        return
    try:
        for path, message, cure in schema_errors(arguments, offer):
            yield step.mistake((*place, *path), message, cure)
    except ExpressionError:
        return  # a malformed template is found with the others


def _templates(step: CheckedStep, place: Place, value: Json, variables: frozenset[str]) -> Found:
    for inner, message, cure in check_templates(value, variables, step.step_ids, step.spec.id):
        yield step.mistake((*place, *inner), message, cure)


def _steps_exist(step: CheckedStep, place: Place, names: Iterable[str]) -> Found:
    for _, message, cure in check_references(names, step.step_ids, step.spec.id):
        yield step.mistake(place, message, cure)


# --- the same call more than once -----------------------------------------------------------------


class RepeatedCall(NamedTuple):
    """A step that makes the same call as one before it, more often than a run may."""

    place: int
    """The index of the step."""
    first: str
    """The id of the step that makes the call first."""
    times: int
    allowed: int


def repeated_calls(
    specs: Sequence[StepSpec], limits: Limits, is_counted: Callable[[StepSpec], bool]
) -> Iterator[RepeatedCall]:
    """Find calls that are certain to be the same: a step with `when` may be the other of two."""
    seen: dict[str, list[str]] = {}
    for number, spec in enumerate(specs):
        if spec.when is not None or not is_counted(spec):
            continue
        try:
            counts = any("index" in each for each in expressions.expressions(spec.arguments))
        except ExpressionError:
            continue  # a malformed template is found with the others
        for index, item in enumerate(spec.map if isinstance(spec.map, list) else (None,)):
            written = [spec.operation, spec.arguments, item, spec.map, index if counts else None]
            names = seen.setdefault(codec.encode_text(written, sort_keys=True), [])
            names.append(spec.id)
            if len(names) > (allowed := limits.same_write(spec.operation)):
                yield RepeatedCall(number, names[0], len(names), allowed)
                break
