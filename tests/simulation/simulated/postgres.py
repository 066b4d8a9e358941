"""The database: tables with the semantics of the statements that the services send, one after the other.

A statement is recognised by its text in the services' .sql files. Each is atomic, as under
one lock; other connections do not see what is between two statements of a transaction. Not simulated: weaker
isolation, types, and constraints other than keys.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar

import asyncpg
import orjson

from triptych.executor.events import from_lines
from triptych.kernel.kafka import dead_letters
from triptych.kernel.postgres.database import Queries

FENCED = "TR001"
COMMIT = "commit"
PARTITION_COLUMN, STATUS_COLUMN, FINISHED_COLUMN, SEQ_COLUMN = 6, 7, 18, 20
ACTIVE = frozenset({"planning", "running", "reviewing", "undoing"})


def _row_type(*names: str) -> type:
    places = {name: place for place, name in enumerate(names)}

    class Row(tuple):
        """A row as asyncpg gives it: by name and by position."""

        __slots__ = ()

        def __getitem__(self, key: Any) -> Any:
            return tuple.__getitem__(self, places[key] if key.__class__ is str else key)

        def keys(self) -> tuple[str, ...]:
            return names

    return Row


_Task = _row_type("tenant", "task_id", "fingerprint")
_Epoch = _row_type("partition", "epoch")
_Claimed = _row_type("partition", "epoch", "offsets")
_JournalCommit = _row_type("run_id", "at", "events")
_OutboxRow = _row_type("partition", "epoch", "number", "messages", "withheld")
_RunId = _row_type("run_id")
_Holder = _row_type("run_id", "step", "idempotency_key", "claim", "is_expired", "lasts")
_Timer = _row_type("run_id", "due_at", "partition")
_Definition = _row_type("definition")
_Line = _row_type("run_id", "partition", "tenant", "playbook")
_Waiting = _row_type("partition", "tenant", "playbook", "queued_at", "run_id")
_Reading = _row_type("topic", "partition", "first", "last", "life", "lives")
_Taken = _row_type(
    "run_id",
    "request_id",
    "tenant",
    "partition",
    "request",
    "traceparent",
    "answer",
    "deliveries",
    "was_started",
    "was_parked",
)
_TakenIn = _row_type("run_id", "request_id", "fresh", "answer")
_Withdrawn = _row_type("run_id", "request_id", "answer", "fresh")
_Key = _row_type("run_id", "request_id")
_Answer = _row_type("run_id", "request_id", "answer")
_Unpublished = _row_type("stored_by", "number", "run_id", "request_id", "tenant", "partition", "traceparent", "answer")
_Value = _row_type("value")
_DeadLetter = _row_type(*(field.name for field in dataclasses.fields(dead_letters.DeadRecord)))
_Entry = _row_type("ours", "attempts", "state", "operation", "arguments_hash", "result", "may_be_lost")
_Expected = _row_type("token", "result")
_Expecting = _row_type("operation", "result", "request", "traceparent")

Clock = Callable[[], datetime]


class Schema:
    """Tables of one service, and who holds them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.restored_at_ms = 0
        self.transaction: Transaction | None = None
        self.readings_: dict[tuple[int, str], tuple[Any, ...]] = {}
        self.dead_letters: dict[str, tuple[Any, ...]] = {}
        self.waiting: list[Callable[[], None]] = []

    def snapshot(self) -> dict[str, Any]:
        """Copy the tables for a transaction that may have to be rolled back."""
        raise NotImplementedError

    def release(self) -> None:
        self.transaction = None
        waiting, self.waiting = self.waiting, []
        for go_on in waiting:
            go_on()

    def reading(self, *columns: Any) -> list[Any]:
        *rows, life = columns
        noted = []
        for topic, partition, first, last in zip(*rows, strict=True):
            known = self.readings_.get((partition, topic))
            is_same = known is not None and known[2:4] == (first, last)
            lives = known[5] + (known[4] != life) if is_same else 1
            self.readings_[partition, topic] = (topic, partition, first, last, life, lives)
            noted.append(_Reading(self.readings_[partition, topic]))
        return noted

    def bury(self, rows: Iterable[Any]) -> None:
        """Keep dead letters. One that is there already is left as it is."""
        for row in rows:
            self.dead_letters.setdefault(row[0], row)

    def ping(self) -> list[Any]:
        return [_Value((1,))]


