"""An MCP server as a process of its own: what it gets from us, how it is spoken to, and how it ends.

It sees a few variables, a home of its own and, where we are root, another user; it cannot read this process. Its lines
are bounded, on every stream, and it ends with all processes that it has started.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pwd
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import types
from mcp.os.posix.utilities import terminate_posix_process_tree
from mcp.shared.message import SessionMessage

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.process.folder_access import ClosedFolderError, let_enter
from triptych.kernel.process.log import Logger
from triptych.schemas import codec
from triptych.schemas.codec import InvalidJson
from triptych.tools.adapters.mcp import launch
from triptych.tools.adapters.mcp.wire import (
    ANSWER_MAX_BYTES,
    NOT_SENT,
    UNREADABLE,
    UnreadableError,
    error_of,
    id_in,
    is_answer,
    looks_like_answer,
    read,
)

LINE_GIVE_UP_BYTES = 16 * ANSWER_MAX_BYTES
"""A line that is too large is read to its end, for the next one; one without an end ends the connection."""
LOGGED_MAX_LINES, LOGGED_WITHIN_S = 20, 10.0
LOGGED_MAX_CHARS = 500
EXIT_WITHIN_S, KILL_AFTER_S = 2.0, 2.0
LAST_WORDS_WITHIN_S = 1.0
"""How long a server that went by itself is given to exit, and its standard error to end. Its children may hold that."""
NOBODY = "nobody"
"""Who a server is where we are root."""
_READ_BYTES = 65_536
_LOOK_BYTES = 4_096
_POLL_S = 0.01
_PR_SET_DUMPABLE = 4
_PATH = "/usr/local/bin:/usr/bin:/bin"

Streams = tuple[Any, Any]


class ServerDiagnostics:
    """What a server says beside the protocol: some of it is logged, the rest is counted."""

    def __init__(self, log: Logger | None = None) -> None:
        self._log_to = log
        self.last = ""
        """The last line of its standard error, or how it ended."""
        self._began, self._logged, self._left_out = 0.0, 0, 0

    def line(self, text: str) -> None:
        """Take a line of its standard error."""
        self.last = text[:LOGGED_MAX_CHARS]
        self._log("the MCP server says", self.last)

    def note(self, what: str) -> None:
        """Note something that it should not do."""
        self._log("the MCP server does not keep to the protocol", what[:LOGGED_MAX_CHARS])

    def ended(self, code: int | None) -> None:
        """Note how its process ended, if it ended by itself."""
        if code:
            self.last = f"{self.last}; " * bool(self.last) + f"its process ended with code {code}"

    def _log(self, event: str, text: str) -> None:
        if self._log_to is None:
            return
        now = time.monotonic()
        if now - self._began > LOGGED_WITHIN_S:
            if self._left_out:
                self._log_to.warning("the MCP server said more than is logged", lines=self._left_out)
            self._began, self._logged, self._left_out = now, 0, 0
        if self._logged < LOGGED_MAX_LINES:
            self._logged += 1
            self._log_to.warning(event, said=text)
        else:
            self._left_out += 1


@dataclass(frozen=True, slots=True)
class ProcessUser:
    """Who a server runs as."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class StdioServer:
    """A program that speaks MCP over its standard input and output."""

    command: Sequence[str]
    cwd: Path
    environment: Mapping[str, str]
    """The variables that an option names, beside PATH, HOME and the language."""
    account: ProcessUser
    home: Path
    clean: Callable[[str], str]
    """Masks what the server says of its secrets."""


def process_user(user: str | None) -> ProcessUser:
    """Return the user that a server runs as: of the option, or `nobody` if we are root, or our own.

    Raises:
        ConfigurationError: there is no such user, or we cannot become it.
    """
    ourselves = os.geteuid()
    if user is None:
        if ourselves != 0:
            return ProcessUser(ourselves, os.getegid())
        user = NOBODY
    try:
        found = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        raise ConfigurationError(f"the option user: there is no user {user} on this machine") from None
    if ourselves not in {0, found.pw_uid}:
        raise ConfigurationError(f"the option user: only root can start a server as {user}; leave the option out")
    return ProcessUser(found.pw_uid, found.pw_gid)


def home_of(name: str, directory: Path, account: ProcessUser) -> Path:
    """Return the home of a server. It stays between starts: package runners keep their downloads there."""
    digest = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:12]
    home = Path(tempfile.gettempdir()) / f"triptych-mcp-{name}-{digest}-{account.uid}"
    with suppress(FileExistsError):
        home.mkdir(mode=0o700)
        if account.uid != os.geteuid():
            os.chown(home, account.uid, account.gid)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or found.st_mode & 0o077:
        raise ConfigurationError(
            f"{home} must be the home of the MCP server {name}, and belongs to another user: remove it"
        )
    return home


