"""The tool: one operation, `search`, over what was loaded and, unless told otherwise, the articles that ship."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import structlog
from pydantic import Field
from typing_extensions import TypedDict

from triptych.kernel.errors import ConfigurationError
from triptych.models import ModelFailure
from triptych.models.embeddings import LOCAL, Embedder, EmbeddingSettings, open_embedder
from triptych.schemas.contract import Effect
from triptych.tools.adapters.kb.articles import shipped_articles
from triptych.tools.adapters.kb.store import EVERYBODY, SHIPPED, KnowledgeBase
from triptych.tools.sdk.call import Call, Resources
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.source import Options, Source
from triptych.tools.sdk.tool import Tool

MAX_HITS = 10
QUERY_MAX_CHARS = 40_000
SHIPPED_COLLECTION = "shipped"


class KnowledgeOptions(Options):
    """What stands under `[tools.NAME.options]`."""

    shipped: Annotated[bool, Field(description="Whether the articles that ship are among what is searched.")] = True
    collections: Annotated[tuple[str, ...], Field(description="Search these alone; none named means all.")] = ()


class Found(TypedDict):
    """A document that was found, by the part of it that fits best."""

    id: str
    collection: str
    title: str
    category: str
    snippet: str
    body: str
    score: Annotated[float, Field(ge=0, le=1)]


class Hits(TypedDict):
    """Documents, best first."""

    hits: list[Found]
    top_score: Annotated[float, Field(ge=0, le=1)]


def tool(source: Source) -> Tool:
    """The tool that a table of triptych.toml describes.

    Raises:
        ConfigurationError: an option is wrong.
    """
    options = source.read(KnowledgeOptions)

    @asynccontextmanager
    async def lifespan(resources: Resources) -> AsyncIterator[KnowledgeBase]:
        if resources.pool is None:
            raise ConfigurationError("the knowledge base needs Postgres")
        async with open_embedder(resources.settings) as model:
            knowledge = await KnowledgeBase.open(resources.pool, model)
            _say_what_is_missing(knowledge, model)
            await knowledge.load(EVERYBODY, SHIPPED_COLLECTION, shipped_articles() if options.shipped else [])
            await knowledge.complete()
            yield knowledge

    made = Tool(source.name, settings=EmbeddingSettings, lifespan=lifespan)

    @made.operation(effect=Effect.READ, timeout_ms=5_000)
    async def search(
        call: Call[KnowledgeBase],
        query: Annotated[str, Field(min_length=1, max_length=QUERY_MAX_CHARS, description="Words, or a whole ticket.")],
        limit: Annotated[int, Field(ge=1, le=MAX_HITS)] = 5,
    ) -> Hits | None:
        """Search the knowledge base. Scores run from 0 to 1; above 0.35 an article is about what was asked.

        Empty when nothing comes near to what was asked.
        """
        try:
            hits = await call.state.search(call.tenant, query, limit, options.collections)
        except ModelFailure as failure:
            raise ToolFailure(failure.code, failure.message, retry_after_ms=failure.retry_after_ms) from failure
        return Hits(hits=[Found(**hit) for hit in hits], top_score=hits[0]["score"]) if hits else None

    return made


def _say_what_is_missing(knowledge: KnowledgeBase, model: Embedder) -> None:
    log = structlog.get_logger()
    if not knowledge.knows_meaning:
        log.warning(
            "the database has no extension vector: the knowledge base searches by words alone; "
            "install pgvector and start the stack again"
        )
    elif model.name not in SHIPPED and knowledge.calibration == SHIPPED[LOCAL]:
        log.warning("scores are not calibrated for this model; run `triptych kb calibrate`", model=model.name)
