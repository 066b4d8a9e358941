"""The topics of a stack are created with as many partitions as its file says, and keep what they have."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from triptych.embedded.config import StackConfig
from triptych.embedded.topics import create_topics
from triptych.schemas import topics

NAMES = {*topics.EXECUTOR_INPUTS, topics.calls("echo"), topics.OUTCOMES}


@pytest.fixture
async def admin(servers, prefix) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers.kafka)
    await admin.start()
    yield admin
    await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(f"{prefix}.")])
    await admin.close()


async def test_topics_begin_with_the_partitions_of_the_file_and_keep_them(servers, prefix, admin, tmp_path):
    for asked in (5, 3):
        file = tmp_path / f"{asked}.toml"
        file.write_text(f"partitions = {asked}", "utf-8")
        await create_topics(servers.kafka, prefix, ["echo"], StackConfig.load(file).table.partitions)
        found = await admin.describe_topics([f"{prefix}.{name}" for name in NAMES])
        assert {len(topic["partitions"]) for topic in found} == {5}
