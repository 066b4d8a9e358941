"""From a configuration and the addresses of the two servers to the processes of a stack.

A process spec says how a process is started and how it is asked for its health. It does not start anything.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx

from triptych.embedded.command import Command
from triptych.embedded.config import StackConfig, fill
from triptych.embedded.environment import inherited, named_in
from triptych.embedded.errors import UnknownServiceError
from triptych.embedded.layout import Layout
from triptych.embedded.orphans import option
from triptych.embedded.ports import HOST, Ports
from triptych.embedded.servers import EmbeddedServer
from triptych.tools import Source
from triptych.tools.sdk.guard import GUARD

_DETAIL_MAX_CHARS = 300


class ProcessKind(StrEnum):
    """What a process is to the stack; it decides the order in which processes are stopped."""

    SERVICE = "service"
    PROCESS = "process"
    KAFKA = "kafka"
    POSTGRES = "postgres"


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """What a process says of itself."""

    alive: bool
    ready: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process of a stack."""

    name: str
    kind: ProcessKind
    command: Command
    probe: Callable[[], Awaitable[HealthStatus]]
    url: str | None = None
    """Where its health is asked, for people and for stack.json."""
    stop_signal: int | None = None


def process_name(service: str, index: int) -> str:
    """Return the name of the index-th process (from 1) of a service."""
    return service if index == 1 else f"{service}-{index}"


def server_spec(server: EmbeddedServer, kind: ProcessKind) -> ProcessSpec:
    async def probe() -> HealthStatus:
        return HealthStatus(alive=True, ready=await asyncio.to_thread(server.is_ready))

    return ProcessSpec(server.name, kind, server.command(), probe, stop_signal=server.stop_signal)


@dataclass(frozen=True, slots=True)
class StackSpec:
    """What all process specs of one stack are built from."""

    config: StackConfig
    layout: Layout
    ports: Ports
    http: httpx.AsyncClient
    playbooks: Path
    topic_prefix: str

    def process(self, name: str) -> ProcessSpec:
        """Describe a process of the section [processes]."""
        entry = self.config.table.processes[name]
        port = self.ports.of(name)
        arguments = tuple(self._fill(argument, port) for argument in entry.command)
        environment = inherited(entry.pass_env) | self._environment(entry.env, port)
        url = f"http://{HOST}:{port}"
        command = Command(arguments, environment, directory=self.config.directory)
        return ProcessSpec(
            name, ProcessKind.PROCESS, command, self._probe(url + entry.health, url + entry.health), url + entry.health
        )

    def service(self, name: str, index: int, kafka: str, dsns: Mapping[str, str]) -> ProcessSpec:
        """Describe the index-th process (from 1) of a service or tool. Raises UnknownServiceError."""
        table = self.config.table
        arguments: tuple[str, ...]
        tool = table.tools.get(name)
        if service := table.services.get(name):
            arguments, own, schema, path = (service.module,), service.env, name, None
            passed = service.pass_env
        elif tool is not None:
            arguments, own, schema, path = ("triptych.tools", tool.adapter), tool.env, f"tool_{name}", tool.path
            passed = [*tool.pass_env, *named_in(tool.options)]
        else:
            raise UnknownServiceError(name, (*table.services, *table.tools))
        called = process_name(name, index)
        port = self.ports.of(called)
        given = inherited([*table.pass_env, *passed]) | self._environment({**table.env, **own}, port)
        environment = given | {
            "TRIPTYCH_KAFKA": kafka,
            "TRIPTYCH_POSTGRES": dsns[schema],
            "TRIPTYCH_TOPIC_PREFIX": self.topic_prefix,
            "TRIPTYCH_INSTANCE": f"{name}-{index}",
            "TRIPTYCH_LOG_FILE": str(self.layout.log(called)),
            "TRIPTYCH_HEALTH_HOST": HOST,
            "TRIPTYCH_HEALTH_PORT": str(port),
            "TRIPTYCH_PLAYBOOKS": str(self.playbooks),
        }
        if tool is not None:
            environment |= Source(name, tool.options, self.config.directory).environment()
            if tool.guard is not None:
                environment[GUARD] = tool.guard.model_dump_json(exclude_unset=True)
        if path is not None:
            known = environment.get("PYTHONPATH")
            own_path = str(self.config.directory / path)
            environment["PYTHONPATH"] = f"{own_path}{os.pathsep}{known}" if known else own_path
        # -P: a file of the folder, such as `mcp.py`, is not taken for the module of that name. `path` names folders.
        python = (sys.executable, "-P", *option(self.layout.root))
        command = Command((*python, "-m", *arguments), environment, directory=self.config.directory)
        health = f"http://{HOST}:{port}/health"
        return ProcessSpec(
            called, ProcessKind.SERVICE, command, self._probe(f"{health}/live", f"{health}/ready"), f"{health}/ready"
        )

    def _environment(self, configured: Mapping[str, str], port: int) -> dict[str, str]:
        """Give the variables that the file names. A value in the environment of `triptych up` wins over the file's."""
        return {name: os.environ.get(name, self._fill(text, port)) for name, text in configured.items()}

    def _fill(self, text: str, port: int) -> str:
        def value_of(placeholder: str) -> str:
            match placeholder.rpartition("."):
                case ("", _, "python"):
                    return sys.executable
                case ("", _, "data"):
                    return str(self.layout.root)
                case ("", _, _):
                    return str(port)
                case ("secret", _, name):
                    return self.layout.secret(name)
                case (process, _, _):
                    return f"http://{HOST}:{self.ports.of(process)}"

        return fill(text, value_of)

    def _probe(self, live: str, ready: str) -> Callable[[], Awaitable[HealthStatus]]:
        async def probe() -> HealthStatus:
            alive, _ = await self._ask(live)
            is_ready, detail = await self._ask(ready)
            return HealthStatus(alive, alive and is_ready, detail)

        return probe

    async def _ask(self, url: str) -> tuple[bool, str]:
        try:
            answer = await self.http.get(url)
        except httpx.HTTPError as error:
            return False, type(error).__name__
        return answer.is_success, "" if answer.is_success else answer.text[:_DETAIL_MAX_CHARS]
