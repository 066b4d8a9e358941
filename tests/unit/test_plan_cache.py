"""Which runs take the plan of an earlier run, what their journals say of it, and what makes the planner be asked again.

The executor, the planner and the registry of contracts are real; the test carries what they send.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from machine_story import NOW, playbook

from triptych.client import JournalEntry
from triptych.commands.common.story import render_story
from triptych.contracts.registry import ContractRegistry
from triptych.executor import events as ev
from triptych.executor.deployments import Deployment
from triptych.executor.fold import admit, evolve
from triptych.executor.intake import Executor
from triptych.executor.machine import Start, Tick
from triptych.executor.plan_cache import MAX_KNOWN
from triptych.executor.state import Run, RunStatus
from triptych.executor.trust import ForgedRecord
from triptych.kernel.decider import InboundRecord, RunMessage
from triptych.kernel.kafka.bus import Record
from triptych.kernel.postgres.outbox import Send
from triptych.kernel.worker import JobAttempt
from triptych.operator.audit.money import RunAccount
from triptych.planner.worker import Planner
from triptych.schemas import (
    CallAnswer,
    Compensation,
    Contract,
    Control,
    ControlAction,
    Effect,
    ErrorCode,
    PlanAnswer,
    PlanRequest,
    Playbook,
    Result,
    Spend,
    Task,
    ToolContracts,
    codec,
    topics,
)

ECHO = Contract(
    operation="echo.echo",
    description="Says it again.",
    arguments={"type": "object"},
    result={"type": "object"},
    effect=Effect.READ,
)
WRITE = ECHO.model_copy(
    update={
        "operation": "echo.write",
        "effect": Effect.IDEMPOTENT,
        "compensate": Compensation(operation="echo.back"),
    }
)
BACK = ECHO.model_copy(update={"operation": "echo.back", "effect": Effect.IDEMPOTENT})
OTHER = ECHO.model_copy(update={"operation": "other.look"})
CHILD = playbook(name="child")
RICH = playbook(
    tools=("echo.*", "other.look"),
    handoffs=("child",),
    retry={"max_attempts": 5},
    limits={"same_call": 3},
    plan={
        "pattern": "fixed",
        "steps": [
            {
                "id": "look",
                "operation": "echo.echo",
                "arguments": {"text": "${{ input.text }}"},
                "when": "input.text != 'no'",
                "expect": "result.data.text == input.text",
                "fallback": [{"operation": "other.look", "arguments": {"of": "${{ input.text }}"}}, {"data": {}}],
            },
            {"id": "each", "operation": "echo.echo", "map": "${{ input.items }}", "arguments": {"n": "${{ item }}"}},
            {
                "id": "write",
                "operation": "echo.write",
                "arguments": {"text": "${{ input.text }}"},
                "must_come_from": {"text": ["input"]},
                "business_key": {"value": "${{ arguments.text }}", "for_ms": 1000},
                "depends_on": ["look", "each"],
            },
            {"id": "ask", "operation": "playbook.run", "arguments": {"playbook": "child", "input": {}}},
        ],
    },
)
MODEL = playbook(plan={"pattern": "model", "tokens": 100, "usd": 0.01})


def registry(*tools: Sequence[Contract]) -> ContractRegistry:
    """What a process knows after these announcements."""
    nothing: Any = SimpleNamespace(topic=str)
    known = ContractRegistry(nothing, nothing)
    known._topic._ready.set()
    for contracts in tools or ((ECHO, WRITE, BACK), (OTHER,)):
        announce(known, *contracts)
    return known


def announce(known: ContractRegistry, *contracts: Contract, tool: str = "") -> None:
    tool = tool or contracts[0].tool
    body = ToolContracts(tool=tool, contracts=contracts).to_bytes()
    known._apply(record(topics.CONTRACTS, body, key=tool.encode()))


def record(noun: str, body: bytes | None, offset: int = 0, key: bytes = b"") -> Record[Any, Any]:
    return Record(
        topic=noun, partition=0, offset=offset, timestamp=1, timestamp_type=0, key=key, value=body,
        checksum=None, serialized_key_size=0, serialized_value_size=0, headers=(),
    )  # fmt: skip


def changed(contract: Contract) -> Contract:
    return contract.model_copy(update={"description": contract.description + " In other words."})


class Desk:
    """An executor, and everything that its runs have recorded and sent."""

    def __init__(self, *playbooks: Playbook, contracts: ContractRegistry | None = None) -> None:
        self.contracts = contracts or registry()
        self.executor = Executor(deployments(*(playbooks or (playbook(),))), contracts=self.contracts)
        self.runs: dict[UUID, Run] = {}
        self.journals: dict[UUID, list[tuple[ev.Event, datetime]]] = {}
        self.asked: list[PlanRequest] = []
        """The requests to the planner without an answer."""
        self.sent: list[Send] = []
        self.now = NOW

    def submit(self, task_id: str, name: str = "test", *, has_room: bool = True, **told: Any) -> Run:
        body = Task(task_id=task_id, playbook=name, input=told, tenant="acme").to_bytes()
        message = self.executor.read(InboundRecord(topics.TASKS, record(topics.TASKS, body), body, self.now))
        return self.take(message, has_room=has_room)

    def take(self, message: RunMessage, *, has_room: bool = True) -> Run:
        state = self.runs.get(message.run_id)
        transition = self.executor.apply(state, message, 0, self.now, has_room=has_room)
        assert transition is not None
        events = [cast("ev.Event", event) for event in transition.events]
        run = self.runs[message.run_id] = transition.state
        self.journals.setdefault(message.run_id, []).extend((event, self.now) for event in events)
        assert folded(run, self.journals[message.run_id]) == run
        self.sent = list(transition.sends)
        for send in transition.sends:
            if send.noun == topics.PLAN_REQUESTS:
                self.asked.append(codec.read(PlanRequest, send.body.to_bytes()))
        return run

    async def plan(self, contracts: ContractRegistry | None = None) -> PlanAnswer:
        """Let the planner answer the one request that is open."""
        (request,) = self.asked
        self.asked.clear()
        answer = await made(request, contracts or self.contracts)
        self.take(RunMessage(answer.run_id, self.executor._plans.read(answer.to_bytes())))
        return answer

    def refuse_call(self, run: Run, **details: Any) -> Run:
        """Let the tool refuse the run's open call."""
        (request_id,) = run.requests
        result = Result.failed(ErrorCode.CONTRACT_VIOLATION, "planned under another contract", effect="none", **details)
        answer = CallAnswer(request_id=request_id, run_id=run.run_id, tenant=run.tenant, result=result)
        return self.take(RunMessage(run.run_id, answer))


