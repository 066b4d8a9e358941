"""The report: what was done, what was seen, and what must not have been; as JSON and for a person."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from triptych_chaos.approver import Approver
from triptych_chaos.client import Client
from triptych_chaos.evidence import Found
from triptych_chaos.injector import Injector
from triptych_chaos.plan import Kind
from triptych_chaos.webhook_sender import WebhookSender

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about one run of the nemesis."""

    seed: int
    minutes: float
    commit: str
    took_s: float
    quiet_after_s: float
    client: Client
    approver: Approver
    sender: WebhookSender
    injector: Injector
    found: Found

    @property
    def faults(self) -> int:
        return self.injector.injected.total()

    def as_json(self) -> dict[str, Any]:
        tasks = self.client.tasks.values()
        latencies_s = sorted(seen.ended_after_s for seen in tasks if seen.ended_after_s is not None)
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "commit": self.commit,
            "took_s": round(self.took_s, 1),
            "quiet_after_s": round(self.quiet_after_s, 1),
            "faults": {
                "injected": self.faults,
                "by_kind": {kind: self.injector.injected[kind] for kind in Kind},
                "missed": dict(self.injector.missed),
            },
            "tasks": {
                "published": len(self.client.tasks),
                "publications": sum(len(seen.published) for seen in tasks),
                "again_for_want_of_an_outcome": self.client.published_again,
                "acknowledged": sum(bool(seen.acked) for seen in tasks),
                "ended_by_status": dict(Counter(seen.status or "none" for seen in tasks)),
            },
            "outcomes_delivered": self.client.deliveries,
            "seconds_to_outcome": {
                "p50": round(statistics.median(latencies_s), 2),
                "max": round(latencies_s[-1], 2),
            }
            if latencies_s
            else {},
            "runs": self.found.runs,
            "journal_events": self.found.events,
            "effects": self.found.effects,
            "requests_sent_again": self.found.reissued,
            "models": {name: self.found.models[name] for name in ("asked", "from_cache")},
            "deliveries": {
                "accepted": len(self.sender.deliveries),
                "callbacks_answered": dict(self.sender.answers),
                "waited_for_at_faults": {str(kind): met for kind, met in self.injector.deliveries_met.items()},
            },
            "escalations": dict(self.found.escalations),
            "most_outbox_messages": self.injector.peak_outbox,
            "violations": [asdict(violation) for violation in self.found.violations],
        }


def show(report: Report, console: Console) -> None:
    """Print everything for a person."""
    written = report.as_json()
    faults = Table(title=f"Faults, seed {report.seed}", header_style="bold", box=None)
    faults.add_column("kind")
    faults.add_column("injected", justify="right")
    faults.add_column("missed", justify="right")
    for kind in Kind:
        faults.add_row(kind, str(report.injector.injected[kind]), str(report.injector.missed[kind] or ""))
    faults.add_row("[bold]all[/]", f"[bold]{report.faults}[/]", str(report.injector.missed.total() or ""))
    console.print(faults)
    tasks = written["tasks"]
    console.print(
        f"\n{tasks['published']:,} tasks, published {tasks['publications']:,} times; ended: {tasks['ended_by_status']}"
    )
    console.print(
        f"{written['outcomes_delivered']:,} outcomes delivered; seconds to the first: {written['seconds_to_outcome']}"
    )
    console.print(
        f"{written['runs']:,} runs, {written['journal_events']:,} events, {written['effects']:,} effects, "
        f"{written['requests_sent_again']:,} requests sent again, "
        f"at most {written['most_outbox_messages']} messages in the outbox"
    )
    models = written["models"]
    console.print(f"models asked {models['asked']:,} times, answers from the cache {models['from_cache']:,}")
    deliveries = written["deliveries"]
    console.print(
        f"{deliveries['accepted']:,} deliveries; what callbacks were told: {deliveries['callbacks_answered']}"
    )
    console.print(
        f"deliveries waited for when the tool that is called back was struck: {deliveries['waited_for_at_faults']}"
    )
    console.print(f"escalations: {written['escalations'] or 'none'}; quiet after {written['quiet_after_s']:.0f} s")
    violations = report.found.violations
    for violation in violations[:_SHOWN]:
        lines = f"  history.jsonl, lines {', '.join(map(str, violation.lines))}" if violation.lines else ""
        whose = " ".join(name for name in (violation.task_id, violation.run_id) if name)
        console.print(f"[red]{escape(violation.check)}[/]  {escape(whose)}  {escape(violation.message)}{lines}")
    if len(violations) > _SHOWN:
        console.print(f"... and {len(violations) - _SHOWN} more in report.json")
    console.print(f"[red]{len(violations)} violations[/]" if violations else "[green]no violation[/]")
