"""From arguments to a request: what cannot stand where it belongs is refused before anything is sent."""

from __future__ import annotations

import httpx
import pytest

from triptych.schemas import Contract, Effect, ErrorCode
from triptych.tools import ToolFailure
from triptych.tools.adapters.rest.endpoint import (
    BodyForm,
    Endpoint,
    FieldEncoding,
    Parameter,
    ParameterLocation,
    RequestBody,
    Style,
)
from triptych.tools.adapters.rest.request import build_request

CONTRACT = Contract(
    operation="crm.note", description="Notes.", arguments={"type": "object"}, result={}, effect=Effect.ONCE
)
NOTE = Endpoint(
    CONTRACT,
    "POST",
    "/notes",
    (Parameter("author", "x-author", ParameterLocation.HEADER, Style.SIMPLE, explode=False),),
)


@pytest.mark.parametrize("author", ["Jörg", "山田", "ana\r\nx-admin: yes", "ana\x00", " ana", "ana\t"])
async def test_what_cannot_be_sent_in_a_header_is_refused_as_certainly_not_done(author: str) -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(ToolFailure) as refused:
            build_request(client, NOTE, "https://crm.test", {"author": author}, "key")
    assert (refused.value.code, refused.value.undone) == (ErrorCode.INVALID_ARGUMENTS, True)
    assert "arguments.author" in refused.value.message


async def test_a_header_carries_a_name() -> None:
    async with httpx.AsyncClient() as client:
        request = build_request(client, NOTE, "https://crm.test", {"author": "Ana M."}, "key")
    assert request.headers["x-author"] == "Ana M."


FILE = Endpoint(
    CONTRACT, "GET", "/files/{name}", (Parameter("name", "name", ParameterLocation.PATH, Style.SIMPLE, explode=False),)
)


def url_of(endpoint: Endpoint, **arguments: object) -> str:
    return str(build_request(httpx.AsyncClient(), endpoint, "https://crm.test/v1", arguments, "key").url)


@pytest.mark.parametrize(
    "name",
    [
        ".", "..", "...", "../../admin", "a/..", "a/../../b", "..\\..\\admin", "a\\..", "%2e%2e", "%2E%2e/x", ".%2e",
        "..%2fadmin", "..%5cadmin", "%252e%252e%252fadmin", "%25252e%25252e", "%2e%2e%2f%2e%2e", "..;/admin", "..;a=b/x",
        ".. /x", " ..", "\uff0e\uff0e\uff0fadmin", "..\u2215admin", "..\u2044admin", "\u2025/x", "\u2026", "%c0%ae%c0%ae/x",
        "..%c0%afx", "..%c1%9cx", "%e0%80%ae%e0%80%ae/x", "%u002e%u002e/x", "..%u2215x", "a//b", "/etc/passwd", "a/", "\\\\host\\x",
        "https://evil.test/x", "//evil.test", "%2f%2fevil.test", "", "..\0", "a\r\nHost: evil.test", "%0d%0aX: y", "a%00",
        "%" + "25" * 9 + "2e",
    ],
)  # fmt: skip
def test_what_could_leave_its_place_in_a_path_is_refused_however_it_is_written(name: str) -> None:
    with pytest.raises(ToolFailure, match=r"arguments\.name") as refused:
        url_of(FILE, name=name)
    assert (refused.value.code, refused.value.undone) == (ErrorCode.INVALID_ARGUMENTS, True)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/b", "a%2Fb"), ("a?x=1#y", "a%3Fx%3D1%23y"), ("100%", "100%25"), ("a..b", "a..b"), ("v1.2", "v1.2"), (".git", ".git"),
        ("a@evil.test", "a%40evil.test"), ("a:b", "a%3Ab"), ("ü", "%C3%BC"), ("a b", "a%20b"), (7, "7"), ("a;b", "a%3Bb"),
    ],
)  # fmt: skip
def test_what_stays_in_its_place_in_a_path_is_sent_as_it_is(name: object, path: str) -> None:
    assert url_of(FILE, name=name) == f"https://crm.test/v1/files/{path}"


def in_path(name: str, style: Style = Style.SIMPLE, *, explode: bool = False) -> Parameter:
    return Parameter(name, name, ParameterLocation.PATH, style, explode)


