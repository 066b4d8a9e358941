"""Injects the faults of a plan at their times, and puts everything right afterwards."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict

import asyncpg
import msgpack

from triptych.embedded.errors import StackError
from triptych_chaos.client import Client
from triptych_chaos.history import History
from triptych_chaos.plan import CALLBACKS, CALLED_BACK, SERVERS, Fault, Kind
from triptych_chaos.proxy import Proxy
from triptych_chaos.servers import Servers
from triptych_chaos.services import SERVICES_SCALE_TIMEOUT_S, Services
from triptych_chaos.webhook_sender import WebhookSender

_MS = 1_000
_BURST_MESSAGES = 20
_BURST_LOOKS, _BURST_INTERVAL_S = 200, 0.01
_DELIVERY_LOOKS, _DELIVERY_INTERVAL_S = 100, 0.1


class Missed(Exception):
    """There was nothing to strike."""


class Injector:
    """Strikes servers and services."""

    def __init__(
        self,
        *,
        servers: Servers,
        services: Services,
        proxies: Mapping[str, Proxy],
        client: Client,
        sender: WebhookSender,
        history: History,
        dice: random.Random,
        outbox_dsn: str,
    ) -> None:
        self.injected: Counter[Kind] = Counter()
        self.missed: Counter[Kind] = Counter()
        self.peak_outbox = 0
        self.deliveries_met: Counter[Kind] = Counter()
        """How many deliveries were waited for when something struck who is called back, or the servers it needs."""
        self._servers, self._services, self._proxies = servers, services, proxies
        self._client, self._sender = client, sender
        self._history, self._dice, self._outbox_dsn = history, dice, outbox_dsn
        self._held = {name: asyncio.Lock() for name in ("kafka", "postgres")}
        """Only one at a time does something to a server's process."""

    async def run(self, faults: list[Fault], told: Callable[[Fault], None]) -> None:
        """Inject all faults; returns when the last is over."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as under_way:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
                told(fault)
                under_way.create_task(self._inject(fault), name=f"fault {fault.number}")

    async def _inject(self, fault: Fault) -> None:
        waiting = self._sender.waiting
        self._history.write("fault", **asdict(fault), deliveries=waiting)
        try:
            found = await self._strike(fault)
        except (Missed, StackError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self.missed[fault.kind] += 1
            self._history.write("fault missed", number=fault.number, kind=fault.kind, why=repr(error))
        else:
            self.injected[fault.kind] += 1
            if fault.target.startswith(CALLED_BACK) or fault.target in (*SERVERS, CALLBACKS):
                self.deliveries_met[fault.kind] += (found or {}).get("deliveries", waiting)
            self._history.write("fault over", number=fault.number, kind=fault.kind, **(found or {}))

    async def _strike(self, fault: Fault) -> dict[str, int] | None:  # noqa: C901, PLR0912 - one arm a kind
        match fault.kind:
            case Kind.KILL:
                self._signal(fault.target, signal.SIGKILL)
            case Kind.CALLBACK_KILL:
                return {"deliveries": await self._kill_who_is_called_back()}
            case Kind.PAUSE:
                self._signal(fault.target, signal.SIGSTOP)
                try:
                    await asyncio.sleep(fault.seconds)
                finally:
                    self._services.signal(fault.target, signal.SIGCONT)
            case Kind.SCALE:
                async with asyncio.timeout(SERVICES_SCALE_TIMEOUT_S):
                    await self._services.scale(fault.target, int(fault.amount))
            case Kind.CLOCK:
                self._services.set_clock(fault.target, fault.amount)
                self._signal(fault.target, signal.SIGKILL)
            case Kind.CUT:
                return {"connections": self._proxies[fault.target].cut(fault.amount, self._dice)}
            case Kind.DELAY:
                await self._delay(fault)
            case Kind.STALL:
                await self._stall(fault)
            case Kind.KAFKA_LOST:
                async with self._held["kafka"]:
                    await self._servers.lose_log()
                self._client.kafka_is_another()
            case Kind.KAFKA_RESTART | Kind.POSTGRES_RESTART:
                async with self._held[fault.target]:
                    await self._servers.managed(fault.target).stop()
                    await self._servers.managed(fault.target).start()
            case Kind.KAFKA_KILL | Kind.POSTGRES_KILL:
                async with self._held[fault.target]:
                    await self._servers.managed(fault.target).kill()
                    await self._servers.managed(fault.target).start()
            case Kind.FULL_OUTBOX:
                return {"outbox": await self._fill_outbox(fault)}
            case Kind.SLOW_COMMITS:
                async with self._held["postgres"]:
                    await self._servers.slow_commits(fault.amount)
                    await asyncio.sleep(fault.seconds)
                    await self._servers.slow_commits(0)
            case Kind.STUTTER:
                async with self._held[fault.target]:
                    await self._servers.managed(fault.target).stutter(fault.seconds, fault.amount)
        return None

    def _signal(self, unit: str, number: signal.Signals) -> None:
        if not self._services.signal(unit, number):
            raise Missed(f"{unit} was not running")

    async def _kill_who_is_called_back(self) -> int:
        """Kill all processes together, as soon as deliveries are on their way. Return how many these were."""
        for _ in range(_DELIVERY_LOOKS):
            if self._sender.waiting:
                break
            await asyncio.sleep(_DELIVERY_INTERVAL_S)
        waiting = self._sender.waiting
        units = [unit for unit in self._services.pids_of(CALLED_BACK) if self._services.signal(unit, signal.SIGKILL)]
        if not units:
            raise Missed(f"no process of {CALLED_BACK} was running")
        return waiting

    async def _delay(self, fault: Fault) -> None:
        proxy = self._proxies[fault.target]
        proxy.delay_s += fault.amount / _MS
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            proxy.delay_s = max(0.0, proxy.delay_s - fault.amount / _MS)

    async def _stall(self, fault: Fault) -> None:
        proxy = self._proxies[fault.target]
        proxy.stall(on=True)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            proxy.stall(on=False)

    async def _fill_outbox(self, fault: Fault) -> int:
        """Publish a burst, then suspend Kafka. Return the most messages that the outbox had."""
        async with self._held["kafka"]:
            for _ in range(int(fault.amount)):
                self._client.publish_new()
            await self._until_the_burst_arrives()
            self._servers.kafka.suspend()
            most = 0
            try:
                deadline = time.monotonic() + fault.seconds
                while time.monotonic() < deadline:
                    most = max(most, await self._outbox_messages())
                    await asyncio.sleep(0.5)
            finally:
                self._servers.kafka.resume()
            self.peak_outbox = max(self.peak_outbox, most)
            return most

    async def _until_the_burst_arrives(self) -> None:
        """Wait until the burst is in the outbox, or until other faults have kept the executor from it for too long."""
        for _ in range(_BURST_LOOKS):
            if await self._outbox_messages() >= _BURST_MESSAGES:
                return
            await asyncio.sleep(_BURST_INTERVAL_S)

    async def _outbox_messages(self) -> int:
        """0 as well when Postgres does not answer: other faults may strike it meanwhile."""
        try:
            async with asyncio.timeout(3):
                connection = await asyncpg.connect(self._outbox_dsn)
                try:
                    rows = await connection.fetch("select messages from executor.outbox")
                    return sum(len(msgpack.unpackb(row["messages"])) for row in rows)
                finally:
                    connection.terminate()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return 0

    async def put_right(self) -> None:
        """Let everything run as it should: clocks are right, processes run, bytes flow."""
        for proxy in self._proxies.values():
            proxy.delay_s = 0.0
            proxy.stall(on=False)
        self._servers.kafka.resume()
        self._servers.postgres.resume()
        await self._servers.slow_commits(0)
        for unit in self._services.right_clocks():
            self._services.signal(unit, signal.SIGKILL)
        self._history.write("put right")
