"""Whatever a batch of records holds, its reader goes on, and what cannot be read keeps its bytes."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Sequence

import cramjam
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from hypothesis import given
from hypothesis import strategies as st

from batches import CONTROL, GZIP, LZ4, SNAPPY, TRANSACTIONAL, ZSTD, batch, framed, marker, record, varint
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka.clients import _Records
from triptych.kernel.kafka.record_batches import HEADERS_MAX_COUNT, Batches, UnreadableRecord, decompress

TP = TopicPartition("triptych.tasks", 0)
LATIN_1 = ((b"caf\xe9", b"1"),)
READ_UNCOMMITTED, READ_COMMITTED = 0, 1


def read(
    *batches: bytes,
    at: int = 0,
    aborted: Sequence[tuple[int, int]] = (),
    suspects: dict[TopicPartition, int] | None = None,
    isolation: int = READ_COMMITTED,
) -> tuple[list[ConsumerRecord], int]:
    """The records of one answer to a fetch from `at`, and where the next fetch begins."""
    suspects = {} if suspects is None else suspects
    check_crcs = True
    fetched = _Records(suspects, TP, Batches(b"".join(batches)), list(aborted), at, None, None, check_crcs, isolation)
    return list(fetched), fetched.next_fetch_offset


def story(records: Sequence[ConsumerRecord]) -> list[tuple[int, bytes | None, str | None]]:
    """Offset, value and code of each record."""
    return [(one.offset, one.value, one.error.code if isinstance(one, UnreadableRecord) else None) for one in records]


def test_a_header_name_that_is_not_utf8_costs_its_own_record_and_no_other() -> None:
    payload = framed(record(0, b"a"), record(1, b"b", headers=LATIN_1), record(2, b"c"))
    records, after = read(batch(payload, count=3))
    assert story(records) == [(0, b"a", None), (1, b"b", "unreadable_record"), (2, b"c", None)]
    assert after == 3
    assert records[1].headers == (("caf\\xe9", b"1"),)
    assert records[1].key == b"k"
    assert r"caf\xe9" in records[1].error.message


@pytest.mark.parametrize("where", range(3))
def test_the_odd_record_may_stand_anywhere_and_the_reader_may_begin_anywhere(where: int) -> None:
    payload = framed(*(record(n, b"%d" % n, headers=LATIN_1 if n == where else ()) for n in range(3)))
    whole, _ = read(batch(payload, count=3, base=10), at=10)
    for begin in range(10, 13):
        records, after = read(batch(payload, count=3, base=10), at=begin)
        assert story(records) == story(whole)[begin - 10 :]
        assert after == 13


@pytest.mark.parametrize(
    ("codec", "encode"), [(GZIP, gzip_encode), (SNAPPY, snappy_encode), (LZ4, lz4_encode), (ZSTD, zstd_encode)]
)
def test_compressed_records_are_read_the_odd_one_among_them_too(codec: int, encode: object) -> None:
    payload = encode(framed(record(0, b"a"), record(1, b"b", headers=LATIN_1)))
    records, after = read(batch(payload, count=2, attributes=codec))
    assert story(records) == [(0, b"a", None), (1, b"b", "unreadable_record")]
    assert after == 2


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD, 5, 6, 7])
def test_a_batch_that_cannot_be_decompressed_is_one_dead_letter_with_its_bytes_and_its_range(codec: int) -> None:
    raw = batch(b"this is no compressed stream", count=5, base=3, attributes=codec)
    records, after = read(raw, batch(framed(record(0, b"next")), count=1, base=8), at=3)
    assert story(records) == [(7, raw, "unreadable_batch"), (8, b"next", None)]
    assert records[0].first_offset == 3
    assert after == 9


@pytest.mark.parametrize(
    ("codec", "encode"), [(GZIP, gzip_encode), (SNAPPY, snappy_encode), (LZ4, lz4_encode), (ZSTD, zstd_encode)]
)
def test_a_batch_that_swells_is_one_dead_letter_and_never_unpacked(codec: int, encode: object) -> None:
    raw = batch(encode(framed(record(0, b"x" * 40_000_000))), count=1, attributes=codec)
    records, after = read(raw)
    assert story(records) == [(0, raw, "batch_too_large")]
    assert after == 1


@pytest.mark.parametrize(
    ("codec", "encode"), [(GZIP, gzip_encode), (SNAPPY, snappy_encode), (LZ4, lz4_encode), (ZSTD, zstd_encode)]
)
@pytest.mark.parametrize("size", [0, 1, 999, 1_000, 70_000, 1_000_000])
def test_what_fits_is_decompressed_whole_to_the_last_byte(codec: int, encode: object, size: int) -> None:
    data = b"ab" * (size // 2) + b"c" * (size % 2)
    assert decompress(codec, bytes(encode(data)), size) == data
    if size:
        with pytest.raises(UndecodableRecord, match="more than"):
            decompress(codec, bytes(encode(data)), size - 1)


def test_every_form_of_a_stream_that_brokers_accept_is_read() -> None:
    assert decompress(GZIP, gzip.compress(b"ab") + gzip.compress(b"cd"), 10) == b"abcd"
    assert decompress(SNAPPY, bytes(cramjam.snappy.compress_raw(b"raw")), 10) == b"raw"
    assert decompress(ZSTD, bytes(cramjam.zstd.compress(b"ab")) + bytes(cramjam.zstd.compress(b"cd")), 10) == b"abcd"
    assert decompress(LZ4, bytes(cramjam.lz4.compress(b"ab")) + bytes(cramjam.lz4.compress(b"cd")), 10) == b"abcd"


def test_a_snappy_length_that_lies_takes_no_memory() -> None:
    with pytest.raises(UndecodableRecord, match="more than"):
        decompress(SNAPPY, b"\xff\xff\xff\xff\x0f" + b"\0" * 20, 1_000_000)


@pytest.mark.parametrize(
    "odd",
    [
        record(1, b"b", header_count=2**31 - 1),
        record(1, b"b", header_count=-5),
        record(1, b"b") + b"trailing",
        b"\0" + varint(0) + varint(1) + varint(2**40) + b"x",
        b"\0" + varint(0) + varint(1) + b"\xff" * 12,
        b"\xff",
        b"\0",
    ],
)
def test_a_record_whose_fields_lie_costs_only_itself(odd: bytes) -> None:
    records, after = read(batch(framed(record(0, b"a"), odd, record(2, b"c")), count=3))
    assert [(offset, code) for offset, _, code in story(records)] == [(0, None), (1, "unreadable_record"), (2, None)]
    assert records[1].value == odd
    assert after == 3


def test_where_the_lengths_lie_the_rest_of_the_batch_is_one_dead_letter() -> None:
    rest = varint(1_000) + record(1, b"b")
    records, after = read(
        batch(framed(record(0, b"a")) + rest, count=4), batch(framed(record(0, b"next")), count=1, base=4)
    )
    assert story(records) == [(0, b"a", None), (3, rest, "unreadable_record"), (4, b"next", None)]
    assert records[1].first_offset == 1
    assert after == 5


@pytest.mark.parametrize("count", [-1, 0, 1, 3, 2**31 - 1])
def test_a_count_that_lies_loses_no_record(count: int) -> None:
    records, after = read(batch(framed(record(0, b"a"), record(1, b"b")), count=count, last_delta=1))
    assert [(offset, value) for offset, value, _ in story(records)] == [(0, b"a"), (1, b"b")]
    assert after == 2


def test_an_offset_outside_of_its_batch_takes_the_reader_nowhere_else() -> None:
    payload = framed(record(0, b"a"), record(1_000_000, b"b"), record(2, b"c"))
    records, after = read(batch(payload, count=3))
    assert [(offset, code) for offset, _, code in story(records)] == [(0, None), (1, "unreadable_record"), (2, None)]
    assert after == 3


def test_null_keys_and_values_and_absurd_times_are_no_matter() -> None:
    payload = framed(record(0, None, None, timestamp_delta=-(2**62)), record(1, b"", b"", timestamp_delta=2**62))
    records, after = read(batch(payload, count=2))
    assert story(records) == [(0, None, None), (1, b"", None)]
    assert after == 2


def test_an_empty_batch_moves_the_reader_on() -> None:
    assert read(batch(b"", count=0, last_delta=4, base=2), at=2) == ([], 7)


def test_a_wrong_checksum_is_fetched_once_more_and_then_buried() -> None:
    before = batch(framed(record(0, b"a")), count=1)
    raw = batch(framed(record(0, b"b"), record(1, b"c")), count=2, base=1, crc=7)
    after = batch(framed(record(0, b"d")), count=1, base=3)
    suspects: dict[TopicPartition, int] = {}
    records, at = read(before, raw, after, suspects=suspects)
    assert (story(records), at) == ([(0, b"a", None)], 1)
    records, at = read(raw, after, at=at, suspects=suspects)
    assert (story(records), at) == ([(2, raw, "unreadable_batch"), (3, b"d", None)], 4)


@pytest.mark.parametrize("magic", [0, 1, 3, 99, -1])
def test_a_batch_of_another_format_moves_the_reader_on(magic: int) -> None:
    suspects: dict[TopicPartition, int] = {}
    raw = batch(framed(record(0, b"a")), count=1, base=4, magic=magic)
    records, at = read(raw, at=4, suspects=suspects)
    assert [(one.value, one.error.code) for one in records] == [(raw, "unreadable_batch")]
    assert at > 4


def test_what_was_aborted_is_not_there_and_what_was_committed_is() -> None:
    def written(base: int, value: bytes, producer: int) -> bytes:
        return batch(framed(record(0, value)), count=1, base=base, attributes=TRANSACTIONAL, producer=producer)

    log = [
        written(0, b"aborted", 7),
        written(1, b"of another", 8),
        batch(framed(record(0, b"plain")), count=1, base=2),
        marker(0, base=3, producer=7),
        written(4, b"committed", 7),
        marker(1, base=5, producer=8),
        marker(1, base=6, producer=7),
    ]
    records, after = read(*log, aborted=[(7, 0)])
    assert [one.value for one in records] == [b"of another", b"plain", b"committed"]
    assert after == 7


def test_a_marker_that_cannot_be_read_ends_its_transaction_all_the_same() -> None:
    odd = batch(b"\xff\xff", count=1, base=1, attributes=TRANSACTIONAL | CONTROL, producer=7)
    committed = batch(framed(record(0, b"b")), count=1, base=2, attributes=TRANSACTIONAL, producer=7)
    aborted = batch(framed(record(0, b"a")), count=1, base=0, attributes=TRANSACTIONAL, producer=7)
    records, after = read(aborted, odd, committed, aborted=[(7, 0)])
    assert [one.value for one in records] == [b"b"]
    assert after == 3


def test_a_record_of_a_million_headers_is_a_dead_letter_before_they_are_objects() -> None:
    swelling = record(1, b"b", headers=((b"", b""),) * 1_000_000)
    payload = bytes(zstd_encode(framed(record(0, b"a"), swelling, record(2, b"c"))))
    tracemalloc.start()
    try:
        records, after = read(batch(payload, count=3, attributes=ZSTD))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert story(records) == [(0, b"a", None), (1, swelling, "unreadable_record"), (2, b"c", None)]
    assert "1,000,000 headers" in records[1].error.message
    assert after == 3
    assert peak_bytes < 64 * 1_048_576


def test_as_many_headers_as_are_allowed_are_read() -> None:
    headers = ((b"h", b"v"),) * HEADERS_MAX_COUNT
    ((one,), _) = read(batch(bytes(zstd_encode(framed(record(0, b"a", headers=headers)))), count=1, attributes=ZSTD))
    assert len(one.headers) == HEADERS_MAX_COUNT


def test_an_odd_record_behind_many_is_found_without_going_through_them_again() -> None:
    payload = framed(*(record(n, b"x") for n in range(30_000)), record(30_000, b"odd", headers=LATIN_1))
    records, after = read(batch(bytes(zstd_encode(payload)), count=30_001, attributes=ZSTD))
    assert [one.offset for one in records] == list(range(30_001))
    assert isinstance(records[-1], UnreadableRecord)
    assert after == 30_001


@given(
    st.lists(
        st.builds(
            batch,
            st.one_of(
                st.binary(max_size=60),
                st.lists(st.one_of(st.binary(max_size=30), st.builds(record, st.integers(-2, 5))), max_size=4).map(
                    lambda records: framed(*records)
                ),
            ),
            count=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 5),
            base=st.integers(0, 20),
            last_delta=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 5),
            attributes=st.integers(0, 127),
            magic=st.sampled_from([2, 2, 2, 0, 1, 3]),
            producer=st.integers(-1, 2),
            crc=st.sampled_from([None, None, None, 0]),
        )
        | st.binary(max_size=80),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 25),
)
def test_any_bytes_are_read_to_their_end_and_the_offset_always_advances(batches: list[bytes], at: int) -> None:
    suspects: dict[TopicPartition, int] = {}
    fetched = b"".join(batches)
    if not Batches(fetched).has_next():
        return
    begin = at
    for _ in range(2):  # a wrong checksum is worth one more fetch
        records, after = read(fetched, at=begin, suspects=suspects)
        offsets = [one.offset for one in records]
        assert offsets == sorted(set(offsets))
        assert all(begin <= offset < after for offset in offsets)
        begin = after
        if after > at:
            break
    assert after > at
