"""The tool: remember, recall and forget facts of a subject. The tenant is the run's, and no argument can change it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from pydantic import Field, StringConstraints
from typing_extensions import TypedDict

from triptych.kernel.errors import ConfigurationError
from triptych.models import ModelFailure
from triptych.models.embeddings import EmbeddingSettings, open_embedder
from triptych.schemas.contract import Effect
from triptych.tools.adapters.memory.store import Fact, FactOrigin, FactStore
from triptych.tools.sdk.call import Call, Resources
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.source import Options, Source
from triptych.tools.sdk.tool import Tool

Subject = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@+-]{0,199}$"),
    Field(description="The customer or thing that the facts are about, by a stable id: `customer:4711`."),
]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Value = Annotated[str, Field(min_length=1, max_length=4_000)]
MAX_FACTS = 20


class MemoryOptions(Options):
    """What stands under `[tools.NAME.options]`."""

    retention_days: Annotated[int, Field(ge=1, le=3_650, description="The longest that a fact is kept.")] = 365


class Known(TypedDict):
    """A fact, with where it comes from."""

    name: str
    value: str
    source: str
    run_id: str
    remembered_at: str
    score: float


class Facts(TypedDict):
    facts: list[Known]


class Remembered(TypedDict):
    remembered: int


class Forgotten(TypedDict):
    forgotten: int


def tool(source: Source) -> Tool:
    """Return the tool that a table of triptych.toml describes.

    Raises:
        ConfigurationError: an option is wrong.
    """
    options = source.read(MemoryOptions)

    @asynccontextmanager
    async def lifespan(resources: Resources) -> AsyncIterator[FactStore]:
        if resources.pool is None:
            raise ConfigurationError("the memory needs Postgres")
        async with open_embedder(resources.settings) as model:
            memory = await FactStore.open(resources.pool, model)
            await memory.drop_expired()
            yield memory

    made = Tool(source.name, settings=EmbeddingSettings, lifespan=lifespan)

    @made.operation(effect=Effect.IDEMPOTENT, timeout_ms=5_000)
    async def remember(
        call: Call[FactStore],
        *,
        subject: Subject,
        facts: Annotated[dict[Name, Value], Field(min_length=1, max_length=MAX_FACTS)],
        source: Annotated[str, Field(max_length=500, description="Where it comes from, in words.")] = "",
        days: Annotated[int, Field(ge=1, description="How long, at most as long as the tool keeps facts.")] = 3_650,
    ) -> Remembered:
        """Note facts of a subject for later runs, each in place of what was known under its name."""
        origin = FactOrigin(source, call.run_id, call.step, call.principal)
        kept_days = min(days, options.retention_days)
        try:
            await call.state.remember(call.tenant, subject, facts, origin, days=kept_days)
        except ModelFailure as failure:
            raise _unembedded(failure) from failure
        return {"remembered": len(facts)}

    @made.operation(effect=Effect.READ, timeout_ms=5_000)
    async def recall(
        call: Call[FactStore],
        *,
        subject: Subject,
        query: Annotated[str, Field(max_length=4_000, description="What to look for; without it, the newest.")] = "",
        names: Annotated[list[Name], Field(max_length=50, description="These facts alone; none means all.")] = [],  # noqa: B006 - a default of the contract; it is never changed
        limit: Annotated[int, Field(ge=1, le=50)] = 10,
    ) -> Facts | None:
        """What earlier runs have noted of a subject, best first, each with its source. Empty when nothing is known."""
        try:
            found = await call.state.recall(call.tenant, subject, query=query, names=names, limit=limit)
        except ModelFailure as failure:
            raise _unembedded(failure) from failure
        return {"facts": [_known(fact) for fact in found]} if found else None

    @made.operation(effect=Effect.IDEMPOTENT, timeout_ms=5_000)
    async def forget(
        call: Call[FactStore],
        *,
        subject: Subject,
        names: Annotated[list[Name], Field(max_length=50, description="These facts alone; none means all.")] = [],  # noqa: B006 - as above
    ) -> Forgotten:
        """Delete what is known of a subject."""
        return {"forgotten": await call.state.forget(call.tenant, subject, names)}

    return made


def _known(fact: Fact) -> Known:
    return Known(
        name=fact.name,
        value=fact.value,
        source=fact.source,
        run_id=str(fact.run_id),
        remembered_at=fact.remembered_at.isoformat(),
        score=fact.score,
    )


def _unembedded(failure: ModelFailure) -> ToolFailure:
    return ToolFailure(failure.code, failure.message, retry_after_ms=failure.retry_after_ms, undone=True)
