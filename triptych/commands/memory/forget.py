"""`triptych memory forget`: delete what is known of a subject."""

from __future__ import annotations

from typing import Annotated

import typer

from triptych.commands.common.memory_tool import SQL, Postgres, Tenant, Tool, query
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, tool_role
from triptych.commands.common.output import out, print_json


def forget(
    subject: Annotated[str, typer.Argument(help="The subject whose facts are deleted.")],
    *,
    tenant: Tenant = "default",
    tool: Tool = "memory",
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Delete everything that is known of a subject. Journals of runs keep such facts until retention removes them."""
    dsn = tool_role(data, postgres, tool)
    forgotten = int(query(dsn, lambda connection: connection.fetchval(SQL["forget"], tenant, subject)))
    if as_json:
        print_json({"tenant": tenant, "subject": subject, "forgotten": forgotten})
    else:
        out.print(f"{forgotten} facts of {subject} are gone", markup=False)
