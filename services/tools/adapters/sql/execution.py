"""Runs a statement once in a transaction of its own: read-only for a read, with the ledger for a write.

It never builds SQL: values travel as parameters of a prepared statement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.adapters.sql.failures import failure_of_postgres
from triptych.tools.adapters.sql.statements import Repeat, Statement
from triptych.tools.adapters.sql.types import Types
from triptych.tools.adapters.sql.values import from_postgres, to_postgres
from triptych.tools.sdk.call import Call
from triptych.tools.sdk.failure import ToolFailure

SQL = Queries.load("triptych.tools.adapters.sql", "ledger.sql")
ACQUIRE_WITHIN_S = 5.0

_Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[Any]"


@dataclass(frozen=True, slots=True)
class PreparedStatement:
    """A statement, and what the database says of it."""

    statement: Statement
    parameters: tuple[tuple[str, int], ...]
    """Its parameters in their order, each with the oid of its type. So with its columns."""
    columns: tuple[tuple[str, int], ...]
    types: Types


@dataclass(frozen=True, slots=True)
class StatementExecutor:
    """Performs one operation: arguments in, an object with `rows` out, None when there is nothing."""

    operation: str
    prepared: PreparedStatement

    async def __call__(self, arguments: dict[str, Json], call: Call[asyncpg.Pool]) -> Json:
        """Make one attempt, in one transaction."""
        statement = self.prepared.statement
        values = _values(self.prepared, arguments, call)
        committing = False
        try:
            async with call.state.acquire(timeout=ACQUIRE_WITHIN_S) as connection:
                transaction = connection.transaction(readonly=not statement.effect.writes)
                await transaction.start()
                try:
                    await connection.execute(SQL["limit"], f"{statement.header.timeout_ms}ms")
                    match statement.repeat:
                        case None:
                            result = await _read(connection, self.prepared, values)
                        case Repeat.LEDGER:
                            result = await self._write_once(connection, values, arguments, call)
                        case Repeat.NATURAL_KEY | Repeat.NEVER:
                            result = await _write(connection, self.prepared, values)
                except BaseException:
                    if not connection.is_closed():
                        await transaction.rollback()
                    raise
                committing = True
                await transaction.commit()
                return result
        except ToolFailure:
            raise
        except codec.InvalidJson as error:
            message = f"{self.operation}: a row holds JSON that cannot be read: {error}"
            raise ToolFailure(ErrorCode.CONTRACT_VIOLATION, message, undone=not committing) from None
        except Exception as error:
            failure = failure_of_postgres(error, self.operation, undone=not committing, parameters=statement.parameters)
            if failure is None:
                raise
            raise failure from error

    async def _write_once(
        self, connection: _Connection, values: Sequence[Any], arguments: dict[str, Json], call: Call[asyncpg.Pool]
    ) -> Json:
        """Return the write and its key in one commit; what is there already is the answer."""
        fingerprint = hashlib.sha256(codec.encode(arguments, sort_keys=True)).hexdigest()
        key = call.idempotency_key
        if not await connection.fetchval(SQL["begin"], key, self.operation, call.tenant, fingerprint):
            known = await connection.fetchrow(SQL["known"], key)
            if known is None or (known["operation"], known["arguments_hash"]) != (self.operation, fingerprint):
                raise ToolFailure(ErrorCode.CONFLICT, f"key {key} was used for another operation or other arguments")
            return known["result"]
        result = await _write(connection, self.prepared, values)
        await connection.execute(SQL["settle"], key, result)
        return result


async def _read(connection: _Connection, prepared: PreparedStatement, values: Sequence[Any]) -> Json:
    """Return the allowed number of rows, and whether there were more. The server computes no others."""
    limit = prepared.statement.header.max_rows
    cursor = await connection.cursor(prepared.statement.text, *values)
    rows = await cursor.fetch(limit + 1)
    return {"rows": _plain(rows[:limit], prepared), "truncated": len(rows) > limit} if rows else None


async def _write(connection: _Connection, prepared: PreparedStatement, values: Sequence[Any]) -> Json:
    statement = prepared.statement
    performed = await connection.prepare(statement.text)
    rows = await performed.fetch(*values)
    words = (performed.get_statusmsg() or "").split()
    affected = int(words[-1]) if words and words[-1].isdigit() else len(rows)
    if len(rows) > (limit := statement.header.max_rows):
        raise ToolFailure(
            ErrorCode.CONTRACT_VIOLATION,
            f"{statement.name} would give back {len(rows)} rows and may give {limit}; nothing was changed",
            undone=True,
        )
    return {"rows": _plain(rows, prepared), "affected": affected} if affected or rows else None


def _values(prepared: PreparedStatement, arguments: dict[str, Json], call: Call[asyncpg.Pool]) -> list[Any]:
    of_the_call = {
        "call_tenant": call.tenant,
        "call_principal": call.principal,
        "call_run_id": str(call.run_id),
        "call_idempotency_key": call.idempotency_key,
    }
    declared = prepared.statement.header.parameters
    given = {name: (schema or {}).get("default") for name, schema in declared.items()} | arguments | of_the_call
    return [to_postgres(given[name], prepared.types, oid, name) for name, oid in prepared.parameters]


def _plain(rows: Sequence[asyncpg.Record], prepared: PreparedStatement) -> list[Json]:
    """Return the rows as JSON, with the columns of the contract. A table may have new columns since the start.

    Raises:
        ToolFailure: one of them is gone. It is raised before anything is committed.
    """
    names = [name for name, _ in prepared.columns]
    if rows and (gone := set(names).difference(rows[0].keys())):
        raise ToolFailure(
            ErrorCode.CONTRACT_VIOLATION,
            f"{prepared.statement.name}: the database does not give {', '.join(sorted(gone))} any more; nothing was "
            "changed. Start the tool again, so that it makes a new contract",
            undone=True,
        )
    return [{name: from_postgres(row[name]) for name in names} for row in rows]
