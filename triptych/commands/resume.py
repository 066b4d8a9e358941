"""`triptych resume`: let an escalated run go on, or all that fit a filter."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from triptych.commands.common.option_groups import with_groups
from triptych.commands.common.options import Principal, principal_of
from triptych.commands.common.run_commands import Note, RunArgument, Selection, Where, command_runs
from triptych.schemas import ControlAction

BUDGETS = ("steps", "tool_calls", "tokens", "usd", "wall_ms", "replans")


@with_groups
def resume(
    run: RunArgument = None,
    *,
    extend: Annotated[
        list[str] | None, typer.Option(metavar="BUDGET=AMOUNT", help="More of a budget, for example usd=0.5.")
    ] = None,
    selection: Selection,
    note: Note = "",
    principal: Principal = None,
    where: Where,
) -> None:
    """Take up an escalated run, or all that fit the filters, where they stopped, with fresh attempts."""
    command = {"principal": principal_of(principal), "note": note, "extend": amounts(extend or [])}
    command_runs(run, selection, where, ControlAction.RESUME, command)


def amounts(pairs: list[str]) -> dict[str, float]:
    """Read amounts such as `usd=0.5`."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, amount = pair.partition("=")
        if name not in BUDGETS:
            raise typer.BadParameter(f"--extend {pair}: there is no budget {name!r}; use {', '.join(BUDGETS)}")
        try:
            more = float(amount)
        except ValueError:
            more = 0.0
        if not 0 < more < math.inf:
            raise typer.BadParameter(f"--extend {pair}: write it as {name}=NUMBER, with a number above 0")
        found[name] = more
    return found
