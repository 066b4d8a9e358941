"""`triptych new tool`: the beginning of your own tool, with a test that passes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from triptych.commands.common.options import AsJson
from triptych.commands.common.output import err, out, print_json


def tool(
    name: Annotated[str, typer.Argument(help="For example weather.")],
    *,
    directory: Annotated[Path, typer.Option("--dir", help="Where to write it.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a tool adapter and its test."""
    from triptych.tools.scaffold import scaffold  # noqa: PLC0415 - the tools' runtime is slow to import

    try:
        written = scaffold(name, directory)
    except (ValueError, FileExistsError) as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        print_json({"files": [str(path) for path in written]})
        return
    for path in written:
        out.print(str(path), soft_wrap=True)
    err.print(
        f"run its test (python -m pytest {written[-1]}), then add [tools.{name}] to triptych.toml",
        markup=False,
        style="dim",
    )
