"""What an MCP server offers: all its tools, page by page, and the words for why it could not be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp import Client, MCPError, types
from pydantic import ValidationError

from triptych.kernel.errors import ConfigurationError
from triptych.tools.adapters.mcp.options import McpOptions
from triptych.tools.adapters.mcp.pins import PinnedTool, Pins, ServerIdentity, SkippedTool
from triptych.tools.adapters.mcp.stdio import ServerDiagnostics
from triptych.tools.adapters.mcp.transport import transport_of
from triptych.tools.adapters.mcp.wire import LEFT_OUT, TOOLS
from triptych.tools.sdk.source import Source

CLIENT = types.Implementation(name="triptych", version="0.1.0")
CONNECT_WITHIN_S = 45.0
"""A server that is fetched at its first start needs some time."""
PAGES_MAX, TOOLS_MAX = 50, 1_000


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server offers: each tool once, and what was left out, with the reason."""

    tools: tuple[PinnedTool, ...]
    left_out: tuple[SkippedTool, ...] = ()


async def list_tools(client: Client) -> Listing:
    """Return all tools of a server, page by page, as far as the pages go."""
    found: dict[str, PinnedTool] = {}
    left_out: list[SkippedTool] = []
    cursors: set[str] = set()
    cursor: str | None = None
    for _ in range(PAGES_MAX):
        page = await client.list_tools(cursor=cursor)
        _add(page, found, left_out)
        cursor = page.next_cursor
        if cursor is None:
            break
        if cursor in cursors or len(found) >= TOOLS_MAX:
            why = "one page leads to itself" if cursor in cursors else f"there are more than {TOOLS_MAX} tools"
            left_out.append(SkippedTool("further pages", f"the list does not end: {why}"))
            break
        cursors.add(cursor)
    else:
        left_out.append(SkippedTool("further pages", f"the list does not end within {PAGES_MAX} pages"))
    return Listing(tuple(found.values())[:TOOLS_MAX], tuple(dict.fromkeys(left_out)))


def _add(page: types.ListToolsResult, found: dict[str, PinnedTool], left_out: list[SkippedTool]) -> None:
    """Take a page over: what the SDK has kept of it, in the words that were pinned beside it."""
    meta: Mapping[str, Any] = page.meta or {}
    kept = {tool.name for tool in page.tools}
    left_out += [SkippedTool(each["name"], each["why"]) for each in meta.get(LEFT_OUT, ())]
    for each in meta.get(TOOLS, ()):
        tool = PinnedTool.model_validate(each)
        if tool.name not in kept:
            left_out.append(SkippedTool(tool.name, "it does not fit the protocol"))
        elif found.setdefault(tool.name, tool) != tool:
            left_out.append(SkippedTool(tool.name, "it is listed twice, and differs; the first is offered"))


async def ask(source: Source, options: McpOptions) -> Pins:
    """Return what a server offers now, asked once.

    Raises:
        ConfigurationError: it cannot be started or reached, or offers no tools.
    """
    transport, said = transport_of(source, options), ServerDiagnostics()
    try:
        async with (
            asyncio.timeout(CONNECT_WITHIN_S),
            Client(transport(said), client_info=CLIENT, cache=None) as client,
        ):
            listing = await list_tools(client)
            info, protocol = client.server_info, client.protocol_version
    except ConfigurationError:
        raise
    except (Exception, BaseExceptionGroup) as error:
        where = options.url or " ".join(options.command)
        cure = "; run it by hand to see what it says" if options.command else ""
        last = f" (it said: {said.last})" if said.last else ""
        raise ConfigurationError(f"no MCP server answers at {where}: {cause_of(error)}{cure}{last}") from error
    if not listing.tools:
        why = "; ".join(f"{each.name}: {each.why}" for each in listing.left_out)
        raise ConfigurationError(
            f"the MCP server {info.name if info else source.name} offers no tools{why and f' that can be read ({why})'}"
        )
    server = ServerIdentity(name=info and info.name, version=info and info.version, protocol=protocol)
    return Pins(server=server, tools=listing.tools, left_out=listing.left_out)


def cause_of(error: BaseException) -> str:
    """Return the kind of the innermost cause, with its message if the system or the protocol gave it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case TimeoutError():
            return f"no answer within {CONNECT_WITHIN_S:.0f} s"
        case OSError() | MCPError():
            return f"{type(error).__name__}: {error}"
        case ValidationError():
            return "its answer is not MCP"
    return type(error).__name__
