"""Temporal: its server, built by Go from its module, on the Postgres of the stack, with workers in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych_bench.beside.driver import Card, Hold, Place, Way
from triptych_bench.beside.installs import LOCKS, environment, go_commands, pinned
from triptych_bench.beside.processes import HOST, PROGRAMS, Program, Server, free_ports, hold_all, processes_at_once
from triptych_bench.figures import Window

_MODULE, _VERSION = "go.temporal.io/server", "v1.32.1"
_DATABASE = "bench_temporal"
_SERVICES = "frontend", "history", "matching", "worker"
_WORKFLOW_QUEUE, _STEP_QUEUE, _BOTH_QUEUE = "workflows", "steps", "both"
_SHARDS = 4
_CONNECTIONS = 20


class Temporal:
    """Workflows of five activities. All services of the server run in one process, as in its development setup."""

    card = Card(
        name="temporal",
        title="Temporal",
        ways=(Way.IN_PROCESS, Way.OTHER_PROCESS),
        databases=(_DATABASE,),
        promises=(
            "A server that keeps each workflow's history in Postgres and hands out every activity, even to a worker "
            "that runs the workflow too. Each result is in the history before the next step begins; any worker goes on "
            "after a crash. Timers, retries and signals are durable. A workflow id is an idempotency key. Workflows "
            "can be searched by attributes, here in SQLite. No budgets, no ledger of effects: an activity that was "
            "under way runs again unless its retries are off. Workers are Python's, without the sandbox; 4 shards."
        ),
        source="https://docs.temporal.io/temporal-service/temporal-server",
    )

    def __init__(self) -> None:
        self._python: Path
        self._binaries: Path
        self._servers: list[Server] = []
        self._programs: dict[Way, Program] = {}

    @property
    def version(self) -> str:
        return f"{_VERSION.removeprefix('v')}, SDK {pinned(LOCKS / 'temporal.lock', 'temporalio')}"

    def install(self) -> None:
        self._python = environment("temporal")
        self._binaries = go_commands("temporal", _MODULE, _VERSION, ("cmd/server", "cmd/tools/sql"))

    def start(self, place: Place) -> None:
        self._migrate(place)
        ports = free_ports(2 * len(_SERVICES) + 1)
        config, logs = place.data / "config.yaml", place.data / "logs"
        config.write_text(json.dumps(_configuration(place, ports)), "utf-8")  # JSON is YAML
        command: list[str | Path] = [self._binaries / "server", "--config-file", config, "--allow-no-auth", "start"]
        server = Server(self.card.name, "server", command, logs)
        self._servers.append(server)
        server.wait_for_port(ports[0])
        address = f"{HOST}:{ports[0]}"
        for way, queue, steps in (
            (Way.IN_PROCESS, _BOTH_QUEUE, _BOTH_QUEUE),
            (Way.OTHER_PROCESS, _WORKFLOW_QUEUE, _STEP_QUEUE),
        ):
            client = self._command(address, "client", queue, steps)
            self._programs[way] = Program(self.card.name, f"client-{queue}", client, logs).wait_until_ready()
        roles = [("workflows", _WORKFLOW_QUEUE), ("activities", _STEP_QUEUE)]
        for number, (role, queue) in enumerate([*roles, *[("both", _BOTH_QUEUE)] * processes_at_once()]):
            worker = self._command(address, role, queue, queue)
            self._servers.append(Server(self.card.name, f"{role}-{number}", worker, logs))

    def hold(self, way: Way, hold: Hold) -> Window:
        return hold_all([self._programs[way]], hold)

    def stop(self) -> None:
        for process in (*self._programs.values(), *reversed(self._servers)):
            process.stop()

    def _command(self, *arguments: str) -> list[str | Path]:
        return [self._python, PROGRAMS / "temporal_runs.py", *arguments]

    def _migrate(self, place: Place) -> None:
        """Make the tables by Temporal's own tool, which has the schemas in it."""
        where = ["--plugin", "postgres12", "--ep", place.host, "-p", str(place.port), "-u", place.user]
        where += ["--db", _DATABASE]
        for command in (["setup-schema", "-v", "0.0"], ["update-schema", "--schema-name", "postgresql/v12/temporal"]):
            done = Server(
                self.card.name,
                command[0],
                [self._binaries / "sql", *where, *command],
                place.data / "logs",
                {"SQL_PASSWORD": place.password},
            )
            done.wait_for_end()


def _configuration(place: Place, ports: list[int]) -> dict[str, Any]:
    """Return the configuration of its development setup, with our ports and our Postgres.

    What is searched lies in SQLite, as in its setup of one file: its tables for that in Postgres need an extension
    that the embedded Postgres does not have. No workflow waits for it.
    """
    histories = {
        "pluginName": "postgres12",
        "databaseName": _DATABASE,
        "connectAddr": f"{place.host}:{place.port}",
        "connectProtocol": "tcp",
        "user": place.user,
        "password": place.password,
        "maxConns": _CONNECTIONS,
        "maxIdleConns": _CONNECTIONS,
    }
    visibility = {
        "pluginName": "sqlite",
        "databaseName": str(place.data / "visibility.db"),
        "connectAddr": "localhost",
        "connectProtocol": "tcp",
        "connectAttributes": {"cache": "private", "setup": "true", "journal_mode": "wal", "synchronous": "2"},
        "maxConns": 1,
        "maxIdleConns": 1,
    }
    rpc = {
        name: {"rpc": {"grpcPort": ports[number], "membershipPort": ports[-1 - number], "bindOnLocalHost": True}}
        for number, name in enumerate(_SERVICES)
    }
    cluster = {"enabled": True, "initialFailoverVersion": 1, "rpcName": "frontend", "rpcAddress": f"{HOST}:{ports[0]}"}
    return {
        "log": {"stdout": True, "level": "warn"},
        "persistence": {
            "defaultStore": "default",
            "visibilityStore": "visibility",
            "numHistoryShards": _SHARDS,
            "datastores": {"default": {"sql": histories}, "visibility": {"sql": visibility}},
        },
        "global": {"membership": {"maxJoinDuration": "30s", "broadcastAddress": HOST}},
        "services": rpc,
        "clusterMetadata": {
            "enableGlobalNamespace": False,
            "failoverVersionIncrement": 10,
            "masterClusterName": "active",
            "currentClusterName": "active",
            "clusterInformation": {"active": cluster},
        },
        "dcRedirectionPolicy": {"policy": "noop"},
    }