def deployments(*playbooks: Playbook) -> dict[str, Deployment]:
    return {one.name: Deployment.of(one) for one in playbooks}


async def made(request: PlanRequest, contracts: ContractRegistry) -> PlanAnswer:
    """What the planner answers."""
    nobody: Any = None
    answer = await Planner(contracts, nobody, model_timeout_ms=1).execute(request, JobAttempt(lease=1))
    return answer.model_copy(update={"worker": "planner-7"})


def folded(run: Run, journal: Iterable[tuple[ev.Event, datetime]]) -> Run:
    """The run as it is read from its journal."""
    lookup = ev.PlaybookLookup((run.playbook, *run.others))
    (first, began_at), *rest = ((ev.decode(*ev.encode(event), lookup), at) for event, at in journal)
    assert isinstance(first, ev.RunAdmitted)
    again = admit(run.run_id, first, began_at)
    for event, at in rest:
        again = evolve(again, event, at)
    return again


def events_of(desk: Desk, run: Run) -> list[ev.Event]:
    return [event for event, _ in desk.journals[run.run_id]]


def kinds(desk: Desk, run: Run) -> list[str]:
    return [type(event).__name__ for event in events_of(desk, run)]


def reused(desk: Desk, run: Run) -> bool:
    return any(isinstance(event, ev.PlanAccepted) and event.made_at for event in events_of(desk, run))


# --- what a later run does ------------------------------------------------------------------------


async def test_a_later_run_of_the_same_version_takes_the_plan_and_asks_its_tool_immediately() -> None:
    desk = Desk()
    desk.submit("t-1")
    first = await desk.plan()
    run = desk.submit("t-2")
    assert desk.asked == []
    assert kinds(desk, run) == ["RunAdmitted", "PlanRequested", "PlanAccepted", "CallRequested"]
    assert [send.noun for send in desk.sent] == ["calls.echo"]
    _, requested, accepted, _ = events_of(desk, run)
    assert isinstance(requested, ev.PlanRequested)
    assert isinstance(accepted, ev.PlanAccepted)
    assert (requested.reuses, requested.request_id) == (True, accepted.request_id)
    assert (accepted.plan, accepted.worker, accepted.made_at) == (first.plan, "planner-7", NOW)


