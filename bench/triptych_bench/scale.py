"""`python -m triptych_bench.scale`: what a step costs with more processes and with more partitions.

Each row is a stack of its own, started, measured and stopped before the next, so that idle stacks cost nothing. A
round has each row once; the next round goes in the opposite direction. Each ratio is taken within its round.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import uvloop
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from rich.console import Console
from rich.table import Table

from triptych.embedded.layout import Layout, write_json
from triptych_bench.cases import NOOP_EXCEPTIONS, STEPS_PER_RUN, Case
from triptych_bench.errors import BenchError
from triptych_bench.figures import BESIDE, percentile, pipeline_ms
from triptych_bench.load import Load
from triptych_bench.processes import Processes
from triptych_bench.report import console_for_results, describe_machine
from triptych_bench.stack import Stack, running
from triptych_bench.trees import ROOT, Tree, unpack, working_tree

SCALED = ("executor", NOOP_EXCEPTIONS.tool)
"""The services that a row has several processes of."""
KINDS = ("executor", NOOP_EXCEPTIONS.tool, "planner", "critic", "postgres", "kafka")
"""The columns of processor time."""
MOST_PARTITIONS, MOST_PROCESSES = 512, 32
FOUND_AFTER_S = 8.0
"""Services find new partitions within 5 s, and then their groups begin again."""
IN_FLIGHT = (1, 200)
_err = Console(stderr=True, highlight=False)


class Row(NamedTuple):
    """What a stack is started with."""

    tree: Tree
    partitions: int
    processes: int

    @property
    def name(self) -> str:
        return f"{self.tree.name}, {self.partitions} partitions, processes: {self.processes}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What steps cost in one round, with one number of runs in flight."""

    steps_per_s: float
    ms_a_step: float
    cpu_ms_a_step: Mapping[str, float]
    """Processor time of each process by all steps of the round."""

    @property
    def total_ms(self) -> float:
        return pipeline_ms(self.cpu_ms_a_step)


@dataclass(frozen=True, slots=True)
class Turn:
    """One stack, measured once."""

    idle_ms_a_s: float
    """Processor time of the pipeline in a second without work."""
    costs: Mapping[int, Cost]
    """By runs in flight."""


Measured = Mapping[Row, Sequence[Turn]]


