"""The knowledge base adapter: Postgres full text search over the articles that ship with it.

The articles are loaded into the tool's own schema when it starts. How the score is computed stands
with the query, in kb.sql.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from typing import Annotated

import asyncpg
from pydantic import Field
from typing_extensions import TypedDict

from triptych.kernel.database import Queries
from triptych.kernel.errors import ConfigurationError
from triptych.tools import Call, Effect, Resources, Tool

MAX_HITS = 10
SCORE_DIGITS = 3
QUERY_MAX_CHARS = 40_000


@dataclass(frozen=True, slots=True)
class Article:
    """One file of the knowledge base."""

    id: str
    title: str
    category: str
    updated: date
    body: str

    @classmethod
    def parse(cls, name: str, text: str) -> Article:
        """Markdown with `name: value` lines between two `---` in front.

        Raises:
            ConfigurationError: a field is missing or the updated date is none.
        """
        try:
            _, front, body = text.split("---\n", 2)
            fields = dict(line.split(": ", 1) for line in front.strip().splitlines())
            return cls(
                id=fields["id"],
                title=fields["title"].strip("\"'"),
                category=fields["category"],
                updated=date.fromisoformat(fields["updated"]),
                body=body.strip(),
            )
        except (KeyError, ValueError) as error:
            raise ConfigurationError(
                f"knowledge/{name}: {error!r}; front matter needs id, title, category and updated (YYYY-MM-DD)"
            ) from error


class Hit(TypedDict):
    """An article that was found."""

    id: str
    title: str
    category: str
    snippet: str
    body: str
    score: Annotated[float, Field(ge=0, le=1)]


class Hits(TypedDict):
    """Articles, best first."""

    hits: list[Hit]
    top_score: Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True)
class KnowledgeBase:
    """The articles in Postgres."""

    pool: asyncpg.Pool
    sql: Queries

    async def load(self, articles: list[Article]) -> None:
        """Make the table say what the files say."""
        async with self.pool.acquire() as conn, conn.transaction():
            await conn.execute(
                self.sql["upsert"],
                [article.id for article in articles],
                [article.title for article in articles],
                [article.category for article in articles],
                [article.updated for article in articles],
                [article.body for article in articles],
            )
            await conn.execute(self.sql["prune"], [article.id for article in articles])

    async def search(self, query: str, limit: int) -> list[Hit]:
        """The articles that share a word with the query, best first."""
        rows = await self.pool.fetch(self.sql["search"], query, limit)
        return [
            Hit(
                id=row["id"],
                title=row["title"],
                category=row["category"],
                snippet=row["snippet"],
                body=row["body"],
                score=round(row["score"], SCORE_DIGITS),
            )
            for row in rows
        ]


def shipped_articles() -> list[Article]:
    """The knowledge base that ships with this package."""
    directory = files("triptych.tools").joinpath("knowledge")
    return [
        Article.parse(file.name, file.read_text("utf-8"))
        for file in sorted(directory.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".md")
    ]


@asynccontextmanager
async def _knowledge_base(resources: Resources) -> AsyncIterator[KnowledgeBase]:
    if resources.pool is None:
        raise ConfigurationError("the knowledge base needs Postgres")
    knowledge = KnowledgeBase(resources.pool, Queries.load("triptych.tools", "kb.sql"))
    await knowledge.load(shipped_articles())
    yield knowledge


tool = Tool("kb", lifespan=_knowledge_base)


@tool.operation(effect=Effect.READ, timeout_ms=5_000)
async def search(
    call: Call[KnowledgeBase],
    query: Annotated[str, Field(min_length=1, max_length=QUERY_MAX_CHARS, description="Words, or a whole ticket.")],
    limit: Annotated[int, Field(ge=1, le=MAX_HITS)] = 5,
) -> Hits | None:
    """Search the knowledge base. Scores run from 0 to 1; above 0.35 an article is about what was asked.

    Empty when no article shares a word with the query.
    """
    hits = await call.state.search(query, limit)
    return Hits(hits=hits, top_score=hits[0]["score"]) if hits else None
