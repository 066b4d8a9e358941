"""Handing over to another playbook: an operation that no tool offers and the executor performs, by starting a run.

To a plan it is a step like any other. What the other run ends with is what the step answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from triptych.schemas.base import Authored, Grant, RequestId, RunId, Slug, Timestamp
from triptych.schemas.contract import Contract, Cost, Effect

HANDOFF = "playbook.run"

MAX_HANDOFFS = 5
"""So deep may playbooks hand over to one another."""


def handoff_contract(playbooks: Iterable[str]) -> Contract:
    """The contract of `playbook.run` for a playbook that may hand over to these."""
    return Contract(
        operation=HANDOFF,
        description="Hands over to another playbook, and answers with what its run ended with.",
        arguments={
            "type": "object",
            "required": ["playbook"],
            "additionalProperties": False,
            "properties": {
                "playbook": {"type": "string", "enum": sorted(playbooks)},
                "input": {"type": "object", "description": "The input that the other playbook asks for."},
            },
        },
        result={
            "type": "object",
            "required": ["run_id", "playbook", "output"],
            "properties": {
                "run_id": {"type": "string"},
                "playbook": {"type": "string"},
                "output": {"type": "object", "description": "The output of the other playbook."},
            },
        },
        effect=Effect.IDEMPOTENT,
        cost=Cost(tokens=20_000, usd_micros=100_000, tool_calls=10),
    )


class Parent(Authored):
    """The run that a task was handed over by. The executor sets it; a client's task that has it is refused."""

    run_id: RunId
    request_id: Annotated[RequestId, Field(description="The request that the outcome answers.")]
    asked_at_ms: Annotated[int, Field(ge=0, description="With the task id it makes the run id; since 1970.")]
    grant: Annotated[Grant, Field(description="What is reserved in the budget of the parent.")]
    deadline_at: Timestamp
    ancestors: Annotated[
        tuple[Slug, ...], Field(max_length=MAX_HANDOFFS, description="The playbooks of the runs above, topmost first.")
    ]
    withdrawn: Annotated[bool, Field(description="The parent has ended: cancel the run, if there is one.")] = False
