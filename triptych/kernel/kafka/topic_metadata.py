"""What a cluster says of its topics: their ids and how many partitions each has.

A topic that was deleted and created again has the same name and another id. Offsets of the old one mean nothing in it.
aiokafka asks for metadata in a version without ids, so the request with ids is written out here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

_NO_ERROR = 0
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class KnownTopic:
    """One topic: its id, or None of a cluster that is too old for ids, and the number of its partitions."""

    id: str | None
    partitions: int


@dataclass(frozen=True, slots=True)
class ClusterTopics:
    """A cluster and those topics that were asked for and exist, by name."""

    cluster_id: str
    topics: dict[str, KnownTopic]

    @property
    def ids(self) -> dict[str, str]:
        """The id of each topic, as far as the cluster has ids."""
        return {name: topic.id for name, topic in self.topics.items() if topic.id is not None}

    def partitions(self, name: str) -> int:
        """Return how many partitions a topic has; 0 if it does not exist."""
        return self.topics[name].partitions if name in self.topics else 0


class _Uuid(AbstractType[UUID]):  # type: ignore[misc]  # aiokafka is untyped
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


_NO_ID = UUID(int=0)


class _Response(Response):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("topic_authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _RequestStruct(RequestStruct):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Request(Request[_RequestStruct]):  # type: ignore[misc]  # aiokafka is untyped
    API_KEY = 3

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)

    def build(self, request_struct_class: type[_RequestStruct]) -> _RequestStruct:
        no_tags: dict[int, bytes] = {}
        wanted = [(_NO_ID, name, no_tags) for name in self._names]
        create = cluster_operations = topic_operations = False
        return request_struct_class(wanted, create, cluster_operations, topic_operations, no_tags)


async def describe(client: Any, names: Iterable[str]) -> ClusterTopics:
    """Ask a cluster for these topics over a client that is connected. Those that do not exist are left out.

    Raises:
        KafkaError: no broker answers.
        TimeoutError: not in time.
    """
    names = tuple(names)
    async with asyncio.timeout(_TIMEOUT_S):
        node = client.get_random_node()
        if node is None:
            raise KafkaConnectionError("no broker is known")
        try:
            answer = await client.send(node, _Request(names))
        except NotImplementedError:  # a cluster before Kafka 2.8, which has no ids
            answer = await client.send(node, MetadataRequest(list(names)))
            found = {name: KnownTopic(None, len(each)) for error, name, _, each in answer.topics if error == _NO_ERROR}
        else:
            found = {
                name: KnownTopic(str(topic_id) if topic_id != _NO_ID else None, len(partitions))
                for error, name, topic_id, _, partitions, _, _ in answer.topics
                if error == _NO_ERROR
            }
    return ClusterTopics(str(answer.cluster_id), found)
