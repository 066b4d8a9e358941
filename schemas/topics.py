"""The topics: their names, what travels on them, and who reads them."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from triptych.schemas.contract import ToolContracts
from triptych.schemas.task import ChildTask, Control, DeadLetter, Escalation, Outcome, Task, ToolControl
from triptych.schemas.work import (
    CallAnswer,
    CallRequest,
    PlanAnswer,
    PlanRequest,
    ReviewRequest,
    VerdictAnswer,
    Withdrawal,
)

TASKS = "tasks"
CHILD_TASKS = "child-tasks"
PLAN_REQUESTS = "plan-requests"
PLANS = "plans"
CALLS = "calls"
RESULTS = "results"
REVIEWS = "reviews"
VERDICTS = "verdicts"
CONTROL = "control"
OUTCOMES = "outcomes"
ESCALATIONS = "escalations"
DEAD_LETTERS = "dead-letters"
CONTRACTS = "contracts"
TOOL_CONTROLS = "tool-controls"
WITHDRAWALS = "withdrawals"

EXECUTOR_INPUTS = (TASKS, CHILD_TASKS, PLANS, RESULTS, VERDICTS, CONTROL)
"""One owner holds partition p of all of these, so they have the same number of partitions."""


def calls(tool: str) -> str:
    """Return the noun of the topic on which a tool is asked, for example `calls.helpdesk`."""
    return f"{CALLS}.{tool}"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the pipeline, as the AsyncAPI document and `triptych topics` show it."""

    noun: str
    message: type[BaseModel]
    event_type: str
    producer: str
    consumer: str
    description: str
    compacted: bool = False


CATALOG: tuple[Topic, ...] = (
    Topic(TASKS, Task, "triptych.task", "clients", "executor", "Ingress: one record is one task."),
    Topic(
        CHILD_TASKS,
        ChildTask,
        "triptych.child-task",
        "executor",
        "executor",
        "A run starts another, or withdraws it. Clients need no right to write here.",
    ),
    Topic(PLAN_REQUESTS, PlanRequest, "triptych.plan-request", "executor", "planner", "Asks for a plan."),
    Topic(PLANS, PlanAnswer, "triptych.plan", "planner", "executor", "A plan, or why the planner gives no plan."),
    Topic(CALLS, CallRequest, "triptych.call", "executor", "one tool", "Asks a tool for one attempt."),
    Topic(RESULTS, CallAnswer, "triptych.result", "tools", "executor", "The result of one attempt."),
    Topic(REVIEWS, ReviewRequest, "triptych.review", "executor", "critic", "Asks for a verdict."),
    Topic(VERDICTS, VerdictAnswer, "triptych.verdict", "critic", "executor", "Continue, retry, replan or escalate."),
    Topic(WITHDRAWALS, Withdrawal, "triptych.withdrawal", "executor", "every worker", "Calls off what has not begun."),
    Topic(CONTROL, Control, "triptych.control", "operators", "executor", "Cancel, resume, skip or abort a run."),
    Topic(OUTCOMES, Outcome, "triptych.outcome", "executor", "clients", "Egress: the outcome of a task."),
    Topic(ESCALATIONS, Escalation, "triptych.escalation", "executor", "people", "A run that needs a person."),
    Topic(
        DEAD_LETTERS,
        DeadLetter,
        "triptych.dead-letter",
        "every service",
        "operators",
        "A record that could not be read.",
    ),
    Topic(
        CONTRACTS,
        ToolContracts,
        "triptych.contracts",
        "tools",
        "executor, planner, critic",
        "What each tool offers.",
        compacted=True,
    ),
    Topic(
        TOOL_CONTROLS,
        ToolControl,
        "triptych.tool-control",
        "operators",
        "tools",
        "Hold a breaker open or closed.",
        compacted=True,
    ),
)
