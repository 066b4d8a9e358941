"""Dead letters: a record that cannot be understood is stored with its bytes, and an event says so.

The row is written in the transaction that moves past the record, and published like any outbox row. This module never
decides what is undecodable: the decoder does.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import asyncpg
from aiokafka import ConsumerRecord
from pydantic import TypeAdapter, ValidationError

from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.bus import Outgoing, place
from triptych.kernel.process.tracing import TraceContext
from triptych.schemas import codec
from triptych.schemas.base import Json, Reason, Tenant, shortened
from triptych.schemas.task import DeadLetter

EVENT_TYPE = "triptych.dead-letter"
EVENT_MAX_BYTES = 262_144
"""The event carries at most this much of the record's value."""
EVENT_KEY_MAX_BYTES = 1_024

VALUE_MAX_BYTES = 1_048_576
"""The row carries at most this much of the value: all that Kafka takes in one record unless it is told otherwise."""
KEY_MAX_BYTES = 65_536
HEADERS_MAX_BYTES = 65_536
HEADERS_MAX_COUNT = 200
NEVER_WRITTEN = -1
"""In place of the offset of a message that Kafka has not taken."""

_WHY_MAX_CHARS = 500
_TENANT: TypeAdapter[str] = TypeAdapter(Tenant)

_STORE = """
insert into dead_letters (id, topic, partition, "offset", key, value, headers, code, message, tenant, failed_at, cut)
select * from unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::bytea[], $6::bytea[], $7::jsonb[],
                     $8::text[], $9::text[], $10::text[], $11::timestamptz[], $12::jsonb[])
on conflict do nothing
"""

_UNPUBLISHED = """
select id, topic, partition, "offset", key, value, headers, code, message, tenant, failed_at, cut
from dead_letters where not published order by id limit $1
"""

