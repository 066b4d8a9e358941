"""Plays runs on the executor's own code and notes the processor time of each part. One process, one tree.

Everything between the record and the row is the product's own: reading, checking, deciding, messages, the statement.
The answers of the workers are made up here. There is no Kafka, so fetching and publishing are in no part.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import UUID

import psutil
import typer
import uvloop
from pydantic import SecretStr

import triptych.executor
from triptych.contracts.compiled_contract import CompiledContract
from triptych.executor import events as ev
from triptych.executor.deployments import Deployment
from triptych.executor.intake import Executor
from triptych.executor.messages import messages
from triptych.executor.state import Run
from triptych.executor.store import ExecutorStore
from triptych.kernel.decider import Batch, InboundRecord, RunMessage, Transition
from triptych.kernel.decider.admission import AdmissionControl
from triptych.kernel.decider.batch import BatchBuilder, DeciderContext, PartitionState, outbox_messages
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.bus import Kafka, Record
from triptych.kernel.kafka.topic_metadata import ClusterTopics
from triptych.kernel.postgres import claim_check, database
from triptych.kernel.postgres.migrate import Schema, prepare
from triptych.kernel.postgres.outbox import Envelope, OutboxKey, pack
from triptych.kernel.process.health import Health
from triptych.kernel.process.log import configure_logging
from triptych.kernel.process.outage import Outage
from triptych.kernel.process.service import Service
from triptych.kernel.process.settings import ServiceSettings
from triptych.playbook.loader import load_playbook
from triptych.playbook.plans import PlanContext, make_plan
from triptych.schemas import (
    CallAnswer,
    CallRequest,
    Decision,
    FixedPlan,
    Plan,
    PlanAnswer,
    PlanRequest,
    Playbook,
    Result,
    ReviewRequest,
    Spend,
    Task,
    VerdictAnswer,
    codec,
    topics,
)
from triptych.tools.adapters import echo

POSTGRES = "Postgres"
_PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
_MIGRATIONS = Path(triptych.executor.__file__).with_name("migrations")
_TENANT = "acme"
_SOURCES = {topics.PLANS: "planner", topics.RESULTS: "tool-echo", topics.VERDICTS: "critic"}


class _Offered:
    """The contracts of the tool that does nothing."""

    changes = 1

    def __init__(self) -> None:
        compiled = (CompiledContract.of(contract) for contract in echo.tool.contracts.contracts)
        self._known = {each.contract.operation: each for each in compiled}

    def get(self, operation: str) -> CompiledContract | None:
        return self._known.get(operation)

    def remembered(self, contract_hash: str) -> CompiledContract | None:
        return next((each for each in self._known.values() if each.hash == contract_hash), None)

    def operations(self, patterns: Iterable[str]) -> Mapping[str, CompiledContract]:
        return {name: self._known[name] for name in patterns}


class _NoPool:
    """Takes the place of a pool and of its connection, and writes nothing."""

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[_NoPool]:
        yield self

    async def fetchval(self, *_: object) -> Sequence[UUID]:
        return ()


@dataclass(slots=True)
class Player:
    """Plays runs that move on together, one batch for each of their messages."""

    context: DeciderContext[Run]
    domain: Executor
    playbook: Playbook
    epoch: int
    ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """The processor time of this process by what was done."""
    _rows_only: ExecutorStore = field(init=False)
    _state: PartitionState[Run] = field(init=False)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _offsets: Iterator[int] = field(default_factory=itertools.count)
    _published: list[OutboxKey] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rows_only = ExecutorStore(cast("Any", _NoPool()), self.context.service.log)
        self._state = PartitionState(AdmissionControl(self.domain.limits, partitions=1))

    async def play(self, runs: int) -> int:
        """Play so many runs from their tasks to their outcomes. Return how many steps they made."""
        records = [self._record(topics.TASKS, self._task().to_bytes(), "task") for _ in range(runs)]
        calls = 0
        while records:
            batch = await self._batch(records)
            answers = [self._answer(each.outgoing.topic, each.outgoing.value) for each in batch.outbox]
            records = [each for each in answers if each is not None]
            calls += sum(each.topic.endswith(f".{topics.RESULTS}") for each in records)
        return calls

    async def _batch(self, records: Sequence[Record[Any, Any]]) -> Batch[Run]:
        now = cloudevents.utc_now()
        batch: Batch[Run] = Batch(at=now, number=next(self._numbers), published=self._published)
        builder = BatchBuilder(self.context, self._state, batch)
        with self._timed("read"):
            read = self._read(records, now)
        batch.offsets[0] = {records[-1].topic: records[-1].offset + 1}
        with self._timed("take"):
            for inbound, message in read:
                builder.take(inbound, message)
        batch.epochs = dict.fromkeys(builder.touched_partitions(), self.epoch)
        if builder.rejected or batch.dead or len(batch.states) < len(records):
            raise RuntimeError(f"the executor refuses what is played: {builder.rejected or batch.dead}")
        gc.disable()  # the parts hold more than the whole did, and to search it for garbage is not their work
        self._repeat_parts(batch)
        with self._timed("rows"):
            await self._rows_only.commit(batch)
        gc.enable()
        with self._timed("commit"):
            await self.context.store.commit(batch)
        self._published = [row.key for row in batch.outbox_rows()]
        self._remember(batch)
        return batch

    def _read(self, records: Iterable[Record[Any, Any]], now: datetime) -> list[tuple[InboundRecord, RunMessage]]:
        read = []
        for record in records:
            noun = record.topic.partition(".")[2]
            self.domain.check_size(noun, record)
            inbound = InboundRecord(noun, record, claim_check.body(record, {}), now)
            read.append((inbound, self.domain.read(inbound)))
        return read

    def _repeat_parts(self, batch: Batch[Run]) -> None:
        """Do once more, by itself, what is a part of a larger part: all of it is pure."""
        grouped: dict[UUID, tuple[int, list[Any]]] = {}
        for run_id, seq, event in batch.events:
            grouped.setdefault(run_id, (seq, []))[1].append(event)
        with self._timed("messages"):
            sends = {
                run_id: messages(batch.states[run_id], events, batch.at) for run_id, (_, events) in grouped.items()
            }
        transitions = [
            Transition(run := batch.states[run_id], run.name, run.tenant, 0, seq, events, sends[run_id])
            for run_id, (seq, events) in grouped.items()
        ]
        with self._timed("envelope"):
            for each in transitions:
                outbox_messages(self.context.envelope, each.state.run_id, each)
        with self._timed("lines"):
            for _, events in grouped.values():
                ev.to_lines(events)
        rows = batch.outbox_rows()
        with self._timed("pack"):
            for row in rows:
                pack(row.messages)

    def _remember(self, batch: Batch[Run]) -> None:
        for run_id in batch.disarmed:
            self._state.timers.disarm(run_id)
        for run_id, (_, due_at) in batch.armed.items():
            self._state.timers.arm(run_id, due_at)
        for run_id, run in batch.states.items():
            if run.status.is_final:
                self._state.cache.pop(run_id, None)
                self._state.admission.release(run_id)
            else:
                self._state.cache[run_id] = run
                self._state.admission.confirm(run_id)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.ms[what] += (time.process_time() - began) * 1000

    # --- who sends tasks and answers ---------------------------------------------------------------

    def _task(self) -> Task:
        return Task(playbook=self.playbook.name, tenant=_TENANT, task_id=f"task-{next(self._offsets)}-{self.epoch}")

    def _answer(self, topic: str, body: bytes) -> Record[Any, Any] | None:
        """Answer a request as its worker does; None if it is not a request."""
        noun = topic.partition(".")[2]
        answer: PlanAnswer | CallAnswer | VerdictAnswer
        match noun:
            case topics.PLAN_REQUESTS:
                plan = codec.read(PlanRequest, body)
                noun, answer = topics.PLANS, PlanAnswer(**_named(plan), plan=self._plan(), worker="bench")
            case topics.REVIEWS:
                review = codec.read(ReviewRequest, body)
                noun, answer = topics.VERDICTS, VerdictAnswer(**_named(review), decision=Decision.CONTINUE)
            case _ if noun.startswith("calls."):
                call, now = codec.read(CallRequest, body), cloudevents.utc_now()
                done: dict[str, Any] = {
                    "result": Result.ok(call.arguments),
                    "worker": "bench",
                    "started_at": now,
                    "finished_at": now,
                }
                noun, answer = topics.RESULTS, CallAnswer(**_named(call), **done)
            case _:
                return None
        return self._record(noun, answer.to_bytes(), f"{answer.request_id}:answer", str(answer.run_id))

    def _plan(self) -> Plan:
        fixed = self.playbook.plan
        assert isinstance(fixed, FixedPlan)  # noqa: S101 - all playbooks of the benchmark have one
        offers = _Offered().operations(self.playbook.tools)
        return make_plan(fixed.steps, PlanContext(offers, self.playbook.budgets.steps, self.playbook.retry))

    def _record(self, noun: str, body: bytes, event_id: str, key: str = "") -> Record[Any, Any]:
        headers = cloudevents.binary_headers(
            event_id=event_id,
            event_type="triptych.answer",
            source=f"/triptych/{_SOURCES.get(noun, 'client')}",
            tenant=_TENANT,
            traceparent=f"00-{'a' * 32}-{'b' * 16}-01" if key else None,
        )
        return Record(
            topic=f"bench.{noun}",
            partition=0,
            offset=next(self._offsets),
            timestamp=int(time.time() * 1000),
            timestamp_type=0,
            key=key.encode(),
            value=body,
            checksum=None,
            serialized_key_size=len(key),
            serialized_value_size=len(body),
            headers=headers,
        )


def _named(request: PlanRequest | CallRequest | ReviewRequest) -> dict[str, Any]:
    who = {"request_id": request.request_id, "run_id": request.run_id, "tenant": request.tenant}
    return {**who, "spend": Spend()}


def _parts(ms: Mapping[str, float], postgres_ms: float, steps: int) -> dict[str, float]:
    """Return the microseconds a step of each part. What was done once more by itself counts once."""
    spent = {
        "read": ms["read"],
        "decide and fold": ms["take"] - ms["messages"] - ms["envelope"],
        "messages": ms["messages"],
        "envelope": ms["envelope"],
        "lines": ms["lines"],
        "pack": ms["pack"],
        "other rows": ms["rows"] - ms["lines"] - ms["pack"],
        "statement": ms["commit"] - ms["rows"],
        POSTGRES: postgres_ms,
    }
    return {name: part / steps * 1000 for name, part in spent.items()}


@asynccontextmanager
async def _player(dsn: str, playbook: Playbook) -> AsyncIterator[tuple[Player, psutil.Process]]:
    """Prepare a database, and give a player and the server process of its only connection."""
    prepared = prepare(dsn, "bench", [Schema("executor", "bench", (_MIGRATIONS,))], "bench")
    log = configure_logging("error", "console")
    settings = ServiceSettings(kafka="none:9092", postgres=SecretStr(dsn), topic_prefix="bench")
    service = Service("executor", log, Health("executor", "bench"), asyncio.Event())
    domain = Executor({playbook.name: Deployment.of(playbook)}, contracts=_Offered())
    async with await database.connect(prepared.services["executor"], "bench", max_connections=1) as pool:
        store = ExecutorStore(pool, log)
        await store.deploy([playbook])
        (claim,) = await store.claim([0], "bench", ClusterTopics("cluster", {}))
        await store.catch_up([0])
        envelope, outage = Envelope(settings, "executor"), Outage(log, "postgres")
        context = DeciderContext(service, settings, domain, store, pool, envelope, outage, Kafka(settings))
        backend = psutil.Process(await pool.fetchval("select pg_backend_pid()"))
        yield Player(context, domain, playbook, claim.epoch), backend


def _cpu_ms(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system) * 1000


async def _play(dsn: str, playbook: Playbook, in_flight: int, turns: int) -> dict[str, float]:
    async with _player(dsn, playbook) as (player, backend):
        await player.play(in_flight)  # what is compiled, planned and cached once
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)  # as in a service
        player.ms.clear()
        began = _cpu_ms(backend)
        steps = sum([await player.play(in_flight) for _ in range(turns)])
        return _parts(player.ms, _cpu_ms(backend) - began, steps)


def main(
    *,
    postgres: Annotated[str, typer.Option(help="DSN of the owner of a database, which is made if it does not exist.")],
    playbook: Annotated[str, typer.Option(help="One of the playbooks of the benchmark.")],
    in_flight: Annotated[int, typer.Option(min=1)],
    turns: Annotated[int, typer.Option(min=1)],
) -> None:
    """Play runs, and print the microseconds a step of each part as JSON."""
    loaded = load_playbook(_PLAYBOOKS / f"{playbook}.yaml")
    sys.stdout.write(json.dumps(uvloop.run(_play(postgres, loaded, in_flight, turns))))


if __name__ == "__main__":
    typer.run(main)
