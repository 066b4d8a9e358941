"""Reads and writes which version of a playbook new tasks get.

Executors look at these tables every second. Runs that have begun keep their version.
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

from triptych.commands.common.options import DEFAULT_CONFIG
from triptych.commands.common.output import err, print_json
from triptych.embedded.config import StackConfig, ToolTable
from triptych.kernel.errors import TriptychError
from triptych.kernel.postgres.database import Queries

SQL = Queries.load("triptych.commands.common", "playbook_versions.sql")

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


def versions(connection: psycopg.Connection[Any], name: str | None) -> list[Version]:
    """Versions of a playbook, or of all; of each the one that was activated last comes first."""
    with connection.cursor(row_factory=class_row(Version)) as cursor:
        return cursor.execute(SQL["versions"].encode(), {"name": name}).fetchall()


def activate_version(connection: psycopg.Connection[Any], name: str, version: str, *, by: str, note: str) -> None:
    connection.execute(SQL["activate"].encode(), {"name": name, "version": version, "by": by, "note": note})


def configured_tools(config: Path | None) -> Mapping[str, ToolTable] | None:
    """Return the tools of the triptych.toml that is named, else of the one here. None without either."""
    return StackConfig.load(config or DEFAULT_CONFIG).table.tools if config or DEFAULT_CONFIG.exists() else None


def report(name: str, version: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "version": version})
    else:
        err.print(f"New tasks for {name} get {version} within a second or two. Runs that have begun keep theirs.")
