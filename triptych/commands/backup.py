"""`triptych backup`: the database of the embedded stack as one file, while it works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.common.options import DEFAULT_DATA, DataDir
from triptych.commands.common.output import err
from triptych.commands.common.owner import owner_of
from triptych.commands.common.postgres_programs import run_program
from triptych.embedded.layout import Layout


def backup(
    file: Annotated[Path, typer.Argument(help="Where the dump is written; it is replaced if it is there.")],
    *,
    data: DataDir = DEFAULT_DATA,
) -> None:
    """Write the database of the running embedded stack to a file, while it works."""
    owner = owner_of(data)
    draft = file.with_name(f"{file.name}.part")
    run_program("pg_dump", owner, "--format=custom", f"--file={draft}")
    draft.replace(file)
    err.print(f"The database of {Layout.existing(data).root} was written to {file}.")
