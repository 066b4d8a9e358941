"""`triptych verify` on a real database: silent while everything agrees, and precise about what does not."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

import triptych.executor
import triptych.tools
from triptych.client.operator import operator_connection
from triptych.executor.deployments import Deployment
from triptych.executor.intake import Executor, TaskAdmission
from triptych.executor.store import ExecutorStore
from triptych.kernel.decider import Batch, RunMessage
from triptych.kernel.kafka.topic_metadata import ClusterTopics
from triptych.kernel.postgres.migrate import WORKER
from triptych.kernel.process.log import configure_logging
from triptych.kernel.run_ids import derive_run_id
from triptych.operator.audit import Audit, AuditCounts, Check, audit
from triptych.schemas import (
    CallAnswer,
    Cost,
    Effect,
    FixedPlan,
    Pin,
    Plan,
    PlanAnswer,
    Playbook,
    Result,
    ResultStatus,
    Spend,
    Step,
    StepSpec,
    Task,
)

EXECUTOR = Path(triptych.executor.__file__).with_name("migrations")
EFFECTS = Path(triptych.tools.__file__).with_name("migrations") / "tool"
PLAYBOOK = Playbook(
    name="send",
    goal="Send a letter.",
    input={"type": "object"},
    tools=("post.send",),
    plan=FixedPlan(steps=(StepSpec(id="send", operation="post.send", tokens=500),)),
)
PIN = Pin(contract_hash="0" * 16, effect=Effect.IDEMPOTENT, timeout_ms=1_000, cost=Cost(tokens=7))
AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)

Record = Callable[[], Awaitable[UUID]]


@dataclass(frozen=True)
class Stack:
    """A database with an executor and one tool, and the two roles that a test needs."""

    owner: asyncpg.Connection
    operator_dsn: str
    record_run: Record
    """Write a run that succeeded an hour ago, as the executor and the tool would have left it."""

    async def audit(self) -> Audit:
        async with operator_connection(self.operator_dsn) as connection:
            return await audit(connection, lambda _done, _total: None)

    async def found(self, run_id: UUID) -> dict[Check, str]:
        """What the audit says about one run, and that it says nothing about any other."""
        problems = [problem for problem in (await self.audit()).problems if problem.run_id == run_id]
        return {problem.check: problem.message for problem in problems}


@pytest.fixture(scope="module")
async def stack(database) -> AsyncIterator[Stack]:
    prepared = database.prepare({"executor": (EXECUTOR,), "tool_post": (WORKER, EFFECTS)})
    numbers = count()
    async with asyncpg.create_pool(prepared.services["executor"], min_size=1, max_size=2) as pool:
        store = ExecutorStore(pool, configure_logging("warning", "json", service="test"))
        await store.deploy([PLAYBOOK])
        (claim,) = await store.claim([0], "test", ClusterTopics("cluster", {}))
        owner = await asyncpg.connect(database.owner_dsn)

        async def record_run() -> UUID:
            run_id = derive_run_id("acme", task_id := f"t-{next(numbers)}", 1_000)
            batch = _story(run_id, task_id)
            batch.epochs = {0: claim.epoch}
            for number, event in enumerate(batch.events, start=1):  # each in a row of its own
                created = batch.created if number == 1 else []
                assert await store.commit(replace(batch, created=created, events=[event])) == set()
            await owner.execute(
                "insert into tool_post.jobs (run_id, request_id, tenant, partition, request, deadline_at, state) "
                "values ($1, 'r', 'acme', 0, '', now() - interval '1 hour', 'published')",
                run_id,
            )
            await owner.execute(
                "insert into tool_post.effects (run_id, idempotency_key, tenant, operation, arguments_hash, state, "
                "request_id) values ($1, $2, 'acme', 'post.send', '', 'receipt', 'r')",
                run_id,
                f"{run_id}:send:1",
            )
            return run_id

        yield Stack(owner, prepared.operator, record_run)
        await owner.close()


def _story(run_id: UUID, task_id: str) -> Batch:
    """A whole run in one batch: the decisions are the executor's own."""
    executor = Executor({PLAYBOOK.name: Deployment.of(PLAYBOOK)})
    batch: Batch = Batch(at=AN_HOUR_AGO, created=[run_id])
    task = Task(playbook=PLAYBOOK.name, input={}, tenant="acme", principal="user:ana", task_id=task_id)
    step = Step(id="send", operation="post.send", pin=PIN)
    about = {"run_id": run_id, "tenant": "acme"}
    plan, sent = Plan(revision=1, steps=(step,)), Result(status=ResultStatus.OK, data={})

    def tell(content: object) -> None:
        message = RunMessage(run_id, content, creates=isinstance(content, TaskAdmission))
        transition = executor.apply(batch.states.get(run_id), message, 0, AN_HOUR_AGO)
        assert transition is not None
        batch.states[run_id] = transition.state
        batch.events.extend((run_id, transition.first_seq + n, event) for n, event in enumerate(transition.events))

    def asked() -> str:
        (request_id,) = batch.states[run_id].requests
        return request_id

    tell(TaskAdmission(task, task_id, PLAYBOOK))
    tell(PlanAnswer(request_id=asked(), plan=plan, **about))
    tell(CallAnswer(request_id=asked(), result=sent, spend=Spend(tokens=7), **about))
    assert batch.states[run_id].status == "succeeded"
    return batch


async def test_what_agrees_is_counted_and_gives_no_problem(stack: Stack) -> None:
    run_id = await stack.record_run()
    assert await stack.found(run_id) == {}
    checked = (await stack.audit()).checked
    assert checked.runs >= 1
    assert checked.events == 7 * checked.runs
    assert checked.steps == checked.runs
    assert checked.worker_schemas == 1
    assert isinstance(checked, AuditCounts)


