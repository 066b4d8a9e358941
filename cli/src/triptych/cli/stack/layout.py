"""The data directory: where everything of one stack lies, and how its small files are read and written.

Files that others read are replaced atomically. Secrets are readable by their owner alone.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

HOST = "127.0.0.1"

_PORTS = range(20_000, 30_000)
"""Below the range from which operating systems take the ports of outgoing connections."""

_PORT_TRIES = 200
_LOG_KEEP_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one stack."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> Layout:
        """Make the directory if need be and give its layout."""
        layout = cls(root.expanduser().resolve())
        for directory, mode in ((layout.root, 0o755), (layout.logs, 0o755), (layout.secrets, 0o700)):
            directory.mkdir(parents=True, exist_ok=True, mode=mode)
        return layout

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def kafka(self) -> Path:
        return self.root / "kafka"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def secret(self, name: str) -> str:
        """The secret of this name, made up at its first use."""
        path = self.secrets / name
        if not path.exists():
            write_atomically(path, secrets.token_urlsafe(24), mode=0o600)
        return path.read_text()

    def port(self, name: str) -> int:
        """The port of this name: the one of last time if it is still free, else another free one."""
        path = self.root / "ports.json"
        ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        known = ports.get(name)
        if known is not None and _is_free(known):
            return known
        ports[name] = free_port(avoid=ports.values())
        write_json(path, ports)
        return ports[name]


def free_port(avoid: Collection[int] = ()) -> int:
    """A TCP port on the loopback interface on which nothing listens."""
    for port in random.sample(_PORTS, _PORT_TRIES):
        if port not in avoid and _is_free(port):
            return port
    raise OSError(f"none of {_PORT_TRIES} ports tried between {_PORTS.start} and {_PORTS.stop} is free")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file so that a reader sees the old content or the new, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    write_atomically(path, json.dumps(value, indent=2) + "\n", mode=mode)


def last_lines(log: Path, count: int = 12) -> str:
    """The end of a log, for people."""
    if not log.exists():
        return "(no log)"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_KEEP_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-count:]) or "(the log is empty)"


def rotate(log: Path) -> BinaryIO:
    """A new log for a new start. The one of the start before is kept beside it."""
    if log.exists() and log.stat().st_size:
        log.replace(log.with_suffix(".log.1"))
    return log.open("ab")
