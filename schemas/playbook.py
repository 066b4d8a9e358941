"""The playbook: a deployable agent definition, written in YAML."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from triptych.schemas import codec
from triptych.schemas.base import Authored, Json, OperationName, Slug, newer
from triptych.schemas.contract import Cost
from triptych.schemas.handoff import HANDOFF, OtherPlaybook
from triptych.schemas.plan import Judge, RetryPolicy, StepSpec

AllowedOperation = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}\.([a-z][a-z0-9_]{0,62}|\*)$")]
"""`tool.operation`, or `tool.*` for all operations of a tool."""

LONGEST_WALL_MS = 30 * 86_400_000
"""As long as the wall clock of a run can be."""


class Review(StrEnum):
    """When the critic is asked."""

    EVERY_STEP = "every_step"
    EXCEPTIONS = "exceptions"
    """Only when a step's expectation does not hold, or the step asks for a judgement."""
    FINAL = "final"
    """As `exceptions`, and once more when all steps are done."""


class Caching(StrEnum):
    """Which answers of models may be given again to the same question."""

    READS = "reads"
    """Those that no write waits for."""
    ALL = "all"
    OFF = "off"


class Budgets(Authored):
    """Hard limits of a run. The executor reserves from them before it asks anything of anyone."""

    steps: Annotated[int, Field(ge=1, le=1_000)] = 20
    tool_calls: Annotated[int, Field(ge=1, le=10_000)] = 50
    tokens: Annotated[int, Field(ge=0)] = 100_000
    usd: Annotated[float, Field(ge=0, description="US dollars.")] = 1.0
    wall_ms: Annotated[int, Field(ge=1, le=LONGEST_WALL_MS)] = 600_000
    replans: Annotated[int, Field(ge=0, le=20)] = 2

    @property
    def usd_micros(self) -> int:
        return round(self.usd * 1_000_000)


class FixedPlan(Authored):
    """The steps are known; no model is asked to plan."""

    pattern: Literal["fixed"] = "fixed"
    steps: Annotated[tuple[StepSpec, ...], Field(min_length=1)]

    @cached_property
    def encoded(self) -> bytes:
        """Its JSON, made once: every run of the playbook asks for a plan with it."""
        return self.to_bytes()


MEMORY_TOKENS = 8_000


class PlanByModel(Authored):
    """What all plans by a model have in common."""

    tier: Slug = "strong"
    instructions: Annotated[str, Field(max_length=20_000)] = ""
    repairs: Annotated[int, Field(ge=0, le=5, description="How often the model may mend a plan that fails.")] = 2
    tokens: Annotated[int, Field(ge=1, description="The most that one plan may use, repairs included.")] = 20_000
    memory_tokens: Annotated[
        int,
        Field(ge=0, exclude_if=newer(MEMORY_TOKENS), description="So much is told at most of what the run knows."),
    ] = MEMORY_TOKENS
    usd: Annotated[float, Field(ge=0, description="The most that one plan may cost, in US dollars.")] = 0.10


class ModelPlan(PlanByModel):
    """A model writes the plan; code checks it."""

    pattern: Literal["model"] = "model"
    max_steps: Annotated[int, Field(ge=1, le=100)] = 10


class PlanByTurns(PlanByModel):
    """A model plans a little, sees the results, and goes on until it can answer."""

    max_turns: Annotated[int, Field(ge=1, le=100, description="So often it may plan; then it has to answer.")] = 10
    max_stalls: Annotated[
        int, Field(ge=0, le=10, description="So many turns in a row may show nothing new; one more is a `loop`.")
    ] = 2


class ReactPlan(PlanByTurns):
    """One step a turn."""

    pattern: Literal["react"] = "react"


class ManagerPlan(PlanByTurns):
    """Several steps a turn, and a ledger of what is known, open and done that the model keeps."""

    pattern: Literal["manager"] = "manager"
    max_steps: Annotated[int, Field(ge=1, le=100, description="The most steps of one turn.")] = 5


AnyPlan = Annotated[FixedPlan | ModelPlan | ReactPlan | ManagerPlan, Field(discriminator="pattern")]


SAME_CALL = 3

TASK_MAX_BYTES = 1_048_576
"""The largest task that a playbook can allow: what Kafka takes in one record by default."""
SAME_WRITE = 1


