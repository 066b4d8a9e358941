"""The services under their supervisor, started, scaled and stopped as a user does; struck process by process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from triptych.embedded.control import ask
from triptych.embedded.layout import Layout
from triptych.embedded.orphans import stop_orphans
from triptych_chaos.errors import StackFailedError
from triptych_chaos.history import History
from triptych_chaos.plan import CALLED_BACK, instance_name
from triptych_chaos.servers import Servers, resume_all
from triptych_chaos.workload import CONFIG

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "chaos"

_COMMAND = Path(sys.executable).with_name("triptych")
SERVICES_SCALE_TIMEOUT_S = 40.0
"""A suspended process gets ten seconds to end before it is killed."""
_WATCH_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Services:
    """The processes of the stack."""

    layout: Layout

    def pids(self) -> dict[str, int]:
        """Return the process id of every process that runs now, by its name."""
        try:
            described = json.loads((self.layout.root / "stack.json").read_text("utf-8"))
        except FileNotFoundError:
            return {}
        return {each["name"]: each["pid"] for each in (*described["services"], *described["processes"]) if each["pid"]}

    def pids_of(self, service: str) -> dict[str, int]:
        """Return the same for the processes of one service."""
        return {unit: pid for unit, pid in self.pids().items() if instance_name(unit).rpartition("-")[0] == service}

    def signal(self, unit: str, number: signal.Signals) -> bool:
        """Send a signal to a process; False when it does not run now."""
        pid = self.pids().get(unit)
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    async def scale(self, service: str, count: int) -> None:
        await asyncio.to_thread(ask, self.layout, {"do": "scale", "service": service, "count": count})

    def callback_port(self) -> int:
        """Return the callback port of one of the processes that are called back.

        Each has taken a free port. The proxy in front of them asks here for each callback.

        Raises:
            ConnectionRefusedError: No such process listens.
        """
        known = set(json.loads((self.layout.root / "ports.json").read_text("utf-8")).values())
        listened = (port for pid in self.pids_of(CALLED_BACK).values() for port in _listened_on_by(pid))
        ports = [port for port in listened if port not in known]
        if not ports:
            raise ConnectionRefusedError(f"no process of {CALLED_BACK} listens")
        return random.choice(ports)

    def set_clock(self, unit: str, error_s: float) -> None:
        """Make the clock of a process wrong by this much, from its next start on."""
        folder = self.layout.root / "failpoints" / instance_name(unit)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "clock").write_text(f"{error_s}")

    def right_clocks(self) -> list[str]:
        """Remove what made clocks wrong. Return the processes that have to start again for it."""
        wrong = list((self.layout.root / "failpoints").glob("*/clock"))
        for file in wrong:
            file.unlink()
        instances = {file.parent.name for file in wrong}
        return [unit for unit in self.pids() if instance_name(unit) in instances]

    async def watch(self, history: History) -> None:
        """Record every process that came, went or came back."""
        known: dict[str, int] = {}
        while True:
            now = self.pids()
            for unit in sorted(known.keys() | now.keys()):
                if known.get(unit) != now.get(unit):
                    history.write("process", unit=unit, was=known.get(unit), now=now.get(unit))
            known = now
            await asyncio.sleep(_WATCH_INTERVAL_S)

    def verify(self) -> list[dict[str, Any]]:
        """Return what `triptych verify` says is wrong."""
        done = _triptych("verify", "--json", "--data", str(self.layout.root), timeout_s=3_600)
        try:
            problems: list[dict[str, Any]] = json.loads(done.stdout)["problems"]
        except (ValueError, KeyError):
            return [{"check": "verify", "message": f"it failed: {done.stdout}{done.stderr}", "run_id": None}]
        return problems


@asynccontextmanager
async def running(data: Path, servers: Servers, environment: Mapping[str, str]) -> AsyncIterator[Services]:
    """Start the services in `data` and stop them at the end, in any state. Raises StackFailedError.

    The environment is what the services find there beside what their configuration gives them.
    """
    layout = Layout.at(data)
    try:
        up = await asyncio.to_thread(
            _triptych,
            *("up", "--data", str(layout.root), "--prefix", PREFIX, "--config", str(CONFIG)),
            *("--kafka", servers.proxied_kafka, "--postgres", servers.proxied_dsn(PREFIX)),
            timeout_s=300,
            environment=environment,
        )
        if up.returncode:
            raise StackFailedError(up.stdout + up.stderr, layout.logs)
        yield Services(layout)
    finally:
        _end(layout)


def _end(layout: Layout) -> None:
    """Stop everything. It is not a coroutine, because a cancellation must not interrupt it."""
    resume_all(layout.root)
    supervisor = _supervisor(layout)
    with contextlib.suppress(subprocess.TimeoutExpired):
        _triptych("down", "--data", str(layout.root), timeout_s=90)
    if supervisor is not None:
        with contextlib.suppress(psutil.Error):
            supervisor.kill()
    resume_all(layout.root)
    stop_orphans(layout.root)


def _supervisor(layout: Layout) -> psutil.Process | None:
    try:
        return psutil.Process(ask(layout, {"do": "status"})["pid"])
    except Exception:  # noqa: BLE001 - without an answer, `_end` stops it another way
        return None


def _listened_on_by(pid: int) -> list[int]:
    try:
        connections = psutil.Process(pid).net_connections("tcp4")
    except psutil.Error:
        return []
    return [connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN]


def _triptych(
    *arguments: str, timeout_s: float, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
