"""What every driver of a product offers: install it, start it, keep runs in flight, stop it.

A driver measures nothing itself. The programs of a product run in its own environment and count there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from triptych_bench.figures import Window


class Way(StrEnum):
    """Where a step runs: in the process that runs its workflow, or in another one."""

    IN_PROCESS = "in process"
    OTHER_PROCESS = "other process"


@dataclass(frozen=True, slots=True)
class Hold:
    """How many runs to keep in flight, and for how long. `Load.hold` says what each number means."""

    in_flight: int
    settle_s: float
    window_s: float
    generations: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a product may work: a directory of its own, and the Postgres of the stack for databases of its own."""

    data: Path
    host: str
    port: int
    user: str
    password: str

    def database(self, name: str) -> str:
        """Return the URL of a database of this Postgres."""
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{name}"


@dataclass(frozen=True, slots=True)
class Card:
    """What a reader has to know of a product to judge its figures."""

    name: str
    """As `--beside` takes it."""
    title: str
    ways: Sequence[Way]
    databases: Sequence[str]
    """Databases that it needs in the Postgres of the stack."""
    promises: str
    source: str
    """Where its makers say so."""


class Driver(Protocol):
    """One product. Its methods block; they raise ProductError when the product cannot go on."""

    card: Card

    @property
    def version(self) -> str:
        """Return the version that the lock file pins."""

    def install(self) -> None:
        """Install the pinned packages in an environment of their own, if they are not there yet."""

    def start(self, place: Place) -> None:
        """Start the server, the workers and the client."""

    def hold(self, way: Way, hold: Hold) -> Window:
        """Keep runs in flight, check the result of each, and return what arrived in the window."""

    def stop(self) -> None:
        """End every process that was started, however far that got."""
