"""`triptych topics seek`: where the executor goes on reading a partition, when a person has to decide that.

The offset that counts is in Postgres, in the row that fences owners. Writing another one takes the partition from its
owner, which reads on from there when it has claimed it again: within seconds, for it looks after its claims.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from triptych.client import Address, KafkaUnreachableError
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Kafka, Prefix, broker
from triptych.commands.common.output import err, print_json
from triptych.commands.common.owner import OwnerPostgres, connected, owner_of
from triptych.kernel.errors import TriptychError
from triptych.kernel.kafka.clients import Consumer
from triptych.kernel.kafka.topic_metadata import describe
from triptych.kernel.postgres.database import Queries
from triptych.schemas.topics import EXECUTOR_INPUTS

_SQL = Queries.load("triptych.commands.topics", "seek.sql")


class SeekRefusedError(TriptychError):
    """The executor cannot go on there."""

    def __init__(self, place: TopicPartition, problem: str, cure: str) -> None:
        self.place, self.problem = place, problem
        super().__init__(f"{place.topic}, partition {place.partition}: {problem}. {cure}")


def seek(
    noun: Annotated[
        str, typer.Argument(metavar="TOPIC", help=f"One that the executor reads: {', '.join(EXECUTOR_INPUTS)}.")
    ],
    partition: Annotated[int, typer.Argument(min=0, help="Its partition.")],
    offset: Annotated[
        int, typer.Argument(min=0, help="The record that is read next: the one after a bad one skips it.")
    ],
    *,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    postgres: OwnerPostgres = None,
    as_json: AsJson = False,
) -> None:
    """Let the executor read a partition on from another record: skip some, or read some again."""
    if noun not in EXECUTOR_INPUTS:
        raise typer.BadParameter(f"the executor reads no topic {noun!r}; it reads {', '.join(EXECUTOR_INPUTS)}")
    address, dsn = broker(data, kafka, prefix), postgres or owner_of(data)
    place = TopicPartition(f"{address.topic_prefix}.{noun}", partition)
    first, end = asyncio.run(_range(address, place))
    if not first <= offset <= end:
        problem, cure = f"there is no offset {offset}", f"Choose from {first} to {end}, which is the end."
        raise SeekRefusedError(place, problem, cure)
    before = _write(dsn, place, offset)
    if as_json:
        print_json({"topic": place.topic, "partition": partition, "before": before, "offset": offset})
    else:
        was = "the beginning" if before is None else before
        err.print(f"{place.topic}, partition {partition}: read on from {offset}, no more from {was}.")


async def _range(address: Address, place: TopicPartition) -> tuple[int, int]:
    """Return the first offset that is there, and the end."""
    consumer = Consumer(bootstrap_servers=address.kafka, enable_auto_commit=False)
    try:
        await consumer.start()
        if place.partition >= (await describe(consumer._client, [place.topic])).partitions(place.topic):  # noqa: SLF001
            raise SeekRefusedError(place, f"this partition does not exist at {address.kafka}", "See `triptych topics`.")
        return (await consumer.beginning_offsets([place]))[place], (await consumer.end_offsets([place]))[place]
    except KafkaError as error:
        raise KafkaUnreachableError(address.kafka, error) from error
    finally:
        await consumer.stop()


def _write(dsn: str, place: TopicPartition, offset: int) -> int | None:
    """Put the offset in the row of the partition, and take the partition from its owner; gives the one before."""
    with connected(dsn) as connection:
        asked = {"topic": place.topic, "partition": place.partition, "offset": offset}
        row = connection.execute(_SQL["seek"].encode(), asked).fetchone()
    if row is None:
        raise SeekRefusedError(place, "no executor has ever read it", "Start one first.")
    before: int | None = row[0]
    return before
