"""What every message has in common: immutability, strict types, and JSON in and out.

Messages between services ignore fields they do not know, so that services can be upgraded one by
one. What people write by hand (tasks, playbooks, control commands) forbids them, so that a typing
error is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from triptych.schemas import codec

Json = codec.Json

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
"""A name that is safe in a topic, a file name and an expression."""

OperationName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}\.[a-z][a-z0-9_]{0,62}$")]
"""`<tool>.<operation>`, for example `helpdesk.send_reply`."""

Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
RunId = UUID
RequestId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Expression = Annotated[str, StringConstraints(min_length=1, max_length=2_000)]
"""An expression in CEL, the Common Expression Language (https://cel.dev)."""

Timestamp = AwareDatetime

SENTENCE_MAX_CHARS = 4_000
_SENTENCE_END_CHARS = 1_000


def shortened(text: str) -> str:
    """Shorten a sentence for people: leave out its middle where it quotes something long."""
    if len(text) <= SENTENCE_MAX_CHARS:
        return text
    return f"{text[: SENTENCE_MAX_CHARS - _SENTENCE_END_CHARS - 3]} … {text[-_SENTENCE_END_CHARS:]}"


def newer(default: object) -> Callable[[object], bool]:
    """Make an `exclude_if` for a field that is newer than some hashes and readers: its default is left out."""
    return lambda value: value == default


class Message(BaseModel):
    """A message between services: strict types, unknown fields ignored, immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", ser_json_inf_nan="constants")

    def to_bytes(self) -> bytes:
        """Return the JSON encoding that goes on the wire: UTF-8, fields that are None left out.

        Raises:
            InvalidJson: it holds what JSON cannot say.
        """
        return codec.written(self.__pydantic_serializer__, self)


class Authored(BaseModel):
    """Something that a person or a client wrote: like a message, but unknown fields are errors."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", ser_json_inf_nan="constants")

    def to_bytes(self) -> bytes:
        """Return the JSON encoding that goes on the wire: UTF-8, fields that are None left out.

        Raises:
            InvalidJson: it holds what JSON cannot say.
        """
        return codec.written(self.__pydantic_serializer__, self)


class Reason(Message):
    """Why something ended as it did: a code for machines and a sentence for people."""

    code: Annotated[str, Field(description="A stable code, for example `budget_usd` or `low_confidence`.")]
    message: Annotated[
        str,
        AfterValidator(shortened),
        Field(description="One sentence that names the thing, the place and the cure."),
    ]


class ModelCall(Message):
    """One call to a language model, as it was billed."""

    model: str
    tier: str = ""
    tokens_in: Annotated[int, Field(ge=0)] = 0
    tokens_cached: Annotated[int, Field(ge=0, description="Of `tokens_in`: from the provider's cache.")] = 0
    tokens_out: Annotated[int, Field(ge=0)] = 0
    usd_micros: Annotated[int, Field(ge=0, description="Cost in millionths of a US dollar.")] = 0
    duration_ms: Annotated[int, Field(ge=0)] = 0
    cached: Annotated[bool, Field(description="No provider was asked: the answer was in the cache.")] = False
    failed: Annotated[str, Field(description="Why there was no usable answer; empty when there was one.")] = ""


ToolCalls = Annotated[
    int, Field(ge=0, exclude_if=newer(0), description="Calls of its own that a child run makes; 0 of everybody else.")
]


class Spend(Message):
    """What one answer cost. Money is counted in whole millionths of a US dollar, never in floats."""

    tokens: Annotated[int, Field(ge=0)] = 0
    usd_micros: Annotated[int, Field(ge=0)] = 0
    tool_calls: ToolCalls = 0
    model_calls: tuple[ModelCall, ...] = ()


class Grant(Message):
    """What a worker may spend on one request. It is reserved before the request is sent."""

    tokens: Annotated[int, Field(ge=0)] = 0
    usd_micros: Annotated[int, Field(ge=0)] = 0
    tool_calls: ToolCalls = 0

    @property
    def is_free(self) -> bool:
        """Whether nothing can be spent under it."""
        return not (self.tokens or self.usd_micros or self.tool_calls)

    def plus(self, other: Grant) -> Grant:
        """Add two grants."""
        return Grant(
            tokens=self.tokens + other.tokens,
            usd_micros=self.usd_micros + other.usd_micros,
            tool_calls=self.tool_calls + other.tool_calls,
        )


class Request(Message):
    """What the executor asks of a worker. The worker makes one attempt and answers."""

    request_id: RequestId
    run_id: RunId
    tenant: Tenant
    partition: Annotated[int, Field(ge=0, description="The run's partition; the answer goes back on it.")]
    deadline_at: Annotated[
        Timestamp, Field(description="After this moment the executor no longer waits for the answer.")
    ]
    grant: Grant = Grant()
    task_id: Annotated[
        str | None, Field(exclude_if=newer(None), description="The client's name for the run, for logs.")
    ] = None


class Answer(Message):
    """What a worker answers. It names the one open request that it answers."""

    request_id: RequestId
    run_id: RunId
    tenant: Tenant
    spend: Spend = Spend()
    worker: Annotated[str, Field(description="The process that did the work.")] = ""
    started_at: Timestamp | None = None
    finished_at: Timestamp | None = None
