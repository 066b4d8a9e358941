"""Describes how one process of the stack is started. The caller decides how it is watched."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.embedded.environment import inherited, settings_in
from triptych.embedded.layout import Layout, begin_log
from triptych.embedded.orphans import mark


class CommandFailedError(Exception):
    """A command that should have ended well did not."""

    def __init__(self, name: str, code: int, output: str) -> None:
        super().__init__(f"{name} ended with code {code}: {output[-2_000:]}")
        self.name = name
        self.code = code
        self.output = output


@dataclass(frozen=True, slots=True)
class Command:
    """The arguments, the environment (added to what every process gets) and, where it must not be root, the user."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: int | None = None
    group: int | None = None
    directory: Path | None = None

    def differs(self, other: Command) -> bool:
        """Return whether a process would be another one, and not only started from another shell."""
        return (self.arguments, self.directory, settings_in(self.environment)) != (
            other.arguments,
            other.directory,
            settings_in(other.environment),
        )

    def start(self, layout: Layout, name: str) -> subprocess.Popen[bytes]:
        """Start it, with a log of its own."""
        with begin_log(layout.log(name)) as log:
            return subprocess.Popen(self.arguments, stdout=log, **self._options(layout))  # noqa: S603

    async def start_watched(self, layout: Layout, name: str) -> asyncio.subprocess.Process:
        """Start it, with a log of its own, to be waited for in the running event loop."""
        with begin_log(layout.log(name)) as log:
            return await asyncio.create_subprocess_exec(*self.arguments, stdout=log, **self._options(layout))

    def run(self, layout: Layout, *, timeout_s: float) -> None:
        """Run it to its end. Raises CommandFailedError."""
        done = subprocess.run(  # noqa: S603
            self.arguments, stdout=subprocess.PIPE, timeout=timeout_s, check=False, **self._options(layout)
        )
        if done.returncode:
            raise CommandFailedError(Path(self.arguments[0]).name, done.returncode, done.stdout.decode())

    def _options(self, layout: Layout) -> dict[str, Any]:
        return {
            "env": {**inherited(), **self.environment, **mark(layout.root)},
            "user": self.user,
            "group": self.group,
            "extra_groups": None if self.user is None else [],
            "cwd": self.directory,
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            # A Ctrl-C in a terminal is for the supervisor, which then stops its processes in order.
            "start_new_session": True,
        }
