"""Show operators the breakers and alerts of a tool as rows, and take their commands from a topic.

No process reads the rows back. Writing them never fails or delays a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

import asyncpg

from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.kafka.compacted_topic import CompactedTopic, Record
from triptych.kernel.postgres.database import Queries
from triptych.kernel.process.outage import POSTGRES_GONE
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import codec, topics
from triptych.schemas.task import ToolControl
from triptych.tools.guard.protection import Protection
from triptych.tools.runtime.alerts import Alerts

SHOWN_EVERY_S = 1.0
SQL = Queries.load("triptych.tools.runtime", "operator_control.sql")


class OperatorControl:
    """Shows what goes on and takes commands while the context lasts."""

    def __init__(  # noqa: PLR0917 - what it shows and whom it obeys
        self,
        service: Service,
        settings: ServiceSettings,
        tool: str,
        pool: asyncpg.Pool,
        protection: Protection,
        alerts: Alerts,
        probe: Callable[[], Awaitable[str]],
    ) -> None:
        """`probe` asks the upstream now and describes the result."""
        self._service, self._instance, self._tool, self._pool = service, settings.instance, tool, pool
        self._protection, self._alerts, self._probe = protection, alerts, probe
        self._started_at = utc_now()
        self._controls = CompactedTopic(service, settings, topics.TOOL_CONTROLS, self._receive, required=False)
        self._commands: list[ToolControl] = []
        self._shown: dict[str, tuple[str, str]] = {}
        self._showing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._controls.__aenter__()
        self._showing = asyncio.create_task(self._show(), name="operator-control")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._controls.__aexit__(*exc)
        if self._showing is not None:
            self._showing.cancel()
            await asyncio.wait({self._showing})

    def _receive(self, record: Record) -> None:
        if record.value is None:
            return
        body = cloudevents.without_nul(cloudevents.record_body(record))
        command = codec.read(ToolControl, body)
        if command.tool != self._tool:
            return
        if command.breaker is not None:
            self._protection.hold(command.breaker, command.operation, command.principal)
        if command.breaker is not None or command.at >= self._started_at:
            self._commands.append(command)

    async def _show(self) -> None:
        """Write down what has changed, a second late at most; while Postgres is away, later."""
        forgotten = False
        while True:
            try:
                if not forgotten:
                    await self._pool.execute(SQL["forget_breakers"], self._instance)
                    forgotten, self._shown = True, {}
                while self._commands:
                    await self._answer(self._commands[0])
                    self._commands.pop(0)
                await self._show_breakers()
                await self._alerts.write(self._pool)
            except POSTGRES_GONE as error:
                self._service.log.debug("breakers and alerts cannot be written", error=repr(error))
            await asyncio.sleep(SHOWN_EVERY_S)

    async def _show_breakers(self) -> None:
        now = {name: (breaker.state, breaker.forced_by) for name, breaker in self._protection.breakers.items()}
        changed = {name: stands for name, stands in now.items() if self._shown.get(name) != stands}
        if changed:
            states, by = zip(*changed.values(), strict=True)
            await self._pool.execute(SQL["show_breakers"], self._instance, list(changed), list(states), list(by))
            self._shown = now

    async def _answer(self, command: ToolControl) -> None:
        mode = command.breaker and command.breaker.value
        answer = await self._probe() if mode is None else f"the breaker is {mode}"
        self._service.log.info("command", answer=answer, operation=command.operation, by=command.principal)
        about = (command.command_id, command.operation, mode, command.principal, command.note, command.at)
        try:
            await self._pool.execute(SQL["record_control"], *about, answer)
        except asyncpg.DataError as error:
            # A message on the topic must not end this task. The log has the commands without a row.
            self._service.log.warning("a command cannot be written down", command=command.command_id, error=str(error))
