"""From an OpenAPI document to contracts: names, arguments, results, effects, choice, and what is told of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from triptych.contracts.compiled_contract import CompiledContract
from triptych.kernel.errors import ConfigurationError
from triptych.schemas import Contract, Effect
from triptych.tools import Source
from triptych.tools.adapters.openapi import tool
from triptych.tools.adapters.openapi.document import DocumentError, OpenApiDocument
from triptych.tools.adapters.openapi.import_report import ImportedOperation, ImportReport, import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.openapi.security import chosen_auth, proposed_auth

OK: dict[str, Any] = {"200": {"description": "", "content": {"application/json": {"schema": {"type": "object"}}}}}


def document(paths: dict[str, Any], version: str = "3.1.0", **more: Any) -> dict[str, Any]:
    servers = [{"url": "https://api.example.com"}]
    return {"openapi": version, "info": {"title": "t", "version": "7"}, "servers": servers, "paths": paths, **more}


def look(content: dict[str, Any], **options: Any) -> ImportReport:
    parsed = OpenApiDocument.parse(orjson.dumps(content), "crm.json")
    return import_document(parsed, "crm", OpenApiOptions.model_validate({"spec": "crm.json", **options}))


def only(content: dict[str, Any], **options: Any) -> ImportedOperation:
    made = look(content, **options)
    assert made.skipped == ()
    (imported,) = made.imported
    return imported


def contract(content: dict[str, Any], **options: Any) -> Contract:
    return only(content, **options).endpoint.contract


def post(schema: dict[str, Any], media_type: str = "application/json", **more: Any) -> dict[str, Any]:
    body = {"required": True, "content": {media_type: {"schema": schema}}}
    return {"/things": {"post": {"operationId": "make", "requestBody": body, "responses": OK, **more}}}


def get(*parameters: dict[str, Any], path: str = "/things", **more: Any) -> dict[str, Any]:
    return {path: {"get": {"operationId": "look", "parameters": list(parameters), "responses": OK, **more}}}


# Names


@pytest.mark.parametrize(
    ("operation_id", "name"),
    [
        ("listCustomers", "list_customers"),
        ("Customers_List", "customers_list"),
        ("customers.list-all", "customers_list_all"),
        ("getHTTPStatus", "get_http_status"),
        ("2fa", "get_2fa"),
        (None, "get_things_thing_id"),
        ("x" * 100, "x" * 63),
    ],
)
def test_an_operation_is_called_what_the_document_calls_it(operation_id: str | None, name: str) -> None:
    stated = {"responses": OK} if operation_id is None else {"operationId": operation_id, "responses": OK}
    assert contract(document({"/things/{thing_id}": {"get": stated}})).operation == f"crm.{name}"


def test_two_operations_that_want_one_name_both_get_one_and_it_is_told() -> None:
    paths = {
        "/a": {"get": {"operationId": "getIt", "responses": OK}},
        "/b": {"get": {"operationId": "get_it", "responses": OK}},
    }
    first, second = look(document(paths)).imported
    names = first.endpoint.contract.operation, second.endpoint.contract.operation
    assert names == ("crm.get_it_f302dfbc", "crm.get_it_db789e7b")
    assert second.notes == ("called get_it_db789e7b, since another operation wants get_it as well",)
    backwards = look(document(dict(reversed(paths.items())))).imported
    assert {each.endpoint.name: each.place.path for each in backwards} == {
        "get_it_f302dfbc": "/a",
        "get_it_db789e7b": "/b",
    }


# Effects and keys


@pytest.mark.parametrize(
    ("method", "effect"),
    [("get", Effect.READ), ("put", Effect.IDEMPOTENT), ("delete", Effect.IDEMPOTENT), ("post", Effect.ONCE), ("patch", Effect.ONCE)],
)  # fmt: skip
def test_the_method_says_what_a_repeat_does(method: str, effect: Effect) -> None:
    assert contract(document({"/a": {method: {"responses": OK}}})).effect is effect


@pytest.mark.parametrize("header", ["Idempotency-Key", "X-Idempotency-Key"])
def test_a_post_with_a_header_for_the_key_is_idempotent_and_the_key_is_no_argument(header: str) -> None:
    key = {"name": header, "in": "header", "required": True, "schema": {"type": "string"}}
    imported = only(document(post({"type": "object"}, parameters=[key])))
    assert imported.endpoint.contract.effect is Effect.IDEMPOTENT
    assert imported.endpoint.key is not None
    assert imported.endpoint.key.name == header
    assert list(imported.endpoint.contract.arguments["properties"]) == ["body"]


@pytest.mark.parametrize(
    ("extension", "options", "effect"),
    [
        ({"x-idempotent": True}, {}, Effect.IDEMPOTENT),
        ({"x-triptych-effect": "read"}, {}, Effect.READ),
        ({}, {"idempotency_header": "Idempotency-Key"}, Effect.IDEMPOTENT),
        ({}, {"operations": {"make": {"key": {"field": "client_token"}}}}, Effect.IDEMPOTENT),
        ({}, {"operations": {"make": {"effect": "read"}}}, Effect.READ),
        ({"x-idempotent": True}, {"operations": {"make": {"effect": "once"}}}, Effect.ONCE),
    ],
)
def test_extensions_and_options_say_more_than_the_method(
    extension: dict[str, Any], options: dict[str, Any], effect: Effect
) -> None:
    assert contract(document(post({"type": "object"}, **extension)), **options).effect is effect


# Rates


def test_rates_that_the_document_states_spare_the_upstream(tmp_path: Path) -> None:
    rated, wrong = {"x-ratelimit": "5/s"}, {"x-ratelimit": "often"}
    paths = {**get(path="/others", **rated), **post({"type": "object"}, **wrong)}
    content = document(paths, **{"x-ratelimit": "600/min"})
    (tmp_path / "crm.json").write_bytes(orjson.dumps(content))
    guard = tool(Source("crm", {"spec": "crm.json"}, tmp_path)).guard
    assert guard.rate == "600/min"
    assert {name: each.rate for name, each in guard.operations.items()} == {"look": "5/s"}
    assert "'often' is not a rate" in str(look(content).imported)


# Arguments


def test_parameters_of_the_path_item_count_and_the_operation_may_say_otherwise() -> None:
    shared = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
              {"name": "page", "in": "query", "schema": {"type": "integer"}}]  # fmt: skip
    own = [{"name": "page", "in": "query", "schema": {"type": "string"}}]
    made = contract(document({"/a/{id}": {"parameters": shared, "get": {"parameters": own, "responses": OK}}}))
    assert made.arguments["properties"] == {"id": {"type": "string"}, "page": {"type": "string"}}
    assert made.arguments["required"] == ["id"]


def test_parameters_of_one_name_in_two_places_are_two_arguments() -> None:
    places = [{"name": "id", "in": where, "schema": {"type": "string"}} for where in ("query", "path", "header")]
    imported = only(document(get(*places, path="/things/{id}")))
    assert list(imported.endpoint.contract.arguments["properties"]) == ["id", "id_in_query", "id_in_header"]
    assert len(imported.notes) == 2


def test_credentials_are_no_arguments() -> None:
    named = [
        {"name": name, "in": "header", "schema": {}} for name in ("Authorization", "X-Api-Key", "Accept", "X-Page")
    ]
    assert list(contract(document(get(*named))).arguments["properties"]) == ["X-Page"]


def test_a_fixed_value_is_no_argument() -> None:
    version = {"name": "api-version", "in": "query", "required": True, "schema": {"type": "string"}}
    imported = only(document(get(version)), set={"api-version": "2026-11"})
    assert imported.endpoint.contract.arguments["properties"] == {}
    assert [(parameter.name, value) for parameter, value in imported.endpoint.fixed] == [("api-version", "2026-11")]
    with pytest.raises(ConfigurationError, match=r"options.set.api_version: no operation"):
        look(document(get(version)), set={"api_version": "2026-11"})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {"type": "object"},
        {"type": ["array", "null"]},
        {"nullable": True},
        {"$ref": "#/components/schemas/L"},
    ],
)
def test_of_a_parameter_that_is_required_something_is_sent(schema: dict[str, Any]) -> None:
    parameters = [
        {"name": name, "in": "query", "required": name == "must", "schema": schema} for name in ("may", "must")
    ]
    listed = {"type": "array", "items": {"type": "string"}}
    arguments = CompiledContract.of(
        contract(document(get(*parameters), components={"schemas": {"L": listed}}))
    ).arguments
    full: Any = {"a": 1} if schema.get("type") == "object" else ["a"]
    empty = {} if schema.get("type") == "object" else []
    assert arguments.is_valid({"must": full, "may": empty})
    assert not arguments.is_valid({"must": empty})
    assert not arguments.is_valid({"must": None})


def test_a_parameter_that_is_required_and_has_a_default_need_not_be_given() -> None:
    version = {"name": "api-version", "in": "query", "required": True, "schema": {"$ref": "#/components/schemas/V"}}
    page = {"name": "page", "in": "query", "schema": {"type": "integer", "default": 1}}
    schemas = {"V": {"type": "string", "default": "2026-11"}}
    imported = only(document(get(version, page), components={"schemas": schemas}))
    assert "required" not in imported.endpoint.contract.arguments
    assert imported.endpoint.defaults == {"api-version": "2026-11"}
    assert imported.endpoint.facts("")["default of api-version"] == "'2026-11'"


def test_what_stands_in_the_path_and_is_not_declared_is_an_argument_all_the_same() -> None:
    imported = only(document(get(path="/things/{id}")))
    assert imported.endpoint.contract.arguments["required"] == ["id"]
    assert imported.notes == ("the path parameter id is not declared; it is taken as text",)


def test_a_file_of_a_multipart_body_is_an_object_with_its_content() -> None:
    schema = {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}, "note": {"type": "string"}},
    }
    arguments = CompiledContract.of(contract(document(post(schema, "multipart/form-data")))).arguments
    assert arguments.is_valid({"body": {"file": {"text": "a,b"}, "note": "x"}})
    assert not arguments.is_valid({"body": {"file": "a,b"}})


# Properties that nobody has heard of

NAMED = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "fits", "invented"),
    [
        (NAMED, {"a": 1}, {"a": 1, "x": 1}),
        ({"$ref": "#/components/schemas/Base"}, {"b": 1}, {"x": 1}),
        ({"allOf": [{"$ref": "#/components/schemas/Base"}, NAMED]}, {"a": 1, "b": 1}, {"a": 1, "x": 1}),
        ({"oneOf": [{**NAMED, "required": ["a"]}, {"$ref": "#/components/schemas/Base"}]}, {"b": 1}, {"b": 1, "x": 1}),
        ({**NAMED, "anyOf": [{"required": ["a"]}, {"maxProperties": 0}]}, {"a": 1}, {"a": 1, "x": 1}),
        ({"type": "object", "properties": {"in": {"type": "array", "items": NAMED}}}, {"in": [{"a": 1}]}, {"in": [{"x": 1}]}),
        ({**NAMED, "nullable": True}, None, {"x": 1}),
        ({"anyOf": [NAMED, {"type": "string"}]}, "text", {"x": 1}),
    ],
)  # fmt: skip
def test_a_property_that_the_document_does_not_name_is_refused(schema: Any, fits: Any, invented: Any) -> None:
    base = {"type": "object", "properties": {"b": {"type": "integer"}}}
    arguments = CompiledContract.of(contract(document(post(schema), components={"schemas": {"Base": base}}))).arguments
    assert arguments.is_valid({"body": fits})
    assert not arguments.is_valid({"body": invented})


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {**NAMED, "additionalProperties": True},
        {**NAMED, "required": ["x"]},
        {**NAMED, "patternProperties": {"^x": {}}},
        {"allOf": [NAMED, {"additionalProperties": True}]},
        {"anyOf": [NAMED, {"type": "object"}]},
        {"allOf": [{"$ref": "#/components/schemas/Map"}, NAMED]},
    ],
)
def test_an_object_that_is_meant_to_be_open_stays_open(schema: dict[str, Any]) -> None:
    map_of = {"type": "object", "additionalProperties": {"type": "integer"}}
    arguments = CompiledContract.of(contract(document(post(schema), components={"schemas": {"Map": map_of}}))).arguments
    assert arguments.is_valid({"body": {"a": 1, "x": 1}})


def test_results_may_have_more_than_the_document_names() -> None:
    answer = {"200": {"content": {"application/json": {"schema": NAMED}}}}
    assert CompiledContract.of(contract(document({"/a": {"get": {"responses": answer}}}))).result.is_valid(
        {"a": 1, "new": 1}
    )


# Schemas


def test_recursive_schemas_stay_recursive() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}}, "required": ["value"]}
    made = contract(
        document(post({"$ref": "#/components/schemas/Node"}), components={"schemas": {"Node": node, "Unused": {}}})
    )
    assert list(made.arguments["$defs"]) == ["Node"]
    arguments = CompiledContract.of(made).arguments
    assert arguments.is_valid({"body": {"value": 1, "next": {"value": 2}}})
    assert not arguments.is_valid({"body": {"value": 1, "next": {}}})


@pytest.mark.parametrize(
    ("schema", "fits", "does_not"),
    [
        ({"type": "string", "nullable": True}, None, 1),
        ({"type": "string", "enum": ["a"], "nullable": True}, None, "b"),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, 2, 1),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": False}, 1, 0),
        ({"$ref": "#/components/schemas/Text", "minLength": 5}, "a", 1),
        ({"allOf": [{"$ref": "#/components/schemas/Text"}], "nullable": True}, None, 1),
        ({"type": "string", "pattern": "^(?<!x)a$"}, "a", 1),
    ],
)
def test_words_of_openapi_3_0_are_understood(schema: dict[str, Any], fits: Any, does_not: Any) -> None:
    made = contract(document(post(schema), "3.0.3", components={"schemas": {"Text": {"type": "string"}}}))
    arguments = CompiledContract.of(made).arguments
    assert arguments.is_valid({"body": fits})
    assert not arguments.is_valid({"body": does_not})


def test_what_only_the_server_sets_is_no_argument_and_what_it_hides_need_not_be_in_the_result() -> None:
    user = {"type": "object", "required": ["id", "name", "password"], "additionalProperties": False,
            "properties": {"id": {"type": "string", "readOnly": True}, "name": {"type": "string"},
                           "password": {"type": "string", "writeOnly": True}}}  # fmt: skip
    paths = post({"$ref": "#/components/schemas/User"})
    paths["/things"]["post"]["responses"] = {
        "201": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/User"}}}}
    }
    offer = CompiledContract.of(contract(document(paths, components={"schemas": {"User": user}})))
    assert offer.arguments.is_valid({"body": {"name": "Ana", "password": "x"}})
    assert not offer.arguments.is_valid({"body": {"id": "1", "name": "Ana", "password": "x"}})
    assert offer.result.is_valid({"id": "1", "name": "Ana"})


def test_a_result_is_any_of_what_success_looks_like() -> None:
    responses = {
        "200": {"content": {"application/json": {"schema": {"type": "integer"}}, "text/event-stream": {}}},
        "202": {"content": {"text/plain": {}}},
        "204": {"description": "Nothing."},
        "400": {"content": {"application/json": {"schema": {"type": "boolean"}}}},
    }
    imported = only(document({"/a": {"put": {"responses": responses}}}))
    result = CompiledContract.of(imported.endpoint.contract).result
    assert [result.is_valid(value) for value in (1, "a", None, True)] == [True, True, True, False]
    assert imported.endpoint.accept == "application/json, text/plain;q=0.5"


# What is left out


@pytest.mark.parametrize(
    ("paths", "reason", "why"),
    [
        ({"/a": {"head": {"responses": OK}}}, "method", "HEAD"),
        ({"/a": {"get": {"responses": {"200": {"content": {"text/event-stream": {}}}}}}}, "stream", "event-stream"),
        (post({}, "application/xml"), "request_media_type", "application/xml"),
        (post({"$ref": "other.json#/Thing"}), "reference", "leads to another document"),
        (post({"$ref": "#/components/schemas/Gone"}), "reference", "leads nowhere"),
        (post({"type": "file"}), "schema", "arguments"),
        (get({"name": "a", "in": "query", "content": {"text/csv": {}}}), "parameter", "text/csv"),
    ],
)
def test_what_cannot_be_offered_is_left_out_with_a_reason(paths: dict[str, Any], reason: str, why: str) -> None:
    (left,) = look(document(paths)).skipped
    assert left.reason == reason
    assert why in left.why


def test_one_mistake_in_a_document_costs_one_operation() -> None:
    made = look(document({**post({"$ref": "#/nowhere"}), **get(path="/others")}))
    assert [imported.endpoint.contract.operation for imported in made.imported] == ["crm.look"]
    assert [left.place.title for left in made.skipped] == ["POST /things"]


def test_operations_are_chosen_by_name_id_path_or_tag() -> None:
    paths = {
        f"/{name}": {"get": {"operationId": f"get{name}", "tags": [name], "responses": OK}} for name in ("A", "B", "C")
    }

    def chosen(**options: Any) -> list[str]:
        return [imported.place.path for imported in look(document(paths), **options).imported]

    assert chosen(include=["getA", "get_b"]) == ["/A", "/B"]
    assert chosen(include=["GET /*"], exclude=["*b"]) == ["/A", "/C"]
    assert chosen(tags=["C"]) == ["/C"]
    with pytest.raises(ConfigurationError, match="include: 'getD' fits nothing in the document; did you mean"):
        chosen(include=["getD"])
    with pytest.raises(ConfigurationError, match=r"options.tags: 'D'"):
        chosen(tags=["D"])
    with pytest.raises(ConfigurationError, match=r"operations.get_d: it fits nothing .* did you mean"):
        chosen(operations={"get_d": {"effect": "read"}})


# Documents

ALIASES = b"a0: &a0 [x,x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'{"swagger": "2.0"}', "this is Swagger 2.0.*swagger2openapi"),
        (b'{"kind": "discovery#restDescription"}', "Google API discovery"),
        (b'{"openapi": "4.0.0"}', "OpenAPI 4.0.0"),
        (b"<html>", "no OpenAPI document"),
        (b"a: [", "not YAML"),
        (b'{"a": ', "not JSON"),
        (b'{"info": {}}', "no field `openapi`"),
        (ALIASES, "more than 2000000 values"),
    ],
)  # fmt: skip
def test_what_is_no_openapi_document_is_refused_with_a_cure(raw: bytes, told: str) -> None:
    with pytest.raises(DocumentError, match=told):
        OpenApiDocument.parse(raw, "crm.yaml")


def test_yaml_is_read_as_openapi_means_it() -> None:
    raw = (
        b"openapi: 3.0.0\npaths: {}\nx: {no: yes, 200: 2026-11-25, at: 12:30, big: 9223372036854775807000, n: 1.5e3}\n"
    )
    read = OpenApiDocument.parse(raw, "crm.yaml").content["x"]
    assert read == {"no": "yes", "200": "2026-11-25", "at": "12:30", "big": 9.223372036854775807e21, "n": 1500.0}


def test_an_address_comes_from_the_document_or_from_the_options() -> None:
    stated = {
        **document(get()),
        "servers": [{"url": "https://{region}.example.com/v1/", "variables": {"region": {"default": "eu"}}}],
    }
    assert only(stated).endpoint.url == "https://eu.example.com/v1/things"
    assert only(stated, base_url="https://other.example.com").endpoint.url == "/things"
    relative = {**document(get()), "servers": [{"url": "/v2"}]}
    assert (
        only(relative, source="https://crm.example.com/docs/openapi.json").endpoint.url
        == "https://crm.example.com/v2/things"
    )
    (left,) = look(relative).skipped
    assert "--base-url" in left.why


def test_a_document_that_sends_the_credential_to_several_hosts_is_told_of() -> None:
    elsewhere = {"servers": [{"url": "https://files.example.com"}]}
    made = look(document({**get(), **get(path="/files", **elsewhere)}))
    assert made.notes == ("the document sends operations, and the credential with them, to api.example.com, files.example.com",)  # fmt: skip
    assert look(document({**get(), **get(path="/files", **elsewhere)}), base_url="https://api.example.com").notes == ()


@pytest.mark.parametrize(
    ("chosen", "auth"),
    [
        ("login", {"kind": "basic", "username_env": "MY_CRM_USERNAME", "password_env": "MY_CRM_PASSWORD"}),
        ("bearer", {"kind": "bearer", "token_env": "MY_CRM_TOKEN"}),
        ("header:X-Key", {"kind": "api_key", "place": "header", "name": "X-Key", "key_env": "MY_CRM_KEY"}),
        ("cookie:sid", {"kind": "api_key", "place": "cookie", "name": "sid", "key_env": "MY_CRM_KEY"}),
    ],
)
def test_a_way_to_authenticate_can_be_chosen(chosen: str, auth: dict[str, Any]) -> None:
    schemes = {"login": {"type": "http", "scheme": "Basic"}, "odd": {"type": "mutualTLS"}}
    parsed = OpenApiDocument.parse(orjson.dumps(document(get(), components={"securitySchemes": schemes})), "crm.json")
    assert chosen_auth(parsed, "my-crm", chosen).model_dump() == auth
    with pytest.raises(ConfigurationError, match="no way to authenticate called 'odd'; use login, odd, none, bearer"):
        chosen_auth(parsed, "my-crm", "odd")


def test_what_needs_no_person_is_proposed_before_what_does() -> None:
    flows = {"clientCredentials": {"tokenUrl": "https://api.example.com/token", "scopes": {"b": "", "a": ""}}}
    schemes = {
        "person": {"type": "oauth2", "flows": {"implicit": {}}},
        "machine": {"type": "oauth2", "flows": flows},
    }
    either = document(get(), security=[{"person": []}, {"machine": []}], components={"securitySchemes": schemes})
    auth = proposed_auth(OpenApiDocument.parse(orjson.dumps(either), "crm.json"), "crm")
    assert auth is not None
    assert auth.model_dump()["scopes"] == ("a", "b")


def test_a_secret_does_not_stand_among_the_headers() -> None:
    with pytest.raises(ValidationError, match="files must not hold secrets"):
        look(document(get()), headers={"Authorization": "Bearer abc"})


def test_a_call_that_the_document_declares_as_open_carries_no_credential() -> None:
    paths = {**get(), **get(path="/open", security=[])}
    made = look(document(paths, security=[{"key": []}]))
    assert [each.endpoint.authenticated for each in made.imported] == [True, False]


def test_a_tool_without_its_document_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tools.crm.options.spec: .*triptych tools add openapi"):
        tool(Source("crm", {"spec": "tools/crm.openapi.json"}, tmp_path))
