"""The executor's tables: one round trip for each thing the decider loop needs. No decisions here."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
from pydantic import ValidationError

from triptych.executor import events as ev
from triptych.executor.fold import admit, record
from triptych.executor.keys import Holding, KeyReply, KeyState, holding_under, reply_to
from triptych.executor.projections import Projections, Unshown
from triptych.executor.state import Run
from triptych.kernel import timestamps
from triptych.kernel.decider import (
    HEAD,
    Batch,
    PartitionClaim,
    QueueKey,
    RecordsInFlight,
    RunMessage,
    TaskKey,
    WaitingRun,
)
from triptych.kernel.errors import Fenced, StatementTooLarge
from triptych.kernel.kafka.dead_letters import DeadRecord
from triptych.kernel.kafka.topic_metadata import ClusterTopics
from triptych.kernel.postgres import claim_check
from triptych.kernel.postgres.database import Queries
from triptych.kernel.postgres.outbox import OutboxKey, OutboxRow, pack, unpack
from triptych.kernel.process.log import Logger
from triptych.schemas import Playbook, codec

_FENCED = "TR001"
STATEMENT_MAX_BYTES = 134_217_728
"""Postgres takes no message of a gigabyte, and a process should not hold one."""
_OUTBOX_MESSAGES, _DEAD_VALUE = 4, 5
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_INT = attrgetter("int")
"""The order of UUIDs in Postgres; to compare two of them is a Python function."""


class Activation(NamedTuple):
    """The version of a playbook that new tasks get, and the one that the folder held when that was decided."""

    name: str
    version: str
    folder_version: str | None


class ExecutorStore:
    """Implements the decider loop's `Store` for runs."""

    def __init__(self, pool: asyncpg.Pool, log: Logger) -> None:
        self._pool, self._log = pool, log
        self._sql = Queries.load("triptych.executor", "executor.sql")
        self._playbooks = ev.PlaybookLookup()
        self._projections = Projections()

    async def deploy(self, playbooks: Sequence[Playbook]) -> None:
        """Record these versions, and learn every version that a run may refer to."""
        for playbook in playbooks:
            definition = codec.for_jsonb(playbook.to_bytes()).decode()
            await self._pool.execute(self._sql["deploy_playbook"], playbook.name, playbook.version, definition)
        await self._learn_playbooks()

    async def activate_from_folder(self, playbooks: Sequence[Playbook]) -> None:
        """Let new tasks have these, where the folder held others before."""
        names, versions = [each.name for each in playbooks], [each.version for each in playbooks]
        await self._pool.execute(self._sql["activate_from_folder"], names, versions)

    async def activations(self) -> list[Activation]:
        """Return, for each playbook, the version that new tasks get."""
        return [Activation(*row) for row in await self._pool.fetch(self._sql["activations"])]

    async def playbook(self, name: str, version: str) -> Playbook | None:
        """Return one version of a playbook; None if it cannot be read here."""
        row = await self._pool.fetchrow(self._sql["playbook"], name, version)
        return self._read(row) if row is not None else None

    async def _learn_playbooks(self) -> None:
        rows = await self._pool.fetch(self._sql["playbooks"])
        self._playbooks = ev.PlaybookLookup(tuple(each for row in rows if (each := self._read(row)) is not None))

    def _read(self, row: asyncpg.Record) -> Playbook | None:
        """Read a version that runs may refer to. One that cannot be read stops only its own runs."""
        try:
            return codec.read(Playbook, row["definition"], limits=codec.STORED)
        except (ValidationError, codec.InvalidJson) as error:
            self._log.error("a stored playbook cannot be read", reason=str(error)[:500])
            return None

    async def claim(self, partitions: Sequence[int], owner: str, cluster: ClusterTopics) -> list[PartitionClaim]:
        ids = codec.encode_text(cluster.ids)
        rows = await self._pool.fetch(self._sql["claim"], list(partitions), owner, cluster.cluster_id, ids)
        return [PartitionClaim(row["partition"], row["epoch"], codec.decode(row["offsets"])) for row in rows]

    async def epochs(self, partitions: Sequence[int]) -> dict[int, int]:
        return {row["partition"]: row["epoch"] for row in await self._pool.fetch(self._sql["epochs"], list(partitions))}

    async def load(self, run_ids: Sequence[UUID]) -> dict[UUID, Run]:
        return await self._fold_all(await self._pool.fetch(self._sql["load"], list(run_ids)))

    async def known(self, tasks: Collection[TaskKey]) -> dict[TaskKey, bytes | None]:
        rows = await self._pool.fetch(self._sql["known"], *_columns(tasks))
        return {TaskKey(row["tenant"], row["task_id"]): row["fingerprint"] for row in rows}

    async def ended(self, tasks: Collection[TaskKey]) -> dict[UUID, Run]:
        return await self._fold_all(await self._pool.fetch(self._sql["ended"], *_columns(tasks)))

    async def _fold_all(self, rows: Sequence[asyncpg.Record]) -> dict[UUID, Run]:
        journals = {run_id: list(commits) for run_id, commits in groupby(rows, key=itemgetter("run_id"))}
        try:
            return {run_id: self._fold(run_id, commits) for run_id, commits in journals.items()}
        except LookupError:
            # Another process has deployed a version since this one started.
            await self._learn_playbooks()
        runs: dict[UUID, Run] = {}
        for run_id, commits in journals.items():
            try:
                runs[run_id] = self._fold(run_id, commits)
            except LookupError as error:
                # A newer executor wrote this journal, and goes on with the run. Other runs go on here.
                self._log.error("a journal cannot be read here", run_id=str(run_id), missing=str(error))
        return runs

    def _fold(self, run_id: UUID, rows: Sequence[asyncpg.Record]) -> Run:
        events = (
            (ev.decode(event_type, data, self._playbooks), row["at"])
            for row in rows
            for event_type, data in ev.from_lines(row["events"])
        )
        admitted, admitted_at = next(events)
        assert isinstance(admitted, ev.RunAdmitted)  # noqa: S101 - every journal begins with it
        run = admit(run_id, admitted, admitted_at)
        for event, at in events:
            record(run, event, at)
        return run

    async def left_behind(self, partitions: Sequence[int]) -> list[OutboxRow]:
        return [
            OutboxRow(
                OutboxKey(partition, epoch, number),
                [each for each in unpack(messages, partition) if each.key.run_id not in withheld],
            )
            for partition, epoch, number, messages, withheld in await self._pool.fetch(
                self._sql["left_behind"], list(partitions)
            )
        ]

    async def readings(self, partitions: Sequence[int]) -> list[RecordsInFlight]:
        return [RecordsInFlight(*row) for row in await self._pool.fetch(self._sql["readings"], list(partitions))]

    async def note(self, readings: Sequence[RecordsInFlight]) -> list[RecordsInFlight]:
        columns = ([reading[column] for reading in readings] for column in range(4))
        return [
            RecordsInFlight(*row) for row in await self._pool.fetch(self._sql["reading"], *columns, readings[0].life)
        ]

    async def timers(self, partitions: Sequence[int]) -> list[tuple[UUID, datetime, int]]:
        rows = await self._pool.fetch(self._sql["timers"], list(partitions))
        return [(row["run_id"], row["due_at"], row["partition"]) for row in rows]

    async def active(self, partitions: Sequence[int]) -> list[tuple[UUID, QueueKey]]:
        rows = await self._pool.fetch(self._sql["active"], list(partitions))
        return [(row["run_id"], QueueKey(row["partition"], row["tenant"], row["playbook"])) for row in rows]

    async def waiting(self, partitions: Sequence[int]) -> list[WaitingRun]:
        return _waiting(await self._pool.fetch(self._sql["waiting"], list(partitions), HEAD))

    async def heads(self, queues: Sequence[QueueKey]) -> list[WaitingRun]:
        columns = ([queue[column] for queue in queues] for column in range(3))
        return _waiting(await self._pool.fetch(self._sql["heads"], *columns, HEAD))

    async def commit(self, batch: Batch[Run]) -> set[UUID]:
        claims = [row.claim for row in batch.outbox if row.claim is not None]
        projected = self._projections.update(batch)
        rows = _rows(batch, projected.shown)
        _check_content(rows, claims)
        timestamps.mark("decider.encoded")
        async with self._pool.acquire() as conn:
            await claim_check.store(conn, claims)
            try:
                if batch.queued or batch.dequeued:
                    async with conn.transaction():
                        duplicates = set(await conn.fetchval(self._sql["commit"], *rows))
                        await self._move_queue(conn, batch, duplicates)
                else:
                    duplicates = set(await conn.fetchval(self._sql["commit"], *rows))
            except asyncpg.PostgresError as error:
                # A journal row that is there already means that another owner has written this run.
                if error.sqlstate == _FENCED or isinstance(error, asyncpg.UniqueViolationError):
                    raise Fenced(tuple(batch.epochs)) from error
                raise
        self._projections.written(projected, but=duplicates)
        return duplicates

    async def catch_up(self, partitions: Sequence[int]) -> None:
        rows = await self._pool.fetch(self._sql["behind"], list(partitions))
        behind = await self.load([row["run_id"] for row in rows]) if rows else {}
        self._projections.reset(behind.values())

    def projections_due_at(self) -> datetime | None:
        return self._projections.due_at()

    def projected_partitions(self, now: datetime | None) -> set[int]:
        return self._projections.partitions(now)

    async def _move_queue(self, conn: Any, batch: Batch[Run], duplicates: set[UUID]) -> None:
        rows = [_queue_row(batch.states[run_id]) for run_id in sorted(batch.queued) if run_id not in duplicates]
        if rows:
            await conn.execute(self._sql["enqueue"], rows)
        if batch.dequeued:
            await conn.execute(self._sql["dequeue"], sorted(batch.dequeued))

    async def answer_queries(self, batch: Batch[Run], duplicates: Collection[UUID]) -> list[RunMessage]:
        """Business keys: who wants one is told how it stands. Once the batch is committed, and as often as it takes."""
        told = []
        for run_id, _, event in batch.events:
            run = batch.states[run_id]
            if run_id in duplicates or not isinstance(event, ev.KeyRequested | ev.RequestReissued):
                continue
            if event.request_id in run.requests:
                asked = run.requests[event.request_id].event
                if isinstance(asked, ev.KeyRequested):
                    told.append(RunMessage(run_id, await self._reserve(run, asked)))
        return told

    async def _reserve(self, run: Run, asked: ev.KeyRequested) -> KeyReply:
        wanted = (run.tenant, asked.key, run.run_id, asked.step, asked.idempotency_key, asked.for_ms)
        granted = KeyReply(asked.request_id, KeyState.GRANTED)
        if await self._pool.fetchval(self._sql["reserve_key"], *wanted):
            return granted
        row = await self._pool.fetchrow(self._sql["key_holder"], run.tenant, asked.key)
        if row is None:  # it was removed just now; the request comes again
            return KeyReply(asked.request_id, KeyState.HELD)
        holder = (await self.load([row["run_id"]])).get(row["run_id"])
        held = Holding() if holder is None else holding_under(holder, row["idempotency_key"])
        if held.is_free or (row["is_expired"] and await self._is_over(held, row["lasts"])):
            if await self._pool.fetchval(self._sql["take_key"], *wanted, row["claim"]):
                return granted
            return KeyReply(asked.request_id, KeyState.HELD, row["run_id"], row["step"])
        return reply_to(asked, run.state(asked.step).acting.operation, row["run_id"], held)

    async def _is_over(self, held: Holding, lasts: timedelta) -> bool:
        """Return whether the time of an expired key is over: of a call that took long it begins with the answer."""
        if held.is_under_way or held.answered_at is None:
            return not held.is_under_way
        return bool(await self._pool.fetchval(self._sql["is_over"], held.answered_at, lasts))

    async def forget(self, published: Sequence[OutboxKey]) -> None:
        await self._pool.execute(self._sql["forget"], list(published))


