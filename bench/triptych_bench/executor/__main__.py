"""`make bench-executor`: what a step costs the executor, part by part, and one tree beside another, turn by turn.

Each turn is a process of its own with the code of one tree. So both trees are measured by the same benchmark, on one
Postgres, each in a database of its own.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer
from rich.console import Console
from rich.table import Table

from triptych_bench.errors import BenchError
from triptych_bench.report import console_for_results, describe_machine
from triptych_bench.size.__main__ import postgres
from triptych_bench.trees import ROOT, Tree, trees_of

REVIEWS = ("exceptions", "every-step")
POSTGRES = "Postgres"
_OUT = ROOT / ".triptych" / "bench"


class PlayFailedError(BenchError):
    """A process that plays runs has failed."""

    def __init__(self, tree: str, said: str) -> None:
        super().__init__(f"runs could not be played on the code of {tree}: {said.strip()[-2_000:]}")
        self.tree = tree


@dataclass(slots=True)
class Turns:
    """The microseconds a step of each part in each turn, by the way to review."""

    tree: Tree
    turns: dict[str, list[Mapping[str, float]]] = field(default_factory=lambda: {name: [] for name in REVIEWS})

    def us(self, review: str, part: str) -> list[float]:
        """Return the figures of a part, turn by turn."""
        return [turn[part] for turn in self.turns[review]]

    def process_us(self, review: str) -> list[float]:
        """Return what all parts of the executor's process cost together, turn by turn."""
        return [sum(us for part, us in turn.items() if part != POSTGRES) for turn in self.turns[review]]


def main(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="How often each tree has its turn.")] = 5,
    in_flight: Annotated[int, typer.Option(min=1, max=500, help="How many messages a batch has.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="How often a turn plays that many runs.")] = 3,
    compare: Annotated[
        str | None,
        typer.Option(metavar="REV[..REV]", help="Compare a revision with the tree as it is, or with another."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where executor.json goes.")] = _OUT,
) -> None:
    """Play runs on the executor's own code without Kafka, and print the processor time of each part."""
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="executor-", dir=out.resolve()))
    machine = describe_machine()
    try:
        measured = [Turns(tree) for tree in trees_of(compare, scratch)]
        with postgres(scratch) as dsn:
            for number in range(rounds):
                for review in REVIEWS:
                    for place, one in _in_turn(measured, number):
                        arguments = {"postgres": _database(dsn, place), "playbook": f"noop-{review}"}
                        more = {"in-flight": str(in_flight), "turns": str(repeats)}
                        one.turns[review].append(play(one.tree, arguments | more))
    except BenchError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found = {"machine": machine, "in_flight": in_flight, "trees": [_as_json(one) for one in measured]}
    (out / "executor.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    _show(measured, console_for_results())


def _in_turn(measured: Sequence[Turns], number: int) -> Iterator[tuple[int, Turns]]:
    """Give the trees in the opposite order in each other round."""
    yield from sorted(enumerate(measured), reverse=bool(number % 2), key=lambda each: each[0])


def _database(dsn: str, place: int) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/executor{place}"))


def play(tree: Tree, options: Mapping[str, str]) -> Mapping[str, float]:
    """Play runs on the code of a tree. Return the microseconds a step of each part. Raises PlayFailedError."""
    command = [sys.executable, "-P", "-m", "triptych_bench.executor.play"]
    command += [f"--{name}={value}" for name, value in options.items()]
    played = subprocess.run(command, env=tree.environment(), capture_output=True, text=True, check=False)
    if played.returncode:
        raise PlayFailedError(tree.name, played.stderr)
    figures: Mapping[str, float] = json.loads(played.stdout)
    return figures


def _as_json(one: Turns) -> dict[str, Any]:
    return {"name": one.tree.name, "commit": one.tree.commit, "us_a_step": one.turns}


def _show(measured: Sequence[Turns], console: Console) -> None:
    """Print the medians of each part; of two trees, the ratios of each pair as well."""
    for review in REVIEWS:
        console.print(f"\n[bold]{review}[/]: microseconds of processor time a step, medians")
        table = Table("part", box=None, header_style="bold")
        for one in measured:
            table.add_column(one.tree.name, justify="right")
        if len(measured) > 1:
            table.add_column("after ÷ before, pair by pair", justify="right")
        for part in measured[0].turns[review][0]:
            _add(table, part, [one.us(review, part) for one in measured])
        _add(table, "without Postgres", [one.process_us(review) for one in measured])
        console.print(table)


def _add(table: Table, part: str, figures: Sequence[Sequence[float]]) -> None:
    row = [part, *(f"{statistics.median(each):.1f}" for each in figures)]
    if len(figures) > 1:
        ratios = [after / before if before else float("nan") for before, after in zip(*figures, strict=True)]
        row.append(f"{statistics.median(ratios):.3f}  ({min(ratios):.2f} to {max(ratios):.2f})")
    table.add_row(*row)


if __name__ == "__main__":
    typer.run(main)
