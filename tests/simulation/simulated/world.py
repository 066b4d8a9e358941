"""A world: the processes of a stack, what they stand on, what goes wrong, and the clients outside."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from pydantic import SecretStr

from simulated import deadly, desk, postgres, workshop
from simulated.deadly import Deadly
from simulated.forger import Forger
from simulated.invariants import Watch, check
from simulated.kafka import Broker, Kafka, Membership
from simulated.loop import EPOCH, ProcessLoop, Scheduler
from simulated.renewal import Renewal, WatchedExecutor
from simulated.restore import Restore
from triptych.critic.__main__ import CONFIG as CRITIC
from triptych.critic.worker import Critic
from triptych.executor.deployments import Deployment
from triptych.executor.settings import ExecutorSettings
from triptych.executor.store import ExecutorStore
from triptych.kernel.decider import DeciderLoop, session
from triptych.kernel.kafka import cloudevents, dead_letters
from triptych.kernel.kafka.bus import Outgoing
from triptych.kernel.kafka.dead_letters import DeadRecord
from triptych.kernel.postgres.database import Queries
from triptych.kernel.process.outage import KAFKA_GONE, POSTGRES_GONE
from triptych.kernel.process.service import Service
from triptych.kernel.worker import WorkerConfig, intake, outbox, run_worker
from triptych.kernel.worker.jobs import LeaseLostError
from triptych.planner.__main__ import CONFIG as PLANNER
from triptych.planner.worker import Planner
from triptych.schemas import HANDOFF, Control, ControlAction, Playbook, Task, topics
from triptych.tools.runtime import callbacks
from triptych.tools.runtime.attempt import ToolWorker
from triptych.tools.runtime.callbacks import CallbackSettings, PostgresCallbacks
from triptych.tools.runtime.effect_ledger import PostgresEffectLedger
from triptych.tools.runtime.process import RESULT_TYPE
from triptych.tools.sdk.redaction import Redactor

LEASE_MS = 15_000
HORIZON_S = 1_500.0
"""What has not ended by then never will. Below the wall clock of every playbook."""
AFTERMATH_S = 0.1
"""So long the world goes on after everything is over, for those who do not know it yet."""
IDLE_S = 60.0
"""By then, idle processes have removed what the last runs, or a cancelled run, have left."""
TENANT = "acme"
MAX_UNDOS = 2
"""After so many that failed, what is left is left."""
REFUSED = "refuse"
"""The operation that always fails."""

TOOL = WorkerConfig(
    request_noun=topics.calls(desk.tool.name),
    answer_noun=topics.RESULTS,
    answer_type=RESULT_TYPE,
    group=f"tool-{desk.tool.name}",
    concurrency=2,
    lease_ms=LEASE_MS,
)
FAULTS: dict[str, tuple[str, ...]] = {
    "statement": ("lose_before", "lose_after", "late", "kill_before", "kill_after", "pause_before", "pause_after"),
    "publish": ("lost", "ack_lost", "late", "part", "kill_before", "kill_after", "pause_before", "pause_after"),
    "upstream": ("answer_lost", "odd_answer", "refused", "kill_before", "kill_after", "pause_before", "pause_after"),
}
MISHAPS = ("cut_off", "kafka_away", "postgres_away", "clock_jump", "join", "stop")


class _Silence:
    """A logger; only what a loop did not expect is kept."""

    def __init__(self) -> None:
        self.unexpected: list[str] = []

    def debug(self, *_args: Any, **_fields: Any) -> None: ...

    info = warning = debug

    def error(self, event: str, **fields: Any) -> None:
        self.unexpected.append(f"{event} {fields}")

    def exception(self, event: str, **fields: Any) -> None:
        error = sys.exc_info()[1]
        if error is None or not _is_foreseen(error):
            self.unexpected.append(f"{event} {fields}: {error!r}")


class _Health:
    """Health that no test asks for."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}

    def expect(self, *_args: Any) -> None: ...

    beat = depend = started = expect

    def count(self, name: str, by: int = 1) -> None:
        self.counters[name] = self.counters.get(name, 0) + by


class _Datetime:
    """`datetime` as `cloudevents.utc_now` sees it: the wall clock of the process that asks."""

    @staticmethod
    def now(_zone: Any) -> Any:
        loop = asyncio._get_running_loop()
        return loop.wall_clock() if isinstance(loop, ProcessLoop) else EPOCH


@asynccontextmanager
async def _serve_app(app: Any, *_where: Any) -> AsyncIterator[None]:
    loop: Any = asyncio.get_running_loop()
    loop.app = app
    try:
        yield
    finally:
        loop.app = None


