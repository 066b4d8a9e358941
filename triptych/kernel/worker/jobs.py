"""The jobs of a worker in Postgres: inbox, leases and outbox in one table.

All statements of the worker loop are here, and each that writes names the lease under which it may. A
process that was thought dead and wakes up again finds that its lease is gone, and changes nothing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg

from triptych.kernel import failpoints, timestamps
from triptych.kernel.errors import TriptychError
from triptych.kernel.kafka import dead_letters
from triptych.kernel.kafka.dead_letters import DeadRecord
from triptych.kernel.kafka.suspect_records import RecordsInFlight
from triptych.kernel.postgres import claim_check
from triptych.kernel.postgres.claim_check import Claim, HasHeaders
from triptych.kernel.postgres.database import Queries

JobKey = tuple[UUID, str]
"""Run id and request id: the primary key."""

Connection: TypeAlias = "asyncpg.Connection | asyncpg.pool.PoolConnectionProxy[Any]"

WriteInCommit: TypeAlias = Callable[[Connection, "frozenset[JobKey]"], Awaitable[None]]
"""Writes something more in the commit that accepts answers to these jobs."""


class LeaseLostError(TriptychError):
    """The lease of this process is gone: another process has its name, or the database is older than the lease."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        super().__init__(
            f"the lease of {instance} is gone, so this process ends: another one runs under its name, or the database "
            "came back with an older state. Give each process a TRIPTYCH_INSTANCE of its own"
        )


class InboundRequest(NamedTuple):
    """A request as it came from Kafka, decoded far enough to be stored."""

    run_id: UUID
    request_id: str
    tenant: str
    partition: int
    request: bytes
    traceparent: str | None
    deadline_at: datetime

    @property
    def key(self) -> JobKey:
        return self.run_id, self.request_id


@dataclass(frozen=True, slots=True)
class TakenOverJob:
    """A job that this process has taken over."""

    run_id: UUID
    request_id: str
    tenant: str
    partition: int
    request: bytes | None
    """Its body; None if it was stored with its answer."""
    traceparent: str | None
    answer: bytes | None
    deliveries: int
    was_started: bool
    was_parked: bool

    @property
    def key(self) -> JobKey:
        return self.run_id, self.request_id


class AnswerCommitId(NamedTuple):
    """One commit of answers: the key of its row in the outbox. No life uses a number again."""

    stored_by: int
    number: int


class StoredAnswer(NamedTuple):
    """An answer in the table, with what its message needs."""

    run_id: UUID
    request_id: str
    tenant: str
    partition: int
    traceparent: str | None
    answer: bytes

    @property
    def key(self) -> JobKey:
        return self.run_id, self.request_id


@dataclass(frozen=True, slots=True)
class TakenOverAnswers:
    """A commit of answers that this process has taken over, to publish them."""

    commit: AnswerCommitId
    answers: list[StoredAnswer]


class Committed(NamedTuple):
    """The result of a commit of answers."""

    accepted: frozenset[JobKey]
    """The jobs that were accepted. The others are no longer ours, or were known before."""
    known: dict[JobKey, bytes]
    """The stored answers of unpersisted jobs that were known before."""
    commit: AnswerCommitId | None
    """What to acknowledge when Kafka has all answers that were accepted; None if none was."""


@dataclass(frozen=True, slots=True)
class IntakeResult:
    """The result of taking in a batch of requests: new jobs of ours, and answers to publish once more."""

    fresh: frozenset[JobKey]
    answered: dict[JobKey, bytes]


