"""What a plan is held to: the planner checks what it makes, and the executor what it is told, by the same rules."""

from triptych.kernel.plans.checker import (
    Problem,
    Terms,
    find_problems,
    make_plan,
    origin_steps,
    origins,
    steps_at_once,
    waits_for,
)

__all__ = ["Problem", "Terms", "find_problems", "make_plan", "origin_steps", "origins", "steps_at_once", "waits_for"]
