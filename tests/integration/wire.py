"""Produce requests made by hand: what a broker is sent may be anything, and it says what it takes."""

from __future__ import annotations

import aiokafka
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest


async def produce(client: AIOKafkaClient, topic: str, partition: int, batch: bytes) -> tuple[int, int]:
    """Send one batch as it is; gives the broker's error code (0: it took it) and the offset."""
    await client._wait_on_metadata(topic)
    tp = aiokafka.TopicPartition(topic, partition)
    request = ProduceRequest(None, -1, 10_000, [(topic, [(partition, batch)])])
    response = await client.send(client.cluster.leader_for_partition(tp), request)
    ((_topic, ((_partition, code, offset, *_rest),)),) = response.topics
    return code, offset