async def test_the_first_run_and_one_that_asks_say_nothing_of_a_reuse_so_journals_are_as_before() -> None:
    desk = Desk()
    run = desk.submit("t-1")
    await desk.plan()
    for event in events_of(desk, run):
        _, data = ev.encode(event)
        assert "reuses" not in data
        assert "made_at" not in data


@pytest.mark.parametrize("told", [{"text": "no", "items": []}, {"text": "yes", "items": [1, 2]}, {}])
async def test_whatever_the_input_the_plan_that_is_reused_is_the_plan_that_the_planner_would_make(
    told: dict[str, Any],
) -> None:
    desk = Desk(RICH, CHILD)
    desk.submit("t-1", text="first", items=[7])
    await desk.plan()
    run = desk.submit("t-2", **told)
    assert reused(desk, run)
    plan = next(event.plan for event in events_of(desk, run) if isinstance(event, ev.PlanAccepted))
    alone = Desk(RICH, CHILD)
    alone.submit("t-2", **told)
    (request,) = alone.asked
    honest = await made(request, alone.contracts)
    assert honest.plan is not None
    assert plan.to_bytes() == honest.plan.to_bytes()


async def test_runs_that_begin_while_the_first_answer_is_under_way_ask_as_well() -> None:
    desk = Desk()
    runs = [desk.submit(f"t-{number}") for number in range(3)]
    assert [request.run_id for request in desk.asked] == [run.run_id for run in runs]


async def test_a_run_that_waited_in_its_queue_takes_the_plan_when_it_starts() -> None:
    desk = Desk()
    queued = desk.submit("t-1", has_room=False)
    desk.submit("t-2")
    await desk.plan()
    run = desk.take(RunMessage(queued.run_id, Start()))
    assert kinds(desk, run) == ["RunAdmitted", "RunStarted", "PlanRequested", "PlanAccepted", "CallRequested"]
    assert desk.asked == []


async def test_a_run_whose_planner_had_failed_takes_the_plan_when_it_would_ask_again() -> None:
    desk = Desk(contracts=registry((OTHER,)))
    run = desk.submit("t-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triptych.planner.worker.CONTRACTS_WITHIN_S", 0.0)
        await desk.plan()
    assert desk.runs[run.run_id].retries
    announce(desk.contracts, ECHO)
    desk.submit("t-2")
    await desk.plan()
    desk.now += timedelta(seconds=60)
    assert kinds(desk, desk.take(RunMessage(run.run_id, Tick())))[-2:] == ["PlanAccepted", "CallRequested"]
    assert desk.asked == []


async def test_a_run_whose_steps_are_all_unwanted_ends_in_the_moment_it_begins() -> None:
    desk = Desk(playbook(plan={"pattern": "fixed", "steps": [{"id": "a", "operation": "echo.echo", "when": "false"}]}))
    desk.submit("t-1")
    await desk.plan()
    run = desk.submit("t-2")
    assert run.status is RunStatus.SUCCEEDED
    assert [send.noun for send in desk.sent] == [topics.OUTCOMES]


async def test_a_reused_plan_costs_nothing_and_money_and_trace_say_so() -> None:
    desk = Desk()
    desk.submit("t-1")
    await desk.plan()
    run = desk.submit("t-2")
    account = RunAccount.of(run.playbook)
    rows = [ev.encode(event) for event in events_of(desk, run)]
    assert [excess for kind, data in rows for excess in account.book(kind, codec.decode(data))] == []
    assert account.used == {"tool_calls": 1, "tokens": 0, "usd_micros": 0}
    entries = [JournalEntry(seq, kind, NOW, codec.decode(data)) for seq, (kind, data) in enumerate(rows, 1)]
    story = render_story(entries, width=None)
    assert story.lines[1].text == "the planner is not asked for revision 1: its plan is known"
    assert "reused, as planner-7 made it at 2026-01-01T00:00:00Z" in story.lines[2].text
    assert story.costs["plan"].requests == 0


# --- when the planner is asked --------------------------------------------------------------------


