"""The call that an operation serves, and the resources it works with."""

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
    """Raise it when the upstream has accepted the work and will call back: the call then waits without a process.

    The operation must say how to read the callback (`@tool.completion`).
    """


class NotYet(Exception):
    """Raise it while reading a callback which only says that the work goes on."""


@dataclass(slots=True)
class Call(Generic[StateT]):
    """Take a parameter of this type, and the runtime fills it in; it is not an argument of the contract."""

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
    """The arguments of the call, for code that asks later what happened to it."""
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
        """Count the whole grant as spent, unless a cost was reported: after a cut, the cost is not known."""
        if self.spent == Spend():
            self.spent = Spend(tokens=self.grant.tokens, usd_micros=self.grant.usd_micros)
