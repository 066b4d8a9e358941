"""Prepares a database: roles, one schema a service, the migrations of each, and partitions ahead of time,
in one idempotent call.

Migrations run as the owner; a service's role can touch the rows of its own schema and of the shared
claims, and owns nothing. The sets of migrations are given by the caller: the kernel knows no service.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from alembic import command, op
from alembic.config import Config
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

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
        with _migrating(owner_dsn) as migrating:
            _migrate(migrating, _CLAIMS_SCHEMA, _CLAIMS)
            for schema in schemas:
                for directory in schema.migrations:
                    try:
                        _migrate(migrating, schema.name, directory)
                    except MigrationPostponed as reason:
                        migrating.rollback()
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


def need_extension(name: str) -> None:
    """Make sure, in a revision, that the database has an extension, and let this revision find what is in it.

    Raises:
        MigrationPostponed: the server does not ship it, or the owner must not create it.
    """
    bind = op.get_bind()
    where = text(
        "SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = :name"
    )
    if bind.execute(where, {"name": name}).scalar() is None:
        try:
            with bind.begin_nested():
                bind.exec_driver_sql(f'CREATE EXTENSION "{name}" WITH SCHEMA public')
        except DBAPIError as error:
            raise MigrationPostponed(name, error.orig if isinstance(error.orig, Exception) else error) from error
    path = text("SELECT set_config('search_path', quote_ident(current_schema()) || ', ' || quote_ident(:there), true)")
    bind.execute(path, {"there": bind.execute(where, {"name": name}).scalar()})


def run_sql(revision: str) -> None:
    """Run the .sql file beside a revision, as its whole body (`run_sql(__file__)`)."""
    script = Path(revision).with_suffix(".sql").read_text("utf-8")
    # By the driver and without parameters: then it takes many statements, and % and : mean themselves.
    op.get_bind().connection.cursor().execute(script)


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


@contextmanager
def _migrating(owner_dsn: str) -> Iterator[Connection]:
    engine = create_engine(
        URL.create("postgresql+psycopg"), creator=lambda: psycopg.connect(owner_dsn), poolclass=NullPool
    )
    with engine.connect() as connection:
        yield connection


def _migrate(connection: Connection, schema: str, directory: Path) -> None:
    """Upgrade one set in one schema. Each set keeps its own version table there, so sets do not collide."""
    config = Config()
    for option, value in {
        "script_location": str(_MIGRATIONS),
        "version_locations": str(directory),
        "path_separator": "newline",
    }.items():
        config.set_main_option(option, value.replace("%", "%%"))
    version_table = _VERSIONS + (schema if directory.name == "migrations" else directory.name)
    config.attributes |= {"connection": connection, "schema": schema, "version_table": version_table}
    command.upgrade(config, "head")


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
