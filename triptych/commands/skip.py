"""`triptych skip`: treat a step of an escalated run as done."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from triptych.commands.common.option_groups import with_groups
from triptych.commands.common.options import Principal, principal_of
from triptych.commands.common.run_commands import Note, RunArgument, Selection, Where, command_runs
from triptych.schemas import ControlAction, codec


@with_groups
def skip(
    run: RunArgument = None,
    *,
    step: Annotated[str | None, typer.Option(help="The step; the one that stopped the run when left out.")] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="JSON", help="What the step is taken to have answered.")
    ] = None,
    selection: Selection,
    note: Note = "",
    principal: Principal = None,
    where: Where,
) -> None:
    """Treat a step of an escalated run, or of all that fit the filters, as done, and go on."""
    command = {"principal": principal_of(principal), "note": note, "step": step, "data": _json(answer)}
    command_runs(run, selection, where, ControlAction.SKIP, command)


def _json(text: str | None) -> Any:
    try:
        return None if text is None else codec.decode(text)
    except codec.InvalidJson as error:
        raise typer.BadParameter(f"--answer: {error}") from None
