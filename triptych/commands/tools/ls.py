"""`triptych tools ls`: every operation that agents may reach."""

from __future__ import annotations

from typing import Any

from triptych.commands.common.contracts_table import contracts_table
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Kafka, OtherConfig, Prefix
from triptych.commands.common.output import err, out, print_json
from triptych.commands.common.tool_offers import Offered, offers


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
