"""The plan: a DAG of steps, each with one tool call and an expected outcome.

Arguments may refer to the input and to earlier steps with `${{ expression }}`. An argument that is
only one such reference keeps the type of the value; inside a longer text it is printed.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from triptych.schemas.base import Authored, Expression, Json, Message, OperationName, Slug, newer
from triptych.schemas.contract import TIMEOUT_MAX_MS, BusinessKey, Pin, Reading


class Decision(StrEnum):
    """What the critic can say of a step or of a whole run."""

    CONTINUE = "continue"
    RETRY = "retry"
    REPLAN = "replan"
    ESCALATE = "escalate"


class RetryPolicy(Authored):
    """Exponential backoff with full jitter: attempt n waits up to `base_ms * 2**(n-1)`, at most `cap_ms`."""

    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    base_ms: Annotated[int, Field(ge=1, le=600_000)] = 500
    cap_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 30_000


class Unmet(Authored):
    """What to do when an expectation does not hold."""

    decision: Decision = Decision.REPLAN
    code: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")] = "expectation_unmet"
    message: str = ""


class Judge(Authored):
    """A judgement by a model, asked for after the deterministic checks have passed."""

    criteria: Annotated[str, Field(min_length=1, max_length=8_000)]
    threshold: Annotated[float, Field(ge=0, le=1, description="Below this confidence the run escalates.")] = 0.7
    tokens: Annotated[int, Field(ge=1, description="The most that one judgement may use.")] = 4_000
    usd: Annotated[float, Field(ge=0, description="The most that one judgement may cost, in US dollars.")] = 0.01
    tier: Annotated[Slug, Field(exclude_if=newer("cheap"), description="Which models judge: `cheap` or `strong`.")] = (
        "cheap"
    )


MAX_ITEMS = 100

FanOutOver = Annotated[
    str | list[Json] | None,
    Field(
        exclude_if=newer(None),
        description="A list, or one `${{ }}` that gives one: a call for each item, with `item` and `index` in scope.",
    ),
]
MaxItems = Annotated[
    int,
    Field(
        ge=1, le=1_000, exclude_if=newer(MAX_ITEMS), description="A longer list fails the step before any call is made."
    ),
]
MaxFailed = Annotated[
    int, Field(ge=0, exclude_if=newer(0), description="So many branches may fail; the step fails with one more.")
]

Rounds = Annotated[
    int,
    Field(
        ge=1,
        le=10,
        exclude_if=newer(1),
        description="So often a read is made until the critic accepts it, each time with `feedback` in scope.",
    ),
]


Origin = Annotated[
    str,
    StringConstraints(pattern=r"^(input|steps\.[a-z][a-z0-9_-]{0,62}|[a-z][a-z0-9_-]{0,62}\.[a-z][a-z0-9_]{0,62})$"),
]


def _several(written: object) -> object:
    """Read one item without brackets, and a JSON list, since a strict tuple takes neither."""
    if isinstance(written, str):
        return (written,)
    return tuple(written) if isinstance(written, list) else written


Origins = Annotated[
    dict[str, Annotated[tuple[Origin, ...], BeforeValidator(_several)]],
    Field(
        exclude_if=newer({}),
        description="By argument (dotted): where its value must have been seen: `steps.ID`, `input` or an operation.",
    ),
]


class Fallback(Authored):
    """What replaces an operation that stays unavailable. Exactly one of `operation`, `cached_ms` and `data`."""

    operation: Annotated[OperationName | None, Field(description="Another operation.")] = None
    arguments: Annotated[dict[str, Json] | None, Field(description="Its arguments; the step's own when absent.")] = None
    cached_ms: Annotated[
        int | None, Field(ge=1, description="The last good answer to the same call, if it is at most so old.")
    ] = None
    data: Annotated[Json, Field(description="A result that is good enough to go on with.")] = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if sum(part is not None for part in (self.operation, self.cached_ms, self.data)) != 1:
            raise ValueError("give exactly one of operation, cached_ms and data")
        if self.arguments is not None and self.operation is None:
            raise ValueError("arguments are those of `operation`")
        return self

    @property
    def kind(self) -> str:
        """What an outcome calls it."""
        if self.operation is not None:
            return self.operation
        return "cached answer" if self.cached_ms is not None else "degraded result"


class StandIn(Message):
    """A checked fallback: the contract of its operation is pinned."""

    fallback: Fallback
    pin: Pin | None = None


class StepSpec(Authored):
    """A step as a person or a model writes it."""

    id: Slug
    operation: OperationName
    arguments: dict[str, Json] = {}
    depends_on: Annotated[tuple[Slug, ...], Field(description="Besides the steps its arguments refer to.")] = ()
    map: FanOutOver = None
    max_items: MaxItems = MAX_ITEMS
    max_failed: MaxFailed = 0
    when: Annotated[Expression | None, Field(description="CEL; when false the step is skipped.")] = None
    expect: Annotated[
        Expression | None, Field(description="CEL over `result`, `input` and `steps`; true means as expected.")
    ] = None
    unmet: Unmet = Unmet()
    judge: Judge | None = None
    rounds: Rounds = 1
    retry: RetryPolicy | None = None
    timeout_ms: Annotated[int | None, Field(gt=0, le=TIMEOUT_MAX_MS)] = None
    must_come_from: Origins = {}
    fallback: Annotated[
        tuple[Fallback, ...],
        Field(max_length=4, exclude_if=newer(()), description="Tried in order when the operation stays unavailable."),
    ] = ()
    tokens: Annotated[int | None, Field(ge=1, description="Reserve this instead of the contract's cost.")] = None
    usd: Annotated[float | None, Field(ge=0, description="Reserve this instead of the contract's cost.")] = None
    business_key: Annotated[
        BusinessKey | None,
        Field(exclude_if=newer(None), description="What makes two writes the same, in place of the contract's key."),
    ] = None
    tool_calls: Annotated[
        int | None,
        Field(ge=1, exclude_if=newer(None), description="For `playbook.run`: so many calls the other run may make."),
    ] = None
    tier: Annotated[
        Slug | None,
        Field(exclude_if=newer(None), description="Which models an operation asks that asks one."),
    ] = None
    reading: Annotated[
        Reading | None,
        Field(
            strict=False, exclude_if=newer(None), description="`strict`: a result is as its contract says, or fails."
        ),
    ] = None


class Step(Message):
    """A checked step: its contract is pinned, its dependencies are complete, its limits are filled in."""

    id: Slug
    operation: OperationName
    arguments: dict[str, Json] = {}
    depends_on: tuple[Slug, ...] = ()
    map: FanOutOver = None
    max_items: MaxItems = MAX_ITEMS
    max_failed: MaxFailed = 0
    when: Expression | None = None
    expect: Expression | None = None
    unmet: Unmet = Unmet()
    judge: Judge | None = None
    rounds: Rounds = 1
    retry: RetryPolicy = RetryPolicy()
    must_come_from: Origins = {}
    fallback: Annotated[tuple[StandIn, ...], Field(exclude_if=newer(()))] = ()
    pin: Pin
    tier: Slug | None = None
    reading: Annotated[Reading | None, Field(exclude_if=newer(None))] = None

    @cached_property
    def encoded(self) -> bytes:
        """Its JSON, made once: every review of the step carries it."""
        return self.to_bytes()

    def __copy__(self) -> Self:
        """Copy without the kept JSON, since a copy is made to be changed."""
        copy = super().__copy__()
        copy.__dict__.pop("encoded", None)
        return copy


class Plan(Message):
    """What the planner answers. Steps that an earlier revision finished keep their id and are not run again."""

    revision: Annotated[int, Field(ge=1)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]

    @cached_property
    def encoded(self) -> bytes:
        """Its JSON, made once: the plan of a fixed playbook is that of thousands of runs."""
        return self.to_bytes()
