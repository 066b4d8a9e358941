"""What comes in: from a record's bytes to a message for one run, and the refusal of what is no such thing.

A task becomes a run here; an answer or a command is handed to the machine. Nothing here knows Kafka's
offsets or Postgres: the loop around it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import orjson
from pydantic import ValidationError

from triptych.executor.deployments import Deployment
from triptych.executor.handoff import refused
from triptych.executor.machine import Message, Start, Tick, begin, decide
from triptych.executor.messages import endings, messages, rejection
from triptych.executor.plans import PlanReader
from triptych.executor.settings import MAX_ACTIVE_RUNS
from triptych.executor.state import Run, RunStatus
from triptych.executor.turn import Decided
from triptych.kernel import cloudevents
from triptych.kernel.bus import place
from triptych.kernel.database import as_in_rows
from triptych.kernel.decider import (
    FORWARDED,
    Addressed,
    Arrival,
    Kind,
    Limits,
    RejectedRecord,
    Standing,
    TaskKey,
    Transition,
)
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.run_ids import derive_run_id
from triptych.schemas import (
    Answer,
    CallAnswer,
    Control,
    ControlAction,
    Parent,
    PlanAnswer,
    Playbook,
    Reason,
    Task,
    VerdictAnswer,
    topics,
)

_ORIGIN = re.compile(rb"[A-Za-z0-9._-]{1,100}:[0-9]{1,10}:[0-9]{1,20}:-?[0-9]{1,20}")
"""The place of a record that was forwarded; anybody may have written the header."""

_ANSWERS: dict[str, type[Answer]] = {
    topics.PLANS: PlanAnswer,
    topics.RESULTS: CallAnswer,
    topics.VERDICTS: VerdictAnswer,
}


@dataclass(frozen=True, slots=True)
class Admission:
    """A task that is fit to become a run."""

    task: Task
    task_id: str
    playbook: Playbook


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """The parent of a child run has ended: the child is cancelled, unless it never began."""

    parent: Parent


class Executor:
    """The executor as the decider loop sees it."""

    nouns = topics.EXECUTOR_INPUTS
    tick = Tick()
    start = Start()

    def __init__(
        self,
        deployments: Mapping[str, Deployment],
        max_active_runs: int = MAX_ACTIVE_RUNS,
        tenant_active_runs: Mapping[str, int] | None = None,
    ) -> None:
        self._deployments = deployments
        self._plans = PlanReader()
        playbooks = {name: deployment.playbook.limits for name, deployment in deployments.items()}
        self._limits = Limits(
            max_active_runs,
            tenant_active_runs or {},
            {name: limits.active_runs for name, limits in playbooks.items() if limits and limits.active_runs},
        )

    def read(self, arrival: Arrival) -> Addressed:
        """What a record says.

        Raises:
            UndecodableRecord: it is not JSON, or not the message that its topic carries.
            RejectedRecord: it is a task that no run can be made of.
        """
        body = cloudevents.without_nul(arrival.body)
        if arrival.noun == topics.TASKS:
            return self._read_task(arrival, body)
        model: type[Answer | Control] = _ANSWERS.get(arrival.noun, Control)
        try:
            message = self._plans.read(body) if model is PlanAnswer else model.model_validate_json(body)
        except ValidationError as error:
            raise UndecodableRecord(f"invalid_{model.__name__.lower()}", _explain(error)) from error
        return Addressed(as_in_rows(message.run_id), message)

    @property
    def limits(self) -> Limits:
        """How many runs may be active."""
        return self._limits

    def kind(self, state: Run) -> Kind:
        """What limits go by."""
        return Kind(state.tenant, state.playbook.name)

    def standing(self, state: Run) -> Standing:
        """Whether it takes room, wants some, or neither."""
        if state.status.is_active or state.status is RunStatus.UNDOING:
            return Standing.ACTIVE
        return Standing.WAITING if state.status is RunStatus.QUEUED else Standing.AWAY

    def partition(self, state: Run) -> int:
        """The run's partition, chosen once."""
        return state.partition

    def wake_at(self, state: Run) -> datetime | None:
        """When time alone may next change this run."""
        return state.wake_at()

    def apply(
        self, state: Run | None, message: Addressed, partition: int, now: datetime, *, has_room: bool = True
    ) -> Transition[Run] | None:
        """What follows from a message; None when it answers nothing open. A new run is queued unless there is room.

        Raises:
            UndecodableRecord: it names a run that does not exist.
        """
        content = message.content
        if isinstance(content, Admission):
            if state is not None:
                return None
            decided = begin(
                content.task,
                task_id=content.task_id,
                run_id=message.run_id,
                playbook=content.playbook,
                partition=partition,
                now=now,
                has_room=has_room,
            )
            return _transition(decided, first_seq=1, now=now)
        if state is None:
            if isinstance(content, Tick | Start | Withdrawal):
                return None
            raise UndecodableRecord("unknown_run", f"there is no run {message.run_id}")
        if isinstance(content, Withdrawal):
            content = _cancellation(state, content.parent)
        assert isinstance(content, Message)  # noqa: S101
        decided = decide(state, content, now)
        return _transition(decided, first_seq=state.seq + 1, now=now) if decided.events else None

    def task(self, state: Run) -> TaskKey:
        """The task of which it came."""
        return TaskKey(state.tenant, state.task_id)

    def again(self, state: Run) -> Transition[Run]:
        """The final outcome once more, under the same id and with the same body."""
        return Transition(
            state=state,
            name=state.name,
            tenant=state.tenant,
            partition=state.partition,
            first_seq=0,
            events=(),
            sends=endings(state),
        )

    def _read_task(self, arrival: Arrival, body: bytes) -> Addressed:
        record = arrival.record
        forwarded = cloudevents.header(record.headers, FORWARDED)
        origin = _ORIGIN.fullmatch(forwarded or b"")
        derived_id = origin[0].decode() if origin else place(record)
        try:
            task = Task.model_validate_json(body)
        except ValidationError as error:
            raise _rejected(body, derived_id, "invalid_task", _explain(error)) from error
        if task.parent is not None and task.parent.withdrawn:
            run_id = derive_run_id(task.tenant, task.task_id or derived_id, task.parent.asked_at_ms)
            return Addressed(as_in_rows(run_id), Withdrawal(task.parent))
        deployment = self._deployments.get(task.playbook)
        if deployment is None:
            known = ", ".join(sorted(self._deployments)) or "none"
            message = f"there is no playbook {task.playbook!r}; deployed are: {known}"
            raise _rejected(body, derived_id, "unknown_playbook", message, task)
        problems = [
            f"input{''.join(f'.{part}' for part in problem.instance_path)}: {problem.message}"
            for problem in deployment.input_schema.iter_errors(task.input)
        ]
        if problems:
            raise _rejected(body, derived_id, "invalid_input", "; ".join(problems[:5]), task)
        task_id = task.task_id or derived_id
        # A child's id is known to its parent before the broker has seen its task.
        began_ms = record.timestamp if task.parent is None else task.parent.asked_at_ms
        return Addressed(
            as_in_rows(derive_run_id(task.tenant, task_id, began_ms)),
            Admission(task, task_id, deployment.playbook),
            creates=Kind(task.tenant, task.playbook),
            is_child=task.parent is not None,
            task=TaskKey(task.tenant, task_id),
        )


