"""What the commands of `triptych kb` share: their options, and the knowledge base under the role of the tool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from triptych.client import DatabaseUnreachableError

if TYPE_CHECKING:
    from triptych.tools.adapters.kb.store import KnowledgeBase

Tool = Annotated[str, typer.Option("--tool", help="The name of the tool's table in triptych.toml.")]
Postgres = Annotated[
    str | None,
    typer.Option(
        "--postgres", envvar="TRIPTYCH_POSTGRES", metavar="DSN", help="The tool's own role, if not of --data."
    ),
]
Tenant = Annotated[str, typer.Option("--tenant", help="Who may find it; * is everybody.")]


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[KnowledgeBase]:
    # What makes embeddings takes a second to import, and the other commands do not need it.
    from triptych.kernel.postgres.database import connect  # noqa: PLC0415
    from triptych.models.embeddings import EmbeddingSettings, open_embedder  # noqa: PLC0415
    from triptych.tools.adapters.kb.store import KnowledgeBase  # noqa: PLC0415

    try:
        async with open_embedder(EmbeddingSettings()) as model, await connect(dsn, "triptych kb") as pool:
            yield await KnowledgeBase.open(pool, model)
    except OSError as error:
        parts = urlsplit(dsn)
        raise DatabaseUnreachableError(f"{parts.hostname}:{parts.port}{parts.path}", error) from error
