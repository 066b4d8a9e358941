"""Read the record batches of a fetch. A record that cannot be read is handed out with its bytes.

The Kafka client's own parser raises at the first thing it cannot read (a header name that is not UTF-8 is enough), at
every fetch again. It also decompresses a batch of any size. Here each record is read by itself, a batch must not grow
beyond `UNPACKED_MAX_BYTES`, and every fetch that holds a batch moves the reader on.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cramjam
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import calc_crc32c, decode_varint

from triptych.kernel.errors import UndecodableRecord

UNPACKED_MAX_BYTES = 16 * 1_048_576
"""A batch may decompress to this much: twice the largest message that a client of Triptych can send."""

_LENGTH = struct.Struct(">qi")
_HEADER = struct.Struct(">qiibIhiqqqhii")
_COUNT = struct.Struct(">i")
_MAGIC_OFFSET, _ATTRIBUTES_OFFSET, _COUNT_OFFSET = 16, 21, 57
_LEGACY_MIN_BYTES = {0: 26, 1: 34}
_LEGACY_BODY_OFFSET = {0: 18, 1: 26}
_CODEC_MASK, _TRANSACTIONAL, _CONTROL, _LOG_APPEND_TIME = 0x07, 0x10, 0x20, 0x08
_NO_CODEC, _GZIP, _SNAPPY, _LZ4, _ZSTD = range(5)
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16
_FIRST_GUESS_BYTES, _GUESS_FACTOR = 65_536, 8
_OLDEST_MAGIC_WITH_BATCHES = 2
_PLAIN_MAX = 5_000
_PLAIN_MAX_BYTES = 262_144
"""A batch of so many records and bytes at most is parsed in one go."""
HEADERS_MAX_COUNT = 65_536
"""A record may have so many headers. Two bytes are one, so a batch of 16 MiB may hold eight million objects."""
_MANY_HEADERS_BYTES = 2 * HEADERS_MAX_COUNT
"""A smaller record cannot have more of them."""
_VARINT_MAX_BYTES = 10
_LIKELY_DELTA_MAX = 1_000_000
"""A batch with more offsets than this has a damaged header."""


@dataclass
class UnreadableRecord(ConsumerRecord):  # type: ignore[misc]  # aiokafka is untyped
    """A record, or a batch of them, that cannot be read: its `value` is what could not be read.

    It stands for all offsets from `first_offset` to `offset`, so the reader goes on behind it.
    """

    first_offset: int
    error: UndecodableRecord


def check_readable(record: object) -> None:
    """Raise what is wrong with a record that could not be read.

    Raises:
        UndecodableRecord: it is an UnreadableRecord.
    """
    if isinstance(record, UnreadableRecord):
        raise record.error


class BatchHeader(NamedTuple):
    """The fixed fields in front of a batch of magic 2."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int

    @property
    def last_offset(self) -> int:
        return self.base_offset + max(0, self.last_offset_delta)

    @property
    def is_control(self) -> bool:
        return bool(self.attributes & _CONTROL)

    @property
    def is_transactional(self) -> bool:
        return bool(self.attributes & _TRANSACTIONAL)


class Batches:
    """The batches of one partition in one answer to a fetch; it takes the place of the client's MemoryRecords."""

    def __init__(self, data: bytes | None) -> None:
        self._data = data or b""

    def size_in_bytes(self) -> int:
        """Return how many bytes were fetched."""
        return len(self._data)

    def has_next(self) -> bool:
        """Return whether a whole batch is left."""
        return next(iter(self), None) is not None

    def __iter__(self) -> Iterator[bytes]:
        """Yield each batch. The last one is left out when it is cut short, as the answers of brokers are."""
        data, begin, size = self._data, 0, len(self._data)
        while size - begin >= _LENGTH.size:
            length = _LENGTH.size + _LENGTH.unpack_from(data, begin)[1]
            if length > size - begin:
                return
            if length <= _MAGIC_OFFSET:
                yield data[begin:]  # no length to go by: all that follows is one unreadable batch
                return
            yield data[begin : begin + length]
            begin += length


