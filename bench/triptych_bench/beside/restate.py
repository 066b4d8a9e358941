"""Restate: its server as npm has it, with services in Python. A step elsewhere is a service in another process."""

from __future__ import annotations

import json
import platform
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from triptych_bench.beside.driver import Card, Hold, Place, Way
from triptych_bench.beside.installs import LOCKS, environment, npm_package, pinned
from triptych_bench.beside.processes import HOST, PROGRAMS, Program, Server, free_ports, hold_all, processes_at_once
from triptych_bench.errors import ProductFailedError
from triptych_bench.figures import Window

_SERVER = LOCKS / "restate-server"
_CPU = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_PACKAGE = f"@restatedev/restate-server-{sys.platform}-{_CPU}"
_REGISTER_S = 60.0


class Restate:
    """Handlers of five steps; the workflows' service has one process a core."""

    card = Card(
        name="restate",
        title="Restate",
        ways=(Way.IN_PROCESS, Way.OTHER_PROCESS),
        databases=(),
        promises=(
            "A server with its own log, as it ships: one node, and its log server syncs RocksDB's write-ahead log "
            "(rocksdb-disable-wal-fsync = false). Each step's result is in the log before the next begins, and the "
            "server calls a service again after a crash. Calls between services are exactly once; idempotency keys of "
            "requests are kept a day; journal and state can be queried by SQL while they are kept. No budgets, no "
            "ledger of effects: a step that was under way runs again. The SDK here is Python's."
        ),
        source="https://docs.restate.dev/references/architecture",
    )

    def __init__(self) -> None:
        self._python: Path
        self._binary: Path
        self._servers: list[Server] = []
        self._programs: dict[Way, Program] = {}

    @property
    def version(self) -> str:
        packages = json.loads((_SERVER / "package-lock.json").read_text("utf-8"))["packages"]
        sdk = pinned(LOCKS / "restate.lock", "restate-sdk")
        return f"{packages['node_modules/@restatedev/restate-server']['version']}, SDK {sdk}"

    def install(self) -> None:
        self._python = environment("restate")
        self._binary = npm_package("restate", _SERVER, f"node_modules/{_PACKAGE}/bin/restate-server")

    def start(self, place: Place) -> None:
        ingress, admin, node, runs, steps = free_ports(5)
        logs = place.data / "logs"
        server = Server(
            self.card.name,
            "server",
            [self._binary, "--no-logo", "--base-dir", place.data / "restate"],
            logs,
            {
                "RESTATE_LISTEN_MODE": "tcp",
                "RESTATE_BIND_ADDRESS": f"{HOST}:{node}",
                "RESTATE_ADVERTISED_ADDRESS": f"http://{HOST}:{node}",
                "RESTATE_INGRESS__BIND_ADDRESS": f"{HOST}:{ingress}",
                "RESTATE_ADMIN__BIND_ADDRESS": f"{HOST}:{admin}",
                "RESTATE_DISABLE_TELEMETRY": "true",
                "RESTATE_LOG_DISABLE_ANSI_CODES": "true",
            },
        )
        self._servers.append(server)
        for name, port, workers in (("runs", runs, processes_at_once()), ("steps", steps, 1)):
            self._servers.append(self._services(name, port, workers, logs))
        server.wait_for_port(admin)
        server.wait_for_port(ingress)
        for services, port in zip(self._servers[1:], (runs, steps), strict=True):
            services.wait_for_port(port)
            self._register(f"http://{HOST}:{admin}/deployments", f"http://{HOST}:{port}")
        for way, handler in ((Way.IN_PROCESS, "in_process"), (Way.OTHER_PROCESS, "other_process")):
            command = (self._python, PROGRAMS / "restate_runs.py", f"http://{HOST}:{ingress}", handler)
            self._programs[way] = Program(self.card.name, f"client-{handler}", command, logs).wait_until_ready()

    def hold(self, way: Way, hold: Hold) -> Window:
        return hold_all([self._programs[way]], hold)

    def stop(self) -> None:
        for process in (*self._programs.values(), *self._servers):
            process.stop()

    def _services(self, name: str, port: int, workers: int, logs: Path) -> Server:
        options = ["--bind", f"{HOST}:{port}", "--workers", str(workers), "--worker-class", "uvloop"]
        command: list[str | Path] = [self._python, "-m", "hypercorn", *options, f"restate_services:{name}_app"]
        return Server(self.card.name, name, command, logs, {"PYTHONPATH": str(PROGRAMS)})

    def _register(self, admin: str, services: str) -> None:
        """Tell the server where services are. It takes a moment until it is ready for that."""
        request = urllib.request.Request(  # noqa: S310 - an address of ours
            admin, json.dumps({"uri": services}).encode(), {"content-type": "application/json"}
        )
        deadline = time.monotonic() + _REGISTER_S
        while True:
            try:
                with urllib.request.urlopen(request, timeout=_REGISTER_S):  # noqa: S310 - the same
                    return
            except (urllib.error.URLError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise ProductFailedError(self.card.name, f"server refused {services}: {error}", None) from error
                time.sleep(0.2)
