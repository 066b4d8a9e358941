"""`triptych playbook activate`: new tasks get another version of a playbook."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer

from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, Principal, principal_of
from triptych.commands.common.owner import OwnerPostgres, connected, owner_of
from triptych.commands.common.playbook_versions import (
    SQL,
    Note,
    NoVersionError,
    activate_version,
    configured_tools,
    report,
    versions,
)
from triptych.schemas import Playbook, codec


def activate(
    what: Annotated[str, typer.Argument(metavar="FILE|NAME@VERSION", help="A file, or a version that `ls` shows.")],
    *,
    note: Note = "",
    principal: Principal = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The triptych.toml whose tools a file may use; the one here, if there is one."
        ),
    ] = None,
    data: DataDir = DEFAULT_DATA,
    postgres: OwnerPostgres = None,
    as_json: AsJson = False,
) -> None:
    """Let new tasks have another version of a playbook; the executor goes on running."""
    playbook = None if "@" in what and not Path(what).exists() else _checked(Path(what), config)
    with connected(postgres or owner_of(data)) as connection:
        if playbook is None:
            chosen = _named(connection, what)
        else:
            definition = codec.for_jsonb(playbook.to_bytes()).decode()
            given = {"name": playbook.name, "version": playbook.version, "definition": definition}
            connection.execute(SQL["deploy"].encode(), given)
            chosen = (playbook.name, playbook.version)
        activate_version(connection, *chosen, by=principal_of(principal), note=note)
    report(*chosen, as_json=as_json)


def _named(connection: psycopg.Connection[Any], what: str) -> tuple[str, str]:
    name, _, start = what.partition("@")
    known = versions(connection, name)
    found = [each for each in known if start and each.version.startswith(start)]
    if len(found) != 1:
        raise NoVersionError(what, "several versions begin so" if found else "there is no such version", known)
    return name, found[0].version


def _checked(file: Path, config: Path | None) -> Playbook:
    from triptych.playbook.loader import load_playbook  # noqa: PLC0415 - CEL is slow to import

    return load_playbook(file, configured_tools(config))
