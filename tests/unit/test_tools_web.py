"""How adapters speak HTTP: nothing is remembered, nothing is followed elsewhere, and no body is larger than it may be."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import httpx
import httpx2
import pytest

from triptych.schemas import ErrorCode
from triptych.tools import ToolFailure
from triptych.tools.http.client import (
    REDIRECTS_MAX,
    body_text,
    exchange,
    no_cookies,
    open_client,
    read_body,
    read_response,
)

ORIGIN = "https://api.example"
Answer = Callable[[httpx.Request], httpx.Response]


def redirect(status: int, location: str) -> Answer:
    """Every path but /there answers with a redirect."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/there":
            return httpx.Response(200, text=f"{request.method} {request.content.decode()}")
        return httpx.Response(status, headers={"location": location})

    return answer


async def sent(answer: Answer, request: httpx.Request, *, is_read: bool = True) -> tuple[httpx.Response, list[str]]:
    """The answer, and the URLs that were asked for."""
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return answer(request)

    async with open_client(transport=httpx.MockTransport(handler)) as client:
        response = await exchange(client, request, is_read=is_read)
        await response.aread()
    return response, asked


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["/there", "there", f"{ORIGIN}/there", "//api.example:443/there", "HTTPS://API.example/there"]
)
async def test_a_redirect_of_a_read_is_followed_on_the_same_origin(status, location):
    response, asked = await sent(redirect(status, location), httpx.Request("GET", f"{ORIGIN}/here"))
    assert (response.status_code, len(asked)) == (200, 2)


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/there",
        "https://api.example.evil.example/there",
        "https://api.example:8443/there",
        "http://api.example/there",
        "https://user:password@api.example/there",
        "https://api.example@evil.example/there",
        "//evil.example/there",
        "///evil.example/there",
        "\\\\evil.example\\there",
        "javascript:alert(1)",
        "ftp://api.example/there",
        "https://[",
        "",
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_elsewhere_is_never_followed(status, location):
    _, asked = await sent(redirect(status, location), httpx.Request("GET", f"{ORIGIN}/here"))
    assert {httpx.URL(url).host for url in asked} == {"api.example"}
    assert {httpx.URL(url).scheme for url in asked} == {"https"}
    assert {httpx.URL(url).port for url in asked} == {None}


@pytest.mark.parametrize("status", [300, 304, 305, 306])
async def test_what_is_no_redirect_to_one_place_is_not_followed(status):
    _, asked = await sent(redirect(status, "/there"), httpx.Request("GET", f"{ORIGIN}/here"))
    assert len(asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_of_a_write_is_never_followed(status):
    request = httpx.Request("POST", f"{ORIGIN}/here", content=b"{}")
    _, asked = await sent(redirect(status, "/there"), request, is_read=False)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("status", "told"), [(303, "GET "), (307, "POST q=1"), (308, "POST q=1"), (301, None), (302, None)]
)
async def test_a_read_that_is_a_post_is_repeated_as_the_status_says_and_not_where_it_says_nothing(status, told):
    request = httpx.Request("POST", f"{ORIGIN}/search", content=b"q=1")
    response, _ = await sent(redirect(status, "/there"), request)
    assert (response.text if response.is_success else None) == told


async def test_redirects_that_lead_in_a_circle_come_to_an_end():
    _, asked = await sent(redirect(302, "/here"), httpx.Request("GET", f"{ORIGIN}/here"))
    assert len(asked) == REDIRECTS_MAX + 1


async def test_a_cookie_of_one_answer_is_in_no_other_request():
    seen: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("cookie"))
        cookie = {"set-cookie": "session=of-another-tenant; Path=/"}
        return httpx.Response(302 if len(seen) == 1 else 200, headers={"location": "/b", **cookie})

    async with open_client(transport=httpx.MockTransport(handler)) as client:
        for _ in range(2):
            response = await exchange(client, client.build_request("GET", f"{ORIGIN}/a"), is_read=True)
            await response.aclose()
    assert seen == [None, None, None]


def answer_of(body: bytes, encoding: str | None = None, chunk: int = 65_536) -> httpx.Response:
    async def stream():
        for at in range(0, len(body), chunk):
            yield body[at : at + chunk]

    headers = {} if encoding is None else {"content-encoding": encoding}
    return httpx.Response(200, headers=headers, content=stream(), request=httpx.Request("GET", ORIGIN))