def hide() -> None:
    """Let no process of our own user read the memory and the environment of this one. Root still can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


@asynccontextmanager
async def stdio(server: StdioServer, said: ServerDiagnostics) -> AsyncIterator[Streams]:
    """Start a server, give its streams to the body, and end it with the body."""
    if server.account.uid == os.geteuid():
        hide()
    else:
        _let_reach(server)
    launcher = [sys.executable, "-I", "-S", str(Path(launch.__file__))]
    about = [str(server.account.uid), str(server.account.gid), str(server.cwd.resolve()), str(server.home)]
    process = await anyio.open_process(
        [*launcher, *about, *server.command], env=_environment(server), cwd="/", start_new_session=True
    )
    pipes = _Pipes(process, server, said)
    async with anyio.create_task_group() as group:
        group.start_soon(pipes.read)
        group.start_soon(pipes.write)
        group.start_soon(pipes.log)
        try:
            yield pipes.incoming, pipes.outgoing
        finally:
            with anyio.CancelScope(shield=True):
                await pipes.close()
            group.cancel_scope.cancel()


def _let_reach(server: StdioServer) -> None:
    """Let the server's user pass through closed folders above its program, as root's own are; it reads none of them."""
    program = shutil.which(server.command[0]) or server.command[0]
    for part in launch.parts(program):
        with suppress(ClosedFolderError):  # the launcher tells what cannot be executed, and what to do
            let_enter(Path(part), server.account.uid)


def _environment(server: StdioServer) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", _PATH),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "HOME": str(server.home),
        **server.environment,
    }


class _Pipes:
    """What goes to and fro between a server's process and the SDK."""

    def __init__(self, process: Process, server: StdioServer, said: ServerDiagnostics) -> None:
        self._process, self._server, self._said = process, server, said
        self._to_session: MemoryObjectSendStream[SessionMessage | Exception]
        self.incoming: MemoryObjectReceiveStream[SessionMessage | Exception]
        self._to_session, self.incoming = anyio.create_memory_object_stream(0)
        self.outgoing: MemoryObjectSendStream[SessionMessage]
        self._from_session: MemoryObjectReceiveStream[SessionMessage]
        self.outgoing, self._from_session = anyio.create_memory_object_stream(0)
        self._waiting: dict[str, str] = {}
        """The methods of requests that have no answer yet, by id."""
        self._went, self._diagnostics_ended = anyio.Event(), anyio.Event()
        """It closed a pipe by itself; its standard error has been read to the end."""

    async def read(self) -> None:
        """Hand over what the server writes, line by line, until it ends."""
        assert self._process.stdout is not None  # noqa: S101 - it was started with a pipe
        lines = _Lines(self._process.stdout)
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            async with self._to_session:
                async for line, is_whole in lines:
                    if (message := self._message(line, is_whole=is_whole)) is not None:
                        await self._to_session.send(SessionMessage(message))
                self._went.set()

    def _message(self, line: bytes, *, is_whole: bool) -> Any:
        """Return what the SDK gets of a line: a message, an error in its place, or nothing."""
        if not line.strip():
            return None
        request_id = id_in(line)
        if not is_whole:
            return self._unreadable(request_id, f"it has more than {ANSWER_MAX_BYTES} bytes", line)
        try:
            message = read(line, None if request_id is None else self._waiting.get(str(request_id)))
        except UnreadableError as error:
            return self._unreadable(request_id, error.why, line)
        if is_answer(message) and message.id is not None and self._waiting.pop(str(message.id), None) is None:
            self._said.note("the server answers a request that was not made, or was answered already")
            return None
        return message

    def _unreadable(self, request_id: str | int | None, why: str, line: bytes) -> Any:
        if request_id is None and len(self._waiting) == 1 and looks_like_answer(line):
            request_id = next(iter(self._waiting))
        method = None if request_id is None else self._waiting.pop(str(request_id), None)
        if request_id is None or method is None:
            self._said.note(f"the server writes something to its output that is not a message: {why}")
            return None
        return error_of(request_id, UNREADABLE, why)

    async def write(self) -> None:
        """Send the server what the SDK gives."""
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        try:
            async with self._from_session:
                async for each in self._from_session:
                    await self._send(each.message)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            # It may live on without reading: callers that wait must hear that no answer will come.
            self._went.set()
            await self._to_session.aclose()

    async def _send(self, message: Any) -> None:
        assert self._process.stdin is not None  # noqa: S101 - it was started with a pipe
        is_request = isinstance(message, types.JSONRPCRequest)
        try:
            line = codec.encode(message.model_dump(mode="json", by_alias=True, exclude_unset=True)) + b"\n"
        except (InvalidJson, ValueError) as error:
            if is_request:
                await self._to_session.send(SessionMessage(error_of(message.id, NOT_SENT, str(error))))
            return
        if is_request:
            self._waiting[str(message.id)] = message.method
        await self._process.stdin.send(line)

    async def log(self) -> None:
        """Log what the server writes to its standard error, within bounds."""
        assert self._process.stderr is not None  # noqa: S101 - it was started with a pipe
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream, OSError):
            rest = b""
            while True:
                lines = (rest + await self._process.stderr.receive(_READ_BYTES)).split(b"\n")
                rest = lines.pop()[-_LOOK_BYTES:]
                for line in lines:
                    if text := self._server.clean(line.decode("utf-8", "replace").strip()):
                        self._said.line(text)
        self._diagnostics_ended.set()

    async def _exit(self, within_s: float) -> None:
        """Wait for the end of the process, and not for that of its pipes, which others may hold."""
        with anyio.move_on_after(within_s):
            while self._process.returncode is None:  # noqa: ASYNC110 - there is no event for it
                await anyio.sleep(_POLL_S)

    async def _hear_how_it_ended(self) -> None:
        """Note the exit code and the last words of a server that ended by itself.

        Its pipes end first: the system tells of the end of the process later, and the last words may still be unread.
        """
        if self._went.is_set():
            with anyio.move_on_after(LAST_WORDS_WITHIN_S):
                await self._exit(LAST_WORDS_WITHIN_S)
                await self._diagnostics_ended.wait()
        self._said.ended(self._process.returncode)

    async def close(self) -> None:
        """End the server and all that it has started."""
        await self._hear_how_it_ended()
        self.incoming.close()
        self.outgoing.close()
        started = _descendants(self._process.pid)
        with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            if self._process.stdin is not None:
                await self._process.stdin.aclose()
        await self._exit(EXIT_WITHIN_S)
        await terminate_posix_process_tree(self._process, KILL_AFTER_S)
        for pid in started - {self._process.pid}:
            _kill(pid, self._server.account.uid)
        await self._exit(KILL_AFTER_S)
        for stream in (self._process.stdout, self._process.stderr):
            with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                if stream is not None:
                    await stream.aclose()
        _forget(self._process)


