"""The one result type of all tools, and the one closed list of error codes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from triptych.schemas.base import Json, Message, newer


class ErrorCode(StrEnum):
    """Everything that can go wrong in a call. A table in the executor says what each leads to."""

    INVALID_ARGUMENTS = "invalid_arguments"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    CONTRACT_VIOLATION = "contract_violation"
    BUDGET_EXCEEDED = "budget_exceeded"
    IN_DOUBT = "in_doubt"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class ResultStatus(StrEnum):
    OK = "ok"
    EMPTY = "empty"
    ERROR = "error"


class ToolError(Message):
    """A failed call: its code, a sentence for people, and what is known beyond that."""

    code: ErrorCode
    message: Annotated[str, Field(max_length=4_000)]
    retry_after_ms: Annotated[int | None, Field(ge=0, description="What the upstream asked us to wait.")] = None
    details: dict[str, Json] = {}


class Misreading(Message):
    """One thing about a result that its contract does not allow, and that was let pass."""

    place: Annotated[str, Field(description="Where in the data, such as `items[3].price`; empty for the whole.")]
    message: Annotated[str, Field(max_length=1_000)]


WARNINGS_MAX = 20
"""So many are told of one result."""


class Result(Message):
    """`ok` carries data, `empty` worked and found nothing, `error` carries an error."""

    status: ResultStatus
    data: Json = None
    error: ToolError | None = None
    age_ms: Annotated[
        int | None, Field(ge=0, exclude_if=newer(None), description="How old the data is, where an answer was kept.")
    ] = None

    warnings: Annotated[
        tuple[Misreading, ...],
        Field(max_length=WARNINGS_MAX, exclude_if=newer(()), description="What was let pass in a lenient reading."),
    ] = ()

    @classmethod
    def ok(cls, data: Json, warnings: tuple[Misreading, ...] = ()) -> Result:
        return cls(status=ResultStatus.OK, data=data, warnings=warnings)

    @classmethod
    def empty(cls, data: Json = None) -> Result:
        return cls(status=ResultStatus.EMPTY, data=data)

    @classmethod
    def failed(cls, code: ErrorCode, message: str, *, retry_after_ms: int | None = None, **details: Json) -> Result:
        error = ToolError(code=code, message=message[:4_000], retry_after_ms=retry_after_ms, details=details)
        return cls(status=ResultStatus.ERROR, error=error)