def batch_header(batch: bytes) -> BatchHeader | None:
    """Return the header of a batch of magic 2, or None of any other."""
    if len(batch) < _HEADER.size or batch[_MAGIC_OFFSET] != _OLDEST_MAGIC_WITH_BATCHES:
        return None
    return BatchHeader(*_HEADER.unpack_from(batch))


def is_intact(batch: bytes) -> bool:
    """Return whether the checksum of a batch of magic 2 is right."""
    header = batch_header(batch)
    return header is None or header.crc == calc_crc32c(batch[_ATTRIBUTES_OFFSET:])


def plain_records(batch: bytes) -> tuple[list[Any], int] | None:
    """Return the records of a batch that has nothing odd, and the offset behind it; None of any other.

    Nearly all batches are of this kind, and this is the quick way: the client's own parser, once.
    """
    if not _HEADER.size <= len(batch) <= _PLAIN_MAX_BYTES or batch[_MAGIC_OFFSET] != _OLDEST_MAGIC_WITH_BATCHES:
        return None
    (count,) = _COUNT.unpack_from(batch, _COUNT_OFFSET)
    parsed = DefaultRecordBatch(batch)
    first, last = parsed.base_offset, parsed.next_offset - 1
    if (
        parsed.attributes & ~_LOG_APPEND_TIME
        or not 0 <= last - first <= _LIKELY_DELTA_MAX
        or not 0 < count < _PLAIN_MAX
    ):
        return None
    if not parsed.validate_crc():
        return None
    try:
        records = list(parsed)
    except Exception:  # noqa: BLE001 - after any error of the parser the batch is read record by record
        return None
    expected = first
    for one in records:
        if not expected <= one.offset <= last:
            return None
        expected = one.offset + 1
    return records, last + 1


def last_offset(batch: bytes, position: int) -> int:
    """Return the last offset of a batch; `position` if the batch does not say one that can be true."""
    header = batch_header(batch)
    if header is not None and 0 <= header.last_offset_delta <= _LIKELY_DELTA_MAX:
        return header.last_offset
    if header is None and batch[_MAGIC_OFFSET : _MAGIC_OFFSET + 1] in (b"\0", b"\1"):
        return int(_LENGTH.unpack_from(batch)[0])
    return position