_OF_EVERY_SCHEMA = {"select 1": "ping", COMMIT: COMMIT}


class ExecutorTables(Schema):
    """The executor's schema."""

    statements: ClassVar[dict[str, str]] = {
        **{
            sql: {"commit": "commit_batch", "waiting": "first_in_line"}.get(name, name)
            for name, sql in Queries.load("triptych.executor", "executor.sql").items()
        },
        **_OF_EVERY_SCHEMA,
    }

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.partitions: dict[int, list[Any]] = {}
        """Epoch, owner, cluster, offsets and the ids of their topics."""
        self.playbooks_: dict[tuple[str, str], str] = {}
        self.tasks: dict[tuple[str, str], Any] = {}
        self.fingerprints: dict[tuple[str, str], bytes | None] = {}
        self.journal: dict[Any, dict[int, tuple[datetime, str]]] = {}
        """Time and events of each commit of a run, by the number of its first event."""
        self.runs: dict[Any, tuple[Any, ...]] = {}
        self.steps: dict[tuple[Any, str], tuple[Any, ...]] = {}
        self.outbox: dict[tuple[int, int, int], tuple[bytes, list[Any]]] = {}
        """Messages, and whose are withheld, by partition, epoch and number of the commit."""
        self.timers_: dict[Any, tuple[int, datetime]] = {}
        self.queue: dict[Any, tuple[Any, ...]] = {}
        self.business_keys: dict[tuple[str, str], list[Any]] = {}
        """Run, step, idempotency key, claim, grant and end, by tenant and key."""

    def deploy_playbook(self, name: str, version: str, definition: str) -> list[Any]:
        self.playbooks_.setdefault((name, version), definition)
        return []

    def playbooks(self) -> list[Any]:
        return [_Definition((definition,)) for definition in self.playbooks_.values()]

    def claim(self, wanted: Sequence[int], owner: str, cluster_id: str, topic_ids: str) -> list[Any]:
        rows, ids = [], orjson.loads(topic_ids)
        for partition in sorted(wanted):
            held = self.partitions.setdefault(partition, [0, owner, cluster_id, {}, {}])
            held[0] += 1
            if held[2] != cluster_id:
                held[3], held[4] = {}, {}
            anew = {topic for topic in held[4].keys() & ids.keys() if held[4][topic] != ids[topic]}
            held[3] = {topic: offset for topic, offset in held[3].items() if topic not in anew}
            held[1], held[2], held[4] = owner, cluster_id, held[4] | ids
            rows.append(_Claimed((partition, held[0], orjson.dumps(held[3]).decode())))
        return rows

    def epochs(self, wanted: Sequence[int]) -> list[Any]:
        return [_Epoch((number, self.partitions[number][0])) for number in sorted(wanted) if number in self.partitions]

    def load(self, run_ids: Sequence[Any]) -> list[Any]:
        return [
            _JournalCommit((run_id, *commit))
            for run_id in sorted(run_ids)
            for _, commit in sorted(self.journal.get(run_id, {}).items())
        ]

    def events(self, run_id: Any) -> list[tuple[int, str, datetime, str]]:
        """Return the events of a run one by one, as the view `journal` does: number, type, time, fields."""
        return [
            (first + place, kind, at, data)
            for first, (at, lines) in sorted(self.journal.get(run_id, {}).items())
            for place, (kind, data) in enumerate(from_lines(lines))
        ]

    def readings(self, partitions: Sequence[int]) -> list[Any]:
        return [_Reading(row) for (partition, _), row in self.readings_.items() if partition in partitions]

    def known(self, tenants: Sequence[str], task_ids: Sequence[str]) -> list[Any]:
        keys = [key for key in zip(tenants, task_ids, strict=True) if key in self.tasks]
        return [_Task((*key, self.fingerprints[key])) for key in keys]

    def ended(self, tenants: Sequence[str], task_ids: Sequence[str]) -> list[Any]:
        run_ids = {run_id for key in zip(tenants, task_ids, strict=True) if (run_id := self.tasks.get(key))}
        return self.load([run_id for run_id in run_ids if self.runs[run_id][FINISHED_COLUMN] is not None])

    def left_behind(self, partitions: Sequence[int]) -> list[Any]:
        return [_OutboxRow((*key, *row)) for key, row in sorted(self.outbox.items()) if key[0] in partitions]

    def timers(self, partitions: Sequence[int]) -> list[Any]:
        return [
            _Timer((run_id, due, partition))
            for run_id, (partition, due) in self.timers_.items()
            if partition in partitions
        ]

    def snapshot(self) -> dict[str, Any]:
        return {
            "partitions": {partition: list(held) for partition, held in self.partitions.items()},
            "tasks": dict(self.tasks),
            "fingerprints": dict(self.fingerprints),
            "journal": {run_id: dict(events) for run_id, events in self.journal.items()},
            "runs": dict(self.runs),
            "steps": dict(self.steps),
            "outbox": dict(self.outbox),
            "timers_": dict(self.timers_),
            "queue": dict(self.queue),
            "dead_letters": dict(self.dead_letters),
        }

    def active(self, partitions: Sequence[int]) -> list[Any]:
        return [
            _Line((run_id, run[PARTITION_COLUMN], run[1], run[4]))
            for run_id, (partition, _) in self.timers_.items()
            if partition in partitions and (run := self.runs[run_id])[STATUS_COLUMN] in ACTIVE
        ]

    def behind(self, partitions: Sequence[int]) -> list[Any]:
        return [
            _RunId((run_id,))
            for run_id, (partition, _) in self.timers_.items()
            if partition in partitions and self.runs[run_id][SEQ_COLUMN] < max(self.journal[run_id])
        ]

    def _in_line(self, is_wanted: Callable[[tuple[Any, ...]], bool], limit: int) -> list[Any]:
        lines: dict[tuple[Any, ...], int] = {}
        rows = []
        for run_id, partition, tenant, playbook, since in sorted(self.queue.values(), key=lambda row: (row[4], row[0])):
            line = (partition, tenant, playbook)
            lines[line] = lines.get(line, 0) + 1
            if is_wanted(line) and lines[line] <= limit:
                rows.append(_Waiting((*line, since, run_id)))
        return rows

    def first_in_line(self, partitions: Sequence[int], limit: int) -> list[Any]:
        return self._in_line(lambda line: line[0] in partitions, limit)

    def heads(self, partitions: Any, tenants: Any, playbooks: Any, limit: int) -> list[Any]:
        wanted = set(zip(partitions, tenants, playbooks, strict=True))
        return self._in_line(lambda line: line in wanted, limit)

    def enqueue(self, rows: Sequence[Any]) -> list[Any]:
        self.queue.update({row[0]: row for row in rows})
        return []

    def dequeue(self, run_ids: Sequence[Any]) -> list[Any]:
        for run_id in run_ids:
            self.queue.pop(run_id, None)
        return []

    def forget(self, published: Sequence[Any]) -> list[Any]:
        for key in published:
            self.outbox.pop(tuple(key), None)
        return []

    def reserve_key(  # noqa: PLR0917
        self, tenant: str, key: str, run_id: Any, step: str, call_key: str, for_ms: int
    ) -> list[Any]:
        known = self.business_keys.get((tenant, key))
        if known is None:
            self.business_keys[tenant, key] = [run_id, step, call_key, 1, *self._time_of_key(for_ms)]
        elif (known[0], known[2]) == (run_id, call_key):
            known[3:] = [known[3] + 1, *self._time_of_key(for_ms)]
        else:
            return []
        return [_Value((True,))]

    def key_holder(self, tenant: str, key: str) -> list[Any]:
        known = self.business_keys.get((tenant, key))
        if known is None:
            return []
        *call, reserved_at, expires_at = known
        return [_Holder((*call, expires_at <= self._clock(), expires_at - reserved_at))]

    def is_over(self, answered_at: datetime, lasts: timedelta) -> list[Any]:
        return [_Value((answered_at + lasts <= self._clock(),))]

    def take_key(  # noqa: PLR0917
        self, tenant: str, key: str, run_id: Any, step: str, call_key: str, for_ms: int, claim: int
    ) -> list[Any]:
        known = self.business_keys.get((tenant, key))
        if known is None or known[3] != claim:
            return []
        self.business_keys[tenant, key] = [run_id, step, call_key, claim + 1, *self._time_of_key(for_ms)]
        return [_Value((True,))]

    def _time_of_key(self, for_ms: int) -> tuple[datetime, datetime]:
        now = self._clock()
        return now, now + timedelta(milliseconds=for_ms)

    def owns(self, partition: int, epoch: int) -> bool:
        held = self.partitions.get(partition)
        return held is not None and held[0] == epoch

    def commit_batch(  # noqa: C901, PLR0912, PLR0917 - as the function that it stands for
        self,
        owned: Sequence[Any],
        new_tasks: Sequence[Any],
        new_journal: Sequence[Any],
        new_runs: Sequence[Any],
        new_steps: Sequence[Any],
        new_outbox: Sequence[Any],
        published: Sequence[Any],
        new_timers: Sequence[Any],
        done_timers: Sequence[Any],
        new_dead_letters: Sequence[Any],
    ) -> list[Any]:
        if not all(self.owns(partition, epoch) for partition, epoch, _ in owned):
            error = asyncpg.RaiseError("another owner has claimed a partition of this batch")
            error.sqlstate = FENCED
            raise error
        duplicates: list[Any] = []
        admitted: dict[tuple[str, str], Any] = {}
        noted: dict[tuple[str, str], bytes | None] = {}
        for tenant, task_id, run_id, fingerprint in new_tasks:
            if (tenant, task_id) in self.tasks or (tenant, task_id) in admitted:
                duplicates.append(run_id)
            else:
                admitted[tenant, task_id], noted[tenant, task_id] = run_id, fingerprint
        journal = [row for row in new_journal if row[0] not in duplicates]
        if any(row[1] in self.journal.get(row[0], ()) for row in journal):
            raise asyncpg.UniqueViolationError("journal_pkey")
        if any(row[:3] in self.outbox for row in new_outbox):
            raise asyncpg.UniqueViolationError("outbox_pkey")
        for partition, _, offsets in owned:
            held = self.partitions[partition]
            held[3] = {**held[3], **orjson.loads(offsets)}
        self.tasks.update(admitted)
        self.fingerprints.update(noted)
        for run_id, seq, at, events in journal:
            self.journal.setdefault(run_id, {})[seq] = (at, events)
        for row in new_runs:
            if row[0] not in duplicates:
                self.runs[row[0]] = row
        self.steps.update({(row[0], row[1]): row for row in new_steps if row[0] not in duplicates})
        for *key, _, messages, _ in new_outbox:
            self.outbox[tuple(key)] = (messages, duplicates)
        self.forget(published)
        for run_id, partition, due_at in new_timers:
            if run_id not in duplicates:
                home, _ = self.timers_.get(run_id, (partition, due_at))
                self.timers_[run_id] = (home, due_at)
        for run_id in done_timers:
            self.timers_.pop(run_id, None)
        self.bury(new_dead_letters)
        return [_Value((duplicates,))]


