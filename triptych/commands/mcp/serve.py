"""`triptych mcp serve`: start tasks, watch them and get their outcomes from any MCP client.

Standard output belongs to the protocol; nothing else may be written there.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from triptych.client import Address, Client
from triptych.commands.common.options import DEFAULT_DATA, DataDir, Kafka, Postgres, Prefix, broker, database
from triptych.kernel.process.extras import require_extra

HOST = "127.0.0.1"
"""Clients are not authenticated, so only this machine can connect. A proxy with authentication can let in others."""


def serve(
    *,
    tenant: Annotated[str, typer.Option(help="All tasks are of this tenant, and no other's are seen.")] = "default",
    principal: Annotated[str, typer.Option(help="On whose behalf tasks are done.")] = "mcp",
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Streamable HTTP on this port of this machine, at /mcp.")
    ] = None,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    postgres: Postgres = None,
) -> None:
    """Serve MCP over standard input and output, or over HTTP with --port, until the client is gone."""
    require_extra("mcp", "`triptych mcp serve`")
    address, dsn = broker(data, kafka, prefix), database(data, postgres)
    asyncio.run(_serve(address, dsn, tenant, principal, port))


async def _serve(address: Address, dsn: str, tenant: str, principal: str, port: int | None) -> None:
    from triptych.operator.mcp.server import build  # noqa: PLC0415
    from triptych.operator.mcp.task_service import TaskService  # noqa: PLC0415 - the SDK is slow to import

    async with Client(address.kafka, address.topic_prefix) as client:
        server = build(TaskService(client, dsn, tenant, principal))
        if port is None:
            await server.run_stdio_async()
        else:
            await server.run_streamable_http_async(host=HOST, port=port)
