"""Health over HTTP: alive while every loop makes progress, ready while every dependency answers.

`/health/live` fails when a loop has not beaten within its limit, so that a stuck consumer gets restarted.
`/health/ready` fails then too, and also when Kafka or Postgres is gone: a restart would not cure that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from triptych.kernel.process.log import Logger

Probe = Callable[[], Awaitable[object]]
PROBE_TIMEOUT_S = 2.0
TELL_AFTER_S = 30.0
"""A process that is not ready for so long says why in its log; a shorter while is daily life."""
_LOOK_EVERY_S = 5.0


class Health:
    """What this process knows of its own health, and counters that an operator may read."""

    def __init__(self, service: str, instance: str) -> None:
        self.service, self.instance = service, instance
        self.counters: dict[str, int] = {}
        self.warnings: dict[str, str] = {}
        self._beats: dict[str, tuple[float, float]] = {}
        self._probes: dict[str, Probe] = {}
        self._is_started = False

    def expect(self, loop: str, max_silence_s: float) -> None:
        """Expect `loop` to beat at least every `max_silence_s` seconds from now on."""
        self._beats[loop] = (time.monotonic(), max_silence_s)

    def beat(self, loop: str) -> None:
        """Say that `loop` made progress (an idle poll counts)."""
        self._beats[loop] = (time.monotonic(), self._beats[loop][1])

    def depend(self, name: str, probe: Probe) -> None:
        """Be ready only while `probe` returns within two seconds without raising."""
        self._probes[name] = probe

    def started(self) -> None:
        """Take work from now on. Before this the process is alive and not ready."""
        self._is_started = True

    def warn(self, name: str, message: str) -> None:
        """Tell with the readiness what is wrong here and keeps nothing else from working."""
        self.warnings[name] = message

    def unwarn(self, name: str) -> None:
        """Clear a warning: what was wrong under this name is right now."""
        self.warnings.pop(name, None)

    @property
    def is_started(self) -> bool:
        """Whether the process has taken up its work."""
        return self._is_started

    def count(self, name: str, by: int = 1) -> None:
        """Count something that an operator may want to see, for example duplicates dropped."""
        self.counters[name] = self.counters.get(name, 0) + by

    def stuck(self) -> dict[str, float]:
        """Loops that are silent for too long, with the seconds since their last beat."""
        now = time.monotonic()
        # Another thread asks as well, so it looks at a copy.
        return {loop: round(now - at, 1) for loop, (at, limit) in self._beats.copy().items() if now - at > limit}

    async def _failure(self, probe: Probe) -> str | None:
        try:
            await asyncio.wait_for(probe(), PROBE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - any exception of a dependency means that it is gone
            return f"{type(error).__name__}: {error}"
        return None

    async def unready(self) -> dict[str, str]:
        """Return what keeps this process from working: a loop is stuck, it has not started, or a dependency is gone."""
        if stuck := self.stuck():
            return {loop: f"the loop has made no progress for {silent_s} s" for loop, silent_s in stuck.items()}
        if not self._is_started:
            return {"start": "the process has not taken up its work yet"}
        failures = await asyncio.gather(*(self._failure(probe) for probe in self._probes.values()))
        return {name: failure for name, failure in zip(self._probes, failures, strict=True) if failure}

    async def log_changes(self, log: Logger, *, after_s: float = TELL_AFTER_S, every_s: float = _LOOK_EVERY_S) -> None:
        """Log why this process is not ready, once when that has lasted for `after_s`, and when it is over."""
        unready_since: float | None = None
        told = False
        while True:
            missing = await self.unready()
            now = time.monotonic()
            if not missing:
                if told:
                    log.info("ready again")
                unready_since, told = None, False
            elif unready_since is None:
                unready_since = now
            elif not told and now - unready_since >= after_s:
                log.warning("not ready", for_s=round(now - unready_since), **missing)
                told = True
            await asyncio.sleep(every_s)

    def app(self) -> Starlette:
        """Make the HTTP endpoints."""

        async def live(_request: Request) -> JSONResponse:
            stuck = self.stuck()
            return JSONResponse(
                {"service": self.service, "instance": self.instance, "stuck": stuck, "counters": self.counters},
                status_code=503 if stuck else 200,
            )

        async def ready(_request: Request) -> JSONResponse:
            missing = await self.unready()
            return JSONResponse(
                {"service": self.service, "instance": self.instance, "unready": missing, "warnings": self.warnings},
                status_code=503 if missing else 200,
            )

        return Starlette(routes=[Route("/health/live", live), Route("/health/ready", ready)])


class _QuietServer(uvicorn.Server):
    """The process handles its own signals, so the server must not."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


@asynccontextmanager
async def serve_health(health: Health, host: str, port: int) -> AsyncIterator[None]:
    """Serve the health endpoints while the body runs."""
    async with serve_app(health.app(), host, port, "health"):
        yield


@asynccontextmanager
async def serve_app(
    app: Starlette, host: str, port: int, name: str, protocol: type[asyncio.Protocol] | None = None
) -> AsyncIterator[None]:
    """Serve HTTP while the body runs, over connections that `protocol` bounds where strangers may come."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol or "auto",
        ws="none",
        log_config=None,  # it logs as everybody does
        log_level="warning",
        access_log=False,
        lifespan="off",
    )
    server = _QuietServer(config)
    task = asyncio.create_task(server.serve(), name=name)
    try:
        yield
    finally:
        server.should_exit = True
        await task