class BatchReader:
    """Reads the batches of one partition, record by record."""

    def __init__(self, partition: TopicPartition, unpacked_max_bytes: int = UNPACKED_MAX_BYTES) -> None:
        self._partition, self._unpacked_max_bytes = partition, unpacked_max_bytes

    def read(self, batch: bytes, position: int) -> Iterator[ConsumerRecord[Any, Any]]:
        """Yield the records of a batch from `position` on, in order; never raises.

        What cannot be read is an UnreadableRecord; the offset of each is above the one before.
        """
        last = last_offset(batch, position)
        try:
            for record in self._records(batch, position):
                if record.offset >= position:
                    position = record.offset + 1
                    yield record
        except Exception as error:  # noqa: BLE001 - the parsers raise anything, and the reader has to go on
            if position <= last:
                yield self.unreadable_batch(batch, position, last, _reason(error, "unreadable_batch"))

    def unreadable_batch(self, batch: bytes, first: int, last: int, error: UndecodableRecord) -> UnreadableRecord:
        """Return a batch as one record, which replaces all its offsets from `first` to `last`."""
        header = batch_header(batch)
        return self._unreadable(last, header.max_timestamp if header else -1, batch, error, first_offset=first)

    def _records(self, batch: bytes, position: int) -> Iterator[ConsumerRecord[Any, Any]]:
        header = batch_header(batch)
        if header is None:
            yield from map(self._record, self._legacy(batch))
            return
        batch = self._unpacked(batch, header)
        taken, expected = 0, header.base_offset
        parsed, walk = iter(DefaultRecordBatch(batch)), _Walk(batch)
        while not walk.swells(taken):
            try:
                one = next(parsed, None)
            except Exception:  # noqa: BLE001 - after any error of the parser the rest is read record by record
                break
            if one is None:
                return
            if not expected <= one.offset <= header.last_offset:
                break
            taken, expected = taken + 1, one.offset + 1
            if one.offset >= position:
                yield self._record(one)
        yield from self._salvaged(batch, header, walk, taken, expected)

    def _record(self, one: Any) -> ConsumerRecord[Any, Any]:
        key, value = one.key, one.value
        return ConsumerRecord(
            self._partition.topic,
            self._partition.partition,
            one.offset,
            one.timestamp,
            one.timestamp_type,
            key,
            value,
            one.checksum,
            len(key) if key is not None else -1,
            len(value) if value is not None else -1,
            tuple(one.headers),
        )

    def _unreadable(
        self,
        offset: int,
        timestamp: int,
        value: bytes | None,
        error: UndecodableRecord,
        *,
        first_offset: int,
        key: bytes | None = None,
        headers: tuple[tuple[str, bytes | None], ...] = (),
    ) -> UnreadableRecord:
        return UnreadableRecord(
            self._partition.topic,
            self._partition.partition,
            offset,
            timestamp,
            0,
            key,
            value,
            None,
            len(key) if key is not None else -1,
            len(value) if value is not None else -1,
            headers,
            first_offset,
            error,
        )

    # --- records that the client's parser refuses ---------------------------------------------------

    def _salvaged(
        self, batch: bytes, header: BatchHeader, walk: _Walk, taken: int, expected: int
    ) -> Iterator[ConsumerRecord[Any, Any]]:
        """Yield what follows the first `taken` records, each by itself: their lengths say where they end."""
        at, number = walk.at, walk.number
        while at < len(batch) and expected <= header.last_offset:
            begin, end = _frame(batch, at)
            if end <= begin or end > len(batch):
                error = UndecodableRecord("unreadable_record", "the lengths of the records in this batch are wrong")
                yield self._unreadable(
                    header.last_offset, header.max_timestamp, batch[at:], error, first_offset=expected
                )
                return
            if number >= taken:
                record = self._one(batch[begin:end], header, expected)
                expected = record.offset + 1
                yield record
            at, number = end, number + 1

    def _one(self, raw: bytes, header: BatchHeader, expected: int) -> ConsumerRecord[Any, Any]:
        """Return a record from the bytes behind its length; `expected` is its offset if it does not say another."""
        try:
            fields = _Fields(raw)
            fields.skip_byte()
            timestamp = header.first_timestamp + fields.number()
            offset = header.base_offset + fields.number()
        except (ValueError, IndexError, struct.error) as error:
            return self._unreadable(expected, header.max_timestamp, raw, _reason(error), first_offset=expected)
        if header.attributes & _LOG_APPEND_TIME:
            timestamp = header.max_timestamp
        if not expected <= offset <= header.last_offset:
            stray = UndecodableRecord("unreadable_record", f"its offset {offset} is not one of its batch")
            return self._unreadable(expected, timestamp, raw, stray, first_offset=expected)
        try:
            key, value, headers = fields.sized(), fields.sized(), fields.headers()
            fields.end()
        except (ValueError, IndexError, struct.error) as error:
            return self._unreadable(offset, timestamp, raw, _reason(error), first_offset=offset)
        named = tuple((name.decode(errors="backslashreplace"), content) for name, content in headers)
        if (odd := next((name for name, _ in headers if not _is_utf8(name)), None)) is None:
            kind = int(bool(header.attributes & _LOG_APPEND_TIME))
            return self._record(_Salvaged(offset, timestamp, kind, key, value, named))
        why = f"the name of a header is not UTF-8 ({odd[:100]!r}); publish the record again with another name"
        refusal = UndecodableRecord("unreadable_record", why)
        return self._unreadable(offset, timestamp, value, refusal, first_offset=offset, key=key, headers=named)

    # --- decompression, within bounds ---------------------------------------------------------------

    def _unpacked(self, batch: bytes, header: BatchHeader) -> bytes:
        """Return the batch without compression: its header says so."""
        codec = header.attributes & _CODEC_MASK
        if codec == _NO_CODEC:
            return batch
        payload = decompress(codec, batch[_HEADER.size :], self._unpacked_max_bytes)
        plain = header._replace(attributes=header.attributes & ~_CODEC_MASK)
        return _HEADER.pack(*plain) + payload

    def _legacy(self, batch: bytes) -> Iterator[Any]:
        """Yield the records of a message of magic 0 or 1, which may hold others, compressed."""
        magic = batch[_MAGIC_OFFSET] if len(batch) > _MAGIC_OFFSET else -1
        if magic not in _LEGACY_MIN_BYTES or len(batch) < _LEGACY_MIN_BYTES[magic]:
            raise UndecodableRecord("unreadable_batch", f"no message format of Kafka's has the magic byte {magic}")
        parsed = LegacyRecordBatch(memoryview(batch), magic)
        if not parsed.validate_crc():
            raise UndecodableRecord("unreadable_batch", "its checksum is wrong")
        codec = batch[_MAGIC_OFFSET + 1] & _CODEC_MASK
        if codec != _NO_CODEC:
            body = _Fields(batch[_LEGACY_BODY_OFFSET[magic] :])
            body.legacy_sized()
            decompress(codec, body.legacy_sized(), self._unpacked_max_bytes)
        return iter(parsed)