class Job:
    """A row of `jobs`."""

    __slots__ = (
        "answer",
        "answered_at",
        "deadline_at",
        "deliveries",
        "key",
        "lease",
        "partition",
        "request",
        "started_at",
        "state",
        "tenant",
        "traceparent",
    )

    def __init__(  # noqa: PLR0917
        self,
        key: Any,
        tenant: str,
        partition: int,
        request: bytes | None,
        traceparent: str | None,
        deadline_at: datetime,
        lease: int,
    ) -> None:
        self.key, self.tenant, self.partition, self.request = key, tenant, partition, request
        self.traceparent, self.deadline_at = traceparent, deadline_at
        self.lease: int | None = lease
        self.state, self.deliveries, self.answer, self.started_at = "received", 1, None, None
        self.answered_at: datetime | None = None

    def __copy__(self) -> Job:
        """Made by hand, since a transaction copies all jobs: `copy` alone takes several times as long."""
        job = Job(self.key, self.tenant, self.partition, self.request, self.traceparent, self.deadline_at, 0)
        job.lease, job.state, job.deliveries = self.lease, self.state, self.deliveries
        job.answer, job.started_at, job.answered_at = self.answer, self.started_at, self.answered_at
        return job

    def takes(self, lease: int, answer: bytes) -> bool:
        """Tell whether this lease allows this answer."""
        return self.lease == lease and self.answer in {None, answer}

    def answered(self, answer: bytes, at: datetime) -> None:
        """Store its answer, which a row in the outbox stands for."""
        self.state, self.answer, self.answered_at = "published", answer, at

    def row(self) -> Any:
        return _Taken(
            (
                *self.key,
                self.tenant,
                self.partition,
                self.request,
                self.traceparent,
                self.answer,
                self.deliveries,
                self.started_at is not None,
                self.state == "parked",
            )
        )


