"""The clients of Kafka, with what aiokafka lacks: nobody makes one of another kind.

- A consumer reads `read_committed`, and one odd record or batch never stops it: it comes out as an UnreadableRecord.
- A dead connection is a lost one, under uvloop too, whose transports raise RuntimeError where asyncio's say nothing.

aiokafka has no place to put such things in, so methods of it are copied with other names in their reach (`_rebound`).
Its modules stay as they are, for whoever else uses them in the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import aiokafka
import aiokafka.client
import aiokafka.conn
import aiokafka.consumer.consumer
import aiokafka.consumer.fetcher
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import KafkaConnectionError

from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.record_batches import Batches, BatchHeader, BatchReader, batch_header, is_intact, last_offset


def _rebound(function: Any, **names: Any) -> Any:
    """A copy of a function in whose body these global names mean something else.

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
    """A connection of which nothing but errors of Kafka's come."""

    def send(self, request: Any, expect_response: bool = True) -> Any:  # noqa: FBT001, FBT002 - as aiokafka has it
        return self._sent(super().send, request, expect_response)

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
    bootstrap = _rebound(aiokafka.client.AIOKafkaClient.bootstrap, create_conn=_create_conn)
    _get_conn = _rebound(aiokafka.client.AIOKafkaClient._get_conn, create_conn=_create_conn)  # noqa: SLF001


class _Records(PartitionRecords):  # type: ignore[misc]  # aiokafka is untyped
    """What was fetched of one partition: every batch moves the reader on, whatever is in it."""

    next_fetch_offset: int

    def __init__(self, suspects: dict[TopicPartition, int], tp: TopicPartition, records: Batches, *rest: Any) -> None:
        self._suspects, self._reader = suspects, BatchReader(tp)
        super().__init__(tp, records, *rest)

    def _unpack_records(self) -> Iterator[aiokafka.ConsumerRecord[Any, Any]]:
        began_at = self.next_fetch_offset
        batches = list(self._records)
        for number, batch in enumerate(batches):
            position = self.next_fetch_offset
            last = last_offset(batch, position)
            if not is_intact(batch):
                if self._suspects.get(self._tp) != position:
                    # It may have been harmed on its way: it is fetched once more, from here.
                    self._suspects[self._tp] = position
                    return
                yield from self._bury(batch, last, batches[number + 1 : number + 2])
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
            yield from self._bury(batches[0], began_at, [])

    def _bury(self, batch: bytes, last: int, following: list[bytes]) -> Iterator[aiokafka.ConsumerRecord[Any, Any]]:
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
        """Whether it is a marker of a transaction, or belongs to one that was aborted."""
        if self._isolation_level == READ_COMMITTED:
            self._consume_aborted_up_to(header.base_offset)
            if header.is_control:
                # Whichever marker it is, the transaction of its producer ends with it.
                self._aborted_producers.discard(header.producer_id)
        return header.is_control or (header.is_transactional and header.producer_id in self._aborted_producers)


class _Fetcher(aiokafka.consumer.fetcher.Fetcher):  # type: ignore[misc]  # aiokafka is untyped
    def __init__(self, *arguments: Any, **options: Any) -> None:
        suspects: dict[TopicPartition, int] = {}
        fetch = _rebound(
            aiokafka.consumer.fetcher.Fetcher._proc_fetch_request,  # noqa: SLF001
            MemoryRecords=Batches,
            PartitionRecords=partial(_Records, suspects),
        )
        self._proc_fetch_request = MethodType(fetch, self)
        super().__init__(*arguments, **options)


class Consumer(aiokafka.AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka is untyped
    """A consumer to which a task of an aborted transaction does not exist."""

    _made = _rebound(aiokafka.AIOKafkaConsumer.__init__, AIOKafkaClient=_Client)
    start = _rebound(aiokafka.AIOKafkaConsumer.start, Fetcher=_Fetcher)

    def __init__(self, *topics: str, **options: Any) -> None:
        self._made(*topics, **options | {"isolation_level": "read_committed"})


class Producer(aiokafka.AIOKafkaProducer):  # type: ignore[misc]  # aiokafka is untyped
    """A producer."""

    __init__ = _rebound(aiokafka.AIOKafkaProducer.__init__, AIOKafkaClient=_Client)


class Admin(AIOKafkaAdminClient):  # type: ignore[misc]  # aiokafka is untyped
    """What asks about topics, groups and the cluster."""

    __init__ = _rebound(AIOKafkaAdminClient.__init__, AIOKafkaClient=_Client)
