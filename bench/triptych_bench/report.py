"""The report: tables and bars for a terminal, and the same figures as JSON for machines.

It shows what `figures` has worked out; it works out nothing itself.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import psutil
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from triptych_bench import figures as f
from triptych_bench.cases import NARROW, REVIEWS, WIDE, Case, Fan
from triptych_bench.rounds import Measured, Schedule
from triptych_bench.trees import Tree

_BAR_WIDTH = 50
_FILE_WIDTH = 160
_COLOURS = "blue", "green", "yellow"
_BETTER_WHEN_LESS = {*f.PAIRED} - {"steps_per_s"}


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured of one tree."""

    tree: Tree
    rounds: Mapping[Case, Sequence[f.Sample]]
    fans: Mapping[Fan, Sequence[f.BranchCost]]

    @property
    def cases(self) -> tuple[Case, ...]:
        return tuple(self.rounds)

    def median(self, case: Case) -> f.Sample:
        return f.median_sample(self.rounds[case])

    @property
    def branch_ratio(self) -> f.BranchCost:
        return f.branch_ratio(self.fans[NARROW], self.fans[WIDE])


@dataclass(frozen=True, slots=True)
class Report:
    """One or two trees (the older first), measured beside one floor."""

    results: Sequence[Result]
    floors: Sequence[f.Floor]
    http: Mapping[int, Sequence[f.HttpCost]]
    schedule: Schedule
    machine: Mapping[str, Any]
    taken_at: datetime

    @classmethod
    def of(cls, trees: Sequence[Tree], measured: Measured, schedule: Schedule, machine: Mapping[str, Any]) -> Report:
        results = [Result(*each) for each in zip(trees, measured.samples, measured.fans, strict=True)]
        return cls(results, measured.floors, measured.http, schedule, machine, datetime.now(UTC))

    @property
    def floor(self) -> f.Floor:
        return f.median_floor(self.floors)

    def pairs(self, case: Case, name: str) -> list[float]:
        """Divide the second tree by the first, round by round."""
        base, head = self.results
        return f.pair_ratios(base.rounds[case], head.rounds[case], name)

    @property
    def is_comparison(self) -> bool:
        return len(self.results) > 1


def describe_machine() -> dict[str, Any]:
    """List what the figures depend on. The load is that of the minute before anything was started."""
    return {
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mb": psutil.virtual_memory().total // 1_048_576,
        "load_before": round(os.getloadavg()[0], 2),
    }


def as_json(report: Report) -> dict[str, Any]:
    """Medians, ratios to the floor, and every round that they come from."""
    return {
        "taken_at": report.taken_at.isoformat(timespec="seconds"),
        "machine": dict(report.machine),
        "schedule": asdict(report.schedule),
        "floor": asdict(report.floor) | {"rounds": [asdict(floor) for floor in report.floors]},
        "http": [
            {
                "at_once": at_once,
                "added_ms": f.median_added_ms(rounds),
                "max_ms": f.ADAPTER_MAX_MS,
                "rounds": [asdict(each) for each in rounds],
            }
            for at_once, rounds in report.http.items()
        ],
        "trees": [
            {
                "commit": result.tree.commit,
                "changed": result.tree.changed,
                "cases": [_case_json(result, case, report.floor) for case in result.cases],
                "fan_out": [
                    {
                        "branches": fan.branches,
                        "in_flight": fan.in_flight,
                        "median": asdict(f.median_branch(rounds)),
                        "rounds": [asdict(each) for each in rounds],
                    }
                    for fan, rounds in result.fans.items()
                ],
                "branch_ratio": asdict(result.branch_ratio) | {"max": f.BRANCH_RATIO_MAX},
            }
            for result in report.results
        ],
        "pairs": [
            {
                "tool": case.review.tool,
                "review": case.review.name,
                "in_flight": case.in_flight,
                "figure": name,
                "ratios": found,
            }
            | {"median": statistics.median(found)}
            for case in report.schedule.cases
            for name in f.PAIRED
            for found in [report.pairs(case, name)]
        ]
        if report.is_comparison
        else [],
    }


def _case_json(result: Result, case: Case, floor: f.Floor) -> dict[str, Any]:
    median = result.median(case)
    return {
        "tool": case.review.tool,
        "review": case.review.name,
        "in_flight": case.in_flight,
        "median": asdict(median),
        "ratios": asdict(f.ratios(case, median, floor)),
        "rounds": [asdict(each) for each in result.rounds[case]],
    }


def show(report: Report, console: Console) -> None:
    """Print everything for a person."""
    console.print(_heading(report))
    for result in report.results:
        _titled(console, f"Runs of five steps, {result.tree.name}", _speeds(result, report.floor))
        _titled(console, "steps/s", _bars(result))
        _titled(console, "Processor time, ms a step", _by_process(result, lambda sample: sample.cpu_ms_a_step, 3))
        _titled(console, "Resident memory, MB", _by_process(result, lambda sample: sample.memory_mb, 0))
        _titled(console, f"A branch of a fan-out, {result.tree.name}", _branches(result))
    _titled(console, "A call over HTTP, by a bare client and through the tool runtime", _http(report))
    if report.is_comparison:
        base, head = (result.tree.name for result in report.results)
        for name in f.PAIRED:
            better = "less" if name in _BETTER_WHEN_LESS else "more"
            _titled(console, f"{name}: {head} by {base}, pair by pair ({better} is better)", _pairs(report, name))


def _titled(console: Console, title: str, table: Table) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    console.print(table)


def console_for_results() -> Console:
    """Standard output; as wide as the terminal, or wide enough for a file."""
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=_FILE_WIDTH)