def install() -> None:
    """Make this interpreter one that only simulates: its clock is virtual, and idle loops wait as long as they can."""
    cloudevents.datetime = _Datetime  # type: ignore[misc]
    session.time = intake.time = SimpleNamespace(monotonic=lambda: asyncio.get_running_loop().time())
    session.IDLE_POLL_MS = intake.POLL_MS = 10_000_000
    outbox.BEAT_S = 10_000.0
    callbacks.serve_app = _serve_app
    deadly.install()
    callbacks.secrets = SimpleNamespace(token_urlsafe=lambda _: asyncio.get_running_loop().token())  # type: ignore[attr-defined]
    Queries.load = cache(Queries.load.__func__.__get__(Queries))  # type: ignore[method-assign]
    Playbook.model_validate_json = cache(Playbook.model_validate_json)  # type: ignore[method-assign]


@cache
def settings_of(instance: str, batch_max_records: int) -> ExecutorSettings:
    return ExecutorSettings(
        postgres=SecretStr("postgresql://simulated"), instance=instance, batch_max_records=batch_max_records
    )


@cache
def deployment(operations: tuple[str, ...], review: str, shape: str, child: str | None = None) -> Deployment:
    """Make a playbook with one step for each operation, in a row or in parallel; the last over a list, or another run."""
    steps: list[dict[str, Any]] = []
    for number, operation in enumerate(operations):
        argument: Any = number
        if number and shape != "side by side":
            argument = f"${{{{ steps.s{number - 1}.data.number + 1 }}}}"
        steps.append({"id": f"s{number}", "operation": f"desk.{operation}", "arguments": {"number": argument}})
    last = f"${{{{ steps.s{len(operations) - 1}.data.number }}}}"
    if shape == "over a list":
        steps[-1] |= {"map": [10, 20, 30], "arguments": {"number": "${{ item }}"}}
        last = last.replace("number", "ok")
    if child is not None:
        arguments = {"playbook": child, "input": {}}
        steps.append(
            {
                "id": "s9",
                "operation": HANDOFF,
                "arguments": arguments,
                "depends_on": [step["id"] for step in steps],
                "tool_calls": 30,
                "tokens": 100,
                "usd": 0.0005,
            }
        )
        last = "${{ steps.s9.data.output.last }}"
    name = "-".join((*operations, review[:2], *shape.split(), *((child,) if child else ())))
    playbook = Playbook.model_validate_json(
        orjson.dumps(
            {
                "name": name,
                "goal": "simulate",
                "input": {"type": "object"},
                "tools": ["desk.*"],
                "plan": {"pattern": "fixed", "steps": steps},
                "review": review,
                "budgets": {"wall_ms": 7_200_000, "tokens": 200, "usd": 0.001, "steps": 5, "tool_calls": 60},
                "retry": {"max_attempts": 3, "base_ms": 200, "cap_ms": 2_000},
                "output": {"last": last},
                "handoffs": [child] if child else [],
            }
        )
    )
    return Deployment.of(playbook)


@dataclass
class Mission:
    """One task as its client sees it."""

    task_id: str
    deployment: Deployment
    shape: str
    resumes_left: int
    child: Deployment | None = None
    cancel_after_s: float | None = None
    finals: list[tuple[str, bytes]] = field(default_factory=list)
    handed_over: dict[str, bytes] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    """How often a person has decided about each event. After a restore the same event may come again."""
    reasons: list[str] = field(default_factory=list)
    run_ids: set[Any] = field(default_factory=set)
    times_published: int = 0
    status: str = ""

    @property
    def may_be_cancelled(self) -> bool:
        """Whether its client may have cancelled it, or the run above it may have ended."""
        return self.cancel_after_s is not None or ":" in self.task_id

    @property
    def is_in_for_trouble(self) -> bool:
        """Tell whether it may fail although no fault strikes."""
        plans = (self.deployment, *((self.child,) if self.child else ()))
        return self.cancel_after_s is not None or any(REFUSED in one.playbook.name.split("-") for one in plans)


