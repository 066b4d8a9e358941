"""`triptych tools add sql`: the statements of a file become a tool, after the database has been asked about each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.common.add_options import DryRun, Name, Replace
from triptych.commands.common.contracts_table import contracts_table
from triptych.commands.common.edit_config import add_tool
from triptych.commands.common.options import DEFAULT_CONFIG, AsJson, ConfigFile
from triptych.commands.common.output import err, out, print_json
from triptych.embedded.config import StackConfig

ADAPTER = "triptych.tools.adapters.sql:tool"


def sql(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Statements with their headers.")],
    *,
    name: Name,
    dsn_env: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The variable that holds the DSN; it must be set here too.")
    ],
    config: ConfigFile = DEFAULT_CONFIG,
    replace: Replace = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make a tool of the statements of .sql files. Nothing is written unless the database takes them all."""
    from triptych.tools.adapters.sql import tool  # noqa: PLC0415
    from triptych.tools.sdk.source import Source  # noqa: PLC0415 - the tools' runtime is slow to import

    stack = StackConfig.load(config)
    options = {"dsn_env": dsn_env, "files": [_beside(stack.directory, file) for file in files]}
    contracts = tool(Source(name, options, stack.directory)).contracts.contracts
    if not dry_run:
        add_tool(stack.file, name, {"adapter": ADAPTER, "options": options}, replace=replace)
    if as_json:
        print_json({"tool": name, "contracts": contracts})
        return
    out.print(contracts_table(list(contracts)))
    if not dry_run:
        err.print(f"wrote \\[tools.{name}] in {stack.file}", style="dim", soft_wrap=True)


def _beside(directory: Path, file: Path) -> str:
    """Return the path as triptych.toml should have it: relative to its folder if the file is inside."""
    full = file.resolve()
    return full.relative_to(directory).as_posix() if full.is_relative_to(directory) else str(full)
