"""`python -m triptych_bench`: start a stack, measure it, report, and leave nothing running."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from triptych_bench import plot
from triptych_bench.cases import REVIEWS
from triptych_bench.errors import BenchError
from triptych_bench.report import Report, as_json, console_for_results, describe_machine, show
from triptych_bench.rounds import FULL, QUICK, Measured, Schedule, measure
from triptych_bench.stack import running
from triptych_bench.trees import ROOT, Tree, unpack, working_tree

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
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where bench.json and bench.png go.")] = _OUT,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data and the logs.")] = False,
) -> None:
    """Measure runs of five steps, and steps that fan out, through all services, beside the floor of the machine."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    schedule = QUICK if quick else FULL
    if rounds is not None:
        schedule = replace(schedule, rounds=rounds)
    if in_flight:
        schedule = replace(schedule, in_flight=tuple(sorted(set(in_flight))))
    out.mkdir(parents=True, exist_ok=True)
    # Beside the results: where temporary files go may be memory, and a commit would cost nothing there.
    scratch = Path(tempfile.mkdtemp(prefix="data-", dir=out.resolve()))
    machine = describe_machine()
    try:
        trees = _trees(compare, scratch)
        measured = _measure(trees, scratch, schedule)
    except BenchError as error:
        _err.print(str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    finally:
        if keep:
            _err.print(f"The data and the logs are in {scratch}.")
        else:
            shutil.rmtree(scratch)
    report = Report.of(trees, measured, schedule, machine)
    show(report, console_for_results())
    (out / "bench.json").write_text(json.dumps(as_json(report), indent=2) + "\n", "utf-8")
    plot.save(report, out / "bench.png")
    _err.print(f"Written: {out / 'bench.json'} and {out / 'bench.png'}")


def _trees(compare: str | None, scratch: Path) -> list[Tree]:
    """Return the trees to measure: first the one to compare with, if there are two."""
    if compare is None:
        return [working_tree()]
    base, _, head = compare.partition("..")
    return [unpack(base, scratch / "base"), unpack(head, scratch / "head") if head else working_tree()]


def _measure(trees: Sequence[Tree], scratch: Path, schedule: Schedule) -> Measured:
    """Start a stack for each tree, all beside each other, and measure them."""
    turns = len(trees) * (schedule.turns + len(REVIEWS))
    with ExitStack() as started:
        stacks = [
            started.enter_context(running(tree, scratch / f"stack-{number}")) for number, tree in enumerate(trees, 1)
        ]
        columns = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=_err, transient=True) as progress:
            shown = progress.add_task("", total=turns, completed=-1)

            def say(text: str) -> None:
                progress.update(shown, advance=1, description=text)
                if not _err.is_terminal:
                    _err.print(text)

            return uvloop.run(measure(stacks, schedule, say))


if __name__ == "__main__":
    typer.run(bench)
