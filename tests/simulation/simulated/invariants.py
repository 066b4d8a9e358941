"""What must hold at the end of every schedule, with all its faults."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from simulated.desk import WRITES
from simulated.forger import MARK
from simulated.postgres import PARTITION_COLUMN
from triptych.executor import events as ev
from triptych.executor.fold import admit, evolve
from triptych.executor.state import CompensationStatus, Run, RunStatus, StepState
from triptych.executor.store import run_row, step_row
from triptych.kernel.kafka.bus import Outgoing
from triptych.kernel.postgres.outbox import unpack
from triptych.kernel.process.settings import ServiceSettings
from triptych.schemas import ResultStatus, topics

if TYPE_CHECKING:
    from simulated.world import Mission, World

EXCUSED = frozenset(
    {
        "in_doubt",
        "tool_unavailable",
        "tool_failed",
        "planner_unavailable",
        "critic_unavailable",
        "undo_failed",
        "child_failed",
        "conflict",
    }
)
"""Why a run may be handed to a person, when something went wrong around it."""
REFUSALS = frozenset({"identity"})
"""Why a run may be handed to a person that makes a call which is always refused."""

UNDOABLE = frozenset({"desk.put", "desk.order"})
"""The operations whose contracts say how to undo them."""

ANSWERS = ev.CallAnswered | ev.PlanAccepted | ev.PlanRefused | ev.VerdictGiven | ev.ReviewFailed | ev.AnsweredLate
VALUE_COLUMN, CODE_COLUMN = 5, 7
"""Of a dead letter."""
FORGOTTEN = frozenset({"unknown_run", "forged"})
"""Why a message is refused whose run, or its word, is among what an older state of the database has lost."""
LASTING = frozenset(f"triptych.{noun}" for noun in (topics.OUTCOMES, topics.PLANS, topics.RESULTS, topics.VERDICTS))
"""Where one event id always comes with one body."""


class Watch:
    """Looks at everything that is stored or published, while it happens."""

    def __init__(self) -> None:
        self.is_restored = False
        """Whether the database came back with an older state: the same may be said again in other words then."""
        self.arrived: set[str] = set()
        """The ids of all messages that Kafka has acknowledged, or would have."""
        self._committed: set[bytes] = set()
        self._bodies: dict[str, bytes] = {}

    def committed(self, before: dict[int, tuple[int, dict[str, int]]], tables: Any, args: tuple[Any, ...]) -> list[str]:
        """Check a batch that has taken effect: only the newest owner may write, and offsets never go back."""
        owned, _, journal, runs, _, outbox, *_ = args
        self._committed.update(each.outgoing.value for row in outbox for each in unpack(row[4], row[0]))
        found = []
        for partition, epoch, _ in owned:
            held, offsets = before[partition]
            if epoch != held:
                found.append(f"partition {partition}: a batch of epoch {epoch} was committed in epoch {held}")
            now = tables.partitions[partition][3]
            if back := [topic for topic, offset in offsets.items() if now[topic] < offset]:
                found.append(f"partition {partition}: the offsets of {back} went back")
        mine = {partition for partition, *_ in owned}
        homes = {row[0]: row[PARTITION_COLUMN] for row in runs}
        for run_id in {row[0] for row in (*journal, *runs)}:
            home = homes.get(run_id, tables.runs[run_id][PARTITION_COLUMN] if run_id in tables.runs else None)
            if home not in mine:
                found.append(f"{run_id}: written without its partition")
        return found

    def answered(self, answers: list[bytes]) -> None:
        """Check the answers that a worker has stored."""
        self._committed.update(answers)

    def waiting_in_vain(self, tables: Any) -> list[str]:
        """Calls that are parked although their callbacks have come."""
        found = []
        for (run_id, key), callback in tables.callbacks.items():
            job = tables.jobs.get((run_id, callback.request_id))
            if callback.result is not None and job is not None and job.state == "parked" and job.lease is None:
                found.append(f"{key} is parked, and its callback has come already")
        return found

    def published(self, message: Outgoing, event_id: str | None) -> list[str]:
        """Check a message that has arrived: it was committed first, and an answer or an outcome never changes."""
        if event_id is None:
            return []  # a client's
        self.arrived.add(event_id)
        found = []
        if message.value not in self._committed:
            found.append(f"{message.topic} {event_id} was published before it was committed")
        if (
            message.topic in LASTING
            and not self.is_restored
            and self._bodies.setdefault(event_id, message.value) != message.value
        ):
            found.append(f"{message.topic} {event_id} was published with two bodies")
        return found


def check(world: World) -> None:
    """Add each invariant that does not hold to the world's violations."""
    found = world.violations
    if world.over_at is None:
        found.append(
            f"not over after {world.scheduler.now:.0f} s: {[m.task_id for m in world.missions.values() if not m.finals]} {world.left_open()}"
        )
        _check_answers(world, found)
        return
    found.extend(f"open again: {left}" for left in world.left_open())
    _check_outcomes(world, found)
    _check_journals(world, found)
    _check_answers(world, found)
    for key, times in world.upstream.executions.items():
        if times > 1 + world.upstream.denials[key]:
            denials = world.upstream.denials[key]
            found.append(f"{key} took effect {times} times, with {denials} reconciliations in between")
    if not world.restore.is_there:  # what was lost with the intents is made again, under the same keys
        _check_effects(world, found)
    for process in world.processes:
        found.extend(
            f"{process.instance} logged: {line}"
            for line in process.log.unexpected
            if not (_is_suspicious(world, process.service) and line.startswith("a record is dead-lettered unread"))
        )
    dead = {
        key: row
        for key, row in world.schemas["executor"].dead_letters.items()
        if not (world.restore.is_there and row[CODE_COLUMN] in FORGOTTEN)
    }
    strange = world.forger.bodies | world.deadly.bodies
    if honest := [key for key, row in dead.items() if row[VALUE_COLUMN] not in strange]:
        found.append(f"dead letters: {honest}")


