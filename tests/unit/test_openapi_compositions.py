"""What composed schemas become: one part hides a property and another requires it, branches overlap, null is allowed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from triptych.contracts.compiled_contract import CompiledContract
from triptych.tools.adapters.openapi.document import OpenApiDocument
from triptych.tools.adapters.openapi.import_report import import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions

COMPONENTS: dict[str, Any] = {
    "Id": {"type": "integer", "readOnly": True},
    "Element": {"type": "object", "properties": {"id": {"type": "integer", "readOnly": True}, "name": {"type": "string"}}},
    "ElementFull": {"allOf": [{"$ref": "#/components/schemas/Element"}, {"required": ["id", "name"]}]},
    "User": {"type": "object", "properties": {"login": {"type": "string"}, "password": {"type": "string", "writeOnly": True}}},
    "UserFull": {"allOf": [{"$ref": "#/components/schemas/User"}, {"required": ["login", "password"]}]},
    "Card": {"type": "object", "required": ["kind", "number"], "properties": {"kind": {"type": "string"}, "number": {"type": "string"}}},
    "Gift": {"type": "object", "required": ["kind", "number"], "properties": {"kind": {"type": "string"}, "number": {"type": "string"}, "pin": {"type": "string"}}},
    "Pet": {"type": "object", "required": ["kind"], "properties": {"kind": {"type": "string"}}, "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/components/schemas/Cat"}}},
    "Cat": {"allOf": [{"$ref": "#/components/schemas/Pet"}, {"type": "object", "properties": {"lives": {"type": "integer"}}}]},
    "Closed": {"type": "object", "additionalProperties": False, "properties": {"a": {"type": "integer"}}},
    "Maybe": {"type": "object", "properties": {"a": {"type": "integer"}}, "nullable": True},
}  # fmt: skip


def ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def offer(
    body: dict[str, Any],
    result: dict[str, Any] | None = None,
    version: str = "3.0.3",
    components: dict[str, Any] = COMPONENTS,
    **more: Any,
) -> CompiledContract:
    operation = {
        "operationId": "make",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body, **more}}},
        "responses": {"200": {"content": {"application/json": {"schema": result or {}}}}},
    }
    content = {
        "openapi": version,
        "info": {"title": "t", "version": "1"},
        "servers": [{"url": "https://api.example.com"}],
        "paths": {"/things": {"post": operation}},
        "components": {"schemas": components},
    }
    made = import_document(OpenApiDocument.parse(orjson.dumps(content), "t.json"), "t", OpenApiOptions(spec="t.json"))
    assert made.skipped == ()
    return CompiledContract.of(made.imported[0].endpoint.contract)


@pytest.mark.parametrize(
    ("schema", "fits", "does_not"),
    [
        (ref("ElementFull"), [{"name": "x"}, {"name": "x", "id": 1}], [{}, {"name": "x", "y": 1}]),
        ({"type": "object", "required": ["id", "name"], "properties": {"id": ref("Id"), "name": {"type": "string"}}},
         [{"name": "x"}], [{}, {"name": "x", "id": 1}]),
        ({"type": "object", "properties": {"to": ref("ElementFull")}}, [{"to": {"name": "x"}}], [{"to": {"id": 1}}]),
        ({"type": "object", "minProperties": 2, "required": ["id", "n"], "properties": {"id": ref("Id"), "n": {}, "m": {}}},
         [{"n": 1}], [{}, {"m": 1}]),
        ({"allOf": [{"required": ["id"]}, ref("Element")]}, [{"name": "x"}, {"id": 1}], [{"y": 1}]),
        ({"allOf": [ref("Element")], "required": ["id"], "properties": {"note": {"type": "string"}}},
         [{"name": "x", "note": "n"}], [{"y": 1}]),
        ({"required": ["id"], "oneOf": [ref("Element"), {"type": "object", "properties": {"id": {"type": "integer"}, "z": {"type": "string"}}}]},
         [{"name": "x"}, {"id": 1, "z": "z"}], [{"y": 1}]),
        ({"type": "object", "properties": {"e": {"allOf": [ref("Id")], "description": "Its id."}, "f": {"type": "string"}}, "required": ["e", "f"]},
         [{"f": "x"}], [{"e": 1}]),
    ],
)  # fmt: skip
def test_what_one_part_hides_no_other_part_requires(schema: Any, fits: list[Any], does_not: list[Any]) -> None:
    arguments = offer(schema).arguments
    assert [arguments.is_valid({"body": each}) for each in fits] == [True] * len(fits)
    assert [arguments.is_valid({"body": each}) for each in does_not] == [False] * len(does_not)


def test_an_answer_need_not_hold_what_its_server_keeps() -> None:
    made = offer(ref("UserFull"), ref("UserFull"))
    assert made.result.is_valid({"login": "ana"})
    assert not made.result.is_valid({})
    assert not made.arguments.is_valid({"body": {"login": "ana"}})


def test_a_property_that_only_the_server_sets_is_an_argument_where_an_example_shows_it() -> None:
    plain = offer(ref("Element"))
    shown = offer(ref("Element"), example={"id": 7, "name": "x"})
    assert not plain.arguments.is_valid({"body": {"id": 7}})
    assert shown.arguments.is_valid({"body": {"id": 7}})
    assert shown.arguments.is_valid({"body": {}})


PAYMENT = {
    "oneOf": [ref("Card"), ref("Gift")],
    "discriminator": {"propertyName": "kind", "mapping": {"card": "#/components/schemas/Card", "gift": "Gift"}},
}


def test_the_discriminator_selects_a_branch() -> None:
    arguments = offer({"type": "object", "properties": {"pay": PAYMENT}}).arguments
    assert arguments.is_valid({"body": {"pay": {"kind": "card", "number": "1"}}})
    assert arguments.is_valid({"body": {"pay": {"kind": "gift", "number": "1", "pin": "2"}}})
    assert not arguments.is_valid({"body": {"pay": {"kind": "card", "number": "1", "pin": "2"}}})
    assert not arguments.is_valid({"body": {"pay": {"kind": "cash", "number": "1"}}})


def test_an_answer_without_its_discriminator_is_one_all_the_same() -> None:
    result = offer({}, PAYMENT).result
    assert result.is_valid({"kind": "card", "number": "1"})
    card = {"type": "object", "properties": {"number": {"type": "string"}}}
    unnamed = offer({}, {"oneOf": [card, card], "discriminator": PAYMENT["discriminator"]}).result
    assert unnamed.is_valid({"number": "1"})


def test_what_is_a_kind_of_something_may_have_more_than_that() -> None:
    arguments = offer(ref("Pet")).arguments
    assert arguments.is_valid({"body": {"kind": "cat", "lives": 9}})
    assert not offer(ref("Cat")).arguments.is_valid({"body": {"kind": "cat", "tails": 1}})


def test_a_base_may_list_the_kinds_that_are_built_on_it() -> None:
    base = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"type": "string"}},
        "oneOf": [ref("Bike"), ref("Car")],
        "discriminator": {"propertyName": "kind", "mapping": {"bike": "Bike", "car": "Car"}},
    }
    wheeled = {"allOf": [ref("Vehicle"), {"type": "object", "properties": {"wheels": {"type": "integer"}}}]}
    kinds = {
        "Vehicle": base,
        "Wheeled": wheeled,
        "Bike": {"allOf": [ref("Wheeled"), {"type": "object", "properties": {"bell": {"type": "boolean"}}}]},
        "Car": {"allOf": [ref("Vehicle"), {"type": "object", "properties": {"doors": {"type": "integer"}}}]},
    }
    made = offer(ref("Vehicle"), ref("Vehicle"), components=kinds)
    for schema, root in ((made.arguments, "body"), (made.result, None)):
        for value, fits in (
            ({"kind": "bike", "wheels": 2, "bell": True}, True),
            ({"kind": "car", "doors": 4}, True),
            ({"kind": "car", "doors": "four"}, False),
            ({"kind": "boat"}, False),
            ({"kind": "car", "bell": True}, root is None),
        ):
            assert schema.is_valid({root: value} if root else value) is fits, (root, value)
    bike = offer(ref("Bike"), components=kinds).arguments
    assert bike.is_valid({"body": {"kind": "bike", "wheels": 2, "bell": True}})
    assert not bike.is_valid({"body": {"kind": "bike", "doors": 4}})


@pytest.mark.parametrize(
    ("branches", "value", "both"),
    [
        ([{"type": "integer"}, {"type": "number"}], 1, None),
        ([{"type": "string"}, {"type": "string", "format": "uri"}], "a", None),
        ([{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}], {"a": 1}, None),
        ([{"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "integer"}}], [], None),
        ([{"required": ["a"]}, {"required": ["b"]}], {"a": 1}, {"a": 1, "b": 1}),
        ([{"type": "string", "enum": ["x"]}, {"type": "string", "enum": ["y"]}], "x", None),
    ],
)
def test_one_of_takes_what_fits_and_still_excludes_what_excludes_itself(
    branches: list[Any], value: Any, both: Any
) -> None:
    arguments = offer({"oneOf": branches}).arguments
    assert arguments.is_valid({"body": value})
    assert both is None or not arguments.is_valid({"body": both})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "nullable": True, "allOf": [ref("Closed")]},
        {"nullable": True, "allOf": [ref("Closed")]},
        {"allOf": [ref("Closed"), {"nullable": True}]},
        {"allOf": [ref("Closed"), {"nullable": True, "description": "Or nothing."}]},
        {"nullable": True, "oneOf": [ref("Closed"), {"type": "string"}]},
        {"$ref": "#/components/schemas/Closed", "nullable": True},
        {"nullable": True, "enum": ["a"]},
        {"type": ["string", "null"], "enum": ["a", "b"]},
        ref("Maybe"),
        {"anyOf": [ref("Maybe"), {"type": "integer"}]},
    ],
)
@pytest.mark.parametrize("version", ["3.0.3", "3.1.0"])
def test_nullable_is_meant_of_the_whole_as_people_write_it(schema: Any, version: str) -> None:
    made = offer({"type": "object", "properties": {"a": schema}}, schema, version)
    assert made.arguments.is_valid({"body": {"a": None}})
    assert made.result.is_valid(None)


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        # Each part says that there are no other properties, and none means those of the other.
        ({"allOf": [ref("Closed"), {"type": "object", "properties": {"b": {"type": "integer"}}}]}, {"a": 1, "b": 1}),
        ({"type": "object", "properties": {"b": {"type": "integer"}}, "oneOf": [ref("Closed")]}, {"a": 1, "b": 1}),
        # Both parts describe the property, each in part.
        ({"allOf": [
            {"type": "object", "properties": {"p": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
            {"type": "object", "properties": {"p": {"type": "object", "properties": {"y": {"type": "integer"}}}}},
         ]}, {"p": {"x": 1, "y": 1}}),
        # What is required and can never be given is a slip.
        ({"type": "object", "additionalProperties": False, "required": ["a", "z"], "properties": {"a": {"type": "integer"}}},
         {"a": 1}),
    ],
)  # fmt: skip
def test_parts_that_close_themselves_do_not_contradict_each_other(schema: Any, fits: Any) -> None:
    arguments = offer(schema).arguments
    assert arguments.is_valid({"body": fits})
    assert not arguments.is_valid({"body": {**fits, "invented": 1}})


def test_an_example_shows_what_is_given_of_the_thing_that_it_is_an_example_of_alone() -> None:
    labelled = {
        "type": "object",
        "properties": {"id": {"type": "integer", "readOnly": True}, "label": {"type": "string"}},
    }
    thing = {
        "type": "object",
        "required": ["id", "name"],
        "properties": {"id": {"type": "integer", "readOnly": True}, "name": {"type": "string"}, "of": labelled},
    }
    arguments = offer(thing, example={"name": "x", "of": {"id": 9}}).arguments
    assert arguments.is_valid({"body": {"name": "x", "of": {"id": 9}}})
    assert not arguments.is_valid({"body": {"id": 9, "name": "x"}})


@pytest.mark.parametrize("hidden", [{"type": "string", "readOnly": True}, ref("Id")])
def test_what_only_the_server_sets_is_not_required_beside_another_property(hidden: Any) -> None:
    properties = {"a": {"type": "string"}, "b": {"type": "string"}, "made": hidden}
    arguments = offer({"type": "object", "properties": properties, "dependentRequired": {"a": ["b", "made"]}}).arguments
    assert arguments.is_valid({"body": {"a": "x", "b": "y"}})
    assert not arguments.is_valid({"body": {"a": "x"}})
