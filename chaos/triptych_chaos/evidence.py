"""Gathers what the checker looks at: plain SQL as the operator, who may only read, and the upstreams' own ledgers."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import asyncpg
import httpx

from triptych_chaos.checker import (
    DELIVERIES,
    MICROS,
    Effects,
    Event,
    Run,
    Violation,
    check_delivery,
    check_effects,
    check_leftovers,
    check_run,
    check_task,
)
from triptych_chaos.client import Observed
from triptych_chaos.proxy import HOST
from triptych_chaos.webhook_sender import WebhookSender

_BATCH_RUNS = 300
_INTERVAL_S = 1.0
_FIRST = "00000000-0000-0000-0000-000000000000"
_RUNS = """
select run_id::text, tenant, task_id, status, playbook, playbook_version from executor.runs
where run_id > $1::text::uuid and ($3::text[] is null or task_id = any($3)) order by run_id limit $2
"""
_JOURNAL = """
select run_id::text, seq, type, data::text from executor.journal
where run_id = any($1::text[]::uuid[]) order by run_id, seq
"""
_WORKERS = """
select table_schema from information_schema.tables where table_name = 'jobs'
intersect select table_schema from information_schema.tables where table_name = 'leases'
"""


@dataclass(slots=True)
class Found:
    """What the check came to."""

    violations: list[Violation] = field(default_factory=list)
    runs: int = 0
    events: int = 0
    effects: int = 0
    escalations: Counter[str] = field(default_factory=Counter)
    reissued: int = 0
    models: Counter[str] = field(default_factory=Counter)
    """How often a model was asked, and how often the cache of answers was enough."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look."""

    dsn: str
    """Of the role `operator`."""
    helpdesk: str
    helpdesk_token: str

    @classmethod
    def of(cls, stack: Path) -> Self:
        """Read them from the data directory of a running stack."""
        dsn: str = json.loads((stack / "stack.json").read_text("utf-8"))["postgres"]
        port = json.loads((stack / "ports.json").read_text("utf-8"))["helpdesk-api"]
        token = (stack / "secrets" / "helpdesk-token").read_text("utf-8").strip()
        return cls(dsn, f"http://{HOST}:{port}", token)


async def until_quiet(places: Places, sender: WebhookSender, within_s: float) -> dict[str, int]:
    """Wait until nothing is left behind; what is, when the time is up."""
    deadline = time.monotonic() + within_s
    while True:
        left = {**await leftovers_of(places.dsn), "callbacks without an answer": sender.untold}
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        await asyncio.sleep(_INTERVAL_S)


async def check(
    places: Places,
    tasks: Mapping[str, Observed],
    strangers: list[int],
    sender: WebhookSender,
    leftovers: Mapping[str, int],
) -> Found:
    """Check everything."""
    found = Found()
    effects = await effects_of(places, sender)
    found.effects = effects.by_place.total()
    by_task: dict[str, list[Run]] = {}
    async for run in runs_of(places.dsn):
        found.runs += 1
        found.events += len(run.journal)
        found.reissued += sum(event.type == "RequestReissued" for event in run.journal)
        found.escalations.update(e.data["reason"]["code"] for e in run.journal if e.type == "RunEscalated")
        found.models.update(_asked(run))
        seen = tasks.get(run.task_id)
        if seen is None or seen.tenant != run.tenant:
            found.violations.append(
                Violation("stranger", "a run of a task that was not published", run.task_id, run.run_id)
            )
            lines: tuple[int, ...] = ()
        else:
            lines = (*seen.published, *(line for many in seen.finals.values() for line in many))
        has_delivery = seen is not None and seen.has_delivery
        checked = check_run(run, effects, has_delivery=has_delivery)
        found.violations.extend(_with_lines(violation, lines) for violation in checked)
        by_task.setdefault(run.task_id, []).append(_without_journal(run))
    for task_id, seen in tasks.items():
        found.violations.extend(check_task(task_id, seen, by_task.get(task_id, [])))
    pairs = [(run.run_id, run.task_id) for runs in by_task.values() for run in runs]
    found.violations.extend(check_effects(effects, pairs))
    for key, delivery in sender.deliveries.items():
        found.violations.extend(check_delivery(key, delivery))
    found.violations.extend(check_leftovers(leftovers))
    found.violations.extend(
        Violation("stranger", "an outcome of a task that was not published", lines=(n,)) for n in strangers
    )
    return found


