"""Partitions by age on a real Postgres: made ahead, never in the way of an insert, and chosen by the planner alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

import triptych.executor
from triptych.kernel.postgres.age_partitions import AHEAD, aged_tables, make_partitions, partitions
from triptych.kernel.run_ids import WEEK, Span, first_id, id_time

MIGRATIONS = Path(triptych.executor.__file__).with_name("migrations")
TABLES = ["claims.blobs", "executor.journal_commits", "executor.runs", "executor.steps"]


@pytest.fixture(scope="module")
def owner(database) -> Iterator[psycopg.Connection]:
    database.prepare({"executor": (MIGRATIONS,)})
    with psycopg.connect(database.owner_dsn, autocommit=True) as connection:
        yield connection


def journal_row(connection: psycopg.Connection, run_id: UUID) -> str:
    """Write one event of a run; the partition that it went to."""
    row = connection.execute(
        "insert into executor.journal_commits values (%s, 1, now(), 'X {}') returning tableoid::regclass::text",
        [run_id],
    ).fetchone()
    assert row is not None
    return row[0]


def test_a_week_is_a_range_of_run_ids_from_monday_to_monday() -> None:
    span = Span.week_of(datetime(2026, 11, 25, 12, tzinfo=UTC))
    assert (span.begins_at, span.ends_at) == (datetime(2026, 11, 23, tzinfo=UTC), datetime(2026, 11, 30, tzinfo=UTC))
    assert Span.week_of(span.begins_at) == span
    assert Span.week_of(span.ends_at).first == span.end
    assert id_time(first_id(span.begins_at)) == span.begins_at


def test_this_week_and_those_ahead_have_partitions_in_every_aged_table(owner) -> None:
    tables = aged_tables(owner)
    assert [f"{table.schema}.{table.name}" for table in tables] == TABLES
    for table in tables:
        spans = [partition.span for partition in partitions(owner, table)]
        assert spans == [Span.week_of(datetime.now(UTC) + number * WEEK) for number in range(AHEAD + 1)]


def test_making_them_again_makes_only_what_is_missing(owner) -> None:
    assert make_partitions(owner, datetime.now(UTC)) == []
    next_week = f"{Span.week_of(datetime.now(UTC) + (AHEAD + 1) * WEEK).begins_at:%Y%m%d}"
    assert make_partitions(owner, datetime.now(UTC) + WEEK) == [f"{table}_{next_week}" for table in TABLES]


def test_a_new_partition_has_the_indexes_and_the_storage_of_its_table(owner) -> None:
    names = ["steps_default", f"steps_{Span.week_of(datetime.now(UTC)).begins_at:%Y%m%d}"]
    counted = "select count(*) from pg_index where indrelid = %s::regclass"
    assert [owner.execute(counted, [f"executor.{name}"]).fetchone() for name in names] == [(3,), (3,)]
    options = "select reloptions from pg_class where oid = %s::regclass"
    assert [owner.execute(options, [f"executor.{name}"]).fetchone() for name in names] == [(["fillfactor=70"],)] * 2


@pytest.mark.parametrize("at", [datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)])
def test_a_run_id_of_any_time_finds_a_place(owner, at) -> None:
    assert journal_row(owner, first_id(at)).endswith("journal_commits_default")


def test_a_week_whose_rows_came_before_its_partition_stays_in_the_default_one(owner) -> None:
    now = datetime.now(UTC) + 100 * WEEK
    assert journal_row(owner, first_id(now)).endswith("journal_commits_default")
    week = f"{Span.week_of(now).begins_at:%Y%m%d}"
    made = make_partitions(owner, now)
    assert f"executor.steps_{week}" in made
    assert f"executor.journal_commits_{week}" not in made
    assert journal_row(owner, first_id(now + timedelta(milliseconds=1))).endswith("journal_commits_default")
    assert not journal_row(owner, first_id(now + WEEK)).endswith("journal_commits_default")