async def test_another_process_and_the_same_one_after_a_restart_ask_once_more() -> None:
    desk = Desk()
    desk.submit("t-1")
    await desk.plan()
    again = Desk(contracts=desk.contracts)
    again.submit("t-2")
    assert len(again.asked) == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((ECHO.model_copy(update={"timeout_ms": 7}), WRITE, BACK), id="another timeout"),
        pytest.param((changed(ECHO), WRITE, BACK), id="another description"),
        pytest.param((ECHO,), id="operations are gone"),
        pytest.param((ECHO, WRITE, BACK, ECHO.model_copy(update={"operation": "echo.more"})), id="one more"),
        pytest.param((), id="the tool offers nothing"),
    ],
)
async def test_after_any_change_of_a_contract_the_planner_is_asked_again(change: tuple[Contract, ...]) -> None:
    desk = Desk()
    desk.submit("t-1")
    await desk.plan()
    announce(desk.contracts, *change, tool="echo")
    desk.submit("t-2")
    assert len(desk.asked) == 1


async def test_after_a_tool_has_left_the_planner_is_asked_again() -> None:
    desk = Desk()
    desk.submit("t-1")
    await desk.plan()
    desk.contracts._apply(record(topics.CONTRACTS, None, key=b"echo"))
    desk.submit("t-2")
    assert len(desk.asked) == 1


async def test_a_tool_that_starts_again_and_says_the_same_changes_nothing() -> None:
    desk = Desk()
    desk.submit("t-1")
    await desk.plan()
    announce(desk.contracts, BACK, ECHO, WRITE)
    assert reused(desk, desk.submit("t-2"))


async def test_a_contract_that_changed_and_changed_back_makes_the_planner_be_asked_again() -> None:
    desk = Desk()
    desk.submit("t-1")
    await desk.plan()
    announce(desk.contracts, changed(ECHO))
    announce(desk.contracts, ECHO, WRITE, BACK)
    desk.submit("t-2")
    assert len(desk.asked) == 1


async def test_a_plan_of_an_older_contract_counts_for_its_run_and_is_not_kept() -> None:
    desk = Desk()
    behind = registry()
    run = desk.submit("t-1")
    announce(desk.contracts, changed(ECHO), WRITE, BACK)
    await desk.plan(behind)
    assert desk.runs[run.run_id].revision == 1, "the contract is remembered"
    desk.submit("t-2")
    assert len(desk.asked) == 1


async def test_a_plan_without_an_undo_that_has_become_known_meanwhile_is_not_kept() -> None:
    writing = playbook(plan={"pattern": "fixed", "steps": [{"id": "a", "operation": "echo.write"}]})
    desk = Desk(writing, contracts=registry((WRITE,)))
    desk.submit("t-1")
    first = await desk.plan()
    desk.submit("t-2")
    assert desk.asked == []
    announce(desk.contracts, WRITE, BACK)
    run = desk.submit("t-3")
    late = first.model_copy(update={"run_id": run.run_id, "request_id": next(iter(run.requests))})
    desk.asked.clear()
    desk.take(RunMessage(run.run_id, desk.executor._plans.read(late.to_bytes())))
    desk.submit("t-4")
    assert len(desk.asked) == 1


async def test_each_version_of_a_playbook_has_a_plan_of_its_own() -> None:
    desk = Desk()
    desk.submit("t-1")
    await desk.plan()
    newer = playbook(retry={"max_attempts": 9})
    desk.executor.offer(deployments(newer), {})
    desk.submit("t-2")
    second = await desk.plan()
    assert second.plan is not None
    assert second.plan.steps[0].retry.max_attempts == 9
    assert reused(desk, desk.submit("t-3"))
    desk.executor.offer(deployments(playbook()), {})
    older = desk.submit("t-4")
    assert reused(desk, older)
    assert older.steps["a"].step.retry.max_attempts == 3


async def test_another_version_of_a_playbook_that_is_handed_over_to_makes_the_planner_be_asked_again() -> None:
    desk = Desk(RICH, CHILD)
    desk.submit("t-1", text="a", items=[])
    await desk.plan()
    desk.executor.offer(deployments(RICH, playbook(name="child", budgets={"tokens": 7})), {})
    desk.submit("t-2", text="a", items=[])
    assert len(desk.asked) == 1


async def test_the_plan_of_a_model_is_never_reused() -> None:
    desk = Desk(MODEL)
    desk.submit("t-1")
    (request,) = desk.asked
    fixed = await made(request.model_copy(update={"spec": playbook().plan}), desk.contracts)
    desk.take(RunMessage(request.run_id, fixed.model_copy(update={"spend": Spend(tokens=5)})))
    assert desk.runs[request.run_id].revision == 1
    desk.asked.clear()
    desk.submit("t-2")
    assert len(desk.asked) == 1


