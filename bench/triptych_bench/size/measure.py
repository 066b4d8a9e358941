"""What is measured at each size: statements of executor and worker, traces and searches, by the product's own code."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TypeVar
from uuid import UUID

import asyncpg

from triptych.client import Operator, RunFilter
from triptych.executor.store import ExecutorStore
from triptych.kernel.postgres import database
from triptych.kernel.postgres.outbox import OutboxKey
from triptych.kernel.process.log import configure_logging
from triptych.kernel.run_ids import derive_run_id, first_id
from triptych.kernel.worker.jobs import AnswerCommitId, InboundRequest, Jobs
from triptych_bench.size.fill import SPAN, Filled
from triptych_bench.size.story import TENANT, Story, answer_to

BATCH = 20
"""Runs that move on together, and jobs that are taken in together."""

_T = TypeVar("_T")
_LEASE_MS = 3_600_000
_LONG_AGO = timedelta(days=90)
_MONTH = timedelta(days=30)
_WEEK = timedelta(days=7)


def searches(now: datetime) -> dict[str, RunFilter]:
    """List the searches: for the common, the rare, and what is common alone but rare together."""
    month = RunFilter(tool="helpdesk", error_code="timeout", since=now - _LONG_AGO, until=now - _LONG_AGO + _MONTH)
    return {
        "newest": RunFilter(),
        "tenant": RunFilter(tenant=TENANT),
        "tenant, rare": RunFilter(tenant="rare"),
        "tenant, none such": RunFilter(tenant="nobody"),
        "status": RunFilter(statuses=("escalated",)),
        "playbook": RunFilter(playbook="playbook-96"),
        "reason in a week": RunFilter(reason="none such", since=now - _WEEK),
        "tool": RunFilter(tool="helpdesk"),
        "tool, rare": RunFilter(tool="fax"),
        "tool, none such": RunFilter(tool="telex"),
        "error": RunFilter(error_code="timeout"),
        "error, rare": RunFilter(error_code="in_doubt"),
        "tool and error": RunFilter(tool="helpdesk", error_code="timeout"),
        "tool and error, rare": RunFilter(tool="tax", error_code="conflict"),
        "tool, error, rare tenant": RunFilter(tool="helpdesk", error_code="timeout", tenant="rare"),
        "tool, rare tenant": RunFilter(tool="helpdesk", tenant="rare"),
        "rare tool, tenant": RunFilter(tool="fax", tenant=TENANT),
        "all four, a month long ago": replace(month, tenant=TENANT),
        "all four, none fits": replace(month, tenant="nobody"),
        "tool of a small tenant": RunFilter(tool="crm", tenant="tenant-500", error_code="conflict"),
    }


@dataclass(slots=True)
class Subject:
    """One database under measurement. `times` has milliseconds by the name of what was done."""

    filled: Filled
    store: ExecutorStore
    jobs: Jobs
    operator: Operator
    reader: asyncpg.Connection
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _published: list[OutboxKey] = field(default_factory=list)
    _acknowledged: list[AnswerCommitId] = field(default_factory=list)

    async def live(self) -> None:
        """Play some runs from admission to end, beside a worker that takes in and answers their calls."""
        now = datetime.now(UTC)
        ids = [f"live-{secrets.token_hex(8)}" for _ in range(BATCH)]
        at_ms = int(now.timestamp() * 1000)
        runs = {derive_run_id(TENANT, task_id, at_ms): task_id for task_id in ids}
        story = Story(self.filled.epochs, runs, self._numbers, self._published)
        await self._timed("admission", self.store.commit(story.admit(now)))
        await self.store.commit(story.plan(now))
        while not story.is_over:
            requests = [
                InboundRequest(run_id, request.request_id, TENANT, 0, request.to_bytes(), None, request.deadline_at)
                for run_id, request in story.requests.items()
            ]
            answers = [((r.run_id, r.request_id), answer_to(r).to_bytes()) for r in story.requests.values()]
            await self._timed("worker: take in", self.jobs.take_in(requests, []))
            committing = self.jobs.commit_answers(answers, [], [], None, acknowledged=self._acknowledged)
            committed = await self._timed("worker: answer", committing)
            self._acknowledged = [committed.commit] if committed.commit is not None else []
            await self._timed("step", self.store.commit(story.answer(now)))
        self._published = story.published

    async def trace(self) -> None:
        """Read what `triptych trace` reads, of a run at some moment in the past half year."""
        reference = str(await self.some_run())
        await self._timed("trace", self._read_trace(reference))

    async def search(self, name: str, wanted: RunFilter) -> int:
        """Search once; how many were found."""
        return len(await self._timed(f"search: {name}", self.operator.runs(wanted)))

    async def _read_trace(self, reference: str) -> None:
        run = await self.operator.run(reference)
        await self.operator.budgets(run)
        await self.operator.steps(run.run_id)
        await self.operator.journal(run.run_id)

    async def some_run(self) -> UUID:
        """Choose a run of some moment in the past half year."""
        at = datetime.now(UTC) - SPAN * (0.01 + 0.98 * secrets.randbelow(1_000_000) / 1_000_000)
        row = "select run_id from executor.runs where run_id >= $1 order by run_id limit 1"
        found: UUID = await self.reader.fetchval(row, first_id(at))
        return found

    async def _timed(self, name: str, work: Awaitable[_T]) -> _T:
        began = time.perf_counter()
        result = await work
        self.times[name].append((time.perf_counter() - began) * 1000)
        return result


@asynccontextmanager
async def subject(filled: Filled) -> AsyncIterator[Subject]:
    """Connect to a database as executor, worker and operator."""
    async with (
        await database.connect(filled.executor_dsn, "bench") as pool,
        await database.connect(filled.tool_dsn, "bench") as tool_pool,
        Operator.connect(filled.prepared.operator) as operator,
    ):
        store = ExecutorStore(pool, configure_logging("error", "console"))
        jobs = Jobs(tool_pool, "bench", _LEASE_MS)
        await jobs.open()
        reader = await asyncpg.connect(filled.owner_dsn)
        try:
            yield Subject(filled, store, jobs, operator, reader)
        finally:
            await reader.close()
