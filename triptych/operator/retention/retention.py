"""Removes runs that ended long ago, by whole partitions where it can, without slowing those that live.

A week all of whose runs are older than the limit is taken out of its tables in one short transaction and
dropped after it. What in it is not over, or was over only lately, is carried into the default partition
first. Task ids, jobs and receipts go in small batches. No lock on a table in use is waited for longer than
`LOCK_MS`: who comes after it in the queue would wait too.

It runs under the role that owns the tables. It can be stopped at any moment: the next run of it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

import psycopg
from psycopg import sql

from triptych.kernel.postgres.age_partitions import AgedTable, Partition, aged_tables, make_partitions, partitions
from triptych.kernel.postgres.database import Queries
from triptych.kernel.run_ids import Span, first_id

BATCH_RUNS = 500
LOCK_MS = 200
LOCK_ATTEMPTS = 30
LOCK_PAUSE_S = 1.0
REST = 1.0
"""After each batch of rows, a rest of so many times what it took: live runs have the machine for themselves then."""
MAX_CARRIED = 100
"""A week with more runs than this that stay is not taken out: they are carried under the lock, at some 0.3 ms each."""

_EXECUTOR = ("journal_commits", "runs", "steps")
_BEFORE_ALL = UUID(int=0)
_IS_OLD = {
    "journal_commits": sql.SQL("at < %(before)s"),
    "steps": sql.SQL("true"),
    "blobs": sql.SQL("created_at < %(before)s"),
    "jobs": sql.SQL("received_at < %(before)s and state = 'published'"),
    "effects": sql.SQL("started_at < %(before)s"),
    "callbacks": sql.SQL("created_at < %(before)s"),
}
"""When a row of a run that is gone may go too. A payload may belong to a record that became no run."""

Parts: TypeAlias = list[tuple[AgedTable, Partition]]


@dataclass(frozen=True, slots=True)
class Retired:
    """A week that goes, or would go, or must wait and why."""

    week: datetime
    tables: tuple[str, ...]
    size_bytes: int
    kept_runs: int
    waits: str = ""


@dataclass(slots=True)
class RetentionReport:
    """What was done; with `dry_run`, what would be."""

    before: datetime
    """Runs that were over by then go."""
    dry_run: bool
    made: list[str] = field(default_factory=list)
    weeks: list[Retired] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    """Rows that were deleted one by one, by table."""
    knows_runs: bool = True
    """False where no executor keeps its runs in this database: then nothing says what is over, and all stays."""

    def count(self, table: str, rows: int) -> None:
        if rows:
            self.rows[table] = self.rows.get(table, 0) + rows


def remove_old(owner_dsn: str, now: datetime, keep: timedelta, *, dry_run: bool = False) -> RetentionReport:
    """Remove what has been over for longer than `keep`, and make the partitions of the weeks to come.

    Raises:
        psycopg.Error: the server cannot be reached, or the role does not own the tables.
    """
    report = RetentionReport(now - keep, dry_run)
    with psycopg.connect(owner_dsn, autocommit=True, application_name="triptych-retention") as connection:
        work = _Retention(connection, report)
        if not dry_run:
            report.made = make_partitions(connection, now)
        if not work.knows_runs:
            return replace(report, knows_runs=False)
        work.retire_runs()
        work.retire_blobs()
        if not dry_run:
            work.drop_detached()
            work.trim_runs()
            work.sweep()
    return report


class _Retention:
    """One pass over one database."""

    def __init__(self, connection: psycopg.Connection, report: RetentionReport) -> None:
        self._connection, self._report = connection, report
        self._sql = Queries.load("triptych.operator.retention", "retention.sql")
        self._tables = {f"{table.schema}.{table.name}": table for table in aged_tables(connection)}
        self._crowded: list[Partition] = []

    @property
    def knows_runs(self) -> bool:
        """Whether an executor keeps its runs in this database."""
        return "executor.runs" in self._tables

    @property
    def _end(self) -> UUID:
        """Return the first run id that is too young to go, however its run ended."""
        return first_id(self._report.before)

    # --- whole weeks ------------------------------------------------------------------------------

    def retire_runs(self) -> None:
        """Take out the weeks of runs, steps and journals that are old."""
        runs = self._tables["executor.runs"]
        for span, parts in sorted(self._old([f"executor.{name}" for name in _EXECUTOR]).items()):
            kept = self._kept_runs(runs.identifier, span)
            if len(kept) > MAX_CARRIED:
                self._crowded.extend(part for table, part in parts if table.name == "runs")
                self._report_part(span, parts, len(kept), "too many stay; the others go one by one")
            else:
                self._retire(span, parts, kept)

    def retire_blobs(self) -> None:
        """Take out the weeks of payloads that are old. Their runs are gone by now, or carried."""
        for span, parts in sorted(self._old(["claims.blobs"]).items()):
            kept = [run_id for table, part in parts for run_id in self._kept_blobs(table.of(part.name))]
            self._retire(span, parts, kept)

    def drop_detached(self) -> None:
        """Drop what was taken out, here or by a pass that was stopped, after the task ids that it names."""
        detached: list[tuple[str, str]] = self._execute("detached", {})
        for schema, name in detached:
            self._carry_late(schema, name)
        for schema, name in detached:
            if name.startswith("runs_"):
                self._remove_tasks(sql.Identifier(schema, name))
        with self._connection.transaction():
            for schema, name in detached:
                self._connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, name)))

    def _carry_late(self, schema: str, name: str) -> None:
        """Find the runs that came into a week while it was looked through: a task may claim any time."""
        parent, _, week = name.rpartition("_")
        table, span = sql.Identifier(schema, name), Span.week_of(datetime.strptime(week, "%Y%m%d").replace(tzinfo=UTC))
        if parent == "blobs":
            kept = self._kept_blobs(table)
        else:
            kept = self._kept_runs(table if parent == "runs" else self._tables["executor.runs"].identifier, span)
        self._carry(sql.Identifier(schema, parent), table, kept)

    def _old(self, names: list[str]) -> dict[Span, Parts]:
        """Return by week the partitions in which every run is older than the limit, in the order of `names`."""
        found: dict[Span, Parts] = {}
        for table in (self._tables[name] for name in names):
            for partition in partitions(self._connection, table):
                if partition.span.end <= self._end:
                    found.setdefault(partition.span, []).append((table, partition))
        return found

    def _kept_runs(self, table: sql.Identifier, span: Span) -> list[UUID]:
        rows = self._execute("kept", {"table": table}, first=span.first, end=span.end, before=self._report.before)
        return [row[0] for row in rows]

    def _kept_blobs(self, table: sql.Identifier) -> list[UUID]:
        return [row[0] for row in self._execute("kept_blobs", {"table": table}, before=self._report.before)]

    def _retire(self, span: Span, parts: Parts, kept: list[UUID]) -> None:
        if self._report.dry_run:
            self._report_part(span, parts, len(kept))
            return
        size = self._size(parts)
        for table, part in parts:  # what is carried under the lock is read from the disk before it
            self._execute("warm", {"table": table.of(part.name)}, kept=kept)
        is_out = self._patiently(partial(self._detach_all, span, parts, kept))
        self._report_part(span, parts, len(kept), "" if is_out else "its tables were never free; run this again", size)

    def _detach_all(self, span: Span, parts: Parts, kept: list[UUID]) -> None:
        # In the order in which a commit writes them, so that the two do not wait for each other.
        for table, part in parts:
            statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {}")
            self._connection.execute(statement.format(table.identifier, table.of(part.name)))
        for table, part in parts:
            self._carry(table.identifier, table.of(part.name), kept)
        self._execute("remember", {}, end=span.end)

    def _carry(self, parent: sql.Identifier, table: sql.Identifier, kept: list[UUID]) -> None:
        if kept:
            self._execute("carry", {"parent": parent, "table": table}, kept=kept)

    def _report_part(self, span: Span, parts: Parts, kept: int, waits: str = "", size: int | None = None) -> None:
        names = tuple(f"{table.schema}.{part.name}" for table, part in parts)
        is_of_runs = any(table.schema == "executor" for table, _ in parts)
        size = self._size(parts) if size is None else size
        self._report.weeks.append(Retired(span.begins_at, names, size, kept if is_of_runs else 0, waits))

    def _size(self, parts: Parts) -> int:
        names = [table.of(part.name).as_string(self._connection) for table, part in parts]
        query = "SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest(%s::text[]) AS name"
        row = self._connection.execute(query, [names]).fetchone()
        return int(row[0]) if row else 0

    # --- row by row -------------------------------------------------------------------------------

    def trim_runs(self) -> None:
        """Remove runs that are over from where live ones are among them: crowded weeks and the default partition."""
        table = self._tables["executor.runs"]
        for name in (table.default, *(part.name for part in self._crowded)):
            after = _BEFORE_ALL
            while ids := self._ids("old_runs", table.of(name), after):
                with _rest_after():
                    ((removed,),) = self._execute("remove_runs", {}, ids=ids, before=self._report.before)
                self._report.count("executor.runs", removed)
                after = ids[-1]

    def sweep(self) -> None:
        """Remove what belongs to runs that are gone: jobs, receipts, and what a default partition holds."""
        for name in ("executor.journal_commits", "executor.steps", "claims.blobs"):
            table = self._tables[name]
            self._sweep(table.schema, table.default, _IS_OLD[table.name])
        for schema, name in self._execute("worker_tables", {}):
            self._sweep(schema, name, _IS_OLD[name])
        self._sweep("executor", "business_keys", sql.SQL("expires_at < now()"))

    def _sweep(self, schema: str, name: str, is_old: sql.SQL) -> None:
        table = sql.Identifier(schema, name)
        after = _BEFORE_ALL
        while True:
            ((ids,),) = self._execute("next_ids", {"table": table}, after=after, end=self._end, limit=BATCH_RUNS)
            if not ids:
                return
            statement = self._text("sweep", {"table": table, "is_old": is_old})
            with _rest_after():
                gone = self._connection.execute(statement, {"ids": ids, "before": self._report.before}).rowcount
            self._report.count(f"{schema}.{name}", gone)
            after = ids[-1]

    def _remove_tasks(self, runs: sql.Identifier) -> None:
        after: UUID | None = _BEFORE_ALL
        while after is not None:
            with _rest_after():
                ((after, removed),) = self._execute("old_tasks", {"table": runs}, after=after, limit=BATCH_RUNS)
            self._report.count("executor.tasks", removed)

    def _ids(self, query: str, table: sql.Identifier, after: UUID) -> list[UUID]:
        parameters = {"after": after, "end": self._end, "before": self._report.before, "limit": BATCH_RUNS}
        return [row[0] for row in self._execute(query, {"table": table}, **parameters)]

    # --- statements -------------------------------------------------------------------------------

    def _text(self, query: str, names: dict[str, sql.Composable]) -> sql.Composed:
        return sql.SQL(self._sql[query]).format(**names)

    def _execute(self, query: str, names: dict[str, sql.Composable], **parameters: Any) -> list[Any]:
        cursor = self._connection.execute(self._text(query, names), parameters)
        return cursor.fetchall() if cursor.description else []

    def _patiently(self, work: Callable[[], None]) -> bool:
        """Do it in one transaction, giving way to others again and again; whether it was done."""
        for _ in range(LOCK_ATTEMPTS):
            try:
                with self._connection.transaction():
                    self._connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_MS)))
                    work()
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                time.sleep(LOCK_PAUSE_S)
            else:
                return True
        return False


@contextmanager
def _rest_after() -> Iterator[None]:
    began = time.monotonic()
    yield
    time.sleep(REST * (time.monotonic() - began))
