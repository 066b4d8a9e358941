"""What upstreams, token endpoints and documents on the web do that no HTTP library would: over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from triptych.commands.main import app
from triptych.kernel.errors import ConfigurationError
from triptych.schemas import ErrorCode, Result
from triptych.tools import Source, Tool
from triptych.tools.adapters.http_call import tool as http_tool
from triptych.tools.adapters.openapi import fetch
from triptych.tools.adapters.openapi import tool as openapi_tool
from triptych.tools.runtime.alerts import Alerts
from triptych.tools.runtime.drift import DriftWatch
from triptych.tools.runtime.process import load_tool
from triptych.tools.testing import call, running

SECRET = "s3cret-of-the-upstream"  # noqa: S105
Answer = Callable[[bytes], bytes | list[bytes]]


class Stranger:
    """A server that says whatever it is told to, and keeps what it was sent."""

    def __init__(self, answer: Answer, pause_s: float = 0.0) -> None:
        self._answer, self._pause_s = answer, pause_s
        self.requests: list[bytes] = []
        self.url = ""
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
            )
            self.requests.append(head + await reader.readexactly(length))
            said = self._answer(self.requests[-1])
            for part in said if isinstance(said, list) else [said]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(self._pause_s)
        writer.close()

    async def close(self) -> None:
        """Close every connection, also in the middle of an answer: one that outlives its test fails a later one."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


@asynccontextmanager
async def stranger(answer: Answer, pause_s: float = 0.0) -> AsyncIterator[Stranger]:
    one = Stranger(answer, pause_s)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        try:
            yield one
        finally:
            await one.close()


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join((*lines, "", "")).encode() + body


def orders(url: str, **more: Any) -> Tool:
    """A tool that writes and reads orders, as its process has it."""

    def operation(method: str, effect: str, **stated: Any) -> dict[str, Any]:
        return {"description": "Orders.", "method": method, "path": "/orders", "effect": effect, **stated}

    table = {
        "once": operation("POST", "once", body={}),
        "again": operation("POST", "idempotent", body={}, key={"header": "Idempotency-Key"}),
        "look": operation("GET", "read"),
    }
    return load_tool(
        "triptych.tools.adapters.http_call:tool", Source("shop", {"base_url": url, "operations": table, **more})
    )


JSON = "content-type: application/json"
ODD = {
    "see other": http("303 See Other", b"", "location: /orders/7"),
    "see other, to no URL": http("303 See Other", b"", "location: javascript:alert(1)"),
    "see other, to a broken URL": http("303 See Other", b"", "location: http://[::1"),
    "see other, to another scheme": http("302 Found", b"", "location: gopher://x/1"),
    "switching protocols": http("101 Switching Protocols", b"", "upgrade: h2c", "connection: upgrade"),
    "only a hint": b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
    "only continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    "a timeout": http("408 Request Timeout"),
    "misdirected": http("421 Misdirected Request"),
    "too early": http("425 Too Early"),
    "a teapot": http("418 I'm a teapot"),
    "for legal reasons": http("451 Unavailable For Legal Reasons"),
    "a bad gateway": http("502 Bad Gateway"),
    "a gateway timeout": http("504 Gateway Timeout"),
    "an unknown status": http("799 Whatever"),
    "a proxy that wants a password": http("407 Proxy Authentication Required", b"", "proxy-authenticate: Basic"),
    "a part": http("206 Partial Content", b"{}", JSON, "content-range: bytes 0-1/99"),
    "no HTTP": b"220 smtp.example ESMTP ready\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 201 Created\r\ncontent-le",
    "half a body": b"HTTP/1.1 201 Created\r\ncontent-length: 99\r\n" + JSON.encode() + b'\r\n\r\n{"a":',
    "half a chunk": b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n" + JSON.encode() + b'\r\n\r\n5\r\n{"a"',
    "two lengths": b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}x",
    "a length that is none": b"HTTP/1.1 201 Created\r\ncontent-length: -1\r\n\r\n{}",
    "a login page": http("200 OK", b"<!doctype html><html>Log in</html>", "content-type: text/html"),
    "a page that says it is JSON": http("200 OK", b"<!doctype html><html>Log in</html>", JSON),
    "an error in a success": http("200 OK", b'{"status":400}', "content-type: application/problem+json"),
    "packed in another way": http("201 Created", b"xxxx", JSON, "content-encoding: br"),
    "broken gzip": http("201 Created", gzip.compress(b'{"a": "' + b"b" * 999 + b'"}')[:-20], JSON, "content-encoding: gzip"),
    "a gzip bomb": http("201 Created", gzip.compress(bytes(50_000_000)), JSON, "content-encoding: gzip"),
    "a 404 of somebody else": http("404 Not Found", b"<!doctype html><html>", "content-type: text/html"),
    "GOAWAY of HTTP/2": b"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x28",
}  # fmt: skip


