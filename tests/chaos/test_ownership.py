"""Several processes of each service: groups grow and shrink under load, and a zombie that wakes up is refused.

What a run was decided is compared with what travels: two owners of one run would say one thing in two ways.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from uuid import UUID

import httpx
import pytest
from crash_stack import CrashStack, everything_published, triptych, until

from triptych.embedded.control import ask
from triptych.embedded.layout import Layout

SERVICES = ("executor", "planner", "critic", "kb", "helpdesk", "model", "inbox")
A_WAVE = 60
JUDGED_EVERY = 10
GONE_S = 180


@pytest.mark.timeout(900)
async def test_groups_grow_and_shrink_under_load_and_each_run_has_one_owner_and_keeps_its_order(
    crash_stack: CrashStack,
) -> None:
    epochs = await owners_so_far(crash_stack)
    task_ids: list[str] = []

    async def submit(name: str) -> list[str]:
        wave = [f"{name}-{number}" for number in range(A_WAVE)]
        await crash_stack.submit(wave, judged_every=JUDGED_EVERY)
        task_ids.extend(wave)
        return wave

    async def partitions_have_changed_hands() -> bool:
        if await owners_so_far(crash_stack) > epochs:
            return True
        await some_ended(
            crash_stack, await submit(f"meanwhile-{len(task_ids)}")
        )  # a process that starts late finds runs in flight
        return False

    for size in (2, 3, 1):
        wave = await submit(f"{size}-processes")
        for service in SERVICES:
            await scale(crash_stack, service, size)
        await until(partitions_have_changed_hands, GONE_S, lambda: told("no partition has changed hands"))
        await some_ended(crash_stack, wave)
    await every_run_ended(crash_stack, task_ids)
    await each_ended_once_and_in_order(crash_stack, task_ids)


@pytest.mark.timeout(900)
async def test_a_paused_owner_and_a_paused_worker_are_refused_when_they_wake_up_and_go_on_by_themselves(
    crash_stack: CrashStack,
) -> None:
    zombies = {"executor": "decider.before_commit", "helpdesk": "worker.before_settle"}
    for service in zombies:
        await scale(crash_stack, service, 2)
    pids = {service: crash_stack.pid_of(service) for service in zombies}
    await until(lambda: has_partitions(crash_stack, "executor-1"), GONE_S, lambda: told("executor-1 has no partition"))
    for service, point in zombies.items():
        crash_stack.arm(service, point, "stop:3")
    task_ids = [f"zombie-{number}" for number in range(A_WAVE)]
    await crash_stack.submit(task_ids, judged_every=JUDGED_EVERY)

    async def taken_from_the_dead() -> bool:
        stand_still = all(crash_stack.struck_at(service, point) for service, point in zombies.items())
        return stand_still and not await has_partitions(crash_stack, "executor-1") and await lease_is_over(crash_stack)

    await until(taken_from_the_dead, GONE_S, lambda: told("no process took over"))
    for pid in pids.values():
        os.kill(pid, signal.SIGCONT)

    async def refused() -> bool:
        return bool(
            await count_of(crash_stack, "executor", "fenced")
            and await count_of(crash_stack, "helpdesk", "answers_fenced")
        )

    await until(refused, GONE_S, lambda: told("a zombie's statement was not refused"))
    await until(
        lambda: has_partitions(crash_stack, "executor-1"), GONE_S, lambda: told("the zombie did not join again")
    )
    await every_run_ended(crash_stack, task_ids)
    assert {service: crash_stack.pid_of(service) for service in zombies} == pids, "a zombie had to be started again"
    for service in zombies:
        await scale(crash_stack, service, 1)
    await each_ended_once_and_in_order(crash_stack, task_ids)


async def scale(crash_stack: CrashStack, service: str, count: int) -> None:
    request = {"do": "scale", "service": service, "count": count}
    await asyncio.to_thread(ask, Layout.at(crash_stack.folder), request)


async def told(what: str) -> str:
    return what


async def owners_so_far(crash_stack: CrashStack) -> int:
    return await crash_stack.database.fetchval("select sum(epoch) from executor.partitions")


async def has_partitions(crash_stack: CrashStack, owner: str) -> bool:
    return await crash_stack.database.fetchval(
        "select exists (select from executor.partitions where owner = $1)", owner
    )


async def lease_is_over(crash_stack: CrashStack) -> bool:
    """Tell whether the lease of the first helpdesk has expired and another process has what it held."""
    return await crash_stack.database.fetchval(
        "select bool_and(until < now()) and not exists (select from tool_helpdesk.jobs "
        "where state <> 'published' and lease = any(array_agg(id))) "
        "and not exists (select from tool_helpdesk.outbox where lease = any(array_agg(id))) "
        "from tool_helpdesk.leases where instance = 'helpdesk-1'"
    )


async def count_of(crash_stack: CrashStack, service: str, counter: str) -> int:
    """Return what the first process of a service has counted."""
    url = next(each["health_url"] for each in crash_stack.description["services"] if each["name"] == service)
    async with httpx.AsyncClient() as http:
        return (await http.get(url.replace("ready", "live"), timeout=10)).json()["counters"].get(counter, 0)


async def some_ended(crash_stack: CrashStack, task_ids: list[str]) -> None:
    async def ended() -> bool:
        await crash_stack.answer_doubts()
        return sum(task_id in crash_stack.finals for task_id in task_ids) >= len(task_ids) // 2

    await until(ended, 240, lambda: told("nothing ends"))


async def every_run_ended(crash_stack: CrashStack, task_ids: list[str]) -> None:
    async def ended() -> bool:
        await crash_stack.answer_doubts()
        return all(task_id in crash_stack.finals for task_id in task_ids)

    async def tell() -> str:
        missing = [task_id for task_id in task_ids if task_id not in crash_stack.finals]
        return f"{len(missing)} have no final outcome, for example {missing[:3]}"

    await until(ended, 300, tell)


async def each_ended_once_and_in_order(crash_stack: CrashStack, task_ids: list[str]) -> None:
    ends = [crash_stack.statuses[task_id] for task_id in task_ids]
    assert {status for end in ends for _, status in end} == {"succeeded"}
    assert {len(end) for end in ends} == {1}, "a task became two runs"
    assert {len(crash_stack.finals[task_id]) for task_id in task_ids} == {1}, "a run had two final outcomes"
    assert crash_stack.other_escalations == {}
    effects = await crash_stack.effects_on(task_ids)
    assert set(effects.values()) == {1}, "an idempotent write took effect twice"

    run_ids = set(await crash_stack.run_ids(task_ids))
    bodies: dict[str, set[bytes]] = defaultdict(set)
    travelled: dict[tuple[UUID, str], list[str]] = defaultdict(list)
    for topic, records in (await everything_published(crash_stack)).items():
        for record in records:
            run_id = run_of(record.key)
            if run_id not in run_ids:
                continue
            event_id = dict(record.headers)["ce_id"].decode()
            bodies[event_id].add(record.value)
            sent = travelled[run_id, topic.partition(".")[2]]
            if event_id not in sent:
                sent.append(event_id)
    decided = {name: said for name, said in bodies.items() if not name.endswith(":answer")}
    assert decided
    assert {name for name, said in decided.items() if len(said) > 1} == set(), "one message was decided in two ways"

    rows = await crash_stack.database.fetch(
        "select run_id, data ->> 'request_id' as request_id from executor.journal "
        "where type = 'CallRequested' and run_id = any($1) order by run_id, seq",
        list(run_ids),
    )
    calls = {key: sent for key, sent in travelled.items() if key[1].startswith("calls.")}
    for (run_id, topic), sent in calls.items():
        wanted = [row["request_id"] for row in rows if row["run_id"] == run_id and row["request_id"] in sent]
        assert sent == wanted, f"calls of {run_id} left for {topic} in another order than they were decided in"
    assert sum(map(len, calls.values())) == len(rows), "a call was decided and never sent"
    assert "all agree" in await asyncio.to_thread(triptych, "verify", "--data", str(crash_stack.folder))

    async def clean() -> bool:
        return not (await crash_stack.left_behind()).keys() - {"dead letters"}

    async def tell() -> str:
        return f"left behind: {await crash_stack.left_behind()}"

    await until(clean, 180, tell)


def run_of(key: bytes | None) -> UUID | None:
    try:
        return UUID((key or b"").decode())
    except ValueError:
        return None
