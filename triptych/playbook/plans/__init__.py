"""What a plan is checked against, and the plan that is made of steps without mistakes.

The rules are in `rules.py`; `triptych playbook check`, the planner and the executor all use them.
"""

from triptych.playbook.plans.context import PlanContext
from triptych.playbook.plans.pinning import cost_of, make_plan
from triptych.playbook.plans.rules import check_steps, steps_at_once

__all__ = ["PlanContext", "check_steps", "cost_of", "make_plan", "steps_at_once"]