@pytest.mark.parametrize("raw", ["é".encode(), "é".encode("latin-1"), "\u0663".encode()])
async def test_a_header_beyond_ascii_does_not_lose_an_answer(raw):
    headers = [(b"content-type", b"text/plain; x=" + raw), (b"retry-after", raw), (b"location", b"/" + raw)]
    answered = httpx.Response(
        200, headers=headers, stream=answer_of(b"ok").stream, request=httpx.Request("POST", ORIGIN)
    )
    whole = await read_response(answered, 100)
    assert whole.content == b"ok"
    assert [whole.headers[name] for name in answered.headers] == list(answered.headers.values())


@pytest.mark.parametrize("chunk", [1, 7, 65_536])
@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"hello", None),
        (b"hello", "identity"),
        (gzip.compress(b"hello"), "gzip"),
        (gzip.compress(b"he") + gzip.compress(b"llo"), "x-gzip"),
        (zlib.compress(b"hello"), "deflate"),
    ],
)
async def test_a_body_is_read_however_it_is_packed_and_cut_up(body, encoding, chunk):
    assert await read_body(answer_of(body, encoding, chunk), 5) == b"hello"


async def test_a_packed_body_never_takes_more_memory_than_it_may_have():
    bomb = gzip.compress(bytes(300_000_000), 9)
    tracemalloc.start()
    with pytest.raises(ToolFailure, match="more than 1000000 bytes"):
        await read_body(answer_of(bomb, "gzip"), 1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16_000_000


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip,deflate", "x" * 10_000])
async def test_a_body_that_is_packed_in_a_way_that_nobody_asked_for_is_refused(encoding):
    with pytest.raises(ToolFailure, match="were asked for") as caught:
        await read_body(answer_of(b"x", encoding), 100)
    assert (caught.value.code, caught.value.undone) == (ErrorCode.CONTRACT_VIOLATION, False)


@pytest.mark.parametrize("body", [gzip.compress(b"hello" * 99)[:-9], b"no gzip", gzip.compress(b"he") + b"\x1f\x8b"])
async def test_a_packed_body_that_is_broken_or_ends_too_early_is_not_taken_for_the_whole(body):
    with pytest.raises(ToolFailure, match="broken or ends too early"):
        await read_body(answer_of(body, "gzip"), 100_000)


@pytest.mark.parametrize(
    ("charset", "raw", "text"),
    [
        ("utf-8", "näh".encode(), "näh"),
        ("utf-8", "\ufeffnäh".encode(), "näh"),
        ("utf-16", "näh".encode("utf-16"), "näh"),
        ("utf-8", "näh".encode("utf-16"), "näh"),
        ("iso-8859-1", "näh".encode("latin-1"), "näh"),
        ("windows-1251", "да".encode("cp1251"), "да"),
        ("shift_jis", "はい".encode("shift_jis"), "はい"),
        ("binary", b"caf\xe9", "caf\ufffd"),
        ("uft-8", "café".encode(), "café"),
        ("utf-8,gbk", "café".encode(), "café"),
        ("hex", b"zz", "zz"),
        ("zip", b"zz", "zz"),
        ("idna", b"xn--zz", "xn--zz"),
        ("undefined", b"zz", "zz"),
        ("unicode_escape", rb"\x41", r"\x41"),
        ("a\0b", b"zz", "zz"),
    ],
)
def test_text_is_read_in_the_charset_that_it_states_if_that_is_one(charset, raw, text):
    response = httpx.Response(200, headers={"content-type": f"text/plain; charset={charset}"}, content=raw)
    assert body_text(response) == text


async def test_the_client_of_mcp_servers_keeps_no_cookies_either():
    seen: list[str | None] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers.get("cookie"))
        return httpx2.Response(200, headers={"set-cookie": "session=of-another-tenant; Path=/"})

    async with httpx2.AsyncClient(cookies=no_cookies(), transport=httpx2.MockTransport(handler)) as client:
        await client.get(ORIGIN)
        await client.get(ORIGIN)
    assert seen == [None, None]
