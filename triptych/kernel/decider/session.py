"""One membership in the consumer group: what is owned, what is polled, what is committed and published.

Ownership is an epoch in Postgres and not a belief about Kafka. The database refuses the statement of a process that was
replaced, also when that process does not know it yet. A session never outlives a doubt; the loop starts another.

While one batch is written and published, the next is decided on what the first will have made of its runs
(docs/decisions/0011). So memory may be ahead of the database, by one batch and never for longer than the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic
from uuid import UUID

from aiokafka.abc import ConsumerRebalanceListener

from triptych.kernel import failpoints, timestamps
from triptych.kernel.decider.admission import AdmissionControl, AdmissionState, QueueKey, WaitingRun
from triptych.kernel.decider.batch import BatchBuilder, DeciderContext, PartitionState, outbox_messages
from triptych.kernel.decider.contract import (
    Batch,
    InboundRecord,
    PartitionClaim,
    RejectedRecord,
    RunMessage,
    StateT,
    Submission,
    TaskKey,
    UnreadRecord,
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
from triptych.kernel.kafka.suspect_records import RecordsInFlight, run_in_flight, timers_in_flight
from triptych.kernel.postgres import claim_check
from triptych.kernel.postgres.outbox import OutboxKey, OutboxMessage
from triptych.kernel.process.outage import KAFKA_GONE, POSTGRES_GONE, is_refusal
from triptych.schemas import topics

LOOP = "decider"
IDLE_POLL_MS = 500
MAX_CACHED = 20_000
MAX_TIMERS_A_BATCH = 500
MAX_STARTS_A_BATCH = 500
OVERLAP_FROM_MESSAGES = 250
"""While a batch of so many messages is written, the next one is decided. Smaller batches wait and become larger."""
DECIDED_AT_ONCE = 50
"""After so many messages, deciding yields to the batch under way."""
LARGE_BYTES = 65_536
"""After a record of this size, reading yields to other tasks."""
OFFSET_COMMIT_EVERY_S = 5.0
IDLE_OFFSET_COMMIT_EVERY_S = 0.5
"""An idle process commits offsets sooner, since that delays no batch."""
REFUSED_RUN_DELAY = timedelta(minutes=10)
"""A run that the database cannot store is looked at again after this."""
DEADLY_RUN_DELAY = timedelta(days=3650)
"""Only a message moves a run again that ended its processes, and such a message is dead-lettered as deadly."""


class _Refused(Exception):
    """The database refuses a batch that was written alone."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _bare(error: RejectedRecord) -> RejectedRecord:
    """Return the error without its traceback and its causes.

    Their frames hold the records that were polled with it, in a cycle that a collector finds a gigabyte later.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class Session(ConsumerRebalanceListener, Generic[StateT]):  # type: ignore[misc]  # aiokafka is untyped
    """Takes batches for as long as its claims hold."""

    def __init__(self, context: DeciderContext[StateT], publisher: Publisher) -> None:
        self._context, self._publisher = context, publisher
        self._topics = {context.settings.topic(noun): noun for noun in context.domain.nouns}
        group = f"{context.settings.topic_prefix}.{context.service.name}"
        self._subscription = context.kafka.subscribe(tuple(self._topics), group, self, one_owner=True)
        self._inputs: Inputs | None = None
        """The topics as they were when their partitions were claimed."""
        self.problem: str | None = None
        """Why the topics do not fit together, as far as is known."""
        self._busy = asyncio.Lock()
        self._generation = 0
        self._failure: BaseException | None = None
        self._claims: dict[int, PartitionClaim] = {}
        self._partition_state = self._empty_partition_state(partitions=1)
        self._backlog = Backlog(context.settings.batch_max_records)
        self._held: dict[TopicPartition, int] = {}
        """Where each partition ended when it was claimed: what it held may have ended the process before this one."""
        self._held_runs: dict[UUID, tuple[int, datetime]] = {}
        """Runs whose timers were there when their partition was claimed, and when they were due: so may these have."""
        self._under_way: asyncio.Task[None] | None = None
        self._creating: frozenset[UUID] = frozenset()
        """Runs that the batch under way creates, unless their tasks have a run already."""
        self._published: list[OutboxKey] = []
        self._numbers = itertools.count(1)
        self._leaves_rows = False
        """Rows were left to the next owner, and nothing may overtake them."""
        self._positions: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._offsets_committed_at = time.monotonic()

    async def look(self) -> None:
        """Check that the topics and partitions are those that were claimed, and that the topics fit together.

        Raises:
            KafkaError: no broker answers.
        """
        claims = self._claims
        with contextlib.suppress(*POSTGRES_GONE):
            newest = await self._context.store.epochs(sorted(claims))
            lost = tuple(number for number, claim in claims.items() if newest.get(number) != claim.epoch)
            if lost and claims is self._claims and not self._busy.locked():  # else it shows when that is written
                self._failure = Fenced(lost)
        cluster = await self._subscription.describe()
        if self._inputs is not None and (replaced := self._inputs.replaced(cluster)):
            self._failure = TopicsReplacedError(replaced)
        self._log_topics(Inputs(tuple(self._topics), cluster).problem)

    async def run(self) -> None:
        """Take batches until the service stops, or something ends the session."""
        async with self._subscription:
            try:
                while not self._context.service.stopping.is_set():
                    await self._take_one()
                async with self._busy:
                    await self._wait_until_written()
                    await self._show_changes(None)
                    await self._forget_published()
                    await self._commit_offsets(after_s=0.0)
            finally:
                await self._abandon()

    async def _take_one(self) -> None:
        """Poll once, unless enough is waiting, and take one portion."""
        generation = self._generation
        polled = {} if self._backlog else await self._subscription.poll(self._wait_ms())
        if polled:
            timestamps.mark("decider.polled")
        async with self._busy:
            self._context.service.health.beat(LOOP)
            if self._failure is not None:
                raise self._failure
            if generation != self._generation:
                self._put_back(polled)
            elif self._claims:
                self._backlog.put(polled)
                await self._take(self._backlog.take(self._context.suspicion.is_suspect))

    def _wait_ms(self) -> int:
        """Return how long to wait for records when nothing else is due. A batch under way may lead to more work."""
        if self._under_way is not None or self._partition_state.starts or self._partition_state.answers:
            return 0
        now, due_at = cloudevents.utc_now(), self._context.store.projections_due_at() if self._claims else None
        wait_ms = self._partition_state.timers.wait_ms(now, IDLE_POLL_MS)
        return (
            wait_ms if due_at is None else min(wait_ms, max(0, math.ceil((due_at - now) / timedelta(milliseconds=1))))
        )

    def _empty_partition_state(self, partitions: int) -> PartitionState[StateT]:
        return PartitionState(AdmissionControl(self._context.domain.limits, partitions))

    def _log_topics(self, problem: str | None) -> None:
        """Log once what is wrong with the topics, and once that it is over."""
        if problem != self.problem:
            self.problem, log = problem, self._context.service.log
            if problem is None:
                log.info("the topics fit together again")
            else:
                log.error("the topics do not fit together", problem=problem)

    # --- ownership --------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Wait for the batch under way; from here on nothing of these partitions is touched."""
        async with self._busy:
            try:
                await self._wait_until_written()
                await self._show_changes(None)
                await self._commit_offsets(after_s=0.0)
            except (TriptychError, *POSTGRES_GONE, *KAFKA_GONE) as error:
                self._failure = error
            self._generation += 1
            self._claims, self._partition_state = {}, self._empty_partition_state(partitions=1)
            self._held_runs = {}
            self._positions, self._committed = {}, {}
            self._backlog.clear()
            self._context.service.log.debug("partitions revoked", count=len(revoked))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Claim the partitions, go to the stored offsets, and publish what was left behind."""
        async with self._busy:
            try:
                await self._claim(assigned)
            except (TriptychError, *POSTGRES_GONE, *KAFKA_GONE) as error:
                self._failure = error  # the loop raises it; an exception here would only be logged

    async def _claim(self, assigned: set[TopicPartition]) -> None:
        self._generation += 1
        cluster = await self._context.kafka.describe(tuple(self._topics))
        self._inputs = Inputs(tuple(self._topics), cluster)
        self._log_topics(self._inputs.problem)
        if beyond := {tp for tp in assigned if tp.partition >= self._inputs.common}:
            self._subscription.consumer.pause(*beyond)
            assigned = assigned - beyond
        partitions = sorted({tp.partition for tp in assigned})
        failpoints.hit("decider.before_claim")
        claims = await self._context.store.claim(partitions, self._context.settings.instance, cluster)
        failpoints.hit("decider.after_claim")
        await self._context.store.catch_up(partitions)
        left_behind = await self._context.store.left_behind(partitions)
        messages = [message for row in left_behind for message in row.messages]
        self._context.service.health.count("outbox_left_behind", len(messages))
        if await self._publish(messages):
            self._published.extend(row.key for row in left_behind)
        failpoints.hit("decider.after_left_behind")
        self._partition_state = await self._read_partition_state(partitions, self._inputs.common)
        self._claims = {claim.partition: claim for claim in claims}
        self._backlog.clear()
        self._positions = await self._start_offsets(assigned)
        self._held = await self._subscription.consumer.end_offsets(list(assigned))
        starts = {(tp.topic, tp.partition): offset for tp, offset in self._positions.items()}
        readings = await self._context.store.readings(partitions)
        self._context.suspicion.suspect_records(readings, starts)
        self._context.suspicion.suspect_timers(
            readings, [(run_id, due_at, partition) for run_id, (partition, due_at) in self._held_runs.items()]
        )
        for tp, offset in self._positions.items():
            self._subscription.consumer.seek(tp, offset)
        self._generation += 1  # what was polled meanwhile came from before the seek
        self._context.service.health.started()
        self._context.service.log.info(
            "partitions claimed",
            partitions=partitions,
            epochs=[claim.epoch for claim in claims],
            left_behind=len(messages),
            timers=len(self._partition_state.timers),
        )

    async def _read_partition_state(self, partitions: list[int], of: int) -> PartitionState[StateT]:
        """Read what the database holds of these partitions, out of `of` partitions in all."""
        store = self._context.store
        partition_state = self._empty_partition_state(partitions=max(1, of))
        armed = await store.timers(partitions)
        partition_state.timers = Timers((run_id, due_at) for run_id, due_at, _ in armed)
        self._held_runs = {run_id: (partition, due_at) for run_id, due_at, partition in armed}
        partition_state.admission.load(await store.active(partitions), await store.waiting(partitions))
        partition_state.starts = partition_state.admission.take(MAX_STARTS_A_BATCH)
        return partition_state

    async def _start_offsets(self, assigned: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where to go on: at the offset that was stored with the state it led to, else at the beginning.

        The broker is asked once: an answer waits behind a fetch, and a member that waits here sends no heartbeat.
        """
        stored = {tp: self._claims[tp.partition].offsets.get(tp.topic) for tp in assigned}
        unknown = [tp for tp, offset in stored.items() if offset is None]
        first: dict[TopicPartition, int] = await self._subscription.consumer.beginning_offsets(unknown)
        return {tp: offset if offset is not None else first[tp] for tp, offset in stored.items()}

    def _put_back(self, polled: Records) -> None:
        """Read records again of a poll that spans a rebalance: they may be from before or after the seek."""
        for tp in polled.keys() & self._positions.keys():
            self._subscription.consumer.seek(tp, self._positions[tp])

    # --- a batch ----------------------------------------------------------------------------------

    async def _take(self, portion: Portion) -> None:
        """Decide and write a portion. Nothing that may end this process is touched before it is written down."""
        if portion.is_suspect:
            await self._wait_until_written()
            ((record,),) = portion.records.values()
            await self._take_alone(record)
            return
        readings = [
            RecordsInFlight(tp.topic, tp.partition, records[0].offset, records[-1].offset, self._context.suspicion.life)
            for tp, records in portion.records.items()
            if records[0].offset < self._held.get(tp, 0)
        ]
        if readings:
            await self._wait_until_written()
            await self._note(readings)
        if self._context.suspicion.runs:
            await self._take_time_alone()
        await self._take_batch(portion.records)

    async def _note(self, readings: Sequence[RecordsInFlight]) -> list[RecordsInFlight]:
        """Write down what is about to be read, and in how many lives it was."""
        failpoints.hit("decider.before_note")
        noted = await self._context.store.note(readings)
        failpoints.hit("decider.after_note")
        return noted

    async def _take_alone(self, record: Record[Any, Any]) -> None:
        """Take a record that may end this process, or that the database may refuse."""
        place = RecordsInFlight(
            record.topic, record.partition, record.offset, record.offset, self._context.suspicion.life
        )
        (noted,) = await self._note([place])
        if noted.lives > self._context.settings.max_deaths:
            batch = await self._unread(record, noted.lives - 1)
        else:
            batch = await self._decide_records([record])
        try:
            await self._write_alone(batch)
        except _Refused as refused:
            self._context.service.log.warning("a record is refused by the database", record=bus.place(record))
            await self._dead_letter_refused(record, batch, refused.cause)
        self._context.suspicion.passed(record)

    async def _dead_letter_refused(self, record: Record[Any, Any], batch: Batch[StateT], cause: BaseException) -> None:
        """Pass a record whose batch the database refuses, and tell its run or client, if that can be stored."""
        error = UndecodableRecord("unstorable", f"the database cannot store what it leads to: {cause}")
        task = next((self._context.domain.task(batch.states[run_id]) for run_id in batch.created), None)
        unread = self._context.domain.unread(self._topics[record.topic], record, error, task)
        try:
            await self._write_alone(await self._dead_letter_batch(record, unread, batch.published))
        except _Refused:
            await self._write_alone(await self._dead_letter_batch(record, UnreadRecord(error), batch.published))

    async def _take_time_alone(self) -> None:
        """Decide each run alone whose timer was due in a batch that the database refused."""
        runs, self._context.suspicion.runs = self._context.suspicion.runs, set()
        for run_id in sorted(runs):
            message = await self._message_to_suspect(run_id)
            if message is None:
                continue
            batch = self._new_batch()
            builder = BatchBuilder(self._context, self._partition_state, batch)
            await self._load_runs([(None, message)])
            builder.take(None, message)
            if run_id not in batch.states:
                builder.rearm_untouched(run_id)
            batch.epochs = {partition: self._claims[partition].epoch for partition in builder.touched_partitions()}
            try:
                await self._write_alone(batch)
            except _Refused as refused:
                self._context.service.log.exception(
                    "a run cannot be stored; it is left alone", run_id=str(run_id), error=str(refused.cause)
                )
                self._published = [*batch.published, *self._published]
                self._partition_state.timers.arm(run_id, batch.at + REFUSED_RUN_DELAY)

    async def _message_to_suspect(self, run_id: UUID) -> RunMessage | None:
        """Return the message to a suspect run: that time has passed, or after too many deaths that it is given up.

        None: giving it up has ended processes too, so the run is left alone.
        """
        held = self._held_runs.pop(run_id, None)
        if held is None:  # the database refused it in this life
            return RunMessage(run_id, self._context.domain.tick)
        partition, max_deaths = held[0], self._context.settings.max_deaths
        (noted,) = await self._context.store.note([run_in_flight(partition, run_id, self._context.suspicion.life)])
        deaths, log = noted.lives - 1, self._context.service.log
        if deaths < max_deaths:
            return RunMessage(run_id, self._context.domain.tick)
        if deaths < 2 * max_deaths:
            log.error("a run is given up: it ends its process each time", run_id=str(run_id), deaths=deaths)
            cause = f"{deaths} processes died while they looked at this run alone. See their logs; resume or abort it"
            return RunMessage(run_id, self._context.domain.given_up(cause))
        log.error("a run is left alone: it cannot even be given up", run_id=str(run_id), deaths=deaths)
        batch = self._new_batch()
        batch.armed[run_id] = partition, batch.at + DEADLY_RUN_DELAY
        batch.epochs = {partition: self._claims[partition].epoch}
        await self._write_alone(batch)
        return None

    def _new_batch(self) -> Batch[StateT]:
        published, self._published = self._published, []
        return Batch(at=cloudevents.utc_now(), number=next(self._numbers), published=published)

    async def _decide_records(self, records: Sequence[Record[Any, Any]]) -> Batch[StateT]:
        """Decide what follows from these records, and from nothing else."""
        batch = self._new_batch()
        builder = BatchBuilder(self._context, self._partition_state, batch)
        polled: Records = {}
        for record in records:
            polled.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
        messages = await self._read(polled, builder)
        await self._decide(messages, builder)
        batch.epochs = {partition: self._claims[partition].epoch for partition in builder.touched_partitions()}
        return batch

    async def _unread(self, record: Record[Any, Any], deaths: int) -> Batch[StateT]:
        """Make a dead letter of a record, and read only its key and headers."""
        message = f"{deaths} processes died while they held only this record; it was not read again"
        error = UndecodableRecord("deadly_record", message)
        self._context.service.log.error("a record is dead-lettered unread", record=bus.place(record), deaths=deaths)
        published, self._published = self._published, []
        return await self._dead_letter_batch(
            record, self._context.domain.unread(self._topics[record.topic], record, error), published
        )

    async def _dead_letter_batch(
        self, record: Record[Any, Any], unread: UnreadRecord, published: list[OutboxKey]
    ) -> Batch[StateT]:
        """Make a batch that passes a record, leaves a dead letter, and tells the run what replaces the record."""
        batch: Batch[StateT] = Batch(at=cloudevents.utc_now(), number=next(self._numbers), published=published)
        batch.offsets = {record.partition: {record.topic: record.offset + 1}}
        self._positions[TopicPartition(record.topic, record.partition)] = record.offset + 1
        builder = BatchBuilder(self._context, self._partition_state, batch)
        if isinstance(unread.error, RejectedRecord):
            await self._reject([(record, unread.error)], {}, builder)
        else:
            builder.dead_letter(record, unread.error)
        if unread.message is not None:
            await self._load_runs([(None, unread.message)])
            state = self._partition_state.cache.get(unread.message.run_id)
            if state is not None and self._context.domain.partition(state) == record.partition:
                builder.take(None, unread.message)
        batch.epochs = {partition: self._claims[partition].epoch for partition in builder.touched_partitions()}
        return batch

    async def _write_alone(self, batch: Batch[StateT]) -> None:
        """Write a batch before anything of it is remembered. Raises _Refused, and then nothing has happened."""
        self._creating = frozenset(batch.created)
        try:
            duplicates = await self._commit(batch)
        except Exception as error:
            self._partition_state.admission.cancel_unconfirmed(but=self._partition_state.starts)
            if is_refusal(error):
                raise _Refused(error) from error
            raise
        self._remember_decided(batch)
        await self._finish_write(batch, duplicates)
        self._creating = frozenset()

    async def _take_batch(self, polled: Records) -> None:
        now = cloudevents.utc_now()
        due = self._partition_state.timers.take_due(now, MAX_TIMERS_A_BATCH)
        await self._note_due(due)
        starts, self._partition_state.starts = self._partition_state.starts, []
        answers, self._partition_state.answers = self._partition_state.answers, []
        if not polled and not due and not starts and not answers:
            await self._wait_until_written()
            await self._show_changes(now)
            await self._forget_published()
            # An offset without a record, such as the marker of a transaction, is passed without a batch.
            self._positions |= self._subscription.positions()
            await self._commit_offsets(after_s=IDLE_OFFSET_COMMIT_EVERY_S)
            self._context.outage.over()
            return
        published, self._published = self._published, []
        batch: Batch[StateT] = Batch(at=now, number=next(self._numbers), published=published)
        builder = BatchBuilder(self._context, self._partition_state, batch)
        messages: list[tuple[InboundRecord | None, RunMessage]]
        messages = [(None, RunMessage(run_id, self._context.domain.start)) for run_id in starts]
        messages.extend((None, answer) for answer in answers)
        messages.extend(await self._read(polled, builder))
        messages.extend((None, RunMessage(run_id, self._context.domain.tick)) for run_id in due)
        timestamps.mark("decider.read")
        await self._decide(messages, builder)
        timestamps.mark("decider.decided")
        for run_id in due:
            if run_id not in batch.states:
                builder.rearm_untouched(run_id)
        touched = builder.touched_partitions() | self._context.store.projected_partitions(now)
        batch.epochs = {partition: self._claims[partition].epoch for partition in touched}
        await self._wait_until_written()
        self._remember_decided(batch)
        self._creating = frozenset(batch.created)
        timed = {message.run_id for inbound, message in messages if inbound is None}
        if len(messages) < OVERLAP_FROM_MESSAGES or batch.queued or self._partition_state.admission.has_queues:
            await self._write(batch, timed)  # who begins next is read from the database
            self._written()
        else:
            self._under_way = asyncio.create_task(self._write(batch, timed), name="batch")

    async def _show_changes(self, now: datetime | None) -> None:
        """Write the rows that people read and that are due; without a time, all that are not up to date."""
        # What a partition that was lost has not shown yet, its next owner shows.
        if partitions := self._context.store.projected_partitions(now) & self._claims.keys():
            batch = self._new_batch()
            batch.shows_all = now is None
            batch.epochs = {partition: self._claims[partition].epoch for partition in partitions}
            await self._context.store.commit(batch)

    async def _note_due(self, due: Sequence[UUID]) -> None:
        """Write down which runs are looked at because their time has come, if they may have ended another process."""
        held: dict[int, list[datetime]] = {}
        for run_id in due:
            if (known := self._held_runs.pop(run_id, None)) is not None:
                partition, due_at = known
                held.setdefault(partition, []).append(due_at)
        if held:
            await self._wait_until_written()
            life = self._context.suspicion.life
            await self._context.store.note([timers_in_flight(place, moments, life) for place, moments in held.items()])

    async def _decide(
        self, messages: Sequence[tuple[InboundRecord | None, RunMessage]], builder: BatchBuilder[StateT]
    ) -> None:
        await self._load_runs(messages)
        for number, (inbound, message) in enumerate(messages, start=1):
            builder.take(inbound, message)
            if number % DECIDED_AT_ONCE == 0:
                await asyncio.sleep(0)
        if builder.rejected:
            await self._reject(builder.rejected, _beside(messages), builder)

    async def _read(
        self, polled: Records, builder: BatchBuilder[StateT]
    ) -> list[tuple[InboundRecord | None, RunMessage]]:
        """Decode record by record; what does not decode becomes a dead letter."""
        records = [record for group in polled.values() for record in group]
        resolved = await claim_check.resolve(self._context.pool, records)
        messages: list[tuple[InboundRecord | None, RunMessage]] = []
        rejected: list[tuple[Record[Any, Any], RejectedRecord]] = []
        for tp, group in polled.items():
            for record in group:
                try:
                    self._context.domain.check_size(self._topics[tp.topic], record)
                    body = claim_check.body(record, resolved)
                    inbound = InboundRecord(self._topics[tp.topic], record, body, builder.batch.at)
                    messages.append((inbound, self._context.domain.read(inbound)))
                except RejectedRecord as error:
                    rejected.append((record, _bare(error)))
                except UndecodableRecord as error:
                    builder.dead_letter(record, error)
                except Exception as error:
                    # A decoder that fails on strange bytes fails on this record alone.
                    self._context.service.log.exception("a record could not be read", record=bus.place(record))
                    defect = UndecodableRecord("internal", f"{type(error).__name__} while it was read")
                    unread = self._context.domain.unread(self._topics[tp.topic], record, defect)
                    if isinstance(unread.error, RejectedRecord):
                        rejected.append((record, _bare(unread.error)))
                    else:
                        builder.dead_letter(record, unread.error)
                    if unread.message is not None:
                        unread_record = InboundRecord(self._topics[tp.topic], record, b"", builder.batch.at)
                        messages.append((unread_record, unread.message))
                if len(record.value or b"") > LARGE_BYTES:
                    await asyncio.sleep(0)
            next_offset = group[-1].offset + 1
            builder.batch.offsets.setdefault(tp.partition, {})[tp.topic] = next_offset
            self._positions[tp] = next_offset
        if rejected:
            await self._reject(rejected, _beside(messages), builder)
        return messages

    async def _reject(
        self,
        rejected: Sequence[tuple[Record[Any, Any], RejectedRecord]],
        beside: Mapping[TaskKey, bytes | None],
        builder: BatchBuilder[StateT],
    ) -> None:
        """Dead-letter what is refused, but not repeats: a task that was accepted has its run and one outcome.

        A record that cannot be compared with that task becomes a dead letter too, without an outcome `rejected`.
        """
        known = dict(beside)
        if asked := {error.task for _, error in rejected if error.task}:
            await self._wait_until_written()
            known |= await self._context.store.known(asked)
        repeated: set[TaskKey] = set()
        for record, error in rejected:
            if error.task is None or error.task not in known:
                builder.dead_letter(record, error)
                continue
            if error.fingerprint is None:
                builder.dead_letter(record, RejectedRecord(error.code, error.message, tenant=error.tenant, replies=()))
                repeated.add(error.task)
                continue
            submission = Submission(record, error.task, error.fingerprint)
            if submission.differs(known[error.task]):
                builder.dead_letter(record, self._context.domain.conflict(submission))
            else:
                self._context.service.health.count("duplicate_tasks")
                repeated.add(error.task)
        if repeated:
            await self._send_again(repeated)

    async def _load_runs(self, messages: Sequence[tuple[InboundRecord | None, RunMessage]]) -> None:
        """Bring the runs of this batch into the cache. What is read must have been written before."""
        cache = self._partition_state.cache
        wanted = {message.run_id for _, message in messages if not message.creates}
        wanted.update(message.witness for _, message in messages if message.witness is not None)
        missing = {run_id for run_id in wanted if run_id not in cache}
        if missing or any(message.run_id in self._creating for _, message in messages):
            await self._wait_until_written()
            if missing := {run_id for run_id in missing if run_id not in cache}:
                cache.update(await self._context.store.load(sorted(missing)))

    async def _wait_until_written(self) -> None:
        """Wait until the batch under way is committed and published, and raise its error if it failed."""
        if self._under_way is not None:
            await self._under_way
            self._written()

    def _written(self) -> None:
        self._under_way, self._creating = None, frozenset()
        self._context.outage.over()

    async def _abandon(self) -> None:
        """Cancel the batch under way when the session ends. The next session finds out whether it was committed."""
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.gather(self._under_way, return_exceptions=True)

    def _remember_decided(self, batch: Batch[StateT]) -> None:
        """Remember what the next batch is decided on. A run that is only now created counts once that is certain."""
        created = frozenset(batch.created)
        for run_id in batch.disarmed:
            self._partition_state.timers.disarm(run_id)
        for run_id, (_, due_at) in batch.armed.items():
            if run_id not in created:
                self._partition_state.timers.arm(run_id, due_at)
        for run_id, state in batch.states.items():
            if run_id not in created:
                self._remember(run_id, state)
        self._partition_state.admission.cancel_unconfirmed(but=created.union(self._partition_state.starts))
        while len(self._partition_state.cache) > MAX_CACHED:
            self._partition_state.cache.popitem(last=False)

    def _remember_created(self, batch: Batch[StateT], duplicates: set[UUID]) -> None:
        for run_id in batch.created:
            if run_id in duplicates:
                self._context.service.health.count("duplicate_tasks")
                self._partition_state.admission.give_up(run_id)
                continue
            if run_id in batch.armed:
                self._partition_state.timers.arm(run_id, batch.armed[run_id][1])
            self._remember(run_id, batch.states[run_id])
        self._update_queues(batch, duplicates)

    def _remember(self, run_id: UUID, state: StateT) -> None:
        """Cache a run, unless it is over or with a person. Such a run is read again when a message comes."""
        cache = self._partition_state.cache
        self._update_admission(run_id, state)
        if self._partition_state.timers.due_at(run_id) is None:  # time alone will not change it
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
                    self._context.suspicion.suspect_until(topic, partition, offset)
            self._context.suspicion.runs.update(timed)
            raise BatchRefused(error) from error
        await self._finish_write(batch, duplicates)

    async def _commit(self, batch: Batch[StateT]) -> set[UUID]:
        failpoints.hit("decider.before_commit")
        duplicates = await self._context.store.commit(batch)
        failpoints.hit("decider.after_commit")
        timestamps.mark("decider.committed")
        return duplicates

    async def _finish_write(self, batch: Batch[StateT], duplicates: set[UUID]) -> None:
        """Remember what has been committed, and publish what it sends."""
        self._remember_created(batch, duplicates)
        self._log_notices(batch, duplicates)
        answers = await self._context.store.answer_queries(batch, duplicates)
        self._partition_state.answers.extend(answers)  # the next batch may have taken the list that was there before
        if await self._publish([each for each in batch.outbox if each.key.run_id not in duplicates]):
            self._published.extend(row.key for row in batch.outbox_rows())
        if duplicates or batch.repeats:
            await self._answer_repeats(batch, duplicates)
        await self._choose_starts()
        await self._commit_offsets()

    def _log_notices(self, batch: Batch[StateT], duplicates: Collection[UUID]) -> None:
        """Log the notices of a committed batch."""
        service = self._context.service
        for run_id, notice in batch.notices:
            if run_id not in duplicates:
                getattr(service.log, notice.level)(notice.event, **notice.fields)
                if notice.counter is not None:
                    service.health.count(notice.counter)

    async def _commit_offsets(self, after_s: float = OFFSET_COMMIT_EVERY_S) -> None:
        """Commit offsets to Kafka if the last commit was `after_s` seconds ago: scaling and alerts look at the lag."""
        if self._positions == self._committed or time.monotonic() - self._offsets_committed_at < after_s:
            return
        positions, self._offsets_committed_at = dict(self._positions), time.monotonic()
        if await self._subscription.commit(positions):
            self._committed = positions

    def _queue_of(self, state: StateT) -> QueueKey:
        return QueueKey(self._context.domain.partition(state), *self._context.domain.limit_key(state))

    def _update_queues(self, batch: Batch[StateT], duplicates: set[UUID]) -> None:
        admission = self._partition_state.admission
        for run_id in batch.queued:
            if run_id not in duplicates:
                admission.enqueue(WaitingRun(self._queue_of(batch.states[run_id]), batch.at, run_id))
        for run_id in batch.dequeued:
            admission.leave(run_id, self._queue_of(batch.states[run_id]))

    def _update_admission(self, run_id: UUID, state: StateT) -> None:
        """Tell admission the state of a committed run."""
        admission = self._partition_state.admission
        if self._context.domain.admission_state(state) is not AdmissionState.ACTIVE:
            admission.release(run_id)
        elif not admission.confirm(run_id):
            admission.occupy(run_id, self._queue_of(state))

    async def _choose_starts(self) -> None:
        """Choose waiting runs that begin in the free room."""
        admission = self._partition_state.admission
        if short := admission.short():
            admission.fill(short, await self._context.store.heads(short))
        self._partition_state.starts += admission.take(MAX_STARTS_A_BATCH)

    async def _answer_repeats(self, batch: Batch[StateT], duplicates: Collection[UUID]) -> None:
        """Answer repeated tasks: with the outcome, or with a refusal if the id belongs to another task.

        If a refusal is lost here, a client that gets no answer publishes its task again.
        """
        repeats = [*batch.repeats, *(batch.submissions[each] for each in duplicates if each in batch.submissions)]
        known = await self._context.store.known({each.task for each in repeats}) if repeats else {}
        others = [each for each in repeats if each.differs(known.get(each.task))]
        if others:
            await self._refuse(others)
        taken = {id(each) for each in others}
        again = {each.task for each in repeats if id(each) not in taken}
        again |= {self._context.domain.task(batch.states[each]) for each in duplicates if each not in batch.submissions}
        if again:
            await self._send_again(again)

    async def _refuse(self, others: Sequence[Submission]) -> None:
        """Dead-letter tasks whose id belongs to another task, and answer them, in a statement of their own."""
        refusals: Batch[StateT] = Batch(number=next(self._numbers))
        builder = BatchBuilder(self._context, self._partition_state, refusals)
        for submission in others:
            builder.dead_letter(submission.record, self._context.domain.conflict(submission))
        refusals.epochs = {partition: self._claims[partition].epoch for partition in builder.touched_partitions()}
        await self._context.store.commit(refusals)
        self._log_notices(refusals, ())
        if await self._publish(refusals.outbox):
            self._published.extend(row.key for row in refusals.outbox_rows())

    async def _send_again(self, repeated: Collection[TaskKey]) -> None:
        """Send outcomes again: a client that repeats a task may have lost its outcome. It may ask once more."""
        ended = await self._context.store.ended(repeated)
        self._context.service.health.count("outcomes_again", len(ended))
        for run_id, state in ended.items():
            await self._publish(outbox_messages(self._context.envelope, run_id, self._context.domain.again(state)))

    async def _publish(self, messages: Sequence[OutboxMessage]) -> bool:
        """Publish committed messages in order. While Kafka is gone nothing else may overtake them.

        Return whether their rows may go. They stay for the next owner when the process stops first.
        """
        while messages and not self._leaves_rows:
            try:
                await self._publisher.publish([message.outgoing for message in messages])
            except PublishFailed as error:
                self._context.service.health.beat(LOOP)
                if self._context.service.stopping.is_set():
                    self._leaves_rows = True
                    return False
                await self._context.outage.wait(error, unless=self._context.service.stopping)
            except MessagesRefused as error:
                await self._dead_letter_messages([messages[position] for position in error.positions], error.cause)
                return True
            else:
                return True
        return not self._leaves_rows

    async def _dead_letter_messages(self, messages: Sequence[OutboxMessage], cause: BaseException) -> None:
        """Keep what Kafka never takes as dead letters, so that nothing waits behind it."""
        name, now = self._context.service.name, cloudevents.utc_now()
        dead = [
            dead_letters.dead_message(name, each.outgoing, f"{each.key.run_id}:{each.key.position}", cause, now)
            for each in messages
        ]
        for each in messages:
            self._context.service.log.error(
                "a message is refused by Kafka",
                topic=each.outgoing.topic,
                run_id=str(each.key.run_id),
                error=repr(cause),
            )
        await dead_letters.store(self._context.pool, dead)
        topic = self._context.settings.topic(topics.DEAD_LETTERS)
        events = [dead_letters.event(one, name, topic) for one in dead]
        if messages[0].outgoing.topic != topic:
            await self._publisher.publish(events)

    async def _forget_published(self) -> None:
        if self._published:
            published, self._published = self._published, []
            failpoints.hit("decider.before_forget")
            await self._context.store.forget(published)
            failpoints.hit("decider.after_forget")


def _beside(messages: Sequence[tuple[InboundRecord | None, RunMessage]]) -> dict[TaskKey, bytes | None]:
    """Return the valid tasks of a batch with their hashes."""
    return {message.task: message.fingerprint for _, message in messages if message.task is not None}
