"""What a plan is held to: the planner checks what it makes, and the executor what it is told, by the same rules."""

from triptych.playbook.plans.arguments import schema_errors
from triptych.playbook.plans.checker import (
    Problem,
    Terms,
    cost_of,
    find_problems,
    make_plan,
    origin_steps,
    origins,
    steps_at_once,
    waits_for,
)

__all__ = [
    "Problem",
    "Terms",
    "cost_of",
    "find_problems",
    "make_plan",
    "origin_steps",
    "origins",
    "schema_errors",
    "steps_at_once",
    "waits_for",
]
