"""Sends a command to a running tool, and prints what the tool answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import typer
from pydantic import ValidationError

from triptych.client import Address, Client, tool_health
from triptych.client.operator import operator_connection
from triptych.commands.common.options import wrong_option
from triptych.commands.common.output import err, out, print_json
from triptych.kernel.errors import ConfigurationError
from triptych.schemas.task import BreakerMode

_ANSWER_TIMEOUT_S = 30.0
_POLL_S = 0.1


def command_tool(
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
            command_id = await client.control_tool(*about, principal=principal, note=note)
        except ValidationError as error:
            raise wrong_option(error) from None
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                while True:
                    if (answer := await tool_health.answer(connection, tool, command_id)) is not None:
                        return answer
                    await asyncio.sleep(_POLL_S)
    return None
