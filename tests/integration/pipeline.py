"""Executors, a planner and a tool on real servers, in one process: what a task meets between its topics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

import triptych.executor
import triptych.planner
import triptych.tools
from triptych.client import Client
from triptych.executor.__main__ import serve as serve_executor
from triptych.executor.settings import ExecutorSettings
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.models import ModelSettings
from triptych.operator.audit.auditor import audit
from triptych.planner.__main__ import serve as serve_planner
from triptych.schemas import Outcome, topics
from triptych.tools import Tool
from triptych.tools.runtime.process import serve as serve_tool

EXECUTOR = Path(triptych.executor.__file__).with_name("migrations")
PLANNER = Path(triptych.planner.__file__).with_name("migrations")
TOOL = Path(triptych.tools.__file__).with_name("migrations") / "tool"
TOPICS = tuple(topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS and not topic.compacted)
COMPACTED = tuple(topic.noun for topic in topics.CATALOG if topic.compacted)


@dataclass
class Pipeline:
    """What runs, and a client of it."""

    client: Client
    owner_dsn: str

    async def journal(self, outcome: Outcome) -> list[tuple[str, dict[str, Any]]]:
        """The types and the data of a run's events."""
        rows = await self.rows(
            "select type, data::text as data from executor.journal where run_id = $1 order by seq", outcome.run_id
        )
        return [(row["type"], json.loads(row["data"])) for row in rows]

    async def rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """What the database says."""
        connection = await asyncpg.connect(self.owner_dsn)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    async def change(self, statement: str) -> None:
        """Change what the database says, behind everybody's back."""
        await self.rows(statement)

    async def problems(self) -> list[str]:
        """What `triptych verify` finds."""
        connection = await asyncpg.connect(self.owner_dsn)
        try:
            return [str(problem) for problem in (await audit(connection, lambda *_: None)).problems]
        finally:
            await connection.close()


def playbook(name: str, steps: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
    """A fixed plan over the operations of one tool."""
    tools = sorted({step["operation"] for step in steps})
    plan = {"pattern": "fixed", "steps": list(steps)}
    return {"name": name, "goal": "g", "input": {"type": "object"}, "tools": tools, "plan": plan, **fields}


@asynccontextmanager
async def pipeline(
    servers: Any,
    prefix: str,
    database: Any,
    folder: Path,
    *,
    tool: Tool,
    playbooks: Sequence[Mapping[str, Any]],
    executors: int = 1,
) -> AsyncIterator[Pipeline]:
    """Run the services until the end of the block."""
    for book in playbooks:
        (folder / f"{book['name']}.yaml").write_text(json.dumps(book))
    schema = f"tool_{tool.name}"
    prepared = database.prepare({"executor": (EXECUTOR,), "planner": (WORKER, PLANNER), schema: (WORKER, TOOL)})
    common: dict[str, Any] = {"kafka": servers.kafka, "topic_prefix": prefix, "shutdown_timeout_ms": 4_000}
    common["session_timeout_ms"] = 6_000
    models = ModelSettings(
        base_url="http://127.0.0.1:1/v1", api_key="none", strong="none", cheap="none", prices={"none": (0, 0)}
    )
    async with AsyncExitStack() as stack:
        planner = ServiceSettings(**common, postgres=prepared.services["planner"])
        await stack.enter_async_context(running("planner", partial(serve_planner, models=models), planner))
        own = ServiceSettings(**common, postgres=prepared.services[schema])
        body = partial(serve_tool, tool=tool, own_settings=None)
        await stack.enter_async_context(running(f"tool-{tool.name}", body, own))
        deciding = ExecutorSettings(**common, postgres=prepared.services["executor"], playbooks=folder)
        for number in range(executors):
            await stack.enter_async_context(running("executor", serve_executor, deciding, number + 1))
        client = await stack.enter_async_context(Client(servers.kafka, prefix))
        yield Pipeline(client, database.owner_dsn)


@asynccontextmanager
async def running(name: str, body: Any, settings: Any, number: int = 1) -> AsyncIterator[None]:
    """One service, as far as it can be one inside a test."""
    log = configure_logging("error", "console", instance=name)
    instance = f"{name}-{number}"
    service = Service(name, log, Health(name, instance), asyncio.Event())
    task = asyncio.create_task(body(service, settings.model_copy(update={"instance": instance})))
    try:
        yield
    finally:
        service.stopping.set()
        await task
