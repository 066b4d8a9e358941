"""Kafka and Postgres as children of the nemesis, which may kill, stop and empty them, behind a proxy each.

Services reach them through the proxies alone; the client and the checker have a way of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil

from triptych.embedded.kafka import EmbeddedKafka
from triptych.embedded.layout import Layout, last_lines
from triptych.embedded.orphans import MARK, stop_orphans
from triptych.embedded.ports import Ports
from triptych.embedded.postgres import EmbeddedPostgres
from triptych.embedded.servers import EmbeddedServer
from triptych.embedded.topics import create_topics
from triptych_chaos.errors import ServerFailedError
from triptych_chaos.proxy import HOST, Proxy

_READY_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 20.0
_INTERVAL_S = 0.1
_PERIOD_S = 0.25
"""The length of one turn of a stutter."""


class Managed:
    """A server and its process. The part that kills it starts it again."""

    def __init__(self, server: EmbeddedServer, layout: Layout, amend: Callable[[], None]) -> None:
        self._server, self._layout, self._amend = server, layout, amend
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready. Raises ServerFailedError."""
        await asyncio.to_thread(self._server.prepare)
        self._amend()
        self._process = self._server.command().start(self._layout, self._server.name)
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                while not await asyncio.to_thread(self._server.is_ready):
                    if self._process.poll() is not None:
                        raise ServerFailedError(self._server.name, last_lines(self._layout.log(self._server.name)))
                    await asyncio.sleep(_INTERVAL_S)
        except TimeoutError:
            raise ServerFailedError(self._server.name, last_lines(self._layout.log(self._server.name))) from None

    async def stop(self) -> None:
        """Ask it to stop, as an operator does; kill it if it does not."""
        if self._process is None:
            return
        self._process.send_signal(self._server.stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, _STOP_TIMEOUT_S)
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL of the process and all its children; returns when none of them is left."""
        family = self._family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(psutil.wait_procs, family, _STOP_TIMEOUT_S)

    def suspend(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def stutter(self, seconds: float, share: float) -> None:
        """Suspend the server for this share of the time."""
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            while asyncio.get_running_loop().time() < deadline:
                self.suspend()
                await asyncio.sleep(_PERIOD_S * share)
                self.resume()
                await asyncio.sleep(_PERIOD_S * (1 - share))
        finally:
            self.resume()

    def _family(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@dataclass(slots=True)
class Servers:
    """Both servers with their proxies."""

    kafka: Managed
    postgres: Managed
    kafka_proxy: Proxy
    postgres_proxy: Proxy
    kafka_address: str
    """Past the proxy."""
    owner_dsn: str
    """Past the proxy; the database is that of the cluster's owner."""
    layout: Layout
    ports: Ports
    create_topics: Callable[[], Awaitable[object]]

    @property
    def proxied_kafka(self) -> str:
        return f"{HOST}:{self.kafka_proxy.port}"

    def proxied_dsn(self, database: str) -> str:
        head, _, _ = self.owner_dsn.rpartition(":")
        return f"{head}:{self.postgres_proxy.port}/{database}"

    def managed(self, name: str) -> Managed:
        return self.kafka if name == "kafka" else self.postgres

    async def lose_log(self) -> None:
        """Kafka dies, and what comes up is another cluster that knows nothing; its topics are made again."""
        await self.kafka.kill()
        await asyncio.to_thread(shutil.rmtree, self.layout.kafka / "data")
        (self.layout.kafka / "formatted").unlink()
        await self.kafka.start()
        await self.create_topics()

    async def slow_commits(self, milliseconds: float) -> None:
        """Delay each flush of the write-ahead log by this much (at most 100 ms); 0 removes the delay."""
        connection = await asyncpg.connect(self.owner_dsn, timeout=10)
        try:
            for name, value in (("commit_delay", round(milliseconds * 1_000)), ("commit_siblings", 0)):
                order = f"alter system set {name} = {value}" if milliseconds else f"alter system reset {name}"
                await connection.execute(order)
            await connection.execute("select pg_reload_conf()")
        finally:
            await connection.close()


@asynccontextmanager
async def running(data: Path, prefix: str, tools: tuple[str, ...]) -> AsyncIterator[Servers]:
    """Start both in `data`, with their proxies, and stop them at the end, in any state."""
    layout = Layout.at(data)
    ports = Ports(layout)
    postgres = EmbeddedPostgres.of(layout, ports)
    kafka = EmbeddedKafka.of(layout, ports, lambda _: None)
    proxied, advertised = ports.of("kafka-proxied"), ports.of("kafka-proxy")
    servers = Servers(
        kafka=Managed(kafka, layout, lambda: _advertise(layout, kafka.address, proxied, advertised)),
        postgres=Managed(postgres, layout, lambda: None),
        kafka_proxy=Proxy("kafka", advertised, lambda: proxied),
        postgres_proxy=Proxy("postgres", ports.of("postgres-proxy"), lambda: postgres.port),
        kafka_address=kafka.address,
        owner_dsn=postgres.dsn(),
        layout=layout,
        ports=ports,
        create_topics=lambda: create_topics(kafka.address, prefix, tools),
    )
    async with AsyncExitStack() as opened:
        opened.callback(_end, layout)
        await asyncio.gather(servers.kafka.start(), servers.postgres.start())
        await opened.enter_async_context(servers.kafka_proxy)
        await opened.enter_async_context(servers.postgres_proxy)
        yield servers


def resume_all(root: Path) -> None:
    """Let every process of a data directory run again: one that is stopped cannot end."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(root):
                process.send_signal(signal.SIGCONT)


def _end(layout: Layout) -> None:
    resume_all(layout.root)
    stop_orphans(layout.root)


def _advertise(layout: Layout, address: str, proxied: int, advertised: int) -> None:
    """Add a second listener for clients that come through the proxy; it sends them back to the proxy."""
    file = layout.kafka / "server.properties"
    lines = []
    for line in file.read_text().splitlines():
        name, _, value = line.partition("=")
        match name:
            case "listeners":
                value += f",PROXIED://{HOST}:{proxied}"
            case "advertised.listeners":
                value = f"PLAINTEXT://{address},PROXIED://{HOST}:{advertised}"
            case "listener.security.protocol.map":
                value += ",PROXIED:PLAINTEXT"
        lines.append(f"{name}={value}\n")
    file.write_text("".join(lines))
