"""The run: everything that is known of one execution of one task. Without I/O.

The parts of a run are immutable. Only the fold changes the run itself, in a copy that it made.

All that `machine.decide` needs must be in this state, because a run that is read from the journal after a crash has
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any
from uuid import UUID

from triptych.executor import events as ev
from triptych.executor.budgets import BudgetLedger
from triptych.kernel.process.tracing import TraceContext
from triptych.kernel.values import changed
from triptych.schemas import (
    HANDOFF,
    Grant,
    Json,
    Parent,
    Playbook,
    Reason,
    Result,
    ResultStatus,
    StandIn,
    Step,
    StepRecord,
    TaskLedger,
    UnderWay,
    Usage,
)


class RunStatus(StrEnum):
    QUEUED = "queued"
    """Admitted, and waiting for room to start."""
    PLANNING = "planning"
    RUNNING = "running"
    REVIEWING = "reviewing"
    ESCALATED = "escalated"
    UNDOING = "undoing"
    """Aborted, and what it has written is being undone."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in _FINAL

    @property
    def is_active(self) -> bool:
        return self in _ACTIVE


# Tuples are searched by identity; to look into a set, a member of an enum is hashed, by a Python function.
_FINAL = (RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED)
_ACTIVE = (RunStatus.RUNNING, RunStatus.PLANNING, RunStatus.REVIEWING)


class StepStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    RETRYING = "retrying"
    ANSWERED = "answered"
    """There is a result, and nothing has been decided about it yet."""
    REVIEWING = "reviewing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"

    @property
    def has_ended(self) -> bool:
        """Whether steps that depend on this one may start."""
        return self in _ENDED

    @property
    def is_under_way(self) -> bool:
        return self in _UNDER_WAY


_ENDED = (StepStatus.SUCCEEDED, StepStatus.SKIPPED)
_UNDER_WAY = (StepStatus.RUNNING, StepStatus.RETRYING, StepStatus.ANSWERED, StepStatus.REVIEWING)


class RequestKind(StrEnum):
    """What the executor asks of its workers."""

    PLAN = "plan"
    CALL = "call"
    REVIEW = "review"
    UNDO = "undo"
    KEY = "key"
    """A business key, of the database and not of a worker."""


class CompensationStatus(StrEnum):
    NOT_ASKED = "not_asked"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class OpenRequest:
    """A request that has no answer yet, and what is reserved for it."""

    kind: RequestKind
    step: str | None
    reserved: Grant
    reissue_at: datetime
    event: ev.Requested
    reissues: int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """Something to ask again when its time has come."""

    kind: RequestKind
    step: str | None
    due_at: datetime


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """A write that happened, or may have. It stays known, also when a critic, a person or a later plan rejects it."""

    arguments: dict[str, Json]
    result: Result | None
    """What it answered; None while it is unknown whether it happened."""
    revision: int
    """The plan that wanted it."""
    idempotency_key: str
    answered_at: datetime
    """When the last answer came that leaves it open, or says, that it happened."""


@dataclass(frozen=True)
class FanOut:
    """The items of a step that makes a call for each, and how far their branches are.

    A branch is a step state of its own, with its own call, key, attempts and review. The counts here spare a search
    among all branches, so that a branch costs the same among ten and among a thousand.
    """

    items: list[Json]
    next: int = 0
    """The first branch that may wait: none before it does."""
    under_way: int = 0
    answered: int = 0
    """Branches with a result that nothing has been decided about; they count as under way."""
    ended: int = 0
    failed: int = 0

    @property
    def is_over(self) -> bool:
        return self.ended + self.failed == len(self.items)


def branch_id(step_id: str, index: int) -> str:
    """Return the id of a branch. No step can have it, since the id of a step has no dot."""
    return f"{step_id}.{index}"


def step_of(state_id: str) -> str:
    """Return the id of the step that a branch belongs to; for a step, its own."""
    return state_id.partition(".")[0]


