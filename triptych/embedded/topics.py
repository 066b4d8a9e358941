"""Creates the topics of a stack, and partitions that some lack. What is there stays, so this can be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiokafka.admin import NewPartitions, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from triptych.embedded.config import PARTITIONS
from triptych.embedded.errors import PartitionsDifferError, TopicError
from triptych.kernel.kafka.bus import REQUEST_MAX_BYTES
from triptych.kernel.kafka.clients import Admin
from triptych.schemas import topics

_REPLICAS = 3
_ATTEMPTS = 20
_PAUSE_S = 0.25


async def create_topics(kafka: str, prefix: str, tools: Iterable[str], partitions: int = PARTITIONS) -> list[str]:
    """Create what is missing, so that all topics that the executor reads have as many partitions.

    A new topic gets `partitions`; one that is there keeps what it has.

    Returns the topics that were there before with fewer partitions than another of them, and have as many now.

    Raises:
        TopicError: the broker cannot be reached, or refuses a topic.
        PartitionsDifferError: it refuses to add partitions.
    """
    admin = Admin(bootstrap_servers=kafka)
    try:
        await admin.start()
        replicas = min(_REPLICAS, len((await admin.describe_cluster())["brokers"]))
        wanted = _wanted(prefix, tools, partitions, replicas)
        await _create(admin, kafka, wanted)
        counts = await _partitions(admin, kafka, [topic.name for topic in wanted])
        inputs = [f"{prefix}.{noun}" for noun in topics.EXECUTOR_INPUTS]
        return await _level(admin, {name: counts[name] for name in inputs})
    except (KafkaError, OSError) as error:
        raise TopicError(kafka, str(error)) from error
    finally:
        await admin.close()


def _wanted(prefix: str, tools: Iterable[str], partitions: int, replicas: int) -> list[NewTopic]:
    nouns = {topic.noun: topic.compacted for topic in topics.CATALOG if topic.noun != topics.CALLS}
    nouns |= {topics.calls(tool): False for tool in tools}
    return [
        NewTopic(
            name=f"{prefix}.{noun}",
            num_partitions=1 if compacted else partitions,
            replication_factor=replicas,
            topic_configs={"max.message.bytes": str(REQUEST_MAX_BYTES)}
            | ({"cleanup.policy": "compact"} if compacted else {})
            # A run id begins with the time of its task. It is the broker's, since the clocks of clients differ.
            | ({"message.timestamp.type": "LogAppendTime"} if noun == topics.TASKS else {}),
        )
        for noun, compacted in nouns.items()
    ]


async def _create(admin: Admin, kafka: str, wanted: list[NewTopic]) -> None:
    """Create topics. A broker that has just started may refuse for a moment, until it is part of its own cluster."""
    refusal = ""
    for _ in range(_ATTEMPTS):
        response = await admin.create_topics(wanted)
        refused = {name: (code, *message) for name, code, *message in response.topic_errors if code}
        refused = {name: why for name, why in refused.items() if why[0] != TopicAlreadyExistsError.errno}
        if not refused:
            return
        wanted = [topic for topic in wanted if topic.name in refused]
        refusal = "; ".join(f"{name}: {why[1] or for_code(why[0]).__name__}" for name, why in refused.items())
        await asyncio.sleep(_PAUSE_S)
    raise TopicError(kafka, refusal)


async def _partitions(admin: Admin, kafka: str, names: list[str]) -> dict[str, int]:
    """Count the partitions of each topic. For a moment the broker might not know what the controller has created."""
    unknown: list[str] = []
    for _ in range(_ATTEMPTS):
        described = await admin.describe_topics(names)
        unknown = [topic["topic"] for topic in described if topic["error_code"]]
        if not unknown:
            return {topic["topic"]: len(topic["partitions"]) for topic in described}
        await asyncio.sleep(_PAUSE_S)
    raise TopicError(kafka, f"created, and yet the broker does not know {', '.join(unknown)}")


async def _level(admin: Admin, counts: dict[str, int]) -> list[str]:
    """Give all of these topics as many partitions as the one that has most."""
    most = max(counts.values())
    lacking = sorted(name for name, count in counts.items() if count < most)
    if lacking:
        try:
            await admin.create_partitions({name: NewPartitions(most) for name in lacking})
        except KafkaError as error:
            raise PartitionsDifferError(counts, str(error)) from error
    return lacking
