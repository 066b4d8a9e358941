"""One run of the nemesis, from its first process to its report."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych_chaos import evidence, servers, services, webhook_sender
from triptych_chaos.approver import Approver
from triptych_chaos.checker import Violation
from triptych_chaos.client import Client
from triptych_chaos.evidence import Places
from triptych_chaos.history import History
from triptych_chaos.injector import Injector
from triptych_chaos.plan import CALLBACKS, Fault, Kind, plan
from triptych_chaos.proxy import HOST, Proxy
from triptych_chaos.report import Report
from triptych_chaos.servers import Servers
from triptych_chaos.services import PREFIX, Services
from triptych_chaos.workload import TOOLS

ENDED_WITHIN_S = 900.0
"""A run that has not ended so long after the last fault counts as lost."""
QUIET_WITHIN_S = 180.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for."""

    minutes: float
    seed: int
    rate: float
    """New tasks a second."""
    interval_s: float
    """Between two faults, on average."""
    commit: str


async def run(order: Order, folder: Path, history: History, say: Say) -> Report:
    """Start a stack in `folder`, strike it under load, let it come to rest, and check it. Raises ChaosError."""
    began = time.monotonic()
    faults = plan(order.seed, order.minutes * 60, order.interval_s)
    history.write("plan", seed=order.seed, minutes=order.minutes, faults=len(faults), commit=order.commit)
    say("starting Kafka and Postgres")
    async with servers.running(folder / "servers", PREFIX, TOOLS) as running_servers:
        await running_servers.create_topics()
        say("starting the services")
        front = running_servers.ports.of("callbacks")
        opening = webhook_sender.open_sender(
            history, random.Random(order.seed), running_servers.ports.of("webhook-sender")
        )
        async with (
            opening as sender,
            services.running(folder / "stack", running_servers, sender.environment | _front(front)) as running_services,
            Proxy(CALLBACKS, front, running_services.callback_port) as callbacks,
        ):
            places = _places(running_servers, running_services)
            client = Client(running_servers.kafka_address, history, random.Random(order.seed))
            approver = Approver(running_servers.kafka_address, places.dsn, history)
            injector = Injector(
                servers=running_servers,
                services=running_services,
                proxies={
                    "kafka": running_servers.kafka_proxy,
                    "postgres": running_servers.postgres_proxy,
                    CALLBACKS: callbacks,
                },
                client=client,
                sender=sender,
                history=history,
                dice=random.Random(order.seed),
                outbox_dsn=places.dsn,
            )
            background = (client.collect(), client.publish_the_unanswered_again(), approver.work())
            async with _tasks(*background, running_services.watch(history)):
                async with _tasks(client.publish_constantly(order.rate)):
                    await injector.run(faults, _teller(say, client, injector, len(faults)))
                await injector.put_right()
                sender.hurry()
                ended_at = time.monotonic()
                await _until_all_ended(client, say)
                say("waiting until nothing is left behind")
                leftovers = await evidence.until_quiet(places, sender, QUIET_WITHIN_S)
                quiet_after_s = time.monotonic() - ended_at
            await client.close()
            say("checking")
            found = await evidence.check(places, client.tasks, client.strangers, sender, leftovers)
            say("triptych verify")
            for problem in await asyncio.to_thread(running_services.verify):
                found.violations.append(
                    Violation(
                        f"verify: {problem['check']}",
                        problem["message"],
                        problem.get("task_id") or "",
                        problem.get("run_id") or "",
                    )
                )
            took_s = time.monotonic() - began
            return Report(
                order.seed,
                order.minutes,
                order.commit,
                took_s,
                quiet_after_s,
                client,
                approver,
                sender,
                injector,
                found,
            )


def _front(port: int) -> dict[str, str]:
    """Set the address in front of the processes that are called back. Each process takes a free port."""
    return {"TRIPTYCH_CALLBACK_URL": f"http://{HOST}:{port}", "TRIPTYCH_CALLBACK_PORT": "0"}


def _places(running_servers: Servers, running_services: Services) -> Places:
    """Read the places of the stack, with a DSN past the proxy."""
    places = Places.of(running_services.layout.root)
    direct = running_servers.owner_dsn.rpartition(":")[2].partition("/")[0]
    proxied = f":{running_servers.postgres_proxy.port}/"
    return replace(places, dsn=places.dsn.replace(proxied, f":{direct}/"))


async def _until_all_ended(client: Client, say: Say) -> None:
    deadline = time.monotonic() + ENDED_WITHIN_S
    while client.pending and time.monotonic() < deadline:
        say(f"no more faults; {len(client.pending)} of {len(client.tasks)} tasks have not ended")
        await asyncio.sleep(1.0)


def _teller(say: Say, client: Client, injector: Injector, count: int) -> Callable[[Fault], None]:
    def tell(fault: Fault) -> None:
        ended = len(client.tasks) - len(client.pending)
        say(
            f"fault {fault.number} of {count}: {fault.kind} {fault.target}; {len(client.tasks)} tasks, {ended} ended, "
            f"{injector.injected[Kind.KAFKA_LOST]} logs lost"
        )

    return tell


@asynccontextmanager
async def _tasks(*coroutines: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run them beside the body. One that fails is a defect of the nemesis, and ends the body."""
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(_for_ever(coroutine)) for coroutine in coroutines]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({task}, timeout=10)


async def _for_ever(coroutine: Coroutine[Any, Any, None]) -> None:
    """Raise if the coroutine ends or cancels itself: a task group takes a cancelled task for one that has finished."""
    task = asyncio.current_task()
    try:
        await coroutine
    except asyncio.CancelledError:
        if task is None or task.cancelling():
            raise
    raise RuntimeError(f"{coroutine} has ended")
