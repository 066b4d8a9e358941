"""Find values that fit a schema, to show that it has values and to test requests that are made of them.

A value is a guess that is checked afterwards. Where no guess fits, the schema may still have values.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from triptych.json_schema import JsonSchema, describe_errors, referred
from triptych.schemas.base import Json
from triptych.tools.adapters.openapi.keywords import types_of
from triptych.tools.adapters.openapi.pattern_texts import text_for

_TURNS: Final = 12
"""The most attempts at a value, each with other branches."""
_CASES_MAX: Final = 8
_STEPS_MAX: Final = 5_000
"""The most values and combinations of branches that one turn looks at: a document may ask for any number."""
_DEPTH_MAX: Final = 12
_OPTIONAL_DEPTH_MAX: Final = 3
"""Below this, only what must be there."""
_TEXT_MAX_CHARS: Final = 1_000_000
_TEXTS: Final = {
    "byte": "aGk=",
    "date": "2026-11-30",
    "date-time": "2026-11-30T09:00:00Z",
    "duration": "PT1H",
    "email": "ana@example.com",
    "hostname": "example.com",
    "idn-email": "ana@example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "iri": "https://example.com/a",
    "json-pointer": "/a",
    "regex": "a",
    "time": "09:00:00Z",
    "uri": "https://example.com/a",
    "uri-reference": "https://example.com/a",
    "url": "https://example.com/a",
    "uuid": "018f3c6e-7c1a-7000-8000-000000000001",
}
_KINDS: Final = ("object", "array", "string", "integer", "number", "boolean", "null")
_HINTS: Final = (
    ("object", {"properties", "required", "additionalProperties", "minProperties"}),
    ("array", {"items", "prefixItems", "minItems", "contains"}),
    ("string", {"pattern", "format", "minLength", "maxLength", "contentEncoding"}),
    ("number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
)


class _NoValueError(Exception):
    """Nothing can be here, or nothing that is found this way."""


def sample_of(schema: dict[str, Json], *, is_full: bool = False) -> tuple[Json, str | None]:
    """Return a value that fits, or the last guess and what is wrong with it. `is_full`: with what may be left out."""
    compiled = JsonSchema.of(schema)
    problem = "no value was found"
    guess: Json = None
    avoided: frozenset[str] = frozenset()
    for turn in range(_TURNS):
        try:
            guess = _Guess(schema, turn, is_full=is_full, avoided=avoided).value(schema, 0)
        except _NoValueError as error:
            problem = str(error) or problem
            continue
        errors = compiled.schema_errors(guess, 1)
        if not errors:
            return guess, None
        problem = describe_errors(errors, "arguments")
        # What may be left out need not be there together.
        around = _at(guess, errors[0].place)
        avoided |= set(list(around)[-1:]) if is_full and isinstance(around, dict) else set()
    return guess, problem


def _at(value: Json, place: tuple[str | int, ...]) -> Json:
    for part in place:
        value = value[part]
    return value


class _TooLongError(_NoValueError):
    """It would take too long to look further."""


class _Guess:
    """One walk through a schema. `turn` says which branches it begins with."""

    def __init__(self, root: dict[str, Json], turn: int, *, is_full: bool, avoided: frozenset[str]) -> None:
        """`avoided`: properties that are left out where they may be."""
        self._root, self._turn, self._is_full, self._avoided = root, turn, is_full, avoided
        self._steps = 0

    def _step(self) -> None:
        """Raise _TooLongError where it takes more than can be worth it."""
        self._steps += 1
        if self._steps > _STEPS_MAX:
            raise _TooLongError("it takes too long to find one")

    def value(self, schema: Json, depth: int) -> Json:
        self._step()
        if depth > _DEPTH_MAX:
            raise _NoValueError("it goes on without an end")
        problem = "nothing fits"
        for case in islice(self._cases(schema, frozenset()), _CASES_MAX):
            try:
                return self._of_case(case, depth)
            except _TooLongError:
                raise
            except _NoValueError as error:
                problem = str(error) or problem
        raise _NoValueError(problem)

    def _cases(self, schema: Json, seen: frozenset[str]) -> Iterator[dict[str, Any]]:
        """Yield the schema as one object without references and branches, for each choice of branches."""
        if schema is False:
            return
        if not isinstance(schema, dict):
            yield {}
            return
        own = {word: said for word, said in schema.items() if word not in {"$ref", "allOf", "anyOf", "oneOf"}}
        groups: list[list[Json]] = []
        if isinstance(schema.get("$ref"), str):
            if schema["$ref"] in seen:
                return
            seen |= {schema["$ref"]}
            groups.append([referred(self._root, schema["$ref"])])
        groups.extend([each] for each in schema.get("allOf", []))
        for word in ("oneOf", "anyOf"):
            if branches := schema.get(word):
                first = self._turn % len(branches)
                groups.append([*branches[first:], *branches[:first]])
        yield from self._combined(own, groups, seen)

    def _combined(
        self, said: dict[str, Any], groups: list[list[Json]], seen: frozenset[str]
    ) -> Iterator[dict[str, Any]]:
        if not groups:
            yield said
            return
        for branch in groups[0]:
            self._step()
            for case in islice(self._cases(branch, seen), _CASES_MAX):
                both = _both(said, case)
                if both is not None:
                    yield from self._combined(both, groups[1:], seen)

    def _of_case(self, case: dict[str, Any], depth: int) -> Json:
        if "const" in case:
            return case["const"]
        if isinstance(case.get("enum"), list):
            values = [value for value in case["enum"] if value is not None] or case["enum"]
            if not values:
                raise _NoValueError("no value is allowed")
            return values[self._turn % len(values)]
        kind = _kind(case, self._turn)
        match kind:
            case "object":
                found: Json = self._object(case, depth)
            case "array":
                found = self._array(case, depth)
            case "string":
                found = _string(case)
            case "integer" | "number":
                found = _number(case, kind)
            case _:
                found = True if kind == "boolean" else None
        return found

    def _object(self, case: dict[str, Any], depth: int) -> Json:
        properties = case.get("properties", {})
        rest = case.get("additionalProperties", True)
        wanted = [*case.get("required", [])]
        for name in [*wanted]:
            wanted.extend(case.get("dependentRequired", {}).get(name, []))
        found: dict[str, Json] = {}
        for name in dict.fromkeys(wanted):
            found[name] = self.value(properties.get(name, rest), depth + 1)
        optional = [name for name in properties if name not in found and name not in self._avoided]
        least = case.get("minProperties", 0)
        for name in optional:
            if not (self._is_full and depth < _OPTIONAL_DEPTH_MAX) and len(found) >= least:
                break
            if len(found) >= case.get("maxProperties", len(found) + 1):
                break
            try:
                found[name] = self.value(properties[name], depth + 1)
            except _TooLongError:
                raise
            except _NoValueError:
                continue
        is_open = rest is not False and case.get("unevaluatedProperties") is not False
        while len(found) < least and is_open:
            found[f"more_{len(found)}"] = self.value(rest, depth + 1)
        return found

    def _array(self, case: dict[str, Any], depth: int) -> Json:
        placed = case.get("prefixItems", [])
        least = max(case.get("minItems", 0), 1 if "contains" in case else 0)
        count = max(least, 1 if self._is_full and depth < _OPTIONAL_DEPTH_MAX else 0)
        count = min(count, case.get("maxItems", count))
        items: list[Json] = []
        for place in range(count):
            schema = placed[place] if place < len(placed) else case.get("items", True)
            if "contains" in case and place == 0:
                schema = {"allOf": [schema, case["contains"]]}
            value = self.value(schema, depth + 1)
            if case.get("uniqueItems") and value in items:
                value = self._another(schema, items, depth)
            items.append(value)
        return items

    def _another(self, schema: Json, known: list[Json], depth: int) -> Json:
        """Return an item that is not there yet."""
        turns = range(1, _CASES_MAX)
        values = [self._at_turn(self._turn + turn, schema, depth) for turn in turns]
        changed = [f"{value}{turn}" for turn, value in zip(turns, values, strict=True) if isinstance(value, str)]
        changed += [value + turn for turn, value in zip(turns, values, strict=True) if type(value) in {int, float}]
        for value in (*values, *changed):
            if value not in known:
                return value
        raise _NoValueError("no two different items were found")

    def _at_turn(self, turn: int, schema: Json, depth: int) -> Json:
        before, self._turn = self._turn, turn
        try:
            return self.value(schema, depth + 1)
        finally:
            self._turn = before


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """Return what two parts say together; None where they contradict each other."""
    found = {**one, **other}
    for word in one.keys() & other.keys():
        found[word] = _both_of(word, one[word], other[word])
        if found[word] == [] and word in {"type", "enum"}:
            return None
    is_one = one.get("const") == other.get("const") or not ("const" in one and "const" in other)
    return found if is_one else None


def _both_of(word: str, ours: Any, theirs: Any) -> Any:
    """Return what two parts say together with one word."""
    if word == "type":
        return _common_kinds(ours, theirs)
    if word == "enum":
        return [value for value in ours if value in theirs]
    if word == "properties":
        shared = {name: {"allOf": [ours[name], theirs[name]]} for name in ours.keys() & theirs.keys()}
        return {**ours, **theirs, **shared}
    if word == "required":
        return [*ours, *theirs]
    if word in {"items", "additionalProperties"}:
        return {"allOf": [ours, theirs]}
    narrower = {"min": max, "exc": max if word == "exclusiveMinimum" else min, "max": min}.get(word[:3])
    return theirs if narrower is None else narrower(ours, theirs)


def _common_kinds(ours: Json, theirs: Json) -> list[Json]:
    one, other = (each if isinstance(each, list) else [each] for each in (ours, theirs))
    common = [kind for kind in one if kind in other]
    if "integer" in {*one, *other} and "number" in {*one, *other} and "integer" not in common:
        common.append("integer")
    return common


def _kind(case: dict[str, Any], turn: int) -> str:
    if case.get("type") is None:
        return next((kind for kind, words in _HINTS if case.keys() & words), "string")
    stated = types_of(case)
    kinds = [kind for kind in _KINDS if kind in stated]
    useful = [kind for kind in kinds if kind != "null"] or kinds or ["null"]
    return useful[turn % len(useful)]


def _string(case: dict[str, Any]) -> str:
    least, most = case.get("minLength", 0), case.get("maxLength", _TEXT_MAX_CHARS)
    if least > _TEXT_MAX_CHARS:
        raise _NoValueError(f"a text of {least} characters is too long to try")
    if isinstance(case.get("pattern"), str):
        shown = [each for each in (*case.get("examples", []), case.get("default")) if isinstance(each, str)]
        text = text_for(case["pattern"], max(least, 1)) or text_for(case["pattern"], least)
        text = next(iter(shown), None) if text is None else text
        if text is None:
            raise _NoValueError(f"no text is found for the pattern {case['pattern']!r}")
        return text
    if case.get("contentEncoding") == "base64":
        return "aGk="
    text = _TEXTS.get(str(case.get("format")), "text")
    return text.ljust(least, "x")[: max(most, 0)]


def _number(case: dict[str, Any], kind: str) -> Json:
    step = case.get("multipleOf", 1) or 1
    low = case.get("minimum", case.get("exclusiveMinimum"))
    high = case.get("maximum", case.get("exclusiveMaximum"))
    start = low if low is not None else 1 if high is None or high >= 1 else high
    value: Any = -(-start // step) * step
    if value == case.get("exclusiveMinimum"):
        value += step
    if value == case.get("exclusiveMaximum"):
        value -= step
    if high is not None and value > high and kind == "number":
        value = (start + high) / 2
    return int(value) if float(value).is_integer() else value
