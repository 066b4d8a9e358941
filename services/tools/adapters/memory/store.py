"""Facts in Postgres. Every statement names the tenant, and what has expired is never given out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.models.embeddings import Embedder, Vector

LEAST_MEANING = 0.25
"""A fact that shares no word with the question has to be as near as this."""
QUESTION_MAX_CHARS = 4_000
EXPIRED_AT_ONCE = 100

_SQL = Queries.load("triptych.tools.adapters.memory", "memory.sql")
_MEANING = "coalesce(likeness(meanings.embedding, as_vector($7)), 0)"
_MEANINGS = (
    "left join meanings on (meanings.tenant, meanings.subject, meanings.name) = "
    "(memories.tenant, memories.subject, memories.name) and meanings.model = $8"
)


@dataclass(frozen=True, slots=True)
class FactOrigin:
    """Who notes something, and where they have it from."""

    source: str
    run_id: UUID
    step: str
    principal: str


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that is known of a subject."""

    name: str
    value: str
    source: str
    run_id: UUID
    step: str
    remembered_at: datetime
    expires_at: datetime
    score: float


class FactStore:
    """The facts of all tenants, each by its own."""

    def __init__(self, pool: asyncpg.Pool, embedder: Embedder | None) -> None:
        self._pool, self._embedder = pool, embedder
        by_meaning = embedder is not None
        self._recall = _SQL["recall"].replace("{meaning}", _MEANING if by_meaning else "0::float8")
        self._recall = self._recall.replace("{meanings}", _MEANINGS if by_meaning else "")

    @classmethod
    async def open(cls, pool: asyncpg.Pool, embedder: Embedder) -> FactStore:
        """Return the memory of a schema. It recalls by words alone where the database cannot keep vectors."""
        has_vectors = await pool.fetchval(_SQL["has_vectors"])
        return cls(pool, embedder if has_vectors else None)

    async def remember(
        self, tenant: str, subject: str, facts: Mapping[str, str], origin: FactOrigin, *, days: int
    ) -> None:
        """Note facts for so many days, each in place of what was known under its name.

        Raises:
            ModelFailure: a fact cannot be embedded; nothing was noted.
        """
        names, values = list(facts), list(facts.values())
        vectors: Sequence[Vector] = ()
        if self._embedder is not None:
            vectors = await self._embedder.embed([f"{name}: {value}" for name, value in facts.items()])
        whose = (origin.source, origin.run_id, origin.step, origin.principal)
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_SQL["remember"], tenant, subject, *whose, days, names, values)
            if self._embedder is not None:
                texts = [_text(vector) for vector in vectors]
                await connection.execute(_SQL["mean"], tenant, subject, self._embedder.name, names, texts)
        await self.drop_expired()

    async def recall(
        self, tenant: str, subject: str, *, query: str = "", names: Sequence[str] = (), limit: int = 20
    ) -> list[Fact]:
        """Return what is known of a subject, best first.

        Raises:
            ModelFailure: the question cannot be embedded.
        """
        arguments = [tenant, subject, list(names), query, LEAST_MEANING, limit]
        if self._embedder is not None:
            (vector,) = await self._embedder.embed([query[:QUESTION_MAX_CHARS] or subject], query=True)
            arguments += [_text(vector), self._embedder.name]
        rows = await self._pool.fetch(self._recall, *arguments)
        return [Fact(**{**row, "score": round(row["score"], 3)}) for row in map(dict, rows)]

    async def forget(self, tenant: str, subject: str, names: Sequence[str] = ()) -> int:
        """Delete what is known of a subject, or the facts of these names alone; gives how many they were."""
        return int(await self._pool.fetchval(_SQL["forget"], tenant, subject, list(names)))

    async def drop_expired(self) -> None:
        await self._pool.execute(_SQL["drop_expired"], EXPIRED_AT_ONCE)


def _text(vector: Vector) -> str:
    """Write a vector as Postgres reads it. Seven digits are all that a float of four bytes has."""
    return f"[{','.join(f'{part:.7g}' for part in vector)}]"
