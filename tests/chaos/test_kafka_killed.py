"""Kafka is killed again and again under services that run on uvloop: every one of them finds its way back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import httpx
import pytest
from aiokafka.errors import KafkaError
from crash_stack import CrashStack, triptych, until

from triptych.client.errors import ClientError

ROUNDS, A_ROUND = 2, 20
SERVERS = {"kafka", "postgres"}


@pytest.mark.timeout(1_200)
async def test_after_each_kill_of_kafka_every_service_works_again_without_being_started_again(
    crash_stack: CrashStack,
) -> None:
    before = services(crash_stack)
    for number in range(ROUNDS):
        under_way = [f"killed-{number}-{n}" for n in range(A_ROUND)]
        await crash_stack.submit(under_way, judged_every=5)
        killed = processes(crash_stack)["kafka"]
        os.kill(killed, signal.SIGKILL)

        async def is_back(killed: int = killed) -> bool:
            return processes(crash_stack)["kafka"] not in {killed, None}

        await until(is_back, 120, tell(crash_stack))
        after = [f"back-{number}-{n}" for n in range(A_ROUND)]
        await submitted(crash_stack, after)
        await every_run_ended(crash_stack, under_way + after)
        await everybody_is_alive_and_ready(crash_stack)
    assert services(crash_stack) == before, "a service had to be started again"
    assert not crash_stack.other_escalations
    for service in crash_stack.description["services"]:
        log = crash_stack.folder / "logs" / f"{service['name']}.log"
        assert all(json.loads(line)["event"] for line in log.read_text().splitlines())


def processes(crash_stack: CrashStack) -> dict[str, int]:
    status = json.loads(triptych("status", "--json", "--data", str(crash_stack.folder)))
    return {each["name"]: each["pid"] for each in status["processes"]}


def services(crash_stack: CrashStack) -> dict[str, int]:
    return {name: pid for name, pid in processes(crash_stack).items() if name not in SERVERS}


def tell(crash_stack: CrashStack) -> object:
    async def told() -> str:
        return f"processes: {processes(crash_stack)}"

    return told


async def submitted(crash_stack: CrashStack, task_ids: list[str]) -> None:
    """Submit until Kafka has them; a repeat is the same run."""

    async def accepted() -> bool:
        try:
            await crash_stack.submit(task_ids, judged_every=5)
        except (ClientError, KafkaError, OSError):
            await asyncio.sleep(0.5)
            return False
        return True

    await until(accepted, 180, tell(crash_stack))


async def every_run_ended(crash_stack: CrashStack, task_ids: list[str]) -> None:
    async def ended() -> bool:
        await crash_stack.answer_doubts()
        return all(task_id in crash_stack.finals for task_id in task_ids)

    async def missing() -> str:
        return f"no outcome: {[task_id for task_id in task_ids if task_id not in crash_stack.finals]}"

    await until(ended, 300, missing)


async def everybody_is_alive_and_ready(crash_stack: CrashStack) -> None:
    ready = [each["health_url"] for each in crash_stack.description["services"]]
    asked = [*ready, *(url.replace("/ready", "/live") for url in ready)]

    async def well() -> bool:
        async with httpx.AsyncClient(timeout=5.0) as http:
            answers = [await http.get(url) for url in asked]
        return all(answer.status_code == 200 for answer in answers)

    await until(well, 120, tell(crash_stack))
