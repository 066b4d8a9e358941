"""Send HTTP requests: without cookies, with bounded bodies. Only reads follow redirects, and only on the same origin.

No answer of a server makes a client keep state, go to another origin, or read more than its limit.
"""

from __future__ import annotations

import codecs
import re
import zlib
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from triptych.kernel.process.tracing import upstream_headers
from triptych.schemas.result import ErrorCode
from triptych.tools.sdk.failure import ToolFailure

KEEPALIVE_S = 1.0
"""Servers drop idle connections after some seconds; a write on one that is being dropped has an unknown outcome."""
REDIRECTS_MAX = 5
ENCODINGS = "gzip, deflate"
"""What a body may be compressed with: what can be unpacked piece by piece, within a limit."""
_SESSION = re.compile(r"sess|sid|token|auth|jwt|csrf|xsrf", re.IGNORECASE)
_COOKIE_MIN_CHARS = 16
"""A shorter one may be an ordinary word of the data, such as a language or a country."""
_COOKIES_MAX = 20
_KEPT = ("content-type", "retry-after")
_LOCATION = "triptych.location"
_KEEPS_METHOD = frozenset({HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT})
_FOLLOWED = _KEEPS_METHOD | {HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND, HTTPStatus.SEE_OTHER}
_OF_THE_BODY = ("content-length", "content-type", "content-encoding", "transfer-encoding")
_UTF_8 = "utf-8"
_CHARSETS = frozenset({"ascii", "utf-8", "utf-8-sig", "latin-1", "gbk", "gb2312", "gb18030", "big5", "hz", "johab"})
_CHARSET_FAMILIES = ("utf-16", "utf-32", "iso8859", "iso2022", "cp", "koi8", "mac-", "euc_", "shift_jis", "tis-620")
"""Python also has codecs that are not charsets, such as `hex` and `zip`."""
_WINDOW = zlib.MAX_WBITS | 32
"""zlib: look at the first bytes whether it is gzip or zlib."""


def open_client(
    *, headers: dict[str, str] | None = None, timeout_s: float | None = None, **more: Any
) -> httpx.AsyncClient:
    """Return a client that keeps no cookies and follows no redirects.

    Without `timeout_s` the runtime's time limit is the only one: a limit of the client would hide it.
    """
    return httpx.AsyncClient(
        headers={"accept-encoding": ENCODINGS, **(headers or {})},
        cookies=no_cookies(),
        limits=httpx.Limits(keepalive_expiry=KEEPALIVE_S),
        timeout=timeout_s,
        follow_redirects=False,
        event_hooks={"request": [_add_origin_headers], "response": [_hide_location]},
        **more,
    )


def no_cookies() -> CookieJar:
    """Return a jar that takes no cookies: those of one tenant's call are not sent in another tenant's."""
    return CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))


async def _add_origin_headers(request: httpx.Request) -> None:
    """Send trace, run id and tenant, unless the operation says something else under these names."""
    for name, value in upstream_headers().items():
        request.headers.setdefault(name, value)


async def _hide_location(response: httpx.Response) -> None:
    """Keep httpx from parsing the target of a redirect. It raises for an invalid URL, and the status would be lost."""
    location = response.headers.pop("location", None)
    if location is not None:
        response.extensions[_LOCATION] = location


def location_of(response: httpx.Response) -> str | None:
    """Return the target of a redirect as the response states it."""
    hidden = response.extensions.get(_LOCATION, response.headers.get("location"))
    return hidden if isinstance(hidden, str) and hidden else None


async def exchange(
    client: httpx.AsyncClient, request: httpx.Request, *, auth: httpx.Auth | None = None, is_read: bool
) -> httpx.Response:
    """Send a request and give the answer, whose body has not been read. The caller closes it.

    Redirects of a read are followed as long as they stay on the origin. Any other redirect is the answer.
    """
    for _ in range(REDIRECTS_MAX):
        response = await client.send(request, stream=True, auth=auth)
        following = _following(request, response) if is_read else None
        if following is None:
            return response
        await response.aclose()
        request = following
    return await client.send(request, stream=True, auth=auth)


def session_cookies(response: httpx.Response) -> list[str]:
    """Return the values of the cookies that an answer sets and that look like secrets. None of them is ever sent."""
    found = []
    for stated in response.headers.get_list("set-cookie")[:_COOKIES_MAX]:
        pair, _, attributes = stated.partition(";")
        name, _, value = pair.partition("=")
        is_secret = "httponly" in attributes.lower() or _SESSION.search(name)
        if is_secret and len(value.strip()) >= _COOKIE_MIN_CHARS:
            found.append(value.strip())
    return found


