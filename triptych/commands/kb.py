"""`triptych kb`: what the knowledge base knows: load folders, see what is there, hold its scores to questions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from triptych.client import DatabaseUnreachableError
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, tool_role
from triptych.commands.common.output import err, name_text, out, print_json
from triptych.kernel.errors import TriptychError
from triptych.kernel.process.extras import require_extra
from triptych.schemas import codec

if TYPE_CHECKING:
    from triptych.tools.adapters.kb.store import KnowledgeBase

app = typer.Typer(help="The knowledge base: load documents, and hold its scores to questions.", no_args_is_help=True)

LEFT_OUT_SHOWN = 20

_SHIPPED = "shipped"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TENANT = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")

Tool = Annotated[str, typer.Option("--tool", help="The name of the tool's table in triptych.toml.")]
Postgres = Annotated[
    str | None,
    typer.Option(
        "--postgres", envvar="TRIPTYCH_POSTGRES", metavar="DSN", help="The tool's own role, if not of --data."
    ),
]
Tenant = Annotated[str, typer.Option("--tenant", help="Who may find it; * is everybody.")]


class FolderError(TriptychError):
    """There is nothing to load."""

    def __init__(self, folder: Path, problem: str) -> None:
        self.folder = folder
        super().__init__(f"{folder}: {problem}")


class QuestionsError(TriptychError):
    """The questions cannot be used for a calibration."""

    def __init__(self, file: Path, problem: str) -> None:
        self.file = file
        super().__init__(
            f'{file}: {problem}. Each line is {{"question": "...", "article": "the id that answers it"}} or null'
        )


@app.command()
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
            async with _open(tool_role(data, postgres, tool)) as knowledge:
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


@app.command()
def ls(*, tool: Tool = "kb", data: DataDir = DEFAULT_DATA, postgres: Postgres = None, as_json: AsJson = False) -> None:
    """What is there: collections by tenant, with their documents."""

    async def collections() -> list[dict[str, object]]:
        async with _open(tool_role(data, postgres, tool)) as knowledge:
            return await knowledge.collections()

    found = asyncio.run(collections())
    if as_json:
        print_json(found)
        return
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for heading in ("tenant", "collection"):
        table.add_column(heading)
    for heading in ("documents", "chunks"):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(*(name_text(str(row[name])) for name in ("tenant", "collection", "documents", "chunks")))
    out.print(table)


@app.command()
def calibrate(
    questions: Annotated[Path, typer.Argument(help="A JSON line for each question: what answers it, or null.")],
    *,
    tenant: Tenant = "*",
    collection: Annotated[list[str] | None, typer.Option(help="Ask these alone.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how good the threshold is, and change nothing.")
    ] = False,
    tool: Tool = "kb",
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Fit the scores to questions of which you know whether they are answered, and keep the fit."""
    from triptych.tools.adapters.kb.calibration import fit, quality  # noqa: PLC0415

    asked = _questions(questions)

    async def measure() -> dict[str, Any]:
        async with _open(tool_role(data, postgres, tool)) as knowledge:
            judged = [
                await knowledge.judge(tenant, question, answered=answered, collections=collection or [])
                for question, answered in asked
            ]
            before = quality(judged, knowledge.calibration)
            try:
                fitted = fit(judged)
            except ValueError as error:
                raise QuestionsError(questions, str(error)) from error
            if not dry_run:
                await knowledge.calibrate(fitted, len(judged))
            after = quality(judged, fitted)
            return {"questions": len(judged), "before": asdict(before), "after": asdict(after), **asdict(fitted)}

    told = asyncio.run(measure())
    if as_json:
        print_json(told)
        return
    for when in ("before", "after"):
        precision, recall = told[when]["precision"], told[when]["recall"]
        out.print(f"{when:>6}: {precision:.0%} of what scores above the threshold is answered")
        out.print(f"        {recall:.0%} of what is answered scores above the threshold")
    err.print("Nothing was changed." if dry_run else "Kept. Start the tool again, so that it goes by it.")


def _questions(file: Path) -> list[tuple[str, bool]]:
    try:
        lines = [codec.decode(line) for line in file.read_bytes().splitlines() if line.strip()]
        return [(str(line["question"]), line["article"] is not None) for line in lines]
    except OSError as error:
        raise QuestionsError(file, f"it cannot be read: {error.strerror}") from error
    except (codec.InvalidJson, KeyError, TypeError) as error:
        raise QuestionsError(file, f"{type(error).__name__}: {error}") from error


@asynccontextmanager
async def _open(dsn: str) -> AsyncIterator[KnowledgeBase]:
    # What makes embeddings takes a second to import, and the other commands do without.
    from triptych.kernel.postgres.database import connect  # noqa: PLC0415
    from triptych.models.embeddings import EmbeddingSettings, open_embedder  # noqa: PLC0415
    from triptych.tools.adapters.kb.store import KnowledgeBase  # noqa: PLC0415

    try:
        async with open_embedder(EmbeddingSettings()) as model, await connect(dsn, "triptych kb") as pool:
            yield await KnowledgeBase.open(pool, model)
    except OSError as error:
        parts = urlsplit(dsn)
        raise DatabaseUnreachableError(f"{parts.hostname}:{parts.port}{parts.path}", error) from error
