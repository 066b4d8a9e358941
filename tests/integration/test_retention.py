"""`triptych retention` on a real Postgres: what is over goes, what is not stays whole, and nobody waits for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid5

import psycopg
import pytest
from typer.testing import CliRunner

import triptych.executor
import triptych.tools
from triptych.client.operator import operator_connection
from triptych.commands.main import app
from triptych.kernel.postgres.age_partitions import make_partitions
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.run_ids import WEEK, Span, first_id
from triptych.operator.audit import audit
from triptych.operator.retention import remove_old, retention

EXECUTOR = Path(triptych.executor.__file__).with_name("migrations")
EFFECTS = Path(triptych.tools.__file__).with_name("migrations") / "tool"
KEEP = timedelta(days=90)
NOW = datetime.now(UTC)
OLD = NOW - KEEP - 3 * WEEK
ANCIENT = datetime(1970, 1, 1, tzinfo=UTC)
_NAMESPACE = UUID(int=7)

Write = Callable[..., UUID]


@pytest.fixture
def migrations() -> dict[str, tuple[Path, ...]]:
    return {"executor": (EXECUTOR,), "tool_post": (WORKER, EFFECTS)}


@pytest.fixture
def owner(database, migrations) -> Iterator[psycopg.Connection]:
    """A database that has been at work for half a year, and is empty."""
    database.prepare(migrations)
    with psycopg.connect(database.owner_dsn, autocommit=True) as connection:
        for table in TABLES.values():
            connection.execute(f"delete from {table}")  # noqa: S608
        for weeks in range(0, 27, 8):
            make_partitions(connection, NOW - weeks * WEEK)
        yield connection


@pytest.fixture
def write(owner) -> Write:
    """Writes a run with all that a run leaves behind: events, a step, its task, a job, a receipt, a payload."""

    def write_run(task_id: str, at: datetime, *, finished_at: datetime | None = OLD, status: str = "succeeded") -> UUID:
        tail = uuid5(_NAMESPACE, task_id).int & (2**60 - 1)
        run_id = UUID(int=first_id(at).int | 7 << 76 | 2 << 62 | tail)
        given = {"run": run_id, "task": task_id, "at": at, "over": finished_at, "status": status}
        for statement in _RUN.split(";"):
            owner.execute(statement, given)
        return run_id

    return write_run


_RUN = """
insert into executor.tasks values ('acme', %(task)s, %(run)s);
insert into executor.runs values (%(run)s, 'acme', %(task)s, 'p', 'greet', '1', 0, %(status)s, null, null,
    1, 1, 1, 0, 0, 0, %(at)s, %(at)s, %(over)s);
insert into executor.journal_commits select %(run)s, n, %(at)s, 'X {}' from generate_series(1, 3) as n;
insert into executor.steps values (%(run)s, 'a', 1, 'post.send', 'done', 1, null, %(at)s, %(over)s);
insert into tool_post.jobs (run_id, request_id, tenant, state, partition, request, deadline_at, received_at)
    values (%(run)s, 'r', 'acme', 'published', 0, '', %(at)s, %(at)s);
insert into tool_post.effects (run_id, idempotency_key, tenant, operation, arguments_hash, state, request_id, started_at)
    values (%(run)s, 'k', 'acme', 'post.send', '', 'receipt', 'r', %(at)s);
insert into tool_post.callbacks (run_id, idempotency_key, tenant, operation, token, request_id, created_at)
    values (%(run)s, 'k', 'acme', 'post.send', gen_random_uuid()::text, 'r', %(at)s);
