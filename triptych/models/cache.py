"""The cache of model answers: the same question of the same tenant gets the known answer, at no cost.

A question is all that could change the answer. It has the models of the tier in their order, the whole prompt with its
slice of the run's state, and the form of the answer. The tenant is part of the key, so nothing crosses tenants. Whether
an answer may come from here is the playbook's decision and travels with the request. A cache that cannot be reached is
treated as empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.kernel.process.outage import POSTGRES_GONE
from triptych.schemas import Json, Spend, codec

_QUERIES = Queries.load("triptych.models", "cache.sql")
_EXPIRED_AT_ONCE: Final = 20


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """An answer that was given before, and the model that gave it."""

    output: dict[str, Json]
    model: str


def fingerprint(parts: Iterable[str | bytes]) -> bytes:
    """SHA-256 over parts whose borders count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8) + data)
    return digest.digest()


class AnswerCache:
    """Answers in the service's own schema, each for `ttl_s` seconds."""

    def __init__(self, pool: asyncpg.Pool, ttl_s: int) -> None:
        self._pool, self._ttl_s = pool, ttl_s

    async def find(self, tenant: str, question: bytes) -> CachedAnswer | None:
        """Return the answer that is kept, and count a hit."""
        try:
            row = await self._pool.fetchrow(_QUERIES["find"], tenant, question)
        except POSTGRES_GONE:
            return None
        if row is None:
            return None
        return CachedAnswer(codec.decode(row["answer"], limits=codec.STORED, unique_names=False), row["model"])

    async def keep(
        self, tenant: str, question: bytes, *, kind: str, tier: str, output: dict[str, Json], spend: Spend
    ) -> None:
        """Keep an answer, and drop a few that are too old to be used."""
        model = spend.model_calls[-1].model
        answer = codec.encode(output)
        row = (tenant, question, kind, tier, model, answer, spend.tokens, spend.usd_micros, float(self._ttl_s))
        try:
            await self._pool.execute(_QUERIES["keep"], *row)
            await self._pool.execute(_QUERIES["drop_expired"], _EXPIRED_AT_ONCE)
        except POSTGRES_GONE:
            return
