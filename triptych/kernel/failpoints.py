"""Fail points: named places where a test can make a process die, pause or lose its connection.

`hit` costs one comparison until `enable` has been called, and a service calls that only when two settings agree. A file
of its name then arms a place. The file is removed before the place strikes: a process that is started again does not
die of it again. A service must not depend on this module for its work.
"""

from __future__ import annotations

import os
import re
import signal
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

STRUCK = "struck"
"""The folder, beside the files that arm, to which a file goes when it strikes."""

_ORDER = re.compile(r"(kill|stop|cut):([1-9][0-9]*)")


class Action(StrEnum):
    """What happens to a process at a fail point."""

    KILL = "kill"
    """SIGKILL: nothing is flushed, nothing is told to anybody."""
    STOP = "stop"
    """SIGSTOP. After SIGCONT it goes on from here, as a process that was paused and does not know it."""
    CUT = "cut"
    """ConnectionResetError, as a driver raises it when the answer to what was just done is lost."""


class BadOrderError(ValueError):
    """A file that arms a fail point does not say what to do."""

    def __init__(self, file: Path, text: str) -> None:
        self.file, self.text = file, text
        super().__init__(
            f"{file}: {text!r} arms nothing; write kill:N, stop:N or cut:N, to strike at the N-th hit from now"
        )


class FailPoints:
    """The fail points of one process: `<folder>/decider.before_commit` holds `kill:25` and arms that place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hits: dict[str, int] = {}
        (folder / STRUCK).mkdir(parents=True, exist_ok=True)

    def due(self, name: str) -> Action | None:
        """Count a hit; the action when this is the one to strike at. Its file is gone then."""
        file = self._folder / name
        try:
            text = file.read_text()
        except FileNotFoundError:
            self._hits.pop(name, None)
            return None
        order = _ORDER.fullmatch(text.strip())
        if order is None:
            raise BadOrderError(file, text)
        hits = self._hits[name] = self._hits.get(name, 0) + 1
        if hits < int(order[2]):
            return None
        file.rename(self._folder / STRUCK / name)
        return Action(order[1])


CLOCK = "clock"
"""A file of this name, beside those that arm, holds the seconds by which the clock of this process is off."""

clock_error = timedelta()
"""What is added to the wall clock. Read once, when fail points are enabled; nothing anywhere else."""

_enabled: FailPoints | None = None


def enable(folder: Path) -> None:
    """Let files in `folder` arm the fail points of this process from now on, and set its clock off if told so."""
    global _enabled, clock_error  # noqa: PLW0603 - a fail point must fit in any line of any module, so it cannot be passed in
    _enabled = FailPoints(folder)
    if (clock := folder / CLOCK).exists():
        clock_error = timedelta(seconds=float(clock.read_text()))


def hit(name: str) -> None:
    """Mark a place where a crash would hurt."""
    if _enabled is not None and (action := _enabled.due(name)) is not None:
        strike(name, action)


def due(name: str) -> Action | None:
    """Count a hit of a place that has to prepare its end. The caller calls `strike` when it is time."""
    return None if _enabled is None else _enabled.due(name)


def strike(name: str, action: Action) -> None:
    """Do it."""
    match action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.CUT:
            raise ConnectionResetError(f"the fail point {name} has cut the connection")
