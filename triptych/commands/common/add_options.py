"""The options that the commands of `triptych tools` share."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from triptych.embedded.config import TOOL_NAME


def _name(given: str) -> str:
    if not re.fullmatch(TOOL_NAME, given):
        raise typer.BadParameter(
            f"{given!r} cannot name a tool: use at most 31 lower-case letters, digits, _ and -, a letter first"
        )
    return given


Name = Annotated[str, typer.Option("--name", help="The tool's name, as playbooks will use it.", callback=_name)]
Replace = Annotated[bool, typer.Option("--replace", help="Take the place of the tool of this name.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only report; write nothing.")]


def pairs(given: list[str], option: str) -> dict[str, str]:
    """Read what a repeated NAME=VALUE option was given. Raises typer.BadParameter."""
    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
        pairs[key] = value
    return pairs