class AnswerCommit:
    """A row of the `outbox` of a worker."""

    __slots__ = ("lease", "run_ids", "stored_at")

    def __init__(self, lease: int, stored_at: datetime, run_ids: list[Any]) -> None:
        self.lease, self.stored_at, self.run_ids = lease, stored_at, run_ids


class Callback:
    """A row of `callbacks`."""

    __slots__ = ("failed", "operation", "request_id", "result", "token")

    def __init__(self, request_id: str, operation: str, token: str) -> None:
        self.request_id, self.operation, self.token = request_id, operation, token
        self.result: bytes | None = None
        self.failed = False


class WorkerTables(Schema):
    """The schema of one worker service: leases, jobs, and a tool's effects and callbacks."""

    statements: ClassVar[dict[str, str]] = {
        **{sql: name for name, sql in Queries.load("triptych.kernel.worker", "worker.sql").items()},
        **{sql: f"effects_{name}" for name, sql in Queries.load("triptych.tools.runtime", "effect_ledger.sql").items()},
        **{sql: f"callbacks_{name}" for name, sql in Queries.load("triptych.tools.runtime", "callbacks.sql").items()},
        dead_letters._STORE: "store_dead_letters",
        dead_letters._UNPUBLISHED: "unpublished_dead_letters",
        dead_letters._MARK_PUBLISHED: "mark_dead_letters_published",
        **_OF_EVERY_SCHEMA,
    }

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.next_lease = 1
        self.leases: dict[int, tuple[str, datetime]] = {}
        self.jobs: dict[Any, Job] = {}
        self.outbox: dict[tuple[int, int], AnswerCommit] = {}
        """By lease and number."""
        self.effects: dict[Any, list[Any]] = {}
        """State, attempts, operation, arguments_hash, request_id and result."""
        self.callbacks: dict[Any, Callback] = {}
        """By run and idempotency key."""
        self.heard: dict[bytes, str] = {}
        """Tokens by the digest of the message that counted there."""
        self.published_dead_letters: set[str] = set()

    def snapshot(self) -> dict[str, Any]:
        return {
            "jobs": {key: job.__copy__() for key, job in self.jobs.items()},
            "outbox": {key: copy.copy(commit) for key, commit in self.outbox.items()},
            "effects": {key: list(effect) for key, effect in self.effects.items()},
            "callbacks": {key: copy.copy(callback) for key, callback in self.callbacks.items()},
            "heard": dict(self.heard),
            "dead_letters": dict(self.dead_letters),
            "published_dead_letters": set(self.published_dead_letters),
        }

    def readings(self, topic: str, partitions: Sequence[int]) -> list[Any]:
        return [
            _Reading(row)
            for (partition, named), row in self.readings_.items()
            if named == topic and partition in partitions
        ]

    def open_lease(self, instance: str, lease_ms: int) -> list[Any]:
        self.leases = {number: held for number, held in self.leases.items() if held[0] != instance}
        lease, self.next_lease = self.next_lease, self.next_lease + 1
        self.leases[lease] = (instance, self._clock() + timedelta(milliseconds=lease_ms))
        return [_Value((lease,))]

    def renew_lease(self, lease: int, lease_ms: int) -> list[Any]:
        if lease not in self.leases:
            return []
        self.leases[lease] = (self.leases[lease][0], self._clock() + timedelta(milliseconds=lease_ms))
        return [_Value((True,))]

    def close_lease(self, lease: int) -> list[Any]:
        for job in self.jobs.values():
            if job.lease == lease and job.state != "published":
                job.lease = None
                job.state = "received" if job.state == "started" else job.state
        self.leases.pop(lease, None)
        return []

    def take_in(self, lease: int, *columns: Sequence[Any]) -> list[Any]:
        rows = []
        for run_id, request_id, *columns_of_job in zip(*columns, strict=True):
            key = (run_id, request_id)
            known = self.jobs.get(key)
            if known is None:
                self.jobs[key] = Job(key, *columns_of_job, lease)
                rows.append(_TakenIn((*key, True, None)))
            elif known.answer is not None:
                rows.append(_TakenIn((*key, False, known.answer)))
        return rows

    def take_over(self, lease: int, limit: int) -> list[Any]:
        now = self._clock()
        free = [
            job
            for job in self.jobs.values()
            if job.state != "published"
            and (job.state != "parked" or job.deadline_at <= now)
            and not (job.lease in self.leases and self.leases[job.lease][1] >= now)
        ]
        for job in free[:limit]:
            is_first = job.state == "received" and job.deliveries == 1 and job.lease is not None
            job.deliveries += job.state == "started" or is_first
            job.state = "received" if job.state == "started" else job.state
            job.lease = lease
        return [job.row() for job in free[:limit]]

    def reclaim(self, lease: int, run_ids: Sequence[Any], request_ids: Sequence[str]) -> list[Any]:
        held = set(zip(run_ids, request_ids, strict=True))
        return [
            job.row()
            for job in self.jobs.values()
            if job.lease == lease and job.state != "published" and job.key not in held
        ]

    def take_over_answers(self, lease: int, stored_by: Sequence[int], numbers: Sequence[int]) -> list[Any]:
        now, known = self._clock(), set(zip(stored_by, numbers, strict=True))
        for key in sorted(self.outbox.keys() - known):
            commit = self.outbox[key]
            if commit.lease != lease and commit.lease in self.leases and self.leases[commit.lease][1] >= now:
                continue
            commit.lease = lease
            rows = [
                _Unpublished((*key, *job.key, job.tenant, job.partition, job.traceparent, job.answer))
                for job in self.jobs.values()
                if (job.lease, job.answered_at) == (key[0], commit.stored_at) and job.key[0] in commit.run_ids
            ]
            return rows or [_Unpublished((*key, *[None] * 6))]
        return []

    def start(self, lease: int, run_id: Any, request_id: str) -> list[Any]:
        job = self.jobs.get((run_id, request_id))
        if job is None or job.lease != lease or job.state not in {"received", "started"}:
            return []
        job.state, job.started_at = "started", job.started_at or self._clock()
        return [_Value((True,))]

    def settle(  # noqa: PLR0917
        self, lease: int, run_ids: Any, request_ids: Any, answers: Any, p_runs: Any, p_requests: Any, *rest: Any
    ) -> list[Any]:
        *unpersisted, stored_by, numbers, number = rest
        now = self._clock()
        # All parts of the statement see the table as it was before it.
        done = [
            job
            for key in zip(p_runs, p_requests, strict=True)
            if (job := self.jobs.get(key)) and job.state == "answered"
        ]
        accepted = [
            (job, answer)
            for *key, answer in zip(run_ids, request_ids, answers, strict=True)
            if (job := self.jobs.get(tuple(key))) and job.takes(lease, answer)
        ]
        recorded, answered = [], [job.key[0] for job, _ in accepted]
        for run_id, request_id, *columns, answer in zip(*unpersisted, strict=True):
            key = (run_id, request_id)
            known = self.jobs.get(key)
            if known is None:
                known = self.jobs[key] = Job(key, *columns, lease)
            elif answer is None or not known.takes(lease, answer):
                continue
            recorded.append(known.key)
            if answer is not None:
                known.answered(answer, now)
                answered.append(run_id)
        for job in done:
            job.state = "published"
        for job, answer in accepted:
            job.answered(answer, now)
        for key in zip(stored_by, numbers, strict=True):
            self.outbox.pop(key, None)
        if answered:
            self.outbox[lease, number] = AnswerCommit(lease, now, answered)
        return [_Key(key) for key in (*recorded, *(job.key for job, _ in accepted))]

    def withdraw(self, lease: int, *columns: Sequence[Any]) -> list[Any]:
        rows = []
        for run_id, request_id, tenant, partition, traceparent, deadline_at, answer in zip(*columns, strict=True):
            key = (run_id, request_id)
            known = self.jobs.get(key)
            if known is None:
                known = self.jobs[key] = Job(key, tenant, partition, None, traceparent, deadline_at, lease)
            elif known.answer is not None:
                rows.append(_Withdrawn((*key, known.answer, False)))
                continue
            elif known.state != "received" or known.started_at is not None:
                continue
            known.state, known.answer, known.lease, known.answered_at = "answered", answer, lease, self._clock()
            rows.append(_Withdrawn((*key, answer, True)))
        return rows

    def stored_answers(self, run_ids: Any, request_ids: Any) -> list[Any]:
        found = [self.jobs.get(key) for key in zip(run_ids, request_ids, strict=True)]
        return [_Answer((*job.key, job.answer)) for job in found if job is not None and job.answer is not None]

    def effects_begin(  # noqa: PLR0917
        self,
        run_id: Any,
        request_id: str,
        lease: int,
        key: str,
        tenant: str,
        operation: str,
        arguments_hash: str,
        began_at_ms: int,
    ) -> list[Any]:
        ours = bool(self.start(lease, run_id, request_id))
        known = self.effects.get((run_id, key))
        before = (None, None, None, None) if known is None else (known[0], known[2], known[3], known[5])
        attempts = None
        if ours and known is None:
            attempts = 1
            self.effects[run_id, key] = ["started", 1, operation, arguments_hash, request_id, None]
        elif (
            ours and known is not None and known[0] != "receipt" and (known[2], known[3]) == (operation, arguments_hash)
        ):
            attempts = known[1] = 1 if known[0] == "refused" else known[1] + 1
            known[0], known[4] = "started", request_id
        return [_Entry((ours, attempts, *before, began_at_ms < self.restored_at_ms))]

    def effects_settle(self, run_ids: Any, keys: Any, request_ids: Any, results: Any) -> list[Any]:
        for run_id, key, request_id, result in zip(run_ids, keys, request_ids, results, strict=True):
            effect = self.effects.get((run_id, key))
            if effect is None or effect[0] != "started":
                continue
            if result is not None or (effect[1] == 1 and effect[4] == request_id):
                effect[0], effect[5] = ("refused" if result is None else "receipt"), result
        return []

    def callbacks_register(  # noqa: PLR0917
        self, run_id: Any, request_id: str, lease: int, key: str, _tenant: str, operation: str, token: str
    ) -> list[Any]:
        if not self.start(lease, run_id, request_id):
            return []
        known = self.callbacks.setdefault((run_id, key), Callback(request_id, operation, token))
        known.request_id = request_id
        if known.failed:
            known.token, known.result, known.failed = token, None, False
        return [_Expected((known.token, known.result))]

    def callbacks_lock(self, run_id: Any, key: str) -> list[Any]:
        known = self.callbacks.get((run_id, key))
        return [] if known is None else [_Value((known.result,))]

    def callbacks_park(self, run_id: Any, request_id: str, lease: int, timeout_ms: int) -> list[Any]:
        job = self.jobs.get((run_id, request_id))
        if job is None or job.lease != lease or job.state not in {"received", "started"}:
            return []
        job.state, job.lease = "parked", None
        job.deadline_at = min(job.deadline_at, self._clock() + timedelta(milliseconds=timeout_ms))
        return [_Value((True,))]

    def callbacks_find(self, token: str) -> list[Any]:
        for (run_id, _), known in self.callbacks.items():
            job = self.jobs.get((run_id, known.request_id))
            if known.token == token and job is not None:
                return [_Expecting((known.operation, known.result, job.request, job.traceparent))]
        return []

    def callbacks_hear(self, digest: bytes, token: str) -> list[Any]:
        return [_Value((self.heard.setdefault(digest, token) == token,))]

    def give_away(self, topic: str, partitions: Sequence[int], life: str) -> list[Any]:
        for partition in partitions:
            row = self.readings_.get((partition, topic))
            if row is not None and row[4] == life:
                self.readings_[partition, topic] = (*row[:4], "", row[5] - 1)
        return []

    def store_dead_letters(self, *columns: Sequence[Any]) -> list[Any]:
        self.bury(zip(*columns, strict=True))
        return []

    def unpublished_dead_letters(self, limit: int) -> list[Any]:
        left = sorted(self.dead_letters.keys() - self.published_dead_letters)
        return [_DeadLetter(self.dead_letters[key]) for key in left[:limit]]

    def mark_dead_letters_published(self, keys: Sequence[str]) -> list[Any]:
        self.published_dead_letters.update(self.dead_letters.keys() & set(keys))
        return []

    def callbacks_say(self, token: str, result: bytes, failed: bool) -> list[Any]:  # noqa: FBT001 - as in the statement
        for known in self.callbacks.values():
            if known.token == token:
                known.result, known.failed = result, failed
        return []

    def callbacks_answer(self, run_id: Any, request_id: str, lease: int, answer: bytes) -> list[Any]:
        job = self.jobs.get((run_id, request_id))
        if job is None or job.state != "parked" or job.lease is not None:
            return []
        job.state, job.answer, job.lease, job.answered_at = "answered", answer, lease, self._clock()
        return [_Value((True,))]


