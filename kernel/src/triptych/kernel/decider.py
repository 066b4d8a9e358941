"""The decider loop: a batch of records in, one statement to Postgres, messages out.

Whoever owns a partition is the only writer of its runs. Ownership is an epoch in Postgres and not a
belief about Kafka: the statement of a process that was replaced is refused, whatever it still thinks.
States are immutable, so a statement that fails leaves the cache as it was; the loop then starts a new
session: new claim, stored offsets, outbox first.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

import asyncpg
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient

from triptych.kernel import claimcheck, cloudevents, deadletters, failpoints
from triptych.kernel.bus import Outgoing, Publisher, Record, Subscription, TopicPartition
from triptych.kernel.deadletters import DeadRecord
from triptych.kernel.errors import Fenced, PublishFailed, TriptychError, UndecodableRecord
from triptych.kernel.outage import KAFKA_GONE, POSTGRES_GONE, Outage
from triptych.kernel.outbox import Envelope, OutboxKey, OutboxRow, Send
from triptych.kernel.service import Service
from triptych.kernel.settings import ServiceSettings
from triptych.kernel.timers import Timers
from triptych.schemas import topics

StateT = TypeVar("StateT")

LOOP = "decider"
IDLE_POLL_MS = 500
LOOP_SILENCE_S = 60.0
MAX_CACHED = 20_000
MAX_TIMERS_A_BATCH = 500
OFFSET_COMMIT_EVERY_S = 5.0
POISONED_TIMER_DELAY = timedelta(seconds=60)
FORWARDED = "triptych_forwarded"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A record that came in, with the body that it carries or refers to."""

    noun: str
    record: Record[Any, Any]
    body: bytes


@dataclass(frozen=True, slots=True)
class Addressed:
    """What a record says, and to which run. `creates` when the run begins with it."""

    run_id: UUID
    content: object
    creates: bool = False


@dataclass(frozen=True, slots=True)
class Transition(Generic[StateT]):
    """A run after a message: its new state, the events that led there and what they send."""

    state: StateT
    tenant: str
    partition: int
    first_seq: int
    events: Sequence[object]
    sends: Sequence[Send]


class RejectedRecord(UndecodableRecord):
    """A record that is refused: it becomes a dead letter, and whoever sent it gets an answer."""

    def __init__(self, code: str, message: str, *, tenant: str, replies: tuple[Send, ...]) -> None:
        super().__init__(code, message)
        self.tenant, self.replies = tenant, replies


class Domain(Protocol[StateT]):
    """What a service decides. All of it is synchronous and pure."""

    @property
    def nouns(self) -> tuple[str, ...]:
        """The topics it reads."""

    @property
    def tick(self) -> object:
        """The message that says that time has passed."""

    def read(self, arrival: Arrival) -> Addressed:
        """What a record says. Raises UndecodableRecord when it says nothing."""

    def partition(self, state: StateT) -> int:
        """The partition whose owner alone may change this run."""

    def wake_at(self, state: StateT) -> datetime | None:
        """When time alone may next change this run."""

    def apply(
        self, state: StateT | None, message: Addressed, partition: int, now: datetime
    ) -> Transition[StateT] | None:
        """What follows from a message, or None when it changes nothing. Raises UndecodableRecord."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A partition that this process owns, in which epoch, and where to go on reading."""

    partition: int
    epoch: int
    offsets: dict[str, int]


@dataclass(slots=True)
class Batch(Generic[StateT]):
    """Everything that one statement writes."""

    epochs: dict[int, int] = field(default_factory=dict)
    offsets: dict[int, dict[str, int]] = field(default_factory=dict)
    created: list[UUID] = field(default_factory=list)
    states: dict[UUID, StateT] = field(default_factory=dict)
    events: list[tuple[UUID, int, object]] = field(default_factory=list)
    outbox: list[OutboxRow] = field(default_factory=list)
    published: list[OutboxKey] = field(default_factory=list)
    armed: dict[UUID, tuple[int, datetime]] = field(default_factory=dict)
    disarmed: list[UUID] = field(default_factory=list)
    dead: list[DeadRecord] = field(default_factory=list)
    at: datetime = field(default_factory=cloudevents.utc_now)