def _heading(report: Report) -> RenderableType:
    floor, machine, schedule = report.floor, report.machine, report.schedule
    return Group(
        Text(
            f"\n{machine['cores']} cores, {machine['memory_mb'] / 1024:.0f} GB, Python {machine['python']}, "
            f"load {machine['load_before']} before; medians of {schedule.rounds} rounds of {schedule.window_s:g} s"
        ),
        Text(
            f"floor: hop {floor.hop_ms:.2f} ms, one-row commit {floor.commit_ms:.2f} ms, "
            f"batches of 500: {floor.batch_rows_per_s:,.0f} rows/s, 100,000 calls in Python {floor.calls_ms:.0f} ms; "
            "a step: "
            + ", ".join(
                f"{name} {ms:.2f} ms" for name, ms in {each.name: floor.step_ms(each) for each in REVIEWS}.items()
            )
        ),
    )


def _speeds(result: Result, floor: f.Floor) -> Table:
    table = _table()
    for column in ("steps/s", "±", "runs/s", "messages/s", "run p50 ms", "p99 ms", "ms a step"):
        table.add_column(column, justify="right")
    for column in (
        "ms ÷ floor",
        "steps/s ÷ floor",
        "batch rows a step",
        "CPU ms a step",
        "WAL B a step",
        "disk B a step",
    ):
        table.add_column(column, justify="right", style="cyan")
    for case in result.cases:
        median = result.median(case)
        ratios = f.ratios(case, median, floor)
        table.add_row(
            *_labels(case),
            f"[bold]{median.steps_per_s:,.0f}[/]",
            f"{f.spread(result.rounds[case]) / 2:.0%}",
            f"{median.runs_per_s:,.0f}",
            f"{median.messages_per_s:,.0f}",
            f"{median.run_p50_ms:.1f}",
            f"{median.run_p99_ms:.1f}",
            f"{median.ms_a_step:.2f}",
            f"{ratios.ms_over_floor:.1f}",
            f"{ratios.steps_over_floor:.1f}",
            f"{ratios.batch_rows_a_step:.1f}",
            f"{f.figure(median, 'cpu_ms_a_step'):.3f}",
            f"{median.wal_bytes_a_step:,}",
            f"{median.disk_bytes_a_step:,}",
        )
    return table


def _bars(result: Result) -> Table:
    table = _table()
    table.add_column()
    table.add_column(justify="right")
    speeds = {case: result.median(case).steps_per_s for case in result.cases}
    longest = max(speeds.values())
    for case, speed in speeds.items():
        bar = "█" * max(1, round(_BAR_WIDTH * speed / longest))
        colour = _COLOURS[REVIEWS.index(case.review)]
        table.add_row(*_labels(case), Text(bar, style=colour), f"{speed:,.0f}")
    return table


def _by_process(result: Result, of: Callable[[f.Sample], Mapping[str, float]], digits: int) -> Table:
    table = _table()
    names = sorted(of(result.median(result.cases[0])))
    for name in names:
        table.add_column(name, justify="right")
    for case in result.cases:
        values = of(result.median(case))
        table.add_row(*_labels(case), *(f"{values[name]:,.{digits}f}" for name in names))
    return table


def _pairs(report: Report, name: str) -> Table:
    table = _table()
    table.add_column("pairs")
    table.add_column("median", justify="right")
    table.add_column("range", justify="right")
    for case in report.schedule.cases:
        found = report.pairs(case, name)
        table.add_row(
            *_labels(case),
            "  ".join(f"{ratio:.2f}" for ratio in found),
            f"[bold]{statistics.median(found):.2f}[/]",
            f"{min(found):.2f} to {max(found):.2f}",
        )
    return table


def _branches(result: Result) -> Table:
    table = Table("branches", "in flight", "ms a branch", "CPU ms a branch", header_style="bold", box=None)
    for fan, rounds in result.fans.items():
        median = f.median_branch(rounds)
        table.add_row(f"{fan.branches:,}", str(fan.in_flight), f"{median.wall_ms:.2f}", f"{median.cpu_ms:.2f}")
    ratio = result.branch_ratio
    shown = (_held(each, f.BRANCH_RATIO_MAX) for each in (ratio.wall_ms, ratio.cpu_ms))
    table.add_row("ratio", f"(≤ {f.BRANCH_RATIO_MAX:g})", *shown)
    return table


def _http(report: Report) -> Table:
    table = Table("at once", "bare p50 ms", "runtime p50 ms", f"added (< {f.ADAPTER_MAX_MS:g} ms)", "range", box=None)
    table.header_style = "bold"
    for at_once, rounds in report.http.items():
        added_ms = [each.added_ms for each in rounds]
        table.add_row(
            str(at_once),
            f"{statistics.median(each.bare_ms for each in rounds):.2f}",
            f"{statistics.median(each.adapter_ms for each in rounds):.2f}",
            _held(f.median_added_ms(rounds), f.ADAPTER_MAX_MS),
            f"{min(added_ms):.2f} to {max(added_ms):.2f}",
        )
    return table


def _held(value: float, limit: float) -> str:
    """Print a figure that has a target, red where it misses it."""
    return f"[red]{value:.2f}[/]" if value > limit else f"[bold]{value:.2f}[/]"


def _table() -> Table:
    table = Table(header_style="bold", box=None, show_edge=False)
    table.add_column("tool")
    table.add_column("review")
    table.add_column("in flight", justify="right")
    return table


def _labels(case: Case) -> tuple[str, str, str]:
    return case.review.tool, case.review.name, f"{case.in_flight:,}"