class UnknownStatementError(Exception):
    """A service has a statement that the simulated tables do not know."""

    def __init__(self, sql: str) -> None:
        super().__init__(f"the simulated tables know no such statement; add it to simulated/postgres.py:\n{sql}")


def lost(why: str) -> Exception:
    """Make the error that asyncpg raises when the connection is gone."""
    return asyncpg.ConnectionDoesNotExistError(why)


class Pool:
    """A process's connections to its schema."""

    def __init__(self, process: Any, tables: Any) -> None:
        self._process, self._tables = process, tables

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        if sql is dead_letters._UNPUBLISHED and not self._tables.dead_letters:  # a round trip is saved
            return []
        return await self._process.world.statement(self._process, self._tables, sql, args)

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: Any) -> Any:
        rows = await self.fetch(sql, *args)
        return rows[0][0] if rows else None

    async def execute(self, sql: str, *args: Any) -> None:
        await self.fetch(sql, *args)

    def acquire(self) -> _Acquired:
        return _Acquired(self._process, self._tables)


class _Acquired:
    """One connection, with one transaction at most."""

    def __init__(self, process: Any, tables: Any) -> None:
        self._process, self._tables = process, tables
        self._transaction: Transaction | None = None

    async def __aenter__(self) -> _Acquired:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        return None

    def transaction(self) -> Transaction:
        self._transaction = Transaction(self._process, self._tables)
        return self._transaction

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        return await self._process.world.statement(self._process, self._tables, sql, args, self._transaction)

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: Any) -> Any:
        rows = await self.fetch(sql, *args)
        return rows[0][0] if rows else None

    async def execute(self, sql: str, *args: Any) -> None:
        await self.fetch(sql, *args)


