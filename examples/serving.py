"""Runs an example server on uvicorn, with what a server needs in order to fail like a real one.

A response can be replaced by a connection that is cut at the socket. Nothing here knows what is served.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

TRANSPORT = "triptych.transport"
SHUTDOWN_GRACE_S = 5


class SeveringProtocol(H11Protocol):
    """HTTP/1.1 that hands each request the transport it came on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        served = cast("ASGIApp", self.app)

        async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
            scope[TRANSPORT] = transport
            await served(scope, receive, send)

        self.app = with_transport


class SeveredResponse(Response):
    """No response at all: the client sees its connection reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        transport: asyncio.Transport = scope[TRANSPORT]
        transport.abort()
        # Return only once uvicorn knows; otherwise it would call the missing response an error of ours.
        while (await receive())["type"] != "http.disconnect":
            pass


class HalfResponse(Response):
    """Half of another response; then the connection is closed."""

    def __init__(self, whole: Response) -> None:
        super().__init__(bytes(whole.body), whole.status_code, whole.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: len(self.body) // 2], "more_body": True})
        transport: asyncio.Transport = scope[TRANSPORT]
        transport.close()
        while (await receive())["type"] != "http.disconnect":
            pass


def problem(status: int, detail: str, *, retry_after_s: float | None = None) -> JSONResponse:
    """Answer with an error as RFC 9457 writes it."""
    headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
    return JSONResponse({"status": status, "detail": detail}, status, headers, media_type="application/problem+json")


def bearer(request: Request) -> str | None:
    """Return the token of the Authorization header, if it is a bearer token."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def arguments(description: str) -> argparse.ArgumentParser:
    """Parse the options that every example server has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    return parser


def serve(app: Starlette, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; requests under way get a few seconds to finish. The process then exits with 0."""
    # uvicorn raises the signal again when it has shut down; without this the process would die of it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=SeveringProtocol,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
    )
