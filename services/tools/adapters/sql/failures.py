"""What an error of Postgres means in the one list of error codes. No value of a row gets into a message."""

from __future__ import annotations

import re
from collections.abc import Sequence

import asyncpg

from triptych.schemas.result import ErrorCode
from triptych.tools.sdk.failure import ToolFailure

SQLSTATES: dict[str, ErrorCode] = {
    "22": ErrorCode.INVALID_ARGUMENTS,
    "23505": ErrorCode.CONFLICT,
    "23503": ErrorCode.CONFLICT,
    "23P01": ErrorCode.CONFLICT,
    "23": ErrorCode.INVALID_ARGUMENTS,
    "25006": ErrorCode.FORBIDDEN,
    "28": ErrorCode.UNAUTHENTICATED,
    "42501": ErrorCode.FORBIDDEN,
    "42": ErrorCode.CONTRACT_VIOLATION,
    "3F": ErrorCode.CONTRACT_VIOLATION,
    "57014": ErrorCode.TIMEOUT,
    "08": ErrorCode.UNAVAILABLE,
    "0A": ErrorCode.CONTRACT_VIOLATION,
    "40": ErrorCode.UNAVAILABLE,
    "53": ErrorCode.UNAVAILABLE,
    "55": ErrorCode.UNAVAILABLE,
    "57": ErrorCode.UNAVAILABLE,
    "58": ErrorCode.UNAVAILABLE,
    "P0001": ErrorCode.CONFLICT,
}
"""By the whole SQLSTATE, else by its class. `P0001` is what a function of the database raises."""

COMPLETION_UNKNOWN = "40003"
"""Databases of many servers say so when the one that was asked to commit is lost."""

_ARGUMENT = re.compile(r"invalid input for query argument \$(\d+)\b")

GONE = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)
"""There is no answer from the server."""


def failure_of_postgres(
    error: Exception, operation: str, *, undone: bool, parameters: Sequence[str] = ()
) -> ToolFailure | None:
    """Return the failure that an error means; None when it does not come from Postgres.

    Args:
        error: What was raised.
        operation: The operation that was called.
        undone: Nothing was changed for certain.
        parameters: The names of the statement's parameters, in their order.
    """
    match error:
        case asyncpg.DataError():
            # Either the server or asyncpg, which encodes the values, found one that does not fit.
            return ToolFailure(ErrorCode.INVALID_ARGUMENTS, f"{operation}: {_named(error, parameters)}", undone=True)
        case asyncpg.InvalidCachedStatementError() | asyncpg.OutdatedSchemaCacheError():
            # It comes once after a change of the schema.
            told = f"{operation}: the schema has changed since the statement was prepared; it is prepared again"
            return ToolFailure(ErrorCode.UNAVAILABLE, told, undone=undone)
        case (
            asyncpg.UnsupportedClientFeatureError()
            | asyncpg.UnsupportedServerFeatureError()
            | asyncpg.InternalClientError()
        ):
            # The types do not fit, so another attempt cannot succeed.
            told = f"{operation}: the driver cannot read what the database gives: {error}"
            return ToolFailure(ErrorCode.CONTRACT_VIOLATION, told, undone=undone)
        case asyncpg.PostgresConnectionError():
            pass
        case asyncpg.PostgresError():
            return _of_server(error, operation)
        case _ if not isinstance(error, GONE):
            return None
    return ToolFailure(
        ErrorCode.UNAVAILABLE, f"{operation}: no connection to the database ({type(error).__name__})", undone=undone
    )


def _named(error: asyncpg.DataError, parameters: Sequence[str]) -> str:
    """Return what is wrong with a value. It names the argument, and not a value that the driver refuses."""
    found = _ARGUMENT.match(str(error))
    if found is None or error.__cause__ is None or int(found[1]) > len(parameters):
        return str(error)
    return f"arguments.{parameters[int(found[1]) - 1]}: {error.__cause__}"


def _of_server(error: asyncpg.PostgresError, operation: str) -> ToolFailure:
    state = error.sqlstate or ""
    code = SQLSTATES.get(state) or SQLSTATES.get(state[:2]) or ErrorCode.INTERNAL
    where = "".join(
        f", {name} {value}"
        for name, value in (("constraint", error.constraint_name), ("column", error.column_name))
        if value
    )
    # The server has said no, and so rolled back: nothing was changed. Unless it says that it does not know.
    undone = state != COMPLETION_UNKNOWN
    return ToolFailure(code, f"{operation}: {error.args[0]} (SQLSTATE {state}{where})", undone=undone, sqlstate=state)
