"""Checks a task's input against its playbook's schema, in bounded time and memory.

The validator builds all errors before it gives the first, also those of each branch of an `anyOf`. So what is large is
only asked whether it fits, and a place that does not is looked for step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import jsonschema_rs

from triptych.schemas import Json

MAX_PROBLEMS = 5
PROBLEM_MAX_CHARS = 500
_SMALL_VALUES = 200
"""Of a value with so many parts all errors may be built."""
_MAX_DEPTH = 20

Path = tuple[str | int, ...]


class InputCheck:
    """The compiled schema of a playbook's input."""

    def __init__(self, schema: Mapping[str, Json]) -> None:
        self._schema = dict(schema)
        self._validator: Any = jsonschema_rs.Draft202012Validator(self._schema)

    def problems(self, content: Json) -> list[str]:
        """What does not fit, at most five sentences, each with its place; empty when all does."""
        if self._validator.is_valid(content):
            return []
        return _problems(self._validator, self._schema, self._definitions(), content)

    def _definitions(self) -> dict[str, Json]:
        return {name: self._schema[name] for name in ("$defs", "definitions") if name in self._schema}


def _problems(validator: Any, schema: Json, definitions: Mapping[str, Json], content: Json) -> list[str]:
    path: Path = ()
    for _ in range(_MAX_DEPTH):
        if _is_small(content):
            errors = islice(validator.iter_errors(content), MAX_PROBLEMS)
            return [_sentence((*path, *error.instance_path), error.message) for error in errors]
        found = _first_misfit(schema, definitions, content)
        if found is None:
            break
        key, validator, schema, content = found
        path = (*path, key)
    return [_sentence(path, "it does not fit the schema here; it is too large to say more")]


def _first_misfit(
    schema: Json, definitions: Mapping[str, Json], content: Json
) -> tuple[str | int, Any, Json, Json] | None:
    """The first part of a value that does not fit its own schema."""
    if not isinstance(schema, dict):
        return None
    if isinstance(content, dict) and isinstance(properties := schema.get("properties"), dict):
        for name, part_schema in properties.items():
            validator = _compiled(part_schema, definitions) if name in content else None
            if validator is not None and not validator.is_valid(content[name]):
                return name, validator, part_schema, content[name]
    elif isinstance(content, list) and (validator := _compiled(schema.get("items"), definitions)) is not None:
        for number, item in enumerate(content):
            if not validator.is_valid(item):
                return number, validator, schema["items"], item
    return None


def _compiled(schema: Json, definitions: Mapping[str, Json]) -> Any | None:
    """A validator of a part of the schema; None where it cannot stand by itself."""
    if not isinstance(schema, dict):
        return None
    try:
        return jsonschema_rs.Draft202012Validator({**definitions, **schema})
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
        return None


def _is_small(content: Json) -> bool:
    """Whether a value has few parts."""
    left, count = [content], 0
    while left:
        part = left.pop()
        count += 1
        if count > _SMALL_VALUES:
            return False
        if isinstance(part, dict):
            left.extend(islice(part.values(), _SMALL_VALUES + 1))
        elif isinstance(part, list):
            left.extend(islice(part, _SMALL_VALUES + 1))
    return True


def _sentence(path: Path, message: str) -> str:
    told = message if len(message) <= PROBLEM_MAX_CHARS else f"{message[:PROBLEM_MAX_CHARS]} …"
    return f"input{''.join(f'.{part}' for part in path)}: {told}"
