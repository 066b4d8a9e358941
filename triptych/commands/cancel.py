"""`triptych cancel`: stop a run, or all that fit a filter."""

from __future__ import annotations

from triptych.commands.common.option_groups import with_groups
from triptych.commands.common.options import Principal, principal_of
from triptych.commands.common.run_commands import Note, RunArgument, Selection, Where, command_runs
from triptych.schemas import ControlAction


@with_groups
def cancel(
    run: RunArgument = None,
    *,
    selection: Selection,
    note: Note = "",
    principal: Principal = None,
    where: Where,
) -> None:
    """Stop a run, or all that fit the filters. What is under way is not waited for."""
    command = {"principal": principal_of(principal), "note": note}
    command_runs(run, selection, where, ControlAction.CANCEL, command)
