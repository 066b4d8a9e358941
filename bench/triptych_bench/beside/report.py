"""The report of a comparison with other products: tables for a person, and the same figures as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from triptych_bench import figures as f
from triptych_bench.beside.driver import Card, Way
from triptych_bench.beside.rounds import OUR_REVIEWS, Compared
from triptych_bench.beside.speeds import Ratio, half_range, median, ratios
from triptych_bench.rounds import Schedule
from triptych_bench.trees import Tree

OUR_PROMISES = (
    "Everything is on, as a user has it. Each answer is in Postgres before the next step is asked for, with the "
    "request that it answers; another process goes on by itself after a crash. A call is keyed, and a tool of effect "
    "class `once` is never called twice: in doubt, a person decides. Budgets are reserved before each call. Arguments "
    "and results are checked against contracts. The journal of each run can be searched and verified."
)
_REFERENCES = {
    "the best with the step in another process": (Way.OTHER_PROCESS,),
    "the best of all, wherever the step runs": tuple(Way),
}


@dataclass(frozen=True, slots=True)
class BesideReport:
    """What was measured of Triptych and of the products beside it."""

    tree: Tree
    cards: Sequence[Card]
    versions: Mapping[str, str]
    compared: Compared
    schedule: Schedule
    machine: Mapping[str, Any]
    taken_at: datetime

    @property
    def floor(self) -> f.Floor:
        return f.median_floor(self.compared.floors)

    def measured_cards(self) -> list[Card]:
        """List the products that have figures."""
        have = {row.product for row in self.compared.rounds}
        return [card for card in self.cards if card.name in have]


def as_json(report: BesideReport) -> dict[str, Any]:
    """Medians, every round that they come from, ratios round by round, promises, and what failed."""
    compared = report.compared
    return {
        "taken_at": report.taken_at.isoformat(timespec="seconds"),
        "machine": dict(report.machine),
        "commit": report.tree.commit,
        "changed": report.tree.changed,
        "schedule": asdict(report.schedule),
        "floor": asdict(report.floor) | {"rounds": [asdict(floor) for floor in compared.floors]},
        "rows": [
            {
                "product": row.product,
                "title": row.title,
                "step_runs": row.way.value,
                "in_flight": count,
                "median": asdict(median(rounds)),
                "half_range": half_range(rounds),
                "rounds": [asdict(each) for each in rounds],
            }
            for row, by_count in compared.rounds.items()
            for count, rounds in by_count.items()
        ],
        "ratios": [
            {
                "ours": ratio.ours.title,
                "by": reference,
                "other": ratio.other.title,
                "in_flight": ratio.in_flight,
                "steps_per_s": {"median": statistics.median(ratio.steps), "rounds": list(ratio.steps)},
                "ms_a_step": {"median": statistics.median(ratio.ms), "rounds": list(ratio.ms)},
            }
            for reference, ways in _REFERENCES.items()
            for ratio in ratios(compared.rounds, ways)
        ],
        "promises": [
            {
                "product": card.name,
                "version": report.versions[card.name],
                "promises": card.promises,
                "source": card.source,
            }
            for card in report.measured_cards()
        ],
        "failures": [{"product": each.product, "why": str(each)} for each in compared.failures],
    }


def show(report: BesideReport, console: Console) -> None:
    """Print everything for a person."""
    floor, machine, schedule = report.floor, report.machine, report.schedule
    console.print(
        Text(
            f"\n{machine['cores']} cores, {machine['memory_mb'] / 1024:.0f} GB, Python {machine['python']}, load "
            f"{machine['load_before']} before; {report.tree.name}; medians of {schedule.rounds} rounds of "
            f"{schedule.window_s:g} s; floor: hop {floor.hop_ms:.2f} ms, commit {floor.commit_ms:.2f} ms, a step: "
            + ", ".join(f"{review.name} {floor.step_ms(review):.2f} ms" for review in OUR_REVIEWS)
        )
    )
    console.print(Text("\nRuns of five steps that do nothing: steps/s, by runs in flight", style="bold"))
    console.print(_speeds(report))
    for reference, ways in _REFERENCES.items():
        found = ratios(report.compared.rounds, ways)
        if found:
            console.print(Text(f"\nTriptych by {reference}: median of the rounds (least to most)", style="bold"))
            console.print(_ratios(found))
    console.print(Text("\nWhat each promises while it is that fast", style="bold"))
    console.print(Text(f"Triptych {report.tree.name}: {OUR_PROMISES}"))
    for card in report.measured_cards():
        console.print(Text(f"{card.title} {report.versions[card.name]}: {card.promises} ({card.source})"))
    for failure in report.compared.failures:
        console.print(Text(str(failure), style="red"))


def _speeds(report: BesideReport) -> Table:
    table = Table(header_style="bold", box=None, show_edge=False)
    table.add_column("product")
    table.add_column("the step runs")
    counts = report.schedule.in_flight
    for count in counts:
        table.add_column(f"{count:,}", justify="right")
        table.add_column("±", justify="right")
    for count in counts:
        table.add_column(f"ms a step at {count:,}", justify="right")
    for row, by_count in report.compared.rounds.items():
        medians = {count: median(rounds) for count, rounds in by_count.items()}
        cells = [
            cell
            for count in counts
            for cell in (f"[bold]{medians[count].steps_per_s:,.0f}[/]", f"{half_range(by_count[count]):.0%}")
        ]
        table.add_row(row.title, row.way, *cells, *(f"{medians[count].ms_a_step:.1f}" for count in counts))
    return table


def _ratios(found: Sequence[Ratio]) -> Table:
    table = Table(header_style="bold", box=None, show_edge=False)
    for column in ("ours", "in flight", "the other"):
        table.add_column(column)
    table.add_column("steps/s (more is better)", justify="right")
    table.add_column("ms a step (less is better)", justify="right")
    for ratio in found:
        other = f"{ratio.other.title}, {ratio.other.way}"
        table.add_row(ratio.ours.title, f"{ratio.in_flight:,}", other, _spread(ratio.steps), _spread(ratio.ms))
    return table


def _spread(values: Sequence[float]) -> str:
    return f"[bold]{statistics.median(values):.2f}[/] ({min(values):.2f} to {max(values):.2f})"
