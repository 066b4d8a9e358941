"""The effect ledger: an intent before every call that changes the world, a receipt with its answer.

It is what makes an effect happen once however often a call is attempted. It never guesses: what it
cannot know it calls unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import asyncpg

from triptych.kernel import failpoints
from triptych.kernel.postgres.database import Queries
from triptych.kernel.run_ids import id_time_ms
from triptych.kernel.worker import Connection, Finished, JobAttempt
from triptych.schemas import codec
from triptych.schemas.base import Json
from triptych.schemas.result import Result, ResultStatus
from triptych.schemas.work import CallAnswer, CallRequest
from triptych.tools.sdk.failure import DONE, EFFECT, NO_EFFECT


class EffectState(StrEnum):
    """What is known of an effect when an attempt begins."""

    NEW = "new"
    """It has certainly not happened."""
    UNKNOWN = "unknown"
    """An earlier attempt began, or may have begun before the database was restored. Its outcome is not known."""
    DONE = "done"
    """It has happened; there is a receipt."""
    CONFLICT = "conflict"
    """The key was used for something else."""
    LOST = "lost"
    """The job belongs to another process now, so nothing may be done here."""


@dataclass(frozen=True, slots=True)
class EffectEntry:
    """Where an effect stands, and its receipt when it is done."""

    state: EffectState
    receipt: Result | None = None


class EffectLedger(Protocol):
    """Where intents and receipts are kept."""

    async def begin(self, request: CallRequest, attempt: JobAttempt) -> EffectEntry:
        """Write the intent of this attempt, and say what was known before."""
        ...


class PostgresEffectLedger:
    """The ledger of a tool, in its own schema."""

    def __init__(self, pool: asyncpg.Pool, writes: Collection[str]) -> None:
        self._pool, self._writes = pool, frozenset(writes)
        self._sql = Queries.load("triptych.tools.runtime", "effect_ledger.sql")

    async def begin(self, request: CallRequest, attempt: JobAttempt) -> EffectEntry:
        failpoints.hit("ledger.before_intent")
        row = await self._pool.fetchrow(
            self._sql["begin"],
            request.run_id,
            request.request_id,
            attempt.lease,
            request.idempotency_key,
            request.tenant,
            request.operation,
            (fingerprint := arguments_hash(request)),
            id_time_ms(request.run_id),
        )
        failpoints.hit("ledger.after_intent")
        assert row is not None  # noqa: S101 - the statement always gives one row
        if not row["ours"]:
            return EffectEntry(EffectState.LOST)
        if row["state"] is not None and (row["operation"], row["arguments_hash"]) != (request.operation, fingerprint):
            return EffectEntry(EffectState.CONFLICT)
        match row["state"]:
            case "receipt":
                return EffectEntry(EffectState.DONE, codec.read(Result, row["result"], limits=codec.STORED))
            case None | "refused" if row["attempts"] == 1 and not row["may_be_lost"]:
                return EffectEntry(EffectState.NEW)
            case _:
                # Also if nothing was known, or a refusal, and this is not the first attempt since: another one began
                # at the same moment. Or the ledger is older than the run.
                return EffectEntry(EffectState.UNKNOWN)

    def applies_to(self, finished: Finished) -> bool:
        """Return only what may have changed the world leaves a receipt."""
        return isinstance(finished.request, CallRequest) and finished.request.operation in self._writes

    async def write(self, conn: Connection, finished: Sequence[Finished]) -> None:
        """Keep the receipts and clear what was refused, in the commit that accepts these answers."""
        outcomes = [outcome for one in finished if (outcome := _outcome(one)) is not None]
        if outcomes:
            await conn.execute(self._sql["settle"], *map(list, zip(*outcomes, strict=True)))


def arguments_hash(request: CallRequest) -> str:
    """Return a content hash: the same key must always come with the same arguments."""
    written = codec.encode(request.arguments, sort_keys=True)
    if b"-0.0" in written:  # the journal forgets the sign of zero
        written = codec.encode(_without_minus_zero(request.arguments), sort_keys=True)
    return hashlib.sha256(written).hexdigest()


def _without_minus_zero(value: Json) -> Json:
    match value:
        case float():
            return value + 0.0
        case list():
            return [_without_minus_zero(each) for each in value]
        case dict():
            return {name: _without_minus_zero(each) for name, each in value.items()}
        case _:
            return value


def _outcome(finished: Finished) -> tuple[object, str, str, bytes | None] | None:
    """Key and receipt; a receipt of None means refused; None altogether when the outcome is not known."""
    request, answer = finished.request, finished.answer
    if not isinstance(request, CallRequest) or not isinstance(answer, CallAnswer):
        return None
    result = answer.result
    if result.status is not ResultStatus.ERROR:
        return request.run_id, request.idempotency_key, request.request_id, result.to_bytes()
    match result.error.details.get(EFFECT) if result.error is not None else None:
        case effect if effect == NO_EFFECT:
            return request.run_id, request.idempotency_key, request.request_id, None
        case effect if effect == DONE:
            return request.run_id, request.idempotency_key, request.request_id, result.to_bytes()
    return None
