"""How the command talks to a running supervisor: one JSON object a line, over a Unix socket.

The socket belongs to the user, so a process that can connect may control the stack.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from triptych.embedded.errors import FailedError, NoAnswerError, NotRunningError, RefusedError, StackError
from triptych.embedded.layout import Layout
from triptych.kernel.process.log import Logger
from triptych.schemas import codec

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

_PATH_MAX_BYTES = 100
"""A Unix socket's path is limited to about this; a deep data directory gets its socket elsewhere."""

_TIMEOUT_S = 30.0


def socket_path(layout: Layout) -> Path:
    path = layout.root / "control.sock"
    if len(str(path).encode()) <= _PATH_MAX_BYTES:
        return path
    return Path(tempfile.gettempdir()) / f"triptych-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.sock"


def ask(layout: Layout, request: dict[str, Any]) -> dict[str, Any]:
    """Send one request and give the answer.

    Raises:
        NotRunningError: no supervisor is there.
        NoAnswerError: nothing came back in time.
        RefusedError: it would not, and says why.
        FailedError: it met an error of its own.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(str(socket_path(layout)))
            connection.sendall(codec.encode(request) + b"\n")
            answer = connection.makefile("rb").readline()
        except (FileNotFoundError, NotADirectoryError, ConnectionError) as error:
            raise NotRunningError(layout.root) from error
        except TimeoutError as error:
            raise NoAnswerError(layout.root, _TIMEOUT_S) from error
    if not answer:
        raise NotRunningError(layout.root)
    content: dict[str, Any] = codec.decode(answer)
    if "refused" in content:
        raise RefusedError(content["refused"], layout.root)
    if "failed" in content:
        raise FailedError(content["failed"], layout.root)
    return content


@asynccontextmanager
async def serve(layout: Layout, answer: Answer, log: Logger) -> AsyncIterator[None]:
    """Answer requests while the body runs."""
    path = socket_path(layout)
    path.unlink(missing_ok=True)  # left by a supervisor that was killed; the lock says that none runs now

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = codec.decode(await reader.readline())
            try:
                reply = await answer(request)
            except StackError as error:
                reply = {"refused": f"{error.what}. {error.cure}"}
            except Exception as error:
                reply = {"failed": f"{type(error).__name__}: {error}"}
                log.exception("a request failed", request=request)
            writer.write(codec.encode(reply) + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the client is gone, or did not ask in JSON
        finally:
            writer.close()

    server = await asyncio.start_unix_server(handle, path)
    path.chmod(0o600)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)
