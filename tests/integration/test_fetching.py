"""Fetch sessions with a real broker: a consumer names little, and reads everything, once and in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from triptych.kernel.kafka.bus import Kafka, Outgoing, Subscription, TopicPartition
from triptych.kernel.kafka.fetch_session import FULL, NO_SESSION, FetchSession
from triptych.kernel.process.settings import ServiceSettings

TOPIC, PARTITIONS = "sessions", 3


@pytest.fixture(scope="module")
async def kafka(servers, prefix, create_topics) -> Kafka:
    await create_topics(TOPIC, partitions=PARTITIONS)
    return Kafka(ServiceSettings(kafka=servers.kafka, postgres="postgresql://nobody@nowhere/x", topic_prefix=prefix))


@pytest.fixture
async def subscription(kafka: Kafka, request: pytest.FixtureRequest) -> AsyncIterator[Subscription]:
    async with kafka.subscribe((kafka.settings.topic(TOPIC),), request.node.name) as subscription:
        yield subscription


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many partitions each fetch has named."""
    counts: list[int] = []
    ask = FetchSession.ask

    def counted(session: FetchSession, wanted: Any) -> Any:
        changed, forgotten = ask(session, wanted)
        counts.append(sum(len(partitions) for _, partitions in changed))
        return changed, forgotten

    monkeypatch.setattr(FetchSession, "ask", counted)
    return counts


async def publish(kafka: Kafka, *values: bytes, partition: int = 0) -> None:
    async with kafka.publisher() as publisher:
        await publisher.publish([Outgoing(kafka.settings.topic(TOPIC), partition, b"k", [], value) for value in values])


async def read_until(subscription: Subscription, last: bytes) -> list[bytes]:
    """Poll until this value has come; all values in their order."""
    values: list[bytes] = []
    while last not in values:
        polled = await subscription.poll(1_000)
        values += [record.value for records in polled.values() for record in records]
    return values


def session_of(subscription: Subscription) -> FetchSession:
    (session,) = subscription.consumer._fetcher._sessions.values()
    return session


async def test_a_fetch_names_the_partition_that_had_a_record_and_no_other(kafka, subscription, named):
    for number in range(5):
        await publish(kafka, b"one %d" % number, partition=number % PARTITIONS)
        await read_until(subscription, b"one %d" % number)
    assert PARTITIONS in named
    assert named[-1] <= 1
    assert session_of(subscription).id != NO_SESSION


async def test_a_consumer_that_goes_back_reads_again_from_there(kafka, subscription):
    await publish(kafka, b"go 1", b"go 2", b"go 3", partition=1)
    await read_until(subscription, b"go 3")
    place = TopicPartition(kafka.settings.topic(TOPIC), 1)
    subscription.consumer.seek(place, subscription.positions()[place] - 2)
    assert await read_until(subscription, b"go 3") == [b"go 2", b"go 3"]


async def test_a_paused_partition_is_left_out_and_read_on_afterwards(kafka, subscription):
    await publish(kafka, b"before", partition=2)
    await read_until(subscription, b"before")
    place = TopicPartition(kafka.settings.topic(TOPIC), 2)
    subscription.consumer.pause(place)
    await publish(kafka, b"paused", partition=2)
    await publish(kafka, b"other", partition=0)
    assert b"paused" not in await read_until(subscription, b"other")
    subscription.consumer.resume(place)
    assert await read_until(subscription, b"paused") == [b"paused"]


@pytest.mark.parametrize("change", [{"id": 1_234_567}, {"epoch": 99}])
async def test_a_consumer_whose_session_the_broker_does_not_know_reads_on(kafka, subscription, change, monkeypatch):
    first, second, third = (f"{word} {change}".encode() for word in ("first", "second", "third"))
    await publish(kafka, first)
    await read_until(subscription, first)
    refused: list[int] = []
    answered = FetchSession.answered

    def spoilt(session: FetchSession, response: Any) -> None:
        answered(session, response)
        if response.error_code:
            refused.append(response.error_code)
        elif not refused:
            vars(session).update(change)

    monkeypatch.setattr(FetchSession, "answered", spoilt)
    await publish(kafka, second)
    assert await read_until(subscription, second) == [second]
    await publish(kafka, third)
    assert await read_until(subscription, third) == [third]
    assert len(refused) == 1
    assert session_of(subscription).epoch != FULL
