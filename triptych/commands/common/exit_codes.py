"""What the exit codes of the `triptych` command mean; docs/how-to/operations.md has the same table."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from triptych.schemas import OutcomeStatus


class ExitCode(IntEnum):
    """Exit codes, the same for every command."""

    DONE = 0
    """It is done; of `submit --wait`, every task has succeeded."""
    FAILED = 1
    """It could not be done, or not in time; `verify`, `playbook check` and `tools test` have found something."""
    USAGE_ERROR = 2
    """An option or a file is wrong, or there is no stack, broker or database."""
    ESCALATED = 3
    """`submit --wait`: a run waits for a person, and all others have succeeded."""
    NOT_SUCCEEDED = 4
    """`submit --wait`: a task has failed, was cancelled or rejected, or became a dead letter."""
    INTERRUPTED = 130
    """Ctrl-C."""


def of_statuses(statuses: Iterable[str]) -> ExitCode:
    """Return the code for the outcomes of tasks, each settled."""
    others = set(statuses) - {OutcomeStatus.SUCCEEDED}
    if not others:
        return ExitCode.DONE
    return ExitCode.ESCALATED if others == {OutcomeStatus.ESCALATED} else ExitCode.NOT_SUCCEEDED
