"""What an operation may know of the call it serves, and what it was given to work with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg

from triptych.schemas.base import Grant, Json, Spend
from triptych.schemas.work import CallRequest, Recall

StateT = TypeVar("StateT")

NOTHING = Spend()


@dataclass(frozen=True, slots=True)
class Resources:
    """What a tool's lifespan builds its clients from."""

    settings: Any
    """An instance of the tool's own settings class, or None."""
    pool: asyncpg.Pool | None
    """Connections under the tool's own role; None in a test without a database."""


class Accepted(Exception):
    """Raise it when the upstream has taken the work on and will call back: the call waits for that, without a process.

    The operation must say how to read the callback (`@tool.completion`).
    """


class NotYet(Exception):
    """Raise it in what reads a callback that says no more than that the work goes on."""


@dataclass(slots=True)
class Call(Generic[StateT]):
    """Take a parameter of this type, and the runtime fills it in; it is no argument of the contract."""

    run_id: UUID
    tenant: str
    principal: str
    step: str
    attempt: int
    idempotency_key: str
    """The same for all attempts of a call: send it upstream."""
    deadline_at: datetime
    timeout_ms: int
    grant: Grant
    """The most this call may cost."""
    recall: Recall
    """Whether an answer of a model may be one that was given before."""
    tier: str | None
    """Which models to ask, if the playbook says; otherwise the operation knows best."""
    state: StateT
    """What the tool's lifespan yielded."""
    arguments: dict[str, Json] = field(default_factory=dict)
    """What the call was made with, for whoever asks later what became of it."""
    callback_url: str | None = None
    """Where the upstream may call back, if the operation is completed in this way; the same for all attempts."""
    spent: Spend = NOTHING

    @classmethod
    def of(cls, request: CallRequest, state: StateT) -> Call[StateT]:
        """Make the call that a request asks for; `state` is what the tool's lifespan gave."""
        return cls(
            run_id=request.run_id,
            tenant=request.tenant,
            principal=request.principal,
            step=request.step,
            attempt=request.attempt,
            idempotency_key=request.idempotency_key,
            deadline_at=request.deadline_at,
            timeout_ms=request.timeout_ms,
            grant=request.grant,
            recall=request.recall,
            tier=request.tier,
            state=state,
            arguments=request.arguments,
        )

    def spend(self, spend: Spend) -> None:
        """Report what part of the call cost; it adds up, and counts whether the call succeeds or fails."""
        self.spent = Spend(
            tokens=self.spent.tokens + spend.tokens,
            usd_micros=self.spent.usd_micros + spend.usd_micros,
            model_calls=self.spent.model_calls + spend.model_calls,
        )

    def count_unknown_cost(self) -> None:
        """The call was cut off: unless it has reported its cost, that is not known and counts as the whole grant."""
        if self.spent == Spend():
            self.spent = Spend(tokens=self.grant.tokens, usd_micros=self.grant.usd_micros)
