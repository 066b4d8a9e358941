"""A run whose step waits for a callback: executor and tool are killed meanwhile, and it goes on all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest
from executor_harness import MIGRATIONS as EXECUTOR
from executor_harness import ExecutorHarness, plan_of
from studio import MIGRATIONS, TOOL, Process, Studio, answers, call_back, open_studio

from triptych.kernel.postgres.database import connect
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import Contract, topics
from triptych.tools.runtime.process import load_tool

PLAYBOOK = """
name: film
goal: Make a film.
input: {type: object}
tools: [studio.render]
plan:
  pattern: fixed
  steps:
    - {id: render, operation: studio.render, arguments: {text: a film}}
output: {film: "${{ steps.render.data.film }}"}
"""


@dataclass
class Scene:
    """An executor, a tool, the upstream that the tool calls, and the tool's tables."""

    harness: ExecutorHarness
    tool: Process
    studio: Studio
    pool: asyncpg.Pool


@pytest.fixture
async def scene(servers, prefix, database, create_topics, tmp_path) -> AsyncIterator[Scene]:
    (tmp_path / "film.yaml").write_text(PLAYBOOK, "utf-8")
    nouns = [topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS]
    await create_topics(*nouns, "calls.studio", "calls.echo")
    dsns = database.prepare({"executor": (EXECUTOR,), "tool_studio": (WORKER, MIGRATIONS / "tool")}).services
    settings = ServiceSettings(kafka=servers.kafka, postgres=dsns["tool_studio"], topic_prefix=prefix)
    harness = ExecutorHarness(servers.kafka, prefix, dsns["executor"], tmp_path, tmp_path / "log")
    async with open_studio() as (studio, address), harness, await connect(dsns["tool_studio"], "test") as pool:
        tool = Process(settings, address, tmp_path)
        harness.start()
        await tool.start()
        yield Scene(harness, tool, studio, pool)
        await tool.kill()


@pytest.fixture
def contract(tmp_path, monkeypatch) -> Contract:
    """What the tool offers."""
    (tmp_path / "studio_tool.py").write_text(TOOL, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return load_tool("studio_tool:tool").operations["studio.render"].contract


async def test_a_run_is_parked_until_the_callback_whoever_dies_meanwhile(scene, contract, eventually) -> None:
    harness, tool = scene.harness, scene.tool
    await harness.announce(contract)
    await harness.send(topics.TASKS, {"playbook": "film", "task_id": "t-1", "input": {}})

    async def is_parked() -> bool:
        for request in harness.seen.pop(topics.PLAN_REQUESTS, []):
            plan = plan_of(request["_raw"], contract)
            reply = {name: request[name] for name in ("request_id", "run_id", "tenant")}
            await harness.send(topics.PLANS, reply | {"plan": plan}, request["partition"])
        return bool(await scene.pool.fetchval("select count(*) from jobs where state = 'parked'"))

    await eventually(is_parked)
    harness.kill()
    await tool.kill()
    await tool.start()
    url = scene.studio.orders[0]["callback"]
    await eventually(lambda: answers(url))
    assert (await call_back(url, {"state": "done", "film": "a.mp4"})).json() == {"status": "taken"}
    harness.start()
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="t-1"))
    (outcome,) = harness.of(topics.OUTCOMES, task_id="t-1")
    assert (outcome["status"], outcome["output"]) == ("succeeded", {"film": "a.mp4"})
    assert len(scene.studio.orders) == 1
