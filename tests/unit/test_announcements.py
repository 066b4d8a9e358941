"""A tool tells its contracts, and tells them again where nobody can know them any more."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from triptych.kernel.kafka.topic_metadata import ClusterTopics, KnownTopic
from triptych.tools.runtime import process


class Kafka:
    """A broker that is another one, or has another topic of contracts, each time that it is said so."""

    def __init__(self, *clusters: ClusterTopics, stopping: asyncio.Event) -> None:
        self.clusters, self.stopping, self.published = list(clusters), stopping, 0
        self.settings = SimpleNamespace(topic=lambda noun: f"t.{noun}")

    async def describe(self, names: list[str]) -> ClusterTopics:
        assert names == ["t.contracts"]
        if len(self.clusters) > 1:
            return self.clusters.pop(0)
        self.stopping.set()
        return self.clusters[0]

    @asynccontextmanager
    async def publisher(self) -> Any:
        yield self

    async def publish(self, messages: list[Any]) -> None:
        self.published += len(messages)


def cluster(name: str, topic_id: str) -> ClusterTopics:
    return ClusterTopics(name, {"t.contracts": KnownTopic(topic_id, 1)})


SAME = cluster("a", "1")


@pytest.mark.parametrize(
    ("later", "published"),
    [(SAME, 0), (cluster("a", "2"), 1), (cluster("b", "1"), 1)],
    ids=["same", "topic", "cluster"],
)
async def test_contracts_are_told_again_to_a_topic_or_a_cluster_that_was_made_anew(
    monkeypatch: pytest.MonkeyPatch, later: ClusterTopics, published: int
) -> None:
    monkeypatch.setattr(process, "LOOK_EVERY_S", 0.0)
    stopping = asyncio.Event()
    service = SimpleNamespace(name="tool-x", log=structlog.stdlib.get_logger(), stopping=stopping)
    contracts = SimpleNamespace(contracts=[], to_bytes=lambda: b"{}")
    tool = SimpleNamespace(name="x", operations={}, contracts=contracts, changed=asyncio.Event())
    kafka = Kafka(SAME, later, later, stopping=stopping)
    await process._announce_again(service, kafka, tool, SAME)  # type: ignore[arg-type]
    assert kafka.published == published
