"""One mistake in a document, whatever it is, costs the operations that need it, is told, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from triptych.commands.main import app
from triptych.kernel.errors import ConfigurationError
from triptych.tools.adapters.openapi import document as document_module
from triptych.tools.adapters.openapi import import_report
from triptych.tools.adapters.openapi.document import DEPTH_MAX, OpenApiDocument
from triptych.tools.adapters.openapi.import_report import ImportReport, import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions

OK = {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}}
GOOD = {"get": {"operationId": "good", "responses": OK}}


def deep(levels: int) -> Any:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def body(schema: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def operation(**more: Any) -> dict[str, Any]:
    return {"operationId": "bad", "responses": OK, **more}


def look(raw: bytes, **options: Any) -> ImportReport:
    return import_document(OpenApiDocument.parse(raw, "api"), "crm", OpenApiOptions(spec="api", **options))


def document(paths: dict[str, Any], **more: Any) -> bytes:
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "X", "version": "1"},
        "servers": [{"url": "https://api.test"}],
        **more,
    }
    return json.dumps({**whole, "paths": {**paths, "/good": GOOD}}).encode()


REFERRING = {"$ref": "#/components/schemas/Bad"}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a path without a slash": ({".evil.test/users": {"get": operation()}}, "does not begin with a slash"),
    "a path with a fragment": ({"/x#y": {"get": operation()}}, "no path may have"),
    "a path with a backslash": ({"/x\\..\\y": {"get": operation()}}, "no path may have"),
    "a path with a line break": ({"/x\r\nHost: y": {"get": operation()}}, "no path may have"),
    "a path that goes up": ({"/x/../admin": {"get": operation()}}, "a segment of dots"),
    "a path that goes up in disguise": ({"/x/%2E%2e/admin": {"get": operation()}}, "a segment of dots"),
    "a path that goes up behind a slash in disguise": ({"/x%2f..%2Fadmin": {"get": operation()}}, "a segment of dots"),
    "an empty path": ({"": {"get": operation()}}, "does not begin with a slash"),
    "a path that is null": ({"/x": None}, "is null, not an object"),
    "a path that is a list": ({"/x": [{"get": operation()}]}, "is a list, not an object"),
    "a path that refers to nothing": ({"/x": {"$ref": "#/nowhere"}}, "leads nowhere"),
    "a path that refers to a file": ({"/x": {"$ref": "file:///etc/passwd"}}, "leads to another document"),
    "a path that refers to itself": ({"/x": {"$ref": "#/paths/~1x"}}, "leads in a circle"),
    "an operation that is a list": ({"/x": {"get": []}}, "it is a list, not an object"),
    "an operation that is null": ({"/x": {"get": None}}, "it is null, not an object"),
    "parameters that are no list": ({"/x": {"get": operation(parameters={"a": 1})}}, "its parameters are not a list"),
    "a parameter that is text": ({"/x": {"get": operation(parameters=["a"])}}, "not an object"),
    "a parameter without a name": ({"/x": {"get": operation(parameters=[{"in": "query"}])}}, "has no name"),
    "a header that is none": (
        {"/x": {"get": operation(parameters=[{"in": "header", "name": "a\r\nHost: evil.test"}])}}, "cannot be the name",
    ),
    "a cookie that is none": ({"/x": {"get": operation(parameters=[{"in": "cookie", "name": "a;b"}])}}, "cannot be the name"),
    "a schema of 5,000 parts around each other": ({"/x": {"post": operation(requestBody=body(deep(190)))}}, ""),
    "a schema that refers to nothing": ({"/x": {"post": operation(requestBody=body({"$ref": "#/nowhere"}))}}, "leads nowhere"),
    "a schema that is fetched": ({"/x": {"post": operation(requestBody=body({"$ref": "http://evil.test/x"}))}}, "another document"),
    "a schema that is a number": ({"/x": {"post": operation(requestBody=body(7))}}, "cannot be used"),
    "a body that is a list": ({"/x": {"post": operation(requestBody=[])}}, "not an object"),
    "servers of an operation with a hole": (
        {"/x": {"get": operation(servers=[{"url": "https://{region}.test"}])}}, "a variable in it has no value",
    ),
    "servers of an operation with a password": (
        {"/x": {"get": operation(servers=[{"url": "https://ana:hunter2@api.test"}])}}, "it holds a user",
    ),
    "servers of another scheme": ({"/x": {"get": operation(servers=[{"url": "ftp://api.test"}])}}, "host"),
    "servers with a backslash": ({"/x": {"get": operation(servers=[{"url": "https://api.test\\@evil.test"}])}}, "no URL may have"),
    "servers with a port that is none": ({"/x": {"get": operation(servers=[{"url": "https://api.test:port"}])}}, "it is not a URL"),
    "security that is text": ({"/x": {"get": operation(security="key", tags=7, summary=[], servers="x")}}, ""),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_one_operation_and_is_told(mistake: str) -> None:
    paths, why = MISTAKES[mistake]
    made = look(document(paths))
    assert "good" in {each.endpoint.name for each in made.imported}
    if why:
        (left,) = made.skipped
        assert why in left.why
        assert "hunter2" not in left.why
    else:
        assert made.operations == 2


@pytest.mark.parametrize("error", [RecursionError, KeyError, TypeError, AttributeError, MemoryError])
def test_whatever_an_operation_makes_fail_costs_that_operation(error: type[Exception], monkeypatch) -> None:
    read = import_report.ArgumentsReader.read

    def failing(self: Any, place: Any, media_type: str | None) -> Any:
        if place.path == "/x":
            raise error
        return read(self, place, media_type)

    monkeypatch.setattr(import_report.ArgumentsReader, "read", failing)
    made = look(document({"/x": {"get": operation()}}))
    assert [each.endpoint.name for each in made.imported] == ["good"]
    assert [(each.reason.value, error.__name__ in each.why) for each in made.skipped] == [("unreadable", True)]


@pytest.mark.parametrize("levels", [DEPTH_MAX // 2, DEPTH_MAX])
def test_what_is_nested_too_deeply_costs_the_operations_that_need_it_and_the_rest_is_stored(levels: int) -> None:
    raw = document({"/x": {"post": operation(requestBody=body(deep(levels)))}})
    parsed = OpenApiDocument.parse(raw, "api")
    assert [each.endpoint.name for each in look(raw).imported] == ["good"]
    again = OpenApiDocument.parse(parsed.to_bytes(), "api")
    assert again.content == parsed.content


@pytest.mark.parametrize("levels", [5_000, 1_000_000])
def test_a_document_that_is_nested_without_end_is_refused_in_one_line(levels: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        raw = b'{"openapi": "3.1.0", "x": ' + (opening * levels + "1" + closing * levels).encode() + b"}"
        with pytest.raises(ConfigurationError) as refused:
            OpenApiDocument.parse(raw, "api")
        assert "\n" not in str(refused.value)


YAML = b"openapi: 3.1.0\nservers: [{url: 'https://api.test'}]\npaths:\n  /good: {get: {operationId: good, responses: {200: {}}}}\n"


@pytest.mark.parametrize(
    "more",
    [
        b"x: &a [*a, *a]\n",
        b"x: &a {b: &b {c: *a}}\n",
        b"x: " + b"9" * 5_000 + b"\n",
        b"x: -" + b"9" * 400 + b"\n",
        b"x: 0x" + b"f" * 500 + b"\n",
        b"x: 1e999\n",
        b"x: .inf\n",
        b"x: 18446744073709551616\n",
        b"1: a\ntrue: b\nnull: c\n",
        b"x: &a {<<: *b}\n".replace(b"*b", b"{a: 1}"),
        b"x: 2026-11-30\n",
        b"x: " + b"[" * 400 + b"]" * 400 + b"\n",
        b"".join(b"x%d: &x%d [%s]\n" % (n, n, b"*x%d" % (n - 1) if n else b"1") for n in range(400)),
    ],
    ids=range(13),
)  # fmt: skip
def test_odd_values_of_yaml_stop_nothing(more: bytes) -> None:
    parsed = OpenApiDocument.parse(YAML + more, "api")
    assert [each.endpoint.name for each in look(YAML + more).imported] == ["good"]
    assert OpenApiDocument.parse(parsed.to_bytes(), "api").content == parsed.content


def test_a_billion_laughs_are_refused() -> None:
    laughs = b"a0: &a0 [ha, ha]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 40))
    with pytest.raises(ConfigurationError, match="more than 2000000 values"):
        OpenApiDocument.parse(YAML + laughs, "api")


def test_a_document_of_too_many_bytes_or_operations_or_that_takes_too_long_is_refused(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(import_report, "OPERATIONS_MAX", 1)
    with pytest.raises(ConfigurationError, match="2 operations, and 1 are the most"):
        look(document({"/x": {"get": operation()}}))
    monkeypatch.undo()
    monkeypatch.setattr(import_report, "IMPORT_MAX_S", -1)
    with pytest.raises(ConfigurationError, match="takes more than"):
        look(document({}))
    file = tmp_path / "large.json"
    with file.open("wb") as opened:
        opened.truncate(document_module.DOCUMENT_MAX_BYTES + 1)
    (tmp_path / "triptych.toml").write_text("")
    command = ["tools", "add", "openapi", str(file), "--name", "crm", "--config", str(tmp_path / "triptych.toml")]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, ConfigurationError)
    assert "more than 33554432 bytes" in str(refused.exception)


def test_what_refers_to_more_than_a_contract_may_hold_is_left_out_and_known_before_it_is_built() -> None:
    schemas = {
        f"S{n}": {
            "enum": [f"{n}-{i}-{'x' * 1_000}" for i in range(200)],
            "allOf": [{"$ref": f"#/components/schemas/S{n + 1}"}],
        }
        for n in range(10)
    }
    schemas["S10"] = {}
    paths = {
        f"/x{n}": {"post": {"requestBody": body({"$ref": "#/components/schemas/S0"}), "responses": OK}}
        for n in range(50)
    }
    made = look(document(paths, components={"schemas": schemas}))
    assert [each.endpoint.name for each in made.imported] == ["good"]
    assert {each.reason.value for each in made.skipped} == {"too_large"}


def test_a_broken_reference_is_told_of_every_operation_that_needs_it() -> None:
    schemas = {"Bad": {"properties": {"a": {"$ref": "#/nowhere"}}}}
    paths = {f"/x{n}": {"post": {"requestBody": body(REFERRING), "responses": OK}} for n in range(3)}
    made = look(document(paths, components={"schemas": schemas}))
    assert [(each.place.path, each.reason.value) for each in made.skipped] == [
        (f"/x{n}", "reference") for n in range(3)
    ]


@pytest.mark.parametrize(
    "header", ["Host", "X-Forwarded-Host", "Transfer-Encoding", "content-length", "X-HTTP-Method-Override"]
)
def test_a_header_that_says_where_a_request_goes_is_no_argument(header: str) -> None:
    stated = {"name": header, "in": "header", "required": True, "schema": {"type": "string"}}
    made = look(document({"/x": {"get": operation(parameters=[stated])}}))
    bad = next(each for each in made.imported if each.endpoint.name == "bad")
    assert bad.endpoint.contract.arguments["properties"] == {}
    assert bad.notes == (f"the header {header} says where a request goes and is not an argument",)


@pytest.mark.parametrize(
    "scheme",
    [
        {"type": "apiKey", "in": "header", "name": "X-Key\r\nHost: evil.test"},
        {"type": "apiKey", "in": "header", "name": ""},
        {"type": "oauth2", "flows": {"clientCredentials": {"tokenUrl": "http"}}},
        {"type": "oauth2", "flows": {"clientCredentials": {"tokenUrl": "https://ana:hunter2@id.test"}}},
        {"type": "oauth2", "flows": []},
        {"type": ["oauth2"]},
        [],
    ],
)
def test_a_way_to_authenticate_that_is_none_stops_nothing(scheme: Any, tmp_path: Path) -> None:
    raw = document({}, components={"securitySchemes": {"s": scheme}}, security=[{"s": []}])
    (tmp_path / "api.json").write_bytes(raw)
    (tmp_path / "triptych.toml").write_text("")
    command = [
        "tools",
        "add",
        "openapi",
        str(tmp_path / "api.json"),
        "--name",
        "crm",
        "--config",
        str(tmp_path / "triptych.toml"),
    ]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "hunter2" not in (tmp_path / "triptych.toml").read_text()
