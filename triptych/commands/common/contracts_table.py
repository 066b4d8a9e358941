"""Shows the contracts of tools as a table, one line for each operation."""

from __future__ import annotations

from rich.table import Table

from triptych.commands.common.output import duration, is_narrow, name_text
from triptych.schemas import Contract

SUMMARY_MAX_CHARS = 80


def contracts_table(contracts: list[Contract]) -> Table:
    """Give each operation a line. A narrow terminal leaves out what people ask last."""
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
