"""What a body is sent as: which media type, how its fields are written, and what is left out."""

from __future__ import annotations

import re
from typing import Any

import httpx
import orjson
import pytest

from triptych.contracts.compiled_contract import CompiledContract
from triptych.tools.adapters.openapi.document import OpenApiDocument
from triptych.tools.adapters.openapi.import_report import ImportedOperation, ImportReport, import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.adapters.rest.request import build_request

OK: dict[str, Any] = {"200": {"content": {"application/json": {"schema": {"type": "object"}}}}}
FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"


def look(content: dict[str, Any], **options: Any) -> ImportReport:
    operation = {"operationId": "send", "requestBody": {"required": True, "content": content}, "responses": OK}
    whole = {
        "openapi": "3.1.0",
        "info": {},
        "servers": [{"url": "https://a.test"}],
        "paths": {"/x": {"patch": operation}},
    }
    named = {"operations": {"send": options}} if options else {}
    stated = OpenApiOptions.model_validate({"spec": "a.json", **named})
    return import_document(OpenApiDocument.parse(orjson.dumps(whole), "a.json"), "a", stated)


def only(content: dict[str, Any], **options: Any) -> ImportedOperation:
    made = look(content, **options)
    assert made.skipped == ()
    return made.imported[0]


def sent(imported: ImportedOperation, body: Any) -> httpx.Request:
    assert CompiledContract.of(imported.endpoint.contract).arguments.is_valid({"body": body})
    request = build_request(httpx.AsyncClient(), imported.endpoint, "", {"body": body}, "key")
    if request.headers["content-type"].startswith("multipart/"):
        request = httpx.Request("PATCH", "https://a.test/x", content=b"".join(request.stream), headers=request.headers)
    request.read()
    return request


# Which media type

