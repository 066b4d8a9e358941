"""The endpoint of callbacks over real HTTP, asked by strangers: every request ends, in time, without a traceback."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response
from studio import free_port

from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.process.health import serve_app
from triptych.tools.runtime import callback_endpoint as module
from triptych.tools.runtime.callback_endpoint import BODY_MAX_BYTES, CONNECTIONS_MAX, BoundedProtocol, endpoint, reply
from triptych.tools.runtime.webhooks import Verifier
from triptych_chaos import webhooks

KEY = b"a key of four and twenty bytes"
VERIFIER = Verifier(SecretStr(f"whsec_{base64.b64encode(KEY).decode()}"))


@pytest.fixture
def port() -> int:
    return free_port()


@asynccontextmanager
async def listening(port: int, **limits: Any) -> AsyncIterator[list[bytes]]:
    """The endpoint, and the bodies of what was let through."""
    heard: list[bytes] = []

    async def handle(_token: str, body: bytes, request: Request) -> Response:
        if problem := VERIFIER.problem(request.headers, body, utc_now()):
            return reply(HTTPStatus.UNAUTHORIZED, problem)
        heard.append(body)
        return reply(HTTPStatus.OK, "taken")

    app = endpoint(lambda request: VERIFIER.problem_of_headers(request.headers, utc_now()), handle, **limits)
    async with serve_app(app, "127.0.0.1", port, "callbacks", BoundedProtocol):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                break
        yield heard


async def asked(port: int, request: bytes, *, more: bytes = b"") -> bytes:
    """What the endpoint answers to bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request + more)
    try:
        return await asyncio.wait_for(reader.read(65_536), 30)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def request_of(headers: dict[str, str], body: bytes, *, length: int | None = None) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(["POST /callbacks/abc HTTP/1.1", "host: x", *lines, f"content-length: {length or len(body)}"])
    return f"{head}\r\n\r\n".encode("latin-1") + body


ODD: dict[str, dict[str, str]] = {
    "none": {},
    "a time of 400 digits": {"webhook-id": "a", "webhook-timestamp": "1" * 400, "webhook-signature": "v1,x"},
    "a time of 5,000 digits": {"webhook-id": "a", "webhook-timestamp": "1" * 5_000, "webhook-signature": "v1,x"},
    "bytes over 127": {"webhook-id": "\xff\xfe", "webhook-timestamp": "\xb2", "webhook-signature": "v1,\xff"},
    "many signatures": {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,x " * 10_000},
}


@pytest.mark.parametrize("odd", ODD)
async def test_odd_headers_are_refused_with_a_4xx_and_without_a_traceback(
    odd: str, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(port) as heard:
        answer = await asked(port, request_of(ODD[odd], b"{}"))
        assert answer.split(b" ", 2)[1] == b"401"
    assert heard == []
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /callbacks/abc HTTP/1.1\r\nhost: x\r\n\r\n", b"405"),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", b"404"),
        (b"POST /callbacks/a%00b HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", b"401"),
        (b"POST /callbacks/a HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"POST /callbacks/a HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 4_000 + b"\r\n\r\n", b"4"),
        (b"POST /callbacks/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"4"),
        (b"POST /callbacks/a HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 200_000, b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (
            b"GET /callbacks/a HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            b"4",
        ),
    ],
)
async def test_what_is_no_callback_is_refused(
    request_bytes: bytes, status: bytes, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(port):
        answer = await asked(port, request_bytes)
        assert answer.split(b" ", 2)[1].startswith(status)
        async with httpx.AsyncClient() as client:
            signed = webhooks.signed(KEY, "msg_1", b"{}")
            assert (await client.post(f"http://127.0.0.1:{port}/callbacks/a", content=b"{}", headers=signed)).is_success
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_large_body_is_refused_whether_or_not_it_says_so(port: int) -> None:
    url = f"http://127.0.0.1:{port}/callbacks/a"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 100_000

    async with listening(port) as heard, httpx.AsyncClient() as client:
        assert (await client.post(url, content=b"x" * (BODY_MAX_BYTES + 1))).status_code == 413
        plausible = webhooks.signed(KEY, "msg_1", b"{}")
        assert (await client.post(url, content=chunks(), headers=plausible)).status_code == 413
    assert heard == []


async def test_a_body_that_does_not_come_is_not_waited_for(port: int) -> None:
    async with listening(port, body_within_s=0.3):
        plausible = webhooks.signed(KEY, "msg_1", b"{}")
        for headers in (plausible, {}):
            answer = await asked(port, request_of(headers, b"{", length=999_999))
            assert answer.split(b" ", 2)[1] == b"408"


async def test_a_sender_that_hangs_up_in_the_middle_leaves_no_traceback(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with listening(port) as heard:
        for headers in (webhooks.signed(KEY, "msg_1", b"{}"), {}):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request_of(headers, b"{", length=999_999))
            await writer.drain()
            writer.transport.abort()
        async with httpx.AsyncClient() as client:
            signed = webhooks.signed(KEY, "msg_1", b"{}")
            assert (await client.post(f"http://127.0.0.1:{port}/callbacks/a", content=b"{}", headers=signed)).is_success
    assert heard == [b"{}"]
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("begun", [b"", b"POST /callbacks/abc HT", request_of({}, b"x" * 50_000, length=999_999)])
async def test_however_many_connections_are_held_the_next_callback_is_heard(begun: bytes, port: int) -> None:
    held = []
    async with listening(port) as heard:
        for _ in range(3 * CONNECTIONS_MAX):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            held.append((reader, writer))
        async with httpx.AsyncClient() as client:
            signed = webhooks.signed(KEY, "msg_1", b"{}")
            answer = await client.post(f"http://127.0.0.1:{port}/callbacks/a", content=b"{}", headers=signed)
            assert answer.is_success

        async def over(reader: asyncio.StreamReader) -> bool:
            try:
                return await asyncio.wait_for(reader.read(1), 0.01) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        ended = [await over(reader) for reader, _ in held]
        assert sum(ended) >= 2 * CONNECTIONS_MAX
        for _, writer in held:
            writer.close()
    assert heard == [b"{}"]


async def test_a_connection_ends_in_time_whatever_it_does(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTION_MAX_S", 0.3)
    async with listening(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /callbacks/abc HTTP/1.1\r\n")
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(1), 30) == b"", "it has ended"
        writer.close()
