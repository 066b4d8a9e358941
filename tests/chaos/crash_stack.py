"""A stack with fail points, the workload of the nemesis to run through it, and what can be seen of it from outside.

It looks at Kafka, at the database and at the ledgers of the upstreams; it shares no code with the services.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import aiokafka
import asyncpg
from aiokafka import ConsumerRecord, TopicPartition

from triptych.client import Client
from triptych.embedded.config import PARTITIONS
from triptych.schemas import ControlAction, Task, topics
from triptych_chaos import evidence
from triptych_chaos.checker import Effects, Violation, check_delivery, check_run
from triptych_chaos.history import recording
from triptych_chaos.webhook_sender import PROMPT, WebhookSender, open_sender
from triptych_chaos.workload import BODY, CALLS, CONFIG, SUBJECT

COMPACTED = {topic.noun for topic in topics.CATALOG if topic.compacted}
WORKERS = ("planner", "critic", "tool_kb", "tool_helpdesk", "tool_model", "tool_inbox", "tool_webhook")
POISON = "x-poison"
"""The header of what a test, and no service, has put among the outcomes."""


def triptych(*arguments: str, **environment: str) -> str:
    """Run the command line, as a user does."""
    command = Path(sys.executable).with_name("triptych")
    done = subprocess.run(
        [command, *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class CrashStack:
    """The stack, and every outcome that it has ever sent."""

    folder: Path
    client: Client
    database: asyncpg.Connection
    sender: WebhookSender
    finals: dict[str, Counter[str]] = field(default_factory=dict)
    """By task id, how often each `ce_id` of a final outcome was seen."""
    statuses: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """By task id, run id and status of its final outcomes."""
    in_doubt: dict[str, UUID] = field(default_factory=dict)
    """By task id, the run of an escalation that a person has to answer."""
    other_escalations: dict[str, str] = field(default_factory=dict)

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator[CrashStack]:
        port, callback_port = _free_ports(2)
        with recording(folder.with_name(f"{folder.name}-history.jsonl")) as history:
            # The same seed each time; it does not protect anything.
            async with open_sender(history, random.Random(1), port, PROMPT) as sender:  # noqa: S311
                environment = sender.environment | {
                    "TRIPTYCH_CALLBACK_URL": f"http://127.0.0.1:{callback_port}",
                    "TRIPTYCH_CALLBACK_PORT": str(callback_port),
                }
                triptych("up", "--data", str(folder), "--config", str(CONFIG), **environment)
                try:
                    database = await asyncpg.connect(json.loads((folder / "stack.json").read_text())["postgres"])
                    async with Client.from_stack(folder) as client:
                        crash_stack = cls(folder, client, database, sender)
                        async with crash_stack.listening():
                            yield crash_stack
                    await crash_stack.database.close()
                finally:
                    triptych("down", "--data", str(folder))

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Read the outcomes from their beginning while the body runs: the log may be another one than before."""
        description = self.description
        outcomes = aiokafka.AIOKafkaConsumer(
            f"{description['topic_prefix']}.outcomes",
            bootstrap_servers=description["kafka"],
            auto_offset_reset="earliest",
        )
        await outcomes.start()
        reading = asyncio.create_task(self._read(outcomes))
        try:
            yield
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            # In a task of its own: without its broker, it may raise CancelledError, or not end at all.
            await asyncio.wait({asyncio.create_task(outcomes.stop())}, timeout=30)

    async def reconnected(self) -> bool:
        """Connect to a database that was away; tell whether that worked."""
        try:
            database = await asyncpg.connect(self.description["postgres"])
        except (OSError, asyncpg.PostgresError):
            return False
        self.database.terminate()
        self.database = database
        return True

    async def _read(self, outcomes: aiokafka.AIOKafkaConsumer) -> None:
        async for record in outcomes:
            if any(name == POISON for name, _ in record.headers):
                continue
            outcome = json.loads(record.value)
            task_id, run_id = outcome["task_id"], outcome.get("run_id", "")
            if outcome["final"]:
                ce_id = dict(record.headers)["ce_id"].decode()
                self.finals.setdefault(task_id, Counter())[ce_id] += 1
                self.statuses.setdefault(task_id, set()).add((run_id, outcome["status"]))
            elif outcome["reason"]["code"] == "in_doubt":
                self.in_doubt[task_id] = UUID(run_id)
            else:
                self.other_escalations[task_id] = f"{outcome['reason']}"

    @property
    def description(self) -> dict[str, Any]:
        """What stack.json says now."""
        return json.loads((self.folder / "stack.json").read_text())

    # --- crashes ----------------------------------------------------------------------------------

    def pid_of(self, service: str) -> int:
        description = self.description
        pid = next(each["pid"] for each in description["services"] if each["name"] == service)
        assert pid is not None, f"{service} is not running"
        return pid

    def not_running(self) -> list[str]:
        """List the services that have died and will be started again."""
        return [each["name"] for each in self.description["services"] if each["pid"] is None]

    def disarm(self) -> None:
        """Take away every order, given or carried out."""
        for path in (self.folder / "failpoints").rglob("*.*"):
            path.unlink()

    def arm(self, service: str, point: str, order: str) -> None:
        """Give an order to the service's first process, unless it has it already or has carried it out."""
        file = self.folder / "failpoints" / f"{service}-1" / point
        if not file.exists() and self.struck_at(service, point) is None:
            draft = file.with_name("draft")
            draft.write_text(order)
            draft.rename(file)

    def struck_at(self, service: str, point: str) -> datetime | None:
        """Return when the fail point struck: the moment at which its file was moved."""
        try:
            moved = (self.folder / "failpoints" / f"{service}-1" / "struck" / point).stat().st_ctime
        except FileNotFoundError:
            return None
        return datetime.fromtimestamp(moved, UTC)

    async def forget_plans(self) -> None:
        """Kill the executor, and wait until another one is there: it knows no plan, and asks the planner."""
        killed = self.pid_of("executor")
        os.kill(killed, signal.SIGKILL)

        async def another() -> bool:
            pids = {each["pid"] for each in self.description["services"] if each["name"] == "executor"}
            return not pids & {killed, None}

        async def tell() -> str:
            return "the executor did not start again"

        await until(another, 60, tell)

    @contextmanager
    def paused(self, services: Iterable[str]) -> Iterator[None]:
        """Suspend services while the body runs."""
        pids = [self.pid_of(service) for service in services]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    async def submit(self, task_ids: list[str], *, judged_every: int, deliveries: bool = False) -> None:
        """Submit tasks, one in `judged_every` with a draft and its judgement, and return when Kafka has them.

        With `deliveries`, each waits for a webhook, too.
        """
        await self.client.submit_many(
            Task(
                playbook=CALLS,
                task_id=task_id,
                input={
                    "ticket_id": f"T-{task_id}",
                    "subject": SUBJECT,
                    # Another question each time: one that was answered before is answered from the cache of answers.
                    "body": f"{BODY} ({task_id})",
                    "judged": number % judged_every == 0,
                    "delivery": deliveries,
                },
            )
            for number, task_id in enumerate(task_ids)
        )

    # --- what a person does -----------------------------------------------------------------------

    async def answer_doubts(self) -> None:
        """Tell each run in doubt that its letter counts as posted."""
        while self.in_doubt:
            _, run_id = self.in_doubt.popitem()
            partition = await self.database.fetchval("select partition from executor.runs where run_id = $1", run_id)
            await self.client.control(
                run_id,
                partition,
                ControlAction.SKIP,
                principal="user:approver",
                step="post",
                data={"ticket_id": str(run_id)},
            )

    async def cancel(self, task_ids: list[str]) -> None:
        """Cancel the runs of these tasks."""
        for row in await self.database.fetch(
            "select run_id, partition from executor.runs where task_id = any($1)", task_ids
        ):
            await self.client.control(row["run_id"], row["partition"], ControlAction.CANCEL, principal="user:approver")

    # --- what can be seen -------------------------------------------------------------------------

    async def run_ids(self, task_ids: list[str]) -> list[UUID]:
        rows = await self.database.fetch("select run_id from executor.runs where task_id = any($1)", task_ids)
        return [row["run_id"] for row in rows]

    async def have_asked(self, task_ids: list[str], asked: list[str]) -> int:
        """Count the runs whose journal has one of these: the type of an event, and its step if it has one."""
        found: int = await self.database.fetchval(
            "select count(distinct run_id) from executor.journal join executor.runs using (run_id) "
            "where task_id = any($1) and type || coalesce(' ' || (data ->> 'step'), '') = any($2)",
            task_ids,
            asked,
        )
        return found

    async def unanswered(self, task_ids: list[str]) -> list[tuple[str, str]]:
        """List the requests of these that have no answer, by task."""
        rows = await self.database.fetch(
            "select task_id, asked.data ->> 'request_id' as request_id "
            "from executor.journal as asked join executor.runs using (run_id) where task_id = any($1) "
            "and type in ('PlanRequested', 'CallRequested', 'ReviewRequested') and not exists ("
            "  select from executor.journal as answer where answer.run_id = asked.run_id and answer.seq > asked.seq "
            "  and answer.data ->> 'request_id' = asked.data ->> 'request_id' and answer.type <> 'RequestReissued')",
            task_ids,
        )
        return [(row["task_id"], row["request_id"]) for row in rows]

    async def withdrawn(self, task_ids: list[str]) -> list[tuple[str, UUID, str]]:
        """List the calls that were answered as not made, since their runs were over: task, run and step."""
        rows = await self.database.fetch(
            "select task_id, run_id, data ->> 'step' as step from executor.journal join executor.runs using (run_id) "
            "where task_id = any($1) and type = 'AnsweredLate' "
            "and data -> 'result' -> 'error' -> 'details' ->> 'withdrawn' = 'true'",
            task_ids,
        )
        return [(row["task_id"], row["run_id"], row["step"]) for row in rows]

    async def finished_by(self, task_ids: list[str], moment: datetime) -> int:
        """Count the runs that had ended by then."""
        found: int = await self.database.fetchval(
            "select count(*) from executor.runs where task_id = any($1) and finished_at <= $2", task_ids, moment
        )
        return found

    async def left_behind(self) -> dict[str, int]:
        """Rows that must be gone, or done with, when every run has ended."""
        found = await evidence.leftovers_of(self.description["postgres"])
        left = {name: count for name, count in found.items() if not name.endswith(".dead_letters")}
        left["dead letters"] = sum(count for name, count in found.items() if name.endswith(".dead_letters"))
        for schema in WORKERS:
            leases = await self.database.fetchval(f"select count(*) from {schema}.leases")  # noqa: S608
            left[f"{schema}.leases"] = leases - 1
        return {name: count for name, count in left.items() if count}

    async def effects(self) -> Effects:
        """Count what took effect, as the upstreams say."""
        return await evidence.effects_of(evidence.Places.of(self.folder), self.sender)

    async def effects_on(self, task_ids: Iterable[str]) -> dict[tuple[str, str], int]:
        """Count the writes to the tickets of these tasks, by ticket and collection."""
        tickets = {f"T-{task_id}" for task_id in task_ids}
        return {place: count for place, count in (await self.effects()).by_place.items() if place[0] in tickets}

    async def violations(self, task_ids: list[str], *, has_delivery: bool) -> list[Violation]:
        """Check the runs of these tasks as the nemesis does, and what was delivered for them."""
        effects, found, run_ids = await self.effects(), [], set()
        async for run in evidence.runs_of(self.description["postgres"], task_ids):
            run_ids.add(run.run_id)
            found += check_run(run, effects, has_delivery=has_delivery)
        for key, delivery in self.sender.deliveries.items():
            if delivery.run_id in run_ids:
                found += check_delivery(key, delivery)
        return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


async def until(condition: Any, within_s: float, what: Any) -> None:
    """Wait until an async condition holds; `what` says what is missing when time is up."""
    deadline = time.monotonic() + within_s
    while not await condition():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {await what()}"
        await asyncio.sleep(0.05)


def partitions_of(topic: str) -> int:
    """Return how many partitions the embedded stack gives a topic."""
    return 1 if topic.partition(".")[2] in COMPACTED else PARTITIONS


async def everything_published(crash_stack: CrashStack) -> dict[str, list[ConsumerRecord[Any, Any]]]:
    """Read what is on the topics now, by topic; the records of a partition are in order."""
    description = crash_stack.description
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=description["kafka"], auto_offset_reset="earliest")
    found: dict[str, list[ConsumerRecord[Any, Any]]] = defaultdict(list)
    async with consumer:
        ours = [topic for topic in await consumer.topics() if topic.startswith(f"{description['topic_prefix']}.")]
        everywhere = [TopicPartition(topic, p) for topic in ours for p in range(partitions_of(topic))]
        consumer.assign(everywhere)
        ends = await consumer.end_offsets(everywhere)
        await consumer.seek_to_beginning(*everywhere)
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                found[tp.topic] += [record for record in records if record.value]
    return found