def origin_of(url: httpx.URL) -> str:
    """Scheme, host and port, with the port that the scheme implies left out."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


async def read_body(response: httpx.Response, max_bytes: int, *, cut: bool = False) -> bytes:
    """Return the body, unpacked, of at most `max_bytes`. With `cut`, what is longer or cannot be unpacked is cut off.

    Raises:
        ToolFailure: it is longer, or broken, or compressed in a way that the request did not accept.
    """
    body = bytearray()
    try:
        await _read_into(body, response, max_bytes)
    except ToolFailure:
        if not cut:
            raise
    return bytes(body[:max_bytes])


async def _read_into(body: bytearray, response: httpx.Response, max_bytes: int) -> None:
    where = f"{response.request.method} {response.request.url.host}{response.request.url.path} answered"
    unpack = _unpacker(response.headers.get("content-encoding", ""), where)
    async for part in response.aiter_raw():
        body += unpack.take(part, max_bytes + 1 - len(body))
        if len(body) > max_bytes:
            message = f"{where} more than {max_bytes} bytes; ask for less data"
            raise ToolFailure(ErrorCode.CONTRACT_VIOLATION, message, undone=False)
    unpack.end()


async def read_response(response: httpx.Response, max_bytes: int, *, cut: bool = False) -> httpx.Response:
    """Return the response with its body, as `read_body` reads it, and of its headers those that say what it means."""
    body = await read_body(response, max_bytes, cut=cut)
    kept = {name: response.headers[name] for name in _KEPT if name in response.headers}
    if (location := location_of(response)) is not None:
        kept["location"] = location
    # Servers send headers in UTF-8 and Latin-1 as well, and httpx alone writes no more than ASCII.
    headers = httpx.Headers(kept, encoding=_UTF_8)
    return httpx.Response(response.status_code, headers=headers, content=body, request=response.request)


def body_text(response: httpx.Response) -> str:
    """Return the body as text, without a byte order mark: in the charset that it states, else in UTF-8.

    What is wrong is replaced.
    """
    return response.content.decode(charset_of(response) or _UTF_8, errors="replace").removeprefix("\ufeff")


def charset_of(response: httpx.Response) -> str | None:
    """Return the charset that a body states, by Python's name, or that its byte order mark shows.

    None where it states UTF-8, none, or one that is unknown.
    """
    if response.content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    name = _stated_charset(response)
    return None if name in {_UTF_8, "utf-8-sig", "ascii"} else name


def states_unknown_charset(response: httpx.Response) -> bool:
    """Return whether a body states a charset that is unknown here."""
    return _stated_charset(response) is None


def _stated_charset(response: httpx.Response) -> str | None:
    try:
        name = codecs.lookup(response.charset_encoding or _UTF_8).name
    except (LookupError, ValueError):
        return None
    return name if name in _CHARSETS or name.startswith(_CHARSET_FAMILIES) else None


def _following(request: httpx.Request, response: httpx.Response) -> httpx.Request | None:
    """Return the request that a redirect asks for; None where it is none, or leads to another origin."""
    status, location = response.status_code, location_of(response)
    if status not in _FOLLOWED or location is None:
        return None
    try:
        target = request.url.join(location)
    except (httpx.InvalidURL, ValueError):
        return None
    if origin_of(target) != origin_of(request.url) or target.userinfo:
        return None
    headers = request.headers.copy()
    if status in _KEEPS_METHOD or request.method == "GET":
        return httpx.Request(request.method, target, headers=headers, stream=request.stream)
    if status != HTTPStatus.SEE_OTHER:
        return None  # RFC 9110 leaves it open whether a POST stays one
    for name in _OF_THE_BODY:
        headers.pop(name, None)
    return httpx.Request("GET", target, headers=headers)


class _Plain:
    """A body that is not compressed."""

    def take(self, part: bytes, max_bytes: int) -> bytes:
        """Return at most `max_bytes` more of the body."""
        return part[:max_bytes]

    def end(self) -> None:
        """Do nothing: HTTP itself says where the body ends."""


class _Packed(_Plain):
    """A body in gzip or zlib. It never holds more bytes than it was asked for."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._unpacking = zlib.decompressobj(_WINDOW)
        self._has_begun = False

    def take(self, part: bytes, max_bytes: int) -> bytes:
        self._has_begun = self._has_begun or bool(part)
        taken = bytearray()
        try:
            while part and len(taken) < max_bytes:
                taken += self._unpacking.decompress(part, max_bytes - len(taken))
                part = self._unpacking.unconsumed_tail
                if self._unpacking.eof:
                    # Another member may follow (RFC 1952, 2.2).
                    part = self._unpacking.unused_data.lstrip(b"\0")
                    if part:
                        self._unpacking = zlib.decompressobj(_WINDOW)
        except zlib.error:
            raise self._broken() from None
        return bytes(taken)

    def end(self) -> None:
        if self._has_begun and not self._unpacking.eof:
            raise self._broken()

    def _broken(self) -> ToolFailure:
        message = f"{self._where} with a compressed body that is broken or ends too early"
        return ToolFailure(ErrorCode.CONTRACT_VIOLATION, message, undone=False)


def _unpacker(encoding: str, where: str) -> _Plain:
    match encoding.strip().lower():
        case "" | "identity":
            return _Plain()
        case "gzip" | "x-gzip" | "deflate":
            return _Packed(where)
    message = f"{where} with a body in the encoding {encoding[:40]!r}, and only {ENCODINGS} were asked for"
    raise ToolFailure(ErrorCode.CONTRACT_VIOLATION, message, undone=False)