def _is_suspicious(world: World, service: str) -> bool:
    """Return whether a service has cause to think that a record kills its readers: one does, or they were killed."""
    killed = world.deaths[service] >= ServiceSettings.model_fields["max_deaths"].default
    return world.deadly.is_there or (killed and service != "executor")


def _check_outcomes(world: World, found: list[str]) -> None:
    for mission in world.missions.values():
        # A run id has the time of the record that was read first. After a restore another of its records may be that.
        most = max(1, mission.times_published) if world.restore.is_there else 1
        ends = {event_id for event_id, _ in mission.finals} if world.restore.is_there else set(mission.finals)
        is_due = bool(ends) or not is_lost_child(world, mission)
        if is_due and not 1 <= len(ends) <= most:
            found.append(f"{mission.task_id} has {len(set(mission.finals))} final outcomes: {mission.finals}")
        if not 1 <= len(mission.run_ids) <= most:
            found.append(f"{mission.task_id} became {len(mission.run_ids)} runs")
        excused = EXCUSED | REFUSALS if mission.is_in_for_trouble else EXCUSED
        if unexcused := [code for code in mission.reasons if code not in excused]:
            found.append(f"{mission.task_id} was escalated for {unexcused}")
        if not world.fault_count and "undo_failed" in mission.reasons:
            found.append(f"{mission.task_id} could not be undone, and nothing had gone wrong")
        is_calm = not world.fault_count and not any(one.is_in_for_trouble for one in world.missions.values())
        if is_calm and (mission.status != "succeeded" or mission.reasons):
            found.append(f"{mission.task_id} ended {mission.status} {mission.reasons}, and nothing had gone wrong")
        allowed = {"succeeded"}
        allowed |= {"failed"} if mission.reasons else set()
        allowed |= {"cancelled"} if mission.may_be_cancelled else set()
        if is_due and mission.status not in allowed:
            found.append(f"{mission.task_id} ended {mission.status}")


