"""Why a run was given up, as a person has to hear it: the thing, the place and the cure."""

from __future__ import annotations

from pathlib import Path


class ChaosError(Exception):
    """A run that cannot go on. It says nothing about the guarantees."""


class ServerFailedError(ChaosError):
    """Kafka or Postgres did not come up."""

    def __init__(self, name: str, last_lines: str) -> None:
        super().__init__(f"{name} did not become ready. Is the machine overloaded? The end of its log:\n{last_lines}")
        self.name = name


class StackFailedError(ChaosError):
    """`triptych up` did not bring the services up."""

    def __init__(self, said: str, logs: Path) -> None:
        super().__init__(f"`triptych up` failed: {said.strip()}\nThe logs of the services are in {logs}.")
        self.logs = logs
