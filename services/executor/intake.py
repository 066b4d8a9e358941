"""Intake: from a record's bytes to a message for one run, or to a refusal.

A task becomes a run here; an answer or a command is handed to the machine. Nothing here knows Kafka's
offsets or Postgres: the loop around it does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, TypeAdapter, ValidationError

from triptych.executor import task_sizes
from triptych.executor.child_messages import (
    ChildAdmission,
    ChildRefusal,
    ChildWithdrawal,
    asked_task,
    child_answer,
    child_notice,
    child_refusal,
    withdrawal,
)
from triptych.executor.commands import InvalidCommand
from triptych.executor.deployments import Deployment, InvalidPlaybook
from triptych.executor.fingerprint import fingerprint_of
from triptych.executor.machine import GivenUp, Message, Start, Tick, begin, decide
from triptych.executor.messages import endings, messages, rejection
from triptych.executor.notices import notices
from triptych.executor.plan_cache import PlanCache
from triptych.executor.plan_reader import PlanReader
from triptych.executor.settings import INPUT_MAX_BYTES, MAX_ACTIVE_RUNS
from triptych.executor.state import Run, RunStatus
from triptych.executor.task_sizes import TaskSizes
from triptych.executor.transition import Decided
from triptych.executor.trust import AnyAnswer, Contracts, Trust
from triptych.executor.unreadable import Sender, sender_of
from triptych.json_schema import MAX_PROBLEMS, describe_errors, with_defaults
from triptych.kernel.decider import (
    FORWARDED,
    AdmissionLimits,
    AdmissionState,
    InboundRecord,
    LimitKey,
    RejectedRecord,
    RunMessage,
    Submission,
    TaskKey,
    Transition,
    UnreadRecord,
)
from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.kafka import cloudevents
from triptych.kernel.kafka.bus import REQUEST_MAX_BYTES, Record, place
from triptych.kernel.kafka.dead_letters import stated_tenant
from triptych.kernel.kafka.record_batches import UnreadableRecord
from triptych.kernel.postgres.database import as_in_rows
from triptych.kernel.process.tracing import TraceContext
from triptych.kernel.run_ids import begins_at_ms, derive_run_id
from triptych.schemas import (
    TASK_MAX_BYTES,
    Answer,
    CallAnswer,
    ChildTask,
    Control,
    ControlAction,
    ErrorCode,
    Json,
    PlanAnswer,
    Playbook,
    Reason,
    Result,
    ResultStatus,
    Task,
    ToolError,
    VerdictAnswer,
    codec,
    topics,
)
from triptych.schemas.base import Tenant
from triptych.schemas.codec import InvalidJson, NotJson
from triptych.schemas.task import TaskId

CONFLICT = "conflict"
"""The code of a task whose id belongs to another one."""

_ORIGIN = re.compile(rb"[A-Za-z0-9._-]{1,100}:[0-9]{1,10}:[0-9]{1,20}:-?[0-9]{1,20}")
"""The place of a record that was forwarded; anybody may have written the header."""

_TASK_ID: TypeAdapter[str] = TypeAdapter(TaskId)
_TENANT: TypeAdapter[str] = TypeAdapter(Tenant)
ANSWER_SUFFIX = ":answer"
"""Ends the `ce_id` of an answer; what comes before is the request that it answers."""

ModelT = TypeVar("ModelT", bound=BaseModel)

_ANSWERS: dict[str, type[Answer]] = {
    topics.PLANS: PlanAnswer,
    topics.RESULTS: CallAnswer,
    topics.VERDICTS: VerdictAnswer,
}


@dataclass(frozen=True, slots=True)
class TaskAdmission:
    """A task that is fit to become a run."""

    task: Task
    task_id: str
    playbook: Playbook
    traceparent: str | None = None
    """What its run goes on from, if a trace has been begun."""


@dataclass(frozen=True, slots=True)
class UnverifiedMessage:
    """What came on the topic of the clients and says that a run has sent it, as runs did in earlier versions."""

    content: object
    rejection: UndecodableRecord
    """The refusal, when the record of a run does not confirm it."""


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
        input_max_bytes: int = INPUT_MAX_BYTES,
        contracts: Contracts | None = None,
        *,
        left_out: Mapping[str, InvalidPlaybook] | None = None,
    ) -> None:
        """Take the playbooks. Without `contracts`, plans and results are not checked: for tests of other things."""
        self._trust = Trust(contracts)
        self._input_max_bytes = input_max_bytes
        self._plans = PlanReader()
        self._known_plans = PlanCache(contracts)
        self._active_runs: dict[str, int] = {}
        self._limits = AdmissionLimits(max_active_runs, tenant_active_runs or {}, self._active_runs)
        self.offer(deployments, left_out or {})

    def offer(self, deployments: Mapping[str, Deployment], left_out: Mapping[str, InvalidPlaybook]) -> None:
        """Offer these to new tasks, from the next one on. Runs that have begun keep their version."""
        self._deployments, self._left_out = deployments, left_out
        playbooks = {name: deployment.playbook for name, deployment in deployments.items()}
        self._sizes = TaskSizes(self._input_max_bytes, playbooks)
        self._active_runs.clear()
        for name, playbook in playbooks.items():
            if playbook.limits and playbook.limits.active_runs:
                self._active_runs[name] = playbook.limits.active_runs

    def given_up(self, cause: str) -> GivenUp:
        """Return the message that hands a run over to a person."""
        return GivenUp(Reason(code="deadly_run", message=cause))

    def check_size(self, noun: str, record: Record[Any, Any]) -> None:
        """Refuse a record that cannot be read at all, or is too large to be unpacked.

        Raises:
            UndecodableRecord: no service of ours would have sent it.
            RejectedRecord: it is a task, larger than any playbook allows.
        """
        if isinstance(record, UnreadableRecord):
            raise self._unparsed(noun, record)
        content = record.value or b""
        if noun == topics.TASKS:
            if not self._sizes.may_be_unpacked(content):
                raise self._too_large(record, content)
        elif len(content) > REQUEST_MAX_BYTES:
            message = f"the record has {len(content):,} bytes, and may have {REQUEST_MAX_BYTES:,}"
            raise UndecodableRecord("record_too_large", message)

    def unread(
        self, noun: str, record: Record[Any, Any], error: UndecodableRecord, task: TaskKey | None = None
    ) -> UnreadRecord:
        """Refuse a record that must not be read. The headers of our own messages say what they answer."""
        event_id, tenant = cloudevents.event_id(record.headers) or "", stated_tenant(record)
        reason = Reason(code=error.code, message=error.message)
        if noun == topics.TASKS:
            task_id = _name(_TASK_ID, event_id.removeprefix(f"task:{tenant}:")) if "task:" in event_id else None
            known = task or TaskKey(tenant, task_id or "")
            return UnreadRecord(_refusal(record, known.task_id or None, known.tenant, "", reason))
        answer = _answer_in_place(noun, record, event_id.removesuffix(ANSWER_SUFFIX), tenant, reason)
        return UnreadRecord(error, RunMessage(as_in_rows(answer.run_id), answer) if answer is not None else None)

    def _unparsed(self, noun: str, record: UnreadableRecord) -> UndecodableRecord:
        """Return why a record that cannot be read is refused. If its value is a task, its sender gets an outcome."""
        body, is_batch = record.value or b"", record.first_offset < record.offset
        if noun != topics.TASKS or is_batch or not self._sizes.may_be_read(body):
            return record.error
        if not body.startswith(b"{") or (sender := sender_of(body)) is None:
            return record.error
        return _rejection(sender, _derived_id(record), record.error.code, record.error.message, may_be_known=True)

    def read(self, inbound: InboundRecord) -> RunMessage:
        """Read a record.

        Raises:
            UndecodableRecord: it is not JSON, or not the message that its topic carries.
            RejectedRecord: it is a task that no run can be made of.
        """
        body = cloudevents.without_nul(inbound.body)
        if inbound.noun == topics.TASKS:
            return self._read_task(inbound, body)
        if inbound.noun == topics.CHILD_TASKS:
            return self._read_child_task(_parsed(partial(codec.read, ChildTask), ChildTask, body), len(body))
        model: type[Answer | Control] = _ANSWERS.get(inbound.noun, Control)
        readable: codec.Readable[Answer | Control] = model
        message: Answer | Control
        if model is PlanAnswer:
            message = _parsed(self._plans.read, model, body)
        else:
            message = _parsed(lambda raw: codec.read(readable, raw, limits=codec.ANSWER), model, body)
        stated = cloudevents.header(inbound.record.headers, "ce_source") if model is CallAnswer else None
        return RunMessage(
            as_in_rows(message.run_id),
            message,
            witness=_child_that_speaks(message),
            source=stated.decode(errors="replace") if stated is not None else None,
        )

    @property
    def limits(self) -> AdmissionLimits:
        """How many runs may be active."""
        return self._limits

    def limit_key(self, state: Run) -> LimitKey:
        """Return the tenant and the playbook, by which runs are limited."""
        return LimitKey(state.tenant, state.playbook.name)

    def admission_state(self, state: Run) -> AdmissionState:
        """Return whether the run takes room, waits for some, or neither."""
        if state.waits_because:
            return AdmissionState.AWAY
        if state.status.is_active or state.status is RunStatus.UNDOING:
            return AdmissionState.ACTIVE
        return AdmissionState.WAITING if state.status is RunStatus.QUEUED else AdmissionState.AWAY

    def partition(self, state: Run) -> int:
        """Return the run's partition, chosen once."""
        return state.partition

    def wake_at(self, state: Run) -> datetime | None:
        """Return when time alone may next change this run."""
        return state.wake_at()

    def apply(
        self,
        state: Run | None,
        message: RunMessage,
        partition: int,
        now: datetime,
        *,
        has_room: bool = True,
        witness: Run | None = None,
    ) -> Transition[Run] | None:
        """Apply a message to a run; None when it answers no open request. A new run is queued unless there is room.

        Raises:
            RejectedRecord: a client's task says that a run has sent it.
            UndecodableRecord: it names a run that does not exist, or says what the record of a run does not bear out.
        """
        if isinstance(message.content, UnverifiedMessage):
            honest = replace(message, content=message.content.content)
            try:
                return self.apply(state, honest, partition, now, has_room=has_room, witness=witness)
            except UndecodableRecord as error:
                raise message.content.rejection from error
        opening = _opening(state, message, partition, witness)
        if opening is not None:
            others = self._others(opening.playbook)
            decided = begin(
                opening.task.model_copy(update={"input": _input(opening.task, opening.playbook)}),
                task_id=opening.task_id,
                run_id=message.run_id,
                playbook=opening.playbook,
                partition=partition,
                now=now,
                has_room=has_room,
                traceparent=opening.traceparent,
                others=others,
                known_plan=self._known_plans.find(opening.playbook, others),
            )
            return _transition(decided, first_seq=1, now=now)
        content = _verified(state, message, witness)
        if content is None or state is None:
            return None
        if isinstance(content, AnyAnswer):
            answer = self._trust.verified(state, content, message.source)
            if answer is None:
                return None
            content = answer
        elif isinstance(content, Control) and (why := self._trust.invalid_answer(state, content)):
            content = InvalidCommand(content, why)
        decided = self._decide(state, content, now)
        return _transition(decided, first_seq=state.seq + 1, now=now) if decided.events else None

    def _decide(self, state: Run, message: Message, now: datetime) -> Decided:
        """Decide with the known plan, if the run may need one, and learn plans from the planner's answers."""
        known_plan = self._known_plans.find(state.playbook, state.others) if state.revision == 0 else None
        decided = decide(state, message, now, known_plan)
        if isinstance(message, PlanAnswer) and state.revision < decided.run.revision:
            self._known_plans.keep(decided.run, message, now)
        elif isinstance(message, CallAnswer):
            self._known_plans.drop_if_outdated(state, message)
        return decided

    def task(self, state: Run) -> TaskKey:
        """Return the task that the run came from."""
        return TaskKey(state.tenant, state.task_id)

    def conflict(self, submission: Submission) -> RejectedRecord:
        """Refuse a task whose id belongs to another one. The outcome is not final: the id has a final one already."""
        tenant, task_id = submission.task
        message = (
            f"task id {task_id!r} of tenant {tenant} belongs to a task with another playbook, principal or input; "
            "give this one an id of its own"
        )
        derived_id = _derived_id(submission.record)
        reply = rejection(
            task_id=task_id,
            tenant=tenant,
            playbook="",
            reason=Reason(code=CONFLICT, message=message),
            event_id=f"{derived_id}:conflict",
            final=False,
            record=derived_id.rpartition(":")[0],
        )
        return RejectedRecord(CONFLICT, message, tenant=tenant, replies=(reply,))

    def again(self, state: Run) -> Transition[Run]:
        """Send the final outcome once more, under the same id and with the same body."""
        return Transition(
            state=state,
            name=state.name,
            tenant=state.tenant,
            partition=state.partition,
            first_seq=0,
            events=(),
            sends=endings(state),
            trace=state.trace,
        )

    def _read_task(self, inbound: InboundRecord, body: bytes) -> RunMessage:
        record = inbound.record
        derived_id = _derived_id(record)
        if not self._sizes.may_be_read(body):
            raise self._too_large(record, body)
        try:
            task = codec.read(Task, body, limits=codec.TASK, unique_names=True)
        except InvalidJson as error:
            raise _unreadable(body, derived_id, error) from error
        except ValidationError as error:
            if (child_task := _as_child_task(body)) is not None:
                return self._read_claim(body, derived_id, child_task)
            raise _rejected(body, derived_id, "invalid_task", _explain(error)) from error
        fit = self._fit(task, len(body))
        if isinstance(fit, Reason):
            raise _rejected(body, derived_id, fit.code, fit.message, task, fingerprint_of(task))
        task_id = task.task_id or derived_id
        return RunMessage(
            as_in_rows(derive_run_id(task.tenant, task_id, begins_at_ms(record.timestamp, inbound.at))),
            TaskAdmission(task, task_id, fit, _traceparent(record)),
            creates=LimitKey(task.tenant, task.playbook),
            task=TaskKey(task.tenant, task_id),
            fingerprint=fingerprint_of(task),
        )

    def _fit(self, task: Task, size_bytes: int) -> Playbook | Reason:
        """Return the playbook that a task is fit for, or why no run can be made of it."""
        deployment = self._deployments.get(task.playbook)
        if deployment is None:
            if (left_out := self._left_out.get(task.playbook)) is not None:
                message = f"the playbook {task.playbook!r} was left out: {left_out.public_reason}"
                return Reason(code="unknown_playbook", message=message)
            known = ", ".join(sorted(self._deployments)) or "none"
            message = f"there is no playbook {task.playbook!r}; deployed are: {known}"
            return Reason(code="unknown_playbook", message=message)
        if size_bytes > self._sizes.of(task.playbook):
            return self._too_large_reason(task.playbook, size_bytes)
        errors = deployment.input_schema.schema_errors(_input(task, deployment.playbook), MAX_PROBLEMS + 1)
        return Reason(code="invalid_input", message=describe_errors(errors, "input")) if errors else deployment.playbook

    def _others(self, playbook: Playbook) -> tuple[Playbook, ...]:
        """Return the playbooks that runs of this one may hand over to, as they are deployed."""
        deployed = (self._deployments.get(name) for name in playbook.handoffs)
        return tuple(each.playbook for each in deployed if each is not None)

    def _read_child_task(self, task: ChildTask, size_bytes: int) -> RunMessage:
        """Read the task of a child run, or its withdrawal. The parent's record is the witness."""
        # A child's id is known to its parent before the broker has seen its task.
        child = as_in_rows(derive_run_id(task.tenant, task.task_id, task.parent.asked_at_ms))
        parent = as_in_rows(task.parent.run_id)
        if task.parent.withdrawn:
            return RunMessage(child, ChildWithdrawal(task), witness=parent)
        fit = self._fit(task, size_bytes)
        if isinstance(fit, Reason):
            return RunMessage(parent, ChildRefusal(task, child, fit), witness=child)
        return RunMessage(
            child,
            ChildAdmission(task, fit),
            creates=LimitKey(task.tenant, task.playbook),
            is_child=True,
            witness=parent,
        )

    def _read_claim(self, body: bytes, derived_id: str, task: ChildTask) -> RunMessage:
        """Read a child's task on the topic of the clients: runs sent them there before they had their own topic."""
        message = "parent: only a run hands over to another one, and no run has sent this; leave `parent` out"
        addressed = self._read_child_task(task, len(body))
        claimed = UnverifiedMessage(addressed.content, _rejected(body, derived_id, "invalid_task", message, task))
        return replace(addressed, content=claimed)

    def _too_large(self, record: Record[Any, Any], body: bytes) -> RejectedRecord:
        """Refuse a task without reading it: only its names say whose it is."""
        sender = task_sizes.sender(body)
        playbook = sender.playbook
        tenant = _name(_TENANT, sender.tenant) or stated_tenant(record)
        reason = self._too_large_reason(playbook or None, len(body))
        return _refusal(record, _name(_TASK_ID, sender.task_id), tenant, playbook, reason)

    def _too_large_reason(self, playbook: object, size_bytes: int) -> Reason:
        return Reason(
            code="input_too_large",
            message=f"the task has {size_bytes:,} bytes, and may have {self._sizes.of(playbook):,}. Put what is large "
            "where a tool can read it and send its address, or raise `limits.input_bytes` of the playbook (at most "
            f"{TASK_MAX_BYTES:,})",
        )