async def test_a_plan_that_was_refused_is_not_reused() -> None:
    desk = Desk()
    run = desk.submit("t-1")
    honest = await made(desk.asked[0], desk.contracts)
    assert honest.plan is not None
    (step,) = honest.plan.steps
    forged = honest.plan.model_copy(update={"steps": (step.model_copy(update={"arguments": {"n": 1}}),)})
    with pytest.raises(ForgedRecord):
        desk.take(RunMessage(run.run_id, honest.model_copy(update={"plan": forged})))
    desk.asked.clear()
    desk.submit("t-2")
    assert len(desk.asked) == 1


async def test_a_plan_that_fits_only_what_a_person_has_added_to_the_budget_is_not_reused() -> None:
    steps = [{"id": f"s{number}", "operation": "echo.echo", "arguments": {"n": number}} for number in range(3)]
    desk = Desk(playbook(plan={"pattern": "fixed", "steps": steps}, budgets={"steps": 2}))
    run = desk.submit("t-1")
    assert (await desk.plan()).code == "plan_invalid"
    resume = Control(
        command_id="c", run_id=run.run_id, action=ControlAction.RESUME, principal="user:ana", extend={"steps": 1}
    )
    desk.take(RunMessage(run.run_id, resume))
    assert (await desk.plan()).plan is not None
    desk.submit("t-2")
    assert len(desk.asked) == 1


async def test_no_more_than_so_many_plans_are_kept() -> None:
    desk = Desk()
    desk.submit("t-1")
    (request,) = desk.asked
    answer = await made(request, desk.contracts)
    cache, state = desk.executor._known_plans, desk.take(RunMessage(request.run_id, answer))
    for number in range(MAX_KNOWN + 50):
        book = playbook(name=f"book-{number}")
        run = state.copy()
        run.playbook = book
        cache.keep(run, answer, NOW)
    assert len(cache._known) == MAX_KNOWN
    assert cache.find(book, ()) is not None


# --- a stale plan ---------------------------------------------------------------------------------


async def test_a_tool_that_refuses_the_contract_of_a_plan_makes_the_planner_be_asked_again() -> None:
    desk = Desk()
    desk.submit("t-1")
    await desk.plan()
    run = desk.submit("t-2")
    assert reused(desk, run)
    desk.refuse_call(run, planned="0" * 16, offered="1" * 16)
    desk.submit("t-3")
    assert len(desk.asked) == 1


async def test_a_result_outside_its_contract_says_nothing_about_the_plan() -> None:
    desk = Desk()
    desk.submit("t-1")
    await desk.plan()
    desk.refuse_call(desk.submit("t-2"))
    assert reused(desk, desk.submit("t-3"))


async def test_however_long_an_executor_hears_nothing_of_a_change_no_run_gets_two_stale_plans() -> None:
    desk = Desk()
    behind = registry()
    desk.submit("t-0")
    await desk.plan(behind)
    for number in range(1, 9):
        run = desk.submit(f"t-{number}")
        if desk.asked:
            await desk.plan(behind)  # the planner has heard nothing either
        run = desk.refuse_call(desk.runs[run.run_id], planned="0" * 16, offered="1" * 16)
        while run.retries:
            desk.now += timedelta(seconds=60)
            run = desk.refuse_call(desk.take(RunMessage(run.run_id, Tick())), planned="0" * 16, offered="1" * 16)
        assert run.status is RunStatus.ESCALATED, "a person is told, and nothing goes round"
        accepted = [event for event in events_of(desk, run) if isinstance(event, ev.PlanAccepted)]
        assert len(accepted) == 1
    announce(desk.contracts, changed(ECHO), WRITE, BACK)
    run = desk.submit("t-9")
    answer = await desk.plan()
    assert answer.plan is not None
    assert answer.plan.steps[0].pin.contract_hash == changed(ECHO).hash
    assert reused(desk, desk.submit("t-10"))


async def test_a_run_that_has_a_plan_takes_no_known_one_when_it_asks_again() -> None:
    desk = Desk()
    run = desk.submit("t-1")
    await desk.plan()
    asks_again = replace(desk.runs[run.run_id], replan_due=True, requests={})
    transition = desk.executor.apply(asks_again, RunMessage(run.run_id, Tick()), 0, desk.now)
    assert transition is not None
    assert [send.noun for send in transition.sends] == [topics.PLAN_REQUESTS]
