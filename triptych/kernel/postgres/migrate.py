"""Prepares a database: roles, one schema a service, the migrations of each, and partitions ahead of time,
in one idempotent call.

Migrations run as the owner; a service's role can touch the rows of its own schema and of the shared
claims, and owns nothing. The sets of migrations are given by the caller: the kernel knows no service.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from triptych.kernel.errors import ConfigurationError, TriptychError
from triptych.kernel.postgres.age_partitions import make_partitions

_MIGRATIONS = Path(__file__).parents[1] / "migrations"
WORKER = _MIGRATIONS / "worker"
"""The tables of a worker: its jobs and its outbox."""
MODELS = _MIGRATIONS / "models"
"""What a service that asks models keeps besides."""

_CLAIMS = _MIGRATIONS / "claims"
_CLAIMS_SCHEMA = "claims"
_STACK_SCHEMA = "triptych"
_OPERATOR = "operator"
_VERSIONS = "migrations_"
_NUMBER = re.compile(r"[0-9]{4}")
"""As texts, numbers of one length have the order of their values."""
_NEEDS = re.compile(r"^-- (extension|include): (\S+)$", re.MULTILINE)
_LOCK = 7_310_331_215
"""A process that prepares a database holds this advisory lock, so that two never do so at the same time."""


class WrongPrefixError(ConfigurationError):
    """The database was prepared for another topic prefix; the offsets in it would be of other topics."""

    def __init__(self, database: str, owner: str, wanted: str) -> None:
        self.database, self.owner, self.wanted = database, owner, wanted
        super().__init__(
            f"database {database} belongs to the topic prefix {owner!r}, not {wanted!r}: "
            f"use --prefix {owner}, or a database of its own for {wanted!r}"
        )


class RoleNameError(ConfigurationError):
    """Postgres would cut the name of a role short."""

    def __init__(self, role: str) -> None:
        self.role = role
        super().__init__(f"role name {role} is longer than 63 bytes: use a shorter name for the database")


class UnknownMigrationError(ConfigurationError):
    """The database has run a migration that this version of the code does not have."""

    def __init__(self, schema: str, directory: Path, number: str) -> None:
        self.schema, self.number = schema, number
        super().__init__(
            f"schema {schema} has run migration {number}, and {directory} does not have it. "
            "Use the version of the code that prepared the database, or a newer one"
        )


class MigrationPostponed(TriptychError):
    """A migration waits for something that the database does not have. It is tried again at the next `prepare`."""

    def __init__(self, extension: str, cause: Exception) -> None:
        self.extension = extension
        super().__init__(f"the database has no extension {extension}, and it cannot be made: {cause}")


@dataclass(frozen=True, slots=True)
class Schema:
    """A service's schema, the password of its role, and the directories of its migrations, in order."""

    name: str
    password: str
    migrations: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class PreparedDatabase:
    """How to connect to a database that is ready."""

    created: bool
    """Whether the database itself had to be created."""
    services: dict[str, str]
    """By schema name, the DSN of the role that owns its rows."""
    operator: str
    """The DSN of the role that may read everything and change nothing."""
    owner: str
    """The DSN of the role that owns everything; no service gets it."""
    postponed: tuple[str, ...] = ()
    """By schema, what a migration still waits for. The service works without, and says what it lacks."""


