"""The process that keeps a stack running: `python -m triptych.embedded.supervisor`, started by `triptych up`.

It starts what it can side by side, keeps stack.json true, takes over what has changed, and answers the command.
When it is killed its children live on; the next `up` stops them before it starts the stack again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.conninfo import conninfo_to_dict

from triptych.embedded.config import StackConfig
from triptych.embedded.control import serve
from triptych.embedded.environment import adopted
from triptych.embedded.errors import AlreadyRunningError, DatabaseError, NoRoomError, StackError, UnknownServiceError
from triptych.embedded.kafka import EmbeddedKafka
from triptych.embedded.layout import Layout, write_json
from triptych.embedded.options import StackOptions
from triptych.embedded.orphans import stop_orphans
from triptych.embedded.ports import Ports
from triptych.embedded.postgres import EmbeddedPostgres
from triptych.embedded.stack_spec import ProcessKind, ProcessSpec, StackSpec, process_name, server_spec
from triptych.embedded.supervised_process import ProcessState, SupervisedProcess
from triptych.embedded.topics import create_topics
from triptych.kernel.errors import TriptychError
from triptych.kernel.postgres.migrate import PreparedDatabase, Schema, prepare
from triptych.kernel.process.log import Logger, configure_logging
from triptych.kernel.process.log_file import MAX_BYTES, LogFile
from triptych.schemas import codec

MAX_PROCESSES = 32
"""The most processes of one service. More of them than Kafka has partitions have nothing to do."""

_READY_TIMEOUT_S = 60.0
_FAILURE_KEPT_S = 10.0
_RETENTION_EVERY_S = 24 * 3_600.0
_OURS = (ProcessKind.SERVICE, ProcessKind.PROCESS)
_FIXED = ("topic_prefix", "kafka", "postgres")
"""What a stack is told when it starts and keeps for as long as it runs."""
_STOP_ORDER = ((ProcessKind.SERVICE,), (ProcessKind.PROCESS,), (ProcessKind.KAFKA,), (ProcessKind.POSTGRES,))


class Supervisor:
    """One running stack."""

    def __init__(self, options: StackOptions, layout: Layout, log: Logger, http: httpx.AsyncClient) -> None:
        self.stopping = asyncio.Event()
        self._options = options
        self._layout = layout
        self._log = log
        self._ports = Ports(layout)
        self._config = StackConfig.load(options.config)
        self._stack_spec = StackSpec(
            config=self._config,
            layout=layout,
            ports=self._ports,
            http=http,
            playbooks=_playbooks(options, self._config),
            topic_prefix=options.topic_prefix,
        )
        self._processes: dict[str, SupervisedProcess] = {}
        remembered = layout.read_scale()
        self._scale = {name: min(remembered.get(name, 1), MAX_PROCESSES) for name in _services(self._config)}
        self._scaling = asyncio.Lock()
        self._kafka = ""
        self._prepared: PreparedDatabase | None = None
        self._doing = "starting"
        self._failure: str | None = None
        self._failure_seen = asyncio.Event()
        self._started = False
        self._retention: asyncio.Task[None] | None = None

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer the command. Raises StackError for what it refuses."""
        match request:
            case {"do": "status"}:
                return self._status()
            case {"do": "scale", "service": str(service), "count": int(count)}:
                return {"processes": await self._scale_to(service, count)}
            case {"do": "processes", "service": str(service)}:
                return {"processes": self._processes_of(service)}
            case {"do": "restart", "process": str(process)}:
                return {"processes": await self._restart(process)}
            case {"do": "configure"}:
                options = StackOptions.model_validate(request["options"]) if "options" in request else self._options
                return await self._configure(options, request.get("environment"))
            case {"do": "stop"}:
                self.stopping.set()
                return {"pid": os.getpid()}
        raise StackError("This supervisor does not know that request", where="control", cure="Is it an older version?")

    async def run(self) -> int:
        """Start everything, wait until told to stop, stop everything; give the exit code."""
        starting = asyncio.create_task(self._start(), name="start")
        stopped = asyncio.create_task(self.stopping.wait(), name="stop")
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if not starting.done():
                starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            await stopped
        except Exception as error:  # noqa: BLE001 (`up` must hear of any error, and the children must be stopped)
            cause = _first_cause(error)
            cause = NoRoomError.if_full(self._layout.root, cause) or cause
            self._failure = str(cause) if isinstance(cause, StackError | TriptychError) else repr(cause)
            self._log.error(
                "cannot start", why=self._failure, exc_info=not isinstance(cause, StackError | TriptychError)
            )
        self._doing = "stopping"
        await self._stop()
        if self._failure is not None:
            with contextlib.suppress(TimeoutError):  # `up` waits for the reason
                await asyncio.wait_for(self._failure_seen.wait(), _FAILURE_KEPT_S)
            return 1
        return 0

    async def _start(self) -> None:
        began = time.monotonic()
        orphans = await asyncio.to_thread(stop_orphans, self._layout.root)
        if orphans:
            self._log.warning("stopped what a supervisor that died left running", processes=orphans)
        for name in self._config.table.processes:
            self._supervise(self._stack_spec.process(name))
        async with asyncio.TaskGroup() as both:
            postgres = both.create_task(self._start_postgres(), name="start postgres")
            kafka = both.create_task(self._start_kafka(), name="start kafka")
        self._prepared, self._kafka = postgres.result(), kafka.result()
        self._doing = "starting the services"
        for service, count in self._scale.items():
            for index in range(1, count + 1):
                self._supervise(self._service(service, index))
        self._started = True
        self._retention = asyncio.create_task(self._remove_old_runs(), name="retention")
        self._changed()
        self._log.info("started", after_s=round(time.monotonic() - began, 1))

    async def _start_postgres(self) -> PreparedDatabase:
        owner = self._options.postgres
        if owner is None:
            server = EmbeddedPostgres.of(self._layout, self._ports)
            await asyncio.to_thread(server.prepare)
            await self._supervise(server_spec(server, ProcessKind.POSTGRES)).ready(_READY_TIMEOUT_S)
            owner = server.dsn(self._options.topic_prefix)
        prepared = await asyncio.to_thread(self._prepare, owner, self._config)
        if prepared.created:
            self._log.info("database created")
        for reason in prepared.postponed:
            self._log.warning("a migration waits", reason=reason)
        return prepared

    def _prepare(self, owner: str, config: StackConfig) -> PreparedDatabase:
        """Bring the database to what a configuration needs."""
        schemas = [
            Schema(name, self._layout.secret(f"postgres-{name}"), migrations)
            for name, migrations in config.schema_migrations().items()
        ]
        operator = self._layout.secret("postgres-operator")
        try:
            return prepare(owner, self._options.topic_prefix, schemas, operator)
        except psycopg.Error as error:
            parts = conninfo_to_dict(owner)
            where = " ".join(f"{name}={part}" for name, part in parts.items() if name != "password")
            raise DatabaseError(str(error), where) from error

    async def _remove_old_runs(self) -> None:
        """Do what `triptych retention` does, now and once a day."""
        from triptych.operator.retention import remove_old  # noqa: PLC0415 (as above: not before it is needed)

        while self._prepared is not None:
            keep = timedelta(days=self._config.table.retention_days)
            try:
                report = await asyncio.to_thread(remove_old, self._prepared.owner, datetime.now(UTC), keep)
            except psycopg.Error as error:
                self._log.warning("retention failed; it is tried again tomorrow", why=str(error))
            except Exception:  # noqa: BLE001 - no caller waits for this task: an unexpected error would end it without a word
                self._log.exception("retention failed; it is tried again tomorrow")
            else:
                rows, waiting = sum(report.rows.values()), [str(week.week) for week in report.weeks if week.waits]
                self._log.info("retention", weeks=len(report.weeks), rows=rows, made=len(report.made), waiting=waiting)
            await asyncio.sleep(_RETENTION_EVERY_S)

    async def _start_kafka(self) -> str:
        address = self._options.kafka
        if address is None:
            server = await asyncio.to_thread(EmbeddedKafka.of, self._layout, self._ports, self._say)
            await asyncio.to_thread(server.prepare)
            await self._supervise(server_spec(server, ProcessKind.KAFKA)).ready(_READY_TIMEOUT_S)
            address = server.address
        await self._create_topics(address, self._config)
        return address

    async def _create_topics(self, kafka: str, config: StackConfig) -> list[str]:
        grown = await create_topics(kafka, self._options.topic_prefix, config.table.tools, config.table.partitions)
        for name in grown:
            self._log.warning("partitions were added, as many as another topic that the executor reads has", topic=name)
        return grown

    async def _stop(self) -> None:
        if self._retention is not None:
            self._retention.cancel()
        for kinds in _STOP_ORDER:
            await asyncio.gather(*(each.stop() for each in self._processes.values() if each.spec.kind in kinds))
        (self._layout.root / "stack.json").unlink(missing_ok=True)

    async def _scale_to(self, service: str, count: int) -> list[str]:
        self._check_started(service)
        if service not in self._scale:
            raise StackError(
                "It is one process", where=f"processes.{service}", cure="Only services and tools are scaled."
            )
        if not 1 <= count <= MAX_PROCESSES:
            raise StackError(f"{count} processes", where=service, cure=f"Choose from 1 to {MAX_PROCESSES}.")
        async with self._scaling:
            missing = [self._service(service, index) for index in range(self._scale[service] + 1, count + 1)]
            for spec in missing:
                self._supervise(spec)
            surplus = [process_name(service, index) for index in range(count + 1, self._scale[service] + 1)]
            self._scale[service] = count
            self._remember_scale()
            await asyncio.gather(*(self._processes[name].stop() for name in surplus))
            for name in surplus:
                del self._processes[name]
            self._changed()
        return [process_name(service, index) for index in range(1, count + 1)]

    async def _restart(self, process: str) -> list[str]:
        """Stop a process and start it again, as the configuration has it now."""
        self._check_started()
        async with self._scaling:
            spec = self._specs(self._stack_spec, self._scale, self._dsns).get(process)
            if spec is None:
                raise UnknownServiceError(process, self._names)
            await self._processes[process].stop()
            self._supervise(spec)
            self._changed()
        return [process]

    def _processes_of(self, name: str) -> list[str]:
        """Return the processes of a service or a tool, or one of the section [processes]."""
        self._check_started(name)
        return [process_name(name, index) for index in range(1, self._scale.get(name, 1) + 1)]

    async def _configure(self, options: StackOptions, environment: Mapping[str, str] | None) -> dict[str, Any]:
        """Take over configuration, options, secrets and environment as they are now.

        What is new is started, and what is gone is stopped. What has changed is named; the caller restarts it.
        """
        self._check_started()
        async with self._scaling:
            with adopted(environment):
                # If a port or room on the disk is missing, this fails before anything is changed.
                config = StackConfig.load(options.config)
                grown = await self._create_topics(self._kafka, config)
                prepared = await asyncio.to_thread(self._prepare, await self._owner(), config)
                stack_spec = replace(self._stack_spec, config=config, playbooks=_playbooks(options, config))
                scale = {name: self._scale.get(name, 1) for name in _services(config)}
                wanted = self._specs(stack_spec, scale, prepared.services)
            needs_up = [name for name in _FIXED if getattr(options, name) != getattr(self._options, name)]
            fixed = {name: getattr(self._options, name) for name in _FIXED}
            self._options, self._config = options.model_copy(update=fixed), config
            self._stack_spec, self._prepared, self._scale = stack_spec, prepared, scale
            running = {name: each.spec for name, each in self._processes.items() if each.spec.kind in _OURS}
            removed, added = [[*running.keys() - wanted.keys()], [name for name in wanted if name not in running]]
            await asyncio.gather(*(self._processes[name].stop() for name in removed))
            for name in removed:
                del self._processes[name]
            for name in added:
                self._supervise(wanted[name])
            for each in self._processes.values():
                if each.does_not_start:  # what it needs may be there by now
                    each.try_again()
            self._remember_scale()
            self._changed()
        changed = [name for name in wanted if name in running and wanted[name].command.differs(running[name].command)]
        return {"added": added, "removed": sorted(removed), "changed": changed, "grown": grown, "needs_up": needs_up}

    async def _owner(self) -> str:
        """Return the owner's DSN. If its secret was replaced, the embedded server learns it without a stop."""
        if self._prepared is None or ProcessKind.POSTGRES.value not in self._processes:
            return self._prepared.owner if self._prepared else ""
        server = EmbeddedPostgres.of(self._layout, self._ports)
        if server.dsn(self._options.topic_prefix) != self._prepared.owner:
            await asyncio.to_thread(server.change_password, self._prepared.owner)
            process = self._processes[server.name]
            process.spec = replace(process.spec, probe=server_spec(server, ProcessKind.POSTGRES).probe)
            self._log.info("the owner of the database has another password now")
        return server.dsn(self._options.topic_prefix)

    def _check_started(self, name: str | None = None) -> None:
        if name is not None and name not in self._names:
            raise UnknownServiceError(name, self._names)
        if not self._started:
            raise StackError("The stack is still starting", where=str(self._layout.root), cure="Try again in a moment.")

    @property
    def _names(self) -> tuple[str, ...]:
        return (*self._scale, *self._config.table.processes)

    def _service(self, name: str, index: int) -> ProcessSpec:
        return self._stack_spec.service(name, index, self._kafka, self._dsns)

    def _specs(
        self, stack_spec: StackSpec, scale: Mapping[str, int], dsns: Mapping[str, str]
    ) -> dict[str, ProcessSpec]:
        """Describe every process except the servers, by name, in the order in which they are started."""
        specs = [stack_spec.process(name) for name in stack_spec.config.table.processes]
        for name, count in scale.items():
            specs += [stack_spec.service(name, index, self._kafka, dsns) for index in range(1, count + 1)]
        return {spec.name: spec for spec in specs}

    def _remember_scale(self) -> None:
        write_json(self._layout.scale, self._scale)

    @property
    def _dsns(self) -> Mapping[str, str]:
        return self._prepared.services if self._prepared else {}

    def _supervise(self, spec: ProcessSpec) -> SupervisedProcess:
        self._processes[spec.name] = SupervisedProcess(spec, self._layout, self._log, self._noticed)
        return self._processes[spec.name]

    def _say(self, doing: str) -> None:
        self._doing = doing

    def _status(self) -> dict[str, Any]:
        processes = [each.describe() for each in self._processes.values()]
        ready = self._started and all(each.state is ProcessState.READY for each in self._processes.values())
        if self._failure is not None:
            self._failure_seen.set()
        return {
            "data": str(self._layout.root),
            "pid": os.getpid(),
            "topic_prefix": self._options.topic_prefix,
            "ready": ready and not self.stopping.is_set(),
            "doing": "" if ready and self._doing != "stopping" else self._doing,
            "started": self._started,
            "failure": self._failure,
            "database_created": bool(self._prepared and self._prepared.created),
            "kafka": self._kafka or None,
            "processes": processes,
        }

    def _noticed(self) -> None:
        """Note that a process changed by itself. If that cannot be written down, it is supervised nevertheless."""
        try:
            self._changed()
        except OSError as error:
            self._log.warning("stack.json could not be written; it is at the next change", why=str(error))

    def _changed(self) -> None:
        """Keep stack.json true. It is there from the moment the services have been started."""
        if not self._started or self._prepared is None:
            return
        described = [each.describe() | {"url": each.spec.url} for each in self._processes.values()]
        write_json(
            self._layout.root / "stack.json",
            {
                "kafka": self._kafka,
                "postgres": self._prepared.operator,
                "topic_prefix": self._options.topic_prefix,
                "services": [
                    {"name": process["name"], "pid": process["pid"], "health_url": process["url"]}
                    for process in described
                    if process["kind"] is ProcessKind.SERVICE
                ],
                "processes": [
                    {"name": process["name"], "pid": process["pid"], "health_url": process["url"]}
                    for process in described
                    if process["kind"] is not ProcessKind.SERVICE
                ],
            },
            mode=0o600,
        )


