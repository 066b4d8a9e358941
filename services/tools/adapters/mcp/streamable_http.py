"""The HTTP side of an MCP server: secrets as headers, and statuses and broken connections that stay visible.

The SDK tells a caller only that there was an error response, and one refused connection ends everything
that is under way. Here each request gets an answer of its own in JSON-RPC, with the status in it, and what comes is
bounded and read by our codec first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp import types
from mcp.client.streamable_http import streamable_http_client
from mcp.types import JSONRPCResponse

from triptych.schemas import codec
from triptych.schemas.codec import InvalidJson
from triptych.tools.adapters.mcp.answers import HTTP_STATUS, RETRY_AFTER_MS
from triptych.tools.adapters.mcp.wire import (
    ANSWER_MAX_BYTES,
    UNREADABLE,
    UnreadableError,
    error_of,
    is_answer,
    looks_like_answer,
    read,
)
from triptych.tools.adapters.rest.response import ERROR_MAX_BYTES
from triptych.tools.http.client import no_cookies
from triptych.tools.http.errors import retry_after_ms

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 600.0
"""Longer than any call may take; the runtime's own limit comes first."""
STREAM_MAX_BYTES = 16 * ANSWER_MAX_BYTES
"""Of everything that a server says while it works on one request."""

SESSION = "mcp-session-id"
_OK, _ACCEPTED, _REDIRECTS_FROM, _ERRORS_FROM, _NOT_FOUND = 200, 202, 300, 400, 404
_KEEPS_METHOD = frozenset({307, 308})
_CALL = "tools/call"
_HELLO = frozenset({"server/discover", "initialize"})
_NO_POST_HERE = frozenset({400, 404, 405})
_SSE_WITHIN_S, _SSE_LINES = 5.0, 10
_SSE_ALONE = (
    "it speaks HTTP with SSE of protocol 2024-11-05, which streamable HTTP has replaced. Ask those who run it "
    "for the address of that, often /mcp, or put a proxy such as mcp-proxy between"
)
_PLAIN = frozenset({"", "identity"})
_JSON, _EVENTS = "application/json", "text/event-stream"


