"""`triptych schemas accept`: the snapshot of the wire contract that later changes are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.common.options import AsJson
from triptych.commands.common.schema_files import report, write_schemas

SNAPSHOT = Path("schemas/compat")


def accept(
    *, directory: Annotated[Path, typer.Option("--dir", help="The snapshot.")] = SNAPSHOT, as_json: AsJson = False
) -> None:
    """Take today's schemas as the version that changes must stay compatible with."""
    report(write_schemas(directory), as_json=as_json)
