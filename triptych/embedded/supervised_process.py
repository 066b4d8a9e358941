"""Keeps one process running: restarts it with exponential backoff, and remembers why it ended.

It never gives up; a person who reads `triptych status` decides that.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import os
import signal
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from triptych.embedded.errors import ProcessFailedError
from triptych.embedded.layout import Layout, last_lines
from triptych.embedded.stack_spec import HealthStatus, ProcessKind, ProcessSpec
from triptych.kernel.process.log import Logger
from triptych.kernel.process.log_file import cut

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
STABLE_AFTER_S = 30.0
"""A process that stayed up for this long starts again with the first backoff."""

PATIENCE_S = 60.0
"""A process that says for this long that it makes no progress, or nothing at all, is restarted."""

STOP_TIMEOUT_S = 10.0
STARTED_AFTER_S = 10.0
"""A process that ended before this is taken not to have started."""

FAILED_STARTS = 3
"""After as many failed starts in a row, a caller that waits for it is told that it does not start."""

MISCONFIGURED = 2
"""The exit code of a process whose settings are wrong; starting it again will not help."""

_STARTING_INTERVAL_S = 0.2
_STEADY_INTERVAL_S = 2.0


class ProcessState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    """It was ready, and now says that something it depends on is gone."""
    BACKOFF = "backoff"
    STOPPED = "stopped"


class SupervisedProcess:
    """One process, watched."""

    def __init__(self, spec: ProcessSpec, layout: Layout, log: Logger, changed: Callable[[], None]) -> None:
        self.spec = spec
        self.state = ProcessState.STARTING
        self.pid: int | None = None
        self._layout = layout
        self._log = log.bind(process=spec.name)
        self._changed = changed
        self._shown: tuple[ProcessState, int | None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ready = asyncio.Event()
        self._starts = 0
        self._failed_starts = 0
        self._exit_code: int | None = None
        self._started_at = 0.0
        self._detail = ""
        self._last_error = ""
        self._task = asyncio.create_task(self._keep_running(), name=spec.name)

    @property
    def does_not_start(self) -> bool:
        """Whether it ended too often in a row before it was ready; what went wrong earlier counts until it is."""
        failed = self._failed_starts >= FAILED_STARTS or (self._failed_starts > 0 and self._exit_code == MISCONFIGURED)
        return failed and self.state is not ProcessState.READY

    def describe(self) -> dict[str, Any]:
        """Return what `status` shows."""
        running = self.pid is not None
        return {
            "name": self.spec.name,
            "kind": self.spec.kind,
            "pid": self.pid,
            "state": self.state,
            "uptime_s": round(time.monotonic() - self._started_at, 1) if running else None,
            "restarts": max(0, self._starts - 1),
            "does_not_start": self.does_not_start,
            "detail": self._detail,
            "last_error": self._last_error,
            "health_url": self.spec.url,
            "log": str(self._layout.log(self.spec.name)),
        }

    async def ready(self, timeout_s: float) -> None:
        """Wait until it is ready. Raises ProcessFailedError when it does not start, or not in time."""
        deadline = time.monotonic() + timeout_s
        while not self._ready.is_set():
            if self.does_not_start or time.monotonic() > deadline:
                log = self._layout.log(self.spec.name)
                why = self._last_error.partition("\n")[0] or f"not ready after {timeout_s:.0f} s"
                raise ProcessFailedError(self.spec.name, why, log, last_lines(log))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ready.wait(), _STARTING_INTERVAL_S)

    def try_again(self) -> None:
        """Count failed starts from zero, and start it now if it waits for its next start."""
        self._failed_starts = 0
        self._hurry.set()

    async def stop(self) -> None:
        """Ask it to stop; after the time it has for that, kill it."""
        self._stopping.set()
        self._hurry.set()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(self.spec.stop_signal or signal.SIGTERM)
        done, _ = await asyncio.wait({self._task}, timeout=STOP_TIMEOUT_S)
        if not done:
            self._log.warning("did not stop in time; killed", after_s=STOP_TIMEOUT_S)
            self._kill()
            await self._task

    async def _keep_running(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            await self._run_once()
            if self._stopping.is_set():
                break
            if time.monotonic() - self._started_at > STABLE_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            self._log.warning("ended; will be started again", exit_code=self._exit_code, in_s=backoff_s)
            self._set(ProcessState.BACKOFF)
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), backoff_s)
            backoff_s = FIRST_BACKOFF_S if self._hurry.is_set() else min(LONGEST_BACKOFF_S, backoff_s * 2)
        self._set(ProcessState.STOPPED)

    async def _run_once(self) -> None:
        self._starts += 1
        self._started_at = time.monotonic()
        self._ready.clear()
        try:
            self._process = await self.spec.command.start_watched(self._layout, self.spec.name)
        except OSError as error:
            self._failed_starts += 1
            self._last_error = str(error)
            return
        self.pid = self._process.pid
        self._set(ProcessState.STARTING)
        if self._stopping.is_set():  # the order to stop came while it was being started
            self._process.send_signal(self.spec.stop_signal or signal.SIGTERM)
        health = asyncio.create_task(self._watch_health(), name=f"{self.spec.name} health")
        try:
            self._exit_code = await self._process.wait()
        finally:
            health.cancel()
            self.pid = None
        if not self._stopping.is_set():
            stayed = time.monotonic() - self._started_at > STARTED_AFTER_S
            self._failed_starts = 0 if stayed else self._failed_starts + 1
            self._last_error = f"{_ended(self._exit_code)}\n{last_lines(self._layout.log(self.spec.name))}"

    async def _watch_health(self) -> None:
        alive_at = time.monotonic()
        while True:
            health = await self._health_status()
            if self.spec.kind is not ProcessKind.SERVICE:
                cut(self._layout.log(self.spec.name))
            self._detail = "" if self.state is ProcessState.STARTING else health.detail
            if health.alive:
                alive_at = time.monotonic()
            if health.ready:
                self._ready.set()
                self._set(ProcessState.READY)
            elif self._ready.is_set():
                self._set(ProcessState.UNREADY)
            if time.monotonic() - alive_at > PATIENCE_S:
                self._log.error("makes no progress; killed, to be started again", detail=health.detail)
                self._kill()
            await asyncio.sleep(_STEADY_INTERVAL_S if self._ready.is_set() else _STARTING_INTERVAL_S)

    async def _health_status(self) -> HealthStatus:
        try:
            return await self.spec.probe()
        except Exception as error:  # noqa: BLE001 - no caller waits for this task: an unexpected error would end it without a word
            return HealthStatus(alive=False, ready=False, detail=repr(error))

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _set(self, state: ProcessState) -> None:
        self.state = state
        if (state, self.pid) != self._shown:
            self._shown = (state, self.pid)
            self._changed()


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    known = {number.value: number.name for number in signal.Signals}
    return f"was killed by {known.get(-code, f'signal {-code}')}"
