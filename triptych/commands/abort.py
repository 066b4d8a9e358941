"""`triptych abort`: end an escalated run as failed."""

from __future__ import annotations

from typing import Annotated

import typer

from triptych.commands.common.option_groups import with_groups
from triptych.commands.common.options import Principal, principal_of
from triptych.commands.common.run_commands import Note, RunArgument, Selection, Where, command_runs
from triptych.schemas import ControlAction


@with_groups
def abort(
    run: RunArgument = None,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Undo first what it has written, the latest first.")] = False,
    selection: Selection,
    note: Note = "",
    principal: Principal = None,
    where: Where,
) -> None:
    """End an escalated run, or all that fit the filters, as failed."""
    command = {"principal": principal_of(principal), "note": note, "undo": undo}
    command_runs(run, selection, where, ControlAction.ABORT, command)
