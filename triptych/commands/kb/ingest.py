"""`triptych kb ingest`: a collection of the knowledge base says what a folder says."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from triptych.commands.common.knowledge_tool import Postgres, Tenant, Tool, opened
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, tool_role
from triptych.commands.common.output import err, out, print_json
from triptych.kernel.errors import TriptychError
from triptych.kernel.process.extras import require_extra

LEFT_OUT_SHOWN = 20

_SHIPPED = "shipped"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TENANT = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


class FolderError(TriptychError):
    """There is nothing to load."""

    def __init__(self, folder: Path, problem: str) -> None:
        self.folder = folder
        super().__init__(f"{folder}: {problem}")


def ingest(
    folder: Annotated[Path, typer.Argument(help="Markdown, text and PDF files, also in folders within.")],
    *,
    collection: Annotated[str, typer.Option(help="What these documents are called together.")] = "documents",
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Let a folder without documents empty the collection.")
    ] = False,
    tenant: Tenant = "*",
    tool: Tool = "kb",
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Make a collection say what a folder says. Only what changed is embedded again; what is gone is removed."""
    require_extra("kb", "`triptych kb ingest`")
    # pypdf takes its time.
    from triptych.tools.adapters.kb.reading import Unreadable, files_of, left_out_of, read_folder  # noqa: PLC0415

    _check_names(collection, tenant)
    if not folder.is_dir():
        raise FolderError(folder, "there is no such folder")
    found, left_out = files_of(folder), left_out_of(folder)
    if not found and not allow_empty:
        raise FolderError(
            folder,
            "there is no Markdown, text or PDF file in it; with --allow-empty, the collection forgets all that it says",
        )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        reading = bar.add_task("reading", total=len(found))
        read = []
        for one in read_folder(folder):
            read.append(one)
            bar.advance(reading)
        documents = [one for one in read if not isinstance(one, Unreadable)]
        unreadable = [one for one in read if isinstance(one, Unreadable)]
        loading = bar.add_task("loading", total=len(documents))

        async def load() -> tuple[dict[str, Any], bool]:
            async with opened(tool_role(data, postgres, tool)) as knowledge:
                # A file that cannot be read today keeps what it said yesterday; one that is empty now says nothing.
                keep = [one.id for one in unreadable if not one.is_empty]
                report = await knowledge.load(
                    tenant, collection, documents, keep=keep, progress=lambda done: bar.advance(loading, done)
                )
                return asdict(report), knowledge.knows_meaning

        report, knows_meaning = asyncio.run(load())
    unreadable += [Unreadable(name, reason) for name, reason in report.pop("refused").items()]
    told = {
        "tenant": tenant,
        "collection": collection,
        **report,
        "unreadable": [{"id": one.id, "reason": one.reason} for one in unreadable],
        "left_out": [{"id": one.id, "reason": one.reason} for one in left_out],
        "notes": [{"id": one.id, "note": one.note} for one in documents if one.note],
    }
    if as_json:
        print_json(told | {"by_meaning": knows_meaning})
    else:
        _tell(told, by_meaning=knows_meaning)
    if unreadable:
        raise typer.Exit(1)


def _check_names(collection: str, tenant: str) -> None:
    if not _NAME.fullmatch(collection) or collection == _SHIPPED:
        raise typer.BadParameter(
            f"{collection!r}: a name like handbook-2026, and not {_SHIPPED!r}", param_hint="--collection"
        )
    if not _TENANT.fullmatch(tenant):
        raise typer.BadParameter(f"{tenant!r} is no tenant", param_hint="--tenant")


def _tell(told: dict[str, Any], *, by_meaning: bool) -> None:
    counts = ", ".join(f"{len(told[what])} {what}" for what in ("added", "changed", "removed"))
    embedded = f"{told['chunks_embedded']} chunks embedded"
    out.print(f"{told['collection']}: {counts}, {told['unchanged']} unchanged; {embedded}")
    for one in told["unreadable"]:
        err.print(f"cannot be read: {one['id']}: {one['reason']}", style="yellow", markup=False, soft_wrap=True)
    for one in told["notes"]:
        err.print(f"read in part: {one['id']}: {one['note']}", style="yellow", markup=False, soft_wrap=True)
    for one in told["left_out"][:LEFT_OUT_SHOWN]:
        err.print(f"left out: {one['id']}: {one['reason']}", style="dim", markup=False, soft_wrap=True)
    if (more := len(told["left_out"]) - LEFT_OUT_SHOWN) > 0:
        err.print(f"left out: {more} more; --json names them all", style="dim")
    if not by_meaning:
        err.print("The database has no extension vector: it is searched by words alone.", style="yellow")
