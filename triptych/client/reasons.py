"""The reason codes that runs are escalated or end with; docs/how-to/operations.md says what those of escalations mean.

Playbooks may add others, as the `unmet` of a step.
"""

from __future__ import annotations

REASONS = (
    *("done", "cancelled", "aborted"),
    *("budget_replans", "budget_steps", "budget_tokens", "budget_tool_calls", "budget_usd", "budget_wall_ms"),
    *("tool_unavailable", "planner_unavailable", "critic_unavailable", "tool_failed", "tool_missing"),
    *("model_loop", "model_malformed", "model_refused", "model_truncated"),
    *("invalid_arguments", "invalid_input", "not_found", "conflict", "identity", "contract_violation"),
    *("in_doubt", "overspent", "repeated_write", "invented_argument", "loop", "stalled", "max_turns", "deadly_run"),
    *("expectation_error", "expectation_unmet", "expression_error", "goal_unmet", "low_confidence", "not_accepted"),
    *("child_failed", "declined", "plan_invalid", "too_many_items", "undo_failed", "unknown_playbook"),
)
