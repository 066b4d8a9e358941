"""Records and batches that a client library cannot parse, on a real broker: each costs itself and no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import cramjam
import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from ends import Ends, call_request, open_ends
from parrot import CONFIG, Parrot, running, settings_of
from wire import produce

from batches import GZIP, LZ4, SNAPPY, TRANSACTIONAL, ZSTD, batch, framed, marker, record, varint
from triptych.client import Address
from triptych.client.feed import Feed
from triptych.kernel.kafka.bus import Kafka
from triptych.kernel.kafka.clients import Consumer
from triptych.kernel.kafka.compacted_topic import CompactedTopic
from triptych.kernel.kafka.record_batches import UnreadableRecord
from triptych.kernel.postgres.database import connect
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.schemas import DeadLetter

LATIN_1 = ((b"caf\xe9", b"1"),)
ODD = framed(record(0, b"{}", b"x", LATIN_1))
SWELLING = framed(record(0, b"x" * 40_000_000))

BATCHES = {
    "header-name": batch(ODD, count=1),
    "gzip": batch(gzip_encode(ODD), count=1, attributes=GZIP),
    "snappy": batch(snappy_encode(ODD), count=1, attributes=SNAPPY),
    "snappy-raw": batch(bytes(cramjam.snappy.compress_raw(ODD)), count=1, attributes=SNAPPY),
    "lz4": batch(lz4_encode(ODD), count=1, attributes=LZ4),
    "lz4-linked": batch(bytes(cramjam.lz4.compress(ODD)), count=1, attributes=LZ4),
    "zstd": batch(zstd_encode(ODD), count=1, attributes=ZSTD),
    "zstd-two-frames": batch(bytes(zstd_encode(ODD[:5])) + bytes(zstd_encode(ODD[5:])), count=1, attributes=ZSTD),
    "gzip-two-members": batch(gzip_encode(ODD[:5]) + gzip_encode(ODD[5:]), count=1, attributes=GZIP),
    "gzip-trailing": batch(gzip_encode(ODD) + b"\0" * 9, count=1, attributes=GZIP),
    "zstd-trailing": batch(bytes(zstd_encode(ODD)) + b"trailing", count=1, attributes=ZSTD),
    "lz4-trailing": batch(bytes(lz4_encode(ODD)) + b"trailing", count=1, attributes=LZ4),
    "swelling-gzip": batch(gzip_encode(SWELLING), count=1, attributes=GZIP),
    "swelling-lz4": batch(lz4_encode(SWELLING), count=1, attributes=LZ4),
    "swelling-zstd": batch(zstd_encode(SWELLING), count=1, attributes=ZSTD),
    "garbage-zstd": batch(b"garbage", count=1, attributes=ZSTD),
    "no-such-codec": batch(ODD, count=1, attributes=7),
    "wrong-checksum": batch(ODD, count=1, crc=1),
    "magic-1": batch(ODD, count=1, magic=1),
    "magic-3": batch(ODD, count=1, magic=3),
    "control": marker(0, base=0, producer=-1),
    "transactional-of-nobody": batch(ODD, count=1, attributes=TRANSACTIONAL),
    "empty": batch(b"", count=0, last_delta=0),
    "count-too-large": batch(ODD, count=5),
    "count-too-small": batch(framed(record(0), record(1)), count=1),
    "header-count": batch(framed(record(header_count=3)), count=1),
    "negative-header-count": batch(framed(record(header_count=-3)), count=1),
    "trailing-in-record": batch(framed(record() + b"x"), count=1),
    "trailing-in-record-zstd": batch(zstd_encode(framed(record() + b"x")), count=1, attributes=ZSTD),
    "header-count-zstd": batch(zstd_encode(framed(record(header_count=3))), count=1, attributes=ZSTD),
    "long-varint": batch(framed(b"\0" + b"\x80" * 9 + b"\0" + record()[2:]), count=1),
    "length-lies": batch(varint(10_000) + record(), count=1),
    "offset-far-away": batch(framed(record(1_000_000)), count=1),
    "offset-twice-zstd": batch(zstd_encode(framed(record(0), record(0))), count=2, attributes=ZSTD),
    "long-ago": batch(framed(record(timestamp_delta=-(2**60))), count=1, timestamp=-5),
    "nulls": batch(framed(record(0, None, None, ((b"", None),))), count=1),
    "attributes-of-the-future": batch(ODD, count=1, attributes=0x40),
}


@pytest.fixture(scope="module")
async def ends(servers, prefix, database, create_topics) -> AsyncIterator[Ends]:
    await create_topics("calls.echo", "results", "dead-letters")
    settings = settings_of(servers.kafka, database, prefix)
    async with (
        await connect(settings.postgres.get_secret_value(), "test") as pool,
        open_ends(settings, pool, "dead-letters") as ends,
    ):
        yield ends


@pytest.fixture(scope="module")
async def wire(servers) -> AsyncIterator[AIOKafkaClient]:
    client = AIOKafkaClient(bootstrap_servers=servers.kafka)
    await client.bootstrap()
    yield client
    await client.close()


async def test_whatever_batch_the_broker_takes_its_reader_comes_to_the_end(ends, wire, create_topics, prefix):
    await create_topics("odd", partitions=1)
    topic, taken = f"{prefix}.odd", {}
    for name, raw in BATCHES.items():
        code, offset = await produce(wire, topic, 0, raw)
        if not code:
            taken[offset] = name
    code, end = await produce(wire, topic, 0, batch(framed(record(0, b"the end")), count=1))
    assert code == 0
    assert {"header-name", "gzip", "snappy", "lz4", "zstd", "swelling-zstd", "nulls"} <= set(taken.values()), taken
    seen = {}
    async with asyncio.timeout(120), Kafka(ends.settings).subscribe([topic], f"{prefix}.odd") as subscription:
        while end not in seen:
            for records in (await subscription.poll(500)).values():
                seen |= {one.offset: one for one in records}
    odd = {taken[offset]: one for offset, one in seen.items() if isinstance(one, UnreadableRecord)}
    assert odd["header-name"].value == b"{}"
    assert odd["swelling-zstd"].error.code == "batch_too_large"
    assert seen[end].value == b"the end"


async def test_a_request_that_cannot_be_parsed_is_a_dead_letter_and_the_next_is_answered(ends, wire, eventually):
    topic = ends.settings.topic(CONFIG.request_noun)
    for raw in (BATCHES["header-name"], BATCHES["swelling-zstd"]):
        assert (await produce(wire, topic, 0, raw))[0] == 0
    one = call_request(partition=0)
    async with running(ends, Parrot()):
        await ends.ask(one)
        await ends.answer_to(one)
        await eventually(lambda: len(ends.others) == 2)
    letters = {letter.reason.code: letter for letter in (DeadLetter.model_validate_json(r.value) for r in ends.others)}
    assert set(letters) == {"unreadable_record", "batch_too_large"}
    assert "caf" in letters["unreadable_record"].reason.message
    headers = await ends.pool.fetchval("select headers from dead_letters where code = 'unreadable_record'")
    assert "caf\\\\xe9" in headers


async def test_a_follower_of_a_compacted_topic_skips_what_cannot_be_parsed(ends, wire, create_topics, prefix):
    await create_topics("contracts", partitions=1)
    topic = f"{prefix}.contracts"
    await produce(wire, topic, 0, BATCHES["header-name"])
    await produce(wire, topic, 0, batch(framed(record(0, b"good")), count=1))
    learnt = []
    service = Service("test", configure_logging("info", "json"), Health("test", "one"), asyncio.Event())
    async with CompactedTopic(service, ends.settings, "contracts", learnt.append) as follower:
        await asyncio.wait_for(follower.ready(), 120)
    assert [one.value for one in learnt] == [b"good"]


async def test_a_follower_of_a_compacted_topic_skips_what_is_too_large_unread(ends, wire, create_topics, prefix):
    await create_topics("tool-controls", partitions=1)
    topic = f"{prefix}.tool-controls"
    large = batch(zstd_encode(framed(record(0, b"x" * 15_000_000))), count=1, attributes=ZSTD)
    for raw in (large, batch(framed(record(0, b"good")), count=1)):
        assert (await produce(wire, topic, 0, raw))[0] == 0
    sizes = []
    service = Service("test", configure_logging("info", "json"), Health("test", "one"), asyncio.Event())
    async with CompactedTopic(
        service, ends.settings, "tool-controls", lambda one: sizes.append(len(one.value))
    ) as follower:
        await asyncio.wait_for(follower.ready(), 120)
    assert sizes == [4]


async def test_clients_skip_what_cannot_be_parsed_and_say_so(ends, wire, create_topics, prefix, caplog):
    await create_topics("outcomes", partitions=1)
    await produce(wire, f"{prefix}.outcomes", 0, BATCHES["header-name"])
    address = Address(kafka=ends.settings.kafka, topic_prefix=prefix)
    async with asyncio.timeout(120), Feed(address, ["outcomes"], from_start=True, to_end=True) as feed:
        assert [message async for message in feed] == []
    assert "outcomes[0]@0 is not readable" in caplog.text
    assert "not UTF-8" in caplog.text


async def test_a_poll_takes_a_bounded_part_of_what_a_fetch_swells_to_and_no_partition_waits_for_all_of_it(
    ends, wire, create_topics, prefix
):
    await create_topics("swelling", partitions=2)
    topic = f"{prefix}.swelling"
    large = batch(zstd_encode(framed(record(0, b"x" * 15_000_000))), count=1, attributes=ZSTD)
    tiny = framed(*(record(n, b"x", None) for n in range(50_000)))
    small = batch(zstd_encode(tiny), count=50_000, attributes=ZSTD)
    for raw in [large] * 8 + [small] * 2:
        assert (await produce(wire, topic, 0, raw))[0] == 0
    assert (await produce(wire, topic, 1, batch(framed(record(0, b"of another")), count=1)))[0] == 0
    consumer = Consumer(bootstrap_servers=ends.settings.kafka)
    polls: list[dict[int, list[int]]] = []
    async with asyncio.timeout(120), consumer:
        consumer.assign([TopicPartition(topic, 0), TopicPartition(topic, 1)])
        await consumer.seek_to_beginning()
        while sum(len(sizes) for poll in polls for sizes in poll.values()) < 100_009:
            polled = await consumer.getmany(timeout_ms=500)
            polls.append({tp.partition: [len(one.value) for one in records] for tp, records in polled.items()})
    assert all(sizes == [15_000_000] or len(sizes) <= 10_000 for poll in polls for sizes in poll.values())
    assert sum(15_000_000 in sizes for poll in polls for sizes in poll.values()) == 8
    of_another = next(number for number, poll in enumerate(polls) if 1 in poll)
    assert sum(bool(poll) for poll in polls[:of_another]) <= 2


async def test_the_reader_of_a_batch_that_lies_before_its_position_does_not_stand_still(
    ends, wire, create_topics, prefix
):
    await create_topics("middle", partitions=1)
    topic = f"{prefix}.middle"
    await produce(wire, topic, 0, batch(framed(*(record(n, b"%d" % n, b"k", LATIN_1) for n in range(4))), count=4))
    async with Kafka(ends.settings).subscribe([topic], f"{prefix}.middle") as subscription:
        subscription.consumer.seek(TopicPartition(topic, 0), 2)
        found = []
        async with asyncio.timeout(120):
            while len(found) < 2:
                for records in (await subscription.poll(500)).values():
                    found += records
    assert [one.offset for one in found] == [2, 3]