class Limits(Authored):
    """What all runs of a playbook together may take up, and how often one may repeat itself."""

    active_runs: Annotated[
        int | None,
        Field(ge=1, description="So many may be active at the same time, in all processes; the others are queued."),
    ] = None
    input_bytes: Annotated[
        int | None,
        Field(
            ge=1_024,
            le=TASK_MAX_BYTES,
            exclude_if=newer(None),
            description="A task may have so many bytes; 256 KiB when absent.",
        ),
    ] = None
    same_call: Annotated[
        int | None,
        Field(
            ge=1,
            le=100,
            exclude_if=newer(None),
            description="So often a run may make the same call, arguments and all: 1 write, and 3 steps of a model.",
        ),
    ] = None
    same_call_of: Annotated[
        dict[OperationName, Annotated[int, Field(ge=1, le=100)]],
        Field(exclude_if=newer({}), description="The same for one operation, for example `{mail.send: 2}`."),
    ] = {}

    def same_write(self, operation: str) -> int:
        """Return how often a run may make the same write."""
        return self.same_call_of.get(operation, self.same_call or SAME_WRITE)


class Playbook(Authored):
    """An agent: its goal, the operations it may use, how it plans, and its limits."""

    name: Slug
    goal: Annotated[str, Field(min_length=1, max_length=4_000)]
    input: Annotated[dict[str, Json], Field(description="JSON Schema (2020-12) of a task's input.")]
    tools: Annotated[tuple[AllowedOperation, ...], Field(min_length=1)]
    handoffs: Annotated[
        tuple[Slug, ...], Field(exclude_if=newer(()), description="The playbooks that `playbook.run` may hand over to.")
    ] = ()
    plan: AnyPlan
    review: Review = Review.EXCEPTIONS
    judge: Annotated[Judge | None, Field(description="Judges the whole run; needs `review: final`.")] = None
    budgets: Budgets = Budgets()
    limits: Annotated[Limits | None, Field(exclude_if=newer(None))] = None
    on_abort: Annotated[
        Literal["keep", "undo"],
        Field(exclude_if=newer("keep"), description="Whether the writes of a run that a person aborts are undone."),
    ] = "keep"
    retry: Annotated[RetryPolicy, Field(description="For steps that bring none of their own.")] = RetryPolicy()
    tier: Annotated[
        Slug | None,
        Field(exclude_if=newer(None), description="For steps that bring none of their own."),
    ] = None
    cache: Annotated[
        Caching,
        Field(
            exclude_if=newer(Caching.READS),
            description="Which answers of models may be given again to the same question.",
        ),
    ] = Caching.READS
    parallel: Annotated[int, Field(ge=1, le=100, description="How many steps may run at the same time.")] = 4
    output: Annotated[
        dict[str, Json], Field(description="The outcome's output; may refer to `input` and `steps`.")
    ] = {}

    @cached_property
    def version(self) -> str:
        """A content hash: the same text is the same version everywhere.

        Fields that are newer than some deployed versions are left out (`exclude_if`) where they are not set.
        """
        canonical = codec.encode(self.model_dump(mode="json"), sort_keys=True, limits=codec.STORED)
        return hashlib.sha256(canonical).hexdigest()[:12]

    @cached_property
    def is_planned_by_model(self) -> bool:
        """Whether the steps are a model's, so that it may plan again, and go round in circles."""
        return isinstance(self.plan, PlanByModel)

    @cached_property
    def has_defaults(self) -> bool:
        """Whether the schema of the input may have defaults."""
        return b'"default"' in codec.encode(self.input, limits=codec.STORED)

    @cached_property
    def as_other(self) -> OtherPlaybook:
        """What runs know of it that may hand over to it."""
        budgets = self.budgets
        cost = Cost(tokens=budgets.tokens, usd_micros=budgets.usd_micros, tool_calls=budgets.tool_calls)
        return OtherPlaybook(name=self.name, goal=self.goal, input=self.input, cost=cost)

    def same_call(self, operation: str) -> int:
        """Return how many steps that a model planned may make the same call."""
        limits = self.limits or Limits()
        return limits.same_call_of.get(operation, limits.same_call or SAME_CALL)

    def same_write(self, operation: str) -> int:
        """Return how often a run may make the same write."""
        return (self.limits or Limits()).same_write(operation)

    def allows(self, operation: str) -> bool:
        """Return whether a plan of this playbook may call `operation`."""
        if operation == HANDOFF:
            return bool(self.handoffs)
        return operation in self.tools or f"{operation.partition('.')[0]}.*" in self.tools
