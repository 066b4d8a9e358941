"""A record that ends its reader, or that the database refuses, costs nobody else anything."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from executor_harness import MIGRATIONS, ExecutorHarness

from triptych.schemas import topics

PLAYBOOK = """
name: greet
goal: Greet somebody.
input: {type: object}
tools: [echo.echo]
plan:
  pattern: fixed
  steps:
    - {id: say, operation: echo.echo, arguments: {value: "Hello ${{ input.name }}"}}
output: {said: "${{ steps.say.data.value }}"}
"""
DEADLY = (str(Path(__file__).with_name("deadly_executor.py")),)
STARTS_WITHIN_S = 400
"""Several starts of a process and several sessions that end, on a busy machine."""


@pytest.fixture(scope="module")
async def harness(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[ExecutorHarness]:
    folder = tmp_path_factory.mktemp("executor")
    (folder / "greet.yaml").write_text(PLAYBOOK)
    nouns = [topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS]
    await create_topics(*nouns, "calls.echo")
    dsn = database.prepare({"executor": (MIGRATIONS,)}).services["executor"]
    async with ExecutorHarness(servers.kafka, prefix, dsn, folder, folder / "log") as harness:
        harness.start(program=DEADLY)
        yield harness
    sys.stdout.write(harness.log.read_text()[-8000:])  # pytest shows it when a test fails


def task(task_id: str, **fields: object) -> dict[str, Any]:
    return {"playbook": "greet", "input": {"name": "Ana"}, "task_id": task_id, "tenant": "acme", **fields}


def succeeded(harness: ExecutorHarness) -> set[str]:
    return {outcome["task_id"] for outcome in harness.of(topics.OUTCOMES, status="succeeded")}


def restarting(harness: ExecutorHarness, condition: Any, *, works: bool = True) -> Any:
    """A condition under a supervisor that starts the executor again whenever it has died."""

    async def look() -> object:
        assert harness.process is not None
        if harness.process.poll() is not None:
            harness.start(program=DEADLY)
        if works:
            await harness.work()
        return condition()

    return look


async def test_a_record_that_kills_its_reader_is_buried_unread_and_its_client_told(
    harness: ExecutorHarness, eventually
) -> None:
    headers = {"ce_tenant": "acme", "ce_id": "task:acme:deadly"}
    for number in range(5):
        await harness.send(topics.TASKS, task(f"before-{number}"), 0)
    await harness.send(topics.TASKS, task("deadly", input={"name": "DEADLY"}), 0, **headers)
    for number in range(5):
        await harness.send(topics.TASKS, task(f"after-{number}"), 0)
    wanted = {f"{when}-{number}" for when in ("before", "after") for number in range(5)}

    def done() -> object:
        return wanted <= succeeded(harness) and harness.of(topics.OUTCOMES, task_id="deadly")

    await eventually(restarting(harness, done), within_s=STARTS_WITHIN_S)
    (outcome,) = harness.of(topics.OUTCOMES, task_id="deadly")
    assert (outcome["status"], outcome["tenant"], outcome["reason"]["code"]) == ("rejected", "acme", "deadly_record")
    letters = [one for one in harness.of(topics.DEAD_LETTERS) if one["reason"]["code"] == "deadly_record"]
    assert len(letters) == 1
    assert not [one for one in harness.of(topics.OUTCOMES, status="rejected") if one["task_id"] != "deadly"]


@pytest.mark.parametrize("word", ["EXHAUSTING", "BOTTOMLESS"])
async def test_a_record_whose_reading_fails_in_an_unforeseen_way_is_buried_at_once(
    harness: ExecutorHarness, eventually, word: str
) -> None:
    pid = harness.process.pid
    headers = {"ce_tenant": "acme", "ce_id": f"task:acme:odd-{word.lower()}"}
    await harness.send(topics.TASKS, task(f"odd-{word.lower()}", input={"name": word}), 0, **headers)
    await harness.send(topics.TASKS, task(f"beside-{word.lower()}"), 0)
    await eventually(
        restarting(harness, lambda: harness.of(topics.OUTCOMES, task_id=f"beside-{word.lower()}")),
        within_s=STARTS_WITHIN_S,
    )
    assert [one for one in harness.of(topics.DEAD_LETTERS) if one["reason"]["code"] == "internal"]
    assert harness.of(topics.OUTCOMES, task_id=f"odd-{word.lower()}", status="rejected")
    assert harness.process.pid == pid, "the process has not ended"


async def test_an_answer_that_kills_its_reader_is_answered_in_its_place(harness: ExecutorHarness, eventually) -> None:
    await harness.send(topics.TASKS, task("answered", input={"name": "Bea"}), 1)

    async def called() -> object:
        await harness.answer_plans()  # also what runs of other tests ask for again on a slow machine
        return harness.of("calls.echo", arguments={"value": "Hello Bea"})

    await eventually(called)
    (request, *_) = harness.of("calls.echo", arguments={"value": "Hello Bea"})
    del harness.seen["calls.echo"]
    answer = harness._reply(request) | {"result": {"status": "ok", "data": {"value": "DEADLY"}}}
    await harness.producer.send_and_wait(
        f"{harness.prefix}.{topics.RESULTS}",
        str(answer).encode(),
        key=request["run_id"].encode(),
        partition=request["partition"],
        headers=[("ce_id", f"{request['request_id']}:answer".encode()), ("ce_tenant", b"acme")],
    )
    await eventually(
        restarting(harness, lambda: harness.of(topics.OUTCOMES, task_id="answered") or harness.of("calls.echo")),
        within_s=STARTS_WITHIN_S,
    )


async def test_a_run_whose_time_ends_its_executor_is_handed_to_a_person_and_the_others_go_on(
    harness: ExecutorHarness, eventually
) -> None:
    for name in ("in-time-1", "deadly-time", "in-time-2"):
        await harness.send(topics.TASKS, task(name), 0)

    def handed_over() -> object:
        return harness.of(topics.OUTCOMES, task_id="deadly-time")

    await eventually(restarting(harness, handed_over, works=False), within_s=STARTS_WITHIN_S)
    (outcome,) = handed_over()
    assert (outcome["final"], outcome["reason"]["code"]) == (False, "deadly_run")
    await eventually(restarting(harness, lambda: succeeded(harness) >= {"in-time-1", "in-time-2"}))
    pid = harness.process.pid
    await harness.send(topics.TASKS, task("after-time"), 0)
    await eventually(restarting(harness, lambda: "after-time" in succeeded(harness)))
    assert harness.process.pid == pid


async def test_a_run_that_cannot_even_be_given_up_is_left_alone(harness: ExecutorHarness, eventually) -> None:
    await harness.send(topics.TASKS, task("deadly-time-for-ever", input={"name": "Eva"}), 1)

    def left_alone() -> object:
        return "a run is left alone" in harness.log.read_text()

    await eventually(restarting(harness, left_alone, works=False), within_s=STARTS_WITHIN_S)
    await harness.send(topics.TASKS, task("after-ever"), 1)
    going_on = restarting(harness, lambda: "after-ever" in succeeded(harness))

    async def without_answers_to_it() -> object:
        """An answer would wake it up, and a run that has its answers may end well."""
        for noun in (topics.PLAN_REQUESTS, "calls.echo"):
            asked = harness.seen.get(noun, [])
            asked[:] = [request for request in asked if b"Eva" not in request["_raw"]]
        return await going_on()

    await eventually(without_answers_to_it)
    assert "deadly-time-for-ever" not in succeeded(harness)


async def test_what_the_database_refuses_is_found_among_the_others_and_buried(
    harness: ExecutorHarness, eventually
) -> None:
    names = [f"fit-{number}" for number in range(6)]
    for name in (*names[:3], "refused-1", *names[3:5], "refused-2", names[5]):
        await harness.send(topics.TASKS, task(name), 1)

    def letters() -> dict[int, dict[str, Any]]:
        """By offset: what a session that ended has published and not forgotten is published again."""
        buried = [one for one in harness.of(topics.DEAD_LETTERS) if one["reason"]["code"] == "unstorable"]
        return {one["offset"]: one for one in buried}

    def told() -> dict[str, str]:
        return {one["task_id"]: one["reason"]["code"] for one in harness.of(topics.OUTCOMES, status="rejected")}

    def done() -> object:
        return succeeded(harness) >= set(names) and len(letters()) >= 2 and told().keys() >= {"refused-1", "refused-2"}

    await eventually(restarting(harness, done), within_s=STARTS_WITHIN_S)
    assert len(letters()) == 2
    assert all("requested length too large" in one["reason"]["message"] for one in letters().values())
    assert (told()["refused-1"], told()["refused-2"]) == ("unstorable", "unstorable")


async def test_a_huge_record_is_cut_in_its_dead_letter_and_told_by_its_whole_size(
    harness: ExecutorHarness, eventually
) -> None:
    value = b'{"task_id":"huge","playbook":"greet","tenant":"acme","input":{"name":"%s"}}' % (b"x" * 6_000_000)
    await harness.producer.stop()
    harness.producer = type(harness.producer)(
        bootstrap_servers=harness.kafka, max_request_size=20_000_000, compression_type="gzip"
    )
    await harness.producer.start()
    await harness.send(topics.TASKS, value, 0)
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="huge"))
    (outcome,) = harness.of(topics.OUTCOMES, task_id="huge")
    assert outcome["reason"]["code"] == "input_too_large"
    connection = await asyncpg.connect(harness.dsn)
    row = await connection.fetchrow(
        "select length(value) as kept, cut->'value'->>'bytes' as whole from dead_letters where code = 'input_too_large'"
    )
    await connection.close()
    assert (row["kept"], row["whole"]) == (1_048_576, str(len(value)))


async def test_a_message_that_kafka_never_takes_does_not_hold_up_those_behind_it(
    harness: ExecutorHarness, eventually
) -> None:
    outcomes = f"{harness.prefix}.{topics.OUTCOMES}"

    async def limit(size_bytes: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=harness.kafka)
        await admin.start()
        limits = {"max.message.bytes": str(size_bytes)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, outcomes, configs=limits)])
        await admin.close()

    await limit(4_000)
    try:
        await harness.send(topics.TASKS, task("long", input={"name": "x" * 8_000}), 0)
        await eventually(
            restarting(harness, lambda: harness.of(topics.DEAD_LETTERS, topic=outcomes)), within_s=STARTS_WITHIN_S
        )
        await harness.send(topics.TASKS, task("short"), 0)
        await eventually(
            restarting(harness, lambda: harness.of(topics.OUTCOMES, task_id="short")), within_s=STARTS_WITHIN_S
        )
    finally:
        await limit(8_388_608)
    (letter,) = harness.of(topics.DEAD_LETTERS, topic=outcomes)
    assert (letter["reason"]["code"], letter["tenant"]) == ("unpublishable", "acme")
    connection = await asyncpg.connect(harness.dsn)
    kept = await connection.fetchval("select value from dead_letters where code = 'unpublishable'")
    await connection.close()
    assert b'"task_id":"long"' in kept, "nothing is lost"
