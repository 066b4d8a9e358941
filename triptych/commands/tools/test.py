"""`triptych tools test`: is a tool's upstream well, or does the tool keep what its effect class promises?"""

from __future__ import annotations

from typing import Annotated

import typer

from triptych.commands.common.conformance import check_conformance
from triptych.commands.common.options import (
    DEFAULT_CONFIG,
    DEFAULT_DATA,
    AsJson,
    ConfigFile,
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


def test(
    name: Annotated[str, typer.Argument(help="A tool, such as crm; for --conformance an operation: crm.create_note.")],
    *,
    conformance: Annotated[
        bool, typer.Option("--conformance", help="Kill, repeat, slow and misshape a call: does it take effect once?")
    ] = False,
    arguments: Annotated[str, typer.Option(metavar="JSON", help="With which the call of --conformance works.")] = "{}",
    callback: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="For --conformance: what the upstream says, where a callback completes it."),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option("--owner-postgres", metavar="DSN", help="For --conformance; else it starts one."),
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    principal: Principal = None,
    data: DataDir = DEFAULT_DATA,
    kafka: Kafka = None,
    prefix: Prefix = None,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Have a running tool probe its upstream now; or, with --conformance, check a tool without a stack.

    The calls of --conformance are really made: point the tool at a system where they do no harm.
    """
    if conformance:
        check_conformance(config, name, arguments, owner, callback=callback, as_json=as_json)
    elif "." in name:
        raise typer.BadParameter(
            f"{name} is an operation: say --conformance to check it, or name the tool to have it probe its upstream",
            param_hint="NAME",
        )
    else:
        address, dsn = broker(data, kafka, prefix), database(data, postgres)
        command_tool(address, dsn, name, None, note="", principal=principal_of(principal), as_json=as_json)
