"""Kafka: consumers that hand out raw records, and a publisher that keeps order and reports doubt.

FastStream builds and owns the consumers; we poll them ourselves, because between two empty polls its
batch subscriber sleeps, and because no exception may be swallowed there (docs/decisions/0002). Offsets
committed here serve lag monitoring only, wherever a stored offset exists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import aiokafka
from aiokafka import ConsumerRecord as Record
from aiokafka import TopicPartition
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    RecordTooLargeError,
)
from faststream import AckPolicy
from faststream.kafka import KafkaBroker

from triptych.kernel import failpoints, timestamps
from triptych.kernel.concurrency.cancellation import foreign_cancellation
from triptych.kernel.errors import MessagesRefused, PublishFailed
from triptych.kernel.kafka.assignor import Assignor
from triptych.kernel.kafka.clients import Admin, Consumer, ConsumerWatch, Producer
from triptych.kernel.kafka.cloudevents import Headers
from triptych.kernel.kafka.topic_metadata import ClusterTopics, describe
from triptych.kernel.process.settings import ServiceSettings
from triptych.kernel.values import value

__all__ = ["Kafka", "Outgoing", "Publisher", "Record", "Subscription", "TopicPartition", "place"]

BATCH_MAX_BYTES = 524_288
REQUEST_MAX_BYTES = 8 * 1_048_576
PUBLISH_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 30.0
"""A consumer that has not left its group by then is dropped; a batch under way is written well before."""
REBALANCE_TIMEOUT_MS = 60_000
COMMIT_TIMEOUT_S = 5.0
"""aiokafka tries to commit for as long as the coordinator is away."""
FEWER_PARTITIONS_FOR_S = 5.0
"""A topic that has fewer partitions than others is asked about so often; the client asks every five minutes."""

_REFUSED = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    RecordTooLargeError,
    InvalidTimestampError,
    PolicyViolationError,
    UnicodeError,
)
"""What Kafka or its client says of a message that it never takes. Trying again would block what is behind it."""

_FRAME_BYTES = 128
"""What a batch of one record adds to it, at most."""
_HEADER_FRAME_BYTES = 10


@value
class Outgoing:
    """One message to be published: full topic name, explicit partition, key, headers and JSON value."""

    topic: str
    partition: int
    key: bytes
    headers: Headers
    value: bytes


def place(record: Record[Any, Any]) -> str:
    """Return an id of a record: its place and its time, since a cluster that lost all begins at offset 0 again."""
    return f"{record.topic}:{record.partition}:{record.offset}:{record.timestamp}"


def fits(key: bytes | None, value: bytes | None, headers: Headers) -> bool:
    """Return whether a record is small enough to be published."""
    framed = sum(len(name.encode()) + len(content) + _HEADER_FRAME_BYTES for name, content in headers)
    return len(key or b"") + len(value or b"") + framed + _FRAME_BYTES <= REQUEST_MAX_BYTES


class Subscription:
    """A consumer group member for some topics. Context manager; `poll` gives raw records."""

    def __init__(
        self,
        settings: ServiceSettings,
        topics: Sequence[str],
        group: str,
        listener: aiokafka.abc.ConsumerRebalanceListener | None = None,
        *,
        one_owner: bool = False,
    ) -> None:
        self._topics, self._assignor = tuple(topics), Assignor(one_owner=one_owner)
        self._max_records = settings.batch_max_records
        self._broker = KafkaBroker(
            settings.kafka,
            client_id=settings.instance,
            logger=None,
            allow_auto_create_topics=False,
            graceful_timeout=1.0,
            consumer_only=True,
        )
        self._subscriber = self._broker.subscriber(
            *topics,
            batch=True,
            group_id=group,
            group_instance_id=settings.instance,
            ack_policy=AckPolicy.MANUAL,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(self._assignor,),
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=max(300, settings.session_timeout_ms // 4),
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            fetch_max_wait_ms=500,
            listener=listener,
        )
        self._watch = ConsumerWatch(lambda: self._subscriber.consumer)

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        try:
            await self._start()
        except BaseException as error:
            # A consumer whose start was cut off would stay in the group, and its connections open.
            await self._broker.stop()
            await self._watch.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def _start(self) -> None:
        await self._broker.connect()
        config = self._broker.config.broker_config
        connection: Any = config.builder
        config.builder = partial(Consumer, **connection.keywords)
        await self._broker.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._watch.__aexit__(kind, error, trace)
        finally:
            await self._stop()

    async def _stop(self) -> None:
        consumer = self._subscriber.consumer
        try:
            with foreign_cancellation():
                await asyncio.wait_for(self._broker.stop(), STOP_TIMEOUT_S)
        except (ConnectionAbortedError, TimeoutError):
            # The consumer waited for a fetch that it had cancelled, or for a broker that does not answer, and did not
            # come to closing its connections.
            if consumer is not None:
                await consumer._client.close()  # noqa: SLF001 - nothing public closes it now

    @property
    def consumer(self) -> Consumer:
        """The consumer underneath, for seeking."""
        if self._subscriber.consumer is None:
            raise RuntimeError("the subscription has not been started; use it as a context manager")
        consumer: Consumer = self._subscriber.consumer
        return consumer

    def positions(self) -> dict[TopicPartition, int]:
        """Return where each partition is read on: also behind offsets without a record, such as markers."""
        return self.consumer.positions()

    async def describe(self) -> ClusterTopics:
        """Return what the cluster says of the topics now. If it has other partitions, the group begins again.

        Raises:
            KafkaError: no broker answers.
        """
        client = self.consumer._client  # noqa: SLF001 - nothing public asks for ids
        found = await describe(client, self._topics)
        given_out = self._assignor.given_out
        if given_out is None:
            given_out = {topic: len(self.consumer.partitions_for_topic(topic) or ()) for topic in self._topics}
        if any(given_out.get(topic, 0) != found.partitions(topic) for topic in self._topics):
            await client.force_metadata_update()
            self.consumer._coordinator.request_rejoin()  # noqa: SLF001 - nothing public joins again
        return found

    async def poll(
        self, timeout_ms: int, only: Sequence[TopicPartition] = ()
    ) -> dict[TopicPartition, list[Record[Any, Any]]]:
        """Return the next records of each partition, or of these, in order; empty after `timeout_ms` without any.

        Raises:
            KafkaError: the broker refused; polling again is right unless the consumer was fenced.
        """
        polled: dict[TopicPartition, list[Record[Any, Any]]] = await self.consumer.getmany(
            *only, timeout_ms=timeout_ms, max_records=self._max_records
        )
        return polled

    async def commit(self, offsets: dict[TopicPartition, int]) -> bool:
        """Commit next offsets to Kafka, for lag monitoring and for groups that store none themselves.

        A failed commit is not fatal: what is redelivered meets an answered row. False: it may be tried again.
        """
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await self.consumer.commit(offsets)
        except (KafkaError, TimeoutError):
            return False
        return True


class Publisher:
    """An idempotent producer that sends batches to explicit partitions, in order. Context manager.

    It connects when it first publishes, so that a service can start while Kafka is away.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._producer: Producer | None = None
        self._ask_again_at: dict[str, float] = {}
        """When a topic that has fewer partitions than its messages want is asked about again."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._producer is not None:
            await asyncio.wait_for(self._producer.stop(), PUBLISH_TIMEOUT_S)

    async def _start(self) -> Producer:
        producer: Producer = Producer(
            bootstrap_servers=self._settings.kafka,
            client_id=self._settings.instance,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=BATCH_MAX_BYTES,
            max_request_size=REQUEST_MAX_BYTES,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def publish(self, messages: Sequence[Outgoing]) -> None:
        """Publish messages, in order within a partition, and wait for all acknowledgements.

        Raises:
            PublishFailed: at least one batch was not acknowledged. Some messages may have arrived; all
                of them must be sent again, and receivers drop what they have seen.
            MessagesRefused: Kafka never takes some of them. All others have been acknowledged.
        """
        if not messages:
            return
        try:
            await self._publish_in_time(messages)
        except _REFUSED as error:
            if len(messages) == 1:
                raise MessagesRefused((0,), error) from error
            await self._publish_each(messages)

    async def _publish_each(self, messages: Sequence[Outgoing]) -> None:
        """Publish one by one, in order: one of them is refused, and a batch does not say which."""
        refused: dict[int, BaseException] = {}
        for position, message in enumerate(messages):
            try:
                await self._publish_in_time([message])
            except _REFUSED as error:
                refused[position] = error
        if refused:
            raise MessagesRefused(tuple(refused), next(iter(refused.values())))

    async def _publish_in_time(self, messages: Sequence[Outgoing]) -> None:
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                with foreign_cancellation():
                    await self._publish(messages)
        except _REFUSED:
            await self._discard_producer()
            raise
        except (KafkaError, OSError, ValueError) as error:
            await self._discard_producer()
            raise PublishFailed(messages[0].topic, len(messages), error) from error

    async def _publish(self, messages: Sequence[Outgoing]) -> None:
        if self._producer is None:
            self._producer = await self._start()
        failpoints.hit("publisher.before")
        if (action := failpoints.due("publisher.part_way")) is not None:
            await self._send(self._producer, messages[: (len(messages) + 1) // 2])
            failpoints.strike("publisher.part_way", action)
        await self._send(self._producer, messages)
        failpoints.hit("publisher.after")
        timestamps.mark("publisher.acknowledged")

    async def _send(self, producer: Producer, messages: Sequence[Outgoing]) -> None:
        grouped: dict[tuple[str, int], list[Outgoing]] = {}
        for message in messages:
            grouped.setdefault((message.topic, message.partition), []).append(message)
        acknowledgements = []
        for (topic, partition), group in grouped.items():
            target = partition % await self._partitions(producer, topic, partition)
            batch = producer.create_batch()
            for message in group:
                entry = {"key": message.key, "value": message.value, "timestamp": None, "headers": message.headers}
                if batch.append(**entry) is None:
                    acknowledgements.append(await producer.send_batch(batch, topic, partition=target))
                    batch = producer.create_batch()
                    if batch.append(**entry) is None:
                        # Larger than a batch: the producer sends it alone, or says that it is too large.
                        acknowledgements.append(
                            await producer.send(
                                topic, message.value, key=message.key, partition=target, headers=message.headers
                            )
                        )
            if batch.record_count():
                acknowledgements.append(await producer.send_batch(batch, topic, partition=target))
        await asyncio.gather(*acknowledgements)

    async def _partitions(self, producer: Producer, topic: str, wanted: int) -> int:
        """Return how many partitions a topic has. Ask again if it seems to lack the wanted one, which may be new."""
        known = len(await producer.partitions_for(topic))
        if wanted >= known and time.monotonic() >= self._ask_again_at.get(topic, 0.0):
            self._ask_again_at[topic] = time.monotonic() + FEWER_PARTITIONS_FOR_S
            await producer.client.force_metadata_update()
            known = len(await producer.partitions_for(topic))
        return max(1, known)

    async def _discard_producer(self) -> None:
        """Replace the producer: after a failed batch its sequence numbers are in doubt."""
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                with foreign_cancellation():
                    await asyncio.wait_for(producer.stop(), 1.0)
            except (KafkaError, OSError):
                return


@dataclass(frozen=True, slots=True)
class Kafka:
    """The brokers that a process is set to talk to: every consumer and producer of a loop comes from here."""

    settings: ServiceSettings

    def subscribe(
        self,
        topics: Sequence[str],
        group: str,
        listener: aiokafka.abc.ConsumerRebalanceListener | None = None,
        *,
        one_owner: bool = False,
    ) -> Subscription:
        """Make a membership in a group, not yet begun. `one_owner`: one member gets partition p of all topics."""
        return Subscription(self.settings, topics, group, listener, one_owner=one_owner)

    def publisher(self) -> Publisher:
        """Make a producer, not yet connected."""
        return Publisher(self.settings)

    async def describe(self, topics: Sequence[str]) -> ClusterTopics:
        """Return which cluster this is, and which topics it has. Offsets mean nothing in other clusters."""
        admin = Admin(bootstrap_servers=self.settings.kafka, client_id=self.settings.instance)
        await admin.start()
        try:
            return await describe(admin._client, topics)  # noqa: SLF001 - nothing public asks for ids
        finally:
            await admin.close()
