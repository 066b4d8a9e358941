"""The checker: a list of steps becomes a plan, or a list of what is wrong with it.

Pure: contracts, limits and what is known already come in, a plan or problems come out. It trusts
nobody, neither the playbook's author nor the model, and it finds everything in one go, so that a
repair can mend everything in one go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from triptych.contracts.compiled_contract import CompiledContract
from triptych.playbook import expressions
from triptych.playbook.expressions import ExpressionError
from triptych.playbook.plans.arguments import schema_errors
from triptych.schemas import (
    HANDOFF,
    BusinessKey,
    Contract,
    Cost,
    Effect,
    Fallback,
    Json,
    Limits,
    ManagerPlan,
    ModelPlan,
    OtherPlaybook,
    Pin,
    Plan,
    PlanByModel,
    RetryPolicy,
    StandIn,
    Step,
    StepRecord,
    StepSpec,
    Undo,
    codec,
)

_BEFORE = frozenset({"input", "steps"})
_AFTER = _BEFORE | {"result"}
_OF_A_KEY = frozenset({"arguments"})

ENDED = frozenset({"succeeded", "skipped"})
"""The statuses of steps that the executor keeps: they are not run again."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a plan: the step, the place in it, and a sentence that says what to do."""

    step: str
    place: str
    message: str

    def __str__(self) -> str:
        where = f"step {self.step}" if self.step else "the plan"
        return f"{where}, {self.place}: {self.message}" if self.place else f"{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a plan is held to."""

    offers: Mapping[str, CompiledContract]
    """The operations that the playbook allows and some tool offers, by name."""
    max_steps: int
    retry: RetryPolicy
    """For steps that bring none of their own."""
    revision: int = 1
    known: tuple[StepRecord, ...] = ()
    """Steps of earlier revisions that something is known of."""
    others: tuple[OtherPlaybook, ...] = ()
    """The playbooks that steps may hand over to, as far as they are known."""
    limits: Limits = field(default_factory=Limits)
    """How often a run may make the same write."""

    @property
    def ended(self) -> dict[str, StepRecord]:
        """Steps that are over and stay as they are."""
        return {record.id: record for record in self.known if record.status in ENDED}


@expressions.metered()
def find_problems(specs: Sequence[StepSpec], terms: Terms) -> list[Problem]:
    """Everything that is wrong with these steps; nothing when they make a plan."""
    if too_many := list(_volume(specs)):
        return too_many
    problems = [*_size(specs, terms), *_ids(specs), *_repeats(specs, terms)]
    known_ids = {spec.id for spec in specs} | terms.ended.keys()
    for spec in specs:
        problems.extend(_step(spec, terms, known_ids))
    return problems or list(_cycle(specs))


def make_plan(specs: Sequence[StepSpec], terms: Terms) -> Plan:
    """The plan that these steps make. They must be free of problems."""
    return Plan(revision=terms.revision, steps=tuple(_pinned(spec, terms) for spec in specs))


def steps_at_once(spec: PlanByModel) -> int:
    """How many steps one answer may have."""
    return spec.max_steps if isinstance(spec, ModelPlan | ManagerPlan) else 1


def waits_for(spec: StepSpec) -> tuple[str, ...]:
    """The steps that must have ended before this one: those it names and those it refers to, in that order.

    Raises:
        ExpressionError: a template or expression of the step does not compile.
    """
    referred = (
        expressions.references(spec.arguments)
        | expressions.references(spec.map)
        | expressions.references_of(spec.when)
        | expressions.references_of(spec.expect)
        | expressions.references([each.arguments for each in spec.fallback])
        | origin_steps(spec)
    )
    return tuple(dict.fromkeys((*spec.depends_on, *sorted(referred - {spec.id}))))


