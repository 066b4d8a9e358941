"""`triptych playbook rollback`: new tasks get the version again that was active before."""

from __future__ import annotations

from typing import Annotated

import typer

from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Principal, principal_of
from triptych.commands.common.owner import OwnerPostgres, connected, owner_of
from triptych.commands.common.playbook_versions import Note, NoVersionError, activate_version, report, versions


def rollback(
    name: Annotated[str, typer.Argument(help="A playbook.")],
    *,
    note: Note = "",
    principal: Principal = None,
    data: DataDir = DEFAULT_DATA,
    postgres: OwnerPostgres = None,
    as_json: AsJson = False,
) -> None:
    """Let new tasks have the version again that was active before this one."""
    with connected(postgres or owner_of(data)) as connection:
        known = versions(connection, name)
        before = next((each for each in known if not each.active and each.activated_at is not None), None)
        if before is None:
            raise NoVersionError(name, "no other version of it was ever active", known)
        activate_version(connection, name, before.version, by=principal_of(principal), note=note)
    report(name, before.version, as_json=as_json)
