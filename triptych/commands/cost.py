"""Puts together what a playbook allows, what the contracts cost, and what its newest runs came to."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from triptych.client import NoStackError
from triptych.client.operator import operator_connection
from triptych.commands.common.options import (
    DEFAULT_DATA,
    AsJson,
    DataDir,
    Kafka,
    OtherConfig,
    Postgres,
    Prefix,
    database,
)
from triptych.commands.common.output import err, out, print_json, usd
from triptych.commands.common.tool_offers import offers
from triptych.commands.playbook.check import beside
from triptych.kernel.postgres.database import Queries
from triptych.operator.cost_estimate import Estimate, estimate

_SQL = Queries.load("triptych.commands", "cost.sql")
_NEWEST = 1_000
_MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class History:
    """What the newest runs of a playbook came to."""

    runs: int
    likely_usd: float
    """The median."""
    nearly_all_usd: float
    """Nineteen of twenty were not above it."""
    likely_tokens: int


def cost(
    file: Annotated[Path, typer.Argument(metavar="PLAYBOOK", help="The playbook's file.")],
    *,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    postgres: Postgres = None,
    config: OtherConfig = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run of a playbook may cost: from its grants, and from its newest runs where a stack has some."""
    from triptych.playbook.loader import load_playbook  # noqa: PLC0415 - CEL takes a third of a second to import

    playbook = load_playbook(file)
    known = {each.operation: each for offered in offers(data, kafka, prefix, config) for each in offered.contracts}
    estimated = estimate(playbook, known, beside(file, playbook))
    try:
        history = asyncio.run(history_of(database(data, postgres), playbook.name))
    except NoStackError:
        history = None
    if as_json:
        print_json({**asdict(estimated), "history": asdict(history) if history else None})
    else:
        _show(estimated, history)


async def history_of(dsn: str, playbook: str) -> History | None:
    """Return what the newest runs of a playbook cost, if it has any."""
    async with operator_connection(dsn) as connection:
        row: Any = await connection.fetchrow(_SQL["history"], playbook, _NEWEST)
    if not row["runs"]:
        return None
    return History(
        row["runs"], row["usd_micros_p50"] / _MICROS, row["usd_micros_p95"] / _MICROS, int(row["tokens_p50"])
    )


def _show(estimated: Estimate, history: History | None) -> None:
    out.print(f"{estimated.playbook}@{estimated.version}\n", markup=False)
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    for heading in ("tokens", "USD", "at most"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in estimated.lines:
        table.add_row(line.what, f"{line.tokens:,}", usd(line.usd_micros), f"{line.times} times")
    out.print(table)
    once = (
        f"if each call succeeds the first time, at most {_usd(estimated.once_usd)} and {estimated.once_tokens:,} tokens"
    )
    if estimated.is_planned_by_model:
        once += ", and what the steps cost that the model plans"
    out.print(f"\n{once}")
    out.print(f"in any case at most {_usd(estimated.most_usd)} and {estimated.most_tokens:,} tokens")
    if history:
        likely = f"likely {_usd(history.likely_usd)} and {history.likely_tokens:,} tokens"
        out.print(f"{likely} (median of {history.runs} runs; 95% cost at most {_usd(history.nearly_all_usd)})")
    for operation in estimated.unknown:
        err.print(f"no contract of {operation} is known, so its cost is missing", style="yellow", markup=False)


def _usd(dollars: float) -> str:
    return usd(round(dollars * _MICROS))