@dataclass(frozen=True)
class StepState:
    """One step of the plan as it stands, or one branch of a step that makes a call for each item."""

    step: Step
    revision: int
    index: int | None = None
    """Which branch this is; None for the step itself."""
    fan_out: FanOut | None = None
    """The branches of this step, once it has any."""
    status: StepStatus = StepStatus.WAITING
    call: int = 1
    attempts: int = 0
    review_attempts: int = 0
    round: int = 1
    feedback: dict[str, Json] | None = None
    """What the critic had against the round before."""
    counted: bool = False
    uncounted: bool = False
    """Its last call met an outage, and has been given back to the budget."""
    written: WriteRecord | None = None
    """From then on it never gets another idempotency key."""
    business_key: str | None = None
    """The key that no other write may use, until it is known that this one did nothing."""
    key_waits: int = 0
    """How often in a row its business key was held by a call under way."""
    is_superseded: bool = False
    """A later plan gave its name to another operation. What it wrote stays known, as `<step>~<revision>`."""
    postponed: int = 0
    """How often in a row a breaker refused the call without making it."""
    fallback: int = 0
    """Which of the step's fallbacks replaces its operation, from 1; 0: none."""
    arguments: dict[str, Json] = field(default_factory=dict)
    child: UUID | None = None
    """The run that was started for it, when it hands over to another playbook."""
    result: Result | None = None
    is_overridden: bool = False
    """A person has settled it, and may do so again."""
    compensation: CompensationStatus = CompensationStatus.NOT_ASKED
    compensation_attempts: int = 0
    reason: Reason | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def name(self) -> str:
        """What its idempotency key calls it."""
        return self.step.id if self.index is None else branch_id(self.step.id, self.index)

    @property
    def id(self) -> str:
        """What events and requests call it."""
        return f"{self.name}~{self.revision}" if self.is_superseded else self.name

    @property
    def took_effect(self) -> bool:
        """Whether it is a write that happened, or may have."""
        return self.written is not None

    @property
    def answer_to_keep(self) -> Result | None:
        """What a write has answered; where that is unknown, what a person says that it did."""
        if self.written is not None and self.written.result is not None:
            return self.written.result
        return self.result if self.result is not None and self.result.status is not ResultStatus.ERROR else None

    @property
    def stand_in(self) -> StandIn | None:
        """The fallback that replaces the step's own operation."""
        return self.step.fallback[self.fallback - 1] if self.fallback else None

    @property
    def acting(self) -> Step:
        """The step as it is called now: by its own operation, or by the one that replaces it."""
        stand_in = self.stand_in
        if stand_in is None or stand_in.pin is None or stand_in.fallback.operation is None:
            return self.step
        arguments = self.step.arguments if stand_in.fallback.arguments is None else stand_in.fallback.arguments
        changes = {"operation": stand_in.fallback.operation, "arguments": arguments, "pin": stand_in.pin}
        return self.step.model_copy(update=changes | {"must_come_from": {}})

    @property
    def is_handoff(self) -> bool:
        return self.step.operation == HANDOFF

    @property
    def has_key_to_keep(self) -> bool:
        """Whether a repeat must be known as one. A read gets a new key, and another child run is another run."""
        return self.step.pin.effect.writes and not self.is_handoff

    @property
    def is_failed(self) -> bool:
        return self.status is StepStatus.FAILED

    def record(self) -> StepRecord:
        """Return what others may know of this step."""
        return StepRecord(
            id=self.step.id,
            operation=self.acting.operation,
            status=self.status,
            arguments=self.arguments,
            result=self.result,
            reason=self.reason,
        )

    def again(self) -> StepState:
        """Back to waiting with fresh attempts. A read is a new call; a write keeps its idempotency key."""
        return changed(
            self,
            status=StepStatus.WAITING,
            call=self.call if self.has_key_to_keep or not self.attempts else self.call + 1,
            attempts=0,
            postponed=0,
            fallback=self.fallback if self.took_effect else 0,
            review_attempts=0,
            result=None,
            reason=None,
            ended_at=None,
        )


@dataclass(frozen=True)
class Progress:
    """What tells progress from a circle: which calls were made, and what was learnt. See `loop_detection.py`."""

    calls: dict[str, int] = field(default_factory=dict)
    """How many steps made the same call."""
    facts: frozenset[str] = frozenset()
    facts_at_replan: int = 0
    facts_at_turn: int = 0
    stalls: int = 0
    """How many turns in a row have shown nothing new."""
    failed: dict[str, Reason] = field(default_factory=dict)
    """The calls that a plan has failed with, and why."""
    turns_from: int = 0
    """The revision from which turns are counted: a person who resumes gives as many again."""


