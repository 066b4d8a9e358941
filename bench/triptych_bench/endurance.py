"""`python -m triptych_bench.endurance`: many runs in a row, and whether the last are served as the first were.

It prints, for each tenth of the runs, the speed, the memory of each process and what the tables take that should not
grow. It ends with code 1 when the last tenth is more than 10% slower than the first, or memory or a table grew.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import asyncpg
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from triptych_bench.cases import NOOP_EXCEPTIONS, Case
from triptych_bench.errors import BenchError
from triptych_bench.figures import CLIENT
from triptych_bench.load import Load
from triptych_bench.processes import Processes
from triptych_bench.stack import Stack, running
from triptych_bench.trees import ROOT, working_tree

TENTHS = 10
IN_FLIGHT = 100
MIN_SPEED = 0.9
"""Of the last tenth by the first."""
MAX_GROWTH = 1.2
"""Of memory, from the end of the second tenth, since caches fill before that; and of tables, from the largest that
they were in the first half. Autovacuum comes by once a minute, and until then a table takes what goes through it."""
MIN_TABLE_MB = 8.0
"""A table smaller than this has not bloated."""
KEPT = "jobs"
"""Rows of this table stay until retention removes them, so what counts is what each of them takes."""
_TABLES = """
    select schemaname || '.' || relname as name, pg_total_relation_size(relid) / 1048576.0 as mb,
           n_live_tup as live, n_dead_tup as dead
    from pg_stat_user_tables where relname in ('outbox', 'jobs', 'timers', 'queue', 'partitions') order by 1
"""


@dataclass(frozen=True, slots=True)
class Tenth:
    """What was seen at the end of one tenth of the runs."""

    runs: int
    steps_per_s: float
    memory_mb: dict[str, float]
    table_mb: dict[str, float]
    live_rows: dict[str, int]
    dead_rows: dict[str, int]

    def size(self, table: str) -> float:
        """Return what should not grow: MB of a table, or of a thousand rows where rows are kept."""
        mb = self.table_mb[table]
        return mb / max(1, self.live_rows[table]) * 1_000 if table.endswith(f".{KEPT}") else mb


async def endure(stack: Stack, runs: int) -> list[Tenth]:
    """Play so many runs, a tenth at a time."""
    processes = Processes(stack.pids, stack.layout.logs)
    case = Case(NOOP_EXCEPTIONS, IN_FLIGHT)
    generations = max(1, runs // TENTHS // IN_FLIGHT)
    owner = stack.owner
    database = await asyncpg.connect(
        host=owner.host, port=owner.port, user=owner.user, password=owner.password, database="triptych"
    )
    tenths: list[Tenth] = []
    async with Load(stack) as load:
        await load.hold(case, settle_s=0, window_s=5, generations=1)  # the cold start is not part of it
        for _ in range(TENTHS):
            window = await load.hold(case, settle_s=0, window_s=0, generations=generations)
            tables = await database.fetch(_TABLES)
            tenths.append(
                Tenth(
                    runs=load.runs,
                    steps_per_s=window.steps / window.span_s,
                    memory_mb=processes.memory_mb(),
                    table_mb={row["name"]: float(row["mb"]) for row in tables},
                    live_rows={row["name"]: row["live"] for row in tables},
                    dead_rows={row["name"]: row["dead"] for row in tables},
                )
            )
    await database.close()
    return tenths


def complaints(tenths: Sequence[Tenth]) -> list[str]:
    """List what has grown or slowed down."""
    first, second, last = tenths[0], tenths[1], tenths[-1]
    found = []
    if last.steps_per_s < MIN_SPEED * first.steps_per_s:
        found.append(f"{first.steps_per_s:.0f} steps/s at first and {last.steps_per_s:.0f} at last")
    for name, mb in last.memory_mb.items():
        if name != CLIENT and mb > MAX_GROWTH * second.memory_mb[name]:
            found.append(f"{name}: {second.memory_mb[name]:.0f} MB of memory after two tenths and {mb:.0f} at last")
    for name, mb in last.table_mb.items():
        before = max(each.size(name) for each in tenths[: len(tenths) // 2])
        if mb > MIN_TABLE_MB and last.size(name) > MAX_GROWTH * before:
            what = "MB a thousand rows" if name.endswith(f".{KEPT}") else "MB"
            found.append(f"{name}: {before:.1f} {what} at most in the first half and {last.size(name):.1f} at last")
    return found


def show(tenths: Sequence[Tenth], console: Console) -> None:
    """Print one line for each tenth."""
    table = Table("runs", "steps/s", "memory, MB", "tables, MB (dead rows)")
    for each in tenths:
        memory = ", ".join(f"{name} {mb:.0f}" for name, mb in each.memory_mb.items() if name != CLIENT)
        tables = ", ".join(f"{name} {mb:.1f} ({each.dead_rows[name]})" for name, mb in each.table_mb.items() if mb >= 1)
        table.add_row(f"{each.runs:,}", f"{each.steps_per_s:,.0f}", memory, tables)
    console.print(table)


def main(
    runs: Annotated[int, typer.Option(min=TENTHS * IN_FLIGHT, help="How many runs in all.")] = 100_000,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where endurance.json goes.")] = ROOT / ".triptych" / "bench",
) -> None:
    """Play many runs in a row and see whether anything grows or slows down."""
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="data-", dir=out.resolve()))
    try:
        with running(working_tree(), scratch / "stack") as stack:
            tenths = uvloop.run(endure(stack, runs))
    except BenchError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    (out / "endurance.json").write_text(json.dumps([asdict(each) for each in tenths], indent=2))
    show(tenths, Console(width=200))
    found = complaints(tenths)
    for complaint in found:
        sys.stderr.write(f"{complaint}\n")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    typer.run(main)