def _pin_of(fallback: Fallback, own: BusinessKey | None, terms: Terms) -> Pin | None:
    if fallback.operation is None:
        return None
    offer = terms.offers[fallback.operation]
    contract = offer.contract
    return Pin(
        contract_hash=offer.hash,
        effect=contract.effect,
        timeout_ms=contract.timeout_ms,
        cost=contract.cost,
        business_key=own or contract.business_key,
    )


def _fallbacks(spec: StepSpec, terms: Terms, known_ids: set[str]) -> Iterator[Problem]:
    """What is wrong with what may stand in for a step's operation."""
    own = terms.offers.get(spec.operation)
    for number, fallback in enumerate(spec.fallback):
        place = f"fallback[{number}]"
        offer = terms.offers.get(fallback.operation) if fallback.operation is not None else None
        if fallback.operation is not None and offer is None:
            yield Problem(spec.id, place, f"{fallback.operation} is not offered to this playbook")
        if own is not None and own.contract.effect.writes and fallback.operation is None:
            yield Problem(
                spec.id, place, f"{spec.operation} writes, and only another operation can stand in for a write"
            )
        reads = own is not None and not own.contract.effect.writes
        if reads and offer is not None and offer.contract.effect.writes:
            # A step that reads has a new key for each call, and nobody undoes it.
            yield Problem(spec.id, place, f"{fallback.operation} writes, and only a read can stand in for a read")
        if fallback.operation == HANDOFF:
            yield Problem(spec.id, place, f"{HANDOFF} cannot stand in for an operation; make it a step of its own")
        if own is not None and fallback.data is not None:
            for schema_error in own.result.schema_errors(fallback.data):
                yield Problem(spec.id, f"{place}.data", f"{schema_error.message}; see the result of {spec.operation}")
        arguments = spec.arguments if fallback.arguments is None else fallback.arguments
        try:
            written = list(expressions.expressions(arguments))
            yield from _expressions(spec, place, written, _BEFORE, known_ids)
            for path, message in schema_errors(arguments, offer) if offer is not None else ():
                yield Problem(spec.id, ".".join((place, "arguments", *map(str, path))), message)
        except ExpressionError as error:
            yield Problem(spec.id, place, str(error))


def origin_steps(spec: StepSpec) -> set[str]:
    sources = (source for sources in spec.must_come_from.values() for source in sources)
    return {source.removeprefix("steps.") for source in sources if source.startswith("steps.")}


