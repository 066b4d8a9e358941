"""Builds the tool: reads the files, asks the database for the types of each statement, and makes contracts of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import asyncpg
from pydantic import Field

from triptych.kernel.errors import ConfigurationError
from triptych.schemas.base import Json
from triptych.schemas.contract import Contract
from triptych.tools.adapters.sql.execution import SQL, PreparedStatement, StatementExecutor
from triptych.tools.adapters.sql.statements import Repeat, Statement, StatementError, read_statements
from triptych.tools.adapters.sql.types import CODECS, describe, teach
from triptych.tools.adapters.sql.values import column_schema, schema_of, type_mismatch
from triptych.tools.sdk.call import Resources
from triptych.tools.sdk.operation import Operation
from triptych.tools.sdk.source import Options, Source
from triptych.tools.sdk.tool import Tool

CONNECT_WITHIN_S = 10.0
STALLED_TRANSACTION_MS = 30_000
"""A paused process of ours holds a lock in a transaction no longer than this."""
ROUND_TRIPS_MS = 1_000
"""A call may take so much longer than its statement."""


class SqlOptions(Options):
    """What stands under `[tools.NAME.options]`."""

    dsn_env: Annotated[str, Field(min_length=1, description="The variable that holds the DSN.")]
    files: Annotated[list[str], Field(min_length=1, description="Files with statements.")]
    connections: Annotated[int, Field(ge=1, le=100, description="Most connections of one process.")] = 4


def tool(source: Source) -> Tool:
    """Return the tool that a table of triptych.toml describes.

    Raises:
        ConfigurationError: an option, a file or a statement cannot be used as it is, or the database refuses it.
    """
    options = source.read(SqlOptions)
    dsn = source.secret(options.dsn_env).get_secret_value()
    files = [source.path(file) for file in options.files]
    statements = [(file, statement) for file in files for statement in read_statements(file)]
    # A factory is called with and without an event loop around it; a thread has none.
    with ThreadPoolExecutor(1) as thread:
        prepared = thread.submit(asyncio.run, _prepare(options.dsn_env, dsn, statements)).result()

    # Each codec is a question to the database, at every new connection.
    used = {each.name for one in prepared for each in one.types.values() if each.schema == "pg_catalog"}
    codecs = sorted(used.intersection(CODECS) | {"jsonb"})

    async def init(connection: asyncpg.Connection) -> None:
        await teach(connection, codecs)

    @asynccontextmanager
    async def lifespan(_resources: Resources) -> AsyncIterator[asyncpg.Pool]:
        pool = asyncpg.create_pool(
            dsn,
            min_size=0,
            max_size=options.connections,
            timeout=CONNECT_WITHIN_S,
            init=init,
            server_settings={
                "application_name": f"triptych tool {source.name}",
                "idle_in_transaction_session_timeout": str(STALLED_TRANSACTION_MS),
            },
        )
        async with pool:
            yield pool

    made = Tool(source.name, lifespan=lifespan)
    for one in prepared:
        contract = _contract(source.name, one)
        made.add(Operation(contract, StatementExecutor(contract.operation, one), may_be_empty=True))
    return made


async def _prepare(dsn_env: str, dsn: str, statements: Sequence[tuple[Path, Statement]]) -> list[PreparedStatement]:
    try:
        connection = await asyncpg.connect(dsn, timeout=CONNECT_WITHIN_S)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise ConfigurationError(
            f"{dsn_env}: the database cannot be reached ({type(error).__name__}): {error}"
        ) from error
    try:
        if any(statement.repeat is Repeat.LEDGER for _, statement in statements):
            await _demand_ledger(connection, dsn_env)
        await teach(connection)
        return [await _ask(connection, file, statement) for file, statement in statements]
    finally:
        await connection.close()


async def _demand_ledger(connection: asyncpg.Connection, dsn_env: str) -> None:
    if not await connection.fetchval(SQL["is_there"]):
        raise ConfigurationError(
            f"{dsn_env}: the database has no table triptych_ledger, which a statement with `repeat: ledger` needs; "
            f"let its owner make one, and grant select, insert and update on it:\n{SQL['create']};"
        )


async def _ask(connection: asyncpg.Connection, file: Path, statement: Statement) -> PreparedStatement:
    try:
        described = await describe(connection, statement.text)
    except asyncpg.UnsupportedClientFeatureError as error:
        raise StatementError(file, statement.name, str(error), "Cast it, for example to text") from error
    except asyncpg.PostgresError as error:
        raise StatementError(
            file,
            statement.name,
            f"the database does not take it: {str(error).splitlines()[0]}",
            error.hint or "Try it in psql with PREPARE",
        ) from error
    names = [name for name, _ in described.columns]
    if len(set(names)) != len(names):
        raise StatementError(file, statement.name, "two columns have one name", "Give one another name with `as`")
    parameters = tuple(zip(statement.parameters, described.parameters, strict=True))
    for what, used in (("parameter", parameters), ("column", described.columns)):
        for name, oid in used:
            if odd := next(described.odd(oid, name), None):
                raise StatementError(file, statement.name, f"{what} {odd}", "Cast it, for example to text")
    return PreparedStatement(statement, parameters, described.columns, described.types)


def _contract(tool_name: str, prepared: PreparedStatement) -> Contract:
    statement = prepared.statement
    return Contract(
        operation=f"{tool_name}.{statement.name}",
        version=statement.header.version,
        description=statement.header.description.strip(),
        arguments=_arguments(prepared),
        result=_result(prepared),
        effect=statement.effect,
        timeout_ms=statement.header.timeout_ms + ROUND_TRIPS_MS,
    )


def _arguments(prepared: PreparedStatement) -> dict[str, Json]:
    """Return the declared schemas, with the types that the database knows where a schema says none."""
    oids = dict(prepared.parameters)
    properties: dict[str, Json] = {}
    for name, declared in prepared.statement.header.parameters.items():
        if problem := type_mismatch(declared or {}, prepared.types, oids[name]):
            raise ConfigurationError(f"{prepared.statement.name}: parameter {name}: {problem}; declare what is used")
        properties[name] = schema_of(prepared.types, oids[name]) | (declared or {})
    required = [name for name, schema in properties.items() if "default" not in schema]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _result(prepared: PreparedStatement) -> dict[str, Json]:
    columns: dict[str, Json] = {name: column_schema(prepared.types, oid) for name, oid in prepared.columns}
    row = {"type": "object", "properties": columns, "required": list(columns), "additionalProperties": False}
    rows = {"type": "array", "items": row, "maxItems": prepared.statement.header.max_rows}
    if prepared.statement.repeat is None:
        told: dict[str, Json] = {"truncated": {"type": "boolean", "description": "Whether there were more rows."}}
    else:
        told = {"affected": {"type": "integer", "description": "How many rows were changed."}}
    return {
        "type": "object",
        "properties": {"rows": rows} | told,
        "required": ["rows", *told],
        "additionalProperties": False,
    }
