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

LEFT_OUT_SHOWN = 20

_TENANT = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")


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
    # What reads and stores takes a second to import, and the other commands do not need it.
    from triptych.tools.adapters.kb import ingest as ingestion  # noqa: PLC0415

    if not ingestion.is_collection(collection):
        raise typer.BadParameter(f"{collection!r}: write a name like handbook-2026", param_hint="--collection")
    if not _TENANT.fullmatch(tenant):
        raise typer.BadParameter(f"{tenant!r} is not the name of a tenant", param_hint="--tenant")
    found = ingestion.find_files(folder, allow_empty=allow_empty)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        reading = bar.add_task("reading", total=len(found))
        content = ingestion.read(folder, lambda done: bar.advance(reading, done))
        loading = bar.add_task("loading", total=len(content.documents))

        async def load() -> tuple[dict[str, Any], bool]:
            async with opened(tool_role(data, postgres, tool)) as knowledge:
                report = await ingestion.load(
                    knowledge, tenant, collection, content, lambda done: bar.advance(loading, done)
                )
                return asdict(report), knowledge.knows_meaning

        report, knows_meaning = asyncio.run(load())
    del report["refused"]  # among the unreadable
    told = {
        "tenant": tenant,
        "collection": collection,
        **report,
        "unreadable": [{"id": one.id, "reason": one.reason} for one in content.unreadable],
        "left_out": [{"id": one.id, "reason": one.reason} for one in content.left_out],
        "notes": [{"id": one.id, "note": one.note} for one in content.documents if one.note],
    }
    if as_json:
        print_json(told | {"by_meaning": knows_meaning})
    else:
        _print_report(told, by_meaning=knows_meaning)
    if content.unreadable:
        raise typer.Exit(1)


def _print_report(told: dict[str, Any], *, by_meaning: bool) -> None:
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