def prepare(owner_dsn: str, topic_prefix: str, schemas: Sequence[Schema], operator_password: str) -> PreparedDatabase:
    """Bring a database to the state this version of the code needs. Repeating it changes nothing.

    Raises:
        ConfigurationError: the database belongs to another prefix, or a name is too long.
        psycopg.Error: the server cannot be reached, or the owner lacks a privilege.
    """
    database = str(conninfo_to_dict(owner_dsn).get("dbname") or "triptych")
    owner_dsn = _dsn(owner_dsn, dbname=database)
    created = _create_database(owner_dsn, database)
    with psycopg.connect(owner_dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        _claim_prefix(connection, database, topic_prefix)
        operator = _ensure_role(connection, database, _OPERATOR, operator_password)
        _execute(connection, "ALTER ROLE {} SET default_transaction_read_only = on", sql.Identifier(operator))
        roles = {schema.name: _ensure_role(connection, database, schema.name, schema.password) for schema in schemas}
        for name in (_CLAIMS_SCHEMA, *roles):
            _execute(connection, "CREATE SCHEMA IF NOT EXISTS {}", sql.Identifier(name))
        postponed: list[str] = []
        _migrate(connection, _CLAIMS_SCHEMA, _CLAIMS)
        for schema in schemas:
            for directory in schema.migrations:
                try:
                    _migrate(connection, schema.name, directory)
                except MigrationPostponed as reason:
                    postponed.append(f"{schema.name}: {reason}")
        make_partitions(connection, datetime.now(UTC))
        for name, role in roles.items():
            _grant(connection, name, role)
        for name in (*roles, _CLAIMS_SCHEMA, _STACK_SCHEMA):
            _grant_reading(connection, name, operator)
    return PreparedDatabase(
        created=created,
        services={
            schema.name: _dsn(owner_dsn, user=roles[schema.name], password=schema.password) for schema in schemas
        },
        operator=_dsn(owner_dsn, user=operator, password=operator_password),
        owner=owner_dsn,
        postponed=tuple(postponed),
    )


def _create_database(owner_dsn: str, database: str) -> bool:
    try:
        psycopg.connect(owner_dsn).close()
    except psycopg.OperationalError:
        # Either it is not there, or the server is not; connecting to `postgres` tells the two apart.
        with psycopg.connect(_dsn(owner_dsn, dbname="postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone()
            if known:
                raise
            _execute(connection, "CREATE DATABASE {}", sql.Identifier(database))
            _execute(connection, "REVOKE ALL ON DATABASE {} FROM PUBLIC", sql.Identifier(database))
        return True
    return False


def _claim_prefix(connection: psycopg.Connection, database: str, prefix: str) -> None:
    _execute(connection, "CREATE SCHEMA IF NOT EXISTS {}", sql.Identifier(_STACK_SCHEMA))
    connection.execute(
        """CREATE TABLE IF NOT EXISTS triptych.stack (
             only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
             topic_prefix text NOT NULL)"""
    )
    connection.execute("INSERT INTO triptych.stack (topic_prefix) VALUES (%s) ON CONFLICT DO NOTHING", [prefix])
    row = connection.execute("SELECT topic_prefix FROM triptych.stack").fetchone()
    if row is not None and row[0] != prefix:
        raise WrongPrefixError(database, row[0], prefix)


def _ensure_role(connection: psycopg.Connection, database: str, schema: str, password: str) -> str:
    """Make a login role for this database. Roles belong to the cluster, so its name has the database's."""
    role = f"{database}_{schema}"
    if len(role.encode()) > 63:  # noqa: PLR2004 (NAMEDATALEN - 1)
        raise RoleNameError(role)
    name = sql.Identifier(role)
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone() is None:
        _execute(connection, "CREATE ROLE {} LOGIN", name)
    # The server gets the verifier, so that the password is not in any log.
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    _execute(connection, "ALTER ROLE {} PASSWORD {}", name, sql.Literal(verifier))
    _execute(connection, "GRANT CONNECT ON DATABASE {} TO {}", sql.Identifier(database), name)
    if schema != _OPERATOR:
        where = (name, sql.Identifier(database), sql.Identifier(schema))
        _execute(connection, "ALTER ROLE {} IN DATABASE {} SET search_path = {}", *where)
    return role


def _grant(connection: psycopg.Connection, schema: str, role: str) -> None:
    names = (sql.Identifier(schema), sql.Identifier(role))
    _execute(connection, "GRANT USAGE ON SCHEMA {} TO {}", *names)
    _execute(connection, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {}", *names)
    versions = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s AND starts_with(tablename, %s)", [schema, _VERSIONS]
    )
    for (table,) in versions.fetchall():
        where = (names[0], sql.Identifier(table), names[1])
        _execute(connection, "REVOKE INSERT, UPDATE, DELETE ON {}.{} FROM {}", *where)
    _execute(connection, "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {} TO {}", *names)
    _execute(connection, "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {} TO {}", *names)
    _execute(connection, "GRANT USAGE ON SCHEMA claims TO {}", sql.Identifier(role))
    _execute(connection, "REVOKE SELECT ON claims.blobs FROM {}", sql.Identifier(role))
    _execute(connection, "GRANT INSERT ON claims.blobs TO {}", sql.Identifier(role))
    _execute(connection, "GRANT EXECUTE ON FUNCTION claims.resolve(uuid[], text[]) TO {}", sql.Identifier(role))


def _grant_reading(connection: psycopg.Connection, schema: str, role: str) -> None:
    names = (sql.Identifier(schema), sql.Identifier(role))
    _execute(connection, "GRANT USAGE ON SCHEMA {} TO {}", *names)
    _execute(connection, "GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}", *names)


def _migrate(connection: psycopg.Connection, schema: str, directory: Path) -> None:
    """Run the files of one set that a schema has not run yet, each in a transaction of its own.

    Each set keeps the number of its last file in a table of the schema. It is the table that Alembic kept in earlier
    versions, so a database of theirs continues where it is.

    Raises:
        MigrationPostponed: a file waits for an extension.
        ConfigurationError: the directory has none, a misnamed one, or not the one that was run last.
    """
    files = _numbered(directory)
    versions = sql.Identifier(schema, _VERSIONS + (schema if directory.name == "migrations" else directory.name))
    _execute(connection, "CREATE TABLE IF NOT EXISTS {} (version_num varchar(32) PRIMARY KEY)", versions)
    row = connection.execute(sql.SQL("SELECT version_num FROM {}").format(versions)).fetchone()
    done: str = row[0] if row else ""
    if done and done not in files:
        raise UnknownMigrationError(schema, directory, done)
    for number, file in files.items():
        if number > done:
            with connection.transaction():
                _execute(connection, "SET LOCAL search_path = {}", sql.Identifier(schema))
                _run(connection, file)
                _execute(connection, "DELETE FROM {}", versions)
                _execute(connection, "INSERT INTO {} VALUES ({})", versions, sql.Literal(number))


def _numbered(directory: Path) -> dict[str, Path]:
    """Return the migrations of a directory by their numbers, in their order.

    Raises:
        ConfigurationError: the directory has none, two have one number, or a name does not begin with four digits.
    """
    files: dict[str, Path] = {}
    for file in sorted(directory.glob("*.sql")):
        number = file.stem.partition("_")[0]
        if not _NUMBER.fullmatch(number):
            raise ConfigurationError(f"{file} does not begin with a number of four digits, such as 0001_tables.sql")
        if number in files:
            raise ConfigurationError(f"{files[number]} and {file.name} have the same number. Give one the next number")
        files[number] = file
    if not files:
        raise ConfigurationError(f"{directory} has no migrations. Write one, such as {directory / '0001_tables.sql'}")
    return files


def _run(connection: psycopg.Connection, file: Path) -> None:
    """Run a file, after what it needs: lines such as `-- extension: vector` or `-- include: ../terms.sql` name it."""
    script = file.read_text("utf-8")
    for kind, name in _NEEDS.findall(script):
        if kind == "extension":
            _need_extension(connection, name)
        else:
            _run(connection, file.parent / name)
    # Without parameters: then a script has many statements, and % means itself.
    connection.execute(script.encode())


def _need_extension(connection: psycopg.Connection, name: str) -> None:
    """Make sure that the database has an extension, and let this transaction find what is in it.

    Raises:
        MigrationPostponed: the server does not ship it, or the owner must not create it.
    """
    where = "SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = %s"
    found = connection.execute(where, [name]).fetchone()
    if found is None:
        try:
            with connection.transaction():
                _execute(connection, "CREATE EXTENSION {} WITH SCHEMA public", sql.Identifier(name))
        except psycopg.Error as error:
            raise MigrationPostponed(name, error) from error
        found = ("public",)
    path = "SELECT set_config('search_path', quote_ident(current_schema()) || ', ' || quote_ident(%s), true)"
    connection.execute(path, found)


def _execute(connection: psycopg.Connection, statement: str, *names: sql.Composable) -> None:
    connection.execute(sql.SQL(statement).format(*names))


def _dsn(dsn: str, **changes: str) -> str:
    """Return the DSN with other parts, as a URL, which every client library reads alike."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value is not None} | changes
    credentials = ":".join(quote(parts.pop(name), safe="") for name in ("user", "password") if name in parts)
    database = quote(parts.pop("dbname"), safe="")
    host = "" if parts.get("host", "").startswith("/") else parts.pop("host", "")
    port = f":{parts.pop('port')}" if host and "port" in parts else ""
    address = (f"[{host}]" if ":" in host else host) + port
    query = f"?{urlencode(parts, quote_via=quote)}" if parts else ""
    return f"postgresql://{credentials}@{address}/{database}{query}"
