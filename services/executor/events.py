"""What can happen to a run. The journal is a list of these, and the run's state is a fold over it.

An event is a fact in the past tense with everything needed to replay it: no event is ever computed
again. Adding a field needs a default; a type is never renamed, because journals live longer than code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import field, fields
from datetime import datetime
from typing import Annotated, Any, get_args
from uuid import UUID

from pydantic import Field, TypeAdapter, ValidationError

from triptych.executor import encoding
from triptych.executor.encoding import encoded, given
from triptych.kernel.values import value
from triptych.schemas import (
    Decision,
    Grant,
    Json,
    OnRepeat,
    Parent,
    Plan,
    Playbook,
    Reason,
    Result,
    Spend,
    TaskLedger,
    ToolError,
    UnderWay,
    codec,
)
from triptych.schemas.base import newer

MaybeStep = Annotated[str | None, Field(default=None)]
"""A step, or None for the whole run; None is not written."""


@value
class RunAdmitted:
    """A task became a run. The playbook is journaled by name and version and looked up again on replay."""

    tenant: str
    task_id: str
    principal: str
    playbook: Playbook
    input: dict[str, Json]
    partition: int
    deadline_at: datetime
    parent: Parent | None = None
    """The run that handed over to this one."""
    queued: bool = False
    """There was no room, so it waits for `RunStarted`, which sets a new deadline."""
    traceparent: str | None = None
    """What the run goes on from: the client's span, or that of the run that handed over."""
    others: tuple[Playbook, ...] = ()
    """The playbooks that it may hand over to, as they were deployed; journaled like its own."""


@value
class RunStarted:
    """There was room for a queued run. Its wall clock runs from here."""

    deadline_at: datetime


@value
class PlanRequested:
    """The planner was asked for a revision of the plan."""

    request_id: str
    revision: int
    reserved: Grant
    deadline_at: datetime
    reissue_at: datetime
    failure: Reason | None = None
    turns_left: int = 0
    repair: str | None = None
    """The step whose arguments were refused, when that is all that is asked to be mended."""
    reuses: Annotated[bool, Field(exclude_if=newer(default=False))] = False
    """The plan of an earlier run is reused. Nothing is sent to the planner."""


@value
class PlanAccepted:
    """The planner answered with a plan."""

    request_id: str
    plan: Plan
    spend: Spend = field(default_factory=Spend)
    ledger: TaskLedger | None = None
    """What the planner wants to be told again, when it plans by turns."""
    worker: Annotated[str, Field(exclude_if=newer(""))] = ""
    """The process that made it."""
    made_at: datetime | None = None
    """When the planner answered with it, if it is the plan of an earlier run that is reused."""


@value
class GoalReached:
    """The planner answered that the goal is reached, and with what result."""

    request_id: str
    answer: dict[str, Json]
    spend: Spend = field(default_factory=Spend)
    ledger: TaskLedger | None = None


@value
class PlanRefused:
    """The planner answered without a plan."""

    request_id: str
    error: ToolError
    code: str | None = None
    spend: Spend = field(default_factory=Spend)


@value
class FanOutStarted:
    """A step makes a call for each of these items. From here on its branches are called `<step>.<index>`."""

    step: str
    items: list[Json]


@value
class FanInDone:
    """Every branch has ended or failed: what they gave, in the order of the items, is the step's result."""

    step: str


@value
class CallRequested:
    """A tool was asked for one attempt. Attempts of the same call share one idempotency key."""

    request_id: str
    step: str
    call: int
    attempt: int
    arguments: dict[str, Json]
    idempotency_key: str
    reserved: Grant
    deadline_at: datetime
    reissue_at: datetime
    child: UUID | None = None
    """The run that is started for it, when the step asks another playbook instead of a tool."""
    business_key: str | None = None
    """The key that was granted for it."""


@value
class KeyRequested:
    """A write has a business key: it is made when the key is free, or ours already."""

    request_id: str
    step: str
    key: str
    idempotency_key: str
    """Of the call that wants it."""
    for_ms: int
    on_repeat: OnRepeat
    reissue_at: datetime
    reserved: Grant = field(default_factory=Grant)


