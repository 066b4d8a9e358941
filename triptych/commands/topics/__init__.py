"""`triptych topics`: what each topic carries, how much of it, and how far its readers are behind."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import aiokafka
import typer
from aiokafka.errors import KafkaError
from rich.table import Table

from triptych.client import Address, KafkaUnreachableError, TopicMissingError
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Kafka, Prefix, broker
from triptych.commands.common.output import is_narrow, out, print_json
from triptych.commands.topics import seek
from triptych.kernel.kafka.clients import Admin, Consumer
from triptych.schemas import topics as t

_UNKNOWN = "not a topic of the pipeline"
_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class TopicRow:
    """One topic on the broker."""

    name: str
    partitions: int
    messages: int
    carries: str
    producer: str
    consumer: str
    lag: dict[str, int]
    """By consumer group, how many messages it has not committed yet."""


app = typer.Typer(help="The topics, and how far their readers are.")


@app.callback(invoke_without_command=True)
def topics(
    context: typer.Context,
    *,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """List the topics: partitions, messages, what travels there, and the lag of each group."""
    if context.invoked_subcommand:
        return
    address = broker(data, kafka, prefix)
    found = asyncio.run(_read(address))
    if as_json:
        print_json(found)
    else:
        out.print(_table(found))


app.command()(seek.seek)


async def _read(address: Address) -> list[TopicRow]:
    admin = Admin(bootstrap_servers=address.kafka, request_timeout_ms=_TIMEOUT_MS)
    consumer = Consumer(bootstrap_servers=address.kafka, enable_auto_commit=False, request_timeout_ms=_TIMEOUT_MS)
    try:
        await admin.start()
        await consumer.start()
        names = sorted(name for name in await admin.list_topics() if name.startswith(f"{address.topic_prefix}."))
        if not names:
            raise TopicMissingError(address.topic(t.TASKS), address.kafka)
        committed = await _committed(admin)
        described = await admin.describe_topics(names)
        described.sort(key=itemgetter("topic"))
        return [await _row(address, consumer, topic, committed) for topic in described]
    except KafkaError as error:
        raise KafkaUnreachableError(address.kafka, error) from error
    finally:
        await consumer.stop()
        await admin.close()


Committed = dict[str, dict[aiokafka.TopicPartition, int]]


async def _committed(admin: Admin) -> Committed:
    """Read the committed offsets by group."""
    found: Committed = {}
    for group, _protocol in await admin.list_consumer_groups():
        offsets = await admin.list_consumer_group_offsets(group)
        found[group] = {partition: stored.offset for partition, stored in offsets.items()}
    return found


async def _row(address: Address, consumer: Consumer, described: dict[str, Any], committed: Committed) -> TopicRow:
    name: str = described["topic"]
    partitions = [aiokafka.TopicPartition(name, each["partition"]) for each in described["partitions"]]
    starts = await consumer.beginning_offsets(partitions)
    ends = await consumer.end_offsets(partitions)
    lag = {
        group: sum(max(0, ends[partition] - max(offsets[partition], starts[partition])) for partition in read)
        for group, offsets in sorted(committed.items())
        if (read := [partition for partition in partitions if offsets.get(partition, -1) >= 0])
    }
    known = _known(name.removeprefix(f"{address.topic_prefix}."))
    return TopicRow(
        name=name,
        partitions=len(partitions),
        messages=sum(ends[partition] - starts[partition] for partition in partitions),
        carries=known.description if known else _UNKNOWN,
        producer=known.producer if known else "",
        consumer=known.consumer if known else "",
        lag=lag,
    )


def _known(noun: str) -> t.Topic | None:
    noun = t.CALLS if noun.startswith(f"{t.CALLS}.") else noun
    return next((topic for topic in t.CATALOG if topic.noun == noun), None)


def _table(found: list[TopicRow]) -> Table:
    """Names and figures whole; a narrow table leaves out what the documentation says as well."""
    narrow = is_narrow()
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("topic", no_wrap=True)
    for heading in ("partitions", "messages"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("lag",) if narrow else ("what travels", "from", "to", "lag"):
        table.add_column(heading)
    for row in found:
        lag = ", ".join(f"{group} {behind}" for group, behind in row.lag.items())
        told = [] if narrow else [row.carries, row.producer, row.consumer]
        table.add_row(row.name, str(row.partitions), f"{row.messages:,}", *told, lag)
    return table
