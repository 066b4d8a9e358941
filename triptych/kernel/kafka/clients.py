"""The clients of Kafka, with what aiokafka lacks. All parts of the project use these.

A consumer reads `read_committed`, and one odd record or batch never stops it: it comes out as an UnreadableRecord.
A poll takes a bounded part of what a fetch decompresses to, and partitions take turns.
A fetch names only the partitions whose position has changed.
A dead connection is a lost one, under uvloop too, whose transports raise RuntimeError where asyncio's say nothing.
A wait for a consumer goes through a `ConsumerWatch`: it ends when a background task of the client dies.

aiokafka has no extension points for these. So methods of it are copied, with other names in their reach (`_rebound`).
Its modules stay as they are, for other code in the same process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FunctionType, MethodType, TracebackType
from typing import Any, Self

import aiokafka
import aiokafka.client
import aiokafka.conn
import aiokafka.consumer.consumer
import aiokafka.consumer.fetcher
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import ConnectionGroup
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.produce import ProduceRequest

from triptych.kernel import timestamps
from triptych.kernel.errors import KafkaTaskDiedError, UndecodableRecord
from triptych.kernel.kafka.fetch_session import FetchSession, SessionFetch
from triptych.kernel.kafka.record_batches import (
    Batches,
    BatchHeader,
    BatchReader,
    batch_header,
    is_intact,
    last_offset,
    plain_records,
)

LOOK_EVERY_S = 0.5
HELD_BACK_AFTER_S = 10.0
"""A transaction that is open for so long, while its partition waits behind it, is logged."""

POLL_MAX_BYTES = 4_194_304
"""A poll hands out records that take so much memory at most, or one: a fetch of 1 MiB may decompress to gigabytes."""
_RECORD_FRAME_BYTES, _HEADER_FRAME_BYTES = 512, 128
"""What the objects of a record and of a header take besides their bytes."""

_log = logging.getLogger(__name__)


def _rebound(function: Any, **names: Any) -> Any:
    """Copy a function so that these global names mean something else in its body.

    Raises:
        ImportError: it does not use one of them, so this is another aiokafka than the one this was written for.
    """
    if unknown := names.keys() - set(function.__code__.co_names):
        raise ImportError(
            f"{function.__qualname__} of aiokafka {aiokafka.__version__} does not use {sorted(unknown)}; install the "
            "version that requirements.lock names"
        )
    copy = FunctionType(function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class _Connection(aiokafka.conn.AIOKafkaConnection):  # type: ignore[misc]  # aiokafka is untyped
    """A connection that raises only errors of Kafka."""

    def send(self, request: Any, expect_response: bool = True) -> Any:  # noqa: FBT001, FBT002 - as aiokafka has it
        answer = self._sent(super().send, request, expect_response)
        if isinstance(request, ProduceRequest):
            timestamps.mark("kafka.produced")
        return answer

    def _handle_frame(self, frame: bytes) -> None:
        timestamps.mark("kafka.answered")
        super()._handle_frame(frame)

    def _send_sasl_token(self, payload: bytes, expect_response: bool = True) -> Any:  # noqa: FBT001, FBT002
        return self._sent(super()._send_sasl_token, payload, expect_response)

    def _sent(self, send: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return send(*arguments)
        except RuntimeError as error:
            # uvloop: "the handler is closed". aiokafka expects an OSError, and its background tasks die of others.
            self.close(reason=aiokafka.conn.CloseReason.CONNECTION_BROKEN, exc=error)
            raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: {error}") from error


_create_conn = _rebound(aiokafka.conn.create_conn, AIOKafkaConnection=_Connection)


class _Client(aiokafka.client.AIOKafkaClient):  # type: ignore[misc]  # aiokafka is untyped
    _sync_task: asyncio.Task[None] | None
    bootstrap = _rebound(aiokafka.client.AIOKafkaClient.bootstrap, create_conn=_create_conn)
    _get_conn = _rebound(aiokafka.client.AIOKafkaClient._get_conn, create_conn=_create_conn)  # noqa: SLF001

    async def send(self, node_id: int, request: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
        """Send a request to a broker and return its answer."""
        sent = super().send(node_id, request, group=group)
        return await (request.session.exchange(sent) if isinstance(request, SessionFetch) else sent)

    async def close(self) -> None:
        """Close all connections, also when the task that keeps the metadata is dead."""
        if self._sync_task is not None and self._sync_task.done():
            _cause(self._sync_task)
            self._sync_task = None
        await super().close()


class _Records(PartitionRecords):  # type: ignore[misc]  # aiokafka is untyped
    """What was fetched of one partition: every batch moves the reader on, also one that cannot be read."""

    next_fetch_offset: int

    def __init__(self, suspects: dict[TopicPartition, int], tp: TopicPartition, records: Batches, *rest: Any) -> None:
        self._suspects, self._reader = suspects, BatchReader(tp)
        super().__init__(tp, records, *rest)

    def _unpack_records(self) -> Iterator[aiokafka.ConsumerRecord[Any, Any]]:
        began_at = self.next_fetch_offset
        batches = list(self._records)
        for number, batch in enumerate(batches):
            position = self.next_fetch_offset
            if (plain := plain_records(batch)) is not None:
                records, behind = plain
                for one in records:
                    if one.offset >= position:
                        self.next_fetch_offset = one.offset + 1
                        yield self._consumer_record(self._tp, one)
                self._advance(behind)
                continue
            last = last_offset(batch, position)
            if not is_intact(batch):
                if self._suspects.get(self._tp) != position:
                    # It may have been harmed on its way: it is fetched once more, from here.
                    self._suspects[self._tp] = position
                    return
                yield from self._as_one_record(batch, last, batches[number + 1 : number + 2])
                continue
            header = batch_header(batch)
            if header is not None and self._is_no_data(header):
                self._advance(last + 1)
                continue
            for record in self._reader.read(batch, position):
                self.next_fetch_offset = record.offset + 1
                yield record
            self._advance(last + 1)
        if batches and self.next_fetch_offset == began_at:
            # A broker that sends what lies before the offset it was asked for would be asked for ever.
            yield from self._as_one_record(batches[0], began_at, [])

    def _as_one_record(
        self, batch: bytes, last: int, following: list[bytes]
    ) -> Iterator[aiokafka.ConsumerRecord[Any, Any]]:
        """Hand out a batch that no reader can be given, as one record."""
        position = self.next_fetch_offset
        if following and (header := batch_header(following[0])) is not None and header.base_offset > position:
            last = min(last, header.base_offset - 1)
        last = max(last, position)
        why = UndecodableRecord("unreadable_batch", "its checksum is wrong, also when it was fetched once more")
        self.next_fetch_offset = last + 1
        yield self._reader.unreadable_batch(batch, position, last, why)

    def _advance(self, offset: int) -> None:
        self.next_fetch_offset = max(self.next_fetch_offset, offset)

    def _is_no_data(self, header: BatchHeader) -> bool:
        """Return whether it is a marker of a transaction, or belongs to one that was aborted."""
        if self._isolation_level == READ_COMMITTED:
            self._consume_aborted_up_to(header.base_offset)
            if header.is_control:
                # Commit or abort: the transaction of its producer ends with the marker.
                self._aborted_producers.discard(header.producer_id)
        return header.is_control or (header.is_transactional and header.producer_id in self._aborted_producers)


class _Room:
    """How much a poll may still hand out."""

    def __init__(self) -> None:
        self._left_bytes = POLL_MAX_BYTES

    def begin(self) -> None:
        self._left_bytes = POLL_MAX_BYTES

    def take(self, record: aiokafka.ConsumerRecord[Any, Any]) -> None:
        self._left_bytes -= _RECORD_FRAME_BYTES + len(record.key or b"") + len(record.value or b"")
        for name, content in record.headers:
            self._left_bytes -= _HEADER_FRAME_BYTES + len(name) + len(content or b"")

    @property
    def is_used_up(self) -> bool:
        return self._left_bytes <= 0


class _Fetched(FetchResult):  # type: ignore[misc]  # aiokafka is untyped
    """What was fetched of one partition: a poll takes as much of it as it has room for, and the next one goes on."""

    _partition_records: _Records | None

    def __init__(self, room: _Room, *arguments: Any, **options: Any) -> None:
        self._room = room
        super().__init__(*arguments, **options)

    def getall(self, max_records: int | None = None) -> list[aiokafka.ConsumerRecord[Any, Any]]:
        """Return the next records, up to a number of records or bytes."""
        if self._room.is_used_up or not self.has_more() or not self.check_assignment(self._topic_partition):
            return []
        taken: list[aiokafka.ConsumerRecord[Any, Any]] = []
        for record in self._partition_records or ():
            taken.append(record)
            self._room.take(record)
            if len(taken) == max_records or self._room.is_used_up:
                self._update_position()
                return taken
        self._update_position()
        self._partition_records = None
        return taken


class _Fetcher(aiokafka.consumer.fetcher.Fetcher):  # type: ignore[misc]  # aiokafka is untyped
    _fetch_task: asyncio.Task[None]
    _records: OrderedDict[TopicPartition, Any]
    _drained = _rebound(aiokafka.consumer.fetcher.Fetcher.fetched_records, FetchResult=_Fetched)
    next_record = _rebound(aiokafka.consumer.fetcher.Fetcher.next_record, FetchResult=_Fetched)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._room = _Room()
        suspects: dict[TopicPartition, int] = {}
        fetch = _rebound(
            aiokafka.consumer.fetcher.Fetcher._proc_fetch_request,  # noqa: SLF001
            MemoryRecords=Batches,
            PartitionRecords=partial(_Records, suspects),
            FetchResult=partial(_Fetched, self._room),
        )
        self._fetched = MethodType(fetch, self)
        self._sessions: defaultdict[int, FetchSession] = defaultdict(FetchSession)
        """The session with each broker."""
        self._session_assignment: Any = None
        super().__init__(*arguments, **options)

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> bool:
        """Fetch in the session with this broker."""
        if assignment is not self._session_assignment:
            # It knows nothing of its partitions yet, so the broker has to tell everything again.
            self._session_assignment = assignment
            for session in self._sessions.values():
                session.restart()
        has_records: bool = await self._fetched(assignment, node_id, self._sessions[node_id].of(request))
        return has_records

    async def fetched_records(
        self,
        partitions: Sequence[TopicPartition],
        timeout: float = 0,  # noqa: ASYNC109 - as aiokafka has it
        max_records: int | None = None,
    ) -> dict[TopicPartition, list[aiokafka.ConsumerRecord[Any, Any]]]:
        """Return the next records. A partition with more than the poll has room for goes to the end of the queue."""
        self._room.begin()
        drained: dict[TopicPartition, Any] = await self._drained(partitions, timeout, max_records)
        for tp in drained.keys() & self._records.keys():
            self._records.move_to_end(tp)
        return drained

    async def close(self) -> None:
        """Stop fetching, also when the task that fetches is dead."""
        if self._fetch_task.done():
            _cause(self._fetch_task)
            self._fetch_task = asyncio.create_task(asyncio.sleep(0))
        await super().close()


class Consumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka is untyped
    """A consumer that never hands out a task of an aborted transaction."""

    _made = _rebound(aiokafka.AIOKafkaConsumer.__init__, AIOKafkaClient=_Client)
    start = _rebound(aiokafka.AIOKafkaConsumer.start, Fetcher=_Fetcher)

    def __init__(self, *topics: str, **options: Any) -> None:
        self._made(*topics, **options | {"isolation_level": "read_committed"})

    def positions(self) -> dict[TopicPartition, int]:
        """Return where each partition is read on, as far as that is known.

        It lies behind the last record that was handed out, and behind offsets without a record: markers of
        transactions, aborted records, compacted records.
        """
        return {tp: state.position for tp, state in self._states() if state.has_valid_position}

    def held_back(self) -> dict[TopicPartition, int]:
        """Return how many offsets of each partition wait for the end of a transaction, if all before was read."""
        return {
            tp: state.highwater - state.lso
            for tp, state in self._states()
            if state.has_valid_position and state.lso is not None and state.position >= state.lso < state.highwater
        }

    def _states(self) -> list[tuple[TopicPartition, Any]]:
        subscription = self._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        if assignment is None or not assignment.active:
            return []
        return [(tp, assignment.state_value(tp)) for tp in assignment.tps]


class Producer(aiokafka.AIOKafkaProducer):  # type: ignore[misc]  # aiokafka is untyped
    """A producer."""

    __init__ = _rebound(aiokafka.AIOKafkaProducer.__init__, AIOKafkaClient=_Client)


class Admin(AIOKafkaAdminClient):  # type: ignore[misc]  # aiokafka is untyped
    """A client that asks about topics, groups and the cluster."""

    __init__ = _rebound(AIOKafkaAdminClient.__init__, AIOKafkaClient=_Client)


def dead_task(consumer: Consumer | None) -> KafkaTaskDiedError | None:
    """Return which background task of a consumer has died, if any: the consumer is useless then, but silent."""
    if consumer is None:
        return None
    fetcher, coordinator = consumer._fetcher, consumer._coordinator  # noqa: SLF001 - nothing public tells
    endless = {
        "metadata": consumer._client._sync_task,  # noqa: SLF001
        "fetch": getattr(fetcher, "_fetch_task", None),
        "group coordination": getattr(coordinator, "_coordination_task", None),
        "committed offsets": getattr(coordinator, "_reset_committed_task", None),
    }
    for name, task in endless.items():
        if task is not None and task.done():
            return KafkaTaskDiedError(name, _cause(task))
    # These end when the group changes, and the coordination starts others; only of an error they do not.
    passing = {
        "heartbeat": getattr(coordinator, "_heartbeat_task", None),
        "commit refresh": getattr(coordinator, "_commit_refresh_task", None),
    }
    for name, task in passing.items():
        if task is not None and task.done() and (cause := _cause(task)) is not None:
            return KafkaTaskDiedError(name, cause)
    return None


def _cause(task: asyncio.Task[Any]) -> BaseException | None:
    """Return the exception that a task died of; None if it just ended."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