def _refusal(
    record: Record[Any, Any], task_id: str | None, tenant: str, playbook: str, reason: Reason
) -> RejectedRecord:
    """Refuse a task that was not parsed. Without its own id, its place in Kafka names it."""
    derived_id = _derived_id(record)
    reply = rejection(
        task_id=task_id or derived_id,
        tenant=tenant,
        playbook=playbook,
        reason=reason,
        event_id=f"{derived_id}:rejected",
    )
    key = TaskKey(tenant, task_id) if task_id else None
    return RejectedRecord(reason.code, reason.message, tenant=tenant, replies=(reply,), task=key)


def _answer_in_place(
    noun: str, record: Record[Any, Any], request_id: str, tenant: str, reason: Reason
) -> Answer | None:
    """Make an error in place of an answer that must not be read; None where its request is unknown."""
    error = ToolError(code=ErrorCode.CONTRACT_VIOLATION, message=reason.message, details={"reason": reason.code})
    try:
        known: dict[str, Any] = {
            "request_id": request_id,
            "run_id": UUID((record.key or b"").decode()),
            "tenant": tenant,
        }
        match noun:
            case topics.PLANS:
                return PlanAnswer(**known, error=error)
            case topics.RESULTS:
                return CallAnswer(**known, result=Result(status=ResultStatus.ERROR, error=error))
            case topics.VERDICTS:
                return VerdictAnswer(**known, error=error)
    except ValueError:  # the key or the id is none of ours
        pass
    return None