@value
class KeyAnswered:
    """How a business key stands: `granted`, `held` by a call under way, `receipt` or `conflict`."""

    request_id: str
    step: str
    standing: str
    holder: UUID | None = None
    """The run that has it."""
    holder_step: str = ""
    result: Result | None = None
    """For `receipt`: what the first write answered."""
    arguments: dict[str, Json] = field(default_factory=dict)


@value
class CallAnswered:
    """A tool answered one attempt."""

    request_id: str
    step: str
    result: Result
    spend: Spend = field(default_factory=Spend)
    worker: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    extended: Grant | None = None
    """What a person gave a child run beyond its grant; this run's budgets grow by as much."""
    uncounted: Annotated[bool, Field(exclude_if=newer(default=False))] = False
    """The upstream is down or overloaded, which is not the run's fault: the call does not count as a tool call."""


@value
class ChildEscalated:
    """A child run waits for a person. The wall clock of this run is paused meanwhile."""

    command_id: str
    step: str
    child: UUID
    reason: Reason


@value
class ChildResumed:
    """A child run that waited for a person goes on."""

    command_id: str
    step: str
    child: UUID


@value
class CallReused:
    """A later plan wanted a write that an earlier plan had done with the same arguments: its answer stands."""

    step: str
    source: str
    arguments: dict[str, Json]


@value
class FallbackTaken:
    """A step's operation stays unavailable: from here on its `number`-th fallback (from 1) replaces it."""

    step: str
    number: int
    reason: Reason


@value
class ReviewRequested:
    """The critic was asked about a step, or about the whole run when `step` is None."""

    request_id: str
    step: MaybeStep
    reserved: Grant
    deadline_at: datetime
    reissue_at: datetime
    output: dict[str, Json] = field(default_factory=dict)


@value
class VerdictGiven:
    """The critic judged."""

    request_id: str
    step: MaybeStep
    decision: Decision
    reason: Reason | None = None
    evidence: tuple[str, ...] = ()
    confidence: float | None = None
    spend: Spend = field(default_factory=Spend)


@value
class ReviewFailed:
    """The critic could not judge."""

    request_id: str
    step: MaybeStep
    error: ToolError
    spend: Spend = field(default_factory=Spend)


@value
class RetryScheduled:
    """Something will be asked again at `due_at`: a `plan`, a `call` or a `review`.

    `postponed` when a breaker refused the call without making it: no attempt is used up.
    """

    ask: str
    step: MaybeStep
    due_at: datetime
    reason: Reason
    postponed: bool = False


@value
class RequestReissued:
    """An open request was not answered in time, so the same request is sent again under the same id."""

    request_id: str
    reissue_at: datetime


@value
class RoundStarted:
    """The critic did not accept what a step made: it is made again, and told why."""

    step: str
    round: int
    reason: Reason
    evidence: tuple[str, ...] = ()


@value
class StepEnded:
    """A step has ended: `succeeded`, `failed` or `skipped`."""

    step: str
    status: str
    reason: Reason | None = None


@value
class ReplanDecided:
    """The plan did not work out. The planner is asked again once nothing is under way.

    With `repair` it is asked for other arguments of the step alone, which uses up no replan.
    """

    step: MaybeStep
    reason: Reason
    repair: bool = False


@value
class RunEscalated:
    """The run was handed to a person."""

    reason: Reason
    step: str | None = None


@value
class RunResumed:
    """A person told an escalated run to go on."""

    command_id: str
    principal: str
    deadline_at: datetime
    note: str = ""
    extend: dict[str, float] = field(default_factory=dict)


@value
class StepOverridden:
    """A person ended a step by hand and gave the result that it counts with."""

    command_id: str
    principal: str
    step: str
    data: Json = None
    note: str = ""


@value
class CommandRefused:
    """A person's command did not fit the run's state; nothing changed."""

    command_id: str
    principal: str
    action: str
    reason: Reason


@value
class RunEnded:
    """The run is over: `succeeded`, `failed` or `cancelled`. Nothing follows."""

    status: str
    reason: Reason
    output: dict[str, Json] = field(default_factory=dict)
    command_id: str | None = None
    principal: str | None = None
    children: tuple[str, ...] | None = None
    """The steps whose child runs were under way: these are cancelled."""
    under_way: tuple[UnderWay, ...] | None = None
    """The writes that may still take effect, or may have."""


