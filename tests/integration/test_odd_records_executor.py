"""Records that the Kafka client cannot parse, on every topic that the executor reads: its runs go on."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.codec import zstd_encode
from executor_harness import MIGRATIONS, ExecutorHarness
from test_executor import PLAYBOOK, task
from wire import produce

from batches import ZSTD, batch, framed, record
from triptych.schemas import codec, topics

LATIN_1 = ((b"caf\xe9", b"1"),)


@pytest.fixture(scope="module")
async def harness(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[ExecutorHarness]:
    folder = tmp_path_factory.mktemp("executor")
    (folder / "greet.yaml").write_text(PLAYBOOK)
    await create_topics(*(topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS), "calls.echo")
    dsn = database.prepare({"executor": (MIGRATIONS,)}).services["executor"]
    async with ExecutorHarness(servers.kafka, prefix, dsn, folder, folder / "log") as harness:
        harness.start()
        yield harness


@pytest.fixture(scope="module")
async def wire(servers) -> AsyncIterator[AIOKafkaClient]:
    client = AIOKafkaClient(bootstrap_servers=servers.kafka)
    await client.bootstrap()
    yield client
    await client.close()


async def test_on_every_topic_of_the_executor_an_odd_record_is_a_dead_letter_and_runs_go_on(
    harness, wire, prefix, eventually
):
    swelling = batch(zstd_encode(framed(record(0, b"x" * 40_000_000))), count=1, attributes=ZSTD)
    for noun in topics.EXECUTOR_INPUTS:
        for partition in (0, 1):
            for raw in (batch(framed(record(0, b"[]", b"x", LATIN_1)), count=1), swelling):
                assert (await produce(wire, f"{prefix}.{noun}", partition, raw))[0] == 0
    for partition in (0, 1):
        await harness.send(topics.TASKS, task(f"behind-{partition}"), partition)

    async def ended() -> bool:
        await harness.work()
        return all(harness.of(topics.OUTCOMES, task_id=f"behind-{partition}") for partition in (0, 1))

    await eventually(ended, within_s=300)
    await eventually(lambda: len(harness.of(topics.DEAD_LETTERS)) == 4 * len(topics.EXECUTOR_INPUTS))
    codes = {(letter["topic"], letter["reason"]["code"]) for letter in harness.of(topics.DEAD_LETTERS)}
    for noun in topics.EXECUTOR_INPUTS:
        assert {(f"{prefix}.{noun}", "unreadable_record"), (f"{prefix}.{noun}", "batch_too_large")} <= codes


async def test_who_sends_a_task_with_an_odd_header_is_told(harness, wire, prefix, eventually):
    value = codec.encode(task("odd-header", tenant="acme"))
    await produce(wire, f"{prefix}.tasks", 0, batch(framed(record(0, value, b"x", LATIN_1)), count=1))
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="odd-header"))
    (outcome,) = harness.of(topics.OUTCOMES, task_id="odd-header")
    assert (outcome["status"], outcome["tenant"], outcome["reason"]["code"]) == (
        "rejected",
        "acme",
        "unreadable_record",
    )
    assert "not UTF-8" in outcome["reason"]["message"]
    (letter,) = [each for each in harness.of(topics.DEAD_LETTERS) if each["tenant"] == "acme"]
    assert base64.b64decode(letter["value_base64"]) == value


def _peak_mib(pid: int) -> int:
    (line,) = (each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) // 1_024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of another process is read from /proc")
async def test_large_records_that_are_refused_are_not_held_on_to(harness, wire, prefix, eventually):
    raw = batch(zstd_encode(framed(record(0, b"x" * 15_000_000))), count=1, attributes=ZSTD)
    before, letters = _peak_mib(harness.process.pid), len(harness.of(topics.DEAD_LETTERS))
    for _ in range(40):
        assert (await produce(wire, f"{prefix}.tasks", 0, raw))[0] == 0
    await eventually(lambda: len(harness.of(topics.DEAD_LETTERS)) == letters + 40, within_s=120)
    assert _peak_mib(harness.process.pid) - before < 256
