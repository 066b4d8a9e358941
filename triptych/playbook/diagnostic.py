"""A mistake in a playbook or in a plan: where it is, what is wrong, and how to correct it."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

Place = tuple[str | int, ...]
"""Names and indexes from the root of the playbook, such as `("plan", "steps", 0, "arguments", "query")`."""

Mistake = tuple[Place, str, str]
"""A place inside what was checked, the message and the cure."""
STEPS: Final[Place] = ("plan", "steps")


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One mistake. As text it is told to a model that plans, which knows the ids of steps and no lines."""

    place: Place
    message: str
    cure: str
    """What to do: a sentence without its full stop."""
    step: str = ""
    """The id of the step that has the mistake; empty where it is not of one step."""

    def __str__(self) -> str:
        if self.step:
            where, place = f"step {self.step}", dotted(self.place[len(STEPS) + 1 :])
        else:
            where, place = "the plan", dotted(self.place).removeprefix("plan").removeprefix(".")
        at = f"{where}, {place}" if place else where
        return f"{at}: {self.message}; {self.cure[:1].lower()}{self.cure[1:]}"


def dotted(place: Place) -> str:
    """Write a place as text: `plan.steps[0].arguments.query`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def did_you_mean(name: str, known: Collection[str]) -> str | None:
    """Ask for the name that is nearly the one given, if there is one."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"Did you mean `{near[0]}`?" if near else None
