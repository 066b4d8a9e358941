"""What the executor asks of its workers, and what they answer."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from triptych.schemas.base import (
    Answer,
    Authored,
    Grant,
    Json,
    Message,
    OperationName,
    Reason,
    Request,
    RunId,
    Slug,
    newer,
)
from triptych.schemas.handoff import OtherPlaybook
from triptych.schemas.plan import Decision, Judge, Plan, RetryPolicy, Step
from triptych.schemas.playbook import AnyPlan, Caching, Limits
from triptych.schemas.result import Result, ToolError


class Recall(StrEnum):
    """Whether an answer of a model may be one that was given before."""

    NO = "no"
    YES = "yes"
    RENEW = "renew"
    """Ask again, and keep the new answer instead: the one before was not good enough."""


class StepRecord(Message):
    """What is known of a step that has ended: the facts a planner or critic may build on."""

    id: Slug
    operation: OperationName
    status: str
    arguments: dict[str, Json] = {}
    result: Result | None = None
    reason: Annotated[Reason | None, Field(exclude_if=newer(None), description="Why it ended as it did.")] = None


Note = Annotated[str, Field(max_length=1_000)]


class TaskLedger(Authored):
    """What a manager keeps from turn to turn, in its own words: it is told again at each turn."""

    facts: Annotated[tuple[Note, ...], Field(max_length=50, description="What is known, and from which step.")] = ()
    questions: Annotated[tuple[Note, ...], Field(max_length=20, description="What is still to be found out.")] = ()
    progress: Annotated[tuple[Note, ...], Field(max_length=50, description="What has been done, and decided.")] = ()


BranchIndex = Annotated[
    int | None, Field(ge=0, exclude_if=newer(None), description="Which branch of a step that has many.")
]


class PlanRequest(Request):
    """Asks for a plan: the first, or another one after a failure. Topic `plan-requests`."""

    playbook: Slug
    goal: str
    input: dict[str, Json]
    spec: AnyPlan
    tools: tuple[str, ...]
    revision: Annotated[int, Field(ge=1)]
    max_steps: Annotated[int, Field(ge=1, description="What is left of the budget of steps.")]
    retry: Annotated[RetryPolicy, Field(description="For steps that bring none of their own.")] = RetryPolicy()
    known: Annotated[tuple[StepRecord, ...], Field(description="Steps that have ended, in order.")] = ()
    cache: Caching = Caching.OFF
    failure: Annotated[Reason | None, Field(description="Why the last plan did not work out.")] = None
    handoffs: Annotated[
        tuple[Slug, ...], Field(exclude_if=newer(()), description="The playbooks that a step may hand over to.")
    ] = ()
    others: Annotated[
        tuple[OtherPlaybook, ...],
        Field(exclude_if=newer(()), description="What those playbooks are for, ask for and may spend."),
    ] = ()
    turns_left: Annotated[
        int, Field(ge=0, exclude_if=newer(0), description="How many more plans may follow; at 0 it has to answer.")
    ] = 0
    ledger: Annotated[TaskLedger | None, Field(exclude_if=newer(None))] = None
    repair: Annotated[Slug | None, Field(description="The step whose arguments alone must be mended.")] = None
    limits: Annotated[
        Limits | None, Field(exclude_if=newer(None), description="How often a plan may make the same write.")
    ] = None


class PlanAnswer(Answer):
    """A plan, or why the planner gives no plan. Topic `plans`."""

    plan: Plan | None = None
    error: ToolError | None = None
    code: Annotated[str | None, Field(description="`plan_invalid` when repairs were used up.")] = None
    answer: Annotated[
        dict[str, Json] | None, Field(exclude_if=newer(None), description="The goal is reached; this is the result.")
    ] = None
    ledger: Annotated[TaskLedger | None, Field(exclude_if=newer(None))] = None


class CallRequest(Request):
    """Asks a tool for one attempt. Topic `calls.<tool>`."""

    principal: str
    step: Slug
    operation: OperationName
    arguments: dict[str, Json]
    attempt: Annotated[int, Field(ge=1)]
    idempotency_key: Annotated[str, Field(description="The same for all attempts of a call, also after a crash.")]
    contract_hash: str
    keep: Annotated[
        bool,
        Field(exclude_if=newer(default=False), description="Keep a good answer: a later call may have to use it."),
    ] = False
    cached_ms: Annotated[
        int | None,
        Field(exclude_if=newer(None), description="Call nothing: give the answer that was kept, if no older."),
    ] = None
    tier: Annotated[
        Slug | None, Field(description="Which models an operation asks that asks one; the operation says when absent.")
    ] = None
    timeout_ms: Annotated[int, Field(gt=0)]
    index: BranchIndex = None
    recall: Annotated[Recall, Field(exclude_if=newer(Recall.NO))] = Recall.NO


class Withdrawal(Request):
    """The run of a request is over: what has not begun is not begun any more. Topic `withdrawals`.

    It may come before its request, or after the answer. What is under way is not stopped.
    """

    topic: Annotated[str, Field(description="The noun of the topic on which it was asked, for example `calls.crm`.")]


class CallAnswer(Answer):
    """The result of one attempt. Topic `results`."""

    result: Result
    child: Annotated[RunId | None, Field(exclude_if=newer(None), description="The run that answers, if it is one.")] = (
        None
    )
    extended: Annotated[
        Grant | None, Field(exclude_if=newer(None), description="What a person has given that run beyond its grant.")
    ] = None


class ReviewRequest(Request):
    """Asks the critic about one step, or about the whole run when `step` is absent. Topic `reviews`."""

    goal: str
    input: dict[str, Json]
    step: Step | None = None
    result: Result | None = None
    steps: tuple[StepRecord, ...] = ()
    output: dict[str, Json] = {}
    judge: Judge | None = None
    index: BranchIndex = None
    item: Annotated[Json, Field(exclude_if=newer(None), description="What that branch is for.")] = None
    recall: Annotated[Recall, Field(exclude_if=newer(Recall.NO))] = Recall.NO


class VerdictAnswer(Answer):
    """The critic's verdict, or why it could not judge. Topic `verdicts`."""

    decision: Decision | None = None
    reason: Reason | None = None
    evidence: tuple[str, ...] = ()
    confidence: Annotated[float | None, Field(ge=0, le=1)] = None
    error: ToolError | None = None
