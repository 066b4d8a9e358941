"""A batch that was harmed where it lies, on the disk of a broker: it is fetched twice, buried, and passed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiokafka.admin import NewTopic

from triptych.embedded.kafka import EmbeddedKafka
from triptych.embedded.layout import Layout
from triptych.embedded.ports import Ports
from triptych.embedded.servers import _running
from triptych.kernel.kafka.bus import Kafka, Outgoing
from triptych.kernel.kafka.clients import Admin
from triptych.kernel.kafka.record_batches import UnreadableRecord
from triptych.kernel.process.settings import ServiceSettings

TOPIC = "triptych.harmed"


async def test_a_batch_that_is_harmed_on_the_disk_is_a_dead_letter_and_the_next_is_read(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path)
    broker = EmbeddedKafka.of(layout, Ports(layout), lambda _line: None)
    kafka = Kafka(ServiceSettings(kafka=broker.address, postgres="postgresql://nobody@nowhere/x"))
    with _running(layout, broker):
        admin = Admin(bootstrap_servers=broker.address)
        await admin.start()
        await admin.create_topics([NewTopic(TOPIC, 1, 1)])
        await admin.close()
        async with kafka.publisher() as publisher:
            for value in (b"first", b"second", b"third"):
                await publisher.publish([Outgoing(TOPIC, 0, b"k", [], value)])
    (segment,) = tmp_path.rglob(f"{TOPIC}-0/*.log")  # noqa: ASYNC240 - nothing else runs here
    segment.write_bytes(segment.read_bytes().replace(b"second", b"SECOND"))
    with _running(layout, broker):
        found = []
        async with asyncio.timeout(120), kafka.subscribe([TOPIC], "reader") as subscription:
            while not found or found[-1].value != b"third":
                for records in (await subscription.poll(500)).values():
                    found += records
    assert [one.offset for one in found] == [0, 1, 2]
    assert isinstance(found[1], UnreadableRecord)
    assert b"SECOND" in found[1].value
    assert "checksum" in found[1].error.message
