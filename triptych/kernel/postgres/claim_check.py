"""Claim check: a body too big for a message is stored by content hash and passed by reference.

The row is written in the transaction that makes the message, and read in one query for a whole batch.
A body is never changed, so storing it twice is storing it once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.record_batches import check_readable

CLAIMED_VALUE = b"{}"
"""What travels in place of a body that was stored; the header `ce_dataref` says where it is."""

_SCHEME = "claim:"
_DIGEST = re.compile(r"[0-9a-f]{64}")

_STORE = """
insert into claims.blobs (run_id, hash, tenant, body)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[]) as t (run_id, hash, tenant, body)
order by run_id, hash
on conflict do nothing
"""

_RESOLVE = "select run_id, hash, body from claims.resolve($1::uuid[], $2::text[])"

Resolved = Mapping[str, bytes | None]
"""Stored bodies by reference; None where what is stored is not what the reference says."""


class HasHeaders(Protocol):
    """A raw record, as far as a claim is concerned."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...

    @property
    def value(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """A body to be stored."""

    run_id: UUID
    tenant: str
    body: bytes

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def dataref(self) -> str:
        return f"{_SCHEME}{self.run_id}/{self.hash}"


def needs_claim(value: bytes, limit: int) -> bool:
    """Return whether a message body of this size (limit in bytes) must be stored instead of sent."""
    return len(value) > limit


def dataref(run_id: UUID, value: bytes) -> str:
    """Return the reference to a body, for the header `ce_dataref`."""
    return Claim(run_id, "", value).dataref


async def store(conn: asyncpg.Connection | asyncpg.pool.PoolConnectionProxy[Any], claims: Sequence[Claim]) -> None:
    """Store bodies, in the transaction of `conn`."""
    if claims:
        await conn.execute(
            _STORE,
            [claim.run_id for claim in claims],
            [claim.hash for claim in claims],
            [claim.tenant for claim in claims],
            [claim.body for claim in claims],
        )


async def resolve(
    conn: asyncpg.Connection | asyncpg.Pool | asyncpg.pool.PoolConnectionProxy[Any], records: Iterable[HasHeaders]
) -> Resolved:
    """Return the stored bodies of a batch, by reference. One query for the batch; none when nothing was claimed.

    A service may read only bodies whose reference it was given.
    """
    wanted = {reference for record in records if (reference := _reference(dict(record.headers))) is not None}
    pairs = [pair for reference in wanted if (pair := _parse(reference)) is not None]
    if not pairs:
        return {}
    rows = await conn.fetch(_RESOLVE, [run_id for run_id, _ in pairs], [digest for _, digest in pairs])
    return {
        f"{_SCHEME}{row['run_id']}/{row['hash']}": row["body"] if _is(row["body"], row["hash"]) else None
        for row in rows
    }


def body(record: HasHeaders, resolved: Resolved) -> bytes:
    """Return the JSON body of a record, from the record itself or from what `resolve` found.

    Raises:
        UndecodableRecord: the record is empty, not what it says it is, or its body is not in the
            database, or is another than its reference names.
    """
    check_readable(record)
    headers = dict(record.headers)
    cloudevents.check_version(headers)
    reference = _reference(headers)
    if reference is None:
        return cloudevents.body(headers, record.value)
    if reference not in resolved:
        raise UndecodableRecord(
            "claim_missing", f"the body {reference} is not in claims.blobs; store it and send the record again"
        )
    stored = resolved[reference]
    if stored is None:
        raise UndecodableRecord(
            "claim_damaged", f"the body stored as {reference} has another hash; restore claims.blobs and send it again"
        )
    return stored


def _is(body: bytes, digest: str) -> bool:
    return hashlib.sha256(body).hexdigest() == digest


def _reference(headers: Mapping[str, bytes | None]) -> str | None:
    raw = headers.get(cloudevents.DATAREF)
    return raw.decode(errors="replace") if raw else None


def _parse(reference: str) -> tuple[UUID, str] | None:
    run_id, _, digest = reference.removeprefix(_SCHEME).partition("/")
    try:
        return (UUID(run_id), digest) if _DIGEST.fullmatch(digest) else None
    except ValueError:
        return None