class _Lines:
    """The lines of a stream, each with whether it is whole. Of a longer one its first and last bytes are left."""

    def __init__(self, stream: ByteReceiveStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[tuple[bytes, bool]]:
        line, left_out = bytearray(), 0
        async for chunk in self._stream:
            begin = 0
            while (end := chunk.find(b"\n", begin)) >= 0:
                line += chunk[begin:end]
                yield bytes(line), not left_out and len(line) <= ANSWER_MAX_BYTES
                line, left_out, begin = bytearray(), 0, end + 1
            line += chunk[begin:]
            if len(line) > ANSWER_MAX_BYTES + _READ_BYTES:
                left_out += len(line) - 2 * _LOOK_BYTES
                line = line[:_LOOK_BYTES] + line[-_LOOK_BYTES:]
                if left_out > LINE_GIVE_UP_BYTES:
                    yield bytes(line), False
                    return
        if line:
            yield bytes(line), not left_out


def _forget(process: Process) -> None:
    """Close our ends of the pipes, which somebody else may hold open; anyio has no other way to them."""
    transport = getattr(getattr(process, "_process", None), "_transport", None)
    if (close := getattr(transport, "close", None)) is not None:
        with suppress(OSError):
            close()


def _descendants(pid: int) -> set[int]:
    """Return a process and all that it has started, as far as they still hang together."""
    children: dict[int, set[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, set()).add(int(folder.name))
    found, new = {pid}, {pid}
    while new:
        new = {child for each in new for child in children.get(each, ())} - found
        found |= new
    return found


def _kill(pid: int, uid: int) -> None:
    """Kill a process that is still the user's: the number may be another's by now."""
    with suppress(OSError):
        if Path(f"/proc/{pid}").stat().st_uid == uid:
            os.kill(pid, 9)
