"""The embedded Apache Kafka: one node in KRaft mode, broker and controller in one process.

It listens on the loopback interface alone and has no replicas; a deployment has three.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import signal
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiokafka.errors import KafkaError

from triptych.embedded.command import Command
from triptych.embedded.jars import kafka_jars
from triptych.embedded.java import find_java
from triptych.embedded.layout import Layout, write_atomically
from triptych.embedded.ports import HOST, Ports
from triptych.kernel.kafka.clients import Admin

_FORMAT_TIMEOUT_S = 60
# The quick compiler alone: a start costs 3.5 s of CPU instead of 5.4, and 50 MB less; a laptop's load needs no more.
_VIRTUAL_MACHINE = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)


@dataclass(frozen=True, slots=True)
class EmbeddedKafka:
    """One Kafka node in one data directory."""

    layout: Layout
    port: int
    controller_port: int
    java: Path
    jars: Path

    name = "kafka"
    stop_signal = signal.SIGTERM

    @classmethod
    def of(cls, layout: Layout, ports: Ports, progress: Callable[[str], None]) -> EmbeddedKafka:
        """Raises JarsUnavailableError and JavaMissingError."""
        return cls(layout, ports.of("kafka"), ports.of("kafka-controller"), find_java(), kafka_jars(progress))

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def _properties(self) -> Path:
        return self.layout.kafka / "server.properties"

    def prepare(self) -> None:
        """Write the configuration, and format the storage if it is new."""
        data = self.layout.kafka / "data"
        write_atomically(self._properties, self._configuration(data))
        if (self.layout.kafka / "formatted").exists():
            return
        shutil.rmtree(data, ignore_errors=True)  # a formatting that was interrupted
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # In one word with its option, since one in 64 ids begins with a dash.
        arguments = ("format", f"--cluster-id={cluster}", f"--config={self._properties}")
        self._java("kafka.tools.StorageTool", *arguments).run(self.layout, timeout_s=_FORMAT_TIMEOUT_S)
        write_atomically(self.layout.kafka / "formatted", cluster)

    def command(self) -> Command:
        return self._java("kafka.Kafka", str(self._properties))

    def is_ready(self) -> bool:
        """Return whether a broker is in its own metadata. Call it in a thread without an event loop."""
        return _listens(self.port) and asyncio.run(_has_broker(self.address))

    def _java(self, main: str, *arguments: str) -> Command:
        return Command(
            (str(self.java), *_VIRTUAL_MACHINE, *_LOGGING, "-cp", f"{self.jars}/*", main, *arguments),
            directory=self.layout.kafka,
        )

    def _configuration(self, data: Path) -> str:
        # Voters are named here, not in the storage (format --standalone), so that a new port is a new line and no more.
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{HOST}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(data),
            "num.partitions": "2",
            # Each message is handed from thread to thread; of eight that wait, the next to run is always a cold one.
            "num.network.threads": "1",
            "num.io.threads": "2",
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            # An open transaction of anybody's holds its partition back: for a minute at most, the default of producers.
            "transaction.max.timeout.ms": "60000",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            # A killed node may only come back when its old session is over, and it retries in steps of this length.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
            "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def _listens(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        return probe.connect_ex((HOST, port)) == 0


async def _has_broker(address: str) -> bool:
    admin = Admin(bootstrap_servers=address, request_timeout_ms=5_000)
    try:
        await admin.start()
        return bool((await admin.describe_cluster())["brokers"])
    except (KafkaError, OSError):
        return False
    finally:
        await admin.close()
