"""Handing over to another playbook: an operation that no tool offers and the executor performs, by starting a run.

To a plan it is a step like any other. What the other run ends with is what the step answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import Field

from triptych.schemas.base import Authored, Grant, Json, Message, RequestId, RunId, Slug, Timestamp
from triptych.schemas.contract import Contract, Cost, Effect

HANDOFF = "playbook.run"

MAX_HANDOFFS = 5
"""So deep may playbooks hand over to one another."""


class OtherPlaybook(Message):
    """What a run knows of a playbook that it may hand over to: that of the version which was deployed when it began."""

    name: Slug
    goal: str
    input: Annotated[dict[str, Json], Field(description="JSON Schema of its input.")]
    cost: Annotated[Cost, Field(description="Its budgets: what is reserved for a run of it, unless a step says other.")]


def handoff_contract(playbooks: Iterable[str], others: Sequence[OtherPlaybook] = ()) -> Contract:
    """Return the contract of `playbook.run` for a playbook that may hand over to these.

    Runs that began before `others` was told know none; they reserve what was reserved then.
    """
    names = sorted(playbooks)
    goals = "".join(f" {other.name}: {other.goal}" for other in others)
    return Contract(
        operation=HANDOFF,
        description=f"Hands over to another playbook, and answers with what its run ended with.{goals}",
        arguments=_arguments(names, others),
        result={
            "type": "object",
            "required": ["run_id", "playbook", "output"],
            "properties": {
                "run_id": {"type": "string"},
                "playbook": {"type": "string"},
                "output": {"type": "object", "description": "The output of the other playbook."},
            },
        },
        effect=Effect.IDEMPOTENT,
        cost=_largest([other.cost for other in others]) or Cost(tokens=20_000, usd_micros=100_000, tool_calls=10),
    )


def _largest(costs: Sequence[Cost]) -> Cost | None:
    if not costs:
        return None
    return Cost(
        tokens=max(cost.tokens for cost in costs),
        usd_micros=max(cost.usd_micros for cost in costs),
        tool_calls=max(cost.tool_calls for cost in costs),
    )


def _arguments(names: list[str], others: Sequence[OtherPlaybook]) -> dict[str, Json]:
    schema: dict[str, Json] = {
        "type": "object",
        "required": ["playbook"],
        "additionalProperties": False,
        "properties": {
            "playbook": {"type": "string", "enum": names},
            "input": {"type": "object", "description": "The input that the other playbook asks for."},
        },
    }
    if others:
        schema["allOf"] = [_of(other) for other in others]
        schema["$defs"] = {other.name: _embedded(_asked(other.input), f"#/$defs/{other.name}") for other in others}
    return schema


def _of(other: OtherPlaybook) -> dict[str, Json]:
    """Return a condition: if this playbook is named, the input must be what it asks for."""
    then: dict[str, Json] = {"properties": {"input": {"$ref": f"#/$defs/{other.name}"}}}
    if _asked(other.input).get("required"):
        then["required"] = ["input"]
    return {"if": {"properties": {"playbook": {"const": other.name}}}, "then": then}


def _asked(schema: dict[str, Json]) -> dict[str, Json]:
    """Return the schema of an input as it is told: what has a default need not be given."""
    required, properties = schema.get("required"), schema.get("properties")
    if not isinstance(required, list) or not isinstance(properties, dict):
        return schema
    with_default = {name for name, inner in properties.items() if isinstance(inner, dict) and "default" in inner}
    return schema | {"required": [name for name in required if name not in with_default]}


_LITERAL = frozenset({"const", "default", "enum", "examples"})
_BY_NAME = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


def _embedded(schema: Json, place: str) -> Json:
    """Make a schema a part of another: its references point to their new places."""
    if isinstance(schema, list):
        return [_embedded(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Json] = {}
    for word, value in schema.items():
        if word == "$ref" and isinstance(value, str) and value.startswith("#"):
            found[word] = f"{place}{value[1:]}"
        elif word in _BY_NAME and isinstance(value, dict):
            found[word] = {name: _embedded(inner, place) for name, inner in value.items()}
        elif word not in {"$id", "$schema"}:
            found[word] = value if word in _LITERAL else _embedded(value, place)
    return found


class Parent(Authored):
    """The run that a task was handed over by. The executor sets it; a client's task that has it is refused."""

    run_id: RunId
    request_id: Annotated[RequestId, Field(description="The request that the outcome answers.")]
    asked_at_ms: Annotated[int, Field(ge=0, description="With the task id it makes the run id; since 1970.")]
    grant: Annotated[Grant, Field(description="What is reserved in the budget of the parent.")]
    deadline_at: Timestamp
    ancestors: Annotated[
        tuple[Slug, ...], Field(max_length=MAX_HANDOFFS, description="The playbooks of the runs above, topmost first.")
    ]
    withdrawn: Annotated[bool, Field(description="The parent has ended: cancel the run, if there is one.")] = False
