"""The intake: raw records become jobs in Postgres, and only later are their offsets committed.

A record that cannot be read becomes a dead letter and never stops the partition. Nothing is taken while
too many jobs wait, but the consumer polls often enough to keep its partitions.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Generic, TypeAlias
from uuid import UUID

from aiokafka import ConsumerRecord
from aiokafka.abc import ConsumerRebalanceListener
from pydantic import ValidationError

from triptych.kernel import failpoints, timestamps
from triptych.kernel.concurrency.cancellation import foreign_cancellation
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import bus, cloudevents
from triptych.kernel.kafka.backlog import Backlog
from triptych.kernel.kafka.bus import Kafka, Record, Subscription, TopicPartition
from triptych.kernel.kafka.dead_letters import DeadRecord, about, dead_record, stated_tenant
from triptych.kernel.kafka.suspect_records import RecordsInFlight, Suspicion
from triptych.kernel.kafka.topic_metadata import ClusterTopics
from triptych.kernel.postgres import claim_check
from triptych.kernel.postgres.database import as_in_rows
from triptych.kernel.process.outage import KAFKA_GONE, POSTGRES_GONE, Outage, is_refusal
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.worker.contract import JobAttempt, RequestT, Worker, WorkerConfig
from triptych.kernel.worker.job_runner import Job, JobRunner
from triptych.kernel.worker.jobs import InboundRequest, JobKey, Jobs
from triptych.kernel.worker.outbox import Finished, Outbox
from triptych.kernel.worker.unpersisted import OVERDUE_S, UnpersistedRequests
from triptych.kernel.worker.withdrawals import Withdrawals
from triptych.schemas import ErrorCode, Grant, Spend, ToolError, codec
from triptych.schemas.topics import WITHDRAWALS

POLL_MS = 250
FULL_WAIT_S = 0.25
STAY_IN_GROUP_S = 60.0
"""Well below `max_poll_interval_ms`, after which a member that does not poll is put out of its group."""
OFFSET_COMMIT_EVERY_S = 1.0
"""Offsets are committed now and then. The request id identifies what is read again after a crash. A commit after each
batch delayed the next one for longer than it took to store it."""
STORED_WITHIN_S, STORED_LOOK_EVERY_S = 2.0, 0.02
"""A process that stops leaves no later than this; what is in no table then is read again."""
FORESEEABLE = timedelta(days=365)
PARTITION_END = 2**31
Polled: TypeAlias = "dict[TopicPartition, list[Record[Any, Any]]]"
LOOP = "intake"

_STORABLE_ID = re.compile(r"[^\x00-\x1f\ud800-\udfff]{1,200}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Intake(ConsumerRebalanceListener, Generic[RequestT]):  # type: ignore[misc]  # aiokafka is untyped
    """Consumes one topic of requests for one process."""

    def __init__(
        self,
        service: Service,
        settings: ServiceSettings,
        config: WorkerConfig,
        worker: Worker[RequestT],
        *,
        jobs: Jobs,
        runner: JobRunner[RequestT],
        outbox: Outbox,
        unpersisted: UnpersistedRequests,
        withdrawals: Withdrawals[RequestT],
        kafka: Kafka,
    ) -> None:
        self._service, self._settings, self._config, self._worker = service.name, settings, config, worker
        self._jobs, self._runner, self._outbox, self._kafka = jobs, runner, outbox, kafka
        self._unpersisted, self._withdrawals = unpersisted, withdrawals
        self._requests_topic = settings.topic(config.request_noun)
        self._withdrawals_topic = settings.topic(WITHDRAWALS)
        self._health, self._stopping = service.health, service.stopping
        self._postgres_outage, self._kafka_outage = Outage(service.log, "postgres"), Outage(service.log, "kafka")
        self._subscription: Subscription | None = None
        self._joining: Subscription | None = None
        self._ends: dict[int, tuple[TopicPartition, int]] = {}
        """Where each partition ended when this process got it."""
        self._attempt = JobAttempt(lease=jobs.lease)
        self._positions: dict[TopicPartition, int] = {}
        """How far each partition was taken in, and is not yet committed. Each assignment begins another."""
        self._committed: dict[TopicPartition, int] = {}
        self._offsets_committed_at = time.monotonic()
        self._suspicion = Suspicion()
        self._topic_ids: dict[str, str] = {}
        self._assigned = asyncio.Event()
        """Set once the process knows what other processes were reading: records are polled before that is known."""
        self._log = service.log

    async def run(self) -> None:
        """Consume until the process stops, over as many subscriptions as it takes."""
        self._health.expect(LOOP, 60.0)
        self._health.depend("kafka", self._probe)
        while not self._stopping.is_set():
            topics = [self._requests_topic, self._withdrawals_topic]
            subscription = self._kafka.subscribe(topics, self._settings.topic(self._config.group), self)
            self._joining = subscription
            try:
                with foreign_cancellation():
                    async with subscription:
                        self._kafka_outage.over()
                        self._subscription = subscription
                        self._health.started()
                        await self._consume(subscription)
                        await self._store_what_is_in_no_table()
                        await self._commit_offsets(subscription)
            except KAFKA_GONE as error:
                self._health.beat(LOOP)
                await self._kafka_outage.wait(error, unless=self._stopping)
            finally:
                self._subscription, self._ends = None, {}
                self._unpersisted.release()

    async def _probe(self) -> None:
        if self._subscription is None:
            raise ConnectionError("not subscribed")
        await self._restart_recreated(self._subscription, await self._subscription.describe())

    async def _restart_recreated(self, subscription: Subscription, cluster: ClusterTopics) -> None:
        """Read a topic from its beginning if it was deleted and created again: Kafka has forgotten the offsets."""
        recreated = {name for name, known in self._topic_ids.items() if cluster.ids.get(name, known) != known}
        self._topic_ids |= cluster.ids
        places = [place for place in subscription.consumer.assignment() if place.topic in recreated]
        if places:
            self._log.warning("topics were created again; reading them from their beginning", topics=sorted(recreated))
            for place in places:
                self._positions.pop(place, None)
                self._committed.pop(place, None)
            await subscription.consumer.seek_to_beginning(*places)

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Commit offsets, so that the next owner begins where this process stopped, and has no cause for suspicion."""
        self._ends = {}
        self._assigned.clear()
        if self._subscription is not None:
            await self._commit_offsets(self._subscription)
        partitions = sorted(source.partition for source in revoked if source.topic == self._requests_topic)
        if partitions:
            with suppress(*POSTGRES_GONE):
                await self._jobs.give_away(self._requests_topic, partitions, self._suspicion.life)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Forget all of these partitions but their ends. Records that are there already may have killed a process.

        Such records are stored before anything is done with them, so that their deliveries are counted. A new owner
        begins at the committed offsets, so from now on only positions of this assignment may be committed.
        """
        self._positions, self._committed = {}, {}
        self._unpersisted.release()
        self._assigned.clear()
        ends: dict[TopicPartition, int] = {}
        try:
            with foreign_cancellation():
                asked = [source for source in assigned if source.topic == self._requests_topic]
                ends = await self._joining.consumer.end_offsets(asked) if self._joining else {}
                await self._mark_suspects({source.partition for source in asked})
        except (*KAFKA_GONE, *POSTGRES_GONE):
            ends = {}
        finally:
            self._ends = {source.partition: (source, end) for source, end in ends.items()}
            self._assigned.set()

    async def _consume(self, subscription: Subscription) -> None:
        left_alone_s = 0.0
        while not self._stopping.is_set():
            self._health.beat(LOOP)
            if not await self._runner.wait_for_room(FULL_WAIT_S):
                if not await self._take(await self._poll_withdrawals(subscription)):
                    return
                left_alone_s += FULL_WAIT_S
                if left_alone_s >= STAY_IN_GROUP_S:
                    left_alone_s = 0.0
                    await _poll_without_taking(subscription)
                continue
            polled = await subscription.poll(round(OVERDUE_S * 1_000) if self._unpersisted else POLL_MS)
            if self._unpersisted:
                self._outbox.persist(self._unpersisted.overdue(time.monotonic()))
            if not polled:
                self._positions |= {
                    tp: at for tp, at in subscription.positions().items() if at > self._committed.get(tp, -1)
                }
                await self._commit_offsets(subscription)
                continue
            timestamps.mark("worker.polled")
            if not await self._take(polled):
                return
            if time.monotonic() - self._offsets_committed_at >= OFFSET_COMMIT_EVERY_S:
                await self._commit_offsets(subscription)

    async def _store_what_is_in_no_table(self) -> None:
        """Store unpersisted requests at the end like other jobs, so that their offsets can be committed."""
        self._outbox.persist(self._unpersisted.overdue(math.inf))
        deadline = time.monotonic() + STORED_WITHIN_S
        while self._unpersisted and time.monotonic() < deadline:  # noqa: ASYNC110 - several parts empty it
            await asyncio.sleep(STORED_LOOK_EVERY_S)

    async def _poll_withdrawals(self, subscription: Subscription) -> Polled:
        """Poll withdrawals alone: they may call off jobs that wait, so they are read when no more jobs may wait."""
        ours = [source for source in subscription.consumer.assignment() if source.topic == self._withdrawals_topic]
        return await subscription.poll(0, only=ours) if ours else {}

    async def _is_assigned(self) -> bool:
        """Wait until polled records may be read. Return False when the process stops first."""
        while not self._assigned.is_set() and not self._stopping.is_set():
            self._health.beat(LOOP)
            try:
                async with asyncio.timeout(FULL_WAIT_S):
                    await self._assigned.wait()
            except TimeoutError:
                continue
        return self._assigned.is_set()

    async def _mark_suspects(self, partitions: Collection[int]) -> None:
        """Mark as suspects the records that another process was reading when it ended, if they are read again."""
        readings = await self._jobs.readings(self._requests_topic, sorted(partitions))
        self._suspicion.suspect_records(readings, {(self._requests_topic, partition): 0 for partition in partitions})

    async def _take(self, polled: Polled) -> bool:
        """Accept what was polled, in portions, and remember how far; False when the process stops first."""
        if not await self._is_assigned():
            return False
        positions, backlog = self._positions, Backlog(self._settings.batch_max_records)
        backlog.put(polled)
        while backlog:
            self._health.beat(LOOP)
            portion = backlog.take(self._suspicion.is_suspect)
            accept = self._accept_suspect if portion.is_suspect else self._accept_noted
            if not await self._with_retries(accept, [record for batch in portion.records.values() for record in batch]):
                return False
            positions.update({source: batch[-1].offset + 1 for source, batch in portion.records.items()})
        return True

    async def _accept_noted(self, records: Sequence[ConsumerRecord[Any, Any]]) -> None:
        """Accept records; those that were there when this process got the partition are written down first."""
        held: dict[int, list[int]] = {}
        for record in records:
            if record.topic == self._requests_topic and self._source_of_new(record) is None:
                held.setdefault(record.partition, []).append(record.offset)
        if held:
            life = self._suspicion.life
            await self._jobs.note(
                [RecordsInFlight(self._requests_topic, place, min(at), max(at), life) for place, at in held.items()]
            )
        await self._accept(records)

    async def _accept_suspect(self, records: Sequence[ConsumerRecord[Any, Any]]) -> None:
        """Accept a record that may end this process. If too many processes died with it alone, do not read it."""
        (record,) = records
        if self._subscription is not None:
            await self._commit_offsets(self._subscription)  # the next life begins with this record
        place = RecordsInFlight(record.topic, record.partition, record.offset, record.offset, self._suspicion.life)
        (noted,) = await self._jobs.note([place])
        if noted.lives > self._settings.max_deaths:
            message = f"{noted.lives - 1} processes died while they held only this record; it was not read again"
            self._log.error("a record is dead-lettered unread", record=bus.place(record), deaths=noted.lives - 1)
            await self._store([], [self._unread(record, UndecodableRecord("deadly_record", message))])
        else:
            await self._accept(records)
        self._suspicion.passed(record)

    def _unread(self, record: ConsumerRecord[Any, Any], error: UndecodableRecord) -> DeadRecord:
        """Return the dead letter of a record that must not be read. Answer its request, if key and headers name it."""
        request_id = cloudevents.event_id(record.headers)
        try:
            run_id = as_in_rows(UUID((record.key or b"").decode()))
        except ValueError:
            return self._dead(record, error)
        if request_id and _STORABLE_ID.fullmatch(request_id) and not self._jobs.holds((run_id, request_id)):
            tenant, deadline_at = stated_tenant(record), cloudevents.utc_now()
            request = self._worker.request_type.model_construct(
                run_id=run_id,
                request_id=request_id,
                tenant=tenant,
                partition=record.partition,
                deadline_at=deadline_at,
                grant=Grant(),
            )
            failure = ToolError(code=ErrorCode.CONTRACT_VIOLATION, message=error.message, details={"effect": "none"})
            answer = self._worker.failed(request, failure, Spend())
            inbound = InboundRequest(run_id, request_id, tenant, record.partition, b"{}", None, deadline_at)
            source = TopicPartition(record.topic, record.partition)
            self._unpersisted.add(inbound.key, inbound, source, record.offset, time.monotonic())
            self._jobs.hold(inbound.key)
            self._outbox.add(Finished(request, answer, None, answer.to_bytes()))
        return self._dead(record, error)

    async def _commit_offsets(self, subscription: Subscription) -> None:
        ours = subscription.consumer.assignment()
        positions = self._unpersisted.safe({tp: offset for tp, offset in self._positions.items() if tp in ours})
        for partition, offset in positions.items():
            if self._positions[partition] == offset:
                del self._positions[partition]
        self._offsets_committed_at = time.monotonic()
        if positions:
            failpoints.hit("worker.before_offset_commit")
            await subscription.commit(positions)
            self._committed |= positions
            failpoints.hit("worker.after_offset_commit")

    async def _with_retries(
        self,
        accept: Callable[[Sequence[ConsumerRecord[Any, Any]]], Awaitable[None]],
        records: Sequence[ConsumerRecord[Any, Any]],
    ) -> bool:
        """Accept a batch, and try again while the database is gone. Return False when the process stops first."""
        while not self._stopping.is_set():
            try:
                await accept(records)
            except POSTGRES_GONE as error:
                self._health.beat(LOOP)
                await self._postgres_outage.wait(error, unless=self._stopping)
            else:
                self._postgres_outage.over()
                return True
        return False

    async def _accept(self, records: Sequence[ConsumerRecord[Any, Any]]) -> None:
        """Give new requests to the job runner; first store those that must not be repeated. May be called again."""
        resolved = await self._jobs.resolve_claims(records)
        requests: dict[JobKey, tuple[InboundRequest, RequestT]] = {}
        dead: list[DeadRecord] = []
        now, now_s = cloudevents.utc_now(), time.monotonic()
        called_off = [record for record in records if record.topic == self._withdrawals_topic]
        for record in (each for each in records if each.topic != self._withdrawals_topic):
            read = self._read(record, resolved)
            if isinstance(read, DeadRecord):
                dead.append(read)
                continue
            inbound, request = read
            key = inbound.key
            source = self._source_of_new(record)
            if source is not None and self._may_go_unpersisted(key, inbound, request, now) and key not in requests:
                self._unpersisted.add(key, inbound, source, record.offset, now_s)
                self._jobs.hold(key)
                self._runner.put(Job(request, self._attempt, inbound.traceparent))
            else:
                requests.setdefault(key, (inbound, request))
        try:
            if called_off:
                unread = await self._withdrawals.take(called_off, resolved)
                dead.extend(self._dead(record, error) for record, error in unread)
            if requests or dead:
                await self._store(list(requests.values()), dead)
        except Exception as error:
            if not is_refusal(error):
                raise
            # Something in the batch does not fit the database: find it, one record at a time.
            if len(records) == 1:
                unstorable = UndecodableRecord("unstorable", f"the database cannot store this request: {error}")
                await self._store([], [self._dead(records[0], unstorable)])
            else:
                for record in records:
                    await self._accept([record])

    def _read(
        self, record: ConsumerRecord[Any, Any], resolved: claim_check.Resolved
    ) -> tuple[InboundRequest, RequestT] | DeadRecord:
        """Return the request that a record holds, or its dead letter."""
        try:
            return self._decode(record, resolved)
        except UndecodableRecord as error:
            return self._dead(record, error)
        except Exception as error:  # noqa: BLE001 - a decoder that fails on strange bytes costs this record alone
            self._log.error("a record could not be read", record=bus.place(record), exc_info=error)
            return self._unread(record, UndecodableRecord("internal", f"{type(error).__name__} while it was read"))

    def _source_of_new(self, record: ConsumerRecord[Any, Any]) -> TopicPartition | None:
        """Return the source of a record that no process can have read before; None for any other record.

        Records that were in the partition before this process got it may have killed the process before.
        """
        known = self._ends.get(record.partition)
        return known[0] if known is not None and record.offset >= known[1] else None

    def _may_go_unpersisted(self, key: JobKey, inbound: InboundRequest, request: RequestT, now: datetime) -> bool:
        """Return whether a crash may repeat this request. If so, it is stored with its answer, which saves a statement.

        Not if this process holds it already, or if the database might refuse to store it.
        """
        return (
            request.grant.is_free
            and len(self._unpersisted) < self._config.waiting_max
            and now < inbound.deadline_at < now + FORESEEABLE
            and inbound.partition < PARTITION_END
            and "\0" not in inbound.request_id
            and not self._jobs.holds(key)
            and self._worker.may_repeat(request)
        )

    async def _store(self, decoded: Sequence[tuple[InboundRequest, RequestT]], dead: Sequence[DeadRecord]) -> None:
        intake = await self._jobs.take_in([inbound for inbound, _ in decoded], dead)
        self._outbox.publish_dead_letters(dead)
        for inbound, request in decoded:
            if inbound.key in intake.fresh:
                self._runner.put(Job(request, self._attempt, inbound.traceparent))
            else:
                self._health.count("duplicates")
                if (answer := intake.answered.get(inbound.key)) is not None:
                    self._outbox.publish_stored(
                        inbound.key, inbound.partition, inbound.tenant, inbound.traceparent, answer
                    )

    def _decode(
        self, record: ConsumerRecord[Any, Any], resolved: claim_check.Resolved
    ) -> tuple[InboundRequest, RequestT]:
        if len(record.value or b"") > bus.REQUEST_MAX_BYTES:
            message = f"the record has {len(record.value):,} bytes, and may have {bus.REQUEST_MAX_BYTES:,}"
            raise UndecodableRecord("record_too_large", message)
        body = claim_check.body(record, resolved)
        try:
            request = codec.read(self._worker.request_type, body)
        except codec.NotJson as error:
            raise UndecodableRecord("not_json", f"the value is not JSON: {error}") from error
        except codec.InvalidJson as error:
            raise UndecodableRecord("invalid_json", str(error)) from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UndecodableRecord(
                "invalid_request",
                f"{self._worker.request_type.__name__}.{where}: {first['msg']} ({error.error_count()} problems in all)",
            ) from error
        stated = cloudevents.header(record.headers, "traceparent")
        return InboundRequest(
            run_id=request.run_id,
            request_id=request.request_id,
            tenant=request.tenant,
            partition=request.partition,
            request=body,
            traceparent=stated.decode() if stated and _TRACEPARENT.fullmatch(stated) else None,
            deadline_at=request.deadline_at,
        ), request

    def _dead(self, record: ConsumerRecord[Any, Any], error: UndecodableRecord) -> DeadRecord:
        self._health.count("dead_letters")
        dead = dead_record(self._service, record, error, cloudevents.utc_now())
        self._log.warning("record dead-lettered", **about(dead, record))
        return dead


async def _poll_without_taking(subscription: Subscription) -> None:
    """Poll while all partitions are paused. A pause drops what was fetched ahead, so use it for longer waits."""
    consumer = subscription.consumer
    consumer.pause(*consumer.assignment())
    await subscription.poll(0)
    consumer.resume(*consumer.paused())