@pytest.mark.parametrize("operation", ["once", "again"])
@pytest.mark.parametrize("odd", ODD)
async def test_a_write_that_is_answered_in_an_odd_way_never_counts_as_nothing_done(odd: str, operation: str) -> None:
    async with stranger(lambda _: ODD[odd]) as one:
        error = (await call(orders(one.url), operation, {})).error
        assert len(one.requests) == 1, "it is sent once"
    assert error is not None
    assert error.details.get("effect") is None, error
    retried = {ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.INTERNAL}
    if operation == "once":
        # A retry asks the ledger first; what is not retried is in doubt, or has certainly been done.
        assert error.code in retried | {ErrorCode.IN_DOUBT, ErrorCode.CONTRACT_VIOLATION}, error
    if odd.startswith("see other") and operation == "once":
        assert error.code is ErrorCode.IN_DOUBT
        assert "answered 30" in error.message


async def test_a_write_that_nobody_listens_to_has_done_nothing() -> None:
    async with stranger(lambda _: b"") as one:
        nobody = one.url
    error = (await call(orders(nobody), "once", {})).error
    assert error is not None
    assert (error.code, error.details["effect"]) == (ErrorCode.UNAVAILABLE, "none")


async def test_a_read_goes_where_the_same_server_sends_it_with_its_credential() -> None:
    def answer(request: bytes) -> bytes:
        if request.startswith(b"GET /orders "):
            return http("307 Temporary Redirect", b"", "location: /orders/")
        return http("200 OK", b'{"found":true}', JSON)

    async with stranger(answer) as one:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHOP_KEY", SECRET)
            auth = {"kind": "api_key", "name": "X-Key", "key_env": "SHOP_KEY"}
            assert await call(orders(one.url, auth=auth), "look", {}) == Result.ok({"found": True})
        assert [SECRET.encode() in request for request in one.requests] == [True, True]


async def test_a_read_that_is_sent_elsewhere_is_not_followed_and_the_other_host_sees_nothing() -> None:
    async with stranger(lambda _: http("200 OK", b"{}", JSON)) as other:
        async with stranger(lambda _: http("302 Found", b"", f"location: {other.url}/orders")) as one:
            error = (await call(orders(one.url), "look", {})).error
        assert error is not None
        assert error.code is ErrorCode.CONTRACT_VIOLATION
        assert f"leads to {other.url}/orders" in error.message
        assert other.requests == []


async def test_an_answer_that_drips_ends_with_the_time_of_the_call() -> None:
    def drips(_: bytes) -> list[bytes]:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n" + JSON.encode() + b"\r\n\r\n"
        return [head, *([b"1"] * 1_000)]

    async with stranger(drips, pause_s=0.05) as one, running(orders(one.url)) as calls:
        result = await calls("look", {}, timeout_ms=500)
    assert result.error is not None
    assert result.error.code is ErrorCode.TIMEOUT


async def test_a_cookie_of_one_call_is_in_no_other_one() -> None:
    answer = http("200 OK", b"{}", JSON, "set-cookie: session=of-another-tenant; Path=/")
    async with stranger(lambda _: answer) as one, running(orders(one.url)) as calls:
        for operation in ("look", "again", "look"):
            assert (await calls(operation, {})).error is None
    assert not any(b"cookie" in request.lower() for request in one.requests)


async def test_a_session_that_an_upstream_opens_is_masked_where_it_is_quoted() -> None:
    session = "0123456789abcdef-of-a-session"
    body = json.dumps({"echo": f"your session is {session}", "lang": "english"}).encode()
    cookies = (f"set-cookie: sid={session}; HttpOnly; Path=/", "set-cookie: lang=english; Path=/")
    async with stranger(lambda _: http("200 OK", body, JSON, *cookies)) as one:
        data = (await call(orders(one.url), "look", {})).data
    assert data == {"echo": "your session is ***", "lang": "english"}


# Tokens


@asynccontextmanager
async def with_tokens(
    token: Answer, api: Answer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Any, Stranger, Stranger]]:
    monkeypatch.setenv("SHOP_ID", "an-id-of-ours")
    monkeypatch.setenv("SHOP_SECRET", SECRET)
    async with stranger(token) as issuer, stranger(api) as upstream:
        auth = {
            "kind": "client_credentials", "token_url": f"{issuer.url}/token",
            "client_id_env": "SHOP_ID", "client_secret_env": "SHOP_SECRET",
        }  # fmt: skip
        made = orders(upstream.url, auth=auth)
        async with running(made) as calls:
            yield calls, issuer, upstream