def _traceparent(record: Record[Any, Any]) -> str | None:
    known = TraceContext.of_headers(record.headers)
    return known[0] if known else None


def _derived_id(record: Record[Any, Any]) -> str:
    """Return the id of a task without one: the place where it first came in."""
    forwarded = cloudevents.header(record.headers, FORWARDED)
    origin = _ORIGIN.fullmatch(forwarded or b"")
    return origin[0].decode() if origin else place(record)


def _name(kind: TypeAdapter[str], content: object) -> str | None:
    """Return the text if it is a name of this kind, or None."""
    try:
        return kind.validate_python(content)
    except ValidationError:
        return None


def _opening(state: Run | None, message: RunMessage, partition: int, witness: Run | None) -> TaskAdmission | None:
    """Return the task that a message begins a run with; None when it does not begin a run."""
    match message.content:
        case TaskAdmission() if state is None:
            return message.content
        case ChildAdmission(told, playbook):
            task = asked_task(witness, told, message.run_id, partition)
            if task is None or witness is None or state is not None:
                return None
            return TaskAdmission(task, task.task_id, playbook, witness.trace.parent(task.parent.request_id))
    return None


def _input(task: Task, playbook: Playbook) -> dict[str, Json]:
    """Return the input of a run: what its task says, and the defaults of the playbook's schema."""
    return with_defaults(playbook.input, task.input) if playbook.has_defaults else task.input