def is_lost_child(world: World, mission: Mission) -> bool:
    """Tell whether a child run is among what an older state of the database has lost, and no run asks for it now.

    The person who resumed the parent decides again, and may abort it this time. Or the task of the parent has become
    another run. Then the child has no row, and no journal has a request for it. The client gets the outcome of the
    task, which is due as always.
    """
    tables = world.schemas["executor"]
    is_child = ":" in mission.task_id
    if not world.restore.is_there or not is_child or any(task_id == mission.task_id for _, task_id in tables.tasks):
        return False
    name = ev.CallRequested.__name__
    rows = (row for run_id in tables.journal for row in tables.events(run_id))
    requests = (orjson.loads(data) for _, kind, _, data in rows if kind == name)
    return all(request["idempotency_key"] != mission.task_id for request in requests)


def _check_journals(world: World, found: list[str]) -> None:
    tables = world.schemas["executor"]
    playbooks = ev.PlaybookLookup(tuple(world.renewal.playbooks))
    if set(tables.tasks.values()) != set(tables.journal):
        found.append("the tasks are not the runs that have a journal")
    for run_id in tables.journal:
        rows = tables.events(run_id)
        seqs = [seq for seq, *_ in rows]
        if seqs != list(range(1, len(seqs) + 1)):
            found.append(f"{run_id}: the journal has holes: {seqs}")
            continue
        if any(MARK in data for *_, data in rows):
            found.append(f"{run_id}: a forgery was believed")
        events = [(ev.decode(kind, data, playbooks), at) for _, kind, at, data in rows]
        try:
            run = _fold(run_id, events)
        except (KeyError, ValueError) as error:
            found.append(f"{run_id}: the journal cannot be folded: {error!r}")
        else:
            found.extend(f"{run_id}: {problem}" for problem in _problems(world, run, events))


def _fold(run_id: Any, events: list[tuple[Any, datetime]]) -> Run:
    (admitted, at), *rest = events
    run = admit(run_id, admitted, at)
    for event, when in rest:
        run = evolve(run, event, when)
    return run


def _problems(world: World, run: Run, events: list[tuple[Any, datetime]]) -> Iterator[str]:
    """Find what is wrong with a run by its journal."""
    known = world.states.get(run.run_id)
    if known is not None and known.seq == run.seq and known != run:
        yield "the journal does not fold to what the executor had in memory"
    if known is not None and known.seq > run.seq:
        yield f"the executor believes in {known.seq} events, the journal has {run.seq}"
    if not run.status.is_final or run.requests or run.retries:
        yield f"its journal leaves it {run.status}"
    tables = world.schemas["executor"]
    if (shown := tables.runs[run.run_id]) != run_row(run):
        yield f"runs says {shown}, the journal {run_row(run)}"
    for step_id in run.steps:
        if (row := tables.steps.get((run.run_id, step_id))) != step_row(run, step_id):
            yield f"steps says {row}, the journal {step_row(run, step_id)}"
    if not world.restore.is_there:  # receipts and withdrawals are lost with the state, and undos are made again
        yield from _undone(world, run)
        yield from _called_off(world, run, [event for event, _ in events])
        yield from _unreceipted(world, run)
    answered = [event.request_id for event, _ in events if isinstance(event, ANSWERS)]
    if len(answered) != len(set(answered)):
        yield f"a request was answered twice: {answered}"


