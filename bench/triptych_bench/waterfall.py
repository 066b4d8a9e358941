"""`python -m triptych_bench.waterfall`: what a step waits for when its run is alone, part by part.

The services write time stamps (`triptych.kernel.timestamps`), and those of one step are put in a row here. Two
revisions are measured in turn, beside each other.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from triptych_bench.cases import NOOP_EXCEPTIONS, STEPS_PER_RUN, Case
from triptych_bench.errors import BenchError
from triptych_bench.figures import Floor, median_floor, percentile
from triptych_bench.floor import Ground
from triptych_bench.load import Load
from triptych_bench.report import console_for_results
from triptych_bench.stack import Stack, running
from triptych_bench.trees import ROOT, Tree, trees_of

SETTING = "TRIPTYCH_TIMESTAMPS"
WARM_UP_RUNS = 200
FLOOR_S = 1.0
EXECUTOR, TOOL = "executor-1", "echo-1"
"""The instances whose time stamps a step is made of."""

EXECUTOR_PLACES = (
    "kafka.answered",
    "decider.polled",
    "decider.read",
    "decider.decided",
    "decider.encoded",
    "decider.committed",
    "kafka.produced",
)
TOOL_PLACES = (
    "kafka.answered",
    "worker.polled",
    "worker.begun",
    "worker.executed",
    "worker.encoded",
    "worker.committed",
    "kafka.produced",
)
ACKNOWLEDGED = "publisher.acknowledged"

EXECUTOR_PARTS = ("fetch", "read", "decide", "encode", "commit", "publish")
TOOL_PARTS = ("fetch", "read", "execute", "encode", "commit", "publish")
"""What lies between two places, in the order of the places."""


class Mark(NamedTuple):
    """One time stamp."""

    at_ns: int
    place: str


class Pass(NamedTuple):
    """One batch of one process: when it passed each place, and when Kafka acknowledged what it published."""

    at_ns: tuple[int, ...]
    acknowledged_ns: int | None


@dataclass(frozen=True, slots=True)
class Part:
    """One row of the table."""

    process: str
    name: str
    ms: Sequence[float]
    is_waited_for: bool = True


class Span(NamedTuple):
    """A window of time in which a stack had work."""

    from_ns: int
    until_ns: int


def read_marks(file: Path) -> list[Mark]:
    """Read the time stamps of a process."""
    return [Mark(int(at), place) for at, _, place in (line.partition(" ") for line in file.read_text().splitlines())]


def passes(marks: Sequence[Mark], places: Sequence[str]) -> list[Pass]:
    """Return the batches that passed all of these places in this order.

    The first place is passed for other reasons too, so the last time before the second counts.
    """
    found: list[Pass] = []
    first, second = places[0], places[1]
    answered_ns: int | None = None
    at_ns: list[int] = []
    for mark in marks:
        if mark.place == first:
            answered_ns = mark.at_ns
        elif mark.place == second and answered_ns is not None:
            at_ns = [answered_ns, mark.at_ns]
        elif mark.place == ACKNOWLEDGED and found and found[-1].acknowledged_ns is None:
            found[-1] = found[-1]._replace(acknowledged_ns=mark.at_ns)
        elif at_ns and mark.place == places[len(at_ns)]:
            at_ns.append(mark.at_ns)
            if len(at_ns) == len(places):
                found.append(Pass(tuple(at_ns), None))
                at_ns = []
    return found


def steps(executor: Sequence[Pass], tool: Sequence[Pass]) -> list[tuple[Pass, Pass, Pass]]:
    """Return the batches of each step: the executor asks, the tool answers, the executor reads that."""
    found = []
    begins = [each.at_ns[0] for each in executor]
    for answer in tool:
        following = bisect_left(begins, answer.at_ns[-1])
        if 0 < following < len(executor) and executor[following - 1].at_ns[-1] <= answer.at_ns[0]:
            found.append((executor[following - 1], answer, executor[following]))
    return found


def parts(found: Sequence[tuple[Pass, Pass, Pass]]) -> list[Part]:
    """Return the parts of these steps, one after the other, and what happens beside them."""
    asked, answered = [ask for ask, _, _ in found], [answer for _, answer, _ in found]
    rows = [Part("executor", name, _between(asked, number)) for number, name in enumerate(EXECUTOR_PARTS)]
    rows.append(Part("Kafka", "hop to the tool", [_ms(b.at_ns[0] - a.at_ns[-1]) for a, b, _ in found]))
    rows += [Part("tool", name, _between(answered, number)) for number, name in enumerate(TOOL_PARTS)]
    rows.append(Part("Kafka", "hop to the executor", [_ms(c.at_ns[0] - b.at_ns[-1]) for _, b, c in found]))
    rows.append(Part("", "a step", [_ms(c.at_ns[0] - a.at_ns[0]) for a, _, c in found]))
    for process, ones in (("executor", asked), ("tool", answered)):
        waited = [_ms(one.acknowledged_ns - one.at_ns[-1]) for one in ones if one.acknowledged_ns is not None]
        rows.append(Part(process, "acknowledgement", waited, is_waited_for=False))
    return rows


def _between(found: Sequence[Pass], number: int) -> list[float]:
    return [_ms(one.at_ns[number + 1] - one.at_ns[number]) for one in found]


def _ms(ns: int) -> float:
    return ns / 1e6


@dataclass(slots=True)
class Measured:
    """What was measured of one tree."""

    tree: Tree
    spans: list[Span]
    ms_a_step: list[float]
    """Of each round: the p50 of a run by its steps, admission, plan and outcome included."""
    parts: Sequence[Part] = ()


async def measure(stacks: Sequence[Stack], rounds: int, seconds: float) -> tuple[Floor, list[Measured]]:
    """Play runs one after the other on each stack in turn."""
    measured = [Measured(stack.tree, [], []) for stack in stacks]
    floors: list[Floor] = []
    async with AsyncExitStack() as opened:
        loads = [await opened.enter_async_context(Load(stack)) for stack in stacks]
        ground = await opened.enter_async_context(Ground(stacks[-1]))
        for load in loads:
            await _alone(load, 0, WARM_UP_RUNS)
        for number in range(rounds):
            floors.append(await ground.measure(FLOOR_S))
            turns = list(zip(loads, measured, strict=True))
            for load, one in turns if number % 2 == 0 else reversed(turns):
                began_ns = time.monotonic_ns()
                one.ms_a_step.append(await _alone(load, seconds, 1))
                one.spans.append(Span(began_ns, time.monotonic_ns()))
    return median_floor(floors), measured


async def _alone(load: Load, seconds: float, runs: int) -> float:
    window = await load.hold(Case(NOOP_EXCEPTIONS, 1), settle_s=0, window_s=seconds, generations=runs)
    return percentile(window.latencies_ms, 50) / STEPS_PER_RUN


def read_parts(folder: Path, spans: Iterable[Span]) -> list[Part]:
    """Read what the services wrote, as far as it lies within these spans."""
    files = {name: folder / name for name in (EXECUTOR, TOOL)}
    if not all(file.exists() for file in files.values()):
        return []  # a revision from before there were time stamps
    marks = {name: read_marks(file) for name, file in files.items()}
    found: list[tuple[Pass, Pass, Pass]] = []
    for span in spans:
        within = {
            name: [one for one in all_of if span.from_ns <= one.at_ns < span.until_ns] for name, all_of in marks.items()
        }
        found += steps(passes(within[EXECUTOR], EXECUTOR_PLACES), passes(within[TOOL], TOOL_PLACES))
    return parts(found)


def show(floor: Floor, measured: Sequence[Measured], console: Console) -> None:
    """Print the floor, and for each tree its parts."""
    floor_ms = floor.step_ms(NOOP_EXCEPTIONS)
    console.print(f"floor: hop {floor.hop_ms:.2f} ms, commit {floor.commit_ms:.2f} ms, a step {floor_ms:.2f} ms")
    for one in measured:
        ms = statistics.median(one.ms_a_step)
        console.print(
            f"\n[bold]{one.tree.name}[/]: a run by its steps {ms:.2f} ms, {ms / floor_ms:.2f} times the floor "
            f"(rounds {min(one.ms_a_step):.2f} to {max(one.ms_a_step):.2f})"
        )
        if one.parts:
            console.print(_table(one.parts))
    if len(measured) > 1:
        ratios = [after / before for before, after in zip(*(one.ms_a_step for one in measured), strict=True)]
        console.print(
            f"\nafter by before, pair by pair: {'  '.join(f'{ratio:.2f}' for ratio in ratios)}; "
            f"median [bold]{statistics.median(ratios):.3f}[/]"
        )


def _table(found: Sequence[Part]) -> Table:
    table = Table("process", "part", box=None, header_style="bold")
    for column in ("p10 ms", "p50 ms", "p90 ms"):
        table.add_column(column, justify="right")
    for part in found:
        if part.ms:
            figures = (percentile(part.ms, percent) for percent in (10, 50, 90))
            name = part.name if part.is_waited_for else f"({part.name}, beside)"
            table.add_row(part.process, name, *(f"{figure:.3f}" for figure in figures))
    return table


def as_json(floor: Floor, measured: Sequence[Measured]) -> Mapping[str, object]:
    """Return everything for a program."""
    return {
        "floor": asdict(floor),
        "trees": [
            {
                "name": one.tree.name,
                "commit": one.tree.commit,
                "ms_a_step": one.ms_a_step,
                "parts": [
                    {
                        "process": part.process,
                        "part": part.name,
                        "p10_ms": percentile(part.ms, 10),
                        "p50_ms": percentile(part.ms, 50),
                        "p90_ms": percentile(part.ms, 90),
                    }
                    for part in one.parts
                    if part.ms
                ],
            }
            for one in measured
        ],
    }


def main(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="How often each tree has its turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long a turn is.")] = 4.0,
    compare: Annotated[
        str | None,
        typer.Option(metavar="REV[..REV]", help="Compare a revision with the tree as it is, or with another."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where waterfall.json goes.")] = ROOT / ".triptych" / "bench",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data, the logs and the time stamps.")] = False,
) -> None:
    """Play runs one after the other and print what a step waits for, part by part."""
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="data-", dir=out.resolve()))
    try:
        floor, measured = _measure_trees(
            trees_of(compare, scratch), scratch, lambda stacks: uvloop.run(measure(stacks, rounds, seconds))
        )
    except BenchError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    finally:
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)
    (out / "waterfall.json").write_text(json.dumps(as_json(floor, measured), indent=2) + "\n", "utf-8")
    show(floor, measured, console_for_results())


def _measure_trees(
    trees: Sequence[Tree], scratch: Path, run: Callable[[Sequence[Stack]], tuple[Floor, list[Measured]]]
) -> tuple[Floor, list[Measured]]:
    """Measure stacks side by side. The services write their time stamps when they stop."""
    folders = [scratch / f"timestamps-{number}" for number, _ in enumerate(trees, 1)]
    with ExitStack() as started:
        stacks = [
            started.enter_context(running(tree, scratch / f"stack-{number}", {SETTING: str(folder)}))
            for number, (tree, folder) in enumerate(zip(trees, folders, strict=True), 1)
        ]
        floor, measured = run(stacks)
    for one, folder in zip(measured, folders, strict=True):
        one.parts = read_parts(folder, one.spans)
    return floor, measured


if __name__ == "__main__":
    typer.run(main)