class Store(Protocol[StateT]):
    """The service's tables. Every call is one round trip."""

    async def claim(self, partitions: Sequence[int], owner: str, cluster_id: str) -> list[Claim]:
        """Become the owner, fencing every earlier one."""

    async def load(self, run_ids: Sequence[UUID]) -> dict[UUID, StateT]:
        """Runs folded from their journals; those that do not exist are absent."""

    async def left_behind(self, partitions: Sequence[int]) -> list[OutboxRow]:
        """Outbox rows that an earlier owner has committed and perhaps not published, in order."""

    async def timers(self, partitions: Sequence[int]) -> list[tuple[UUID, datetime]]:
        """The timers of these partitions."""

    async def commit(self, batch: Batch[StateT]) -> set[UUID]:
        """Write the batch in one statement and return created runs that existed already. Raises Fenced."""

    async def forget(self, published: Sequence[OutboxKey]) -> None:
        """Delete outbox rows that Kafka has acknowledged."""


class DeciderLoop(Generic[StateT]):
    """Runs a domain over its topics until the service stops."""

    def __init__(
        self,
        service: Service,
        settings: ServiceSettings,
        domain: Domain[StateT],
        store: Store[StateT],
        pool: asyncpg.Pool,
    ) -> None:
        self._service, self._settings, self._domain, self._store, self._pool = service, settings, domain, store, pool
        self._topics = {settings.topic(noun): noun for noun in domain.nouns}
        self._envelope = Envelope(settings, service.name)
        self._outage = Outage(service.log, "kafka or postgres")
        self._session: _Session[StateT] | None = None
        service.health.expect(LOOP, LOOP_SILENCE_S)
        service.health.depend("postgres", lambda: pool.execute("select 1"))
        service.health.depend("kafka", self._probe_kafka)

    async def run(self) -> None:
        """Run sessions until the service stops. A session ends when it is fenced or a server is gone."""
        async with Publisher(self._settings) as publisher:
            while not self._service.stopping.is_set():
                try:
                    self._session = _Session(self, publisher)
                    await self._session.run()
                except Fenced as error:
                    self._service.health.count("fenced")
                    self._service.log.warning("fenced; rejoining", partitions=error.partitions)
                    await self._outage.wait(error, unless=self._service.stopping)
                except (*POSTGRES_GONE, *KAFKA_GONE) as error:
                    await self._outage.wait(error, unless=self._service.stopping)

    async def _probe_kafka(self) -> None:
        if self._session is None:
            raise ConnectionError("no session with Kafka yet")
        await self._session.probe()


