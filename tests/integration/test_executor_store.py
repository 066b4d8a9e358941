"""The executor's one statement on a real Postgres: who may write, what a repeat does, and that hot lookups use indexes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

import triptych.executor
from triptych.executor.machine import begin
from triptych.executor.state import Run
from triptych.executor.store import ExecutorStore
from triptych.executor.transition import KnownPlan
from triptych.kernel.decider import Batch
from triptych.kernel.errors import Fenced
from triptych.kernel.kafka.bus import Outgoing
from triptych.kernel.kafka.topic_metadata import ClusterTopics, KnownTopic
from triptych.kernel.postgres import database as db
from triptych.kernel.postgres.outbox import MessageKey, OutboxKey, OutboxMessage
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.outage import is_refusal
from triptych.kernel.run_ids import derive_run_id
from triptych.schemas import Cost, Effect, Pin, Plan, Playbook, Step, Task

MIGRATIONS = Path(triptych.executor.__file__).with_name("migrations")
TASKS = "t.tasks"
CLUSTER = ClusterTopics("cluster", {})
PLAYBOOK = Playbook.model_validate_json(
    b'{"name": "p", "goal": "g", "input": {}, "tools": ["echo.*"],'
    b' "plan": {"pattern": "fixed", "steps": [{"id": "a", "operation": "echo.echo"}]}}'
)


@pytest.fixture(scope="module")
async def pool(database) -> AsyncIterator[asyncpg.Pool]:
    dsn = database.prepare({"executor": (MIGRATIONS,)}).services["executor"]
    async with await db.connect(dsn, "test") as pool:
        yield pool


@pytest.fixture
async def store(pool) -> ExecutorStore:
    store = ExecutorStore(pool, configure_logging("error", "console"))
    await store.deploy([PLAYBOOK])
    return store


def admission(  # noqa: PLR0917
    task_id: str,
    epoch: int,
    partition: int = 0,
    offset: int = 1,
    timestamp_ms: int = 1,
    known_plan: KnownPlan | None = None,
) -> Batch[Run]:
    """The batch that admits one task."""
    batch: Batch[Run] = Batch(epochs={partition: epoch}, offsets={partition: {TASKS: offset}})
    run_id = derive_run_id("default", task_id, timestamp_ms)
    decided = begin(
        Task(playbook="p", task_id=task_id),
        task_id=task_id,
        run_id=run_id,
        playbook=PLAYBOOK,
        partition=partition,
        now=batch.at,
        known_plan=known_plan,
    )
    batch.created.append(run_id)
    batch.states[run_id] = decided.run
    batch.events.extend((run_id, number, event) for number, event in enumerate(decided.events, start=1))
    return batch


async def run_ids(pool: asyncpg.Pool, task_id: str) -> list[UUID]:
    return [row["run_id"] for row in await pool.fetch("select run_id from runs where task_id = $1", task_id)]


async def test_what_a_replaced_owner_wants_to_write_is_refused_as_a_whole(store, pool) -> None:
    (old,) = await store.claim([0], "zombie", CLUSTER)
    (new,) = await store.claim([0], "heir", CLUSTER)
    assert new.epoch == old.epoch + 1
    with pytest.raises(Fenced):
        await store.commit(admission("late", old.epoch))
    assert await run_ids(pool, "late") == []
    await store.commit(admission("late", new.epoch))
    assert len(await run_ids(pool, "late")) == 1


async def test_one_fenced_partition_refuses_the_whole_batch(store, pool) -> None:
    first, second = await store.claim([1, 2], "a", CLUSTER)
    await store.claim([2], "b", CLUSTER)
    batch = admission("half", first.epoch, partition=1)
    batch.epochs[2] = second.epoch
    with pytest.raises(Fenced):
        await store.commit(batch)
    assert await run_ids(pool, "half") == []


async def test_a_commit_whose_outcome_was_unknown_can_not_be_done_twice(store, pool) -> None:
    (claim,) = await store.claim([3], "a", CLUSTER)
    batch = admission("repeated", claim.epoch, partition=3, offset=7)
    assert await store.commit(batch) == set()
    assert await store.commit(batch) == set(batch.created), "the task is known; nothing is written again"
    (again,) = await store.claim([3], "a", CLUSTER)
    assert again.offsets == {TASKS: 7}
    assert await pool.fetchval("select count(*) from journal where run_id = $1", batch.created[0]) == 2


async def test_two_events_with_one_number_mean_that_somebody_else_has_written(store) -> None:
    (claim,) = await store.claim([4], "a", CLUSTER)
    batch = admission("twice", claim.epoch, partition=4)
    await store.commit(batch)
    batch.created.clear()
    with pytest.raises(Fenced):
        await store.commit(batch)


async def test_the_same_task_from_two_partitions_is_one_run(store, pool) -> None:
    first, second = await store.claim([5, 6], "a", CLUSTER)
    one = admission("same", first.epoch, partition=5, timestamp_ms=1)
    other = admission("same", second.epoch, partition=6, timestamp_ms=2)
    assert one.created != other.created
    assert await store.commit(one) == set()
    assert await store.commit(other) == set(other.created)
    assert await run_ids(pool, "same") == one.created
    assert await store.load(other.created) == {}


async def test_a_task_that_has_a_run_leaves_the_steps_of_that_run_as_they_are_and_makes_none_of_its_own(
    store, pool
) -> None:
    (claim,) = await store.claim([11], "a", CLUSTER)
    pin = Pin(contract_hash="0" * 16, effect=Effect.READ, timeout_ms=1_000, cost=Cost())
    plan = Plan(revision=1, steps=(Step(id="a", operation="echo.echo", pin=pin),))
    known = KnownPlan(plan, "planner-1", datetime(2026, 1, 1, tzinfo=UTC))
    first = admission("planned", claim.epoch, partition=11, known_plan=known)
    await store.commit(first)
    await pool.execute("update steps set status = 'succeeded' where run_id = $1", first.created[0])
    for timestamp_ms in (1, 2):
        again = admission("planned", claim.epoch, partition=11, timestamp_ms=timestamp_ms, known_plan=known)
        assert await store.commit(again) == set(again.created)
    rows = await pool.fetch("select run_id, status from steps where run_id = any($1)", [*first.created, *again.created])
    assert [tuple(row) for row in rows] == [(first.created[0], "succeeded")]


async def test_offsets_of_another_kafka_cluster_mean_nothing(store) -> None:
    (claim,) = await store.claim([7], "a", CLUSTER)
    await store.commit(admission("before the loss", claim.epoch, partition=7, offset=42))
    (same,) = await store.claim([7], "a", CLUSTER)
    (fresh,) = await store.claim([7], "a", replace(CLUSTER, cluster_id="second cluster"))
    assert (same.offsets, fresh.offsets) == ({TASKS: 42}, {})


async def test_offsets_of_a_topic_that_was_made_anew_mean_nothing_and_those_of_others_stay(store) -> None:
    def cluster(**ids: str | None) -> ClusterTopics:
        return ClusterTopics("cluster", {f"t.{noun}": KnownTopic(each, 9) for noun, each in ids.items()})

    (claim,) = await store.claim([9], "a", cluster(tasks="1", plans="1"))
    batch = admission("before it was deleted", claim.epoch, partition=9, offset=42)
    batch.offsets[9]["t.plans"] = 7
    await store.commit(batch)
    (while_it_is_gone,) = await store.claim([9], "a", cluster(plans="1"))
    (without_ids,) = await store.claim([9], "a", cluster(tasks=None, plans=None))
    (anew,) = await store.claim([9], "a", cluster(tasks="2", plans="1"))
    assert while_it_is_gone.offsets == without_ids.offsets == {TASKS: 42, "t.plans": 7}
    assert anew.offsets == {"t.plans": 7}


async def test_a_run_reads_back_as_it_was_written(store) -> None:
    (claim,) = await store.claim([8], "a", CLUSTER)
    batch = admission("read back", claim.epoch, partition=8)
    await store.commit(batch)
    assert await store.load(batch.created) == batch.states


async def test_a_character_that_sql_cannot_read_is_refused_and_text_that_looks_like_it_is_not(store, pool) -> None:
    (claim,) = await store.claim([10], "a", CLUSTER)
    refused, plain = admission("nul", claim.epoch, 10), admission("plain", claim.epoch, 10)
    for batch, text in ((refused, "a\x00b"), (plain, "a\\u0000b")):
        run_id, seq, admitted = batch.events[0]
        batch.events[0] = (run_id, seq, replace(admitted, input={"text": text}))
    with pytest.raises(UnicodeError, match="NUL") as refusal:
        await store.commit(refused)
    assert is_refusal(refusal.value)
    await store.commit(plain)
    shown = await pool.fetchval("select data -> 'input' ->> 'text' from journal where run_id = $1", plain.created[0])
    assert shown == "a\\u0000b"


async def test_a_journal_of_a_newer_version_does_not_hide_the_others(store, pool) -> None:
    (claim,) = await store.claim([9], "a", CLUSTER)
    newer, plain = (admission(name, claim.epoch, partition=9) for name in ("newer", "plain"))
    await store.commit(newer)
    await store.commit(plain)
    await pool.execute(
        "insert into journal_commits (run_id, seq, at, events) values ($1, 3, now(), 'NotInventedYet {}')",
        newer.created[0],
    )
    loaded = await store.load([*newer.created, *plain.created])
    assert list(loaded) == plain.created


async def test_hot_lookups_use_indexes_even_on_fresh_tables(pool) -> None:
    for query, arguments in (
        ("select * from journal_commits where run_id = any($1) order by run_id, seq", ([UUID(int=1)],)),
        ("select * from journal where run_id = $1 order by seq", (UUID(int=1),)),
        ("select * from outbox where partition = any($1)", ([1],)),
        ("select * from timers where partition = any($1)", ([1],)),
        ("select * from tasks where tenant = $1 and task_id = $2", ("t", "x")),
    ):
        plan = await pool.fetch(f"explain {query}", *arguments)
        text = "\n".join(row[0] for row in plan)
        assert "Seq Scan" not in text, text


async def test_a_record_that_was_sent_on_to_another_partition_is_left_behind_for_that_partition(store):
    """The partition whose owner publishes a message is not the one that it goes to."""
    (claim,) = await store.claim([5], "a", CLUSTER)
    batch = admission("sent-on", claim.epoch, partition=5)
    run_id = batch.created[0]
    batch.outbox.append(OutboxMessage(MessageKey(run_id, 1), 5, Outgoing(TASKS, 7, b"k", [("ce_id", b"1")], b"{}")))
    await store.commit(batch)
    (row,) = await store.left_behind([5])
    assert row.key == OutboxKey(5, claim.epoch, batch.number)
    assert row.messages == batch.outbox


async def test_what_a_repeated_task_would_send_is_not_left_behind(store):
    """Its run was never created, and the next owner of the partition must not ask a planner for it."""
    (claim,) = await store.claim([12], "a", CLUSTER)
    first, repeat, again = (admission("left", claim.epoch, 12, timestamp_ms=number) for number in (1, 2, 1))
    assert first.created == again.created != repeat.created
    for number, batch in enumerate((first, repeat, again), start=1):
        batch.number = number
        outgoing = Outgoing("t.plan-requests", 12, b"k", [], b"{}")
        batch.outbox.append(OutboxMessage(MessageKey(batch.created[0], 1), 12, outgoing))
        await store.commit(batch)
    left = await store.left_behind([12])
    assert [message.key.run_id for row in left for message in row.messages] == first.created
    await store.forget([row.key for row in left])
    assert await store.left_behind([12]) == []
