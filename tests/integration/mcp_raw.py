"""An MCP server that writes to its output what a file says, byte for byte: `python mcp_raw.py SCRIPT`.

SCRIPT is a Python file with `answers`: by the name of a method, or of a tool for a call, a function of the request that
gives bytes. It needs nothing but the standard library, so any user can run it.
"""

from __future__ import annotations

import json
import runpy
import sys
from typing import Any

HELLO = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {"listChanged": True}},
    "serverInfo": {"name": "raw", "version": "1"},
}


def result(request: dict[str, Any], **what: Any) -> bytes:
    """A line with the result of a request."""
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": what}).encode() + b"\n"


def main() -> None:
    answers = runpy.run_path(sys.argv[1])["answers"]
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "id" not in request or "method" not in request:
            continue
        method = request["method"]
        name = request["params"]["name"] if method == "tools/call" else method
        if name in answers:
            said = answers[name](request)
        elif method == "initialize":
            said = result(request, **HELLO)
        elif method == "ping":
            said = result(request)
        else:
            error = {"code": -32601, "message": "Method not found"}
            said = json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode() + b"\n"
        for piece in (said,) if isinstance(said, bytes) else said:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


main()
