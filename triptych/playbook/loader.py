"""Playbooks from YAML files, checked as far as a file alone can be checked.

Whether a tool really offers an operation is known only where its contract is known: the planner
checks that. Nothing here may ask the network.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from triptych.contracts.compiled_contract import compiled_handoff_contract
from triptych.json_schema import InvalidSchemaError, JsonSchema, with_defaults
from triptych.kernel.errors import TriptychError
from triptych.playbook import expressions, yaml_source
from triptych.playbook.expressions import ExpressionError
from triptych.playbook.plans import cost_of, origin_steps, schema_errors, waits_for
from triptych.schemas import HANDOFF, Cost, FixedPlan, Json, Judge, PlanByTurns, Playbook, Review, StepSpec, codec

Place = tuple[str | int, ...]

_BEFORE = frozenset({"input", "steps"})
"""The variables that an argument, a `when` and the output can use."""
_AFTER = _BEFORE | {"result"}
"""The variables that an `expect` can use."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at a place inside the playbook."""

    place: Place
    message: str
    cure: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding and where it stands in its file; line and column count from 1."""

    file: Path
    line: int
    column: int
    path: str
    message: str
    cure: str

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        end = "" if self.cure.endswith("?") else "."
        return f"{self.file}:{self.line}:{self.column}: {where}{self.message}. {self.cure}{end}"


class PlaybookErrors(TriptychError):
    """A playbook file cannot be used. `problems` holds everything found wrong, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


def load_playbook(path: Path, tools: Collection[str] | None = None) -> Playbook:
    """Read and check one playbook. With `tools`, whoever calls knows which there are, and it may name no others.

    Raises:
        PlaybookErrors: with every problem found, each with its line.
    """
    try:
        text = yaml_source.load_text(path)
    except yaml_source.YamlProblem as error:
        raise _unreadable(path, error) from error
    return parse_playbook(text, path, tools)


def parse_playbook(text: str, file: Path, tools: Collection[str] | None = None) -> Playbook:
    """As `load_playbook`, for a text that is already here; `file` is only named in errors."""
    try:
        document = yaml_source.parse(text)
    except yaml_source.YamlProblem as error:
        raise _unreadable(file, error) from error
    try:
        playbook = codec.read(Playbook, codec.encode(document.value, limits=codec.VALUE))
    except codec.InvalidJson as error:
        found = [Finding(error.path, error.reason, "Write a value that JSON can say")]
    except ValidationError as error:
        found = _findings(error.errors(include_url=False, include_input=False))
    else:
        found = [*check_playbook(playbook), *_check_tools(playbook, tools)]
        if not found:
            return playbook
    raise PlaybookErrors(_located(finding, document, file) for finding in found)


def located(findings: Iterable[Finding], path: Path) -> list[Problem]:
    """Findings of a playbook that was read from this file, each with its line."""
    document = yaml_source.parse(yaml_source.load_text(path))
    return [_located(finding, document, path) for finding in findings]


def _unreadable(file: Path, error: yaml_source.YamlProblem) -> PlaybookErrors:
    at = error.position
    return PlaybookErrors([Problem(file, at.line, at.column, _dotted(error.path), error.message, error.cure)])


def _located(finding: Finding, document: yaml_source.Document, file: Path) -> Problem:
    at = document.position(finding.place)
    return Problem(file, at.line, at.column, _dotted(document.find(finding.place)), finding.message, finding.cure)


def _dotted(place: Place) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


# What the model says


def _findings(details: list[ErrorDetails]) -> list[Finding]:
    """The mistakes, without what only follows from them: items that are wrong are not counted as there."""
    places = [detail["loc"] for detail in details]
    return [
        _finding(detail)
        for detail in details
        if detail["type"] != "too_short"
        or not any(place[: len(detail["loc"])] == detail["loc"] and place != detail["loc"] for place in places)
    ]