def _services(config: StackConfig) -> tuple[str, ...]:
    return (*config.table.services, *config.table.tools)


def _playbooks(options: StackOptions, config: StackConfig) -> Path:
    return (options.playbooks or config.directory / config.table.playbooks).resolve()


def _first_cause(error: BaseException) -> BaseException:
    return _first_cause(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


@contextmanager
def _only_one(layout: Layout) -> Iterator[None]:
    """Hold the data directory. The operating system lets go of it when we end, however we end."""
    with (layout.root / "supervisor.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(layout.root) from None
        yield


async def _main(options: StackOptions, layout: Layout, log: Logger) -> int:
    async with httpx.AsyncClient(timeout=2.0, trust_env=False) as http:
        supervisor = Supervisor(options, layout, log, http)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stopping.set)
        async with serve(layout, supervisor.answer, log):
            return await supervisor.run()


def main() -> int:
    options = codec.read(StackOptions, sys.stdin.read())
    layout = Layout.at(options.data)
    file = LogFile(layout.log("supervisor"), MAX_BYTES)
    log = configure_logging("info", "console", file=file, service="supervisor")
    try:
        with _only_one(layout):
            return asyncio.run(_main(options, layout, log))
    except (StackError, OSError) as error:
        log.error("cannot start", why=str(error))  # noqa: TRY400 (a person reads it; the trace says nothing more)
        return 1


if __name__ == "__main__":
    sys.exit(main())