_MARK_PUBLISHED = "update dead_letters set published = true where id = any($1::text[])"


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A row of `dead_letters`."""

    id: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: str
    code: str
    message: str
    tenant: str
    failed_at: datetime
    cut: str | None = None
    """What of the record is too large to be kept, as JSON: its whole length and its SHA-256."""


def dead_record(
    service: str,
    record: ConsumerRecord[Any, Any],
    error: UndecodableRecord,
    now: datetime,
    *,
    tenant: str | None = None,
) -> DeadRecord:
    """Make the row for a record. Its tenant is the one given, else the one in the headers, else `default`.

    However large the record is, its row has a bounded size and can be stored.
    """
    cut: dict[str, Any] = {}
    return DeadRecord(
        id=f"{service}:{place(record)}",
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=_kept("key", record.key, KEY_MAX_BYTES, cut),
        value=_kept("value", record.value, VALUE_MAX_BYTES, cut),
        headers=codec.encode_text(_kept_headers(record, cut)),
        code=error.code,
        message=shortened(_storable(error.message)),
        tenant=tenant or stated_tenant(record),
        failed_at=now,
        cut=codec.encode_text(cut) if cut else None,
    )


def about(dead: DeadRecord, record: ConsumerRecord[Any, Any]) -> dict[str, Json]:
    """Return the fields of the log line about a record that became a dead letter."""
    known = TraceContext.of_headers(record.headers)
    return {
        "topic": dead.topic,
        "partition": dead.partition,
        "offset": dead.offset,
        "code": dead.code,
        "why": dead.message[:_WHY_MAX_CHARS],
        "tenant": dead.tenant,
        **({"trace_id": known[1].trace_id} if known else {}),
    }


def dead_message(service: str, message: Outgoing, position: str, cause: BaseException, now: datetime) -> DeadRecord:
    """Make the row for a message of ours that Kafka never takes; `position` is an id of its own."""
    return dead_outgoing(
        service, message, position, UndecodableRecord("unpublishable", f"Kafka refuses it: {cause!r}"), now
    )


def dead_outgoing(
    service: str, message: Outgoing, position: str, error: UndecodableRecord, now: datetime
) -> DeadRecord:
    """Make the row for a message of ours that is not sent; `position` is an id of its own."""
    record: ConsumerRecord[Any, Any] = ConsumerRecord(
        message.topic,
        message.partition,
        NEVER_WRITTEN,
        0,
        0,
        message.key,
        message.value,
        None,
        len(message.key),
        len(message.value),
        tuple(message.headers),
    )
    dead = dead_record(service, record, error, now)
    return replace(dead, id=f"{service}:outbox:{position}")


def _kept(part: str, content: bytes | None, max_bytes: int, cut: dict[str, Any]) -> bytes | None:
    if content is None or len(content) <= max_bytes:
        return content
    cut[part] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return content[:max_bytes]


def _kept_headers(record: ConsumerRecord[Any, Any], cut: dict[str, Any]) -> list[list[str | None]]:
    """Return the first headers, as many as fit."""
    kept: list[list[str | None]] = []
    left_bytes = HEADERS_MAX_BYTES
    for name, content in record.headers:
        left_bytes -= len(name) + len(content or b"")
        if left_bytes < 0 or len(kept) == HEADERS_MAX_COUNT:
            size_bytes = sum(len(name) + len(content or b"") for name, content in record.headers)
            cut["headers"] = {"count": len(record.headers), "bytes": size_bytes}
            break
        kept.append([_storable(name), None if content is None else base64.b64encode(content).decode()])
    return kept


def event(dead: DeadRecord, service: str, topic: str) -> Outgoing:
    """Make the event for a row, to be published on `topic` (`<prefix>.dead-letters`).

    However large the record is, its event fits in a message.
    """
    key, value = dead.key, dead.value
    letter = DeadLetter(
        service=service,
        topic=dead.topic,
        partition=dead.partition,
        offset=dead.offset,
        key_base64=None if key is None else base64.b64encode(key[:EVENT_KEY_MAX_BYTES]).decode(),
        value_base64=None if value is None else base64.b64encode(value[:EVENT_MAX_BYTES]).decode(),
        truncated=dead.cut is not None or len(value or b"") > EVENT_MAX_BYTES or len(key or b"") > EVENT_KEY_MAX_BYTES,
        reason=Reason(code=dead.code, message=dead.message),
        tenant=dead.tenant,
        failed_at=dead.failed_at,
    )
    headers = cloudevents.binary_headers(
        event_id=dead.id, event_type=EVENT_TYPE, source=f"/triptych/{service}", tenant=dead.tenant
    )
    return Outgoing(topic, dead.partition, dead.id.encode(), headers, letter.to_bytes())


async def store(
    conn: asyncpg.Connection | asyncpg.Pool | asyncpg.pool.PoolConnectionProxy[Any], dead: Sequence[DeadRecord]
) -> None:
    """Store rows, in the transaction of `conn`. A record that is there already is left as it is."""
    if dead:
        await conn.execute(
            _STORE,
            [row.id for row in dead],
            [row.topic for row in dead],
            [row.partition for row in dead],
            [row.offset for row in dead],
            [row.key for row in dead],
            [row.value for row in dead],
            [row.headers for row in dead],
            [row.code for row in dead],
            [row.message for row in dead],
            [row.tenant for row in dead],
            [row.failed_at for row in dead],
            [row.cut for row in dead],
        )


async def unpublished(conn: asyncpg.Connection | asyncpg.Pool, limit: int) -> list[DeadRecord]:
    """Return rows whose event Kafka has not acknowledged, left behind by a crash or an outage."""
    return [DeadRecord(**dict(row)) for row in await conn.fetch(_UNPUBLISHED, limit)]


async def mark_published(conn: asyncpg.Connection | asyncpg.Pool, dead: Sequence[DeadRecord]) -> None:
    """Mark rows whose events Kafka has acknowledged."""
    await conn.execute(_MARK_PUBLISHED, [row.id for row in dead])


def stated_tenant(record: ConsumerRecord[Any, Any]) -> str:
    """Return the tenant in the headers if it is a valid name, else `default`."""
    stated = (cloudevents.header(record.headers, "ce_tenant") or b"").decode(errors="replace")
    try:
        return _TENANT.validate_python(stated)
    except ValidationError:
        return "default"


def _storable(text: str) -> str:
    """Postgres text holds no NUL and no half of a surrogate pair."""
    return text.replace("\x00", "�").encode(errors="replace").decode()
