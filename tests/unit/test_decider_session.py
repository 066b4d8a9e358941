"""What a membership of the decider's group does at its end, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from aiokafka.errors import KafkaConnectionError

from triptych.kernel.bus import Outgoing
from triptych.kernel.decider.admission import Limits
from triptych.kernel.decider.contract import Addressed, Batch
from triptych.kernel.decider.session import Session
from triptych.kernel.errors import PublishFailed
from triptych.kernel.outbox import OutboxKey, OutboxRow


class Flaky:
    """A broker that is away once, just while the process is told to stop."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self.stopping, self.sent = stopping, []

    async def publish(self, outgoing: Sequence[Outgoing]) -> None:
        if not self.stopping.is_set():
            self.stopping.set()
            raise PublishFailed("tasks", 0, KafkaConnectionError())
        self.sent.extend(outgoing)


def session_on(publisher: object, stopping: asyncio.Event, store: object = None) -> Session[Any]:
    service = SimpleNamespace(name="executor", stopping=stopping, health=SimpleNamespace(beat=lambda _loop: None))
    kit = SimpleNamespace(
        service=service,
        settings=SimpleNamespace(topic=str, topic_prefix="t", batch_max_records=1),
        domain=SimpleNamespace(nouns=("tasks",), limits=Limits(1)),
        kafka=SimpleNamespace(subscribe=lambda *_: None),
        store=store,
        outage=SimpleNamespace(over=lambda: None),
    )
    return Session(kit, publisher)  # type: ignore[arg-type]


async def test_what_is_decided_while_the_process_stops_does_not_overtake_what_was_left_unpublished() -> None:
    stopping = asyncio.Event()
    publisher = Flaky(stopping)
    session = session_on(publisher, stopping)
    start, withdrawal = (OutboxRow(OutboxKey(UUID(int=1), n), 0, Outgoing("tasks", 0, b"", (), b"")) for n in range(2))
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
    await session._written()
    assert session._wait_ms() > 0


async def test_what_the_database_answers_is_kept_when_the_next_batch_has_begun_meanwhile() -> None:
    is_asked, is_answered = asyncio.Event(), asyncio.Event()
    answer = Addressed(UUID(int=1), "granted")

    async def asked_of_it(_batch: Batch[Any]) -> list[Addressed]:
        is_asked.set()
        await is_answered.wait()
        return [answer]

    session = session_on(None, asyncio.Event(), SimpleNamespace(asked_of_it=asked_of_it))
    written = asyncio.create_task(session._written_through(Batch(), set()))
    await is_asked.wait()
    session._memory.told = []  # the next batch takes what there is
    is_answered.set()
    await written
    assert session._memory.told == [answer]
