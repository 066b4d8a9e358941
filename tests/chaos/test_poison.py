"""Poison on every topic while runs are in flight: it becomes dead letters with its bytes, and nothing else suffers."""

from __future__ import annotations

import json
import os
import random
import time
import tomllib
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any

import aiokafka
import pytest
from crash_stack import CONFIG, POISON, WORKERS, CrashStack, everything_published, partitions_of, triptych, until
from poison import Brewer, Fate, Poison

from triptych.embedded.config import PARTITIONS
from triptych.schemas import ControlAction, topics
from triptych.schemas.task import BreakerMode

SEED = int(os.environ.get("TRIPTYCH_TEST_SEED", "4"))
FIRST, WAVES, A_WAVE = 40, 6, 50
"""Runs that are over before the poison comes, and then waves of runs with poison between them."""
JUDGED_EVERY = 10
CALLED_OFF = 5

TOOLS = tuple(tomllib.loads(CONFIG.read_text())["tools"])
READERS = {
    **dict.fromkeys(topics.EXECUTOR_INPUTS, "executor"),
    topics.PLAN_REQUESTS: "planner",
    topics.REVIEWS: "critic",
    topics.WITHDRAWALS: "every worker",
    **{topics.calls(tool): f"tool_{tool}" for tool in TOOLS},
}
"""Who reads a topic, by the name of its schema."""
UNREAD = (topics.OUTCOMES, topics.ESCALATIONS, topics.DEAD_LETTERS, topics.CONTRACTS, topics.TOOL_CONTROLS)
"""Records there do not become dead letters: no service reads them, or their readers skip what they cannot read."""

Place = tuple[str, int, int]
"""Topic, partition and offset."""


def test_no_topic_is_left_out() -> None:
    declared = {value for name, value in vars(topics).items() if name.isupper() and isinstance(value, str)}
    assert declared == {topic.noun for topic in topics.CATALOG}
    assert declared == {noun.partition(".")[0] for noun in (*READERS, *UNREAD)}


@pytest.mark.timeout(900)
async def test_poison_on_every_topic_is_dead_lettered_with_its_bytes_and_harms_no_run(crash_stack: CrashStack) -> None:
    before = processes(crash_stack)
    first = [f"first-{n}" for n in range(FIRST)]
    await crash_stack.submit(first, judged_every=JUDGED_EVERY, deliveries=True)
    await every_run_ended(crash_stack, first)
    await call_off_what_waits(crash_stack)
    await command_what_is_over(crash_stack)
    genuine = await everything_published(crash_stack)
    nouns = {*READERS, topics.CONTRACTS, topics.TOOL_CONTROLS} - {topics.CHILD_TASKS}  # no run here hands over
    wanted = {f"{prefix(crash_stack)}.{noun}" for noun in nouns}
    assert genuine.keys() >= wanted, "a topic has nothing to be replayed"

    brewer = Brewer(SEED, genuine, PARTITIONS)
    poison = [one for noun in (*READERS, *UNREAD) for one in brewer.brew(f"{prefix(crash_stack)}.{noun}")]
    random.Random(SEED).shuffle(poison)  # noqa: S311 - not for secrets
    honest: list[str] = []
    places: dict[Place, Poison] = {}
    for wave in range(WAVES):
        task_ids = [f"wave-{wave}-{n}" for n in range(A_WAVE)]
        await crash_stack.submit(task_ids, judged_every=JUDGED_EVERY)
        honest += task_ids
        places |= await published(crash_stack, poison[wave::WAVES])
    last = [f"last-{n}" for n in range(FIRST)]
    await crash_stack.submit(last, judged_every=JUDGED_EVERY)

    await every_run_ended(crash_stack, [*honest, *last])
    assert all(len(crash_stack.finals[task_id]) == 1 for task_id in (*first, *honest, *last))
    assert {status for task_id in (*first, *honest, *last) for _, status in crash_stack.statuses[task_id]} == {
        "succeeded"
    }
    assert crash_stack.other_escalations == {}
    assert processes(crash_stack) == before, "a process died of it"
    await everything_read_is_dead_lettered(crash_stack, places)
    await every_tool_obeys(crash_stack)
    effects = await crash_stack.effects_on((*first, *honest, *last))
    assert set(effects.values()) == {1}, "a write took effect twice"
    assert "all agree" in triptych("verify", "--data", str(crash_stack.folder))


def prefix(crash_stack: CrashStack) -> str:
    return json.loads((crash_stack.folder / "stack.json").read_text())["topic_prefix"]


def noun_of(topic: str) -> str:
    return topic.partition(".")[2]


def processes(crash_stack: CrashStack) -> dict[str, int]:
    status = json.loads(triptych("status", "--json", "--data", str(crash_stack.folder)))
    return {each["name"]: each["pid"] for each in status["processes"]}


async def every_run_ended(crash_stack: CrashStack, task_ids: list[str]) -> None:
    async def ended() -> bool:
        return all(task_id in crash_stack.finals for task_id in task_ids)

    async def tell() -> str:
        missing = [task_id for task_id in task_ids if task_id not in crash_stack.finals]
        return f"{len(missing)} have no final outcome, for example {missing[:3]}; processes: {processes(crash_stack)}"

    await until(ended, 240, tell)


