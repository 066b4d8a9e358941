"""`triptych tools breaker` and `triptych tools test`: what a person tells a running tool, and what it answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

import typer
from pydantic import ValidationError

from triptych.client import Address, Client, tool_health
from triptych.client.operator import operator_connection
from triptych.commands.common.options import (
    DEFAULT_DATA,
    AsJson,
    DataDir,
    Kafka,
    Postgres,
    Prefix,
    Principal,
    broker,
    database,
    principal_of,
    wrong_option,
)
from triptych.commands.common.output import err, out, print_json
from triptych.kernel.errors import ConfigurationError
from triptych.schemas.task import BreakerMode

_ANSWER_TIMEOUT_S = 30.0
_POLL_S = 0.1

Note = Annotated[str, typer.Option(help="Why; it is kept with the command.")]


def breaker(
    name: Annotated[str, typer.Argument(help="A tool, such as crm, or one operation, such as crm.get_customer.")],
    mode: Annotated[BreakerMode, typer.Argument(help="Hold it open or closed, or let it go by what it sees.")],
    *,
    note: Note = "",
    principal: Principal = None,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Hold a breaker open (nothing is called) or closed (whatever fails), or let it go (auto)."""
    address, dsn = broker(data, kafka, prefix), database(data, postgres)
    tell(address, dsn, name, mode, note=note, principal=principal_of(principal), as_json=as_json)


def tell(
    address: Address, dsn: str, name: str, mode: BreakerMode | None, *, note: str, principal: str, as_json: bool
) -> None:
    """Tell a tool, or one operation, how to hold its breaker, or to probe its upstream, and print what it answers."""
    answer = asyncio.run(_ask(address, dsn, name, mode, note=note, principal=principal))
    if as_json:
        print_json({"tool": name, "answer": answer})
    elif answer is None:
        err.print(f"{name}: the command was sent, but no process has answered it yet", style="yellow")
    else:
        out.print(answer, markup=False, soft_wrap=True)
    if answer is None or " failed with " in answer:
        raise typer.Exit(1)


async def _ask(
    address: Address, dsn: str, name: str, mode: BreakerMode | None, *, note: str, principal: str
) -> str | None:
    tool, _, operation = name.partition(".")
    async with operator_connection(dsn) as connection, Client(address.kafka, address.topic_prefix) as client:
        if tool not in (known := await tool_health.tools(connection)):
            raise ConfigurationError(f"there is no tool {tool}; there are {', '.join(known) or 'none'}")
        about = (tool, name if operation else None, mode)
        try:
            command_id = await client.tell_tool(*about, principal=principal, note=note)
        except ValidationError as error:
            raise wrong_option(error) from None
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                while True:
                    if (answer := await tool_health.answer(connection, tool, command_id)) is not None:
                        return answer
                    await asyncio.sleep(_POLL_S)
    return None