insert into claims.blobs values (%(run)s, 'h', 'acme', 'body', %(at)s)
"""
TABLES = {
    "runs": "executor.runs",
    "journal": "executor.journal_commits",
    "steps": "executor.steps",
    "tasks": "executor.tasks",
    "jobs": "tool_post.jobs",
    "effects": "tool_post.effects",
    "callbacks": "tool_post.callbacks",
    "blobs": "claims.blobs",
}
WHOLE = {"runs": 1, "journal": 3, "steps": 1, "tasks": 1, "jobs": 1, "effects": 1, "callbacks": 1, "blobs": 1}
GONE = dict.fromkeys(WHOLE, 0)


def left_of(owner: psycopg.Connection, run_id: UUID) -> dict[str, int]:
    """How many rows of each table a run still has."""
    found = {}
    for name, table in TABLES.items():
        (found[name],) = owner.execute(f"select count(*) from {table} where run_id = %s", [run_id]).fetchone()  # noqa: S608
    return found


def weeks_of(owner: psycopg.Connection, table: str) -> set[str]:
    rows = owner.execute("select inhrelid::regclass::text from pg_inherits where inhparent = %s::regclass", [table])
    return {row[0].rpartition("_")[2] for row in rows}


def test_a_table_that_only_looks_like_a_week_taken_out_is_left_alone(owner, database) -> None:
    owner.execute("create table executor.runs_2 (like executor.runs)")
    remove_old(database.owner_dsn, NOW, KEEP)
    owner.execute("drop table executor.runs_2")


def test_what_was_over_before_the_limit_goes_with_its_partitions(database, owner, write) -> None:
    old, young = write("old", OLD), write("young", NOW, finished_at=NOW)
    week = f"{Span.week_of(OLD).begins_at:%Y%m%d}"
    report = remove_old(database.owner_dsn, NOW, KEEP)
    assert left_of(owner, old) == GONE
    assert left_of(owner, young) == WHOLE
    for table in ("executor.runs", "executor.journal_commits", "executor.steps", "claims.blobs"):
        assert week not in weeks_of(owner, table)
    assert f"executor.runs_{week}" in {name for retired in report.weeks for name in retired.tables}
    of_the_tool = {f"tool_post.{name}": 1 for name in ("callbacks", "effects", "jobs")}
    assert report.rows == {"executor.tasks": 1, **of_the_tool}
    assert owner.execute("select count(*) from pg_class where relname = %s", [f"runs_{week}"]).fetchone() == (0,)


@pytest.mark.parametrize("status", ["running", "escalated"])
def test_a_run_that_is_not_over_stays_whole_however_old_it_is(database, owner, write, status) -> None:
    live = write("live", OLD, finished_at=None, status=status)
    neighbour = write("neighbour", OLD)
    report = remove_old(database.owner_dsn, NOW, KEEP)
    assert left_of(owner, live) == WHOLE
    assert left_of(owner, neighbour) == GONE
    assert [retired.kept_runs for retired in report.weeks if retired.kept_runs] == [1]


def test_a_run_is_kept_for_the_whole_time_after_its_end_and_not_after_its_start(database, owner, write) -> None:
    lately = write("lately", OLD, finished_at=NOW - timedelta(days=1))
    remove_old(database.owner_dsn, NOW, KEEP)
    assert left_of(owner, lately) == WHOLE
    remove_old(database.owner_dsn, NOW + KEEP, KEEP)
    assert left_of(owner, lately) == GONE


def test_a_live_run_that_was_carried_goes_when_its_time_has_come(database, owner, write) -> None:
    live = write("live", OLD, finished_at=None, status="escalated")
    remove_old(database.owner_dsn, NOW, KEEP)
    owner.execute("update executor.runs set finished_at = %s where run_id = %s", [NOW, live])
    remove_old(database.owner_dsn, NOW + timedelta(days=1), KEEP)
    assert left_of(owner, live) == WHOLE
    remove_old(database.owner_dsn, NOW + KEEP + timedelta(days=1), KEEP)
    assert left_of(owner, live) == GONE


def test_a_week_in_which_many_runs_stay_loses_the_others_one_by_one(database, owner, write, monkeypatch) -> None:
    monkeypatch.setattr(retention, "MAX_CARRIED", 1)
    monkeypatch.setattr(retention, "BATCH_RUNS", 2)
    live = [write(f"live-{n}", OLD, finished_at=None, status="escalated") for n in range(2)]
    over = [write(f"over-{n}", OLD) for n in range(5)]
    report = remove_old(database.owner_dsn, NOW, KEEP)
    assert [left_of(owner, run_id) for run_id in live] == [WHOLE] * 2
    assert [left_of(owner, run_id) | {"blobs": 0} for run_id in over] == [GONE] * 5
    assert report.rows["executor.runs"] == 5
    assert f"{Span.week_of(OLD).begins_at:%Y%m%d}" in weeks_of(owner, "executor.runs")


def test_runs_that_claim_an_age_old_time_are_kept_as_long_as_others_and_then_go(database, owner, write) -> None:
    lately = write("lately", ANCIENT, finished_at=NOW)
    long_over = write("long over", ANCIENT, finished_at=OLD)
    remove_old(database.owner_dsn, NOW, KEEP)
    assert left_of(owner, long_over) == GONE
    assert left_of(owner, lately) | {"blobs": 1} == WHOLE
    again = write("an old time again", OLD + timedelta(days=1), finished_at=None)
    assert left_of(owner, again) == WHOLE, "a week that is gone takes rows all the same"


def test_a_task_id_is_free_again_when_its_run_is_gone_and_not_before(database, owner, write) -> None:
    write("again", OLD)
    with pytest.raises(psycopg.errors.UniqueViolation):
        write("again", NOW)
    remove_old(database.owner_dsn, NOW, KEEP)
    assert left_of(owner, write("again", NOW)) == WHOLE


def test_a_dry_run_says_what_would_go_and_changes_nothing(database, owner, write) -> None:
    old = write("old", OLD)
    write("live", OLD, finished_at=None)
    before = weeks_of(owner, "executor.runs")
    planned = remove_old(database.owner_dsn, NOW, KEEP, dry_run=True)
    assert left_of(owner, old) == WHOLE
    assert weeks_of(owner, "executor.runs") == before
    done = remove_old(database.owner_dsn, NOW, KEEP)
    assert [(week.week, week.tables, week.kept_runs) for week in planned.weeks] == [
        (week.week, week.tables, week.kept_runs) for week in done.weeks
    ]


def test_a_pass_that_was_stopped_after_taking_a_week_out_is_finished_by_the_next(
    database, owner, write, monkeypatch
) -> None:
    old, live = write("old", OLD), write("live", OLD, finished_at=None)
    with monkeypatch.context() as patch:
        patch.setattr(retention._Retention, "drop_detached", _stop)
        with pytest.raises(KeyboardInterrupt):
            remove_old(database.owner_dsn, NOW, KEEP)
    assert left_of(owner, old)["tasks"] == 1
    assert left_of(owner, live) == WHOLE
    remove_old(database.owner_dsn, NOW, KEEP)
    assert left_of(owner, old) == GONE
    assert left_of(owner, live) == WHOLE


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_task_that_slips_into_a_week_while_it_is_taken_out_is_not_lost(database, owner, write, monkeypatch) -> None:
    late: list[UUID] = []
    take_out = retention._Retention._patiently

    def slip_in_first(self: object, work: Callable[[], None]) -> bool:
        if not late:
            late.append(write("late", OLD, finished_at=None, status="running"))
        return take_out(self, work)

    monkeypatch.setattr(retention._Retention, "_patiently", slip_in_first)
    remove_old(database.owner_dsn, NOW, KEEP)
    assert left_of(owner, late[0]) == WHOLE


def test_retention_gives_way_to_a_statement_that_holds_a_table_and_holds_up_nobody(
    database, owner, write, monkeypatch
) -> None:
    monkeypatch.setattr(retention, "LOCK_PAUSE_S", 0.05)
    old = write("old", OLD)
    with psycopg.connect(database.owner_dsn) as reader:
        reader.execute("select count(*) from executor.runs").fetchone()
        at_work = threading.Thread(target=remove_old, args=(database.owner_dsn, NOW, KEEP))
        at_work.start()
        others = [write(f"meanwhile-{n}", NOW, finished_at=None) for n in range(20)]
        assert left_of(owner, old)["runs"] == 1
        reader.rollback()
        at_work.join(60)
    assert left_of(owner, old) == GONE
    assert all(left_of(owner, run_id) == WHOLE for run_id in others)


@pytest.fixture
def operator_dsn(database, migrations) -> str:
    return database.prepare(migrations).operator


async def test_verify_takes_what_retention_has_not_come_to_yet_for_no_orphan(
    database, owner, write, operator_dsn, monkeypatch
) -> None:
    write("old", OLD)
    with monkeypatch.context() as patch:
        patch.setattr(retention._Retention, "drop_detached", _stop)
        with pytest.raises(KeyboardInterrupt):
            remove_old(database.owner_dsn, NOW, KEEP)
    async with operator_connection(operator_dsn) as connection:
        found = await audit(connection, lambda _done, _total: None)
    assert [problem.message for problem in found.problems] == []
    remove_old(database.owner_dsn, NOW, KEEP)


def test_the_services_may_not_drop_or_take_out_a_partition(database, owner, migrations) -> None:
    week = f"executor.runs_{Span.week_of(NOW).begins_at:%Y%m%d}"
    with psycopg.connect(database.prepare(migrations).services["executor"], autocommit=True) as service:
        for statement in (
            f"drop table {week}",
            f"alter table executor.runs detach partition {week}",
            f"truncate {week}",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                service.execute(statement)


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_where_no_executor_keeps_runs_nothing_goes_and_that_is_said(database, owner, options) -> None:
    dsn = urlunsplit(urlsplit(database.owner_dsn)._replace(path=f"/{database.prefix}_bare"))
    owner.execute(f"create database {database.prefix}_bare")
    try:
        told = CliRunner().invoke(app, ["retention", "--postgres", dsn, *options])
    finally:
        owner.execute(f"drop database {database.prefix}_bare with (force)")
    assert told.exit_code == 0, told.output
    assert "No executor keeps runs in this database" in told.stderr


def test_the_command_reports_as_json(database, owner, write) -> None:
    write("old", OLD)
    told = CliRunner().invoke(
        app, ["retention", "--postgres", database.owner_dsn, "--keep", "90d", "--dry-run", "--json"]
    )
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    assert report["dry_run"] is True
    assert any("executor.runs_" in name for week in report["weeks"] for name in week["tables"])


@pytest.mark.parametrize("text", ["90", "0d", "1h", "soon"])
def test_a_span_that_is_no_number_of_days_is_refused(text) -> None:
    told = CliRunner().invoke(app, ["retention", "--postgres", "postgresql://x", "--keep", text])
    assert told.exit_code == 2
    assert "90d" in told.output