def _finding(detail: ErrorDetails) -> Finding:
    """One of pydantic's errors, with a cure."""
    place, context = tuple(detail["loc"]), detail.get("ctx", {})
    # An item has no name of its own; it is known by its list.
    named = next((at for at in range(len(place), 0, -1) if isinstance(place[at - 1], str)), 0)
    name = _dotted(place[named - 1 :]) if named else "the playbook"
    match detail["type"]:
        case "missing":
            return Finding(place, f"`{name}` is missing", f"Add `{name}`")
        case "extra_forbidden":
            near = difflib.get_close_matches(name, _field_names(), n=1)
            return Finding(
                place, f"`{name}` is no field here", f"Did you mean `{near[0]}`?" if near else f"Remove `{name}`"
            )
        case "union_tag_not_found" | "union_tag_invalid":
            cure = "Set `pattern` to `fixed` (with `steps`), `model`, `react` or `manager`"
            return Finding(place, "it is not said who plans", cure)
        case "enum" | "literal_error":
            return Finding(place, f"`{name}` has an unknown value", f"Use {context['expected']}")
        case "string_pattern_mismatch":
            return Finding(
                place, f"`{name}` has characters that are not allowed", f"It must match {context['pattern']}"
            )
    return Finding(place, f"`{name}`: {_lowered(detail['msg'])}", "Correct the value")


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


@cache
def _field_names() -> tuple[str, ...]:
    """Every field that a playbook can have at any depth."""
    schema = Playbook.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    return tuple(sorted({name for part in parts for name in part.get("properties", {})}))


# What the model cannot say


def check_playbook(playbook: Playbook) -> Iterator[Finding]:
    """Everything that is wrong with a well-formed playbook."""
    yield from _check_input(playbook.input)
    yield from _check_judge(playbook.judge, playbook.review)
    if too_many := list(_check_volume(playbook)):
        yield from too_many
        return
    known: set[str] | None = None
    if isinstance(playbook.plan, FixedPlan):
        known = {step.id for step in playbook.plan.steps}
        yield from _check_steps(playbook, playbook.plan.steps)
    own = expressions.ANSWER if isinstance(playbook.plan, PlanByTurns) else frozenset()
    for name, value in playbook.output.items():
        yield from _check_templates(("output", name), value, known, _BEFORE | own)


def doubtful(playbook: Playbook) -> Iterator[Finding]:
    """What is well-formed and hardly meant: steps that make the same call. Whether it writes, a tool alone can say."""
    if not isinstance(playbook.plan, FixedPlan):
        return
    seen: dict[str, list[str]] = {}
    for index, step in enumerate(playbook.plan.steps):
        if step.when is not None:
            continue
        names = seen.setdefault(codec.encode_text([step.operation, step.arguments, step.map], sort_keys=True), [])
        names.append(step.id)
        if len(names) > playbook.same_write(step.operation):
            yield Finding(
                ("plan", "steps", index),
                f"step `{step.id}` makes the same call as step `{names[0]}`; if {step.operation} writes, it is refused",
                f"Remove it, or set `limits.same_call_of` to `{{{step.operation}: {len(names)}}}` if it is meant",
            )


def check_handoffs(playbook: Playbook, others: Mapping[str, Playbook]) -> Iterator[Finding]:
    """What is wrong with what a playbook hands over to others, of those that are known here."""
    known = [others[name].as_other for name in playbook.handoffs if name in others]
    if not known or not isinstance(playbook.plan, FixedPlan):
        return
    offer = compiled_handoff_contract(playbook.handoffs, known)
    for index, step in enumerate(playbook.plan.steps):
        try:
            unfitting = list(schema_errors(step.arguments, offer)) if step.operation == HANDOFF else []
        except ExpressionError:
            continue  # named where the expressions are checked
        for path, message in unfitting:
            yield Finding(("plan", "steps", index, "arguments", *path), message, "See the `input` of that playbook")


def tight_handoffs(playbook: Playbook, others: Mapping[str, Playbook]) -> Iterator[Finding]:
    """Runs of other playbooks that may get less than their budgets say, or cannot begin: this one's hold no more."""
    known = [others[name].as_other for name in playbook.handoffs if name in others]
    if not isinstance(playbook.plan, FixedPlan):
        for other in known:
            yield from _tight(playbook, other.cost, ("handoffs",), f"to hand over to `{other.name}`")
        return
    offer = compiled_handoff_contract(playbook.handoffs, known)
    for index, step in enumerate(playbook.plan.steps):
        if known and step.operation == HANDOFF:
            cost = cost_of(step, offer.contract, known)
            yield from _tight(playbook, cost, ("plan", "steps", index), f"step `{step.id}`")


def _tight(playbook: Playbook, cost: Cost, place: Place, what: str) -> Iterator[Finding]:
    budgets = playbook.budgets
    for name, needed, limit in (
        ("tool_calls", cost.tool_calls + 1, budgets.tool_calls),
        ("tokens", cost.tokens, budgets.tokens),
        ("usd", cost.usd_micros / 1_000_000, budgets.usd),
    ):
        if needed > limit:
            yield Finding(
                place,
                f"{what} wants {needed:g} of {name} for the other run, and the budget of {playbook.name} is {limit:g}",
                f"Set `budgets.{name}` to at least {needed:g}, or lower that of the other playbook",
            )


