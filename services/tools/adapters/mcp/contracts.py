"""From the tools of an MCP server to contracts. Pure: the same pins and options always give the same contracts."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from triptych.json_schema import InvalidSchemaError, JsonSchema
from triptych.schemas.base import Json
from triptych.schemas.contract import Contract, Effect
from triptych.tools.adapters.mcp.options import McpOptions, Override
from triptych.tools.adapters.mcp.pins import PinnedTool, SkippedTool

NAME_MAX_CHARS = 63
_HASH_CHARS = 6
_WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_OBJECT = "its arguments are not an object"
_TASK_ONLY = (
    "it can only be called as a task of protocol 2025-11-25, which has become an extension of 2026-07-28 since then; "
    "ask for a server that speaks that one"
)

CONTENT: dict[str, Json] = {
    "type": "object",
    "required": ["text", "attachments"],
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string", "description": "All text of the answer."},
        "attachments": {
            "type": "array",
            "description": "Images, audio, resources and links to resources, in the words of MCP.",
            "items": {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}},
        },
    },
}
"""What an operation answers whose tool says nothing of the form of its results."""


@dataclass(frozen=True, slots=True)
class McpOperation:
    """One tool of the server as an operation."""

    tool: PinnedTool
    contract: Contract
    key_argument: str | None

    @property
    def is_structured(self) -> bool:
        """Return whether its result is the tool's structured content, rather than the blocks of its answer."""
        return self.tool.output_schema is not None


def mcp_operations(
    tool: str, pinned: Iterable[PinnedTool], options: McpOptions
) -> tuple[list[McpOperation], list[SkippedTool]]:
    """Return the operations of the tools, and the skipped tools, both in the order of the server."""
    pinned = list(pinned)
    names = operation_names(each.name for each in pinned)
    offered: list[McpOperation] = []
    left_out: list[SkippedTool] = []
    seen: set[str] = set()
    for each in pinned:
        name = names[each.name]
        if name in seen:
            left_out.append(SkippedTool(each.name, "it is listed twice"))
            continue
        seen.add(name)
        if options.only and name not in options.only:
            left_out.append(SkippedTool(each.name, "not among `only`"))
            continue
        override = options.operations.get(name, Override())
        try:
            offered.append(_offer(f"{tool}.{name}", each, override, options.timeout_ms))
        except _Unusable as error:
            left_out.append(SkippedTool(each.name, str(error)))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            # The schemas come from outside. An unforeseen one costs its own tool, and no other.
            left_out.append(
                SkippedTool(each.name, f"no contract can be made of it ({type(error).__name__}: {error})"[:300])
            )
    return offered, left_out


def operation_names(tools: Iterable[str]) -> dict[str, str]:
    """Return a name in our form for each of the server's names: `getUser` and `get-user` are both get_user.

    Those that would meet get a hash of the original name behind, all of them, so that the order does not matter.
    """
    plain = {name: _plain(name) for name in tools}
    count = Counter(plain.values())
    return {
        name: short if count[short] == 1 and len(short) <= NAME_MAX_CHARS else _distinguished(name, short)
        for name, short in plain.items()
    }


class _Unusable(Exception):
    """The tool cannot be an operation."""


def _offer(operation: str, tool: PinnedTool, override: Override, timeout_ms: int) -> McpOperation:
    if tool.execution is not None and tool.execution.task_support == "required":
        raise _Unusable(_TASK_ONLY)
    arguments = as_2020_12(tool.input_schema)
    if arguments.get("type", "object") != "object":
        raise _Unusable(_NO_OBJECT)
    if override.key_argument is not None:
        arguments = _without(arguments, override.key_argument)
    result = CONTENT if tool.output_schema is None else as_2020_12(tool.output_schema)
    for what, schema in (("arguments", arguments), ("result", result)):
        try:
            JsonSchema.of(schema)
        except InvalidSchemaError as error:
            raise _Unusable(f"the schema of its {what} is not a JSON Schema: {error}") from None
    contract = Contract(
        operation=operation,
        description=tool.description or tool.title or tool.name,
        arguments=arguments,
        result=result,
        effect=override.effect or _effect(tool),
        timeout_ms=override.timeout_ms or timeout_ms,
    )
    return McpOperation(tool, contract, override.key_argument)


def _effect(tool: PinnedTool) -> Effect:
    hints = tool.annotations
    if hints is not None and hints.read_only_hint:
        return Effect.READ
    if hints is not None and hints.idempotent_hint:
        return Effect.IDEMPOTENT
    return Effect.ONCE


def as_2020_12(schema: Mapping[str, Any]) -> dict[str, Json]:
    """Return the schema in the dialect of contracts; servers also speak draft 7, where tuples are written otherwise."""
    changed: dict[str, Any] = _in_2020_12(schema)
    changed.pop("$schema", None)
    return changed


def _in_2020_12(node: Any) -> Any:
    if isinstance(node, list):
        return [_in_2020_12(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    changed = {
        key: value if key in {"enum", "const", "default", "examples"} else _in_2020_12(value)
        for key, value in node.items()
    }
    if isinstance(changed.get("items"), list):
        changed["prefixItems"] = changed.pop("items")
        if "additionalItems" in changed:
            changed["items"] = changed.pop("additionalItems")
    return changed


def _without(schema: dict[str, Json], argument: str) -> dict[str, Json]:
    properties = schema.get("properties", {})
    if argument not in properties:
        raise _Unusable(f"it has no argument {argument}, which `key_argument` names")
    kept = {name: value for name, value in properties.items() if name != argument}
    required = [name for name in schema.get("required", []) if name != argument]
    return {**schema, "properties": kept, "required": required}


def _plain(name: str) -> str:
    words = _WORD_BEGINS.sub("_", name)
    plain = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    return plain if re.match(r"[a-z]", plain) else f"tool_{plain}".rstrip("_")


def _distinguished(name: str, short: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_CHARS]
    return f"{short[: NAME_MAX_CHARS - _HASH_CHARS - 1]}_{digest}"