async def leftovers_of(dsn: str) -> dict[str, int]:
    """Count the rows that must be gone, or done with, when every run has ended."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        left = {
            f"executor.{table}": await connection.fetchval(f"select count(*) from executor.{table}")  # noqa: S608
            for table in ("outbox", "timers", "dead_letters")
        }
        for row in await connection.fetch(_WORKERS):
            schema = row["table_schema"]
            left[f"{schema}.jobs"] = await connection.fetchval(
                f"select count(*) from {schema}.jobs where state <> 'published'"  # noqa: S608
            )
            left[f"{schema}.outbox"] = await connection.fetchval(f"select count(*) from {schema}.outbox")  # noqa: S608
            left[f"{schema}.dead_letters"] = await connection.fetchval(f"select count(*) from {schema}.dead_letters")  # noqa: S608
        return left
    finally:
        await connection.close()


async def effects_of(places: Places, sender: WebhookSender) -> Effects:
    """Count what took effect, by the ledger of the helpdesk and what the sender has accepted."""
    headers = {"Authorization": f"Bearer {places.helpdesk_token}"}
    async with httpx.AsyncClient(headers=headers, timeout=120, trust_env=False) as http:
        ledger: dict[str, Any] = (await http.get(f"{places.helpdesk}/ledger")).raise_for_status().json()
    effects = Effects()
    for effect in ledger["effects"]:
        effects.by_place[effect["ticket"], effect["operation"]] += 1
        effects.by_key[effect["key"]] += 1
    for key, delivery in sender.deliveries.items():
        effects.by_place[delivery.run_id, DELIVERIES] += 1
        effects.by_key[key] += 1
    return effects


async def runs_of(dsn: str, task_ids: Sequence[str] | None = None) -> AsyncIterator[Run]:
    """Read every run with its journal; with `task_ids`, only the runs of these tasks."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        limits = {
            (row["name"], row["version"]): _limits(json.loads(row["definition"])["budgets"])
            for row in await connection.fetch("select name, version, definition::text from executor.playbooks")
        }
        after = _FIRST
        while rows := await connection.fetch(_RUNS, after, _BATCH_RUNS, task_ids):
            after = rows[-1]["run_id"]
            journals: dict[str, list[Event]] = {row["run_id"]: [] for row in rows}
            for row in await connection.fetch(_JOURNAL, list(journals)):
                journals[row["run_id"]].append(Event(row["seq"], row["type"], json.loads(row["data"])))
            for row in rows:
                known = (row["run_id"], row["tenant"], row["task_id"], row["playbook"], row["status"])
                yield Run(*known, limits[row["playbook"], row["playbook_version"]], journals[row["run_id"]])
    finally:
        await connection.close()


def _asked(run: Run) -> list[str]:
    calls = [call for event in run.journal for call in event.data.get("spend", {}).get("model_calls", ())]
    return ["from_cache" if call.get("cached") else "asked" for call in calls]


def _limits(budgets: Mapping[str, float]) -> dict[str, int]:
    return {
        "usd_micros" if name == "usd" else name: round(value * MICROS if name == "usd" else value)
        for name, value in budgets.items()
    }


def _without_journal(run: Run) -> Run:
    return replace(run, limits={}, journal=())


def _with_lines(violation: Violation, lines: tuple[int, ...]) -> Violation:
    return Violation(violation.check, violation.message, violation.task_id, violation.run_id, lines)
