"""Why a measurement was given up, as a person has to hear it: the thing, the place and the cure.

A benchmark that has met any of these has measured nothing; no figure is given for it.
"""

from __future__ import annotations

from pathlib import Path


class BenchError(Exception):
    """A measurement that cannot be made."""


class RevisionError(BenchError):
    """Git cannot give the tree of a revision."""

    def __init__(self, command: str, why: str) -> None:
        super().__init__(
            f"`git {command}` failed: {why.strip()}. Name a commit, a tag or a branch, in a clone of the repository."
        )
        self.command = command


class WrongTreeError(BenchError):
    """The code that would run is not the code that was asked for."""

    def __init__(self, wanted: Path, loaded: str) -> None:
        super().__init__(f"{loaded} would run instead of the code in {wanted}. Is that tree laid out differently?")
        self.wanted = wanted
        self.loaded = loaded


class StackFailedError(BenchError):
    """`triptych up` did not bring the stack up."""

    def __init__(self, tree: str, code: int, logs: Path) -> None:
        super().__init__(f"`triptych up` of {tree} ended with code {code}. What it said stands above; logs in {logs}.")
        self.tree = tree
        self.code = code
        self.logs = logs


class ProcessGoneError(BenchError):
    """A process of the stack ended while it was measured."""

    def __init__(self, name: str, logs: Path) -> None:
        super().__init__(f"{name} ended while it was measured. Its log is in {logs}; --keep keeps it.")
        self.name = name
        self.logs = logs


class RunFailedError(BenchError):
    """A run that should have succeeded did not."""

    def __init__(self, playbook: str, status: str, reason: str) -> None:
        super().__init__(f"A run of {playbook} ended {status}: {reason}. Only runs that succeed are measured.")
        self.playbook = playbook
        self.status = status


class CallFailedError(BenchError):
    """A call over HTTP that should have succeeded did not."""

    def __init__(self, operation: str, upstream: str, answer: str) -> None:
        super().__init__(f"{operation} against {upstream} answered: {answer}. Only calls that succeed are measured.")
        self.operation = operation
        self.upstream = upstream


class NoOutcomeError(BenchError):
    """Runs are in flight and nothing has come out for a long time."""

    def __init__(self, playbook: str, waiting: int, after_s: float, logs: Path) -> None:
        super().__init__(
            f"No outcome for {after_s:.0f} s, with {waiting} runs of {playbook} in flight. "
            f"The services' logs are in {logs}; --keep keeps them."
        )
        self.playbook = playbook
        self.waiting = waiting
