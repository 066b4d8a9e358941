"""Why a measurement was given up, as a person has to hear it: the thing, the place and the cure.

A benchmark that has met any of these has measured nothing; no figure is given for it.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class UnknownProductError(BenchError):
    """`--beside` names something that there is no driver for."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"There is no driver for {name!r}. `--beside` takes {', '.join(known)}, separated by commas.")
        self.name = name


class NotDurableError(BenchError):
    """The Postgres that the products share would not keep what it has confirmed."""

    def __init__(self, setting: str, value: str) -> None:
        super().__init__(f"Postgres runs with {setting} = {value}. Products are compared with {setting} = on alone.")
        self.setting = setting


class ProductError(BenchError):
    """One product cannot be measured. The others can."""

    def __init__(self, product: str, message: str) -> None:
        super().__init__(message)
        self.product = product


class InstallError(ProductError):
    """A product's packages could not be had."""

    def __init__(self, product: str, why: str, cure: str) -> None:
        super().__init__(product, f"{product} could not be installed: {why}. {cure}, or leave it out of `--beside`.")


class ProductFailedError(ProductError):
    """A process of a product did not start, ended, or answered with something else than a result."""

    def __init__(self, product: str, what: str, log: Path | None) -> None:
        where = f" Its log is {log}; --keep keeps it." if log else ""
        super().__init__(product, f"{product}: {what}.{where}")
        self.log = log
