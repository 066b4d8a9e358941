"""Record batches made by hand, right or wrong in any of their fields."""

from __future__ import annotations

import struct

from aiokafka.record.util import calc_crc32c, encode_varint

HEADER = struct.Struct(">qiibIhiqqqhii")
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4
TRANSACTIONAL, CONTROL = 0x10, 0x20

Headers = tuple[tuple[bytes, bytes | None], ...]


def varint(number: int) -> bytes:
    out = bytearray()
    encode_varint(number, out.append)
    return bytes(out)


def sized(content: bytes | None) -> bytes:
    return varint(-1) if content is None else varint(len(content)) + content


def record(
    delta: int = 0,
    value: bytes | None = b"{}",
    key: bytes | None = b"k",
    headers: Headers = (),
    *,
    timestamp_delta: int = 0,
    header_count: int | None = None,
) -> bytes:
    """A record without its length."""
    count = len(headers) if header_count is None else header_count
    framed = b"".join(sized(name) + sized(content) for name, content in headers)
    return b"\0" + varint(timestamp_delta) + varint(delta) + sized(key) + sized(value) + varint(count) + framed


def framed(*records: bytes) -> bytes:
    return b"".join(varint(len(one)) + one for one in records)


def batch(
    payload: bytes,
    *,
    count: int,
    base: int = 0,
    last_delta: int | None = None,
    attributes: int = 0,
    timestamp: int = 1_700_000_000_000,
    producer: int = -1,
    crc: int | None = None,
    magic: int = 2,
) -> bytes:
    """A batch around a payload, which is compressed already if `attributes` say so."""
    last = count - 1 if last_delta is None else last_delta
    fields = (attributes, last, timestamp, timestamp, producer, 0 if producer >= 0 else -1, -1, count)
    checked = struct.pack(">hiqqqhii", *fields) + payload
    crc = calc_crc32c(checked) if crc is None else crc
    return struct.pack(">qiibI", base, len(checked) + 9, 0, magic, crc) + checked


def marker(kind: int, *, base: int, producer: int) -> bytes:
    """The end of a transaction: 0 aborts it, 1 commits it."""
    control = record(0, struct.pack(">hi", 0, 0), struct.pack(">hh", 0, kind))
    return batch(framed(control), count=1, base=base, attributes=TRANSACTIONAL | CONTROL, producer=producer)
