"""Fan-out and fan-in: what a step that makes a call for each item knows of its branches. Pure.

A branch is a step state of its own, with its own call, key, attempts and review; here they are counted
and merged. Nothing here is looked for among all branches, so that a branch costs the same among ten and
among a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triptych.schemas import Json, Result

if TYPE_CHECKING:
    from triptych.executor.state import StepState


@dataclass(frozen=True)
class FanOut:
    """The items, and how far their branches are."""

    items: list[Json]
    next: int = 0
    """No branch before this one waits."""
    under_way: int = 0
    answered: int = 0
    """Under way, with a result that nothing has been decided about."""
    ended: int = 0
    failed: int = 0

    @property
    def is_over(self) -> bool:
        return self.ended + self.failed == len(self.items)


def branch_id(step_id: str, index: int) -> str:
    """By what a branch is known: no step can have this id, for none has a dot in it."""
    return f"{step_id}.{index}"


def step_of(state_id: str) -> str:
    """The id of the step that a branch, or the step itself, belongs to."""
    return state_id.partition(".")[0]


def merge(items: Iterable[Json], branches: Iterable[StepState]) -> Result:
    """What the branches gave, in the order of the items, whatever the order in which they ended."""
    merged = [{"item": item, **_branch(state)} for item, state in zip(items, branches, strict=True)]
    counts = {name: sum(branch["status"] == name for branch in merged) for name in ("ok", "empty", "error")}
    data = {**counts, "branches": merged}
    return Result.empty(data) if counts["empty"] == len(merged) else Result.ok(data)


def _branch(state: StepState) -> dict[str, Any]:
    result = state.result
    if state.is_failed:
        error = result.error if result else None
        code, message = (error.code.value, error.message) if error else ("", "")
        if state.reason is not None and not code:
            code, message = state.reason.code, state.reason.message
        told: dict[str, Any] = {"status": "error", "error": {"code": code, "message": message}}
        return told if result is None or result.data is None else {**told, "data": result.data}
    if result is None or not state.status.has_ended:
        return {"status": state.status.value}
    return {"status": result.status.value, "data": result.data}
