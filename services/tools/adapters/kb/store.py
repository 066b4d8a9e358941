"""The knowledge base in Postgres: loads documents and searches them. Only changed documents cost anything.

Everything that is loaded can be loaded again after a crash at any point, and comes out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import asyncpg

from triptych.kernel.postgres.database import Queries
from triptych.models.embeddings import LOCAL, Embedder, Vector
from triptych.tools.adapters.kb.calibration import Calibration, Judged
from triptych.tools.adapters.kb.chunks import Chunk, Document, chunks

EVERYBODY = "*"
"""The tenant of what every tenant may find."""
SCORE_DIGITS = 3
SCORE_MIN = 0.05
"""Below it nothing has been found."""
EMBEDDED_QUERY_MAX_CHARS = 8_000
CANDIDATES = 200
"""So many chunks by either measure are looked at closer."""
_CONTENT_REFUSED = (asyncpg.DataError, asyncpg.exceptions.ProgramLimitExceededError, UnicodeEncodeError)
"""What asyncpg raises for what a value says, and never because the database is away."""
DOCUMENTS_AT_ONCE = 32
CHUNKS_AT_ONCE = 256

WORDS_ALONE = Calibration(words=16.279, meaning=0.0, base=-5.461)
DEFAULT_CALIBRATIONS = {LOCAL: Calibration(words=11.708, meaning=11.342, base=-7.592)}
"""By embedding model, as fitted to the questions in tests/knowledge; a test holds them to it."""


class Hit(TypedDict):
    """A document that was found, by the chunk of it that fits best."""

    id: str
    collection: str
    title: str
    category: str
    snippet: str
    body: str
    score: float


@dataclass(slots=True)
class Report:
    """What loading has changed."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """By id, why the database does not take a document. What it said before stays."""
    unchanged: int = 0
    chunks_embedded: int = 0


class KnowledgeBase:
    """One schema of documents."""

    def __init__(self, pool: asyncpg.Pool, embedder: Embedder | None, calibration: Calibration) -> None:
        self._pool, self._embedder, self.calibration = pool, embedder, calibration
        self._sql = Queries.load("triptych.tools.adapters.kb", "kb.sql")
        self._search = self._sql["search"].replace("{near}", self._sql["near" if embedder else "far"])

    @classmethod
    async def open(cls, pool: asyncpg.Pool, embedder: Embedder) -> KnowledgeBase:
        """Open the knowledge base of a schema. It searches by words alone where the database cannot keep vectors."""
        sql = Queries.load("triptych.tools.adapters.kb", "kb.sql")
        if not await pool.fetchval(sql["has_vectors"]):
            return cls(pool, None, WORDS_ALONE)
        fitted = await pool.fetchrow(sql["calibration"], embedder.name)
        default = DEFAULT_CALIBRATIONS.get(embedder.name, DEFAULT_CALIBRATIONS[LOCAL])
        return cls(pool, embedder, Calibration(**dict(fitted)) if fitted else default)

    @property
    def knows_meaning(self) -> bool:
        """Whether it compares meanings, and not words alone."""
        return self._embedder is not None

    async def search(self, tenant: str, query: str, limit: int, collections: Sequence[str] = ()) -> list[Hit]:
        """Search what a tenant may find, best first.

        Raises:
            ModelFailure: the question cannot be embedded.
        """
        return [
            Hit(
                id=row["id"],
                collection=row["collection"],
                title=row["title"],
                category=row["category"],
                snippet=row["snippet"],
                body=row["body"],
                score=round(row["score"], SCORE_DIGITS),
            )
            for row in await self._rows(tenant, query, limit, collections, SCORE_MIN)
        ]

    async def judge(self, tenant: str, query: str, *, answered: bool, collections: Sequence[str] = ()) -> Judged:
        """Measure the best chunk for a question, for a calibration."""
        rows = await self._rows(tenant, query, 1, collections, 0.0)
        return Judged(rows[0]["words"], rows[0]["meaning"], answered) if rows else Judged(0.0, 0.0, answered)

    async def _rows(
        self, tenant: str, query: str, limit: int, collections: Sequence[str], score_min: float
    ) -> Sequence[asyncpg.Record]:
        name, vector = "", ""
        if self._embedder is not None:
            name = self._embedder.name
            vector = _text((await self._embedder.embed([query[:EMBEDDED_QUERY_MAX_CHARS]], query=True))[0])
        by = self.calibration
        return await self._pool.fetch(
            self._search,
            query,
            limit,
            tenant,
            list(collections),
            by.words,
            by.meaning,
            by.base,
            score_min,
            name,
            vector,
            CANDIDATES,
        )

    async def load(
        self,
        tenant: str,
        collection: str,
        documents: Sequence[Document],
        *,
        keep: Sequence[str] = (),
        progress: Callable[[int], None] = lambda _done: None,
    ) -> Report:
        """Make a collection say what these documents say, and remove all others from it.

        Each document has an id of its own. The documents of the files in `keep` stay too. `progress` is called with the
        number of documents since its last call.

        Raises:
            ModelFailure: the provider of embeddings does not answer. What was loaded until then stays.
        """
        rows = await self._pool.fetch(self._sql["known"], tenant, collection)
        known = {row["id"]: (row["content_hash"], row["path"]) for row in rows}
        report = Report()
        news: list[Document] = []
        for document in documents:
            if document.id not in known:
                report.added.append(document.id)
            elif known[document.id] != (document.content_hash, document.path or document.id):
                report.changed.append(document.id)
            else:
                report.unchanged += 1
                continue
            news.append(document)
        progress(report.unchanged)
        for start in range(0, len(news), DOCUMENTS_AT_ONCE):
            batch = {
                document.id: (document, chunks(tenant, document))
                for document in news[start : start + DOCUMENTS_AT_ONCE]
            }
            await self._load_batch(tenant, collection, batch, report)
            progress(len(batch))
        staying = [document.id for document in documents]
        gone = await self._pool.fetch(self._sql["prune"], tenant, collection, staying, list(keep))
        report.removed = [row["id"] for row in gone]
        if self._embedder is not None:
            await self._pool.execute(self._sql["forget"], tenant)
        return report

    async def _load_batch(
        self, tenant: str, collection: str, batch: Mapping[str, tuple[Document, list[Chunk]]], report: Report
    ) -> None:
        """Embed and store documents. When the database refuses them for what they say, store each by itself."""
        try:
            cut = {chunk.content_hash: chunk for _, its_chunks in batch.values() for chunk in its_chunks}
            # Vectors first: a document that has its new hash has its vectors too.
            report.chunks_embedded += await self._embed(tenant, cut)
            await self._store(tenant, collection, batch)
        except _CONTENT_REFUSED as error:
            if len(batch) > 1:
                for name, document in batch.items():
                    await self._load_batch(tenant, collection, {name: document}, report)
                return
            (name,) = batch
            report.refused[name] = f"the database refuses it: {error}"
            for told in (report.added, report.changed):
                if name in told:
                    told.remove(name)

    async def complete(self) -> int:
        """Embed what has no vector under this model yet, for instance after another model was configured."""
        embedded = 0
        while self._embedder is not None:
            rows = await self._pool.fetch(self._sql["missing"], self._embedder.name, CHUNKS_AT_ONCE)
            if not rows:
                break
            for tenant in {row["tenant"] for row in rows}:
                # By the hash that is stored: rules of today may make another of the same text.
                missing = {
                    row["content_hash"]: Chunk(tenant, 0, row["title"], row["body"])
                    for row in rows
                    if row["tenant"] == tenant
                }
                embedded += await self._embed(tenant, missing)
        return embedded

    async def calibrate(self, calibration: Calibration, questions: int) -> None:
        """Keep a calibration for the model that is in use, and go by it."""
        name = self._embedder.name if self._embedder else ""
        values = (calibration.words, calibration.meaning, calibration.base)
        await self._pool.execute(self._sql["calibrate"], name, *values, questions)
        self.calibration = calibration

    async def collections(self) -> list[dict[str, object]]:
        """Count the documents and chunks of each collection of each tenant."""
        return [dict(row) for row in await self._pool.fetch(self._sql["collections"])]

    async def _embed(self, tenant: str, by_hash: Mapping[str, Chunk]) -> int:
        """Embed those of these chunks that have no vector, and return how many they were."""
        if self._embedder is None:
            return 0
        rows = await self._pool.fetch(self._sql["embedded"], self._embedder.name, list(by_hash))
        done = {row["content_hash"] for row in rows}
        passages = [
            (content_hash, part, passage)
            for content_hash, chunk in by_hash.items()
            if content_hash not in done
            for part, passage in enumerate(chunk.passages())
        ]
        if passages:
            vectors = await self._embedder.embed([passage for _, _, passage in passages])
            await self._pool.execute(
                self._sql["embed"],
                self._embedder.name,
                tenant,
                [content_hash for content_hash, _, _ in passages],
                [part for _, part, _ in passages],
                [_text(vector) for vector in vectors],
            )
        return len(by_hash) - len(done)

    async def _store(self, tenant: str, collection: str, batch: Mapping[str, tuple[Document, list[Chunk]]]) -> None:
        documents = [document for document, _ in batch.values()]
        cut = [(document.id, chunk) for document, its_chunks in batch.values() for chunk in its_chunks]
        lengths = [len(its_chunks) for _, its_chunks in batch.values()]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(
                self._sql["upsert_documents"],
                tenant,
                collection,
                [document.id for document in documents],
                [document.title for document in documents],
                [document.category for document in documents],
                [document.content_hash for document in documents],
                [document.path or document.id for document in documents],
            )
            await connection.execute(
                self._sql["upsert_chunks"],
                tenant,
                collection,
                [document for document, _ in cut],
                [chunk.position for _, chunk in cut],
                [chunk.title for _, chunk in cut],
                [chunk.body for _, chunk in cut],
                [chunk.content_hash for _, chunk in cut],
            )
            await connection.execute(
                self._sql["shorten"], tenant, collection, [document.id for document in documents], lengths
            )


def _text(vector: Vector) -> str:
    """Write a vector as Postgres reads it, with the seven digits that a float of four bytes has."""
    return f"[{','.join(f'{part:.7g}' for part in vector)}]"
