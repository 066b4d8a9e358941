"""LangGraph with its Postgres checkpointer. A graph runs in the process that calls it; there is no other process."""

from __future__ import annotations

from pathlib import Path

from triptych_bench.beside.driver import Card, Hold, Place, Way
from triptych_bench.beside.installs import LOCKS, environment, pinned
from triptych_bench.beside.processes import PROGRAMS, Program, hold_all, processes_at_once
from triptych_bench.figures import Window

_DATABASE = "bench_langgraph"


class LangGraph:
    """Runs of five nodes in a row, `durability="sync"`, one process a core."""

    card = Card(
        name="langgraph",
        title="LangGraph",
        ways=(Way.IN_PROCESS,),
        databases=(_DATABASE,),
        promises=(
            'A library. The state of a graph is in Postgres before the next node begins (durability="sync"). After a '
            "crash somebody must call the graph again with the same thread id; then the node that was under way "
            "begins again. No server, no queue, no worker that takes over, no retry across processes: a node "
            "always runs in the process of its graph. No budgets; what a node did is not keyed."
        ),
        source="https://docs.langchain.com/oss/python/langgraph/durable-execution",
    )

    def __init__(self) -> None:
        self._python: Path
        self._programs: list[Program] = []

    @property
    def version(self) -> str:
        return pinned(LOCKS / "langgraph.lock", "langgraph")

    def install(self) -> None:
        self._python = environment("langgraph")

    def start(self, place: Place) -> None:
        url = place.database(_DATABASE)
        for number in range(processes_at_once()):
            # One after the other, since each makes the tables if they are not there.
            command = (self._python, PROGRAMS / "langgraph_runs.py", url)
            self._programs.append(Program(self.card.name, f"runs-{number}", command, place.data / "logs"))
            self._programs[-1].wait_until_ready()

    def hold(self, way: Way, hold: Hold) -> Window:  # noqa: ARG002 - there is one way
        return hold_all(self._programs, hold)

    def stop(self) -> None:
        for program in self._programs:
            program.stop()
