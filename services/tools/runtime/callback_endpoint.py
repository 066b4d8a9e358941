"""The HTTP endpoint of callbacks: limits on what strangers send, how much, for how long, and on how many connections.

Nothing of a request is believed, and nothing of it is kept longer than it takes to refuse it. Every request ends in a
status of the 2xx, 4xx or 503; none in a traceback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

BODY_MAX_BYTES = 1_000_000
BODY_WITHIN_S = 10.0
CONNECTION_MAX_S = 30.0
"""Every connection ends after this time. An upstream opens another."""
CONNECTIONS_MAX = 50
"""The one that is silent for longest ends when one more comes. With their bodies they hold 50 MB at most."""
_DRAIN_MAX_BYTES = 4 * BODY_MAX_BYTES
"""So much is read and dropped of a body that is refused, so that its sender reads the answer."""
_RETRY_AFTER_S = "5"

Handle = Callable[[str, bytes, Request], Awaitable[Response]]
"""Answers a request whose headers were accepted: the address's secret part, the body, the request itself."""
Refuse = Callable[[Request], str | None]
"""What is wrong with a request as far as its headers tell."""


def reply(status: HTTPStatus, what: str) -> JSONResponse:
    """Return an answer of the endpoint."""
    headers = {"retry-after": _RETRY_AFTER_S} if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse({"status": what}, status_code=status, headers=headers)


def endpoint(refuse: Refuse, handle: Handle, *, body_within_s: float = BODY_WITHIN_S) -> Starlette:
    """Return the application with `POST /callbacks/TOKEN` alone."""

    async def called(request: Request) -> Response:
        try:
            async with asyncio.timeout(body_within_s):
                if (answer := _refused(request, refuse)) is not None:
                    await _drain(request)
                    return answer
                body = await _body(request)
        except TimeoutError:
            return reply(HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {body_within_s:.0f} s")
        except ClientDisconnect:
            return reply(HTTPStatus.BAD_REQUEST, "the request broke off")
        if body is None:
            return _too_large()
        return await handle(request.path_params["token"], body, request)

    return Starlette(routes=[Route("/callbacks/{token}", called, methods=["POST"])])


def _refused(request: Request, refuse: Refuse) -> Response | None:
    """Return the answer to a request that is refused before its body is read."""
    stated = request.headers.get("content-length", "")
    if (
        stated.isascii()
        and stated.isdigit()
        and (len(stated) > len(str(BODY_MAX_BYTES)) or int(stated) > BODY_MAX_BYTES)
    ):
        return _too_large()
    if problem := refuse(request):
        return reply(HTTPStatus.UNAUTHORIZED, problem)
    return None


def _too_large() -> Response:
    return reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {BODY_MAX_BYTES} bytes")


async def _body(request: Request) -> bytes | None:
    """Return the whole body, or None when it is too large."""
    body = bytearray()
    stream = request.stream()
    async for part in stream:
        body += part
        if len(body) > BODY_MAX_BYTES:
            await stream.aclose()
            return None
    return bytes(body)


async def _drain(request: Request) -> None:
    left = _DRAIN_MAX_BYTES
    stream = request.stream()
    async for part in stream:
        left -= len(part)
        if left < 0:
            await stream.aclose()
            return


class BoundedProtocol(H11Protocol):
    """A connection with a time limit. The number of connections is limited too."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, in the place of the one that is silent for longest where all are taken."""
        super().connection_made(transport)
        self._made_at_s = self.loop.time()
        self._end = self.loop.call_later(CONNECTION_MAX_S, transport.abort)
        others: list[Any] = [one for one in self.connections if one is not self]
        if len(others) >= CONNECTIONS_MAX:
            waiting = [one for one in others if one.waits_for_sender] or others
            min(waiting, key=lambda one: one._made_at_s).transport.abort()  # noqa: SLF001 - of this same class

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._end.cancel()
        super().connection_lost(exc)

    @property
    def waits_for_sender(self) -> bool:
        """Return whether the sender has not sent a whole request."""
        cycle: Any = self.cycle
        return cycle is None or bool(cycle.more_body)
