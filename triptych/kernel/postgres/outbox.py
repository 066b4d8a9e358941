"""Outbox: messages are committed with the state that caused them, and published after the commit.

The messages of a commit are one row for each partition. Only the next owner of a partition looks into a row, when an
earlier owner died before Kafka had the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol
from uuid import UUID

import msgpack

from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.bus import Outgoing
from triptych.kernel.postgres import claim_check
from triptych.kernel.postgres.claim_check import Claim
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.process.tracing import TraceContext
from triptych.kernel.values import value


class MessageBody(Protocol):
    """A message body that knows its JSON encoding."""

    def to_bytes(self) -> bytes: ...


@value
class Send:
    """One message to send: where to, what kind, its deterministic id, and its body."""

    noun: str
    event_type: str
    event_id: str
    body: MessageBody
    preview: Callable[[], MessageBody] | None = None
    """What is sent in place of a body that is too large, to readers who cannot resolve a reference."""
    to: UUID | None = None
    """The run that it is for, when that is another one, on the same partition."""


class MessageKey(NamedTuple):
    """What identifies a message: its run and its position in that, so that a decision made again sends the same."""

    run_id: UUID
    position: int


@value
class OutboxMessage:
    """A message on its way, and the partition whose owner publishes it."""

    key: MessageKey
    partition: int
    outgoing: Outgoing
    claim: Claim | None = None


class OutboxKey(NamedTuple):
    """What identifies an outbox row: the partition, the epoch of its claim, and the number of the commit."""

    partition: int
    epoch: int
    number: int


@value
class OutboxRow:
    """What one commit sends from one partition."""

    key: OutboxKey
    messages: Sequence[OutboxMessage]


def pack(messages: Sequence[OutboxMessage]) -> bytes:
    """Encode messages for the outbox. Claims are left out: they are stored before the row."""
    packed: bytes = msgpack.packb(
        [
            [
                message.key.run_id.bytes,
                message.key.position,
                message.outgoing.topic,
                message.outgoing.partition,
                message.outgoing.key,
                message.outgoing.headers,
                message.outgoing.value,
            ]
            for message in messages
        ]
    )
    return packed


def unpack(packed: bytes, partition: int) -> list[OutboxMessage]:
    """Decode the messages of an outbox row of a partition."""
    return [
        OutboxMessage(
            MessageKey(UUID(bytes=run_id), position),
            partition,
            Outgoing(topic, target, key, [(name, content) for name, content in headers], body),
        )
        for run_id, position, topic, target, key, headers, body in msgpack.unpackb(packed)
    ]


class Envelope:
    """Wraps messages of one service for the wire: topic, key, CloudEvents headers, claim check."""

    def __init__(self, settings: ServiceSettings, service: str) -> None:
        self._settings = settings
        self._source = f"/triptych/{service}"
        self._topic = lru_cache(maxsize=256)(settings.topic)

    def wrap(
        self,
        send: Send,
        *,
        run_id: UUID,
        name: str,
        position: int,
        partition: int,
        tenant: str,
        trace: TraceContext | None,
    ) -> OutboxMessage:
        """Return the outbox row of a message. A body too large for the wire is claimed and sent by reference.

        `name` is the run's id as text: printing it costs more than wrapping a message. Without a trace of its own the
        run is the trace.
        """
        body = send.body.to_bytes()
        claim = None
        if claim_check.needs_claim(body, self._settings.inline_max_bytes):
            claim = Claim(run_id, tenant, body)
            body = send.preview().to_bytes() if send.preview else claim_check.CLAIMED_VALUE
        headers = cloudevents.binary_headers(
            event_id=send.event_id,
            event_type=send.event_type,
            source=self._source,
            tenant=tenant,
            traceparent=(trace or TraceContext.of_run(name)).parent(send.event_id),
            dataref=claim.dataref if claim else None,
        )
        key = str(send.to).encode() if send.to else name.encode()
        outgoing = Outgoing(self._topic(send.noun), partition, key, headers, body)
        return OutboxMessage(MessageKey(run_id, position), partition, outgoing, claim)