class Transaction:
    """From its first statement on it holds all tables of its schema, as if it had locked every row that matters."""

    def __init__(self, process: Any, tables: Any) -> None:
        self.process, self._tables = process, tables
        self._before: Any = None
        self.answers: list[bytes] = []
        """Return those that it has stored and others cannot see yet."""
        self.is_over = False
        """Rolled back, also if a statement of it is still on its way: the server rolls back behind that one."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        if kind is None:
            await self.process.world.statement(self.process, self._tables, COMMIT, (), self)
        else:
            self.roll_back()

    def begin(self) -> None:
        self._tables.transaction = self
        self._before = self._tables.snapshot()

    def commit(self) -> None:
        if self._tables.transaction is self:
            self._tables.release()

    def roll_back(self) -> None:
        self.is_over = True
        if self._tables.transaction is self:
            vars(self._tables).update(self._before)
            self._tables.release()


def name_of(tables: Any, sql: str) -> str:
    """Find the method of the tables that simulates a statement."""
    try:
        name: str = tables.statements[sql]
    except KeyError:
        raise UnknownStatementError(sql) from None
    return name


def apply(tables: Any, name: str, args: tuple[Any, ...], transaction: Transaction | None) -> list[Any]:
    """Let one statement take effect."""
    if transaction is not None:
        if name == COMMIT:
            transaction.commit()
            return []
        if tables.transaction is not transaction:
            transaction.begin()
    rows: list[Any] = getattr(tables, name)(*args)
    return rows
