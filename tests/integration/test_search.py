"""`triptych runs` on a real database: each criterion finds what it says, page by page, and by an index."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

import triptych.executor
from triptych.client import Operator, RunFilter
from triptych.client.operator import operator_connection
from triptych.kernel.run_ids import first_id

MIGRATIONS = Path(triptych.executor.__file__).with_name("migrations")
NOW = datetime.now(UTC).replace(microsecond=0)
RUNS = 6_000
STEPS = 3


@dataclass(frozen=True)
class Made:
    """A run as it was written. Run number n was published n minutes ago."""

    number: int

    @property
    def run_id(self) -> UUID:
        return UUID(int=first_id(self.published_at).int | 7 << 76 | 2 << 62 | self.number)

    @property
    def published_at(self) -> datetime:
        return NOW - timedelta(minutes=self.number)

    @property
    def tenant(self) -> str:
        return "rare" if self.number % 1_000 == 7 else f"tenant-{self.number % 5}"

    @property
    def playbook(self) -> str:
        return ("refund", "greet")[self.number % 2]

    @property
    def status(self) -> str:
        return "escalated" if self.number % 50 == 0 else "succeeded"

    @property
    def reason(self) -> str | None:
        return "tool_unavailable" if self.status == "escalated" else None

    @property
    def steps(self) -> list[tuple[str, str | None]]:
        """Operation and error code of each."""
        third = ("fax.send", None) if self.number % 500 == 3 else ("helpdesk.reply", None)
        second = "helpdesk.create", "timeout" if self.number % 100 == 0 else None
        return [("kb.search", "conflict" if self.number % 300 == 0 else None), second, third]


MADE = [Made(number) for number in range(RUNS)]


@pytest.fixture(scope="module")
async def operator(database) -> AsyncIterator[Operator]:
    dsn = database.prepare({"executor": (MIGRATIONS,)}).operator
    owner = await asyncpg.connect(database.owner_dsn)
    await owner.copy_records_to_table(
        "runs",
        schema_name="executor",
        records=[
            (
                *(run.run_id, run.tenant, f"t-{run.number}", "p", run.playbook, "1", 0, run.status, run.reason, None),
                *(1, STEPS, STEPS, 0, 0, 0, run.published_at, run.published_at, run.published_at, None, 1),
            )
            for run in MADE
        ],
    )
    await owner.copy_records_to_table(
        "steps",
        schema_name="executor",
        records=[
            (run.run_id, f"s{number}", 1, operation, "failed" if error else "done", 1, error, None, None)
            for run in MADE
            for number, (operation, error) in enumerate(run.steps)
        ],
    )
    await owner.execute("insert into executor.tasks select tenant, task_id, run_id from executor.runs")
    await owner.execute("analyze")
    await owner.close()
    async with Operator.connect(dsn) as operator:
        yield operator


def has_step(run: Made, tool: str = "", error: str | None = None) -> bool:
    return any(step[0].startswith(tool) and error in (None, step[1]) for step in run.steps)


CRITERIA: dict[str, tuple[RunFilter, Callable[[Made], bool]]] = {
    "everything": (RunFilter(), lambda _: True),
    "a tenant": (RunFilter(tenant="rare"), lambda run: run.tenant == "rare"),
    "a playbook": (RunFilter(playbook="greet"), lambda run: run.playbook == "greet"),
    "a status": (RunFilter(statuses=("escalated",)), lambda run: run.status == "escalated"),
    "a reason": (RunFilter(reason="tool_unavailable"), lambda run: run.reason == "tool_unavailable"),
    "a tool": (RunFilter(tool="fax"), lambda run: has_step(run, "fax.")),
    "an operation": (RunFilter(tool="helpdesk.reply"), lambda run: has_step(run, "helpdesk.reply")),
    "an error code": (RunFilter(error_code="conflict"), lambda run: has_step(run, error="conflict")),
    "a tool with an error code": (
        RunFilter(tool="helpdesk", error_code="timeout"),
        lambda run: has_step(run, "helpdesk.", "timeout"),
    ),
    "a tool and the error code of another": (RunFilter(tool="fax", error_code="timeout"), lambda _: False),
    "no tool that is only the beginning of one": (RunFilter(tool="help"), lambda _: False),
    "since": (RunFilter(since=NOW - timedelta(hours=2)), lambda run: run.number <= 120),
    "until": (RunFilter(until=NOW - timedelta(hours=2)), lambda run: run.number > 120),
    "several statuses": (
        RunFilter(statuses=("escalated", "succeeded"), since=NOW - timedelta(hours=1)),
        lambda run: run.number <= 60,
    ),
    "everything at once": (
        RunFilter(
            tenant="tenant-0",
            tool="helpdesk.create",
            error_code="timeout",
            playbook="refund",
            statuses=("escalated",),
            reason="tool_unavailable",
            since=NOW - timedelta(minutes=3_000),
            until=NOW - timedelta(minutes=500),
        ),
        lambda run: 500 < run.number <= 3_000 and run.number % 100 == 0,
    ),
}


@pytest.mark.parametrize("name", CRITERIA)
async def test_a_search_finds_exactly_the_runs_that_fit_newest_first(operator: Operator, name: str) -> None:
    wanted, fits = CRITERIA[name]
    found = [run.run_id for run in await operator.runs(replace(wanted, limit=RUNS))]
    assert found == [run.run_id for run in MADE if fits(run)]


async def test_pages_follow_each_other_without_a_gap_and_without_a_repeat(operator: Operator) -> None:
    wanted = RunFilter(tool="helpdesk", error_code="timeout", limit=7)
    found: list[UUID] = []
    while page := await operator.runs(wanted):
        found.extend(run.run_id for run in page)
        wanted = replace(wanted, older_than=page[-1].run_id)
    assert found == [run.run_id for run in MADE if run.number % 100 == 0]


async def test_a_search_by_time_goes_by_admission(database, operator: Operator) -> None:
    run_id = UUID(int=first_id(NOW - timedelta(days=7)).int | 7 << 76 | 2 << 62 | 99_999)
    owner = await asyncpg.connect(database.owner_dsn)
    await owner.execute(
        "insert into executor.runs select $1, 'late', 't-late', 'p', 'greet', '1', 0, 'succeeded', null, null, "
        "1, 1, 1, 0, 0, 0, $2, $2, $2, null",
        run_id,
        NOW,
    )
    hour = timedelta(hours=1)
    found = await operator.runs(RunFilter(tenant="late", since=NOW - hour, until=NOW + hour))
    assert [run.run_id for run in found] == [run_id], "published a week ago, and admitted now"
    assert await operator.runs(RunFilter(tenant="late", until=NOW - hour)) == []
    await owner.execute("delete from executor.runs where tenant = 'late'")
    await owner.close()


async def test_a_run_is_found_by_its_task_id_alone(operator: Operator) -> None:
    assert (await operator.run("t-17")).run_id == MADE[17].run_id


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (RunFilter(), "_pkey"),
        (RunFilter(tenant="rare"), "_tenant_run_id_idx"),
        (RunFilter(tool="fax"), "_split_part_run_id_idx"),
        (RunFilter(error_code="conflict"), "_error_code_run_id_operation_idx"),
        (RunFilter(error_code="conflict", tool="helpdesk", tenant="rare"), "_error_code_run_id_operation_idx"),
    ],
    ids=["everything", "tenant", "tool", "error code", "all"],
)
async def test_a_search_reads_an_index_and_no_whole_partition(database, wanted: RunFilter, index: str) -> None:
    dsn = database.prepare({"executor": (MIGRATIONS,)}).operator
    async with operator_connection(dsn) as connection:
        explaining = Explaining(connection)
        await Operator(explaining).runs(wanted)
    assert any(index in line for line in explaining.plan), explaining.plan
    # So few runs may well be read whole to join them; steps never, and runs never for themselves.
    looked_through = "steps_" if wanted.is_about_steps else "runs_"
    scans = [line for line in explaining.plan if f"Seq Scan on {looked_through}" in line]
    assert [line for line in scans if "rows=0.00" not in line and "never executed" not in line] == []


class Explaining:
    """A connection that runs each query for its plan."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.plan: list[str] = []

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        explained = await self._connection.fetch(f"explain (analyze, timing off, buffers off) {query}", *arguments)
        self.plan.extend(row[0] for row in explained)
        return []