def _check_volume(playbook: Playbook) -> Iterator[Finding]:
    """Whether there are more expressions than may be compiled. What is malformed is told elsewhere."""
    steps = playbook.plan.steps if isinstance(playbook.plan, FixedPlan) else ()
    conditions = [each for step in steps for each in (step.when, step.expect)]
    templates = [value for step in steps for value in (step.arguments, step.map)]
    try:
        expressions.refuse_volume(conditions, [*templates, *playbook.output.values()])
    except ExpressionError as error:
        if not error.expression:
            yield Finding(("plan",), str(error), "Make two playbooks of it")


def _check_tools(playbook: Playbook, known: Collection[str] | None) -> Iterator[Finding]:
    """Nobody would answer a call to a tool that is not there."""
    for index, operation in enumerate(playbook.tools):
        tool = operation.partition(".")[0]
        if known is not None and tool not in known and operation != HANDOFF:
            add = f"Add [tools.{tool}] to triptych.toml, which has {', '.join(sorted(known)) or 'none'}"
            yield Finding(("tools", index), f"there is no tool `{tool}`", _near(tool, known) or add)


def _check_input(schema: dict[str, Json]) -> Iterator[Finding]:
    try:
        compiled = JsonSchema.of(schema)
    except InvalidSchemaError as error:
        yield Finding(
            ("input", *error.place),
            f"this is not a valid JSON Schema: {error.message}",
            "See https://json-schema.org, draft 2020-12",
        )
        return
    kinds = schema.get("type", "object")
    if "object" not in ([kinds] if isinstance(kinds, str) else kinds):
        yield Finding(("input", "type"), "a task's input is always an object", "Use `type: object`")
    filled = with_defaults(schema, {})
    for schema_error in compiled.schema_errors(filled):
        if schema_error.place:
            place = ("input", "properties", str(schema_error.place[0]), "default")
            yield Finding(
                place, f"this default does not fit its own schema: {schema_error.message}", "Correct one of the two"
            )


def _check_judge(judge: Judge | None, review: Review) -> Iterator[Finding]:
    if judge is not None and review is not Review.FINAL:
        yield Finding(("judge",), f"nobody asks this judge with `review: {review.value}`", "Set `review: final`")


def _check_steps(playbook: Playbook, steps: tuple[StepSpec, ...]) -> Iterator[Finding]:
    place: Place = ("plan", "steps")
    known = {step.id for step in steps}
    budget = playbook.budgets.steps
    if budget < len(steps):
        yield Finding(
            ("budgets", "steps"),
            f"{len(steps)} steps do not fit into a budget of {budget}",
            f"Set it to at least {len(steps)}",
        )
    seen: set[str] = set()
    for index, step in enumerate(steps):
        at: Place = (*place, index)
        if step.id in seen:
            yield Finding((*at, "id"), f"another step is called `{step.id}` already", "Give each step an id of its own")
        seen.add(step.id)
        if not playbook.allows(step.operation):
            add = (
                "Name the playbooks in `handoffs`"
                if step.operation == HANDOFF
                else f"Add `{step.operation}` to `tools`"
            )
            yield Finding((*at, "operation"), f"`tools` does not allow `{step.operation}`", add)
        yield from _check_handoff(playbook, step, at)
        for number, name in enumerate(step.depends_on):
            if name not in known:
                yield Finding((*at, "depends_on", number), f"there is no step `{name}`", _suggest(name, known))
        yield from _check_condition((*at, "when"), step.when, _BEFORE, known)
        own = expressions.BRANCH if step.map is not None else frozenset()
        own |= expressions.FEEDBACK if step.rounds > 1 else frozenset()
        yield from _check_condition((*at, "expect"), step.expect, _AFTER | own, known)
        yield from _check_templates((*at, "arguments"), step.arguments, known, _BEFORE | own)
        yield from _check_map((*at, "map"), step.map, known)
        if step.business_key is not None:
            unique = step.business_key.value
            yield from _check_templates((*at, "business_key"), unique, None, frozenset({"arguments"}))
        yield from _check_fallbacks(playbook, step, (*at, "fallback"), known)
        for name in sorted(origin_steps(step) - known):
            yield Finding((*at, "must_come_from"), f"there is no step `{name}`", _suggest(name, known))
    yield from _check_cycle(steps, place)


