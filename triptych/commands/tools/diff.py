"""`triptych tools diff`: what a tool's source offers now, beside what was accepted of it."""

from __future__ import annotations

import asyncio

import typer

from triptych.commands.common.options import DEFAULT_CONFIG, AsJson, ConfigFile
from triptych.commands.common.tool_drift import Name, compared, report
from triptych.embedded.config import StackConfig


def diff(name: Name, *, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Compare the accepted contracts of a tool with what its source offers now; exit code 1 when calls would break."""
    _, _, found = asyncio.run(compared(StackConfig.load(config), name))
    report(found, as_json=as_json)
    if any(each.breaks for each in found):
        raise typer.Exit(1)