@pytest.mark.parametrize(
    ("endpoint", "arguments"),
    [
        (Endpoint(CONTRACT, "GET", "/x/{a}{b}/y", (in_path("a"), in_path("b"))), {"a": ".", "b": "."}),
        (Endpoint(CONTRACT, "GET", "/x/.{a}/y", (in_path("a"),)), {"a": "."}),
        (Endpoint(CONTRACT, "GET", "/x/{a}/y", (in_path("a", Style.LABEL, explode=True),)), {"a": [""]}),
        (Endpoint(CONTRACT, "GET", "/x/{a}/y", (in_path("a", Style.MATRIX),)), {"a": ["..", "x"]}),
        (Endpoint(CONTRACT, "GET", "/x/{a}/y", (in_path("a"),)), {"a": {"..": "x"}}),
        (Endpoint(CONTRACT, "GET", "/x/.%2{a}/y", (in_path("a"),)), {"a": "e"}),
        (Endpoint(CONTRACT, "GET", "/x/{a}/y", (in_path("a"),)), {}),
        (Endpoint(CONTRACT, "DELETE", "/x/{a}", (in_path("a"),)), {"a": []}),
        (Endpoint(CONTRACT, "DELETE", "/x/{a}", (in_path("a"),)), {"a": {}}),
        (Endpoint(CONTRACT, "DELETE", "/x/{a}", (in_path("a"),)), {"a": None}),
        (Endpoint(CONTRACT, "DELETE", "/x/{a}", (in_path("a"),)), {"a": ["1", None]}),
        (Endpoint(CONTRACT, "DELETE", "/x/{a}", (in_path("a", Style.MATRIX, explode=True),)), {"a": []}),
    ],
)
def test_values_cannot_come_to_a_dot_segment_together_and_none_may_be_missing(
    endpoint: Endpoint, arguments: dict[str, object]
) -> None:
    with pytest.raises(ToolFailure) as refused:
        url_of(endpoint, **arguments)
    assert (refused.value.code, refused.value.undone) == (ErrorCode.INVALID_ARGUMENTS, True)


def test_a_reserved_character_that_a_document_allows_cannot_end_the_value() -> None:
    parameter = Parameter("q", "q", ParameterLocation.QUERY, Style.FORM, explode=True, allow_reserved=True)
    url = url_of(Endpoint(CONTRACT, "GET", "/x", (parameter,)), q="a/b?c&admin=1#;+d")
    assert url == "https://crm.test/v1/x?q=a/b?c%26admin%3D1%23%3B%2Bd"


@pytest.mark.parametrize("content_type", ["text/plain\r\nX-Admin: yes", "text", "a/b; c", "text/plain\0", ""])
def test_the_media_type_of_a_file_cannot_hold_another_header(content_type: str) -> None:
    body = RequestBody("body", BodyForm.MULTIPART, "multipart/form-data")
    file = {"text": "x", "content_type": content_type}
    with pytest.raises(ToolFailure, match="not a media type"):
        build_request(
            httpx.AsyncClient(),
            Endpoint(CONTRACT, "POST", "/x", body=body),
            "https://crm.test",
            {"body": {"f": file}},
            "k",
        )


def sent_with(*parameters: Parameter, defaults: dict[str, object] | None = None, **arguments: object) -> httpx.Request:
    endpoint = Endpoint(CONTRACT, "GET", "/x", parameters, defaults=defaults or {})
    return build_request(httpx.AsyncClient(), endpoint, "https://crm.test", arguments, "key")


def at(place: ParameterLocation, style: Style = Style.FORM, *, explode: bool = True) -> Parameter:
    return Parameter("a", "a", place, style, explode)


@pytest.mark.parametrize(
    ("parameter", "value", "query"),
    [
        (at(ParameterLocation.QUERY), None, ""),
        (at(ParameterLocation.QUERY), ["x", None, "y"], "a=x&a=y"),
        (at(ParameterLocation.QUERY), [None], ""),
        (at(ParameterLocation.QUERY, explode=False), [], ""),
        (at(ParameterLocation.QUERY, explode=False), {"k": None}, ""),
        (at(ParameterLocation.QUERY, Style.DEEP_OBJECT), {"k": None, "m": 1}, "a%5Bm%5D=1"),
        (at(ParameterLocation.QUERY, Style.DEEP_OBJECT), ["x", "y"], "a%5B%5D=x&a%5B%5D=y"),
        (at(ParameterLocation.QUERY, Style.DEEP_OBJECT), {"ids": ["1", "2"]}, "a%5Bids%5D%5B%5D=1&a%5Bids%5D%5B%5D=2"),
        (at(ParameterLocation.QUERY, Style.DEEP_OBJECT), {"m": [{"k": 1}, {"k": 2}]}, "a%5Bm%5D%5B0%5D%5Bk%5D=1&a%5Bm%5D%5B1%5D%5Bk%5D=2"),
        (at(ParameterLocation.QUERY), 12345678901234567890, "a=12345678901234567890"),
        (at(ParameterLocation.QUERY), 1.5e19, "a=15000000000000000000"),
        (at(ParameterLocation.QUERY), 1e-7, "a=0.0000001"),
        (at(ParameterLocation.QUERY), [1e21, True], "a=1000000000000000000000&a=true"),
    ],
)  # fmt: skip
def test_null_is_not_sent_and_lists_objects_and_numbers_are_written_in_full(
    parameter: Parameter, value: object, query: str
) -> None:
    assert sent_with(parameter, a=value).url.query.decode() == query


