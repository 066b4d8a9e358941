"""`triptych setup`: prepares Kafka and Postgres for services that somebody else starts, as in containers.

Run it once before the services start, and again after each upgrade; repeating it changes nothing. Each
role's password comes from the DSN that its service gets, so both sides read the same secret.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import psycopg
import typer
from psycopg.conninfo import conninfo_to_dict

from triptych.client import DatabaseUnreachableError
from triptych.commands.common.options import DEFAULT_CONFIG, DEFAULT_PREFIX, AsJson, ConfigFile, topic_prefix
from triptych.commands.common.output import err, print_json
from triptych.embedded.config import StackConfig
from triptych.embedded.topics import create_topics
from triptych.kernel.errors import ConfigurationError
from triptych.kernel.postgres.migrate import Schema, prepare

OPERATOR = "operator"


class WrongRolesError(ConfigurationError):
    """The folder of the roles' DSNs does not fit the services."""

    def __init__(self, problem: str, folder: Path) -> None:
        self.problem, self.folder = problem, folder
        super().__init__(f"{problem} (--roles {folder}); deploy/make_secrets.py writes such files")


def setup(
    *,
    kafka: Annotated[str, typer.Option(envvar="TRIPTYCH_KAFKA", metavar="HOST:PORT", help="The broker.")],
    postgres: Annotated[
        str,
        typer.Option(envvar="TRIPTYCH_POSTGRES", metavar="DSN", help="A role that may create databases and roles."),
    ],
    roles: Annotated[
        Path,
        typer.Option(
            envvar="TRIPTYCH_ROLES", help="A folder with a file for each schema and for `operator`: its role's DSN."
        ),
    ] = Path("/run/roles"),
    prefix: Annotated[
        str,
        typer.Option(
            parser=topic_prefix, metavar="PREFIX", envvar="TRIPTYCH_TOPIC_PREFIX", help="Topics are PREFIX.noun."
        ),
    ] = DEFAULT_PREFIX,
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Create topics, roles, schemas and tables for services that are started by other means than `up`."""
    stack = StackConfig.load(config)
    migrations = stack.schema_migrations()
    try:
        server = conninfo_to_dict(postgres)
    except psycopg.Error:
        raise typer.BadParameter(
            "--postgres is not a DSN; write postgresql://role:password@host:port/database"
        ) from None
    database = str(server.get("dbname") or DEFAULT_PREFIX)
    known = passwords(roles, database, {*migrations, OPERATOR})
    schemas = [Schema(name, known[name], directories) for name, directories in migrations.items()]
    try:
        prepared = prepare(postgres, prefix, schemas, known[OPERATOR])
    except psycopg.Error as error:
        raise DatabaseUnreachableError(f"{server.get('host')}:{server.get('port', 5432)}/{database}", error) from error
    grown = asyncio.run(create_topics(kafka, prefix, stack.table.tools, stack.table.partitions))
    if as_json:
        told = {"database": database, "topic_prefix": prefix, "schemas": sorted(migrations)}
        print_json(told | {"postponed": prepared.postponed, "partitions_added": grown})
    else:
        if grown:
            err.print(f"partitions were added to {', '.join(grown)}", style="yellow", markup=False)
        for reason in prepared.postponed:
            err.print(f"waits: {reason}", style="yellow", markup=False)
        err.print(f"ready: database {database}, topics {prefix}.*")


def passwords(folder: Path, database: str, names: set[str]) -> dict[str, str]:
    """Read by name the password in the DSN of each of these roles.

    Raises:
        WrongRolesError: a file is missing, or its DSN is of another role than the one that is prepared.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        try:
            parts = conninfo_to_dict((folder / name).read_text("utf-8").strip())
        except FileNotFoundError:
            raise WrongRolesError(f"there is no file {name}", folder) from None
        except psycopg.Error as error:
            raise WrongRolesError(f"the file {name} holds no DSN", folder) from error
        role = f"{database}_{name}"
        if parts.get("user") != role or not parts.get("password"):
            raise WrongRolesError(f"the DSN in {name} must be of the role {role}, with its password", folder)
        found[name] = str(parts["password"])
    return found