class _Session(ConsumerRebalanceListener, Generic[StateT]):  # type: ignore[misc]  # aiokafka is untyped
    """One membership in the consumer group: its claims, its cache and its timers."""

    def __init__(self, loop: DeciderLoop[StateT], publisher: Publisher) -> None:
        self._domain, self._store, self._pool = loop._domain, loop._store, loop._pool  # noqa: SLF001
        self._settings, self._topics, self._envelope = loop._settings, loop._topics, loop._envelope  # noqa: SLF001
        self._service, self._outage = loop._service, loop._outage  # noqa: SLF001
        self._publisher = publisher
        self._subscription = Subscription(
            self._settings, tuple(self._topics), f"{self._settings.topic_prefix}.{self._service.name}", self
        )
        self._busy = asyncio.Lock()
        self._generation = 0
        self._failure: BaseException | None = None
        self._claims: dict[int, Claim] = {}
        self._cache: OrderedDict[UUID, StateT] = OrderedDict()
        self._timers = Timers()
        self._published: list[OutboxKey] = []
        self._positions: dict[TopicPartition, int] = {}
        self._offsets_committed_at = time.monotonic()

    async def probe(self) -> None:
        """Ask the broker something; raises when it does not answer."""
        await self._subscription.probe()

    async def run(self) -> None:
        """Take batches until the service stops, or something ends the session."""
        async with self._subscription:
            while not self._service.stopping.is_set():
                generation = self._generation
                wait_ms = self._timers.wait_ms(cloudevents.utc_now(), IDLE_POLL_MS)
                polled = await self._subscription.poll(wait_ms)
                async with self._busy:
                    self._service.health.beat(LOOP)
                    if self._failure is not None:
                        raise self._failure
                    if generation != self._generation:
                        self._put_back(polled)
                    elif self._claims:
                        await self._turn(polled)
                        self._outage.over()
            async with self._busy:
                await self._forget_published()

    # --- ownership --------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Wait for the batch under way; from here on nothing of these partitions is touched."""
        async with self._busy:
            self._generation += 1
            self._claims, self._timers = {}, Timers()
            self._cache.clear()
            self._positions.clear()
            self._service.log.debug("partitions revoked", count=len(revoked))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Claim the partitions, go to the stored offsets, and publish what was left behind."""
        async with self._busy:
            try:
                await self._claim(assigned)
            except (TriptychError, *POSTGRES_GONE, *KAFKA_GONE) as error:
                self._failure = error  # the loop raises it; an exception here would only be logged

    async def _claim(self, assigned: set[TopicPartition]) -> None:
        self._generation += 1
        partitions = sorted({tp.partition for tp in assigned})
        cluster_id = await self._cluster_id()
        failpoints.hit("decider.before_claim")
        claims = await self._store.claim(partitions, self._settings.instance, cluster_id)
        failpoints.hit("decider.after_claim")
        left_behind = await self._store.left_behind(partitions)
        self._service.health.count("outbox_left_behind", len(left_behind))
        await self._publish(left_behind)
        failpoints.hit("decider.after_left_behind")
        self._timers = Timers(await self._store.timers(partitions))
        self._claims = {claim.partition: claim for claim in claims}
        self._positions = {tp: await self._start_offset(tp) for tp in assigned}
        for tp, offset in self._positions.items():
            self._subscription.consumer.seek(tp, offset)
        self._generation += 1  # what was polled meanwhile came from before the seek
        self._service.health.started()
        self._service.log.info(
            "partitions claimed",
            partitions=partitions,
            epochs=[claim.epoch for claim in claims],
            left_behind=len(left_behind),
            timers=len(self._timers),
        )

    async def _start_offset(self, tp: TopicPartition) -> int:
        """Where to go on: the offset that was stored with the state it led to, else the beginning."""
        stored = self._claims[tp.partition].offsets.get(tp.topic)
        if stored is not None:
            return stored
        first: int = (await self._subscription.consumer.beginning_offsets([tp]))[tp]
        return first

    def _put_back(self, polled: dict[TopicPartition, list[Record[Any, Any]]]) -> None:
        """A poll that spans a rebalance may hold records from before or after the seek: read them again."""
        for tp in polled.keys() & self._positions.keys():
            self._subscription.consumer.seek(tp, self._positions[tp])

    async def _cluster_id(self) -> str:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._settings.kafka, client_id=self._settings.instance)
        await admin.start()
        try:
            return str((await admin.describe_cluster())["cluster_id"])
        finally:
            await admin.close()

    # --- a batch ----------------------------------------------------------------------------------

    async def _turn(self, polled: dict[TopicPartition, list[Record[Any, Any]]]) -> None:
        now = cloudevents.utc_now()
        due = self._timers.take_due(now, MAX_TIMERS_A_BATCH)
        if not polled and not due:
            await self._forget_published()
            return
        batch: Batch[StateT] = Batch(at=now, published=self._published)
        messages = await self._read(polled, batch)
        messages.extend((None, Addressed(run_id, self._domain.tick)) for run_id in due)
        await self._warm(message.run_id for _, message in messages if not message.creates)
        for arrival, message in messages:
            self._decide(arrival, message, batch)
        for run_id in due:
            if run_id not in batch.states:
                self._rearm_untouched(run_id, batch)
        for partition in {*batch.offsets, *(row.partition for row in batch.outbox), *self._touched(batch)}:
            batch.epochs[partition] = self._claims[partition].epoch
        await self._commit(batch)

    async def _read(
        self, polled: dict[TopicPartition, list[Record[Any, Any]]], batch: Batch[StateT]
    ) -> list[tuple[Arrival | None, Addressed]]:
        """Decode record by record; what does not decode becomes a dead letter."""
        records = [record for group in polled.values() for record in group]
        resolved = await claimcheck.resolve(self._pool, records)
        messages: list[tuple[Arrival | None, Addressed]] = []
        for tp, group in polled.items():
            for record in group:
                try:
                    arrival = Arrival(self._topics[tp.topic], record, claimcheck.body(record, resolved))
                    messages.append((arrival, self._domain.read(arrival)))
                except UndecodableRecord as error:
                    self._bury(record, error, batch)
            next_offset = group[-1].offset + 1
            batch.offsets.setdefault(tp.partition, {})[tp.topic] = next_offset
            self._positions[tp] = next_offset
        return messages

    async def _warm(self, run_ids: Any) -> None:
        """Bring the runs of this batch into the cache."""
        missing = {run_id for run_id in run_ids if run_id not in self._cache}
        if missing:
            self._cache.update(await self._store.load(sorted(missing)))

    def _decide(self, arrival: Arrival | None, message: Addressed, batch: Batch[StateT]) -> None:
        state = batch.states.get(message.run_id) or self._cache.get(message.run_id)
        try:
            if arrival and state is not None and self._is_astray(arrival, state, batch):
                return
            partition = arrival.record.partition if arrival else -1
            transition = self._domain.apply(state, message, partition, batch.at)
        except UndecodableRecord as error:
            if arrival:
                self._bury(arrival.record, error, batch)
            return
        except Exception as error:
            # A defect of ours must not stop the partition: the record is kept, and the run's deadline stands.
            self._service.log.exception("a message could not be applied", run_id=str(message.run_id))
            if arrival:
                self._bury(arrival.record, UndecodableRecord("internal", f"{type(error).__name__}: {error}"), batch)
            return
        if transition is None:
            self._service.health.count("duplicates")
        else:
            self._collect(message, transition, batch)

    def _collect(self, message: Addressed, transition: Transition[StateT], batch: Batch[StateT]) -> None:
        run_id = message.run_id
        if message.creates:
            batch.created.append(run_id)
        batch.states[run_id] = transition.state
        for offset, event in enumerate(transition.events):
            batch.events.append((run_id, transition.first_seq + offset, event))
        base = transition.first_seq * 1_000
        for number, send in enumerate(transition.sends):
            batch.outbox.append(
                self._envelope.wrap(
                    send,
                    run_id=run_id,
                    position=base + number,
                    partition=transition.partition,
                    tenant=transition.tenant,
                )
            )
        self._rearm(run_id, transition.partition, self._domain.wake_at(transition.state), batch)

    def _rearm(self, run_id: UUID, partition: int, wake_at: datetime | None, batch: Batch[StateT]) -> None:
        """Move the run's timer only when it must be earlier; one that is early finds nothing due and moves on."""
        armed_at = self._timers.due_at(run_id)
        if wake_at is None:
            batch.armed.pop(run_id, None)
            if armed_at is not None:
                batch.disarmed.append(run_id)
        elif armed_at is None or wake_at < armed_at or armed_at <= batch.at:
            batch.armed[run_id] = (partition, wake_at)
        else:
            batch.armed.pop(run_id, None)

    def _rearm_untouched(self, run_id: UUID, batch: Batch[StateT]) -> None:
        """A timer fired and nothing was due yet, or the run could not be decided: look again later."""
        state = self._cache.get(run_id)
        later = batch.at + POISONED_TIMER_DELAY
        if state is None:  # its journal cannot be read here: the row stays, for whoever can
            self._timers.arm(run_id, later)
            return
        wake_at = self._domain.wake_at(state)
        if wake_at is None:
            batch.disarmed.append(run_id)
        else:
            batch.armed[run_id] = (self._domain.partition(state), wake_at if wake_at > batch.at else later)

    def _touched(self, batch: Batch[StateT]) -> set[int]:
        return {self._domain.partition(state) for state in batch.states.values()} | {
            partition for partition, _ in batch.armed.values()
        }

    def _is_astray(self, arrival: Arrival, state: StateT, batch: Batch[StateT]) -> bool:
        """A record that came in on another partition than its run's: the owner there must get it."""
        home, record = self._domain.partition(state), arrival.record
        if record.partition == home:
            return False
        if cloudevents.header(record.headers, FORWARDED) is not None:
            raise UndecodableRecord("wrong_partition", f"the run lives on partition {home}, and so must this record")
        headers = [*((name, value or b"") for name, value in record.headers), (FORWARDED, b"1")]
        outgoing = Outgoing(record.topic, home, record.key or b"", headers, record.value or b"")
        batch.outbox.append(OutboxRow(OutboxKey(_record_uuid(record), 0), record.partition, outgoing))
        return True

    def _bury(self, record: Record[Any, Any], error: UndecodableRecord, batch: Batch[StateT]) -> None:
        tenant = error.tenant if isinstance(error, RejectedRecord) else None
        dead = deadletters.dead_record(self._service.name, record, error, batch.at, tenant=tenant)
        batch.dead.append(dead)
        self._service.health.count("dead_letters")
        outgoing = deadletters.event(dead, self._service.name, self._settings.topic(topics.DEAD_LETTERS))
        run_id = _record_uuid(record)
        batch.outbox.append(OutboxRow(OutboxKey(run_id, 0), record.partition, outgoing))
        for number, send in enumerate(error.replies if isinstance(error, RejectedRecord) else (), start=1):
            batch.outbox.append(
                self._envelope.wrap(
                    send, run_id=run_id, position=number, partition=record.partition, tenant=dead.tenant
                )
            )

    # --- commit and publish -----------------------------------------------------------------------

    async def _commit(self, batch: Batch[StateT]) -> None:
        failpoints.hit("decider.before_commit")
        duplicates = await self._store.commit(batch)
        failpoints.hit("decider.after_commit")
        self._published = []
        for run_id, state in batch.states.items():
            if run_id in duplicates:
                self._service.health.count("duplicate_tasks")
                continue
            self._cache[run_id] = state
            self._cache.move_to_end(run_id)
        for run_id in batch.disarmed:
            self._timers.disarm(run_id)
        for run_id, (_, due_at) in batch.armed.items():
            if run_id not in duplicates:
                self._timers.arm(run_id, due_at)
        await self._publish([row for row in batch.outbox if row.key.run_id not in duplicates])
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        if time.monotonic() - self._offsets_committed_at > OFFSET_COMMIT_EVERY_S:
            self._offsets_committed_at = time.monotonic()
            await self._subscription.commit(dict(self._positions))

    async def _publish(self, rows: Sequence[OutboxRow]) -> None:
        """Publish committed rows in order. While Kafka is gone nothing else may overtake them."""
        while rows:
            try:
                await self._publisher.publish([row.outgoing for row in rows])
            except PublishFailed as error:
                self._service.health.beat(LOOP)
                if self._service.stopping.is_set():
                    return  # the rows stay; the next owner publishes them
                await self._outage.wait(error, unless=self._service.stopping)
            else:
                self._published.extend(row.key for row in rows)
                return

    async def _forget_published(self) -> None:
        if self._published:
            published, self._published = self._published, []
            failpoints.hit("decider.before_forget")
            await self._store.forget(published)
            failpoints.hit("decider.after_forget")


def _record_uuid(record: Record[Any, Any]) -> UUID:
    """A stable id for what belongs to a record and to no run."""
    return uuid5(NAMESPACE_URL, f"kafka:{record.topic}:{record.partition}:{record.offset}")
