"""`triptych tools ls`: every operation that agents may reach."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Kafka, Prefix
from triptych.commands.common.output import duration, err, is_narrow, name_text, out, print_json
from triptych.commands.tools.offers import Offered, offers
from triptych.schemas import Contract

SUMMARY_MAX_CHARS = 80

OtherConfig = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="What this triptych.toml says, whatever runs.")
]


def ls(
    *,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    config: OtherConfig = None,
    as_json: AsJson = False,
) -> None:
    """List tools and operations: those that the stack has announced, else those of triptych.toml."""
    found = offers(data, kafka, prefix, config)
    if as_json:
        print_json([_as_json(offered) for offered in found])
        return
    if any(offered.contracts for offered in found):
        out.print(contracts_table([contract for offered in found for contract in offered.contracts]))
    else:
        err.print("no tool offers anything yet")
    for offered in found:
        if offered.problem is not None:
            err.print(f"{offered.tool}: {offered.problem}", style="red", markup=False, soft_wrap=True)


def contracts_table(contracts: list[Contract]) -> Table:
    """One line for each operation; a narrow terminal leaves out what people ask last."""
    narrow = is_narrow()
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("operation", "effect") if narrow else ("operation", "effect", "time limit", "contract"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it does")
    for contract in contracts:
        rest = [] if narrow else [duration(contract.timeout_ms), contract.hash]
        table.add_row(contract.operation, contract.effect.value, *rest, name_text(_summary(contract)))
    return table


def _summary(contract: Contract) -> str:
    line = contract.description.strip().partition("\n")[0]
    return line if len(line) <= SUMMARY_MAX_CHARS else f"{line[: SUMMARY_MAX_CHARS - 1]}…"


def _as_json(offered: Offered) -> dict[str, Any]:
    operations = [
        {
            "operation": contract.operation,
            "effect": contract.effect.value,
            "timeout_ms": contract.timeout_ms,
            "version": contract.version,
            "contract": contract.hash,
            "description": contract.description,
        }
        for contract in offered.contracts
    ]
    return {"tool": offered.tool, "operations": operations, "problem": offered.problem}