class _HeldBack:
    """Logs once for each partition that an open transaction holds it back, and once that it goes on."""

    def __init__(self) -> None:
        self._since: dict[TopicPartition, float] = {}
        self._told: set[TopicPartition] = set()

    def look(self, held_back: dict[TopicPartition, int], now_s: float) -> None:
        for tp in self._since.keys() - held_back.keys():
            del self._since[tp]
            if tp in self._told:
                self._told.remove(tp)
                _log.warning("%s[%d] goes on: the transaction has ended", tp.topic, tp.partition)
        for tp, offsets in held_back.items():
            since = self._since.setdefault(tp, now_s)
            if now_s - since >= HELD_BACK_AFTER_S and tp not in self._told:
                self._told.add(tp)
                _log.warning(
                    "%s[%d] is held back by an open transaction of a producer: %d offsets wait until it ends, or until "
                    "its transaction.timeout.ms is over",
                    tp.topic,
                    tp.partition,
                    offsets,
                )


class ConsumerWatch:
    """Ends its body with KafkaTaskDiedError when a background task of the consumer dies. Async context manager.

    The body may wait for something that will never come, so it is cancelled, as `asyncio.timeout` does it.
    """

    def __init__(self, consumer: Callable[[], Consumer | None]) -> None:
        """Watch the consumer that `consumer` returns; None means that there is no consumer yet."""
        self._consumer = consumer
        self._died: KafkaTaskDiedError | None = None
        self._cancelled = 0

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        self._watching = asyncio.create_task(self._watch(), name="kafka-watch")
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching
        if self._owner is None or not isinstance(error, asyncio.CancelledError | None):
            return
        for _ in range(self._cancelled):
            self._owner.uncancel()
        if not self._owner.cancelling():
            # aiokafka lets the cancellation of its own tasks out immediately.
            self._found(dead_task(self._consumer()) if error is not None else None)
            if self._died is not None:
                raise self._died from error

    async def _watch(self) -> None:
        suspected: str | None = None
        held_back = _HeldBack()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            consumer = self._consumer()
            if consumer is not None:
                held_back.look(consumer.held_back(), time.monotonic())
            died = dead_task(consumer)
            # A task that has just ended may be about to be replaced, so it is looked at twice.
            if died is not None and died.task == suspected:
                self._found(died)
                self._cancelled += 1
                if self._owner is not None:
                    self._owner.cancel()
            suspected = None if died is None else died.task

    def _found(self, died: KafkaTaskDiedError | None) -> None:
        if died is not None and self._died is None:
            self._died = died
            _log.warning("%s", died)
