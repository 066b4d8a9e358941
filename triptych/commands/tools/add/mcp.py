"""`triptych tools add mcp`: the tools of an MCP server become operations, and a report says which do not.

The server is asked once, and what it offers is pinned in a file beside triptych.toml: the running tool is held to it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.commands.common.add_options import DryRun, Name, Replace, pairs
from triptych.commands.common.contracts_table import contracts_table
from triptych.commands.common.edit_config import add_tool
from triptych.commands.common.options import DEFAULT_CONFIG, AsJson, ConfigFile
from triptych.commands.common.output import err, out, print_json
from triptych.embedded.config import StackConfig
from triptych.kernel.errors import ConfigurationError

if TYPE_CHECKING:
    from triptych.tools.adapters.mcp.contracts import McpOperation
    from triptych.tools.adapters.mcp.options import McpOptions
    from triptych.tools.adapters.mcp.pins import Pins, SkippedTool

ADAPTER = "triptych.tools.adapters.mcp:tool"


def mcp(
    server: Annotated[
        list[str], typer.Argument(metavar="URL | -- COMMAND [ARG]...", help="Where the server is, or what starts it.")
    ],
    *,
    name: Name,
    env: Annotated[list[str], typer.Option(metavar="VARIABLE", help="A variable that the command gets too.")] = [],  # noqa: B006 - typer wants a list
    user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The user that the command runs as if you are root; `nobody` when left out."),
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="The variable with the bearer token for a URL.")
    ] = None,
    header_env: Annotated[
        list[str], typer.Option(metavar="HEADER=VARIABLE", help="A header for a URL, from a variable.")
    ] = [],  # noqa: B006
    only: Annotated[list[str], typer.Option(metavar="OPERATION", help="Offer only these.")] = [],  # noqa: B006
    effect: Annotated[
        list[str],
        typer.Option(metavar="OPERATION=EFFECT", help="read, idempotent or once, where the server's hint lies."),
    ] = [],  # noqa: B006
    timeout_ms: Annotated[int | None, typer.Option(help="The time limit of a call; 30,000.")] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    replace: Replace = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make a tool of an MCP server, over stdio or streamable HTTP, and report what is offered and what is left out."""
    from triptych.tools.sdk.adapter_extras import require_adapter  # noqa: PLC0415 - the tools' SDK is slow to import

    require_adapter(ADAPTER, name)
    from triptych.tools.adapters.mcp.contracts import mcp_operations, operation_names  # noqa: PLC0415
    from triptych.tools.adapters.mcp.listing import ask  # noqa: PLC0415
    from triptych.tools.adapters.mcp.options import McpOptions  # noqa: PLC0415
    from triptych.tools.sdk.source import Source  # noqa: PLC0415

    stack = StackConfig.load(config)
    is_url = len(server) == 1 and server[0].startswith(("http://", "https://"))
    table: dict[str, Any] = {
        "pins": f"tools/{name}.mcp.json",
        "url": server[0] if is_url else None,
        "command": None if is_url else server,
        "env": env or None,
        "user": user,
        "token_env": token_env,
        "headers_env": pairs(header_env, "--header-env") or None,
        "only": only or None,
        "timeout_ms": timeout_ms,
        "operations": {key: {"effect": value} for key, value in pairs(effect, "--effect").items()} or None,
    }
    source = Source(name, {key: value for key, value in table.items() if value is not None}, stack.directory)
    options = source.read(McpOptions)
    pins = asyncio.run(ask(source, options))
    offered, left_out = mcp_operations(name, pins.tools, options)
    left_out += pins.left_out
    _check({*operation_names(each.name for each in pins.tools).values()}, offered, left_out, options)
    if not dry_run:
        add_tool(stack.file, name, {"adapter": ADAPTER, "options": table}, replace=replace)
        file = source.path(options.pins)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(pins.text(), "utf-8")
    if as_json:
        print_json(_report(name, pins, offered, left_out))
        return
    out.print(contracts_table([offer.contract for offer in offered]))
    for each in left_out:
        out.print(f"left out: {each.name}: {each.why}", soft_wrap=True, markup=False)
    if not dry_run:
        err.print(f"wrote {options.pins} and \\[tools.{name}] in {stack.file}", style="dim", soft_wrap=True)


def _check(names: set[str], offered: list[McpOperation], left_out: list[SkippedTool], options: McpOptions) -> None:
    """Check that the server has what an option names, and that something is left to offer."""
    if unknown := sorted({*options.only, *options.operations} - names):
        raise ConfigurationError(f"the server offers no {', '.join(unknown)}, only {', '.join(sorted(names))}")
    if not offered:
        raise ConfigurationError(
            f"nothing can be offered: {'; '.join(f'{each.name}: {each.why}' for each in left_out)}"
        )


def _report(name: str, pins: Pins, offered: list[McpOperation], left_out: list[SkippedTool]) -> dict[str, Any]:
    return {
        "tool": name,
        "server": pins.server.model_dump(),
        "operations": [
            {
                "operation": offer.contract.operation,
                "name": offer.tool.name,
                "effect": offer.contract.effect.value,
                "structured": offer.is_structured,
                "contract": offer.contract.hash,
            }
            for offer in offered
        ],
        "left_out": [{"name": each.name, "why": each.why} for each in left_out],
    }