def _columns(tasks: Collection[TaskKey]) -> tuple[list[str], list[str]]:
    return [task.tenant for task in tasks], [task.task_id for task in tasks]


def _waiting(rows: Sequence[asyncpg.Record]) -> list[WaitingRun]:
    return [
        WaitingRun(QueueKey(row["partition"], row["tenant"], row["playbook"]), row["queued_at"], row["run_id"])
        for row in rows
    ]


def _queue_row(run: Run) -> tuple[Any, ...]:
    return run.run_id, run.partition, run.tenant, run.playbook.name, run.started_at


def _rows(batch: Batch[Run], shown: Sequence[Unshown]) -> tuple[list[Any], ...]:
    """Return the arguments of `commit_batch`: a list of rows for each table, in the order of its columns."""
    shown = sorted(shown, key=lambda each: each.run.run_id.int)
    return (
        [
            (partition, epoch, codec.encode_text(batch.offsets.get(partition, {})))
            for partition, epoch in sorted(batch.epochs.items())
        ],
        [_task_row(batch, run_id) for run_id in batch.created],
        _journal_rows(batch),
        [run_row(each.run) for each in shown],
        [step_row(run, step) for each in shown for step, run in each.step_states()],
        [(*row.key, batch.at, pack(row.messages), []) for row in batch.outbox_rows()],
        [tuple(key) for key in batch.published],
        [(run_id, *batch.armed[run_id]) for run_id in sorted(batch.armed, key=_INT)],
        sorted(batch.disarmed, key=_INT),
        [_dead_letter_row(dead) for dead in batch.dead],
    )


