"""Any MCP server as a tool: `adapter = "triptych.tools.adapters.mcp:tool"`.

The server's tools become operations under contracts that were pinned when it was added. What it says of
itself later never widens what it may do.
"""

from triptych.tools.adapters.mcp.tool import tool

__all__ = ["tool"]
