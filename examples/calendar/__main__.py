"""`python -m triptych.examples.calendar --port PORT`: serve the calendar to MCP clients at /mcp."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from triptych.examples.calendar.slots import next_slot
from triptych.examples.serving import arguments, serve

server = MCPServer("calendar", version="2026-11")


class Slot(BaseModel):
    """A time at which the customer can be called."""

    starts_at: Annotated[datetime, Field(description="With the customer's offset from UTC.")]
    minutes: int


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def find_slot(
    timezone: Annotated[str, Field(description="The customer's, as an IANA name such as Europe/Vienna.")],
    minutes: Annotated[int, Field(ge=10, le=30)] = 30,
) -> Slot:
    """Find the next time at which the customer can be called back, in their office hours."""
    try:
        return Slot(starts_at=next_slot(datetime.now(UTC), timezone), minutes=minutes)
    except ValueError as error:
        raise ToolError(str(error)) from error


@server.custom_route("/health", methods=["GET"])  # type: ignore[untyped-decorator]
async def health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


def main() -> None:
    options = arguments("A calendar for MCP clients.").parse_args()
    serve(server.streamable_http_app(host=options.host), options.host, options.port)


if __name__ == "__main__":
    main()
