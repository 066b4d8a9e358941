"""The outbox: answers are committed in groups, then published, then marked as published.

As many answers go into a commit as finished while the last one ran. An answer is never published before
it is stored, and a stored one is published until Kafka acknowledges it, by this process or the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from uuid import UUID

from triptych.kernel import claimcheck, cloudevents, deadletters
from triptych.kernel.bus import Outgoing, Publisher
from triptych.kernel.claimcheck import CLAIMED_VALUE, Claim
from triptych.kernel.deadletters import DeadRecord
from triptych.kernel.errors import MessagesRefused
from triptych.kernel.outage import KAFKA_GONE, POSTGRES_GONE, Outage
from triptych.kernel.service import Service
from triptych.kernel.settings import ServiceSettings
from triptych.kernel.worker.contract import WorkerConfig
from triptych.kernel.worker.jobs import AlsoSettle, Arrival, Connection, JobKey, Jobs
from triptych.kernel.worker.unrecorded import Unrecorded
from triptych.schemas.base import Answer, Request
from triptych.schemas.topics import DEAD_LETTERS

IDLE_FLUSH_S = 0.05
"""Marks of published answers wait this long for a commit to travel with."""
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
    unrecorded: dict[JobKey, tuple[Arrival, bytes | None]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    def is_accepted(self, accepted: frozenset[JobKey]) -> bool:
        """Whether that is all of it, as it nearly always is."""
        return len(accepted) == len(self.answers) + len(self.unrecorded)

    def refused(self, accepted: frozenset[JobKey]) -> list[JobKey]:
        """The unrecorded ones that are in the table already."""
        return [] if self.is_accepted(accepted) else [key for key in self.unrecorded if key not in accepted]


class Settlement(Protocol):
    """What a worker writes in the commit that accepts its answers, for example receipts of effects."""

    def concerns(self, finished: Finished) -> bool:
        """Whether there is anything to write for this answer; if for none, the commit is one statement."""

    async def settle(self, conn: Connection, finished: Sequence[Finished]) -> None:
        """Write it, in the transaction of `conn`."""


class Outbox:
    """Commits and publishes the answers of one process."""

    def __init__(
        self,
        service: Service,
        settings: ServiceSettings,
        config: WorkerConfig,
        jobs: Jobs,
        publisher: Publisher,
        *,
        unrecorded: Unrecorded,
        settlement: Settlement | None,
    ) -> None:
        self._service, self._settings = service.name, settings
        self._topic, self._dead_letters = settings.topic(config.answer_noun), settings.topic(DEAD_LETTERS)
        self._answer_type, self._source = config.answer_type, f"/triptych/{service.name}"
        self._jobs, self._publisher, self._unrecorded = jobs, publisher, unrecorded
        self._overdue: dict[JobKey, Arrival] = {}
        self._settlement, self._health = settlement, service.health
        self._finished: list[Finished] = []
        self._stored: list[tuple[JobKey, Outgoing]] = []
        self._published: list[JobKey] = []
        self._dead: list[DeadRecord] = []
        self._news = asyncio.Event()
        self._closing = asyncio.Event()
        self._postgres, self._kafka = Outage(service.log, "postgres"), Outage(service.log, "kafka")

    def add(self, finished: Finished) -> None:
        """Commit and publish an answer."""
        self._finished.append(finished)
        self._news.set()

    def record(self, overdue: Iterable[Arrival]) -> None:
        """Store these with the next commit: their answers are not there yet."""
        self._overdue.update((arrival.key, arrival) for arrival in overdue)
        if self._overdue:
            self._news.set()

    def publish_stored(self, key: JobKey, partition: int, tenant: str, traceparent: str | None, answer: bytes) -> None:
        """Publish an answer that is in the table already, left behind by a crash or asked for again."""
        self._keep(key, partition, tenant, traceparent, answer)
        self._news.set()

    def bury(self, dead: Sequence[DeadRecord]) -> None:
        """Publish the events of dead letters that are in the table already."""
        self._dead.extend(dead)
        self._news.set()

    def close(self) -> None:
        """Let `run` end when everything is out, or at the first sign that it cannot get out."""
        self._closing.set()
        self._news.set()

    async def run(self) -> None:
        """Commit, publish, mark, until closed."""
        self._health.expect(LOOP, 60.0)
        while True:
            await self._wait_for_news()
            self._health.beat(LOOP)
            done = await self._commit() and await self._publish()
            if self._closing.is_set() and (not done or not self._has_work()):
                return

    def _has_work(self) -> bool:
        return bool(self._finished or self._stored or self._dead or self._published)

    async def _wait_for_news(self) -> None:
        self._news.clear()
        if self._finished or self._stored or self._dead or self._overdue or self._closing.is_set():
            return
        try:
            async with asyncio.timeout(IDLE_FLUSH_S if self._published else BEAT_S):
                await self._news.wait()
        except TimeoutError:
            return

    async def _commit(self) -> bool:
        finished, published, overdue = list(self._finished), list(self._published), list(self._overdue)
        if not finished and not published and not overdue:
            return True
        group = self._group(finished, overdue)
        try:
            accepted = await self._jobs.settle(
                group.answers, published, group.claims, self._settlement_of(finished), list(group.unrecorded.values())
            )
            known = await self._jobs.stored_answers(group.refused(accepted))
        except POSTGRES_GONE as error:
            await self._postgres.wait(error, unless=self._closing)
            return False
        self._postgres.over()
        del self._finished[: len(finished)], self._published[: len(published)]
        for key in overdue:
            del self._overdue[key]
        self._unrecorded.recorded(group.unrecorded)
        all_accepted = group.is_accepted(accepted)
        for one, answer in zip(finished, group.encoded, strict=True):
            if all_accepted or one.key in accepted:
                self._keep(one.key, one.request.partition, one.request.tenant, one.traceparent, answer)
            elif one.key not in known:
                self._health.count("answers_fenced")
        for key, answer in known.items():
            # It was asked and answered before, and that answer counts.
            self._health.count("duplicates")
            arrival, _ = group.unrecorded[key]
            self._keep(key, arrival.partition, arrival.tenant, arrival.traceparent, answer)
        return True

    def _group(self, finished: Sequence[Finished], overdue: Iterable[JobKey]) -> _Group:
        group = _Group([one.encoded for one in finished])
        for key in overdue:
            if (arrival := self._unrecorded.get(key)) is not None:
                group.unrecorded[key] = arrival, None
        for one, answer in zip(finished, group.encoded, strict=True):
            if (arrival := self._unrecorded.get(one.key)) is not None:
                group.unrecorded[one.key] = arrival, answer
            else:
                group.answers.append((one.key, answer))
            if claimcheck.needs_claim(answer, self._settings.inline_max_bytes):
                group.claims.append(Claim(one.request.run_id, one.request.tenant, answer))
        return group

    def _settlement_of(self, finished: Sequence[Finished]) -> AlsoSettle | None:
        """What the worker itself has to write in the commit of these answers."""
        settlement = self._settlement
        if settlement is None or not (concerned := [one for one in finished if settlement.concerns(one)]):
            return None

        async def settle(conn: Connection, accepted: frozenset[JobKey]) -> None:
            await settlement.settle(conn, [one for one in concerned if one.key in accepted])

        return settle

    async def _publish(self) -> bool:
        stored, dead = list(self._stored), list(self._dead)
        if not stored and not dead:
            return True
        events = [deadletters.event(row, self._service, self._dead_letters) for row in dead]
        try:
            await self._publisher.publish([message for _, message in stored] + events)
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
        self._published.extend(key for key, _ in stored)
        self._health.count("answers_published", len(stored))
        try:
            if dead:
                await self._jobs.mark_buried(dead)
        except POSTGRES_GONE as error:
            # They are published once more then; receivers drop what they have seen.
            await self._postgres.wait(error, unless=self._closing)
        return True

    async def _keep_refused(self, refused: Sequence[tuple[JobKey, Outgoing]], error: MessagesRefused) -> bool:
        """Keep answers that Kafka never takes as dead letters, so that nothing waits behind them."""
        dead = [
            deadletters.dead_message(self._service, message, f"{run_id}:{name}", error.cause, cloudevents.utc_now())
            for (run_id, name), message in refused
        ]
        try:
            await self._jobs.bury(dead)
        except POSTGRES_GONE as gone:
            await self._postgres.wait(gone, unless=self._closing)
            return False
        self._health.count("answers_refused", len(dead))
        self._dead.extend(dead)
        return True

    def _keep(self, key: JobKey, partition: int, tenant: str, traceparent: str | None, answer: bytes) -> None:
        """Publish this next; it is in the table."""
        self._stored.append((key, self._outgoing(key, partition, tenant, traceparent, answer)))

    def _outgoing(self, key: JobKey, partition: int, tenant: str, traceparent: str | None, answer: bytes) -> Outgoing:
        run_id: UUID = key[0]
        claimed = claimcheck.needs_claim(answer, self._settings.inline_max_bytes)
        headers = cloudevents.binary_headers(
            event_id=f"{key[1]}:answer",
            event_type=self._answer_type,
            source=self._source,
            tenant=tenant,
            traceparent=traceparent,
            dataref=claimcheck.dataref(run_id, answer) if claimed else None,
        )
        value = CLAIMED_VALUE if claimed else answer
        return Outgoing(self._topic, partition, str(run_id).encode(), headers, value)
