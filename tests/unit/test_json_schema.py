"""Any schema and any value: nothing is fetched, the cost is known before, and mistakes are told in few words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from triptych.json_schema import MAX_PROBLEMS, InvalidSchemaError, JsonSchema, check_pattern, describe_errors

SOON_S = 0.75
"""Of processor time, which a busy machine does not lengthen much: three times what is promised."""
GROWTH_MAX_KIB = 64 * 1_024


def memory_kib(word: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{word}:")[1].split()[0])


@contextmanager
def bounded() -> Iterator[None]:
    """What is inside ends soon, and does not make the process grow."""
    Path("/proc/self/clear_refs").write_text("5")
    before, began = memory_kib("VmRSS"), time.thread_time()
    yield
    assert time.thread_time() - began < SOON_S
    assert memory_kib("VmHWM") - before < GROWTH_MAX_KIB


def doubling(levels: int, word: str, leaf: Any) -> dict[str, Any]:
    """A schema of a few lines that applies `leaf` to one value 2 ** levels times."""
    parts = {f"a{n + 1}": {word: [{"$ref": f"#/$defs/a{n}"}] * 2} for n in range(levels)}
    return {"$ref": f"#/$defs/a{levels}", "$defs": {"a0": leaf, **parts}}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:1/s.json"},
        {"$ref": "https://example.com/s.json#/x"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "urn:example:schema"},
        {"$ref": "other.json"},
        {"$id": "http://127.0.0.1:1/a/", "properties": {"x": {"$ref": "b"}}},
        {"properties": {"a": {"items": {"$dynamicRef": "http://127.0.0.1:1/z"}}}},
        {"$ref": "#/$defs/none"},
        {"$ref": "https://json-schema.org/draft/2020-12/schema"},
    ],
)
def test_a_schema_that_refers_to_another_document_is_refused_and_nothing_is_fetched(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidSchemaError, match="which is not in this schema; nothing is fetched"):
        JsonSchema.of(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": {"type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/n"}}},
        {"$defs": {"a~b/c": {"type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/a~0b~1c"}}},
        {"$defs": {"a b": {"type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/a%20b"}}},
        {"$defs": {"n": {"$anchor": "number", "type": "integer"}}, "properties": {"x": {"$ref": "#number"}}},
        {"$id": "urn:own", "$defs": {"n": {"type": "integer"}}, "properties": {"x": {"$ref": "urn:own#/$defs/n"}}},
        {
            "$id": "http://own.example/root",
            "$defs": {"n": {"$id": "n", "type": "integer"}},
            "properties": {"x": {"$ref": "n"}},
        },
        {"$dynamicAnchor": "node", "properties": {"x": {"type": "integer"}, "inner": {"$dynamicRef": "#node"}}},
    ],
)
def test_references_inside_a_schema_are_followed(schema: dict[str, Any]) -> None:
    compiled = JsonSchema.of(schema)
    assert compiled.is_valid({"x": 1})
    assert [(error.place, error.keyword) for error in compiled.schema_errors({"x": "1"})] == [(("x",), "type")]


@pytest.mark.parametrize("word", ["allOf", "anyOf", "oneOf"])
def test_a_schema_that_applies_itself_a_million_times_is_refused(word: str) -> None:
    with pytest.raises(InvalidSchemaError, match="units of work"):
        JsonSchema.of(doubling(20, word, {"type": "integer"}))


def closed(levels: int, part: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Each part refers to the next one, and says that there is nothing else."""

    def below(level: int) -> dict[str, Any]:
        return {"$ref": f"#/$defs/{level}", "unevaluatedProperties": False, "unevaluatedItems": False}

    parts = {str(level): part(below(level + 1)) for level in range(levels)}
    return {"properties": {"a": below(0)}, "$defs": {**parts, str(levels): True}}


CLOSED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "branches": lambda below: {"anyOf": [{"properties": {"a": below}}, {"properties": {"b": below}}]},
    "conditions": lambda below: {"if": {"properties": {"a": below}}, "then": {"properties": {"a": below}}},
    "patterns": lambda below: {"patternProperties": {"^a": below, "^b": below}},
    "items": lambda below: {"oneOf": [{"items": below}, {"contains": below}]},
}


