"""Compares what a tool's source offers now with what was accepted of it, and reports the differences."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.commands.common.output import out, print_json
from triptych.embedded.config import StackConfig
from triptych.kernel.errors import ConfigurationError

if TYPE_CHECKING:
    from triptych.tools.sdk.contract_diff import Difference
    from triptych.tools.sdk.contract_origin import ContractOrigin

Name = Annotated[str, typer.Argument(help="A tool of triptych.toml, such as crm.")]


async def compared(config: StackConfig, name: str) -> tuple[ContractOrigin, bytes, list[Difference]]:
    from triptych.tools import Source  # noqa: PLC0415 - the tools' runtime is slow to import
    from triptych.tools.runtime.process import load_tool  # noqa: PLC0415
    from triptych.tools.sdk.contract_diff import compare  # noqa: PLC0415

    table = config.table.tools.get(name)
    if table is None:
        raise ConfigurationError(f"there is no tool {name} in {config.file}")
    if table.path is not None:
        sys.path.insert(0, str(config.directory / table.path))
    tool = load_tool(table.adapter, Source(name, table.options, config.directory))
    if tool.origin is None:
        raise ConfigurationError(f"{name} is its own source: its contracts come from its code or its table")
    raw = await tool.origin.fetch()
    return tool.origin, raw, compare(tool.operations, tool.origin.build(raw).operations)


def report(found: list[Difference], *, as_json: bool) -> None:
    if as_json:
        print_json([{"operation": each.operation, "change": each.change, "details": each.details} for each in found])
        return
    for each in found:
        out.print(f"{each.operation}: {each.change.value}", style="red" if each.breaks else "", markup=False)
        for detail in each.details:
            out.print(f"    {detail}", markup=False, soft_wrap=True)
    if not found:
        out.print("nothing has changed")
