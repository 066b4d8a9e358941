"""What an MCP server offers: all its tools, page by page, and the words for why it could not be asked."""

from __future__ import annotations

import asyncio

from mcp import Client, MCPError, types
from pydantic import ValidationError

from triptych.kernel.errors import ConfigurationError
from triptych.tools.mcp.options import McpOptions
from triptych.tools.mcp.pins import PinnedTool, Pins, Server
from triptych.tools.mcp.transport import transport_of
from triptych.tools.source import Source

CLIENT = types.Implementation(name="triptych", version="0.1.0")
CONNECT_WITHIN_S = 45.0
"""A server that is fetched at its first start needs some time."""
PAGES_MAX = 50


async def list_tools(client: Client) -> list[PinnedTool]:
    """All tools of a server, page by page."""
    found: list[PinnedTool] = []
    cursor: str | None = None
    for _ in range(PAGES_MAX):
        page = await client.list_tools(cursor=cursor)
        found += [PinnedTool.model_validate(each.model_dump(mode="json", by_alias=True)) for each in page.tools]
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


async def ask(source: Source, options: McpOptions) -> Pins:
    """What a server offers now, asked once.

    Raises:
        ConfigurationError: it cannot be started or reached, or offers no tools.
    """
    try:
        async with (
            asyncio.timeout(CONNECT_WITHIN_S),
            Client(transport_of(source, options)(), client_info=CLIENT, cache=None) as client,
        ):
            tools = await list_tools(client)
            info, protocol = client.server_info, client.protocol_version
    except ConfigurationError:
        raise
    except (Exception, BaseExceptionGroup) as error:
        where = options.url or " ".join(options.command)
        cure = "; run it by hand to see what it says" if options.command else ""
        raise ConfigurationError(f"no MCP server answers at {where}: {told(error)}{cure}") from error
    if not tools:
        raise ConfigurationError(f"the MCP server {info.name if info else source.name} offers no tools")
    server = Server(name=info and info.name, version=info and info.version, protocol=protocol)
    return Pins(server=server, tools=tuple(tools))


def told(error: BaseException) -> str:
    """The innermost cause, by its kind and, where it is one of the operating system or the protocol, its words."""
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
