"""`triptych tools show`: the whole contract of an operation, or what a tool offers."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer
from rich.json import JSON

from triptych.commands.common.contracts_table import contracts_table
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Kafka, OtherConfig, Prefix
from triptych.commands.common.output import duration, out, print_json
from triptych.commands.common.tool_offers import Offered, offers
from triptych.kernel.errors import ConfigurationError
from triptych.schemas import Contract, Reading, codec


def show(
    name: Annotated[str, typer.Argument(help="A tool, such as crm, or an operation, such as crm.get_customer.")],
    *,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    config: OtherConfig = None,
    as_json: AsJson = False,
) -> None:
    """Show a contract: what it does, its effect, and the JSON Schemas of its arguments and its result."""
    found = _meant(name, offers(data, kafka, prefix, config))
    if as_json:
        print_json([contract.model_dump(mode="json") | {"hash": contract.hash} for contract in found])
    elif "." in name:
        _print_contract(found[0])
    else:
        out.print(contracts_table(found))


def _meant(name: str, known: list[Offered]) -> list[Contract]:
    tool = next((offered for offered in known if offered.tool == name.partition(".")[0]), None)
    if tool is None:
        raise ConfigurationError(
            f"there is no tool {name.partition('.')[0]}{_near(name, [each.tool for each in known])}"
        )
    if tool.problem is not None:
        raise ConfigurationError(f"{tool.tool}: {tool.problem}")
    if "." not in name:
        return list(tool.contracts)
    found = [contract for contract in tool.contracts if contract.operation == name]
    if not found:
        near = _near(name, [contract.operation for contract in tool.contracts])
        raise ConfigurationError(f"{tool.tool} offers no {name}{near}")
    return found


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known[:10])}"


def _print_contract(contract: Contract) -> None:
    out.print(contract.operation, style="bold")
    out.print(contract.description, markup=False, soft_wrap=True)
    out.print(
        f"effect {contract.effect.value}, time limit {duration(contract.timeout_ms)}, version {contract.version}, "
        f"results read {'leniently' if contract.reading is Reading.LENIENT else 'strictly'}, contract {contract.hash}",
        style="dim",
        soft_wrap=True,
    )
    for heading, schema in (("arguments", contract.arguments), ("result", contract.result)):
        out.print(f"\n{heading}", style="bold")
        out.print(JSON(codec.encode_text(schema), indent=2), soft_wrap=True)
