"""`triptych outcomes`: the outcomes of tasks, as clients see them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from triptych.client import Address, Client, FilterUnknownError
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Kafka, Prefix, broker
from triptych.commands.common.outcome_table import outcome_table
from triptych.commands.common.output import duration, err, name_text, out, print_json, status_text
from triptych.schemas import Outcome


def outcomes(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with outcomes as they come.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Outcomes of this tenant.")] = None,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Show all outcomes that Kafka still has; with --json, one a line."""
    address = broker(data, kafka, prefix)
    if follow:
        asyncio.run(_follow(address, tenant, as_json=as_json))
        return
    found = asyncio.run(_all(address, tenant))
    if as_json:
        for outcome in found:
            print_json(outcome)
    elif found:
        out.print(outcome_table(found))
    else:
        err.print("no outcomes yet")


async def _all(address: Address, tenant: str | None) -> list[Outcome]:
    client = Client(address.kafka, address.topic_prefix)
    async with client.feed(from_start=True, to_end=True) as feed:
        found = [message async for message in feed if isinstance(message, Outcome)]
    tenants = {outcome.tenant for outcome in found}
    if tenant is not None and tenants and tenant not in tenants:
        raise FilterUnknownError("tenant", tenant, sorted(tenants))
    return [outcome for outcome in found if tenant in (None, outcome.tenant)]


async def _follow(address: Address, tenant: str | None, *, as_json: bool) -> None:
    client = Client(address.kafka, address.topic_prefix)
    async for outcome in client.follow(tenant=tenant, from_start=True):
        if as_json:
            print_json(outcome)
            continue
        out.print(
            status_text(outcome.status.value),
            name_text(outcome.task_id),
            str(outcome.run_id or ""),
            name_text(outcome.reason.code),
            duration(outcome.usage.wall_ms),
            sep="  ",
            soft_wrap=True,
        )
