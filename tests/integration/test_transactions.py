"""Transactions of other producers on our topics: what is aborted never was, what is open keeps nobody from starting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from executor_harness import MIGRATIONS, ExecutorHarness
from test_executor import PLAYBOOK, task

from triptych.client import Address
from triptych.client.feed import Feed
from triptych.commands.common.tool_offers import _announced
from triptych.commands.topics import _read
from triptych.kernel.kafka.compacted_topic import CompactedTopic
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import codec, topics

WITHIN_S = 60.0


@pytest.fixture(scope="module")
async def harness(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[ExecutorHarness]:
    folder = tmp_path_factory.mktemp("executor")
    (folder / "greet.yaml").write_text(PLAYBOOK)
    nouns = [topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS]
    await create_topics(*(noun for noun in nouns if noun != topics.CONTRACTS), "calls.echo")
    await create_topics(topics.CONTRACTS, partitions=1)
    dsn = database.prepare({"executor": (MIGRATIONS,)}).services["executor"]
    async with ExecutorHarness(servers.kafka, prefix, dsn, folder, folder / "log") as harness:
        harness.start()
        yield harness


@asynccontextmanager
async def transactional(kafka: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"stranger-{uuid4()}")
    async with producer:
        yield producer


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr("triptych.kernel.kafka.clients.HELD_BACK_AFTER_S", 0.0)
    return Service("test", configure_logging("info", "json"), Health("test", "one"), asyncio.Event())


@pytest.fixture
def ended(harness: ExecutorHarness) -> Callable[[str], Any]:
    async def ended(task_id: str) -> list[dict[str, Any]]:
        await harness.work()
        return harness.of(topics.OUTCOMES, task_id=task_id)

    return ended


async def test_a_task_of_an_aborted_transaction_is_never_run_and_one_of_a_committed_is_run_once(
    harness, prefix, ended, eventually
):
    async with transactional(harness.kafka) as stranger:
        for end in (stranger.abort_transaction, stranger.commit_transaction):
            await stranger.begin_transaction()
            for partition in (0, 1):
                one = codec.encode(task(f"{end.__name__}-{partition}"))
                await stranger.send_and_wait(f"{prefix}.tasks", one, partition=partition)
            await end()
    for partition in (0, 1):
        await harness.send(topics.TASKS, task(f"behind-{partition}"), partition)
        await eventually(lambda partition=partition: ended(f"behind-{partition}"))
        await eventually(lambda partition=partition: ended(f"commit_transaction-{partition}"))
        assert len(await ended(f"commit_transaction-{partition}")) == 1
        assert not await ended(f"abort_transaction-{partition}")
    assert not harness.of(topics.DEAD_LETTERS)


async def test_an_open_transaction_holds_back_its_own_partition_and_no_other(harness, prefix, ended, eventually):
    async with transactional(harness.kafka) as stranger:
        await stranger.begin_transaction()
        await stranger.send_and_wait(f"{prefix}.tasks", codec.encode(task("open")), partition=0)
        await harness.send(topics.TASKS, task("waits"), 0)
        await harness.send(topics.TASKS, task("elsewhere"), 1)
        await eventually(lambda: ended("elsewhere"))
        assert not await ended("open")
        assert not await ended("waits")
        await stranger.commit_transaction()
        await eventually(lambda: ended("open"))
        await eventually(lambda: ended("waits"))
    assert len(await ended("open")) == len(await ended("waits")) == 1


async def test_markers_of_transactions_are_no_lag(harness, prefix, ended, eventually):
    address = Address(kafka=harness.kafka, topic_prefix=prefix)
    async with transactional(harness.kafka) as stranger:
        for partition in (0, 1):
            await stranger.begin_transaction()
            await stranger.send_and_wait(f"{prefix}.tasks", codec.encode(task(f"m-{partition}")), partition=partition)
            await stranger.abort_transaction()

    async def caught_up() -> bool:
        await harness.work()
        rows = {row.name: row for row in await _read(address)}
        return not any(rows[f"{prefix}.tasks"].lag.values())

    await eventually(caught_up)


async def test_an_open_transaction_of_a_stranger_keeps_nobody_from_starting(
    harness, prefix, service, eventually, caplog
):
    settings = ServiceSettings(kafka=harness.kafka, postgres="postgresql://nobody@nowhere/x", topic_prefix=prefix)
    address = Address(kafka=harness.kafka, topic_prefix=prefix)
    learnt = []
    topic = f"{prefix}.{topics.CONTRACTS}"

    def ours() -> list[bytes]:
        return [one.value for one in learnt if one.key in {b"a", b"b", b"c"}]

    await harness.producer.send_and_wait(topic, b"before", key=b"a", partition=0)
    async with transactional(harness.kafka) as stranger, asyncio.timeout(WITHIN_S):
        await stranger.begin_transaction()
        await stranger.send_and_wait(topic, b"open", key=b"b", partition=0)
        await harness.producer.send_and_wait(topic, b"behind", key=b"c", partition=0)
        async with CompactedTopic(service, settings, topics.CONTRACTS, learnt.append) as follower:
            await follower.ready()
            assert ours() == [b"before"]
            await eventually(lambda: "held back by an open transaction" in caplog.text)
            assert "a" in {offered.tool for offered in await _announced(address)}
            await stranger.abort_transaction()
            await eventually(lambda: ours() == [b"before", b"behind"])
            await eventually(lambda: "goes on" in caplog.text)


@pytest.mark.parametrize("end", ["abort_transaction", "commit_transaction", None])
async def test_whoever_reads_to_the_end_comes_there_when_the_last_offset_is_no_record(harness, prefix, end):
    address = Address(kafka=harness.kafka, topic_prefix=prefix)
    async with transactional(harness.kafka) as stranger, asyncio.timeout(WITHIN_S):
        await stranger.begin_transaction()
        for noun in (topics.OUTCOMES, topics.CONTRACTS):
            await stranger.send_and_wait(f"{prefix}.{noun}", b"{}", key=b"z", partition=0)
        if end:
            await getattr(stranger, end)()
        async with Feed(address, [topics.OUTCOMES], from_start=True, to_end=True) as feed:
            assert all([message.final async for message in feed])
        await _announced(address)
        if not end:
            await stranger.abort_transaction()
