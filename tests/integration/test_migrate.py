"""Preparing a database: each service gets a role that can touch its own rows and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import errors, sql

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.postgres.migrate import (
    WORKER,
    PreparedDatabase,
    RoleNameError,
    Schema,
    UnknownMigrationError,
    WrongPrefixError,
    prepare,
)


@pytest.fixture(scope="module")
def prepared(database: Any) -> PreparedDatabase:
    return database.prepare({"planner": (WORKER,), "tool_kb": (WORKER,), "tool_bare": ()})


@pytest.mark.parametrize("schema", ["planner", "tool_kb", "tool_bare"])
def test_a_service_finds_its_own_schema_without_naming_it(prepared: PreparedDatabase, schema: str) -> None:
    with psycopg.connect(prepared.services[schema]) as connection:
        assert connection.execute("SHOW search_path").fetchone() == (schema,)


@pytest.mark.parametrize(
    "allowed",
    [
        "SELECT * FROM jobs",
        "DELETE FROM jobs",
        "INSERT INTO leases (instance, until) VALUES ('a', now())",
        "SELECT * FROM migrations_worker",
        "INSERT INTO claims.blobs VALUES (gen_random_uuid(), 'hash', 'acme', 'body')",
        "SELECT * FROM claims.resolve(array[gen_random_uuid()], array['hash'])",
    ],
)
def test_a_service_may_work_with_its_own_rows_and_with_claims(prepared: PreparedDatabase, allowed: str) -> None:
    with psycopg.connect(prepared.services["planner"]) as connection:
        connection.execute(allowed)


@pytest.mark.parametrize(
    "forbidden",
    [
        "SELECT * FROM tool_kb.jobs",
        "DELETE FROM claims.blobs",
        "SELECT * FROM claims.blobs",
        "UPDATE claims.blobs SET body = 'mine'",
        "UPDATE triptych.stack SET topic_prefix = 'mine'",
        "UPDATE migrations_worker SET version_num = '0'",
        "DROP TABLE jobs",
        "CREATE TABLE mine ()",
        "CREATE TEMPORARY TABLE mine ()",
        "CREATE SCHEMA mine",
        "SET ROLE postgres",
    ],
)
def test_a_service_may_do_nothing_else(prepared: PreparedDatabase, forbidden: str) -> None:
    with psycopg.connect(prepared.services["planner"]) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(forbidden)


def test_the_operator_reads_everything_and_changes_nothing(prepared: PreparedDatabase) -> None:
    with psycopg.connect(prepared.operator, autocommit=True) as connection:
        for table in ("planner.jobs", "tool_kb.jobs", "claims.blobs", "triptych.stack"):
            connection.execute(sql.SQL("TABLE {}").format(sql.Identifier(*table.split("."))))
        with pytest.raises(errors.ReadOnlySqlTransaction):
            connection.execute("DELETE FROM planner.jobs")
        connection.execute("SET default_transaction_read_only = off")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("DELETE FROM planner.jobs")


def test_preparing_again_changes_no_row_and_takes_new_passwords(database: Any, prepared: PreparedDatabase) -> None:
    with psycopg.connect(prepared.services["tool_kb"]) as connection:
        connection.execute("INSERT INTO leases (instance, until) VALUES ('kept', now())")
    again = prepare(database.owner_dsn, database.prefix, [Schema("tool_kb", "p:@/% word", (WORKER,))], "secret")
    assert not again.created
    with psycopg.connect(again.services["tool_kb"]) as connection:
        assert connection.execute("SELECT count(*) FROM leases WHERE instance = 'kept'").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(prepared.services["tool_kb"])


def test_a_new_revision_is_applied_to_what_is_there(database: Any, tmp_path: Path) -> None:
    schema = Schema("tool_grown", "secret", (tmp_path,))
    _migration(tmp_path, "0001_notes", "CREATE TABLE notes (text text); INSERT INTO notes VALUES ('50% :kept');")
    prepare(database.owner_dsn, database.prefix, [schema], "secret")
    _migration(tmp_path, "0002_at", "ALTER TABLE notes ADD COLUMN at timestamptz;")
    dsn = prepare(database.owner_dsn, database.prefix, [schema], "secret").services["tool_grown"]
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT text, at FROM notes").fetchall() == [("50% :kept", None)]


def test_a_revision_that_fails_leaves_nothing_behind(database: Any, tmp_path: Path) -> None:
    schema = Schema("tool_broken", "secret", (tmp_path,))
    _migration(tmp_path, "0001_notes", "CREATE TABLE half (); SELECT 1/0;")
    with pytest.raises(psycopg.Error):
        prepare(database.owner_dsn, database.prefix, [schema], "secret")
    with psycopg.connect(database.owner_dsn) as connection:
        assert connection.execute("SELECT to_regclass('tool_broken.half')").fetchone() == (None,)


@pytest.mark.usefixtures("prepared")
def test_a_database_belongs_to_one_prefix(database: Any) -> None:
    with pytest.raises(WrongPrefixError, match=f"belongs to the topic prefix '{database.prefix}'"):
        prepare(database.owner_dsn, "another", [], "secret")


def test_a_role_name_that_postgres_would_cut_is_refused(database: Any) -> None:
    long = replace(Schema("tool_x", "secret", ()), name="tool_" + "x" * 60)
    with pytest.raises(RoleNameError, match="longer than 63 bytes"):
        prepare(database.owner_dsn, database.prefix, [long], "secret")


def test_a_server_that_is_not_there_is_an_error_of_the_driver(database: Any) -> None:
    nowhere = urlunsplit(urlsplit(database.owner_dsn)._replace(netloc="postgres:secret@127.0.0.1:1"))
    with pytest.raises(psycopg.OperationalError, match="Connection refused"):
        prepare(nowhere, database.prefix, [], "secret")


def _migration(directory: Path, name: str, script: str) -> Path:
    directory.mkdir(exist_ok=True)
    file = directory / f"{name}.sql"
    file.write_text(script)
    return file


def test_a_database_that_alembic_migrated_continues_where_it_is(database: Any, tmp_path: Path) -> None:
    schema = Schema("tool_before", "secret", (tmp_path / "notes",))
    with psycopg.connect(database.owner_dsn) as connection:  # as earlier versions left it
        connection.execute("CREATE SCHEMA tool_before")
        connection.execute("CREATE TABLE tool_before.notes (text text)")
        connection.execute(
            """CREATE TABLE tool_before.migrations_notes (
                 version_num VARCHAR(32) NOT NULL, CONSTRAINT migrations_notes_pkc PRIMARY KEY (version_num))"""
        )
        connection.execute("INSERT INTO tool_before.migrations_notes VALUES ('0002')")
    _migration(tmp_path / "notes", "0001_notes", "CREATE TABLE notes (text text);")
    _migration(tmp_path / "notes", "0002_once", "INSERT INTO notes VALUES ('twice');")
    _migration(tmp_path / "notes", "0004_more", "INSERT INTO notes VALUES ('once');")
    for _ in range(2):
        dsn = prepare(database.owner_dsn, database.prefix, [schema], "secret").services["tool_before"]
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT text FROM notes").fetchall() == [("once",)]
            assert connection.execute("SELECT version_num FROM migrations_notes").fetchall() == [("0004",)]


def test_a_database_of_a_newer_version_is_left_alone(database: Any, tmp_path: Path) -> None:
    schema = Schema("tool_newer", "secret", (tmp_path,))
    _migration(tmp_path, "0001_notes", "CREATE TABLE notes (text text);")
    newer = _migration(tmp_path, "0002_more", "ALTER TABLE notes ADD COLUMN at timestamptz;")
    prepare(database.owner_dsn, database.prefix, [schema], "secret")
    newer.unlink()
    with pytest.raises(UnknownMigrationError, match=r"tool_newer has run migration 0002.*or a newer one"):
        prepare(database.owner_dsn, database.prefix, [schema], "secret")


def test_a_directory_without_migrations_is_named(database: Any, tmp_path: Path) -> None:
    (tmp_path / "0001_notes.py").write_text("revision = '0001'")
    with pytest.raises(ConfigurationError, match=r"has no migrations. Write one, such as .*0001_tables.sql"):
        prepare(database.owner_dsn, database.prefix, [Schema("tool_none", "secret", (tmp_path,))], "secret")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("0001_notes.sql", "0001_tables.sql"), "0001_notes.sql and 0001_tables.sql have the same number"),
        (("0001_notes.sql", "10_tables.sql"), "10_tables.sql does not begin with a number of four digits"),
        (("tables.sql",), "tables.sql does not begin with a number of four digits"),
    ],
)
def test_migrations_whose_order_is_not_certain_are_named_and_none_is_run(
    database: Any, tmp_path: Path, names: tuple[str, ...], problem: str
) -> None:
    for name in names:
        (tmp_path / name).write_text("CREATE TABLE notes (text text)")
    with pytest.raises(ConfigurationError, match=problem):
        prepare(database.owner_dsn, database.prefix, [Schema("tool_two", "secret", (tmp_path,))], "secret")
    with psycopg.connect(database.owner_dsn) as connection:
        assert connection.execute("SELECT to_regclass('tool_two.notes')").fetchone() == (None,)


def test_a_migration_runs_after_the_file_that_it_includes(database: Any, tmp_path: Path) -> None:
    _migration(tmp_path, "one", "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';")
    _migration(tmp_path / "sums", "0001_sums", "-- include: ../one.sql\nCREATE TABLE sums AS SELECT one() AS sum;")
    dsn = database.prepare({"tool_sums": (tmp_path / "sums",)}).services["tool_sums"]
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT sum FROM sums").fetchone() == (1,)


def test_a_migration_that_waits_for_an_extension_is_tried_again_at_the_next_start(database, tmp_path):
    script = "-- extension: {}\ncreate table shelf (number integer);"
    folder = tmp_path / "shelves"
    _migration(folder, "0001_shelf", script.format("nothing-of-the-kind"))
    waiting = database.prepare({"tool_shelf": (WORKER, folder)})
    assert "nothing-of-the-kind" in waiting.postponed[0]
    with psycopg.connect(waiting.services["tool_shelf"]) as connection:
        assert connection.execute("select to_regclass('shelf'), to_regclass('jobs')").fetchone() == (None, "jobs")
    _migration(folder, "0001_shelf", script.format("vector"))
    assert database.prepare({"tool_shelf": (WORKER, folder)}).postponed == ()
    with psycopg.connect(waiting.services["tool_shelf"]) as connection:
        assert connection.execute("select to_regclass('shelf')").fetchone() == ("shelf",)