def _verified(state: Run | None, message: RunMessage, witness: Run | None) -> Message | None:
    """Return the message as far as the records of runs confirm it; None when no message is left."""
    content = message.content
    if isinstance(content, TaskAdmission | ChildAdmission) or (state is None and isinstance(content, Tick | Start)):
        return None
    if isinstance(content, ChildWithdrawal):
        return withdrawal(state, witness, content.task)
    if state is None:
        raise UndecodableRecord("unknown_run", f"there is no run {message.run_id}")
    if isinstance(content, ChildRefusal):
        return child_refusal(state, witness, content)
    if isinstance(content, CallAnswer) and content.child is not None:
        return child_answer(state, witness, content)
    if isinstance(content, Control) and content.action is ControlAction.CHILD:
        return child_notice(state, witness, content)
    assert isinstance(content, Message)  # noqa: S101
    return content


def _child_that_speaks(message: Answer | Control) -> UUID | None:
    """Return the child run that an answer or a notice is from, if it is from one."""
    match message:
        case CallAnswer(child=UUID() as child):
            return as_in_rows(child)
        case Control(action=ControlAction.CHILD, data={"run_id": str(name)}):
            try:
                return as_in_rows(UUID(name))
            except ValueError:
                return None
    return None


def _as_child_task(body: bytes) -> ChildTask | None:
    try:
        return codec.read(ChildTask, body)
    except (InvalidJson, ValidationError):
        return None


