"""The client of Triptych: submit tasks, wait for outcomes, follow them, and send commands to runs.

    async with Client("127.0.0.1:9092") as client:
        task_id = await client.submit("support-ticket", {"subject": "Which invoice?"}, tenant="acme")
        outcome = await client.wait(task_id, tenant="acme", timeout_s=60)

Tasks and outcomes travel over Kafka alone. Looking into runs needs the operator's database role:
see `Operator`.
"""

from __future__ import annotations

from triptych.client.address import Address
from triptych.client.client import Client, Receipt
from triptych.client.errors import (
    BrokerInvalidError,
    ClientError,
    DatabaseUnreachableError,
    DsnInvalidError,
    FilterUnknownError,
    KafkaUnreachableError,
    NoOutcomeError,
    NoStackError,
    NotAcceptedError,
    RunAmbiguousError,
    RunNotFoundError,
    RunOverError,
    TooLargeError,
    TopicMissingError,
)
from triptych.client.feed import Feed
from triptych.client.operator import RUN_STATUSES, JournalEntry, Operator, RunFilter, RunRow, StepRow

__all__ = [
    "RUN_STATUSES",
    "Address",
    "BrokerInvalidError",
    "Client",
    "ClientError",
    "DatabaseUnreachableError",
    "DsnInvalidError",
    "Feed",
    "FilterUnknownError",
    "JournalEntry",
    "KafkaUnreachableError",
    "NoOutcomeError",
    "NoStackError",
    "NotAcceptedError",
    "Operator",
    "Receipt",
    "RunAmbiguousError",
    "RunFilter",
    "RunNotFoundError",
    "RunOverError",
    "RunRow",
    "StepRow",
    "TooLargeError",
    "TopicMissingError",
]