def decompress(codec: int, data: bytes, max_bytes: int) -> bytes:
    """Decompress `data` to at most `max_bytes`, with no more memory than that.

    Raises:
        UndecodableRecord: it has more bytes, or `data` is not of this codec.
    """
    try:
        if codec == _GZIP:
            return _gunzip(data, max_bytes)
        if codec == _SNAPPY:
            return _unsnap(data, max_bytes)
        if codec == _LZ4:
            return _into(cramjam.lz4.decompress_into, data, max_bytes)
        if codec == _ZSTD:
            return _into(cramjam.zstd.decompress_into, data, max_bytes)
    except (cramjam.DecompressionError, zlib.error, struct.error, ValueError) as error:
        raise UndecodableRecord("unreadable_batch", f"its records cannot be decompressed: {error}") from error
    raise UndecodableRecord("unreadable_batch", f"there is no codec {codec}")


def _too_large(max_bytes: int) -> UndecodableRecord:
    return UndecodableRecord(
        "batch_too_large",
        f"its records decompress to more than {max_bytes:,} bytes; publish them in smaller batches",
    )


def _into(decompress_into: Any, data: bytes, max_bytes: int) -> bytes:
    """Decompress into a buffer that grows up to `max_bytes`."""
    size = min(max_bytes, max(_FIRST_GUESS_BYTES, _GUESS_FACTOR * len(data)))
    while True:
        buffer = bytearray(size)
        try:
            return bytes(memoryview(buffer)[: decompress_into(data, buffer)])
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise
            if size == max_bytes:
                raise _too_large(max_bytes) from error
            size = min(max_bytes, size * _GUESS_FACTOR)


