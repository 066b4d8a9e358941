"""The simulated tables answer as Postgres does: the same statements, in the same random order, on both."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from simulated.postgres import ExecutorTables, WorkerTables

import triptych.executor
import triptych.kernel
import triptych.tools
from triptych.executor.machine import begin, decide
from triptych.executor.projections import Unshown
from triptych.executor.store import _rows
from triptych.kernel.decider import Batch, Submission, TaskKey
from triptych.kernel.kafka.bus import Outgoing
from triptych.kernel.postgres import database as db
from triptych.kernel.postgres.outbox import MessageKey, OutboxKey, OutboxMessage
from triptych.schemas import Control, ControlAction, Playbook, Task

STATEMENTS = 300
EXECUTOR = Path(triptych.executor.__file__).with_name("migrations")
WORKER = (
    Path(triptych.kernel.__path__[0]) / "migrations" / "worker",
    Path(triptych.tools.__file__).with_name("migrations") / "tool",
)
RUNS = [UUID(int=number) for number in range(3)]
PLAYBOOK = Playbook.model_validate_json(
    b'{"name": "p", "goal": "g", "input": {}, "tools": ["echo.*"],'
    b' "plan": {"pattern": "fixed", "steps": [{"id": "a", "operation": "echo.echo"}]}}'
)


def ticking() -> Any:
    """Return a clock that moves each time it is read."""
    ticks = count()
    return lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(milliseconds=next(ticks))


def plain(rows: Any) -> list[tuple[Any, ...]]:
    """Rows in an order of their own, with JSON read."""
    return sorted((tuple(_read(value) for value in row) for row in rows), key=repr)


def _read(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in {"{", "["}:
        return orjson.dumps(orjson.loads(value), option=orjson.OPT_SORT_KEYS)
    return sorted(value) if isinstance(value, list) else value


class Both:
    """One schema on Postgres, and the tables that stand for it."""

    def __init__(self, pool: asyncpg.Pool, tables: Any) -> None:
        self.pool, self.tables = pool, tables
        self.sql = {name: sql for sql, name in tables.statements.items()}

    async def say(self, name: str, *args: Any) -> list[Any] | str:
        """Say it to both and compare; the simulated rows, or the code of the error that both gave."""
        try:
            real: Any = plain(await self.pool.fetch(self.sql[name], *args))
        except asyncpg.PostgresError as error:
            real = error.sqlstate
        try:
            rows = getattr(self.tables, name)(*args)
            simulated: Any = plain(rows)
        except asyncpg.PostgresError as error:
            rows = simulated = error.sqlstate
        assert simulated == real, f"{name}{args}"
        return rows


@pytest.fixture(scope="module")
async def workers(database) -> AsyncIterator[Both]:
    dsn = database.prepare({"desk": WORKER}).services["desk"]
    async with await db.connect(dsn, "test") as pool:
        yield Both(pool, WorkerTables(ticking()))


@pytest.fixture(scope="module")
async def executors(database) -> AsyncIterator[Both]:
    dsn = database.prepare({"executor": (EXECUTOR,)}).services["executor"]
    async with await db.connect(dsn, "test") as pool:
        yield Both(pool, ExecutorTables(ticking()))


async def test_the_tables_of_a_worker_answer_as_postgres_does(workers):  # noqa: C901, PLR0915 - one arm a statement
    draw = random.Random(4)  # noqa: S311
    keys = [(run_id, f"r{number}") for run_id in RUNS for number in range(16)]
    deadline = datetime(2030, 1, 1, tzinfo=UTC)
    leases = [0]
    tokens, numbers = count(), count()

    def some() -> list[Any]:
        return draw.sample(keys, draw.randint(0, 3))

    async def open_lease() -> None:
        # A lease of no length is over when the next statement looks at it.
        life = draw.choice("abc"), draw.choice((0, 3_600_000))
        lease = await workers.pool.fetchval(workers.sql["open_lease"], *life)
        # Which number it is, is the clock's business: the tables give the same one.
        workers.tables.next_lease = lease
        assert workers.tables.open_lease(*life) == [(lease,)]
        leases.append(lease)

    async def take_in() -> None:
        columns = zip(*((*key, "acme", 1, b"{}", None, deadline) for key in some()), strict=True)
        await workers.say(
            "take_in", draw.choice(leases), *(map(list, columns) if (columns := list(columns)) else [[]] * 7)
        )

    async def settle() -> None:
        answered = some()
        published = [key for key in some() if key not in answered]
        unpersisted = [
            (
                *key,
                "acme",
                1,
                draw.choice((None, b"{}")),
                None,
                deadline,
                draw.choice((None, b"%d" % draw.randrange(100))),
            )
            for key in some()
            if key not in answered and key not in published
        ]
        # Mostly the lease that holds one of the jobs, which is rare enough otherwise.
        held = [job.lease for key in answered if (job := workers.tables.jobs.get(key)) and job.lease]
        await workers.say(
            "settle",
            draw.choice(held if held and draw.random() < 0.7 else leases),
            [run_id for run_id, _ in answered],
            [request_id for _, request_id in answered],
            [b"%d" % draw.randrange(100) for _ in answered],
            [run_id for run_id, _ in published],
            [request_id for _, request_id in published],
            *(map(list, zip(*unpersisted, strict=True)) if unpersisted else [[]] * 8),
            *commits(0.2),
            next(numbers),
        )

    def commits(share: float) -> tuple[list[int], list[int]]:
        """Draw some rows of the outbox."""
        drawn = [key for key in workers.tables.outbox if draw.random() < share]
        return [stored_by for stored_by, _ in drawn], [number for _, number in drawn]

    async def withdraw() -> None:
        columns = [(*key, "acme", 1, None, deadline, b"called off") for key in some()]
        await workers.say(
            "withdraw", draw.choice(leases), *(map(list, zip(*columns, strict=True)) if columns else [[]] * 7)
        )

    async def stored_answers() -> None:
        keys = some()
        await workers.say("stored_answers", [run_id for run_id, _ in keys], [request_id for _, request_id in keys])

    async def reclaim() -> None:
        held = some()
        await workers.say(
            "reclaim",
            draw.choice(leases),
            [run_id for run_id, _ in held],
            [request_id for _, request_id in held],
        )

    async def effects_begin() -> None:
        key = draw.choice("xyz")
        await workers.say(
            "effects_begin",
            *draw.choice(keys),
            draw.choice(leases),
            key,
            "acme",
            f"desk.{key}",
            draw.choice(("h", "h", "i")),
            draw.choice((0, 1_767_225_600_000)),
        )

    async def effects_settle() -> None:
        pairs = draw.sample([(run_id, key) for run_id in RUNS for key in "xyz"], draw.randint(0, 3))
        results = [draw.choice((None, b'{"status": "ok"}')) for _ in pairs]
        await workers.say(
            "effects_settle",
            [run_id for run_id, _ in pairs],
            [key for _, key in pairs],
            [draw.choice(keys)[1] for _ in pairs],
            results,
        )

    def in_hand() -> Any:
        """Draw a job and a lease; mostly the lease that holds it, which is rare enough otherwise."""
        held = [job for job in workers.tables.jobs.values() if job.lease and job.state in {"received", "started"}]
        if held and draw.random() < 0.7:
            job = draw.choice(held)
            return *job.key, job.lease
        return *draw.choice(keys), draw.choice(leases)

    async def callbacks_register() -> None:
        token = f"token-{next(tokens)}"
        await workers.say("callbacks_register", *in_hand(), draw.choice("xyz"), "acme", "desk.x", token)

    async def callbacks_park() -> None:
        await workers.say("callbacks_park", *in_hand(), draw.choice((0, 3_600_000)))

    async def callbacks_say() -> None:
        await workers.say("callbacks_say", token(), b"%d" % draw.randrange(100), draw.random() < 0.3)

    def parked() -> Any:
        """Mostly a job that waits for a callback, if there is one."""
        found = [job.key for job in workers.tables.jobs.values() if job.state == "parked"]
        return draw.choice(found if found and draw.random() < 0.7 else keys)

    def token() -> str:
        known = [callback.token for callback in workers.tables.callbacks.values()]
        return draw.choice(known or ["unknown"])

    def life() -> str:
        return draw.choice("xyz")

    async def store_dead_letters() -> None:
        name = f"dead-{draw.randrange(20)}"
        row = (name, "calls", 0, 1, b"key", b"value", "[]", "deadly_record", "it kills", "acme", deadline, None)
        await workers.say("store_dead_letters", *([column] for column in row))

    said = {
        "open": open_lease,
        "take_in": take_in,
        "take_over": lambda: workers.say("take_over", draw.choice(leases), 1_000),
        "reclaim": reclaim,
        "take_over_answers": lambda: workers.say("take_over_answers", draw.choice(leases), *commits(0.3)),
        "start": lambda: workers.say("start", draw.choice(leases), *draw.choice(keys)),
        "renew": lambda: workers.say("renew_lease", draw.choice(leases), draw.choice((0, 3_600_000))),
        "close": lambda: workers.say("close_lease", draw.choice(leases)),
        "settle": settle,
        "stored_answers": stored_answers,
        "withdraw": withdraw,
        "reading": lambda: workers.say("reading", ["calls"], [draw.randrange(2)], *[[draw.randrange(2)]] * 2, life()),
        "readings": lambda: workers.say("readings", "calls", [0, 1]),
        "give_away": lambda: workers.say("give_away", "calls", [0, 1], life()),
        "store_dead_letters": store_dead_letters,
        "unpublished_dead_letters": lambda: workers.say("unpublished_dead_letters", draw.randint(1, 3)),
        "mark_dead_letters_published": lambda: workers.say(
            "mark_dead_letters_published", [f"dead-{draw.randrange(20)}"]
        ),
        "begin": effects_begin,
        "settle_effects": effects_settle,
        "register": callbacks_register,
        "lock": lambda: workers.say("callbacks_lock", draw.choice(RUNS), draw.choice("xyz")),
        "park": callbacks_park,
        "find": lambda: workers.say("callbacks_find", token()),
        "hear": lambda: workers.say("callbacks_hear", draw.choice((b"1", b"2", b"3")), token()),
        "say": callbacks_say,
        "answer": lambda: workers.say("callbacks_answer", *parked(), draw.choice(leases), b"by a callback"),
    }
    for _ in range(2 * STATEMENTS):
        await draw.choice(list(said.values()))()
        jobs = await workers.pool.fetch(
            "select run_id, request_id, state, lease, deliveries, answer, started_at is not null from jobs"
        )
        assert plain(jobs) == plain(
            (*job.key, job.state, job.lease, job.deliveries, job.answer, job.started_at is not None)
            for job in workers.tables.jobs.values()
        )
        outbox = await workers.pool.fetch("select stored_by, number, lease, run_ids from outbox")
        assert plain(outbox) == plain(
            (*key, commit.lease, commit.run_ids) for key, commit in workers.tables.outbox.items()
        )
        callbacks = await workers.pool.fetch(
            "select run_id, idempotency_key, request_id, operation, token, result, failed from callbacks"
        )
        assert plain(callbacks) == plain(
            (*key, one.request_id, one.operation, one.token, one.result, one.failed)
            for key, one in workers.tables.callbacks.items()
        )
        effects = await workers.pool.fetch(
            "select run_id, idempotency_key, state, attempts, operation, arguments_hash, request_id, result from effects"
        )
        assert plain(effects) == plain((*key, *effect) for key, effect in workers.tables.effects.items())


async def test_the_tables_of_the_executor_answer_as_postgres_does(executors):  # noqa: C901, PLR0915 - one arm a statement
    draw = random.Random(4)  # noqa: S311
    runs: dict[UUID, Any] = {}
    numbers = count(1)

    async def claim() -> None:
        partitions = draw.sample(range(3), draw.randint(1, 3))
        ids = {f"t.{topic}": draw.choice("111112") for topic in draw.choice(("ab", "ab", "a", ""))}
        cluster = draw.choice(("k", "k", "k", "l"))
        await executors.say("claim", partitions, draw.choice("ab"), cluster, orjson.dumps(ids).decode())

    def signed(batch: Batch[Any]) -> Batch[Any]:
        """Draw a batch of this partition, mostly by its newest owner."""
        partition = draw.randrange(3)
        held = executors.tables.partitions.get(partition, [1])[0]
        batch.epochs = {partition: held - draw.choice((0, 0, 0, 1))}
        batch.offsets = {partition: {f"t.{draw.choice('ab')}": next(numbers)}}
        batch.number = draw.randrange(1_000)
        for run_id in batch.states:
            key = MessageKey(run_id, draw.randrange(1_000))
            sent = Outgoing("t.out", partition, b"k", [("ce_id", b"1")], b"{}")
            batch.outbox.append(OutboxMessage(key, partition, sent))
            batch.armed[run_id] = (partition, batch.at)
        batch.published = [
            OutboxKey(*key)
            for key in draw.sample(sorted(executors.tables.outbox), min(2, len(executors.tables.outbox)))
        ]
        batch.disarmed = set(draw.sample(sorted(runs), min(1, len(runs))))
        return batch

    def shown(batch: Batch[Any]) -> tuple[Batch[Any], list[Unshown]]:
        """Show some of the runs of a batch, and all that are new."""
        runs = [run for run_id, run in batch.states.items() if run_id in batch.created or draw.random() < 0.7]
        return batch, [Unshown(run, frozenset(), batch.at) for run in runs]

    async def commit(batch: Batch[Any]) -> None:
        rows = await executors.say("commit_batch", *_rows(*shown(signed(batch))))
        if not isinstance(rows, str):
            runs.update({run_id: run for run_id, run in batch.states.items() if run_id not in rows[0][0]})

    async def admit() -> None:
        batch: Batch[Any] = Batch()
        for _ in range(draw.randint(1, 2)):
            run_id, task_id = UUID(int=draw.getrandbits(100)), f"task-{draw.randrange(30)}"
            task = Task(playbook="p", task_id=task_id)
            begun = begin(task, task_id=task_id, run_id=run_id, playbook=PLAYBOOK, partition=0, now=batch.at)
            batch.created.append(run_id)
            if draw.random() < 0.8:  # child runs have none
                key = TaskKey(task.tenant, task_id)
                batch.submissions[run_id] = Submission(None, key, draw.choice((b"one", b"two")))
            batch.states[run_id] = begun.run
            batch.events.extend((run_id, seq, event) for seq, event in enumerate(begun.events, start=1))
        await commit(batch)

    async def cancel() -> None:
        if not runs:
            return
        batch: Batch[Any] = Batch()
        run = runs[draw.choice(sorted(runs))]
        command = Control(command_id=str(next(numbers)), run_id=run.run_id, action=ControlAction.CANCEL, principal="a")
        decided = decide(run, command, batch.at)
        # Now and then a batch comes twice, as after a commit whose outcome was unknown.
        seq = run.seq if draw.random() < 0.2 else run.seq + 1
        batch.states[run.run_id] = decided.run
        batch.events.extend((run.run_id, number, event) for number, event in enumerate(decided.events, start=seq))
        await commit(batch)

    def keys() -> list[Any]:
        return draw.sample(sorted(runs), min(2, len(runs)))

    def lines() -> tuple[list[int], list[str], list[str]]:
        chosen = sorted({(draw.randrange(3), draw.choice("ab"), draw.choice("pq")) for _ in range(3)})
        partitions, tenants, playbooks = zip(*chosen, strict=True)
        return list(partitions), list(tenants), list(playbooks)

    async def enqueue() -> None:
        since = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=draw.randrange(10))
        row = (UUID(int=draw.getrandbits(100)), draw.randrange(3), draw.choice("ab"), draw.choice("pq"), since)
        await executors.say("enqueue", [row])

    async def dequeue() -> None:
        queue = sorted(executors.tables.queue)
        await executors.say("dequeue", draw.sample(queue, min(1, len(queue))))

    def wanted() -> tuple[Any, ...]:
        """Draw a call that wants a business key, for no time or for a long time."""
        return *draw.choice([("a", "x"), ("a", "y"), ("b", "x")]), draw.choice(RUNS), "s", draw.choice("kl")

    async def take_key() -> None:
        claims = [known[3] for known in executors.tables.business_keys.values()]
        await executors.say("take_key", *wanted(), draw.choice((0, 3_600_000)), draw.choice(claims or [1]))

    said = {
        "reserve_key": lambda: executors.say("reserve_key", *wanted(), draw.choice((0, 3_600_000))),
        "key_holder": lambda: executors.say("key_holder", draw.choice("ab"), draw.choice("xy")),
        "is_over": lambda: executors.say(
            "is_over", datetime(draw.choice((2000, 2200)), 1, 1, tzinfo=UTC), timedelta(days=1)
        ),
        "take_key": take_key,
        "claim": claim,
        "epochs": lambda: executors.say("epochs", draw.sample(range(4), 2)),
        "enqueue": enqueue,
        "dequeue": dequeue,
        "active": lambda: executors.say("active", [draw.randrange(3)]),
        "first_in_line": lambda: executors.say("first_in_line", draw.sample(range(3), 2), draw.randint(1, 3)),
        "heads": lambda: executors.say("heads", *lines(), draw.randint(1, 3)),
        "admit": admit,
        "cancel": cancel,
        "load": lambda: executors.say("load", keys()),
        "known": lambda: executors.say("known", ["default"] * 3, draw.sample([f"task-{n}" for n in range(30)], 3)),
        "ended": lambda: executors.say("ended", ["default"] * 3, [f"task-{draw.randrange(30)}" for _ in range(3)]),
        "behind": lambda: executors.say("behind", draw.sample(range(3), 2)),
        "left_behind": lambda: executors.say("left_behind", [draw.randrange(3)]),
        "timers": lambda: executors.say("timers", [draw.randrange(3)]),
        "readings": lambda: executors.say("readings", [draw.randrange(3)]),
        "reading": lambda: executors.say(
            "reading", ["t.a", "t.b"], [draw.randrange(3)] * 2, *[[draw.randrange(2)] * 2] * 2, draw.choice("xy")
        ),
        "forget": lambda: executors.say(
            "forget", draw.sample(sorted(executors.tables.outbox), min(1, len(executors.tables.outbox)))
        ),
    }
    for _ in range(STATEMENTS):
        await draw.choice(list(said.values()))()