async def call_off_what_waits(crash_stack: CrashStack) -> None:
    """Put something genuine on the topic of withdrawals too."""
    over = [f"over-{n}" for n in range(CALLED_OFF)]
    with crash_stack.paused(["kb"]):
        await crash_stack.submit(over, judged_every=JUDGED_EVERY)

        async def asked() -> bool:
            return await crash_stack.have_asked(over, ["CallRequested search"]) == CALLED_OFF

        async def tell() -> str:
            return f"{await crash_stack.have_asked(over, ['CallRequested search'])} of {CALLED_OFF} runs have asked"

        await until(asked, 120, tell)
        await crash_stack.cancel(over)
        await every_run_ended(crash_stack, over)


async def command_what_is_over(crash_stack: CrashStack) -> None:
    """Put something genuine on the topics of commands too."""
    for row in await crash_stack.database.fetch("select run_id, partition from executor.runs limit 6"):
        await crash_stack.client.control(row["run_id"], row["partition"], ControlAction.CANCEL, principal="user:late")
    await every_tool_obeys(crash_stack)


async def every_tool_obeys(crash_stack: CrashStack) -> None:
    """Check that a tool records a command that it gets now."""
    waiting = {
        tool: await crash_stack.client.control_tool(tool, None, BreakerMode.AUTO, principal="user:late")
        for tool in TOOLS
    }

    async def obeyed() -> bool:
        for tool, command_id in list(waiting.items()):
            found = f"select true from tool_{tool}.controls where command_id = $1"  # noqa: S608
            if await crash_stack.database.fetchval(found, command_id):
                del waiting[tool]
        return not waiting

    async def tell() -> str:
        return f"these have not obeyed: {sorted(waiting)}"

    await until(obeyed, 60, tell)


async def published(crash_stack: CrashStack, poison: list[Poison]) -> dict[Place, Poison]:
    """Publish it; gives where each piece lies."""
    stack = json.loads((crash_stack.folder / "stack.json").read_text())
    places: dict[Place, Poison] = {}
    async with AsyncExitStack() as producers:
        through: dict[str | None, aiokafka.AIOKafkaProducer] = {}
        for codec in {one.compression for one in poison}:
            producer = aiokafka.AIOKafkaProducer(
                bootstrap_servers=stack["kafka"], compression_type=codec, request_timeout_ms=120_000
            )
            through[codec] = await producers.enter_async_context(producer)
        for one in poison:
            producer, partitions = through[one.compression], partitions_of(one.topic)
            batch = producer.create_batch()
            batch.append(
                # A compacted topic takes no record without a key.
                key=one.key or b"poison" if partitions == 1 else one.key,
                value=one.value,
                headers=[*one.headers, (POISON, b"1")] if noun_of(one.topic) in UNREAD else list(one.headers),
                timestamp=int(time.time() * 1000) - one.age_ms,
            )
            record = await (await producer.send_batch(batch, one.topic, partition=one.partition % partitions))
            places[record.topic, record.partition, record.offset] = one
    return places


async def everything_read_is_dead_lettered(crash_stack: CrashStack, places: dict[Place, Poison]) -> None:
    """Check that each record became a dead letter with the same bytes, or was dropped because it answers nothing."""
    dead: dict[Place, Any] = {}

    async def found() -> bool:
        for schema in ("executor", *WORKERS):
            for row in await crash_stack.database.fetch(
                f'select topic, partition, "offset", key, value, cut, code, message from {schema}.dead_letters'  # noqa: S608
            ):
                dead[row["topic"], row["partition"], row["offset"]] = row
        return not missing()

    def missing() -> list[str]:
        wanted = {place for place, one in places.items() if one.fate is Fate.DEAD and is_read(one.topic)}
        return [f"{places[place].kind} at {place}" for place in wanted - dead.keys()]

    async def tell() -> str:
        return f"{len(missing())} are not dead letters: {missing()[:5]}"

    def is_read(topic: str) -> bool:
        return noun_of(topic) in READERS

    await until(found, 180, tell)
    for place, one in places.items():
        if row := dead.pop(place, None):
            assert is_read(one.topic), f"{one} became a dead letter, and no service should have read it"
            assert one.fate is not Fate.DROPPED, (
                f"{one.kind} at {place} is a dead letter: {row['code']} {row['message']}"
            )
            assert is_kept(one, row), f"{one.kind} at {place} lost its bytes"
            assert row["code"]
            assert row["message"]
    strangers = {place: (row["code"], row["message"][:200]) for place, row in dead.items()}
    left = {place: why for place, why in strangers.items() if why[0] != "wrong_partition"}
    assert not left, f"honest records became dead letters: {left}"


def is_kept(one: Poison, row: Any) -> bool:
    """Tell whether a dead letter has all of its record, or its beginning and a digest of the rest."""
    if one.kind == "swells":
        return bool(row["value"])  # the batch, as it lies in the log
    cut = json.loads(row["cut"] or "{}")
    for part, sent in (("key", one.key), ("value", one.value)):
        kept = row[part]
        if part not in cut:
            if kept != sent:
                return False
        elif not sent.startswith(kept) or cut[part] != {"bytes": len(sent), "sha256": sha256(sent).hexdigest()}:
            return False
    return True