def _gunzip(data: bytes, max_bytes: int) -> bytes:
    """Return all members of a gzip stream."""
    parts: list[bytes] = []
    left = max_bytes
    while data:
        member = zlib.decompressobj(wbits=31)
        parts.append(member.decompress(data, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise _too_large(max_bytes)
        if not member.eof:
            raise ValueError("the stream is cut short")
        data = member.unused_data.lstrip(b"\0")
    return b"".join(parts)


def _unsnap(data: bytes, max_bytes: int) -> bytes:
    """Snappy as it is, or in the blocks of the Java library."""
    parts: list[bytes] = []
    left = max_bytes
    for block in _snappy_blocks(data):
        left -= cramjam.snappy.decompress_raw_len(block)
        if left < 0:
            raise _too_large(max_bytes)
        parts.append(bytes(cramjam.snappy.decompress_raw(block)))
    return b"".join(parts)


def _snappy_blocks(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_XERIAL):
        yield data
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(data):
        (size,) = struct.unpack_from(">i", data, at)
        at += 4
        if not 0 <= size <= len(data) - at:
            raise ValueError("the length of a snappy block is wrong")
        yield data[at : at + size]
        at += size


def _frame(batch: bytes, at: int) -> tuple[int, int]:
    """Return where the record whose length is at `at` begins and ends: within the batch if its length is wrong."""
    try:
        length, begin = decode_varint(bytearray(batch[at : at + _VARINT_MAX_BYTES]), 0)
    except (ValueError, IndexError):
        return at, at
    return at + begin, at + begin + length


class _Walk:
    """Goes through a large batch one record ahead of the client's parser."""

    def __init__(self, batch: bytes) -> None:
        self._batch = batch
        self.at = self._end = _HEADER.size
        """Return where the record of this number begins."""
        self.number = 0

    def swells(self, taken: int) -> bool:
        """Return whether the record behind the first `taken` has more headers than a reader may get."""
        if self.number < taken and self._end > self.at:
            self.at, self.number = self._end, self.number + 1
        if self.number < taken or len(self._batch) - self.at <= _MANY_HEADERS_BYTES:
            return False
        begin, self._end = _frame(self._batch, self.at)
        return self._end - begin > _MANY_HEADERS_BYTES and _headers_count(self._batch, begin) > HEADERS_MAX_COUNT


def _headers_count(batch: bytes, at: int) -> int:
    """Return how many headers the record says it has; 0 if that cannot be read."""
    at += 1  # its attributes
    try:
        for is_sized in (False, False, True, True):  # its time, its offset, its key, its value
            number, width = decode_varint(bytearray(batch[at : at + _VARINT_MAX_BYTES]), 0)
            at += width + (max(0, number) if is_sized else 0)
        return int(decode_varint(bytearray(batch[at : at + _VARINT_MAX_BYTES]), 0)[0])
    except (ValueError, IndexError):
        return 0


class _Salvaged(NamedTuple):
    """A record as the client's parser would return it."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    checksum: None = None


class _Fields:
    """Reads the fields of a record, one after the other, and never beyond its end."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = bytearray(raw), 0

    def skip_byte(self) -> None:
        self._at += 1

    def number(self) -> int:
        number, self._at = decode_varint(self._raw, self._at)
        return int(number)

    def sized(self) -> bytes | None:
        length = self.number()
        return None if length < 0 else self._take(length)

    def legacy_sized(self) -> bytes:
        (length,) = struct.unpack_from(">i", self._raw, self._at)
        self._at += 4
        return self._take(max(0, length))

    def headers(self) -> list[tuple[bytes, bytes | None]]:
        count = self.number()
        if count < 0:
            raise ValueError(f"it has {count} headers")
        if count > HEADERS_MAX_COUNT:
            raise ValueError(f"it has {count:,} headers, and {HEADERS_MAX_COUNT:,} is the limit")
        found: list[tuple[bytes, bytes | None]] = []
        while len(found) < count:
            name = self.sized()
            if name is None:
                raise ValueError("a header has no name")
            found.append((name, self.sized()))
        return found

    def end(self) -> None:
        if self._at != len(self._raw):
            raise ValueError(f"{len(self._raw) - self._at} bytes follow its last header")

    def _take(self, length: int) -> bytes:
        if length > len(self._raw) - self._at:
            raise ValueError("a field ends behind its record")
        self._at += length
        return bytes(self._raw[self._at - length : self._at])


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _reason(error: Exception, code: str = "unreadable_record") -> UndecodableRecord:
    if isinstance(error, UndecodableRecord):
        return error
    return UndecodableRecord(code, f"it is not built as Kafka's records are: {error}")