@value
class AnsweredLate:
    """A worker answered after the run had ended: what it did and cost is known. The outcome stays as it is."""

    request_id: str
    step: MaybeStep
    result: Result | None = None
    """The result of a call."""
    error: ToolError | None = None
    """Why a planner or a critic gave nothing."""
    spend: Spend = field(default_factory=Spend)
    worker: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    extended: Grant | None = None


@value
class Overspent:
    """An answer cost more than its request was granted. All of it counts, and the run stops."""

    request_id: str
    step: MaybeStep
    granted: Grant
    spent: Grant


@value
class UndoStarted:
    """A person aborted the run and wants undone what it has written. It ends when that is done."""

    command_id: str
    principal: str
    note: str = ""
    children: tuple[str, ...] | None = None


@value
class UndoRequested:
    """A tool was asked for one attempt to undo a step. All attempts share one idempotency key."""

    request_id: str
    step: str
    arguments: dict[str, Json]
    attempt: int
    idempotency_key: str
    reserved: Grant
    deadline_at: datetime
    reissue_at: datetime


@value
class UndoAnswered:
    """A tool answered one attempt to undo a step."""

    request_id: str
    step: str
    result: Result


PlanEvent = PlanRequested | PlanAccepted | PlanRefused | GoalReached | ReplanDecided
CallEvent = KeyRequested | KeyAnswered | CallRequested | CallAnswered | CallReused | FallbackTaken
ReviewEvent = ReviewRequested | VerdictGiven | ReviewFailed | RoundStarted
StepEvent = FanOutStarted | FanInDone | StepEnded | StepOverridden
RequestEvent = RetryScheduled | RequestReissued | Overspent | AnsweredLate
ChildEvent = ChildEscalated | ChildResumed
UndoEvent = UndoStarted | UndoRequested | UndoAnswered
RunEvent = RunStarted | RunEscalated | RunResumed | RunEnded | CommandRefused
LaterEvent = PlanEvent | CallEvent | ReviewEvent | StepEvent | RequestEvent | ChildEvent | UndoEvent | RunEvent
"""Every event but the first."""
WorkerRequested = PlanRequested | CallRequested | ReviewRequested | UndoRequested
Requested = WorkerRequested | KeyRequested
Event = RunAdmitted | LaterEvent
"""Every event. What handles events ends in `assert_never`, so the type check names all places a new one belongs."""

_ADAPTERS: dict[str, TypeAdapter[Any]] = {each.__name__: TypeAdapter(each) for each in get_args(LaterEvent)}
_ADMITTED = tuple(each.name for each in fields(RunAdmitted))


def encode(event: Event) -> tuple[str, str]:
    """Encode an event as its type and its fields.

    What a message could hold can be written, and is the same when it is read again.

    Raises:
        InvalidJson: a value cannot be written; the edge that let it in is wrong.
    """
    name = type(event).__name__
    write = _WRITERS.get(name)
    data = write(event) if write else _ADAPTERS[name].serializer.to_json(event, exclude_none=True)
    return name, data.decode()


def to_lines(events: Iterable[Event]) -> str:
    """Encode events as the journal keeps them: a line for each, with its type, a space, and its fields as JSON.

    Raises:
        InvalidJson: a value cannot be written; the edge that let it in is wrong.
    """
    # A line break between two tokens of JSON means as much as a space.
    return "\n".join(" ".join(encode(event)).replace("\n", " ") for event in events)


def from_lines(lines: str) -> Iterator[tuple[str, str]]:
    """Return the type and the fields of each event of a journal row."""
    for line in lines.split("\n"):
        name, _, data = line.partition(" ")
        yield name, data


def _run_admitted(event: RunAdmitted) -> bytes:
    fields = {name: getattr(event, name) for name in _ADMITTED}
    fields["playbook"] = {"name": event.playbook.name, "version": event.playbook.version}
    fields["others"] = [{"name": other.name, "version": other.version} for other in event.others] or None
    return encoded({name: content for name, content in fields.items() if content is not None})


def _plan_accepted(event: PlanAccepted) -> bytes:
    more = given(ledger=event.ledger, worker=event.worker or None, made_at=event.made_at)
    around = {"request_id": event.request_id, "spend": event.spend, **more}
    return encoded(around)[:-1] + b',"plan":' + event.plan.encoded + b"}"


