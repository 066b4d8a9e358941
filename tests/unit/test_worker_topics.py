"""A worker whose topic is deleted and made anew under it passes over nothing of the new one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import structlog

from triptych.kernel.kafka.bus import TopicPartition
from triptych.kernel.kafka.topic_metadata import ClusterTopics, KnownTopic
from triptych.kernel.worker.intake import Intake

CALLS, WITHDRAWALS = TopicPartition("calls.x", 0), TopicPartition("withdrawals", 0)


class Subscription:
    """A membership in a group with a partition of each topic."""

    def __init__(self) -> None:
        self.ids = {"calls.x": "1", "withdrawals": "1"}
        self.sought: list[TopicPartition] = []
        self.consumer = self

    async def describe(self) -> ClusterTopics:
        return ClusterTopics("c", {name: KnownTopic(each, 1) for name, each in self.ids.items()})

    def assignment(self) -> set[TopicPartition]:
        return {CALLS, WITHDRAWALS}

    async def seek_to_beginning(self, *places: TopicPartition) -> None:
        self.sought += places


async def test_a_topic_that_was_made_anew_is_read_from_its_beginning_and_others_go_on() -> None:
    nothing: Any = None
    service: Any = SimpleNamespace(
        name="tool-x", health=None, stopping=asyncio.Event(), log=structlog.stdlib.get_logger()
    )
    settings: Any = SimpleNamespace(topic=lambda noun: noun)
    config: Any = SimpleNamespace(request_noun="calls.x")
    parts = dict.fromkeys(("runner", "outbox", "unpersisted", "withdrawals", "kafka"), nothing)
    jobs: Any = SimpleNamespace(lease=None)
    intake: Intake[Any] = Intake(service, settings, config, nothing, jobs=jobs, **parts)
    intake._subscription = subscription = Subscription()  # type: ignore[assignment]
    intake._positions = intake._committed = {CALLS: 50, WITHDRAWALS: 7}
    await intake._probe()
    del subscription.ids["calls.x"]  # for a moment there is none
    await intake._probe()
    assert subscription.sought == []
    subscription.ids["calls.x"] = "2"
    await intake._probe()
    await intake._probe()
    assert subscription.sought == [CALLS]
    assert intake._positions == {WITHDRAWALS: 7}