def _check_condition(
    place: Place, expression: str | None, variables: frozenset[str], known: set[str]
) -> Iterator[Finding]:
    """A `when` or an `expect`: it compiles, and the steps that it names exist."""
    if expression is None:
        return
    try:
        expressions.check(expression, variables)
        referred = expressions.references_of(expression)
    except ExpressionError as error:
        yield _not_cel(place, error)
        return
    yield from _check_known(place, referred, known)


def _check_handoff(playbook: Playbook, step: StepSpec, at: Place) -> Iterator[Finding]:
    if step.operation != HANDOFF:
        if step.tool_calls is not None:
            yield Finding((*at, "tool_calls"), f"only `{HANDOFF}` makes calls of its own", "Remove `tool_calls`")
        return
    named = step.arguments.get("playbook")
    is_known = named in playbook.handoffs or (isinstance(named, str) and expressions.OPEN in named)
    if playbook.handoffs and not is_known:
        message = f"`handoffs` does not allow `{named}`" if named else "it is not said to which playbook"
        yield Finding((*at, "arguments", "playbook"), message, f"Use one of {', '.join(playbook.handoffs)}")


def _check_fallbacks(playbook: Playbook, step: StepSpec, place: Place, known: set[str]) -> Iterator[Finding]:
    """What may stand in for the operation of a step, by the rules that hold for the operation itself."""
    for number, fallback in enumerate(step.fallback):
        at: Place = (*place, number)
        if fallback.operation == HANDOFF:
            yield Finding((*at, "operation"), f"`{HANDOFF}` cannot stand in for an operation", "Make it a step")
        elif fallback.operation is not None and not playbook.allows(fallback.operation):
            add = f"Add `{fallback.operation}` to `tools`"
            yield Finding((*at, "operation"), f"`tools` does not allow `{fallback.operation}`", add)
        if fallback.arguments is not None:
            yield from _check_templates((*at, "arguments"), fallback.arguments, known)


def _check_map(place: Place, value: Json, known: set[str]) -> Iterator[Finding]:
    yield from _check_templates(place, value, known)
    try:
        is_list = not isinstance(value, str) or expressions.is_reference(value)
    except ExpressionError:
        return
    if not is_list:
        yield Finding(place, "a text is no list", "Give a list, or one `${{ }}` and nothing else")


def _check_templates(
    place: Place, value: Json, known: set[str] | None, variables: frozenset[str] = _BEFORE
) -> Iterator[Finding]:
    """Each template in a value compiles, and the steps that it names exist (if they are known yet)."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _check_templates((*place, name), item, known, variables)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _check_templates((*place, index), item, known, variables)
    elif isinstance(value, str):
        try:
            for expression in expressions.expressions(value):
                expressions.check(expression, variables)
            referred = expressions.references(value)
        except ExpressionError as error:
            yield _not_cel(place, error)
            return
        if known is not None:
            yield from _check_known(place, referred, known)


def _not_cel(place: Place, error: ExpressionError) -> Finding:
    return Finding(place, str(error), "See docs/reference/playbooks.md for what an expression can say")


def _check_known(place: Place, referred: set[str], known: set[str]) -> Iterator[Finding]:
    for name in sorted(referred - known):
        yield Finding(place, f"there is no step `{name}`", _suggest(name, known))


def _suggest(name: str, known: set[str]) -> str:
    return _near(name, known) or f"The steps are {', '.join(sorted(known))}"


def _near(name: str, known: Collection[str]) -> str | None:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"Did you mean `{near[0]}`?" if near else None


def _check_cycle(steps: tuple[StepSpec, ...], place: Place) -> Iterator[Finding]:
    """Steps that wait for each other. What they wait for can be told only if it compiles."""
    try:
        TopologicalSorter({step.id: {*waits_for(step), *_itself(step)} for step in steps}).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        index = next((index for index, step in enumerate(steps) if step.id == cycle[0]), 0)
        chain = " -> ".join(reversed(cycle))
        yield Finding((*place, index), f"these steps wait for each other: {chain}", "Remove one of these dependencies")
    except ExpressionError:
        return


def _itself(step: StepSpec) -> set[str]:
    """The step, if it cannot start before it has ended itself. Its `expect` may refer to it."""
    before = set(step.depends_on) | expressions.references_of(step.when) | expressions.references(step.arguments)
    return (before | expressions.references(step.map)) & {step.id}