def _call_requested(event: CallRequested) -> bytes:
    fields = {
        "request_id": event.request_id,
        "step": event.step,
        "call": event.call,
        "attempt": event.attempt,
        "arguments": event.arguments,
        "idempotency_key": event.idempotency_key,
        "reserved": encoding.grant(event.reserved),
        "deadline_at": event.deadline_at,
        "reissue_at": event.reissue_at,
    }
    return encoded(fields | given(child=event.child, business_key=event.business_key))


def _call_answered(event: CallAnswered) -> bytes:
    fields = {
        "request_id": event.request_id,
        "step": event.step,
        "result": encoding.result(event.result),
        "spend": encoding.spend(event.spend),
        "worker": event.worker,
    }
    more = given(started_at=event.started_at, finished_at=event.finished_at, extended=event.extended)
    return encoded(fields | more | ({"uncounted": True} if event.uncounted else {}))


def _review_requested(event: ReviewRequested) -> bytes:
    fields = {
        "request_id": event.request_id,
        "reserved": encoding.grant(event.reserved),
        "deadline_at": event.deadline_at,
        "reissue_at": event.reissue_at,
        "output": event.output,
    }
    return encoded(fields | given(step=event.step))


def _verdict_given(event: VerdictGiven) -> bytes:
    fields = {
        "request_id": event.request_id,
        "decision": event.decision,
        "evidence": event.evidence,
        "spend": encoding.spend(event.spend),
    }
    return encoded(fields | given(step=event.step, reason=event.reason, confidence=event.confidence))


def _step_ended(event: StepEnded) -> bytes:
    return encoded({"step": event.step, "status": event.status, **given(reason=event.reason)})


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    "RunAdmitted": _run_admitted,
    "PlanAccepted": _plan_accepted,
    "CallRequested": _call_requested,
    "CallAnswered": _call_answered,
    "ReviewRequested": _review_requested,
    "VerdictGiven": _verdict_given,
    "StepEnded": _step_ended,
}
"""What is not as simple as its type says, and what every step has."""


def decode(event_type: str, data: str, playbooks: PlaybookLookup) -> Event:
    """Decode an event.

    Raises:
        KeyError: the type is unknown here; a newer version of the executor wrote this journal.
        LookupError: the run's playbook version is not in the catalogue.
    """
    if event_type == RunAdmitted.__name__:
        fields = codec.decode(data, limits=codec.STORED, unique_names=False)
        pinned = fields.pop("playbook")
        fields["deadline_at"] = datetime.fromisoformat(fields["deadline_at"])
        if parent := fields.pop("parent", None):
            fields["parent"] = Parent.model_validate(parent, strict=False)
        others = tuple(playbooks.get(other["name"], other["version"]) for other in fields.pop("others", ()))
        return RunAdmitted(playbook=playbooks.get(pinned["name"], pinned["version"]), others=others, **fields)
    event: Event = _ADAPTERS[event_type].validate_json(data)
    return event


@value
class PlaybookVersion:
    """How the journal names a playbook."""

    name: str
    version: str


@value
class JournaledAdmission:
    """`RunAdmitted` as the journal has it: it names the playbook, and the catalogue has the text."""

    tenant: str
    task_id: str
    principal: str
    playbook: PlaybookVersion
    input: dict[str, Json]
    queued: bool = False
    traceparent: str | None = None


JournaledEvent = JournaledAdmission | LaterEvent
_ADMISSION = TypeAdapter(JournaledAdmission)


def decode_for_people(event_type: str, data: str) -> JournaledEvent | None:
    """Decode a journal row without the catalogue of playbooks; None when only a newer version can read the row."""
    adapter = _ADMISSION if event_type == RunAdmitted.__name__ else _ADAPTERS.get(event_type)
    if adapter is None:
        return None
    try:
        event: JournaledEvent = adapter.validate_json(data)
    except ValidationError:
        return None
    return event


class PlaybookLookup:
    """Every version of every playbook that a live run may refer to."""

    def __init__(self, playbooks: tuple[Playbook, ...] = ()) -> None:
        self._by_version = {(playbook.name, playbook.version): playbook for playbook in playbooks}

    def get(self, name: str, version: str) -> Playbook:
        """Return one version of a playbook; LookupError when it was never deployed here."""
        try:
            return self._by_version[name, version]
        except KeyError:
            raise LookupError(f"playbook {name} has no version {version} in the table `playbooks`") from None
