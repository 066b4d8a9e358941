"""The parent's side: one process that forks for each piece of work, started when the first one comes."""

from __future__ import annotations

import atexit
import io
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema_rs

from triptych.kernel.errors import TriptychError
from triptych.kernel.killable.child import FRAME
from triptych.schemas import Json

START_MAX_S: Final = 5.0
_GRACE_S: Final = 0.05
_CHILD: Final = Path(__file__).with_name("child.py")
_TYPES: Final = frozenset({"datetime", "timedelta", "timezone"})


class OverrunError(TriptychError):
    """A piece of work took longer than it may, or more memory. It was killed."""

    def __init__(self, what: str, limit: str) -> None:
        self.what, self.limit = what, limit
        super().__init__(f"{what} took more than {limit}, and was stopped")


class WorkFailed(TriptychError):
    """A piece of work failed by itself. `missing` names what was not there, where that is why."""

    def __init__(self, message: str, missing: str | None = None) -> None:
        self.message, self.missing = message, missing
        super().__init__(message)


def evaluate(source: str, variables: Mapping[str, Json], seconds: float) -> Any:
    """Evaluate a CEL expression.

    Raises:
        OverrunError: it was killed.
        WorkFailed: the expression has no value.
    """
    return _pool().run("evaluate", (source, dict(variables)), seconds)


def is_valid(schema: Json, value: Json, options: Mapping[str, int], seconds: float) -> bool:
    """Return whether a value fits a schema; `options` bound its patterns.

    Raises:
        OverrunError: it was killed.
        WorkFailed: the value is not JSON.
    """
    return bool(_pool().run("is_valid", (schema, value, dict(options)), seconds))


def prepare() -> None:
    """Start the process that works, so that the first piece of work need not wait for it. Waits some 0.1 s."""
    _pool().prepare()


@cache
def _pool() -> _Pool:
    return _Pool()


class _Pool:
    """A connection to the process that works. Used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self._stop)

    def run(self, work: str, arguments: tuple[Any, ...], seconds: float) -> Any:
        request = pickle.dumps((seconds, pickle.dumps((work, arguments))))
        with self._lock:
            try:
                connection = self._connected()
                connection.settimeout(seconds + _GRACE_S)
                connection.sendall(FRAME.pack(len(request)) + request)
                answer = _received(connection, seconds + _GRACE_S)
            except OSError as error:
                # It does not answer in time or is gone. The next piece of work gets another process.
                self._stop()
                limit = f"{seconds * 1_000:.0f} ms" if isinstance(error, TimeoutError) else "its process could bear"
                raise OverrunError(work, limit) from None
        status, content = _Values(io.BytesIO(answer)).load()
        match status:
            case "done":
                return content
            case "overrun":
                raise OverrunError(work, f"{seconds * 1_000:.0f} ms")
            case "memory":
                raise OverrunError(work, "128 MiB")
        raise WorkFailed(content, content if status == "missing" else None)

    def prepare(self) -> None:
        with self._lock:
            try:
                self._connected()
            except OSError:
                self._stop()  # the first piece of work tries again, and tells

    def _connected(self) -> socket.socket:
        if self._connection is None:
            ours, theirs = socket.socketpair()
            libraries = str(Path(jsonschema_rs.__file__).parents[1])
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own file
                    [sys.executable, "-I", "-S", str(_CHILD), str(theirs.fileno()), libraries],
                    env={},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            ours.settimeout(START_MAX_S)
            self._connection = ours
            _received(ours, START_MAX_S)
        return self._connection

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._connection = self._process = None

    def _forget(self) -> None:
        """Forget the connection: another process must not share it."""
        self._lock = threading.Lock()
        self._connection = self._process = None


class _Values(pickle.Unpickler):
    """Reads values and moments in time, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "datetime" and name in _TYPES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not a value")


def _received(connection: socket.socket, seconds: float) -> bytes:
    until = time.monotonic() + seconds
    (size,) = FRAME.unpack(_exactly(connection, FRAME.size, until))
    return _exactly(connection, size, until)


def _exactly(connection: socket.socket, size: int, until: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        connection.settimeout(max(0.001, until - time.monotonic()))
        if not (chunk := connection.recv(min(1_048_576, size - len(data)))):
            raise ConnectionError("the process that works has ended")
        data += chunk
    return bytes(data)
