"""What clients exchange with Triptych: tasks in, outcomes out, and control commands."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from triptych.schemas.base import (
    Authored,
    Json,
    Message,
    OperationName,
    Reason,
    RunId,
    Slug,
    Tenant,
    Timestamp,
    newer,
)
from triptych.schemas.handoff import Parent
from triptych.schemas.work import StepRecord

TaskId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
BudgetName = Annotated[str, StringConstraints(pattern=r"^(steps|tool_calls|tokens|usd|wall_ms|replans)$")]
Principal = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Task(Authored):
    """One piece of work. Topic `tasks`, published by any Kafka client with any key and partitioner."""

    task_id: Annotated[
        TaskId | None, Field(description="Makes the task idempotent within its tenant; derived when absent.")
    ] = None
    playbook: Slug
    input: dict[str, Json] = {}
    tenant: Tenant = "default"
    principal: Annotated[Principal, Field(description="On whose behalf, for example `user:ana`.")] = "anonymous"


class ChildTask(Task):
    """The task of a child run, or its withdrawal. Topic `child-tasks`, which no client writes.

    The executor holds it to the record of the parent run before it believes a word of it.
    """

    task_id: TaskId
    parent: Parent


ParentRunId = Annotated[
    RunId | None, Field(exclude_if=newer(None), description="The run that handed over to this one, if one did.")
]


class OutcomeStatus(StrEnum):
    """How a run stands when its client is told. Only ESCALATED may come with `final: false`."""

    SUCCEEDED = "succeeded"
    ESCALATED = "escalated"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class Usage(Message):
    """What a run used, in the units of its budgets."""

    steps: int = 0
    tool_calls: int = 0
    tokens: int = 0
    usd: Annotated[float, Field(description="US dollars, to the millionth.")] = 0.0
    wall_ms: int = 0
    replans: int = 0


class FallbackUse(Message):
    """A step whose operation a fallback replaced."""

    step: str
    used: Annotated[str, Field(description="An operation, `cached answer` or `degraded result`.")]
    age_ms: Annotated[int | None, Field(description="Of a cached answer.")] = None


class UnderWay(Message):
    """A write whose effect was unknown at the end of its run."""

    step: str
    operation: str
    idempotency_key: Annotated[str, Field(description="What its upstream knows it by.")]
    known: Annotated[
        Literal["asked", "in_doubt"],
        Field(description="`asked`: no answer yet. `in_doubt`: an attempt was answered without saying."),
    ]


class Outcome(Message):
    """What a client gets back. Topic `outcomes`, keyed by run id; exactly one has `final: true`.

    `playbook` and `tenant` are those of the task. `status` says how the run stands, `started_at` and `finished_at`
    when it began and ended (UTC).
    """

    task_id: str
    """The id that the client gave, or the one derived from the place of its record."""
    run_id: RunId | None = None
    """None when the task became no run."""
    playbook: str
    playbook_version: str = ""
    """The version that the run began with; empty when the task became no run."""
    tenant: str
    status: OutcomeStatus
    final: bool
    """False while a person may still resume the run. Another outcome follows then."""
    reason: Reason
    """Why the run stands as it does: a code from a closed list, and one sentence."""
    output: dict[str, Json] = {}
    """What the playbook's `output` made of the results; empty unless the run succeeded."""
    usage: Usage = Usage()
    """What the run has used so far, in the units of its budgets."""
    started_at: Timestamp | None = None
    finished_at: Timestamp | None = None
    parent_run_id: ParentRunId = None
    """The run that started this one, if it is a child."""
    fallbacks: Annotated[
        tuple[FallbackUse, ...], Field(exclude_if=newer(()), description="Where the output rests on a fallback.")
    ] = ()
    record: Annotated[
        str | None,
        Field(
            exclude_if=newer(None),
            description="Where a task lies that is refused with `conflict`, as `topic:partition:offset`: its id is "
            "that of another task, whose outcome this is not.",
        ),
    ] = None
    under_way: Annotated[
        tuple[UnderWay, ...],
        Field(exclude_if=newer(()), description="Writes that may still take effect, or may have; the trace has more."),
    ] = ()


class ControlAction(StrEnum):
    CANCEL = "cancel"
    """Stop a run; what is under way is not waited for."""
    RESUME = "resume"
    """Take up an escalated run where it stopped, with fresh attempts and, where one ran out, more budget."""
    SKIP = "skip"
    """Treat a step of an escalated run as done, with the output a person gives, and go on."""
    ABORT = "abort"
    """End an escalated run as failed; with `undo` its writes are undone first, the latest first."""
    CHILD = "child"
    """From a child run to its parent: it waits for a person (`data.status` is `escalated`), or goes on (`running`)."""


class Control(Authored):
    """A person's command to one run. Topic `control`, key = run id, on the run's partition."""

    command_id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    run_id: RunId
    action: ControlAction
    principal: Principal
    note: Annotated[str, Field(max_length=4_000)] = ""
    step: Annotated[Slug | None, Field(description="For `skip`; the step that stopped the run when absent.")] = None
    data: Annotated[Json, Field(description="For `skip`: what the step is taken to have answered.")] = None
    undo: Annotated[
        bool, Field(exclude_if=newer(False), description="For `abort`: undo first what the run has written.")  # noqa: FBT003
    ] = False
    extend: Annotated[
        dict[BudgetName, Annotated[float, Field(ge=0, le=1e12)]],
        Field(description='For `resume`: added to budgets, for example `{"usd": 0.5}`.'),
    ] = {}


class BreakerMode(StrEnum):
    AUTO = "auto"
    """It opens and closes by what it sees."""
    OPEN = "open"
    """Nothing is called, until a person says otherwise."""
    CLOSED = "closed"
    """All are called, even if some fail."""


class ToolControl(Authored):
    """A person's command to all processes of a tool. Topic `tool-controls`, key = operation, or tool.

    How a breaker is held stays so for processes that start later. A probe is only for those that run.
    """

    command_id: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    tool: Slug
    operation: Annotated[OperationName | None, Field(description="All operations when absent.")] = None
    breaker: Annotated[BreakerMode | None, Field(description="Probe the upstream now when absent.")] = None
    principal: Principal
    note: Annotated[str, Field(max_length=4_000)] = ""
    at: Timestamp


class Escalation(Message):
    """A run handed to a person, with full context. Topic `escalations`."""

    run_id: RunId
    task_id: str
    tenant: Tenant
    principal: str
    playbook: str
    playbook_version: str
    goal: str
    reason: Reason
    step: str | None = None
    input: dict[str, Json] = {}
    steps: tuple[StepRecord, ...] = ()
    usage: Usage = Usage()
    escalated_at: Timestamp
    parent_run_id: ParentRunId = None
    actions: Annotated[tuple[str, ...], Field(description="What a person can do now.")] = ("resume", "skip", "abort")


class DeadLetter(Message):
    """A record that could not be processed at all. Topic `dead-letters`; the bytes stay in the database."""

    service: str
    topic: str
    partition: int
    offset: int
    key_base64: str | None = None
    value_base64: Annotated[str | None, Field(description="The record's bytes; cut at 256 KiB.")] = None
    truncated: bool = False
    reason: Reason
    tenant: str = "default"
    failed_at: Timestamp