@dataclass
class Run:
    """One execution of one task. Only the fold changes it: `fold.evolve` gives another run."""

    run_id: UUID
    tenant: str
    task_id: str
    principal: str
    partition: int
    playbook: Playbook
    input: dict[str, Json]
    started_at: datetime
    deadline_at: datetime
    ledger: BudgetLedger
    parent: Parent | None = None
    """The run that handed over to this one, and what it granted."""
    traceparent: str | None = None
    """What it goes on from, if a client or a parent has begun a trace."""
    others: tuple[Playbook, ...] = ()
    """The playbooks that it may hand over to."""
    status: RunStatus = RunStatus.PLANNING
    seq: int = 1
    revision: int = 0
    requested: int = 0
    steps: dict[str, StepState] = field(default_factory=dict)
    branches: dict[str, StepState] = field(default_factory=dict)
    """The branches of all steps that have some, by their ids; a step's are in the order of its items."""
    requests: dict[str, OpenRequest] = field(default_factory=dict)
    retries: dict[tuple[RequestKind, str | None], Retry] = field(default_factory=dict)
    task_ledger: TaskLedger | None = None
    answer: dict[str, Json] | None = None
    """The result that the planner gives once the goal is reached."""
    plan_attempts: int = 0
    review_attempts: int = 0
    failure: Reason | None = None
    """Why the last plan did not work out; the planner is told."""
    replan_due: bool = False
    progress: Progress = field(default_factory=Progress)
    writes: dict[str, dict[str, str]] = field(default_factory=dict)
    """The writes that may have happened: by the call, the idempotency keys under which, and whose steps they were."""
    repair: str | None = None
    """The step whose arguments are all that the planner is asked to mend."""
    repaired: frozenset[str] = frozenset()
    """The operations whose arguments it has been asked to mend."""
    reason: Reason | None = None
    stopped_step: str | None = None
    children_waiting: dict[str, Reason] = field(default_factory=dict)
    """The steps whose child runs wait for a person, and why; the wall clock is paused."""
    child_waits: int = 0
    """How often a child run has begun to wait for a person."""
    children_waiting_since: datetime | None = None
    """None as well while a person has this run: that time is given back when they resume it."""
    escalated_at: datetime | None = None
    escalations: int = 0
    undo: ev.UndoStarted | None = None
    """What a person asked for who wants it undone."""
    output: dict[str, Json] = field(default_factory=dict)
    left_open: dict[str, OpenRequest] = field(default_factory=dict)
    """The requests without an answer when it ended."""
    ledger_at_end: BudgetLedger | None = None
    """What its outcome says that it used; late answers cost more."""
    under_way: tuple[UnderWay, ...] = ()
    """The writes whose effect was unknown when it ended."""
    commands: frozenset[str] = frozenset()
    active_since: datetime | None = None
    """When it started: as it was admitted, or later, after it had been queued."""
    updated_at: datetime | None = None
    finished_at: datetime | None = None

    @cached_property
    def name(self) -> str:
        """The run id as text, for what is named after it. Printing a UUID is not cheap."""
        return str(self.run_id)

    @cached_property
    def trace(self) -> TraceContext:
        """The trace that it is a part of."""
        stated = self.traceparent
        return (stated and TraceContext.of_header(stated.encode())) or TraceContext.of_run(self.name)

    @property
    def waits_because(self) -> Reason | None:
        """Why it waits for a person: it is escalated, or a child run is. None while it does not wait."""
        if self.status is RunStatus.ESCALATED:
            return self.reason
        if not self.children_waiting or not self.status.is_active:
            return None
        return next(
            (
                Reason(code=why.code, message=f"the run of step {step} waits for a person: {why.message}"[:4_000])
                for step, why in self.children_waiting.items()
            ),
            None,
        )

    @property
    def public_status(self) -> RunStatus:
        """What people are told of it: a run is escalated as well while a child of it is."""
        return RunStatus.ESCALATED if self.waits_because else self.status

    @property
    def public_reason(self) -> Reason | None:
        """The reason that goes with it."""
        return self.waits_because or self.reason

    def copy(self) -> Run:
        """Return an equal run that shares nothing that the fold changes in place."""
        copy = object.__new__(Run)
        copy.__dict__ = self.__dict__.copy()
        copy.steps, copy.requests, copy.retries = self.steps.copy(), self.requests.copy(), self.retries.copy()
        copy.branches, copy.writes, copy.left_open = self.branches.copy(), self.writes.copy(), self.left_open.copy()
        return copy

    def state(self, state_id: str) -> StepState:
        """Return a step, or a branch of one."""
        return self.steps.get(state_id) or self.branches[state_id]

    def branches_of(self, state: StepState) -> Iterator[StepState]:
        """Yield the branches of a step, in the order of its items."""
        for index in range(len(state.fan_out.items) if state.fan_out else 0):
            yield self.branches[branch_id(state.step.id, index)]

    def scope(self) -> dict[str, Any]:
        """Return the variables that expressions in this run can see."""
        return {"input": self.input, "steps": _EndedSteps(self.steps), "answer": self.answer}

    def scope_of(self, state: StepState, **more: Json) -> dict[str, Any]:
        """Return the variables for a step, or for a branch, which sees its item too."""
        more["feedback"] = state.feedback
        if state.index is not None:
            more |= {"item": self.item_of(state), "index": state.index}
        return self.scope() | more

    def merged(self, state: StepState) -> Result:
        """Return what the branches of a step have given so far."""
        return _merge(state.fan_out.items if state.fan_out else (), self.branches_of(state))

    def item_of(self, state: StepState) -> Json:
        """Return the item of a branch; None for a step."""
        fan = self.steps[state.step.id].fan_out
        return fan.items[state.index] if fan is not None and state.index is not None else None

    def known_steps(self) -> list[StepState]:
        """Return the steps with a result or an end, in plan order; with branches, with their results so far."""
        known = (
            changed(state, result=self.merged(state)) if state.fan_out and not state.result else state
            for state in self.steps.values()
        )
        return [state for state in known if state.result or state.status.has_ended]

    def usage(self, now: datetime) -> Usage:
        """Return what the run has used up to `now`."""
        until = self.finished_at or now
        since = self.active_since or until
        ledger = self.ledger_at_end or self.ledger
        return Usage(
            steps=ledger.steps,
            tool_calls=ledger.tool_calls,
            tokens=ledger.tokens,
            usd=ledger.usd_micros / 1_000_000,
            wall_ms=max(0, round((until - since).total_seconds() * 1000)),
            replans=ledger.replans,
        )

    def deadline(self, now: datetime) -> datetime:
        """Return when the wall clock of this run is over, as far as is known `now`: the clock may be paused."""
        since = self.children_waiting_since
        return self.deadline_at if since is None else self.deadline_at + (now - since)

    def wake_at(self) -> datetime | None:
        """Return the earliest moment at which time alone may change this run; None when only a message can."""
        is_active = self.status.is_active
        moments = [request.reissue_at for request in self.requests.values()]
        if is_active and not self.children_waiting:
            moments.append(self.deadline_at)
        if self.retries and (is_active or self.status is RunStatus.UNDOING):
            moments += [retry.due_at for retry in self.retries.values()]
        return min(moments, default=None)