def test_null_is_no_header_and_no_cookie_either() -> None:
    assert "a" not in sent_with(at(ParameterLocation.HEADER, Style.SIMPLE), a=None).headers
    assert "cookie" not in sent_with(at(ParameterLocation.COOKIE), a=None).headers
    assert sent_with(at(ParameterLocation.HEADER, Style.SIMPLE), a=[1, None, 2]).headers["a"] == "1,2"
    assert "a" not in sent_with(at(ParameterLocation.HEADER, Style.SIMPLE), a=[None]).headers
    assert "cookie" not in sent_with(at(ParameterLocation.COOKIE), a={}).headers
    assert sent_with(at(ParameterLocation.HEADER, Style.SIMPLE), a="").headers["a"] == ""


def test_what_a_server_requires_and_a_document_knows_is_sent_where_a_caller_gives_nothing() -> None:
    assert sent_with(at(ParameterLocation.QUERY), defaults={"a": "2026-11"}).url.query == b"a=2026-11"
    assert sent_with(at(ParameterLocation.QUERY), defaults={"a": "2026-11"}, a="2027-01").url.query == b"a=2027-01"


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        (at(ParameterLocation.QUERY, Style.PIPE_DELIMITED, explode=False), ["a|b", "c"]),
        (at(ParameterLocation.QUERY, Style.SPACE_DELIMITED, explode=False), ["a b", "c"]),
        (at(ParameterLocation.HEADER, Style.SIMPLE, explode=False), ["a,b", "c"]),
    ],
)
def test_a_value_that_would_be_read_as_two_is_refused(parameter: Parameter, value: list[str]) -> None:
    with pytest.raises(
        ToolFailure, match=r"arguments\.a: 'a.b' holds '.', which separates the values of the list"
    ) as refused:
        sent_with(parameter, a=value)
    assert (refused.value.code, refused.value.undone) == (ErrorCode.INVALID_ARGUMENTS, True)


def test_a_dot_in_a_value_of_a_label_is_refused_too() -> None:
    labels = Endpoint(CONTRACT, "GET", "/x{a}", (in_path("a", Style.LABEL, explode=True),))
    assert url_of(labels, a=["a", "b"]) == "https://crm.test/v1/x.a.b"
    with pytest.raises(ToolFailure, match=r"'a.b' holds '\.'"):
        url_of(labels, a=["a.b", "c"])


def test_a_field_of_an_object_that_would_be_read_as_two_is_refused_as_well() -> None:
    labels = Endpoint(CONTRACT, "GET", "/x{a}", (in_path("a", Style.LABEL, explode=True),))
    assert url_of(labels, a={"k": 1, "m": 2}) == "https://crm.test/v1/x.k=1.m=2"
    with pytest.raises(ToolFailure, match=r"arguments\.a: 'k=1\.5' holds '\.'"):
        url_of(labels, a={"k": 1.5})
    exploded = at(ParameterLocation.HEADER, Style.SIMPLE)
    assert sent_with(exploded, a={"k": 1, "m": 2}).headers["a"] == "k=1,m=2"
    with pytest.raises(ToolFailure, match=r"arguments\.a: 'k=1,m=2' holds ','"):
        sent_with(exploded, a={"k": "1,m=2"})


def test_a_comma_in_a_cookie_is_encoded_where_that_between_values_is_not() -> None:
    assert sent_with(at(ParameterLocation.COOKIE), a=["a,b", "c"]).headers["cookie"] == "a=a%2Cb,c"
    assert sent_with(at(ParameterLocation.COOKIE), a="a,b").headers["cookie"] == "a=a,b"


def test_a_comma_in_a_query_is_encoded_where_that_between_values_is_not() -> None:
    assert sent_with(at(ParameterLocation.QUERY, explode=False), a=["a,b", "c"]).url.query == b"a=a%2Cb,c"


def test_a_field_that_would_be_read_as_two_is_refused_and_an_empty_form_is_one() -> None:
    body = RequestBody(
        "body",
        BodyForm.FORM,
        "application/x-www-form-urlencoded",
        (FieldEncoding("a", style=Style.FORM, explode=False),),
    )
    endpoint = Endpoint(CONTRACT, "POST", "/x", body=body)
    with pytest.raises(ToolFailure, match=r"arguments\.body: 'a,b' holds ','"):
        build_request(httpx.AsyncClient(), endpoint, "https://crm.test", {"body": {"a": ["a,b"]}}, "key")
    empty = build_request(httpx.AsyncClient(), endpoint, "https://crm.test", {"body": {}}, "key")
    assert (empty.content, empty.headers["content-type"]) == (b"", "application/x-www-form-urlencoded")