def numbers(text: str, most: int) -> list[int]:
    """Read `1,2,4`. Raises typer.BadParameter."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers. Write it like 1,2,4.") from None
    if wrong := [number for number in found if not 1 <= number <= most]:
        raise typer.BadParameter(f"{wrong[0]} is not between 1 and {most}.")
    return list(dict.fromkeys(found))


def rows(trees: Sequence[Tree], partitions: Sequence[int], processes: Sequence[int]) -> list[Row]:
    """Return the rows of the table: all pairs in which each process has a partition. Raises typer.BadParameter."""
    found = [Row(tree, most, count) for most in partitions for count in processes if count <= most for tree in trees]
    if not found:
        raise typer.BadParameter(
            f"{min(processes)} processes have nothing to do with {max(partitions)} partitions. Ask for more of these."
        )
    return found


def by_kind(cpu_ms: Mapping[str, float]) -> dict[str, float]:
    """Add up the processes of each service: `executor` and `executor-2` are of one kind."""
    added: dict[str, float] = defaultdict(float)
    for name, spent in cpu_ms.items():
        added[re.sub(r"-\d+$", "", name)] += spent
    return dict(added)


def ratios(measured: Measured, row: Row, in_flight: int) -> list[float]:
    """Divide the processor time of a step by that of the first row, round by round."""
    first = next(iter(measured.values()))
    pairs = zip(first, measured[row], strict=True)
    return [after.costs[in_flight].total_ms / before.costs[in_flight].total_ms for before, after in pairs]


async def grow(stack: Stack, partitions: int) -> None:
    """Add partitions to all topics of a stack that have several, and wait until the services can have found them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka)
    try:
        await admin.start()
        found = {each["topic"]: len(each["partitions"]) for each in await admin.describe_topics()}
        own = {name: count for name, count in found.items() if name.startswith(f"{stack.topic_prefix}.")}
        lacking = [name for name, count in own.items() if 1 < count < partitions]
        if lacking:
            await admin.create_partitions({name: NewPartitions(partitions) for name in lacking})
    finally:
        await admin.close()
    await asyncio.sleep(FOUND_AFTER_S)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long things are measured."""

    in_flight: Sequence[int]
    seconds: float
    warm_up_s: float

    async def measure(self, stack: Stack, partitions: int) -> Turn:
        """Give a stack its partitions, warm it up and measure it."""
        await grow(stack, partitions)
        processes = Processes(stack.pids, stack.layout.logs)
        async with Load(stack) as load:
            warm = Case(NOOP_EXCEPTIONS, max(50, 4 * partitions))
            await load.hold(warm, settle_s=0, window_s=self.warm_up_s, generations=1)
            costs = {count: await self._cost(load, processes, count) for count in self.in_flight}
        before = processes.cpu_ms()
        began = time.monotonic()
        await asyncio.sleep(self.seconds)
        spent = {name: ms - before[name] for name, ms in processes.cpu_ms().items()}
        return Turn(pipeline_ms(spent) / (time.monotonic() - began), costs)

    async def _cost(self, load: Load, processes: Processes, in_flight: int) -> Cost:
        steps, before = load.steps, processes.cpu_ms()
        window = await load.hold(Case(NOOP_EXCEPTIONS, in_flight), settle_s=0.3, window_s=self.seconds, generations=1)
        steps = load.steps - steps
        return Cost(
            window.steps / window.span_s,
            percentile(window.latencies_ms, 50) / STEPS_PER_RUN,
            {name: (spent - before[name]) / steps for name, spent in processes.cpu_ms().items()},
        )


def measure(found: Sequence[Row], scratch: Path, rounds: int, plan: Plan, say: Callable[[str], None]) -> Measured:
    """Give each row its turn in each round. Raises BenchError."""
    measured: dict[Row, list[Turn]] = {row: [] for row in found}
    for number in range(rounds):
        for row in found if number % 2 == 0 else reversed(found):
            say(f"round {number + 1} of {rounds}: {row.name}")
            data = scratch / "stack"
            write_json(Layout.at(data).scale, dict.fromkeys(SCALED, row.processes))
            with running(row.tree, data) as stack:
                measured[row].append(uvloop.run(plan.measure(stack, row.partitions)))
            shutil.rmtree(data)
    return measured


def show(measured: Measured, console: Console) -> None:
    """Print a table for each number of runs in flight: medians over the rounds, and ratios with their range."""
    first = next(iter(measured.values()))
    for in_flight in first[0].costs:
        console.print(f"\n[bold]{in_flight} in flight[/]: processor milliseconds a step")
        console.print(_table(measured, in_flight))
    console.print("\nA service has the figure of all its processes, divided by all steps.")
    console.print("The column `by first` divides a row by the first one of the same round: median and range.")
    console.print("The column `idle` is for a second without work, in milliseconds.")


def _table(measured: Measured, in_flight: int) -> Table:
    table = Table("tree", box=None, header_style="bold")
    for column in ("partitions", "processes", "steps/s", "ms a step", "in all", *KINDS, "by first", "range", "idle"):
        table.add_column(column, justify="right")
    for row, turns in measured.items():
        costs = [turn.costs[in_flight] for turn in turns]
        kinds = [by_kind(cost.cpu_ms_a_step) for cost in costs]
        found = ratios(measured, row, in_flight)
        table.add_row(
            row.tree.name,
            str(row.partitions),
            str(row.processes),
            f"{statistics.median(cost.steps_per_s for cost in costs):,.0f}",
            f"{statistics.median(cost.ms_a_step for cost in costs):.1f}",
            f"{statistics.median(cost.total_ms for cost in costs):.2f}",
            *(f"{statistics.median(kind.get(name, 0.0) for kind in kinds):.2f}" for name in KINDS),
            f"{statistics.median(found):.2f}",
            f"{min(found):.2f} to {max(found):.2f}",
            f"{statistics.median(turn.idle_ms_a_s for turn in turns):.0f}",
        )
    return table


def as_json(measured: Measured) -> dict[str, Any]:
    """Return every round of every row for a program."""
    return {
        "machine": describe_machine(),
        "beside": sorted(BESIDE),
        "rows": [
            {
                "tree": row.tree.name,
                "partitions": row.partitions,
                "processes": row.processes,
                "rounds": [asdict(turn) for turn in turns],
                "ratios": {count: ratios(measured, row, count) for count in turns[0].costs},
            }
            for row, turns in measured.items()
        ],
    }


def main(
    *,
    processes: Annotated[str, typer.Option(metavar="N[,N]", help="Executors, and processes of the tool.")] = "1,2,4",
    partitions: Annotated[str, typer.Option(metavar="N[,N]", help="Partitions of each topic.")] = "8",
    in_flight: Annotated[list[int] | None, typer.Option(min=1, help="Runs in flight.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each row has its turn.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long a window is.")] = 6.0,
    compare: Annotated[
        str | None, typer.Option(metavar="REV", help="Give each row a second one of a revision.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where scale.json goes.")] = ROOT / ".triptych" / "bench",
    as_json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON in place of tables.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data and the logs of what failed.")] = False,
) -> None:
    """Measure what a step costs with more executors and tools, and with more partitions."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    counts, widths = numbers(processes, MOST_PROCESSES), numbers(partitions, MOST_PARTITIONS)
    rows([working_tree()], widths, counts)  # a bad pair is refused before a revision is unpacked
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="data-", dir=out.resolve()))
    plan = Plan(in_flight or IN_FLIGHT, seconds, warm_up_s=seconds)
    try:
        trees = [unpack(compare, scratch / "base"), working_tree()] if compare else [working_tree()]
        found = rows(trees, widths, counts)
        measured = measure(found, scratch, rounds, plan, _err.print)
    except BenchError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    finally:
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)
    written = json.dumps(as_json(measured), indent=2)
    (out / "scale.json").write_text(written + "\n", "utf-8")
    if as_json_:
        print(written)  # noqa: T201 - for a program
    else:
        show(measured, console_for_results())


if __name__ == "__main__":
    typer.run(main)
