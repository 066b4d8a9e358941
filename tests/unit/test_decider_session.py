"""What a membership of the decider's group does at its end, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from aiokafka.errors import KafkaConnectionError

from triptych.kernel.decider.admission import AdmissionLimits
from triptych.kernel.decider.contract import Batch, PartitionClaim, RunMessage, Submission, TaskKey
from triptych.kernel.decider.session import Session
from triptych.kernel.errors import Fenced, PublishFailed, TopicsReplacedError
from triptych.kernel.kafka.bus import Outgoing, TopicPartition
from triptych.kernel.kafka.suspect_records import Suspicion
from triptych.kernel.kafka.topic_metadata import ClusterTopics, KnownTopic
from triptych.kernel.postgres.outbox import MessageKey, OutboxMessage


class Flaky:
    """A broker that is away once, just while the process is told to stop."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self.stopping, self.sent = stopping, []

    async def publish(self, outgoing: Sequence[Outgoing]) -> None:
        if not self.stopping.is_set():
            self.stopping.set()
            raise PublishFailed("tasks", 0, KafkaConnectionError())
        self.sent.extend(outgoing)


class Broker:
    """A broker as a session sees it: one subscription, some topics, and what it was told."""

    def __init__(self, names: Sequence[str], partitions: int = 2) -> None:
        self.cluster = cluster(**dict.fromkeys(names, partitions))
        self.assigned = {TopicPartition(name, number) for name in names for number in range(partitions)}
        self.committed: list[dict[TopicPartition, int]] = []
        self.asked, self.paused, self.sought = 0, set(), {}
        self.consumer = self

    def subscribe(self, *_what: object, one_owner: bool) -> Broker:
        assert one_owner
        return self

    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        return

    async def describe(self, *_topics: object) -> ClusterTopics:
        return self.cluster

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused.update(partitions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought[partition] = offset

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        self.asked += 1
        return dict.fromkeys(partitions, 3)

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 9)

    async def poll(self, _wait_ms: float) -> dict[TopicPartition, list[Any]]:
        return {}

    def positions(self) -> dict[TopicPartition, int]:
        return dict.fromkeys(self.sought, 9)

    async def commit(self, positions: dict[TopicPartition, int]) -> bool:
        self.committed.append(positions)
        return len(self.committed) > 1


