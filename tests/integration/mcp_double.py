"""An MCP server that behaves as badly as it is told: `python mcp_double.py FOLDER [PORT]`.

It speaks stdio, or streamable HTTP when it is given a port. What happened to it stands in files in FOLDER.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

folder = Path(sys.argv[1])
server = MCPServer("double")
READS = ToolAnnotations(read_only_hint=True)


class Sum(BaseModel):
    total: int


@server.tool(annotations=READS)
def add(a: int, b: int) -> Sum:
    """Adds."""
    return Sum(total=a + b)


@server.tool(name="sendNote", annotations=ToolAnnotations(idempotent_hint=True))
def send_note(text: str, client_token: str) -> str:
    """Sends a note once for each token."""
    with (folder / "notes").open("a") as notes:
        notes.write(f"{client_token} {text}\n")
    return f"sent {text}"


@server.tool(annotations=READS)
async def slow(seconds: float, ctx: Context) -> str:
    """Takes its time, and says how far it is."""
    try:
        (folder / "begun").touch()
        await ctx.report_progress(1, 10, "begun")
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        (folder / "cancelled").touch()
        raise
    return "done"


@server.tool(annotations=ToolAnnotations(idempotent_hint=True))
def fail(why: str) -> str:
    """Fails, and says why."""
    raise ToolError(why)


@server.tool(structured_output=False)
def die() -> str:
    """Ends the server in the middle of a call."""
    (folder / "died").touch()
    os._exit(3)


def _who() -> Elicit[Sum]:
    return Elicit("Who are you?", Sum)


@server.tool(annotations=READS)
def ask(who: Annotated[Sum, Resolve(_who)]) -> str:
    """Wants a person."""
    return str(who)


@server.tool(annotations=READS, structured_output=False)
def picture() -> list[TextContent | ImageContent]:
    """Answers with text and an image."""
    return [TextContent(text="A dot."), ImageContent(data="aGk=", mime_type="image/png")]


@server.tool(annotations=READS, structured_output=False)
def nothing() -> None:
    """Finds nothing."""


@server.tool()
async def change(how: str, ctx: Context) -> str:
    """Changes what the server offers: `wider` or `narrower` changes `add`, `gone` takes it away."""
    server.remove_tool("add")
    if how != "gone":
        server.add_tool({"wider": _add_wider, "narrower": _add_narrower}[how], name="add", annotations=READS)
    server.add_tool(nothing, name="brand_new", annotations=READS)
    await ctx.notify_tools_changed()
    return how


def _add_wider(a: int, b: int, c: int = 0) -> Sum:
    """Adds up to three."""
    return Sum(total=a + b + c)


def _add_narrower(a: int, b: int, c: int) -> Sum:
    """Adds three."""
    return Sum(total=a + b + c)


class Guard:
    """Lets in who has the token, and is as unavailable as a file says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer: Response | None = None
        if (folder / "busy").exists():
            answer = PlainTextResponse("busy", 429, {"retry-after": "7"})
        elif Request(scope).headers.get("authorization") != "Bearer s3cret-token":
            answer = PlainTextResponse("who are you?", 401)
        await (answer or self._app)(scope, receive, send)


def main() -> None:
    if len(sys.argv) == 2:
        server.run("stdio")
        return
    app = server.streamable_http_app()
    app.user_middleware.append(Middleware(Guard))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")


main()
