"""Wrong steps of a fixed plan, each with its place and the words that name the mistake.

`triptych playbook check` knows no contracts, and the planner knows all: `NEEDS_CONTRACT` are what the former cannot see.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from triptych.contracts.compiled_contract import CompiledContract
from triptych.schemas import BusinessKey, Contract, Effect


class Mistake(NamedTuple):
    """Steps with one thing wrong."""

    name: str
    changes: dict[str, dict[str, Any]]
    """Fields to set, by the id of the step."""
    place: str
    words: str


STEPS: tuple[dict[str, Any], ...] = (
    {"id": "search", "operation": "kb.search", "arguments": {"query": "${{ input.subject }}"}},
    {"id": "note", "operation": "desk.note", "arguments": {"body": "${{ steps.search.data.text }}"}},
    {"id": "hand", "operation": "playbook.run", "arguments": {"playbook": "refunds"}},
)
TOOLS = ("kb.search", "kb.find", "desk.note", "desk.reply")
HANDOFFS = ("refunds",)
MAX_STEPS = 5

_TEXT = {"type": "string", "minLength": 3}
CONTRACTS = tuple(
    Contract(
        operation=operation,
        description="For tests.",
        arguments={
            "type": "object",
            "required": [argument],
            "properties": {argument: _TEXT},
            "additionalProperties": False,
        },
        result={"type": "object", "properties": {"text": {"type": "string"}}},
        effect=effect,
        business_key=BusinessKey(value="${{ arguments.body }}") if operation == "desk.reply" else None,
    )
    for operation, argument, effect in (
        ("kb.search", "query", Effect.READ),
        ("kb.find", "query", Effect.READ),
        ("desk.note", "body", Effect.IDEMPOTENT),
        ("desk.reply", "body", Effect.ONCE),
    )
)
OFFERS = {contract.operation: CompiledContract.of(contract) for contract in CONTRACTS}


def _one(name: str, step: str, fields: dict[str, Any], place: str, words: str) -> Mistake:
    return Mistake(name, {step: fields}, f"{step}.{place}", words)


def _expression(name: str, field: str, written: Any, place: str, words: str) -> Mistake:
    return _one(f"{name} in {field}", "note", {field: written}, place, words)


KNOWN_FROM_THE_FILE = (
    _one("an operation that is not allowed", "search", {"operation": "kb.serch"}, "operation", "`kb.serch` is not offered"),
    _one("two steps of one id", "note", {"id": "search"}, "id", "another step is called `search`"),
    _one("an unknown dependency", "note", {"depends_on": ["serch"]}, "depends_on[0]", "there is no step `serch`"),
    _one("itself as a dependency", "note", {"depends_on": ["note"]}, "depends_on[0]", "the step refers to itself"),
    _expression("a syntax error", "when", "input.subject ==", "when", "Syntax error"),
    _expression("a result that is not there yet", "when", "result.data.x", "when", "there is no variable `result`"),
    _expression("an unknown step", "when", "steps.serch.data.x", "when", "there is no step `serch`"),
    _expression("itself", "when", "steps.note.data.x", "when", "the step refers to itself"),
    _expression("a syntax error", "expect", "result.status ==", "expect", "Syntax error"),
    _expression("an item without a map", "expect", "item == 1", "expect", "there is no variable `item`"),
    _expression("an unknown step", "expect", "steps.serch.data.x", "expect", "there is no step `serch`"),
    _expression("itself", "expect", "steps.note.data.x", "expect", "the step refers to itself"),
    _expression("an open template", "arguments", {"body": "${{ input."}, "arguments.body", "not closed"),
    _expression("an item without a map", "arguments", {"body": "${{ item }}"}, "arguments.body", "no variable `item`"),
    _expression("feedback without rounds", "arguments", {"body": "${{ feedback }}"}, "arguments.body", "no variable `feedback`"),
    _expression("an unknown step", "arguments", {"body": "${{ steps.no.data }}"}, "arguments.body", "there is no step `no`"),
    _expression("itself", "arguments", {"body": "${{ steps.note.data }}"}, "arguments.body", "the step refers to itself"),
    _expression("a text", "map", "all ${{ input.subject }}", "map", "a text is not a list"),
    _expression("an unknown step", "map", "${{ steps.serch.data }}", "map", "there is no step `serch`"),
    _expression("an unknown step", "map", [1, "${{ steps.serch.data }}"], "map[1]", "there is no step `serch`"),
    _expression("an item", "map", ["${{ item }}"], "map[0]", "there is no variable `item`"),
    _one("calls of an operation", "note", {"tool_calls": 3}, "tool_calls", "only `playbook.run` makes calls of its own"),
    _one("a key of the input", "note", {"business_key": {"value": "${{ input.subject }}"}}, "business_key", "no variable `input`"),
    _one("a key that is open", "note", {"business_key": {"value": "${{ arguments."}}, "business_key", "not closed"),
    _one("an unknown origin", "note", {"must_come_from": {"body": "steps.serch"}}, "must_come_from", "there is no step `serch`"),
    _one("itself as an origin", "note", {"must_come_from": {"body": "steps.note"}}, "must_come_from", "the step refers to itself"),
    _one("a fallback that is not allowed", "note", {"fallback": [{"operation": "shop.buy"}]}, "fallback[0].operation", "`shop.buy` is not offered"),
    _one("a playbook as a fallback", "note", {"fallback": [{"operation": "playbook.run", "arguments": {"playbook": "refunds"}}]}, "fallback[0].operation", "cannot be a fallback"),
    _one("a fallback with an open template", "note", {"fallback": [{"operation": "desk.reply", "arguments": {"body": "${{ input."}}]}, "fallback[0].arguments.body", "not closed"),
    _one("a fallback with an unknown step", "note", {"fallback": [{"operation": "desk.reply", "arguments": {"body": "${{ steps.no.data }}"}}]}, "fallback[0].arguments.body", "there is no step `no`"),
    _one("a fallback with an unknown variable", "note", {"fallback": [{"operation": "desk.reply", "arguments": {"body": "${{ item }}"}}]}, "fallback[0].arguments.body", "no variable `item`"),
    _one("itself in a fallback", "note", {"fallback": [{"operation": "desk.reply", "arguments": {"body": "${{ steps.note.data }}"}}]}, "fallback[0].arguments.body", "the step refers to itself"),
    _one("an unknown playbook", "hand", {"arguments": {"playbook": "refund"}}, "arguments.playbook", "refund"),
    _one("no playbook", "hand", {"arguments": {"input": {}}}, "arguments", '"playbook" is a required property'),
    _one("an unknown argument of playbook.run", "hand", {"arguments": {"playbook": "refunds", "inputs": {}}}, "arguments.inputs", "no argument `inputs`"),
    _one("rounds of playbook.run", "hand", {"rounds": 2}, "rounds", "changes something"),
    _one("a key of playbook.run", "hand", {"business_key": {"value": "${{ arguments.playbook }}"}}, "business_key", "cannot have a business key"),
    _one("a kept answer for playbook.run", "hand", {"fallback": [{"cached_ms": 1_000}]}, "fallback[0]", "playbook.run writes"),
    _one("a circle through arguments", "search", {"arguments": {"query": "${{ steps.note.data.text }}"}}, "depends_on", "wait for each other"),
    _one("a circle through a fallback", "search", {"fallback": [{"operation": "kb.find", "arguments": {"query": "${{ steps.note.data.text }}"}}]}, "depends_on", "wait for each other"),
    _one("a circle through an origin", "search", {"must_come_from": {"query": "steps.note"}}, "depends_on", "wait for each other"),
)  # fmt: skip

NEEDS_CONTRACT = (
    _one("an unknown argument", "note", {"arguments": {"bodi": "hello"}}, "arguments.bodi", "no argument `bodi`"),
    _one("a missing argument", "note", {"arguments": {}}, "arguments", '"body" is a required property'),
    _one("an argument that does not fit", "note", {"arguments": {"body": "x"}}, "arguments.body", "shorter than 3"),
    _one("rounds of a write", "note", {"rounds": 2}, "rounds", "changes something"),
    _one("a key of a read", "search", {"business_key": {"value": "${{ arguments.query }}"}}, "business_key", "cannot have a business key"),
    _one("a write for a read", "search", {"fallback": [{"operation": "desk.note", "arguments": {"body": "hello"}}]}, "fallback[0]", "only a read can replace a read"),
    _one("a kept answer for a write", "note", {"fallback": [{"cached_ms": 1_000}]}, "fallback[0]", "only another operation can replace a write"),
    _one("data that does not fit the result", "search", {"fallback": [{"data": {"text": 1}}]}, "fallback[0].data.text", "is not of type"),
    _one("arguments that do not fit a fallback", "search", {"fallback": [{"operation": "kb.find", "arguments": {"query": "x"}}]}, "fallback[0].arguments.query", "shorter than 3"),
    _one("arguments that another operation does not take", "note", {"fallback": [{"operation": "desk.reply", "arguments": {"text": "hello"}}]}, "fallback[0].arguments.text", "no argument `text`"),
)  # fmt: skip

GOOD: dict[str, dict[str, dict[str, Any]]] = {
    "as it is": {},
    "a branch and what stands in for it see the item": {
        "search": {
            "map": ["first one", "second one"],
            "arguments": {"query": "${{ item }}"},
            "fallback": [{"operation": "kb.find"}, {"operation": "kb.find", "arguments": {"query": "${{ item }} x"}}],
        }
    },
    "a round and what stands in for it see the feedback": {
        "search": {
            "rounds": 2,
            "arguments": {"query": "${{ string(feedback) }}"},
            "fallback": [{"operation": "kb.find"}],
        }
    },
    "a read may have data or a kept answer": {"search": {"fallback": [{"cached_ms": 1_000}, {"data": {"text": "x"}}]}},
    "arguments may come from another step or operation": {
        "note": {"must_come_from": {"body": ["steps.search", "kb.find", "input"]}}
    },
}


def steps_with(changes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps with these fields."""
    return [step | changes.get(step["id"], {}) for step in STEPS]


def playbook_with(changes: dict[str, dict[str, Any]]) -> str:
    """A playbook of these steps in YAML, one field to a line."""
    lines = [
        "name: support",
        "goal: Answer the ticket",
        "input: {type: object}",
        f"tools: {json.dumps(TOOLS)}",
        f"handoffs: {json.dumps(HANDOFFS)}",
        f"budgets: {{steps: {MAX_STEPS}}}",
        "plan:",
        "  pattern: fixed",
        "  steps:",
    ]
    for step in steps_with(changes):
        lines.append(f"    - id: {step['id']}")
        lines += [f"      {name}: {json.dumps(value)}" for name, value in step.items() if name != "id"]
    return "\n".join(lines)