class Empty:
    """A database in which nothing is going on."""

    async def claim(self, partitions: Sequence[int], *_who: object) -> list[PartitionClaim]:
        return [PartitionClaim(partition, 1, {"tasks": 5}) for partition in partitions]

    async def epochs(self, partitions: Sequence[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 1)

    def projections_due_at(self) -> None:
        return None

    def projected_partitions(self, _now: object) -> set[int]:
        return set()

    def __getattr__(self, _statement: str) -> Any:
        async def nothing(*_arguments: object) -> list[Any]:
            return []

        return nothing


def cluster(**partitions: int) -> ClusterTopics:
    return ClusterTopics("c", {name: KnownTopic(f"{name}-1", count) for name, count in partitions.items()})


def session_on(publisher: object, stopping: asyncio.Event, store: object = None, kafka: object = None) -> Session[Any]:
    log = SimpleNamespace(**dict.fromkeys(("debug", "info", "error"), lambda *_what, **_fields: None))
    health = SimpleNamespace(**dict.fromkeys(("beat", "count", "started"), lambda *_what: None))
    service = SimpleNamespace(name="executor", stopping=stopping, health=health, log=log)
    context = SimpleNamespace(
        service=service,
        settings=SimpleNamespace(topic=str, topic_prefix="t", batch_max_records=1, instance="executor-1"),
        domain=SimpleNamespace(nouns=("tasks", "plans"), limits=AdmissionLimits(1)),
        kafka=kafka or SimpleNamespace(subscribe=lambda *_, one_owner: None),
        store=store,
        outage=SimpleNamespace(over=lambda: None),
        suspicion=Suspicion(),
    )
    return Session(context, publisher)  # type: ignore[arg-type]


async def test_what_is_decided_while_the_process_stops_does_not_overtake_what_was_left_unpublished() -> None:
    stopping = asyncio.Event()
    publisher = Flaky(stopping)
    session = session_on(publisher, stopping)
    start, withdrawal = (
        OutboxMessage(MessageKey(UUID(int=1), n), 0, Outgoing("tasks", 0, b"", (), b"")) for n in range(2)
    )
    await session._publish([start])
    await session._publish([withdrawal])
    assert publisher.sent == []
    assert session._published == []


async def test_nobody_waits_for_records_while_a_batch_is_under_way_since_it_may_lead_to_more() -> None:
    session = session_on(None, asyncio.Event())
    assert session._wait_ms() > 0
    is_written = asyncio.Event()
    session._under_way = asyncio.ensure_future(is_written.wait())
    assert session._wait_ms() == 0
    is_written.set()
    await session._wait_until_written()
    assert session._wait_ms() > 0


async def test_what_the_database_answers_is_kept_when_the_next_batch_has_begun_meanwhile() -> None:
    is_asked, is_answered = asyncio.Event(), asyncio.Event()
    answer = RunMessage(UUID(int=1), "granted")

    async def answer_queries(_batch: Batch[Any], _duplicates: set[UUID]) -> list[RunMessage]:
        is_asked.set()
        await is_answered.wait()
        return [answer]

    session = session_on(None, asyncio.Event(), SimpleNamespace(answer_queries=answer_queries))
    written = asyncio.create_task(session._finish_write(Batch(), set()))
    await is_asked.wait()
    session._partition_state.answers = []  # the next batch takes what there is
    is_answered.set()
    await written
    assert session._partition_state.answers == [answer]


async def test_a_run_whose_task_has_another_run_asks_nothing_of_the_database() -> None:
    class Asked(Empty):
        duplicates: set[UUID]

        async def answer_queries(self, _batch: Batch[Any], duplicates: set[UUID]) -> list[RunMessage]:
            self.duplicates = duplicates
            return []

        async def known(self, _tasks: object) -> dict[TaskKey, bytes | None]:
            return {}

        async def ended(self, _tasks: object) -> dict[UUID, Any]:
            return {}

    store, run_id = Asked(), UUID(int=2)
    session = session_on(None, asyncio.Event(), store)
    batch: Batch[Any] = Batch(submissions={run_id: Submission(None, TaskKey("acme", "t-1"), b"one")})
    await session._finish_write(batch, {run_id})
    assert store.duplicates == {run_id}


async def test_a_claim_asks_the_broker_once_where_partitions_begin_since_each_answer_waits_behind_a_fetch() -> None:
    broker = Broker(("tasks", "plans"))
    session = session_on(None, asyncio.Event(), Empty(), broker)
    await session.on_partitions_assigned(broker.assigned)
    assert broker.asked == 1
    assert broker.sought == {tp: 5 if tp.topic == "tasks" else 3 for tp in broker.assigned}


async def test_kafka_is_told_how_far_all_is_read_when_idle_at_a_rebalance_and_at_the_end(monkeypatch) -> None:
    monkeypatch.setattr("triptych.kernel.decider.session.IDLE_OFFSET_COMMIT_EVERY_S", 0.0)
    broker, stopping = Broker(("tasks", "plans")), asyncio.Event()
    session = session_on(None, stopping, Empty(), broker)
    await session.on_partitions_assigned(broker.assigned)
    for _ in range(3):
        await session._take_one()
    everything = dict.fromkeys(broker.assigned, 9)
    assert broker.committed == [everything, everything], "what was refused is told again, and what was taken is not"

    one = TopicPartition("plans", 1)
    session._positions[one] = 10
    await session.on_partitions_revoked(broker.assigned)
    assert broker.committed[2:] == [everything | {one: 10}]

    await session.on_partitions_assigned(broker.assigned)
    stopping.set()
    await session.run()
    assert broker.committed[3:] == [broker.sought]


async def test_partitions_that_not_all_topics_have_are_not_read_and_what_is_wrong_is_told() -> None:
    broker = Broker(("tasks", "plans"))
    broker.cluster = cluster(tasks=3, plans=2)
    more = TopicPartition("tasks", 2)
    session = session_on(None, asyncio.Event(), Empty(), broker)
    await session.on_partitions_assigned({*broker.assigned, more})
    assert (broker.paused, more in broker.sought) == ({more}, False)
    assert session.problem == "Topics differ in their partitions (tasks: 3; plans: 2), so from number 2 on none is read"
    broker.cluster = cluster(tasks=3)
    await session.look()
    assert session.problem == "There is no topic plans, so nothing is read"
    broker.cluster = cluster(tasks=3, plans=3)
    await session.look()
    assert session.problem is None


async def test_a_topic_that_has_another_id_than_when_it_was_claimed_ends_the_session() -> None:
    broker = Broker(("tasks", "plans"))
    session = session_on(None, asyncio.Event(), Empty(), broker)
    await session.on_partitions_assigned(broker.assigned)
    broker.cluster = cluster(plans=2)  # for a moment there is none
    await session.look()
    await session._take_one()
    broker.cluster.topics["tasks"] = KnownTopic("tasks-2", 2)
    await session.look()
    with pytest.raises(TopicsReplacedError, match="tasks was deleted and created again"):
        await session._take_one()


async def test_an_idle_owner_whose_partition_was_taken_from_it_claims_again() -> None:
    broker, store = Broker(("tasks", "plans")), Empty()
    session = session_on(None, asyncio.Event(), store, broker)
    await session.on_partitions_assigned(broker.assigned)
    store.epochs = lambda _partitions: asyncio.sleep(0, {0: 1, 1: 2})
    await session.look()
    with pytest.raises(Fenced, match=r"\[1\]"):
        await session._take_one()


async def test_an_owner_that_stops_after_it_lost_its_partitions_leaves_their_rows_to_the_next_one() -> None:
    class TakenOver(Empty):
        def projected_partitions(self, _now: object) -> set[int]:
            return {0}

        async def commit(self, batch: Batch[Any]) -> set[UUID]:
            raise Fenced(tuple(batch.epochs))

    broker, stopping = Broker(("tasks", "plans")), asyncio.Event()
    session = session_on(None, stopping, TakenOver(), broker)
    await session.on_partitions_assigned(broker.assigned)
    await session.on_partitions_revoked(broker.assigned)
    stopping.set()
    await session.run()
    assert isinstance(session._failure, Fenced)
