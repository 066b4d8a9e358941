"""The plot of a report, as PNG: speed and latency by runs in flight, and where the processor time goes.

Dots are rounds, lines are their medians.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from triptych_bench import figures as f
from triptych_bench.cases import REVIEWS
from triptych_bench.report import Report, Result

_COLOURS = dict(zip(REVIEWS, ("tab:blue", "tab:green", "tab:orange"), strict=True))
_STYLES = ("--", "-")


def save(report: Report, file: Path) -> None:
    """Write the plot to `file`."""
    figure = Figure(figsize=(20, 5), layout="constrained")
    speed, latency, processor = figure.subplots(1, 3)
    in_flight = report.schedule.in_flight
    for result, style in zip(report.results, _STYLES[-len(report.results) :], strict=True):
        for review in REVIEWS:
            cases = [case for case in result.cases if case.review is review]
            counts = [case.in_flight for case in cases]
            look: dict[str, Any] = {"color": _COLOURS[review], "linestyle": style}
            label = f"{review.tool}, {review.name}, {result.tree.name}"
            medians = [result.median(case) for case in cases]
            speed.plot(counts, [median.steps_per_s for median in medians], label=label, **look)
            latency.plot(counts, [median.run_p50_ms for median in medians], label=label, **look)
            latency.plot(counts, [median.run_p99_ms for median in medians], alpha=0.4, **look)
            for case in cases:
                rounds = result.rounds[case]
                at = [case.in_flight] * len(rounds)
                speed.scatter(at, [each.steps_per_s for each in rounds], s=10, color=look["color"])
    speed.set(title="steps/s", xlabel="runs in flight", xscale="log", ylim=(0, None))
    latency.set(title="a run, ms: p50, and p99 (pale)", xlabel="runs in flight", xscale="log", yscale="log")
    for axes in (speed, latency):
        axes.set_xticks(in_flight, [str(count) for count in in_flight], minor=False)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend()
        axes.grid(alpha=0.3)
    _shares(processor, report.results[-1])
    figure.suptitle(
        f"Triptych {report.results[-1].tree.name}, {report.machine['cores']} cores, {report.taken_at:%Y-%m-%d}; "
        f"floor: hop {report.floor.hop_ms:.2f} ms, commit {report.floor.commit_ms:.2f} ms"
    )
    figure.savefig(file, dpi=120)


def _shares(axes: Any, result: Result) -> None:
    """Draw a bar for each case, with a colour for each process. Sums differ too much for bars, so they are written."""
    spent = [
        {name: ms for name, ms in result.median(case).cpu_ms_a_step.items() if name not in f.BESIDE}
        for case in result.cases
    ]
    sums = [sum(each.values()) for each in spent]
    labels = [
        f"{case.review.tool}\n{case.review.name}\n{case.in_flight:,}\n{total:.3g} ms"
        for case, total in zip(result.cases, sums, strict=True)
    ]
    bottom = [0.0] * len(spent)
    for name in spent[0]:
        heights = [100 * each[name] / total for each, total in zip(spent, sums, strict=True)]
        axes.bar(labels, heights, bottom=bottom, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set(title=f"processor time of a step, % by process, {result.tree.name}", ylim=(0, 100))
    axes.tick_params(axis="x", labelsize=6)  # eleven names beside each other
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