def _check_content(rows: tuple[list[Any], ...], claims: Sequence[claim_check.Claim]) -> None:
    """Refuse what is too much for one statement, however it came to be so much, and what SQL could not read again.

    What comes in has no NUL. But an expression may make one, and a query for any field of the journal would fail on it.
    """
    _, _, journal, _, _, outbox, _, _, _, dead = rows
    size_bytes = (
        sum(len(row[-1]) for row in journal)
        + sum(len(row[_OUTBOX_MESSAGES]) for row in outbox)
        + sum(len(row[_DEAD_VALUE] or b"") for row in dead)
        + sum(len(claim.body) for claim in claims)
    )
    if size_bytes > STATEMENT_MAX_BYTES:
        raise StatementTooLarge(size_bytes, STATEMENT_MAX_BYTES)
    for run_id, *_, events in journal:
        if "\\u0000" in events and _NUL.search(events):
            raise UnicodeError(f"a value of run {run_id} holds the character NUL, which Postgres cannot store in text")


def _task_row(batch: Batch[Run], run_id: UUID) -> tuple[Any, ...]:
    run, submission = batch.states[run_id], batch.submissions.get(run_id)
    return run.tenant, run.task_id, run_id, submission.fingerprint if submission else None


def _journal_rows(batch: Batch[Run]) -> list[tuple[Any, ...]]:
    """Return a row for each run with what this batch adds to its journal."""
    added: dict[UUID, tuple[int, list[Any]]] = {}
    for run_id, seq, event in batch.events:
        added.setdefault(run_id, (seq, []))[1].append(event)
    return [(run_id, seq, batch.at, ev.to_lines(events)) for run_id, (seq, events) in added.items()]


