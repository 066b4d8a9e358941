"""What a membership of the decider's group does at its end, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from uuid import UUID

from aiokafka.errors import KafkaConnectionError

from triptych.kernel.bus import Outgoing
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


async def test_what_is_decided_while_the_process_stops_does_not_overtake_what_was_left_unpublished() -> None:
    stopping = asyncio.Event()
    publisher = Flaky(stopping)
    service = SimpleNamespace(name="executor", stopping=stopping, health=SimpleNamespace(beat=lambda _loop: None))
    kit = SimpleNamespace(
        service=service,
        settings=SimpleNamespace(topic=str, topic_prefix="t", batch_max_records=1),
        domain=SimpleNamespace(nouns=("tasks",), limits=None),
        kafka=SimpleNamespace(subscribe=lambda *_: None),
    )
    session = Session(kit, publisher)
    start, withdrawal = (OutboxRow(OutboxKey(UUID(int=1), n), 0, Outgoing("tasks", 0, b"", (), b"")) for n in range(2))
    await session._publish([start])
    await session._publish([withdrawal])
    assert publisher.sent == []
    assert session._published == []
