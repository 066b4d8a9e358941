"""`triptych playbook ls`, `activate` and `rollback`: which version of a playbook new tasks get.

They read and write the table that executors look at every second. Runs that have begun keep their version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import psycopg
import typer
from psycopg.rows import class_row
from rich.table import Table
from rich.text import Text

from triptych.commands.common.options import (
    DEFAULT_CONFIG,
    DEFAULT_DATA,
    AsJson,
    DataDir,
    Postgres,
    Principal,
    database,
    principal_of,
)
from triptych.commands.common.output import err, local_time, out, print_json
from triptych.commands.common.owner import OwnerPostgres, connected, owner_of
from triptych.embedded.config import StackConfig, ToolTable
from triptych.kernel.errors import TriptychError
from triptych.schemas import Playbook, codec

_VERSIONS = """
with newest as (select distinct on (name) number, name, version from executor.activations order by name, number desc)
select p.name, p.version, n.version is not null as active, p.deployed_at,
    a.activated_at, coalesce(a.activated_by, '') as activated_by, coalesce(a.note, '') as note
from executor.playbooks p
left join newest n using (name, version)
left join lateral (
    select * from executor.activations a where a.name = p.name and a.version = p.version order by number desc limit 1
) as a on true
where %(name)s::text is null or p.name = %(name)s
order by p.name, a.number desc nulls last, p.deployed_at desc
"""
_DEPLOY = "insert into executor.playbooks (name, version, definition) values (%s, %s, %s) on conflict do nothing"
_ACTIVATE = """
insert into executor.activations (name, version, folder_version, activated_by, note)
values (%(name)s, %(version)s, (
    select folder_version from executor.activations where name = %(name)s order by number desc limit 1
), %(by)s, %(note)s)
"""

Note = Annotated[str, typer.Option(help="Why; it is kept beside the version.")]


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a playbook that was ever deployed."""

    name: str
    version: str
    active: bool
    """Whether new tasks get it."""
    deployed_at: datetime
    activated_at: datetime | None
    """When that was decided last."""
    activated_by: str
    note: str


class NoVersionError(TriptychError):
    """There is no such version to activate."""

    def __init__(self, wanted: str, problem: str, known: list[Version]) -> None:
        self.wanted = wanted
        there = ", ".join(f"{each.name}@{each.version}" for each in known) or "none"
        super().__init__(f"{wanted}: {problem}. There are {there}; see `triptych playbook ls`")


def ls(
    name: Annotated[str | None, typer.Argument(help="One playbook; all when left out.")] = None,
    *,
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """List the versions of playbooks, the one that new tasks get marked."""
    with connected(database(data, postgres)) as connection:
        found = _versions(connection, name)
    if as_json:
        print_json(found)
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("playbook", "version", "", "deployed", "activated", "by", "note"):
        table.add_column(heading, no_wrap=heading == "version")
    for each in found:
        activated = local_time(each.activated_at) if each.activated_at else ""
        state = Text("active", style="green") if each.active else Text()
        row = (each.name, each.version, state, local_time(each.deployed_at), activated)
        table.add_row(*row, Text(each.activated_by), Text(each.note))
    out.print(table)


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
            connection.execute(_DEPLOY, [playbook.name, playbook.version, definition])
            chosen = (playbook.name, playbook.version)
        _activate(connection, *chosen, by=principal_of(principal), note=note)
    _told(*chosen, as_json=as_json)


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
        known = _versions(connection, name)
        before = next((each for each in known if not each.active and each.activated_at is not None), None)
        if before is None:
            raise NoVersionError(name, "no other version of it was ever active", known)
        _activate(connection, name, before.version, by=principal_of(principal), note=note)
    _told(name, before.version, as_json=as_json)


def _versions(connection: psycopg.Connection[Any], name: str | None) -> list[Version]:
    """Versions of a playbook, or of all; of each the one that was activated last comes first."""
    with connection.cursor(row_factory=class_row(Version)) as cursor:
        return cursor.execute(_VERSIONS, {"name": name}).fetchall()


def _named(connection: psycopg.Connection[Any], what: str) -> tuple[str, str]:
    name, _, start = what.partition("@")
    known = _versions(connection, name)
    found = [each for each in known if start and each.version.startswith(start)]
    if len(found) != 1:
        raise NoVersionError(what, "several versions begin so" if found else "there is no such version", known)
    return name, found[0].version


def _activate(connection: psycopg.Connection[Any], name: str, version: str, *, by: str, note: str) -> None:
    connection.execute(_ACTIVATE, {"name": name, "version": version, "by": by, "note": note})


def _checked(file: Path, config: Path | None) -> Playbook:
    from triptych.playbook.loader import load_playbook  # noqa: PLC0415 - CEL is slow to import

    return load_playbook(file, configured_tools(config))


def configured_tools(config: Path | None) -> Mapping[str, ToolTable] | None:
    """The tools of the triptych.toml that is named, else of the one here. None if there is neither."""
    return StackConfig.load(config or DEFAULT_CONFIG).table.tools if config or DEFAULT_CONFIG.exists() else None


def _told(name: str, version: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "version": version})
    else:
        err.print(f"New tasks for {name} get {version} within a second or two. Runs that have begun keep theirs.")