def _dead_letter_row(dead: DeadRecord) -> tuple[Any, ...]:
    place = (dead.id, dead.topic, dead.partition, dead.offset)
    is_published = True  # its event is in the outbox of the same statement
    return (
        *place,
        dead.key,
        dead.value,
        dead.headers,
        dead.code,
        dead.message,
        dead.tenant,
        dead.failed_at,
        is_published,
        dead.cut,
    )


def run_row(run: Run) -> tuple[Any, ...]:
    ledger, reason = run.ledger, run.public_reason
    return (
        run.run_id,
        run.tenant,
        run.task_id,
        run.principal,
        run.playbook.name,
        run.playbook.version,
        run.partition,
        run.public_status.value,
        reason.code if reason else None,
        reason.message if reason else None,
        run.revision,
        ledger.steps,
        ledger.tool_calls,
        ledger.tokens,
        ledger.usd_micros,
        ledger.replans,
        run.started_at,
        run.updated_at,
        run.finished_at,
        run.parent.run_id if run.parent else None,
        run.seq,
    )


def step_row(run: Run, step_id: str) -> tuple[Any, ...]:
    state = run.state(step_id)
    error = state.result.error if state.result else None
    return (
        run.run_id,
        step_id,
        state.revision,
        state.step.operation,
        state.status.value,
        state.attempts,
        error.code.value if error else None,
        state.started_at,
        state.ended_at,
    )