class Process:
    """One process of a service, over all its lives."""

    def __init__(self, world: World, service: str, instance: str) -> None:
        self.world, self.service, self.instance = world, service, instance
        self.loop = ProcessLoop(world.scheduler)
        self.log = _Silence()
        self.memberships: list[Membership] = []
        self.is_dead = True
        self.is_cut_off = False
        self.is_leaving = False
        self.skew_s = 0.0
        self.decider: DeciderLoop[Any] | None = None
        self.committed: dict[Any, Any] = {}
        self._service: Service | None = None
        self._main: asyncio.Task[Any] | None = None

    @property
    def is_paused(self) -> bool:
        return self.loop.is_paused

    def start(self) -> None:
        if not self.is_dead or self.is_leaving:
            return
        self.world.note("start", self.instance)
        self.is_dead = self.is_cut_off = False
        self.loop = ProcessLoop(self.world.scheduler)
        self.loop.skew_s, self.loop.on_death = self.skew_s, self.die
        self.memberships = []
        self._service = Service(self.service, self.log, _Health(), _event(self.loop))  # type: ignore[arg-type]
        self._main = self.loop.create_task(_BODIES[self.service](self, self._service))
        self._main.add_done_callback(self._ended)

    def _ended(self, main: asyncio.Task[Any]) -> None:
        if self.is_dead:
            return
        error = None if main.cancelled() else main.exception()
        self.world.note("end", self.instance, repr(error))
        if error is not None and not _is_foreseen(error):
            self.world.violations.append(f"{self.instance} died of {error!r}")
        self.world.scheduler.after(0.0, self.kill)

    def kill(self) -> None:
        """Send SIGKILL: messages on the way may still arrive; it starts again after a while."""
        if self.is_dead:
            return
        self.is_dead = True
        self._fall()

    def die(self) -> None:
        """End it in the middle of its own code. What it still does while it ends has no effect."""
        if not self.is_dead:
            self.is_dead = True
            self.world.deadly.read += 1
            self.world.scheduler.after(0.0, self._fall)

    def _fall(self) -> None:
        self.world.note("kill", self.instance)
        self.world.deaths[self.service] += 1
        self.committed = {}
        for member in self.memberships:
            member.fall_silent()
        self.loop.is_paused = False
        self.loop.close_down()
        self.world.violations.extend(f"{self.instance}: {error}" for error in self.loop.errors)
        for tables in self.world.schemas.values():
            if tables.transaction is not None and tables.transaction.process is self:
                tables.transaction.roll_back()
        self.world.scheduler.after(self.world.random.choice((0.2, 3.0, 12.0, 20.0)), self.start)

    def pause(self, for_s: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        if self.is_dead or self.loop.is_paused:
            return
        self.world.note("pause", self.instance, for_s)
        self.world.settle_after(for_s)
        self.loop.is_paused = True
        for member in self.memberships:
            member.fall_silent()
        self.world.scheduler.after(for_s, self.go_on, self.loop)

    def go_on(self, loop: ProcessLoop) -> None:
        if loop is self.loop and loop.is_paused and not self.is_dead:
            self.world.note("continue", self.instance)
            loop.is_paused = False
            for member in self.memberships:
                member.catch_up()
            loop.run_ready()

    def cut_off(self, for_s: float) -> None:
        """Cut it off from Kafka for a while; it goes on with what it has."""
        if not self.is_dead:
            self.world.note("cut off", self.instance, for_s)
            self.world.settle_after(for_s)
            self.is_cut_off = True
            for member in self.memberships:
                member.fall_silent()
            self.world.scheduler.after(for_s, self.reconnect, self.loop)

    def reconnect(self, loop: ProcessLoop) -> None:
        if loop is self.loop and not self.is_dead:
            self.is_cut_off = False
            for member in self.memberships:
                member.catch_up()

    def stop(self) -> None:
        """SIGTERM. It does not come back under this name."""
        if not self.is_dead and self._service is not None:
            self.world.note("stop", self.instance)
            self.is_leaving = True
            self._service.stopping.set()
            for member in self.memberships:
                if member._waiter is not None:
                    self.world.scheduler.after(0.1, member._give_up, member._waiter)


def _event(loop: ProcessLoop) -> asyncio.Event:
    return asyncio.Event()


def _is_foreseen(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_foreseen(part) for part in error.exceptions)
    return isinstance(error, (*POSTGRES_GONE, *KAFKA_GONE, LeaseLostError))


class Store(ExecutorStore):
    """The executor's own store; the simulation looks over its shoulder."""

    def __init__(self, process: Process) -> None:
        self._process = process
        super().__init__(postgres.Pool(process, process.world.schemas["executor"]), process.log)  # type: ignore[arg-type]

    async def commit(self, batch: Any) -> set[Any]:
        duplicates = await super().commit(batch)
        for run_id, run in batch.states.items():
            if run_id not in duplicates:
                self._process.world.keep(self._process, run)
        return duplicates


async def _run_executor(process: Process, service: Service) -> None:
    world = process.world
    settings = settings_of(process.instance, world.batch_max_records)
    store = Store(process)
    await store.deploy(world.renewal.playbooks)
    view = world.renewal.view()
    executor = WatchedExecutor(world.renewal, view, world.deployments, world.max_active_runs, world.tenant_active_runs)
    world.renewal.follow(process, executor)
    loop = DeciderLoop(
        service,
        settings,
        executor,
        store,
        store._pool,
        kafka=Kafka(process),  # type: ignore[arg-type]
    )
    await loop.run()


def _run_worker(config: WorkerConfig, make: Callable[[Process, Any, Service], Any]) -> Callable[..., Awaitable[None]]:
    async def body(process: Process, service: Service) -> None:
        settings = settings_of(process.instance, process.world.batch_max_records)
        pool = postgres.Pool(process, process.world.schemas[service.name])
        worker, ledger, beside = make(process, pool, service)
        await run_worker(
            service,
            settings,
            worker,
            config,
            pool=pool,
            commit_hook=ledger,
            beside=beside,
            kafka=Kafka(process),  # type: ignore[arg-type]
        )

    return body


def _with(config: WorkerConfig) -> WorkerConfig:
    return WorkerConfig(
        config.request_noun, config.answer_noun, config.answer_type, config.group, concurrency=1, lease_ms=LEASE_MS
    )


_REDACTOR = Redactor(desk.tool.secrets)
_CALLBACKS = CallbackSettings(url=workshop.URL, secret=SecretStr(workshop.SECRET))


def _tool(process: Process, pool: Any, service: Service) -> tuple[Any, Any, Any]:
    operations = desk.tool.operations
    ledger = PostgresEffectLedger(pool, desk.WRITES)
    expected = PostgresCallbacks(
        pool,
        _CALLBACKS,
        settings_of(process.instance, process.world.batch_max_records),
        operations=operations,
        ledger=ledger,
        redactor=_REDACTOR,
    )
    line: Any = desk.Line(process)
    log: Any = process.log
    worker = ToolWorker(desk.tool, line, ledger, log, redactor=_REDACTOR, callbacks=expected)
    return worker, ledger, partial(expected.listen, service)


_registry: Any = desk.Registry()
# What these two remember follows from playbooks and contracts alone, so all schedules may share them.
_planner = Planner(_registry, None, model_timeout_ms=1)  # type: ignore[arg-type]
_critic = Critic(_registry, None, model_timeout_ms=1)  # type: ignore[arg-type]


def _planner_of(process: Process) -> Planner:
    renewal = process.world.renewal
    return Planner(renewal.view(), None, model_timeout_ms=1) if renewal.is_there else _planner  # type: ignore[arg-type]


_BODIES: dict[str, Callable[..., Any]] = {
    "executor": _run_executor,
    "planner": _run_worker(_with(PLANNER), lambda process, *_: (_planner_of(process), None, None)),
    "critic": _run_worker(_with(CRITIC), lambda *_: (_critic, None, None)),
    "desk": _run_worker(TOOL, _tool),
}


@dataclass(slots=True)
class Statement:
    """A statement on its way to the database, and what is going to befall it."""

    process: Process
    tables: Any
    name: str
    args: tuple[Any, ...]
    transaction: Any
    done: asyncio.Future[Any]
    fault: str | None
    generation: int
    """Of the server that it was sent to."""

    def roll_back(self) -> None:
        if self.transaction is not None:
            self.transaction.roll_back()

    def stored(self, watch: Watch, answers: list[bytes]) -> None:
        """Answers are in the table; those of a transaction only when it is committed."""
        if self.transaction is None:
            watch.answered(answers)
        else:
            self.transaction.answers.extend(answers)


def _to_publish(statement: Statement, rows: Sequence[Any]) -> list[bytes]:
    """Return the bodies that a worker's statement has stored, and that may be published when it is committed."""
    match statement.name, statement.args:
        case "settle", args:
            return [*args[3], *(answer for answer in args[13] if answer is not None)]
        case "withdraw", _:
            return [row["answer"] for row in rows if row["fresh"]]
        case "callbacks_answer", args if rows:
            return [args[3]]
        case "store_dead_letters", args:
            service, topic = statement.process.service, f"triptych.{topics.DEAD_LETTERS}"
            return [dead_letters.event(DeadRecord(*row), service, topic).value for row in zip(*args, strict=True)]
        case _:
            return []


class World:
    """One schedule, from its seed to its end."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)  # noqa: S311
        self.forger, self.deadly = Forger(self, seed), Deadly(self, seed)
        self.restore = Restore(self, seed)
        self.renewal = Renewal(self, seed)
        self._draw = self.random.random
        self.scheduler = Scheduler()
        self.broker = Broker(self)
        self.upstream = desk.Upstream(self)
        self.violations: list[str] = []
        self.trace: list[tuple[Any, ...]] = []
        self.states: dict[Any, Any] = {}
        self.watch = Watch()
        self.postgres_away_until = 0.0
        self._operations: Counter[str] = Counter()
        self._settled_at = 0.0
        draw = self.random
        self.partitions = draw.randint(1, 3)
        self.max_active_runs = draw.choice((1, 2, 1_000, 1_000))
        self.tenant_active_runs = draw.choice(({}, {}, {TENANT: 1}, {TENANT: 2}))
        self.batch_max_records = draw.choice((1, 2, 500))
        self._slowness = draw.choice((0.0, 0.02, 0.1))
        self.missions = self._draw_missions()
        self._unfinished = set(self.missions)
        self._cancelled: set[str] = set()
        plans = [plan for mission in self.missions.values() for plan in (mission.deployment, mission.child) if plan]
        self.deployments = {plan.playbook.name: plan for plan in plans}
        self.schemas: dict[str, Any] = {"executor": postgres.ExecutorTables(self.database_now)}
        self.processes: list[Process] = []
        needs_critic = any(plan.playbook.review != "exceptions" for plan in plans)
        for service, count in (
            ("executor", draw.randint(1, 2)),
            ("desk", draw.randint(1, 2)),
            ("planner", 1),
            ("critic", int(needs_critic)),
        ):
            if count and service != "executor":
                self.schemas[service] = postgres.WorkerTables(self.database_now)
            self.processes.extend(Process(self, service, f"{service}-{number}") for number in range(count))
        self.fault_count = 0
        self.faults: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        """Of the processes of each service."""
        self.played: Counter[str] = Counter()
        self._strike_at = {self._draw_strike() for _ in range(draw.choice((0, 1, 1, 2, 3, 4, 6)))}
        # Batches are small here: in most schedules even of one message the next is decided while it is written.
        session.OVERLAP_FROM_MESSAGES = 250 if seed % 3 == 0 else 1

    def _draw_missions(self) -> dict[str, Mission]:
        names = [f"task-{number}" for number in range(self.random.choice((1, 1, 1, 2, 2, 3)))]
        return {name: self._draw_mission(name) for name in names}

    def _draw_mission(self, name: str) -> Mission:
        draw = self.random
        operations, review, child = self._draw_operations(0.12), self._draw_review(), None
        shape = draw.choice(("side by side", "side by side", "in a row", "in a row", "over a list", "handing over"))
        if len(operations) == 1 and shape == "side by side":
            shape = "in a row"
        if shape == "over a list" and operations[-1] == REFUSED:
            shape = "in a row"
        if shape == "handing over":
            operations = operations[:1]
            child = deployment(self._draw_operations(0.3), self._draw_review(), "in a row")
        plan = deployment(operations, review, shape, child.playbook.name if child else None)
        is_cancelled = draw.random() < (0.25 if child else 0.05)
        return Mission(
            name,
            plan,
            shape,
            resumes_left=draw.randint(0, 2),
            child=child,
            cancel_after_s=draw.uniform(0.3, 6.0) if is_cancelled else None,
        )

    def _draw_operations(self, refused: float) -> tuple[str, ...]:
        draw = self.random
        kinds = ("look", "think", "put", "put", "send", "post", "order", "film", "book")
        operations = tuple(draw.choice(kinds) for _ in range(draw.choice((1, 1, 1, 2, 2, 3))))
        return (*operations[:2], REFUSED) if draw.random() < refused else operations

    def _draw_review(self) -> str:
        return self.random.choice(("exceptions", "exceptions", "exceptions", "exceptions", "every_step", "final"))

    def _draw_strike(self) -> tuple[str, int]:
        """Choose the operation at which something goes wrong. Most are statements; the others get their share."""
        place = self.random.choice(("statement", "statement", "statement", "publish", "publish", "upstream"))
        first, more, more_a_run = {"statement": (12, 18, 25), "publish": (1, 2, 6), "upstream": (1, 0, 2)}[place]
        return place, self.random.randrange(first, first + more + more_a_run * len(self.missions))

    # --- what everything stands on ----------------------------------------------------------------

    def database_now(self) -> Any:
        return EPOCH + timedelta(seconds=self.scheduler.now)

    def note(self, *what: Any) -> None:
        self.trace.append((self.scheduler.now, *what))

    def settle_after(self, for_s: float) -> None:
        """Keep a fault for so long; its process needs a few seconds more to notice that it is over."""
        self._settled_at = max(self._settled_at, self.scheduler.now + for_s + 6.0)

    def moment(self) -> float:
        """Choose how long something outside takes: mostly a millisecond, sometimes much longer."""
        draw = self._draw
        if self._slowness and draw() < self._slowness:
            return 3.0 * draw() ** 3
        return 0.0002 + 0.003 * draw() ** 2

    def after_a_moment(self, action: Callable[..., None], *args: Any) -> None:
        self.scheduler.after(self.moment(), action, *args)

    async def pause_briefly(self, process: Process) -> None:
        """Make a round trip that changes nothing."""
        if process.is_dead:
            raise asyncio.CancelledError
        done = process.loop.create_future()
        self.after_a_moment(process.loop.resolve, done, None)
        await done

    def strike(self, place: str, process: Process) -> str | None:
        """Count something that touches the world; the fault that befalls it, if one does."""
        self._operations[place] += 1
        if (place, self._operations[place]) not in self._strike_at:
            return None
        self.fault_count += 1
        if self.random.random() < 0.3:
            self._mishap(self.random.choice(MISHAPS))
            return None
        fault = self.random.choice(FAULTS[place])
        self.faults[f"{place} {fault}"] += 1
        self.note("fault", place, fault, process.instance)
        return fault

    def _mishap(self, kind: str) -> None:
        draw = self.random
        living = [process for process in self.processes if not process.is_dead]
        if not living:
            return  # a restore has killed them all, and none has started again
        process = draw.choice(living)
        self.note("mishap", kind, process.instance)
        self.faults[kind] += 1
        match kind:
            case "cut_off":
                self.scheduler.after(0.0, process.cut_off, draw.choice((2.0, 12.0, 30.0)))
            case "kafka_away":
                self.broker.away_until = self.scheduler.now + draw.choice((0.5, 5.0, 20.0))
                self.scheduler.at(self.broker.away_until + 0.001, self._kafka_is_back)
            case "postgres_away":
                self.postgres_away_until = self.scheduler.now + draw.choice((0.5, 5.0, 20.0))
            case "clock_jump":
                process.skew_s += draw.choice((-60.0, -2.0, 2.0, 60.0))
                process.loop.skew_s = process.skew_s
            case "join":
                number = len(self.processes)
                joined = Process(self, draw.choice(("executor", "desk")), f"late-{number}")
                self.processes.append(joined)
                self.scheduler.after(0.0, joined.start)
            case "stop":
                self.scheduler.after(0.0, self._stop_unless_last, process)

    def _stop_unless_last(self, process: Process) -> None:
        if sum(one.service == process.service and not one.is_leaving for one in self.processes) > 1:
            process.stop()

    def _kafka_is_back(self) -> None:
        if not self.broker.is_away:
            for process in self.processes:
                if not process.is_dead:
                    for member in process.memberships:
                        member.catch_up()

    def strike_process(self, fault: str | None, moment: str, process: Process) -> None:
        if fault == f"kill_{moment}":
            process.kill()
        elif fault == f"pause_{moment}":
            process.pause(self.random.choice((0.5, 8.0, 18.0, 60.0)))

    # --- the database -----------------------------------------------------------------------------

    async def statement(
        self, process: Process, tables: Any, sql: str, args: tuple[Any, ...], transaction: Any = None
    ) -> list[Any]:
        """Make a round trip to the database."""
        if process.is_dead:
            raise asyncio.CancelledError
        done = process.loop.create_future()
        fault = self.strike("statement", process)
        name = postgres.name_of(tables, sql)
        self.after_a_moment(
            self._arrive, Statement(process, tables, name, args, transaction, done, fault, self.restore.generation)
        )
        rows: list[Any] = await done
        return rows

    def _arrive(self, statement: Statement) -> None:
        """Execute a statement that has reached the server."""
        tables, transaction = statement.tables, statement.transaction
        if (transaction is not None and transaction.is_over) or statement.generation != self.restore.generation:
            return
        if tables.transaction is not None and tables.transaction is not transaction:
            tables.waiting.append(lambda: self._arrive(statement))
            return
        loop = statement.done.get_loop()
        fault = "lose_before" if self.scheduler.now < self.postgres_away_until else statement.fault
        self.strike_process(fault, "before", statement.process)
        if loop.is_closed_down:
            if fault != "kill_before" and transaction is None and self.random.random() < 0.5:
                self._take_effect(statement)
            return
        if fault in {"lose_before", "late"}:
            self._lose(statement, is_late=fault == "late")
            return
        result = self._take_effect(statement)
        if fault == "lose_after":
            statement.roll_back()
            result = postgres.lost(f"after {statement.name}")
        self.strike_process(fault, "after", statement.process)
        self.after_a_moment(loop.resolve, statement.done, result)
        self.look_whether_it_is_over()

    def _lose(self, statement: Statement, *, is_late: bool) -> None:
        """Lose the connection before the statement has taken effect; it may still do so later."""
        statement.roll_back()
        if is_late and statement.transaction is None:
            self.settle_after(3.0)
            self.scheduler.after(self.random.uniform(0.05, 3.0), self._take_effect, statement)
        lost = postgres.lost(f"in {statement.name}")
        self.after_a_moment(statement.done.get_loop().resolve, statement.done, lost)

    def _take_effect(self, statement: Statement) -> Any:
        """Return the rows of a statement, or raise the error that it ends with."""
        tables, args, name, who = statement.tables, statement.args, statement.name, statement.process.instance
        if statement.generation != self.restore.generation:
            return postgres.lost(f"with the server, in {name}")
        before: dict[int, tuple[int, dict[str, int]]] = {}
        if name == "commit_batch":
            before = {partition: (held[0], held[3]) for partition, held in tables.partitions.items()}
        try:
            rows = postgres.apply(tables, name, args, statement.transaction)
        except asyncpg.PostgresError as error:
            statement.roll_back()
            self.note(who, name, "refused", str(error))
            return error
        self.note(who, name)
        if name == "commit_batch":
            self.violations.extend(self.watch.committed(before, tables, args))
            self.violations.extend(self.over_limit())
        elif name == postgres.COMMIT:
            self.watch.answered(statement.transaction.answers)
            if statement.process.service == "desk":
                self.violations.extend(self.watch.waiting_in_vain(tables))
        else:
            statement.stored(self.watch, _to_publish(statement, rows))
        return rows

    def keep(self, process: Process, run: Any) -> None:
        """Return a run as an executor believes to have committed it."""
        known = self.states.get(run.run_id)
        if known is None or known.seq < run.seq:
            self.states[run.run_id] = run
        ledger = run.ledger
        if (
            ledger.tokens + ledger.reserved_tokens > ledger.max_tokens
            or ledger.usd_micros + ledger.reserved_usd_micros > ledger.max_usd_micros
            or ledger.tool_calls > ledger.max_tool_calls
            or ledger.steps > ledger.max_steps
            or min(ledger.reserved_tokens, ledger.reserved_usd_micros) < 0
        ):
            self.violations.append(f"{run.run_id}: over budget at {run.seq}: {ledger}")

    # --- the upstream -----------------------------------------------------------------------------

    async def ask_upstream(self, process: Process, kind: str, action: Callable[[], Any]) -> Any:
        if process.is_dead:
            raise asyncio.CancelledError
        loop = process.loop
        done = loop.create_future()
        fault = self.strike("upstream", process)

        def arrive() -> None:
            if loop.is_closed_down or done.cancelled():
                return
            self.strike_process(fault, "before", process)
            if fault == "kill_before":
                return
            if fault == "refused":
                self.after_a_moment(loop.resolve, done, desk.refused())
                return
            self.note(process.instance, "upstream", kind)
            self.played[f"calls of {kind}"] += 1
            answer = action()
            self.strike_process(fault, "after", process)
            if fault == "answer_lost":
                answer = desk.answer_lost()
            elif fault == "odd_answer":
                answer = desk.odd_answer(self.random.choice(desk.odd_statuses(kind)))
            self.after_a_moment(loop.resolve, done, answer)

        self.after_a_moment(arrive)
        return await done

    # --- the clients ------------------------------------------------------------------------------

    def _publish_task(self, mission: Mission, partition: int) -> None:
        self.played["tasks published"] += 1
        mission.times_published += 1
        task = Task(task_id=mission.task_id, playbook=mission.deployment.playbook.name, tenant=TENANT)
        self._publish(topics.TASKS, partition, mission.task_id, task.to_bytes())

    def _publish(self, noun: str, partition: int, key: str, value: bytes) -> None:
        self.broker.append(Outgoing(f"triptych.{noun}", partition, key.encode(), [], value))

    def published(self, message: Outgoing) -> None:
        """Note that a message has arrived in a log."""
        event_id = cloudevents.event_id(message.headers)
        self.note("log", message.topic, message.partition, event_id)
        self.violations.extend(self.watch.published(message, event_id))
        self.forger.see(message)
        if message.topic == "triptych.outcomes":
            self._receive(message)

    def _receive(self, message: Outgoing) -> None:
        outcome = orjson.loads(message.value)
        if not outcome["playbook"]:
            return  # the refusal of a record that was not read
        mission = self.missions.get(outcome["task_id"]) or self._learn_child(outcome)
        event_id = cloudevents.event_id(message.headers) or ""
        mission.run_ids.add(outcome.get("run_id"))
        if outcome["final"]:
            mission.finals.append((event_id, message.value))
            self._unfinished.discard(mission.task_id)
            mission.status = outcome["status"]
            return
        if event_id in mission.handed_over and not self.restore.is_there:
            if mission.handed_over[event_id] != message.value:
                self.violations.append(f"{event_id}: the same event with another body")
            return
        mission.handed_over[event_id] = message.value
        mission.reasons.append(outcome["reason"]["code"])
        if mission.task_id.partition(":")[0] not in self._cancelled:
            mission.answers[event_id] += 1
            self._answer(mission, message.partition, outcome["run_id"], event_id)

    def _learn_child(self, outcome: dict[str, Any]) -> Mission:
        """Let a client hear of a run that another run has started."""
        plan = self.deployments[outcome["playbook"]]
        child = Mission(outcome["task_id"], plan, "of another run", resumes_left=self.random.randint(0, 1))
        self.missions[child.task_id] = child
        return child

    def _answer(self, mission: Mission, partition: int, run_id: str, event_id: str) -> None:
        """Let a person decide about an escalated run. Each decision has a command id of its own.

        After a restore the run may refuse a decision, and then escalate again under the id of the same event.
        """
        may_go_on = mission.resumes_left > 0 and mission.reasons[-1] != "undo_failed"
        mission.resumes_left -= 1
        undo = not may_go_on and mission.reasons.count("undo_failed") < MAX_UNDOS and self.random.random() < 0.5
        action = ControlAction.RESUME if may_go_on else ControlAction.ABORT
        self.played[f"runs handed over, then {action.value}{' and undo' if undo else ''}"] += 1
        command = Control(
            command_id=f"{event_id}:{action.value}" + ":again" * (mission.answers[event_id] - 1),
            run_id=UUID(run_id),
            action=action,
            principal="user:ana",
            undo=undo,
        )
        for _ in range(self.random.choice((1, 1, 2))):
            delay = self.random.uniform(0.1, 5.0)
            self.scheduler.after(delay, self._publish, topics.CONTROL, partition, run_id, command.to_bytes())

    def _cancel(self, mission: Mission) -> None:
        """Cancel it, as its client does. After that, its child runs are not escalated to a person either."""
        executor = self.schemas["executor"]
        if executor.transaction is not None:  # what is not committed is not visible
            self.scheduler.after(0.1, self._cancel, mission)
            return
        run_id = executor.tasks.get((TENANT, mission.task_id))
        if run_id is None:
            mission.cancel_after_s = None
            return
        self.played["runs cancelled under way"] += 1
        self._cancelled.add(str(run_id))
        command = Control(command_id="cancel", run_id=run_id, action=ControlAction.CANCEL, principal="user:ana")
        partition = executor.runs[run_id][postgres.PARTITION_COLUMN]
        self._publish(topics.CONTROL, partition, str(run_id), command.to_bytes())

    # --- from beginning to end --------------------------------------------------------------------

    def look_whether_it_is_over(self) -> None:
        if self.over_at is None and self.restore.is_over and not self._unfinished and not self.left_open():
            self.over_at = self.scheduler.now
            self.note("over")

    def over_limit(self) -> list[str]:
        """Runs that are active and have no room. Those that a person has resumed need none, nor do those of runs."""
        limit = self.tenant_active_runs.get(TENANT)
        if limit is None:
            return []
        resumed = {run_id for mission in self.missions.values() if mission.reasons for run_id in mission.run_ids}
        active = [
            str(run_id)
            for run_id, run in self.schemas["executor"].runs.items()
            if run[postgres.STATUS_COLUMN] in postgres.ACTIVE and str(run_id) not in resumed and ":" not in run[2]
        ]
        return [f"{len(active)} active runs of {TENANT}, whose limit is {limit}"] if len(active) > limit else []

    def left_open(self) -> list[str]:
        """List what is stored and still needs something to happen."""
        executor = self.schemas["executor"]
        left = [f"outbox {key}" for key in executor.outbox]
        left.extend(f"in the queue: {run_id}" for run_id in executor.queue)
        left.extend(f"timer of {run_id}" for run_id in executor.timers_)
        left.extend(f"run {run_id}" for run_id, run in executor.runs.items() if run[postgres.FINISHED_COLUMN] is None)
        for service, tables in self.schemas.items():
            if service != "executor":
                left.extend(
                    f"{service} job {job.key} {job.state}" for job in tables.jobs.values() if job.state != "published"
                )
                left.extend(f"{service} outbox {key}" for key in tables.outbox)
        left.extend(self.deadly.left())
        left.extend(f"callback for {message.order.key}" for message in self.upstream.workshop.on_the_way)
        return left

    over_at: float | None = None

    def play(self) -> Played:
        """Let the schedule happen, and look at what is left of it."""
        draw = self.random
        for process in self.processes:
            self.scheduler.after(draw.uniform(0.0, 0.3), process.start)
        for mission in self.missions.values():
            if mission.cancel_after_s is not None:
                self.scheduler.after(mission.cancel_after_s, self._cancel, mission)
            for _ in range(draw.choice((1, 1, 1, 2))):
                self.scheduler.after(
                    draw.uniform(0.0, 0.6), self._publish_task, mission, draw.randrange(self.partitions)
                )
        self.deadly.begin()
        self.restore.begin()
        self.renewal.begin()
        scheduler = self.scheduler
        scheduler.run_while(
            lambda: self.over_at is None and scheduler.now < HORIZON_S and not self.violations,
        )
        if self.over_at is not None:
            end = max(self.over_at, self._settled_at) + AFTERMATH_S
            scheduler.run_while(
                lambda: scheduler.now < end or (scheduler.now < end + IDLE_S and bool(self.left_open())),
            )
        check(self)
        for process in self.processes:
            process.is_leaving = True
            process.kill()
        self._count_missions()
        return Played(self.seed, self.violations, self.trace, self.faults, self.played)

    def _count_missions(self) -> None:
        self.played["schedules"] += 1
        self.played["schedules without a fault"] += not self.fault_count
        for mission in self.missions.values():
            self.played[f"runs {mission.shape}"] += 1
            self.played[f"runs reviewed: {mission.deployment.playbook.review}"] += 1
            self.played[f"runs that {mission.status or 'did not end'}"] += 1

    def dismantle(self) -> None:
        """Let go of everything, so that most of it is freed without the garbage collector."""
        for process in self.processes:
            for member in process.memberships:
                vars(member).clear()
            vars(process.loop).clear()
            vars(process).clear()
        vars(self.broker).clear()
        vars(self).clear()


@dataclass(frozen=True, slots=True)
class Played:
    """A schedule that is over."""

    seed: int
    violations: list[str]
    trace: list[tuple[Any, ...]]
    faults: Counter[str]
    played: Counter[str]

    def digest(self) -> str:
        """Return a hash of everything that happened."""
        rounded = [(round(at, 6), *what) for at, *what in self.trace]
        return hashlib.sha256(repr(rounded).encode()).hexdigest()


def play(seed: int) -> Played:
    """Play one schedule."""
    world = World(seed)
    played = world.play()
    world.dismantle()
    return played