class Jobs:
    """The job table, under the lease of this life of this process."""

    def __init__(self, pool: asyncpg.Pool, instance: str, lease_ms: int) -> None:
        self._pool, self._instance, self._lease_ms = pool, instance, lease_ms
        self._sql = Queries.load("triptych.kernel.worker", "worker.sql")
        self._held: set[JobKey] = set()
        self._commits: set[AnswerCommitId] = set()
        """Commits of answers that this process knows of, and has not acknowledged."""
        self._numbers = itertools.count(1)
        # Taking in and taking over happen one after the other. So a job that one of them has just got does not look to
        # the other like a job that the table gave to us without our knowledge.
        self._taking = asyncio.Lock()
        self.lease = 0

    async def open(self) -> None:
        """Begin this life. Jobs that earlier lives of this instance held can be taken over immediately."""
        lease = None
        while lease is None:
            lease = await self._pool.fetchval(self._sql["open_lease"], self._instance, self._lease_ms)
        self.lease = lease

    async def renew(self) -> None:
        """Extend the lease: one statement, however many jobs this process holds.

        Raises:
            LeaseLostError: another process has this instance's name, or the database has forgotten this life.
        """
        if await self._pool.fetchval(self._sql["renew_lease"], self.lease, self._lease_ms) is None:
            raise LeaseLostError(self._instance)

    async def close(self) -> None:
        """Hand back everything that has not been published."""
        await self._pool.execute(self._sql["close_lease"], self.lease)

    async def take_in(self, requests: Sequence[InboundRequest], dead: Sequence[DeadRecord]) -> IntakeResult:
        """Store a batch: one job a request, leased to us, and a dead letter for each unreadable record."""
        arguments = (self.lease, *_columns(requests, [inbound.request for inbound in requests]))
        async with self._taking:
            # A request that came again while it is under way unpersisted is stored here. It does not make a new job.
            in_hand = self._held.intersection(inbound.key for inbound in requests)
            failpoints.hit("worker.before_take_in")
            if not dead:
                rows = await self._pool.fetch(self._sql["take_in"], *arguments)
            else:
                async with self._pool.acquire() as conn, conn.transaction():
                    await dead_letters.store(conn, dead)
                    rows = await conn.fetch(self._sql["take_in"], *arguments)
            failpoints.hit("worker.after_take_in")
            intake = IntakeResult(
                fresh=frozenset((row["run_id"], row["request_id"]) for row in rows if row["fresh"]) - in_hand,
                answered={(row["run_id"], row["request_id"]): row["answer"] for row in rows if not row["fresh"]},
            )
            self._held |= intake.fresh
        return intake

    async def withdraw(self, withdrawals: Sequence[tuple[InboundRequest, bytes]]) -> IntakeResult:
        """Answer as withdrawn what has not begun; `fresh` are those, and all answers that are known come back."""
        requests = [inbound for inbound, _ in withdrawals]
        run_ids, request_ids, tenants, partitions, _, traceparents, deadlines = _columns(requests, [])
        answers = [answer for _, answer in withdrawals]
        async with self._taking:
            failpoints.hit("worker.before_withdraw")
            rows = await self._pool.fetch(
                self._sql["withdraw"],
                self.lease,
                *(run_ids, request_ids, tenants, partitions, traceparents, deadlines, answers),
            )
            failpoints.hit("worker.after_withdraw")
            fresh = frozenset((row["run_id"], row["request_id"]) for row in rows if row["fresh"])
            self._held |= fresh
        return IntakeResult(fresh, {(row["run_id"], row["request_id"]): row["answer"] for row in rows})

    async def take_over(self, limit: int) -> list[TakenOverJob]:
        """Take over up to `limit` jobs that no process holds, and all that the table gave us without our knowledge.

        The table does that when a statement takes effect after its answer was lost. It also does that when the database
        comes back with an older state, in which we hold what we have answered since.
        """
        async with self._taking:
            held = frozenset(self._held)
            rows = await self._pool.fetch(self._sql["take_over"], self.lease, limit)
            failpoints.hit("worker.after_take_over")
            rows += await self._pool.fetch(
                self._sql["reclaim"], self.lease, [run_id for run_id, _ in held], [request_id for _, request_id in held]
            )
            # A job that was answered while the statements ran is not held any more, but was when they began.
            # What was taken without being stored while they ran is held by now.
            ours = held | self._held
            taken = {job.key: job for row in rows if (job := TakenOverJob(**dict(row))).key not in ours}
            self._held |= taken.keys()
        return list(taken.values())

    async def take_over_answers(self) -> TakenOverAnswers | None:
        """Take over one commit of answers of a dead process, or one that the table gave us without our knowledge."""
        while True:
            known = tuple(self._commits)
            rows = await self._pool.fetch(
                self._sql["take_over_answers"],
                self.lease,
                [stored_by for stored_by, _ in known],
                [number for _, number in known],
            )
            if not rows:
                return None
            failpoints.hit("worker.after_take_over_answers")
            commit = AnswerCommitId(rows[0]["stored_by"], rows[0]["number"])
            if commit not in self._commits:  # else it was stored while the statement ran
                self._commits.add(commit)
                return TakenOverAnswers(commit, [StoredAnswer(*row[2:]) for row in rows if row["answer"] is not None])

    async def unpublished_dead_letters(self, limit: int) -> list[DeadRecord]:
        """Return dead letters whose event Kafka has not acknowledged."""
        return await dead_letters.unpublished(self._pool, limit)

    async def readings(self, topic: str, partitions: Sequence[int]) -> list[RecordsInFlight]:
        """Return what other lives were reading of these partitions, and perhaps still read."""
        return [RecordsInFlight(*row) for row in await self._pool.fetch(self._sql["readings"], topic, list(partitions))]

    async def note(self, readings: Sequence[RecordsInFlight]) -> list[RecordsInFlight]:
        """Write down what is about to be read, and return it with the number of lives that have read the same."""
        columns = ([reading[column] for reading in readings] for column in range(4))
        failpoints.hit("worker.before_note")
        rows = await self._pool.fetch(self._sql["reading"], *columns, readings[0].life)
        failpoints.hit("worker.after_note")
        return [RecordsInFlight(*row) for row in rows]

    async def give_away(self, topic: str, partitions: Sequence[int], life: str) -> None:
        """Say that this life gives partitions away and goes on: what it was reading there has not ended it."""
        await self._pool.execute(self._sql["give_away"], topic, list(partitions), life)

    async def store_dead_letters(self, dead: Sequence[DeadRecord]) -> None:
        """Store dead letters, and nothing else."""
        await dead_letters.store(self._pool, dead)

    async def mark_dead_letters_published(self, dead: Sequence[DeadRecord]) -> None:
        """Mark dead letters whose events Kafka has acknowledged."""
        await dead_letters.mark_published(self._pool, dead)

    async def resolve_claims(self, records: Sequence[HasHeaders]) -> claim_check.Resolved:
        """Return the stored bodies of a batch of records, by reference."""
        return await claim_check.resolve(self._pool, records)

    async def start(self, key: JobKey) -> bool:
        """Record that an attempt begins. False when the job is no longer ours."""
        failpoints.hit("worker.before_start")
        is_ours = await self._pool.fetchval(self._sql["start"], self.lease, *key)
        failpoints.hit("worker.after_start")
        if is_ours:
            return True
        self._held.discard(key)
        return False

    def holds(self, key: JobKey) -> bool:
        """Return whether this process holds the job or its answer."""
        return key in self._held

    def hold(self, key: JobKey) -> None:
        """Hold a job that was not taken in: it is unpersisted, or was answered by a callback."""
        self._held.add(key)

    def let_go(self, key: JobKey) -> None:
        """Let go of a parked job: no process holds it until its answer or its deadline comes."""
        self._held.discard(key)

    async def commit_answers(  # noqa: PLR0917
        self,
        answers: Sequence[tuple[JobKey, bytes]],
        published: Sequence[JobKey],
        claims: Sequence[Claim],
        also: WriteInCommit | None,
        unpersisted: Sequence[tuple[InboundRequest, bytes | None]] = (),
        acknowledged: Sequence[AnswerCommitId] = (),
    ) -> Committed:
        """Store answers and forget published ones, in one commit; `also` runs in it with the accepted jobs.

        `unpersisted` are jobs that are in no table yet, with their answers, or without one as `take_in` stores them.
        Kafka has `acknowledged` all answers of some earlier commits, and those of `published`, which are marked one by
        one: no commit of this method has stored them.
        """
        commit = AnswerCommitId(self.lease, next(self._numbers))
        arguments = (
            self.lease,
            [run_id for (run_id, _), _ in answers],
            [request_id for (_, request_id), _ in answers],
            [answer for _, answer in answers],
            [run_id for run_id, _ in published],
            [request_id for _, request_id in published],
            # Only the process that does the work needs the body.
            *_columns(
                [inbound for inbound, _ in unpersisted],
                [inbound.request if answer is None else None for inbound, answer in unpersisted],
            ),
            [answer for _, answer in unpersisted],
            [stored_by for stored_by, _ in acknowledged],
            [number for _, number in acknowledged],
            commit.number,
        )
        timestamps.mark("worker.encoded")
        failpoints.hit("worker.before_settle")
        if unpersisted:
            failpoints.hit("worker.before_record")
        if acknowledged:
            failpoints.hit("worker.before_acknowledge")
        self._commits.add(commit)
        try:
            if claims or (also is not None and (answers or unpersisted)):
                async with self._pool.acquire() as conn, conn.transaction():
                    await claim_check.store(conn, claims)
                    accepted = _keys(await conn.fetch(self._sql["settle"], *arguments))
                    if also is not None:
                        await also(conn, accepted)
            else:
                accepted = _keys(await self._pool.fetch(self._sql["settle"], *arguments))
            failpoints.hit("worker.after_settle")
            timestamps.mark("worker.committed")
            if unpersisted:
                failpoints.hit("worker.after_record")
            is_complete = len(accepted) == len(answers) + len(unpersisted)
            refused = [] if is_complete else [one.key for one, _ in unpersisted if one.key not in accepted]
            known = await self.stored_answers(refused)
        except BaseException:
            # If it was stored nevertheless, a takeover finds it. A repeat gets another number.
            self._commits.discard(commit)
            raise
        self._commits.difference_update(acknowledged)
        self._held.difference_update(published)
        answered = [key for key, _ in answers]
        answered.extend(one.key for one, answer in unpersisted if answer is not None)
        self._held.difference_update(answered)
        if accepted.isdisjoint(answered):
            self._commits.discard(commit)
            return Committed(accepted, known, None)
        return Committed(accepted, known, commit)

    async def stored_answers(self, keys: Sequence[JobKey]) -> dict[JobKey, bytes]:
        """Return the answers of these jobs, as far as they have one."""
        if not keys:
            return {}
        rows = await self._pool.fetch(
            self._sql["stored_answers"], [run_id for run_id, _ in keys], [request_id for _, request_id in keys]
        )
        return {(row["run_id"], row["request_id"]): row["answer"] for row in rows}


def _columns(requests: Sequence[InboundRequest], bodies: list[bytes | None]) -> tuple[list[Any], ...]:
    return (
        [inbound.run_id for inbound in requests],
        [inbound.request_id for inbound in requests],
        [inbound.tenant for inbound in requests],
        [inbound.partition for inbound in requests],
        bodies,
        [inbound.traceparent for inbound in requests],
        [inbound.deadline_at for inbound in requests],
    )


def _keys(rows: Sequence[asyncpg.Record]) -> frozenset[JobKey]:
    return frozenset((row["run_id"], row["request_id"]) for row in rows)
