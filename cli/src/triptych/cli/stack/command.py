"""A command: how one process of the stack is started. Whoever starts it decides how it is watched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from triptych.cli.stack.layout import rotate


@dataclass(frozen=True, slots=True)
class Command:
    """The arguments, the environment (added to ours) and, when it must not be root, the user."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: int | None = None
    group: int | None = None
    directory: Path | None = None

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """Start it in a session of its own, so that a Ctrl-C in a terminal is ours to handle, not its."""
        rotate(log)
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603
                self.arguments,
                env={**os.environ, **self.environment},
                user=self.user,
                group=self.group,
                extra_groups=None if self.user is None else [],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *, timeout_s: float) -> None:
        """Run it to its end. Raises CommandFailedError."""
        done = subprocess.run(  # noqa: S603
            self.arguments,
            env={**os.environ, **self.environment},
            user=self.user,
            group=self.group,
            extra_groups=None if self.user is None else [],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise CommandFailedError(Path(self.arguments[0]).name, done.returncode, done.stdout)


class CommandFailedError(Exception):
    """A command that should have ended well did not."""

    def __init__(self, name: str, code: int, output: str) -> None:
        super().__init__(f"{name} ended with code {code}: {output[-2_000:]}")
        self.name = name
        self.code = code
        self.output = output
