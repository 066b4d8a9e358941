"""One membership in the consumer group: what is owned, what is polled, what is committed and published.

Ownership is an epoch in Postgres and not a belief about Kafka: the statement of a process that was
replaced is refused, whatever it still thinks. A session never outlives a doubt; the loop starts another.

While one batch is written and published, the next is decided on what the first will have made of its runs
(docs/decisions/0011). So memory may be ahead of the database, by one batch and never for longer than the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic
from uuid import UUID

from aiokafka.abc import ConsumerRebalanceListener

from triptych.kernel import failpoints
from triptych.kernel.decider.admission import Admission, Line, Standing, Waiting
from triptych.kernel.decider.batch import Assembly, Kit, Memory, outbox_rows
from triptych.kernel.decider.contract import (
    Addressed,
    Arrival,
    Batch,
    Claim,
    RejectedRecord,
    StateT,
    Submission,
    TaskKey,
    Unread,
)
from triptych.kernel.decider.inputs import Inputs
from triptych.kernel.decider.timers import Timers
from triptych.kernel.errors import (
    BatchRefused,
    Fenced,
    MessagesRefused,
    PublishFailed,
    TopicsReplacedError,
    TriptychError,
    UndecodableRecord,
)
from triptych.kernel.kafka import bus, cloudevents, dead_letters
from triptych.kernel.kafka.backlog import Backlog, Portion, Records
from triptych.kernel.kafka.bus import Publisher, Record, TopicPartition
from triptych.kernel.kafka.suspect_records import Reading, run_in_hand, timers_in_hand
from triptych.kernel.outage import KAFKA_GONE, POSTGRES_GONE, is_refusal
from triptych.kernel.postgres import claim_check
from triptych.kernel.postgres.outbox import OutboxKey, OutboxRow
from triptych.schemas import topics

LOOP = "decider"
IDLE_POLL_MS = 500
MAX_CACHED = 20_000
MAX_TIMERS_A_BATCH = 500
MAX_STARTS_A_BATCH = 500
OVERLAP_FROM_MESSAGES = 250
"""A batch of so many is worth deciding the next one meanwhile. Of smaller ones, fewer and larger cost less."""
DECIDED_AT_ONCE = 50
"""So many messages are decided before the batch under way is given a moment to go on."""
LARGE_BYTES = 65_536
"""After a record of this size others get a turn."""
OFFSET_COMMIT_EVERY_S = 5.0
IDLE_OFFSET_COMMIT_EVERY_S = 0.5
"""When there is nothing to do, nothing is held up by a commit."""
REFUSED_RUN_DELAY = timedelta(minutes=10)
"""A run that the database cannot store is looked at again after this."""


DEADLY_RUN_DELAY = timedelta(days=3650)
"""Nothing but a message moves a run again that cannot be looked at, and such a message is buried as deadly."""


class _Refused(Exception):
    """The database refuses a batch that was written alone."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _bare(error: RejectedRecord) -> RejectedRecord:
    """The error without where it was raised.

    Its frames hold the records that were polled with it, in a cycle that a collector finds a gigabyte later.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class Session(ConsumerRebalanceListener, Generic[StateT]):  # type: ignore[misc]  # aiokafka is untyped
    """Takes batches for as long as its claims hold."""

    def __init__(self, kit: Kit[StateT], publisher: Publisher) -> None:
        self._kit, self._publisher = kit, publisher
        self._topics = {kit.settings.topic(noun): noun for noun in kit.domain.nouns}
        group = f"{kit.settings.topic_prefix}.{kit.service.name}"
        self._subscription = kit.kafka.subscribe(tuple(self._topics), group, self, one_owner=True)
        self._inputs: Inputs | None = None
        """The topics as they were when their partitions were claimed."""
        self.problem: str | None = None
        """Why the topics do not fit together, as far as is known."""
        self._busy = asyncio.Lock()
        self._generation = 0
        self._failure: BaseException | None = None
        self._claims: dict[int, Claim] = {}
        self._memory = self._blank_memory(partitions=1)
        self._backlog = Backlog(kit.settings.batch_max_records)
        self._held: dict[TopicPartition, int] = {}
        """Where each partition ended when it was claimed: what it held may have ended the process before this one."""
        self._held_runs: dict[UUID, tuple[int, datetime]] = {}
        """Runs whose timers were there when their partition was claimed, and when they were due: so may these have."""
        self._under_way: asyncio.Task[None] | None = None
        self._creating: frozenset[UUID] = frozenset()
        """Runs that the batch under way creates, unless their tasks turn out to be known."""
        self._published: list[OutboxKey] = []
        self._leaves_rows = False
        """Rows were left to the next owner, and nothing may overtake them."""
        self._positions: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._offsets_committed_at = time.monotonic()

    async def look(self) -> None:
        """See whether the topics and partitions are those that were claimed, and whether the topics fit together.

        Raises:
            KafkaError: no broker answers.
        """
        claims = self._claims
        with contextlib.suppress(*POSTGRES_GONE):
            newest = await self._kit.store.epochs(sorted(claims))
            lost = tuple(number for number, claim in claims.items() if newest.get(number) != claim.epoch)
            if lost and claims is self._claims and not self._busy.locked():  # else it shows when that is written
                self._failure = Fenced(lost)
        cluster = await self._subscription.describe()
        if self._inputs is not None and (replaced := self._inputs.replaced(cluster)):
            self._failure = TopicsReplacedError(replaced)
        self._tell_topics(Inputs(tuple(self._topics), cluster).problem)

    async def run(self) -> None:
        """Take batches until the service stops, or something ends the session."""
        async with self._subscription:
            try:
                while not self._kit.service.stopping.is_set():
                    await self._take_one()
                async with self._busy:
                    await self._written()
                    await self._forget_published()
                    await self._commit_offsets(after_s=0.0)
            finally:
                await self._abandon()

    async def _take_one(self) -> None:
        """Poll once, unless there is enough, and do what is to be done then."""
        generation = self._generation
        polled = {} if self._backlog else await self._subscription.poll(self._wait_ms())
        async with self._busy:
            self._kit.service.health.beat(LOOP)
            if self._failure is not None:
                raise self._failure
            if generation != self._generation:
                self._put_back(polled)
            elif self._claims:
                self._backlog.put(polled)
                await self._take(self._backlog.take(self._kit.suspicion.is_suspect))

    def _wait_ms(self) -> int:
        """How long there is nothing to do unless a record comes in. A batch under way may lead to more."""
        return (
            0
            if self._under_way is not None or self._memory.starts or self._memory.told
            else self._memory.timers.wait_ms(cloudevents.utc_now(), IDLE_POLL_MS)
        )

    def _blank_memory(self, partitions: int) -> Memory[StateT]:
        return Memory(Admission(self._kit.domain.limits, partitions))

    def _tell_topics(self, problem: str | None) -> None:
        """Say in the log, once, what is wrong with the topics, and when it is over."""
        if problem != self.problem:
            self.problem, log = problem, self._kit.service.log
            if problem is None:
                log.info("the topics fit together again")
            else:
                log.error("the topics do not fit together", problem=problem)

    # --- ownership --------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Wait for the batch under way; from here on nothing of these partitions is touched."""
        async with self._busy:
            try:
                await self._written()
                await self._commit_offsets(after_s=0.0)
            except (TriptychError, *POSTGRES_GONE, *KAFKA_GONE) as error:
                self._failure = error
            self._generation += 1
            self._claims, self._memory = {}, self._blank_memory(partitions=1)
            self._held_runs = {}
            self._positions, self._committed = {}, {}
            self._backlog.clear()
            self._kit.service.log.debug("partitions revoked", count=len(revoked))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Claim the partitions, go to the stored offsets, and publish what was left behind."""
        async with self._busy:
            try:
                await self._claim(assigned)
            except (TriptychError, *POSTGRES_GONE, *KAFKA_GONE) as error:
                self._failure = error  # the loop raises it; an exception here would only be logged

    async def _claim(self, assigned: set[TopicPartition]) -> None:
        self._generation += 1
        cluster = await self._kit.kafka.describe(tuple(self._topics))
        self._inputs = Inputs(tuple(self._topics), cluster)
        self._tell_topics(self._inputs.problem)
        if beyond := {tp for tp in assigned if tp.partition >= self._inputs.common}:
            self._subscription.consumer.pause(*beyond)
            assigned = assigned - beyond
        partitions = sorted({tp.partition for tp in assigned})
        failpoints.hit("decider.before_claim")
        claims = await self._kit.store.claim(partitions, self._kit.settings.instance, cluster)
        failpoints.hit("decider.after_claim")
        left_behind = await self._kit.store.left_behind(partitions)
        self._kit.service.health.count("outbox_left_behind", len(left_behind))
        await self._publish(left_behind)
        failpoints.hit("decider.after_left_behind")
        self._memory = await self._read_memory(partitions, self._inputs.common)
        self._claims = {claim.partition: claim for claim in claims}
        self._backlog.clear()
        self._positions = await self._start_offsets(assigned)
        self._held = await self._subscription.consumer.end_offsets(list(assigned))
        starts = {(tp.topic, tp.partition): offset for tp, offset in self._positions.items()}
        readings = await self._kit.store.readings(partitions)
        self._kit.suspicion.believe(readings, starts)
        self._kit.suspicion.believe_timers(
            readings, [(run_id, due_at, partition) for run_id, (partition, due_at) in self._held_runs.items()]
        )
        for tp, offset in self._positions.items():
            self._subscription.consumer.seek(tp, offset)
        self._generation += 1  # what was polled meanwhile came from before the seek
        self._kit.service.health.started()
        self._kit.service.log.info(
            "partitions claimed",
            partitions=partitions,
            epochs=[claim.epoch for claim in claims],
            left_behind=len(left_behind),
            timers=len(self._memory.timers),
        )

    async def _read_memory(self, partitions: list[int], of: int) -> Memory[StateT]:
        """What the database holds of these partitions, which are some `of` so many."""
        store = self._kit.store
        memory = self._blank_memory(partitions=max(1, of))
        armed = await store.timers(partitions)
        memory.timers = Timers((run_id, due_at) for run_id, due_at, _ in armed)
        self._held_runs = {run_id: (partition, due_at) for run_id, due_at, partition in armed}
        memory.admission.load(await store.active(partitions), await store.waiting(partitions))
        memory.starts = memory.admission.take(MAX_STARTS_A_BATCH)
        return memory

    async def _start_offsets(self, assigned: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Where to go on: the offset that was stored with the state it led to, else the beginning.

        The broker is asked once, for an answer waits behind a fetch, and nothing is heard of a member that waits here.
        """
        stored = {tp: self._claims[tp.partition].offsets.get(tp.topic) for tp in assigned}
        unknown = [tp for tp, offset in stored.items() if offset is None]
        first: dict[TopicPartition, int] = await self._subscription.consumer.beginning_offsets(unknown)
        return {tp: offset if offset is not None else first[tp] for tp, offset in stored.items()}

    def _put_back(self, polled: Records) -> None:
        """A poll that spans a rebalance may hold records from before or after the seek: read them again."""
        for tp in polled.keys() & self._positions.keys():
            self._subscription.consumer.seek(tp, self._positions[tp])

    # --- a batch ----------------------------------------------------------------------------------

    async def _take(self, portion: Portion) -> None:
        """Decide and write a portion. Nothing that may end this process is touched before it is written down."""
        if portion.is_suspect:
            await self._written()
            ((record,),) = portion.records.values()
            await self._take_alone(record)
            return
        readings = [
            Reading(tp.topic, tp.partition, records[0].offset, records[-1].offset, self._kit.suspicion.life)
            for tp, records in portion.records.items()
            if records[0].offset < self._held.get(tp, 0)
        ]
        if readings:
            await self._written()
            await self._note(readings)
        if self._kit.suspicion.runs:
            await self._take_time_alone()
        await self._turn(portion.records)

    async def _note(self, readings: Sequence[Reading]) -> list[Reading]:
        """Write down what is about to be read, and in how many lives it was."""
        failpoints.hit("decider.before_note")
        noted = await self._kit.store.note(readings)
        failpoints.hit("decider.after_note")
        return noted

    async def _take_alone(self, record: Record[Any, Any]) -> None:
        """Take a record that may end this process, or that the database may refuse."""
        place = Reading(record.topic, record.partition, record.offset, record.offset, self._kit.suspicion.life)
        (noted,) = await self._note([place])
        if noted.lives > self._kit.settings.max_deaths:
            batch = await self._unread(record, noted.lives - 1)
        else:
            batch = await self._decided([record])
        try:
            await self._write_alone(batch)
        except _Refused as refused:
            self._kit.service.log.warning("a record is refused by the database", record=bus.place(record))
            await self._bury_refused(record, batch, refused.cause)
        self._kit.suspicion.passed(record)

    async def _bury_refused(self, record: Record[Any, Any], batch: Batch[StateT], cause: BaseException) -> None:
        """Go past a record whose batch the database refuses, and say so to whom it concerns, if that can be stored."""
        error = UndecodableRecord("unstorable", f"the database cannot store what it leads to: {cause}")
        task = next((self._kit.domain.task(batch.states[run_id]) for run_id in batch.created), None)
        unread = self._kit.domain.unread(self._topics[record.topic], record, error, task)
        try:
            await self._write_alone(await self._buried(record, unread, batch.published))
        except _Refused:
            await self._write_alone(await self._buried(record, Unread(error), batch.published))

    async def _take_time_alone(self) -> None:
        """Look at the runs whose time came in a batch that the database refused, each alone."""
        runs, self._kit.suspicion.runs = self._kit.suspicion.runs, set()
        for run_id in sorted(runs):
            message = await self._told_alone(run_id)
            if message is None:
                continue
            batch = self._new_batch()
            assembly = Assembly(self._kit, self._memory, batch)
            await self._warm([(None, message)])
            assembly.take(None, message)
            if run_id not in batch.states:
                assembly.rearm_untouched(run_id)
            batch.epochs = {partition: self._claims[partition].epoch for partition in assembly.touched_partitions()}
            try:
                await self._write_alone(batch)
            except _Refused as refused:
                self._kit.service.log.exception(
                    "a run cannot be stored; it is left alone", run_id=str(run_id), error=str(refused.cause)
                )
                self._published = [*batch.published, *self._published]
                self._memory.timers.arm(run_id, batch.at + REFUSED_RUN_DELAY)

    async def _told_alone(self, run_id: UUID) -> Addressed | None:
        """What a run under suspicion is told: that time has passed, or after too many deaths that it is given up.

        None: also that has ended processes, so it is left alone.
        """
        held = self._held_runs.pop(run_id, None)
        if held is None:  # the database refused it in this life
            return Addressed(run_id, self._kit.domain.tick)
        partition, max_deaths = held[0], self._kit.settings.max_deaths
        (noted,) = await self._kit.store.note([run_in_hand(partition, run_id, self._kit.suspicion.life)])
        deaths, log = noted.lives - 1, self._kit.service.log
        if deaths < max_deaths:
            return Addressed(run_id, self._kit.domain.tick)
        if deaths < 2 * max_deaths:
            log.error("a run is given up: it ends its process each time", run_id=str(run_id), deaths=deaths)
            cause = f"{deaths} processes died while they looked at this run alone. See their logs; resume or abort it"
            return Addressed(run_id, self._kit.domain.given_up(cause))
        log.error("a run is left alone: it cannot even be given up", run_id=str(run_id), deaths=deaths)
        batch = self._new_batch()
        batch.armed[run_id] = partition, batch.at + DEADLY_RUN_DELAY
        batch.epochs = {partition: self._claims[partition].epoch}
        await self._write_alone(batch)
        return None

    def _new_batch(self) -> Batch[StateT]:
        published, self._published = self._published, []
        return Batch(at=cloudevents.utc_now(), published=published)

    async def _decided(self, records: Sequence[Record[Any, Any]]) -> Batch[StateT]:
        """What follows from these records, and from nothing else."""
        batch = self._new_batch()
        assembly = Assembly(self._kit, self._memory, batch)
        polled: Records = {}
        for record in records:
            polled.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
        messages = await self._read(polled, assembly)
        await self._decide(messages, assembly)
        batch.epochs = {partition: self._claims[partition].epoch for partition in assembly.touched_partitions()}
        return batch

    async def _unread(self, record: Record[Any, Any], deaths: int) -> Batch[StateT]:
        """Bury a record of which nothing is read but its key and headers."""
        message = f"{deaths} processes have died with this record alone in hand; it was not read again"
        error = UndecodableRecord("deadly_record", message)
        self._kit.service.log.error("a record is buried unread", record=bus.place(record), deaths=deaths)
        published, self._published = self._published, []
        return await self._buried(record, self._kit.domain.unread(self._topics[record.topic], record, error), published)

    async def _buried(self, record: Record[Any, Any], unread: Unread, published: list[OutboxKey]) -> Batch[StateT]:
        """A batch that goes past a record, leaves a dead letter, and tells the run what stands in its place."""
        batch: Batch[StateT] = Batch(at=cloudevents.utc_now(), published=published)
        batch.offsets = {record.partition: {record.topic: record.offset + 1}}
        self._positions[TopicPartition(record.topic, record.partition)] = record.offset + 1
        assembly = Assembly(self._kit, self._memory, batch)
        if isinstance(unread.error, RejectedRecord):
            await self._reject([(record, unread.error)], {}, assembly)
        else:
            assembly.bury(record, unread.error)
        if unread.told is not None:
            await self._warm([(None, unread.told)])
            state = self._memory.cache.get(unread.told.run_id)
            if state is not None and self._kit.domain.partition(state) == record.partition:
                assembly.take(None, unread.told)
        batch.epochs = {partition: self._claims[partition].epoch for partition in assembly.touched_partitions()}
        return batch

    async def _write_alone(self, batch: Batch[StateT]) -> None:
        """Write a batch before anything of it is remembered. Raises _Refused, and then nothing has happened."""
        self._creating = frozenset(batch.created)
        try:
            duplicates = await self._commit(batch)
        except Exception as error:
            self._memory.admission.settled(but=self._memory.starts)
            if is_refusal(error):
                raise _Refused(error) from error
            raise
        self._remember_decided(batch)
        await self._written_through(batch, duplicates)
        self._creating = frozenset()

    async def _turn(self, polled: Records) -> None:
        now = cloudevents.utc_now()
        due = self._memory.timers.take_due(now, MAX_TIMERS_A_BATCH)
        await self._note_due(due)
        starts, self._memory.starts = self._memory.starts, []
        told, self._memory.told = self._memory.told, []
        if not polled and not due and not starts and not told:
            await self._written()
            await self._forget_published()
            # What is no record, such as the marker of a transaction, is passed without a batch.
            self._positions |= self._subscription.positions()
            await self._commit_offsets(after_s=IDLE_OFFSET_COMMIT_EVERY_S)
            self._kit.outage.over()
            return
        published, self._published = self._published, []
        batch: Batch[StateT] = Batch(at=now, published=published)
        assembly = Assembly(self._kit, self._memory, batch)
        messages: list[tuple[Arrival | None, Addressed]]
        messages = [(None, Addressed(run_id, self._kit.domain.start)) for run_id in starts]
        messages.extend((None, answer) for answer in told)
        messages.extend(await self._read(polled, assembly))
        messages.extend((None, Addressed(run_id, self._kit.domain.tick)) for run_id in due)
        await self._decide(messages, assembly)
        for run_id in due:
            if run_id not in batch.states:
                assembly.rearm_untouched(run_id)
        batch.epochs = {partition: self._claims[partition].epoch for partition in assembly.touched_partitions()}
        await self._written()
        self._remember_decided(batch)
        self._creating = frozenset(batch.created)
        timed = {message.run_id for arrival, message in messages if arrival is None}
        self._under_way = asyncio.create_task(self._write(batch, timed), name="batch")
        if len(messages) < OVERLAP_FROM_MESSAGES or batch.queued or self._memory.admission.has_lines:
            await self._written()  # who begins next is read from the database

    async def _note_due(self, due: Sequence[UUID]) -> None:
        """Write down which runs are looked at because their time has come, if they may have ended another process."""
        held: dict[int, list[datetime]] = {}
        for run_id in due:
            if (known := self._held_runs.pop(run_id, None)) is not None:
                partition, due_at = known
                held.setdefault(partition, []).append(due_at)
        if held:
            await self._written()
            life = self._kit.suspicion.life
            await self._kit.store.note([timers_in_hand(place, moments, life) for place, moments in held.items()])

    async def _decide(self, messages: Sequence[tuple[Arrival | None, Addressed]], assembly: Assembly[StateT]) -> None:
        await self._warm(messages)
        for number, (arrival, message) in enumerate(messages, start=1):
            assembly.take(arrival, message)
            if number % DECIDED_AT_ONCE == 0:
                await asyncio.sleep(0)
        if assembly.rejected:
            await self._reject(assembly.rejected, _beside(messages), assembly)

    async def _read(self, polled: Records, assembly: Assembly[StateT]) -> list[tuple[Arrival | None, Addressed]]:
        """Decode record by record; what does not decode becomes a dead letter."""
        records = [record for group in polled.values() for record in group]
        resolved = await claim_check.resolve(self._kit.pool, records)
        messages: list[tuple[Arrival | None, Addressed]] = []
        rejected: list[tuple[Record[Any, Any], RejectedRecord]] = []
        for tp, group in polled.items():
            for record in group:
                try:
                    self._kit.domain.check_size(self._topics[tp.topic], record)
                    body = claim_check.body(record, resolved)
                    arrival = Arrival(self._topics[tp.topic], record, body, assembly.batch.at)
                    messages.append((arrival, self._kit.domain.read(arrival)))
                except RejectedRecord as error:
                    rejected.append((record, _bare(error)))
                except UndecodableRecord as error:
                    assembly.bury(record, error)
                except Exception as error:
                    # Whatever a decoder does with strange bytes, it does it to this record alone.
                    self._kit.service.log.exception("a record could not be read", record=bus.place(record))
                    defect = UndecodableRecord("internal", f"{type(error).__name__} while it was read")
                    unread = self._kit.domain.unread(self._topics[tp.topic], record, defect)
                    if isinstance(unread.error, RejectedRecord):
                        rejected.append((record, _bare(unread.error)))
                    else:
                        assembly.bury(record, unread.error)
                    if unread.told is not None:
                        unread_record = Arrival(self._topics[tp.topic], record, b"", assembly.batch.at)
                        messages.append((unread_record, unread.told))
                if len(record.value or b"") > LARGE_BYTES:
                    await asyncio.sleep(0)
            next_offset = group[-1].offset + 1
            assembly.batch.offsets.setdefault(tp.partition, {})[tp.topic] = next_offset
            self._positions[tp] = next_offset
        if rejected:
            await self._reject(rejected, _beside(messages), assembly)
        return messages

    async def _reject(
        self,
        rejected: Sequence[tuple[Record[Any, Any], RejectedRecord]],
        beside: Mapping[TaskKey, bytes | None],
        assembly: Assembly[StateT],
    ) -> None:
        """Bury what is refused, but for repeats: a task that is fit, here or before, has its run and one outcome.

        What could not be compared with that task is buried as well, without an outcome `rejected` for the task.
        """
        known = dict(beside)
        if asked := {error.task for _, error in rejected if error.task}:
            await self._written()
            known |= await self._kit.store.known(asked)
        repeated: set[TaskKey] = set()
        for record, error in rejected:
            if error.task is None or error.task not in known:
                assembly.bury(record, error)
                continue
            if error.fingerprint is None:
                assembly.bury(record, RejectedRecord(error.code, error.message, tenant=error.tenant, replies=()))
                repeated.add(error.task)
                continue
            submission = Submission(record, error.task, error.fingerprint)
            if submission.differs(known[error.task]):
                assembly.bury(record, self._kit.domain.conflict(submission))
            else:
                self._kit.service.health.count("duplicate_tasks")
                repeated.add(error.task)
        if repeated:
            await self._send_again(repeated)

    async def _warm(self, messages: Sequence[tuple[Arrival | None, Addressed]]) -> None:
        """Bring the runs of this batch into the cache. What is read must have been written before."""
        cache = self._memory.cache
        wanted = {message.run_id for _, message in messages if not message.creates}
        wanted.update(message.witness for _, message in messages if message.witness is not None)
        missing = {run_id for run_id in wanted if run_id not in cache}
        if missing or any(message.run_id in self._creating for _, message in messages):
            await self._written()
            if missing := {run_id for run_id in missing if run_id not in cache}:
                cache.update(await self._kit.store.load(sorted(missing)))

    async def _written(self) -> None:
        """Wait until the batch under way is committed and published; raises what it met."""
        if self._under_way is not None:
            await self._under_way
            self._under_way, self._creating = None, frozenset()
            self._kit.outage.over()

    async def _abandon(self) -> None:
        """The session ends: what its last batch has come to is for the next one to find out."""
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.gather(self._under_way, return_exceptions=True)

    def _remember_decided(self, batch: Batch[StateT]) -> None:
        """What the next batch is decided on. A run that is only now created counts when that is certain."""
        created = frozenset(batch.created)
        for run_id in batch.disarmed:
            self._memory.timers.disarm(run_id)
        for run_id, (_, due_at) in batch.armed.items():
            if run_id not in created:
                self._memory.timers.arm(run_id, due_at)
        for run_id, state in batch.states.items():
            if run_id not in created:
                self._remember(run_id, state)
        self._memory.admission.settled(but=created.union(self._memory.starts))
        while len(self._memory.cache) > MAX_CACHED:
            self._memory.cache.popitem(last=False)

    def _remember_created(self, batch: Batch[StateT], duplicates: set[UUID]) -> None:
        for run_id in batch.created:
            if run_id in duplicates:
                self._kit.service.health.count("duplicate_tasks")
                self._memory.admission.give_up(run_id)
                continue
            if run_id in batch.armed:
                self._memory.timers.arm(run_id, batch.armed[run_id][1])
            self._remember(run_id, batch.states[run_id])
        self._settle_lines(batch, duplicates)

    def _remember(self, run_id: UUID, state: StateT) -> None:
        """Hold a run in the cache, unless it is over or with a person: if it is heard of again, it is read again."""
        cache = self._memory.cache
        self._settle(run_id, state)
        if self._memory.timers.due_at(run_id) is None:  # time alone will not change it
            cache.pop(run_id, None)
        else:
            cache[run_id] = state
            cache.move_to_end(run_id)

    async def _write(self, batch: Batch[StateT], timed: Collection[UUID]) -> None:
        """Commit a batch, then publish what it sends.

        Raises:
            BatchRefused: the database refuses what is in it; its parts are under suspicion now.
        """
        try:
            duplicates = await self._commit(batch)
        except Exception as error:
            if not is_refusal(error):
                raise
            for partition, offsets in batch.offsets.items():
                for topic, offset in offsets.items():
                    self._kit.suspicion.distrust(topic, partition, offset)
            self._kit.suspicion.runs.update(timed)
            raise BatchRefused(error) from error
        await self._written_through(batch, duplicates)

    async def _commit(self, batch: Batch[StateT]) -> set[UUID]:
        failpoints.hit("decider.before_commit")
        duplicates = await self._kit.store.commit(batch)
        failpoints.hit("decider.after_commit")
        return duplicates

    async def _written_through(self, batch: Batch[StateT], duplicates: set[UUID]) -> None:
        """Remember what has been committed, and publish what it sends."""
        self._remember_created(batch, duplicates)
        self._tell(batch, duplicates)
        told = await self._kit.store.asked_of_it(batch)
        self._memory.told.extend(told)  # the next batch may have taken the list that was there before
        await self._publish([row for row in batch.outbox if row.key.run_id not in duplicates])
        if duplicates or batch.repeats:
            await self._answer_repeats(batch, duplicates)
        await self._choose_starts()
        await self._commit_offsets()

    def _tell(self, batch: Batch[StateT], duplicates: Collection[UUID]) -> None:
        """Log what has happened, now that it has."""
        service = self._kit.service
        for run_id, notice in batch.notices:
            if run_id not in duplicates:
                getattr(service.log, notice.level)(notice.event, **notice.fields)
                if notice.counter is not None:
                    service.health.count(notice.counter)

    async def _commit_offsets(self, after_s: float = OFFSET_COMMIT_EVERY_S) -> None:
        """Tell Kafka how far we are, if that was `after_s` seconds ago: scaling and alerts look at the lag."""
        if self._positions == self._committed or time.monotonic() - self._offsets_committed_at < after_s:
            return
        positions, self._offsets_committed_at = dict(self._positions), time.monotonic()
        if await self._subscription.commit(positions):
            self._committed = positions

    def _line(self, state: StateT) -> Line:
        return Line(self._kit.domain.partition(state), *self._kit.domain.kind(state))

    def _settle_lines(self, batch: Batch[StateT], duplicates: set[UUID]) -> None:
        admission = self._memory.admission
        for run_id in batch.queued:
            if run_id not in duplicates:
                admission.queue(Waiting(self._line(batch.states[run_id]), batch.at, run_id))
        for run_id in batch.dequeued:
            admission.leave(run_id, self._line(batch.states[run_id]))

    def _settle(self, run_id: UUID, state: StateT) -> None:
        """What a committed run means to admission."""
        admission = self._memory.admission
        if self._kit.domain.standing(state) is not Standing.ACTIVE:
            admission.release(run_id)
        elif not admission.confirm(run_id):
            admission.occupy(run_id, self._line(state))

    async def _choose_starts(self) -> None:
        """Give the room that has become free to those who wait."""
        admission = self._memory.admission
        if short := admission.short():
            admission.fill(short, await self._kit.store.heads(short))
        self._memory.starts += admission.take(MAX_STARTS_A_BATCH)

    async def _answer_repeats(self, batch: Batch[StateT], duplicates: Collection[UUID]) -> None:
        """Tell who has published a known task again what came of it, and who has taken its id for another that it has.

        If a refusal is lost here, its task is published again by a client that has heard nothing.
        """
        repeats = [*batch.repeats, *(batch.submissions[each] for each in duplicates if each in batch.submissions)]
        known = await self._kit.store.known({each.task for each in repeats}) if repeats else {}
        others = [each for each in repeats if each.differs(known.get(each.task))]
        if others:
            await self._refuse(others)
        taken = {id(each) for each in others}
        again = {each.task for each in repeats if id(each) not in taken}
        again |= {self._kit.domain.task(batch.states[each]) for each in duplicates if each not in batch.submissions}
        if again:
            await self._send_again(again)

    async def _refuse(self, others: Sequence[Submission]) -> None:
        """Bury tasks whose id belongs to another one, and answer them, in a statement of their own: there are few."""
        refusals: Batch[StateT] = Batch()
        assembly = Assembly(self._kit, self._memory, refusals)
        for submission in others:
            assembly.bury(submission.record, self._kit.domain.conflict(submission))
        refusals.epochs = {partition: self._claims[partition].epoch for partition in assembly.touched_partitions()}
        await self._kit.store.commit(refusals)
        self._tell(refusals, ())
        await self._publish(refusals.outbox)

    async def _send_again(self, repeated: Collection[TaskKey]) -> None:
        """Whoever publishes a task again may have lost its outcome. If it is lost here, it is asked for again."""
        ended = await self._kit.store.ended(repeated)
        self._kit.service.health.count("outcomes_again", len(ended))
        for run_id, state in ended.items():
            await self._publish(outbox_rows(self._kit.envelope, run_id, self._kit.domain.again(state)))

    async def _publish(self, rows: Sequence[OutboxRow]) -> None:
        """Publish committed rows in order. While Kafka is gone nothing else may overtake them."""
        while rows and not self._leaves_rows:
            try:
                await self._publisher.publish([row.outgoing for row in rows])
            except PublishFailed as error:
                self._kit.service.health.beat(LOOP)
                if self._kit.service.stopping.is_set():
                    self._leaves_rows = True  # the next owner publishes them
                    return
                await self._kit.outage.wait(error, unless=self._kit.service.stopping)
            except MessagesRefused as error:
                await self._bury_messages([rows[position] for position in error.positions], error.cause)
                self._published.extend(row.key for row in rows)
                return
            else:
                self._published.extend(row.key for row in rows)
                return

    async def _bury_messages(self, rows: Sequence[OutboxRow], cause: BaseException) -> None:
        """Keep what Kafka never takes as dead letters, so that nothing waits behind it."""
        name, now = self._kit.service.name, cloudevents.utc_now()
        dead = [
            dead_letters.dead_message(name, row.outgoing, f"{row.key.run_id}:{row.key.position}", cause, now)
            for row in rows
        ]
        for row in rows:
            self._kit.service.log.error(
                "a message is refused by Kafka", topic=row.outgoing.topic, run_id=str(row.key.run_id), error=repr(cause)
            )
        await dead_letters.store(self._kit.pool, dead)
        topic = self._kit.settings.topic(topics.DEAD_LETTERS)
        events = [dead_letters.event(one, name, topic) for one in dead]
        if rows[0].outgoing.topic != topic:
            await self._publisher.publish(events)

    async def _forget_published(self) -> None:
        if self._published:
            published, self._published = self._published, []
            failpoints.hit("decider.before_forget")
            await self._kit.store.forget(published)
            failpoints.hit("decider.after_forget")


def _beside(messages: Sequence[tuple[Arrival | None, Addressed]]) -> dict[TaskKey, bytes | None]:
    """The fit tasks of a batch, and what they say."""
    return {message.task: message.fingerprint for _, message in messages if message.task is not None}