@pytest.mark.parametrize("kind", CLOSED)
def test_what_is_compiled_again_at_each_level_is_refused(kind: str) -> None:
    with bounded():
        JsonSchema.of(closed(3, CLOSED[kind]))
        with pytest.raises(InvalidSchemaError, match="parts once more"):
            JsonSchema.of(closed(30, CLOSED[kind]))


def test_parts_that_refer_to_each_other_are_not_compiled_in_every_order() -> None:
    below = [{"$ref": f"#/$defs/{number}", "unevaluatedProperties": False} for number in range(8)]
    branches = {"anyOf": [{"properties": {"a": each}} for each in below]}
    with bounded():
        with pytest.raises(InvalidSchemaError, match="parts once more"):
            JsonSchema.of({**below[0], "$defs": {str(number): branches for number in range(8)}})
        tree = {"properties": {str(number): each for number, each in enumerate(below)}}
        assert JsonSchema.of({**below[0], "$defs": {str(number): tree for number in range(8)}}).is_valid({"1": {}})


@pytest.mark.parametrize("word", ["unevaluatedProperties", "unevaluatedItems"])
def test_what_makes_compiling_take_seconds_is_refused(word: str) -> None:
    nested = doubling(9, "allOf", {"properties": {"x": True}})
    for part in nested["$defs"].values():
        part[word] = False
    with bounded():
        with pytest.raises(InvalidSchemaError, match="units of work"):
            JsonSchema.of({**doubling(14, "allOf", {"properties": {"x": True}}), word: False})
        with pytest.raises(InvalidSchemaError, match="units of work"):
            JsonSchema.of(nested)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"not": {"$ref": "#"}},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        {"$dynamicAnchor": "x", "$dynamicRef": "#x"},
    ],
)
def test_a_circle_that_stays_at_one_value_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidSchemaError, match="break the circle"):
        JsonSchema.of(schema)


def test_a_recursive_schema_takes_trees_of_any_size() -> None:
    tree = JsonSchema.of({"type": "object", "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}}})

    def grown(depth: int) -> dict[str, Any]:
        return {} if depth == 0 else {"l": grown(depth - 1), "r": grown(depth - 1)}

    assert tree.is_valid(grown(12))


def test_work_that_may_double_with_each_level_of_a_value_ends_soon() -> None:
    schema = JsonSchema.of({"allOf": [{"properties": {"c": {"$ref": "#"}}}] * 2})
    value: dict[str, Any] = {}
    for _ in range(60):
        value = {"c": value}
    schema.is_valid({})
    began = time.monotonic()
    schema.is_valid(value)
    schema.schema_errors(value)
    assert time.monotonic() - began < 2 * SOON_S


@pytest.mark.parametrize(
    "schema",
    [
        {"items": {"type": "string"}},
        {"anyOf": [{"items": {"type": "string"}}, {"items": {"required": ["a", "b", "c"]}}]},
        {"items": {"anyOf": [{"type": "string"}, {"required": ["a", "b"]}]}},
        {"items": {"properties": {"x": {"type": "string"}}, "required": [f"n{n}" for n in range(5)]}},
        {"maxItems": 3},
        {"items": False},
        {"not": {"items": {"type": "object"}}},
        {"$defs": {"n": {"items": {"type": "string"}}}, "allOf": [{"$ref": "#/$defs/n"}]},
        {"contains": {"type": "string"}},
        {"items": {"additionalProperties": False}, "maxItems": 2},
    ],
)
def test_of_a_hundred_thousand_mistakes_a_few_are_told_within_bounds(schema: dict[str, Any]) -> None:
    value = [{"x": 1}] * 100_000
    compiled = JsonSchema.of(schema)
    with bounded():
        errors = compiled.schema_errors(value)
    assert 1 <= len(errors) <= MAX_PROBLEMS
    assert all(len(error.message) <= 300 for error in errors)


def test_the_place_of_a_mistake_in_a_large_value_is_told() -> None:
    schema = JsonSchema.of(
        {
            "type": "object",
            "properties": {"rows": {"type": "array", "items": {"$ref": "#/$defs/row"}}},
            "$defs": {"row": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}},
        }
    )
    rows: list[Any] = [{"id": number} for number in range(50_000)]
    rows[40_000], rows[40_001] = {"id": "x"}, {}
    shown = describe_errors(schema.schema_errors({"rows": rows}), "input")
    assert shown == 'input.rows[40000].id: "x" is not of type "integer"; input.rows[40001]: "id" is a required property'


def test_more_mistakes_than_are_told_are_said_to_be_more() -> None:
    schema = JsonSchema.of({"items": {"type": "string"}})
    assert describe_errors(schema.schema_errors(list(range(9)), MAX_PROBLEMS + 1), "input").endswith("; and more")


@pytest.mark.parametrize("value", ["\ud83d", {"x": "\ud83d"}, b"bytes", float("nan")])
def test_what_is_not_json_is_a_schema_error_and_no_crash(value: Any) -> None:
    schema = JsonSchema.of({"type": "integer"})
    assert not schema.is_valid(value)
    assert len(schema.schema_errors(value)) == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "text"},
        {"properties": []},
        {"pattern": "("},
        {"patternProperties": {"(": {}}},
        {"pattern": "(?:\\w{1,1000}){1,1000}"},
        {"pattern": "a" * 5_000},
        {"properties": {f"p{n}": {"pattern": f"^[a-z]{{1,{n + 1}}}$"} for n in range(300)}},
        {"enum": [[[]] * 60_000]},
        [],
        "x",
    ],
)
def test_what_is_no_schema_or_beyond_a_limit_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidSchemaError):
        JsonSchema.of(schema)


