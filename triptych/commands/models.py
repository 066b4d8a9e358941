"""Reads the caches of model answers, each in the schema of the service that keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.table import Table

from triptych.client.operator import operator_connection
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Postgres, database
from triptych.commands.common.output import err, is_narrow, out, print_json, usd
from triptych.kernel.postgres.database import Queries

_QUERIES = Queries.load("triptych.commands", "models.sql")
_TOOL_SCHEMA = "tool_"


@dataclass(frozen=True, slots=True)
class Kept:
    """The answers of one kind that a service keeps from one model."""

    service: str
    kind: str
    tier: str
    model: str
    kept: int
    """Questions that were asked and whose answer is kept."""
    hits: int
    """How often one of them was not asked again."""
    saved_tokens: int
    saved_usd_micros: int

    @property
    def hit_rate(self) -> float:
        return self.hits / (self.hits + self.kept)


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What was kept and saved, and the share of questions that needed no model."""

    answers: list[Kept]
    kept: int
    hits: int
    hit_rate: float
    saved_tokens: int
    saved_usd: float

    @classmethod
    def of(cls, answers: Iterable[Kept]) -> CacheReport:
        answers = list(answers)
        kept, hits = sum(each.kept for each in answers), sum(each.hits for each in answers)
        return cls(
            answers,
            kept,
            hits,
            round(hits / (hits + kept), 4) if answers else 0.0,
            sum(each.saved_tokens for each in answers),
            sum(each.saved_usd_micros for each in answers) / 1_000_000,
        )


def models(
    *,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")] = None,
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Show which answers of models are kept, how often they were given again, and what that saved."""
    found = asyncio.run(read(database(data, postgres), tenant))
    if as_json:
        print_json(found)
    elif found.answers:
        _show(found)
    else:
        err.print("no answer of a model is kept; see `cache` in docs/reference/playbooks.md")


async def read(dsn: str, tenant: str | None) -> CacheReport:
    """Read what the caches of a database hold, of one tenant or of all."""
    async with operator_connection(dsn) as connection:
        found: list[Kept] = []
        for (schema,) in await connection.fetch(_QUERIES["schemas_with_answers"]):
            query = _QUERIES["answers"].format(schema=_quoted(schema))
            service = schema.removeprefix(_TOOL_SCHEMA)
            found += [Kept(service, **dict(row)) for row in await connection.fetch(query, tenant)]
        return CacheReport.of(found)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _show(report: CacheReport) -> None:
    narrow = is_narrow()
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("service", "kind") if narrow else ("service", "kind", "tier", "model"):
        table.add_column(heading, overflow="fold")
    for heading in ("kept", "hits", "hit rate", "saved tokens", "saved USD"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in report.answers:
        told = [] if narrow else [each.tier, each.model]
        figures = (f"{each.kept:,}", f"{each.hits:,}", f"{each.hit_rate:.0%}", f"{each.saved_tokens:,}")
        table.add_row(each.service, each.kind, *told, *figures, usd(each.saved_usd_micros))
    out.print(table)
    saved = usd(round(report.saved_usd * 1_000_000))
    out.print(f"\n{report.hit_rate:.0%} of these questions needed no model; that saved {saved}.")