def origins(schema: Mapping[str, Json], path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Where a contract says that arguments have to come from (`x-must-come-from`), by dotted path."""
    if (sources := schema.get("x-must-come-from")) is not None:
        yield ".".join(path), (sources,) if isinstance(sources, str) else tuple(sources)
    items = schema.get("items")
    if isinstance(items, Mapping):
        yield from origins(items, path)
    for name, inner in schema.get("properties", {}).items():
        if isinstance(inner, Mapping):
            yield from origins(inner, (*path, name))


def _size(specs: Sequence[StepSpec], terms: Terms) -> Iterator[Problem]:
    if not specs:
        yield Problem("", "steps", "there are none; name at least one step")
    fresh = sum(spec.id not in terms.ended for spec in specs)
    if fresh > terms.max_steps:
        yield Problem("", "steps", f"{fresh} steps are too many; at most {terms.max_steps} are left")


def _volume(specs: Sequence[StepSpec]) -> Iterator[Problem]:
    """Whether there are more expressions than may be compiled. What is malformed is told of its step."""
    templates = [
        value for spec in specs for value in (spec.arguments, spec.map, *(each.arguments for each in spec.fallback))
    ]
    try:
        expressions.refuse_volume((each for spec in specs for each in (spec.when, spec.expect)), templates)
    except ExpressionError as error:
        if not error.expression:
            yield Problem("", "", str(error))


def _ids(specs: Sequence[StepSpec]) -> Iterator[Problem]:
    seen: set[str] = set()
    for spec in specs:
        if spec.id in seen:
            yield Problem(spec.id, "id", "another step has this id too; ids must be unique")
        seen.add(spec.id)


def _repeats(specs: Sequence[StepSpec], terms: Terms) -> Iterator[Problem]:
    """Writes that are the same before anything is known; the executor finds those that become it."""
    seen: dict[str, list[str]] = {}
    for spec in specs:
        offer = terms.offers.get(spec.operation)
        if offer is None or not offer.contract.effect.writes or spec.when is not None or spec.id in terms.ended:
            continue
        try:
            counts = any("index" in each for each in expressions.expressions(spec.arguments))
        except ExpressionError:
            continue  # named where the expressions are checked
        for index, item in enumerate(spec.map if isinstance(spec.map, list) else (None,)):
            written = [spec.operation, spec.arguments, item, spec.map, index if counts else None]
            call = codec.encode_text(written, sort_keys=True)
            names = seen.setdefault(call, [])
            names.append(spec.id)
            if len(names) > (allowed := terms.limits.same_write(spec.operation)):
                message = (
                    f"{spec.operation} is the same write as in step {names[0]}, and a run may make it {allowed} times; "
                    f"leave this one out, or raise limits.same_call_of.{spec.operation} if the repeat is meant"
                )
                yield Problem(spec.id, "arguments", message)
                break


def _step(spec: StepSpec, terms: Terms, known_ids: set[str]) -> Iterator[Problem]:
    """What is wrong with one step, apart from cycles."""
    yield from _operation(spec, terms)
    yield from _expressions(spec, "when", [spec.when] if spec.when else [], _BEFORE, known_ids)
    own = expressions.BRANCH if spec.map is not None else frozenset()
    own |= expressions.FEEDBACK if spec.rounds > 1 else frozenset()
    yield from _expressions(spec, "expect", [spec.expect] if spec.expect else [], _AFTER | own, known_ids)
    yield from _templates(spec, "arguments", spec.arguments, _BEFORE | own, known_ids)
    yield from _templates(spec, "map", spec.map, _BEFORE, known_ids)
    yield from _references(spec, "depends_on", spec.depends_on, known_ids)
    yield from _fallbacks(spec, terms, known_ids)
    yield from _references(spec, "must_come_from", origin_steps(spec), known_ids)


def _templates(
    spec: StepSpec, place: str, value: Json, variables: frozenset[str], known_ids: set[str]
) -> Iterator[Problem]:
    try:
        yield from _expressions(spec, place, expressions.expressions(value), variables, known_ids)
        if place == "map" and isinstance(value, str) and not expressions.is_reference(value):
            yield Problem(spec.id, place, "a text is no list; give a list, or one ${{ }} and nothing else")
    except ExpressionError as error:
        yield Problem(spec.id, place, str(error))


def _expressions(
    spec: StepSpec, place: str, written: Iterable[str], variables: frozenset[str], known_ids: set[str]
) -> Iterator[Problem]:
    for expression in written:
        try:
            expressions.check(expression, variables)
            referred = expressions.references_of(expression)
        except ExpressionError as error:
            yield Problem(spec.id, place, str(error))
        else:
            yield from _references(spec, place, referred, known_ids)


def _operation(spec: StepSpec, terms: Terms) -> Iterator[Problem]:
    earlier = terms.ended.get(spec.id)
    if earlier is not None and earlier.operation != spec.operation:
        message = f"this step has ended already, as {earlier.operation}; give a new step an id of its own"
        yield Problem(spec.id, "operation", message)
    if spec.tool_calls is not None and spec.operation != HANDOFF:
        yield Problem(spec.id, "tool_calls", f"only {HANDOFF} makes calls of its own; leave it out")
    offer = terms.offers.get(spec.operation)
    if offer is None:
        allowed = ", ".join(sorted(terms.offers)) or "none"
        yield Problem(spec.id, "operation", f"{spec.operation} is not offered to this playbook; offered are: {allowed}")
        return
    unique = spec.business_key or offer.contract.business_key
    if unique is not None:
        yield from _business_key(spec, unique, offer.contract.effect)
    if spec.rounds > 1 and offer.contract.effect.writes:
        yield Problem(spec.id, "rounds", f"{spec.operation} changes something, so it cannot be made over again")
    try:
        unfitting = list(schema_errors(spec.arguments, offer))
    except ExpressionError:
        return  # A malformed template is named where the expressions are checked.
    for path, message in unfitting:
        yield Problem(spec.id, ".".join(("arguments", *map(str, path))), message)


def _business_key(spec: StepSpec, unique: BusinessKey, effect: Effect) -> Iterator[Problem]:
    if not effect.writes or spec.operation == HANDOFF:
        yield Problem(spec.id, "business_key", f"{spec.operation} writes nothing itself, so it has no business key")
    try:
        for expression in expressions.expressions(unique.value):
            expressions.check(expression, _OF_A_KEY)
    except ExpressionError as error:
        yield Problem(spec.id, "business_key", str(error))


def _references(spec: StepSpec, place: str, names: Iterable[str], known_ids: set[str]) -> Iterator[Problem]:
    for name in sorted(set(names)):
        if name == spec.id:
            yield Problem(spec.id, place, "the step refers to itself; use `result` in `expect` for its own result")
        elif name not in known_ids:
            steps = ", ".join(sorted(known_ids))
            yield Problem(spec.id, place, f"there is no step `{name}`; the steps are: {steps}")


def _cycle(specs: Sequence[StepSpec]) -> Iterator[Problem]:
    try:
        TopologicalSorter({spec.id: waits_for(spec) for spec in specs}).prepare()
    except CycleError as error:
        chain: list[str] = list(reversed(error.args[1]))
        yield Problem(chain[0], "depends_on", f"these steps wait for each other: {' -> '.join(chain)}; remove one")


def _undo(contract: Contract, terms: Terms) -> Undo | None:
    """What undoes a write, if the playbook allows that operation too."""
    how = contract.compensate
    offer = terms.offers.get(how.operation) if how else None
    if how is None or offer is None:
        return None
    return Undo(
        operation=how.operation,
        arguments=how.arguments,
        contract_hash=offer.hash,
        effect=offer.contract.effect,
        timeout_ms=offer.contract.timeout_ms,
    )


def cost_of(spec: StepSpec, contract: Contract, others: Iterable[OtherPlaybook] = ()) -> Cost:
    """What is reserved for a step: what it says, else the budgets of the playbook that it names, or the contract's."""
    known = contract.cost
    if spec.operation == HANDOFF:
        named = spec.arguments.get("playbook")
        known = next((other.cost for other in others if other.name == named), known)
    return Cost(
        tokens=known.tokens if spec.tokens is None else spec.tokens,
        usd_micros=known.usd_micros if spec.usd is None else round(spec.usd * 1_000_000),
        tool_calls=known.tool_calls if spec.tool_calls is None else spec.tool_calls,
    )


def _pinned(spec: StepSpec, terms: Terms) -> Step:
    """A step with its contract pinned, its dependencies complete and its limits filled in."""
    offer = terms.offers[spec.operation]
    contract = offer.contract
    cost = cost_of(spec, contract, terms.others)
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
        retry=spec.retry or terms.retry,
        tier=spec.tier,
        reading=spec.reading,
        fallback=tuple(StandIn(fallback=each, pin=_pin_of(each, spec.business_key, terms)) for each in spec.fallback),
        must_come_from=dict(origins(contract.arguments)) | spec.must_come_from,
        pin=Pin(
            contract_hash=offer.hash,
            effect=contract.effect,
            timeout_ms=spec.timeout_ms or contract.timeout_ms,
            cost=cost,
            undo=_undo(contract, terms),
            business_key=spec.business_key or contract.business_key,
        ),
    )
