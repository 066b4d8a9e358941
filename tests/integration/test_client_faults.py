"""What becomes of aiokafka and asyncpg when a connection or a task of theirs dies, under the loop that services use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import asyncpg
import pytest
import uvloop
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from triptych.kernel.errors import KafkaTaskDiedError
from triptych.kernel.kafka.bus import Kafka, Outgoing, Subscription
from triptych.kernel.kafka.clients import Admin, Consumer, Producer
from triptych.kernel.kafka.compacted_topic import CompactedTopic
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings

WITHIN_S = 60.0


@pytest.fixture(scope="module")
async def kafka(servers, prefix, create_topics) -> Kafka:
    await create_topics("noise", "contracts", partitions=1)
    return Kafka(ServiceSettings(kafka=servers.kafka, postgres="postgresql://nobody@nowhere/x", topic_prefix=prefix))


@pytest.fixture
def under_uvloop() -> Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, None]]:
    """Run a coroutine to its end on a loop of uvloop's, in another thread."""

    async def run(story: Coroutine[Any, Any, None]) -> None:
        await asyncio.to_thread(uvloop.run, asyncio.wait_for(story, WITHIN_S))

    return run


def connections(client: Any) -> list[Any]:
    return list(client._conns.values())


async def cut(client: Any) -> None:
    """Abort every connection as a kernel does when the broker is killed; the next thing that happens is a send."""
    for connection in connections(client):
        if connection.connected():
            connection._writer.transport.abort()
    await asyncio.sleep(0)


async def test_a_send_on_a_dead_transport_is_a_lost_connection_and_the_next_one_is_another(kafka, under_uvloop):
    async def story() -> None:
        admin = Admin(bootstrap_servers=kafka.settings.kafka)
        await admin.start()
        try:
            await admin.list_topics()
            (connection,) = connections(admin._client)
            await cut(admin._client)
            with pytest.raises(KafkaConnectionError):
                await connection.send(MetadataRequest([]))
            assert not connection.connected()
            assert await admin.list_topics()
            assert not admin._client._sync_task.done()
        finally:
            await admin.close()

    await under_uvloop(story())


async def test_a_consumer_whose_connections_die_goes_on_reading(kafka, under_uvloop):
    async def story() -> None:
        async with _subscription(kafka, "cut") as subscription, kafka.publisher() as publisher:
            for number in range(3):
                await cut(subscription.consumer._client)
                subscription.consumer._client.force_metadata_update()
                await publisher.publish([_noise(kafka, b"%d" % number)])
                while True:
                    polled = await subscription.poll(200)
                    if any(one.value == b"%d" % number for group in polled.values() for one in group):
                        break
            assert not subscription.consumer._client._sync_task.done()

    await under_uvloop(story())


async def test_a_publisher_whose_connections_die_publishes_again(kafka, under_uvloop):
    async def story() -> None:
        async with kafka.publisher() as publisher:
            await publisher.publish([_noise(kafka, b"before")])
            await cut(publisher._producer.client)
            await publisher.publish([_noise(kafka, b"after")])

    await under_uvloop(story())


TASKS = {
    "metadata": lambda consumer: consumer._client._sync_task,
    "fetch": lambda consumer: consumer._fetcher._fetch_task,
    "group coordination": lambda consumer: consumer._coordinator._coordination_task,
    "heartbeat": lambda consumer: consumer._coordinator._heartbeat_task,
    "commit refresh": lambda consumer: consumer._coordinator._commit_refresh_task,
}


@pytest.mark.parametrize("name", TASKS)
async def test_the_death_of_a_background_task_ends_the_session_and_is_named(kafka, under_uvloop, name, caplog):
    async def story() -> None:
        with pytest.raises((KafkaTaskDiedError, OSError)) as died:  # noqa: PT012 - the body is what ends
            async with _subscription(kafka, "dead") as subscription:
                TASKS[name](subscription.consumer).cancel()
                while True:
                    await subscription.poll(500)
        assert isinstance(died.value, KafkaTaskDiedError)
        assert died.value.task in {name, "group coordination"}
        # The next session has a client of its own.
        async with _subscription(kafka, "dead") as subscription:
            await subscription.poll(100)

    await under_uvloop(story())
    assert "the task" in caplog.text


async def test_a_session_that_waits_behind_a_dead_task_ends_too(kafka, under_uvloop):
    async def story() -> None:
        with pytest.raises(KafkaTaskDiedError, match="metadata"):  # noqa: PT012 - the body is what ends
            async with _subscription(kafka, "behind") as subscription:
                client = subscription.consumer._client
                client._sync_task.cancel()
                await client.force_metadata_update()  # nobody will ever do it

    await under_uvloop(story())


async def test_a_follower_whose_client_has_died_begins_again(kafka, under_uvloop, monkeypatch):
    made: list[Consumer] = []

    def consumer(**options: Any) -> Consumer:
        made.append(Consumer(**options))
        return made[-1]

    monkeypatch.setattr("triptych.kernel.kafka.compacted_topic.Consumer", consumer)

    async def story() -> None:
        service = Service("test", configure_logging("info", "json"), Health("test", "one"), asyncio.Event())
        async with CompactedTopic(service, kafka.settings, "contracts", lambda _record: None) as follower:
            await follower.ready()
            made[0]._fetcher._fetch_task.cancel()
            while len(made) < 2 or made[1]._fetcher is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    await under_uvloop(story())


async def test_a_cancellation_from_outside_stays_one_in_a_watch(kafka):
    async with _subscription(kafka, "outside") as subscription:
        polling = asyncio.create_task(subscription.poll(30_000))
        await asyncio.sleep(0)
        polling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await polling
        assert polling.cancelled()


async def test_a_dead_producer_is_replaced(kafka, under_uvloop):
    async def story() -> None:
        async with kafka.publisher() as publisher:
            await publisher.publish([_noise(kafka, b"before")])
            first: Producer = publisher._producer
            first._sender.sender_task.cancel()
            first.client._sync_task.cancel()
            with contextlib.suppress(Exception):
                await publisher.publish([_noise(kafka, b"lost")])
            await publisher.publish([_noise(kafka, b"after")])
            assert publisher._producer is not first

    await under_uvloop(story())


async def test_a_dead_connection_to_postgres_is_an_error_of_its_own_and_the_pool_goes_on(servers, under_uvloop):
    async def story() -> None:
        async with asyncpg.create_pool(servers.owner_dsn, min_size=1, max_size=1) as pool:
            for pause in range(2):
                async with pool.acquire() as connection:
                    connection._transport.abort()
                    for _ in range(pause):
                        await asyncio.sleep(0)
                    with pytest.raises((asyncpg.InterfaceError, asyncpg.PostgresConnectionError, OSError)):
                        await connection.fetchval("select 1")
                assert await pool.fetchval("select 1") == 1

    await under_uvloop(story())


def _noise(kafka: Kafka, value: bytes) -> Outgoing:
    return Outgoing(kafka.settings.topic("noise"), 0, b"k", [], value)


@contextlib.asynccontextmanager
async def _subscription(kafka: Kafka, group: str) -> AsyncIterator[Subscription]:
    settings = kafka.settings.model_copy(update={"instance": f"test-{group}"})
    async with Kafka(settings).subscribe(
        [kafka.settings.topic("noise")], f"{kafka.settings.topic_prefix}.{group}"
    ) as s:
        yield s
