"""A tenant whose tasks would hold the executor for minutes, and another one beside it that is served meanwhile."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from executor_harness import MIGRATIONS, ExecutorHarness

from triptych.schemas import topics

MESSAGE_MAX_S = 0.25
BUSY = 5
"""A busy machine takes so many times as long."""
GROWTH_MAX_KIB = 128 * 1_024
"""64 MiB of one message, and what the runs themselves take."""
EACH = 3
GREET = """
name: {name}
goal: Greet somebody.
input: {input}
tools: [echo.echo]
plan:
  pattern: fixed
  steps:
    - {{id: say, operation: echo.echo, arguments: {{value: hello}}{more}}}
output: {{said: "{output}"}}
"""
NUMBERS = list(range(30_000))
DOUBLED = "[input.a]" + ".map(x, x+x+x+x+x+x+x+x)" * 4
SHAPES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "nested": ({"more": ', when: "input.l.exists(i, input.l.exists(j, i + j < 0))"'}, {"l": NUMBERS}),
    "copied": ({"more": ', map: "${{ input.l.map(i, i) }}"'}, {"l": NUMBERS}),
    "doubled": ({"output": "${{ size(" + DOUBLED + ") }}"}, {"a": "a" * 10_000}),
    "searched": (
        {"more": ', when: "input.l.all(x, !input.s.contains(x))"'},
        {"s": "a" * 100_000, "l": ["a" * 200 + "b"] * 500},
    ),
    "matched": (
        {"more": ", when: \"input.l.all(x, !x.matches('^[ab]*a[ab]{60}z'))\""},
        {"l": ["abaab" * 40] * 1_000},
    ),
    "checked": (
        {"input": '{properties: {l: {items: {pattern: "^(?=.*[a-z])(?=.*[0-9]).{8,}$"}}}}'},
        {"l": ["x" * 200] * 1_000},
    ),
}


@pytest.fixture(scope="module")
async def harness(servers, prefix, database, create_topics, tmp_path_factory) -> AsyncIterator[ExecutorHarness]:
    folder: Path = tmp_path_factory.mktemp("fair")
    usual = {"input": "{}", "more": "", "output": "${{ steps.say.data.value }}"}
    for name, (fields, _) in {"greet": ({}, {}), **SHAPES}.items():
        (folder / f"{name}.yaml").write_text(GREET.format(name=name, **{**usual, **fields}))
    (folder / "odd.yaml").write_text("name: odd\ngoal: .inf")
    await create_topics(*(topic.noun for topic in topics.CATALOG if topic.noun != topics.CALLS), "calls.echo")
    dsn = database.prepare({"executor": (MIGRATIONS,)}).services["executor"]
    async with ExecutorHarness(servers.kafka, prefix, dsn, folder, folder / "log") as harness:
        harness.start()
        yield harness


def task(playbook: str, tenant: str, number: int, content: dict[str, Any]) -> dict[str, Any]:
    return {"task_id": f"{playbook}-{number}", "playbook": playbook, "tenant": tenant, "input": content}


async def test_whatever_one_tenant_sends_anothers_tasks_are_served_within_the_bound(
    harness: ExecutorHarness, eventually
) -> None:
    async def served(number: int) -> bool:
        await harness.work()
        return bool(harness.of(topics.OUTCOMES, task_id=f"greet-{number}", status="succeeded"))

    await harness.send(topics.TASKS, task("greet", "good", 0, {}), 0)
    await eventually(lambda: served(0), within_s=120)
    before = memory_kib(harness, "VmRSS")
    hostile = [task(name, "evil", number, SHAPES[name][1]) for name in SHAPES for number in range(EACH)]
    for number, each in enumerate(hostile):
        await harness.send(topics.TASKS, each, number % 2)
    began = time.monotonic()
    for number in (1, 2):
        await harness.send(topics.TASKS, task("greet", "good", number, {}), number % 2)
        await eventually(lambda number=number: served(number), within_s=300)
    # A hostile run is decided about three times at most: it begins, it has a plan, its call has answered.
    assert time.monotonic() - began < 3 * len(hostile) * MESSAGE_MAX_S * BUSY

    async def over() -> bool:
        await harness.work()
        return all(harness.of(topics.OUTCOMES, task_id=each["task_id"]) for each in hostile)

    await eventually(over, within_s=300)
    assert memory_kib(harness, "VmHWM") - before < GROWTH_MAX_KIB
    for name in ("nested", "copied", "doubled"):
        (outcome,) = harness.of(topics.OUTCOMES, task_id=f"{name}-0")
        assert outcome["status"] == "escalated"
        assert "too costly" in outcome["reason"]["message"]


async def test_a_task_for_a_playbook_that_was_left_out_is_rejected_and_the_executor_runs(
    harness: ExecutorHarness, eventually
) -> None:
    await harness.send(topics.TASKS, task("odd", "good", 1, {}), 0)
    await eventually(lambda: harness.of(topics.OUTCOMES, task_id="odd-1"), within_s=120)
    (outcome,) = harness.of(topics.OUTCOMES, task_id="odd-1")
    assert (outcome["status"], outcome["reason"]["code"]) == ("rejected", "unknown_playbook")
    assert "odd.yaml:" in outcome["reason"]["message"]


def memory_kib(harness: ExecutorHarness, word: str) -> int:
    assert harness.process is not None
    return int(Path(f"/proc/{harness.process.pid}/status").read_text().split(f"{word}:")[1].split()[0])
