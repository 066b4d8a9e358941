"""`triptych tools breaker`: hold a breaker open or closed, or let it go."""

from __future__ import annotations

from typing import Annotated

import typer

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
)
from triptych.commands.common.tool_commands import command_tool
from triptych.schemas.task import BreakerMode

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
    """Hold a breaker open (nothing is called) or closed (failures do not open it), or let it go (auto)."""
    address, dsn = broker(data, kafka, prefix), database(data, postgres)
    command_tool(address, dsn, name, mode, note=note, principal=principal_of(principal), as_json=as_json)
