"""What was made of a document is tried: with values that are made for it, and with the document's own examples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from triptych.commands.main import app
from triptych.json_schema import JsonSchema
from triptych.tools.adapters.openapi.document import OpenApiDocument
from triptych.tools.adapters.openapi.import_report import import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.openapi.pattern_texts import text_for
from triptych.tools.adapters.openapi.samples import sample_of
from triptych.tools.adapters.openapi.self_test import OperationTest, run_operation_tests

NODE = {
    "type": "object",
    "required": ["value"],
    "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}},
}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "minLength": 12, "maxLength": 12}}},
        {"type": "string", "pattern": "^[A-Z]{2}-\\d{4,6}$"},
        {"type": "string", "pattern": "^(?!usage$).*$", "minLength": 3},
        {"type": "string", "format": "uuid"},
        {"type": "integer", "exclusiveMinimum": 3, "multipleOf": 7},
        {"type": "number", "minimum": 0.1, "maximum": 0.2},
        {"type": "array", "minItems": 3, "uniqueItems": True, "items": {"enum": ["a", "b", "c"]}},
        {"type": "array", "contains": {"const": 7}, "items": {"type": "integer"}},
        {"type": "array", "minItems": 2, "prefixItems": [{"type": "string"}], "items": {"type": "integer"}},
        {"type": "object", "minProperties": 2, "additionalProperties": {"type": "boolean"}},
        {"type": "object", "required": ["a"], "dependentRequired": {"a": ["b"]}, "properties": {"b": {"const": 1}}},
        {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"type": "integer"}}}], "unevaluatedProperties": False},
        {"allOf": [{"type": ["string", "integer"]}, {"type": "number"}]},
        {"oneOf": [{"type": "string", "const": "a", "minLength": 5}, {"type": "integer"}]},
        {"type": "object", "required": ["k"], "properties": {"k": {"enum": ["b"]}}, "oneOf": [{"properties": {"k": {"const": "a"}}}, {"properties": {"k": {"const": "b"}}}]},
        {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
        {"$ref": "#/$defs/List", "$defs": {"List": {"anyOf": [{"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/List"}}, {"type": "null"}]}}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_full", [False, True])
def test_a_value_that_fits_is_found(schema: dict[str, Any], is_full: bool) -> None:  # noqa: FBT001
    value, problem = sample_of(schema, is_full=is_full)
    assert problem is None
    assert JsonSchema.of(schema).is_valid(value)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "nothing fits"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "nothing fits"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "5 is greater"),
        ({"enum": []}, "no value is allowed"),
    ],
)
def test_where_no_value_fits_it_is_told_why(schema: dict[str, Any], told: str) -> None:
    _, problem = sample_of(schema)
    assert problem is not None
    assert told in problem


WIDE = {name: {"$ref": "#/$defs/Node"} for name in "abcdefghij"}


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"$ref": "#/$defs/Node", "$defs": {"Node": {"type": "object", "required": list(WIDE), "properties": WIDE}}}, "without an end|too long"),
        ({"allOf": [{"oneOf": [{"const": f"{row}-{one}"} for one in range(10)]} for row in range(20)]}, "too long|nothing fits"),
        ({"allOf": [{"anyOf": [{"properties": {f"{row}": {"const": one}}, "required": [f"{row}"]} for one in range(9)]} for row in range(9)], "not": {}}, "too long|not"),
        ({"type": "string", "pattern": "^(a{60}){200}$"}, "no text is found for the pattern"),
        ({"type": "string", "minLength": 10**12}, "1000000000000 characters is too long to try"),
        ({"type": "array", "minItems": 500, "uniqueItems": True, "items": {"enum": [1, 2]}}, "no two different items"),
    ],
)  # fmt: skip
def test_for_what_asks_for_too_much_the_search_ends(schema: dict[str, Any], told: str) -> None:
    _, problem = sample_of(schema)
    assert problem is not None
    assert re.search(told, problem)


def test_a_pattern_of_many_repeats_gets_a_text() -> None:
    assert sample_of({"type": "string", "pattern": "^(a+)+(b+)+(c+)+!$", "minLength": 200})[1] is None


def test_when_the_time_is_over_the_rest_is_told_as_not_tried() -> None:
    document = OpenApiDocument.parse(orjson.dumps(DOCUMENT), "t.json")
    tests = run_operation_tests(document, import_document(document, "t", OpenApiOptions(spec="t.json")), max_s=0)
    assert [(each.is_tested, each.uncallable) for each in tests] == [(False, None)] * 3


@given(st.from_regex(r"[ab]{1,3}|\d+(x|y)*|[^abc]z?", fullmatch=True), st.integers(0, 5))
def test_a_text_for_a_pattern_of_literal_characters_is_that_text(text: str, least: int) -> None:
    literal = "".join(f"\\x{ord(char):02x}" for char in text if ord(char) < 256)
    found = text_for(f"^{literal}$", 0)
    assert found is not None
    assert text_for(f"^(?:{literal}){{{least},}}$", 0) is not None


DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "t", "version": "1"},
    "servers": [{"url": "https://api.example.com"}],
    "paths": {
        "/good/{id}": {
            "post": {
                "operationId": "good",
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}, "example": 7}],
                "requestBody": {"content": {"application/json": {
                    "schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
                    "examples": {"right": {"value": {"a": 1}}, "wrong": {"$ref": "#/components/examples/Wrong"}},
                }}},
                "responses": {"200": {"content": {"application/json": {"schema": {"type": "integer"}, "example": "seven"}}}},
            }
        },
        "/never": {
            "post": {
                "operationId": "never",
                "requestBody": {"required": True, "content": {"application/json": {"schema": {"allOf": [{"type": "string"}, {"type": "object"}]}}}},
                "responses": {"200": {"content": {"application/json": {"schema": {"type": "integer"}}}}},
            }
        },
        "/dots/{name}": {
            "get": {
                "operationId": "dots",
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"const": ".."}}],
                "responses": {"200": {"content": {"application/json": {"schema": {"type": "integer"}}}}},
            }
        },
    },
    "components": {"examples": {"Wrong": {"value": {"a": "one"}}}},
}  # fmt: skip


def test_each_operation_is_tried_with_a_value_and_with_the_examples_of_the_document() -> None:
    document = OpenApiDocument.parse(orjson.dumps(DOCUMENT), "t.json")
    good, never, dots = run_operation_tests(document, import_document(document, "t", OpenApiOptions(spec="t.json")))
    assert good == OperationTest(
        operation="t.good",
        uncallable=None,
        examples=3,
        refused=('examples.wrong of body: body.a: "one" is not of type "integer"',),
        answers=1,
        mismatches=('200 example: result: "seven" is not of type "integer"',),
    )
    assert never.uncallable is not None
    assert dots.uncallable == "arguments.name: this cannot be in a path: it has a segment of dots; give the thing's id"


def test_adding_a_document_tells_what_failed(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(DOCUMENT))
    (tmp_path / "triptych.toml").touch()
    command = ["tools", "add", "openapi", str(tmp_path / "t.json"), "--name", "t", "--dry-run"]
    command += ["--config", str(tmp_path / "triptych.toml")]
    told = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    assert "uncallable: t.dots: no arguments were found that can be sent: arguments.name" in told
    assert 'example refused: t.good: examples.wrong of body: body.a: "one" is not of type "integer"' in told
    assert "2 of 3 for arguments fit, and 0 of 1 answers are what it says that they are" in told
    report = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).stdout)
    assert [each["uncallable"] is None for each in report["generated"]] == [True, False, False]
    assert report["generated"][0]["examples"]["shown"] == 3


@pytest.mark.parametrize("stated", [{"example": 7}, {"schema": {"type": "integer", "default": 7}}])
def test_a_parameter_that_the_path_has_no_place_for_is_dropped_with_all_that_the_document_says_of_it(
    stated: dict[str, Any],
) -> None:
    lost = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}, **stated}
    operation = {"operationId": "list", "parameters": [lost], "responses": {"200": {}}}
    content = {**DOCUMENT, "paths": {"/things": {"get": operation}}}
    document = OpenApiDocument.parse(orjson.dumps(content), "t.json")
    made = import_document(document, "t", OpenApiOptions(spec="t.json"))
    assert [each.endpoint.contract.arguments["properties"] for each in made.imported] == [{}]
    assert run_operation_tests(document, made) == [
        OperationTest("t.list", None, examples=0, refused=(), answers=0, mismatches=())
    ]
