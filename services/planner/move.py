"""Moves: the answers of a model that plans by turns: the next step or steps, or that the goal is reached.

Each turn tells the facts so far, and a manager's ledger, again; nothing appends to a conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from triptych.planner.proposal import Gaps, Missing, Proposal, ProposedStep
from triptych.playbook.diagnostic import STEPS, Diagnostic
from triptych.playbook.plans import PlanContext, check_steps
from triptych.schemas import (
    Authored,
    Json,
    ManagerPlan,
    PlanByModel,
    PlanByTurns,
    PlanRequest,
    ReactPlan,
    StepSpec,
    TaskLedger,
    codec,
)

PROMPTS = ("plan", "react", "manager", "steps")

Answer = Annotated[
    dict[str, Json] | None, Field(description="Given when the goal is reached, and nothing else with it: the result.")
]


@dataclass(frozen=True, slots=True)
class Move:
    """What a model wants done next; `answer` when it wants nothing more."""

    specs: Sequence[StepSpec]
    answer: dict[str, Json] | None = None
    ledger: TaskLedger | None = None
    missing: Sequence[Missing] = ()


class ReactMove(Authored):
    """One step, or the answer."""

    step: Annotated[ProposedStep | None, Field(description="The next step; none when you can answer.")] = None
    answer: Answer = None
    missing: Gaps = ()

    def move(self) -> Move:
        """Return the move in the form of the checker."""
        return Move([self.step.spec()] if self.step else [], self.answer, missing=self.missing)


class ManagerMove(Authored):
    """Some steps, or the answer; and the ledger as it stands now."""

    ledger: TaskLedger
    steps: Annotated[tuple[ProposedStep, ...], Field(description="The next steps; none when you can answer.")] = ()
    answer: Answer = None
    missing: Gaps = ()

    def move(self) -> Move:
        """Return the move in the form of the checker."""
        return Move([step.spec() for step in self.steps], self.answer, self.ledger, self.missing)


def form_of(spec: PlanByModel) -> type[Proposal | ReactMove | ManagerMove]:
    """Return the form that the model fills in."""
    match spec:
        case ReactPlan():
            return ReactMove
        case ManagerPlan():
            return ManagerMove
        case _:
            return Proposal


def prompts_of(spec: PlanByModel) -> tuple[str, ...]:
    """Return the names of the prompts that the model is told, in their order."""
    match spec:
        case ReactPlan():
            return ("react", "steps")
        case ManagerPlan():
            return ("manager", "steps")
        case _:
            return ("plan",)


def read(output: bytes, spec: PlanByModel) -> Move:
    """Read the move in a model's answer. Raises ValidationError."""
    said = codec.read(form_of(spec), output)
    if isinstance(said, Proposal):
        return Move([step.spec() for step in said.steps], missing=said.missing)
    return said.move()


def move_problems(move: Move, request: PlanRequest, context: PlanContext) -> list[Diagnostic]:
    """Return everything that is wrong with a move; nothing when it can be made."""
    problems = list(_turn(move, request)) if isinstance(request.spec, PlanByTurns) else []
    if move.answer is not None and not move.specs:
        return problems
    return problems or check_steps(move.specs, context)


def _turn(move: Move, request: PlanRequest) -> Iterator[Diagnostic]:
    if bool(move.specs) == (move.answer is not None):
        message = "a turn has either steps or an answer, and not both"
        yield Diagnostic(("answer",), message, "Plan what is still to be done or, when the goal is reached, answer")
    if move.specs and request.turns_left == 0:
        yield Diagnostic(("plan",), "no turn is left for another step", "Answer with what is known")
    used = {record.id for record in request.known}
    for index, spec in enumerate(move.specs):
        if spec.id in used:
            message = "an earlier step has this id"
            yield Diagnostic((*STEPS, index, "id"), message, "Give a new step an id of its own", spec.id)
