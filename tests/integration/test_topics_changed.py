"""Topics that change under a running executor: made anew, or with more partitions than others. Nothing is passed over."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import TopicAlreadyExistsError
from executor_harness import MIGRATIONS, ExecutorHarness
from test_executor import PLAYBOOK, task
from typer.testing import CliRunner

from triptych.client import Address
from triptych.commands.topics import _read
from triptych.commands.topics import app as topics_command
from triptych.embedded.topics import create_topics as complete_topics
from triptych.schemas import topics


@pytest.fixture(scope="module")
async def harness(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[ExecutorHarness]:
    folder = tmp_path_factory.mktemp("executor")
    (folder / "greet.yaml").write_text(PLAYBOOK)
    nouns = [topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS]
    await create_topics(*nouns, "calls.echo")
    dsn = database.prepare({"executor": (MIGRATIONS,)}).services["executor"]
    async with ExecutorHarness(servers.kafka, prefix, dsn, folder, folder / "log") as harness:
        yield harness
        sys.stdout.write(harness.log.read_text()[-4000:])  # pytest shows it when a test fails


@pytest.fixture(scope="module")
async def admin(servers) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
    await admin.start()
    yield admin
    await admin.close()


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def made_anew(admin: AIOKafkaAdminClient, harness: ExecutorHarness, eventually) -> None:
    """Delete the topic of tasks and make another of its name."""
    name = f"{harness.prefix}.{topics.TASKS}"
    await admin.delete_topics([name])

    async def is_made() -> bool:
        response = await admin.create_topics([NewTopic(name, 2, 1)])
        (code,) = (error[1] for error in response.topic_errors)
        return code in {0, TopicAlreadyExistsError.errno} and name in await admin.list_topics()

    await eventually(is_made)
    await harness.producer.client.force_metadata_update()


async def readiness(port: int) -> str:
    """What the executor says of its topics when it is asked whether it is ready."""
    try:
        async with httpx.AsyncClient() as http:
            answer = await http.get(f"http://127.0.0.1:{port}/health/ready")
    except httpx.ConnectError:
        return ""
    told: str = answer.json()["unready"].get("topics", "")
    return told


async def publish(harness: ExecutorHarness, name: str, count: int) -> list[str]:
    names = [f"{name}-{number}" for number in range(count)]
    for each in names:
        await harness.send(topics.TASKS, task(each), 0)
    return names


async def all_done(harness: ExecutorHarness, names: list[str], eventually, port: int = 0) -> None:
    """Wait until these have ended. Whoever asks whether the executor is ready makes it look at its topics."""

    async def done() -> bool:
        await harness.work()
        if port:
            await readiness(port)
        return {each["task_id"] for each in harness.of(topics.OUTCOMES)} >= set(names)

    await eventually(done)


async def test_a_topic_that_was_made_anew_while_the_executor_was_away_is_read_from_its_beginning(
    harness: ExecutorHarness, admin, port: int, eventually
) -> None:
    harness.start(health_port=str(port))
    await all_done(harness, await publish(harness, "before", 2), eventually)
    harness.stop()
    await made_anew(admin, harness, eventually)
    names = await publish(harness, "after", 4)  # beyond the offset that was stored
    harness.start(health_port=str(port))
    await all_done(harness, names, eventually)


async def test_a_topic_that_is_made_anew_while_the_executor_reads_it_is_read_from_its_beginning(
    harness: ExecutorHarness, admin, port: int, eventually
) -> None:
    await all_done(harness, await publish(harness, "running", 1), eventually)
    await made_anew(admin, harness, eventually)
    await all_done(harness, await publish(harness, "anew", 8), eventually, port)


async def test_tasks_on_added_partitions_wait_and_readiness_says_why_until_all_topics_have_them(
    harness: ExecutorHarness, servers, admin, port: int, eventually
) -> None:
    name = f"{harness.prefix}.{topics.TASKS}"
    await admin.create_partitions({name: NewPartitions(4)})
    await harness.producer.client.force_metadata_update()

    async def tells() -> str:
        return await readiness(port)

    await eventually(tells)
    assert f"{name}: 4" in await tells()
    assert "from number 2 on none is read. Run `triptych up` or `triptych setup`" in await tells()
    for partition in range(4):
        await harness.send(topics.TASKS, task(f"added-{partition}"), partition)
    await all_done(harness, ["added-0", "added-1"], eventually)
    assert not harness.of(topics.OUTCOMES, task_id="added-2")

    assert await complete_topics(servers.kafka, harness.prefix, ["echo"]) == sorted(
        f"{harness.prefix}.{noun}" for noun in topics.EXECUTOR_INPUTS if noun != topics.TASKS
    )
    await harness.producer.client.force_metadata_update()
    await all_done(harness, [f"added-{partition}" for partition in range(4)], eventually, port)
    assert harness.of(topics.DEAD_LETTERS) == []
    assert not await tells()


async def test_an_executor_that_has_nothing_to_do_or_has_stopped_has_no_lag(
    harness: ExecutorHarness, servers, admin, eventually
) -> None:
    async def lag() -> dict[str, int]:
        found = await _read(Address(servers.kafka, harness.prefix))
        return {row.name: sum(row.lag.values()) for row in found if f"{harness.prefix}.executor" in row.lag}

    async def is_read() -> bool:
        behind = await lag()
        return len(behind) == len(topics.EXECUTOR_INPUTS) and not any(behind.values())

    await all_done(harness, await publish(harness, "read", 5), eventually)
    await eventually(is_read)
    await all_done(harness, await publish(harness, "and-stop", 5), eventually)
    harness.stop()
    assert not any((await lag()).values())


async def test_records_are_read_again_or_skipped_where_a_person_says_so(
    harness: ExecutorHarness, servers, database, port: int, eventually
) -> None:
    def seek(*arguments: str, code: int = 0) -> str:
        where = ("--kafka", servers.kafka, "--prefix", harness.prefix, "--postgres", database.owner_dsn)
        done = CliRunner().invoke(topics_command, ["seek", *arguments, *where])
        assert done.exit_code == code, done.output
        return done.output or str(done.exception)

    def told() -> int:
        return len(harness.of(topics.OUTCOMES, task_id="read-0"))

    skipped, kept = await publish(harness, "skipped", 1), await publish(harness, "kept", 1)
    end = (await harness.producer.send_and_wait(f"{harness.prefix}.tasks", b"no task", partition=0)).offset
    await asyncio.to_thread(seek, "tasks", "0", str(end - 1))
    harness.start(health_port=str(port))
    await all_done(harness, kept, eventually)
    assert not harness.of(topics.OUTCOMES, task_id=skipped[0])

    before = told()
    assert "from 0, no more from" in await asyncio.to_thread(seek, "tasks", "0", "0")

    async def told_again() -> bool:
        await readiness(port)
        return told() > before

    await eventually(told_again)
    await all_done(harness, skipped, eventually)
    assert f"Choose from 0 to {end + 1}" in await asyncio.to_thread(seek, "tasks", "0", str(end + 2), code=1)
    assert "See `triptych topics`" in await asyncio.to_thread(seek, "tasks", "9", "0", code=1)
    assert "it reads tasks" in await asyncio.to_thread(seek, "outcomes", "0", "0", code=2)
