"""The process that does the work, run as a file of its own. It imports nothing of Triptych, so that it starts quickly.

It forks for each piece of work and kills what takes too long. It ends when its parent closes the connection.
"""

from __future__ import annotations

import functools
import os
import pickle
import resource
import runpy
import select
import signal
import socket
import struct
import sys
import time
import types
from collections.abc import Callable
from typing import Any

FRAME = struct.Struct(">Q")
ANSWER_MAX_BYTES = 8 * 1_048_576
MEMORY_MAX_BYTES = 128 * 1_048_576
"""What a piece of work may take on top of what the process has."""


def matched(text: str, pattern: str) -> bool:
    """Return whether a pattern is in a text; linear. The same engine as in the parent."""
    import jsonschema_rs

    return jsonschema_rs.Draft202012Validator(
        {"pattern": pattern}, pattern_options=jsonschema_rs.RegexOptions()
    ).is_valid(text)


def evaluated(source: str, variables: dict[str, Any]) -> Any:
    import cel

    return cel.compile(source).execute(cel.Context(variables, {"matched": matched, "calculated": calculated}))


def calculated(*arguments: Any) -> Any:
    try:
        return arithmetic()["calculated"](*arguments)
    except MemoryError:
        os._exit(1)  # the library would make another error of it


@functools.cache
def arithmetic() -> dict[str, Any]:
    """Load the module beside this one. By its name it could not be imported without the package around it."""
    return runpy.run_path(os.path.join(os.path.dirname(__file__), "arithmetic.py"))  # noqa: PTH118, PTH120


def valid(schema: Any, value: Any, options: dict[str, int]) -> bool:
    import jsonschema_rs

    return jsonschema_rs.Draft202012Validator(
        schema, pattern_options=jsonschema_rs.FancyRegexOptions(**options), offline=True
    ).is_valid(value)


WORK: dict[str, Callable[..., Any]] = {"evaluate": evaluated, "is_valid": valid}


def done(work: str, arguments: tuple[Any, ...]) -> bytes:
    """Return the answer to a piece of work, as bytes."""
    try:
        answer = pickle.dumps(("done", WORK[work](*arguments)))
    except MemoryError:
        answer = pickle.dumps(("memory", ""))
    except Exception as error:  # noqa: BLE001 - the parent tells it
        missing = isinstance(error, KeyError | IndexError) and error.args
        answer = pickle.dumps(("missing" if missing else "failed", str(error.args[0] if missing else error)[:2_000]))
    return answer if len(answer) <= ANSWER_MAX_BYTES else pickle.dumps(("memory", ""))


def perform(request: bytes, output: int) -> None:
    """Do it within a limit of memory, in a process that ends afterwards."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
        most = int(statm.read().split()[0]) * resource.getpagesize() + MEMORY_MAX_BYTES + len(request)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work, arguments = pickle.loads(request)  # noqa: S301 - the parent wrote it
    view = memoryview(done(work, arguments))
    while view:
        view = view[os.write(output, view) :]


def answered(request: bytes, seconds: float) -> bytes:
    """Return the answer of a forked process, or that it was killed."""
    until = time.monotonic() + seconds
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            perform(request, writing)
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    os.close(writing)
    chunks: list[bytes] = []
    status = "memory"
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            status = "overrun"
            break
        if not (chunk := os.read(reading, 1_048_576)):
            break
        chunks.append(chunk)
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return b"".join(chunks) if chunks and status != "overrun" else pickle.dumps((status, ""))


def received(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (chunk := connection.recv(min(1_048_576, size - len(data)))):
            sys.exit(0)
        data += chunk
    return bytes(data)


def main() -> None:
    # The package of CEL loads a command line of its own, which takes longer than all the rest.
    sys.modules["cel.cli"] = types.ModuleType("cel.cli")
    import cel  # noqa: F401
    import jsonschema_rs  # noqa: F401

    arithmetic()
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.sendall(FRAME.pack(0))
    while True:
        (size,) = FRAME.unpack(received(connection, FRAME.size))
        seconds, request = pickle.loads(received(connection, size))  # noqa: S301 - the parent wrote it
        answer = answered(request, seconds)
        connection.sendall(FRAME.pack(len(answer)) + answer)


if __name__ == "__main__":
    sys.path.append(sys.argv[2])
    main()
