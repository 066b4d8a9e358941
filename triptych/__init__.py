"""Triptych runs AI agents as an event-driven pipeline of services over Kafka.

This is the stable surface: what applications and tools import.

    from triptych import Client, Effect, Tool, ToolFailure

A name is imported when it is first used, so that a service loads only what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.client import (
        Address,
        BrokerInvalidError,
        Client,
        ClientError,
        DatabaseUnreachableError,
        DsnInvalidError,
        Feed,
        FilterUnknownError,
        JournalEntry,
        KafkaUnreachableError,
        NoOutcomeError,
        NoStackError,
        NotAcceptedError,
        Operator,
        Receipt,
        RunAmbiguousError,
        RunFilter,
        RunNotFoundError,
        RunOverError,
        RunRow,
        StepRow,
        TooLargeError,
        TopicMissingError,
    )
    from triptych.schemas import Outcome, OutcomeStatus
    from triptych.tools import (
        Accepted,
        Call,
        Compensation,
        Cost,
        Effect,
        ErrorCode,
        Guard,
        NotYet,
        Operation,
        OperationGuard,
        Options,
        Resources,
        Source,
        Tool,
        ToolFailure,
        upstream_headers,
    )

__all__ = [
    "Accepted",
    "Address",
    "BrokerInvalidError",
    "Call",
    "Client",
    "ClientError",
    "Compensation",
    "Cost",
    "DatabaseUnreachableError",
    "DsnInvalidError",
    "Effect",
    "ErrorCode",
    "Feed",
    "FilterUnknownError",
    "Guard",
    "JournalEntry",
    "KafkaUnreachableError",
    "NoOutcomeError",
    "NoStackError",
    "NotAcceptedError",
    "NotYet",
    "Operation",
    "OperationGuard",
    "Operator",
    "Options",
    "Outcome",
    "OutcomeStatus",
    "Receipt",
    "Resources",
    "RunAmbiguousError",
    "RunFilter",
    "RunNotFoundError",
    "RunOverError",
    "RunRow",
    "Source",
    "StepRow",
    "TooLargeError",
    "Tool",
    "ToolFailure",
    "TopicMissingError",
    "upstream_headers",
]

__version__ = "0.1.0"

_HOMES = {
    "triptych.client": (
        "Address", "BrokerInvalidError", "Client", "ClientError", "DatabaseUnreachableError", "DsnInvalidError", "Feed",
        "FilterUnknownError", "JournalEntry", "KafkaUnreachableError", "NoOutcomeError", "NoStackError",
        "NotAcceptedError", "Operator", "Receipt", "RunAmbiguousError", "RunFilter", "RunNotFoundError", "RunOverError",
        "RunRow", "StepRow", "TooLargeError", "TopicMissingError",
    ),
    "triptych.schemas": ("Outcome", "OutcomeStatus"),
    "triptych.tools": (
        "Accepted", "Call", "Compensation", "Cost", "Effect", "ErrorCode", "Guard", "NotYet", "Operation",
        "OperationGuard", "Options", "Resources", "Source", "Tool", "ToolFailure", "upstream_headers",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'triptych' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
