"""The tool: one operation, `search`, over what `triptych kb ingest` loaded and the folders that an option names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import structlog
from pydantic import Field
from typing_extensions import TypedDict

from triptych.kernel.errors import ConfigurationError
from triptych.models import ModelFailure
from triptych.models.embeddings import LOCAL, Embedder, EmbeddingSettings, open_embedder
from triptych.schemas.contract import Effect
from triptych.tools.adapters.kb import ingest
from triptych.tools.adapters.kb.store import DEFAULT_CALIBRATIONS, EVERYBODY, KnowledgeBase
from triptych.tools.sdk.call import Call, Resources
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.source import Options, Source
from triptych.tools.sdk.tool import Tool

MAX_HITS = 10
QUERY_MAX_CHARS = 40_000


class KnowledgeOptions(Options):
    """What stands under `[tools.NAME.options]`."""

    folders: Annotated[
        tuple[str, ...],
        Field(description="Folders to ingest at every start, each as a collection of the folder's name."),
    ] = ()
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
    """Make the tool that a table of triptych.toml describes.

    Raises:
        ConfigurationError: an option is wrong.
    """
    options = source.read(KnowledgeOptions)
    folders = _by_collection(source, options.folders)

    @asynccontextmanager
    async def lifespan(resources: Resources) -> AsyncIterator[KnowledgeBase]:
        if resources.pool is None:
            raise ConfigurationError("the knowledge base needs Postgres")
        async with open_embedder(resources.settings) as model:
            knowledge = await KnowledgeBase.open(resources.pool, model)
            _say_what_is_missing(knowledge, model)
            for collection, folder in folders.items():
                try:
                    await _ingest(knowledge, collection, folder)
                except ingest.FolderError as error:
                    raise ConfigurationError(f"tools.{source.name}.options.folders: {error}") from error
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


def _by_collection(source: Source, folders: tuple[str, ...]) -> dict[str, Path]:
    """Name the collection of each folder.

    Raises:
        ConfigurationError: the name of a folder cannot be one of a collection, or two folders have the same.
    """
    key = f"tools.{source.name}.options.folders"
    named: dict[str, Path] = {}
    for text in folders:
        folder = source.path(text)
        name = folder.resolve().name
        if not ingest.is_collection(name):
            raise ConfigurationError(
                f"{key}: {text}: a collection cannot be named {name!r}. "
                "Name the folder with small letters, digits, - and _, beginning with a letter, such as handbook-2026"
            )
        if name in named:
            raise ConfigurationError(f"{key}: {named[name]} and {folder} have the same name. Rename one of them")
        named[name] = folder
    return named


async def _ingest(knowledge: KnowledgeBase, collection: str, folder: Path) -> None:
    """Make a collection say what a folder says.

    Raises:
        FolderError: the folder does not exist, or has no file that can be read.
    """
    log = structlog.get_logger().bind(collection=collection)
    ingest.find_files(folder)
    content = await asyncio.to_thread(ingest.read, folder)
    report = await ingest.load(knowledge, EVERYBODY, collection, content)
    for one in content.unreadable:
        log.warning("a file of the knowledge base cannot be read", file=one.id, reason=one.reason)
    for document in content.documents:
        if document.note:
            log.warning("a file of the knowledge base was read in part", file=document.path, reason=document.note)
    log.info(
        "folder ingested",
        folder=str(folder),
        added=len(report.added),
        changed=len(report.changed),
        removed=len(report.removed),
        unchanged=report.unchanged,
        left_out=len(content.left_out),
    )


def _say_what_is_missing(knowledge: KnowledgeBase, model: Embedder) -> None:
    log = structlog.get_logger()
    if not knowledge.knows_meaning:
        log.warning(
            "the database has no extension vector: the knowledge base searches by words alone; "
            "install pgvector and start the stack again"
        )
    elif model.name not in DEFAULT_CALIBRATIONS and knowledge.calibration == DEFAULT_CALIBRATIONS[LOCAL]:
        log.warning("scores are not calibrated for this model; run `triptych kb calibrate`", model=model.name)
