"""The writes a ticket takes, the ticket they add up to, and the tickets that are known for trouble."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from triptych.examples.faults import Fault, FaultKind
from triptych.examples.helpdesk.store import StoredWrite

Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Acknowledgement(Body):
    text: Text


class ReplyBody(Body):
    subject: Annotated[str, StringConstraints(min_length=1, max_length=300)]
    body: Text


class Tags(Body):
    tags: Annotated[tuple[Name, ...], Field(min_length=1, max_length=20)]


class Assignment(Body):
    team: Name
    note: str = ""


WRITES: dict[str, type[Body]] = {
    "acknowledgements": Acknowledgement,
    "replies": ReplyBody,
    "tags": Tags,
    "assignments": Assignment,
}
"""The last part of a write's path, and what its body must be."""


def view(ticket: str, effects: Iterable[StoredWrite]) -> dict[str, Any]:
    """Build a ticket from its effects. A tag that was given twice is there once."""
    seen: dict[str, Any] = {"ticket_id": ticket, "tags": [], "replies": [], "acknowledgements": [], "assignments": []}
    for effect in effects:
        if effect.operation == "tags":
            seen["tags"] += [tag for tag in effect.body["tags"] if tag not in seen["tags"]]
        else:
            seen[effect.operation].append({**effect.body, "id": effect.answer["id"], "created_at": effect.at})
    return seen


@dataclass(frozen=True, slots=True)
class Habit:
    """What happens to the first writes of a ticket whose name has `mark` in it."""

    mark: str
    requests: float
    fault: Fault


HABITS = (
    Habit("-down-", math.inf, Fault(fault=FaultKind.UNAVAILABLE)),
    Habit("-flaky-", 2, Fault(fault=FaultKind.UNAVAILABLE)),
    Habit("-limited-", 1, Fault(fault=FaultKind.RATE_LIMITED, retry_after_s=1)),
    Habit("-drop-", 1, Fault(fault=FaultKind.DROP_AFTER)),
    Habit("-slow-", 1, Fault(fault=FaultKind.HANG, hang_ms=3_000)),
)
"""Some tickets fail by their name, so that a demo shows trouble without being set up for it."""


def habitual_fault(ticket: str, requests: float) -> Fault | None:
    """Choose the fault of a ticket's write. `requests` counts the writes that came in for it, including this one."""
    return next((habit.fault for habit in HABITS if habit.mark in ticket and requests <= habit.requests), None)