TOKENS = """
update executor.journal_commits set events = split_part(events, ' ', 1) || ' '
    || jsonb_set(substr(events, strpos(events, ' '))::jsonb, {path}, '100001')
where run_id = $1 and seq = {seq}
"""
"""Puts a large number of tokens into an event, which is alone in its row."""

UNSENT = """
insert into executor.outbox
select 0, 1, count(*), {at}, '\\x9197c410'::bytea || uuid_send($1) || '\\x01aa702e6f7574636f6d657300c40090c400'::bytea, '{{}}'
from executor.outbox
"""
"""Leaves an outcome of the run in the outbox."""

CORRUPTIONS = {
    "an event is gone": (
        "delete from executor.journal_commits where run_id = $1 and seq = 3",
        Check.JOURNAL,
        "event 3 is missing",
    ),
    "an event cannot be read": (
        "update executor.journal_commits set events = regexp_replace(events, '^\\w+', 'Unheard') where run_id = $1 and seq = 3",
        Check.JOURNAL,
        "event 3 (Unheard) cannot be folded",
    ),
    "it ended twice": (
        "update executor.journal_commits set events = events || E'\\n' || events where run_id = $1 and seq = 7",
        Check.END,
        "ended 2 times",
    ),
    "runs says that it goes on": (
        "update executor.runs set finished_at = null where run_id = $1",
        Check.RUN,
        "finished_at = None",
    ),
    "runs has another status": (
        "update executor.runs set status = 'failed' where run_id = $1",
        Check.RUN,
        "status = failed, the journal folds to succeeded",
    ),
    "a step has another status": (
        "update executor.steps set status = 'running' where run_id = $1",
        Check.STEPS,
        "step send says status = running",
    ),
    "a step is gone": ("delete from executor.steps where run_id = $1", Check.STEPS, "step send is missing"),
    "a place in the queue is left": (
        "insert into executor.queue values ($1, 0, 'acme', 'p', now())",
        Check.QUEUE,
        "it has a place in the queue and is succeeded",
    ),
    "a timer is left": (
        "insert into executor.timers values ($1, 0, now())",
        Check.TIMER,
        "nothing that time could change",
    ),
    "the money does not add up": (
        "update executor.runs set tokens = 8 where run_id = $1",
        Check.SPEND,
        "runs says 8 tokens, its events add up to 7",
    ),
    "more was spent than allowed": (
        TOKENS.format(path="'{spend,tokens}'", seq=5),
        Check.BUDGET,
        "tokens: 100001 used and 0 reserved, of 100000",
    ),
    "more was reserved than allowed": (
        TOKENS.format(path="'{reserved,tokens}'", seq=4),
        Check.BUDGET,
        "tokens: 0 used and 100001 reserved, of 100000",
    ),
    "a message was never published": (
        UNSENT.format(at="now() - interval '1 hour'"),
        Check.OUTBOX,
        "the first for p.outcomes",
    ),
    "a job is still open": (
        "update tool_post.jobs set state = 'answered' where run_id = $1",
        Check.JOBS,
        'job r in "tool_post" is still answered',
    ),
    "answers were never acknowledged": (
        "insert into tool_post.outbox values (1, 1, 1, now(), array[$1::uuid])",
        Check.JOBS,
        'in "tool_post" were never acknowledged',
    ),
    "a receipt of no call": (
        "update tool_post.effects set idempotency_key = 'k' where run_id = $1",
        Check.EFFECTS,
        "receipt k",
    ),
    "no task names it": ("delete from executor.tasks where run_id = $1", Check.ORPHAN, "a run that no task names"),
    "the row in runs is gone": (
        "delete from executor.runs where run_id = $1",
        Check.ORPHAN,
        "without a",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
async def test_what_does_not_agree_is_named(stack: Stack, name: str) -> None:
    statement, check, message = CORRUPTIONS[name]
    good, bad = await stack.record_run(), await stack.record_run()
    await stack.owner.execute(statement, bad)
    found = await stack.found(bad)
    assert message in found[check]
    assert await stack.found(good) == {}


async def test_what_is_on_its_way_is_no_problem(stack: Stack) -> None:
    run_id = await stack.record_run()
    await stack.owner.execute(UNSENT.format(at="now()"), run_id)
    await stack.owner.execute("update executor.journal_commits set at = now() where run_id = $1 and seq = 7", run_id)
    await stack.owner.execute(
        "update executor.runs set updated_at = now(), finished_at = now() where run_id = $1", run_id
    )
    found = await stack.found(run_id)
    assert Check.OUTBOX not in found


async def test_the_command_names_the_run_and_ends_with_1(stack: Stack) -> None:
    run_id = await stack.record_run()
    await stack.owner.execute("update executor.runs set status = 'failed' where run_id = $1", run_id)
    code, shown = await verify("--postgres", stack.operator_dsn)
    assert code == 1
    assert str(run_id) in shown
    code, told = await verify("--postgres", stack.operator_dsn, "--json")
    assert code == 1
    problem = next(each for each in json.loads(told)["problems"] if each["run_id"] == str(run_id))
    assert problem["check"] == "run"
    assert problem["task_id"].startswith("t-")


async def verify(*arguments: str) -> tuple[int | None, str]:
    command = Path(sys.executable).with_name("triptych")
    process = await asyncio.create_subprocess_exec(command, "verify", *arguments, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return process.returncode, out.decode()