TOKEN = "t0ken-that-was-given-out-later"  # noqa: S105


async def test_a_token_is_masked_wherever_the_upstream_quotes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def api(request: bytes) -> bytes:
        quoted = next(line for line in request.decode().split("\r\n") if line.lower().startswith("authorization"))
        status = "200 OK" if request.startswith(b"GET") else "400 Bad Request"
        return http(status, json.dumps({"message": f"what is {quoted}?"}).encode(), JSON)

    token = http("200 OK", json.dumps({"access_token": TOKEN, "expires_in": 60}).encode(), JSON)
    async with with_tokens(lambda _: token, api, monkeypatch) as (calls, _, upstream):
        results = [await calls("look", {}), await calls("once", {})]
        assert all(TOKEN.encode() in request for request in upstream.requests)
    for result in results:
        assert TOKEN not in result.model_dump_json()
        assert "***" in result.model_dump_json()


@pytest.mark.parametrize(
    "token",
    [
        http("302 Found", b"", "location: https://evil.test/token"),
        http("307 Temporary Redirect", b"", "location: /token2"),
        http("200 OK", b'{"access_token": "a\\r\\nX-Admin: yes"}', JSON),
        http("200 OK", b'{"access_token": 7}', JSON),
        http("200 OK", b'{"access_token": null}', JSON),
        http("200 OK", b"[]", JSON),
        http("200 OK", b"x" * 100_000, JSON),
        http("200 OK", gzip.compress(bytes(50_000_000)), JSON, "content-encoding: gzip"),
        http("500 Internal Server Error"),
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{",
    ],
)
async def test_without_a_token_nothing_was_done_and_the_secret_goes_nowhere_else(
    token: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_tokens(lambda _: token, lambda _: http("200 OK", b"{}", JSON), monkeypatch) as (
        calls,
        issuer,
        upstream,
    ):
        error = (await calls("once", {})).error
        assert (len(issuer.requests), len(upstream.requests)) == (1, 0)
    assert error.details["effect"] == "none"
    assert error.code in {ErrorCode.UNAUTHENTICATED, ErrorCode.UNAVAILABLE}
    assert SECRET not in error.model_dump_json()


# Where a credential may go


def document(url: str, **more: Any) -> dict[str, Any]:
    answers = {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shop", "version": "1"},
        "servers": [{"url": url}],
        "security": [{"key": []}],
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "paths": {"/orders": {"get": {"operationId": "look", "responses": answers}}, **more},
    }


def shop(folder: Path, url: str, **options: Any) -> Tool:
    (folder / "shop.json").write_text(json.dumps(document(url)))
    auth = {"kind": "bearer", "token_env": "SHOP_TOKEN"}
    return openapi_tool(Source("shop", {"spec": "shop.json", "auth": auth, **options}, folder))


async def test_a_credential_goes_to_no_host_but_those_that_the_configuration_names(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SHOP_TOKEN", SECRET)
    async with stranger(lambda _: http("200 OK", b"{}", JSON)) as one:
        error = (await call(shop(tmp_path, one.url, hosts=["https://api.good.test"]), "look", {})).error
        assert error is not None
        assert error.code is ErrorCode.FORBIDDEN
        assert f"is at {one.url}" in error.message
        assert "tools.shop.options.hosts" in error.message
        assert one.requests == []
        assert (await call(shop(tmp_path, one.url, hosts=[one.url]), "look", {})).data == {}
        assert (await call(shop(tmp_path, one.url), "look", {})).data == {}, "as it is accepted"


async def test_an_operation_that_has_moved_gets_the_credential_only_when_its_host_is_named_too(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", SECRET)
    answer = http("200 OK", b"{}", JSON)
    async with stranger(lambda _: answer) as one, stranger(lambda _: answer) as other:
        made = shop(tmp_path, one.url, source="upstream.json")
        watching = DriftWatch(made, 0, Alerts(structlog.get_logger()), structlog.get_logger())
        async with running(made) as calls:
            (tmp_path / "upstream.json").write_text(json.dumps(document(other.url)))
            await watching.compare_now()
            assert "is not what was accepted" in (await calls("look", {})).error.message
            (tmp_path / "shop.json").write_text(json.dumps(document(other.url)))
            await watching.compare_now()
            error = (await calls("look", {})).error
        assert error.code is ErrorCode.FORBIDDEN
        assert "options.hosts" in error.message
        assert (one.requests, other.requests) == ([], [])


def test_a_token_url_on_a_host_that_may_not_have_the_secret_is_refused_when_the_tool_is_built(tmp_path) -> None:
    auth = {
        "kind": "client_credentials", "token_url": "https://evil.test/token",
        "client_id_env": "A", "client_secret_env": "B",
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"evil\.test, which is not in `hosts`"):
        shop(tmp_path, "https://api.good.test", hosts=["https://api.good.test"], auth=auth)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:hunter2@api.test/v1?key=hunter2", "a query"),
        ("https://{host}/v1", "no value"),
        ("ftp://api.test", "not a URL of the form"),
        ("https://good.test\\@evil.test", "no URL may have"),
        ("api.test/v1", "not a URL of the form"),
    ],
)
async def test_a_base_url_in_a_variable_that_is_none_is_refused_and_not_repeated(url, told, monkeypatch) -> None:
    monkeypatch.setenv("SHOP_URL", url)
    table = {"look": {"description": "Looks.", "path": "/x", "effect": "read"}}
    made = http_tool(Source("shop", {"base_url_env": "SHOP_URL", "operations": table}))
    with pytest.raises(ConfigurationError, match=told) as refused:
        await call(made, "look", {})
    assert "SHOP_URL" in str(refused.value)
    assert "hunter2" not in str(refused.value)


async def test_the_secret_parts_of_a_base_url_are_masked(monkeypatch) -> None:
    async with stranger(
        lambda request: http("200 OK", json.dumps({"echo": request.decode("latin-1")}).encode(), JSON)
    ) as one:
        monkeypatch.setenv("SHOP_URL", one.url.replace("://", "://ana:hunter2%2Fx@"))
        table = {"look": {"description": "Looks.", "path": "/x", "effect": "read"}}
        source = Source("shop", {"base_url_env": "SHOP_URL", "operations": table})
        made = http_tool(source)
        made.secrets = source.secrets
        result = await call(made, "look", {})
        assert b"Basic YW5hOmh1bnRlcjIveA==" in one.requests[0]
    assert "YW5hOmh1bnRlcjIve" not in result.model_dump_json()


# Documents on the web


async def test_a_document_that_has_moved_to_another_host_is_told_and_not_fetched_from_there() -> None:
    async with stranger(lambda _: http("200 OK", b"{}", JSON)) as other:
        async with stranger(lambda _: http("301 Moved Permanently", b"", f"location: {other.url}/api.json")) as one:
            with pytest.raises(ConfigurationError, match=f"has moved to {other.url}/api.json"):
                await fetch.downloaded(f"{one.url}/api.json?key={SECRET}")
        assert other.requests == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (http("200 OK", gzip.compress(bytes(100_000_000)), JSON, "content-encoding: gzip"), "more than 33554432 bytes"),
        (http("404 Not Found"), "answered 404"),
        (http("302 Found", b"", "location: javascript:x"), "has moved to"),
        (b"", "cannot be fetched"),
        (http("200 OK", b"x", "content-encoding: br"), "encoding 'br'"),
    ],
)
async def test_a_document_that_cannot_be_had_is_told_in_one_line_without_the_secrets_of_its_url(answer, told) -> None:
    async with stranger(lambda _: answer) as one:
        with pytest.raises(ConfigurationError, match=told) as refused:
            await fetch.downloaded(f"{one.url}/api.json?key={SECRET}")
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_a_document_that_drips_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(fetch, "FETCH_TIMEOUT_S", 0.5)

    def drips(_: bytes) -> list[bytes]:
        return [b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", *([b"{"] * 1_000)]

    async with stranger(drips, pause_s=0.05) as one:
        with pytest.raises(ConfigurationError, match="was not there in whole"):
            await fetch.downloaded(one.url)


async def test_adding_writes_down_where_the_credential_may_go(tmp_path: Path) -> None:
    (tmp_path / "triptych.toml").write_text("")
    (tmp_path / "shop.json").write_text(json.dumps(document("https://api.good.test:8443/v1")))
    command = ["tools", "add", "openapi", str(tmp_path / "shop.json"), "--name", "shop"]
    done = await asyncio.to_thread(CliRunner().invoke, app, [*command, "--config", str(tmp_path / "triptych.toml")])
    assert done.exit_code == 0, done.output
    assert 'hosts = ["https://api.good.test:8443"]' in (tmp_path / "triptych.toml").read_text()
