"""Everything that is wrong with a well-formed playbook, as far as the file can show. Pure.

The rules for the steps of its plan are those of the planner, in `plans/rules.py`. They need the contracts of
operations, which only running tools announce: `unchecked` says which are not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from triptych.contracts.compiled_contract import compiled_handoff_contract
from triptych.json_schema import InvalidSchemaError, JsonSchema, with_defaults
from triptych.playbook import expressions
from triptych.playbook.diagnostic import Diagnostic, did_you_mean
from triptych.playbook.plans import PlanContext, check_steps
from triptych.playbook.plans.expression_rules import check_templates
from triptych.playbook.plans.references import operations_of
from triptych.playbook.plans.rules import BEFORE, check_volume
from triptych.schemas import HANDOFF, FixedPlan, Json, Limits, OtherPlaybook, PlanByTurns, Playbook, Review, StepSpec


def check_playbook(
    playbook: Playbook, *, tools: Collection[str] | None = None, others: Mapping[str, Playbook] | None = None
) -> Iterator[Diagnostic]:
    """Find everything that is wrong with a playbook.

    Args:
        playbook: A well-formed playbook.
        tools: The names of all tools that there are; None where they are not known.
        others: Known playbooks by name. What this one hands over to them is checked.
    """
    yield from _check_input(playbook.input)
    yield from _check_judge(playbook)
    yield from _check_tools(playbook, tools)
    steps = _steps(playbook)
    if too_many := list(check_volume(steps, playbook.output.values())):
        yield from too_many
        return
    if isinstance(playbook.plan, FixedPlan):
        yield from check_steps(steps, file_context(playbook, others or {}))
    answer = expressions.ANSWER if isinstance(playbook.plan, PlanByTurns) else frozenset()
    known = {step.id for step in steps} if isinstance(playbook.plan, FixedPlan) else None
    for place, message, cure in check_templates(playbook.output, BEFORE | answer, known):
        yield Diagnostic(("output", *place), message, cure)


def file_context(playbook: Playbook, others: Mapping[str, Playbook]) -> PlanContext:
    """Give what the steps of a fixed plan are checked against where no contract but `playbook.run`'s is known."""
    known = known_others(playbook, others)
    used = {each for step in _steps(playbook) for each in operations_of(step) if playbook.allows(each)}
    named = {each for each in playbook.tools if not each.endswith(".*")}
    return PlanContext(
        offers={HANDOFF: compiled_handoff_contract(playbook.handoffs, known)} if playbook.handoffs else {},
        max_steps=playbook.budgets.steps,
        retry=playbook.retry,
        others=known,
        limits=playbook.limits or Limits(),
        without_contract=frozenset(used | named) - {HANDOFF},
    )


def known_others(playbook: Playbook, others: Mapping[str, Playbook]) -> tuple[OtherPlaybook, ...]:
    """List the playbooks that this one may hand over to, of those that are known."""
    return tuple(others[name].as_other for name in playbook.handoffs if name in others)


def unchecked(playbook: Playbook, tools: Collection[str] | None) -> list[str]:
    """Say what a file alone cannot show: whether tools exist, and whether steps fit contracts."""
    said = []
    named = {operation.partition(".")[0] for operation in playbook.tools if operation != HANDOFF}
    if tools is None and named:
        said.append(f"whether there are the tools {', '.join(sorted(named))}, for want of a triptych.toml")
    called = {each for step in _steps(playbook) for each in operations_of(step) if each != HANDOFF}
    if called:
        said.append(f"whether the steps fit the contracts of {', '.join(sorted(called))}; the planner checks that")
    return said


def _steps(playbook: Playbook) -> tuple[StepSpec, ...]:
    return playbook.plan.steps if isinstance(playbook.plan, FixedPlan) else ()


def _check_tools(playbook: Playbook, known: Collection[str] | None) -> Iterator[Diagnostic]:
    """Find tools that do not exist: a call to one would never get an answer."""
    for index, operation in enumerate(playbook.tools):
        tool = operation.partition(".")[0]
        if known is not None and tool not in known and operation != HANDOFF:
            add = f"Add [tools.{tool}] to triptych.toml, which has {', '.join(sorted(known)) or 'none'}"
            yield Diagnostic(("tools", index), f"there is no tool `{tool}`", did_you_mean(tool, known) or add)


def _check_input(schema: dict[str, Json]) -> Iterator[Diagnostic]:
    try:
        compiled = JsonSchema.of(schema)
    except InvalidSchemaError as error:
        message = f"this is not a valid JSON Schema: {error.message}"
        yield Diagnostic(("input", *error.place), message, "See https://json-schema.org, draft 2020-12")
        return
    kinds = schema.get("type", "object")
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds):
        yield Diagnostic(("input", "type"), "a task's input is always an object", "Use `type: object`")
    filled = with_defaults(schema, {})
    for place, message, _ in compiled.schema_errors(filled):
        if place:
            at = ("input", "properties", str(place[0]), "default")
            told = f"this default does not fit its own schema: {message}"
            yield Diagnostic(at, told, "Correct one of the two")


def _check_judge(playbook: Playbook) -> Iterator[Diagnostic]:
    if playbook.judge is not None and playbook.review is not Review.FINAL:
        message = f"this judge is never asked with `review: {playbook.review.value}`"
        yield Diagnostic(("judge",), message, "Set `review: final`")
