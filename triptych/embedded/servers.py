"""Postgres and Kafka alone, as children of the caller: what tests run on, and half of a stack.

Everything that can be done side by side is.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from triptych.embedded.command import Command
from triptych.embedded.errors import ProcessFailedError
from triptych.embedded.kafka import EmbeddedKafka
from triptych.embedded.layout import Layout, last_lines
from triptych.embedded.orphans import stop_orphans
from triptych.embedded.ports import Ports
from triptych.embedded.postgres import EmbeddedPostgres

_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_INTERVAL_S = 0.05


class EmbeddedServer(Protocol):
    """What Postgres and Kafka have in common."""

    @property
    def name(self) -> str: ...

    @property
    def stop_signal(self) -> signal.Signals: ...

    def prepare(self) -> None: ...

    def command(self) -> Command: ...

    def is_ready(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the two servers listen."""

    kafka: str
    """host:port"""
    owner_dsn: str
    """A connection string of the role that owns the cluster, to its database `postgres`."""


@contextmanager
def start_servers(data_dir: Path, progress: Callable[[str], None] = lambda _: None) -> Iterator[Servers]:
    """Start Postgres and Kafka in `data_dir`, give their addresses when both are ready, stop them at the end.

    Raises StackError.
    """
    layout = Layout.at(data_dir)
    stop_orphans(layout.root)
    ports = Ports(layout)
    postgres, kafka = EmbeddedPostgres.of(layout, ports), EmbeddedKafka.of(layout, ports, progress)
    with _running(layout, postgres, kafka):
        yield Servers(kafka=kafka.address, owner_dsn=postgres.dsn())


@contextmanager
def start_postgres(data_dir: Path) -> Iterator[str]:
    """Start Postgres alone in `data_dir`, give the owner's connection string, stop it at the end.

    Raises StackError.
    """
    layout = Layout.at(data_dir)
    stop_orphans(layout.root)
    postgres = EmbeddedPostgres.of(layout, Ports(layout))
    with _running(layout, postgres):
        yield postgres.dsn()


@contextmanager
def _running(layout: Layout, *servers: EmbeddedServer) -> Iterator[None]:
    """Start all of them side by side, wait until they are ready, and stop them at the end."""
    running: list[tuple[EmbeddedServer, subprocess.Popen[bytes]]] = []
    try:
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(lambda server: _start(server, layout, running), servers))
        yield
    finally:
        for server, process in running:
            process.send_signal(server.stop_signal)
        for _, process in running:
            _wait(process)


def _start(
    server: EmbeddedServer, layout: Layout, running: list[tuple[EmbeddedServer, subprocess.Popen[bytes]]]
) -> None:
    log = layout.log(server.name)
    server.prepare()
    process = server.command().start(layout, server.name)
    running.append((server, process))
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while not server.is_ready():
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            why = f"not ready after {_READY_TIMEOUT_S:.0f} s" if code is None else f"ended with code {code}"
            raise ProcessFailedError(server.name, why, log, last_lines(log))
        time.sleep(_INTERVAL_S)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
