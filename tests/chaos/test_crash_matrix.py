"""The crash matrix: every service is killed at every point where a crash would hurt, with hundreds of runs in flight.

A cell is a service and one or two fail points; the second strikes in the life after the first. A round
strikes one cell of each service in the same runs, so that crashes also meet crashes. The supervisor
starts what died again, and then everything that was promised holds.

`make test` plays every fifth round and `make crash-matrix` all of them (TRIPTYCH_TEST_CRASH=all). With
TRIPTYCH_TEST_CRASH=alone each cell has a round to itself, which takes longest and says most when
something fails.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from crash_stack import CrashStack, triptych, until

from triptych_chaos.checker import DELIVERIES

RUNS = 250
JUDGED_EVERY = 4
"""Models are slow: not every run asks for a draft and its judgement."""
IN_FLIGHT = 200
"""At the moment of each crash so many runs, at least, had not ended."""

DECIDER = (
    "decider.before_commit=kill:3",
    "decider.after_commit=kill:3",
    "publisher.part_way=kill:3",
    "publisher.after=kill:3",
    "decider.before_commit=cut:3",
    "decider.after_commit=cut:3",
    "decider.before_forget=kill:1",
    "decider.after_forget=kill:1",
    "decider.after_commit=kill:4 decider.before_claim=kill:1",
    "decider.after_commit=kill:4 decider.after_claim=kill:1",
    "decider.after_commit=kill:4 publisher.part_way=kill:1",
    "decider.after_commit=kill:4 decider.after_left_behind=kill:1",
    "decider.after_commit=kill:4 decider.after_claim=cut:1",
    "publisher.before=kill:3",
    "decider.after_commit=kill:4 decider.before_note=kill:1",
    "decider.after_commit=kill:4 decider.after_note=kill:1",
    "decider.after_commit=kill:4 decider.after_note=cut:1",
)
PUBLISHING = ("publisher.part_way=kill:1", "publisher.after=kill:1")
"""The first time: the planner may answer all requests for a fixed plan in one publish."""
ANY_WORKER = (
    "worker.after_offset_commit=kill:1",
    "worker.before_execute=kill:20",
    "worker.after_execute=kill:20",
    "worker.after_settle=kill:2",
    "worker.after_settle=cut:2",
    *PUBLISHING,
)
SHARED = (
    "publisher.before=kill:1",
    "worker.before_settle=kill:1",
    "worker.before_offset_commit=kill:1",
    "worker.before_execute=kill:20 worker.before_note=kill:1",
    "worker.before_execute=kill:20 worker.after_note=kill:1",
    "worker.before_execute=kill:20 worker.after_note=cut:1",
    "worker.before_acknowledge=kill:1",
    "worker.after_record=kill:1 worker.after_take_over_answers=kill:1",
)
"""All workers run this code alike, so those die here that have the fewest cells of their own."""
READING = (
    "worker.before_record=kill:1",
    "worker.after_record=kill:1",
    "worker.after_record=cut:1",
    "worker.before_execute=kill:20 worker.before_take_in=kill:1",
    "worker.before_record=kill:1 worker.after_take_in=kill:1",
    "worker.after_record=kill:1 worker.after_take_over=kill:1",
)
"""What may be repeated is stored with its answer; what was there when a life began is taken in as everything else."""
STORING = (
    "worker.before_take_in=kill:1",
    "worker.after_take_in=kill:1",
    "worker.after_take_in=cut:1",
    "worker.after_take_in=kill:1 worker.after_take_over=kill:1",
)
COSTLY = (
    "worker.before_start=kill:5",
    "worker.after_start=kill:5",
    "model.before_call=kill:5",
    "model.after_call=kill:5",
)
EFFECTFUL = (
    "ledger.before_intent=kill:20",
    "ledger.after_intent=kill:20",
    "ledger.after_intent=cut:20",
    "tool.after_call=kill:20",
)
PARKED = (
    "callbacks.after_answer=kill:20",
    "callbacks.before_park=kill:20",
    "callbacks.before_answer=kill:20",
    "callbacks.before_park=cut:20",
    "callbacks.after_park=cut:20",
    "callbacks.after_park=kill:20",
    "callbacks.before_answer=cut:20",
    "callbacks.after_answer=kill:20 worker.after_take_over=kill:1",
    "ledger.after_intent=kill:20",
    "tool.before_call=kill:20",
    "callbacks.after_answer=cut:20",
)
"""Calls that wait for a webhook. The rounds that `make test` plays strike after each commit."""
POINTS = {
    "executor": DECIDER,
    "planner": READING + ANY_WORKER + SHARED,
    "critic": STORING + READING + ANY_WORKER + COSTLY,
    "kb": READING + ANY_WORKER + SHARED,
    "helpdesk": STORING + ANY_WORKER + EFFECTFUL,
    "model": STORING + ANY_WORKER + COSTLY,
    "inbox": STORING + ANY_WORKER + EFFECTFUL,
    "webhook": PARKED,
}
WITHDRAWING = (
    "worker.after_withdraw=kill:1",
    "worker.before_withdraw=kill:1",
    "worker.after_withdraw=cut:1",
    "worker.after_withdraw=kill:1 worker.after_take_over=kill:1",
    "worker.before_withdraw=kill:1 worker.after_withdraw=kill:1",
)
"""Only the requests of runs that are over are withdrawn, so these have rounds in which runs are cancelled."""
STAGES = (("model", "critic"), ("kb", "helpdesk", "inbox", "webhook"), ("planner",))
"""The services that wait for work of the same runs at the same time. Each stage needs fewer services than the one before."""
ASKED = {
    "planner": ["PlanRequested"],
    "kb": ["CallRequested search"],
    "helpdesk": ["CallRequested acknowledge"],
    "inbox": ["CallRequested stamp"],
    "webhook": ["CallRequested deliver"],
    "model": ["CallRequested draft"],
    "critic": ["ReviewRequested", "ReviewRequested draft"],
}
"""What the journal of a run says, with the step, when it has asked a service."""
KEPT, CALLED_OFF = 60, 20
"""So many runs of each stage go on, and so many are cancelled."""
WAITING = 5
"""At least so many of those that are cancelled have asked a service that strikes then."""
ONLY_WHEN_IDLE = ("decider.before_forget", "decider.after_forget")
"""Marks of published messages travel with the next statement; they have one of their own only when nothing comes in."""


@dataclass(frozen=True)
class Cell:
    """A service, and where it dies: points with their orders, one after the other."""

    service: str
    strikes: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, service: str, strikes: str) -> Cell:
        return cls(service, tuple((point, order) for point, _, order in (s.partition("=") for s in strikes.split())))

    def __str__(self) -> str:
        return "-".join([self.service, *(f"{point}-{order.partition(':')[0]}" for point, order in self.strikes)])

    @property
    def needs_rest(self) -> bool:
        return self.strikes[0][0] in ONLY_WHEN_IDLE

    @property
    def needs_models(self) -> bool:
        """Tell whether only runs with a draft reach this point. Then every run needs one, or the others end too early."""
        if self.service == "model":
            return True
        judging = COSTLY + STORING + PUBLISHING if self.service == "critic" else COSTLY
        return any(f"{point}={order}" in judging for point, order in self.strikes)

    @property
    def needs_deliveries(self) -> bool:
        """Tell whether only runs that wait for a webhook reach this point."""
        return self.service == "webhook"


Round = tuple[Cell, ...]


def rounds(points: Mapping[str, tuple[str, ...]]) -> list[Round]:
    """Make rounds in which the services take turns, so that one that has just died can recover before it dies again."""
    columns = [[Cell.of(service, strikes) for strikes in each] for service, each in points.items()]
    rows = [tuple(cell for cell in row if cell is not None) for row in itertools.zip_longest(*columns)]
    match os.environ.get("TRIPTYCH_TEST_CRASH"):
        case "alone":
            return [(cell,) for row in rows for cell in row]
        case "all":
            return rows
        case _:
            return rows[::5]


def each_round(points: Mapping[str, tuple[str, ...]]) -> pytest.MarkDecorator:
    """Run a test for every round."""
    return pytest.mark.parametrize(
        ("number", "cells"),
        [
            pytest.param(n, cells, id=str(cells[0]) if len(cells) == 1 else f"round-{n}")
            for n, cells in enumerate(rounds(points), 1)
        ],
    )


@pytest.mark.timeout(1800)
@each_round(POINTS)
async def test_whatever_point_a_service_dies_at_nothing_is_lost_and_nothing_happens_twice(
    crash_stack: CrashStack, number: int, cells: Round
) -> None:
    task_ids = [f"{number}-{index}" for index in range(RUNS)]
    services = {cell.service for cell in cells}
    planner = services & {"planner"}
    crash_stack.disarm()
    if planner:
        await crash_stack.forget_plans()
    for cell in cells:
        crash_stack.arm(cell.service, *cell.strikes[0])
    with at_rest(crash_stack, cells) as rest:
        with crash_stack.paused(planner):
            with crash_stack.paused(services - rest - planner):
                await crash_stack.submit(
                    task_ids,
                    judged_every=1 if any(cell.needs_models for cell in cells) else JUDGED_EVERY,
                    deliveries=any(cell.needs_deliveries for cell in cells),
                )
            if planner:
                await every_run_asked_the_planner(crash_stack, task_ids)
        await every_point_struck(crash_stack, [cell for cell in cells if cell.needs_rest])
    await every_point_struck(crash_stack, cells)
    await every_run_ended(crash_stack, task_ids)

    for cell in cells:
        struck_at = crash_stack.struck_at(cell.service, cell.strikes[0][0])
        assert struck_at is not None
        in_flight = RUNS - await crash_stack.finished_by(task_ids, struck_at)
        assert in_flight >= IN_FLIGHT, f"{cell} struck when {in_flight} runs were in flight"
    await every_run_ended_once(crash_stack, task_ids)
    has_delivery = any(cell.needs_deliveries for cell in cells)
    assert await crash_stack.violations(task_ids, has_delivery=has_delivery) == []
    await nothing_left_behind(crash_stack)


@pytest.mark.timeout(1800)
@each_round(dict.fromkeys(ASKED, WITHDRAWING))
async def test_whatever_point_a_service_dies_at_what_is_called_off_ends_once_and_is_told_as_it_is(
    crash_stack: CrashStack, number: int, cells: Round
) -> None:
    kept: list[str] = []
    called_off: list[str] = []
    crash_stack.disarm()
    for stage in STAGES:
        staged = [cell for cell in cells if cell.service in stage]
        if staged:
            going_on = [f"kept-{number}-{staged[0].service}-{index}" for index in range(KEPT)]
            over = [f"over-{number}-{staged[0].service}-{index}" for index in range(CALLED_OFF)]
            await call_off_while_they_wait(crash_stack, staged, over, going_on)
            await every_point_struck(crash_stack, staged)
            kept += going_on
            called_off += over
    await every_run_ended(crash_stack, kept)

    await every_run_ended_once(crash_stack, kept)
    assert await crash_stack.violations(kept, has_delivery=True) == []
    await every_run_ended_once(crash_stack, called_off, "cancelled")
    await every_request_was_answered(crash_stack, called_off)
    await what_was_withdrawn_was_not_done(crash_stack, called_off)
    await nothing_left_behind(crash_stack)


def test_every_journal_folds_to_its_projections_and_no_budget_was_exceeded(crash_stack: CrashStack) -> None:
    assert "all agree" in triptych("verify", "--data", str(crash_stack.folder))


@contextmanager
def at_rest(crash_stack: CrashStack, cells: Round) -> Iterator[set[str]]:
    """Suspend the critic where a cell needs an idle executor with every run in flight."""
    services = {"critic"} if any(cell.needs_rest for cell in cells) else set()
    with crash_stack.paused(services):
        yield services


async def every_run_asked_the_planner(crash_stack: CrashStack, task_ids: list[str]) -> None:
    """Wait for them all: a run that begins after the first plan has come does not ask."""

    async def asked() -> bool:
        return await crash_stack.have_asked(task_ids, ASKED["planner"]) == len(task_ids)

    async def tell() -> str:
        return f"{await crash_stack.have_asked(task_ids, ASKED['planner'])} of {len(task_ids)} runs asked the planner"

    await until(asked, 120, tell)


async def every_point_struck(crash_stack: CrashStack, cells: list[Cell] | Round) -> None:
    """Wait until each cell has struck, and arm a second point as soon as the first one has struck."""

    def missing() -> list[tuple[Cell, tuple[str, str]]]:
        """List the strike that each cell waits for."""
        waiting = ((cell, [s for s in cell.strikes if not crash_stack.struck_at(cell.service, s[0])]) for cell in cells)
        return [(cell, strikes[0]) for cell, strikes in waiting if strikes]

    async def struck() -> bool:
        await crash_stack.answer_doubts()
        waiting = missing()
        for cell, strike in waiting:
            crash_stack.arm(cell.service, *strike)
        return not waiting

    async def tell() -> str:
        return f"these did not strike: {', '.join(f'{cell.service} {point}' for cell, (point, _) in missing())}"

    await until(struck, 480, tell)


async def every_run_ended(crash_stack: CrashStack, task_ids: list[str]) -> None:
    async def ended() -> bool:
        await crash_stack.answer_doubts()
        return all(task_id in crash_stack.finals for task_id in task_ids)

    async def tell() -> str:
        rows = await crash_stack.database.fetch(
            "select task_id, status, reason_code, reason_message from executor.runs "
            "where task_id = any($1) and finished_at is null limit 3",
            task_ids,
        )
        missing = sum(task_id not in crash_stack.finals for task_id in task_ids)
        return f"{missing} final outcomes are missing; for example {[dict(row) for row in rows]}"

    await until(ended, 480, tell)


async def call_off_while_they_wait(
    crash_stack: CrashStack, cells: list[Cell], called_off: list[str], kept: list[str]
) -> None:
    """Cancel runs when some have asked these services, which stay suspended until all these runs are over."""
    services = [cell.service for cell in cells]
    with crash_stack.paused(services):
        if "planner" in services:
            await crash_stack.forget_plans()
        for cell in cells:
            crash_stack.arm(cell.service, *cell.strikes[0])
        for task_ids in (called_off, kept):
            await crash_stack.submit(task_ids, judged_every=2 if "critic" in services else 1, deliveries=True)

        async def enough_wait() -> bool:
            await crash_stack.answer_doubts()
            asked = [await crash_stack.have_asked(called_off, ASKED[service]) for service in services]
            return min(asked) >= WAITING

        async def tell() -> str:
            return f"fewer than {WAITING} of these runs have asked one of {services}"

        await until(enough_wait, 120, tell)
        await crash_stack.cancel(called_off)
        await every_run_ended(crash_stack, called_off)


async def every_run_ended_once(crash_stack: CrashStack, task_ids: list[str], as_status: str = "succeeded") -> None:
    assert {len(crash_stack.finals[task_id]) for task_id in task_ids} == {1}, "a run had two final outcomes"
    ends = [crash_stack.statuses[task_id] for task_id in task_ids]
    assert {len(end) for end in ends} == {1}, "a task became two runs, or ended in two ways"
    assert {status for end in ends for _, status in end} == {as_status}
    assert crash_stack.other_escalations == {}, "only what is in doubt needs a person"
    assert len(await crash_stack.run_ids(task_ids)) == len(task_ids)


async def every_request_was_answered(crash_stack: CrashStack, task_ids: list[str]) -> None:
    """Also what was open when its run ended: either it was done, or somebody says that it was not."""

    async def answered() -> bool:
        return not await crash_stack.unanswered(task_ids)

    async def tell() -> str:
        return f"not answered: {(await crash_stack.unanswered(task_ids))[:3]}"

    await until(answered, 300, tell)


async def what_was_withdrawn_was_not_done(crash_stack: CrashStack, task_ids: list[str]) -> None:
    effects = (await crash_stack.effects()).by_place
    run_ids = [str(run_id) for run_id in await crash_stack.run_ids(task_ids)]
    tickets = {*run_ids, *(f"T-{task_id}" for task_id in task_ids)}
    counts = [count for (ticket, _collection), count in effects.items() if ticket in tickets]
    assert max(counts, default=0) <= 1, "a write took effect twice, or a delivery was accepted twice"
    for task_id, run_id, step in await crash_stack.withdrawn(task_ids):
        done = {
            "acknowledge": effects[f"T-{task_id}", "acknowledgements"],
            "stamp": effects[str(run_id), "tags"],
            "post": effects[str(run_id), "assignments"],
            "deliver": effects[str(run_id), DELIVERIES],
        }
        assert not done.get(step), f"{step} of {task_id} was done, and is told as withdrawn"


async def nothing_left_behind(crash_stack: CrashStack) -> None:
    async def clean() -> bool:
        return not crash_stack.not_running() and not await crash_stack.left_behind()

    async def tell() -> str:
        return f"left behind: {await crash_stack.left_behind()}; not running: {crash_stack.not_running()}"

    await until(clean, 300, tell)
