"""The HTTP side of an MCP server: secrets as headers, and statuses and broken connections that stay visible.

The SDK tells a caller only that there was an error response, and one refused connection ends everything
that is under way. Here each request gets an answer of its own in JSON-RPC, with the status in it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp import types
from mcp.client.streamable_http import streamable_http_client

from triptych.schemas import codec
from triptych.tools.http import retry_after_ms
from triptych.tools.mcp.answers import HTTP_STATUS, RETRY_AFTER_MS

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 600.0
"""Longer than any call may take; the runtime's own limit comes first."""

SESSION = "mcp-session-id"
_ERRORS_FROM = 400
_NOT_FOUND = 404


@asynccontextmanager
async def http_transport(url: str, headers: Mapping[str, str]) -> AsyncIterator[tuple[Any, Any]]:
    """The streams of a connection to `url`."""
    timeout = httpx2.Timeout(CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
    transport = _Visible(httpx2.AsyncHTTPTransport())
    async with (
        httpx2.AsyncClient(headers=dict(headers), timeout=timeout, transport=transport) as client,
        streamable_http_client(url, http_client=client) as streams,
    ):
        yield streams


class _Visible(httpx2.AsyncBaseTransport):
    """Answers a failed request in JSON-RPC."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method != "POST":
            return await self._inner.handle_async_request(request)
        try:
            response = await self._inner.handle_async_request(request)
        except httpx2.TransportError as error:
            return _error(503, types.CONNECTION_CLOSED, f"the server cannot be reached ({type(error).__name__})")
        if response.status_code < _ERRORS_FROM or await _is_json_rpc(response):
            return response
        await response.aclose()
        if response.status_code == _NOT_FOUND and SESSION in request.headers:
            return _error(_NOT_FOUND, types.CONNECTION_CLOSED, "the server has forgotten this session")
        data = {
            HTTP_STATUS: response.status_code,
            RETRY_AFTER_MS: retry_after_ms(response.headers.get("retry-after")),
        }
        return _error(
            response.status_code, types.INTERNAL_ERROR, f"the server answered HTTP {response.status_code}", data
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _is_json_rpc(response: httpx2.Response) -> bool:
    if not response.headers.get("content-type", "").startswith("application/json"):
        return False
    try:
        body = codec.decode(await response.aread())
    except codec.InvalidJson:
        return False
    return isinstance(body, dict) and "jsonrpc" in body


def _error(status: int, code: int, message: str, data: dict[str, Any] | None = None) -> httpx2.Response:
    error = {"code": code, "message": message} | ({"data": data} if data else {})
    return httpx2.Response(status, json={"jsonrpc": "2.0", "id": None, "error": error})