def test_a_schema_that_is_nested_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(20_000):
        schema = {"items": schema}
    with pytest.raises(InvalidSchemaError):
        JsonSchema.of(schema)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 5_000 + "!"),
        ({"pattern": "^[ab]*a[ab]{1000}z"}, "abaab" * 20_000),
        ({"pattern": "(?=[ab]*0)[ab]"}, "ab" * 10_000),
        ({"pattern": "^(a+)+\\1$"}, "a" * 5_000 + "!"),
        ({"patternProperties": {"^(?=[ab]*0)": True}}, {"ab" * 10_000: 1}),
        ({"items": {"enum": [{"a": n} for n in range(10_000)]}}, [{"a": 9_999}] * 1_000),
        ({"uniqueItems": True}, [{"a": [n]} for n in range(60_000)]),
        ({"items": {"pattern": "^(?=.*[a-z])(?=.*[0-9]).{8,}$"}}, ["x" * 50] * 5_000),
        ({"propertyNames": {"pattern": "^(?=[ab]*0)"}}, {"ab" * 10_000: 1}),
    ],
)
def test_no_value_takes_long(schema: dict[str, Any], value: Any) -> None:
    compiled = JsonSchema.of(schema)
    with bounded():
        compiled.is_valid(value)
        compiled.schema_errors(value)


def test_a_long_text_is_held_to_a_simple_pattern() -> None:
    schema = JsonSchema.of({"pattern": "^[a-z ]+$"})
    assert schema.is_valid("many words " * 20_000)
    assert "too large to say where" in describe_errors(schema.schema_errors("many words " * 20_000 + "1"), "input")


def test_what_a_pattern_costs_grows_with_what_it_compiles_to() -> None:
    small, large = check_pattern("^[a-z]+$"), check_pattern("^[ab]*a[ab]{1000}z")
    assert small.units_per_char < large.units_per_char
    assert small.units_per_char < check_pattern("^(?=a)[a-z]+$").units_per_char


def test_a_schema_is_compiled_once() -> None:
    assert JsonSchema.of({"type": "object", "title": "once"}) is JsonSchema.of({"type": "object", "title": "once"})


@pytest.mark.parametrize("characters", [10, 300, 5_000, 200_000])
def test_a_schema_error_says_what_is_wrong_however_long_the_value_is(characters: int) -> None:
    schema = JsonSchema.of({"properties": {"name": {"type": "string"}}})
    said = describe_errors(schema.schema_errors({"name": ["x" * characters]}), "input")
    assert said.startswith("input.name: ")
    assert said.endswith('"string"')
    assert len(said) < 400
