"""MCP servers over HTTP that answer too much, too deep, packed, elsewhere or without an end."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from triptych.kernel.errors import ConfigurationError
from triptych.schemas import ErrorCode, Result, ResultStatus
from triptych.tools import Source, Tool
from triptych.tools.adapters.mcp import tool as bridge
from triptych.tools.adapters.mcp.listing import ask
from triptych.tools.adapters.mcp.options import McpOptions
from triptych.tools.testing import running

HELLO = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "far", "version": "1"}}
TOOLS = [{"name": "odd", "inputSchema": {"type": "object"}, "annotations": {"idempotentHint": True}}]


class Far(http.server.ThreadingHTTPServer):
    """A server whose answer to a call is what a test says."""

    daemon_threads = True
    calls = 0
    answer: Callable[[Handler, dict[str, Any]], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/mcp"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Far

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "id" not in body:
            self.say(202, b"")
        elif body["method"] == "initialize":
            self.result(body, HELLO)
        elif body["method"] == "tools/list":
            self.result(body, {"tools": TOOLS})
        elif body["method"] == "tools/call":
            self.server.calls += 1
            with suppress(OSError):
                self.server.answer(self, body)
        else:
            self.say(200, json.dumps({"jsonrpc": "2.0", "id": body["id"], "error": {"code": -32601, "message": "?"}}))

    def do_GET(self) -> None:
        self.say(405, b"")

    def result(self, body: dict[str, Any], result: dict[str, Any]) -> None:
        self.say(200, json.dumps({"jsonrpc": "2.0", "id": body["id"], "result": result}))

    def say(self, status: int, body: str | bytes, **headers: str) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {"content_type": "application/json", "content_length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, pieces: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """A test says nothing of each request."""


@pytest.fixture
def far() -> Iterator[Far]:
    with Far(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


async def tool_of(far: Far, folder: Path) -> Tool:
    source = Source("far", {"pins": "far.mcp.json", "url": far.url}, folder)
    (folder / "far.mcp.json").write_text((await ask(source, source.read(McpOptions))).text())
    return bridge(source)


def error_of(result: Result) -> tuple[ErrorCode, str]:
    assert result.error is not None, result
    return result.error.code, result.error.message


def event(body: dict[str, Any], text: str) -> bytes:
    result = {"content": [{"type": "text", "text": text}]}
    return b"data: " + json.dumps({"jsonrpc": "2.0", "id": body["id"], "result": result}).encode() + b"\n\n"


def without_end(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


NOTE = (
    b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"'
    + b"x" * 60_000
    + b'"}}\n\n'
)
DEEP = '{"jsonrpc":"2.0","id":%d,"result":{"content":[],"structuredContent":' + '{"a":' * 250 + "1" + "}" * 250 + "}}"
ANSWERS: dict[str, Callable[[Handler, dict[str, Any]], None]] = {
    "large": lambda one, body: one.result(body, {"content": [{"type": "text", "text": "x" * 6_000_000}]}),
    "deep": lambda one, body: one.say(200, DEEP % body["id"]),
    "no JSON": lambda one, _: one.say(200, "{"),
    "another id": lambda one, body: one.say(200, json.dumps({"jsonrpc": "2.0", "id": body["id"] + 1, "result": {}})),
    "packed": lambda one, _: one.say(200, gzip.compress(b" " * 50_000_000), content_encoding="gzip"),
    "a large event": lambda one, body: one.stream(iter([event(body, "x" * 6_000_000)])),
    "a deep event": lambda one, body: one.stream(iter([b"data: " + (DEEP % body["id"]).encode() + b"\n\n"])),
    "an event without an end": lambda one, _: one.stream(without_end(b"data: " + b"x" * 60_000)),
    "events without an end": lambda one, _: one.stream(without_end(NOTE)),
}


@pytest.mark.parametrize(
    "before",
    [
        b'data: {"jsonrpc":"2.0","method":"notifications/message","params":[1]}\n\n',
        b'data: {"jsonrpc":"2.0","id":99999,"result":{}}\n\n',
        b"data: started\n\n",
    ],
)
async def test_an_event_that_is_not_the_answer_takes_the_answer_from_no_call(
    far: Far, tmp_path: Path, before: bytes
) -> None:
    far.answer = lambda one, body: one.stream(iter([before, event(body, "here")]))  # type: ignore[method-assign, assignment]
    async with running(await tool_of(far, tmp_path)) as call:
        result = await call("odd", {}, timeout_ms=60_000)
    assert (result.status, result.data) == (ResultStatus.OK, {"text": "here", "attachments": []})


@pytest.mark.parametrize("kind", ANSWERS)
async def test_an_answer_over_http_that_cannot_be_read_is_a_violation_of_the_contract(
    far: Far, tmp_path: Path, kind: str
) -> None:
    far.answer = ANSWERS[kind]  # type: ignore[method-assign, assignment]
    async with running(await tool_of(far, tmp_path)) as call:
        code, message = error_of(await call("odd", {}, timeout_ms=60_000))
        assert code is ErrorCode.CONTRACT_VIOLATION, message
        assert "60000" not in message
        far.answer = lambda one, body: one.stream(iter([b": hello\r\n\r\n", b"id: 1\r\n" + event(body, "fine")]))
        assert (await call("odd", {}, idempotency_key="k-2")).data == {"text": "fine", "attachments": []}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirected_call_is_made_once_and_leaves_open_what_was_done(
    far: Far, tmp_path: Path, status: int
) -> None:
    far.answer = lambda one, _: one.say(status, b"", location="/mcp")
    async with running(await tool_of(far, tmp_path)) as call:
        result = await call("odd", {})
    assert error_of(result)[0] is ErrorCode.CONTRACT_VIOLATION
    assert "effect" not in result.error.details
    assert "/mcp" in result.error.message
    assert far.calls == 1


@pytest.mark.parametrize(
    ("status", "undone"), [(400, True), (429, True), (408, False), (418, False), (500, False), (503, False)]
)
async def test_a_status_says_that_nothing_was_done_only_where_it_is_in_the_list(
    far: Far, tmp_path: Path, status: int, *, undone: bool
) -> None:
    far.answer = lambda one, _: one.say(status, "no", content_type="text/plain")
    async with running(await tool_of(far, tmp_path)) as call:
        result = await call("odd", {})
    assert (result.error.details.get("effect") == "none") is undone, result


class Old(Handler):
    """A server that speaks HTTP with SSE as protocol 2024-11-05 has it, or just no MCP at this address."""

    opens: list[bytes]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.say(405, b"")

    def do_GET(self) -> None:
        self.stream(iter(self.opens))


@pytest.mark.parametrize(
    ("opens", "is_old"),
    [
        ([b"event: endpoint\r\ndata: /messages?session=1\r\n\r\n"], True),
        ([b": hello\n", b"event:endpoint\ndata: /messages\n\n"], True),
        ([b"event: message\ndata: endpoint\n\n"], False),
        ([], False),
    ],
)
async def test_a_server_that_speaks_http_with_sse_alone_is_told_as_such(
    tmp_path: Path, opens: list[bytes], *, is_old: bool
) -> None:
    with Far(("127.0.0.1", 0), type("Opening", (Old,), {"opens": opens})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Source("old", {"pins": "old.mcp.json", "url": server.url}, tmp_path)
        with pytest.raises(ConfigurationError, match="405") as refused:
            await ask(source, source.read(McpOptions))
        server.shutdown()
    assert ("2024-11-05" in str(refused.value)) is is_old
