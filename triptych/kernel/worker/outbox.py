"""The outbox: answers are committed in groups, then published, then the row of their commit is deleted.

As many answers go into a commit as finished while the last one ran. An answer is never published before
it is stored, and a stored one is published until Kafka acknowledges it, by this process or the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from triptych.kernel.errors import MessagesRefused, UndecodableRecord
from triptych.kernel.kafka import cloudevents, dead_letters
from triptych.kernel.kafka.bus import Outgoing, Publisher
from triptych.kernel.kafka.dead_letters import DeadRecord
from triptych.kernel.postgres import claim_check
from triptych.kernel.postgres.claim_check import CLAIMED_VALUE, Claim
from triptych.kernel.process.outage import KAFKA_GONE, POSTGRES_GONE, Outage, is_refusal
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.worker.contract import Worker, WorkerConfig
from triptych.kernel.worker.jobs import (
    AnswerCommitId,
    Connection,
    InboundRequest,
    JobKey,
    Jobs,
    TakenOverAnswers,
    WriteInCommit,
)
from triptych.kernel.worker.unpersisted import UnpersistedRequests
from triptych.schemas.base import Answer, Request
from triptych.schemas.topics import DEAD_LETTERS

IDLE_FLUSH_S = 0.05
"""What Kafka has acknowledged waits this long for a commit to travel with."""
COMMIT_MAX_BYTES = 33_554_432
"""Answers of so many bytes go into one commit. Postgres takes no message of a gigabyte, and its memory is shared."""
BEAT_S = 5.0
LOOP = "outbox"


class Finished(NamedTuple):
    """A job that has its answer."""

    request: Request
    answer: Answer
    traceparent: str | None
    encoded: bytes
    """The answer as it is stored and sent."""

    @property
    def key(self) -> JobKey:
        return self.request.run_id, self.request.request_id


@dataclass(slots=True)
class _Group:
    """What goes into one commit; `encoded` are the answers of all that have finished, in their order."""

    encoded: list[bytes]
    answers: list[tuple[JobKey, bytes]] = field(default_factory=list)
    unpersisted: dict[JobKey, tuple[InboundRequest, bytes | None]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def is_accepted(self, accepted: frozenset[JobKey]) -> bool:
        """Return whether all of the group was accepted, as it nearly always is."""
        return len(accepted) == len(self.answers) + len(self.unpersisted)


class _Unpublished(NamedTuple):
    """An answer that is in the table, and is published next."""

    key: JobKey
    message: Outgoing
    commit: AnswerCommitId | None
    """The commit that it belongs to; None if its job is marked alone."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What goes into the next commit."""

    finished: list[Finished] = field(default_factory=list)
    published: list[JobKey] = field(default_factory=list)
    acknowledged: list[AnswerCommitId] = field(default_factory=list)
    overdue: list[JobKey] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.finished) + len(self.published) + len(self.acknowledged) + len(self.overdue)


class CommitHook(Protocol):
    """What a worker writes in the commit that accepts its answers, for example receipts of effects."""

    def applies_to(self, finished: Finished) -> bool:
        """Return whether this answer needs a write. If none of a group does, the commit is one statement."""

    async def write(self, conn: Connection, finished: Sequence[Finished]) -> None:
        """Write it, in the transaction of `conn`."""


