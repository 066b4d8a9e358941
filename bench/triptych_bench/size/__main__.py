"""`make bench-size`: fill two databases of one server, a small one and a large one, and do the same on both in turn."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from triptych.embedded.layout import Layout
from triptych.embedded.ports import Ports
from triptych.embedded.postgres import EmbeddedPostgres
from triptych_bench.report import console_for_results, describe_machine
from triptych_bench.size.fill import Filled, fill
from triptych_bench.size.measure import BATCH, Subject, searches, subject
from triptych_bench.trees import ROOT

SMALL_STEPS = 10_000
LIMIT = 1.2
"""What is done all the time may cost so many times what it costs at 10,000 steps, by the medians."""
TRACE_MS, SEARCH_MS = 100.0, 1_000.0
_COMPARED = ("admission", "step", "worker: take in", "worker: answer", "trace")
_OUT = ROOT / ".triptych" / "bench"
_COMMAND = Path(sys.executable).with_name("triptych")
_READY_TIMEOUT_S = 60.0
_err = Console(stderr=True, highlight=False)


def size(
    *,
    steps: Annotated[int, typer.Option(min=SMALL_STEPS, help="How many steps the large database has.")] = 10_000_000,
    rounds: Annotated[int, typer.Option(min=3, help="How often everything is done on each.")] = 60,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where size.json goes.")] = _OUT,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data, about 2.5 kB a step.")] = False,
) -> None:
    """Measure admission, steps, traces and searches with many steps in the tables, beside a few."""
    out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="size-", dir=out.resolve()))
    machine = describe_machine()
    try:
        with postgres(scratch) as dsn:
            found = uvloop.run(_measure(dsn, steps, rounds))
    finally:
        if keep:
            _err.print(f"The data is in {scratch}.")
        else:
            shutil.rmtree(scratch)
    found["machine"] = machine
    (out / "size.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    _show(found, console_for_results())
    _err.print(f"Written: {out / 'size.json'}")


@contextmanager
def postgres(data: Path) -> Iterator[str]:
    """Start an embedded Postgres with the settings of the embedded stack, and give the DSN of its owner."""
    layout = Layout.at(data)
    server = EmbeddedPostgres.of(layout, Ports(layout))
    server.prepare()
    process = server.command().start(layout, server.name)
    try:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not server.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise typer.BadParameter(f"Postgres did not start; its log is {layout.log(server.name)}")
            time.sleep(0.1)
        yield server.dsn()
    finally:
        process.send_signal(server.stop_signal)
        process.wait()


async def _measure(dsn: str, steps: int, rounds: int) -> dict[str, Any]:
    began = time.monotonic()
    databases: list[Filled] = []
    for name, count in (("small", SMALL_STEPS), ("large", steps)):
        databases.append(await fill(dsn, name, count, _progress(name, count)))
    filled_s = time.monotonic() - began
    async with AsyncExitStack() as stack:
        small, large = [await stack.enter_async_context(subject(each)) for each in databases]
        now = datetime.now(UTC)
        for number in range(rounds):
            for each in (small, large) if number % 2 else (large, small):
                await each.live()
                await each.trace()
            _err.print(f"round {number + 1} of {rounds}")
        wanted = searches(now)
        found = {name: [await each.search(name, wanted[name]) for each in (small, large)] for name in wanted}
        for name in (*wanted, *wanted):
            for each in (small, large):
                await each.search(name, wanted[name])
        commands = [await _command_ms(each) for each in (small, large)]
        bytes_of = [
            await each.reader.fetchval("select pg_database_size(current_database())") for each in (small, large)
        ]
    return {
        "taken_at": now.isoformat(timespec="seconds"),
        "steps": [each.steps for each in databases],
        "bytes": bytes_of,
        "filled_s": round(filled_s),
        "batch": BATCH,
        "rounds": rounds,
        "compared": {name: _compare(small.times[name], large.times[name]) for name in _COMPARED},
        "command_trace_ms": [statistics.median(each) for each in commands],
        "searches": {
            name: {
                "found": found[name],
                "first_ms": [each.times[f"search: {name}"][0] for each in (small, large)],
                "median_ms": [statistics.median(each.times[f"search: {name}"]) for each in (small, large)],
            }
            for name in found
        },
    }


async def _command_ms(each: Subject) -> list[float]:
    """`triptych trace` as a person calls it, from the start to the end of the process."""
    times = []
    for _ in range(5):
        run_id = await each.some_run()
        began = time.perf_counter()
        command = (_COMMAND, "trace", str(run_id), "--postgres", each.filled.prepared.operator)
        subprocess.run(command, check=True, capture_output=True)  # noqa: ASYNC221 - nothing else is under way
        times.append((time.perf_counter() - began) * 1000)
    return times


def _compare(small: Sequence[float], large: Sequence[float]) -> dict[str, float]:
    low, high = statistics.median(small), statistics.median(large)
    worst = statistics.quantiles(large, n=20)[-1]
    return {"small_ms": low, "large_ms": high, "ratio": high / low, "large_p95_ms": worst}


def _progress(name: str, wanted: int) -> Any:
    began = time.monotonic()

    def say(done: int) -> None:
        _err.print(f"{name}: {done:,} of {wanted:,} steps, {time.monotonic() - began:.0f} s")

    return say


def _show(found: Mapping[str, Any], console: Console) -> None:
    small, large = found["steps"]
    table = Table("", f"{small:,} steps", f"{large:,} steps", "ratio", "p95", box=None)
    for name, figures in found["compared"].items():
        over = figures["ratio"] > LIMIT
        ratio = f"[red]{figures['ratio']:.2f}[/]" if over else f"{figures['ratio']:.2f}"
        table.add_row(
            name,
            *(f"{figures[key]:.2f} ms" for key in ("small_ms", "large_ms")),
            ratio,
            f"{figures['large_p95_ms']:.2f} ms",
        )
    console.print(table)
    table = Table("search", "found", "first", "median", f"median at {small:,}", box=None)
    for name, figures in found["searches"].items():
        first = figures["first_ms"][1]
        shown = f"[red]{first:.1f} ms[/]" if first > SEARCH_MS else f"{first:.1f} ms"
        table.add_row(name, str(figures["found"][1]), shown, *(f"{ms:.1f} ms" for ms in reversed(figures["median_ms"])))
    console.print(table)
    commands = " and ".join(f"{ms:,.0f} ms" for ms in found["command_trace_ms"])
    console.print(f"`triptych trace RUN`, from the start of the process to its end: {commands}")
    small_gb, large_gb = (count / 1e9 for count in found["bytes"])
    console.print(f"{small_gb:.2f} and {large_gb:.2f} GB, filled in {found['filled_s']} s")


if __name__ == "__main__":
    typer.run(size)
