"""The wire contract of Triptych: every message, the playbook, the plan and the operation contract."""

from triptych.schemas.base import (
    Answer,
    Authored,
    Grant,
    Json,
    Message,
    ModelCall,
    Reason,
    Request,
    Spend,
)
from triptych.schemas.contract import Contract, Cost, Effect, Pin, ToolContracts
from triptych.schemas.plan import Decision, Judge, Plan, RetryPolicy, Step, StepSpec, Unmet
from triptych.schemas.playbook import Budgets, FixedPlan, ModelPlan, Playbook, Review
from triptych.schemas.result import ErrorCode, Result, ResultStatus, ToolError
from triptych.schemas.task import (
    Control,
    ControlAction,
    DeadLetter,
    Escalation,
    Outcome,
    OutcomeStatus,
    Task,
    Usage,
)
from triptych.schemas.work import (
    CallAnswer,
    CallRequest,
    PlanAnswer,
    PlanRequest,
    ReviewRequest,
    StepRecord,
    VerdictAnswer,
)

__all__ = [
    "Answer", "Authored", "Budgets", "CallAnswer", "CallRequest", "Contract", "Control", "ControlAction",
    "Cost", "DeadLetter", "Decision", "Effect", "ErrorCode", "Escalation", "FixedPlan", "Grant", "Json",
    "Judge", "Message", "ModelCall", "ModelPlan", "Outcome", "OutcomeStatus", "Pin", "Plan", "PlanAnswer",
    "PlanRequest", "Playbook", "Reason", "Request", "Result", "ResultStatus", "RetryPolicy", "Review",
    "ReviewRequest", "Spend", "Step", "StepRecord", "StepSpec", "Task", "ToolContracts", "ToolError",
    "Unmet", "Usage", "VerdictAnswer",
]
