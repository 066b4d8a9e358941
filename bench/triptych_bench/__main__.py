"""`python -m triptych_bench`: start a stack, measure it, report, and leave nothing running."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from triptych_bench import report as alone_report
from triptych_bench.beside import report as beside_report
from triptych_bench.beside import rounds as beside_rounds
from triptych_bench.beside.driver import Driver
from triptych_bench.beside.products import KNOWN, chosen
from triptych_bench.beside.report import BesideReport
from triptych_bench.beside.rounds import IN_FLIGHT, OUR_REVIEWS
from triptych_bench.beside.running import installed, started
from triptych_bench.cases import REVIEWS
from triptych_bench.errors import BenchError, ProductError, UnknownProductError
from triptych_bench.report import Report, console_for_results, describe_machine
from triptych_bench.rounds import FULL, QUICK, Measured, Schedule, measure
from triptych_bench.stack import running
from triptych_bench.trees import ROOT, Tree, trees_of, working_tree

_OUT = ROOT / ".triptych" / "bench"
_err = Console(stderr=True, highlight=False)


def bench(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two short rounds: does it run, and roughly how fast?")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many rounds the medians are of.")] = None,
    in_flight: Annotated[list[int] | None, typer.Option(min=1, help="Only this many runs in flight.")] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="REV[..REV]", help="Compare a revision with the tree as it is, or with another."),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME]", help=f"Do the same work on other products: {', '.join(KNOWN)}."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files of results go.")] = _OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON in place of tables.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data and the logs.")] = False,
) -> None:
    """Measure runs of five steps, and steps that fan out, through all services, beside the floor of the machine."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if compare and beside:
        raise typer.BadParameter("--compare and --beside are two measurements. Make one after the other.")
    try:
        drivers = chosen(beside) if beside is not None else []
    except UnknownProductError as error:
        raise typer.BadParameter(str(error)) from error
    schedule = QUICK if quick else FULL
    if rounds is not None:
        schedule = replace(schedule, rounds=rounds)
    if in_flight or drivers:
        schedule = replace(schedule, in_flight=tuple(sorted(set(in_flight or IN_FLIGHT))))
    out.mkdir(parents=True, exist_ok=True)
    # Beside the results: where temporary files go may be memory, and a commit would cost nothing there.
    scratch = Path(tempfile.mkdtemp(prefix="data-", dir=out.resolve()))
    try:
        done = _beside(drivers, scratch, schedule) if drivers else _alone(compare, scratch, schedule, out)
    except BenchError as error:
        _say_error(error)
        sys.exit(1)
    finally:
        if keep:
            _err.print(f"The data and the logs are in {scratch}.")
        else:
            shutil.rmtree(scratch)
    written = json.dumps(done.figures, indent=2)
    (out / done.file).write_text(written + "\n", "utf-8")
    if as_json:
        print(written)  # noqa: T201 - for a program
    else:
        done.show(console_for_results())
    _err.print(f"Written: {out / done.file}")
    sys.exit(1 if done.failed else 0)


@dataclass(frozen=True, slots=True)
class _Done:
    """A measurement that was made, ready to be written and shown."""

    file: str
    figures: dict[str, Any]
    show: Callable[[Console], None]
    failed: bool = False
    """Something that was asked for has no figures."""


def _alone(compare: str | None, scratch: Path, schedule: Schedule, out: Path) -> _Done:
    """Measure one tree, or two beside each other."""
    from triptych_bench import plot  # noqa: PLC0415 - the tests of the command are run without matplotlib

    machine = describe_machine()
    trees = trees_of(compare, scratch)
    report = Report.of(trees, _measure(trees, scratch, schedule), schedule, machine)
    plot.save(report, out / "bench.png")
    return _Done("bench.json", alone_report.as_json(report), partial(alone_report.show, report))


def _beside(drivers: Sequence[Driver], scratch: Path, schedule: Schedule) -> _Done:
    """Measure this tree and other products beside each other."""
    machine, tree = describe_machine(), working_tree()
    failures: list[ProductError] = []

    def tell(failure: ProductError) -> None:
        failures.append(failure)
        _say_error(failure)

    ready = installed(drivers, _err.print, tell)
    with (
        running(tree, scratch / "stack") as stack,
        started(ready, stack.owner, scratch, _err.print, tell) as up,
        _progress((len(OUR_REVIEWS) + sum(len(driver.card.ways) for driver in up)) * _turns(schedule)) as say,
    ):
        compared = uvloop.run(beside_rounds.compare(stack, up, schedule, say))
    for failure in compared.failures:
        _say_error(failure)
    compared.failures[:0] = failures
    report = BesideReport(
        tree,
        [driver.card for driver in drivers],
        {driver.card.name: driver.version for driver in drivers},
        compared,
        schedule,
        machine,
        datetime.now(UTC),
    )
    figures = beside_report.as_json(report)
    return _Done("beside.json", figures, partial(beside_report.show, report), failed=bool(compared.failures))


def _turns(schedule: Schedule) -> int:
    """Return how often a row of products is measured: to warm up, and with each number of runs in each round."""
    return 1 + schedule.rounds * len(schedule.in_flight)


def _measure(trees: Sequence[Tree], scratch: Path, schedule: Schedule) -> Measured:
    """Start a stack for each tree, all beside each other, and measure them."""
    turns = len(trees) * (schedule.turns + len(REVIEWS))
    with ExitStack() as started:
        stacks = [
            started.enter_context(running(tree, scratch / f"stack-{number}")) for number, tree in enumerate(trees, 1)
        ]
        with _progress(turns) as say:
            return uvloop.run(measure(stacks, schedule, say))


@contextmanager
def _progress(turns: int) -> Iterator[Callable[[str], None]]:
    """Show how far it is, and give a function that says what comes next."""
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=_err, transient=True) as progress:
        shown = progress.add_task("", total=turns, completed=-1)

        def say(text: str) -> None:
            progress.update(shown, advance=1, description=text)
            if not _err.is_terminal:
                _err.print(text)

        yield say


def _say_error(error: BenchError) -> None:
    _err.print(str(error), style="red", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(bench)
