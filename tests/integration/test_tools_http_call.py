"""A call over HTTP that a few options declare, against a real server."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.process.tracing import on_behalf_of
from triptych.schemas import Effect, ErrorCode, Result, ResultStatus
from triptych.tools import Source, Tool
from triptych.tools.adapters.http_call import tool as http_tool
from triptych.tools.testing import call

KEY = "s3cret-of-the-upstream"
OPTIONS = """
auth = { kind = "api_key", name = "X-Api-Key", key_env = "SHOP_KEY" }

[operations.echo]
description = "What arrived."
path = "/items/{id}/.a/;matrix=1"
query = { page = "${{ arguments.page }}", until = "${{ arguments.until }}", kind = "fixed", tags = "${{ arguments.tags }}" }
headers = { X-Trace = "for ${{ arguments.id }}" }
arguments = { id = { type = "string" }, page = { type = "integer", default = 1 }, until = {}, tags = { type = "array" } }
optional = ["until", "tags"]
effect = "read"

[operations.place]
description = "Place an order."
method = "POST"
path = "/orders"
body = { customer = "C-${{ arguments.customer }}", cents = "${{ arguments.euros * 100 }}", lines = [] }
arguments = { customer = { type = "integer" }, euros = { type = "integer", minimum = 1 } }
result = { type = "object", required = ["number"] }
effect = "idempotent"
key = { header = "Idempotency-Key" }

[operations.page]
description = "A page."
path = "/page"
effect = "read"

[operations.missing]
description = "Not there."
path = "/orders/O-99"
effect = "read"

[operations.form]
description = "Send a form."
method = "POST"
path = "/form"
form = "form"
body = { name = "${{ arguments.name }}" }
arguments = { name = { type = "string" } }
effect = "once"
"""


def built(url: str, **more: Any) -> Tool:
    return http_tool(Source("shop", {"base_url": url, **tomllib.loads(OPTIONS), **more}, Path()))


@pytest.fixture
def shop(openapi_upstream: str, monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setenv("SHOP_KEY", KEY)
    return built(openapi_upstream)


async def test_templates_fill_path_query_and_headers(shop: Tool) -> None:
    result = await call(shop, "echo", {"id": "a/b", "tags": ["x", "y"]})
    assert result.data["path"] == "/items/a%2Fb/.a/;matrix=1"
    assert result.data["query"] == [["page", "1"], ["kind", "fixed"], ["tags", "x"], ["tags", "y"]]
    assert result.data["headers"]["x-trace"] == "for a/b"


async def test_an_upstream_is_told_the_trace_the_run_and_the_tenant(shop: Tool) -> None:
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    with on_behalf_of(UUID(int=7), "acme", trace):
        result = await call(shop, "echo", {"id": "a"})
    told = {name: result.data["headers"].get(name) for name in ("traceparent", "triptych-run-id", "triptych-tenant")}
    assert told == {"traceparent": trace, "triptych-run-id": str(UUID(int=7)), "triptych-tenant": "acme"}


async def test_a_body_keeps_the_types_of_what_stands_alone_and_the_key_is_sent(shop: Tool) -> None:
    arguments = {"customer": 7, "euros": 3}
    first = await call(shop, "place", arguments, idempotency_key="http-1")
    again = await call(shop, "place", arguments, idempotency_key="http-1")
    assert first.data["order"] == {"customer": "C-7", "cents": 300, "lines": []}
    assert again.data["number"] == first.data["number"]
    assert shop.operations["shop.place"].contract.effect is Effect.IDEMPOTENT


async def test_a_form_is_sent_as_one(shop: Tool) -> None:
    result = await call(shop, "form", {"name": "Ana & Co"})
    assert result.data["body"] == [["name", "Ana & Co"]]


@pytest.mark.parametrize("arguments", [{}, {"id": 1}, {"id": "a", "invented": 1}, {"id": ".."}])
async def test_what_the_declaration_does_not_allow_is_refused(shop: Tool, arguments: dict[str, Any]) -> None:
    result = await call(shop, "echo", arguments)
    assert result.status is ResultStatus.ERROR
    assert result.error is not None
    assert result.error.code is ErrorCode.INVALID_ARGUMENTS


async def test_nothing_found_is_empty(shop: Tool) -> None:
    assert await call(shop, "missing", {}) == Result.empty()


async def test_a_page_is_no_data(shop: Tool) -> None:
    refused = (await call(shop, "page", {})).error
    assert refused is not None
    assert refused.code is ErrorCode.CONTRACT_VIOLATION


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        ({"path": "/x/{id}"}, r"echo.path: \{id\} is not an argument"),
        ({"path": "/x", "query": {"a": "${{ arguments. }}"}}, "options.operations.echo"),
        ({"path": "/x", "query": {"a": "${{ input.a }}"}}, "there is no variable `input`"),
        ({"path": "x"}, "operations.echo.path"),
        ({"path": "/x", "key": {"cookie": "a"}}, "operations.echo.key.cookie"),
        ({"path": "/x", "arguments": {"a": {"type": "no"}}}, "not a JSON Schema"),
    ],
)
def test_a_declaration_that_cannot_work_is_found_when_the_tool_is_built(operation: dict[str, Any], told: str) -> None:
    stated = {"description": "Echo.", "effect": "read", **operation}
    with pytest.raises(ConfigurationError, match=told):
        built("http://127.0.0.1:9", operations={"echo": stated})


def test_a_base_url_is_needed() -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        http_tool(Source("shop", tomllib.loads(OPTIONS), Path()))
