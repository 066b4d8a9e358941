"""DBOS on Postgres: a library. A step elsewhere is a workflow of its own, on a queue that another process reads."""

from __future__ import annotations

from pathlib import Path

from triptych_bench.beside.driver import Card, Hold, Place, Way
from triptych_bench.beside.installs import LOCKS, environment, pinned
from triptych_bench.beside.processes import PROGRAMS, Program, hold_all, processes_at_once
from triptych_bench.figures import Window

_DATABASES = {Way.IN_PROCESS: "bench_dbos_in_process", Way.OTHER_PROCESS: "bench_dbos_other_process"}


class Dbos:
    """Workflows of five steps; in process, one process a core."""

    card = Card(
        name="dbos",
        title="DBOS",
        ways=(Way.IN_PROCESS, Way.OTHER_PROCESS),
        databases=tuple(_DATABASES.values()),
        promises=(
            "A library. Each step's result is in Postgres before the next step begins. After a crash a workflow "
            "goes on when a process with the same executor id starts again. Another process takes over only where the "
            "service Conductor tells it to. A workflow id is an idempotency key. Queues "
            "limit rate and concurrency. Queues and results are polled, here every 10 ms, by default every second. "
            "No budgets, no ledger of effects: a step that was under way at a crash runs again."
        ),
        source="https://docs.dbos.dev/production/workflow-recovery",
    )

    def __init__(self) -> None:
        self._python: Path
        self._place: Place
        self._programs: dict[Way, list[Program]] = {way: [] for way in Way}
        self._worker: Program | None = None

    @property
    def version(self) -> str:
        return pinned(LOCKS / "dbos.lock", "dbos")

    def install(self) -> None:
        self._python = environment("dbos")

    def start(self, place: Place) -> None:
        self._place = place
        for number in range(processes_at_once()):
            self._programs[Way.IN_PROCESS].append(self._program(place, "runs", Way.IN_PROCESS, number))
        self._programs[Way.OTHER_PROCESS].append(self._program(place, "runs", Way.OTHER_PROCESS, 0))

    def hold(self, way: Way, hold: Hold) -> Window:
        if way is Way.IN_PROCESS:
            return hold_all(self._programs[way], hold)
        # A worker polls all the time. It lives for its own turns only, so that others have the machine to themselves.
        self._worker = self._program(self._place, "steps", way, 0)
        try:
            return hold_all(self._programs[way], hold)
        finally:
            self._stop_worker()

    def stop(self) -> None:
        for program in (*self._programs[Way.IN_PROCESS], *self._programs[Way.OTHER_PROCESS]):
            program.stop()
        self._stop_worker()

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _program(self, place: Place, role: str, way: Way, number: int) -> Program:
        """Start a process and wait for it, since the first one makes the tables."""
        command = (
            self._python,
            PROGRAMS / "dbos_runs.py",
            role,
            way.value,
            str(number),
            place.database(_DATABASES[way]),
        )
        name = f"{role}-{way.name.lower()}-{number}"
        return Program(self.card.name, name, command, place.data / "logs").wait_until_ready()