THING = {"schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}


@pytest.mark.parametrize(
    ("content", "media_type", "sent_as", "body"),
    [
        ({"application/json": THING, FORM: THING}, None, "application/json", {"a": 1}),
        ({"application/json": THING, FORM: THING}, FORM, FORM, {"a": 1}),
        ({"application/json-patch+json": THING, "application/merge-patch+json": THING}, None, "application/merge-patch+json", {"a": 1}),
        ({"application/json-patch+json": THING, "application/merge-patch+json": THING}, "application/json-patch+json", "application/json-patch+json", [{"op": "remove", "path": "/a"}]),
        ({"application/json-patch+json": {"schema": {"type": "object"}}}, None, "application/json-patch+json", [{"op": "add", "path": "/a", "value": 1}]),
        ({"application/vnd.shop.v2+json": THING, "application/vnd.shop.v1+json": THING}, "application/vnd.shop.v1+json", "application/vnd.shop.v1+json", {"a": 1}),
        ({"text/json": THING}, None, "text/json", {"a": 1}),
        ({"*/*": THING}, None, "application/json", {"a": 1}),
        ({"image/*": {}}, "image/png", "image/png", "aGk="),
        ({"application/pdf": {}}, None, "application/pdf", "aGk="),
        ({"application/x-ndjson": {"schema": {"type": "array"}}}, None, "application/x-ndjson", "{}\n{}\n"),
        ({"image/jpeg": {"schema": {"type": "string", "format": "byte"}}}, None, "image/jpeg", "aGk="),
        ({"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}, None, "application/x-tar", "aGk="),
    ],
)  # fmt: skip
def test_a_media_type_is_chosen_and_an_option_says_otherwise(
    content: dict[str, Any], media_type: str | None, sent_as: str, body: Any
) -> None:
    imported = only(content) if media_type is None else only(content, media_type=media_type)
    assert sent(imported, body).headers["content-type"] == sent_as


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ({"image/*": {}}, {}, "image/*; name one with operations.NAME.media_type"),
        ({"application/json": THING}, {"media_type": "text/plain"}, "media_type: text/plain cannot be sent; there is application/json"),
        ({"application/xml": THING}, {}, "a body can only be sent as application/xml"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_left_out_with_the_cure(content: Any, options: Any, told: str) -> None:
    (left,) = look(content, **options).skipped
    assert told in left.why


# Files


@pytest.mark.parametrize(
    "part",
    [
        {"type": "string", "format": "binary"},
        {"type": "string", "contentMediaType": "application/octet-stream"},
        {"contentMediaType": "image/png"},
        {"format": "binary"},
        {"type": "string", "format": "binary", "nullable": True},
        {"type": ["string", "null"], "contentMediaType": "text/csv"},
        {"anyOf": [{"type": "string", "contentMediaType": "application/octet-stream"}, {"type": "null"}]},
        {"type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}},
    ],
)
def test_a_file_of_3_0_and_of_3_1_is_a_part_with_its_name(part: dict[str, Any]) -> None:
    imported = only({MULTIPART: {"schema": {"type": "object", "properties": {"file": part}}}})
    file: Any = {"filename": "a.txt", "text": "hi"}
    content = sent(imported, {"file": [file] if part.get("type") == "array" else file}).content
    assert b'name="file"; filename="a.txt"' in content
    assert b"\r\n\r\nhi\r\n" in content
    arguments = CompiledContract.of(imported.endpoint.contract).arguments
    assert not arguments.is_valid({"body": {"file": "hi"}})
    assert not arguments.is_valid({"body": {"file": {"text": "hi", "content_type": "text"}}})


def test_text_that_stands_for_bytes_is_no_file() -> None:
    part = {"type": "string", "contentMediaType": "image/png", "contentEncoding": "base64"}
    imported = only({MULTIPART: {"schema": {"type": "object", "properties": {"picture": part}}}})
    assert b"\r\n\r\naGk=\r\n" in sent(imported, {"picture": "aGk="}).content


# Fields

ORDER = {
    "mode": {"type": "string"},
    "lines": {"type": "array", "items": {"type": "object", "properties": {"sku": {"type": "string"}}}},
    "tags": {"type": "array", "items": {"type": "string"}},
    "meta": {"type": "object", "additionalProperties": True},
}


@pytest.mark.parametrize(
    ("encoding", "body", "written"),
    [
        ({}, {"tags": ["x", "y"]}, "tags=x&tags=y"),
        ({}, {"lines": [{"sku": "a"}, {"sku": "b"}]}, "lines[0][sku]=a&lines[1][sku]=b"),
        ({}, {"meta": {"a": {"b": "c"}}}, "meta[a][b]=c"),
        ({}, {"mode": "a&b", "meta": {"n": None}}, "mode=a%26b"),
        ({"tags": {"style": "deepObject", "explode": True}}, {"tags": ["x", "y"]}, "tags[]=x&tags[]=y"),
        ({"tags": {"style": "form", "explode": False}}, {"tags": ["x", "y"]}, "tags=x%2Cy"),
        ({"tags": {"style": "pipeDelimited", "explode": False}}, {"tags": ["x", "y"]}, "tags=x%7Cy"),
        ({"tags": {"style": "spaceDelimited", "explode": False}}, {"tags": ["x", "y"]}, "tags=x+y"),
        ({"meta": {"style": "form", "explode": True}}, {"meta": {"a": 1}}, "a=1"),
        ({"meta": {"contentType": "application/json"}}, {"meta": {"a": [1]}}, 'meta={"a":[1]}'),
    ],
)  # fmt: skip
def test_lists_and_objects_in_a_form_are_written_as_the_document_says(encoding: Any, body: Any, written: str) -> None:
    content = {FORM: {"schema": {"type": "object", "properties": ORDER}, "encoding": encoding}}
    found = re.sub(
        r"%(5B|5D|7B|7D|22|3A)", lambda found: chr(int(found[1], 16)), sent(only(content), body).content.decode()
    )
    assert found == written


def test_parts_have_the_content_type_that_the_document_says() -> None:
    encoding = {
        "lines": {"contentType": "application/json"},
        "mode": {"contentType": "text/csv"},
        "file": {"contentType": "image/png"},
    }
    properties = {**ORDER, "file": {"type": "string", "format": "binary"}}
    content = {MULTIPART: {"schema": {"type": "object", "properties": properties}, "encoding": encoding}}
    body = {"lines": [{"sku": "a"}, {"sku": "b"}], "mode": "a,b", "tags": ["x"], "file": {"base64": "aGk="}}
    parts = sent(only(content), body).content.split(b"--")
    told = [re.findall(rb' name="(\w+)"|Content-Type: (\S+)', part) for part in parts if b"name=" in part]
    assert [b" ".join(b"".join(each) for each in part).decode() for part in told] == [
        "lines application/json", "lines application/json", "mode text/csv", "tags", "file image/png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("media_type", "encoding", "told"),
    [
        (MULTIPART, {"lines": {"headers": {"X-Sum": {"required": True}}}}, "needs a header X-Sum"),
        (FORM, {"lines": {"style": "tabular"}}, "the field lines of its body has the style 'tabular'"),
    ],
)
def test_an_encoding_that_cannot_be_honoured_leaves_the_operation_out(
    media_type: str, encoding: Any, told: str
) -> None:
    (left,) = look({media_type: {"schema": {"type": "object", "properties": ORDER}, "encoding": encoding}}).skipped
    assert told in left.why


@pytest.mark.parametrize("media_type", [FORM, MULTIPART])
def test_null_is_not_sent(media_type: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": ["integer", "null"]}}}
    content = sent(only({media_type: {"schema": schema}}), {"a": "1", "n": None}).content
    assert b"a" in content
    assert b"n=" not in content
    assert b'"n"' not in content
