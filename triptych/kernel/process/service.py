"""The frame of every service process: settings, logging, health, signals and an orderly end.

A service's `__main__` builds its objects and calls `run`. SIGTERM sets `stopping`. The body then finishes its work or
hands it back. Work that is left at the deadline is cut off: it was committed or it will be redelivered.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import uvloop

from triptych.kernel import failpoints, timestamps
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.process.health import Health, serve_health
from triptych.kernel.process.log import Logger, configure_logging, log_what_python_says
from triptych.kernel.process.log_file import LogFile
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.process.watchdog import Watchdog

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


@dataclass(frozen=True, slots=True)
class Service:
    """What the frame gives to a service: its name, logger, health and the event that ends it."""

    name: str
    log: Logger
    health: Health
    stopping: asyncio.Event


def run(name: str, settings: SettingsT, body: Callable[[Service, SettingsT], Awaitable[None]]) -> None:
    """Run `body` until it returns or a signal ends it. Exit codes: 0 stopped, 1 failed, 2 misconfigured, 3 stuck."""
    _calm_garbage_collector()
    file = LogFile(settings.log_file, settings.log_max_bytes) if settings.log_file is not None else None
    log = configure_logging(
        settings.log_level, settings.log_format, file=file, service=name, instance=settings.instance
    )
    log_what_python_says()
    if settings.failpoints is not None:
        log.warning("fail points are on: this process may be made to die", folder=str(settings.failpoints))
        failpoints.enable(settings.failpoints / settings.instance)
    if settings.timestamps is not None:
        timestamps.enable(settings.timestamps / settings.instance)
    try:
        uvloop.run(_serve(name, settings, body, log))
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    finally:
        timestamps.close()


def _calm_garbage_collector() -> None:
    """Keep imported objects out of garbage collection: they stay, and cycles are few.

    With the defaults a worker spent 40% of its time looking for garbage among modules and schemas.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _serve(
    name: str, settings: SettingsT, body: Callable[[Service, SettingsT], Awaitable[None]], log: Logger
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    service = Service(name, log, Health(name, settings.instance), stopping)
    watchdog = Watchdog(service.health, log, settings.stuck_exit_ms / 1_000)
    watchdog.start()
    try:
        await _serve_watched(service, settings, body)
    finally:
        watchdog.stop()


async def _serve_watched(
    service: Service, settings: SettingsT, body: Callable[[Service, SettingsT], Awaitable[None]]
) -> None:
    log, stopping = service.log, service.stopping
    async with serve_health(service.health, settings.health_host, settings.health_port):
        work = asyncio.ensure_future(body(service, settings))
        stopped = asyncio.create_task(stopping.wait(), name="signal")
        telling = asyncio.create_task(service.health.log_changes(log), name="health-log")
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        telling.cancel()
        if not work.done():
            log.info("stopping", within_ms=settings.shutdown_timeout_ms)
            _done, late = await asyncio.wait({work}, timeout=settings.shutdown_timeout_ms / 1000)
            if late:
                log.warning("stopped with work under way; it is handed back", within_ms=settings.shutdown_timeout_ms)
                work.cancel()
                await asyncio.wait({work}, timeout=1.0)
                return
        await work
    log.info("stopped")