def _transition(decided: Decided, first_seq: int, now: datetime) -> Transition[Run]:
    run = decided.run
    return Transition(
        state=run,
        name=run.name,
        tenant=run.tenant,
        partition=run.partition,
        first_seq=first_seq,
        events=decided.events,
        sends=messages(run, decided.events, now),
    )


def _cancellation(child: Run, parent: Parent) -> Control:
    return Control(
        command_id=f"{parent.request_id}:withdrawn",
        run_id=child.run_id,
        action=ControlAction.CANCEL,
        principal=f"run:{parent.run_id}",
        note="the run that handed over to it has ended",
    )


def _rejected(body: bytes, derived_id: str, code: str, message: str, task: Task | None = None) -> UndecodableRecord:
    """A dead letter, and a `rejected` outcome when the record is JSON enough to say whose it was."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return UndecodableRecord("not_json", f"the task is not JSON: {error}")
    if not isinstance(fields, dict):
        return UndecodableRecord(code, f"a task is a JSON object, not a {type(fields).__name__}")
    task_id = _text(fields.get("task_id")) or derived_id
    tenant = _text(fields.get("tenant")) or "default"
    reply = rejection(
        task_id=task_id,
        tenant=tenant,
        playbook=_text(fields.get("playbook")),
        reason=Reason(code=code, message=message),
        event_id=f"{derived_id}:rejected",
    )
    replies = [reply]
    if task is not None and task.parent is not None:
        replies.append(refused(task, task.parent, Reason(code=code, message=message)))
    key = TaskKey(tenant, task_id) if task is not None and task.task_id else None
    return RejectedRecord(code, message, tenant=tenant, replies=tuple(replies), task=key)


def _text(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(str(part) for part in p['loc']) or 'value'}: {p['msg']}" for p in problems[:5])
