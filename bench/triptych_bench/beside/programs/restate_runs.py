"""The client of Restate: starts runs through its HTTP ingress and waits for what they return."""

from __future__ import annotations

import sys

import aiohttp
import uvloop
from hold import serve


async def _main(ingress: str, handler: str) -> None:
    url = f"{ingress}/Runs/{handler}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def play(key: str) -> object:
            # The handler takes no argument, and the ingress refuses a type of content without one.
            headers = {"idempotency-key": key}
            async with session.post(url, headers=headers, skip_auto_headers=["Content-Type"]) as response:
                if not response.ok:
                    raise RuntimeError(f"{response.status}: {await response.text()}")
                return await response.json()

        await serve(play)


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
