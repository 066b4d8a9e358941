"""How an MCP server is reached: started as a process of its own, or found at a URL. Secrets come from the environment.

A server process ends with the stack. Of this environment it sees only the variables that an option names.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio

from triptych.tools.adapters.mcp.options import McpOptions
from triptych.tools.adapters.mcp.stdio import ServerDiagnostics, StdioServer, home_of, process_user, stdio
from triptych.tools.adapters.mcp.streamable_http import http_transport
from triptych.tools.sdk.redaction import Redactor
from triptych.tools.sdk.source import Source

STACK = "TRIPTYCH_STACK"
"""What the stack marks its processes with."""

Streams = tuple[Any, Any]
Transport = Callable[[ServerDiagnostics], AbstractAsyncContextManager[Streams]]
"""Opens a connection; what the server says beside it is told."""


def secrets_of(source: Source, options: McpOptions) -> dict[str, str]:
    """Return everything secret that is given to the server, by the variable that holds it.

    Raises:
        ConfigurationError: a variable is not set.
    """
    named = {*options.env, *options.headers_env.values(), *([options.token_env] if options.token_env else [])}
    return {name: source.secret(name).get_secret_value() for name in sorted(named)}


def transport_of(source: Source, options: McpOptions) -> Transport:
    """Return how the server is reached. Raises ConfigurationError when a secret is missing, or its user."""
    secrets = secrets_of(source, options)
    if not options.command:
        headers = {name: secrets[variable] for name, variable in options.headers_env.items()}
        if options.token_env:
            headers["Authorization"] = f"Bearer {secrets[options.token_env]}"
        url = source.secret(options.url_env).get_secret_value() if options.url_env else str(options.url)
        return lambda _said: http_transport(url, headers)
    command, *arguments = options.command
    account = process_user(options.user)
    server = StdioServer(
        command=(_found(command), *arguments),
        cwd=source.path(options.cwd),
        environment={name: secrets[name] for name in options.env} | _marks(),
        account=account,
        home=home_of(source.name, source.directory, account),
        clean=Redactor(source.secrets).masked,
    )
    return lambda said: stdio(server, said)


def _found(command: str) -> str:
    """Return the command on the path, or beside this Python: servers are often installed with Triptych."""
    return shutil.which(command) or shutil.which(command, path=str(Path(sys.executable).parent)) or command


def _marks() -> dict[str, str]:
    return {name: value for name in (STACK,) if (value := os.environ.get(name))}


@asynccontextmanager
async def watched(inner: AbstractAsyncContextManager[Streams], ended: Callable[[], None]) -> AsyncIterator[Streams]:
    """Wrap a transport so that it says when its stream has ended. The SDK only tells waiting requests."""
    async with inner as (read, write):
        yield _Ending(read, ended), write


class _Ending:
    """A read stream that says when it has ended."""

    def __init__(self, inner: Any, ended: Callable[[], None]) -> None:
        self._inner, self._ended = inner, ended

    @property
    def last_context(self) -> Any:
        return getattr(self._inner, "last_context", None)

    async def receive(self) -> Any:
        try:
            return await self._inner.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._ended()
            raise

    async def aclose(self) -> None:
        await self._inner.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._inner.__anext__()
        except (StopAsyncIteration, anyio.ClosedResourceError):
            self._ended()
            raise

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        left: bool | None = await self._inner.__aexit__(*exc)
        return left
