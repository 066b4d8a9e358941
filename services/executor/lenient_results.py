"""What a playbook uses of an answer that its contract does not allow in full: that must be there and of its type.

A lenient reading lets pass what a document says wrongly of its own API. It must not hand an expression something that
is not there, or is not what the expression was written for. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from triptych.executor.state import Run, StepState
from triptych.json_schema import path_of, referred
from triptych.playbook.expressions import ExpressionError, Read, expressions, reads
from triptych.schemas import Json

_KINDS: Final = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_NAMES: Final[dict[type, str]] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "integer",
    str: "string",
    list: "array",
    dict: "object",
}

Path = tuple[str | int, ...]


def invalid_use(run: Run, state: StepState, schema: Json, data: Json) -> str | None:
    """Return, in words, a used part of a step's answer that is missing or not of its type; None without such a part.

    What is read inside a macro, of each element of a list, is not looked at: its expression fails by itself. So does
    what others read of the branches of a step with `map`, which come as a list.
    """
    found = list(_reads_of(run, state))
    tested = {path for path, is_tested in found if is_tested}
    shape = _Shape(schema)
    for path, _ in found:
        if not any(path[: len(each)] == each for each in tested) and (problem := shape.problem(data, path)):
            return problem
    return None


def _reads_of(run: Run, state: StepState) -> Iterator[tuple[Path, bool]]:
    """Yield the paths in the data of a step that plan and playbook read, and whether they only test for them."""
    for text in _written(run) if state.step.map is None else ():
        for path, is_tested in _reads(text):
            if path[:3] == ("steps", state.id, "data"):
                yield path[3:], is_tested
    for path, is_tested in _reads(state.step.expect):
        if path[:2] == ("result", "data"):
            yield path[2:], is_tested


def _written(run: Run) -> Iterator[str | None]:
    """Yield every expression of a run's plan and of its playbook's output."""
    templates: list[Json] = [run.playbook.output]
    for each in run.steps.values():
        step = each.step
        templates.append(step.arguments)
        templates.extend(stand_in.fallback.arguments for stand_in in step.fallback)
        yield step.when
        yield step.expect
        if isinstance(step.map, str):
            templates.append(step.map)
    for template in templates:
        try:
            yield from expressions(template)
        except ExpressionError:
            continue  # it fails where it is evaluated


def _reads(expression: str | None) -> tuple[Read, ...]:
    try:
        return reads(expression) if expression else ()
    except ExpressionError:
        return ()


class _Shape:
    """What a schema says is at a path, with all alternatives that it leaves open."""

    def __init__(self, schema: Json) -> None:
        self._root = schema
        self._known: dict[tuple[int, Path], frozenset[str]] = {}

    def problem(self, data: Json, path: Path) -> str | None:
        """Return why what is at a path cannot be used; None where it can."""
        value = data
        for depth in range(len(path) + 1):
            at = path[:depth]
            if depth:
                before, part = value, path[depth - 1]
                if not _is_there(before, part):
                    is_promised = isinstance(part, str) and self._requires(path[: depth - 1], part)
                    return f"{_path_text(at)} is not there" if is_promised else None
                value = before[part]
            kinds = self._kinds(self._root, at)
            if not kinds & _kinds_of(value):
                return (
                    f"{_path_text(at)} is {' or '.join(sorted(_kinds_of(value)))}, and not {' or '.join(sorted(kinds))}"
                )
        return None

    def _requires(self, path: Path, name: str) -> bool:
        return any(name in each.get("required", ()) for each in self._at(self._root, path, set()))

    def _kinds(self, schema: Json, path: Path) -> frozenset[str]:
        """Return the types that a value at a path may have."""
        if not isinstance(schema, dict):
            return _KINDS
        key = (id(schema), path)
        if key not in self._known:
            self._known[key] = _KINDS  # as long as it is looked at: a schema that applies itself says no more by that
            self._known[key] = self._looked_at(schema, path)
        return self._known[key]

    def _looked_at(self, schema: dict[str, Json], path: Path) -> frozenset[str]:
        kinds = _KINDS if path else _own_kinds(schema)
        for other in self._children(schema, path[0]) if path else ():
            kinds &= self._kinds(other, path[1:])
        for other in self._same(schema):
            kinds &= self._kinds(other, path)
        for word in ("anyOf", "oneOf"):
            if branches := schema.get(word):
                kinds &= frozenset().union(*(self._kinds(branch, path) for branch in branches))
        return kinds

    def _at(self, schema: Json, path: Path, seen: set[tuple[int, Path]]) -> Iterator[dict[str, Json]]:
        """Yield the schemas of a value at a path, except alternatives, since the one that is meant is unknown."""
        if not isinstance(schema, dict) or (id(schema), path) in seen:
            return
        seen.add((id(schema), path))
        if not path:
            yield schema
        for other in self._children(schema, path[0]) if path else ():
            yield from self._at(other, path[1:], seen)
        for other in self._same(schema):
            yield from self._at(other, path, seen)

    def _same(self, schema: dict[str, Json]) -> Iterator[Json]:
        yield from schema.get("allOf", ())
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield referred(self._root, reference)

    def _children(self, schema: dict[str, Json], part: str | int) -> Iterator[Json]:
        if isinstance(part, int):
            yield schema.get("items", True)
        elif part in schema.get("properties", {}):
            yield schema["properties"][part]
        else:
            yield schema.get("additionalProperties", True)


def _own_kinds(schema: dict[str, Json]) -> frozenset[str]:
    stated = schema.get("type")
    if stated is None:
        return _KINDS
    kinds = frozenset(stated if isinstance(stated, list) else [stated])
    return kinds | {"integer"} if "number" in kinds else kinds


def _kinds_of(value: Json) -> frozenset[str]:
    """Return the types that a value has: a whole number is an integer, however it is written."""
    if isinstance(value, float) and not value.is_integer():
        return frozenset({"number"})
    return frozenset({_NAMES[type(value)]})


def _is_there(value: Json, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _path_text(path: Path) -> str:
    return path_of(path, "data")
