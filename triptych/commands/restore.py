"""`triptych restore`: a dump of `triptych backup` becomes the database of the embedded stack.

The dump is restored beside the database and takes its place when it is complete. No service may run meanwhile: one that
goes on from memory over an older state writes what contradicts that state.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

import psycopg
import typer
from psycopg import sql

from triptych.commands.common.options import DEFAULT_DATA, DEFAULT_PREFIX, DataDir, topic_prefix
from triptych.commands.common.output import err
from triptych.commands.common.postgres_programs import run_program
from triptych.embedded.control import ask
from triptych.embedded.errors import NotRunningError, StillRunningError
from triptych.embedded.layout import Layout
from triptych.embedded.servers import start_postgres

Prefix = Annotated[
    str,
    typer.Option(
        "--prefix", parser=topic_prefix, metavar="PREFIX", help="The name of the database, which is that of the topics."
    ),
]


def restore(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A dump of `triptych backup`.")],
    *,
    data: DataDir = DEFAULT_DATA,
    prefix: Prefix = DEFAULT_PREFIX,
) -> None:
    """Put a dump in the place of the database of a stack that is down; `triptych up` goes on from it."""
    layout = Layout.existing(data)
    try:
        ask(layout, {"do": "status"})
    except NotRunningError:
        pass
    else:
        raise StillRunningError(layout.root)
    draft = f"{prefix}_restoring"
    with start_postgres(layout.root) as owner, psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(draft)))
        connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(draft)))
        run_program("pg_restore", urlunsplit(urlsplit(owner)._replace(path=f"/{draft}")), "--exit-on-error", str(file))
        # The dump lacks later calls, so a tool cannot say that an older call was not made; see `begin` of its ledger.
        connection.execute(
            sql.SQL("alter database {} set triptych.restored_at_ms to {}").format(
                sql.Identifier(draft), sql.Literal(str(time.time_ns() // 1_000_000))
            )
        )
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(prefix)))
        connection.execute(
            sql.SQL("alter database {} rename to {}").format(sql.Identifier(draft), sql.Identifier(prefix))
        )
    err.print(f"The database {prefix} is as {file} has it; start the stack with `triptych up`.")