def _called_off(world: World, run: Run, events: list[Any]) -> Iterator[str]:
    """Find what is wrong with the calls that were open when a run ended, or began to be undone."""
    asked = {event.request_id: event for event in events if isinstance(event, ev.CallRequested) and event.child is None}
    late = {event.request_id for event in events if isinstance(event, ev.AnsweredLate)}
    to_no_worker = {
        event.request_id
        for event in events
        if isinstance(event, ev.KeyRequested) or (isinstance(event, ev.CallRequested) and event.child)
    }
    if missing := (late | run.left_open.keys()) - to_no_worker - _withdrawals(world):
        yield f"it ended, and {sorted(missing)} were not called off"
    for event in events:
        is_told = isinstance(event, ev.CallAnswered | ev.AnsweredLate) and event.result is not None
        if not is_told or event.request_id not in asked or event.result.error is None:
            continue
        key = asked[event.request_id].idempotency_key
        before = sum(other.idempotency_key == key for other in asked.values())
        if event.result.error.details.get("withdrawn") and before == 1 and world.upstream.executions[key]:
            yield f"{key} was withdrawn before it began, and was done"


def _withdrawals(world: World) -> set[str]:
    """List the requests that were withdrawn, as the broker has them."""
    logs = (log for source, log in world.broker.logs.items() if source.topic == f"triptych.{topics.WITHDRAWALS}")
    return {orjson.loads(record.value)["request_id"] for log in logs for record in log}


def _undone(world: World, run: Run) -> Iterator[str]:
    """Find what is wrong with the undo of a run: only an aborted run is undone, wholly and in effect."""
    states = (*run.steps.values(), *run.branches.values())
    on_paper = sorted(state.id for state in states if state.compensation is CompensationStatus.DONE)
    really = world.upstream.taken_back.get(run.run_id, [])
    if len(really) != len(set(really)):
        yield f"undone more than once: {really}"
    if set(on_paper) - set(really):
        yield f"{on_paper} are undone on paper, and really {really}"
    if run.undo is None and really:
        yield f"{really} were undone without a request"
    mission = world.missions.get(run.task_id)
    if run.undo is not None and run.status is RunStatus.FAILED and mission and "undo_failed" not in mission.reasons:
        written = [state.id for state in states if state.step.operation in UNDOABLE and _is_done(state)]
        if left := [step for step in written if step not in on_paper]:
            yield f"it was undone, and {left} were not"


def _unreceipted(world: World, run: Run) -> Iterator[str]:
    """Writes that are done for the run, and not for the tool or out there."""
    effects = world.schemas["desk"].effects
    for state in (*run.steps.values(), *run.branches.values()):
        if _is_done(state) and state.step.operation in WRITES and state.result is not None:
            key = state.result.data["key"]  # type: ignore[index, call-overload]
            if not state.took_effect:
                continue  # the receipt of another run
            if (run.run_id, key) not in effects or effects[run.run_id, key][0] != "receipt":
                yield f"{key} has an answer and no receipt"
            if not world.upstream.executions[key]:
                yield f"{key} has an answer, and was never done"


def _is_done(state: StepState) -> bool:
    """Tell whether a call of its own has done something. In a step over a list, its branches do."""
    return state.fan_out is None and state.result is not None and state.result.status is not ResultStatus.ERROR


def _check_answers(world: World, found: list[str]) -> None:
    for service, tables in world.schemas.items():
        if service != "executor":
            found.extend(
                f"the answer of {service} to {job.key[1]} was stored and never published"
                for job in tables.jobs.values()
                if job.answer is not None and f"{job.key[1]}:answer" not in world.watch.arrived
            )


def _check_effects(world: World, found: list[str]) -> None:
    upstream = world.upstream
    if not any(
        "pause" in fault for fault in world.faults
    ):  # a process that is paused before a call makes it when it resumes
        found.extend(f"{key} took effect while its run was being undone" for key in upstream.too_late)
    for number, keys in upstream.booked.items():
        if len(keys) > 1:
            found.append(f"book:{number} took effect under {sorted(keys)}")
    tables = world.schemas["desk"]
    for at, callback in tables.callbacks.items():
        if callback.result is not None and not callback.failed and tables.effects[at][0] != "receipt":
            found.append(f"{at[1]}: its callback has come, and there is no receipt")
    for (run_id, step), keys in upstream.keys.items():
        if len(keys) > 1:
            found.append(f"{run_id} {step} took effect under {sorted(keys)}")