class _EndedSteps(Mapping[str, Any]):
    """What expressions may know of the steps. Few are referred to, so nothing is made before it is asked for."""

    def __init__(self, steps: Mapping[str, StepState]) -> None:
        self._steps = steps

    def __getitem__(self, step_id: str) -> dict[str, Any]:
        state = self._steps[step_id]
        if not state.status.has_ended:
            raise KeyError(step_id)
        return {"status": _scope_status(state), "data": state.result.data if state.result else None}

    def __iter__(self) -> Iterator[str]:
        return (step_id for step_id, state in self._steps.items() if state.status.has_ended)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _scope_status(state: StepState) -> str:
    return state.result.status.value if state.result else "skipped"


def _merge(items: Iterable[Json], branches: Iterable[StepState]) -> Result:
    """Merge the results of branches in the order of the items, independent of the order in which they ended."""
    merged = [{"item": item, **_branch_result(state)} for item, state in zip(items, branches, strict=True)]
    counts = {name: sum(branch["status"] == name for branch in merged) for name in ("ok", "empty", "error")}
    data = {**counts, "branches": merged}
    return Result.empty(data) if counts["empty"] == len(merged) else Result.ok(data)


def _branch_result(state: StepState) -> dict[str, Any]:
    result = state.result
    if state.is_failed:
        error = result.error if result else None
        code, message = (error.code.value, error.message) if error else ("", "")
        if state.reason is not None and not code:
            code, message = state.reason.code, state.reason.message
        told: dict[str, Any] = {"status": "error", "error": {"code": code, "message": message}}
        return told if result is None or result.data is None else {**told, "data": result.data}
    if result is None or not state.status.has_ended:
        return {"status": state.status.value}
    return {"status": result.status.value, "data": result.data}
