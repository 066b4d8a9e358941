"""`triptych tools diff` and `triptych tools accept`: what a tool's source offers now, and what was accepted of it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.commands.common.options import DEFAULT_CONFIG, AsJson, ConfigFile
from triptych.commands.common.output import out, print_json
from triptych.embedded.config import StackConfig
from triptych.kernel.errors import ConfigurationError

if TYPE_CHECKING:
    from triptych.tools.sdk.contract_diff import Difference
    from triptych.tools.sdk.contract_origin import Origin

REQUEST = "request:"
"""The beginning of a difference in where a call goes."""
Name = Annotated[str, typer.Argument(help="A tool of triptych.toml, such as crm.")]


def diff(name: Name, *, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Compare the accepted contracts of a tool with what its source offers now; exit code 1 when calls would break."""
    _, _, found = asyncio.run(_compared(StackConfig.load(config), name))
    _tell(found, as_json=as_json)
    if any(each.breaks for each in found):
        raise typer.Exit(1)


def accept(name: Name, *, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Accept what a tool's source offers now. A running tool takes it over when it compares next (`tools test`)."""
    origin, raw, found = asyncio.run(_compared(StackConfig.load(config), name))
    draft = origin.file.with_name(f"{origin.file.name}.new")
    draft.write_bytes(raw)
    draft.replace(origin.file)
    _tell(found, as_json=as_json)
    if not as_json:
        if any(detail.startswith(REQUEST) for each in found for detail in each.details):
            out.print(
                f"the credential goes only to tools.{name}.options.hosts: add a new host there if it may have it",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        out.print(f"accepted in {origin.file}; `triptych tools test {name}` lets a running tool take it over now")


async def _compared(config: StackConfig, name: str) -> tuple[Origin, bytes, list[Difference]]:
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


def _tell(found: list[Difference], *, as_json: bool) -> None:
    if as_json:
        print_json([{"operation": each.operation, "change": each.change, "details": each.details} for each in found])
        return
    for each in found:
        out.print(f"{each.operation}: {each.change.value}", style="red" if each.breaks else "", markup=False)
        for detail in each.details:
            out.print(f"    {detail}", markup=False, soft_wrap=True)
    if not found:
        out.print("nothing has changed")
