"""What a conformance check does to the answer of an operation. The work is always done first, by the tool itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

from triptych.schemas.base import Json
from triptych.schemas.result import ErrorCode
from triptych.tools.sdk.call import Accepted, Call
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.operation import Operation, Perform

FOREVER_S = 3_600.0
STRANGE: tuple[Json, ...] = ({"\u2020": [None]}, [], 0.5, "\u2020", False, None)
"""Candidates for what no contract expects: of these, the first that it refuses is answered."""


class InjectedFault(StrEnum):
    LATE = "late"
    LOST = "lost"
    STRANGE = "strange"


def with_fault(operation: Operation, fault: InjectedFault) -> Operation:
    """Return the same operation, whose answers suffer."""

    def around(perform: Perform) -> Perform:
        async def suffering(arguments: dict[str, Json], call: Call[Any]) -> Json:
            try:
                data = await perform(arguments, call)
            except Accepted:
                # The upstream has taken the work on, and the word of it suffers.
                data = None
                if fault is InjectedFault.STRANGE:
                    raise
            match fault:
                case InjectedFault.LATE:
                    await asyncio.sleep(FOREVER_S)
                case InjectedFault.LOST:
                    raise ToolFailure(ErrorCode.UNAVAILABLE, "the connection broke before the answer was there")
                case InjectedFault.STRANGE:
                    return strange_to(operation)
            return data

        return suffering

    return operation.wrapped(around)


def with_early_callback(operation: Operation, call_back: Callable[[], Awaitable[None]]) -> Operation:
    """Return the same operation, whose upstream calls back while the call is still made."""

    def around(perform: Perform) -> Perform:
        async def told(arguments: dict[str, Json], call: Call[Any]) -> Json:
            try:
                return await perform(arguments, call)
            except Accepted:
                await call_back()
                raise

        return told

    return operation.wrapped(around)


def strange_to(operation: Operation) -> Json:
    """Return a result that the contract refuses; raises LookupError when no candidate is refused."""
    for candidate in STRANGE:
        if operation.is_invalid_result(candidate):
            return candidate
    raise LookupError(f"anything fits the result of {operation.contract.operation}")