def _parsed(read: Callable[[bytes], ModelT], model: type[BaseModel], body: bytes) -> ModelT:
    try:
        return read(body)
    except InvalidJson as error:
        raise UndecodableRecord("invalid_json", str(error)) from error
    except ValidationError as error:
        raise UndecodableRecord(f"invalid_{model.__name__.lower()}", _explain(error)) from error


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
        notices=notices(run, decided.events),
        trace=run.trace,
    )


def _unreadable(body: bytes, derived_id: str, error: InvalidJson) -> UndecodableRecord:
    """Refuse a record that is not JSON: without an answer, unless it says whose it is."""
    sender = sender_of(body)
    if not isinstance(error, NotJson):
        return _rejection(sender, derived_id, "invalid_json", str(error), may_be_known=True)
    if sender is None or not (sender.task_id or sender.hint):
        return UndecodableRecord("not_json", f"the task is not JSON: {error}")
    return _rejection(sender, derived_id, "invalid_json", sender.hint or str(error), may_be_known=True)


def _rejected(  # noqa: PLR0917
    body: bytes,
    derived_id: str,
    code: str,
    message: str,
    task: Task | None = None,
    fingerprint: bytes | None = None,
) -> UndecodableRecord:
    """Make a dead letter, and a `rejected` outcome when the record says whose it was."""
    sender = sender_of(body)
    told = sender.hint if sender and sender.hint else message
    return _rejection(sender, derived_id, code, told, may_be_known=task is not None, fingerprint=fingerprint)


def _rejection(
    sender: Sender | None,
    derived_id: str,
    code: str,
    message: str,
    *,
    may_be_known: bool,
    fingerprint: bytes | None = None,
) -> UndecodableRecord:
    if sender is None:
        return UndecodableRecord(code, f"a task is a JSON object: {message}")
    tenant = sender.tenant or "default"
    reply = rejection(
        task_id=sender.task_id or derived_id,
        tenant=tenant,
        playbook=sender.playbook,
        reason=Reason(code=code, message=message),
        event_id=f"{derived_id}:rejected",
    )
    key = TaskKey(tenant, sender.task_id) if may_be_known and sender.task_id else None
    return RejectedRecord(code, message, tenant=tenant, replies=(reply,), task=key, fingerprint=fingerprint)


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(str(part) for part in p['loc']) or 'value'}: {p['msg']}" for p in problems[:5])