class Outbox:
    """Commits and publishes the answers of one process."""

    def __init__(
        self,
        service: Service,
        settings: ServiceSettings,
        config: WorkerConfig,
        worker: Worker[Any],
        *,
        jobs: Jobs,
        publisher: Publisher,
        unpersisted: UnpersistedRequests,
        commit_hook: CommitHook | None,
    ) -> None:
        self._service, self._settings = service.name, settings
        self._topic, self._dead_letters = settings.topic(config.answer_noun), settings.topic(DEAD_LETTERS)
        self._answer_type, self._source = config.answer_type, f"/triptych/{service.name}"
        self._jobs, self._publisher, self._unpersisted = jobs, publisher, unpersisted
        self._worker, self._log = worker, service.log
        self._overdue: dict[JobKey, InboundRequest] = {}
        self._commit_hook, self._health = commit_hook, service.health
        self._finished: list[Finished] = []
        self._stored: list[_Unpublished] = []
        self._published: list[JobKey] = []
        self._acknowledged: list[AnswerCommitId] = []
        self._dead: list[DeadRecord] = []
        self._alone = 0
        """So many of the next things are committed each alone: together the database has refused them."""
        self._replaced: set[JobKey] = set()
        """Jobs whose answers the database has refused, and which are answered with an error now."""
        self._news = asyncio.Event()
        self._closing = asyncio.Event()
        self._postgres, self._kafka = Outage(service.log, "postgres"), Outage(service.log, "kafka")

    def add(self, finished: Finished) -> None:
        """Commit and publish an answer."""
        self._finished.append(finished)
        self._news.set()

    def persist(self, overdue: Iterable[InboundRequest]) -> None:
        """Store these with the next commit: their answers are not there yet."""
        self._overdue.update((inbound.key, inbound) for inbound in overdue)
        if self._overdue:
            self._news.set()

    def publish_stored(self, key: JobKey, partition: int, tenant: str, traceparent: str | None, answer: bytes) -> None:
        """Publish an answer that is in the table already, left behind by a crash or asked for again."""
        self._keep(key, partition, tenant, traceparent, answer, None)
        self._news.set()

    def publish_taken_over(self, taken: TakenOverAnswers) -> None:
        """Publish a commit of answers that another process, or an unknown commit of this one, has left behind."""
        for one in taken.answers:
            self._keep(one.key, one.partition, one.tenant, one.traceparent, one.answer, taken.commit)
        if not taken.answers:  # their runs are gone
            self._acknowledged.append(taken.commit)
        self._news.set()

    def publish_dead_letters(self, dead: Sequence[DeadRecord]) -> None:
        """Publish the events of dead letters that are in the table already."""
        self._dead.extend(dead)
        self._news.set()

    def close(self) -> None:
        """Let `run` end when everything is out, or at the first failure."""
        self._closing.set()
        self._news.set()

    async def run(self) -> None:
        """Commit, publish, acknowledge, until closed."""
        self._health.expect(LOOP, 60.0)
        while True:
            await self._wait_for_news()
            self._health.beat(LOOP)
            done = await self._commit() and await self._publish()
            if self._closing.is_set() and (not done or not self._has_work()):
                return

    def _has_work(self) -> bool:
        return bool(self._finished or self._stored or self._dead or self._published or self._acknowledged)

    async def _wait_for_news(self) -> None:
        self._news.clear()
        if self._finished or self._stored or self._dead or self._overdue or self._closing.is_set():
            return
        try:
            async with asyncio.timeout(IDLE_FLUSH_S if self._published or self._acknowledged else BEAT_S):
                await self._news.wait()
        except TimeoutError:
            return

    async def _commit(self) -> bool:
        part = self._next_part()
        if not part:
            return True
        try:
            await self._store(part)
            self._alone = max(0, self._alone - 1)
        except Exception as error:
            if is_refusal(error):
                return await self._after_refusal(part, error)
            if not isinstance(error, POSTGRES_GONE):
                raise
            await self._postgres.wait(error, unless=self._closing)
            return False
        self._postgres.over()
        return True

    def _next_part(self) -> _Part:
        """Return all that waits, as far as one statement should hold it; after a refusal one thing alone."""
        if self._alone and self._overdue:
            return _Part(overdue=list(self._overdue)[:1])
        if self._alone and self._finished:
            return _Part(finished=self._finished[:1])
        if self._alone and self._published:
            return _Part(published=self._published[:1])
        if self._alone:
            return _Part(acknowledged=self._acknowledged[:1])
        sizes_bytes = accumulate(len(one.encoded) for one in self._finished)
        fits = sum(1 for size_bytes in sizes_bytes if size_bytes <= COMMIT_MAX_BYTES)
        return _Part(
            self._finished[: max(1, fits)], list(self._published), list(self._acknowledged), list(self._overdue)
        )

    async def _after_refusal(self, part: _Part, error: Exception) -> bool:
        """Find what the database refuses, and go past it; everything else is stored."""
        if len(part) > 1:
            self._alone = len(part)
            return True
        self._alone = max(0, self._alone - 1)
        for key in part.published:
            self._log.error("an answer cannot be marked as published", request_id=key[1], error=repr(error))
            self._published.remove(key)
        for commit in part.acknowledged:
            self._log.error("answers stay in the outbox", number=commit.number, error=repr(error))
            self._acknowledged.remove(commit)
        for key in part.overdue:
            self._log.error("a request is stored with its answer alone", request_id=key[1], error=repr(error))
            del self._overdue[key]
            self._unpersisted.store_late(key)
        for one in part.finished:
            if one.key in self._replaced:
                return await self._give_up(one, error)
            self._finished[0] = self._instead_of(one, error)
            self._alone += 1
        return True

    def _instead_of(self, one: Finished, error: Exception) -> Finished:
        """Return the error that replaces an answer which the database refuses."""
        self._log.error(
            "an answer cannot be stored; an error takes its place",
            run_id=str(one.key[0]),
            request_id=one.key[1],
            error=repr(error),
        )
        self._health.count("answers_unstorable")
        self._replaced.add(one.key)
        answer = self._worker.unstorable(
            one.request, one.answer, f"the database refuses to store the answer: {type(error).__name__}"
        )
        given = one.answer
        vars(answer).update(worker=given.worker, started_at=given.started_at, finished_at=given.finished_at)
        return one._replace(answer=answer, encoded=answer.to_bytes())

    async def _give_up(self, one: Finished, error: Exception) -> bool:
        """Keep the error as a dead letter, since not even that can be stored; the run goes on at its deadline."""
        (run_id, request_id), request = one.key, one.request
        message = self._outgoing(one.key, request.partition, request.tenant, one.traceparent, one.encoded)
        unstorable = UndecodableRecord("unstorable", f"the database stores neither the answer nor an error: {error!r}")
        dead = dead_letters.dead_outgoing(
            self._service, message, f"{run_id}:{request_id}", unstorable, cloudevents.utc_now()
        )
        try:
            await self._jobs.store_dead_letters([dead])
        except POSTGRES_GONE as gone:
            await self._postgres.wait(gone, unless=self._closing)
            return False
        self._log.error("nothing can be stored for a request", request_id=request_id, error=repr(error))
        self._dead.append(dead)
        del self._finished[0]
        self._replaced.discard(one.key)
        self._unpersisted.persisted([one.key])
        return True

    async def _store(self, part: _Part) -> None:
        """Commit a part, and publish its answers next."""
        finished = part.finished
        group = self._group(finished, part.overdue)
        accepted, known, commit = await self._jobs.commit_answers(
            group.answers,
            part.published,
            group.claims,
            self._write_of(finished),
            list(group.unpersisted.values()),
            part.acknowledged,
        )
        self._replaced.difference_update(one.key for one in finished)
        del self._finished[: len(finished)], self._published[: len(part.published)]
        del self._acknowledged[: len(part.acknowledged)]
        for key in part.overdue:
            del self._overdue[key]
        self._unpersisted.persisted(group.unpersisted)
        all_accepted = group.is_accepted(accepted)
        for one, answer in zip(finished, group.encoded, strict=True):
            if all_accepted or one.key in accepted:
                self._keep(one.key, one.request.partition, one.request.tenant, one.traceparent, answer, commit)
            elif one.key not in known:
                self._health.count("answers_fenced")
        for key, answer in known.items():
            # It was asked and answered before, and that answer counts.
            self._health.count("duplicates")
            inbound, _ = group.unpersisted[key]
            self._keep(key, inbound.partition, inbound.tenant, inbound.traceparent, answer, None)

    def _group(self, finished: Sequence[Finished], overdue: Iterable[JobKey]) -> _Group:
        group = _Group([one.encoded for one in finished])
        for key in overdue:
            if (inbound := self._unpersisted.get(key)) is not None:
                group.unpersisted[key] = inbound, None
        for one, answer in zip(finished, group.encoded, strict=True):
            if (inbound := self._unpersisted.get(one.key)) is not None:
                group.unpersisted[one.key] = inbound, answer
            else:
                group.answers.append((one.key, answer))
            if claim_check.needs_claim(answer, self._settings.inline_max_bytes):
                group.claims.append(Claim(one.request.run_id, one.request.tenant, answer))
        return group

    def _write_of(self, finished: Sequence[Finished]) -> WriteInCommit | None:
        """Return the write of the worker's hook in the commit of these answers."""
        commit_hook = self._commit_hook
        if commit_hook is None or not (hooked := [one for one in finished if commit_hook.applies_to(one)]):
            return None

        async def write(conn: Connection, accepted: frozenset[JobKey]) -> None:
            await commit_hook.write(conn, [one for one in hooked if one.key in accepted])

        return write

    async def _publish(self) -> bool:
        stored, dead = list(self._stored), list(self._dead)
        if not stored and not dead:
            return True
        events = [dead_letters.event(row, self._service, self._dead_letters) for row in dead]
        try:
            await self._publisher.publish([one.message for one in stored] + events)
        except MessagesRefused as error:
            if not await self._keep_refused(
                [stored[position] for position in error.positions if position < len(stored)], error
            ):
                return False
        except KAFKA_GONE as error:
            await self._kafka.wait(error, unless=self._closing)
            return False
        self._kafka.over()
        del self._stored[: len(stored)], self._dead[: len(dead)]
        self._published.extend(one.key for one in stored if one.commit is None)
        self._acknowledged.extend(dict.fromkeys(one.commit for one in stored if one.commit is not None))
        self._health.count("answers_published", len(stored))
        try:
            if dead:
                await self._jobs.mark_dead_letters_published(dead)
        except POSTGRES_GONE as error:
            # They are published once more then; receivers drop what they have seen.
            await self._postgres.wait(error, unless=self._closing)
        return True

    async def _keep_refused(self, refused: Sequence[_Unpublished], error: MessagesRefused) -> bool:
        """Keep answers that Kafka never takes as dead letters, so that nothing waits behind them."""
        dead = [
            dead_letters.dead_message(self._service, message, f"{run_id}:{name}", error.cause, cloudevents.utc_now())
            for (run_id, name), message, _ in refused
        ]
        try:
            await self._jobs.store_dead_letters(dead)
        except POSTGRES_GONE as gone:
            await self._postgres.wait(gone, unless=self._closing)
            return False
        self._health.count("answers_refused", len(dead))
        self._dead.extend(dead)
        return True

    def _keep(  # noqa: PLR0917
        self,
        key: JobKey,
        partition: int,
        tenant: str,
        traceparent: str | None,
        answer: bytes,
        commit: AnswerCommitId | None,
    ) -> None:
        """Publish this next; it is in the table. The answers of a commit are kept, and so published, together."""
        self._stored.append(_Unpublished(key, self._outgoing(key, partition, tenant, traceparent, answer), commit))

    def _outgoing(self, key: JobKey, partition: int, tenant: str, traceparent: str | None, answer: bytes) -> Outgoing:
        run_id: UUID = key[0]
        claimed = claim_check.needs_claim(answer, self._settings.inline_max_bytes)
        headers = cloudevents.binary_headers(
            event_id=f"{key[1]}:answer",
            event_type=self._answer_type,
            source=self._source,
            tenant=tenant,
            traceparent=traceparent,
            dataref=claim_check.dataref(run_id, answer) if claimed else None,
        )
        value = CLAIMED_VALUE if claimed else answer
        return Outgoing(self._topic, partition, str(run_id).encode(), headers, value)