@asynccontextmanager
async def http_transport(url: str, headers: Mapping[str, str]) -> AsyncIterator[tuple[Any, Any]]:
    """Open a connection to `url`, and give its streams to the body."""
    timeout = httpx2.Timeout(CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S)
    transport = _Visible(httpx2.AsyncHTTPTransport())
    async with (
        httpx2.AsyncClient(
            headers={**headers, "accept-encoding": "identity"},
            cookies=no_cookies(),
            timeout=timeout,
            transport=transport,
        ) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=None) as streams,
    ):
        yield streams


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a POST asks."""

    id: str | int | None
    method: str | None

    def is_answered_by(self, message: JSONRPCResponse | types.JSONRPCError) -> bool:
        """Return whether this is its answer. One without an id can be of no other request."""
        return self.id is not None and (message.id is None or str(message.id) == str(self.id))


class _Visible(httpx2.AsyncBaseTransport):
    """Answers a failed request in JSON-RPC, and lets through only what can be read."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner
        self._moved: dict[httpx2.URL, httpx2.URL] = {}
        """The target of a redirect for a request that changes nothing: calls go there directly."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method != "POST":
            return _watched(await self._inner.handle_async_request(request), _Asked(None, None))
        asked = _asked(request.content)
        if asked.method == _CALL and (target := self._moved.get(request.url)) is not None:
            request.url = target
        try:
            response = await self._inner.handle_async_request(request)
        except httpx2.TransportError as error:
            return _error(503, types.CONNECTION_CLOSED, f"the server cannot be reached ({type(error).__name__})")
        if response.status_code >= _REDIRECTS_FROM:
            return await self._translated(request, response, asked)
        if _type_of(response) == _JSON and asked.id is not None:
            return await _whole(response, asked)
        return _watched(response, asked)

    async def _translated(self, request: httpx2.Request, response: httpx2.Response, asked: _Asked) -> httpx2.Response:
        """Return what the SDK hears of a redirect or an error."""
        status = response.status_code
        if status < _ERRORS_FROM and asked.method != _CALL:
            target = request.url.join(response.headers.get("location", ""))
            if status in _KEEPS_METHOD and _origin(target) == _origin(request.url):
                self._moved[request.url] = target
            return _watched(response, asked)
        if status >= _ERRORS_FROM and (body := await _json_rpc(response)) is not None:
            return _answer(status, body)
        if status in _NO_POST_HERE and asked.method in _HELLO and await self._is_old(request):
            await response.aclose()
            return _error(status, types.INTERNAL_ERROR, f"the MCP server answered HTTP {status}: {_SSE_ALONE}")
        location = response.headers.get("location") if status < _ERRORS_FROM else None
        await response.aclose()
        if status == _NOT_FOUND and SESSION in request.headers:
            return _error(_NOT_FOUND, types.CONNECTION_CLOSED, "the server has forgotten this session")
        data = {HTTP_STATUS: status, RETRY_AFTER_MS: retry_after_ms(response.headers.get("retry-after"))}
        where = f" and names {location[:200]}" if location else ""
        # The data has the status; the SDK would follow a redirect, and make the call once more.
        shown = status if status >= _ERRORS_FROM else 502
        return _error(shown, types.INTERNAL_ERROR, f"the MCP server answered HTTP {status}{where}", data)

    async def _is_old(self, request: httpx2.Request) -> bool:
        """Return whether a GET of this address begins as servers of protocol 2024-11-05 do: with where to POST to."""
        headers = {
            name: value for name, value in request.headers.items() if name not in {"content-length", "content-type"}
        }
        get = httpx2.Request(
            "GET", request.url, headers=headers | {"accept": _EVENTS}, extensions=dict(request.extensions)
        )
        begin = b""
        try:
            async with asyncio.timeout(_SSE_WITHIN_S):
                response = await self._inner.handle_async_request(get)
                try:
                    if response.status_code == _OK and _type_of(response) == _EVENTS and _is_plain(response):
                        async for part in response.aiter_raw():
                            begin += part
                            if b"\n\n" in begin.replace(b"\r", b"") or len(begin) > ERROR_MAX_BYTES:
                                break
                finally:
                    await response.aclose()
        except (httpx2.TransportError, TimeoutError):
            return False
        lines = begin.splitlines()[:_SSE_LINES]
        return any(line.replace(b" ", b"") == b"event:endpoint" for line in lines)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _asked(content: bytes) -> _Asked:
    try:
        body = codec.decode(content)
    except InvalidJson:
        return _Asked(None, None)
    if not isinstance(body, dict):
        return _Asked(None, None)
    request_id, method = body.get("id"), body.get("method")
    return _Asked(
        request_id if isinstance(request_id, str | int) else None, method if isinstance(method, str) else None
    )


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _type_of(response: httpx2.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _is_plain(response: httpx2.Response) -> bool:
    """Return whether its bytes are as they were sent: a few of them could swell to any size."""
    return str(response.headers.get("content-encoding", "")).strip().lower() in _PLAIN


async def _bytes(response: httpx2.Response, max_bytes: int) -> bytes | None:
    """Return the whole body, or None when there is more of it, or it is packed."""
    body = bytearray()
    try:
        if not _is_plain(response):
            return None
        async for part in response.aiter_raw():
            body += part
            if len(body) > max_bytes:
                return None
    finally:
        await response.aclose()
    return bytes(body)


async def _json_rpc(response: httpx2.Response) -> bytes | None:
    """Return the body of an error response, where it is an answer in JSON-RPC."""
    if _type_of(response) != _JSON:
        return None
    body = await _bytes(response, ERROR_MAX_BYTES)
    try:
        value = None if body is None else codec.decode(body)
    except InvalidJson:
        return None
    return codec.encode(value) if isinstance(value, dict) and "jsonrpc" in value else None


async def _whole(response: httpx2.Response, asked: _Asked) -> httpx2.Response:
    """Return an answer that comes in one piece."""
    try:
        body = await _bytes(response, ANSWER_MAX_BYTES)
    except httpx2.TransportError as error:
        return _error(
            _OK,
            types.CONNECTION_CLOSED,
            f"the server broke off its answer ({type(error).__name__})",
            request_id=asked.id,
        )
    if body is None:
        return _answer(_OK, _unreadable(asked, f"it has more than {ANSWER_MAX_BYTES} bytes, or is packed"))
    return _answer(_OK, _checked(body, asked), response.headers.get(SESSION))


def _checked(body: bytes, asked: _Asked) -> bytes:
    """Return a message as the SDK may read it, or an error in its place."""
    try:
        return _encoded(_read(body, asked))
    except (UnreadableError, InvalidJson) as error:
        return _unreadable(asked, str(error))


def _read(body: bytes, asked: _Asked) -> Any:
    message = read(body, asked.method)
    if asked.id is not None and is_answer(message) and not asked.is_answered_by(message):
        raise UnreadableError("it answers another request")
    return message


def _encoded(message: Any) -> bytes:
    return codec.encode(message.model_dump(mode="json", by_alias=True, exclude_unset=True))


def _unreadable(asked: _Asked, why: str) -> bytes:
    return _encoded(error_of(asked.id if asked.id is not None else 0, UNREADABLE, why))


def _watched(response: httpx2.Response, asked: _Asked) -> httpx2.Response:
    """Return the response with its stream in bounds: events one by one, anything else cut."""
    is_stream = _type_of(response) == _EVENTS and _is_plain(response)
    response.stream = _Events(response.stream, asked) if is_stream else _Cut(response.stream)
    return response


class _Cut(httpx2.AsyncByteStream):
    """A body that is read up to a limit."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = ERROR_MAX_BYTES
        async for part in self._inner:
            left -= len(part)
            if left < 0:
                raise httpx2.ReadError(f"the server sends more than {ERROR_MAX_BYTES} bytes")
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Events(httpx2.AsyncByteStream):
    """Server-sent events, each of them in bounds and readable."""

    def __init__(self, inner: Any, asked: _Asked) -> None:
        self._inner, self._asked = inner, asked

    async def __aiter__(self) -> AsyncIterator[bytes]:
        event, size, total = bytearray(), 0, 0
        rest = b""
        async for part in self._inner:
            total += len(part)
            lines = (rest + part).replace(b"\r\n", b"\n").split(b"\n")
            rest = lines.pop()
            for line in lines:
                event += line + b"\n"
                if not line:
                    yield self._event(bytes(event))
                    event.clear()
            size = len(event) + len(rest)
            is_too_much = size > ANSWER_MAX_BYTES or (self._asked.id is not None and total > STREAM_MAX_BYTES)
            if is_too_much:
                yield _event_of(_unreadable(self._asked, f"it has more than {ANSWER_MAX_BYTES} bytes"))
                return
        if event or rest:
            yield self._event(bytes(event) + rest + b"\n\n")

    def _event(self, event: bytes) -> bytes:
        """Return the event as the SDK may read it; an event that is unreadable and not an answer is left out."""
        fields = [line.partition(b":") for line in event.split(b"\n") if line]
        data = b"\n".join(value.removeprefix(b" ") for name, _, value in fields if name == b"data")
        if not data:
            return event
        others = b"".join(name + b":" + value + b"\n" for name, _, value in fields if name not in {b"data", b""})
        try:
            message = read(data, self._asked.method)
        except UnreadableError as error:
            if self._asked.id is None or not looks_like_answer(data):
                return others + b"\n"
            return others + _event_of(_unreadable(self._asked, error.why))
        if is_answer(message) and not self._asked.is_answered_by(message):
            return others + b"\n"
        return others + _event_of(_encoded(message))

    async def aclose(self) -> None:
        await self._inner.aclose()


def _event_of(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _answer(status: int, body: bytes, session: str | None = None) -> httpx2.Response:
    headers = {"content-type": _JSON} | ({SESSION: session} if session else {})
    return httpx2.Response(status, content=body, headers=headers)


def _error(
    status: int, code: int, message: str, data: Mapping[str, Any] | None = None, *, request_id: str | int | None = None
) -> httpx2.Response:
    error = {"code": code, "message": message} | ({"data": data} if data else {})
    return httpx2.Response(status, json={"jsonrpc": "2.0", "id": request_id, "error": error})
